/* bench_model.c: how fast a model trains, by phase, beside what the machine could do. See
 * cmd_bench.c.
 *
 * In every round, one after the other:
 *
 *     peak    one large square product on the same engine
 *     step    a step of training, as `etref train` takes it
 *
 * and ratios are taken within a round. Before the rounds a step is taken with sequences of T, 2T and
 * 4T tokens, and the memory said that it needed.
 *
 * Counted are the multiplications and additions of products that the mathematics asks for (flops_of):
 * of attention the causal half, of a symmetric matrix one half, nothing that is computed a second time
 * to save memory, no exponentials, norms or AdamW. So a ratio to the peak says how much of the time
 * went into what nobody could leave out.
 *
 * Tokens are drawn, rare ones and common ones. Under EC, the rule unless another is asked for, the
 * experts' loads are those of a trained model from the first step on; those of ET move.
 */
#include "etref/etref.h"
#include "ref/report/describe_case.h"
#include "tools/etref/bench.h"
#include "tools/etref/commands.h"
#include "tools/etref/ending.h"
#include "tools/etref/memory_limit.h"
#include "tools/etref/options.h"
#include "tools/etref/terminal.h"

#ifdef __GLIBC__
#include <malloc.h>
#endif
#include <omp.h>
#include <stdlib.h>
#include <sys/resource.h>

enum { SIZES = 3 }; /* T, 2T, 4T */

static const char *const phase_names[ET_GPT_PHASES] = {
    [ET_GPT_ROWS] = "embedding, norms, RoPE",
    [ET_GPT_PROJECTIONS] = "projections",
    [ET_GPT_ATTENTION] = "attention forward",
    [ET_GPT_ATTENTION_BACKWARD] = "attention backward",
    [ET_GPT_ROUTING] = "routing",
    [ET_GPT_FEED_FORWARD] = "experts forward",
    [ET_GPT_FEED_FORWARD_BACKWARD] = "experts backward",
    [ET_GPT_HEAD] = "head and loss",
    [ET_GPT_ADAMW] = "clipping, AdamW",
    [ET_GPT_MUON] = "Muon"};

/* What one round measured; the last of each array is the whole step. */
typedef struct round_times {
    double peak; /* flops per second */
    double seconds[ET_GPT_PHASES + 1], flops[ET_GPT_PHASES + 1];
} round_times;

/* With sequences of so many tokens: what the model's block holds, and the most that the process had
 * resident after a step. */
typedef struct memory_use {
    size_t sequence, block, resident;
} memory_use;

typedef struct model_bench {
    et_gpt *g;
    int32_t *tokens;
    et_real *square;
    size_t rounds;
    round_times *times;
    memory_use memory[SIZES];
} model_bench;

/* ---- counting ---- */

/* Newton and Schulz: per iteration A = X X' and A A, a half of each, and B X. */
static double muon_flops(const et_gpt_config *c, const et_gpt_tensor *t)
{
    double rows = (double)t->shape[t->rank - 2], columns = (double)t->shape[t->rank - 1];
    double matrices = t->rank == 3 ? (double)t->shape[0] : 1;
    if (c->grouping == ET_MUON_STACKED) {
        rows *= matrices;
        matrices = 1;
    }
    double s = rows < columns ? rows : columns, k = rows < columns ? columns : rows;
    return 5 * matrices * (s * (s + 1) * (k + s) + 2 * s * s * k);
}

/* Of the step that has just been taken. A linear map of N rows costs 2 N in out forward, twice that
 * backward. */
static void flops_of(et_gpt *g, double flops[ET_GPT_PHASES + 1])
{
    const et_gpt_config *c = et_gpt_configuration(g);
    const et_case *f = &c->ffn;
    double d = (double)c->d_model, e = (double)c->head_dim, T = (double)c->sequence;
    double Hq = (double)c->heads, Hkv = (double)c->kv_heads, V = (double)c->vocab;
    double sequences = (double)(c->micro_batches * c->batch), N = sequences * T;
    for (size_t i = 0; i <= ET_GPT_PHASES; i++) flops[i] = 0;
    for (size_t i = 0; i < c->layers; i++) {
        et_gpt_routing r;
        flops[ET_GPT_PROJECTIONS] += 6 * N * d * (Hq + 2 * Hkv + Hq) * e;
        /* S = q k', o = P v of T (T + 1) / 2 pairs; backward dv, dP, dq, dk */
        double pairs = sequences * Hq * T * (T + 1) / 2;
        flops[ET_GPT_ATTENTION] += 4 * pairs * e;
        flops[ET_GPT_ATTENTION_BACKWARD] += 8 * pairs * e;
        double wide = N * (double)c->d_dense; /* rows times hidden width */
        if (et_gpt_routing_of(g, i, &r)) {
            double slots = 0, n = (double)r.experts;
            for (size_t j = 0; j < r.experts; j++) slots += (double)r.load[j];
            wide = slots * (double)f->d_expert + N * (double)f->shared_d_expert;
            flops[ET_GPT_ROUTING] += 2 * N * d * n;
            flops[ET_GPT_FEED_FORWARD_BACKWARD] += 4 * N * d * n;
        }
        flops[ET_GPT_FEED_FORWARD] += 4 * d * wide;
        flops[ET_GPT_FEED_FORWARD_BACKWARD] += 8 * d * wide;
    }
    flops[ET_GPT_HEAD] = 6 * N * d * V;
    const et_gpt_tensor *t;
    for (size_t i = 0; (t = et_gpt_tensor_at(g, i)) != NULL; i++)
        if (t->gradient && !t->second) flops[ET_GPT_MUON] += muon_flops(c, t);
    for (size_t i = 0; i < ET_GPT_PHASES; i++) flops[ET_GPT_PHASES] += flops[i];
}

/* ---- timing ---- */

/* Tokens of step `step`: u^3 of the vocabulary. */
static void draw_tokens(const et_gpt_config *c, size_t step, int32_t *tokens)
{
    size_t count = c->micro_batches * c->batch * (c->sequence + 1);
    et_stream stream = et_stream_open(1, "bench");
    for (size_t i = 0; i < count; i++) {
        double u = et_uniform(stream, step * count + i, 0);
        tokens[i] = (int32_t)(u * u * u * (double)c->vocab);
    }
}

static et_status take_step(model_bench *b, et_error *error)
{
    et_gpt_report report;
    draw_tokens(et_gpt_configuration(b->g), et_gpt_progress_of(b->g)->steps, b->tokens);
    return et_gpt_step(b->g, b->tokens, &report, error);
}

static et_status time_round(model_bench *b, round_times *r, et_error *error)
{
    const et_gpt_config *c = et_gpt_configuration(b->g);
    *r = (round_times){.peak = bench_peak(c->engine, b->square)};
    et_gpt_time(b->g, r->seconds);
    double start = omp_get_wtime();
    et_status status = take_step(b, error);
    r->seconds[ET_GPT_PHASES] = omp_get_wtime() - start;
    flops_of(b->g, r->flops);
    return status;
}

static et_status make_model(model_bench *b, const et_gpt_config *c, et_error *error)
{
    et_status status = et_gpt_create(&b->g, c, memory_limit(), error);
    if (status != ET_OK) return status;
    et_gpt_initialise(b->g, 1);
    b->tokens = allocate(c->micro_batches * c->batch * (c->sequence + 1), sizeof *b->tokens);
    return ET_OK;
}

static void free_model(model_bench *b)
{
    free(b->tokens);
    et_gpt_free(b->g);
    b->tokens = NULL;
    b->g = NULL;
}

/* A model's block is of fresh pages, those that no step touches cost nothing, and all go back to the
 * system with it. */
static void give_memory_back(void)
{
#ifdef __GLIBC__
    mallopt(M_MMAP_THRESHOLD, 1 << 25);
#endif
}

/* A step of a model that is made for it. Of the process the most so far is known: sizes come from small
 * to large. */
static et_status use_memory(model_bench *b, et_gpt_config c, memory_use *m, et_error *error)
{
    struct rusage use;
    et_status status = make_model(b, &c, error);
    if (status == ET_OK) status = take_step(b, error);
    if (status == ET_OK && getrusage(RUSAGE_SELF, &use) == 0)
        *m = (memory_use){c.sequence, et_gpt_bytes(b->g), (size_t)use.ru_maxrss * 1024};
    free_model(b);
    return status;
}

static et_status measure(model_bench *b, const et_gpt_config *c, et_error *error)
{
    et_status status = ET_OK;
    et_gpt_config longer = *c;
    give_memory_back();
    for (size_t i = 0; status == ET_OK && i < SIZES; i++, longer.sequence *= 2) {
        progress_show("bench", "memory", (double)i / SIZES);
        status = use_memory(b, longer, &b->memory[i], error);
    }
    if (status == ET_OK) status = make_model(b, c, error);
    if (status != ET_OK) return status;
    b->square = bench_squares();
    round_times warm_up;
    status = time_round(b, &warm_up, error);
    for (size_t i = 0; status == ET_OK && i < b->rounds; i++) {
        progress_show("bench", "rounds", (double)i / (double)b->rounds);
        status = time_round(b, &b->times[i], error);
    }
    return status;
}

/* ---- medians ---- */

typedef struct figures {
    double seconds, flops, rate, of_peak; /* rate: flops per second */
} figures;

/* Of a phase, or of the whole step. */
static figures median_of(const model_bench *b, size_t phase)
{
    double v[4][BENCH_ROUNDS];
    for (size_t i = 0; i < b->rounds; i++) {
        const round_times *r = &b->times[i];
        v[0][i] = r->seconds[phase];
        v[1][i] = r->flops[phase];
        v[2][i] = r->flops[phase] / r->seconds[phase];
        v[3][i] = v[2][i] / r->peak;
    }
    return (figures){bench_median(v[0], b->rounds), bench_median(v[1], b->rounds),
                     bench_median(v[2], b->rounds), bench_median(v[3], b->rounds)};
}

static double median_peak(const model_bench *b)
{
    double v[BENCH_ROUNDS];
    for (size_t i = 0; i < b->rounds; i++) v[i] = b->times[i].peak;
    return bench_median(v, b->rounds);
}

static size_t tokens_of(const et_gpt_config *c)
{
    return c->micro_batches * c->batch * c->sequence;
}

/* ---- reports ---- */

static json_t *figures_json(figures f)
{
    return json_pack("{s:f,s:f,s:f,s:f}", "seconds", f.seconds, "gflop", f.flops / 1e9, "gflops",
                     f.rate / 1e9, "of_peak", f.of_peak);
}

static void report_json(const model_bench *b)
{
    const et_gpt_config *c = et_gpt_configuration(b->g);
    figures whole = median_of(b, ET_GPT_PHASES);
    json_t *object = figures_json(whole), *phases = json_object(), *memory = json_array();
    for (size_t i = 0; i < ET_GPT_PHASES; i++)
        json_object_set_new(phases, phase_names[i], figures_json(median_of(b, i)));
    for (size_t i = 0; i < SIZES; i++)
        json_array_append_new(memory,
                              json_pack("{s:I,s:I,s:I}", "sequence",
                                        (json_int_t)b->memory[i].sequence, "block_bytes",
                                        (json_int_t)b->memory[i].block, "resident_bytes",
                                        (json_int_t)b->memory[i].resident));
    json_object_set_new(object, "tokens", json_integer((json_int_t)tokens_of(c)));
    json_object_set_new(object, "tokens_per_second",
                        json_real((double)tokens_of(c) / whole.seconds));
    json_object_set_new(object, "gflops_peak", json_real(median_peak(b) / 1e9));
    json_object_set_new(object, "phases", phases);
    json_object_set_new(object, "memory", memory);
    json_object_set_new(object, "threads", json_integer(omp_get_max_threads()));
    json_object_set_new(object, "precision", json_string(ET_REAL_NAME));
    json_print(object);
}

static void print_figures(et_table *t, const char *name, figures f, double whole)
{
    et_table_cell(t, "%s", name);
    et_table_cell(t, "%.1f", 1e3 * f.seconds);
    et_table_cell(t, "%.1f %%", 100 * f.seconds / whole);
    if (f.flops > 0) {
        et_table_cell(t, "%.2f", f.flops / 1e9);
        et_table_cell(t, "%.1f", f.rate / 1e9);
        et_table_cell(t, "%.3f", f.of_peak);
    } else
        for (int i = 0; i < 3; i++) et_table_cell(t, "%s", "");
}

static void print_memory(const model_bench *b)
{
    et_table t;
    const char *const heads[] = {"tokens of a sequence", "of a step", "block, MB", "resident, MB"};
    const et_gpt_config *c = et_gpt_configuration(b->g);
    et_table_begin(&t, "rrrr");
    for (size_t i = 0; i < sizeof heads / sizeof *heads; i++) et_table_cell(&t, "%s", heads[i]);
    for (size_t i = 0; i < SIZES; i++) {
        et_table_cell(&t, "%zu", b->memory[i].sequence);
        et_table_cell(&t, "%zu", b->memory[i].sequence * c->batch * c->micro_batches);
        et_table_cell(&t, "%.1f", (double)b->memory[i].block / 1e6);
        et_table_cell(&t, "%.1f", (double)b->memory[i].resident / 1e6);
    }
    putchar('\n');
    table_print(&t);
}

static void report_text(const model_bench *b)
{
    static const char *const heads[] = {"phase", "ms", "share", "GFLOP", "GFLOP/s", "/peak"};
    const et_gpt_config *c = et_gpt_configuration(b->g);
    figures whole = median_of(b, ET_GPT_PHASES);
    et_table t;
    char head[300];
    snprintf(head, sizeof head, "model: %zu layers, d %zu, %zu heads, steps of %zu x %zu tokens", c->layers, c->d_model,
             c->heads, c->micro_batches * c->batch, c->sequence);
    if (c->ffn.layer == ET_MOE)
        et_append(head, sizeof head, ", %zu experts of %zu under %s", c->ffn.experts, c->ffn.d_expert,
                  et_rule_name(&c->ffn));
    print_wrapped(0, head);
    bench_print_setting(c->engine, b->rounds);
    et_table_begin(&t, "lrrrrr");
    for (size_t i = 0; i < sizeof heads / sizeof *heads; i++) et_table_cell(&t, "%s", heads[i]);
    for (size_t i = 0; i < ET_GPT_PHASES; i++)
        print_figures(&t, phase_names[i], median_of(b, i), whole.seconds);
    print_figures(&t, "step", whole, whole.seconds);
    table_print(&t);
    printf("\npeak, one product %.1f GFLOP/s; %.0f tokens per second; step / peak %.3f\n",
           median_peak(b) / 1e9, (double)tokens_of(c) / whole.seconds, whole.of_peak);
    print_memory(b);
}

int bench_model(const et_gpt_config *config, size_t rounds, bool json)
{
    et_error error = {""};
    model_bench b = {.rounds = rounds, .times = allocate(rounds, sizeof *b.times)};
    et_status status = measure(&b, config, &error);
    progress_clear();
    if (status == ET_OK && json) report_json(&b);
    if (status == ET_OK && !json) report_text(&b);
    free_model(&b);
    free(b.square);
    free(b.times);
    return status == ET_OK ? STATUS_PASS : fail_status(status, &error);
}
