/* moving_average.h: the moving averages of optimisers and of thresholds, in a kernel's arithmetic. Internal.
 *
 *     m <- beta m + (1 - beta) g
 *
 * Ours is binary64's. A kernel rounds each product and sum, and beta itself; some compute m + (1 - beta) (g - m). What u
 * numbers weigh in m, 1 - beta^u, some have from a rounded beta^u.
 */
#ifndef ET_MOVING_AVERAGE_H
#define ET_MOVING_AVERAGE_H

#include "etref/routing.h"
#include "ref/base/grid.h"
#include "ref/base/sum.h"

typedef struct et_mixing {
    bool rounds, from_difference;
    et_grid grid;
    double beta, rest; /* 1 - beta */
} et_mixing;

/* A number as the kernel's arithmetic leaves it. */
static inline double et_mixed(const et_mixing *x, double v)
{
    return x->rounds ? et_grid_round(&x->grid, v) : v;
}

static inline et_mixing et_mixing_of(const et_rounding *r, const char *site, double beta)
{
    et_mixing x = {.rounds = et_rounds(r), .beta = beta, .rest = 1 - beta};
    if (!x.rounds) return x;
    x.grid = et_grid_of(r, et_sum_place(r), site);
    x.from_difference = et_goes_other_way(r, "average", site);
    x.beta = et_grid_sum(&x.grid, beta);
    bool of_rounded = et_goes_other_way(r, "1 - beta", site);
    x.rest = et_grid_sum(&x.grid, of_rounded ? 1 - x.beta : 1 - beta);
    return x;
}

/* 1 - beta^u */
static inline double et_mixed_weight(const et_mixing *x, const et_rounding *r, const char *site,
                                     double beta, size_t updates)
{
    double weight = et_ema_weight(beta, updates);
    if (!et_goes_other_way(r, "1 - beta^u", site)) return weight;
    double rounded = et_mixed(x, 1 - et_mixed(x, 1 - et_ema_weight(x->beta, updates)));
    return rounded > 0 ? rounded : weight;
}

static inline double et_mix_in(const et_mixing *x, double m, double g)
{
    if (x->from_difference) return m + et_mixed(x, x->rest * et_mixed(x, g - m));
    return et_mixed(x, x->beta * m) + et_mixed(x, x->rest * g);
}

#endif
