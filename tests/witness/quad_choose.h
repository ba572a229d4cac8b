/* quad_choose.h: how far a double is from a logarithm of a large integer, in binary128.
 *
 * A plain-double interface, because only gcc has quadmath.h (see quad_elementary.h). An infinite
 * answer means that `got` is not a number.
 */
#ifndef ETREF_WITNESS_QUAD_CHOOSE_H
#define ETREF_WITNESS_QUAD_CHOOSE_H

#include <stdint.h>

/* |got - log2 C(N,k)| in units of the last place of the exact value, by lgammaq. 0 < k < N < 2^44:
 * its error, some 2^-111 log N!, is then below 2^-10 of a last place. */
double quad_log2_choose_ulps(uint64_t N, uint64_t k, double got);

/* The same for log2((high 2^64 + low) 2^exponent), a number of more than 1. */
double quad_log2_ulps(uint64_t high, uint64_t low, int exponent, double got);

#endif
