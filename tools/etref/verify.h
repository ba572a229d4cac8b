/* verify.h: the parts of `etref verify`: a bundle against its recomputation (integrity.c), a
 * kernel's output against a golden (judgement.c), and the report on the latter for CI systems
 * (junit_report.c). */
#ifndef ETREF_TOOL_VERIFY_H
#define ETREF_TOOL_VERIFY_H

#include "etref/candidate.h"
#include "etref/report.h"
#include "tools/etref/options.h"

enum { FORMAT_TEXT, FORMAT_JSON, FORMAT_JUNIT };

typedef struct verify_options {
    const char *golden, *candidate; /* candidate NULL: the integrity of the golden */
    int engine;                     /* et_engine, or -1: each command's own */
    int format, ties;               /* ties: 0 rule, 1 any; -1: not given */
    bool quiet, all, no_explain;
    size_t threads;
    size_t explain_limit; /* CPU seconds; 0: not given */
    const char *profile;  /* NULL: not given */
    word_list require, aliases;
    int argc; /* the command line, for the report to repeat */
    char **argv;
} verify_options;

/* Both return the exit status. */
int verify_integrity(const verify_options *o);
int verify_candidate(const verify_options *o);

/* The error; and for a CI system that waits for a report, one that says so. Returns the exit status. */
int report_no_verdict(const verify_options *o, const char *suite, et_status status,
                      const et_error *error);

/* ET_EINVAL if the file is an emulated kernel's output: nothing is to be measured by it. */
et_status refuse_emulated(const et_tensor_file *file, et_error *error);

/* A verdict as a CI system reads it; `suite` is how it is called there. */
void print_junit_report(const et_report *r, const char *suite);

#endif
