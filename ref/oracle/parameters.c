/* parameters.c: an error that all tokens share, since parameters are rounded once for all of them. See noise.h.
 *
 * A parameter that the operands' format does not hold is the same wrong number in every token's products. A sum
 * over tokens takes it for chance all the same: dW_up_j errs by sum_t c_tj (e_j x_t) x_t, and where the c_tj, what the
 * backward pass brings, have nothing to do with x_t, their signs are as good as chance. They are not if dy follows
 * from x, as that of a squared error does: then the shares of all tokens add up, the more tokens the farther
 * beyond their deviation.
 *
 * What rounding does to a given operand is known. So the layer is run once more, with operands rounded and everything
 * else exact; what this moves the gradients by, e, is more than chance where the mean of e^2/V over a row, a column, or
 * all of an expert's gradient is above MORE: there V grows by that factor. And an element's own e counts for what it
 * is beyond 3 deviations: V + e^2 - 9 V. A kernel that keeps its operands in full makes none of these errors.
 */
#include "ref/base/memory.h"
#include "ref/base/rounding.h"
#include "ref/oracle/noise.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Of a mean square beside its expectation: by chance a row of 16 hardly gets there. */
static const double MORE = 2;

static void round_into(const rounding *r, size_t count, const et_real *from, et_real *to)
{
    for (size_t i = 0; from && i < count; i++) to[i] = (et_real)rounding_result(r, (double)from[i]);
}

static void copy_into(size_t count, const et_real *from, et_real *to)
{
    if (from) memcpy(to, from, count * sizeof *to);
}

/* The inputs of s, those that are operands rounded; dy is rounded as dO, token by token. */
static void round_operands(const et_step *s, const rounding *r, et_step_inputs *to)
{
    const et_case *c = &s->c;
    const et_step_inputs *in = &s->in;
    size_t d = c->d_model, n = c->layer == ET_MOE ? c->experts : 1;
    round_into(r, c->tokens * d, in->x, to->x);
    round_into(r, n * d, in->router, to->router);
    round_into(r, n * c->d_expert * d, in->up, to->up);
    round_into(r, n * c->d_expert * d, in->down, to->down);
    round_into(r, c->shared_d_expert * d, in->shared_up, to->shared_up);
    round_into(r, c->shared_d_expert * d, in->shared_down, to->shared_down);
    copy_into(c->tokens * d, in->dy, to->dy);
    copy_into(n, in->ema, to->ema);
    copy_into(n, in->bias, to->bias);
    copy_into(n, in->load, to->load);
}

/* A gradient [rows,columns] of one expert. room [rows + columns]: sums of e^2/V, rows' and columns'. */
static void widen(size_t rows, size_t columns, const et_real *right, const et_real *moved,
                  double *room, et_real *V)
{
    double *of_row = room, *of_column = room + rows, all = 0;
    memset(room, 0, (rows + columns) * sizeof *room);
    for (size_t i = 0; i < rows * columns; i++) {
        double e = (double)moved[i] - (double)right[i];
        double square = V[i] > 0 && isfinite((double)V[i]) ? e * e / (double)V[i] : 0;
        of_row[i / columns] += square / (double)columns;
        of_column[i % columns] += square / (double)rows;
        all += square / (double)(rows * columns);
    }
    for (size_t i = 0; i < rows * columns; i++) {
        double e = (double)moved[i] - (double)right[i], variance = (double)V[i];
        double factor = fmax(all, fmax(of_row[i / columns], of_column[i % columns]));
        double alone = variance + e * e - 9 * variance;
        if (!(variance > 0)) continue;
        V[i] = (et_real)fmax(factor > MORE ? factor * variance : variance, alone);
    }
}

/* One after another, `count` of them; right NULL: there are none. */
static et_status widen_all(size_t count, size_t rows, size_t columns, const et_real *right,
                           const et_real *moved, et_real *V, et_error *error)
{
    void *room;
    if (!right) return ET_OK;
    et_status status = et_allocate(&room, rows + columns, sizeof(double), "noise", error);
    for (size_t i = 0; status == ET_OK && i < count; i++) {
        size_t at = i * rows * columns;
        widen(rows, columns, right + at, moved + at, room, V + at);
    }
    if (status == ET_OK) free(room);
    return status;
}

static et_status run_rounded(et_step *moved, const et_step *s, const rounding *r, uint8_t *mask,
                             et_error *error)
{
    const et_assignment *a = &s->assignment;
    et_status status = et_step_create(moved, &s->c, 0, error);
    if (status != ET_OK) return status;
    round_operands(s, r, &moved->in);
    for (size_t k = 0; mask && k < a->slots; k++)
        mask[(size_t)a->slot_token[k] * a->experts + (size_t)a->slot_expert[k]] = 1;
    moved->given_mask = mask;
    status = et_step_run(moved, s->engine, NULL, NULL, error);
    if (status != ET_OK) et_step_free(moved);
    return status;
}

et_status et_noise_of_parameters(et_step *V, const et_step *s, const et_profile *p, et_error *error)
{
    const rounding r = et_rounding_at(p, ET_OPERANDS);
    const et_case *c = &s->c;
    size_t n = c->layer == ET_MOE ? c->experts : 1, d = c->d_model, h = c->d_expert;
    size_t hs = c->shared_d_expert;
    void *mask = NULL;
    et_step moved;
    et_status status = ET_OK;
    if (c->layer == ET_MOE) status = et_allocate(&mask, c->tokens * n, 1, "noise", error);
    if (status == ET_OK) status = run_rounded(&moved, s, &r, mask, error);
    if (status == ET_OK) {
        const et_moe_grads *g = &s->bwd, *m = &moved.bwd, *v = &V->bwd;
        (void)((status = widen_all(1, n, d, g->router, m->router, v->router, error)) ||
               (status = widen_all(n, h, d, g->up, m->up, v->up, error)) ||
               (status = widen_all(n, d, h, g->down, m->down, v->down, error)) ||
               (status = widen_all(1, hs, d, g->shared_up, m->shared_up, v->shared_up, error)) ||
               (status =
                    widen_all(1, d, hs, g->shared_down, m->shared_down, v->shared_down, error)));
        et_step_free(&moved);
    }
    free(mask);
    return status;
}
