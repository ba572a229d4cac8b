/* model_config_json.c: a model's configuration as JSON, by one table of fields. See etref/gpt.h.
 *
 * The layer under study is a case (case.h), and its object is read by the reader of cases; what a
 * model knows better, its tokens and widths, is written into it first.
 */
#include "ref/base/float_environment.h"
#include "ref/base/memory.h"
#include "ref/model/model.h"
#include "ref/format/json_members.h"

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define AT(name_, field)                                                                           \
    .name = name_, .offset = offsetof(et_gpt_config, field),                                       \
    .size = sizeof(((const et_gpt_config *)NULL)->field)
#define SIZE(field)                                                                                \
    {                                                                                              \
        AT(#field, field), .type = "integer from 1 to 2147483647", .kind = ET_COUNT, .low = 1,     \
                           .high = INT32_MAX                                                       \
    }
#define STEPS(name, field)                                                                         \
    {                                                                                              \
        AT(name, field), .type = "integer from 0 to 2147483647", .kind = ET_COUNT,                 \
                         .high = INT32_MAX                                                         \
    }
#define NUMBER(field)                                                                              \
    {                                                                                              \
        AT(#field, field), .type = "number from 0 to 1e9", .kind = ET_NUMBER, .high = 1e9          \
    }
#define PART(name, field)                                                                          \
    {                                                                                              \
        AT(name, field), .type = "number from 0, less than 1", .kind = ET_NUMBER,                  \
                         .high = 1 - 0x1p-53                                                       \
    }
#define SHARE(name, field)                                                                         \
    {                                                                                              \
        AT(name, field), .type = "number from 0 to 1", .kind = ET_NUMBER, .high = 1                \
    }

/* clang-format off */
static const et_member fields[] = {
    {AT("engine", engine), .type = "plain|blas", .kind = ET_WORD},
    SIZE(vocab), SIZE(d_model), SIZE(layers), SIZE(heads), SIZE(kv_heads), SIZE(head_dim),
    SIZE(sequence), SIZE(batch), SIZE(micro_batches), SIZE(d_dense),
    {AT("first_dense", first_dense), .type = "true|false", .kind = ET_SWITCH},
    NUMBER(rms_eps), NUMBER(rope_base), NUMBER(softcap),
    PART("beta1", beta1), PART("beta2", beta2), NUMBER(eps),
    NUMBER(rate_wte), NUMBER(rate_head), NUMBER(rate_router), NUMBER(rate_muon),
    PART("momentum_first", momentum_first), PART("momentum_last", momentum_last),
    STEPS("momentum_ramp", momentum_ramp),
    {AT("grouping", grouping), .type = "each|stacked", .kind = ET_WORD},
    NUMBER(clip),
    STEPS("steps", schedule.steps), STEPS("warmup", schedule.warmup),
    SHARE("cooldown", schedule.cooldown), SHARE("last", schedule.last),
};
/* clang-format on */

enum { FIELDS = sizeof fields / sizeof *fields, LIMIT = 1 << 16, MOST_TEXT = 1 << 13 };

/* The name of each field, and of the one that is an object of its own, for hints. */
static const char *name_at(size_t index)
{
    return index < FIELDS ? fields[index].name : "ffn";
}

static const et_member *field_named(const char *name)
{
    for (size_t i = 0; i < FIELDS; i++)
        if (strcmp(fields[i].name, name) == 0) return &fields[i];
    return NULL;
}

/* ---- parsing ---- */

static et_status no_memory(const char *where, et_error *error)
{
    return et_json_no_memory(where, "a model's configuration", error);
}

static et_status unknown(const char *where, const char *name, et_error *error)
{
    const char *near = et_nearest_name(name, name_at, FIELDS + 1);
    return et_fail(error, ET_EINVAL, "%s: unknown field %.64s%s%s%s", where, name,
                   near ? "; did you mean " : "", near ? near : "", near ? "?" : "");
}

/* The layer's object: the default's few fields, what was given, and what the model says. */
static et_status parse_ffn(et_gpt_config *c, const json_t *given, const char *where,
                           et_error *error)
{
    const char *layer = json_string_value(json_object_get(given, "layer"));
    bool dense = layer != NULL && strcmp(layer, "dense") == 0;
    json_t *ffn = json_object();
    int failed = ffn == NULL;
    if (!failed && !dense)
        failed |= json_object_set_new(ffn, "experts", json_integer((json_int_t)c->ffn.experts));
    if (!failed) failed |= given != NULL && json_object_update(ffn, (json_t *)given) != 0;
    if (!failed && !(given && json_object_get(given, "d_expert")))
        failed |= json_object_set_new(
            ffn, "d_expert", json_integer((json_int_t)(dense ? c->d_dense : c->ffn.d_expert)));
    if (!failed) failed |= json_object_set_new(ffn, "name", json_string("ffn"));
    if (!failed)
        failed |=
            json_object_set_new(ffn, "tokens", json_integer((json_int_t)(c->batch * c->sequence)));
    if (!failed)
        failed |= json_object_set_new(ffn, "d_model", json_integer((json_int_t)c->d_model));
    char *text = failed ? NULL : json_dumps(ffn, JSON_REAL_PRECISION(17));
    json_decref(ffn);
    if (text == NULL) return no_memory(where, error);
    et_status status = et_case_parse(&c->ffn, text, strlen(text), where, error);
    free(text);
    return status;
}

/* The default for the widths and steps that are given; refused later where they are wrong. */
static et_gpt_config begin(const json_t *root)
{
    et_gpt_config c = {.d_model = 128, .schedule = {.steps = 1000}};
    et_member_store(field_named("d_model"), &c, json_object_get(root, "d_model"));
    et_member_store(field_named("steps"), &c, json_object_get(root, "steps"));
    return et_gpt_default(c.d_model, c.schedule.steps);
}

static et_status parse_field(et_gpt_config *c, const char *name, json_t *v, const char *where,
                             et_error *error)
{
    const et_member *m = field_named(name);
    bool ffn = strcmp(name, "ffn") == 0;
    if (m == NULL && !ffn) return unknown(where, name, error);
    if (ffn ? json_is_object(v) : et_member_store(m, c, v)) return ET_OK;
    return et_fail(error, ET_EINVAL, "%s: %s = %s; allowed: %s", where, name, et_json_quote(v).text,
                   ffn ? "an object of a case's fields" : m->type);
}

static et_status parse(et_gpt_config *c, json_t *root, const char *where, et_error *error)
{
    const char *key;
    json_t *v;
    *c = begin(root);
    json_object_foreach(root, key, v)
    {
        et_status status = parse_field(c, key, v, where, error);
        if (status != ET_OK) return status;
    }
    if (json_object_get(root, "heads") && !json_object_get(root, "head_dim"))
        c->head_dim = c->d_model / c->heads;
    if (!json_object_get(root, "kv_heads")) c->kv_heads = c->heads;
    if ((double)c->batch * (double)c->sequence > INT32_MAX)
        return et_fail(error, ET_EINVAL, "%s: batch * sequence = %zu * %zu; below 2^31", where,
                       c->batch, c->sequence);
    return parse_ffn(c, json_object_get(root, "ffn"), where, error);
}

et_status et_gpt_config_parse(et_gpt_config *c, const char *json, size_t length, const char *where,
                              et_error *error)
{
    ET_ARITHMETIC;
    json_t *root;
    et_gpt_config parsed = {.engine = ET_PLAIN};
    et_status status =
        et_json_read(&root, json, length, LIMIT, where, "a model's configuration", error);
    if (status != ET_OK) return status;
    if (json_is_object(root))
        status = parse(&parsed, root, where, error);
    else
        status = et_fail(error, ET_EINVAL, "%s: %s; allowed: an object", where,
                         et_json_quote(root).text);
    json_decref(root);
    if (status == ET_OK) *c = parsed;
    return status;
}

/* ---- printing ---- */

static void append(et_line *line, const char *text)
{
    et_line_append(text, strlen(text), line);
}

et_status et_gpt_config_print(char **json, const et_gpt_config *c, et_error *error)
{
    ET_ARITHMETIC;
    size_t N;
    char text[MOST_TEXT], *ffn;
    void *copy;
    et_line line = {.text = text, .room = sizeof text};
    et_gpt_config settled = *c;
    et_status status = et_gpt_settle(&settled, &N, error);
    if (status == ET_OK) status = et_case_print(&ffn, &settled.ffn, error);
    if (status != ET_OK) return status;
    bool printed = true;
    append(&line, "{");
    for (size_t i = 0; i < FIELDS; i++) {
        printed &= et_member_print(&line, fields[i].name, et_member_load(&fields[i], &settled));
        append(&line, ", ");
    }
    append(&line, "\"ffn\": ");
    append(&line, ffn);
    append(&line, "}");
    free(ffn);
    if (!printed || line.full) return no_memory("et_gpt_config", error);
    status = et_allocate(&copy, line.used + 1, 1, "a configuration's text", error);
    if (status == ET_OK) *json = memcpy(copy, text, line.used + 1);
    return status;
}
