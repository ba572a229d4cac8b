/* run_case.h: from a case to a computed step, for the tests that look at steps.
 *
 * JSON is written with single quotes here, so that a case can stand in a C string without
 * backslashes. Whatever goes wrong fails the test with the library's message.
 */
#ifndef ETREF_TESTS_RUN_CASE_H
#define ETREF_TESTS_RUN_CASE_H

#include "etref/capture.h"
#include "etref/step.h"

#include "tests/check.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ' becomes ", in place. */
static inline void double_the_quotes(char *json)
{
    for (; *json != '\0'; json++)
        if (*json == '\'') *json = '"';
}

/* Parses a case in single quotes. The text is at most 2 KB. */
static inline et_status parse_quoted(et_case *c, const char *json, et_error *error)
{
    char text[2048];
    size_t length = strlen(json);
    ck_assert_uint_lt(length, sizeof text);
    memcpy(text, json, length + 1);
    double_the_quotes(text);
    return et_case_parse(c, text, length, "test", error);
}

/* parse(print(c)) must be c, byte for byte. */
static inline void check_round_trip(const et_case *c)
{
    et_case again;
    et_error error = {""};
    char *text, *text_again;
    ck_assert_msg(et_case_print(&text, c, &error) == ET_OK, "%s", error.text);
    ck_assert_msg(et_case_parse(&again, text, strlen(text), "printed", &error) == ET_OK, "%s",
                  error.text);
    ck_assert_msg(memcmp(c, &again, sizeof again) == 0, "case '%s' is not what it prints", c->name);
    ck_assert_msg(et_case_print(&text_again, &again, &error) == ET_OK, "%s", error.text);
    ck_assert_str_eq(text, text_again);
    free(text);
    free(text_again);
}

/* The cases of a suite, data/cases/NAME, allocated. ETREF_DATA names the data folder. */
static inline et_case *read_suite(const char *name, size_t *count)
{
    enum { MOST = 1 << 20 };
    const char *data = getenv("ETREF_DATA");
    char file_name[4096], *text = malloc(MOST);
    et_case *cases = NULL;
    et_error error;
    ck_assert_ptr_nonnull(text);
    snprintf(file_name, sizeof file_name, "%s/cases/%s", data != NULL ? data : "data", name);
    FILE *file = fopen(file_name, "rb");
    ck_assert_msg(file != NULL, "%s cannot be opened; ETREF_DATA names the data folder", file_name);
    size_t length = fread(text, 1, MOST, file);
    fclose(file);
    ck_assert_msg(et_capture_cases(&cases, count, text, length, name, file_name, &error) == ET_OK, "%s",
                  error.text);
    free(text);
    return cases;
}

/* The inputs of a case, drawn; the caller frees the step. */
static inline void draw_case(et_step *s, const et_case *c)
{
    et_error error;
    ck_assert_msg(et_step_create(s, c, 0, &error) == ET_OK, "%s", error.text);
    ck_assert_msg(et_capture_inputs(s, 0, &error) == ET_OK, "%s", error.text);
    ck_assert_msg(et_step_check_inputs(s, &error) == ET_OK, "%s", error.text);
}

/* Everything, by the plain engine: the one whose bits are defined. The caller frees the step. */
static inline void run_case(et_step *s, const et_case *c)
{
    et_error error;
    draw_case(s, c);
    ck_assert_msg(et_step_run(s, ET_PLAIN, NULL, NULL, &error) == ET_OK, "%s", error.text);
}

#endif
