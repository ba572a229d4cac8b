/* cmd_sample.c: `etref sample`: a trained model goes on with a text.
 *
 * The prompt goes through the model at once, then byte after byte, each with the keys and values of
 * those before (et_gpt_extend). When the model's longest sequence is full, its second half becomes
 * the beginning of a new one.
 */
#include "etref/etref.h"
#include "tools/etref/commands.h"
#include "tools/etref/ending.h"
#include "tools/etref/memory_limit.h"
#include "tools/etref/options.h"
#include "tools/etref/sample.h"
#include "tools/etref/terminal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct sample_options {
    const char *path, *prompt, *temperature, *top_p, *seed;
    size_t length, threads;
    bool color, no_color;
} sample_options;

/* ---- what is asked for ---- */

static bool read_options(sample_options *o, int argc, char **argv)
{
    word_list words = {0};
    const option table[] = {{"--prompt", OPTION_WORD, &o->prompt, NULL},
                            {"--length", OPTION_COUNT, &o->length, NULL},
                            {"--temperature", OPTION_WORD, &o->temperature, NULL},
                            {"--top-p", OPTION_WORD, &o->top_p, NULL},
                            {"--seed", OPTION_WORD, &o->seed, NULL},
                            {"--color", OPTION_FLAG, &o->color, NULL},
                            {"--no-color", OPTION_FLAG, &o->no_color, NULL},
                            {"--threads", OPTION_THREADS, &o->threads, NULL},
                            {NULL, OPTION_FLAG, NULL, NULL}};
    bool fine = options_parse(table, argc, argv, &words);
    if (fine && words.count != 1) {
        fail("sample takes one checkpoint: see 'etref help sample'");
        fine = false;
    }
    if (fine) o->path = words.at[0];
    word_list_free(&words);
    return fine;
}

static et_status read_number(double *number, const char *name, const char *text, double most,
                             et_error *error)
{
    char *end;
    *number = strtod(text, &end);
    if (end != text && *end == '\0' && *number >= 0 && *number <= most) return ET_OK;
    return et_fail(error, ET_EINVAL, "%s %s: a number from 0 to %g belongs here", name, text, most);
}

static et_status choose(sampler *s, const sample_options *o, et_error *error)
{
    char *end = NULL;
    s->seed = strtoull(o->seed, &end, 10);
    if (o->seed[0] < '0' || o->seed[0] > '9' || *end != '\0' || strlen(o->seed) > 18)
        return et_fail(error, ET_EINVAL,
                       "--seed %s: a whole number of at most 18 digits belongs here", o->seed);
    if (o->prompt[0] == '\0')
        return et_fail(error, ET_EINVAL, "--prompt: at least one byte belongs here");
    et_status status = read_number(&s->temperature, "--temperature", o->temperature, 100, error);
    return status == ET_OK ? read_number(&s->top_p, "--top-p", o->top_p, 1, error) : status;
}

static bool wants_color(const sample_options *o)
{
    if (o->no_color || o->color) return !o->no_color;
    return terminal_colors();
}

/* ---- writing ---- */

/* The sequence so far, at most as long as the model's longest one. */
typedef struct context {
    et_gpt *g;
    size_t room, words, count;
    int32_t *tokens;
    et_real *logits;     /* [room,words] */
    const et_real *next; /* of what comes after the last token */
} context;

/* `count` tokens, which stand behind the others already. */
static et_status extend(context *c, size_t count, et_error *error)
{
    et_status status = et_gpt_extend(c->g, count, c->tokens + c->count, c->logits, error);
    c->count += count;
    c->next = c->logits + (count - 1) * c->words;
    return status;
}

/* A full sequence's second half begins a new one. */
static et_status make_room(context *c, et_error *error)
{
    size_t kept = c->room / 2;
    if (c->count < c->room) return ET_OK;
    memmove(c->tokens, c->tokens + c->room - kept, kept * sizeof *c->tokens);
    c->count = 0;
    et_gpt_restart(c->g);
    return kept > 0 ? extend(c, kept, error) : ET_OK;
}

/* Takes bytes, in parts that fit, and prints them. */
static et_status take(context *c, const unsigned char *bytes, size_t count, printer *p,
                      et_error *error)
{
    while (count > 0) {
        et_status status = make_room(c, error);
        size_t part = count < c->room - c->count ? count : c->room - c->count;
        for (size_t i = 0; i < part; i++) c->tokens[c->count + i] = bytes[i];
        if (status == ET_OK) status = extend(c, part, error);
        if (status != ET_OK) return status;
        for (size_t i = 0; i < part; i++) print_byte(p, bytes[i], et_gpt_fanout(c->g, i));
        bytes += part;
        count -= part;
    }
    return ET_OK;
}

static et_status write_text(context *c, const sampler *s, const sample_options *o, printer *p,
                            et_error *error)
{
    et_status status = take(c, (const unsigned char *)o->prompt, strlen(o->prompt), p, error);
    for (size_t i = 0; status == ET_OK && i < o->length; i++) {
        unsigned char byte = (unsigned char)sample_next(s, i, c->words, c->next);
        status = take(c, &byte, 1, p, error);
    }
    return status;
}

static et_status sample(et_gpt *g, const sampler *s, const sample_options *o, et_error *error)
{
    const et_gpt_config *config = et_gpt_configuration(g);
    size_t T = config->sequence, V = config->vocab;
    if (V != 256) return et_fail(error, ET_EINVAL, "%s: has %zu tokens; bytes are 256", o->path, V);
    bool moe = config->ffn.layer == ET_MOE && (config->layers > 1 || !config->first_dense);
    printer p = {.usual = (double)config->ffn.granularity, .colors = moe && wants_color(o)};
    context c = {.g = g,
                 .room = T,
                 .words = V,
                 .tokens = allocate(T, sizeof(int32_t)),
                 .logits = allocate(T * V, sizeof(et_real))};
    print_legend(&p);
    et_status status = write_text(&c, s, o, &p, error);
    print_end(&p);
    free(c.logits);
    free(c.tokens);
    return status;
}

int cmd_sample(int argc, char **argv)
{
    sample_options o = {
        .prompt = "\n", .length = 400, .temperature = "0.8", .top_p = "0.95", .seed = "1"};
    sampler s;
    et_gpt *g;
    et_tensor_file file;
    et_error error = {0};
    if (!read_options(&o, argc, argv)) return STATUS_BAD;
    use_threads(o.threads);
    et_status status = choose(&s, &o, &error);
    if (status == ET_OK) status = et_checkpoint_read(o.path, 1, memory_limit(), &g, &file, &error);
    if (status == ET_OK) {
        status = sample(g, &s, &o, &error);
        et_gpt_free(g);
        et_tensor_file_close(&file);
    }
    return status == ET_OK ? STATUS_PASS : fail_status(status, &error);
}
