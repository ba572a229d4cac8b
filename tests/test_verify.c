/* test_verify.c: the verdict as a whole: what is refused unseen, what passes, what stays undecided.
 *
 * Candidates are replicas of the golden (honest.h), as they are or with one thing broken. What the verdict's parts must
 * find has tests of its own: test_elements.c, test_groups.c, test_stages.c; of the routing test_decisions.c and
 * test_verdict_routing.c. Kernels that round like real ones are judged by the campaign.
 */
#include "ref/base/place_rounding.h"
#include "tests/check_main.h"
#include "tests/honest.h"
#include "tests/small_cases.h"

#ifndef ETREF_F32

/* ---- candidates that are refused unseen ---- */

static et_tensor_out real_tensor(const char *name, size_t rows, size_t columns,
                                 const double *values)
{
    return (et_tensor_out){name, ET_F64, 2, {rows, columns}, values, ET_FROM_F64};
}

static void assert_refused(const honest *k, const et_tensor_out *tensors, size_t count,
                           const et_verify_options *options, const char *words)
{
    et_verdict verdict;
    et_error error = {""};
    et_status status = et_verify(&verdict, &k->golden, tensors, count, options, &error);
    ck_assert_msg(status == ET_EINVAL, "'%s' was not refused", words);
    ck_assert_msg(strstr(error.text, words) != NULL, "'%s' does not say '%s'", error.text, words);
    ck_assert_ptr_null(verdict.tensors);
}

START_TEST(bad_tensors_are_refused)
{
    honest k;
    make_honest(&k, EC_CASE, "bf16", 1);
    const et_verify_options options = {.profile = k.profile};
    et_tensor_out y = *tensor_of(&k, "fwd.y"), bad = y;
    bad.name = "fwd.z";
    assert_refused(&k, &bad, 1, &options, "'fwd.z' is not one of a bundle");
    bad.name = NULL;
    assert_refused(&k, &bad, 1, &options, "tensor 0 has no name");
    bad.name = "route.topk_expert";
    assert_refused(&k, &bad, 1, &options, "case 'ec' has no route.topk_expert");
    const et_tensor_out twice[] = {y, y};
    assert_refused(&k, twice, 2, &options, "fwd.y is given twice");
    bad = y;
    bad.shape[1] = 23;
    assert_refused(&k, &bad, 1, &options, "fwd.y has the shape [96,23], must be [96,24]");
    bad.rank = 1;
    assert_refused(&k, &bad, 1, &options, "[96], must be [96,24]");
    bad.rank = 1000;
    assert_refused(&k, &bad, 1, &options, "1000 dimensions");
    bad = y;
    bad.values = NULL;
    assert_refused(&k, &bad, 1, &options, "fwd.y has no values");
    bad = y;
    bad.source = ET_FROM_I32;
    assert_refused(&k, &bad, 1, &options, "fwd.y is F64, but its values in memory are not");
    bad.dtype = ET_I32;
    assert_refused(&k, &bad, 1, &options, "fwd.y is I32, must be of a float type");
    bad = *tensor_of(&k, "route.load");
    bad.dtype = ET_F32;
    bad.source = ET_FROM_F32;
    assert_refused(&k, &bad, 1, &options, "route.load is F32, must be of an integer type");
    free_honest(&k);
}
END_TEST

START_TEST(slots_must_be_those_of_its_own_routing)
{
    honest k;
    make_honest(&k, EC_CASE, "bf16", 1);
    tensor_of(&k, "fwd.slot_out")->shape[0] -= 1;
    assert_refused(&k, k.tensors, k.count, &(et_verify_options){.profile = k.profile},
                   "fwd.slot_out has the shape [95,24], must be [96,24]: a row for each slot");
    free_honest(&k);
}
END_TEST

START_TEST(inputs_must_be_the_goldens)
{
    honest k;
    make_honest(&k, EC_CASE, "bf16", 1);
    size_t count = 96 * 24;
    double *x = malloc(count * sizeof *x);
    memcpy(x, k.golden.in.x, count * sizeof *x);
    k.tensors[k.count] = real_tensor("in.x", 96, 24, x);
    k.count++;
    et_verdict v = judge_by(&k, (et_verify_options){0});
    ck_assert_msg(v.outcome == ET_PASS, "%s", v.line);
    for (size_t i = 0; i < v.tensor_count; i++) ck_assert_str_ne(v.tensors[i].name, "in.x");
    et_verdict_free(&v);
    x[5] += 1;
    assert_refused(&k, k.tensors, k.count, &(et_verify_options){.profile = k.profile},
                   "in.x[5] = ");
    x[5] = NAN;
    assert_refused(&k, k.tensors, k.count, &(et_verify_options){.profile = k.profile}, "in.x[5]");
    free_honest(&k);
}
END_TEST

START_TEST(bad_options_are_refused)
{
    honest k;
    make_honest(&k, EC_CASE, "bf16", 1);
    et_profile bad = *k.profile;
    const char *const names[] = {"fwd.nothing"}, *const missing[] = {NULL};
    assert_refused(&k, k.tensors, 1, NULL, "no options");
    assert_refused(&k, k.tensors, 1,
                   &(et_verify_options){.profile = k.profile, .explain_seconds = -1},
                   "explain_seconds = -1");
    bad.bits[ET_OUTPUTS] = 0;
    assert_refused(&k, k.tensors, 1, &(et_verify_options){.profile = &bad}, "0 bits");
    et_verify_options options = {.profile = k.profile, .require = names, .require_count = 1};
    assert_refused(&k, k.tensors, 1, &options, "case 'ec' has no fwd.nothing");
    options.require = missing;
    assert_refused(&k, k.tensors, 1, &options, "required name 0");
    free_honest(&k);
}
END_TEST

/* ---- honest kernels ---- */

static const struct {
    const char *json, *profile;
} honest_kernels[] = {
    {EC_CASE, "bf16"},
    {EC_CASE, "f32"},
    {EC_CASE, "f64"},
    {SMALL_MOE("'name':'ec','rule':'ec','gate':'softmax_tokens','pool_tokens':48"), "bf16-low"},
    {TC_CASE, "bf16"},
    {SMALL_MOE("'name':'tc','rule':'tc','top_k':2,'balance':'lossfree','norm':'sum'"), "tf32"},
    {SMALL_MOE("'name':'et','rule':'et','ema_updates':50,'capacity_factor':0.3,'norm':'fanout',"
               "'micro_batches':2,'gate':'softmax_anchor'"),
     "bf16"},
    {SMALL_MOE("'name':'et','rule':'et','mode':'eval','ema_updates':50,'shared':false,"
               "'gate':'relu'"),
     "f16"},
    {DENSE_CASE, "bf16"},
    {EXACT_CASE, "bf16"},
};

/* Rounded to nearest, and by chance. Where 8 bits hold a logit, a decision may be open. */
START_TEST(honest_kernels_pass)
{
    honest k;
    make_honest(&k, honest_kernels[_i].json, honest_kernels[_i].profile, 11);
    for (uint64_t seed = 12; seed < 18; seed++) {
        emulate(&k, k.profile, seed == 12 ? ET_ROUND_NEAREST : ET_ROUND_RANDOM, seed);
        et_verdict v = judge_by(&k, (et_verify_options){0});
        for (size_t i = 0; i < v.tensor_count; i++) {
            const et_tensor_verdict *t = &v.tensors[i];
            bool small = strstr(t->reason, "below its noise") != NULL;
            bool open = strcmp(t->name, "route.margin") == 0 && v.routing.open > 0;
            ck_assert_msg(t->outcome == ET_PASS || small || open, "%s: %s", t->name, t->reason);
        }
        ck_assert(v.routing.open == 0 || strcmp(v.profile.name, "bf16-low") == 0);
        ck_assert_msg(v.outcome == ET_PASS, "%s", v.line);
        ck_assert_str_eq(v.profile.name, honest_kernels[_i].profile);
        ck_assert_uint_eq(v.tensor_count, k.count);
        et_verdict_free(&v);
    }
    free_honest(&k);
}
END_TEST

/* An autograd kernel has dy in bf16 before it computes with it, where another rounds w dy alone. */
START_TEST(dy_may_be_rounded_before_dO_is)
{
    honest k;
    make_honest(&k,
                "{'name':'dy','rule':'tc','top_k':4,'norm':'fanout','shared':true,'tokens':512,"
                "'d_model':64,'d_expert':8,'experts':4,'precision':'f32',"
                "'input':{'source':'normal','seed':7}}",
                "bf16", 1);
    keep_only(&k, "bwd.shared_out", "route.mask");
    const rounding r = et_rounding_at(k.profile, ET_INTERMEDIATES);
    double *dO = values_of(&k, "bwd.shared_out");
    for (size_t i = 0; i < 512 * 64; i++)
        dO[i] = rounding_result(&r, 0.2 * rounding_result(&r, k.golden.in.dy[i]));
    et_verdict v = judge_by(&k, (et_verify_options){0});
    ck_assert_msg(v.outcome == ET_PASS, "%s", v.line);
    et_verdict_free(&v);
    for (size_t i = 0; i < 512 * 64; i++) /* truncated: no kernel of this profile does that */
        dO[i] = 0.2 * k.golden.in.dy[i] -
                fmod(0.2 * k.golden.in.dy[i], rounding_ulp(&r, 0.2 * k.golden.in.dy[i]));
    v = judge_by(&k, (et_verify_options){0});
    ck_assert_int_eq(v.outcome, ET_MISMATCH);
    et_verdict_free(&v);
    free_honest(&k);
}
END_TEST

/* The report's numbers, on an error that is known. */
START_TEST(the_report_says_what_was_found)
{
    honest k;
    make_honest(&k, EC_CASE, "bf16", 1);
    size_t at = 17 * 24 + 5;
    double *y = values_of(&k, "fwd.y"), want = k.golden.fwd.y[at];
    double sigma = sqrt(k.noise.fwd.y[at]);
    y[at] = want + 40 * sigma;
    et_verdict v = judge_by(&k, (et_verify_options){0});
    const et_tensor_verdict *t = verdict_on(&v, "fwd.y");
    ck_assert_int_eq(v.outcome, ET_MISMATCH);
    ck_assert_int_eq(t->outcome, ET_MISMATCH);
    ck_assert_uint_eq(t->elements, 96 * 24);
    ck_assert_uint_eq(t->judged, 96 * 24);
    ck_assert_uint_eq(t->failed, 1);
    ck_assert_uint_eq(t->worst, at);
    ck_assert_double_eq(t->got, y[at]);
    ck_assert_double_eq(t->want, want);
    ck_assert_double_eq_tol(t->largest_sigmas, 40, 1e-6);
    ck_assert_double_eq(t->limit_sigmas, 30);
    ck_assert_double_eq_tol(t->bar, t->limit_sigmas * sigma, 1e-9);
    ck_assert(t->largest_error >= 39.99 * sigma);
    ck_assert_msg(strstr(t->reason, "1 of 2304 elements fail; at token 17, column 5") != NULL, "%s",
                  t->reason);
    ck_assert_msg(strncmp(v.line, "FAIL: fwd.y: 1 of", 17) == 0, "%s", v.line);
    ck_assert(t->effective_sample > 1 && t->effective_sample <= 96 * 24);
    ck_assert_double_eq_tol(t->whole.spread, sqrt(1 + 1600. / 2304), 0.3);
    ck_assert_int_eq(verdict_on(&v, "bwd.x")->outcome, ET_PASS);
    et_verdict_free(&v);
    free_honest(&k);
}
END_TEST

/* ---- vacuous candidates ---- */

static void assert_inconclusive(honest *k, et_verify_options options, const char *words)
{
    et_verdict v = judge_by(k, options);
    ck_assert_msg(v.outcome == ET_INCONCLUSIVE, "%s", v.line);
    ck_assert_msg(strstr(v.line, words) != NULL, "'%s' does not say '%s'", v.line, words);
    ck_assert_msg(strncmp(v.line, "INCONCLUSIVE: ", 14) == 0, "%s", v.line);
    et_verdict_free(&v);
}

START_TEST(an_empty_candidate_decides_nothing)
{
    honest k;
    make_honest(&k, EC_CASE, "bf16", 1);
    clear_tensors(&k);
    assert_inconclusive(&k, (et_verify_options){0}, "nothing to judge");
    free_honest(&k);
}
END_TEST

START_TEST(the_golden_is_no_candidate)
{
    const char *const profiles[] = {"bf16", "f32", "f64"};
    for (size_t i = 0; i < 3; i++) {
        honest k;
        make_honest(&k, EC_CASE, profiles[i], 1);
        clear_tensors(&k);
        add_tensors(&k, &k.golden);
        assert_inconclusive(&k, (et_verify_options){0}, "the golden itself");
        /* by another engine, whose sums end otherwise in the last bits */
        for (size_t e = 0; i < 2 && e < 96 * 16; e++) values_of(&k, "fwd.y")[e] *= 1 + 1e-15;
        if (i < 2) assert_inconclusive(&k, (et_verify_options){0}, "the golden itself");
        /* one tensor of it among a kernel's own: a kernel of binary64 may well get that */
        make_tensors(&k, 1);
        memcpy(values_of(&k, "fwd.logits"), k.golden.fwd.logits, 96 * 4 * sizeof(double));
        if (i < 2) {
            assert_inconclusive(&k, (et_verify_options){0}, "fwd.logits: the golden itself");
        } else {
            et_verdict v = judge_by(&k, (et_verify_options){0});
            ck_assert_msg(v.outcome == ET_PASS, "%s", v.line);
            et_verdict_free(&v);
        }
        free_honest(&k);
    }
}
END_TEST

START_TEST(what_is_required_must_be_there)
{
    honest k;
    const char *const names[] = {"fwd.y", "bwd.*", "bwd.x"}; /* one is asked for twice */
    et_verify_options options = {.require = names, .require_count = 3};
    make_honest(&k, EC_CASE, "bf16", 1);
    et_verdict v = judge_by(&k, options);
    ck_assert_msg(v.outcome == ET_PASS, "%s", v.line);
    et_verdict_free(&v);
    remove_tensor(&k, "bwd.w_down");
    assert_inconclusive(&k, options, "bwd.w_down is required and not there");
    remove_tensor(&k, "bwd.slot_act"); /* not asked for by bwd.*: fused kernels have none */
    assert_inconclusive(&k, options, "bwd.w_down is required and not there");
    remove_tensor(&k, "bwd.x");
    assert_inconclusive(&k, options, "bwd.x and bwd.w_down are required and not there");
    values_of(&k, "fwd.y")[3] = NAN; /* a mismatch says more */
    v = judge_by(&k, options);
    ck_assert_int_eq(v.outcome, ET_MISMATCH);
    et_verdict_free(&v);
    free_honest(&k);
}
END_TEST

/* At scale 1e-4 binary16 has no room for A = relu(H)^2: what passes there says nothing. */
START_TEST(below_its_noise_nothing_passes)
{
    honest k;
    make_honest(&k,
                "{'name':'tiny','rule':'ec','tokens':96,'d_model':24,'d_expert':40,'experts':4,"
                "'precision':'f16','input':{'source':'tiny','seed':3}}",
                "f16", 1);
    keep_only(&k, "fwd.y", "route.");
    assert_inconclusive(&k, (et_verify_options){0}, "fwd.y: below its noise");
    free_honest(&k);
}
END_TEST

START_TEST(beyond_the_range_nothing_is_judged)
{
    honest k;
    make_honest(&k,
                "{'name':'huge','rule':'ec','tokens':96,'d_model':24,'d_expert':40,'experts':4,"
                "'precision':'f16','input':{'source':'huge','seed':3}}",
                "f16", 1);
    const char *const kept[] = {"bwd.slot_out", "bwd.logits", "state.ema"};
    for (size_t i = k.count; i-- > 0;) {
        bool keep = strncmp(k.tensors[i].name, "fwd.", 4) == 0;
        for (size_t n = 0; n < 3; n++) keep |= strcmp(k.tensors[i].name, kept[n]) == 0;
        if (!keep) remove_tensor(&k, k.tensors[i].name);
    }
    emulate(&k, k.profile, ET_ROUND_NEAREST, 1); /* infinite where a kernel of this range is */
    const double *A = k.golden.fwd.slot_act, *dr = k.golden.bwd.logits;
    size_t beyond = 0, within = 0, routed = 0;
    while (A[beyond] <= 65504) beyond++;
    while (A[within] == 0 || A[within] > 60000) within++;
    while (k.golden.route.mask[routed] == 0) routed++;
    ck_assert(values_of(&k, "fwd.slot_act")[beyond] == INFINITY);
    ck_assert(fabs(dr[routed]) < 1); /* in range itself */
    values_of(&k, "fwd.slot_act")[beyond] = 65504;
    values_of(&k, "fwd.y")[0] = NAN;
    values_of(&k, "bwd.logits")[routed] = NAN;
    et_verdict v = judge_by(&k, (et_verify_options){0});
    const char *const unjudged[] = {"fwd.slot_act", "fwd.y", "bwd.logits"};
    ck_assert_msg(v.outcome == ET_INCONCLUSIVE, "%s", v.line);
    for (size_t i = 0; i < 3; i++) {
        const et_tensor_verdict *t = verdict_on(&v, unjudged[i]);
        ck_assert_int_eq(t->outcome, ET_INCONCLUSIVE);
        ck_assert_msg(strstr(t->reason, "leave the range of profile f16") != NULL, "%s: %s",
                      t->name, t->reason);
        /* which element is the first, and what no kernel should hide: NaN */
        ck_assert_ptr_nonnull(strstr(t->reason, ", the first at "));
        ck_assert((strstr(t->reason, "are NaN") != NULL) == (i > 0));
    }
    ck_assert_msg(strstr(v.line, "; NaN in fwd.slot_out") != NULL, "%s", v.line);
    ck_assert_int_eq(verdict_on(&v, "bwd.slot_out")->outcome, ET_PASS);
    et_verdict_free(&v);
    values_of(&k, "fwd.slot_act")[within] *= 2; /* what is within is judged */
    values_of(&k, "bwd.slot_out")[0] = NAN;     /* nothing before it leaves the range */
    v = judge_by(&k, (et_verify_options){0});
    ck_assert_int_eq(verdict_on(&v, "fwd.slot_act")->outcome, ET_MISMATCH);
    ck_assert_uint_eq(verdict_on(&v, "fwd.slot_act")->failed, 1);
    ck_assert_int_eq(verdict_on(&v, "bwd.slot_out")->outcome, ET_MISMATCH);
    ck_assert_int_eq(v.outcome, ET_MISMATCH);
    et_verdict_free(&v);
    values_of(&k, "bwd.slot_out")[0] = k.golden.bwd.slot_out[0];
    values_of(&k, "fwd.slot_act")[within] /= 2;
    values_of(&k, "fwd.logits")[0] += 1e6; /* nor before these */
    values_of(&k, "state.ema")[0] += 1e6;
    v = judge_by(&k, (et_verify_options){0});
    ck_assert_int_eq(verdict_on(&v, "fwd.logits")->outcome, ET_MISMATCH);
    ck_assert_int_eq(verdict_on(&v, "state.ema")->outcome, ET_MISMATCH);
    ck_assert_int_eq(v.outcome, ET_MISMATCH);
    et_verdict_free(&v);
    free_honest(&k);
}
END_TEST

START_TEST(a_verdict_that_failed_leaves_nothing)
{
    honest k;
    make_honest(&k, EC_CASE, "bf16", 1);
    et_verdict v = {.outcome = ET_MISMATCH};
    ck_assert_str_eq(et_outcome_name(ET_PASS), "pass");
    ck_assert_str_eq(et_outcome_name(ET_MISMATCH), "mismatch");
    ck_assert_str_eq(et_outcome_name(ET_INCONCLUSIVE), "inconclusive");
    et_verdict_free(&v); /* zeros but for the outcome */
    et_verdict_free(&v);
    /* no room for anything: an error, and nothing to free */
    et_error error;
    const et_verify_options options = {.profile = k.profile, .max_bytes = 1000};
    ck_assert_int_eq(et_verify(&v, &k.golden, k.tensors, k.count, &options, &error), ET_ENOMEM);
    ck_assert_ptr_null(v.tensors);
    free_honest(&k);
}
END_TEST

#else

START_TEST(a_float_build_does_not_judge)
{
    et_verdict v;
    et_error error;
    et_step golden = {0};
    const et_verify_options options = {.profile = et_profile_find("bf16")};
    ck_assert_int_eq(et_verify(&v, &golden, NULL, 0, &options, &error), ET_EINVAL);
    ck_assert_ptr_nonnull(strstr(error.text, "PRECISION=f32"));
}
END_TEST

#endif

int main(void)
{
    Suite *suite = suite_create("verify");
#ifdef ETREF_F32
    tcase_add_test(add_case(suite, "float build"), a_float_build_does_not_judge);
#else
    TCase *refused = add_case(suite, "refused");
    tcase_add_test(refused, bad_tensors_are_refused);
    tcase_add_test(refused, slots_must_be_those_of_its_own_routing);
    tcase_add_test(refused, inputs_must_be_the_goldens);
    tcase_add_test(refused, bad_options_are_refused);
    TCase *honest_ones = add_case(suite, "honest");
    tcase_add_loop_test(honest_ones, honest_kernels_pass, 0,
                        sizeof honest_kernels / sizeof *honest_kernels);
    tcase_add_test(honest_ones, dy_may_be_rounded_before_dO_is);
    tcase_add_test(honest_ones, the_report_says_what_was_found);
    TCase *vacuous = add_case(suite, "vacuous");
    tcase_add_test(vacuous, an_empty_candidate_decides_nothing);
    tcase_add_test(vacuous, the_golden_is_no_candidate);
    tcase_add_test(vacuous, what_is_required_must_be_there);
    tcase_add_test(vacuous, below_its_noise_nothing_passes);
    tcase_add_test(vacuous, beyond_the_range_nothing_is_judged);
    tcase_add_test(vacuous, a_verdict_that_failed_leaves_nothing);
#endif
    return run_suite(suite);
}
