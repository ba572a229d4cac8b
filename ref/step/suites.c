/* suites.c: the built-in cases. See etref/suite.h. suites.S holds the texts of data/cases. */
#include "etref/suite.h"

#include <stdlib.h>
#include <string.h>

extern const char et_suite_smoke[], et_suite_core[], et_suite_paper[], et_suite_model[],
    et_suite_modern[], et_suite_parallel[];

static const et_suite suites[] = {
    {"smoke", "seconds: every rule once, small enough to read", et_suite_smoke},
    {"core", "the cases on which kernels have been seen to fail", et_suite_core},
    {"paper", "the paper's layers at 2048 tokens", et_suite_paper},
    {"model", "the layers around the experts, and two optimisers", et_suite_model},
    {"modern", "layers beyond the paper's: other experts, gates, selections", et_suite_modern},
    {"parallel", "layers on several ranks: experts cut up among them, or tokens", et_suite_parallel}};

const et_suite *et_suite_at(size_t index)
{
    return index < sizeof suites / sizeof *suites ? &suites[index] : NULL;
}

const et_suite *et_suite_find(const char *name)
{
    const et_suite *s;
    for (size_t i = 0; (s = et_suite_at(i)) != NULL; i++)
        if (strcmp(s->name, name) == 0) return s;
    return NULL;
}

static et_status find_in(et_case *c, bool *found, const et_suite *s, const char *name,
                         et_error *error)
{
    et_case *cases = NULL;
    size_t count = 0;
    et_status status = et_case_parse_all(&cases, &count, s->json, strlen(s->json), s->name, error);
    for (size_t i = 0; i < count && !*found; i++) {
        if (strcmp(cases[i].name, name) != 0) continue;
        *c = cases[i];
        *found = true;
    }
    free(cases);
    return status;
}

et_status et_case_find(et_case *c, const char *name, et_error *error)
{
    const et_suite *s;
    bool found = false;
    et_status status = ET_OK;
    for (size_t i = 0; status == ET_OK && !found && (s = et_suite_at(i)) != NULL; i++)
        status = find_in(c, &found, s, name, error);
    if (status != ET_OK || found) return status;
    return et_fail(error, ET_EINVAL, "no built-in case '%.80s'; 'etref list' names them", name);
}
