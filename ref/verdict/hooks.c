/* hooks.c: where a mutant's hooks are called, and what they see and build with. See mutant.h. */
#include "ref/base/memory.h"
#include "ref/verdict/mutant.h"

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

bool et_in_scope(const et_mutant *m, size_t expert, size_t token)
{
    const et_scope *c = &m->scope;
    return (c->experts == NULL || c->experts[expert]) && (c->tokens == NULL || c->tokens[token]);
}

size_t et_slots_of(const et_assignment *a, size_t t, const int32_t **slots)
{
    *slots = a->token_slots + a->token_offsets[t];
    return (size_t)(a->token_offsets[t + 1] - a->token_offsets[t]);
}

static et_real *at(et_real *array, size_t row, size_t columns)
{
    return array ? array + row * columns : NULL;
}

/* The picked rows of expert e. */
static et_rows_of rows_of(const et_mutant *m, et_stage stage, size_t e)
{
    const et_moe *moe = &m->moe;
    const et_moe_values *f = &m->s.fwd;
    const et_moe_grads *g = &m->s.bwd;
    const et_assignment *a = &m->pick->a;
    bool shared = e == moe->n;
    size_t d = moe->d, h = shared ? moe->hs : moe->h, size = h * d;
    size_t q = shared ? 0 : (size_t)a->expert_offsets[e];
    return (et_rows_of){.stage = stage,
                        .expert = e,
                        .first = q,
                        .count = shared ? m->pick->count : (size_t)a->load[e],
                        .width = h,
                        .up = shared ? moe->shared_up : moe->up + e * size,
                        .down = shared ? moe->shared_down : moe->down + e * size,
                        .w = at(shared ? f->shared_weight : f->slot_weight, q, 1),
                        .H = at(shared ? f->shared_pre : f->slot_pre, q, h),
                        .A = at(shared ? f->shared_act : f->slot_act, q, h),
                        .O = at(shared ? f->shared_out : f->slot_out, q, d),
                        .dO = at(shared ? g->shared_out : g->slot_out, q, d),
                        .dA = at(shared ? g->shared_act : g->slot_act, q, h),
                        .dH = at(shared ? g->shared_pre : g->slot_pre, q, h),
                        .dx = at(shared ? m->shared_dx : m->slot_dx, q, d),
                        .dup = shared ? g->shared_up : at(g->up, e, size),
                        .ddown = shared ? g->shared_down : at(g->down, e, size)};
}

/* Row q of them. */
static et_row row_of(const et_mutant *m, const et_rows_of *r, size_t q)
{
    const et_pick *p = m->pick;
    bool shared = r->expert == m->moe.n;
    size_t d = m->moe.d, row = r->first + q;
    size_t t = shared ? row : (size_t)p->a.slot_token[row], token = p->tokens[t];
    size_t slot = shared ? token : p->slots[row];
    size_t first = shared ? 0 : (size_t)m->a->expert_offsets[r->expert];
    et_real *dw = shared ? m->s.bwd.shared_weight : m->s.bwd.slot_weight;
    return (et_row){.expert = r->expert,
                    .slot = slot,
                    .token = token,
                    .place = slot - first,
                    .load = shared ? m->moe.N : (size_t)m->a->load[r->expert],
                    .width = r->width,
                    .w = at(r->w, q, 1),
                    .dw = at(dw, row, 1),
                    .H = at(r->H, q, r->width),
                    .A = at(r->A, q, r->width),
                    .dA = at(r->dA, q, r->width),
                    .dH = at(r->dH, q, r->width),
                    .O = at(r->O, q, d),
                    .dO = at(r->dO, q, d),
                    .dx = at(r->dx, q, d)};
}

/* A slot of the whole step, or the shared expert's row of a token, about to be weighed. */
static et_row weight_of(et_mutant *m, size_t slot, bool shared)
{
    const et_moe_values *f = &m->all.fwd;
    if (shared)
        return (et_row){
            .expert = m->moe.n, .slot = slot, .token = slot, .w = f->shared_weight + slot};
    return (et_row){.expert = (size_t)m->a->slot_expert[slot],
                    .slot = slot,
                    .token = (size_t)m->a->slot_token[slot],
                    .w = f->slot_weight + slot};
}

/* ---- calling hooks ---- */

static const et_hook *next_hook(const et_mutant *m, et_stage stage, const et_hook *after)
{
    return et_hypothesis_hook(m->what, m->variant, stage, after);
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

static void call_tokens(et_mutant *m, const et_hook *h)
{
    for (size_t t = 0; t < m->pick->count; t++)
        if (m->scope.tokens == NULL || m->scope.tokens[m->pick->tokens[t]]) h->token(m, t);
}

static void call_rows(et_mutant *m, const et_hook *h, et_stage stage, size_t e)
{
    et_rows_of r = rows_of(m, stage, e);
    if (m->scope.experts && !m->scope.experts[e]) return;
    if (h->rows) h->rows(m, &r);
    for (size_t q = 0; h->row && q < r.count; q++) {
        et_row row = row_of(m, &r, q);
        if (et_in_scope(m, e, row.token)) h->row(m, &row);
    }
}

/* After the weights, of all tokens. */
void et_mutant_call_weights(et_mutant *m)
{
    size_t N = m->moe.hs > 0 ? m->moe.N : 0, S = m->a->slots;
    for (const et_hook *h = NULL; (h = next_hook(m, ET_AT_WEIGHTS, h));) {
        if (h->whole) h->whole(m);
        for (size_t j = 0; h->row && j < S + N; j++) {
            et_row r = weight_of(m, j < S ? j : j - S, j >= S);
            if (et_in_scope(m, r.expert, r.token)) h->row(m, &r);
        }
    }
}

static size_t experts_of(const et_mutant *m)
{
    return m->moe.n + (m->moe.hs > 0 ? 1 : 0);
}

/* After a stage. Gradients of weights: of experts all of whose tokens were picked. */
void et_mutant_call(et_mutant *m, et_stage stage)
{
    bool gradients = stage == ET_AT_DUP || stage == ET_AT_DDOWN;
    for (const et_hook *h = NULL; (h = next_hook(m, stage, h));) {
        if (h->whole) h->whole(m);
        if (h->token) call_tokens(m, h);
        for (size_t e = 0; (h->row || h->rows) && e < experts_of(m); e++)
            if (!gradients || m->pick->complete[e]) call_rows(m, h, stage, e);
    }
}

/* The layer passes an array on its way: of one expert, or of all tokens. */
void et_mutant_hand(void *user, const char *site, size_t count, et_real *values)
{
    et_mutant *m = user;
    const struct {
        const char *site;
        et_stage stage;
        const et_real *slots, *shared;
    } sites[] = {{"H", ET_AT_PRE, m->s.fwd.slot_pre, m->s.fwd.shared_pre},
                 {"A", ET_AT_ACT, m->s.fwd.slot_act, m->s.fwd.shared_act},
                 {"dA", ET_AT_DACT, m->s.bwd.slot_act, m->s.bwd.shared_act},
                 {"dH", ET_AT_DPRE, m->s.bwd.slot_pre, m->s.bwd.shared_pre},
                 {"dp", ET_AT_DGATES, NULL, NULL},
                 {"dr", ET_AT_DLOGITS, NULL, NULL}};
    for (size_t i = 0; count > 0 && i < sizeof sites / sizeof *sites; i++) {
        if (strcmp(sites[i].site, site) != 0 || !et_mutant_hooked(m, sites[i].stage)) continue;
        bool shared = values == sites[i].shared;
        if (sites[i].slots == NULL)
            et_mutant_call(m, sites[i].stage);
        else
            for (const et_hook *h = NULL; (h = next_hook(m, sites[i].stage, h));) {
                size_t first = shared ? 0 : (size_t)(values - sites[i].slots) / m->moe.h;
                size_t e = shared ? m->moe.n : (size_t)m->pick->a.slot_expert[first];
                call_rows(m, h, sites[i].stage, e);
            }
    }
}

/* ---- products that hooks take again ---- */

static et_matrix turned_if(bool so, et_matrix X)
{
    X.transposed ^= so;
    return X;
}

/* x of the rows' tokens. */
static void gather_x(const et_mutant *m, const et_rows_of *r, et_real *to)
{
    size_t d = m->moe.d;
    const int32_t *tokens = r->expert < m->moe.n ? m->pick->a.slot_token + r->first : NULL;
    for (size_t q = 0; q < r->count; q++)
        memcpy(to + q * d, m->on->x + (tokens ? (size_t)tokens[q] : q) * d, d * sizeof *to);
}

/* One of the four products of rows by weights: to [count,columns] = from [count,K] W. */
typedef struct product {
    const et_real *from;
    et_real *to;
    size_t K, columns;
    et_matrix W;
} product;

static product product_at(const et_mutant *m, const et_rows_of *r, const et_real *W)
{
    size_t d = m->moe.d, h = r->width;
    switch (r->stage) {
    case ET_AT_PRE: return (product){NULL, r->H, d, h, et_transposed(W, d)};
    case ET_AT_OUT: return (product){r->A, r->O, h, d, et_transposed(W, h)};
    case ET_AT_DACT: return (product){r->dO, r->dA, d, h, et_rows(W, h)};
    default: return (product){r->dH, r->dx, h, d, et_rows(W, d)};
    }
}

void et_through(et_mutant *m, const et_rows_of *r, const et_real *W, bool turned, const et_real *x)
{
    product p = product_at(m, r, W);
    void *room = NULL;
    if (r->stage == ET_AT_PRE) p.from = x;
    if (p.from == NULL) {
        if (et_allocate(&room, r->count * p.K, sizeof(et_real), "rows", NULL) != ET_OK) {
            m->status = ET_ENOMEM;
            return;
        }
        gather_x(m, r, room);
        p.from = room;
    }
    et_matmul(ET_BLAS, r->count, p.columns, p.K, et_rows(p.from, p.K), turned_if(turned, p.W),
              false, p.to, p.columns);
    free(room);
}

bool et_take_shares(et_mutant *m)
{
    size_t d = m->moe.d;
    if (m->slot_dx) return true;
    m->slot_dx = et_mutant_reals(m, m->pick->a.slots * d);
    m->shared_dx = et_mutant_reals(m, m->moe.hs > 0 ? m->pick->count * d : 0);
    for (size_t e = 0; m->status == ET_OK && e < experts_of(m); e++) {
        et_rows_of r = rows_of(m, ET_AT_SLOT_DX, e);
        et_matmul(ET_BLAS, r.count, d, r.width, et_rows(r.dH, r.width), et_rows(r.up, d), false,
                  r.dx, d);
    }
    return m->status == ET_OK;
}
