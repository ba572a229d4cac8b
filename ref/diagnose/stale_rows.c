/* stale_rows.c: could rows that are wrong be what memory held before, another call's?
 *
 * Such rows are numbers, not the right ones changed somehow, and not rows that belong elsewhere or come of other operands.
 * Another call's are of a size that this call's have, too: between half the smallest and twice the largest. Of what has a
 * right value well above its noise (twice its bar) less than an eighth is right, or 0, by luck.
 */
#include "ref/diagnose/diagnosis.h"

#include <math.h>

/* Sums over numbers g of the candidate and u of the reference. */
typedef struct pairs {
    double n, g, u, gg, gu, uu;
} pairs;

/* Have they to do with each other: are they of a size that has nothing to do with the other's (sixteen times), or
 * correlated? */
static bool are_related(const pairs *p, bool about_mean)
{
    double g = about_mean ? p->g / p->n : 0, u = about_mean ? p->u / p->n : 0;
    double gg = p->gg - p->n * g * g, uu = p->uu - p->n * u * u, gu = p->gu - p->n * g * u;
    bool alike = 256 * p->gg > p->uu && p->gg < 256 * p->uu;
    return !alike || !(gg > 0 && 4 * gu * gu <= gg * uu);
}

/* Sum of squares of a row, the candidate's or the reference's. */
static double row_size(const et_observed *x, size_t row, bool candidates)
{
    double size = 0;
    for (size_t i = row * x->columns; i < (row + 1) * x->columns; i++) {
        double v =
            candidates ? et_tensor_element(x->got, i) : (double)((const et_real *)x->right)[i];
        size += v * v;
    }
    return size;
}

/* The least and the largest of the reference's rows; rows of 0 aside. */
typedef struct sizes {
    double least, most;
} sizes;

static sizes row_sizes(const et_observed *x)
{
    sizes s = {INFINITY, 0};
    for (size_t row = 0; row < x->rows; row++) {
        double size = row_size(x, row, false);
        if (size > 0) s.least = fmin(s.least, size);
        s.most = fmax(s.most, size);
    }
    return s;
}

static bool is_within(const sizes *s, double size)
{
    return 4 * size >= s->least && size <= 4 * s->most;
}

enum { LOOKED_AT = 4 };

bool et_could_be_memory(const et_diagnosis *q, const et_observed *x)
{
    pairs all = {0};
    size_t looked = 0, clear = 0, lucky = 0;
    const sizes s = row_sizes(x);
    for (size_t row = 0; row < x->rows; row++) {
        if (!et_row_fails(q, x, row)) continue;
        for (size_t c = 0; c < x->columns; c++) {
            double g = et_tensor_element(x->got, row * x->columns + c);
            double u = (double)((const et_real *)x->right)[row * x->columns + c];
            if (!isfinite(g)) return false;
            double noise = x->limit * sqrt((double)x->variance[row * x->columns + c]);
            clear += fabs(u) > 2 * noise;
            lucky += fabs(u) > 2 * noise && (g == 0 || fabs(g - u) <= noise);
            all.n++, all.g += g, all.u += u, all.gg += g * g, all.gu += g * u, all.uu += u * u;
        }
        if (!is_within(&s, row_size(x, row, true))) return false;
        et_owner as;
        if (x->columns >= ET_TELLING_COLUMNS && looked++ < LOOKED_AT &&
            (et_holds_another_row(q, x, row) || et_is_misread(q, x, row, &as)))
            return false;
    }
    if (8 * lucky > clear && x->columns >= ET_TELLING_COLUMNS) return false;
    return all.n < ET_TELLING_COLUMNS || !are_related(&all, x->columns < ET_TELLING_COLUMNS);
}
