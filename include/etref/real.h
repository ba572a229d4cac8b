/* real.h: the floating-point type in which etref computes.
 *
 * double, unless the library was built with `make PRECISION=f32`. The float build is the same
 * source with a shorter word: a fast path for users, and an honest candidate for the verifier.
 */
#ifndef ETREF_REAL_H
#define ETREF_REAL_H

#include <float.h>

#ifdef ETREF_F32
typedef float et_real;
#define ET_REAL_NAME     "f32"
#define ET_REAL_MAX      FLT_MAX
#define ET_UNIT_ROUNDOFF (FLT_EPSILON / 2)
#else
typedef double et_real;
#define ET_REAL_NAME     "f64"
#define ET_REAL_MAX      DBL_MAX
#define ET_UNIT_ROUNDOFF (DBL_EPSILON / 2)
#endif

#endif
