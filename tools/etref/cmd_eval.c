/* cmd_eval.c: `etref eval`: what a trained model does with text that it has not seen.
 *
 * The batches are those of train's evaluations, in micro-batches as the run had them, so that the loss is
 * the one in its log. Each goes through the model twice: as in evaluation, and routed as in training
 * (nothing is learnt, and no state moves).
 */
#include "etref/etref.h"
#include "tools/etref/commands.h"
#include "tools/etref/ending.h"
#include "tools/etref/eval_tokens.h"
#include "tools/etref/memory_limit.h"
#include "tools/etref/options.h"
#include "tools/etref/terminal.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

typedef struct eval_options {
    const char *path, *text, *per_token;
    size_t batches, threads;
    int format; /* 0: text, 1: json */
} eval_options;

enum { BINS = 32 }; /* of positions: 0, 1, 2 to 3, 4 to 7, .. */

typedef struct measured {
    size_t batches, tokens;
    double loss, trained; /* means: in evaluation, and routed as in training */
    double *usage;        /* [layers,experts] */
    double losses[BINS], fanouts[BINS];
    size_t count[BINS];
} measured;

/* ---- measuring ---- */

static size_t bin_of(size_t position)
{
    size_t bin = 0;
    while (position > 0) {
        position /= 2;
        bin++;
    }
    return bin;
}

static void add_positions(measured *m, const et_gpt *g)
{
    const et_gpt_config *c = et_gpt_configuration(g);
    const et_real *losses = et_gpt_token_losses(g);
    for (size_t row = 0; row < c->batch * c->sequence; row++) {
        size_t bin = bin_of(row % c->sequence);
        m->losses[bin] += (double)losses[row];
        m->fanouts[bin] += et_gpt_fanout(g, row);
        m->count[bin]++;
    }
}

static void add_usage(measured *m, const et_gpt *g)
{
    const et_gpt_config *c = et_gpt_configuration(g);
    for (size_t layer = 0; layer < c->layers; layer++) {
        et_gpt_routing r;
        if (!et_gpt_routing_of(g, layer, &r)) continue;
        for (size_t i = 0; i < r.experts; i++)
            m->usage[layer * r.experts + i] += (double)r.load[i] / (double)r.tokens;
    }
}

/* each: receives what is kept of every token, or NULL. */
static et_status measure(measured *m, et_gpt *g, const et_corpus *corpus, size_t most,
                         int32_t *tokens, eval_tokens *each, et_error *error)
{
    const et_gpt_config *c = et_gpt_configuration(g);
    size_t batches = et_corpus_held(corpus) / c->batch;
    m->batches = batches < 1 ? 1 : batches < most ? batches : most;
    m->tokens = m->batches * c->batch * c->sequence;
    if (each) eval_tokens_begin(each, g, m->tokens);
    for (size_t i = 0; i < m->batches; i++) {
        double loss, trained;
        size_t first = et_corpus_spread(corpus, c->batch, i, m->batches);
        et_status status;
        progress_show("eval", "held-out text", (double)i / (double)m->batches);
        if ((status = et_corpus_read_held(corpus, first, c->batch, tokens, error)) ||
            (status = et_gpt_forward(g, false, tokens, &trained, NULL, error)) ||
            (status = et_gpt_forward(g, true, tokens, &loss, NULL, error)))
            return status;
        m->loss += loss;
        m->trained += trained;
        add_positions(m, g);
        add_usage(m, g);
        if (each) eval_tokens_add(each, g, tokens);
    }
    m->loss /= (double)m->batches;
    m->trained /= (double)m->batches;
    progress_clear();
    return ET_OK;
}

/* ---- showing ---- */

/* The first and the last position of a bin, in sequences of T. */
static size_t first_of(size_t bin)
{
    return bin == 0 ? 0 : (size_t)1 << (bin - 1);
}

static size_t last_of(size_t bin, size_t T)
{
    size_t last = bin == 0 ? 0 : 2 * first_of(bin) - 1;
    return last < T ? last : T - 1;
}

static json_t *usage_json(const measured *m, const et_gpt *g)
{
    json_t *layers = json_array();
    et_gpt_routing r;
    for (size_t layer = 0; layer < et_gpt_configuration(g)->layers; layer++) {
        if (!et_gpt_routing_of(g, layer, &r)) continue;
        json_t *usage = json_array();
        for (size_t i = 0; i < r.experts; i++)
            json_array_append_new(
                usage, et_json_number(m->usage[layer * r.experts + i] / (double)m->batches));
        json_array_append_new(layers,
                              json_pack("{s:I, s:o}", "layer", (json_int_t)layer, "usage", usage));
    }
    return layers;
}

static void show_json(const measured *m, const et_gpt *g)
{
    size_t T = et_gpt_configuration(g)->sequence;
    json_t *positions = json_array();
    for (size_t bin = 0; bin < BINS && m->count[bin] > 0; bin++) {
        double count = (double)m->count[bin], fanout = m->fanouts[bin] / count;
        json_t *row = json_pack("{s:I, s:I, s:f}", "from", (json_int_t)first_of(bin), "to",
                                (json_int_t)last_of(bin, T), "loss", m->losses[bin] / count);
        if (fanout >= 0) json_object_set_new(row, "fanout", et_json_number(fanout));
        json_array_append_new(positions, row);
    }
    json_print(json_pack("{s:f, s:f, s:f, s:f, s:I, s:o, s:o}", "loss", m->loss, "bits_per_byte",
                         m->loss / log(2), "loss_routed_as_in_training", m->trained, "gap",
                         m->loss - m->trained, "tokens", (json_int_t)m->tokens, "positions",
                         positions, "layers", usage_json(m, g)));
}

static void show_usage(const measured *m, const et_gpt *g)
{
    et_table t;
    et_gpt_routing r;
    const et_case *c = &et_gpt_configuration(g)->ffn;
    if (c->layer != ET_MOE) return;
    printf("\nusage of experts, target %.4g\n", (double)c->granularity / (double)c->experts);
    et_table_begin(&t, "rrrr");
    et_table_cell(&t, "layer");
    et_table_cell(&t, "least");
    et_table_cell(&t, "mean");
    et_table_cell(&t, "most");
    for (size_t layer = 0; layer < et_gpt_configuration(g)->layers; layer++) {
        if (!et_gpt_routing_of(g, layer, &r)) continue;
        const double *usage = m->usage + layer * r.experts;
        double least = usage[0], most = usage[0], sum = 0;
        for (size_t i = 0; i < r.experts; i++) {
            least = fmin(least, usage[i]);
            most = fmax(most, usage[i]);
            sum += usage[i];
        }
        et_table_cell(&t, "%zu", layer);
        et_table_cell(&t, "%.4f", least / (double)m->batches);
        et_table_cell(&t, "%.4f", sum / (double)r.experts / (double)m->batches);
        et_table_cell(&t, "%.4f", most / (double)m->batches);
    }
    table_print(&t);
}

static void show_text(const measured *m, const et_gpt *g)
{
    et_table t;
    size_t T = et_gpt_configuration(g)->sequence;
    printf("loss %.4f nats, %.4f bits per byte, on %zu tokens\n", m->loss, m->loss / log(2),
           m->tokens);
    printf("routed as in training %.4f, gap %+.4f\n\n", m->trained, m->loss - m->trained);
    et_table_begin(&t, "rrr");
    et_table_cell(&t, "position");
    et_table_cell(&t, "loss");
    et_table_cell(&t, "experts");
    for (size_t bin = 0; bin < BINS && m->count[bin] > 0; bin++) {
        double count = (double)m->count[bin], fanout = m->fanouts[bin] / count;
        if (first_of(bin) == last_of(bin, T))
            et_table_cell(&t, "%zu", first_of(bin));
        else
            et_table_cell(&t, "%zu to %zu", first_of(bin), last_of(bin, T));
        et_table_cell(&t, "%.4f", m->losses[bin] / count);
        if (fanout >= 0)
            et_table_cell(&t, "%.3f", fanout);
        else
            et_table_cell(&t, "%s", "");
    }
    table_print(&t);
    show_usage(m, g);
}

/* ---- the command ---- */

static bool read_options(eval_options *o, int argc, char **argv)
{
    word_list words = {0};
    const option table[] = {{"--text", OPTION_WORD, &o->text, NULL},
                            {"--batches", OPTION_COUNT, &o->batches, NULL},
                            {"--per-token", OPTION_WORD, &o->per_token, NULL},
                            {"--format", OPTION_CHOICE, &o->format, "text|json"},
                            {"--threads", OPTION_THREADS, &o->threads, NULL},
                            {NULL, OPTION_FLAG, NULL, NULL}};
    bool fine = options_parse(table, argc, argv, &words);
    if (fine && (words.count != 1 || o->text == NULL)) {
        fail("eval takes one checkpoint and --text FILE: see 'etref help eval'");
        fine = false;
    }
    if (fine) o->path = words.at[0];
    word_list_free(&words);
    return fine;
}

static et_status evaluate(et_gpt *g, const eval_options *o, et_error *error)
{
    const et_gpt_config *c = et_gpt_configuration(g);
    et_corpus corpus;
    et_status status = et_corpus_open(&corpus, o->text, c->sequence, error);
    if (status != ET_OK) return status;
    measured m = {.usage = allocate(c->layers * (c->ffn.experts + 1), sizeof(double))};
    int32_t *tokens = allocate(c->batch * (c->sequence + 1), sizeof *tokens);
    eval_tokens each = {0};
    status = measure(&m, g, &corpus, o->batches, tokens, o->per_token ? &each : NULL, error);
    if (status == ET_OK && o->per_token) status = eval_tokens_write(&each, o->per_token, error);
    eval_tokens_free(&each);
    if (status == ET_OK && o->format == 1) show_json(&m, g);
    if (status == ET_OK && o->format == 0) show_text(&m, g);
    free(tokens);
    free(m.usage);
    et_corpus_close(&corpus);
    return status;
}

int cmd_eval(int argc, char **argv)
{
    eval_options o = {.batches = 20};
    et_gpt *g;
    et_tensor_file file;
    et_error error = {0};
    if (!read_options(&o, argc, argv)) return STATUS_BAD;
    use_threads(o.threads);
    et_status status = et_checkpoint_read(o.path, 0, memory_limit(), &g, &file, &error);
    if (status == ET_OK) {
        status = evaluate(g, &o, &error);
        et_gpt_free(g);
        et_tensor_file_close(&file);
    }
    return status == ET_OK ? STATUS_PASS : fail_status(status, &error);
}
