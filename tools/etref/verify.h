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
    const char *name;               /* in reports, beside the case's; NULL: none */
    bool one_of_many;               /* the last line says which: `name` */
    int engine;                     /* et_engine, or -1: each command's own */
    int format, ties;               /* ties: 0 rule, 1 any; -1: not given */
    bool quiet, all, no_explain;
    size_t threads, jobs;
    size_t explain_limit; /* CPU seconds */
    bool explain_asked;   /* it was given */
    const char *profile;  /* NULL: not given */
    word_list require, aliases;
    int argc; /* the command line */
    char **argv;
} verify_options;

/* Both return the exit status. */
int verify_integrity(const verify_options *o);
int verify_candidate(const verify_options *o);

/* One of many. */
typedef struct verify_pair {
    const char *golden, *candidate, *name;
} verify_pair;

/* Each pair in a process of its own, `jobs` at a time, their reports in order. The exit status: 1 if any is a
 * mismatch, else 2 if any could not be judged, else 3 if any is inconclusive. */
int verify_many(const verify_options *o, const verify_pair *pairs, size_t count);

/* "etref.NAME.CASE.WHAT", without a name "etref.CASE.WHAT": how a CI system knows a suite. */
void name_suite(char *out, size_t room, const verify_options *o, const char *what, const char *of);

/* The last line of a text report; one of many says which. */
void print_last_line(const verify_options *o, const char *line);
/* For a log of errors alone, where the report is no text. */
void log_last_line(const verify_options *o, const char *line);

/* ET_EINVAL if the file is an emulated kernel's output: nothing is to be measured by it. */
et_status refuse_emulated(const et_tensor_file *file, et_error *error);

/* A verdict as a CI system reads it; `suite` is how it is called there. */
void print_junit_report(const et_report *r, const char *suite);

#endif
