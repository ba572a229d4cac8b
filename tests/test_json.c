/* test_json.c: the reader of JSON against Jansson's own, which is its witness: the same texts are
 * refused, for the same reason at the same place, and the others have the same values.
 */
#include "ref/oracle/json.h"
#include "tests/check_main.h"

#include <string.h>

static const char *const texts[] = {
    "{\"name\": \"a\", \"decay\": 0.98765432109876543, \"input\": {\"seed\": 18446744073709551}}",
    "[{\"a\": [1, -2, 0.5e-3, 1E+2, true, false, null]}, {\"a\": {}, \"b\": []}, [[[]]]]",
    "[\"\\u00e9\\ud83d\\ude00 \\\"\\\\\\/\\b\\f\\n\\r\\t\", \"\xC3\xA9\xF0\x9F\x98\x80\"]",
    "{\"weight\": {\"dtype\": \"F64\", \"shape\": [3, 4], \"data_offsets\": [0, 96]}}\n",
    "[9223372036854775807, -9223372036854775808, 1.7976931348623157e308, -0, -0.0]",
    " [ 0 , 10 ]",
    "\"text\"",
    "17",
    "true",
    "{\n\"a\": 1,\n\"a\": 2}",
    "[1e400]",
    "[99999999999999999999, 1]",
    "[-99999999999999999999]",
    "[01]",
    "[1.]",
    "[1e]",
    "[-]",
    "[NaN]",
    "{\"\\u0000\": 1}",
    "[\"\\u0000\"]",
    "[\"\\ud800\"]",
    "[\"\\ud800\\u0041\"]",
    "[\"\\udc00\"]",
    "[\"\\x\"]",
    "[\"\\u12g4\"]",
    "[\"tab\there\"]",
    "[\"line\nhere\"]",
    "[\"no end",
    "[\"\xC0\x80\"]",
    "[\"\xED\xA0\x80\"]",
    "[\"\xF4\x90\x80\x80\"]",
    "[\xFF]",
    "{} {}",
    "{}}",
    "{\"t\"}",
    "{\"t\":1,}",
    "[1 2]",
    "{\"t\":1 2}",
    "{1: 2}",
    "[,]",
    "[",
    "{",
    "",
    "  ",
    "]",
    ":",
};
enum { TEXTS = sizeof texts / sizeof *texts };

/* Compares both readers on one text; returns true if it was refused. */
static bool compare(const char *text, size_t length, bool any, bool words)
{
    json_error_t own, jansson;
    bool no_memory;
    json_t *got = et_json_load(text, length, any, &own, &no_memory);
    json_t *want =
        json_loadb(text, length, JSON_REJECT_DUPLICATES | (any ? JSON_DECODE_ANY : 0), &jansson);
    ck_assert(!no_memory);
    ck_assert_msg((got == NULL) == (want == NULL), "%.*s: '%s', Jansson says '%s'", (int)length,
                  text, own.text, jansson.text);
    ck_assert_msg(got == NULL || json_equal(got, want), "%.*s: other values", (int)length, text);
    if (got == NULL && words) {
        ck_assert_msg(strcmp(own.text, jansson.text) == 0, "%.*s: '%s', Jansson says '%s'",
                      (int)length, text, own.text, jansson.text);
        ck_assert_msg(own.line == jansson.line && own.column == jansson.column,
                      "%.*s: %d %d, Jansson says %d %d", (int)length, text, own.line, own.column,
                      jansson.line, jansson.column);
        ck_assert_int_eq(own.position, jansson.position);
    }
    json_decref(got);
    json_decref(want);
    return got == NULL;
}

START_TEST(every_text_is_read_as_jansson_reads_it)
{
    compare(texts[_i], strlen(texts[_i]), true, true);
    compare(texts[_i], strlen(texts[_i]), false, true);
}
END_TEST

static unsigned next_random(unsigned *state)
{
    *state = *state * 1664525u + 1013904223u;
    return *state >> 8;
}

/* Bytes changed, cut out and doubled: what is accepted and what it means must stay the same. */
START_TEST(changed_texts_are_read_as_jansson_reads_them)
{
    static const char bytes[] = "{}[]\",:0123456789eE+-.truefalsn\\u \n\x01\x80\xC3\xE2\xF0";
    unsigned state = 1;
    size_t refused = 0, all = 0;
    for (int round = 0; round < 2000; round++)
        for (size_t t = 0; t < TEXTS; t++, all++) {
            char text[512];
            size_t length = strlen(texts[t]);
            memcpy(text, texts[t], length);
            for (unsigned n = next_random(&state) % 3; n < 3 && length > 0; n++) {
                size_t at = next_random(&state) % length;
                if (next_random(&state) % 3 > 0)
                    text[at] = bytes[next_random(&state) % (sizeof bytes - 1)];
                else
                    memmove(text + at, text + at + 1, --length - at);
            }
            refused += compare(text, length, true, false);
        }
    ck_assert_uint_gt(refused, all / 10);
    ck_assert_uint_lt(refused, all);
}
END_TEST

START_TEST(depth_is_bounded)
{
    enum { DEPTH = 2048 };
    char text[2 * DEPTH + 2];
    for (size_t depth = DEPTH; depth <= DEPTH + 1; depth++) {
        memset(text, '[', depth);
        memset(text + depth, ']', depth);
        compare(text, depth * 2, false, true);
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("json");
    TCase *reader = add_case(suite, "reader");
    tcase_add_loop_test(reader, every_text_is_read_as_jansson_reads_it, 0, TEXTS);
    tcase_add_test(reader, changed_texts_are_read_as_jansson_reads_them);
    tcase_add_test(reader, depth_is_bounded);
    return run_suite(suite);
}
