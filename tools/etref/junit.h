/* junit.h: results as the XML that CI systems show: one suite, one case for each thing tested.
 *
 * data/schema/junit.xsd says which elements and attributes there are: those that Jenkins' schema junit-10 has, and that
 * the readers of GitHub's actions and of GitLab know, too.
 */
#ifndef ETREF_TOOL_JUNIT_H
#define ETREF_TOOL_JUNIT_H

#include <stddef.h>

/* JUNIT_NOTE: a pass whose message is shown as the test's output. */
typedef enum junit_result {
    JUNIT_PASS,
    JUNIT_FAILURE,
    JUNIT_ERROR,
    JUNIT_SKIPPED,
    JUNIT_NOTE
} junit_result;
enum { JUNIT_RESULTS = JUNIT_NOTE + 1 };

typedef struct junit_row {
    char *name, *message, *detail;
    junit_result result;
} junit_row;

typedef struct junit {
    junit_row *rows;
    size_t count, results[JUNIT_RESULTS]; /* how many of each */
} junit;

/* `message` is one line, `detail` more of them; both may be NULL. */
void junit_add(junit *j, const char *name, junit_result result, const char *message,
               const char *detail);

/* Prints the suite to standard output, and frees. It took the seconds since `junit_start`. */
void junit_print(junit *j, const char *suite);
void junit_start(void);

/* One error, by fixed words. */
void junit_print_without_memory(void);

/* ---- several suites in one report ---- */

typedef struct junit_sum {
    size_t tests, failures, errors;
    double seconds;
} junit_sum;

/* From here on junit_print prints suites alone, and adds to *sum. */
void junit_print_parts(junit_sum *sum);

/* What stands before the suites of such a report, and behind them. */
void junit_print_head(const junit_sum *sum);
void junit_print_foot(void);

#endif
