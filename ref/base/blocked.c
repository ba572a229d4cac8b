/* blocked.c: the plain engine's products. See blocked.h; the loops are those of tiles.h.
 *
 * Different columns j go side by side into vector lanes, which are as independent as the columns are.
 * c has the type of C; -ffp-contract=off keeps the product's own rounding.
 */
#include "ref/base/blocked.h"
#include "ref/base/parallel.h"

#include <string.h>

enum {
    MR = 4,   /* rows of a register tile; with 3 vectors in a row of it: 12 sums, 3 of B, 1 of A: 16
               * registers of 16 bytes, which every x86-64 and AArch64 machine has */
    KC = 128, /* terms between two visits to C */
    MC = 128  /* rows of C in a block */
};

static size_t smaller(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* Both compilers of the project know vectors; an operation on them is the same operation on each lane. */
typedef float float_lanes __attribute__((vector_size(16)));
typedef double double_lanes __attribute__((vector_size(16)));

#define VECTOR_TILE(name, number, lanes)                                                           \
    static void name(const et_grid *grid, size_t terms, const number *a, const number *b,          \
                     number sums[MR][3 * 16 / sizeof(number)])                                     \
    {                                                                                              \
        lanes s[MR][3];                                                                            \
        (void)grid;                                                                                \
        memcpy(s, sums, sizeof s);                                                                 \
        for (size_t k = 0; k < terms; k++, a += MR, b += 3 * 16 / sizeof(number)) {                \
            lanes row[3];                                                                          \
            memcpy(row, b, sizeof row);                                                            \
            for (int i = 0; i < MR; i++)                                                           \
                for (int v = 0; v < 3; v++) s[i][v] = s[i][v] + row[v] * a[i];                     \
        }                                                                                          \
        memcpy(sums, s, sizeof s);                                                                 \
    }

VECTOR_TILE(float_tile, float, float_lanes)
VECTOR_TILE(double_tile, double, double_lanes)

static void rounded_tile(const et_grid *grids, size_t terms, const double *a, const double *b,
                         double sums[MR][6])
{
    const et_grid product = grids[0], sum = grids[1];
    for (size_t k = 0; k < terms; k++, a += MR, b += 6)
        for (int i = 0; i < MR; i++)
            for (int j = 0; j < 6; j++)
                sums[i][j] = et_grid_sum(&sum, sums[i][j] + et_grid_sum(&product, a[i] * b[j]));
}

#define NUMBER      float
#define MATRIX      et_floats
#define NAMED(word) float_##word
#define NV          3
#include "ref/base/tiles.h"

#define NUMBER      double
#define MATRIX      et_doubles
#define NAMED(word) double_##word
#define NV          3
#include "ref/base/tiles.h"

#define NUMBER      double
#define MATRIX      et_doubles
#define NAMED(word) rounded_##word
#define NV          3
#include "ref/base/tiles.h"

void et_blocked_float(size_t M, size_t N, size_t K, et_floats A, et_floats B, bool accumulate,
                      float *C, size_t stride)
{
    float_product(&(float_job){M, N, K, A, B, accumulate, C, stride, NULL});
}

void et_blocked_double(size_t M, size_t N, size_t K, et_doubles A, et_doubles B, bool accumulate,
                       double *C, size_t stride)
{
    double_product(&(double_job){M, N, K, A, B, accumulate, C, stride, NULL});
}

void et_blocked_rounded(const et_grid grids[2], size_t M, size_t N, size_t K, et_doubles A,
                        et_doubles B, bool accumulate, double *C, size_t stride)
{
    rounded_product(&(rounded_job){M, N, K, A, B, accumulate, C, stride, grids});
}
