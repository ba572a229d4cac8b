/* test_decisions.c: a routing judged decision by decision: settled ones and open ones (ref/verdict/judge_routing.c).
 *
 * Scores are written down by hand (scores.h). Their error is written down, too, as a sixth of what is allowed of one:
 * T_e = 30 deviations settle a decision, so with a deviation of sigma / 6 two scores must lie 5 sqrt(2) sigma =
 * 7.07 sigma apart.
 *
 * Left out: how a routing is read from a candidate, and what else hangs on it (test_verdict_routing.c).
 */
#include "ref/verdict/judge.h"
#include "tests/check_main.h"
#include "tests/scores.h"

#ifndef ETREF_F32

enum { MOST = 24 };

#define TC "{'name':'t','rule':'tc','tokens':1,'experts':4,'d_model':4,'top_k':2," SCORED "}"
#define EC "{'name':'e','rule':'ec','tokens':4,'experts':2,'d_model':2," SCORED "}"
#define POOLS                                                                                      \
    "{'name':'e','rule':'ec','tokens':4,'experts':2,'d_model':2,'pool_tokens':2," SCORED "}"
#define PLAIN    SCORED_ET("'tokens':4")
#define AT_LEAST SCORED_ET("'tokens':4,'threshold':'inclusive'")
#define CLAMPED  SCORED_ET("'tokens':6,'capacity_factor':0.5") /* 1 to 3 */
#define HALVES   SCORED_ET("'tokens':6,'micro_batches':2,'capacity_factor':0.5")

static const struct {
    const char *what, *json;
    double scores[MOST], ema, sigma;
    const char *golden, *candidate;
    bool ties_any;
    size_t open, illegal, token, expert;
    const char *words;
} decisions[] = {
    {"agreement", TC, {4, 3, 2, 1}, 0, 0.1, "1100", "1100", false, 0, 0, 0, 0, ""},
    {"a settled exchange",
     TC,
     {4, 3, 2, 1},
     0,
     0.1,
     "1100",
     "1010",
     false,
     0,
     2,
     0,
     1,
     "token 0 takes expert 2 (score 2) and not expert 1 (3): 1 apart, 42.4 deviations, 30 allowed"},
    {"an open exchange", TC, {4, 3, 2.5, 1}, 0, 0.1, "1100", "1010", false, 2, 0, 0, 0, ""},
    {"one too many",
     TC,
     {4, 3, 2, 1},
     0,
     0.1,
     "1100",
     "1110",
     false,
     0,
     1,
     0,
     2,
     "token 0 takes 3 experts, must take 2: expert 2 is one too many"},
    {"one too many, though open",
     TC,
     {4, 3, 2.9, 1},
     0,
     0.1,
     "1100",
     "1110",
     false,
     2,
     1,
     0,
     2,
     "must take 2"},
    {"one missing",
     TC,
     {4, 3, 2, 1},
     0,
     0.1,
     "1100",
     "0100",
     false,
     0,
     1,
     0,
     0,
     "token 0 takes 1 experts, must take 2: expert 0 is missing"},
    {"none at all", TC, {4, 3, 2, 1}, 0, 0.1, "1100", "0000", false, 0, 2, 0, 0, "takes 0"},
    {"equal, but not by construction",
     TC,
     {4, 3, 3, 1},
     0,
     0.1,
     "1100",
     "1010",
     false,
     2,
     0,
     0,
     0,
     ""},
    {"an exact tie",
     TC,
     {4, 3, 3, 1},
     0,
     0,
     "1100",
     "1010",
     false,
     0,
     2,
     0,
     1,
     "ties go to the lower index"},
    {"any tie is right", TC, {4, 3, 3, 1}, 0, 0, "1100", "1010", true, 2, 0, 0, 0, ""},
    {"exact scores, nearly equal",
     TC,
     {4, 3, 2.999, 1},
     0,
     0,
     "1100",
     "1010",
     true,
     0,
     2,
     0,
     1,
     "both are exact"},
    {"far and near at once",
     TC,
     {4, 3.2, 3, 1},
     0,
     0.1,
     "1100",
     "0011",
     false,
     2,
     4,
     0,
     0,
     "takes expert 3"},

    {"agreement",
     EC,
     {4, 1, 3, 2, 2, 3, 1, 4},
     0,
     0.1,
     "10 10 01 01",
     "10 10 01 01",
     false,
     0,
     0,
     0,
     0,
     ""},
    {"a settled exchange",
     EC,
     {4, 1, 3, 2, 2, 3, 1, 4},
     0,
     0.1,
     "10 10 01 01",
     "10 00 11 01",
     false,
     0,
     2,
     1,
     0,
     "expert 0 takes token 2 (score 2) and not token 1 (3)"},
    {"an open exchange",
     EC,
     {4, 1, 3, 2, 2, 3, 1, 4},
     0,
     0.3,
     "10 10 01 01",
     "10 00 01 11",
     false,
     8,
     0,
     0,
     0,
     ""},
    {"too wide an exchange",
     EC,
     {4, 1, 3, 2, 2, 3, 1, 4},
     0,
     0.3,
     "10 10 01 01",
     "00 00 11 11",
     false,
     8,
     2,
     0,
     0,
     "expert 0 takes token 3 (score 1) and not token 0 (4)"},
    {"three of two",
     EC,
     {4, 1, 3, 2, 2, 3, 1, 4},
     0,
     0.3,
     "10 10 01 01",
     "10 10 11 01",
     false,
     8,
     1,
     2,
     0,
     "expert 0 takes 3 of tokens 0 to 3, must take 2: token 2 is one too many"},
    {"twins",
     EC,
     {4, 1, 3, 2, 3, 2, 1, 4},
     0,
     0.1,
     "10 11 00 01",
     "10 01 10 01",
     false,
     0,
     2,
     1,
     0,
     "ties go to the lower index"},
    {"any twin is right",
     EC,
     {4, 1, 3, 2, 3, 2, 1, 4},
     0,
     0.1,
     "10 11 00 01",
     "10 01 10 01",
     true,
     4,
     0,
     0,
     0,
     ""},
    {"equal, but no twins",
     EC,
     {4, 1, 3, 2, 3, 2.5, 1, 4},
     0,
     0.01,
     "10 10 01 01",
     "10 00 11 01",
     false,
     2,
     0,
     0,
     0,
     ""},
    {"each pool by itself",
     POOLS,
     {4, 1, 3, 2, 2, 3, 1, 4},
     0,
     0.1,
     "10 01 10 01",
     "10 10 01 01",
     false,
     0,
     4,
     1,
     0,
     "expert 0 takes 2 of tokens 0 to 1, must take 1"},

    {"agreement", PLAIN, {2, 1, 0.5, -1}, 0.8, 0.1, "1 1 0 0", "1 1 0 0", false, 2, 0, 0, 0, ""},
    {"both open ones fall otherwise",
     PLAIN,
     {2, 1, 0.5, -1},
     0.8,
     0.1,
     "1 1 0 0",
     "1 0 1 0",
     false,
     2,
     0,
     0,
     0,
     ""},
    {"settled by the threshold alone",
     PLAIN,
     {2, 0.9, 0.25, -1},
     0.8,
     0.1,
     "1 1 0 0",
     "1 1 0 0",
     false,
     1,
     0,
     0,
     0,
     ""},
    {"too far below",
     PLAIN,
     {2, 1, 0.5, -1},
     0.8,
     0.1,
     "1 1 0 0",
     "1 1 0 1",
     false,
     2,
     1,
     3,
     0,
     "expert 0 takes token 3: score -1, threshold 0.8"},
    {"too far above",
     PLAIN,
     {2, 1, 0.5, -1},
     0.8,
     0.1,
     "1 1 0 0",
     "0 1 0 0",
     false,
     2,
     1,
     0,
     0,
     "expert 0 refuses token 0"},
    {"in inverse order",
     PLAIN,
     {1.25, 1, 0.4, -1},
     0.8,
     0.1,
     "1 1 0 0",
     "0 0 1 0",
     false,
     3,
     2,
     0,
     0,
     "expert 0 takes token 2 (score 0.4) and not token 0 (1.25)"},
    {"equal to a strict threshold",
     PLAIN,
     {2, 1, 0.5, -1},
     1,
     0,
     "1 0 0 0",
     "1 1 0 0",
     false,
     0,
     1,
     1,
     0,
     "takes token 1"},
    {"equal to an inclusive one",
     AT_LEAST,
     {2, 1, 0.5, -1},
     1,
     0,
     "1 1 0 0",
     "1 0 0 0",
     false,
     0,
     1,
     1,
     0,
     "refuses token 1"},

    {"within both bounds",
     CLAMPED,
     {5, 4, 3, 2, 1, 0},
     2.5,
     0.01,
     "1 1 1 0 0 0",
     "1 1 1 1 0 0",
     false,
     0,
     1,
     3,
     0,
     "takes token 3"},
    {"cut",
     CLAMPED,
     {5, 4, 3, 2, 1, 0},
     0.5,
     0.01,
     "1 1 1 0 0 0",
     "1 1 0 1 0 0",
     false,
     0,
     2,
     2,
     0,
     "takes token 3 (score 2) and not token 2 (3)"},
    {"cut, an open exchange",
     CLAMPED,
     {5, 4, 3, 2, 1, 0},
     0.5,
     0.2,
     "1 1 1 0 0 0",
     "1 1 0 1 0 0",
     false,
     2,
     0,
     0,
     0,
     ""},
    {"cut too short",
     CLAMPED,
     {5, 4, 3, 2, 1, 0},
     0.5,
     0.01,
     "1 1 1 0 0 0",
     "1 1 0 0 0 0",
     false,
     0,
     1,
     2,
     0,
     "refuses token 2"},
    {"not cut",
     CLAMPED,
     {5, 4, 3, 2, 1, 0},
     0.5,
     0.01,
     "1 1 1 0 0 0",
     "1 1 1 1 1 0",
     false,
     0,
     2,
     3,
     0,
     "must take 3: token 3 is one too many"},
    {"padded",
     CLAMPED,
     {5, 4, 3, 2, 1, 0},
     10,
     0.01,
     "1 0 0 0 0 0",
     "0 1 0 0 0 0",
     false,
     0,
     2,
     0,
     0,
     "takes token 1 (score 4) and not token 0 (5)"},
    {"padded, an open exchange",
     CLAMPED,
     {5, 4, 3, 2, 1, 0},
     10,
     0.2,
     "1 0 0 0 0 0",
     "0 1 0 0 0 0",
     false,
     2,
     0,
     0,
     0,
     ""},
    {"not padded",
     CLAMPED,
     {5, 4, 3, 2, 1, 0},
     10,
     0.01,
     "1 0 0 0 0 0",
     "0 0 0 0 0 0",
     false,
     0,
     1,
     0,
     0,
     "must take 1: token 0 is missing"},
    {"padded too far",
     CLAMPED,
     {5, 4, 3, 2, 1, 0},
     10,
     0.01,
     "1 0 0 0 0 0",
     "1 1 0 0 0 0",
     false,
     0,
     1,
     1,
     0,
     "takes token 1"},
    {"cut by index, ties",
     CLAMPED,
     {5, 3, 3, 3, 3, 0},
     0.5,
     0,
     "1 1 1 0 0 0",
     "1 1 0 1 0 0",
     false,
     0,
     2,
     2,
     0,
     "ties go to the lower index"},
    {"the load itself is open",
     CLAMPED,
     {5, 4, 3, 2, 1, 0},
     2.97,
     0.01,
     "1 1 1 0 0 0",
     "1 1 0 0 0 0",
     false,
     1,
     0,
     0,
     0,
     ""},
    {"but not any load",
     CLAMPED,
     {5, 4, 3, 2, 1, 0},
     2.97,
     0.01,
     "1 1 1 0 0 0",
     "1 0 0 0 0 0",
     false,
     1,
     1,
     1,
     0,
     "expert 0 refuses token 1"},
    {"nor any token",
     CLAMPED,
     {5, 4, 3, 2, 1, 0},
     2.97,
     0.01,
     "1 1 1 0 0 0",
     "1 0 1 0 0 0",
     false,
     1,
     1,
     1,
     0,
     "refuses token 1"},
    {"each micro-batch by itself",
     HALVES,
     {5, 4, 3, 2, 1, 0},
     0.5,
     0.01,
     "1 1 1 1 1 0",
     "1 1 1 1 0 1",
     false,
     0,
     2,
     4,
     0,
     "refuses token 4"},
};

START_TEST(decisions_are_judged)
{
    honest k;
    uint8_t want[MOST] = {0}, mask[MOST], open[MOST] = {0};
    make_scores(&k, decisions[_i].json, decisions[_i].scores, decisions[_i].ema);
    make_kernel(&k, "bf16-low", 1);
    set_deviation(&k, decisions[_i].sigma);
    size_t places = k.golden.c.tokens * k.golden.c.experts, differing = 0;
    read_rows(decisions[_i].golden, want, places);
    read_rows(decisions[_i].candidate, mask, places);
    for (size_t i = 0; i < places; i++) {
        ck_assert_msg(want[i] == k.golden.route.mask[i], "%s: golden, place %zu",
                      decisions[_i].what, i);
        differing += want[i] != mask[i];
    }
    et_routing_verdict out = judge_mask(&k, mask, decisions[_i].ties_any, open);
    ck_assert_msg(out.illegal == decisions[_i].illegal, "%s: %zu illegal, must be %zu: %s",
                  decisions[_i].what, out.illegal, decisions[_i].illegal, out.reason);
    ck_assert_msg(out.open == decisions[_i].open, "%s: %zu open, must be %zu", decisions[_i].what,
                  out.open, decisions[_i].open);
    ck_assert_uint_eq(out.differing, differing);
    ck_assert_uint_eq(out.decisions, places);
    ck_assert_int_eq(out.outcome, out.illegal > 0 ? ET_MISMATCH : ET_PASS);
    ck_assert_msg(strstr(out.reason, decisions[_i].words) != NULL, "%s: '%s' does not say '%s'",
                  decisions[_i].what, out.reason, decisions[_i].words);
    if (out.illegal > 0)
        ck_assert_msg(out.token == decisions[_i].token && out.expert == decisions[_i].expert,
                      "%s: token %zu, expert %zu", decisions[_i].what, out.token, out.expert);
    free_honest(&k);
}
END_TEST

/* Equal rows of the router and equal biases: the same instructions give the same score. */
START_TEST(twin_experts_are_tied)
{
    const double scores[] = {4, 3, 0, 1};
    honest k;
    uint8_t open[4] = {0}, mask[] = {1, 0, 1, 0};
    make_scores(&k,
                "{'name':'t','rule':'tc','tokens':1,'experts':4,'d_model':4,'top_k':2,"
                "'balance':'lossfree'," SCORED "}",
                scores, 0);
    double *router = k.golden.in.router;
    router[2 * 4 + 1] = 1, router[2 * 4 + 2] = 0;
    make_kernel(&k, "bf16-low", 1);
    set_deviation(&k, 0.1);
    et_routing_verdict out = judge_mask(&k, mask, false, open);
    ck_assert_uint_eq(out.illegal, 2);
    ck_assert_ptr_nonnull(strstr(out.reason, "ties go to the lower index"));
    memset(open, 0, sizeof open);
    out = judge_mask(&k, mask, true, open);
    ck_assert_uint_eq(out.illegal, 0);
    ck_assert_uint_eq(out.open, 2);
    /* a bias parts them, and what is left is an open decision */
    k.golden.in.bias[1] = 0.01;
    memset(open, 0, sizeof open);
    out = judge_mask(&k, mask, false, open);
    ck_assert_uint_eq(out.illegal, 0);
    ck_assert_uint_eq(out.open, 2);
    free_honest(&k);
}
END_TEST

/* The threshold's own error counts. */
START_TEST(thresholds_err_too)
{
    const double scores[] = {2, 1, 0.5, -1};
    honest k;
    uint8_t open[4] = {0}, mask[] = {1, 1, 1, 0};
    make_scores(&k, PLAIN, scores, 0.8);
    make_kernel(&k, "bf16-low", 1);
    set_deviation(&k, 0.05);
    ck_assert_uint_eq(judge_mask(&k, mask, false, open).illegal, 1);
    k.noise.route.threshold[0] = variance_of(0.1);
    ck_assert_uint_eq(judge_mask(&k, mask, false, open).illegal, 0);
    free_honest(&k);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("decisions");
    TCase *judged = add_case(suite, "judged");
    tcase_add_loop_test(judged, decisions_are_judged, 0, sizeof decisions / sizeof *decisions);
    tcase_add_test(judged, twin_experts_are_tied);
    tcase_add_test(judged, thresholds_err_too);
    return run_suite(suite);
}

#else

int main(void)
{
    return EXIT_SUCCESS; /* the float build does not judge */
}

#endif
