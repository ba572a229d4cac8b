/* catalogue.c: all hypotheses, and what each can reach. See mutant.h and faults.h. */
#include "ref/step/case_kinds.h"
#include "ref/diagnose/faults.h"

#include <stddef.h>
#include <string.h>

#define BIT(stage) (1U << (stage))

/* Of each stage: on which earlier ones it depends, in which phase it is computed, what the rows of its array are, how
 * many columns they have, where it stands in a step, and the shared expert's. Selection and state are apart: what follows
 * from another mask is computed only for a mutant that is `rerouted`, and then all of it. */
#define AT(field) offsetof(et_step, field)
/* clang-format off */
static const struct {
    unsigned needs;
    et_phase phase;
    et_rows_are_of rows;
    const char *columns; /* a product of letters */
    size_t array, shared; /* 0: none */
} stages[ET_STAGES] = {
    [ET_AT_PLAN] = {0, ET_SELECTION, ET_NO_ROWS, "", 0, 0},
    [ET_AT_MASK] = {BIT(ET_AT_PLAN), ET_SELECTION, ET_NO_ROWS, "", 0, 0},
    [ET_AT_CUTOFF] = {BIT(ET_AT_PLAN), ET_SELECTION, ET_NO_ROWS, "", 0, 0},
    [ET_AT_STATE] = {BIT(ET_AT_CUTOFF), ET_SELECTION, ET_NO_ROWS, "", 0, 0},
    [ET_AT_GATES] = {0, ET_SCORES, ET_OF_TOKENS, "n", AT(fwd.gates), 0},
    [ET_AT_WEIGHTS] = {BIT(ET_AT_GATES), ET_SCORES, ET_OF_SLOTS, "1", AT(fwd.slot_weight), AT(fwd.shared_weight)},
    [ET_AT_PRE] = {0, ET_EXPERTS, ET_OF_SLOTS, "h", AT(fwd.slot_pre), AT(fwd.shared_pre)},
    [ET_AT_GATE_PRE] = {0, ET_EXPERTS, ET_OF_SLOTS, "h", AT(fwd.slot_gate_pre), AT(fwd.shared_gate_pre)},
    [ET_AT_ACT] = {BIT(ET_AT_PRE) | BIT(ET_AT_GATE_PRE), ET_EXPERTS, ET_OF_SLOTS, "h", AT(fwd.slot_act), AT(fwd.shared_act)},
    [ET_AT_OUT] = {BIT(ET_AT_ACT), ET_EXPERTS, ET_OF_SLOTS, "d", AT(fwd.slot_out), AT(fwd.shared_out)},
    [ET_AT_MIX] = {BIT(ET_AT_WEIGHTS), ET_COMBINE, ET_OF_SLOTS, "1", 0, 0},
    [ET_AT_Y] = {BIT(ET_AT_MIX) | BIT(ET_AT_OUT), ET_COMBINE, ET_OF_TOKENS, "d", AT(fwd.y), 0},
    [ET_AT_LOSSES] = {BIT(ET_AT_GATES), ET_LOSSES, ET_NO_ROWS, "", 0, 0},
    [ET_AT_DWEIGHT] = {BIT(ET_AT_OUT), ET_COMBINE_BACKWARD, ET_OF_SLOTS, "1", AT(bwd.slot_weight), AT(bwd.shared_weight)},
    [ET_AT_DOUT] = {BIT(ET_AT_WEIGHTS), ET_COMBINE_BACKWARD, ET_OF_SLOTS, "d", AT(bwd.slot_out), AT(bwd.shared_out)},
    [ET_AT_DDOWN] = {BIT(ET_AT_DOUT) | BIT(ET_AT_ACT), ET_EXPERTS_BACKWARD, ET_OF_EXPERTS, "hd", AT(bwd.down), AT(bwd.shared_down)},
    [ET_AT_DACT] = {BIT(ET_AT_DOUT), ET_EXPERTS_BACKWARD, ET_OF_SLOTS, "h", AT(bwd.slot_act), AT(bwd.shared_act)},
    [ET_AT_DPRE] = {BIT(ET_AT_DACT) | BIT(ET_AT_PRE) | BIT(ET_AT_GATE_PRE), ET_EXPERTS_BACKWARD, ET_OF_SLOTS, "h", AT(bwd.slot_pre), AT(bwd.shared_pre)},
    [ET_AT_DGATE_PRE] = {BIT(ET_AT_DACT) | BIT(ET_AT_PRE) | BIT(ET_AT_GATE_PRE), ET_EXPERTS_BACKWARD, ET_OF_SLOTS, "h", AT(bwd.slot_gate_pre), AT(bwd.shared_gate_pre)},
    [ET_AT_DUP] = {BIT(ET_AT_DPRE), ET_EXPERTS_BACKWARD, ET_OF_EXPERTS, "hd", AT(bwd.up), AT(bwd.shared_up)},
    [ET_AT_DGATING] = {BIT(ET_AT_DGATE_PRE), ET_EXPERTS_BACKWARD, ET_OF_EXPERTS, "hd", AT(bwd.gating), AT(bwd.shared_gating)},
    [ET_AT_DB_UP] = {BIT(ET_AT_DPRE), ET_EXPERTS_BACKWARD, ET_OF_EXPERTS, "h", AT(bwd.b_up), AT(bwd.shared_b_up)},
    [ET_AT_DB_GATE] = {BIT(ET_AT_DGATE_PRE), ET_EXPERTS_BACKWARD, ET_OF_EXPERTS, "h", AT(bwd.b_gate), AT(bwd.shared_b_gate)},
    [ET_AT_DB_DOWN] = {BIT(ET_AT_DOUT), ET_EXPERTS_BACKWARD, ET_OF_EXPERTS, "d", AT(bwd.b_down), AT(bwd.shared_b_down)},
    [ET_AT_SLOT_DX] = {BIT(ET_AT_DPRE) | BIT(ET_AT_DGATE_PRE), ET_SCORE_BACKWARD, ET_OF_SLOTS, "d", 0, 0},
    [ET_AT_DGATES] = {BIT(ET_AT_DWEIGHT) | BIT(ET_AT_WEIGHTS) | BIT(ET_AT_LOSSES), ET_SCORE_BACKWARD, ET_OF_TOKENS, "n", AT(bwd.gates), 0},
    [ET_AT_DLOGITS] = {BIT(ET_AT_DGATES) | BIT(ET_AT_GATES) | BIT(ET_AT_LOSSES), ET_SCORE_BACKWARD, ET_OF_TOKENS, "n", AT(bwd.logits), 0},
    [ET_AT_DROUTER] = {BIT(ET_AT_DLOGITS), ET_SCORE_BACKWARD, ET_OF_ALL, "nd", AT(bwd.router), 0},
    [ET_AT_DX] = {BIT(ET_AT_SLOT_DX) | BIT(ET_AT_DLOGITS), ET_SCORE_BACKWARD, ET_OF_TOKENS, "d", AT(bwd.x), 0},
    [ET_AT_LAYOUT] = {0, ET_LAYOUT, ET_NO_ROWS, "", 0, 0},
};
/* clang-format on */

/* Where weights stand on the experts' inputs: on which stages more depends. dw = <dX, x> comes last of all that experts
 * leave on their way back, and so do the dX. */
static unsigned needs_of(const et_case *c, et_stage stage)
{
    const unsigned see_inputs = BIT(ET_AT_PRE) | BIT(ET_AT_GATE_PRE) | BIT(ET_AT_DUP) | BIT(ET_AT_DGATING) | BIT(ET_AT_DX);
    unsigned more = 0;
    if (weighs_inputs(c) && see_inputs >> stage & 1) more = BIT(ET_AT_WEIGHTS);
    if (weighs_inputs(c) && stage == ET_AT_DWEIGHT) more = BIT(ET_AT_SLOT_DX);
    return stages[stage].needs | more;
}

/* What the backward pass takes from the forward pass. */
static const unsigned forward = BIT(ET_AT_DWEIGHT) - BIT(ET_AT_GATES);

et_stage et_stage_of(const char *tensor)
{
    et_stage stage = et_tensors[et_tensor_find(tensor)].stage;
    return stage < ET_STAGES ? stage : ET_STAGES;
}

et_phase et_phase_of(et_stage stage)
{
    return stage < ET_STAGES ? stages[stage].phase : ET_PHASES;
}

unsigned et_stages_of(const et_case *c, et_phase phase)
{
    unsigned all = 0;
    for (int i = 0; i < ET_STAGES; i++)
        if (stages[i].phase == phase) all |= BIT(i);
    if (weighs_inputs(c) && phase == ET_EXPERTS_BACKWARD) all |= BIT(ET_AT_DWEIGHT);
    return all;
}

/* ---- arrays of stages ---- */

et_rows_are_of et_rows_at(et_stage stage)
{
    return stages[stage].rows;
}

size_t et_columns_at(const et_moe *moe, et_stage stage, bool shared)
{
    size_t columns = 1;
    for (const char *c = stages[stage].columns; *c; c++) {
        if (*c == 'd') columns *= moe->d;
        if (*c == 'h') columns *= shared ? moe->hs : moe->h;
        if (*c == 'n') columns *= moe->n;
    }
    return columns;
}

const char *et_tensor_at(et_stage stage, bool shared)
{
    for (et_tensor_id id = ET_LAST_INPUT + 1; id < ET_TENSORS; id++) {
        bool of_shared = strstr(et_tensors[id].doc.name, "shared") != NULL;
        if (et_tensors[id].stage == stage && of_shared == shared) return et_tensors[id].doc.name;
    }
    return "";
}

et_real **et_array_at(et_step *s, et_stage stage, bool shared)
{
    size_t at = shared ? stages[stage].shared : stages[stage].array;
    return at ? (et_real **)((char *)s + at) : NULL;
}

void et_take_arrays(et_step *to, et_step *room, et_phase phase)
{
    for (int i = 0; i < 2 * ET_STAGES; i++) {
        et_stage stage = (et_stage)(i / 2);
        et_real **array = et_array_at(to, stage, i % 2);
        if (array && stages[stage].phase == phase) *array = *et_array_at(room, stage, i % 2);
    }
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

const char *et_hypothesis_form(const et_hypothesis *what, size_t variant)
{
    if (variant == 0 && what->variants[0] == NULL) return "";
    return variant < ET_MAX_VARIANTS ? what->variants[variant] : NULL;
}

et_stage et_hypothesis_starts(const et_hypothesis *what, size_t variant)
{
    int stage = 0;
    while (stage < ET_STAGES && !et_hypothesis_hook(what, variant, (et_stage)stage, NULL)) stage++;
    return (et_stage)stage;
}

/* What follows from what is `seen` by now, and from the hypothesis's hooks. */
static unsigned reach_from(const et_case *c, const et_hypothesis *what, size_t variant,
                           bool forward_only, unsigned seen)
{
    unsigned all = seen;
    for (int i = 0; i < ET_STAGES; i++) {
        if (i == (int)ET_AT_DWEIGHT && forward_only) seen &= ~forward;
        if (!(needs_of(c, (et_stage)i) & seen) &&
            !et_hypothesis_hook(what, variant, (et_stage)i, NULL))
            continue;
        seen |= BIT(i);
        all |= BIT(i);
    }
    return all;
}

unsigned et_hypothesis_reach(const et_case *c, const et_hypothesis *what, size_t variant,
                             bool forward_only)
{
    unsigned all = reach_from(c, what, variant, forward_only, 0);
    /* dw stands before what it may come from */
    return weighs_inputs(c) ? reach_from(c, what, variant, forward_only, all) : all;
}

/* ---- where a hypothesis can show at all ---- */

ET_SHOWS(et_is_moe, s->c.layer == ET_MOE);
ET_SHOWS(et_weighs_outputs, et_is_moe(s) && !s->c.weighs_input);
ET_SHOWS(et_is_biased, s->c.expert_bias);
ET_SHOWS(et_has_shared, et_is_moe(s) && s->c.shared);
ET_SHOWS(et_is_relu2, s->c.activation == ET_RELU2);
ET_SHOWS(et_is_gated, s->c.activation == ET_SWIGLU);
ET_SHOWS(et_has_many_experts, et_is_moe(s) && s->c.experts > 1);
ET_SHOWS(et_by_choice, et_is_moe(s) && et_case_routes_by_choice(&s->c));
ET_SHOWS(et_by_threshold, et_is_moe(s) && et_case_routes_by_threshold(&s->c));
ET_SHOWS(et_has_pools_in_batch, et_by_choice(s) && s->c.pool_tokens < et_case_real_tokens(&s->c));
ET_SHOWS(et_has_anchor, et_is_moe(s) && et_gate_has_anchor(s->c.gate));
ET_SHOWS(et_sums_gates, et_is_moe(s) && s->c.norm == ET_NORM_SUM);
ET_SHOWS(et_divides_by_fanout, et_is_moe(s) && s->c.norm == ET_NORM_FANOUT);
ET_SHOWS(et_has_aux, s->loss_aux != NULL);
ET_SHOWS(et_has_bias, s->in.bias != NULL);

/* ---- rows, and what becomes of them ---- */

ET_CHOICE(et_is_routed, r->expert < m->moe.n);
ET_CHOICE(et_is_shared_row, r->expert == m->moe.n);
ET_ALTERATION(et_zero_row, et_scale_values(r->size, 0, r->values));
ET_ALTERATION(et_double_row, et_scale_values(r->size, 2, r->values));
ET_ALTERATION(et_halve_row, et_scale_values(r->size, 0.5, r->values));
ET_ALTERATION(et_weigh_row, et_scale_values(r->size, (double)*r->w, r->values));

int32_t *et_inverse_of_token_slots(et_mutant *m)
{
    int32_t *inverse = et_mutant_integers(m, m->a->slots);
    for (size_t q = 0; inverse && q < m->a->slots; q++) inverse[m->a->token_slots[q]] = (int32_t)q;
    return inverse;
}

/* ---- all of them: in the order in which they are tried ---- */

static const et_faults *const parts[] = {
    &et_routing_faults, &et_token_faults,    &et_choice_faults,  &et_state_faults,   &et_forward_faults,
    &et_activation_faults, &et_input_faults,   &et_bias_faults,    &et_padding_faults,
    &et_backward_faults,   &et_loss_faults,    &et_row_faults,     &et_layout_faults,
    &et_precision_faults,  &et_model_faults,   &et_rank_faults};

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
