/* ffn.h: the feed-forward layer, dense or as one expert.
 *
 *     H = x W_up'      A = relu(H)^2      f(x) = A W_down'
 *
 * m tokens, width d, hidden width h; x, f [m,d]; H, A [m,h]; W_up [h,d]; W_down [d,h]; row-major.
 * No biases. Source: section 2 of the paper's setup (arXiv:2603.11535, appendix B); the dense
 * baseline has h = 4d, an expert h = 2d.
 */
#ifndef ETREF_FFN_H
#define ETREF_FFN_H

#include "etref/matmul.h"
#include "etref/profile.h"
#include "etref/rounding.h"
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

typedef struct et_ffn {
    et_engine engine;
    size_t d, h;
    const et_real *up, *down;    /* [h,d], [d,h] */
    const et_rounding *rounding; /* a kernel's, of each array; NULL: none */
} et_ffn;

/* x [m,d] in; H, A [m,h] and f [m,d] out. m = 0 is legal and touches nothing. ET_EINVAL, and nothing
 * is touched: an unknown engine, weights that are NULL, sizes that cannot be addressed. ET_ENOMEM: with a
 * rounding alone. */
et_status et_ffn_forward(const et_ffn *f, size_t m, const et_real *x, et_real *H, et_real *A,
                         et_real *out, et_error *error);

/* From dO = dL/df [m,d]:
 *     dA = dO W_down            dH = dA * 2 relu(H)           (out, [m,h])
 *     dW_down += dO' A          dW_up += dH' x                (accumulated, [d,h], [h,d])
 *     dx (+)= dH W_up           (accumulated if accumulate_dx, else out; [m,d])
 * relu(H)^2 is continuously differentiable; its derivative at 0 is 0. dx may alias nothing. ET_EINVAL
 * and ET_ENOMEM as above. dup or ddown NULL: not wanted. A kernel rounds dW_up and dW_down when they are complete: that is left to the
 * caller, who may add more to them. */
et_status et_ffn_backward(const et_ffn *f, size_t m, const et_real *x, const et_real *H,
                          const et_real *A, const et_real *dO, et_real *dA, et_real *dH,
                          et_real *dup, et_real *ddown, bool accumulate_dx, et_real *dx,
                          et_error *error);

/* ---- noise: the variance of the error that a kernel of a given profile makes ---- */

/* The layer's tensors; or, array for array, the variances of their errors. */
typedef struct et_ffn_tensors {
    et_real *x, *H, *A, *out;   /* [m,d], [m,h], [m,h], [m,d] */
    et_real *dO, *dA, *dH, *dx; /* [m,d], [m,h], [m,h], [m,d] */
    et_real *dup, *ddown;       /* [h,d], [d,h] */
} et_ffn_tensors;

/* Rows of equal input share their errors: the first row with the same x, and the first one with the
 * same x and the same upstream gradient; each [m]. */
typedef struct et_twins {
    const int32_t *input, *both;
} et_twins;

/* Where the rows' upstream gradient comes from: dO = w dy, w a weight with an error of its own. w NULL:
 * dO = dy, exactly. */
typedef struct et_upstream {
    const et_real *dy, *w, *w_variance; /* [m,d], [m], [m] */
} et_upstream;

/* Variances of W_up and W_down, which are rounded only where they are not representable; NULL: exact. */
typedef struct et_ffn_parameter_noise {
    const et_real *up, *down;
} et_ffn_parameter_noise;
struct et_product_room; /* scratch, zeros at first; ref/base/product_noise.h */

/* V->H, A, out [out] from v->x, H, A, out, V->x (NULL: x is exact) and W. ET_ENOMEM. */
et_status et_ffn_noise(const et_ffn *f, const et_profile *p, et_ffn_parameter_noise W, size_t m,
                       const et_ffn_tensors *v, et_ffn_tensors *V, struct et_product_room *room,
                       et_error *error);

/* From these: V->dO, dA, dH, dup, ddown (out), and V->dx (out), the variance of the expert's own share
 * of dx, which is not rounded by itself. `weight`, unless NULL, receives what concerns the rows' weights,
 * dw = <dy, f(x)>, each [m] and out:
 *     dw      the variance of dw, without the rounding of dw itself
 *     dw_sum  over rows of the same input these add up to the variance of the sum of their dw: the first has
 *             what they share, each what is its own
 *     shared  [m,d] what dx and dw have in common: cov(dx_c, dw), both through H; NULL: not wanted
 *     common  the deviation that rounding W_up and W_down brings into dw, with its sign where dy has one main
 *             direction (dy = 1 in all rows): then all rows err together; else 0
 * twins NULL: no two rows have the same input. ET_ENOMEM. */
typedef struct et_weight_noise {
    et_real *dw, *dw_sum, *shared, *common;
} et_weight_noise;
et_status et_ffn_backward_noise(const et_ffn *f, const et_profile *p, et_ffn_parameter_noise W,
                                size_t m, const et_upstream *u, const et_twins *twins,
                                const et_ffn_tensors *v, et_ffn_tensors *V, et_weight_noise *weight,
                                struct et_product_room *room, et_error *error);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
#endif
