/* rope.h: rotary position embedding.
 *
 * The angle of position t and pair j is
 *     theta = t base^(-2j/w),     t = 0, 1, ..     j = 0 .. w/2 - 1
 * and a head (u1, u2) of width w, halves of w/2 numbers each, becomes
 *     (u1 cos theta + u2 sin theta,  -u1 sin theta + u2 cos theta)
 * so that the product of a query at t with a key at t' hangs on t - t' alone.
 * Source: Su et al., RoFormer, 2021; halves instead of neighbouring pairs, and the sense of
 * rotation, as in the paper's model (arXiv:2603.11535, released code).
 */
#ifndef ETREF_ROPE_H
#define ETREF_ROPE_H

#include "etref/real.h"
#include "etref/rounding.h"
#include "etref/status.h"

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

/* Sine and cosine by plus, minus, times and divide alone, the same on every machine; either out may
 * be NULL. |x| <= 2^20, else both are NaN. Error below 1 ulp of the larger of |result| and 2^-30:
 * next to a multiple of pi other than 0 the absolute error, below 2^-83, is what counts. */
void et_sin_cos(double x, double *sine, double *cosine);

/* cosines, sines [positions, width/2] out: of theta. width even. rounding: a kernel's, whose frequencies and angles have
 * the accumulator's bits (far down a sequence that is what its errors come from); NULL: none. ET_EINVAL: width is odd,
 * base not above 0, more than 2^20 positions. Error of an angle: below 2 (|ln base| + 2) u theta. */
et_status et_rope_table(const et_rounding *rounding, size_t positions, size_t width, double base,
                        et_real *cosines, et_real *sines, et_error *error);

typedef struct et_rope {
    size_t tokens, heads, width, stride; /* as et_rmsnorm's; width even */
    size_t sequence;                     /* token t has position t mod sequence */
    const et_real *cosines, *sines;      /* [sequence, width/2] */
    const et_rounding *rounding;         /* NULL: none */
} et_rope;

/* x in and out. ET_EINVAL, and nothing is touched: an array that is NULL and has elements, an odd
 * width, a stride too short, sequence 0. */
et_status et_rope_forward(const et_rope *f, et_real *x, et_error *error);

/* dx in: dL/d(rotated); out: dL/d(x before the rotation). */
et_status et_rope_backward(const et_rope *f, et_real *dx, et_error *error);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
#endif
