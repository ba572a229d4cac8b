/* test_routing.c: the choice of the k best, the three rules, their state, balancing, metrics, and
 * the assignment.
 *
 * Decisions are tested exactly. Lists of scores, small enough to be decided by eye, stand beside
 * the mask, margins and order they must give; et_top itself is held against a full sort on lists
 * where nearly everything ties. All scores are small multiples of powers of two, so that margins
 * and losses, too, are exact in double and in float, and are compared with ==.
 *
 * Where a value is not exact (logarithms, powers, means) it is compared with a direct evaluation of
 * its definition, within a few units of roundoff that are counted beside the comparison.
 */
#include "etref/random.h"
#include "etref/routing.h"
#include "ref/routing/top.h"
#include "tests/check_main.h"

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define COUNT(array) (sizeof(array) / sizeof(array)[0])

static const et_real INF = (et_real)INFINITY;
static const double U = ET_UNIT_ROUNDOFF;

/* ---- comparisons ---- */

static void same_reals(const char *what, size_t count, const et_real *got, const et_real *want)
{
    for (size_t j = 0; j < count; j++)
        if (!(got[j] == want[j]))
            ck_abort_msg("%s: element %zu: got %.17g, want %.17g", what, j, (double)got[j],
                         (double)want[j]);
}

static void same_integers(const char *what, size_t count, const int32_t *got, const int32_t *want)
{
    for (size_t j = 0; j < count; j++)
        if (got[j] != want[j])
            ck_abort_msg("%s: element %zu: got %d, want %d", what, j, (int)got[j], (int)want[j]);
}

static void same_mask(const char *what, size_t count, const uint8_t *got, const uint8_t *want)
{
    for (size_t j = 0; j < count; j++)
        if (got[j] != want[j])
            ck_abort_msg("%s: mask[%zu]: got %d, want %d", what, j, got[j], want[j]);
}

/* |got - want| <= tolerance * max(1, |want|), and no NaN. */
static void near(const char *what, double got, double want, double tolerance)
{
    if (!(fabs(got - want) <= tolerance * fmax(1, fabs(want))))
        ck_abort_msg("%s: got %.17g, want %.17g, apart %.3g", what, got, want, fabs(got - want));
}

static void refused(et_status status, const et_error *error, const char *message)
{
    ck_assert_int_eq(status, ET_EINVAL);
    ck_assert_str_eq(error->text, message);
}

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

/* ---- balancing ---- */

START_TEST(fractions_of_loads)
{
    const et_real load[] = {3, 1, 0, 4};
    et_real F[4];
    et_balance_fractions(4, 4, 2, load, F); /* n load / (K N) = load / 2 */
    same_reals("F", 4, F, (const et_real[]){1.5, 0.5, 0, 2});
    const et_real even[] = {6, 6, 6, 6};
    et_balance_fractions(8, 4, 3, even, F);
    same_reals("perfect balance", 4, F, (const et_real[]){1, 1, 1, 1});
}
END_TEST

/* P = (3/8, 1/2), F = (3/2, 1/2). */
START_TEST(auxiliary_losses_by_hand)
{
    const et_real p[] = {0.25, 0.75, 0.5, 0.25}, F[] = {1.5, 0.5};
    static const struct {
        et_balance balance;
        et_real loss, gradient[2]; /* scale F' / N, with scale 4 */
    } known[] = {{ET_BALANCE_AUX, 0.8125, {3, 1}}, {ET_BALANCE_AUX_ERROR, -0.0625, {1, -1}}};
    for (size_t v = 0; v < COUNT(known); v++) {
        et_real dp[] = {10, 20, 30, 40}, want[] = {10, 20, 30, 40};
        for (size_t j = 0; j < 4; j++) want[j] += known[v].gradient[j % 2];
        et_real loss = et_aux_loss(NULL, known[v].balance, 2, 2, F, p, 4, dp);
        same_reals("value", 1, &loss, &known[v].loss);
        same_reals("gradient, accumulated", 4, dp, want);
        loss = et_aux_loss(NULL, known[v].balance, 2, 2, F, p, 4, NULL);
        same_reals("value alone", 1, &loss, &known[v].loss);
    }
}
END_TEST

/* Under perfect balance (F = 1) aux is the mean over tokens of the sum of their gate values, and
 * aux_error is 0, whatever the gates; renaming experts changes neither. */
START_TEST(auxiliary_losses_are_invariant)
{
    enum { N = 8, n = 4 };
    const et_real ones[n] = {1, 1, 1, 1}, F[n] = {2, 0.5, 0, 1.5};
    et_real p[N * n], renamed[N * n], F_renamed[n], total = 0, loss;
    for (size_t j = 0; j < N * n; j++) {
        p[j] = (et_real)floor(16 * (double)uniform(j)) / 16; /* sums of these are exact */
        renamed[j / n * n + (j + 1) % n] = p[j];
        total += p[j];
    }
    for (size_t i = 0; i < n; i++) F_renamed[(i + 1) % n] = F[i];
    loss = et_aux_loss(NULL, ET_BALANCE_AUX, N, n, ones, p, 1, NULL) * N;
    same_reals("perfect balance", 1, &loss, &total);
    loss = et_aux_loss(NULL, ET_BALANCE_AUX_ERROR, N, n, ones, p, 1, NULL);
    same_reals("perfect balance, error", 1, &loss, &(const et_real){0});
    loss = et_aux_loss(NULL, ET_BALANCE_AUX, N, n, F, p, 1, NULL);
    total = et_aux_loss(NULL, ET_BALANCE_AUX, N, n, F_renamed, renamed, 1, NULL);
    same_reals("renamed", 1, &loss, &total);
}
END_TEST

/* Tokens of one expert: lse = r, the loss is the mean of r^2 and its gradient 2 r / N. */
START_TEST(z_loss_of_one_expert)
{
    const et_real r[] = {3, -5, 0, 800};
    et_real dr[] = {1, 1, 1, 1}, loss = et_z_loss(NULL, 4, 1, r, 2, dr);
    same_reals("value", 1, &loss, &(const et_real){(9 + 25 + 640000) / (et_real)4});
    same_reals("gradient, accumulated", 4, dr, (const et_real[]){4, -4, 1, 801});
}
END_TEST

/* Equal logits: lse = r + log n. Far apart: lse is the larger one. exp and log are good to 2 u, the
 * sums and products around them round four times: 8 u, and lse enters its square twice. */
START_TEST(z_loss_by_hand)
{
    static const struct {
        et_real r[2];
        double lse, share[2]; /* and the softmax */
    } known[] = {
        {{0, 0}, 0.69314718055994531, {0.5, 0.5}},
        {{3, 3}, 3.69314718055994531, {0.5, 0.5}},
        {{-800, -800}, -799.30685281944005, {0.5, 0.5}},
        {{800, 800}, 800.69314718055995, {0.5, 0.5}},
        {{800, -800}, 800, {1, 0}},
        {{-800, 800}, 800, {0, 1}},
        {{-3, -50}, -3, {1, 3.8739976286871872e-21}},
    };
    for (size_t v = 0; v < COUNT(known); v++) {
        double lse = known[v].lse;
        et_real dr[2] = {0, 0}, loss = et_z_loss(NULL, 1, 2, known[v].r, 0.5, dr);
        near("value", (double)loss, lse * lse, 16 * U);
        for (int i = 0; i < 2; i++) /* relative to the share, however small it is */
            ck_assert(fabs((double)dr[i] - lse * known[v].share[i]) <=
                      16 * U * fabs(lse * known[v].share[i]));
        et_real again = et_z_loss(NULL, 1, 2, known[v].r, 0.5, NULL);
        same_reals("value alone", 1, &again, &loss);
    }
}
END_TEST

/* Adding s to a token's logits adds s to its lse: here lse = 2 s + log(e^1 + e^2 + e^4). */
START_TEST(z_loss_shifts_and_averages)
{
    const double lse = log(exp(1) + exp(2) + exp(4));
    const et_real r[] = {1, 2, 4, 12, 9, 10}; /* the second token: shifted by 8, and renamed */
    et_real dr[6] = {0}, loss = et_z_loss(NULL, 2, 3, r, 1, dr);
    near("mean over tokens", (double)loss, (lse * lse + (lse + 8) * (lse + 8)) / 2, 16 * U);
    for (int i = 0; i < 3; i++) {
        double share = exp((double)r[i] - lse);
        near("first token", (double)dr[i], lse * share, 16 * U);
        near("second token", (double)dr[3 + (i + 1) % 3], (lse + 8) * share, 16 * U);
    }
}
END_TEST

START_TEST(biases_move_by_hand)
{
    static const struct {
        const char *what;
        et_balance balance;
        et_real load[3], moved[3]; /* by a rate of 1/4; N = n = 3, K = 2 */
    } known[] = {
        {"loss-free: the mean itself stays", ET_BALANCE_LOSSFREE, {1, 2, 3}, {0.25, 0, -0.25}},
        {"loss-free: a mean of 4/3", ET_BALANCE_LOSSFREE, {1, 1, 2}, {0.25, 0.25, -0.25}},
        {"loss-free: even", ET_BALANCE_LOSSFREE, {7, 7, 7}, {0, 0, 0}},
        {"loss-free: no size, only sign", ET_BALANCE_LOSSFREE, {0, 1000, 0}, {0.25, -0.25, 0.25}},
        {"proportional: F = load / 2", ET_BALANCE_PROPORTIONAL, {2, 1, 3}, {0, 0.125, -0.125}},
        {"proportional: empty and full", ET_BALANCE_PROPORTIONAL, {0, 6, 0}, {0.25, -0.5, 0.25}},
        {"none", ET_BALANCE_NONE, {1, 2, 3}, {0, 0, 0}},
        {"aux", ET_BALANCE_AUX, {1, 2, 3}, {0, 0, 0}},
        {"aux_error", ET_BALANCE_AUX_ERROR, {1, 2, 3}, {0, 0, 0}},
    };
    for (size_t v = 0; v < COUNT(known); v++) {
        et_real bias[] = {1, 2, 3}, want[] = {1, 2, 3};
        for (size_t i = 0; i < 3; i++) want[i] += known[v].moved[i];
        et_bias_update(NULL, known[v].balance, 3, 3, 2, known[v].load, 0.25,
                       bias); /* n/(K N) = 1/2 */
        same_reals(known[v].what, 3, bias, want);
    }
}
END_TEST

/* ---- metrics ---- */

START_TEST(means_and_deviations)
{
    const et_real values[] = {2, 4, 4, 4, 5, 5, 7, 9};
    et_real mean, std, far[8];
    et_mean_std(NULL, 0, NULL, &mean, &std);
    ck_assert(mean == 0 && std == 0);
    et_mean_std(NULL, 1, values, &mean, &std);
    ck_assert(mean == 2 && std == 0);
    et_mean_std(NULL, 8, values, &mean, &std); /* squares 9 1 1 1 0 0 4 16, mean 4 */
    ck_assert(mean == 5 && std == 2);
    for (int i = 0; i < 8; i++) far[i] = values[i] + 1048576;
    et_mean_std(NULL, 8, far, &mean, &std); /* nothing cancels */
    ck_assert(mean == 1048581 && std == 2);
}
END_TEST

START_TEST(capacity_use_by_hand)
{
    static const struct {
        const char *what;
        et_capacity bounds;
        int32_t passed[4];
        et_real saturation, starvation, overflow, underflow;
    } known[] = {
        /* 16 passed, 3 of them dropped; 3 + 3 of 4 x 4 places padded */
        {"both sides", {4, 6}, {1, 5, 9, 1}, 3. / 16, 6. / 16, 0.25, 0.5},
        {"at the bounds", {4, 6}, {4, 6, 6, 4}, 0, 0, 0, 0},
        {"one beyond", {4, 6}, {3, 7, 4, 6}, 1. / 20, 1. / 16, 0.25, 0.25},
        {"none passed", {2, 6}, {0, 0, 0, 0}, 0, 1, 0, 1},
        {"no lower bound", {0, 2}, {0, 4, 4, 0}, 0.5, 0, 0.5, 0},
    };
    for (size_t v = 0; v < COUNT(known); v++) /* as one batch of four experts, and as two of two */
        for (size_t M = 1; M <= 2; M++) {
            et_capacity_use use = et_capacity_measure(M, 4 / M, known[v].bounds, known[v].passed);
            const et_real got[] = {use.saturation, use.starvation, use.overflow, use.underflow};
            const et_real want[] = {known[v].saturation, known[v].starvation, known[v].overflow,
                                    known[v].underflow};
            same_reals(known[v].what, 4, got, want);
        }
}
END_TEST

/* One token, four experts. Divergences are in bits: 1 is the most there can be. */
START_TEST(overlaps_by_hand)
{
    static const struct {
        const char *what;
        uint8_t a[4], b[4];
        double jaccard, dice, divergence, variation;
    } known[] = {
        {"both empty", {0, 0, 0, 0}, {0, 0, 0, 0}, 1, 1, 0, 0},
        {"first empty", {0, 0, 0, 0}, {0, 1, 0, 1}, 0, 0, 1, 1},
        {"second empty", {1, 0, 0, 0}, {0, 0, 0, 0}, 0, 0, 1, 1},
        {"identical", {1, 0, 1, 1}, {1, 0, 1, 1}, 1, 1, 0, 0},
        {"identical, any byte counts as 1", {1, 0, 2, 255}, {4, 0, 1, 7}, 1, 1, 0, 0},
        {"disjoint", {1, 1, 0, 0}, {0, 0, 1, 0}, 0, 0, 1, 1},
        {"half", {1, 1, 0, 0}, {0, 1, 1, 0}, 1. / 3, 0.5, 0.5, 0.5},
        /* P = (1/2, 1/2), Q = (0, 1), M = (1/4, 3/4):
         * JSD = (1/2 log 2 + 1/2 log 2/3 + log 4/3) / 2 = 3/2 - 3/4 log 3,  log 3 = 1.58496... */
        {"contained", {1, 1, 0, 0}, {0, 1, 0, 0}, 0.5, 2. / 3, 0.31127812445913283, 0.5},
        /* P = (1/2, 1/2, 0, 0), Q = (0, 1/3, 1/3, 1/3), M = (1/4, 5/12, 1/6, 1/6):
         * JSD = (1/2 log 2 + 1/2 log 6/5 + 1/3 log 4/5 + 2/3 log 2) / 2 */
        {"one of two, of three",
         {1, 1, 0, 0},
         {0, 1, 1, 1},
         0.25,
         0.4,
         0.59543725231055487,
         2. / 3},
    };
    for (size_t v = 0; v < COUNT(known); v++) {
        et_overlap o = et_routing_overlap(1, 4, known[v].a, known[v].b);
        near(known[v].what, o.jaccard, known[v].jaccard, 1e-15);
        near(known[v].what, o.dice, known[v].dice, 1e-15);
        near(known[v].what, o.divergence, known[v].divergence, 1e-15);
        near(known[v].what, o.variation, known[v].variation, 1e-15);
        near(known[v].what, o.pooled_jaccard, known[v].jaccard, 1e-15); /* of one token: the same */
        near(known[v].what, o.pooled_dice, known[v].dice, 1e-15);
    }
}
END_TEST

/* Three tokens: identical (3 experts), disjoint (1 and 1), both empty. Pooled, 3 of 5 pairs are
 * common; token by token, the means are (1 + 0 + 1)/3. */
START_TEST(pooled_is_not_the_mean)
{
    const uint8_t a[] = {1, 1, 1, 1, 0, 0, 0, 0, 0}, b[] = {1, 1, 1, 0, 1, 0, 0, 0, 0};
    et_overlap o = et_routing_overlap(3, 3, a, b);
    near("pooled Jaccard", o.pooled_jaccard, 3. / 5, 1e-15);
    near("pooled Dice", o.pooled_dice, 6. / 8, 1e-15);
    near("Jaccard", o.jaccard, 2. / 3, 1e-15);
    near("Dice", o.dice, 2. / 3, 1e-15);
    near("divergence", o.divergence, 1. / 3, 1e-15);
    near("variation", o.variation, 1. / 3, 1e-15);
}
END_TEST

/* Probability of expert i under the uniform distribution over a token's experts. */
static double share(size_t n, const uint8_t *z, size_t i)
{
    double count = 0;
    for (size_t j = 0; j < n; j++) count += z[j] != 0;
    return z[i] ? 1 / count : 0;
}

static double term(double p, double m)
{
    return p > 0 ? p * log2(p / m) : 0;
}

/* The definitions: sums over the experts of the two distributions. Neither side is empty. */
static void distances(size_t n, const uint8_t *a, const uint8_t *b, double *jsd, double *tv)
{
    *jsd = *tv = 0;
    for (size_t i = 0; i < n; i++) {
        double p = share(n, a, i), q = share(n, b, i), m = (p + q) / 2;
        *jsd += (term(p, m) + term(q, m)) / 2;
        *tv += fabs(p - q) / 2;
    }
}

/* All pairs of non-empty sets of up to five experts. */
START_TEST(divergence_is_that_of_the_distributions)
{
    enum { n = 5, SETS = 1 << n };
    for (unsigned x = 1; x < SETS; x++)
        for (unsigned y = 1; y < SETS; y++) {
            uint8_t a[n], b[n];
            for (unsigned i = 0; i < n; i++) {
                a[i] = (uint8_t)(x >> i & 1);
                b[i] = (uint8_t)(y >> i & 1);
            }
            double jsd, tv;
            distances(n, a, b, &jsd, &tv);
            et_overlap o = et_routing_overlap(1, n, a, b);
            near("JSD", o.divergence, jsd, 1e-14);
            near("TV", o.variation, tv, 1e-14);
        }
}
END_TEST

/* ---- the assignment ---- */

typedef struct layout_case {
    const char *what;
    size_t N, n;
    uint8_t mask[12];
    int32_t expert_offsets[5], token_offsets[5];
    int32_t slot_token[8], slot_expert[8], token_slots[8];
} layout_case;

/* clang-format off */
static const layout_case layouts[] = {
    {"the header's example", 3, 2, {1, 0, 1, 1, 0, 0}, {0, 2, 3}, {0, 1, 3, 3}, {0, 1, 1},
     {0, 0, 1}, {0, 1, 2}},
    {"slots are expert by expert, token_slots token by token", 3, 2, {1, 1, 0, 1, 1, 0}, {0, 2, 4},
     {0, 2, 3, 4}, {0, 2, 0, 1}, {0, 0, 1, 1}, {0, 2, 3, 1}},
    {"the first expert is empty", 2, 3, {0, 1, 1, 0, 0, 1}, {0, 0, 1, 3}, {0, 2, 3}, {0, 0, 1},
     {1, 2, 2}, {0, 1, 2}},
    {"the middle expert is empty", 2, 3, {1, 0, 0, 1, 0, 1}, {0, 2, 2, 3}, {0, 1, 3}, {0, 1, 1},
     {0, 0, 2}, {0, 1, 2}},
    {"the last expert is empty", 2, 3, {0, 1, 0, 1, 1, 0}, {0, 1, 3, 3}, {0, 1, 3}, {1, 0, 1},
     {0, 1, 1}, {1, 0, 2}},
    {"all empty", 2, 3, {0}, {0, 0, 0, 0}, {0, 0, 0}, {0}, {0}, {0}},
    {"any byte but 0 is a slot", 1, 3, {2, 0, 255}, {0, 1, 1, 2}, {0, 2}, {0, 0}, {0, 2}, {0, 1}},
    {"no token", 0, 2, {0}, {0, 0, 0}, {0}, {0}, {0}, {0}},
    {"no expert", 2, 0, {0}, {0}, {0, 0, 0}, {0}, {0}, {0}},
    {"nothing", 0, 0, {0}, {0}, {0}, {0}, {0}, {0}},
};
/* clang-format on */

START_TEST(assignments_by_hand)
{
    for (size_t v = 0; v < COUNT(layouts); v++) {
        const layout_case *c = &layouts[v];
        et_assignment a;
        et_error error;
        ck_assert_int_eq(et_assignment_build(&a, c->N, c->n, c->mask, &error), ET_OK);
        size_t S = (size_t)c->expert_offsets[c->n];
        ck_assert_uint_eq(a.slots, S);
        ck_assert_uint_eq(a.tokens, c->N);
        ck_assert_uint_eq(a.experts, c->n);
        same_integers(c->what, c->n + 1, a.expert_offsets, c->expert_offsets);
        same_integers(c->what, c->N + 1, a.token_offsets, c->token_offsets);
        same_integers(c->what, S, a.slot_token, c->slot_token);
        same_integers(c->what, S, a.slot_expert, c->slot_expert);
        same_integers(c->what, S, a.token_slots, c->token_slots);
        for (size_t i = 0; i < c->n; i++)
            ck_assert_int_eq(a.load[i], c->expert_offsets[i + 1] - c->expert_offsets[i]);
        for (size_t t = 0; t < c->N; t++)
            ck_assert_int_eq(a.fanout[t], c->token_offsets[t + 1] - c->token_offsets[t]);
        et_assignment_free(&a);
        et_assignment_free(&a); /* zeros by now */
    }
}
END_TEST

START_TEST(assignment_refuses_more_than_it_can_number)
{
    const uint8_t mask[1] = {1};
    et_assignment a;
    et_error error;
    refused(et_assignment_build(&a, INT32_MAX, 1, mask, &error), &error,
            "assignment: 2147483647 tokens and 1 experts; at most 2^31-2");
    refused(et_assignment_build(&a, 1, INT32_MAX, mask, &error), &error,
            "assignment: 1 tokens and 2147483647 experts; at most 2^31-2");
    ck_assert_ptr_null(a.load); /* nothing to free */
}
END_TEST

/* Every pair with probability p, but experts 1, 5, 9, .. stay empty. */
static void random_mask(uint64_t seed, size_t N, size_t n, double p, uint8_t *mask)
{
    et_stream stream = et_stream_open(seed, "test.mask");
    for (size_t j = 0; j < N * n; j++)
        mask[j] = j % n % 4 != 1 && et_uniform(stream, j, 0) < p ? 1 : 0;
}

static void check_assignment(const et_assignment *a, const uint8_t *mask)
{
    size_t n = a->experts, expected = 0;
    for (size_t j = 0; j < a->tokens * n; j++) expected += mask[j];
    ck_assert_uint_eq(a->slots, expected);
    ck_assert_int_eq(a->expert_offsets[n], (int32_t)expected);
    ck_assert_int_eq(a->token_offsets[a->tokens], (int32_t)expected);
    for (size_t i = 0; i < n; i++) /* the slots of an expert: its own, tokens ascending */
        for (int32_t s = a->expert_offsets[i]; s < a->expert_offsets[i + 1]; s++) {
            ck_assert_uint_eq((size_t)a->slot_expert[s], i);
            ck_assert(mask[(size_t)a->slot_token[s] * n + i]);
            if (s > a->expert_offsets[i]) ck_assert(a->slot_token[s] > a->slot_token[s - 1]);
        }
    for (size_t t = 0; t < a->tokens; t++) /* the slots of a token: its own, experts ascending */
        for (int32_t j = a->token_offsets[t]; j < a->token_offsets[t + 1]; j++) {
            int32_t s = a->token_slots[j];
            ck_assert_uint_eq((size_t)a->slot_token[s], t);
            if (j > a->token_offsets[t])
                ck_assert(a->slot_expert[s] > a->slot_expert[a->token_slots[j - 1]]);
        }
}

/* Every slot stands in one row of its expert's own part; the rows of an expert are its slots in
 * order and then -1s, fewer than a block of them. */
static void check_layout(const et_block_layout *l, const et_assignment *a)
{
    size_t rows = 0;
    int32_t slot = 0;
    for (size_t i = 0; i < a->experts; i++) {
        size_t load = (size_t)a->load[i], padded = (load + l->block - 1) / l->block * l->block;
        ck_assert_uint_eq((size_t)l->padded_offsets[i], rows);
        for (size_t row = 0; row < padded; row++, rows++) {
            ck_assert_int_eq(l->padded_slot[rows], row < load ? slot : -1);
            slot += row < load;
            ck_assert_uint_eq((size_t)l->block_expert[rows / l->block], i);
        }
    }
    ck_assert_uint_eq((size_t)slot, a->slots);
    ck_assert_uint_eq((size_t)l->padded_offsets[a->experts], rows);
    ck_assert_uint_eq(rows, l->blocks * l->block);
}

START_TEST(random_assignments_keep_their_order)
{
    static const size_t blocks[] = {1, 2, 7, 16, 1000};
    static const double densities[] = {0, 0.1, 0.5, 1};
    enum { N = 41, n = 9 };
    for (uint64_t seed = 0; seed < 20; seed++) {
        uint8_t mask[N * n];
        et_assignment a;
        random_mask(seed, N, n, densities[seed % 4], mask);
        ck_assert_int_eq(et_assignment_build(&a, N, n, mask, NULL), ET_OK);
        check_assignment(&a, mask);
        for (size_t b = 0; b < COUNT(blocks); b++) {
            et_block_layout layout;
            ck_assert_int_eq(et_block_layout_build(&layout, &a, blocks[b], NULL), ET_OK);
            ck_assert_uint_eq(layout.block, blocks[b]);
            check_layout(&layout, &a);
            et_block_layout_free(&layout);
            et_block_layout_free(&layout); /* zeros by now */
        }
        et_assignment_free(&a);
    }
}
END_TEST

/* Loads 15, 0, 16, 17 in blocks of 16: one block, none, one, two. */
START_TEST(blocks_by_hand)
{
    enum { N = 17, n = 4 };
    static const int32_t loads[n] = {15, 0, 16, 17};
    uint8_t mask[N * n];
    for (size_t j = 0; j < N * n; j++) mask[j] = (int32_t)(j / n) < loads[j % n];
    et_assignment a;
    et_block_layout l;
    ck_assert_int_eq(et_assignment_build(&a, N, n, mask, NULL), ET_OK);
    ck_assert_int_eq(et_block_layout_build(&l, &a, 16, NULL), ET_OK);
    ck_assert_uint_eq(l.blocks, 4);
    same_integers("offsets", 5, l.padded_offsets, (const int32_t[]){0, 16, 16, 32, 64});
    same_integers("experts", 4, l.block_expert, (const int32_t[]){0, 2, 3, 3});
    const int32_t rows[] = {0, 14, 15, 16, 31, 32, 48, 49, 63};
    const int32_t slots[] = {0, 14, -1, 15, 30, 31, 47, -1, -1};
    for (size_t j = 0; j < COUNT(rows); j++) ck_assert_int_eq(l.padded_slot[rows[j]], slots[j]);
    et_block_layout_free(&l);
    et_assignment_free(&a);
}
END_TEST

START_TEST(blocks_are_refused)
{
    const uint8_t mask[] = {1, 1};
    et_assignment a;
    et_block_layout l;
    et_error error;
    ck_assert_int_eq(et_assignment_build(&a, 1, 2, mask, NULL), ET_OK);
    refused(et_block_layout_build(&l, &a, 0, &error), &error,
            "block layout: tile of 0 slots; 1 to 65536");
    refused(et_block_layout_build(&l, &a, 65537, &error), &error,
            "block layout: tile of 65537 slots; 1 to 65536");
    ck_assert_ptr_null(l.padded_slot); /* nothing to free */
    et_assignment_free(&a);
}
END_TEST

/* 2^15 experts with a slot each, and the largest tile: 2^31 rows, one more than can be numbered. */
START_TEST(layouts_have_a_last_row)
{
    enum { EXPERTS = 32768 };
    uint8_t *mask = malloc(EXPERTS);
    et_assignment a;
    et_block_layout l;
    et_error error;
    ck_assert_ptr_nonnull(mask);
    memset(mask, 1, EXPERTS);
    ck_assert_int_eq(et_assignment_build(&a, 1, EXPERTS, mask, NULL), ET_OK);
    ck_assert_uint_eq(et_block_count(&a, ET_MAX_BLOCK), EXPERTS);
    refused(et_block_layout_build(&l, &a, ET_MAX_BLOCK, &error), &error,
            "block layout: 32768 blocks of 65536 rows; at most 2^31-1 rows");
    ck_assert_ptr_null(l.padded_slot);
    et_assignment_free(&a);
    free(mask);
}
END_TEST

static void add_choices(Suite *suite)
{
    TCase *top = add_case(suite, "the k best");
    tcase_add_test(top, the_best_are_those_of_a_full_sort);
    tcase_add_test(top, every_short_list_is_sorted);
    tcase_add_test(top, ranks_are_read_with_a_step);
    tcase_add_test(top, margins_of_a_sorted_list);
    TCase *rules = add_case(suite, "rules");
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
}

static void add_state(Suite *suite)
{
    TCase *average = add_case(suite, "moving average");
    tcase_add_test(average, thresholds_of_the_average);
    tcase_add_test(average, the_correction_is_a_power);
    tcase_add_test(average, the_average_moves);
    tcase_add_test(average, a_constant_cutoff_is_its_own_average);
    TCase *balance = add_case(suite, "balancing");
    tcase_add_test(balance, fractions_of_loads);
    tcase_add_test(balance, auxiliary_losses_by_hand);
    tcase_add_test(balance, auxiliary_losses_are_invariant);
    tcase_add_test(balance, z_loss_of_one_expert);
    tcase_add_test(balance, z_loss_by_hand);
    tcase_add_test(balance, z_loss_shifts_and_averages);
    tcase_add_test(balance, biases_move_by_hand);
}

static void add_results(Suite *suite)
{
    TCase *metrics = add_case(suite, "metrics");
    tcase_add_test(metrics, means_and_deviations);
    tcase_add_test(metrics, capacity_use_by_hand);
    tcase_add_test(metrics, overlaps_by_hand);
    tcase_add_test(metrics, pooled_is_not_the_mean);
    tcase_add_test(metrics, divergence_is_that_of_the_distributions);
    TCase *assignment = add_case(suite, "assignment");
    tcase_add_test(assignment, assignments_by_hand);
    tcase_add_test(assignment, assignment_refuses_more_than_it_can_number);
    tcase_add_test(assignment, random_assignments_keep_their_order);
    tcase_add_test(assignment, blocks_by_hand);
    tcase_add_test(assignment, blocks_are_refused);
    tcase_add_test(assignment, layouts_have_a_last_row);
}

int main(void)
{
    Suite *suite = suite_create("routing");
    add_choices(suite);
    add_state(suite);
    add_results(suite);
    return run_suite(suite);
}
