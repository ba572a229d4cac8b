/* unexplained.c: what is wrong, and where, if no hypothesis explains it.
 *
 * For the first tensors that failed: how many elements, of which tokens, experts and columns; whether what
 * stands there is not a number, zero, the right values times a constant, another row's, another
 * expert's, or by another expert's weights or token's x. For a routing that is wrong: which tokens and experts.
 *
 * A row counts as another one if it differs from it by less than a fifth of what it differs by from its
 * own, and by less than a tenth of its size: rounding makes a hundredth, a wrong row as much as itself.
 */
#include "ref/base/memory.h"
#include "ref/diagnose/diagnosis.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TENSORS = 3, RANGES = 4, SEARCHED = 4 };

/* ---- text ---- */

typedef struct text {
    char *at;
    size_t room, used;
} text;

#if defined(__GNUC__)
__attribute__((format(printf, 2, 3)))
#endif
static void
say(text *t, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    int more = vsnprintf(t->at + t->used, t->room - t->used, format, arguments);
    va_end(arguments);
    if (more < 0) return;
    t->used += (size_t)more;
    if (t->used >= t->room) t->used = t->room - 1;
}

/* "tokens 3-5, 9, ... (17 in all)", or "all 64 tokens" */
static void say_ranges(text *t, const char *one, const uint8_t *marks, size_t count)
{
    size_t marked = et_count_marks(marks, count), ranges = 0;
    if (marked == 0) return;
    if (marked == count && count > 1) {
        say(t, ", all %zu %ss", count, one);
        return;
    }
    say(t, ", %s%s", one, marked > 1 ? "s" : "");
    for (size_t i = 0, end; i < count; i = end + 1) {
        end = i;
        if (!marks[i]) continue;
        while (end + 1 < count && marks[end + 1]) end++;
        if (ranges == RANGES) {
            say(t, ", ... (%zu in all)", marked);
            return;
        }
        say(t, end > i ? "%s%zu-%zu" : "%s%zu", ranges++ ? ", " : " ", i, end);
    }
}

/* ---- which elements ---- */

typedef struct damage {
    const et_diagnosis *q;
    const et_observed *x;
    size_t rows, columns, failed, infinite, zeros, tiles; /* tiles: rows of one expert in [n,.,.] */
    size_t tokens, experts;
    uint8_t *row, *column, *token, *expert; /* what some failing element stands for; free(row) */
    double gg, gu, uu;                      /* over the failing rows: sum got^2, got want, want^2 */
} damage;

static double got(const damage *d, size_t element)
{
    return et_tensor_element(d->x->got, element);
}

static double want(const damage *d, size_t element)
{
    return (double)((const et_real *)d->x->right)[element];
}

static void note_element(damage *d, size_t row, size_t column)
{
    et_owner o = et_owner_of(d->q, d->x, row, column);
    double value = got(d, row * d->columns + column);
    d->failed++;
    d->infinite += !(fabs(value) < INFINITY);
    d->zeros += value == 0;
    d->row[row] = d->column[column] = 1;
    if (o.token < d->tokens) d->token[o.token] = 1;
    if (o.expert < d->experts) d->expert[o.expert] = 1;
}

static et_status find_damage(damage *d, const et_diagnosis *q, const et_observed *x,
                             et_error *error)
{
    size_t rows = x->rows, columns = x->columns, N = q->right->c.tokens, n = et_experts_of(q);
    void *room;
    et_status status = et_allocate(&room, rows + columns + N + n, 1, "what fails", error);
    if (status != ET_OK) return status;
    *d = (damage){.q = q, .x = x, .rows = rows, .columns = columns, .tokens = N, .experts = n};
    d->row = room, d->column = d->row + rows;
    d->token = d->column + columns, d->expert = d->token + N;
    if (x->got->rank == 3 && et_rows_are(x->shape, "n")) d->tiles = x->got->shape[1];
    for (size_t i = 0; i < rows * columns; i++)
        if (et_element_fails(x, i)) note_element(d, i / columns, i % columns);
    for (size_t i = 0; i < rows * columns; i++) {
        if (!d->row[i / columns]) continue;
        d->gg += got(d, i) * got(d, i);
        d->gu += got(d, i) * want(d, i);
        d->uu += want(d, i) * want(d, i);
    }
    return ET_OK;
}

/* ---- what stands there ---- */

/* Sum of squares of the candidate's `count` elements from `at` on less the reference's from `other` on, these shifted;
 * *size: of the latter's own. */
static double distance(const damage *d, size_t at, size_t other, size_t count, size_t shift,
                       double *size)
{
    double apart = 0;
    *size = 0;
    for (size_t c = 0; c < count; c++) {
        double g = got(d, at + c), u = want(d, other + (c + shift) % count);
        apart += (g - u) * (g - u);
        *size += u * u;
    }
    return apart;
}

static bool is_row(const damage *d, size_t row, size_t other, size_t shift)
{
    double size, own_size;
    size_t n = d->columns;
    double apart = distance(d, row * n, other * n, n, shift, &size);
    double own = distance(d, row * n, row * n, n, 0, &own_size);
    return size > 0 && 25 * apart <= own && 100 * apart <= size;
}

/* The row of the reference that row `row` of the candidate is; d->rows if none. The nearest first. */
static size_t identify(const damage *d, size_t row)
{
    for (size_t step = 1; step < d->rows; step++) {
        if (row + step < d->rows && is_row(d, row, row + step, 0)) return row + step;
        if (step <= row && is_row(d, row, row - step, 0)) return row - step;
    }
    return d->rows;
}

bool et_holds_another_row(const et_diagnosis *q, const et_observed *x, size_t row)
{
    const damage d = {.q = q, .x = x, .rows = x->rows, .columns = x->columns};
    return identify(&d, row) < d.rows;
}

/* "token 3", "slot 5", "expert 1's row 7"; in a dense layer slots are tokens. */
static void name_row(const damage *d, size_t row, char name[64])
{
    bool slots = et_rows_are(d->x->shape, "S"), moe = d->q->right->c.layer == ET_MOE;
    const char *one = et_rows_are(d->x->shape, "N") || (slots && !moe) ? "token"
                      : slots                                          ? "slot"
                                                                       : "row";
    if (d->tiles)
        snprintf(name, 64, "expert %zu's row %zu", row / d->tiles, row % d->tiles);
    else
        snprintf(name, 64, "%s %zu", one, row);
}

static bool say_shift(const damage *d, text *t)
{
    size_t last = d->columns - 1, found[2] = {0, 0}, rows = 0;
    for (size_t r = 0; r < d->rows && rows < SEARCHED; r++) {
        if (!d->row[r]) continue;
        rows++;
        found[0] += is_row(d, r, r, 1);
        found[1] += is_row(d, r, r, last);
    }
    if (d->columns < 3 || (found[0] != rows && found[1] != rows)) return false;
    say(t, "; each row is shifted by one column to the %s", found[0] == rows ? "left" : "right");
    return true;
}

/* A right product of the wrong operand. */
static bool say_misread(const damage *d, size_t row, const char *here, text *t)
{
    et_owner as, own = et_owner_of(d->q, d->x, row, 0);
    if (!et_is_misread(d->q, d->x, row, &as)) return false;
    if (as.token != own.token)
        say(t, "; %s is what token %zu's x gives", here, as.token);
    else
        say(t, "; %s is by expert %zu's weights", here, as.expert);
    return true;
}

static bool say_rows(const damage *d, text *t)
{
    size_t searched = 0, named = 0;
    if (d->columns < 3) return false;
    for (size_t r = 0; r < d->rows && searched < SEARCHED; r++) {
        if (!d->row[r]) continue;
        searched++;
        size_t other = identify(d, r);
        char here[64], there[64];
        name_row(d, r, here);
        if (other == d->rows) {
            named += say_misread(d, r, here, t);
            continue;
        }
        name_row(d, other, there);
        bool swapped = other > r && d->row[other] && is_row(d, other, r, 0);
        if (swapped)
            say(t, "; %s and %s are exchanged", here, there);
        else if (!(other < r && is_row(d, other, r, 0)))
            say(t, "; %s holds what %s should", here, there);
        named++;
    }
    return named > 0;
}

/* Is the candidate's expert i the reference's expert k? Rows of both, all of them. */
static bool is_expert(const damage *d, size_t i, size_t k)
{
    size_t count = d->tiles * d->columns;
    double size, apart = distance(d, i * count, k * count, count, 0, &size);
    return size > 0 && 100 * apart <= size;
}

static bool say_experts(const damage *d, text *t)
{
    bool any = false;
    for (size_t i = 0, searched = 0; d->tiles && i < d->experts && searched < SEARCHED; i++) {
        if (!d->expert[i]) continue;
        searched++;
        for (size_t k = 0; k < d->experts; k++)
            if (k != i && is_expert(d, i, k)) {
                say(t, "; expert %zu holds what expert %zu should", i, k);
                any = true;
            }
    }
    return any;
}

static bool say_factor(const damage *d, text *t)
{
    if (!(d->uu > 0) || !(d->gg > 0) || d->failed < 8) return false;
    double factor = d->gu / d->uu, rest = d->gg - d->gu * factor;
    double error = d->gg - 2 * d->gu + d->uu; /* of which the factor must make up most */
    if (!(rest <= 1e-3 * d->gg) || !(rest <= 0.5 * error)) return false;
    say(t, "; the failing rows are the right ones times %.4g, give or take %.1g", factor,
        fabs(factor) * sqrt(fmax(rest, 0) / d->gg));
    return true;
}

static void say_what(const damage *d, text *t)
{
    if (d->infinite > 0) {
        say(t, "; not finite: %zu", d->infinite);
        return;
    }
    if (d->zeros == d->failed) {
        say(t, "; all of them are 0");
        return;
    }
    if (d->zeros > 0 && 10 * d->zeros > d->failed) say(t, "; %zu of them are 0", d->zeros);
    if (say_experts(d, t) || say_shift(d, t) || say_rows(d, t) || say_factor(d, t)) return;
}

/* ---- one tensor ---- */

/* Only what fails in groups, not by elements. */
static void say_group(const et_observed *x, text *t)
{
    const et_group *g = &x->verdict->worst_group;
    char what[64];
    say(t, "%s: no single element fails, but ", x->got->name);
    et_group_print(g, what, sizeof what);
    say(t, "%s does: slope %.2e +- %.1e, spread %.3g", what, g->slope, g->slope_sigma, g->spread);
}

static et_status say_real(const et_diagnosis *q, const et_observed *x, text *t, et_error *error)
{
    damage d = {0};
    et_status status = find_damage(&d, q, x, error);
    if (status == ET_OK && d.failed == 0) {
        say_group(x, t);
    } else if (status == ET_OK) {
        say(t, "%s: %zu of %zu elements fail", x->got->name, d.failed, d.rows * d.columns);
        if (d.experts > 1) say_ranges(t, "expert", d.expert, d.experts);
        say_ranges(t, "token", d.token, d.tokens);
        if (x->got->rank > 1 && strcmp(x->shape, "[N,n]") != 0)
            say_ranges(t, "column", d.column, d.columns);
        say_what(&d, t);
    }
    free(d.row);
    return status;
}

static void say_routing(const et_diagnosis *q, text *t)
{
    const et_routing_verdict *r = &q->verdict->routing;
    if (!q->routing_failed) return;
    say(t, "routing: %s", r->reason);
    if (r->illegal > 0) say(t, " (%zu of %zu decisions are illegal)", r->illegal, r->decisions);
}

static bool is_explained(const et_diagnosis *q, const et_observed *x)
{
    if (x == NULL || x->stage == ET_STAGES) return false;
    bool forward = x->part == ET_PART_ARITHMETIC && x->stage < ET_AT_DWEIGHT;
    return q->explained[x->part] || (forward && q->forward_explained);
}

et_status et_describe_residual(et_diagnosis *q, et_error *error)
{
    text t = {q->verdict->residual, sizeof q->verdict->residual, 0};
    et_status status = ET_OK;
    size_t failed = 0;
    if (!q->explained[ET_PART_ROUTING]) say_routing(q, &t);
    for (size_t i = 0; status == ET_OK && i < q->verdict->tensor_count; i++) {
        const et_tensor_verdict *v = &q->verdict->tensors[i];
        const et_observed *x = NULL;
        for (size_t k = 0; k < q->count; k++)
            if (q->observed[k].verdict == v) x = &q->observed[k];
        if (v->outcome != ET_MISMATCH || is_explained(q, x) || failed++ >= TENSORS) continue;
        if (t.used > 0) say(&t, ". ");
        if (x && x->variance)
            status = say_real(q, x, &t, error);
        else
            say(&t, "%s: %s", v->name, v->reason);
    }
    if (failed > TENSORS) say(&t, ". %zu more tensors fail", failed - TENSORS);
    return status;
}
