/* plain_product.c: the plain engine's products. See plain_product.h; the loops are those of tiles.h.
 *
 * Different columns j go side by side into vector lanes, which are as independent as the columns are.
 * c has the type of C; -ffp-contract=off keeps the product's own rounding.
 */
#include "ref/base/plain_product.h"
#include "ref/base/threads.h"

#include <math.h>
#include <string.h>
#if defined __x86_64__
#include <immintrin.h> /* fused multiply-add on vectors */
#endif

enum {
    MR = 4, /* rows of a register tile; with 3 vectors in a row of it: 12 sums, 3 of B, 1 of A: 16
               * registers, which every x86-64 and AArch64 machine has */
    NV = 3,
    KC = 128, /* terms between two visits to C */
    MC = 128  /* rows of C in a block */
};

/* ---- tiles ---- */

/* Both compilers of the project know vectors; an operation on them is the same operation on each lane. Registers hold 16
 * bytes at least; where the processor has wider ones there is a tile for them. C and rows of B are read and written a
 * vector at a time, for only then does the compiler leave the sums in registers. */
#define VECTOR_TILE(name, number, bytes, target, add)                                              \
    target static void name(const et_grid *grid, size_t terms, const number *a, const number *b,   \
                            bool load, number *C, size_t stride)                                   \
    {                                                                                              \
        typedef number lanes __attribute__((vector_size(bytes)));                                  \
        typedef lanes in_memory __attribute__((aligned(sizeof(number)), may_alias));               \
        lanes s[MR][NV] = {{{0}}};                                                                 \
        (void)grid;                                                                                \
        if (load)                                                                                  \
            for (int i = 0; i < MR; i++)                                                           \
                for (int v = 0; v < NV; v++) s[i][v] = ((const in_memory *)(C + i * stride))[v];   \
        for (size_t k = 0; k < terms; k++, a += MR, b += NV * bytes / sizeof(number))              \
            for (int i = 0; i < MR; i++)                                                           \
                for (int v = 0; v < NV; v++)                                                       \
                    s[i][v] = add(s[i][v], a[i], ((const in_memory *)b)[v]);                       \
        for (int i = 0; i < MR; i++)                                                               \
            for (int v = 0; v < NV; v++) ((in_memory *)(C + i * stride))[v] = s[i][v];             \
    }

/* The same number by number: with a fused multiply-add, for which vectors have no operator, and with sums that are rounded. */
#define SCALAR_TILE(name, number, add)                                                             \
    static void name(const et_grid *grids, size_t terms, const number *a, const number *b,         \
                     bool load, number *C, size_t stride)                                          \
    {                                                                                              \
        enum { COLUMNS = NV * 16 / sizeof(number) };                                               \
        const et_grid product = grids ? grids[0] : (et_grid){0}, sum = grids ? grids[1] : product; \
        number s[MR][COLUMNS] = {{0}};                                                             \
        (void)sum;                                                                                 \
        for (int i = 0; load && i < MR; i++) memcpy(s[i], C + i * stride, sizeof s[i]);            \
        for (size_t k = 0; k < terms; k++, a += MR, b += COLUMNS)                                  \
            for (int i = 0; i < MR; i++)                                                           \
                for (int j = 0; j < COLUMNS; j++) s[i][j] = add(s[i][j], a[i], b[j]);              \
        for (int i = 0; i < MR; i++) memcpy(C + i * stride, s[i], sizeof s[i]);                    \
    }

#define ADD(c, a, b)          ((c) + (a) * (b))
#define FUSED_FLOAT(c, a, b)  fmaf(a, b, c)
#define FUSED_DOUBLE(c, a, b) fma(a, b, c)
#define ROUNDED(c, a, b)      et_grid_sum(&sum, (c) + et_grid_sum(&product, (a) * (b)))
VECTOR_TILE(float_16_tile, float, 16, , ADD)
VECTOR_TILE(double_16_tile, double, 16, , ADD)
SCALAR_TILE(float_16_fused_tile, float, FUSED_FLOAT)
SCALAR_TILE(double_16_fused_tile, double, FUSED_DOUBLE)
SCALAR_TILE(rounded_tile, double, ROUNDED)

#define NUMBER      float
#define MATRIX      et_floats
#define NAMED(word) float_16_##word
#define BYTES       16
#include "ref/base/tiles.h"

#define NUMBER      double
#define MATRIX      et_doubles
#define NAMED(word) double_16_##word
#define BYTES       16
#include "ref/base/tiles.h"

#define NUMBER      float
#define MATRIX      et_floats
#define NAMED(word) float_16_fused_##word
#define BYTES       16
#include "ref/base/tiles.h"

#define NUMBER      double
#define MATRIX      et_doubles
#define NAMED(word) double_16_fused_##word
#define BYTES       16
#include "ref/base/tiles.h"

#define NUMBER      double
#define MATRIX      et_doubles
#define NAMED(word) rounded_##word
#define BYTES       16
#include "ref/base/tiles.h"

#if defined __x86_64__

#define AVX2    __attribute__((target("avx2")))
#define FMA     __attribute__((target("avx2,fma")))
#define AVX512F __attribute__((target("avx512f")))
#define FUSED_FLOATS(c, a, b)  _mm256_fmadd_ps(_mm256_set1_ps(a), b, c)
#define FUSED_DOUBLES(c, a, b) _mm256_fmadd_pd(_mm256_set1_pd(a), b, c)
VECTOR_TILE(float_32_tile, float, 32, AVX2, ADD)
VECTOR_TILE(double_32_tile, double, 32, AVX2, ADD)
VECTOR_TILE(float_32_fused_tile, float, 32, FMA, FUSED_FLOATS)
VECTOR_TILE(double_32_fused_tile, double, 32, FMA, FUSED_DOUBLES)
VECTOR_TILE(float_64_tile, float, 64, AVX512F, ADD)
VECTOR_TILE(double_64_tile, double, 64, AVX512F, ADD)

#define NUMBER      float
#define MATRIX      et_floats
#define NAMED(word) float_32_##word
#define BYTES       32
#include "ref/base/tiles.h"

#define NUMBER      double
#define MATRIX      et_doubles
#define NAMED(word) double_32_##word
#define BYTES       32
#include "ref/base/tiles.h"

#define NUMBER      float
#define MATRIX      et_floats
#define NAMED(word) float_32_fused_##word
#define BYTES       32
#include "ref/base/tiles.h"

#define NUMBER      double
#define MATRIX      et_doubles
#define NAMED(word) double_32_fused_##word
#define BYTES       32
#include "ref/base/tiles.h"

#define NUMBER      float
#define MATRIX      et_floats
#define NAMED(word) float_64_##word
#define BYTES       64
#include "ref/base/tiles.h"

#define NUMBER      double
#define MATRIX      et_doubles
#define NAMED(word) double_64_##word
#define BYTES       64
#include "ref/base/tiles.h"

/* The product in the widest vectors that the processor has. */
#define IN_WIDEST(kind, ...)                                                                       \
    __builtin_cpu_supports("avx512f") ? kind##_64_product(&(kind##_64_job){__VA_ARGS__})           \
    : __builtin_cpu_supports("avx2")  ? kind##_32_product(&(kind##_32_job){__VA_ARGS__})           \
                                      : kind##_16_product(&(kind##_16_job){__VA_ARGS__})

#define FUSED(kind, ...)                                                                           \
    __builtin_cpu_supports("fma") ? kind##_32_fused_product(&(kind##_32_fused_job){__VA_ARGS__})   \
                                  : kind##_16_fused_product(&(kind##_16_fused_job){__VA_ARGS__})

#else
#define IN_WIDEST(kind, ...) kind##_16_product(&(kind##_16_job){__VA_ARGS__})
#define FUSED(kind, ...)     kind##_16_fused_product(&(kind##_16_fused_job){__VA_ARGS__})
#endif

/* ---- products ---- */

void et_blocked_float(size_t M, size_t N, size_t K, et_floats A, et_floats B, bool accumulate,
                      float *C, size_t stride)
{
    IN_WIDEST(float, M, N, K, A, B, accumulate, C, stride, NULL);
}

void et_blocked_double(size_t M, size_t N, size_t K, et_doubles A, et_doubles B, bool accumulate,
                       double *C, size_t stride)
{
    IN_WIDEST(double, M, N, K, A, B, accumulate, C, stride, NULL);
}

void et_blocked_fused_float(size_t M, size_t N, size_t K, et_floats A, et_floats B, bool accumulate,
                            float *C, size_t stride)
{
    FUSED(float, M, N, K, A, B, accumulate, C, stride, NULL);
}

void et_blocked_fused_double(size_t M, size_t N, size_t K, et_doubles A, et_doubles B,
                             bool accumulate, double *C, size_t stride)
{
    FUSED(double, M, N, K, A, B, accumulate, C, stride, NULL);
}

void et_blocked_rounded(const et_grid grids[2], size_t M, size_t N, size_t K, et_doubles A,
                        et_doubles B, bool accumulate, double *C, size_t stride)
{
    rounded_product(&(rounded_job){M, N, K, A, B, accumulate, C, stride, grids});
}
