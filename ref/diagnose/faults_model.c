/* faults_model.c: mistakes in the layers of the model around the experts, and in optimisers.
 *
 * Each is a function that fills a step as a kernel with that mistake would: the layer run with another setting, on other
 * inputs, or with an array changed afterwards. What follows from the mistake is computed from it.
 */
#include "etref/elementary.h"
#include "etref/matmul.h"
#include "etref/rope.h"
#include "etref/routing.h"
#include "ref/base/memory.h"
#include "ref/step/case_kinds.h"
#include "ref/step/step_model.h"
#include "ref/diagnose/faults.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static ET_SHOWS(of_rmsnorm, is_rmsnorm(&s->c));
static ET_SHOWS(of_rmsnorm_heads, is_rmsnorm(&s->c) && s->c.heads > 1);
static ET_SHOWS(of_rope, is_rope(&s->c));
static ET_SHOWS(of_attention, is_attention(&s->c));
static ET_SHOWS(of_shared_keys, is_attention(&s->c) && s->c.kv_heads < s->c.heads);
static ET_SHOWS(of_turned_sequences, is_rope(&s->c) && s->c.sequence < s->c.tokens);
static ET_SHOWS(of_sequences, is_attention(&s->c) && s->c.sequence < s->c.tokens);
static ET_SHOWS(of_loss, is_cross_entropy(&s->c));
static ET_SHOWS(of_capped_loss, is_cross_entropy(&s->c) && s->c.softcap > 0);
static ET_SHOWS(of_adamw, is_adamw(&s->c));
static ET_SHOWS(of_decay, is_adamw(&s->c) && s->c.decay > 0);
static ET_SHOWS(of_muon, is_muon(&s->c));
static ET_SHOWS(of_tall_muon, is_muon(&s->c) && s->c.tokens > s->c.d_model);

/* ---- tools ---- */

static void scale_all(size_t count, double factor, et_real *values)
{
    for (size_t i = 0; i < count; i++) values[i] = (et_real)(factor * (double)values[i]);
}

static size_t numbers(const et_step *s)
{
    return s->c.tokens * s->c.d_model;
}

/* A copy, or room for so many numbers (from NULL), that the caller frees. */
static et_status copy(et_real **to, size_t count, const et_real *from, et_error *error)
{
    void *room;
    et_status status = et_allocate(&room, count, sizeof(et_real), "explanation", error);
    *to = status == ET_OK ? room : NULL;
    if (status == ET_OK && from) memcpy(room, from, count * sizeof(et_real));
    return status;
}

/* ---- RMSNorm ---- */

static size_t width_of(const et_step *s)
{
    return s->c.d_model / s->c.heads;
}

static et_status other_eps(et_step *wrong, const et_step *right, size_t variant, et_error *error)
{
    static const double eps[] = {1e-5, 1e-6, 1e-8};
    (void)right;
    wrong->c.rms_eps = eps[variant];
    return et_model_step_run(wrong, error);
}

static et_status sums_squares(et_step *wrong, const et_step *right, size_t variant, et_error *error)
{
    double factor = 1 / sqrt((double)width_of(right));
    et_status status = et_model_step_run(wrong, error);
    (void)variant;
    if (status != ET_OK) return status;
    scale_all(numbers(right) / width_of(right), factor, wrong->model.scale);
    scale_all(numbers(right), factor, wrong->fwd.y);
    scale_all(numbers(right), factor, wrong->bwd.x);
    return ET_OK;
}

static void subtract_means(size_t rows, size_t width, et_real *values)
{
    for (size_t r = 0; r < rows; r++) {
        double sum = 0;
        for (size_t c = 0; c < width; c++) sum += (double)values[r * width + c];
        for (size_t c = 0; c < width; c++) values[r * width + c] -= (et_real)(sum / (double)width);
    }
}

static et_status subtracts_mean(et_step *wrong, const et_step *right, size_t variant,
                                et_error *error)
{
    size_t width = width_of(right), rows = numbers(right) / width;
    et_real *x;
    et_status status = copy(&x, rows * width, right->in.x, error);
    (void)variant;
    if (status != ET_OK) return status;
    subtract_means(rows, width, x);
    wrong->in.x = x;
    status = et_model_step_run(wrong, error);
    if (status == ET_OK) subtract_means(rows, width, wrong->bwd.x);
    free(x);
    return status;
}

/* dx = s (dy - y times this): 0; the sum of dy y in place of its mean. */
static et_status other_projection(et_step *wrong, const et_step *right, size_t variant,
                                  et_error *error)
{
    size_t width = width_of(right), rows = numbers(right) / width;
    et_status status = et_model_step_run(wrong, error);
    for (size_t r = 0; r < rows && status == ET_OK; r++) {
        const et_real *dy = right->in.dy + r * width, *y = wrong->fwd.y + r * width;
        et_real *dx = wrong->bwd.x + r * width, D = 0;
        for (size_t c = 0; c < width && variant > 0; c++) D += dy[c] * y[c];
        for (size_t c = 0; c < width; c++) dx[c] = wrong->model.scale[r] * (dy[c] - y[c] * D);
    }
    return status;
}

/* A whole token as one vector. */
static et_status one_head(et_step *wrong, const et_step *right, size_t variant, et_error *error)
{
    size_t heads = right->c.heads;
    (void)variant;
    wrong->c.heads = 1;
    et_status status = et_model_step_run(wrong, error);
    wrong->c.heads = heads;
    for (size_t i = right->c.tokens * heads; i-- > 0 && status == ET_OK;)
        wrong->model.scale[i] = wrong->model.scale[i / heads];
    return status;
}

/* ---- RoPE ---- */

/* y and dx by angles of their own: positions from `first` on, anew every `sequence` tokens. */
static et_status turn_by(et_step *wrong, double base, size_t first, size_t sequence,
                         et_error *error)
{
    size_t width = width_of(wrong), d = wrong->c.d_model, N = wrong->c.tokens;
    size_t positions = first + sequence, half = width / 2;
    et_real *cosines;
    et_status status = copy(&cosines, positions * width, NULL, error);
    if (status != ET_OK) return status;
    et_real *sines = cosines + positions * half;
    const et_rope f = {
        N, wrong->c.heads, width, d, sequence, cosines + first * half, sines + first * half, NULL};
    memcpy(wrong->fwd.y, wrong->in.x, N * d * sizeof(et_real));
    memcpy(wrong->bwd.x, wrong->in.dy, N * d * sizeof(et_real));
    if (!(status = et_rope_table(NULL, positions, width, base, cosines, sines, error)) &&
        !(status = et_rope_forward(&f, wrong->fwd.y, error)))
        status = et_rope_backward(&f, wrong->bwd.x, error);
    free(cosines);
    return status;
}

static et_status other_base(et_step *wrong, const et_step *right, size_t variant, et_error *error)
{
    static const double bases[] = {10000, 500000, 1e6, 1000};
    return turn_by(wrong, bases[variant], 0, right->c.sequence, error);
}

static et_status from_one(et_step *wrong, const et_step *right, size_t variant, et_error *error)
{
    (void)variant;
    return turn_by(wrong, right->c.rope_base, 1, right->c.sequence, error);
}

static et_status positions_go_on(et_step *wrong, const et_step *right, size_t variant,
                                 et_error *error)
{
    (void)variant;
    return turn_by(wrong, right->c.rope_base, 0, right->c.tokens, error);
}

/* Forward turns back, and backward forth; or both the same way. */
static et_status other_way(et_step *wrong, const et_step *right, size_t variant, et_error *error)
{
    wrong->in.x = right->in.dy;
    wrong->in.dy = right->in.x;
    et_status status = et_model_step_run(wrong, error); /* y = R dy, dx = R' x */
    et_real *forth = wrong->fwd.y, *back = wrong->bwd.x;
    if (status != ET_OK) return status;
    wrong->bwd.x = forth;
    wrong->fwd.y = back;
    if (variant > 0) memcpy(back, right->fwd.y, numbers(right) * sizeof(et_real));
    return ET_OK;
}

/* Columns 0, 2, 4, .. of each head come first, then 1, 3, 5, ..; or back. */
static void part_columns(size_t rows, size_t width, bool back, const et_real *from, et_real *to)
{
    for (size_t r = 0; r < rows; r++)
        for (size_t c = 0; c < width; c++) {
            size_t other = c % 2 * (width / 2) + c / 2;
            to[r * width + (back ? c : other)] = from[r * width + (back ? other : c)];
        }
}

static et_status pairs_of_neighbours(et_step *wrong, const et_step *right, size_t variant,
                                     et_error *error)
{
    size_t width = width_of(right), count = numbers(right);
    et_real *room;
    et_status status = copy(&room, 2 * count, NULL, error);
    (void)variant;
    if (status != ET_OK) return status;
    part_columns(count / width, width, false, right->in.x, room);
    part_columns(count / width, width, false, right->in.dy, room + count);
    wrong->in.x = room;
    wrong->in.dy = room + count;
    status = et_model_step_run(wrong, error);
    memcpy(room, wrong->fwd.y, count * sizeof(et_real));
    memcpy(room + count, wrong->bwd.x, count * sizeof(et_real));
    part_columns(count / width, width, true, room, wrong->fwd.y);
    part_columns(count / width, width, true, room + count, wrong->bwd.x);
    free(room);
    return status;
}

/* ---- attention ---- */

static size_t qkv_columns(const et_step *s)
{
    return (s->c.heads + 2 * s->c.kv_heads) * width_of(s);
}

/* Some columns of every row. */
static void scale_columns(const et_step *s, size_t first, size_t end, double factor,
                          et_real *values)
{
    size_t columns = qkv_columns(s);
    for (size_t t = 0; t < s->c.tokens; t++)
        scale_all(end - first, factor, values + t * columns + first);
}

/* S = q k' times this, in place of 1 / sqrt(e): 1; 1 / e; S is right, and dS = P (dP - D) lacks the factor. */
static et_status other_scale(et_step *wrong, const et_step *right, size_t variant, et_error *error)
{
    size_t q = right->c.d_model, keys = q + right->c.kv_heads * width_of(right);
    double root = sqrt((double)width_of(right)), factor = variant == 1 ? 1 / root : root;
    et_real *qkv;
    et_status status = copy(&qkv, right->c.tokens * qkv_columns(right), right->model.qkv, error);
    if (status != ET_OK) return status;
    if (variant < 2) scale_columns(right, 0, q, factor, qkv);
    wrong->model.qkv = qkv;
    status = et_model_step_run(wrong, error);
    if (status == ET_OK) scale_columns(right, 0, variant < 2 ? q : keys, factor, wrong->model.dqkv);
    free(qkv);
    return status;
}

/* One head's rows: where they begin, and how far apart they are. */
typedef struct head_rows {
    const et_real *q, *k, *v, *dy;
    et_real *y, *dq, *dk, *dv;
    size_t apart, apart_y, width;
} head_rows;

static double dot(size_t count, const et_real *a, const et_real *b)
{
    double sum = 0;
    for (size_t i = 0; i < count; i++) sum += (double)a[i] * (double)b[i];
    return sum;
}

static void add(size_t count, double factor, const et_real *from, et_real *to)
{
    for (size_t i = 0; i < count; i++) to[i] += (et_real)(factor * (double)from[i]);
}

/* Token t looks at keys 0 to end - 1: forward and backward, as the formulas stand in attention.h. P, dP [end] scratch.
 * Returns lse. */
static et_real look_at_keys(const head_rows *r, size_t t, size_t end, double *P, double *dP)
{
    size_t e = r->width;
    double largest = -INFINITY, sum = 0, D = 0, scale = 1 / sqrt((double)e);
    const et_real *q = r->q + t * r->apart, *dy = r->dy + t * r->apart_y;
    for (size_t u = 0; u < end; u++) {
        P[u] = scale * dot(e, q, r->k + u * r->apart);
        largest = fmax(largest, P[u]);
    }
    for (size_t u = 0; u < end; u++) sum += P[u] = et_exp(P[u] - largest);
    for (size_t u = 0; u < end; u++) {
        P[u] /= sum;
        dP[u] = dot(e, dy, r->v + u * r->apart);
        D += P[u] * dP[u];
        add(e, P[u], r->v + u * r->apart, r->y + t * r->apart_y);
        add(e, P[u], dy, r->dv + u * r->apart);
    }
    for (size_t u = 0; u < end; u++) {
        add(e, P[u] * (dP[u] - D) * scale, r->k + u * r->apart, r->dq + t * r->apart);
        add(e, P[u] * (dP[u] - D) * scale, q, r->dk + u * r->apart);
    }
    return (et_real)(largest + et_log(sum));
}

/* Keys up to the next token's; all keys of the sequence. */
static et_status sees_later_keys(et_step *wrong, const et_step *right, size_t variant,
                                 et_error *error)
{
    const et_case *c = &right->c;
    size_t T = c->sequence, e = width_of(right), columns = qkv_columns(right), d = c->d_model;
    size_t group = c->heads / c->kv_heads;
    void *room;
    et_status status = et_allocate(&room, 2 * T, sizeof(double), "explanation", error);
    if (status != ET_OK) return status;
    for (size_t b = 0; b < c->tokens / T; b++)
        for (size_t i = 0; i < c->heads; i++) {
            size_t at = b * T * columns, at_y = b * T * d + i * e;
            size_t q = at + i * e, k = at + d + i / group * e, v = k + c->kv_heads * e;
            const et_real *in = right->model.qkv;
            et_real *out = wrong->model.dqkv;
            const head_rows r = {in + q,
                                 in + k,
                                 in + v,
                                 right->in.dy + at_y,
                                 wrong->fwd.y + at_y,
                                 out + q,
                                 out + k,
                                 out + v,
                                 columns,
                                 d,
                                 e};
            for (size_t t = 0; t < T; t++)
                wrong->model.lse[(b * c->heads + i) * T + t] = look_at_keys(
                    &r, t, variant == 0 || t + 2 > T ? T : t + 2, room, (double *)room + T);
        }
    free(room);
    return ET_OK;
}

/* Which query head stands in place i if heads i, i + Hkv, i + 2 Hkv, .. share a key head. */
static size_t modulo_place(const et_case *c, size_t i)
{
    size_t group = c->heads / c->kv_heads;
    return i % group * c->kv_heads + i / group;
}

/* Query heads in another order, in rows of so many columns; or back. */
static void exchange_heads(const et_step *s, size_t columns, bool back, const et_real *from,
                           et_real *to)
{
    size_t e = width_of(s);
    for (size_t t = 0; t < s->c.tokens; t++)
        for (size_t i = 0; i < s->c.heads; i++) {
            size_t other = modulo_place(&s->c, i);
            memcpy(to + t * columns + (back ? other : i) * e,
                   from + t * columns + (back ? i : other) * e, e * sizeof(et_real));
        }
}

static et_status heads_modulo(et_step *wrong, const et_step *right, size_t variant, et_error *error)
{
    const et_case *c = &right->c;
    size_t columns = qkv_columns(right), all = c->tokens * columns, count = numbers(right);
    size_t T = c->sequence;
    et_real *room;
    et_status status = copy(&room, all + count, NULL, error);
    (void)variant;
    if (status != ET_OK) return status;
    memcpy(room, right->model.qkv, all * sizeof *room);
    exchange_heads(right, columns, false, right->model.qkv, room);
    exchange_heads(right, c->d_model, false, right->in.dy, room + all);
    wrong->model.qkv = room;
    wrong->in.dy = room + all;
    status = et_model_step_run(wrong, error);
    memcpy(room, wrong->model.dqkv, all * sizeof(et_real));
    memcpy(room + all, wrong->fwd.y, count * sizeof(et_real));
    exchange_heads(right, columns, true, room, wrong->model.dqkv);
    exchange_heads(right, c->d_model, true, room + all, wrong->fwd.y);
    memcpy(room, wrong->model.lse, c->tokens * c->heads * sizeof(et_real));
    for (size_t b = 0; b < c->tokens / T; b++)
        for (size_t i = 0; i < c->heads; i++)
            memcpy(wrong->model.lse + (b * c->heads + modulo_place(c, i)) * T,
                   room + (b * c->heads + i) * T, T * sizeof(et_real));
    free(room);
    return status;
}

/* Sequences are one: a token sees those before. */
static et_status sees_other_sequences(et_step *wrong, const et_step *right, size_t variant,
                                      et_error *error)
{
    const et_case *c = &right->c;
    size_t N = c->tokens, T = c->sequence;
    et_real *lse;
    et_status status = copy(&lse, N * c->heads, NULL, error);
    (void)variant;
    if (status != ET_OK) return status;
    wrong->c.sequence = N;
    status = et_model_step_run(wrong, error);
    wrong->c.sequence = T;
    memcpy(lse, wrong->model.lse, N * c->heads * sizeof(et_real));
    for (size_t i = 0; i < c->heads; i++)
        for (size_t t = 0; t < N; t++)
            wrong->model.lse[(t / T * c->heads + i) * T + t % T] = lse[i * N + t];
    free(lse);
    return status;
}

/* Of the query heads that share a key head only the last, or the first, gives it a gradient. */
static et_status one_head_of_group(et_step *wrong, const et_step *right, size_t variant,
                                   et_error *error)
{
    const et_case *c = &right->c;
    size_t e = width_of(right), d = c->d_model, columns = qkv_columns(right);
    size_t group = c->heads / c->kv_heads, kept = variant == 0 ? group - 1 : 0;
    et_real *dy;
    et_status status = copy(&dy, numbers(right), right->in.dy, error);
    if (status != ET_OK) return status;
    for (size_t t = 0; t < c->tokens; t++)
        for (size_t i = 0; i < c->heads; i++)
            if (i % group != kept) memset(dy + t * d + i * e, 0, e * sizeof *dy);
    wrong->in.dy = dy;
    status = et_model_step_run(wrong, error);
    for (size_t t = 0; t < c->tokens; t++)
        memcpy(wrong->model.dqkv + t * columns, right->model.dqkv + t * columns, d * sizeof *dy);
    free(dy);
    return status;
}

/* ---- cross-entropy ---- */

static et_status not_capped(et_step *wrong, const et_step *right, size_t variant, et_error *error)
{
    (void)right, (void)variant;
    wrong->c.softcap = 0;
    return et_model_step_run(wrong, error);
}

/* dx and dhead of dz [N,V]. */
static void spread_back(et_step *wrong, const et_real *dz)
{
    size_t N = wrong->c.tokens, d = wrong->c.d_model, V = wrong->c.vocab;
    et_matmul(ET_BLAS, N, d, V, et_rows(dz, V), et_rows(wrong->model.head, d), false, wrong->bwd.x,
              d);
    et_matmul(ET_BLAS, V, d, N, et_transposed(dz, V), et_rows(wrong->in.x, d), false,
              wrong->model.dhead, d);
}

/* dz without the cap's slope; dz = p / N times it, without the right word's -1. */
static et_status other_dz(et_step *wrong, const et_step *right, size_t variant, et_error *error)
{
    size_t N = right->c.tokens, V = right->c.vocab;
    const et_step_model *m = &right->model;
    et_real *dz;
    et_status status = copy(&dz, N * V, NULL, error);
    if (status != ET_OK) return status;
    status = et_model_step_run(wrong, error);
    for (size_t i = 0; i < N * V; i++) {
        double l = (double)m->logits[i], cap = right->c.softcap;
        double slope = cap > 0 ? 1 - l / cap * (l / cap) : 1;
        bool is_right = i % V == (size_t)m->targets[i / V];
        double p = et_exp(l - (double)m->loss_lse[i / V]);
        dz[i] = (et_real)((variant == 0 ? p - is_right : p * slope) / (double)N);
    }
    if (status == ET_OK) spread_back(wrong, dz);
    free(dz);
    return status;
}

/* The sum's gradient for the mean's; the sum for the mean; both. */
static et_status summed(et_step *wrong, const et_step *right, size_t variant, et_error *error)
{
    double N = (double)right->c.tokens;
    et_status status = et_model_step_run(wrong, error);
    if (status != ET_OK) return status;
    if (variant > 0) scale_all(1, N, wrong->model.mean);
    if (variant == 1) return ET_OK;
    scale_all(numbers(right), N, wrong->bwd.x);
    scale_all(right->c.vocab * right->c.d_model, N, wrong->model.dhead);
    return ET_OK;
}

/* Each token has the next one's word, the last the first's; or the one before's. */
static et_status targets_shifted(et_step *wrong, const et_step *right, size_t variant,
                                 et_error *error)
{
    size_t N = right->c.tokens, by = variant == 0 ? 1 : N - 1;
    void *room;
    et_status status = et_allocate(&room, N, sizeof(int32_t), "explanation", error);
    if (status != ET_OK) return status;
    int32_t *words = room;
    for (size_t t = 0; t < N; t++) words[t] = right->model.targets[(t + by) % N];
    wrong->model.targets = words;
    status = et_model_step_run(wrong, error);
    wrong->model.targets = right->model.targets;
    free(words);
    return status;
}

/* ---- AdamW ---- */

/* No correction; t = the updates before; t = one more than it should be. */
static et_status other_count(et_step *wrong, const et_step *right, size_t variant, et_error *error)
{
    const size_t steps[] = {INT32_MAX, right->c.step > 0 ? right->c.step - 1 : 0,
                            right->c.step + 1};
    wrong->c.step = steps[variant];
    et_status status = et_model_step_run(wrong, error);
    wrong->c.step = right->c.step;
    return status;
}

static et_status decays_gradient(et_step *wrong, const et_step *right, size_t variant,
                                 et_error *error)
{
    et_real *g;
    et_status status = copy(&g, numbers(right), right->model.gradient, error);
    (void)variant;
    if (status != ET_OK) return status;
    add(numbers(right), right->c.decay, right->model.weight, g);
    wrong->model.gradient = g;
    wrong->c.decay = 0;
    status = et_model_step_run(wrong, error);
    free(g);
    return status;
}

/* No decay; decay without the rate. */
static et_status other_decay(et_step *wrong, const et_step *right, size_t variant, et_error *error)
{
    wrong->c.decay = variant == 0 ? 0 : right->c.decay / right->c.rate;
    return et_model_step_run(wrong, error);
}

static et_status eps_inside(et_step *wrong, const et_step *right, size_t variant, et_error *error)
{
    const et_case *c = &right->c;
    double first = et_ema_weight(c->beta1, c->step + 1);
    double second = et_ema_weight(c->beta2, c->step + 1);
    et_status status = et_model_step_run(wrong, error);
    (void)variant;
    for (size_t i = 0; i < numbers(right) && status == ET_OK; i++) {
        double m = (double)wrong->model.new_first[i], v = (double)wrong->model.new_second[i];
        double w = (double)right->model.weight[i] * (1 - c->rate * c->decay);
        wrong->model.new_weight[i] =
            (et_real)(w - c->rate * (m / first) / sqrt(v / second + c->eps));
    }
    return status;
}

static et_status other_eps_of_update(et_step *wrong, const et_step *right, size_t variant,
                                     et_error *error)
{
    static const double eps[] = {1e-8, 1e-6, 1e-5};
    (void)right;
    wrong->c.eps = eps[variant];
    return et_model_step_run(wrong, error);
}

static et_status betas_exchanged(et_step *wrong, const et_step *right, size_t variant,
                                 et_error *error)
{
    (void)variant;
    wrong->c.beta1 = right->c.beta2;
    wrong->c.beta2 = right->c.beta1;
    return et_model_step_run(wrong, error);
}

/* ---- Muon ---- */

/* u = m, not Nesterov's; m <- mu m + g, u = g + mu m; the same with u = m. */
static et_status other_momentum(et_step *wrong, const et_step *right, size_t variant,
                                et_error *error)
{
    double mu = right->c.momentum, share = variant == 0 ? 1 - mu : 1;
    size_t count = numbers(right);
    et_real *room;
    et_status status = copy(&room, 3 * count, NULL, error);
    if (status != ET_OK) return status;
    memcpy(room, right->model.first, count * sizeof *room);
    et_real *m = room, *u = room + count, *none = room + 2 * count;
    scale_all(count, mu, m);
    add(count, share, right->model.gradient, m);
    memcpy(u, m, count * sizeof *u);
    if (variant == 1) {
        scale_all(count, mu, u);
        add(count, share, right->model.gradient, u);
    }
    memset(none, 0, count * sizeof *none);
    wrong->model.gradient = u; /* without a momentum, what is orthogonalised is the gradient */
    wrong->model.first = none;
    wrong->c.momentum = 0;
    status = et_model_step_run(wrong, error);
    memcpy(wrong->model.new_first, m, count * sizeof *m);
    wrong->model.first = right->model.first;
    free(room);
    return status;
}

/* w <- w - rate X; w <- w - rate 0.2 sqrt(max(rows, columns)) X. */
static et_status other_size(et_step *wrong, const et_step *right, size_t variant, et_error *error)
{
    double rows = (double)right->c.tokens, columns = (double)right->c.d_model;
    double has = sqrt(fmax(1, rows / columns)), gets = 0.2 * sqrt(fmax(rows, columns));
    wrong->c.rate *= (variant == 0 ? 1 : gets) / has;
    return et_model_step_run(wrong, error);
}

static et_status whole_gradient(et_step *wrong, const et_step *right, size_t variant,
                                et_error *error)
{
    return other_momentum(wrong, right, variant + 1, error);
}

static et_status size_of_adam(et_step *wrong, const et_step *right, size_t variant, et_error *error)
{
    return other_size(wrong, right, variant + 1, error);
}

/* ---- the table ---- */

/* clang-format off */
static const et_hypothesis table[] = {
    {.doc = {"norm-eps", "another eps is added to the mean of squares", "model"},
     .nature = ET_BY_LAYER, .applies = of_rmsnorm, .variants = {"1e-5", "1e-6", "1e-8"}, .layer = other_eps},
    {.doc = {"norm-sums-squares", "the root of the sum of squares, not of their mean", "model"},
     .nature = ET_BY_LAYER, .applies = of_rmsnorm, .layer = sums_squares},
    {.doc = {"norm-subtracts-mean", "the mean is subtracted first, as LayerNorm does", "model"},
     .nature = ET_BY_LAYER, .applies = of_rmsnorm, .layer = subtracts_mean},
    {.doc = {"norm-gradient-direct", "dx = s dy: the gradient does not pass through s", "model"},
     .nature = ET_BY_LAYER, .applies = of_rmsnorm, .variants = {"", "or through the sum of dy y, not its mean"}, .layer = other_projection},
    {.doc = {"norm-whole-token", "one norm over all heads of a token", "model"},
     .nature = ET_BY_LAYER, .applies = of_rmsnorm_heads, .layer = one_head},
    {.doc = {"rope-other-way", "rotation in the other sense", "model"},
     .nature = ET_BY_LAYER, .applies = of_rope, .variants = {"", "in the backward pass"}, .layer = other_way},
    {.doc = {"rope-pairs-neighbours", "pairs are neighbouring columns, not halves of a head", "model"},
     .nature = ET_BY_LAYER, .applies = of_rope, .layer = pairs_of_neighbours},
    {.doc = {"rope-positions-from-one", "positions are counted from 1", "model"},
     .nature = ET_BY_LAYER, .applies = of_rope, .layer = from_one},
    {.doc = {"rope-positions-go-on", "positions do not begin anew with a sequence", "model"},
     .nature = ET_BY_LAYER, .applies = of_turned_sequences, .layer = positions_go_on},
    {.doc = {"rope-base", "another base of the angles", "model"},
     .nature = ET_BY_LAYER, .applies = of_rope, .variants = {"10000", "500000", "1000000", "1000"}, .layer = other_base},
    {.doc = {"attention-not-scaled", "S = q k' lacks 1 / sqrt(e)", "model"},
     .nature = ET_BY_LAYER, .applies = of_attention, .variants = {"", "or has it twice", "in dS alone"}, .layer = other_scale},
    {.doc = {"attention-sees-all", "later keys are not masked", "model"},
     .nature = ET_BY_LAYER, .applies = of_attention, .variants = {"", "but the next one alone"}, .layer = sees_later_keys},
    {.doc = {"attention-heads-modulo", "query head i looks at key head i mod Hkv", "model"},
     .nature = ET_BY_LAYER, .applies = of_shared_keys, .layer = heads_modulo},
    {.doc = {"attention-sequences-joined", "a token sees the sequences before its own", "model"},
     .nature = ET_BY_LAYER, .applies = of_sequences, .layer = sees_other_sequences},
    {.doc = {"attention-group-not-summed", "dk and dv are one query head's, not the sum over those that share them", "model"},
     .nature = ET_BY_LAYER, .applies = of_shared_keys, .variants = {"the last", "the first"}, .layer = one_head_of_group},
    {.doc = {"loss-not-capped", "the logits are not capped", "model"},
     .nature = ET_BY_LAYER, .applies = of_capped_loss, .layer = not_capped},
    {.doc = {"loss-cap-not-in-gradient", "dz lacks the slope of the cap", "model"},
     .nature = ET_BY_LAYER, .applies = of_capped_loss, .variants = {"", "or the right word's -1"}, .layer = other_dz},
    {.doc = {"loss-gradient-summed", "gradients of the sum of losses, not of their mean", "model"},
     .nature = ET_BY_LAYER, .applies = of_loss, .variants = {"", "the loss alone", "and the loss"}, .layer = summed},
    {.doc = {"loss-targets-shifted", "targets are those of another token", "model"},
     .nature = ET_BY_LAYER, .applies = of_loss, .variants = {"the next", "the one before"}, .layer = targets_shifted},
    {.doc = {"adam-not-corrected", "m and v are not divided by 1 - beta^t", "model"},
     .nature = ET_BY_LAYER, .applies = of_adamw, .variants = {"", "or t is one too small", "or t is one too large"}, .layer = other_count},
    {.doc = {"adam-decays-gradient", "the decay is added to the gradient", "model"},
     .nature = ET_BY_LAYER, .applies = of_decay, .layer = decays_gradient},
    {.doc = {"adam-decay", "the weights do not decay, or without the rate", "model"},
     .nature = ET_BY_LAYER, .applies = of_decay, .variants = {"no decay", "without the rate"}, .layer = other_decay},
    {.doc = {"adam-eps-inside", "eps is added under the root", "model"},
     .nature = ET_BY_LAYER, .applies = of_adamw, .layer = eps_inside},
    {.doc = {"adam-eps", "another eps", "model"},
     .nature = ET_BY_LAYER, .applies = of_adamw, .variants = {"1e-8", "1e-6", "1e-5"}, .layer = other_eps_of_update},
    {.doc = {"adam-betas-exchanged", "beta1 and beta2 are exchanged", "model"},
     .nature = ET_BY_LAYER, .applies = of_adamw, .layer = betas_exchanged},
    {.doc = {"muon-not-nesterov", "u = m, without Nesterov's step", "model"},
     .nature = ET_BY_LAYER, .applies = of_muon, .layer = other_momentum},
    {.doc = {"muon-gradient-whole", "m <- mu m + g, not (1 - mu) g", "model"},
     .nature = ET_BY_LAYER, .applies = of_muon, .variants = {"", "without Nesterov's step"}, .layer = whole_gradient},
    {.doc = {"muon-not-scaled", "the update is not scaled by sqrt(max(1, rows / columns))", "model"},
     .nature = ET_BY_LAYER, .applies = of_tall_muon, .layer = other_size},
    {.doc = {"muon-scaled-to-adam", "the update is scaled by 0.2 sqrt(max(rows, columns))", "model"},
     .nature = ET_BY_LAYER, .applies = of_muon, .layer = size_of_adam},
};
/* clang-format on */

const et_faults et_model_faults = ET_FAULTS(table);
