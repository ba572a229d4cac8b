/* token_choice.c: each token takes its top K experts by r_ti + b_i. See etref/routing.h.
 *
 * The bias b is the load balancer's (0 unless loss-free or proportional): it steers the choice and
 * nothing else, gates never see it. Ties go to the lower expert index.
 * Causal: what token t gets depends on token t alone. With a capacity not so: see overflow.c.
 */
#include "etref/routing.h"
#include "ref/base/float_environment.h"
#include "ref/base/memory.h"
#include "ref/routing/top_k.h"

#include <math.h>
#include <stdlib.h>

/* What one token's choice works on. */
typedef struct choice {
    size_t n, K;
    const et_groups *groups; /* one group of all experts: no limit */
    et_real *scores;         /* [n] r + b */
    et_ranked *ranked;       /* [count] groups, the kept ones first */
    et_ranked *items;        /* [n] experts of the kept groups */
} choice;

et_real et_group_score_of(et_group_score how, size_t size, const et_real *scores)
{
    et_real best = scores[0], second = -(et_real)INFINITY;
    for (size_t i = 1; i < size; i++) {
        et_real lower = scores[i] > best ? best : scores[i];
        if (scores[i] > best) best = scores[i];
        if (lower > second) second = lower;
    }
    return how == ET_GROUP_TOP2 ? best + second : best;
}

/* Lists the experts of the kept groups; returns how many. The others are refused with their group. */
static size_t gather_kept(const choice *c, uint8_t *mask, et_real *margin)
{
    const et_groups *g = c->groups;
    size_t size = c->n / g->count, members = 0;
    for (size_t j = 0; j < g->count; j++)
        c->ranked[j] = (et_ranked){
            g->count > 1 ? et_group_score_of(g->score, size, c->scores + j * size) : 0, (int32_t)j};
    et_top(c->ranked, g->count, g->kept);
    for (size_t j = 0; j < g->count; j++)
        for (size_t i = (size_t)c->ranked[j].index * size, end = i + size; i < end; i++) {
            if (j < g->kept) {
                c->items[members++] = (et_ranked){c->scores[i], (int32_t)i};
                continue;
            }
            mask[i] = 0;
            margin[i] = et_top_margin(c->ranked, g->count, g->kept, j);
        }
    return members;
}

/* mask, margin [n], topk [K] or NULL: one token's. */
static void choose(const choice *c, const et_real *r, const et_real *bias, uint8_t *mask,
                   et_real *margin, int32_t *topk)
{
    for (size_t i = 0; i < c->n; i++) c->scores[i] = bias ? r[i] + bias[i] : r[i];
    size_t members = gather_kept(c, mask, margin);
    et_top(c->items, members, c->K);
    for (size_t j = 0; j < members; j++) {
        size_t i = (size_t)c->items[j].index;
        mask[i] = j < c->K;
        margin[i] = et_top_margin(c->items, members, c->K, j);
        if (topk != NULL && j < c->K) topk[j] = c->items[j].index;
    }
}

static et_status check_groups(size_t n, size_t K, const et_groups *g, et_error *error)
{
    if (g->count < 1 || n % g->count != 0 || g->kept < 1 || g->kept > g->count)
        return et_fail(error, ET_EINVAL, "token choice: %zu of %zu groups of %zu experts", g->kept,
                       g->count, n);
    if (K < 1 || K > n / g->count * g->kept)
        return et_fail(error, ET_EINVAL, "token choice: K = %zu of %zu experts; 1 to %zu", K, n,
                       n / g->count * g->kept);
    if (g->score == ET_GROUP_TOP2 && g->count > 1 && n / g->count < 2)
        return et_fail(error, ET_EINVAL, "token choice: the two best of groups of one expert");
    return ET_OK;
}

et_status et_token_choice_in_groups(size_t N, size_t n, size_t K, const et_groups *groups,
                                    const et_real *r, const et_real *bias, uint8_t *mask,
                                    et_real *margin, int32_t *topk, et_error *error)
{
    ET_ARITHMETIC;
    void *scores = NULL, *ranked = NULL, *items = NULL;
    et_status status = check_groups(n, K, groups, error);
    if (status != ET_OK) return status;
    if ((status = et_allocate(&scores, n, sizeof(et_real), "token choice", error)) == ET_OK &&
        (status = et_allocate(&ranked, groups->count, sizeof(et_ranked), "token choice", error)) ==
            ET_OK &&
        (status = et_allocate(&items, n, sizeof(et_ranked), "token choice", error)) == ET_OK) {
        const choice c = {n, K, groups, scores, ranked, items};
        for (size_t t = 0; t < N; t++)
            choose(&c, r + t * n, bias, mask + t * n, margin + t * n, topk ? topk + t * K : NULL);
    }
    free(items);
    free(ranked);
    free(scores);
    return status;
}

et_status et_token_choice(size_t N, size_t n, size_t K, const et_real *r, const et_real *bias,
                          uint8_t *mask, et_real *margin, int32_t *topk, et_error *error)
{
    const et_groups all = {.count = 1, .kept = 1};
    return et_token_choice_in_groups(N, n, K, &all, r, bias, mask, margin, topk, error);
}
