/* test_capture.c: cases whose inputs come from a step of a trained model (etref/capture.h).
 *
 *     x, [q;k;v], stream   against a forward pass written here, in plain loops over the model's tensors
 *     dy                   against differences of a loss written here; and every gradient of a captured layer is
 *                          the model's own, of its own backward pass
 *     the tool             sizes, paths, hashes; what is refused
 *     data/cases/real.json honest kernels pass, broken ones do not
 */
#include "etref/capture.h"
#include "etref/checkpoint.h"
#include "etref/random.h"
#include "ref/step/case_kinds.h"
#include "tests/campaign/campaign.h"
#include "tests/run_case.h"
#include "tests/run_tool.h"

#include <math.h>

#ifndef ETREF_F32

/* ---- a small model, and its text ---- */

enum { D = 8, E = 4, HEADS = 2, T = 6, B = 2, N = T * B, M = 2, V = 256, HIDDEN = 12, QKV = 4 * E };

static const char *const rules[] = {
    "{\"rule\":\"et\",\"experts\":4,\"d_expert\":5,\"capacity_factor\":0.5}",
    "{\"rule\":\"ec\",\"experts\":4,\"d_expert\":5,\"gate\":\"softmax_anchor\"}",
    "{\"rule\":\"tc\",\"experts\":4,\"d_expert\":5,\"top_k\":2,\"balance\":\"aux\",\"balance_coef\":0.3}",
    "{\"layer\":\"dense\",\"d_expert\":12}"};

static et_error error;

static double deviate(const char *name, size_t i)
{
    return et_normal(et_stream_open(5, name), i);
}

/* Two layers; parameters and averages none of which is 0. */
static et_gpt *make_model(const char *ffn)
{
    char json[600];
    et_gpt_config c;
    et_gpt *g;
    et_gpt_tensor *t;
    snprintf(json, sizeof json,
             "{\"engine\":\"blas\",\"d_model\":%d,\"layers\":2,\"heads\":%d,\"kv_heads\":1,\"head_dim\":%d,"
             "\"sequence\":%d,\"batch\":%d,\"micro_batches\":%d,\"d_dense\":%d,\"ffn\":%s}",
             D, HEADS, E, T, B, M, HIDDEN, ffn);
    ck_assert_msg(et_gpt_config_parse(&c, json, strlen(json), "test", &error) == ET_OK, "%s", error.text);
    ck_assert_msg(et_gpt_create(&g, &c, 0, &error) == ET_OK, "%s", error.text);
    et_gpt_initialise(g, 3);
    for (size_t i = 0; (t = et_gpt_tensor_at(g, i)) != NULL; i++)
        for (size_t j = 0; j < t->count; j++) t->value[j] += (et_real)(0.3 * deviate(t->name, j));
    *et_gpt_progress_of(g) = (et_gpt_progress){70, 70};
    return g;
}

static void save_model(const char *ffn)
{
    et_gpt *g = make_model(ffn);
    ck_assert_msg(et_checkpoint_write(in_folder("model"), g, NULL, &error) == ET_OK, "%s", error.text);
    et_gpt_free(g);
}

static const char words[] = "The thresholds of a trained router are far from 0, and its loads are not even.";

static void begin(void)
{
    make_folder();
    write_text("words", words);
}

/* The model as capture has it: in the plain engine. The caller frees it. */
static et_gpt *read_model(void)
{
    et_gpt *g, *plain;
    et_tensor_file file;
    ck_assert_int_eq(et_checkpoint_read(in_folder("model"), 0, 0, &g, &file, &error), ET_OK);
    et_tensor_file_close(&file);
    et_gpt_config c = *et_gpt_configuration(g);
    c.engine = ET_PLAIN;
    ck_assert_int_eq(et_gpt_create(&plain, &c, 0, &error), ET_OK);
    const et_gpt_tensor *from;
    for (size_t i = 0; (from = et_gpt_tensor_at(g, i)) != NULL; i++)
        memcpy(et_gpt_tensor_at(plain, i)->value, from->value, from->count * sizeof(et_real));
    *et_gpt_progress_of(plain) = *et_gpt_progress_of(g);
    et_gpt_free(g);
    return plain;
}

enum { OFFSET = 4 };

/* Micro-batch m: sequence after sequence. */
static void read_tokens(int32_t *tokens, size_t m)
{
    for (size_t b = 0; b < B; b++)
        for (size_t t = 0; t <= T; t++)
            tokens[b * (T + 1) + t] = (unsigned char)words[OFFSET + (m * B + b) * T + t];
}

/* A case of the model's layer 1, captured; `fields` begin with a comma. The caller frees the step. */
static et_status try_capture(et_step *s, const char *fields, const char *input)
{
    char json[1500];
    et_case *cases;
    size_t count;
    snprintf(json, sizeof json,
             "{'name':'a'%s,'input':{'source':'checkpoint','checkpoint':'model','text':'./words',"
             "'text_offset':%d%s}}",
             fields, OFFSET, input);
    double_the_quotes(json);
    *s = (et_step){0};
    et_status status =
        et_capture_cases(&cases, &count, json, strlen(json), "test", in_folder("cases"), &error);
    if (status != ET_OK) return status;
    status = et_step_create(s, &cases[0], 0, &error);
    free(cases);
    return status == ET_OK ? et_capture_inputs(s, 0, &error) : status;
}

#define LAYER_1 ",'checkpoint_layer':1"

static void capture(et_step *s, const char *fields, const char *input)
{
    ck_assert_msg(try_capture(s, fields, input) == ET_OK, "%s", error.text);
    ck_assert_msg(et_step_check_inputs(s, &error) == ET_OK, "%s", error.text);
}

static void run(et_step *s)
{
    ck_assert_msg(et_step_run(s, ET_PLAIN, NULL, NULL, &error) == ET_OK, "%s", error.text);
}

/* ---- by hand ---- */

static const et_gpt_tensor *tensor(et_gpt *g, const char *name)
{
    const et_gpt_tensor *t;
    for (size_t i = 0; (t = et_gpt_tensor_at(g, i)) != NULL; i++)
        if (strcmp(t->name, name) == 0) return t;
    ck_abort_msg("no tensor %s", name);
}

static void norm(const double *x, double *y, size_t vectors, size_t width)
{
    for (size_t v = 0; v < vectors; v++) {
        double squares = 0;
        for (size_t j = 0; j < width; j++) squares += x[v * width + j] * x[v * width + j];
        for (size_t j = 0; j < width; j++)
            y[v * width + j] = x[v * width + j] / sqrt(squares / (double)width + 0x1p-52);
    }
}

/* y [N,out] (+)= x w' */
static void map(et_gpt *g, const char *name, const double *x, double *y, bool add)
{
    const et_gpt_tensor *w = tensor(g, name);
    size_t out = w->shape[0], in = w->shape[1];
    for (size_t t = 0; t < N; t++)
        for (size_t i = 0; i < out; i++) {
            double sum = add ? y[t * out + i] : 0;
            for (size_t j = 0; j < in; j++) sum += x[t * in + j] * (double)w->value[i * in + j];
            y[t * out + i] = sum;
        }
}

/* Query and key heads of a row: rotated by the row's position, then normed. */
static void turn(double *qkv)
{
    for (size_t t = 0; t < N; t++)
        for (size_t h = 0; h < HEADS + 1; h++) {
            double *u = qkv + t * QKV + h * E;
            for (size_t j = 0; j < E / 2; j++) {
                double angle = (double)(t % T) * pow(10000, -2.0 * (double)j / E);
                double a = u[j], b = u[j + E / 2];
                u[j] = a * cos(angle) + b * sin(angle);
                u[j + E / 2] = -a * sin(angle) + b * cos(angle);
            }
            norm(u, u, 1, E);
        }
}

/* Two query heads, one of keys and values. */
static void attend(const double *qkv, double *out)
{
    for (size_t t = 0; t < N; t++)
        for (size_t h = 0; h < HEADS; h++) {
            double sum = 0, row[E] = {0};
            for (size_t s = t - t % T; s <= t; s++) {
                double score = 0;
                for (size_t j = 0; j < E; j++)
                    score += qkv[t * QKV + h * E + j] * qkv[s * QKV + HEADS * E + j];
                double p = exp(score / sqrt(E));
                sum += p;
                for (size_t j = 0; j < E; j++) row[j] += p * qkv[s * QKV + (HEADS + 1) * E + j];
            }
            for (size_t j = 0; j < E; j++) out[t * HEADS * E + h * E + j] = row[j] / sum;
        }
}

typedef struct pass {
    double enters[N * D], qkv[N * QKV]; /* of layer 1: the stream that enters; after QK-norm */
    double stream[N * D], x[N * D];     /* the stream after its attention, and its norm */
} pass;

static void attention_by_hand(et_gpt *g, size_t layer, pass *p)
{
    char name[40];
    double normed[N * D], attended[N * HEADS * E];
    norm(p->stream, normed, N, D);
    snprintf(name, sizeof name, "layers.%zu.w_qkv", layer);
    map(g, name, normed, p->qkv, false);
    turn(p->qkv);
    attend(p->qkv, attended);
    snprintf(name, sizeof name, "layers.%zu.w_o", layer);
    map(g, name, attended, p->stream, true);
    norm(p->stream, p->x, N, D);
}

static void pass_by_hand(et_gpt *g, const int32_t *tokens, pass *p)
{
    const et_gpt_tensor *wte = tensor(g, "wte");
    double H[N * HIDDEN];
    for (size_t t = 0; t < N; t++)
        for (size_t j = 0; j < D; j++)
            p->stream[t * D + j] =
                (double)wte->value[(size_t)tokens[t / T * (T + 1) + t % T] * D + j];
    norm(p->stream, p->stream, N, D);
    attention_by_hand(g, 0, p);
    map(g, "layers.0.w_up", p->x, H, false);
    for (size_t i = 0; i < N * HIDDEN; i++) H[i] = H[i] > 0 ? H[i] * H[i] : 0;
    map(g, "layers.0.w_down", H, p->stream, true);
    memcpy(p->enters, p->stream, sizeof p->enters);
    attention_by_hand(g, 1, p);
}

/* Of the stream behind the last layer. */
static double loss_by_hand(et_gpt *g, const double *stream, const int32_t *tokens)
{
    static double l[N * V];
    double normed[N * D], sum = 0;
    norm(stream, normed, N, D);
    map(g, "head", normed, l, false);
    for (size_t t = 0; t < N; t++) {
        double all = 0, *row = l + t * V;
        for (size_t i = 0; i < V; i++) row[i] = 15 * tanh(row[i] / 15);
        for (size_t i = 0; i < V; i++) all += exp(row[i]);
        sum += log(all) - row[tokens[t / T * (T + 1) + t % T + 1]];
    }
    return sum / N;
}

static void expect_same(const char *what, const et_real *got, const double *want, size_t count)
{
    double largest = 0;
    for (size_t i = 0; i < count; i++) largest = fmax(largest, fabs(want[i]));
    ck_assert_msg(largest > 0, "%s is 0", what);
    for (size_t i = 0; i < count; i++)
        ck_assert_msg(fabs((double)got[i] - want[i]) <= 1e-12 * largest, "%s[%zu] = %.17g, by hand %.17g",
                      what, i, (double)got[i], want[i]);
}

/* dL/dy: y is added to the stream. */
static void expect_slopes(et_gpt *g, const et_real *dy, double *stream, const int32_t *tokens)
{
    for (size_t i = 0; i < N * D; i++) {
        const double h = 0x1p-14, before = stream[i];
        stream[i] = before + h;
        double up = loss_by_hand(g, stream, tokens);
        stream[i] = before - h;
        double down = loss_by_hand(g, stream, tokens), slope = (up - down) / (2 * h) / M;
        stream[i] = before;
        ck_assert_msg(fabs((double)dy[i] - slope) < 1e-9, "dy[%zu] = %.12g, the difference is %.12g", i,
                      (double)dy[i], slope);
    }
}

START_TEST(what_a_layer_gets_is_that_of_a_pass_by_hand)
{
    et_step ffn, attention, stream;
    save_model(rules[_i]);
    et_gpt *g = read_model();
    capture(&ffn, "", LAYER_1);
    capture(&attention, ",'layer':'attention'", LAYER_1);
    capture(&stream, ",'layer':'rmsnorm'", LAYER_1);
    run(&ffn);
    for (size_t m = 0; m < M; m++) {
        pass p;
        int32_t tokens[B * (T + 1)];
        double loss;
        read_tokens(tokens, m);
        pass_by_hand(g, tokens, &p);
        expect_same("the layer's x", ffn.in.x + m * N * D, p.x, N * D);
        expect_same("[q;k;v]", attention.model.qkv + m * N * QKV, p.qkv, N * QKV);
        expect_same("the stream", stream.in.x + m * N * D, p.enters, N * D);
        for (size_t i = 0; i < N * D; i++) p.stream[i] += (double)ffn.fwd.y[m * N * D + i];
        ck_assert_int_eq(et_gpt_forward(g, false, tokens, &loss, NULL, &error), ET_OK);
        ck_assert_double_eq_tol(loss, loss_by_hand(g, p.stream, tokens), 1e-12);
        expect_slopes(g, ffn.in.dy + m * N * D, p.stream, tokens);
    }
    et_step_free(&ffn);
    et_step_free(&attention);
    et_step_free(&stream);
    et_gpt_free(g);
}
END_TEST

/* ---- the model's own gradients ---- */

static void expect_gradient(et_gpt *g, const char *name, const et_real *got)
{
    const et_gpt_tensor *t = tensor(g, name);
    double largest = 0;
    for (size_t i = 0; i < t->count; i++) largest = fmax(largest, fabs((double)t->gradient[i]));
    for (size_t i = 0; i < t->count; i++)
        ck_assert_msg(fabs((double)(got[i] - t->gradient[i])) <= 1e-14 * largest, "d%s[%zu]: %.17g, %.17g",
                      name, i, (double)got[i], (double)t->gradient[i]);
}

static double inner(const et_real *a, const et_real *b, size_t count)
{
    double sum = 0;
    for (size_t i = 0; i < count; i++) sum += (double)a[i] * (double)b[i];
    return sum;
}

/* y = x w' gives <dx, x> = <dy, y> = <w, dw>. The output projection takes what attention has made, and
 * that of [q;k;v] what the norm has: so their gradients tell dy, of which no other trace is left. */
static void expect_trace(et_gpt *g, const char *fields, const char *name, size_t columns)
{
    et_step s;
    const et_gpt_tensor *w = tensor(g, name);
    capture(&s, fields, LAYER_1);
    run(&s);
    double got = inner(s.in.dy, s.fwd.y, M * N * columns);
    ck_assert_double_eq_tol(got, inner(w->value, w->gradient, w->count), 1e-13);
    ck_assert(fabs(got) > 1e-6);
    et_step_free(&s);
}

START_TEST(gradients_of_a_captured_layer_are_the_models)
{
    et_step ffn, head;
    int32_t tokens[B * (T + 1)];
    double loss;
    save_model(rules[_i]);
    et_gpt *g = read_model();
    for (size_t m = 0; m < M; m++) {
        read_tokens(tokens, m);
        ck_assert_int_eq(et_gpt_forward(g, false, tokens, &loss, NULL, &error), ET_OK);
        ck_assert_int_eq(et_gpt_backward(g, 1.0 / M, &error), ET_OK);
    }
    capture(&ffn, "", LAYER_1);
    run(&ffn);
    expect_gradient(g, "layers.1.w_up", ffn.bwd.up);
    expect_gradient(g, "layers.1.w_down", ffn.bwd.down);
    if (is_moe(&ffn.c)) {
        expect_gradient(g, "layers.1.w_router", ffn.bwd.router);
        expect_gradient(g, "layers.1.shared_up", ffn.bwd.shared_up);
        expect_gradient(g, "layers.1.shared_down", ffn.bwd.shared_down);
    }
    if (ffn.in.ema) ck_assert(memcmp(ffn.in.ema, tensor(g, "layers.1.ema")->value, 4 * sizeof(et_real)) == 0);
    capture(&head, ",'layer':'cross_entropy'", "");
    run(&head);
    expect_gradient(g, "head", head.model.dhead);
    expect_trace(g, ",'layer':'attention'", "layers.1.w_o", HEADS * E);
    expect_trace(g, ",'layer':'rmsnorm'", "layers.1.w_qkv", D);
    et_step_free(&ffn);
    et_step_free(&head);
    et_gpt_free(g);
}
END_TEST

/* The first layer is dense; fewer tokens are one micro-batch. */
START_TEST(sizes_are_the_models)
{
    et_step s;
    save_model(rules[0]);
    capture(&s, "", LAYER_1);
    ck_assert(is_moe(&s.c) && s.c.rule == ET_ET && s.c.has_capacity && s.c.d_expert == 5);
    ck_assert(s.c.tokens == M * N && s.c.micro_batches == M && s.c.step == 70 && s.c.ema_updates == 70);
    ck_assert_uint_eq(strlen(s.c.input.checkpoint_fnv1a), 16);
    et_step_free(&s);
    capture(&s, ",'tokens':18,'precision':'bf16'", ",'checkpoint_layer':0");
    ck_assert(is_dense(&s.c) && s.c.d_expert == HIDDEN && s.c.tokens == 18 && s.c.micro_batches == 1);
    et_step_free(&s);
    capture(&s, ",'layer':'attention'", LAYER_1);
    ck_assert(s.c.heads == HEADS && s.c.kv_heads == 1 && s.c.sequence == T && s.c.d_model == HEADS * E);
    et_step_free(&s);
    capture(&s, ",'layer':'cross_entropy'", "");
    ck_assert(s.c.vocab == V && s.c.softcap == 15);
    et_step_free(&s);
}
END_TEST

/* ---- what is refused ---- */

START_TEST(contradictions_are_named)
{
    static const struct {
        const char *fields, *input, *part;
    } bad[] = {{",'d_model':9", LAYER_1, "d_model = 9, but its layer of"},
               {",'rule':'tc'", LAYER_1, "rule = \"tc\", but"},
               {",'layer':'dense'", LAYER_1, "layer = \"dense\", but"},
               {",'layer':'moe'", ",'checkpoint_layer':0", "has \"dense\""},
               {",'tokens':20", LAYER_1, "whole sequences of 6"},
               {",'tokens':0", LAYER_1, "tokens = 0; allowed"},
               {",'tokens':600", LAYER_1, "use fewer tokens"},
               {",'layer':'rope'", LAYER_1, "input.source"},
               {",'mode':'eval'", LAYER_1, "mode"},
               {",'top_k':1,'shared':false", LAYER_1, "shared = false, but"},
               {",'nosuch':1", LAYER_1, "unknown field nosuch"},
               {"", "", "input.checkpoint_layer is missing"},
               {"", ",'checkpoint_layer':2", "input.checkpoint_layer = 2;"},
               {"", ",'checkpoint_layer':1.5", "input.checkpoint_layer = 1.5; allowed"},
               {"", LAYER_1 ",'seed':3", "input.seed"},
               {"", LAYER_1 ",'checkpoint_fnv1a':'0123456789abcdef'", "another checkpoint"},
               {",'layer':'cross_entropy'", LAYER_1, "does not apply"}};
    save_model(rules[0]);
    for (size_t i = 0; i < COUNT(bad); i++) {
        et_step s;
        ck_assert_int_eq(try_capture(&s, bad[i].fields, bad[i].input), ET_EINVAL);
        ck_assert_msg(strstr(error.text, bad[i].part) != NULL, "no '%s' in: %s", bad[i].part, error.text);
        et_step_free(&s);
    }
}
END_TEST

/* A checkpoint that changed after its case was read, and a case that nobody completed. */
START_TEST(a_case_is_compared_when_it_is_captured)
{
    et_step s;
    save_model(rules[0]);
    capture(&s, "", LAYER_1);
    et_case c = s.c;
    et_step_free(&s);
    save_model(rules[1]);
    ck_assert_int_eq(et_step_create(&s, &c, 0, &error), ET_OK);
    ck_assert_int_eq(et_capture_inputs(&s, 0, &error), ET_EINVAL);
    ck_assert_ptr_nonnull(strstr(error.text, "rule = \"et\", but"));
    ck_assert_int_eq(et_step_draw_inputs(&s, &error), ET_EINVAL);
    ck_assert_ptr_nonnull(strstr(error.text, "et_capture_inputs"));
    et_step_free(&s);
    save_model(rules[0]);
    ck_assert_int_eq(et_step_create(&s, &c, 0, &error), ET_OK);
    ck_assert_int_eq(et_capture_inputs(&s, 100, &error), ET_ENOMEM);
    et_step_free(&s);
}
END_TEST

/* ---- the tool ---- */

static const char one_case[] = "{\"name\": \"a\", \"precision\": \"bf16\", \"input\": {\"source\": \"checkpoint\","
                               " \"checkpoint\": \"model\", \"checkpoint_layer\": 1, \"text\": \"./words\"}}";

static void expect_one_line(int status, const char *part)
{
    expect_failure(status, 2, part);
    ck_assert_msg(strchr(errors, '\n') == errors + strlen(errors) - 1, "%s", errors);
    ck_assert(!exists("a.safetensors"));
}

#define GENERATE(...) RUN("generate", "--case", in_folder("case.json"), "--out", folder, __VA_ARGS__)

/* Paths begin at the case's file; a bundle needs neither checkpoint nor text. */
START_TEST(a_bundle_is_whole_by_itself)
{
    save_model(rules[0]);
    write_text("case.json", one_case);
    ck_assert_msg(GENERATE("--threads", "1") == 0, "%s", errors);
    ck_assert_int_eq(GENERATE("--emulate", "bf16"), 0);
    unlink(in_folder("model"));
    unlink(in_folder("words"));
    ck_assert_int_eq(RUN("verify", in_folder("a.safetensors"), "--quiet"), 0);
    ck_assert_int_eq(RUN("verify", in_folder("a.safetensors"), in_folder("a.bf16.safetensors"), "--quiet",
                         "--profile", "bf16"),
                     0);
    ck_assert_int_eq(RUN("show", in_folder("a.safetensors"), "--format", "json"), 0);
    json_t *report = parse_output(), *input = json_object_get(json_object_get(report, "case"), "input");
    ck_assert_uint_eq(json_string_length(json_object_get(input, "checkpoint_fnv1a")), 16);
    json_decref(report);
    unlink(in_folder("a.safetensors"));
    expect_one_line(GENERATE("--threads", "1"), "cannot open");
}
END_TEST

/* Bytes written over a place of the model's file, from its end where `at` is negative. */
static void write_over(long at, const char *bytes, size_t count)
{
    FILE *file = fopen(in_folder("model"), "r+b");
    ck_assert_ptr_nonnull(file);
    ck_assert_int_eq(fseek(file, at, at < 0 ? SEEK_END : SEEK_SET), 0);
    ck_assert_uint_eq(fwrite(bytes, 1, count, file), count);
    ck_assert_int_eq(fclose(file), 0);
}

START_TEST(hostile_checkpoints_give_one_line)
{
    write_text("case.json", one_case);
    expect_one_line(GENERATE("--threads", "1"), "cannot open");
    write_text("model", "no checkpoint at all");
    expect_one_line(GENERATE("--threads", "1"), "not a safetensors file");
    save_model(rules[0]);
    write_over(-8, "\xff\xff\xff\xff\xff\xff\xff\x7f", 8);
    expect_one_line(GENERATE("--threads", "1"), "not finite");
    save_model(rules[0]);
    ck_assert_int_eq(truncate(in_folder("model"), 3000), 0);
    expect_one_line(GENERATE("--threads", "1"), "model");
    save_model(rules[0]);
    write_over(8, "[", 1);
    expect_one_line(GENERATE("--threads", "1"), "model");
    expect_one_line(GENERATE("--set", "input.checkpoint=case.json"), "case.json");
    save_model(rules[0]);
    expect_one_line(GENERATE("--text", "/nosuch"), "/nosuch");
    expect_one_line(GENERATE("--set", "input.text=./case"), "cannot open");
    ck_assert_int_eq(GENERATE("--text", "Makefile"), 0); /* another text */
}
END_TEST

/* ---- values alone ---- */

START_TEST(values_alone_are_enough_and_no_more)
{
    static const et_dtype types[] = {ET_F64, ET_F32, ET_BF16, ET_F16};
    et_gpt *g = make_model(rules[0]), *again;
    for (size_t i = 0; i < COUNT(types); i++) {
        et_tensor_file file;
        const et_gpt_tensor *t;
        ck_assert_int_eq(et_checkpoint_write_values(in_folder("model"), g, types[i], NULL, &error), ET_OK);
        ck_assert_msg(et_checkpoint_read(in_folder("model"), 0, 0, &again, &file, &error) == ET_OK, "%s",
                      error.text);
        ck_assert(!et_checkpoint_has_moments(&file));
        for (size_t k = 0; (t = et_gpt_tensor_at(again, k)) != NULL; k++)
            for (size_t j = 0; j < t->count; j++) {
                double value = (double)et_gpt_tensor_at(g, k)->value[j];
                ck_assert(t->value[j] == (et_real)et_round_to_dtype(value, types[i]));
                ck_assert(!t->first || t->first[j] == 0);
            }
        et_tensor_file_close(&file);
        et_gpt_free(again);
    }
    et_gpt_free(g);
}
END_TEST

START_TEST(training_ends_with_values_alone_on_request)
{
    write_text("config", "{\"d_model\": 8, \"heads\": 2, \"layers\": 2, \"sequence\": 8, \"batch\": 2,"
                         " \"steps\": 3, \"ffn\": {\"experts\": 4}}");
    const char *text = "/usr/share/common-licenses/GPL-3", *out = in_folder("run");
    ck_assert_msg(RUN("train", "--text", text, "--config", in_folder("config"), "--out", out, "--final",
                      "bf16") == 0,
                  "%s", errors);
    ck_assert_int_eq(RUN("eval", in_folder("run/final.safetensors"), "--text", text, "--batches", "1"), 0);
    ck_assert_int_eq(unlink(in_folder("run/checkpoint.safetensors")), 0);
    expect_failure(RUN("train", "--text", text, "--out", out, "--resume"), 2, "no training goes on");
    expect_failure(RUN("train", "--text", text, "--out", in_folder("b"), "--final", "f8"), 2, "f8");
}
END_TEST

static void end(void)
{
    char command[5000];
    snprintf(command, sizeof command, "rm -rf '%s'", in_folder("run"));
    ck_assert_int_eq(system(command), 0);
    remove_all();
}

/* ---- the committed cases ---- */

static et_verdict judge(const cp_subject *s, const cd_candidate *k)
{
    et_verdict v;
    ck_assert_msg(cp_judge(&v, s, k->tensors, k->count, false, NULL, &error) == ET_OK, "%s", error.text);
    return v;
}

static void run_kernel(cd_candidate *k, const cp_subject *s, const char *kernel, const cd_fault *fault,
                       double amount)
{
    ck_assert_msg(cd_run(k, &s->golden, s->profile, cd_kernel_find(kernel), fault, amount, 1, &error) == ET_OK,
                  "%s", error.text);
}

static void expect_honest(const cp_subject *s)
{
    static const char *const kernels[] = {"sequential", "blocked", "split-4", "fused-combine"};
    for (size_t i = 0; i < COUNT(kernels); i++) {
        cd_candidate k;
        run_kernel(&k, s, kernels[i], NULL, 0);
        et_verdict v = judge(s, &k);
        ck_assert_msg(v.outcome == ET_PASS, "%s, %s, %s: %s", s->golden.c.name, s->profile->name, kernels[i],
                      v.line);
        et_verdict_free(&v);
        cd_free(&k);
    }
}

/* Of one fault in some cases. */
typedef struct fate {
    bool planted, rejected;
} fate;

/* Tensors of another shape, or integers of another range, are refused before they are judged. */
static void plant_all(fate *fates, const cp_subject *s)
{
    const cd_fault *fault;
    for (size_t f = 0; (fault = cd_fault_at(f)) != NULL; f++) {
        cd_candidate k;
        et_verdict v;
        double amount = fault->usual != 1e-3 ? 0 : strcmp(s->profile->name, "f32") == 0 ? 1e-4 : 2e-2;
        if (!fault->applies(&s->golden)) continue;
        run_kernel(&k, s, "sequential", fault, amount);
        if (k.planted) {
            et_status status = cp_judge(&v, s, k.tensors, k.count, false, NULL, &error);
            ck_assert(status == ET_OK || status == ET_EINVAL);
            fates[f].planted = true;
            fates[f].rejected |= status == ET_EINVAL || v.outcome == ET_MISMATCH;
            if (status == ET_OK) et_verdict_free(&v);
        }
        cd_free(&k);
    }
}

/* Roundings of a kind that bf16 kernels make anyway: to see that there is one more takes more numbers than
 * these layers have. */
static bool is_below_rounding(const char *fault, const char *profile)
{
    static const char *const small[] = {"combine-bf16", "dx-bf16", "truncated-outputs"};
    bool found = false;
    for (size_t i = 0; i < COUNT(small); i++) found |= strcmp(fault, small[i]) == 0;
    return found && strcmp(profile, "bf16") == 0;
}

/* Every fault that changes something is rejected in one of the layers at least. */
START_TEST(the_real_cases_are_judged_as_others_are)
{
    static const char *const profiles[] = {"f32", "bf16"};
    enum { FAULTS = 400 };
    fate fates[FAULTS] = {{0}};
    size_t cases, planted = 0;
    const char *data = getenv("ETREF_DATA"), *profile = profiles[_i];
    et_case *suite = cp_suite(data ? data : "data", "real.json", &cases, &error);
    ck_assert_msg(suite != NULL, "%s", error.text);
    for (size_t i = 0; i < cases; i++) {
        cp_subject s;
        if (!is_ffn(&suite[i])) continue;
        ck_assert_msg(cp_subject_open(&s, &suite[i], &error) == ET_OK, "%s", error.text);
        ck_assert_int_eq(cp_subject_profile(&s, et_profile_find(profile), &error), ET_OK);
        expect_honest(&s);
        plant_all(fates, &s);
        cp_subject_close(&s);
    }
    free(suite);
    for (size_t f = 0; cd_fault_at(f) != NULL; f++) {
        const char *name = cd_fault_at(f)->name;
        ck_assert_uint_lt(f, FAULTS);
        planted += fates[f].planted;
        ck_assert_msg(!fates[f].planted || fates[f].rejected || is_below_rounding(name, profile),
                      "%s is accepted everywhere under %s", name, profile);
    }
    ck_assert_uint_gt(planted, 100);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("capture");
    TCase *all = add_case(suite, "all");
    setenv("OMP_NUM_THREADS", "1", 1);
    tcase_add_checked_fixture(all, begin, end);
    tcase_add_loop_test(all, what_a_layer_gets_is_that_of_a_pass_by_hand, 0, COUNT(rules));
    tcase_add_loop_test(all, gradients_of_a_captured_layer_are_the_models, 0, COUNT(rules));
    tcase_add_test(all, a_bundle_is_whole_by_itself);
    tcase_add_loop_test(all, the_real_cases_are_judged_as_others_are, 0, 2);
    tcase_add_test(all, sizes_are_the_models);
    tcase_add_test(all, contradictions_are_named);
    tcase_add_test(all, a_case_is_compared_when_it_is_captured);
    tcase_add_test(all, hostile_checkpoints_give_one_line);
    tcase_add_test(all, values_alone_are_enough_and_no_more);
    tcase_add_test(all, training_ends_with_values_alone_on_request);
    return run_suite(suite);
}

#else

int main(void)
{
    return EXIT_SUCCESS; /* the numbers by hand are doubles, and the float build does not judge */
}

#endif
