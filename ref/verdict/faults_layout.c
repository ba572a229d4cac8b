/* faults_layout.c: slots in another order, or counted otherwise. See faults.h. All tokens are picked. */
#include "ref/verdict/faults.h"

#include <string.h>

ET_WHERE(is_cut_up, et_is_moe(s) && s->c.pool_tokens < s->c.tokens);

static void inclusive_offsets(et_mutant *m)
{
    size_t n = m->moe.n;
    int32_t *offsets = et_mutant_integers(m, n + 1);
    for (size_t i = 0; offsets && i <= n; i++) offsets[i] = m->a->expert_offsets[i < n ? i + 1 : n];
    if (offsets) m->s.assignment.expert_offsets = offsets;
}

/* Slot q becomes the one that stands at place q of token_slots. */
static void permute_integers(et_mutant *m, int32_t **field)
{
    const int32_t *before = *field;
    int32_t *to = et_mutant_integers(m, m->a->slots);
    for (size_t q = 0; to && q < m->a->slots; q++) to[q] = before[m->a->token_slots[q]];
    if (to) *field = to;
}

static void permute_rows(et_mutant *m, et_real **field, size_t width)
{
    const et_real *before = *field;
    et_real *to = before ? et_mutant_reals(m, m->a->slots * width) : NULL;
    for (size_t q = 0; to && q < m->a->slots; q++)
        memcpy(to + q * width, before + (size_t)m->a->token_slots[q] * width,
               width * sizeof *before);
    if (to) *field = to;
}

static void token_major(et_mutant *m)
{
    size_t d = m->moe.d, h = m->moe.h, S = m->a->slots;
    et_moe_values *f = &m->s.fwd;
    et_moe_grads *g = &m->s.bwd;
    int32_t *counted = et_mutant_integers(m, S);
    for (size_t q = 0; counted && q < S; q++) counted[q] = (int32_t)q;
    permute_integers(m, &m->s.assignment.slot_token);
    permute_integers(m, &m->s.assignment.slot_expert);
    if (counted && m->variant == 0) m->s.assignment.token_slots = counted;
    permute_rows(m, &f->slot_weight, 1);
    permute_rows(m, &f->slot_pre, h);
    permute_rows(m, &f->slot_act, h);
    permute_rows(m, &f->slot_out, d);
    permute_rows(m, &g->slot_weight, 1);
    permute_rows(m, &g->slot_out, d);
    permute_rows(m, &g->slot_act, h);
    permute_rows(m, &g->slot_pre, h);
}

/* A copy of whole numbers, to be changed; NULL where there are none. */
static int32_t *renew_integers(et_mutant *m, int32_t **field, size_t count)
{
    const int32_t *before = *field;
    int32_t *to = before ? et_mutant_integers(m, count) : NULL;
    if (to == NULL) return NULL;
    memcpy(to, before, count * sizeof *to);
    *field = to;
    return to;
}

static void one_based(et_mutant *m)
{
    size_t S = m->a->slots;
    int32_t *experts = renew_integers(m, &m->s.assignment.slot_expert, S);
    for (size_t j = 0; experts && j < S; j++) experts[j]++;
}

static void modulo_pool(et_mutant *m)
{
    size_t S = m->a->slots;
    int32_t P = (int32_t)m->all.c.pool_tokens;
    int32_t *tokens = renew_integers(m, &m->s.assignment.slot_token, S);
    for (size_t j = 0; tokens && j < S; j++) tokens[j] %= P;
}

/* ---- the table ---- */

/* clang-format off */
static const et_hypothesis table[] = {
    {.doc = {"offsets-inclusive", "expert_offsets say where experts end, not where they begin", "layout"},
     .applies = et_is_moe, .variants = ET_ONE_FORM, .hooks = {{.at = ET_AT_LAYOUT, .whole = inclusive_offsets}}},
    {.doc = {"slots-token-major", "slots lie token by token, not expert by expert", "layout"},
     .applies = et_is_moe, .variants = {"", "token_slots as it should be"}, .hooks = {{.at = ET_AT_LAYOUT, .whole = token_major}}},
    {.doc = {"experts-one-based", "experts are counted from 1", "layout"},
     .applies = et_is_moe, .variants = ET_ONE_FORM, .hooks = {{.at = ET_AT_LAYOUT, .whole = one_based}}},
    {.doc = {"tokens-modulo-pool", "tokens are counted from their pool's first", "layout"},
     .applies = is_cut_up, .variants = ET_ONE_FORM, .hooks = {{.at = ET_AT_LAYOUT, .whole = modulo_pool}}},
};
/* clang-format on */

const et_faults et_layout_faults = ET_FAULTS(table);
