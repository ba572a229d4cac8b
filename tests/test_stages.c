/* test_stages.c: each stage judged by itself, from the candidate's own numbers (ref/bars/stages.c).
 */
#include "ref/bars/stages.h"
#include "ref/step/decide.h"
#include "ref/step/tensors.h"
#include "tests/check_main.h"

#include <stdlib.h>
#include <string.h>

#ifndef ETREF_F32

#include "tests/honest.h"

static const char *const layers[] = {
    "{'name':'tc','rule':'tc','top_k':2,'gate':'softmax','norm':'sum','balance':'aux',"
    "'z_loss_coef':0.01,'tokens':64,'d_model':24,'d_expert':40,'experts':4,'precision':'bf16',"
    "'input':{'source':'normal','seed':4}}",
    "{'name':'et','rule':'et','ema_updates':9,'norm':'fanout','gate':'softmax_anchor',"
    "'micro_batches':2,'tokens':64,'d_model':24,'d_expert':40,'experts':4,'precision':'bf16',"
    "'input':{'source':'normal','seed':4}}",
    "{'name':'ec','rule':'ec','pool_tokens':32,'tokens':64,'d_model':24,'d_expert':40,'experts':4,"
    "'precision':'bf16','input':{'source':'normal','seed':4}}",
    "{'name':'dense','layer':'dense','tokens':64,'d_model':24,'d_expert':40,'precision':'bf16',"
    "'input':{'source':'normal','seed':4}}"};

/* What stages make of the golden's own numbers is the golden: none is left out, none sees another's. */
START_TEST(of_the_golden_they_make_the_golden)
{
    et_case c;
    et_step golden, made;
    ck_assert_int_eq(parse_quoted(&c, layers[_i], NULL), ET_OK);
    draw_case(&golden, &c);
    ck_assert_int_eq(et_step_run(&golden, ET_PLAIN, NULL, NULL, NULL), ET_OK);
    const et_given given = et_given_by(&golden);
    const et_rounding exact = {.profile = et_profile_find("f64")};
    ck_assert_int_eq(et_stages_run(&made, &golden, &given, &exact, false, 0, NULL), ET_OK);
    for (et_tensor_id id = ET_LAST_INPUT + 1; id < ET_TENSORS; id++) {
        et_tensor_out want = et_tensor_view(&golden, id), got = et_tensor_view(&made, id);
        if (!want.values || !et_tensor_is_real(&want) || !et_stands_alone(&golden, NULL, id))
            continue;
        double largest = 0, error = 0;
        for (size_t i = 0; i < et_tensor_count(&want); i++) {
            double u = et_tensor_element(&want, i), v = et_tensor_element(&got, i);
            largest = fmax(largest, fabs(u));
            error = u == v ? error : fmax(error, fabs(u - v));
        }
        ck_assert_msg(error <= 1e-14 * largest, "%s: %g of %g", want.name, error, largest);
    }
    et_step_free(&made);
    et_step_free(&golden);
}
END_TEST

/* A number that is wrong moves what its own stage makes of it, and nothing behind that. */
START_TEST(a_wrong_number_goes_no_further)
{
    et_case c;
    et_step golden, made;
    ck_assert_int_eq(parse_quoted(&c, layers[3], NULL), ET_OK);
    draw_case(&golden, &c);
    ck_assert_int_eq(et_step_run(&golden, ET_BLAS, NULL, NULL, NULL), ET_OK);
    et_real A[64 * 40];
    memcpy(A, golden.fwd.slot_act, sizeof A);
    A[40 * 7 + 3] += 1;
    et_given given = et_given_by(&golden);
    given.tensor[ET_FWD_SLOT_ACT].values = A;
    const et_rounding exact = {.profile = et_profile_find("f64")};
    ck_assert_int_eq(et_stages_run(&made, &golden, &given, &exact, false, 0, NULL), ET_OK);
    ck_assert(memcmp(made.fwd.slot_act, golden.fwd.slot_act, sizeof A) == 0);
    ck_assert(memcmp(made.fwd.slot_out, golden.fwd.slot_out, 64 * 24 * sizeof(et_real)) != 0);
    ck_assert(memcmp(made.fwd.y, golden.fwd.y, 64 * 24 * sizeof(et_real)) == 0);
    ck_assert(memcmp(made.bwd.down, golden.bwd.down, 24 * 40 * sizeof(et_real)) != 0);
    ck_assert(memcmp(made.bwd.slot_act, golden.bwd.slot_act, sizeof A) == 0);
    et_step_free(&made);
    et_step_free(&golden);
}
END_TEST

/* ---- their bars ---- */

static double elements_learnt(const et_bars *b, et_tensor_id id)
{
    return b->tensor[id].bars[b->tensor[id].grid.first[ET_KIND_TENSOR]].n;
}

/* Half of the hidden units are off: their zeros are the whole's business, and no elements without error. */
START_TEST(zeros_are_left_to_the_whole)
{
    et_case c;
    et_step golden;
    et_bars bars;
    double others = 0;
    ck_assert_int_eq(parse_quoted(&c, layers[3], NULL), ET_OK);
    draw_case(&golden, &c);
    ck_assert_int_eq(et_step_run(&golden, ET_PLAIN, NULL, NULL, NULL), ET_OK);
    ck_assert_int_eq(et_bars_make(&bars, &golden, et_profile_find("bf16"), 0, NULL, NULL, NULL),
                     ET_OK);
    for (size_t i = 0; i < 64 * 40; i++) others += golden.bwd.slot_pre[i] != 0;
    ck_assert(others < 0.7 * 64 * 40);
    ck_assert_double_eq(elements_learnt(bars.alone, ET_BWD_SLOT_PRE), others);
    et_bars_free(&bars);
    et_step_free(&golden);
}
END_TEST

/* What a kernel as exact as we are should have made of its own numbers, nobody knows. */
START_TEST(our_own_precision_has_none)
{
    static const char *const profiles[] = {"f32", "f64"};
    for (size_t i = 0; i < 2; i++) {
        et_case c;
        et_step golden;
        et_bars bars;
        ck_assert_int_eq(parse_quoted(&c, layers[3], NULL), ET_OK);
        draw_case(&golden, &c);
        ck_assert_int_eq(et_step_run(&golden, ET_PLAIN, NULL, NULL, NULL), ET_OK);
        ck_assert_int_eq(
            et_bars_make(&bars, &golden, et_profile_find(profiles[i]), 0, NULL, NULL, NULL), ET_OK);
        ck_assert((bars.alone != NULL) == (i == 0));
        et_bars_free(&bars);
        et_step_free(&golden);
    }
}
END_TEST

/* ---- what the whole does not see ---- */

static et_verdict judge_alone(honest *k)
{
    return judge_by(k, (et_verify_options){.explain = false});
}

static void expect(honest *k, const char *tensor)
{
    et_verdict v = judge_alone(k);
    if (tensor == NULL) {
        ck_assert_msg(v.outcome == ET_PASS, "%s", v.line);
    } else {
        const char *reason = verdict_on(&v, tensor)->reason;
        ck_assert_int_eq(v.outcome, ET_MISMATCH);
        ck_assert_msg(strncmp(reason, "computed from the candidate's own numbers, ", 43) == 0,
                      "%s: %s", tensor, reason);
    }
    et_verdict_free(&v);
}

static const char *const eight_experts =
    "{'name':'k8','rule':'tc','top_k':8,'experts':16,'gate':'softmax','shared':false,'tokens':128,"
    "'d_model':32,'d_expert':48,'precision':'bf16','input':{'source':'normal','seed':7}}";

/* dx in 7 bits: the errors of 8 experts are in it already. Without what it starts from nothing is to be seen. */
START_TEST(one_stage_is_coarse)
{
    honest k;
    make_honest(&k, eight_experts, "bf16", 3);
    expect(&k, NULL);
    coarsen(&k, "bwd.x", 0.7, 7);
    expect(&k, "bwd.x");
    remove_tensor(&k, "bwd.slot_pre");
    expect(&k, NULL);
    free_honest(&k);
}
END_TEST

/* A kernel with everything but the balancing loss's gradient: dr shows it, from dw and p as they are. */
START_TEST(a_gradient_is_missing)
{
    honest k;
    make_honest(&k,
                "{'name':'aux','rule':'tc','top_k':2,'balance':'aux','balance_coef':1e-3,"
                "'gate':'softmax','tokens':128,'d_model':32,'d_expert':48,'experts':8,"
                "'precision':'bf16','input':{'source':'normal','seed':7}}",
                "bf16", 3);
    expect(&k, NULL);
    et_step without = et_step_like(&k.golden);
    without.c.balance_coef = 1e-300;
    without.given_mask = k.golden.route.mask;
    ck_assert_int_eq(et_step_run(&without, ET_PLAIN, NULL, NULL, NULL), ET_OK);
    const char *const gradient[] = {"bwd.logits", "bwd.w_router", "bwd.x"};
    const et_real *const wrong[] = {without.bwd.logits, without.bwd.router, without.bwd.x};
    const et_real *const right[] = {k.golden.bwd.logits, k.golden.bwd.router, k.golden.bwd.x};
    for (size_t t = 0; t < 3; t++) {
        double *values = values_of(&k, gradient[t]);
        for (size_t i = 0; i < elements_of(tensor_of(&k, gradient[t])); i++)
            values[i] += wrong[t][i] - right[t][i];
    }
    expect(&k, "bwd.logits");
    remove_tensor(&k, "bwd.slot_weight");
    expect(&k, NULL);
    et_step_free(&without);
    free_honest(&k);
}
END_TEST

/* A kernel of a finer format, one that shows more bits than it uses, one that uses more than it shows. */
START_TEST(kernels_may_keep_more_bits)
{
    honest k;
    make_honest(&k, eight_experts, "bf16", 3);
    emulate(&k, et_profile_find("f32"), ET_ROUND_NEAREST, 3);
    expect(&k, NULL);
    static const char *const stored[] = {"fwd.slot_pre", "fwd.slot_act", "fwd.slot_out",
                                         "bwd.slot_out", "bwd.slot_act", "bwd.slot_pre"};
    for (size_t i = 0; i < sizeof stored / sizeof *stored; i++) coarsen(&k, stored[i], 1, 8);
    expect(&k, NULL);
    free_honest(&k);
}
END_TEST

/* A number that is wrong is no start for others: y, of the right f(x), is not blamed for a wrong one that is shown. */
START_TEST(what_is_wrong_is_no_start)
{
    honest k;
    make_honest(&k, eight_experts, "bf16", 3);
    values_of(&k, "fwd.slot_out")[5] += 100;
    et_verdict v = judge_alone(&k);
    ck_assert_int_eq(verdict_on(&v, "fwd.slot_out")->outcome, ET_MISMATCH);
    ck_assert_int_eq(verdict_on(&v, "fwd.y")->outcome, ET_PASS);
    et_verdict_free(&v);
    free_honest(&k);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("stages");
    TCase *runs = tcase_create("runs"), *verdicts = tcase_create("verdicts");
    tcase_add_loop_test(runs, of_the_golden_they_make_the_golden, 0,
                        sizeof layers / sizeof *layers);
    tcase_add_test(runs, a_wrong_number_goes_no_further);
    tcase_add_test(runs, zeros_are_left_to_the_whole);
    tcase_add_test(runs, our_own_precision_has_none);
    tcase_set_timeout(verdicts, 120);
    tcase_add_test(verdicts, one_stage_is_coarse);
    tcase_add_test(verdicts, a_gradient_is_missing);
    tcase_add_test(verdicts, kernels_may_keep_more_bits);
    tcase_add_test(verdicts, what_is_wrong_is_no_start);
    suite_add_tcase(suite, runs);
    suite_add_tcase(suite, verdicts);
    return run_suite(suite);
}

#else

int main(void)
{
    return EXIT_SUCCESS; /* the float build does not judge */
}

#endif
