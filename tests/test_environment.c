/* test_environment.c: results do not depend on the caller's floating-point environment, and it is
 * given back as it was.
 *
 * A record is made of what the library computes, number by number, once in the default environment,
 * then again where the caller's thread, its workers or both round another way or flush subnormal
 * numbers to zero. The records must be equal. The cases reach subnormal numbers (logits near -740)
 * and loops that are shared among threads.
 */
#include "etref/etref.h"
#include "tests/check_main.h"
#include "tests/honest.h"
#include "tests/scratch.h"

#include <fenv.h>
#include <omp.h>
#include <pthread.h>

/* ---- hostile environments ---- */

/* How a thread computes, beside the direction of rounding. */
enum { GRADUAL, FLUSHING };

static void set_environment(int direction, int underflow)
{
    fesetround(direction);
#ifdef __SSE__
    unsigned flags = 0x8040; /* MXCSR: flush to zero, denormals are zero */
    unsigned now = __builtin_ia32_stmxcsr();
    __builtin_ia32_ldmxcsr(underflow == FLUSHING ? now | flags : now & ~flags);
#else
    (void)underflow;
#endif
}

/* clang's OpenMP hands the caller's environment to the workers at every loop, and undoes what a loop
 * does to the caller's; gcc's leaves each thread what it has. */
static void set_everywhere(int direction, int underflow)
{
    set_environment(direction, underflow);
#pragma omp parallel
    set_environment(direction, underflow);
}

static int flushes(void)
{
    volatile double small = 0x1p-1060, half = small * 0x1p-4;
    return half == 0 ? FLUSHING : GRADUAL;
}

/* The environment of a thread is the one asked for: 1 + tiny shows the direction. */
static bool is_in(int direction, int underflow)
{
    return fegetround() == direction && flushes() == underflow;
}

static bool can_flush(void)
{
    set_environment(FE_TONEAREST, FLUSHING);
    int found = flushes();
    set_environment(FE_TONEAREST, GRADUAL);
    return found == FLUSHING; /* not under valgrind, which computes with gradual underflow always */
}

/* ---- what is computed ---- */

static const char *const cases[] = {
    "{'name': 'large', 'tokens': 640, 'd_model': 64, 'd_expert': 96, 'experts': 4, 'shared': true, "
    "'capacity_factor': 0.5, 'input': {'source': 'normal'}}",
    "{'name': 'subnormal', 'rule': 'ec', 'tokens': 24, 'd_model': 8, 'd_expert': 8, 'experts': 4, "
    "'input': {'source': 'normal', 'mean': 1, 'router_mean': -740}}",
    "{'name': 'tokens', 'rule': 'ec', 'gate': 'softmax_tokens', 'tokens': 30, 'd_model': 7, "
    "'d_expert': 5, 'experts': 3, 'micro_batches': 2, 'precision': 'bf16', "
    "'input': {'source': 'tiny'}}",
    "{'name': 'choice', 'rule': 'tc', 'top_k': 2, 'gate': 'softmax', 'norm': 'sum', 'tokens': 33, "
    "'d_model': 9, 'd_expert': 8, 'experts': 5, 'balance': 'aux', 'balance_coef': 0.1, "
    "'z_loss_coef': 0.3, 'input': {'source': 'outlier'}}",
    "{'name': 'dense', 'layer': 'dense', 'tokens': 50, 'd_model': 16, 'd_expert': 12, "
    "'input': {'source': 'normal'}}",
};

enum { CASES = sizeof cases / sizeof *cases };

static void record_number(FILE *to, double value)
{
    fwrite(&value, sizeof value, 1, to);
}

static void record_tensors(FILE *to, const et_step *s)
{
    et_tensor_out tensors[ET_MAX_STEP_TENSORS];
    size_t count = et_step_tensors(s, false, tensors);
    for (size_t i = 0; i < count; i++) {
        size_t size = tensors[i].source == ET_FROM_F64  ? 8
                      : tensors[i].source == ET_FROM_U8 ? 1
                                                        : 4;
        fwrite(tensors[i].values, size, elements_of(&tensors[i]), to);
    }
}

static void record_file(FILE *to, const char *name)
{
    FILE *from = fopen(name, "rb");
    int c;
    ck_assert_ptr_nonnull(from);
    while ((c = fgetc(from)) != EOF) fputc(c, to);
    fclose(from);
}

/* An expert, the gate and the phases of a layer, each called by itself with the arrays of a step that
 * has run. Gradients are added to what is there. */
static void record_phases(FILE *to, et_step *s)
{
    et_moe moe = et_step_layer(s);
    const et_assignment *a = &s->assignment;
    const et_real *x = s->in.x, *dy = s->in.dy;
    et_moe_values *v = &s->fwd;
    et_moe_grads *g = &s->bwd;
    const et_ffn expert = {.d = moe.d, .h = moe.h, .up = moe.up, .down = moe.down};
    if (s->c.layer == ET_DENSE) return;
    moe.engine = ET_PLAIN;
    const et_ffn_rows rows = {.m = (size_t)a->load[0],
                              .x = x,
                              .H = v->slot_pre,
                              .A = v->slot_act,
                              .out = v->slot_out,
                              .dO = g->slot_out,
                              .dA = g->slot_act,
                              .dH = g->slot_pre,
                              .dx = g->x,
                              .accumulate_dx = true};
    int failed = et_ffn_forward(&expert, &rows, NULL);
    failed |= et_ffn_backward(&expert, &rows, g->up, g->down, NULL, NULL);
    et_gate_forward(NULL, moe.gate, moe.N, moe.n, v->logits, v->gates, v->anchor);
    et_gate_backward(NULL, moe.gate, moe.N, moe.n, v->logits, v->gates, v->anchor, g->gates, NULL,
                     g->logits);
    record_tensors(to, s);
    failed |= et_moe_score(&moe, x, v, NULL);
    failed |= et_moe_weigh(&moe, a, v, NULL);
    failed |= et_moe_experts(&moe, x, a, v, NULL);
    failed |= et_moe_combine(&moe, a, v, NULL);
    failed |= et_moe_combine_backward(&moe, dy, a, v, g, NULL);
    failed |= et_moe_experts_backward(&moe, x, a, v, g, NULL);
    failed |= et_moe_score_backward(&moe, x, a, v, g, NULL);
    record_tensors(to, s);
    failed |= et_moe_forward(&moe, x, a, v, NULL);
    failed |= et_moe_backward(&moe, x, dy, a, v, g, NULL);
    record_tensors(to, s);
    ck_assert_int_eq(failed, ET_OK);
}

static void record_case(FILE *to, const char *json, const et_profile *p)
{
    et_case c;
    et_step s, noise;
    et_error error;
    char *text;
    ck_assert_msg(parse_quoted(&c, json, &error) == ET_OK, "%s", error.text);
    ck_assert_int_eq(et_case_print(&text, &c, NULL), ET_OK);
    fputs(text, to);
    free(text);
    run_case(&s, &c);
    record_tensors(to, &s);
    ck_assert_msg(et_step_noise(&noise, &s, p, NULL, NULL, &error) == ET_OK, "%s", error.text);
    record_tensors(to, &noise);
    et_step_free(&noise);
    ck_assert_msg(et_bundle_write(path, &s, false, &error) == ET_OK, "%s", error.text);
    record_phases(to, &s);
    et_step_free(&s);
    record_file(to, path);
    et_tensor_file file;
    ck_assert_msg(et_bundle_open(&file, &s, path, 0, &error) == ET_OK, "%s", error.text);
    record_tensors(to, &s);
    et_step_free(&s);
    et_tensor_file_close(&file);
}

static void record_verdict(FILE *to, honest *k)
{
    if (sizeof(et_real) != sizeof(double)) return; /* a float build does not judge */
    et_verdict v = judge_by(k, (et_verify_options){.explain = true});
    fprintf(to, "%s\n%s\n", v.line, v.residual);
    for (size_t i = 0; i < v.tensor_count; i++) {
        const et_tensor_verdict *t = &v.tensors[i];
        record_number(to, t->largest_sigmas);
        record_number(to, t->limit_sigmas);
        record_number(to, t->effective_sample);
        record_number(to, t->whole.slope);
        record_number(to, t->whole.spread);
        record_number(to, t->whole.spread_limit);
    }
    et_verdict_free(&v);
}

/* Functions that a step does not reach, or not with such numbers. */
static void record_others(FILE *to)
{
    const et_real r[] = {(et_real)0.1,  (et_real)0.7, (et_real)1e-310, 0,
                         (et_real)-0.3, (et_real)2.5};
    et_real mean, std, out[6], margin[6];
    uint8_t mask[6];
    double bits, scores[6], cutoff;
    size_t carried;
    uint64_t labels;
    const uint8_t z[] = {0, 1, 1, 0, 1, 0};
    et_leakage_bounds bounds;
    et_mean_std(NULL, 6, r, &mean, &std);
    record_number(to, (double)mean);
    record_number(to, (double)std);
    record_number(to, et_ema_weight(0.999, 12345));
    et_capacity capacity = et_capacity_bounds(10, 0.9, 100);
    record_number(to, (double)capacity.lower + 1000 * (double)capacity.upper);
    ck_assert_int_eq(et_token_choice(2, 3, 1, r, NULL, mask, margin, NULL, NULL), ET_OK);
    for (int i = 0; i < 6; i++) record_number(to, (double)margin[i]);
    memset(out, 0, sizeof out);
    record_number(to, (double)et_z_loss(NULL, 2, 3, r, 0.1, out));
    for (int i = 0; i < 6; i++) record_number(to, (double)out[i]);
    et_real average[3] = {(et_real)0.1, (et_real)1e-309, (et_real)-0.7}, kth[3], fractions[3];
    const uint8_t others[] = {1, 1, 0, 0, 1, 1};
    const int32_t passed[] = {7, 1, 3};
    int32_t over[3];
    ck_assert_int_eq(et_kth_largest(2, 3, 2, r, kth, NULL), ET_OK);
    ck_assert_int_eq(et_expert_choice(2, 3, 2, 1, r, mask, margin, out, NULL, 0, NULL), ET_OK);
    for (int i = 0; i < 6; i++) record_number(to, (double)margin[i]);
    ck_assert_int_eq(et_expert_threshold(2, 3, r, average, false, NULL, mask, margin, over, NULL),
                     ET_OK);
    for (int i = 0; i < 6; i++) record_number(to, (double)margin[i]);
    et_ema_update(NULL, 3, 0.999, kth, average);
    et_ema_threshold(NULL, 3, average, 0.999, true, 7, kth);
    et_balance_fractions(7, 3, 2, r + 3, fractions);
    record_number(to, (double)et_aux_loss(NULL, ET_BALANCE_AUX, 2, 3, fractions, r, 0.001, out));
    et_bias_update(NULL, ET_BALANCE_PROPORTIONAL, 7, 3, 2, r + 3, 0.005, average);
    for (int i = 0; i < 3; i++) {
        record_number(to, (double)kth[i]);
        record_number(to, (double)fractions[i]);
        record_number(to, (double)average[i]);
        record_number(to, (double)out[i]);
    }
    et_capacity_use use = et_capacity_measure(1, 3, (et_capacity){2, 6}, passed);
    record_number(to, (double)use.saturation);
    record_number(to, (double)use.overflow);
    et_overlap overlap = et_routing_overlap(2, 3, z, others);
    record_number(to, overlap.pooled_dice);
    record_number(to, overlap.divergence);
    ck_assert_int_eq(et_log2_choose(1000003, 777, &bits, NULL), ET_OK);
    record_number(to, bits);
    record_number(to, et_leakage_bits(12345));
    et_leakage_setup setup = {
        .tokens = 1000, .experts = 16, .granularity = 2, .layers = 3, .score_bits = 7};
    ck_assert_int_eq(et_leakage_bound(&setup, &bounds, NULL), ET_OK);
    record_number(to, bounds.entropy);
    record_number(to, bounds.tied_cutoff_per_token);
    et_leakage_case c = {ET_LEAKAGE_ET_CAPACITY, 12, 4, 5, 2, 0.9};
    ck_assert_int_eq(et_leakage_labels(&c, &labels, NULL), ET_OK);
    record_number(to, (double)labels);
    ck_assert_int_eq(et_codec_encode_in(ET_F16, 6, z, scores, &cutoff, &carried, NULL), ET_OK);
    for (int i = 0; i < 6; i++) record_number(to, scores[i]);
    record_number(to, cutoff);
    ck_assert_int_eq(et_codec_reach(ET_F64, &carried, &carried, NULL), ET_OK);
    record_number(to, (double)carried);
}

typedef struct record {
    char *at;
    size_t length;
} record;

static record make_record(honest *k)
{
    record r;
    FILE *to = open_memstream(&r.at, &r.length);
    ck_assert_ptr_nonnull(to);
    for (int i = 0; i < CASES; i++) record_case(to, cases[i], k->profile);
    record_verdict(to, k);
    record_others(to);
    fclose(to);
    return r;
}

/* ---- the tests ---- */

static honest kernel;
static record right;

static void make_right(void)
{
    make_folder();
    set_everywhere(FE_TONEAREST, GRADUAL);
    if (sizeof(et_real) == sizeof(double)) {
        make_honest(&kernel, cases[0], "bf16", 7);
        emulate(&kernel, kernel.profile, ET_ROUND_NEAREST, 0);
    }
    kernel.profile = et_profile_find("bf16");
    right = make_record(&kernel);
}

static void free_right(void)
{
    set_everywhere(FE_TONEAREST, GRADUAL);
    free_honest(&kernel);
    kernel = (honest){0};
    free(right.at);
    remove_folder();
}

static void expect_right(const char *where)
{
    record r = make_record(&kernel);
    size_t i = 0;
    while (i < r.length && i < right.length && r.at[i] == right.at[i]) i++;
    set_environment(FE_TONEAREST, GRADUAL);
    ck_assert_msg(r.length == right.length && i == r.length, "%s: byte %zu of %zu (%zu) differs",
                  where, i, r.length, right.length);
    free(r.at);
}

static const int directions[] = {FE_TONEAREST, FE_UPWARD, FE_DOWNWARD, FE_TOWARDZERO};

/* As a library with fast-math leaves it that is loaded by another thread: the caller's own
 * environment is the default, that of the workers is not. */
START_TEST(workers_alone_in_another_environment)
{
    set_everywhere(FE_UPWARD, FLUSHING);
    set_environment(FE_TONEAREST, GRADUAL);
    expect_right("workers round upward");
}
END_TEST

enum { THREADS = 3 };

static void *record_by_strange_workers(void *out)
{
    omp_set_num_threads(THREADS);
    set_environment(FE_UPWARD, FLUSHING);
#pragma omp parallel
    (void)omp_get_thread_num();
    set_environment(FE_TONEAREST, GRADUAL);
    *(record *)out = make_record(&kernel);
    return NULL;
}

/* A thread of its own has workers of its own: here they are made by a thread that computes strangely
 * at that moment, and they keep to it. */
START_TEST(workers_that_were_made_in_another_environment)
{
    pthread_t thread;
    record r = {0};
    ck_assert_int_eq(pthread_create(&thread, NULL, record_by_strange_workers, &r), 0);
    ck_assert_int_eq(pthread_join(thread, NULL), 0);
    ck_assert_uint_eq(r.length, right.length);
    ck_assert_int_eq(memcmp(r.at, right.at, r.length), 0);
    free(r.at);
}
END_TEST

/* By turns in the caller alone and in its workers, too; ETREF_CAMPAIGN=all: each in both. */
START_TEST(any_caller_gets_the_same_numbers)
{
    bool all = getenv("ETREF_CAMPAIGN") != NULL;
    for (int i = 0; i < 4; i++) {
        set_environment(directions[i], i < 2 ? FLUSHING : GRADUAL);
        if (all || i % 2 == 0) expect_right("caller");
        set_everywhere(directions[i], i < 2 ? GRADUAL : FLUSHING);
        if (all || i % 2 == 1) expect_right("caller and workers");
        set_everywhere(FE_TONEAREST, GRADUAL);
    }
}
END_TEST

START_TEST(the_environment_is_given_back)
{
    int underflow = can_flush() ? FLUSHING : GRADUAL, wrong = 0;
    set_everywhere(FE_DOWNWARD, underflow);
    record r = make_record(&kernel);
#pragma omp parallel reduction(+ : wrong)
    wrong += !is_in(FE_DOWNWARD, underflow);
    free(r.at);
    set_everywhere(FE_TONEAREST, GRADUAL);
    ck_assert_int_eq(wrong, 0);
}
END_TEST

/* A caller's own, smaller team: OpenMP ends the workers that it has no use for. */
static void use_fewer_threads(void *user, const char *phase, double done)
{
    (void)user, (void)phase, (void)done;
#pragma omp parallel num_threads(2)
    (void)omp_get_thread_num();
}

START_TEST(new_workers_are_left_as_they_are)
{
    et_case c;
    et_step s;
    et_error error;
    int trapping = 0;
    const char *json = "{\"name\": \"team\", \"rule\": \"tc\", \"tokens\": 2048, \"d_model\": 64, "
                       "\"d_expert\": 64, \"experts\": 8, \"top_k\": 2, "
                       "\"input\": {\"source\": \"normal\"}}";
    omp_set_num_threads(4);
    ck_assert_int_eq(et_case_parse(&c, json, strlen(json), "test", &error), ET_OK);
    ck_assert_int_eq(et_step_create(&s, &c, 0, &error), ET_OK);
    ck_assert_int_eq(et_step_draw_inputs(&s, &error), ET_OK);
    ck_assert_int_eq(et_step_run(&s, ET_BLAS, use_fewer_threads, NULL, &error), ET_OK);
    et_step_free(&s);
#pragma omp parallel num_threads(4) reduction(+ : trapping)
    trapping += fegetexcept() != 0;
    omp_set_num_threads(THREADS);
    ck_assert_int_eq(trapping, 0);
}
END_TEST

int main(void)
{
    omp_set_num_threads(THREADS); /* the bits of OpenBLAS depend on how many there are */
    Suite *suite = suite_create("environment");
    TCase *numbers = add_case(suite, "numbers");
    tcase_add_unchecked_fixture(numbers, make_right, free_right);
    tcase_add_test(numbers, workers_alone_in_another_environment);
    tcase_add_test(numbers, workers_that_were_made_in_another_environment);
    tcase_add_test(numbers, any_caller_gets_the_same_numbers);
    tcase_add_test(numbers, the_environment_is_given_back);
    tcase_add_test(numbers, new_workers_are_left_as_they_are);
    return run_suite(suite);
}
