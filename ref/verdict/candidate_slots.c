/* candidate_slots.c: a candidate's slots in the reference's order. See judge.h.
 *
 * Kernels that sort tokens to experts with atomics leave an expert's tokens in any order. Where the candidate says in
 * route.slot_token which token stands in which row, the order is its own affair: its rows are put where the reference
 * has them. A list that contradicts its assignment stays as it is, and is judged as it stands.
 *
 * Likewise rows that several ranks exchange: those of one expert that come from one rank may be sent, and lie received, in any
 * order (by score, as kernels that sort do), which ep.send_slot, ep.recv_slot and ep.recv_padded say.
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

/* Tensors that name slots by number; their rows are other things. */
static bool names_slots(et_tensor_id id)
{
    return id == ET_ROUTE_TOKEN_SLOTS || id == ET_EP_SEND_SLOT || id == ET_EP_RECV_SLOT ||
           id == ET_EP_RECV_PADDED;
}

static void rename_slots(const et_tensor_out *from, const et_assignment *a, const size_t *to,
                         int32_t *room)
{
    for (size_t i = 0; i < et_tensor_count(from); i++) {
        int32_t slot = ((const int32_t *)from->values)[i];
        bool valid = slot >= 0 && (size_t)slot < a->slots;
        room[i] = valid ? (int32_t)to[slot] : slot;
    }
}

static void put_in_order(const et_tensor_out *from, size_t rows, const size_t *to, void *room)
{
    size_t bytes = et_tensor_count(from) / rows * et_source_size(from->source);
    for (size_t row = 0; row < rows; row++)
        memcpy((char *)room + to[row] * bytes, (const char *)from->values + row * bytes, bytes);
}

/* The candidate's list becomes own's, a copy; once. */
static et_status own_list(et_judgement *j, et_ordered *own, et_error *error)
{
    void *list;
    if (own->tensors) return ET_OK;
    et_status status = et_allocate(&list, j->count, sizeof *own->tensors, "candidate", error);
    if (status != ET_OK) return status;
    own->tensors = memcpy(list, j->candidate, j->count * sizeof *own->tensors);
    j->candidate = own->tensors;
    return ET_OK;
}

static et_status own_values(const et_tensor_out *t, et_ordered *own, void **room, et_error *error)
{
    et_status status =
        et_allocate(room, et_tensor_count(t), et_source_size(t->source), "slots", error);
    if (status == ET_OK) own->rooms[own->count++] = *room;
    return status;
}

static et_status reorder(et_judgement *j, const et_assignment *a, const size_t *to, et_ordered *own,
                         et_error *error)
{
    et_status status = own_list(j, own, error);
    for (size_t i = 0; i < j->count && status == ET_OK; i++) {
        et_tensor_out *t = &own->tensors[i];
        et_tensor_id id = et_tensor_find(t->name);
        void *room;
        if (!names_slots(id) && !et_rows_are(et_tensors[id].doc.shape, "S")) continue;
        if ((status = own_values(t, own, &room, error)) != ET_OK) break;
        if (names_slots(id))
            rename_slots(t, a, to, room);
        else
            put_in_order(t, a->slots, to, room);
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
    if (status == ET_OK && find_order(j, a, order, taken))
        status = reorder(j, a, order, own, error);
    free(taken);
    free(order);
    return status;
}

/* ---- rows between ranks ---- */

/* An order of rows: the tensor that says which slots they are, and the rows of what else lies in it. */
static const struct {
    et_tensor_id key;
    const char *rows; /* NULL: the key's own elements */
} orders[] = {{ET_EP_SEND_SLOT, "sent"}, {ET_EP_RECV_SLOT, "received"}, {ET_EP_RECV_PADDED, NULL}};

/* Do two slots go from one rank to one expert? */
static bool are_together(const et_step *s, int32_t a, int32_t b)
{
    const et_assignment *of = &s->assignment;
    int32_t tokens = (int32_t)(s->c.tokens / s->c.ranks);
    return a >= 0 && b >= 0 && of->slot_expert[a] == of->slot_expert[b] &&
           of->slot_token[a] / tokens == of->slot_token[b] / tokens;
}

/* Where among want[first..end), ascending, the slot stands; `end`: nowhere. */
static size_t place_among(const int32_t *want, size_t first, size_t end, int32_t slot)
{
    size_t low = first, high = end;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (want[middle] < slot)
            low = middle + 1;
        else
            high = middle;
    }
    return low < end && want[low] == slot ? low : end;
}

/* to[row]: the reference's row of the candidate's. false: the reference's order, or none that may be. `taken` is room, of
 * zeros. */
static bool find_rows(const et_step *s, const int32_t *want, const int32_t *got, size_t count,
                      size_t *to, uint8_t *taken)
{
    bool other = false;
    for (size_t first = 0, end; first < count; first = end) {
        end = first + 1;
        while (end < count && are_together(s, want[first], want[end])) end++;
        for (size_t row = first; row < end; row++) {
            to[row] = place_among(want, first, end, got[row]);
            if (to[row] == end || taken[to[row]]++) return false;
            other = other || to[row] != row;
        }
    }
    return other;
}

static et_status reorder_rows(et_judgement *j, size_t order, size_t rows, const size_t *to,
                              et_ordered *own, et_error *error)
{
    et_status status = own_list(j, own, error);
    for (size_t i = 0; i < j->count && status == ET_OK; i++) {
        et_tensor_out *t = &own->tensors[i];
        et_tensor_id id = et_tensor_find(t->name);
        const char *letters = orders[order].rows;
        void *room;
        if (id != orders[order].key && !(letters && et_rows_are(et_tensors[id].doc.shape, letters)))
            continue;
        if (letters && t->shape[0] != rows) continue;
        if ((status = own_values(t, own, &room, error)) != ET_OK) break;
        put_in_order(t, rows, to, room);
        t->values = room;
    }
    return status;
}

static et_status try_order(et_judgement *j, size_t order, et_ordered *own, et_error *error)
{
    et_tensor_out want = et_tensor_view(j->reference, orders[order].key);
    const et_tensor_out *got = et_tensor_named(j->candidate, j->count, want.name);
    size_t count = et_tensor_count(&want);
    void *to, *taken = NULL;
    if (!got || !want.values || !et_same_shape(got, &want)) return ET_OK;
    et_status status = et_allocate(&to, count, sizeof(size_t), "rows", error);
    if (status != ET_OK) return status;
    status = et_allocate(&taken, count, 1, "rows", error);
    if (status == ET_OK && find_rows(j->reference, want.values, got->values, count, to, taken))
        status = reorder_rows(j, order, count, to, own, error);
    free(taken);
    free(to);
    return status;
}

et_status et_order_rows(et_judgement *j, et_ordered *own, et_error *error)
{
    et_status status = ET_OK;
    *own = (et_ordered){0};
    for (size_t i = 0; i < sizeof orders / sizeof *orders && status == ET_OK; i++)
        status = try_order(j, i, own, error);
    return status;
}

void et_ordered_free(et_ordered *own)
{
    for (size_t i = 0; i < own->count; i++) free(own->rooms[i]);
    free(own->tensors);
    *own = (et_ordered){0};
}
