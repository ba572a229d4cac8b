/* matmul.c: C (+)= op(A) op(B) and C = op(X) op(X)', as plain loops (plain_product.c) and through OpenBLAS. See
 * etref/matmul.h. */
#include "etref/matmul.h"

#include "ref/base/float_environment.h"
#include "ref/base/plain_product.h"
#include "ref/base/threads.h"

#include <cblas.h>
#include <stdint.h>
#include <string.h>

et_matrix et_rows(const et_real *at, size_t columns)
{
    return (et_matrix){at, columns, false};
}

et_matrix et_transposed(const et_real *at, size_t columns)
{
    return (et_matrix){at, columns, true};
}

static void plain(size_t M, size_t N, size_t K, et_matrix A, et_matrix B, bool accumulate,
                  et_real *C, size_t stride)
{
#ifdef ETREF_F32
    et_floats a = {A.at, A.stride, A.transposed}, b = {B.at, B.stride, B.transposed};
    et_blocked_float(M, N, K, a, b, accumulate, C, stride);
#else
    et_doubles a = {A.at, A.stride, A.transposed}, b = {B.at, B.stride, B.transposed};
    et_blocked_double(M, N, K, a, b, accumulate, C, stride);
#endif
}

#ifdef ETREF_F32
#define GEMM cblas_sgemm
#define SYRK cblas_ssyrk
#else
#define GEMM cblas_dgemm
#define SYRK cblas_dsyrk
#endif

static void blas(size_t M, size_t N, size_t K, et_matrix A, et_matrix B, bool accumulate,
                 et_real *C, size_t stride)
{
    et_worth_threads(M * N / 8 * K); /* OpenBLAS shares the threads: they are made ready */
    GEMM(CblasRowMajor, A.transposed ? CblasTrans : CblasNoTrans,
         B.transposed ? CblasTrans : CblasNoTrans, (int)M, (int)N, (int)K, 1, A.at, (int)A.stride,
         B.at, (int)B.stride, accumulate ? 1 : 0, C, (int)stride);
}

static bool fits_blas(size_t M, size_t N, size_t K, et_matrix A, et_matrix B, size_t stride)
{
    return M <= INT32_MAX && N <= INT32_MAX && K <= INT32_MAX && A.stride <= INT32_MAX &&
           B.stride <= INT32_MAX && stride <= INT32_MAX;
}

void et_matmul(et_engine engine, size_t M, size_t N, size_t K, et_matrix A, et_matrix B,
               bool accumulate, et_real *C, size_t c_stride)
{
    ET_ARITHMETIC;
    if (M == 0 || N == 0) return;
    if (K == 0) { /* an empty sum; spelled out, since no block of k would run */
        for (size_t i = 0; i < M && !accumulate; i++)
            memset(C + i * c_stride, 0, N * sizeof(et_real));
        return;
    }
    if (engine == ET_BLAS && fits_blas(M, N, K, A, B, c_stride))
        blas(M, N, K, A, B, accumulate, C, c_stride);
    else
        plain(M, N, K, A, B, accumulate, C, c_stride);
}

/* What is below the diagonal, above it; by tiles, whose lines stay in the nearest cache. */
static void mirror(size_t s, et_real *C)
{
    enum { TILE = 16 };
    for (size_t top = 0; top < s; top += TILE)
        for (size_t left = 0; left <= top; left += TILE)
            for (size_t i = top; i < et_smaller(top + TILE, s); i++)
                for (size_t j = left; j < et_smaller(left + TILE, i); j++)
                    C[j * s + i] = C[i * s + j];
}

/* Rows up to the diagonal, some at a time. */
static void plain_below(size_t s, size_t K, et_matrix X, et_real *C)
{
    enum { BLOCK = 32 };
    et_matrix turned = {X.at, X.stride, !X.transposed};
    for (size_t from = 0; from < s; from += BLOCK) {
        size_t m = et_smaller(BLOCK, s - from);
        et_matrix some = {X.at + from * (X.transposed ? 1 : X.stride), X.stride, X.transposed};
        et_matmul(ET_PLAIN, m, from + m, K, some, turned, false, C + from * s, s);
    }
}

void et_gram(et_engine engine, size_t s, size_t K, et_matrix X, et_real *C)
{
    ET_ARITHMETIC;
    if (engine == ET_BLAS && s > 0 && K > 0 && fits_blas(s, s, K, X, X, s)) {
        et_worth_threads(s * s / 16 * K);
        SYRK(CblasRowMajor, CblasLower, X.transposed ? CblasTrans : CblasNoTrans, (int)s, (int)K, 1,
             X.at, (int)X.stride, 0, C, (int)s);
    } else {
        plain_below(s, K, X, C);
    }
    mirror(s, C);
}
