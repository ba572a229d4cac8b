/* faults_layout.c: slots in another order, or counted otherwise. See faults.h. All tokens are picked. */
#include "ref/diagnose/faults.h"

#include <string.h>

static ET_SHOWS(is_cut_up, et_is_moe(s) && s->c.pool_tokens < s->c.tokens);

static void inclusive_offsets(et_mutant *m)
{
    size_t n = m->moe.n;
    int32_t *offsets = et_mutant_integers(m, n + 1);
    for (size_t i = 0; offsets && i <= n; i++) offsets[i] = m->a->expert_offsets[i < n ? i + 1 : n];
    if (offsets) m->s.assignment.expert_offsets = offsets;
}

/* Slot q becomes the one that stands at place q of token_slots. */
static void *permuted(et_mutant *m, const void *before, size_t bytes)
{
    char *to = et_mutant_own(m, m->a->slots, bytes);
    for (size_t q = 0; to && q < m->a->slots; q++)
        memcpy(to + q * bytes, (const char *)before + (size_t)m->a->token_slots[q] * bytes, bytes);
    return to;
}

static void token_major(et_mutant *m)
{
    et_assignment *a = &m->s.assignment;
    int32_t *counted = m->fault.variant == 0 ? et_mutant_integers(m, m->a->slots) : NULL;
    for (size_t q = 0; counted && q < m->a->slots; q++) counted[q] = (int32_t)q;
    if (counted) a->token_slots = counted;
    a->slot_token = permuted(m, a->slot_token, sizeof *a->slot_token);
    a->slot_expert = permuted(m, a->slot_expert, sizeof *a->slot_expert);
    for (int i = 0; i < ET_STAGES; i++) {
        et_stage stage = (et_stage)i;
        et_real **array = et_array_at(&m->s, stage, false);
        if (array == NULL || *array == NULL || et_rows_at(stage) != ET_OF_SLOTS) continue;
        *array = permuted(m, *array, et_columns_at(&m->moe, stage, false) * sizeof **array);
    }
}

/* Whole numbers v become v % modulo + more. */
static void count_otherwise(et_mutant *m, int32_t **field, int32_t modulo, int32_t more)
{
    const int32_t *before = *field;
    int32_t *to = et_mutant_integers(m, m->a->slots);
    for (size_t j = 0; to && j < m->a->slots; j++) to[j] = before[j] % modulo + more;
    if (to) *field = to;
}

static ET_WHOLE(one_based, count_otherwise(m, &m->s.assignment.slot_expert, INT32_MAX, 1));

static ET_WHOLE(modulo_pool,
                count_otherwise(m, &m->s.assignment.slot_token, (int32_t)m->all.c.pool_tokens, 0));

/* ---- the table ---- */

/* clang-format off */
static const et_hypothesis table[] = {
    {.doc = {"offsets-inclusive", "expert_offsets say where experts end, not where they begin", "layout"},
     .applies = et_is_moe, .hooks = {{.at = ET_AT_LAYOUT, .whole = inclusive_offsets}}},
    {.doc = {"slots-token-major", "slots lie token by token, not expert by expert", "layout"},
     .applies = et_is_moe, .variants = {"", "token_slots as it should be"}, .hooks = {{.at = ET_AT_LAYOUT, .whole = token_major}}},
    {.doc = {"experts-one-based", "experts are counted from 1", "layout"},
     .applies = et_is_moe, .hooks = {{.at = ET_AT_LAYOUT, .whole = one_based}}},
    {.doc = {"tokens-modulo-pool", "tokens are counted from their pool's first", "layout"},
     .applies = is_cut_up, .hooks = {{.at = ET_AT_LAYOUT, .whole = modulo_pool}}},
};
/* clang-format on */

const et_faults et_layout_faults = ET_FAULTS(table);
