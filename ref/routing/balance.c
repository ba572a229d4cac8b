/* balance.c: what keeps token choice's loads even, and the z-loss. See etref/routing.h.
 *
 *     F_i = n load_i / (K N)          1 for each expert under perfect balance
 *     P_i = (1/N) sum_t p_ti
 *     aux = sum_i F_i P_i             aux_error = sum_i (F_i - 1) P_i
 *     loss-free     b_i += u sign(mean load - load_i)
 *     proportional  b_i += u (1 - F_i)
 *     z = (1/N) sum_t (log sum_i e^r_ti)^2
 *
 * EC and ET need none of this: their loads are fixed, or steered by the threshold.
 * Source: paper, sections on baselines; aux in the form of the released code.
 */
#include "etref/elementary.h"
#include "ref/base/exponential.h"
#include "etref/routing.h"
#include "ref/base/arithmetic.h"

static et_real fraction(size_t N, size_t n, size_t K, et_real load)
{
    return (et_real)n * load / ((et_real)K * (et_real)N);
}

void et_balance_fractions(size_t N, size_t n, size_t K, const et_real *load, et_real *F)
{
    ET_ARITHMETIC;
    for (size_t i = 0; i < n; i++) F[i] = fraction(N, n, K, load[i]);
}

/* L = sum_i F'_i (1/N) sum_t p_ti. F is a count, constant almost everywhere, so dL/dp_ti = F'_i / N
 * for every token, chosen or not. */
et_real et_aux_loss(et_balance balance, size_t N, size_t n, const et_real *F, const et_real *p,
                    double scale, et_real *dp)
{
    ET_ARITHMETIC;
    et_real loss = 0;
    for (size_t i = 0; i < n; i++) {
        et_real weight = balance == ET_BALANCE_AUX_ERROR ? F[i] - 1 : F[i];
        et_real sum = 0;
        for (size_t t = 0; t < N; t++) sum += p[t * n + i];
        loss += weight * (sum / (et_real)N);
        et_real each = (et_real)scale * weight / (et_real)N;
        for (size_t t = 0; dp != NULL && t < N; t++) dp[t * n + i] += each;
    }
    return loss;
}

/* lse = log sum_i e^r_i = m + log sum_i e^(r_i - m), m the largest: nothing overflows.
 * d(lse^2)/dr_i = 2 lse e^(r_i - lse) = 2 lse softmax_i. */
et_real et_z_loss(size_t N, size_t n, const et_real *r, double scale, et_real *dr)
{
    ET_ARITHMETIC;
    et_real loss = 0;
    for (size_t t = 0; t < N; t++) {
        const et_real *row = r + t * n;
        double largest = (double)row[0], sum = 0;
        for (size_t i = 1; i < n; i++)
            if ((double)row[i] > largest) largest = (double)row[i];
        for (size_t i = 0; i < n; i++) sum += exponential((double)row[i] - largest);
        double lse = largest + et_log(sum);
        loss += (et_real)(lse * lse);
        double each = scale * 2 * lse / (double)N;
        for (size_t i = 0; dr != NULL && i < n; i++)
            dr[t * n + i] += (et_real)(each * (exponential((double)row[i] - largest) / sum));
    }
    return loss / (et_real)N;
}

static et_real sign(et_real v)
{
    return (et_real)((v > 0) - (v < 0));
}

void et_bias_update(et_balance balance, size_t N, size_t n, size_t K, const et_real *load,
                    double rate, et_real *bias)
{
    ET_ARITHMETIC;
    et_real total = 0;
    for (size_t i = 0; i < n; i++) total += load[i];
    for (size_t i = 0; i < n; i++) {
        if (balance == ET_BALANCE_LOSSFREE) /* mean - load_i > 0 as total > n load_i: no division */
            bias[i] += (et_real)rate * sign(total - (et_real)n * load[i]);
        if (balance == ET_BALANCE_PROPORTIONAL)
            bias[i] += (et_real)rate * (1 - fraction(N, n, K, load[i]));
    }
}
