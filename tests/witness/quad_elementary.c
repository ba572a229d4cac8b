/* quad_elementary.c: errors of et_exp and et_log against libquadmath. See quad_elementary.h.
 *
 * libquadmath's expq and logq carry 113 bits; their own error, a few units of 2^-113, is 2^-58 of a
 * double's last place. Shares no code with ref/.
 */
#include "tests/witness/quad_elementary.h"

#include <math.h>
#include <quadmath.h>

static double ulps(__float128 exact, double got)
{
    /* The first number that rounds to infinity: half a last place above the largest double. */
    const __float128 beyond = 0x1.fffffffffffff8p+1023Q;
    if (isnan(got)) return INFINITY;
    if (fabsq(exact) >= beyond || isinf(got))
        return isinf(got) && fabsq(exact) >= beyond && (got > 0) == (exact > 0) ? 0 : INFINITY;
    if (exact == 0) return got == 0 ? 0 : INFINITY;
    int exponent;
    frexpq(exact, &exponent); /* 2^(exponent-1) <= |exact| < 2^exponent */
    int last = exponent - 53;
    if (last < -1074) last = -1074;
    return (double)(fabsq((__float128)got - exact) / ldexpq(1, last));
}

double quad_exp_ulps(double x, double got)
{
    return ulps(expq((__float128)x), got);
}

double quad_log_ulps(double x, double got)
{
    return ulps(logq((__float128)x), got);
}

double quad_normal_error(double x, double got)
{
    __float128 exact = erfcq(-(__float128)x / sqrtq(2)) / 2;
    return (double)(fabsq((__float128)got - exact) / exact);
}
