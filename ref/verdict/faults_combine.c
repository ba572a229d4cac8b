/* faults_combine.c: y, wrongly put together. See faults.h. */
#include "ref/verdict/faults.h"

/* ---- what the parts of the catalogue build y with ---- */

void et_add_row(size_t d, et_real factor, const et_real *from, et_real *to)
{
    for (size_t c = 0; c < d; c++) to[c] += factor * from[c];
}

et_real *et_y_of(et_mutant *m, size_t t)
{
    return m->s.fwd.y + t * m->moe.d;
}

et_real et_weight_in_y(const et_mutant *m, size_t slot)
{
    return m->s.fwd.slot_weight ? m->s.fwd.slot_weight[slot] : 1;
}

void et_add_slot(et_mutant *m, size_t t, size_t slot, et_real weight)
{
    size_t d = m->moe.d;
    et_add_row(d, weight, m->s.fwd.slot_out + slot * d, et_y_of(m, t));
}

void et_add_shared(et_mutant *m, size_t t, et_real factor)
{
    size_t d = m->moe.d;
    if (m->moe.hs > 0)
        et_add_row(d, factor * m->s.fwd.shared_weight[t], m->s.fwd.shared_out + t * d,
                   et_y_of(m, t));
}

void et_start_y(et_mutant *m, size_t t)
{
    et_scale_values(m->moe.d, 0, et_y_of(m, t));
    et_add_shared(m, t, 1);
}

/* ---- slots ---- */

/* Variant 0: each token's first slot; 1: its last; 2: the first slot of all; 3: the last of all. */
static void add_slot_again(et_mutant *m, const et_row *r)
{
    const int32_t *slots;
    size_t count = et_slots_of(&m->pick->a, r->t, &slots), last = m->a->slots;
    if (count == 0) return;
    size_t own = (size_t)(m->variant % 2 == 0 ? slots[0] : slots[count - 1]);
    size_t slot = m->pick->slots[own];
    if (m->variant < 2 || slot == (m->variant == 2 ? 0 : last - 1))
        et_add_slot(m, r->t, own, et_weight_in_y(m, own));
}

/* Form 0: only the last slot stays; 1: neither does the shared expert; 2: only the first stays. 3, 4, 5: the same,
 * and no gradient comes back to what was overwritten. */
static void overwrite_slots(et_mutant *m, const et_row *r)
{
    const int32_t *slots;
    size_t count = et_slots_of(&m->pick->a, r->t, &slots);
    if (count == 0) return;
    size_t kept = (size_t)slots[m->variant % 3 == 2 ? 0 : count - 1];
    et_scale_values(r->size, 0, r->values);
    if (m->variant % 3 != 1) et_add_shared(m, r->t, 1);
    et_add_slot(m, r->t, kept, et_weight_in_y(m, kept));
}

/* dw = 0, and dO = 0. */
static void overwritten(et_mutant *m, const et_row *r)
{
    const int32_t *slots;
    size_t count = et_slots_of(m->a, r->token, &slots);
    bool lost = r->expert == m->moe.n
                    ? count > 0 && m->variant % 3 == 1
                    : r->slot != (size_t)slots[m->variant % 3 == 2 ? 0 : count - 1];
    if (lost) et_scale_values(r->size, 0, r->values);
}

/* ---- the shared expert: its weights, and what autograd makes of it, dw and dO ---- */

ET_ROW(shared_is_nothing, if (r->expert == m->moe.n) et_scale_values(r->size, 0, r->values));
ET_ROW(shared_is_twice, if (r->expert == m->moe.n) et_scale_values(r->size, 2, r->values));
ET_ROW(y_without_shared, et_add_shared(m, r->t, -1));
ET_ROW(y_with_shared_twice, et_add_shared(m, r->t, 1));

/* By what a kernel that gates its experts may have gated the shared one at this token of the whole step. */
static et_real gate_for_shared(const et_mutant *m, size_t form, size_t token)
{
    const et_real *w = m->all.fwd.slot_weight;
    const int32_t *slots;
    size_t count = et_slots_of(m->a, token, &slots);
    et_real sum = 0;
    if (form == 0) return m->all.fwd.gates[token * m->moe.n];
    if (form == 1) return count > 0 ? w[slots[0]] : 1;
    for (size_t j = 0; j < count; j++) sum += w[slots[j]];
    return form == 2 ? sum : 1 - sum;
}

ET_ROW(gate_shared, if (r->expert == m->moe.n) *r->w *= gate_for_shared(m, m->variant, r->token));
ET_ROW(y_with_shared_gated,
       et_add_shared(m, r->t, gate_for_shared(m, m->variant - 4, r->token) - 1));

/* ---- permutations ---- */

int32_t *et_inverse_of_token_slots(et_mutant *m)
{
    int32_t *inverse = et_mutant_integers(m, m->a->slots);
    for (size_t q = 0; inverse && q < m->a->slots; q++) inverse[m->a->token_slots[q]] = (int32_t)q;
    return inverse;
}

/* Variant 0: weights and outputs are both read through the inverse; 1: outputs alone. All that comes
 * before is right, of whichever token. */
static void gather_y_by_inverse(et_mutant *m)
{
    size_t d = m->moe.d;
    const et_moe_values *all = &m->all.fwd;
    const int32_t *inverse = et_inverse_of_token_slots(m), *offsets = m->a->token_offsets;
    for (size_t t = 0; inverse && t < m->pick->count; t++) {
        size_t token = m->pick->tokens[t];
        et_start_y(m, t);
        for (int32_t q = offsets[token]; q < offsets[token + 1]; q++) {
            size_t slot = (size_t)inverse[q];
            size_t weight = m->variant == 0 ? slot : (size_t)m->a->token_slots[q];
            et_add_row(d, all->slot_weight[weight], all->slot_out + slot * d, et_y_of(m, t));
        }
    }
}

/* ---- the table ---- */

/* clang-format off */
static const et_hypothesis table[] = {
    {.doc = {"slot-added-twice", "a slot is added to y twice", "forward"},
     .applies = et_is_moe, .variants = {"each token's first", "each token's last", "the first of all", "the last of all"},
     .hooks = {{.at = ET_AT_Y, .row = add_slot_again}}},
    {.doc = {"second-slot-overwrites", "a token's slots overwrite each other in y", "forward"},
     .applies = et_is_moe, .variants = {"the last stays", "the last stays, without the shared expert", "the first stays", "the last stays, and from there back",
                  "the last stays, without the shared expert, and from there back", "the first stays, and from there back"},
     .hooks = {{.at = ET_AT_Y, .row = overwrite_slots}, {.at = ET_AT_DWEIGHT, .variants = 56, .row = overwritten},
               {.at = ET_AT_DOUT, .variants = 56, .row = overwritten}}},
    {.doc = {"shared-forgotten", "the shared expert is missing", "forward"},
     .applies = et_has_shared, .variants = {"", "in y alone", "in y, and from there back"},
     .hooks = {{.at = ET_AT_WEIGHTS, .variants = 1, .row = shared_is_nothing}, {.at = ET_AT_Y, .variants = 2 | 4, .row = y_without_shared},
               {.at = ET_AT_DWEIGHT, .variants = 4, .row = shared_is_nothing}, {.at = ET_AT_DOUT, .variants = 4, .row = shared_is_nothing}}},
    {.doc = {"shared-twice", "the shared expert is added twice", "forward"},
     .applies = et_has_shared, .variants = {"", "in y alone", "in y, and from there back"},
     .hooks = {{.at = ET_AT_WEIGHTS, .variants = 1, .row = shared_is_twice}, {.at = ET_AT_Y, .variants = 2 | 4, .row = y_with_shared_twice},
               {.at = ET_AT_DWEIGHT, .variants = 4, .row = shared_is_twice}, {.at = ET_AT_DOUT, .variants = 4, .row = shared_is_twice}}},
    {.doc = {"shared-gated", "the shared expert's output is multiplied by a gate", "forward"},
     .applies = et_has_shared,
     .variants = {"expert 0's", "the token's first slot's", "the sum over its slots", "1 minus that sum", "expert 0's, in y alone",
                  "the token's first slot's, in y alone", "the sum over its slots, in y alone", "1 minus that sum, in y alone"},
     .hooks = {{.at = ET_AT_WEIGHTS, .variants = 15, .row = gate_shared}, {.at = ET_AT_Y, .variants = 240, .row = y_with_shared_gated}}},
    {.doc = {"inverse-permutation", "slots are gathered by the inverse of token_slots", "forward"},
     .applies = et_is_moe, .variants = {"in y", "in y, with the right weights", "in dx"},
     .hooks = {{.at = ET_AT_Y, .variants = 3, .whole = gather_y_by_inverse}, {.at = ET_AT_DX, .variants = 4, .whole = et_gather_dx_by_inverse}}},
};
/* clang-format on */

const et_faults et_combine_faults = ET_FAULTS(table);
