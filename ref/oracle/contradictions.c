/* contradictions.c: fields of a case that are legal each alone, but not together.
 *
 * A row of the table at the end names the two fields that clash, so that a message can show both
 * values, and says what is allowed. Fields that merely do not apply (top_k under et) are not here:
 * their own row in fields.c knows.
 */
#include "ref/oracle/contradictions.h"
#include "ref/base/memory.h"

static bool is_moe(const et_case *c)
{
    return c->layer == ET_MOE;
}

static bool is_tc(const et_case *c)
{
    return is_moe(c) && c->rule == ET_TC;
}

static bool has_pools(const et_case *c)
{
    return is_moe(c) && c->rule != ET_TC;
}

static bool is_skewed(const et_case *c)
{
    return c->input.source == ET_INPUT_SKEWED;
}

static size_t product_or_max(size_t a, size_t b)
{
    size_t product;
    return et_size_mul(a, b, &product) ? product : SIZE_MAX;
}

/* Whether a*b*c doubles can be addressed; SIZE_MAX stands for a product that did not fit. */
static bool too_large(size_t a, size_t b, size_t c)
{
    size_t bytes = product_or_max(product_or_max(product_or_max(a, b), c), sizeof(double));
    return bytes > PTRDIFF_MAX;
}

static bool micro_does_not_divide(const et_case *c)
{
    return c->tokens % c->micro_batches != 0;
}

static bool pool_does_not_divide(const et_case *c)
{
    return et_case_micro_tokens(c) % c->pool_tokens != 0;
}

static bool pool_is_not_the_batch(const et_case *c)
{
    return et_case_routes_by_threshold(c) && !c->eval && c->pool_tokens != et_case_micro_tokens(c);
}

static bool granularity_is_not_top_k(const et_case *c)
{
    return is_tc(c) && c->granularity != c->top_k;
}

static bool granularity_above_experts(const et_case *c)
{
    return is_moe(c) && c->granularity > c->experts;
}

static bool top_k_above_experts(const et_case *c)
{
    return is_tc(c) && c->top_k > c->experts;
}

static bool target_is_zero(const et_case *c)
{
    return has_pools(c) && c->target_load == 0;
}

static bool target_above_pool(const et_case *c)
{
    return has_pools(c) && c->target_load > c->pool_tokens;
}

static bool tc_with_softmax_tokens(const et_case *c)
{
    return is_tc(c) && c->gate == ET_GATE_SOFTMAX_TOKENS;
}

static bool global_load_unused(const et_case *c)
{
    return c->global_load && c->balance == ET_BALANCE_NONE;
}

static bool from_integers(const et_case *c)
{
    return c->input.source == ET_INPUT_INTEGER && is_moe(c);
}

static bool integer_gate(const et_case *c)
{
    return from_integers(c) && c->gate != ET_GATE_RELU;
}

static bool integer_norm(const et_case *c)
{
    return from_integers(c) && c->norm != ET_NORM_NONE;
}

static bool integer_balance(const et_case *c)
{
    return from_integers(c) && c->balance != ET_BALANCE_NONE;
}

static bool integer_z_loss(const et_case *c)
{
    return from_integers(c) && c->z_loss_coef != 0;
}

static bool hot_beyond_experts(const et_case *c)
{
    return is_skewed(c) && c->input.hot >= c->experts;
}

static bool skewed_dense(const et_case *c)
{
    return is_skewed(c) && !is_moe(c);
}

static bool tokens_too_wide(const et_case *c)
{
    size_t widest = c->d_expert > c->shared_d_expert ? c->d_expert : c->shared_d_expert;
    return too_large(c->tokens, c->d_model, 1) || too_large(c->tokens, widest, 1);
}

static bool too_many_logits(const et_case *c)
{
    return too_large(c->tokens, c->experts, 1);
}

static bool too_many_weights(const et_case *c)
{
    size_t widest = c->d_expert > c->shared_d_expert ? c->d_expert : c->shared_d_expert;
    return too_large(c->experts > 0 ? c->experts : 1, widest, c->d_model);
}

/* In the order of checking: a later line may rely on the earlier ones. */
static const et_contradiction contradictions[] = {
    {tokens_too_wide, "tokens", "d_model", "[tokens, width] cannot be addressed"},
    {too_many_logits, "tokens", "experts", "[tokens, experts] cannot be addressed"},
    {too_many_weights, "d_expert", "d_model", "the experts' weights cannot be addressed"},
    {micro_does_not_divide, "micro_batches", "tokens", "allowed: a divisor of tokens"},
    {top_k_above_experts, "top_k", "experts", "allowed: 1 to experts"},
    {granularity_is_not_top_k, "granularity", "top_k",
     "under rule tc granularity is top_k; leave it out"},
    {granularity_above_experts, "granularity", "experts", "allowed: 1 to experts"},
    {pool_does_not_divide, "pool_tokens", "tokens", "allowed: a divisor of tokens / micro_batches"},
    {pool_is_not_the_batch, "pool_tokens", "tokens",
     "allowed: tokens / micro_batches, the pool of et in training after its warm-up"},
    {target_is_zero, "pool_tokens", "experts",
     "k = floor(pool_tokens * granularity / experts) is 0; allowed: at least 1 (more tokens, or "
     "target_load)"},
    {target_above_pool, "target_load", "pool_tokens", "allowed: 1 to pool_tokens"},
    {tc_with_softmax_tokens, "gate", "rule", "a softmax over tokens is for ec and et"},
    {global_load_unused, "global_load", "balance",
     "allowed: false, or a balance that uses loads: aux|aux_error|lossfree|proportional"},
    {integer_gate, "gate", "input.source", "integers stay integers only with gate relu"},
    {integer_norm, "norm", "input.source", "integers stay integers only with norm none"},
    {integer_balance, "balance", "input.source", "integers stay integers only with balance none"},
    {integer_z_loss, "z_loss_coef", "input.source", "integers stay integers only with 0"},
    {skewed_dense, "input.source", "layer", "a dense layer has no expert to prefer"},
    {hot_beyond_experts, "input.hot", "experts", "allowed: 0 to experts - 1"},
};

const et_contradiction *et_case_contradiction(const et_case *c)
{
    for (size_t i = 0; i < sizeof contradictions / sizeof contradictions[0]; i++)
        if (contradictions[i].broken(c)) return &contradictions[i];
    return NULL;
}
