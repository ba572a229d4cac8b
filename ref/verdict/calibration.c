/* calibration.c: the limits of the verdict's tests, in deviations.
 *
 * One element. If its error were the sum of many small independent ones it would be normal, and
 * |e| > t sigma had probability 2 Q(t), Q(t) = erfc(t/sqrt 2)/2. Dividing alpha over all tests of a
 * verdict (Bonferroni) gives t = Q^-1(alpha / (2 tests)): 8.0 at a million tests and alpha = 1e-9.
 * Where nothing rounds more coarsely than the accumulator the predicted sigma is that of an average
 * order of summation, and the actual one scatters around it: a mixture of normal deviates, whose
 * tail is exponential. Measured: P(|e| > t sigma) = e^(-1.28 t).
 *
 * A group. Its slope and spread are sums over n elements; in the mixture's case the sum of n is
 * normal but for its far tail, so the excess of the exponential limit over the normal one is taken
 * divided by sqrt(n). (The sum of n deviates with e^(-1.41 |x|) needs, by Chernoff's bound at 1e-15,
 * 13.1 deviations at n = 8 and 8.9 at n = 100; this gives 14.7 and 9.9.) The squares, of which the spread
 * is made, have the variance E[e^4] - E[e^2]^2: 2 sigma^4 for a normal deviate, and 5 sigma^4 for one with
 * an exponential tail, as short sums are of which few lose anything; so the spread's limit is sqrt(5/2) = 1.58 times
 * as far from where it belongs.
 *
 * Sources. Errors inside a tensor share sources. A row of dW_up is sum_s dH_sj x_s: its 768 elements hang
 * on as many dH_sj as the expert has tokens, and with one token the row errs as a whole. So a group
 * counts with its sources instead of its elements, where those are fewer: the tokens behind it, times
 * the hidden width h where their A_j, dH_j enter one by one, divided by 24, since the variance of
 * relu^2's errors is spread unevenly over them: E[R^8]/E[R^4]^2 = 23 for a normal H. Few sources make
 * the test of a small group weak, and no test of it stronger than it may be. Tokens that are copies of
 * one another err alike and count once; gates, and what follows from their errors, are counted in groups.c.
 * Where tokens lie in one direction, so do their errors in dW, and a row of it errs as a whole: aligned.c.
 *
 * c and b. What is left: c, a factor on the deviation, for each tensor and kind of group; b, an allowance
 * on the slope, for each profile, since the squares of 8-bit significands are not uniform modulo the
 * ulp. Both are measured on honest kernels by the campaign, and never fitted to one case. What a
 * profile does to a whole tensor by design, truncation above all, is computed (ref/oracle/noise.h).
 */
#include "ref/verdict/calibration.h"

#include <fnmatch.h>
#include <math.h>
#include <string.h>

/* Newton on log Q(t) = log p, which is concave: from the right start it converges from one side.
 *     d/dt log Q = -phi(t) / Q(t),   phi(t) = e^(-t^2/2) / sqrt(2 pi) */
double et_normal_quantile(double p)
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

static double normal_limit(double alpha, double tests)
{
    double p = 0.5 * alpha / tests;
    return et_normal_quantile(p < 0.5 ? p : 0.5);
}

double et_element_limit(double alpha, double tests, bool coarse)
{
    double normal = normal_limit(alpha, tests);
    return coarse ? fmax(normal, log(tests / alpha) / 1.28) : normal;
}

et_group_limits et_group_limits_of(double alpha, double tests, bool coarse)
{
    return (et_group_limits){normal_limit(alpha, tests), et_element_limit(alpha, tests, coarse),
                             coarse ? 1.58 : 1};
}

double et_group_limit(et_group_limits t, double sources)
{
    return t.many + (t.one - t.many) / sqrt(sources);
}

/* The first row whose patterns both fit decides. Measured: data/campaign/limits.csv. Beside a gate near 1 all
 * elements of a row of dO round alike, and the rows of what follows from it err with them. */
static const struct {
    const char *tensor, *kind;
    et_calibration c;
} table[] = {
    {"bwd.slot_out", "*", {2, 1}}, {"bwd.*", "row", {2, 1}}, {"bwd.*", "column", {1.5, 1}},
    {"bwd.*", "expert", {1.5, 1}}, {"*", "row", {1.25, 1}},  {"*", "*", {1.1, 1}},
};

et_calibration et_calibration_of(const char *tensor, const char *kind)
{
    size_t last = sizeof table / sizeof *table - 1, i = 0;
    while (i < last &&
           !(fnmatch(table[i].tensor, tensor, 0) == 0 && fnmatch(table[i].kind, kind, 0) == 0))
        i++;
    return table[i].c;
}

/* dO = w dy of a kernel that rounds dy, too, stands at 1.29 (upstream_site in ref/layers/ffn_noise.c); what follows
 * from it at 1.13 or less, as measured. */
double et_systematic_spread(const char *tensor, bool rounds_dy)
{
    bool dO = strcmp(tensor, "bwd.slot_out") == 0 || strcmp(tensor, "bwd.shared_out") == 0;
    return dO && rounds_dy ? 1.4 : 1.2;
}

/* Of the coarsest unit roundoff, 0.07: bf16 2.7e-4, f16 3.4e-5. */
double et_systematic_slope(const et_profile *p)
{
    int coarsest = p->bits[ET_INTERMEDIATES];
    if (p->bits[ET_OUTPUTS] < coarsest) coarsest = p->bits[ET_OUTPUTS];
    if (p->bits[ET_OPERANDS] < coarsest) coarsest = p->bits[ET_OPERANDS];
    return ldexp(0.07, -coarsest) + ldexp(2, -p->bits[ET_ACCUMULATOR]);
}
