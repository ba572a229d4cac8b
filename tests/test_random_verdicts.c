/* test_random_verdicts.c: verdicts on layers and candidates that nobody chose: what fuzz_verify.c looks for,
 * here with fixed seeds, so that compilers, sanitizers and Valgrind all see the same ones.
 *
 * Its products are three plain loops (tests/fuzz/verdicts.h): Valgrind then sees what they read as well. A
 * failure names its number; ETREF_RANDOM_FROM=n ETREF_RANDOM_COUNT=1 repeats it alone.
 */
#include "tests/fuzz/verdicts.h"
#include "tests/check_main.h"

#ifndef ETREF_F32

static size_t number_from(const char *name, size_t otherwise)
{
    const char *text = getenv(name);
    return text ? strtoul(text, NULL, 10) : otherwise;
}

START_TEST(nothing_breaks)
{
    size_t from = number_from("ETREF_RANDOM_FROM", 0), judged = 0;
    size_t count = number_from("ETREF_RANDOM_COUNT", 200);
    for (size_t i = from; i < from + count; i++) {
        uint8_t bytes[8];
        et_stream stream = et_stream_open(i, "an input");
        for (size_t j = 0; j < sizeof bytes; j++)
            bytes[j] = (uint8_t)(256 * et_uniform(stream, j, 0));
        const char *wrong = try_verdict(bytes, sizeof bytes, &judged);
        ck_assert_msg(wrong == NULL, "number %zu: %s", i, wrong);
    }
    ck_assert_uint_ge(2 * judged, count > 1 ? count : 0); /* most numbers make a candidate */
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("random verdicts");
    tcase_add_test(add_case(suite, "verdicts"), nothing_breaks);
    return run_suite(suite);
}

#else

int main(void)
{
    return EXIT_SUCCESS; /* the float build does not judge */
}

#endif
