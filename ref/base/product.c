/* product.c: a matrix product as a kernel does it. See product.h. */
#include "ref/base/product.h"
#include "ref/base/plain_product.h"
#include "ref/base/lanes.h"
#include "ref/base/memory.h"
#include "ref/base/threads.h"
#include "ref/base/sum.h"

#include <cblas.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { SINGLE = 24, DOUBLE = 53 }; /* bits of the two kinds of number that processors add */
enum { PIECE = 256 };              /* of a line that is rounded at a time, in the nearest cache */

/* ---- what a product is made of ---- */

/* An operand, or C, as the sum takes it: without gaps, in float or in double. */
typedef struct copy {
    bool single;
    void *at;
    size_t stride;
    bool transposed;
} copy;

static void put(const copy *to, size_t i, double v)
{
    if (to->single)
        ((float *)to->at)[i] = (float)v;
    else
        ((double *)to->at)[i] = v;
}

static double get(const copy *from, size_t i)
{
    return from->single ? (double)((const float *)from->at)[i] : ((const double *)from->at)[i];
}

static void put_all(const copy *to, size_t first, size_t count, const double *v)
{
    if (to->single)
        for (size_t j = 0; j < count; j++) ((float *)to->at)[first + j] = (float)v[j];
    else
        memcpy((double *)to->at + first, v, count * sizeof *v);
}

static et_status take(copy *c, size_t rows, size_t columns, et_error *error)
{
    c->stride = columns;
    return et_allocate(&c->at, rows * columns, c->single ? sizeof(float) : sizeof(double),
                       "operands", error);
}

static int operand_bits(const et_profile *p, const et_operand *X)
{
    int bits = et_place_bits(p, X->place);
    int stored = X->stored == ET_UNSTORED ? DOUBLE : et_place_bits(p, (et_place)X->stored);
    return stored < bits ? stored : bits;
}

/* One line; `order`: of the terms, which are its numbers, or NULL. */
static void copy_line(const et_grid *grid, const et_real *line, size_t width, const size_t *order,
                      size_t at, copy *to)
{
    for (size_t from = 0; from < width; from += PIECE) {
        double was[PIECE], v[PIECE];
        size_t count = width - from < PIECE ? width - from : PIECE;
        if (order)
            for (size_t j = 0; j < count; j++) was[j] = (double)line[order[from + j]];
        else
            for (size_t j = 0; j < count; j++) was[j] = (double)line[from + j];
        et_grid_round_all(grid, count, was, v);
        if (grid->flushes)
            for (size_t j = 0; j < count; j++) v[j] = fabs(v[j]) < grid->smallest ? 0 : v[j];
        put_all(to, at + from, count, v);
    }
}

/* X in operands' format, its terms in the sum's order. `lines` of `width` numbers in memory; the terms
 * are its lines, or the numbers within each. */
static et_status copy_operand(const et_rounding *r, const et_operand *X, size_t lines, size_t width,
                              bool terms_are_lines, const size_t *order, copy *to, et_error *error)
{
    const et_grid grid = X->stored == ET_UNSTORED ? et_grid_of_input(r, X->place, X->site)
                                                  : et_grid_of(r, X->place, X->site);
    et_status status = take(to, lines, width, error);
    if (status != ET_OK) return status;
    to->transposed = X->at.transposed;
    const size_t *lines_order = terms_are_lines ? order : NULL;
    const size_t *numbers_order = terms_are_lines ? NULL : order;
    ET_BY_THREADS(et_worth_threads(lines * width),
                  for (size_t i = 0; i < lines; i++)
                      copy_line(&grid, X->at.at + (lines_order ? lines_order[i] : i) * X->at.stride,
                                width, numbers_order, i * width, to));
    return ET_OK;
}

static et_status copy_sums(size_t M, size_t N, bool accumulate, const et_real *C, size_t stride,
                           copy *to, et_error *error)
{
    et_status status = take(to, M, N, error);
    for (size_t i = 0; status == ET_OK && accumulate && i < M; i++)
        for (size_t j = 0; j < N; j++) put(to, i * N + j, (double)C[i * stride + j]);
    return status;
}

static void store_row(size_t N, const copy *from, size_t first, et_real *C)
{
    if (from->single)
        for (size_t j = 0; j < N; j++) C[j] = (et_real)((const float *)from->at)[first + j];
    else
        for (size_t j = 0; j < N; j++) C[j] = (et_real)((const double *)from->at)[first + j];
}

static void store_sums(size_t M, size_t N, const copy *from, et_real *C, size_t stride)
{
    ET_BY_THREADS(et_worth_threads(M * N),
                  for (size_t i = 0; i < M; i++) store_row(N, from, i * N, C + i * stride));
}

/* ---- the sum ---- */

static CBLAS_TRANSPOSE blas_transposed(const copy *X)
{
    return X->transposed ? CblasTrans : CblasNoTrans;
}

static void add_by_blas(size_t M, size_t N, size_t K, const copy *A, const copy *B, bool accumulate,
                        copy *C)
{
    CBLAS_TRANSPOSE a = blas_transposed(A), b = blas_transposed(B);
    int rows = (int)M, columns = (int)N, terms = (int)K, a_stride = (int)A->stride,
        b_stride = (int)B->stride;
    et_worth_threads(M * N / 8 * K); /* OpenBLAS shares the threads: they are made ready */
    if (C->single)
        cblas_sgemm(CblasRowMajor, a, b, rows, columns, terms, 1, A->at, a_stride, B->at, b_stride,
                    accumulate ? 1 : 0, C->at, columns);
    else
        cblas_dgemm(CblasRowMajor, a, b, rows, columns, terms, 1, A->at, a_stride, B->at, b_stride,
                    accumulate ? 1 : 0, C->at, columns);
}

/* The accumulator of a product of A and B. */
static et_place accumulator_of(const et_operand *A, const et_operand *B)
{
    bool router = A->place == ET_ROUTER_OPERANDS || B->place == ET_ROUTER_OPERANDS;
    return router ? ET_ROUTER_ACCUMULATOR : ET_ACCUMULATOR;
}

/* Is the accumulator's arithmetic one that processors have? */
static bool is_native(const et_profile *p, et_place place)
{
    int bits = et_place_bits(p, place);
    return (bits == SINGLE || bits == DOUBLE) && !p->truncate_accumulator;
}

/* The least modulus of an operand but 0, before its rounding, which may halve it. */
static double least_of(const et_operand *X, size_t lines, size_t width)
{
    double least = (double)INFINITY;
#pragma omp parallel for reduction(min : least) if (et_worth_threads(lines * width))
    for (size_t i = 0; i < lines; i++)
        for (size_t j = 0; j < width; j++) {
            double size = fabs((double)X->at.at[i * X->at.stride + j]);
            least = size > 0 && size < least ? size : least;
        }
    return least;
}

/* May a product or a partial sum be one that a kernel flushes? `least` is the least product: each sum is a
 * multiple of its last place, and 0 if it is less than that. */
static bool may_flush(const et_profile *p, et_place place, double least)
{
    double smallest = et_place_smallest(p, place);
    return (p->flush_products && least < smallest) ||
           (p->ftz && ldexp(least, 1 - et_place_bits(p, place)) < smallest);
}

/* C (+)= A B, all of them copies. */
typedef struct job {
    size_t M, N, K;
    copy A, B, C;
    bool native;      /* added as processors add; else rounded to these */
    bool fused;       /* native, by fused multiply-add */
    et_grid grids[2]; /* of products, of sums */
} job;

/* Terms [from, from + terms). */
static void add_in_order(const job *p, size_t from, size_t terms, bool accumulate)
{
    const copy *A = &p->A, *B = &p->B;
    size_t a = from * (A->transposed ? A->stride : 1), b = from * (B->transposed ? 1 : B->stride);
    if (A->single) {
        et_floats left = {(const float *)A->at + a, A->stride, A->transposed};
        et_floats right = {(const float *)B->at + b, B->stride, B->transposed};
        (p->fused ? et_blocked_fused_float : et_blocked_float)(p->M, p->N, terms, left, right,
                                                               accumulate, p->C.at, p->N);
        return;
    }
    et_doubles left = {(const double *)A->at + a, A->stride, A->transposed};
    et_doubles right = {(const double *)B->at + b, B->stride, B->transposed};
    if (p->native)
        (p->fused ? et_blocked_fused_double : et_blocked_double)(p->M, p->N, terms, left, right,
                                                                 accumulate, p->C.at, p->N);
    else
        et_blocked_rounded(p->grids, p->M, p->N, terms, left, right, accumulate, p->C.at, p->N);
}

/* sums += the part in C: in binary32, where the profile's own chunks are added, or as the accumulator adds. */
ET_LANES static void add_part(const job *p, bool chunks, size_t count, double *sums)
{
    if (p->C.single) {
        const float *part = p->C.at;
        for (size_t i = 0; i < count; i++) sums[i] = (double)((float)sums[i] + part[i]);
        return;
    }
    const double *part = p->C.at;
    if (chunks)
        for (size_t i = 0; i < count; i++) sums[i] = (double)((float)sums[i] + (float)part[i]);
    else if (p->native)
        for (size_t i = 0; i < count; i++) sums[i] += part[i];
    else
        for (size_t i = 0; i < count; i++) sums[i] = et_grid_sum(&p->grids[1], sums[i] + part[i]);
}

/* Parts of `terms` terms, each added by itself into C; then their sums, and what was in C. */
static et_status add_parts(job *p, size_t terms, bool chunks, bool accumulate, et_error *error)
{
    size_t count = p->M * p->N;
    void *room;
    et_status status = et_allocate(&room, count, sizeof(double), "sums of parts", error);
    if (status != ET_OK) return status;
    double *sums = room;
    for (size_t i = 0; accumulate && i < count; i++) sums[i] = get(&p->C, i);
    for (size_t from = 0; from < p->K; from += terms) {
        add_in_order(p, from, p->K - from < terms ? p->K - from : terms, false);
        add_part(p, chunks, count, sums);
    }
    put_all(&p->C, 0, count, sums);
    free(sums);
    return ET_OK;
}

size_t et_terms_of_part(const et_rounding *r, const char *site, size_t K)
{
    if (!et_goes_other_way(r, "parts", site)) return 0;
    size_t parts = (size_t)2 << (et_rounding_key(r->seed, site) >> 40) % 3;
    return K > parts ? (K + parts - 1) / parts : 0;
}

/* Is the sum's own error lost in the next rounding? Every product of two operands is a number of the accumulator, and
 * what comes of the sum is stored in fewer bits. */
static bool hides_order(const et_rounding *r, const et_operand *A, const et_operand *B)
{
    const et_profile *p = r->profile;
    et_place sum = accumulator_of(A, B);
    bool stored = sum == ET_ACCUMULATOR &&
                  et_place_bits(p, ET_INTERMEDIATES) < et_place_bits(p, ET_ACCUMULATOR);
    return stored && operand_bits(p, A) + operand_bits(p, B) <= et_place_bits(p, sum);
}

static bool fits_blas(size_t M, size_t N, size_t K)
{
    return M <= INT32_MAX && N <= INT32_MAX && K <= INT32_MAX;
}

/* How the profile adds the products of A and B. */
static void choose_arithmetic(const et_rounding *r, const et_operand *A, const et_operand *B,
                              job *p)
{
    const et_profile *profile = r->profile;
    et_place place = accumulator_of(A, B);
    p->native = is_native(profile, place);
    if (p->native && (profile->ftz || profile->flush_products)) {
        size_t M = p->M, N = p->N, K = p->K;
        double a = least_of(A, A->at.transposed ? K : M, A->at.transposed ? M : K);
        double b = least_of(B, B->at.transposed ? N : K, B->at.transposed ? K : N);
        p->native = !may_flush(profile, place, a * b / 4);
    }
    p->grids[0] = p->grids[1] = et_grid_of(r, place, "sum");
    p->grids[0].flushes |= profile->flush_products;
    /* Half of the replicas add products that were not rounded: what two terms leave that cancel. */
    p->fused = p->native && et_goes_other_way(r, "fma", A->site);
    p->A.single = p->B.single = p->C.single = p->native && et_place_bits(profile, place) == SINGLE;
}

static et_status add_up(const et_rounding *r, et_engine engine, const char *site, bool hidden,
                        job *p, bool accumulate, et_error *error)
{
    size_t chunk = (size_t)r->profile->accumulator_chunk;
    size_t part = chunk > 0 ? chunk : et_terms_of_part(r, site, p->K);
    if (engine == ET_BLAS && p->native && hidden && fits_blas(p->M, p->N, p->K))
        add_by_blas(p->M, p->N, p->K, &p->A, &p->B, accumulate, &p->C);
    else if (part > 0)
        return add_parts(p, part, chunk > 0, accumulate, error);
    else
        add_in_order(p, 0, p->K, accumulate);
    return ET_OK;
}

static et_status kernel_product(const et_rounding *r, et_engine engine, size_t M, size_t N,
                                size_t K, const et_operand *A, const et_operand *B, bool accumulate,
                                et_real *C, size_t c_stride, et_error *error)
{
    const et_order way = et_order_of(r, A->site, K);
    bool a_lines = A->at.transposed, b_lines = !B->at.transposed;
    job p = {.M = M, .N = N, .K = K};
    size_t *order = NULL; /* as they stand */
    et_status status = way.way == ET_FORWARDS ? ET_OK : et_order_table(&way, &order, error);
    if (status != ET_OK) return status;
    choose_arithmetic(r, A, B, &p);
    if ((status = copy_operand(r, A, a_lines ? K : M, a_lines ? M : K, a_lines, order, &p.A,
                               error)) == ET_OK &&
        (status = copy_operand(r, B, b_lines ? K : N, b_lines ? N : K, b_lines, order, &p.B,
                               error)) == ET_OK &&
        (status = copy_sums(M, N, accumulate, C, c_stride, &p.C, error)) == ET_OK &&
        (status = add_up(r, engine, A->site, hides_order(r, A, B), &p, accumulate, error)) == ET_OK)
        store_sums(M, N, &p.C, C, c_stride);
    free(p.C.at);
    free(p.B.at);
    free(p.A.at);
    free(order);
    return status;
}

et_status et_product(const et_rounding *rounding, et_engine engine, size_t M, size_t N, size_t K,
                     et_operand A, et_operand B, bool accumulate, et_real *C, size_t c_stride,
                     et_error *error)
{
    if (et_rounds(rounding) && M > 0 && N > 0 && K > 0)
        return kernel_product(rounding, engine, M, N, K, &A, &B, accumulate, C, c_stride, error);
    et_matmul(engine, M, N, K, A.at, B.at, accumulate, C, c_stride);
    return ET_OK;
}
