/* contradictions.h: fields of a case that are legal each alone, but not together. Internal. */
#ifndef ET_CONTRADICTIONS_H
#define ET_CONTRADICTIONS_H

#include "etref/case.h"

typedef struct et_contradiction {
    bool (*broken)(const et_case *c);
    const char *field, *with, *why; /* "field = value with with = value: why" */
} et_contradiction;

/* The first one in *c, whose fields are each within their range and whose derived defaults are in
 * place, or NULL. */
const et_contradiction *et_case_contradiction(const et_case *c);

#endif
