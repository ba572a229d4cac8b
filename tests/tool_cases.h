/* tool_cases.h: small cases for the tests of the tool: one of each rule, and a dense layer.
 *
 * make_cases and remove_all (run_tool.h) are a Check fixture: cases.json in the test's own folder.
 */
#ifndef ETREF_TESTS_TOOL_CASES_H
#define ETREF_TESTS_TOOL_CASES_H

#include "tests/run_tool.h"

static const char *const cases =
    "[{\"name\": \"tc\", \"rule\": \"tc\", \"top_k\": 2, \"tokens\": 24, \"d_model\": 6, "
    "\"d_expert\": 5,"
    "  \"experts\": 4, \"balance\": \"aux\", \"input\": {\"source\": \"normal\"}},"
    " {\"name\": \"ec\", \"rule\": \"ec\", \"pool_tokens\": 12, \"tokens\": 24, \"d_model\": 6,"
    "  \"d_expert\": 5, \"experts\": 4, \"input\": {\"source\": \"normal\"}},"
    " {\"name\": \"et\", \"rule\": \"et\", \"capacity_factor\": 0.5, \"tokens\": 24, \"d_model\": "
    "6,"
    "  \"d_expert\": 5, \"experts\": 4, \"input\": {\"source\": \"normal\"}},"
    " {\"name\": \"ffn\", \"layer\": \"dense\", \"tokens\": 7, \"d_model\": 6, \"d_expert\": 5,"
    "  \"input\": {\"source\": \"normal\"}}]";

static inline void make_cases(void)
{
    make_folder();
    write_text("cases.json", cases);
}

#endif
