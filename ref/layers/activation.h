/* activation.h: an expert's activation, forward and backward. Internal; which ones there are: etref/ffn.h. */
#ifndef ET_ACTIVATION_H
#define ET_ACTIVATION_H

#include "etref/ffn.h"

/* A = a(H), or silu(V) H, of `count` numbers; A is not rounded here. */
void et_activate(const et_ffn *f, size_t count, const et_real *H, const et_real *V, et_real *A);

/* dH, and dV with swiglu, from dA. */
void et_activate_backward(const et_ffn *f, size_t count, const et_real *H, const et_real *V,
                          const et_real *dA, et_real *dH, et_real *dV);

/* P(x), the normal distribution's function: to 2e-14 of itself for x > -10, and to 1e-15 for x > 0 (measured: 1.9e-14, 5.2e-16). */
double et_normal_share(double x);

#endif
