/* deviant.c: the step once more, with one thing done wrong. See deviant.h.
 *
 * Every stage is one of the lines of moe.h, and looks the same: take new arrays; compute again what
 * depends on something that deviates, copy the rest from the reference; then call the hook. `needs`
 * says what depends on what. Products run on the fast engine, over the picked rows of one expert
 * at a time.
 *
 * Left out: metric.*, which restate other tensors; route.topk_*, which the mask and the scores imply.
 */
#include "ref/verdict/deviant.h"
#include "ref/base/memory.h"

#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#define BIT(stage) (1U << (stage))

/* On which earlier stages each one depends. Selection and state are apart: what follows from another
 * mask is computed only for a deviant that is `rerouted`, and then all of it. */
static const unsigned needs[ET_STAGES] = {
    [ET_AT_MASK] = BIT(ET_AT_PLAN),
    [ET_AT_CUTOFF] = BIT(ET_AT_PLAN),
    [ET_AT_STATE] = BIT(ET_AT_CUTOFF),
    [ET_AT_WEIGHTS] = BIT(ET_AT_GATES),
    [ET_AT_ACT] = BIT(ET_AT_PRE),
    [ET_AT_OUT] = BIT(ET_AT_ACT),
    [ET_AT_Y] = BIT(ET_AT_WEIGHTS) | BIT(ET_AT_OUT),
    [ET_AT_LOSSES] = BIT(ET_AT_GATES),
    [ET_AT_DWEIGHT] = BIT(ET_AT_OUT),
    [ET_AT_DOUT] = BIT(ET_AT_WEIGHTS),
    [ET_AT_DDOWN] = BIT(ET_AT_DOUT) | BIT(ET_AT_ACT),
    [ET_AT_DACT] = BIT(ET_AT_DOUT),
    [ET_AT_DPRE] = BIT(ET_AT_DACT) | BIT(ET_AT_PRE),
    [ET_AT_DUP] = BIT(ET_AT_DPRE),
    [ET_AT_SLOT_DX] = BIT(ET_AT_DPRE),
    [ET_AT_DGATES] = BIT(ET_AT_DWEIGHT) | BIT(ET_AT_WEIGHTS) | BIT(ET_AT_LOSSES),
    [ET_AT_DLOGITS] = BIT(ET_AT_DGATES) | BIT(ET_AT_GATES) | BIT(ET_AT_LOSSES),
    [ET_AT_DROUTER] = BIT(ET_AT_DLOGITS),
    [ET_AT_DX] = BIT(ET_AT_SLOT_DX) | BIT(ET_AT_DLOGITS),
};

/* What the backward pass takes from the forward pass. */
static const unsigned forward = BIT(ET_AT_GATES) | BIT(ET_AT_WEIGHTS) | BIT(ET_AT_PRE) |
                                BIT(ET_AT_ACT) | BIT(ET_AT_OUT) | BIT(ET_AT_Y) | BIT(ET_AT_LOSSES);

et_stage et_stage_of(const char *tensor)
{
    static const struct {
        const char *name;
        et_stage stage;
    } stages[] = {
        {"fwd.gates", ET_AT_GATES},
        {"route.threshold", ET_AT_PLAN},
        {"route.mask", ET_AT_MASK},
        {"route.margin", ET_AT_MASK},
        {"route.cutoff", ET_AT_CUTOFF},
        {"route.pool_cutoff", ET_AT_CUTOFF},
        {"route.load", ET_AT_MASK},
        {"route.fanout", ET_AT_MASK},
        {"route.expert_offsets", ET_AT_LAYOUT},
        {"route.token_offsets", ET_AT_LAYOUT},
        {"route.slot_token", ET_AT_LAYOUT},
        {"route.slot_expert", ET_AT_LAYOUT},
        {"route.token_slots", ET_AT_LAYOUT},
        {"route.slot_weight", ET_AT_WEIGHTS},
        {"fwd.slot_pre", ET_AT_PRE},
        {"fwd.slot_act", ET_AT_ACT},
        {"fwd.slot_out", ET_AT_OUT},
        {"fwd.shared_pre", ET_AT_PRE},
        {"fwd.shared_act", ET_AT_ACT},
        {"fwd.shared_out", ET_AT_OUT},
        {"fwd.shared_weight", ET_AT_WEIGHTS},
        {"fwd.y", ET_AT_Y},
        {"loss.aux", ET_AT_LOSSES},
        {"loss.z", ET_AT_LOSSES},
        {"bwd.slot_weight", ET_AT_DWEIGHT},
        {"bwd.slot_out", ET_AT_DOUT},
        {"bwd.slot_act", ET_AT_DACT},
        {"bwd.slot_pre", ET_AT_DPRE},
        {"bwd.shared_weight", ET_AT_DWEIGHT},
        {"bwd.shared_out", ET_AT_DOUT},
        {"bwd.shared_act", ET_AT_DACT},
        {"bwd.shared_pre", ET_AT_DPRE},
        {"bwd.logits", ET_AT_DLOGITS},
        {"bwd.x", ET_AT_DX},
        {"bwd.w_router", ET_AT_DROUTER},
        {"bwd.w_up", ET_AT_DUP},
        {"bwd.w_down", ET_AT_DDOWN},
        {"bwd.shared_up", ET_AT_DUP},
        {"bwd.shared_down", ET_AT_DDOWN},
        {"state.ema", ET_AT_STATE},
        {"state.updates", ET_AT_STATE},
        {"state.bias", ET_AT_STATE},
    };
    for (size_t i = 0; i < sizeof stages / sizeof *stages; i++)
        if (strcmp(stages[i].name, tensor) == 0) return stages[i].stage;
    return ET_STAGES;
}

/* ---- hypotheses ---- */

static bool is_hook(const et_hook *h)
{
    return h->whole || h->token || h->row || h->factors || h->weights || h->input;
}

/* The variant's hooks at a stage, one after the other; NULL when there are no more. */
static const et_hook *hook_at(const et_hypothesis *what, size_t variant, et_stage stage,
                              const et_hook *after)
{
    const et_hook *end = what ? what->hooks + ET_MAX_HOOKS : NULL;
    for (const et_hook *h = after ? after + 1 : what ? what->hooks : NULL; h != end; h++) {
        if (!is_hook(h)) return NULL;
        if (h->at == stage && (h->variants == 0 || (h->variants >> variant & 1))) return h;
    }
    return NULL;
}

bool et_hypothesis_has(const et_hypothesis *what, size_t variant)
{
    return variant < ET_MAX_VARIANTS && what->variants[variant] != NULL;
}

et_stage et_hypothesis_starts(const et_hypothesis *what, size_t variant)
{
    int stage = 0;
    while (stage < ET_STAGES && !hook_at(what, variant, (et_stage)stage, NULL)) stage++;
    return (et_stage)stage;
}

bool et_hypothesis_reaches(const et_hypothesis *what, size_t variant, bool forward_only,
                           et_stage stage)
{
    unsigned reached = 0;
    for (int i = 0; i <= (int)stage; i++) {
        if (i == ET_AT_DWEIGHT && forward_only) reached &= ~forward;
        if ((needs[i] & reached) || hook_at(what, variant, (et_stage)i, NULL)) reached |= BIT(i);
    }
    return reached >> stage & 1;
}

/* ---- picks ---- */

static void pick_close(et_pick *p)
{
    free(p->token);
    free(p->complete);
    free(p->rows);
    free(p->first);
    *p = (et_pick){0};
}

static void close_segment(et_pick *p, size_t e, size_t count, size_t load)
{
    size_t rows = count - p->first[e];
    p->complete[e] = rows == load;
    if (rows > p->most) p->most = rows;
    p->first[e + 1] = count;
}

static et_status pick_open(et_pick *p, const et_assignment *a, bool shared, const uint8_t *tokens,
                           et_error *error)
{
    size_t N = a->tokens, n = a->experts, count = 0;
    void *room[4] = {NULL};
    *p = (et_pick){.whole = true};
    et_status status = et_allocate(&room[0], N, 1, "picked tokens", error);
    if (status == ET_OK) status = et_allocate(&room[1], n + 1, 1, "picked experts", error);
    if (status == ET_OK)
        status = et_allocate(&room[2], a->slots + N, sizeof(size_t), "picked rows", error);
    if (status == ET_OK)
        status = et_allocate(&room[3], n + 2, sizeof(size_t), "picked rows", error);
    p->token = room[0], p->complete = room[1], p->rows = room[2], p->first = room[3];
    if (status != ET_OK) {
        pick_close(p);
        return status;
    }
    for (size_t t = 0; t < N; t++) {
        p->token[t] = tokens == NULL || tokens[t];
        p->whole &= p->token[t];
    }
    for (size_t i = 0; i < n; i++) {
        for (int32_t slot = a->expert_offsets[i]; slot < a->expert_offsets[i + 1]; slot++)
            if (p->token[a->slot_token[slot]]) p->rows[count++] = (size_t)slot;
        close_segment(p, i, count, (size_t)a->load[i]);
    }
    for (size_t t = 0; shared && t < N; t++)
        if (p->token[t]) p->rows[count++] = t;
    close_segment(p, n, count, shared ? N : 0);
    return ET_OK;
}

/* ---- subjects ---- */

static bool is_moe(const et_step *s)
{
    return s->c.layer == ET_MOE;
}

static size_t largest(size_t a, size_t b)
{
    return a > b ? a : b;
}

/* Room for the rows of one expert, as inputs and as outputs of a product; for weight gradients all
 * its rows. */
static et_status take_rooms(et_subject *on, et_error *error)
{
    const et_moe *moe = &on->moe;
    size_t rows = on->a->tokens; /* also for an expert that a deviant's assignment fills */
    size_t width = largest(largest(moe->d, moe->h), moe->hs);
    et_status status = ET_OK;
    for (size_t i = 0; status == ET_OK && i < 2; i++)
        status = et_allocate((void **)&on->rooms[i], rows * width, sizeof(et_real), "gathered rows",
                             error);
    if (status == ET_OK)
        status = et_allocate((void **)&on->list, rows, sizeof(size_t), "gathered rows", error);
    return status;
}

et_status et_subject_open(et_subject *on, const et_step *right, const et_tensor_out *candidate,
                          size_t count, const uint8_t *tokens, et_error *error)
{
    *on = (et_subject){.right = right, .candidate = candidate, .count = count};
    et_status status = ET_OK;
    if (is_moe(right)) {
        on->moe = et_step_layer(right);
        on->a = &right->assignment;
    } else {
        const et_case *c = &right->c;
        on->moe = (et_moe){.N = c->tokens, .d = c->d_model, .h = c->d_expert, .n = 1};
        on->moe.up = right->in.up;
        on->moe.down = right->in.down;
        void *all;
        status = et_allocate(&all, c->tokens, 1, "dense assignment", error);
        if (status != ET_OK) return status;
        memset(all, 1, c->tokens);
        status = et_assignment_build(&on->dense, c->tokens, 1, all, error);
        free(all);
        if (status != ET_OK) return status;
        on->a = &on->dense;
    }
    on->moe.engine = ET_BLAS;
    status = pick_open(&on->pick, on->a, on->moe.hs > 0, tokens, error);
    if (status == ET_OK) status = take_rooms(on, error);
    if (status != ET_OK) et_subject_close(on);
    return status;
}

void et_subject_close(et_subject *on)
{
    et_assignment_free(&on->dense);
    pick_close(&on->pick);
    free(on->slot_dx);
    free(on->shared_dx);
    for (size_t i = 0; i < sizeof on->rooms / sizeof *on->rooms; i++) free(on->rooms[i]);
    for (size_t i = 0; i < on->spare_count; i++) free(on->spare[i].values);
    free(on->list);
    *on = (et_subject){0};
}

/* ---- deviants ---- */

void et_deviant_open(et_deviant *v, et_subject *on, const et_hypothesis *what, size_t variant,
                     et_scope scope, bool carried)
{
    *v = (et_deviant){.on = on,
                      .what = what,
                      .variant = variant,
                      .factor = 1,
                      .scope = scope,
                      .s = *on->right,
                      .moe = on->moe,
                      .used = on->right->fwd,
                      .a = on->a,
                      .pick = &on->pick,
                      .gate_logits = on->right->fwd.logits,
                      .balance = on->right->c.balance};
    v->rerouted = carried && what && et_hypothesis_reaches(what, variant, false, ET_AT_MASK);
    v->s.owned_count = 0; /* nothing of the reference's is this one's to free */
}

/* Arrays are kept for the next deviant: most of them are large, and few of their pages are used. */
static void put_away(et_subject *on, et_array array)
{
    if (on->spare_count < ET_MAX_ARRAYS)
        on->spare[on->spare_count++] = array;
    else
        free(array.values);
}

/* One of the deviant's own, from those that were put away if there is one. What it holds is left from
 * before. */
static et_status take(et_deviant *v, size_t bytes, void **out, et_error *error)
{
    et_subject *on = v->on;
    et_status status = ET_OK;
    size_t i = 0;
    if (v->anew_count == ET_MAX_ARRAYS)
        return et_fail(error, ET_ENOMEM, "explanation: too many arrays");
    while (i < on->spare_count && on->spare[i].bytes != bytes) i++;
    if (i < on->spare_count) {
        *out = on->spare[i].values;
        on->spare[i] = on->spare[--on->spare_count];
    } else {
        status = et_allocate(out, bytes, 1, "explanation", error);
    }
    if (status == ET_OK) v->anew[v->anew_count++] = (et_array){*out, bytes};
    return status;
}

void et_deviant_close(et_deviant *v)
{
    for (size_t i = 0; i < v->anew_count; i++) put_away(v->on, v->anew[i]);
    et_assignment_free(&v->own);
    pick_close(&v->own_pick);
    *v = (et_deviant){0};
}

/* An array of the deviant's own in place of *field, which is one of its step's or another of its own; not
 * yet filled. */
static et_status renew(et_deviant *v, et_real **field, size_t rows, size_t columns, et_error *error)
{
    void *room;
    size_t count, bytes;
    if (!et_size_mul(rows, columns, &count) || !et_size_mul(count, sizeof(et_real), &bytes))
        return et_fail(error, ET_ENOMEM, "explanation: %zu rows of %zu", rows, columns);
    et_status status = take(v, bytes, &room, error);
    if (status == ET_OK) *field = room;
    return status;
}

/* The same, filled with what stood in its place, or with zeros. */
static et_status renew_copy(et_deviant *v, et_real **field, size_t rows, size_t columns,
                            et_error *error)
{
    const et_real *before = *field;
    et_status status = renew(v, field, rows, columns, error);
    if (status != ET_OK) return status;
    if (before)
        memcpy(*field, before, rows * columns * sizeof **field);
    else
        memset(*field, 0, rows * columns * sizeof **field);
    return ET_OK;
}

static et_status renew_zero(et_deviant *v, et_real **field, size_t rows, size_t columns,
                            et_error *error)
{
    *field = NULL;
    return renew_copy(v, field, rows, columns, error);
}

et_real *et_deviant_reals(et_deviant *v, size_t count)
{
    et_real *room = NULL;
    if (v->status == ET_OK) v->status = renew_zero(v, &room, count, 1, NULL);
    return room;
}

int32_t *et_deviant_integers(et_deviant *v, size_t count)
{
    void *room = NULL;
    size_t bytes = count * sizeof(int32_t);
    if (v->status == ET_OK) v->status = take(v, bytes, &room, NULL);
    if (room) memset(room, 0, bytes);
    return room;
}

bool et_deviant_renew(et_deviant *v, et_real **field, size_t rows, size_t columns)
{
    if (v->status == ET_OK) v->status = renew_copy(v, field, rows, columns, NULL);
    return v->status == ET_OK;
}

bool et_in_scope(const et_deviant *v, size_t expert, size_t token)
{
    const et_scope *c = &v->scope;
    return (c->experts == NULL || c->experts[expert]) && (c->tokens == NULL || c->tokens[token]);
}

static et_real *at(et_real *array, size_t row, size_t columns)
{
    return array ? array + row * columns : NULL;
}

et_row et_slot_row(et_deviant *v, size_t slot)
{
    const et_assignment *a = v->a;
    const et_moe_values *f = &v->s.fwd;
    const et_moe_grads *g = &v->s.bwd;
    size_t d = v->moe.d, h = v->moe.h, e = (size_t)a->slot_expert[slot];
    return (et_row){.expert = e,
                    .slot = slot,
                    .token = (size_t)a->slot_token[slot],
                    .place = slot - (size_t)a->expert_offsets[e],
                    .load = (size_t)a->load[e],
                    .width = h,
                    .w = at(f->slot_weight, slot, 1),
                    .dw = at(g->slot_weight, slot, 1),
                    .H = at(f->slot_pre, slot, h),
                    .A = at(f->slot_act, slot, h),
                    .O = at(f->slot_out, slot, d),
                    .dO = at(g->slot_out, slot, d),
                    .dA = at(g->slot_act, slot, h),
                    .dH = at(g->slot_pre, slot, h),
                    .dx = at(v->slot_dx, slot, d)};
}

et_row et_shared_row(et_deviant *v, size_t t)
{
    const et_moe_values *f = &v->s.fwd;
    const et_moe_grads *g = &v->s.bwd;
    size_t d = v->moe.d, h = v->moe.hs;
    return (et_row){.expert = v->moe.n,
                    .slot = t,
                    .token = t,
                    .place = t,
                    .load = v->moe.N,
                    .width = h,
                    .w = at(f->shared_weight, t, 1),
                    .dw = at(g->shared_weight, t, 1),
                    .H = at(f->shared_pre, t, h),
                    .A = at(f->shared_act, t, h),
                    .O = at(f->shared_out, t, d),
                    .dO = at(g->shared_out, t, d),
                    .dA = at(g->shared_act, t, h),
                    .dH = at(g->shared_pre, t, h),
                    .dx = at(v->shared_dx, t, d)};
}

static et_row row_of(et_deviant *v, size_t expert, size_t slot)
{
    return expert < v->moe.n ? et_slot_row(v, slot) : et_shared_row(v, slot);
}

et_real et_gate_of(const et_deviant *v, size_t slot)
{
    const et_assignment *a = v->a;
    return v->s.fwd.gates[(size_t)a->slot_token[slot] * v->moe.n + (size_t)a->slot_expert[slot]];
}

size_t et_slots_of(const et_deviant *v, size_t t, const int32_t **slots)
{
    *slots = v->a->token_slots + v->a->token_offsets[t];
    return (size_t)(v->a->token_offsets[t + 1] - v->a->token_offsets[t]);
}

/* ---- calling hooks ---- */

static void call_whole(et_deviant *v, et_stage stage)
{
    for (const et_hook *h = NULL; (h = hook_at(v->what, v->variant, stage, h));)
        if (h->whole) h->whole(v);
}

static void call_tokens(et_deviant *v, et_stage stage)
{
    for (const et_hook *h = NULL; (h = hook_at(v->what, v->variant, stage, h));)
        for (size_t t = 0; h->token && t < v->moe.N; t++)
            if (v->pick->token[t] && (v->scope.tokens == NULL || v->scope.tokens[t]))
                h->token(v, t);
}

static void call_rows(et_deviant *v, et_stage stage, size_t e)
{
    for (const et_hook *h = NULL; (h = hook_at(v->what, v->variant, stage, h));)
        for (size_t q = v->pick->first[e]; h->row && q < v->pick->first[e + 1]; q++) {
            et_row r = row_of(v, e, v->pick->rows[q]);
            if (et_in_scope(v, e, r.token)) h->row(v, &r);
        }
}

static bool hooked(const et_deviant *v, et_stage stage)
{
    return hook_at(v->what, v->variant, stage, NULL) != NULL;
}

/* A hook that changes what a product is taken of. */
static bool operands_hooked(const et_deviant *v, et_stage stage)
{
    for (const et_hook *h = NULL; (h = hook_at(v->what, v->variant, stage, h));)
        if (h->weights || h->input) return true;
    return false;
}

/* ---- selection ---- */

static void reverse(et_real *values, size_t count)
{
    for (size_t i = 0, j = count; i + 1 < j; i++) {
        et_real kept = values[i];
        values[i] = values[--j];
        values[j] = kept;
    }
}

static void reverse_mask(uint8_t *mask, size_t count)
{
    for (size_t i = 0, j = count; i + 1 < j; i++) {
        uint8_t kept = mask[i];
        mask[i] = mask[--j];
        mask[j] = kept;
    }
}

static void negate(et_real *values, size_t count)
{
    for (size_t i = 0; i < count; i++) values[i] = -values[i];
}

/* Copies of what a micro-batch is selected by, turned around where the plan says so: read from the end,
 * ties go to the higher index; negated, the lowest scores come first. */
typedef struct turned {
    et_real *scores, *thresholds, *bias, *cutoffs; /* [batch,n], [n], [n], [pools,n] */
    int32_t *passed;                               /* [n] */
} turned;

static void turn(const et_plan *p, size_t n, turned *x)
{
    if (p->last_wins) {
        reverse(x->scores, p->batch * n);
        reverse(x->thresholds, n);
        reverse(x->bias, n);
    }
    if (p->lowest_first) {
        negate(x->scores, p->batch * n);
        negate(x->thresholds, n);
        negate(x->bias, n);
    }
}

static et_status select_turned(const et_plan *p, size_t n, const turned *x, uint8_t *mask,
                               et_real *margin, et_error *error)
{
    if (p->how == ET_TC)
        return et_token_choice(p->batch, n, p->K, x->scores, p->bias ? x->bias : NULL, mask, margin,
                               NULL, error);
    if (p->how == ET_EC)
        return et_expert_choice(p->batch, n, p->pool, p->k, x->scores, mask, margin, x->cutoffs,
                                NULL, 0, error);
    return et_expert_threshold(p->batch, n, x->scores, x->thresholds, p->inclusive,
                               p->clamped ? &p->bounds : NULL, mask, margin, x->passed, error);
}

static et_status select_batch(et_deviant *v, size_t batch, turned *x, et_error *error)
{
    const et_plan *p = &v->plan;
    size_t n = v->moe.n, first = batch * p->batch * n, count = p->batch * n;
    uint8_t *mask = v->s.route.mask + first;
    et_real *margin = v->s.route.margin + first;
    memcpy(x->scores, p->scores + first, count * sizeof(et_real));
    memcpy(x->thresholds, p->thresholds, n * sizeof(et_real));
    memset(x->bias, 0, n * sizeof(et_real));
    if (p->bias) memcpy(x->bias, p->bias, n * sizeof(et_real));
    turn(p, n, x);
    et_status status = select_turned(p, n, x, mask, margin, error);
    if (p->last_wins) {
        reverse_mask(mask, count);
        reverse(margin, count);
    }
    return status;
}

static et_status select_all(et_deviant *v, et_error *error)
{
    const et_plan *p = &v->plan;
    size_t n = v->moe.n, count = 2 * p->batch * n + 2 * n;
    void *room = NULL, *passed = NULL;
    if (p->batch == 0 || v->moe.N % p->batch != 0)
        return et_fail(error, ET_EINVAL, "explanation: %zu tokens in micro-batches of %zu",
                       v->moe.N, p->batch);
    et_status status = et_allocate(&room, count, sizeof(et_real), "selection", error);
    if (status == ET_OK) status = et_allocate(&passed, n, sizeof(int32_t), "selection", error);
    et_real *reals = room;
    turned x = {reals, NULL, NULL, NULL, passed};
    if (status == ET_OK) {
        x.thresholds = reals + p->batch * n;
        x.bias = x.thresholds + n;
        x.cutoffs = x.bias + n; /* at most a pool a token */
    }
    for (size_t b = 0; status == ET_OK && b < v->moe.N / p->batch; b++)
        status = select_batch(v, b, &x, error);
    free(room);
    free(passed);
    return status;
}

void et_select_again(et_deviant *v)
{
    if (v->status == ET_OK) v->status = select_all(v, NULL);
}

/* By what the case says the tokens are selected. */
static et_status at_plan(et_deviant *v, bool again, et_error *error)
{
    (void)again;
    const et_case *c = &v->s.c;
    size_t N = v->moe.N, n = v->moe.n, batch = et_case_micro_tokens(c);
    bool threshold = et_case_routes_by_threshold(c);
    v->plan = (et_plan){.how = et_case_routes_by_choice(c) ? ET_EC
                               : threshold                 ? ET_ET
                                                           : ET_TC,
                        .batch = batch,
                        .pool = c->pool_tokens,
                        .k = c->target_load,
                        .K = c->top_k,
                        .inclusive = c->inclusive,
                        .clamped = threshold && c->has_capacity && !c->eval,
                        .bias = v->s.in.bias};
    v->plan.bounds = et_capacity_bounds(c->target_load, c->capacity_factor, batch);
    et_status status = renew(v, &v->plan.scores, N, n, error);
    if (status == ET_OK && v->s.route.threshold)
        status = renew_copy(v, &v->s.route.threshold, n, 1, error);
    if (status == ET_OK && !v->s.route.threshold)
        status = renew_zero(v, &v->plan.thresholds, n, 1, error);
    else
        v->plan.thresholds = v->s.route.threshold;
    if (status != ET_OK) return status;
    memcpy(v->plan.scores, v->s.fwd.logits, N * n * sizeof(et_real));
    call_whole(v, ET_AT_PLAN);
    return ET_OK;
}

static et_status plan_if_none(et_deviant *v, et_error *error)
{
    return v->plan.scores ? ET_OK : at_plan(v, false, error);
}

/* Who goes where by now; from here on everything has to follow. */
static et_status reroute(et_deviant *v, et_error *error)
{
    et_status status = et_assignment_build(&v->own, v->moe.N, v->moe.n, v->s.route.mask, error);
    if (status == ET_OK)
        status = pick_open(&v->own_pick, &v->own, v->moe.hs > 0, v->on->pick.token, error);
    if (status != ET_OK) return status;
    v->a = &v->own;
    v->pick = &v->own_pick;
    v->s.assignment = v->own;
    return ET_OK;
}

static et_status renew_mask(et_deviant *v, et_error *error)
{
    void *room;
    size_t N = v->moe.N, n = v->moe.n;
    et_status status = take(v, N * n, &room, error);
    if (status != ET_OK) return status;
    v->s.route.mask = room;
    return renew(v, &v->s.route.margin, N, n, error);
}

static et_status at_mask(et_deviant *v, bool again, et_error *error)
{
    (void)again;
    et_status status = plan_if_none(v, error);
    if (status == ET_OK) status = renew_mask(v, error);
    if (status == ET_OK) status = select_all(v, error);
    if (status != ET_OK) return status;
    call_whole(v, ET_AT_MASK);
    return v->rerouted ? reroute(v, error) : ET_OK;
}

/* The cutoff that each pool of the case has in pools of another size. */
static et_status show_pools(et_deviant *v, size_t pool, const et_real *kth, et_error *error)
{
    size_t n = v->moe.n, P = v->s.c.pool_tokens, pools = v->moe.N / P;
    et_status status = renew(v, &v->s.route.pool_cutoff, pools, n, error);
    for (size_t i = 0; status == ET_OK && i < pools; i++)
        memcpy(v->s.route.pool_cutoff + i * n, kth + i * P / pool * n, n * sizeof *kth);
    return status;
}

/* The k-th largest scores: of each pool, their mean over a micro-batch's pools, and over those. */
static et_status at_cutoff(et_deviant *v, bool again, et_error *error)
{
    (void)again;
    const et_plan *p = &v->plan;
    size_t N = v->moe.N, n = v->moe.n;
    et_status status = plan_if_none(v, error);
    if (status != ET_OK || v->s.c.rule == ET_TC) return status;
    size_t pool = p->pool > 0 && p->pool < p->batch && p->how != ET_ET ? p->pool : p->batch;
    size_t pools = N / pool, per_batch = p->batch / pool, batches = N / p->batch;
    et_real *pool_kth = NULL;
    if ((status = renew_zero(v, &pool_kth, pools, n, error)) ||
        (status = renew_zero(v, &v->kth, batches, n, error)) ||
        (status = renew_zero(v, &v->cutoff, n, 1, error)))
        return status;
    if (v->s.route.cutoff) v->s.route.cutoff = v->cutoff;
    bool lowest = p->lowest_first && p->how == ET_EC; /* the k-th that was taken */
    if (lowest) negate(p->scores, N * n);
    for (size_t i = 0; status == ET_OK && i < pools; i++)
        status = et_kth_largest(pool, n, p->k, p->scores + i * pool * n, pool_kth + i * n, error);
    if (lowest) negate(p->scores, N * n);
    if (lowest) negate(pool_kth, pools * n);
    for (size_t i = 0; i < pools * n; i++)
        v->kth[i / n / per_batch * n + i % n] += pool_kth[i] / (et_real)per_batch;
    for (size_t i = 0; i < batches * n; i++) v->cutoff[i % n] += v->kth[i] / (et_real)batches;
    if (status == ET_OK && v->s.route.pool_cutoff) status = show_pools(v, pool, pool_kth, error);
    if (status != ET_OK) return status;
    call_whole(v, ET_AT_CUTOFF);
    return ET_OK;
}

/* ---- state ---- */

static et_status update_ema(et_deviant *v, et_error *error)
{
    size_t n = v->moe.n;
    et_status status = renew_copy(v, &v->s.state_ema, n, 1, error);
    if (status != ET_OK) return status;
    memcpy(v->s.state_ema, v->s.in.ema, n * sizeof(et_real));
    if (!v->s.c.eval) et_ema_update(n, v->s.c.ema_decay, v->cutoff, v->s.state_ema);
    return ET_OK;
}

static et_status at_state(et_deviant *v, bool again, et_error *error)
{
    (void)again;
    et_status status = ET_OK;
    if (v->s.in.ema && v->cutoff == NULL) status = at_cutoff(v, false, error);
    if (status == ET_OK && v->s.in.ema) status = update_ema(v, error);
    if (status == ET_OK && v->s.in.bias)
        status = renew_copy(v, &v->s.state_bias, v->moe.n, 1, error);
    if (status == ET_OK) call_whole(v, ET_AT_STATE);
    return status;
}

/* ---- gates and weights ---- */

void et_gates_again(et_deviant *v, const et_real *scores)
{
    const et_moe *moe = &v->moe;
    et_moe_values *f = &v->s.fwd;
    for (size_t t = 0; t < moe->N; t += moe->gate_tokens)
        et_gate_forward(moe->gate, moe->gate_tokens, moe->n, scores + t * moe->n,
                        f->gates + t * moe->n, f->anchor ? f->anchor + t : NULL);
}

static et_status at_gates(et_deviant *v, bool again, et_error *error)
{
    (void)again;
    et_moe_values *f = &v->s.fwd;
    if (f->gates == NULL) return ET_OK;
    et_status status = renew_copy(v, &f->gates, v->moe.N, v->moe.n, error);
    /* An anchor even where the right gate has none: the hook may ask for another gate. */
    if (status == ET_OK) status = renew_copy(v, &f->anchor, v->moe.N, 1, error);
    if (status != ET_OK) return status;
    call_whole(v, ET_AT_GATES);
    v->s.c.gate = v->moe.gate; /* for whoever asks the step for its noise */
    return ET_OK;
}

et_real et_divisor(const et_deviant *v, const et_real *gates, size_t t)
{
    const int32_t *slots;
    size_t n = v->moe.n, count = et_slots_of(v, t, &slots);
    et_real sum = 0;
    if (v->moe.norm == ET_NORM_NONE) return 1;
    if (v->moe.norm == ET_NORM_FANOUT)
        return (et_real)(count + (v->moe.hs > 0 && !v->without_shared ? 1 : 0));
    for (size_t i = 0; v->over_all && i < n; i++) sum += gates[t * n + i];
    for (size_t j = 0; !v->over_all && j < count; j++)
        sum += gates[t * n + (size_t)v->a->slot_expert[slots[j]]];
    return sum;
}

/* At least 1: where nobody is counted nothing is divided. */
et_real et_shared_divisor(const et_deviant *v, size_t t)
{
    et_real by = v->moe.norm == ET_NORM_FANOUT ? et_divisor(v, NULL, t) : 1;
    return by > 0 ? by : 1;
}

/* All of them, picked or not: weights cost nothing. */
void et_weigh_again(et_deviant *v)
{
    const et_moe *moe = &v->moe;
    et_moe_values *f = &v->s.fwd;
    for (size_t t = 0; t < moe->N; t++) {
        const int32_t *slots;
        size_t count = et_slots_of(v, t, &slots);
        et_real by = et_divisor(v, f->gates, t);
        for (size_t j = 0; j < count; j++)
            f->slot_weight[slots[j]] = by != 0 ? et_gate_of(v, (size_t)slots[j]) / by : 0;
        if (moe->hs == 0) continue;
        et_real s = moe->anchor_weighs_shared ? f->anchor[t] : moe->shared_constant;
        f->shared_weight[t] = s / et_shared_divisor(v, t);
    }
}

static et_status at_weights(et_deviant *v, bool again, et_error *error)
{
    (void)again;
    et_moe_values *f = &v->s.fwd;
    size_t S = v->a->slots, N = v->moe.N;
    if (f->gates == NULL) return ET_OK;
    et_status status = renew(v, &f->slot_weight, S, 1, error);
    if (status == ET_OK && v->moe.hs > 0) status = renew(v, &f->shared_weight, N, 1, error);
    if (status != ET_OK) return status;
    et_weigh_again(v);
    for (const et_hook *h = NULL; (h = hook_at(v->what, v->variant, ET_AT_WEIGHTS, h));) {
        if (h->whole) h->whole(v);
        for (size_t j = 0; h->row && j < S + (v->moe.hs > 0 ? N : 0); j++) {
            et_row r = j < S ? et_slot_row(v, j) : et_shared_row(v, j - S);
            if (et_in_scope(v, r.expert, r.token)) h->row(v, &r);
        }
    }
    v->s.c.norm = v->moe.norm;
    return ET_OK;
}

/* ---- the experts' rows ----
 *
 * Seven stages of one kind: an array [S,.] of the routed experts and its twin [N,.] of the shared one;
 * row by row each depends on earlier rows of the same place, and on x, dy and the weights. */

/* The array and its width at a stage. */
static et_real **bank(et_deviant *v, et_stage stage, bool shared)
{
    et_moe_values *f = &v->s.fwd;
    et_moe_grads *g = &v->s.bwd;
    switch (stage) {
    case ET_AT_PRE: return shared ? &f->shared_pre : &f->slot_pre;
    case ET_AT_ACT: return shared ? &f->shared_act : &f->slot_act;
    case ET_AT_OUT: return shared ? &f->shared_out : &f->slot_out;
    case ET_AT_DOUT: return shared ? &g->shared_out : &g->slot_out;
    case ET_AT_DACT: return shared ? &g->shared_act : &g->slot_act;
    case ET_AT_DPRE: return shared ? &g->shared_pre : &g->slot_pre;
    case ET_AT_DWEIGHT: return shared ? &g->shared_weight : &g->slot_weight;
    default: return shared ? &v->shared_dx : &v->slot_dx;
    }
}

static size_t width_at(const et_deviant *v, et_stage stage, bool shared)
{
    switch (stage) {
    case ET_AT_PRE:
    case ET_AT_ACT:
    case ET_AT_DACT:
    case ET_AT_DPRE: return shared ? v->moe.hs : v->moe.h;
    case ET_AT_DWEIGHT: return 1;
    default: return v->moe.d;
    }
}

static size_t token_of(const et_deviant *v, size_t e, size_t row)
{
    return e < v->moe.n ? (size_t)v->a->slot_token[row] : row;
}

/* The expert's weights, as the hook would have them. */
static et_weights weights_of(et_deviant *v, et_stage stage, size_t e)
{
    const et_moe *moe = &v->moe;
    size_t size = moe->h * moe->d;
    et_weights w = {e,
                    stage == ET_AT_DACT || stage == ET_AT_SLOT_DX,
                    moe->shared_up,
                    moe->shared_down,
                    false,
                    false};
    if (e < moe->n) w.up = moe->up + e * size, w.down = moe->down + e * size;
    for (const et_hook *h = NULL; (h = hook_at(v->what, v->variant, stage, h));)
        if (h->weights && et_in_scope(v, e, 0)) h->weights(v, &w);
    return w;
}

static et_matrix transposed_if(bool so, et_matrix m)
{
    m.transposed ^= so;
    return m;
}

/* The token whose x this row reads. */
static size_t input_of(et_deviant *v, size_t e, size_t row)
{
    for (const et_hook *h = NULL; (h = hook_at(v->what, v->variant, ET_AT_PRE, h));) {
        et_row r = row_of(v, e, row);
        if (h->input && et_in_scope(v, e, r.token)) return h->input(v, &r);
    }
    return token_of(v, e, row);
}

/* to[row] = from[row], or x of its token, times Y, for `count` rows of expert e. */
static void multiply(et_deviant *v, size_t e, const size_t *rows, size_t count, const et_real *from,
                     bool by_token, size_t K, et_matrix Y, size_t columns, et_real *to)
{
    et_real *X = v->on->rooms[0], *C = v->on->rooms[1];
    for (size_t q = 0; q < count; q++) {
        size_t row = by_token ? input_of(v, e, rows[q]) : rows[q];
        memcpy(X + q * K, from + row * K, K * sizeof *X);
    }
    et_matmul(v->moe.engine, count, columns, K, et_rows(X, K), Y, false, C, columns);
    for (size_t q = 0; q < count; q++)
        memcpy(to + rows[q] * columns, C + q * columns, columns * sizeof *C);
}

static et_real relu(et_real v)
{
    return v > 0 ? v : 0;
}

/* dO = w dy; dw = <dy, O> */
static void backward_row(et_deviant *v, et_stage stage, bool shared, size_t row, size_t token)
{
    size_t d = v->moe.d;
    const et_moe_values *f = &v->used;
    const et_real *dy = v->s.in.dy + token * d,
                  *weights = shared ? f->shared_weight : f->slot_weight;
    et_real *to = *bank(v, stage, shared);
    if (stage == ET_AT_DOUT) {
        et_real w = weights ? weights[row] : 1;
        for (size_t c = 0; c < d; c++) to[row * d + c] = w * dy[c];
    } else {
        const et_real *O = (shared ? f->shared_out : f->slot_out) + row * d;
        et_real sum = 0;
        for (size_t c = 0; c < d; c++) sum += dy[c] * O[c];
        to[row] = sum;
    }
}

static void element_row(et_deviant *v, et_stage stage, bool shared, size_t row)
{
    size_t h = shared ? v->moe.hs : v->moe.h;
    const et_moe_values *f = stage == ET_AT_ACT ? &v->s.fwd : &v->used;
    const et_real *H = (shared ? f->shared_pre : f->slot_pre) + row * h;
    const et_real *dA = (shared ? v->s.bwd.shared_act : v->s.bwd.slot_act);
    et_real *to = *bank(v, stage, shared) + row * h;
    for (size_t j = 0; j < h; j++)
        to[j] = stage == ET_AT_ACT ? relu(H[j]) * relu(H[j]) : dA[row * h + j] * (2 * relu(H[j]));
}

/* Rows of expert e at a stage, as they should be, given all that came before. */
static void compute_rows(et_deviant *v, et_stage stage, size_t e, const size_t *rows, size_t count)
{
    bool shared = e == v->moe.n;
    size_t d = v->moe.d, h = shared ? v->moe.hs : v->moe.h;
    et_real *to = *bank(v, stage, shared);
    et_weights w = weights_of(v, stage, e);
    const et_moe_values *f = &v->s.fwd;
    const et_moe_grads *g = &v->s.bwd;
    switch (stage) {
    case ET_AT_PRE: /* H = x W_up' */
        multiply(v, e, rows, count, v->s.in.x, true, d,
                 transposed_if(w.up_turned, et_transposed(w.up, d)), h, to);
        return;
    case ET_AT_OUT: /* O = A W_down' */
        multiply(v, e, rows, count, shared ? f->shared_act : f->slot_act, false, h,
                 transposed_if(w.down_turned, et_transposed(w.down, h)), d, to);
        return;
    case ET_AT_DACT: /* dA = dO W_down */
        multiply(v, e, rows, count, shared ? g->shared_out : g->slot_out, false, d,
                 transposed_if(w.down_turned, et_rows(w.down, h)), h, to);
        return;
    case ET_AT_SLOT_DX: /* dx = dH W_up */
        multiply(v, e, rows, count, shared ? g->shared_pre : g->slot_pre, false, h,
                 transposed_if(w.up_turned, et_rows(w.up, d)), d, to);
        return;
    case ET_AT_ACT:
    case ET_AT_DPRE:
        for (size_t q = 0; q < count; q++) element_row(v, stage, shared, rows[q]);
        return;
    default:
        for (size_t q = 0; q < count; q++)
            backward_row(v, stage, shared, rows[q], token_of(v, e, rows[q]));
    }
}

/* Expert e: computes what may deviate, copies the rest, and lets the hook in. */
static void row_stage_of(et_deviant *v, et_stage stage, size_t e, bool again, const et_real *before)
{
    const et_pick *p = v->pick;
    bool shared = e == v->moe.n, all = again && v->rerouted && !(shared && stage <= ET_AT_OUT);
    size_t width = width_at(v, stage, shared), count = 0;
    et_real *to = *bank(v, stage, shared);
    for (size_t q = p->first[e]; q < p->first[e + 1]; q++) {
        size_t row = p->rows[q];
        if (all || before == NULL || (again && et_in_scope(v, e, token_of(v, e, row))))
            v->on->list[count++] = row;
        else
            memcpy(to + row * width, before + row * width, width * sizeof *to);
    }
    compute_rows(v, stage, e, v->on->list, count);
    call_rows(v, stage, e);
}

static et_status row_stage(et_deviant *v, et_stage stage, bool again, et_error *error)
{
    again |= operands_hooked(v, stage);
    if (stage == ET_AT_DWEIGHT && v->s.fwd.gates == NULL) return ET_OK;
    for (int shared = 0; shared < (v->moe.hs > 0 ? 2 : 1); shared++) {
        et_real **field = bank(v, stage, shared);
        const et_real *before = v->rerouted && !shared ? NULL : *field;
        size_t rows = shared ? v->moe.N : v->a->slots, width = width_at(v, stage, shared);
        et_status status = stage == ET_AT_DWEIGHT && before
                               ? renew_copy(v, field, rows, width, error)
                               : renew(v, field, rows, width, error);
        if (status != ET_OK) return status;
        for (size_t e = shared ? v->moe.n : 0; e < v->moe.n + (size_t)shared; e++)
            row_stage_of(v, stage, e, again, before);
    }
    return ET_OK;
}

/* The reference's own shares of dx, which no step keeps; once for all deviants of the pick. */
static et_status right_shares(et_subject *on, et_error *error)
{
    et_deviant plain;
    if (on->slot_dx) return ET_OK;
    et_deviant_open(&plain, on, NULL, 0, (et_scope){NULL, NULL}, false);
    et_status status = row_stage(&plain, ET_AT_SLOT_DX, true, error);
    if (status == ET_OK) { /* taken over: no deviant's to put away */
        on->slot_dx = plain.slot_dx;
        on->shared_dx = plain.shared_dx;
        plain.anew_count = 0;
    }
    et_deviant_close(&plain);
    return status;
}

/* ---- y ---- */

static void combine(et_deviant *v, size_t t)
{
    size_t d = v->moe.d;
    const et_moe_values *f = &v->s.fwd;
    et_real *y = f->y + t * d;
    const int32_t *slots;
    size_t count = et_slots_of(v, t, &slots);
    for (size_t c = 0; c < d; c++)
        y[c] = v->moe.hs > 0 ? f->shared_weight[t] * f->shared_out[t * d + c] : 0;
    for (size_t j = 0; j < count; j++) {
        size_t slot = (size_t)slots[j];
        et_real w = f->slot_weight ? f->slot_weight[slot] : 1;
        for (size_t c = 0; c < d; c++) y[c] += w * f->slot_out[slot * d + c];
    }
}

static et_status at_y(et_deviant *v, bool again, et_error *error)
{
    const et_real *before = v->s.fwd.y;
    size_t d = v->moe.d;
    et_status status = renew(v, &v->s.fwd.y, v->moe.N, d, error);
    for (size_t t = 0; status == ET_OK && t < v->moe.N; t++) {
        if (!v->pick->token[t]) continue;
        if (again)
            combine(v, t);
        else
            memcpy(v->s.fwd.y + t * d, before + t * d, d * sizeof *before);
    }
    if (status != ET_OK) return status;
    call_tokens(v, ET_AT_Y);
    call_whole(v, ET_AT_Y);
    return ET_OK;
}

/* ---- losses ---- */

/* F of a micro-batch. */
static void fractions(const et_deviant *v, size_t batch, et_real *F)
{
    const et_case *c = &v->s.c;
    size_t N = et_case_micro_tokens(c), n = v->moe.n;
    bool given = v->s.in.load && !v->own_load;
    for (size_t i = 0; i < n; i++) F[i] = given ? v->s.in.load[i] : 0;
    for (size_t t = batch * N; !given && t < (batch + 1) * N; t++)
        for (size_t i = 0; i < n; i++) F[i] += v->s.route.mask[t * n + i];
    et_balance_fractions(N, n, c->top_k, F, F);
}

/* As the step takes them: means over the micro-batches, gradients scaled accordingly. */
static void take_losses(et_deviant *v, et_real *F, et_real *aux, et_real *z)
{
    const et_case *c = &v->s.c;
    size_t N = et_case_micro_tokens(c), n = v->moe.n, M = c->micro_batches;
    memset(v->loss_gates, 0, M * N * n * sizeof(et_real));
    memset(v->loss_logits, 0, M * N * n * sizeof(et_real));
    for (size_t b = 0; b < M; b++) {
        size_t from = b * N * n;
        if (v->s.loss_aux) {
            fractions(v, b, F);
            *aux += et_aux_loss(v->balance, N, n, F, v->used.gates + from,
                                c->balance_coef / (double)M, v->loss_gates + from);
        }
        if (v->s.loss_z)
            *z += et_z_loss(N, n, v->s.fwd.logits + from, c->z_loss_coef / (double)M,
                            v->loss_logits + from);
    }
    *aux /= (et_real)M;
    *z /= (et_real)M;
}

void et_losses_again(et_deviant *v)
{
    void *F = NULL;
    et_real aux = 0, z = 0;
    et_status status = et_allocate(&F, v->moe.n, sizeof(et_real), "load fractions", NULL);
    if (status == ET_OK) {
        take_losses(v, F, &aux, &z);
        if (v->dirty & BIT(ET_AT_LOSSES)) { /* then they are the deviant's own */
            if (v->s.loss_aux) *v->s.loss_aux = aux;
            if (v->s.loss_z) *v->s.loss_z = z;
        }
    } else {
        v->status = status;
    }
    free(F);
}

/* The losses' own gradients, which no step keeps either. */
static et_status loss_gradients(et_deviant *v, et_error *error)
{
    if (v->loss_gates) return ET_OK;
    et_status status = renew(v, &v->loss_gates, v->moe.N, v->moe.n, error);
    if (status == ET_OK) status = renew(v, &v->loss_logits, v->moe.N, v->moe.n, error);
    if (status == ET_OK) et_losses_again(v);
    return status;
}

static et_status at_losses(et_deviant *v, bool again, et_error *error)
{
    (void)again;
    et_status status = ET_OK;
    if (v->s.fwd.gates == NULL) return ET_OK;
    v->used = v->s.fwd;
    if (v->s.loss_aux) status = renew_copy(v, &v->s.loss_aux, 1, 1, error);
    if (status == ET_OK && v->s.loss_z) status = renew_copy(v, &v->s.loss_z, 1, 1, error);
    if (status == ET_OK) status = loss_gradients(v, error);
    if (status == ET_OK) call_whole(v, ET_AT_LOSSES);
    return status;
}

/* ---- weight gradients ---- */

/* gradient [left_width, right_width] = left' right over the rows of expert e, all of them picked. */
static void take_gradient(et_deviant *v, et_stage stage, size_t e, et_real *gradient)
{
    bool shared = e == v->moe.n;
    const et_moe_grads *g = &v->s.bwd;
    size_t d = v->moe.d, h = shared ? v->moe.hs : v->moe.h;
    size_t first = shared ? 0 : (size_t)v->a->expert_offsets[e];
    et_factors f = {.expert = e,
                    .first = first,
                    .load = shared ? v->moe.N : (size_t)v->a->load[e],
                    .left = v->on->rooms[0],
                    .right = v->on->rooms[1]};
    const et_real *left, *right;
    if (stage == ET_AT_DUP) {
        f.left_width = h, f.right_width = d;
        left = shared ? g->shared_pre : g->slot_pre;
        right = NULL;
    } else {
        f.left_width = d, f.right_width = h;
        left = shared ? g->shared_out : g->slot_out;
        right = shared ? v->used.shared_act : v->used.slot_act;
    }
    memcpy(f.left, left + first * f.left_width, f.load * f.left_width * sizeof *left);
    if (right)
        memcpy(f.right, right + first * f.right_width, f.load * f.right_width * sizeof *right);
    for (size_t q = 0; !right && q < f.load; q++)
        memcpy(f.right + q * d, v->s.in.x + token_of(v, e, first + q) * d, d * sizeof *f.right);
    for (const et_hook *k = NULL; (k = hook_at(v->what, v->variant, stage, k));)
        if (k->factors && et_in_scope(v, e, 0)) k->factors(v, &f);
    et_matmul(v->moe.engine, f.left_width, f.right_width, f.load,
              et_transposed(f.left, f.left_width), et_rows(f.right, f.right_width), false, gradient,
              f.right_width);
}

static et_status gradient_stage(et_deviant *v, et_stage stage, bool again, et_error *error)
{
    et_moe_grads *g = &v->s.bwd;
    bool up = stage == ET_AT_DUP;
    size_t n = v->moe.n, d = v->moe.d;
    for (int shared = 0; shared < (v->moe.hs > 0 ? 2 : 1); shared++) {
        et_real **field =
            shared ? (up ? &g->shared_up : &g->shared_down) : (up ? &g->up : &g->down);
        size_t h = shared ? v->moe.hs : v->moe.h, size = d * h;
        const et_real *before = *field;
        et_status status = renew(v, field, (shared ? 1 : n) * (up ? h : d), up ? d : h, error);
        if (status != ET_OK) return status;
        for (size_t e = shared ? n : 0; e < n + (size_t)shared; e++) {
            et_real *to = *field + (shared ? 0 : e * size);
            bool deviates = v->rerouted || v->scope.experts == NULL || v->scope.experts[e];
            if (!v->pick->complete[e]) continue;
            if (deviates && (again || hooked(v, stage)))
                take_gradient(v, stage, e, to);
            else
                memcpy(to, before + (shared ? 0 : e * size), size * sizeof *to);
        }
    }
    call_whole(v, stage);
    return ET_OK;
}

/* ---- router ---- */

/* dp on token t's slots, from dw: as in moe.c. */
static void weigh_backward(et_deviant *v, size_t t)
{
    const et_moe_values *f = &v->used;
    const et_real *dw = v->s.bwd.slot_weight;
    et_real by = et_divisor(v, f->gates, t), carried = 0;
    const int32_t *slots;
    size_t n = v->moe.n, count = et_slots_of(v, t, &slots);
    for (size_t j = 0; v->moe.norm == ET_NORM_SUM && j < count; j++)
        carried += f->slot_weight[slots[j]] * dw[slots[j]];
    for (size_t j = 0; j < count && by != 0; j++)
        v->s.bwd.gates[t * n + (size_t)v->a->slot_expert[slots[j]]] +=
            (dw[slots[j]] - carried) / by;
}

static et_status at_dgates(et_deviant *v, bool again, et_error *error)
{
    (void)again;
    size_t n = v->moe.n, row = n * sizeof(et_real);
    if (v->s.fwd.gates == NULL) return ET_OK;
    et_status status = loss_gradients(v, error);
    if (status == ET_OK) status = renew_copy(v, &v->s.bwd.gates, v->moe.N, n, error);
    for (size_t t = 0; status == ET_OK && t < v->moe.N; t++)
        if (v->pick->token[t]) {
            memcpy(v->s.bwd.gates + t * n, v->loss_gates + t * n, row);
            weigh_backward(v, t);
        }
    if (status == ET_OK) call_tokens(v, ET_AT_DGATES);
    return status;
}

/* da_t0, or NULL: what the anchor's share of the softmax receives. */
static et_status anchor_gradient(et_deviant *v, et_real **danchor, et_error *error)
{
    *danchor = NULL;
    if (!v->moe.anchor_weighs_shared) return ET_OK;
    et_status status = renew(v, danchor, v->moe.N, 1, error);
    for (size_t t = 0; status == ET_OK && t < v->moe.N; t++)
        /* renew has set it, or failed. NOLINTNEXTLINE(clang-analyzer-core.NullDereference) */
        (*danchor)[t] = v->s.bwd.shared_weight[t] / et_shared_divisor(v, t);
    return status;
}

static et_status at_dlogits(et_deviant *v, bool again, et_error *error)
{
    (void)again;
    const et_moe *moe = &v->moe;
    const et_moe_values *f = &v->used;
    size_t n = moe->n, step = moe->gate == ET_GATE_SOFTMAX_TOKENS ? moe->gate_tokens : 1;
    et_real *danchor;
    if (v->s.fwd.gates == NULL) return ET_OK;
    if (step > 1 && !v->pick->whole) { /* a column's tokens share their gradients */
        v->blocked = true;
        return ET_OK;
    }
    et_status status = loss_gradients(v, error);
    if (status == ET_OK) status = anchor_gradient(v, &danchor, error);
    if (status == ET_OK) status = renew_copy(v, &v->s.bwd.logits, moe->N, n, error);
    for (size_t t = 0; status == ET_OK && t < moe->N; t += step) {
        size_t from = t * n;
        if (!v->pick->token[t]) continue;
        memcpy(v->s.bwd.logits + from, v->loss_logits + from, step * n * sizeof(et_real));
        et_gate_backward(moe->gate, step, n, v->gate_logits + from, f->gates + from,
                         f->anchor ? f->anchor + t : NULL, v->s.bwd.gates + from,
                         danchor ? danchor + t : NULL, v->s.bwd.logits + from);
    }
    if (status == ET_OK) call_tokens(v, ET_AT_DLOGITS);
    return status;
}

static et_status at_drouter(et_deviant *v, bool again, et_error *error)
{
    (void)again;
    const et_moe *moe = &v->moe;
    if (v->s.fwd.gates == NULL || !v->pick->whole) return ET_OK; /* a sum over all tokens */
    et_status status = renew(v, &v->s.bwd.router, moe->n, moe->d, error);
    if (status != ET_OK) return status;
    et_matmul(moe->engine, moe->n, moe->d, moe->N, et_transposed(v->s.bwd.logits, moe->n),
              et_rows(v->s.in.x, moe->d), false, v->s.bwd.router, moe->d);
    call_whole(v, ET_AT_DROUTER);
    return ET_OK;
}

/* ---- dx ---- */

static void add_row(size_t d, const et_real *from, et_real *to)
{
    for (size_t c = 0; c < d; c++) to[c] += from[c];
}

/* dx_t = expert's shares + shared expert's + dr_t W_r */
static void gather_dx(et_deviant *v, size_t t)
{
    size_t n = v->moe.n, d = v->moe.d;
    et_real *dx = v->s.bwd.x + t * d;
    const int32_t *slots;
    size_t count = et_slots_of(v, t, &slots);
    memset(dx, 0, d * sizeof *dx);
    for (size_t j = 0; j < count; j++) add_row(d, v->slot_dx + (size_t)slots[j] * d, dx);
    if (v->moe.hs > 0) add_row(d, v->shared_dx + t * d, dx);
    for (size_t i = 0; v->s.bwd.logits && i < n; i++) {
        et_real dr = v->s.bwd.logits[t * n + i];
        for (size_t c = 0; c < d; c++) dx[c] += dr * v->moe.router[i * d + c];
    }
}

static et_status at_dx(et_deviant *v, bool again, et_error *error)
{
    (void)again;
    et_status status = renew(v, &v->s.bwd.x, v->moe.N, v->moe.d, error);
    if (status == ET_OK && v->slot_dx == NULL) {
        status = right_shares(v->on, error);
        v->slot_dx = v->on->slot_dx;
        v->shared_dx = v->on->shared_dx;
    }
    for (size_t t = 0; status == ET_OK && t < v->moe.N; t++)
        if (v->pick->token[t]) gather_dx(v, t);
    if (status != ET_OK) return status;
    call_tokens(v, ET_AT_DX);
    call_whole(v, ET_AT_DX);
    return ET_OK;
}

static et_status at_layout(et_deviant *v, bool again, et_error *error)
{
    (void)again;
    (void)error;
    call_whole(v, ET_AT_LAYOUT);
    return ET_OK;
}

/* ---- all stages ---- */

static et_status compute(et_deviant *v, et_stage stage, bool again, et_error *error)
{
    switch (stage) {
    case ET_AT_PLAN: return at_plan(v, again, error);
    case ET_AT_MASK: return at_mask(v, again, error);
    case ET_AT_CUTOFF: return at_cutoff(v, again, error);
    case ET_AT_STATE: return at_state(v, again, error);
    case ET_AT_GATES: return at_gates(v, again, error);
    case ET_AT_WEIGHTS: return at_weights(v, again, error);
    case ET_AT_Y: return at_y(v, again, error);
    case ET_AT_LOSSES: return at_losses(v, again, error);
    case ET_AT_DDOWN:
    case ET_AT_DUP: return gradient_stage(v, stage, again, error);
    case ET_AT_DGATES: return at_dgates(v, again, error);
    case ET_AT_DLOGITS: return at_dlogits(v, again, error);
    case ET_AT_DROUTER: return at_drouter(v, again, error);
    case ET_AT_DX: return at_dx(v, again, error);
    case ET_AT_LAYOUT: return at_layout(v, again, error);
    default: return row_stage(v, stage, again, error);
    }
}

/* Between the passes: what the backward pass will go by. */
static void turn_back(et_deviant *v)
{
    v->used = v->forward_only ? v->on->right->fwd : v->s.fwd;
    if (!v->forward_only) return;
    v->dirty &= ~forward;
    v->compared &= ~forward;
    v->moe = v->on->moe;
    v->without_shared = v->over_all = false;
    v->gate_logits = v->s.fwd.logits;
    v->loss_gates = v->loss_logits = NULL;
}

et_status et_deviant_complete(et_deviant *v, et_error *error)
{
    et_status status = ET_OK;
    for (int stage = ET_AT_DWEIGHT; status == ET_OK && v->rerouted && stage < ET_AT_LAYOUT; stage++)
        if (!(v->dirty >> stage & 1)) status = et_deviant_stage(v, (et_stage)stage, error);
    return status;
}

et_step et_deviant_step(const et_deviant *v)
{
    et_step s = v->s;
    if (!is_moe(&s)) return s;
    s.assignment = *v->a;
    if (!v->rerouted) s.route.mask = v->on->right->route.mask;
    if (!et_gate_has_anchor(s.c.gate)) s.fwd.anchor = NULL; /* the deviant's own room */
    return s;
}

et_status et_deviant_stage(et_deviant *v, et_stage stage, et_error *error)
{
    if (stage == ET_AT_DWEIGHT) turn_back(v);
    bool again = (v->dirty & needs[stage]) != 0 ||
                 (v->rerouted && stage > ET_AT_GATES && stage < ET_AT_LAYOUT);
    if (v->blocked || (!again && !hooked(v, stage))) return ET_OK;
    v->dirty |= BIT(stage);
    et_status status = compute(v, stage, again, error);
    if (status == ET_OK && v->status != ET_OK)
        status = et_fail(error, v->status, "explanation: no memory for a hypothesis");
    return status;
}
