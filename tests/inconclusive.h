/* inconclusive.h: the cases of the suites in which y or a gradient is below its own noise, so that no kernel can
 * pass by it. test_choice.c finds them out; test_tool_generate.c holds the tool's list against them.
 */
#ifndef ETREF_TESTS_INCONCLUSIVE_H
#define ETREF_TESTS_INCONCLUSIVE_H

#include <stdbool.h>
#include <string.h>

static const char *const inconclusive[] = {"all-on-one-tc", "all-on-one-aux", "all-experts-et",
                                           "sigmoid-saturated-ec", "capacity-upper-et", "ep-hot-tc"};
enum { INCONCLUSIVE = sizeof inconclusive / sizeof *inconclusive };

static inline bool is_inconclusive(const char *name)
{
    for (int i = 0; i < INCONCLUSIVE; i++)
        if (strcmp(name, inconclusive[i]) == 0) return true;
    return false;
}

#endif
