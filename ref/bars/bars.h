/* bars.h: error bars from replicas. Internal.
 *
 * A replica is the reference run once more with a kernel's roundings in it (etref/rounding.h). What
 * moves from one replica to the next is what may move between honest kernels.
 *
 *     FIRST replicas    V, the variance of each element's error
 *     SECOND replicas   others, so that nothing is fitted to itself: each group's slope and spread, measured
 *                       in these V: their means and deviations
 *     one more run      everything rounded to nearest: what is no matter of chance
 *
 * In every second replica half of the roundings are left out, as kernels leave some out: two of them may cancel, and
 * slopes are others. The mean spread is that of the replicas with all roundings, or the largest of the others, whichever is
 * more. An honest kernel
 * keeps, with T_e and T_g, `element` and `group` in limits.c:
 *
 *     |e| <= T_e sqrt(V)
 *     S beyond 0 and the mean <= T_g sd(S) + 2 systematic(S)
 *     Q - mean                <= T_g sd(Q) + 2 systematic(Q)
 *
 * each plus what a single error of the size E may add, where E is the farthest that they had.
 */
#ifndef ET_BARS_H
#define ET_BARS_H

#include "etref/bars.h"
#include "etref/rounding.h"
#include "etref/step.h"
#include "ref/bars/group_bars.h"
#include "ref/step/tensors.h"

enum { ET_FIRST_REPLICAS = 16, ET_SECOND_REPLICAS = 32 };

/* T_e and T_g, under a profile. */
typedef struct et_limits {
    double element, group;
    double group_of_sums; /* of_sums: of tensors that are no more coarse than sums */
    double whole;         /* of these T_g, the part that whole tensors have */
} et_limits;
et_limits et_limits_of(const et_profile *p);
bool et_is_of_sums(const et_profile *p, et_tensor_id id);

/* How far S is from what lies between no slope and the replicas' mean: a kernel may round at fewer places than they. */
double et_beyond(double S, double mean);

/* Of one tensor: its groups in the order of grid.first, then its summands', section by section. */
typedef struct et_tensor_bars {
    et_cut grid;
    et_summand summands[ET_MAX_SUMMANDS];
    size_t summand_count, groups;
    bool of_sums;
    bool all_vary;      /* each element has a V that its groups can use */
    double farthest;    /* E: the largest |e| / sqrt(V) of the runs in which groups are measured */
    et_group_bar *bars; /* [groups] */
} et_tensor_bars;

typedef struct et_bars {
    const et_step *reference; /* of which they are; must live longer */
    et_limits limits;
    double runs;      /* that V is made from */
    et_step variance; /* V, for every real tensor of the reference, in its place */
    et_tensor_bars tensor[ET_MAX_STEP_TENSORS]; /* by id; zeros where none */
    /* Those of the stages that can be judged by themselves (stages_alone.h): of the errors that a tensor has when it is
     * computed from the kernel's own numbers. A replica is looked at as a kernel is, which shows everything.
     * NULL in themselves, and where there are none. */
    struct et_bars *alone;
    bool of_stages; /* these are they */
} et_bars;

/* T_g of a tensor's groups. */
double et_group_limit(const et_bars *b, const et_tensor_bars *t);

/* Called after each run with the part of the work done, 0 to 1; false: stop, with ET_ENOMEM. */
typedef bool et_bars_progress(void *user, double done);

/* A step's progress, which may be NULL, told of the making of bars: et_bars_tell with an et_bars_teller. */
typedef struct et_bars_teller {
    et_progress *progress;
    void *user;
} et_bars_teller;
bool et_bars_tell(void *user, double done);

/* Bars with nothing in them yet, and room for those of stages. On failure there is nothing to free. ET_ENOMEM. */
et_status et_bars_open(et_bars *b, const et_step *reference, const et_profile *p, et_error *error);

/* reference: has been run. max_bytes: of one replica; 0: no limit. progress may be NULL. ET_ENOMEM. */
et_status et_bars_make(et_bars *b, const et_step *reference, const et_profile *p, size_t max_bytes,
                       et_bars_progress *progress, void *user, et_error *error);
void et_bars_free(et_bars *b); /* accepts zeros */

/* *mixed owns nothing: b's, but for these tensors those of their stages alone. */
void et_bars_mix(et_bars *mixed, const et_bars *b, const bool alone[ET_TENSORS]);

/* For b->reference and b->variance, which has its arrays: grids, summands and room for the groups' bars. ET_ENOMEM. */
et_status et_bars_lay_out(et_bars *b, et_error *error);

/* V becomes what a bundle holds, whose deviations are F32: a verdict is the same with bars that were stored and with new ones. */
void et_bars_round_as_stored(et_bars *b);

/* et_bundle_write_bars (etref/bars.h) of bars that have been made: of the golden `s` under `p`. */
et_status et_bars_write(const char *path, const et_bars *b, const et_step *s, const et_profile *p,
                        et_error *error);

/* Those that et_bundle_write_bars stored in the bundle `path`, whose golden `reference` is; else *found is false, and *b
 * holds none: other profile, other etref, none there. ET_EINVAL: what is there contradicts itself; ET_EIO, ET_ENOMEM. */
et_status et_bars_read(et_bars *b, bool *found, const et_step *reference, const et_profile *p,
                       const char *path, et_error *error);

/* sums [t->groups] out: of all groups of a tensor, from these errors. ET_ENOMEM. */
et_status et_sum_tensor(const et_tensor_bars *t, const et_errors *e, et_group_sums *sums,
                        et_error *error);

/* The reference once more, with its own assignment and these roundings. The caller frees it, also on
 * failure. ET_ENOMEM. */
et_status et_replica_run(et_step *replica, const et_step *reference, const et_rounding *rounding,
                         size_t max_bytes, et_error *error);

#endif
