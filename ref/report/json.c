/* json.c: JSON for programs to read. See json.h. */
#include "ref/report/json.h"
#include "ref/oracle/json.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

void et_json_put(json_t **object, const char *key, json_t *value)
{
    if (json_object_set_new(*object, key, value) == 0) return;
    json_decref(*object);
    *object = NULL;
}

void et_json_append(json_t **array, json_t *value)
{
    if (json_array_append_new(*array, value) == 0) return;
    json_decref(*array);
    *array = NULL;
}

const char *et_number_word(double value)
{
    if (isnan(value)) return "NaN";
    if (isinf(value)) return value > 0 ? "Infinity" : "-Infinity";
    return NULL;
}

json_t *et_json_number(double value)
{
    const char *word = et_number_word(value);
    return word ? json_string(word) : json_real(value);
}

/* The copy lies in Jansson's memory, so that there is one answer to where that is missing. */
json_t *et_json_clean(const char *text)
{
    json_malloc_t take;
    json_free_t give;
    json_t *value = json_string(text); /* NULL if the text is not UTF-8 */
    if (value) return value;
    json_get_alloc_funcs(&take, &give);
    size_t bytes = strlen(text) + 1;
    char *copy = take(bytes);
    if (copy == NULL) return NULL;
    for (size_t i = 0; i < bytes; i++) copy[i] = (unsigned char)text[i] < 0x80 ? text[i] : '?';
    value = json_string(copy);
    give(copy);
    return value;
}

json_t *et_profile_json(const et_profile *p)
{
    char *text = NULL;
    json_error_t trouble;
    bool no_memory;
    if (et_profile_print(&text, p, NULL) != ET_OK) return NULL;
    json_t *object = et_json_load(text, strlen(text), 0, &trouble, &no_memory);
    free(text);
    return object;
}

char *et_json_text(json_t *value)
{
    char *text =
        value ? json_dumps(value, JSON_INDENT(2) | JSON_REAL_PRECISION(17) | JSON_ENSURE_ASCII)
              : NULL;
    json_decref(value);
    return text;
}
