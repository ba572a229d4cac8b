/* failing_memory.h: what failing_memory.c tells the test about a child whose allocation failed. */
#ifndef ETREF_TESTS_FAILING_MEMORY_H
#define ETREF_TESTS_FAILING_MEMORY_H

#include <stdbool.h>

typedef struct failing_report {
    unsigned long number; /* of the allocation, from 1 */
    bool for_good, ended; /* all later ones, too; not before it starts, but at its end */
    int status;           /* of the child that has ended, as waitpid gives it */
} failing_report;

#endif
