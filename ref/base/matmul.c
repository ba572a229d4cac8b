/* matmul.c: C (+)= op(A) op(B), as plain loops and through OpenBLAS. See etref/matmul.h.
 *
 * The plain engine is the definition
 *
 *     for i, j:   c = C_ij or 0;   for k = 0, 1, ... K-1:   c = c + a_ik * b_kj;   C_ij = c
 *
 * with its loops cut into blocks so that operands stay in cache and registers. Cutting changes the
 * order in which ELEMENTS are visited, never the order of the sum within one: a block of k ends by
 * storing c, the next begins by loading it, and a store and a load change no bit (c has the type of
 * C; -ffp-contract=off keeps the product's own rounding). Different columns j go side by side into
 * vector lanes, which are as independent as the columns are.
 *
 *     K in blocks of KC                the packed pieces of A and B below fit the caches
 *       rows in strips of MR           A packed to [k][MR], one strip at a time
 *         columns in panels of NR      B packed to [k][NR]: one row of a panel is NR/V vectors;
 *                                      MR*NR sums live in registers
 *
 * The packed pieces lie on the stack, which may be a small thread's: 52 KiB together.
 *
 * Source of the scheme: Goto and van de Geijn, Anatomy of High-Performance Matrix Multiplication,
 * ACM TOMS 34(3), 2008. Left out: anything that would change a bit (fused multiply-add, partial
 * sums by lane), and assembly.
 */
#include "etref/matmul.h"

#include "ref/base/arithmetic.h"
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

/* 16 bytes a vector: what every x86-64 and AArch64 machine has. Both compilers of the project know
 * this extension; an operation on vectors is the same operation on each lane. */
typedef et_real lanes __attribute__((vector_size(16)));

enum {
    V = 16 / sizeof(et_real), /* lanes of a vector: 2 or 4 */
    MR = 4,                   /* rows of a register tile */
    NV = 3,                   /* vectors in a row of it: 12 sums + 3 of B + 1 of A = 16 registers */
    NR = NV * V,              /* columns of it */
    KC = 128,                 /* terms between two visits to C */
    MC = 128,                 /* rows of C in a block */
    NC = NR * 8               /* columns of C in a block, of B packed at a time: 48 KiB */
};

/* The steps in memory from one row, and from one column, of op(X) to the next. */
static size_t row_step(et_matrix X)
{
    return X.transposed ? 1 : X.stride;
}

static size_t column_step(et_matrix X)
{
    return X.transposed ? X.stride : 1;
}

/* op(A) rows [i0, i0+rows), terms [k0, k0+terms) into a strip [terms][MR]; rows beyond are 0. */
static void pack_rows(et_matrix A, size_t i0, size_t rows, size_t k0, size_t terms, et_real *to)
{
    size_t down = row_step(A), across = column_step(A);
    const et_real *from = A.at + i0 * down + k0 * across;
    for (size_t k = 0; k < terms; k++)
        for (size_t i = 0; i < MR; i++) *to++ = i < rows ? from[i * down + k * across] : 0;
}

/* op(B) terms [k0, k0+terms), columns [j0, j0+columns) into panels of [terms][NR], 0 beyond. */
static void pack_columns(et_matrix B, size_t k0, size_t terms, size_t j0, size_t columns,
                         et_real *to)
{
    size_t down = row_step(B), across = column_step(B);
    const et_real *from = B.at + k0 * down + j0 * across;
    for (size_t panel = 0; panel < columns; panel += NR)
        for (size_t k = 0; k < terms; k++)
            for (size_t j = panel; j < panel + NR; j++)
                *to++ = j < columns ? from[k * down + j * across] : 0;
}

/* One register tile: sums[i][j] += a[k][i] * b[k][j] for k in order. */
static void tile(size_t terms, const et_real *a, const et_real *b, et_real sums[MR][NR])
{
    lanes s[MR][NV];
    memcpy(s, sums, sizeof s);
    for (size_t k = 0; k < terms; k++, a += MR, b += NR) {
        lanes row[NV];
        memcpy(row, b, sizeof row);
        for (int i = 0; i < MR; i++)
            for (int v = 0; v < NV; v++) s[i][v] = s[i][v] + row[v] * a[i];
    }
    memcpy(sums, s, sizeof s);
}

/* The tile at rows [0, rows), columns [0, columns) of C, which may be cut at C's edge. */
static void tile_at(size_t terms, const et_real *a, const et_real *b, size_t rows, size_t columns,
                    bool load, et_real *C, size_t stride)
{
    et_real sums[MR][NR] = {{0}};
    if (load)
        for (size_t i = 0; i < rows; i++)
            memcpy(sums[i], C + i * stride, columns * sizeof(et_real));
    tile(terms, a, b, sums);
    for (size_t i = 0; i < rows; i++) memcpy(C + i * stride, sums[i], columns * sizeof(et_real));
}

static size_t smaller(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* The block of C at rows [i0, ..+MC), columns [j0, ..+NC), all K terms. */
static void block(size_t M, size_t N, size_t K, et_matrix A, et_matrix B, size_t i0, size_t j0,
                  bool accumulate, et_real *C, size_t stride)
{
    et_real packed_a[MR * KC], packed_b[NC * KC];
    size_t rows = smaller(MC, M - i0), columns = smaller(NC, N - j0);
    for (size_t k0 = 0; k0 < K; k0 += KC) {
        size_t terms = smaller(KC, K - k0);
        pack_columns(B, k0, terms, j0, columns, packed_b);
        for (size_t i = 0; i < rows; i += MR) {
            pack_rows(A, i0 + i, smaller(MR, rows - i), k0, terms, packed_a);
            for (size_t j = 0; j < columns; j += NR)
                tile_at(terms, packed_a, packed_b + j * terms, smaller(MR, rows - i),
                        smaller(NR, columns - j), accumulate || k0 > 0,
                        C + (i0 + i) * stride + j0 + j, stride);
        }
    }
}

static void plain(size_t M, size_t N, size_t K, et_matrix A, et_matrix B, bool accumulate,
                  et_real *C, size_t stride)
{
    size_t down = (M + MC - 1) / MC, across = (N + NC - 1) / NC;
    /* Blocks of C are disjoint: whoever computes one, it gets the same bits. */
#pragma omp parallel for schedule(dynamic) if (down * across > 1 &&                                \
                                               et_worth_threads(M * N / 8 * K))
    for (size_t b = 0; b < down * across; b++)
        block(M, N, K, A, B, b % down * MC, b / down * NC, accumulate, C, stride);
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
