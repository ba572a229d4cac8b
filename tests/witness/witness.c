/* The layer's definition in __float128; see witness.h for purpose, source and what is left out.
 *
 * In the order of the mathematics:
 *   1 feed-forward network   2 router and scores   3 competition   4 assignment   5 gates
 *   6 combination            7 losses              8 gradients     9 state       10 slots
 *
 * Letters: N tokens, n routed experts, d width, h width of an expert, hs of the shared expert,
 * K experts of a token (token choice), k tokens of an expert (expert choice), P tokens of a pool,
 * M micro-batches of B = N/M consecutive tokens each; t, u tokens, i, j experts, c columns of x.
 */
#include "witness.h"

#include <math.h>
#include <quadmath.h>
#include <stdlib.h>
#include <string.h>

/* Every tensor that a bundle can hold and the witness can give. */
#define PUBLIC_TENSORS(T)                                                                          \
    T(FWD_LOGITS, "fwd.logits")                                                                    \
    T(FWD_GATES, "fwd.gates")                                                                      \
    T(FWD_SLOT_PRE, "fwd.slot_pre")                                                                \
    T(FWD_SLOT_ACT, "fwd.slot_act")                                                                \
    T(FWD_SLOT_OUT, "fwd.slot_out")                                                                \
    T(FWD_SHARED_PRE, "fwd.shared_pre")                                                            \
    T(FWD_SHARED_ACT, "fwd.shared_act")                                                            \
    T(FWD_SHARED_OUT, "fwd.shared_out")                                                            \
    T(FWD_SHARED_WEIGHT, "fwd.shared_weight")                                                      \
    T(FWD_Y, "fwd.y")                                                                              \
    T(ROUTE_MASK, "route.mask")                                                                    \
    T(ROUTE_MARGIN, "route.margin")                                                                \
    T(ROUTE_THRESHOLD, "route.threshold")                                                          \
    T(ROUTE_CUTOFF, "route.cutoff")                                                                \
    T(ROUTE_POOL_CUTOFF, "route.pool_cutoff")                                                      \
    T(ROUTE_LOAD, "route.load")                                                                    \
    T(ROUTE_FANOUT, "route.fanout")                                                                \
    T(ROUTE_EXPERT_OFFSETS, "route.expert_offsets")                                                \
    T(ROUTE_TOKEN_OFFSETS, "route.token_offsets")                                                  \
    T(ROUTE_SLOT_TOKEN, "route.slot_token")                                                        \
    T(ROUTE_SLOT_EXPERT, "route.slot_expert")                                                      \
    T(ROUTE_SLOT_WEIGHT, "route.slot_weight")                                                      \
    T(ROUTE_TOKEN_SLOTS, "route.token_slots")                                                      \
    T(ROUTE_TOPK_EXPERT, "route.topk_expert")                                                      \
    T(ROUTE_TOPK_TOKEN, "route.topk_token")                                                        \
    T(LOSS_AUX, "loss.aux")                                                                        \
    T(LOSS_Z, "loss.z")                                                                            \
    T(BWD_X, "bwd.x")                                                                              \
    T(BWD_W_ROUTER, "bwd.w_router")                                                                \
    T(BWD_W_UP, "bwd.w_up")                                                                        \
    T(BWD_W_DOWN, "bwd.w_down")                                                                    \
    T(BWD_SHARED_UP, "bwd.shared_up")                                                              \
    T(BWD_SHARED_DOWN, "bwd.shared_down")                                                          \
    T(BWD_LOGITS, "bwd.logits")                                                                    \
    T(BWD_SLOT_WEIGHT, "bwd.slot_weight")                                                          \
    T(BWD_SLOT_OUT, "bwd.slot_out")                                                                \
    T(BWD_SLOT_ACT, "bwd.slot_act")                                                                \
    T(BWD_SLOT_PRE, "bwd.slot_pre")                                                                \
    T(BWD_SHARED_OUT, "bwd.shared_out")                                                            \
    T(BWD_SHARED_ACT, "bwd.shared_act")                                                            \
    T(BWD_SHARED_PRE, "bwd.shared_pre")                                                            \
    T(BWD_SHARED_WEIGHT, "bwd.shared_weight")                                                      \
    T(STATE_EMA, "state.ema")                                                                      \
    T(STATE_BIAS, "state.bias")                                                                    \
    T(STATE_UPDATES, "state.updates")

/* First the public ones, then the arrays over all tokens and all experts that no bundle holds; the
 * slots are read off from those at the very end. */
enum tensor {
#define AS_ENUM(id, name) id,
    PUBLIC_TENSORS(AS_ENUM)
#undef AS_ENUM
        PUBLIC_COUNT,
    PRE = PUBLIC_COUNT, /* [N,n,h] H of the assigned pairs, 0 elsewhere; so below */
    ACT,                /* [N,n,h] A */
    OUT,                /* [N,n,d] f_i(x_t) */
    D_PRE,              /* [N,n,h] dH */
    D_ACT,              /* [N,n,h] dA */
    D_OUT,              /* [N,n,d] dO */
    WEIGHT,             /* [N,n] w */
    D_WEIGHT,           /* [N,n] dw */
    D_GATE,             /* [N,n] dp */
    ANCHOR,             /* [N] a_t0, the anchor's share of the softmax; 0 where there is none */
    D_ANCHOR,           /* [N] da_t0; 0 where the anchor weighs nothing */
    TENSOR_COUNT
};

static const char *const public_names[] = {
#define AS_NAME(id, name) name,
    PUBLIC_TENSORS(AS_NAME)
#undef AS_NAME
        NULL};

struct witness {
    quad *value[TENSOR_COUNT]; /* NULL: not part of this case */
    size_t count[TENSOR_COUNT];
    double *score; /* [N,n] what the rule compares */
    size_t *rank;  /* [N,n] how many competitors beat it */
    int out_of_memory;
};

static int is(const char *word, const char *meaning)
{
    return word != NULL && strcmp(word, meaning) == 0;
}

/* The rules. EC and ET both choose tokens for experts; TC chooses experts for tokens. */
static int token_choice(const witness_case *c)
{
    return is(c->rule, "tc");
}

/* EC trains by the top k of each pool, and so does ET while step < warmup_steps. */
static int expert_choice(const witness_case *c)
{
    return !c->eval && (is(c->rule, "ec") || (is(c->rule, "et") && c->step < c->warmup_steps));
}

/* ET after its warm-up; in evaluation mode EC too. */
static int by_threshold(const witness_case *c)
{
    return !token_choice(c) && !expert_choice(c);
}

/* The shared expert's weight is a_t0: softmax_anchor, except under token choice. */
static int anchor_weighs(const witness_case *c)
{
    return c->hs > 0 && is(c->gate, "softmax_anchor") && !token_choice(c);
}

static int anchored(const witness_case *c)
{
    return is(c->gate, "softmax_anchor") || is(c->gate, "softmax_anchor_out");
}

static int has_aux_loss(const witness_case *c)
{
    return !c->eval && (is(c->balance, "aux") || is(c->balance, "aux_error"));
}

static int has_z_loss(const witness_case *c)
{
    return !c->eval && c->z_loss_coef != 0;
}

static int moves_bias(const witness_case *c)
{
    return !c->eval && (is(c->balance, "lossfree") || is(c->balance, "proportional"));
}

/* B: tokens of a micro-batch. */
static size_t batch_tokens(const witness_case *c)
{
    return c->N / c->micro_batches;
}

/* 1 ---- Feed-forward network: f(x) = W_down relu(W_up x)^2, for one token ---- */

typedef struct network {
    size_t d, h;
    const double *up, *down; /* [h,d], [d,h] */
    quad *d_up, *d_down;     /* the same shapes, accumulated */
} network;

/* What one token leaves in it. */
typedef struct token_row {
    quad *H, *A, *O, *dO, *dA, *dH; /* [h], [h], [d], [d], [h], [h] */
} token_row;

static quad relu(quad v)
{
    return v > 0 ? v : 0;
}

/* H = x W_up^T,  A = relu(H)^2,  O = A W_down^T */
static void network_forward(const network *f, const double *x, quad *H, quad *A, quad *O)
{
    for (size_t j = 0; j < f->h; j++) {
        H[j] = 0;
        for (size_t c = 0; c < f->d; c++) H[j] += (quad)x[c] * f->up[j * f->d + c];
        A[j] = relu(H[j]) * relu(H[j]);
    }
    for (size_t c = 0; c < f->d; c++) {
        O[c] = 0;
        for (size_t j = 0; j < f->h; j++) O[c] += A[j] * f->down[c * f->h + j];
    }
}

/* dA = dO W_down,  dH = dA 2 relu(H),  dW_down += dO^T A,  dW_up += dH^T x,  dx += dH W_up */
static void network_backward(const network *f, const double *x, const token_row *r, quad *dx)
{
    for (size_t j = 0; j < f->h; j++) {
        r->dA[j] = 0;
        for (size_t c = 0; c < f->d; c++) r->dA[j] += r->dO[c] * f->down[c * f->h + j];
        r->dH[j] = r->dA[j] * 2 * relu(r->H[j]);
    }
    for (size_t c = 0; c < f->d; c++)
        for (size_t j = 0; j < f->h; j++) {
            f->d_down[c * f->h + j] += r->dO[c] * r->A[j];
            f->d_up[j * f->d + c] += r->dH[j] * x[c];
            dx[c] += r->dH[j] * f->up[j * f->d + c];
        }
}

/* Routed expert i. */
static network expert(const witness_case *c, const witness *w, size_t i)
{
    size_t size = c->h * c->d;
    return (network){.d = c->d,
                     .h = c->h,
                     .up = c->w_up + i * size,
                     .down = c->w_down + i * size,
                     .d_up = w->value[BWD_W_UP] + i * size,
                     .d_down = w->value[BWD_W_DOWN] + i * size};
}

static network shared_expert(const witness_case *c, const witness *w)
{
    return (network){.d = c->d,
                     .h = c->hs,
                     .up = c->shared_up,
                     .down = c->shared_down,
                     .d_up = w->value[BWD_SHARED_UP],
                     .d_down = w->value[BWD_SHARED_DOWN]};
}

/* The dense layer is the network itself: y = f(x), dO = dy, and every token is a slot. */
static void compute_dense(const witness_case *c, witness *w)
{
    network f = expert(c, w, 0);
    for (size_t t = 0; t < c->N; t++) {
        const double *x = c->x + t * c->d;
        const token_row r = {.H = w->value[FWD_SLOT_PRE] + t * c->h,
                             .A = w->value[FWD_SLOT_ACT] + t * c->h,
                             .O = w->value[FWD_SLOT_OUT] + t * c->d,
                             .dO = w->value[BWD_SLOT_OUT] + t * c->d,
                             .dA = w->value[BWD_SLOT_ACT] + t * c->h,
                             .dH = w->value[BWD_SLOT_PRE] + t * c->h};
        network_forward(&f, x, r.H, r.A, r.O);
        for (size_t j = 0; j < c->d; j++) {
            w->value[FWD_Y][t * c->d + j] = r.O[j];
            r.dO[j] = c->dy[t * c->d + j];
        }
        network_backward(&f, x, &r, w->value[BWD_X] + t * c->d);
    }
}

/* 2 ---- Router and scores ---- */

/* r = x W_r^T                                                                  (paper, Eq. 1) */
static void compute_logits(const witness_case *c, witness *w)
{
    for (size_t t = 0; t < c->N; t++)
        for (size_t i = 0; i < c->n; i++) {
            quad r = 0;
            for (size_t j = 0; j < c->d; j++)
                r += (quad)c->x[t * c->d + j] * c->w_router[i * c->d + j];
            w->value[FWD_LOGITS][t * c->n + i] = r;
        }
}

/* The score is the logit rounded to double; token choice adds its bias, in double.
 * Rounded, because the layer under test holds its logits in double, and two of them that round
 * alike are a tie there. Ties that matter come from identical inputs, whose logits agree in any
 * precision. Everything else about a logit (gates, cutoffs) uses the unrounded r. */
static void compute_scores(const witness_case *c, witness *w)
{
    for (size_t t = 0; t < c->N; t++)
        for (size_t i = 0; i < c->n; i++) {
            double s = (double)w->value[FWD_LOGITS][t * c->n + i];
            if (token_choice(c) && c->bias != NULL) s += c->bias[i];
            w->score[t * c->n + i] = s;
        }
}

/* 3 ---- Competition: who beats whom ----
 * A field is a set of scores that compete: the experts of one token (TC), or for one expert the
 * tokens of a pool (EC) or of a micro-batch (ET). Its members lie `stride` apart, in index order.
 */
typedef struct field {
    size_t size, stride;
    size_t first; /* place of member 0 in an [N,n] array */
} field;

static size_t place(const field *f, size_t member)
{
    return f->first + member * f->stride;
}

/* Tokens per field of one expert. */
static size_t field_tokens(const witness_case *c)
{
    return expert_choice(c) ? c->pool : batch_tokens(c);
}

/* TC: field number t holds all experts of token t. */
static field experts_of_token(const witness_case *c, size_t t)
{
    return (field){.size = c->n, .stride = 1, .first = t * c->n};
}

/* EC, ET: expert i's competitors in the q-th pool or micro-batch. */
static field tokens_of_expert(const witness_case *c, size_t q, size_t i)
{
    size_t size = field_tokens(c);
    return (field){.size = size, .stride = c->n, .first = q * size * c->n + i};
}

/* rank_a = #{ b : s_b > s_a, or s_b = s_a and b < a }: higher score first, then lower index. */
static void rank_field(witness *w, const field *f)
{
    for (size_t a = 0; a < f->size; a++) {
        double mine = w->score[place(f, a)];
        size_t rank = 0;
        for (size_t b = 0; b < f->size; b++) {
            double other = w->score[place(f, b)];
            rank += other > mine || (other == mine && b < a);
        }
        w->rank[place(f, a)] = rank;
    }
}

/* The member with a given rank; f->size if there is none. */
static size_t member_of_rank(const witness *w, const field *f, size_t rank)
{
    size_t a = 0;
    while (a < f->size && w->rank[place(f, a)] != rank) a++;
    return a;
}

/* z = 1 for the `taken` best of a field. Margin of a chosen one: score - best refused (rank
 * `taken`), of a refused one: score - worst chosen (rank taken - 1), infinite if there is none. */
static void choose_best(witness *w, const field *f, size_t taken)
{
    size_t refused = member_of_rank(w, f, taken);
    size_t chosen = taken > 0 ? member_of_rank(w, f, taken - 1) : f->size;
    quad best_refused = refused < f->size ? (quad)w->score[place(f, refused)] : -(quad)INFINITY;
    quad worst_chosen = chosen < f->size ? (quad)w->score[place(f, chosen)] : (quad)INFINITY;
    for (size_t a = 0; a < f->size; a++) {
        size_t p = place(f, a);
        int z = w->rank[p] < taken;
        w->value[ROUTE_MASK][p] = z;
        w->value[ROUTE_MARGIN][p] = w->score[p] - (z ? best_refused : worst_chosen);
    }
}

/* 4 ---- Assignment z: the three rules ---- */

/* TC: each token takes its K best experts; the list names them by falling score. */
static void route_token_choice(const witness_case *c, witness *w)
{
    for (size_t t = 0; t < c->N; t++) {
        field f = experts_of_token(c, t);
        rank_field(w, &f);
        choose_best(w, &f, c->top_k);
        for (size_t i = 0; i < c->n; i++) {
            size_t rank = w->rank[t * c->n + i];
            if (rank < c->top_k) w->value[ROUTE_TOPK_EXPERT][t * c->top_k + rank] = (quad)i;
        }
    }
}

/* EC: in each pool each expert takes its k best tokens. */
static void route_expert_choice(const witness_case *c, witness *w, size_t pool, size_t i)
{
    field f = tokens_of_expert(c, pool, i);
    choose_best(w, &f, c->k);
    for (size_t a = 0; a < f.size; a++) {
        size_t rank = w->rank[place(&f, a)];
        if (rank < c->k)
            w->value[ROUTE_TOPK_TOKEN][(pool * c->n + i) * c->k + rank] = (quad)(pool * f.size + a);
    }
}

/* c_i = ema_i, or ema_i / (1 - beta^u) with bias correction (0 before the first update). */
static quad threshold_of(const witness_case *c, size_t i)
{
    quad ema = c->ema != NULL ? c->ema[i] : 0;
    if (!c->ema_bias_correction) return ema;
    if (c->ema_updates == 0) return 0;
    return ema / (1 - powq(c->ema_decay, (quad)c->ema_updates));
}

/* min(max(m, floor(k(1-C))), floor(k(1+C)), B), both bounds in binary64 as the paper's code has
 * them: 10 * (1.0 - 0.9) is below 1, so that k = 10, C = 0.9 gives 0. */
static size_t clamp_to_capacity(const witness_case *c, size_t m)
{
    double low = floor((double)c->k * (1.0 - c->capacity));
    double high = floor((double)c->k * (1.0 + c->capacity));
    double taken = (double)m;
    if (taken < low) taken = low;
    if (taken > high) taken = high;
    if (taken > (double)batch_tokens(c)) taken = (double)batch_tokens(c);
    return (size_t)taken;
}

/* ET: z_ti = 1 if r_ti > c_i, else 0                                           (paper, Eq. 6)
 * or >= as released. Scores are doubles, so the threshold is rounded to one before the test.
 * In training an expert whose count the capacity changes takes that many of its best instead. */
static void route_threshold(const witness_case *c, witness *w, size_t batch, size_t i)
{
    field f = tokens_of_expert(c, batch, i);
    double threshold = (double)w->value[ROUTE_THRESHOLD][i];
    size_t m = 0;
    for (size_t a = 0; a < f.size; a++) {
        size_t p = place(&f, a);
        int z = c->inclusive ? w->score[p] >= threshold : w->score[p] > threshold;
        w->value[ROUTE_MASK][p] = z;
        w->value[ROUTE_MARGIN][p] = (quad)w->score[p] - threshold;
        m += (size_t)z;
    }
    if (c->eval || !c->has_capacity) return;
    size_t taken = clamp_to_capacity(c, m);
    if (taken != m) choose_best(w, &f, taken);
}

/* The k-th largest logit of expert i in a pool (EC) or micro-batch (ET), whoever was routed. */
static quad field_cutoff(const witness_case *c, const witness *w, size_t q, size_t i)
{
    field f = tokens_of_expert(c, q, i);
    return w->value[FWD_LOGITS][place(&f, member_of_rank(w, &f, c->k - 1))];
}

/* EC and ET, with the batch cutoff: the mean of the pools' (EC) or micro-batches' (ET) cutoffs. */
static void route_experts(const witness_case *c, witness *w)
{
    size_t fields = c->N / field_tokens(c);
    for (size_t i = 0; i < c->n; i++) {
        if (by_threshold(c)) w->value[ROUTE_THRESHOLD][i] = threshold_of(c, i);
        for (size_t q = 0; q < fields; q++) {
            field f = tokens_of_expert(c, q, i);
            rank_field(w, &f);
            if (by_threshold(c))
                route_threshold(c, w, q, i);
            else
                route_expert_choice(c, w, q, i);
            if (c->eval) continue;
            quad cutoff = field_cutoff(c, w, q, i);
            w->value[ROUTE_CUTOFF][i] += cutoff / (quad)fields;
            if (expert_choice(c)) w->value[ROUTE_POOL_CUTOFF][q * c->n + i] = cutoff;
        }
    }
}

/* The assignment, its column sums (loads) and row sums (fanouts). */
static void compute_assignment(const witness_case *c, witness *w)
{
    if (token_choice(c))
        route_token_choice(c, w);
    else
        route_experts(c, w);
    quad *z = w->value[ROUTE_MASK];
    for (size_t t = 0; t < c->N; t++)
        for (size_t i = 0; i < c->n; i++) {
            if (c->mask != NULL) z[t * c->n + i] = c->mask[t * c->n + i] != 0;
            w->value[ROUTE_LOAD][i] += z[t * c->n + i];
            w->value[ROUTE_FANOUT][t] += z[t * c->n + i];
        }
}

/* 5 ---- Gates: p from r, over all experts, before any selection ---- */

/* 1/(1+e^-r), and its derivative p(1-p) = e^-|r| / (1+e^-|r|)^2, which keeps its digits. */
static quad sigmoid(quad r)
{
    quad e = expq(-fabsq(r));
    return (r >= 0 ? 1 : e) / (1 + e);
}

static quad sigmoid_derivative(quad r)
{
    quad e = expq(-fabsq(r));
    return e / ((1 + e) * (1 + e));
}

/* p_a = e^r_a / Z over `size` values, `stride` apart, Z = sum_b e^r_b (+ e^0 with an anchor).
 * Everything is divided by e^max. Returns the anchor's share e^0 / Z, 0 without an anchor. */
static quad softmax(const quad *r, size_t size, size_t stride, int with_anchor, quad *p)
{
    quad max = with_anchor ? 0 : r[0];
    for (size_t a = 0; a < size; a++)
        if (r[a * stride] > max) max = r[a * stride];
    quad anchor = with_anchor ? expq(-max) : 0, Z = anchor;
    for (size_t a = 0; a < size; a++) Z += p[a * stride] = expq(r[a * stride] - max);
    for (size_t a = 0; a < size; a++) p[a * stride] /= Z;
    return anchor / Z;
}

/* dr_a = p_a sum_b p_b (dp_a - dp_b), b over all shares, the anchor's (p0, dp0) among them. */
static void softmax_backward(const quad *p, const quad *dp, size_t size, size_t stride, quad p0,
                             quad dp0, quad *dr)
{
    for (size_t a = 0; a < size; a++) {
        quad sum = p0 * (dp[a * stride] - dp0);
        for (size_t b = 0; b < size; b++) sum += p[b * stride] * (dp[a * stride] - dp[b * stride]);
        dr[a * stride] = p[a * stride] * sum;
    }
}

/* softmax, softmax_anchor, softmax_anchor_out: over a token's experts. softmax_tokens: over the
 * tokens of a micro-batch, for each expert. sigmoid, relu: each logit for itself. */
static void compute_gates(const witness_case *c, witness *w)
{
    const quad *r = w->value[FWD_LOGITS];
    quad *p = w->value[FWD_GATES];
    size_t n = c->n, B = batch_tokens(c);
    if (is(c->gate, "sigmoid"))
        for (size_t e = 0; e < c->N * n; e++) p[e] = sigmoid(r[e]);
    else if (is(c->gate, "relu"))
        for (size_t e = 0; e < c->N * n; e++) p[e] = relu(r[e]);
    else if (is(c->gate, "softmax_tokens"))
        for (size_t t = 0; t < c->N; t += B)
            for (size_t i = 0; i < n; i++) softmax(r + t * n + i, B, n, 0, p + t * n + i);
    else
        for (size_t t = 0; t < c->N; t++)
            w->value[ANCHOR][t] = softmax(r + t * n, n, 1, anchored(c), p + t * n);
}

/* dr from dp through the gate. relu: 1 where r > 0, else 0. */
static void backward_gates(const witness_case *c, witness *w)
{
    const quad *r = w->value[FWD_LOGITS], *p = w->value[FWD_GATES], *dp = w->value[D_GATE];
    quad *dr = w->value[BWD_LOGITS];
    size_t n = c->n, B = batch_tokens(c);
    if (is(c->gate, "sigmoid"))
        for (size_t e = 0; e < c->N * n; e++) dr[e] = dp[e] * sigmoid_derivative(r[e]);
    else if (is(c->gate, "relu"))
        for (size_t e = 0; e < c->N * n; e++) dr[e] = r[e] > 0 ? dp[e] : 0;
    else if (is(c->gate, "softmax_tokens"))
        for (size_t t = 0; t < c->N; t += B)
            for (size_t i = 0; i < n; i++)
                softmax_backward(p + t * n + i, dp + t * n + i, B, n, 0, 0, dr + t * n + i);
    else
        for (size_t t = 0; t < c->N; t++)
            softmax_backward(p + t * n, dp + t * n, n, 1, w->value[ANCHOR][t],
                             w->value[D_ANCHOR][t], dr + t * n);
}

/* 6 ---- Combination: y_t = s_t f_shared(x_t) + sum_i z_ti w_ti f_i(x_t)       (paper, Eq. 2) */

/* n_t = sum_i z_ti + (1 if there is a shared expert) under norm = fanout; otherwise no division. */
static quad divisor(const witness_case *c, const witness *w, size_t t)
{
    return is(c->norm, "fanout") ? w->value[ROUTE_FANOUT][t] + (c->hs > 0) : 1;
}

/* sum_j z_tj p_tj */
static quad selected_gates(const witness_case *c, const witness *w, size_t t)
{
    quad sum = 0;
    for (size_t i = 0; i < c->n; i++)
        sum += w->value[ROUTE_MASK][t * c->n + i] * w->value[FWD_GATES][t * c->n + i];
    return sum;
}

/* none: w = p.  fanout: w = p / n_t, s likewise.  sum: w = p / sum_j z p, s as it was; where all
 * selected gates are 0 (relu), w = 0. The shared expert's s is 1; under EC and ET a_t0, or
 * the constant 1/(G+1), it being one of the G+1 experts that a token gets. */
static void compute_weights(const witness_case *c, witness *w)
{
    for (size_t t = 0; t < c->N; t++) {
        quad by = is(c->norm, "sum") ? selected_gates(c, w, t) : divisor(c, w, t);
        for (size_t i = 0; i < c->n; i++) {
            size_t e = t * c->n + i;
            int counts = w->value[ROUTE_MASK][e] != 0 && by != 0;
            w->value[WEIGHT][e] = counts ? w->value[FWD_GATES][e] / by : 0;
        }
        if (c->hs == 0) continue;
        quad s = 1;
        if (anchor_weighs(c)) s = w->value[ANCHOR][t];
        if (is(c->gate, "softmax_anchor_out") && !token_choice(c))
            s = (quad)1 / (quad)(c->granularity + 1);
        w->value[FWD_SHARED_WEIGHT][t] = s / divisor(c, w, t);
    }
}

/* The sum itself. A token without any expert gets 0. */
static void compute_output(const witness_case *c, witness *w)
{
    size_t n = c->n, d = c->d, h = c->h, hs = c->hs;
    for (size_t t = 0; t < c->N; t++) {
        const double *x = c->x + t * d;
        quad *y = w->value[FWD_Y] + t * d;
        for (size_t i = 0; i < n; i++) {
            size_t e = t * n + i;
            if (w->value[ROUTE_MASK][e] == 0) continue;
            network f = expert(c, w, i);
            quad *O = w->value[OUT] + e * d;
            network_forward(&f, x, w->value[PRE] + e * h, w->value[ACT] + e * h, O);
            for (size_t j = 0; j < d; j++) y[j] += w->value[WEIGHT][e] * O[j];
        }
        if (hs == 0) continue;
        network f = shared_expert(c, w);
        quad *O = w->value[FWD_SHARED_OUT] + t * d;
        network_forward(&f, x, w->value[FWD_SHARED_PRE] + t * hs, w->value[FWD_SHARED_ACT] + t * hs,
                        O);
        for (size_t j = 0; j < d; j++) y[j] += w->value[FWD_SHARED_WEIGHT][t] * O[j];
    }
}

/* 7 ---- Losses: of each micro-batch, averaged over the M of them; without their coefficients */

/* F_i = n/(K B) load_i, 1 under perfect balance. The load of a micro-batch is sum_t z_ti; a
 * balancing across ranks is given its loads from outside. */
static quad load_fraction(const witness_case *c, quad load)
{
    return (quad)c->n * load / ((quad)c->top_k * (quad)batch_tokens(c));
}

/* F_i of micro-batch m as `aux` takes it; `aux_error` takes F_i - 1. */
static quad aux_factor(const witness_case *c, const witness *w, size_t m, size_t i)
{
    size_t B = batch_tokens(c);
    quad load = 0;
    for (size_t t = m * B; t < (m + 1) * B; t++) load += w->value[ROUTE_MASK][t * c->n + i];
    quad F = load_fraction(c, c->global_load ? (quad)c->load[i] : load);
    return is(c->balance, "aux_error") ? F - 1 : F;
}

/* sum_i F_i P_i,  P_i = (1/B) sum_t p_ti. The gradient goes through P alone:
 * dp_ti += alpha/M F_i / B, for every expert of every token, selected or not. */
static void compute_aux_loss(const witness_case *c, witness *w)
{
    size_t B = batch_tokens(c);
    quad M = (quad)c->micro_batches;
    for (size_t m = 0; m < c->micro_batches; m++)
        for (size_t i = 0; i < c->n; i++) {
            quad F = aux_factor(c, w, m, i);
            for (size_t t = m * B; t < (m + 1) * B; t++) {
                size_t e = t * c->n + i;
                *w->value[LOSS_AUX] += F * w->value[FWD_GATES][e] / ((quad)B * M);
                w->value[D_GATE][e] += c->balance_coef * F / ((quad)B * M);
            }
        }
}

/* (1/N) sum_t L_t^2 with L_t = log sum_i e^r_ti, over the routed experts (no anchor);
 * dr_ti += zeta/N 2 L_t e^(r_ti - L_t). */
static void compute_z_loss(const witness_case *c, witness *w)
{
    for (size_t t = 0; t < c->N; t++) {
        const quad *r = w->value[FWD_LOGITS] + t * c->n;
        quad max = r[0], sum = 0;
        for (size_t i = 0; i < c->n; i++)
            if (r[i] > max) max = r[i];
        for (size_t i = 0; i < c->n; i++) sum += expq(r[i] - max);
        quad L = max + logq(sum);
        *w->value[LOSS_Z] += L * L / (quad)c->N;
        for (size_t i = 0; i < c->n; i++)
            w->value[BWD_LOGITS][t * c->n + i] +=
                c->z_loss_coef / (quad)c->N * 2 * L * expq(r[i] - L);
    }
}

/* 8 ---- Gradients of <y,dy> + alpha aux + zeta z; nothing flows through the selection ---- */

/* dw_ti = <dy_t, f_i(x_t)>,  dO = w_ti dy_t, and the network's own backward. */
static quad backward_network(const witness_case *c, const network *f, size_t t, quad weight,
                             const token_row *r, quad *dx)
{
    quad d_weight = 0;
    for (size_t j = 0; j < c->d; j++) {
        quad dy = c->dy[t * c->d + j];
        d_weight += dy * r->O[j];
        r->dO[j] = weight * dy;
    }
    network_backward(f, c->x + t * c->d, r, dx);
    return d_weight;
}

/* The experts' share of dx, and all of dW_up, dW_down, dw. */
static void backward_experts(const witness_case *c, witness *w)
{
    quad **v = w->value;
    size_t n = c->n, d = c->d, h = c->h, hs = c->hs;
    for (size_t t = 0; t < c->N; t++) {
        quad *dx = v[BWD_X] + t * d;
        for (size_t i = 0; i < n; i++) {
            size_t e = t * n + i;
            if (v[ROUTE_MASK][e] == 0) continue;
            const network f = expert(c, w, i);
            const token_row r = {v[PRE] + e * h,   v[ACT] + e * h,   v[OUT] + e * d,
                                 v[D_OUT] + e * d, v[D_ACT] + e * h, v[D_PRE] + e * h};
            v[D_WEIGHT][e] = backward_network(c, &f, t, v[WEIGHT][e], &r, dx);
        }
        if (hs == 0) continue;
        const network f = shared_expert(c, w);
        const token_row r = {v[FWD_SHARED_PRE] + t * hs, v[FWD_SHARED_ACT] + t * hs,
                             v[FWD_SHARED_OUT] + t * d,  v[BWD_SHARED_OUT] + t * d,
                             v[BWD_SHARED_ACT] + t * hs, v[BWD_SHARED_PRE] + t * hs};
        v[BWD_SHARED_WEIGHT][t] = backward_network(c, &f, t, v[FWD_SHARED_WEIGHT][t], &r, dx);
    }
}

/* dp on the slots.  none: dw.  fanout: dw / n_t.
 * sum: (dw_ti - sum_j w_tj dw_tj) / sum_j z_tj p_tj, and nothing where that sum is 0. */
static void backward_weights(const witness_case *c, witness *w)
{
    const quad *dw = w->value[D_WEIGHT]; /* 0 off the slots, as are the weights */
    for (size_t t = 0; t < c->N; t++) {
        quad mean = 0, by = divisor(c, w, t);
        if (is(c->norm, "sum")) {
            by = selected_gates(c, w, t);
            for (size_t i = 0; i < c->n; i++)
                mean += w->value[WEIGHT][t * c->n + i] * dw[t * c->n + i];
        }
        for (size_t i = 0; i < c->n; i++) {
            size_t e = t * c->n + i;
            if (w->value[ROUTE_MASK][e] != 0 && by != 0) w->value[D_GATE][e] += (dw[e] - mean) / by;
        }
        if (anchor_weighs(c))
            w->value[D_ANCHOR][t] = w->value[BWD_SHARED_WEIGHT][t] / divisor(c, w, t);
    }
}

/* dW_r += dr^T x,  dx += dr W_r */
static void backward_router(const witness_case *c, witness *w)
{
    for (size_t t = 0; t < c->N; t++)
        for (size_t i = 0; i < c->n; i++) {
            quad dr = w->value[BWD_LOGITS][t * c->n + i];
            for (size_t j = 0; j < c->d; j++) {
                w->value[BWD_W_ROUTER][i * c->d + j] += dr * c->x[t * c->d + j];
                w->value[BWD_X][t * c->d + j] += dr * c->w_router[i * c->d + j];
            }
        }
}

/* 9 ---- State after the step ---- */

/* ema_i <- beta ema_i + (1 - beta) cutoff_i                                (paper, Algorithm 1) */
static void update_ema(const witness_case *c, witness *w)
{
    quad beta = c->ema_decay;
    for (size_t i = 0; i < c->n; i++)
        w->value[STATE_EMA][i] =
            beta * (c->ema != NULL ? (quad)c->ema[i] : 0) + (1 - beta) * w->value[ROUTE_CUTOFF][i];
    *w->value[STATE_UPDATES] = (quad)c->ema_updates + 1;
}

/* Load of expert i in a micro-batch, averaged over the micro-batches, or as given. */
static quad mean_load(const witness_case *c, const witness *w, size_t i)
{
    if (c->global_load) return c->load[i];
    return w->value[ROUTE_LOAD][i] / (quad)c->micro_batches;
}

/* sign(mean load - load_i). Compared as n load_i against the sum of loads, each load times M:
 * whole numbers, so that a balanced expert gives exactly 0. */
static int load_sign(const witness_case *c, const witness *w, size_t i)
{
    quad total = 0;
    const quad *counted = w->value[ROUTE_LOAD];
    for (size_t j = 0; j < c->n; j++) total += c->global_load ? (quad)c->load[j] : counted[j];
    quad mine = (quad)c->n * (c->global_load ? (quad)c->load[i] : counted[i]);
    return (total > mine) - (total < mine);
}

/* lossfree: b_i <- b_i + u sign(mean load - load_i).  proportional: b_i <- b_i + u (1 - F_i). */
static void update_bias(const witness_case *c, witness *w)
{
    for (size_t i = 0; i < c->n; i++) {
        quad step = is(c->balance, "lossfree") ? (quad)load_sign(c, w, i)
                                               : 1 - load_fraction(c, mean_load(c, w, i));
        w->value[STATE_BIAS][i] = (c->bias != NULL ? (quad)c->bias[i] : 0) + c->bias_rate * step;
    }
}

/* 10 ---- Slots: the pairs with z = 1, expert by expert, tokens ascending ---- */

/* Offsets are running sums of loads and fanouts: exclusive, from 0 to the number of slots. */
static void compute_offsets(const witness_case *c, witness *w)
{
    quad **v = w->value;
    for (size_t i = 0; i < c->n; i++)
        v[ROUTE_EXPERT_OFFSETS][i + 1] = v[ROUTE_EXPERT_OFFSETS][i] + v[ROUTE_LOAD][i];
    for (size_t t = 0; t < c->N; t++)
        v[ROUTE_TOKEN_OFFSETS][t + 1] = v[ROUTE_TOKEN_OFFSETS][t] + v[ROUTE_FANOUT][t];
}

/* What a bundle holds of a slot: `width` values of the pair's row in an [N,n,width] array. */
static void copy_slot(const witness_case *c, witness *w, size_t slot, size_t pair)
{
    const struct {
        enum tensor to, from;
        size_t width;
    } table[] = {
        {FWD_SLOT_PRE, PRE, c->h},      {FWD_SLOT_ACT, ACT, c->h},      {FWD_SLOT_OUT, OUT, c->d},
        {BWD_SLOT_PRE, D_PRE, c->h},    {BWD_SLOT_ACT, D_ACT, c->h},    {BWD_SLOT_OUT, D_OUT, c->d},
        {ROUTE_SLOT_WEIGHT, WEIGHT, 1}, {BWD_SLOT_WEIGHT, D_WEIGHT, 1},
    };
    for (size_t row = 0; row < sizeof table / sizeof table[0]; row++) {
        size_t width = table[row].width;
        for (size_t j = 0; j < width; j++)
            w->value[table[row].to][slot * width + j] = w->value[table[row].from][pair * width + j];
    }
}

/* Slot number = place in the walk over experts, then tokens. A token meets its experts in
 * ascending order on that walk, so its own list fills up in order: entry number `met` of it. */
static void compute_slots(const witness_case *c, witness *w)
{
    quad **v = w->value;
    size_t slot = 0;
    for (size_t i = 0; i < c->n; i++)
        for (size_t t = 0; t < c->N; t++) {
            if (v[ROUTE_MASK][t * c->n + i] == 0) continue;
            size_t met = (size_t)v[ROUTE_TOKEN_OFFSETS][t];
            for (size_t j = 0; j < i; j++) met += v[ROUTE_MASK][t * c->n + j] != 0;
            v[ROUTE_SLOT_TOKEN][slot] = (quad)t;
            v[ROUTE_SLOT_EXPERT][slot] = (quad)i;
            v[ROUTE_TOKEN_SLOTS][met] = (quad)slot;
            copy_slot(c, w, slot, t * c->n + i);
            slot++;
        }
}

/* ---- Which tensors a case has, and their sizes ---- */

/* Zeroed; at least one element, so that an empty tensor is not NULL. */
static void make(witness *w, enum tensor id, size_t count)
{
    w->count[id] = count;
    w->value[id] = calloc(count > 0 ? count : 1, sizeof(quad));
    if (w->value[id] == NULL) w->out_of_memory = 1;
}

/* Shared by the dense layer and the experts: y, dx, dW; `experts` is 1 for the dense layer. */
static void make_layer(const witness_case *c, witness *w, size_t experts)
{
    make(w, FWD_Y, c->N * c->d);
    make(w, BWD_X, c->N * c->d);
    make(w, BWD_W_UP, experts * c->h * c->d);
    make(w, BWD_W_DOWN, experts * c->d * c->h);
}

/* Values of S slots, inside the experts. */
static void make_slot_values(const witness_case *c, witness *w, size_t S)
{
    make(w, FWD_SLOT_PRE, S * c->h);
    make(w, FWD_SLOT_ACT, S * c->h);
    make(w, FWD_SLOT_OUT, S * c->d);
    make(w, BWD_SLOT_PRE, S * c->h);
    make(w, BWD_SLOT_ACT, S * c->h);
    make(w, BWD_SLOT_OUT, S * c->d);
}

static void make_slots(const witness_case *c, witness *w, size_t S)
{
    make_slot_values(c, w, S);
    make(w, ROUTE_SLOT_TOKEN, S);
    make(w, ROUTE_SLOT_EXPERT, S);
    make(w, ROUTE_SLOT_WEIGHT, S);
    make(w, ROUTE_TOKEN_SLOTS, S);
    make(w, BWD_SLOT_WEIGHT, S);
}

static void make_shared(const witness_case *c, witness *w)
{
    make(w, FWD_SHARED_PRE, c->N * c->hs);
    make(w, FWD_SHARED_ACT, c->N * c->hs);
    make(w, FWD_SHARED_OUT, c->N * c->d);
    make(w, FWD_SHARED_WEIGHT, c->N);
    make(w, BWD_SHARED_PRE, c->N * c->hs);
    make(w, BWD_SHARED_ACT, c->N * c->hs);
    make(w, BWD_SHARED_OUT, c->N * c->d);
    make(w, BWD_SHARED_WEIGHT, c->N);
    make(w, BWD_SHARED_UP, c->hs * c->d);
    make(w, BWD_SHARED_DOWN, c->d * c->hs);
}

static void make_routing(const witness_case *c, witness *w)
{
    make(w, FWD_LOGITS, c->N * c->n);
    make(w, FWD_GATES, c->N * c->n);
    make(w, BWD_LOGITS, c->N * c->n);
    make(w, BWD_W_ROUTER, c->n * c->d);
    make(w, ROUTE_MASK, c->N * c->n);
    make(w, ROUTE_MARGIN, c->N * c->n);
    make(w, ROUTE_LOAD, c->n);
    make(w, ROUTE_FANOUT, c->N);
    make(w, ROUTE_EXPERT_OFFSETS, c->n + 1);
    make(w, ROUTE_TOKEN_OFFSETS, c->N + 1);
    if (token_choice(c)) make(w, ROUTE_TOPK_EXPERT, c->N * c->top_k);
    if (by_threshold(c)) make(w, ROUTE_THRESHOLD, c->n);
    if (expert_choice(c)) {
        make(w, ROUTE_POOL_CUTOFF, c->N / c->pool * c->n);
        make(w, ROUTE_TOPK_TOKEN, c->N / c->pool * c->n * c->k);
    }
    if (!c->eval && !token_choice(c)) {
        make(w, ROUTE_CUTOFF, c->n);
        make(w, STATE_EMA, c->n);
        make(w, STATE_UPDATES, 1);
    }
    if (moves_bias(c)) make(w, STATE_BIAS, c->n);
    if (has_aux_loss(c)) make(w, LOSS_AUX, 1);
    if (has_z_loss(c)) make(w, LOSS_Z, 1);
}

/* The arrays over all pairs that no bundle holds. */
static void make_pairs(const witness_case *c, witness *w)
{
    size_t pairs = c->N * c->n;
    make(w, PRE, pairs * c->h);
    make(w, ACT, pairs * c->h);
    make(w, OUT, pairs * c->d);
    make(w, D_PRE, pairs * c->h);
    make(w, D_ACT, pairs * c->h);
    make(w, D_OUT, pairs * c->d);
    make(w, WEIGHT, pairs);
    make(w, D_WEIGHT, pairs);
    make(w, D_GATE, pairs);
    make(w, ANCHOR, c->N);
    make(w, D_ANCHOR, c->N);
    w->score = calloc(pairs, sizeof *w->score);
    w->rank = calloc(pairs, sizeof *w->rank);
    if (w->score == NULL || w->rank == NULL) w->out_of_memory = 1;
}

static void make_tensors(const witness_case *c, witness *w)
{
    make_layer(c, w, c->dense ? 1 : c->n);
    if (c->dense) {
        make_slot_values(c, w, c->N);
        return;
    }
    make_routing(c, w);
    make_pairs(c, w);
    if (c->hs > 0) make_shared(c, w);
}

/* ---- The whole layer ---- */

static void compute_moe(const witness_case *c, witness *w)
{
    compute_logits(c, w);
    compute_scores(c, w);
    compute_assignment(c, w);
    compute_gates(c, w);
    compute_weights(c, w);
    compute_output(c, w);

    backward_experts(c, w);
    backward_weights(c, w);
    if (has_aux_loss(c)) compute_aux_loss(c, w); /* adds to dp */
    backward_gates(c, w);
    if (has_z_loss(c)) compute_z_loss(c, w); /* adds to dr */
    backward_router(c, w);

    if (!c->eval && !token_choice(c)) update_ema(c, w);
    if (moves_bias(c)) update_bias(c, w);

    compute_offsets(c, w);
    make_slots(c, w, (size_t)w->value[ROUTE_EXPERT_OFFSETS][c->n]);
    if (!w->out_of_memory) compute_slots(c, w);
}

/* 1 if `word` is in the NULL-ended list. */
static int known(const char *word, const char *const *list)
{
    while (*list != NULL && !is(word, *list)) list++;
    return *list != NULL;
}

static int known_words(const witness_case *c)
{
    static const char *const rules[] = {"tc", "ec", "et", NULL};
    static const char *const gates[] = {
        "sigmoid",        "relu", "softmax", "softmax_anchor", "softmax_anchor_out",
        "softmax_tokens", NULL};
    static const char *const norms[] = {"none", "fanout", "sum", NULL};
    static const char *const balances[] = {"none",     "aux",          "aux_error",
                                           "lossfree", "proportional", NULL};
    return c->dense || (known(c->rule, rules) && known(c->gate, gates) && known(c->norm, norms) &&
                        known(c->balance, balances));
}

witness *witness_compute(const witness_case *c)
{
    if (!known_words(c)) return NULL;
    witness *w = calloc(1, sizeof *w);
    if (w == NULL) return NULL;
    make_tensors(c, w);
    if (!w->out_of_memory) {
        if (c->dense)
            compute_dense(c, w);
        else
            compute_moe(c, w);
    }
    if (w->out_of_memory) {
        witness_free(w);
        return NULL;
    }
    return w;
}

const quad *witness_tensor(const witness *w, const char *name, size_t *count)
{
    for (size_t id = 0; id < PUBLIC_COUNT; id++) {
        if (!is(name, public_names[id]) || w->value[id] == NULL) continue;
        if (count != NULL) *count = w->count[id];
        return w->value[id];
    }
    return NULL;
}

const char *const *witness_names(void)
{
    return public_names;
}

void witness_free(witness *w)
{
    if (w == NULL) return;
    for (size_t id = 0; id < TENSOR_COUNT; id++) free(w->value[id]);
    free(w->score);
    free(w->rank);
    free(w);
}
