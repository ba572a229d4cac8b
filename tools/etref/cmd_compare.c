/* cmd_compare.c: `etref compare`: do two checkpoints send the same tokens to the same experts?
 *
 * Both models read the same held-out sequences, as in evaluation. Each layer's routings are compared by et_routing_overlap
 * (paper, F.2). Of its figures two are shown: the agreement |A and B| / |A or B| of all choices, which are pairs of a token
 * and an expert, and the divergence. Beside the agreement stands what it would be by chance, if experts kept their loads and
 * took whichever tokens: a_i and b_i being expert i's tokens, A and B then have sum_i a_i b_i / N choices in common. Experts of
 * two runs have nothing in common but their numbers.
 */
#include "etref/etref.h"
#include "tools/etref/commands.h"
#include "tools/etref/ending.h"
#include "tools/etref/memory_limit.h"
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

typedef struct comparison {
    et_gpt *g[2];
    size_t layers, experts, tokens;
    uint8_t *mask[2]; /* [layers,tokens,experts]; of dense layers zeros */
} comparison;

static const uint8_t *mask_of(const comparison *c, int model, size_t layer)
{
    return c->mask[model] + layer * c->tokens * c->experts;
}

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

/* ---- reading ---- */

/* Tokens from `first` on. */
static et_status read_sequence(comparison *c, size_t first, const int32_t *tokens, et_error *error)
{
    et_gpt_routing r;
    double loss;
    for (int k = 0; k < 2; k++) {
        et_status status = et_gpt_forward(c->g[k], true, tokens, &loss, NULL, error);
        if (status != ET_OK) return status;
        for (size_t i = 0; i < c->layers; i++)
            if (et_gpt_routing_of(c->g[k], i, &r))
                memcpy(c->mask[k] + (i * c->tokens + first) * c->experts, r.mask,
                       r.tokens * c->experts);
    }
    return ET_OK;
}

static et_status read_all(comparison *c, const et_corpus *corpus, et_error *error)
{
    size_t T = et_gpt_configuration(c->g[0])->sequence;
    int32_t *tokens = allocate(T + 1, sizeof *tokens);
    et_status status = ET_OK;
    for (size_t first = 0; first < c->tokens && status == ET_OK; first += T) {
        progress_show("compare", "held-out text", (double)first / (double)c->tokens);
        status = et_corpus_read_held(corpus, first / T, 1, tokens, error);
        if (status == ET_OK) status = read_sequence(c, first, tokens, error);
    }
    progress_clear();
    free(tokens);
    return status;
}

/* ---- showing ---- */

/* One layer's figures. */
typedef struct figures {
    double choices[2], chance;
    et_overlap overlap;
} figures;

static figures measure(const comparison *c, size_t layer)
{
    const uint8_t *a = mask_of(c, 0, layer), *b = mask_of(c, 1, layer);
    figures f = {.overlap = et_routing_overlap(c->tokens, c->experts, a, b)};
    double shared = 0;
    for (size_t i = 0; i < c->experts; i++) {
        double in_a = 0, in_b = 0;
        for (size_t t = 0; t < c->tokens; t++) {
            in_a += a[t * c->experts + i] != 0;
            in_b += b[t * c->experts + i] != 0;
        }
        f.choices[0] += in_a;
        f.choices[1] += in_b;
        shared += in_a * in_b / (double)c->tokens;
    }
    double either = f.choices[0] + f.choices[1] - shared;
    f.chance = either > 0 ? shared / either : 1;
    return f;
}

static void show_json(const comparison *c)
{
    json_t *layers = json_array();
    et_gpt_routing r;
    for (size_t i = 0; i < c->layers; i++) {
        if (!et_gpt_routing_of(c->g[0], i, &r)) continue;
        const figures f = measure(c, i);
        json_array_append_new(
            layers, json_pack("{s:I, s:I, s:I, s:f, s:f, s:f}", "layer", (json_int_t)i, "choices_a",
                              (json_int_t)f.choices[0], "choices_b", (json_int_t)f.choices[1],
                              "agreement", f.overlap.pooled_jaccard, "by_chance", f.chance,
                              "divergence", f.overlap.divergence));
    }
    json_print(json_pack("{s:I, s:o}", "tokens", (json_int_t)c->tokens, "layers", layers));
}

static void show_text(const comparison *c)
{
    static const char *const head[] = {"layer",     "choices A", "choices B",
                                       "agreement", "by chance", "divergence, bits"};
    et_table t;
    et_gpt_routing r;
    printf("routing of %zu held-out tokens, as in evaluation\n\n", c->tokens);
    et_table_begin(&t, "rrrrrr");
    for (size_t i = 0; i < sizeof head / sizeof *head; i++) et_table_cell(&t, "%s", head[i]);
    for (size_t i = 0; i < c->layers; i++) {
        if (!et_gpt_routing_of(c->g[0], i, &r)) continue;
        const figures f = measure(c, i);
        et_table_cell(&t, "%zu", i);
        for (int k = 0; k < 2; k++) et_table_cell(&t, "%.0f", f.choices[k]);
        et_table_cell(&t, "%.4f", f.overlap.pooled_jaccard);
        et_table_cell(&t, "%.4f", f.chance);
        et_table_cell(&t, "%.4f", f.overlap.divergence);
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
    et_corpus corpus;
    et_status status = check_alike(c, o, error);
    if (status == ET_OK) status = et_corpus_open(&corpus, o->text, config->sequence, error);
    if (status != ET_OK) return status;
    size_t held = et_corpus_held(&corpus);
    c->layers = config->layers;
    c->experts = config->ffn.experts;
    c->tokens = (held < o->sequences ? held : o->sequences) * config->sequence;
    for (int k = 0; k < 2; k++) c->mask[k] = allocate(c->layers * c->tokens, c->experts);
    status = read_all(c, &corpus, error);
    if (status == ET_OK && o->format == 1) show_json(c);
    if (status == ET_OK && o->format == 0) show_text(c);
    for (int k = 0; k < 2; k++) free(c->mask[k]);
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
