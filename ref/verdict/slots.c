/* slots.c: a candidate's slots in the reference's order. See judge.h.
 *
 * Kernels that sort tokens to experts with atomics leave an expert's tokens in any order. Where the candidate says in
 * route.slot_token which token stands in which row, the order is its own affair: its rows are put where the reference
 * has them. A list that contradicts its assignment stays as it is, and is judged as it stands.
 */
#include "ref/base/memory.h"
#include "ref/verdict/judge.h"

#include <stdlib.h>
#include <string.h>

/* The expert of the candidate's row `row`: as it says; else the experts follow each other. SIZE_MAX: none. */
static size_t expert_of(const et_assignment *a, const et_tensor_out *experts, size_t row)
{
    double expert = experts ? et_tensor_element(experts, row) : (double)a->slot_expert[row];
    return expert >= 0 && expert < (double)a->experts ? (size_t)expert : SIZE_MAX;
}

/* The reference's slot of a token and an expert; SIZE_MAX: there is none. */
static size_t slot_of(const et_assignment *a, double token, size_t expert)
{
    if (!(token >= 0 && token < (double)a->tokens) || expert == SIZE_MAX) return SIZE_MAX;
    for (int32_t i = a->token_offsets[(size_t)token]; i < a->token_offsets[(size_t)token + 1]; i++)
        if ((size_t)a->slot_expert[a->token_slots[i]] == expert) return (size_t)a->token_slots[i];
    return SIZE_MAX;
}

/* to[row]: the reference's slot of the candidate's row. false: it says nothing, or not each slot once, or the
 * reference's order. `taken` [S] is room, of zeros. */
static bool find_order(const et_judgement *j, const et_assignment *a, size_t *to, uint8_t *taken)
{
    const et_tensor_out *tokens =
        et_tensor_named(j->candidate, j->count, et_tensors[ET_ROUTE_SLOT_TOKEN].doc.name);
    const et_tensor_out *experts =
        et_tensor_named(j->candidate, j->count, et_tensors[ET_ROUTE_SLOT_EXPERT].doc.name);
    bool other = false;
    for (size_t row = 0; tokens && row < a->slots; row++) {
        to[row] = slot_of(a, et_tensor_element(tokens, row), expert_of(a, experts, row));
        if (to[row] == SIZE_MAX || taken[to[row]]++) return false;
        other = other || to[row] != row;
    }
    return other;
}

/* Rows of a tensor of slots; or, in route.token_slots, the slots that it names. */
static void put_in_order(const et_tensor_out *from, const et_assignment *a, const size_t *to,
                         void *room)
{
    size_t bytes = et_tensor_count(from) / a->slots * et_source_size(from->source);
    bool names_slots = et_tensor_find(from->name) == ET_ROUTE_TOKEN_SLOTS;
    for (size_t row = 0; row < a->slots; row++) {
        if (!names_slots) {
            memcpy((char *)room + to[row] * bytes, (const char *)from->values + row * bytes, bytes);
            continue;
        }
        int32_t slot = ((const int32_t *)from->values)[row];
        bool valid = slot >= 0 && (size_t)slot < a->slots;
        ((int32_t *)room)[row] = valid ? (int32_t)to[slot] : slot;
    }
}

static et_status reorder(const et_judgement *j, const et_assignment *a, const size_t *to,
                         et_ordered *own, et_error *error)
{
    void *list;
    et_status status = et_allocate(&list, j->count, sizeof *own->tensors, "candidate", error);
    if (status == ET_OK) own->tensors = memcpy(list, j->candidate, j->count * sizeof *own->tensors);
    for (size_t i = 0; i < j->count && status == ET_OK; i++) {
        et_tensor_out *t = &own->tensors[i];
        if (!et_rows_are(et_tensors[et_tensor_find(t->name)].doc.shape, "S")) continue;
        void *room;
        status = et_allocate(&room, et_tensor_count(t), et_source_size(t->source), "slots", error);
        if (status != ET_OK) break;
        own->rooms[own->count++] = room;
        put_in_order(t, a, to, room);
        t->values = room;
    }
    return status;
}

et_status et_order_slots(et_judgement *j, const et_assignment *a, et_ordered *own, et_error *error)
{
    void *order, *taken = NULL;
    *own = (et_ordered){0};
    if (a->slots == 0) return ET_OK;
    et_status status = et_allocate(&order, a->slots, sizeof(size_t), "slots", error);
    if (status != ET_OK) return status;
    status = et_allocate(&taken, a->slots, 1, "slots", error);
    if (status == ET_OK && find_order(j, a, order, taken)) {
        status = reorder(j, a, order, own, error);
        j->candidate = own->tensors;
    }
    free(taken);
    free(order);
    return status;
}

void et_ordered_free(et_ordered *own)
{
    for (size_t i = 0; i < own->count; i++) free(own->rooms[i]);
    free(own->tensors);
    *own = (et_ordered){0};
}
