/* assignment.c: from a mask to slots, and to padded blocks. See etref/assignment.h.
 *
 * A counting sort of the pairs z_ti = 1 by expert: count, add up, place. Tokens are visited in
 * ascending order, so they lie in ascending order within each expert; experts likewise within each
 * token.
 */
#include "etref/assignment.h"
#include "ref/base/memory.h"
#include "ref/layers/layer_arguments.h"

#include <stdlib.h>
#include <string.h>

/* offsets[i+1] - offsets[i] = counts[i], offsets[0] = 0 */
static void exclusive_sum(size_t count, const int32_t *counts, int32_t *offsets)
{
    offsets[0] = 0;
    for (size_t i = 0; i < count; i++) offsets[i + 1] = offsets[i] + counts[i];
}

/* load, fanout and their sum */
static size_t count_slots(et_assignment *a, const uint8_t *mask)
{
    size_t slots = 0;
    for (size_t t = 0; t < a->tokens; t++)
        for (size_t i = 0; i < a->experts; i++)
            if (mask[t * a->experts + i]) {
                a->load[i]++;
                a->fanout[t]++;
                slots++;
            }
    return slots;
}

static void place_slots(et_assignment *a, const uint8_t *mask, int32_t *next_of_expert)
{
    memcpy(next_of_expert, a->expert_offsets, a->experts * sizeof(int32_t));
    int32_t next_of_token = 0;
    for (size_t t = 0; t < a->tokens; t++)
        for (size_t i = 0; i < a->experts; i++)
            if (mask[t * a->experts + i]) {
                int32_t slot = next_of_expert[i]++;
                a->slot_token[slot] = (int32_t)t;
                a->slot_expert[slot] = (int32_t)i;
                a->token_slots[next_of_token++] = slot;
            }
}

static et_status integers(int32_t **out, size_t count, et_error *error)
{
    return et_allocate((void **)out, count, sizeof(int32_t), "assignment", error);
}

et_status et_assignment_build(et_assignment *a, size_t tokens, size_t experts, const uint8_t *mask,
                              et_error *error)
{
    *a = (et_assignment){.tokens = tokens, .experts = experts};
    int32_t *next = NULL;
    et_status status;
    if (tokens >= INT32_MAX || experts >= INT32_MAX) {
        status = et_fail(error, ET_EINVAL, "assignment: %zu tokens and %zu experts; at most 2^31-2",
                         tokens, experts);
        goto done;
    }
    if ((status = integers(&a->load, experts, error)) ||
        (status = integers(&a->fanout, tokens, error)) ||
        (status = integers(&a->expert_offsets, experts + 1, error)) ||
        (status = integers(&a->token_offsets, tokens + 1, error)) ||
        (status = integers(&next, experts, error)))
        goto done;
    a->slots = count_slots(a, mask);
    if (a->slots > INT32_MAX) {
        status = et_fail(error, ET_EINVAL, "assignment: %zu slots; at most 2^31-1", a->slots);
        goto done;
    }
    if ((status = integers(&a->slot_token, a->slots, error)) ||
        (status = integers(&a->slot_expert, a->slots, error)) ||
        (status = integers(&a->token_slots, a->slots, error)))
        goto done;
    exclusive_sum(experts, a->load, a->expert_offsets);
    exclusive_sum(tokens, a->fanout, a->token_offsets);
    place_slots(a, mask, next);
done:
    free(next);
    if (status != ET_OK) et_assignment_free(a);
    return status;
}

void et_assignment_free(et_assignment *a)
{
    int32_t *arrays[] = {a->expert_offsets, a->token_offsets, a->slot_token, a->slot_expert,
                         a->token_slots,    a->load,          a->fanout};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) free(arrays[i]);
    *a = (et_assignment){0};
}

static size_t blocks_of(int32_t load, size_t block)
{
    return ((size_t)load + block - 1) / block;
}

size_t et_block_count(const et_assignment *a, size_t block)
{
    size_t blocks = 0;
    for (size_t i = 0; i < a->experts; i++) blocks += blocks_of(a->load[i], block);
    return blocks;
}

static void fill_layout(et_block_layout *l, const et_assignment *a)
{
    size_t b = 0;
    for (size_t i = 0; i < a->experts; i++) {
        l->padded_offsets[i] = (int32_t)(b * l->block);
        size_t blocks = blocks_of(a->load[i], l->block);
        for (size_t row = 0; row < blocks * l->block; row++)
            l->padded_slot[b * l->block + row] =
                row < (size_t)a->load[i] ? a->expert_offsets[i] + (int32_t)row : -1;
        for (size_t j = 0; j < blocks; j++) l->block_expert[b++] = (int32_t)i;
    }
    l->padded_offsets[a->experts] = (int32_t)(b * l->block);
}

et_status et_block_layout_build(et_block_layout *l, const et_assignment *a, size_t block,
                                et_error *error)
{
    *l = (et_block_layout){.block = block};
    et_status status = et_assignment_check(a, error);
    if (status != ET_OK) return status;
    if (block == 0 || block > ET_MAX_BLOCK)
        return et_fail(error, ET_EINVAL, "block layout: tile of %zu slots; 1 to %d", block,
                       ET_MAX_BLOCK);
    l->blocks = et_block_count(a, block);
    if (l->blocks > INT32_MAX / block)
        return et_fail(error, ET_EINVAL,
                       "block layout: %zu blocks of %zu rows; at most 2^31-1 rows", l->blocks,
                       block);
    if ((status = integers(&l->padded_offsets, a->experts + 1, error)) ||
        (status = integers(&l->padded_slot, l->blocks * block, error)) ||
        (status = integers(&l->block_expert, l->blocks, error))) {
        et_block_layout_free(l);
        return status;
    }
    fill_layout(l, a);
    return ET_OK;
}

void et_block_layout_free(et_block_layout *l)
{
    free(l->padded_offsets);
    free(l->padded_slot);
    free(l->block_expert);
    *l = (et_block_layout){0};
}
