/* json_out.c: JSON for programs to read. See json_out.h. */
#include "ref/report/json_out.h"
#include "ref/format/json.h"
#include "ref/report/page.h"

#include <math.h>
#include <stdbool.h>
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

static bool is_ascii(const char *text)
{
    while (*text && (unsigned char)*text < 0x80) text++;
    return *text == '\0';
}

/* json_string takes no text that is not UTF-8. The copy lies in Jansson's memory, so that there is
 * one answer to where that is missing. */
json_t *et_json_clean(const char *text)
{
    json_malloc_t take;
    json_free_t give;
    json_t *value = json_string(text);
    if (value || is_ascii(text)) return value;
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

static int add_to_page(const char *bytes, size_t count, void *page)
{
    et_page_add(page, "%.*s", (int)count, bytes);
    return 0;
}

/* json_dumps would leave out a member's name for which it finds no memory, and go on. A page
 * remembers. */
char *et_json_text(json_t *value)
{
    et_page page = {0};
    const size_t form = JSON_INDENT(2) | JSON_REAL_PRECISION(17) | JSON_ENSURE_ASCII;
    bool complete = value && json_dump_callback(value, add_to_page, &page, form) == 0;
    char *text = et_page_take(&page);
    json_decref(value);
    if (complete) return text;
    free(text);
    return NULL;
}
