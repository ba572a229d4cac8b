/* gate.h: from router logits to gate values, and back. Formulas: the head of ref/layers/gate.c.
 *
 * N tokens, n routed experts; logits r and gate values p are [N,n], row-major. Gates are computed
 * from the unbiased logits over ALL experts; selection picks among them afterwards.
 */
#ifndef ETREF_GATE_H
#define ETREF_GATE_H

#include "etref/profile.h"
#include "etref/real.h"
#include "etref/rounding.h"
#include <stdbool.h>
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

typedef enum et_gate {
    ET_GATE_SIGMOID,            /* p = 1/(1+e^-r): the paper's choice */
    ET_GATE_RELU,               /* p = max(r, 0) */
    ET_GATE_SOFTMAX,            /* over the n experts of a token */
    ET_GATE_SOFTMAX_ANCHOR,     /* over [0, r_t1 .. r_tn]; the zero stands for the shared expert */
    ET_GATE_SOFTMAX_ANCHOR_OUT, /* the same, but a constant weighs the shared expert: 1/(G+1), in EC
                                   and ET (one of the G+1 experts that a token gets) */
    ET_GATE_SOFTMAX_TOKENS      /* over the tokens of the batch, for each expert: not causal */
} et_gate;

/* p [N,n] out, and anchor [N] out: the anchor's own share a_t0 (written for the two anchored
 * gates only; may be NULL for the others). For softmax_tokens the N rows are one softmax; the
 * caller passes one micro-batch at a time. Logits must be finite.
 * Edge: a sigmoid far below zero underflows gradually to 0, never to NaN.
 * rounding, here and below: NULL, or a kernel's; then every step is one of gate arithmetic, and what
 * comes out is rounded by the caller: p as a gate, dr as a logit. */
void et_gate_forward(const et_rounding *rounding, et_gate gate, size_t N, size_t n,
                     const et_real *r, et_real *p, et_real *anchor);

/* dr [N,n] += Jacobian' dp. dp [N,n] is dL/dp for every expert: off the slots 0, or the share of an
 * aux loss, which reaches every gate value. danchor [N] is dL/da_t0, or NULL where the anchor weighs
 * nothing. p and anchor are et_gate_forward's.
 * Error of a softmax over m members, for the p given and dr = 0 before: below 2 u |dr_i| + 2^-77 p_i
 * sum_j p_j |dp_i - dp_j| for m <= 4096 (growing as m^2), in time m. dp finite and below 2^996. */
void et_gate_backward(const et_rounding *rounding, et_gate gate, size_t N, size_t n,
                      const et_real *r, const et_real *p, const et_real *anchor, const et_real *dp,
                      const et_real *danchor, et_real *dr);

/* True for the gates that have an anchor. */
bool et_gate_has_anchor(et_gate gate);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
#endif
