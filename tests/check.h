/* check.h: Check, without a write to a file for each check that holds.
 *
 * Check notes the last place that was well, for a process that it has forked and that dies. Our tests are not
 * forked (check_main.h), nobody reads that, and comparing a tensor element by element made millions of writes.
 */
#ifndef ETREF_TESTS_CHECK_H
#define ETREF_TESTS_CHECK_H

#include <check.h>

#define _mark_point(file, line) ((void)0)

#endif
