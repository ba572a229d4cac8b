/* test_gpt.c: the whole model against differences, causality, its cache, its steps, its memory.
 *
 * Central differences go through the whole model with its routing; a decision that turned would
 * show, and where an H crosses 0 in relu(H)^2 only the second derivative jumps. What PyTorch says of
 * the model is in test_gpt_witness.c.
 */
#include "etref/checkpoint.h"
#include "etref/gpt.h"
#include "etref/random.h"
#include "tests/check_main.h"
#include "tests/scratch.h"

#include <math.h>
#include <omp.h>
#include <string.h>

#define COUNT(array) (sizeof(array) / sizeof(array)[0])

/* ---- small models ---- */

static et_gpt_config small(et_rule rule)
{
    et_gpt_config c = et_gpt_default(8, 100);
    c.engine = ET_PLAIN;
    c.vocab = 11;
    c.layers = 2;
    c.heads = 4;
    c.kv_heads = 2;
    c.head_dim = 4;
    c.sequence = 7;
    c.batch = 2;
    c.ffn.rule = rule;
    c.ffn.experts = 4;
    c.ffn.d_expert = 5;
    c.ffn.ema_decay = 0.5;
    return c;
}

static const uint64_t seed = 1;

/* Parameters none of which is 0, as some are at the start, and tokens of which some are alike. */
static et_gpt *model_of(const et_gpt_config *c, int32_t *tokens)
{
    et_gpt *g;
    et_gpt_tensor *t;
    et_error error;
    ck_assert_msg(et_gpt_create(&g, c, 0, &error) == ET_OK, "%s", error.text);
    et_gpt_initialise(g, seed);
    for (size_t i = 0; (t = et_gpt_tensor_at(g, i)) != NULL; i++) {
        et_stream stream = et_stream_open(9, t->name);
        for (size_t j = 0; j < t->count; j++) t->value[j] += (et_real)(0.3 * et_normal(stream, j));
    }
    for (size_t i = 0; i < c->micro_batches * c->batch * (c->sequence + 1); i++)
        tokens[i] = (int32_t)(i * i * 7 % 11);
    return g;
}

enum { TOKENS = 64 };

/* ---- differences through the whole model ---- */

/* Balancing losses add to the gradient and not to the loss, so these models have none; the
 * witness's gpt-tc-aux-stacked covers them. */
static double loss_at(et_gpt *g, const int32_t *tokens)
{
    double loss;
    et_error error;
    ck_assert_msg(et_gpt_forward(g, false, tokens, &loss, NULL, &error) == ET_OK, "%s", error.text);
    return loss;
}

/* The loads of every expert of every layer, in one number. */
static double loads_of(const et_gpt *g)
{
    double sum = 0;
    et_gpt_routing r;
    for (size_t layer = 0; layer < et_gpt_configuration(g)->layers; layer++)
        for (size_t i = 0; et_gpt_routing_of(g, layer, &r) && i < r.experts; i++)
            sum = sum * 31 + (double)r.load[i];
    return sum;
}

static double difference(et_gpt *g, const int32_t *tokens, double loads, et_real *w)
{
    static const double at[] = {1, -1, 2, -2}, weight[] = {8, -8, -1, 1}, h = 0x1p-13;
    et_real before = *w;
    double sum = 0;
    for (int k = 0; k < 4; k++) {
        *w = (et_real)((double)before + at[k] * h);
        sum += weight[k] * loss_at(g, tokens);
        ck_assert_msg(loads_of(g) == loads, "a decision turns within the step: another seed");
    }
    *w = before;
    return sum / (12 * h);
}

static void check_differences(const char *name, const et_gpt_config *c)
{
    int32_t tokens[TOKENS];
    et_gpt *g = model_of(c, tokens);
    et_gpt_tensor *t;
    loss_at(g, tokens);
    ck_assert(et_gpt_backward(g, 1, NULL) == ET_OK);
    double worst = 0, loads = loads_of(g);
    for (size_t i = 0; (t = et_gpt_tensor_at(g, i)) != NULL; i++) {
        double largest = 0;
        for (size_t j = 0; t->gradient && j < t->count; j++)
            largest = fmax(largest, fabs((double)t->gradient[j]));
        if (t->gradient == NULL) continue;
        ck_assert_msg(largest > 0, "%s: %s has no gradient", name, t->name);
        for (size_t j = 0; j < t->count; j += 1 + t->count / 40) {
            double got = (double)t->gradient[j];
            double want = difference(g, tokens, loads, &t->value[j]);
            worst = fmax(worst, fabs(got - want) / largest);
            ck_assert_msg(fabs(got - want) <= 1e-7 * largest,
                          "%s: d%s[%zu] = %.12g, the difference is %.12g, the largest %.3g", name,
                          t->name, j, got, want, largest);
        }
    }
    printf("%s: differences within %.2g\n", name, worst);
    et_gpt_free(g);
}

START_TEST(gradients_are_derivatives)
{
    et_gpt_config dense = small(ET_TC), tc = dense, ec = small(ET_EC), et = small(ET_ET);
    dense.ffn.layer = ET_DENSE;
    tc.ffn.top_k = tc.ffn.granularity = 2;
    tc.ffn.gate = ET_GATE_SOFTMAX;
    ec.ffn.norm = ET_NORM_FANOUT;
    ec.kv_heads = 1;
    et.ffn.gate = ET_GATE_SOFTMAX_ANCHOR;
    et.first_dense = false;
    et.softcap = 0;
    et_gpt_config one = dense; /* one token, one head, one layer */
    one.sequence = one.batch = one.heads = one.kv_heads = one.layers = 1;
    check_differences("dense", &dense);
    check_differences("tc", &tc);
    check_differences("ec", &ec);
    check_differences("et", &et);
    check_differences("one token", &one);
}
END_TEST

/* ---- causality ---- */

/* Changes the input at position t of the second sequence, and returns the number of logits before
 * it, of the same sequence, whose bits change. The other sequence's must not in any case but expert
 * choice. */
static size_t changed_before(et_gpt *g, bool eval, const int32_t *tokens, size_t t, bool *others)
{
    const et_gpt_config *c = et_gpt_configuration(g);
    size_t T = c->sequence, V = c->vocab, N = c->batch * T, changed = 0;
    int32_t other[TOKENS];
    double loss;
    et_real *before = calloc(2 * N * V, sizeof *before), *after = before + N * V;
    ck_assert_ptr_nonnull(before);
    memcpy(other, tokens, c->batch * (T + 1) * sizeof *tokens);
    other[T + 1 + t] = (tokens[T + 1 + t] + 3) % 11;
    ck_assert(et_gpt_forward(g, eval, tokens, &loss, before, NULL) == ET_OK);
    ck_assert(et_gpt_forward(g, eval, other, &loss, after, NULL) == ET_OK);
    for (size_t i = T * V; i < (T + t) * V; i++)
        changed += memcmp(&before[i], &after[i], sizeof *before) != 0;
    *others = memcmp(before, after, T * V * sizeof *before) != 0;
    ck_assert(memcmp(before + (T + t) * V, after + (T + t) * V, V * sizeof *before) != 0);
    free(before);
    return changed;
}

static size_t changed_in_all(const et_gpt_config *c, bool eval, bool *others)
{
    int32_t tokens[TOKENS];
    et_gpt *g = model_of(c, tokens);
    et_gpt_report report;
    size_t changed = 0;
    *others = false;
    for (size_t i = 0; i < 2; i++) /* thresholds and biases with a history */
        ck_assert(et_gpt_step(g, tokens, &report, NULL) == ET_OK);
    for (size_t t = 1; t < c->sequence; t++) {
        bool crossed;
        changed += changed_before(g, eval, tokens, t, &crossed);
        *others |= crossed;
    }
    et_gpt_free(g);
    return changed;
}

START_TEST(evaluation_is_causal)
{
    et_gpt_config c[] = {small(ET_TC), small(ET_TC), small(ET_ET), small(ET_EC)};
    c[0].ffn.layer = ET_DENSE;
    c[1].ffn.balance = ET_BALANCE_LOSSFREE;
    c[1].ffn.bias_rate = 0.1;
    c[2].ffn.has_capacity = true;
    c[2].ffn.capacity_factor = 0.5;
    for (size_t i = 0; i < COUNT(c); i++) {
        bool others;
        ck_assert_uint_eq(changed_in_all(&c[i], true, &others), 0);
        ck_assert(!others);
    }
}
END_TEST

/* The paper's reason to be: expert choice looks at later tokens, and at other sequences. */
START_TEST(expert_choice_in_training_is_not_causal)
{
    et_gpt_config c = small(ET_EC);
    bool others;
    ck_assert_uint_gt(changed_in_all(&c, false, &others), 0);
    ck_assert(others);
    et_gpt_config et = small(ET_ET); /* without capacity threshold routing is, in training, too */
    ck_assert_uint_eq(changed_in_all(&et, false, &others), 0);
    ck_assert(!others);
}
END_TEST

/* Token by token, or in parts, from keys and values that were kept: the bits of one pass over the whole. */
START_TEST(a_cache_gives_the_bits_of_the_whole)
{
    et_gpt_config c[] = {small(ET_TC), small(ET_TC), small(ET_ET), small(ET_EC)};
    static const size_t parts[][7] = {{1, 1, 1, 1, 1, 1, 1}, {3, 4}, {2, 1, 4}, {7}};
    c[0].ffn.layer = ET_DENSE;
    c[2].ffn.norm = ET_NORM_FANOUT;
    for (size_t i = 0; i < COUNT(c); i++) {
        int32_t tokens[TOKENS];
        double loss;
        c[i].batch = 1;
        size_t T = c[i].sequence, V = c[i].vocab;
        et_gpt *g = model_of(&c[i], tokens);
        et_real *whole = calloc(2 * T * V, sizeof *whole), *part = whole + T * V;
        ck_assert_ptr_nonnull(whole);
        ck_assert(et_gpt_forward(g, true, tokens, &loss, whole, NULL) == ET_OK);
        for (size_t p = 0; p < COUNT(parts); p++) {
            et_gpt_restart(g);
            memset(part, 0, T * V * sizeof *part);
            for (size_t k = 0, at = 0; k < 7 && parts[p][k] > 0; at += parts[p][k++]) {
                ck_assert(et_gpt_extend(g, parts[p][k], tokens + at, part + at * V, NULL) == ET_OK);
                double fanout = et_gpt_fanout(g, parts[p][k] - 1);
                ck_assert(c[i].ffn.layer == ET_DENSE ? fanout == -1 : fanout >= 0 && fanout <= 4);
            }
            ck_assert_mem_eq(part, whole, T * V * sizeof *whole);
        }
        et_error error;
        ck_assert_int_eq(et_gpt_extend(g, 1, tokens, part, &error), ET_EINVAL); /* it is full */
        ck_assert_ptr_nonnull(strstr(error.text, "at most 7"));
        ck_assert_int_eq(et_gpt_backward(g, 1, NULL), ET_EINVAL);
        free(whole);
        et_gpt_free(g);
    }
}
END_TEST

/* ---- a step ---- */

START_TEST(bits_do_not_depend_on_threads)
{
    et_gpt_config c = small(ET_ET);
    c.sequence = 90; /* enough for threads */
    c.d_model = 48;
    c.d_dense = 192;
    c.ffn.d_expert = 96;
    et_real last[2][2];
    for (int run = 0; run < 2; run++) {
        int32_t tokens[400];
        omp_set_num_threads(run == 0 ? 1 : 3);
        et_gpt *g = model_of(&c, tokens);
        et_gpt_report report;
        for (size_t s = 0; s < 2; s++) ck_assert(et_gpt_step(g, tokens, &report, NULL) == ET_OK);
        last[run][0] = et_gpt_tensor_at(g, 0)->value[17];
        last[run][1] = (et_real)report.loss;
        et_gpt_free(g);
    }
    omp_set_num_threads(1);
    ck_assert_mem_eq(last[0], last[1], sizeof last[0]);
}
END_TEST

/* Steps go down on tokens that repeat, and routing is counted. */
START_TEST(steps_learn_and_count)
{
    et_gpt_config c = small(ET_ET);
    c.micro_batches = 2;
    c.ffn.warmup_steps = 3;
    int32_t tokens[TOKENS];
    et_gpt *g = model_of(&c, tokens);
    et_gpt_routing routing;
    et_gpt_report report;
    double first = 0;
    ck_assert(!et_gpt_routing_of(g, 0, &routing) && !et_gpt_routing_of(g, 2, &routing));
    for (size_t s = 0; s < 8; s++) {
        ck_assert(et_gpt_step(g, tokens, &report, NULL) == ET_OK);
        if (s == 0) first = report.loss;
        ck_assert(et_gpt_routing_of(g, 1, &routing));
        ck_assert_uint_eq(routing.tokens, 28);
        ck_assert((routing.passed == NULL) == (s < 3)); /* the warm-up is by choice */
        for (size_t i = 0; i < 4; i++) {
            ck_assert(s >= 3 || routing.load[i] == 6); /* k = floor(14/4) in each micro-batch */
            ck_assert(s < 3 || routing.load[i] == routing.passed[i]);
        }
    }
    ck_assert_msg(report.loss < 0.8 * first, "from %g to %g", first, report.loss);
    ck_assert_uint_eq(et_gpt_progress_of(g)->steps, 8);
    et_gpt_free(g);
}
END_TEST

/* Needs -Wl,--wrap=calloc: the library's only way to memory. Allocation number fail_at fails. */
static size_t allocations, fail_at = SIZE_MAX;
void *true_calloc(size_t count, size_t size) __asm__("__real_calloc");
void *counting_calloc(size_t count, size_t size) __asm__("__wrap_calloc");
void *counting_calloc(size_t count, size_t each)
{
    return allocations++ == fail_at ? NULL : true_calloc(count, each);
}

/* Each phase takes time, all of them no more than the step; and no bit of it changes. */
START_TEST(phases_make_up_a_step)
{
    int32_t tokens[2][TOKENS];
    et_gpt_config c = small(ET_ET);
    et_gpt *g[2] = {model_of(&c, tokens[0]), model_of(&c, tokens[1])};
    et_gpt_report report[2];
    double seconds[ET_GPT_PHASES] = {0}, sum = 0;
    et_gpt_time(g[1], seconds);
    double start = omp_get_wtime();
    for (int i = 0; i < 2; i++)
        ck_assert(et_gpt_step(g[i], tokens[i], &report[i], NULL) == ET_OK);
    double whole = omp_get_wtime() - start;
    for (size_t i = 0; i < ET_GPT_PHASES; i++) {
        ck_assert_msg(seconds[i] > 0, "phase %zu: %g", i, seconds[i]);
        sum += seconds[i];
    }
    ck_assert_msg(sum <= whole, "%g of %g", sum, whole);
    ck_assert(memcmp(report, report + 1, sizeof *report) == 0);
    et_gpt_time(g[1], NULL);
    double before = seconds[ET_GPT_MUON];
    ck_assert(et_gpt_step(g[1], tokens[1], &report[1], NULL) == ET_OK);
    ck_assert(seconds[ET_GPT_MUON] == before);
    et_gpt_free(g[0]);
    et_gpt_free(g[1]);
}
END_TEST

START_TEST(a_dense_step_takes_no_memory)
{
    et_gpt_config c = small(ET_TC);
    c.ffn.layer = ET_DENSE;
    int32_t tokens[TOKENS];
    et_gpt_report report;
    size_t before = allocations;
    et_gpt *g = model_of(&c, tokens);
    ck_assert_uint_gt(allocations, before);
    before = allocations;
    for (size_t i = 0; i < 3; i++) ck_assert(et_gpt_step(g, tokens, &report, NULL) == ET_OK);
    ck_assert_uint_eq(allocations, before);
    et_gpt_free(g);
}
END_TEST

/* Every allocation of a model's life fails in turn: made, one step, written, read. Each time there is
 * ET_ENOMEM and a message, and (under a sanitizer) nothing left. */
static et_status live(const et_gpt_config *c, const int32_t *tokens, et_error *error)
{
    et_gpt *g = NULL, *again = NULL;
    et_tensor_file file = {.descriptor = -1};
    et_gpt_report report;
    et_status status = et_gpt_create(&g, c, 0, error);
    if (status != ET_OK) return status;
    et_gpt_initialise(g, 1);
    status = et_gpt_step(g, tokens, &report, error);
    if (status == ET_OK) status = et_checkpoint_write(path, g, NULL, error);
    if (status == ET_OK) status = et_checkpoint_read(path, 0, 0, &again, &file, error);
    if (status == ET_OK) {
        ck_assert_mem_eq(et_gpt_tensor_at(g, 0)->value, et_gpt_tensor_at(again, 0)->value,
                         et_gpt_tensor_at(g, 0)->count * sizeof(et_real));
        et_gpt_free(again);
        et_tensor_file_close(&file);
    }
    et_gpt_free(g);
    return status;
}

START_TEST(missing_memory_is_said)
{
    et_gpt_config c = small(ET_ET);
    int32_t tokens[TOKENS];
    c.ffn.gate = ET_GATE_SOFTMAX_ANCHOR;
    et_gpt_free(model_of(&c, tokens));
    et_status status = ET_ENOMEM;
    size_t failed = 0;
    for (size_t k = 0; status != ET_OK; k++) {
        et_error error = {""};
        allocations = 0;
        fail_at = k;
        status = live(&c, tokens, &error);
        fail_at = SIZE_MAX;
        if (status == ET_OK) break;
        ck_assert_msg(status == ET_ENOMEM && error.text[0] != '\0', "allocation %zu: %d, '%s'", k,
                      (int)status, error.text);
        failed++;
    }
    printf("%zu allocations\n", failed);
    ck_assert_uint_gt(failed, 20);
}
END_TEST

/* Twice the tokens, twice what hangs on them. */
START_TEST(memory_is_linear_in_tokens)
{
    size_t bytes[4];
    for (size_t i = 0; i < 4; i++) {
        et_gpt *g;
        et_gpt_config c = small(ET_ET);
        c.batch = 1;
        c.sequence = 1000 + 500 * i;
        ck_assert(et_gpt_create(&g, &c, 0, NULL) == ET_OK);
        bytes[i] = et_gpt_bytes(g);
        et_gpt_free(g);
    }
    ck_assert_uint_eq(bytes[3] - bytes[2], bytes[2] - bytes[1]);
    ck_assert_uint_eq(bytes[2] - bytes[1], bytes[1] - bytes[0]);
}
END_TEST

/* The same model as a bfloat16 kernel: near, and not the same; replicas differ from each other. */
START_TEST(roundings_reach_the_whole_model)
{
    et_gpt_config c = small(ET_TC);
    int32_t tokens[TOKENS];
    et_gpt *g = model_of(&c, tokens);
    double exact = loss_at(g, tokens), rounded[3];
    et_rounding r = {.profile = et_profile_find("bf16"), .mode = ET_ROUND_NEAREST};
    for (size_t i = 0; i < COUNT(rounded); i++) {
        et_gpt_set_rounding(g, &r);
        rounded[i] = loss_at(g, tokens);
        ck_assert(et_gpt_backward(g, 1, NULL) == ET_OK);
        ck_assert(rounded[i] != exact && fabs(rounded[i] - exact) < 0.05 * exact);
        r.mode = ET_ROUND_RANDOM;
        r.seed++;
    }
    ck_assert(rounded[1] != rounded[2]);
    et_gpt_set_rounding(g, NULL);
    ck_assert(loss_at(g, tokens) == exact);
    et_gpt_free(g);
}
END_TEST

START_TEST(what_is_not_finite_is_named)
{
    et_gpt_config c = small(ET_ET);
    int32_t tokens[TOKENS];
    et_gpt *g = model_of(&c, tokens);
    et_gpt_report report;
    et_error error;
    et_gpt_tensor *t = NULL;
    for (size_t i = 0; (t = et_gpt_tensor_at(g, i)) != NULL; i++)
        if (strcmp(t->name, "layers.0.w_o") == 0) t->value[3] = (et_real)INFINITY;
    ck_assert_int_eq(et_gpt_step(g, tokens, &report, &error), ET_EINVAL);
    ck_assert_msg(strstr(error.text, "layers.") != NULL, "%s", error.text);
    et_gpt_free(g);
}
END_TEST

START_TEST(contradictions_are_refused_by_name)
{
    et_gpt *g = NULL;
    et_error error;
    const et_gpt_config good = small(ET_ET);
    et_gpt_config c = good;
#define REFUSED(words)                                                                             \
    do {                                                                                           \
        ck_assert(et_gpt_create(&g, &c, 0, &error) != ET_OK && g == NULL);                         \
        ck_assert_msg(strstr(error.text, words) != NULL, "'%s' lacks '%s'", error.text, words);    \
        c = good;                                                                                  \
    } while (0)
    c.vocab = 0;
    REFUSED("vocab = 0");
    c.kv_heads = 3;
    REFUSED("kv_heads = 3");
    c.head_dim = 3;
    REFUSED("head_dim = 3");
    c.rms_eps = 0;
    REFUSED("rms_eps");
    c.ffn.experts = 0;
    REFUSED("experts");
    c.ffn.target_load = 15;
    REFUSED("target_load");
    c.ffn.ema_decay = 1;
    REFUSED("ema_decay");
    c.ffn.global_load = true;
    REFUSED("global_load");
    c.d_model = c.ffn.d_expert = c.d_dense = INT32_MAX;
    REFUSED("");
    c.engine = (et_engine)9;
    REFUSED("engine = 9");
    int32_t tokens[TOKENS];
    double loss;
    g = model_of(&good, tokens);
    tokens[3] = 11;
    ck_assert_int_eq(et_gpt_forward(g, true, tokens, &loss, NULL, &error), ET_EINVAL);
    ck_assert_msg(strstr(error.text, "token 3 is 11") != NULL, "%s", error.text);
    tokens[3] = 0;
    ck_assert_int_eq(et_gpt_forward(g, true, tokens, &loss, NULL, &error), ET_OK);
    ck_assert_int_eq(et_gpt_backward(g, 1, &error), ET_EINVAL);
    et_gpt_free(g);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("gpt");
    omp_set_num_threads(1); /* the models are so small that threads would only cost */
    if (sizeof(et_real) == sizeof(double)) {
        tcase_add_test(add_case(suite, "differences"), gradients_are_derivatives);
    }
    TCase *causality = add_case(suite, "causality");
    tcase_add_test(causality, evaluation_is_causal);
    tcase_add_test(causality, expert_choice_in_training_is_not_causal);
    tcase_add_test(causality, a_cache_gives_the_bits_of_the_whole);
    TCase *steps = add_case(suite, "steps");
    tcase_add_test(steps, bits_do_not_depend_on_threads);
    tcase_add_test(steps, steps_learn_and_count);
    tcase_add_test(steps, phases_make_up_a_step);
    tcase_add_test(steps, a_dense_step_takes_no_memory);
    tcase_add_test(steps, memory_is_linear_in_tokens);
    TCase *memory = add_case(suite, "memory");
    tcase_add_checked_fixture(memory, make_folder, remove_folder);
    tcase_add_test(memory, missing_memory_is_said);
    tcase_add_test(steps, roundings_reach_the_whole_model);
    tcase_add_test(steps, what_is_not_finite_is_named);
    tcase_add_test(add_case(suite, "refusals"), contradictions_are_refused_by_name);
    return run_suite(suite);
}
