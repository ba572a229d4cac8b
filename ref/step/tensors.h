/* tensors.h: the one table of tensors, as the library sees it. Internal.
 *
 * A row says all that is to be known of one tensor: name, type, shape and meaning (et_tensor_doc,
 * which is public), where it stands in an et_step, at which place of a profile a kernel stores it,
 * which stage of the step computes it, from which tensors, and how it depends on decisions. What is
 * asked of a tensor by its name is a column of ref/step/tensors.def. Inside, a tensor is its id,
 * the number of its row; names are for files and people.
 */
#ifndef ET_TENSORS_H
#define ET_TENSORS_H

#include "etref/bundle.h"
#include "ref/format/tensor_arrays.h"

typedef enum et_tensor_id {
    ET_NO_TENSOR,
#define T(id, ...) ET_##id,
#include "ref/step/tensors.def"
#undef T
    ET_TENSORS,
    ET_FIRST_INPUT = ET_IN_X,
    ET_LAST_INPUT = ET_IN_SECOND
} et_tensor_id;

_Static_assert((int)ET_TENSORS <= (int)ET_MAX_STEP_TENSORS, "bars and lists hold one of each");

/* The stages of a step, in its order up to ET_STAGES. */
typedef enum et_stage {
    ET_AT_PLAN,    /* thresholds, from the moving average */
    ET_AT_MASK,    /* who goes where */
    ET_AT_CUTOFF,  /* what this batch's cutoffs are */
    ET_AT_STATE,   /* moving average and bias after the step */
    ET_AT_GATES,   /* p */
    ET_AT_WEIGHTS, /* w, s */
    ET_AT_PRE,     /* H */
    ET_AT_GATE_PRE, /* V */
    ET_AT_ACT,     /* A */
    ET_AT_OUT,     /* f(x) */
    ET_AT_MIX,     /* w, s as y alone takes them; in no bundle */
    ET_AT_Y,
    ET_AT_LOSSES,
    ET_AT_DWEIGHT, /* dw, ds */
    ET_AT_DOUT,    /* dO */
    ET_AT_DDOWN,
    ET_AT_DACT, /* dA */
    ET_AT_DPRE, /* dH */
    ET_AT_DGATE_PRE, /* dV */
    ET_AT_DUP,
    ET_AT_DGATING,
    ET_AT_DB_UP,
    ET_AT_DB_GATE,
    ET_AT_DB_DOWN,
    ET_AT_SLOT_DX, /* a slot's share of dx; in no bundle */
    ET_AT_DGATES,  /* dp; in no bundle */
    ET_AT_DLOGITS, /* dr */
    ET_AT_DROUTER,
    ET_AT_DX,
    ET_AT_LAYOUT, /* the order of slots */
    ET_STAGES,    /* hypotheses about mistakes (ref/diagnose/mutant.h) know those above */
    ET_AT_INPUTS,
    ET_AT_LOGITS, /* r */
    ET_AT_ORDER,  /* choices by descending score */
    ET_AT_BLOCKS, /* a padded layout */
    ET_AT_RANKS,  /* what several ranks exchange, and what each has before sums and means are taken */
    ET_AT_METRICS,
    ET_AT_SCALARS, /* of the model's layers and optimisers: element by element, or a sum */
    ET_AT_PRODUCTS /* by matrix products */
} et_stage;

/* How a tensor depends on the decisions of a routing; for some, on what the case couples
 * (ref/verdict/unseen_decisions.c). */
typedef enum et_sees {
    ET_SEES_NONE,
    ET_SEES_TOKEN,  /* a row: those of its own token */
    ET_SEES_EXPERT, /* those of its own expert */
    ET_SEES_ALL,
    ET_SEES_COUNTS,    /* all, as numbers: how many passed a threshold */
    ET_SEES_LOADS,     /* all, unless loads are given */
    ET_SEES_LOGITS,    /* dr's row: its token's, and others' where gate or loss couples tokens */
    ET_SEES_ROUTER,    /* dW_r's row: its expert's, and others' where anything couples dr */
    ET_SEES_SHARED,    /* its token's, where the fanout divides the shared expert's weight */
    ET_SEES_ALL_SHARED /* all, there: a sum over tokens */
} et_sees;

enum { ET_MAX_STARTS = 14 }; /* with the ET_NO_TENSOR behind them */

typedef struct et_tensor_row {
    et_tensor_doc doc;
    size_t offset;                 /* of the array's pointer in et_step */
    bool (*has)(const et_case *c); /* cases that have it; NULL: a part of assignment or layout */
    et_place place;                /* of the profile, where a kernel stores it */
    et_stage stage;                /* which computes it */
    et_sees sees;
    /* What it hangs on: the tensors from which its stage computes it, as far as the step has them;
     * then ET_NO_TENSOR. Where the assignment only says which rows are slots, it is not listed. ON_INPUT(id): where weights
     * stand on the experts' inputs alone; BY_ANCHOR(id): where a softmax's anchor weighs the shared expert. */
    int starts[ET_MAX_STARTS];
} et_tensor_row;

/* By id; row ET_NO_TENSOR: of what is no tensor of a bundle. */
extern const et_tensor_row et_tensors[ET_TENSORS];

/* One of a row's starts in this case; ET_NO_TENSOR: it is none there. */
et_tensor_id et_start_in(const et_case *c, int start);

/* Is it one of in.*, which a kernel is given? */
bool et_is_input(et_tensor_id id);

/* The tensor of this name, or ET_NO_TENSOR. */
et_tensor_id et_tensor_find(const char *name);

/* The array of a step's tensor; NULL where the step has none. */
const void *et_tensor_values(const et_step *s, et_tensor_id id);

/* A tensor of a step, of its shape at this moment; values NULL where the step has none. */
et_tensor_out et_tensor_view(const et_step *s, et_tensor_id id);

/* True if a kernel's output for the case of `s` may have this shape: that of the row, where the
 * number of slots, and of padded rows and blocks, is what the kernel's own routing makes it, at
 * most every token on every expert. */
bool et_tensor_fits(const et_step *s, const et_tensor_doc *doc, size_t rank, const size_t *shape);

/* Is the first dimension of a row's shape in letters this one? "[n,h,d]" has "n"; "[n+1]" has "n+1"
 * and not "n". */
bool et_rows_are(const char *shape, const char *letter);

/* "noise.fwd.y" or "noise.alone.fwd.y", where fwd.y is what a kernel computes; or ET_NOISE_BARS. */
bool et_is_noise(const char *name);

#endif
