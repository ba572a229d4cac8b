/* test_leakage.c: bounds of what a routing tells of the future.
 *
 * log2 C(N,k) is held against binomials multiplied out as big integers (N up to 10^5) and against
 * binary128 beyond. Numbers of labels: test_labels.c; the codec: test_codec.c.
 */
#include "etref/leakage.h"
#include "tests/check_main.h"
#include "tests/expect.h"
#include "tests/sizes.h"
#include "tests/witness/quad_choose.h"

#include <float.h>

static const double ULPS = 0.52; /* claimed in leakage.h for every logarithm */

/* ---- log2 C(N,k) ---- */

static double choose_bits(size_t N, size_t k)
{
    double bits = NAN;
    et_error error;
    done(et_log2_choose(N, k, &bits, &error), &error);
    return bits;
}

/* A natural number in base 2^32, lowest word first. */
enum { MOST_N = 100000, MOST_WORDS = MOST_N / 32 + 2 };
typedef struct natural {
    size_t words;
    uint32_t word[MOST_WORDS];
} natural;

static void multiply(natural *a, uint32_t factor)
{
    uint64_t carry = 0;
    for (size_t i = 0; i < a->words; i++) {
        carry += (uint64_t)a->word[i] * factor;
        a->word[i] = (uint32_t)carry;
        carry >>= 32;
    }
    ck_assert_msg(a->words < MOST_WORDS, "more than %d words", MOST_WORDS);
    if (carry > 0) a->word[a->words++] = (uint32_t)carry;
}

/* Legendre: the exponent of the prime p in n!. */
static size_t exponent_in_factorial(size_t n, size_t p)
{
    size_t sum = 0;
    for (n /= p; n > 0; n /= p) sum += n;
    return sum;
}

/* C(N,k), prime by prime; as many as fit go into one factor. composite [N+1] marks the others. */
static void choose_exactly(natural *a, const uint8_t *composite, size_t N, size_t k)
{
    uint32_t factor = 1;
    *a = (natural){.words = 1, .word = {1}};
    for (size_t p = 2; p <= N; p++) {
        if (composite[p]) continue;
        size_t exponent = exponent_in_factorial(N, p) - exponent_in_factorial(k, p) -
                          exponent_in_factorial(N - k, p);
        for (; exponent > 0; exponent--) {
            if (factor > UINT32_MAX / p) {
                multiply(a, factor);
                factor = 1;
            }
            factor *= (uint32_t)p;
        }
    }
    multiply(a, factor);
}

/* Distance of `got` from log2 a, from a's four or five leading words. */
static double natural_log2_ulps(const natural *a, double got)
{
    uint32_t w[5] = {0};
    int shift = 0;
    for (size_t i = 0; i < 5 && i < a->words; i++) w[i] = a->word[a->words - 1 - i];
    while ((w[0] << shift & UINT32_C(1) << 31) == 0) shift++;
    for (int i = 0; i < 4 && shift > 0; i++) w[i] = w[i] << shift | w[i + 1] >> (32 - shift);
    return quad_log2_ulps((uint64_t)w[0] << 32 | w[1], (uint64_t)w[2] << 32 | w[3],
                          32 * ((int)a->words - 4) - shift, got);
}

static uint8_t *composites(size_t most)
{
    uint8_t *composite = room_for(most + 1, 1);
    for (size_t p = 2; p * p <= most; p++)
        for (size_t i = p * p; i <= most; i += p) composite[i] = 1;
    return composite;
}

static void close_enough(size_t N, size_t k, double ulps, double *worst)
{
    if (!(ulps <= ULPS)) ck_abort_msg("log2 C(%zu,%zu) is %.4f ulp off", N, k, ulps);
    if (ulps > *worst) *worst = ulps;
}

START_TEST(choose_against_big_integers)
{
    uint8_t *composite = composites(MOST_N);
    natural *exact = room_for(1, sizeof *exact);
    et_stream stream = et_stream_open(1, "choose");
    double worst = 0;
    for (size_t i = 0; i < 600; i++) {
        size_t N = i < 8 ? MOST_N - i : (size_t)any_size(stream, i, 0, 2, MOST_N);
        size_t k = i % 3 ? (size_t)any_size(stream, i, 1, 1, (double)N - 1)
                         : (size_t)(et_uniform(stream, i, 1) * (double)(N - 1)) + 1;
        if (k >= N) k = N - 1;
        choose_exactly(exact, composite, N, k);
        close_enough(N, k, natural_log2_ulps(exact, choose_bits(N, k)), &worst);
    }
    for (size_t N = 2; N <= 80; N++) /* around the seam at 32, all of them */
        for (size_t k = 1; k < N; k++) {
            choose_exactly(exact, composite, N, k);
            close_enough(N, k, natural_log2_ulps(exact, choose_bits(N, k)), &worst);
        }
    printf("log2 C(N,k), N to 10^5: largest error %.4f ulp\n", worst);
    free(exact);
    free(composite);
}
END_TEST

START_TEST(choose_against_binary128)
{
    et_stream stream = et_stream_open(2, "choose");
    double worst = 0;
    for (size_t i = 0; i < 2000; i++) {
        double most = i % 4 == 0 ? 0x1p40 : 1e9;
        size_t N = i < 8 ? (size_t)most - i : (size_t)any_size(stream, i, 0, 1e5, most);
        size_t k = i % 3 ? (size_t)any_size(stream, i, 1, 1, (double)N - 1)
                         : (size_t)(et_uniform(stream, i, 1) * (double)(N - 1)) + 1;
        close_enough(N, k, quad_log2_choose_ulps(N, k, choose_bits(N, k)), &worst);
        if (i < 64)
            close_enough(N, i + 1, quad_log2_choose_ulps(N, i + 1, choose_bits(N, i + 1)), &worst);
    }
    printf("log2 C(N,k), N to 2^40: largest error %.4f ulp\n", worst);
}
END_TEST

START_TEST(choose_at_its_edges)
{
    et_error error;
    double bits = 7;
    for (size_t N = 0; N < 100; N++) ck_assert(choose_bits(N, 0) == 0 && choose_bits(N, N) == 0);
    for (int e = 0; e <= 40; e++) ck_assert(choose_bits((size_t)1 << e, 1) == e); /* exactly */
    ck_assert(choose_bits(9, 8) == choose_bits(9, 1));
    for (uint64_t i = 1; i < 2000; i++) /* symmetric to the last bit */
        ck_assert(choose_bits(2000, i) == choose_bits(2000, 2000 - i));
    refused(et_log2_choose(3, 4, &bits, &error), &error,
            "log2 of a binomial: N = 3, k = 4; k at most N, N at most 2^40");
    refused(et_log2_choose(((size_t)1 << 40) + 1, 4, &bits, &error), &error,
            "log2 of a binomial: N = 1099511627777, k = 4; k at most N, N at most 2^40");
    ck_assert(bits == 7);
}
END_TEST

/* ---- the other bounds ---- */

static double tied_bits(size_t b, size_t k)
{
    double bits = NAN;
    et_error error;
    done(et_log2_tied_cutoff(b, k, &bits, &error), &error);
    return bits;
}

START_TEST(tied_cutoff)
{
    et_stream stream = et_stream_open(3, "tied");
    et_error error;
    double bits, worst = 0;
    for (size_t i = 0; i < 2000; i++) {
        size_t b = i % 65, k = (size_t)any_size(stream, i, 0, 1, 0x1p40);
        if (b == 0 || k == 1) {
            ck_assert(tied_bits(b, k) == (double)b);
            continue;
        }
        uint64_t high = 0, low = 0; /* 2^b k - (k-1) in 128 bits */
        for (size_t bit = 0; bit < 64; bit++)
            if (k >> bit & 1) *(b + bit < 64 ? &low : &high) |= UINT64_C(1) << (b + bit) % 64;
        high -= low < k - 1;
        low -= k - 1;
        double got = tied_bits(b, k), ulps = quad_log2_ulps(high, low, 0, got);
        if (!(ulps <= ULPS)) ck_abort_msg("tied cutoff b = %zu, k = %zu: %.4f ulp", b, k, ulps);
        if (ulps > worst) worst = ulps;
        ck_assert(got >= (double)b && got <= (double)b + log2((double)k) + 1e-13);
    }
    printf("log2((2^b-1)k+1): largest error %.4f ulp\n", worst);
    for (size_t b = 0; b <= 64; b++) ck_assert(tied_bits(b, 0) == 0);
    for (uint64_t labels = 1; labels < 3000; labels++)
        ck_assert(labels == 1 ? et_leakage_bits(1) == 0
                              : quad_log2_ulps(0, labels, 0, et_leakage_bits(labels)) <= ULPS);
    ck_assert(quad_log2_ulps(0, UINT64_MAX, 0, et_leakage_bits(UINT64_MAX)) <= ULPS);
    ck_assert(et_leakage_bits(0) == -INFINITY && et_leakage_bits(UINT64_C(1) << 63) == 63);
    refused(et_log2_tied_cutoff(65, 1, &bits, &error), &error,
            "cutoff with ties: b = 65 bits, k = 1; at most 64 bits, k = 2^40");
    refused(et_log2_tied_cutoff(6, ((size_t)1 << 40) + 1, &bits, &error), &error,
            "cutoff with ties: b = 6 bits, k = 1099511627777; at most 64 bits, k = 2^40");
}
END_TEST

static et_leakage_bounds bounds_of(size_t N, size_t n, size_t G, size_t L, size_t b)
{
    et_leakage_bounds bounds;
    et_error error;
    done(et_leakage_bound(&(et_leakage_setup){N, n, G, L, b}, &bounds, &error), &error);
    return bounds;
}

/* |got - want| <= 4 u |want|: for formulas evaluated by libm in double. */
static void about(const char *what, double got, double want)
{
    if (!(fabs(got - want) <= 2 * DBL_EPSILON * fabs(want)))
        ck_abort_msg("%s: got %.17g, want %.17g", what, got, want);
}

START_TEST(the_papers_example)
{
    et_leakage_bounds b = bounds_of(524288, 16, 2, 9, 16);
    ck_assert_uint_eq(b.select, 65536);
    ck_assert(fabs(b.log_refused - 50.5) < 0.05);
    about("G log2(E-1)", b.log_refused, 18 * log2(7));
    about("G log2 E", b.log_expansion, 54);
    about("G E H2(1/E)", b.entropy, 9 * (2 * 3 + 14 * (3 - log2(7))));
    about("Eq. 7", b.set_per_token, choose_bits(524288, 65536) * 144 / 524288);
    about("cutoff", b.cutoff_per_token, 144 * 16.0 / 524288);
    about("with ties", b.tied_cutoff_per_token, 144 * tied_bits(16, 65536) / 524288);
    ck_assert(b.set == choose_bits(524288, 65536) && b.cutoff == 16);
    ck_assert(b.tied_cutoff == tied_bits(16, 65536));
    ck_assert(b.log_refused < b.log_expansion && b.log_expansion < b.set_per_token);
    ck_assert(b.set_per_token < b.entropy);
}
END_TEST

START_TEST(bounds_in_order)
{
    /* G log2(E-1) < G log2 E < Eq. 7 < its limit, from below, as N grows through multiples of E. */
    const size_t shapes[][2] = {{16, 2}, {3, 1}, {64, 1}, {7, 3}, {1000, 999}, {2, 1}};
    for (size_t i = 0; i < COUNT(shapes); i++) {
        size_t n = shapes[i][0], G = shapes[i][1];
        double before = 0;
        for (size_t N = n; N < 1000000; N *= 3) {
            et_leakage_bounds b = bounds_of(N, n, G, 1, 8);
            ck_assert_uint_eq(b.select, N / n * G);
            ck_assert(b.log_refused < b.log_expansion);
            /* equality at k = 1: (n/N) log2 C(N,1) = log2 N = G log2 E */
            ck_assert(b.log_expansion <= b.set_per_token && b.set_per_token < b.entropy);
            ck_assert(b.set_per_token > before);
            before = b.set_per_token;
        }
        et_leakage_bounds most = bounds_of((size_t)1 << 40, n, G, 1, 8);
        ck_assert(most.entropy - most.set_per_token < 1e-6);
    }
    et_leakage_bounds all = bounds_of(100, 4, 4, 3, 8); /* E = 1: everyone is taken */
    ck_assert(all.set == 0 && all.entropy == 0 && all.log_expansion == 0);
    ck_assert(all.log_refused == -INFINITY);
    ck_assert(bounds_of(100, 4, 2, 3, 8).log_refused == 0);
    et_leakage_bounds none = bounds_of(3, 4, 1, 1, 8); /* k = 0 */
    ck_assert(none.select == 0 && none.set == 0 && none.tied_cutoff == 0);
}
END_TEST

START_TEST(bounds_refuse)
{
    const struct {
        et_leakage_setup setup;
        const char *message;
    } cases[] = {
        {{0, 2, 1, 1, 8},
         "leakage bound: 0 tokens, 2 experts, granularity 1, 1 layers, 8 bits; "
         "wanted: 1 to 2^40 tokens"},
        {{1, 0, 1, 1, 8},
         "leakage bound: 1 tokens, 0 experts, granularity 1, 1 layers, 8 bits; "
         "wanted: 1 to 2^20 experts"},
        {{1, 2, 3, 1, 8},
         "leakage bound: 1 tokens, 2 experts, granularity 3, 1 layers, 8 bits; "
         "wanted: a granularity of 1 to the number of experts"},
        {{1, 2, 0, 1, 8},
         "leakage bound: 1 tokens, 2 experts, granularity 0, 1 layers, 8 bits; "
         "wanted: a granularity of 1 to the number of experts"},
        {{1, 2, 1, 0, 8},
         "leakage bound: 1 tokens, 2 experts, granularity 1, 0 layers, 8 bits; "
         "wanted: 1 to 2^20 layers"},
        {{1, 2, 1, 1, 65},
         "leakage bound: 1 tokens, 2 experts, granularity 1, 1 layers, 65 bits; "
         "wanted: scores of at most 64 bits"},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        et_error error;
        et_leakage_bounds bounds;
        refused(et_leakage_bound(&cases[i].setup, &bounds, &error), &error, cases[i].message);
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("leakage");
    TCase *bounds = add_case(suite, "bounds");
    tcase_add_test(bounds, choose_against_big_integers);
    tcase_add_test(bounds, choose_against_binary128);
    tcase_add_test(bounds, choose_at_its_edges);
    tcase_add_test(bounds, tied_cutoff);
    tcase_add_test(bounds, the_papers_example);
    tcase_add_test(bounds, bounds_in_order);
    tcase_add_test(bounds, bounds_refuse);
    return run_suite(suite);
}
