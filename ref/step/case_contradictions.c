/* case_contradictions.c: fields of a case that are legal each alone, but not together.
 *
 * A row of the list names the two fields that clash, so that a message can show both values, and says
 * what is allowed. Fields that merely do not apply (top_k under et) are not here: their own row in
 * case_fields.c knows.
 */
#include "ref/step/case_contradictions.h"
#include "ref/base/memory.h"
#include "ref/step/case_kinds.h"

/* Whether a*b*c doubles can be addressed. */
static bool fits(size_t a, size_t b, size_t c)
{
    size_t count, bytes;
    return et_size_mul(a, b, &count) && et_size_mul(count, c, &count) &&
           et_size_mul(count, sizeof(double), &bytes) && bytes <= PTRDIFF_MAX;
}

/* Normal deviates, each times a factor. */
static bool is_scaled_normal(et_input_source source)
{
    return source == ET_INPUT_NORMAL || source == ET_INPUT_OUTLIER || source == ET_INPUT_TINY ||
           source == ET_INPUT_HUGE;
}

/* Of the layers around the experts, those whose arrays a model keeps. */
static bool can_be_captured(const et_case *c)
{
    return c->input.source == ET_INPUT_CHECKPOINT &&
           (is_rmsnorm(c) || is_attention(c) || is_cross_entropy(c));
}

bool et_case_contradiction(const et_case *c, et_contradiction *first)
{
    size_t widest = c->d_expert > c->shared_d_expert ? c->d_expert : c->shared_d_expert;
    size_t micro = et_case_micro_tokens(c), weights = c->experts > 0 ? c->experts : 1;
    size_t real = micro > c->padding ? micro - c->padding : 1;
    bool pools = is_ec_or_et(c), skewed = c->input.source == ET_INPUT_SKEWED;
    bool integers = c->input.source == ET_INPUT_INTEGER && is_moe(c);
    bool whole = c->input.source == ET_INPUT_INTEGER && is_ffn(c);
    bool by_threshold = et_case_routes_by_threshold(c) && !c->eval;
    const struct {
        bool clash;
        et_contradiction what;
    } list[] = {
        {!fits(c->tokens, c->d_model, 1) || !fits(c->tokens, widest, 1),
         {"tokens", "d_model", "[tokens, width] cannot be addressed"}},
        {!fits(c->tokens, c->experts, 1),
         {"tokens", "experts", "[tokens, experts] cannot be addressed"}},
        {!fits(weights, widest, c->d_model),
         {"d_expert", "d_model", "the experts' weights cannot be addressed"}},
        {has_ranks(c) && c->tokens % c->ranks != 0,
         {"ranks", "tokens", "allowed: a divisor of tokens"}},
        {is_ep(c) && c->experts % c->ranks != 0,
         {"ranks", "experts", "allowed: a divisor of experts"}},
        {is_ep(c) && c->micro_batches != 1,
         {"micro_batches", "parallel", "allowed: 1, whose rows the ranks exchange"}},
        {is_dp(c) && c->micro_batches % c->ranks != 0,
         {"micro_batches", "ranks", "allowed: a multiple of ranks, those of all ranks together"}},
        {c->tokens % c->micro_batches != 0,
         {"micro_batches", "tokens", "allowed: a divisor of tokens"}},
        {is_tc(c) && c->top_k > c->experts, {"top_k", "experts", "allowed: 1 to experts"}},
        {has_padding(c) && c->padding >= micro,
         {"padding", "tokens", "allowed: less than tokens / micro_batches"}},
        {has_padding(c) && c->gate == ET_GATE_SOFTMAX_TOKENS,
         {"padding", "gate", "allowed: 0; a softmax over tokens is over all of a micro-batch"}},
        {has_groups(c) && c->experts % c->groups != 0,
         {"groups", "experts", "allowed: a divisor of experts"}},
        {has_groups(c) && c->groups_kept > c->groups,
         {"groups_kept", "groups", "allowed: 1 to groups"}},
        {has_groups(c) && c->top_k > c->experts / c->groups * c->groups_kept,
         {"top_k", "groups_kept", "allowed: at most the experts of groups_kept groups"}},
        {has_groups(c) && c->group_score == ET_GROUP_TOP2 && c->experts / c->groups < 2,
         {"group_score", "groups", "a group of one expert has no second best; allowed: max"}},
        {is_tc(c) && c->has_capacity && c->capacity_factor == 0,
         {"capacity_factor", "rule", "under rule tc allowed: more than 0, or null"}},
        {is_tc(c) && c->granularity != c->top_k,
         {"granularity", "top_k", "under rule tc granularity is top_k; leave it out"}},
        {is_moe(c) && c->granularity > c->experts,
         {"granularity", "experts", "allowed: 1 to experts"}},
        {pools && real % c->pool_tokens != 0,
         {"pool_tokens", "tokens", "allowed: a divisor of tokens / micro_batches - padding"}},
        {by_threshold && c->pool_tokens != real,
         {"pool_tokens", "tokens",
          "allowed: tokens / micro_batches - padding, the pool of et in training after its "
          "warm-up"}},
        {pools && c->target_load == 0,
         {"pool_tokens", "experts",
          "k = floor(pool_tokens * granularity / experts) is 0; allowed: at least 1 (more tokens, "
          "or target_load)"}},
        {pools && c->target_load > c->pool_tokens,
         {"target_load", "pool_tokens", "allowed: 1 to pool_tokens"}},
        {is_tc(c) && c->gate == ET_GATE_SOFTMAX_TOKENS,
         {"gate", "rule", "a softmax over tokens is for ec and et"}},
        {c->global_load && c->balance == ET_BALANCE_NONE,
         {"global_load", "balance",
          "allowed: false, or a balance that uses loads: aux|aux_error|lossfree|proportional"}},
        {whole && c->activation != ET_RELU2,
         {"activation", "input.source", "integers stay integers only with relu2"}},
        {integers && c->gate != ET_GATE_RELU,
         {"gate", "input.source", "integers stay integers only with gate relu"}},
        {integers && c->norm != ET_NORM_NONE,
         {"norm", "input.source", "integers stay integers only with norm none"}},
        {integers && c->routed_scale != 1,
         {"routed_scale", "input.source", "integers stay integers only with 1"}},
        {has_ranks(c) && c->weighs_input,
         {"weigh", "parallel", "allowed: output; rows that travel between ranks are not weighted"}},
        {has_ranks(c) && c->padding > 0,
         {"padding", "parallel", "allowed: 0; ranks exchange real tokens alone"}},
        {has_ranks(c) && c->expert_bias,
         {"expert_bias", "parallel", "allowed: false; ranks have no gradients of biases"}},
        {integers && c->balance != ET_BALANCE_NONE,
         {"balance", "input.source", "integers stay integers only with balance none"}},
        {integers && c->z_loss_coef != 0,
         {"z_loss_coef", "input.source", "integers stay integers only with 0"}},
        {!is_ffn(c) && c->input.source != ET_INPUT_NONE && !is_scaled_normal(c->input.source) &&
             !can_be_captured(c),
         {"input.source", "layer",
          "for a layer of the model: normal, outlier, tiny or huge; rmsnorm, attention and "
          "cross_entropy: checkpoint, too"}},
        {c->eval && c->input.source == ET_INPUT_CHECKPOINT,
         {"mode", "input.source", "what is captured is a step of training"}},
        {c->input.source == ET_INPUT_CHECKPOINT && c->activation != ET_RELU2,
         {"activation", "input.source", "a model's experts have relu2"}},
        {c->input.source == ET_INPUT_CHECKPOINT && c->padding > 0,
         {"padding", "input.source", "a model's tokens are all real"}},
        {c->input.source == ET_INPUT_CHECKPOINT && c->expert_bias,
         {"expert_bias", "input.source", "a model's experts have none"}},
        {c->input.source == ET_INPUT_CHECKPOINT && c->weighs_input,
         {"weigh", "input.source", "a model weighs outputs"}},
        {c->input.source == ET_INPUT_CHECKPOINT && has_groups(c),
         {"groups", "input.source", "a model's experts stand in one group"}},
        {c->input.source == ET_INPUT_CHECKPOINT && is_tc(c) && c->has_capacity,
         {"capacity_factor", "input.source",
          "a model's token choice drops nothing; allowed: null"}},
        {has_heads(c) && c->d_model % c->heads != 0,
         {"heads", "d_model", "allowed: a divisor of d_model"}},
        {is_rope(c) && c->d_model / c->heads % 2 != 0,
         {"heads", "d_model", "d_model / heads, the width of a head, must be even"}},
        {is_attention(c) && (c->kv_heads > c->heads || c->heads % c->kv_heads != 0),
         {"kv_heads", "heads", "allowed: a divisor of heads"}},
        {has_sequences(c) && (c->sequence > c->tokens || c->tokens % c->sequence != 0),
         {"sequence", "tokens", "allowed: a divisor of tokens"}},
        {is_rope(c) && c->sequence > 1 << 20, {"sequence", "layer", "allowed: 1 to 1048576"}},
        {is_attention(c) && !fits(c->tokens, 3, c->d_model),
         {"tokens", "d_model", "[q;k;v] cannot be addressed"}},
        {is_cross_entropy(c) && (!fits(c->tokens, c->vocab, 1) || !fits(c->vocab, c->d_model, 1)),
         {"vocab", "tokens", "[tokens, vocab] or [vocab, d_model] cannot be addressed"}},
        {skewed && is_dense(c), {"input.source", "layer", "a dense layer has no expert to prefer"}},
        {skewed && is_moe(c) && c->input.hot >= c->experts,
         {"input.hot", "experts", "allowed: 0 to experts - 1"}},
    };
    for (size_t i = 0; i < sizeof list / sizeof *list; i++)
        if (list[i].clash) {
            *first = list[i].what;
            return true;
        }
    return false;
}
