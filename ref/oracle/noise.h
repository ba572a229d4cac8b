/* noise.h: what truncation does to a tensor as a whole. Internal.
 *
 * Rounding to nearest errs to both sides; truncation always makes smaller. A profile with truncated
 * operands shrinks every product by 0.72 2^-p for each operand (the mean of ulp/2 over the value, for a
 * significand spread as 1/m), and the shrinking adds up along the way: f(x) = (x W_up')^2 W_down' has
 * lost it twice for H, which is squared, once for A and once for W_down.
 */
#ifndef ET_NOISE_H
#define ET_NOISE_H

#include "etref/profile.h"
#include "etref/step.h"

/* What one truncation takes, and whether x and the weights are truncated at all. */
typedef struct et_shrinkage {
    double each; /* 0: the profile rounds to nearest */
    bool x, weights;
} et_shrinkage;
et_shrinkage et_noise_shrinkage(const et_step *s, const et_profile *p);

/* The part by which a tensor's values may be smaller than the reference's, all of them. */
double et_noise_shrinks(const et_shrinkage *by, const char *tensor);

#endif
