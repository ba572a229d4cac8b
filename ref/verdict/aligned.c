/* aligned.c: how many elements of a weight gradient err as one. Part 4 of the verdict.
 *
 * An expert's gradients are u = sum_t p_t' q_t: with p = dH and q = x that of W_up, with p = dO and q = A
 * that of W_down. The error e_ti of one p_ti moves all of row i, by e_ti q_t; and the sum e u / V of that row,
 * with y = u_i / V_i, by e_ti (q_t y). If the elements of the row erred independently of each other, the square of
 * that would be e_ti^2 sum_j q_tj^2 y_j^2. So the variance of the sum, sum u^2 / V by these lights, grows by
 *
 *     sum_t V[p_ti] ((q_t y)^2 - sum_j q_tj^2 y_j^2)
 *
 * In tokens of all directions that comes to nothing. Where all x point one way, as x = z + 2v do, and A >= 0 always
 * does a little, it comes to as much as d - 1 times sum u^2/V: then a row errs as a whole, and the gradient like as
 * many numbers as it has rows. Errors of q do the same to columns.
 *
 * All rows would cost as much as the gradient itself. SAMPLE of them tell: those at which the running sum of
 * u^2/V passes the middle of each of SAMPLE equal parts; a row so large that it decides cannot be passed over.
 */
#include "ref/base/memory.h"
#include "ref/base/parallel.h"
#include "ref/base/rounding.h"
#include "ref/verdict/judge.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { SAMPLE = 16 };

/* p or q: a row for each token or slot, and how its elements err. */
typedef struct factor {
    const et_real *value, *variance; /* [..,columns]; variance NULL: they are given */
    const int32_t *token;            /* row of slot t; NULL: row t */
    size_t columns;
    bool rounded; /* once more, as operands */
} factor;

typedef struct product {
    factor p, q;
    rounding operand;
    double scale; /* of variances */
} product;

/* ---- the factors of a gradient ---- */

static factor given_x(const et_step *s, const int32_t *token)
{
    return (factor){s->in.x, NULL, token, s->c.d_model, true};
}

static product factors_of(const et_judgement *j, const char *name)
{
    const et_step *s = j->reference, *V = j->variance;
    const et_profile *p = j->options->profile;
    bool up = strstr(name, "_up") != NULL, shared = strstr(name, "shared_") != NULL;
    bool shorter = p->bits[ET_OPERANDS] < p->bits[ET_INTERMEDIATES];
    size_t d = s->c.d_model, h = shared ? s->c.shared_d_expert : s->c.d_expert;
    const et_moe_grads *g = &s->bwd, *Vg = &V->bwd;
    const int32_t *token = s->c.layer == ET_MOE ? s->assignment.slot_token : NULL;
    product of = {.operand = et_rounding_at(p, ET_OPERANDS), .scale = j->scale};
    if (up && shared)
        of.p = (factor){g->shared_pre, Vg->shared_pre, NULL, h, shorter}, of.q = given_x(s, NULL);
    else if (up)
        of.p = (factor){g->slot_pre, Vg->slot_pre, NULL, h, shorter}, of.q = given_x(s, token);
    else if (shared)
        of.p = (factor){g->shared_out, Vg->shared_out, NULL, d, shorter},
        of.q = (factor){s->fwd.shared_act, V->fwd.shared_act, NULL, h, shorter};
    else
        of.p = (factor){g->slot_out, Vg->slot_out, NULL, d, shorter},
        of.q = (factor){s->fwd.slot_act, V->fwd.slot_act, NULL, h, shorter};
    return of;
}

static size_t row_of(const factor *f, size_t t)
{
    return (f->token ? (size_t)f->token[t] : t) * f->columns;
}

static double variance_of(const product *of, const factor *f, size_t t, size_t column)
{
    size_t at = row_of(f, t) + column;
    double V = f->variance ? of->scale * (double)f->variance[at] : 0;
    return f->rounded ? V + rounding_site(&of->operand, (double)f->value[at], V) : V;
}

/* What the errors in `column` of `own` add, over tokens or slots first .. end; y [other's columns]. */
static double add_up(const product *of, const factor *own, size_t column, const factor *other,
                     const double *y, size_t first, size_t end)
{
    double sum = 0;
    for (size_t t = first; t < end; t++) {
        double V = variance_of(of, own, t, column), along = 0, apart = 0;
        const et_real *row = other->value + row_of(other, t);
        if (V == 0) continue; /* dH = 0 where H <= 0, and no rounding makes anything else of it */
#pragma omp simd reduction(+ : along, apart)
        for (size_t i = 0; i < other->columns; i++) {
            double part = (double)row[i] * y[i];
            along += part;
            apart += part * part;
        }
        sum += V * (along * along - apart);
    }
    return sum;
}

/* ---- a sample of rows, or of columns ---- */

/* Rows of the tensor that are one expert's, and its tokens or slots first .. end. */
typedef struct expert {
    const product *of;
    const et_sheet *f;
    const et_sums *rows; /* of all of the tensor */
    size_t first_row, first, end;
    double *uu; /* [a] or [b] sum u^2/V of the rows, or columns, to pick from */
    double *y;  /* [SAMPLE,longer of a and b] */
} expert;

/* y of one element of the tensor. */
static double weighed(const expert *x, size_t row, size_t column)
{
    size_t at = row * x->f->columns + column;
    double V = x->f->scale * x->f->variance[at] + x->f->extra;
    bool counts = x->f->variance[at] > 0 && isfinite(V) && x->rows[row].uu > 0;
    return counts ? x->f->want[at] / V : 0;
}

static void sum_rows(const expert *x)
{
    for (size_t i = 0; i < x->of->p.columns; i++) x->uu[i] = x->rows[x->first_row + i].uu;
}

/* Some columns a thread; the rows in their order. */
static void sum_columns(const expert *x)
{
    enum { SIDE = 64 };
    size_t a = x->of->p.columns, b = x->of->q.columns, end = x->first_row + a;
    memset(x->uu, 0, b * sizeof *x->uu);
#pragma omp parallel for if (et_worth_threads(a * b))
    for (size_t side = 0; side < b; side += SIDE)
        for (size_t r = x->first_row; r < end; r++)
            for (size_t c = side; c < side + SIDE && c < b; c++)
                x->uu[c] += x->f->want[r * b + c] * weighed(x, r, c);
}

/* Where the running sum of uu passes k + 1/2 parts of SAMPLE, k = 0, 1, ..; returns all of it. */
static double pick_some(const double *uu, size_t count, size_t *picks)
{
    double all = 0, passed = uu[0];
    size_t i = 0;
    for (size_t k = 0; k < count; k++) all += uu[k];
    for (size_t k = 0; k < SAMPLE; k++) {
        while (i + 1 < count && passed < all * ((double)k + 0.5) / SAMPLE) passed += uu[++i];
        picks[k] = i;
    }
    return all;
}

/* Does any element of these rows err? */
static bool errs(const expert *x, const factor *own)
{
    for (size_t t = x->first; t < x->end; t++)
        for (size_t c = 0; c < own->columns; c++)
            if (variance_of(x->of, own, t, c) > 0) return true;
    return false;
}

/* What errors of `own` add to sum u^2/V, as a share of it: own is p and the sample one of rows, or it is q and the
 * sample one of columns. A pick stands for uu / SAMPLE. */
static double sample(const expert *x, const factor *own, const factor *other)
{
    bool is_p = own == &x->of->p;
    size_t picks[SAMPLE], first = x->first_row;
    double sums[SAMPLE], share = 0;
    if (!errs(x, own)) return 0;
    if (is_p)
        sum_rows(x);
    else
        sum_columns(x);
    if (!(pick_some(x->uu, own->columns, picks) > 0)) return 0;
#pragma omp parallel for if (et_worth_threads(other->columns * (x->end - x->first)))
    for (size_t k = 0; k < SAMPLE; k++) {
        double *y = x->y + k * other->columns;
        for (size_t i = 0; i < other->columns; i++)
            y[i] = is_p ? weighed(x, first + picks[k], i) : weighed(x, first + i, picks[k]);
        sums[k] = add_up(x->of, own, picks[k], other, y, x->first, x->end);
    }
    for (size_t k = 0; k < SAMPLE; k++) share += sums[k] / (x->uu[picks[k]] * SAMPLE);
    return share;
}

et_status et_find_aligned(const et_judgement *j, const et_sheet *f, const et_sums *rows,
                          et_aligned *list, et_error *error)
{
    const et_assignment *a = &j->reference->assignment;
    const product of = factors_of(j, f->got->name);
    bool by_expert = f->kind == ET_ROWS_EXPERTS;
    size_t experts = by_expert ? j->reference->c.experts : 1;
    size_t longer = of.p.columns > of.q.columns ? of.p.columns : of.q.columns;
    void *room;
    et_status status =
        et_allocate(&room, (SAMPLE + 1) * longer, sizeof(double), "rows that err as one", error);
    if (status != ET_OK) return status;
    for (size_t i = 0; i < experts; i++) {
        expert x = {&of, f, rows, i * of.p.columns, 0, j->reference->c.tokens, room, room};
        x.y += longer;
        if (by_expert) x.first = (size_t)a->expert_offsets[i];
        if (by_expert) x.end = (size_t)a->expert_offsets[i + 1];
        list[i] = (et_aligned){sample(&x, &of.p, &of.q), sample(&x, &of.q, &of.p)};
    }
    free(room);
    return ET_OK;
}
