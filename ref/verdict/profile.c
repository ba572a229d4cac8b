/* profile.c: the built-in precision profiles, and those that a user writes. See etref/profile.h.
 *
 * One table of fields drives parsing, printing and messages. What a profile means, the size of a
 * rounding error at each place, is ref/base/rounding.c.
 */
#include "etref/profile.h"
#include "ref/base/arithmetic.h"
#include "ref/base/memory.h"
#include "ref/oracle/json.h"

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

enum { MAX_TEXT = 64 << 10, LEAST_BITS = 2, MOST_BITS = 53, F16_BITS = 11, MOST_TERMS = 1 << 20 };

/* ---- the built-in ones ---- */

/* clang-format off */
static const et_profile profiles[] = {
    /*            operands, intermediates, gates, logits, accumulator, outputs; exponent bits */
    {.name = "f64",      .bits = {53, 53, 53, 53, 53, 53}, .exponent_bits = 8},
    {.name = "f32",      .bits = {24, 24, 24, 24, 24, 24}, .exponent_bits = 8},
    {.name = "tf32",     .bits = {11, 24, 24, 24, 24, 24}, .exponent_bits = 8},
    {.name = "tf32-rz",  .bits = {11, 24, 24, 24, 24, 24}, .exponent_bits = 8, .truncate_operands = true},
    {.name = "bf16",     .bits = { 8,  8, 24, 24, 24,  8}, .exponent_bits = 8},
    {.name = "bf16-low", .bits = { 8,  8,  8,  8, 24,  8}, .exponent_bits = 8},
    {.name = "f16",      .bits = {11, 11, 24, 24, 24, 11}, .exponent_bits = 5},
    /* of libraries; they differ from the above by parts of places and by switches */
    {.name = "torch-autograd-bf16", .bits = {8, 8, 24, 24, 24, 8, [ET_SHARES] = 8, [ET_DW_SUMS] = 8}, .exponent_bits = 8},
    {.name = "torch-autocast-bf16", .bits = {8, 8, 24,  8, 24, 8, [ET_SHARES] = 8}, .exponent_bits = 8},
    {.name = "torch-all-bf16",      .bits = {8, 8,  8,  8, 24, 8, [ET_GATE_ARITHMETIC] = 8, [ET_SHARES] = 8, [ET_DW_SUMS] = 8}, .exponent_bits = 8},
    {.name = "torch-small-bf16",    .bits = {8, 8, 24, 24,  8, 8, [ET_GATE_ARITHMETIC] = 24}, .exponent_bits = 8},
    {.name = "eigen-bf16",          .bits = {8, 8, 24, 24,  8, 8, [ET_ROUTER_OPERANDS] = 24, [ET_ROUTER_ACCUMULATOR] = 24, [ET_GATE_ARITHMETIC] = 24}, .exponent_bits = 8},
    {.name = "eigen-f16",           .bits = {11, 11, 24, 24, 11, 11, [ET_ROUTER_OPERANDS] = 24, [ET_ROUTER_ACCUMULATOR] = 24, [ET_GATE_ARITHMETIC] = 24}, .exponent_bits = 5},
    {.name = "onednn-bf16",         .bits = {8, 8, 24, 24, 24, 8}, .exponent_bits = 8, .flush_operands = true, .flush_products = true},
    {.name = "openblas-sbgemm",     .bits = {8, 24, 24, 24, 24, 24}, .exponent_bits = 8, .flush_operands = true, .flush_products = true},
    {.name = "ggml-bf16",           .bits = {8, 24, 24, 24, 24, 24}, .exponent_bits = 8},
    {.name = "ggml-f16",            .bits = {11, 24, 24, 24, 24, 24}, .exponent_bits = 5},
    {.name = "ggml-f16-sums",       .bits = {11, 24, 24, 24, 11, 24, [ET_ROUTER_ACCUMULATOR] = 24, [ET_GATE_ARITHMETIC] = 24, [ET_SHARES] = 24, [ET_DW_SUMS] = 24}, .exponent_bits = 5, .accumulator_chunk = 32},
    {.name = "ggml-q8",             .bits = {7, 24, 24, 24, 24, 24, [ET_ROUTER_OPERANDS] = 24}, .exponent_bits = 8},
};
/* clang-format on */

enum { PROFILES = sizeof profiles / sizeof *profiles };

const et_profile *et_profile_at(size_t index)
{
    return index < PROFILES ? &profiles[index] : NULL;
}

const et_profile *et_profile_find(const char *name)
{
    for (size_t i = 0; i < PROFILES; i++)
        if (strcmp(profiles[i].name, name) == 0) return &profiles[i];
    return NULL;
}

/* ---- fields ---- */

typedef enum kind { NAME, BITS, PART, EXPONENT, TERMS, SWITCH, ROUNDING } kind;

typedef struct field {
    const char *name;
    kind kind;
    size_t offset; /* of the member of et_profile */
    bool required;
} field;

#define NAME_TEXT "1 to 31 letters, digits, '-', '_', '.', the first a letter or digit"
#define PLACE(name, place)                                                                         \
    {                                                                                              \
        name, BITS, offsetof(et_profile, bits) + (place) * sizeof(int), true                       \
    }
#define PART_OF(name, place)                                                                       \
    {                                                                                              \
        name, PART, offsetof(et_profile, bits) + (place) * sizeof(int), false                      \
    }

static const field fields[] = {
    {"name", NAME, offsetof(et_profile, name), true},
    PLACE("operands", ET_OPERANDS),
    PLACE("intermediates", ET_INTERMEDIATES),
    PLACE("gates", ET_GATES),
    PLACE("logits", ET_LOGITS),
    PLACE("accumulator", ET_ACCUMULATOR),
    PLACE("outputs", ET_OUTPUTS),
    {"exponent_bits", EXPONENT, offsetof(et_profile, exponent_bits), false},
    {"ftz", SWITCH, offsetof(et_profile, ftz), false},
    {"operand_rounding", ROUNDING, offsetof(et_profile, truncate_operands), false},
    {"accumulator_rounding", ROUNDING, offsetof(et_profile, truncate_accumulator), false},
    PART_OF("activations", ET_ACTIVATIONS),
    PART_OF("router_operands", ET_ROUTER_OPERANDS),
    PART_OF("router_accumulator", ET_ROUTER_ACCUMULATOR),
    PART_OF("gate_arithmetic", ET_GATE_ARITHMETIC),
    PART_OF("shares", ET_SHARES),
    PART_OF("dw_sums", ET_DW_SUMS),
    {"accumulator_chunk", TERMS, offsetof(et_profile, accumulator_chunk), false},
    {"flush_operands", SWITCH, offsetof(et_profile, flush_operands), false},
    {"flush_products", SWITCH, offsetof(et_profile, flush_products), false},
    {"stochastic", SWITCH, offsetof(et_profile, stochastic), false},
};

enum {
    FIELDS = sizeof fields / sizeof *fields,
    FIRST_PLACE = 1,
    FIRST_RARE = FIRST_PLACE + ET_PLACES + 4 /* parts, and what came with them */
};

const char *et_place_name(et_place place)
{
    size_t part = place > ET_OUTPUTS ? (size_t)(place - ET_OUTPUTS) : 0;
    return fields[part > 0 ? FIRST_RARE + part - 1 : FIRST_PLACE + (size_t)place].name;
}

static const char *field_name(size_t index)
{
    return fields[index].name;
}

static const char *allowed(const field *f)
{
    static const char *const texts[] = {[NAME] = NAME_TEXT,
                                        [BITS] = "integer from 2 to 53",
                                        [PART] = "integer from 2 to 53",
                                        [EXPONENT] = "5 or 8",
                                        [TERMS] = "integer from 0 to 1048576",
                                        [SWITCH] = "true or false",
                                        [ROUNDING] = "\"nearest\" or \"truncate\""};
    return texts[f->kind];
}

/* ---- what is legal ---- */

static bool is_bits(long long bits)
{
    return bits >= LEAST_BITS && bits <= MOST_BITS;
}

static bool is_exponent(long long bits)
{
    return bits == 5 || bits == 8;
}

/* Fields of numbers. */
static bool counts(const field *f)
{
    return f->kind == BITS || f->kind == PART || f->kind == EXPONENT || f->kind == TERMS;
}

static bool is_legal(const field *f, long long value)
{
    switch (f->kind) {
    case BITS: return is_bits(value);
    case PART: return value == 0 || is_bits(value);
    case EXPONENT: return is_exponent(value);
    default: return value >= 0 && value <= MOST_TERMS;
    }
}

/* The number that a field holds. */
static int number_of(const et_profile *p, const field *f)
{
    int bits;
    memcpy(&bits, (const char *)p + f->offset, sizeof bits);
    return bits;
}

static bool bool_of(const et_profile *p, const field *f)
{
    bool value;
    memcpy(&value, (const char *)p + f->offset, sizeof value);
    return value;
}

static bool same_value(const et_profile *a, const et_profile *b, const field *f)
{
    switch (f->kind) {
    case NAME: return strcmp(a->name, b->name) == 0;
    case SWITCH:
    case ROUNDING: return bool_of(a, f) == bool_of(b, f);
    default: return number_of(a, f) == number_of(b, f);
    }
}

/* `where` and `name` begin every message: "mine.json: profile 'mine': ...". */
__attribute__((format(printf, 4, 5))) static et_status
refuse(et_error *error, const char *where, const char *name, const char *format, ...)
{
    char which[64] = "", text[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    if (name[0] != '\0') snprintf(which, sizeof which, "profile '%s': ", name);
    return et_fail(error, ET_EINVAL, "%s%s%s%s", where, where[0] ? ": " : "", which, text);
}

/* A report says "bf16" and its reader believes to know what that is. */
static et_status check_known_name(const et_profile *p, const char *where, et_error *error)
{
    const et_profile *known = et_profile_find(p->name);
    for (size_t i = 0; known != NULL && i < FIELDS; i++)
        if (!same_value(p, known, &fields[i]))
            return refuse(error, where, p->name,
                          "differs from the built-in profile of this name in %s; give it a name of "
                          "its own",
                          fields[i].name);
    return ET_OK;
}

/* What concerns more than one field. */
static et_status check_whole(const et_profile *p, const char *where, et_error *error)
{
    bool narrow = false;
    for (int place = 0; place < ET_ALL_PLACES; place++)
        narrow |= et_place_bits(p, (et_place)place) <= F16_BITS;
    if (p->exponent_bits == 5 && !narrow)
        return refuse(error, where, p->name,
                      "exponent_bits = 5 with no place of at most %d bits; allowed: 8", F16_BITS);
    return check_known_name(p, where, error);
}

bool et_profile_equals(const et_profile *a, const et_profile *b)
{
    return strcmp(a->name, b->name) == 0 && memcmp(a->bits, b->bits, sizeof a->bits) == 0 &&
           a->exponent_bits == b->exponent_bits && a->ftz == b->ftz &&
           a->truncate_operands == b->truncate_operands &&
           a->truncate_accumulator == b->truncate_accumulator &&
           a->accumulator_chunk == b->accumulator_chunk && a->flush_operands == b->flush_operands &&
           a->flush_products == b->flush_products && a->stochastic == b->stochastic;
}

et_status et_profile_check(const et_profile *p, et_error *error)
{
    size_t length = strnlen(p->name, sizeof p->name);
    if (length == sizeof p->name || !et_is_name(p->name))
        return refuse(error, "", "", "profile: name = '%.*s'; allowed: %s", (int)length, p->name,
                      NAME_TEXT);
    for (size_t i = 0; i < FIELDS; i++) {
        const field *f = &fields[i];
        if (counts(f) && !is_legal(f, number_of(p, f)))
            return refuse(error, "", p->name, "%s = %d; allowed: %s", f->name, number_of(p, f),
                          allowed(f));
    }
    return check_whole(p, "", error);
}

/* ---- parsing ---- */

static bool store_name(et_profile *p, const json_t *v)
{
    const char *text = json_string_value(v);
    if (text == NULL || strlen(text) >= sizeof p->name || !et_is_name(text)) return false;
    memset(p->name, 0, sizeof p->name);
    memcpy(p->name, text, strlen(text));
    return true;
}

static bool store_number(et_profile *p, const field *f, const json_t *v)
{
    json_int_t value = json_integer_value(v);
    bool said = json_is_integer(v) && (f->kind != PART || value != 0); /* 0: what is not said */
    if (!said || !is_legal(f, value)) return false;
    int number = (int)value;
    memcpy((char *)p + f->offset, &number, sizeof number);
    return true;
}

static bool store_bool(et_profile *p, const field *f, const json_t *v)
{
    const char *word = json_string_value(v);
    bool value = f->kind == SWITCH ? json_is_true(v) : word && strcmp(word, "truncate") == 0;
    bool legal =
        f->kind == SWITCH ? json_is_boolean(v) : word && (value || strcmp(word, "nearest") == 0);
    if (legal) memcpy((char *)p + f->offset, &value, sizeof value);
    return legal;
}

static bool store(et_profile *p, const field *f, const json_t *v)
{
    switch (f->kind) {
    case NAME: return store_name(p, v);
    case SWITCH:
    case ROUNDING: return store_bool(p, f, v);
    default: return store_number(p, f, v);
    }
}

static et_status refuse_unknown(const et_profile *p, const char *key, const char *where,
                                et_error *error)
{
    const char *nearest = et_nearest_name(key, field_name, FIELDS);
    if (nearest != NULL)
        return refuse(error, where, p->name, "unknown field %.64s; the nearest is %s", key,
                      nearest);
    return refuse(
        error, where, p->name,
        "unknown field %.64s; allowed: name, the six places (operands, intermediates, "
        "gates, logits, accumulator, outputs), their parts (activations, router_operands, "
        "router_accumulator, gate_arithmetic, shares, dw_sums), exponent_bits, ftz, "
        "operand_rounding, accumulator_rounding, accumulator_chunk, flush_operands, "
        "flush_products, stochastic",
        key);
}

static et_status parse_field(et_profile *p, const field *f, json_t *v, const char *where,
                             et_error *error)
{
    if (v == NULL && f->required)
        return refuse(error, where, p->name, "%s is missing; allowed: %s", f->name, allowed(f));
    if (v == NULL || store(p, f, v)) return ET_OK;
    return refuse(error, where, p->name, "%s = %s; allowed: %s", f->name, et_json_quote(v).text,
                  allowed(f));
}

static et_status parse_object(et_profile *p, json_t *object, const char *where, et_error *error)
{
    const char *key;
    json_t *v;
    et_status status = parse_field(p, &fields[0], json_object_get(object, "name"), where, error);
    if (status != ET_OK) return status;
    json_object_foreach(object, key, v)
    {
        size_t i = 0;
        while (i < FIELDS && strcmp(fields[i].name, key) != 0) i++;
        if (i == FIELDS) return refuse_unknown(p, key, where, error);
    }
    for (size_t i = FIRST_PLACE; i < FIELDS && status == ET_OK; i++)
        status = parse_field(p, &fields[i], json_object_get(object, fields[i].name), where, error);
    return status;
}

et_status et_profile_parse(et_profile *p, const char *json, size_t length, const char *where,
                           et_error *error)
{
    ET_ARITHMETIC;
    json_t *root;
    et_profile parsed = {.exponent_bits = 8};
    et_status status = et_json_read(&root, json, length, MAX_TEXT, where, "the profile", error);
    if (status != ET_OK) return status;
    if (json_is_object(root))
        status = parse_object(&parsed, root, where, error);
    else
        status = refuse(error, where, "", "%s; allowed: an object with fields name, operands, ...",
                        et_json_quote(root).text);
    json_decref(root);
    if (status == ET_OK) status = check_whole(&parsed, where, error);
    if (status == ET_OK) *p = parsed;
    return status;
}

/* ---- printing ---- */

static void print_field(et_line *line, const et_profile *p, const field *f)
{
    char text[96];
    static const et_profile usual; /* parts and switches that most profiles have so */
    if (f >= &fields[FIRST_RARE] && same_value(p, &usual, f)) return;
    const char *rounding = f->kind == ROUNDING && bool_of(p, f) ? "truncate" : "nearest";
    int used = snprintf(text, sizeof text, "%s\"%s\": ", line->used ? ", " : "{", f->name);
    char *value = text + used;
    size_t room = sizeof text - (size_t)used;
    switch (f->kind) {
    case NAME: snprintf(value, room, "\"%s\"", p->name); break; /* nothing in it needs escaping */
    case SWITCH: snprintf(value, room, "%s", bool_of(p, f) ? "true" : "false"); break;
    case ROUNDING: snprintf(value, room, "\"%s\"", rounding); break;
    default: snprintf(value, room, "%d", number_of(p, f)); break;
    }
    et_line_append(text, strlen(text), line);
}

et_status et_profile_print(char **json, const et_profile *p, et_error *error)
{
    ET_ARITHMETIC;
    char text[1024];
    void *copy;
    et_line line = {.text = text, .room = sizeof text};
    et_status status = et_profile_check(p, error);
    if (status != ET_OK) return status;
    for (size_t i = 0; i < FIELDS; i++) print_field(&line, p, &fields[i]);
    et_line_append("}", 1, &line);
    status = et_allocate(&copy, line.used + 1, 1, "a profile's text", error);
    if (status != ET_OK) return status;
    *json = memcpy(copy, text, line.used + 1);
    return ET_OK;
}
