/* faults.c: the table of planted faults, and where each has a place. See candidate.h.
 *
 * A predicate says whether a fault means something in a case; whether it changed something in a given
 * run is cd_candidate's `planted`.
 *
 * Source of the list: bugs of MegaBlocks, ScatterMoE, vLLM, SGLang, TransformerEngine, Megatron-LM,
 * DeepEP, torchtitan, Tutel, PyTorch's grouped products and llama.cpp, found in their tests and bug
 * reports.
 */
#include "tests/candidates/faults.h"
#include "tests/candidates/candidate.h"

#include <string.h>

static bool always(const et_step *s)
{
    (void)s;
    return true;
}

/* ---- layer and sizes ---- */

static bool is_moe(const et_step *s)
{
    return s->c.layer == ET_MOE;
}

static bool is_square(const et_step *s)
{
    return s->c.d_model == s->c.d_expert && s->c.d_model > 1;
}

static bool many_experts(const et_step *s)
{
    return is_moe(s) && s->c.experts > 1;
}

static bool several_tokens(const et_step *s)
{
    return s->c.tokens > 1;
}

static bool several_columns(const et_step *s)
{
    return s->c.d_model > 1;
}

static bool has_shared(const et_step *s)
{
    return is_moe(s) && s->c.shared;
}

/* Some row goes through some expert. A candidate may route otherwise than the golden, but hardly
 * ever all of it: nobody is sure that an MoE layer has no slot. */
static bool has_rows(const et_step *s)
{
    (void)s;
    return true;
}

static bool has_slots(const et_step *s)
{
    return is_moe(s);
}

static bool has_fanout(const et_step *s)
{
    return many_experts(s) && (s->c.rule != ET_TC || s->c.top_k > 1);
}

static bool has_empty_expert(const et_step *s)
{
    return is_moe(s) && !et_case_routes_by_choice(&s->c);
}

/* ---- routing ---- */

static bool by_choice(const et_step *s)
{
    return is_moe(s) && et_case_routes_by_choice(&s->c);
}

static bool by_threshold(const et_step *s)
{
    return is_moe(s) && et_case_routes_by_threshold(&s->c);
}

static bool clamps(const et_step *s)
{
    return by_threshold(s) && !s->c.eval && s->c.has_capacity;
}

/* Somebody is ordered by score and index. */
static bool ranks(const et_step *s)
{
    return clamps(s) || by_choice(s) || (is_moe(s) && s->c.rule == ET_TC);
}

/* k matters, beyond TC's K: to EC's choice, or to the cutoffs and bounds of a training step. */
static bool uses_k(const et_step *s)
{
    return is_moe(s) && s->c.rule != ET_TC && !s->c.eval;
}

static bool can_take_more(const et_step *s)
{
    if (is_moe(s) && s->c.rule == ET_TC) return s->c.top_k < s->c.experts;
    return uses_k(s) && s->c.target_load < s->c.pool_tokens;
}

static bool can_take_less(const et_step *s)
{
    if (is_moe(s) && s->c.rule == ET_TC) return s->c.top_k > 1;
    return uses_k(s) && s->c.target_load > 1;
}

static bool k_is_cut(const et_step *s)
{
    size_t exact = s->c.pool_tokens * s->c.granularity, n = s->c.experts;
    return uses_k(s) && exact % n != 0 && s->c.target_load == exact / n;
}

/* The step has several pools (TC: micro-batches). */
static bool is_cut_up(const et_step *s)
{
    return is_moe(s) && s->c.pool_tokens < s->c.tokens;
}

static bool pool_is_a_part(const et_step *s)
{
    return is_cut_up(s) && uses_k(s);
}

static bool pools_in_micro_batches(const et_step *s)
{
    return is_moe(s) && s->c.rule != ET_TC && s->c.micro_batches > 1;
}

/* Everybody is ordered by score, not only whom a capacity clamps. */
static bool ranks_all(const et_step *s)
{
    return by_choice(s) || (is_moe(s) && s->c.rule == ET_TC);
}

static bool could_clamp(const et_step *s)
{
    return by_threshold(s) && s->c.eval && s->c.has_capacity;
}

static bool has_phases(const et_step *s)
{
    return (by_choice(s) || by_threshold(s)) && s->c.rule == ET_ET && !s->c.eval;
}

static bool has_pools(const et_step *s)
{
    return by_choice(s) && s->c.pool_tokens < et_case_micro_tokens(&s->c);
}

/* ---- state ---- */

static bool keeps_ema(const et_step *s)
{
    return s->in.ema != NULL;
}

static bool keeps_bias(const et_step *s)
{
    return s->in.bias != NULL;
}

static bool updates_ema(const et_step *s)
{
    return keeps_ema(s) && !s->c.eval;
}

static bool updates_bias(const et_step *s)
{
    return keeps_bias(s) && !s->c.eval;
}

static bool trains_by_threshold(const et_step *s)
{
    return updates_ema(s) && by_threshold(s);
}

static bool is_corrected(const et_step *s)
{
    return by_threshold(s) && s->c.ema_bias_correction && s->c.ema_updates > 0;
}

static bool is_uncorrected(const et_step *s)
{
    return by_threshold(s) && !s->c.ema_bias_correction;
}

static bool ema_in_micro_batches(const et_step *s)
{
    return updates_ema(s) && s->c.micro_batches > 1;
}

static bool bias_in_micro_batches(const et_step *s)
{
    return updates_bias(s) && s->in.load == NULL && s->c.micro_batches > 1;
}

static bool evaluates_ema(const et_step *s)
{
    return keeps_ema(s) && s->c.eval;
}

static bool evaluates_bias(const et_step *s)
{
    return keeps_bias(s) && s->c.eval;
}

/* Every whole number up to 256 has 8 bits, and so does many a given mean load. */
static bool counts_beyond_bf16(const et_step *s)
{
    return updates_bias(s) && (s->in.load != NULL || s->c.tokens > 256);
}

/* ---- gates, norms, losses ---- */

static bool has_anchor(const et_step *s)
{
    return is_moe(s) && et_gate_has_anchor(s->c.gate);
}

static bool anchor_weighs(const et_step *s)
{
    return is_moe(s) && et_step_layer(s).anchor_weighs_shared;
}

static bool has_plain_softmax(const et_step *s)
{
    return is_moe(s) && (s->c.gate == ET_GATE_SOFTMAX || s->c.gate == ET_GATE_SOFTMAX_TOKENS);
}

static bool has_softmax(const et_step *s)
{
    return has_anchor(s) || has_plain_softmax(s);
}

static bool has_norm(const et_step *s)
{
    return is_moe(s) && s->c.norm != ET_NORM_NONE;
}

static bool sums_gates(const et_step *s)
{
    return is_moe(s) && s->c.norm == ET_NORM_SUM;
}

static bool has_fanout_norm(const et_step *s)
{
    return is_moe(s) && s->c.norm == ET_NORM_FANOUT;
}

static bool has_shared_fanout(const et_step *s)
{
    return has_fanout_norm(s) && s->c.shared;
}

static bool has_no_norm(const et_step *s)
{
    return is_moe(s) && s->c.norm == ET_NORM_NONE;
}

/* One that can be mistaken for another: without an anchor to weigh the shared expert. */
static bool has_plain_gate(const et_step *s)
{
    return is_moe(s) && !et_gate_has_anchor(s->c.gate);
}

static bool has_aux(const et_step *s)
{
    return s->loss_aux != NULL;
}

static bool has_z_loss(const et_step *s)
{
    return s->loss_z != NULL;
}

static bool has_loss(const et_step *s)
{
    return has_aux(s) || has_z_loss(s);
}

static bool has_given_load(const et_step *s)
{
    return s->in.load != NULL && (has_aux(s) || updates_bias(s));
}

static bool by_token(const et_step *s)
{
    return is_moe(s) && s->c.rule == ET_TC;
}

static bool beyond_255(const et_step *s)
{
    return by_token(s) && s->c.experts > 256;
}

static bool keeps_thresholds(const et_step *s)
{
    return keeps_ema(s) && by_threshold(s);
}

static bool moves_in_proportion(const et_step *s)
{
    return updates_bias(s) && s->c.balance == ET_BALANCE_PROPORTIONAL;
}

static bool softens_parts(const et_step *s)
{
    return is_moe(s) && s->c.gate == ET_GATE_SOFTMAX_TOKENS && s->c.micro_batches > 1;
}

static bool softens_experts(const et_step *s)
{
    return many_experts(s) && s->c.gate == ET_GATE_SOFTMAX;
}

static bool clamps_sums(const et_step *s)
{
    return clamps(s) && sums_gates(s);
}

static bool has_own_aux(const et_step *s)
{
    return has_aux(s) && s->in.load == NULL && s->c.experts > 1;
}

static bool has_odd_width(const et_step *s)
{
    return s->c.d_model % 16 != 0;
}

static bool has_odd_width_of_experts(const et_step *s)
{
    return is_moe(s) && has_odd_width(s);
}

/* ---- the table ---- */

#define CD_ROW(number, name, stage, explained_by, applies, usual, what)                            \
    {name, what, stage, explained_by, applies, usual},

static const cd_fault table[] = {CD_ALL_FAULTS(CD_ROW)};

const cd_fault *cd_fault_at(size_t index)
{
    return index < CD_FAULTS ? &table[index] : NULL;
}

const cd_fault *cd_fault_find(const char *name)
{
    for (size_t i = 0; i < CD_FAULTS; i++)
        if (strcmp(table[i].name, name) == 0) return &table[i];
    return NULL;
}
