/* muon.c: momentum, orthogonalised by Newton and Schulz's iteration. See etref/optimizer.h.
 *
 * Let u = U diag(s) V', its singular values s. Every odd polynomial of a matrix, a X + b X X' X +
 * ..., keeps U and V and maps each singular value by itself. The iteration applies
 *
 *     q(s) = a s + b s^3 + c s^5,      a = 3.4445,  b = -4.7750,  c = 2.0315
 *
 * five times to numbers of at most 1 (the Frobenius norm bounds the largest one). q'(0) = a is
 * large, so that small values grow fast; near 1 it does not converge but stays roughly within [0.7,
 * 1.2].
 *
 * A = X X' and A^2 = A A' are symmetric: et_gram computes half of each. Where rows > columns
 * everything is transposed: A = X' X, X <- a X + X B, with no copy made.
 *
 * Source: Keller Jordan et al., Muon, 2024, with the coefficients of that year. Left out: the
 * iteration in bfloat16 (a rounding makes it).
 */
#include "etref/optimizer.h"
#include "ref/base/float_environment.h"
#include "ref/base/lanes.h"
#include "ref/base/threads.h"
#include "ref/base/product.h"
#include "ref/layers/layer_arrays.h"
#include "ref/layers/moving_average.h"

#include <math.h>

enum { ITERATIONS = 5 };
static const double a = 3.4445, b = -4.7750, c = 2.0315;

size_t et_muon_room(size_t rows, size_t columns)
{
    size_t s = et_smaller(rows, columns);
    return 2 * rows * columns + 2 * s * s;
}

static et_operand operand(const char *site, et_matrix X)
{
    return (et_operand){X, ET_ACTIVATIONS, site, ET_INTERMEDIATES};
}

/* out [s,s] = op(X) op(X)', op(X) [s,k]. Kernels compute all of it, as any product. */
static et_status symmetric(const et_muon *f, const char *site, size_t s, size_t k, et_matrix X,
                           et_real *out, et_error *error)
{
    if (!et_rounds(f->rounding)) {
        et_gram(f->engine, s, k, X, out);
        return ET_OK;
    }
    et_matrix turned = {X.at, X.stride, !X.transposed};
    return et_product(f->rounding, f->engine, s, s, k, operand(site, X), operand(site, turned),
                      false, out, s, error);
}

/* to = p X + q to */
ET_LANES static void combine(size_t count, et_real p, const et_real *X, et_real q, et_real *to)
{
    for (size_t i = 0; i < count; i++) to[i] = p * X[i] + q * to[i];
}

/* A kernel's; some store each product of a sum. */
static void combine_as(const et_rounding *r, size_t count, et_real p, const et_real *X, et_real q,
                       et_real *to)
{
    et_grid grid;
    if (!et_goes_other_way(r, "products stored", "X")) {
        combine(count, p, X, q, to);
        return;
    }
    const et_grid *g = et_grid_in(&grid, r, ET_INTERMEDIATES, "p X");
    for (size_t i = 0; i < count; i++)
        to[i] = (et_real)(et_times(g, p, X[i]) + et_times(g, q, to[i]));
}

/* to = a X + B X, or a X + X B where X is tall; B [s,s], in which A is replaced by b A + c A^2. */
static et_status iterate(const et_muon *f, size_t rows, size_t columns, const et_real *X,
                         et_real *to, et_real *A, et_real *B, et_error *error)
{
    const et_rounding *r = f->rounding;
    bool tall = rows > columns;
    size_t s = et_smaller(rows, columns), k = tall ? rows : columns;
    et_matrix wide = tall ? et_transposed(X, columns) : et_rows(X, columns);
    et_status status;
    if ((status = symmetric(f, "X", s, k, wide, A, error))) return status;
    et_round(r, ET_INTERMEDIATES, "A", s * s, A);
    if ((status = symmetric(f, "A", s, s, et_rows(A, s), B, error))) return status;
    et_round(r, ET_INTERMEDIATES, "A A", s * s, B);
    combine_as(r, s * s, (et_real)b, A, (et_real)c, B);
    et_round(r, ET_INTERMEDIATES, "B", s * s, B);
    const et_operand x = operand("X", et_rows(X, columns)), poly = operand("B", et_rows(B, s));
    if ((status = et_product(r, f->engine, rows, columns, s, tall ? x : poly, tall ? poly : x,
                             false, to, columns, error)))
        return status;
    et_round(r, ET_INTERMEDIATES, "B X", rows * columns, to);
    combine_as(r, rows * columns, (et_real)a, X, 1, to);
    et_round(r, ET_INTERMEDIATES, "X", rows * columns, to);
    return ET_OK;
}

/* m <- mu m + (1 - mu) g        u = (1 - mu) g + mu m: a row, ours and a kernel's */
ET_LANES static void mix_exactly(size_t count, double mu, double rest, const et_real *g, et_real *m,
                                 et_real *u)
{
    for (size_t i = 0; i < count; i++) {
        m[i] = (et_real)(mu * (double)m[i] + rest * (double)g[i]);
        u[i] = (et_real)(mu * (double)m[i] + rest * (double)g[i]);
    }
}

static void mix_row(const et_mixing *x, size_t count, const et_real *g, et_real *m, et_real *u)
{
    if (!x->rounds) {
        mix_exactly(count, x->beta, x->rest, g, m, u);
        return;
    }
    for (size_t i = 0; i < count; i++) {
        m[i] = (et_real)et_mix_in(x, (double)m[i], (double)g[i]);
        u[i] = (et_real)et_mix_in(x, (double)m[i], (double)g[i]);
    }
}

et_status et_muon_update(const et_muon *f, size_t rows, size_t columns, const et_real *g,
                         et_real *m, et_real *w, et_real *room, et_error *error)
{
    ET_ARITHMETIC;
    size_t count = rows * columns, s = et_smaller(rows, columns);
    const et_array arrays[] = {{"g", g, rows, columns},
                               {"m", m, rows, columns},
                               {"w", w, rows, columns},
                               {"room", room, count, 2}};
    et_status status = et_model_engine_check("et_muon", f->engine, error);
    if (status == ET_OK && !(f->momentum >= 0 && f->momentum < 1))
        return et_fail(error, ET_EINVAL, "et_muon: momentum %g; from 0 to less than 1",
                       f->momentum);
    if (status == ET_OK) status = ET_CHECK_ARRAYS("et_muon", f->rounding, arrays, error);
    if (status != ET_OK) return status;
    et_real *X = room, *next = X + count, *A = next + count, *B = A + s * s;
    const et_mixing mixing = et_mixing_of(f->rounding, "m", f->momentum);
#pragma omp parallel for if (et_worth_threads(count))
    for (size_t i = 0; i < rows; i++)
        mix_row(&mixing, columns, g + i * columns, m + i * columns, X + i * columns);
    et_round(f->rounding, ET_ACCUMULATOR, "m", count, m);
    /* X = u / (|u| + 1e-7) */
    et_real norm = (et_real)(sqrt(et_squares(count, X)) + 1e-7);
    for (size_t i = 0; i < count; i++) X[i] /= norm;
    et_round(f->rounding, ET_INTERMEDIATES, "X", count, X);
    for (int i = 0; i < ITERATIONS; i++) {
        if ((status = iterate(f, rows, columns, X, next, A, B, error))) return status;
        et_real *last = X;
        X = next;
        next = last;
    }
    /* w <- w - rate sqrt(max(1, rows / columns)) X */
    double tall = rows > columns ? sqrt((double)rows / (double)columns) : 1;
    et_real rate = (et_real)(f->rate * tall);
#pragma omp parallel for if (et_worth_threads(count))
    for (size_t i = 0; i < count; i++) w[i] -= (et_real)et_mixed(&mixing, (double)(rate * X[i]));
    et_round(f->rounding, ET_ACCUMULATOR, "w", count, w);
    return ET_OK;
}
