/* test_inputs.c: the in.* tensors of a case: drawn as the sources promise, and checked when
 * brought.
 *
 * Statistical tests allow five standard deviations; as the numbers are fixed, a test that passes
 * once always passes.
 */
#include "etref/matmul.h"
#include "etref/random.h"
#include "tests/check_main.h"
#include "tests/run_case.h"

#include <math.h>
#include <stdarg.h>
#include <sys/stat.h>
#include <unistd.h>

#define COUNT(array) (sizeof(array) / sizeof(array)[0])

/* A case in single quotes, made as by printf, drawn. The caller frees the step. */
__attribute__((format(printf, 2, 3))) static void draw(et_step *s, const char *format, ...)
{
    char json[1024];
    et_case c;
    et_error error;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(json, sizeof json, format, arguments);
    va_end(arguments);
    ck_assert_msg(parse_quoted(&c, json, &error) == ET_OK, "%s", error.text);
    draw_case(s, &c);
}

/* The tensors that hold values in the case's precision. */
typedef struct view {
    const et_real *at;
    size_t count;
} view;

enum { STORED = 7 };

static void list_stored(const et_step *s, view list[STORED])
{
    const et_case *c = &s->c;
    size_t N = c->tokens, d = c->d_model, h = c->d_expert, hs = c->shared_d_expert;
    size_t n = c->layer == ET_MOE ? c->experts : 1;
    const view all[STORED] = {{s->in.x, N * d},           {s->in.dy, N * d},
                              {s->in.router, n * d},      {s->in.up, n * h * d},
                              {s->in.down, n * d * h},    {s->in.shared_up, hs * d},
                              {s->in.shared_down, d * hs}};
    for (int i = 0; i < STORED; i++) list[i] = all[i].at != NULL ? all[i] : (view){NULL, 0};
}

static bool same(const et_real *a, const et_real *b, size_t count)
{
    return memcmp(a, b, count * sizeof *a) == 0;
}

static const char *const sources[] = {"normal", "text",    "integer", "ties",
                                      "skewed", "outlier", "tiny",    "huge"};

/* ---- every source ---- */

START_TEST(the_same_case_gives_the_same_bits)
{
    const char *json =
        "{'name':'%s','tokens':12,'d_model':5,'d_expert':6,'experts':4,'gate':'relu',"
        "'ema_updates':9,'input':{'source':'%s','seed':%d}}";
    for (size_t i = 0; i < COUNT(sources); i++) {
        et_step a, b, other;
        view va[STORED], vb[STORED], vo[STORED];
        draw(&a, json, "a", sources[i], 3);
        draw(&b, json, "b", sources[i], 3);
        draw(&other, json, "a", sources[i], 4);
        list_stored(&a, va);
        list_stored(&b, vb);
        list_stored(&other, vo);
        for (int k = 0; k < STORED; k++) {
            ck_assert(same(va[k].at, vb[k].at, va[k].count));
            ck_assert_msg(!same(va[k].at, vo[k].at, va[k].count), "%s: tensor %d ignores the seed",
                          sources[i], k);
        }
        ck_assert(same(a.in.ema, b.in.ema, 4));
        et_step_free(&a);
        et_step_free(&b);
        et_step_free(&other);
    }
}
END_TEST

START_TEST(values_are_those_of_the_precision)
{
    const struct {
        const char *name;
        et_dtype dtype;
    } precisions[] = {{"f64", ET_F64}, {"f32", ET_F32}, {"bf16", ET_BF16}, {"f16", ET_F16}};
    for (size_t i = 0; i < COUNT(sources) * COUNT(precisions); i++) {
        const char *source = sources[i % COUNT(sources)];
        size_t p = i / COUNT(sources);
        et_step s;
        view list[STORED];
        draw(&s,
             "{'name':'a','tokens':12,'d_model':5,'d_expert':6,'experts':4,'gate':'relu',"
             "'precision':'%s','input':{'source':'%s'}}",
             precisions[p].name, source);
        list_stored(&s, list);
        for (int k = 0; k < STORED; k++)
            for (size_t j = 0; j < list[k].count; j++) {
                et_real rounded =
                    (et_real)et_round_to_dtype((double)list[k].at[j], precisions[p].dtype);
                ck_assert_msg(list[k].at[j] == rounded, "%s in %s: tensor %d, element %zu: %g",
                              source, precisions[p].name, k, j, (double)list[k].at[j]);
            }
        et_step_free(&s);
    }
}
END_TEST

/* More tokens, another expert, no shared expert: what was there before stays as it was. */
START_TEST(a_tensor_never_shifts_another)
{
    const char *json = "{'name':'a','tokens':%d,'d_model':5,'d_expert':6,'experts':%d,'shared':%s,"
                       "'rule':'ec','input':{'source':'%s'}}";
    for (size_t i = 0; i < COUNT(sources); i++) {
        et_step small, large;
        if (strcmp(sources[i], "integer") == 0) continue; /* its gate is not the default */
        if (strcmp(sources[i], "ties") == 0) continue;    /* the last group is zero */
        draw(&small, json, 8, 4, "true", sources[i]);
        draw(&large, json, 16, 6, "false", sources[i]);
        ck_assert(same(small.in.x, large.in.x, 8 * 5));
        ck_assert(same(small.in.dy, large.in.dy, 8 * 5));
        ck_assert(same(small.in.router, large.in.router, 4 * 5));
        ck_assert(same(small.in.up, large.in.up, (size_t)4 * 6 * 5));
        ck_assert(same(small.in.down, large.in.down, (size_t)4 * 5 * 6));
        et_step_free(&small);
        et_step_free(&large);
    }
}
END_TEST

/* Mean and standard deviation of `count` numbers, within five deviations of what they should be. */
static void check_moments(const et_real *at, size_t count, double mean, double deviation)
{
    double sum = 0, squares = 0, n = (double)count;
    for (size_t i = 0; i < count; i++) sum += (double)at[i];
    for (size_t i = 0; i < count; i++)
        squares += ((double)at[i] - sum / n) * ((double)at[i] - sum / n);
    ck_assert_double_le(fabs(sum / n - mean), 5 * deviation / sqrt(n));
    ck_assert_double_le(fabs(sqrt(squares / n) / deviation - 1), 5 / sqrt(2 * n));
}

START_TEST(normal_inputs_have_the_promised_moments)
{
    et_step s;
    draw(&s, "{'name':'a','tokens':200,'d_model':64,'d_expert':40,'experts':8,'shared_d_expert':30,"
             "'input':{'source':'normal','mean':3.0,'router_mean':-2.0}}");
    check_moments(s.in.x, 200 * 64, 3, 1);
    check_moments(s.in.dy, 200 * 64, 0, 1);
    check_moments(s.in.router, 8 * 64, -2.0 / 64, sqrt(1.0 / 64));
    check_moments(s.in.up, (size_t)8 * 40 * 64, 0, sqrt(1.0 / 64));
    check_moments(s.in.down, (size_t)8 * 64 * 40, 0, sqrt(1.0 / 40));
    check_moments(s.in.shared_up, 30 * 64, 0, sqrt(1.0 / 64));
    check_moments(s.in.shared_down, 64 * 30, 0, sqrt(1.0 / 30));
    et_step_free(&s);
}
END_TEST

/* a = factor b, but for one rounding of each to et_real and one of the product. */
static void check_ratio(et_real a, et_real b, double factor)
{
    double product = (double)b * factor;
    ck_assert_double_le(fabs((double)a - product), 3 * ET_UNIT_ROUNDOFF * fabs(product));
}

START_TEST(scaled_sources_are_multiples_of_normal)
{
    const char *json = "{'name':'a','tokens':64,'d_model':64,'d_expert':4,'experts':4,"
                       "'input':{'source':'%s','seed':5}}";
    et_step normal, tiny, huge, outlier;
    size_t count = 64 * 64, counts[9] = {0};
    draw(&normal, json, "normal");
    draw(&tiny, json, "tiny");
    draw(&huge, json, "huge");
    draw(&outlier, json, "outlier");
    for (size_t i = 0; i < count; i++) {
        check_ratio(tiny.in.x[i], normal.in.x[i], 1e-4);
        check_ratio(huge.in.dy[i], normal.in.dy[i], 1e4);
        int exponent;
        ck_assert(frexp((double)outlier.in.x[i] / (double)normal.in.x[i], &exponent) == 0.5);
        ck_assert(exponent >= 1 && exponent <= 9);
        counts[exponent - 1]++;
    }
    for (int e = 0; e < 8; e++) { /* 2^e with probability 2^-(e+1) */
        double expected = ldexp((double)count, -e - 1);
        ck_assert_double_le(fabs((double)counts[e] - expected), 5 * sqrt(expected));
    }
    ck_assert(same(normal.in.up, huge.in.up, (size_t)4 * 4 * 64));
    et_step_free(&normal);
    et_step_free(&tiny);
    et_step_free(&huge);
    et_step_free(&outlier);
}
END_TEST

/* ---- text ---- */

static const char *const text_case =
    "{'name':'a','tokens':600,'d_model':7,'d_expert':4,'experts':4,'rule':'ec',"
    "'input':{'source':'text','text':'%s','text_offset':%d}}";

START_TEST(equal_windows_of_text_are_equal_tokens)
{
    enum { N = 600, D = 7, OFFSET = 1000 };
    unsigned char bytes[N];
    FILE *file = fopen("/usr/share/common-licenses/GPL-3", "rb");
    ck_assert_ptr_nonnull(file);
    ck_assert_int_eq(fseek(file, OFFSET, SEEK_SET), 0);
    ck_assert_uint_eq(fread(bytes, 1, N, file), N);
    fclose(file);
    et_step s;
    size_t repeated = 0;
    draw(&s, text_case, "GPL-3", OFFSET);
    for (size_t t = 3; t < N; t++) {
        double squares = 0;
        for (size_t j = 0; j < D; j++)
            squares += (double)s.in.x[t * D + j] * (double)s.in.x[t * D + j];
        ck_assert_double_le(fabs(squares / D - 1), 1e-6); /* root mean square 1 */
        for (size_t u = 3; u < t; u++) {
            bool windows = memcmp(bytes + t - 3, bytes + u - 3, 4) == 0;
            ck_assert(same(s.in.x + t * D, s.in.x + u * D, D) == windows);
            repeated += windows;
            ck_assert(!same(s.in.dy + t * D, s.in.dy + u * D, D));
        }
    }
    ck_assert_uint_gt(repeated, 20);
    et_step_free(&s);
}
END_TEST

/* The calibration pool of the EMA is the text that follows: as if those bytes had been the step. */
START_TEST(thresholds_come_from_the_text_that_follows)
{
    const char *json =
        "{'name':'a','tokens':%d,'d_model':7,'d_expert':4,'experts':4,'ema_updates':1,"
        "'ema_decay':0.5,'input':{'source':'text'}}";
    et_step half, whole;
    et_real scores[64 * 4], kth[4];
    draw(&half, json, 64);
    draw(&whole, json, 128);
    et_matmul(ET_PLAIN, 64, 4, 7, et_rows(whole.in.x + (size_t)64 * 7, 7),
              et_transposed(whole.in.router, 7), false, scores, 4);
    ck_assert_int_eq(et_kth_largest(64, 4, 16, scores, kth, NULL), ET_OK);
    for (int i = 0; i < 4; i++) ck_assert(half.in.ema[i] == kth[i] * (et_real)0.5);
    et_step_free(&half);
    et_step_free(&whole);
}
END_TEST

static void check_text_error(const char *name, int offset, et_status status, const char *message)
{
    char json[1024];
    et_case c;
    et_step s;
    et_error error = {""};
    snprintf(json, sizeof json, text_case, name, offset);
    ck_assert_msg(parse_quoted(&c, json, &error) == ET_OK, "%s", error.text);
    ck_assert_int_eq(et_step_create(&s, &c, 0, &error), ET_OK);
    ck_assert_int_eq(et_step_draw_inputs(&s, &error), status);
    ck_assert_str_eq(error.text, message);
    et_step_free(&s);
}

START_TEST(a_text_that_cannot_be_used_says_why)
{
    char folder[] = "/tmp/etref-text-XXXXXX", path[64], message[512];
    ck_assert_ptr_nonnull(mkdtemp(folder));
    check_text_error(
        "no-such-licence", 0, ET_EIO,
        "input.text '/usr/share/common-licenses/no-such-licence': cannot open: No such file or "
        "directory");
    snprintf(message, sizeof message, "input.text '%s/': is a folder; name any file of text",
             folder);
    snprintf(path, sizeof path, "%s/", folder);
    check_text_error(path, 0, ET_EIO, message);

    snprintf(path, sizeof path, "%s/pipe", folder);
    ck_assert_int_eq(mkfifo(path, 0600), 0);
    snprintf(message, sizeof message,
             "input.text '%s': is a pipe, device or socket; name any file of text", path);
    check_text_error(path, 0, ET_EIO, message);
    ck_assert_int_eq(unlink(path), 0);

    snprintf(path, sizeof path, "%s/short", folder);
    FILE *file = fopen(path, "wb");
    ck_assert_ptr_nonnull(file);
    for (int i = 0; i < 601; i++) putc('a' + i % 26, file);
    fclose(file);
    et_step s;
    draw(&s, text_case, path, 1); /* just long enough */
    et_step_free(&s);
    snprintf(message, sizeof message,
             "input.text '%s': 601 bytes, but the case uses 600 from byte 2 on; use fewer tokens, "
             "a smaller "
             "input.text_offset or a longer text",
             path);
    check_text_error(path, 2, ET_EINVAL, message);
    ck_assert_int_eq(unlink(path), 0);
    ck_assert_int_eq(rmdir(folder), 0);
}
END_TEST

/* ---- ties, integers, skewed ---- */

START_TEST(tied_tokens_and_experts_are_equal)
{
    enum { N = 12, D = 5, COPIES = 3 };
    et_step s, jittered;
    const char *json = "{'name':'a','tokens':12,'d_model':5,'d_expert':6,'experts':5,'rule':'tc',"
                       "'balance':'lossfree','input':{'source':'ties','copies':3,'jitter':%g}}";
    draw(&s, json, 0.0);
    draw(&jittered, json, 0.25);
    for (size_t t = 0; t < N; t++) {
        size_t first = t - t % COPIES;
        bool last = first + COPIES == N;
        for (size_t j = 0; j < D; j++) {
            et_real x = s.in.x[t * D + j];
            double factor = 1 + 0.25 * (double)(t % COPIES);
            ck_assert(x == s.in.x[first * D + j]);
            ck_assert((x == 0) == last);
            if (last) ck_assert_int_eq(signbit(x) != 0, (t - first) % 2 == 1);
            check_ratio(jittered.in.x[t * D + j], x, factor);
        }
        if (t > first) ck_assert(!same(s.in.dy + t * D, s.in.dy + first * D, D));
    }
    ck_assert(same(s.in.router, s.in.router + D, D));
    ck_assert(same(s.in.router + 2 * D, s.in.router + 3 * D, D));
    ck_assert(!same(s.in.router, s.in.router + 2 * D, D));
    ck_assert(!same(s.in.router + 2 * D, s.in.router + 4 * D, D));
    ck_assert(s.in.bias[0] == s.in.bias[1] && s.in.bias[0] != s.in.bias[2]);
    et_step_free(&s);
    et_step_free(&jittered);
}
END_TEST

/* The threshold of a tied case equals a score of the batch, to the last bit. */
START_TEST(tied_thresholds_equal_a_score)
{
    et_step s;
    draw(&s, "{'name':'a','tokens':24,'d_model':5,'d_expert':6,'experts':4,'micro_batches':2,"
             "'ema_updates':7,'input':{'source':'ties','copies':4}}");
    ck_assert_int_eq(et_step_run(&s, ET_PLAIN, NULL, NULL, NULL), ET_OK);
    for (size_t i = 0; i < 4; i++) {
        int equal = 0;
        for (size_t t = 0; t < 12; t++) equal += s.fwd.logits[t * 4 + i] == s.route.threshold[i];
        ck_assert_int_ge(equal, 4);
    }
    et_step_free(&s);
}
END_TEST

/* How many significant bits an integer needs; 99 for what is none. */
static int significant_bits(double value)
{
    int exponent, bits = 0;
    if (value != floor(value)) return 99;
    for (double m = frexp(fabs(value), &exponent); m != 0; m = 2 * m - floor(2 * m)) bits++;
    return bits;
}

static void check_bits(const char *name, const et_real *at, size_t count, const char *json)
{
    for (size_t i = 0; at != NULL && i < count; i++)
        ck_assert_msg(significant_bits((double)at[i]) <= 8, "%s[%zu] = %g in %s", name, i,
                      (double)at[i], json);
}

/* Everything that a kernel stores fits the 8 bits of bf16, at the largest sizes promised. */
static void check_integer_case(const char *json)
{
    et_step s;
    draw(&s, "%s", json);
    const et_case *c = &s.c;
    size_t N = c->tokens, d = c->d_model, h = c->d_expert, n = c->experts, hs = c->shared_d_expert;
    for (size_t i = 0; i < N * d; i++) ck_assert(fabs((double)s.in.x[i]) <= 1);
    ck_assert_int_eq(et_step_run(&s, ET_PLAIN, NULL, NULL, NULL), ET_OK);
    size_t S = s.assignment.slots;
    const struct {
        const char *name;
        const et_real *at;
        size_t count;
    } list[] = {{"in.dy", s.in.dy, N * d},
                {"in.w_router", s.in.router, n * d},
                {"in.w_up", s.in.up, n * h * d},
                {"in.w_down", s.in.down, n * d * h},
                {"fwd.logits", s.fwd.logits, N * n},
                {"fwd.slot_pre", s.fwd.slot_pre, S * h},
                {"fwd.slot_act", s.fwd.slot_act, S * h},
                {"fwd.slot_out", s.fwd.slot_out, S * d},
                {"fwd.shared_out", s.fwd.shared_out, N * d},
                {"fwd.y", s.fwd.y, N * d},
                {"bwd.x", s.bwd.x, N * d},
                {"bwd.w_router", s.bwd.router, n * d},
                {"bwd.w_up", s.bwd.up, n * h * d},
                {"bwd.w_down", s.bwd.down, n * d * h},
                {"bwd.shared_up", s.bwd.shared_up, hs * d},
                {"bwd.shared_down", s.bwd.shared_down, d * hs},
                {"bwd.logits", s.bwd.logits, N * n},
                {"bwd.slot_weight", s.bwd.slot_weight, S},
                {"bwd.slot_out", s.bwd.slot_out, S * d},
                {"bwd.slot_act", s.bwd.slot_act, S * h},
                {"bwd.slot_pre", s.bwd.slot_pre, S * h},
                {"bwd.shared_act", s.bwd.shared_act, N * hs},
                {"bwd.shared_pre", s.bwd.shared_pre, N * hs}};
    for (size_t i = 0; i < COUNT(list); i++)
        check_bits(list[i].name, list[i].at, list[i].count, json);
    et_step_free(&s);
}

START_TEST(integer_cases_stay_integers_of_eight_bits)
{
    const char *rules[] = {"'rule':'tc','top_k':2", "'rule':'ec','granularity':2", "'rule':'et'"};
    for (int seed = 0; seed < 12; seed++)
        for (size_t r = 0; r < COUNT(rules); r++) {
            char json[512];
            snprintf(
                json, sizeof json,
                "{'name':'a','tokens':64,'d_model':32,'d_expert':32,'experts':8,'gate':'relu',%s,"
                "'precision':'bf16','input':{'source':'integer','seed':%d}}",
                rules[r], seed);
            check_integer_case(json);
        }
}
END_TEST

START_TEST(a_hot_expert_draws_nearly_everything)
{
    et_step s;
    draw(&s, "{'name':'a','tokens':200,'d_model':16,'d_expert':4,'experts':8,'rule':'tc',"
             "'input':{'source':'skewed','hot':5}}");
    ck_assert_int_eq(et_step_run(&s, ET_PLAIN, NULL, NULL, NULL), ET_OK);
    ck_assert_int_ge(s.assignment.load[5], 190);
    et_step_free(&s);
}
END_TEST

/* ---- state ---- */

/* u updates with one cutoff leave (1 - beta^u) of it; none leave zero. */
START_TEST(the_average_grows_with_its_updates)
{
    const char *json =
        "{'name':'a','tokens':48,'d_model':8,'d_expert':4,'experts':6,'rule':'ec',"
        "'pool_tokens':12,'ema_decay':0.5,'ema_updates':%d,'input':{'source':'normal'}}";
    et_step none, one, three, many;
    draw(&none, json, 0);
    draw(&one, json, 1);
    draw(&three, json, 3);
    draw(&many, json, 100000);
    for (size_t i = 0; i < 6; i++) {
        ck_assert(none.in.ema[i] == 0 && many.in.ema[i] != 0);
        ck_assert(one.in.ema[i] == many.in.ema[i] * (et_real)0.5); /* exact: powers of two */
        ck_assert(three.in.ema[i] == many.in.ema[i] * (et_real)0.875);
    }
    et_step_free(&none);
    et_step_free(&one);
    et_step_free(&three);
    et_step_free(&many);
}
END_TEST

START_TEST(loads_of_all_ranks_add_up)
{
    et_step s;
    double sum = 0;
    draw(&s,
         "{'name':'a','tokens':60,'d_model':4,'d_expert':4,'experts':8,'rule':'tc','top_k':3,"
         "'micro_batches':2,'balance':'lossfree','global_load':true,'input':{'source':'normal'}}");
    for (size_t i = 0; i < 8; i++) {
        ck_assert(s.in.load[i] > 0);
        ck_assert(s.in.bias[i] != 0 && fabs((double)s.in.bias[i]) < 0.6);
        sum += (double)s.in.load[i];
    }
    ck_assert_double_le(fabs(sum - 3 * 30), 1e-4);
    et_step_free(&s);
}
END_TEST

/* ---- decisive ---- */

/* reach of ref/step/inputs.c, computed again: 2 2^-p max_i sum_j |x_tj||w_ij|. */
static double reach(const et_step *s, size_t t)
{
    size_t d = s->c.d_model;
    double most = 0;
    for (size_t i = 0; i < s->c.experts; i++) {
        double sum = 0;
        for (size_t j = 0; j < d; j++)
            sum += fabs((double)s->in.x[t * d + j] * (double)s->in.router[i * d + j]);
        most = sum > most ? sum : most;
    }
    return ldexp(2 * most, -et_dtype_significand(s->c.precision));
}

START_TEST(decisive_cases_have_no_close_decision)
{
    const char *rules[] = {"'rule':'tc','top_k':2,'balance':'lossfree'",
                           "'rule':'ec','pool_tokens':16",
                           "'rule':'et','ema_updates':5,'capacity_factor':0.25,'micro_batches':2"};
    const char *json =
        "{'name':'a','tokens':64,'d_model':16,'d_expert':4,'experts':4,%s,'precision':"
        "'bf16','input':{'source':'normal','decisive':%s}}";
    for (size_t r = 0; r < COUNT(rules); r++) {
        et_step s, plain;
        size_t kept = 0;
        draw(&plain, json, rules[r], "false");
        draw(&s, json, rules[r], "true");
        ck_assert_int_eq(et_step_run(&s, ET_PLAIN, NULL, NULL, NULL), ET_OK);
        for (size_t t = 0; t < 64; t++) {
            for (size_t i = 0; i < 4; i++)
                ck_assert_double_gt(fabs((double)s.route.margin[t * 4 + i]), reach(&s, t));
            kept += same(s.in.x + t * 16, plain.in.x + t * 16, 16);
        }
        ck_assert_uint_ge(kept, 20); /* only the undecided tokens were redrawn */
        ck_assert_uint_lt(kept, 64);
        et_step_free(&s);
        et_step_free(&plain);
    }
}
END_TEST

START_TEST(what_cannot_be_decided_says_so)
{
    et_case c;
    et_step s;
    et_error error;
    ck_assert_int_eq(
        parse_quoted(&c,
                     "{'name':'a','tokens':2000,'d_model':64,'d_expert':1,'experts':32,"
                     "'rule':'ec','precision':'bf16',"
                     "'input':{'source':'normal','decisive':true}}",
                     &error),
        ET_OK);
    ck_assert_int_eq(et_step_create(&s, &c, 0, &error), ET_OK);
    ck_assert_int_eq(et_step_draw_inputs(&s, &error), ET_EINVAL);
    ck_assert_ptr_nonnull(strstr(error.text, "case 'a': input.decisive: "));
    ck_assert_ptr_nonnull(strstr(error.text,
                                 " tokens were still within rounding of a decision after "
                                 "64 rounds; use fewer tokens or experts, or a longer "
                                 "precision"));
    et_step_free(&s);
}
END_TEST

/* ---- checking ---- */

START_TEST(a_case_without_input_cannot_be_drawn)
{
    et_case c;
    et_step s;
    et_error error;
    ck_assert_int_eq(
        parse_quoted(&c, "{'name':'a','layer':'dense','tokens':1,'d_model':1,'d_expert':1}",
                     &error),
        ET_OK);
    ck_assert_int_eq(et_step_create(&s, &c, 0, &error), ET_OK);
    ck_assert_int_eq(et_step_draw_inputs(&s, &error), ET_EINVAL);
    ck_assert_str_eq(error.text, "case 'a' has no input: its bundle must bring in.x, in.dy and the "
                                 "weights, or the case say how to draw them");
    et_step_free(&s);
}
END_TEST

/* Puts `value` into an element, expects the message, and puts back what was there. */
static void check_spoilt(et_step *s, et_real *element, double value, const char *message)
{
    et_real before = *element;
    et_error error = {""};
    *element = (et_real)value;
    ck_assert_int_eq(et_step_check_inputs(s, &error), ET_EINVAL);
    ck_assert_str_eq(error.text, message);
    *element = before;
    ck_assert_int_eq(et_step_check_inputs(s, &error), ET_OK);
}

START_TEST(inputs_must_be_finite)
{
    et_step s;
    draw(&s, "{'name':'a','tokens':8,'d_model':4,'d_expert':3,'experts':4,'rule':'tc',"
             "'balance':'lossfree','global_load':true,'input':{'source':'normal'}}");
    const struct {
        et_real *element;
        double value;
        const char *message;
    } rows[] = {
        {&s.in.x[31], NAN, "case 'a': in.x[31] = nan; allowed: finite numbers"},
        {&s.in.dy[0], INFINITY, "case 'a': in.dy[0] = inf; allowed: finite numbers"},
        {&s.in.router[15], -INFINITY, "case 'a': in.w_router[15] = -inf; allowed: finite numbers"},
        {&s.in.up[47], NAN, "case 'a': in.w_up[47] = nan; allowed: finite numbers"},
        {&s.in.down[47], NAN, "case 'a': in.w_down[47] = nan; allowed: finite numbers"},
        {&s.in.shared_up[11], NAN, "case 'a': in.shared_up[11] = nan; allowed: finite numbers"},
        {&s.in.shared_down[11], NAN, "case 'a': in.shared_down[11] = nan; allowed: finite numbers"},
        {&s.in.bias[3], NAN, "case 'a': in.bias[3] = nan; allowed: finite numbers"},
        {&s.in.load[3], NAN, "case 'a': in.load[3] = nan; allowed: finite numbers"},
        {&s.in.load[1], -0.5, "case 'a': in.load[1] = -0.5; allowed: 0 or more"},
    };
    for (size_t i = 0; i < COUNT(rows); i++)
        check_spoilt(&s, rows[i].element, rows[i].value, rows[i].message);
    for (size_t i = 0; i < 3; i++) s.in.load[i] = 0;
    check_spoilt(&s, &s.in.load[3], 0, "case 'a': in.load sums to 0; allowed: more than 0");
    et_step_free(&s);
}
END_TEST

START_TEST(an_average_needs_updates_to_be_corrected)
{
    const char *json = "{'name':'a','tokens':8,'d_model':4,'d_expert':3,'experts':4,"
                       "'ema_bias_correction':%s,'ema_updates':%d,'input':{'source':'normal'}}";
    et_step s;
    draw(&s, json, "true", 0);
    check_spoilt(&s, &s.in.ema[2], 0.5,
                 "case 'a': in.ema[2] = 0.5 is not zero but ema_updates is 0; allowed with "
                 "ema_bias_correction: zeros, or the number of updates behind it");
    check_spoilt(&s, &s.in.ema[3], NAN, "case 'a': in.ema[3] = nan; allowed: finite numbers");
    et_step_free(&s);
    draw(&s, json, "false", 0);
    s.in.ema[2] = (et_real)0.5; /* an average of unknown age is legal where nothing divides by it */
    ck_assert_int_eq(et_step_check_inputs(&s, NULL), ET_OK);
    et_step_free(&s);
    draw(&s, json, "true", 1);
    et_step_free(&s);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("inputs");
    TCase *tests = add_case(suite, "every source");
    tcase_add_test(tests, the_same_case_gives_the_same_bits);
    tcase_add_test(tests, values_are_those_of_the_precision);
    tcase_add_test(tests, a_tensor_never_shifts_another);
    tcase_add_test(tests, normal_inputs_have_the_promised_moments);
    tcase_add_test(tests, scaled_sources_are_multiples_of_normal);
    tests = add_case(suite, "text");
    tcase_add_test(tests, equal_windows_of_text_are_equal_tokens);
    tcase_add_test(tests, thresholds_come_from_the_text_that_follows);
    tcase_add_test(tests, a_text_that_cannot_be_used_says_why);
    tests = add_case(suite, "ties, integers, skewed");
    tcase_add_test(tests, tied_tokens_and_experts_are_equal);
    tcase_add_test(tests, tied_thresholds_equal_a_score);
    tcase_add_test(tests, integer_cases_stay_integers_of_eight_bits);
    tcase_add_test(tests, a_hot_expert_draws_nearly_everything);
    tests = add_case(suite, "state");
    tcase_add_test(tests, the_average_grows_with_its_updates);
    tcase_add_test(tests, loads_of_all_ranks_add_up);
    tests = add_case(suite, "decisive");
    tcase_add_test(tests, decisive_cases_have_no_close_decision);
    tcase_add_test(tests, what_cannot_be_decided_says_so);
    tests = add_case(suite, "checking");
    tcase_add_test(tests, a_case_without_input_cannot_be_drawn);
    tcase_add_test(tests, inputs_must_be_finite);
    tcase_add_test(tests, an_average_needs_updates_to_be_corrected);
    return run_suite(suite);
}
