/* array_table.c: every array of a model, once. What walks a model walks this table: the block of memory,
 * checkpoints, gradient checks, the search for what is not finite. See etref/gpt.h.
 *
 * Shapes are written in letters, below. An array with a dimension of 0 does not exist: a dense
 * layer has no experts, n = 0, and so none of the arrays that have an n in their shape.
 */
#include "ref/base/float_environment.h"
#include "ref/base/memory.h"
#include "ref/model/model.h"

#include "etref/attention.h"
#include "etref/cross_entropy.h"
#include "etref/rope.h"

#include <math.h>
#include <omp.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef enum kind {
    PARAMETER, /* an et_gpt_tensor: value, gradient, moments */
    STATE,     /* an et_gpt_tensor: value */
    ARRAY      /* an et_real * */
} kind;

typedef struct row {
    const char *name, *shape;
    kind kind;
    bool of_layer; /* one for each layer, else one for the model */
    size_t member; /* of et_gpt_layer or et_gpt */
    et_gpt_optimizer optimizer;
    et_gpt_start start;
} row;

#define LAYER(member) true, offsetof(et_gpt_layer, member)
#define MODEL(member) false, offsetof(et_gpt, member)

/* clang-format off */
static const row table[] = {
    {"wte", "Vd", PARAMETER, MODEL(wte), ET_WTE, ET_UNIT},
    {"head", "Vd", PARAMETER, MODEL(head), ET_HEAD, ET_ZERO},
    {"w_qkv", "Rd", PARAMETER, LAYER(w_qkv), ET_MUON, ET_BY_SHAPE},
    {"w_o", "dQ", PARAMETER, LAYER(w_o), ET_MUON, ET_ZERO},
    {"w_up", "fd", PARAMETER, LAYER(w_up), ET_MUON, ET_BY_SHAPE},
    {"w_down", "df", PARAMETER, LAYER(w_down), ET_MUON, ET_ZERO},
    {"w_router", "nd", PARAMETER, LAYER(w_router), ET_ROUTER, ET_BY_WIDTH},
    {"w_up", "nhd", PARAMETER, LAYER(w_up), ET_MUON, ET_BY_SHAPE},
    {"w_down", "ndh", PARAMETER, LAYER(w_down), ET_MUON, ET_ZERO},
    {"shared_up", "sd", PARAMETER, LAYER(shared_up), ET_MUON, ET_BY_SHAPE},
    {"shared_down", "ds", PARAMETER, LAYER(shared_down), ET_MUON, ET_ZERO},
    {"ema", "m", STATE, LAYER(ema), 0, 0},
    {"bias", "b", STATE, LAYER(bias), 0, 0},

    {"cosines", "TE", ARRAY, MODEL(cosines), 0, 0},
    {"sines", "TE", ARRAY, MODEL(sines), 0, 0},
    {"norm0", "Nd", ARRAY, MODEL(norm0), 0, 0},
    {"scale0", "N", ARRAY, MODEL(scale0), 0, 0},
    {"x", "Nd", ARRAY, MODEL(x), 0, 0},
    {"norm1", "Nd", ARRAY, LAYER(norm1), 0, 0},
    {"scale1", "N", ARRAY, LAYER(scale1), 0, 0},
    {"qkv", "NR", ARRAY, LAYER(qkv), 0, 0},
    {"qk_scale", "NK", ARRAY, LAYER(qk_scale), 0, 0},
    {"attended", "NQ", ARRAY, LAYER(attended), 0, 0},
    {"lse", "NH", ARRAY, LAYER(lse), 0, 0},
    {"norm2", "Nd", ARRAY, LAYER(norm2), 0, 0},
    {"scale2", "N", ARRAY, LAYER(scale2), 0, 0},
    {"pre", "Nf", ARRAY, LAYER(pre), 0, 0},
    {"act", "Nf", ARRAY, LAYER(act), 0, 0},
    {"logits", "Nn", ARRAY, LAYER(values.logits), 0, 0},
    {"gates", "Nn", ARRAY, LAYER(values.gates), 0, 0},
    {"anchor", "a", ARRAY, LAYER(values.anchor), 0, 0},
    {"slot_weight", "S", ARRAY, LAYER(values.slot_weight), 0, 0},
    {"slot_pre", "Sh", ARRAY, LAYER(values.slot_pre), 0, 0},
    {"slot_act", "Sh", ARRAY, LAYER(values.slot_act), 0, 0},
    {"slot_out", "Sd", ARRAY, LAYER(values.slot_out), 0, 0},
    {"shared_pre", "Ns", ARRAY, LAYER(values.shared_pre), 0, 0},
    {"shared_act", "Ns", ARRAY, LAYER(values.shared_act), 0, 0},
    {"shared_out", "Md", ARRAY, LAYER(values.shared_out), 0, 0},
    {"shared_weight", "M", ARRAY, LAYER(values.shared_weight), 0, 0},
    {"load", "n", ARRAY, LAYER(load), 0, 0},
    {"passed", "m", ARRAY, LAYER(passed), 0, 0},
    {"cutoff", "m", ARRAY, LAYER(cutoff), 0, 0},
    {"threshold", "m", ARRAY, LAYER(threshold), 0, 0},
    {"y", "Nd", ARRAY, MODEL(y), 0, 0},
    {"normed", "Nd", ARRAY, MODEL(normed), 0, 0},
    {"scale", "N", ARRAY, MODEL(scale), 0, 0},
    {"loss", "N", ARRAY, MODEL(loss), 0, 0},
    {"lse", "N", ARRAY, MODEL(lse), 0, 0},

    {"dx", "Nd", ARRAY, MODEL(dx), 0, 0},
    {"dnormed", "Nd", ARRAY, MODEL(dnormed), 0, 0},
    {"dqkv", "NR", ARRAY, MODEL(dqkv), 0, 0},
    {"dattended", "NQ", ARRAY, MODEL(dattended), 0, 0},
    {"dpre", "Nf", ARRAY, MODEL(dpre), 0, 0},
    {"dact", "Nf", ARRAY, MODEL(dact), 0, 0},
    {"dlogits", "Nn", ARRAY, MODEL(grads.logits), 0, 0},
    {"dgates", "Nn", ARRAY, MODEL(grads.gates), 0, 0},
    {"dslot_weight", "S", ARRAY, MODEL(grads.slot_weight), 0, 0},
    {"dslot_out", "Sd", ARRAY, MODEL(grads.slot_out), 0, 0},
    {"dslot_act", "Sh", ARRAY, MODEL(grads.slot_act), 0, 0},
    {"dslot_pre", "Sh", ARRAY, MODEL(grads.slot_pre), 0, 0},
    {"dshared_weight", "M", ARRAY, MODEL(grads.shared_weight), 0, 0},
    {"dshared_out", "Md", ARRAY, MODEL(grads.shared_out), 0, 0},
    {"dshared_act", "Ns", ARRAY, MODEL(grads.shared_act), 0, 0},
    {"dshared_pre", "Ns", ARRAY, MODEL(grads.shared_pre), 0, 0},
    {"room", "r", ARRAY, MODEL(room), 0, 0},
};
/* clang-format on */

enum { ROWS = sizeof table / sizeof *table };

/* ---- dimensions ---- */

static bool keeps_bias(const et_case *c)
{
    return c->balance == ET_BALANCE_LOSSFREE || c->balance == ET_BALANCE_PROPORTIONAL;
}

/* Slots that a micro-batch can have. In evaluation EC and ET send a token to whoever's threshold it
 * passes. */
static size_t most_slots(const et_gpt *g)
{
    const et_case *c = &g->config.ffn;
    return g->N * (c->rule == ET_TC ? c->top_k : c->experts);
}

static size_t larger(size_t a, size_t b)
{
    return a > b ? a : b;
}

static et_attention attention_of(const et_gpt *g)
{
    const et_gpt_config *c = &g->config;
    return (et_attention){.B = c->batch,
                          .T = c->sequence,
                          .heads = c->heads,
                          .kv_heads = c->kv_heads,
                          .width = c->head_dim,
                          .workers = g->workers};
}

/* Muon's matrices: of experts each one, or all of them on top of each other. */
static size_t muon_room(const et_gpt *g)
{
    const et_gpt_config *c = &g->config;
    const et_case *f = &c->ffn;
    size_t d = c->d_model, n = f->layer == ET_MOE ? f->experts : 0;
    size_t stacked = c->grouping == ET_MUON_STACKED ? n : (n > 0);
    size_t rooms[] = {et_muon_room((c->heads + 2 * c->kv_heads) * c->head_dim, d),
                      et_muon_room(d, c->heads * c->head_dim),
                      et_muon_room(c->d_dense, d),
                      et_muon_room(stacked * f->d_expert, d),
                      et_muon_room(stacked * d, f->d_expert),
                      et_muon_room(f->shared_d_expert, d)};
    size_t most = 0;
    for (size_t i = 0; i < sizeof rooms / sizeof *rooms; i++) most = larger(most, rooms[i]);
    return most;
}

static size_t scratch_room(const et_gpt *g)
{
    const et_attention a = attention_of(g);
    const et_cross_entropy e = {.N = g->N, .V = g->config.vocab};
    return larger(muon_room(g), larger(et_attention_room(&a), et_cross_entropy_room(&e)));
}

/* Of a layer; of the model where `l` is NULL: room for any layer. */
static size_t dimension(const et_gpt *g, const et_gpt_layer *l, char letter)
{
    const et_gpt_config *c = &g->config;
    const et_case *f = &c->ffn;
    bool moe = l ? l->moe : f->layer == ET_MOE, dense = l ? !l->moe : true;
    switch (letter) {
    case 'V': return c->vocab;
    case 'd': return c->d_model;
    case 'T': return c->sequence;
    case 'N': return g->N;
    case 'H': return c->heads;
    case 'K': return c->heads + c->kv_heads;
    case 'E': return c->head_dim / 2;
    case 'Q': return c->heads * c->head_dim;
    case 'R': return (c->heads + 2 * c->kv_heads) * c->head_dim;
    case 'f': return dense ? c->d_dense : 0;
    case 'n': return moe ? f->experts : 0;
    case 'h': return moe ? f->d_expert : 0;
    case 's': return moe ? f->shared_d_expert : 0;
    case 'M': return moe && f->shared ? g->N : 0;
    case 'a': return moe && et_gate_has_anchor(f->gate) ? g->N : 0;
    case 'S': return moe ? most_slots(g) : 0;
    case 'm': return moe && f->rule != ET_TC ? f->experts : 0; /* of the moving average */
    case 'b': return moe && keeps_bias(f) ? f->experts : 0;
    default: return scratch_room(g); /* r */
    }
}

/* The product of a shape's dimensions; false if it overflows. */
static bool count_of(const et_gpt *g, const et_gpt_layer *l, const char *shape, size_t *count)
{
    *count = 1;
    for (; *shape; shape++)
        if (!et_size_mul(*count, dimension(g, l, *shape), count)) return false;
    return true;
}

/* ---- the block: counted first, then cut ---- */

/* Cuts `count` numbers off the block, or counts them where there is none yet. */
static et_real *cut(et_gpt *g, size_t count)
{
    et_real *at = g->arena ? g->arena + g->reals : NULL;
    g->reals += count;
    return at;
}

static void place_tensor(et_gpt *g, const et_gpt_layer *l, const row *r, size_t count,
                         et_gpt_tensor *t)
{
    t->rank = strlen(r->shape);
    t->count = count;
    for (size_t i = 0; i < t->rank; i++) t->shape[i] = dimension(g, l, r->shape[i]);
    if (l)
        snprintf(t->name, sizeof t->name, "layers.%zu.%s", l->index, r->name);
    else
        snprintf(t->name, sizeof t->name, "%s", r->name);
    t->value = cut(g, count);
    if (r->kind == PARAMETER) t->gradient = cut(g, count);
    if (r->kind == PARAMETER) t->first = cut(g, count);
    if (r->kind == PARAMETER && r->optimizer != ET_MUON) t->second = cut(g, count);
    if (g->tensors) g->tensors[g->tensor_count] = (et_gpt_entry){t, r->optimizer, r->start};
    g->tensor_count++;
}

static bool place(et_gpt *g, et_gpt_layer *l, const row *r)
{
    size_t count, left = PTRDIFF_MAX / sizeof(double) - g->reals;
    char *at = (l ? (char *)l : (char *)g) + r->member;
    if (!count_of(g, l, r->shape, &count) || count > left / 4) return false;
    if (count == 0) return true; /* it does not exist */
    if (r->kind == ARRAY)
        *(et_real **)(void *)at = cut(g, count);
    else
        place_tensor(g, l, r, count, (et_gpt_tensor *)(void *)at);
    return true;
}

/* The tensors first, layer by layer, then the arrays. */
static bool place_all(et_gpt *g)
{
    bool fits = true;
    g->reals = g->tensor_count = 0;
    for (size_t i = 0; i < ROWS; i++)
        for (size_t j = 0; fits && j < (table[i].of_layer ? g->config.layers : 1); j++)
            fits = place(g, table[i].of_layer ? &g->layers[j] : NULL, &table[i]);
    return fits;
}

static et_status take(et_gpt *g, size_t max_bytes, et_error *error)
{
    void *room;
    et_status status = et_allocate(&room, g->config.layers, sizeof *g->layers, "layers", error);
    if (status != ET_OK) return status;
    g->layers = room;
    for (size_t i = 0; i < g->config.layers; i++) {
        g->layers[i].index = i;
        g->layers[i].moe = g->config.ffn.layer == ET_MOE && !(i == 0 && g->config.first_dense);
    }
    if (!place_all(g))
        return et_fail(error, ET_EINVAL, "et_gpt: sizes whose product cannot be addressed");
    if (max_bytes > 0 && et_gpt_bytes(g) > max_bytes)
        return et_fail(
            error, ET_ENOMEM,
            "et_gpt: a model and its arrays of %zu MB, more than the %zu MB this run may "
            "take; use fewer tokens, layers, experts or columns",
            et_gpt_bytes(g) / 1000000, max_bytes / 1000000);
    if ((status = et_allocate(&room, g->reals, sizeof(et_real), "a model's arrays", error)))
        return status;
    g->arena = room;
    if ((status = et_allocate(&room, g->tensor_count, sizeof *g->tensors, "tensors", error)))
        return status;
    g->tensors = room;
    if ((status = et_allocate(&room, 2 * g->N, sizeof *g->inputs, "tokens", error))) return status;
    g->inputs = room;
    g->targets = g->inputs + g->N;
    place_all(g);
    for (size_t i = 0; i < g->config.layers; i++) g->layers[i].values.y = g->y;
    g->grads.x = g->dnormed;
    return ET_OK;
}

/* ---- the public functions ---- */

et_status et_gpt_create(et_gpt **out, const et_gpt_config *config, size_t max_bytes,
                        et_error *error)
{
    ET_ARITHMETIC;
    size_t N = 0;
    void *room;
    et_gpt_config settled = *config;
    et_status status = et_gpt_settle(&settled, &N, error);
    if (status == ET_OK) status = et_allocate(&room, 1, sizeof(et_gpt), "a model", error);
    if (status != ET_OK) return status;
    et_gpt *g = room;
    g->config = settled;
    g->N = N;
    g->workers = (size_t)omp_get_max_threads();
    status = take(g, max_bytes, error);
    if (status == ET_OK)
        status = et_rope_table(NULL, settled.sequence, settled.head_dim, settled.rope_base, g->cosines,
                               g->sines, error);
    if (status == ET_OK)
        *out = g;
    else
        et_gpt_free(g);
    return status;
}

void et_gpt_free(et_gpt *g)
{
    if (g == NULL) return;
    for (size_t i = 0; g->layers && i < g->config.layers; i++) et_step_free(&g->layers[i].pass);
    free(g->inputs);
    free(g->tensors);
    free(g->arena);
    free(g->layers);
    free(g);
}

const et_gpt_config *et_gpt_configuration(const et_gpt *g)
{
    return &g->config;
}

size_t et_gpt_bytes(const et_gpt *g)
{
    return g->reals * sizeof(et_real);
}

et_gpt_tensor *et_gpt_tensor_at(et_gpt *g, size_t index)
{
    return index < g->tensor_count ? g->tensors[index].tensor : NULL;
}

/* ---- what is not finite, or large ---- */

const et_gpt_tensor *et_gpt_loudest(const et_gpt *g, double *ratio)
{
    const et_gpt_tensor *loudest = NULL;
    *ratio = 0;
    for (size_t i = 0; i < g->tensor_count; i++) {
        const et_gpt_tensor *t = g->tensors[i].tensor;
        if (t->gradient == NULL) continue;
        double own =
            sqrt(et_squares(t->count, t->gradient)) / (sqrt(et_squares(t->count, t->value)) + 1e-6);
        if (loudest != NULL && !(own > *ratio)) continue;
        loudest = t;
        *ratio = own;
    }
    return loudest;
}

static bool all_finite(const et_real *v, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (!isfinite(v[i])) return false;
    return true;
}

/* Looks at the parameters and states, or at the other arrays, of a layer or (NULL) of the model. */
static bool unusual_of(const et_gpt *g, const et_gpt_layer *l, bool arrays, char *name, size_t room)
{
    for (size_t i = 0; i < ROWS; i++) {
        const row *r = &table[i];
        const char *at = (l ? (const char *)l : (const char *)g) + r->member;
        size_t count;
        if (r->of_layer != (l != NULL) || (r->kind == ARRAY) != arrays ||
            !count_of(g, l, r->shape, &count) || count == 0)
            continue;
        const et_real *v = arrays ? *(et_real *const *)(const void *)at
                                  : ((const et_gpt_tensor *)(const void *)at)->value;
        if (all_finite(v, count)) continue;
        if (l)
            snprintf(name, room, "layers.%zu.%s", l->index, r->name);
        else
            snprintf(name, room, "%s", r->name);
        return true;
    }
    return false;
}

/* Parameters before what is computed of them, layer after layer; the model's own arrays, in which
 * layers leave what they made, last. */
bool et_gpt_unusual(const et_gpt *g, char *name, size_t room)
{
    for (int arrays = 0; arrays <= 1; arrays++) {
        if (!arrays && unusual_of(g, NULL, false, name, room)) return true;
        for (size_t j = 0; j < g->config.layers; j++)
            if (unusual_of(g, &g->layers[j], arrays, name, room)) return true;
    }
    return unusual_of(g, NULL, true, name, room);
}
