/* test_step.c: what a step makes of its case: the shared expert's weight, the gap between cutoff and
 * threshold, whether a capacity acts. Layers of one column, whose scores are x and -x: every number
 * here can be checked by eye.
 */
#include "ref/step/tensors.h"
#include "tests/check_main.h"
#include "tests/run_case.h"

#include <math.h>

#define COUNT(array) (sizeof(array) / sizeof(array)[0])

/* N tokens x = N, N-1, .. 1; two experts, whose scores are x and -x; all other weights 1. */
static void run_line(et_step *s, const char *switches, const et_real *ema)
{
    char json[1024];
    et_case c;
    et_error error = {""};
    snprintf(json, sizeof json, "{'name':'line','d_model':1,'d_expert':1,'experts':2,%s}",
             switches);
    ck_assert_msg(parse_quoted(&c, json, &error) == ET_OK, "%s", error.text);
    ck_assert_int_eq(et_step_create(s, &c, 0, &error), ET_OK);
    for (size_t t = 0; t < c.tokens; t++) {
        s->in.x[t] = (et_real)(c.tokens - t);
        s->in.dy[t] = 1;
    }
    for (size_t i = 0; i < 2; i++) {
        s->in.router[i] = i == 0 ? 1 : -1;
        s->in.up[i] = s->in.down[i] = 1;
        if (s->in.ema) s->in.ema[i] = ema[i];
    }
    if (c.shared) s->in.shared_up[0] = s->in.shared_down[0] = 1;
    ck_assert_msg(et_step_check_inputs(s, &error) == ET_OK, "%s", error.text);
    ck_assert_msg(et_step_run(s, ET_PLAIN, NULL, NULL, &error) == ET_OK, "%s", error.text);
}

/* softmax_anchor_out: one of the G+1 experts that a token gets, under EC and ET; the fanout of a token
 * that no or one routed expert takes divides it by 1 or 2. Token choice: 1. */
START_TEST(the_shared_expert_weighs_its_part)
{
    static const struct {
        const char *switches;
        double weight; /* of token 0 */
    } known[] = {
        {"'rule':'ec','tokens':4,'granularity':1,'gate':'softmax_anchor_out'", 1. / 2},
        {"'rule':'ec','tokens':4,'granularity':2,'gate':'softmax_anchor_out'", 1. / 3},
        {"'rule':'ec','tokens':4,'target_load':1,'gate':'softmax_anchor_out'", 1. / 2},
        {"'rule':'et','tokens':4,'granularity':1,'gate':'softmax_anchor_out'", 1. / 2},
        {"'rule':'et','tokens':4,'granularity':2,'gate':'softmax_anchor_out'", 1. / 3},
        {"'rule':'et','mode':'eval','tokens':4,'granularity':2,'gate':'softmax_anchor_out'",
         1. / 3},
        {"'rule':'et','tokens':4,'warmup_steps':1,'gate':'softmax_anchor_out'", 1. / 2},
        {"'rule':'ec','tokens':4,'gate':'softmax_anchor_out','norm':'fanout'", 1. / 4},
        {"'rule':'ec','tokens':4,'gate':'softmax_anchor_out','norm':'sum'", 1. / 2},
        {"'rule':'tc','tokens':4,'top_k':2,'gate':'softmax_anchor_out'", 1},
        {"'rule':'ec','tokens':4,'granularity':2,'gate':'sigmoid'", 1},
        {"'rule':'ec','tokens':4,'granularity':2,'gate':'softmax'", 1},
    };
    const et_real ema[] = {0, 0};
    for (size_t v = 0; v < COUNT(known); v++) {
        et_step s;
        run_line(&s, known[v].switches, ema);
        double apart = fabs((double)s.fwd.shared_weight[0] - known[v].weight);
        ck_assert_msg(apart <= 2 * ET_UNIT_ROUNDOFF, "%s: %.17g", known[v].switches,
                      (double)s.fwd.shared_weight[0]);
        et_step_free(&s);
    }
}
END_TEST

/* Scores 4, 3, 2, 1 and -4, -3, -2, -1: the second largest are 3 and -2. */
START_TEST(the_gap_is_to_the_averages_threshold)
{
    static const struct {
        const char *switches;
        et_real ema[2], gap[2];
    } known[] = {
        {"'rule':'ec','tokens':4", {1, -1}, {2, -1}},
        {"'rule':'et','tokens':4", {1, -1}, {2, -1}},
        {"'rule':'et','tokens':4,'step':3,'warmup_steps':4", {1, -1}, {2, -1}},
        /* one update behind an average of decay 1/2: the threshold is twice the average */
        {"'rule':'ec','tokens':4,'ema_decay':0.5,'ema_bias_correction':true,'ema_updates':1",
         {1, -1},
         {1, 0}},
        {"'rule':'et','tokens':4,'warmup_steps':1,'ema_decay':0.5,'ema_bias_correction':true,"
         "'ema_updates':1",
         {1, -1},
         {1, 0}},
        /* before the first update the threshold is 0, whatever the decay */
        {"'rule':'ec','tokens':4,'ema_bias_correction':true", {0, 0}, {3, -2}},
        /* two pools, two micro-batches: means of 4, 2 and of -3, -1 */
        {"'rule':'ec','tokens':4,'pool_tokens':2", {1, -3}, {2, 1}},
        {"'rule':'et','tokens':4,'micro_batches':2,'warmup_steps':1", {1, -3}, {2, 1}},
    };
    for (size_t v = 0; v < COUNT(known); v++) {
        et_step s;
        run_line(&s, known[v].switches, known[v].ema);
        for (size_t i = 0; i < 2; i++) {
            et_real want = known[v].gap[i];
            ck_assert_msg(s.metric.cutoff_gap[i] == want, "%s: gap %zu is %.17g", known[v].switches,
                          i, (double)s.metric.cutoff_gap[i]);
            ck_assert(s.metric.cutoff_gap_abs[i] == (want < 0 ? -want : want));
        }
        et_step_free(&s);
    }
}
END_TEST

/* Where no batch has a cutoff, or no average is kept. */
START_TEST(no_gap_in_evaluation_and_token_choice)
{
    const char *const none[] = {"'rule':'tc','tokens':4", "'rule':'ec','mode':'eval','tokens':4",
                                "'rule':'et','mode':'eval','tokens':4"};
    const et_real ema[] = {1, -1};
    for (size_t v = 0; v < COUNT(none); v++) {
        et_step s;
        run_line(&s, none[v], ema);
        ck_assert_ptr_null(s.metric.cutoff_gap);
        ck_assert_ptr_null(s.metric.cutoff_gap_abs);
        et_step_free(&s);
    }
}
END_TEST

/* How many stages lie between a tensor and the inputs; what hangs on itself has no end. */
static size_t depth(const et_case *c, et_tensor_id id, size_t below)
{
    size_t most = 0;
    ck_assert_msg(below < ET_TENSORS, "%s hangs on itself", et_tensors[id].doc.name);
    for (const int *from = et_tensors[id].starts; *from != ET_NO_TENSOR; from++) {
        et_tensor_id start = et_start_in(c, *from);
        size_t here = start == ET_NO_TENSOR ? 0 : 1 + depth(c, start, below + 1);
        most = here > most ? here : most;
    }
    return most;
}

/* Inputs start from nothing, and what is computed ends at them: r in one stage, dx in many. */
START_TEST(every_tensor_hangs_on_inputs)
{
    const et_case usual = {.layer = ET_MOE}, weighs = {.layer = ET_MOE, .weighs_input = true};
    for (size_t id = ET_NO_TENSOR + 1; id < ET_TENSORS; id++) {
        bool given = et_tensors[id].stage == ET_AT_INPUTS || id == ET_STATE_UPDATES;
        ck_assert_int_eq(et_tensors[id].starts[ET_MAX_STARTS - 1], ET_NO_TENSOR);
        ck_assert_msg((depth(&usual, (et_tensor_id)id, 0) == 0) == given, "%s",
                      et_tensors[id].doc.name);
        ck_assert((depth(&weighs, (et_tensor_id)id, 0) == 0) == given);
        ck_assert_int_eq(et_tensor_find(et_tensors[id].doc.name), id);
    }
    ck_assert_uint_eq(depth(&usual, ET_FWD_LOGITS, 0), 1);
    ck_assert_uint_eq(depth(&usual, ET_BWD_X, 0), depth(&usual, ET_BWD_SHARED_PRE, 0) + 1);
    ck_assert_uint_gt(depth(&weighs, ET_BWD_SLOT_WEIGHT, 0), depth(&usual, ET_BWD_SLOT_PRE, 0));
    ck_assert_int_eq(et_tensor_find("fwd.nothing"), ET_NO_TENSOR);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("step");
    TCase *tests = add_case(suite, "by hand");
    tcase_add_test(tests, the_shared_expert_weighs_its_part);
    tcase_add_test(tests, the_gap_is_to_the_averages_threshold);
    tcase_add_test(tests, no_gap_in_evaluation_and_token_choice);
    tcase_add_test(add_case(suite, "table"), every_tensor_hangs_on_inputs);
    return run_suite(suite);
}
