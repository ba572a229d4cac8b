/* test_routing.c: the choice of the k best, the three rules, and the moving average.
 *
 * Decisions are tested exactly. Lists of scores, small enough to be decided by eye, stand beside
 * the mask, margins and order they must give; et_top itself is held against a full sort on lists
 * where nearly everything ties. All scores are small multiples of powers of two, so that margins
 * are exact in double and in float, and are compared with ==.
 *
 * Where a value is not exact (powers) it is compared with a direct evaluation of its definition,
 * within a few units of roundoff that are counted beside the comparison.
 */
#include "etref/random.h"
#include "etref/routing.h"
#include "ref/routing/top_k.h"
#include "tests/check_main.h"
#include "tests/expect.h"

#include <float.h>

static const et_real INF = (et_real)INFINITY;
static const double U = ET_UNIT_ROUNDOFF;

/* ---- the k best of a list ---- */

enum { LONGEST = 1000 };

/* Score j of a list of `count`. Few different values in most patterns: ties are the point. */
typedef et_real pattern(size_t j, size_t count);

static et_real uniform(size_t j)
{
    return (et_real)et_uniform(et_stream_open(7, "test.scores"), j, 0);
}

static et_real constant(size_t j, size_t count)
{
    (void)j, (void)count;
    return 1;
}

static et_real rising(size_t j, size_t count)
{
    (void)count;
    return (et_real)j;
}

static et_real falling(size_t j, size_t count)
{
    return (et_real)(count - j);
}

static et_real rising_in_steps(size_t j, size_t count)
{
    (void)count;
    return (et_real)(j / 3);
}

static et_real mountain(size_t j, size_t count)
{
    return (et_real)(j < count / 2 ? j : count - j);
}

static et_real two_values(size_t j, size_t count)
{
    (void)count;
    return uniform(j) < (et_real)0.5 ? -1 : 1;
}

static et_real five_values(size_t j, size_t count)
{
    (void)count;
    return (et_real)floor(5 * (double)uniform(j)) - 2;
}

static et_real signed_zeros(size_t j, size_t count)
{
    (void)count;
    return uniform(j) < (et_real)0.5 ? (et_real)-0.0 : (et_real)0.0;
}

static et_real all_different(size_t j, size_t count)
{
    (void)count;
    return uniform(j);
}

/* The full sort by the order's definition: insertion, stable, hence equal scores by index. */
static void sort_slowly(size_t count, const et_real *scores, et_ranked *sorted)
{
    for (size_t j = 0; j < count; j++) {
        size_t place = j;
        for (; place > 0 && scores[j] > sorted[place - 1].score; place--)
            sorted[place] = sorted[place - 1];
        sorted[place] = (et_ranked){scores[j], (int32_t)j};
    }
}

/* What et_top promises: the k best in order, the best of the others next, and nothing lost. */
static void check_top(const char *what, size_t count, size_t k, const et_real *scores,
                      const et_ranked *sorted)
{
    et_ranked items[LONGEST + 1];
    uint8_t seen[LONGEST + 1] = {0};
    et_rank(items, count, scores, 1);
    et_top(items, count, k);
    for (size_t j = 0; j < count; j++) {
        size_t index = (size_t)items[j].index;
        if (j <= k && items[j].index != sorted[j].index)
            ck_abort_msg("%s, best %zu of %zu: place %zu has item %zu, want %d", what, k, count, j,
                         index, (int)sorted[j].index);
        if (index >= count || seen[index]++ || items[j].score != scores[index])
            ck_abort_msg("%s, best %zu of %zu: item %zu lost its score or came twice", what, k,
                         count, index);
    }
}

START_TEST(the_best_are_those_of_a_full_sort)
{
    static const struct {
        const char *name;
        pattern *score;
    } patterns[] = {{"constant", constant},
                    {"rising", rising},
                    {"falling", falling},
                    {"steps", rising_in_steps},
                    {"mountain", mountain},
                    {"two values", two_values},
                    {"five values", five_values},
                    {"signed zeros", signed_zeros},
                    {"all different", all_different}};
    static const size_t counts[] = {0, 1, 2, 3, 5, 10, LONGEST};
    for (size_t p = 0; p < COUNT(patterns); p++)
        for (size_t c = 0; c < COUNT(counts); c++) {
            et_real scores[LONGEST];
            et_ranked sorted[LONGEST];
            for (size_t j = 0; j < counts[c]; j++) scores[j] = patterns[p].score(j, counts[c]);
            sort_slowly(counts[c], scores, sorted);
            for (size_t k = 0; k <= counts[c]; k++)
                check_top(patterns[p].name, counts[c], k, scores, sorted);
        }
}
END_TEST

/* Every list of up to six scores from three values, every k: nothing is left to luck. */
START_TEST(every_short_list_is_sorted)
{
    for (size_t count = 1, lists = 3; count <= 6; count++, lists *= 3)
        for (size_t list = 0; list < lists; list++) {
            et_real scores[6];
            et_ranked sorted[6];
            for (size_t j = 0, rest = list; j < count; j++, rest /= 3)
                scores[j] = (et_real)(rest % 3);
            sort_slowly(count, scores, sorted);
            for (size_t k = 0; k <= count; k++) check_top("short list", count, k, scores, sorted);
        }
}
END_TEST

START_TEST(ranks_are_read_with_a_step)
{
    const et_real scores[] = {1, 90, 2, 91, 3, 92};
    et_ranked items[3];
    et_rank(items, 3, scores, 2);
    for (int32_t j = 0; j < 3; j++) {
        ck_assert_int_eq(items[j].index, j);
        ck_assert(items[j].score == (et_real)(j + 1));
    }
}
END_TEST

START_TEST(margins_of_a_sorted_list)
{
    const et_ranked items[] = {{5, 3}, {3, 0}, {2, 1}, {2, 2}};
    const struct {
        size_t k;
        et_real margin[4];
    } known[] = {{0, {-INF, -INF, -INF, -INF}},
                 {1, {2, -2, -3, -3}},
                 {3, {3, 1, 0, 0}},
                 {4, {INF, INF, INF, INF}}};
    for (size_t v = 0; v < COUNT(known); v++)
        for (size_t j = 0; j < 4; j++)
            ck_assert(et_top_margin(items, 4, known[v].k, j) == known[v].margin[j]);
}
END_TEST

/* ---- token choice ---- */

enum { MOST = 5 }; /* experts, or tokens, of a hand-written list */

typedef struct tc_token {
    const char *what;
    size_t n, K;
    et_real r[MOST], bias[MOST];
    uint8_t mask[MOST];
    et_real margin[MOST];
    int32_t topk[MOST];
} tc_token;

/* One token each. The bias is 0 where it is not written. */
/* clang-format off */
static const tc_token tc_tokens[] = {
    {"two of four", 4, 2, {1, 3, 2, 0}, {0}, {0, 1, 1, 0}, {-1, 2, 1, -2}, {1, 2}},
    {"order by score, not by index", 4, 3, {1, 5, 3, 4}, {0}, {0, 1, 1, 1}, {-2, 4, 2, 3},
     {1, 3, 2}},
    {"a tie at the edge", 4, 2, {1, 2, 2, 2}, {0}, {0, 1, 1, 0}, {-1, 0, 0, 0}, {1, 2}},
    {"a tie among the chosen", 4, 2, {0, 2, 1, 2}, {0}, {0, 1, 0, 1}, {-2, 1, -1, 1}, {1, 3}},
    {"all tie", 4, 3, {7, 7, 7, 7}, {0}, {1, 1, 1, 0}, {0, 0, 0, 0}, {0, 1, 2}},
    {"-0 equals +0", 3, 1, {(et_real)-0.0, 0, 0}, {0}, {1, 0, 0}, {0, 0, 0}, {0}},
    {"+0 equals -0", 3, 2, {0, (et_real)-0.0, 0}, {0}, {1, 1, 0}, {0, 0, 0}, {0, 1}},
    {"all negative", 3, 1, {-3, -1, -2}, {0}, {0, 1, 0}, {-2, 1, -1}, {1}},
    {"every expert", 3, 3, {1, 3, 2}, {0}, {1, 1, 1}, {INFINITY, INFINITY, INFINITY},
     {1, 2, 0}},
    {"one expert", 1, 1, {-4}, {0}, {1}, {INFINITY}, {0}},
    {"a bias turns the choice", 3, 1, {1, 0, 0.5}, {-1, 0.25, 0}, {0, 0, 1}, {-0.5, -0.25, 0.25},
     {2}},
    {"a bias makes a tie", 3, 1, {1, 2, 3}, {2, 1, 0}, {1, 0, 0}, {0, 0, 0}, {0}},
    {"a bias breaks a tie", 3, 1, {1, 1, 1}, {0, 0, 0.5}, {0, 0, 1}, {-0.5, -0.5, 0.5}, {2}},
};
/* clang-format on */

START_TEST(token_choice_by_eye)
{
    for (size_t v = 0; v < COUNT(tc_tokens); v++) {
        const tc_token *c = &tc_tokens[v];
        uint8_t mask[MOST];
        et_real margin[MOST];
        int32_t topk[MOST];
        et_error error;
        ck_assert_int_eq(et_token_choice(1, c->n, c->K, c->r, c->bias, mask, margin, topk, &error),
                         ET_OK);
        same_mask(c->what, c->n, mask, c->mask);
        same_reals(c->what, c->n, margin, c->margin);
        same_integers(c->what, c->K, topk, c->topk);
    }
}
END_TEST

/* Three tokens in one call; the bias steers each of them; without topk, and without a bias. */
START_TEST(token_choice_goes_token_by_token)
{
    const et_real r[] = {3, 1, 2, 1, 3, 2, 1, 2, 3}, bias[] = {0, 0, 1.5};
    const uint8_t plain[] = {1, 0, 1, 0, 1, 1, 0, 1, 1}, biased[] = {0, 0, 1, 0, 0, 1, 0, 0, 1};
    const int32_t order[] = {0, 2, 1, 2, 2, 1};
    uint8_t mask[9];
    et_real margin[9];
    int32_t topk[6];
    ck_assert_int_eq(et_token_choice(3, 3, 2, r, NULL, mask, margin, topk, NULL), ET_OK);
    same_mask("without bias", 9, mask, plain);
    same_integers("without bias", 6, topk, order);
    ck_assert_int_eq(et_token_choice(3, 3, 1, r, bias, mask, margin, NULL, NULL), ET_OK);
    same_mask("with bias", 9, mask, biased);
    ck_assert_int_eq(et_token_choice(0, 3, 1, r, bias, mask, margin, NULL, NULL), ET_OK);
    same_mask("no token", 9, mask, biased); /* untouched */
}
END_TEST

START_TEST(token_choice_refuses)
{
    const et_real r[] = {1, 2, 3};
    uint8_t mask[] = {9, 9, 9};
    et_real margin[3];
    et_error error;
    refused(et_token_choice(1, 3, 0, r, NULL, mask, margin, NULL, &error), &error,
            "token choice: K = 0 of 3 experts; 1 to 3");
    refused(et_token_choice(1, 3, 4, r, NULL, mask, margin, NULL, &error), &error,
            "token choice: K = 4 of 3 experts; 1 to 3");
    same_mask("refused", 3, mask, (const uint8_t[]){9, 9, 9});
}
END_TEST

/* ---- expert choice ---- */

typedef struct ec_expert {
    const char *what;
    size_t P, k;
    et_real r[MOST];
    uint8_t mask[MOST];
    et_real margin[MOST];
    et_real cutoff;
    int32_t topk[MOST];
} ec_expert;

/* One expert and one pool each. */
/* clang-format off */
static const ec_expert ec_experts[] = {
    {"two of four", 4, 2, {1, 3, 2, 0}, {0, 1, 1, 0}, {-1, 2, 1, -2}, 2, {1, 2}},
    {"a tie at the edge", 4, 2, {1, 2, 2, 2}, {0, 1, 1, 0}, {-1, 0, 0, 0}, 2, {1, 2}},
    {"all tie", 5, 3, {4, 4, 4, 4, 4}, {1, 1, 1, 0, 0}, {0, 0, 0, 0, 0}, 4, {0, 1, 2}},
    {"-0 equals +0", 3, 1, {(et_real)-0.0, 0, 0}, {1, 0, 0}, {0, 0, 0}, 0, {0}},
    {"the whole pool", 3, 3, {1, 3, 2}, {1, 1, 1}, {INFINITY, INFINITY, INFINITY}, 1, {1, 2, 0}},
    {"a pool of one", 1, 1, {-4}, {1}, {INFINITY}, -4, {0}},
    {"all negative", 3, 2, {-3, -1, -2}, {0, 1, 1}, {-1, 2, 1}, -2, {1, 2}},
};
/* clang-format on */

START_TEST(expert_choice_by_eye)
{
    for (size_t v = 0; v < COUNT(ec_experts); v++) {
        const ec_expert *c = &ec_experts[v];
        uint8_t mask[MOST];
        et_real margin[MOST], cutoff;
        int32_t topk[MOST];
        et_error error;
        ck_assert_int_eq(
            et_expert_choice(c->P, 1, c->P, c->k, c->r, mask, margin, &cutoff, topk, 0, &error),
            ET_OK);
        same_mask(c->what, c->P, mask, c->mask);
        same_reals(c->what, c->P, margin, c->margin);
        same_reals(c->what, 1, &cutoff, &c->cutoff);
        same_integers(c->what, c->k, topk, c->topk);
    }
}
END_TEST

/* Two pools of three tokens, two experts, k = 2, beginning at token 10 of the step. Token 11 is
 * taken by nobody, token 13 by both; the pools have different cutoffs. */
START_TEST(expert_choice_goes_pool_by_pool)
{
    const et_real r[] = {5, 0, /**/ 1, 1, /**/ 4, 2, /**/ 9, 6, /**/ 8, 3, /**/ 2, 6};
    const uint8_t want[] = {1, 0, 0, 1, 1, 1, 1, 1, 1, 0, 0, 1};
    const et_real margins[] = {4, -1, -3, 1, 3, 2, 7, 3, 6, -3, -6, 3}, cutoffs[] = {4, 1, 8, 6};
    const int32_t order[] = {10, 12, 12, 11, 13, 14, 13, 15};
    uint8_t mask[12];
    et_real margin[12], cutoff[4];
    int32_t topk[8];
    ck_assert_int_eq(et_expert_choice(6, 2, 3, 2, r, mask, margin, cutoff, topk, 10, NULL), ET_OK);
    same_mask("two pools", 12, mask, want);
    same_reals("two pools", 12, margin, margins);
    same_reals("two pools, cutoffs", 4, cutoff, cutoffs);
    same_integers("two pools, order", 8, topk, order);
    /* The same tokens as one pool: the second half now competes with the first. */
    const uint8_t together[] = {0, 0, 0, 0, 0, 0, 1, 1, 1, 0, 0, 1};
    ck_assert_int_eq(et_expert_choice(6, 2, 6, 2, r, mask, margin, cutoff, NULL, 0, NULL), ET_OK);
    same_mask("one pool", 12, mask, together);
    same_reals("one pool, cutoffs", 2, cutoff, (const et_real[]){8, 6});
}
END_TEST

START_TEST(expert_choice_refuses)
{
    static const struct {
        size_t N, P, k;
        const char *message;
    } wrong[] = {
        {6, 4, 1, "expert choice: pools of 4 tokens do not divide 6"},
        {6, 0, 1, "expert choice: pools of 0 tokens do not divide 6"},
        {6, 12, 1, "expert choice: pools of 12 tokens do not divide 6"},
        {6, 3, 0, "expert choice: k = 0 in pools of 3 tokens; 1 to 3"},
        {6, 3, 4, "expert choice: k = 4 in pools of 3 tokens; 1 to 3"},
    };
    const et_real r[6] = {0};
    for (size_t v = 0; v < COUNT(wrong); v++) {
        uint8_t mask[6];
        et_real margin[6], cutoff[6];
        et_error error;
        refused(et_expert_choice(wrong[v].N, 1, wrong[v].P, wrong[v].k, r, mask, margin, cutoff,
                                 NULL, 0, &error),
                &error, wrong[v].message);
    }
}
END_TEST

/* ---- expert threshold ---- */

enum { OFF = 99 };

typedef struct et_expert_case {
    const char *what;
    size_t N;
    et_real r[MOST], c;
    bool inclusive;
    size_t lower, upper; /* of the capacity; upper OFF: none */
    uint8_t mask[MOST];
    et_real margin[MOST];
    int32_t passed;
} et_expert_case;

#define STRICT    false
#define INCLUSIVE true
/* clang-format off */
static const et_expert_case et_experts[] = {
    {"strict at equality", 3, {2, 1, 3}, 2, STRICT, 0, OFF, {0, 0, 1}, {0, -1, 1}, 1},
    {"inclusive at equality", 3, {2, 1, 3}, 2, INCLUSIVE, 0, OFF, {1, 0, 1}, {0, -1, 1}, 2},
    {"-0 does not pass +0", 2, {(et_real)-0.0, 0}, 0, STRICT, 0, OFF, {0, 0}, {0, 0}, 0},
    {"-0 reaches +0", 2, {(et_real)-0.0, 0}, 0, INCLUSIVE, 0, OFF, {1, 1}, {0, 0}, 2},
    {"+0 does not pass -0", 2, {0, 1}, (et_real)-0.0, STRICT, 0, OFF, {0, 1}, {0, 1}, 1},
    {"all pass", 3, {2, 1, 3}, 0.5, STRICT, 0, OFF, {1, 1, 1}, {1.5, 0.5, 2.5}, 3},
    {"none pass", 3, {2, 1, 3}, 4, STRICT, 0, OFF, {0, 0, 0}, {-2, -3, -1}, 0},
    {"within the bounds, margins to the threshold", 4, {4, 1, 3, 0}, 2, STRICT, 2, 2,
     {1, 0, 1, 0}, {2, -1, 1, -2}, 2},
    {"padded to the lower bound", 4, {4, 1, 3, 0}, 3.5, STRICT, 3, 4, {1, 1, 1, 0},
     {4, 1, 3, -1}, 1},
    {"padded by score, ties by index", 5, {1, 2, 0, 2, 2}, 9, STRICT, 2, 4,
     {0, 1, 0, 1, 0}, {-1, 0, -2, 0, 0}, 0},
    {"padded with everyone", 3, {1, 2, 0}, 1.5, STRICT, 3, 3, {1, 1, 1},
     {INFINITY, INFINITY, INFINITY}, 1},
    {"clipped to the upper bound by score", 4, {1, 4, 2, 3}, 0, STRICT, 0, 2, {0, 1, 0, 1},
     {-2, 2, -1, 1}, 4},
    {"clipped, ties by index", 5, {1, 3, 3, 3, 3}, 0, STRICT, 1, 2, {0, 1, 1, 0, 0},
     {-2, 0, 0, 0, 0}, 5},
    {"clipped to nobody", 3, {1, 2, 3}, 0, STRICT, 0, 0, {0, 0, 0},
     {-INFINITY, -INFINITY, -INFINITY}, 3},
    {"clipped by one", 3, {1, 2, 3}, 0, STRICT, 0, 2, {0, 1, 1}, {-1, 1, 2}, 3},
    {"padded by one", 3, {1, 2, 3}, 2.5, STRICT, 2, 3, {0, 1, 1}, {-1, 1, 2}, 1},
    {"inclusive counts for the bounds", 3, {1, 1, 1}, 1, INCLUSIVE, 0, 2, {1, 1, 0},
     {0, 0, 0}, 3},
    {"bounds beyond N mean N", 3, {-1, -2, -3}, -2, STRICT, 4, 9, {1, 1, 1},
     {INFINITY, INFINITY, INFINITY}, 1},
    {"strict counts for the bounds", 3, {1, 1, 1}, 1, STRICT, 1, 2, {1, 0, 0}, {0, 0, 0},
     0},
};
/* clang-format on */

START_TEST(expert_threshold_by_eye)
{
    for (size_t v = 0; v < COUNT(et_experts); v++) {
        const et_expert_case *c = &et_experts[v];
        const et_capacity bounds = {c->lower, c->upper};
        uint8_t mask[MOST];
        et_real margin[MOST];
        int32_t passed;
        et_error error;
        ck_assert_int_eq(et_expert_threshold(c->N, 1, c->r, &c->c, c->inclusive,
                                             c->upper == OFF ? NULL : &bounds, mask, margin,
                                             &passed, &error),
                         ET_OK);
        same_mask(c->what, c->N, mask, c->mask);
        same_reals(c->what, c->N, margin, c->margin);
        same_integers(c->what, 1, &passed, &c->passed);
    }
}
END_TEST

/* Three experts with a threshold each and bounds [1, 2]: the first is clipped, the second left as
 * it is, the third padded. */
START_TEST(expert_threshold_goes_expert_by_expert)
{
    const et_real r[] = {5, 0, 1, /**/ 6, 7, 2, /**/ 7, 3, 3, /**/ 4, 4, 0}, c[] = {3, 5, 8};
    const uint8_t want[] = {0, 0, 0, 1, 1, 0, 1, 0, 1, 0, 0, 0};
    const et_real margins[] = {-1, -5, -2, 1, 2, -1, 2, -2, 1, -2, -1, -3};
    const et_capacity bounds = {1, 2};
    uint8_t mask[12];
    et_real margin[12];
    int32_t passed[3];
    ck_assert_int_eq(et_expert_threshold(4, 3, r, c, false, &bounds, mask, margin, passed, NULL),
                     ET_OK);
    same_mask("three experts", 12, mask, want);
    same_reals("three experts", 12, margin, margins);
    same_integers("three experts", 3, passed, (const int32_t[]){4, 1, 0});
    ck_assert_int_eq(et_expert_threshold(0, 3, r, c, false, &bounds, mask, margin, passed, NULL),
                     ET_OK);
    same_integers("no token", 3, passed, (const int32_t[]){0, 0, 0});
}
END_TEST

/* floor(k(1-C)) and floor(k(1+C)) as binary64 computes them, not as arithmetic would. */
START_TEST(capacity_bounds_are_those_of_binary64)
{
    static const struct {
        size_t k;
        double C;
        size_t N, lower, upper;
    } known[] = {
        {12, 0.5, 100, 6, 18},     /* exact */
        {5, 0.5, 100, 2, 7},       /* 2.5 and 7.5: floor, not nearest */
        {7, 0, 100, 7, 7},         /* no slack at all */
        {3, 1, 100, 0, 6},         /* no lower bound */
        {5, 2, 100, 0, 15},        /* C > 1: the lower bound is 0, not negative */
        {12, 0.5, 18, 6, 18},      /* the upper bound is N */
        {12, 0.5, 17, 6, 17},      /* ... or more: clipped */
        {12, 0.5, 4, 4, 4},        /* both beyond N */
        {1, 1e6, 7, 0, 7},         /* far beyond */
        {10, 0.9, 100, 0, 19},     /* 10 (1 - 0.9) = 0.99999999999999978 */
        {100, 0.56, 200, 43, 156}, /* 100 (1 - 0.56) = 43.99999999999999 */
        {25, 0.16, 100, 21, 28},   /* 25 (1 + 0.16) = 28.999999999999996 */
    };
    for (size_t v = 0; v < COUNT(known); v++) {
        et_capacity b = et_capacity_bounds(known[v].k, known[v].C, known[v].N);
        ck_assert_msg(b.lower == known[v].lower && b.upper == known[v].upper,
                      "k = %zu, C = %g, N = %zu: got [%zu, %zu], want [%zu, %zu]", known[v].k,
                      known[v].C, known[v].N, b.lower, b.upper, known[v].lower, known[v].upper);
    }
}
END_TEST

START_TEST(kth_largest_of_each_expert)
{
    /* Two experts: 3 1 3 2 -1 and -0 0 5 -0 0. */
    const et_real r[] = {3, (et_real)-0.0, 1, 0, 3, 5, 2, (et_real)-0.0, -1, 0};
    const et_real want[5][2] = {{3, 5}, {3, 0}, {2, 0}, {1, 0}, {-1, 0}};
    et_real kth[2];
    et_error error;
    for (size_t k = 1; k <= 5; k++) {
        ck_assert_int_eq(et_kth_largest(5, 2, k, r, kth, &error), ET_OK);
        same_reals("k-th largest", 2, kth, want[k - 1]);
    }
    refused(et_kth_largest(5, 2, 0, r, kth, &error), &error,
            "k-th largest: k = 0 of 5 tokens; 1 to 5");
    refused(et_kth_largest(5, 2, 6, r, kth, &error), &error,
            "k-th largest: k = 6 of 5 tokens; 1 to 5");
}
END_TEST

/* ---- the moving average ---- */

START_TEST(thresholds_of_the_average)
{
    static const struct {
        const char *what;
        bool correction;
        double beta;
        size_t updates;
        et_real ema, threshold;
    } known[] = {
        {"plain", false, 0.5, 3, 7, 7},
        {"plain before the first update", false, 0.5, 0, 7, 7},
        {"before the first update", true, 0.5, 0, 0, 0},
        {"after one: / (1 - 1/2)", true, 0.5, 1, 3, 6},
        {"after three: / (1 - 1/8)", true, 0.5, 3, 7, 8},
        {"after two: / (1 - 9/16)", true, 0.75, 2, -7, -16},
        {"no memory", true, 0, 5, 3, 3},
        {"long ago", true, 0.5, 1000000, 3, 3},
    };
    for (size_t v = 0; v < COUNT(known); v++) {
        et_real c[2] = {known[v].ema, 2 * known[v].ema};
        const et_real want[2] = {known[v].threshold, 2 * known[v].threshold};
        et_ema_threshold(NULL, 2, c, known[v].beta, known[v].correction, known[v].updates, c);
        same_reals(known[v].what, 2, c, want);
    }
}
END_TEST

/* 1 - beta^u for the paper's 0.999 against libm's pow. However beta^u is multiplied together, its
 * rounding errors, each counted as often as the factor it sits in is used, number at most u - 1;
 * pow adds one. */
START_TEST(the_correction_is_a_power)
{
    for (size_t u = 1; u <= 5000; u += 7) {
        et_real ema = 1, c;
        et_ema_threshold(NULL, 1, &ema, 0.999, true, u, &c);
        double power = pow(0.999, (double)u), weight = 1 - power;
        double error = (double)u * (DBL_EPSILON / 2) * power / weight; /* relative, of weight */
        near("1 / (1 - 0.999^u)", (double)c * weight, 1, error + 4 * U);
    }
}
END_TEST

START_TEST(the_average_moves)
{
    const et_real kth[] = {8, -4, 0}, want[] = {5, 2, 3};
    et_real ema[] = {4, 4, 4};
    et_ema_update(NULL, 3, 0.75, kth, ema); /* 3/4 * 4 + 1/4 * kth */
    same_reals("beta = 3/4", 3, ema, want);
    et_ema_update(NULL, 3, 0, kth, ema);
    same_reals("beta = 0", 3, ema, kth);
}
END_TEST

/* One cutoff c in every step: ema = (1 - beta^u) c, and with the correction the threshold is c from
 * the first update on. An update rounds four times: 1 - beta, the two products, the sum. What it is
 * off is carried along times beta, so 1/(1 - beta) = 10 updates count: 40 u, relative. The closed
 * form, and the threshold's divisor and division, add less than 20 u. */
START_TEST(a_constant_cutoff_is_its_own_average)
{
    const et_real kth = 3;
    et_real ema = 0, c;
    for (size_t u = 1; u <= 200; u++) {
        et_ema_update(NULL, 1, 0.9, &kth, &ema);
        near("closed form", (double)ema, 3 * (1 - pow(0.9, (double)u)), 60 * U);
        et_ema_threshold(NULL, 1, &ema, 0.9, true, u, &c);
        near("threshold", (double)c, 3, 60 * U);
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("routing");
    TCase *top = add_case(suite, "the k best"), *rules = add_case(suite, "rules");
    TCase *average = add_case(suite, "moving average");
    tcase_add_test(top, the_best_are_those_of_a_full_sort);
    tcase_add_test(top, every_short_list_is_sorted);
    tcase_add_test(top, ranks_are_read_with_a_step);
    tcase_add_test(top, margins_of_a_sorted_list);
    tcase_add_test(rules, token_choice_by_eye);
    tcase_add_test(rules, token_choice_goes_token_by_token);
    tcase_add_test(rules, token_choice_refuses);
    tcase_add_test(rules, expert_choice_by_eye);
    tcase_add_test(rules, expert_choice_goes_pool_by_pool);
    tcase_add_test(rules, expert_choice_refuses);
    tcase_add_test(rules, expert_threshold_by_eye);
    tcase_add_test(rules, expert_threshold_goes_expert_by_expert);
    tcase_add_test(rules, capacity_bounds_are_those_of_binary64);
    tcase_add_test(rules, kth_largest_of_each_expert);
    tcase_add_test(average, thresholds_of_the_average);
    tcase_add_test(average, the_correction_is_a_power);
    tcase_add_test(average, the_average_moves);
    tcase_add_test(average, a_constant_cutoff_is_its_own_average);
    return run_suite(suite);
}
