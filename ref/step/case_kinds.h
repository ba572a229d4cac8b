/* case_kinds.h: kinds of cases, by which fields apply and tensors exist. Internal. */
#ifndef ET_CASE_KINDS_H
#define ET_CASE_KINDS_H

#include "etref/case.h"

static inline bool is_any(const et_case *c)
{
    (void)c;
    return true;
}

static inline bool is_dense(const et_case *c)
{
    return c->layer == ET_DENSE;
}

static inline bool is_moe(const et_case *c)
{
    return c->layer == ET_MOE;
}

/* The layers that a verdict knows by slots and experts; a dense one has one expert that takes all. */
static inline bool is_ffn(const et_case *c)
{
    return is_dense(c) || is_moe(c);
}

static inline bool is_gated(const et_case *c)
{
    return is_ffn(c) && c->activation == ET_SWIGLU;
}

static inline bool is_biased(const et_case *c)
{
    return is_ffn(c) && c->expert_bias;
}

static inline bool is_biased_gated(const et_case *c)
{
    return is_biased(c) && is_gated(c);
}

static inline bool is_rmsnorm(const et_case *c)
{
    return c->layer == ET_LAYER_RMSNORM;
}

static inline bool is_rope(const et_case *c)
{
    return c->layer == ET_LAYER_ROPE;
}

static inline bool is_attention(const et_case *c)
{
    return c->layer == ET_LAYER_ATTENTION;
}

static inline bool is_cross_entropy(const et_case *c)
{
    return c->layer == ET_LAYER_CROSS_ENTROPY;
}

static inline bool is_adamw(const et_case *c)
{
    return c->layer == ET_LAYER_ADAMW;
}

static inline bool is_muon(const et_case *c)
{
    return c->layer == ET_LAYER_MUON;
}

static inline bool is_optimiser(const et_case *c)
{
    return is_adamw(c) || is_muon(c);
}

static inline bool has_sequences(const et_case *c)
{
    return is_rope(c) || is_attention(c);
}

static inline bool has_heads(const et_case *c)
{
    return is_rmsnorm(c) || is_rope(c) || is_attention(c);
}

static inline bool is_tc(const et_case *c)
{
    return is_moe(c) && c->rule == ET_TC;
}

static inline bool has_padding(const et_case *c)
{
    return is_moe(c) && c->padding > 0;
}

static inline bool is_padding(const et_case *c, size_t t)
{
    return t % et_case_micro_tokens(c) >= et_case_real_tokens(c);
}

/* Tokens that are routed together. */
typedef struct et_span {
    size_t first, count;
} et_span;

/* Micro-batch `batch`, its padding left out. */
static inline et_span batch_of(const et_case *c, size_t batch)
{
    return (et_span){batch * et_case_micro_tokens(c), et_case_real_tokens(c)};
}

/* Pools of a micro-batch; of all, pool `pool`. */
static inline size_t pools_of_batch(const et_case *c)
{
    return et_case_real_tokens(c) / c->pool_tokens;
}

static inline et_span pool_of(const et_case *c, size_t pool)
{
    size_t each = pools_of_batch(c), P = c->pool_tokens;
    return (et_span){pool / each * et_case_micro_tokens(c) + pool % each * P, P};
}

static inline bool has_groups(const et_case *c)
{
    return is_tc(c) && c->groups > 1;
}

/* Token choice that drops what is over its capacity. */
static inline bool drops(const et_case *c)
{
    return is_tc(c) && c->has_capacity && !c->eval && !c->given;
}

static inline bool is_ep(const et_case *c)
{
    return is_moe(c) && c->parallel == ET_EXPERT_PARALLEL;
}

static inline bool is_dp(const et_case *c)
{
    return is_moe(c) && c->parallel == ET_DATA_PARALLEL;
}

static inline bool has_ranks(const et_case *c)
{
    return is_ep(c) || is_dp(c);
}

/* The rules by which experts choose tokens: both keep an EMA of the k-th largest score. */
static inline bool is_ec_or_et(const et_case *c)
{
    return is_moe(c) && c->rule != ET_TC;
}

static inline bool has_shared(const et_case *c)
{
    return is_moe(c) && c->shared;
}

static inline bool has_shared_gating(const et_case *c)
{
    return has_shared(c) && is_gated(c);
}

/* w on the routed experts' inputs. */
static inline bool weighs_inputs(const et_case *c)
{
    return is_moe(c) && c->weighs_input;
}

static inline bool has_shared_bias(const et_case *c)
{
    return has_shared(c) && c->expert_bias;
}

static inline bool has_shared_gate_bias(const et_case *c)
{
    return has_shared_bias(c) && is_gated(c);
}

static inline bool has_aux_loss(const et_case *c)
{
    return is_tc(c) && (c->balance == ET_BALANCE_AUX || c->balance == ET_BALANCE_AUX_ERROR);
}

static inline bool has_bias(const et_case *c)
{
    return is_tc(c) && (c->balance == ET_BALANCE_LOSSFREE || c->balance == ET_BALANCE_PROPORTIONAL);
}

#endif
