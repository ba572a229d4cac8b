/* verify.h: the verdict on a kernel's output.
 *
 * A candidate is any subset of a bundle's tensors, in any float type, computed by a kernel from the
 * in.* tensors of a golden. It is judged under a precision profile (profile.h), in six parts:
 *
 *   1 routing      each decision by itself: settled ones must agree with the golden, open ones (the
 *                  margin is within what the profile's rounding can turn) may differ, and what was
 *                  chosen must obey the rule: K a token, k an expert and pool, the clamps
 *   2 arithmetic   judged given the candidate's own routing: where it differs legally, the reference
 *                  is computed again with it
 *   3 elements     finite, and |error| <= 30 sigma; sigma = 0 means exact
 *   4 groups       the tensor, each expert, row, column, block of rows, tile: slope (regression of the
 *                  error on the reference) and spread (root mean square of error/sigma)
 *   5 stages       y, gradients, gates, weights, losses, state: where the candidate shows what a stage
 *                  starts from, elements and groups once more against what the reference makes of that
 *   6 not vacuous  what was required is there, shapes agree, the candidate is neither the golden nor
 *                  one of its inputs, and the tensor stands out of its noise
 *
 * sigma, and what slopes and spreads may be, come from replicas: runs of the layer with a kernel's roundings in it, up or
 * down by chance (rounding.h). An element may err by 30 deviations, a group by 22, or by 40 where nothing is rounded more
 * coarsely than sums and in stages by themselves; a whole tensor by half of that. Which share of that honest kernels were seen to need is in
 * data/campaign/limits.csv.
 *
 * ET_MISMATCH if any of the parts finds an error. Else ET_INCONCLUSIVE if what is there cannot decide: a
 * required tensor is missing; nothing was judged; everything is as free of errors as the golden, where a
 * kernel would have rounded; or a tensor could not be judged, since it hangs on open decisions that the
 * candidate does not show (it gives no route.mask), lies outside the range of the profile's numbers, or,
 * being required, y or a gradient, is smaller than its own noise. Else ET_PASS.
 *
 * In evaluation the state does not change. A candidate may show state.* nevertheless: as it came in.
 */
#ifndef ETREF_VERIFY_H
#define ETREF_VERIFY_H

#include "etref/bundle.h"
#include "etref/profile.h"
#include "etref/safetensors.h"
#include "etref/step.h"

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

typedef enum et_outcome { ET_PASS, ET_MISMATCH, ET_INCONCLUSIVE } et_outcome;

typedef struct et_verify_options {
    const et_profile *profile;  /* NULL: et_profile_for chooses one */
    bool ties_any;              /* exact ties may be broken in any way */
    const char *const *require; /* names that must be present; "bwd.*": all of these outputs and
                                 * gradients that a lean bundle of the case has (bundle.h) */
    size_t require_count;
    bool explain; /* on a mismatch, try other profiles and the catalogue of hypotheses */
    double explain_seconds; /* of the process's CPU time, for that; 0: no limit, and the same result on every machine.
                             * No piece of work begins for which, by the longest of its kind so far, there is no time;
                             * the first may go past the limit. */
    const char *bars; /* NULL, or the golden's bundle: if it has error bars of the profile (et_bundle_write_bars), none
                       * are made for a candidate with the golden's routing; they are believed as they stand there */
    size_t max_bytes; /* for a reference or its error bars, each; 0: no limit */
    et_progress *progress;
    void *user;
} et_verify_options;

/* One group of elements of a tensor. */
typedef struct et_group {
    const char *kind; /* "tensor", "expert", "row", "column", "block": 16, 64 or 128 rows; "tile": 16 rows of 16
                       * columns; "part": all of one summand */
    const char *part; /* what the error is regressed on: "reference"; of y "routed", "shared"; of dx
                       * "experts", "shared", "router" */
    bool alone;       /* of the stage by itself, from the candidate's own numbers */
    size_t index, column, elements; /* expert, row or column; of a block or tile its first row, and column */
    double slope, slope_sigma, slope_limit;
    double spread, spread_limit; /* limit 0: not tested */
    double deviations; /* the larger of both, beyond what replicas have by design, in deviations of theirs */
    double allowed;    /* so many */
    bool pass;
} et_group;

/* "the whole tensor", "its routed part", "expert 3", "rows 16 and following": into a buffer, for messages. */
void et_group_print(const et_group *g, char *text, size_t room);

typedef struct et_tensor_verdict {
    char name[ET_MAX_TENSOR_NAME + 1];
    et_outcome outcome;
    char reason[240]; /* one sentence where it is not ET_PASS */
    et_dtype dtype;   /* as the candidate stores it */
    size_t elements, judged, failed; /* judged: those that could be (no open decision behind them) */
    size_t exact;                    /* elements with sigma = 0 */
    double largest_error;            /* of the finite ones */
    double largest_ulps;             /* the same in units in the last place of the larger of got and
                                      * want, of the significand that the profile has there */
    double largest_sigmas;           /* infinite: not finite, or wrong where sigma = 0 */
    double limit_sigmas;             /* t */
    size_t worst;                    /* index of the element with the most sigmas */
    double got, want, bar;           /* there; bar = t sigma */
    double effective_sample;                                          /* (sum V)^2 / sum V^2 */
    et_group whole, worst_group; /* the tensor; the group that came nearest to, or farthest past, its
                                  * limits */
} et_tensor_verdict;

typedef struct et_routing_verdict {
    et_outcome outcome;
    char reason[240];
    bool shown;                                /* the candidate shows its routing */
    size_t decisions, open, differing, illegal; /* differing: legal and illegal ones */
    size_t token, expert;                      /* the first illegal one */
    uint8_t *mask; /* [N,n] the routing that it shows; NULL: none, or one that contradicts itself */
} et_routing_verdict;

/* A hypothesis under which the candidate passes. */
typedef struct et_explanation {
    const char *name, *sentence; /* of the catalogue */
    char scope[160];             /* "everywhere", "expert 3", "tokens 17, 40" */
    char explains[24]; /* of what fails: "everything"; or but a part of it, beside which something else is wrong:
                        * "routing and state", "the arithmetic", "the forward pass" */
} et_explanation;

enum { ET_MAX_EXPLANATIONS = 8 };

/* A profile, and from what it was chosen. */
typedef struct et_profile_choice {
    const et_profile *profile; /* a built-in one */
    char reason[120];          /* "fwd.y is stored as BF16" */
} et_profile_choice;

/* The profile by which a candidate should be judged, from its own numbers: the tightest of f64, f32, f16, bf16 and
 * bf16-low that asks no tensor for more bits than its numbers have, at the place where the profile rounds it (sums:
 * 24 bits always do). A tensor has the bits of its type; or of BF16, F16, F32, if it holds numbers of that type alone
 * where at least 8 of the golden's are none: it was widened before it was saved.
 *
 *     all in F64                          f64         y, dW in F32, whatever the inputs are         f32
 *     y in BF16, gates and dW in F32      bf16        y in F16, gates in F32                        f16
 *     gates or logits in BF16, F16        bf16-low    F32 that holds numbers of BF16 alone          bf16
 *
 * Without a real tensor: by the type of the golden's inputs, which otherwise say nothing: kernels of f32 are tried on
 * inputs of bf16. A kernel that rounds to bf16 inside and writes F32 is judged by f32; et_verify then says that it
 * passes under bf16. `golden` has been run. Tensors that et_verify would refuse are passed over. */
et_profile_choice et_profile_for(const et_step *golden, const et_tensor_out *candidate,
                                 size_t count);

typedef struct et_verdict {
    et_outcome outcome;
    char line[600];  /* the verdict in one line, for the end of a log */
    et_profile profile;
    char chosen_from[120]; /* of a profile that et_profile_for chose: from what; "": the caller's */
    char note[200]; /* on a pass: every tensor of many elements stays below a tenth of the profile's deviations, so a
                     * tighter profile should judge; "": not so */
    et_routing_verdict routing; /* decisions = 0 for a dense layer */
    size_t missing_count;      /* of what was required; in the order of the tensor table */
    const char *missing[ET_MAX_STEP_TENSORS];
    size_t tensor_count;
    et_tensor_verdict *tensors; /* in the order of the tensor table */
    const char *passes_under; /* on a mismatch: the tightest built-in profile under which it passes, or NULL */
    size_t explanation_count;
    et_explanation explanations[ET_MAX_EXPLANATIONS]; /* factors and roundings by how tightly they fit */
    char residual[800]; /* where nothing explains a mismatch: what is wrong, and where */
    char search[120];   /* of a search that its limit cut: what was left out */
} et_verdict;

/* Judges `candidate`, `count` tensors as a writer would describe them: values in memory, row-major,
 * `source` saying of what type; `dtype` is the type in which the kernel made them. `golden` has its
 * inputs and has been run. ET_OK whenever there is a verdict, whatever it says. ET_EINVAL: a tensor
 * that no bundle has, or given twice, a wrong shape or type, a mask with other numbers than 0 and 1, an
 * in.* that is not the golden's, a profile without bits, a required name that cannot be, a float
 * build of the library (it cannot judge: its own error is a kernel's); ET_ENOMEM. On failure there is nothing
 * to free. */
et_status et_verify(et_verdict *verdict, const et_step *golden, const et_tensor_out *candidate,
                    size_t count, const et_verify_options *options, et_error *error);
void et_verdict_free(et_verdict *verdict); /* accepts zeros */

/* Can a candidate of this case be conclusive under `profile`, if fwd.y and bwd.* are required of it? */
typedef struct et_conclusiveness {
    bool conclusive;
    char reason[320]; /* "bwd.logits: below its noise: ..." where it is not */
} et_conclusiveness;

/* Judges the best that any kernel can do: y and the gradients of a lean bundle, computed exactly and rounded once. Not
 * conclusive: one of them cancels to less than 10 deviations of its own noise, or leaves the profile's range. Such a
 * case says what it says by other tensors. `golden` has been run; max_bytes as in et_verify_options. ET_EINVAL,
 * ET_ENOMEM as et_verify. */
et_status et_find_conclusive(et_conclusiveness *out, const et_step *golden,
                             const et_profile *profile, size_t max_bytes, et_error *error);

/* "pass", "mismatch", "inconclusive" */
const char *et_outcome_name(et_outcome outcome);

/* ---- the catalogue of hypotheses ---- */

typedef struct et_hypothesis_doc {
    const char *name;     /* "factor-two" */
    const char *sentence; /* "the factor 2 of relu(H)^2's derivative is missing" */
    const char *stage;    /* "selection", "state", "forward", "backward", "layout", "precision",
                           * "model", "ranks" */
} et_hypothesis_doc;
const et_hypothesis_doc *et_hypothesis_at(size_t index); /* NULL past the end */

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
#endif
