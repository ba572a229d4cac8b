/* catalogue.c: all hypotheses, and what each can reach. See mutant.h and faults.h. */
#include "ref/verdict/faults.h"

#include <string.h>

#define BIT(stage) (1U << (stage))

/* On which earlier stages each one depends. Selection and state are apart: what follows from another
 * mask is computed only for a mutant that is `rerouted`, and then all of it. */
static const unsigned needs[ET_STAGES] = {
    [ET_AT_MASK] = BIT(ET_AT_PLAN),
    [ET_AT_CUTOFF] = BIT(ET_AT_PLAN),
    [ET_AT_STATE] = BIT(ET_AT_CUTOFF),
    [ET_AT_WEIGHTS] = BIT(ET_AT_GATES),
    [ET_AT_ACT] = BIT(ET_AT_PRE),
    [ET_AT_OUT] = BIT(ET_AT_ACT),
    [ET_AT_Y] = BIT(ET_AT_WEIGHTS) | BIT(ET_AT_OUT),
    [ET_AT_LOSSES] = BIT(ET_AT_GATES),
    [ET_AT_DWEIGHT] = BIT(ET_AT_OUT),
    [ET_AT_DOUT] = BIT(ET_AT_WEIGHTS),
    [ET_AT_DDOWN] = BIT(ET_AT_DOUT) | BIT(ET_AT_ACT),
    [ET_AT_DACT] = BIT(ET_AT_DOUT),
    [ET_AT_DPRE] = BIT(ET_AT_DACT) | BIT(ET_AT_PRE),
    [ET_AT_DUP] = BIT(ET_AT_DPRE),
    [ET_AT_SLOT_DX] = BIT(ET_AT_DPRE),
    [ET_AT_DGATES] = BIT(ET_AT_DWEIGHT) | BIT(ET_AT_WEIGHTS) | BIT(ET_AT_LOSSES),
    [ET_AT_DLOGITS] = BIT(ET_AT_DGATES) | BIT(ET_AT_GATES) | BIT(ET_AT_LOSSES),
    [ET_AT_DROUTER] = BIT(ET_AT_DLOGITS),
    [ET_AT_DX] = BIT(ET_AT_SLOT_DX) | BIT(ET_AT_DLOGITS),
};

/* What the backward pass takes from the forward pass. */
static const unsigned forward = BIT(ET_AT_GATES) | BIT(ET_AT_WEIGHTS) | BIT(ET_AT_PRE) |
                                BIT(ET_AT_ACT) | BIT(ET_AT_OUT) | BIT(ET_AT_Y) | BIT(ET_AT_LOSSES);

et_stage et_stage_of(const char *tensor)
{
    et_stage stage = et_tensors[et_tensor_find(tensor)].stage;
    return stage < ET_STAGES ? stage : ET_STAGES;
}

/* ---- one hypothesis ---- */

static bool is_hook(const et_hook *h)
{
    return h->settings || h->whole || h->row || h->rows;
}

const et_hook *et_hypothesis_hook(const et_hypothesis *what, size_t variant, et_stage stage,
                                  const et_hook *after)
{
    for (const et_hook *h = after ? after + 1 : what->hooks; h != what->hooks + ET_MAX_HOOKS; h++) {
        if (!is_hook(h)) return NULL;
        if (h->at == stage && (h->variants == 0 || (h->variants >> variant & 1))) return h;
    }
    return NULL;
}

bool et_hypothesis_has(const et_hypothesis *what, size_t variant)
{
    return variant < ET_MAX_VARIANTS && what->variants[variant] != NULL;
}

et_stage et_hypothesis_starts(const et_hypothesis *what, size_t variant)
{
    int stage = 0;
    while (stage < ET_STAGES && !et_hypothesis_hook(what, variant, (et_stage)stage, NULL)) stage++;
    return (et_stage)stage;
}

unsigned et_hypothesis_reach(const et_hypothesis *what, size_t variant, bool forward_only)
{
    unsigned all = 0, seen = 0; /* seen: by the stages that follow */
    for (int i = 0; i < ET_STAGES; i++) {
        if (i == ET_AT_DWEIGHT && forward_only) seen &= ~forward;
        if (!(needs[i] & seen) && !et_hypothesis_hook(what, variant, (et_stage)i, NULL)) continue;
        seen |= BIT(i);
        all |= BIT(i);
    }
    return all;
}

/* ---- where a hypothesis can show at all ---- */

bool et_is_moe(const et_step *s)
{
    return s->c.layer == ET_MOE;
}

bool et_has_shared(const et_step *s)
{
    return et_is_moe(s) && s->c.shared;
}

bool et_has_many_experts(const et_step *s)
{
    return et_is_moe(s) && s->c.experts > 1;
}

bool et_by_choice(const et_step *s)
{
    return et_is_moe(s) && et_case_routes_by_choice(&s->c);
}

bool et_by_threshold(const et_step *s)
{
    return et_is_moe(s) && et_case_routes_by_threshold(&s->c);
}

bool et_has_anchor(const et_step *s)
{
    return et_is_moe(s) && et_gate_has_anchor(s->c.gate);
}

bool et_sums_gates(const et_step *s)
{
    return et_is_moe(s) && s->c.norm == ET_NORM_SUM;
}

bool et_divides_by_fanout(const et_step *s)
{
    return et_is_moe(s) && s->c.norm == ET_NORM_FANOUT;
}

bool et_has_aux(const et_step *s)
{
    return s->loss_aux != NULL;
}

/* ---- all of them ---- */

static const et_faults *const parts[] = {
    &et_selection_faults, &et_state_faults,    &et_weight_faults, &et_expert_faults,
    &et_combine_faults,   &et_backward_faults, &et_router_faults, &et_loss_faults,
    &et_layout_faults,    &et_precision_faults};

const et_hypothesis *et_hypothesis_row(size_t index)
{
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        if (index < parts[i]->count) return &parts[i]->table[index];
        index -= parts[i]->count;
    }
    return NULL;
}

const et_hypothesis_doc *et_hypothesis_at(size_t index)
{
    const et_hypothesis *what = et_hypothesis_row(index);
    return what ? &what->doc : NULL;
}
