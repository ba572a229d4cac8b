/* test_token_choices.c: token choice by groups of experts and with a capacity, and a given assignment: decisions that are
 * worked out by hand, judged one by one; and bundles that bring an assignment.
 *
 * Errors of scores are written down as in test_decisions.c. Left out: values and gradients (test_witness.c,
 * test_gradients.c), mistakes by name (test_modern.c).
 */
#include "tests/check_main.h"
#include "tests/scores.h"
#include "tests/scratch.h"

#include "etref/bundle.h"
#include "ref/step/decide.h"

#ifndef ETREF_F32

enum { MOST = 24 };

#define GROUPS "{'name':'g','rule':'tc','tokens':1,'experts':4,'d_model':4,'top_k':2,'groups':2,'groups_kept':1," SCORED
#define MAX    GROUPS "}"
#define TOP2   GROUPS ",'group_score':'top2'}"
/* A token and an expert of their own: one slot each. */
#define FIRST  "{'name':'c','rule':'tc','tokens':3,'experts':2,'d_model':2,'top_k':1,'capacity_factor':0.6," SCORED
#define SECOND "{'name':'c','rule':'tc','tokens':3,'experts':3,'d_model':3,'top_k':2,'capacity_factor':0.5," SCORED
#define LATE   FIRST "}"
#define LOW    FIRST ",'drop':'score'}"
#define TWICE  SECOND "}"
#define HALVES "{'name':'c','rule':'tc','tokens':4,'experts':2,'d_model':2,'micro_batches':2,'capacity_factor':0.6," SCORED "}"

static const struct {
    const char *what, *json;
    double scores[MOST], sigma;
    const char *golden, *candidate;
    size_t open, illegal;
    const char *words;
} rows[] = {
    {"the best group", MAX, {3, 0, 2, 1}, 0.1, "1100", "1100", 0, 0, ""},
    {"all groups", MAX, {3, 0, 2, 1}, 0.1, "1100", "1010", 0, 2,
     "token 0 takes experts of group 1 (score 2) and not of group 0 (3): expert 1 is missing"},
    {"the other group", MAX, {3, 0, 2, 1}, 0.1, "1100", "0011", 0, 4, "experts of group 1"},
    {"groups that are not settled", MAX, {3, 0, 2.95, 1}, 0.1, "1100", "0011", 4, 0, ""},
    {"nor does that let one of each pass", MAX, {3, 0, 2.95, 1}, 0.1, "1100", "1010", 4, 2, "group 1"},
    {"the two best", TOP2, {3, 0, 2, 1.6}, 0.05, "0011", "0011", 0, 0, ""},
    {"the best one, where two are due", TOP2, {3, 0, 2, 1.6}, 0.05, "0011", "1100", 0, 4, "group 0 (score 3)"},
    {"a sum errs more than its members", TOP2, {3, 0, 2, 1.6}, 0.07, "0011", "1100", 4, 0, ""},

    {"the first to come", LATE, {2, 0, 3, 0, 0, 1}, 0.1, "10 00 01", "10 00 01", 0, 0, ""},
    {"the best, where the first is due", LATE, {2, 0, 3, 0, 0, 1}, 0.1, "10 00 01", "00 10 01", 0, 2,
     "expert 0 drops token 0 and keeps token 1, which stands behind it"},
    {"nobody is dropped", LATE, {2, 0, 3, 0, 0, 1}, 0.1, "10 00 01", "10 10 01", 0, 1,
     "expert 0 takes 2 of tokens 0 to 2, must take 0 to 1: token 1 is one too many"},
    {"all are dropped", LATE, {2, 0, 3, 0, 0, 1}, 0.1, "10 00 01", "00 00 01", 0, 1, "expert 0 drops token 0 and has 0 of 1 slots"},
    {"a choice that is not settled", LATE, {2, 0, 0.02, 0, 0, 1}, 0.1, "10 00 01", "10 01 00", 3, 0, ""},
    {"its own line it must keep", LATE, {2, 0, 0.02, 0, 0, 1}, 0.1, "10 00 01", "00 10 01", 3, 2, "expert 0 drops token 0"},
    {"the best", LOW, {2, 0, 3, 0, 0, 1}, 0.001, "00 10 01", "00 10 01", 0, 0, ""},
    {"the first, where the best is due", LOW, {2, 0, 3, 0, 0, 1}, 0.001, "00 10 01", "10 00 01", 0, 2,
     "expert 0 drops token 1 and keeps token 0"},
    {"gate values that are not settled", LOW, {2, 0, 3, 0, 0, 1}, 0.1, "00 10 01", "10 00 01", 2, 0, ""},
    {"equal tokens: the first", LOW, {2, 0, 2, 0, 0, 1}, 0.1, "10 00 01", "00 10 01", 0, 2, "drops token 0"},
    {"first choices first", TWICE, {2, 1, 0, 0, 2, 1, 0, 1, 2}, 0.1, "100 010 001", "100 010 001", 0, 0, ""},
    {"second choices like first ones", TWICE, {2, 1, 0, 0, 2, 1, 0, 1, 2}, 0.1, "100 010 001", "110 001 000", 0, 4,
     "expert 1 drops token 1 and keeps token 0"},
    {"which is the first is not settled", TWICE, {2, 1.9, 0, 0, 2, 1, 0, 1, 2}, 0.1, "100 010 001", "110 000 001", 2, 0, ""},
    {"each micro-batch by itself", HALVES, {2, 0, 3, 0, 2, 0, 3, 0}, 0.1, "10 00 10 00", "10 00 10 00", 0, 0, ""},
    {"one line for the step", HALVES, {2, 0, 3, 0, 2, 0, 3, 0}, 0.1, "10 00 10 00", "10 10 00 00", 0, 2,
     "expert 0 takes 2 of tokens 0 to 1, must take 0 to 1"},
};

START_TEST(choices_are_judged)
{
    honest k;
    uint8_t want[MOST] = {0}, mask[MOST], open[MOST] = {0};
    make_scores(&k, rows[_i].json, rows[_i].scores, 0);
    make_kernel(&k, "bf16-low", 1);
    set_deviation(&k, rows[_i].sigma);
    size_t places = k.golden.c.tokens * k.golden.c.experts;
    read_rows(rows[_i].golden, want, places);
    read_rows(rows[_i].candidate, mask, places);
    for (size_t i = 0; i < places; i++)
        ck_assert_msg(want[i] == k.golden.route.mask[i], "%s: golden, place %zu", rows[_i].what, i);
    et_routing_verdict out = judge_mask(&k, mask, false, open);
    ck_assert_msg(out.illegal == rows[_i].illegal && out.open == rows[_i].open,
                  "%s: %zu illegal, must be %zu; %zu open, must be %zu: %s", rows[_i].what, out.illegal,
                  rows[_i].illegal, out.open, rows[_i].open, out.reason);
    ck_assert_int_eq(out.outcome, out.illegal > 0 ? ET_MISMATCH : ET_PASS);
    ck_assert_msg(strstr(out.reason, rows[_i].words) != NULL, "%s: '%s' does not say '%s'",
                  rows[_i].what, out.reason, rows[_i].words);
    free_honest(&k);
}
END_TEST

/* Rounded up, and never more than the tokens. */
START_TEST(capacities)
{
    ck_assert_uint_eq(et_token_capacity(6, 4, 2, 0.3), 1);
    ck_assert_uint_eq(et_token_capacity(6, 4, 2, 1), 3);
    ck_assert_uint_eq(et_token_capacity(6, 4, 2, 1.01), 4);
    ck_assert_uint_eq(et_token_capacity(6, 4, 2, 100), 6);
    ck_assert_uint_eq(et_token_capacity(10, 3, 1, 1.5), 5); /* 10/3 * 1.5 in binary64 is 5 */
}
END_TEST

/* ---- a given assignment ---- */

#define GIVEN "{'name':'a','rule':'tc','top_k':2,'tokens':6,'d_model':3,'d_expert':2,'experts':4,'balance':'aux',"           \
              "'precision':'f32','input':{'source':'normal'}}"

static void write_step(const et_step *s)
{
    et_error error;
    ck_assert_msg(et_bundle_write(path, s, false, &error) == ET_OK, "%s", error.text);
}

static et_status open_given(et_step *s, et_error *error)
{
    et_tensor_file file;
    et_status status = et_bundle_open(&file, s, path, 0, error);
    if (status != ET_OK) return status;
    if (!s->c.given) status = et_bundle_give_routing(s, &file, error);
    et_tensor_file_close(&file);
    return status;
}

static void run_golden(et_step *s, const char *json)
{
    et_case c;
    ck_assert_int_eq(parse_quoted(&c, json, NULL), ET_OK);
    run_case(s, &c);
}

/* Whatever shows it, the rule's own assignment gives the rule's own numbers, and another one its own. */
START_TEST(an_assignment_is_brought)
{
    et_step s, given;
    et_error error;
    run_golden(&s, GIVEN);
    uint8_t *mask = s.route.mask;
    int32_t *expert = s.assignment.slot_expert, *offsets = s.assignment.expert_offsets, *token = s.assignment.slot_token;
    if (_i > 0) s.route.mask = NULL;
    if (_i > 1) s.assignment.slot_expert = NULL;
    if (_i > 2) s.assignment.slot_token = NULL;
    write_step(&s);
    s.route.mask = mask, s.assignment.slot_expert = expert, s.assignment.slot_token = token;
    ck_assert_msg(open_given(&given, &error) == ET_OK, "%s", error.text);
    ck_assert_int_eq(et_step_run(&given, ET_PLAIN, NULL, NULL, &error), ET_OK);
    size_t N = s.c.tokens, d = s.c.d_model, n = s.c.experts;
    ck_assert_mem_eq(given.route.mask, mask, N * n);
    ck_assert_mem_eq(given.assignment.expert_offsets, offsets, (n + 1) * sizeof *offsets);
    ck_assert_mem_eq(given.fwd.y, s.fwd.y, N * d * sizeof(et_real));
    ck_assert_mem_eq(given.bwd.x, s.bwd.x, N * d * sizeof(et_real));
    ck_assert_mem_eq(given.bwd.router, s.bwd.router, n * d * sizeof(et_real));
    ck_assert(*given.loss_aux == *s.loss_aux && given.route.margin == NULL && given.route.topk_expert == NULL);
    /* and the bundle that comes of it brings it again */
    write_step(&given);
    et_step_free(&given);
    ck_assert_msg(open_given(&given, &error) == ET_OK && given.c.given, "%s", error.text);
    et_step_free(&given);
    et_step_free(&s);
}
END_TEST

static void token_out_of_range(et_step *s)
{
    s->route.mask = NULL, s->assignment.slot_token[3] = 6;
}
static void negative_token(et_step *s)
{
    s->route.mask = NULL, s->assignment.slot_token[3] = -1;
}
static void expert_out_of_range(et_step *s)
{
    s->route.mask = NULL, s->assignment.slot_expert[11] = 4;
}
static void twice(et_step *s)
{
    s->route.mask = NULL, s->assignment.slot_token[1] = s->assignment.slot_token[0];
}
static void offsets_fall(et_step *s)
{
    s->route.mask = NULL, s->assignment.slot_expert = NULL, s->assignment.expert_offsets[2] = 0;
}
static void offsets_end_early(et_step *s)
{
    s->route.mask = NULL, s->assignment.slot_expert = NULL, s->assignment.expert_offsets[4] = 11;
}
static void load_contradicts(et_step *s)
{
    s->assignment.load[2]++;
}
static void fanout_contradicts(et_step *s)
{
    s->assignment.fanout[5] = 0;
}
static void nothing_there(et_step *s)
{
    s->route.mask = NULL, s->assignment.slot_token = NULL, s->route.topk_expert = NULL;
}

static const struct {
    void (*spoil)(et_step *s);
    const char *words;
} bad[] = {
    {token_out_of_range, "route.slot_token[3] = 6, must be 0 to 5"},
    {negative_token, "route.slot_token[3] = -1, must be 0 to 5"},
    {expert_out_of_range, "route.slot_expert[11] = 4, must be 0 to 3"},
    {twice, "with expert 0 twice"},
    {offsets_fall, "they never fall"},
    {offsets_end_early, "must be the 12 slots of route.slot_token"},
    {load_contradicts, "route.load[2] = "},
    {fanout_contradicts, "route.fanout[5] = 0, but the assignment beside it makes it 2"},
    {nothing_there, "no assignment, which routing = \"given\" needs"},
};

START_TEST(an_impossible_assignment_is_refused)
{
    et_step s, given;
    et_error error;
    run_golden(&s, GIVEN);
    int32_t *arrays[] = {s.assignment.slot_token, s.assignment.slot_expert};
    bad[_i].spoil(&s);
    write_step(&s);
    s.assignment.slot_token = arrays[0], s.assignment.slot_expert = arrays[1];
    et_step_free(&s);
    ck_assert_int_eq(open_given(&given, &error), ET_EINVAL);
    ck_assert_msg(strstr(error.text, bad[_i].words) != NULL, "'%s' does not say '%s'", error.text, bad[_i].words);
    et_step_free(&given);
}
END_TEST

/* A kernel is held to it, decision by decision, whatever its scores; and one that routes by itself is told so. */
START_TEST(kernels_are_held_to_a_given_assignment)
{
    honest k;
    et_case c;
    uint8_t mask[6 * 4], *own;
    ck_assert_int_eq(parse_quoted(&c, GIVEN, NULL), ET_OK);
    for (size_t i = 0; i < sizeof mask; i++) mask[i] = i % 4 == i / 4 % 4 || i % 5 == 0;
    draw_case(&k.golden, &c);
    ck_assert_int_eq(et_step_take_given(&k.golden, &own, NULL), ET_OK);
    memcpy(own, mask, sizeof mask);
    make_kernel(&k, "f32", 3);
    make_tensors(&k, 3);
    et_verdict v = judge_by(&k, (et_verify_options){.explain = true});
    ck_assert_msg(v.outcome == ET_PASS, "%s", v.line);
    et_verdict_free(&v);
    et_step rule = et_step_like(&k.golden);
    rule.c.given = false, rule.given_mask = NULL;
    ck_assert_int_eq(et_step_run(&rule, ET_PLAIN, NULL, NULL, NULL), ET_OK);
    clear_tensors(&k);
    add_tensors(&k, &rule);
    remove_tensor(&k, "route.topk_expert");
    remove_tensor(&k, "route.margin");
    v = judge_by(&k, (et_verify_options){.explain = true});
    ck_assert_msg(v.outcome == ET_MISMATCH && strstr(v.line, "against the given assignment"), "%s", v.line);
    ck_assert_msg(v.explanation_count > 0 && strcmp(v.explanations[0].name, "given-routing-ignored") == 0, "%s",
                  v.explanation_count ? v.explanations[0].name : "not explained");
    et_verdict_free(&v);
    et_step_free(&rule);
    free_honest(&k);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("token choices");
    TCase *judged = add_case(suite, "judged");
    tcase_add_loop_test(judged, choices_are_judged, 0, sizeof rows / sizeof *rows);
    tcase_add_test(judged, capacities);
    TCase *given = add_case(suite, "given");
    tcase_add_checked_fixture(given, make_folder, remove_folder);
    tcase_add_loop_test(given, an_assignment_is_brought, 0, 4);
    tcase_add_loop_test(given, an_impossible_assignment_is_refused, 0, sizeof bad / sizeof *bad);
    tcase_add_test(given, kernels_are_held_to_a_given_assignment);
    return run_suite(suite);
}

#else

int main(void)
{
    return EXIT_SUCCESS; /* a float build does not judge */
}

#endif
