/* step_model.c: one step of a layer of the model around the experts, or of an optimiser. See step_model.h.
 *
 *     rmsnorm        x -> s, y;   dy -> dx
 *     rope           x -> y;      dy -> dx
 *     attention      [q;k;v] -> lse, y;   dy -> d[q;k;v]
 *     cross_entropy  x, head, targets -> l, lse, losses, their mean;   -> dx, dhead
 *     adamw, muon    w, g, m (, v) -> w, m (, v)
 *
 * The layers are those of ref/layers, as the model calls them (ref/model/transformer_layer.c). What goes into a kernel and comes out of it
 * are stored at a kernel's places; all that lies between the layers rounds themselves.
 */
#include "ref/step/step_model.h"
#include "etref/attention.h"
#include "etref/cross_entropy.h"
#include "etref/optimizer.h"
#include "etref/rmsnorm.h"
#include "etref/rope.h"
#include "ref/base/grid.h"
#include "ref/base/memory.h"
#include "ref/base/sum.h"
#include "ref/step/decide.h"
#include "ref/step/case_kinds.h"

#include <omp.h>
#include <stdlib.h>
#include <string.h>

et_step_model et_model_inputs(const et_step_model *m)
{
    return (et_step_model){.qkv = m->qkv,
                           .head = m->head,
                           .targets = m->targets,
                           .weight = m->weight,
                           .gradient = m->gradient,
                           .first = m->first,
                           .second = m->second};
}

/* Scratch, of which the layer asks so many numbers; it counts while the layer runs. The caller frees it. */
static et_status take_room(et_step *s, et_real **room, size_t count, et_error *error)
{
    void *at = NULL;
    size_t before = s->bytes;
    et_status status = et_step_count_bytes(s, count, sizeof(et_real), error);
    if (status == ET_OK) status = et_allocate(&at, count, sizeof(et_real), s->c.name, error);
    s->bytes = before;
    *room = at;
    return status;
}

static void store(const et_step *s, const char *site, size_t count, et_real *values)
{
    et_round(s->rounding, ET_OUTPUTS, site, count, values);
}

static et_status run_rmsnorm(et_step *s, et_error *error)
{
    const et_case *c = &s->c;
    size_t N = c->tokens, d = c->d_model;
    const et_rmsnorm f = {N, c->heads, d / c->heads, d, c->rms_eps, s->rounding};
    et_status status = et_rmsnorm_forward(&f, s->in.x, s->fwd.y, s->model.scale, error);
    if (status != ET_OK) return status;
    store(s, "y", N * d, s->fwd.y);
    status = et_rmsnorm_backward(&f, s->fwd.y, s->model.scale, s->in.dy, false, s->bwd.x, error);
    store(s, "dx", N * d, s->bwd.x);
    return status;
}

static et_status run_rope(et_step *s, et_error *error)
{
    const et_case *c = &s->c;
    size_t N = c->tokens, d = c->d_model, width = d / c->heads, T = c->sequence;
    et_real *angles;
    et_status status = take_room(s, &angles, T * width, error);
    if (status != ET_OK) return status;
    et_real *sines = angles + T * (width / 2);
    const et_rope f = {N, c->heads, width, d, T, angles, sines, s->rounding};
    memcpy(s->fwd.y, s->in.x, N * d * sizeof(et_real));
    memcpy(s->bwd.x, s->in.dy, N * d * sizeof(et_real));
    if (!(status = et_rope_table(s->rounding, T, width, c->rope_base, angles, sines, error)) &&
        !(status = et_rope_forward(&f, s->fwd.y, error)))
        status = et_rope_backward(&f, s->bwd.x, error);
    store(s, "y", N * d, s->fwd.y);
    store(s, "dx", N * d, s->bwd.x);
    free(angles);
    return status;
}

static et_status run_attention(et_step *s, et_error *error)
{
    const et_case *c = &s->c;
    size_t N = c->tokens, d = c->d_model, width = d / c->heads;
    const et_attention f = {.engine = s->engine,
                            .B = N / c->sequence,
                            .T = c->sequence,
                            .heads = c->heads,
                            .kv_heads = c->kv_heads,
                            .width = width,
                            .workers = (size_t)omp_get_max_threads(),
                            .rounding = s->rounding};
    et_step_model *m = &s->model;
    et_real *room;
    et_status status = take_room(s, &room, et_attention_room(&f), error);
    if (status == ET_OK) status = et_attention_forward(&f, m->qkv, s->fwd.y, m->lse, room, error);
    if (status == ET_OK) {
        store(s, "y", N * d, s->fwd.y);
        status = et_attention_backward(&f, m->qkv, m->lse, s->in.dy, m->dqkv, room, error);
    }
    if (status == ET_OK) store(s, "dqkv", N * (c->heads + 2 * c->kv_heads) * width, m->dqkv);
    free(room);
    return status;
}

static et_status run_cross_entropy(et_step *s, et_error *error)
{
    const et_case *c = &s->c;
    size_t N = c->tokens, d = c->d_model, V = c->vocab;
    et_step_model *m = &s->model;
    const et_cross_entropy f = {s->engine, N, d, V, c->softcap, m->head, s->rounding};
    et_real *room;
    et_status status = take_room(s, &room, et_cross_entropy_room(&f), error);
    if (status == ET_OK)
        status = et_cross_entropy_forward(&f, s->in.x, m->targets, m->loss, m->loss_lse, m->logits,
                                          room, error);
    if (status == ET_OK) {
        *m->mean = et_sum(s->rounding, et_sum_place(s->rounding), "mean", 0, N, 1, m->loss, NULL) /
                   (et_real)N;
        et_round(s->rounding, ET_ACCUMULATOR, "mean", 1, m->mean);
        status = et_cross_entropy_backward(&f, s->in.x, m->targets, m->loss_lse, 1 / (double)N,
                                           s->bwd.x, m->dhead, room, error);
    }
    if (status == ET_OK) {
        store(s, "dx", N * d, s->bwd.x);
        store(s, "dhead", V * d, m->dhead);
    }
    free(room);
    return status;
}

static void copy_state(et_step *s)
{
    et_step_model *m = &s->model;
    size_t bytes = s->c.tokens * s->c.d_model * sizeof(et_real);
    memcpy(m->new_weight, m->weight, bytes);
    memcpy(m->new_first, m->first, bytes);
    if (m->second) memcpy(m->new_second, m->second, bytes);
}

static et_status run_adamw(et_step *s, et_error *error)
{
    const et_case *c = &s->c;
    et_step_model *m = &s->model;
    const et_adamw a = {c->rate, c->beta1, c->beta2, c->eps, c->decay, s->rounding};
    copy_state(s);
    return et_adamw_update(&a, c->step, c->tokens * c->d_model, m->gradient, m->new_first,
                           m->new_second, m->new_weight, error);
}

static et_status run_muon(et_step *s, et_error *error)
{
    const et_case *c = &s->c;
    et_step_model *m = &s->model;
    const et_muon f = {s->engine, c->rate, c->momentum, s->rounding};
    et_real *room;
    et_status status = take_room(s, &room, et_muon_room(c->tokens, c->d_model), error);
    if (status != ET_OK) return status;
    copy_state(s);
    status = et_muon_update(&f, c->tokens, c->d_model, m->gradient, m->new_first, m->new_weight,
                            room, error);
    free(room);
    return status;
}

/* Inputs that are finer than a kernel's numbers: it rounds them when it reads them, or before, as they are stored. So does
 * half of the replicas, of what is not a product's operand alone. An optimiser keeps its state as it is. */
static et_status round_inputs(et_step *s, et_real **room, et_error *error)
{
    const et_case *c = &s->c;
    size_t each = c->tokens * c->d_model;
    size_t of_qkv =
        s->model.qkv ? c->tokens * (c->heads + 2 * c->kv_heads) * (c->d_model / c->heads) : 0;
    struct {
        et_real **at;
        size_t count;
    } list[] = {
        {&s->in.x, each}, {&s->in.dy, each}, {&s->model.gradient, each}, {&s->model.qkv, of_qkv}};
    if (!et_goes_other_way(s->rounding, "stored", "inputs")) return ET_OK;
    et_status status = take_room(s, room, 3 * each + of_qkv, error);
    et_real *to = *room;
    for (size_t i = 0; status == ET_OK && i < sizeof list / sizeof *list; i++) {
        if (*list[i].at == NULL) continue;
        memcpy(to, *list[i].at, list[i].count * sizeof *to);
        et_round_input(s->rounding, ET_INTERMEDIATES, "input", list[i].count, to);
        *list[i].at = to;
        to += list[i].count;
    }
    return status;
}

static et_status run(et_step *s, et_error *error)
{
    switch (s->c.layer) {
    case ET_LAYER_RMSNORM: return run_rmsnorm(s, error);
    case ET_LAYER_ROPE: return run_rope(s, error);
    case ET_LAYER_ATTENTION: return run_attention(s, error);
    case ET_LAYER_CROSS_ENTROPY: return run_cross_entropy(s, error);
    case ET_LAYER_ADAMW: return run_adamw(s, error);
    case ET_LAYER_MUON: return run_muon(s, error);
    case ET_DENSE:
    case ET_MOE: break;
    }
    return et_fail(error, ET_EINVAL, "step: layer = %d is none of the model's", (int)s->c.layer);
}

et_status et_model_step_run(et_step *s, et_error *error)
{
    et_step own = *s;
    et_real *room = NULL;
    et_status status = round_inputs(&own, &room, error);
    if (status == ET_OK) status = run(&own, error);
    free(room);
    return status;
}
