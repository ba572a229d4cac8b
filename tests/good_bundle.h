/* good_bundle.h: a small case whose bundle is good, and its step. */
#ifndef ET_TESTS_GOOD_BUNDLE_H
#define ET_TESTS_GOOD_BUNDLE_H

#include "etref/etref.h"
#include "tests/check_main.h"

#include <string.h>

static const char *const good_case =
    "{\"name\": \"b\", \"rule\": \"et\", \"tokens\": 6, \"d_model\": 2, \"d_expert\": 3, "
    "\"experts\": 2, "
    "\"ema_updates\": 1, \"ema_bias_correction\": true, \"input\": {\"source\": \"normal\"}}";

static inline void draw_step(et_step *s, const char *json)
{
    et_case c;
    et_error error = {""};
    ck_assert_msg(et_case_parse(&c, json, strlen(json), "test", &error) == ET_OK, "%s", error.text);
    ck_assert_int_eq(et_step_create(s, &c, 0, NULL), ET_OK);
    ck_assert_int_eq(et_step_draw_inputs(s, NULL), ET_OK);
}

static inline void make_step(et_step *s, const char *json)
{
    draw_step(s, json);
    ck_assert_int_eq(et_step_run(s, ET_PLAIN, NULL, NULL, NULL), ET_OK);
}

#endif
