/* witness_layer.c: what becomes of the tokens: 4 feed-forward network, 5 gates, 6 combination,
 * 7 losses, 8 gradients, 9 state.
 *
 * Who goes where is known by now (witness_routing.c); the dense layer is part 4 alone.
 * See witness.h for purpose and source, witness_parts.h for the letters.
 */
#include "witness_parts.h"

#include <quadmath.h>

/* 4 ---- Feed-forward network: f(x) = W_down a(W_up x), for one token ---- */

typedef struct network {
    size_t d, h;
    const char *activation;
    const double *up, *down, *gate; /* [h,d], [d,h], [h,d]; gate: NULL but for swiglu */
    quad *d_up, *d_down, *d_gate;   /* the same shapes, accumulated */
    const double *b_up, *b_gate, *b_down; /* [h], [h], [d]; NULL: none */
    quad *d_b_up, *d_b_gate, *d_b_down;
} network;

/* Element j of a bias, 0 where there is none. */
static quad bias(const double *b, size_t j)
{
    return b != NULL ? (quad)b[j] : 0;
}

/* What one token leaves in it. */
typedef struct token_row {
    quad *X;                        /* [d] in: what the network sees */
    quad *H, *A, *O, *dO, *dA, *dH; /* [h], [h], [d], [d], [h], [h] */
    quad *V, *dV;                   /* [h]; swiglu alone */
} token_row;

static quad relu(quad v)
{
    return v > 0 ? v : 0;
}

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

/* a(h), and its derivative into *slope. relu2: relu(h)^2. gelu: h (1 + erf(h / sqrt 2)) / 2.
 * gelu_tanh: h (1 + tanh u) / 2, u = sqrt(2/pi) (h + 0.044715 h^3), which is h s(2u), s = 1/(1+e^-v): for
 * u far below 0 the tanh has lost every digit. swiglu's silu: h s(h). */
static quad activation(const char *word, quad h, quad *slope)
{
    if (is(word, "relu2")) {
        *slope = 2 * relu(h);
        return relu(h) * relu(h);
    }
    if (is(word, "gelu")) {
        quad share = erfcq(-h / sqrtq(2)) / 2;
        *slope = share + h * expq(-h * h / 2) / sqrtq(2 * M_PIq);
        return h * share;
    }
    quad inner = h, inner_slope = 1;
    if (is(word, "gelu_tanh")) {
        quad cubic = 0.044715, root = sqrtq(2 / M_PIq);
        inner = 2 * root * (h + cubic * h * h * h);
        inner_slope = 2 * root * (1 + 3 * cubic * h * h);
    }
    *slope = sigmoid(inner) + h * sigmoid_derivative(inner) * inner_slope;
    return h * sigmoid(inner);
}

/* H = x W_up^T + b_up,  A = a(H),  O = A W_down^T + b_down;  swiglu: V = x W_gate^T + b_gate, A = silu(V) H */
static void network_forward(const network *f, const token_row *r)
{
    quad slope;
    for (size_t j = 0; j < f->h; j++) {
        r->H[j] = bias(f->b_up, j);
        for (size_t c = 0; c < f->d; c++) r->H[j] += r->X[c] * f->up[j * f->d + c];
        r->A[j] = activation(f->activation, r->H[j], &slope);
        if (f->gate == NULL) continue;
        r->V[j] = bias(f->b_gate, j);
        for (size_t c = 0; c < f->d; c++) r->V[j] += r->X[c] * f->gate[j * f->d + c];
        r->A[j] = activation("silu", r->V[j], &slope) * r->H[j];
    }
    for (size_t c = 0; c < f->d; c++) {
        r->O[c] = bias(f->b_down, c);
        for (size_t j = 0; j < f->h; j++) r->O[c] += r->A[j] * f->down[c * f->h + j];
    }
}

/* dA = dO W_down,  dH = dA a'(H),  dW_down += dO^T A,  dW_up += dH^T x,  dx += dH W_up; swiglu:
 * dH = dA silu(V),  dV = dA H silu'(V),  dW_gate += dV^T x,  dx += dV W_gate */
static void network_backward(const network *f, const token_row *r, quad *dx)
{
    for (size_t j = 0; j < f->h; j++) {
        quad slope;
        r->dA[j] = 0;
        for (size_t c = 0; c < f->d; c++) r->dA[j] += r->dO[c] * f->down[c * f->h + j];
        activation(f->activation, r->H[j], &slope);
        r->dH[j] = r->dA[j] * slope;
        if (f->gate == NULL) continue;
        r->dH[j] = r->dA[j] * activation("silu", r->V[j], &slope);
        r->dV[j] = r->dA[j] * r->H[j] * slope;
    }
    for (size_t j = 0; f->b_up != NULL && j < f->h; j++) {
        f->d_b_up[j] += r->dH[j];
        if (f->gate != NULL) f->d_b_gate[j] += r->dV[j];
    }
    for (size_t c = 0; f->b_down != NULL && c < f->d; c++) f->d_b_down[c] += r->dO[c];
    for (size_t c = 0; c < f->d; c++)
        for (size_t j = 0; j < f->h; j++) {
            f->d_down[c * f->h + j] += r->dO[c] * r->A[j];
            f->d_up[j * f->d + c] += r->dH[j] * r->X[c];
            dx[c] += r->dH[j] * f->up[j * f->d + c];
            if (f->gate == NULL) continue;
            f->d_gate[j * f->d + c] += r->dV[j] * r->X[c];
            dx[c] += r->dV[j] * f->gate[j * f->d + c];
        }
}

static void take_rows(const witness_case *c, witness *w)
{
    for (size_t i = 0; i < c->N * c->d; i++) w->value[X_ROW][i] = c->x[i];
}

/* Routed expert i. */
static network expert(const witness_case *c, const witness *w, size_t i)
{
    size_t size = c->h * c->d;
    return (network){.d = c->d,
                     .h = c->h,
                     .up = c->w_up + i * size,
                     .down = c->w_down + i * size,
                     .activation = c->activation,
                     .gate = gated(c) ? c->w_gate + i * size : NULL,
                     .d_up = w->value[BWD_W_UP] + i * size,
                     .d_down = w->value[BWD_W_DOWN] + i * size,
                     .d_gate = gated(c) ? w->value[BWD_W_GATE] + i * size : NULL,
                     .b_up = biased(c) ? c->b_up + i * c->h : NULL,
                     .b_gate = biased(c) && gated(c) ? c->b_gate + i * c->h : NULL,
                     .b_down = biased(c) ? c->b_down + i * c->d : NULL,
                     .d_b_up = biased(c) ? w->value[BWD_B_UP] + i * c->h : NULL,
                     .d_b_gate = biased(c) && gated(c) ? w->value[BWD_B_GATE] + i * c->h : NULL,
                     .d_b_down = biased(c) ? w->value[BWD_B_DOWN] + i * c->d : NULL};
}

static network shared_expert(const witness_case *c, const witness *w)
{
    return (network){.d = c->d,
                     .h = c->hs,
                     .up = c->shared_up,
                     .down = c->shared_down,
                     .activation = c->activation,
                     .gate = gated(c) ? c->shared_gate : NULL,
                     .d_up = w->value[BWD_SHARED_UP],
                     .d_down = w->value[BWD_SHARED_DOWN],
                     .d_gate = w->value[BWD_SHARED_GATE],
                     .b_up = c->shared_b_up,
                     .b_gate = c->shared_b_gate,
                     .b_down = c->shared_b_down,
                     .d_b_up = w->value[BWD_SHARED_B_UP],
                     .d_b_gate = w->value[BWD_SHARED_B_GATE],
                     .d_b_down = w->value[BWD_SHARED_B_DOWN]};
}

/* The dense layer is the network itself: y = f(x), dO = dy, and every token is a slot. */
void witness_dense(const witness_case *c, witness *w)
{
    network f = expert(c, w, 0);
    take_rows(c, w);
    for (size_t t = 0; t < c->N; t++) {
        const token_row r = {.X = w->value[X_ROW] + t * c->d,
                             .H = w->value[FWD_SLOT_PRE] + t * c->h,
                             .A = w->value[FWD_SLOT_ACT] + t * c->h,
                             .O = w->value[FWD_SLOT_OUT] + t * c->d,
                             .dO = w->value[BWD_SLOT_OUT] + t * c->d,
                             .dA = w->value[BWD_SLOT_ACT] + t * c->h,
                             .dH = w->value[BWD_SLOT_PRE] + t * c->h,
                             .V = gated(c) ? w->value[FWD_SLOT_GATE_PRE] + t * c->h : NULL,
                             .dV = gated(c) ? w->value[BWD_SLOT_GATE_PRE] + t * c->h : NULL};
        network_forward(&f, &r);
        for (size_t j = 0; j < c->d; j++) {
            w->value[FWD_Y][t * c->d + j] = r.O[j];
            r.dO[j] = c->dy[t * c->d + j];
        }
        network_backward(&f, &r, w->value[BWD_X] + t * c->d);
    }
}

/* 5 ---- Gates: p from r, over all experts, before any selection ---- */

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

static int anchored(const witness_case *c)
{
    return is(c->gate, "softmax_anchor") || is(c->gate, "softmax_anchor_out");
}

/* softmax, softmax_anchor, softmax_anchor_out: over a token's experts. softmax_tokens: over the
 * tokens of a micro-batch, for each expert. sigmoid, relu: each logit for itself. */
void witness_gates(const witness_case *c, witness *w)
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

/* 6 ---- Combination: y_t = s_t f_shared(x_t) + sum_i z_ti w_ti f_i(x_t)       (paper, Eq. 2);
 * or, with weights on the inputs, y_t = s_t f_shared(x_t) + sum_i z_ti f_i(w_ti x_t) */

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

/* The shared expert's weight is a_t0: softmax_anchor, except under token choice. */
static int anchor_weighs(const witness_case *c)
{
    return c->hs > 0 && is(c->gate, "softmax_anchor") && !token_choice(c);
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
            w->value[WEIGHT][e] = counts ? c->routed_scale * w->value[FWD_GATES][e] / by : 0;
        }
        if (c->hs == 0) continue;
        quad s = 1;
        if (anchor_weighs(c)) s = w->value[ANCHOR][t];
        if (is(c->gate, "softmax_anchor_out") && !token_choice(c))
            s = (quad)1 / (quad)(c->granularity + 1);
        w->value[FWD_SHARED_WEIGHT][t] = is_real(c, t) ? s / divisor(c, w, t) : 0;
    }
}

/* Token t on its way through expert i, and through the shared one. */
static token_row pair_row(const witness_case *c, const witness *w, size_t t, size_t i)
{
    quad *const *v = w->value;
    size_t e = t * c->n + i, d = c->d, h = c->h;
    return (token_row){v[INPUT] + e * d, v[PRE] + e * h,   v[ACT] + e * h,   v[OUT] + e * d,      v[D_OUT] + e * d,
                       v[D_ACT] + e * h, v[D_PRE] + e * h, v[GATE_PRE] + e * h, v[D_GATE_PRE] + e * h};
}

static token_row shared_row(const witness_case *c, const witness *w, size_t t)
{
    quad *const *v = w->value;
    size_t d = c->d, hs = c->hs;
    return (token_row){v[X_ROW] + t * d,
                       v[FWD_SHARED_PRE] + t * hs,
                       v[FWD_SHARED_ACT] + t * hs,
                       v[FWD_SHARED_OUT] + t * d,
                       v[BWD_SHARED_OUT] + t * d,
                       v[BWD_SHARED_ACT] + t * hs,
                       v[BWD_SHARED_PRE] + t * hs,
                       gated(c) ? v[FWD_SHARED_GATE_PRE] + t * hs : NULL,
                       gated(c) ? v[BWD_SHARED_GATE_PRE] + t * hs : NULL};
}

/* The sum itself. A token without any expert gets 0. */
static void compute_output(const witness_case *c, witness *w)
{
    size_t n = c->n, d = c->d;
    for (size_t t = 0; t < c->N; t++) {
        quad *y = w->value[FWD_Y] + t * d;
        for (size_t i = 0; i < n; i++) {
            size_t e = t * n + i;
            if (w->value[ROUTE_MASK][e] == 0) continue;
            const network f = expert(c, w, i);
            const token_row r = pair_row(c, w, t, i);
            quad weight = w->value[WEIGHT][e];
            for (size_t j = 0; j < d; j++)
                r.X[j] = (c->weighs_input ? weight : 1) * c->x[t * d + j];
            network_forward(&f, &r);
            for (size_t j = 0; j < d; j++) y[j] += (c->weighs_input ? 1 : weight) * r.O[j];
        }
        if (c->hs == 0) continue;
        const network f = shared_expert(c, w);
        const token_row r = shared_row(c, w, t);
        network_forward(&f, &r);
        for (size_t j = 0; j < d; j++) y[j] += w->value[FWD_SHARED_WEIGHT][t] * r.O[j];
    }
}

/* 7 ---- Losses: of each micro-batch, averaged over the M of them; without their coefficients */

/* F_i = n/(K B) load_i, 1 under perfect balance. The load of a micro-batch is sum_t z_ti; a
 * balancing across ranks is given its loads from outside. */
static quad load_fraction(const witness_case *c, quad load)
{
    return (quad)c->n * load / ((quad)c->top_k * (quad)real_tokens(c));
}

/* F_i of micro-batch m as `aux` takes it; `aux_error` takes F_i - 1. */
static quad aux_factor(const witness_case *c, const witness *w, size_t m, size_t i)
{
    size_t B = batch_tokens(c);
    quad load = 0;
    for (size_t t = m * B; t < (m + 1) * B; t++) load += w->value[CHOSEN][t * c->n + i];
    quad F = load_fraction(c, c->global_load ? (quad)c->load[i] : load);
    return is(c->balance, "aux_error") ? F - 1 : F;
}

/* sum_i F_i P_i,  P_i = (1/B) sum_t p_ti. The gradient goes through P alone:
 * dp_ti += alpha/M F_i / B, for every expert of every token, selected or not. */
static void compute_aux_loss(const witness_case *c, witness *w)
{
    size_t B = batch_tokens(c), R = real_tokens(c);
    quad M = (quad)c->micro_batches;
    for (size_t m = 0; m < c->micro_batches; m++)
        for (size_t i = 0; i < c->n; i++) {
            quad F = aux_factor(c, w, m, i);
            for (size_t t = m * B; t < m * B + R; t++) {
                size_t e = t * c->n + i;
                *w->value[LOSS_AUX] += F * w->value[FWD_GATES][e] / ((quad)R * M);
                w->value[D_GATE][e] += c->balance_coef * F / ((quad)R * M);
            }
        }
}

/* (1/N) sum_t L_t^2 with L_t = log sum_i e^r_ti, over the routed experts (no anchor);
 * dr_ti += zeta/N 2 L_t e^(r_ti - L_t). */
static void compute_z_loss(const witness_case *c, witness *w)
{
    quad N = (quad)(c->micro_batches * real_tokens(c));
    for (size_t t = 0; t < c->N; t++) {
        const quad *r = w->value[FWD_LOGITS] + t * c->n;
        if (!is_real(c, t)) continue;
        quad max = r[0], sum = 0;
        for (size_t i = 0; i < c->n; i++)
            if (r[i] > max) max = r[i];
        for (size_t i = 0; i < c->n; i++) sum += expq(r[i] - max);
        quad L = max + logq(sum);
        *w->value[LOSS_Z] += L * L / N;
        for (size_t i = 0; i < c->n; i++)
            w->value[BWD_LOGITS][t * c->n + i] +=
                c->z_loss_coef / N * 2 * L * expq(r[i] - L);
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
    network_backward(f, r, dx);
    return d_weight;
}

/* y takes f(X), X = w x: dw = <dX, x>, and dx += w dX. */
static void backward_weighted_input(const witness_case *c, witness *w, const network *f, size_t t,
                                    size_t e)
{
    size_t d = c->d, i = e % c->n;
    const token_row r = pair_row(c, w, t, i);
    quad *dX = w->value[D_INPUT] + e * d;
    backward_network(c, f, t, 1, &r, dX);
    for (size_t j = 0; j < d; j++) {
        w->value[D_WEIGHT][e] += dX[j] * c->x[t * d + j];
        w->value[BWD_X][t * d + j] += w->value[WEIGHT][e] * dX[j];
    }
}

/* The experts' share of dx, and all of dW_up, dW_down, dW_gate, dw. */
static void backward_experts(const witness_case *c, witness *w)
{
    quad **v = w->value;
    for (size_t t = 0; t < c->N; t++) {
        quad *dx = v[BWD_X] + t * c->d;
        for (size_t i = 0; i < c->n; i++) {
            size_t e = t * c->n + i;
            if (v[ROUTE_MASK][e] == 0) continue;
            const network f = expert(c, w, i);
            const token_row r = pair_row(c, w, t, i);
            if (c->weighs_input)
                backward_weighted_input(c, w, &f, t, e);
            else
                v[D_WEIGHT][e] = backward_network(c, &f, t, v[WEIGHT][e], &r, dx);
        }
        if (c->hs == 0) continue;
        const network f = shared_expert(c, w);
        const token_row r = shared_row(c, w, t);
        v[BWD_SHARED_WEIGHT][t] = backward_network(c, &f, t, v[FWD_SHARED_WEIGHT][t], &r, dx);
    }
}

/* dp on the slots.  none: dw.  fanout: dw / n_t.
 * sum: (dw_ti - sum_j w_tj dw_tj) / sum_j z_tj p_tj, and nothing where that sum is 0. routed_scale multiplies all of it,
 * at the end: where w = 1, dp is 0. */
static void backward_weights(const witness_case *c, witness *w)
{
    const quad *dw = w->value[D_WEIGHT]; /* 0 off the slots, as are the weights */
    for (size_t t = 0; t < c->N; t++) {
        quad mean = 0, by = divisor(c, w, t);
        if (is(c->norm, "sum")) {
            by = selected_gates(c, w, t);
            for (size_t i = 0; i < c->n && by != 0; i++)
                mean += w->value[FWD_GATES][t * c->n + i] / by * dw[t * c->n + i];
        }
        for (size_t i = 0; i < c->n; i++) {
            size_t e = t * c->n + i;
            if (w->value[ROUTE_MASK][e] != 0 && by != 0)
                w->value[D_GATE][e] += c->routed_scale * (dw[e] - mean) / by;
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

/* ---- The routed layer ---- */

void witness_moe(const witness_case *c, witness *w)
{
    take_rows(c, w);
    compute_weights(c, w);
    compute_output(c, w);

    backward_experts(c, w);
    backward_weights(c, w);
    if (has_aux_loss(c)) compute_aux_loss(c, w); /* adds to dp */
    backward_gates(c, w);
    if (has_z_loss(c)) compute_z_loss(c, w); /* adds to dr */
    backward_router(c, w);

    if (!c->eval && !token_choice(c) && !c->given) update_ema(c, w);
    if (moves_bias(c)) update_bias(c, w);
}
