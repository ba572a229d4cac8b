/* test_base.c: status, allocation and random numbers.
 *
 * The known-answer vectors of Philox are those published with Random123 (kat_vectors, philox4x32
 * with 10 rounds). The deviates are tested for what the header claims: their exact values, their
 * moments, and that no two streams, lanes or elements share numbers. Statistical tests allow five
 * standard deviations; as the numbers are fixed, a test that passes once always passes.
 */
#include "etref/random.h"
#include "etref/status.h"
#include "ref/base/memory.h"
#include "tests/check_main.h"

#include <math.h>
#include <stdint.h>
#include <string.h>

#define COUNT(array) (sizeof(array) / sizeof(array)[0])

START_TEST(every_status_has_a_name)
{
    const char *names[] = {"ok", "invalid input", "out of memory",
                           "input/output error"};
    for (int s = ET_OK; s <= ET_EIO; s++) ck_assert_str_eq(et_status_name((et_status)s), names[s]);
    ck_assert_str_eq(et_status_name((et_status)99), "unknown status");
}
END_TEST

START_TEST(a_message_is_one_short_line)
{
    et_error error;
    ck_assert_int_eq(et_fail(&error, ET_EINVAL, "field '%s': %d", "a\nb\x1b[31m\x7f", 7),
                     ET_EINVAL);
    ck_assert_str_eq(error.text, "field 'a?b?[31m?': 7");
    ck_assert_int_eq(et_fail(NULL, ET_EIO, "nobody listens to %s", "this"), ET_EIO);

    char longer[2 * sizeof error.text];
    memset(longer, 'x', sizeof longer - 1);
    longer[sizeof longer - 1] = '\0';
    et_fail(&error, ET_EINVAL, "%s", longer);
    ck_assert_uint_eq(strlen(error.text), sizeof error.text - 1);
}
END_TEST

START_TEST(products_of_sizes_are_checked)
{
    size_t product = 42;
    ck_assert(et_size_mul(0, SIZE_MAX, &product) && product == 0);
    ck_assert(et_size_mul(SIZE_MAX, 0, &product) && product == 0);
    ck_assert(et_size_mul(1, SIZE_MAX, &product) && product == SIZE_MAX);
    ck_assert(et_size_mul(SIZE_MAX / 3, 3, &product) && product == SIZE_MAX / 3 * 3);
    product = 42;
    ck_assert(!et_size_mul(2, SIZE_MAX / 2 + 1, &product));
    ck_assert(!et_size_mul(SIZE_MAX, SIZE_MAX, &product));
    ck_assert_uint_eq(product, 42);
}
END_TEST

START_TEST(allocation_is_zeroed_and_refuses_too_much)
{
    et_error error;
    void *room = NULL;
    ck_assert_int_eq(et_allocate(&room, 1000, 8, "a table", &error), ET_OK);
    for (size_t i = 0; i < 8000; i++) ck_assert_int_eq(((unsigned char *)room)[i], 0);
    free(room);

    ck_assert_int_eq(et_allocate(&room, 0, 8, "nothing", &error), ET_OK);
    ck_assert_ptr_nonnull(room);
    free(room);

    void *untouched = &error;
    ck_assert_int_eq(et_allocate(&untouched, SIZE_MAX / 4, 8, "slots", &error), ET_ENOMEM);
    char expected[128];
    snprintf(expected, sizeof expected, "slots: %zu elements of 8 bytes exceed the address space",
             SIZE_MAX / 4);
    ck_assert_str_eq(error.text, expected);
    ck_assert_ptr_eq(untouched, &error);
}
END_TEST

START_TEST(philox_known_answers)
{
    static const struct {
        uint32_t counter[4], key[2], out[4];
    } known[] = {
        {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
         {0xffffffff, 0xffffffff},
         {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
         {0xa4093822, 0x299f31d0},
         {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    for (size_t v = 0; v < COUNT(known); v++) {
        uint32_t out[4];
        et_philox(known[v].counter, known[v].key, out);
        for (int i = 0; i < 4; i++)
            ck_assert_msg(out[i] == known[v].out[i], "vector %zu, word %d: got %08x, want %08x", v,
                          i, (unsigned)out[i], (unsigned)known[v].out[i]);
        uint32_t in_place[4];
        memcpy(in_place, known[v].counter, sizeof in_place);
        et_philox(in_place, known[v].key, in_place);
        ck_assert_mem_eq(in_place, out, sizeof out);
    }
}
END_TEST

START_TEST(names_are_hashed_by_fnv1a)
{
    /* Published FNV-1a vectors. */
    ck_assert(et_stream_open(5, "").name_hash == UINT64_C(0xcbf29ce484222325));
    ck_assert(et_stream_open(5, "a").name_hash == UINT64_C(0xaf63dc4c8601ec8c));
    ck_assert(et_stream_open(5, "foobar").name_hash == UINT64_C(0x85944171f73967e8));
    ck_assert(et_stream_open(UINT64_MAX, "a").seed == UINT64_MAX);
}
END_TEST

/* The counters of the table in random.c, spelt out: halves of index, hash and key, blocks. */
START_TEST(deviates_come_from_the_documented_counters)
{
    et_stream stream = {.seed = UINT64_C(0x1122334455667788),
                        .name_hash = UINT64_C(0xb123456789abcdef)};
    uint64_t index = UINT64_C(0xfedcba9876543210);
    uint32_t key[2] = {0x55667788, 0x11223344};
    /* 0xb... begins with the bits 10: they leave the top and flip bit 1 at the bottom. */
    uint32_t counter[4] = {0x76543210, 0xfedcba98, 0x89abcded, 0x31234567};
    uint32_t out[4];
    et_philox(counter, key, out);
    for (unsigned lane = 0; lane < 4; lane++)
        ck_assert(et_uniform(stream, index, lane) == ((double)out[lane] + 0.5) / 4294967296.0);
    double sum = -6;
    for (uint32_t block = 1; block < 4; block++) {
        counter[3] = 0x31234567 + (block << 30);
        et_philox(counter, key, out);
        for (int i = 0; i < 4; i++) sum += ((double)out[i] + 0.5) / 4294967296.0;
    }
    ck_assert(et_normal(stream, index) == sum);
}
END_TEST

START_TEST(a_uniform_is_a_half_integer_over_two_to_the_32)
{
    et_stream stream = et_stream_open(1, "in.x");
    for (uint64_t i = 0; i < 10000; i++) {
        double u = et_uniform(stream, i, (unsigned)(i & 3));
        double j = u * 4294967296.0 - 0.5;
        ck_assert(u > 0 && u < 1 && j == floor(j));
    }
    /* Only two bits of a lane count. */
    ck_assert(et_uniform(stream, 3, 1) == et_uniform(stream, 3, 5));
}
END_TEST

START_TEST(moments_of_the_uniform)
{
    enum { N = 1 << 18 };
    for (unsigned lane = 0; lane < 4; lane++) {
        et_stream stream = et_stream_open(7, "uniform");
        double mean = 0, square = 0;
        for (uint64_t i = 0; i < N; i++) {
            double u = et_uniform(stream, i, lane) - 0.5;
            mean += u / N;
            square += u * u / N;
        }
        /* Variance of u: 1/12; of u^2: 1/80 - 1/144 = 1/180. */
        ck_assert(fabs(mean) <= 5 * sqrt(1.0 / 12 / N));
        ck_assert(fabs(square - 1.0 / 12) <= 5 * sqrt(1.0 / 180 / N));
    }
}
END_TEST

START_TEST(moments_of_the_normal)
{
    enum { N = 1 << 18 };
    et_stream stream = et_stream_open(7, "normal");
    double m1 = 0, m2 = 0, m3 = 0, m4 = 0, within = 0;
    for (uint64_t i = 0; i < N; i++) {
        double v = et_normal(stream, i);
        ck_assert(v > -6 && v < 6);
        ck_assert(v * 4294967296.0 == floor(v * 4294967296.0)); /* a multiple of 2^-32 */
        m1 += v / N;
        m2 += v * v / N;
        m3 += v * v * v / N;
        m4 += v * v * v * v / N;
        within += (fabs(v) < 1) / (double)N;
    }
    /* Standard deviations of the sample moments, by the normal's moments 1, 3, 15, 105 (those of
     * the sum of 12 uniforms are smaller). P(|v| < 1): 0.683 for the normal, 0.678 for the sum. */
    ck_assert(fabs(m1) <= 5 * sqrt(1.0 / N));
    ck_assert(fabs(m2 - 1) <= 5 * sqrt(2.0 / N));
    ck_assert(fabs(m3) <= 5 * sqrt(15.0 / N));
    ck_assert(fabs(m4 - 2.9) <= 5 * sqrt(96.0 / N));
    ck_assert(fabs(within - 0.68) <= 0.008);
}
END_TEST

/* Correlation of two sequences of N numbers of variance v is within 5 v / sqrt(N) of zero. */
static void assert_uncorrelated(double product_sum, double variance, double n, const char *what)
{
    if (!(fabs(product_sum / n) <= 5 * variance / sqrt(n)))
        ck_abort_msg("%s: mean product %g over %g pairs", what, product_sum / n, n);
}

START_TEST(streams_are_independent)
{
    enum { N = 1 << 16 };
    et_stream one = et_stream_open(7, "in.x"), name = et_stream_open(7, "in.y"),
              seed = et_stream_open(8, "in.x");
    double by_name = 0, by_seed = 0, neighbour = 0, far = 0, lanes[4][4] = {{0}}, kinds[4] = {0};
    for (uint64_t i = 0; i < N; i++) {
        double v = et_normal(one, i);
        by_name += v * et_normal(name, i);
        by_seed += v * et_normal(seed, i);
        neighbour += v * et_normal(one, i + 1);
        far += v * et_normal(one, i + (UINT64_C(1) << 32)); /* the index's high half counts */
        double u[4];
        for (unsigned a = 0; a < 4; a++) u[a] = et_uniform(one, i, a) - 0.5;
        for (int a = 0; a < 4; a++) {
            kinds[a] += v * u[a];
            for (int b = 0; b < a; b++) lanes[a][b] += u[a] * u[b];
        }
    }
    assert_uncorrelated(by_name, 1, N, "two names");
    assert_uncorrelated(by_seed, 1, N, "two seeds");
    assert_uncorrelated(neighbour, 1, N, "neighbours");
    assert_uncorrelated(far, 1, N, "2^32 apart");
    for (int a = 0; a < 4; a++) {
        assert_uncorrelated(kinds[a], sqrt(1.0 / 12), N, "a normal and a uniform");
        for (int b = 0; b < a; b++) assert_uncorrelated(lanes[a][b], 1.0 / 12, N, "two lanes");
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("base");
    TCase *status = add_case(suite, "status and memory");
    tcase_add_test(status, every_status_has_a_name);
    tcase_add_test(status, a_message_is_one_short_line);
    tcase_add_test(status, products_of_sizes_are_checked);
    tcase_add_test(status, allocation_is_zeroed_and_refuses_too_much);
    TCase *random = add_case(suite, "random");
    tcase_add_test(random, philox_known_answers);
    tcase_add_test(random, names_are_hashed_by_fnv1a);
    tcase_add_test(random, deviates_come_from_the_documented_counters);
    tcase_add_test(random, a_uniform_is_a_half_integer_over_two_to_the_32);
    tcase_add_test(random, moments_of_the_uniform);
    tcase_add_test(random, moments_of_the_normal);
    tcase_add_test(random, streams_are_independent);
    return run_suite(suite);
}
