/* elementary.c: exp and log by argument reduction and Taylor's series. See etref/elementary.h.
 *
 * exp itself stands in exponential.h, for loops to include. Both functions bring their argument into a short interval around the point where the series is
 * good, and keep what the reduction and the first rounding lose in a second, small number. The
 * coefficients are those of the textbook (1/n!, 2/(2n+1)), so that nothing has to be believed.
 *
 * Error budgets stand beside the operations, in units of u = 2^-53. An operation whose exact result
 * v lies below a power of two, |v| < 2^e, errs by at most 2^(e-1) u; relative to v, by at most u.
 * The last place of a result in [1, 2) is worth 2u, in [1/2, 1) it is worth u.
 *
 * What this needs of the machine: IEEE 754 binary64 evaluated in its own precision, rounding to
 * nearest even, subnormals on; of the compiler: no contraction of a*b+c (-ffp-contract=off) and no
 * reassociation. Scaling by powers of two and cutting a significand work on the bit pattern.
 *
 * Source: own derivation; the exactness lemmas are Sterbenz's (a - b is exact if a/2 <= b <= 2a)
 * and Dekker's (Fast2Sum: for |a| >= |b|, s = a + b and b - (s - a) add up to a + b exactly).
 *
 * Left out: directed rounding modes, floating-point exceptions, correct rounding.
 */
#include "etref/elementary.h"
#include "ref/base/bits.h"
#include "ref/base/exponential.h"

#include <float.h>
#include <math.h> /* INFINITY and NAN; no function of libm is called */
#include <stdint.h>
#include <string.h>

_Static_assert(FLT_EVAL_METHOD == 0, "doubles must be evaluated as doubles, not in x87 registers");

/* c[0] + r c[1] + ... + r^n c[n], by Horner's rule. */
static double polynomial(const double *c, int n, double r)
{
    double sum = c[n];
    for (int i = n - 1; i >= 0; i--) sum = c[i] + r * sum;
    return sum;
}

double et_exp(double x)
{
    return exponential(x);
}

/* log
 *
 * Method: x = 2^k m with m in [sqrt(1/2), sqrt(2)], f = m - 1, s = f / (2 + f), |s| < 0.1716:
 *     log m = log((1 + s) / (1 - s)) = 2 s + s^3 Q(s^2),   Q(z) = 2/3 + 2/5 z + ... + 2/23 z^10.
 * The rest of the series is below z^12/25 < 10^-19 of 2s. Near x = 1 the result is nearly 2s, so s
 * must be known to more than 53 bits: s = s_high + s_low, where s_high is the quotient cut to 26
 * bits and s_low corrects it by its remainder f - s_high (2 + f), taken without a rounding that
 * matters: with f = f_high + f_low cut likewise, each product is of 26 by at most 27 bits: exact.
 *
 * Error, relative to log m:
 *     f                    exact (Sterbenz)
 *     s                    2u: the sum 2 + f and the division
 *     f - 2 s_high         exact (Sterbenz)
 *     remainder            two roundings of numbers below 2^-23 |f|: 2^-75
 *     s_low                2^-77
 *     s z Q                3 * 2u from s, u each from z, s z, Q, and their product: 10u; it is a
 *                          hundredth of log m: 0.1u
 *     tail = s z Q + 2 s_low   0.01u
 *     k LN2_LOW            below 2^-31, errs by less than 2^-84; |log x| > 0.34 if k != 0
 *     high + rest          error of high returned (Fast2Sum), rest below 0.004, hence 0.01u
 *     the last addition    half a last place
 * and u |log m| is at most one last place: below 0.5 + 0.13 = 0.63 ulp. */
static const double LOG_SERIES[] = {2.0 / 3,  2.0 / 5,  2.0 / 7,  2.0 / 9,  2.0 / 11, 2.0 / 13,
                                    2.0 / 15, 2.0 / 17, 2.0 / 19, 2.0 / 21, 2.0 / 23};

/* The upper 26 bits of the significand, towards zero. */
static double cut(double x)
{
    return from_bits(to_bits(x) & ~((UINT64_C(1) << 27) - 1));
}

double et_log(double x)
{
    if (x != x) return x + x;
    if (x < 0) return NAN;
    if (x == 0) return -INFINITY;
    if (x > DBL_MAX) return INFINITY;

    int k = 0;
    if (x < DBL_MIN) { /* make it normal: exact */
        x *= 0x1p54;
        k = -54;
    }
    uint64_t bits = to_bits(x);
    k += (int)(bits >> 52) - 1023;
    double m = from_bits((bits & (UINT64_MAX >> 12)) | UINT64_C(1023) << 52); /* in [1, 2) */
    if (m > 1.4142135623730951) {
        m /= 2;
        k++;
    }

    double f = m - 1;
    double s = f / (2 + f);
    double s_high = cut(s);
    double f_high = cut(f);
    double f_low = f - f_high;
    double remainder = ((f - 2 * s_high) - s_high * f_high) - s_high * f_low;
    double s_low = remainder / (2 + f);
    double z = s * s;
    double tail = s * z * polynomial(LOG_SERIES, 10, z) + 2 * s_low;

    /* Fast2Sum: |k LN2_HIGH| > 0.69 > |2 s_high|, or k = 0 and there is nothing to lose. */
    double whole = k * LN2_HIGH;
    double high = whole + 2 * s_high;
    double lost = 2 * s_high - (high - whole);
    return high + (lost + (k * LN2_LOW + tail));
}
