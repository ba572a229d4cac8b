/* limits.c: how many deviations are allowed. See bars.h.
 *
 * The two numbers are the largest deviation that an honest kernel showed in the whole
 * campaign, times 1.5 (data/campaign/limits.csv). They are no normal quantiles: V is itself
 * measured, in few replicas, and errors of sums have longer tails than a normal deviate.
 */
#include "ref/bars/bars.h"

#include <math.h>

const et_limits et_usual_limits = {.element = 30, .group = 20};

/* t with P(Z > t) = p of a normal deviate Z. Newton on log Q(t) = log p, which is concave: from the right
 * start it converges from one side.
 *     d/dt log Q = -phi(t) / Q(t),   phi(t) = e^(-t^2/2) / sqrt(2 pi) */
static double normal_quantile(double p)
{
    const double root_half = 0.70710678118654752, inverse_root_two_pi = 0.39894228040143268;
    double t = p < 0.5 ? sqrt(-2 * log(2 * p)) : 0;
    for (int step = 0; step < 60; step++) {
        double Q = 0.5 * erfc(t * root_half), phi = inverse_root_two_pi * exp(-0.5 * t * t);
        double change = (log(Q) - log(p)) * Q / phi;
        t += change;
        if (!(fabs(change) > 1e-15 * fabs(t))) break;
    }
    return t;
}

et_limits et_limits_at(double alpha)
{
    et_limits all = et_usual_limits;
    double further = normal_quantile(0.5 * alpha) / normal_quantile(0.5e-9);
    return (et_limits){all.element * further, all.group * further};
}
