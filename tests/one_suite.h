/* one_suite.h: the cases of the suite that a test program is about, data/cases/SUITE. It defines SUITE first, and has
 * read_cases and free_cases as its fixture.
 */
#ifndef ETREF_TESTS_ONE_SUITE_H
#define ETREF_TESTS_ONE_SUITE_H

#include "tests/run_case.h"

static et_case *suite;
static size_t cases;

static void read_cases(void)
{
    suite = read_suite(SUITE, &cases);
}

static void free_cases(void)
{
    free(suite);
}

#endif
