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

enum { MAX_TEXT = 64 << 10, LEAST_BITS = 2, MOST_BITS = 53, F16_BITS = 11 };

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

typedef enum kind { NAME, BITS, EXPONENT, SWITCH, ROUNDING } kind;

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
};

enum { FIELDS = sizeof fields / sizeof *fields, FIRST_PLACE = 1 };

const char *et_place_name(et_place place)
{
    return fields[FIRST_PLACE + place].name;
}

static const char *field_name(size_t index)
{
    return fields[index].name;
}

static const char *allowed(const field *f)
{
    static const char *const texts[] = {[NAME] = NAME_TEXT,
                                        [BITS] = "integer from 2 to 53",
                                        [EXPONENT] = "5 or 8",
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

/* The number of bits that a field holds. */
static int bits_of(const et_profile *p, const field *f)
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
    case BITS:
    case EXPONENT: return bits_of(a, f) == bits_of(b, f);
    case SWITCH:
    case ROUNDING: return bool_of(a, f) == bool_of(b, f);
    }
    return false;
}

/* `where` and `name` begin every message: "mine.json: profile 'mine': ...". */
__attribute__((format(printf, 4, 5))) static et_status
refuse(et_error *error, const char *where, const char *name, const char *format, ...)
{
    char which[64] = "", text[384];
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
    for (int place = 0; place < ET_PLACES; place++) narrow |= p->bits[place] <= F16_BITS;
    if (p->exponent_bits == 5 && !narrow)
        return refuse(error, where, p->name,
                      "exponent_bits = 5 with no place of at most %d bits; allowed: 8", F16_BITS);
    return check_known_name(p, where, error);
}

et_status et_profile_check(const et_profile *p, et_error *error)
{
    size_t length = strnlen(p->name, sizeof p->name);
    if (length == sizeof p->name || !et_is_name(p->name))
        return refuse(error, "", "", "profile: name = '%.*s'; allowed: %s", (int)length, p->name,
                      NAME_TEXT);
    for (size_t i = 0; i < FIELDS; i++) {
        const field *f = &fields[i];
        bool counts = f->kind == BITS || f->kind == EXPONENT;
        int bits = counts ? bits_of(p, f) : 0;
        if (counts && !(f->kind == BITS ? is_bits(bits) : is_exponent(bits)))
            return refuse(error, "", p->name, "%s = %d; allowed: %s", f->name, bits, allowed(f));
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

static bool store_bits(et_profile *p, const field *f, const json_t *v)
{
    json_int_t value = json_integer_value(v); /* 0 if it is none, which no field allows */
    if (!(f->kind == BITS ? is_bits(value) : is_exponent(value))) return false;
    int bits = (int)value;
    memcpy((char *)p + f->offset, &bits, sizeof bits);
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
    case BITS:
    case EXPONENT: return store_bits(p, f, v);
    case SWITCH:
    case ROUNDING: return store_bool(p, f, v);
    }
    return false;
}

static et_status refuse_unknown(const et_profile *p, const char *key, const char *where,
                                et_error *error)
{
    const char *nearest = et_nearest_name(key, field_name, FIELDS);
    if (nearest != NULL)
        return refuse(error, where, p->name, "unknown field %.64s; the nearest is %s", key,
                      nearest);
    return refuse(error, where, p->name,
                  "unknown field %.64s; allowed: name, the six places (operands, intermediates, "
                  "gates, logits, accumulator, outputs), exponent_bits, ftz, operand_rounding, "
                  "accumulator_rounding",
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
    const char *rounding = f->kind == ROUNDING && bool_of(p, f) ? "truncate" : "nearest";
    int used = snprintf(text, sizeof text, "%s\"%s\": ", line->used ? ", " : "{", f->name);
    char *value = text + used;
    size_t room = sizeof text - (size_t)used;
    switch (f->kind) {
    case NAME: snprintf(value, room, "\"%s\"", p->name); break; /* nothing in it needs escaping */
    case BITS:
    case EXPONENT: snprintf(value, room, "%d", bits_of(p, f)); break;
    case SWITCH: snprintf(value, room, "%s", bool_of(p, f) ? "true" : "false"); break;
    case ROUNDING: snprintf(value, room, "\"%s\"", rounding); break;
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
