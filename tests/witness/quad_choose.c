/* quad_choose.c: errors of base-2 logarithms against libquadmath. See quad_choose.h.
 *
 * Shares no code with ref/, and no method: lgammaq where ref/ has a series of its own.
 */
#include "tests/witness/quad_choose.h"

#include <math.h>
#include <quadmath.h>

static double ulps(__float128 exact, double got)
{
    int exponent;
    if (!isfinite(got)) return INFINITY;
    frexpq(exact, &exponent); /* 2^(exponent-1) <= exact < 2^exponent */
    return (double)(fabsq((__float128)got - exact) / ldexpq(1, exponent - 53));
}

double quad_log2_choose_ulps(uint64_t N, uint64_t k, double got)
{
    __float128 log =
        lgammaq((__float128)N + 1) - lgammaq((__float128)k + 1) - lgammaq((__float128)(N - k) + 1);
    return ulps(log / M_LN2q, got);
}

double quad_log2_ulps(uint64_t high, uint64_t low, int exponent, double got)
{
    __float128 leading = (__float128)high * 0x1p64Q + (__float128)low;
    return ulps((__float128)exponent + log2q(leading), got);
}
