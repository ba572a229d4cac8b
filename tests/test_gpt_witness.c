/* test_gpt_witness.c: the whole model against seven that PyTorch computed.
 *
 * data/witness/gpt-*: parameters, tokens, and what a program written from the equations alone made
 * of them in float64: logits, losses, first gradients, parameters and states after one and three
 * steps. Of AdamW's first steps the parameters tell more than they should: where a gradient is near
 * 0, m/sqrt(v) is +-1 by its last bits; so these are held to 1e-9, all else to 1e-12.
 */
#include "etref/gpt.h"
#include "etref/safetensors.h"
#include "tests/check_main.h"

#include <jansson.h>
#include <math.h>
#include <omp.h>
#include <string.h>

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

int main(void)
{
    if (sizeof(et_real) != sizeof(double)) return EXIT_SUCCESS; /* the witness has 53 bits */
    Suite *suite = suite_create("gpt witness");
    omp_set_num_threads(1); /* the models are so small that threads would only cost */
    TCase *witness = add_case(suite, "witness");
    tcase_add_test(witness, the_model_is_the_witness);
    tcase_add_test(witness, the_model_is_the_witness_with_blas);
    return run_suite(suite);
}
