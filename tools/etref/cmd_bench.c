/* cmd_bench.c: `etref bench`: how fast the layer is, by phase, beside what the machine could do.
 *
 * A time alone says little, so three things are timed in every round, one after the other:
 *
 *     peak    one large square product on the same engine: the best this machine does
 *     bare    the layer's own matrix products and nothing else, with their own shapes
 *     layer   zeroing the gradients, forward, backward: everything a training step pays for
 *
 * and ratios are taken within a round, so that a slow moment hits all three. Medians over rounds
 * are shown. Flops are those of the products: 4dh forward and 8dh backward for each slot and each
 * token of the shared expert, 6dn a token for the router.
 */
#include "etref/etref.h"
#include "tools/etref/bench.h"
#include "tools/etref/commands.h"
#include "tools/etref/ending.h"
#include "tools/etref/memory_limit.h"
#include "tools/etref/options.h"
#include "tools/etref/terminal.h"
#include "ref/base/blas_kernels.h"
#include "tools/etref/train.h"

#include <omp.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_ROUNDS = BENCH_ROUNDS, PEAK_SIZE = 2048 };

enum phase {
    SCORE,
    ROUTE,
    WEIGH,
    EXPERTS,
    COMBINE, /* forward */
    ZERO,
    COMBINE_BACK,
    EXPERTS_BACK,
    SCORE_BACK, /* backward */
    PHASES
};

static const char *const phase_names[PHASES] = {"score (router, gate)",
                                                "route (top-k, slots)",
                                                "weigh",
                                                "experts forward",
                                                "combine",
                                                "zero the gradients",
                                                "combine backward",
                                                "experts backward",
                                                "score backward"};

/* What one round measured, in seconds. */
typedef struct round_times {
    double peak; /* flops per second */
    double bare, layer, phase[PHASES];
} round_times;

typedef struct bench {
    et_step step;
    et_moe moe;
    et_real *square; /* three PEAK_SIZE^2 matrices */
    et_real *rows;   /* [N,d] where bare products leave dx */
    size_t rounds;
    round_times times[MAX_ROUNDS];
} bench;

/* ---- what is timed ---- */

static double flops(const et_moe *m, size_t slots)
{
    double experts =
        12.0 * (double)m->d * ((double)slots * (double)m->h + (double)m->N * (double)m->hs);
    return experts + 6.0 * (double)m->N * (double)m->d * (double)m->n;
}

et_real *bench_squares(void)
{
    et_real *squares = allocate(3 * PEAK_SIZE * PEAK_SIZE, sizeof *squares);
    for (size_t i = 0; i < 3 * PEAK_SIZE * PEAK_SIZE; i++) squares[i] = (et_real)(i % 7) / 8;
    return squares;
}

double bench_peak(et_engine engine, et_real *squares)
{
    size_t n = PEAK_SIZE;
    double start = omp_get_wtime();
    et_matmul(engine, n, n, n, et_rows(squares, n), et_rows(squares + n * n, n), false,
              squares + 2 * n * n, n);
    return 2.0 * PEAK_SIZE * PEAK_SIZE * PEAK_SIZE / (omp_get_wtime() - start);
}

/* The six products of one expert. Values and gradients land where the layer puts them. */
static void bare_expert(const et_ffn *f, const et_ffn_rows *r, et_real *dup, et_real *ddown)
{
    et_engine e = f->engine;
    size_t m = r->m, d = f->d, h = f->h;
    et_matmul(e, m, h, d, et_rows(r->x, d), et_transposed(f->up, d), false, r->H, h);
    et_matmul(e, m, d, h, et_rows(r->A, h), et_transposed(f->down, h), false, r->out, d);
    et_matmul(e, m, h, d, et_rows(r->dO, d), et_rows(f->down, h), false, r->dA, h);
    et_matmul(e, d, h, m, et_transposed(r->dO, d), et_rows(r->A, h), true, ddown, h);
    et_matmul(e, h, d, m, et_transposed(r->dH, h), et_rows(r->x, d), true, dup, d);
    et_matmul(e, m, d, h, et_rows(r->dH, h), et_rows(f->up, d), false, r->dx, d);
}

static double time_bare(bench *b)
{
    const et_moe *m = &b->moe;
    const et_assignment *a = &b->step.assignment;
    et_moe_values *v = &b->step.fwd;
    et_moe_grads *g = &b->step.bwd;
    size_t d = m->d, h = m->h, n = m->n, size = h * d;
    const et_real *x = b->step.in.x;
    double start = omp_get_wtime();
    et_matmul(m->engine, m->N, n, d, et_rows(x, d), et_transposed(m->router, d), false, v->logits,
              n);
    for (size_t i = 0; i < n; i++) {
        size_t s = (size_t)a->expert_offsets[i];
        const et_ffn f = {.engine = m->engine,
                          .d = d,
                          .h = h,
                          .up = m->up + i * size,
                          .down = m->down + i * size};
        const et_ffn_rows rows = {.m = (size_t)a->load[i],
                                  .x = x,
                                  .H = v->slot_pre + s * h,
                                  .A = v->slot_act + s * h,
                                  .out = v->slot_out + s * d,
                                  .dO = g->slot_out + s * d,
                                  .dA = g->slot_act + s * h,
                                  .dH = g->slot_pre + s * h,
                                  .dx = b->rows};
        bare_expert(&f, &rows, g->up + i * size, g->down + i * size);
    }
    if (m->hs > 0) {
        const et_ffn f = {.engine = m->engine,
                          .d = d,
                          .h = m->hs,
                          .up = m->shared_up,
                          .down = m->shared_down};
        const et_ffn_rows rows = {.m = m->N,
                                  .x = x,
                                  .H = v->shared_pre,
                                  .A = v->shared_act,
                                  .out = v->shared_out,
                                  .dO = g->shared_out,
                                  .dA = g->shared_act,
                                  .dH = g->shared_pre,
                                  .dx = b->rows};
        bare_expert(&f, &rows, g->shared_up, g->shared_down);
    }
    et_matmul(m->engine, n, d, m->N, et_transposed(g->logits, n), et_rows(x, d), true, g->router,
              d);
    et_matmul(m->engine, m->N, d, n, et_rows(g->logits, n), et_rows(m->router, d), false, b->rows,
              d);
    return omp_get_wtime() - start;
}

static void clear(et_real *at, size_t count)
{
#pragma omp parallel for
    for (size_t i = 0; i < count; i++) at[i] = 0;
}

static void zero_gradients(bench *b)
{
    const et_moe *m = &b->moe;
    et_moe_grads *g = &b->step.bwd;
    clear(g->x, m->N * m->d);
    clear(g->logits, m->N * m->n);
    clear(g->gates, m->N * m->n);
    clear(g->router, m->n * m->d);
    clear(g->up, m->n * m->h * m->d);
    clear(g->down, m->n * m->h * m->d);
    clear(g->shared_up, m->hs * m->d);
    clear(g->shared_down, m->hs * m->d);
}

static et_status route(bench *b, et_error *error)
{
    et_step *s = &b->step;
    const et_case *c = &s->c;
    et_status status = et_expert_choice(c->tokens, c->experts, c->pool_tokens, c->target_load,
                                        s->fwd.logits, s->route.mask, s->route.margin,
                                        s->route.pool_cutoff, s->route.topk_token, 0, error);
    if (status != ET_OK) return status;
    et_assignment_free(&s->assignment);
    return et_assignment_build(&s->assignment, c->tokens, c->experts, s->route.mask, error);
}

/* One phase. */
static et_status run_phase(bench *b, enum phase phase, et_error *error)
{
    et_step *s = &b->step;
    const et_assignment *a = &s->assignment;
    switch (phase) {
    case SCORE: return et_moe_score(&b->moe, s->in.x, &s->fwd, error);
    case ROUTE: return route(b, error);
    case WEIGH: return et_moe_weigh(&b->moe, a, &s->fwd, error);
    case EXPERTS: return et_moe_experts(&b->moe, s->in.x, a, &s->fwd, error);
    case COMBINE: return et_moe_combine(&b->moe, a, &s->fwd, error);
    case ZERO: zero_gradients(b); return ET_OK;
    case COMBINE_BACK:
        return et_moe_combine_backward(&b->moe, s->in.dy, a, &s->fwd, &s->bwd, error);
    case EXPERTS_BACK: return et_moe_experts_backward(&b->moe, s->in.x, a, &s->fwd, &s->bwd, error);
    case SCORE_BACK: return et_moe_score_backward(&b->moe, s->in.x, a, &s->fwd, &s->bwd, error);
    case PHASES: break;
    }
    return ET_OK;
}

static et_status time_round(bench *b, round_times *r, et_error *error)
{
    r->peak = bench_peak(b->moe.engine, b->square);
    r->bare = time_bare(b);
    r->layer = 0;
    for (int phase = 0; phase < PHASES; phase++) {
        double start = omp_get_wtime();
        et_status status = run_phase(b, phase, error);
        if (status != ET_OK) return status;
        r->phase[phase] = omp_get_wtime() - start;
        r->layer += r->phase[phase];
    }
    return ET_OK;
}

/* ---- medians ---- */

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double bench_median(double *values, size_t count)
{
    qsort(values, count, sizeof *values, by_value);
    return count % 2 ? values[count / 2] : (values[count / 2 - 1] + values[count / 2]) / 2;
}

static double median_phase(const bench *b, int phase)
{
    double values[MAX_ROUNDS];
    for (size_t i = 0; i < b->rounds; i++) values[i] = b->times[i].phase[phase];
    return bench_median(values, b->rounds);
}

typedef struct summary {
    double gflops_peak, gflops_layer; /* medians */
    double seconds, bare_seconds;
    double of_peak, bare_of_peak, of_bare; /* medians of the rounds' ratios */
} summary;

static summary summarise(const bench *b)
{
    double work = flops(&b->moe, b->step.assignment.slots);
    double v[7][MAX_ROUNDS];
    for (size_t i = 0; i < b->rounds; i++) {
        const round_times *r = &b->times[i];
        v[0][i] = r->peak / 1e9;
        v[1][i] = work / r->layer / 1e9;
        v[2][i] = r->layer;
        v[3][i] = r->bare;
        v[4][i] = work / r->layer / r->peak;
        v[5][i] = work / r->bare / r->peak;
        v[6][i] = r->bare / r->layer;
    }
    double m[7];
    for (int i = 0; i < 7; i++) m[i] = bench_median(v[i], b->rounds);
    return (summary){m[0], m[1], m[2], m[3], m[4], m[5], m[6]};
}

/* ---- one configuration ---- */

typedef struct shape {
    size_t tokens, d, h, experts, granularity, hs;
} shape;

static et_case case_of(shape s)
{
    return (et_case){.name = "bench",
                     .layer = ET_MOE,
                     .rule = ET_EC,
                     .tokens = s.tokens,
                     .d_model = s.d,
                     .d_expert = s.h,
                     .experts = s.experts,
                     .top_k = 1,
                     .granularity = s.granularity,
                     .target_load = s.tokens * s.granularity / s.experts,
                     .pool_tokens = s.tokens,
                     .shared = s.hs > 0,
                     .shared_d_expert = s.hs,
                     .ema_decay = 0.999,
                     .micro_batches = 1,
                     .precision = sizeof(et_real) == 8 ? ET_F64 : ET_F32,
                     .input = {.source = ET_INPUT_NORMAL, .seed = 1, .copies = 1}};
}

static void bench_free(bench *b)
{
    et_step_free(&b->step);
    free(b->square);
    free(b->rows);
    free(b);
}

/* Computes the step once, which also warms every array up, then times `rounds` rounds. */
static int bench_run(bench **out, shape s, et_engine engine, size_t rounds)
{
    bench *b = allocate(1, sizeof *b);
    et_error error = {""};
    et_case c = case_of(s);
    et_status status = et_step_create(&b->step, &c, memory_limit(), &error);
    if (status == ET_OK) status = et_step_draw_inputs(&b->step, &error);
    if (status == ET_OK) status = et_step_run(&b->step, engine, NULL, NULL, &error);
    b->rounds = rounds;
    b->moe = et_step_layer(&b->step);
    b->square = bench_squares();
    b->rows = allocate(s.tokens * s.d, sizeof(et_real));
    round_times warm_up;
    if (status == ET_OK) status = time_round(b, &warm_up, &error);
    for (size_t i = 0; status == ET_OK && i < rounds; i++) {
        status = time_round(b, &b->times[i], &error);
        progress_show("bench", "rounds", (double)(i + 1) / (double)rounds);
    }
    progress_clear();
    if (status != ET_OK) {
        bench_free(b);
        return fail_status(status, &error);
    }
    *out = b;
    return STATUS_PASS;
}

/* ---- reports ---- */

static json_t *shape_json(shape s)
{
    return json_pack("{s:I,s:I,s:I,s:I,s:I,s:I}", "tokens", (json_int_t)s.tokens, "d_model",
                     (json_int_t)s.d, "d_expert", (json_int_t)s.h, "experts", (json_int_t)s.experts,
                     "granularity", (json_int_t)s.granularity, "shared_d_expert", (json_int_t)s.hs);
}

static json_t *summary_json(shape s, summary m)
{
    json_t *object = shape_json(s);
    json_object_set_new(object, "seconds", json_real(m.seconds));
    json_object_set_new(object, "microseconds_per_token",
                        json_real(1e6 * m.seconds / (double)s.tokens));
    json_object_set_new(object, "gflops", json_real(m.gflops_layer));
    json_object_set_new(object, "gflops_peak", json_real(m.gflops_peak));
    json_object_set_new(object, "of_peak", json_real(m.of_peak));
    json_object_set_new(object, "bare_of_peak", json_real(m.bare_of_peak));
    json_object_set_new(object, "of_bare", json_real(m.of_bare));
    return object;
}

static const char *engine_name(et_engine engine)
{
    return engine == ET_BLAS ? "blas" : "plain";
}

/* What every table and the layer's report are about. */
void bench_print_setting(et_engine engine, size_t rounds)
{
    printf("%s, engine %s", ET_REAL_NAME, engine_name(engine));
    if (engine == ET_BLAS) printf(" (%s kernels)", et_kernels_in_use());
    printf(", %d threads, medians of %zu rounds\n\n", omp_get_max_threads(), rounds);
}

static void print_phases(const bench *b, summary m)
{
    et_table t;
    et_table_begin(&t, "lrr");
    et_table_cell(&t, "phase");
    et_table_cell(&t, "ms");
    et_table_cell(&t, "share");
    for (int phase = 0; phase < PHASES; phase++) {
        double seconds = median_phase(b, phase);
        et_table_cell(&t, "%s", phase_names[phase]);
        et_table_cell(&t, "%.2f", 1e3 * seconds);
        et_table_cell(&t, "%.1f %%", 100 * seconds / m.seconds);
    }
    table_print(&t);
}

static int report_layer(shape s, et_engine engine, size_t rounds, bool json)
{
    bench *b;
    int status = bench_run(&b, s, engine, rounds);
    if (status != STATUS_PASS) return status;
    summary m = summarise(b);
    if (json) {
        json_t *object = summary_json(s, m), *phases = json_object();
        for (int phase = 0; phase < PHASES; phase++)
            json_object_set_new(phases, phase_names[phase], json_real(median_phase(b, phase)));
        json_object_set_new(object, "threads", json_integer(omp_get_max_threads()));
        json_object_set_new(object, "engine", json_string(engine_name(engine)));
        if (engine == ET_BLAS)
            json_object_set_new(object, "kernels", json_string(et_kernels_in_use()));
        json_object_set_new(object, "precision", json_string(ET_REAL_NAME));
        json_object_set_new(object, "phase_seconds", phases);
        json_print(object);
    } else {
        char head[200];
        snprintf(head, sizeof head,
                 "layer: N %zu, d %zu, h %zu, %zu routed experts of load %zu, shared expert of width %zu", s.tokens, s.d,
                 s.h, s.experts, b->step.c.target_load, s.hs);
        print_wrapped(0, head);
        bench_print_setting(engine, rounds);
        print_phases(b, m);
        printf("\nforward and backward  %8.1f ms  %6.1f GFLOP/s\n", 1e3 * m.seconds,
               m.gflops_layer);
        printf("its bare products     %8.1f ms  %6.1f GFLOP/s\n", 1e3 * m.bare_seconds,
               m.gflops_layer * m.seconds / m.bare_seconds);
        printf("peak, one %d^3 product        %9.1f GFLOP/s\n", PEAK_SIZE, m.gflops_peak);
        printf("\nlayer / peak %.3f    bare products / peak %.3f    bare products / layer %.3f\n",
               m.of_peak, m.bare_of_peak, m.of_bare);
    }
    bench_free(b);
    return STATUS_PASS;
}

static int report_table(const shape *shapes, size_t count, et_engine engine, size_t rounds,
                        bool json)
{
    et_table t;
    json_t *rows = json_array();
    const char *const heads[] = {"N",  "d",        "h",       "n",     "G",
                                 "ms", "us/token", "GFLOP/s", "/peak", "/bare"};
    et_table_begin(&t, "rrrrrrrrrr");
    for (size_t i = 0; i < 10; i++) et_table_cell(&t, "%s", heads[i]);
    for (size_t i = 0; i < count; i++) {
        shape s = shapes[i];
        bench *b;
        int status = bench_run(&b, s, engine, rounds);
        if (status != STATUS_PASS) {
            json_decref(rows);
            et_table_free(&t);
            return status;
        }
        summary m = summarise(b);
        bench_free(b);
        json_array_append_new(rows, summary_json(s, m));
        et_table_cell(&t, "%zu", s.tokens);
        et_table_cell(&t, "%zu", s.d);
        et_table_cell(&t, "%zu", s.h);
        et_table_cell(&t, "%zu", s.experts);
        et_table_cell(&t, "%zu", s.granularity);
        et_table_cell(&t, "%.1f", 1e3 * m.seconds);
        et_table_cell(&t, "%.1f", 1e6 * m.seconds / (double)s.tokens);
        et_table_cell(&t, "%.1f", m.gflops_layer);
        et_table_cell(&t, "%.3f", m.of_peak);
        et_table_cell(&t, "%.3f", m.of_bare);
    }
    if (json) {
        json_print(rows);
        et_table_free(&t);
    } else {
        json_decref(rows);
        bench_print_setting(engine, rounds);
        table_print(&t);
    }
    return STATUS_PASS;
}

/* A model as `train` makes it, under EC where no rule is asked for. */
static int report_model(train_options *o, et_engine engine, size_t rounds, bool json)
{
    et_gpt_config config;
    et_error error = {""};
    if (o->rule < 0 && o->config == NULL) o->rule = choice_find(TRAIN_RULES, "ec");
    et_status status = train_configure(&config, o, &error);
    if (status != ET_OK) return fail_status(status, &error);
    config.engine = engine;
    return bench_model(&config, rounds, json);
}

int cmd_bench(int argc, char **argv)
{
    static const shape d12 = {2048, 768, 1536, 16, 1, 1536};
    int engine = ET_BLAS, what = -1, format = 0;
    bool model = false;
    size_t threads = 0, rounds = 7;
    train_options o = {.rule = -1};
    word_list words = {0};
    const option table[] = {
        {"--model", OPTION_FLAG, &model, NULL},
        {"--config", OPTION_WORD, &o.config, NULL},
        {"--rule", OPTION_CHOICE, &o.rule, TRAIN_RULES},
        {"--layers", OPTION_COUNT, &o.layers, NULL},
        {"--d-model", OPTION_COUNT, &o.d_model, NULL},
        {"--heads", OPTION_COUNT, &o.heads, NULL},
        {"--experts", OPTION_COUNT, &o.experts, NULL},
        {"--tokens", OPTION_COUNT, &o.tokens, NULL},
        {"--engine", OPTION_CHOICE, &engine, "plain|blas"},
        {"--table", OPTION_CHOICE, &what, "layer|tokens|granularity|width|verify"},
        {"--threads", OPTION_THREADS, &threads, NULL},
        {"--rounds", OPTION_COUNT, &rounds, NULL},
        {"--format", OPTION_CHOICE, &format, "text|json"},
        {NULL, OPTION_FLAG, NULL, NULL}};
    bool read = options_parse(table, argc, argv, &words);
    size_t extra = words.count;
    word_list_free(&words);
    if (!read) return STATUS_BAD;
    if (extra > 0) return fail("bench takes options only: see 'etref help bench'");
    if (rounds > MAX_ROUNDS) return fail("--rounds %zu: at most %d", rounds, MAX_ROUNDS);
    if (model && what >= 0) return fail("bench: --model or --table, not both");
    if (!model && train_says_anything(&o))
        return fail("bench: --rule, --config and sizes are a model's: add --model");
    use_threads(threads);
    shape shapes[6];
    size_t count = 0;
    if (what == 1) /* the d12 layer over N */
        for (size_t N = 512; N <= 16384; N *= 2, count++) {
            shapes[count] = d12;
            shapes[count].tokens = N;
        }
    if (what == 2) /* the same arithmetic in ever smaller experts; no shared one to dilute it */
        for (size_t G = 1; G <= 16; G *= 2)
            shapes[count++] = (shape){2048, 768, 3072 / G, 8 * G, G, 0};
    if (what == 3) /* layers as d12's, also so narrow that more than their products counts */
        for (const size_t *d = (const size_t[]){128, 256, 768, 0}; *d > 0; d++)
            shapes[count++] = (shape){2048, *d, 2 * *d, 16, 1, 2 * *d};
    if (what == 4 && sizeof(et_real) != sizeof(double))
        return fail("bench --table verify: the float build does not judge; use the usual build");
    if (what == 4 && engine == ET_PLAIN)
        return fail(
            "bench --table verify: a verdict computes on the blas engine; leave out --engine");
    if (engine == ET_BLAS) note_slow_kernels();
    if (model) return report_model(&o, engine, rounds, format);
    if (what == 4) return bench_verify(rounds, format);
    if (what <= 0) return report_layer(d12, engine, rounds, format);
    return report_table(shapes, count, engine, rounds, format);
}
