/* named_cases.h: the cases that the tool brings with it, and the cases that a user names.
 *
 * A suite is a text of data/cases, an array of cases in JSON (etref/suite.h).
 */
#ifndef ETREF_TOOL_NAMED_CASES_H
#define ETREF_TOOL_NAMED_CASES_H

#include "etref/suite.h"
#include "tools/etref/options.h"
#include <stdbool.h>
#include <stddef.h>

/* Of a built-in case: why no kernel can be conclusive on it if bwd.* is required, under the profiles of 8 to 24 bits;
 * "" where it can. (`generate --conclusive` finds out for any case and profile.) */
const char *suite_remark(const char *name);

/* Cases in the order asked for. */
typedef struct case_list {
    et_case *at;
    size_t count;
} case_list;

void case_list_free(case_list *list);

/* Adds the cases of a text, and of those from a checkpoint what it knows; relative paths begin at the
 * folder of `file` (NULL: the working one). `settings` ("field=value", "input.field=value") overwrite fields in
 * each of them before it is parsed, so that defaults which depend on a field follow it. */
et_status case_list_add_text(case_list *list, const char *json, size_t length, const char *where,
                             const char *file, const word_list *settings, et_error *error);

et_status case_list_add_suite(case_list *list, const char *name, const word_list *settings,
                              et_error *error);

/* `word` is the name of a built-in case, or else a file ("-": standard input). */
et_status case_list_add(case_list *list, const char *word, const word_list *settings,
                        et_error *error);

#endif
