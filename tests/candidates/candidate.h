/* candidate.h: kernels emulated in reduced precision on the CPU, honest and broken. What the
 * verifier is itself verified with.
 *
 * A candidate is what a kernel would have stored: the tensors of a bundle, computed from a golden's
 * in.* by a kernel of a given precision profile, with its own logits, and hence with its own routing.
 *
 *     kernel   an honest way to compute the layer: order of summation, what is fused, what is shuffled.
 *              Each rounds where the profile says, or less; so each is honest under every profile
 *     fault    one mistake, planted in that kernel at the place where it would sit in a real one.
 *              What follows from the wrong value follows: a wrong H makes a wrong y, and a wrong dW_up.
 *              A mistake in a forward step is not repeated in the backward step that belongs to it
 *
 * A kernel computes in float where the profile's accumulator is binary32's (and the inputs fit), in
 * double otherwise; other accumulators, truncating ones, and profiles that flush are emulated one
 * addition at a time, slowly.
 *
 * Where what lives: routing.c scores to assignment, and the state | gates.c gates, weights, losses and
 * their gradients | kernel_impl.h, kernel_backward_impl.h experts, combine and back, once for either
 * word | spoil.c what
 * befalls a finished tensor | faults.c, kernels.c the two tables | candidate.c the order of a step.
 *
 * Left out: metric.*, layout.*, route.margin (a kernel has no use for them), and speed. What is done
 * outside the experts is computed in double and rounded after every operation, which for +, -, *
 * and / of 24-bit numbers is float arithmetic to the bit (53 >= 2 * 24 + 2).
 */
#ifndef ETREF_TESTS_CANDIDATE_H
#define ETREF_TESTS_CANDIDATE_H

#include "etref/etref.h"

/* ---- honest kernels ---- */

typedef enum cd_order {
    CD_SEQUENTIAL,  /* term after term */
    CD_REVERSED,    /* from the last term to the first */
    CD_BLOCKED,     /* OpenBLAS: blocks, vector lanes, fused multiply-add */
    CD_TREE,        /* pairwise, above leaves of 8 terms */
    CD_COMPENSATED, /* Kahan's sum: rounds less */
    CD_WIDE         /* float: summed in double, rounded once; double: as CD_COMPENSATED */
} cd_order;

typedef struct cd_kernel {
    const char *name, *what;
    cd_order order;    /* of the sums of every product */
    size_t parts;      /* split-K: so many partial sums, then their sum; 0: one */
    size_t token_tile; /* weight gradients: one partial sum for so many tokens; 0: one in all */
    bool fused_hidden; /* H is never rounded */
    bool fused_act;    /* A is not rounded before it enters the down-projection as an operand */
    bool fused_out;    /* f(x) is not rounded before it is weighted */
    bool fused_grads;  /* dO and dA are not rounded, save as operands */
    bool
        weight_on_act; /* y sums (w A) W_down', and dw = <A, dy W_down>; f(x) and dO do not exist */
    bool shuffled;     /* a token's sums (y, dx) in random order, as atomics leave it */
    bool wide_outputs; /* y, dx and dW stay as accumulated */
    bool wide_gates;   /* gates, weights and dr in double, rounded once */
    bool wide_router;  /* the router's three products take their operands unrounded */
    bool online;       /* softmax in one pass with a running maximum */
    bool slope_from_gate; /* sigmoid: p' from the rounded p, as p(1-p) */
    bool short_upstream;  /* dy is rounded like intermediates before anything is computed from it */
} cd_kernel;

const cd_kernel *cd_kernel_at(size_t index); /* NULL past the end */
const cd_kernel *cd_kernel_find(const char *name);

/* ---- faults ---- */

typedef struct cd_fault {
    const char *name;  /* "factor-two" */
    const char *what;  /* where it sits, in a few words */
    const char *stage; /* "selection", "state", "forward", "backward", "layout", "precision" */
    const char *explained_by;               /* the hypothesis that should explain it, or NULL */
    bool (*applies)(const et_step *golden); /* false: it has no place in this case, and is not
                                             * planted there. The golden has been run */
    double usual;                           /* faults with a size: the usual one; else 0 */
} cd_fault;

const cd_fault *cd_fault_at(size_t index); /* NULL past the end */
const cd_fault *cd_fault_find(const char *name);

/* ---- running them ---- */

enum { CD_MAX_ARRAYS = 96 };

typedef struct cd_candidate {
    size_t count;
    et_tensor_out tensors[CD_MAX_ARRAYS]; /* names as in a bundle; dtype: how such a kernel would
                                           * store it; values: float, double or integers */
    /* With a fault: does anything differ from the same kernel without it? */
    bool planted;
    const char *changed; /* the first tensor that differs, or that one of the two lacks; or NULL */
    size_t changed_tensors;
    double
        largest_change; /* over all tensors both have: root mean square of the difference over that
                            * of the healthy values; inf: not a finite number, or a healthy 0 */
    /* What made it. */
    const et_step *golden;
    et_profile profile;
    const cd_kernel *kernel;
    const cd_fault *fault;
    double amount;
    uint64_t seed;
    void *owned[CD_MAX_ARRAYS];
    size_t owned_count;
} cd_candidate;

/* Runs `kernel` on golden's in.*, with `fault` planted (NULL: none). `amount`: the size of a fault that
 * has one, such as a factor 1 + amount (0: the usual one). `seed` shuffles, and places the faults that
 * hit one element, row or expert. With a fault the healthy kernel runs, too, to see what changed.
 * ET_EINVAL: logits that are no finite numbers (the profile's range is too small for the case), or
 * those of the library's routing; ET_ENOMEM. The caller frees the candidate, before the golden; on
 * failure there is nothing to free. */
et_status cd_run(cd_candidate *out, const et_step *golden, const et_profile *profile,
                 const cd_kernel *kernel, const cd_fault *fault, double amount, uint64_t seed,
                 et_error *error);

/* The same with a healthy candidate at hand, whose golden, profile, kernel and seed are taken: half
 * the work where many faults are planted in one kernel. */
et_status cd_plant(cd_candidate *out, const cd_candidate *healthy, const cd_fault *fault,
                   double amount, et_error *error);

void cd_free(cd_candidate *candidate); /* accepts zeros */

/* A tensor by its name in a bundle, or NULL; number of its elements; one of them. */
const et_tensor_out *cd_tensor(const cd_candidate *candidate, const char *name);
size_t cd_count(const et_tensor_out *tensor);
double cd_element(const et_tensor_out *tensor, size_t index);

#endif
