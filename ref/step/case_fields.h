/* case_fields.h: the table of a case's fields. Internal; what drives what stands in case.c. */
#ifndef ET_CASE_FIELDS_H
#define ET_CASE_FIELDS_H

#include "etref/case.h"
#include "ref/format/json_members.h"

typedef struct et_field {
    et_field_doc doc;
    et_member member; /* of et_case */
    bool (*applies)(const et_case *c);
    bool exclusive;      /* refused where it does not apply, whatever its value */
    bool later;          /* written only where it is not its default: bundles from before it stay as they are */
    bool (*later_in)(const et_case *c); /* the same, of these cases alone */
    const char *neutral; /* JSON of a value, beside the default, that says nothing there */
} et_field;

/* In the order in which they are printed. */
enum { ET_FIELDS = 71 };
extern const et_field et_fields[ET_FIELDS];

/* et_case_check, and the case as parsing it would leave it: what does not apply, at its default. */
et_status et_case_settle(et_case *settled, const et_case *c, et_error *error);

/* Every default in its place, and nothing else. */
et_status et_case_defaults(et_case *c, et_error *error);

const et_field *et_field_named(const char *name); /* or NULL */

#endif
