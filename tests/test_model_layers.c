/* test_model_layers.c: RMSNorm, RoPE, attention, embedding and cross-entropy, each by itself.
 *
 * Three kinds of proof: binary128 twins that share no code (tests/witness/quad_model.c) within
 * 1e-13 of a tensor's largest element; central differences of L = <output, dy>, within 1e-7; and
 * properties that a wrong layer would not have. A float build computes with 29 bits less, and is
 * held to 1e-13 2^29.
 */
#include "etref/attention.h"
#include "etref/cross_entropy.h"
#include "etref/dtype.h"
#include "etref/embedding.h"
#include "etref/random.h"
#include "etref/rmsnorm.h"
#include "etref/rope.h"
#include "tests/check_main.h"
#include "tests/witness/quad_model.h"

#include <math.h>
#include <omp.h>
#include <string.h>

#define COUNT(array) (sizeof(array) / sizeof(array)[0])

static const double tolerance = sizeof(et_real) == sizeof(double) ? 1e-13 : 5e-5;

/* ---- arrays ---- */

static et_real *reals(size_t count)
{
    et_real *room = calloc(count + 1, sizeof *room);
    ck_assert_ptr_nonnull(room);
    return room;
}

static et_real *drawn(const char *name, size_t count, double scale)
{
    et_real *room = reals(count);
    et_stream stream = et_stream_open(7, name);
    for (size_t i = 0; i < count; i++) room[i] = (et_real)(scale * et_normal(stream, i));
    return room;
}

static et_real *copy_of(const et_real *from, size_t count)
{
    return memcpy(reals(count), from, count * sizeof *from);
}

static double *doubles_of(const et_real *from, size_t count)
{
    double *room = calloc(count + 1, sizeof *room);
    ck_assert_ptr_nonnull(room);
    for (size_t i = 0; i < count; i++) room[i] = (double)from[i];
    return room;
}

/* got within `tolerance` of want's largest element. */
static void agree(const char *what, size_t count, const et_real *got, const double *want)
{
    double largest = 0;
    for (size_t i = 0; i < count; i++) largest = fmax(largest, fabs(want[i]));
    for (size_t i = 0; i < count; i++)
        ck_assert_msg(fabs((double)got[i] - want[i]) <= tolerance * largest,
                      "%s[%zu] = %.17g, the twin has %.17g: %.3g of the largest", what, i,
                      (double)got[i], want[i], fabs((double)got[i] - want[i]) / largest);
}

static double dot(size_t count, const et_real *a, const et_real *b)
{
    double sum = 0;
    for (size_t i = 0; i < count; i++) sum += (double)a[i] * (double)b[i];
    return sum;
}

/* ---- differences: f'(w) = (8 (L(w+h) - L(w-h)) - (L(w+2h) - L(w-2h))) / 12h + O(h^4) ---- */

static double (*objective)(void);

static void differentiate(const char *what, size_t count, et_real *w, const et_real *gradient)
{
    static const double at[] = {1, -1, 2, -2}, weight[] = {8, -8, -1, 1};
    const double h = 0x1p-11;
    double largest = 0;
    for (size_t i = 0; i < count; i++) largest = fmax(largest, fabs((double)gradient[i]));
    for (size_t i = 0; i < count; i++) {
        et_real before = w[i];
        double sum = 0;
        for (int k = 0; k < 4; k++) {
            w[i] = (et_real)((double)before + at[k] * h);
            sum += weight[k] * objective();
        }
        w[i] = before;
        double want = sum / (12 * h);
        ck_assert_msg(fabs((double)gradient[i] - want) <= 1e-7 * largest,
                      "d%s[%zu] = %.12g, the difference is %.12g", what, i, (double)gradient[i],
                      want);
    }
}

/* ---- sine, cosine, tanh ---- */

START_TEST(elementary_functions_keep_their_bounds)
{
    et_stream stream = et_stream_open(1, "angles");
    double worst[2] = {0, 0}, flat = 0;
    for (size_t i = 0; i < 20000; i++) {
        double u = 2 * et_uniform(stream, i, 0) - 1, size = ldexp(1, (int)(i % 50) - 29);
        double x = u * size, sine, cosine, error[2];
        et_sin_cos(x, &sine, &cosine);
        quad_sin_cos_ulps(x, sine, cosine, error);
        for (int k = 0; k < 2; k++) worst[k] = fmax(worst[k], error[k]);
        flat = fmax(flat, quad_tanh_ulps(x * 32, et_tanh(x * 32)));
    }
    printf("sin %.3f, cos %.3f, tanh %.3f ulp\n", worst[0], worst[1], flat);
    ck_assert(worst[0] < 1 && worst[1] < 1 && flat < 3);
    double sine, cosine;
    et_sin_cos(0, &sine, &cosine);
    ck_assert(sine == 0 && cosine == 1);
    et_sin_cos(0x1p21, &sine, NULL);
    ck_assert(isnan(sine));
    ck_assert(et_tanh(0) == 0 && et_tanh(INFINITY) == 1 && et_tanh(-INFINITY) == -1);
    ck_assert(signbit(et_tanh(-0.0)) && isnan(et_tanh(NAN)));
}
END_TEST

/* ---- RMSNorm ---- */

static struct {
    et_rmsnorm f;
    et_real *x, *y, *scale, *dy;
    size_t count;
} norm;

static double norm_objective(void)
{
    ck_assert(et_rmsnorm_forward(&norm.f, norm.x, norm.y, norm.scale, NULL) == ET_OK);
    return dot(norm.count, norm.y, norm.dy);
}

static void check_norm(size_t rows, size_t w, double eps)
{
    size_t count = rows * w;
    norm.f = (et_rmsnorm){.tokens = rows, .heads = 1, .width = w, .stride = w, .eps = eps};
    norm.count = count;
    norm.x = drawn("norm.x", count, 2);
    norm.dy = drawn("norm.dy", count, 1);
    norm.y = reals(count);
    norm.scale = reals(rows);
    et_real *dx = reals(count);
    norm_objective();
    ck_assert(et_rmsnorm_backward(&norm.f, norm.y, norm.scale, norm.dy, false, dx, NULL) == ET_OK);
    double *x = doubles_of(norm.x, count), *dy = doubles_of(norm.dy, count);
    double *y = doubles_of(norm.x, count), *want = doubles_of(norm.x, count);
    quad_rmsnorm(rows, w, eps, x, dy, y, want);
    agree("y", count, norm.y, y);
    if (w > 1) agree("dx", count, dx, want); /* of one number: 0, but for what eps leaves */
    objective = norm_objective;
    if (sizeof(et_real) == sizeof(double) && w > 1) differentiate("x", count, norm.x, dx);
    /* Added to what was there; and in place of dy. */
    et_real *sum = copy_of(norm.dy, count), *in_place = copy_of(norm.dy, count);
    norm_objective();
    ck_assert(et_rmsnorm_backward(&norm.f, norm.y, norm.scale, norm.dy, true, sum, NULL) == ET_OK);
    ck_assert(et_rmsnorm_backward(&norm.f, norm.y, norm.scale, in_place, false, in_place, NULL) ==
              ET_OK);
    for (size_t i = 0; i < count; i++) ck_assert(sum[i] == norm.dy[i] + dx[i]);
    ck_assert_mem_eq(in_place, dx, count * sizeof *dx);
    void *all[] = {norm.x, norm.y, norm.dy, norm.scale, dx, x, dy, y, want, sum, in_place};
    for (size_t i = 0; i < COUNT(all); i++) free(all[i]);
}

START_TEST(rmsnorm_is_its_twin_and_its_derivative)
{
    check_norm(1, 1, 0x1p-52);
    check_norm(3, 5, 0x1p-52);
    check_norm(2, 16, 0.5);
    check_norm(0, 4, 0.5);
}
END_TEST

/* Two heads of 3 out of rows of 8; the other two numbers stay. A vector of zeros gives zeros. */
START_TEST(rmsnorm_takes_heads_out_of_longer_rows)
{
    const et_rmsnorm f = {.tokens = 2, .heads = 2, .width = 3, .stride = 8, .eps = 0x1p-52};
    et_real x[16] = {1, -2, 2, 0, 0, 0, 7, 8, 3, 0, 4, 5, 5, 5, 9, 10}, scale[4];
    ck_assert(et_rmsnorm_forward(&f, x, x, scale, NULL) == ET_OK);
    double third = sqrt(3.0) / 3;
    const double want[] = {third,           -2 * third, 2 * third,       0, 0, 0, 7, 8,
                           3 * third * 0.6, 0,          4 * third * 0.6, 1, 1, 1, 9, 10};
    agree("x", 16, x, want);
}
END_TEST

/* ---- RoPE ---- */

enum { POSITIONS = 40, WIDTH = 6 };
static et_real cosines[POSITIONS * WIDTH / 2], sines[POSITIONS * WIDTH / 2];

static et_rope rope_of(size_t tokens, size_t heads, size_t stride)
{
    ck_assert(et_rope_table(NULL, POSITIONS, WIDTH, 10000, cosines, sines, NULL) == ET_OK);
    return (et_rope){.tokens = tokens,
                     .heads = heads,
                     .width = WIDTH,
                     .stride = stride,
                     .sequence = POSITIONS,
                     .cosines = cosines,
                     .sines = sines};
}

START_TEST(rope_table_has_the_angles)
{
    rope_of(1, 1, WIDTH);
    for (size_t t = 0; t < POSITIONS; t++)
        for (size_t j = 0; j < WIDTH / 2; j++) {
            double c, s, u = sizeof(et_real) == sizeof(double) ? 0x1p-53 : 0x1p-24;
            quad_rope_angle(t, j, WIDTH, 10000, &c, &s);
            double allowed = 2 * (log(10000) + 2) * 0x1p-53 * (double)t + 2 * u;
            ck_assert(fabs((double)cosines[t * WIDTH / 2 + j] - c) <= allowed);
            ck_assert(fabs((double)sines[t * WIDTH / 2 + j] - s) <= allowed);
        }
}
END_TEST

/* <q_t, k_t'> after the rotation hangs on t - t' alone; the backward pass undoes the forward one,
 * which is what the transpose of a rotation does; positions start again with each sequence. */
START_TEST(rope_rotates)
{
    enum { TOKENS = 2 * POSITIONS, STRIDE = 3 * WIDTH };
    const et_rope f = rope_of(TOKENS, 2, STRIDE);
    et_real *row = drawn("rope", STRIDE, 1), *x = reals(TOKENS * STRIDE);
    for (size_t t = 0; t < TOKENS; t++) memcpy(x + t * STRIDE, row, STRIDE * sizeof *row);
    ck_assert(et_rope_forward(&f, x, NULL) == ET_OK);
    double apart = dot(WIDTH, x + 5 * STRIDE, x + 2 * STRIDE + WIDTH);
    for (size_t t = 3; t < POSITIONS; t++)
        ck_assert(fabs(dot(WIDTH, x + t * STRIDE, x + (t - 3) * STRIDE + WIDTH) - apart) <=
                  100 * tolerance);
    ck_assert_mem_eq(x, row, STRIDE * sizeof *x);
    ck_assert_mem_eq(x, x + POSITIONS * STRIDE, POSITIONS * STRIDE * sizeof *x);
    ck_assert(x[STRIDE] == row[0] * cosines[3] + row[3] * sines[3]);
    ck_assert(x[STRIDE + 3] == row[3] * cosines[3] - row[0] * sines[3]);
    ck_assert(et_rope_backward(&f, x, NULL) == ET_OK);
    for (size_t i = 0; i < TOKENS * STRIDE; i++)
        ck_assert(fabs((double)(x[i] - row[i % STRIDE])) <= tolerance);
    free(row);
    free(x);
}
END_TEST

/* ---- attention ---- */

static struct {
    et_attention f;
    size_t in, out;
    et_real *qkv, *o, *lse, *dout, *dqkv, *room;
} at;

static void begin_attention(size_t B, size_t T, size_t heads, size_t kv_heads, size_t e)
{
    at.f = (et_attention){.B = B,
                          .T = T,
                          .heads = heads,
                          .kv_heads = kv_heads,
                          .width = e,
                          .workers = (size_t)omp_get_max_threads()};
    at.in = B * T * (heads + 2 * kv_heads) * e;
    at.out = B * T * heads * e;
    at.qkv = drawn("qkv", at.in, 1.5);
    at.dout = drawn("do", at.out, 1);
    at.o = reals(at.out);
    at.lse = reals(B * heads * T);
    at.dqkv = reals(at.in);
    at.room = reals(et_attention_room(&at.f));
}

static void end_attention(void)
{
    void *all[] = {at.qkv, at.dout, at.o, at.lse, at.dqkv, at.room};
    for (size_t i = 0; i < COUNT(all); i++) free(all[i]);
}

static double attention_objective(void)
{
    ck_assert(et_attention_forward(&at.f, at.qkv, at.o, at.lse, at.room, NULL) == ET_OK);
    return dot(at.out, at.o, at.dout);
}

static void attention_gradient(void)
{
    attention_objective();
    ck_assert(et_attention_backward(&at.f, at.qkv, at.lse, at.dout, at.dqkv, at.room, NULL) ==
              ET_OK);
}

static const size_t shapes[][5] = {{1, 1, 1, 1, 1},  {1, 1, 4, 2, 3},  {2, 5, 3, 1, 3},
                                   {1, 33, 2, 2, 4}, {2, 37, 4, 2, 5}, {1, 64, 6, 3, 2},
                                   {3, 2, 1, 1, 7}};

START_TEST(attention_is_its_twin)
{
    for (size_t i = 0; i < COUNT(shapes); i++) {
        const size_t *n = shapes[i];
        begin_attention(n[0], n[1], n[2], n[3], n[4]);
        size_t rows = n[0] * n[1] * n[2];
        double *qkv = doubles_of(at.qkv, at.in), *dout = doubles_of(at.dout, at.out);
        double *o = doubles_of(at.dout, at.out), *dqkv = doubles_of(at.qkv, at.in);
        double *lse = calloc(rows, sizeof *lse);
        quad_attention((quad_attention_sizes){n[0], n[1], n[2], n[3], n[4]}, qkv, dout, o, lse,
                       dqkv);
        for (int engine = ET_PLAIN; engine <= ET_BLAS; engine++) {
            at.f.engine = (et_engine)engine;
            attention_gradient();
            agree("o", at.out, at.o, o);
            agree("lse", rows, at.lse, lse);
            agree("dqkv", at.in, at.dqkv, dqkv);
        }
        void *all[] = {qkv, dout, o, lse, dqkv};
        for (size_t k = 0; k < COUNT(all); k++) free(all[k]);
        end_attention();
    }
}
END_TEST

START_TEST(attention_is_its_derivative)
{
    for (size_t i = 1; i < COUNT(shapes); i++) {
        const size_t *n = shapes[i];
        if (n[1] > 33) continue;
        begin_attention(n[0], n[1], n[2], n[3], n[4]);
        attention_gradient();
        objective = attention_objective;
        differentiate("qkv", at.in, at.qkv, at.dqkv);
        end_attention();
    }
}
END_TEST

/* Large enough for threads. */
START_TEST(attention_has_the_same_bits_for_every_number_of_threads)
{
    begin_attention(4, 70, 4, 2, 32);
    attention_gradient();
    et_real *o = copy_of(at.o, at.out), *dqkv = copy_of(at.dqkv, at.in);
    omp_set_num_threads(3);
    at.f.workers = 3;
    free(at.room);
    at.room = reals(et_attention_room(&at.f));
    attention_gradient();
    omp_set_num_threads(1);
    ck_assert_mem_eq(o, at.o, at.out * sizeof *o);
    ck_assert_mem_eq(dqkv, at.dqkv, at.in * sizeof *o);
    free(o);
    free(dqkv);
    end_attention();
}
END_TEST

/* A row's bits hang on the rows before it alone, and the rows before `first` need not be computed
 * again. */
START_TEST(attention_is_causal_and_goes_on_from_a_cache)
{
    enum { T = 70, HEADS = 4, E = 6, LATE = 41 };
    begin_attention(1, T, HEADS, 2, E);
    attention_objective();
    et_real *o = copy_of(at.o, at.out);
    size_t row = (HEADS + 2 * 2) * E, width = HEADS * E;
    for (size_t t = T; t-- > LATE;) { /* from the last on: a later row is never needed */
        for (size_t i = (t + 1) * row; i < T * row; i++) at.qkv[i] = 1e30f;
        at.f.first = t;
        memset(at.o, 0, at.out * sizeof *at.o);
        attention_objective();
        ck_assert_mem_eq(at.o + t * width, o + t * width, width * sizeof *o);
        ck_assert(at.o[(t - 1) * width] == 0);
    }
    free(o);
    end_attention();
}
END_TEST

/* ---- embedding ---- */

START_TEST(embedding_takes_rows_and_adds_to_them)
{
    const et_real wte[] = {1, 2, 3, 4, 5, 6}, dx[] = {10, 20, 30, 40, 50, 60};
    const int32_t tokens[] = {2, 0, 2};
    et_real x[6], dwte[6] = {1, 1, 1, 1, 1, 1};
    const et_embedding f = {.N = 3, .d = 2, .V = 3, .wte = wte};
    ck_assert(et_embedding_forward(&f, tokens, x, NULL) == ET_OK);
    ck_assert(et_embedding_backward(&f, tokens, dx, dwte, NULL) == ET_OK);
    const et_real rows[] = {5, 6, 1, 2, 5, 6}, sums[] = {31, 41, 1, 1, 61, 81};
    ck_assert_mem_eq(x, rows, sizeof rows);
    ck_assert_mem_eq(dwte, sums, sizeof sums);
}
END_TEST

/* ---- cross-entropy ---- */

static struct {
    et_cross_entropy f;
    et_real *x, *head, *loss, *lse, *logits, *dx, *dhead, *room;
    int32_t targets[200];
    double scale;
} ce;

static double ce_objective(void)
{
    double sum = 0;
    ck_assert(et_cross_entropy_forward(&ce.f, ce.x, ce.targets, ce.loss, ce.lse, ce.logits, ce.room,
                                       NULL) == ET_OK);
    for (size_t t = 0; t < ce.f.N; t++) sum += (double)ce.loss[t];
    return sum * ce.scale;
}

static void begin_ce(size_t N, size_t d, size_t V, double cap)
{
    ce.head = drawn("head", V * d, 2);
    ce.f = (et_cross_entropy){.N = N, .d = d, .V = V, .cap = cap, .head = ce.head};
    ce.x = drawn("ce.x", N * d, 1);
    for (size_t t = 0; t < N; t++) ce.targets[t] = (int32_t)(t * 7 % V);
    ce.scale = 1 / (double)N;
    ce.loss = reals(N);
    ce.lse = reals(N);
    ce.logits = reals(N * V);
    ce.dx = reals(N * d);
    ce.dhead = reals(V * d);
    ce.room = reals(et_cross_entropy_room(&ce.f));
    ce_objective();
    ck_assert(et_cross_entropy_backward(&ce.f, ce.x, ce.targets, ce.lse, ce.scale, ce.dx, ce.dhead,
                                        ce.room, NULL) == ET_OK);
}

static void end_ce(void)
{
    void *all[] = {ce.head, ce.x, ce.loss, ce.lse, ce.logits, ce.dx, ce.dhead, ce.room};
    for (size_t i = 0; i < COUNT(all); i++) free(all[i]);
}

static void check_ce(size_t N, size_t d, size_t V, double cap)
{
    begin_ce(N, d, V, cap);
    double *x = doubles_of(ce.x, N * d), *head = doubles_of(ce.head, V * d);
    double *loss = doubles_of(ce.loss, N), *logits = doubles_of(ce.logits, N * V);
    double *dx = doubles_of(ce.dx, N * d), *dhead = doubles_of(ce.dhead, V * d);
    quad_cross_entropy(
        &(quad_losses){N, d, V, cap, ce.scale, x, head, ce.targets, loss, logits, dx, dhead});
    if (V > 1) agree("loss", N, ce.loss, loss);
    agree("logits", N * V, ce.logits, logits);
    if (V > 1) agree("dx", N * d, ce.dx, dx);
    if (V > 1) agree("dhead", V * d, ce.dhead, dhead);
    if (V == 1) ck_assert(ce.loss[0] == 0 && ce.dx[0] == 0);
    objective = ce_objective;
    if (sizeof(et_real) == sizeof(double) && V > 1 && N < 20) {
        differentiate("x", N * d, ce.x, ce.dx);
        differentiate("head", V * d, ce.head, ce.dhead);
    }
    void *all[] = {x, head, loss, logits, dx, dhead};
    for (size_t i = 0; i < COUNT(all); i++) free(all[i]);
    end_ce();
}

START_TEST(cross_entropy_is_its_twin_and_its_derivative)
{
    check_ce(1, 1, 1, 15);
    check_ce(1, 3, 2, 15);
    check_ce(5, 4, 9, 15);
    check_ce(5, 4, 9, 0);
    check_ce(7, 3, 33, 2);    /* deep in the cap */
    check_ce(131, 8, 17, 15); /* three blocks, the last one short */
}
END_TEST

/* The logits alone, of tokens whose targets nobody knows. */
START_TEST(cross_entropy_gives_logits_without_targets)
{
    begin_ce(70, 3, 5, 15);
    et_real *alone = reals(70 * 5);
    ck_assert(et_cross_entropy_forward(&ce.f, ce.x, NULL, NULL, NULL, alone, ce.room, NULL) ==
              ET_OK);
    ck_assert_mem_eq(alone, ce.logits, 70 * 5 * sizeof *alone);
    free(alone);
    end_ce();
}
END_TEST

/* ---- roundings: every layer stores, and errs, as a bfloat16 kernel does ---- */

static void check_stored(const char *what, size_t count, const et_real *rounded,
                         const et_real *exact)
{
    double largest = 0, worst = 0;
    for (size_t i = 0; i < count; i++) {
        largest = fmax(largest, fabs((double)exact[i]));
        worst = fmax(worst, fabs((double)(rounded[i] - exact[i])));
        ck_assert_msg((double)rounded[i] == et_round_to_dtype((double)rounded[i], ET_BF16),
                      "%s[%zu] is not stored in bfloat16", what, i);
    }
    ck_assert_msg(worst > 1e-4 * largest && worst < 0.05 * largest, "%s: off by %g of %g", what,
                  worst, largest);
}

START_TEST(roundings_stand_where_kernels_store)
{
    const et_rounding r = {.profile = et_profile_find("bf16"), .mode = ET_ROUND_NEAREST};
    begin_attention(1, 40, 2, 1, 8);
    attention_gradient();
    et_real *o = copy_of(at.o, at.out), *dqkv = copy_of(at.dqkv, at.in);
    at.f.rounding = &r;
    attention_gradient();
    check_stored("o", at.out, at.o, o);
    check_stored("dqkv", at.in, at.dqkv, dqkv);
    end_attention();
    begin_ce(20, 8, 9, 15);
    et_real *dx = copy_of(ce.dx, 20 * 8), *dhead = copy_of(ce.dhead, 9 * 8);
    ce.f.rounding = &r;
    ce_objective();
    memset(ce.dhead, 0, 9 * 8 * sizeof *ce.dhead);
    ck_assert(et_cross_entropy_backward(&ce.f, ce.x, ce.targets, ce.lse, ce.scale, ce.dx, ce.dhead,
                                        ce.room, NULL) == ET_OK);
    check_stored("dx", 20 * 8, ce.dx, dx);
    check_stored("dhead", 9 * 8, ce.dhead, dhead);
    end_ce();
    et_rmsnorm f = {.tokens = 3, .heads = 1, .width = 16, .stride = 16, .eps = 0x1p-52};
    et_real *x = drawn("x", 48, 1), y[48], stored[48], scale[3];
    ck_assert(et_rmsnorm_forward(&f, x, y, scale, NULL) == ET_OK);
    f.rounding = &r;
    ck_assert(et_rmsnorm_forward(&f, x, stored, scale, NULL) == ET_OK);
    check_stored("y", 48, stored, y);
    et_rope turn = rope_of(3, 1, 16);
    ck_assert(et_rope_forward(&turn, y, NULL) == ET_OK);
    turn.rounding = &r;
    ck_assert(et_rope_forward(&turn, stored, NULL) == ET_OK);
    for (size_t t = 0; t < 3; t++) check_stored("rotated", WIDTH, stored + t * 16, y + t * 16);
    void *all[] = {o, dqkv, dx, dhead, x};
    for (size_t i = 0; i < COUNT(all); i++) free(all[i]);
}
END_TEST

/* ---- what is refused ---- */

#define REFUSES(call, words)                                                                       \
    do {                                                                                           \
        et_error error = {""};                                                                     \
        ck_assert((call) == ET_EINVAL);                                                            \
        ck_assert_msg(strstr(error.text, words) != NULL, "'%s' lacks '%s'", error.text, words);    \
    } while (0)

START_TEST(contradictions_are_refused_by_name)
{
    et_real x[8] = {0}, s[8];
    const int32_t beyond[] = {0, 3}, negative[] = {-1, 0};
    et_rmsnorm n = {.tokens = 1, .heads = 2, .width = 3, .stride = 5, .eps = 1};
    REFUSES(et_rmsnorm_forward(&n, x, x, s, &error), "stride = 5");
    n.stride = 6;
    REFUSES(et_rmsnorm_forward(&n, NULL, x, s, &error), "NULL");
    n.eps = 0;
    REFUSES(et_rmsnorm_forward(&n, x, x, s, &error), "eps");
    n.tokens = (size_t)1 << 62;
    n.eps = 1;
    REFUSES(et_rmsnorm_forward(&n, x, x, s, &error), "addressed");
    REFUSES(et_rope_table(NULL, 4, 3, 10000, x, x, &error), "even");
    et_rope turn = {.tokens = 1, .heads = 1, .width = 2, .stride = 2, .cosines = x, .sines = x};
    REFUSES(et_rope_forward(&turn, x, &error), "sequence 0");
    turn.sequence = 1;
    turn.heads = (SIZE_MAX >> 1) + 2; /* times 2: 2 */
    REFUSES(et_rope_forward(&turn, x, &error), "stride 2");
    et_attention a = {.B = 1, .T = 1, .heads = 3, .kv_heads = 2, .width = 1, .workers = 1};
    REFUSES(et_attention_forward(&a, x, x, x, x, &error), "3 query heads");
    a.kv_heads = 1;
    REFUSES(et_attention_forward(&a, x, x, x, NULL, &error), "room");
    a.workers = 0;
    REFUSES(et_attention_forward(&a, x, x, x, x, &error), "0 workers");
    a.workers = 1;
    a.engine = (et_engine)7;
    REFUSES(et_attention_backward(&a, x, x, x, x, x, &error), "engine = 7");
    et_embedding e = {.N = 2, .d = 1, .V = 3, .wte = x};
    REFUSES(et_embedding_forward(&e, beyond, s, &error), "token 1 is 3");
    REFUSES(et_embedding_backward(&e, negative, s, x, &error), "token 0 is -1");
    et_cross_entropy c = {.N = 2, .d = 1, .V = 3, .cap = 15, .head = x};
    REFUSES(et_cross_entropy_forward(&c, x, beyond, s, s, NULL, x, &error), "target 1 is 3");
    c.cap = -1;
    REFUSES(et_cross_entropy_forward(&c, x, NULL, s, s, NULL, x, &error), "cap");
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("model layers");
    omp_set_num_threads(1); /* the layers are so small that threads would only cost */
    bool in_double = sizeof(et_real) == sizeof(double);
    tcase_add_test(add_case(suite, "elementary"), elementary_functions_keep_their_bounds);
    TCase *norms = add_case(suite, "rmsnorm");
    tcase_add_test(norms, rmsnorm_is_its_twin_and_its_derivative);
    tcase_add_test(norms, rmsnorm_takes_heads_out_of_longer_rows);
    TCase *ropes = add_case(suite, "rope");
    tcase_add_test(ropes, rope_table_has_the_angles);
    tcase_add_test(ropes, rope_rotates);
    TCase *attention = add_case(suite, "attention");
    tcase_add_test(attention, attention_is_its_twin);
    if (in_double) tcase_add_test(attention, attention_is_its_derivative);
    tcase_add_test(attention, attention_has_the_same_bits_for_every_number_of_threads);
    tcase_add_test(attention, attention_is_causal_and_goes_on_from_a_cache);
    tcase_add_test(add_case(suite, "embedding"), embedding_takes_rows_and_adds_to_them);
    TCase *losses = add_case(suite, "cross-entropy");
    tcase_add_test(losses, cross_entropy_is_its_twin_and_its_derivative);
    tcase_add_test(losses, cross_entropy_gives_logits_without_targets);
    tcase_add_test(add_case(suite, "roundings"), roundings_stand_where_kernels_store);
    tcase_add_test(add_case(suite, "refusals"), contradictions_are_refused_by_name);
    return run_suite(suite);
}
