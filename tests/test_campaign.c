/* test_campaign.c: a small campaign: kernels whose truth is known, judged by the hundred.
 *
 *     honest       15 cases of every kind, every kernel, six profiles: none is rejected
 *     broken       every fault is rejected in some case, under bf16 and under f32, and explained
 *     calibration  error/sigma has root mean square 0.7 to 1.15 in y and every gradient: replicas err by a
 *                  little more than a kernel that rounds to nearest
 *     sabotage     a kernel that rounds once too often, or is off by 0.3 percent, is no honest kernel
 *
 * `make campaign` does the whole of it; this is the part that every test run can afford.
 */
#include "etref/etref.h"
#include "ref/verdict/judge.h"
#include "tests/campaign/report.h"
#include "tests/candidates/rounding.h"
#include "tests/check_main.h"
#include "tests/run_case.h"
#include "tests/strange_layers.h"

#include <math.h>

static const char *data(void)
{
    const char *folder = getenv("ETREF_DATA");
    return folder ? folder : "data";
}

static et_case core_case(const char *name)
{
    et_error error;
    size_t count, i = 0;
    et_case *suite = cp_suite(data(), "core.json", &count, &error), c;
    ck_assert_msg(suite != NULL, "%s", error.text);
    while (i < count && strcmp(suite[i].name, name) != 0) i++;
    ck_assert_msg(i < count, "no case %s", name);
    c = suite[i];
    free(suite);
    return c;
}

static void open_subject(cp_subject *s, const et_case *c)
{
    et_error error;
    ck_assert_msg(cp_subject_open(s, c, &error) == ET_OK, "%s", error.text);
}

static void use_profile(cp_subject *s, const et_profile *p)
{
    et_error error;
    ck_assert_msg(cp_subject_profile(s, p, &error) == ET_OK, "%s", error.text);
}

/* The verdict, without an explanation. The caller frees it. */
static et_verdict judge(const cp_subject *s, const et_tensor_out *tensors, size_t count)
{
    et_verdict v;
    et_error error;
    ck_assert_msg(cp_judge(&v, s, tensors, count, false, NULL, &error) == ET_OK, "%s", error.text);
    return v;
}

/* ---- honest kernels ---- */

static const char *const usual_cases[] = {
    "one-token-tc",   "257-experts-tc",    "odd-widths-ec",    "empty-middle-et",
    "all-on-one-aux", "ties-micro-et",     "capacity-both-et", "micro-tc",
    "pools-ec",       "softmax-anchor-et", "sum-softmax-ec",   "lossfree-tc",
    "outlier-et",     "text-ec",           "integer-f16-et",   "dense-odd"};
enum { USUAL_CASES = sizeof usual_cases / sizeof *usual_cases };

static void try_kernels(cp_subject *s)
{
    const cd_kernel *kernel;
    for (size_t k = 0; (kernel = cd_kernel_at(k)) != NULL; k++) {
        cd_candidate candidate;
        et_error error;
        ck_assert_msg(cd_run(&candidate, &s->golden, s->profile, kernel, NULL, 0, 1, &error) ==
                          ET_OK,
                      "%s", error.text);
        et_verdict v = judge(s, candidate.tensors, candidate.count);
        ck_assert_msg(v.outcome != ET_MISMATCH, "%s, %s, %s: %s", s->golden.c.name,
                      s->profile->name, kernel->name, v.line);
        et_verdict_free(&v);
        cd_free(&candidate);
    }
}

/* Each layer under half of the profiles, by turns; ETREF_CAMPAIGN=all: under all. */
START_TEST(honest_kernels_are_not_rejected)
{
    cp_subject s;
    et_case c = core_case(usual_cases[_i]);
    open_subject(&s, &c);
    for (size_t p = 1; p < CP_PROFILES; p++) {
        if (p % 2 != (size_t)_i % 2 && !getenv("ETREF_CAMPAIGN")) continue;
        use_profile(&s, et_profile_at(p));
        try_kernels(&s);
    }
    cp_subject_close(&s);
}
END_TEST

/* ---- broken kernels ---- */

/* What became of one fault in some cases. */
typedef struct fate {
    bool planted; /* it changes something */
    bool rejected, explained;
} fate;

static bool names(const et_verdict *v, const char *name)
{
    for (size_t i = 0; i < v->explanation_count; i++)
        if (strcmp(v->explanations[i].name, name) == 0) return true;
    return false;
}

/* A refusal, of tensors that no such bundle has, explains itself. */
static void judge_broken(fate *f, const cp_subject *s, const cd_candidate *broken)
{
    et_verdict v;
    et_error error;
    et_status status = cp_judge(&v, s, broken->tensors, broken->count, true, NULL, &error);
    ck_assert_msg(status == ET_OK || status == ET_EINVAL, "%s", error.text);
    f->planted = true;
    f->rejected |= status == ET_EINVAL || v.outcome == ET_MISMATCH;
    f->explained = status == ET_EINVAL || !broken->fault->explained_by ||
                   names(&v, broken->fault->explained_by);
    if (status == ET_OK) et_verdict_free(&v);
}

static void plant(fate *f, const cp_subject *s, const cd_fault *fault, double amount)
{
    cd_candidate broken;
    et_error error;
    const cd_kernel *kernel = cd_kernel_find("sequential");
    if (!fault->applies(&s->golden)) return;
    ck_assert_msg(cd_run(&broken, &s->golden, s->profile, kernel, fault, amount, 1, &error) ==
                      ET_OK,
                  "%s", error.text);
    if (broken.planted) judge_broken(f, s, &broken);
    cd_free(&broken);
}

/* Cases in which faults show; the small ones first. */
static const char *const telling_cases[] = {
    "ties-upper-et",     "ties-micro-et",   "ties-tc",           "ties-strict-et",
    "released-et",       "empty-first-et",  "empty-last-tc",     "capacity-both-et",
    "capacity-upper-et", "square-et",       "lossfree-micro-tc", "lossfree-global-tc",
    "eval-et",           "micro-et",        "micro-tc",          "z-loss-tc",
    "softmax-et",        "huge-softmax-ec", "tiny-et",           "pools-ec",
    "aux-global-tc",     "six-experts-ec",  "warmup-pools-et",   "first-update-et",
    "sum-softmax-ec",    "fanout-tc",       "softmax-anchor-et", "fanout-anchor-et",
    "257-experts-tc"};
/* What the core suite does not have. */
static const char *const other_cases[] = {
    "{'name':'long-sums','layer':'dense','tokens':32,'d_model':128,'d_expert':256,"
    "'precision':'bf16','input':{'source':'normal','seed':3}}",
    "{'name':'clamped-sums','rule':'et','granularity':3,'experts':8,'tokens':96,'d_model':24,"
    "'d_expert':20,'capacity_factor':0.05,'norm':'sum','ema_updates':5000,'precision':'bf16',"
    "'input':{'source':'normal','seed':3}}",
    "{'name':'columns','rule':'ec','gate':'softmax_tokens','experts':4,'micro_batches':2,"
    "'shared':false,'tokens':96,'d_model':24,'d_expert':40,'precision':'bf16',"
    "'input':{'source':'normal','seed':3}}"};
enum {
    TELLING_CASES = sizeof telling_cases / sizeof *telling_cases,
    LARGER = 6,
    OTHER = sizeof other_cases / sizeof *other_cases,
    SUBJECTS = TELLING_CASES + OTHER + LARGER
};

static cp_subject *open_telling(const et_profile *p)
{
    static cp_subject all[SUBJECTS];
    et_error error;
    for (size_t i = 0; i < SUBJECTS; i++) {
        et_case c;
        if (i < TELLING_CASES)
            c = core_case(telling_cases[i]);
        else if (i < TELLING_CASES + OTHER)
            ck_assert_msg(parse_quoted(&c, other_cases[i - TELLING_CASES], &error) == ET_OK, "%s",
                          error.text);
        else
            ck_assert_msg(cp_larger_case(&c, i - TELLING_CASES - OTHER, &error), "%s", error.text);
        open_subject(&all[i], &c);
        use_profile(&all[i], p);
    }
    return all;
}

static void note(char *list, size_t room, const char *name)
{
    size_t used = strlen(list);
    snprintf(list + used, room - used, " %s", name);
}

/* Sums of a few slots that are rounded to 8 bits at each step: in bf16, whose values have been rounded to 8
 * bits many times before, that adds a tenth to the root mean square of the error. */
static bool is_below_rounding(const char *fault, const char *profile)
{
    return strcmp(profile, "bf16") == 0 &&
           (strcmp(fault, "combine-bf16") == 0 || strcmp(fault, "dx-bf16") == 0);
}

/* In one layer at least. Factors are planted large enough to show at these sizes; floors.c knows how small they may be.
 * Every other fault under each profile; ETREF_CAMPAIGN=all: all of them. */
START_TEST(every_fault_is_rejected_and_explained)
{
    static const struct {
        const char *profile;
        double amount;
    } rows[] = {{"bf16", 2e-2}, {"f32", 1e-4}};
    const cd_fault *fault;
    char accepted[2000] = "", absent[2000] = "", unexplained[2000] = "";
    cp_subject *all = open_telling(et_profile_find(rows[_i].profile));
    for (size_t f = 0; (fault = cd_fault_at(f)) != NULL; f++) {
        fate of = {0};
        double amount = fault->usual == 1e-3 ? rows[_i].amount : 0;
        if (is_below_rounding(fault->name, rows[_i].profile)) continue;
        if (f % 2 != (size_t)_i && !getenv("ETREF_CAMPAIGN")) continue;
        for (size_t i = 0; !(of.rejected && of.explained) && i < SUBJECTS; i++)
            plant(&of, &all[i], fault, amount);
        if (of.planted && !of.rejected) note(accepted, sizeof accepted, fault->name);
        if (of.rejected && !of.explained) note(unexplained, sizeof unexplained, fault->name);
        if (!of.planted && strcmp(fault->stage, "precision") != 0)
            note(absent, sizeof absent, fault->name);
    }
    for (size_t i = 0; i < SUBJECTS; i++) cp_subject_close(&all[i]);
    ck_assert_msg(!accepted[0], "accepted everywhere under %s:%s", rows[_i].profile, accepted);
    ck_assert_msg(!unexplained[0], "not explained under %s:%s", rows[_i].profile, unexplained);
    ck_assert_msg(!absent[0], "without effect everywhere under %s:%s", rows[_i].profile, absent);
}
END_TEST

/* ---- calibration ---- */

/* Smaller than those of campaign/calibration.c. */
#define CALIBRATED "'tokens':512,'d_model':128,'d_expert':192,'experts':8,'precision':'bf16'"
static const char *const calibrated_cases[] = {
    "{'name':'normal-et','rule':'et','ema_decay':0.9,'ema_updates':10," CALIBRATED
    ",'input':{'source':'normal','seed':1}}",
    "{'name':'ties-tc','rule':'tc','top_k':2," CALIBRATED
    ",'input':{'source':'ties','seed':1,'copies':4}}"};

static void open_calibrated(cp_subject *s, int index)
{
    et_case c;
    et_error error;
    ck_assert_msg(parse_quoted(&c, calibrated_cases[index], &error) == ET_OK, "%s", error.text);
    open_subject(s, &c);
}

/* The first of them, for sabotage, too. */
static cp_subject first_calibrated;

static void open_first(void)
{
    open_calibrated(&first_calibrated, 0);
}

static void close_first(void)
{
    cp_subject_close(&first_calibrated);
}

static void expect_calibrated(const cp_subject *s, const et_verdict *v)
{
    size_t seen = 0;
    for (size_t i = 0; i < v->tensor_count; i++) {
        const et_tensor_verdict *t = &v->tensors[i];
        if (!cp_is_result(t->name) || t->effective_sample < 1e4) continue;
        seen++;
        ck_assert_msg(t->whole.spread > 0.7 && t->whole.spread < 1.15, "%s, %s: %s %g",
                      s->golden.c.name, s->profile->name, t->name, t->whole.spread);
    }
    ck_assert_uint_ge(seen, 4);
}

START_TEST(errors_are_as_large_as_predicted)
{
    static const char *const profiles[] = {"bf16", "f16"};
    cp_subject own, *s = _i == 0 ? &first_calibrated : &own;
    et_error error;
    if (_i > 0) open_calibrated(&own, _i);
    for (size_t p = 0; p < 2; p++) {
        cd_candidate k;
        use_profile(s, et_profile_find(profiles[p]));
        ck_assert_int_eq(cd_run(&k, &s->golden, s->profile, cd_kernel_at(0), NULL, 0, 1, &error),
                         ET_OK);
        et_verdict v = judge(s, k.tensors, k.count);
        ck_assert_msg(v.outcome == ET_PASS, "%s: %s", s->golden.c.name, v.line);
        expect_calibrated(s, &v);
        et_verdict_free(&v);
        cd_free(&k);
    }
    if (_i > 0) cp_subject_close(&own);
}
END_TEST

/* Honest runs that were rejected until their errors were understood: relu^2 at its bend, a gate of logits that
 * err by whole units, dO between two numbers of the format, short sums of which few lose anything, a dy that comes
 * rounded, and dW_r of tokens that have a direction in common. */
static const struct {
    const char *core;   /* a case of the core suite, or NULL: */
    size_t calibration; /* one of the calibration's */
    size_t seed;
    const char *profile, *kernel;
} once_rejected[] = {
    {"huge-softmax-ec", 0, 10, "bf16-low", "sequential"},
    {"threads-tc", 0, 0, "f16", "fused-hidden"},
    {"threads-tc", 0, 15, "tf32", "sequential"},
    {"threads-tc", 0, 19, "bf16", "reversed"},
    {"threads-tc", 0, 3, "tf32", "reversed"},
    {"threads-tc", 0, 18, "tf32", "online"},
    {NULL, 15, 0, "bf16", "short-upstream"},
    {NULL, 15, 3, "bf16", "sequential"},
    {NULL, 15, 6, "bf16", "sequential"},
    {NULL, 15, 8, "f16", "sequential"},
    {NULL, 8, 0, "bf16", "sequential"},
    {NULL, 13, 0, "f16", "fused-combine"},
};
enum { ONCE_REJECTED = sizeof once_rejected / sizeof *once_rejected };

static void expect_honest(const et_case *c, const char *profile, const char *kernel, size_t seed)
{
    cp_subject s;
    cd_candidate k;
    et_error error;
    open_subject(&s, c);
    use_profile(&s, et_profile_find(profile));
    ck_assert_int_eq(
        cd_run(&k, &s.golden, s.profile, cd_kernel_find(kernel), NULL, 0, seed, &error), ET_OK);
    et_verdict v = judge(&s, k.tensors, k.count);
    ck_assert_msg(v.outcome != ET_MISMATCH, "%s %s: %s", c->name, profile, v.line);
    et_verdict_free(&v);
    cd_free(&k);
    cp_subject_close(&s);
}

START_TEST(rare_errors_are_honest)
{
    et_case c;
    et_error error;
    size_t seed = once_rejected[_i].seed;
    if (once_rejected[_i].core)
        c = core_case(once_rejected[_i].core);
    else
        ck_assert(cp_calibration_case(&c, once_rejected[_i].calibration, &error));
    c = cp_reseeded(&c, seed);
    expect_honest(&c, once_rejected[_i].profile, once_rejected[_i].kernel, seed);
}
END_TEST

START_TEST(strange_layers_are_honest)
{
    et_case c;
    et_error error;
    ck_assert_msg(cp_case(&c, strange_layers[_i].json, &error) == ET_OK, "%s", error.text);
    expect_honest(&c, strange_layers[_i].profile, strange_layers[_i].kernel, 1);
}
END_TEST

/* Layers of the campaign's part `random`, a few of many. */
START_TEST(layers_that_nobody_chose)
{
    static const char *const kernels[] = {"blocked", "all-in-one"};
    et_case c;
    char name[32];
    for (int number = 5000; number < 5003; number++) {
        snprintf(name, sizeof name, "random-%d", number);
        for (size_t p = 0; cp_random_case(&c, name) && p < CP_PROFILES; p++)
            expect_honest(&c, et_profile_at(p)->name, kernels[p % 2], 0);
    }
}
END_TEST

/* Kernels `first` and `second`, by turns, under these profiles (the first alone; ETREF_CAMPAIGN=all: all), on a layer with a habit (campaign/habits.c): errors
 * of a tensor are at most 2.4 deviations on the average. */
static void expect_calm(const char *habit, const char *layer, const char *const profiles[3],
                        const char *first, const char *second)
{
    const char *const kernels[] = {first, second};
    et_case c;
    cp_subject s;
    et_error error;
    char json[400];
    snprintf(json, sizeof json,
             "{'name':'habit-%s-0',%s,'d_model':64,'input':{'source':'normal','seed':1}}", habit,
             layer);
    ck_assert_msg(cp_case(&c, json, &error) == ET_OK, "%s", error.text);
    open_subject(&s, &c);
    for (size_t i = 0; i < (getenv("ETREF_CAMPAIGN") ? 6 : 2); i++) {
        cd_candidate got;
        const cd_kernel *kernel = cd_kernel_find(kernels[i % 2]);
        use_profile(&s, et_profile_find(profiles[i / 2]));
        ck_assert_int_eq(cd_run(&got, &s.golden, s.profile, kernel, NULL, 0, 1, &error), ET_OK);
        et_verdict v = judge(&s, got.tensors, got.count);
        ck_assert_msg(v.outcome != ET_MISMATCH, "%s %s %s: %s", habit, profiles[i / 2],
                      kernel->name, v.line);
        for (size_t k = 0; k < v.tensor_count; k++)
            ck_assert_msg(!(v.tensors[k].whole.spread > 2.4), "%s %s %s %s: spread %g", habit,
                          profiles[i / 2], kernel->name, v.tensors[k].name,
                          v.tensors[k].whole.spread);
        et_verdict_free(&v);
        cd_free(&got);
    }
    cp_subject_close(&s);
}

/* A model whose experts begin as copies of one, or were widened by repeating hidden units, or have constant
 * weights or the same output everywhere: equal weights make equal errors. */
START_TEST(copies_err_alike)
{
    static const char *const habits[] = {"copied-experts", "widened-experts", "constant-weights",
                                         "repeated-output"};
    expect_calm(habits[_i],
                "'rule':'tc','tokens':128,'d_expert':256,'experts':8,'top_k':2,'gate':'sigmoid',"
                "'shared':false,'precision':'bf16'",
                (const char *const[]){"f32", "bf16", "tf32"}, "sequential", "split-4");
}
END_TEST

/* Tokens with the same dy make the same errors in dA, or errors along the same direction where weights have to be
 * rounded; slope(H) x adds these up over all tokens, whose mean it does not have at 0. */
START_TEST(the_loss_may_be_a_mean)
{
    static const char moe[] = "'rule':'tc','experts':8,'top_k':2,'gate':'softmax',",
                      dense[] = "'layer':'dense',";
    static const struct {
        const char *habit, *layer, *precision;
    } layers[] = {{"mean", moe, "bf16"},
                  {"mean", moe, "f32"},
                  {"odd-mean", moe, "f32"},
                  {"sum-of-positive", dense, "f32"},
                  {"sum-of-positive", moe, "f32"}};
    char layer[200];
    snprintf(layer, sizeof layer, "%s'tokens':512,'d_expert':64,'precision':'%s'", layers[_i].layer,
             layers[_i].precision);
    expect_calm(layers[_i].habit, layer, (const char *const[]){"bf16", "f16", "tf32"}, "sequential",
                "tree");
}
END_TEST

/* Then every unit feels an error of x or dO in the same way. */
START_TEST(weights_may_be_positive)
{
    static const char *const profiles[][3] = {{"f16", "f64", "tf32"}, {"f32", "bf16-low", "bf16"}};
    expect_calm("uniform-weights",
                "'rule':'tc','experts':4,'top_k':2,'gate':'sigmoid','tokens':384,'d_expert':96,"
                "'precision':'f32'",
                profiles[_i], "sequential", "tree");
}
END_TEST

/* Most sums are exact there, but not all; no sample tells which. */
START_TEST(sums_may_be_nearly_exact)
{
    static const char *const habits[] = {"sparse-x", "offset"};
    expect_calm(habits[_i],
                "'rule':'tc','experts':8,'top_k':1,'norm':'sum','gate':'softmax','tokens':320,"
                "'d_expert':192,'precision':'bf16'",
                (const char *const[]){"tf32", "f32", "bf16"}, "sequential", "tree");
}
END_TEST

/* ---- sabotage ---- */

/* An honest kernel, and what becomes of its y. */
static et_verdict judge_spoilt(const char *kernel_profile, double (*spoil)(double))
{
    cp_subject *s = &first_calibrated;
    et_error error;
    cd_candidate k;
    use_profile(s, et_profile_find("bf16"));
    ck_assert_int_eq(cd_run(&k, &s->golden, et_profile_find(kernel_profile), cd_kernel_at(0), NULL,
                            0, 1, &error),
                     ET_OK);
    size_t i = 0;
    while (strcmp(k.tensors[i].name, "fwd.y") != 0) i++;
    size_t count = cd_count(&k.tensors[i]);
    double *y = malloc(count * sizeof *y);
    ck_assert_ptr_nonnull(y);
    for (size_t e = 0; e < count; e++) y[e] = spoil(cd_element(&k.tensors[i], e));
    k.tensors[i].values = y;
    k.tensors[i].source = ET_FROM_F64;
    et_verdict v = judge(s, k.tensors, k.count);
    free(y);
    cd_free(&k);
    return v;
}

static double as_it_is(double v)
{
    return v;
}

static double scaled(double v)
{
    return et_round_to_dtype(1.003 * v, ET_BF16);
}

static double without_a_bit(double v)
{
    static const cd_format seven_bits = {
        .bits = 7, .emin = -126, .smallest = 0x1p-126, .largest = 0x1.fcp127};
    return cd_round(&seven_bits, v);
}

static void expect_rejected(et_verdict v, const char *what, const char *tensor)
{
    ck_assert_msg(v.outcome == ET_MISMATCH, "%s: %s", what, v.line);
    ck_assert_msg(strstr(v.line, tensor) != NULL, "%s: %s", what, v.line);
    et_verdict_free(&v);
}

START_TEST(sabotage_is_seen)
{
    et_verdict v = judge_spoilt("bf16", as_it_is);
    ck_assert_msg(v.outcome == ET_PASS, "%s", v.line);
    et_verdict_free(&v);
    expect_rejected(judge_spoilt("bf16", scaled), "y times 1.003", "fwd.y");
    expect_rejected(judge_spoilt("bf16", without_a_bit), "y rounded once more, to 7 bits", "fwd.y");
    expect_rejected(judge_spoilt("bf16-low", as_it_is), "gates and logits rounded, too",
                    "fwd.logits");
}
END_TEST

/* A hypothesis may select other tokens than the candidate, whose routing the values follow: its noise is that of
 * the values. (Once beyond the end of arrays: AddressSanitizer sees it.) */
START_TEST(a_hypothesis_selects_others)
{
    et_case c;
    cp_subject s;
    cd_candidate k;
    et_verdict v;
    et_error error;
    ck_assert(cp_case(&c,
                      "{'name':'two-batches','rule':'et','tokens':256,'d_model':48,'d_expert':64,"
                      "'experts':8,'granularity':2,'target_load':32,'pool_tokens':128,"
                      "'capacity_factor':0.3,'ema_updates':5000,'micro_batches':2,"
                      "'precision':'bf16','input':{'source':'normal','seed':11}}",
                      &error) == ET_OK);
    open_subject(&s, &c);
    use_profile(&s, et_profile_find("bf16"));
    ck_assert_int_eq(cd_run(&k, &s.golden, s.profile, cd_kernel_find("wide-outputs"),
                            cd_fault_find("logits-low-precision"), 0, 1, &error),
                     ET_OK);
    ck_assert_int_eq(cp_judge(&v, &s, k.tensors, k.count, true, NULL, &error), ET_OK);
    ck_assert_int_eq(v.outcome, ET_MISMATCH);
    et_verdict_free(&v);
    cd_free(&k);
    cp_subject_close(&s);
}
END_TEST

/* What an explanation must say, and must not: a number that is all noise widens nobody's bars, a hypothesis
 * takes most of the error away, values beyond a format are inf and 0 in it, a saturated gate is 1 in any. */
static const struct {
    const char *core, *profile, *fault, *said, *unsaid;
} told[] = {
    {"huge-softmax-ec", "f32", "z-gradient-scaled", "scaled", "z-gradient-doubled"},
    {"huge-softmax-ec", "bf16-low", "z-gradient-scaled", "scaled", "z-gradient-doubled"},
    {"huge-softmax-ec", "f32", "z-gradient-doubled", "z-gradient-doubled", "z-gradient-missing"},
    {"huge-relu-et", "tf32", "rounded-to-f16", "rounded-to-f16", "truncation"},
    {"dense-tiny", "tf32", "rounded-to-f16", "rounded-to-f16", "subnormals-flushed"},
    {"aux-tc", "bf16", "aux-gradient-scaled", "scaled", "accumulator-f16"},
    {"threads-tc", "bf16", "gates-bf16", "gates-bf16", "accumulator-bf16"}, /* a large layer */
};
enum { TOLD = sizeof told / sizeof *told };

START_TEST(an_explanation_is_to_the_point)
{
    cp_subject s;
    et_error error;
    cd_candidate k;
    et_verdict v;
    et_case c = core_case(told[_i].core);
    const cd_fault *fault = cd_fault_find(told[_i].fault);
    open_subject(&s, &c);
    use_profile(&s, et_profile_find(told[_i].profile));
    ck_assert(fault->applies(&s.golden));
    ck_assert_int_eq(
        cd_run(&k, &s.golden, s.profile, cd_kernel_find("sequential"), fault, 0, 1, &error), ET_OK);
    ck_assert_int_eq(cp_judge(&v, &s, k.tensors, k.count, true, NULL, &error), ET_OK);
    ck_assert_msg(v.outcome == ET_MISMATCH, "%s", v.line);
    ck_assert_msg(names(&v, told[_i].said), "%s is not named", told[_i].said);
    ck_assert_msg(!names(&v, told[_i].unsaid), "%s is named", told[_i].unsaid);
    et_verdict_free(&v);
    cd_free(&k);
    cp_subject_close(&s);
}
END_TEST

/* ---- the suite ---- */

/* The first sixth of a list of layers; ETREF_CAMPAIGN=all: all of it. */
static int part_of(size_t count)
{
    return (int)(getenv("ETREF_CAMPAIGN") ? count : (count + 5) / 6);
}

int main(void)
{
    Suite *suite = suite_create("campaign");
    TCase *honest = add_case(suite, "honest"), *broken = add_case(suite, "broken");
    TCase *calibration = add_case(suite, "calibration"), *strange = add_case(suite, "strange");
    TCase *habits = add_case(suite, "habits");
    if (sizeof(et_real) != sizeof(double)) return EXIT_SUCCESS; /* the float build does not judge */
    tcase_add_loop_test(honest, honest_kernels_are_not_rejected, 0, USUAL_CASES);
    tcase_add_loop_test(broken, every_fault_is_rejected_and_explained, 0, 2);
    tcase_add_unchecked_fixture(calibration, open_first, close_first);
    tcase_add_loop_test(calibration, errors_are_as_large_as_predicted, 0, part_of(2));
    tcase_add_test(calibration, sabotage_is_seen);
    tcase_add_loop_test(strange, rare_errors_are_honest, 0, part_of(ONCE_REJECTED));
    tcase_add_loop_test(strange, strange_layers_are_honest, 0, part_of(STRANGE_LAYERS));
    tcase_add_test(strange, layers_that_nobody_chose);
    tcase_add_loop_test(habits, copies_err_alike, 0, part_of(4));
    tcase_add_loop_test(habits, the_loss_may_be_a_mean, 0, part_of(5));
    tcase_add_loop_test(habits, weights_may_be_positive, 0, part_of(2));
    tcase_add_loop_test(habits, sums_may_be_nearly_exact, 0, part_of(2));
    tcase_add_test(broken, a_hypothesis_selects_others);
    tcase_add_loop_test(broken, an_explanation_is_to_the_point, 0,
                        TOLD - (getenv("ETREF_CAMPAIGN") ? 0 : 1));
    return run_suite(suite);
}
