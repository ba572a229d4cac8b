/* test_explain.c: what would explain a mismatch, on values that are broken by hand.
 *
 * The campaign plants faults into kernels, where all that follows from a wrong value follows. Here a
 * test writes down itself what a mistake leaves behind, so nothing is computed by the code that the
 * mutants are made of; and it tries what kernels do not: a mistake in one expert only, two at once,
 * one that has no name, errors that only look like one.
 */
#include "tests/check_main.h"
#include "tests/honest.h"
#include "tests/small_cases.h"

#ifndef ETREF_F32

static const char *const et_case_json =
    SMALL_MOE("'name':'et','rule':'et','ema_updates':10,'ema_decay':0.9");
static const char *const eval_case =
    SMALL_MOE("'name':'eval','rule':'et','mode':'eval','ema_updates':10,'ema_decay':0.9");

static const char *const f32_case =
    "{'name':'f32','layer':'dense','tokens':96,'d_model':24,'d_expert':40,'precision':'f32',"
    "'input':{'source':'normal','seed':3}}";

static const char *const f32_moe_case =
    "{'name':'f32-moe','rule':'tc','top_k':2,'experts':4,'tokens':96,'d_model':24,'d_expert':40,"
    "'precision':'f32'," DRAWN "}";

static const et_verify_options explained = {.explain = true};

static const et_explanation *explanation(const et_verdict *v, const char *name)
{
    for (size_t i = 0; i < v->explanation_count; i++)
        if (strcmp(v->explanations[i].name, name) == 0) return &v->explanations[i];
    return NULL;
}

static void expect_explained(const et_verdict *v, const char *name, const char *scope)
{
    const et_explanation *e = explanation(v, name);
    ck_assert_msg(e != NULL, "not explained by %s, but by %s: %s", name,
                  v->explanation_count ? v->explanations[0].name : "nothing", v->line);
    ck_assert_str_eq(e->scope, scope);
}

static void scale_values(honest *k, const char *name, size_t first, size_t end, double factor)
{
    double *values = values_of(k, name);
    for (size_t i = first; i < end; i++) values[i] *= factor;
}

static void scale_tensor(honest *k, const char *name, double factor)
{
    scale_values(k, name, 0, elements_of(tensor_of(k, name)), factor);
}

/* Values as a kernel of another profile would make them, judged by this one. */
static void round_otherwise(honest *k, et_place place, int bits)
{
    et_profile other = *k->profile;
    snprintf(other.name, sizeof other.name, "other");
    other.bits[place] = bits;
    emulate(k, &other, ET_ROUND_RANDOM, 7);
}

/* ---- a mistake, and where ---- */

/* dH lacks its factor 2, and so do dW_up = dH' x and dx = dH W_up, which are linear in it. */
START_TEST(a_dense_layer_is_explained)
{
    honest k;
    make_honest(&k, DENSE_CASE, "bf16", 5);
    scale_tensor(&k, "bwd.slot_pre", 0.5);
    scale_tensor(&k, "bwd.w_up", 0.5);
    scale_tensor(&k, "bwd.x", 0.5);
    et_verdict v = judge_by(&k, explained);
    ck_assert_int_eq(v.outcome, ET_MISMATCH);
    expect_explained(&v, "factor-two", "everywhere");
    ck_assert_uint_eq(v.explanation_count, 1);
    et_verdict_free(&v);
    free_honest(&k);
}
END_TEST

/* The same in expert 2 alone. dx sums over a token's experts, so it is left out. */
START_TEST(one_expert_is_named)
{
    honest k;
    make_honest(&k, et_case_json, "bf16", 5);
    const et_assignment *a = &k.golden.assignment;
    size_t h = 40, d = 24, first = (size_t)a->expert_offsets[2], end = (size_t)a->expert_offsets[3];
    remove_tensor(&k, "bwd.x");
    scale_values(&k, "bwd.slot_pre", first * h, end * h, 0.5);
    scale_values(&k, "bwd.w_up", 2 * h * d, 3 * h * d, 0.5);
    et_verdict v = judge_by(&k, explained);
    ck_assert_int_eq(v.outcome, ET_MISMATCH);
    expect_explained(&v, "factor-two", "expert 2");
    et_verdict_free(&v);
    free_honest(&k);
}
END_TEST

/* ema' = (1 - beta) ema + beta cutoff: the state is explained apart from the arithmetic. */
START_TEST(two_mistakes_are_told_apart)
{
    honest k;
    make_honest(&k, et_case_json, "bf16", 5);
    scale_tensor(&k, "bwd.slot_pre", 0.5);
    scale_tensor(&k, "bwd.shared_pre", 0.5);
    scale_tensor(&k, "bwd.w_up", 0.5);
    scale_tensor(&k, "bwd.shared_up", 0.5);
    remove_tensor(&k, "bwd.x");
    double *ema = values_of(&k, "state.ema"), beta = k.golden.c.ema_decay;
    for (size_t i = 0; i < 4; i++)
        ema[i] = (1 - beta) * k.golden.in.ema[i] + beta * k.golden.route.cutoff[i];
    et_verdict v = judge_by(&k, explained);
    expect_explained(&v, "factor-two", "everywhere");
    expect_explained(&v, "ema-beta-swapped", "everywhere");
    et_verdict_free(&v);
    free_honest(&k);
}
END_TEST

static int descending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x < y) - (x > y);
}

/* The k-th largest score of an expert, k = N G / n = 24. */
static double cutoff(const et_step *s, size_t expert)
{
    double scores[96];
    for (size_t t = 0; t < 96; t++) scores[t] = s->fwd.logits[t * 4 + expert];
    qsort(scores, 96, sizeof *scores, descending);
    return scores[23];
}

/* Evaluation leaves the state as it is; a kernel that shows it moved has trained. */
START_TEST(a_state_that_moves_in_evaluation_is_explained)
{
    honest k;
    make_honest(&k, eval_case, "bf16", 5);
    double ema[4];
    et_verdict v;
    et_tensor_out *t = &k.tensors[k.count];
    *t = (et_tensor_out){.name = "state.ema",
                         .dtype = ET_F64,
                         .rank = 1,
                         .shape = {4},
                         .source = ET_FROM_F64,
                         .values = ema};
    k.count++;
    memcpy(ema, k.golden.in.ema, sizeof ema);
    v = judge_by(&k, explained);
    ck_assert_msg(v.outcome == ET_PASS, "as it came in: %s", v.line);
    et_verdict_free(&v);
    double beta = k.golden.c.ema_decay;
    for (size_t i = 0; i < 4; i++)
        ema[i] = beta * k.golden.in.ema[i] + (1 - beta) * cutoff(&k.golden, i);
    v = judge_by(&k, explained);
    ck_assert_int_eq(v.outcome, ET_MISMATCH);
    expect_explained(&v, "ema-in-evaluation", "everywhere");
    et_verdict_free(&v);
    k.count--;
    free_honest(&k);
}
END_TEST

/* ---- two mistakes at once ---- */

/* y times 1.25, and a dx that has nothing to do with it: the first explains the forward pass, and says that this is all; what
 * is left over is described. */
START_TEST(one_of_two_mistakes_is_no_explanation_of_both)
{
    honest k;
    make_honest(&k, DENSE_CASE, "bf16", 5);
    scale_tensor(&k, "fwd.y", 1.25);
    double *dx = values_of(&k, "bwd.x");
    for (size_t i = 0; i < 24; i++) dx[17 * 24 + i] += i % 2 ? 3 : -3;
    et_verdict v = judge_by(&k, explained);
    const et_explanation *e = explanation(&v, "scaled");
    ck_assert_int_eq(v.outcome, ET_MISMATCH);
    ck_assert_msg(e != NULL, "%s", v.residual);
    ck_assert_str_eq(e->explains, "the forward pass");
    ck_assert_ptr_nonnull(strstr(v.residual, "bwd.x"));
    ck_assert_ptr_null(strstr(v.residual, "fwd.y"));
    et_verdict_free(&v);
    free_honest(&k);
}
END_TEST

/* The state is explained, the arithmetic is not. */
START_TEST(an_explained_state_does_not_explain_the_rest)
{
    honest k;
    make_honest(&k, et_case_json, "bf16", 5);
    double *ema = values_of(&k, "state.ema");
    for (size_t i = 0; i < 4; i++) ema[i] = k.golden.in.ema[i];
    values_of(&k, "fwd.y")[17 * 24 + 5] += 3;
    et_verdict v = judge_by(&k, explained);
    const et_explanation *e = explanation(&v, "ema-not-updated");
    ck_assert_ptr_nonnull(e);
    ck_assert_str_eq(e->explains, "routing and state");
    ck_assert_ptr_null(strstr(v.residual, "state.ema"));
    ck_assert_ptr_nonnull(strstr(v.residual, "fwd.y: 1 of 2304"));
    et_verdict_free(&v);
    free_honest(&k);
}
END_TEST

/* One number is always some multiple of another: only a round factor is a name. */
START_TEST(a_number_alone_is_scaled_by_round_factors)
{
    const double factors[] = {0.99, 4, 1.0 / 96, 0.98765, 1.0471};
    for (size_t i = 0; i < sizeof factors / sizeof *factors; i++) {
        honest k;
        make_honest(&k, SMALL_MOE("'name':'aux','rule':'tc','top_k':2,'balance':'aux'"), "bf16", 5);
        scale_tensor(&k, "loss.aux", factors[i]);
        et_verdict v = judge_by(&k, explained);
        ck_assert_int_eq(v.outcome, ET_MISMATCH);
        ck_assert_msg((explanation(&v, "scaled") != NULL) == (i < 3), "times %g: %s", factors[i],
                      v.residual);
        ck_assert_ptr_null(explanation(&v, "truncation"));
        et_verdict_free(&v);
        free_honest(&k);
    }
}
END_TEST

/* Rows of y that are another call's, beside rows that are the right ones times 1.5: the first are stale, the others scaled; and
 * what is exchanged is not stale. */
START_TEST(rows_are_told_apart)
{
    static const char *const names[] = {"stale-rows", "scaled", ""};
    for (int how = 0; how < 3; how++) {
        honest k;
        make_honest(&k, DENSE_CASE, "bf16", 5);
        double *y = values_of(&k, "fwd.y"), size = 0;
        et_stream memory = et_stream_open(9, "memory");
        for (size_t i = 0; i < 96 * 24; i++) size += y[i] * y[i] / (96 * 24);
        for (size_t i = 11 * 24; i < 31 * 24; i++)
            y[i] = et_round_to_dtype(how == 0   ? sqrt(size) * et_normal(memory, i)
                                     : how == 1 ? 1.5 * y[i]
                                                : y[i + 30 * 24],
                                     ET_BF16);
        et_verdict v = judge_by(&k, explained);
        ck_assert_int_eq(v.outcome, ET_MISMATCH);
        ck_assert_msg(how == 2 ? v.explanation_count == 0 : explanation(&v, names[how]) != NULL,
                      "%s: %s", names[how],
                      v.explanation_count ? v.explanations[0].name : v.residual);
        if (how < 2) ck_assert_ptr_nonnull(strstr(v.explanations[0].scope, "s 11-30"));
        et_verdict_free(&v);
        free_honest(&k);
    }
}
END_TEST

/* ---- names that are near the truth ---- */

static void expect_first(honest *k, const char *name, const char *not_this)
{
    et_verdict v = judge_by(k, explained);
    ck_assert_int_eq(v.outcome, ET_MISMATCH);
    const char *first = v.explanation_count ? v.explanations[0].name : "";
    ck_assert_msg(strcmp(first, name) == 0, "'%s' (%s) for '%s': %s", first, v.explanation_count ? v.explanations[0].scope : "", name, v.residual);
    ck_assert_ptr_null(explanation(&v, not_this));
    et_verdict_free(&v);
    free_honest(k);
}

/* An eighth is small beside coarse bars, but it is not nothing. */
START_TEST(a_small_part_is_not_zero)
{
    honest k;
    make_honest(&k, SMALL_MOE("'name':'tc','rule':'tc','top_k':2"), "bf16", 5);
    scale_tensor(&k, "bwd.w_router", 0.125);
    expect_first(&k, "scaled", "router-detached");
}
END_TEST

/* Rows in the midst of others are nobody's last. */
START_TEST(rows_of_zeros_were_not_computed)
{
    honest k;
    make_honest(&k, DENSE_CASE, "bf16", 5);
    double *y = values_of(&k, "fwd.y");
    for (size_t i = 11 * 24; i < 27 * 24; i++) y[i] = 0;
    expect_first(&k, "rows-not-computed", "last-tile-dropped");
}
END_TEST

START_TEST(many_factors_are_not_one)
{
    honest k;
    make_honest(&k, DENSE_CASE, "bf16", 5);
    double *y = values_of(&k, "fwd.y");
    for (size_t i = 0; i < 96 * 24; i++)
        y[i] = et_round_to_dtype(y[i] * (1.2 + (double)(i / 24) / 960), ET_BF16);
    keep_only(&k, "fwd.y", "fwd.y");
    expect_first(&k, "", "scaled");
}
END_TEST

/* Most numbers of these rows are right: they are of this call. The router learns from a third of the experts. */
START_TEST(rows_that_are_right_in_part_are_not_stale)
{
    honest k;
    make_honest(&k,
                "{'name':'third','rule':'et','experts':12,'granularity':4,'ema_updates':5000,'"
                "shared':false,"
                "'tokens':96,'d_model':24,'d_expert':32,'precision':'f32','input':{'source':'"
                "normal','seed':4}}",
                "f32", 5);
    double *dr = values_of(&k, "bwd.logits");
    for (size_t i = 0; i < 96 * 12; i++)
        if (i % 12 >= 4) dr[i] = 0;
    keep_only(&k, "bwd.logits", "bwd.slot_weight");
    expect_first(&k, "router-gradient-local", "stale-rows");
}
END_TEST

/* H of a slot is another token's x by the slot's own expert; then its own token's by another expert's weights, neither the
 * next one's nor the one's before: sums of right numbers, and no memory. It has no name, so the residual says which. */
START_TEST(a_row_by_another_operand_is_not_stale)
{
    for (int how = 0; how < 2; how++) {
        honest k;
        make_honest(&k, SMALL_MOE("'name':'gated','rule':'tc','top_k':2,'activation':'swiglu'"),
                    "bf16", 5);
        const et_step *s = &k.golden;
        const int32_t *token_of = s->assignment.slot_token;
        size_t d = 24, h = 40, slot = 0, e = how == 0 ? 0 : 2;
        while (how == 1 && s->route.mask[token_of[slot] * 4 + 2]) slot++;
        size_t token = (size_t)token_of[slot] + (how == 0 ? 5 : 0);
        double *H = values_of(&k, "fwd.slot_pre") + slot * h;
        for (size_t c = 0; c < h; c++) {
            double sum = 0;
            for (size_t i = 0; i < d; i++)
                sum += (double)s->in.x[token * d + i] * (double)s->in.up[(e * h + c) * d + i];
            H[c] = et_round_to_dtype(sum, ET_BF16);
        }
        keep_only(&k, "fwd.slot_pre", "fwd.slot_pre");
        et_verdict v = judge_by(&k, explained);
        ck_assert_int_eq(v.outcome, ET_MISMATCH);
        ck_assert_msg(v.explanation_count == 0, "%s", v.explanations[0].name);
        const char *said = how == 0 ? "slot 0 is what token " : "by expert 2's weights";
        ck_assert_msg(strstr(v.residual, said) != NULL, "'%s' in: %s", said, v.residual);
        et_verdict_free(&v);
        free_honest(&k);
    }
}
END_TEST

/* Memory of another call holds numbers of a size that this call's have, too. */
START_TEST(a_row_of_a_strange_size_is_not_stale)
{
    honest k;
    make_honest(&k, DENSE_CASE, "bf16", 5);
    double *y = values_of(&k, "fwd.y"), most = 0;
    size_t largest = 0;
    for (size_t t = 0; t < 96; t++) {
        double size = 0;
        for (size_t c = 0; c < 24; c++) size += y[t * 24 + c] * y[t * 24 + c] / 24;
        if (size > most) most = size, largest = t;
    }
    et_stream memory = et_stream_open(9, "memory");
    for (size_t c = 0; c < 24; c++)
        y[largest * 24 + c] = et_round_to_dtype(4 * sqrt(most) * et_normal(memory, c), ET_BF16);
    expect_first(&k, "", "stale-rows");
}
END_TEST

/* Its errors are larger than those to nearest, also where nothing is summed. */
START_TEST(chance_is_not_few_bits_of_sums)
{
    honest k;
    et_profile by_chance = *et_profile_find("bf16");
    by_chance.stochastic = true;
    make_honest(&k, SMALL_MOE("'name':'tc','rule':'tc','top_k':2"), "bf16", 5);
    clear_tensors(&k);
    add_tensors(&k, &k.golden);
    emulate(&k, &by_chance, ET_ROUND_RANDOM, 5);
    expect_first(&k, "stochastic-rounding", "accumulator-bf16");
}
END_TEST

/* ---- no mistake that has a name ---- */

START_TEST(a_pass_needs_no_explanation)
{
    honest k;
    make_honest(&k, et_case_json, "bf16", 5);
    et_verdict v = judge_by(&k, explained);
    ck_assert_int_eq(v.outcome, ET_PASS);
    ck_assert_uint_eq(v.explanation_count, 0);
    ck_assert_str_eq(v.residual, "");
    et_verdict_free(&v);
    free_honest(&k);
}
END_TEST

/* Nothing in the catalogue breaks two columns of one token: the residual says which. */
START_TEST(what_has_no_name_is_described)
{
    honest k;
    make_honest(&k, et_case_json, "bf16", 5);
    values_of(&k, "fwd.y")[17 * 24 + 5] += 3;
    values_of(&k, "fwd.y")[17 * 24 + 9] -= 3;
    et_verdict v = judge_by(&k, explained);
    ck_assert_int_eq(v.outcome, ET_MISMATCH);
    ck_assert_uint_eq(v.explanation_count, 0);
    ck_assert_msg(strstr(v.residual, "fwd.y: 2 of 2304 elements fail, token 17, columns 5, 9"),
                  "%s", v.residual);
    et_verdict_free(&v);
    free_honest(&k);
}
END_TEST

/* factor-two, but for one tensor in which it is right: then it is no explanation. */
START_TEST(a_tensor_that_passes_speaks_against_a_name)
{
    honest k;
    make_honest(&k, DENSE_CASE, "bf16", 5);
    scale_tensor(&k, "bwd.slot_pre", 0.5);
    scale_tensor(&k, "bwd.w_up", 0.5);
    et_verdict v = judge_by(&k, explained);
    ck_assert_int_eq(v.outcome, ET_MISMATCH);
    ck_assert_ptr_null(explanation(&v, "factor-two"));
    et_verdict_free(&v);
    free_honest(&k);
}
END_TEST

/* Errors of the size that 11 bits make, in dW_up and dx: operands may be so short, unless y says that they are not. */
START_TEST(what_is_free_of_a_rounding_speaks_against_it)
{
    for (int shown = 0; shown < 2; shown++) {
        honest k, rough;
        make_honest(&k, f32_case, "f32", 5);
        make_honest(&rough, f32_case, "tf32", 5);
        memcpy(values_of(&k, "bwd.w_up"), values_of(&rough, "bwd.w_up"),
               elements_of(tensor_of(&k, "bwd.w_up")) * sizeof(double));
        keep_only(&k, "bwd.w_up", shown ? "fwd.y" : "bwd.w_up");
        et_verdict v = judge_by(&k, explained);
        ck_assert_int_eq(v.outcome, ET_MISMATCH);
        ck_assert_int_eq(explanation(&v, "operands-tf32") != NULL, !shown);
        et_verdict_free(&v);
        free_honest(&k);
        free_honest(&rough);
    }
}
END_TEST

/* Logits in bf16 are not gates in bf16, nor operands: a profile must account for the logits themselves. */
START_TEST(coarse_logits_are_named)
{
    honest k;
    make_honest(&k, f32_moe_case, "f32", 5);
    round_otherwise(&k, ET_LOGITS, 8);
    et_verdict v = judge_by(&k, explained);
    ck_assert_int_eq(v.outcome, ET_MISMATCH);
    expect_explained(&v, "logits-bf16", "everywhere");
    ck_assert_ptr_null(explanation(&v, "gates-bf16"));
    ck_assert_ptr_null(explanation(&v, "operands-bf16"));
    et_verdict_free(&v);
    free_honest(&k);
}
END_TEST

/* Sums of 8 bits fit any small mistake in one tensor, unless they are asked to look like such sums. */
START_TEST(few_bits_of_sums_are_no_excuse)
{
    const char *const tensors[] = {"fwd.y", "bwd.w_up", "bwd.x"};
    const char *profile = _i < 3 ? "f32" : "bf16", *name = tensors[_i % 3];
    honest k;
    make_honest(&k, f32_moe_case, profile, 5);
    double *values = values_of(&k, name);
    size_t count = elements_of(tensor_of(&k, name));
    et_stream noise = et_stream_open(9, "mistake");
    for (size_t e = 0; e < count; e++) {
        if (_i % 3 == 2) /* everywhere */
            values[e] *= 1 + 0.02 * et_normal(noise, e);
        else if (e % 24 == 3) /* one column */
            values[e] *= _i < 3 ? 1.01 : 1.2;
        if (_i >= 3) values[e] = et_round_to_dtype(values[e], ET_BF16);
    }
    et_verdict v = judge_by(&k, explained);
    ck_assert_int_eq(v.outcome, ET_MISMATCH);
    ck_assert_msg(v.explanation_count == 0, "%s: explained by %s", name, v.explanations[0].name);
    et_verdict_free(&v);
    free_honest(&k);
}
END_TEST

/* ---- every kind of layer ---- */

/* y = 0 fails in all of them; each hypothesis is tried wherever it has a place. Huge inputs leave gates and
 * anchors that are 0 or 1 to the last bit. */
static const char *const layers[] = {
    "'rule':'et','gate':'sigmoid','capacity_factor':0.5,'ema_updates':10",
    "'rule':'et','mode':'eval','gate':'relu','ema_updates':10",
    "'rule':'tc','top_k':2,'gate':'softmax','norm':'sum','balance':'aux','z_loss_coef':0.01",
    "'rule':'tc','top_k':1,'gate':'softmax_anchor','balance':'lossfree'",
    "'rule':'ec','gate':'softmax_anchor_out','norm':'fanout','pool_tokens':16",
    "'rule':'ec','gate':'softmax_tokens','shared':false",
};
static const char *const sources[] = {"normal", "huge"};
enum { LAYERS = sizeof layers / sizeof *layers, SOURCES = sizeof sources / sizeof *sources };

/* What the golden holds, so that two moments can be compared. */
static uint64_t sum_of_golden(const honest *k)
{
    et_tensor_out all[ET_MAX_STEP_TENSORS];
    size_t have = et_step_tensors(&k->golden, false, all);
    uint64_t sum = 0;
    for (size_t i = 0; i < have; i++) {
        const unsigned char *bytes = all[i].values;
        size_t size = elements_of(&all[i]) * bytes_per_element(all[i].source);
        for (size_t b = 0; b < size; b++) sum = (sum ^ bytes[b]) * 0x100000001b3;
    }
    return sum;
}

/* Every hypothesis that applies is tried, and none of their hooks may write what is not its own: mutants share
 * with the golden what they do not compute anew. */
START_TEST(every_layer_can_be_asked_about)
{
    char json[512];
    honest k;
    snprintf(
        json, sizeof json,
        "{'name':'asked','tokens':32,'d_model':8,'d_expert':12,'experts':4,'precision':'bf16',%s,"
        "'input':{'source':'%s','seed':3}}",
        layers[_i % LAYERS], sources[_i / LAYERS]);
    make_honest(&k, json, "bf16", 5);
    scale_tensor(&k, "fwd.y", 0);
    uint64_t before = sum_of_golden(&k);
    et_verdict v = judge_by(&k, explained);
    ck_assert_int_eq(v.outcome, ET_MISMATCH);
    ck_assert(v.explanation_count > 0 || v.residual[0]);
    ck_assert_uint_eq(sum_of_golden(&k), before);
    et_verdict_free(&v);
    keep_only(&k, "bwd.x", "bwd.x"); /* no hypothesis is given up before its backward pass */
    scale_tensor(&k, "bwd.x", 0);
    v = judge_by(&k, explained);
    ck_assert_int_eq(v.outcome, ET_MISMATCH);
    ck_assert_uint_eq(sum_of_golden(&k), before);
    et_verdict_free(&v);
    free_honest(&k);
}
END_TEST

/* ---- a mutant's arrays are its own: these read past the reference's (ASan, Valgrind) ---- */

/* Only y is shown, and its routing has more slots than the golden's: what it was computed by must be made out from
 * y alone. The backward pass of so many slots is nobody's, but their error bars ask for it. */
START_TEST(a_routing_of_more_slots_is_explained)
{
    honest k;
    et_step more;
    et_case c;
    char json[512];
    static const char *const form = SMALL_MOE("'name':'more','rule':'tc','top_k':%d");
    snprintf(json, sizeof json, form, 2);
    make_honest(&k, json, "bf16", 5);
    snprintf(json, sizeof json, form, 3);
    ck_assert_int_eq(parse_quoted(&c, json, NULL), ET_OK);
    draw_case(&more, &c); /* whose decisive tokens are others */
    memcpy(more.in.x, k.golden.in.x, c.tokens * c.d_model * sizeof *more.in.x);
    ck_assert_int_eq(et_step_run(&more, ET_PLAIN, NULL, NULL, NULL), ET_OK);
    keep_only(&k, "fwd.y", "fwd.y");
    double *y = values_of(&k, "fwd.y");
    for (size_t i = 0; i < k.golden.c.tokens * k.golden.c.d_model; i++)
        y[i] = et_round_to_dtype(more.fwd.y[i], ET_BF16);
    et_verdict v = judge_by(&k, explained);
    ck_assert_int_eq(v.outcome, ET_MISMATCH);
    expect_explained(&v, "k-plus-one", "everywhere");
    et_verdict_free(&v);
    y[7] +=
        1; /* and one element wrong beside it: no name fits, and all of them are tried to the end */
    v = judge_by(&k, explained);
    ck_assert_int_eq(v.outcome, ET_MISMATCH);
    ck_assert_ptr_null(explanation(&v, "k-plus-one"));
    ck_assert_str_ne(v.residual, "");
    et_verdict_free(&v);
    et_step_free(&more);
    free_honest(&k);
}
END_TEST

static void transpose(size_t count, size_t d, et_real *W)
{
    for (size_t i = 0; i < count; i++, W += d * d)
        for (size_t r = 0; r < d; r++)
            for (size_t c = 0; c < r; c++) {
                et_real kept = W[r * d + c];
                W[r * d + c] = W[c * d + r];
                W[c * d + r] = kept;
            }
}

/* h = d beside a shared expert of another width, and the other way round: only square weights can be read
 * transposed, whichever expert's they are. */
START_TEST(square_experts_beside_others)
{
    static const char *const widths[] = {"'d_expert':24,'shared_d_expert':3",
                                         "'d_expert':3,'shared_d_expert':24",
                                         "'d_expert':24,'shared_d_expert':200"};
    char json[512];
    honest k;
    et_step turned;
    et_case c;
    snprintf(json, sizeof json,
             "{'name':'square','rule':'tc','experts':4,'top_k':2,'tokens':96,'d_model':24,%s,"
             "'precision':'bf16'," DRAWN "}",
             widths[_i]);
    make_honest(&k, json, "bf16", 5);
    keep_only(&k, "fwd.y", "route.mask");
    ck_assert_int_eq(parse_quoted(&c, json, NULL), ET_OK);
    draw_case(&turned, &c);
    if (_i == 1)
        transpose(1, 24, turned.in.shared_up);
    else
        transpose(4, 24, turned.in.up);
    ck_assert_int_eq(et_step_run(&turned, ET_PLAIN, NULL, NULL, NULL), ET_OK);
    for (size_t i = 0; i < c.tokens * c.d_model; i++)
        values_of(&k, "fwd.y")[i] = et_round_to_dtype(turned.fwd.y[i], ET_BF16);
    et_verdict v = judge_by(&k, explained);
    ck_assert_int_eq(v.outcome, ET_MISMATCH);
    expect_explained(&v, "up-transposed", "everywhere; or in the backward pass, too");
    et_verdict_free(&v);
    et_step_free(&turned);
    free_honest(&k);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("explanations");
    TCase *named = add_case(suite, "named"), *unnamed = add_case(suite, "unnamed");
    TCase *all = add_case(suite, "every layer");
    tcase_add_test(named, a_dense_layer_is_explained);
    tcase_add_test(named, one_expert_is_named);
    tcase_add_test(named, two_mistakes_are_told_apart);
    tcase_add_test(named, a_state_that_moves_in_evaluation_is_explained);
    tcase_add_test(named, coarse_logits_are_named);
    tcase_add_test(named, one_of_two_mistakes_is_no_explanation_of_both);
    tcase_add_test(named, an_explained_state_does_not_explain_the_rest);
    tcase_add_test(named, a_number_alone_is_scaled_by_round_factors);
    tcase_add_test(named, rows_are_told_apart);
    tcase_add_test(named, a_small_part_is_not_zero);
    tcase_add_test(named, rows_of_zeros_were_not_computed);
    tcase_add_test(named, many_factors_are_not_one);
    tcase_add_test(named, rows_that_are_right_in_part_are_not_stale);
    tcase_add_test(named, a_row_by_another_operand_is_not_stale);
    tcase_add_test(named, a_row_of_a_strange_size_is_not_stale);
    tcase_add_test(named, chance_is_not_few_bits_of_sums);
    tcase_add_loop_test(unnamed, few_bits_of_sums_are_no_excuse, 0, 6);
    tcase_add_test(unnamed, a_pass_needs_no_explanation);
    tcase_add_test(unnamed, what_has_no_name_is_described);
    tcase_add_test(unnamed, a_tensor_that_passes_speaks_against_a_name);
    tcase_add_test(unnamed, what_is_free_of_a_rounding_speaks_against_it);
    tcase_add_test(all, a_routing_of_more_slots_is_explained);
    tcase_add_loop_test(all, square_experts_beside_others, 0, 3);
    tcase_add_loop_test(all, every_layer_can_be_asked_about, 0, LAYERS * SOURCES);
    return run_suite(suite);
}

#else

int main(void)
{
    return EXIT_SUCCESS; /* the float build does not judge */
}

#endif
