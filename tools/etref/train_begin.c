/* train_begin.c: how a training run begins: its configuration, its text, its model. See train.h.
 *
 * Options are written into the object of --config and read as one, so that both are checked in the
 * same place. A run that goes on takes everything from its checkpoint; options that are given once
 * more must say the same.
 */
#include "etref/etref.h"
#include "tools/etref/ending.h"
#include "tools/etref/memory_limit.h"
#include "tools/etref/options.h"
#include "tools/etref/train.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { LIMIT = 1 << 16 };

/* ---- the configuration ---- */

bool train_says_anything(const train_options *o)
{
    return o->config || o->rule >= 0 || o->layers || o->d_model || o->heads || o->experts ||
           o->steps || o->tokens;
}

/* The object of --config, or an empty one; NULL after an error. */
static json_t *load_object(const char *path, et_error *error)
{
    char *text = NULL;
    size_t length;
    json_error_t problem;
    if (path == NULL) return json_object();
    json_t *root = NULL;
    if (read_text(path, LIMIT, "a configuration", &text, &length, error) == ET_OK) {
        root = json_loadb(text, length, JSON_REJECT_DUPLICATES, &problem);
        if (root == NULL)
            et_fail(error, ET_EINVAL, "%s: line %d: %s", path, problem.line, problem.text);
    }
    free(text);
    if (root != NULL && !json_is_object(root)) {
        et_fail(error, ET_EINVAL, "%s: a configuration is an object", path);
        json_decref(root);
        return NULL;
    }
    return root;
}

static void put(json_t *object, const char *key, size_t value)
{
    if (value > 0) json_object_set_new(object, key, json_integer((json_int_t)value));
}

/* --tokens of a step: sequences as the configuration has them, or one that is shorter. */
static et_status put_tokens(json_t *root, size_t tokens, et_error *error)
{
    const json_t *sequence = json_object_get(root, "sequence");
    const json_t *micro = json_object_get(root, "micro_batches");
    size_t T = json_integer_value(sequence) > 0 ? (size_t)json_integer_value(sequence) : 256;
    size_t M = json_integer_value(micro) > 0 ? (size_t)json_integer_value(micro) : 1;
    if (tokens == 0) return ET_OK;
    if (tokens < T && sequence == NULL) T = tokens;
    if (tokens % (T * M) != 0)
        return et_fail(error, ET_EINVAL,
                       "--tokens %zu: a step is whole sequences of %zu tokens in %zu micro-batches",
                       tokens, T, M);
    put(root, "sequence", T);
    put(root, "batch", tokens / T / M);
    return ET_OK;
}

static et_status put_options(json_t *root, const train_options *o, et_error *error)
{
    static const char *const rules[] = {NULL, "tc", "ec", "et"};
    json_t *ffn = json_object_get(root, "ffn");
    if (ffn == NULL || o->rule == 0) { /* of experts nothing applies to a dense layer */
        ffn = json_object();
        json_object_set_new(root, "ffn", ffn);
    }
    if (!json_is_object(ffn))
        return et_fail(error, ET_EINVAL, "%s: ffn is an object of a case's fields", o->config);
    put(root, "layers", o->layers);
    put(root, "d_model", o->d_model);
    put(root, "heads", o->heads);
    put(root, "steps", o->steps);
    if (o->rule == 0) json_object_set_new(ffn, "layer", json_string("dense"));
    if (o->rule > 0) json_object_set_new(ffn, "rule", json_string(rules[o->rule]));
    put(ffn, "experts", o->experts);
    return put_tokens(root, o->tokens, error);
}

et_status train_configure(et_gpt_config *c, const train_options *o, et_error *error)
{
    json_t *root = load_object(o->config, error);
    if (root == NULL) return ET_EINVAL;
    et_status status = put_options(root, o, error);
    char *text = json_dumps(root, JSON_REAL_PRECISION(17));
    json_decref(root);
    if (status == ET_OK)
        status = et_gpt_config_parse(c, text, strlen(text), o->config ? o->config : "the options", error);
    if (status == ET_OK && c->vocab != 256)
        status = et_fail(error, ET_EINVAL, "%s: vocab = %zu; tokens are bytes, 256 of them",
                         o->config, c->vocab);
    free(text);
    return status;
}

static et_status read_seed(uint64_t *seed, const char *text, et_error *error)
{
    char *end = NULL;
    *seed = text ? strtoull(text, &end, 10) : 1;
    if (text == NULL || (text[0] >= '0' && text[0] <= '9' && *end == '\0' && strlen(text) < 19))
        return ET_OK;
    return et_fail(error, ET_EINVAL, "--seed %s: a whole number of at most 18 digits belongs here",
                   text);
}

/* ---- a new run ---- */

static et_status begin_new(train_run *run, const train_options *o, et_error *error)
{
    et_gpt_config c;
    const char *const files[] = {run->checkpoint, run->final, run->log};
    for (size_t i = 0; i < sizeof files / sizeof *files; i++)
        if (access(files[i], F_OK) == 0)
            return et_fail(error, ET_EINVAL,
                           "%s is there: go on with --resume, or give another folder with --out",
                           files[i]);
    et_status status = train_configure(&c, o, error);
    if (status == ET_OK) status = read_seed(&run->seed, o->seed, error);
    if (status == ET_OK) status = et_corpus_open(&run->corpus, o->text, c.sequence, error);
    if (status == ET_OK) status = et_gpt_create(&run->g, &c, memory_limit(), error);
    if (status == ET_OK) et_gpt_initialise(run->g, run->seed);
    return status;
}

/* ---- a run that goes on ---- */

/* The first field in which two configurations differ; "" if none does. */
static const char *difference(const json_t *a, const json_t *b)
{
    const char *key;
    json_t *v;
    json_object_foreach((json_t *)a, key, v)
    {
        const json_t *other = json_object_get(b, key);
        if (json_equal(v, other)) continue;
        return json_is_object(v) ? difference(v, other) : key;
    }
    return "";
}

static et_status compare_configurations(const train_run *run, const train_options *o,
                                        et_error *error)
{
    et_gpt_config c;
    char *asked = NULL, *had = NULL, field[64] = "";
    if (!train_says_anything(o)) return ET_OK;
    et_status status = train_configure(&c, o, error);
    if (status == ET_OK) status = et_gpt_config_print(&asked, &c, error);
    if (status == ET_OK) status = et_gpt_config_print(&had, et_gpt_configuration(run->g), error);
    if (status == ET_OK) {
        json_t *a = json_loads(asked, 0, NULL), *b = json_loads(had, 0, NULL);
        snprintf(field, sizeof field, "%s", difference(a, b));
        json_decref(a);
        json_decref(b);
    }
    free(asked);
    free(had);
    if (status == ET_OK && field[0] != '\0')
        return et_fail(
            error, ET_EINVAL,
            "--resume: the run in %s has another %s; leave the options away, they are in "
            "its checkpoint",
            o->out, field);
    return status;
}

static bool note_is(const et_tensor_file *file, const char *key, const char *value)
{
    const char *note = et_tensor_file_metadata(file, key);
    return note != NULL && strcmp(note, value) == 0;
}

static et_status take_notes(train_run *run, const et_tensor_file *file, const train_options *o,
                            et_error *error)
{
    char hash[24];
    uint64_t asked;
    if (!et_checkpoint_has_moments(file))
        return et_fail(error, ET_EINVAL,
                       "%s: holds parameters and states alone; no training goes on from it",
                       file->path);
    et_status status = read_seed(&asked, o->seed, error);
    const char *seed = et_tensor_file_metadata(file, "seed");
    if (status == ET_OK && seed == NULL)
        return et_fail(error, ET_EINVAL, "%s: has no seed; it is not of a run of 'etref train'",
                       file->path);
    if (status == ET_OK) status = read_seed(&run->seed, seed, error);
    if (status == ET_OK && o->seed && asked != run->seed)
        return et_fail(error, ET_EINVAL, "--seed %s: the run in %s has %s", o->seed, o->out, seed);
    size_t T = et_gpt_configuration(run->g)->sequence;
    if (status == ET_OK) status = et_corpus_open(&run->corpus, o->text, T, error);
    if (status != ET_OK) return status;
    snprintf(hash, sizeof hash, "%016llx", (unsigned long long)run->corpus.hash);
    if (note_is(file, "text_fnv1a", hash)) return ET_OK;
    return et_fail(error, ET_EINVAL, "--text %s: is not the text of the run in %s", o->text,
                   o->out);
}

static et_status begin_again(train_run *run, const train_options *o, et_error *error)
{
    et_tensor_file file;
    const char *path = access(run->checkpoint, F_OK) == 0 ? run->checkpoint : run->final;
    et_status status = et_checkpoint_read(path, 0, memory_limit(), &run->g, &file, error);
    if (status != ET_OK) return status;
    status = take_notes(run, &file, o, error);
    if (status == ET_OK) status = compare_configurations(run, o, error);
    et_tensor_file_close(&file);
    return status;
}

/* ---- both ---- */

et_status train_begin(train_run *run, const train_options *o, et_error *error)
{
    et_status status = o->resume ? begin_again(run, o, error) : begin_new(run, o, error);
    if (status != ET_OK) return status;
    const et_gpt_config *c = et_gpt_configuration(run->g);
    run->tokens = allocate(c->micro_batches * c->batch * (c->sequence + 1), sizeof *run->tokens);
    return ET_OK;
}

void train_end(train_run *run)
{
    if (run->lines) fclose(run->lines);
    free(run->tokens);
    et_corpus_close(&run->corpus);
    et_gpt_free(run->g);
}
