/* groups.c: what hides inside the error bars of single elements. Part 4 of the verdict.
 *
 * In a group of n elements with reference u, error e and variance V
 *
 *     slope   beta = sum(e u / V) / sum(u^2 / V),   deviation 1 / sqrt(sum(u^2 / V)):
 *             the least-squares answer to "by which factor 1 + beta is it scaled?"
 *     spread  sqrt(mean(e^2 / V)): 1 if the errors are what they should be, to 1/sqrt(2n)
 *
 * and an honest kernel keeps
 *
 *     |beta| <= t c f deviation + b        spread <= 1.2 + t c f / sqrt(2n)
 *
 * with t from alpha, c and b from calibration.c, and f^2 = n / sources: in a group whose errors have
 * fewer sources than elements, they are what averages out (calibration.c). Elements with V = 0 have been judged exactly and take
 * no part; groups of fewer than LEAST elements are left to the elements' own test. The groups:
 *
 *     tensor   all of it                        expert  its slots, its weights; of [N,n] its column on slots
 *     row, column                               tokens  16, 64, 128 consecutive tokens or slots
 *     part     of fwd.y and bwd.x: the error regressed on one summand alone, where a factor on that
 *              summand shows undiluted
 *         y  = routed + shared,  routed = sum over slots of w f_i(x), of all experts and of each
 *         dx = experts + shared + router,  shared = dH_sh W_up,sh,  router = dr W_r
 *
 * Left out: dx expert by expert, which would take the experts' products once more.
 */
#include "etref/matmul.h"
#include "ref/base/memory.h"
#include "ref/base/parallel.h"
#include "ref/verdict/calibration.h"
#include "ref/verdict/judge.h"

#include <math.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LEAST = 8 };
static const size_t block_sizes[] = {16, 64, 128};
enum { BLOCK_SIZES = sizeof block_sizes / sizeof *block_sizes };

typedef struct jury {
    const et_judgement *j;
    const et_sheet *f;
    const et_step *reference;
    const et_sums *rows, *columns;
    et_tensor_verdict *out;
    bool coarse;
    bool gated;        /* a slot's elements share the error of its gate */
    bool numbers;      /* one a token, or a token and expert; or sums of these */
    double b, b_whole; /* allowances on the slope, of groups and of the tensor */
    double worst;      /* how near the nearest group came to its limits: 1 is on them */
} jury;

static et_sums sum_of(const et_sums *list, size_t first, size_t end)
{
    et_sums sum = {0};
    for (size_t i = first; i < end; i++) {
        sum.n += list[i].n;
        sum.eu += list[i].eu;
        sum.uu += list[i].uu;
        sum.q += list[i].q;
    }
    return sum;
}

/* ---- one group ---- */

/* Sources behind a group of so many tokens or slots, in whose elements their hidden units enter one by one
 * (calibration.c). A gate as coarse as the intermediates is one source for all of a slot's elements; and
 * where a token has one number there is one source, whatever it was summed up from. */
static double of_tokens(const jury *q, size_t tokens)
{
    bool hidden = !q->gated && !q->numbers;
    return (double)tokens * (hidden ? (double)q->reference->c.d_expert : 1) / 24;
}

static et_group measure(const jury *q, const char *kind, const char *part, size_t index,
                        double sources, et_sums s)
{
    et_group g = {
        .kind = kind, .part = part, .index = index, .elements = (size_t)s.n, .pass = true};
    if (s.n < LEAST) return g;
    double independent = fmin(s.n, fmax(1, sources));
    double t = et_group_limit(q->j->alpha, q->j->tests, q->coarse, independent);
    et_calibration c = et_calibration_of(q->f->got->name, kind);
    g.spread = sqrt(s.q / s.n);
    g.spread_limit = et_systematic_spread + t * c.spread / sqrt(2 * independent);
    g.pass = g.spread <= g.spread_limit;
    if (!(s.uu > 0)) return g;
    g.slope = s.eu / s.uu;
    g.slope_sigma = sqrt(s.n / independent) / sqrt(s.uu);
    bool whole = strcmp(kind, "tensor") == 0 || strcmp(kind, "part") == 0;
    g.slope_limit = t * c.slope * g.slope_sigma + (whole ? q->b_whole : q->b);
    g.pass = g.pass && fabs(g.slope) <= g.slope_limit;
    return g;
}

/* How near a group came to its limits, or how far past them: 1 is on them, NaN as far as can be. */
static double distance(const et_group *g)
{
    double slope = g->slope_limit > 0 ? fabs(g->slope) / g->slope_limit : 0;
    double spread = (g->spread - 1) / (g->spread_limit - 1);
    return isnan(slope) || isnan(spread) ? INFINITY : fmax(slope, spread);
}

static void describe(const jury *q, const et_group *g, char *text, size_t room)
{
    size_t first = g->index;
    if (strcmp(g->kind, "tensor") == 0)
        snprintf(text, room, "the whole tensor");
    else if (strcmp(g->kind, "part") == 0)
        snprintf(text, room, "its %s part", g->part);
    else if (strcmp(g->kind, "tokens") == 0)
        snprintf(text, room, "%s %zu and the following",
                 q->f->kind == ET_ROWS_SLOTS ? "slots" : "tokens", first);
    else
        snprintf(text, room, "%s %zu%s", g->kind, first,
                 strcmp(g->part, "reference") == 0 ? "" : "'s part");
}

static void report(const jury *q, const et_group *g)
{
    char what[64];
    et_tensor_verdict *out = q->out;
    describe(q, g, what, sizeof what);
    out->outcome = ET_MISMATCH;
    if (!(fabs(g->slope) <= g->slope_limit))
        snprintf(out->reason, sizeof out->reason,
                 "%s is scaled by %.6g: slope %.2e +- %.1e, %.1e allowed (%zu elements)", what,
                 1 + g->slope, g->slope, g->slope_sigma, g->slope_limit, g->elements);
    else
        snprintf(out->reason, sizeof out->reason,
                 "errors of %s are too large: root mean square %.3g deviations, %.3g allowed (%zu "
                 "elements)",
                 what, g->spread, g->spread_limit, g->elements);
}

static void judge(jury *q, const char *kind, const char *part, size_t index, double sources,
                  et_sums s)
{
    et_group g = measure(q, kind, part, index, sources, s);
    bool whole = strcmp(kind, "tensor") == 0;
    if (whole) q->out->whole = q->out->worst_group = g;
    if (g.spread_limit == 0) return;
    if (q->j->visit) q->j->visit(q->j->user, q->f->got->name, &g);
    double near = distance(&g);
    if (!whole && near <= q->worst) return;
    q->worst = near;
    q->out->worst_group = g;
    if (!g.pass) report(q, &g);
}

/* ---- groups of whole rows and columns ---- */

/* Is a row of the tensor a token or a slot? Else it is one of a weight gradient. */
static bool rows_are_tokens(const et_sheet *f)
{
    return f->kind == ET_ROWS_TOKENS || f->kind == ET_ROWS_SLOTS;
}

/* All tokens or slots behind the tensor. */
static size_t all_tokens(const jury *q)
{
    const et_step *s = q->reference;
    bool routed = q->f->kind == ET_ROWS_SLOTS || q->f->kind == ET_ROWS_EXPERTS;
    return routed && s->c.layer == ET_MOE ? s->assignment.slots : s->c.tokens;
}

/* Row j of dW_up is sum_s dH_sj x_s, and one token may make up all of it: one source. The elements of a
 * column have each their own row's. With dW_down, dO' A, it is the other way round; dW_r's columns are
 * as short as there are experts. */
static double row_sources(const jury *q)
{
    if (rows_are_tokens(q->f)) return of_tokens(q, 1);
    return strstr(q->f->got->name, "_down") ? of_tokens(q, 1) : 1;
}

static double column_sources(const jury *q)
{
    if (rows_are_tokens(q->f)) return (double)q->f->rows / 24;
    return strstr(q->f->got->name, "_up") && !q->gated ? (double)q->f->rows / 24 : 1;
}

static void judge_rows(jury *q)
{
    size_t rows = q->f->rows;
    double sources = row_sources(q);
    for (size_t r = 0; rows > 1 && r < rows; r++)
        judge(q, "row", "reference", r, sources, q->rows[r]);
}

static void judge_columns(jury *q)
{
    size_t columns = q->f->columns;
    double sources = column_sources(q);
    for (size_t c = 0; columns > 1 && c < columns; c++)
        judge(q, "column", "reference", c, sources, q->columns[c]);
}

static void judge_blocks(jury *q)
{
    size_t rows = q->f->rows;
    if (q->f->kind != ET_ROWS_TOKENS && q->f->kind != ET_ROWS_SLOTS) return;
    for (size_t k = 0; k < BLOCK_SIZES && block_sizes[k] < rows; k++)
        for (size_t first = 0; first < rows; first += block_sizes[k]) {
            size_t end = first + block_sizes[k] < rows ? first + block_sizes[k] : rows;
            judge(q, "tokens", "reference", first, of_tokens(q, end - first),
                  sum_of(q->rows, first, end));
        }
}

/* ---- experts ---- */

/* Element (token, expert) of a [N,n] tensor, on the expert's slots. */
static et_sums sum_on_slots(const jury *q, size_t i)
{
    const et_sheet *f = q->f;
    const et_assignment *a = &q->reference->assignment;
    et_sums sum = {0};
    for (int32_t s = a->expert_offsets[i]; s < a->expert_offsets[i + 1]; s++) {
        size_t t = (size_t)a->slot_token[s], at = t * a->experts + i;
        double e, weight, u = f->want[at];
        if (f->skip && f->skip[t]) continue;
        et_sheet_weigh(f, at, 1, &e, &weight);
        sum.n += weight > 0 ? 1 : 0;
        sum.eu += e * u * weight;
        sum.uu += u * u * weight;
        sum.q += e * e * weight;
    }
    return sum;
}

/* A [N,n] tensor: one number for each token and expert. */
static bool is_pairs(const et_sheet *f)
{
    return f->kind == ET_ROWS_TOKENS && f->got->rank == 2 &&
           strcmp(et_tensor_doc_find(f->got->name)->shape, "[N,n]") == 0;
}

/* The experts' own forward pass knows no gates; everything else does. */
static bool hangs_on_gates(const char *name)
{
    const char *const free_of_them[] = {"fwd.slot_pre",   "fwd.slot_act",   "fwd.slot_out",
                                        "fwd.shared_pre", "fwd.shared_act", "fwd.shared_out"};
    for (size_t i = 0; i < sizeof free_of_them / sizeof *free_of_them; i++)
        if (strcmp(name, free_of_them[i]) == 0) return false;
    return true;
}

static void judge_experts(jury *q)
{
    const et_assignment *a = &q->reference->assignment;
    const et_sheet *f = q->f;
    size_t n = q->reference->c.layer == ET_MOE ? q->reference->c.experts : 0;
    bool pairs = is_pairs(f);
    for (size_t i = 0; i < n; i++) {
        double slots = of_tokens(q, (size_t)a->load[i]);
        if (f->kind == ET_ROWS_SLOTS)
            judge(q, "expert", "reference", i, slots,
                  sum_of(q->rows, (size_t)a->expert_offsets[i], (size_t)a->expert_offsets[i + 1]));
        else if (f->kind == ET_ROWS_EXPERTS && f->rows > n)
            judge(q, "expert", "reference", i, slots,
                  sum_of(q->rows, i * (f->rows / n), (i + 1) * (f->rows / n)));
        else if (pairs)
            judge(q, "expert", "reference", i, (double)a->load[i] / 24, sum_on_slots(q, i));
    }
}

/* ---- parts of y and dx ---- */

/* Sums by row for up to three parts, and by slot; and the summands of dx that must be computed. */
typedef struct parts {
    et_sums *first, *second, *third, *slots; /* [rows] each, [S] */
    double *shared, *router;                 /* [N,d] */
} parts;

/* One row at work: errors, weights, and room for a regressor; [columns] each. */
typedef struct bench {
    double *e, *weight, *u;
} bench;

/* to = a - s b */
static void subtract(size_t count, const double *a, double s, const double *b, double *to)
{
    for (size_t c = 0; c < count; c++) to[c] = a[c] - s * b[c];
}

static void free_parts(parts *p)
{
    free(p->first);
    free(p->second);
    free(p->third);
    free(p->slots);
    free(p->shared);
    free(p->router);
}

static et_status take_parts(parts *p, size_t rows, size_t slots, et_error *error)
{
    et_sums **lists[] = {&p->first, &p->second, &p->third, &p->slots};
    et_status status = ET_OK;
    *p = (parts){0};
    for (size_t i = 0; status == ET_OK && i < 4; i++)
        status =
            et_allocate((void **)lists[i], i < 3 ? rows : slots, sizeof(et_sums), "parts", error);
    return status;
}

/* et_real is double here (verify.c): the compiler of a float build has to be told. */
static const double *row_of(const et_real *matrix, size_t row, size_t columns)
{
    return (const double *)(const void *)matrix + row * columns;
}

/* Token t of y: first = routed, second = shared, each slot by itself. */
static void regress_y(const jury *q, parts *p, size_t t, const bench *b)
{
    const et_moe_values *v = &q->reference->fwd;
    const et_assignment *a = &q->reference->assignment;
    size_t d = q->f->columns;
    if (v->shared_out) {
        const double *shared = row_of(v->shared_out, t, d);
        double s = (double)v->shared_weight[t];
        subtract(d, q->f->want + t * d, s, shared, b->u);
        p->first[t] = et_sum_weighed(d, b->e, b->weight, 1, b->u);
        p->second[t] = et_sum_weighed(d, b->e, b->weight, s, shared);
    }
    for (int32_t k = a->token_offsets[t]; k < a->token_offsets[t + 1]; k++) {
        size_t slot = (size_t)a->token_slots[k];
        double w = (double)v->slot_weight[slot];
        p->slots[slot] = et_sum_weighed(d, b->e, b->weight, w, row_of(v->slot_out, slot, d));
    }
}

/* Token t of dx: first = experts, second = shared, third = router. */
static void regress_dx(const jury *q, parts *p, size_t t, const bench *b)
{
    size_t d = q->f->columns;
    const double *router = p->router + t * d;
    subtract(d, q->f->want + t * d, 1, router, b->u);
    if (p->shared) {
        subtract(d, b->u, 1, p->shared + t * d, b->u);
        p->second[t] = et_sum_weighed(d, b->e, b->weight, 1, p->shared + t * d);
    }
    p->first[t] = et_sum_weighed(d, b->e, b->weight, 1, b->u);
    p->third[t] = et_sum_weighed(d, b->e, b->weight, 1, router);
}

/* The summands of dx that a product gives. */
static et_status multiply_out(const jury *q, parts *p, et_error *error)
{
    const et_step *s = q->reference;
    const et_case *c = &s->c;
    size_t N = c->tokens, d = c->d_model, n = c->experts, hs = c->shared_d_expert;
    et_status status = et_allocate((void **)&p->router, N * d, sizeof(et_real), "parts", error);
    if (status != ET_OK) return status;
    et_matmul(ET_BLAS, N, d, n, et_rows(s->bwd.logits, n), et_rows(s->in.router, d), false,
              (et_real *)(void *)p->router, d);
    if (!s->bwd.shared_pre) return ET_OK;
    status = et_allocate((void **)&p->shared, N * d, sizeof(et_real), "parts", error);
    if (status != ET_OK) return status;
    et_matmul(ET_BLAS, N, d, hs, et_rows(s->bwd.shared_pre, hs), et_rows(s->in.shared_up, d), false,
              (et_real *)(void *)p->shared, d);
    return ET_OK;
}

static void judge_slots(jury *q, const parts *p)
{
    const et_assignment *a = &q->reference->assignment;
    for (size_t i = 0; i < a->experts; i++)
        judge(q, "expert", "routed", i, of_tokens(q, (size_t)a->load[i]),
              sum_of(p->slots, (size_t)a->expert_offsets[i], (size_t)a->expert_offsets[i + 1]));
}

typedef void regress(const jury *q, parts *p, size_t t, const bench *b);

/* All tokens, in as many stretches as there are threads; a token's sums are its own. */
static et_status regress_all(const jury *q, parts *p, regress *one, et_error *error)
{
    const et_sheet *f = q->f;
    size_t d = f->columns, workers = (size_t)omp_get_max_threads();
    void *room;
    et_status status = et_allocate(&room, 3 * workers * d, sizeof(double), "parts", error);
    if (status != ET_OK) return status;
#pragma omp parallel for if (f->rows * d > ET_WORTH_THREADS)
    for (size_t t = 0; t < f->rows; t++) {
        double *mine = (double *)room + 3 * (size_t)omp_get_thread_num() * d;
        bench b = {mine, mine + d, mine + 2 * d};
        if (f->skip && f->skip[t]) continue;
        et_sheet_weigh(f, t * d, d, b.e, b.weight);
        one(q, p, t, &b);
    }
    free(room);
    return ET_OK;
}

static et_status judge_parts(jury *q, bool y, et_error *error)
{
    const et_step *s = q->reference;
    parts p;
    et_status status = take_parts(&p, q->f->rows, y ? s->assignment.slots : 0, error);
    if (status == ET_OK && !y) status = multiply_out(q, &p, error);
    if (status == ET_OK) status = regress_all(q, &p, y ? regress_y : regress_dx, error);
    if (status == ET_OK) {
        size_t N = q->f->rows, S = s->assignment.slots;
        bool shared = s->c.shared;
        if (!y || shared)
            judge(q, "part", y ? "routed" : "experts", 0, of_tokens(q, S), sum_of(p.first, 0, N));
        if (shared) judge(q, "part", "shared", 0, of_tokens(q, N), sum_of(p.second, 0, N));
        if (y)
            judge_slots(q, &p);
        else
            judge(q, "part", "router", 0, (double)S / 24, sum_of(p.third, 0, N));
    }
    free_parts(&p);
    return status;
}

/* ---- all groups of a tensor ---- */

et_status et_judge_groups(const et_judgement *j, const et_sheet *f, const et_step *reference,
                          const et_sums *rows, const et_sums *columns, et_tensor_verdict *out,
                          et_error *error)
{
    const et_profile *p = j->options->profile;
    const char *name = f->got->name;
    bool y = strcmp(name, "fwd.y") == 0, dx = strcmp(name, "bwd.x") == 0;
    jury q = {.j = j,
              .f = f,
              .reference = reference,
              .rows = rows,
              .columns = columns,
              .out = out,
              .coarse = et_tail_is_coarse(p, name),
              .gated = p->bits[ET_GATES] <= p->bits[ET_INTERMEDIATES] && hangs_on_gates(name),
              .numbers = f->columns <= 1 || is_pairs(f) || strcmp(name, "bwd.w_router") == 0,
              .b = et_systematic_slope(p) + et_noise_slope(&j->systematic, name, false),
              .b_whole = et_systematic_slope(p) + et_noise_slope(&j->systematic, name, true)};
    judge(&q, "tensor", "reference", 0, of_tokens(&q, all_tokens(&q)), sum_of(rows, 0, f->rows));
    judge_experts(&q);
    judge_rows(&q);
    judge_columns(&q);
    judge_blocks(&q);
    return reference->c.layer == ET_MOE && (y || dx) ? judge_parts(&q, y, error) : ET_OK;
}

double et_group_tests(const et_tensor_out *t)
{
    double columns = t->rank > 1 ? (double)t->shape[t->rank - 1] : 1;
    double rows = columns > 0 ? (double)et_tensor_count(t) / columns : 0;
    return 2 * (4 + 2 * columns + 3 * rows); /* blocks and experts are no more than rows */
}
