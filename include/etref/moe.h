/* moe.h: the Mixture-of-Experts layer. One forward and one backward serve TC, EC and ET; which rule
 * made the assignment, the layer does not know.
 *
 *     r = x W_r'          p = gate(r)                                     (paper, Eq. 1)
 *     y_t = s_t f_shared(x_t) + sum_i z_ti w_ti f_i(x_t)                  (paper, Eq. 2)
 *
 * norm = none    w_ti = p_ti, s_t as the gate says (1, the anchor's share, or 1/(G+1))
 * norm = fanout  both divided by n_t = sum_i z_ti + (1 if there is a shared expert);
 *                y_t = 0 if n_t = 0
 * norm = sum     w_ti = p_ti / sum_j z_tj p_tj (0 if that sum is 0), s_t unchanged
 *
 * and every w_ti times routed_scale, if there is one (DeepSeek-V3, arXiv:2412.19437, has 2.5).
 *
 * Where weights stand on the inputs (weighs_input; Llama 4), a routed expert sees the row w x, and
 *     y_t = s_t f_shared(x_t) + sum_i z_ti f_i(w_ti x_t)
 * The shared expert's s_t stays on its output.
 *
 * Letters: N tokens, d width, h and hs hidden widths of a routed and of the shared expert, n routed
 * experts, S slots. Every array is row-major; the caller owns all of them.
 */
#ifndef ETREF_MOE_H
#define ETREF_MOE_H

#include "etref/assignment.h"
#include "etref/ffn.h"
#include "etref/gate.h"
#include "etref/status.h"

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

typedef enum et_norm { ET_NORM_NONE, ET_NORM_FANOUT, ET_NORM_SUM } et_norm;

/* The layer: sizes, switches and parameters. */
typedef struct et_moe {
    et_engine engine;
    size_t N, d, h, n;
    size_t hs; /* 0: no shared expert */
    et_gate gate;
    et_norm norm;
    size_t gate_tokens;        /* softmax_tokens: consecutive tokens of one softmax; divides N.
                                * The other gates do not look at it */
    bool anchor_weighs_shared; /* s_t = a_t0 (softmax_anchor under EC and ET) */
    et_real shared_constant;   /* s_t otherwise: 1, or 1/(G+1) (softmax_anchor_out, EC and ET) */
    const et_real *router;     /* [n,d] */
    const et_real *up, *down;  /* [n,h,d], [n,d,h] */
    const et_real *shared_up, *shared_down; /* [hs,d], [d,hs]; NULL if hs = 0 */
    const et_rounding *rounding; /* a kernel's, of each array that it would store; NULL: none */
    et_activation activation;    /* of every expert, the shared one, too */
    et_real routed_scale;        /* factor of every w; 0: none, as 1 */
    const int32_t *mask;         /* [N] 0 of padding tokens, which have no slots, and s_t = 0; NULL: there are none */
    bool weighs_input;           /* w on the routed experts' inputs, not on their outputs */
    const et_real *gating, *shared_gating; /* W_gate [n,h,d], [hs,d] of swiglu; else NULL */
    /* biases (ffn.h) [n,h], [n,h], [n,d]; [hs], [hs], [d]; each NULL: none */
    const et_real *b_up, *b_gate, *b_down, *shared_b_up, *shared_b_gate, *shared_b_down;
} et_moe;

/* What the forward pass computes, kept because the backward pass needs it. All out. */
typedef struct et_moe_values {
    et_real *logits, *gates;                 /* r, p [N,n] */
    et_real *anchor;                         /* [N] a_t0; only for anchored gates, else NULL */
    et_real *slot_weight;                    /* [S] w */
    et_real *slot_pre, *slot_act, *slot_out; /* [S,h] H, [S,h] A, [S,d] f(x) before weighting, or f(w x) */
    et_real *shared_pre, *shared_act;        /* [N,hs] */
    et_real *shared_out, *shared_weight;     /* [N,d], [N] the final s_t */
    et_real *y;                              /* [N,d] */
    et_real *slot_gate_pre, *shared_gate_pre; /* [S,h], [N,hs] V of swiglu; else NULL */
} et_moe_values;

/* What the backward pass computes: dL/d(thing). The first three lines and the last are accumulated
 * (the caller zeroes them, or leaves the losses' share in the second and third), the others written. */
typedef struct et_moe_grads {
    et_real *x, *router, *up, *down, *shared_up, *shared_down, *gating, *shared_gating;
    et_real *logits; /* [N,n] comes in with the gradients of the losses, or zero */
    et_real *gates;  /* [N,n] comes in with the losses' gradient by the gate values, or zero */
    et_real *slot_weight, *slot_out, *slot_act, *slot_pre; /* [S], [S,d], [S,h], [S,h] */
    et_real *shared_weight, *shared_out, *shared_act, *shared_pre;
    et_real *slot_gate_pre, *shared_gate_pre; /* [S,h], [N,hs] dV of swiglu; else NULL */
    const uint8_t *wanted; /* [n+1] of which experts up, down, gating and biases are, the shared one last; NULL: all */
    et_real *b_up, *b_gate, *b_down, *shared_b_up, *shared_b_gate, *shared_b_down; /* accumulated; NULL without biases */
} et_moe_grads;

/* All of these functions check what they are given before they touch anything. ET_EINVAL: a switch
 * out of its range, gate_tokens under softmax_tokens that does not divide N, a shared expert's switch
 * without one, sizes that cannot be addressed, an array that is NULL and has elements, an assignment
 * that is not of N tokens to n experts or contradicts itself. */

/* r and p (and the anchor's share), for all tokens and all experts. x [N,d] in. */
et_status et_moe_score(const et_moe *moe, const et_real *x, et_moe_values *v, et_error *error);

/* Everything after the routing: slot weights, experts, shared expert, y. Needs logits and gates in
 * `v` and an assignment of N tokens to n experts. ET_ENOMEM: no room to gather an expert's rows. */
et_status et_moe_forward(const et_moe *moe, const et_real *x, const et_assignment *a,
                         et_moe_values *v, et_error *error);

/* The gradient of L = <y, dy> + losses. `g->gates` and `g->logits` bring the losses' own
 * contributions; on return g->logits is the whole dL/dr. Nothing flows through the assignment.
 * dy [N,d] in. ET_ENOMEM as above. */
et_status et_moe_backward(const et_moe *moe, const et_real *x, const et_real *dy,
                          const et_assignment *a, const et_moe_values *v, et_moe_grads *g,
                          et_error *error);

/* The phases of which the two above are made, in order; for those who time or study them singly. */
et_status et_moe_weigh(const et_moe *moe, const et_assignment *a, et_moe_values *v,
                       et_error *error);
et_status et_moe_experts(const et_moe *moe, const et_real *x, const et_assignment *a,
                         et_moe_values *v, et_error *error);
et_status et_moe_combine(const et_moe *moe, const et_assignment *a, et_moe_values *v,
                         et_error *error);

et_status et_moe_combine_backward(const et_moe *moe, const et_real *dy, const et_assignment *a,
                                  const et_moe_values *v, et_moe_grads *g, et_error *error);
et_status et_moe_experts_backward(const et_moe *moe, const et_real *x, const et_assignment *a,
                                  const et_moe_values *v, et_moe_grads *g, et_error *error);
et_status et_moe_score_backward(const et_moe *moe, const et_real *x, const et_assignment *a,
                                const et_moe_values *v, et_moe_grads *g, et_error *error);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
#endif
