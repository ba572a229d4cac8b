/* cmd_compare.c: `etref compare`: do two checkpoints send the same tokens to the same experts?
 *
 * Both models read the same held-out sequences, as in evaluation. A layer's choices are pairs of a token and an expert,
 * A and B of them. What they have in common is measured by
 *
 *     |A and B| / |A or B|        1: the same choices; 0: none in common
 *
 * beside what it would be by chance, if B's experts took as many tokens as they do, whichever: then A and B have
 * sum_i a_i b_i / N pairs in common, a_i and b_i being the tokens of expert i. Two checkpoints of one run can be compared in
 * this way; experts of two runs have nothing in common but their numbers.
 */
#include "etref/etref.h"
#include "tools/etref/commands.h"
#include "tools/etref/ending.h"
#include "tools/etref/memory.h"
#include "tools/etref/options.h"
#include "tools/etref/terminal.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct compare_options {
    const char *paths[2], *text;
    size_t sequences, threads;
    int format; /* 0: text, 1: json */
} compare_options;

/* One layer's choices, over all sequences. */
typedef struct choices {
    double taken[2], shared; /* pairs: A, B, and in both */
    double same;             /* tokens with the same set of experts */
    double *load[2];         /* [experts] */
} choices;

typedef struct comparison {
    et_gpt *g[2];
    size_t layers, tokens;
    choices *of; /* [layers] */
    double *loads;
} comparison;

/* ---- may they be compared? ---- */

static et_status check_alike(const comparison *c, const compare_options *o, et_error *error)
{
    const et_gpt_config *a = et_gpt_configuration(c->g[0]), *b = et_gpt_configuration(c->g[1]);
    et_gpt_routing here, there;
    size_t routed = 0;
    if (a->sequence != b->sequence || a->layers != b->layers)
        return et_fail(error, ET_EINVAL,
                       "%s has %zu layers and sequences of %zu tokens, %s %zu and %zu: compare "
                       "checkpoints of one shape",
                       o->paths[0], a->layers, a->sequence, o->paths[1], b->layers, b->sequence);
    for (size_t i = 0; i < a->layers; i++) {
        bool in_a = et_gpt_routing_of(c->g[0], i, &here),
             in_b = et_gpt_routing_of(c->g[1], i, &there);
        if (in_a != in_b || (in_a && here.experts != there.experts))
            return et_fail(error, ET_EINVAL,
                           "layer %zu has %zu experts in %s and %zu in %s: compare checkpoints of "
                           "one shape",
                           i, in_a ? here.experts : 0, o->paths[0], in_b ? there.experts : 0,
                           o->paths[1]);
        routed += in_a;
    }
    if (routed > 0) return ET_OK;
    return et_fail(error, ET_EINVAL, "%s: a dense model, which routes nothing", o->paths[0]);
}

/* ---- counting ---- */

/* Experts ascending, of a token: how many are in both lists. */
static size_t count_shared(const et_assignment *a, const et_assignment *b, size_t t)
{
    int32_t i = a->token_offsets[t], j = b->token_offsets[t];
    size_t shared = 0;
    while (i < a->token_offsets[t + 1] && j < b->token_offsets[t + 1]) {
        int32_t in_a = a->slot_expert[a->token_slots[i]], in_b = b->slot_expert[b->token_slots[j]];
        shared += in_a == in_b;
        i += in_a <= in_b;
        j += in_b <= in_a;
    }
    return shared;
}

static void count_layer(choices *of, const et_assignment *const both[2])
{
    for (size_t t = 0; t < both[0]->tokens; t++) {
        size_t shared = count_shared(both[0], both[1], t);
        of->shared += (double)shared;
        of->same += (size_t)both[0]->fanout[t] == shared && (size_t)both[1]->fanout[t] == shared;
    }
    for (int k = 0; k < 2; k++) {
        of->taken[k] += (double)both[k]->slots;
        for (size_t i = 0; i < both[k]->experts; i++) of->load[k][i] += both[k]->load[i];
    }
}

static et_status read_sequence(comparison *c, const int32_t *tokens, et_error *error)
{
    et_gpt_routing r[2];
    double loss;
    for (int k = 0; k < 2; k++) {
        et_status status = et_gpt_forward(c->g[k], true, tokens, &loss, NULL, error);
        if (status != ET_OK) return status;
    }
    for (size_t i = 0; i < c->layers; i++)
        if (et_gpt_routing_of(c->g[0], i, &r[0]) && et_gpt_routing_of(c->g[1], i, &r[1]))
            count_layer(&c->of[i],
                        (const et_assignment *const[]){r[0].assignment, r[1].assignment});
    return ET_OK;
}

static et_status measure(comparison *c, const et_corpus *corpus, size_t most, et_error *error)
{
    const et_gpt_config *config = et_gpt_configuration(c->g[0]);
    size_t held = et_corpus_held(corpus), count = held < most ? held : most;
    int32_t *tokens = allocate(config->sequence + 1, sizeof *tokens);
    et_status status = ET_OK;
    for (size_t i = 0; i < count && status == ET_OK; i++) {
        progress_show("compare", "held-out text", (double)i / (double)count);
        status = et_corpus_read_held(corpus, i, 1, tokens, error);
        if (status == ET_OK) status = read_sequence(c, tokens, error);
    }
    progress_clear();
    c->tokens = count * config->sequence;
    free(tokens);
    return status;
}

/* ---- showing ---- */

/* Of what either took; where neither took anything, they agree. */
static double agreement(double a, double b, double shared)
{
    return a + b > shared ? shared / (a + b - shared) : 1;
}

static double by_chance(const comparison *c, const choices *of, size_t experts)
{
    double shared = 0;
    for (size_t i = 0; i < experts; i++) shared += of->load[0][i] * of->load[1][i];
    return agreement(of->taken[0], of->taken[1], shared / (double)c->tokens);
}

static void show_json(const comparison *c)
{
    json_t *layers = json_array();
    et_gpt_routing r;
    for (size_t i = 0; i < c->layers; i++) {
        const choices *of = &c->of[i];
        if (!et_gpt_routing_of(c->g[0], i, &r)) continue;
        json_array_append_new(
            layers,
            json_pack("{s:I, s:I, s:I, s:I, s:f, s:f, s:f}", "layer", (json_int_t)i, "choices_a",
                      (json_int_t)of->taken[0], "choices_b", (json_int_t)of->taken[1],
                      "choices_shared", (json_int_t)of->shared, "agreement",
                      agreement(of->taken[0], of->taken[1], of->shared), "by_chance",
                      by_chance(c, of, r.experts), "tokens_alike", of->same / (double)c->tokens));
    }
    json_print(json_pack("{s:I, s:o}", "tokens", (json_int_t)c->tokens, "layers", layers));
}

static void show_text(const comparison *c)
{
    static const char *const head[] = {"layer",     "choices A", "choices B",
                                       "agreement", "by chance", "tokens alike"};
    et_table t;
    et_gpt_routing r;
    printf("routing of %zu held-out tokens, as in evaluation\n\n", c->tokens);
    et_table_begin(&t, "rrrrrr");
    for (size_t i = 0; i < sizeof head / sizeof *head; i++) et_table_cell(&t, "%s", head[i]);
    for (size_t i = 0; i < c->layers; i++) {
        const choices *of = &c->of[i];
        if (!et_gpt_routing_of(c->g[0], i, &r)) continue;
        et_table_cell(&t, "%zu", i);
        for (int k = 0; k < 2; k++) et_table_cell(&t, "%.0f", of->taken[k]);
        et_table_cell(&t, "%.4f", agreement(of->taken[0], of->taken[1], of->shared));
        et_table_cell(&t, "%.4f", by_chance(c, of, r.experts));
        et_table_cell(&t, "%.4f", of->same / (double)c->tokens);
    }
    table_print(&t);
}

/* ---- the command ---- */

static bool read_options(compare_options *o, int argc, char **argv)
{
    word_list words = {0};
    const option table[] = {{"--text", OPTION_WORD, &o->text, NULL},
                            {"--sequences", OPTION_COUNT, &o->sequences, NULL},
                            {"--format", OPTION_CHOICE, &o->format, "text|json"},
                            {"--threads", OPTION_THREADS, &o->threads, NULL},
                            {NULL, OPTION_FLAG, NULL, NULL}};
    bool fine = options_parse(table, argc, argv, &words);
    if (fine && (words.count != 2 || o->text == NULL)) {
        fail("compare takes two checkpoints and --text FILE: see 'etref help compare'");
        fine = false;
    }
    for (size_t k = 0; fine && k < 2; k++) o->paths[k] = words.at[k];
    word_list_free(&words);
    return fine;
}

static et_status compare(comparison *c, const compare_options *o, et_error *error)
{
    const et_gpt_config *config = et_gpt_configuration(c->g[0]);
    size_t experts = config->ffn.experts;
    et_corpus corpus;
    et_status status = check_alike(c, o, error);
    if (status == ET_OK) status = et_corpus_open(&corpus, o->text, config->sequence, error);
    if (status != ET_OK) return status;
    c->layers = config->layers;
    c->of = allocate(c->layers, sizeof *c->of);
    c->loads = allocate(2 * c->layers * experts, sizeof *c->loads);
    for (size_t i = 0; i < 2 * c->layers; i++) c->of[i / 2].load[i % 2] = c->loads + i * experts;
    status = measure(c, &corpus, o->sequences, error);
    if (status == ET_OK && o->format == 1) show_json(c);
    if (status == ET_OK && o->format == 0) show_text(c);
    free(c->loads);
    free(c->of);
    et_corpus_close(&corpus);
    return status;
}

int cmd_compare(int argc, char **argv)
{
    compare_options o = {.sequences = 160};
    comparison c = {0};
    et_error error = {0};
    et_status status = ET_OK;
    if (!read_options(&o, argc, argv)) return STATUS_BAD;
    use_threads(o.threads);
    for (int k = 0; k < 2 && status == ET_OK; k++) {
        et_tensor_file file;
        status = et_checkpoint_read(o.paths[k], 1, memory_limit(), &c.g[k], &file, &error);
        if (status == ET_OK) et_tensor_file_close(&file);
    }
    if (status == ET_OK) status = compare(&c, &o, &error);
    for (int k = 0; k < 2; k++) et_gpt_free(c.g[k]);
    return status == ET_OK ? STATUS_PASS : fail_status(status, &error);
}
