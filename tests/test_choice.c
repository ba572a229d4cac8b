/* test_choice.c: by which profile a candidate is judged, and what the verdict says of other profiles.
 *
 * Emulated kernels of f32, bf16 and f16 (candidates/) are shown in the types in which people save them. Which profile
 * fits is known from the kernel; what must come out, from the table in etref/verify.h.
 *
 * Left out: the report on paper (test_judgement.c).
 */
#include "etref/etref.h"
#include "tests/candidates/candidate.h"
#include "tests/check_main.h"
#include "tests/inconclusive.h"
#include "tests/run_case.h"

#include <math.h>

#ifndef ETREF_F32

static const char *const usual_case =
    "{'name':'chosen','rule':'tc','top_k':2,'tokens':96,'d_model':32,'d_expert':48,'experts':4,"
    "'precision':'bf16','input':{'source':'normal','seed':3,'decisive':true}}";

/* Whole numbers: many a sum of a kernel of f32 is a number of BF16, too. */
static const char *const integer_case =
    "{'name':'whole','rule':'tc','top_k':2,'tokens':64,'d_model':16,'d_expert':16,'experts':4,"
    "'gate':'relu','precision':'bf16','input':{'source':'integer','seed':3}}";

typedef struct subject {
    et_step golden;
    cd_candidate kernel;
    size_t count;
    et_tensor_out shown[CD_MAX_ARRAYS];
} subject;

static const char *const results[] = {"fwd.y",        "bwd.x",      "bwd.w_up", "bwd.w_down",
                                      "bwd.w_router", "route.mask", NULL};

/* A kernel of `profile`, with a fault or NULL; it shows its results. */
static void make(subject *s, const char *json, const char *profile, const char *fault,
                 double amount)
{
    et_case c;
    et_error error;
    ck_assert_msg(parse_quoted(&c, json, &error) == ET_OK, "%s", error.text);
    run_case(&s->golden, &c);
    ck_assert_msg(cd_run(&s->kernel, &s->golden, et_profile_find(profile), cd_kernel_at(0),
                         fault ? cd_fault_find(fault) : NULL, amount, 1, &error) == ET_OK,
                  "%s", error.text);
    s->count = 0;
    for (size_t i = 0; results[i]; i++) s->shown[s->count++] = *cd_tensor(&s->kernel, results[i]);
}

static void end(subject *s)
{
    cd_free(&s->kernel);
    et_step_free(&s->golden);
}

/* As if it had been saved in that type, without another rounding: the values are numbers of it. */
static void save_as(subject *s, et_dtype type)
{
    for (size_t i = 0; i < s->count; i++)
        if (et_dtype_significand(s->shown[i].dtype) > 0) s->shown[i].dtype = type;
}

static void show(subject *s, const char *name, et_dtype type)
{
    s->shown[s->count] = *cd_tensor(&s->kernel, name);
    s->shown[s->count++].dtype = type;
}

static void keep_first(subject *s)
{
    s->count = 1;
}

static et_verdict judge(subject *s, const char *profile, double seconds)
{
    et_verdict v;
    et_error error;
    const et_verify_options options = {.profile = profile ? et_profile_find(profile) : NULL,
                                       .explain = true,
                                       .explain_seconds = seconds};
    ck_assert_msg(et_verify(&v, &s->golden, s->shown, s->count, &options, &error) == ET_OK, "%s",
                  error.text);
    return v;
}

static void expect_choice(const subject *s, const char *profile, const char *reason)
{
    et_profile_choice c = et_profile_for(&s->golden, s->shown, s->count);
    ck_assert_str_eq(c.profile->name, profile);
    ck_assert_str_eq(c.reason, reason);
}

/* ---- the choice ---- */

static const struct {
    const char *kernel;
    et_dtype type;
    const char *profile, *reason;
} choices[] = {
    {"bf16", ET_BF16, "bf16", "fwd.y is stored as BF16"},
    {"bf16", ET_F32, "bf16", "fwd.y, stored as F32, holds numbers of BF16 alone"},
    {"bf16", ET_F64, "bf16", "fwd.y, stored as F64, holds numbers of BF16 alone"},
    {"f16", ET_F16, "f16", "fwd.y is stored as F16"},
    {"f16", ET_F32, "f16", "fwd.y, stored as F32, holds numbers of F16 alone"},
    {"f32", ET_F32, "f32", "fwd.y is stored as F32"}, /* though the inputs are of bf16 */
    {"f32", ET_F64, "f32", "fwd.y, stored as F64, holds numbers of F32 alone"},
    {"f64", ET_F64, "f64", "fwd.y is stored as F64"},
};

START_TEST(the_numbers_choose_the_profile)
{
    subject s;
    make(&s, usual_case, choices[_i].kernel, NULL, 0);
    save_as(&s, choices[_i].type);
    expect_choice(&s, choices[_i].profile, choices[_i].reason);
    et_verdict v = judge(&s, NULL, 0);
    ck_assert_msg(v.outcome == ET_PASS, "%s", v.line);
    ck_assert_str_eq(v.profile.name, choices[_i].profile);
    ck_assert_str_eq(v.chosen_from, choices[_i].reason);
    char end_of_line[300];
    snprintf(end_of_line, sizeof end_of_line, " [profile %s: %s]", choices[_i].profile,
             choices[_i].reason);
    ck_assert_msg(strstr(v.line, end_of_line) != NULL, "%s", v.line);
    et_verdict_free(&v);
    end(&s);
}
END_TEST

/* dW in F32 beside y in BF16; gates in F32 or BF16; a loss of whatever type. */
START_TEST(the_coarsest_tensor_decides)
{
    subject s;
    make(&s, usual_case, "bf16-low", NULL, 0);
    s.shown[1].dtype = ET_F32;
    show(&s, "fwd.gates", ET_F32);
    s.shown[s.count - 1] = *cd_tensor(&s.kernel, "fwd.gates");
    expect_choice(&s, "bf16-low",
                  s.shown[s.count - 1].dtype == ET_BF16
                      ? "fwd.gates is stored as BF16"
                      : "fwd.gates, stored as F32, holds numbers of BF16 alone");
    end(&s);
    make(&s, usual_case, "bf16", NULL, 0);
    save_as(&s, ET_BF16);
    show(&s, "fwd.gates", ET_F32);
    for (size_t i = 2; i < 5; i++) s.shown[i].dtype = ET_F32;
    expect_choice(&s, "bf16", "fwd.y is stored as BF16");
    end(&s);
}
END_TEST

/* Numbers that are short in the golden, too, say nothing of how the kernel rounds. */
START_TEST(short_numbers_are_no_sign_of_rounding)
{
    subject s;
    make(&s, integer_case, "f32", NULL, 0);
    save_as(&s, ET_F32);
    et_profile_choice c = et_profile_for(&s.golden, s.shown, s.count);
    ck_assert_msg(strcmp(c.profile->name, "f32") == 0, "%s: %s", c.profile->name, c.reason);
    end(&s);
}
END_TEST

START_TEST(without_real_numbers_the_inputs_decide)
{
    subject s;
    make(&s, usual_case, "bf16", NULL, 0);
    s.shown[0] = *cd_tensor(&s.kernel, "route.mask");
    keep_first(&s);
    expect_choice(&s, "bf16",
                  "the candidate shows no real numbers, and the inputs are stored as BF16");
    end(&s);
}
END_TEST

/* What a caller got wrong is refused by et_verify; the choice before it must not read there. */
START_TEST(bad_tensors_choose_nothing)
{
    subject s;
    make(&s, usual_case, "f32", NULL, 0);
    save_as(&s, ET_F32);
    keep_first(&s);
    s.shown[1] = (et_tensor_out){.name = "bwd.x", .dtype = ET_BF16, .rank = 1000};
    s.shown[2] = (et_tensor_out){.name = "no.such", .dtype = ET_BF16, .rank = 1, .shape = {1}};
    s.shown[3] = (et_tensor_out){.dtype = ET_BF16};
    s.count = 4;
    expect_choice(&s, "f32", "fwd.y is stored as F32");
    end(&s);
}
END_TEST

/* ---- other profiles ---- */

/* The gate off by 1e-3 in a kernel of f32, on inputs of bf16, nobody naming a profile. */
START_TEST(a_small_mistake_of_an_f32_kernel_is_found)
{
    for (int y_alone = 0; y_alone < 2; y_alone++) {
        subject s;
        make(&s, usual_case, "f32", "gate-scaled", 1e-3);
        save_as(&s, ET_F32);
        if (y_alone) keep_first(&s);
        et_verdict v = judge(&s, NULL, 0);
        ck_assert_msg(v.outcome == ET_MISMATCH, "%s", v.line);
        ck_assert_str_eq(v.profile.name, "f32");
        ck_assert_uint_gt(v.explanation_count, 0);
        ck_assert_str_eq(v.explanations[0].name,
                         "scaled"); /* the tightest, and no rounding beside it */
        for (size_t i = 1; i < v.explanation_count; i++)
            ck_assert_msg(strcmp(v.explanations[i].name, "gates-bf16") != 0, "or by gates-bf16");
        ck_assert_msg(strstr(v.explanations[0].scope, "times 1.001 +-"), "%s",
                      v.explanations[0].scope);
        et_verdict_free(&v);
        end(&s);
    }
}
END_TEST

static const struct {
    const char *kernel, *by, *passes;
} others[] = {
    {"bf16", "f32", "bf16"}, {"f16", "f32", "f16"},   {"tf32", "f32", "tf32"},
    {"f32", "f64", "f32"},   {"bf16", "f64", "bf16"},
};

/* What nothing explains is searched to the end: in a small layer. */
static const char *const small_case =
    "{'name':'small','rule':'tc','top_k':2,'tokens':32,'d_model':16,'d_expert':24,'experts':4,"
    "'precision':'bf16','input':{'source':'normal','seed':3,'decisive':true}}";

START_TEST(another_precision_is_named)
{
    subject s;
    make(&s, small_case, others[_i].kernel, NULL, 0);
    et_verdict v = judge(&s, others[_i].by, 0);
    ck_assert_msg(v.outcome == ET_MISMATCH, "%s", v.line);
    ck_assert_msg(v.passes_under && strcmp(v.passes_under, others[_i].passes) == 0, "%s", v.line);
    char words[64];
    snprintf(words, sizeof words, "; passes under profile %s", others[_i].passes);
    ck_assert_msg(strstr(v.line, words) != NULL, "%s", v.line);
    bool evident = strcmp(others[_i].passes, "tf32") != 0; /* it writes numbers of f32 */
    for (size_t i = 0; i < (evident ? v.explanation_count : 1); i++)
        ck_assert_msg(strncmp(v.explanations[i].name, "accumulator-", 12) != 0, "explained by %s",
                      v.explanations[i].name);
    et_verdict_free(&v);
    end(&s);
}
END_TEST

/* Bars of operands in 8 bits hold errors of gates in 8 bits, too, and are wider. */
START_TEST(the_tightest_explanation_comes_first)
{
    subject s;
    make(&s, usual_case, "f32", "gates-bf16", 0);
    s.shown[2] = s.shown[5]; /* y, dx, the mask */
    s.count = 3;
    et_verdict v = judge(&s, "f32", 0);
    ck_assert_msg(v.explanation_count > 1, "%s", v.line);
    ck_assert_str_eq(v.explanations[0].name, "gates-bf16");
    et_verdict_free(&v);
    end(&s);
}
END_TEST

START_TEST(what_no_precision_makes_passes_under_none)
{
    subject s;
    make(&s, usual_case, "bf16", "factor-two", 0);
    et_verdict v = judge(&s, "bf16", 0);
    ck_assert_msg(v.outcome == ET_MISMATCH, "%s", v.line);
    ck_assert_ptr_null(v.passes_under);
    ck_assert_ptr_null(strstr(v.line, "passes under"));
    et_verdict_free(&v);
    end(&s);
}
END_TEST

/* ---- far inside its bars ---- */

START_TEST(what_is_far_more_exact_is_noted)
{
    static const char *const rows[][3] = {{"f32", "bf16", "profile f32"},
                                          {"f32", "f16", "profile f32"},
                                          {"bf16", "bf16", NULL},
                                          {"f32", "f32", NULL},
                                          {"f64", "f64", NULL}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        subject s;
        make(&s, usual_case, rows[i][0], NULL, 0);
        et_verdict v = judge(&s, rows[i][1], 0);
        ck_assert_msg(v.outcome == ET_PASS, "%s by %s: %s", rows[i][0], rows[i][1], v.line);
        ck_assert_msg((v.note[0] != '\0') == (rows[i][2] != NULL), "%s by %s: %s", rows[i][0],
                      rows[i][1], v.line);
        if (rows[i][2])
            ck_assert_msg(strstr(v.line, "NOTE: far more exact than") && strstr(v.note, rows[i][2]),
                          "%s", v.line);
        et_verdict_free(&v);
        end(&s);
    }
}
END_TEST

/* ---- the budget ---- */

/* So little time that only the first piece of work is done; then as much as it takes, twice. */
START_TEST(a_search_that_is_cut_says_so)
{
    subject s;
    make(&s, usual_case, "bf16", NULL, 0);
    double *y = malloc(96 * 32 * sizeof *y);
    ck_assert_ptr_nonnull(y);
    for (size_t i = 0; i < 96 * 32; i++)
        y[i] = cd_element(&s.shown[0], i) * (i % 32 % 8 == 3 ? 1.03 : 1);
    s.shown[0].values = y;
    s.shown[0].source = ET_FROM_F64;
    s.shown[0].dtype = ET_F64;
    et_verdict cut = judge(&s, "bf16", 1e-9), a = judge(&s, "bf16", 0), b = judge(&s, "bf16", 0);
    ck_assert_msg(cut.outcome == ET_MISMATCH, "%s", cut.line);
    ck_assert_msg(strstr(cut.search, "the search was cut at its limit of 1e-09 s of CPU: ") != NULL,
                  "%s", cut.search);
    ck_assert_uint_eq(cut.explanation_count, 0);
    ck_assert_str_ne(cut.residual, "");
    ck_assert_str_eq(a.search, "");
    ck_assert_str_eq(a.line, b.line);
    ck_assert_str_eq(a.residual, b.residual);
    ck_assert_uint_eq(a.explanation_count, b.explanation_count);
    et_verdict_free(&cut);
    et_verdict_free(&a);
    et_verdict_free(&b);
    free(y);
    end(&s);
}
END_TEST

/* ---- can it be judged at all? ---- */

/* The number of cases in a suite that cannot be judged: those that are known. Of the others each step-th is asked. */
static size_t expect_known(const char *suite, const et_profile *p, size_t first, size_t step)
{
    size_t count, found = 0;
    et_case *cases = read_suite(suite, &count);
    for (size_t i = 0; i < count; i++) {
        if (i % step != first && !is_inconclusive(cases[i].name)) continue;
        et_step s;
        et_conclusiveness answer;
        et_error error;
        bool none = is_inconclusive(cases[i].name);
        run_case(&s, &cases[i]);
        ck_assert_msg(et_find_conclusive(&answer, &s, p, 0, &error) == ET_OK, "%s", error.text);
        ck_assert_msg(answer.conclusive == !none, "%s under %s: %s", s.c.name, p->name,
                      answer.reason);
        ck_assert_msg(!none || strncmp(answer.reason, "bwd.logits: below its noise", 27) == 0,
                      "%s", answer.reason);
        found += none;
        et_step_free(&s);
    }
    free(cases);
    return found;
}

/* Such as every token on one expert through a saturated gate: dr cancels. Of the other cases of suite core an eighth
 * under each profile, of the smaller suites each under one of them; ETREF_CAMPAIGN=all: all under both. */
START_TEST(cases_without_an_answer_are_known)
{
    static const char *const smaller[] = {"smoke.json", "model.json", "modern.json", "parallel.json"};
    const et_profile *p = et_profile_find(_i == 0 ? "bf16" : "f32");
    bool all = getenv("ETREF_CAMPAIGN") != NULL;
    size_t found = expect_known("core.json", p, all ? 0 : (size_t)_i, all ? 1 : 8);
    for (size_t i = 0; i < sizeof smaller / sizeof *smaller; i++)
        found += expect_known(smaller[i], p, all ? 0 : (size_t)_i, all ? 1 : 2);
    ck_assert_uint_eq(found, INCONCLUSIVE);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("choice");
    TCase *choice = add_case(suite, "choice"), *other = add_case(suite, "other profiles");
    TCase *rest = add_case(suite, "note, budget, cases");
    tcase_add_loop_test(choice, the_numbers_choose_the_profile, 0,
                        sizeof choices / sizeof *choices);
    tcase_add_test(choice, the_coarsest_tensor_decides);
    tcase_add_test(choice, short_numbers_are_no_sign_of_rounding);
    tcase_add_test(choice, without_real_numbers_the_inputs_decide);
    tcase_add_test(choice, bad_tensors_choose_nothing);
    tcase_add_test(other, a_small_mistake_of_an_f32_kernel_is_found);
    tcase_add_loop_test(other, another_precision_is_named, 0, sizeof others / sizeof *others);
    tcase_add_test(other, the_tightest_explanation_comes_first);
    tcase_add_test(other, what_no_precision_makes_passes_under_none);
    tcase_add_test(rest, what_is_far_more_exact_is_noted);
    tcase_add_test(rest, a_search_that_is_cut_says_so);
    tcase_add_loop_test(rest, cases_without_an_answer_are_known, 0, 2);
    return run_suite(suite);
}

#else

int main(void)
{
    return EXIT_SUCCESS; /* the float build does not judge */
}

#endif
