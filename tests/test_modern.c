/* test_modern.c: layers beyond the paper's: honest kernels of the suite modern pass, and each mistake that its switches make
 * possible is caught and named.
 *
 * The mistakes are the catalogue's own (ref/diagnose/faults_*.c), planted by a mutant and then stored in the profile's
 * formats. That the values are right is the business of test_witness and test_gradients; and PyTorch's own functions are
 * judged by tools/check-torch.
 */
#include "tests/check_main.h"

#ifndef ETREF_F32

#include "etref/golden.h"
#include "ref/step/decide.h"
#include "ref/diagnose/diagnosis.h"
#include "tests/honest.h"
#define SUITE "modern.json"
#include "tests/one_suite.h"
#include "tests/run_case.h"

START_TEST(honest_kernels_pass)
{
    static const char *const profiles[] = {"f32", "bf16", "f16", "bf16-low", "f64"};
    for (size_t i = 0; i < cases; i++) expect_honest_passes(&suite[i], profiles[_i]);
}
END_TEST

/* Which forms of a mistake a case shows; in_f32: under f32, since they are less than bf16's roundings. */
static const struct {
    const char *name, *in;
    unsigned forms;
    bool in_f32;
} mistakes[] = {
    {"activation-exchanged", "swiglu-tc", 0x7e, false},
    {"activation-exchanged", "gelu-et", 0x39, false},
    {"activation-exchanged", "gelu-et", 0x02, true},
    {"activation-exchanged", "gelu-tanh-ec", 0x39, false},
    {"activation-exchanged", "gelu-tanh-ec", 0x04, true},
    {"activation-slope", "swiglu-tc", 0xfe, false},
    {"activation-slope", "gelu-et", 0xf9, false},
    {"activation-slope", "gelu-tanh-ec", 0x80, false},
    {"swiglu-halves-exchanged", "swiglu-tc", 3, false},
    {"swiglu-halves-exchanged", "swiglu-dense", 3, false},
    {"swiglu-half-missing", "swiglu-tc", 3, false},
    {"swiglu-half-missing", "swiglu-dense", 3, false},
    {"swiglu-gradient-factor", "swiglu-tc", 15, false},
    {"swiglu-gradient-factor", "swiglu-dense", 15, false},
    {"swiglu-share-of-dx", "swiglu-tc", 3, false},
    {"swiglu-share-of-dx", "swiglu-dense", 3, false},
    {"neighbour-expert", "swiglu-tc", 3, false},
    {"token-order-up", "swiglu-tc", 2, false},
    {"routed-scale-forgotten", "scaled-tc", 1, false},
    {"routed-scale-twice", "scaled-tc", 1, false},
    {"routed-scale-gradient", "scaled-tc", 1, false},
    {"shared-scaled", "scaled-tc", 1, false},
    {"norm-forgotten", "scaled-tc", 1, false},
    {"norm-over-all", "scaled-tc", 1, false},
    {"norm-gradient", "scaled-tc", 1, false},
    {"weight-on-output", "weigh-input-tc", 1, false},
    {"weight-on-output", "weigh-input-swiglu-ec", 1, true},
    {"weight-on-both", "weigh-input-tc", 3, false},
    {"weight-on-both", "weigh-input-swiglu-ec", 3, false},
    {"weight-once-in-square", "weigh-input-tc", 3, false},
    {"input-weight-gradient", "weigh-input-tc", 7, false},
    {"input-weight-gradient", "weigh-input-swiglu-ec", 7, false},
    {"gradient-of-unweighted-input", "weigh-input-tc", 1, false},
    {"gradient-of-unweighted-input", "weigh-input-swiglu-ec", 1, false},
    {"input-weight-in-dx", "weigh-input-tc", 3, false},
    {"input-weight-in-dx", "weigh-input-swiglu-ec", 3, false},
    {"neighbour-expert", "weigh-input-tc", 3, false},
    {"neighbour-expert-backward", "weigh-input-swiglu-ec", 1, false},
    {"token-order-up", "weigh-input-tc", 2, false},
    {"slot-lost", "weigh-input-tc", 1, false},
    {"gate-forgotten", "weigh-input-tc", 1, false},
    {"factor-two", "weigh-input-tc", 1, false},
    {"relu-mask", "weigh-input-tc", 1, false},
    {"swiglu-gradient-factor", "weigh-input-swiglu-ec", 15, false},
    {"bias-forgotten", "biased-tc", 0xdd, false},
    {"bias-forgotten", "biased-swiglu-et", 0xff, false},
    {"bias-of-neighbour", "biased-tc", 15, false},
    {"bias-of-neighbour", "biased-swiglu-et", 15, false},
    {"down-bias-unweighted", "biased-tc", 3, false},
    {"down-bias-unweighted", "biased-swiglu-et", 3, false},
    {"down-bias-once", "biased-tc", 3, false},
    {"bias-gradient-unweighted", "biased-tc", 1, false},
    {"bias-gradient-unweighted", "biased-swiglu-et", 1, false},
    {"bias-gradient-over-more", "biased-tc", 7, false},
    {"bias-gradient-over-more", "biased-swiglu-et", 7, false},
    {"bias-gradient-lacks-last", "biased-tc", 7, false},
    {"bias-gradient-lacks-last", "biased-swiglu-et", 7, false},
    {"bias-gradient-missing", "biased-tc", 7, false},
    {"gradient-averaged", "biased-tc", 1, false},
    {"last-token-in-dw", "biased-tc", 1, false},
    {"neighbour-expert", "biased-tc", 3, false},
    {"padding-in-shared", "padded-tc", 1, false},
    {"padding-in-losses", "padded-tc", 7, false},
    {"padding-in-bias", "padded-bias-tc", 1, false},
    {"padding-routed", "padded-pools-ec", 3, false},
    {"padding-in-k", "padded-pools-ec", 1, false},
    {"k-plus-one", "padded-pools-ec", 1, false},
    {"pools-ignored", "padded-pools-ec", 7, false},
    {"padding-routed", "padded-et", 3, false},
    {"capacity-ignored", "padded-et", 1, false},
    {"capacity-upper-off-by-one", "padded-et", 3, false},
    {"padding-routed", "padded-dropped-tc", 3, false},
    {"overflow-capacity", "padded-dropped-tc", 0x5b, false},
    {"routed-scale-forgotten", "scaled-swiglu-tc", 1, true},
    {"routed-scale-gradient", "scaled-swiglu-tc", 1, true},
    {"overflow-order", "dropped-tc", 0x3f, false},
    {"overflow-order", "dropped-by-score-tc", 0x27, true},
    {"overflow-capacity", "dropped-tc", 0x1b, false},
    {"overflow-capacity", "dropped-by-score-tc", 0x07, true},
    {"overflow-of-step", "dropped-tc", 7, false},
    {"capacity-ignored", "dropped-tc", 1, false},
    {"norm-before-capacity", "dropped-tc", 1, false},
    {"aux-after-dropping", "dropped-tc", 1, false},
    {"groups-ignored", "groups-tc", 1, false},
    {"groups-kept-off-by-one", "groups-tc", 1, false},
    {"group-score", "groups-tc", 0xf, false},
    {"refused-group-zero", "groups-tc", 1, false},
    {"biased-score-as-gate", "groups-tc", 5, false},
    {"gates-in-selection", "deepseek-tc", 0x3f, false},
    {"group-score", "deepseek-tc", 0xf, false},
    {"groups-kept-off-by-one", "deepseek-tc", 1, false},
    {"biased-score-as-gate", "deepseek-tc", 5, false},
    {"groups-ignored", "groups-max-tc", 1, true},
    {"groups-kept-off-by-one", "groups-max-tc", 1, true},
    {"group-score", "groups-max-tc", 6, true},
    {"refused-group-zero", "groups-max-tc", 1, true},
};
enum { MISTAKES = sizeof mistakes / sizeof *mistakes };

static const et_hypothesis *hypothesis_named(const char *name)
{
    const et_hypothesis *what;
    size_t i = 0;
    while ((what = et_hypothesis_row(i)) != NULL && strcmp(what->doc.name, name) != 0) i++;
    ck_assert_msg(what != NULL, "no hypothesis %s", name);
    return what;
}

/* A kernel that routes so, and is honest otherwise; its lists of choices would be the reference's. */
static void route_so(honest *k, const uint8_t *mask)
{
    et_step wrong = et_step_like(&k->golden);
    et_error error;
    wrong.given_mask = mask;
    ck_assert_msg(et_step_run(&wrong, ET_PLAIN, NULL, NULL, &error) == ET_OK, "%s", error.text);
    clear_tensors(k);
    add_tensors(k, &wrong);
    emulate_step(k, &wrong, k->profile, ET_ROUND_RANDOM, 3);
    if (k->golden.route.topk_expert) remove_tensor(k, "route.topk_expert");
    if (k->golden.route.topk_token) remove_tensor(k, "route.topk_token");
    et_step_free(&wrong);
}

/* By as much as the mistake moves the reference's. */
static void move_values(const et_tensor_out *own, const double *wrong, const double *right)
{
    double *values = (double *)(uintptr_t)own->values;
    for (size_t i = 0; i < elements_of(own); i++) values[i] += wrong[i] - right[i];
}

/* The candidate's numbers become those of a kernel with the mistake; what it does not reach, the golden's. */
static void plant(honest *k, const et_hypothesis *what, size_t variant)
{
    et_subject on;
    et_mutant m;
    ck_assert_int_eq(et_subject_open(&on, &k->golden, NULL, 0, NULL, NULL), ET_OK);
    et_mutant_open(&m, &on, &(et_fault){.what = what, .variant = variant, .factor = 1}, true);
    for (int phase = 0; phase < ET_PHASES; phase++)
        ck_assert_int_eq(et_mutant_phase(&m, (et_phase)phase, NULL), ET_OK);
    bool reroutes = et_hypothesis_reach(&k->golden.c, what, variant, false) >> ET_AT_MASK & 1;
    if (reroutes) route_so(k, m.all.route.mask);
    for (size_t t = 0; t < k->count; t++) {
        et_tensor_out *own = &k->tensors[t];
        const void *wrong = et_mutant_values(&m, own->name);
        et_tensor_id id = et_tensor_find(own->name);
        const void *right = et_tensor_view(&k->golden, id).values;
        if (!et_tensor_is_real(own)) continue;
        if (!wrong)
            wrong = right; /* every stage starts from what the one before was rounded from */
        if (!reroutes)
            memcpy((void *)(uintptr_t)own->values, wrong, elements_of(own) * sizeof(double));
        else if (et_tensors[id].stage == ET_AT_CUTOFF ||
                 id == ET_STATE_EMA) /* no assignment says these */
            move_values(own, wrong, right);
        coarsen(k, own->name, 1, et_place_bits(k->profile, et_tensors[id].place));
    }
    et_mutant_close(&m);
    et_subject_close(&on);
}

static bool is_named(const et_verdict *v, const char *name)
{
    size_t i = 0;
    while (i < v->explanation_count && strcmp(v->explanations[i].name, name) != 0) i++;
    return i < v->explanation_count;
}

/* The mistakes of one case, under one profile; by default one form of each. */
static void check_mistakes(const et_case *c, const char *profile)
{
    honest k;
    bool all_forms = getenv("ETREF_CAMPAIGN") != NULL, coarse = strcmp(profile, "bf16") == 0;
    draw_case(&k.golden, c);
    make_kernel(&k, profile, 3);
    for (size_t i = 0; i < MISTAKES; i++) {
        const et_hypothesis *what = hypothesis_named(mistakes[i].name);
        bool seen = false;
        if (strcmp(mistakes[i].in, c->name) != 0 || mistakes[i].in_f32 == coarse) continue;
        ck_assert(what->applies == NULL || what->applies(&k.golden));
        for (size_t variant = 0; et_hypothesis_form(what, variant); variant++) {
            if (!(mistakes[i].forms >> variant & 1) || (seen && !all_forms)) continue;
            make_tensors(&k, 3);
            plant(&k, what, variant);
            et_verdict v = judge_by(&k, (et_verify_options){.explain = true});
            ck_assert_msg(v.outcome == ET_MISMATCH && is_named(&v, what->doc.name),
                          "%s, form %zu, in %s, %s: %s; %s", what->doc.name, variant, c->name,
                          profile, v.line,
                          v.explanation_count ? v.explanations[0].name : "not explained");
            et_verdict_free(&v);
            seen = true;
        }
    }
    free_honest(&k);
}

START_TEST(mistakes_are_named)
{
    for (size_t i = 0; i < cases; i++) check_mistakes(&suite[i], _i ? "f32" : "bf16");
}
END_TEST

/* A token takes every expert of its group: K + 1 cannot be tried. */
START_TEST(groups_without_room_for_one_more)
{
    et_case c;
    honest k;
    ck_assert_int_eq(
        parse_quoted(
            &c,
            "{'name':'full','rule':'tc','tokens':24,'d_model':8,'d_expert':6,'experts':4,"
            "'top_k':2,'groups':2,'groups_kept':1,'precision':'f32','input':{'source':'normal'}}",
            NULL),
        ET_OK);
    draw_case(&k.golden, &c);
    make_kernel(&k, "f32", 3);
    make_tensors(&k, 3);
    plant(&k, hypothesis_named("k-minus-one"), 0);
    et_verdict v = judge_by(&k, (et_verify_options){.explain = true});
    ck_assert_msg(v.outcome == ET_MISMATCH && is_named(&v, "k-minus-one"), "%s", v.line);
    et_verdict_free(&v);
    free_honest(&k);
}
END_TEST

/* A padding token's margin is infinite, and exact in every kernel. */
START_TEST(infinite_margins_pass)
{
    size_t infinite = 0;
    for (size_t i = 0; i < cases; i++) {
        honest k;
        if (suite[i].padding == 0) continue;
        draw_case(&k.golden, &suite[i]);
        make_kernel(&k, "bf16", 3);
        make_tensors(&k, 3);
        infinite +=
            isinf(values_of(&k, "route.margin")[suite[i].tokens * suite[i].experts - 1]) != 0;
        et_verdict v = judge_by(&k, (et_verify_options){.explain = false});
        ck_assert_msg(v.outcome == ET_PASS, "%s: %s", suite[i].name, v.line);
        et_verdict_free(&v);
        free_honest(&k);
    }
    ck_assert_uint_gt(infinite, 0);
}
END_TEST

START_TEST(a_mask_says_what_the_case_says)
{
    size_t i = 0;
    et_step s;
    et_error error = {""};
    while (suite[i].padding == 0) i++;
    draw_case(&s, &suite[i]);
    size_t last = s.c.tokens - 1, d = s.c.d_model;
    ck_assert(s.in.mask[0] == 1 && s.in.mask[last] == 0 && s.in.dy[last * d] == 0);
    ck_assert_int_eq(et_step_check_inputs(&s, &error), ET_OK);
    s.in.dy[last * d] = 1;
    ck_assert_int_eq(et_step_check_inputs(&s, &error), ET_EINVAL);
    ck_assert_msg(strstr(error.text, "is padding") != NULL, "%s", error.text);
    s.in.dy[last * d] = 0;
    s.in.mask[0] = 0;
    ck_assert_int_eq(et_step_check_inputs(&s, &error), ET_EINVAL);
    ck_assert_msg(strstr(error.text, "in.mask[0] = 0; allowed: 1") != NULL, "%s", error.text);
    et_step_free(&s);
}
END_TEST

/* All its other inputs; the padding token's gradient is 0. */
static void give_ones(et_golden *g)
{
    static const float ones[] = {1, 0};
    static const char *const names[] = {"in.x", "in.dy", "in.w_router", "in.w_up", "in.w_down"};
    static const size_t ranks[] = {2, 2, 2, 3, 3};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        const et_array a = {.name = names[i],
                            .dtype = ET_F32,
                            .rank = ranks[i],
                            .shape = {i < 2 ? 2 : 1, 1, 1},
                            .values = ones};
        et_error error = {""};
        ck_assert_msg(et_golden_give(g, &a, 1, &error) == ET_OK, "%s", error.text);
    }
}

/* Its integers come as integers, of any type that holds them. */
START_TEST(a_mask_is_given_as_integers)
{
    const char *text =
        "{\"name\": \"own\", \"rule\": \"tc\", \"tokens\": 2, \"padding\": 1, \"d_model\": 1, "
        "\"d_expert\": 1, \"experts\": 1, \"shared\": false}";
    static const et_dtype types[] = {ET_I64, ET_U64, ET_I32, ET_U32, ET_I16,
                                     ET_U16, ET_I8,  ET_U8,  ET_BOOL};
    const double reals[] = {1, 0};
    const int64_t large[] = {1, (int64_t)1 << 32};
    const et_array wrong = {
        .name = "in.mask", .dtype = ET_F64, .rank = 1, .shape = {2}, .values = reals};
    const et_array outside = {
        .name = "in.mask", .dtype = ET_I64, .rank = 1, .shape = {2}, .values = large};
    et_golden *g;
    et_error error = {""};
    ck_assert_int_eq(et_golden_of_case(&g, text, 0, NULL), ET_OK);
    ck_assert_int_eq(et_golden_give(g, &wrong, 1, &error), ET_EINVAL);
    ck_assert_str_eq(
        error.text,
        "input 'in.mask' has type F64; convert it to BOOL, I32 or another integer type");
    ck_assert_int_eq(et_golden_give(g, &outside, 1, &error), ET_EINVAL);
    ck_assert_str_eq(error.text,
                     "input 'in.mask' has the value 4294967296, which is no integer of 32 bits");
    et_golden_close(g);
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        unsigned char mask[16];
        const et_array given = {
            .name = "in.mask", .dtype = types[i], .rank = 1, .shape = {2}, .values = mask};
        et_array taken;
        for (size_t t = 0; t < 2; t++)
            et_dtype_encode(reals[t], types[i], mask + t * et_dtype_size(types[i]));
        ck_assert_int_eq(et_golden_of_case(&g, text, 0, NULL), ET_OK);
        ck_assert_int_eq(et_golden_give(g, &given, 1, NULL), ET_OK);
        give_ones(g);
        size_t index = 0;
        do ck_assert_msg(et_golden_tensor(g, index++, &taken, &error) == ET_OK, "%s", error.text);
        while (taken.name && strcmp(taken.name, "in.mask") != 0);
        ck_assert_ptr_nonnull(taken.name);
        ck_assert_msg(((const int32_t *)taken.values)[0] == 1 &&
                          ((const int32_t *)taken.values)[1] == 0,
                      "%s", et_dtype_name(types[i]));
        et_golden_close(g);
    }
}
END_TEST

int main(void)
{
    Suite *all = suite_create("modern");
    TCase *tests = add_case(all, "modern");
    bool everything = getenv("ETREF_CAMPAIGN") != NULL;
    tcase_add_unchecked_fixture(tests, read_cases, free_cases);
    tcase_add_loop_test(tests, honest_kernels_pass, 0, everything ? 5 : 2);
    tcase_add_loop_test(tests, mistakes_are_named, 0, 2);
    tcase_add_test(tests, groups_without_room_for_one_more);
    tcase_add_test(tests, infinite_margins_pass);
    tcase_add_test(tests, a_mask_says_what_the_case_says);
    tcase_add_test(tests, a_mask_is_given_as_integers);
    return run_suite(all);
}

#else

int main(void)
{
    return EXIT_SUCCESS; /* a float build does not judge */
}

#endif
