/* test_leakage.c: bounds, exact numbers of labels, and the codec.
 *
 * log2 C(N,k) is held against binomials multiplied out as big integers (N up to 10^5) and against
 * binary128 beyond. Numbers of labels have three witnesses: the recursion taken literally, over all
 * M^N score sequences; the recursion over states, for sizes that reach further; and the table and
 * points that were computed elsewhere. The advices of the proofs in exact.c are decoded, token by
 * token. The codec is run over every selection of up to 16 tokens, and over the library's own
 * expert choice.
 */
#include "etref/leakage.h"
#include "etref/random.h"
#include "etref/routing.h"
#include "tests/check_main.h"
#include "tests/witness/quad_choose.h"

#include <float.h>
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#define COUNT(array) (sizeof(array) / sizeof(array)[0])

static const double ULPS = 0.52; /* claimed in leakage.h for every logarithm */

/* Check notes every assertion that holds in a file; in long loops only a failure is worth that. */
#define DEMAND(condition, ...)                                                                     \
    do                                                                                             \
        if (!(condition)) ck_abort_msg(__VA_ARGS__);                                               \
    while (0)

static void done(et_status status, const et_error *error)
{
    DEMAND(status == ET_OK, "%s", error->text);
}

static void same_labels(const char *what, size_t N, size_t k, uint64_t M, uint64_t got,
                        uint64_t want)
{
    DEMAND(got == want, "%s, N = %zu, k = %zu, M = %llu: got %llu, want %llu", what, N, k,
           (unsigned long long)M, (unsigned long long)got, (unsigned long long)want);
}

static void at_most(const char *what, size_t N, size_t k, uint64_t M, uint64_t got, uint64_t most)
{
    DEMAND(got <= most, "%s, N = %zu, k = %zu, M = %llu: got %llu, at most %llu", what, N, k,
           (unsigned long long)M, (unsigned long long)got, (unsigned long long)most);
}

static void *room_for(size_t count, size_t size)
{
    void *room = calloc(count, size);
    ck_assert_ptr_nonnull(room);
    return room;
}

static void refused(et_status status, const et_error *error, const char *message)
{
    ck_assert_int_eq(status, ET_EINVAL);
    ck_assert_str_eq(error->text, message);
}

/* A whole number from lo to hi, about uniform in its logarithm. */
static uint64_t any_size(et_stream stream, uint64_t index, unsigned lane, double lo, double hi)
{
    double x = lo * pow(hi / lo, et_uniform(stream, index, lane));
    return (uint64_t)fmin(hi, fmax(lo, floor(x)));
}

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
    DEMAND(a->words < MOST_WORDS, "more than %d words", MOST_WORDS);
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

/* ---- exact labels: what the library says ---- */

typedef et_status labels_function(const et_leakage_case *, uint64_t *, et_error *);

static uint64_t ask(labels_function *function, et_leakage_case c)
{
    uint64_t labels = 0;
    et_error error;
    done(function(&c, &labels, &error), &error);
    return labels;
}

static uint64_t labels_of(et_leakage_rule rule, size_t N, size_t k, uint64_t M)
{
    return ask(et_leakage_labels,
               (et_leakage_case){.rule = rule, .tokens = N, .select = k, .levels = M});
}

static et_leakage_case with_capacity(size_t N, size_t k, uint64_t M, uint64_t passing, double C)
{
    return (et_leakage_case){.rule = ET_LEAKAGE_ET_CAPACITY,
                             .tokens = N,
                             .select = k,
                             .levels = M,
                             .passing = passing,
                             .capacity = C};
}

static uint64_t choose(uint64_t N, uint64_t k)
{
    uint64_t product = 1;
    for (uint64_t i = 1; i <= k; i++) product = product * (N - k + i) / i;
    return product;
}

START_TEST(known_values)
{
    const struct {
        size_t N, k;
        et_leakage_rule rule;
        uint64_t labels[7]; /* M = 2 .. 8 */
    } table[] = {
        {4, 2, ET_LEAKAGE_TOPK, {3, 5, 6, 6, 6, 6, 6}},
        {4, 2, ET_LEAKAGE_THRESHOLD, {2, 3, 4, 5, 6, 6, 6}},
        {5, 2, ET_LEAKAGE_TOPK, {3, 5, 7, 8, 9, 10, 10}},
        {5, 2, ET_LEAKAGE_THRESHOLD, {2, 3, 4, 5, 6, 7, 8}},
        {6, 3, ET_LEAKAGE_TOPK, {4, 7, 10, 12, 14, 16, 17}},
        {6, 3, ET_LEAKAGE_THRESHOLD, {2, 3, 4, 5, 6, 7, 8}},
    };
    for (size_t i = 0; i < COUNT(table); i++)
        for (uint64_t M = 2; M <= 8; M++)
            ck_assert_uint_eq(labels_of(table[i].rule, table[i].N, table[i].k, M),
                              table[i].labels[M - 2]);
    ck_assert_uint_eq(labels_of(ET_LEAKAGE_TOPK, 24, 12, 64), 706);
    ck_assert_uint_eq(labels_of(ET_LEAKAGE_TOPK, 32, 8, 256), 1810);
    ck_assert_uint_eq(labels_of(ET_LEAKAGE_TOPK, 64, 16, 64), 994);
}
END_TEST

/* ---- exact labels: the recursion, taken literally ---- */

/* All M^N score sequences in lexicographic order, and the masks (bit t: token t) that rules are
 * made of: level [.][N]; top [.][N+1], the best 0 .. N tokens; above [.][M+1], those with level >=
 * v. */
typedef struct world {
    size_t N, M, sequences;
    uint8_t *level;
    uint32_t *top, *above;
} world;

static bool beats(const uint8_t *level, size_t s, size_t t)
{
    return level[s] > level[t] || (s < t && level[s] == level[t]);
}

static world make_world(size_t N, size_t M)
{
    world w = {.N = N, .M = M, .sequences = 1};
    for (size_t t = 0; t < N; t++) w.sequences *= M;
    w.level = room_for(w.sequences * N, 1);
    w.top = room_for(w.sequences * (N + 1), sizeof *w.top);
    w.above = room_for(w.sequences * (M + 1), sizeof *w.above);
    for (size_t i = 0; i < w.sequences; i++) {
        uint8_t *level = w.level + i * N;
        for (size_t t = N, rest = i; t-- > 0; rest /= M) level[t] = (uint8_t)(rest % M);
        for (size_t t = 0; t < N; t++) {
            size_t rank = 0;
            for (size_t s = 0; s < N; s++) rank += beats(level, s, t);
            for (size_t k = rank + 1; k <= N; k++) w.top[i * (N + 1) + k] |= UINT32_C(1) << t;
            for (size_t v = 0; v <= level[t]; v++) w.above[i * (M + 1) + v] |= UINT32_C(1) << t;
        }
    }
    return w;
}

static void free_world(world *w)
{
    free(w->level);
    free(w->top);
    free(w->above);
}

static unsigned bits_in(uint32_t mask)
{
    unsigned count = 0;
    for (; mask > 0; mask &= mask - 1) count++;
    return count;
}

/* A rule on one sequence. `pass` is the lowest passing level, counted from 0: M - passing. */
typedef struct law {
    et_leakage_rule rule;
    size_t k, pass, lower, upper;
} law;

static uint32_t decide(const world *w, const law *f, size_t i)
{
    const uint32_t *top = w->top + i * (w->N + 1), *above = w->above + i * (w->M + 1);
    size_t v = w->M;
    switch (f->rule) {
    case ET_LEAKAGE_TOPK: return top[f->k];
    case ET_LEAKAGE_THRESHOLD:
        while (bits_in(above[v]) < f->k) v--; /* the k-th largest score */
        return above[v];
    case ET_LEAKAGE_TC:
    case ET_LEAKAGE_ET: return above[f->pass];
    case ET_LEAKAGE_ET_CAPACITY: break;
    }
    size_t m = bits_in(above[f->pass]);
    if (m < f->lower) return top[f->lower];
    if (m > f->upper) return top[f->upper];
    return above[f->pass];
}

typedef struct decided {
    uint32_t sequence, z;
} decided;

/* Sorts by the decision on token t, stably; returns how many are refused. */
static size_t part(decided *set, size_t count, size_t t, decided *scratch)
{
    size_t zeros = 0, ones = 0;
    for (size_t i = 0; i < count; i++)
        if (set[i].z >> t & 1)
            scratch[ones++] = set[i];
        else
            set[zeros++] = set[i];
    memcpy(set + zeros, scratch, ones * sizeof *set);
    return zeros;
}

/* chi(S): S = set[0..count) shares t scores and decisions, and lies in lexicographic order. */
static uint64_t chi(const world *w, decided *set, size_t count, size_t t, decided *scratch)
{
    uint64_t best = 0;
    if (count == 0) return 0;
    if (t == w->N) return 1;
    for (size_t start = 0, end; start < count; start = end) {
        uint8_t score = w->level[set[start].sequence * w->N + t];
        for (end = start + 1; end < count; end++)
            if (w->level[set[end].sequence * w->N + t] != score) break;
        size_t zeros = part(set + start, end - start, t, scratch);
        uint64_t sum = chi(w, set + start, zeros, t + 1, scratch) +
                       chi(w, set + start + zeros, end - start - zeros, t + 1, scratch);
        if (sum > best) best = sum;
    }
    return best;
}

static uint64_t brute_labels(const world *w, const law *f, decided *set)
{
    for (size_t i = 0; i < w->sequences; i++) set[i] = (decided){(uint32_t)i, decide(w, f, i)};
    return chi(w, set, w->sequences, 0, set + w->sequences);
}

static void compare_plain_rules(const world *w, size_t k, decided *set)
{
    const et_leakage_rule rules[] = {ET_LEAKAGE_TOPK, ET_LEAKAGE_THRESHOLD, ET_LEAKAGE_ET};
    for (size_t i = 0; i < COUNT(rules); i++) {
        law f = {.rule = rules[i], .k = k, .pass = k % w->M};
        uint64_t want = brute_labels(w, &f, set), got = labels_of(rules[i], w->N, k, w->M);
        if (got != want)
            ck_abort_msg("rule %d, N = %zu, k = %zu, M = %zu: got %llu, want %llu", (int)rules[i],
                         w->N, k, w->M, (unsigned long long)got, (unsigned long long)want);
    }
}

/* Every threshold, and every pair of bounds that some C gives. */
static void compare_capacity(const world *w, size_t k, double C, decided *set, uint64_t *most)
{
    et_capacity bounds = et_capacity_bounds(k, C, w->N);
    for (size_t passing = 0; passing <= w->M; passing++) {
        law f = {ET_LEAKAGE_ET_CAPACITY, k, w->M - passing, bounds.lower, bounds.upper};
        et_leakage_case c = with_capacity(w->N, k, w->M, passing, C);
        uint64_t want = brute_labels(w, &f, set), got = ask(et_leakage_labels, c);
        if (got != want)
            ck_abort_msg("N = %zu, k = %zu, M = %zu, %zu levels pass, C = %g: got %llu, want %llu",
                         w->N, k, w->M, passing, C, (unsigned long long)got,
                         (unsigned long long)want);
        uint64_t bound = ask(et_leakage_labels_suffice, c);
        at_most("capacity", w->N, k, w->M, want, bound);
        if (passing > 0 && w->N + 1 >= bounds.upper + w->M)
            same_labels("capacity, met", w->N, k, w->M, want, bound);
        at_most("capacity, sets", w->N, k, w->M, want,
                choose(w->N, bounds.upper) + choose(w->N, bounds.lower) - 1);
        if (want > *most) *most = want;
    }
}

static void compare_all_rules(size_t N, size_t M, uint64_t *most)
{
    const double capacities[] = {0, 0.25, 0.5, 0.75, 1};
    world w = make_world(N, M);
    decided *set = room_for(2 * w.sequences, sizeof *set);
    for (size_t k = 1; k <= N; k++) {
        compare_plain_rules(&w, k, set);
        et_capacity before = {N + 1, N + 1};
        for (size_t i = 0; i < COUNT(capacities); i++) {
            et_capacity bounds = et_capacity_bounds(k, capacities[i], N);
            if (bounds.lower == before.lower && bounds.upper == before.upper) continue;
            compare_capacity(&w, k, capacities[i], set, most);
            before = bounds;
        }
    }
    free(set);
    free_world(&w);
}

START_TEST(labels_by_the_definition)
{
    uint64_t most = 0;
    for (size_t N = 1; N <= 7; N++)
        for (size_t M = 1; M <= 6; M++) compare_all_rules(N, M, &most);
    compare_all_rules(8, 4, &most); /* longer: fillings and droppings compete for the tokens */
    compare_all_rules(10, 3, &most);
    compare_all_rules(14, 2, &most);
    printf("expert threshold with capacity: up to %llu labels by enumeration\n",
           (unsigned long long)most);
}
END_TEST

/* ---- exact labels: the recursion over states, without the lemma ---- */

/* f(m, j, D) of exact.c for j <= k, D <= M, with and without levels below (1) and above (2):
 * state[flags][j][D], of one m; the next m is written to `next`. */
static void longer_by_one(size_t k, size_t M, const uint64_t *state, uint64_t *next)
{
    size_t row = M + 1, plane = (k + 1) * row;
    for (size_t flags = 0; flags < 4; flags++)
        for (size_t j = 0; j <= k; j++)
            for (size_t D = 0; D <= M; D++) {
                const uint64_t *here = state + flags * plane + j * row;
                uint64_t best = 0;
                if ((flags & 1) != 0) best = here[D]; /* at or below H */
                if ((flags & 2) != 0 && j > 0 && here[D - row] > best) best = here[D - row];
                for (size_t i = 1; i <= D; i++) {
                    size_t with_above = i < D ? flags | 2 : flags;
                    uint64_t sum = state[(flags | 1) * plane + j * row + D - i];
                    if (j > 0) sum += state[with_above * plane + (j - 1) * row + i];
                    if (sum > best) best = sum;
                }
                next[flags * plane + j * row + D] = best;
            }
}

static uint64_t labels_by_states(size_t N, size_t k, size_t M)
{
    size_t plane = (k + 1) * (M + 1);
    uint64_t *state = room_for(4 * plane, sizeof *state), *next = room_for(4 * plane, sizeof *next);
    for (size_t flags = 0; flags < 4; flags++) /* m = 0: complete if no place is left, else empty */
        for (size_t D = 0; D <= M; D++) state[flags * plane + D] = 1;
    for (size_t m = 1; m <= N; m++) {
        longer_by_one(k, M, state, next);
        uint64_t *t = state;
        state = next;
        next = t;
    }
    uint64_t labels = state[k * (M + 1) + M];
    free(state);
    free(next);
    return labels;
}

static void compare_states(size_t N, size_t k, size_t M)
{
    uint64_t got = labels_of(ET_LEAKAGE_TOPK, N, k, M), want = labels_by_states(N, k, M);
    if (got != want)
        ck_abort_msg("N = %zu, k = %zu, M = %zu: got %llu, want %llu", N, k, M,
                     (unsigned long long)got, (unsigned long long)want);
}

START_TEST(labels_by_states_agree)
{
    for (size_t N = 1; N <= 18; N++)
        for (size_t k = 1; k <= N; k++)
            for (size_t M = 1; M <= 12; M++) compare_states(N, k, M);
    for (size_t M = 1; M <= 100; M += 9)
        for (size_t k = 1; k <= 12; k++) compare_states(12, k, M);
    compare_states(24, 12, 64);
    compare_states(32, 8, 256);
    compare_states(64, 16, 64);
    compare_states(256, 16, 256);
    ck_assert_uint_eq(labels_of(ET_LEAKAGE_TOPK, 256, 16, 256), 240 * 16 + 15 * 15 + 1);
}
END_TEST

START_TEST(labels_of_large_cases)
{
    const size_t most = (size_t)1 << 32;
    /* M - 1 <= N - k: the bound is met, here by bf16's, f32's scores over large batches. */
    ck_assert_uint_eq(labels_of(ET_LEAKAGE_TOPK, 524288, 65536, 65536),
                      65535 * UINT64_C(65536) + 1);
    ck_assert_uint_eq(labels_of(ET_LEAKAGE_TOPK, most, 1, most), most);
    /* n = 1, 2, 3: C(N,k) labels as soon as there are levels enough, one less before. */
    for (size_t k = 1; k < 300; k++)
        for (size_t n = 1; n <= 3; n++) {
            uint64_t all = choose(k + n, k);
            same_labels("few refused", k + n, k, most, labels_of(ET_LEAKAGE_TOPK, k + n, k, most),
                        all);
            compare_states(n + k % 12, k % 12 ? k % 12 : n, 30);
        }
    ck_assert_uint_eq(labels_of(ET_LEAKAGE_TOPK, most, most - 2, most),
                      (most - 1) * (most / 2)); /* C(2^32, 2), the most that n = 2 can give */
    ck_assert_uint_eq(labels_of(ET_LEAKAGE_TOPK, most, most - 1, most), most);
    ck_assert_uint_eq(labels_of(ET_LEAKAGE_TOPK, most, most, most), 1);
    ck_assert_uint_eq(labels_of(ET_LEAKAGE_THRESHOLD, most, most / 2, most), most);
    ck_assert_uint_eq(labels_of(ET_LEAKAGE_THRESHOLD, most, most - 1, most), most);
    ck_assert_uint_eq(labels_of(ET_LEAKAGE_THRESHOLD, 33, 16, most), 1166803110);
    ck_assert_uint_eq(labels_of(ET_LEAKAGE_THRESHOLD, 100, 98, most), 4950);
}
END_TEST

/* ---- exact labels: bounds ---- */

START_TEST(when_the_bounds_are_met)
{
    for (size_t N = 1; N <= 40; N++)
        for (size_t k = 1; k <= N; k++)
            for (uint64_t M = 1; M <= 45; M++) {
                et_leakage_case c = {
                    .rule = ET_LEAKAGE_TOPK, .tokens = N, .select = k, .levels = M};
                uint64_t exact = ask(et_leakage_labels, c),
                         bound = ask(et_leakage_labels_suffice, c);
                same_labels("bound", N, k, M, bound, (M - 1) * k + 1);
                at_most("top-k", N, k, M, exact, bound);
                DEMAND((exact == bound) == (M <= N - k + 1), "N = %zu, k = %zu, M = %d: %s", N, k,
                       (int)M, "the bound is met where it should not be, or not where it should");
                DEMAND(et_leakage_bits(exact) <= choose_bits(N, k), "more than C(%zu,%zu)", N, k);
                c.rule = ET_LEAKAGE_THRESHOLD;
                same_labels("bound", N, k, M, ask(et_leakage_labels_suffice, c), M);
                at_most("threshold", N, k, M, ask(et_leakage_labels, c), exact); /* ties cost */
                c.rule = ET_LEAKAGE_TC;
                same_labels("TC", N, k, M, ask(et_leakage_labels, c), 1);
                same_labels("TC, bound", N, k, M, ask(et_leakage_labels_suffice, c), 1);
            }
}
END_TEST

START_TEST(smallest_counterexample)
{
    /* Exact top-k leaks more than b bits: first at N = 3, k = 2, one-bit scores, 3 labels. */
    for (size_t N = 1; N <= 3; N++)
        for (size_t k = 1; k <= N; k++)
            for (uint64_t M = 1; M <= 64; M *= 2) {
                bool expected = N == 3 && k == 2 && M == 2;
                ck_assert_int_eq(labels_of(ET_LEAKAGE_TOPK, N, k, M) > M, expected);
            }
    ck_assert_uint_eq(labels_of(ET_LEAKAGE_TOPK, 3, 2, 2), 3);
    ck_assert_uint_eq(labels_of(ET_LEAKAGE_TOPK, 4, 2, 2), 3);
}
END_TEST

/* The advice of the proof, for the top `count`: cutoff and tokens taken there, as one number. */
static uint32_t advice_of(const world *w, size_t i, size_t count)
{
    const uint32_t *above = w->above + i * (w->M + 1);
    size_t v = w->M;
    while (bits_in(above[v]) < count) v--;
    return (uint32_t)(v * w->N + count - bits_in(above[v + 1]) - 1);
}

/* Decodes (c, s) token by token, from the scores so far. */
static uint32_t follow_advice(const world *w, size_t i, uint32_t advice)
{
    size_t c = advice / w->N, s = advice % w->N + 1;
    uint32_t z = 0;
    for (size_t t = 0; t < w->N; t++) {
        size_t score = w->level[i * w->N + t];
        bool taken = score > c || (score == c && s > 0);
        if (taken && score == c) s--;
        z |= (uint32_t)taken << t;
    }
    return z;
}

static void decode_every_sequence(const world *w, const law *f, uint64_t suffice)
{
    uint8_t used[64 * 64] = {0};
    uint64_t labels = 0;
    for (size_t i = 0; i < w->sequences; i++) {
        uint32_t z = decide(w, f, i), advice;
        size_t taken = bits_in(z);
        bool clamped = taken != bits_in(w->above[i * (w->M + 1) + f->pass]);
        if (f->rule == ET_LEAKAGE_ET_CAPACITY && !clamped) /* shares the lowest passing level's */
            advice = (uint32_t)(f->pass * w->N + f->upper - 1);
        else
            advice = advice_of(w, i, taken);
        uint32_t back = follow_advice(w, i, advice);
        DEMAND(back == z, "N = %zu, M = %zu, sequence %zu, k = %zu: got %x, want %x", w->N, w->M, i,
               f->k, (unsigned)back, (unsigned)z);
        labels += !used[advice];
        used[advice] = 1;
    }
    ck_assert_uint_le(labels, suffice);
}

START_TEST(advice_of_the_proofs)
{
    for (size_t N = 1; N <= 6; N++)
        for (size_t M = 1; M <= 5; M++) {
            world w = make_world(N, M);
            for (size_t k = 1; k <= N; k++) {
                law top = {.rule = ET_LEAKAGE_TOPK, .k = k};
                decode_every_sequence(&w, &top, (M - 1) * k + 1);
                for (size_t passing = 1; passing <= M; passing++) {
                    et_capacity b = et_capacity_bounds(k, 0.5, N);
                    law et = {ET_LEAKAGE_ET_CAPACITY, k, M - passing, b.lower, b.upper};
                    et_leakage_case c = with_capacity(N, k, M, passing, 0.5);
                    decode_every_sequence(&w, &et, ask(et_leakage_labels_suffice, c));
                }
            }
            free_world(&w);
        }
}
END_TEST

/* ---- expert threshold with capacity ---- */

START_TEST(capacity_of_four_tokens)
{
    /* N = 4, k = 2, C = 0.5: 1 to 3 tokens. Three levels: 4 labels with the middle level as an
     * inclusive threshold (two pass) and with the lowest one (all pass: exact top-3), 3 with the
     * uppermost, 1 with none passing (exact top-1 would need 3). */
    const uint64_t labels[] = {3, 3, 4, 4};
    for (uint64_t passing = 0; passing <= 3; passing++)
        ck_assert_uint_eq(ask(et_leakage_labels, with_capacity(4, 2, 3, passing, 0.5)),
                          labels[passing]);
}
END_TEST

START_TEST(capacity_grows_to_its_bound)
{
    for (size_t k = 2; k <= 8; k += 2)
        for (uint64_t M = 2; M <= 20; M += 3)
            for (uint64_t passing = 0; passing <= M; passing++) {
                uint64_t before = 0;
                et_leakage_case c = with_capacity(k, k, M, passing, 0.5);
                uint64_t bound = passing ? (passing - 1) * (k + k / 2) + (M - passing) * (k / 2) + 1
                                         : (M - 1) * (k / 2) + 1;
                for (; c.tokens <= k + k / 2 + M + 2; c.tokens++) {
                    uint64_t exact = ask(et_leakage_labels, c);
                    at_most("fewer tokens", c.tokens, k, M, before, exact);
                    if (c.tokens >= k + k / 2) { /* the upper clamp is not N */
                        same_labels("bound", c.tokens, k, M, ask(et_leakage_labels_suffice, c),
                                    bound);
                        at_most("capacity", c.tokens, k, M, exact, bound);
                    }
                    if (c.tokens >= k + k / 2 + M - 1)
                        same_labels("met", c.tokens, k, M, exact, bound);
                    before = exact;
                }
            }
    /* Large: met, and one token short of the condition not met. */
    ck_assert_uint_eq(ask(et_leakage_labels, with_capacity(279, 16, 256, 128, 0.5)),
                      127 * 24 + 128 * 8 + 1);
    ck_assert_uint_lt(ask(et_leakage_labels, with_capacity(40, 16, 32, 16, 0.5)),
                      15 * 24 + 16 * 8 + 1);
    /* No room to fill or to drop: no leakage. */
    ck_assert_uint_eq(ask(et_leakage_labels, with_capacity(16, 8, 16, 8, 1)), 1);
    ck_assert_uint_eq(ask(et_leakage_labels, with_capacity(16, 16, 16, 8, 0)), 1);
}
END_TEST

START_TEST(labels_refuse)
{
    const struct {
        et_leakage_case c;
        const char *message;
    } cases[] = {
        {{(et_leakage_rule)5, 4, 2, 3, 0, 0}, "exact leakage: rule 5 is none of the five"},
        {{ET_LEAKAGE_TC, 0, 0, 3, 0, 0}, "exact leakage: 0 tokens; 1 to 2^32"},
        {{ET_LEAKAGE_TOPK, ((size_t)1 << 32) + 1, 2, 3, 0, 0},
         "exact leakage: 4294967297 tokens; 1 to 2^32"},
        {{ET_LEAKAGE_TOPK, 4, 0, 3, 0, 0}, "exact leakage: k = 0 of 4 tokens; 1 to 4"},
        {{ET_LEAKAGE_TOPK, 4, 5, 3, 0, 0}, "exact leakage: k = 5 of 4 tokens; 1 to 4"},
        {{ET_LEAKAGE_TOPK, 4, 2, 0, 0, 0}, "exact leakage: 0 levels; 1 to 2^32"},
        {{ET_LEAKAGE_TOPK, 4, 2, (UINT64_C(1) << 32) + 1, 0, 0},
         "exact leakage: 4294967297 levels; 1 to 2^32"},
        {{ET_LEAKAGE_ET_CAPACITY, 4, 2, 3, 4, 0.5},
         "exact leakage: 4 of 3 levels pass; at most all"},
        {{ET_LEAKAGE_ET_CAPACITY, 4, 2, 3, 2, -0.5},
         "exact leakage: capacity -0.5; 0 or more, below 2^32"},
        {{ET_LEAKAGE_ET_CAPACITY, 4, 2, 3, 2, (double)INFINITY},
         "exact leakage: capacity inf; 0 or more, below 2^32"},
        {{ET_LEAKAGE_ET_CAPACITY, 4, 2, 3, 2, (double)NAN},
         "exact leakage: capacity nan; 0 or more, below 2^32"},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        et_error error;
        uint64_t labels = 7;
        refused(et_leakage_labels(&cases[i].c, &labels, &error), &error, cases[i].message);
        refused(et_leakage_labels_suffice(&cases[i].c, &labels, &error), &error, cases[i].message);
        ck_assert_uint_eq(labels, 7);
    }
    et_error error;
    uint64_t labels;
    et_leakage_case large = with_capacity(60000, 1000, 65536, 32768, 0.5);
    ck_assert_int_eq(et_leakage_labels(&large, &labels, &error), ET_EINVAL);
    ck_assert_ptr_nonnull(strstr(error.text, "be content with the bound, 65534501 labels"));
    ck_assert_uint_eq(ask(et_leakage_labels_suffice, large),
                      32767 * UINT64_C(1500) + 32768 * 500 + 1);
    large.tokens = 67035; /* up + M - 1: the bound is met, and nothing is to be computed */
    ck_assert_uint_eq(ask(et_leakage_labels, large), ask(et_leakage_labels_suffice, large));
    ck_assert_uint_eq(labels_of(ET_LEAKAGE_TOPK, 100000, 1000, 65536), 65535 * 1000 + 1);
}
END_TEST

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
        DEMAND((et_codec_compare(t + 1, score, N, cutoff) > 0) == z[t],
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
    DEMAND(*carried < N || (chosen && decoded), "%s, N = %zu: carried, but %s", et_dtype_name(type),
           N, chosen ? "not decoded" : "not chosen");
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
            DEMAND(survives(f.type, N, z, &carried) && carried == N,
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
            DEMAND(survives(FORMATS[i].type, N, z, &carried) && carried == N,
                   "%s, selection %zu: %zu tokens carried", et_dtype_name(FORMATS[i].type), j,
                   carried);
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
                DEMAND(scores[t] == et_round_to_dtype(scores[t], f.type), "%s: score %zu is %a",
                       et_dtype_name(f.type), t, scores[t]);
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
            DEMAND(rank == 0 || by_score(&scores[rank - 1], &scores[rank]) < 0,
                   "two equal scores, at rank %zu", rank);
        }
        ck_assert(chooses(LONG, z, ranks));
    }
    free(scores);
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
    TCase *labels = add_case(suite, "labels");
    tcase_add_test(labels, known_values);
    tcase_add_test(labels, labels_by_the_definition);
    tcase_add_test(labels, labels_by_states_agree);
    tcase_add_test(labels, labels_of_large_cases);
    tcase_add_test(labels, when_the_bounds_are_met);
    tcase_add_test(labels, smallest_counterexample);
    tcase_add_test(labels, advice_of_the_proofs);
    tcase_add_test(labels, capacity_of_four_tokens);
    tcase_add_test(labels, capacity_grows_to_its_bound);
    tcase_add_test(labels, labels_refuse);
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
