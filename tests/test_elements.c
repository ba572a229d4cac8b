/* test_elements.c: broken values that the verdict must find, element by element (ref/verdict/judge_elements.c).
 *
 * Candidates are honest ones (honest.h) of which one thing is broken. What hides inside every element's bar:
 * test_groups.c.
 */
#include "tests/check_main.h"
#include "tests/honest.h"
#include "tests/small_cases.h"

#ifndef ETREF_F32

static void assert_mismatch(honest *k, const char *name, const char *words)
{
    et_verdict v = judge_by(k, (et_verify_options){0});
    const et_tensor_verdict *t = verdict_on(&v, name);
    ck_assert_msg(v.outcome == ET_MISMATCH && t->outcome == ET_MISMATCH, "%s: %s", name, v.line);
    ck_assert_msg(strstr(t->reason, words) != NULL, "%s: '%s' does not say '%s'", name, t->reason,
                  words);
    ck_assert_msg(strncmp(v.line, "FAIL: ", 6) == 0, "%s", v.line);
    et_verdict_free(&v);
}

START_TEST(what_is_no_number_fails)
{
    const double values[] = {NAN, INFINITY, -INFINITY};
    for (size_t i = 0; i < 3; i++) {
        honest k;
        make_honest(&k, EC_CASE, "bf16", 1);
        values_of(&k, "bwd.w_up")[2 * 40 * 24 + 7 * 24 + 3] = values[i];
        assert_mismatch(&k, "bwd.w_up", "1 of 3840 elements fail; at expert 2, row 7, column 3");
        values_of(&k, "fwd.slot_pre")[9] = values[i];
        assert_mismatch(&k, "fwd.slot_pre", "slot 0 (token ");
        free_honest(&k);
    }
}
END_TEST

/* Where nothing may be rounded every bit counts, but the sign of zero. */
START_TEST(exact_values_must_be_exact)
{
    honest k;
    make_honest(&k, EXACT_CASE, "bf16", 1);
    double *y = values_of(&k, "fwd.y");
    size_t zero = 0;
    while (y[zero] != 0) zero++;
    y[zero] = -0.0;
    et_verdict v = judge_by(&k, (et_verify_options){0});
    ck_assert_msg(v.outcome == ET_PASS, "%s", v.line);
    ck_assert_uint_eq(verdict_on(&v, "fwd.y")->exact, 64 * 32);
    et_verdict_free(&v);
    y[zero] = 1e-30;
    assert_mismatch(&k, "fwd.y", "1 of 2048 elements fail");
    free_honest(&k);
}
END_TEST

static const char *const results[] = {"fwd.y",      "bwd.x",          "bwd.w_router",
                                      "bwd.w_up",   "bwd.w_down",     "bwd.shared_up",
                                      "bwd.logits", "bwd.shared_down"};

START_TEST(zeros_fail)
{
    honest k;
    make_honest(&k, EC_CASE, "bf16", 1);
    memset(values_of(&k, results[_i]), 0, elements_of(tensor_of(&k, results[_i])) * sizeof(double));
    assert_mismatch(&k, results[_i], "");
    free_honest(&k);
}
END_TEST

START_TEST(copies_of_inputs_are_named)
{
    honest k;
    make_honest(&k, EC_CASE, "bf16", 1);
    memcpy(values_of(&k, "bwd.x"), k.golden.in.dy, 96 * 24 * sizeof(double));
    assert_mismatch(&k, "bwd.x", "a copy of in.dy");
    memcpy(values_of(&k, "fwd.y"), k.golden.in.x, 96 * 24 * sizeof(double));
    assert_mismatch(&k, "fwd.y", "a copy of in.x");
    free_honest(&k);
}
END_TEST

START_TEST(integers_must_agree)
{
    honest k;
    make_honest(&k, EC_CASE, "bf16", 1);
    integers_of(&k, "route.token_slots")[3] += 1;
    assert_mismatch(&k, "route.token_slots", "1 of 96 elements differ");
    integers_of(&k, "state.updates")[0] += 1;
    assert_mismatch(&k, "state.updates", "got 2, must be 1");
    free_honest(&k);
}
END_TEST

START_TEST(too_coarse_a_type_is_named)
{
    honest k;
    make_honest(&k, EC_CASE, "f32", 1);
    et_tensor_out *t = tensor_of(&k, "fwd.y");
    double *y = values_of(&k, "fwd.y");
    for (size_t i = 0; i < 96 * 24; i++) y[i] = et_round_to_dtype(y[i], ET_BF16);
    t->dtype = ET_BF16;
    assert_mismatch(&k, "fwd.y", "it is stored as BF16, profile f32 expects 24 bits");
    free_honest(&k);
}
END_TEST

/* Single precision in memory is read as it is. */
START_TEST(floats_are_read)
{
    honest k;
    make_honest(&k, EC_CASE, "bf16", 1);
    et_tensor_out *t = tensor_of(&k, "bwd.x");
    double *values = values_of(&k, "bwd.x");
    float *floats = malloc(96 * 24 * sizeof *floats);
    for (size_t i = 0; i < 96 * 24; i++) floats[i] = (float)values[i];
    free(values);
    t->values = floats;
    t->source = ET_FROM_F32;
    t->dtype = ET_F32;
    et_verdict v = judge_by(&k, (et_verify_options){0});
    ck_assert_msg(v.outcome == ET_PASS, "%s", v.line);
    et_verdict_free(&v);
    floats[100] += 100;
    assert_mismatch(&k, "bwd.x", "at token 4, column 4");
    free_honest(&k);
}
END_TEST

/* ---- margins may be shown, too ---- */

START_TEST(margins_are_judged_where_nothing_is_open)
{
    honest k;
    make_honest(&k, SMALL_MOE("'name':'all','rule':'tc','top_k':4"), "bf16", 1);
    et_verdict v = judge_by(&k, (et_verify_options){0});
    ck_assert_int_eq(verdict_on(&v, "route.margin")->outcome, ET_PASS); /* all infinite */
    et_verdict_free(&v);
    values_of(&k, "route.margin")[7] = -INFINITY;
    assert_mismatch(&k, "route.margin", "1 of 384 elements fail");
    free_honest(&k);
    make_honest(&k, TC_CASE, "bf16", 1);
    double sigma = sqrt(k.noise.route.margin[7]), *margins = values_of(&k, "route.margin");
    margins[7] = k.golden.route.margin[7] + 3 * sigma;
    v = judge_by(&k, (et_verify_options){0});
    ck_assert_int_eq(verdict_on(&v, "route.margin")->outcome, ET_PASS);
    et_verdict_free(&v);
    margins[7] = k.golden.route.margin[7] + 29 * sigma; /* the group may object */
    v = judge_by(&k, (et_verify_options){0});
    ck_assert_uint_eq(verdict_on(&v, "route.margin")->failed, 0);
    et_verdict_free(&v);
    margins[7] = k.golden.route.margin[7] + 31 * sigma;
    assert_mismatch(&k, "route.margin", "1 of 384 elements fail");
    free_honest(&k);
}
END_TEST

/* One, two or three products of numbers of 11 bits: exact scores, whose difference 24 bits do not hold. */
START_TEST(margins_of_exact_scores_are_rounded)
{
    char json[512];
    honest k;
    snprintf(json, sizeof json,
             "{'name':'narrow','rule':'ec','target_load':12,'tokens':64,'d_model':%d,"
             "'d_expert':4,'experts':5,'precision':'f16','input':{'source':'outlier','seed':3}}",
             _i);
    make_honest(&k, json, "f16", 1);
    double *margins = values_of(&k, "route.margin");
    size_t rounded = 0;
    for (size_t i = 0; i < elements_of(tensor_of(&k, "route.margin")); i++) {
        double exact = k.golden.route.margin[i];
        margins[i] = (double)(float)exact;
        rounded += margins[i] != exact;
    }
    ck_assert_uint_gt(rounded, 0);
    et_verdict v = judge_by(&k, (et_verify_options){0});
    ck_assert_int_eq(verdict_on(&v, "route.margin")->outcome, ET_PASS);
    et_verdict_free(&v);
    for (size_t i = 0; i < 64; i++) margins[i] *= 1 + 0x1p-16; /* far more than that */
    v = judge_by(&k, (et_verify_options){0});
    ck_assert_int_eq(verdict_on(&v, "route.margin")->outcome, ET_MISMATCH);
    et_verdict_free(&v);
    free_honest(&k);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("elements");
    TCase *values = add_case(suite, "values"), *margins = add_case(suite, "margins");
    tcase_add_test(values, what_is_no_number_fails);
    tcase_add_test(values, exact_values_must_be_exact);
    tcase_add_loop_test(values, zeros_fail, 0, sizeof results / sizeof *results);
    tcase_add_test(values, copies_of_inputs_are_named);
    tcase_add_test(values, integers_must_agree);
    tcase_add_test(values, too_coarse_a_type_is_named);
    tcase_add_test(values, floats_are_read);
    tcase_add_test(margins, margins_are_judged_where_nothing_is_open);
    tcase_add_loop_test(margins, margins_of_exact_scores_are_rounded, 1, 4);
    return run_suite(suite);
}

#else

int main(void)
{
    return EXIT_SUCCESS; /* the float build does not judge */
}

#endif
