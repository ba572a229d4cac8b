/* show_routing.c: who goes where, as pictures. See show.h.
 *
 * The two views of a small bundle are the same numbers in two orders. By token: the grid z, the way
 * a kernel sees it. By expert, the tokens sorted by score: there the three rules can be told apart
 * at a glance. Under EC the chosen tokens are exactly the first k of every pool; under ET they are
 * those above a line that was there before the batch; under TC they lie scattered, since each token
 * chose for itself.
 *
 *     TC  # . # # . .        EC  # # # | . . .        ET  # # | . . . .
 */
#include "ref/report/describe_case.h"
#include "tools/etref/options.h"
#include "tools/etref/show.h"
#include "tools/etref/terminal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    BAR = 46,             /* places of a bar */
    MAX_LISTED = 64,      /* experts in a chart or table */
    MAX_FANOUT = 1 << 20, /* experts in a histogram: a case may claim two thousand million */
    GRID_TOKENS = 64,     /* the largest routing that is drawn */
    GRID_EXPERTS = 32,
    GRID_SIDES = 17, /* places of a row beside its cells */
    SCORED_EXPERTS = 8,  /* up to here a cell of the grid shows its score, too */
    NUMBERED_TOKENS = 16 /* up to here the second view names its tokens */
};

et_status read_shaped(double **out, const et_tensor_file *file, const char *name, size_t rows,
                      size_t columns, et_error *error)
{
    const et_tensor_info *t = et_tensor_file_find(file, name);
    *out = NULL;
    if (t == NULL || !has_values(t) || t->rank != (columns ? 2u : 1u) || t->shape[0] != rows ||
        (columns && t->shape[1] != columns))
        return ET_OK;
    *out = allocate(t->count, sizeof **out);
    et_status status = et_tensor_file_read(file, t, 0, t->count, *out, error);
    if (status == ET_OK) return ET_OK;
    free(*out);
    *out = NULL;
    return status;
}

/* ---- loads ---- */

/* What the routing aims at: the load of one expert in the whole step; 0 for a dense layer. */
static double target_load(const et_case *c)
{
    if (c->layer == ET_DENSE) return 0;
    size_t real = c->micro_batches * et_case_real_tokens(c);
    if (c->rule == ET_TC) return (double)real * (double)c->top_k / (double)c->experts;
    return (double)c->target_load * ((double)real / (double)c->pool_tokens);
}

static void print_loads(const et_case *c, const double *load)
{
    double target = target_load(c), full = target;
    size_t listed = c->experts < MAX_LISTED ? c->experts : MAX_LISTED;
    for (size_t i = 0; i < c->experts; i++)
        if (load[i] > full) full = load[i];
    printf("\nload of each expert and its share of the tokens; | marks the target, %.6g\n", target);
    for (size_t i = 0; i < listed; i++) {
        char bar[BAR + 1];
        print_bar(bar, BAR, load[i], target, full);
        printf("  expert %-4zu %8.0f  %5.1f %%  %s\n", i, load[i],
               100 * load[i] / (double)c->tokens, bar);
    }
    if (listed < c->experts)
        printf("  and %zu more: see 'etref show FILE route.load --all'\n", c->experts - listed);
}

/* How the capacity acted: between which bounds, and on what share of the experts, which is known
 * where the bundle holds metrics. */
static et_status print_capacity(const shown *s, et_error *error)
{
    const et_case *c = &s->c;
    double *above = NULL, *below = NULL;
    if (c->rule == ET_TC && et_case_token_capacity(c) < et_case_real_tokens(c)) {
        char line[128];
        snprintf(line, sizeof line, "capacity %g: %zu slots of an expert%s; what is over them is dropped", c->capacity_factor,
                 et_case_token_capacity(c), c->micro_batches > 1 ? " in a micro-batch" : "");
        print_wrapped(2, line);
    }
    if (!c->has_capacity || c->eval || !et_case_routes_by_threshold(c)) return ET_OK;
    et_capacity bounds =
        et_capacity_bounds(c->target_load, c->capacity_factor, et_case_real_tokens(c));
    et_status status = read_shaped(&above, &s->file, "metric.overflow_rate", 1, 0, error);
    if (status == ET_OK)
        status = read_shaped(&below, &s->file, "metric.underflow_rate", 1, 0, error);
    if (status == ET_OK) {
        char line[256];
        snprintf(line, sizeof line, "capacity %g: %zu to %zu tokens%s", c->capacity_factor, bounds.lower, bounds.upper,
                 c->micro_batches > 1 ? " of a micro-batch" : "");
        if (above && below && above[0] == 0 && below[0] == 0)
            et_append(line, sizeof line, "; it clamps no expert");
        else if (above && below)
            et_append(line, sizeof line, "; %.3g %% of the experts are cut, %.3g %% padded", 100 * above[0],
                      100 * below[0]);
        print_wrapped(2, line);
    }
    free(above);
    free(below);
    return status;
}

/* ---- fanout ---- */

typedef struct fanout_counts {
    size_t experts;
    double *tokens; /* [experts+1] */
} fanout_counts;

static void count_fanout(void *user, const double *values, size_t first, size_t count)
{
    (void)first;
    fanout_counts *f = user;
    for (size_t i = 0; i < count; i++)
        if (values[i] >= 0 && values[i] <= (double)f->experts) f->tokens[(size_t)values[i]]++;
}

/* From route.fanout, which lean bundles have, too. */
static et_status read_fanout(fanout_counts *f, const shown *s, et_error *error)
{
    const et_tensor_info *t = et_tensor_file_find(&s->file, "route.fanout");
    *f = (fanout_counts){.experts = s->c.experts};
    if (t == NULL || !has_values(t) || f->experts > MAX_FANOUT) return ET_OK;
    f->tokens = allocate(f->experts + 1, sizeof *f->tokens);
    return visit_values(&s->file, t, t->count, count_fanout, f, error);
}

static void print_fanout(const fanout_counts *f)
{
    double full = 0;
    size_t last = 0;
    for (size_t i = 0; i <= f->experts; i++) {
        if (f->tokens[i] > full) full = f->tokens[i];
        if (f->tokens[i] > 0) last = i;
    }
    puts("\ntokens by the number of experts that take them");
    for (size_t i = 0; i <= last; i++) {
        char bar[BAR + 1];
        print_bar(bar, BAR, f->tokens[i], -1, full);
        printf("  %-11zu %8.0f           %s\n", i, f->tokens[i], bar);
    }
}

/* ---- state, losses, metrics ---- */

static const char *const expert_vectors[] = {
    "in.ema",    "in.bias",    "in.load",          "route.threshold",  "route.cutoff",
    "state.ema", "state.bias", "metric.raw_usage", "metric.cutoff_gap"};
enum { EXPERT_VECTORS = sizeof expert_vectors / sizeof *expert_vectors };

static void print_vectors(double *const *vectors, size_t experts)
{
    char align[EXPERT_VECTORS + 2] = "l";
    et_table table;
    size_t columns = 0;
    for (size_t v = 0; v < EXPERT_VECTORS; v++)
        if (vectors[v]) align[++columns] = 'r';
    if (columns == 0) return;
    et_table_begin(&table, align);
    et_table_cell(&table, "  expert");
    for (size_t v = 0; v < EXPERT_VECTORS; v++)
        if (vectors[v]) et_table_cell(&table, "%s", expert_vectors[v]);
    for (size_t i = 0; i < experts && i < MAX_LISTED; i++) {
        et_table_cell(&table, "  %zu", i);
        for (size_t v = 0; v < EXPERT_VECTORS; v++)
            if (vectors[v]) et_table_cell(&table, "%.6g", vectors[v][i]);
    }
    puts("\nstate of each expert");
    table_print(&table);
}

static et_status print_state(const shown *s, et_error *error)
{
    double *vectors[EXPERT_VECTORS] = {0};
    et_status status = ET_OK;
    for (size_t v = 0; v < EXPERT_VECTORS && status == ET_OK; v++)
        status = read_shaped(&vectors[v], &s->file, expert_vectors[v], s->c.experts, 0, error);
    if (status == ET_OK) print_vectors(vectors, s->c.experts);
    for (size_t v = 0; v < EXPERT_VECTORS; v++) free(vectors[v]);
    return status;
}

static bool is_scalar_result(const et_tensor_info *t)
{
    return t->count == 1 && has_values(t) &&
           (strncmp(t->name, "loss.", 5) == 0 || strncmp(t->name, "state.", 6) == 0 ||
            strncmp(t->name, "metric.", 7) == 0);
}

static et_status print_scalars(const shown *s, et_error *error)
{
    et_table table;
    et_status status = ET_OK;
    et_table_begin(&table, "lrl");
    for (size_t i = 0; i < s->file.tensor_count && status == ET_OK; i++) {
        const et_tensor_info *t = s->order[i];
        const et_tensor_doc *doc = et_doc_of(t->name);
        double value = 0;
        if (!is_scalar_result(t)) continue;
        status = et_tensor_file_read(&s->file, t, 0, 1, &value, error);
        et_table_cell(&table, "  %s", t->name);
        et_table_cell(&table, "%.9g", value);
        et_table_cell(&table, "%s", doc ? doc->meaning : "");
    }
    if (table.count > 0) puts("\nlosses, state, metrics");
    table_print(&table);
    return status;
}

/* ---- the picture of a small routing ---- */

typedef struct picture {
    const et_case *c;
    size_t N, n, micro, P; /* tokens, experts, tokens of a micro-batch, tokens decided together */
    size_t each, pools;    /* such pools of a micro-batch, of all */
    double *mask, *logits;      /* [N,n]; logits may be NULL */
    double *threshold, *cutoff; /* [n] or NULL */
    double *pool_cutoff;        /* [pools,n] or NULL */
    double *topk;               /* [N,K] or NULL: experts that a token chose */
} picture;

static void picture_free(picture *p)
{
    free(p->mask);
    free(p->logits);
    free(p->threshold);
    free(p->cutoff);
    free(p->pool_cutoff);
    free(p->topk);
}

/* Or the padding behind the last one of a micro-batch. */
static bool begins_pool(const picture *p, size_t t)
{
    size_t at = t % p->micro;
    return at <= p->each * p->P && at % p->P == 0;
}

static et_status picture_read(picture *p, const shown *s, et_error *error)
{
    const et_case *c = &s->c;
    size_t real = et_case_real_tokens(c);
    *p = (picture){.c = c, .N = c->tokens, .n = c->experts, .micro = et_case_micro_tokens(c)};
    p->P = et_case_routes_by_choice(c) ? c->pool_tokens : real;
    p->each = real / p->P;
    p->pools = c->micro_batches * p->each;
    if (p->N > GRID_TOKENS || p->n > GRID_EXPERTS) return ET_OK;
    const struct {
        double **out;
        const char *name;
        size_t rows, columns;
    } parts[] = {{&p->mask, "route.mask", p->N, p->n},
                 {&p->logits, "fwd.logits", p->N, p->n},
                 {&p->threshold, "route.threshold", p->n, 0},
                 {&p->cutoff, "route.cutoff", p->n, 0},
                 {&p->pool_cutoff, "route.pool_cutoff", p->pools, p->n},
                 {&p->topk, "route.topk_expert", p->N, c->top_k}};
    et_status status = ET_OK;
    for (size_t i = 0; i < sizeof parts / sizeof *parts && status == ET_OK; i++)
        status = read_shaped(parts[i].out, &s->file, parts[i].name, parts[i].rows, parts[i].columns,
                             error);
    return status;
}

/* Does the token's score lie above the expert's line? ET's line is the threshold, EC's its pool's
 * cutoff (which is the score of the last one taken); TC has none. */
static bool has_line(const picture *p)
{
    if (p->logits == NULL) return false;
    if (et_case_routes_by_threshold(p->c)) return p->threshold != NULL;
    return et_case_routes_by_choice(p->c) && p->pool_cutoff != NULL;
}

static bool above_line(const picture *p, size_t t, size_t e)
{
    double score = p->logits[t * p->n + e];
    if (et_case_routes_by_threshold(p->c))
        return p->c->inclusive ? score >= p->threshold[e] : score > p->threshold[e];
    return score >= p->pool_cutoff[(t / p->micro * p->each + t % p->micro / p->P) * p->n + e];
}

/* Was the expert chosen that has no slot for the token? */
static bool is_dropped(const picture *p, size_t t, size_t e)
{
    size_t K = p->topk ? p->c->top_k : 0, k = 0;
    while (k < K && p->topk[t * K + k] != (double)e) k++;
    return k < K;
}

static char cell_mark(const picture *p, size_t t, size_t e)
{
    bool chosen = p->mask[t * p->n + e] != 0;
    bool line = et_case_routes_by_threshold(p->c) && has_line(p);
    if (!line) return chosen ? '#' : is_dropped(p, t, e) ? 'x' : '.';
    return above_line(p, t, e) ? (chosen ? '#' : 'x') : (chosen ? 'p' : '.');
}

static bool shows_scores(const picture *p)
{
    return p->logits != NULL && p->n <= SCORED_EXPERTS && GRID_SIDES + 12 * p->n <= terminal_width();
}

static void print_grid_vector(const picture *p, const char *label, const double *values)
{
    if (values == NULL) return;
    printf("  %-10s", label);
    for (size_t e = 0; e < p->n; e++) printf(" %9.4g  ", values[e]);
    putchar('\n');
}

static void print_grid_loads(const picture *p)
{
    printf("  %-10s", "load");
    for (size_t e = 0; e < p->n; e++) {
        int load = 0;
        for (size_t t = 0; t < p->N; t++) load += p->mask[t * p->n + e] != 0;
        printf(shows_scores(p) ? " %9d  " : " %2d", load);
    }
    putchar('\n');
}

static void print_grid_row(const picture *p, size_t t)
{
    int fanout = 0;
    printf("  token %-4zu", t);
    for (size_t e = 0; e < p->n; e++) {
        char mark = cell_mark(p, t, e);
        if (shows_scores(p))
            printf(" %9.4f %c", p->logits[t * p->n + e], mark);
        else
            printf("  %c", mark);
        fanout += p->mask[t * p->n + e] != 0;
    }
    printf("  | %d\n", fanout);
}

static void print_grid(const picture *p)
{
    if (GRID_SIDES + 3 * p->n > terminal_width()) {
        printf("\nwho goes where: drawn in %zu columns and more (COLUMNS)\n", GRID_SIDES + 3 * p->n);
        return;
    }
    putchar('\n');
    print_wrapped(0, p->topk ? "who goes where: # taken, . not, x chosen and dropped; | fanout"
                             : "who goes where: # taken, . not, p taken below the threshold, x dropped above it; "
                               "| fanout");
    printf("  %-10s", "expert");
    for (size_t e = 0; e < p->n; e++) printf(shows_scores(p) ? " %9zu  " : " %2zu", e);
    putchar('\n');
    for (size_t t = 0; t < p->N; t++) {
        if (t > 0 && begins_pool(p, t)) puts("  --");
        print_grid_row(p, t);
    }
    print_grid_loads(p);
    if (!shows_scores(p)) return; /* the columns are too narrow; the table of state has them */
    print_grid_vector(p, "threshold", p->threshold);
    print_grid_vector(p, "cutoff", p->cutoff);
}

/* The pool's tokens by falling score, ties by index; N is at most 64, so insertion will do. */
static void sort_tokens(const picture *p, size_t first, size_t e, size_t *order)
{
    for (size_t i = 0; i < p->P; i++) {
        size_t j = i, token = first + i;
        double score = p->logits[token * p->n + e];
        for (; j > 0 && p->logits[order[j - 1] * p->n + e] < score; j--) order[j] = order[j - 1];
        order[j] = token;
    }
}

static void print_ranked(const picture *p, size_t first, size_t e)
{
    size_t order[GRID_TOKENS];
    bool line = has_line(p), drawn = !line;
    sort_tokens(p, first, e, order);
    for (size_t i = 0; i < p->P; i++) {
        size_t t = order[i];
        if (!drawn && !above_line(p, t, e)) {
            putchar('|');
            drawn = true;
        }
        if (p->N <= NUMBERED_TOKENS)
            printf(p->mask[t * p->n + e] != 0 ? "[%zu]" : " %zu ", t);
        else
            putchar(cell_mark(p, t, e));
    }
    if (!drawn) putchar('|');
}

static void print_ranks(const picture *p)
{
    bool line = has_line(p);
    const char *which = et_case_routes_by_threshold(p->c) ? "threshold" : "cutoff";
    char title[160];
    snprintf(title, sizeof title, "each expert's tokens by falling score%s%s%s%s",
             p->N <= NUMBERED_TOKENS ? "; [t] is taken" : "", line ? "; | is the " : "",
             line ? which : "", p->pools > 1 ? "; pools side by side" : "");
    putchar('\n');
    print_wrapped(0, title);
    enum { LABEL = 13 };
    size_t place = p->N <= NUMBERED_TOKENS ? 4 : 1, width = 3 + place * p->P;
    for (size_t e = 0; e < p->n; e++) {
        size_t used = LABEL;
        printf("  expert %-4zu", e);
        for (size_t pool = 0; pool < p->pools; pool++) {
            bool fits = pool == 0 || used + width <= terminal_width();
            if (!fits) printf("\n%*s", LABEL, "");
            fputs("  ", stdout);
            print_ranked(p, pool / p->each * p->micro + pool % p->each * p->P, e);
            used = (fits ? used : LABEL) + width;
        }
        putchar('\n');
    }
}

static et_status print_picture(const shown *s, et_error *error)
{
    picture p;
    et_status status = picture_read(&p, s, error);
    if (status == ET_OK && p.mask) print_grid(&p);
    if (status == ET_OK && p.mask && p.logits) print_ranks(&p);
    picture_free(&p);
    return status;
}

/* ---- all of it ---- */

et_status show_routing_text(const shown *s, et_error *error)
{
    double *load;
    fanout_counts fanout;
    et_status status = read_shaped(&load, &s->file, "route.load", s->c.experts, 0, error);
    if (status == ET_OK && load) {
        print_loads(&s->c, load);
        status = print_capacity(s, error);
    }
    free(load);
    if (status != ET_OK) return status;
    status = read_fanout(&fanout, s, error);
    if (status == ET_OK && fanout.tokens) print_fanout(&fanout);
    free(fanout.tokens);
    if (status == ET_OK) status = print_state(s, error);
    if (status == ET_OK) status = print_scalars(s, error);
    if (status == ET_OK) status = print_picture(s, error);
    return status;
}

static json_t *numbers_json(const double *values, size_t count)
{
    json_t *array = json_array();
    for (size_t i = 0; i < count; i++) json_array_append_new(array, et_json_number(values[i]));
    return array;
}

et_status add_routing_json(json_t *report, const shown *s, et_error *error)
{
    double *load;
    fanout_counts fanout;
    et_status status = read_shaped(&load, &s->file, "route.load", s->c.experts, 0, error);
    if (status == ET_OK && load) {
        json_object_set_new(report, "target_load", et_json_number(target_load(&s->c)));
        json_object_set_new(report, "load", numbers_json(load, s->c.experts));
    }
    free(load);
    if (status != ET_OK) return status;
    status = read_fanout(&fanout, s, error);
    if (status == ET_OK && fanout.tokens)
        json_object_set_new(report, "fanout", numbers_json(fanout.tokens, fanout.experts + 1));
    free(fanout.tokens);
    return status;
}
