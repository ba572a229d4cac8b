/* fields.h: the table of a case's fields. Internal; what drives what stands in case.c. */
#ifndef ET_FIELDS_H
#define ET_FIELDS_H

#include "etref/case.h"

#include <jansson.h>

typedef enum et_kind {
    ET_NAME,          /* char[]: what may name a file */
    ET_TEXT,          /* char[], not empty */
    ET_COUNT,         /* size_t */
    ET_LONG,          /* uint64_t */
    ET_SWITCH,        /* bool */
    ET_WORD,          /* an enum, or a bool with two words */
    ET_NUMBER,        /* double */
    ET_NUMBER_OR_NULL /* capacity_factor and has_capacity */
} et_kind;

typedef struct et_field {
    et_field_doc doc;
    et_kind kind;
    size_t offset, size; /* of the member of et_case */
    double low, high;    /* numbers: the closed range */
    const int *values;   /* words: their values, where these are not 0, 1, 2, ... */
    bool (*applies)(const et_case *c);
    bool exclusive;      /* refused where it does not apply, whatever its value */
    const char *neutral; /* JSON of a value, beside the default, that says nothing there */
} et_field;

/* In the order in which they are printed. */
enum { ET_FIELDS = 41 };
extern const et_field et_fields[ET_FIELDS];

/* et_case_check, and the case as parsing it would leave it: what does not apply, at its default. */
et_status et_case_settle(et_case *settled, const et_case *c, et_error *error);

const et_field *et_field_named(const char *name); /* or NULL */

/* Puts a JSON value into its member of *c; false, and nothing stored, if it is not of the kind or
 * range that f->doc.type describes. */
bool et_field_store(const et_field *f, et_case *c, const json_t *v);

/* Whether the member of *c, which may hold anything, is a value that f->doc.type describes. */
bool et_field_fits(const et_field *f, const et_case *c);

/* The member as a new JSON value; its value fits. NULL if there is no memory, or a text is not UTF-8. */
json_t *et_field_load(const et_field *f, const et_case *c);

#endif
