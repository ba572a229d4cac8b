/* product.c: a matrix product as a kernel does it. See product.h. */
#include "ref/base/product.h"
#include "ref/base/blocked.h"
#include "ref/base/memory.h"
#include "ref/base/parallel.h"
#include "ref/base/sum.h"

#include <cblas.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { SINGLE = 24, DOUBLE = 53 }; /* bits of the two kinds of number that processors add */

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

static et_status take(copy *c, size_t rows, size_t columns, et_error *error)
{
    c->stride = columns;
    return et_allocate(&c->at, rows * columns, c->single ? sizeof(float) : sizeof(double),
                       "operands", error);
}

static int bits_as_stored(const et_profile *p, const et_operand *X)
{
    return X->stored == ET_UNSTORED ? DOUBLE : p->bits[X->stored];
}

/* Is a number that was stored as X a number of operands' format? */
static bool is_stored_as_operand(const et_profile *p, const et_operand *X)
{
    return X->stored != ET_UNSTORED && p->bits[X->stored] <= p->bits[ET_OPERANDS] &&
           et_place_largest(p, X->stored) <= et_place_largest(p, ET_OPERANDS) &&
           et_place_smallest(p, X->stored) >= et_place_smallest(p, ET_OPERANDS);
}

/* X in operands' format, its terms in the sum's order. `lines` of `width` numbers in memory; the terms
 * are its lines, or the numbers within each. */
static et_status copy_operand(const et_rounding *r, const et_operand *X, size_t lines, size_t width,
                              bool terms_are_lines, const size_t *order, copy *to, et_error *error)
{
    const et_grid grid = et_grid_of(r, ET_OPERANDS, X->site);
    bool stored = is_stored_as_operand(r->profile, X);
    et_status status = take(to, lines, width, error);
    if (status != ET_OK) return status;
    to->transposed = X->at.transposed;
#pragma omp parallel for if (et_worth_threads(lines * width))
    for (size_t i = 0; i < lines; i++) {
        const et_real *line = X->at.at + (terms_are_lines ? order[i] : i) * X->at.stride;
        for (size_t j = 0; j < width; j++) {
            double v = (double)line[terms_are_lines ? j : order[j]];
            put(to, i * width + j, stored ? v : et_grid_round(&grid, v));
        }
    }
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

static void store_sums(size_t M, size_t N, const copy *from, et_real *C, size_t stride)
{
#pragma omp parallel for if (et_worth_threads(M * N))
    for (size_t i = 0; i < M; i++)
        for (size_t j = 0; j < N; j++) C[i * stride + j] = (et_real)get(from, i * N + j);
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

/* Is the accumulator's arithmetic one that processors have? */
static bool is_native(const et_profile *p)
{
    return (p->bits[ET_ACCUMULATOR] == SINGLE || p->bits[ET_ACCUMULATOR] == DOUBLE) &&
           !p->truncate_accumulator && !p->ftz;
}

static void add_in_order(const et_rounding *r, size_t M, size_t N, size_t K, const copy *A,
                         const copy *B, bool accumulate, copy *C)
{
    et_doubles a = {A->at, A->stride, A->transposed}, b = {B->at, B->stride, B->transposed};
    if (C->single) {
        et_floats fa = {A->at, A->stride, A->transposed}, fb = {B->at, B->stride, B->transposed};
        et_blocked_float(M, N, K, fa, fb, accumulate, C->at, N);
    } else if (is_native(r->profile)) {
        et_blocked_double(M, N, K, a, b, accumulate, C->at, N);
    } else {
        const et_grid grid = et_grid_of(r, ET_ACCUMULATOR, "sum");
        et_blocked_rounded(&grid, M, N, K, a, b, accumulate, C->at, N);
    }
}

/* Is every product of two operands a number of the accumulator? */
static bool products_are_exact(const et_profile *p, const et_operand *A, const et_operand *B)
{
    int a = bits_as_stored(p, A), b = bits_as_stored(p, B), most = p->bits[ET_OPERANDS];
    return (a < most ? a : most) + (b < most ? b : most) <= p->bits[ET_ACCUMULATOR];
}

static bool fits_blas(size_t M, size_t N, size_t K)
{
    return M <= INT32_MAX && N <= INT32_MAX && K <= INT32_MAX;
}

static et_status kernel_product(const et_rounding *r, et_engine engine, size_t M, size_t N,
                                size_t K, const et_operand *A, const et_operand *B, bool accumulate,
                                et_real *C, size_t c_stride, et_error *error)
{
    const et_profile *p = r->profile;
    const et_order way = et_order_of(r, A->site, K);
    bool single = is_native(p) && p->bits[ET_ACCUMULATOR] == SINGLE, a_lines = A->at.transposed,
         b_lines = !B->at.transposed;
    copy a = {.single = single}, b = a, c = a;
    void *room;
    et_status status = et_allocate(&room, K, sizeof(size_t), "an order of terms", error);
    if (status != ET_OK) return status;
    size_t *order = room;
    for (size_t k = 0; k < K; k++) order[k] = et_order_at(&way, k);
    if ((status = copy_operand(r, A, a_lines ? K : M, a_lines ? M : K, a_lines, order, &a,
                               error)) == ET_OK &&
        (status = copy_operand(r, B, b_lines ? K : N, b_lines ? N : K, b_lines, order, &b,
                               error)) == ET_OK &&
        (status = copy_sums(M, N, accumulate, C, c_stride, &c, error)) == ET_OK) {
        if (engine == ET_BLAS && is_native(p) && products_are_exact(p, A, B) && fits_blas(M, N, K))
            add_by_blas(M, N, K, &a, &b, accumulate, &c);
        else
            add_in_order(r, M, N, K, &a, &b, accumulate, &c);
        store_sums(M, N, &c, C, c_stride);
    }
    free(c.at);
    free(b.at);
    free(a.at);
    free(order);
    return status;
}

et_status et_product(const et_rounding *rounding, et_engine engine, size_t M, size_t N, size_t K,
                     et_operand A, et_operand B, bool accumulate, et_real *C, size_t c_stride,
                     et_error *error)
{
    if (rounding != NULL && M > 0 && N > 0 && K > 0)
        return kernel_product(rounding, engine, M, N, K, &A, &B, accumulate, C, c_stride, error);
    et_matmul(engine, M, N, K, A.at, B.at, accumulate, C, c_stride);
    return ET_OK;
}
