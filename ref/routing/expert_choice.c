/* expert_choice.c: in each pool of P tokens each expert takes its top k. See etref/routing.h.
 *
 * Loads are exactly k per expert and pool; a token gets between 0 and n experts. Ties go to the
 * lower token index. Not causal: a later token of the pool can push an earlier one out, which is
 * what expert threshold routing replaces by a threshold known beforehand.
 */
#include "etref/routing.h"
#include "ref/base/float_environment.h"
#include "ref/base/memory.h"
#include "ref/routing/top_k.h"

#include <stdlib.h>

/* One expert's choice in one pool; r, mask and margin begin at the pool's first row. */
static void choose(size_t i, size_t n, size_t P, size_t k, const et_real *r, et_ranked *items,
                   uint8_t *mask, et_real *margin)
{
    et_rank(items, P, r + i, n);
    et_top(items, P, k);
    for (size_t j = 0; j < P; j++) {
        size_t place = (size_t)items[j].index * n + i;
        mask[place] = j < k;
        margin[place] = et_top_margin(items, P, k, j);
    }
}

et_status et_expert_choice(size_t N, size_t n, size_t P, size_t k, const et_real *r, uint8_t *mask,
                           et_real *margin, et_real *pool_cutoff, int32_t *topk, size_t first_token,
                           et_error *error)
{
    ET_ARITHMETIC;
    if (P < 1 || N % P != 0)
        return et_fail(error, ET_EINVAL, "expert choice: pools of %zu tokens do not divide %zu", P,
                       N);
    if (k < 1 || k > P)
        return et_fail(error, ET_EINVAL, "expert choice: k = %zu in pools of %zu tokens; 1 to %zu",
                       k, P, P);
    void *room = NULL;
    et_status status = et_allocate(&room, P, sizeof(et_ranked), "expert choice", error);
    if (status != ET_OK) return status;
    et_ranked *items = room;
    for (size_t pool = 0; pool < N / P; pool++) {
        size_t start = pool * P;
        for (size_t i = 0; i < n; i++) {
            choose(i, n, P, k, r + start * n, items, mask + start * n, margin + start * n);
            pool_cutoff[pool * n + i] = items[k - 1].score;
            for (size_t j = 0; topk != NULL && j < k; j++)
                topk[(pool * n + i) * k + j] = (int32_t)(first_token + start) + items[j].index;
        }
    }
    free(room);
    return ET_OK;
}
