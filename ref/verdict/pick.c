/* pick.c: sub-steps: the rows of a step that belong to picked tokens. See mutant.h. */
#include "ref/base/memory.h"
#include "ref/oracle/decide.h"
#include "ref/oracle/tensors.h"
#include "ref/verdict/judge.h"
#include "ref/verdict/mutant.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* ---- picks ---- */

void et_pick_close(et_pick *p)
{
    free(p->tokens);
    free(p->slots);
    free(p->complete);
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
    *p = (et_pick){.of = of};
    et_status status;
    if ((status = et_allocate((void **)&p->tokens, N, sizeof(size_t), "picked tokens", error)) ||
        (status =
             et_allocate((void **)&p->slots, of->slots, sizeof(size_t), "picked slots", error)) ||
        (status = et_allocate((void **)&p->complete, n + 1, 1, "picked experts", error)) ||
        (status = et_allocate((void **)&p->mask, N * n, 1, "picked tokens", error)))
        goto failed;
    fill(p, tokens);
    number_slots(p, tokens);
    if ((status = et_assignment_build(&p->a, p->count, n, p->mask, error))) goto failed;
    for (size_t i = 0; i < n; i++) p->complete[i] = p->a.load[i] == of->load[i];
    p->complete[n] = shared && p->whole;
    return ET_OK;
failed:
    et_pick_close(p);
    return status;
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
    like.in.x = on->x;
    like.in.dy = on->dy;
    like.route.mask = pick->mask;
    like.engine = ET_BLAS;
    return et_step_take_like(room, &like, error);
}

/* Every array of the sub-step that has a row a token, or a slot, from that of the whole. */
static void gather_values(et_subject *on)
{
    et_tensor_out to[ET_MAX_STEP_TENSORS], from[ET_MAX_STEP_TENSORS];
    size_t have = et_step_tensors(&on->sub, false, to);
    size_t had = et_step_tensors(on->right, false, from);
    for (size_t i = 0; i < have; i++) {
        const char *shape = et_tensor_doc_find(to[i].name)->shape;
        const et_tensor_out *whole = et_tensor_named(from, had, to[i].name);
        bool slots = et_rows_are(shape, "S"), ours = strncmp(to[i].name, "in.", 3) != 0;
        if (!ours || !whole || !et_tensor_is_real(&to[i]) || !(slots || et_rows_are(shape, "N")))
            continue;
        et_real *values = (et_real *)(uintptr_t)to[i].values; /* the sub-step's own */
        et_pick_gather(&on->pick, slots, to[i].rank > 1 ? to[i].shape[1] : 1, whole->values,
                       values);
    }
    if (on->sub.fwd.anchor)
        et_pick_gather(&on->pick, false, 1, on->right->fwd.anchor, on->sub.fwd.anchor);
}

/* The whole step is its own sub-step. */
static et_status take_sub(et_subject *on, et_error *error)
{
    size_t d = on->moe.d, count = on->pick.count;
    if (on->pick.whole) {
        on->sub = et_step_like(on->right);
        on->sub.fwd = on->right->fwd;
        on->sub.bwd = on->right->bwd;
        on->x = on->right->in.x;
        on->dy = on->right->in.dy;
        return ET_OK;
    }
    et_status status = et_allocate((void **)&on->x, count * d, sizeof(et_real), "rows", error);
    if (status == ET_OK)
        status = et_allocate((void **)&on->dy, count * d, sizeof(et_real), "rows", error);
    if (status != ET_OK) return status;
    et_pick_gather(&on->pick, false, d, on->right->in.x, on->x);
    et_pick_gather(&on->pick, false, d, on->right->in.dy, on->dy);
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
    if (on->right && on->x != on->right->in.x) free(on->x);
    if (on->right && on->dy != on->right->in.dy) free(on->dy);
    et_step_free(&on->sub);
    et_step_free(&on->room);
    et_assignment_free(&on->dense);
    et_pick_close(&on->pick);
    *on = (et_subject){0};
}
