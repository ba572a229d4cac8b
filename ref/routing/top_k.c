/* top_k.c: the k best of a list. See top_k.h.
 *
 * Hoare's quickselect brings the k best to the front; a sort orders them. The order is total (no
 * two items have the same index), so the result does not depend on the pivots.
 */
#include "ref/routing/top_k.h"

#include <math.h>
#include <stdlib.h>

static int before(const et_ranked *a, const et_ranked *b)
{
    if (a->score != b->score) return a->score > b->score;
    return a->index < b->index;
}

static int compare(const void *a, const void *b)
{
    return before(b, a) - before(a, b);
}

static void swap(et_ranked *a, et_ranked *b)
{
    et_ranked t = *a;
    *a = *b;
    *b = t;
}

/* Brings the k best of items[0..count) to the front, in any order. */
static void select_best(et_ranked *items, size_t count, size_t k)
{
    while (count > 1 && k > 0 && k < count) {
        /* The middle one: a sorted list splits in halves. Never the last one: Hoare's scheme would
         * then leave everything in front, and the loop would not end. */
        et_ranked pivot = items[(count - 1) / 2];
        size_t i = 0, j = count - 1;
        for (;;) { /* Hoare's partition: [0, j] before or at the pivot, [j+1, count) at it or after
                    */
            while (before(&items[i], &pivot)) i++;
            while (before(&pivot, &items[j])) j--;
            if (i >= j) break;
            swap(&items[i++], &items[j--]);
        }
        size_t front = j + 1;
        if (k < front) {
            count = front;
        } else {
            items += front;
            count -= front;
            k -= front;
        }
    }
}

void et_top(et_ranked *items, size_t count, size_t k)
{
    select_best(items, count, k);
    qsort(items, k, sizeof *items, compare);
    for (size_t j = k + 1; j < count; j++)
        if (before(&items[j], &items[k])) swap(&items[j], &items[k]);
}

void et_rank(et_ranked *items, size_t count, const et_real *scores, size_t step)
{
    for (size_t j = 0; j < count; j++) items[j] = (et_ranked){scores[j * step], (int32_t)j};
}

et_real et_top_margin(const et_ranked *items, size_t count, size_t k, size_t position)
{
    if (position < k) return k < count ? items[position].score - items[k].score : (et_real)INFINITY;
    return k > 0 ? items[position].score - items[k - 1].score : -(et_real)INFINITY;
}
