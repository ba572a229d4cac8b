/* witness_parts.h: what the files of the witness share: its tensors, what a case says, the parts.
 *
 * In the order of the mathematics:
 *   witness_routing.c   1 router and scores   2 competition   3 assignment
 *   witness_layer.c     4 feed-forward network   5 gates   6 combination   7 losses
 *                       8 gradients   9 state
 *   witness.c           10 slots; sizes of tensors; the whole
 *
 * Letters: N tokens, n routed experts, d width, h width of an expert, hs of the shared expert,
 * K experts of a token (token choice), k tokens of an expert (expert choice), P tokens of a pool,
 * M micro-batches of B = N/M consecutive tokens each; t, u tokens, i, j experts, c columns of x.
 */
#ifndef WITNESS_PARTS_H
#define WITNESS_PARTS_H

#include "witness.h"

#include <string.h>

/* Every tensor that a bundle can hold and the witness can give. */
#define PUBLIC_TENSORS(T)                                                                          \
    T(FWD_LOGITS, "fwd.logits")                                                                    \
    T(FWD_GATES, "fwd.gates")                                                                      \
    T(FWD_SLOT_PRE, "fwd.slot_pre")                                                                \
    T(FWD_SLOT_GATE_PRE, "fwd.slot_gate_pre")                                                      \
    T(FWD_SLOT_ACT, "fwd.slot_act")                                                                \
    T(FWD_SLOT_OUT, "fwd.slot_out")                                                                \
    T(FWD_SHARED_PRE, "fwd.shared_pre")                                                            \
    T(FWD_SHARED_GATE_PRE, "fwd.shared_gate_pre")                                                  \
    T(FWD_SHARED_ACT, "fwd.shared_act")                                                            \
    T(FWD_SHARED_OUT, "fwd.shared_out")                                                            \
    T(FWD_SHARED_WEIGHT, "fwd.shared_weight")                                                      \
    T(FWD_Y, "fwd.y")                                                                              \
    T(ROUTE_MASK, "route.mask")                                                                    \
    T(ROUTE_MARGIN, "route.margin")                                                                \
    T(ROUTE_THRESHOLD, "route.threshold")                                                          \
    T(ROUTE_CUTOFF, "route.cutoff")                                                                \
    T(ROUTE_POOL_CUTOFF, "route.pool_cutoff")                                                      \
    T(ROUTE_LOAD, "route.load")                                                                    \
    T(ROUTE_FANOUT, "route.fanout")                                                                \
    T(ROUTE_EXPERT_OFFSETS, "route.expert_offsets")                                                \
    T(ROUTE_TOKEN_OFFSETS, "route.token_offsets")                                                  \
    T(ROUTE_SLOT_TOKEN, "route.slot_token")                                                        \
    T(ROUTE_SLOT_EXPERT, "route.slot_expert")                                                      \
    T(ROUTE_SLOT_WEIGHT, "route.slot_weight")                                                      \
    T(ROUTE_TOKEN_SLOTS, "route.token_slots")                                                      \
    T(ROUTE_TOPK_EXPERT, "route.topk_expert")                                                      \
    T(ROUTE_TOPK_TOKEN, "route.topk_token")                                                        \
    T(LOSS_AUX, "loss.aux")                                                                        \
    T(LOSS_Z, "loss.z")                                                                            \
    T(BWD_X, "bwd.x")                                                                              \
    T(BWD_W_ROUTER, "bwd.w_router")                                                                \
    T(BWD_W_UP, "bwd.w_up")                                                                        \
    T(BWD_W_DOWN, "bwd.w_down")                                                                    \
    T(BWD_SHARED_UP, "bwd.shared_up")                                                              \
    T(BWD_SHARED_DOWN, "bwd.shared_down")                                                          \
    T(BWD_LOGITS, "bwd.logits")                                                                    \
    T(BWD_SLOT_WEIGHT, "bwd.slot_weight")                                                          \
    T(BWD_SLOT_OUT, "bwd.slot_out")                                                                \
    T(BWD_SLOT_ACT, "bwd.slot_act")                                                                \
    T(BWD_SLOT_PRE, "bwd.slot_pre")                                                                \
    T(BWD_SLOT_GATE_PRE, "bwd.slot_gate_pre")                                                      \
    T(BWD_SHARED_GATE_PRE, "bwd.shared_gate_pre")                                                  \
    T(BWD_W_GATE, "bwd.w_gate")                                                                    \
    T(BWD_SHARED_GATE, "bwd.shared_gate")                                                          \
    T(BWD_B_UP, "bwd.b_up")                                                                        \
    T(BWD_B_GATE, "bwd.b_gate")                                                                    \
    T(BWD_B_DOWN, "bwd.b_down")                                                                    \
    T(BWD_SHARED_B_UP, "bwd.shared_b_up")                                                          \
    T(BWD_SHARED_B_GATE, "bwd.shared_b_gate")                                                      \
    T(BWD_SHARED_B_DOWN, "bwd.shared_b_down")                                                      \
    T(BWD_SHARED_OUT, "bwd.shared_out")                                                            \
    T(BWD_SHARED_ACT, "bwd.shared_act")                                                            \
    T(BWD_SHARED_PRE, "bwd.shared_pre")                                                            \
    T(BWD_SHARED_WEIGHT, "bwd.shared_weight")                                                      \
    T(STATE_EMA, "state.ema")                                                                      \
    T(STATE_BIAS, "state.bias")                                                                    \
    T(STATE_UPDATES, "state.updates")

/* First the public ones, then the arrays over all tokens and all experts that no bundle holds; the
 * slots are read off from those at the very end. */
enum tensor {
#define AS_ENUM(id, name) id,
    PUBLIC_TENSORS(AS_ENUM)
#undef AS_ENUM
        PUBLIC_COUNT,
    X_ROW = PUBLIC_COUNT, /* [N,d] x */
    INPUT,              /* [N,n,d] what an expert sees: x, or w x */
    D_INPUT,            /* [N,n,d] its gradient, where that is w x */
    PRE,                /* [N,n,h] H of the assigned pairs, 0 elsewhere; so below */
    GATE_PRE,           /* [N,n,h] V, swiglu alone */
    ACT,                /* [N,n,h] A */
    OUT,                /* [N,n,d] f_i(x_t) */
    D_PRE,              /* [N,n,h] dH */
    D_GATE_PRE,         /* [N,n,h] dV, swiglu alone */
    D_ACT,              /* [N,n,h] dA */
    D_OUT,              /* [N,n,d] dO */
    WEIGHT,             /* [N,n] w */
    D_WEIGHT,           /* [N,n] dw */
    D_GATE,             /* [N,n] dp */
    ANCHOR,             /* [N] a_t0, the anchor's share of the softmax; 0 where there is none */
    CHOSEN,             /* [N,n] 1: a choice of token choice, dropped or not; elsewhere as z */
    D_ANCHOR,           /* [N] da_t0; 0 where the anchor weighs nothing */
    TENSOR_COUNT
};

struct witness {
    quad *value[TENSOR_COUNT]; /* NULL: not part of this case */
    size_t count[TENSOR_COUNT];
    double *score; /* [N,n] what the rule compares */
    size_t *rank;  /* [N,n] how many competitors beat it */
    int out_of_memory;
};

/* ---- What a case says ---- */

static inline int is(const char *word, const char *meaning)
{
    return word != NULL && strcmp(word, meaning) == 0;
}

/* The rules. EC and ET both choose tokens for experts; TC chooses experts for tokens. */
static inline int token_choice(const witness_case *c)
{
    return is(c->rule, "tc");
}

/* EC trains by the top k of each pool, and so does ET while step < warmup_steps. */
static inline int expert_choice(const witness_case *c)
{
    return !c->given && !c->eval && (is(c->rule, "ec") || (is(c->rule, "et") && c->step < c->warmup_steps));
}

/* ET after its warm-up; in evaluation mode EC too. */
static inline int by_threshold(const witness_case *c)
{
    return !c->given && !token_choice(c) && !expert_choice(c);
}

/* Token choice with a capacity, which evaluation does not have. */
static inline int drops(const witness_case *c)
{
    return token_choice(c) && c->has_capacity && !c->eval && !c->given;
}

static inline int gated(const witness_case *c)
{
    return is(c->activation, "swiglu");
}

static inline int biased(const witness_case *c)
{
    return c->b_up != NULL;
}

static inline int has_aux_loss(const witness_case *c)
{
    return !c->eval && (is(c->balance, "aux") || is(c->balance, "aux_error"));
}

static inline int has_z_loss(const witness_case *c)
{
    return !c->eval && c->z_loss_coef != 0;
}

static inline int moves_bias(const witness_case *c)
{
    return !c->given && !c->eval && (is(c->balance, "lossfree") || is(c->balance, "proportional"));
}

/* B: tokens of a micro-batch. */
static inline size_t batch_tokens(const witness_case *c)
{
    return c->N / c->micro_batches;
}

/* Its tokens that are real, the first ones; is token t? */
static inline size_t real_tokens(const witness_case *c)
{
    return batch_tokens(c) - c->padding;
}

static inline int is_real(const witness_case *c, size_t t)
{
    return t % batch_tokens(c) < real_tokens(c);
}

/* ---- The parts ---- */

/* 1 to 3: logits, the assignment, and what the rule says of it. */
void witness_route(const witness_case *c, witness *w);

/* 5, for what looks at gates before a token's experts are known. */
void witness_gates(const witness_case *c, witness *w);

/* 4 to 9: values of all pairs of token and expert, losses, gradients, the next state. */
void witness_moe(const witness_case *c, witness *w);

/* The dense layer. */
void witness_dense(const witness_case *c, witness *w);

#endif
