/* ffn.h: the feed-forward layer, dense or as one expert.
 *
 *     H = x W_up'      A = a(H)      f(x) = A W_down'
 *
 * m tokens, width d, hidden width h; x, f [m,d]; H, A [m,h]; W_up [h,d]; W_down [d,h]; row-major.
 * A layer may have biases (the paper's have none): H = x W_up' + b_up, V = x W_gate' + b_gate, f(x) = A W_down' + b_down.
 * Source: section 2 of the paper's setup (arXiv:2603.11535, appendix B); the dense
 * baseline has h = 4d, an expert h = 2d.
 *
 *     relu2       A = relu(H)^2                              the paper's
 *     swiglu      A = silu(V) H, V = x W_gate', silu(v) = v / (1 + e^-v)    Shazeer 2020
 *     gelu        A = H P(H), P the normal distribution's function
 *     gelu_tanh   A = H (1 + tanh(sqrt(2/pi) (H + 0.044715 H^3))) / 2       Hendrycks, Gimpel 2016
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

typedef enum et_activation { ET_RELU2, ET_SWIGLU, ET_GELU, ET_GELU_TANH } et_activation;

typedef struct et_ffn {
    et_engine engine;
    size_t d, h;
    const et_real *up, *down;    /* [h,d], [d,h] */
    const et_rounding *rounding; /* a kernel's, of each array; NULL: none */
    et_activation activation;
    const et_real *gating; /* [h,d] W_gate of swiglu; the others do not look at it */
    const et_real *b_up, *b_gate, *b_down; /* [h], [h] of swiglu alone, [d]; each NULL: none */
} et_ffn;

/* m tokens' rows on their way through the layer, and back. */
typedef struct et_ffn_rows {
    size_t m;
    const et_real *x; /* [m,d] in */
    et_real *H, *A;   /* [m,h] out of forward; in, of backward */
    et_real *out;     /* [m,d] f(x), out of forward */
    const et_real *dO; /* [m,d] dL/df, in */
    et_real *dA, *dH;  /* [m,h] out of backward */
    et_real *dx;       /* [m,d] out of backward, or, with accumulate_dx, accumulated; may alias nothing */
    bool accumulate_dx;
    et_real *V, *dV; /* [m,h] as H and dH; of swiglu alone */
} et_ffn_rows;

/* H, V, A and f of x. m = 0 is legal and touches nothing. ET_EINVAL, and nothing is touched: an unknown
 * engine or activation, weights or rows that are NULL, sizes that cannot be addressed. ET_ENOMEM: with a rounding alone. */
et_status et_ffn_forward(const et_ffn *f, const et_ffn_rows *r, et_error *error);

/* From dO:
 *     dA = dO W_down            dH = dA * a'(H), with relu2 dA * 2 relu(H)
 *     dW_down += dO' A          dW_up += dH' x                (accumulated, [d,h], [h,d])
 *     dx (+)= dH W_up
 * with swiglu besides
 *     dH = dA * silu(V)         dV = dA * H * silu'(V)
 *     dW_gate += dV' x          dx += dV W_gate
 * relu(H)^2 is continuously differentiable; its derivative at 0 is 0. ET_EINVAL and ET_ENOMEM as above.
 * dup, ddown or dgating NULL: not wanted. A kernel rounds dW_up and dW_down when they are complete: that is left
 * to the caller, who may add more to them. */
et_status et_ffn_backward(const et_ffn *f, const et_ffn_rows *r, et_real *dup, et_real *ddown,
                          et_real *dgating, et_error *error);

/* After the above, from the dH, dV and dO in r: sums over rows, accumulated,
 *     db_up += sum_t dH_t       db_gate += sum_t dV_t       db_down += sum_t dO_t
 * A bias that the layer has none of, and NULL: not wanted. ET_EINVAL as above; ET_ENOMEM. */
et_status et_ffn_bias_backward(const et_ffn *f, const et_ffn_rows *r, et_real *db_up,
                               et_real *db_gate, et_real *db_down, et_error *error);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
#endif
