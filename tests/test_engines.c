/* test_engines.c: one case in both engines, each element within a bound that is derived, not tuned.
 *
 * The engines add up the same products in different orders, so they differ, and how far they may
 * differ can be computed. A whole step is run in each; beside every value q of the plain engine
 * stands E(q) >= |q_plain - q_blas|, carried through the layer equation by equation, forward and
 * backward (a running error analysis: Higham, Accuracy and Stability of Numerical Algorithms, 3.3).
 *
 * One rule is all it takes. Let q = sum_k a_k b_k in exact arithmetic, and let each engine compute
 * it in any order, so that no term passes through more than m roundings. With |a_plain - a_blas| <=
 * E(a), the same for b, and u the unit roundoff, gamma_m = m u / (1 - m u):
 *
 *     plain is off by at most           gamma_m size
 *     blas by at most                   gamma_m (size + moved)
 *     the exact sums differ by at most  moved
 *
 *     size  = sum |a||b|
 *     moved = sum E(a)|b| + |a|E(b) + E(a)E(b), and so sum |a_blas||b_blas| <= size + moved
 *
 *     E(q) = moved + gamma_m (2 size + moved)
 *
 * sizes being those of the plain engine. relu needs no case distinction: |relu(a) - relu(b)| <=
 * |a - b|. What is not a product of large matrices is computed by the same code in both engines; it
 * differs only through what goes in, and the same rule bounds it.
 *
 * Logits decide the routing. x and W_r lie on a grid so coarse that a logit is exact in any order
 * of summation; hence logits, gate values, routing, weights, losses and state must be equal bit for
 * bit, and every tensor without a bound below is compared so. Underflow plays no part: nothing here
 * comes near it.
 *
 * A bound proves something only if it is small. So the largest ratio of difference to bound is
 * printed, the median bound relative to the tensor's largest element, too, and a relative change of
 * 1e-12 in any of these tensors, or in a weight, must be found.
 */
#include "etref/bundle.h"
#include "tests/check_main.h"
#include "tests/expect.h"
#include "tests/run_case.h"

static const double U = ET_UNIT_ROUNDOFF;

/* What is planted: 1e-12 in double; in a shorter word as many unit roundoffs, 9007. */
static const double PLANTED = 1e-12 * (ET_UNIT_ROUNDOFF / (DBL_EPSILON / 2));

/* ---- the cases: every rule, gate and norm; with and without shared expert and losses ---- */

/* Small on purpose: a bound grows with every product's length, and most of all in the last ones. */
#define SIZES                                                                                      \
    "'tokens': 36, 'd_model': 17, 'd_expert': 13, 'experts': 6, "                                  \
    "'input': {'source': 'normal'}"

static const char *const cases[] = {
    "{'name': 'tc-sigmoid-aux', 'rule': 'tc', 'top_k': 2, 'balance': 'aux',"
    " 'balance_coef': 0.1, " SIZES "}",
    "{'name': 'tc-softmax-sum', 'rule': 'tc', 'top_k': 3, 'gate': 'softmax',"
    " 'norm': 'sum', 'shared': false, 'z_loss_coef': 0.1, " SIZES "}",
    "{'name': 'tc-relu-sum', 'rule': 'tc', 'top_k': 2, 'gate': 'relu',"
    " 'norm': 'sum', 'balance': 'lossfree', " SIZES "}",
    "{'name': 'ec-tokens-fanout', 'rule': 'ec', 'gate': 'softmax_tokens',"
    " 'norm': 'fanout', 'micro_batches': 2, 'granularity': 2, " SIZES "}",
    "{'name': 'ec-relu', 'rule': 'ec', 'gate': 'relu', 'pool_tokens': 12,"
    " 'shared_d_expert': 20, " SIZES "}",
    "{'name': 'ec-anchor-out', 'rule': 'ec', 'gate': 'softmax_anchor_out',"
    " 'granularity': 2, " SIZES "}",
    "{'name': 'et-anchor-fanout', 'rule': 'et', 'gate': 'softmax_anchor',"
    " 'norm': 'fanout', 'capacity_factor': 0.5, 'ema_updates': 9, " SIZES "}",
    "{'name': 'et-sigmoid', 'rule': 'et', 'ema_updates': 9,"
    " 'ema_bias_correction': true, 'granularity': 3, " SIZES "}",
};

/* ---- running a case ---- */

/* To multiples of 1/16. |x| < 6 then has 7 bits, |W_r| < 6/sqrt(17) 5, and a sum of 17 products at
 * most 17: exact even in float. The other inputs keep all their bits, so that nothing else is (at
 * d = 16, W_up would be multiples of 2^-35, and H exact). */
static void to_grid(size_t count, et_real *at)
{
    for (size_t j = 0; j < count; j++) at[j] = (et_real)(rint(16 * (double)at[j]) / 16);
}

static void draw(et_step *s, const char *json)
{
    et_case c;
    et_error error;
    done(parse_quoted(&c, json, &error), &error);
    draw_case(s, &c);
    to_grid(c.tokens * c.d_model, s->in.x);
    to_grid(c.experts * c.d_model, s->in.router);
}

static void run(et_step *s, et_engine engine)
{
    et_error error;
    done(et_step_run(s, engine, NULL, NULL, &error), &error);
}

static void draw_and_run(et_step *s, const char *json, et_engine engine)
{
    draw(s, json);
    run(s, engine);
}

/* ---- the rule ---- */

/* size and moved of the sum of products that is being bounded. */
typedef struct sum {
    double size, moved;
} sum;

static void add(sum *q, double a, double error_a, double b, double error_b)
{
    a = fabs(a);
    b = fabs(b);
    q->size += a * b;
    q->moved += error_a * b + a * error_b + error_a * error_b;
}

/* E(q). The last factor covers the roundings of this file's own arithmetic, which adds up a few
 * hundred numbers >= 0 in double. */
static double bound(sum q, size_t roundings)
{
    double m = (double)roundings, gamma = m * U / (1 - m * U);
    return (q.moved + gamma * (2 * q.size + q.moved)) * (1 + 1e-12);
}

/* A matrix op(X) of values, and of their bounds (NULL: exact). */
typedef struct operand {
    const et_real *at;
    const double *error;
    size_t down, across; /* steps from row to row and from column to column */
} operand;

static operand rows(const et_real *at, const double *error, size_t columns)
{
    return (operand){at, error, columns, 1};
}

static operand transposed(const et_real *at, const double *error, size_t columns)
{
    return (operand){at, error, 1, columns};
}

static void add_dot(sum *q, size_t i, size_t j, size_t K, operand A, operand B)
{
    for (size_t k = 0; k < K; k++) {
        size_t a = i * A.down + k * A.across, b = k * B.down + j * B.across;
        add(q, (double)A.at[a], A.error ? A.error[a] : 0, (double)B.at[b],
            B.error ? B.error[b] : 0);
    }
}

/* E(C), C = op(A) op(B), out [M,N]: a term meets its product's rounding and at most K sums. */
static void product(size_t M, size_t N, size_t K, operand A, operand B, double *out)
{
    for (size_t i = 0; i < M; i++)
        for (size_t j = 0; j < N; j++) {
            sum q = {0, 0};
            add_dot(&q, i, j, K, A, B);
            out[i * N + j] = bound(q, K + 1);
        }
}

/* ---- the tensors that get a bound ---- */

/* clang-format off */
enum {
    H, A, O, SHARED_H, SHARED_A, SHARED_O, Y,
    DW, DS, D_A, D_H, SHARED_DA, SHARED_DH, DR, DX, DROUTER, DUP, DDOWN, DSHARED_UP, DSHARED_DOWN,
    BOUNDED,
    DP = BOUNDED, DANCHOR, /* no tensors of a bundle, but needed on the way */
    ARRAYS
};

static const char *const names[BOUNDED] = {
    [H] = "fwd.slot_pre", [A] = "fwd.slot_act", [O] = "fwd.slot_out",
    [SHARED_H] = "fwd.shared_pre", [SHARED_A] = "fwd.shared_act", [SHARED_O] = "fwd.shared_out",
    [Y] = "fwd.y", [DW] = "bwd.slot_weight", [DS] = "bwd.shared_weight", [D_A] = "bwd.slot_act",
    [D_H] = "bwd.slot_pre", [SHARED_DA] = "bwd.shared_act", [SHARED_DH] = "bwd.shared_pre",
    [DR] = "bwd.logits", [DX] = "bwd.x", [DROUTER] = "bwd.w_router", [DUP] = "bwd.w_up",
    [DDOWN] = "bwd.w_down", [DSHARED_UP] = "bwd.shared_up", [DSHARED_DOWN] = "bwd.shared_down",
};
/* clang-format on */

/* A step of the plain engine, and E of its tensors, in their shapes. */
typedef struct analysis {
    const et_step *s;
    et_moe moe;
    size_t S;
    et_real *slot_x; /* [S,d] each slot's row of x */
    double *E[ARRAYS];
} analysis;

static void open_analysis(analysis *z, const et_step *s)
{
    *z = (analysis){.s = s, .moe = et_step_layer(s), .S = s->assignment.slots};
    const et_moe *m = &z->moe;
    size_t S = z->S, N = m->N, d = m->d, h = m->h, n = m->n, hs = m->hs;
    /* clang-format off */
    const size_t counts[ARRAYS] = {
        [H] = S * h, [A] = S * h, [O] = S * d, [DW] = S, [D_A] = S * h, [D_H] = S * h,
        [SHARED_H] = N * hs, [SHARED_A] = N * hs, [SHARED_O] = N * d,
        [DS] = N, [SHARED_DA] = N * hs, [SHARED_DH] = N * hs,
        [Y] = N * d, [DR] = N * n, [DX] = N * d, [DROUTER] = n * d,
        [DUP] = n * h * d, [DDOWN] = n * d * h, [DSHARED_UP] = hs * d, [DSHARED_DOWN] = d * hs,
        [DP] = N * n, [DANCHOR] = N,
    };
    /* clang-format on */
    for (int j = 0; j < ARRAYS; j++) z->E[j] = room_for(counts[j], sizeof(double));
    z->slot_x = room_for(S * d, sizeof(et_real));
    for (size_t j = 0; j < S; j++)
        memcpy(z->slot_x + j * d, s->in.x + (size_t)s->assignment.slot_token[j] * d,
               d * sizeof(et_real));
}

static void close_analysis(analysis *z)
{
    for (int j = 0; j < ARRAYS; j++) free(z->E[j]);
    free(z->slot_x);
}

/* ---- a feed-forward layer: m rows, width d, hidden width h ---- */

typedef struct network {
    size_t m, d, h;
    const et_real *x, *up, *down;        /* [m,d], [h,d], [d,h] */
    const et_real *H, *A, *dO, *dA, *dH; /* of the plain engine */
    double *EH, *EA, *EO, *EdA, *EdH, *Edup, *Eddown;
} network;

static double relu(et_real v)
{
    return v > 0 ? (double)v : 0;
}

static void bound_forward(const network *f)
{
    size_t m = f->m, d = f->d, h = f->h;
    /* H = x W_up': both exact; size = |x||W_up|' */
    product(m, h, d, rows(f->x, NULL, d), transposed(f->up, NULL, d), f->EH);
    /* A = R R, R = relu(H): moved = 2 R E(H) + E(H)^2, one rounding */
    for (size_t j = 0; j < m * h; j++) {
        sum q = {0, 0};
        add(&q, relu(f->H[j]), f->EH[j], relu(f->H[j]), f->EH[j]);
        f->EA[j] = bound(q, 1);
    }
    /* f = A W_down': moved = E(A)|W_down|' */
    product(m, d, h, rows(f->A, f->EA, h), transposed(f->down, NULL, h), f->EO);
}

/* dO = w dy is the same in both engines: w comes from equal gate values. */
static void bound_backward(const network *f)
{
    size_t m = f->m, d = f->d, h = f->h;
    /* dA = dO W_down: both exact */
    product(m, h, d, rows(f->dO, NULL, d), rows(f->down, NULL, h), f->EdA);
    /* dW_down = dO' A: moved = |dO|' E(A), over the m rows */
    product(d, h, m, transposed(f->dO, NULL, d), rows(f->A, f->EA, h), f->Eddown);
    /* dH = dA (2 R): moved = E(dA) 2R + |dA| 2E(H) + E(dA) 2E(H); one rounding, 2 R is exact */
    for (size_t j = 0; j < m * h; j++) {
        sum q = {0, 0};
        add(&q, (double)f->dA[j], f->EdA[j], 2 * relu(f->H[j]), 2 * f->EH[j]);
        f->EdH[j] = bound(q, 1);
    }
    /* dW_up = dH' x: moved = E(dH)' |x| */
    product(h, d, m, transposed(f->dH, f->EdH, h), rows(f->x, NULL, d), f->Edup);
}

/* clang-format off */
static network expert(const analysis *z, size_t i)
{
    const et_moe *m = &z->moe;
    const et_step *s = z->s;
    size_t first = (size_t)s->assignment.expert_offsets[i], d = m->d, h = m->h, size = d * h;
    return (network){
        (size_t)s->assignment.load[i], d, h,
        z->slot_x + first * d, m->up + i * size, m->down + i * size,
        s->fwd.slot_pre + first * h, s->fwd.slot_act + first * h,
        s->bwd.slot_out + first * d, s->bwd.slot_act + first * h, s->bwd.slot_pre + first * h,
        z->E[H] + first * h, z->E[A] + first * h, z->E[O] + first * d,
        z->E[D_A] + first * h, z->E[D_H] + first * h, z->E[DUP] + i * size, z->E[DDOWN] + i * size};
}

static network shared_expert(const analysis *z)
{
    const et_moe *m = &z->moe;
    const et_step *s = z->s;
    return (network){
        m->N, m->d, m->hs,
        s->in.x, m->shared_up, m->shared_down,
        s->fwd.shared_pre, s->fwd.shared_act,
        s->bwd.shared_out, s->bwd.shared_act, s->bwd.shared_pre,
        z->E[SHARED_H], z->E[SHARED_A], z->E[SHARED_O],
        z->E[SHARED_DA], z->E[SHARED_DH], z->E[DSHARED_UP], z->E[DSHARED_DOWN]};
}
/* clang-format on */

static void bound_experts(const analysis *z)
{
    for (size_t i = 0; i < z->moe.n; i++) {
        network f = expert(z, i);
        bound_forward(&f);
        bound_backward(&f);
    }
    if (z->moe.hs == 0) return;
    network f = shared_expert(z);
    bound_forward(&f);
    bound_backward(&f);
}

/* ---- combining ---- */

static size_t fanout(const analysis *z, size_t t)
{
    return (size_t)z->s->assignment.fanout[t];
}

/* Slot number j of token t, j < fanout. */
static size_t slot_of(const analysis *z, size_t t, size_t j)
{
    const et_assignment *a = &z->s->assignment;
    return (size_t)a->token_slots[(size_t)a->token_offsets[t] + j];
}

/* Where a slot's gate value lies: t n + i. */
static size_t place_of(const analysis *z, size_t slot)
{
    const et_assignment *a = &z->s->assignment;
    return (size_t)a->slot_token[slot] * z->moe.n + (size_t)a->slot_expert[slot];
}

/* y_tc = s f_shared + sum_i w f_i, weights equal: moved = s E(f_shared) + sum w E(f_i). */
static void bound_output(const analysis *z)
{
    const et_moe_values *v = &z->s->fwd;
    size_t d = z->moe.d;
    for (size_t t = 0; t < z->moe.N; t++)
        for (size_t c = 0; c < d; c++) {
            sum q = {0, 0};
            if (z->moe.hs > 0)
                add(&q, (double)v->shared_weight[t], 0, (double)v->shared_out[t * d + c],
                    z->E[SHARED_O][t * d + c]);
            for (size_t j = 0; j < fanout(z, t); j++) {
                size_t slot = slot_of(z, t, j);
                add(&q, (double)v->slot_weight[slot], 0, (double)v->slot_out[slot * d + c],
                    z->E[O][slot * d + c]);
            }
            z->E[Y][t * d + c] = bound(q, fanout(z, t) + 2);
        }
}

/* E(<dy_t, f>), f a row of outputs. */
static double bound_inner(const analysis *z, size_t t, const et_real *f, const double *Ef)
{
    size_t d = z->moe.d;
    sum q = {0, 0};
    add_dot(&q, 0, 0, d, rows(z->s->in.dy + t * d, NULL, d), transposed(f, Ef, d));
    return bound(q, d + 1);
}

/* dw = <dy_t, f_i(x_t)>, ds = <dy_t, f_shared(x_t)> */
static void bound_weights(const analysis *z)
{
    size_t d = z->moe.d;
    for (size_t j = 0; j < z->S; j++)
        z->E[DW][j] = bound_inner(z, (size_t)z->s->assignment.slot_token[j],
                                  z->s->fwd.slot_out + j * d, z->E[O] + j * d);
    for (size_t t = 0; z->moe.hs > 0 && t < z->moe.N; t++)
        z->E[DS][t] = bound_inner(z, t, z->s->fwd.shared_out + t * d, z->E[SHARED_O] + t * d);
}

/* ---- from dw to dp ---- */

/* What the weights of token t were divided by: w = p / by. */
static double divisor(const analysis *z, size_t t)
{
    double total = 0;
    if (z->moe.norm == ET_NORM_NONE) return 1;
    if (z->moe.norm == ET_NORM_FANOUT) return (double)(fanout(z, t) + (z->moe.hs > 0 ? 1 : 0));
    for (size_t j = 0; j < fanout(z, t); j++)
        total += (double)z->s->fwd.gates[place_of(z, slot_of(z, t, j))];
    return total;
}

/* A loss left something in dp or dr before `added` came to it: total - added, of size |total| +
 * |added| at most. */
static void add_loss(sum *q, bool has_loss, et_real total)
{
    if (has_loss) q->size += q->size + fabs((double)total);
}

/* dp_i = (dw_i - [norm sum] sum_j w_j dw_j) / by, added to the auxiliary loss's gradient. Roundings
 * of a term: w dw, at most fanout sums, the difference, the quotient, the sum with the loss's. */
static void bound_gate(const analysis *z, size_t t, size_t slot)
{
    const et_real *dw = z->s->bwd.slot_weight, *w = z->s->fwd.slot_weight;
    double by = divisor(z, t);
    sum q = {0, 0};
    add(&q, (double)dw[slot], z->E[DW][slot], 1 / by, 0);
    for (size_t k = 0; z->moe.norm == ET_NORM_SUM && k < fanout(z, t); k++) {
        size_t other = slot_of(z, t, k);
        add(&q, (double)dw[other], z->E[DW][other], (double)w[other] / by, 0);
    }
    add_loss(&q, z->s->loss_aux != NULL, z->s->bwd.gates[place_of(z, slot)]);
    z->E[DP][place_of(z, slot)] = bound(q, fanout(z, t) + 4);
}

/* da = ds, / n_t under fanout. */
static void bound_anchor(const analysis *z, size_t t)
{
    sum q = {0, 0};
    add(&q, (double)z->s->bwd.shared_weight[t], z->E[DS][t],
        z->moe.norm == ET_NORM_FANOUT ? 1 / divisor(z, t) : 1, 0);
    z->E[DANCHOR][t] = bound(q, 1);
}

static void bound_gates(const analysis *z)
{
    for (size_t t = 0; t < z->moe.N; t++) {
        for (size_t j = 0; j < fanout(z, t) && divisor(z, t) > 0; j++)
            bound_gate(z, t, slot_of(z, t, j));
        if (z->moe.anchor_weighs_shared) bound_anchor(z, t);
    }
}

/* ---- from dp to dr ---- */

/* The tokens that share a softmax with token t: its micro-batch, for softmax_tokens. */
static size_t first_row(const analysis *z, size_t t)
{
    return t / z->moe.gate_tokens * z->moe.gate_tokens;
}

/* A share p_j's part of dr_i = p_i sum_j p_j (dp_i - dp_j); the p are equal in both engines. */
static void add_share(const analysis *z, sum *q, size_t i, size_t j)
{
    const et_real *p = z->s->fwd.gates, *dp = z->s->bwd.gates;
    add(q, (double)p[i] * (double)p[j], 0, (double)dp[i] - (double)dp[j],
        z->E[DP][i] + z->E[DP][j]);
}

/* The anchor's part: its dp is da = ds / by, or 0 where it weighs nothing. */
static void add_anchor(const analysis *z, sum *q, size_t t, size_t i)
{
    const et_step *s = z->s;
    double da = 0;
    if (z->moe.anchor_weighs_shared)
        da = (double)s->bwd.shared_weight[t] / (z->moe.norm == ET_NORM_FANOUT ? divisor(z, t) : 1);
    add(q, (double)s->fwd.gates[i] * (double)s->fwd.anchor[t], 0, (double)s->bwd.gates[i] - da,
        z->E[DP][i] + z->E[DANCHOR][t]);
    q->size += 4 * U * fabs(da); /* da was rounded here and there */
}

/* The sum of products that dr of token t and expert i is, place = t n + i. */
static sum gate_sum(const analysis *z, size_t t, size_t place)
{
    const et_step *s = z->s;
    size_t n = z->moe.n, i = place % n;
    double dp = (double)s->bwd.gates[place], Edp = z->E[DP][place];
    sum q = {0, 0};
    if (z->moe.gate == ET_GATE_SIGMOID) { /* dp p', p' equal in both engines and rounded */
        double e = exp(-fabs((double)s->fwd.logits[place]));
        add(&q, dp, Edp, e / ((1 + e) * (1 + e)) * (1 + 20 * U), 0);
    } else if (z->moe.gate == ET_GATE_RELU) {
        add(&q, dp, Edp, s->fwd.logits[place] > 0 ? 1 : 0, 0);
    } else if (z->moe.gate == ET_GATE_SOFTMAX_TOKENS) {
        for (size_t row = first_row(z, t); row < first_row(z, t) + z->moe.gate_tokens; row++)
            add_share(z, &q, place, row * n + i);
    } else {
        for (size_t j = 0; j < n; j++) add_share(z, &q, place, t * n + j);
        if (et_gate_has_anchor(z->moe.gate)) add_anchor(z, &q, t, place);
    }
    return q;
}

/* dr, added to the z-loss's gradient. Roundings: the difference, the product with p_j, the sum over
 * the others and the anchor, the product with p_i, the sum with the loss's. */
static void bound_logits(const analysis *z)
{
    size_t n = z->moe.n, most = z->moe.gate == ET_GATE_SOFTMAX_TOKENS ? z->moe.gate_tokens : n + 1;
    for (size_t place = 0; place < z->moe.N * n; place++) {
        sum q = gate_sum(z, place / n, place);
        add_loss(&q, z->s->loss_z != NULL, z->s->bwd.logits[place]);
        z->E[DR][place] = bound(q, most + 5);
    }
}

/* ---- into x and W_r ---- */

/* dx_tc = sum over slots of sum_j dH_j W_up_jc + the same of the shared expert + sum_i dr_i W_r_ic:
 * one sum of products, added up piece by piece. A term meets its product's rounding, the sums of
 * its own piece and those by which the pieces come together: at most h + fanout + hs + n + 1. */
static void bound_input(const analysis *z)
{
    const et_moe *m = &z->moe;
    const et_step *s = z->s;
    size_t d = m->d, h = m->h, hs = m->hs, n = m->n;
    for (size_t t = 0; t < m->N; t++)
        for (size_t c = 0; c < d; c++) {
            sum q = {0, 0};
            for (size_t j = 0; j < fanout(z, t); j++) {
                size_t slot = slot_of(z, t, j), i = (size_t)s->assignment.slot_expert[slot];
                add_dot(&q, slot, c, h, rows(s->bwd.slot_pre, z->E[D_H], h),
                        rows(m->up + i * h * d, NULL, d));
            }
            if (hs > 0)
                add_dot(&q, t, c, hs, rows(s->bwd.shared_pre, z->E[SHARED_DH], hs),
                        rows(m->shared_up, NULL, d));
            add_dot(&q, t, c, n, rows(s->bwd.logits, z->E[DR], n), rows(m->router, NULL, d));
            z->E[DX][t * d + c] = bound(q, h + fanout(z, t) + hs + n + 1);
        }
}

static void analyse(analysis *z, const et_step *plain)
{
    open_analysis(z, plain);
    bound_experts(z);
    bound_output(z);
    bound_weights(z);
    bound_gates(z);
    bound_logits(z);
    bound_input(z);
    /* dW_r = dr' x: moved = E(dr)' |x| */
    product(z->moe.n, z->moe.d, z->moe.N, transposed(plain->bwd.logits, z->E[DR], z->moe.n),
            rows(plain->in.x, NULL, z->moe.d), z->E[DROUTER]);
}

/* ---- comparing ---- */

typedef struct tensor_pair {
    const char *name;
    const et_real *plain, *blas;
    const double *E; /* NULL: equal */
    size_t count;
} tensor_pair;

static size_t count_of(const et_tensor_out *t)
{
    size_t count = 1;
    for (size_t j = 0; j < t->rank; j++) count *= t->shape[j];
    return count;
}

static const double *bound_named(const analysis *z, const char *name)
{
    for (int j = 0; j < BOUNDED; j++)
        if (strcmp(names[j], name) == 0) return z->E[j];
    return NULL;
}

/* Both engines' tensors without a bound are equal bit for bit; those with one are listed. */
static size_t pair_tensors(const analysis *z, const et_step *blas, tensor_pair pairs[BOUNDED])
{
    static const size_t sizes[] = {
        [ET_FROM_F64] = 8, [ET_FROM_F32] = 4, [ET_FROM_I32] = 4, [ET_FROM_U8] = 1};
    et_tensor_out a[ET_MAX_STEP_TENSORS], b[ET_MAX_STEP_TENSORS];
    size_t all = et_step_tensors(z->s, false, a), listed = 0;
    ck_assert_uint_eq(et_step_tensors(blas, false, b), all);
    for (size_t j = 0; j < all; j++) {
        const double *E = bound_named(z, a[j].name);
        size_t count = count_of(&a[j]);
        ck_assert_str_eq(a[j].name, b[j].name);
        ck_assert_uint_eq(count, count_of(&b[j]));
        if (E != NULL)
            pairs[listed++] = (tensor_pair){a[j].name, a[j].values, b[j].values, E, count};
        else if (memcmp(a[j].values, b[j].values, count * sizes[a[j].source]) != 0)
            ck_abort_msg("case '%s': %s differs between the engines", blas->c.name, a[j].name);
    }
    return listed;
}

/* The largest |difference| / bound, infinite where there is a NaN, when blas is multiplied by
 * `factor`. A bound of 0 (a dead hidden unit) allows no difference. */
static double largest_ratio(const tensor_pair *p, double factor)
{
    double largest = 0;
    for (size_t j = 0; j < p->count; j++) {
        double apart = fabs((double)(et_real)((double)p->blas[j] * factor) - (double)p->plain[j]);
        double ratio = apart <= 0 ? 0 : apart / p->E[j];
        if (!(ratio <= largest)) largest = ratio >= 0 ? ratio : INFINITY;
    }
    return largest;
}

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* The median bound over the largest element: what of the tensor's digits the bound leaves. */
static double median_bound(const tensor_pair *p)
{
    double *sorted = room_for(p->count, sizeof *sorted), largest = 0;
    memcpy(sorted, p->E, p->count * sizeof *sorted);
    qsort(sorted, p->count, sizeof *sorted, by_size);
    for (size_t j = 0; j < p->count; j++) largest = fmax(largest, fabs((double)p->plain[j]));
    double median = sorted[p->count / 2];
    free(sorted);
    return median / largest;
}

/* The worst of a tensor over all cases. */
typedef struct record {
    double ratio, median, least_found; /* of the planted changes: the smallest largest ratio */
} record;

static record records[BOUNDED];

static void check_pair(const char *name, const tensor_pair *p)
{
    int index = 0;
    while (strcmp(names[index], p->name) != 0) index++;
    record *r = &records[index];
    double ratio = largest_ratio(p, 1), planted = largest_ratio(p, 1 + PLANTED);
    if (!(ratio <= 1))
        ck_abort_msg("case '%s': %s: a difference is %.3g times its bound", name, p->name, ratio);
    if (!(planted > 1))
        ck_abort_msg("case '%s': %s: all of it off by %.3g goes unnoticed: %.3g times the bound",
                     name, p->name, PLANTED, planted);
    r->ratio = fmax(r->ratio, ratio);
    r->median = fmax(r->median, median_bound(p));
    r->least_found = r->least_found > 0 ? fmin(r->least_found, planted) : planted;
}

static void report(void)
{
    printf("%-18s %22s %22s %30s\n", "tensor", "difference / bound <=", "median bound / largest",
           "planted difference / bound >=");
    for (int j = 0; j < BOUNDED; j++)
        printf("%-18s %22.3f %22.2g %30.1f\n", names[j], records[j].ratio, records[j].median,
               records[j].least_found);
}

START_TEST(engines_agree_within_the_bound)
{
    size_t met = 0, differing = 0;
    for (size_t v = 0; v < COUNT(cases); v++) {
        et_step plain, blas;
        analysis z;
        tensor_pair pairs[BOUNDED];
        draw_and_run(&plain, cases[v], ET_PLAIN);
        draw_and_run(&blas, cases[v], ET_BLAS);
        analyse(&z, &plain);
        size_t count = pair_tensors(&z, &blas, pairs);
        for (size_t j = 0; j < count; j++) {
            check_pair(plain.c.name, &pairs[j]);
            differing += largest_ratio(&pairs[j], 1) > 0;
        }
        met += count;
        close_analysis(&z);
        et_step_free(&plain);
        et_step_free(&blas);
    }
    ck_assert_uint_gt(met, COUNT(cases) * 14); /* without a shared expert 14, with one 20 */
    ck_assert_uint_gt(differing, 0);           /* two engines, not twice the same */
    for (int j = 0; j < BOUNDED; j++) ck_assert(records[j].least_found > 0);
    report();
}
END_TEST

/* One expert's W_up, in one engine, is off by 1e-12: found in the expert's own tensors, and three
 * and more products further on, in y and in every gradient that W_up reaches. */
START_TEST(a_planted_weight_is_found)
{
    static const int reached[] = {H, A, O, Y, DW, D_H, DR, DX, DROUTER, DUP, DDOWN};
    et_step plain, blas;
    analysis z;
    tensor_pair pairs[BOUNDED];
    draw_and_run(&plain, cases[0], ET_PLAIN);
    draw(&blas, cases[0]);
    for (size_t j = 0; j < blas.c.d_expert * blas.c.d_model; j++)
        blas.in.up[j] = (et_real)((double)blas.in.up[j] * (1 + PLANTED));
    run(&blas, ET_BLAS);
    memcpy(blas.in.up, plain.in.up, blas.c.d_expert * blas.c.d_model * sizeof(et_real));
    analyse(&z, &plain);
    size_t count = pair_tensors(&z, &blas, pairs);
    for (size_t r = 0; r < COUNT(reached); r++)
        for (size_t j = 0; j < count; j++)
            if (strcmp(pairs[j].name, names[reached[r]]) == 0)
                ck_assert_msg(largest_ratio(&pairs[j], 1) > 1, "%s: not noticed: %.3g times bound",
                              pairs[j].name, largest_ratio(&pairs[j], 1));
    close_analysis(&z);
    et_step_free(&plain);
    et_step_free(&blas);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("engines");
    TCase *engines = add_case(suite, "both engines");
    tcase_add_test(engines, engines_agree_within_the_bound);
    tcase_add_test(engines, a_planted_weight_is_found);
    return run_suite(suite);
}
