/* test_leakage_data.c: the golden bounds and labels in data/leakage, every one computed again.
 *
 * The values were printed by the tool (tools/leakage-values); here they meet computations that share
 * no code with ref/: binomials as big integers or by libm's lgamma in long double, with a bound for
 * its error; numbers of labels by the recursion that defines them, over all score sequences, where
 * there are at most 300000. The library must agree with the files, too, bit for bit: so it is held
 * to them where a case is too large for the definition. The codec's values: test_codec_data.c.
 */
#include "etref/leakage.h"
#include "tests/check_main.h"
#include "tests/expect.h"
#include "tests/leakage_files.h"

#include <stdbool.h>
#include <stddef.h>

/* ---- logarithms with an error bound ---- */

typedef struct estimate {
    long double value, error;
} estimate;

static const long double LN2 = 0.693147180559945309417232121458176568L;
static const double ULPS = 0.52; /* of the library, claimed in leakage.h */

/* Of long double as it runs: valgrind has 53 bits where the processor has 64. */
static long double unit(void)
{
    volatile long double u = 1, sum = 2;
    for (; sum > 1; sum = 1 + u / 2) u /= 2;
    return 2 * u;
}

static double worst_in_ulps; /* of all values seen: how far beyond the estimate's own error */

static void agrees(const char *what, double got, estimate want)
{
    long double ulp = (long double)nextafter(fabs(got), INFINITY) - (long double)fabs(got);
    long double off = fabsl((long double)got - want.value);
    ck_assert_msg(want.error <= 4 * ulp + 0x1p-58L || unit() > 0x1p-60L,
                  "%s: the check is too coarse", what);
    ck_assert_msg(off <= ULPS * ulp + want.error, "%s: the file has %.17g, want %.20Lg +- %.2Lg",
                  what, got, want.value, want.error);
    if (off > want.error && (double)((off - want.error) / ulp) > worst_in_ulps)
        worst_in_ulps = (double)((off - want.error) / ulp);
}

/* log2 of a number that is exact but for one rounding. */
static estimate log2_of(long double x)
{
    long double value = log2l(x);
    return (estimate){value, 4 * unit() * (1 + fabsl(value))};
}

/* log2(a/b) for whole numbers, as good near 1 as elsewhere. */
static estimate log2_ratio(long double a, long double b)
{
    if (a < b) {
        estimate inverse = log2_ratio(b, a);
        return (estimate){-inverse.value, inverse.error};
    }
    long double value = log1pl((a - b) / b) / LN2;
    return (estimate){value, 8 * unit() * value};
}

/* Times an exact factor; the product and a division round. */
static estimate times(estimate e, long double factor)
{
    long double value = e.value * factor;
    return (estimate){value, fabsl(factor) * e.error + 2 * unit() * fabsl(value)};
}

static estimate plus(estimate a, estimate b)
{
    long double value = a.value + b.value;
    return (estimate){value, a.error + b.error + unit() * fabsl(value)};
}

/* C(N,k) = N/1 (N-1)/2 ...: every quotient is whole. Words of 32 bits, the lowest first. */
static estimate choose_exactly(uint64_t N, uint64_t k)
{
    uint32_t *words = calloc(k + 4, sizeof *words);
    size_t count = 1;
    ck_assert_ptr_nonnull(words);
    words[0] = 1;
    for (uint64_t i = 0; i < k; i++) {
        uint64_t carry = 0, rest = 0;
        for (size_t w = 0; w < count || carry > 0; w++) {
            carry += words[w] * (N - i);
            words[w] = (uint32_t)carry;
            carry >>= 32;
            if (w >= count) count = w + 1;
        }
        for (size_t w = count; w-- > 0;) {
            rest = rest << 32 | words[w];
            words[w] = (uint32_t)(rest / (i + 1));
            rest %= i + 1;
        }
        ck_assert_uint_eq(rest, 0);
        while (words[count - 1] == 0) count--;
    }
    long double leading = words[count - 1]; /* words below the third are less than a rounding */
    for (size_t w = 1; w < 3 && w < count; w++)
        leading += ldexpl(words[count - 1 - w], -32 * (int)w);
    estimate e = plus(log2_of(leading), (estimate){32 * (long double)(count - 1), 0});
    free(words);
    return e;
}

/* lgamma of glibc errs by a few units; 8 are allowed for each of the three. */
static estimate log2_choose(uint64_t N, uint64_t k)
{
    if (k > N - k) k = N - k;
    if (k == 0) return (estimate){0, 0};
    if (k <= 4096 && N < UINT64_C(1) << 31) return choose_exactly(N, k);
    long double all = lgammal((long double)N + 1), taken = lgammal((long double)k + 1),
                refused = lgammal((long double)(N - k) + 1);
    return (estimate){(all - taken - refused) / LN2, 8 * unit() * (all + taken + refused) / LN2};
}

/* ---- bounds ---- */

static const struct {
    const char *name;
    size_t place;
} bound_fields[] = {
    {"set", offsetof(et_leakage_bounds, set)},
    {"cutoff", offsetof(et_leakage_bounds, cutoff)},
    {"tied_cutoff", offsetof(et_leakage_bounds, tied_cutoff)},
    {"set_per_token", offsetof(et_leakage_bounds, set_per_token)},
    {"entropy", offsetof(et_leakage_bounds, entropy)},
    {"log_expansion", offsetof(et_leakage_bounds, log_expansion)},
    {"log_refused", offsetof(et_leakage_bounds, log_refused)},
    {"cutoff_per_token", offsetof(et_leakage_bounds, cutoff_per_token)},
    {"tied_cutoff_per_token", offsetof(et_leakage_bounds, tied_cutoff_per_token)},
};

static void same_as_the_librarys(const json_t *v, const et_leakage_setup *setup)
{
    et_leakage_bounds b;
    et_error error;
    done(et_leakage_bound(setup, &b, &error), &error);
    ck_assert_uint_eq(b.select, whole(v, "select"));
    for (size_t i = 0; i < COUNT(bound_fields); i++) {
        double got;
        memcpy(&got, (const char *)&b + bound_fields[i].place, sizeof got);
        ck_assert_msg(got == real(v, bound_fields[i].name), "%s: the library has %.17g",
                      bound_fields[i].name, got);
    }
}

static void check_bound(const json_t *v)
{
    const et_leakage_setup s = {whole(v, "tokens"), whole(v, "experts"), whole(v, "granularity"),
                                whole(v, "layers"), whole(v, "score_bits")};
    long double N = (long double)s.tokens, n = (long double)s.experts,
                G = (long double)s.granularity, L = (long double)s.layers;
    uint64_t k = s.tokens * s.granularity / s.experts;
    same_as_the_librarys(v, &s);
    ck_assert_uint_eq(whole(v, "select"), k);
    estimate set = log2_choose(s.tokens, k), each = times(log2_ratio(n, G), L * G), other = {0, 0};
    estimate cutoff = {(long double)s.score_bits, 0};
    estimate tied = log2_of((ldexpl(1, (int)s.score_bits) - 1) * (long double)k + 1);
    if (n > G) other = times(log2_ratio(n, n - G), L * (n - G));
    agrees("set", real(v, "set"), set);
    agrees("cutoff", real(v, "cutoff"), cutoff);
    agrees("tied_cutoff", real(v, "tied_cutoff"), tied);
    agrees("set_per_token", real(v, "set_per_token"), times(set, L * n / N));
    agrees("cutoff_per_token", real(v, "cutoff_per_token"), times(cutoff, L * n / N));
    agrees("tied_cutoff_per_token", real(v, "tied_cutoff_per_token"), times(tied, L * n / N));
    agrees("log_expansion", real(v, "log_expansion"), each);
    agrees("entropy", real(v, "entropy"), plus(each, other));
    if (n > G)
        agrees("log_refused", real(v, "log_refused"), times(log2_ratio(n - G, G), L * G));
    else
        ck_assert(real(v, "log_refused") == -INFINITY);
}

START_TEST(bounds)
{
    const kind kinds[] = {{"bound", check_bound}};
    worst_in_ulps = 0;
    ck_assert_uint_eq(check_file("bounds", kinds, COUNT(kinds)), 79);
    printf("bounds: at most %.3f ulp from the check, beyond its own error\n", worst_in_ulps);
}
END_TEST

/* The paper's figure: 50.5 bits per token, in the first value. */
START_TEST(the_papers_example)
{
    json_t *file = open_file("bounds");
    const json_t *first = json_array_get(field(file, "groups"), 0);
    double bits = real(json_array_get(field(first, "values"), 0), "log_refused");
    ck_assert_msg(fabs(bits - 50.5) < 0.05, "%.17g", bits);
    json_decref(file);
}
END_TEST

/* ---- labels, from their definition ---- */

static const char *const rule_names[] = {"topk", "threshold", "tc", "et", "et-capacity"};

enum { LONGEST = 7, MOST_LEVELS = 8 };
static const double MOST_SEQUENCES = 300000, MOST_OF_CAUSAL_RULES = 20000;

/* A rule on a short sequence; `level` [N] is filled one token after another. */
typedef struct world {
    et_leakage_case c;
    size_t lower, upper; /* with capacity */
    uint64_t level[LONGEST + 1];
} world;

static unsigned top(const world *w, size_t count)
{
    unsigned taken = 0;
    for (size_t t = 0; t < w->c.tokens; t++) {
        size_t better = 0;
        for (size_t s = 0; s < w->c.tokens; s++)
            better += w->level[s] > w->level[t] || (s < t && w->level[s] == w->level[t]);
        taken |= (unsigned)(better < count) << t;
    }
    return taken;
}

static unsigned from_level(const world *w, uint64_t lowest, size_t *count)
{
    unsigned taken = 0;
    *count = 0;
    for (size_t t = 0; t < w->c.tokens; t++)
        if (w->level[t] >= lowest) {
            taken |= 1U << t;
            ++*count;
        }
    return taken;
}

/* Which tokens are taken, token t as bit t. */
static unsigned decide(const world *w)
{
    size_t count;
    unsigned taken;
    uint64_t lowest = w->c.levels;
    switch (w->c.rule) {
    case ET_LEAKAGE_TOPK: return top(w, w->c.select);
    case ET_LEAKAGE_THRESHOLD: /* from the k-th largest score up */
        while (taken = from_level(w, lowest, &count), count < w->c.select) lowest--;
        return taken;
    case ET_LEAKAGE_TC:
    case ET_LEAKAGE_ET: return from_level(w, w->c.levels / 2 + 1, &count); /* any fixed threshold */
    case ET_LEAKAGE_ET_CAPACITY: break;
    }
    taken = from_level(w, w->c.levels - w->c.passing + 1, &count);
    if (count < w->lower) return top(w, w->lower);
    return count > w->upper ? top(w, w->upper) : taken;
}

/* chi(S) = max over the next score of chi(S, z=0) + chi(S, z=1), to the letter. chi [2^t] out: for
 * every z on the first t tokens, chi of the sequences that begin with level[0 .. t-1] and are
 * decided so. */
static void count_labels(world *w, size_t t, unsigned *chi)
{
    unsigned below[2 << LONGEST];
    size_t size = (size_t)1 << t;
    memset(chi, 0, size * sizeof *chi);
    if (t == w->c.tokens) {
        chi[decide(w)] = 1;
        return;
    }
    for (w->level[t] = 1; w->level[t] <= w->c.levels; w->level[t]++) {
        count_labels(w, t + 1, below);
        for (size_t z = 0; z < size; z++) {
            unsigned sum = below[z] + below[z + size];
            chi[z] = sum > chi[z] ? sum : chi[z];
        }
    }
}

static uint64_t labels_by_definition(const et_leakage_case *c)
{
    unsigned chi;
    world w = {.c = *c};
    double up = floor((double)c->select * (1 + c->capacity)),
           lo = floor((double)c->select * (1 - c->capacity));
    w.upper = up < (double)c->tokens ? (size_t)up : c->tokens;
    w.lower = lo > 0 ? (size_t)lo : 0;
    count_labels(&w, 0, &chi);
    return chi;
}

static size_t by_definition; /* numbers of labels that the definition confirmed */

static void check_chi(const et_leakage_case *c, uint64_t labels)
{
    et_error error;
    uint64_t got;
    bool causal = c->rule == ET_LEAKAGE_TC || c->rule == ET_LEAKAGE_ET;
    double sequences = pow((double)c->levels, (double)c->tokens);
    done(et_leakage_labels(c, &got, &error), &error);
    if (c->tokens <= LONGEST && sequences <= (causal ? MOST_OF_CAUSAL_RULES : MOST_SEQUENCES)) {
        uint64_t want = labels_by_definition(c);
        ck_assert_msg(labels == want,
                      "%s, N = %zu, k = %zu, M = %zu, %zu pass: %zu in the file, want %zu",
                      rule_names[c->rule], c->tokens, c->select, (size_t)c->levels,
                      (size_t)c->passing, (size_t)labels, (size_t)want);
        by_definition++;
    }
    ck_assert_msg(labels == got, "%s, N = %zu, k = %zu, M = %zu: %zu in the file, the library: %zu",
                  rule_names[c->rule], c->tokens, c->select, (size_t)c->levels, (size_t)labels,
                  (size_t)got);
}

static et_leakage_case read_case(const json_t *v)
{
    return (et_leakage_case){
        .rule = (et_leakage_rule)index_of(word(v, "rule"), rule_names, COUNT(rule_names)),
        .tokens = whole(v, "tokens"),
        .select = whole(v, "select"),
    };
}

/* ---- labels, the file ---- */

static bool seen[COUNT(rule_names)][LONGEST + 1][LONGEST + 1];

static void check_table(const json_t *v)
{
    et_leakage_case c = read_case(v);
    const json_t *labels = field(v, "labels");
    ck_assert_uint_eq(json_object_size(labels), MOST_LEVELS - 1);
    for (c.levels = 2; c.levels <= MOST_LEVELS; c.levels++) {
        char name[24];
        snprintf(name, sizeof name, "%d", (int)c.levels);
        check_chi(&c, whole(labels, name));
    }
    agrees("set_bits", real(v, "set_bits"), log2_choose(c.tokens, c.select));
    if (c.tokens <= LONGEST) seen[c.rule][c.tokens][c.select] = true;
}

/* The numbers that suffice, by their formulas, and when they are met. */
static uint64_t check_attained(const et_leakage_case *c, uint64_t labels, bool attained)
{
    uint64_t N = c->tokens, k = c->select, M = c->levels, a = c->passing, suffice = 1;
    uint64_t lo = (uint64_t)fmax(0, floor((double)k * (1 - c->capacity)));
    uint64_t up = (uint64_t)fmin((double)N, floor((double)k * (1 + c->capacity)));
    bool must = true, must_not = false;
    switch (c->rule) {
    case ET_LEAKAGE_TOPK:
        suffice = (M - 1) * k + 1;
        must = M <= N - k + 1;
        must_not = !must;
        break;
    case ET_LEAKAGE_THRESHOLD:
        suffice = M;
        must = log2l((long double)M) <= log2_choose(N, k).value + 1e-12L;
        must_not = !must;
        break;
    case ET_LEAKAGE_ET_CAPACITY:
        suffice = a > 0 ? (a - 1) * up + (M - a) * lo + 1 : (M - 1) * lo + 1;
        must = a > 0 && N >= up + M - 1;
        break;
    default: break;
    }
    ck_assert(attained == (labels == suffice));
    ck_assert(attained ? !must_not : !must);
    return suffice;
}

/* What the specification names. */
static const uint64_t named[][5] = {
    {24, 12, 64, 706, 757},
    {32, 8, 256, 1810, 2041},
    {64, 16, 64, 994, 1009},
    {256, 16, 256, 4066, 4081},
};
static size_t named_points;
static bool capacity_example; /* N = 4, k = 2, C = 0.5, M = 3, two levels pass: 4 labels */

static void check_point(const json_t *v)
{
    et_leakage_case c = read_case(v);
    uint64_t labels = whole(v, "labels"), suffice = whole(v, "bound_labels");
    c.levels = whole(v, "levels");
    if (c.rule == ET_LEAKAGE_ET_CAPACITY) {
        c.passing = whole(v, "passing");
        c.capacity = real(v, "capacity");
        capacity_example |= c.tokens == 4 && c.select == 2 && c.levels == 3 && c.passing == 2 &&
                            c.capacity == 0.5 && labels == 4;
    }
    check_chi(&c, labels);
    ck_assert_uint_eq(suffice, check_attained(&c, labels, json_is_true(field(v, "attained"))));
    ck_assert_uint_le(labels, suffice);
    agrees("bits", real(v, "bits"), log2_of((long double)labels));
    agrees("bound_bits", real(v, "bound_bits"), log2_of((long double)suffice));
    agrees("set_bits", real(v, "set_bits"), log2_choose(c.tokens, c.select));
    for (size_t i = 0; i < COUNT(named); i++)
        named_points += c.rule == ET_LEAKAGE_TOPK && c.tokens == named[i][0] &&
                        c.select == named[i][1] && c.levels == named[i][2] &&
                        labels == named[i][3] && suffice == named[i][4];
}

/* No case before it, by tokens, then k, then bits, has more than 2^b labels. */
static void is_smallest(size_t N, size_t k, size_t b)
{
    et_leakage_case c = {.rule = ET_LEAKAGE_TOPK};
    for (c.tokens = 1; c.tokens <= N; c.tokens++)
        for (c.select = 1; c.select <= c.tokens; c.select++)
            for (size_t bits = 1; bits <= 3; bits++) {
                if (c.tokens == N && (c.select > k || (c.select == k && bits >= b))) return;
                c.levels = (uint64_t)1 << bits;
                ck_assert_uint_le(labels_by_definition(&c), c.levels);
            }
}

/* A pair conflicts if its scores agree up to a token that is decided differently. */
static bool conflict(const world *a, const world *b)
{
    for (size_t t = 0; t < a->c.tokens && a->level[t] == b->level[t]; t++)
        if ((decide(a) ^ decide(b)) >> t & 1) return true;
    return false;
}

static void check_counterexample(const json_t *v)
{
    world w[16];
    size_t b = whole(v, "score_bits"), count = json_array_size(field(v, "sequences"));
    ck_assert_uint_eq(count, whole(v, "labels"));
    ck_assert_uint_le(count, COUNT(w));
    ck_assert_uint_gt(count, (uint64_t)1 << b);
    for (size_t i = 0; i < count; i++) {
        const json_t *row = json_array_get(field(v, "sequences"), i);
        w[i].c = read_case(v);
        ck_assert_uint_le(w[i].c.tokens, LONGEST);
        ck_assert_uint_eq(json_array_size(field(row, "scores")), w[i].c.tokens);
        ck_assert_uint_eq(json_array_size(field(row, "taken")), w[i].c.tokens);
        for (size_t t = 0; t < w[i].c.tokens; t++)
            w[i].level[t] = (uint64_t)json_integer_value(json_array_get(field(row, "scores"), t));
        for (size_t t = 0; t < w[i].c.tokens; t++)
            ck_assert_int_eq(json_integer_value(json_array_get(field(row, "taken"), t)),
                             decide(&w[i]) >> t & 1);
        for (size_t j = 0; j < i; j++) ck_assert(conflict(&w[j], &w[i]));
    }
    et_leakage_case c = read_case(v);
    c.levels = (uint64_t)1 << b;
    check_chi(&c, count);
    is_smallest(c.tokens, c.select, b);
    agrees("bits", real(v, "bits"), log2_of((long double)count));
}

START_TEST(labels)
{
    const kind kinds[] = {
        {"table", check_table}, {"point", check_point}, {"counterexample", check_counterexample}};
    worst_in_ulps = 0;
    ck_assert_uint_eq(check_file("labels", kinds, COUNT(kinds)), 351);
    ck_assert_uint_eq(named_points, COUNT(named));
    ck_assert(capacity_example);
    for (size_t rule = ET_LEAKAGE_TOPK; rule <= ET_LEAKAGE_ET; rule++)
        for (size_t N = 1; N <= LONGEST; N++)
            for (size_t k = 1; k <= N; k++) ck_assert(seen[rule][N][k]);
    printf("labels: %zu by the definition; logarithms at most %.3f ulp off\n", by_definition,
           worst_in_ulps);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("leakage data");
    TCase *tests = add_case(suite, "values");
    tcase_add_test(tests, bounds);
    tcase_add_test(tests, the_papers_example);
    tcase_add_test(tests, labels);
    return run_suite(suite);
}
