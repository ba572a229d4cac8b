/* deviant.h: the step once more, with one thing done wrong. Internal.
 *
 * A hypothesis is a small deviation of the reference: a hook at one stage of the step, a few lines
 * long. A deviant is the step that results. It shares every array of the reference until a stage
 * must write it anew: the hook's own, and all that follow from it.
 *
 *     plan -> mask -> cutoff -> state                 selection, and what it leaves behind
 *     gates -> weights                                p; w and s
 *     H -> A -> O -> y                                each expert's rows; combined token by token
 *     losses
 *     dw, dO -> dW_down, dA -> dH -> dW_up, expert's dx
 *     dp -> dr -> dW_r, dx
 *     layout                                          the order in which slots lie
 *
 * So that many hypotheses can be tried in little time, a deviant is computed on a pick of tokens:
 * everything that belongs to one of them alone, and the weight gradients of those experts all of
 * whose tokens were picked. Indices are those of the whole problem throughout.
 *
 * Letters as in moe.h. The shared expert counts as expert n; its row number is its token's. A dense
 * layer is one expert without gates that all tokens go to.
 */
#ifndef ET_DEVIANT_H
#define ET_DEVIANT_H

#include "etref/verify.h"

typedef enum et_stage {
    ET_AT_PLAN,
    ET_AT_MASK,
    ET_AT_CUTOFF,
    ET_AT_STATE,
    ET_AT_GATES,
    ET_AT_WEIGHTS,
    ET_AT_PRE,
    ET_AT_ACT,
    ET_AT_OUT,
    ET_AT_Y,
    ET_AT_LOSSES,
    ET_AT_DWEIGHT,
    ET_AT_DOUT,
    ET_AT_DDOWN,
    ET_AT_DACT,
    ET_AT_DPRE,
    ET_AT_DUP,
    ET_AT_SLOT_DX,
    ET_AT_DGATES,
    ET_AT_DLOGITS,
    ET_AT_DROUTER,
    ET_AT_DX,
    ET_AT_LAYOUT,
    ET_STAGES
} et_stage;

typedef struct et_deviant et_deviant;

/* By what the tokens are selected: the case's rule, opened up. */
typedef struct et_plan {
    et_rule how;              /* by token (ET_TC), by choice (ET_EC) or by threshold (ET_ET) */
    size_t batch, pool, k, K; /* tokens routed together; P; load of an expert; choices of a token */
    bool inclusive, clamped;  /* >= for >; capacity on */
    bool last_wins, lowest_first; /* ties go to the higher index; the lowest scores are taken */
    et_capacity bounds;
    const et_real *bias;          /* [n] or NULL */
    et_real *scores, *thresholds; /* [N,n], the deviant's own copy of the logits; [n] */
} et_plan;

/* One token at one expert: where its numbers stand. NULL where the step has none. Only the array of
 * the hook's own stage may be written. */
typedef struct et_row {
    size_t expert, slot, token; /* n for the shared expert, whose slot is the token */
    size_t place, load;         /* this is row `place` of the expert's `load` */
    size_t width;               /* h or hs */
    et_real *w, *dw;            /* [1] */
    et_real *H, *A, *dA, *dH;   /* [width] */
    et_real *O, *dO, *dx;       /* [d] */
} et_row;

/* An expert's weight gradient about to be taken: gradient = left' right over its `load` rows. The
 * hook may write both factors, which are copies. */
typedef struct et_factors {
    size_t expert, first, load; /* its first slot */
    size_t left_width, right_width;
    et_real *left, *right; /* dW_up: dH [load,h], x [load,d]; dW_down: dO [load,d], A [load,h] */
} et_factors;

/* An expert's weights about to be used. */
typedef struct et_weights {
    size_t expert;
    bool backward; /* for dA and dx, not for H and O */
    const et_real *up, *down;
    bool up_turned, down_turned; /* read as if transposed; only where it is as wide as d */
} et_weights;

/* Where a hypothesis puts its hand. One of the six functions; `whole`, `token` and `row` are called when
 * the stage has been computed as it should be, and write it anew. */
typedef struct et_hook {
    et_stage at;
    unsigned variants; /* bit i: applies in variant i; 0: in all */
    void (*whole)(et_deviant *v);
    void (*token)(et_deviant *v, size_t t);
    void (*row)(et_deviant *v, const et_row *r);
    void (*factors)(et_deviant *v, const et_factors *f); /* before the product is taken */
    void (*weights)(et_deviant *v, et_weights *w);       /* at PRE and OUT, DACT and SLOT_DX */
    size_t (*input)(et_deviant *v, const et_row *r);     /* at PRE: the token whose x is read */
} et_hook;

enum { ET_MAX_HOOKS = 20, ET_MAX_VARIANTS = 18 };

typedef enum et_nature {
    ET_BY_VALUE,      /* the hooks below */
    ET_BY_FACTOR,     /* the same, with a factor that is first fitted to the candidate */
    ET_BY_PROFILE,    /* the reference's values, another profile's errors */
    ET_BY_TRUNCATION, /* errors towards zero */
    ET_BY_FORMAT      /* values of a coarser format */
} et_nature;

typedef struct et_hypothesis {
    et_hypothesis_doc doc;
    et_nature nature;
    bool (*applies)(const et_step *right); /* NULL: always */
    bool (*allowed)(const et_profile *p,
                    size_t variant);       /* the profile does it itself; NULL: never */
    const char *variants[ET_MAX_VARIANTS]; /* what tells them apart, for the scope; at least {""} */
    et_hook hooks[ET_MAX_HOOKS];           /* up to the first without a function */
    void (*profile)(et_profile *p);        /* ET_BY_PROFILE: what is different */
    et_dtype format;                       /* ET_BY_FORMAT */
} et_hypothesis;

/* The table. NULL past the end. */
const et_hypothesis *et_hypothesis_row(size_t index);

/* Which experts (n+1, the last the shared one) and tokens do it wrong; NULL: all. */
typedef struct et_scope {
    const uint8_t *experts, *tokens;
} et_scope;

/* The tokens on which a deviant is computed, and the rows that this means. */
typedef struct et_pick {
    bool whole;           /* all of them */
    uint8_t *token;       /* [N] is it picked? */
    uint8_t *complete;    /* [n+1] are all the expert's tokens? */
    size_t *rows, *first; /* rows of expert e: rows[first[e]] .. rows[first[e+1]), ascending */
    size_t most;          /* rows of the expert that has the most of them */
} et_pick;

typedef struct et_array {
    void *values;
    size_t bytes;
} et_array;

enum { ET_MAX_ARRAYS = 64 };

/* What all deviants of one candidate have in common. */
typedef struct et_subject {
    const et_step *right; /* the reference: what a deviant deviates from */
    const et_tensor_out *candidate;
    size_t count;
    et_moe moe;          /* its layer, on the fast engine */
    et_assignment dense; /* of a dense layer: all tokens to one expert */
    const et_assignment *a;
    size_t gemm_experts; /* n, and 1 for a dense layer */
    et_pick pick;
    et_real *slot_dx,
        *shared_dx;    /* the reference's shares of dx on the pick, once they are needed */
    et_real *rooms[2]; /* gathered rows */
    size_t *list;
    et_array spare[ET_MAX_ARRAYS]; /* of deviants that have been closed, for the next one */
    size_t spare_count;
} et_subject;

/* `tokens` [N]: which are picked; NULL: all. `right` has been run and lives longer. ET_ENOMEM; on
 * failure there is nothing to close. */
et_status et_subject_open(et_subject *on, const et_step *right, const et_tensor_out *candidate,
                          size_t count, const uint8_t *tokens, et_error *error);
void et_subject_close(et_subject *on); /* accepts zeros */

struct et_deviant {
    et_subject *on;
    const et_hypothesis *what;
    size_t variant;
    double factor;     /* ET_BY_FACTOR */
    bool forward_only; /* the backward pass goes by the reference's values */
    bool rerouted;     /* the mask's deviation is carried through all that follows */
    et_scope scope;
    et_step s;  /* the wrong step */
    et_moe moe; /* its layer; hooks may change gate and norm */
    bool without_shared,
        over_all;       /* what weights are divided by: n_t without the shared expert; the
                                    * sum over all experts' gates */
    et_moe_values used; /* by the backward pass: s.fwd, or the reference's */
    et_plan plan;
    et_assignment own; /* rerouted: its assignment and its rows */
    et_pick own_pick;
    const et_assignment *a;
    const et_pick *pick;
    et_balance balance;
    bool own_load;
    et_real *kth;                      /* [M,n] cutoffs of each micro-batch */
    et_real *slot_dx, *shared_dx;      /* [S,d], [N,d]: shares of dx */
    et_real *loss_gates, *loss_logits; /* [N,n]: dp and dr by the losses alone */
    const et_real *gate_logits;        /* [N,n] at which the gate's derivative is taken */
    et_real *cutoff;                   /* [n] their mean: what the moving average sees */
    bool blocked;                      /* later stages need tokens that were not picked */
    et_status status;                  /* of the hooks */
    unsigned dirty, compared; /* bit of each stage that was written anew; that was compared */
    size_t anew_count;
    et_array anew[ET_MAX_ARRAYS]; /* its own arrays */
};

/* A deviant about which nothing has been computed yet. `carried`: a hook at the mask changes who goes
 * where (not so for a candidate whose own assignment is known: it is judged by that). */
void et_deviant_open(et_deviant *v, et_subject *on, const et_hypothesis *what, size_t variant,
                     et_scope scope, bool carried);
void et_deviant_close(et_deviant *v);

/* Computes one stage, if it differs from the reference. To be called for each stage in order. */
et_status et_deviant_stage(et_deviant *v, et_stage stage, et_error *error);

/* Every stage of the arithmetic has been computed afterwards, for a deviant with another assignment: its
 * backward pass may have been left out, since the candidate shows nothing of it, and rows of slots that were still the
 * reference's would be too few, or too many. */
et_status et_deviant_complete(et_deviant *v, et_error *error);

/* The deviant as a step that can be computed with: the assignment by which its rows lie, and the mask that makes it;
 * what a stage of the layout, or of a selection that nothing follows, has written over them is for show. */
et_step et_deviant_step(const et_deviant *v);

/* Is there such a variant? */
bool et_hypothesis_has(const et_hypothesis *what, size_t variant);
/* Can the hypothesis, in this variant, change what is computed at `stage`? forward_only: the backward
 * pass goes by the reference's values. */
bool et_hypothesis_reaches(const et_hypothesis *what, size_t variant, bool forward_only,
                           et_stage stage);
/* The first stage at which it puts its hand. */
et_stage et_hypothesis_starts(const et_hypothesis *what, size_t variant);

/* The stage at which a tensor of the table is computed; ET_STAGES for inputs, logits and metrics. */
et_stage et_stage_of(const char *tensor);

/* ---- what hooks build with ---- */

/* Zeroed, and freed with the deviant; NULL, and v->status set, where there is no memory. */
et_real *et_deviant_reals(et_deviant *v, size_t count);
int32_t *et_deviant_integers(et_deviant *v, size_t count);
/* The same in place of an array of v->s, which is copied. */
bool et_deviant_renew(et_deviant *v, et_real **field, size_t rows, size_t columns);
bool et_in_scope(const et_deviant *v, size_t expert, size_t token);
/* The rows of a slot, and of the shared expert at a token. */
et_row et_slot_row(et_deviant *v, size_t slot);
et_row et_shared_row(et_deviant *v, size_t token);
/* p_ti of the slot. */
et_real et_gate_of(const et_deviant *v, size_t slot);
/* Slots of token t: *first into a->token_slots; returns how many. */
size_t et_slots_of(const et_deviant *v, size_t t, const int32_t **slots);
/* Selection by the plan, once more. */
void et_select_again(et_deviant *v);
/* Gate values by v->moe.gate and the scores given [N,n]; weights by v->moe.norm. */
void et_gates_again(et_deviant *v, const et_real *scores);
void et_weigh_again(et_deviant *v);
/* What token t's gate values, and s_t, are divided by; the gates [N,n]. */
et_real et_divisor(const et_deviant *v, const et_real *gates, size_t t);
et_real et_shared_divisor(const et_deviant *v, size_t t);
/* Losses and their gradients by v->balance and v->own_load. */
void et_losses_again(et_deviant *v);

#endif
