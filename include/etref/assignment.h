/* assignment.h: who goes where. The one thing a routing rule produces and a layer consumes.
 *
 * z [N,n] says which token goes to which expert; a pair with z = 1 is a slot. Slots are numbered
 * expert by expert, tokens ascending within an expert: the order in which an expert's rows lie in
 * memory. token_slots lists the same slots token by token, experts ascending. A token's sum over its
 * experts is taken in that order, however the work is divided, so that results never depend on threads.
 *
 *     z = 1 0        slot        0 1 2      expert_offsets  0 2 3
 *         1 1        token       0 1 1      token_offsets   0 1 3 3   (a third token has none)
 *         0 0        expert      0 0 1      token_slots     0 1 2
 */
#ifndef ETREF_ASSIGNMENT_H
#define ETREF_ASSIGNMENT_H

#include "etref/status.h"
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

typedef struct et_assignment {
    size_t tokens, experts, slots;     /* N, n, S */
    int32_t *expert_offsets;           /* [n+1] exclusive: slots of expert i are [o_i, o_i+1) */
    int32_t *token_offsets;            /* [N+1] exclusive, into token_slots */
    int32_t *slot_token, *slot_expert; /* [S] */
    int32_t *token_slots;              /* [S] */
    int32_t *load, *fanout;            /* [n] slots of an expert, [N] slots of a token */
} et_assignment;

/* From mask [N,n] (0 or not 0). ET_EINVAL: more than INT32_MAX slots; ET_ENOMEM. On failure there
 * is nothing to free. N = 0 or n = 0 gives an empty assignment. */
et_status et_assignment_build(et_assignment *a, size_t tokens, size_t experts, const uint8_t *mask,
                              et_error *error);
void et_assignment_free(et_assignment *a); /* accepts zeros */

/* The block layout of kernels that want each expert's rows padded to whole tiles of M slots. */
typedef struct et_block_layout {
    size_t block, blocks;    /* M; number of blocks B */
    int32_t *padded_offsets; /* [n+1] each expert's first padded row, a multiple of M; last B*M */
    int32_t *padded_slot;    /* [B*M] the slot in this row, or -1 */
    int32_t *block_expert;   /* [B] whose block this is */
} et_block_layout;

/* The largest tile: beyond it padding would dwarf the data. */
enum { ET_MAX_BLOCK = 65536 };

/* How many blocks of M >= 1 rows an assignment fills; an expert without slots has none. */
size_t et_block_count(const et_assignment *a, size_t block);

/* ET_EINVAL: block not from 1 to ET_MAX_BLOCK, more than INT32_MAX rows, an assignment that
 * contradicts itself; ET_ENOMEM. On failure there is nothing to free. */
et_status et_block_layout_build(et_block_layout *layout, const et_assignment *a, size_t block,
                                et_error *error);
void et_block_layout_free(et_block_layout *layout);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
#endif
