/* noise.c: the variance of every real tensor of a step. See et_step_noise in etref/step.h.
 *
 * The layer's own tensors are et_moe_noise's (or the dense layer's, here); this file adds what only a
 * step has: losses, state, cutoffs and metrics, all kept in the accumulator's precision. a = 0.18 u^2,
 * u its unit roundoff, is what a rounding costs of a value's square on the average.
 *
 *     loss.aux    sum_i F_i P_i: V[P_i] = (sum_t V[p_ti] + acc) / N^2, and the roundings of F_i
 *     loss.z      (1/N) sum_t lse_t^2: V[lse] = sum_i softmax_i^2 V[r_i] + a (lse^2 + max^2 + 4)
 *     cutoff      the k-th largest score errs like a score; which one it is, rounding may change: the
 *                 largest V[r] of the expert
 *     threshold   ema, stored in 64 bits, is rounded on reading; under bias correction divided by
 *                 1 - beta^u, whose relative error is that of beta times u beta^u / (1 - beta^u)
 *     ema         beta ema + (1-beta) kth: (1-beta)^2 V[kth], the rounding of beta itself, of ema, and of
 *                 each operation
 *
 * Tokens with the same input err alike; sums over tokens count them with their number of twins. Where W_r
 * has to be rounded, N tokens err in as many ways as their inputs have directions.
 * Left out: counts that hang on open decisions (metric.raw_usage and its kin count as exact ratios).
 */
#include "etref/bundle.h"
#include "etref/elementary.h"
#include "ref/base/arithmetic.h"
#include "ref/base/memory.h"
#include "ref/base/parallel.h"
#include "ref/base/product_noise.h"
#include "ref/base/rounding.h"
#include "ref/layers/alike.h"
#include "ref/layers/twins.h"
#include "ref/oracle/decide.h"
#include "ref/oracle/noise.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* What the parts below share. */
typedef struct step_noise {
    const et_step *s;
    et_step *V;
    const et_profile *p;
    rounding sum;         /* the accumulator */
    double a;             /* mean cost of a rounding */
    et_token_twins twins; /* of an MoE step */
    double crowd; /* tokens that err together through a rounded W_r, see et_find_directions */
    bool lossy_x; /* x has to be rounded: a token's logits err together */
} step_noise;

/* V plus `count` roundings in the accumulator of a result of this size. */
static double rounded(const step_noise *q, double value, double in, double count)
{
    return in + count * rounding_site(&q->sum, value, in);
}

/* acc of a sum of `count` terms, from the sum and the sum of the terms' squares. */
static double summed(const step_noise *q, size_t count, double value, double squares)
{
    et_sum_noise c = et_sum_noise_of(q->p, count);
    return c.square * value * value + (c.squares + q->a) * squares;
}

/* ---- the dense layer ---- */

static et_status dense_noise(step_noise *q, et_error *error)
{
    const et_step *s = q->s;
    const et_case *c = &s->c;
    size_t N = c->tokens, d = c->d_model, h = c->d_expert;
    et_ffn f = {s->engine, d, h, s->in.up, s->in.down, NULL};
    const rounding operand = et_rounding_at(q->p, ET_OPERANDS), out = et_rounding_at(q->p, ET_OUTPUTS);
    void *room;
    et_status status = et_allocate(&room, N * d + 2 * h * d, sizeof(et_real), "noise", error);
    if (status != ET_OK) return status;
    et_real *Vx = room, *Vup = Vx + N * d, *Vdown = Vup + h * d;
    const et_real *values[] = {s->in.x, s->in.up, s->in.down};
    et_real *variances[] = {Vx, Vup, Vdown};
    const size_t counts[] = {N * d, h * d, h * d};
    for (size_t k = 0; k < 3; k++)
        for (size_t i = 0; i < counts[k]; i++)
            variances[k][i] = (et_real)rounding_site(&operand, (double)values[k][i], 0);
    et_ffn_tensors v = {.x = s->in.x,
                        .H = s->fwd.slot_pre,
                        .A = s->fwd.slot_act,
                        .out = s->fwd.slot_out,
                        .dO = s->bwd.slot_out,
                        .dA = s->bwd.slot_act,
                        .dH = s->bwd.slot_pre,
                        .dup = s->bwd.up,
                        .ddown = s->bwd.down};
    et_ffn_tensors V = {.x = Vx,
                        .H = q->V->fwd.slot_pre,
                        .A = q->V->fwd.slot_act,
                        .out = q->V->fwd.slot_out,
                        .dO = q->V->bwd.slot_out,
                        .dA = q->V->bwd.slot_act,
                        .dH = q->V->bwd.slot_pre,
                        .dx = q->V->bwd.x,
                        .dup = q->V->bwd.up,
                        .ddown = q->V->bwd.down};
    et_ffn_parameter_noise W = {Vup, Vdown};
    et_product_room scratch = {0};
    et_upstream upstream = {s->in.dy, NULL, NULL};
    et_twins twins = {q->twins.input, q->twins.both};
    status = et_ffn_noise(&f, q->p, W, N, &v, &V, &scratch, error);
    if (status == ET_OK)
        status =
            et_ffn_backward_noise(&f, q->p, W, N, &upstream, q->twins.groups < N ? &twins : NULL,
                                  &v, &V, NULL, &scratch, error);
    /* y is f(x), stored as an output: rounded once more where outputs are shorter. */
    bool again = q->p->bits[ET_OUTPUTS] < q->p->bits[ET_INTERMEDIATES];
    for (size_t i = 0; status == ET_OK && i < N * d; i++) {
        double in = (double)V.out[i], site = rounding_site(&out, (double)s->fwd.y[i], in);
        q->V->fwd.y[i] = (et_real)(in + (again ? site : 0));
        double dx = (double)V.dx[i];
        V.dx[i] = (et_real)(dx + rounding_site(&out, (double)s->bwd.x[i], dx));
    }
    et_product_room_free(&scratch);
    free(room);
    return status;
}

/* ---- losses ---- */

/* V[loss] += of one micro-batch of N tokens from `first`, before the mean over batches. */
static void aux_noise(const step_noise *q, size_t first, size_t N, const et_real *F, double *V)
{
    size_t n = q->s->c.experts;
    const rounding gate = et_rounding_at(q->p, ET_GATES);
    double total = 0, squares = 0, missing = 0;
    for (size_t i = 0; i < n; i++) {
        double weight = (double)F[i] - (q->s->c.balance == ET_BALANCE_AUX_ERROR ? 1 : 0);
        double P = 0, p_squares = 0, in = 0, tokens = (double)N, plain = 0;
        for (size_t t = first; t < first + N; t++) {
            double p = (double)q->s->fwd.gates[t * n + i];
            P += p;
            plain = rounding_result(&q->sum, plain + rounding_result(&gate, p));
            p_squares += p * p;
            in += q->crowd * (double)q->V->fwd.gates[t * n + i] * q->twins.inputs[t];
        }
        in = (in + summed(q, N, P, p_squares)) / (tokens * tokens);
        missing += weight * (plain - P) / tokens;
        P /= tokens;
        double F_noise = rounded(q, (double)F[i], 0, 2) + rounding_site(&q->sum, weight, 1);
        *V += weight * weight * in + P * P * F_noise + 2 * q->a * weight * weight * P * P;
        total += weight * P;
        squares += weight * weight * P * P;
    }
    /* gates that are nearly equal round to the same side, and so does a sum that grows by them */
    *V += summed(q, n, total, squares) + missing * missing;
}

/* log sum_i e^r_i of one token and its softmax, as et_z_loss has them. */
static double log_sum_exp(size_t n, const et_real *r, double *softmax, double *largest)
{
    double sum = 0;
    *largest = (double)r[0];
    for (size_t i = 1; i < n; i++) *largest = fmax(*largest, (double)r[i]);
    for (size_t i = 0; i < n; i++) sum += softmax[i] = et_exp((double)r[i] - *largest);
    for (size_t i = 0; i < n; i++) softmax[i] /= sum;
    return *largest + et_log(sum);
}

/* lse's, from its logits: to first order sum_i softmax_i^2 V[r_i]. But one that is far below the others
 * and errs by much may come up beside them: six deviations lead as far as six of r_i. */
static double lse_noise(const step_noise *q, size_t n, const et_real *Vr, const double *softmax)
{
    double V = 0, sum = 0;
    for (size_t i = 0; i < n; i++) {
        double s = sqrt((double)Vr[i]), moved = log1p(softmax[i] * expm1(6 * s)) / 6;
        double own = fmax(softmax[i] * s, fmin(moved, s));
        V += own * own;
        sum += own;
    }
    return q->lossy_x ? sum * sum : V;
}

/* One token: adds to the variance of its dr = scale lse softmax and returns that of lse^2. softmax [3n] is
 * scratch. */
static double z_token_noise(const step_noise *q, size_t t, double scale, double *softmax)
{
    size_t n = q->s->c.experts;
    const et_real *r = q->s->fwd.logits + t * n, *Vr = q->V->fwd.logits + t * n;
    /* cppcheck-suppress invalidPointerCast ; room behind the doubles, read as what it is written */
    et_real *p = (et_real *)(softmax + n), *Vp = p + n;
    et_profile as_sums = *q->p;
    double largest;
    double lse = log_sum_exp(n, r, softmax, &largest), through = lse_noise(q, n, Vr, softmax);
    double evaluation = q->a * (lse * lse + largest * largest + 4 + (double)n / 2);
    as_sums.bits[ET_GATES] = as_sums.bits[ET_ACCUMULATOR];
    for (size_t i = 0; i < n; i++) p[i] = (et_real)softmax[i];
    et_gate_noise(ET_GATE_SOFTMAX, &as_sums, 1, n, r, p, NULL, Vr, q->lossy_x, Vp, NULL);
    for (size_t i = 0; i < n; i++) {
        double square = softmax[i] * softmax[i];
        /* softmax as e^(r - lse), or as in gate.c: at worst lse's rounding is its relative error */
        double v = square * (through + evaluation) +
                   lse * lse * ((double)Vp[i] + square * (evaluation + q->a * (8 + (double)n / 2)));
        q->V->bwd.logits[t * n + i] += (et_real)(scale * scale * v);
    }
    return 4 * lse * lse * (through + evaluation) + q->a * lse * lse * lse * lse;
}

/* The error of lse is in all of a token's dr, and comes into dx as one: V[dx_c] += (scale sum_i softmax_i
 * W_r,ic)^2 V[lse]. */
static et_status z_in_dx(const step_noise *q, et_error *error)
{
    const et_step *s = q->s;
    size_t n = s->c.experts, d = s->c.d_model;
    double scale = 2 * s->c.z_loss_coef / (double)s->c.tokens;
    void *room;
    et_status status = et_allocate(&room, n + d, sizeof(double), "softmax", error);
    if (status != ET_OK) return status;
    double *softmax = room, *along = softmax + n;
    for (size_t t = 0; t < s->c.tokens; t++) {
        double largest;
        log_sum_exp(n, s->fwd.logits + t * n, softmax, &largest);
        double V = scale * scale * lse_noise(q, n, q->V->fwd.logits + t * n, softmax);
        memset(along, 0, d * sizeof *along);
        for (size_t i = 0; i < n; i++)
            for (size_t c = 0; c < d; c++) along[c] += softmax[i] * (double)s->in.router[i * d + c];
        for (size_t c = 0; c < d; c++) q->V->bwd.x[t * d + c] += (et_real)(V * along[c] * along[c]);
    }
    free(room);
    return ET_OK;
}

/* lse^2 as the plainest kernel has it, of exact logits; its rounding is the same for all tokens where a small
 * router makes all logits nearly equal. */
static double plain_z(const step_noise *q, size_t n, const et_real *r)
{
    const rounding *sum = &q->sum;
    double largest = (double)r[0], total = 0;
    for (size_t i = 1; i < n; i++) largest = fmax(largest, (double)r[i]);
    for (size_t i = 0; i < n; i++) {
        double e = rounding_result(sum, et_exp((double)r[i] - largest));
        total = rounding_result(sum, total + e);
    }
    double lse = rounding_result(sum, largest + rounding_result(sum, et_log(total)));
    return rounding_result(sum, lse * lse);
}

static et_status z_noise(const step_noise *q, et_error *error)
{
    const et_case *c = &q->s->c;
    double scale = 2 * c->z_loss_coef / (double)c->tokens, tokens = (double)c->tokens, V = 0;
    double plain = 0;
    void *softmax;
    et_status status = et_allocate(&softmax, 3 * c->experts, sizeof(double), "softmax", error);
    if (status != ET_OK) return status;
    for (size_t t = 0; t < c->tokens; t++) {
        V += q->crowd * z_token_noise(q, t, scale, softmax) * q->twins.inputs[t];
        plain = rounding_result(&q->sum,
                                plain + plain_z(q, c->experts, q->s->fwd.logits + t * c->experts));
    }
    free(softmax);
    /* the terms lse^2 are positive: their squares sum to less than the square of their sum */
    double sum = (double)*q->s->loss_z * tokens;
    double missing = plain - sum;
    V = (V + summed(q, c->tokens, sum, sum * sum / tokens) + missing * missing) / (tokens * tokens);
    *q->V->loss_z = (et_real)rounded(q, (double)*q->s->loss_z, V, 2);
    return ET_OK;
}

/* aux's share of dr, dp_ti = alpha F_i / N for all tokens: about six roundings on the way to each
 * dp, which go on through the gate's Jacobian. */
static void aux_gradient_noise(const step_noise *q, size_t first, size_t N, const et_real *F)
{
    const et_case *c = &q->s->c;
    size_t n = c->experts;
    double each = c->balance_coef / (double)(c->micro_batches * N);
    for (size_t t = first; t < first + N; t++) {
        const et_real *r = q->s->fwd.logits + t * n, *p = q->s->fwd.gates + t * n;
        for (size_t i = 0; i < n; i++) {
            double V = 0;
            for (size_t j = 0; j < n; j++) {
                double slope = (double)et_gate_slope(c->gate, r[i], p[i], p[j], i == j);
                double dp = each * (fabs((double)F[j]) + 1) * slope;
                V += 6 * q->a * dp * dp;
            }
            q->V->bwd.logits[t * n + i] += (et_real)V;
        }
    }
}

/* Losses are means over micro-batches. Each adds its share to V[dr], which et_moe_noise takes up. */
static et_status losses_noise(const step_noise *q, et_error *error)
{
    const et_case *c = &q->s->c;
    size_t N = et_case_micro_tokens(c), M = c->micro_batches;
    if (q->s->loss_aux) {
        void *F;
        et_status status = et_allocate(&F, c->experts, sizeof(et_real), "load fractions", error);
        if (status != ET_OK) return status;
        double V = 0;
        for (size_t batch = 0; batch < M; batch++) {
            et_step_fractions(q->s, batch, F);
            aux_noise(q, batch * N, N, F, &V);
            aux_gradient_noise(q, batch * N, N, F);
        }
        free(F);
        V /= (double)(M * M);
        *q->V->loss_aux = (et_real)rounded(q, (double)*q->s->loss_aux, V, 2);
    }
    return q->s->loss_z ? z_noise(q, error) : ET_OK;
}

/* ---- routing and state ---- */

static void routing_noise(const step_noise *q)
{
    const et_step *s = q->s;
    const et_case *c = &s->c;
    size_t n = c->experts;
    for (size_t i = 0; i < n; i++) {
        double most = 0;
        double bias = s->in.bias ? rounding_site(&q->sum, (double)s->in.bias[i], 0) : 0;
        for (size_t t = 0; t < c->tokens; t++) {
            double V = (double)q->V->fwd.logits[t * n + i];
            most = fmax(most, V);
            if (s->in.bias) {
                double score = (double)s->fwd.logits[t * n + i] + (double)s->in.bias[i];
                V = rounded(q, score, V + bias, 1);
            }
            q->V->route.margin[t * n + i] = (et_real)V;
        }
        double pools = (double)(c->tokens / c->pool_tokens);
        if (s->route.cutoff) { /* the pools' mean */
            double mean = (double)s->route.cutoff[i];
            double in = most + rounding_site(&q->sum, pools * mean, most) / pools;
            q->V->route.cutoff[i] = (et_real)rounded(q, mean, in, 2);
        }
        if (s->route.pool_cutoff)
            for (size_t pool = 0; pool < c->tokens / c->pool_tokens; pool++)
                q->V->route.pool_cutoff[pool * n + i] = (et_real)most;
    }
}

/* Of a threshold of this value, computed from in.ema. */
static double threshold_noise(const step_noise *q, double value)
{
    const et_case *c = &q->s->c;
    double beta = c->ema_decay, u = (double)c->ema_updates, relative = 0;
    if (c->ema_bias_correction && c->ema_updates > 0) {
        double weight = et_ema_weight(beta, c->ema_updates), power = 1 - weight;
        double by = beta > 0 ? u * power / (beta * weight) : 0;
        relative = by * by * rounding_site(&q->sum, beta, 0) + q->a * (4 / (weight * weight) + 1);
    }
    return rounding_site(&q->sum, value, 0) + relative * value * value;
}

static void thresholds_noise(const step_noise *q)
{
    const et_step *s = q->s;
    for (size_t i = 0; i < s->c.experts; i++)
        q->V->route.threshold[i] = (et_real)threshold_noise(q, (double)s->route.threshold[i]);
}

/* Evaluation only stores it, where the caller asks for it at all. */
static void stored_state_noise(const step_noise *q)
{
    const et_step *s = q->s;
    for (size_t i = 0; s->state_ema && i < s->c.experts; i++)
        q->V->state_ema[i] = (et_real)rounding_site(&q->sum, (double)s->state_ema[i], 0);
    for (size_t i = 0; s->state_bias && i < s->c.experts; i++)
        q->V->state_bias[i] = (et_real)rounding_site(&q->sum, (double)s->state_bias[i], 0);
}

static void state_noise(const step_noise *q)
{
    const et_step *s = q->s;
    const et_case *c = &s->c;
    double beta = c->ema_decay, beta_noise = rounding_site(&q->sum, beta, 0);
    for (size_t i = 0; s->state_ema && i < c->experts; i++) {
        double ema = (double)s->in.ema[i], kth = (double)s->route.cutoff[i];
        double size = fabs(ema) + fabs(kth), out = (double)s->state_ema[i];
        double in = beta * beta * rounding_site(&q->sum, ema, 0) +
                    (1 - beta) * (1 - beta) * (double)q->V->route.cutoff[i] +
                    size * size * beta_noise;
        /* the two products, then their sum */
        in += rounding_site(&q->sum, beta * ema, in) + rounding_site(&q->sum, (1 - beta) * kth, in);
        q->V->state_ema[i] = (et_real)rounded(q, out, in, 1);
    }
    for (size_t i = 0; s->state_bias && i < c->experts; i++) {
        double before = (double)s->in.bias[i], out = (double)s->state_bias[i];
        double rate = rounding_site(&q->sum, c->bias_rate, 0);
        double in = rounding_site(&q->sum, before, 0) + rate;
        if (c->balance == ET_BALANCE_PROPORTIONAL)
            in += 3 * rounding_site(&q->sum, out - before, 1) + rate * (double)c->experts;
        q->V->state_bias[i] = (et_real)rounded(q, out, in, 1);
    }
}

/* ---- metrics ---- */

/* Ratios of counts: the division's rounding. */
static void ratio_noise(const step_noise *q, size_t count, const et_real *value, et_real *V)
{
    for (size_t i = 0; value && i < count; i++) V[i] = (et_real)rounded(q, (double)value[i], 0, 1);
}

/* Mean and standard deviation of `count` values with errors that may all be one error. */
static void moments_noise(const step_noise *q, size_t count, double largest, const et_real *mean,
                          const et_real *std, et_real *Vmean, et_real *Vstd)
{
    double m = (double)*mean, square = m * m + (double)*std * (double)*std;
    double in = largest + summed(q, count, m, square / (double)(count ? count : 1));
    *Vmean = (et_real)rounded(q, m, in, 2);
    *Vstd = (et_real)rounded(q, (double)*std, in + q->a * (double)count * square, 4);
}

static void metrics_noise(const step_noise *q)
{
    const et_step *s = q->s;
    const et_step_metrics *m = &s->metric;
    et_step_metrics *V = &q->V->metric;
    size_t n = s->c.experts, N = s->c.tokens;
    double logits = 0, gates = 0;
    for (size_t i = 0; i < N * n; i++) {
        logits = fmax(logits, (double)q->V->fwd.logits[i]);
        if (s->route.mask[i]) gates = fmax(gates, (double)q->V->fwd.gates[i]);
    }
    ratio_noise(q, n, m->usage, V->usage);
    ratio_noise(q, n, m->raw_usage, V->raw_usage);
    ratio_noise(q, 1, m->saturation, V->saturation);
    ratio_noise(q, 1, m->starvation, V->starvation);
    ratio_noise(q, 1, m->overflow_rate, V->overflow_rate);
    ratio_noise(q, 1, m->underflow_rate, V->underflow_rate);
    for (size_t i = 0; m->cutoff_gap && i < n; i++) {
        double gap = (double)m->cutoff_gap[i], threshold = (double)s->route.cutoff[i] - gap;
        double in = (double)q->V->route.cutoff[i] + threshold_noise(q, threshold);
        V->cutoff_gap[i] = (et_real)rounded(q, gap, in, 1);
        V->cutoff_gap_abs[i] = V->cutoff_gap[i];
    }
    moments_noise(q, N * n, logits, m->logit_mean, m->logit_std, V->logit_mean, V->logit_std);
    moments_noise(q, s->assignment.slots, gates, m->gate_mean, m->gate_std, V->gate_mean,
                  V->gate_std);
}

/* ---- truncated operands ---- */

/* Truncated operands on the way to each tensor: intermediates, x, and weights (the last two where they
 * are not representable, and lose something). Two a product; H's counted twice in A, dA's and H's in dH. What
 * a weight w = p(r) loses with r is et_systematic.scores. */
static const struct {
    const char *tensor;
    int intermediates, x, weights;
} truncated[] = {
    {"fwd.logits", 0, 1, 1},        {"fwd.gates", 0, 1, 1},
    {"route.slot_weight", 0, 1, 1}, {"route.margin", 0, 1, 1},
    {"route.cutoff", 0, 1, 1},      {"route.pool_cutoff", 0, 1, 1},
    {"fwd.slot_pre", 0, 1, 1},      {"fwd.slot_act", 0, 2, 2},
    {"fwd.slot_out", 1, 2, 3},      {"fwd.shared_pre", 0, 1, 1},
    {"fwd.shared_act", 0, 2, 2},    {"fwd.shared_out", 1, 2, 3},
    {"fwd.shared_weight", 0, 1, 1}, {"fwd.y", 1, 3, 4},
    {"loss.aux", 0, 1, 1},          {"loss.z", 0, 2, 2},
    {"bwd.slot_weight", 1, 2, 3},   {"bwd.slot_out", 0, 1, 1},
    {"bwd.slot_act", 1, 1, 2},      {"bwd.slot_pre", 1, 2, 3},
    {"bwd.shared_weight", 1, 2, 3}, {"bwd.shared_out", 0, 1, 1},
    {"bwd.shared_act", 1, 1, 2},    {"bwd.shared_pre", 1, 2, 3},
    {"bwd.logits", 1, 3, 4},        {"bwd.x", 2, 3, 5},
    {"bwd.w_router", 2, 4, 4},      {"bwd.w_up", 2, 3, 3},
    {"bwd.w_down", 2, 3, 3},        {"bwd.shared_up", 2, 3, 3},
    {"bwd.shared_down", 2, 3, 3},   {"state.ema", 0, 1, 1},
    {"metric.logit_mean", 0, 1, 1}, {"metric.logit_std", 0, 1, 1},
    {"metric.gate_mean", 0, 1, 1},  {"metric.gate_std", 0, 1, 1},
    {"metric.cutoff_gap", 0, 1, 1}, {"metric.cutoff_gap_abs", 0, 1, 1},
};

/* sum (round(v) - v) v and sum v^2: their ratio is the factor that rounding puts on values as a whole. */
typedef struct factor {
    double eu, uu;
} factor;

static double factor_of(factor f)
{
    return f.uu > 0 ? fabs(f.eu / f.uu) : 0;
}

/* Of `count` values `stride` apart. */
static factor rounding_factor(const rounding *r, size_t count, size_t stride, const et_real *values)
{
    factor f = {0};
    for (size_t i = 0; i < count; i++) {
        double value = (double)values[i * stride];
        f.eu += rounding_moves(r, value) * value;
        f.uu += value * value;
    }
    return f;
}

/* sum over rows of a_ri a_rj */
static double inner(size_t rows, size_t step, const et_real *a, size_t i, size_t j)
{
    double sum = 0;
    for (size_t r = 0; r < rows; r++) sum += (double)a[r * step + i] * (double)a[r * step + j];
    return sum;
}

/* |dr W_r| / |dx|, where |dr W_r|^2 = sum_ij (dr' dr)_ij (W_r W_r')_ij. */
static double router_share(const et_step *s)
{
    size_t n = s->c.experts, d = s->c.d_model, N = s->c.tokens;
    double router = 0, all = 0;
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j <= i; j++) {
            double product = 0;
            for (size_t c = 0; c < d; c++)
                product += (double)s->in.router[i * d + c] * (double)s->in.router[j * d + c];
            router += (i == j ? 1 : 2) * product * inner(N, n, s->bwd.logits, i, j);
        }
    for (size_t i = 0; i < N * d; i++) all += (double)s->bwd.x[i] * (double)s->bwd.x[i];
    return all > 0 ? sqrt(fmax(router, 0) / all) : 1;
}

/* sum_j p_j r_j over the members of gate (t, i)'s softmax. */
static double mean_logit(const et_step *s, size_t t, size_t i)
{
    size_t n = s->c.experts, N = et_case_micro_tokens(&s->c), first = t / N * N;
    bool tokens = s->c.gate == ET_GATE_SOFTMAX_TOKENS;
    double mean = 0;
    for (size_t j = 0; j < (tokens ? N : n); j++) {
        size_t at = tokens ? (first + j) * n + i : t * n + j;
        mean += (double)s->fwd.gates[at] * (double)s->fwd.logits[at];
    }
    return mean;
}

/* dp/p when all logits change by the same part of themselves, for one of it. */
static double gate_change(const et_step *s, size_t t, size_t i)
{
    size_t at = t * s->c.experts + i;
    double r = (double)s->fwd.logits[at];
    switch (s->c.gate) {
    case ET_GATE_SIGMOID: return (1 - (double)s->fwd.gates[at]) * r;
    case ET_GATE_RELU: return 1;
    default: return r - mean_logit(s, t, i);
    }
}

/* by->gates, and by->scores: of w = p / T it is p's change without the mean of them. */
static void find_score_changes(const et_step *s, et_systematic *by)
{
    const et_assignment *a = &s->assignment;
    size_t n = s->c.experts;
    double change = 0, squares = 0;
    for (size_t t = 0; t < s->c.tokens; t++) {
        double mean = 0;
        for (size_t i = 0; i < n; i++) by->gates = fmax(by->gates, fabs(gate_change(s, t, i)));
        for (int pass = s->c.norm == ET_NORM_SUM ? 0 : 1; pass < 2; pass++)
            for (int32_t k = a->token_offsets[t]; k < a->token_offsets[t + 1]; k++) {
                size_t slot = (size_t)a->token_slots[k];
                double w = (double)s->fwd.slot_weight[slot];
                double own = gate_change(s, t, (size_t)a->slot_expert[slot]);
                if (pass == 0) mean += w * own;
                if (pass == 0) continue;
                by->scores.most = fmax(by->scores.most, fabs(own - mean));
                change += fabs(own - mean) * w * w;
                squares += w * w;
            }
    }
    if (squares > 0) by->scores.whole = change / squares;
}

/* Of values [N,n], expert by expert, that change by e [N,n]. */
static et_shift column_shift(size_t N, size_t n, const et_real *e, const et_real *values)
{
    et_shift shift = {0};
    factor all = {0};
    for (size_t i = 0; i < n; i++) {
        factor f = {0};
        for (size_t k = i; k < N * n; k += n) {
            f.eu += (double)e[k] * (double)values[k];
            f.uu += (double)values[k] * (double)values[k];
        }
        shift.most = fmax(shift.most, factor_of(f));
        all.eu += f.eu;
        all.uu += f.uu;
    }
    shift.whole = factor_of(all);
    return shift;
}

/* by->gate, logits and router. */
static et_status find_shifts_of_scores(const et_step *s, const et_profile *p, et_systematic *by,
                                       et_error *error)
{
    const rounding gate = et_rounding_at(p, ET_GATES), logit = et_rounding_at(p, ET_LOGITS),
                   last = et_rounding_coarser(p, ET_OPERANDS, ET_LOGITS);
    size_t N = s->c.tokens, n = s->c.experts;
    et_moe moe = et_step_layer(s);
    void *room;
    et_status status = et_allocate(&room, N * n, sizeof(et_real), "dr", error);
    if (status != ET_OK) return status;
    et_real *e = room;
    for (size_t k = 0; k < N * n; k++)
        e[k] = (et_real)rounding_moves(&gate, (double)s->fwd.gates[k]);
    by->gate = column_shift(N, n, e, s->fwd.gates);
    status = et_alike_dr(&moe, p, &logit, &s->assignment, &s->fwd, &s->bwd, e, error);
    if (status == ET_OK) by->logits = by->router = column_shift(N, n, e, s->bwd.logits);
    if (status == ET_OK && last.bits < logit.bits) {
        status = et_alike_dr(&moe, p, &last, &s->assignment, &s->fwd, &s->bwd, e, error);
        if (status == ET_OK) by->router = column_shift(N, n, e, s->bwd.logits);
    }
    free(room);
    return status;
}

/* Of slots [S,width] and of the shared expert's rows [N,width], or NULL: a whole tensor is of the routed
 * experts, or of the shared one. */
static et_shift slot_shift(const et_step *s, rounding r, size_t width, const et_real *slots,
                           const et_real *shared)
{
    const et_assignment *a = &s->assignment;
    et_shift shift = {0};
    factor all = {0};
    if (r.bits > 24) return shift;
    for (size_t i = 0; i < a->experts; i++) {
        factor f = rounding_factor(&r, (size_t)a->load[i] * width, 1,
                                   slots + (size_t)a->expert_offsets[i] * width);
        shift.most = fmax(shift.most, factor_of(f));
        all.eu += f.eu;
        all.uu += f.uu;
    }
    shift.whole = factor_of(all);
    if (!shared) return shift;
    double own = factor_of(rounding_factor(&r, s->c.tokens * width, 1, shared));
    return (et_shift){fmax(shift.whole, own), fmax(shift.most, own)};
}

static bool any_parameter_errs(const et_step *s, const et_profile *p)
{
    const rounding r = et_rounding_at(p, ET_OPERANDS);
    const et_case *c = &s->c;
    const et_step_inputs *in = &s->in;
    size_t n = c->layer == ET_MOE ? c->experts : 1, size = n * c->d_expert * c->d_model;
    size_t shared = c->shared_d_expert * c->d_model;
    return et_rounding_changes(&r, n * c->d_model, in->router) || et_rounding_changes(&r, size, in->up) ||
           et_rounding_changes(&r, size, in->down) || et_rounding_changes(&r, shared, in->shared_up) ||
           et_rounding_changes(&r, shared, in->shared_down);
}

static et_systematic find_systematic(const et_step *s, const et_profile *p)
{
    et_systematic by = {0};
    if (s->c.layer == ET_MOE) {
        by.upstream = slot_shift(s, et_rounding_coarser(p, ET_INTERMEDIATES, ET_OPERANDS),
                                 s->c.d_model, s->bwd.slot_out, s->bwd.shared_out);
        by.weight =
            slot_shift(s, et_rounding_at(p, ET_GATES), 1, s->fwd.slot_weight, s->fwd.shared_weight);
        by.router_share = router_share(s);
    }
    const rounding r = et_rounding_at(p, ET_OPERANDS);
    const et_case *c = &s->c;
    const et_step_inputs *in = &s->in;
    by.parameters = any_parameter_errs(s, p);
    const rounding intermediate = et_rounding_at(p, ET_INTERMEDIATES);
    by.dy = et_rounding_changes(&intermediate, c->tokens * c->d_model, in->dy);
    if (!p->truncate_operands) return by;
    by.each = 0.72 * ldexp(1, -p->bits[ET_OPERANDS]);
    by.x = et_rounding_changes(&r, c->tokens * c->d_model, in->x);
    if (c->layer == ET_MOE && (by.x || by.parameters)) find_score_changes(s, &by);
    return by;
}

et_status et_noise_systematic(et_systematic *by, const et_step *s, const et_profile *p,
                              et_error *error)
{
    *by = find_systematic(s, p);
    return s->c.layer == ET_MOE ? find_shifts_of_scores(s, p, by, error) : ET_OK;
}

static double shrinks(const et_systematic *by, const char *tensor)
{
    for (size_t i = 0; by->each > 0 && i < sizeof truncated / sizeof *truncated; i++)
        if (strcmp(truncated[i].tensor, tensor) == 0)
            return by->each * (truncated[i].intermediates + (by->x ? truncated[i].x : 0) +
                               (by->parameters ? truncated[i].weights : 0));
    return 0;
}

static double size_of(const et_shift *shift, bool whole)
{
    return whole ? shift->whole : shift->most;
}

double et_noise_slope(const et_systematic *by, const char *tensor, bool whole)
{
    bool y = strcmp(tensor, "fwd.y") == 0, weighed = y || strncmp(tensor, "bwd.", 4) == 0;
    /* a group's values may all have significands near 1, where truncation takes most: 1 in place of 0.72 */
    double slope = shrinks(by, tensor) * (whole ? 1 : 1.4);
    double score = by->each * ((by->x ? 1 : 0) + (by->parameters ? 1 : 0));
    if (weighed) slope += size_of(&by->upstream, whole);
    if (weighed || strcmp(tensor, "route.slot_weight") == 0 ||
        strcmp(tensor, "fwd.shared_weight") == 0)
        slope += size_of(&by->weight, whole) + score * size_of(&by->scores, whole);
    if (strcmp(tensor, "fwd.gates") == 0 || strcmp(tensor, "fwd.shared_weight") == 0)
        slope += score * by->gates;
    if (strcmp(tensor, "fwd.gates") == 0) slope += size_of(&by->gate, whole);
    if (strcmp(tensor, "bwd.logits") == 0) slope += size_of(&by->logits, whole);
    if (strcmp(tensor, "bwd.w_router") == 0) slope += size_of(&by->router, whole);
    if (strcmp(tensor, "bwd.x") == 0)
        slope += size_of(&by->router, whole) * (whole ? by->router_share : 1);
    return slope;
}

/* V += (shrinking * value)^2 wherever there is an error at all. */
static et_status shrink(const step_noise *q, et_error *error)
{
    et_tensor_out values[ET_MAX_STEP_TENSORS], variances[ET_MAX_STEP_TENSORS];
    size_t have = et_step_tensors(q->s, false, values);
    size_t count = et_step_tensors(q->V, false, variances);
    et_systematic systematic;
    et_status status = et_noise_systematic(&systematic, q->s, q->p, error);
    for (size_t i = 0; status == ET_OK && i < count; i++) {
        double by = shrinks(&systematic, variances[i].name);
        if (strcmp(variances[i].name, "fwd.logits") == 0) continue; /* moe_noise.c */
        size_t k = 0, elements = 1;
        while (k < have && strcmp(values[k].name, variances[i].name) != 0) k++;
        if (by == 0 || k == have) continue;
        for (size_t r = 0; r < values[k].rank; r++) elements *= values[k].shape[r];
        const et_real *v = values[k].values;
        et_real *V = (et_real *)(uintptr_t)variances[i].values; /* the variance step's own array */
        for (size_t j = 0; j < elements; j++)
            if (V[j] > 0 && isfinite((double)v[j])) V[j] += (et_real)(by * by) * v[j] * v[j];
    }
    return status;
}

/* ---- all of it ---- */

static et_status find_crowd(step_noise *q, et_error *error)
{
    const et_case *c = &q->s->c;
    const rounding r = et_rounding_at(q->p, ET_OPERANDS);
    double directions;
    q->crowd = 1;
    q->lossy_x = et_rounding_changes(&r, c->tokens * c->d_model, q->s->in.x);
    if (!(q->s->loss_aux || q->s->loss_z) ||
        !et_rounding_changes(&r, c->experts * c->d_model, q->s->in.router))
        return ET_OK;
    et_status status =
        et_find_directions(&directions, c->tokens, c->d_model, q->s->in.x, NULL, error);
    if (status == ET_OK) q->crowd = fmax(1, (double)c->tokens / directions);
    return status;
}

static et_status moe_noise(step_noise *q, et_error *error)
{
    const et_step *s = q->s;
    et_moe moe = et_step_layer(s);
    et_status status = find_crowd(q, error);
    if (status != ET_OK) return status;
    /* The losses' shares need V[r] and V[p], and et_moe_noise needs the losses' shares: so the scores'
     * noise is had first, by itself. */
    if ((status = et_moe_score_noise(&moe, q->p, s->in.x, &s->fwd, &q->V->fwd, error)) ||
        (status = losses_noise(q, error)) ||
        (status = et_moe_noise(&moe, q->p, s->in.x, s->in.dy, &s->assignment, &s->fwd, &s->bwd,
                               &q->V->fwd, &q->V->bwd, error)))
        return status;
    if (s->loss_z && (status = z_in_dx(q, error)) != ET_OK) return status;
    routing_noise(q);
    if (s->route.threshold) thresholds_noise(q);
    if (s->c.eval)
        stored_state_noise(q);
    else
        state_noise(q);
    metrics_noise(q);
    return ET_OK;
}

/* Near the end of binary64's range variances overflow on the way, and inf - inf or 0 inf is NaN. Nobody knows
 * then how far a kernel may be off: any distance. */
static void unknown_is_infinite(et_step *variance)
{
    et_tensor_out tensors[ET_MAX_STEP_TENSORS];
    size_t have = et_step_tensors(variance, false, tensors);
    for (size_t i = 0; i < have; i++) {
        size_t count = 1;
        bool real = tensors[i].source == ET_FROM_F64 || tensors[i].source == ET_FROM_F32;
        if (!real || strncmp(tensors[i].name, "in.", 3) == 0) continue;
        for (size_t r = 0; r < tensors[i].rank; r++) count *= tensors[i].shape[r];
        et_real *V = (et_real *)(uintptr_t)tensors[i].values;
        for (size_t e = 0; e < count; e++) V[e] = isnan(V[e]) ? (et_real)INFINITY : V[e];
    }
}

et_status et_noise_by_chance(et_step *variance, const et_step *s, const et_profile *p,
                             et_error *error)
{
    step_noise q = {.s = s, .V = variance, .p = p, .sum = et_rounding_at(p, ET_ACCUMULATOR)};
    q.a = 0.18 * ldexp(1, -2 * p->bits[ET_ACCUMULATOR]);
    et_status status = et_step_take_like(variance, s, error);
    if (status == ET_OK)
        status = et_find_twins(&q.twins, s->c.tokens, s->c.d_model, s->in.x, s->in.dy, error);
    if (status == ET_OK)
        status = s->c.layer == ET_MOE ? moe_noise(&q, error) : dense_noise(&q, error);
    if (status == ET_OK && p->truncate_operands) status = shrink(&q, error);
    et_free_twins(&q.twins);
    if (status == ET_OK) unknown_is_infinite(variance);
    if (status != ET_OK) et_step_free(variance);
    return status;
}

et_status et_step_noise(et_step *variance, const et_step *s, const et_profile *p, et_error *error)
{
    ET_ARITHMETIC;
    et_status status = et_noise_by_chance(variance, s, p, error);
    if (status != ET_OK || !any_parameter_errs(s, p)) return status;
    status = et_noise_of_parameters(variance, s, p, error);
    if (status == ET_OK) unknown_is_infinite(variance);
    if (status != ET_OK) et_step_free(variance);
    return status;
}
