/* moe_noise.c: the variance of an MoE layer's rounding errors. See et_moe_noise in etref/moe.h.
 *
 * In the order of the forward and the backward pass (moe.c); experts' own errors are ffn_noise.c's, gates'
 * gate.c's. What is added here:
 *
 *     r    V[r] = V[x W_r'] + site(r)
 *     w    none, fanout: w = p / n_t          V[w] = V[p] / n_t^2 + site
 *          sum: w_i = p_i / T, T = sum_j p_j  V[w_i] = sum_j ((  [i=j] - w_i) / T)^2 V[p_j] + site
 *     y    V[y] = sum over slots of w^2 V[f] + f^2 V[w], the same with s and f_shared, + acc + site
 *     dr   dr = sum_k M_k dw_k over the token's slots k (and its shared expert, where the anchor weighs
 *          it); M_k is the gate's Jacobian times the norm's. V[dr_i] = sum_k M_ik^2 V[dw_k] + the gate's
 *          own error + site
 *     dx   = sum of experts' shares + sum_k q_k dw_k, with q_k = M_k' W_r the way from dw_k through the
 *          router: q_k^2 V[dw_k], and 2 q_k cov(share of dx, dw_k), since both come from the same H
 *     dW_r = dr' x: twins' dw are summed before they are squared, and so is what the weights' rounding brings
 *     into dw of tokens with parallel dy
 *     p, dr, and what comes of dr: rounding that is no matter of chance, alike.c
 *     experts with the same weights (a model whose experts begin as copies of one) make the same errors
 *     of the same token: a slot's V[f] counts as many times as the token has such slots, which is what
 *     (sum w)^2 is at most of sum w^2
 *
 * Approximations, all of the size of the gates' errors: errors of different gate values of one token
 * count as independent in y; w's error reaches the elements of dx one by one. They matter where gates
 * are as coarse as everything else, and cancel on the average over columns.
 */
#include "etref/moe.h"
#include "ref/base/arithmetic.h"
#include "ref/base/memory.h"
#include "ref/base/parallel.h"
#include "ref/base/product_noise.h"
#include "ref/base/rounding.h"
#include "ref/layers/alike.h"
#include "ref/layers/check.h"
#include "ref/layers/twins.h"

#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

/* Scratch for the largest expert, shared for all; and what concerns the inputs. */
typedef struct noise_room {
    const et_profile *p;
    et_token_twins twins;
    et_real *x, *router, *up, *down, *shared_up, *shared_down; /* variances, NULL: exact */
    et_real *from_dw, *from_sums;  /* [N,n] sum_k M_ik^2 V[dw_k]; the same with twins summed */
    et_real *from_common;          /* [n,d] what dw_common brings into V[dW_r] */
    et_real *together;             /* [n,d] the same of one expert, before it is squared */
    et_real *rows[6];              /* [most,d] each */
    et_real *w, *Vw, *dw, *dw_sum; /* [most] */
    et_real *dw_common;            /* [most] see et_weight_noise */
    et_real *column;               /* [n] */
    int32_t *leaders, *row_of;     /* [2 most], [N] */
    int32_t *model; /* [n+1] the first expert with the same weights; [n]: the shared one's */
    bool copies;    /* there are such */
    double *terms;  /* [n+1] for each thread */
    et_product_room room;
    void *owned[16];
    size_t owned_count;
} noise_room;

enum { ROWS_X, ROWS_VX, ROWS_DY, ROWS_DX, ROWS_SHARED, ROWS_SPARE };

static et_status take(noise_room *s, void *out, size_t count, size_t size, et_error *error)
{
    void *room;
    et_status status = et_allocate(&room, count, size, "noise", error);
    if (status != ET_OK) return status;
    memcpy(out, &room, sizeof room);
    s->owned[s->owned_count++] = room;
    return ET_OK;
}

static void free_room(noise_room *s)
{
    for (size_t i = 0; i < s->owned_count; i++) free(s->owned[i]);
    et_product_room_free(&s->room);
    et_free_twins(&s->twins);
}

/* The variance of rounding a parameter to an operand; *out stays NULL where all are representable. */
static et_status parameter(noise_room *s, size_t count, const et_real *value, et_real **out,
                           et_error *error)
{
    const rounding r = et_rounding_at(s->p, ET_OPERANDS);
    if (!et_rounding_changes(&r, count, value)) return ET_OK;
    et_status status = take(s, out, count, sizeof(et_real), error);
    for (size_t i = 0; status == ET_OK && i < count; i++)
        (*out)[i] = (et_real)rounding_site(&r, (double)value[i], 0);
    return status;
}

/* Rows that one call of ffn_noise.c may see: all tokens for the shared expert, else the largest load. */
static size_t most_rows(const et_moe *moe, const et_assignment *a)
{
    size_t most = moe->hs > 0 ? moe->N : 1;
    for (size_t i = 0; i < a->experts; i++)
        if ((size_t)a->load[i] > most) most = (size_t)a->load[i];
    return most;
}

/* Weights of expert i; n: the shared one. */
static const et_real *weights_of(const et_moe *moe, size_t i, bool up)
{
    size_t each = moe->h * moe->d;
    if (i == moe->n) return up ? moe->shared_up : moe->shared_down;
    return (up ? moe->up : moe->down) + i * each;
}

static bool same_weights(const et_moe *moe, size_t i, size_t j)
{
    size_t bytes = moe->h * moe->d * sizeof(et_real);
    return memcmp(weights_of(moe, i, true), weights_of(moe, j, true), bytes) == 0 &&
           memcmp(weights_of(moe, i, false), weights_of(moe, j, false), bytes) == 0;
}

static void find_models(const et_moe *moe, noise_room *s)
{
    size_t count = moe->n + (moe->hs == moe->h ? 1 : 0);
    for (size_t i = 0; i <= moe->n; i++) s->model[i] = (int32_t)i;
    for (size_t i = 1; i < count; i++)
        for (size_t j = 0; j < i && s->model[i] == (int32_t)i; j++)
            if (s->model[j] == (int32_t)j && same_weights(moe, i, j)) {
                s->model[i] = (int32_t)j;
                s->copies = true;
            }
}

static et_status take_room(noise_room *s, const et_moe *moe, const et_real *x, const et_real *dy,
                           const et_assignment *a, et_error *error)
{
    size_t N = moe->N, n = moe->n, d = moe->d, most = most_rows(moe, a);
    et_real *small;
    et_status status;
    if ((status = et_find_twins(&s->twins, N, d, x, dy, error)) ||
        (status = parameter(s, N * d, x, &s->x, error)) ||
        (status = parameter(s, n * d, moe->router, &s->router, error)) ||
        (status = parameter(s, n * moe->h * d, moe->up, &s->up, error)) ||
        (status = parameter(s, n * d * moe->h, moe->down, &s->down, error)) ||
        (status = parameter(s, moe->hs * d, moe->shared_up, &s->shared_up, error)) ||
        (status = parameter(s, d * moe->hs, moe->shared_down, &s->shared_down, error)) ||
        (status = take(s, &s->from_dw, N * n, sizeof(et_real), error)) ||
        (status = take(s, &s->from_sums, N * n, sizeof(et_real), error)) ||
        (status = take(s, &s->from_common, n * d, sizeof(et_real), error)) ||
        (status = take(s, &s->together, n * d, sizeof(et_real), error)) ||
        (status = take(s, &s->rows[0], 6 * most * d, sizeof(et_real), error)) ||
        (status = take(s, &small, 5 * most + n, sizeof(et_real), error)) ||
        (status = take(s, &s->leaders, 2 * most + N, sizeof(int32_t), error)) ||
        (status = take(s, &s->model, n + 1, sizeof(int32_t), error)) ||
        (status =
             take(s, &s->terms, (size_t)omp_get_max_threads() * (n + 1), sizeof(double), error)))
        return status;
    for (size_t i = 1; i < 6; i++) s->rows[i] = s->rows[0] + i * most * d;
    s->w = small;
    s->Vw = small + most;
    s->dw = small + 2 * most;
    s->dw_sum = small + 3 * most;
    s->dw_common = small + 4 * most;
    s->column = small + 5 * most;
    s->row_of = s->leaders + 2 * most;
    find_models(moe, s);
    return ET_OK;
}

/* How many of token t's experts have the weights of expert e, itself included. */
static et_real copies_of(const et_moe *moe, const et_assignment *a, const noise_room *s, size_t t,
                         size_t e)
{
    et_real count = 0;
    if (!s->copies) return 1;
    for (int32_t j = a->token_offsets[t]; j < a->token_offsets[t + 1]; j++)
        count += s->model[a->slot_expert[a->token_slots[j]]] == s->model[e];
    return count + (moe->hs > 0 && s->model[moe->n] == s->model[e] ? 1 : 0);
}

/* ---- score and weigh ---- */

static et_status score_noise(const et_moe *moe, const et_real *x, const et_moe_values *v,
                             et_moe_values *V, noise_room *s, et_error *error)
{
    size_t N = moe->N, n = moe->n;
    et_noisy left = {et_rows(x, moe->d), s->x, NULL, 0};
    et_noisy right = {et_transposed(moe->router, moe->d), s->router, NULL, 0};
    et_status status = et_product_noise(moe->engine, s->p, &s->room, N, n, moe->d, left, right,
                                        v->logits, ET_LOGITS, false, V->logits, error);
    if (status != ET_OK) return status;
    /* truncated operands lose to one side: 0.72 2^-p each, of all of r (ref/oracle/noise.h) */
    int lossy = !s->p->truncate_operands ? 0 : (s->x ? 1 : 0) + (s->router ? 1 : 0);
    double lost = 0.72 * lossy * ldexp(1, -s->p->bits[ET_OPERANDS]);
    for (size_t i = 0; lossy > 0 && i < N * n; i++)
        V->logits[i] += (et_real)(lost * lost) * v->logits[i] * v->logits[i];
    for (size_t t = 0; t < N; t += moe->gate_tokens)
        et_gate_noise(moe->gate, s->p, moe->gate_tokens, n, v->logits + t * n, v->gates + t * n,
                      v->anchor ? v->anchor + t : NULL, V->logits + t * n, s->x != NULL,
                      V->gates + t * n, v->anchor ? V->anchor + t : NULL);
    return et_alike_gates(s->p, N, n, v->gates, V->gates, error);
}

/* Here gates of every kind are taken gate_tokens at a time. */
static et_status check_layer(const et_moe *moe, et_error *error)
{
    et_status status = et_moe_check(moe, error);
    if (status == ET_OK && (moe->gate_tokens == 0 || moe->N % moe->gate_tokens != 0))
        status = et_fail(error, ET_EINVAL, "et_moe: gate_tokens = %zu does not divide N = %zu",
                         moe->gate_tokens, moe->N);
    return status;
}

et_status et_moe_score_noise(const et_moe *moe, const et_profile *p, const et_real *x,
                             const et_moe_values *v, et_moe_values *V, et_error *error)
{
    ET_ARITHMETIC;
    noise_room s = {.p = p};
    et_status status;
    if ((status = check_layer(moe, error)) || (status = et_moe_check_scores(moe, v, error)))
        return status;
    if ((status = parameter(&s, moe->N * moe->d, x, &s.x, error)) == ET_OK &&
        (status = parameter(&s, moe->n * moe->d, moe->router, &s.router, error)) == ET_OK)
        status = score_noise(moe, x, v, V, &s, error);
    free_room(&s);
    return status;
}

/* n_t, the fanout with the shared expert counted; 1 where nothing is divided by it. */
static double fanout_divisor(const et_moe *moe, const et_assignment *a, size_t t)
{
    return moe->norm == ET_NORM_FANOUT ? (double)(a->fanout[t] + (moe->hs > 0 ? 1 : 0)) : 1;
}

static size_t slot_expert(const et_assignment *a, size_t slot)
{
    return (size_t)a->slot_expert[slot];
}

/* T = sum of the gate values on token t's slots. */
static double gate_sum(const et_moe *moe, const et_assignment *a, const et_moe_values *v, size_t t)
{
    double T = 0;
    for (int32_t j = a->token_offsets[t]; j < a->token_offsets[t + 1]; j++)
        T += (double)v->gates[t * moe->n + slot_expert(a, (size_t)a->token_slots[j])];
    return T;
}

/* V[w] before its rounding, of one slot. */
static double weight_noise(const et_moe *moe, const et_assignment *a, const et_moe_values *v,
                           const et_moe_values *V, size_t t, size_t slot)
{
    const et_real *Vp = V->gates + t * moe->n;
    double w = (double)v->slot_weight[slot];
    if (moe->norm != ET_NORM_SUM) {
        double divide_by = fanout_divisor(moe, a, t);
        return (double)Vp[slot_expert(a, slot)] / (divide_by * divide_by);
    }
    double T = gate_sum(moe, a, v, t), sum = 0, largest = 0;
    for (int32_t j = a->token_offsets[t]; j < a->token_offsets[t + 1]; j++) {
        size_t other = (size_t)a->token_slots[j];
        double deviation = sqrt((double)Vp[slot_expert(a, other)]);
        double by = T > 0 ? ((other == slot ? 1 : 0) - w) * (deviation / T) : 0;
        sum += by * by;
        largest = fmax(largest, deviation);
    }
    /* beyond first order it may be anything from 0 to 1, six deviations away; alone it is 1 */
    return a->fanout[t] > 1 && 16 * largest > T ? fmax(sum, 1.0 / 36) : sum;
}

static et_status weigh_noise(const et_moe *moe, const et_assignment *a, const et_moe_values *v,
                             et_moe_values *V, const noise_room *s, et_error *error)
{
    const rounding gate = et_rounding_at(s->p, ET_GATES), sum = et_rounding_at(s->p, ET_ACCUMULATOR);
    for (size_t slot = 0; slot < a->slots; slot++) {
        double w = (double)v->slot_weight[slot];
        double in = weight_noise(moe, a, v, V, (size_t)a->slot_token[slot], slot);
        if (moe->norm == ET_NORM_SUM) /* T and the division */
            in += 2 * rounding_site(&sum, w, in);
        /* w = p where nothing divides it: already rounded */
        V->slot_weight[slot] =
            (et_real)(in + (moe->norm == ET_NORM_NONE ? 0 : rounding_site(&gate, w, in)));
    }
    for (size_t t = 0; moe->hs > 0 && t < moe->N; t++) {
        double divide_by = fanout_divisor(moe, a, t);
        double in = moe->anchor_weighs_shared ? (double)V->anchor[t] / (divide_by * divide_by) : 0;
        V->shared_weight[t] = (et_real)(in + rounding_site(&gate, (double)v->shared_weight[t], in));
    }
    et_status status = et_alike_gates(s->p, a->slots, 1, v->slot_weight, V->slot_weight, error);
    if (status == ET_OK && moe->hs > 0)
        status = et_alike_gates(s->p, moe->N, 1, v->shared_weight, V->shared_weight, error);
    return status;
}

/* ---- from dw to dr ---- */

/* M_k: dr_i per unit of dw of this slot, for all experts i, into s->column. For softmax_tokens only the
 * token's own part: the rest is spread over all tokens (gate.c carries it). */
static void dr_per_dw(const et_moe *moe, const et_assignment *a, const et_moe_values *v, size_t t,
                      size_t slot, const noise_room *s)
{
    size_t n = moe->n, e = slot_expert(a, slot);
    const et_real *r = v->logits + t * n, *p = v->gates + t * n;
    double T = moe->norm == ET_NORM_SUM ? gate_sum(moe, a, v, t) : fanout_divisor(moe, a, t);
    for (size_t i = 0; i < n; i++) {
        double by = (double)et_gate_slope(moe->gate, r[i], p[i], p[e], i == e);
        if (moe->norm == ET_NORM_SUM)
            for (int32_t j = a->token_offsets[t]; j < a->token_offsets[t + 1]; j++) {
                size_t other = slot_expert(a, (size_t)a->token_slots[j]);
                by -= (double)v->slot_weight[slot] *
                      (double)et_gate_slope(moe->gate, r[i], p[i], p[other], i == other);
            }
        s->column[i] = (et_real)(T != 0 ? by / T : 0);
    }
}

/* norm: sum, of one token: dp = (dw - C) / T with C = sum_j w_j dw_j. */
typedef struct norm_sum {
    double T, C, VT, VC;
} norm_sum;

/* |dw| with its error: that of f(x) may be larger than what is left of dw, and then roundings follow it. */
static double noisy_size(const et_moe_grads *g, const et_moe_grads *G, size_t slot)
{
    double dw = (double)g->slot_weight[slot];
    return sqrt(dw * dw + (double)G->slot_weight[slot]);
}

/* V[C] is what C has beside the errors of dw. */
static norm_sum norm_sum_of(const et_moe *moe, const et_assignment *a, const et_moe_values *v,
                            const et_moe_grads *g, const et_moe_values *V, const et_moe_grads *G,
                            size_t t, const noise_room *s)
{
    norm_sum sum = {gate_sum(moe, a, v, t), 0, 0, 0};
    double sizes = 0, squares = 0;
    for (int32_t j = a->token_offsets[t]; j < a->token_offsets[t + 1]; j++) {
        size_t slot = (size_t)a->token_slots[j];
        double w = (double)v->slot_weight[slot], size = noisy_size(g, G, slot);
        sum.C += w * (double)g->slot_weight[slot];
        sizes += w * size;
        squares += w * size * w * size;
        sum.VC += size * size * (double)V->slot_weight[slot];
        sum.VT += (double)V->gates[t * moe->n + slot_expert(a, slot)];
    }
    et_sum_noise c = et_sum_noise_of(s->p, (size_t)a->fanout[t]);
    sum.VC += c.square * sizes * sizes + 2 * c.squares * squares;
    return sum;
}

/* What rounding dw, C and their difference brings into dp times `by`. dw and C may cancel, their
 * roundings do not: a kernel may divide each of them by T. */
static double difference_noise(const norm_sum *sum, double dw, double size, double by,
                               const noise_room *s)
{
    const rounding site = et_rounding_at(s->p, ET_ACCUMULATOR);
    return rounding_site(&site, by * (dw - sum->C), 1) +
           by * by * (rounding_site(&site, size, 1) + rounding_site(&site, sum->C, 1));
}

/* What the norm's own arithmetic brings into dr: C's error, one for all slots of the token, that of T, a
 * common factor, and the roundings of each dp. */
static void norm_backward_noise(const et_moe *moe, const et_assignment *a, const et_moe_values *v,
                                const et_moe_grads *g, const et_moe_values *V,
                                const et_moe_grads *G, size_t t, const noise_room *s, et_real *Vdr)
{
    size_t n = moe->n;
    const et_real *r = v->logits + t * n, *p = v->gates + t * n;
    norm_sum sum = norm_sum_of(moe, a, v, g, V, G, t, s);
    if (sum.T == 0) return;
    for (size_t i = 0; i < n; i++) {
        double all = 0, own = 0, of_T = (double)g->logits[t * n + i] * (sqrt(sum.VT) / sum.T);
        for (int32_t j = a->token_offsets[t]; j < a->token_offsets[t + 1]; j++) {
            size_t slot = (size_t)a->token_slots[j], e = slot_expert(a, slot);
            double slope = (double)et_gate_slope(moe->gate, r[i], p[i], p[e], i == e);
            double dw = (double)g->slot_weight[slot], by = slope / sum.T;
            all += by;
            own += difference_noise(&sum, dw, noisy_size(g, G, slot), by, s);
        }
        Vdr[i] += (et_real)(all * all * sum.VC + own + of_T * of_T);
    }
}

/* The same for dw of the shared expert, which the anchor weighs: dr_i = -p_i a_0 da_0. */
static void dr_per_shared(const et_moe *moe, const et_assignment *a, const et_moe_values *v,
                          size_t t, const noise_room *s)
{
    double by = (double)v->anchor[t] / fanout_divisor(moe, a, t);
    for (size_t i = 0; i < moe->n; i++)
        s->column[i] = (et_real)(-(double)v->gates[t * moe->n + i] * by);
}

/* ---- the experts, there and back ---- */

typedef struct expert_job {
    et_ffn f;
    et_ffn_parameter_noise W;
    size_t expert;         /* n: the shared one */
    size_t m, first;       /* rows; the first slot, or the first token of the shared expert */
    const int32_t *tokens; /* NULL: the shared expert, row t is token t */
} expert_job;

static size_t token_of(const expert_job *job, size_t row)
{
    return job->tokens ? (size_t)job->tokens[row] : row;
}

static void gather(const expert_job *job, const et_real *from, et_real *to)
{
    size_t d = job->f.d;
    for (size_t j = 0; j < job->m; j++)
        memcpy(to + j * d, from + token_of(job, j) * d, d * sizeof *to);
}

/* The rows' leaders: the first row of this expert with the same input (and dy). *any: two rows are twins. */
static et_twins row_twins(const expert_job *job, noise_room *s, bool *any)
{
    int32_t *input = s->leaders, *both = s->leaders + job->m;
    const int32_t *leader[2] = {s->twins.input, s->twins.both};
    *any = false;
    for (size_t kind = 0; kind < 2; kind++) {
        int32_t *out = kind == 0 ? input : both;
        for (size_t j = 0; j < job->m; j++) s->row_of[leader[kind][token_of(job, j)]] = -1;
        for (size_t j = 0; j < job->m; j++) {
            int32_t *row = &s->row_of[leader[kind][token_of(job, j)]];
            if (*row < 0) *row = (int32_t)j;
            out[j] = *row;
            *any |= out[j] != (int32_t)j;
        }
    }
    return (et_twins){input, both};
}

/* An expert's contributions to dr and dx through dw of its rows. */
static void through_router(const et_moe *moe, const et_assignment *a, const et_moe_values *v,
                           const expert_job *job, noise_room *s, const et_real *Vdw, et_real *Vdx)
{
    size_t n = moe->n, d = moe->d;
    memset(s->together, 0, n * d * sizeof *s->together);
    for (size_t j = 0; j < job->m; j++) {
        size_t t = token_of(job, j);
        const et_real *x = s->rows[ROWS_X] + j * d;
        et_real copies = copies_of(moe, a, s, t, job->expert);
        if (job->tokens)
            dr_per_dw(moe, a, v, t, job->first + j, s);
        else
            dr_per_shared(moe, a, v, t, s);
        et_real *q = s->rows[ROWS_SPARE]; /* one row: sum_i M_i W_r,i */
        memset(q, 0, d * sizeof *q);
        for (size_t i = 0; i < n; i++) {
            et_real by = s->column[i];
            if (by == 0) continue;
            s->from_dw[t * n + i] += copies * by * by * Vdw[j];
            s->from_sums[t * n + i] += copies * by * by * s->dw_sum[j];
            for (size_t c = 0; c < d; c++) q[c] += by * moe->router[i * d + c];
            for (size_t c = 0; s->dw_common[j] != 0 && c < d; c++)
                s->together[i * d + c] += by * s->dw_common[j] * x[c];
        }
        const et_real *shared = s->rows[ROWS_SHARED] + j * d;
        for (size_t c = 0; c < d; c++) {
            et_real v_c = copies * (q[c] * q[c] * Vdw[j] + 2 * q[c] * shared[c]);
            Vdx[t * d + c] += v_c; /* with the share's own variance, added before, never below 0 */
        }
    }
    for (size_t i = 0; i < n * d; i++) s->from_common[i] += s->together[i] * s->together[i];
}

/* One expert's rows: forward, backward, and on through its weights. v and V hold its tensors, without
 * x and dx; w its rows' weights. Vdw gets V[dw], rounded as a gate; dw its values. */
static et_status expert_noise(const et_moe *moe, const et_assignment *a,
                              const et_moe_values *values, const expert_job *job, const et_real *x,
                              const et_real *dy, const et_real *w, const et_real *Vw,
                              const et_real *dw, et_ffn_tensors v, et_ffn_tensors V, et_real *Vdw,
                              et_real *Vdx, bool feeds_router, noise_room *s, et_error *error)
{
    size_t m = job->m, d = moe->d;
    if (m == 0) return ET_OK;
    v.x = s->rows[ROWS_X];
    gather(job, x, v.x);
    if (s->x) {
        V.x = s->rows[ROWS_VX];
        gather(job, s->x, V.x);
    }
    gather(job, dy, s->rows[ROWS_DY]);
    V.dx = s->rows[ROWS_DX];
    et_status status = et_ffn_noise(&job->f, s->p, job->W, m, &v, &V, &s->room, error);
    if (status != ET_OK) return status;
    bool any;
    et_twins twins = row_twins(job, s, &any);
    et_upstream up = {s->rows[ROWS_DY], w, Vw};
    et_real *shared = feeds_router ? s->rows[ROWS_SHARED] : NULL;
    et_weight_noise weight = {s->dw, s->dw_sum, shared, s->dw_common};
    status = et_ffn_backward_noise(&job->f, s->p, job->W, m, &up, any ? &twins : NULL, &v, &V,
                                   &weight, &s->room, error);
    if (status != ET_OK) return status;
    const rounding gate = et_rounding_at(s->p, ET_GATES);
#pragma omp parallel for if (et_worth_threads(m * d))
    for (size_t j = 0; j < m; j++) {
        double in = (double)s->dw[j], site = rounding_site(&gate, (double)dw[j], in);
        Vdw[j] = (et_real)(in + site);
        s->dw_sum[j] += (et_real)(site * s->twins.boths[token_of(job, j)]);
        size_t t = token_of(job, j);
        et_real copies = copies_of(moe, a, s, t, job->expert);
        for (size_t c = 0; c < d; c++) Vdx[t * d + c] += copies * V.dx[j * d + c];
    }
    if (feeds_router) through_router(moe, a, values, job, s, Vdw, Vdx);
    return ET_OK;
}

static et_status experts_noise(const et_moe *moe, const et_real *x, const et_real *dy,
                               const et_assignment *a, const et_moe_values *v,
                               const et_moe_grads *g, et_moe_values *V, et_moe_grads *G,
                               noise_room *s, et_error *error)
{
    size_t d = moe->d, h = moe->h, size = h * d;
    et_status status = ET_OK;
    for (size_t i = 0; status == ET_OK && i < moe->n; i++) {
        size_t first = (size_t)a->expert_offsets[i];
        expert_job job = {{moe->engine, d, h, moe->up + i * size, moe->down + i * size, NULL},
                          {s->up ? s->up + i * size : NULL, s->down ? s->down + i * size : NULL},
                          i,
                          (size_t)a->load[i],
                          first,
                          a->slot_token + first};
        et_ffn_tensors values = {.H = v->slot_pre + first * h,
                                 .A = v->slot_act + first * h,
                                 .out = v->slot_out + first * d,
                                 .dO = g->slot_out + first * d,
                                 .dA = g->slot_act + first * h,
                                 .dH = g->slot_pre + first * h,
                                 .dup = g->up + i * size,
                                 .ddown = g->down + i * size};
        et_ffn_tensors variances = {.H = V->slot_pre + first * h,
                                    .A = V->slot_act + first * h,
                                    .out = V->slot_out + first * d,
                                    .dO = G->slot_out + first * d,
                                    .dA = G->slot_act + first * h,
                                    .dH = G->slot_pre + first * h,
                                    .dup = G->up + i * size,
                                    .ddown = G->down + i * size};
        status = expert_noise(moe, a, v, &job, x, dy, v->slot_weight + first,
                              V->slot_weight + first, g->slot_weight + first, values, variances,
                              G->slot_weight + first, G->x, true, s, error);
    }
    if (status != ET_OK || moe->hs == 0) return status;
    expert_job job = {{moe->engine, d, moe->hs, moe->shared_up, moe->shared_down, NULL},
                      {s->shared_up, s->shared_down},
                      moe->n,
                      moe->N,
                      0,
                      NULL};
    et_ffn_tensors values = {.H = v->shared_pre,
                             .A = v->shared_act,
                             .out = v->shared_out,
                             .dO = g->shared_out,
                             .dA = g->shared_act,
                             .dH = g->shared_pre,
                             .dup = g->shared_up,
                             .ddown = g->shared_down};
    et_ffn_tensors variances = {.H = V->shared_pre,
                                .A = V->shared_act,
                                .out = V->shared_out,
                                .dO = G->shared_out,
                                .dA = G->shared_act,
                                .dH = G->shared_pre,
                                .dup = G->shared_up,
                                .ddown = G->shared_down};
    return expert_noise(moe, a, v, &job, x, dy, v->shared_weight, V->shared_weight,
                        g->shared_weight, values, variances, G->shared_weight, G->x,
                        moe->anchor_weighs_shared, s, error);
}

/* ---- combine ---- */

/* The terms w f of y_tc, the shared expert's last; returns how many. */
static size_t terms_of(const et_moe *moe, const et_assignment *a, const et_moe_values *v, size_t t,
                       size_t c, double *terms)
{
    size_t count = 0, d = moe->d;
    for (int32_t j = a->token_offsets[t]; j < a->token_offsets[t + 1]; j++) {
        size_t slot = (size_t)a->token_slots[j];
        terms[count++] = (double)v->slot_weight[slot] * (double)v->slot_out[slot * d + c];
    }
    if (moe->hs > 0)
        terms[count++] = (double)v->shared_weight[t] * (double)v->shared_out[t * d + c];
    return count;
}

/* What the terms bring: w^2 V[f] + f^2 V[w]. */
static double terms_noise(const et_moe *moe, const et_assignment *a, const et_moe_values *v,
                          const et_moe_values *V, const noise_room *s, size_t t, size_t c)
{
    size_t d = moe->d, at = t * d + c;
    double in = 0;
    for (int32_t j = a->token_offsets[t]; j < a->token_offsets[t + 1]; j++) {
        size_t slot = (size_t)a->token_slots[j];
        double w = (double)v->slot_weight[slot], f = (double)v->slot_out[slot * d + c];
        double copies = (double)copies_of(moe, a, s, t, slot_expert(a, slot));
        in += copies * w * w * (double)V->slot_out[slot * d + c] +
              f * f * (double)V->slot_weight[slot];
    }
    if (moe->hs == 0) return in;
    double w = (double)v->shared_weight[t], f = (double)v->shared_out[at];
    double copies = (double)copies_of(moe, a, s, t, moe->n);
    return in + copies * w * w * (double)V->shared_out[at] + f * f * (double)V->shared_weight[t];
}

/* The sum of `count` terms: acc. A weight has more bits than an operand, so that its product is rounded,
 * too, whatever the operands: one rounding a term more. */
static double combined(const noise_room *s, double value, size_t count, const double *terms)
{
    et_sum_noise c = et_sum_noise_of(s->p, count);
    double squares = 0;
    for (size_t j = 0; j < count; j++) squares += terms[j] * terms[j];
    return c.square * value * value + (c.squares + 3 * c.square / (double)count) * squares;
}

static void combine_noise(const et_moe *moe, const et_assignment *a, const et_moe_values *v,
                          et_moe_values *V, const noise_room *s)
{
    size_t d = moe->d;
    const rounding site = et_rounding_at(s->p, ET_OUTPUTS);
#pragma omp parallel for if (et_worth_threads(moe->N * d))
    for (size_t t = 0; t < moe->N; t++) {
        double *terms = s->terms + (size_t)omp_get_thread_num() * (moe->n + 1);
        for (size_t c = 0; c < d; c++) {
            double value = (double)v->y[t * d + c], in = terms_noise(moe, a, v, V, s, t, c);
            size_t count = terms_of(moe, a, v, t, c, terms);
            if (count > 0 && (in > 0 || !et_sum_is_exact(s->p, count, terms)))
                in += combined(s, value, count, terms);
            V->y[t * d + c] = (et_real)(in + rounding_site(&site, value, in));
        }
    }
}

/* ---- dr, dW_r, and what goes on into dx ---- */

/* V[dp] of token t under norm: sum, the arithmetic included. */
static void dp_noise_of_sum(const et_moe *moe, const et_assignment *a, const et_moe_values *v,
                            const et_moe_grads *g, const et_moe_values *V, et_moe_grads *G,
                            size_t t, const noise_room *s)
{
    norm_sum sum = norm_sum_of(moe, a, v, g, V, G, t, s);
    int32_t first = a->token_offsets[t], end = a->token_offsets[t + 1];
    for (int32_t j = first; sum.T > 0 && j < end; j++) {
        size_t slot = (size_t)a->token_slots[j];
        double dw = (double)g->slot_weight[slot], size = noisy_size(g, G, slot);
        double of_T = (dw - sum.C) / sum.T * (sqrt(sum.VT) / sum.T);
        double in =
            difference_noise(&sum, dw, size, 1 / sum.T, s) + of_T * of_T + sum.VC / sum.T / sum.T;
        for (int32_t k = first; k < end; k++) {
            size_t other = (size_t)a->token_slots[k];
            double by = ((other == slot ? 1 : 0) - (double)v->slot_weight[other]) / sum.T;
            in += by * by * (double)G->slot_weight[other];
        }
        G->gates[t * moe->n + slot_expert(a, slot)] = (et_real)in;
    }
}

/* V[dp] of every token and expert. */
static void dp_noise(const et_moe *moe, const et_assignment *a, const et_moe_values *v,
                     const et_moe_grads *g, const et_moe_values *V, et_moe_grads *G,
                     const noise_room *s)
{
    memset(G->gates, 0, moe->N * moe->n * sizeof *G->gates);
    for (size_t t = 0; moe->norm == ET_NORM_SUM && t < moe->N; t++)
        dp_noise_of_sum(moe, a, v, g, V, G, t, s);
    for (size_t slot = 0; moe->norm != ET_NORM_SUM && slot < a->slots; slot++) {
        size_t t = (size_t)a->slot_token[slot];
        double by = fanout_divisor(moe, a, t);
        G->gates[t * moe->n + slot_expert(a, slot)] =
            (et_real)((double)G->slot_weight[slot] / (by * by));
    }
}

/* softmax_tokens: dr_ti = p_ti (dp_ti - D_i), and an error of D_i comes into dW_r from all tokens of the
 * batch at once, as sum_t p_ti x_t. VD [batches,n]. */
static et_status shared_term_noise(const et_moe *moe, const et_real *x, const et_moe_values *v,
                                   const et_real *VD, et_moe_grads *G, et_error *error)
{
    size_t N = moe->N, n = moe->n, d = moe->d, each = moe->gate_tokens;
    void *room;
    et_status status = et_allocate(&room, n * d, sizeof(et_real), "dW_r", error);
    if (status != ET_OK) return status;
    et_real *mean = room;
    for (size_t t = 0; t < N; t += each) {
        et_matmul(moe->engine, n, d, each, et_transposed(v->gates + t * n, n),
                  et_rows(x + t * d, d), false, mean, d);
        for (size_t i = 0; i < n * d; i++)
            G->router[i] += VD[t / each * n + i / d] * mean[i] * mean[i];
    }
    free(room);
    return ET_OK;
}

static et_status score_backward_noise(const et_moe *moe, const et_real *x, const et_assignment *a,
                                      const et_moe_values *v, const et_moe_grads *g,
                                      const et_moe_values *V, et_moe_grads *G, noise_room *s,
                                      et_error *error)
{
    size_t N = moe->N, n = moe->n, d = moe->d;
    void *room;
    et_status status =
        et_allocate(&room, 2 * N * n + N + N / moe->gate_tokens * n, sizeof(et_real), "dr", error);
    if (status != ET_OK) return status;
    et_real *rest = room, *sums = rest + N * n, *danchor = NULL, *VD = sums + N * n + N;
    if (moe->anchor_weighs_shared) {
        danchor = sums + N * n;
        et_anchor_gradient(moe, a, g, danchor);
    }
    memcpy(rest, G->logits, N * n * sizeof *rest); /* the losses' share */
    bool mixes = moe->gate == ET_GATE_SOFTMAX_TOKENS;
    dp_noise(moe, a, v, g, V, G, s);
    if (mixes) {
        memset(s->from_dw, 0, N * n * sizeof *s->from_dw); /* gate.c carries V[dp] as a whole */
        memset(s->from_sums, 0, N * n * sizeof *s->from_sums);
    }
    for (size_t t = 0; t < N; t += moe->gate_tokens) {
        size_t at = t * n;
        et_gate_backward_noise(moe->gate, s->p, moe->gate_tokens, n, v->logits + at, v->gates + at,
                               v->anchor ? v->anchor + t : NULL, g->gates + at,
                               danchor ? danchor + t : NULL, g->logits + at, V->logits + at,
                               V->gates + at, v->anchor ? V->anchor + t : NULL, G->gates + at,
                               mixes ? VD + t / moe->gate_tokens * n : NULL, rest + at);
    }
    for (size_t t = 0; moe->norm == ET_NORM_SUM && !mixes && t < N; t++)
        norm_backward_noise(moe, a, v, g, V, G, t, s, rest + t * n);
    const rounding site = et_rounding_at(s->p, ET_LOGITS), operand = et_rounding_at(s->p, ET_OPERANDS);
    bool shorter = s->p->bits[ET_OPERANDS] < s->p->bits[ET_LOGITS];
    for (size_t i = 0; i < N * n; i++) {
        double dr = (double)g->logits[i], in = (double)rest[i] + (double)s->from_dw[i];
        double own = rounding_site(&site, dr, in);
        G->logits[i] = (et_real)(in + own);
        if (shorter) own += rounding_site(&operand, dr, in + own);
        /* The gate's errors are the input's; those of rounding dr its own, or its full twins'. */
        sums[i] = s->from_sums[i] + rest[i] * (et_real)s->twins.inputs[i / n] +
                  (et_real)(own * s->twins.boths[i / n]);
        rest[i] += (et_real)own;
    }
    et_noisy dr = {et_transposed(g->logits, n), sums, NULL, 0}, in = {et_rows(x, d), s->x, NULL, 0};
    status = et_product_noise(moe->engine, s->p, &s->room, n, d, N, dr, in, g->router, ET_OUTPUTS,
                              false, G->router, error);
    if (status == ET_OK) {
        et_noisy rows = {et_rows(g->logits, n), rest, NULL, 0};
        et_noisy router = {et_rows(moe->router, d), s->router, NULL, 0};
        status = et_product_noise(moe->engine, s->p, &s->room, N, d, n, rows, router, NULL,
                                  ET_NOWHERE, true, G->x, error);
    }
    if (status == ET_OK && mixes) status = shared_term_noise(moe, x, v, VD, G, error);
    for (size_t i = 0; status == ET_OK && !mixes && i < n * d; i++)
        G->router[i] += s->from_common[i];
    et_real *shift = sums;
    if (status == ET_OK) status = et_alike_dr(moe, s->p, &site, a, v, g, shift, error);
    if (status == ET_OK) et_alike_columns(N, n, shift, G->logits);
    if (status == ET_OK && shorter)
        status = et_alike_dr(moe, s->p, &operand, a, v, g, shift, error);
    if (status == ET_OK) status = et_alike_products(moe, x, shift, G->router, G->x, error);
    free(room);
    return status;
}

/* dx is the sum of the slots' shares, the shared expert's and the router's term. */
static void dx_noise(const et_moe *moe, const et_assignment *a, const et_moe_grads *g,
                     et_moe_grads *G, const noise_room *s)
{
    size_t d = moe->d;
    const rounding site = et_rounding_at(s->p, ET_OUTPUTS);
#pragma omp parallel for if (et_worth_threads(moe->N * d))
    for (size_t t = 0; t < moe->N; t++) {
        et_sum_noise c = et_sum_noise_of(s->p, (size_t)a->fanout[t] + 2);
        for (size_t i = t * d; i < (t + 1) * d; i++) {
            double value = (double)g->x[i], in = fmax((double)G->x[i], 0);
            if (in > 0) in += (c.square + c.squares) * value * value;
            G->x[i] = (et_real)(in + rounding_site(&site, value, in));
        }
    }
}

et_status et_moe_noise(const et_moe *moe, const et_profile *p, const et_real *x, const et_real *dy,
                       const et_assignment *a, const et_moe_values *v, const et_moe_grads *g,
                       et_moe_values *V, et_moe_grads *G, et_error *error)
{
    ET_ARITHMETIC;
    noise_room s = {.p = p};
    et_status status;
    if ((status = check_layer(moe, error)) ||
        (status = et_moe_check_values(moe, a, v, error)) ||
        (status = et_moe_check_grads(moe, a, g, error)))
        return status;
    status = take_room(&s, moe, x, dy, a, error);
    if (status != ET_OK) goto out;
    status = weigh_noise(moe, a, v, V, &s, error);
    if (status != ET_OK) goto out;
    memset(G->x, 0, moe->N * moe->d * sizeof *G->x);
    status = experts_noise(moe, x, dy, a, v, g, V, G, &s, error);
    if (status != ET_OK) goto out;
    combine_noise(moe, a, v, V, &s);
    status = score_backward_noise(moe, x, a, v, g, V, G, &s, error);
    if (status == ET_OK) dx_noise(moe, a, g, G, &s);
out:
    free_room(&s);
    return status;
}
