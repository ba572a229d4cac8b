/* mutant_hooks.c: where a mutant's hooks are called, and what they see and build with. See mutant.h. */
#include "ref/base/memory.h"
#include "ref/diagnose/mutant.h"

#include <stdlib.h>
#include <string.h>

/* ---- room ---- */

void *et_mutant_own(et_mutant *m, size_t count, size_t size)
{
    void *room = NULL;
    if (m->status == ET_OK && m->own_count == ET_MAX_OWN) m->status = ET_ENOMEM;
    if (m->status == ET_OK) m->status = et_allocate(&room, count, size, "mutant", NULL);
    if (room) m->owned[m->own_count++] = room;
    return room;
}

et_real *et_mutant_reals(et_mutant *m, size_t count)
{
    return et_mutant_own(m, count, sizeof(et_real));
}

int32_t *et_mutant_integers(et_mutant *m, size_t count)
{
    return et_mutant_own(m, count, sizeof(int32_t));
}

et_real *et_mutant_copy(et_mutant *m, const et_real *from, size_t count)
{
    et_real *to = et_mutant_reals(m, count);
    if (to) memcpy(to, from, count * sizeof *to);
    return to;
}

/* ---- rows ---- */

void et_scale_values(size_t count, double factor, et_real *values)
{
    for (size_t j = 0; j < count; j++) values[j] *= (et_real)factor;
}

void et_add_row(size_t d, et_real factor, const et_real *from, et_real *to)
{
    for (size_t c = 0; c < d; c++) to[c] += factor * from[c];
}

size_t et_slots_of(const et_assignment *a, size_t t, const int32_t **slots)
{
    *slots = a->token_slots + a->token_offsets[t];
    return (size_t)(a->token_offsets[t + 1] - a->token_offsets[t]);
}

et_real et_factor_of_x(const et_mutant *m, const et_row *r, size_t q)
{
    const et_real *w = m->used.slot_weight ? m->used.slot_weight : m->s.fwd.slot_weight;
    return m->moe.weighs_input && r->expert < m->moe.n ? w[r->first + q] : 1;
}

/* Where the numbers of a stage stand from row q of the sub-step on; NULL: not computed yet. */
static et_real *rows_at(et_mutant *m, et_stage stage, bool shared, size_t q)
{
    et_real **array = stage == ET_AT_MIX       ? &m->mixed[shared]
                      : stage == ET_AT_SLOT_DX ? &m->shares[shared]
                                               : et_array_at(&m->s, stage, shared);
    return *array ? *array + q * et_columns_at(&m->moe, stage, shared) : NULL;
}

/* Numbers of expert e's row that comes first: of the sub-step, and of the whole. */
static et_row numbers_of(const et_mutant *m, size_t e, size_t q)
{
    const et_pick *p = m->pick;
    bool shared = e == m->moe.n;
    size_t t = shared ? q : (size_t)p->a.slot_token[q], token = p->tokens[t];
    size_t slot = shared ? token : p->slots[q];
    size_t first = shared ? 0 : (size_t)m->a->expert_offsets[e];
    size_t load = shared ? m->moe.N : (size_t)m->a->load[e];
    return (et_row){.t = t, .token = token, .slot = slot, .place = slot - first, .load = load};
}

/* W_gate of expert e. */
static const et_real *gating_of(const et_moe *moe, size_t e)
{
    if (moe->activation != ET_SWIGLU) return NULL;
    return e == moe->n ? moe->shared_gating : moe->gating + e * moe->h * moe->d;
}

static const et_real *bias_of(const et_moe *moe, size_t e, const et_real *all, size_t columns,
                              const et_real *shared)
{
    return e == moe->n ? shared : all ? all + e * columns : NULL;
}

/* `count` rows of expert e from row q of the sub-step on. */
static et_row rows_of(et_mutant *m, et_stage stage, size_t e, size_t q, size_t count)
{
    const et_moe *moe = &m->moe;
    bool shared = e == moe->n, weights = et_rows_at(stage) == ET_OF_EXPERTS;
    size_t h = shared ? moe->hs : moe->h, size = h * moe->d;
    et_row r = count > 0 ? numbers_of(m, e, q) : (et_row){0};
    r.stage = stage, r.expert = e, r.first = q, r.count = count, r.width = h;
    r.up = shared ? moe->shared_up : moe->up + e * size;
    r.down = shared ? moe->shared_down : moe->down + e * size;
    r.w = rows_at(m, ET_AT_WEIGHTS, shared, q);
    r.gating = gating_of(moe, e);
    r.b_up = bias_of(moe, e, moe->b_up, h, moe->shared_b_up);
    r.b_gate = bias_of(moe, e, moe->b_gate, h, moe->shared_b_gate);
    r.b_down = bias_of(moe, e, moe->b_down, moe->d, moe->shared_b_down);
    r.H = rows_at(m, ET_AT_PRE, shared, q);
    r.V = rows_at(m, ET_AT_GATE_PRE, shared, q);
    r.A = rows_at(m, ET_AT_ACT, shared, q);
    r.dw = rows_at(m, ET_AT_DWEIGHT, shared, q);
    r.dO = rows_at(m, ET_AT_DOUT, shared, q);
    r.dA = rows_at(m, ET_AT_DACT, shared, q);
    r.dH = rows_at(m, ET_AT_DPRE, shared, q);
    r.dV = rows_at(m, ET_AT_DGATE_PRE, shared, q);
    r.values = rows_at(m, stage, shared, !weights ? q : shared ? 0 : e);
    r.size = (weights ? 1 : count) * et_columns_at(moe, stage, shared);
    return r;
}

/* A slot of the whole step, or the shared expert's row of a token, about to be weighed. */
static et_row weight_of(const et_mutant *m, size_t slot, bool shared)
{
    const et_moe_values *f = &m->all.fwd;
    et_real *w = (shared ? f->shared_weight : f->slot_weight) + slot;
    return (et_row){.stage = ET_AT_WEIGHTS,
                    .expert = shared ? m->moe.n : (size_t)m->a->slot_expert[slot],
                    .slot = slot,
                    .token = shared ? slot : (size_t)m->a->slot_token[slot],
                    .w = w,
                    .values = w,
                    .size = 1,
                    .count = 1};
}

/* Of an array that has a row a token, or is one row. */
static et_row token_row(et_mutant *m, et_stage stage, size_t t)
{
    return (et_row){.stage = stage,
                    .t = t,
                    .token = m->pick->tokens[t],
                    .values = rows_at(m, stage, false, t),
                    .size = et_columns_at(&m->moe, stage, false),
                    .count = 1};
}

/* ---- calling hooks ---- */

static const et_hook *next_hook(const et_mutant *m, et_stage stage, const et_hook *after)
{
    return et_hypothesis_hook(m->fault.what, m->fault.variant, stage, after);
}

bool et_mutant_hooked(const et_mutant *m, et_stage stage)
{
    return next_hook(m, stage, NULL) != NULL;
}

void et_mutant_settings(et_mutant *m, et_stage stage, et_step *s)
{
    for (const et_hook *h = NULL; (h = next_hook(m, stage, h));)
        if (h->settings) h->settings(m, s);
}

static bool has_expert(const et_mutant *m, size_t e)
{
    et_where where = m->fault.scope.where;
    if (where == ET_IN_EXPERTS) return m->fault.scope.marks[e];
    return where == ET_IN_ROUTED ? e < m->moe.n : where != ET_IN_SHARED || e == m->moe.n;
}

/* A row's mark in a scope of rows. */
static bool has_row(const et_mutant *m, const et_row *r)
{
    const uint8_t *marks = m->fault.scope.marks;
    size_t S = m->a->slots, N = m->moe.N;
    if (et_rows_at(r->stage) == ET_OF_TOKENS) return marks[S + N + r->token];
    return r->expert == m->moe.n ? marks[S + r->token] : marks[r->slot];
}

static void call_row(et_mutant *m, const et_hook *h, const et_row *r)
{
    et_where where = m->fault.scope.where;
    bool token = where != ET_IN_TOKENS || m->fault.scope.marks[r->token];
    bool expert = et_rows_at(r->stage) == ET_OF_TOKENS || has_expert(m, r->expert);
    bool row = where != ET_IN_ROWS || has_row(m, r);
    if (token && expert && row && (h->who == NULL || h->who(m, r))) h->row(m, r);
}

/* Rows of slots that stand together and are in a scope of rows, all of them in one call. */
static void call_marked_rows(et_mutant *m, const et_hook *h, et_stage stage, size_t e, size_t first,
                             size_t count)
{
    for (size_t q = 0, run; q < count; q += run) {
        et_row r = rows_of(m, stage, e, first + q, 1);
        bool marked = has_row(m, &r);
        for (run = 1; q + run < count; run++) {
            r = rows_of(m, stage, e, first + q + run, 1);
            if (has_row(m, &r) != marked) break;
        }
        r = rows_of(m, stage, e, first + q, run);
        if (marked) h->rows(m, &r);
    }
}

static void call_expert(et_mutant *m, const et_hook *h, et_stage stage, size_t e)
{
    bool shared = e == m->moe.n;
    size_t first = shared ? 0 : (size_t)m->pick->a.expert_offsets[e];
    size_t count = shared ? m->pick->count : (size_t)m->pick->a.load[e];
    if (!has_expert(m, e)) return;
    et_row all = rows_of(m, stage, e, first, count);
    if (h->rows && m->fault.scope.where == ET_IN_ROWS)
        call_marked_rows(m, h, stage, e, first, count);
    else if (h->rows)
        h->rows(m, &all);
    for (size_t q = 0; h->row && q < count; q++) {
        et_row r = rows_of(m, stage, e, first + q, 1);
        call_row(m, h, &r);
    }
}

static size_t experts_of(const et_mutant *m)
{
    return m->moe.n + (m->moe.hs > 0 ? 1 : 0);
}

static void call_rows(et_mutant *m, const et_hook *h, et_stage stage)
{
    et_rows_are_of of = et_rows_at(stage);
    for (size_t t = 0; of == ET_OF_TOKENS && h->row && t < m->pick->count; t++) {
        et_row r = token_row(m, stage, t);
        call_row(m, h, &r);
    }
    for (size_t e = 0; (of == ET_OF_SLOTS || of == ET_OF_EXPERTS) && e < experts_of(m); e++)
        if (of == ET_OF_SLOTS || m->pick->complete[e]) call_expert(m, h, stage, e);
    if (of != ET_OF_ALL) return;
    et_row all = token_row(m, stage, 0);
    h->rows(m, &all);
}

void et_mutant_call(et_mutant *m, et_stage stage)
{
    for (const et_hook *h = NULL; (h = next_hook(m, stage, h));) {
        if (h->whole) h->whole(m);
        if (h->row || h->rows) call_rows(m, h, stage);
    }
}

void et_mutant_call_weights(et_mutant *m)
{
    size_t N = m->moe.hs > 0 ? m->moe.N : 0, S = m->a->slots;
    for (const et_hook *h = NULL; (h = next_hook(m, ET_AT_WEIGHTS, h));) {
        if (h->whole) h->whole(m);
        for (size_t j = 0; h->row && j < S + N; j++) {
            et_row r = weight_of(m, j < S ? j : j - S, j >= S);
            call_row(m, h, &r);
        }
    }
}

void et_mutant_hand(void *user, const char *site, size_t count, et_real *values)
{
    static const struct {
        const char *site;
        et_stage stage;
    } sites[] = {{"H", ET_AT_PRE},        {"A", ET_AT_ACT},    {"dA", ET_AT_DACT},
                 {"dH", ET_AT_DPRE},      {"V", ET_AT_GATE_PRE}, {"dV", ET_AT_DGATE_PRE},
                 {"dp", ET_AT_DGATES},    {"dr", ET_AT_DLOGITS}};
    et_mutant *m = user;
    size_t i = 0, sites_count = sizeof sites / sizeof *sites;
    while (i < sites_count && strcmp(sites[i].site, site) != 0) i++;
    if (count == 0 || i == sites_count || !et_mutant_hooked(m, sites[i].stage)) return;
    et_stage stage = sites[i].stage;
    if (et_rows_at(stage) == ET_OF_TOKENS) {
        et_mutant_call(m, stage);
        return;
    }
    size_t e = m->moe.n; /* the shared one, or whose rows these are */
    if (values != rows_at(m, stage, true, 0)) {
        const et_real *first = rows_at(m, stage, false, 0);
        e = (size_t)m->pick->a.slot_expert[(size_t)(values - first) / m->moe.h];
    }
    for (const et_hook *h = NULL; (h = next_hook(m, stage, h));) call_expert(m, h, stage, e);
}

/* ---- products that hooks take again ---- */

static et_matrix turned_if(bool so, et_matrix X)
{
    X.transposed ^= so;
    return X;
}

/* x of the rows' tokens, as the expert sees it; or of the rows x [count,d]. */
static void gather_x(const et_mutant *m, const et_row *r, const et_real *x, et_real *to)
{
    size_t d = m->moe.d;
    const int32_t *tokens = r->expert < m->moe.n ? m->pick->a.slot_token : NULL;
    for (size_t q = 0; q < r->count; q++) {
        size_t row = r->first + q, t = tokens ? (size_t)tokens[row] : row;
        memcpy(to + q * d, x ? x + q * d : m->on->x + t * d, d * sizeof *to);
        et_scale_values(d, (double)et_factor_of_x(m, r, q), to + q * d);
    }
}

/* to [count,columns] = from [count,K] op(W), and, of the shares of dx with swiglu, + dV op(more). */
typedef struct product {
    const et_real *from;
    size_t K, columns;
    et_matrix W, more;
    const et_real *bias; /* [columns], added; or NULL */
} product;

/* The bias beside the weights W, which are an expert's own or another's. */
static const et_real *bias_beside(const et_moe *moe, const et_row *r, const et_real *W)
{
    const struct {
        const et_real *all, *bias, *own, *own_bias;
        size_t columns;
    } list[] = {{moe->up, moe->b_up, r->up, r->b_up, moe->h},
                {moe->gating, moe->b_gate, r->gating, r->b_gate, moe->h},
                {moe->down, moe->b_down, r->down, r->b_down, moe->d}};
    size_t size = moe->h * moe->d;
    for (size_t i = 0; i < sizeof list / sizeof *list; i++) {
        if (W == list[i].own) return list[i].own_bias;
        if (list[i].bias && W >= list[i].all && W < list[i].all + moe->n * size)
            return list[i].bias + (size_t)(W - list[i].all) / size * list[i].columns;
    }
    return NULL;
}

/* W_gate of the expert whose W_up is W. */
static const et_real *gating_beside(const et_moe *moe, const et_row *r, const et_real *W)
{
    return r->expert < moe->n ? moe->gating + (W - moe->up) : r->gating;
}

static product product_at(const et_mutant *m, const et_row *r, const et_real *W)
{
    size_t d = m->moe.d, h = r->width;
    switch (r->stage) {
    case ET_AT_PRE:
    case ET_AT_GATE_PRE:
        return (product){.K = d, .columns = h, .W = et_transposed(W, d), .bias = bias_beside(&m->moe, r, W)};
    case ET_AT_OUT:
        return (product){.from = r->A,
                         .K = h,
                         .columns = d,
                         .W = et_transposed(W, h),
                         .bias = bias_beside(&m->moe, r, W)};
    case ET_AT_DACT: return (product){.from = r->dO, .K = d, .columns = h, .W = et_rows(W, h)};
    default: break;
    }
    product p = {.from = r->dH, .K = h, .columns = d, .W = et_rows(W, d)};
    if (m->moe.activation == ET_SWIGLU) p.more = et_rows(gating_beside(&m->moe, r, W), d);
    return p;
}

static void through(et_mutant *m, const et_row *r, const et_real *W, bool turned, const et_real *x,
                    size_t terms)
{
    product p = product_at(m, r, W);
    void *room = NULL;
    if (terms == 0 || terms > p.K) terms = p.K;
    if (p.from == NULL) {
        if (et_allocate(&room, r->count * p.K, sizeof(et_real), "rows", NULL) != ET_OK) {
            m->status = ET_ENOMEM;
            return;
        }
        gather_x(m, r, x, room);
        p.from = room;
    }
    et_matmul(ET_BLAS, r->count, p.columns, terms, et_rows(p.from, p.K), turned_if(turned, p.W),
              false, r->values, p.columns);
    if (p.more.at != NULL)
        et_matmul(ET_BLAS, r->count, p.columns, terms, et_rows(r->dV, p.K), turned_if(turned, p.more),
                  true, r->values, p.columns);
    for (size_t i = 0; p.bias && i < r->count * p.columns; i++)
        r->values[i] += p.bias[i % p.columns];
    free(room);
}

void et_through(et_mutant *m, const et_row *r, const et_real *W, bool turned, const et_real *x)
{
    through(m, r, W, turned, x, 0);
}

void et_through_terms(et_mutant *m, const et_row *r, size_t terms)
{
    bool up = r->stage == ET_AT_PRE || r->stage == ET_AT_SLOT_DX;
    const et_real *W = r->stage == ET_AT_GATE_PRE ? r->gating : up ? r->up : r->down;
    if (terms == 0)
        et_scale_values(r->size, 0, r->values);
    else
        through(m, r, W, false, NULL, terms);
}

bool et_take_shares(et_mutant *m)
{
    size_t d = m->moe.d, n = m->moe.n, count = m->pick->count;
    const et_assignment *a = &m->pick->a;
    if (m->shares[0]) return true;
    m->shares[0] = et_mutant_reals(m, a->slots * d);
    m->shares[1] = et_mutant_reals(m, m->moe.hs > 0 ? count * d : 0);
    for (size_t e = 0; m->status == ET_OK && e < experts_of(m); e++) {
        size_t first = e < n ? (size_t)a->expert_offsets[e] : 0;
        et_row r = rows_of(m, ET_AT_SLOT_DX, e, first, e < n ? (size_t)a->load[e] : count);
        et_through(m, &r, r.up, false, NULL);
    }
    return m->status == ET_OK;
}
