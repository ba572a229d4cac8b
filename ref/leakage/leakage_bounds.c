/* leakage_bounds.c: log2 C(N,k) to the last bit, and the bounds that are made of it. See etref/leakage.h.
 *
 *     EC, unlimited precision    (n/N) log2 C(N, floor(N/E)) bits per token          (paper, Eq. 7)
 *     large N                    n H2(1/E) = G log2 E + (n-G) log2(n/(n-G))
 *     scores of b bits           b, and log2((2^b - 1) k + 1) with ties     (Theorem A.2; label_counts.c)
 *
 * Method: log n! by Stirling's series in twofold arithmetic. log N! - log k! - log (N-k)! cancels,
 * for N = 2^40 and k = 1 forty of its bits; there are a hundred. libm's lgamma has 53, and its last
 * ones differ between machines.
 *
 * Departure from the paper, which gives G log2(E-1) per token: the binary entropy is larger by
 * G log2(E/(E-1)) + (n-G) log2(n/(n-G)); all three are reported.
 */
#include "etref/leakage.h"
#include "ref/base/float_environment.h"
#include "ref/base/bits.h"
#include "ref/base/twofold.h"

#include <math.h> /* INFINITY; no function of libm is called */

static const et_twofold LN2 = {0x1.62e42fefa39efp-1, 0x1.abc9e3b39803fp-56};
static const et_twofold INVERSE_LN2 = {0x1.71547652b82fep+0, 0x1.777d0ffda0d24p-56};
static const et_twofold HALF_LN_2PI = {0x1.d67f1c864beb5p-1, -0x1.65b5a1b7ff5dfp-55};

static const uint64_t MOST = UINT64_C(1) << 40; /* tokens */
static const uint64_t MOST_EXPERTS = UINT64_C(1) << 20, MOST_LAYERS = UINT64_C(1) << 20;
static const size_t MOST_BITS = 64;

/* log x
 *
 * Method: x = 2^e m, m in [sqrt(1/2), sqrt(2)], s = (m-1)/(m+1), |s| < 0.1716, z = s^2 < 0.0295:
 *     log m = 2 s P(z),   P = 1 + z/3 + z^2/5 + ... + z^19/39;   the rest is below z^20/40 < u^2.
 *
 * Error, relative, in u^2:
 *     s              20   the quotient, and the last rounding of m+1; m-1 is exact
 *     P               6   4 from the last sum; of z/3 < 0.01 a hundredth of some 100
 *     2 s P          35   20 + 6 + 8, and the rest of the series
 *     e ln 2          9   the product and the constant
 *     their sum      57   |log x| > |log m|, |e ln 2| < 2 |log x|:  35 + 2 * 9 + 4 */
enum { LOG_TERMS = 20 };

static et_twofold twofold_log(et_twofold x)
{
    int e = (int)(to_bits(x.high) >> 52) - 1023;
    double unit = from_bits((uint64_t)(1023 - e) << 52); /* 2^-e */
    if (x.high * unit > 1.4142135623730951) {
        unit /= 2;
        e++;
    }
    double m = x.high * unit, rest = x.low * unit;
    et_twofold above = twofold_sum(m, 1);
    above = twofold_fast(above.high, above.low + rest);
    et_twofold s = twofold_divide(twofold_sum(m - 1, rest), above);
    et_twofold z = twofold_times(s, s), sum = {0, 0};
    for (int i = LOG_TERMS - 1; i >= 0; i--) {
        et_twofold coefficient = twofold_divide((et_twofold){1, 0}, (et_twofold){2 * i + 1, 0});
        sum = twofold_add(coefficient, twofold_times(z, sum));
    }
    return twofold_add(twofold_scale(LN2, e), twofold_scale(twofold_times(s, sum), 2));
}

/* log n!
 *
 * Below 32 the logarithm of the product. From 32 on, Stirling's series
 *     log n! = (n + 1/2) log n - n + (log 2 pi)/2 + 1/(12n) - 1/(360n^3) + 1/(1260n^5)
 *              - 1/(1680n^7) + 1/(1188n^9)
 * which errs by less than the first term left out, 691/(360360 n^11) < 2^-64.
 *
 * Error: of the product (n + 1/2) log n, 64 + 8 u^2; the sums have at most three terms of that size
 * or smaller: 84 u^2 n log n in all, below 2^-99 n log n. The series in 1/n is a double: below
 * 1/384, so it errs by less than 2^-60. */
static et_twofold log_factorial(size_t n)
{
    if (n < 32) {
        et_twofold product = {1, 0};
        for (size_t i = 2; i <= n; i++) product = twofold_scale(product, (double)i);
        return twofold_log(product);
    }
    double x = (double)n, w = 1 / (x * x);
    double series =
        (1.0 / 12 - w * (1.0 / 360 - w * (1.0 / 1260 - w * (1.0 / 1680 - w / 1188)))) / x;
    et_twofold sum = twofold_times(twofold_log((et_twofold){x, 0}), twofold_sum(x, 0.5));
    sum = twofold_subtract(sum, (et_twofold){x, 0});
    return twofold_add(sum, twofold_add(HALF_LN_2PI, (et_twofold){series, 0}));
}

/* log2 C(N,k)
 *
 * Error, absolute, in bits: log k! + log (N-k)! < log N!, so from the three products
 * 1.45 * 2 * 2^-99 N log N < 2^-53 for N = 2^40, and 1.45 * 3 * 2^-60 < 2^-57 from the series where
 * N >= 32. For 0 < k < N the result is at least log2 N, whose last place is worth 2^-47 at N = 2^40
 * and 2^-50 at N = 32: both parts together stay below 2^-6 of it, and the last rounding adds 0.5.
 * For k = 0 and k = N the difference is exactly 0. */
static et_twofold log2_choose(size_t N, size_t k)
{
    et_twofold log =
        twofold_subtract(log_factorial(N), twofold_add(log_factorial(k), log_factorial(N - k)));
    return twofold_times(log, INVERSE_LN2);
}

static et_twofold log2_of(et_twofold x)
{
    return twofold_times(twofold_log(x), INVERSE_LN2);
}

et_status et_log2_choose(size_t N, size_t k, double *bits, et_error *error)
{
    ET_ARITHMETIC;
    if (N > MOST || k > N)
        return et_fail(error, ET_EINVAL,
                       "log2 of a binomial: N = %zu, k = %zu; k at most N, N at most 2^40", N, k);
    *bits = log2_choose(N, k).high;
    return ET_OK;
}

/* (2^b - 1) k + 1 = 2^b k - (k-1): two doubles, their sum exact. */
static et_twofold log2_tied(size_t b, size_t k)
{
    double whole = (double)k * from_bits((uint64_t)(b + 1023) << 52);
    return log2_of(twofold_sum(whole, -((double)k - 1)));
}

et_status et_log2_tied_cutoff(size_t b, size_t k, double *bits, et_error *error)
{
    ET_ARITHMETIC;
    if (b > MOST_BITS || k > MOST)
        return et_fail(error, ET_EINVAL,
                       "cutoff with ties: b = %zu bits, k = %zu; at most 64 bits, k = 2^40", b, k);
    *bits = log2_tied(b, k).high;
    return ET_OK;
}

/* Rounding the labels to double moves the result by at most 2^-52, its last place is then 2^-47. */
double et_leakage_bits(uint64_t labels)
{
    ET_ARITHMETIC;
    if (labels == 0) return -INFINITY;
    return log2_of((et_twofold){(double)labels, 0}).high;
}

static et_status check_setup(const et_leakage_setup *s, et_error *error)
{
    const char *fault = NULL;
    if (s->tokens < 1 || s->tokens > MOST)
        fault = "1 to 2^40 tokens";
    else if (s->experts < 1 || s->experts > MOST_EXPERTS)
        fault = "1 to 2^20 experts";
    else if (s->granularity < 1 || s->granularity > s->experts)
        fault = "a granularity of 1 to the number of experts";
    else if (s->layers < 1 || s->layers > MOST_LAYERS)
        fault = "1 to 2^20 layers";
    else if (s->score_bits > MOST_BITS)
        fault = "scores of at most 64 bits";
    if (fault == NULL) return ET_OK;
    return et_fail(error, ET_EINVAL,
                   "leakage bound: %zu tokens, %zu experts, granularity %zu, %zu layers, %zu bits; "
                   "wanted: %s",
                   s->tokens, s->experts, s->granularity, s->layers, s->score_bits, fault);
}

/* log2(a/b). For numbers up to 2^20 the difference of the logarithms is good to 2^-96, and not
 * below 2^-20 unless it is 0. */
static et_twofold log2_ratio(size_t a, size_t b)
{
    et_twofold difference = twofold_subtract(twofold_log((et_twofold){(double)a, 0}),
                                             twofold_log((et_twofold){(double)b, 0}));
    return twofold_times(difference, INVERSE_LN2);
}

/* bits for one expert and one batch -> bits per token, of all experts and layers: L n bits / N */
static double per_token(const et_leakage_setup *s, et_twofold bits)
{
    bits = twofold_scale(bits, (double)s->layers * (double)s->experts);
    return twofold_divide(bits, (et_twofold){(double)s->tokens, 0}).high;
}

et_status et_leakage_bound(const et_leakage_setup *s, et_leakage_bounds *out, et_error *error)
{
    ET_ARITHMETIC;
    et_status status = check_setup(s, error);
    if (status != ET_OK) return status;
    size_t n = s->experts, G = s->granularity, refused = n - G, b = s->score_bits;
    double L = (double)s->layers;
    size_t k = (size_t)((uint64_t)s->tokens * G / n);
    et_twofold set = log2_choose(s->tokens, k), tied = log2_tied(b, k);
    et_twofold taken_share = twofold_scale(log2_ratio(n, G), (double)G * L), refused_share = {0, 0};
    if (refused > 0) refused_share = twofold_scale(log2_ratio(n, refused), (double)refused * L);
    *out = (et_leakage_bounds){
        .select = k,
        .set = set.high,
        .set_per_token = per_token(s, set),
        .entropy = twofold_add(taken_share, refused_share).high,
        .log_expansion = taken_share.high,
        .log_refused =
            refused > 0 ? twofold_scale(log2_ratio(refused, G), (double)G * L).high : -INFINITY,
        .cutoff = (double)b,
        .tied_cutoff = tied.high,
        .cutoff_per_token = per_token(s, (et_twofold){(double)b, 0}),
        .tied_cutoff_per_token = per_token(s, tied),
    };
    return ET_OK;
}
