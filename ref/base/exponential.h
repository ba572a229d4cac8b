/* exponential.h: e^x, written so that a compiler can compute several at once. Internal.
 *
 * et_exp (etref/elementary.h) is this function. Loops over many arguments include it: without a branch, a
 * call or a table it can be made into vectors, and each lane has the bits of et_exp.
 *
 * Method: x = k ln 2 + r with k an integer and |r| < 0.3466, then e^x = 2^k e^r and
 *     e^r = 1 + r + r^2 P(r),   P(r) = 1/2! + r/3! + ... + r^12/14!.
 * The rest of the series is below r^15/15! < 10^-19 = 0.001 u. `r` carries its rounding error d
 * along: e^(r+d) = e^r + d (1 + r), short of d r^2/2 < 0.02 u.
 *
 * Error, in u = 2^-53, for r >= 0 (result in [1, 1.42), last place 2u) and for r < 0 (in [0.7, 1), u):
 *                                             r >= 0   r < 0
 *     P = 1/2 + r (1/6 + ...)      its error   0.70     0.45   halved where P < 1/2
 *         times r^2 < 0.1202                   0.085    0.055
 *     r * r, relative u, times t               0.068    0.054  t < 0.0677 and t < 0.0538
 *     t = (r * r) * P              rounding    0.063    0.032
 *     d r^2/2, and the series' rest            0.017    0.017
 *     small = t + (d + d r)        rounding    0.063    0.032
 *     (e + small)                  rounding    0.063    0.032
 *     altogether before the last rounding      0.36     0.23
 *     in last places                           0.18     0.23
 *     the last addition                        0.50     0.50
 * hence below 0.73 ulp. A subnormal result is rounded a second time when it is scaled: at most half
 * its last place, besides at most half of the error above; below 0.87 ulp.
 *
 * Source and conventions: see elementary.c. */
#ifndef ET_EXPONENTIAL_H
#define ET_EXPONENTIAL_H

#include "etref/real.h"
#include "ref/base/bits.h"
#include "ref/base/grid.h"

#include <math.h> /* INFINITY; fabs, copysign for what is made of it */

/* ln 2 in two parts: the first ends at bit 2^-41, so that k * LN2_HIGH is exact for |k| < 2^12; the
 * second is the rest, correct to 2^-102. */
#define LN2_HIGH 0x1.62e42fefa3p-1
#define LN2_LOW  0x1.3de6af278ece6p-42

/* Added to an integer of less than 2^51, it leaves that integer in the low bits of the sum. */
#define IN_LOW_BITS 0x1.8p52

/* 2^k for an integer -1022 <= k <= 1023: the exponent field alone. */
static inline double whole_power_of_two(double k)
{
    return from_bits(to_bits(k + (IN_LOW_BITS + 1023)) << 52);
}

/* 1/2! + r/3! + ... + r^12/14!, by Horner's rule. */
static inline double exponential_series(double r)
{
    double sum = 1.0 / 87178291200.0;
    sum = 1.0 / 6227020800.0 + r * sum;
    sum = 1.0 / 479001600 + r * sum;
    sum = 1.0 / 39916800 + r * sum;
    sum = 1.0 / 3628800 + r * sum;
    sum = 1.0 / 362880 + r * sum;
    sum = 1.0 / 40320 + r * sum;
    sum = 1.0 / 5040 + r * sum;
    sum = 1.0 / 720 + r * sum;
    sum = 1.0 / 120 + r * sum;
    sum = 1.0 / 24 + r * sum;
    sum = 1.0 / 6 + r * sum;
    return 1.0 / 2 + r * sum;
}

/* x = k ln 2 + r + d, |d| below r's rounding. */
typedef struct reduced {
    double k, r, d;
} reduced;

static inline reduced reduce(double x)
{
    double turns = x * 0x1.71547652b82fep+0; /* 1 / ln 2 */
    /* The nearest integer; |k| <= 1076 where the last lines of `assemble` let it through. */
    double k = (turns + IN_LOW_BITS) - IN_LOW_BITS;

    /* For k != 0, x is a multiple of 2^-54, k LN2_HIGH of 2^-41, and their difference is below 1/2:
     * it fits into 53 bits, so `high` is exact. |low| < 2^-31 and errs by less than 2^-84. */
    double high = x - k * LN2_HIGH;
    double low = k * LN2_LOW;
    double r = high - low;
    return (reduced){k, r, (high - r) - low}; /* r + d = high - low; |d| <= 2^-55 = u/4 */
}

/* e^x from x = k ln 2 + r + d and P = P(r). */
static inline double assemble(double x, reduced n, double P)
{
    double t = (n.r * n.r) * P;
    double small = t + (n.d + n.d * n.r);
    double y = 1 + n.r;
    double e = n.r - (y - 1); /* Fast2Sum: y + e = 1 + r exactly */
    y += e + small;           /* in [0.7, 1.42] */

    /* y 2^k in two steps, since 2^k itself may be out of range: the first is exact, and the second rounds
     * at most once, and that only into the subnormals or to infinity. */
    double half = (n.k * 0.5 + IN_LOW_BITS) - IN_LOW_BITS;
    y = y * whole_power_of_two(half) * whole_power_of_two(n.k - half);
    y = x > 710 ? INFINITY : y; /* e^710 > 2^1024 */
    return x < -746 ? 0 : y;    /* e^-746 < 2^-1076, nearer to 0 than to 2^-1074; NaN stays */
}

static inline double exponential(double x)
{
    reduced n = reduce(x);
    return assemble(x, n, exponential_series(n.r));
}

/* to_i = e^(v_i - shift); to may be v. With a grid difference and power are rounded, as a kernel's are. */
void et_exponentials(const et_grid *grid, size_t count, et_real shift, const et_real *v,
                     et_real *to);

/* The largest of count > 0 numbers: what a softmax takes out before the exponentials. */
et_real et_largest(size_t count, const et_real *v);

#endif
