/* quad_softmax.c: the softmax's Jacobian in binary128. See quad_softmax.h.
 *
 * Each term errs by some 2^-113 of itself, and count of them are added: for 4096 terms the sum is good to
 * 2^-101 of the sum of their sizes.
 */
#include "tests/witness/quad_softmax.h"

#include <quadmath.h>

quad_slope quad_softmax_slope(size_t count, const double *p, const double *dp, size_t i, double got)
{
    __float128 sum = 0, sizes = 0;
    for (size_t j = 0; j < count; j++) {
        __float128 term = (__float128)p[j] * ((__float128)dp[i] - (__float128)dp[j]);
        sum += term;
        sizes += fabsq(term);
    }
    __float128 exact = (__float128)p[i] * sum;
    return (quad_slope){(double)fabsq((__float128)got - exact), (double)exact,
                        (double)((__float128)p[i] * sizes)};
}
