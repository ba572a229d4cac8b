/* test_layers.c: the matrix product, the feed-forward layer, the gates, the MoE layer, and the
 * promise that threads never change a bit.
 *
 * The plain product is held bit for bit against its three-loop definition, over sizes on both sides
 * of every block edge of matmul.c. Feed-forward and MoE layers are held against examples small
 * enough for a pencil, with numbers that every operation leaves exact: a wrong factor, a transposed
 * matrix or a forgotten term changes an integer. A larger layer is held against its own tokens, one
 * at a time. Gates are held against their definitions, and their derivatives against central
 * differences.
 *
 * Where a comparison is not exact its tolerance is a bound, derived beside it.
 */
#include "etref/bundle.h"
#include "etref/random.h"
#include "etref/step.h"
#include "tests/check_main.h"

#include <float.h>
#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define COUNT(array) (sizeof(array) / sizeof(array)[0])

static const double U = ET_UNIT_ROUNDOFF;
static const double LEAST = sizeof(et_real) == sizeof(double) ? DBL_MIN : (double)FLT_MIN;

/* Values are compared as numbers; -0 equals +0, NaN equals nothing. */
static void same(const char *what, size_t count, const et_real *got, const et_real *want)
{
    for (size_t j = 0; j < count; j++)
        if (!(got[j] == want[j]))
            ck_abort_msg("%s: element %zu: got %.17g, want %.17g", what, j, (double)got[j],
                         (double)want[j]);
}

static void *room_for(size_t count)
{
    void *room = calloc(count > 0 ? count : 1, sizeof(et_real));
    ck_assert_ptr_nonnull(room);
    return room;
}

/* ---- the matrix product ---- */

/* Both zeros, integers and fractions of both signs; no two streams alike. */
static void fill(const char *name, size_t count, et_real *to)
{
    et_stream stream = et_stream_open(3, name);
    for (size_t j = 0; j < count; j++) {
        double u = et_uniform(stream, j, 0);
        to[j] = (et_real)(u < 0.05 ? -0.0 : u < 0.1 ? 0 : et_normal(stream, j));
    }
}

/* One product: its sizes, how its operands lie, and room for them and for C. */
typedef struct product {
    size_t M, N, K;
    bool a_transposed, b_transposed, accumulate;
    size_t slack; /* elements between the end of a row and the next */
    et_real *a, *b, *c;
    size_t c_count, c_stride;
} product;

static size_t rows_of(size_t rows, size_t columns, bool transposed)
{
    return transposed ? columns : rows;
}

static void open_product(product *p)
{
    size_t a_rows = rows_of(p->M, p->K, p->a_transposed), a_columns = p->M + p->K - a_rows;
    size_t b_rows = rows_of(p->K, p->N, p->b_transposed), b_columns = p->K + p->N - b_rows;
    size_t a_count = a_rows * (a_columns + p->slack), b_count = b_rows * (b_columns + p->slack);
    p->c_stride = p->N + p->slack;
    p->c_count = p->M * p->c_stride;
    p->a = room_for(a_count);
    p->b = room_for(b_count);
    p->c = room_for(p->c_count);
    fill("test.a", a_count, p->a);
    fill("test.b", b_count, p->b);
    fill("test.c", p->c_count, p->c);
}

static void close_product(product *p)
{
    free(p->a);
    free(p->b);
    free(p->c);
}

static et_matrix matrix_a(const product *p)
{
    return (et_matrix){p->a, (p->a_transposed ? p->M : p->K) + p->slack, p->a_transposed};
}

static et_matrix matrix_b(const product *p)
{
    return (et_matrix){p->b, (p->b_transposed ? p->K : p->N) + p->slack, p->b_transposed};
}

/* Element (row, column) of op(X). */
static et_real element(et_matrix X, size_t row, size_t column)
{
    return X.transposed ? X.at[column * X.stride + row] : X.at[row * X.stride + column];
}

/* The definition in matmul.h, and with it sum_k |a_ik||b_kj| (+ |C_ij|) of each element. */
static void multiply_literally(const product *p, et_real *c, double *magnitude)
{
    et_matrix A = matrix_a(p), B = matrix_b(p);
    for (size_t i = 0; i < p->M; i++)
        for (size_t j = 0; j < p->N; j++) {
            et_real sum = p->accumulate ? c[i * p->c_stride + j] : 0;
            double absolute = fabs((double)sum);
            for (size_t k = 0; k < p->K; k++) {
                et_real a = element(A, i, k), b = element(B, k, j);
                sum += a * b;
                absolute += fabs((double)a) * fabs((double)b);
            }
            c[i * p->c_stride + j] = sum;
            if (magnitude) magnitude[i * p->c_stride + j] = absolute;
        }
}

static et_real *multiplied(const product *p, et_engine engine)
{
    et_real *c = room_for(p->c_count);
    memcpy(c, p->c, p->c_count * sizeof *c);
    et_matmul(engine, p->M, p->N, p->K, matrix_a(p), matrix_b(p), p->accumulate, c, p->c_stride);
    return c;
}

/* Bits, of the whole of C: what lies between its rows must stay as it was, too. */
static void same_bits(const product *p, const et_real *got, const et_real *want)
{
    for (size_t j = 0; j < p->c_count; j++)
        if (memcmp(got + j, want + j, sizeof *got) != 0)
            ck_abort_msg("%zu x %zu, K = %zu, A%s B%s%s, slack %zu: element (%zu, %zu): got %a, "
                         "want %a",
                         p->M, p->N, p->K, p->a_transposed ? "'" : "", p->b_transposed ? "'" : "",
                         p->accumulate ? ", accumulated" : "", p->slack, j / p->c_stride,
                         j % p->c_stride, (double)got[j], (double)want[j]);
}

/* |blas - plain| <= 2 gamma_(K+1) sum|a||b|, as the header says of two engines. */
static void within_bound(const product *p, const et_real *got, const et_real *want,
                         const double *magnitude)
{
    double m = (double)(p->K + 1), bound = 2 * m * U / (1 - m * U);
    for (size_t j = 0; j < p->c_count; j++)
        if (!(fabs((double)got[j] - (double)want[j]) <= bound * magnitude[j]))
            ck_abort_msg("%zu x %zu, K = %zu: element %zu: blas %.17g, plain %.17g, bound %.3g",
                         p->M, p->N, p->K, j, (double)got[j], (double)want[j],
                         bound * magnitude[j]);
}

static void check_product(product p)
{
    open_product(&p);
    double *magnitude = calloc(p.c_count + 1, sizeof *magnitude); /* 0 between rows: no error */
    et_real *want = room_for(p.c_count);
    memcpy(want, p.c, p.c_count * sizeof *want);
    multiply_literally(&p, want, magnitude);
    et_real *plain = multiplied(&p, ET_PLAIN), *blas = multiplied(&p, ET_BLAS);
    same_bits(&p, plain, want);
    within_bound(&p, blas, want, magnitude);
    free(plain);
    free(blas);
    free(want);
    free(magnitude);
    close_product(&p);
}

/* All four transpositions, written and accumulated. */
static void check_size(size_t M, size_t N, size_t K, size_t slack)
{
    for (int form = 0; form < 8; form++)
        check_product((product){.M = M,
                                .N = N,
                                .K = K,
                                .a_transposed = form & 1,
                                .b_transposed = form & 2,
                                .accumulate = form & 4,
                                .slack = slack});
}

START_TEST(small_products_are_the_definition)
{
    static const size_t sizes[] = {0, 1, 2, 3, 5, 10};
    for (size_t m = 0; m < COUNT(sizes); m++)
        for (size_t n = 0; n < COUNT(sizes); n++)
            for (size_t k = 0; k < COUNT(sizes); k++)
                check_size(sizes[m], sizes[n], sizes[k], (m + n + k) % 4);
}
END_TEST

/* matmul.c cuts at MR = 4 and MC = 64 rows, KC = 256 terms, NR = 6 and NC = 96 columns (12 and 192
 * in float): below, at and above each, alone and together. */
START_TEST(products_across_every_block_edge_are_the_definition)
{
    static const size_t edges[][3] = {
        {3, 5, 4},    {4, 6, 7},     {5, 7, 5},      {8, 12, 9},    {9, 13, 3},      {63, 7, 5},
        {64, 6, 5},   {65, 5, 5},    {128, 3, 2},    {129, 1, 3},   {3, 95, 5},      {4, 96, 5},
        {5, 97, 5},   {2, 191, 4},   {2, 192, 4},    {3, 193, 4},   {5, 7, 255},     {5, 7, 256},
        {5, 7, 257},  {3, 2, 511},   {2, 3, 512},    {1, 1, 513},   {63, 63, 63},    {64, 64, 64},
        {65, 65, 65}, {65, 97, 257}, {66, 194, 258}, {255, 5, 3},   {256, 4, 65},    {257, 3, 64},
        {5, 255, 64}, {4, 256, 63},  {3, 257, 65},   {63, 255, 65}, {130, 100, 300},
    };
    for (size_t e = 0; e < COUNT(edges); e++)
        check_size(edges[e][0], edges[e][1], edges[e][2], e % 3 * 5);
}
END_TEST

START_TEST(an_empty_sum_is_zero_or_what_was_there)
{
    const et_real none[1] = {9};
    et_real c[] = {1, 2, 3, 4, 5, 6};
    for (et_engine engine = ET_PLAIN; engine <= ET_BLAS; engine++) {
        et_real got[6];
        memcpy(got, c, sizeof c);
        et_matmul(engine, 2, 2, 0, et_rows(none, 0), et_rows(none, 2), true, got, 3);
        same("accumulated", 6, got, c);
        et_matmul(engine, 2, 2, 0, et_rows(none, 0), et_rows(none, 2), false, got, 3);
        same("written", 6, got, (const et_real[]){0, 0, 3, 0, 0, 6});
    }
}
END_TEST

static const int thread_counts[] = {1, 2, 5};

START_TEST(threads_do_not_change_a_product)
{
    product p = {.M = 130, .N = 200, .K = 270, .b_transposed = true, .accumulate = true};
    open_product(&p);
    et_real *want = room_for(p.c_count);
    memcpy(want, p.c, p.c_count * sizeof *want);
    multiply_literally(&p, want, NULL);
    int usual = omp_get_max_threads();
    for (size_t v = 0; v < COUNT(thread_counts); v++) {
        omp_set_num_threads(thread_counts[v]);
        et_real *got = multiplied(&p, ET_PLAIN);
        same_bits(&p, got, want);
        free(got);
    }
    omp_set_num_threads(usual);
    free(want);
    close_product(&p);
}
END_TEST

/* ---- the feed-forward layer ---- */

/* Two tokens, d = 2, h = 4. The last hidden unit meets 2*1 - 1*2 = 0 exactly: the derivative of
 * relu^2 there is 0, although its dA is 3. */
static const et_real ffn_x[] = {1, 2, -1, 1}, ffn_up[] = {1, 0, 0, 1, 1, -1, 2, -1};
static const et_real ffn_down[] = {1, 2, 3, 5, 0, -1, 1, -2};
static const et_real ffn_H[] = {1, 2, -1, 0, -1, 1, -2, -3}, ffn_A[] = {1, 4, 0, 0, 0, 1, 0, 0};

START_TEST(feed_forward_by_hand)
{
    for (et_engine engine = ET_PLAIN; engine <= ET_BLAS; engine++) {
        const et_ffn f = {engine, 2, 4, ffn_up, ffn_down, NULL};
        et_real H[8], A[8], out[4];
        et_ffn_rows rows = {.m = 2, .x = ffn_x, .H = H, .A = A, .out = out};
        ck_assert_int_eq(et_ffn_forward(&f, &rows, NULL), ET_OK);
        same("H", 8, H, ffn_H);
        same("A", 8, A, ffn_A);
        same("f", 4, out, (const et_real[]){1 + 8, -4, 2, -1});
        rows.m = 0;
        ck_assert_int_eq(et_ffn_forward(&f, &rows, NULL), ET_OK);
        same("no token: f", 4, out, (const et_real[]){9, -4, 2, -1});
    }
}
END_TEST

/* dO = (1 1; 3 -1), and everything accumulated comes in as 100. */
START_TEST(feed_forward_backward_by_hand)
{
    const et_real dO[] = {1, 1, 3, -1};
    for (et_engine engine = ET_PLAIN; engine <= ET_BLAS; engine++)
        for (int accumulate = 0; accumulate <= 1; accumulate++) {
            const et_ffn f = {engine, 2, 4, ffn_up, ffn_down, NULL};
            et_real H[8], A[8], dA[8], dH[8], dup[8], ddown[8], dx[] = {100, 100, 100, 100};
            const et_ffn_rows rows = {2, ffn_x, H, A, NULL, dO, dA, dH, dx, accumulate};
            memcpy(H, ffn_H, sizeof H);
            memcpy(A, ffn_A, sizeof A);
            const et_real base = accumulate ? 100 : 0;
            for (int j = 0; j < 8; j++) dup[j] = ddown[j] = 100;
            ck_assert_int_eq(et_ffn_backward(&f, &rows, dup, ddown, NULL), ET_OK);
            same("dA = dO W_down", 8, dA, (const et_real[]){1, 1, 4, 3, 3, 7, 8, 17});
            same("dH = dA 2 relu(H)", 8, dH, (const et_real[]){2, 4, 0, 0, 0, 14, 0, 0});
            same("dW_down += dO' A", 8, ddown,
                 (const et_real[]){101, 107, 100, 100, 101, 103, 100, 100});
            same("dW_up += dH' x", 8, dup,
                 (const et_real[]){102, 104, 90, 122, 100, 100, 100, 100});
            same("dx = dH W_up", 4, dx, (const et_real[]){base + 2, base + 4, base, base + 14});
        }
}
END_TEST

/* ---- gates ---- */

static const et_gate gates[] = {ET_GATE_SIGMOID,
                                ET_GATE_RELU,
                                ET_GATE_SOFTMAX,
                                ET_GATE_SOFTMAX_ANCHOR,
                                ET_GATE_SOFTMAX_ANCHOR_OUT,
                                ET_GATE_SOFTMAX_TOKENS};

typedef struct gate_case {
    const char *what;
    et_gate gate;
    et_real r[4], p[4], anchor[2]; /* two tokens, two experts */
} gate_case;

/* clang-format off */
static const gate_case gate_cases[] = {
    {"sigmoid", ET_GATE_SIGMOID, {0, 800, -800, (et_real)-0.0}, {0.5, 1, 0, 0.5}, {0}},
    {"relu", ET_GATE_RELU, {0, 800, -800, 1.5}, {0, 800, 0, 1.5}, {0}},
    {"softmax", ET_GATE_SOFTMAX, {7, 7, 800, -800}, {0.5, 0.5, 1, 0}, {0}},
    {"softmax, one dominates", ET_GATE_SOFTMAX, {-800, 0, 100, 100}, {0, 1, 0.5, 0.5}, {0}},
    {"anchor", ET_GATE_SOFTMAX_ANCHOR, {0, -800, 800, 0}, {0.5, 0, 1, 0}, {0.5, 0}},
    {"anchor dominates", ET_GATE_SOFTMAX_ANCHOR, {-800, -800, 800, 800}, {0, 0, 0.5, 0.5}, {1, 0}},
    {"anchor_out", ET_GATE_SOFTMAX_ANCHOR_OUT, {0, -800, -800, -900}, {0.5, 0, 0, 0}, {0.5, 1}},
    {"tokens", ET_GATE_SOFTMAX_TOKENS, {3, 800, 3, -800}, {0.5, 1, 0.5, 0}, {0}},
};
/* clang-format on */

START_TEST(gates_by_hand)
{
    for (size_t v = 0; v < COUNT(gate_cases); v++) {
        const gate_case *c = &gate_cases[v];
        bool has_anchor = et_gate_has_anchor(c->gate);
        et_real p[4], anchor[2] = {9, 9};
        et_gate_forward(NULL, c->gate, 2, 2, c->r, p, has_anchor ? anchor : NULL);
        same(c->what, 4, p, c->p);
        if (has_anchor) same(c->what, 2, anchor, c->anchor);
    }
    et_gate_forward(NULL, ET_GATE_SOFTMAX, 0, 2, NULL, NULL, NULL); /* nothing is touched */
}
END_TEST

/* |got - want| <= tolerance |want|, or both vanish below the least normal number. */
static void relatively(const char *what, double at, double got, double want, double tolerance)
{
    if (!(fabs(got - want) <= tolerance * fabs(want) + 4 * LEAST))
        ck_abort_msg("%s at %g: got %.17g, want %.17g, tolerance %.3g relative", what, at, got,
                     want, tolerance);
}

/* Five roundings in et_real (exp, 1 + e twice, product, quotient) and as many of ours: 10 u. The
 * slope is p(1-p) = e^-|r| / (1+e^-|r|)^2, to full relative accuracy however small. */
START_TEST(sigmoid_and_its_slope_are_accurate_everywhere)
{
    static const et_real logits[] = {-800, -745, -100, -80, -40, -30, -3, -1,  -0.25,
                                     0,    0.25, 1,    3,   30,  40,  80, 100, 800};
    for (size_t j = 0; j < COUNT(logits); j++) {
        double r = (double)logits[j], e = exp(-fabs(r));
        et_real p, dp = 1, slope = 0;
        et_gate_forward(NULL, ET_GATE_SIGMOID, 1, 1, &logits[j], &p, NULL);
        et_gate_backward(NULL, ET_GATE_SIGMOID, 1, 1, &logits[j], &p, NULL, &dp, NULL, &slope);
        relatively("sigmoid", r, (double)p, r < 0 ? e / (1 + e) : 1 / (1 + e), 10 * U);
        relatively("its slope", r, (double)slope, e / ((1 + e) * (1 + e)), 10 * U);
    }
}
END_TEST

START_TEST(relu_slope_is_zero_at_zero)
{
    const et_real r[] = {-800, -1, (et_real)-0.0, 0, 1e-30f, 800}, dp[] = {2, 3, 4, 5, 6, 7};
    et_real dr[] = {10, 10, 10, 10, 10, 10};
    et_gate_backward(NULL, ET_GATE_RELU, 3, 2, r, r, NULL, dp, NULL, dr);
    same("relu", 6, dr, (const et_real[]){10, 10, 10, 10, 16, 17});
}
END_TEST

/* r = (x, 0): p = (1/(1+e), e/(1+e)) with e = e^-x, and dp = (1, 0) gives dr = +-e/(1+e)^2. Where
 * p_0 rounds to 1 the difference of two sums would be 0; the Jacobian is not. */
START_TEST(a_dominating_softmax_keeps_its_derivative)
{
    static const et_real logits[] = {0, 1, 17, 40, 80};
    for (size_t j = 0; j < COUNT(logits); j++) {
        double e = exp(-(double)logits[j]), want = e / ((1 + e) * (1 + e));
        for (size_t g = 2; g < COUNT(gates); g++) {
            bool anchored = et_gate_has_anchor(gates[g]);
            bool down = gates[g] == ET_GATE_SOFTMAX_TOKENS;
            const et_real r[2] = {logits[j], 0}, dp[2] = {1, 0};
            et_real p[2], anchor, dr[2] = {0, 0};
            size_t n = anchored || down ? 1 : 2, N = down ? 2 : 1; /* anchored: the anchor is 0 */
            et_gate_forward(NULL, gates[g], N, n, r, p, &anchor);
            et_gate_backward(NULL, gates[g], N, n, r, p, &anchor, dp, NULL, dr);
            relatively("dr_0", (double)logits[j], (double)dr[0], want, 12 * U);
            if (!anchored) relatively("dr_1", (double)logits[j], (double)dr[1], -want, 12 * U);
        }
    }
}
END_TEST

/* Equal shares: two experts and, where there is one, the anchor. dr_i = p sum_j p (dp_i - dp_j). */
START_TEST(softmax_jacobians_by_hand)
{
    const et_real r[] = {0, 0}, dp[] = {3, 1}, danchor[] = {8};
    et_real p[2], anchor, dr[] = {10, 20};
    et_gate_forward(NULL, ET_GATE_SOFTMAX, 1, 2, r, p, NULL);
    et_gate_backward(NULL, ET_GATE_SOFTMAX, 1, 2, r, p, NULL, dp, NULL, dr);
    same("softmax: (3 - 1)/4", 2, dr, (const et_real[]){10.5, 19.5});
    et_gate_backward(NULL, ET_GATE_SOFTMAX_TOKENS, 2, 1, r, p, NULL, dp, NULL, dr);
    same("softmax_tokens: the same down a column", 2, dr, (const et_real[]){11, 19});
    et_gate_forward(NULL, ET_GATE_SOFTMAX_ANCHOR, 1, 1, r, p, &anchor);
    dr[0] = 10;
    et_gate_backward(NULL, ET_GATE_SOFTMAX_ANCHOR, 1, 1, r, p, &anchor, dp, danchor, dr);
    same("softmax_anchor: (3 - 8)/4", 1, dr, (const et_real[]){8.75});
    et_gate_backward(NULL, ET_GATE_SOFTMAX_ANCHOR_OUT, 1, 1, r, p, &anchor, dp, NULL, dr);
    same("softmax_anchor_out: (3 - 0)/4", 1, dr, (const et_real[]){9.5});
}
END_TEST

enum { GATE_N = 3, GATE_n = 4 };

/* The scalar sum dp p (+ sum danchor a_0) as a function of the logits, summed in double. */
static double gate_scalar(et_gate gate, const et_real *r, const et_real *dp, const et_real *danchor)
{
    et_real p[GATE_N * GATE_n], anchor[GATE_N];
    double sum = 0;
    et_gate_forward(NULL, gate, GATE_N, GATE_n, r, p, anchor);
    for (size_t j = 0; j < GATE_N * GATE_n; j++) sum += (double)dp[j] * (double)p[j];
    for (size_t t = 0; danchor && t < GATE_N; t++) sum += (double)danchor[t] * (double)anchor[t];
    return sum;
}

/* (L(r+e) - L(r-e)) / 2e differs from the derivative by e^2/6 |L'''| at most, and each L by 16 u of
 * the sum of the |dp|. Third derivatives of a share are below 1/4 (sigmoid 1/8), so with W that sum
 * and danchor's the error is at most W (e^2/24 + 16 u/e); e near the least of it. */
START_TEST(gate_derivatives_are_those_of_differences)
{
    const double step = ldexp(1, sizeof(et_real) == sizeof(double) ? -15 : -6);
    for (size_t g = 0; g < COUNT(gates); g++) {
        et_real r[GATE_N * GATE_n], dp[GATE_N * GATE_n], danchor[GATE_N], anchor[GATE_N];
        et_real p[GATE_N * GATE_n], dr[GATE_N * GATE_n] = {0};
        const et_real *da = gates[g] == ET_GATE_SOFTMAX_ANCHOR ? danchor : NULL;
        double weight = 0;
        fill("test.r", GATE_N * GATE_n, r);
        fill("test.dp", GATE_N * GATE_n, dp);
        fill("test.danchor", GATE_N, danchor);
        for (size_t j = 0; j < GATE_N * GATE_n; j++) {
            r[j] = (et_real)(rint(256 * (double)r[j]) / 256 + 1. / 32); /* r +- e: exact, no kink */
            weight += fabs((double)dp[j]);
        }
        for (size_t t = 0; t < GATE_N; t++) weight += fabs((double)danchor[t]);
        et_gate_forward(NULL, gates[g], GATE_N, GATE_n, r, p, anchor);
        et_gate_backward(NULL, gates[g], GATE_N, GATE_n, r, p, anchor, dp, da, dr);
        for (size_t j = 0; j < GATE_N * GATE_n; j++) {
            et_real at = r[j];
            r[j] = (et_real)((double)at + step);
            double difference = gate_scalar(gates[g], r, dp, da);
            r[j] = (et_real)((double)at - step);
            difference = (difference - gate_scalar(gates[g], r, dp, da)) / (2 * step);
            r[j] = at;
            double bound = weight * (step * step / 24 + 16 * U / step);
            if (!(fabs(difference - (double)dr[j]) <= bound))
                ck_abort_msg("gate %zu, logit %zu: backward %.12g, differences %.12g, bound %.3g",
                             g, j, (double)dr[j], difference, bound);
        }
    }
}
END_TEST

/* ---- the MoE layer ---- */

/* N = 4, n = 2, d = 2, h = 2, hs = 1, gate relu. Token 0 goes to expert 0, token 1 to expert 1,
 * token 2 to both, token 3 to none, although its gate values are 2 and 10.
 *
 *     x        r = p     H_0     A_0    f_0     H_1     A_1    f_1     f_shared
 *     1  0      1  5     1 -1    1 0    1 2                             1 -1
 *     0  1      2  4                            1 -1    1 0    1 0      4 -4
 *     1  1      3  9     2 -1    4 0    4 8     1  1    1 1    0 3      9 -9
 *     2  0      2 10                                                    4 -4
 *
 * Slots: (0,0), (2,0), (1,1), (2,1). With dy = (1 2; 2 -1; 4 1; 3 1), dw = <dy, f> = 5, 24, 2, 3
 * and ds = <dy, f_shared> = -1, 12, 27, 8. The shared expert enters with 3 rather than 1, so that
 * token 2's 3/n_t = 3/3 is exact. */
static const et_real moe_x[] = {1, 0, 0, 1, 1, 1, 2, 0}, moe_dy[] = {1, 2, 2, -1, 4, 1, 3, 1};
static const et_real moe_router[] = {1, 2, 5, 4};
static const et_real moe_up[] = {1, 1, -1, 0, 0, 1, 2, -1}, moe_down[] = {1, 0, 2, 1, 1, -1, 0, 3};
static const et_real moe_shared_up[] = {1, 2}, moe_shared_down[] = {1, -1};
static const uint8_t moe_mask[] = {1, 0, 0, 1, 1, 1, 0, 0};

typedef struct pencil {
    const char *what;
    et_norm norm;
    bool shared;
    et_real w[4], s[4], y[8];
    et_real dr[8], dx[8], drouter[4], dup[8], ddown[8], dshared_up[2], dshared_down[2];
} pencil;

/* none     y_2 = 3 (9 -9) + 3 (4 8) + 9 (0 3) = (39 24)
 * fanout   n = 2 2 3 1 (1 1 2 0 without shared): the same, divided
 * sum      token 2: w = (3 9)/12; dp = (24 - 33/4)/12 = 21/16, (3 - 33/4)/12 = -7/16; where a token
 *          has one expert w is 1 whatever p, and dp = 0
 * dx_0 (none) = r: 5 (1 2) + expert: dO = 1 (1 2), dA = (5 2), dH = (10 0), (10 10) + shared:
 *          dO = 3 (1 2), dA = -3, dH = -6, (-6 -12) = (9 8) */
/* clang-format off */
static const pencil pencils[] = {
    {"none, shared", ET_NORM_NONE, true, {1, 3, 4, 9}, {3, 3, 3, 3},
     {4, -1, 16, -12, 39, 24, 12, -12}, {5, 0, 0, 2, 24, 3, 0, 0},
     {9, 8, 46, 96, 129, 330, 24, 48}, {29, 24, 3, 5}, {82, 72, 0, 0, 72, 88, -18, -18},
     {49, 0, 14, 0, 44, 36, 5, 9}, {96, 90}, {171, 33}},
    {"none", ET_NORM_NONE, false, {1, 3, 4, 9}, {0}, {1, 2, 4, 0, 12, 51, 0, 0},
     {5, 0, 0, 2, 24, 3, 0, 0}, {15, 20, 10, 24, 75, 222, 0, 0}, {29, 24, 3, 5},
     {82, 72, 0, 0, 72, 88, -18, -18}, {49, 0, 14, 0, 44, 36, 5, 9}, {0}, {0}},
    {"fanout, shared", ET_NORM_FANOUT, true, {0.5, 1, 2, 3}, {1.5, 1.5, 1, 3},
     {2, -0.5, 8, -6, 13, 8, 12, -12}, {2.5, 0, 0, 1, 8, 1, 0, 0},
     {4.5, 4, 23, 48, 43, 110, 24, 48}, {10.5, 8, 1, 2}, {29, 24, 0, 0, 24, 32, -6, -6},
     {16.5, 0, 5, 0, 16, 12, 1, 3}, {63, 36}, {85.5, 18}},
    {"fanout", ET_NORM_FANOUT, false, {1, 1.5, 4, 4.5}, {0}, {1, 2, 4, 0, 6, 25.5, 0, 0},
     {5, 0, 0, 2, 12, 1.5, 0, 0}, {15, 20, 10, 24, 37.5, 111, 0, 0}, {17, 12, 1.5, 3.5},
     {46, 36, 0, 0, 36, 52, -9, -9}, {25, 0, 8, 0, 26, 18, 0.5, 4.5}, {0}, {0}},
    {"sum, shared", ET_NORM_SUM, true, {1, 0.25, 1, 0.75}, {3, 3, 3, 3},
     {4, -1, 13, -12, 28, -22.75, 12, -12}, {0, 0, 0, 0, 1.3125, -0.4375, 0, 0},
     {4, -2, 36, 76, 56.125, 122.375, 24, 48}, {1.3125, 1.3125, -0.4375, -0.4375},
     {16, 6, 0, 0, 6, 10, -1.5, -1.5}, {5, 0, 3, 0, 5, 3, -0.25, 0.75}, {96, 90}, {171, 33}},
    {"sum", ET_NORM_SUM, false, {1, 0.25, 1, 0.75}, {0}, {1, 2, 1, 0, 1, 4.25, 0, 0},
     {0, 0, 0, 0, 1.3125, -0.4375, 0, 0}, {10, 10, 0, 4, 2.125, 14.375, 0, 0},
     {1.3125, 1.3125, -0.4375, -0.4375}, {16, 6, 0, 0, 6, 10, -1.5, -1.5},
     {5, 0, 3, 0, 5, 3, -0.25, 0.75}, {0}, {0}},
};
/* clang-format on */

/* Room for every array of a layer as small as these, and the structs that point into it. */
typedef struct workspace {
    et_real room[40][32];
    size_t used;
    et_moe_values v;
    et_moe_grads g;
    et_assignment a;
} workspace;

static et_real *next(workspace *w)
{
    ck_assert_uint_lt(w->used, COUNT(w->room));
    return w->room[w->used++];
}

/* Arrays that are to be written come in as 77, those that are accumulated as 0. */
static void open_workspace(workspace *w, size_t N, size_t n, const uint8_t *mask)
{
    et_moe_values *v = &w->v;
    et_moe_grads *g = &w->g;
    et_real **written[] = {&v->logits,        &v->gates,      &v->anchor,        &v->slot_weight,
                           &v->slot_pre,      &v->slot_act,   &v->slot_out,      &v->shared_pre,
                           &v->shared_act,    &v->shared_out, &v->shared_weight, &v->y,
                           &g->slot_weight,   &g->slot_out,   &g->slot_act,      &g->slot_pre,
                           &g->shared_weight, &g->shared_out, &g->shared_act,    &g->shared_pre};
    et_real **accumulated[] = {&g->x,         &g->router,      &g->up,     &g->down,
                               &g->shared_up, &g->shared_down, &g->logits, &g->gates};
    *w = (workspace){.used = 0};
    for (size_t j = 0; j < COUNT(written); j++) {
        *written[j] = next(w);
        for (size_t i = 0; i < COUNT(w->room[0]); i++) (*written[j])[i] = 77;
    }
    for (size_t j = 0; j < COUNT(accumulated); j++) *accumulated[j] = next(w);
    ck_assert_int_eq(et_assignment_build(&w->a, N, n, mask, NULL), ET_OK);
}

static void run_layer(const et_moe *moe, const et_real *x, const et_real *dy, workspace *w)
{
    et_error error;
    ck_assert_int_eq(et_moe_score(moe, x, &w->v, &error), ET_OK);
    ck_assert_int_eq(et_moe_forward(moe, x, &w->a, &w->v, &error), ET_OK);
    ck_assert_int_eq(et_moe_backward(moe, x, dy, &w->a, &w->v, &w->g, &error), ET_OK);
}

static void check_pencil(const pencil *c, et_engine engine)
{
    workspace w;
    const et_moe moe = {.engine = engine,
                        .N = 4,
                        .d = 2,
                        .h = 2,
                        .n = 2,
                        .hs = c->shared ? 1 : 0,
                        .gate = ET_GATE_RELU,
                        .norm = c->norm,
                        .gate_tokens = 4,
                        .shared_constant = 3,
                        .router = moe_router,
                        .up = moe_up,
                        .down = moe_down,
                        .shared_up = moe_shared_up,
                        .shared_down = moe_shared_down};
    open_workspace(&w, 4, 2, moe_mask);
    run_layer(&moe, moe_x, moe_dy, &w);
    same(c->what, 8, w.v.logits, (const et_real[]){1, 5, 2, 4, 3, 9, 2, 10});
    same(c->what, 8, w.v.slot_out, (const et_real[]){1, 2, 4, 8, 1, 0, 0, 3});
    same(c->what, 4, w.v.slot_weight, c->w);
    same(c->what, 8, w.v.y, c->y);
    same(c->what, 4, w.g.slot_weight, (const et_real[]){5, 24, 2, 3});
    same(c->what, 8, w.g.logits, c->dr);
    same(c->what, 8, w.g.x, c->dx);
    same(c->what, 4, w.g.router, c->drouter);
    same(c->what, 8, w.g.up, c->dup);
    same(c->what, 8, w.g.down, c->ddown);
    if (c->shared) {
        same(c->what, 4, w.v.shared_weight, c->s);
        same(c->what, 4, w.g.shared_weight, (const et_real[]){-1, 12, 27, 8});
        same(c->what, 2, w.g.shared_up, c->dshared_up);
        same(c->what, 2, w.g.shared_down, c->dshared_down);
    }
    et_assignment_free(&w.a);
}

START_TEST(a_layer_by_hand)
{
    for (size_t v = 0; v < COUNT(pencils); v++)
        for (et_engine engine = ET_PLAIN; engine <= ET_BLAS; engine++)
            check_pencil(&pencils[v], engine);
}
END_TEST

/* Four tokens, two experts, no shared one. */
static et_moe relu_layer(void)
{
    return (et_moe){.N = 4,
                    .d = 2,
                    .h = 2,
                    .n = 2,
                    .gate = ET_GATE_RELU,
                    .gate_tokens = 4,
                    .router = moe_router,
                    .up = moe_up,
                    .down = moe_down};
}

/* The losses' own gradients come in through g->gates and g->logits; off the slots they count, too.
 * Token 3 has no expert: dp = 1 on its expert 0 (r > 0) and dr = 2 on expert 1 reach W_r and x. */
START_TEST(gradients_of_losses_come_in)
{
    workspace w;
    const et_moe moe = relu_layer();
    open_workspace(&w, 4, 2, moe_mask);
    w.g.gates[6] = 1;
    w.g.logits[7] = 2;
    run_layer(&moe, moe_x, moe_dy, &w);
    same("dr", 8, w.g.logits, (const et_real[]){5, 0, 0, 2, 24, 3, 1, 2});
    same("dW_r", 4, w.g.router, (const et_real[]){29 + 2, 24, 3 + 4, 5});
    same("dx of token 3", 2, w.g.x + 6, (const et_real[]){1 + 2 * 5, 2 + 2 * 4});
    et_assignment_free(&w.a);
}
END_TEST

/* Gradients of weights that nobody wants are left alone; all the others are as ever. */
START_TEST(unwanted_gradients_are_left_out)
{
    workspace all, some;
    const uint8_t wanted[] = {1, 0, 0};
    const et_moe moe = relu_layer();
    open_workspace(&all, 4, 2, moe_mask);
    open_workspace(&some, 4, 2, moe_mask);
    some.g.wanted = wanted;
    run_layer(&moe, moe_x, moe_dy, &all);
    run_layer(&moe, moe_x, moe_dy, &some);
    same("dW_up of expert 0", 4, some.g.up, all.g.up);
    same("dW_down of expert 0", 4, some.g.down, all.g.down);
    same("dW_up of expert 1", 4, some.g.up + 4, (const et_real[]){0, 0, 0, 0});
    same("dW_down of expert 1", 4, some.g.down + 4, (const et_real[]){0, 0, 0, 0});
    same("dx", 8, some.g.x, all.g.x);
    same("dW_r", 4, some.g.router, all.g.router);
    et_assignment_free(&all.a);
    et_assignment_free(&some.a);
}
END_TEST

/* All gate values of a token are 0: under norm sum its weights are 0, and so are their gradients.
 */
START_TEST(a_sum_of_zero_gates_divides_nothing)
{
    const et_real x[] = {-1, 0}, dy[] = {1, 1};
    const uint8_t mask[] = {1, 1};
    workspace w;
    const et_moe moe = {.N = 1,
                        .d = 2,
                        .h = 2,
                        .n = 2,
                        .gate = ET_GATE_RELU,
                        .norm = ET_NORM_SUM,
                        .gate_tokens = 1,
                        .router = moe_router,
                        .up = moe_up,
                        .down = moe_down};
    open_workspace(&w, 1, 2, mask);
    run_layer(&moe, x, dy, &w);
    const et_real zero[4] = {0};
    same("w", 2, w.v.slot_weight, zero);
    same("y", 2, w.v.y, zero);
    same("dr", 2, w.g.logits, zero);
    same("dx", 2, w.g.x, zero);
    et_assignment_free(&w.a);
}
END_TEST

/* d = h = hs = n = 1, W_r = 0: every logit is 0, so p = a_0 = 1/2. x = (1, 2), up 1 and down 1 for
 * the routed, up 2 for the shared expert: f = x^2, f_shared = 4 x^2. Only token 0 has the expert.
 *
 *     token   f   f_shared   y = s f_shared + w f                dy
 *     0       1   4          none: 4/2 + 1/2      fanout: half   2
 *     1       4   16         16/2                 the same       1
 *
 * dp = 2 1, da = 2 4 (halved under fanout), dr = 1/4 (dp - da) = -3/2 (-3/4); token 1: dp = 0,
 * da = 16, dr = -4. */
START_TEST(the_anchor_weighs_the_shared_expert)
{
    const et_real x[] = {1, 2}, dy[] = {2, 1}, zero[] = {0}, one[] = {1}, two[] = {2};
    const uint8_t mask[] = {1, 0};
    const et_real y[2][2] = {{2.5, 8}, {1.25, 8}}, dr[2][2] = {{-1.5, -4}, {-0.75, -4}};
    for (int fanout = 0; fanout <= 1; fanout++) {
        workspace w;
        const et_moe moe = {.N = 2,
                            .d = 1,
                            .h = 1,
                            .n = 1,
                            .hs = 1,
                            .gate = ET_GATE_SOFTMAX_ANCHOR,
                            .norm = fanout ? ET_NORM_FANOUT : ET_NORM_NONE,
                            .gate_tokens = 2,
                            .anchor_weighs_shared = true,
                            .shared_constant = 55,
                            .router = zero,
                            .up = one,
                            .down = one,
                            .shared_up = two,
                            .shared_down = one};
        open_workspace(&w, 2, 1, mask);
        run_layer(&moe, x, dy, &w);
        same("y", 2, w.v.y, y[fanout]);
        same("dr", 2, w.g.logits, dr[fanout]);
        et_assignment_free(&w.a);
    }
}
END_TEST

/* softmax_tokens over gate_tokens = 2 of 4 tokens, all logits 0: 1/2 each. dp = dy f = 4 0 0 8, and
 * within each half dr = +-(dp_0 - dp_1)/4. */
START_TEST(a_softmax_over_tokens_stays_in_its_micro_batch)
{
    const et_real x[] = {1, 1, 1, 1}, dy[] = {4, 0, 0, 8}, zero[] = {0}, one[] = {1};
    const uint8_t mask[] = {1, 1, 1, 1};
    workspace w;
    const et_moe moe = {.N = 4,
                        .d = 1,
                        .h = 1,
                        .n = 1,
                        .gate = ET_GATE_SOFTMAX_TOKENS,
                        .gate_tokens = 2,
                        .router = zero,
                        .up = one,
                        .down = one};
    open_workspace(&w, 4, 1, mask);
    run_layer(&moe, x, dy, &w);
    same("p", 4, w.v.gates, (const et_real[]){0.5, 0.5, 0.5, 0.5});
    same("dr", 4, w.g.logits, (const et_real[]){1, -1, -2, 2});
    et_assignment_free(&w.a);
}
END_TEST

/* ---- token by token ---- */

/* A case, drawn and run in the plain engine, with as many threads. */
static void run_step(et_step *s, const char *json, int threads)
{
    et_case c;
    et_error error;
    ck_assert_msg(et_case_parse(&c, json, strlen(json), "test", &error) == ET_OK, "%s", error.text);
    omp_set_num_threads(threads);
    ck_assert_int_eq(et_step_create(s, &c, 0, &error), ET_OK);
    s->block = 16;
    ck_assert_msg(et_step_draw_inputs(s, &error) == ET_OK, "%s", error.text);
    ck_assert_msg(et_step_run(s, ET_PLAIN, NULL, NULL, &error) == ET_OK, "%s", error.text);
}

/* Points every array of one token's layer into room: those of one token are its own, the gradients
 * of the weights are shared by all tokens and accumulate. */
static void open_token(workspace *w, const et_step *s, const uint8_t *mask, et_moe_grads *weights)
{
    open_workspace(w, 1, s->c.experts, mask);
    w->g.router = weights->router;
    w->g.up = weights->up;
    w->g.down = weights->down;
    w->g.shared_up = weights->shared_up;
    w->g.shared_down = weights->shared_down;
}

static void same_row(const char *what, size_t t, size_t width, const et_real *batch,
                     const et_real *alone)
{
    if (memcmp(batch + t * width, alone, width * sizeof *alone) != 0)
        ck_abort_msg("%s of token %zu depends on the other tokens", what, t);
}

static void check_token(const et_step *s, size_t t, et_moe_grads *weights)
{
    size_t d = s->c.d_model, n = s->c.experts;
    et_moe moe = et_step_layer(s);
    workspace w;
    moe.N = moe.gate_tokens = 1;
    open_token(&w, s, s->route.mask + t * n, weights);
    run_layer(&moe, s->in.x + t * d, s->in.dy + t * d, &w);
    same_row("r", t, n, s->fwd.logits, w.v.logits);
    same_row("y", t, d, s->fwd.y, w.v.y);
    same_row("dr", t, n, s->bwd.logits, w.g.logits);
    same_row("dx", t, d, s->bwd.x, w.g.x);
    et_assignment_free(&w.a);
}

/* Every load above a block of rows (64); two slots and the shared expert for a token. */
static const char one_by_one[] =
    "{\"name\": \"tokens\", \"rule\": \"tc\", \"tokens\": 150, \"d_model\": 10, \"d_expert\": 9,"
    " \"experts\": 3, \"top_k\": 2, \"gate\": \"softmax\", \"norm\": \"fanout\","
    " \"shared_d_expert\": 7, \"input\": {\"source\": \"normal\"}}";

/* A batch is its tokens, one after the other, bit for bit: no sum in the layer runs over tokens but
 * those of the weights' gradients, and they run in the tokens' order. So one layer of 150 tokens is
 * held against 150 layers of one: whatever gathers, scatters or cuts into blocks is not in them. */
START_TEST(a_batch_is_its_tokens_one_by_one)
{
    et_step s;
    int usual = omp_get_max_threads();
    run_step(&s, one_by_one, 1);
    omp_set_num_threads(usual);
    size_t d = s.c.d_model, h = s.c.d_expert, n = s.c.experts, hs = s.c.shared_d_expert;
    et_moe_grads sum = {.router = room_for(n * d),
                        .up = room_for(n * h * d),
                        .down = room_for(n * d * h),
                        .shared_up = room_for(hs * d),
                        .shared_down = room_for(d * hs)};
    for (size_t i = 0; i < n; i++) ck_assert_int_gt(s.assignment.load[i], 64);
    for (size_t t = 0; t < s.c.tokens; t++) check_token(&s, t, &sum);
    ck_assert_mem_eq(s.bwd.router, sum.router, n * d * sizeof(et_real));
    ck_assert_mem_eq(s.bwd.up, sum.up, n * h * d * sizeof(et_real));
    ck_assert_mem_eq(s.bwd.down, sum.down, n * d * h * sizeof(et_real));
    ck_assert_mem_eq(s.bwd.shared_up, sum.shared_up, hs * d * sizeof(et_real));
    ck_assert_mem_eq(s.bwd.shared_down, sum.shared_down, d * hs * sizeof(et_real));
    free(sum.router);
    free(sum.up);
    free(sum.down);
    free(sum.shared_up);
    free(sum.shared_down);
    et_step_free(&s);
}
END_TEST

/* ---- threads ---- */

/* N n, N d and N h are all above 2^15, below which the library starts no threads (parallel.h), and
 * so is the load of the skewed case's hot expert times d or h; the products have several blocks. */
#define MANY "\"tokens\": 2100, \"d_model\": 17, \"d_expert\": 18, \"experts\": 16, "

static const char *const steps[] = {
    "{\"name\": \"tc\", \"rule\": \"tc\", " MANY "\"top_k\": 2, \"gate\": \"softmax\","
    " \"norm\": \"sum\", \"balance\": \"aux\", \"z_loss_coef\": 0.01,"
    " \"input\": {\"source\": \"skewed\"}}",
    "{\"name\": \"ec\", \"rule\": \"ec\", " MANY "\"gate\": \"softmax_tokens\","
    " \"norm\": \"fanout\", \"pool_tokens\": 700, \"input\": {\"source\": \"normal\"}}",
    "{\"name\": \"et\", \"rule\": \"et\", " MANY "\"gate\": \"softmax_anchor\","
    " \"norm\": \"fanout\", \"capacity_factor\": 0.2,"
    " \"input\": {\"source\": \"ties\", \"copies\": 3}}",
    "{\"name\": \"sigmoid\", \"rule\": \"et\", " MANY "\"ema_updates\": 3,"
    " \"ema_bias_correction\": true, \"input\": {\"source\": \"outlier\"}}",
    "{\"name\": \"dense\", \"layer\": \"dense\","
    " \"tokens\": 400, \"d_model\": 100, \"d_expert\": 300,"
    " \"input\": {\"source\": \"normal\"}}",
};

static size_t bytes_of(const et_tensor_out *t)
{
    static const size_t sizes[] = {
        [ET_FROM_F64] = 8, [ET_FROM_F32] = 4, [ET_FROM_I32] = 4, [ET_FROM_U8] = 1};
    size_t bytes = sizes[t->source];
    for (size_t j = 0; j < t->rank; j++) bytes *= t->shape[j];
    return bytes;
}

/* Every tensor that a bundle would hold, and there are some. */
static void same_tensors(const et_step *got, const et_step *want)
{
    et_tensor_out a[ET_MAX_STEP_TENSORS], b[ET_MAX_STEP_TENSORS];
    size_t count = et_step_tensors(want, false, b);
    ck_assert_uint_gt(count, 5);
    ck_assert_uint_eq(et_step_tensors(got, false, a), count);
    for (size_t j = 0; j < count; j++) {
        ck_assert_str_eq(a[j].name, b[j].name);
        ck_assert_uint_eq(bytes_of(&a[j]), bytes_of(&b[j]));
        if (memcmp(a[j].values, b[j].values, bytes_of(&b[j])) != 0)
            ck_abort_msg("case '%s': %s depends on the number of threads", want->c.name, b[j].name);
    }
}

START_TEST(threads_do_not_change_a_step)
{
    int usual = omp_get_max_threads();
    for (size_t v = 0; v < COUNT(steps); v++) {
        et_step one;
        run_step(&one, steps[v], thread_counts[0]);
        for (size_t j = 1; j < COUNT(thread_counts); j++) {
            et_step many;
            run_step(&many, steps[v], thread_counts[j]);
            same_tensors(&many, &one);
            et_step_free(&many);
        }
        et_step_free(&one);
    }
    omp_set_num_threads(usual);
}
END_TEST

static void add_products(Suite *suite)
{
    TCase *matmul = add_case(suite, "matmul");
    tcase_add_test(matmul, small_products_are_the_definition);
    tcase_add_test(matmul, products_across_every_block_edge_are_the_definition);
    tcase_add_test(matmul, an_empty_sum_is_zero_or_what_was_there);
    tcase_add_test(matmul, threads_do_not_change_a_product);
    TCase *ffn = add_case(suite, "ffn");
    tcase_add_test(ffn, feed_forward_by_hand);
    tcase_add_test(ffn, feed_forward_backward_by_hand);
}

static void add_gates(Suite *suite)
{
    TCase *gate = add_case(suite, "gate");
    tcase_add_test(gate, gates_by_hand);
    tcase_add_test(gate, sigmoid_and_its_slope_are_accurate_everywhere);
    tcase_add_test(gate, relu_slope_is_zero_at_zero);
    tcase_add_test(gate, a_dominating_softmax_keeps_its_derivative);
    tcase_add_test(gate, softmax_jacobians_by_hand);
    tcase_add_test(gate, gate_derivatives_are_those_of_differences);
}

static void add_layers(Suite *suite)
{
    TCase *moe = add_case(suite, "moe");
    tcase_add_test(moe, a_layer_by_hand);
    tcase_add_test(moe, gradients_of_losses_come_in);
    tcase_add_test(moe, unwanted_gradients_are_left_out);
    tcase_add_test(moe, a_sum_of_zero_gates_divides_nothing);
    tcase_add_test(moe, the_anchor_weighs_the_shared_expert);
    tcase_add_test(moe, a_softmax_over_tokens_stays_in_its_micro_batch);
    tcase_add_test(moe, a_batch_is_its_tokens_one_by_one);
    TCase *threads = add_case(suite, "threads");
    tcase_add_test(threads, threads_do_not_change_a_step);
}

int main(void)
{
    Suite *suite = suite_create("layers");
    add_products(suite);
    add_gates(suite);
    add_layers(suite);
    return run_suite(suite);
}
