/* limits.c: how many deviations are allowed. See bars.h.
 *
 * They are no normal quantiles: V is itself measured, in few replicas, and errors of sums have longer tails than a
 * normal deviate. Where nothing is rounded more coarsely than sums are (f32, f64), their last bits are all there is, and
 * rare: a hidden unit's moves a whole row. What honest kernels need is measured by the campaign
 * (data/campaign/limits.csv); these are at least 1.5 times that (bf16, column: 13.8).
 */
#include "ref/bars/bars.h"

et_limits et_limits_of(const et_profile *p)
{
    bool sums_alone = p->bits[ET_ACCUMULATOR] <= p->bits[ET_INTERMEDIATES] &&
                      p->bits[ET_ACCUMULATOR] <= p->bits[ET_OPERANDS];
    return sums_alone ? (et_limits){.element = 30, .group = 40}
                      : (et_limits){.element = 30, .group = 22};
}
