/* cross_entropy.h: output head, softcap and cross-entropy, fused.
 *
 *     z = x head'       l = cap tanh(z / cap)       lse_t = log sum_v e^l_tv
 *     loss_t = lse_t - l_t,target
 *
 * N tokens, width d, V words; x [N,d], head [V,d]. The logits of a block of tokens are there at a
 * time, never [N,V], unless they are asked for. cap 0: l = z.
 * Source: the paper's model (arXiv:2603.11535, released code) with cap 15; the softcap: Gemma 2.
 */
#ifndef ETREF_CROSS_ENTROPY_H
#define ETREF_CROSS_ENTROPY_H

#include "etref/matmul.h"
#include "etref/rounding.h"
#include "etref/status.h"
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

typedef struct et_cross_entropy {
    et_engine engine;
    size_t N, d, V;
    double cap;                  /* above 0, or 0: none */
    const et_real *head;         /* [V,d] */
    const et_rounding *rounding; /* NULL: none */
} et_cross_entropy;

/* tanh x: error below 3 ulp; odd; +-1 far out; NaN gives NaN. */
double et_tanh(double x);

/* How many numbers of scratch the functions below want. */
size_t et_cross_entropy_room(const et_cross_entropy *f);

/* x and targets [N] in; loss, lse [N] out; logits l [N,V] out, or NULL; room
 * [et_cross_entropy_room] scratch. targets NULL: loss and lse are not touched and may be NULL; the
 * logits alone are wanted. ET_EINVAL, and nothing is touched: a target that is not from 0 to V-1,
 * an array that is NULL and has elements, a cap below 0, an unknown engine. ET_ENOMEM: with a
 * rounding alone. */
et_status et_cross_entropy_forward(const et_cross_entropy *f, const et_real *x,
                                   const int32_t *targets, et_real *loss, et_real *lse,
                                   et_real *logits, et_real *room, et_error *error);

/* The gradient of scale * sum_t loss_t; 1/N makes it the mean's. lse is the forward pass's.
 *     dx [N,d] out      dhead [V,d] accumulated
 * Errors as above. */
et_status et_cross_entropy_backward(const et_cross_entropy *f, const et_real *x,
                                    const int32_t *targets, const et_real *lse, double scale,
                                    et_real *dx, et_real *dhead, et_real *room, et_error *error);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
#endif
