/* kernel_impl.h: the kernel proper, in the word `num`: router, experts, combine, and back. Internal;
 * included by kernel_float.c and kernel_double.c, which define the word, GEMM and EXPORT.
 *
 *     r = x W_r'
 *     H = x W_up'        A = relu(H)^2        f = A W_down'        y = s f_shared + sum w f
 *     dO = w dy          dw = <dy, f>         dA = dO W_down       dH = dA 2 relu(H)
 *     dW_down = dO' A    dW_up = dH' x        dW_r = dr' x         dx = sum dH W_up + dr W_r
 *
 * At each value stands where it is rounded, which switch of the kernel spares it that, and which fault
 * would sit there.
 */
#include "tests/candidates/work.h"

#include <cblas.h>
#include <string.h>

/* ---- rounding ---- */

/* Formats that cd_round_short, and cd_round_narrow, can do in a float. */
static bool is_short(const cd_format *f)
{
    return sizeof(num) == sizeof(float) && f->bits <= 24 && f->emin == -126 && !f->truncate &&
           !f->ftz;
}

static bool is_narrow(const cd_format *f)
{
    return sizeof(num) == sizeof(float) && f->emin > -126 && !f->truncate && !f->ftz;
}

static num round_num(const cd_format *f, num v)
{
    return sizeof(num) == sizeof(float) && f->bits >= 24 && !f->ftz ? v
                                                                    : (num)cd_round(f, (double)v);
}

static void round_all(const cd_format *f, size_t count, num *v)
{
    if (is_short(f))
        for (size_t i = 0; i < count; i++)
            v[i] = v[i] == v[i] ? (num)cd_round_short(f->bits, (float)v[i]) : v[i];
    else if (is_narrow(f))
        for (size_t i = 0; i < count; i++) v[i] = (num)cd_round_narrow(f, (float)v[i]);
    else
        for (size_t i = 0; i < count; i++) v[i] = round_num(f, v[i]);
}

/* The result of one operation: rounded by the word itself, or to the accumulator emulated in it. */
static num fix(const cd_work *w, num v)
{
    return sizeof(num) == sizeof(float) ? v : (num)cd_round(&w->accumulator, (double)v);
}

#include "tests/candidates/products_impl.h"

/* ---- how sums are taken ---- */

static sums sums_of(const cd_work *w, size_t K)
{
    const cd_kernel *k = w->kernel;
    bool own = sizeof(num) == sizeof(float) || w->accumulator.bits == 53;
    return (sums){.order = k->order,
                  .tile = k->parts > 0 ? cd_ceil(K, k->parts) : 0,
                  .accumulator = own ? NULL : &w->accumulator,
                  .room = w->room};
}

/* Of H and f(x). */
static sums sums_of_forward(const cd_work *w, size_t K)
{
    sums s = sums_of(w, K);
    if (cd_bad(w, CD_ACCUMULATOR_BF16))
        s = (sums){.order = CD_SEQUENTIAL, .accumulator = &cd_eight_bits, .room = w->room};
    if (cd_bad(w, CD_ACCUMULATOR_F16))
        s = (sums){.order = CD_SEQUENTIAL, .accumulator = &cd_eleven_bits, .room = w->room};
    if (cd_bad(w, CD_SPLIT_BF16))
        s = (sums){.order = CD_SEQUENTIAL,
                   .tile = cd_ceil(K, 4),
                   .tiles = &cd_eight_bits,
                   .room = w->room};
    return s;
}

/* Over the tokens of an expert: weight gradients. */
static sums sums_of_tokens(const cd_work *w, size_t K)
{
    sums s = sums_of(w, K);
    if (w->kernel->token_tile > 0) s.tile = w->kernel->token_tile;
    if (cd_bad(w, CD_DW_BF16))
        s = (sums){.order = CD_SEQUENTIAL, .accumulator = &cd_eight_bits, .room = w->room};
    return s;
}

/* ---- operands ---- */

static matrix rows_of(const num *at, size_t columns)
{
    return (matrix){at, columns, false};
}

static matrix transpose_of(const num *at, size_t columns)
{
    return (matrix){at, columns, true};
}

/* As the case stores them. Exact: the float kernel gets no inputs that a float does not hold. */
static void load(const et_real *from, size_t count, num *to)
{
    for (size_t i = 0; i < count; i++) to[i] = (num)from[i];
}

static void load_operand(const cd_work *w, const et_real *from, size_t count, num *to)
{
    load(from, count, to);
    round_all(&w->operand, count, to);
}

static void to_operand(const cd_work *w, size_t count, const num *from, num *to)
{
    memcpy(to, from, count * sizeof *to);
    round_all(&w->operand, count, to);
}

et_status EXPORT(cd_load)(cd_work *w)
{
    size_t N = w->N, d = w->d, h = w->h > w->hs ? w->h : w->hs, widest = d > h ? d : h;
    if (w->n > widest) widest = w->n;
    bool had =
        (w->x = cd_take(w, N * d, sizeof(num))) && (w->dy = cd_take(w, N * d, sizeof(num))) &&
        (w->rows = cd_take(w, N * d, sizeof(num))) && (w->act = cd_take(w, N * h, sizeof(num))) &&
        (w->drows = cd_take(w, N * d, sizeof(num))) &&
        (w->dhidden = cd_take(w, N * h, sizeof(num))) && (w->up = cd_take(w, h * d, sizeof(num))) &&
        (w->down = cd_take(w, h * d, sizeof(num))) &&
        (w->room = cd_take(w, room_for_products(N, widest), sizeof(num)));
    if (!had) return ET_ENOMEM;
    load_operand(w, w->golden->in.x, N * d, w->x);
    load(w->golden->in.dy, N * d, w->dy);
    for (size_t j = 0; cd_bad(w, CD_GRADIENTS_SCALED) && j < N * d; j++)
        ((num *)w->dy)[j] *= (num)(1 + w->amount);
    if (w->kernel->short_upstream) round_all(&w->intermediate, N * d, w->dy);
    return ET_OK;
}

/* ---- r = x W_r' ---- */

/* x as the router sees it. */
static const num *router_rows(const cd_work *w)
{
    if (!w->kernel->wide_router) return w->x;
    load(w->golden->in.x, w->N * w->d, w->rows);
    return w->rows;
}

static void load_router(const cd_work *w, num *to)
{
    load(w->golden->in.router, w->n * w->d, to);
    if (!w->kernel->wide_router) round_all(&w->operand, w->n * w->d, to);
}

et_status EXPORT(cd_score)(cd_work *w)
{
    size_t N = w->N, n = w->n, d = w->d;
    num *router = cd_take(w, n * d, sizeof(num)), *r = cd_take(w, N * n, sizeof(num));
    w->logits = cd_take(w, N * n, sizeof(double));
    if (router == NULL || r == NULL || w->logits == NULL) return ET_ENOMEM;
    sums how = sums_of(w, d);
    /* Not by OpenBLAS, which computes the edges of a matrix in another order than its middle: equal
     * tokens, and equal experts, shall get equal scores. */
    if (how.order == CD_BLOCKED) how = (sums){CD_SEQUENTIAL, BLOCK, how.accumulator, NULL, w->room};
    load_router(w, router);
    product(&how, N, n, d, rows_of(router_rows(w), d), transpose_of(router, d), r);
    for (size_t j = 0; j < N * n; j++) w->logits[j] = cd_round(&w->logit, (double)r[j]);
    return ET_OK;
}

/* ---- one expert: some rows, and everything that belongs to them ---- */

typedef struct expert {
    size_t m, h;           /* rows, hidden width */
    const int32_t *tokens; /* [m], or NULL: 0, 1, .. m-1 */
    size_t first;          /* slot of the first row */
    const double *weight;  /* [m], or NULL: none (the dense layer) */
    bool is_shared;
    size_t index; /* of a routed expert */
    num *H, *A, *O, *dO, *dA, *dH, *dx, *dup, *ddown;
    double *dw;
} expert;

static expert routed(const cd_work *w, size_t i)
{
    size_t d = w->d, h = w->h, first = (size_t)w->a.expert_offsets[i], size = h * d;
    return (expert){.m = (size_t)w->a.load[i],
                    .h = h,
                    .tokens = w->a.slot_token + first,
                    .first = first,
                    .weight = w->slot_weight + first,
                    .index = i,
                    .H = (num *)w->H + first * h,
                    .A = (num *)w->A + first * h,
                    .O = (num *)w->O + first * d,
                    .dO = (num *)w->dO + first * d,
                    .dA = (num *)w->dA + first * h,
                    .dH = (num *)w->dH + first * h,
                    .dx = (num *)w->dx_slot + first * d,
                    .dup = (num *)w->dup + i * size,
                    .ddown = (num *)w->ddown + i * size,
                    .dw = w->dw + first};
}

static expert shared_expert(const cd_work *w)
{
    return (expert){.m = w->N,
                    .h = w->hs,
                    .weight = w->shared_weight,
                    .is_shared = true,
                    .H = w->shared_H,
                    .A = w->shared_A,
                    .O = w->shared_O,
                    .dO = w->shared_dO,
                    .dA = w->shared_dA,
                    .dH = w->shared_dH,
                    .dx = w->dx_shared,
                    .dup = w->dshared_up,
                    .ddown = w->dshared_down,
                    .dw = w->ds};
}

static expert dense_layer(const cd_work *w)
{
    return (expert){.m = w->N,
                    .h = w->h,
                    .H = w->H,
                    .A = w->A,
                    .O = w->O,
                    .dO = w->dO,
                    .dA = w->dA,
                    .dH = w->dH,
                    .dx = w->dx_slot,
                    .dup = w->dup,
                    .ddown = w->ddown};
}

/* Rows [first, first + count) of an expert, forward. */
static expert part(const cd_work *w, const expert *e, size_t first, size_t count)
{
    expert p = *e;
    p.m = count;
    p.first += first;
    p.tokens = e->tokens ? e->tokens + first : NULL;
    p.weight = e->weight ? e->weight + first : NULL;
    p.H += first * e->h;
    p.A += first * e->h;
    p.O += first * w->d;
    return p;
}

static void load_weights(const cd_work *w, const expert *e, size_t index)
{
    size_t size = e->h * w->d;
    const et_step_inputs *in = &w->golden->in;
    const et_real *up = e->is_shared ? in->shared_up : in->up + index * size;
    const et_real *down = e->is_shared ? in->shared_down : in->down + index * size;
    load_operand(w, up, size, w->up);
    load_operand(w, down, size, w->down);
}

static size_t token_of(const expert *e, size_t row)
{
    return e->tokens ? (size_t)e->tokens[row] : row;
}

/* The token that expert i's list names at `row`, where each list has room for `amount` and what is beyond stands where the
 * next one's begins, and is overwritten by it. */
static size_t listed_token(const cd_work *w, size_t i, size_t row)
{
    size_t room = (size_t)w->amount, at = i * room + row, token = 0;
    for (size_t k = i; k < w->n && k * room <= at; k++)
        if (at - k * room < (size_t)w->a.load[k])
            token = (size_t)w->a.slot_token[(size_t)w->a.expert_offsets[k] + at - k * room];
    return token;
}

/* x for H and dW_up: as the list says, or weighted, both faults. */
static void gather_x(const cd_work *w, const expert *e, bool by_slot, num *to);

static void gather(const cd_work *w, const expert *e, const num *from, bool by_slot, num *to)
{
    for (size_t j = 0; j < e->m; j++) {
        size_t t = by_slot && !e->is_shared ? (e->first + j) % w->N : token_of(e, j);
        memcpy(to + j * w->d, from + t * w->d, w->d * sizeof *to);
    }
}

static void gather_x(const cd_work *w, const expert *e, bool by_slot, num *to)
{
    size_t d = w->d;
    bool listed = cd_bad(w, CD_ROW_LIST) && !e->is_shared && e->tokens;
    bool weighted = cd_bad(w, CD_INPUT_WEIGHTED) && !e->is_shared && e->weight;
    gather(w, e, w->x, by_slot, to);
    for (size_t j = 0; listed && j < e->m; j++) {
        size_t row = e->first + j - (size_t)w->a.expert_offsets[e->index];
        memcpy(to + j * d, (const num *)w->x + listed_token(w, e->index, row) * d, d * sizeof *to);
    }
    for (size_t j = 0; weighted && j < e->m; j++)
        for (size_t c = 0; c < d; c++) to[j * d + c] = fix(w, (num)e->weight[j] * to[j * d + c]);
    if (weighted) round_all(&w->operand, e->m * d, to);
}

/* ---- forward: H, A, f ---- */

/* The weight with which f(x) enters y; w itself but for faults. */
static double y_weight(const cd_work *w, bool is_shared, double weight)
{
    if (is_shared) return weight;
    if (cd_bad(w, CD_GATE_FORGOTTEN) || cd_bad(w, CD_GATE_BEFORE_ACTIVATION) ||
        cd_bad(w, CD_INPUT_WEIGHTED))
        return 1;
    return cd_bad(w, CD_GATE_TWICE) ? cd_acc(w, weight * weight) : weight;
}

/* Numbers [d, end) of expert e's row j of gathered x times those behind row c of W_up, wherever these lie. */
static num terms_past_end(const cd_work *w, const expert *e, size_t j, size_t c, size_t end)
{
    size_t d = w->d, slot = e->first + j + 1, count = w->n * e->h * d;
    size_t at = (e->index * e->h + c) * d;
    num sum = 0;
    for (size_t k = d; slot < w->S && k < end && at + k < count; k++)
        sum += ((const num *)w->x)[(size_t)w->a.slot_token[slot] * d + k - d] *
               round_num(&w->operand, (num)w->golden->in.up[at + k]);
    return sum;
}

/* Terms of a sum over K that get into it. */
static size_t kept_terms(const cd_work *w, cd_fault_id lost, size_t K)
{
    if (!cd_bad(w, lost)) return K;
    return w->amount > 1 ? K - K % (size_t)w->amount : K - 1;
}

/* H = x W_up' */
static void up_project(const cd_work *w, const expert *e)
{
    size_t d = w->d, h = e->h;
    bool turned = !e->is_shared && cd_bad(w, CD_UP_TRANSPOSED) && d == h;
    sums how = sums_of_forward(w, d);
    product(&how, e->m, h, kept_terms(w, CD_TERMS_LOST, d), rows_of(w->rows, d),
            turned ? rows_of(w->up, h) : transpose_of(w->up, d), e->H);
    bool past = cd_bad(w, CD_PAST_END) && !e->is_shared && e->weight;
    for (size_t j = 0; past && j < e->m * h; j++)
        e->H[j] += terms_past_end(w, e, j / h, j % h, cd_ceil(d, 16) * 16);
    if (!w->kernel->fused_hidden) round_all(&w->intermediate, e->m * h, e->H);
}

/* x P(x), P the normal distribution's function, and its derivative. */
static double gelu(double x)
{
    return x * 0.5 * erfc(-x / sqrt(2));
}

static double gelu_slope(double x)
{
    return 0.5 * erfc(-x / sqrt(2)) + x * exp(-x * x / 2) / sqrt(8 * atan(1));
}

/* relu(H)^2 of one element in a row of this weight. */
static num activation(const cd_work *w, num H, num weight)
{
    num v = H;
    if (cd_bad(w, CD_GELU)) return (num)gelu((double)H);
    if (cd_bad(w, CD_GATE_BEFORE_ACTIVATION)) v = fix(w, weight * v);
    if (!cd_bad(w, CD_SQUARE_WITHOUT_RELU)) v = v > 0 ? v : 0;
    return cd_bad(w, CD_RELU_NOT_SQUARED) ? v : fix(w, v * v);
}

/* A = relu(H)^2 */
static void activate(const cd_work *w, const expert *e)
{
    bool gated = cd_bad(w, CD_GATE_BEFORE_ACTIVATION) && e->weight && !e->is_shared;
    for (size_t j = 0; j < e->m; j++) {
        num weight = gated ? (num)e->weight[j] : 1;
        for (size_t c = 0; c < e->h; c++)
            e->A[j * e->h + c] = cd_bad(w, CD_ACTIVATION_SKIPS) && c / 16 % 2
                                     ? e->H[j * e->h + c]
                                     : activation(w, e->H[j * e->h + c], weight);
    }
    if (!w->kernel->fused_act && !cd_weights_act(w)) round_all(&w->intermediate, e->m * e->h, e->A);
}

/* A as it enters a product: rounded as an operand, or w A, rounded as an intermediate and then so. */
static void act_operand(const cd_work *w, const expert *e, bool tampered, num *to)
{
    size_t h = e->h;
    bool weighted = cd_weights_act(w) && e->weight;
    for (size_t j = 0; weighted && j < e->m; j++) {
        double own = e->weight[j];
        num by = (num)(tampered ? y_weight(w, e->is_shared, own) : own);
        for (size_t c = 0; c < h; c++) to[j * h + c] = fix(w, by * e->A[j * h + c]);
    }
    if (!weighted) memcpy(to, e->A, e->m * h * sizeof *to);
    if (weighted && !w->kernel->fused_act) round_all(&w->intermediate, e->m * h, to);
    round_all(&w->operand, e->m * h, to);
}

static void scale_all(const cd_work *w, bool scaled, size_t count, num *v)
{
    for (size_t i = 0; scaled && i < count; i++) v[i] = fix(w, v[i] * (num)(1 + w->amount));
}

/* The tile of a fault that has one: its amount. */
static size_t tile_rows(const cd_work *w)
{
    return w->amount >= 1 ? (size_t)w->amount : 1;
}

/* Rows that a tiled kernel forgets at the end of an expert. */
static size_t dropped_rows(const cd_work *w, const expert *e)
{
    bool tiles = cd_bad(w, CD_TILE_16_DROPPED) || cd_bad(w, CD_TILE_64_DROPPED) ||
                 cd_bad(w, CD_TILE_128_DROPPED);
    if (e->is_shared || e->m == 0) return 0;
    if (cd_bad(w, CD_LAST_ROW_DROPPED)) return 1;
    return tiles ? e->m % tile_rows(w) : 0;
}

/* f = A W_down', or w f */
static void down_project(const cd_work *w, const expert *e)
{
    size_t d = w->d, h = e->h, dropped = dropped_rows(w, e);
    bool turned = !e->is_shared && cd_bad(w, CD_DOWN_TRANSPOSED) && d == h;
    bool some = !e->is_shared && e->weight && e->index == w->some_expert;
    sums how = sums_of_forward(w, h);
    act_operand(w, e, true, w->act);
    for (size_t j = 0; some && cd_bad(w, CD_READ_TOO_EARLY) && j < e->m; j++)
        if (j + 8 >= e->m) memset((num *)w->act + j * h + h / 2, 0, (h - h / 2) * sizeof(num));
    product(&how, e->m, d, kept_terms(w, CD_LAST_TERM_LOST, h), rows_of(w->act, h),
            turned ? rows_of(w->down, d) : transpose_of(w->down, h), e->O);
    scale_all(w, some && cd_bad(w, CD_EXPERT_SCALED), e->m * d, e->O);
    bool spared = w->kernel->fused_out || (cd_weights_act(w) && e->weight);
    if (!spared) round_all(&w->intermediate, e->m * d, e->O);
    memset(e->O + (e->m - dropped) * d, 0, dropped * d * sizeof(num));
}

static void expert_forward(const cd_work *w, const expert *e)
{
    gather_x(w, e, cd_bad(w, CD_SLOT_FOR_TOKEN), w->rows);
    up_project(w, e);
    activate(w, e);
    down_project(w, e);
}

/* ---- forward: all experts ---- */

static size_t neighbour(const cd_work *w, size_t i)
{
    return (i + 1) % w->n;
}

/* The expert in whose range a slot stands, if offsets are rounded down to 8. */
static void by_aligned_offsets(const cd_work *w, const expert *e)
{
    for (size_t j = 0; j < e->m; j++) {
        size_t owner = w->n - 1;
        while (owner > 0 && (size_t)w->a.expert_offsets[owner] / 8 * 8 > e->first + j) owner--;
        if (owner == e->index) continue;
        expert row = part(w, e, j, 1);
        load_weights(w, e, owner);
        expert_forward(w, &row);
    }
}

static void routed_forward(const cd_work *w, size_t i)
{
    expert e = routed(w, i);
    size_t from = cd_bad(w, CD_NEIGHBOUR_EXPERT) ? neighbour(w, i) : i;
    load_weights(w, &e, cd_bad(w, CD_FIRST_EXPERT) ? 0 : from);
    expert_forward(w, &e);
    if (cd_bad(w, CD_BLOCK_OF_PREVIOUS) && i == w->some_expert) {
        expert first = part(w, &e, 0, cd_smaller(16, e.m));
        load_weights(w, &e, (i + w->n - 1) % w->n);
        expert_forward(w, &first);
    }
    if (cd_bad(w, CD_OFFSETS_ALIGNED)) by_aligned_offsets(w, &e);
    if (!cd_bad(w, CD_NEIGHBOUR_TILE)) return;
    size_t rest = e.m % tile_rows(w);
    expert last = part(w, &e, e.m - rest, rest);
    load_weights(w, &e, neighbour(w, i));
    expert_forward(w, &last);
}

/* An empty expert takes the next slot for its own. */
static void empty_expert_writes(const cd_work *w, size_t i)
{
    expert e = routed(w, i);
    if (e.m > 0 || e.first == w->S) return;
    e.m = 1;
    load_weights(w, &e, i);
    expert_forward(w, &e);
}

static void experts_forward(cd_work *w)
{
    if (w->n == 0) {
        expert e = dense_layer(w);
        load_weights(w, &e, 0);
        expert_forward(w, &e);
        return;
    }
    for (size_t i = 0; i < w->n; i++) routed_forward(w, i);
    for (size_t i = 0; cd_bad(w, CD_EMPTY_EXPERT_WRITES) && i < w->n; i++)
        empty_expert_writes(w, i);
    if (w->hs > 0) {
        expert e = shared_expert(w);
        load_weights(w, &e, 0);
        expert_forward(w, &e);
    }
}

/* ---- what a token gathers: sums of weighted rows ---- */

typedef struct term {
    num weight;
    const num *row;
} term;

/* The slots of token t, in the order of token_slots, from slots' rows [S,d]. Returns how many. */
static size_t slot_terms(const cd_work *w, size_t t, const int32_t *slots, const num *rows,
                         bool weighted, term *out)
{
    size_t count = 0;
    for (int32_t j = w->a.token_offsets[t]; j < w->a.token_offsets[t + 1]; j++) {
        size_t slot = (size_t)slots[j];
        double by = weighted ? y_weight(w, false, w->slot_weight[slot]) : 1;
        out[count++] = (term){(num)by, rows + slot * w->d};
    }
    return count;
}

/* Token t's terms of y. */
static size_t y_terms(const cd_work *w, size_t t, const int32_t *slots, term *out)
{
    bool weighted = !cd_weights_act(w);
    size_t count = slot_terms(w, t, slots, w->O, weighted, out);
    if (cd_bad(w, CD_SECOND_OVERWRITES) && count > 1) {
        out[0] = out[count - 1];
        count = 1;
    }
    if (cd_bad(w, CD_SLOT_LOST) && count > 0) count--;
    bool twice = cd_bad(w, CD_SLOT_TWICE) || (cd_bad(w, CD_SLOT_TWICE_ONCE) && t == w->some_token);
    if (twice && count > 0) {
        out[count] = out[0];
        count++;
    }
    if (w->hs == 0 || cd_bad(w, CD_SHARED_FORGOTTEN)) return count;
    double s = weighted ? w->shared_weight[t] : 1;
    if (cd_bad(w, CD_SHARED_GATED)) s = cd_acc(w, s * w->gates[t * w->n]);
    term shared = {(num)s, (const num *)w->shared_O + t * w->d};
    out[count++] = shared;
    if (cd_bad(w, CD_SHARED_TWICE)) out[count++] = shared;
    return count;
}

/* Token t's terms of dx. */
static size_t dx_terms(const cd_work *w, size_t t, const int32_t *slots, term *out)
{
    size_t count = slot_terms(w, t, slots, w->dx_slot, false, out);
    if (cd_bad(w, CD_ROUTED_TERM)) count = 0;
    bool dropped = cd_bad(w, CD_DX_DROPPED) || (cd_bad(w, CD_DX_LOST) && t == w->some_token);
    if (dropped && count > 0) count--;
    if (cd_bad(w, CD_DX_OVERWRITES) && count > 1) {
        out[0] = out[count - 1];
        count = 1;
    }
    if (w->hs > 0 && !cd_bad(w, CD_SHARED_TERM))
        out[count++] = (term){1, (const num *)w->dx_shared + t * w->d};
    if (!cd_bad(w, CD_ROUTER_TERM)) out[count++] = (term){1, (const num *)w->dx_router + t * w->d};
    return count;
}

/* Fisher and Yates. */
static void shuffle(et_stream stream, uint64_t first, size_t count, term *list)
{
    for (size_t left = count; left > 1; left--) {
        size_t j = (size_t)(et_uniform(stream, first + left, 0) * (double)left);
        term last = list[left - 1];
        list[left - 1] = list[j];
        list[j] = last;
    }
}

/* Sums of terms, each sum rounded to `low` if that is not NULL. */
static void add_up(const cd_work *w, size_t count, const term *list, const cd_format *low, num *out)
{
    memset(out, 0, w->d * sizeof *out);
    for (size_t i = 0; i < count; i++) {
        num by = list[i].weight;
        const num *row = list[i].row;
        for (size_t c = 0; c < w->d; c++) out[c] = fix(w, out[c] + fix(w, by * row[c]));
        if (low != NULL) round_all(low, w->d, out);
    }
}

/* token_slots, or its inverse, a fault: to [S]. */
static void order_slots(const cd_work *w, bool inverse, int32_t *to)
{
    for (size_t j = 0; j < w->S; j++) {
        if (inverse)
            to[w->a.token_slots[j]] = (int32_t)j;
        else
            to[j] = w->a.token_slots[j];
    }
}

typedef size_t term_lister(const cd_work *w, size_t t, const int32_t *slots, term *out);

/* out [N,d]: every token's sum, in order or shuffled. */
static et_status gather_terms(cd_work *w, term_lister *terms_of, bool inverse, const cd_format *low,
                              const char *name, num *out)
{
    size_t most = w->n + 3;
    term *list = cd_take(w, most, sizeof *list);
    int32_t *slots = cd_take(w, w->S, sizeof *slots);
    if (list == NULL || slots == NULL) return ET_ENOMEM;
    et_stream stream = et_stream_open(w->seed, name);
    order_slots(w, inverse, slots);
    for (size_t t = 0; t < w->N; t++) {
        size_t count = terms_of(w, t, slots, list);
        if (w->kernel->shuffled) shuffle(stream, t * most, count, list);
        add_up(w, count, list, low, out + t * w->d);
    }
    return ET_OK;
}

/* y, dx and weight gradients: what leaves the kernel. */
static void put_out(const cd_work *w, bool scaled, size_t count, num *v)
{
    scale_all(w, scaled, count, v);
    if (!w->kernel->wide_outputs) round_all(&w->output, count, v);
}

static bool take_values(cd_work *w)
{
    size_t N = w->N, d = w->d, hs = w->hs;
    bool had = (w->H = cd_take(w, w->S * w->h, sizeof(num))) &&
               (w->A = cd_take(w, w->S * w->h, sizeof(num))) &&
               (w->O = cd_take(w, w->S * d, sizeof(num))) &&
               (w->y = cd_take(w, N * d, sizeof(num)));
    if (!had || hs == 0) return had;
    return (w->shared_H = cd_take(w, N * hs, sizeof(num))) &&
           (w->shared_A = cd_take(w, N * hs, sizeof(num))) &&
           (w->shared_O = cd_take(w, N * d, sizeof(num)));
}

static bool take_gradients(cd_work *w)
{
    size_t N = w->N, d = w->d, h = w->h, hs = w->hs, S = w->S, n = w->n > 0 ? w->n : 1;
    bool had =
        (w->dO = cd_take(w, S * d, sizeof(num))) && (w->dA = cd_take(w, S * h, sizeof(num))) &&
        (w->dH = cd_take(w, S * h, sizeof(num))) && (w->dx_slot = cd_take(w, S * d, sizeof(num))) &&
        (w->dup = cd_take(w, n * h * d, sizeof(num))) &&
        (w->ddown = cd_take(w, n * h * d, sizeof(num))) &&
        (w->dx = cd_take(w, N * d, sizeof(num))) && (w->dw = cd_take(w, S, sizeof(double))) &&
        (w->ds = cd_take(w, N, sizeof(double)));
    if (!had || hs == 0) return had;
    return (w->shared_dO = cd_take(w, N * d, sizeof(num))) &&
           (w->shared_dA = cd_take(w, N * hs, sizeof(num))) &&
           (w->shared_dH = cd_take(w, N * hs, sizeof(num))) &&
           (w->dx_shared = cd_take(w, N * d, sizeof(num))) &&
           (w->dshared_up = cd_take(w, hs * d, sizeof(num))) &&
           (w->dshared_down = cd_take(w, hs * d, sizeof(num)));
}

et_status EXPORT(cd_forward)(cd_work *w)
{
    if (!take_values(w) || !take_gradients(w)) return ET_ENOMEM;
    experts_forward(w);
    et_status status = ET_OK;
    if (w->n == 0)
        memcpy(w->y, w->O, w->N * w->d * sizeof(num));
    else
        status =
            gather_terms(w, y_terms, cd_bad(w, CD_INVERSE_Y),
                         cd_bad(w, CD_COMBINE_BF16) ? &cd_eight_bits : NULL, "candidate.y", w->y);
    put_out(w, cd_bad(w, CD_Y_SCALED), w->N * w->d, w->y);
    return status;
}

#include "tests/candidates/kernel_backward_impl.h"
