/* balance.c: what keeps token choice's loads even, and the z-loss. See etref/routing.h.
 *
 *     F_i = n load_i / (K N)          1 for each expert under perfect balance
 *     P_i = (1/N) sum_t p_ti
 *     aux = sum_i F_i P_i             aux_error = sum_i (F_i - 1) P_i
 *     loss-free     b_i += rate sign(mean load - load_i)
 *     proportional  b_i += rate (1 - F_i)
 *     z = (1/N) sum_t (log sum_i e^r_ti)^2
 *
 * EC and ET need no balancing: their loads are fixed, or steered by the threshold.
 * Source: paper, sections on baselines; aux in the form of the released code.
 */
#include "etref/elementary.h"
#include "ref/base/exponential.h"
#include "etref/routing.h"
#include "ref/base/float_environment.h"
#include "ref/base/sum.h"

static double fraction(const et_grid *q, size_t N, size_t n, size_t K, et_real load)
{
    return et_over(q, (double)((et_real)n * load), (double)((et_real)K * (et_real)N));
}

void et_balance_fractions(size_t N, size_t n, size_t K, const et_real *load, et_real *F)
{
    ET_ARITHMETIC;
    for (size_t i = 0; i < n; i++) F[i] = (et_real)fraction(NULL, N, n, K, load[i]);
}

/* A loss's coefficient, which some kernels have in as many bits as they compute with, and others in more: one factor of
 * all of its gradient. */
static double coefficient(const et_rounding *r, const et_grid *q, double scale)
{
    return et_goes_other_way(r, "coefficient", "loss") ? et_rounded(q, scale) : scale;
}

/* sum / N; some kernels take sum (1/N), which may miss what is exact. */
static double mean_of(const et_rounding *r, const et_grid *q, double sum, size_t N)
{
    bool inverts = et_goes_other_way(r, "sum (1/N)", "mean");
    return inverts ? et_times(q, sum, et_over(q, 1, (double)N)) : et_over(q, sum, (double)N);
}

/* A kernel's F: the same of an expert's share of the tokens, F N = n load / K. */
static double rounded_fraction(const et_rounding *r, const et_grid *q, et_real F, size_t N)
{
    if (!et_goes_other_way(r, "sum (1/N)", "mean")) return et_rounded(q, (double)F);
    return mean_of(r, q, (double)F * (double)N, N);
}

/* scale v / N: what a loss that is a mean gives each token. autograd divides by N before anything else. */
static double each_token(const et_grid *q, bool divided_first, double scale, double v, size_t N)
{
    return divided_first ? et_times(q, et_over(q, scale, (double)N), v)
                         : et_over(q, et_times(q, scale, v), (double)N);
}

/* L = sum_i F'_i (1/N) sum_t p_ti. F is a count, constant almost everywhere, so dL/dp_ti = F'_i / N
 * for every token, chosen or not. */
et_real et_aux_loss(const et_rounding *rounding, et_balance balance, size_t N, size_t n,
                    const et_real *F, const et_real *p, double scale, et_real *dp)
{
    ET_ARITHMETIC;
    et_grid room;
    const et_grid *q = et_grid_in(&room, rounding, et_sum_place(rounding), "aux");
    double loss = 0;
    bool divided_first = et_goes_other_way(rounding, "divided by N", "aux");
    scale = coefficient(rounding, q, scale);
    for (size_t i = 0; i < n; i++) {
        double f = rounded_fraction(rounding, q, F[i], N);
        double weight = balance == ET_BALANCE_AUX_ERROR ? et_plus(q, f, -1) : f;
        double sum = (double)et_sum(rounding, et_sum_place(rounding), "aux", 0, N, n, p + i, NULL);
        loss = et_plus(q, loss, et_times(q, weight, mean_of(rounding, q, sum, N)));
        et_real each = (et_real)each_token(q, divided_first, (et_real)scale, weight, N);
        for (size_t t = 0; dp != NULL && t < N; t++) dp[t * n + i] += each;
    }
    return (et_real)loss;
}

static double e_to(const et_grid *q, double r, double largest)
{
    return et_rounded(q, exponential(et_plus(q, r, -largest)));
}

/* lse = log sum_i e^r_i = m + log sum_i e^(r_i - m), m the largest: nothing overflows.
 * d(lse^2)/dr_i = 2 lse e^(r_i - lse) = 2 lse softmax_i. */
et_real et_z_loss(const et_rounding *rounding, size_t N, size_t n, const et_real *r, double scale,
                  et_real *dr)
{
    ET_ARITHMETIC;
    et_grid room;
    const et_grid *q = et_grid_in(&room, rounding, et_sum_place(rounding), "z");
    const et_order order = et_order_of(rounding, "z", N);
    /* autograd's softmax is e^(r - lse), whose lse has lost what is small beside the largest logit */
    bool divided_first = et_goes_other_way(rounding, "divided by N", "z");
    bool by_lse = et_goes_other_way(rounding, "e^(r - lse)", "z");
    double loss = 0;
    scale = coefficient(rounding, q, scale);
    for (size_t k = 0; k < N; k++) {
        size_t t = et_order_at(&order, k);
        const et_real *row = r + t * n;
        double largest = (double)row[0], sum = 0;
        for (size_t i = 1; i < n; i++)
            if ((double)row[i] > largest) largest = (double)row[i];
        for (size_t i = 0; i < n; i++) sum = et_plus(q, sum, e_to(q, (double)row[i], largest));
        double lse = et_plus(q, largest, et_rounded(q, et_log(sum)));
        loss = (double)(et_real)et_added(q, loss, (double)(et_real)et_times(q, lse, lse));
        double each = each_token(q, divided_first, scale * 2, lse, N);
        for (size_t i = 0; dr != NULL && i < n; i++) {
            double share = by_lse ? e_to(q, (double)row[i], lse)
                                  : et_over(q, e_to(q, (double)row[i], largest), sum);
            dr[t * n + i] += (et_real)et_times(q, each, share);
        }
    }
    return (et_real)mean_of(rounding, q, loss, N);
}

static et_real sign(et_real v)
{
    return (et_real)((v > 0) - (v < 0));
}

void et_bias_update(const et_rounding *rounding, et_balance balance, size_t N, size_t n, size_t K,
                    const et_real *load, double rate, et_real *bias)
{
    ET_ARITHMETIC;
    et_grid room;
    const et_grid *q = et_grid_in(&room, rounding, et_sum_place(rounding), "bias");
    double u = et_rounded(q, (double)(et_real)rate);
    et_real total = 0;
    for (size_t i = 0; i < n; i++) total += load[i];
    for (size_t i = 0; i < n; i++) {
        if (balance == ET_BALANCE_LOSSFREE) /* mean - load_i > 0 as total > n load_i: no division */
            bias[i] += (et_real)u * sign(total - (et_real)n * load[i]);
        if (balance == ET_BALANCE_PROPORTIONAL)
            bias[i] += (et_real)et_times(q, u, et_plus(q, 1, -fraction(q, N, n, K, load[i])));
    }
}
