/* case.c: reading, checking and printing cases. See etref/case.h.
 *
 * One table (case_fields.c) drives everything: parsing, printing, defaults, messages and documentation
 * all walk it, so they cannot drift apart. A second one (case_contradictions.c) lists the pairs of
 * fields that exclude each other.
 *
 *     JSON -> values, each within its range -> fields that do not apply: refused, or neutral
 *          -> derived defaults -> contradictions -> et_case
 *
 * The defaults are the setup of the paper (arXiv:2603.11535): expert threshold with one routed
 * expert a token on average, sigmoid gates, no normalisation, a shared expert, the strict test
 * r > c, an EMA of decay 0.999 without bias correction, and no capacity.
 *
 * Left out: reading the file (the caller has the text), and whether the case fits in memory
 * (et_step_create knows what a step takes; here only sizes that cannot be addressed are refused).
 */
#include "etref/case.h"
#include "ref/base/float_environment.h"
#include "ref/base/memory.h"
#include "ref/format/json.h"
#include "ref/step/case_contradictions.h"
#include "ref/step/case_fields.h"
#include "ref/step/case_kinds.h"
#include "ref/step/profile_names.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_TEXT = 1 << 20, MAX_CASES = 10000, MAX_LINE = 8192, INPUT_PREFIX = sizeof "input." - 1 };

/* ---- defaults ---- */

static bool is_required(const et_field *f)
{
    return strcmp(f->doc.initial, "required") == 0;
}

/* False for a field that is required, derived from others or empty until given. */
static bool has_default(const et_field *f)
{
    return !is_required(f) && f->doc.initial[0] != '=' && strcmp(f->doc.initial, "none") != 0;
}

/* ---- messages ---- */

/* What a parse has found so far. */
struct parse {
    const char *where;
    size_t number; /* of the case in an array, from 1; 0: not in one */
    et_case value, initial;
    bool given[ET_FIELDS];
    et_error *error;
};

static bool given(const struct parse *p, const char *name)
{
    return p->given[et_field_named(name) - et_fields];
}

/* FILE: case 'NAME': message. Before the name is known: FILE: case number 3: message. */
__attribute__((format(printf, 2, 3))) static et_status refuse(const struct parse *p,
                                                              const char *format, ...)
{
    char which[96] = "", text[512];
    if (p->value.name[0] != '\0')
        snprintf(which, sizeof which, "case '%s': ", p->value.name);
    else if (p->number > 0)
        snprintf(which, sizeof which, "case number %zu: ", p->number);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    return et_fail(p->error, ET_EINVAL, "%s: %s%s", p->where, which, text);
}

static et_status no_memory(const char *where, et_error *error)
{
    return et_json_no_memory(where, "the case", error);
}

static et_quote quote_field(const et_case *c, const et_field *f)
{
    json_t *v = et_member_load(&f->member, c);
    et_quote q = et_json_quote(v);
    json_decref(v);
    return q;
}

static const char *field_name(size_t index)
{
    return et_fields[index].doc.name;
}

static et_status refuse_unknown(const struct parse *p, const char *name)
{
    const char *nearest = et_nearest_name(name, field_name, ET_FIELDS);
    if (nearest != NULL) return refuse(p, "unknown field %.64s; the nearest is %s", name, nearest);
    return refuse(p, "unknown field %.64s; 'etref list fields' names them all", name);
}

/* ---- parsing ---- */

/* Stores the value of a text from the table, which only lack of memory can spoil. */
static et_status store_literal(const et_field *f, et_case *c, const char *json,
                               const struct parse *p)
{
    json_error_t trouble;
    bool out_of_memory;
    json_t *v = et_json_load(json, strlen(json), JSON_DECODE_ANY, &trouble, &out_of_memory);
    bool stored = v != NULL && et_member_store(&f->member, c, v);
    json_decref(v);
    return stored ? ET_OK : no_memory(p->where, p->error);
}

static et_status set_defaults(struct parse *p)
{
    memset(&p->initial, 0, sizeof p->initial);
    for (size_t i = 0; i < ET_FIELDS; i++) {
        if (!has_default(&et_fields[i])) continue;
        et_status status = store_literal(&et_fields[i], &p->initial, et_fields[i].doc.initial, p);
        if (status != ET_OK) return status;
    }
    memcpy(&p->value, &p->initial, sizeof p->value);
    return ET_OK;
}

et_status et_case_defaults(et_case *c, et_error *error)
{
    struct parse p = {.where = "et_case", .error = error};
    et_status status = set_defaults(&p);
    if (status == ET_OK) memcpy(c, &p.initial, sizeof *c);
    return status;
}

/* What the field calls what frameworks call so: bf16 for bfloat16. NULL: nothing like that. */
static const char *usual_word(const et_field *f, const json_t *v)
{
    et_case scratch;
    const char *word = json_string_value(v), *usual = word ? et_usual_name(word) : NULL;
    json_t *own = usual ? json_string(usual) : NULL;
    bool fits = own && et_member_store(&f->member, &scratch, own);
    json_decref(own);
    return fits ? usual : NULL;
}

static et_status parse_field(struct parse *p, const char *name, json_t *v)
{
    const et_field *f = et_field_named(name);
    if (f == NULL) return refuse_unknown(p, name);
    if (!et_member_store(&f->member, &p->value, v)) {
        const char *usual = usual_word(f, v);
        if (usual) return refuse(p, "%s = %s; %s is its name here", name, et_json_quote(v).text, usual);
        return refuse(p, "%s = %s; allowed: %s", name, et_json_quote(v).text, f->doc.type);
    }
    p->given[f - et_fields] = true;
    return ET_OK;
}

static et_status parse_input(struct parse *p, json_t *input)
{
    const char *key;
    json_t *v;
    if (!json_is_object(input))
        return refuse(p, "input = %s; allowed: an object with source, seed, ...",
                      et_json_quote(input).text);
    json_object_foreach(input, key, v)
    {
        char name[64];
        snprintf(name, sizeof name, "input.%s", key);
        et_status status = parse_field(p, name, v);
        if (status != ET_OK) return status;
    }
    if (!given(p, "input.source"))
        return refuse(p, "input.source is missing; allowed: %s",
                      et_field_named("input.source")->doc.type);
    return ET_OK;
}

/* The name goes first, so that every other message can begin with it. */
static et_status parse_object(struct parse *p, json_t *object)
{
    const char *key;
    json_t *v = json_object_get(object, "name");
    et_status status = ET_OK;
    if (v != NULL) status = parse_field(p, "name", v);
    if (status != ET_OK) return status;
    json_object_foreach(object, key, v)
    {
        if (strcmp(key, "input") == 0)
            status = parse_input(p, v);
        else if (strncmp(key, "input.", INPUT_PREFIX) == 0)
            status =
                refuse(p, "unknown field %.64s; the fields of input stand in an object input", key);
        else
            status = parse_field(p, key, v);
        if (status != ET_OK) return status;
    }
    return ET_OK;
}

/* True if a field that does not apply says nothing all the same. */
static et_status is_neutral(const struct parse *p, const et_field *f, bool *neutral)
{
    et_case other = p->initial;
    *neutral = !f->exclusive && et_member_equal(&f->member, &p->value, &other) &&
               !(f->member.kind == ET_NUMBER_OR_NULL && p->value.has_capacity);
    if (*neutral || f->neutral == NULL) return ET_OK;
    et_status status = store_literal(f, &other, f->neutral, p);
    *neutral = et_member_equal(&f->member, &p->value, &other);
    return status;
}

/* Required fields must be there, and fields that do not apply must not say anything. */
static et_status check_scopes(struct parse *p)
{
    et_case *c = &p->value;
    for (size_t i = 0; i < ET_FIELDS; i++) {
        const et_field *f = &et_fields[i];
        if (f->applies(c)) {
            if (is_required(f) && !p->given[i])
                return refuse(p, "%s is missing; allowed: %s", f->doc.name, f->doc.type);
            continue;
        }
        if (!p->given[i]) continue;
        bool neutral;
        et_status status = is_neutral(p, f, &neutral);
        if (status != ET_OK) return status;
        if (!neutral)
            return refuse(p, "%s = %s does not apply; allowed: only with %s", f->doc.name,
                          quote_field(c, f).text, f->doc.scope);
    }
    return ET_OK;
}

/* What does not apply holds its default. Predicates look at the case as it was written, so that the
 * order of the rows does not matter. */
static void reset_unused(struct parse *p)
{
    et_case before = p->value;
    for (size_t i = 0; i < ET_FIELDS; i++) {
        const et_member *m = &et_fields[i].member;
        if (et_fields[i].applies(&before)) continue;
        memcpy((char *)&p->value + m->offset, (const char *)&p->initial + m->offset, m->size);
        p->given[i] = false;
    }
}

/* Defaults that other fields decide. */
static void derive(struct parse *p)
{
    et_case *c = &p->value;
    if (!is_moe(c)) c->shared = false;
    if (!given(p, "micro_batches")) c->micro_batches = is_dp(c) ? c->ranks : 1;
    if (!given(p, "kv_heads")) c->kv_heads = is_attention(c) ? c->heads : 0;
    if (!given(p, "sequence")) c->sequence = has_sequences(c) ? c->tokens : 0;
    if (!c->shared)
        c->shared_d_expert = 0;
    else if (!given(p, "shared_d_expert"))
        c->shared_d_expert = c->d_expert;
    if (!given(p, "granularity")) c->granularity = c->top_k; /* 1 but for tc */
    size_t micro = et_case_micro_tokens(c);
    if (!given(p, "pool_tokens"))
        c->pool_tokens = micro > c->padding ? micro - c->padding : 1; /* if not: refused below */
    if (c->pool_tokens == 0) c->pool_tokens = 1;
    if (!is_ec_or_et(c))
        c->target_load = 0;
    else if (!given(p, "target_load"))
        c->target_load = c->pool_tokens * c->granularity / c->experts;
    /* Evaluation routes by threshold and never looks at k; one token is a legal batch there. */
    if (is_ec_or_et(c) && c->eval && c->target_load == 0) c->target_load = 1;
}

static et_status check_contradictions(const struct parse *p)
{
    const et_case *c = &p->value;
    et_contradiction x;
    if (!et_case_contradiction(c, &x)) return ET_OK;
    et_quote value = quote_field(c, et_field_named(x.field));
    et_quote with = quote_field(c, et_field_named(x.with));
    return refuse(p, "%s = %s with %s = %s: %s", x.field, value.text, x.with, with.text, x.why);
}

static et_status parse_case(et_case *c, const char *where, size_t number, json_t *object,
                            et_error *error)
{
    struct parse p = {.where = where, .number = number, .error = error};
    if (!json_is_object(object))
        return refuse(&p, "%s; allowed: an object with fields name, tokens, ...",
                      et_json_quote(object).text);
    et_status status = set_defaults(&p);
    if (status == ET_OK) status = parse_object(&p, object);
    if (status == ET_OK) status = check_scopes(&p);
    if (status != ET_OK) return status;
    reset_unused(&p);
    derive(&p);
    status = check_contradictions(&p);
    if (status == ET_OK) memcpy(c, &p.value, sizeof *c);
    return status;
}

et_status et_case_settle(et_case *settled, const et_case *c, et_error *error)
{
    struct parse p = {.where = "et_case", .error = error};
    if (c == NULL) return et_fail(error, ET_EINVAL, "et_case: NULL; a case belongs here");
    et_status status = set_defaults(&p);
    if (status != ET_OK) return status;
    et_case own = *c;
    if (own.routed_scale == 0) own.routed_scale = 1; /* left out by who put the case together */
    if (own.groups == 0) own.groups = 1;             /* likewise */
    c = &own;
    for (size_t i = 0; i < ET_FIELDS; i++) {
        p.given[i] = et_fields[i].applies(c);
        if (p.given[i] && !et_member_fits(&et_fields[i].member, c))
            return et_fail(error, ET_EINVAL, "et_case: %s is out of its range; allowed: %s",
                           et_fields[i].doc.name, et_fields[i].doc.type);
    }
    p.value = *c;
    p.value.has_capacity = c->has_capacity && given(&p, "capacity_factor");
    if (!p.value.has_capacity) p.value.capacity_factor = 0; /* as null leaves it */
    reset_unused(&p);
    derive(&p);
    status = check_contradictions(&p);
    if (status == ET_OK) *settled = p.value;
    return status;
}

et_status et_case_check(const et_case *c, et_error *error)
{
    et_case settled;
    return et_case_settle(&settled, c, error);
}

static et_status load_text(json_t **root, const char *json, size_t length, const char *where,
                           et_error *error)
{
    return et_json_read(root, json, length, MAX_TEXT, where, "the case", error);
}

et_status et_case_parse(et_case *c, const char *json, size_t length, const char *where,
                        et_error *error)
{
    ET_ARITHMETIC;
    json_t *root;
    et_status status = load_text(&root, json, length, where, error);
    if (status != ET_OK) return status;
    status = parse_case(c, where, 0, root, error);
    json_decref(root);
    return status;
}

static et_status check_names(json_t *array, const char *where, et_error *error)
{
    size_t i;
    json_t *element;
    et_status status = ET_OK;
    json_t *seen = json_object();
    if (seen == NULL) return no_memory(where, error);
    json_array_foreach(array, i, element)
    {
        const char *name = json_string_value(json_object_get(element, "name"));
        if (name == NULL) continue; /* parsing it will say so */
        json_t *first = json_object_get(seen, name);
        if (first != NULL)
            status = et_fail(error, ET_EINVAL, "%s: cases number %d and %zu are both named '%.64s'",
                             where, (int)json_integer_value(first), i + 1, name);
        else if (json_object_set_new(seen, name, json_integer((json_int_t)i + 1)) != 0)
            status = no_memory(where, error);
        if (status != ET_OK) break;
    }
    json_decref(seen);
    return status;
}

static et_status check_array(json_t *array, const char *where, et_error *error)
{
    size_t count = json_array_size(array);
    if (count > MAX_CASES)
        return et_fail(error, ET_EINVAL, "%s: %zu cases; allowed: at most %d", where, count,
                       MAX_CASES);
    return check_names(array, where, error);
}

et_status et_case_parse_all(et_case **cases, size_t *count, const char *json, size_t length,
                            const char *where, et_error *error)
{
    ET_ARITHMETIC;
    json_t *root;
    void *room = NULL;
    et_status status = load_text(&root, json, length, where, error);
    if (status != ET_OK) return status;
    bool many = json_is_array(root);
    size_t size = many ? json_array_size(root) : 1;
    if (many) status = check_array(root, where, error);
    if (status == ET_OK) status = et_allocate(&room, size, sizeof **cases, where, error);
    et_case *parsed = room;
    for (size_t i = 0; i < size && status == ET_OK; i++)
        status = parse_case(&parsed[i], where, many ? i + 1 : 0,
                            many ? json_array_get(root, i) : root, error);
    json_decref(root);
    if (status != ET_OK) {
        free(parsed);
        return status;
    }
    *cases = parsed;
    *count = size;
    return ET_OK;
}

/* ---- printing ---- */

static void append_text(et_line *line, const char *text)
{
    et_line_append(text, strlen(text), line);
}

/* `usual` holds every default. */
static bool is_printed(const et_field *f, const et_case *c, const et_case *usual)
{
    bool empty = f->member.kind == ET_TEXT && ((const char *)c)[f->member.offset] == '\0';
    bool later = f->later || (f->later_in && f->later_in(c));
    bool silent = later && et_member_equal(&f->member, c, usual);
    return f->applies(c) && !empty && !silent;
}

/* "name": value, with what separates it from the field before. */
static bool append_field(et_line *line, const et_field *f, const et_case *c)
{
    bool nested = strncmp(f->doc.name, "input.", INPUT_PREFIX) == 0;
    bool opens = strcmp(f->doc.name, "input.source") == 0;
    append_text(line, line->used == 0 ? "{" : ", ");
    if (opens) append_text(line, "\"input\": {");
    return et_member_print(line, f->doc.name + (nested ? INPUT_PREFIX : 0),
                           et_member_load(&f->member, c));
}

et_status et_case_print(char **json, const et_case *c, et_error *error)
{
    ET_ARITHMETIC;
    char text[MAX_LINE]; /* 45 names and short values, and 760 bytes of text, escaped to 6 each */
    et_line line = {.text = text, .room = sizeof text};
    et_case usual;
    et_status status = et_case_check(c, error);
    if (status == ET_OK) status = et_case_defaults(&usual, error);
    if (status != ET_OK) return status;
    for (size_t i = 0; i < ET_FIELDS; i++)
        if (is_printed(&et_fields[i], c, &usual) && !append_field(&line, &et_fields[i], c))
            return et_fail(error, ET_ENOMEM, "case '%s': no memory to print it, or not UTF-8",
                           c->name);
    append_text(&line, c->input.source == ET_INPUT_NONE ? "}" : "}}");
    void *copy;
    status = et_allocate(&copy, line.used + 1, 1, "a case's text", error);
    if (status != ET_OK) return status;
    memcpy(copy, text, line.used + 1);
    *json = copy;
    return ET_OK;
}

/* ---- what a case says about its step ---- */

size_t et_case_micro_tokens(const et_case *c)
{
    return c->tokens / c->micro_batches;
}

size_t et_case_real_tokens(const et_case *c)
{
    return et_case_micro_tokens(c) - c->padding;
}

bool et_case_routes_by_choice(const et_case *c)
{
    if (!is_ec_or_et(c) || c->eval || c->given) return false;
    return c->rule == ET_EC || c->step < c->warmup_steps;
}

bool et_case_routes_by_threshold(const et_case *c)
{
    return is_ec_or_et(c) && !c->given && !et_case_routes_by_choice(c);
}

size_t et_case_token_capacity(const et_case *c)
{
    size_t N = et_case_real_tokens(c);
    return drops(c) ? et_token_capacity(N, c->experts, c->top_k, c->capacity_factor) : N;
}
