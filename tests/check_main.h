/* check_main.h: what every test program's main does with its suite.
 *
 * Tests run in this process (CK_NOFORK): OpenMP does not survive a fork, and a sanitizer or
 * valgrind then sees everything. A run in which no test ran is a failure, not a success.
 */
#ifndef ETREF_TESTS_CHECK_MAIN_H
#define ETREF_TESTS_CHECK_MAIN_H

#include "tests/check.h"

#include <stdio.h>
#include <stdlib.h>

/* Runs the suite, prints Check's summary and each failure; returns main's exit status. */
static inline int run_suite(Suite *suite)
{
    SRunner *runner = srunner_create(suite);
    srunner_set_fork_status(runner, CK_NOFORK);
    srunner_run_all(runner, CK_NORMAL);
    int run = srunner_ntests_run(runner);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    if (run == 0) fprintf(stderr, "no test was run\n");
    return run > 0 && failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

/* A new test case of the suite. No clock: a test may take as long as it needs. */
static inline TCase *add_case(Suite *suite, const char *name)
{
    TCase *tests = tcase_create(name);
    tcase_set_timeout(tests, 0);
    suite_add_tcase(suite, tests);
    return tests;
}

#endif
