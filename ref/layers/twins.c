/* twins.c: rows that are equal, by a hash table; their largest common part; copies. See twins.h. */
#include "ref/layers/twins.h"
#include "etref/matmul.h"
#include "ref/base/bits.h"
#include "ref/base/memory.h"

#include <math.h>
#include <stdlib.h>

static bool same_row(size_t d, const et_real *a, const et_real *b)
{
    for (size_t c = 0; c < d; c++)
        if (a[c] != b[c]) return false;
    return true;
}

/* FNV-1a over the row's numbers; adding 0 turns -0 into +0. */
static uint64_t hash_row(size_t d, const et_real *row, uint64_t hash)
{
    for (size_t c = 0; c < d; c++) hash = (hash ^ to_bits((double)row[c] + 0)) * 0x100000001b3u;
    return hash ^ hash >> 29;
}

/* first[t] = the first token whose rows equal token t's; dy may be NULL. table [size] is scratch, size a
 * power of two above N. */
static void find(size_t N, size_t d, const et_real *x, const et_real *dy, int32_t *table,
                 size_t size, int32_t *first, int32_t *count)
{
    for (size_t i = 0; i < size; i++) table[i] = -1;
    for (size_t t = 0; t < N; t++) {
        uint64_t hash = hash_row(d, x + t * d, 0xcbf29ce484222325u);
        if (dy) hash = hash_row(d, dy + t * d, hash);
        size_t at = (size_t)hash & (size - 1);
        while (table[at] >= 0 && !(same_row(d, x + (size_t)table[at] * d, x + t * d) &&
                                   (!dy || same_row(d, dy + (size_t)table[at] * d, dy + t * d))))
            at = (at + 1) & (size - 1);
        if (table[at] < 0) table[at] = (int32_t)t;
        first[t] = table[at];
        count[first[t]]++;
    }
    for (size_t t = 0; t < N; t++) count[t] = count[first[t]];
}

et_status et_find_twins(et_token_twins *twins, size_t N, size_t d, const et_real *x,
                        const et_real *dy, et_error *error)
{
    size_t size = 2;
    while (size < 2 * N) size *= 2;
    void *room, *table;
    *twins = (et_token_twins){0};
    et_status status = et_allocate(&table, size, sizeof(int32_t), "twins", error);
    if (status != ET_OK) return status;
    status = et_allocate(&room, 4 * N, sizeof(int32_t), "twins", error);
    if (status == ET_OK) {
        twins->input = room;
        twins->both = twins->input + N;
        twins->inputs = twins->both + N;
        twins->boths = twins->inputs + N;
        find(N, d, x, NULL, table, size, twins->input, twins->inputs);
        find(N, d, x, dy, table, size, twins->both, twins->boths);
        for (size_t t = 0; t < N; t++) twins->groups += twins->input[t] == (int32_t)t;
    }
    free(table);
    return status;
}

void et_free_twins(et_token_twins *twins)
{
    free(twins->input);
    *twins = (et_token_twins){0};
}

/* v = u / |u|; returns |u|. */
static double normalise(size_t d, const et_real *u, et_real *v)
{
    double squares = 0;
    for (size_t c = 0; c < d; c++) squares += (double)u[c] * (double)u[c];
    double length = sqrt(squares);
    for (size_t c = 0; c < d; c++) v[c] = (et_real)(length > 0 ? (double)u[c] / length : 0);
    return length;
}

/* Power iteration, v <- x'x v: ten steps tell the largest eigenvalue to some percent, from below. It
 * begins with the longest row. */
et_status et_find_directions(double *directions, size_t N, size_t d, const et_real *x,
                             et_error *error)
{
    enum { STEPS = 10 };
    void *room;
    double all = 0, most = 0, longest = 0;
    size_t first = 0;
    *directions = 1;
    et_status status = et_allocate(&room, N + 2 * d, sizeof(et_real), "directions", error);
    if (status != ET_OK) return status;
    et_real *y = room, *u = y + N, *v = u + d;
    for (size_t t = 0; t < N; t++) {
        double squares = 0;
        for (size_t c = 0; c < d; c++) squares += (double)x[t * d + c] * (double)x[t * d + c];
        all += squares;
        if (squares > longest) first = t;
        longest = fmax(longest, squares);
    }
    normalise(d, x + first * d, v);
    for (size_t step = 0; step < STEPS; step++) {
        et_matmul(ET_BLAS, N, 1, d, et_rows(x, d), et_rows(v, 1), false, y, 1);
        et_matmul(ET_BLAS, 1, d, N, et_rows(y, N), et_rows(x, d), false, u, d);
        most = normalise(d, u, v);
    }
    if (most > 0) *directions = fmax(1, all / most);
    free(room);
    return ET_OK;
}

/* ---- hidden units ---- */

/* count[j] of unit j and all like it; `first` holds each row's first number: most differ there. */
static void count_like(size_t j, size_t h, size_t d, const et_real *up, const et_real *first,
                       et_real *count)
{
    et_real like = 1;
    for (size_t k = j + 1; k < h; k++)
        if (first[k] == first[j] && same_row(d, up + k * d, up + j * d)) {
            count[k] = -(et_real)(j + 1);
            like++;
        }
    count[j] = like;
    for (size_t k = j + 1; like > 1 && k < h; k++)
        if (count[k] == -(et_real)(j + 1)) count[k] = like;
}

static bool is_zero(size_t d, const et_real *row)
{
    for (size_t c = 0; c < d; c++)
        if (row[c] != 0) return false;
    return true;
}

et_status et_find_copies(et_copies *copies, size_t h, size_t d, const et_real *up, et_error *error)
{
    void *room;
    *copies = (et_copies){.mean = 1};
    et_status status = et_allocate(&room, 2 * h, sizeof(et_real), "hidden units", error);
    if (status != ET_OK) return status;
    et_real *count = room, *first = count + h;
    double sum = 0;
    for (size_t j = 0; j < h; j++) first[j] = up[j * d];
    for (size_t j = 0; j < h; j++)
        if (is_zero(d, up + j * d)) count[j] = 1;
    for (size_t j = 0; j < h; j++) {
        if (count[j] == 0) count_like(j, h, d, up, first, count);
        sum += (double)count[j];
    }
    if (sum > (double)h)
        *copies = (et_copies){count, sum / (double)h};
    else
        free(room);
    return ET_OK;
}

void et_free_copies(et_copies *copies)
{
    free(copies->of);
    *copies = (et_copies){0};
}
