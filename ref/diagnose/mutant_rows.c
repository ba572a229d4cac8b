/* mutant_rows.c: sub-steps: the rows of a step that belong to picked tokens. See mutant.h. */
#include "ref/base/memory.h"
#include "ref/step/decide.h"
#include "ref/diagnose/mutant.h"

#include <stdlib.h>
#include <string.h>

/* ---- picks ---- */

void et_pick_close(et_pick *p)
{
    free(p->tokens);
    free(p->mask);
    et_assignment_free(&p->a);
    *p = (et_pick){0};
}

static void fill(et_pick *p, const uint8_t *tokens)
{
    const et_assignment *of = p->of;
    for (size_t t = 0; t < of->tokens; t++) {
        if (tokens && !tokens[t]) continue;
        for (int32_t j = of->token_offsets[t]; j < of->token_offsets[t + 1]; j++)
            p->mask[p->count * of->experts + (size_t)of->slot_expert[of->token_slots[j]]] = 1;
        p->tokens[p->count++] = t;
    }
    p->whole = p->count == of->tokens;
}

/* Slots lie expert by expert with ascending tokens here as there. */
static void number_slots(et_pick *p, const uint8_t *tokens)
{
    size_t count = 0;
    for (size_t slot = 0; slot < p->of->slots; slot++)
        if (tokens == NULL || tokens[p->of->slot_token[slot]]) p->slots[count++] = slot;
}

et_status et_pick_open(et_pick *p, const et_assignment *of, bool shared, const uint8_t *tokens,
                       et_error *error)
{
    size_t N = of->tokens, n = of->experts;
    void *numbers = NULL, *marks = NULL;
    *p = (et_pick){.of = of};
    et_status status = et_allocate(&numbers, N + of->slots, sizeof(size_t), "picked rows", error);
    if (status == ET_OK) status = et_allocate(&marks, N * n + n + 1, 1, "picked tokens", error);
    p->tokens = numbers;
    p->mask = marks;
    if (status == ET_OK) {
        p->slots = p->tokens + N;
        p->complete = p->mask + N * n;
        fill(p, tokens);
        number_slots(p, tokens);
        status = et_assignment_build(&p->a, p->count, n, p->mask, error);
    }
    if (status != ET_OK) {
        et_pick_close(p);
        return status;
    }
    for (size_t i = 0; i < n; i++) p->complete[i] = p->a.load[i] == of->load[i];
    p->complete[n] = shared && p->whole;
    return ET_OK;
}

void et_pick_gather(const et_pick *p, bool slots, size_t columns, const et_real *from, et_real *to)
{
    const size_t *rows = slots ? p->slots : p->tokens;
    for (size_t r = 0; r < (slots ? p->a.slots : p->count); r++)
        memcpy(to + r * columns, from + rows[r] * columns, columns * sizeof *to);
}

/* ---- subjects ---- */

et_status et_subject_room(const et_subject *on, const et_pick *pick, et_step *room, et_error *error)
{
    et_step like = et_step_like(on->right);
    like.max_bytes = 0;
    like.c.tokens = pick->count;
    like.c.micro_batches = 1; /* its tokens are routed already */
    like.c.parallel = ET_ONE_RANK;
    like.in.x = on->x;
    like.in.dy = on->dy;
    like.route.mask = pick->mask;
    like.engine = ET_BLAS;
    return et_step_take_like(room, &like, error);
}

/* Every array of the sub-step that has a row a token, or a slot, from that of the whole. */
static void gather_values(et_subject *on)
{
    et_step whole = *on->right;
    et_moe_values *f = &on->sub.fwd;
    size_t n = on->moe.n;
    for (int i = 0; i < 2 * ET_STAGES; i++) {
        et_stage stage = (et_stage)(i / 2);
        bool shared = i % 2, slots = et_rows_at(stage) == ET_OF_SLOTS;
        et_real **to = et_array_at(&on->sub, stage, shared);
        if (to == NULL || *to == NULL || !(slots || et_rows_at(stage) == ET_OF_TOKENS)) continue;
        et_pick_gather(&on->pick, slots && !shared, et_columns_at(&on->moe, stage, shared),
                       *et_array_at(&whole, stage, shared), *to);
    }
    if (f->logits) et_pick_gather(&on->pick, false, n, whole.fwd.logits, f->logits);
    if (f->anchor) et_pick_gather(&on->pick, false, 1, whole.fwd.anchor, f->anchor);
}

/* The whole step is its own sub-step. */
static et_status take_sub(et_subject *on, et_error *error)
{
    size_t size = on->pick.count * on->moe.d;
    const et_step *right = on->right;
    if (on->pick.whole) {
        on->sub = et_step_like(right);
        on->sub.fwd = right->fwd;
        on->sub.bwd = right->bwd;
        on->x = right->in.x;
        on->dy = right->in.dy;
        return ET_OK;
    }
    et_status status = et_allocate(&on->rows, 2 * size, sizeof(et_real), "picked rows", error);
    if (status != ET_OK) return status;
    on->x = on->rows;
    on->dy = on->x + size;
    et_pick_gather(&on->pick, false, on->moe.d, right->in.x, on->x);
    et_pick_gather(&on->pick, false, on->moe.d, right->in.dy, on->dy);
    status = et_subject_room(on, &on->pick, &on->sub, error);
    if (status == ET_OK) gather_values(on);
    return status;
}

/* A dense layer: everybody goes to one expert. */
static et_status assign_all(et_subject *on, et_error *error)
{
    const et_case *c = &on->right->c;
    void *all;
    et_status status = et_allocate(&all, c->tokens, 1, "dense assignment", error);
    if (status != ET_OK) return status;
    memset(all, 1, c->tokens);
    status = et_assignment_build(&on->dense, c->tokens, 1, all, error);
    free(all);
    on->moe = (et_moe){.N = c->tokens, .d = c->d_model, .h = c->d_expert, .n = 1};
    on->moe.up = on->right->in.up;
    on->moe.down = on->right->in.down;
    on->moe.activation = c->activation;
    on->moe.gating = on->right->in.gating;
    on->moe.b_up = on->right->in.b_up;
    on->moe.b_gate = on->right->in.b_gate;
    on->moe.b_down = on->right->in.b_down;
    return status;
}

et_status et_subject_open(et_subject *on, const et_step *right, const et_tensor_out *candidate,
                          size_t count, const uint8_t *tokens, et_error *error)
{
    *on = (et_subject){.right = right, .candidate = candidate, .count = count};
    bool moe = right->c.layer == ET_MOE;
    et_status status = ET_OK;
    if (moe)
        on->moe = et_step_layer(right);
    else
        status = assign_all(on, error);
    on->moe.engine = ET_BLAS;
    on->moe.rounding = NULL;
    if (status == ET_OK)
        status = et_pick_open(&on->pick, moe ? &right->assignment : &on->dense, on->moe.hs > 0,
                              tokens, error);
    if (status == ET_OK) status = take_sub(on, error);
    if (status != ET_OK) et_subject_close(on);
    return status;
}

void et_subject_close(et_subject *on)
{
    free(on->rows);
    et_step_free(&on->sub);
    et_step_free(&on->room);
    et_assignment_free(&on->dense);
    et_pick_close(&on->pick);
    *on = (et_subject){0};
}
