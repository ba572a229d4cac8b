/* test_verdict_routing.c: the first part of the verdict: decisions, settled and open.
 *
 * Scores are written down by hand: the router is the identity, so a token's row of x is its row of
 * scores. Their error is written down, too, as a sixth of what is allowed of one: T_e = 30 deviations settle a
 * decision, so with a deviation of sigma / 6 two scores must lie 5 sqrt(2) sigma = 7.07 sigma apart.
 */
#include "ref/verdict/judge.h"
#include "tests/check_main.h"
#include "tests/honest.h"

#define NEAR(more)                                                                                 \
    "{'name':'near','rule':'tc','tokens':6,'experts':4,'d_model':4,'top_k':2," more                \
    "'precision':'f64','d_expert':8,'shared':false}"

#ifndef ETREF_F32

enum { MOST = 24 };

/* A case without shared expert whose scores are given; ema: the threshold. */
static void make_scores(honest *k, const char *json, const double *scores, double ema)
{
    et_case c;
    et_error error;
    et_step *s = &k->golden;
    ck_assert_msg(parse_quoted(&c, json, &error) == ET_OK, "%s", error.text);
    ck_assert_msg(et_step_create(s, &c, 0, &error) == ET_OK, "%s", error.text);
    ck_assert_uint_eq(c.d_model, c.experts);
    size_t N = c.tokens, n = c.experts, h = c.d_expert;
    et_stream stream = et_stream_open(5, "scores");
    for (size_t i = 0; i < N * n; i++) s->in.x[i] = scores[i];
    for (size_t i = 0; i < n; i++) s->in.router[i * n + i] = 1;
    for (size_t i = 0; i < N * n; i++) s->in.dy[i] = et_normal(stream, i);
    for (size_t i = 0; i < n * h * n; i++) s->in.up[i] = et_normal(stream, 1000 + i);
    for (size_t i = 0; i < n * h * n; i++) s->in.down[i] = et_normal(stream, 2000 + i);
    for (size_t i = 0; s->in.ema && i < n; i++) s->in.ema[i] = ema;
}

/* "1100 0011" */
static void read_rows(const char *rows, uint8_t *mask, size_t places)
{
    size_t used = 0;
    for (; *rows; rows++)
        if (*rows != ' ') mask[used++] = *rows == '1';
    ck_assert_uint_eq(used, places);
}

static et_routing_verdict judge_mask(honest *k, const uint8_t *mask, bool ties_any, uint8_t *open)
{
    const et_verify_options options = {.profile = k->profile, .ties_any = ties_any};
    const et_bars bars = {.reference = &k->golden, .limits = {30, 20}, .variance = k->noise};
    et_judgement j = {.golden = &k->golden,
                      .reference = &k->golden,
                      .bars = &bars,
                      .mask = mask,
                      .options = &options};
    et_routing_verdict out = {.shown = mask != NULL};
    ck_assert_int_eq(et_routing_judge(&j, &out, open, NULL), ET_OK);
    return out;
}

static double variance_of(double sigma)
{
    return sigma / 6 * (sigma / 6);
}

/* Every score gets the deviation `sigma` / 6, thresholds none. */
static void set_deviation(honest *k, double sigma)
{
    size_t n = k->golden.c.experts;
    for (size_t i = 0; i < k->golden.c.tokens * n; i++) k->noise.fwd.logits[i] = variance_of(sigma);
    for (size_t i = 0; k->noise.route.threshold && i < n; i++) k->noise.route.threshold[i] = 0;
}

#define COMMON "'precision':'f64','d_expert':2,'shared':false"
#define TC     "{'name':'t','rule':'tc','tokens':1,'experts':4,'d_model':4,'top_k':2," COMMON "}"
#define EC     "{'name':'e','rule':'ec','tokens':4,'experts':2,'d_model':2," COMMON "}"
#define POOLS                                                                                      \
    "{'name':'e','rule':'ec','tokens':4,'experts':2,'d_model':2,'pool_tokens':2," COMMON "}"
#define ET(more)                                                                                   \
    "{'name':'t','rule':'et','experts':1,'d_model':1,'granularity':1,'ema_updates':9,"             \
    "'target_load':2,"                                                                             \
    "'mode':'train'," more "," COMMON "}"
#define PLAIN    ET("'tokens':4")
#define AT_LEAST ET("'tokens':4,'threshold':'inclusive'")
#define CLAMPED  ET("'tokens':6,'capacity_factor':0.5") /* 1 to 3 */
#define HALVES   ET("'tokens':6,'micro_batches':2,'capacity_factor':0.5")

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
                "'balance':'lossfree'," COMMON "}",
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

/* ---- reading a routing from whatever shows it ---- */

#define DRAWN(rule, more)                                                                          \
    "{'name':'read','rule':'" rule "','tokens':48,'d_model':16,'d_expert':24,'experts':4," more    \
    "'precision':'bf16','input':{'source':'normal','seed':3,'decisive':true}}"

static const char *const ec_case = DRAWN("ec", "'pool_tokens':24,");
static const char *const tc_case = DRAWN("tc", "'top_k':2,");

/* The kernel with these route.* alone, and y. */
static void show(honest *k, const char *json, const char *first, const char *second)
{
    make_honest(k, json, "bf16", 1);
    for (size_t i = k->count; i-- > 0;) {
        const char *name = k->tensors[i].name;
        bool kept =
            strcmp(name, "fwd.y") == 0 || strcmp(name, first) == 0 || strcmp(name, second) == 0;
        if (!kept) remove_tensor(k, name);
    }
}

static void assert_routing(honest *k, et_outcome outcome, const char *words)
{
    et_verdict v = judge_by(k, (et_verify_options){0});
    ck_assert_msg(v.routing.outcome == outcome, "%s: %s", v.line, v.routing.reason);
    ck_assert(v.routing.shown);
    ck_assert_msg(strstr(v.routing.reason, words) != NULL, "'%s' does not say '%s'",
                  v.routing.reason, words);
    ck_assert_int_eq(v.outcome, outcome);
    size_t places = k->golden.c.tokens * k->golden.c.experts;
    if (outcome == ET_PASS) /* however it was shown */
        ck_assert_mem_eq(v.routing.mask, k->golden.route.mask, places);
    et_verdict_free(&v);
}

START_TEST(any_of_these_shows_the_routing)
{
    const char *const ways[][2] = {{"route.mask", ""},
                                   {"route.slot_token", "route.slot_expert"},
                                   {"route.slot_token", "route.expert_offsets"},
                                   {"route.topk_expert", ""},
                                   {"route.topk_token", ""}};
    for (size_t i = 0; i < 5; i++) {
        honest k;
        show(&k, i == 3 ? tc_case : ec_case, ways[i][0], ways[i][1]);
        assert_routing(&k, ET_PASS, "");
        free_honest(&k);
    }
}
END_TEST

/* What is shown and cannot be an assignment is a mismatch with a reason, never a crash. */
START_TEST(slots_that_cannot_be_are_named)
{
    honest k;
    show(&k, ec_case, "route.slot_token", "route.slot_expert");
    int32_t *expert = integers_of(&k, "route.slot_expert"),
            *token = integers_of(&k, "route.slot_token");
    for (size_t s = 0; s < 48; s++) expert[s]++;
    assert_routing(&k, ET_MISMATCH, "route.slot_expert[36] = 4, must be 0 to 3");
    for (size_t s = 0; s < 48; s++) expert[s]--;
    token[5] = -1;
    assert_routing(&k, ET_MISMATCH, "route.slot_token[5] = -1, must be 0 to 47");
    token[5] = INT32_MAX;
    assert_routing(&k, ET_MISMATCH, "route.slot_token[5] = 2147483647");
    token[5] = token[4];
    assert_routing(&k, ET_MISMATCH, "twice");
    tensor_of(&k, "route.slot_token")->shape[0] = 47;
    assert_routing(&k, ET_MISMATCH, "route.slot_token has 47 slots, route.slot_expert 48");
    free_honest(&k);
    show(&k, ec_case, "route.slot_token", "route.expert_offsets");
    int32_t *offsets = integers_of(&k, "route.expert_offsets");
    offsets[0] = 3;
    assert_routing(&k, ET_MISMATCH, "route.expert_offsets[0] = 3, must be 0");
    offsets[0] = 0;
    offsets[4] = 47;
    assert_routing(&k, ET_MISMATCH, "route.expert_offsets[4] = 47, must be the 48 slots");
    offsets[4] = 48;
    offsets[2] = 2;
    assert_routing(&k, ET_MISMATCH, "route.expert_offsets[2] = 2 after 12");
    offsets[2] = -7;
    assert_routing(&k, ET_MISMATCH, "route.expert_offsets[2] = -7");
    offsets[2] = 5000;
    assert_routing(&k, ET_MISMATCH, "route.expert_offsets[2] = 5000");
    free_honest(&k);
}
END_TEST

START_TEST(choices_that_cannot_be_are_named)
{
    honest k;
    show(&k, tc_case, "route.topk_expert", "");
    int32_t *topk = integers_of(&k, "route.topk_expert");
    topk[9] = 4;
    assert_routing(&k, ET_MISMATCH, "route.topk_expert[9] = 4, must be 0 to 3");
    topk[9] = topk[8];
    assert_routing(&k, ET_MISMATCH, "token 4 is with expert");
    free_honest(&k);
    show(&k, ec_case, "route.topk_token", "");
    topk = integers_of(&k, "route.topk_token");
    topk[3] = 30;
    assert_routing(&k, ET_MISMATCH, "route.topk_token[3] = 30, must be 0 to 23 in pool 0");
    topk[3] = 48;
    assert_routing(&k, ET_MISMATCH, "route.topk_token[3] = 48, must be 0 to 47");
    free_honest(&k);
}
END_TEST

/* Slots in another order are the same assignment. What stands in them is judged in ours. */
START_TEST(slots_in_another_order_are_legal)
{
    honest k;
    show(&k, ec_case, "route.slot_token", "route.slot_expert");
    int32_t *token = integers_of(&k, "route.slot_token"), swap = token[0];
    token[0] = token[1];
    token[1] = swap;
    et_verdict v = judge_by(&k, (et_verify_options){0});
    ck_assert_int_eq(v.routing.outcome, ET_PASS);
    ck_assert_uint_eq(v.routing.differing, 0);
    ck_assert_int_eq(v.outcome, ET_PASS);
    ck_assert_uint_eq(verdict_on(&v, "route.slot_token")->failed, 0);
    ck_assert_int_eq(verdict_on(&v, "fwd.y")->outcome, ET_PASS);
    et_verdict_free(&v);
    free_honest(&k);
}
END_TEST

START_TEST(lists_must_be_in_order)
{
    honest k;
    show(&k, tc_case, "route.topk_expert", "route.mask");
    int32_t *topk = integers_of(&k, "route.topk_expert"), swap = topk[20];
    topk[20] = topk[21];
    topk[21] = swap;
    et_verdict v = judge_by(&k, (et_verify_options){0});
    const et_tensor_verdict *t = verdict_on(&v, "route.topk_expert");
    ck_assert_int_eq(v.routing.outcome, ET_PASS);
    ck_assert_int_eq(t->outcome, ET_MISMATCH);
    ck_assert_uint_eq(t->worst, 21);
    ck_assert_msg(strstr(t->reason, "which is lower") != NULL, "%s", t->reason);
    et_verdict_free(&v);
    topk[21] = (topk[20] + 1) % 4 == swap ? (topk[20] + 2) % 4 : (topk[20] + 1) % 4;
    v = judge_by(&k, (et_verify_options){0});
    t = verdict_on(&v, "route.topk_expert");
    ck_assert_msg(strstr(t->reason, "token 10 is not with expert") != NULL, "%s", t->reason);
    et_verdict_free(&v);
    free_honest(&k);
}
END_TEST

/* ---- a routing of its own ---- */

/* Two tokens whose scores nearly tie in 8 bits: token 1's experts 1 and 2, token 3's 0 and 3. Not
 * representable, so the kernel's logits are rounded: deviation 2^-8 / sqrt(3) below 2. */
static const double near_scores[] = {
    1.7001, 1.2001, 0.3001, 0.1001, 1.9001, 1.0011, 1.0001, 0.1001, 0.2001, 1.3001,  0.4001, 1.8001,
    1.1001, 1.5001, 0.3001, 1.1011, 0.3001, 1.4001, 1.9001, 0.2001, 1.3001, -1.2001, 1.7001, 0.4001,
};
/* An honest kernel that chose otherwise on `flip` of the two tokens. */
static void make_other(honest *k, const char *json, bool first, bool second)
{
    static uint8_t mask[24];
    et_error error;
    make_scores(k, json, near_scores, 0);
    make_kernel(k, "bf16-low", 1);
    memcpy(mask, k->golden.route.mask, sizeof mask);
    ck_assert(mask[4 + 1] && !mask[4 + 2] && mask[12 + 3] && !mask[12 + 0]);
    if (first) mask[4 + 1] = 0, mask[4 + 2] = 1;
    if (second) mask[12 + 3] = 0, mask[12 + 0] = 1;
    et_step fresh = {.c = k->golden.c, .in = k->golden.in, .given_mask = mask};
    ck_assert_msg(et_step_run(&fresh, ET_PLAIN, NULL, NULL, &error) == ET_OK, "%s", error.text);
    clear_tensors(k);
    add_tensors(k, &fresh);
    emulate_step(k, &fresh, k->profile, ET_ROUND_RANDOM, 7);
    et_step_free(&fresh);
}

START_TEST(a_legal_choice_is_judged_by_itself)
{
    honest k;
    make_other(&k, NEAR(""), true, true);
    et_verdict v = judge_by(&k, (et_verify_options){0});
    ck_assert_msg(v.outcome == ET_PASS, "%s", v.line);
    ck_assert_uint_eq(v.routing.differing, 4);
    ck_assert_uint_eq(v.routing.open, 4);
    ck_assert_msg(strstr(v.line, "4 decisions differ legally") != NULL, "%s", v.line);
    et_verdict_free(&v);
    /* the golden's own values under the kernel's mask are not what that mask makes */
    memcpy(values_of(&k, "fwd.y"), k.golden.fwd.y, 24 * sizeof(double));
    v = judge_by(&k, (et_verify_options){0});
    ck_assert_int_eq(verdict_on(&v, "fwd.y")->outcome, ET_MISMATCH);
    et_verdict_free(&v);
    free_honest(&k);
}
END_TEST

/* An illegal routing is a mismatch; the arithmetic is judged all the same. */
START_TEST(an_illegal_choice_is_judged_by_itself)
{
    honest k;
    uint8_t mask[24] = {0};
    et_error error;
    make_scores(&k, NEAR(""), near_scores, 0);
    make_kernel(&k, "bf16-low", 1);
    for (size_t t = 0; t < 6; t++) mask[t * 4] = mask[t * 4 + 1] = 1; /* always the first two */
    et_step fresh = {.c = k.golden.c, .in = k.golden.in, .given_mask = mask};
    ck_assert_int_eq(et_step_run(&fresh, ET_PLAIN, NULL, NULL, &error), ET_OK);
    clear_tensors(&k);
    add_tensors(&k, &fresh);
    emulate_step(&k, &fresh, k.profile, ET_ROUND_RANDOM, 7);
    remove_tensor(&k, "route.topk_expert"); /* the golden's: a list of the rule's own choices */
    et_verdict v = judge_by(&k, (et_verify_options){0});
    ck_assert_int_eq(v.outcome, ET_MISMATCH);
    ck_assert_int_eq(v.routing.outcome, ET_MISMATCH);
    ck_assert_uint_gt(v.routing.illegal, 0);
    ck_assert_int_eq(verdict_on(&v, "fwd.y")->outcome, ET_PASS);
    ck_assert_int_eq(verdict_on(&v, "bwd.w_up")->outcome, ET_PASS);
    ck_assert_msg(strncmp(v.line, "FAIL: routing: token ", 21) == 0, "%s", v.line);
    et_verdict_free(&v);
    et_step_free(&fresh);
    free_honest(&k);
}
END_TEST

START_TEST(an_absurd_choice_ends_the_matter)
{
    honest k;
    make_honest(&k,
                "{'name':'many','rule':'tc','tokens':32,'d_model':8,'d_expert':8,'experts':16,"
                "'precision':'bf16','input':{'source':'normal','seed':3,'decisive':true}}",
                "bf16", 1);
    keep_only(&k, "fwd.y", "route.mask");
    memset(bytes_of(&k, "route.mask"), 1, 32 * 16);
    et_verdict v = judge_by(&k, (et_verify_options){0});
    ck_assert_int_eq(v.outcome, ET_MISMATCH);
    ck_assert_uint_eq(v.routing.illegal, 32 * 15);
    ck_assert_ptr_nonnull(strstr(v.routing.reason, "takes 16 experts, must take 1"));
    ck_assert_int_eq(verdict_on(&v, "fwd.y")->outcome, ET_INCONCLUSIVE);
    ck_assert_ptr_nonnull(
        strstr(verdict_on(&v, "fwd.y")->reason, "512 slots where the rule makes 32"));
    et_verdict_free(&v);
    free_honest(&k);
}
END_TEST

/* ---- a routing that is not shown ---- */

START_TEST(without_open_decisions_nothing_is_lost)
{
    honest k;
    make_honest(&k, ec_case, "bf16", 1);
    for (size_t i = k.count; i-- > 0;)
        if (strncmp(k.tensors[i].name, "route.", 6) == 0) remove_tensor(&k, k.tensors[i].name);
    et_verdict v = judge_by(&k, (et_verify_options){0});
    ck_assert_msg(v.outcome == ET_PASS, "%s", v.line);
    ck_assert(!v.routing.shown && v.routing.open == 0 && v.routing.outcome == ET_PASS);
    et_verdict_free(&v);
    tensor_of(&k, "fwd.slot_out")->shape[0] = 47; /* no legal routing has so many slots */
    v = judge_by(&k, (et_verify_options){0});
    ck_assert_int_eq(v.outcome, ET_MISMATCH);
    ck_assert_ptr_nonnull(strstr(verdict_on(&v, "fwd.slot_out")->reason, "47 rows where"));
    et_verdict_free(&v);
    free_honest(&k);
}
END_TEST

/* Of each token the alternative that fits is found; what hangs on it and does not show it stays open. */
START_TEST(open_decisions_are_inferred_from_rows)
{
    for (int way = 0; way < 4; way++) {
        honest k;
        make_other(&k, NEAR(""), way & 1, way & 2);
        keep_only(&k, "fwd.y", "bwd.x");
        et_verdict v = judge_by(&k, (et_verify_options){0});
        ck_assert_msg(v.outcome == ET_PASS, "%d: %s", way, v.line);
        ck_assert_int_eq(v.routing.outcome, ET_INCONCLUSIVE);
        ck_assert_uint_eq(v.routing.open, 4);
        ck_assert_uint_eq(verdict_on(&v, "fwd.y")->judged, 24);
        et_verdict_free(&v);
        values_of(&k, "fwd.y")[1 * 4 + 2] += 100; /* neither alternative has that */
        v = judge_by(&k, (et_verify_options){0});
        ck_assert_int_eq(verdict_on(&v, "fwd.y")->outcome, ET_MISMATCH);
        et_verdict_free(&v);
        free_honest(&k);
    }
}
END_TEST

START_TEST(what_nobody_can_see_is_no_pass)
{
    honest k;
    make_other(&k, NEAR(""), true, false);
    for (size_t i = k.count; i-- > 0;)
        if (strncmp(k.tensors[i].name, "route.", 6) == 0) remove_tensor(&k, k.tensors[i].name);
    et_verdict v = judge_by(&k, (et_verify_options){0});
    ck_assert_msg(v.outcome == ET_INCONCLUSIVE, "%s", v.line);
    ck_assert_msg(strstr(v.line, "give route.mask") != NULL, "%s", v.line);
    ck_assert_int_eq(verdict_on(&v, "fwd.y")->outcome, ET_PASS);
    ck_assert_int_eq(verdict_on(&v, "fwd.logits")->outcome, ET_PASS);
    ck_assert_int_eq(verdict_on(&v, "fwd.slot_out")->outcome, ET_INCONCLUSIVE);
    ck_assert_uint_eq(verdict_on(&v, "fwd.slot_out")->judged, 0);
    ck_assert_int_eq(verdict_on(&v, "bwd.w_up")->outcome, ET_INCONCLUSIVE);
    et_verdict_free(&v);
    free_honest(&k);
}
END_TEST

/* Experts without an open decision are judged all the same. */
START_TEST(other_experts_gradients_are_judged)
{
    honest k;
    double scores[24];
    memcpy(scores, near_scores, sizeof scores);
    scores[3 * 4 + 3] = 1.3001; /* token 1's experts 1 and 2 alone are left open */
    make_scores(&k, NEAR(""), scores, 0);
    make_kernel(&k, "bf16-low", 1);
    keep_only(&k, "bwd.w_", "route.load");
    integers_of(&k, "route.load")[1] -= 1;
    integers_of(&k, "route.load")[2] += 1;
    et_verdict v = judge_by(&k, (et_verify_options){0});
    ck_assert_uint_eq(v.routing.open, 2);
    ck_assert_int_eq(v.outcome, ET_INCONCLUSIVE);
    ck_assert_uint_eq(verdict_on(&v, "bwd.w_up")->judged, 2 * 8 * 4);
    ck_assert_uint_eq(verdict_on(&v, "bwd.w_router")->judged, 2 * 4);
    ck_assert_uint_eq(verdict_on(&v, "route.load")->judged, 2);
    ck_assert_int_eq(verdict_on(&v, "route.load")->outcome, ET_INCONCLUSIVE);
    et_verdict_free(&v);
    values_of(&k, "bwd.w_up")[1 * 32] += 100; /* expert 1's: nobody can tell */
    v = judge_by(&k, (et_verify_options){0});
    ck_assert_int_eq(verdict_on(&v, "bwd.w_up")->outcome, ET_INCONCLUSIVE);
    et_verdict_free(&v);
    values_of(&k, "bwd.w_up")[3 * 32] += 100; /* expert 3's: wrong whatever happened */
    integers_of(&k, "route.load")[3] += 1;
    v = judge_by(&k, (et_verify_options){0});
    ck_assert_int_eq(verdict_on(&v, "route.load")->outcome, ET_MISMATCH);
    ck_assert_int_eq(verdict_on(&v, "bwd.w_up")->outcome, ET_MISMATCH);
    ck_assert_int_eq(v.outcome, ET_MISMATCH);
    et_verdict_free(&v);
    free_honest(&k);
}
END_TEST

/* With an open threshold the number that passed is open, too: a metric of it is no mismatch. */
START_TEST(counts_of_open_decisions_are_excused)
{
    const double scores[] = {2.0001, 1.0011, 0.5001, -1.0001};
    honest k;
    make_scores(&k, PLAIN, scores, 1.0001);
    make_kernel(&k, "bf16-low", 1);
    ck_assert_uint_eq(k.golden.route.passed[0], 2);
    values_of(&k, "metric.raw_usage")[0] = 0.25; /* one passed and one was not shown to differ */
    et_verdict v = judge_by(&k, (et_verify_options){0});
    ck_assert_msg(v.outcome == ET_PASS, "%s", v.line);
    ck_assert_int_eq(verdict_on(&v, "metric.raw_usage")->outcome, ET_INCONCLUSIVE);
    ck_assert_int_eq(verdict_on(&v, "route.margin")->outcome, ET_INCONCLUSIVE);
    et_verdict_free(&v);
    free_honest(&k);
}
END_TEST

#endif

/* ---- what hangs on a decision ---- */

static const struct {
    const char *name, *json;
    et_hangs hangs;
} dependences[] = {
    {"fwd.logits", NEAR(""), ET_HANGS_NOT},
    {"fwd.y", NEAR(""), ET_HANGS_BY_TOKEN},
    {"fwd.slot_pre", NEAR(""), ET_HANGS_ALL},
    {"fwd.shared_act", NEAR(""), ET_HANGS_NOT},
    {"fwd.shared_weight", NEAR(""), ET_HANGS_NOT},
    {"fwd.shared_weight", NEAR("'norm':'fanout',"), ET_HANGS_BY_TOKEN},
    {"bwd.x", NEAR(""), ET_HANGS_BY_TOKEN},
    {"bwd.x", NEAR("'balance':'aux',"), ET_HANGS_ALL},
    {"bwd.x", NEAR("'balance':'aux','mode':'eval',"), ET_HANGS_BY_TOKEN},
    {"bwd.logits", NEAR("'norm':'sum',"), ET_HANGS_BY_TOKEN},
    {"bwd.w_router", NEAR(""), ET_HANGS_BY_EXPERT},
    {"bwd.w_router", NEAR("'gate':'softmax',"), ET_HANGS_ALL},
    {"bwd.w_router", NEAR("'norm':'sum',"), ET_HANGS_ALL},
    {"bwd.w_down", NEAR("'norm':'sum',"), ET_HANGS_BY_EXPERT},
    {"bwd.shared_up", NEAR(""), ET_HANGS_NOT},
    {"bwd.shared_up", NEAR("'norm':'fanout',"), ET_HANGS_ALL},
    {"bwd.shared_act", NEAR("'norm':'fanout',"), ET_HANGS_BY_TOKEN},
    {"state.bias", NEAR("'balance':'lossfree',"), ET_HANGS_ALL},
    {"state.bias", NEAR("'balance':'lossfree','global_load':true,"), ET_HANGS_NOT},
    {"route.load", NEAR(""), ET_HANGS_BY_EXPERT},
    {"route.fanout", NEAR(""), ET_HANGS_BY_TOKEN},
    {"metric.gate_mean", NEAR(""), ET_HANGS_ALL},
};

START_TEST(dependence_follows_the_case)
{
    et_case c;
    et_error error;
    ck_assert_msg(parse_quoted(&c, dependences[_i].json, &error) == ET_OK, "%s", error.text);
    ck_assert_int_eq(et_tensor_hangs(&c, et_tensor_find(dependences[_i].name)), dependences[_i].hangs);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("verdict_routing");
    tcase_add_loop_test(add_case(suite, "dependence"), dependence_follows_the_case, 0,
                        sizeof dependences / sizeof *dependences);
#ifndef ETREF_F32
    TCase *judged = add_case(suite, "decisions");
    tcase_add_loop_test(judged, decisions_are_judged, 0, sizeof decisions / sizeof *decisions);
    tcase_add_test(judged, twin_experts_are_tied);
    tcase_add_test(judged, thresholds_err_too);
    TCase *reading = add_case(suite, "reading");
    tcase_add_test(reading, any_of_these_shows_the_routing);
    tcase_add_test(reading, slots_that_cannot_be_are_named);
    tcase_add_test(reading, choices_that_cannot_be_are_named);
    tcase_add_test(reading, slots_in_another_order_are_legal);
    tcase_add_test(reading, lists_must_be_in_order);
    TCase *own = add_case(suite, "its own");
    tcase_add_test(own, a_legal_choice_is_judged_by_itself);
    tcase_add_test(own, an_illegal_choice_is_judged_by_itself);
    tcase_add_test(own, an_absurd_choice_ends_the_matter);
    TCase *unseen = add_case(suite, "not shown");
    tcase_add_test(unseen, without_open_decisions_nothing_is_lost);
    tcase_add_test(unseen, open_decisions_are_inferred_from_rows);
    tcase_add_test(unseen, what_nobody_can_see_is_no_pass);
    tcase_add_test(unseen, other_experts_gradients_are_judged);
    tcase_add_test(unseen, counts_of_open_decisions_are_excused);
#endif
    return run_suite(suite);
}
