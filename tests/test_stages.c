/* test_stages.c: each stage judged by itself, from the candidate's own numbers (ref/bars/stages_alone.c).
 */
#include "ref/bars/stages_alone.h"
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
    coarsen(&k, "bwd.x", 0.5, 7);
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

/* Weight gradients kept in 8 bits from micro-batch to micro-batch: four roundings where one belongs hide in what dH has lost
 * before, but not in all of 49152 elements together. */
START_TEST(gradients_are_summed_in_few_bits)
{
    for (int seed = 7; seed <= 8; seed++) {
        honest k;
        char json[512];
        et_profile few = *et_profile_find("bf16");
        few.bits[ET_DW_SUMS] = 8;
        snprintf(json, sizeof json,
                 "{'name':'m4','rule':'tc','top_k':2,'experts':8,'gate':'softmax','tokens':1024,"
                 "'micro_batches':4,'d_model':64,'d_expert':96,'precision':'bf16',"
                 "'input':{'source':'normal','seed':%d}}",
                 seed);
        make_honest(&k, json, "bf16", 3);
        emulate(&k, k.profile, ET_ROUND_NEAREST, 3);
        expect(&k, NULL);
        emulate(&k, &few, ET_ROUND_NEAREST, 3);
        et_verdict v = judge_alone(&k);
        ck_assert_msg(v.outcome == ET_MISMATCH &&
                          verdict_on(&v, "bwd.w_up")->outcome == ET_MISMATCH,
                      "seed %d: %s", seed, v.line);
        et_verdict_free(&v);
        free_honest(&k);
    }
}
END_TEST

/* ---- FP8 ---- */

/* As E4M3 has them, with what 32 at a time are scaled by: their largest becomes 448. */
static void to_fp8(size_t count, const double *v, double *to)
{
    for (size_t first = 0; first < count; first += 32) {
        double most = 0;
        for (size_t i = first; i < first + 32; i++) most = fmax(most, fabs(v[i]));
        for (size_t i = first; i < first + 32; i++) {
            double size = most > 0 ? fabs(v[i]) / most * 448 : 0, step = 0x1p-9;
            if (size >= 0x1p-6) step = exp2(floor(log2(size)) - 3);
            to[i] = copysign(nearbyint(size / step) * step * most / 448, v[i]);
        }
    }
}

enum { FP8_D = 64, FP8_H = 96, FP8_TOKENS = 256 };

/* X [rows,inner] W' [inner,columns], both in FP8. */
static void multiply_fp8(size_t rows, size_t inner, size_t columns, const double *X,
                         const double *W, double *to)
{
    double x[FP8_H], *w = malloc(columns * inner * sizeof *w);
    ck_assert(w != NULL);
    to_fp8(columns * inner, W, w);
    for (size_t r = 0; r < rows; r++) {
        to_fp8(inner, X + r * inner, x);
        for (size_t c = 0; c < columns; c++) {
            double sum = 0;
            for (size_t j = 0; j < inner; j++) sum += x[j] * w[c * inner + j];
            to[r * columns + c] = sum;
        }
    }
    free(w);
}

/* Experts in FP8; router, weights and all that is stored as in bf16. */
static void compute_fp8(honest *k)
{
    const et_step *g = &k->golden;
    double *H = values_of(k, "fwd.slot_pre"), *A = values_of(k, "fwd.slot_act");
    double *f = values_of(k, "fwd.slot_out"), *y = values_of(k, "fwd.y");
    static double x[FP8_TOKENS * FP8_D];
    const double *w = values_of(k, "route.slot_weight");
    memset(y, 0, (size_t)FP8_TOKENS * FP8_D * sizeof *y);
    for (size_t i = 0; i < g->c.experts; i++) {
        const size_t first = (size_t)g->assignment.expert_offsets[i];
        const size_t rows = (size_t)g->assignment.expert_offsets[i + 1] - first;
        const int32_t *token = g->assignment.slot_token + first;
        for (size_t s = 0; s < rows; s++)
            memcpy(x + s * FP8_D, g->in.x + (size_t)token[s] * FP8_D, FP8_D * sizeof *x);
        multiply_fp8(rows, FP8_D, FP8_H, x, g->in.up + i * FP8_H * FP8_D, H + first * FP8_H);
        for (size_t c = first * FP8_H; c < (first + rows) * FP8_H; c++) {
            H[c] = in_bits(H[c], 8);
            A[c] = in_bits(H[c] > 0 ? H[c] * H[c] : 0, 8);
        }
        multiply_fp8(rows, FP8_H, FP8_D, A + first * FP8_H, g->in.down + i * FP8_H * FP8_D,
                     f + first * FP8_D);
        for (size_t s = 0; s < rows; s++)
            for (size_t c = 0; c < FP8_D; c++) {
                double *out = &f[(first + s) * FP8_D + c];
                *out = in_bits(*out, 8);
                y[(size_t)token[s] * FP8_D + c] += w[first + s] * *out;
            }
    }
    for (size_t c = 0; c < (size_t)FP8_TOKENS * FP8_D; c++) y[c] = in_bits(y[c], 8);
}

/* The profile says operands of 4 bits; a kernel scales them first, and its grid is another one. */
START_TEST(scaled_operands_pass)
{
    for (int seed = 7; seed <= 8; seed++) {
        honest k;
        et_case c;
        char json[512];
        et_profile fp8 = *et_profile_find("bf16");
        fp8.bits[ET_OPERANDS] = 4;
        snprintf(json, sizeof json,
                 "{'name':'fp8','rule':'tc','top_k':2,'experts':8,'gate':'softmax','norm':'sum',"
                 "'tokens':256,'d_model':64,'d_expert':96,'precision':'bf16','shared':false,"
                 "'input':{'source':'normal','seed':%d}}",
                 seed);
        ck_assert_int_eq(parse_quoted(&c, json, NULL), ET_OK);
        draw_case(&k.golden, &c);
        make_kernel_of(&k, &fp8, 3);
        keep_only(&k, "fwd.", "route.slot_weight");
        compute_fp8(&k);
        expect(&k, NULL);
        free_honest(&k);
    }
}
END_TEST

/* ---- formulas of kernels ---- */

static double by_exponential(double r)
{
    return in_bits(1 / in_bits(1 + in_bits(exp(-r), 24), 24), 24);
}

static double by_tanh(double r)
{
    return in_bits(1 + in_bits(tanh(r / 2), 24), 24) / 2;
}

/* Of scores so near 0 that a formula's own error is the same, or nearly, for all; and of gates so small that the last bits
 * of 1 are many of theirs. */
START_TEST(a_sigmoid_of_its_own_passes)
{
    static const struct {
        float r;
        double (*sigmoid)(double r);
    } ways[] = {{-4.66e-5F, by_exponential}, {-8.0025F, by_tanh}};
    honest k;
    et_case c;
    const char *json =
        "{'name':'near','rule':'tc','gate':'sigmoid','experts':2,'tokens':8,'d_model':8,"
        "'d_expert':8,'input':{'source':'normal','seed':7}}";
    ck_assert_int_eq(parse_quoted(&c, json, NULL), ET_OK);
    draw_case(&k.golden, &c);
    for (size_t i = 0; i < 8 * 8; i++) k.golden.in.x[i] = i % 8 == 0;
    for (size_t i = 0; i < 2 * 8; i++) k.golden.in.router[i] = (et_real)ways[_i].r;
    make_kernel_of(&k, et_profile_find("f32"), 3);
    double *r = values_of(&k, "fwd.logits"), *p = values_of(&k, "fwd.gates");
    for (size_t i = 0; i < 8 * 2; i++) {
        r[i] = ways[_i].r;
        p[i] = ways[_i].sigmoid(r[i]);
    }
    keep_only(&k, "fwd.logits", "fwd.gates");
    expect(&k, NULL);
    free_honest(&k);
}
END_TEST

/* w = p (1/p) is 1, or next to it. */
START_TEST(a_reciprocal_for_a_quotient_passes)
{
    honest k;
    make_honest(
        &k,
        "{'name':'one','rule':'tc','top_k':1,'gate':'sigmoid','norm':'sum','experts':4,'tokens':64,"
        "'d_model':16,'d_expert':16,'input':{'source':'normal','seed':7}}",
        "f32", 3);
    const et_assignment *a = &k.golden.assignment;
    const double *p = values_of(&k, "fwd.gates");
    double *w = values_of(&k, "route.slot_weight");
    size_t others = 0;
    for (size_t j = 0; j < a->slots; j++) {
        double own = p[(size_t)a->slot_token[j] * 4 + (size_t)a->slot_expert[j]];
        w[j] = in_bits(own * in_bits(1 / own, 24), 24);
        others += w[j] != 1;
    }
    ck_assert_uint_gt(others, 0);
    keep_only(&k, "fwd.gates", "route.slot_weight");
    expect(&k, NULL);
    free_honest(&k);
}
END_TEST

/* dH by an H that was summed once more, from the last term to the first. */
START_TEST(a_hidden_layer_computed_again_passes)
{
    enum { N = 64, D = 48, H = 32 };
    honest k;
    make_honest(&k,
                "{'name':'again','layer':'dense','tokens':64,'d_model':48,'d_expert':32,"
                "'input':{'source':'normal','seed':7}}",
                "f32", 3);
    const double *dA = values_of(&k, "bwd.slot_act");
    double *dH = values_of(&k, "bwd.slot_pre");
    for (size_t i = 0; i < N * H; i++) {
        const et_real *x = k.golden.in.x + i / H * D, *up = k.golden.in.up + i % H * D;
        double sum = 0;
        for (size_t c = D; c-- > 0;) sum = in_bits(sum + in_bits(x[c] * up[c], 24), 24);
        dH[i] = in_bits(dA[i] * 2 * fmax(sum, 0), 24);
    }
    keep_only(&k, "bwd.slot", "fwd.slot_pre");
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

/* ---- more ways of kernels, each the same number in mathematics ---- */

/* The factor is 2.827 in f32, which is 3.4e-8 of itself less. */
static void scale_by_a_float(honest *k)
{
    const et_assignment *a = &k->golden.assignment;
    const double *p = values_of(k, "fwd.gates");
    double *w = values_of(k, "route.slot_weight");
    for (size_t j = 0; j < a->slots; j++) {
        size_t t = (size_t)a->slot_token[j], n = a->experts;
        double T = 0;
        for (int32_t i = a->token_offsets[t]; i < a->token_offsets[t + 1]; i++)
            T = in_bits(T + p[t * n + (size_t)a->slot_expert[a->token_slots[i]]], 24);
        w[j] = in_bits(in_bits(p[t * n + (size_t)a->slot_expert[j]] / T, 24) * (double)2.827f, 24);
    }
    keep_only(k, "fwd.gates", "route.slot_weight");
}

/* The gradient of a softmax over a token's two experts, w (dw - sum w dw), where one w is nearly 1. */
static void select_first(honest *k)
{
    const et_assignment *a = &k->golden.assignment;
    const double *w = values_of(k, "route.slot_weight"), *dw = values_of(k, "bwd.slot_weight");
    double *dr = values_of(k, "bwd.logits");
    for (size_t i = 0; i < a->tokens * a->experts; i++) dr[i] = 0;
    for (size_t j = 0; j < a->slots; j++) {
        size_t t = (size_t)a->slot_token[j];
        double sum = 0;
        for (int32_t i = a->token_offsets[t]; i < a->token_offsets[t + 1]; i++)
            sum = in_bits(sum + in_bits(w[a->token_slots[i]] * dw[a->token_slots[i]], 24), 24);
        dr[t * a->experts + (size_t)a->slot_expert[j]] =
            in_bits(w[j] * in_bits(dw[j] - sum, 24), 24);
    }
}

/* load (1/N), which misses 1/4. */
static void multiply_for_mean(honest *k)
{
    double *usage = values_of(k, "metric.usage");
    for (size_t i = 0; i < 4; i++) usage[i] = in_bits(41 * in_bits(1.0 / 164, 24), 24);
    ck_assert(usage[0] != 0.25);
}

START_TEST(other_ways_pass)
{
    static const struct {
        const char *json, *profile;
        void (*go)(honest *k);
    } ways[] = {
        {"{'name':'scale','rule':'tc','top_k':2,'gate':'sigmoid','norm':'sum','routed_scale':2.827,"
         "'experts':8,"
         "'tokens':512,'d_model':16,'d_expert':16,'input':{'source':'normal','seed':11}}",
         "f32", scale_by_a_float},
        {"{'name':'select','rule':'tc','top_k':2,'gate':'softmax','norm':'sum','experts':8,'tokens'"
         ":128,'d_model':24,"
         "'d_expert':32,'input':{'source':'normal','seed':1,'mean':3}}",
         "bf16", select_first},
        {"{'name':'mean','rule':'ec','experts':4,'tokens':164,'d_model':16,'d_expert':16,"
         "'input':{'source':'normal','seed':11}}",
         "bf16", multiply_for_mean},
    };
    honest k;
    make_honest(&k, ways[_i].json, ways[_i].profile, 3);
    ways[_i].go(&k);
    if (_i == 1) remove_tensor(&k, "bwd.x"), remove_tensor(&k, "bwd.w_router"); /* of another dr */
    et_verdict v = judge_by(&k, (et_verify_options){.explain = false});
    ck_assert_msg(v.outcome != ET_MISMATCH, "%s", v.line);
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
    tcase_add_test(verdicts, gradients_are_summed_in_few_bits);
    tcase_add_test(verdicts, scaled_operands_pass);
    tcase_add_loop_test(verdicts, a_sigmoid_of_its_own_passes, 0, 2);
    tcase_add_test(verdicts, a_reciprocal_for_a_quotient_passes);
    tcase_add_test(verdicts, a_hidden_layer_computed_again_passes);
    tcase_add_loop_test(verdicts, other_ways_pass, 0, 3);
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
