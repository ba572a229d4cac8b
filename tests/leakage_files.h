/* leakage_files.h: the golden values in data/leakage, read as schema.json says. $ETREF_DATA names the
 * data folder.
 */
#ifndef ETREF_TESTS_LEAKAGE_FILES_H
#define ETREF_TESTS_LEAKAGE_FILES_H

#include "tests/check.h"

#include <jansson.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

static inline json_t *open_file(const char *name)
{
    char path[4096];
    json_error_t problem;
    const char *data = getenv("ETREF_DATA");
    snprintf(path, sizeof path, "%s/leakage/%s.json", data != NULL ? data : "data", name);
    json_t *file = json_load_file(path, JSON_REJECT_DUPLICATES, &problem);
    ck_assert_msg(file != NULL, "%s, line %d: %s", path, problem.line, problem.text);
    return file;
}

static inline json_t *field(const json_t *value, const char *name)
{
    json_t *found = json_object_get(value, name);
    ck_assert_msg(found != NULL, "a value lacks '%s'", name);
    return found;
}

static inline uint64_t whole(const json_t *value, const char *name)
{
    const json_t *number = field(value, name);
    ck_assert_msg(json_is_integer(number) && json_integer_value(number) >= 0, "'%s' is no count",
                  name);
    return (uint64_t)json_integer_value(number);
}

static inline double real(const json_t *value, const char *name)
{
    const json_t *number = field(value, name);
    if (json_is_string(number)) {
        ck_assert_str_eq(json_string_value(number), "-Infinity");
        return -INFINITY;
    }
    ck_assert_msg(json_is_number(number), "'%s' is no number", name);
    return json_number_value(number);
}

static inline const char *word(const json_t *value, const char *name)
{
    const char *text = json_string_value(field(value, name));
    ck_assert_msg(text != NULL && *text != '\0', "'%s' is no text", name);
    return text;
}

static inline size_t index_of(const char *text, const char *const *names, size_t count)
{
    size_t i = 0;
    while (i < count && strcmp(names[i], text) != 0) i++;
    ck_assert_msg(i < count, "'%s' is not known", text);
    return i;
}

/* ---- files, groups and values are as schema.json says ---- */

/* Has all that is required and nothing that is not described; arrays, texts and numbers are where
 * the type is written out. */
static inline void follows(const json_t *definition, json_t *value, const char *what)
{
    size_t i;
    json_t *name, *member;
    const char *key;
    ck_assert_msg(json_is_object(value), "a %s is no object", what);
    json_array_foreach(field(definition, "required"), i, name)
    {
        const char *text = json_string_value(name);
        ck_assert_msg(json_object_get(value, text) != NULL, "a %s lacks '%s'", what, text);
    }
    json_object_foreach(value, key, member)
    {
        const json_t *described = json_object_get(field(definition, "properties"), key);
        ck_assert_msg(described != NULL, "a %s has '%s', which schema.json does not describe", what,
                      key);
        const json_t *type = json_object_get(described, "type");
        if (json_is_string(type) && strcmp(json_string_value(type), "array") == 0)
            ck_assert_msg(json_is_array(member), "'%s' of a %s is no array", key, what);
        if (json_is_string(type) && strcmp(json_string_value(type), "object") == 0)
            ck_assert_msg(json_is_object(member), "'%s' of a %s is no object", key, what);
    }
}

typedef void check_value(const json_t *value);

typedef struct kind {
    const char *name; /* in $defs */
    check_value *check;
} kind;

static inline size_t check_group(const json_t *definitions, json_t *group, const kind *kinds,
                                 size_t count)
{
    size_t i;
    json_t *value;
    follows(field(definitions, "group"), group, "group");
    ck_assert_uint_gt(strlen(word(group, "what")), 0);
    ck_assert_uint_gt(strlen(word(group, "equation")), 0);
    ck_assert_uint_gt(strlen(word(group, "computed")), 0);
    ck_assert_int_eq(strncmp(word(group, "command"), "etref leakage ", 14), 0);
    const char *name = word(group, "values_are");
    for (i = 0; i < count && strcmp(kinds[i].name, name) != 0;) i++;
    ck_assert_msg(i < count, "no values of the kind '%s' belong here", name);
    check_value *check = kinds[i].check;
    ck_assert_uint_gt(json_array_size(field(group, "values")), 0);
    json_array_foreach(field(group, "values"), i, value)
    {
        follows(field(definitions, name), value, name);
        check(value);
    }
    return json_array_size(field(group, "values"));
}

/* Returns how many values there were. */
static inline size_t check_file(const char *name, const kind *kinds, size_t count)
{
    json_t *schema = open_file("schema"), *file = open_file(name), *group;
    char format[64];
    size_t i, values = 0;
    ck_assert_str_eq(word(schema, "$schema"), "https://json-schema.org/draft/2020-12/schema");
    follows(schema, file, "file");
    snprintf(format, sizeof format, "etref-leakage-%s", name);
    ck_assert_str_eq(word(file, "$schema"), "schema.json");
    ck_assert_str_eq(word(file, "format"), format);
    ck_assert_uint_eq(whole(file, "version"), 1);
    json_array_foreach(field(file, "groups"), i, group) values +=
        check_group(field(schema, "$defs"), group, kinds, count);
    json_decref(file);
    json_decref(schema);
    return values;
}

#endif
