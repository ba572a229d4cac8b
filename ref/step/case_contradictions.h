/* case_contradictions.h: fields of a case that are legal each alone, but not together. Internal. */
#ifndef ET_CASE_CONTRADICTIONS_H
#define ET_CASE_CONTRADICTIONS_H

#include "etref/case.h"

typedef struct et_contradiction {
    const char *field, *with, *why; /* "field = value with with = value: why" */
} et_contradiction;

/* Is there one in *c, whose fields are each within their range and whose derived defaults are in
 * place? *first: the first. */
bool et_case_contradiction(const et_case *c, et_contradiction *first);

#endif
