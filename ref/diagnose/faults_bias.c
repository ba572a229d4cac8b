/* faults_bias.c: biases of experts, wrongly. See faults.h.
 *
 *     H = x W_up' + b_up      V = x W_gate' + b_gate      f(x) = A W_down' + b_down
 *     db = sum over the expert's rows of dH, dV, dO
 */
#include "ref/diagnose/faults.h"

static ET_SHOWS(weighs_biased_outputs, et_is_biased(s) && et_weighs_outputs(s));
static ET_SHOWS(has_biased_experts, et_is_biased(s) && et_has_many_experts(s));

/* ---- what is added to H, V and f(x) ---- */

static const et_real *bias_at(const et_row *r)
{
    return r->stage == ET_AT_PRE ? r->b_up : r->stage == ET_AT_GATE_PRE ? r->b_gate : r->b_down;
}

static ET_ALTERATION(without_bias, et_add_row(r->size, -1, bias_at(r), r->values));

static void neighbours_bias(et_mutant *m, const et_row *r)
{
    size_t n = m->moe.n, e = (r->expert + (m->fault.variant % 2 == 0 ? 1 : n - 1)) % n;
    const et_real *all = r->stage == ET_AT_PRE        ? m->moe.b_up
                         : r->stage == ET_AT_GATE_PRE ? m->moe.b_gate
                                                      : m->moe.b_down;
    et_add_row(r->size, -1, bias_at(r), r->values);
    et_add_row(r->size, 1, all + e * r->size, r->values);
}

/* ---- b_down in y ---- */

/* y += factor b_down of one slot. */
static void add_bias_of(const et_mutant *m, const et_row *r, size_t slot, et_real factor)
{
    size_t e = (size_t)m->pick->a.slot_expert[slot];
    et_add_row(r->size, factor, m->moe.b_down + e * r->size, r->values);
}

/* w A W_down' + b_down */
static void unweighted_bias(et_mutant *m, const et_row *r)
{
    const int32_t *slots;
    size_t count = et_slots_of(&m->pick->a, r->t, &slots);
    for (size_t j = 0; j < count; j++)
        add_bias_of(m, r, (size_t)slots[j], 1 - m->s.fwd.slot_weight[slots[j]]);
}

/* Of a token's slots only the first has it (form 0), or only the last. */
static void bias_once(et_mutant *m, const et_row *r)
{
    const int32_t *slots;
    size_t count = et_slots_of(&m->pick->a, r->t, &slots);
    for (size_t j = 0; j < count; j++) {
        et_real w = m->moe.weighs_input ? 1 : m->s.fwd.slot_weight[slots[j]];
        if (j != (m->fault.variant == 0 ? 0 : count - 1)) add_bias_of(m, r, (size_t)slots[j], -w);
    }
}

/* dw = <dy, A W_down'> */
static void dw_without_bias(et_mutant *m, const et_row *r)
{
    size_t d = m->moe.d;
    const et_real *dy = m->on->dy + (size_t)m->pick->a.slot_token[r->first] * d;
    for (size_t c = 0; c < d; c++) *r->dw -= dy[c] * r->b_down[c];
}

/* ---- db ---- */

static const et_real *summed(const et_row *r)
{
    return r->stage == ET_AT_DB_UP ? r->dH : r->stage == ET_AT_DB_GATE ? r->dV : r->dO;
}

/* All rows of that array in the sub-step. */
static const et_real *all_rows(const et_mutant *m, const et_row *r)
{
    const et_moe_grads *g = &m->s.bwd;
    return r->stage == ET_AT_DB_UP ? g->slot_pre : r->stage == ET_AT_DB_GATE ? g->slot_gate_pre : g->slot_out;
}

void et_bias_without_last(et_mutant *m, const et_row *r)
{
    (void)m;
    if (r->count > 0) et_add_row(r->size, -1, summed(r) + (r->count - 1) * r->size, r->values);
}

/* db_down from dy, not w dy. */
static void sum_of_dy(et_mutant *m, const et_row *r)
{
    if (r->expert == m->moe.n) return;
    et_scale_values(r->size, 0, r->values);
    for (size_t q = r->first; q < r->first + r->count; q++)
        et_add_row(r->size, 1, m->on->dy + (size_t)m->pick->a.slot_token[q] * r->size, r->values);
}

/* Form 0: over the rows of all experts; 1 to 4: on to whole tiles, into the next expert's rows. */
static void sum_of_more(et_mutant *m, const et_row *r)
{
    static const size_t tiles[] = {1, 16, 32, 64, 128};
    size_t tile = tiles[m->fault.variant], S = m->pick->a.slots;
    size_t end = r->first + (r->count + tile - 1) / tile * tile, first = r->first + r->count;
    if (!m->pick->whole) m->blocked = true;
    if (m->blocked || r->expert == m->moe.n) return;
    if (m->fault.variant == 0) first = 0, end = S;
    if (end > S) end = S;
    for (size_t q = first; q < end; q++) {
        bool own = q >= r->first && q < r->first + r->count;
        if (!own) et_add_row(r->size, 1, all_rows(m, r) + q * r->size, r->values);
    }
}

/* And their gradients go to that expert: each gets what its other neighbour's rows give. */
static void neighbours_gradient(et_mutant *m, const et_row *r)
{
    const et_assignment *a = &m->pick->a;
    size_t n = m->moe.n;
    if (!m->pick->whole) m->blocked = true;
    if (m->blocked || r->expert == n) return;
    size_t e = (r->expert + (m->fault.variant % 2 == 0 ? n - 1 : 1)) % n;
    et_scale_values(r->size, 0, r->values);
    for (size_t q = (size_t)a->expert_offsets[e]; q < (size_t)a->expert_offsets[e + 1]; q++)
        et_add_row(r->size, 1, all_rows(m, r) + q * r->size, r->values);
}

/* ---- the table ---- */

/* clang-format off */
static const et_hypothesis table[] = {
    {.doc = {"bias-forgotten", "an expert's bias is missing", "forward"},
     .applies = et_is_biased, .variants = {"b_up", "b_gate", "b_down", "all of them", "b_up, and its gradient", "b_gate, and its gradient", "b_down, and its gradient", "all of them, and their gradients"},
     .hooks = {{.at = ET_AT_PRE, .variants = 0x99, .row = without_bias}, {.at = ET_AT_GATE_PRE, .variants = 0xaa, .row = without_bias}, {.at = ET_AT_OUT, .variants = 0xcc, .row = without_bias},
               {.at = ET_AT_DB_UP, .variants = 0x90, .rows = et_zero_row}, {.at = ET_AT_DB_GATE, .variants = 0xa0, .rows = et_zero_row}, {.at = ET_AT_DB_DOWN, .variants = 0xc0, .rows = et_zero_row}}},
    {.doc = {"bias-of-neighbour", "the neighbouring expert's biases are added", "forward"},
     .applies = has_biased_experts, .variants = {"expert i+1", "expert i-1", "expert i+1, and their gradients", "expert i-1, and their gradients"},
     .hooks = {{.at = ET_AT_PRE, .who = et_is_routed, .row = neighbours_bias}, {.at = ET_AT_GATE_PRE, .who = et_is_routed, .row = neighbours_bias}, {.at = ET_AT_OUT, .who = et_is_routed, .row = neighbours_bias},
               {.at = ET_AT_DB_UP, .variants = 12, .rows = neighbours_gradient}, {.at = ET_AT_DB_GATE, .variants = 12, .rows = neighbours_gradient}, {.at = ET_AT_DB_DOWN, .variants = 12, .rows = neighbours_gradient}}},
    {.doc = {"down-bias-unweighted", "y takes w A W_down' + b_down: the weight misses the bias", "forward"},
     .applies = weighs_biased_outputs, .variants = {"in y alone", "in y, and from there back"},
     .hooks = {{.at = ET_AT_Y, .row = unweighted_bias}, {.at = ET_AT_DWEIGHT, .variants = 2, .who = et_is_routed, .row = dw_without_bias}, {.at = ET_AT_DB_DOWN, .variants = 2, .who = et_is_routed, .rows = sum_of_dy}}},
    {.doc = {"down-bias-once", "b_down is added once a token, not once a slot", "forward"},
     .applies = has_biased_experts, .variants = {"its first slot's", "its last slot's"}, .hooks = {{.at = ET_AT_Y, .row = bias_once}}},
    {.doc = {"bias-gradient-unweighted", "db_down is the sum of dy, not of w dy", "backward"},
     .applies = weighs_biased_outputs, .hooks = {{.at = ET_AT_DB_DOWN, .rows = sum_of_dy}}},
    {.doc = {"bias-gradient-over-more", "a bias's gradient is summed over more than its expert's rows", "backward"},
     .applies = has_biased_experts, .variants = {"all experts' rows", "whole tiles of 16", "whole tiles of 32", "whole tiles of 64", "whole tiles of 128"},
     .hooks = {{.at = ET_AT_DB_UP, .rows = sum_of_more}, {.at = ET_AT_DB_GATE, .rows = sum_of_more}, {.at = ET_AT_DB_DOWN, .rows = sum_of_more}}},
    {.doc = {"bias-gradient-lacks-last", "a bias's gradient lacks its expert's last row", "backward"},
     .applies = et_is_biased, .variants = {"", "db_up alone", "db_down alone"},
     .hooks = {{.at = ET_AT_DB_UP, .variants = 3, .rows = et_bias_without_last}, {.at = ET_AT_DB_GATE, .variants = 3, .rows = et_bias_without_last}, {.at = ET_AT_DB_DOWN, .variants = 5, .rows = et_bias_without_last}}},
    {.doc = {"bias-gradient-missing", "biases have no gradient", "backward"},
     .applies = et_is_biased, .variants = {"", "db_up and db_gate alone", "db_down alone"},
     .hooks = {{.at = ET_AT_DB_UP, .variants = 3, .rows = et_zero_row}, {.at = ET_AT_DB_GATE, .variants = 3, .rows = et_zero_row}, {.at = ET_AT_DB_DOWN, .variants = 5, .rows = et_zero_row}}},
};
/* clang-format on */

const et_faults et_bias_faults = ET_FAULTS(table);
