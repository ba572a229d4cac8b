/* rmsnorm.h: root-mean-square normalisation without weights.
 *
 *     y = v s,     s = 1 / sqrt(mean(v^2) + eps)
 *
 * of every vector v of `width` numbers. A token has `heads` vectors next to each other, and from
 * one token to the next it is `stride` numbers: a plain norm has 1 vector and stride = width;
 * QK-norm takes the query and key heads out of the rows of [q;k;v].
 * Source: Zhang and Sennrich, Root Mean Square Layer Normalization, NeurIPS 2019, without its gain,
 * as the paper's model (arXiv:2603.11535, appendix B) has it.
 */
#ifndef ETREF_RMSNORM_H
#define ETREF_RMSNORM_H

#include "etref/real.h"
#include "etref/rounding.h"
#include "etref/status.h"

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

typedef struct et_rmsnorm {
    size_t tokens, heads, width, stride; /* stride >= heads * width */
    double eps;                          /* above 0: a vector of zeros stays one */
    const et_rounding *rounding;         /* a kernel's, of what it stores; NULL: none */
} et_rmsnorm;

/* x in, y out, laid out alike; y may be x. scale [tokens,heads] out: s. Numbers between the heads
 * and the stride's end are left alone. x finite, its squares' sum within the format's range.
 * ET_EINVAL, and nothing is touched: an array that is NULL and has elements, stride too short, eps
 * not above 0. */
et_status et_rmsnorm_forward(const et_rmsnorm *f, const et_real *x, et_real *y, et_real *scale,
                             et_error *error);

/* From y and scale of the forward pass and dy = dL/dy, of y's layout:
 *     dx = s (dy - y mean(dy y))          dx (+)=, of x's layout
 * accumulate: dx is added to; else it is written, and may be dy. ET_EINVAL as above. */
et_status et_rmsnorm_backward(const et_rmsnorm *f, const et_real *y, const et_real *scale,
                              const et_real *dy, bool accumulate, et_real *dx, et_error *error);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
#endif
