/* suite.h: the cases that the library brings with it. */
#ifndef ETREF_SUITE_H
#define ETREF_SUITE_H

#include "etref/case.h"

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

typedef struct et_suite {
    const char *name, *what;
    const char *json; /* an array of cases, for et_case_parse_all */
} et_suite;

const et_suite *et_suite_at(size_t index);       /* NULL past the end */
const et_suite *et_suite_find(const char *name); /* or NULL */

/* The built-in case of this name. ET_EINVAL: there is none; ET_ENOMEM. */
et_status et_case_find(et_case *c, const char *name, et_error *error);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
#endif
