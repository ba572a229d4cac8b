/* parallel.c: which rows travel between ranks. See etref/parallel.h.
 *
 * Sender and receiver of a slot follow from its token and its expert: s = floor(t / Nl), q = floor(e / nl). The rest is
 * counting sorts by (s, j, q). Slots lie expert by expert, tokens ascending, so the order received is the order of slots,
 * and within a group of the order sent tokens ascend.
 */
#include "etref/parallel.h"
#include "ref/base/memory.h"
#include "ref/layers/layer_arguments.h"

#include <stdlib.h>
#include <string.h>

/* ---- whose a slot is ---- */

typedef struct place {
    size_t from, to;      /* s, q */
    size_t token, expert; /* on them: t mod Nl, j */
} place;

static size_t tokens_of(const et_parallel_plan *p)
{
    return p->tokens / p->ranks; /* Nl */
}

static size_t experts_of(const et_parallel_plan *p)
{
    return p->experts / p->ranks; /* nl */
}

static place place_of(const et_parallel_plan *p, const et_assignment *a, size_t slot)
{
    size_t t = (size_t)a->slot_token[slot], e = (size_t)a->slot_expert[slot];
    size_t Nl = tokens_of(p), nl = experts_of(p);
    return (place){t / Nl, e / nl, t % Nl, e % nl};
}

/* Index in [R,nl,R]. */
static size_t group_of(const et_parallel_plan *p, const place *x)
{
    return (x->from * experts_of(p) + x->expert) * p->ranks + x->to;
}

/* Tokens of a rank's expert that has the most. */
static size_t largest_load(const et_parallel_plan *p, const et_assignment *a, size_t rank)
{
    size_t nl = experts_of(p), most = 0;
    for (size_t e = rank * nl; e < (rank + 1) * nl; e++)
        if ((size_t)a->load[e] > most) most = (size_t)a->load[e];
    return most;
}

/* ---- one row a slot ---- */

static void count_rows(et_parallel_plan *p, const et_assignment *a)
{
    for (size_t slot = 0; slot < p->slots; slot++) {
        place x = place_of(p, a, slot);
        p->send_counts[group_of(p, &x)]++;
        p->send_begin[x.from + 1]++;
        p->recv_begin[x.to + 1]++;
    }
    for (size_t q = 0; q < p->ranks; q++) {
        p->send_begin[q + 1] += p->send_begin[q];
        p->recv_begin[q + 1] += p->recv_begin[q];
    }
}

static void place_rows(et_parallel_plan *p, const et_assignment *a, int32_t *next)
{
    size_t groups = p->ranks * p->experts;
    for (size_t g = 1; g < groups; g++) next[g] = next[g - 1] + p->send_counts[g - 1];
    for (size_t slot = 0; slot < p->slots; slot++) {
        place x = place_of(p, a, slot);
        int32_t row = next[group_of(p, &x)]++;
        p->send_slot[row] = p->recv_slot[slot] = (int32_t)slot;
        p->local_token[row] = (int32_t)x.token;
        p->local_expert[row] = (int32_t)x.expert;
    }
}

static void pad_rows(et_parallel_plan *p, const et_assignment *a)
{
    size_t nl = experts_of(p);
    for (size_t i = 0; i < p->ranks * p->padded; i++) p->recv_padded[i] = -1;
    for (size_t q = 0; q < p->ranks; q++) {
        size_t most = largest_load(p, a, q);
        p->recv_rows[q] = (int32_t)(nl * most);
        for (size_t e = q * nl; e < (q + 1) * nl; e++)
            for (int32_t i = 0; i < a->load[e]; i++)
                p->recv_padded[q * p->padded + (e % nl) * most + (size_t)i] =
                    a->expert_offsets[e] + i;
    }
}

/* ---- one copy a token and rank ---- */

static void count_copies(et_parallel_plan *p, const et_assignment *a)
{
    size_t R = p->ranks;
    for (size_t slot = 0; slot < p->slots; slot++) {
        place x = place_of(p, a, slot);
        uint8_t *there = &p->token_in_rank[(size_t)a->slot_token[slot] * R + x.to];
        p->tokens_per_rank[x.from * R + x.to] += *there == 0;
        *there = 1;
    }
    for (size_t i = 0; i < R * R; i++) {
        p->copies += (size_t)p->tokens_per_rank[i];
        p->rank_prefix[i] = p->tokens_per_rank[i] + (i >= R ? p->rank_prefix[i - R] : 0);
    }
}

static void place_copies(et_parallel_plan *p, const et_assignment *a)
{
    size_t R = p->ranks, nl = experts_of(p), copy = 0, listed = 0;
    for (size_t q = 0; q < R; q++)
        for (size_t t = 0; t < p->tokens; t++) {
            if (!p->token_in_rank[t * R + q]) continue;
            p->recv_token[copy] = (int32_t)t;
            int32_t *row = p->recv_topk + copy * p->widest;
            for (size_t k = 0; k < p->widest; k++) row[k] = -1;
            for (int32_t i = a->token_offsets[t]; i < a->token_offsets[t + 1]; i++) {
                size_t e = (size_t)a->slot_expert[a->token_slots[i]];
                if (e / nl != q) continue;
                row[i - a->token_offsets[t]] = (int32_t)(e % nl);
                p->recv_experts[listed++] = (int32_t)(e % nl);
            }
            p->recv_experts_begin[++copy] = (int32_t)listed;
        }
}

/* ---- the plan ---- */

static et_status integers(int32_t **out, size_t count, et_error *error)
{
    return et_allocate((void **)out, count, sizeof(int32_t), "parallel plan", error);
}

static et_status check_ranks(const et_assignment *a, size_t ranks, et_error *error)
{
    et_status status = et_assignment_check(a, error);
    if (status != ET_OK) return status;
    if (ranks == 0 || ranks > INT32_MAX)
        return et_fail(error, ET_EINVAL, "parallel plan: %zu ranks; 1 to 2^31-1", ranks);
    if (a->tokens % ranks != 0 || a->experts % ranks != 0)
        return et_fail(error, ET_EINVAL,
                       "parallel plan: %zu tokens and %zu experts on %zu ranks; the ranks must "
                       "divide both",
                       a->tokens, a->experts, ranks);
    return ET_OK;
}

static et_status measure(et_parallel_plan *p, const et_assignment *a, et_error *error)
{
    size_t R = p->ranks, most = 0;
    for (size_t q = 0; q < R; q++) {
        size_t of_rank = largest_load(p, a, q);
        most = of_rank > most ? of_rank : most;
    }
    p->padded = experts_of(p) * most;
    for (size_t t = 0; t < p->tokens; t++)
        if ((size_t)a->fanout[t] > p->widest) p->widest = (size_t)a->fanout[t];
    size_t largest = R * p->experts > R * R ? R * p->experts : R * R;
    if (p->tokens * R > largest) largest = p->tokens * R;
    if (R * p->padded > largest) largest = R * p->padded;
    if (largest <= INT32_MAX) return ET_OK;
    return et_fail(error, ET_EINVAL, "parallel plan: a table of %zu elements; at most 2^31-1",
                   largest);
}

/* Tables of slots; those of copies follow when these are counted. */
static et_status take_tables(et_parallel_plan *p, et_error *error)
{
    size_t R = p->ranks;
    et_status status;
    if ((status = integers(&p->send_counts, R * p->experts, error)) ||
        (status = integers(&p->send_slot, p->slots, error)) ||
        (status = integers(&p->send_begin, R + 1, error)) ||
        (status = integers(&p->recv_slot, p->slots, error)) ||
        (status = integers(&p->recv_begin, R + 1, error)) ||
        (status = integers(&p->recv_padded, R * p->padded, error)) ||
        (status = integers(&p->recv_rows, R, error)) ||
        (status = integers(&p->local_token, p->slots, error)) ||
        (status = integers(&p->local_expert, p->slots, error)) ||
        (status = integers(&p->tokens_per_rank, R * R, error)) ||
        (status = integers(&p->rank_prefix, R * R, error)) ||
        (status = integers(&p->recv_experts, p->slots, error)))
        return status;
    return et_allocate((void **)&p->token_in_rank, p->tokens * R, 1, "parallel plan", error);
}

et_status et_parallel_plan_build(et_parallel_plan *p, const et_assignment *a, size_t ranks,
                                 et_error *error)
{
    *p = (et_parallel_plan){0};
    int32_t *next = NULL;
    et_status status = check_ranks(a, ranks, error);
    if (status != ET_OK) return status;
    p->ranks = ranks;
    p->tokens = a->tokens;
    p->experts = a->experts;
    p->slots = a->slots;
    if ((status = measure(p, a, error)) || (status = take_tables(p, error)) ||
        (status = integers(&next, ranks * p->experts, error)))
        goto done;
    count_rows(p, a);
    place_rows(p, a, next);
    pad_rows(p, a);
    count_copies(p, a);
    if (p->widest > 0 && p->copies > INT32_MAX / p->widest)
        status = et_fail(error, ET_EINVAL,
                         "parallel plan: a table of %zu rows of %zu; at most 2^31-1 elements",
                         p->copies, p->widest);
    if (status != ET_OK || (status = integers(&p->recv_token, p->copies, error)) ||
        (status = integers(&p->recv_topk, p->copies * p->widest, error)) ||
        (status = integers(&p->recv_experts_begin, p->copies + 1, error)))
        goto done;
    place_copies(p, a);
done:
    free(next);
    if (status != ET_OK) et_parallel_plan_free(p);
    return status;
}

void et_parallel_plan_free(et_parallel_plan *p)
{
    int32_t *tables[] = {p->send_counts,  p->send_slot,          p->send_begin,      p->recv_slot,
                         p->recv_begin,   p->recv_padded,        p->recv_rows,       p->local_token,
                         p->local_expert, p->rank_prefix,        p->tokens_per_rank, p->recv_token,
                         p->recv_experts, p->recv_experts_begin, p->recv_topk};
    for (size_t i = 0; i < sizeof tables / sizeof *tables; i++) free(tables[i]);
    free(p->token_in_rank);
    *p = (et_parallel_plan){0};
}
