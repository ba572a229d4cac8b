/* inputs.c: drawing the in.* tensors of a case, and checking those that a bundle brings.
 *
 * Every tensor has a random stream of its own, named after it: a new tensor, or a longer one, never
 * shifts another. Values are drawn in binary64 from additions, multiplications, divisions and
 * square roots alone, which IEEE-754 rounds the same way everywhere, and are then rounded once to
 * the case's precision. What the tensors hold afterwards is exact: everything else is computed from
 * it.
 *
 * normal    x ~ N(0,1) + mean, dy ~ N(0,1); router N(0,1/d) + router_mean/d; W_up, W_gate N(0,1/d), W_down
 *           N(0,1/h), biases N(0,1/4), so that logits and hidden values are of the order of 1 at any width
 * text      x from a file's bytes (input_text.c): repeated words, hence equal tokens. The rest as normal
 * integer   sparse -1, 0, 1 everywhere. Values, gradients and sums stay small integers, which any
 *           kernel must get exactly: tolerance zero finds what every other tolerance hides. With
 *           at most 64 tokens, widths of 32 and 8 experts they fit the 8 bits of bf16's significand
 * ties      each token `copies` times, each copy with its own dy, and each odd expert's router row
 *           equal to the even one's before it: ties between tokens and between experts. The last
 *           group is zero, +0 and -0 in turn: all tokens, if there are as many copies as tokens.
 *           EMA thresholds equal a score of the batch
 * skewed    x = z + 2 v with one sign vector v, towards which the hot expert's row points: it draws
 *           nearly every token, others stay empty
 * outlier   normal deviates times 2^e, e = 0, 1, .. 8 with probability 2^-(e+1): tails like 1/x, as
 *           activations have; sums that cancel
 * tiny      x and dy times 1e-4: an absolute tolerance of 1e-3 would accept zeros
 * huge      x and dy times 1e4: gates saturate, relu^2 reaches 1e8
 *
 * The state before the step is drawn, too. EMA: what u updates with one and the same cutoff leave,
 * where the cutoff is that of a calibration pool of fresh tokens. Bias: N(0, 0.01). Loads of all
 * ranks: the mean load, give or take a quarter.
 *
 * Left out: reading in.* from a bundle (bundle.c); the source checkpoint (ref/model/case_from_checkpoint.c).
 */
#include "etref/matmul.h"
#include "etref/random.h"
#include "etref/routing.h"
#include "etref/step.h"
#include "ref/base/float_environment.h"
#include "ref/base/threads.h"
#include "ref/base/memory.h"
#include "ref/step/decide.h"
#include "ref/step/case_kinds.h"
#include "ref/step/input_text.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

/* The significand of et_real: no type that has as much can be too coarse for it. */
enum { REAL_DIGITS = sizeof(et_real) == sizeof(double) ? DBL_MANT_DIG : FLT_MANT_DIG };

/* ---- the tensors ---- */

typedef struct input {
    const char *name; /* also of its random stream */
    et_real *at;      /* NULL where the case has none */
    size_t count;
    size_t fan_in;   /* weights: how many inputs one output sums; 4 of a bias, which is half as large as that sum */
    double nonzeros; /* integer source: how many of a row's elements are not 0, on average */
    bool is_router;
} input;

enum {
    X,
    DY,
    QKV,
    GRADIENT,
    FIRST,
    SECOND,
    ROUTER,
    UP,
    DOWN,
    SHARED_UP,
    SHARED_DOWN,
    GATING,
    SHARED_GATING,
    B_UP,
    B_GATE,
    B_DOWN,
    SHARED_B_UP,
    SHARED_B_GATE,
    SHARED_B_DOWN,
    HEAD,
    WEIGHT,
    EMA,
    BIAS,
    LOAD,
    INPUTS
};

/* In the order of the enum. No product overflows: et_step_create has allocated these arrays. */
static void list_inputs(const et_step *s, input list[INPUTS])
{
    const et_case *c = &s->c;
    const et_step_inputs *in = &s->in;
    const et_step_model *m = &s->model;
    size_t N = c->tokens, d = c->d_model, h = c->d_expert, hs = c->shared_d_expert;
    size_t n = c->layer == ET_MOE ? c->experts : 1;
    size_t q = m->qkv ? (c->heads + 2 * c->kv_heads) * (d / c->heads) : 0;
    const input all[INPUTS] = {
        [X] = {"in.x", in->x, N * d, 0, 4, false},
        [DY] = {"in.dy", in->dy, N * d, 0, 6, false},
        [QKV] = {"in.qkv", m->qkv, N * q, 0, 0, false},
        [GRADIENT] = {"in.gradient", m->gradient, N * d, 0, 0, false},
        [FIRST] = {"in.first", m->first, N * d, 0, 0, false},
        [SECOND] = {"in.second", m->second, N * d, 0, 0, false},
        [HEAD] = {"in.head", m->head, c->vocab * d, d, 0, false},
        [WEIGHT] = {"in.w", m->weight, N * d, d, 0, false},
        [ROUTER] = {"in.w_router", in->router, n * d, d, 8, true},
        [UP] = {"in.w_up", in->up, n * h * d, d, 8, false},
        [DOWN] = {"in.w_down", in->down, n * d * h, h, 4, false},
        [SHARED_UP] = {"in.shared_up", in->shared_up, hs * d, d, 8, false},
        [SHARED_DOWN] = {"in.shared_down", in->shared_down, d * hs, hs, 4, false},
        [GATING] = {"in.w_gate", in->gating, n * h * d, d, 8, false},
        [SHARED_GATING] = {"in.shared_gate", in->shared_gating, hs * d, d, 8, false},
        [B_UP] = {"in.b_up", in->b_up, n * h, 4, 1, false},
        [B_GATE] = {"in.b_gate", in->b_gate, n * h, 4, 1, false},
        [B_DOWN] = {"in.b_down", in->b_down, n * d, 4, 1, false},
        [SHARED_B_UP] = {"in.shared_b_up", in->shared_b_up, hs, 4, 1, false},
        [SHARED_B_GATE] = {"in.shared_b_gate", in->shared_b_gate, hs, 4, 1, false},
        [SHARED_B_DOWN] = {"in.shared_b_down", in->shared_b_down, d, 4, 1, false},
        [EMA] = {"in.ema", in->ema, n, 0, 0, false},
        [BIAS] = {"in.bias", in->bias, n, 0, 0, false},
        [LOAD] = {"in.load", in->load, n, 0, 0, false},
    };
    for (int i = 0; i < INPUTS; i++) list[i] = all[i];
}

static et_real in_precision(const et_case *c, double value)
{
    return (et_real)et_round_to_dtype(value, c->precision);
}

/* ---- single numbers ---- */

/* -1, 0 or 1: of `width` such numbers `nonzeros` are not 0 on average, at most half of them. */
static double draw_sign(et_stream stream, size_t index, double nonzeros, size_t width)
{
    double p = nonzeros < 0.5 * (double)width ? nonzeros / (double)width : 0.5;
    double u = et_uniform(stream, index, 0);
    return u < 0.5 * p ? 1 : u < p ? -1 : 0;
}

/* 2^e with probability 2^-(e+1), e at most 8: how often u can be doubled below 1. */
static double draw_tail(et_stream stream, size_t index)
{
    double u = et_uniform(stream, index, 0), scale = 1;
    for (; u < 0.5 && scale < 256; u *= 2) scale *= 2;
    return scale;
}

/* What a source makes of a normal deviate of x or dy. et_normal and et_uniform of one element are
 * independent, see random.c. */
static double scale_of(const et_case *c, et_stream stream, size_t index)
{
    switch (c->input.source) {
    case ET_INPUT_OUTLIER: return draw_tail(stream, index);
    case ET_INPUT_TINY: return 1e-4;
    case ET_INPUT_HUGE: return 1e4;
    default: return 1;
    }
}

/* ---- weights ---- */

/* Element j of the direction in which skewed tokens lie: -1 or 1. */
static double direction(const et_case *c, size_t j)
{
    return et_uniform(et_stream_open(c->input.seed, "in.x.direction"), j, 0) < 0.5 ? 1 : -1;
}

/* The hot expert's logit gains <12 v / d, z + 2 v> = 24 + N(0, 144/d); the other logits of skewed
 * tokens are N(0, 5). */
enum { HOT = 12 };

static double draw_router(const et_case *c, et_stream stream, size_t index)
{
    size_t d = c->d_model, i = index / d, j = index % d;
    if (c->input.source == ET_INPUT_TIES) i -= i % 2;
    double w = et_normal(stream, i * d + j) / sqrt((double)d) + c->input.router_mean / (double)d;
    if (c->input.source == ET_INPUT_SKEWED && i == c->input.hot)
        w += HOT * direction(c, j) / (double)d;
    return w;
}

static double weight(const et_case *c, const input *w, et_stream stream, size_t index)
{
    if (c->input.source == ET_INPUT_INTEGER)
        return draw_sign(stream, index, w->nonzeros, w->fan_in);
    if (w->is_router) return draw_router(c, stream, index);
    return et_normal(stream, index) / sqrt((double)w->fan_in);
}

/* An element depends on its index alone, so threads may share the work. */
static void draw_weight(const et_case *c, const input *w)
{
    et_stream stream = et_stream_open(c->input.seed, w->name);
    size_t count = w->at != NULL ? w->count : 0;
#pragma omp parallel for schedule(static) if (et_worth_threads(3 * count))
    for (size_t i = 0; i < count; i++) w->at[i] = in_precision(c, weight(c, w, stream, i));
}

/* ---- tokens ---- */

/* What drawing tokens needs beside the case. */
typedef struct source {
    const et_case *c;
    et_text text; /* the step's bytes, then those of the calibration pool */
    double *row;  /* [d] */
} source;

static double draw_tied(const et_case *c, et_stream stream, size_t t, size_t j)
{
    size_t copies = c->input.copies, copy = t % copies, first = t - copy, d = c->d_model;
    bool last_group = first + copies >= c->tokens;
    if (last_group) return copy % 2 == 0 ? 0.0 : -0.0;
    double z = et_normal(stream, first * d + j) + c->input.mean;
    return z * (1 + (double)copy * c->input.jitter);
}

/* Element j of token t of a stream. */
static double draw_x(const et_case *c, const input *x, et_stream stream, size_t t, size_t j)
{
    size_t d = c->d_model, index = t * d + j;
    if (c->input.source == ET_INPUT_INTEGER) return draw_sign(stream, index, x->nonzeros, d);
    if (c->input.source == ET_INPUT_TIES) return draw_tied(c, stream, t, j);
    double z = (et_normal(stream, index) + c->input.mean) * scale_of(c, stream, index);
    return c->input.source == ET_INPUT_SKEWED ? z + 2 * direction(c, j) : z;
}

/* Token t of the stream `name`, out [d] in the case's precision. Text has one stream: its bytes. */
static void draw_token(const source *from, const input *x, const char *name, size_t t, et_real *out)
{
    const et_case *c = from->c;
    et_stream stream = et_stream_open(c->input.seed, name);
    if (c->input.source == ET_INPUT_TEXT) {
        et_text_vector(&from->text, t, from->row);
        for (size_t j = 0; j < c->d_model; j++) out[j] = in_precision(c, from->row[j]);
        return;
    }
    for (size_t j = 0; j < c->d_model; j++) out[j] = in_precision(c, draw_x(c, x, stream, t, j));
}

static void draw_dy(const et_case *c, const input *dy)
{
    et_stream stream = et_stream_open(c->input.seed, dy->name);
    for (size_t i = 0; dy->at != NULL && i < dy->count; i++) {
        double value = c->input.source == ET_INPUT_INTEGER
                           ? draw_sign(stream, i, dy->nonzeros, c->d_model)
                           : et_normal(stream, i) * scale_of(c, stream, i);
        dy->at[i] = in_precision(c, value);
    }
}

/* No loss sees the y of a padding token: its dy is 0. */
static void draw_mask(et_step *s)
{
    size_t d = s->c.d_model;
    for (size_t t = 0; s->in.mask && t < s->c.tokens; t++) {
        s->in.mask[t] = !is_padding(&s->c, t);
        for (size_t j = 0; j < d && !s->in.mask[t]; j++) s->in.dy[t * d + j] = 0;
    }
}

/* What a layer of the model is given beside x, dy and weights. An optimiser's m and v are as after many updates by
 * gradients like g: m is smaller than g, and v near g^2. */
static void draw_model(const et_step *s, const input *in)
{
    const et_case *c = &s->c;
    draw_dy(c, &in[QKV]);
    draw_dy(c, &in[GRADIENT]);
    draw_dy(c, &in[FIRST]);
    draw_dy(c, &in[SECOND]);
    for (size_t i = 0; in[FIRST].at && i < in[FIRST].count; i++)
        in[FIRST].at[i] = in_precision(c, 0.25 * (double)in[FIRST].at[i]);
    for (size_t i = 0; in[SECOND].at && i < in[SECOND].count; i++) {
        double g = (double)in[SECOND].at[i], most = c->precision == ET_F16 ? 65504 : INFINITY;
        in[SECOND].at[i] = in_precision(c, fmin(g * g, most));
    }
    et_stream words = et_stream_open(c->input.seed, "in.targets");
    for (size_t t = 0; s->model.targets && t < c->tokens; t++)
        s->model.targets[t] = (int32_t)(et_uniform(words, t, 0) * (double)c->vocab);
}

/* ---- state ---- */

/* Small enough to turn some choices, not all. Integers get none, experts that tie keep their tie.
 */
static void draw_bias(const et_case *c, const input *bias)
{
    et_stream stream = et_stream_open(c->input.seed, bias->name);
    for (size_t i = 0; bias->at != NULL && i < bias->count; i++) {
        size_t pair = c->input.source == ET_INPUT_TIES ? i - i % 2 : i;
        bool none = c->input.source == ET_INPUT_INTEGER;
        bias->at[i] = none ? 0 : (et_real)(0.1 * et_normal(stream, pair));
    }
}

/* Mean loads of a micro-batch over all ranks: their sum is K N / M, and they are not integers. */
static void draw_load(const et_case *c, const input *load)
{
    et_stream stream = et_stream_open(c->input.seed, load->name);
    double sum = 0, total = (double)c->top_k * (double)et_case_real_tokens(c);
    for (size_t i = 0; load->at != NULL && i < load->count; i++) {
        double share = 1 + 0.25 * et_normal(stream, i);
        load->at[i] = (et_real)(share > 0.1 ? share : 0.1);
        sum += (double)load->at[i];
    }
    for (size_t i = 0; load->at != NULL && i < load->count; i++)
        load->at[i] = (et_real)((double)load->at[i] * (total / sum));
}

static void score(const et_case *c, size_t tokens, const et_real *x, const et_real *router,
                  et_real *logits)
{
    et_matmul(ET_PLAIN, tokens, c->experts, c->d_model, et_rows(x, c->d_model),
              et_transposed(router, c->d_model), false, logits, c->experts);
}

/* ema after u updates from 0 with the same cutoffs is (1 - beta^u) cutoff. Ties and integers take
 * the cutoff itself, unless a bias correction will divide: so the threshold equals a score. */
static void store_ema(const et_case *c, const et_real *cutoff, et_real *ema)
{
    bool exact = c->input.source == ET_INPUT_TIES || c->input.source == ET_INPUT_INTEGER;
    double weight =
        exact && !c->ema_bias_correction ? 1 : et_ema_weight(c->ema_decay, c->ema_updates);
    for (size_t i = 0; i < c->experts; i++) ema[i] = (et_real)(weight * (double)cutoff[i]);
}

/* The calibration pool: P fresh tokens; for ties the step's own first P, whose scores shall tie. */
static et_status draw_ema(const source *from, et_step *s, const input *x, et_error *error)
{
    const et_case *c = from->c;
    size_t P = c->pool_tokens, d = c->d_model, n = c->experts;
    size_t first = c->input.source == ET_INPUT_TEXT ? c->tokens : 0;
    bool own = c->input.source == ET_INPUT_TIES;
    void *tokens = NULL, *logits = NULL, *cutoff = NULL;
    if (s->in.ema == NULL || c->ema_updates == 0) return ET_OK; /* zeros, as allocated */
    et_status status =
        et_allocate(&tokens, own ? 0 : P * d, sizeof(et_real), "EMA's tokens", error);
    if (status == ET_OK)
        status = et_allocate(&logits, P * n, sizeof(et_real), "EMA's scores", error);
    if (status == ET_OK) status = et_allocate(&cutoff, n, sizeof(et_real), "EMA's cutoffs", error);
    for (size_t t = 0; status == ET_OK && !own && t < P; t++)
        draw_token(from, x, "ema.x", first + t, (et_real *)tokens + t * d);
    if (status == ET_OK) {
        score(c, P, own ? s->in.x : tokens, s->in.router, logits);
        status = et_kth_largest(P, n, c->target_load, logits, cutoff, error);
    }
    if (status == ET_OK) store_ema(c, cutoff, s->in.ema);
    free(tokens);
    free(logits);
    free(cutoff);
    return status;
}

/* ---- decisive: no decision within rounding of its boundary ---- */

/* How far a kernel of the case's precision may turn a margin of token t. A logit whose factors are
 * rounded to p bits, or whose sum is, is off by about 2^-p sum_j |x_tj||w_ij|; a margin is the
 * difference of two. */
static double reach(const et_step *s, size_t t)
{
    size_t d = s->c.d_model;
    double largest = 0;
    for (size_t i = 0; i < s->c.experts; i++) {
        double sum = 0;
        for (size_t j = 0; j < d; j++)
            sum += fabs((double)s->in.x[t * d + j]) * fabs((double)s->in.router[i * d + j]);
        if (sum > largest) largest = sum;
    }
    return ldexp(2 * largest, -et_dtype_significand(s->c.precision));
}

static bool is_decided(const et_step *s, size_t t)
{
    double least = reach(s, t);
    for (size_t i = 0; i < s->c.experts; i++)
        if (!(fabs((double)s->route.margin[t * s->c.experts + i]) > least)) return false;
    return true;
}

/* Draws the undecided tokens of one round anew, from a stream of the round's own; how many. */
static size_t redraw(const source *from, const et_step *decided, const input *x, int round,
                     et_step *s)
{
    char name[32];
    size_t undecided = 0;
    snprintf(name, sizeof name, "in.x#%d", round);
    for (size_t t = 0; t < s->c.tokens; t++) {
        if (is_decided(decided, t)) continue;
        undecided++;
        draw_token(from, x, name, t, s->in.x + t * s->c.d_model);
    }
    return undecided;
}

/* Routes the inputs drawn so far and redraws the tokens with a close decision, until there are
 * none. Only they are redrawn: a whole batch without a single close decision might never come. */
static et_status make_decisive(const source *from, et_step *s, const input *x, et_error *error)
{
    enum { ROUNDS = 64 };
    size_t undecided = 1;
    et_status status = ET_OK;
    for (int round = 1; status == ET_OK && undecided > 0 && round <= ROUNDS; round++) {
        et_step decided = et_step_like(s); /* its inputs are those of s, seen anew each round */
        status = et_step_decide(&decided, error);
        if (status == ET_OK) undecided = redraw(from, &decided, x, round, s);
        et_step_free(&decided);
    }
    if (status == ET_OK && undecided > 0)
        return et_fail(
            error, ET_EINVAL,
            "case '%s': input.decisive: %zu tokens were still within rounding of a "
            "decision after %d rounds; use fewer tokens or experts, or a longer precision",
            s->c.name, undecided, ROUNDS);
    return status;
}

/* ---- all of them ---- */

static et_status open_source(source *from, et_error *error)
{
    const et_case *c = from->c;
    void *row = NULL;
    size_t calibration = c->ema_updates > 0 ? c->pool_tokens : 0;
    et_status status = et_allocate(&row, c->d_model, sizeof(double), "a token", error);
    from->row = row;
    if (status == ET_OK && c->input.source == ET_INPUT_TEXT)
        status = et_text_open(&from->text, c->input.text, c->input.text_offset,
                              c->tokens + calibration, c->d_model, c->input.seed, error);
    return status;
}

et_status et_step_draw_inputs(et_step *s, et_error *error)
{
    ET_ARITHMETIC;
    const et_case *c = &s->c;
    source from = {.c = c};
    input in[INPUTS];
    if (c->input.source == ET_INPUT_NONE)
        return et_fail(
            error, ET_EINVAL,
            "case '%s' has no input: its bundle must bring in.x, in.dy and the weights, or "
            "the case say how to draw them",
            c->name);
    if (c->input.source == ET_INPUT_CHECKPOINT)
        return et_fail(error, ET_EINVAL,
                       "case '%s': its input is captured, not drawn: et_capture_inputs does it",
                       c->name);
    list_inputs(s, in);
    et_status status = open_source(&from, error);
    if (status == ET_OK) {
        for (int i = ROUTER; i <= WEIGHT; i++) draw_weight(c, &in[i]);
        draw_model(s, in);
        for (size_t t = 0; s->in.x && t < c->tokens; t++)
            draw_token(&from, &in[X], in[X].name, t, s->in.x + t * c->d_model);
        draw_dy(c, &in[DY]);
        draw_mask(s);
        draw_bias(c, &in[BIAS]);
        draw_load(c, &in[LOAD]);
        status = draw_ema(&from, s, &in[X], error);
    }
    if (status == ET_OK && c->input.decisive) status = make_decisive(&from, s, &in[X], error);
    et_text_free(&from.text);
    free(from.row);
    return status;
}

/* ---- checking what a bundle brings ---- */

static et_status check_finite(const et_step *s, const input *x, et_error *error)
{
    for (size_t i = 0; x->at != NULL && i < x->count; i++)
        if (!isfinite(x->at[i]))
            return et_fail(error, ET_EINVAL, "case '%s': %s[%zu] = %g; allowed: finite numbers",
                           s->c.name, x->name, i, (double)x->at[i]);
    return ET_OK;
}

/* Does the type hold all of x, dy and the weights, up to `*which` at `*at`? */
static bool holds_inputs(const input in[INPUTS], et_dtype type, int *which, size_t *at)
{
    if (et_dtype_significand(type) >= REAL_DIGITS) return true;
    for (*which = X; *which <= WEIGHT; (*which)++)
        for (*at = 0; in[*which].at != NULL && *at < in[*which].count; (*at)++) {
            double value = (double)in[*which].at[*at];
            if (et_round_to_dtype(value, type) != value) return false;
        }
    return true;
}

/* A bundle stores these tensors in the case's precision. What that cannot hold would be computed
 * from, stored rounded, and contradict everything else in the bundle. */
static et_status check_precision(const et_step *s, const input in[INPUTS], et_error *error)
{
    int which, other;
    size_t at, elsewhere;
    if (holds_inputs(in, s->c.precision, &which, &at)) return ET_OK;
    return et_fail(error, ET_EINVAL,
                   "case '%s': %s[%zu] = %.17g is finer than the case's precision, %s; set "
                   "precision to %s, or round in.* to it",
                   s->c.name, in[which].name, at, (double)in[which].at[at],
                   et_dtype_name(s->c.precision),
                   holds_inputs(in, ET_F32, &other, &elsewhere) ? "f32" : "f64");
}

static et_status check_ema(const et_step *s, const input *ema, et_error *error)
{
    bool must_be_zero = s->c.ema_bias_correction && s->c.ema_updates == 0;
    for (size_t i = 0; must_be_zero && ema->at != NULL && i < ema->count; i++)
        if (ema->at[i] != 0)
            return et_fail(
                error, ET_EINVAL,
                "case '%s': in.ema[%zu] = %g is not zero but ema_updates is 0; allowed with "
                "ema_bias_correction: zeros, or the number of updates behind it",
                s->c.name, i, (double)ema->at[i]);
    return ET_OK;
}

static et_status check_load(const et_step *s, const input *load, et_error *error)
{
    double sum = 0;
    for (size_t i = 0; load->at != NULL && i < load->count; i++) {
        if (load->at[i] < 0)
            return et_fail(error, ET_EINVAL, "case '%s': in.load[%zu] = %g; allowed: 0 or more",
                           s->c.name, i, (double)load->at[i]);
        sum += (double)load->at[i];
    }
    if (load->at != NULL && !(sum > 0))
        return et_fail(error, ET_EINVAL, "case '%s': in.load sums to 0; allowed: more than 0",
                       s->c.name);
    return ET_OK;
}

static et_status check_mask(const et_step *s, et_error *error)
{
    size_t d = s->c.d_model;
    for (size_t t = 0; s->in.mask && t < s->c.tokens; t++) {
        bool padding = is_padding(&s->c, t);
        if (s->in.mask[t] != !padding)
            return et_fail(error, ET_EINVAL, "case '%s': in.mask[%zu] = %d; allowed: %d, by padding = %zu",
                           s->c.name, t, (int)s->in.mask[t], !padding, s->c.padding);
        for (size_t j = 0; padding && j < d; j++)
            if (s->in.dy[t * d + j] != 0)
                return et_fail(error, ET_EINVAL,
                               "case '%s': in.dy[%zu] = %g; allowed: 0, for token %zu is padding",
                               s->c.name, t * d + j, (double)s->in.dy[t * d + j], t);
    }
    return ET_OK;
}

static et_status check_model(const et_step *s, const input *second, et_error *error)
{
    const int32_t *words = s->model.targets;
    for (size_t t = 0; words && t < s->c.tokens; t++)
        if (words[t] < 0 || (size_t)words[t] >= s->c.vocab)
            return et_fail(error, ET_EINVAL, "case '%s': in.targets[%zu] = %d; allowed: 0 to %zu",
                           s->c.name, t, (int)words[t], s->c.vocab - 1);
    for (size_t i = 0; second->at != NULL && i < second->count; i++)
        if (second->at[i] < 0)
            return et_fail(error, ET_EINVAL, "case '%s': in.second[%zu] = %g; allowed: 0 or more",
                           s->c.name, i, (double)second->at[i]);
    return ET_OK;
}

et_status et_step_check_inputs(const et_step *s, et_error *error)
{
    ET_ARITHMETIC;
    input in[INPUTS];
    et_status status = ET_OK;
    list_inputs(s, in);
    for (int i = 0; status == ET_OK && i < INPUTS; i++) status = check_finite(s, &in[i], error);
    if (status == ET_OK) status = check_precision(s, in, error);
    if (status == ET_OK) status = check_ema(s, &in[EMA], error);
    if (status == ET_OK) status = check_load(s, &in[LOAD], error);
    if (status == ET_OK) status = check_mask(s, error);
    if (status == ET_OK) status = check_model(s, &in[SECOND], error);
    return status;
}
