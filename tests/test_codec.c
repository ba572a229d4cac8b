/* test_codec.c: Algorithm 2, scores that tell a selection: exact, and in each float type.
 *
 * Over every selection of up to 16 tokens, over random long ones, and over the library's own expert
 * choice, which must take what was encoded.
 */
#include "etref/leakage.h"
#include "etref/routing.h"
#include "tests/check_main.h"
#include "tests/expect.h"
#include "tests/sizes.h"

#include <stdbool.h>
#include <string.h>

/* ---- codec, exact ---- */

enum { LONG = 4096, SHORT = 16 };

static void number_to_selection(uint32_t number, size_t N, uint8_t *z)
{
    for (size_t t = 0; t < N; t++) z[t] = number >> t & 1;
}

static void random_selection(et_stream stream, size_t i, size_t N, double share, uint8_t *z)
{
    for (size_t t = 0; t < N; t++) z[t] = et_uniform(stream, i * N + t, 0) < share;
}

static void same_selection(const char *what, size_t N, const uint8_t *got, const uint8_t *want)
{
    for (size_t t = 0; t < N; t++)
        if (got[t] != want[t])
            ck_abort_msg("%s, N = %zu: token %zu: got %d, want %d", what, N, t, got[t], want[t]);
}

/* Every score stands on its side of the cutoff, and the decoder returns z. */
static void round_trip(size_t N, const uint8_t *z, bool every_score)
{
    char cutoff[LONG], score[LONG];
    uint8_t back[LONG];
    et_error error;
    et_codec_cutoff(N, z, cutoff);
    for (size_t t = 0; every_score && t < N; t++) {
        et_codec_score(t, z, score);
        ck_assert_msg((et_codec_compare(t + 1, score, N, cutoff) > 0) == z[t],
                      "N = %zu: the score of token %zu is on the wrong side of the cutoff", N, t);
    }
    done(et_codec_decode(N, cutoff, back, &error), &error);
    same_selection("codec", N, back, z);
}

START_TEST(codec_every_short_selection)
{
    uint8_t z[2 * SHORT];
    for (size_t N = 0; N <= SHORT; N++)
        for (uint32_t number = 0; number < UINT32_C(1) << N; number++) {
            number_to_selection(number, N, z);
            round_trip(N, z, true);
        }
}
END_TEST

START_TEST(codec_long_selections)
{
    et_stream stream = et_stream_open(4, "codec");
    uint8_t z[LONG];
    for (size_t i = 0; i < 1000; i++) {
        random_selection(stream, i, LONG, et_uniform(stream, i, 1), z);
        round_trip(LONG, z, i < 20);
    }
}
END_TEST

START_TEST(codec_looks_back_only)
{
    et_stream stream = et_stream_open(5, "codec");
    uint8_t z[100], other[100];
    char score[100], again[100];
    random_selection(stream, 0, 100, 0.5, z);
    for (size_t t = 0; t < 100; t++) {
        memcpy(other, z, sizeof z);
        for (size_t s = t; s < 100; s++) other[s] = !z[s];
        uint8_t *past = room_for(t + 1, 1); /* so that a sanitizer sees who looks further */
        memcpy(past + 1, z, t);
        et_codec_score(t, past + 1, score);
        free(past);
        et_codec_score(t, other, again);
        ck_assert_int_eq(memcmp(score, again, t + 1), 0);
        ck_assert(score[t] == '1' && (t == 0 || score[0] == (z[0] ? '0' : '1')));
    }
}
END_TEST

START_TEST(codec_compares_and_refuses)
{
    const struct {
        const char *a, *b;
        int order;
    } pairs[] = {{"", "", 0},      {"", "000", 0},   {"0", "", 0},       {"1", "", 1},
                 {"", "0001", -1}, {"1", "1000", 0}, {"01", "1", -1},    {"1", "0111111", 1},
                 {"101", "1", 1},  {"1", "101", -1}, {"1010", "101", 0}, {"0110", "0101", 1}};
    for (size_t i = 0; i < COUNT(pairs); i++)
        ck_assert_int_eq(
            et_codec_compare(strlen(pairs[i].a), pairs[i].a, strlen(pairs[i].b), pairs[i].b),
            pairs[i].order);
    et_error error;
    uint8_t z[3] = {7, 7, 7};
    refused(et_codec_decode(3, "0x1", z, &error), &error,
            "codec: character 1 of the cutoff is 'x'; 0 or 1");
    ck_assert(z[0] == 7 && z[1] == 7 && z[2] == 7);
}
END_TEST

/* ---- codec, the library's expert choice ---- */

/* Does expert choice, on these scores, take z? */
static bool chooses(size_t N, const uint8_t *z, const et_real *r)
{
    uint8_t mask[LONG];
    et_real margin[LONG], cutoff;
    et_error error;
    size_t k = 0;
    for (size_t t = 0; t < N; t++) k += z[t];
    if (k == 0) return true; /* expert choice takes at least one */
    done(et_expert_choice(N, 1, N, k, r, mask, margin, &cutoff, NULL, 0, &error), &error);
    return memcmp(mask, z, N) == 0;
}

/* Encodes in `type`; is z returned by expert choice, and by the decoder? */
static bool survives(et_dtype type, size_t N, const uint8_t *z, size_t *carried)
{
    double scores[1100], cutoff;
    et_real r[1100];
    uint8_t back[1100];
    et_error error;
    done(et_codec_encode_in(type, N, z, scores, &cutoff, carried, &error), &error);
    done(et_codec_decode_in(type, N, cutoff, back, &error), &error);
    for (size_t t = 0; t < N; t++) r[t] = (et_real)scores[t];
    bool chosen = chooses(N, z, r), decoded = memcmp(back, z, N) == 0;
    ck_assert_msg(*carried < N || (chosen && decoded), "%s, N = %zu: carried, but %s",
                  et_dtype_name(type), N, chosen ? "not decoded" : "not chosen");
    return chosen && decoded;
}

typedef struct format {
    et_dtype type;
    size_t every, some; /* significand bits; e of the smallest number 2^-e */
} format;

static const format FORMATS[] = {
    {ET_BF16, 8, 133}, {ET_F16, 11, 24}, {ET_F32, 24, 149}, {ET_F64, 53, 1074}};

/* et_real must hold the format. */
static bool fits(format f)
{
    return f.type != ET_F64 || sizeof(et_real) == sizeof(double);
}

START_TEST(codec_through_expert_choice)
{
    uint8_t z[2 * SHORT];
    size_t carried;
    const format f = FORMATS[sizeof(et_real) == sizeof(double) ? 3 : 2];
    for (size_t N = 1; N <= SHORT; N++)
        for (uint32_t number = 0; number < UINT32_C(1) << N; number++) {
            number_to_selection(number, N, z);
            ck_assert_msg(survives(f.type, N, z, &carried) && carried == N,
                          "%s, N = %zu, selection %x: %zu tokens carried", et_dtype_name(f.type), N,
                          (unsigned)number, carried);
        }
}
END_TEST

START_TEST(codec_up_to_each_formats_limit)
{
    et_stream stream = et_stream_open(6, "codec");
    uint8_t z[64];
    size_t carried;
    for (size_t i = 0; i < COUNT(FORMATS); i++) {
        size_t N = FORMATS[i].every, lost = 0;
        if (!fits(FORMATS[i])) continue;
        for (size_t j = 0; j < 3000; j++) {
            if (j < 256)
                for (size_t t = 0; t < N; t++) z[t] = j >> t % 8 & 1; /* periodic ones */
            else
                random_selection(stream, j, N, et_uniform(stream, j, 1), z);
            ck_assert_msg(survives(FORMATS[i].type, N, z, &carried) && carried == N,
                          "%s, selection %zu: %zu tokens carried", et_dtype_name(FORMATS[i].type),
                          j, carried);
        }
        /* One token more: refused, then taken to the end, does not survive. */
        memset(z, 1, N + 1);
        z[0] = 0;
        ck_assert(!survives(FORMATS[i].type, N + 1, z, &carried) && carried == N);
        for (size_t j = 0; j < 3000; j++) {
            random_selection(stream, j, N + 1, 0.5, z);
            lost += !survives(FORMATS[i].type, N + 1, z, &carried);
        }
        printf("%s: every selection of %zu tokens; of %zu, %zu of 3000 random ones are lost\n",
               et_dtype_name(FORMATS[i].type), N, N + 1, lost);
        ck_assert_uint_gt(lost, 0);
    }
}
END_TEST

START_TEST(codec_every_selection_in_short_formats)
{
    uint8_t z[2 * SHORT];
    for (size_t i = 0; i < 2; i++) { /* BF16 and F16: all of them, to two tokens beyond */
        const format f = FORMATS[i];
        for (size_t N = 1; N <= f.every + 2; N++) {
            size_t lost = 0, carried;
            for (uint32_t number = 0; number < UINT32_C(1) << N; number++) {
                number_to_selection(number, N, z);
                lost += !survives(f.type, N, z, &carried);
            }
            ck_assert_int_eq(lost > 0, N > f.every);
        }
    }
}
END_TEST

/* The first refused token, from 1; 0 if there is none. */
static size_t first_refused(size_t N, const uint8_t *z)
{
    for (size_t t = 0; t < N; t++)
        if (!z[t]) return t + 1;
    return 0;
}

START_TEST(codec_carries_what_it_says)
{
    et_stream stream = et_stream_open(7, "codec");
    uint8_t z[1100], back[1100];
    double scores[1100], cutoff;
    et_error error;
    for (size_t i = 0; i < COUNT(FORMATS); i++)
        for (size_t j = 0; j < 2000; j++) {
            const format f = FORMATS[i];
            size_t N = (size_t)any_size(stream, j, 2, 1, 1100), carried;
            random_selection(stream, j, N, 1 - pow(0.5, 12 * et_uniform(stream, j, 1)), z);
            done(et_codec_encode_in(f.type, N, z, scores, &cutoff, &carried, &error), &error);
            size_t refusal = first_refused(N, z), want = N < f.some ? N : f.some;
            if (refusal > 0 && refusal + f.every - 1 < want) want = refusal + f.every - 1;
            if (carried != want)
                ck_abort_msg("%s, N = %zu, first refused %zu: carried %zu, want %zu",
                             et_dtype_name(f.type), N, refusal, carried, want);
            for (size_t t = 0; t < N; t++)
                ck_assert_msg(scores[t] == et_round_to_dtype(scores[t], f.type),
                              "%s: score %zu is %a", et_dtype_name(f.type), t, scores[t]);
            /* The decoder's own scores are the encoder's, so that it cannot but follow. */
            done(et_codec_encode_in(f.type, carried, z, scores, &cutoff, &carried, &error), &error);
            done(et_codec_decode_in(f.type, carried, cutoff, back, &error), &error);
            same_selection(et_dtype_name(f.type), carried, back, z);
        }
}
END_TEST

START_TEST(codec_reach)
{
    size_t every, some;
    et_error error;
    for (size_t i = 0; i < COUNT(FORMATS); i++) {
        done(et_codec_reach(FORMATS[i].type, &every, &some, &error), &error);
        ck_assert_uint_eq(every, FORMATS[i].every);
        ck_assert_uint_eq(some, FORMATS[i].some);
    }
    double score, cutoff;
    uint8_t z = 1;
    const char *message = "codec: no scores in I32; F64, F32, F16 or BF16";
    refused(et_codec_reach(ET_I32, &every, &some, &error), &error, message);
    refused(et_codec_encode_in(ET_I32, 1, &z, &score, &cutoff, &every, &error), &error, message);
    refused(et_codec_decode_in(ET_I32, 1, 0.5, &z, &error), &error, message);
}
END_TEST

/* Sorts tokens by their exact scores, for the one qsort below. */
typedef struct exact_score {
    size_t token;
    char digits[LONG];
} exact_score;

static int by_score(const void *a, const void *b)
{
    const exact_score *x = a, *y = b;
    return et_codec_compare(x->token + 1, x->digits, y->token + 1, y->digits);
}

START_TEST(codec_in_exact_arithmetic)
{
    /* Expert choice sees an order, nothing else: the ranks of exact scores stand for the scores. */
    et_stream stream = et_stream_open(8, "codec");
    exact_score *scores = room_for(LONG, sizeof *scores);
    uint8_t z[LONG];
    et_real ranks[LONG];
    for (size_t i = 0; i < 4; i++) {
        random_selection(stream, i, LONG, i == 0 ? 0.125 : et_uniform(stream, i, 1), z);
        for (size_t t = 0; t < LONG; t++) {
            scores[t].token = t;
            et_codec_score(t, z, scores[t].digits);
        }
        qsort(scores, LONG, sizeof *scores, by_score);
        for (size_t rank = 0; rank < LONG; rank++) {
            ranks[scores[rank].token] = (et_real)rank;
            ck_assert_msg(rank == 0 || by_score(&scores[rank - 1], &scores[rank]) < 0,
                          "two equal scores, at rank %zu", rank);
        }
        ck_assert(chooses(LONG, z, ranks));
    }
    free(scores);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("codec");
    TCase *codec = add_case(suite, "codec");
    tcase_add_test(codec, codec_every_short_selection);
    tcase_add_test(codec, codec_long_selections);
    tcase_add_test(codec, codec_looks_back_only);
    tcase_add_test(codec, codec_compares_and_refuses);
    tcase_add_test(codec, codec_through_expert_choice);
    tcase_add_test(codec, codec_up_to_each_formats_limit);
    tcase_add_test(codec, codec_every_selection_in_short_formats);
    tcase_add_test(codec, codec_carries_what_it_says);
    tcase_add_test(codec, codec_reach);
    tcase_add_test(codec, codec_in_exact_arithmetic);
    return run_suite(suite);
}
