/* parallel_check.c: what holds of every plan. See etref/parallel.h.
 *
 * Each array is held against the assignment, in another way than it is made: sums, marks and memberships, so that what is
 * free (the order of rows within a group) stays free.
 */
#include "etref/parallel.h"
#include "ref/base/memory.h"
#include "ref/layers/layer_arguments.h"

#include <stdlib.h>

typedef struct check {
    const et_parallel_plan *p;
    const et_assignment *a;
    size_t R, Nl, nl;
    uint8_t *seen; /* [S] marks, zeroed between uses */
    et_error *error;
} check;

static size_t sender(const check *c, size_t slot)
{
    return (size_t)c->a->slot_token[slot] / c->Nl;
}

static size_t receiver(const check *c, size_t slot)
{
    return (size_t)c->a->slot_expert[slot] / c->nl;
}

static size_t local_expert(const check *c, size_t slot)
{
    return (size_t)c->a->slot_expert[slot] % c->nl;
}

/* Groups in the order sent, (s, j, q), and received, (q, j, s). */
static size_t sent_group(const check *c, size_t slot)
{
    return (sender(c, slot) * c->nl + local_expert(c, slot)) * c->R + receiver(c, slot);
}

static size_t received_group(const check *c, size_t slot)
{
    return (receiver(c, slot) * c->nl + local_expert(c, slot)) * c->R + sender(c, slot);
}

/* ---- rows: each slot once, groups together ---- */

static et_status check_rows(const check *c, const char *name, const int32_t *slots,
                            size_t (*group)(const check *c, size_t slot))
{
    size_t before = 0;
    for (size_t i = 0; i < c->a->slots; i++) c->seen[i] = 0;
    for (size_t i = 0; i < c->a->slots; i++) {
        size_t slot = (size_t)slots[i];
        if (slots[i] < 0 || slot >= c->a->slots)
            return et_fail(c->error, ET_EINVAL, "%s[%zu] = %d is no slot", name, i, (int)slots[i]);
        if (c->seen[slot]++)
            return et_fail(c->error, ET_EINVAL, "%s[%zu]: slot %zu stands there twice", name, i,
                           slot);
        if (group(c, slot) < before)
            return et_fail(c->error, ET_EINVAL,
                           "%s[%zu]: slot %zu (token %d, expert %d) belongs further ahead", name, i,
                           slot, (int)c->a->slot_token[slot], (int)c->a->slot_expert[slot]);
        before = group(c, slot);
    }
    return ET_OK;
}

/* Do they begin where the rows of ranks before them end? */
static et_status check_begin(const check *c, const char *name, const int32_t *begin,
                             size_t (*rank)(const check *c, size_t slot))
{
    int32_t at = 0;
    for (size_t q = 0; q <= c->R; q++) {
        if (begin[q] != at)
            return et_fail(c->error, ET_EINVAL,
                           "%s[%zu] = %d, but %d rows belong to the ranks before", name, q,
                           (int)begin[q], (int)at);
        for (size_t slot = 0; slot < c->a->slots; slot++) at += rank(c, slot) == q;
    }
    return ET_OK;
}

/* ---- counts ---- */

/* [s][j][q] where [q][j][s] is meant: output splits for input splits. */
static bool is_transposed(const check *c, const int32_t *own)
{
    for (size_t g = 0; g < c->R * c->a->experts; g++) {
        size_t s = g / c->a->experts, j = g / c->R % c->nl, q = g % c->R;
        if (c->p->send_counts[g] != own[(q * c->nl + j) * c->R + s]) return false;
    }
    return true;
}

static et_status compare_counts(const check *c, const int32_t *own)
{
    const int32_t *counts = c->p->send_counts;
    size_t g = 0, all = c->R * c->a->experts;
    while (g < all && counts[g] == own[g]) g++;
    if (g == all) return ET_OK;
    size_t s = g / c->a->experts, j = g / c->R % c->nl, q = g % c->R;
    if (is_transposed(c, own))
        return et_fail(
            c->error, ET_EINVAL,
            "send_counts is transposed: [s,j,q] holds the rows that rank q sends to rank s");
    return et_fail(
        c->error, ET_EINVAL,
        "send_counts[%zu,%zu,%zu] = %d; %d slots go from rank %zu to local expert %zu of "
        "rank %zu",
        s, j, q, (int)counts[g], (int)own[g], s, j, q);
}

static et_status check_counts(const check *c)
{
    int32_t *own;
    et_status status =
        et_allocate((void **)&own, c->R * c->a->experts, sizeof *own, "parallel plan", c->error);
    if (status != ET_OK) return status;
    for (size_t slot = 0; slot < c->a->slots; slot++) own[sent_group(c, slot)]++;
    status = compare_counts(c, own);
    free(own);
    return status;
}

/* ---- padding ---- */

static et_status check_padded(const check *c)
{
    const et_parallel_plan *p = c->p;
    for (size_t i = 0; i < c->a->slots; i++) c->seen[i] = 0;
    for (size_t q = 0; q < c->R; q++) {
        int32_t most = 0;
        for (size_t e = q * c->nl; e < (q + 1) * c->nl; e++)
            most = c->a->load[e] > most ? c->a->load[e] : most;
        for (size_t i = 0; i < p->padded; i++) {
            int32_t slot = p->recv_padded[q * p->padded + i];
            size_t j = most > 0 ? i / (size_t)most : c->nl, row = most > 0 ? i % (size_t)most : 0;
            bool filled = j < c->nl && row < (size_t)c->a->load[q * c->nl + j];
            bool fits = filled ? slot >= 0 && (size_t)slot < c->a->slots &&
                                     (size_t)c->a->slot_expert[slot] == q * c->nl + j &&
                                     c->seen[slot]++ == 0
                               : slot == -1;
            if (!fits)
                return et_fail(
                    c->error, ET_EINVAL, "recv_padded[%zu,%zu] = %d; %s", q, i, (int)slot,
                    filled ? "a slot of that expert belongs there, once" : "-1 belongs there");
        }
    }
    return ET_OK;
}

static et_status check_padded_rows(const check *c)
{
    for (size_t q = 0; q < c->R; q++) {
        int32_t most = 0;
        for (size_t e = q * c->nl; e < (q + 1) * c->nl; e++)
            most = c->a->load[e] > most ? c->a->load[e] : most;
        if ((int64_t)c->p->recv_rows[q] != (int64_t)c->nl * most)
            return et_fail(c->error, ET_EINVAL,
                           "recv_rows[%zu] = %d; %zu experts of at most %d rows are there", q,
                           (int)c->p->recv_rows[q], c->nl, (int)most);
    }
    return ET_OK;
}

/* ---- local numbers, of rows as they are sent ---- */

/* Under the plan's own order, or where it shows none that of a plan. */
static et_status check_local(const check *c, const int32_t *order)
{
    for (size_t i = 0; i < c->a->slots; i++) {
        size_t slot = (size_t)order[i];
        int32_t token = c->a->slot_token[slot] % (int32_t)c->Nl;
        int32_t expert = c->a->slot_expert[slot] % (int32_t)c->nl;
        if (c->p->local_token && c->p->local_token[i] != token)
            return et_fail(c->error, ET_EINVAL,
                           "local_token[%zu] = %d; token %d is number %d of its rank's %zu", i,
                           (int)c->p->local_token[i], (int)c->a->slot_token[slot], (int)token,
                           c->Nl);
        if (c->p->local_expert && c->p->local_expert[i] != expert)
            return et_fail(c->error, ET_EINVAL,
                           "local_expert[%zu] = %d; expert %d is number %d of its rank's %zu", i,
                           (int)c->p->local_expert[i], (int)c->a->slot_expert[slot], (int)expert,
                           c->nl);
    }
    return ET_OK;
}

/* ---- copies ---- */

/* Local experts of a token on a rank. */
static size_t experts_there(const check *c, size_t t, size_t q)
{
    size_t count = 0;
    for (int32_t i = c->a->token_offsets[t]; i < c->a->token_offsets[t + 1]; i++)
        count += receiver(c, (size_t)c->a->token_slots[i]) == q;
    return count;
}

static et_status check_membership(const check *c)
{
    for (size_t t = 0; t < c->a->tokens; t++)
        for (size_t q = 0; q < c->R; q++)
            if ((c->p->token_in_rank[t * c->R + q] != 0) != (experts_there(c, t, q) > 0))
                return et_fail(c->error, ET_EINVAL,
                               "token_in_rank[%zu,%zu]: %zu experts of that rank take the token", t,
                               q, experts_there(c, t, q));
    return ET_OK;
}

static et_status check_copies(const check *c)
{
    const et_parallel_plan *p = c->p;
    for (size_t q = 0; q < c->R; q++) {
        int32_t before = 0;
        for (size_t s = 0; s < c->R; s++) {
            int32_t count = 0;
            for (size_t t = s * c->Nl; t < (s + 1) * c->Nl; t++)
                count += experts_there(c, t, q) > 0;
            before += count;
            if (p->tokens_per_rank && p->tokens_per_rank[s * c->R + q] != count)
                return et_fail(
                    c->error, ET_EINVAL,
                    "tokens_per_rank[%zu,%zu] = %d; %d tokens of the one have experts on "
                    "the other",
                    s, q, (int)p->tokens_per_rank[s * c->R + q], (int)count);
            if (p->rank_prefix && p->rank_prefix[s * c->R + q] != before)
                return et_fail(c->error, ET_EINVAL,
                               "rank_prefix[%zu,%zu] = %d; the ranks up to it send %d tokens", s, q,
                               (int)p->rank_prefix[s * c->R + q], (int)before);
        }
    }
    return ET_OK;
}

/* Has the copy's row of recv_topk each local expert of its token once, and else -1? */
static bool lists_experts(const check *c, size_t copy, size_t t, size_t q)
{
    const int32_t *row = c->p->recv_topk + copy * c->p->widest;
    size_t listed = 0, there = 0;
    for (size_t k = 0; k < c->p->widest; k++) listed += row[k] != -1;
    for (int32_t i = c->a->token_offsets[t]; i < c->a->token_offsets[t + 1]; i++) {
        size_t slot = (size_t)c->a->token_slots[i], times = 0;
        if (receiver(c, slot) != q) continue;
        for (size_t k = 0; k < c->p->widest; k++)
            times += row[k] >= 0 && (size_t)row[k] == local_expert(c, slot);
        if (times != 1) return false;
        there++;
    }
    return listed == there;
}

/* One copy, the next that there must be. */
static et_status check_copy(const check *c, size_t copy, size_t t, size_t q, size_t *listed)
{
    const et_parallel_plan *p = c->p;
    if (p->recv_token && (size_t)p->recv_token[copy] != t)
        return et_fail(c->error, ET_EINVAL,
                       "recv_token[%zu] = %d; rank %zu receives token %zu here", copy,
                       (int)p->recv_token[copy], q, t);
    if (p->recv_experts_begin && (size_t)p->recv_experts_begin[copy] != *listed)
        return et_fail(c->error, ET_EINVAL, "recv_experts_begin[%zu] = %d; %zu experts come before",
                       copy, (int)p->recv_experts_begin[copy], *listed);
    if (p->recv_topk && !lists_experts(c, copy, t, q))
        return et_fail(
            c->error, ET_EINVAL,
            "recv_topk[%zu,.]: not the local experts of token %zu on rank %zu, each once, and -1",
            copy, t, q);
    for (int32_t i = c->a->token_offsets[t]; i < c->a->token_offsets[t + 1]; i++) {
        size_t slot = (size_t)c->a->token_slots[i];
        if (receiver(c, slot) != q) continue;
        if (p->recv_experts && (size_t)p->recv_experts[*listed] != local_expert(c, slot))
            return et_fail(
                c->error, ET_EINVAL,
                "recv_experts[%zu] = %d; token %zu has local expert %zu of rank %zu here", *listed,
                (int)p->recv_experts[*listed], t, local_expert(c, slot), q);
        ++*listed;
    }
    return ET_OK;
}

static et_status check_received(const check *c)
{
    size_t copy = 0, listed = 0;
    et_status status = ET_OK;
    for (size_t q = 0; q < c->R; q++)
        for (size_t t = 0; t < c->a->tokens && status == ET_OK; t++)
            if (experts_there(c, t, q) > 0) status = check_copy(c, copy++, t, q, &listed);
    if (status == ET_OK && c->p->recv_experts_begin &&
        (size_t)c->p->recv_experts_begin[copy] != listed)
        return et_fail(c->error, ET_EINVAL, "recv_experts_begin ends with %d; there are %zu slots",
                       (int)c->p->recv_experts_begin[copy], listed);
    return status;
}

/* ---- all of it ---- */

static et_status check_order(const check *c)
{
    et_parallel_plan own = {0};
    et_status status = ET_OK;
    if (!c->p->local_token && !c->p->local_expert) return ET_OK;
    if (!c->p->send_slot) status = et_parallel_plan_build(&own, c->a, c->R, c->error);
    if (status == ET_OK) status = check_local(c, c->p->send_slot ? c->p->send_slot : own.send_slot);
    et_parallel_plan_free(&own);
    return status;
}

et_status et_parallel_plan_check(const et_parallel_plan *p, const et_assignment *a, et_error *error)
{
    et_status status = et_assignment_check(a, error);
    if (status != ET_OK) return status;
    if (p->ranks == 0 || a->tokens % p->ranks != 0 || a->experts % p->ranks != 0)
        return et_fail(error, ET_EINVAL,
                       "parallel plan: %zu ranks do not divide tokens and experts", p->ranks);
    check c = {p, a, p->ranks, a->tokens / p->ranks, a->experts / p->ranks, NULL, error};
    status = et_allocate((void **)&c.seen, a->slots, 1, "parallel plan", error);
    if (status == ET_OK && p->send_counts) status = check_counts(&c);
    if (status == ET_OK && p->send_slot)
        status = check_rows(&c, "send_slot", p->send_slot, sent_group);
    if (status == ET_OK && p->send_begin)
        status = check_begin(&c, "send_begin", p->send_begin, sender);
    if (status == ET_OK && p->recv_slot)
        status = check_rows(&c, "recv_slot", p->recv_slot, received_group);
    if (status == ET_OK && p->recv_begin)
        status = check_begin(&c, "recv_begin", p->recv_begin, receiver);
    if (status == ET_OK && p->recv_padded) status = check_padded(&c);
    if (status == ET_OK && p->recv_rows) status = check_padded_rows(&c);
    if (status == ET_OK) status = check_order(&c);
    if (status == ET_OK && p->token_in_rank) status = check_membership(&c);
    if (status == ET_OK) status = check_copies(&c);
    if (status == ET_OK) status = check_received(&c);
    free(c.seen);
    return status;
}
