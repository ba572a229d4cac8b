/* json_schema.h: does a JSON value have the form that a schema of data/schema describes?
 *
 * The part of JSON Schema (2020-12) that those files use: type, const, enum, minimum, properties, required,
 * additionalProperties false, items, anyOf, and $ref to the file's own $defs. A word that is not among these fails the
 * test, so that no schema is taken for stricter than it is read.
 */
#ifndef ETREF_TESTS_JSON_SCHEMA_H
#define ETREF_TESTS_JSON_SCHEMA_H

#include "tests/check_main.h"

#include <jansson.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

static json_t *schema_root;
static char schema_complaint[400]; /* what did not fit, at the innermost place */

static bool fits_schema(const json_t *schema, const json_t *value, const char *where);

static bool complain(const char *where, const char *what)
{
    snprintf(schema_complaint, sizeof schema_complaint, "%s: %s", where, what);
    return false;
}

static bool is_of_type(const char *type, const json_t *v)
{
    static const char *const names[] = {[JSON_OBJECT] = "object", [JSON_ARRAY] = "array",   [JSON_STRING] = "string",
                                        [JSON_INTEGER] = "integer", [JSON_REAL] = "number", [JSON_TRUE] = "boolean",
                                        [JSON_FALSE] = "boolean", [JSON_NULL] = "null"};
    return strcmp(type, names[json_typeof(v)]) == 0 || (strcmp(type, "number") == 0 && json_is_number(v));
}

static bool has_type(const json_t *type, const json_t *value)
{
    size_t i;
    json_t *one;
    if (json_is_string(type)) return is_of_type(json_string_value(type), value);
    json_array_foreach(type, i, one)
    {
        if (is_of_type(json_string_value(one), value)) return true;
    }
    return false;
}

static bool is_among(const json_t *list, const json_t *value)
{
    size_t i;
    json_t *one;
    json_array_foreach(list, i, one)
    {
        if (json_equal(one, value)) return true;
    }
    return false;
}

static bool fits_any(const json_t *list, const json_t *value, const char *where)
{
    size_t i;
    json_t *one;
    json_array_foreach(list, i, one)
    {
        if (fits_schema(one, value, where)) return true;
    }
    return false;
}

static bool fits_members(const json_t *schema, const json_t *value, const char *where)
{
    size_t i;
    json_t *one, *properties = json_object_get(schema, "properties");
    const char *key;
    json_array_foreach(json_object_get(schema, "required"), i, one)
    {
        if (json_object_get(value, json_string_value(one)) == NULL) return complain(where, json_string_value(one));
    }
    json_object_foreach((json_t *)value, key, one)
    {
        json_t *rule = json_object_get(properties, key);
        if (rule == NULL && json_is_false(json_object_get(schema, "additionalProperties"))) return complain(where, key);
        if (rule && !fits_schema(rule, one, key)) return false;
    }
    return true;
}

static bool fits_schema(const json_t *schema, const json_t *value, const char *where)
{
    static const char known[] = " $schema $id $defs title description type const enum minimum properties required "
                                "additionalProperties items anyOf $ref ";
    const char *key;
    json_t *rule;
    json_object_foreach((json_t *)schema, key, rule)
    {
        char word[64];
        size_t i;
        json_t *one;
        snprintf(word, sizeof word, " %s ", key);
        ck_assert_msg(strstr(known, word) != NULL, "the validator does not know '%s'", key);
        if (strcmp(key, "type") == 0 && !has_type(rule, value)) return complain(where, "type");
        if (strcmp(key, "const") == 0 && !json_equal(rule, value)) return complain(where, "const");
        if (strcmp(key, "enum") == 0 && !is_among(rule, value)) return complain(where, "enum");
        if (strcmp(key, "minimum") == 0 && json_is_number(value) && json_number_value(value) < json_number_value(rule))
            return complain(where, "minimum");
        if (strcmp(key, "anyOf") == 0 && !fits_any(rule, value, where)) return false;
        if (strcmp(key, "items") == 0)
            json_array_foreach((json_t *)value, i, one)
            {
                if (!fits_schema(rule, one, where)) return false;
            }
        if (strcmp(key, "$ref") == 0) {
            const char *name = strrchr(json_string_value(rule), '/') + 1;
            json_t *definition = json_object_get(json_object_get(schema_root, "$defs"), name);
            ck_assert_msg(definition != NULL, "no $defs of %s", name);
            if (!fits_schema(definition, value, where)) return false;
        }
    }
    return !json_is_object(value) || fits_members(schema, value, where);
}

/* By the file that the value's own member `schema` names: "etref-verdict-1" is verdict-1.json of `folder`. */
static bool fits_own_schema(const char *folder, const json_t *value)
{
    char path[4400];
    json_error_t problem;
    const char *name = json_string_value(json_object_get(value, "schema"));
    ck_assert_msg(name != NULL && strncmp(name, "etref-", 6) == 0, "no schema is named");
    snprintf(path, sizeof path, "%s/schema/%s.json", folder, name + 6);
    schema_complaint[0] = '\0';
    schema_root = json_load_file(path, 0, &problem);
    ck_assert_msg(schema_root != NULL, "%s: %s", path, problem.text);
    bool fits = fits_schema(schema_root, value, name);
    json_decref(schema_root);
    return fits;
}

#endif
