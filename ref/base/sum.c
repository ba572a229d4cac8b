/* sum.c: the sums of a layer. See sum.h. */
#include "ref/base/sum.h"
#include "ref/base/grid.h"
#include "ref/base/lanes.h"
#include "ref/base/memory.h"
#include "ref/base/threads.h"

#include <stdlib.h>
#include <string.h>

/* ---- order ---- */

et_order et_order_of(const et_rounding *rounding, const char *site, size_t count)
{
    et_order order = {.way = ET_FORWARDS, .count = count};
    if (!et_rounds(rounding) || rounding->mode == ET_ROUND_NEAREST) return order;
    order.way = et_rounding_key(rounding->seed, site) % 3;
    order.key = et_chances_key(rounding, site);
    return order;
}

/* A random permutation that needs no memory: k changes places with its mirror image about a random
 * point, or does not, by a chance that both share; again and again. Each round is a permutation, so all
 * of them are. Source: Hoang, Morris, Rogaway, An Enciphering Scheme Based on a Card Shuffle, CRYPTO
 * 2012: about log2(count) rounds mix; 32 do for any sum. */
enum { ROUNDS = 32 };

typedef struct mirror {
    uint64_t key, twice; /* the point, times 2, plus count */
} mirror;

static mirror mirror_of(const et_order *o, uint64_t round)
{
    uint64_t key = et_mix(o->key + round);
    return (mirror){key, key % o->count + o->count};
}

static inline size_t change_places(const mirror *m, size_t count, size_t k)
{
    size_t image = (size_t)m->twice - k;
    image = image >= count ? image - count : image;
    size_t pair = k > image ? k : image;
    return (et_mix(m->key ^ pair) & 1) == 1 ? image : k;
}

static size_t shuffled(const et_order *o, size_t k)
{
    for (uint64_t round = 1; round <= ROUNDS; round++) {
        const mirror m = mirror_of(o, round);
        k = change_places(&m, o->count, k);
    }
    return k;
}

size_t et_order_at(const et_order *order, size_t k)
{
    if (order->way == ET_FORWARDS) return k;
    return order->way == ET_BACKWARDS ? order->count - 1 - k : shuffled(order, k);
}

ET_LANES static void change_all(const mirror *m, size_t count, size_t *table)
{
    for (size_t k = 0; k < count; k++) table[k] = change_places(m, count, table[k]);
}

et_status et_order_table(const et_order *order, size_t **table, et_error *error)
{
    void *room;
    size_t count = order->count;
    et_status status = et_allocate(&room, count, sizeof(size_t), "the order of a sum", error);
    if (status != ET_OK) return status;
    *table = room;
    for (size_t k = 0; k < count; k++) (*table)[k] = order->way == ET_BACKWARDS ? count - 1 - k : k;
    bool shuffles = order->way == ET_SHUFFLED && count > 0;
    for (uint64_t round = 1; shuffles && round <= ROUNDS; round++) {
        const mirror m = mirror_of(order, round);
        change_all(&m, count, *table);
    }
    return ET_OK;
}

/* ---- rows times rows ---- */

/* Rows whose sums are taken side by side. Each is one chain of additions, in order, and an addition waits
 * for the one before; other rows' are what the processor can do meanwhile. */
enum { TOGETHER = 8 };

static void exact_dots(size_t d, const et_real *const a[TOGETHER], const et_real *const b[TOGETHER],
                       et_real sums[TOGETHER])
{
    for (size_t c = 0; c < d; c++)
        for (size_t j = 0; j < TOGETHER; j++) sums[j] += a[j][c] * b[j][c];
}

static void rounded_dots(const et_grid *g, const size_t *order, size_t d,
                         const et_real *const a[TOGETHER], const et_real *const b[TOGETHER],
                         et_real sums[TOGETHER])
{
    for (size_t k = 0; k < d; k++) {
        size_t c = order[k];
        for (size_t j = 0; j < TOGETHER; j++) {
            double product = et_grid_sum(g, (double)a[j][c] * (double)b[j][c]);
            sums[j] = (et_real)et_grid_sum(g, (double)sums[j] + product);
        }
    }
}

et_status et_dots(const et_rounding *rounding, const char *site, size_t m, size_t d,
                  const et_real *a, const int32_t *rows, const et_real *b, et_real *out,
                  et_error *error)
{
    const et_order way = et_order_of(rounding, site, d);
    size_t *order = NULL;
    et_grid room;
    const et_grid *g = et_grid_in(&room, rounding, et_sum_place(rounding), site);
    et_status status = g ? et_order_table(&way, &order, error) : ET_OK;
    if (status != ET_OK) return status;
#pragma omp parallel for if (et_worth_threads(m * d))
    for (size_t first = 0; first < m; first += TOGETHER) {
        size_t count = m - first < TOGETHER ? m - first : TOGETHER;
        const et_real *left[TOGETHER], *right[TOGETHER];
        et_real sums[TOGETHER] = {0};
        for (size_t j = 0; j < TOGETHER; j++) {
            size_t row = first + (j < count ? j : 0); /* the last ones may be fewer */
            left[j] = a + (rows ? (size_t)rows[row] : row) * d;
            right[j] = b + row * d;
        }
        if (g == NULL)
            exact_dots(d, left, right, sums);
        else
            rounded_dots(g, order, d, left, right, sums);
        for (size_t j = 0; j < count; j++) out[first + j] = sums[j];
    }
    free(order);
    return ET_OK;
}

/* ---- sums of rows ---- */

ET_LANES static void exact_sums(size_t count, size_t stride, const et_real *v, const et_real *w,
                                et_real sums[TOGETHER])
{
    et_real s[TOGETHER];
    memcpy(s, sums, sizeof s);
    for (size_t i = 0; w && i < count; i++)
        for (size_t j = 0; j < TOGETHER; j++) s[j] += v[j * stride + i] * w[j * stride + i];
    for (size_t i = 0; !w && i < count; i++)
        for (size_t j = 0; j < TOGETHER; j++) s[j] += v[j * stride + i];
    memcpy(sums, s, sizeof s);
}

void et_row_sums(const et_rounding *rounding, et_place place, const char *site, size_t m,
                 size_t stride, size_t first, size_t more, const et_real *v, const et_real *w,
                 et_real *sums)
{
    for (size_t from = 0; from < m; from += TOGETHER) {
        size_t together = et_rounds(rounding) || m - from < TOGETHER ? 0 : first + from * more;
        const et_real *at = v + from * stride, *by = w ? w + from * stride : NULL;
        et_real begun[TOGETHER] = {0};
        exact_sums(together, stride, at, by, begun);
        for (size_t j = from; j < m && j < from + TOGETHER; j++) {
            size_t done = j * stride + together;
            sums[j] = et_sum(rounding, place, site, begun[j - from], first + j * more - together, 1,
                             v + done, w ? w + done : NULL);
        }
    }
}

/* ---- rows that are added to rows ---- */

enum { PIECE = 256 }; /* of a row, in the nearest cache */

static void add_rounded(const et_grid *g, size_t d, et_real w, const et_real *row, et_real *to)
{
    double terms[PIECE];
    for (size_t from = 0; from < d; from += PIECE) {
        size_t width = d - from < PIECE ? d - from : PIECE;
        for (size_t c = 0; c < width; c++) terms[c] = (double)w * (double)row[from + c];
        et_grid_round_all(g, width, terms, terms);
        for (size_t c = 0; c < width; c++)
            to[from + c] = (et_real)et_grid_sum(g, (double)to[from + c] + terms[c]);
    }
}

static void add_row(const et_grid *g, size_t d, et_real w, const et_real *row, et_real *to)
{
    if (g)
        add_rounded(g, d, w, row, to);
    else
        for (size_t c = 0; c < d; c++) to[c] += w * row[c];
}

void et_add_rows(const et_rounding *rounding, et_place place, size_t m, size_t d, const et_real *w,
                 const et_real *rows, const int32_t *at, et_real *to)
{
    et_grid room;
    const et_grid *g = et_grid_in(&room, rounding, place, "share");
    ET_BY_THREADS(et_worth_threads(m * d),
                  for (size_t j = 0; j < m; j++)
                      add_row(g, d, w ? w[j] : 1, rows + j * d, to + (at ? (size_t)at[j] : j) * d));
}

/* ---- numbers ---- */

et_real et_sum(const et_rounding *rounding, et_place place, const char *site, et_real start,
               size_t count, size_t step, const et_real *v, const et_real *w)
{
    et_real sum = start;
    if (!et_rounds(rounding)) {
        for (size_t i = 0; i < count; i++) sum += w ? v[i * step] * w[i * step] : v[i * step];
        return sum;
    }
    const et_order order = et_order_of(rounding, site, count);
    const et_grid g = et_grid_of(rounding, place, site);
    for (size_t k = 0; k < count; k++) {
        size_t i = et_order_at(&order, k) * step;
        double term = w ? et_grid_sum(&g, (double)v[i] * (double)w[i]) : (double)v[i];
        sum = (et_real)et_grid_sum(&g, (double)sum + term);
    }
    return sum;
}
