/* test_layers.c: the feed-forward layer, the MoE layer, and the promise that threads never change a bit.
 *
 * They are held against examples small enough for a pencil, with numbers that every operation leaves
 * exact: a wrong factor, a transposed matrix or a forgotten term changes an integer. A larger layer
 * is held against its own tokens, one at a time.
 */
#include "etref/bundle.h"
#include "etref/step.h"
#include "tests/check_main.h"
#include "tests/expect.h"
#include "tests/run_case.h"

#include <omp.h>

/* ---- the feed-forward layer ---- */

/* Two tokens, d = 2, h = 4. The last hidden unit meets 2*1 - 1*2 = 0 exactly: the derivative of
 * relu^2 there is 0, although its dA is 3. */
static const et_real ffn_x[] = {1, 2, -1, 1}, ffn_up[] = {1, 0, 0, 1, 1, -1, 2, -1};
static const et_real ffn_down[] = {1, 2, 3, 5, 0, -1, 1, -2};
static const et_real ffn_H[] = {1, 2, -1, 0, -1, 1, -2, -3}, ffn_A[] = {1, 4, 0, 0, 0, 1, 0, 0};

START_TEST(feed_forward_by_hand)
{
    for (et_engine engine = ET_PLAIN; engine <= ET_BLAS; engine++) {
        const et_ffn f = {.engine = engine, .d = 2, .h = 4, .up = ffn_up, .down = ffn_down};
        et_real H[8], A[8], out[4];
        et_ffn_rows rows = {.m = 2, .x = ffn_x, .H = H, .A = A, .out = out};
        ck_assert_int_eq(et_ffn_forward(&f, &rows, NULL), ET_OK);
        same_reals("H", 8, H, ffn_H);
        same_reals("A", 8, A, ffn_A);
        same_reals("f", 4, out, (const et_real[]){1 + 8, -4, 2, -1});
        rows.m = 0;
        ck_assert_int_eq(et_ffn_forward(&f, &rows, NULL), ET_OK);
        same_reals("no token: f", 4, out, (const et_real[]){9, -4, 2, -1});
    }
}
END_TEST

/* dO = (1 1; 3 -1), and everything accumulated comes in as 100. */
START_TEST(feed_forward_backward_by_hand)
{
    const et_real dO[] = {1, 1, 3, -1};
    for (et_engine engine = ET_PLAIN; engine <= ET_BLAS; engine++)
        for (int accumulate = 0; accumulate <= 1; accumulate++) {
            const et_ffn f = {.engine = engine, .d = 2, .h = 4, .up = ffn_up, .down = ffn_down};
            et_real H[8], A[8], dA[8], dH[8], dup[8], ddown[8], dx[] = {100, 100, 100, 100};
            const et_ffn_rows rows = {2, ffn_x, H, A, NULL, dO, dA, dH, dx, accumulate, NULL, NULL};
            memcpy(H, ffn_H, sizeof H);
            memcpy(A, ffn_A, sizeof A);
            const et_real base = accumulate ? 100 : 0;
            for (int j = 0; j < 8; j++) dup[j] = ddown[j] = 100;
            ck_assert_int_eq(et_ffn_backward(&f, &rows, dup, ddown, NULL, NULL), ET_OK);
            same_reals("dA = dO W_down", 8, dA, (const et_real[]){1, 1, 4, 3, 3, 7, 8, 17});
            same_reals("dH = dA 2 relu(H)", 8, dH, (const et_real[]){2, 4, 0, 0, 0, 14, 0, 0});
            same_reals("dW_down += dO' A", 8, ddown,
                       (const et_real[]){101, 107, 100, 100, 101, 103, 100, 100});
            same_reals("dW_up += dH' x", 8, dup,
                       (const et_real[]){102, 104, 90, 122, 100, 100, 100, 100});
            same_reals("dx = dH W_up", 4, dx,
                       (const et_real[]){base + 2, base + 4, base, base + 14});
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
    same_reals(c->what, 8, w.v.logits, (const et_real[]){1, 5, 2, 4, 3, 9, 2, 10});
    same_reals(c->what, 8, w.v.slot_out, (const et_real[]){1, 2, 4, 8, 1, 0, 0, 3});
    same_reals(c->what, 4, w.v.slot_weight, c->w);
    same_reals(c->what, 8, w.v.y, c->y);
    same_reals(c->what, 4, w.g.slot_weight, (const et_real[]){5, 24, 2, 3});
    same_reals(c->what, 8, w.g.logits, c->dr);
    same_reals(c->what, 8, w.g.x, c->dx);
    same_reals(c->what, 4, w.g.router, c->drouter);
    same_reals(c->what, 8, w.g.up, c->dup);
    same_reals(c->what, 8, w.g.down, c->ddown);
    if (c->shared) {
        same_reals(c->what, 4, w.v.shared_weight, c->s);
        same_reals(c->what, 4, w.g.shared_weight, (const et_real[]){-1, 12, 27, 8});
        same_reals(c->what, 2, w.g.shared_up, c->dshared_up);
        same_reals(c->what, 2, w.g.shared_down, c->dshared_down);
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
    same_reals("dr", 8, w.g.logits, (const et_real[]){5, 0, 0, 2, 24, 3, 1, 2});
    same_reals("dW_r", 4, w.g.router, (const et_real[]){29 + 2, 24, 3 + 4, 5});
    same_reals("dx of token 3", 2, w.g.x + 6, (const et_real[]){1 + 2 * 5, 2 + 2 * 4});
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
    same_reals("dW_up of expert 0", 4, some.g.up, all.g.up);
    same_reals("dW_down of expert 0", 4, some.g.down, all.g.down);
    same_reals("dW_up of expert 1", 4, some.g.up + 4, (const et_real[]){0, 0, 0, 0});
    same_reals("dW_down of expert 1", 4, some.g.down + 4, (const et_real[]){0, 0, 0, 0});
    same_reals("dx", 8, some.g.x, all.g.x);
    same_reals("dW_r", 4, some.g.router, all.g.router);
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
    same_reals("w", 2, w.v.slot_weight, zero);
    same_reals("y", 2, w.v.y, zero);
    same_reals("dr", 2, w.g.logits, zero);
    same_reals("dx", 2, w.g.x, zero);
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
        same_reals("y", 2, w.v.y, y[fanout]);
        same_reals("dr", 2, w.g.logits, dr[fanout]);
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
    same_reals("p", 4, w.v.gates, (const et_real[]){0.5, 0.5, 0.5, 0.5});
    same_reals("dr", 4, w.g.logits, (const et_real[]){1, -1, -2, 2});
    et_assignment_free(&w.a);
}
END_TEST

/* ---- token by token ---- */

/* A case, drawn and run in the plain engine, with as many threads. */
static void run_step(et_step *s, const char *json, int threads)
{
    et_case c;
    et_error error;
    done(parse_quoted(&c, json, &error), &error);
    omp_set_num_threads(threads);
    draw_case(s, &c);
    s->block = 16;
    done(et_step_run(s, ET_PLAIN, NULL, NULL, &error), &error);
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
    "{'name': 'tokens', 'rule': 'tc', 'tokens': 150, 'd_model': 10, 'd_expert': 9,"
    " 'experts': 3, 'top_k': 2, 'gate': 'softmax', 'norm': 'fanout',"
    " 'shared_d_expert': 7, 'input': {'source': 'normal'}}";

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
    et_moe_grads sum = {.router = room_for(n * d, sizeof(et_real)),
                        .up = room_for(n * h * d, sizeof(et_real)),
                        .down = room_for(n * d * h, sizeof(et_real)),
                        .shared_up = room_for(hs * d, sizeof(et_real)),
                        .shared_down = room_for(d * hs, sizeof(et_real))};
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
#define MANY "'tokens': 2100, 'd_model': 17, 'd_expert': 18, 'experts': 16, "

static const char *const steps[] = {
    "{'name': 'tc', 'rule': 'tc', " MANY "'top_k': 2, 'gate': 'softmax',"
    " 'norm': 'sum', 'balance': 'aux', 'z_loss_coef': 0.01,"
    " 'input': {'source': 'skewed'}}",
    "{'name': 'ec', 'rule': 'ec', " MANY "'gate': 'softmax_tokens',"
    " 'norm': 'fanout', 'pool_tokens': 700, 'input': {'source': 'normal'}}",
    "{'name': 'et', 'rule': 'et', " MANY "'gate': 'softmax_anchor',"
    " 'norm': 'fanout', 'capacity_factor': 0.2,"
    " 'input': {'source': 'ties', 'copies': 3}}",
    "{'name': 'sigmoid', 'rule': 'et', " MANY "'ema_updates': 3,"
    " 'ema_bias_correction': true, 'input': {'source': 'outlier'}}",
    "{'name': 'dense', 'layer': 'dense',"
    " 'tokens': 400, 'd_model': 100, 'd_expert': 300,"
    " 'input': {'source': 'normal'}}",
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
    static const int thread_counts[] = {1, 2, 5};
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

int main(void)
{
    Suite *suite = suite_create("layers");
    TCase *ffn = add_case(suite, "ffn"), *moe = add_case(suite, "moe");
    tcase_add_test(ffn, feed_forward_by_hand);
    tcase_add_test(ffn, feed_forward_backward_by_hand);
    tcase_add_test(moe, a_layer_by_hand);
    tcase_add_test(moe, gradients_of_losses_come_in);
    tcase_add_test(moe, unwanted_gradients_are_left_out);
    tcase_add_test(moe, a_sum_of_zero_gates_divides_nothing);
    tcase_add_test(moe, the_anchor_weighs_the_shared_expert);
    tcase_add_test(moe, a_softmax_over_tokens_stays_in_its_micro_batch);
    tcase_add_test(moe, a_batch_is_its_tokens_one_by_one);
    tcase_add_test(add_case(suite, "threads"), threads_do_not_change_a_step);
    return run_suite(suite);
}
