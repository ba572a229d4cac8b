/* looks.c: where a hypothesis is tried: on which tokens, in which of them and of the experts it holds. See inquiry.h. */
#include "ref/base/memory.h"
#include "ref/verdict/inquiry.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- scopes ---- */

enum { NAMED = 8 };

/* "experts 1, 4" */
static void list_marks(char *text, size_t room, const char *one, const uint8_t *marks, size_t count)
{
    size_t marked = et_count_marks(marks, count), used = 0;
    used += (size_t)snprintf(text, room, "%s%s", one, marked > 1 ? "s" : "");
    const char *before = " ";
    for (size_t i = 0; i < count && used < room; i++)
        if (marks[i]) {
            used += (size_t)snprintf(text + used, room - used, "%s%zu", before, i);
            before = ", ";
        }
}

static void add_scope(et_scopes *s, int tier, const uint8_t *experts, const uint8_t *tokens,
                      const char *text)
{
    et_named_scope *new = &s->list[s->count++];
    *new = (et_named_scope){.at = {experts, tokens}, .tier = tier};
    snprintf(new->text, sizeof new->text, "%s", text);
}

et_status et_scopes_make(et_scopes *s, const et_inquiry *q, et_error *error)
{
    size_t n = et_experts_of(q), N = q->right->c.tokens;
    char text[96];
    bool has_shared = q->right->c.layer == ET_MOE && q->right->c.shared;
    void *room;
    *s = (et_scopes){0};
    et_status status = et_allocate(&room, 2 * (n + 1), 1, "scopes", error);
    if (status != ET_OK) return status;
    s->routed = room;
    s->shared = s->routed + n + 1;
    memset(s->routed, 1, n);
    s->shared[n] = 1;
    add_scope(s, 0, NULL, NULL, "everywhere");
    if (has_shared) {
        add_scope(s, 0, s->routed, NULL, "routed experts");
        add_scope(s, 0, s->shared, NULL, "shared expert");
    }
    if (q->bad_experts > 0 && q->bad_experts <= NAMED && !q->bad_expert[n] && q->bad_experts < n) {
        list_marks(text, sizeof text, "expert", q->bad_expert, n);
        add_scope(s, 1, q->bad_expert, NULL, text);
    }
    if (q->bad_tokens > 0 && q->bad_tokens <= NAMED && q->bad_tokens < N) {
        list_marks(text, sizeof text, "token", q->bad_token, N);
        add_scope(s, 2, NULL, q->bad_token, text);
    }
    return ET_OK;
}

/* ---- looks: on how many tokens ---- */

enum { FEW_BAD = 4, FEW_GOOD = 2, SOME_BAD = 16, SOME_GOOD = 8, MOST_OF_ONE = 512 };

/* Does every expert of token t stand in `experts`? NULL: yes. */
static bool goes_only_to(const et_inquiry *q, size_t t, const uint8_t *experts)
{
    const et_assignment *a = &q->right->assignment;
    if (experts == NULL || q->right->c.layer != ET_MOE) return true;
    for (int32_t j = a->token_offsets[t]; j < a->token_offsets[t + 1]; j++)
        if (!experts[a->slot_expert[a->token_slots[j]]]) return false;
    return true;
}

/* Adds up to `most` tokens that are bad, or are not, spread over all of them. */
static void pick_tokens(const et_inquiry *q, bool bad, size_t most, const uint8_t *experts,
                        uint8_t *tokens)
{
    size_t N = q->right->c.tokens, have = 0, taken = 0;
    for (size_t t = 0; t < N; t++)
        have += (q->bad_token[t] != 0) == bad && goes_only_to(q, t, experts);
    for (size_t t = 0, at = 0; t < N && have > 0; t++) {
        if ((q->bad_token[t] != 0) != bad || !goes_only_to(q, t, experts)) continue;
        if (at++ * most / have < taken) continue;
        tokens[t] = 1;
        taken++;
    }
}

/* The expert whose tokens are all looked at: with the fewest tokens among the bad ones, or of all. */
static size_t smallest_expert(const et_inquiry *q)
{
    const et_assignment *a = &q->right->assignment;
    size_t best = a->experts;
    for (int only_bad = 1; only_bad >= 0 && best == a->experts; only_bad--)
        for (size_t i = 0; i < a->experts; i++)
            if (a->load[i] > 0 && a->load[i] <= MOST_OF_ONE && (q->bad_expert[i] || !only_bad) &&
                (best == a->experts || a->load[i] < a->load[best]))
                best = i;
    return best;
}

static void add_expert(const et_inquiry *q, size_t i, uint8_t *tokens)
{
    const et_assignment *a = &q->right->assignment;
    if (i >= a->experts) return;
    for (int32_t j = a->expert_offsets[i]; j < a->expert_offsets[i + 1]; j++)
        tokens[a->slot_token[j]] = 1;
}

/* The experts of the first bad token (or of the first token), so that a look takes few weights. */
static void first_experts(const et_inquiry *q, uint8_t *experts)
{
    const et_assignment *a = &q->right->assignment;
    size_t N = q->right->c.tokens, t = 0;
    if (q->right->c.layer != ET_MOE) return;
    while (t < N && !(q->bad_token[t] && a->fanout[t] > 0)) t++;
    for (size_t i = 0; t == N && i < a->experts; i++)
        if (q->bad_expert[i] && a->load[i] > 0) t = (size_t)a->slot_token[a->expert_offsets[i]];
    if (t == N) t = 0;
    for (int32_t j = a->token_offsets[t]; j < a->token_offsets[t + 1]; j++)
        experts[a->slot_expert[a->token_slots[j]]] = 1;
}

et_status et_looks_open(et_looks *l, const et_inquiry *q, et_error *error)
{
    const et_judgement *j = q->j;
    size_t N = q->right->c.tokens, n = et_experts_of(q);
    void *room;
    *l = (et_looks){0};
    if (q->small) {
        l->count = 1;
        return et_subject_open(&l->on[0], q->right, j->candidate, j->count, NULL, error);
    }
    et_status status = et_allocate(&room, N + n, 1, "picked tokens", error);
    if (status != ET_OK) return status;
    uint8_t *tokens = room, *experts = tokens + N;
    first_experts(q, experts);
    pick_tokens(q, true, FEW_BAD, experts, tokens);
    pick_tokens(q, false, FEW_GOOD, experts, tokens);
    status = et_subject_open(&l->on[0], q->right, j->candidate, j->count, tokens, error);
    if (status == ET_OK) l->count = 1;
    pick_tokens(q, true, SOME_BAD, NULL, tokens);
    pick_tokens(q, false, SOME_GOOD, NULL, tokens);
    if (q->right->c.layer == ET_MOE) add_expert(q, smallest_expert(q), tokens);
    if (status == ET_OK)
        status = et_subject_open(&l->on[1], q->right, j->candidate, j->count, tokens, error);
    if (status == ET_OK) l->count = 2;
    free(room);
    return status;
}

void et_looks_close(et_looks *l)
{
    for (size_t i = 0; i < l->count; i++) et_subject_close(&l->on[i]);
}
