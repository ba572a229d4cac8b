/* overflow.c: token choice with a capacity: what is over it is dropped. See etref/routing.h.
 *
 * Expert i has `capacity` slots in a batch (below: C is its factor). Its choices stand in a line, and those behind that place are
 * dropped:
 *
 *     arrival   by (j, t), where i is token t's j-th choice: all first choices in the order of tokens, then all second ones
 *     score     by falling gate value p_ti; of equal ones the lower token first
 *
 * By arrival a second choice waits for later tokens' first ones, so that only K = 1 is causal; by score anybody may be pushed
 * out.
 * Source: GShard (arXiv:2006.16668, algorithm 1), Switch Transformers (arXiv:2101.03961, section 2.2); Megatron-LM.
 */
#include "etref/routing.h"
#include "ref/base/float_environment.h"
#include "ref/base/memory.h"
#include "ref/routing/top_k.h"

#include <math.h>
#include <stdlib.h>

size_t et_token_capacity(size_t N, size_t n, size_t K, double C)
{
    ET_ARITHMETIC;
    double slots = ceil((double)(N * K) / (double)n * C);
    if (!(slots < (double)N)) return N;
    return slots > 0 ? (size_t)slots : 0;
}

static void drop_late(size_t N, size_t n, size_t K, size_t capacity, const int32_t *topk,
                      int32_t *taken, uint8_t *mask)
{
    for (size_t j = 0; j < K; j++)
        for (size_t t = 0; t < N; t++) {
            size_t i = (size_t)topk[t * K + j];
            mask[t * n + i] = (size_t)taken[i] < capacity;
            taken[i] += mask[t * n + i];
        }
}

/* Of one expert; line [N] is room. */
static void drop_lowest(size_t N, size_t n, size_t capacity, const et_real *p, et_ranked *line,
                        uint8_t *mask, et_real *margin)
{
    size_t count = 0;
    for (size_t t = 0; t < N; t++)
        if (mask[t * n]) line[count++] = (et_ranked){p[t * n], (int32_t)t};
    if (count <= capacity) return;
    et_top(line, count, capacity);
    for (size_t j = capacity; j < count; j++) {
        mask[(size_t)line[j].index * n] = 0;
        margin[(size_t)line[j].index * n] = et_top_margin(line, count, capacity, j);
    }
}

et_status et_drop_overflow(size_t N, size_t n, size_t K, size_t capacity, et_drop how,
                           const int32_t *topk, const et_real *p, uint8_t *mask, et_real *margin,
                           et_error *error)
{
    ET_ARITHMETIC;
    bool late = how == ET_DROP_BY_ARRIVAL;
    void *room;
    et_status status = et_allocate(&room, late ? n : N, late ? sizeof(int32_t) : sizeof(et_ranked),
                                   "capacity", error);
    if (status != ET_OK) return status;
    if (late) drop_late(N, n, K, capacity, topk, room, mask);
    for (size_t i = 0; !late && i < n; i++)
        drop_lowest(N, n, capacity, p + i, room, mask + i, margin + i);
    free(room);
    return ET_OK;
}
