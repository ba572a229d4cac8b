/* test_verify.c: the verdict: what is refused unseen, what passes, what fails, what stays undecided.
 *
 * Candidates are made from the golden's own error bars (honest.h), so that a test knows which of the
 * verdict's five parts must find what it breaks. The routing by itself is test_verdict_routing.c;
 * kernels that round like real ones are judged by the campaign.
 */
#include "ref/base/rounding.h"
#include "ref/verdict/judge.h"
#include "tests/check_main.h"
#include "tests/honest.h"

#include <omp.h>

#ifndef ETREF_F32

#define SMALL "'tokens':96,'d_model':24,'d_expert':40,'experts':4,'precision':'bf16'"
#define DRAWN "'input':{'source':'normal','seed':3,'decisive':true}"

static const char *const ec_case = "{'name':'ec','rule':'ec'," SMALL "," DRAWN "}";
static const char *const tc_case =
    "{'name':'tc','rule':'tc','top_k':2,'balance':'aux','z_loss_coef':0.01,'gate':'softmax'," SMALL
    "," DRAWN "}";

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
    make_honest(&k, ec_case, "bf16", 1);
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
    make_honest(&k, ec_case, "bf16", 1);
    tensor_of(&k, "fwd.slot_out")->shape[0] -= 1;
    assert_refused(&k, k.tensors, k.count, &(et_verify_options){.profile = k.profile},
                   "fwd.slot_out has the shape [95,24], must be [96,24]: a row for each slot");
    free_honest(&k);
}
END_TEST

START_TEST(inputs_must_be_the_goldens)
{
    honest k;
    make_honest(&k, ec_case, "bf16", 1);
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
    make_honest(&k, ec_case, "bf16", 1);
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
    bool exact; /* next to nothing errs, and that not independently */
} honest_kernels[] = {
    {"{'name':'ec','rule':'ec'," SMALL "," DRAWN "}", "bf16", false},
    {"{'name':'ec','rule':'ec'," SMALL "," DRAWN "}", "f32", false},
    {"{'name':'ec','rule':'ec'," SMALL "," DRAWN "}", "f64", false},
    {"{'name':'ec','rule':'ec','gate':'softmax_tokens','pool_tokens':48," SMALL "," DRAWN "}",
     "bf16-low", false},
    {"{'name':'tc','rule':'tc','top_k':2,'balance':'aux','z_loss_coef':0.01,'gate':'softmax'," SMALL
     "," DRAWN "}",
     "bf16", false},
    {"{'name':'tc','rule':'tc','top_k':2,'balance':'lossfree','norm':'sum'," SMALL "," DRAWN "}",
     "tf32", false},
    {"{'name':'et','rule':'et','ema_updates':50,'capacity_factor':0.3,'norm':'fanout',"
     "'micro_batches':2,'gate':'softmax_anchor'," SMALL "," DRAWN "}",
     "bf16", false},
    {"{'name':'et','rule':'et','mode':'eval','ema_updates':50,'shared':false,'gate':'relu'," SMALL
     "," DRAWN "}",
     "f16", false},
    {"{'name':'dense','layer':'dense','tokens':96,'d_model':24,'d_expert':40,'precision':'bf16',"
     "'input':{'source':'normal','seed':3}}",
     "bf16", false},
    {"{'name':'exact','rule':'et','tokens':64,'d_model':32,'d_expert':32,'experts':8,'gate':'relu',"
     "'precision':'bf16','input':{'source':'integer','seed':3}}",
     "bf16", true},
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
    make_honest(&k, ec_case, "bf16", 1);
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

/* ---- broken values ---- */

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
        make_honest(&k, ec_case, "bf16", 1);
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
    make_honest(&k, honest_kernels[9].json, "bf16", 1);
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
    make_honest(&k, ec_case, "bf16", 1);
    memset(values_of(&k, results[_i]), 0, elements_of(tensor_of(&k, results[_i])) * sizeof(double));
    assert_mismatch(&k, results[_i], "");
    free_honest(&k);
}
END_TEST

START_TEST(copies_of_inputs_are_named)
{
    honest k;
    make_honest(&k, ec_case, "bf16", 1);
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
    make_honest(&k, ec_case, "bf16", 1);
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
    make_honest(&k, ec_case, "f32", 1);
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
    make_honest(&k, ec_case, "bf16", 1);
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

/* ---- groups: what hides inside every element's bar ---- */

/* Large enough for limits of groups to lie well inside the elements' own bars. */
static const char *const wide_case =
    "{'name':'wide','rule':'ec','tokens':512,'d_model':64,'d_expert':96,'experts':8,"
    "'precision':'bf16','input':{'source':'normal','seed':3}}";

/* Its golden and bars are made once; each test has the kernel as it was. */
static honest wide;

static void make_wide(void)
{
    make_honest(&wide, wide_case, "bf16", 1);
}

static void restore_wide(void)
{
    make_tensors(&wide, 1);
}

static void free_wide(void)
{
    free_honest(&wide);
}

/* One group of a verdict, and the verdict on its tensor. */
typedef struct sight {
    const char *tensor, *kind, *part;
    size_t index;
    et_group group;
    bool seen;
    size_t failed;
    et_outcome outcome;
} sight;

static void look_at(void *user, const char *tensor, const et_group *g)
{
    sight *s = user;
    if (strcmp(tensor, s->tensor) != 0 || strcmp(g->kind, s->kind) != 0 ||
        strcmp(g->part, s->part) != 0 || g->index != s->index)
        return;
    s->group = *g;
    s->seen = true;
}

/* Of a candidate that shows this tensor and its routing alone: not what its stage starts from. */
static sight look(honest *k, const char *tensor, const char *kind, const char *part, size_t index)
{
    sight s = {.tensor = tensor, .kind = kind, .part = part, .index = index};
    const et_verify_options options = {.profile = k->profile};
    const et_tensor_out shown[] = {*tensor_of(k, tensor), *tensor_of(k, "route.mask")};
    et_verdict v;
    et_error error;
    ck_assert_msg(et_verify_with(&v, &k->golden, &k->shelf, shown, 2, &options, look_at, &s,
                                 &error) == ET_OK,
                  "%s", error.text);
    ck_assert_msg(s.seen, "%s has no group %s %zu (%s)", tensor, kind, index, part);
    s.failed = verdict_on(&v, tensor)->failed;
    s.outcome = verdict_on(&v, tensor)->outcome;
    et_verdict_free(&v);
    return s;
}

/* The part of the tensor that a group's regressor is, at each element; 0 outside the group. */
static double part_of(const honest *k, const sight *s, size_t at)
{
    const et_step *g = &k->golden;
    const et_assignment *a = &g->assignment;
    size_t row = at / 64, column = at % 64;
    double sum = 0;
    if (strcmp(s->tensor, "bwd.shared_up") == 0) return g->bwd.shared_up[at];
    if (strcmp(s->tensor, "bwd.w_up") == 0) return row / 96 == s->index ? g->bwd.up[at] : 0;
    if (strcmp(s->tensor, "fwd.slot_out") == 0)
        return (size_t)a->slot_expert[row] == s->index ? g->fwd.slot_out[at] : 0;
    if (strcmp(s->part, "shared") == 0 && strcmp(s->tensor, "fwd.y") == 0)
        return g->fwd.shared_weight[row] * g->fwd.shared_out[at];
    if (strcmp(s->tensor, "fwd.y") == 0) { /* routed: of one expert, or of all */
        for (int32_t j = a->token_offsets[row]; j < a->token_offsets[row + 1]; j++) {
            size_t slot = (size_t)a->token_slots[j];
            bool in = strcmp(s->kind, "part") == 0 || (size_t)a->slot_expert[slot] == s->index;
            if (in) sum += g->fwd.slot_weight[slot] * g->fwd.slot_out[slot * 64 + column];
        }
        return sum;
    }
    bool shared = strcmp(s->part, "shared") == 0; /* dx by way of the shared expert */
    for (size_t i = 0; shared && i < 96; i++)
        sum += g->bwd.shared_pre[row * 96 + i] * g->in.shared_up[i * 64 + column];
    for (size_t i = 0; !shared && i < 8; i++) /* dx by way of the router */
        sum += g->bwd.logits[row * 8 + i] * g->in.router[i * 64 + column];
    return sum;
}

static const sight scaled[] = {
    {.tensor = "bwd.shared_up", .kind = "tensor", .part = "reference"},
    {.tensor = "bwd.w_up", .kind = "expert", .part = "reference", .index = 3},
    {.tensor = "fwd.slot_out", .kind = "expert", .part = "reference", .index = 5},
    {.tensor = "fwd.y", .kind = "expert", .part = "routed", .index = 6},
    {.tensor = "fwd.y", .kind = "part", .part = "routed"},
    {.tensor = "fwd.y", .kind = "part", .part = "shared"},
    {.tensor = "bwd.x", .kind = "part", .part = "shared"},
    {.tensor = "bwd.x",
     .kind = "part",
     .part = "router"}, /* so little that elements show it first */
};

static void add_part(honest *k, const sight *s, double factor)
{
    double *values = values_of(k, s->tensor);
    for (size_t i = 0; i < elements_of(tensor_of(k, s->tensor)); i++)
        values[i] += factor * part_of(k, s, i);
}

/* A factor of half a group's limit is an honest kernel's right; of twice the limit no element alone
 * shows it, and the group does. */
START_TEST(hidden_factors_are_found)
{
    honest *k = &wide;
    const sight *w = &scaled[_i];
    sight s = look(k, w->tensor, w->kind, w->part, w->index);
    double limit = s.group.slope_limit;
    ck_assert(s.group.pass && s.outcome == ET_PASS && limit > 0 && limit < 0.1);
    add_part(k, w, 0.5 * limit);
    s = look(k, w->tensor, w->kind, w->part, w->index);
    ck_assert_msg(s.group.pass, "slope %g of %g", s.group.slope, s.group.slope_limit);
    add_part(k, w, 1.5 * limit);
    s = look(k, w->tensor, w->kind, w->part, w->index);
    if (strcmp(w->part, "router") != 0) ck_assert_uint_eq(s.failed, 0);
    ck_assert_int_eq(s.outcome, ET_MISMATCH);
    ck_assert_msg(!s.group.pass, "slope %g of %g", s.group.slope, s.group.slope_limit);
    ck_assert_double_eq_tol(s.group.slope, 2 * limit, limit);
}
END_TEST

static const sight noisy[] = {
    {.tensor = "fwd.y", .kind = "tensor", .part = "reference"},
    {.tensor = "fwd.y", .kind = "row", .part = "reference", .index = 77},
    {.tensor = "fwd.shared_out", .kind = "column", .part = "reference", .index = 9},
    {.tensor = "fwd.slot_out", .kind = "expert", .part = "reference", .index = 2},
    {.tensor = "bwd.shared_act", .kind = "block", .part = "reference", .index = 128},
};

/* Errors of the group become +-`deviations` each. */
static void set_errors(honest *k, const sight *s, double deviations)
{
    et_tensor_out want[ET_MAX_STEP_TENSORS], variance[ET_MAX_STEP_TENSORS];
    size_t have = et_step_tensors(&k->golden, false, want), at = 0;
    et_step_tensors(&k->noise, false, variance);
    while (at < have && strcmp(want[at].name, s->tensor) != 0) at++;
    double *values = values_of(k, s->tensor);
    size_t columns = want[at].shape[1];
    for (size_t i = 0; i < elements_of(&want[at]); i++) {
        size_t row = i / columns;
        bool in = strcmp(s->kind, "tensor") == 0 ||
                  (strcmp(s->kind, "row") == 0 && row == s->index) ||
                  (strcmp(s->kind, "column") == 0 && i % columns == s->index) ||
                  (strcmp(s->kind, "expert") == 0 && row / 64 == s->index) ||
                  (strcmp(s->kind, "block") == 0 && row / 128 == s->index / 128);
        double sigma = sqrt(((const double *)variance[at].values)[i]);
        if (in)
            values[i] =
                ((const double *)want[at].values)[i] +
                (et_uniform(et_stream_open(9, "signs"), i, 0) < 0.5 ? -1 : 1) * deviations * sigma;
    }
}

/* Errors of the right kind, and too large: each element passes. */
START_TEST(hidden_noise_is_found)
{
    honest *k = &wide;
    const sight *w = &noisy[_i];
    sight s = look(k, w->tensor, w->kind, w->part, w->index);
    double limit = s.group.spread_limit;
    ck_assert_double_eq_tol(s.group.spread, 1, 0.5);
    ck_assert(limit > s.group.spread && limit < 6);
    set_errors(k, w, 0.9 * limit);
    ck_assert(look(k, w->tensor, w->kind, w->part, w->index).group.pass);
    set_errors(k, w, 1.1 * limit);
    s = look(k, w->tensor, w->kind, w->part, w->index);
    ck_assert_uint_eq(s.failed, 0);
    ck_assert_int_eq(s.outcome, ET_MISMATCH);
    ck_assert(!s.group.pass);
    ck_assert_double_eq_tol(s.group.spread, 1.1 * limit, 0.01);
}
END_TEST

/* What the campaign gathers: every kind of group of every tensor, with numbers in them. */
typedef struct census {
    size_t tensors, experts, rows, columns, blocks, tiles, parts;
} census;

static void count_group(void *user, const char *tensor, const et_group *g)
{
    census *c = user;
    ck_assert(g->elements >= 8 && g->spread > 0 && g->spread_limit > g->spread);
    ck_assert(g->pass && g->deviations < 20);
    bool y = strcmp(tensor, "fwd.y") == 0;
    c->tensors += strcmp(g->kind, "tensor") == 0;
    c->experts += strcmp(g->kind, "expert") == 0;
    c->rows += y && strcmp(g->kind, "row") == 0;
    c->columns += y && strcmp(g->kind, "column") == 0;
    c->blocks += y && strcmp(g->kind, "block") == 0;
    c->tiles += y && strcmp(g->kind, "tile") == 0;
    c->parts += strcmp(g->kind, "part") == 0;
}

/* What errors of dH, or of dO and A, make of the shared expert's gradient: each row, and each column, by itself. */
static const struct {
    const char *tensor, *input;
} whole_rows[] = {{"bwd.shared_up", "'source':'normal'"},
                  {"bwd.shared_up", "'source':'normal','mean':2"},
                  {"bwd.shared_up", "'source':'skewed','hot':1"},
                  {"bwd.shared_down", "'source':'normal'"},
                  {"bwd.shared_down", "'source':'normal','mean':2"}};

/* The gradient p' q [a,b] becomes that of a p whose elements err by V. */
static void err_by(size_t tokens, size_t a, const et_real *V, size_t b, const et_real *q,
                   bool transposed, et_stream stream, double *gradient)
{
    for (size_t t = 0; t < tokens; t++)
        for (size_t i = 0; i < a; i++) {
            double e = sqrt(V[t * a + i]) * et_normal(stream, t * a + i);
            for (size_t k = 0; e != 0 && k < b; k++)
                gradient[transposed ? k * a + i : i * b + k] += e * q[t * b + k];
        }
}

START_TEST(rows_may_err_as_wholes)
{
    enum { TOKENS = 512, D = 96, H = 24, DRAWS = 20 };
    honest k;
    char json[512];
    bool up = strstr(whole_rows[_i].tensor, "_up") != NULL;
    snprintf(json, sizeof json,
             "{'name':'rows','rule':'tc','top_k':1,'tokens':%d,'d_model':%d,'d_expert':8,"
             "'shared_d_expert':%d,'experts':2,'norm':'fanout','precision':'bf16','input':{%s,'"
             "seed':4}}",
             TOKENS, D, H, whole_rows[_i].input);
    make_honest(&k, json, "bf16", 1);
    keep_only(&k, whole_rows[_i].tensor, "route.mask");
    const et_step *g = &k.golden, *V = &k.noise;
    for (uint64_t draw = 0; draw < DRAWS; draw++) {
        double *gradient = values_of(&k, whole_rows[_i].tensor);
        memcpy(gradient, up ? g->bwd.shared_up : g->bwd.shared_down, D * H * sizeof *gradient);
        et_stream first = et_stream_open(draw, "p"), second = et_stream_open(draw, "q");
        if (up) {
            err_by(TOKENS, H, V->bwd.shared_pre, D, g->in.x, false, first, gradient);
        } else {
            err_by(TOKENS, D, V->bwd.shared_out, H, g->fwd.shared_act, false, first, gradient);
            err_by(TOKENS, H, V->fwd.shared_act, D, g->bwd.shared_out, true, second, gradient);
        }
        sight s = look(&k, whole_rows[_i].tensor, "tensor", "reference", 0);
        ck_assert_msg(s.outcome == ET_PASS, "slope %g of %g, spread %g of %g", s.group.slope,
                      s.group.slope_limit, s.group.spread, s.group.spread_limit);
    }
    free_honest(&k);
}
END_TEST

START_TEST(every_group_is_shown)
{
    honest *k = &wide;
    census seen = {0};
    et_verdict v;
    keep_only(k, "fwd.y", "bwd.x");
    const et_verify_options options = {.profile = k->profile};
    ck_assert_int_eq(et_verify_with(&v, &k->golden, &k->shelf, k->tensors, k->count, &options,
                                    count_group, &seen, NULL),
                     ET_OK);
    ck_assert_uint_eq(seen.tensors, 2);
    ck_assert_uint_eq(seen.experts, 8); /* their parts of y */
    ck_assert_uint_eq(seen.rows, 512);
    ck_assert_uint_eq(seen.columns, 64);
    ck_assert_uint_eq(seen.blocks, 512 / 16 + 512 / 64 + 512 / 128);
    ck_assert_uint_eq(seen.tiles, (512 / 16) * (64 / 16));
    ck_assert_uint_eq(seen.parts, 2 + 3); /* y: routed, shared; dx: experts, shared, router */
    et_verdict_free(&v);
}
END_TEST

/* Sums are taken in a fixed order, whoever takes them. */
static et_tensor_verdict judged_by_threads(const honest *k, size_t index, int threads)
{
    const et_verify_options options = {.profile = k->profile};
    const et_judgement j = {.golden = &k->golden,
                            .reference = &k->golden,
                            .bars = &k->shelf.first->bars,
                            .candidate = k->tensors,
                            .count = k->count,
                            .mask = k->golden.route.mask,
                            .options = &options};
    et_tensor_verdict out;
    int before = omp_get_max_threads();
    omp_set_num_threads(threads);
    ck_assert_int_eq(et_judge_tensor(&j, index, &k->golden, NULL, &out, NULL), ET_OK);
    omp_set_num_threads(before);
    return out;
}

START_TEST(no_figure_depends_on_threads)
{
    honest *k = &wide;
    for (size_t i = 0; i < k->count; i++) {
        et_tensor_verdict one = judged_by_threads(k, i, 1), three = judged_by_threads(k, i, 3);
        ck_assert_double_eq(one.whole.slope, three.whole.slope);
        ck_assert_double_eq(one.whole.spread, three.whole.spread);
        ck_assert_double_eq(one.worst_group.slope, three.worst_group.slope);
        ck_assert_double_eq(one.largest_ulps, three.largest_ulps);
        ck_assert_uint_eq(one.worst, three.worst);
    }
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
    make_honest(&k, ec_case, "bf16", 1);
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
        make_honest(&k, ec_case, profiles[i], 1);
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
    make_honest(&k, ec_case, "bf16", 1);
    et_verdict v = judge_by(&k, options);
    ck_assert_msg(v.outcome == ET_PASS, "%s", v.line);
    et_verdict_free(&v);
    remove_tensor(&k, "bwd.w_down");
    assert_inconclusive(&k, options, "bwd.w_down is required and not there");
    remove_tensor(&k, "bwd.slot_act"); /* not asked for by bwd.*: fused kernels have none */
    assert_inconclusive(&k, options, "bwd.w_down is required and not there");
    remove_tensor(&k, "bwd.x");
    assert_inconclusive(&k, options, "bwd.x and 1 more are required and not there");
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

/* ---- margins and thresholds may be shown, too ---- */

START_TEST(margins_are_judged_where_nothing_is_open)
{
    honest k;
    make_honest(&k, "{'name':'all','rule':'tc','top_k':4," SMALL "," DRAWN "}", "bf16", 1);
    et_verdict v = judge_by(&k, (et_verify_options){0});
    ck_assert_int_eq(verdict_on(&v, "route.margin")->outcome, ET_PASS); /* all infinite */
    et_verdict_free(&v);
    values_of(&k, "route.margin")[7] = -INFINITY;
    assert_mismatch(&k, "route.margin", "1 of 384 elements fail");
    free_honest(&k);
    make_honest(&k, tc_case, "bf16", 1);
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

START_TEST(progress_is_told)
{
    honest k;
    make_honest(&k, ec_case, "bf16", 1);
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
    TCase *elements = add_case(suite, "elements");
    tcase_add_test(elements, what_is_no_number_fails);
    tcase_add_test(elements, exact_values_must_be_exact);
    tcase_add_loop_test(elements, zeros_fail, 0, sizeof results / sizeof *results);
    tcase_add_test(elements, copies_of_inputs_are_named);
    tcase_add_test(elements, integers_must_agree);
    tcase_add_test(elements, too_coarse_a_type_is_named);
    tcase_add_test(elements, floats_are_read);
    tcase_add_test(elements, margins_are_judged_where_nothing_is_open);
    tcase_add_loop_test(elements, margins_of_exact_scores_are_rounded, 1, 4);
    TCase *groups = add_case(suite, "groups");
    tcase_add_unchecked_fixture(groups, make_wide, free_wide);
    tcase_add_checked_fixture(groups, restore_wide, NULL);
    tcase_add_loop_test(groups, hidden_factors_are_found, 0, sizeof scaled / sizeof *scaled);
    tcase_add_loop_test(groups, hidden_noise_is_found, 0, sizeof noisy / sizeof *noisy);
    tcase_add_test(groups, every_group_is_shown);
    tcase_add_test(groups, no_figure_depends_on_threads);
    tcase_add_loop_test(elements, rows_may_err_as_wholes, 0,
                        sizeof whole_rows / sizeof *whole_rows);
    TCase *vacuous = add_case(suite, "vacuous");
    tcase_add_test(vacuous, an_empty_candidate_decides_nothing);
    tcase_add_test(vacuous, the_golden_is_no_candidate);
    tcase_add_test(vacuous, what_is_required_must_be_there);
    tcase_add_test(vacuous, below_its_noise_nothing_passes);
    tcase_add_test(vacuous, beyond_the_range_nothing_is_judged);
    tcase_add_test(vacuous, progress_is_told);
#endif
    return run_suite(suite);
}
