/* twins.c: rows that are equal, by a hash table; their largest common part; copies. See twins.h. */
#include "ref/layers/twins.h"
#include "ref/base/bits.h"
#include "ref/base/memory.h"
#include "ref/base/parallel.h"

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

/* In the manner of FNV-1a, over numbers, each divided by `unit`; adding 0 turns -0 into +0. Short numbers end
 * in zeros and differ in their upper bits alone, which a product moves further up: they are folded down. */
static uint64_t hash_row(size_t d, const et_real *row, double unit, uint64_t hash)
{
    for (size_t c = 0; c < d; c++) {
        hash = (hash ^ to_bits((double)row[c] / unit + 0)) * 0x100000001b3u;
        hash ^= hash >> 32;
    }
    return hash ^ hash >> 16;
}

/* Rows to be compared. */
typedef struct row_set {
    size_t count, d;
    const et_real *rows;
    size_t hashed;       /* of a row's d numbers, the first so many are hashed */
    bool parallel;       /* multiples of one another count as equal */
    const int32_t *also; /* [count] numbers that must be equal, too; or NULL */
} row_set;

static uint64_t hash_of(const row_set *r, size_t t)
{
    const et_real *row = r->rows + t * r->d;
    double unit = r->parallel ? first_number(r->d, row) : 1;
    return hash_row(r->hashed, row, unit,
                    0xcbf29ce484222325u + (r->also ? (uint64_t)r->also[t] : 0));
}

static bool are_equal(const row_set *r, size_t s, size_t t)
{
    const et_real *a = r->rows + s * r->d, *b = r->rows + t * r->d;
    if (r->also && r->also[s] != r->also[t]) return false;
    return r->parallel ? parallel_row(r->d, a, b) : same_row(r->d, a, b);
}

static size_t table_size(size_t count)
{
    size_t size = 2;
    while (size < 2 * count) size *= 2;
    return size;
}

/* first[t] = the first row that equals row t; *different rows there are. */
static et_status find(const row_set *r, int32_t *first, size_t *different, et_error *error)
{
    size_t size = table_size(r->count);
    void *hashes, *entries;
    *different = 0;
    et_status status = et_allocate(&hashes, r->count, sizeof(uint64_t), "equal rows", error);
    if (status != ET_OK) return status;
    status = et_allocate(&entries, size, sizeof(int32_t), "equal rows", error);
    if (status != ET_OK) {
        free(hashes);
        return status;
    }
    uint64_t *hash = hashes;
    int32_t *table = entries;
#pragma omp parallel for if (et_worth_threads(r->count * r->hashed))
    for (size_t t = 0; t < r->count; t++) hash[t] = hash_of(r, t);
    for (size_t i = 0; i < size; i++) table[i] = -1;
    for (size_t t = 0; t < r->count; t++) {
        size_t at = (size_t)hash[t] & (size - 1);
        while (table[at] >= 0 && !are_equal(r, (size_t)table[at], t)) at = (at + 1) & (size - 1);
        if (table[at] < 0) {
            table[at] = (int32_t)t;
            ++*different;
        }
        first[t] = table[at];
    }
    free(table);
    free(hash);
    return ET_OK;
}

static void count_each(size_t count, const int32_t *first, int32_t *number)
{
    for (size_t t = 0; t < count; t++) number[t] = 0;
    for (size_t t = 0; t < count; t++) number[first[t]]++;
    for (size_t t = 0; t < count; t++) number[t] = number[first[t]];
}

et_status et_find_twins(et_token_twins *twins, size_t N, size_t d, const et_real *x,
                        const et_real *dy, et_error *error)
{
    void *room;
    size_t groups;
    *twins = (et_token_twins){0};
    et_status status = et_allocate(&room, 4 * N, sizeof(int32_t), "twins", error);
    if (status != ET_OK) return status;
    twins->input = room;
    twins->both = twins->input + N;
    twins->inputs = twins->both + N;
    twins->boths = twins->inputs + N;
    if ((status = find(&(row_set){N, d, x, d, false, NULL}, twins->input, &twins->groups, error)) ||
        (status =
             find(&(row_set){N, d, dy, d, false, twins->input}, twins->both, &groups, error))) {
        et_free_twins(twins);
        return status;
    }
    count_each(N, twins->input, twins->inputs);
    count_each(N, twins->both, twins->boths);
    return ET_OK;
}

et_status et_find_equal_rows(size_t N, size_t d, const et_real *x, bool parallel, int32_t *first,
                             size_t *different, et_error *error)
{
    return find(&(row_set){N, d, x, d, parallel, NULL}, first, different, error);
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

static bool is_zero(size_t d, const et_real *row)
{
    for (size_t c = 0; c < d; c++)
        if (row[c] != 0) return false;
    return true;
}

et_status et_find_copies(et_copies *copies, size_t rows, size_t columns, const et_real *W,
                         et_error *error)
{
    enum { HASHED = 8 };
    void *room, *of = NULL;
    size_t different, sum = 0;
    *copies = (et_copies){.mean = 1};
    et_status status = et_allocate(&room, 2 * rows, sizeof(int32_t), "rows of weights", error);
    if (status != ET_OK) return status;
    int32_t *first = room, *count = first + rows;
    row_set r = {rows, columns, W, columns < HASHED ? columns : HASHED, false, NULL};
    if ((status = find(&r, first, &different, error)) || different == rows) goto out;
    count_each(rows, first, count);
    if ((status = et_allocate(&of, rows, sizeof(et_real), "rows of weights", error))) goto out;
    copies->of = of;
    for (size_t i = 0; i < rows; i++) {
        if (is_zero(columns, W + i * columns)) count[i] = 1;
        copies->of[i] = (et_real)count[i];
        sum += (size_t)count[i];
    }
    copies->mean = (double)sum / (double)rows;
    if (sum == rows) { /* equal rows of zeros only */
        free(of);
        *copies = (et_copies){.mean = 1};
    }
out:
    free(room);
    return status;
}

void et_free_copies(et_copies *copies)
{
    free(copies->of);
    *copies = (et_copies){0};
}

/* ---- a common direction ---- */

/* The mean square of W's rows. */
static et_status mean_square(size_t rows, size_t columns, et_matrix W, double *mean,
                             et_error *error)
{
    size_t lines = W.transposed ? columns : rows, in_line = W.transposed ? rows : columns;
    void *room;
    et_status status = et_allocate(&room, lines, sizeof(double), "squares of weights", error);
    if (status != ET_OK) return status;
    double *squares = room;
#pragma omp parallel for if (et_worth_threads(rows * columns))
    for (size_t line = 0; line < lines; line++) /* as they lie in memory */
        for (size_t i = 0; i < in_line; i++) {
            double w = (double)W.at[line * W.stride + i];
            squares[line] += w * w;
        }
    *mean = 0;
    for (size_t line = 0; line < lines; line++) *mean += squares[line] / (double)rows;
    free(room);
    return ET_OK;
}

et_status et_find_common(et_real **along, size_t rows, size_t columns, et_matrix W, et_error *error)
{
    enum { LEAST = 16 };
    void *room, *result;
    double square = 0, length = 0;
    *along = NULL;
    if (rows < LEAST || columns < LEAST) return ET_OK;
    et_status status =
        et_allocate(&room, columns + rows, sizeof(et_real), "mean of weights", error);
    if (status != ET_OK) return status;
    et_real *mean = room, *part = mean + columns; /* part: each row's in the mean */
    for (size_t j = 0; j < rows; j++) part[j] = 1 / (et_real)rows;
    et_matmul(ET_BLAS, 1, columns, rows, et_rows(part, rows), W, false, mean, columns);
    for (size_t c = 0; c < columns; c++) length += (double)mean[c] * (double)mean[c];
    status = mean_square(rows, columns, W, &square, error);
    if (status == ET_OK && length > 0.1 * square &&
        (status = et_allocate(&result, rows, sizeof(et_real), "mean of weights", error)) == ET_OK) {
        *along = result;
        et_matmul(ET_BLAS, rows, 1, columns, W, et_rows(mean, 1), false, *along, 1);
        for (size_t j = 0; j < rows; j++) (*along)[j] /= (et_real)sqrt(length);
    }
    free(room);
    return status;
}
