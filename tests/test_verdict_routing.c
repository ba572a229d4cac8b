/* test_verdict_routing.c: a candidate's routing: read from whatever shows it; the layer judged with it; inferred, or left
 * open with what hangs on it, where it is not shown (ref/verdict/judge_routing.c, unseen_decisions.c).
 *
 * Which decisions may differ: test_decisions.c.
 */
#include "ref/verdict/judge.h"
#include "tests/check_main.h"
#include "tests/scores.h"

#define NEAR(more)                                                                                 \
    "{'name':'near','rule':'tc','tokens':6,'experts':4,'d_model':4,'top_k':2," more                \
    "'precision':'f64','d_expert':8,'shared':false}"

#ifndef ETREF_F32

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
    make_scores(&k, SCORED_ET("'tokens':4"), scores, 1.0001);
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
    ck_assert_int_eq(et_tensor_hangs(&c, et_tensor_find(dependences[_i].name)),
                     dependences[_i].hangs);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("verdict_routing");
    tcase_add_loop_test(add_case(suite, "dependence"), dependence_follows_the_case, 0,
                        sizeof dependences / sizeof *dependences);
#ifndef ETREF_F32
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
