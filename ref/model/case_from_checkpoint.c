/* case_from_checkpoint.c: x, dy, weights and state of a layer in a step of a trained model. See etref/capture.h.
 *
 *     case's text -> what it leaves out, from the checkpoint's configuration -> et_case
 *     et_case     -> model, tokens -> forward; backward down to the layer -> in.*
 *
 * A layer's y is added to the stream, x += ffn(norm(x)): so dL/dy is dL/dx of the stream after the layer,
 * which is what backward has at hand when it comes to it.
 */
#include "etref/capture.h"
#include "etref/checkpoint.h"
#include "etref/corpus.h"
#include "ref/base/float_environment.h"
#include "ref/base/memory.h"
#include "ref/model/model.h"
#include "ref/step/case_fields.h"
#include "ref/format/json.h"
#include "ref/step/case_kinds.h"
#include "ref/step/input_text.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_TEXT = 1 << 20 };

/* ---- what the model makes of a case ---- */

/* What a checkpoint tells without its tensors. */
typedef struct model_facts {
    et_gpt_config config;
    et_gpt_progress progress;
    size_t batch; /* for et_checkpoint_read; 0: as the run had it */
} model_facts;

/* For so many tokens; 0: those of a step. */
static et_status look(model_facts *m, const et_case *c, et_error *error)
{
    et_tensor_file file;
    const char *path = c->input.checkpoint;
    size_t N = 0;
    et_status status = et_tensor_file_open(&file, path, error);
    if (status != ET_OK) return status;
    m->batch = 0;
    status = et_checkpoint_facts(&file, 0, &m->config, &m->progress, error);
    if (status == ET_OK) status = et_gpt_settle(&m->config, &N, error);
    size_t T = m->config.sequence;
    if (status == ET_OK && c->tokens > 0 && c->tokens != N * m->config.micro_batches) {
        m->batch = c->tokens / T;
        if (c->tokens % T != 0)
            status = et_fail(error, ET_EINVAL,
                             "case '%s': tokens = %zu; of %s whole sequences of %zu tokens",
                             c->name, c->tokens, path, T);
        if (status == ET_OK)
            status = et_checkpoint_facts(&file, m->batch, &m->config, &m->progress, error);
        if (status == ET_OK) status = et_gpt_settle(&m->config, &N, error);
    }
    if (status == ET_OK && m->config.vocab != 256)
        status = et_fail(error, ET_EINVAL, "case '%s': %s has %zu words; tokens are bytes, 256",
                         c->name, path, m->config.vocab);
    if (status == ET_OK && c->input.checkpoint_layer >= m->config.layers)
        status = et_fail(error, ET_EINVAL, "case '%s': input.checkpoint_layer = %zu; %s has 0 to %zu",
                         c->name, c->input.checkpoint_layer, path, m->config.layers - 1);
    et_tensor_file_close(&file);
    return status;
}

static bool is_routed(const et_gpt_config *m, size_t layer)
{
    return m->ffn.layer == ET_MOE && !(layer == 0 && m->first_dense);
}

/* The case as the model would have it: c's name, precision, input and, but for a feed-forward layer, its
 * layer; all else is the model's. */
static et_status describe(et_case *own, const et_case *c, const model_facts *facts, et_error *error)
{
    const et_gpt_config *m = &facts->config;
    bool routed = is_ffn(c) && is_routed(m, c->input.checkpoint_layer);
    *own = m->ffn;
    own->layer = !is_ffn(c) ? c->layer : routed ? ET_MOE : ET_DENSE;
    own->tokens = m->micro_batches * m->batch * m->sequence;
    own->micro_batches = routed ? m->micro_batches : 1;
    own->d_model = is_attention(c) ? m->heads * m->head_dim : m->d_model;
    if (!routed) own->d_expert = m->d_dense;
    own->step = facts->progress.steps;
    own->ema_updates = facts->progress.ema_updates;
    own->heads = is_attention(c) ? m->heads : 1;
    own->kv_heads = m->kv_heads;
    own->sequence = m->sequence;
    own->rms_eps = m->rms_eps;
    own->vocab = m->vocab;
    own->softcap = m->softcap;
    own->precision = c->precision;
    own->input = c->input;
    memcpy(own->name, c->name, sizeof own->name);
    memcpy(own->hunts, c->hunts, sizeof own->hunts);
    return et_case_settle(own, own, error);
}

static et_quote quote(const et_case *c, const et_field *f)
{
    json_t *v = et_member_load(&f->member, c);
    et_quote q = et_json_quote(v);
    json_decref(v);
    return q;
}

/* Does the case say of itself what the model says of it? */
static et_status compare(const et_case *c, const et_case *own, et_error *error)
{
    for (size_t i = 0; i < ET_FIELDS; i++) {
        const et_field *f = &et_fields[i];
        if (et_member_equal(&f->member, c, own)) continue;
        return et_fail(error, ET_EINVAL,
                       "case '%s': %s = %s, but its layer of %s has %s; leave the field out",
                       c->name, f->doc.name, quote(c, f).text, c->input.checkpoint,
                       quote(own, f).text);
    }
    return ET_OK;
}

/* ---- what a text of cases leaves out ---- */

/* A path of the text, from where the text was read: false if there is no memory. */
static bool place_path(json_t *input, const char *field, bool bare_too, const char *file)
{
    const char *path = json_string_value(json_object_get(input, field)), *slash = strrchr(file, '/');
    if (path == NULL || path[0] == '/' || slash == NULL) return true;
    if (!bare_too && strchr(path, '/') == NULL) return true;
    if (strncmp(path, "./", 2) == 0) path += 2;
    json_t *placed = json_sprintf("%.*s%s", (int)(slash + 1 - file), file, path);
    return json_object_set_new(input, field, placed) == 0;
}

/* The case without the fields that the model knows: its name, what does not depend on layers, and the
 * layer that it asks for. One of the smallest of layers stands for it, for whose sake it is parsed. */
static et_status parse_asked(et_case *asked, const json_t *object, const char *where,
                             et_error *error)
{
    static const char *const kept[] = {"name", "hunts", "precision", "input"};
    const char *word = json_string_value(json_object_get(object, "layer"));
    bool head = word != NULL && strcmp(word, "cross_entropy") == 0;
    json_t *small = head ? json_pack("{s:s,s:i,s:i,s:i}", "layer", word, "tokens", 1, "d_model", 1,
                                     "vocab", 1)
                         : json_pack("{s:s,s:i,s:i}", "layer", "rmsnorm", "tokens", 1, "d_model", 1);
    for (size_t i = 0; i < sizeof kept / sizeof *kept; i++) {
        json_t *v = json_object_get(object, kept[i]);
        if (v != NULL) json_object_set(small, kept[i], v);
    }
    char *text = json_dumps(small, JSON_REAL_PRECISION(17));
    json_decref(small);
    if (text == NULL) return et_json_no_memory(where, "the case", error);
    et_status status = et_case_parse(asked, text, strlen(text), where, error);
    free(text);
    asked->layer = head ? ET_LAYER_CROSS_ENTROPY : ET_MOE;
    asked->tokens = 0;
    return status;
}

/* What the object says of the fields that the model knows, over what the model says. What cannot be
 * stored is left to et_case_parse, which names it. */
static void say_over(et_case *said, const json_t *object)
{
    for (size_t i = 0; i < ET_FIELDS; i++) {
        const json_t *v = json_object_get(object, et_fields[i].doc.name);
        if (v != NULL) et_member_store(&et_fields[i].member, said, v);
    }
}

static et_status add_missing(json_t *object, const et_case *own, const char *where, et_error *error)
{
    char *text = NULL;
    et_status status = et_case_print(&text, own, error);
    if (status != ET_OK) return status;
    json_t *whole = json_loads(text, 0, NULL);
    if (whole == NULL || json_object_update_missing(object, whole) != 0)
        status = et_json_no_memory(where, "the case", error);
    json_decref(whole);
    free(text);
    return status;
}

static et_status complete(json_t *object, const char *where, et_error *error)
{
    et_case asked, own, said;
    model_facts facts;
    et_status status = parse_asked(&asked, object, where, error);
    if (status != ET_OK) return status;
    const char *of_sizes[] = {"layer", "tokens"};
    for (size_t i = 0; i < 2; i++) {
        const json_t *v = json_object_get(object, of_sizes[i]);
        if (v != NULL) et_member_store(&et_field_named(of_sizes[i])->member, &asked, v);
    }
    if ((status = look(&facts, &asked, error)) || (status = describe(&own, &asked, &facts, error)))
        return status;
    said = own;
    say_over(&said, object);
    status = compare(&said, &own, error);
    return status == ET_OK ? add_missing(object, &own, where, error) : status;
}

/* One case: its paths placed, its sizes filled in; *changed: whether there was anything to do. */
static et_status prepare(json_t *object, const char *where, const char *file, bool *changed,
                         et_error *error)
{
    json_t *input = json_object_get(object, "input");
    const char *source = json_string_value(json_object_get(input, "source"));
    bool captured = source != NULL && strcmp(source, "checkpoint") == 0;
    bool named = json_is_string(json_object_get(object, "name")); /* else the parser will say so */
    if (!captured && json_object_get(input, "text") == NULL) return ET_OK;
    *changed = true;
    if (file != NULL &&
        !(place_path(input, "checkpoint", true, file) && place_path(input, "text", false, file)))
        return et_json_no_memory(where, "the case", error);
    return captured && named ? complete(object, where, error) : ET_OK;
}

et_status et_capture_cases(et_case **cases, size_t *count, const char *json, size_t length,
                           const char *where, const char *file, et_error *error)
{
    ET_ARITHMETIC;
    json_t *root;
    bool changed = false;
    et_status status = et_json_read(&root, json, length, MAX_TEXT, where, "the case", error);
    if (status != ET_OK) return status;
    size_t many = json_is_array(root) ? json_array_size(root) : 1;
    for (size_t i = 0; i < many && status == ET_OK; i++)
        status = prepare(json_is_array(root) ? json_array_get(root, i) : root, where, file,
                         &changed, error);
    char *text = status == ET_OK && changed ? json_dumps(root, JSON_REAL_PRECISION(17)) : NULL;
    json_decref(root);
    if (status == ET_OK && changed && text == NULL)
        return et_json_no_memory(where, "the case", error);
    if (status == ET_OK)
        status = et_case_parse_all(cases, count, text ? text : json, text ? strlen(text) : length,
                                   where, error);
    free(text);
    return status;
}

/* ---- capturing ---- */

/* The checkpoint's hash: it must be the case's, or becomes it. */
static et_status check_hash(et_case *c, et_error *error)
{
    char hash[sizeof c->input.checkpoint_fnv1a];
    et_corpus bytes;
    et_status status = et_corpus_open(&bytes, c->input.checkpoint, 1, error);
    if (status != ET_OK) return status;
    et_corpus_close(&bytes);
    snprintf(hash, sizeof hash, "%016llx", (unsigned long long)bytes.hash);
    if (c->input.checkpoint_fnv1a[0] == '\0') strcpy(c->input.checkpoint_fnv1a, hash);
    if (strcmp(c->input.checkpoint_fnv1a, hash) == 0) return ET_OK;
    return et_fail(error, ET_EINVAL,
                   "case '%s': %s is another checkpoint than the case's: its FNV-1a is %s, not %s",
                   c->name, c->input.checkpoint, hash, c->input.checkpoint_fnv1a);
}

/* *tokens: M B rows of T + 1 bytes, each row after the last; allocated. */
static et_status read_tokens(int32_t **tokens, const et_case *c, const et_gpt_config *m,
                             et_error *error)
{
    et_text text;
    void *room = NULL;
    size_t T = m->sequence, rows = m->micro_batches * m->batch;
    et_status status =
        et_text_read(&text, c->input.text, c->input.text_offset, rows * T + 1, error);
    if (status != ET_OK) return status;
    status = et_allocate(&room, rows * (T + 1), sizeof **tokens, "tokens", error);
    *tokens = room;
    for (size_t i = 0; status == ET_OK && i < rows * (T + 1); i++)
        (*tokens)[i] = text.bytes[i / (T + 1) * T + i % (T + 1)];
    et_text_free(&text);
    return status;
}

/* Into an array of in.*, in the case's precision. */
static void store(const et_step *s, et_real *to, const et_real *from, size_t count)
{
    for (size_t i = 0; to != NULL && i < count; i++)
        to[i] = (et_real)et_round_to_dtype((double)from[i], s->c.precision);
}

static void store_weight(const et_step *s, et_real *to, const et_gpt_tensor *w)
{
    store(s, to, w->value, w->count);
}

/* As it is. */
static void store_state(et_real *to, const et_gpt_tensor *state)
{
    if (to != NULL) memcpy(to, state->value, state->count * sizeof *to);
}

static void store_weights(const et_step *s, const et_gpt *g, const et_gpt_layer *l)
{
    const et_step_inputs *in = &s->in;
    store_weight(s, in->router, &l->w_router);
    store_weight(s, in->up, &l->w_up);
    store_weight(s, in->down, &l->w_down);
    store_weight(s, in->shared_up, &l->shared_up);
    store_weight(s, in->shared_down, &l->shared_down);
    store_weight(s, s->model.head, &g->head);
    store_state(in->ema, &l->ema);
    store_state(in->bias, &l->bias);
}

/* The stream that enters a layer, once more: g->x. */
static et_status run_until(et_gpt *g, size_t layer, et_error *error)
{
    et_status status = ET_OK;
    memcpy(g->x, g->norm0, g->N * g->config.d_model * sizeof *g->x);
    for (size_t i = 0; status == ET_OK && i < layer; i++)
        status = et_gpt_layer_forward(g, &g->layers[i], error);
    return status;
}

/* x and dy of one micro-batch, whose rows begin at `first`. */
static et_status store_rows(et_step *s, et_gpt *g, size_t first, et_error *error)
{
    const et_case *c = &s->c;
    size_t at = c->input.checkpoint_layer, d = c->d_model, count = g->N * d;
    size_t until = is_cross_entropy(c) ? g->config.layers : is_ffn(c) ? at + 1 : at;
    et_gpt_layer *l = &g->layers[at];
    const et_real *x = is_cross_entropy(c) ? g->normed : is_ffn(c) ? l->norm2 : g->x;
    const et_real *dy = is_ffn(c) ? g->dx : is_attention(c) ? g->dattended : g->dnormed;
    et_status status = et_gpt_backward_until(g, 1 / (double)g->config.micro_batches, until, error);
    if (status != ET_OK) return status;
    if (s->in.dy) store(s, s->in.dy + first * d, dy, count);
    if (is_rmsnorm(c)) status = run_until(g, at, error);
    if (s->in.x) store(s, s->in.x + first * d, x, count);
    size_t columns = l->w_qkv.shape[0];
    if (s->model.qkv) store(s, s->model.qkv + first * columns, l->qkv, g->N * columns);
    if (s->model.targets)
        memcpy(s->model.targets + first, g->targets, g->N * sizeof *g->targets);
    return status;
}

static et_status capture(et_step *s, et_gpt *g, const int32_t *tokens, et_error *error)
{
    const et_gpt_config *m = &g->config;
    et_status status = ET_OK;
    double loss;
    g->config.engine = ET_PLAIN;
    store_weights(s, g, &g->layers[s->c.input.checkpoint_layer]);
    for (size_t i = 0; status == ET_OK && i < m->micro_batches; i++) {
        status = et_gpt_forward(g, false, tokens + i * m->batch * (m->sequence + 1), &loss, NULL,
                                error);
        if (status == ET_OK) status = store_rows(s, g, i * g->N, error);
    }
    return status;
}

et_status et_capture_inputs(et_step *s, size_t max_bytes, et_error *error)
{
    ET_ARITHMETIC;
    model_facts facts;
    et_case own;
    et_gpt *g;
    et_tensor_file file;
    int32_t *tokens = NULL;
    et_case *c = &s->c;
    if (c->input.source != ET_INPUT_CHECKPOINT) return et_step_draw_inputs(s, error);
    et_status status = look(&facts, c, error);
    if (status == ET_OK) status = describe(&own, c, &facts, error);
    if (status == ET_OK) status = compare(c, &own, error);
    if (status == ET_OK) status = check_hash(c, error);
    if (status == ET_OK) status = read_tokens(&tokens, c, &facts.config, error);
    if (status != ET_OK) return status;
    status = et_checkpoint_read(c->input.checkpoint, facts.batch, max_bytes, &g, &file, error);
    if (status == ET_OK) {
        status = capture(s, g, tokens, error);
        et_gpt_free(g);
        et_tensor_file_close(&file);
    }
    free(tokens);
    return status;
}
