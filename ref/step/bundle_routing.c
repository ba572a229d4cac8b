/* bundle_routing.c: an assignment, read from whatever shows it. See bundle_routing.h. */
#include "ref/step/bundle_routing.h"
#include "ref/format/tensor_arrays.h"
#include "ref/step/case_kinds.h"
#include "ref/step/tensors.h"

#include <stdarg.h>
#include <stdio.h>

bool et_not_shown(et_shown *r, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(r->reason, r->room, format, arguments);
    va_end(arguments);
    return false;
}

static const et_tensor_out *shown(const et_shown *r, et_tensor_id id)
{
    return et_tensor_named(r->tensors, r->count, et_tensors[id].doc.name);
}

/* Element i as an index below `limit`; false and a reason if it is none. */
static bool read_index(et_shown *r, const et_tensor_out *t, size_t i, size_t limit, size_t *index)
{
    double value = et_tensor_element(t, i);
    *index = 0;
    if (!(value >= 0 && value < (double)limit))
        return et_not_shown(r, "%s[%zu] = %.0f, must be 0 to %zu", t->name, i, value, limit - 1);
    *index = (size_t)value;
    return true;
}

bool et_shown_slot(et_shown *r, const et_tensor_out *t, size_t i, size_t place)
{
    size_t n = r->c->experts;
    if (r->mask[place])
        return et_not_shown(r, "%s[%zu]: token %zu is with expert %zu twice", t->name, i, place / n,
                            place % n);
    r->mask[place] = 1;
    return true;
}

static void read_mask(et_shown *r, const et_tensor_out *mask)
{
    size_t places = r->c->tokens * r->c->experts;
    for (size_t i = 0; i < places; i++) r->mask[i] = et_tensor_element(mask, i) != 0;
}

static bool read_slots(et_shown *r, const et_tensor_out *tokens, const et_tensor_out *experts)
{
    size_t N = r->c->tokens, n = r->c->experts, token, expert;
    if (tokens->shape[0] != experts->shape[0])
        return et_not_shown(r, "route.slot_token has %zu slots, route.slot_expert %zu",
                            tokens->shape[0], experts->shape[0]);
    for (size_t s = 0; s < tokens->shape[0]; s++)
        if (!read_index(r, tokens, s, N, &token) || !read_index(r, experts, s, n, &expert) ||
            !et_shown_slot(r, tokens, s, token * n + expert))
            return false;
    return true;
}

static bool read_offsets(et_shown *r, const et_tensor_out *offsets, const et_tensor_out *tokens)
{
    size_t N = r->c->tokens, n = r->c->experts, S = tokens->shape[0], first, end, token;
    if (et_tensor_element(offsets, 0) != 0)
        return et_not_shown(r, "route.expert_offsets[0] = %.0f, must be 0",
                            et_tensor_element(offsets, 0));
    if (et_tensor_element(offsets, n) != (double)S)
        return et_not_shown(r,
                            "route.expert_offsets[%zu] = %.0f, must be the %zu slots of "
                            "route.slot_token",
                            n, et_tensor_element(offsets, n), S);
    for (size_t i = 0; i < n; i++) {
        if (!read_index(r, offsets, i, S + 1, &first) ||
            !read_index(r, offsets, i + 1, S + 1, &end))
            return false;
        if (end < first)
            return et_not_shown(r, "route.expert_offsets[%zu] = %zu after %zu: they never fall",
                                i + 1, end, first);
        for (size_t s = first; s < end; s++)
            if (!read_index(r, tokens, s, N, &token) || !et_shown_slot(r, tokens, s, token * n + i))
                return false;
    }
    return true;
}

bool et_shown_nothing(const et_shown *r, const et_tensor_out *topk, size_t i)
{
    return topk->rank == 2 && is_padding(r->c, i / topk->shape[1]) &&
           et_tensor_element(topk, i) == -1;
}

bool et_shown_choice(et_shown *r, const et_tensor_out *topk, size_t i, size_t *place)
{
    const et_case *c = r->c;
    size_t n = c->experts, index, width = topk->shape[topk->rank - 1], row = i / width;
    if (topk->rank == 2) { /* [N,K] experts of a token */
        if (!read_index(r, topk, i, n, &index)) return false;
        *place = row * n + index;
        return true;
    }
    if (!read_index(r, topk, i, c->tokens, &index)) return false; /* [pools,n,k] tokens of an expert */
    size_t pool = row / n, first = pool_of(c, pool).first;
    if (index < first || index >= first + c->pool_tokens)
        return et_not_shown(r, "%s[%zu] = %zu, must be %zu to %zu in pool %zu", topk->name, i,
                            index, first, first + c->pool_tokens - 1, pool);
    *place = index * n + row % n;
    return true;
}

static bool read_choices(et_shown *r, const et_tensor_out *topk)
{
    size_t place;
    for (size_t i = 0; i < et_tensor_count(topk); i++) {
        if (et_shown_nothing(r, topk, i)) continue;
        if (!et_shown_choice(r, topk, i, &place) || !et_shown_slot(r, topk, i, place)) return false;
    }
    return true;
}

bool et_shown_assignment(et_shown *r, bool *any)
{
    const et_tensor_out *whole = shown(r, ET_ROUTE_MASK), *token = shown(r, ET_ROUTE_SLOT_TOKEN),
                        *expert = shown(r, ET_ROUTE_SLOT_EXPERT),
                        *offsets = shown(r, ET_ROUTE_EXPERT_OFFSETS), *topk = NULL;
    if (!drops(r->c)) topk = shown(r, is_tc(r->c) ? ET_ROUTE_TOPK_EXPERT : ET_ROUTE_TOPK_TOKEN);
    *any = true;
    if (whole)
        read_mask(r, whole);
    else if (token && expert)
        return read_slots(r, token, expert);
    else if (token && offsets)
        return read_offsets(r, offsets, token);
    else if (topk)
        return read_choices(r, topk);
    else
        *any = false;
    return true;
}
