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
 *     |beta| <= t c f deviation + b + (12 n / sum(u^2/V))^2      spread <= b' + t c f k / sqrt(2n)
 *
 * with t from alpha, c, b, b' and k from calibration.c (b' is 1.2, k is 1, as a rule). The last fraction, at most 1, lets
 * groups go that are smaller than an ulp of theirs: such values round to 0, or far above, by chance. And n / f^2 errors that are independent of each other:
 *
 *     f^2 = n / sources                                      fewer sources than elements (calibration.c,
 *                                                            and of dW_up and dW_down aligned.c)
 *           + sum over rows v (sum u^2/V)^2 / sum(u^2/V)     a gate errs by sqrt(v) of itself, and all
 *                                                            of its row with it
 *
 * (in a weight gradient, where a gate's row enters everything: v / tokens for the last fraction).
 * Elements with V = 0 have been judged exactly and take no part; groups of fewer than LEAST elements are
 * left to the elements' own test. The groups:
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
#include "ref/base/rounding.h"
#include "ref/layers/alike.h"
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
    et_group_limits limits;
    bool numbers;                     /* one a token, or a token and expert; or sums of these */
    double *slot_gates, *token_gates; /* [S], [N] v of a slot's weight; the largest of a token's */
    double *router_gates;             /* [N] of dx alone: v of a token's dr */
    const double *row_gates;          /* whichever is the rows'; NULL: they know no gates */
    double gates;                     /* in a weight gradient: the mean of v */
    double common;                    /* of the whole tensor's slope: what gates bring in */
    /* [n] of dW_r alone, else NULL: of each row, see share_router */
    double *router, *router_alike, *router_shift;
    double router_together; /* of dW_r whose rows err together, see there; else 0 */
    et_aligned *aligned;    /* of W_up and W_down: [n], or [1], see share_rows; else NULL */
    size_t rows_of_expert;  /* all where there are none */
    double directions;      /* tokens that err independently, at most */
    bool gates_together;    /* an expert's gates of all tokens share one sum: softmax_tokens */
    bool alike_rows;        /* of dx: tokens have nearly the same dr, and round it alike */
    double
        *columns_shift; /* [d] of dx: what that makes of its columns, which may cancel; or NULL */
    double *seen;       /* [N] scratch, all 0 */
    double b, b_whole, b_router; /* allowed slopes: of groups, of the tensor, of dx's part */
    double spread;               /* allowed of very many elements */
    double worst;                /* how near the nearest group came to its limits: 1 is on them */
} jury;

/* A group: its sums, and how many errors in it are independent of each other. Twins, tokens with the same x, err
 * alike (ref/layers/twins.h): in eu and uu they weigh together as much as one of them, so that a word that
 * is in half of a text does not decide. */
typedef struct group_sums {
    et_sums s;
    double once;           /* elements, twins' counted once */
    double sources, alike; /* sources behind these; and behind all n, where twins are one source */
    double shift;          /* a slope that is no matter of chance, beside b */
} group_sums;

/* ---- what a group has in common ---- */

/* Units of the tensor's expert that err independently. */
static double hidden_of(const jury *q)
{
    return strstr(q->f->got->name, "shared_") ? q->j->shared_hidden : q->j->hidden;
}

/* Sources behind a group of so many different tokens or slots, in whose elements their hidden units enter one
 * by one (calibration.c). Where a token has one number there is one source, whatever it was summed up
 * from. */
static double of_tokens(const jury *q, double tokens)
{
    return fmin(tokens, q->directions) * (q->numbers ? 1 : hidden_of(q)) / 24;
}

/* How many of these tokens err together; and how many of their gates do. */
static double crowd(const jury *q, double tokens)
{
    return fmax(1, tokens / q->directions);
}

static double crowd_of_gates(const jury *q, double tokens)
{
    return q->gates_together ? tokens : crowd(q, tokens);
}

/* The first of the twins of row `i`, which is slot i if `slots`, else token i. */
static size_t leader(const jury *q, bool slots, size_t i)
{
    size_t t = slots ? (size_t)q->reference->assignment.slot_token[i] : i;
    return q->j->twins.input ? (size_t)q->j->twins.input[t] : t;
}

/* Rows first .. end of `list`, slots or tokens; gates: v of each, or NULL. */
static group_sums sum_rows(const jury *q, const et_sums *list, const double *gates, bool slots,
                           size_t first, size_t end)
{
    et_sums s = {0};
    double once = 0, different = 0, squares = 0, rows = (double)(end - first);
    for (size_t i = first; i < end; i++) q->seen[leader(q, slots, i)]++;
    for (size_t i = first; i < end; i++) {
        double twins = q->seen[leader(q, slots, i)], weight = 1 / twins;
        s.n += list[i].n;
        s.q += list[i].q;
        s.eu += weight * list[i].eu;
        s.uu += weight * list[i].uu;
        double along = fmax(list[i].uu, list[i].along);
        if (gates) s.common += weight * gates[i] * along * along;
        once += weight * list[i].n;
        different += weight;
        squares += twins;
    }
    for (size_t i = first; i < end; i++) q->seen[leader(q, slots, i)] = 0;
    s.common *= crowd_of_gates(q, different);
    return (group_sums){s, once, of_tokens(q, different), of_tokens(q, rows * rows / squares), 0};
}

/* How many tokens stand behind a sum over these slots or tokens, each of the energy weight^2 (NULL: 1), when
 * twins' errors add up: (sum of energies)^2 / sum over different tokens of energies^2. */
static double different(const jury *q, const et_real *weight, bool slots, size_t first, size_t end)
{
    double all = 0, squares = 0;
    for (size_t i = first; i < end; i++) {
        double *seen = &q->seen[leader(q, slots, i)];
        double energy = weight ? (double)weight[i] * (double)weight[i] : 1;
        /* q->seen has been allocated, or the judging failed. NOLINTNEXTLINE(clang-analyzer-core.NullDereference) */
        squares += (2 * *seen + energy) * energy;
        *seen += energy;
        all += energy;
    }
    for (size_t i = first; i < end; i++) q->seen[leader(q, slots, i)] = 0;
    return squares > 0 ? all * all / squares : (double)(end > first);
}

/* A group without rows of its own; `common`: the variance of a factor that all of it shares. */
static group_sums of_sources(et_sums s, double sources, double common)
{
    s.common = common * s.uu * s.uu;
    return (group_sums){s, s.n, sources, sources, 0};
}

/* The variance of a factor that gates bring into what so many different tokens make up. */
static double common_of_gates(const jury *q, double tokens)
{
    return q->gates * fmin(1, 24 * crowd_of_gates(q, tokens) / tokens);
}

/* ---- one group ---- */

static et_group measure(const jury *q, const char *kind, const char *part, size_t index,
                        const group_sums *all)
{
    et_sums s = all->s;
    et_group g = {
        .kind = kind, .part = part, .index = index, .elements = (size_t)s.n, .pass = true};
    if (s.n < LEAST) return g;
    et_calibration c = et_calibration_of(q->f->got->name, kind);
    double common = s.uu > 0 ? s.common / s.uu : 0;
    double apart = s.n / (fmax(1, s.n / all->alike) + common);
    double t = et_group_limit(q->limits, fmax(1, apart));
    g.spread = sqrt(s.q / s.n);
    g.spread_limit = q->spread + t * q->limits.scatter * c.spread / sqrt(2 * fmax(1, apart));
    g.pass = g.spread <= g.spread_limit;
    if (!(s.uu > 0)) return g;
    double shared = fmin(fmax(1, all->once / all->sources) + common, all->once);
    t = et_group_limit(q->limits, fmax(1, all->once / shared));
    bool whole = strcmp(kind, "tensor") == 0 || strcmp(kind, "part") == 0;
    double faint = 12 * s.n / s.uu; /* u below an ulp rounds to 0, and far above it by chance */
    g.slope = s.eu / s.uu;
    g.slope_sigma = sqrt(shared / s.uu);
    g.slope_limit = t * c.slope * g.slope_sigma + all->shift + fmin(1, faint * faint) +
                    (strcmp(part, "router") == 0 ? q->b_router
                     : whole                     ? q->b_whole
                                                 : q->b);
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

static void judge(jury *q, const char *kind, const char *part, size_t index, group_sums all)
{
    et_group g = measure(q, kind, part, index, &all);
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

/* Different tokens behind expert i of a gradient [n,..], or behind all of its experts (i = n); behind any
 * other gradient, all tokens. */
static double tokens_behind(const jury *q, size_t i)
{
    const et_step *s = q->reference;
    const et_assignment *a = &s->assignment;
    if (q->f->kind != ET_ROWS_EXPERTS)
        return different(q, s->fwd.shared_weight, false, 0, s->c.tokens);
    size_t first = i < a->experts ? (size_t)a->expert_offsets[i] : 0;
    size_t end = i < a->experts ? (size_t)a->expert_offsets[i + 1] : a->slots;
    return different(q, s->fwd.slot_weight, true, first, end);
}

static et_sums plain_sum(const et_sums *list, size_t first, size_t end)
{
    et_sums s = {0};
    for (size_t i = first; i < end; i++) {
        s.n += list[i].n;
        s.q += list[i].q;
        s.eu += list[i].eu;
        s.uu += list[i].uu;
    }
    return s;
}

/* Rows of the tensor, whatever they are. */
static group_sums rows_of(const jury *q, size_t first, size_t end)
{
    return sum_rows(q, q->rows, q->row_gates, q->f->kind == ET_ROWS_SLOTS, first, end);
}

/* dW_r, as share_router found it: row i, and all of it. */
static group_sums router_row(const jury *q, size_t i)
{
    group_sums g = of_sources(q->rows[i], HUGE_VAL, q->router[i]);
    g.alike = q->router_alike[i];
    g.shift = fabs(q->router_shift[i]);
    return g;
}

static group_sums router_whole(const jury *q)
{
    group_sums g = of_sources(plain_sum(q->rows, 0, q->f->rows), HUGE_VAL, 0);
    double scatter = 0, together = 0, shift = 0;
    for (size_t i = 0; i < q->f->rows; i++) {
        double n = q->rows[i].n, each = n > 0 ? n / sqrt(fmin(n, q->router_alike[i])) : 0;
        g.s.common += q->router[i] * q->rows[i].uu * q->rows[i].uu;
        scatter += each * each;
        together += each;
        shift += q->router_shift[i] * q->rows[i].uu;
    }
    if (g.s.uu > 0) g.shift = fabs(shift) / g.s.uu;
    g.s.common = fmax(g.s.common, q->router_together);
    if (q->router_together > 0) scatter = together * together;
    if (scatter > 0) g.alike = g.s.n * g.s.n / scatter;
    return g;
}

/* How many elements of these rows, and of these parts of columns, err as one, see share_rows; of other tensors 1. */
static et_aligned mean_aligned(const jury *q, size_t first, size_t end)
{
    et_aligned sum = {0, 0};
    double uu = 0;
    for (size_t r = first; q->aligned && r < end; r++) {
        et_aligned each = q->aligned[r / q->rows_of_expert];
        uu += q->rows[r].uu;
        sum.rows += each.rows * q->rows[r].uu;
        sum.columns += each.columns * q->rows[r].uu;
    }
    return uu > 0 ? (et_aligned){sum.rows / uu, sum.columns / uu} : (et_aligned){1, 1};
}

/* Rows of the gradient of W_up or W_down, so many different tokens behind them: an expert's, or all. */
static group_sums gradient_of(const jury *q, size_t first, size_t end, double tokens)
{
    et_sums s = plain_sum(q->rows, first, end);
    et_aligned as_one = mean_aligned(q, first, end);
    double sources = fmin(of_tokens(q, tokens), s.n / (as_one.rows + as_one.columns - 1));
    return of_sources(s, sources, common_of_gates(q, tokens));
}

static void judge_whole(jury *q)
{
    const et_sheet *f = q->f;
    group_sums all;
    if (rows_are_tokens(f)) {
        all = rows_of(q, 0, f->rows);
    } else if (q->router) {
        all = router_whole(q);
    } else {
        all = gradient_of(q, 0, f->rows, tokens_behind(q, q->reference->c.experts));
    }
    q->common = all.s.uu > 0 ? all.s.common / (all.s.uu * all.s.uu) : 0;
    judge(q, "tensor", "reference", 0, all);
}

/* Row j of dW_up is sum_s dH_sj x_s, and one token may make up all of it: one source. The elements of a
 * column have each their own row's. With dW_down, dO' A, it is the other way round. */
static void judge_gradient_rows(jury *q)
{
    size_t rows = q->f->rows, each = q->rows_of_expert;
    bool down = strstr(q->f->got->name, "_down") != NULL;
    double common = 0;
    for (size_t r = 0; rows > 1 && r < rows; r++) {
        double as_one = mean_aligned(q, r, r + 1).rows;
        double sources = down ? fmin(of_tokens(q, 1), q->rows[r].n / as_one) : 1;
        if (r % each == 0) common = common_of_gates(q, tokens_behind(q, r / each));
        judge(q, "row", "reference", r,
              q->router ? router_row(q, r) : of_sources(q->rows[r], sources, common));
    }
}

static void judge_rows(jury *q)
{
    size_t rows = q->f->rows;
    if (!rows_are_tokens(q->f))
        judge_gradient_rows(q);
    else
        for (size_t r = 0; rows > 1 && r < rows; r++)
            judge(q, "row", "reference", r, rows_of(q, r, r + 1));
}

static double column_sources(const jury *q)
{
    bool slots = q->f->kind == ET_ROWS_SLOTS;
    double experts = q->f->kind == ET_ROWS_EXPERTS ? (double)q->reference->c.experts : 1;
    if (q->router || q->alike_rows) return 1; /* a token may hand one error to all experts' rows */
    if (rows_are_tokens(q->f))
        return fmin(different(q, NULL, slots, 0, q->f->rows), q->directions) / 24;
    if (!strstr(q->f->got->name, "_up")) return 1;
    double rows = (double)q->f->rows, as_one = mean_aligned(q, 0, q->f->rows).columns;
    return fmax(1, fmin(experts * hidden_of(q) / 24, rows / as_one));
}

static void judge_columns(jury *q)
{
    size_t columns = q->f->columns;
    double sources = column_sources(q);
    for (size_t c = 0; columns > 1 && c < columns; c++) {
        group_sums g = of_sources(q->columns[c], sources, q->common);
        if (q->columns_shift) g.shift = q->columns_shift[c];
        judge(q, "column", "reference", c, g);
    }
}

static void judge_blocks(jury *q)
{
    size_t rows = q->f->rows;
    if (!rows_are_tokens(q->f)) return;
    for (size_t k = 0; k < BLOCK_SIZES && block_sizes[k] < rows; k++)
        for (size_t first = 0; first < rows; first += block_sizes[k]) {
            size_t end = first + block_sizes[k] < rows ? first + block_sizes[k] : rows;
            judge(q, "tokens", "reference", first, rows_of(q, first, end));
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

static bool is_gate(const char *name)
{
    return strcmp(name, "fwd.gates") == 0 || strcmp(name, "route.slot_weight") == 0;
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
        size_t first = (size_t)a->expert_offsets[i], end = (size_t)a->expert_offsets[i + 1];
        if (f->kind == ET_ROWS_SLOTS) {
            judge(q, "expert", "reference", i, rows_of(q, first, end));
        } else if (f->kind == ET_ROWS_EXPERTS && f->rows > n) {
            size_t each = f->rows / n;
            judge(q, "expert", "reference", i,
                  gradient_of(q, i * each, (i + 1) * each, tokens_behind(q, i)));
        } else if (pairs) {
            judge(q, "expert", "reference", i,
                  of_sources(sum_on_slots(q, i), of_tokens(q, different(q, NULL, true, first, end)),
                             0));
        }
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

/* The error regressed on one summand; a gate's error is along all of `want`, and so, in part, along this. */
static et_sums regress_on(const bench *b, size_t columns, double factor, const double *part,
                          const double *want)
{
    et_sums sums = et_sum_weighed(columns, b->e, b->weight, factor, part);
    double along = 0;
    for (size_t c = 0; c < columns; c++) along += want[c] * factor * part[c] * b->weight[c];
    sums.along = fabs(along);
    return sums;
}

/* Token t of y: first = routed, second = shared, each slot by itself. */
static void regress_y(const jury *q, parts *p, size_t t, const bench *b)
{
    const et_moe_values *v = &q->reference->fwd;
    const et_assignment *a = &q->reference->assignment;
    size_t d = q->f->columns;
    const double *want = q->f->want + t * d;
    if (v->shared_out) {
        const double *shared = row_of(v->shared_out, t, d);
        double s = (double)v->shared_weight[t];
        subtract(d, want, s, shared, b->u);
        p->first[t] = regress_on(b, d, 1, b->u, want);
        p->second[t] = regress_on(b, d, s, shared, want);
    }
    for (int32_t k = a->token_offsets[t]; k < a->token_offsets[t + 1]; k++) {
        size_t slot = (size_t)a->token_slots[k];
        double w = (double)v->slot_weight[slot];
        p->slots[slot] = regress_on(b, d, w, row_of(v->slot_out, slot, d), want);
    }
}

/* Token t of dx: first = experts, second = shared, third = router. */
static void regress_dx(const jury *q, parts *p, size_t t, const bench *b)
{
    size_t d = q->f->columns;
    const double *router = p->router + t * d, *want = q->f->want + t * d;
    subtract(d, want, 1, router, b->u);
    if (p->shared) {
        subtract(d, b->u, 1, p->shared + t * d, b->u);
        p->second[t] = regress_on(b, d, 1, p->shared + t * d, want);
    }
    p->first[t] = regress_on(b, d, 1, b->u, want);
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
    for (size_t i = 0; i < a->experts; i++) {
        size_t first = (size_t)a->expert_offsets[i], end = (size_t)a->expert_offsets[i + 1];
        judge(q, "expert", "routed", i, sum_rows(q, p->slots, q->slot_gates, true, first, end));
    }
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
#pragma omp parallel for if (et_worth_threads(f->rows * d))
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
        size_t N = q->f->rows;
        const double *gates = q->token_gates;
        if (!y || s->c.shared)
            judge(q, "part", y ? "routed" : "experts", 0, sum_rows(q, p.first, gates, false, 0, N));
        if (s->c.shared) judge(q, "part", "shared", 0, sum_rows(q, p.second, gates, false, 0, N));
        if (y)
            judge_slots(q, &p);
        else
            judge(q, "part", "router", 0, sum_rows(q, p.third, q->router_gates, false, 0, N));
    }
    free_parts(&p);
    return status;
}

/* ---- what gates share out ---- */

/* v of `count` weights w with the variances V, `to` [count] or NULL; returns their mean, weighted with their squares. */
static double share(const et_judgement *j, size_t count, const et_real *w, const et_real *V,
                    double *to)
{
    double squares = 0, variance = 0;
    for (size_t i = 0; i < count; i++) {
        double size = (double)w[i] * (double)w[i], error = j->scale * (double)V[i];
        if (to) to[i] = size > 0 ? error / size : 0;
        squares += size;
        variance += error;
    }
    return squares > 0 ? variance / squares : 0;
}

/* Of a token, the largest of its slots' and its own. */
static void share_tokens(const et_assignment *a, const double *slots, double *tokens)
{
    for (size_t s = 0; s < a->slots; s++) {
        double *t = &tokens[a->slot_token[s]];
        *t = fmax(*t, slots[s]);
    }
}

/* A token's dr as a whole: sum_i V[dr_i] / sum_i dr_i^2. */
static void share_dr(jury *q, double *room)
{
    const et_step *s = q->j->reference;
    size_t n = s->c.experts;
    q->router_gates = room;
    for (size_t t = 0; t < s->c.tokens; t++)
        room[t] = share(q->j, n, s->bwd.logits + t * n, q->j->variance->bwd.logits + t * n, NULL);
    /* softmax_tokens: an expert's dr of all tokens err by one D, and where w is small dx is little else */
    for (size_t t = 0; q->gates_together && t < s->c.tokens; t++)
        q->token_gates[t] = fmax(q->token_gates[t], room[t]);
}

/* What rounding that is no matter of chance makes of dr (ref/layers/alike.c), as an operand: moved [N,n]. */
static et_status find_moved(const jury *q, et_real *moved, et_error *error)
{
    const et_step *s = q->j->reference;
    const et_profile *p = q->j->options->profile;
    const rounding last = et_rounding_coarser(p, ET_OPERANDS, ET_LOGITS);
    const et_moe moe = et_step_layer(s);
    return et_alike_dr(&moe, p, &last, &s->assignment, &s->fwd, &s->bwd, moved, error);
}

/* columns_shift [d]: the slope of that, times W_r, in each column of dx. */
static et_status share_columns(jury *q, double *room, et_error *error)
{
    const et_step *s = q->j->reference;
    size_t N = s->c.tokens, n = s->c.experts, d = s->c.d_model;
    const double *u = q->f->want;
    void *scratch;
    et_status status = et_allocate(&scratch, N * (n + d) + d, sizeof(double), "dx", error);
    if (status != ET_OK) return status;
    et_real *moved = scratch, *e = moved + N * n;
    double *uu = (double *)scratch + N * (n + d);
    status = find_moved(q, moved, error);
    if (status == ET_OK) {
        et_matmul(ET_BLAS, N, d, n, et_rows(moved, n), et_rows(s->in.router, d), false, e, d);
        for (size_t k = 0; k < N * d; k++) {
            room[k % d] += (double)e[k] * u[k];
            uu[k % d] += u[k] * u[k];
        }
        for (size_t c = 0; c < d; c++) room[c] = uu[c] > 0 ? fabs(room[c]) / uu[c] : 0;
        q->columns_shift = room;
    }
    free(scratch);
    return status;
}

/* A softmax, or weights divided by their sum, hand the error of one expert's dw on to all of a token's dr; the
 * z-loss hands on that of lse. */
static bool experts_err_together(const et_case *c)
{
    return c->gate == ET_GATE_SOFTMAX || et_gate_has_anchor(c->gate) || c->norm == ET_NORM_SUM ||
           c->z_loss_coef > 0;
}

/* Expert i's row of dW_r, u = sum_t dr_t x_t, errs by sum_t e_t x_t. The slope of that, sum_t e_t (x_t u) / u^2,
 * has the variance sum_t V[dr_t] (x_t u)^2 / u^4, and the row has (sum_t V[dr_t])^2 / sum_t V[dr_t]^2 sources. A
 * token that stands there m times, with the same dy, counts m times as much: its errors add up. All rows
 * together err by a token's sum_i e_ti (x_t u_i), each weighed with its row's sum u^2/V; at most by sum_i |..|,
 * and by nearly that where one gate is almost 1 and all others' dr come from its dw. The shift is what rounding
 * that is no matter of chance makes of u (ref/layers/alike.c). */
static et_status share_router(jury *q, double *room, et_error *error)
{
    const et_step *s = q->j->reference;
    const double *u = q->f->want, *V = (const double *)(const void *)q->j->variance->bwd.logits;
    size_t N = s->c.tokens, n = s->c.experts, d = s->c.d_model;
    const int32_t *copies = q->j->twins.boths;
    void *scratch;
    et_status status = et_allocate(&scratch, 2 * N * n, sizeof(et_real), "dW_r", error);
    if (status != ET_OK) return status;
    et_real *products = scratch, *moved = products + N * n;
    status = find_moved(q, moved, error);
    if (status != ET_OK) goto out;
    et_matmul(ET_BLAS, N, n, d, et_rows(s->in.x, d),
              et_transposed((const et_real *)(const void *)u, d), false, products, n);
    double *tokens = room + 3 * n; /* [N] sum_i |..| of a token */
    double together = crowd(q, (double)N);
    q->router = room;
    q->router_alike = room + n;
    q->router_shift = room + 2 * n;
    for (size_t i = 0; i < n; i++) {
        double squares = 0, along = 0, all = 0, all2 = 0, shift = 0;
        for (size_t c = 0; c < d; c++) squares += u[i * d + c] * u[i * d + c];
        double weight = squares > 0 ? q->rows[i].uu / squares : 0;
        for (size_t t = 0; t < N; t++) {
            double m = copies ? copies[t] : 1, v = q->j->scale * V[t * n + i];
            double xu = (double)products[t * n + i];
            shift += (double)moved[t * n + i] * xu;
            along += m * v * xu * xu;
            tokens[t] += sqrt(m * v) * fabs(xu) * weight;
            all += v;
            all2 += m * v * v;
        }
        q->router[i] = squares > 0 ? together * along / (squares * squares) : 0;
        q->router_shift[i] = squares > 0 ? shift / squares : 0;
        q->router_alike[i] = all2 > 0 ? fmin(all * all / all2, q->j->directions) : 1;
    }
    for (size_t t = 0; experts_err_together(&s->c) && t < N; t++)
        q->router_together += together * tokens[t] * tokens[t];
out:
    free(scratch);
    return status;
}

/* Of each expert's gradient of W_up or W_down: how many elements of a row, and of a column, count as one, by
 * aligned.c; and as many times more as there are copies of a token, whose errors add up. `room` [2n]. */
static et_status share_rows(jury *q, double *room, et_error *error)
{
    const et_assignment *a = &q->reference->assignment;
    bool by_expert = q->f->kind == ET_ROWS_EXPERTS;
    size_t experts = by_expert ? q->reference->c.experts : 1;
    q->aligned = (et_aligned *)(void *)room;
    et_status status = et_find_aligned(q->j, q->f, q->rows, q->aligned, error);
    for (size_t i = 0; status == ET_OK && i < experts; i++) {
        size_t first = by_expert ? (size_t)a->expert_offsets[i] : 0;
        size_t end = by_expert ? (size_t)a->expert_offsets[i + 1] : q->reference->c.tokens;
        double different_ones = fmin(different(q, NULL, by_expert, first, end), q->directions);
        double copies = end > first ? (double)(end - first) / different_ones : 1;
        q->aligned[i].rows = 1 + copies * fmax(0, q->aligned[i].rows);
        q->aligned[i].columns = 1 + copies * fmax(0, q->aligned[i].columns);
    }
    return status;
}

/* How gates' errors come into this tensor's rows. `room` [S+N]. */
static void share_gates(jury *q, double *room)
{
    const et_step *s = q->j->reference, *V = q->j->variance;
    const char *name = q->f->got->name;
    size_t N = s->c.tokens, S = s->assignment.slots;
    bool shared = strncmp(name, "bwd.shared_", 11) == 0, tokens = rows_are_tokens(q->f);
    double mean = 0;
    q->slot_gates = room;
    q->token_gates = room + S;
    if (!q->numbers && hangs_on_gates(name)) {
        if (s->fwd.shared_weight)
            mean = share(q->j, N, s->fwd.shared_weight, V->fwd.shared_weight, q->token_gates);
        if (!shared) mean = share(q->j, S, s->fwd.slot_weight, V->fwd.slot_weight, q->slot_gates);
        if (!shared) share_tokens(&s->assignment, q->slot_gates, q->token_gates);
        if (tokens)
            q->row_gates = q->f->kind == ET_ROWS_SLOTS ? q->slot_gates : q->token_gates;
        else
            q->gates = mean;
    }
}

/* Tokens that err independently, at most. Multiples of a row lose the same bits of their sums; in the
 * backward pass of experts (dy = 1) so do multiples of dy. */
static double directions_of(const et_judgement *j, const char *name)
{
    double most = j->inputs;
    if (strncmp(name, "bwd.", 4) == 0) most = fmin(most, j->upstreams);
    return j->systematic.parameters ? fmin(most, j->directions) : most;
}

/* ---- all groups of a tensor ---- */

et_status et_judge_groups(const et_judgement *j, const et_sheet *f, const et_step *reference,
                          const et_sums *rows, const et_sums *columns, et_tensor_verdict *out,
                          et_error *error)
{
    const et_profile *p = j->options->profile;
    const char *name = f->got->name;
    bool y = strcmp(name, "fwd.y") == 0, dx = strcmp(name, "bwd.x") == 0;
    bool moe = reference->c.layer == ET_MOE;
    size_t N = reference->c.tokens, S = reference->assignment.slots; /* a deviant's may differ */
    if (j->reference->assignment.slots > S) S = j->reference->assignment.slots;
    jury q = {
        .j = j,
        .f = f,
        .reference = reference,
        .rows = rows,
        .columns = columns,
        .out = out,
        .coarse = et_tail_is_coarse(p, name),
        .limits = et_group_limits_of(j->alpha, j->tests, et_tail_is_coarse(p, name)),
        .rows_of_expert = f->kind == ET_ROWS_EXPERTS ? f->rows / reference->c.experts : f->rows,
        .numbers = f->columns <= 1 || is_pairs(f),
        .spread = et_systematic_spread(name, j->systematic.dy),
        .b = et_systematic_slope(p) + et_noise_slope(&j->systematic, name, false),
        .b_whole = et_systematic_slope(p) + et_noise_slope(&j->systematic, name, true),
        .b_router = et_systematic_slope(p) + et_noise_slope(&j->systematic, "bwd.w_router", true)};
    bool by_expert = moe && reference->c.gate == ET_GATE_SOFTMAX_TOKENS;
    /* there p_ti = e_ti / sum_s e_si and dr_ti = p_ti (dp_ti - D_i): one number for all tokens */
    q.gates_together = by_expert;
    bool one_sum = by_expert && (strcmp(name, "bwd.logits") == 0 || (q.coarse && is_gate(name)));
    q.directions = one_sum ? 1 : directions_of(j, name);
    /* by chance it is 0.6 2^-p over the root of the tokens */
    q.alike_rows = dx && j->systematic.router.most > ldexp(0.125, -p->bits[ET_OPERANDS]);
    void *room;
    size_t experts = reference->c.experts > 0 ? reference->c.experts : 1;
    et_status status =
        et_allocate(&room, 3 * N + S + 3 * experts + f->columns, sizeof(double), "groups", error);
    if (status != ET_OK) return status;
    q.seen = room;
    if (strcmp(name, "bwd.w_router") == 0)
        status = share_router(&q, q.seen + N, error);
    else if (moe)
        share_gates(&q, q.seen + N);
    if (moe && dx) share_dr(&q, q.seen + 2 * N + S);
    if (strstr(name, "_up") || strstr(name, "_down"))
        status = share_rows(&q, q.seen + 2 * N + S, error);
    if (moe && dx) status = share_columns(&q, q.seen + 3 * N + S, error);
    if (status == ET_OK) {
        judge_whole(&q);
        judge_experts(&q);
        judge_rows(&q);
        judge_columns(&q);
        judge_blocks(&q);
    }
    if (status == ET_OK && moe && (y || dx)) status = judge_parts(&q, y, error);
    free(room);
    return status;
}

double et_group_tests(const et_tensor_out *t, size_t experts)
{
    double columns = t->rank > 1 ? (double)t->shape[t->rank - 1] : 1;
    double rows = columns > 0 ? (double)et_tensor_count(t) / columns : 0;
    double own = 1 + columns + rows,
           blocks = rows; /* an expert's own group is a column, or some rows */
    return 2 * (own + rows + blocks + 3 + (double)experts); /* parts: one an expert, and three */
}
