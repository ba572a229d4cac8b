/* test_gradients.c: the backward pass against differences of the forward pass, and its exact zeros.
 *
 * The derivative of L = <y, dy> + alpha aux + zeta z by a parameter w, with the routing frozen, is
 *
 *     L'(w) = (8 (L(w+h) - L(w-h)) - (L(w+2h) - L(w-2h))) / 12h + h^4 L'''''/30 + ...
 *
 * Two errors oppose each other: the formula's, h^4, and that of L, 2^-53 |L| or so, divided by h.
 * h = 2^-13 puts both below 1e-10 of a gradient; 1e-9 is asked for. Plain central differences, with
 * an error of h^2, could not get below 1e-7.
 *
 * The formula holds where L is smooth within 2h of w. relu(H)^2 is not at H = 0 (its second
 * derivative jumps), and the relu gate is not at r = 0 (its first does). So inputs are drawn again
 * until every H and every such r is further from 0 than any step can carry it; see is_smooth.
 * Frozen routing is no assumption about the steps: the assignment is given to the forward pass.
 *
 * L is put together here from the layer's own functions, apart from ref/step/step.c, whose
 * gradients are tested: which coefficient enters, and which part of a loss a micro-batch has, is
 * written down a second time. Left out: the dense layer's gradients and everything in full
 * precision (test_witness.c); float builds, in which L has no digits left for differences.
 */
#include "etref/routing.h"
#include "tests/check_main.h"
#include "tests/run_case.h"

#include <math.h>
#include <omp.h>
#include <stdio.h>

#define COUNT(array) (sizeof(array) / sizeof(array)[0])

static const double h = 0x1p-13;

/* ---- the objective ---- */

/* A slot, or, under token choice with a capacity, a choice that was dropped. */
static bool is_chosen(const et_step *s, size_t place)
{
    const et_case *c = &s->c;
    const int32_t *topk = s->route.topk_expert ? s->route.topk_expert + place / c->experts * c->top_k : NULL;
    bool any = s->route.mask[place] != 0;
    for (size_t j = 0; topk && j < c->top_k; j++) any = any || (size_t)topk[j] == place % c->experts;
    return any;
}

/* F_i of the micro-batch that begins at token `first`, from the frozen assignment. */
static void frozen_fractions(const et_step *s, size_t first, et_real *F)
{
    const et_case *c = &s->c;
    size_t N = et_case_micro_tokens(c), n = c->experts;
    et_real load[16] = {0};
    for (size_t t = first; t < first + N; t++)
        for (size_t i = 0; i < n; i++) load[i] += is_chosen(s, t * n + i);
    et_balance_fractions(et_case_real_tokens(c), n, c->top_k, c->global_load ? s->in.load : load, F);
}

/* alpha aux + zeta z, each a mean over the micro-batches; none in evaluation. */
static double losses_at(const et_step *s, const et_moe_values *v)
{
    const et_case *c = &s->c;
    size_t N = et_case_real_tokens(c), n = c->experts;
    bool aux = c->balance == ET_BALANCE_AUX || c->balance == ET_BALANCE_AUX_ERROR;
    double sum = 0;
    for (size_t first = 0; !c->eval && first < c->tokens; first += et_case_micro_tokens(c)) {
        et_real F[16];
        frozen_fractions(s, first, F);
        if (aux)
            sum += c->balance_coef *
                   (double)et_aux_loss(NULL, c->balance, N, n, F, v->gates + first * n, 0, NULL);
        sum += c->z_loss_coef * (double)et_z_loss(NULL, N, n, v->logits + first * n, 0, NULL);
    }
    return sum / (double)c->micro_batches;
}

/* L at the inputs of `trial`, routed as s was. */
static double objective(const et_step *s, et_step *trial)
{
    et_moe layer = et_step_layer(trial);
    ck_assert(et_moe_score(&layer, trial->in.x, &trial->fwd, NULL) == ET_OK);
    double sum = losses_at(s, &trial->fwd);
    ck_assert(et_moe_forward(&layer, trial->in.x, &s->assignment, &trial->fwd, NULL) == ET_OK);
    for (size_t i = 0; i < layer.N * layer.d; i++)
        sum += (double)trial->fwd.y[i] * (double)s->in.dy[i];
    return sum;
}

/* dL/dw, w an element of trial's inputs, which is as before afterwards. */
static double difference(const et_step *s, et_step *trial, et_real *w)
{
    const double at[] = {h, -h, 2 * h, -2 * h}, weight[] = {8, -8, -1, 1};
    const et_real before = *w;
    double sum = 0;
    for (int i = 0; i < 4; i++) {
        *w = (et_real)((double)before + at[i]);
        sum += weight[i] * objective(s, trial);
    }
    *w = before;
    return sum / (12 * h);
}

/* ---- smooth inputs ---- */

static double smallest(size_t count, const et_real *values)
{
    double least = INFINITY;
    for (size_t i = 0; i < count; i++) least = fmin(least, fabs((double)values[i]));
    return least;
}

static double largest(size_t count, const et_real *values)
{
    double most = 0;
    for (size_t i = 0; i < count; i++) most = fmax(most, fabs((double)values[i]));
    return most;
}

/* A step of 2h in an element of x moves H by 2h |W_up|, one in W_up by 2h |x|; the same for r. */
static bool is_smooth(const et_step *s)
{
    const et_case *c = &s->c;
    size_t d = c->d_model, S = s->assignment.slots, n = c->experts;
    double most = largest(c->tokens * d, s->in.x), least = INFINITY;
    most = fmax(most, largest(n * d, s->in.router));
    most = fmax(most, largest(n * c->d_expert * d, s->in.up));
    if (c->activation == ET_RELU2) least = fmin(least, smallest(S * c->d_expert, s->fwd.slot_pre));
    if (c->gate == ET_GATE_RELU) least = fmin(least, smallest(c->tokens * n, s->fwd.logits));
    if (c->shared) {
        most = fmax(most, largest(c->shared_d_expert * d, s->in.shared_up));
        if (c->activation == ET_RELU2)
            least = fmin(least, smallest(c->tokens * c->shared_d_expert, s->fwd.shared_pre));
    }
    return least > 2 * h * most;
}

/* The step of a case, with the first seed that makes it smooth. */
static void run_smooth(et_step *s, const char *json)
{
    et_case c;
    et_error error;
    ck_assert_msg(parse_quoted(&c, json, &error) == ET_OK, "%s", error.text);
    for (int tries = 0; tries < 200; tries++, c.input.seed++) {
        run_case(s, &c);
        if (is_smooth(s)) return;
        et_step_free(s);
    }
    ck_abort_msg("%s: no seed gives smooth inputs", json);
}

/* ---- gradients against differences ---- */

static double worst; /* of all that a test compared: error relative to the tensor's largest */

/* One parameter: `w` in trial's inputs, `g` the gradient that the step computed. */
static void check_parameter(const et_step *s, et_step *trial, const char *name, size_t count,
                            et_real *w, const et_real *g)
{
    double most = largest(count, g);
    ck_assert_msg(most > 0, "%s: the gradient of %s is zero", s->c.name, name);
    for (size_t i = 0; i < count; i++) {
        double want = difference(s, trial, &w[i]), error = fabs((double)g[i] - want) / most;
        ck_assert_msg(error < 1e-9,
                      "%s: d%s[%zu] = %.12g, differences give %.12g: %.2g of the largest",
                      s->c.name, name, i, (double)g[i], want, error);
        worst = fmax(worst, error);
    }
}

static void check_gradients(const char *json)
{
    et_step s, trial;
    run_smooth(&s, json);
    run_case(&trial, &s.c);
    const et_case *c = &s.c;
    size_t d = c->d_model, nhd = c->experts * c->d_expert * d, hsd = c->shared_d_expert * d;
    check_parameter(&s, &trial, "x", c->tokens * d, trial.in.x, s.bwd.x);
    check_parameter(&s, &trial, "w_router", c->experts * d, trial.in.router, s.bwd.router);
    check_parameter(&s, &trial, "w_up", nhd, trial.in.up, s.bwd.up);
    check_parameter(&s, &trial, "w_down", nhd, trial.in.down, s.bwd.down);
    const struct {
        const char *name;
        size_t count;
        et_real *w, *g;
    } biases[] = {
        {"b_up", c->experts * c->d_expert, trial.in.b_up, s.bwd.b_up},
        {"b_gate", c->experts * c->d_expert, trial.in.b_gate, s.bwd.b_gate},
        {"b_down", c->experts * d, trial.in.b_down, s.bwd.b_down},
        {"shared_b_up", c->shared_d_expert, trial.in.shared_b_up, s.bwd.shared_b_up},
        {"shared_b_gate", c->shared_d_expert, trial.in.shared_b_gate, s.bwd.shared_b_gate},
        {"shared_b_down", d, trial.in.shared_b_down, s.bwd.shared_b_down},
    };
    for (size_t i = 0; i < COUNT(biases); i++)
        if (biases[i].w)
            check_parameter(&s, &trial, biases[i].name, biases[i].count, biases[i].w, biases[i].g);
    if (s.in.gating) check_parameter(&s, &trial, "w_gate", nhd, trial.in.gating, s.bwd.gating);
    if (s.in.shared_gating)
        check_parameter(&s, &trial, "shared_gate", hsd, trial.in.shared_gating, s.bwd.shared_gating);
    if (c->shared) {
        check_parameter(&s, &trial, "shared_up", hsd, trial.in.shared_up, s.bwd.shared_up);
        check_parameter(&s, &trial, "shared_down", hsd, trial.in.shared_down, s.bwd.shared_down);
    }
    et_step_free(&trial);
    et_step_free(&s);
}

/* Two micro-batches of 6 tokens, 4 experts, all widths different. */
#define SIZES "'tokens':12,'micro_batches':2,'d_model':5,'d_expert':3,'experts':4"
#define INPUT "'input':{'source':'normal','seed':1}"

static const char *const rules[] = {
    "'rule':'tc','top_k':2,'balance_coef':0.5,'balance':",
    "'rule':'ec','granularity':2",
    "'rule':'et','granularity':2,'ema_updates':5,'ema_decay':0.5,'capacity_factor':0.5",
};
static const char *const gates[] = {
    "sigmoid", "relu", "softmax", "softmax_anchor", "softmax_anchor_out", "softmax_tokens"};
static const char *const norms[] = {"none", "fanout", "sum"};

static void check_switches(size_t rule, size_t gate, size_t norm, bool shared)
{
    char json[1024];
    const char *balance = rule > 0 ? "" : shared ? "'aux'" : "'aux_error'";
    snprintf(json, sizeof json,
             "{'name':'gradients-%zu-%s-%s-%d'," SIZES ",%s%s,'gate':'%s','norm':'%s',%s,"
             "'z_loss_coef':0.3," INPUT "}",
             rule, gates[gate], norms[norm], shared, rules[rule], balance, gates[gate], norms[norm],
             shared ? "'shared':true,'shared_d_expert':2" : "'shared':false");
    check_gradients(json);
}

START_TEST(gradients_are_derivatives_under_every_rule_gate_and_norm)
{
    worst = 0;
    for (size_t rule = 0; rule < COUNT(rules); rule++)
        for (size_t gate = 0; gate < COUNT(gates); gate++)
            for (size_t norm = 0; norm < COUNT(norms); norm++) {
                if (rule == 0 && strcmp(gates[gate], "softmax_tokens") == 0) continue;
                check_switches(rule, gate, norm, true);
                check_switches(rule, gate, norm, false);
            }
    printf("gradients: largest difference %.2g of a tensor's largest element\n", worst);
}
END_TEST

START_TEST(gradients_are_derivatives_in_every_kind_of_step)
{
    static const char *const steps[] = {
        "'rule':'et','mode':'eval','granularity':2,'ema_updates':1,'z_loss_coef':0.3",
        "'rule':'ec','mode':'eval','granularity':2,'ema_updates':1,'gate':'softmax_anchor'",
        "'rule':'et','step':1,'warmup_steps':2,'granularity':2,'gate':'softmax_anchor_out'",
        "'rule':'ec','granularity':2,'pool_tokens':3,'gate':'softmax_tokens'",
        "'rule':'tc','top_k':1,'mode':'eval','balance':'aux','z_loss_coef':0.3",
        "'rule':'tc','top_k':3,'balance':'aux','balance_coef':2.0,'global_load':true",
        "'rule':'tc','top_k':3,'balance':'aux_error','balance_coef':2.0,'global_load':true",
        "'rule':'tc','top_k':2,'balance':'lossfree','norm':'sum'",
        "'rule':'tc','top_k':4,'balance':'proportional','gate':'softmax'",
        "'rule':'tc','top_k':2,'gate':'softmax','norm':'sum','activation':'swiglu'",
        "'rule':'ec','granularity':2,'activation':'gelu'",
        "'rule':'tc','top_k':2,'gate':'sigmoid','norm':'sum','routed_scale':2.5",
        "'rule':'ec','granularity':2,'norm':'fanout','routed_scale':0.3",
        "'rule':'et','granularity':2,'ema_updates':1,'activation':'gelu_tanh'",
        "'rule':'tc','top_k':2,'weigh':'input'",
        "'rule':'tc','top_k':2,'expert_bias':true,'norm':'sum'",
        "'rule':'tc','top_k':2,'padding':2,'balance':'aux','balance_coef':0.5,'z_loss_coef':0.3",
        "'rule':'ec','granularity':2,'expert_bias':true,'activation':'swiglu','weigh':'input'",
        "'rule':'tc','top_k':1,'weigh':'input','activation':'swiglu','norm':'none'",
        "'rule':'ec','granularity':2,'weigh':'input','gate':'softmax_anchor','norm':'fanout'",
        "'rule':'et','granularity':2,'ema_updates':1,'weigh':'input','norm':'sum','gate':'softmax'",
        "'rule':'tc','top_k':2,'capacity_factor':0.7,'balance':'aux','gate':'softmax','norm':'sum'",
        ("'rule':'tc','top_k':3,'norm':'fanout','capacity_factor':0.5,'drop':'score','balance':"
         "'aux_error'"),
        ("'rule':'tc','top_k':2,'groups':2,'groups_kept':1,'group_score':'top2','norm':'sum',"
         "'routed_scale':2.5"),
        "'rule':'ec','granularity':2,'padding':2,'norm':'sum','z_loss_coef':0.3",
        "'rule':'et','granularity':2,'ema_updates':1,'padding':3,'capacity_factor':0.5",
        "'rule':'tc','top_k':2,'padding':2,'capacity_factor':0.7,'balance':'aux','norm':'sum'",
        ("'rule':'tc','top_k':2,'select':'gate','balance':'lossfree','norm':'sum',"
         "'routed_scale':2.5"),
    };
    for (size_t i = 0; i < COUNT(steps); i++) {
        char json[1024];
        snprintf(json, sizeof json, "{'name':'gradients-%zu'," SIZES ",%s," INPUT "}", i, steps[i]);
        check_gradients(json);
    }
}
END_TEST

/* ---- exact zeros: where the routing lets nothing through ---- */

static void run_json(et_step *s, const char *json)
{
    et_case c;
    et_error error;
    ck_assert_msg(parse_quoted(&c, json, &error) == ET_OK, "%s", error.text);
    run_case(s, &c);
}

static bool all_zero(size_t count, const et_real *values)
{
    return largest(count, values) == 0;
}

START_TEST(an_expert_without_tokens_learns_nothing)
{
    et_step s;
    size_t empty = 0;
    run_json(&s, "{'name':'empty','rule':'tc','tokens':10,'d_model':4,'d_expert':3,'experts':6,"
                 "'input':{'source':'skewed'}}");
    size_t d = s.c.d_model, size = d * s.c.d_expert;
    for (size_t i = 0; i < s.c.experts; i++) {
        if (s.assignment.load[i] > 0) continue;
        empty++;
        ck_assert(all_zero(size, s.bwd.up + i * size));
        ck_assert(all_zero(size, s.bwd.down + i * size));
        ck_assert(all_zero(d, s.bwd.router + i * d));
    }
    ck_assert_uint_gt(empty, 0);
    et_step_free(&s);
}
END_TEST

/* sigmoid and relu: each logit for itself. Evaluation has no losses, whatever their coefficients.
 */
static void check_off_slots(const char *json)
{
    et_step s;
    size_t on = 0, off = 0;
    run_json(&s, json);
    for (size_t i = 0; i < s.c.tokens * s.c.experts; i++) {
        bool zero = s.bwd.logits[i] == 0;
        if (s.route.mask[i])
            on += !zero;
        else
            off++;
        ck_assert_msg(s.route.mask[i] || zero, "%s: logit %zu", s.c.name, i);
    }
    ck_assert(on > 0 && off > 0);
    et_step_free(&s);
}

START_TEST(only_the_logits_of_slots_have_gradients)
{
    check_off_slots("{'name':'ec-sigmoid','rule':'ec'," SIZES "," INPUT "}");
    check_off_slots("{'name':'ec-relu','rule':'ec','gate':'relu'," SIZES "," INPUT "}");
    check_off_slots("{'name':'et-sum','norm':'sum','granularity':2,'capacity_factor':0.5," SIZES
                    "," INPUT "}");
    check_off_slots("{'name':'tc-eval','rule':'tc','top_k':2,'mode':'eval','balance':'aux',"
                    "'z_loss_coef':0.5," SIZES "," INPUT "}");
}
END_TEST

/* Losses see every expert's gate and logit, chosen or not. */
static void check_reaches_all(const char *json)
{
    et_step s;
    run_json(&s, json);
    ck_assert_msg(smallest(s.c.tokens * s.c.experts, s.bwd.logits) > 0, "%s", s.c.name);
    et_step_free(&s);
}

START_TEST(losses_reach_every_logit)
{
    check_reaches_all("{'name':'aux','rule':'tc','balance':'aux','tokens':40,'d_model':5,"
                      "'d_expert':3,'experts':3," INPUT "}");
    check_reaches_all("{'name':'z','rule':'ec','z_loss_coef':0.5," SIZES "," INPUT "}");
}
END_TEST

/* The first token without any expert. */
static size_t idle_token(const et_step *s)
{
    size_t t = 0;
    while (t < s->c.tokens && s->assignment.fanout[t] > 0) t++;
    ck_assert_uint_lt(t, s->c.tokens);
    return t;
}

/* What a token without an expert gets: an output, a gradient of its logits, and one of itself. */
static void check_idle(const char *switches, bool y, bool dr, bool dx)
{
    et_step s;
    char json[1024];
    snprintf(json, sizeof json, "{'name':'idle','rule':'ec',%s," SIZES "," INPUT "}", switches);
    run_json(&s, json);
    size_t t = idle_token(&s), d = s.c.d_model, n = s.c.experts;
    ck_assert_msg(all_zero(d, s.fwd.y + t * d) != y, "y: %s", switches);
    ck_assert_msg(all_zero(n, s.bwd.logits + t * n) != dr, "dr: %s", switches);
    ck_assert_msg(all_zero(d, s.bwd.x + t * d) != dx, "dx: %s", switches);
    et_step_free(&s);
}

START_TEST(a_token_without_an_expert)
{
    check_idle("'shared':false", false, false, false);
    check_idle("'shared':false,'norm':'fanout'", false, false, false);
    check_idle("'shared':false,'norm':'sum','gate':'softmax'", false, false, false);
    check_idle("'shared':false,'gate':'softmax_anchor'", false, false, false);
    /* its share of a softmax over tokens takes from those that have one */
    check_idle("'shared':false,'gate':'softmax_tokens'", false, true, true);
    /* the shared expert takes every token; its weight has a gradient only as the anchor's share */
    check_idle("'shared':true", true, false, true);
    check_idle("'shared':true,'gate':'softmax'", true, false, true);
    check_idle("'shared':true,'gate':'softmax_anchor_out'", true, false, true);
    check_idle("'shared':true,'gate':'softmax_anchor'", true, true, true);
    check_idle("'shared':true,'gate':'softmax_anchor','norm':'fanout'", true, true, true);
}
END_TEST

START_TEST(a_single_normalised_expert_has_weight_one_whatever_its_gate)
{
    et_step s;
    run_json(&s, "{'name':'single','rule':'tc','norm':'sum'," SIZES "," INPUT "}");
    for (size_t j = 0; j < s.assignment.slots; j++) ck_assert(s.fwd.slot_weight[j] == 1);
    ck_assert(all_zero(s.c.tokens * s.c.experts, s.bwd.logits));
    ck_assert(all_zero(s.c.experts * s.c.d_model, s.bwd.router));
    et_step_free(&s);
}
END_TEST

START_TEST(a_closed_relu_gate_lets_nothing_through)
{
    et_step s;
    size_t closed = 0, wanted = 0;
    run_json(&s, "{'name':'closed','rule':'tc','top_k':3,'gate':'relu'," SIZES "," INPUT "}");
    size_t d = s.c.d_model, width = s.c.d_expert;
    for (size_t j = 0; j < s.assignment.slots; j++) {
        size_t pair = (size_t)s.assignment.slot_token[j] * s.c.experts;
        pair += (size_t)s.assignment.slot_expert[j];
        if (s.fwd.logits[pair] > 0) continue;
        closed++;
        ck_assert(s.fwd.slot_weight[j] == 0 && s.bwd.logits[pair] == 0);
        ck_assert(all_zero(d, s.bwd.slot_out + j * d));
        ck_assert(all_zero(width, s.bwd.slot_pre + j * width));
        wanted += s.bwd.slot_weight[j] != 0; /* it would open if it could */
    }
    ck_assert(closed > 0 && wanted > 0);
    et_step_free(&s);
}
END_TEST

/* Sigmoids of -1000 are 0 in double, and their quotients 0/0. moe.h promises 0, not NaN. */
START_TEST(normalised_gates_that_underflow_give_zero)
{
    et_step s;
    size_t vanished = 0;
    run_json(&s, "{'name':'vanished','rule':'ec','norm':'sum','granularity':4," SIZES
                 ",'input':{'source':'huge'}}");
    for (size_t j = 0; j < s.assignment.slots; j++) {
        ck_assert(s.fwd.slot_weight[j] >= 0 && s.fwd.slot_weight[j] <= 1);
        vanished += s.fwd.slot_weight[j] == 0;
    }
    ck_assert_uint_gt(vanished, 0);
    for (size_t i = 0; i < s.c.tokens * s.c.experts; i++) ck_assert(isfinite(s.bwd.logits[i]));
    et_step_free(&s);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("gradients");
    omp_set_num_threads(1); /* the layers are so small that threads would only cost */
    TCase *differences = add_case(suite, "differences");
    if (sizeof(et_real) == sizeof(double)) {
        tcase_add_test(differences, gradients_are_derivatives_under_every_rule_gate_and_norm);
        tcase_add_test(differences, gradients_are_derivatives_in_every_kind_of_step);
    }
    TCase *zeros = add_case(suite, "zeros");
    tcase_add_test(zeros, an_expert_without_tokens_learns_nothing);
    tcase_add_test(zeros, only_the_logits_of_slots_have_gradients);
    tcase_add_test(zeros, losses_reach_every_logit);
    tcase_add_test(zeros, a_token_without_an_expert);
    tcase_add_test(zeros, a_single_normalised_expert_has_weight_one_whatever_its_gate);
    tcase_add_test(zeros, a_closed_relu_gate_lets_nothing_through);
    tcase_add_test(zeros, normalised_gates_that_underflow_give_zero);
    return run_suite(suite);
}
