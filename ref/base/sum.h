/* sum.h: the sums of a layer, and a kernel's order and arithmetic in them. Internal.
 *
 * A golden takes every sum in et_real, in the order of its terms: rounding NULL. With a rounding each
 * product, quotient and partial sum is a number of its place, as a kernel's is that takes one
 * term after the other. In which order it takes them no profile says: a replica draws one.
 */
#ifndef ET_SUM_H
#define ET_SUM_H

#include "ref/base/grid.h"

/* An order of `count` terms. */
typedef struct et_order {
    enum { ET_FORWARDS, ET_BACKWARDS, ET_SHUFFLED } way;
    size_t count;
    uint64_t key;
} et_order;

/* Forwards in a golden and in an emulated kernel. In a replica by chance, of seed and site: forwards,
 * backwards, or shuffled, each for a third of the seeds. */
et_order et_order_of(const et_rounding *rounding, const char *site, size_t count);

/* Which term comes as the k-th; k < count. */
size_t et_order_at(const et_order *order, size_t k);

/* All of them, for sums of many rows: *table [count], which the caller frees. ET_ENOMEM. */
et_status et_order_table(const et_order *order, size_t **table, et_error *error);

/* Sums that are no product of matrices, as <dy, f>, losses and state: in the accumulator's arithmetic, or in
 * that of gates where it is finer. */
static inline et_place et_sum_place(const et_rounding *r)
{
    bool gates =
        r && r->profile &&
        et_place_bits(r->profile, ET_GATE_ARITHMETIC) > et_place_bits(r->profile, ET_ACCUMULATOR);
    return gates ? ET_GATE_ARITHMETIC : ET_ACCUMULATOR;
}

/* out[j] = <a_i, b_j>, j < m, where i = rows[j] (rows NULL: j); a, b of d columns. ET_ENOMEM: with a
 * rounding alone. */
et_status et_dots(const et_rounding *rounding, const char *site, size_t m, size_t d,
                  const et_real *a, const int32_t *rows, const et_real *b, et_real *out,
                  et_error *error);

/* to_i += w_j rows_j, j < m, where i = at[j], no two alike (at NULL: j). w NULL: weights of 1. What is
 * added is rounded by itself at `place`, site "share"; and so is the running sum. */
void et_add_rows(const et_rounding *rounding, et_place place, size_t m, size_t d, const et_real *w,
                 const et_real *rows, const int32_t *at, et_real *to);

/* sums[j] = sum_i v_ji w_ji of the first first + j more numbers of row j, j < m, rows `stride` apart;
 * w NULL: weights of 1. Each row's as et_sum has it; faster, since rows do not wait for each other. */
void et_row_sums(const et_rounding *rounding, et_place place, const char *site, size_t m,
                 size_t stride, size_t first, size_t more, const et_real *v, const et_real *w,
                 et_real *sums);

/* start + sum_i v_i w_i, `step` apart, in the arithmetic of `place`; w NULL: weights of 1. */
et_real et_sum(const et_rounding *rounding, et_place place, const char *site, et_real start,
               size_t count, size_t step, const et_real *v, const et_real *w);

/* ---- single operations, each result rounded by et_round's rule; grid NULL: not rounded ----
 *
 * Not rounded either is what is exact for every operand: to add 0, to multiply or divide by a power of
 * two. A replica's numbers lie between the kernel's, so that this does not show in their bits. */

static inline double et_rounded(const et_grid *grid, double v)
{
    return grid == NULL ? v : et_grid_round(grid, v);
}

static inline bool et_is_power_of_two(double v)
{
    int exponent;
    return frexp(fabs(v), &exponent) == 0.5;
}

static inline double et_plus(const et_grid *grid, double a, double b)
{
    return a == 0 || b == 0 ? a + b : et_rounded(grid, a + b);
}

/* Of a long sum: in real arithmetic, not by chance. */
static inline double et_added(const et_grid *grid, double sum, double term)
{
    return grid == NULL ? sum + term : et_grid_sum(grid, sum + term);
}

static inline double et_times(const et_grid *grid, double a, double b)
{
    double product = a * b;
    if (grid == NULL || et_is_power_of_two(a) || et_is_power_of_two(b)) return product;
    return et_rounded(grid, product);
}

static inline double et_over(const et_grid *grid, double a, double b)
{
    return grid == NULL || et_is_power_of_two(b) ? a / b : et_rounded(grid, a / b);
}

/* Half of 1 + f, f = erf or tanh, as kernels take it: where f is near -1, with the last bits of 1. Their libraries' f is off
 * by up to so many units in the last place of 1/2. `function` is a grid of its own. */
static inline double et_half_of_one_and(const et_grid *grid, const et_grid *function, double f,
                                        double units)
{
    double unit = ldexp(1, function->drop - 53), off = units * unit * et_chance_of(function, f);
    if (1 - fabs(f) < unit / 2) off = 0; /* 1 to the last bit */
    return et_plus(grid, 1, et_rounded(grid, f + off)) / 2;
}

#endif
