/* profile.c: the built-in precision profiles, and those that a user writes. See etref/profile.h.
 *
 * One table of members drives parsing, printing and messages. What a profile means, the size of a
 * rounding error at each place, is ref/base/place_rounding.c.
 */
#include "etref/profile.h"
#include "ref/base/float_environment.h"
#include "ref/base/memory.h"
#include "ref/base/place_rounding.h"
#include "ref/format/json_members.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

enum { MAX_TEXT = 64 << 10, F16_BITS = 11 };

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
    {.name = "ggml-q8",             .bits = {7, 24, 24, 24, 24, 24}, .exponent_bits = 8},
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

/* ---- the members ---- */

static const int exponents[] = {5, 8, 0};

/* clang-format off */
#define AT(field) \
    .offset = offsetof(et_profile, field), .size = sizeof(((const et_profile *)NULL)->field)
#define SMALL(word, text, field) .name = word, .type = text, .kind = ET_SMALL, AT(field)
#define BITS(place, word) {SMALL(word, "integer from 2 to 53", bits[place]), .low = 2, .high = 53},
#define PART_BITS(place, word) \
    {SMALL(word, "integer from 2 to 53", bits[place]), .low = 2, .high = 53, .optional = true},
#define SWITCH(field) {.name = #field, .type = "true or false", .kind = ET_SWITCH, AT(field)}
#define ROUNDING(word, field) \
    {.name = word, .type = "nearest|truncate", .kind = ET_WORD, AT(field)}

static const et_member members[] = {
    {.name = "name", .type = "1 to 31 letters, digits, '-', '_', '.', the first a letter or digit",
     .kind = ET_NAME, AT(name)},
    ET_WHOLE_PLACES(BITS)
    {SMALL("exponent_bits", "5 or 8", exponent_bits), .values = exponents},
    SWITCH(ftz),
    ROUNDING("operand_rounding", truncate_operands),
    ROUNDING("accumulator_rounding", truncate_accumulator),
    ET_PART_PLACES(PART_BITS)
    {SMALL("accumulator_chunk", "integer from 0 to 1048576", accumulator_chunk), .high = 1 << 20},
    SWITCH(flush_operands),
    SWITCH(flush_products),
    SWITCH(stochastic),
};
/* clang-format on */

enum {
    MEMBERS = sizeof members / sizeof *members,
    REQUIRED = 1 + ET_PLACES, /* name and places come first */
    FIRST_RARE = REQUIRED + 4 /* parts, and what came with them */
};

static const char *member_name(size_t index)
{
    return members[index].name;
}

/* ---- what is legal ---- */

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

static const et_member *first_difference(const et_profile *a, const et_profile *b)
{
    for (size_t i = 0; i < MEMBERS; i++)
        if (!et_member_equal(&members[i], a, b)) return &members[i];
    return NULL;
}

bool et_profile_equals(const et_profile *a, const et_profile *b)
{
    return first_difference(a, b) == NULL;
}

/* What concerns more than one member. A report says "bf16" and its reader believes to know what that is. */
static et_status check_whole(const et_profile *p, const char *where, et_error *error)
{
    bool narrow = false;
    for (int place = 0; place < ET_ALL_PLACES; place++)
        narrow |= et_place_bits(p, (et_place)place) <= F16_BITS;
    if (p->exponent_bits == 5 && !narrow)
        return refuse(error, where, p->name,
                      "exponent_bits = 5 with no place of at most %d bits; allowed: 8", F16_BITS);
    const et_profile *known = et_profile_find(p->name);
    const et_member *other = known ? first_difference(p, known) : NULL;
    if (other == NULL) return ET_OK;
    return refuse(error, where, p->name,
                  "differs from the built-in profile of this name in %s; give it a name of its own",
                  other->name);
}

et_status et_profile_check(const et_profile *p, et_error *error)
{
    if (!et_member_fits(&members[0], p))
        return refuse(error, "", "", "profile: name = '%.*s'; allowed: %s",
                      (int)strnlen(p->name, sizeof p->name), p->name, members[0].type);
    for (size_t i = 1; i < MEMBERS; i++) {
        const et_member *m = &members[i];
        int value;
        if (m->kind != ET_SMALL || et_member_fits(m, p)) continue;
        memcpy(&value, (const char *)p + m->offset, sizeof value);
        return refuse(error, "", p->name, "%s = %d; allowed: %s", m->name, value, m->type);
    }
    return check_whole(p, "", error);
}

/* ---- parsing ---- */

static et_status refuse_unknown(const et_profile *p, const char *key, const char *where,
                                et_error *error)
{
    const char *nearest = et_nearest_name(key, member_name, MEMBERS);
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

static et_status parse_member(et_profile *p, size_t index, const json_t *object, const char *where,
                              et_error *error)
{
    const et_member *m = &members[index];
    json_t *v = json_object_get(object, m->name);
    if (v == NULL && index < REQUIRED)
        return refuse(error, where, p->name, "%s is missing; allowed: %s", m->name, m->type);
    if (v == NULL || et_member_store(m, p, v)) return ET_OK;
    return refuse(error, where, p->name, "%s = %s; allowed: %s", m->name, et_json_quote(v).text,
                  m->type);
}

static et_status parse_object(et_profile *p, json_t *object, const char *where, et_error *error)
{
    const char *key;
    json_t *v;
    et_status status = parse_member(p, 0, object, where, error);
    if (status != ET_OK) return status;
    json_object_foreach(object, key, v)
    {
        size_t i = 0;
        while (i < MEMBERS && strcmp(members[i].name, key) != 0) i++;
        if (i == MEMBERS) return refuse_unknown(p, key, where, error);
    }
    for (size_t i = 1; i < MEMBERS && status == ET_OK; i++)
        status = parse_member(p, i, object, where, error);
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

et_status et_profile_print(char **json, const et_profile *p, et_error *error)
{
    ET_ARITHMETIC;
    static const et_profile usual; /* parts and switches that most profiles have so */
    char text[1024];
    void *copy;
    et_line line = {.text = text, .room = sizeof text};
    et_status status = et_profile_check(p, error);
    for (size_t i = 0; i < MEMBERS && status == ET_OK; i++) {
        const et_member *m = &members[i];
        if (i >= FIRST_RARE && et_member_equal(m, p, &usual)) continue;
        et_line_append(line.used ? ", " : "{", line.used ? 2 : 1, &line);
        if (!et_member_print(&line, m->name, et_member_load(m, p)))
            status = et_fail(error, ET_ENOMEM, "profile '%s': no memory to print it", p->name);
    }
    et_line_append("}", 1, &line);
    if (status == ET_OK) status = et_allocate(&copy, line.used + 1, 1, "a profile's text", error);
    if (status == ET_OK) *json = memcpy(copy, text, line.used + 1);
    return status;
}
