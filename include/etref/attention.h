/* attention.h: causal attention, in which several query heads may share a key/value head.
 *
 *     S = q k' / sqrt(e)      P_tu = e^(S_tu - lse_t) for u <= t, else 0      o = P v
 *     lse_t = log sum_(u <= t) e^S_tu
 *
 * for each of B sequences of T tokens and each of Hq query heads of width e; query head i looks at
 * key/value head floor(i Hkv / Hq). Hkv divides Hq. Queries, keys and values are the columns of one
 * matrix qkv [B T, (Hq + 2 Hkv) e]: first all query heads, then the key heads, then the value
 * heads. Source: Vaswani et al. 2017; shared heads: Ainslie et al. 2023 (GQA). As in
 * FlashAttention-2 (Dao 2023) the backward pass recomputes P from lse, so that no T by T matrix is
 * kept.
 */
#ifndef ETREF_ATTENTION_H
#define ETREF_ATTENTION_H

#include "etref/matmul.h"
#include "etref/rounding.h"
#include "etref/status.h"

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

typedef struct et_attention {
    et_engine engine;
    size_t B, T, heads, kv_heads, width; /* B, T, Hq, Hkv, e */
    size_t
        first; /* forward: rows of tokens from `first` to T - 1 of each sequence are computed, the
                     * others left alone (they have been computed: a cache). Backward: 0 */
    size_t workers; /* threads at most, at least 1; none of their number shows in the result */
    const et_rounding *rounding; /* NULL: none */
} et_attention;

/* How many numbers of scratch the functions below want: for each worker two blocks of some rows by
 * T. */
size_t et_attention_room(const et_attention *f);

/* qkv in; o [B T, Hq e] and lse [B,Hq,T] out; room [et_attention_room] scratch. T = 1: o = v.
 * In the plain engine the bits of a row do not depend on the rows after it, nor on `first`.
 * ET_EINVAL, and nothing is touched: an array that is NULL and has elements, Hkv that does not
 * divide Hq, first above T, no worker, an unknown engine. ET_ENOMEM: with a rounding alone. */
et_status et_attention_forward(const et_attention *f, const et_real *qkv, et_real *o, et_real *lse,
                               et_real *room, et_error *error);

/* From do = dL/do [B T, Hq e]: dqkv [B T, (Hq + 2 Hkv) e] out. qkv and lse are the forward pass's.
 * Errors as above. */
et_status et_attention_backward(const et_attention *f, const et_real *qkv, const et_real *lse,
                                const et_real *dout, et_real *dqkv, et_real *room, et_error *error);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
#endif
