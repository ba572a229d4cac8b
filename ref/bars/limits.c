/* limits.c: how many deviations are allowed. See bars.h.
 *
 * They are no normal quantiles: V is itself measured, in few replicas, and errors of sums have longer tails than a
 * normal deviate. Where nothing is rounded more coarsely than sums are (f32, f64; in any profile gates and what they are
 * made into, if they are kept in the accumulator's bits), the last bits of a few formulas are all there is, of which
 * kernels have several. A stage by itself has but few roundings, which may all be of one number. In a whole tensor what is rare in a row averages out.
 * What honest kernels need is measured by the campaign (data/campaign/limits.csv).
 */
#include "ref/bars/bars.h"

et_limits et_limits_of(const et_profile *p)
{
    bool sums_alone = p->bits[ET_ACCUMULATOR] <= p->bits[ET_INTERMEDIATES] &&
                      p->bits[ET_ACCUMULATOR] <= p->bits[ET_OPERANDS];
    return (et_limits){
        .element = 30, .group = sums_alone ? 40 : 22, .group_of_sums = 40, .whole = 0.5};
}

/* Stages that multiply no matrices. */
static bool is_scalar_arithmetic(et_stage stage)
{
    return (stage >= ET_AT_CUTOFF && stage <= ET_AT_WEIGHTS) || stage == ET_AT_LOSSES ||
           stage == ET_AT_DWEIGHT || stage == ET_AT_DLOGITS;
}

bool et_is_of_sums(const et_profile *p, et_tensor_id id)
{
    return is_scalar_arithmetic(et_tensors[id].stage) &&
           et_place_bits(p, et_tensors[id].place) >= et_place_bits(p, ET_ACCUMULATOR);
}

double et_group_limit(const et_bars *b, const et_tensor_bars *t)
{
    return t->of_sums ? b->limits.group_of_sums : b->limits.group;
}
