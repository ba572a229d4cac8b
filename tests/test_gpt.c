/* test_gpt.c: the whole model against seven that PyTorch computed, against differences, and
 * causality.
 *
 * data/witness/gpt-*: parameters, tokens, and what a program written from the specification alone
 * made of them in float64: logits, losses, first gradients, parameters and states after one and
 * three steps. Of AdamW's first steps the parameters tell more than they should: where a gradient
 * is near 0, m/sqrt(v) is +-1 by its last bits; so these are held to 1e-9, all else to 1e-12.
 *
 * Central differences go through the whole model with its routing; a decision that turned would
 * show, and where an H crosses 0 in relu(H)^2 only the second derivative jumps.
 */
#include "etref/checkpoint.h"
#include "etref/gpt.h"
#include "etref/random.h"
#include "tests/check_main.h"
#include "tests/run_case.h"
#include "tests/scratch.h"

#include <jansson.h>
#include <math.h>
#include <omp.h>

#define COUNT(array) (sizeof(array) / sizeof(array)[0])

/* ---- the witness's files ---- */

typedef struct witness_model {
    et_tensor_file file;
    json_t *model; /* its configuration */
    et_gpt *g;
} witness_model;

static double number(const json_t *object, const char *key)
{
    const json_t *v = json_object_get(object, key);
    ck_assert_msg(v != NULL, "no %s", key);
    return json_number_value(v);
}

static size_t size(const json_t *object, const char *key)
{
    return (size_t)number(object, key);
}

static bool says(const json_t *object, const char *key, const char *word)
{
    const char *text = json_string_value(json_object_get(object, key));
    return text != NULL && strcmp(text, word) == 0;
}

static et_case layer_of(const json_t *m)
{
    bool tc = says(m, "rule", "tc");
    const json_t *capacity = json_object_get(m, "capacity_factor");
    et_case c = {.layer = says(m, "layer", "moe") ? ET_MOE : ET_DENSE,
                 .rule = tc                      ? ET_TC
                         : says(m, "rule", "ec") ? ET_EC
                                                 : ET_ET,
                 .d_expert = size(m, "d_expert"),
                 .experts = size(m, "experts"),
                 .top_k = tc ? size(m, "top_k") : 1,
                 .shared = json_is_true(json_object_get(m, "shared")),
                 .inclusive = says(m, "threshold", "inclusive"),
                 .has_capacity = json_is_number(capacity),
                 .capacity_factor = json_number_value(capacity),
                 .ema_decay = number(m, "ema_decay"),
                 .ema_bias_correction = json_is_true(json_object_get(m, "ema_bias_correction"))};
    ck_assert(says(m, "gate", "sigmoid") && says(m, "norm", "none"));
    if (says(m, "balance", "aux")) {
        c.balance = ET_BALANCE_AUX;
        c.balance_coef = number(m, "balance_coef");
    } else if (says(m, "balance", "lossfree")) {
        c.balance = ET_BALANCE_LOSSFREE;
        c.bias_rate = number(m, "bias_rate");
    }
    return c;
}

static et_gpt_config config_of(const json_t *m, size_t d_dense)
{
    const json_t *optimizer = json_object_get(m, "optimizer");
    const json_t *adamw = json_object_get(optimizer, "adamw");
    const json_t *muon = json_object_get(optimizer, "muon");
    const json_t *betas = json_object_get(adamw, "betas");
    return (et_gpt_config){.vocab = size(m, "vocab"),
                           .d_model = size(m, "d_model"),
                           .layers = size(m, "layers"),
                           .heads = size(m, "heads"),
                           .kv_heads = size(m, "kv_heads"),
                           .head_dim = size(m, "head_dim"),
                           .sequence = size(m, "sequence"),
                           .batch = size(m, "batch"),
                           .micro_batches = size(m, "micro_batches"),
                           .d_dense = d_dense,
                           .first_dense = json_is_true(json_object_get(m, "first_layer_dense")),
                           .rms_eps = number(m, "rms_eps"),
                           .rope_base = number(m, "rope_base"),
                           .softcap = number(m, "softcap"),
                           .ffn = layer_of(m),
                           .beta1 = json_number_value(json_array_get(betas, 0)),
                           .beta2 = json_number_value(json_array_get(betas, 1)),
                           .eps = number(adamw, "eps"),
                           .rate_wte = number(adamw, "lr_wte"),
                           .rate_head = number(adamw, "lr_head"),
                           .rate_router = number(adamw, "lr_router"),
                           .rate_muon = number(muon, "lr"),
                           .momentum_last = number(muon, "momentum"),
                           .grouping =
                               says(m, "muon_grouping", "stacked") ? ET_MUON_STACKED : ET_MUON_EACH,
                           .clip = json_number_value(json_object_get(m, "grad_clip")), /* null: 0 */
                           .schedule = {.steps = 1000}};
}

/* A tensor of the file, by prefix and name, as doubles; the caller frees it. */
static double *values_of(const witness_model *w, const char *prefix, const char *name, size_t count)
{
    char full[80];
    et_error error;
    snprintf(full, sizeof full, "%s%s", prefix, name);
    const et_tensor_info *info = et_tensor_file_find(&w->file, full);
    ck_assert_msg(info != NULL && info->count == count, "%s: %s of %zu elements", w->file.path,
                  full, count);
    double *values = calloc(count, sizeof *values);
    ck_assert_ptr_nonnull(values);
    ck_assert_msg(et_tensor_file_read(&w->file, info, 0, count, values, &error) == ET_OK, "%s",
                  error.text);
    return values;
}

static void open_witness(witness_model *w, const char *name, et_engine engine)
{
    char name_of_file[4200];
    et_error error;
    const char *data = getenv("ETREF_DATA");
    snprintf(name_of_file, sizeof name_of_file, "%s/witness/gpt-%s.safetensors",
             data ? data : "data", name);
    ck_assert_msg(et_tensor_file_open(&w->file, name_of_file, &error) == ET_OK, "%s", error.text);
    w->model = json_loads(et_tensor_file_metadata(&w->file, "model"), 0, NULL);
    ck_assert_ptr_nonnull(w->model);
    et_gpt_config c =
        config_of(w->model, et_tensor_file_find(&w->file, "in.layers.0.w_up")->shape[0]);
    c.engine = engine;
    ck_assert_msg(et_gpt_create(&w->g, &c, 0, &error) == ET_OK, "%s", error.text);
    et_gpt_progress_of(w->g)->ema_updates = size(w->model, "ema_updates");
    et_gpt_tensor *t;
    for (size_t i = 0; (t = et_gpt_tensor_at(w->g, i)) != NULL; i++) {
        double *values = values_of(w, "in.", t->name, t->count);
        for (size_t j = 0; j < t->count; j++) t->value[j] = (et_real)values[j];
        free(values);
    }
}

static void close_witness(witness_model *w)
{
    et_gpt_free(w->g);
    json_decref(w->model);
    et_tensor_file_close(&w->file);
}

/* got within `tolerance` of the largest of want; *worst gathers how far off. */
static void agree(const witness_model *w, const char *prefix, const char *name, size_t count,
                  const et_real *got, double tolerance, double *worst)
{
    double *want = values_of(w, prefix, name, count), largest = 0;
    for (size_t i = 0; i < count; i++) largest = fmax(largest, fabs(want[i]));
    for (size_t i = 0; i < count; i++) {
        double off = fabs((double)got[i] - want[i]);
        ck_assert_msg(off <= tolerance * largest, "%s: %s%s[%zu] = %.17g, the witness has %.17g",
                      w->file.path, prefix, name, i, (double)got[i], want[i]);
        if (largest > 0) *worst = fmax(*worst, off / largest);
    }
    free(want);
}

/* Every tensor that the table has: its gradients, or its values. */
static void tensors_agree(const witness_model *w, const char *prefix, bool gradients,
                          double tolerance, double *worst)
{
    const et_gpt_tensor *t;
    size_t compared = 0;
    for (size_t i = 0; (t = et_gpt_tensor_at(w->g, i)) != NULL; i++) {
        if (gradients && t->gradient == NULL) continue;
        agree(w, prefix, t->name, t->count, gradients ? t->gradient : t->value, tolerance, worst);
        compared++;
    }
    /* and none that it has not */
    size_t in_file = 0;
    for (size_t i = 0; i < w->file.tensor_count; i++)
        in_file += strncmp(w->file.tensors[i].name, prefix, strlen(prefix)) == 0;
    ck_assert_uint_eq(compared, in_file);
}

static int32_t *tokens_of(const witness_model *w, size_t batches)
{
    const et_gpt_config *c = et_gpt_configuration(w->g);
    size_t count = batches * c->batch * (c->sequence + 1);
    double *values = values_of(w, "in.", "tokens", count);
    int32_t *tokens = calloc(count, sizeof *tokens);
    ck_assert_ptr_nonnull(tokens);
    for (size_t i = 0; i < count; i++) tokens[i] = (int32_t)values[i];
    free(values);
    return tokens;
}

static void follow(const char *name, et_engine engine)
{
    witness_model w;
    et_error error = {""};
    double worst[4] = {0};
    open_witness(&w, name, engine);
    const et_gpt_config *c = et_gpt_configuration(w.g);
    size_t M = c->micro_batches, N = c->batch * c->sequence,
           step = M * c->batch * (c->sequence + 1);
    int32_t *tokens = tokens_of(&w, 3 * M + 1);
    et_real *logits = calloc(N * c->vocab, sizeof *logits);
    double *losses = values_of(&w, "fwd.", "loss", 4), loss;
    double *norms = c->clip > 0 ? values_of(&w, "fwd.", "grad_norm", 3) : NULL;
    /* logits, and gradients before clipping, of the first step's micro-batches */
    for (size_t m = 0; m < M; m++) {
        ck_assert_msg(et_gpt_forward(w.g, false, tokens + m * step / M, &loss,
                                     m == 0 ? logits : NULL, &error) == ET_OK,
                      "%s", error.text);
        ck_assert(et_gpt_backward(w.g, 1 / (double)M, &error) == ET_OK);
    }
    agree(&w, "fwd.", "logits", N * c->vocab, logits, 1e-12, &worst[0]);
    tensors_agree(&w, "bwd.", true, 1e-12, &worst[1]);
    for (size_t s = 0; s < 3; s++) {
        et_gpt_report report;
        ck_assert_msg(et_gpt_step(w.g, tokens + s * step, &report, &error) == ET_OK, "%s",
                      error.text);
        ck_assert_msg(fabs(report.loss - losses[s]) <= 1e-12 * losses[s], "%s: loss %zu", name, s);
        if (norms) ck_assert(fabs(report.norm - norms[s]) <= 1e-12 * norms[s]);
        if (s == 0) tensors_agree(&w, "step1.", false, 1e-9, &worst[2]);
        if (s == 2) tensors_agree(&w, "step3.", false, 1e-9, &worst[3]);
    }
    ck_assert(et_gpt_forward(w.g, true, tokens + 3 * step, &loss, NULL, &error) == ET_OK);
    ck_assert_msg(fabs(loss - losses[3]) <= 1e-12 * losses[3], "%s: evaluation", name);
    printf("gpt-%s: logits %.2g, gradients %.2g, after a step %.2g, after three %.2g\n", name,
           worst[0], worst[1], worst[2], worst[3]);
    free(tokens);
    free(logits);
    free(losses);
    free(norms);
    close_witness(&w);
}

static const char *const files[] = {
    "dense", "ec", "et", "et-micro", "gqa-et-clip", "tc-lossfree", "tc-aux-stacked"};

START_TEST(the_model_is_the_witness)
{
    for (size_t i = 0; i < COUNT(files); i++) follow(files[i], ET_PLAIN);
}
END_TEST

START_TEST(the_model_is_the_witness_with_blas)
{
    for (size_t i = 0; i < COUNT(files); i++) follow(files[i], ET_BLAS);
}
END_TEST

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
        TCase *witness = add_case(suite, "witness");
        tcase_add_test(witness, the_model_is_the_witness);
        tcase_add_test(witness, the_model_is_the_witness_with_blas);
        tcase_add_test(add_case(suite, "differences"), gradients_are_derivatives);
    }
    TCase *causality = add_case(suite, "causality");
    tcase_add_test(causality, evaluation_is_causal);
    tcase_add_test(causality, expert_choice_in_training_is_not_causal);
    tcase_add_test(causality, a_cache_gives_the_bits_of_the_whole);
    TCase *steps = add_case(suite, "steps");
    tcase_add_test(steps, bits_do_not_depend_on_threads);
    tcase_add_test(steps, steps_learn_and_count);
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
