/* matmul.c: C (+)= op(A) op(B), as plain loops (blocked.c) and through OpenBLAS. See etref/matmul.h. */
#include "etref/matmul.h"

#include "ref/base/arithmetic.h"
#include "ref/base/blocked.h"
#include "ref/base/parallel.h"

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

static void blas(size_t M, size_t N, size_t K, et_matrix A, et_matrix B, bool accumulate,
                 et_real *C, size_t stride)
{
#ifdef ETREF_F32
#define GEMM cblas_sgemm
#else
#define GEMM cblas_dgemm
#endif
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
