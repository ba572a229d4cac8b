/* quad_elementary.h: how far a double is from e^x or log x, computed in binary128.
 *
 * A plain-double interface, because only gcc has quadmath.h: quad_elementary.c is always compiled
 * by gcc (and linked with -lquadmath), whatever compiles the rest.
 */
#ifndef ETREF_WITNESS_QUAD_ELEMENTARY_H
#define ETREF_WITNESS_QUAD_ELEMENTARY_H

/* |got - exact| in units of the last place of a double at the exact value (2^-1074 below 2^-1022).
 * Infinite if `got` is NaN, or if `got` is infinite where the exact value rounds to a finite
 * double, or the other way round. log wants x > 0. */
double quad_exp_ulps(double x, double got);
double quad_log_ulps(double x, double got);

/* |got - P(x)| / P(x), P the normal distribution's function; x above -37. */
double quad_normal_error(double x, double got);

#endif
