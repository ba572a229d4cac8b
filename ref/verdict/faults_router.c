/* faults_router.c: dp, dr and dx, wrongly. See faults.h. */
#include "ref/verdict/faults.h"

#include <string.h>

ET_WHERE(has_softmax, et_is_moe(s) && s->c.gate != ET_GATE_SIGMOID && s->c.gate != ET_GATE_RELU);
ET_WHERE(has_anchor_gradient, et_has_anchor(s) && et_step_layer(s).anchor_weighs_shared);

/* ---- dp ---- */

void et_weigh_backward(et_mutant *m, const et_row *r, et_real carried, et_real by)
{
    const int32_t *slots;
    const et_assignment *a = &m->pick->a;
    size_t n = m->moe.n, count = et_slots_of(a, r->t, &slots);
    for (size_t j = 0; j < count; j++) {
        size_t i = (size_t)a->slot_expert[slots[j]];
        et_real dw = m->s.bwd.slot_weight[slots[j]];
        r->values[i] = m->loss_gates[r->t * n + i] + (by != 0 ? (dw - carried) / by : 0);
    }
}

et_real et_carried(const et_mutant *m, size_t t)
{
    const int32_t *slots;
    size_t count = et_slots_of(&m->pick->a, t, &slots);
    et_real sum = 0;
    for (size_t j = 0; j < count; j++)
        sum += m->used.slot_weight[slots[j]] * m->s.bwd.slot_weight[slots[j]];
    return sum;
}

/* What gates are divided by under norm = sum; 1 under the others. */
static et_real sum_of_gates(const et_mutant *m, size_t t)
{
    const int32_t *slots;
    size_t count = et_slots_of(&m->pick->a, t, &slots);
    et_real sum = 0;
    for (size_t j = 0; j < count; j++)
        sum += m->used.gates[t * m->moe.n + (size_t)m->pick->a.slot_expert[slots[j]]];
    return m->moe.norm == ET_NORM_SUM ? sum : 1;
}

/* dp of the slots as if what they are divided by were a constant, or 1. */
ET_ROW(norm_is_constant, et_weigh_backward(m, r, 0, sum_of_gates(m, r->t)));

/* Variant 0: unselected gates get the dw of the token's first slot; 1: their share of the norm's
 * gradient, as if they stood in the sum. */
static void gradient_of_unselected(et_mutant *m, const et_row *r)
{
    const int32_t *slots;
    const uint8_t *mask = m->s.route.mask + r->t * m->moe.n;
    if (et_slots_of(&m->pick->a, r->t, &slots) == 0) return;
    et_real more = m->s.bwd.slot_weight[slots[0]], by = sum_of_gates(m, r->t);
    if (m->variant == 1)
        more = m->moe.norm == ET_NORM_SUM && by != 0 ? -et_carried(m, r->t) / by : 0;
    for (size_t i = 0; i < r->size; i++)
        if (!mask[i]) r->values[i] += more;
}

/* ---- dr ---- */

/* From dp and the losses' share of dr, with another slope of the gate. */
static void slope_one(et_mutant *m, const et_row *r)
{
    for (size_t i = 0, j = r->t * r->size; i < r->size; i++, j++)
        r->values[i] = m->loss_logits[j] + m->s.bwd.gates[j];
}

static void diagonal_alone(et_mutant *m, const et_row *r)
{
    for (size_t i = 0, j = r->t * r->size; i < r->size; i++, j++) {
        et_real p = m->used.gates[j];
        r->values[i] = m->loss_logits[j] + p * (1 - p) * m->s.bwd.gates[j];
    }
}

void et_gate_backward_again(et_mutant *m, const et_row *r, et_gate gate, const et_real *anchor,
                            const et_real *danchor)
{
    size_t n = m->moe.n, at = r->t * n;
    memcpy(r->values, m->loss_logits + at, n * sizeof(et_real));
    et_gate_backward(gate, 1, n, m->s.fwd.logits + at, m->used.gates + at, anchor,
                     m->s.bwd.gates + at, danchor, r->values);
}

ET_ROW(without_anchors_share,
       et_gate_backward_again(m, r, m->moe.gate, m->used.anchor + r->t, NULL));
ET_ROW(without_anchor_in_sum, et_gate_backward_again(m, r, ET_GATE_SOFTMAX, NULL, NULL));

static void selected_alone(et_mutant *m, const et_row *r)
{
    for (size_t i = 0; i < r->size; i++) r->values[i] *= m->s.route.mask[r->t * r->size + i];
}

/* ---- dx ---- */

/* dx_t += factor * the router's, the shared expert's or a slot's term. */
static void add_router_term(et_mutant *m, const et_row *r, et_real factor)
{
    size_t n = m->moe.n, d = m->moe.d;
    for (size_t i = 0; i < n; i++)
        et_add_row(d, factor * m->s.bwd.logits[r->t * n + i], m->moe.router + i * d, r->values);
}

static void add_shared_term(et_mutant *m, const et_row *r, et_real factor)
{
    size_t d = m->moe.d;
    if (m->moe.hs > 0 && et_take_shares(m))
        et_add_row(d, factor, m->shared_dx + r->t * d, r->values);
}

static void add_slot_term(et_mutant *m, const et_row *r, int32_t slot, et_real factor)
{
    size_t d = m->moe.d;
    if (et_take_shares(m)) et_add_row(d, factor, m->slot_dx + (size_t)slot * d, r->values);
}

ET_ROW(without_router_term, add_router_term(m, r, -1));
ET_ROW(without_shared_term, add_shared_term(m, r, -1));

static void without_routed_terms(et_mutant *m, const et_row *r)
{
    const int32_t *slots;
    size_t count = et_slots_of(&m->pick->a, r->t, &slots);
    for (size_t j = 0; j < count; j++) add_slot_term(m, r, slots[j], -1);
}

/* Variant 0: each token's last slot; 1: its first; 2 and 3: the same where it has several. */
static void without_one_slot(et_mutant *m, const et_row *r)
{
    const int32_t *slots;
    size_t count = et_slots_of(&m->pick->a, r->t, &slots);
    if (count == 0 || (m->variant > 1 && count == 1)) return;
    add_slot_term(m, r, slots[m->variant % 2 == 0 ? count - 1 : 0], -1);
}

/* Variant 0: of the slots only the last stays; 1: nor the shared expert; 2: nor the router's term. */
static void overwrite_dx(et_mutant *m, const et_row *r)
{
    const int32_t *slots;
    size_t count = et_slots_of(&m->pick->a, r->t, &slots);
    if (count == 0) return;
    et_scale_values(r->size, 0, r->values);
    add_slot_term(m, r, slots[count - 1], 1);
    if (m->variant == 0) add_shared_term(m, r, 1);
    if (m->variant < 2) add_router_term(m, r, 1);
}

void et_gather_dx_by_inverse(et_mutant *m)
{
    m->blocked = !m->pick->whole; /* shares of all slots are needed */
    if (m->blocked) return;
    const int32_t *inverse = et_inverse_of_token_slots(m), *offsets = m->a->token_offsets;
    for (size_t t = 0; inverse && t < m->pick->count; t++) {
        et_row r = {.t = t, .values = m->s.bwd.x + t * m->moe.d, .size = m->moe.d};
        et_scale_values(r.size, 0, r.values);
        for (int32_t q = offsets[t]; q < offsets[t + 1]; q++) add_slot_term(m, &r, inverse[q], 1);
        add_shared_term(m, &r, 1);
        add_router_term(m, &r, 1);
    }
}

/* ---- the table ---- */

/* clang-format off */
static const et_hypothesis table[] = {
    {.doc = {"norm-gradient", "the norm's sum is differentiated as a constant", "backward"},
     .applies = et_sums_gates, .variants = ET_ONE_FORM, .hooks = {{.at = ET_AT_DGATES, .row = norm_is_constant}}},
    {.doc = {"fanout-gradient", "dp is not divided by the fanout", "backward"},
     .applies = et_divides_by_fanout, .variants = ET_ONE_FORM, .hooks = {{.at = ET_AT_DGATES, .row = norm_is_constant}}},
    {.doc = {"gate-gradient-unselected", "a gradient flows through gates that were not selected", "backward"},
     .applies = et_is_moe, .variants = {"the dw of the token's first slot", "through the norm"}, .hooks = {{.at = ET_AT_DGATES, .row = gradient_of_unselected}}},
    {.doc = {"gate-derivative", "the gate's derivative is taken as 1", "backward"},
     .applies = et_is_moe, .variants = ET_ONE_FORM, .hooks = {{.at = ET_AT_DLOGITS, .row = slope_one}}},
    {.doc = {"softmax-diagonal", "the softmax Jacobian lacks what is off its diagonal", "backward"},
     .applies = has_softmax, .variants = ET_ONE_FORM, .hooks = {{.at = ET_AT_DLOGITS, .row = diagonal_alone}}},
    {.doc = {"anchor-share", "the gradient of the anchor's share is missing", "backward"},
     .applies = has_anchor_gradient, .variants = ET_ONE_FORM, .hooks = {{.at = ET_AT_DLOGITS, .row = without_anchors_share}}},
    {.doc = {"anchor-out-of-jacobian", "the softmax Jacobian's sum leaves the anchor out", "backward"},
     .applies = et_has_anchor, .variants = ET_ONE_FORM, .hooks = {{.at = ET_AT_DLOGITS, .row = without_anchor_in_sum}}},
    {.doc = {"dr-of-selected-alone", "dr is kept on the selected experts alone", "backward"},
     .applies = et_is_moe, .variants = ET_ONE_FORM, .hooks = {{.at = ET_AT_DLOGITS, .row = selected_alone}}},
    {.doc = {"router-term-in-dx", "dx lacks the router's term, dr W_r", "backward"},
     .applies = et_is_moe, .variants = ET_ONE_FORM, .hooks = {{.at = ET_AT_DX, .row = without_router_term}}},
    {.doc = {"shared-term-in-dx", "dx lacks the shared expert's term", "backward"},
     .applies = et_has_shared, .variants = ET_ONE_FORM, .hooks = {{.at = ET_AT_DX, .row = without_shared_term}}},
    {.doc = {"routed-term-in-dx", "dx lacks the routed experts' terms", "backward"},
     .applies = et_is_moe, .variants = ET_ONE_FORM, .hooks = {{.at = ET_AT_DX, .row = without_routed_terms}}},
    {.doc = {"slot-dx-dropped", "one slot's dx is lost", "backward"},
     .applies = et_is_moe, .variants = {"each token's last", "each token's first", "the last where there are several", "the first where there are several"},
     .hooks = {{.at = ET_AT_DX, .row = without_one_slot}}},
    {.doc = {"dx-overwrites", "a token's slots overwrite each other in dx", "backward"},
     .applies = et_is_moe, .variants = {"the last stays", "the last stays, without the shared expert's term", "the last stays, alone"},
     .hooks = {{.at = ET_AT_DX, .row = overwrite_dx}}},
};
/* clang-format on */

const et_faults et_router_faults = ET_FAULTS(table);
