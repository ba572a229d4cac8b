/* twins.c: rows that are equal, by a hash table; their largest common part; copies. See twins.h. */
#include "ref/layers/twins.h"
#include "ref/base/bits.h"
#include "ref/base/memory.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static bool same_row(size_t d, const et_real *a, const et_real *b)
{
    for (size_t c = 0; c < d; c++)
        if (a[c] != b[c]) return false;
    return true;
}

static double first_number(size_t d, const et_real *row)
{
    for (size_t c = 0; c < d; c++)
        if (row[c] != 0) return (double)row[c];
    return 1;
}

static bool parallel_row(size_t d, const et_real *a, const et_real *b)
{
    double first_a = first_number(d, a), first_b = first_number(d, b);
    for (size_t c = 0; c < d; c++)
        if ((double)a[c] * first_b != (double)b[c] * first_a) return false;
    return true;
}

/* FNV-1a over the row's numbers, each divided by `unit`; adding 0 turns -0 into +0. */
static uint64_t hash_row(size_t d, const et_real *row, double unit, uint64_t hash)
{
    for (size_t c = 0; c < d; c++)
        hash = (hash ^ to_bits((double)row[c] / unit + 0)) * 0x100000001b3u;
    return hash ^ hash >> 29;
}

/* Rows to be compared; `second` may be NULL: the first decides. */
typedef struct row_set {
    size_t count, d;
    const et_real *first, *second;
    bool parallel; /* multiples of one another count as equal; without `second` */
} row_set;

static uint64_t hash_of(const row_set *r, size_t t)
{
    const et_real *row = r->first + t * r->d;
    double unit = r->parallel ? first_number(r->d, row) : 1;
    uint64_t hash = hash_row(r->d, row, unit, 0xcbf29ce484222325u);
    return r->second ? hash_row(r->d, r->second + t * r->d, 1, hash) : hash;
}

static bool are_equal(const row_set *r, size_t s, size_t t)
{
    const et_real *a = r->first + s * r->d, *b = r->first + t * r->d;
    if (r->parallel) return parallel_row(r->d, a, b);
    return same_row(r->d, a, b) &&
           (!r->second || same_row(r->d, r->second + s * r->d, r->second + t * r->d));
}

static size_t table_size(size_t count)
{
    size_t size = 2;
    while (size < 2 * count) size *= 2;
    return size;
}

/* first[t] = the first row that equals row t. table [table_size] is scratch. Returns how many different rows
 * there are. */
static size_t find(const row_set *r, int32_t *table, int32_t *first)
{
    size_t size = table_size(r->count), different = 0;
    for (size_t i = 0; i < size; i++) table[i] = -1;
    for (size_t t = 0; t < r->count; t++) {
        size_t at = (size_t)hash_of(r, t) & (size - 1);
        while (table[at] >= 0 && !are_equal(r, (size_t)table[at], t)) at = (at + 1) & (size - 1);
        if (table[at] < 0) {
            table[at] = (int32_t)t;
            different++;
        }
        first[t] = table[at];
    }
    return different;
}

static void count_each(size_t count, const int32_t *first, int32_t *number)
{
    for (size_t t = 0; t < count; t++) number[first[t]]++;
    for (size_t t = 0; t < count; t++) number[t] = number[first[t]];
}

et_status et_find_twins(et_token_twins *twins, size_t N, size_t d, const et_real *x,
                        const et_real *dy, et_error *error)
{
    void *room, *table;
    *twins = (et_token_twins){0};
    et_status status = et_allocate(&table, table_size(N), sizeof(int32_t), "twins", error);
    if (status != ET_OK) return status;
    status = et_allocate(&room, 4 * N, sizeof(int32_t), "twins", error);
    if (status == ET_OK) {
        twins->input = room;
        twins->both = twins->input + N;
        twins->inputs = twins->both + N;
        twins->boths = twins->inputs + N;
        twins->groups = find(&(row_set){N, d, x, NULL, false}, table, twins->input);
        find(&(row_set){N, d, x, dy, false}, table, twins->both);
        count_each(N, twins->input, twins->inputs);
        count_each(N, twins->both, twins->boths);
    }
    free(table);
    return status;
}

et_status et_find_equal_rows(size_t N, size_t d, const et_real *x, bool parallel, int32_t *first,
                             size_t *different, et_error *error)
{
    void *table;
    et_status status = et_allocate(&table, table_size(N), sizeof(int32_t), "equal rows", error);
    if (status != ET_OK) return status;
    *different = find(&(row_set){N, d, x, NULL, parallel}, table, first);
    free(table);
    return ET_OK;
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
                             et_real *main, et_error *error)
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
    if (main) memcpy(main, v, d * sizeof *main);
    free(room);
    return ET_OK;
}

/* ---- rows of a weight ---- */

/* count[i] of row i and all like it; `first` holds each row's first number: most differ there. */
static void count_like(size_t i, size_t rows, size_t columns, const et_real *W,
                       const et_real *first, et_real *count)
{
    et_real like = 1;
    for (size_t k = i + 1; k < rows; k++)
        if (first[k] == first[i] && same_row(columns, W + k * columns, W + i * columns)) {
            count[k] = -(et_real)(i + 1);
            like++;
        }
    count[i] = like;
    for (size_t k = i + 1; like > 1 && k < rows; k++)
        if (count[k] == -(et_real)(i + 1)) count[k] = like;
}

static bool is_zero(size_t d, const et_real *row)
{
    for (size_t c = 0; c < d; c++)
        if (row[c] != 0) return false;
    return true;
}

et_status et_find_copies(et_copies *copies, size_t rows, size_t columns, const et_real *W,
                         et_error *error)
{
    void *room;
    *copies = (et_copies){.mean = 1};
    et_status status = et_allocate(&room, 2 * rows, sizeof(et_real), "rows of weights", error);
    if (status != ET_OK) return status;
    et_real *count = room, *first = count + rows;
    double sum = 0;
    for (size_t i = 0; i < rows; i++) first[i] = W[i * columns];
    for (size_t i = 0; i < rows; i++)
        if (is_zero(columns, W + i * columns)) count[i] = 1;
    for (size_t i = 0; i < rows; i++) {
        if (count[i] == 0) count_like(i, rows, columns, W, first, count);
        sum += (double)count[i];
    }
    if (sum > (double)rows)
        *copies = (et_copies){count, sum / (double)rows};
    else
        free(room);
    return ET_OK;
}

void et_free_copies(et_copies *copies)
{
    free(copies->of);
    *copies = (et_copies){0};
}

/* ---- a common direction ---- */

static double weight_at(et_matrix W, size_t row, size_t column)
{
    return (double)W.at[W.transposed ? column * W.stride + row : row * W.stride + column];
}

et_status et_find_common(et_real **along, size_t rows, size_t columns, et_matrix W, et_error *error)
{
    enum { LEAST = 16 };
    void *room, *mean;
    double squares = 0, length = 0;
    *along = NULL;
    if (rows < LEAST || columns < LEAST) return ET_OK;
    et_status status = et_allocate(&mean, columns, sizeof(double), "mean of weights", error);
    if (status != ET_OK) return status;
    double *mu = mean;
    size_t lines = W.transposed ? columns : rows, in_line = W.transposed ? rows : columns;
    for (size_t line = 0; line < lines; line++) /* as they lie in memory */
        for (size_t i = 0; i < in_line; i++) {
            double w = (double)W.at[line * W.stride + i];
            mu[W.transposed ? line : i] += w / (double)rows;
            squares += w * w / (double)rows;
        }
    for (size_t c = 0; c < columns; c++) length += mu[c] * mu[c];
    if (length > 0.1 * squares &&
        (status = et_allocate(&room, rows, sizeof(et_real), "mean of weights", error)) == ET_OK) {
        *along = room;
        for (size_t j = 0; j < rows; j++) {
            double dot = 0;
            for (size_t c = 0; c < columns; c++) dot += weight_at(W, j, c) * mu[c];
            (*along)[j] = (et_real)(dot / sqrt(length));
        }
    }
    free(mean);
    return status;
}
