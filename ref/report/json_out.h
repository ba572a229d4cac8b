/* json_out.h: JSON for programs to read. Internal; used through Jansson.
 *
 * Where memory is missing an object becomes NULL and stays so: the end alone need be looked at.
 * Reading JSON: ref/format/json.h.
 */
#ifndef ET_JSON_REPORT_H
#define ET_JSON_REPORT_H

#include "etref/profile.h"
#include <jansson.h>

/* Adds to *object, and takes `value`; if either is NULL, *object is released and becomes NULL. */
void et_json_put(json_t **object, const char *key, json_t *value);
void et_json_append(json_t **array, json_t *value);

/* "NaN", "Infinity", "-Infinity": as strings. The word, or NULL where the number is finite. */
json_t *et_json_number(double value);
const char *et_number_word(double value);

json_t *et_json_clean(
    const char *text); /* any bytes: if they are not UTF-8, other than ASCII becomes '?' */

/* A valid profile as the object that such a file holds. */
json_t *et_profile_json(const et_profile *p);

/* As text in ASCII, no newline at its end; releases the value. Allocated; NULL: no memory, or
 * no value. */
char *et_json_text(json_t *value);

#endif
