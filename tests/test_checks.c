/* test_checks.c: structs that a caller fills are checked where they enter.
 *
 * Each row spoils one thing of a layer that was right, calls every function that takes the struct,
 * and wants ET_EINVAL, a message that names the field, and outputs as they were. The arrays that a
 * spoilt size would reach past are as large as the right ones and no larger, so that a function that
 * goes on in spite of it is seen by the sanitizers as well.
 */
#include "etref/etref.h"
#include "tools/leakage-study/audit.h"
#include "tests/check_main.h"
#include "tests/run_case.h"

#include <math.h>

#define COUNT(array) (sizeof(array) / sizeof(array)[0])

typedef struct trial {
    et_step s;
    et_moe moe;
    et_assignment a;
    et_moe_values v;
    et_moe_grads g;
    int32_t first_token;
} trial;

static void make_trial(trial *t, const char *gate)
{
    char json[600];
    et_case c;
    et_error error;
    snprintf(
        json, sizeof json,
        "{'name': 'check', 'rule': 'ec', 'tokens': 12, 'd_model': 4, 'd_expert': 3, 'experts': "
        "4, 'gate': '%s', 'micro_batches': 2, 'input': {'source': 'normal'}}",
        gate);
    ck_assert_msg(parse_quoted(&c, json, &error) == ET_OK, "%s", error.text);
    run_case(&t->s, &c);
    t->moe = et_step_layer(&t->s);
    t->a = t->s.assignment;
    t->v = t->s.fwd;
    t->g = t->s.bwd;
    t->first_token = t->a.slot_token[0];
}

/* ---- the layer ---- */

static void no_tokens_at_once(trial *t)
{
    t->moe.gate_tokens = 0;
}

static void five_at_once(trial *t)
{
    t->moe.gate_tokens = 5;
}

static void more_than_all_at_once(trial *t)
{
    t->moe.gate_tokens = 24;
}

static void no_such_gate(trial *t)
{
    t->moe.gate = (et_gate)17;
}

static void no_such_norm(trial *t)
{
    t->moe.norm = (et_norm)3;
}

static void no_such_engine(trial *t)
{
    t->moe.engine = (et_engine)2;
}

static void no_router(trial *t)
{
    t->moe.router = NULL;
}

static void no_weights(trial *t)
{
    t->moe.down = NULL;
}

static void no_shared_weights(trial *t)
{
    t->moe.shared_up = NULL;
}

static void a_width_beyond_memory(trial *t)
{
    t->moe.h = SIZE_MAX / 8;
}

static void an_anchor_without_gate(trial *t)
{
    t->moe.anchor_weighs_shared = true;
}

static void an_infinite_constant(trial *t)
{
    t->moe.shared_constant = (et_real)INFINITY;
}

static void more_tokens_than_assigned(trial *t)
{
    t->moe.N = 24;
    t->moe.gate_tokens = 12;
}

static void fewer_experts_than_assigned(trial *t)
{
    t->moe.n = 3;
}

static void more_slots_than_offsets(trial *t)
{
    t->a.slots++;
}

static void a_token_that_is_not_there(trial *t)
{
    t->a.slot_token[0] = 12;
}

static void a_token_below_zero(trial *t)
{
    t->a.slot_token[0] = -1;
}

static void no_loads(trial *t)
{
    t->a.load = NULL;
}

static void no_logits(trial *t)
{
    t->v.logits = NULL;
}

static void no_outputs(trial *t)
{
    t->v.slot_out = NULL;
}

static void no_gradient(trial *t)
{
    t->g.slot_pre = NULL;
}

/* From which phase on the spoilt thing matters. */
enum from { SCORING, ROUTED, BACKWARD };

typedef struct row {
    void (*spoil)(trial *t);
    enum from from;
    const char *says;
} row;

static const row any_gate[] = {
    {no_such_gate, SCORING, "gate = 17"},
    {no_such_norm, SCORING, "norm = 3"},
    {no_such_engine, SCORING, "engine = 2"},
    {no_router, SCORING, "router is NULL"},
    {no_weights, SCORING, "down is NULL"},
    {no_shared_weights, SCORING, "shared_up is NULL"},
    {a_width_beyond_memory, SCORING, "cannot be addressed"},
    {an_infinite_constant, SCORING, "shared_constant"},
    {no_logits, SCORING, "logits is NULL"},
    {more_tokens_than_assigned, ROUTED, "12 tokens and 4 experts, where the layer has 24 and 4"},
    {fewer_experts_than_assigned, ROUTED, "where the layer has 12 and 3"},
    {more_slots_than_offsets, ROUTED, "expert_offsets run from 0 to"},
    {a_token_that_is_not_there, ROUTED, "ascending tokens below 12"},
    {a_token_below_zero, ROUTED, "ascending tokens below 12"},
    {no_loads, ROUTED, "load is NULL"},
    {no_outputs, ROUTED, "slot_out is NULL"},
    {no_gradient, BACKWARD, "slot_pre is NULL"},
};
static const row without_anchor[] = {{an_anchor_without_gate, SCORING, "anchor_weighs_shared"}};
static const row over_tokens[] = {{no_tokens_at_once, SCORING, "gate_tokens = 0"},
                                  {five_at_once, SCORING, "gate_tokens = 5"},
                                  {more_than_all_at_once, SCORING, "gate_tokens = 24"}};

enum { PHASES = 9 };

static const enum from phase_from[PHASES] = {SCORING,  ROUTED,   ROUTED,   ROUTED,  ROUTED,
                                             BACKWARD, BACKWARD, BACKWARD, BACKWARD};

static et_status call(trial *t, int phase, et_error *error)
{
    const et_moe *moe = &t->moe;
    const et_step_inputs *in = &t->s.in;
    switch (phase) {
    case 0: return et_moe_score(moe, in->x, &t->v, error);
    case 1: return et_moe_weigh(moe, &t->a, &t->v, error);
    case 2: return et_moe_experts(moe, in->x, &t->a, &t->v, error);
    case 3: return et_moe_combine(moe, &t->a, &t->v, error);
    case 4: return et_moe_forward(moe, in->x, &t->a, &t->v, error);
    case 5: return et_moe_combine_backward(moe, in->dy, &t->a, &t->v, &t->g, error);
    case 6: return et_moe_experts_backward(moe, in->x, &t->a, &t->v, &t->g, error);
    case 7: return et_moe_score_backward(moe, in->x, &t->a, &t->v, &t->g, error);
    default: return et_moe_backward(moe, in->x, in->dy, &t->a, &t->v, &t->g, error);
    }
}

/* The sum of everything that the functions write, bit by bit. */
static uint64_t sum_of(const et_step *s)
{
    et_tensor_out tensors[ET_MAX_STEP_TENSORS];
    size_t count = et_step_tensors(s, false, tensors);
    uint64_t sum = 0;
    for (size_t i = 0; i < count; i++) {
        if (strncmp(tensors[i].name, "fwd.", 4) != 0 && strncmp(tensors[i].name, "bwd.", 4) != 0)
            continue;
        size_t bytes = sizeof(et_real);
        for (size_t k = 0; k < tensors[i].rank; k++) bytes *= tensors[i].shape[k];
        for (size_t k = 0; k < bytes; k++)
            sum = sum * 31 + ((const unsigned char *)tensors[i].values)[k];
    }
    return sum;
}

static void expect_refusals(const row *rows, size_t count, const char *gate)
{
    for (size_t r = 0; r < count; r++)
        for (int phase = 0; phase < PHASES; phase++) {
            trial t;
            et_error error = {""};
            if (phase_from[phase] < rows[r].from) continue;
            make_trial(&t, gate);
            uint64_t before = sum_of(&t.s);
            rows[r].spoil(&t);
            et_status status = call(&t, phase, &error);
            ck_assert_msg(status == ET_EINVAL && strstr(error.text, rows[r].says) != NULL,
                          "%s, phase %d, \"%s\": status %d, %s", gate, phase, rows[r].says,
                          (int)status, error.text);
            ck_assert_msg(sum_of(&t.s) == before, "phase %d wrote in spite of %s", phase,
                          rows[r].says);
            t.a.slot_token[0] = t.first_token;
            et_step_free(&t.s);
        }
}

START_TEST(a_layer_is_checked)
{
    expect_refusals(any_gate, COUNT(any_gate), "sigmoid");
    expect_refusals(any_gate, COUNT(any_gate), "softmax_anchor");
    expect_refusals(without_anchor, COUNT(without_anchor), "relu");
    expect_refusals(over_tokens, COUNT(over_tokens), "softmax_tokens");
}
END_TEST

/* gate_tokens says nothing to gates that look at one token. */
START_TEST(other_gates_do_not_look_at_gate_tokens)
{
    static const char *const gates[] = {"sigmoid", "relu", "softmax", "softmax_anchor"};
    static void (*const spoil[])(trial *) = {no_tokens_at_once, five_at_once,
                                             more_than_all_at_once};
    for (size_t g = 0; g < COUNT(gates); g++)
        for (size_t i = 0; i < COUNT(spoil); i++) {
            trial t;
            et_error error = {""};
            make_trial(&t, gates[g]);
            spoil[i](&t);
            size_t bytes = 12 * 4 * sizeof(et_real);
            et_real *before = malloc(bytes);
            ck_assert_ptr_nonnull(before);
            memcpy(before, t.v.gates, bytes);
            memset(t.v.gates, 0, bytes);
            ck_assert_msg(call(&t, 0, &error) == ET_OK, "%s", error.text);
            ck_assert_int_eq(memcmp(before, t.v.gates, bytes), 0);
            ck_assert_msg(call(&t, PHASES - 1, &error) == ET_OK, "%s", error.text);
            free(before);
            et_step_free(&t.s);
        }
}
END_TEST

START_TEST(a_feed_forward_layer_is_checked)
{
    et_real x[4] = {1, 2, 3, 4}, H[4] = {77, 77, 77, 77}, A[4] = {0}, out[4] = {0},
            w[4] = {1, 0, 0, 1};
    const et_ffn bad[] = {{.engine = (et_engine)9, .d = 2, .h = 2, .up = w, .down = w},
                          {.d = 2, .h = 2, .down = w},
                          {.d = 2, .h = 2, .up = w},
                          {.d = 2, .h = SIZE_MAX / 2, .up = w, .down = w},
                          {.d = 2, .h = 2, .up = w, .down = w, .activation = (et_activation)4},
                          {.d = 2, .h = 2, .up = w, .down = w, .activation = ET_SWIGLU}};
    static const char *const says[] = {"engine = 9", "up is NULL",     "down is NULL",
                                       "addressed",  "activation = 4", "gating is NULL"};
    for (size_t i = 0; i < COUNT(bad); i++) {
        et_error error = {""};
        et_ffn_rows rows = {2, x, H, A, out, out, A, H, out, false, NULL, NULL};
        ck_assert_int_eq(et_ffn_forward(&bad[i], &rows, &error), ET_EINVAL);
        ck_assert_msg(strstr(error.text, says[i]) != NULL, "%s", error.text);
        ck_assert_int_eq(et_ffn_backward(&bad[i], &rows, w, w, NULL, &error), ET_EINVAL);
        ck_assert(H[0] == 77 && H[3] == 77);
    }
    const et_ffn fine = {.d = 2, .h = 2, .up = w, .down = w};
    et_ffn_rows rows = {SIZE_MAX / 4, x, H, A, out, out, A, H, out, false, NULL, NULL};
    ck_assert_int_eq(et_ffn_forward(&fine, &rows, NULL), ET_EINVAL);
    rows.m = 2;
    ck_assert_int_eq(et_ffn_forward(NULL, &rows, NULL), ET_EINVAL);
    const et_real **const arrays[] = {&rows.x,
                                      (const et_real **)&rows.H,
                                      (const et_real **)&rows.A,
                                      &rows.dO,
                                      (const et_real **)&rows.dA,
                                      (const et_real **)&rows.dH,
                                      (const et_real **)&rows.dx};
    for (size_t i = 0; i < COUNT(arrays); i++) {
        const et_real *kept = *arrays[i];
        *arrays[i] = NULL;
        if (i < 3) ck_assert_int_eq(et_ffn_forward(&fine, &rows, NULL), ET_EINVAL);
        ck_assert_int_eq(et_ffn_backward(&fine, &rows, w, w, NULL, NULL), ET_EINVAL);
        *arrays[i] = kept;
    }
    ck_assert_int_eq(et_ffn_forward(&fine, &rows, NULL), ET_OK);
}
END_TEST

/* ---- cases ---- */

static et_case case_of(const char *json)
{
    et_case c;
    et_error error;
    ck_assert_msg(parse_quoted(&c, json, &error) == ET_OK, "%s", error.text);
    return c;
}

static void expect_bad_case(const et_case *c, const char *says)
{
    et_error error = {""};
    et_step s;
    char *json = NULL;
    ck_assert_msg(et_case_check(c, &error) == ET_EINVAL, "not refused: %s", says);
    ck_assert_msg(strstr(error.text, says) != NULL, "no '%s' in: %s", says, error.text);
    ck_assert_int_eq(et_step_create(&s, c, 0, &error), ET_EINVAL);
    ck_assert_int_eq(et_case_print(&json, c, &error), ET_EINVAL);
}

START_TEST(a_case_put_together_in_memory_is_checked)
{
    const et_case right =
        case_of("{'name': 'mine', 'tokens': 12, 'd_model': 4, 'd_expert': 3, 'experts': 4, "
                "'capacity_factor': 0.5, 'input': {'source': 'normal'}}");
    et_case c;
    ck_assert_int_eq(et_case_check(&right, NULL), ET_OK);
#define REFUSED(member, value, says)                                                               \
    c = right;                                                                                     \
    c.member = value;                                                                              \
    expect_bad_case(&c, says)
    REFUSED(capacity_factor, (double)NAN, "capacity_factor");
    REFUSED(capacity_factor, -0.5, "capacity_factor");
    REFUSED(ema_decay, 1, "ema_decay");
    REFUSED(ema_decay, (double)NAN, "ema_decay");
    REFUSED(z_loss_coef, (double)INFINITY, "z_loss_coef");
    REFUSED(micro_batches, 0, "micro_batches");
    REFUSED(micro_batches, 5, "micro_batches");
    REFUSED(experts, 0, "experts");
    REFUSED(tokens, (size_t)1 << 40, "tokens");
    REFUSED(target_load, 13, "target_load");
    REFUSED(pool_tokens, 0, "pool_tokens");
    REFUSED(gate, (et_gate)6, "gate");
    REFUSED(rule, (et_rule)3, "rule");
    REFUSED(layer, (et_layer)8, "layer");
    REFUSED(precision, ET_I32, "precision");
    REFUSED(name[0], '/', "name");
    REFUSED(input.mean, (double)NAN, "input.mean");
    c = right;
    memset(c.name, 'a', sizeof c.name); /* without an end */
    expect_bad_case(&c, "name");
    ck_assert_int_eq(et_case_check(NULL, NULL), ET_EINVAL);
}
END_TEST

/* What does not apply may hold anything: the step does not see it. */
START_TEST(what_does_not_apply_is_not_looked_at)
{
    et_case c = {.name = "zeros",
                 .layer = ET_DENSE,
                 .tokens = 3,
                 .d_model = 2,
                 .d_expert = 2,
                 .experts = SIZE_MAX,
                 .has_capacity = true,
                 .capacity_factor = (double)NAN,
                 .shared_d_expert = SIZE_MAX,
                 .input = {.source = ET_INPUT_NORMAL, .seed = 1}};
    et_step s;
    et_error error;
    ck_assert_msg(et_step_create(&s, &c, 0, &error) == ET_OK, "%s", error.text);
    ck_assert_uint_eq(s.c.micro_batches, 1);
    ck_assert_int_eq(et_step_draw_inputs(&s, NULL), ET_OK);
    ck_assert_int_eq(et_step_run(&s, ET_PLAIN, NULL, NULL, NULL), ET_OK);
    et_step_free(&s);
}
END_TEST

START_TEST(any_capacity_gives_bounds)
{
    const double factors[] = {(double)NAN, (double)INFINITY, -(double)INFINITY, -3, 1e300};
    for (size_t i = 0; i < COUNT(factors); i++) {
        et_capacity b = et_capacity_bounds(10, factors[i], 100);
        ck_assert_uint_le(b.lower, 100);
        ck_assert_uint_le(b.upper, 100);
    }
    for (size_t i = 0; i < COUNT(factors); i++)
        ck_assert_uint_le(et_token_capacity(100, 10, 2, factors[i]), 100);
    ck_assert_uint_eq(et_token_capacity(100, 10, 2, -3), 0);
    et_capacity none = et_capacity_bounds(10, (double)NAN, 100);
    ck_assert_uint_eq(none.lower + none.upper, 0);
}
END_TEST

/* ---- steps ---- */

static const char *const two_layers[] = {
    "{'name': 'moe', 'tokens': 8, 'd_model': 4, 'd_expert': 3, 'experts': 4, "
    "'input': {'source': 'normal'}}",
    "{'name': 'dense', 'layer': 'dense', 'tokens': 8, 'd_model': 4, 'd_expert': 3, "
    "'input': {'source': 'normal'}}"};

START_TEST(a_step_is_run_once)
{
    for (int i = 0; i < 2; i++) {
        et_case c = case_of(two_layers[i]);
        et_error error;
        et_step s;
        run_case(&s, &c);
        size_t owned = s.owned_count;
        uint64_t before = sum_of(&s);
        for (int again = 0; again < 9; again++) {
            ck_assert_int_eq(et_step_run(&s, ET_PLAIN, NULL, NULL, &error), ET_EINVAL);
            ck_assert_msg(strstr(error.text, "run already") != NULL, "%s", error.text);
        }
        ck_assert_uint_eq(s.owned_count, owned);
        ck_assert(sum_of(&s) == before);
        et_step_free(&s);
    }
}
END_TEST

START_TEST(a_step_is_checked_before_it_runs)
{
    et_case c = case_of(two_layers[0]);
    et_error error;
    et_step s = {.c = c};
    ck_assert_int_eq(et_step_run(&s, ET_PLAIN, NULL, NULL, &error), ET_EINVAL);
    ck_assert_msg(strstr(error.text, "et_step_create") != NULL, "%s", error.text);
    ck_assert_int_eq(et_step_create(&s, &c, 0, NULL), ET_OK);
    ck_assert_int_eq(et_step_draw_inputs(&s, NULL), ET_OK);
    ck_assert_int_eq(et_step_run(&s, (et_engine)5, NULL, NULL, &error), ET_EINVAL);
    s.c.has_capacity = true;
    s.c.capacity_factor = (double)NAN;
    ck_assert_int_eq(et_step_run(&s, ET_PLAIN, NULL, NULL, &error), ET_EINVAL);
    ck_assert_msg(strstr(error.text, "capacity_factor") != NULL, "%s", error.text);
    s.c.has_capacity = false;
    ck_assert_int_eq(et_step_run(&s, ET_PLAIN, NULL, NULL, &error), ET_OK);
    et_step_free(&s);
}
END_TEST

/* ---- judging and auditing ---- */

START_TEST(what_is_to_be_judged_is_checked)
{
    if (sizeof(et_real) != sizeof(double)) return; /* a float build refuses everything */
    et_case c = case_of(two_layers[0]);
    et_step s;
    et_error error;
    et_verdict verdict;
    et_verify_options options = {.profile = et_profile_find("bf16")};
    draw_case(&s, &c);
    ck_assert_int_eq(et_verify(&verdict, &s, NULL, 0, &options, &error), ET_EINVAL);
    ck_assert_msg(strstr(error.text, "et_step_run") != NULL, "%s", error.text);
    ck_assert_int_eq(et_step_run(&s, ET_PLAIN, NULL, NULL, NULL), ET_OK);
    ck_assert_int_eq(et_verify(&verdict, &s, NULL, 1, &options, &error), ET_EINVAL);
    options.explain_seconds = (double)NAN;
    ck_assert_int_eq(et_verify(&verdict, &s, NULL, 0, &options, &error), ET_EINVAL);
    options.explain_seconds = 0;
    options.require_count = 1;
    ck_assert_int_eq(et_verify(&verdict, &s, NULL, 0, &options, &error), ET_EINVAL);
    et_step_free(&s);
}
END_TEST

START_TEST(an_audited_rule_is_checked)
{
    et_real r[8] = {0};
    uint8_t mask[8];
    et_error error;
    et_audit_rule rule = {.rule = ET_ET, .experts = 2, .batch = 4, .select = 1};
    ck_assert_int_eq(et_audit_route(&rule, 4, r, mask, &error), ET_EINVAL);
    ck_assert_msg(strstr(error.text, "threshold") != NULL, "%s", error.text);
    rule.threshold = r;
    rule.has_capacity = true;
    rule.capacity = (double)NAN;
    ck_assert_int_eq(et_audit_route(&rule, 4, r, mask, &error), ET_EINVAL);
    ck_assert_msg(strstr(error.text, "capacity") != NULL, "%s", error.text);
    rule.rule = (et_rule)7;
    ck_assert_int_eq(et_audit_route(&rule, 4, r, mask, &error), ET_EINVAL);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("checks");
    TCase *layers = add_case(suite, "layers"), *steps = add_case(suite, "steps");
    tcase_add_test(layers, a_layer_is_checked);
    tcase_add_test(layers, other_gates_do_not_look_at_gate_tokens);
    tcase_add_test(layers, a_feed_forward_layer_is_checked);
    tcase_add_test(steps, a_case_put_together_in_memory_is_checked);
    tcase_add_test(steps, what_does_not_apply_is_not_looked_at);
    tcase_add_test(steps, any_capacity_gives_bounds);
    tcase_add_test(steps, a_step_is_run_once);
    tcase_add_test(steps, a_step_is_checked_before_it_runs);
    tcase_add_test(steps, what_is_to_be_judged_is_checked);
    tcase_add_test(steps, an_audited_rule_is_checked);
    return run_suite(suite);
}
