/* elementary.h: exp and log from plus, minus, times and divide alone.
 *
 * libm's last bit differs between machines; golden values must not. Both functions are a
 * deterministic sequence of IEEE-754 binary64 operations (and exact scalings by powers of two),
 * with an error below 1 ulp (derived in ref/base/exponential.h and elementary.c, tested against binary128
 * in tests/).
 * Rounding must be to nearest even, and subnormals must not be flushed to zero.
 */
#ifndef ETREF_ELEMENTARY_H
#define ETREF_ELEMENTARY_H

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

/* e^x. x > 709.782712893384 gives +inf; results below 2^-1022 are rounded a second time, to a
 * subnormal, or to 0 for x <= -745.1332191019412. exp(-inf) = 0, exp(inf) = inf, NaN gives NaN,
 * exp(+-0) = 1. Error: < 0.73 ulp, < 0.87 ulp where the result is subnormal. */
double et_exp(double x);

/* Natural logarithm. log(0) = -inf, log(x < 0) = NaN, log(inf) = inf, NaN gives NaN, log(1) = +0.
 * Subnormal arguments are handled to full accuracy. Error: < 0.63 ulp. */
double et_log(double x);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
#endif
