/* limits.c: how many deviations are allowed. See bars.h.
 *
 * They are no normal quantiles: V is itself measured, in few replicas, and errors of sums have longer tails than a
 * normal deviate. What honest kernels need is measured by the campaign's part `replicas`.
 */
#include "ref/bars/bars.h"

const et_limits et_usual_limits = {.element = 30, .group = 20};
