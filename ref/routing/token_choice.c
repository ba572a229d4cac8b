/* token_choice.c: each token takes its top K experts by r_ti + b_i. See etref/routing.h.
 *
 * The bias b is the load balancer's (0 unless loss-free or proportional): it steers the choice and
 * nothing else, gates never see it. Ties go to the lower expert index.
 * Causal: what token t gets depends on token t alone.
 */
#include "etref/routing.h"
#include "ref/base/arithmetic.h"
#include "ref/base/memory.h"
#include "ref/routing/top.h"

#include <stdlib.h>

static void choose(size_t t, size_t n, size_t K, const et_real *r, const et_real *bias,
                   et_ranked *items, uint8_t *mask, et_real *margin, int32_t *topk)
{
    et_rank(items, n, r + t * n, 1);
    for (size_t i = 0; bias != NULL && i < n; i++) items[i].score += bias[i];
    et_top(items, n, K);
    for (size_t j = 0; j < n; j++) {
        size_t place = t * n + (size_t)items[j].index;
        mask[place] = j < K;
        margin[place] = et_top_margin(items, n, K, j);
        if (topk != NULL && j < K) topk[t * K + j] = items[j].index;
    }
}

et_status et_token_choice(size_t N, size_t n, size_t K, const et_real *r, const et_real *bias,
                          uint8_t *mask, et_real *margin, int32_t *topk, et_error *error)
{
    ET_ARITHMETIC;
    if (K < 1 || K > n)
        return et_fail(error, ET_EINVAL, "token choice: K = %zu of %zu experts; 1 to %zu", K, n, n);
    void *items = NULL;
    et_status status = et_allocate(&items, n, sizeof(et_ranked), "token choice", error);
    if (status != ET_OK) return status;
    for (size_t t = 0; t < N; t++) choose(t, n, K, r, bias, items, mask, margin, topk);
    free(items);
    return ET_OK;
}
