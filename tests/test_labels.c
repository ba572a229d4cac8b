/* test_labels.c: exact numbers of labels.
 *
 * They have three witnesses: the recursion taken literally, over all M^N score sequences; the
 * recursion over states, for sizes that reach further; and the table and points that were computed
 * elsewhere. The advices of the proofs in label_counts.c are decoded, token by token.
 */
#include "etref/leakage.h"
#include "etref/routing.h"
#include "tests/check_main.h"
#include "tests/expect.h"

#include <stdbool.h>
#include <string.h>

static void same_labels(const char *what, size_t N, size_t k, uint64_t M, uint64_t got,
                        uint64_t want)
{
    ck_assert_msg(got == want, "%s, N = %zu, k = %zu, M = %llu: got %llu, want %llu", what, N, k,
                  (unsigned long long)M, (unsigned long long)got, (unsigned long long)want);
}

static void at_most(const char *what, size_t N, size_t k, uint64_t M, uint64_t got, uint64_t most)
{
    ck_assert_msg(got <= most, "%s, N = %zu, k = %zu, M = %llu: got %llu, at most %llu", what, N, k,
                  (unsigned long long)M, (unsigned long long)got, (unsigned long long)most);
}

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

/* f(m, j, D) of label_counts.c for j <= k, D <= M, with and without levels below (1) and above (2):
 * state[flags][j][D], of one m; the next m is written to `next`. */
static void longer_by_one(size_t k, size_t M, const uint64_t *state, uint64_t *next)
{
    size_t row = M + 1, plane = (k + 1) * row;
    for (size_t flags = 0; flags < 4; flags++)
        for (size_t j = 0; j <= k; j++)
            for (size_t D = 0; D <= M; D++) {
                const uint64_t *here = state + flags * plane + j * row + D;
                uint64_t best = 0;
                if ((flags & 1) != 0) best = *here; /* at or below H */
                if ((flags & 2) != 0 && j > 0 && *(here - row) > best) best = *(here - row);
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
                ck_assert_msg((exact == bound) == (M <= N - k + 1), "N = %zu, k = %zu, M = %d: %s",
                              N, k, (int)M,
                              "the bound is met where it should not be, or not where it should");
                ck_assert_msg(exact <= choose(N, k), "more than C(%zu,%zu)", N, k);
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
        ck_assert_msg(back == z, "N = %zu, M = %zu, sequence %zu, k = %zu: got %x, want %x", w->N,
                      w->M, i, f->k, (unsigned)back, (unsigned)z);
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

int main(void)
{
    Suite *suite = suite_create("labels");
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
    return run_suite(suite);
}
