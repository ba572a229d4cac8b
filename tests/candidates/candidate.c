/* candidate.c: one run of an emulated kernel: formats, the order of a step, the list of tensors. See
 * candidate.h.
 *
 *     score -> gates -> route -> weigh -> experts, y -> losses -> experts backward -> dr -> dW_r, dx -> state
 */
#include "ref/base/memory.h"
#include "tests/candidates/work.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

/* ---- memory ---- */

static void own(cd_work *w, void *room)
{
    w->owned[w->owned_count++] = room;
}

void *cd_take(cd_work *w, size_t count, size_t size)
{
    void *room = NULL;
    if (w->owned_count == CD_MAX_ARRAYS)
        et_fail(w->error, ET_ENOMEM, "candidate: CD_MAX_ARRAYS is too small");
    else if (et_allocate(&room, count, size, w->c->name, w->error) == ET_OK)
        own(w, room);
    return room;
}

/* ---- what the kernel computes with ---- */

static cd_format format_of(int bits, int emin)
{
    return (cd_format){.bits = bits,
                       .emin = emin,
                       .smallest = ldexp(1, emin),
                       .largest = ldexp(2 - ldexp(1, 1 - bits), 1 - emin)};
}

static cd_format place_format(const et_profile *p, et_place place)
{
    int bits = p->bits[place];
    bool narrow = bits <= 11 && p->exponent_bits == 5;
    cd_format f = format_of(bits, bits > 24 ? -1022 : narrow ? -14 : -126);
    f.truncate = (place == ET_OPERANDS && p->truncate_operands) ||
                 (place == ET_ACCUMULATOR && p->truncate_accumulator);
    f.ftz = p->ftz;
    return f;
}

/* *f with at most `bits` bits, a fault. */
static void shorten(cd_format *f, int bits, int emin)
{
    if (f->bits > bits) *f = format_of(bits, emin);
}

static void plant_in_formats(cd_work *w)
{
    bool outputs_cut = cd_bad(w, CD_TRUNCATION) || cd_bad(w, CD_TRUNCATED_OUTPUTS);
    if (cd_bad(w, CD_TRUNCATION)) w->intermediate.truncate = true;
    if (outputs_cut) w->output.truncate = true;
    if (cd_bad(w, CD_INTERMEDIATES_BF16)) shorten(&w->intermediate, 8, -126);
    if (cd_bad(w, CD_OUTPUTS_BF16)) shorten(&w->output, 8, -126);
    if (cd_bad(w, CD_OUTPUTS_F16)) shorten(&w->output, 11, -14);
    if (cd_bad(w, CD_OPERANDS_BF16)) shorten(&w->operand, 8, -126);
    if (cd_bad(w, CD_OPERANDS_TF32)) shorten(&w->operand, 11, -126);
    if (cd_bad(w, CD_GATES_BF16)) shorten(&w->gate, 8, -126);
    if (cd_bad(w, CD_FLUSHED)) w->operand.ftz = w->intermediate.ftz = w->output.ftz = true;
}

static void set_formats(cd_work *w, const et_profile *p)
{
    cd_format all[ET_PLACES];
    for (int i = 0; i < ET_PLACES; i++) all[i] = place_format(p, (et_place)i);
    w->operand = all[ET_OPERANDS];
    w->intermediate = all[ET_INTERMEDIATES];
    w->gate = all[ET_GATES];
    w->logit = all[ET_LOGITS];
    w->accumulator = all[ET_ACCUMULATOR];
    w->output = all[ET_OUTPUTS];
    w->gate_work = w->kernel->wide_gates ? format_of(53, -1022) : w->accumulator;
    plant_in_formats(w);
}

/* The float kernel serves where its arithmetic is the profile's and its inputs fit. */
static bool needs_double(const cd_work *w, const et_profile *p)
{
    if (p->bits[ET_ACCUMULATOR] != 24 || p->truncate_accumulator || p->ftz) return true;
    for (int i = 0; i < ET_PLACES; i++)
        if (p->bits[i] > 24) return true;
    return et_dtype_significand(w->c->precision) > 24;
}

bool cd_weights_act(const cd_work *w)
{
    return w->kernel->weight_on_act && w->n > 0 && w->intermediate.emin <= -126 &&
           w->operand.emin <= -126;
}

static void plant_in_layer(cd_work *w)
{
    bool sigmoid = w->moe.gate == ET_GATE_SIGMOID;
    if (cd_bad(w, CD_OTHER_GATE)) w->moe.gate = sigmoid ? ET_GATE_SOFTMAX : ET_GATE_SIGMOID;
    if (cd_bad(w, CD_NORM_ADDED)) w->moe.norm = ET_NORM_SUM;
}

static void open_work(cd_work *w, const cd_candidate *out, et_error *error)
{
    const et_step *golden = out->golden;
    const et_case *c = &golden->c;
    const cd_fault *fault = out->fault;
    *w = (cd_work){.golden = golden,
                   .c = c,
                   .profile = &out->profile,
                   .kernel = out->kernel,
                   .fault = CD_NO_FAULT,
                   .amount = out->amount,
                   .seed = out->seed,
                   .N = c->tokens,
                   .d = c->d_model,
                   .h = c->d_expert,
                   .S = c->tokens,
                   .error = error};
    if (fault && fault->applies(golden)) w->fault = (cd_fault_id)(fault - cd_fault_at(0));
    if (c->layer == ET_MOE) {
        w->moe = et_step_layer(golden);
        w->n = w->moe.n;
        w->hs = w->moe.hs;
        plant_in_layer(w);
    }
    set_formats(w, &out->profile);
    w->is_double = needs_double(w, &out->profile);
}

static void close_work(cd_work *w)
{
    for (size_t i = 0; i < w->owned_count; i++) free(w->owned[i]);
    w->owned_count = 0;
    et_assignment_free(&w->a);
}

/* ---- the step ---- */

/* One token and one expert with a slot, for the faults that hit one of them. */
static void pick(cd_work *w)
{
    et_stream stream = et_stream_open(w->seed, "candidate.place");
    double u = et_uniform(stream, 0, 0);
    w->some_token = (size_t)(u * (double)w->N);
    if (w->n == 0 || w->S == 0) return;
    size_t slot = (size_t)(u * (double)w->S);
    w->some_token = (size_t)w->a.slot_token[slot];
    w->some_expert = (size_t)w->a.slot_expert[slot];
}

static et_status run_moe(cd_work *w)
{
    bool wide = w->is_double;
    et_status status;
    if ((status = wide ? cd_score_double(w) : cd_score_float(w)) || (status = cd_gates(w)) ||
        (status = cd_route(w)))
        return status;
    pick(w);
    if ((status = cd_weigh(w)) || (status = wide ? cd_forward_double(w) : cd_forward_float(w)) ||
        (status = cd_losses(w)) || (status = wide ? cd_backward_double(w) : cd_backward_float(w)) ||
        (status = cd_gates_backward(w)) ||
        (status = wide ? cd_router_backward_double(w) : cd_router_backward_float(w)))
        return status;
    return cd_update_state(w);
}

static et_status run_dense(cd_work *w)
{
    pick(w);
    et_status status = w->is_double ? cd_forward_double(w) : cd_forward_float(w);
    if (status != ET_OK) return status;
    return w->is_double ? cd_backward_double(w) : cd_backward_float(w);
}

static et_status run_step(cd_work *w)
{
    et_status status = w->is_double ? cd_load_double(w) : cd_load_float(w);
    if (status != ET_OK) return status;
    return w->n > 0 ? run_moe(w) : run_dense(w);
}

/* ---- the list of tensors ---- */

/* The type in which a kernel stores numbers of this format. */
static et_dtype type_of(const et_profile *p, et_place place)
{
    int bits = p->bits[place];
    if (bits > 24) return ET_F64;
    if (bits <= 11 && p->exponent_bits == 5) return ET_F16;
    return bits <= 8 ? ET_BF16 : ET_F32;
}

static void list(cd_candidate *out, const char *name, et_dtype type, const void *values,
                 et_source source, size_t rank, const size_t shape[3])
{
    if (values == NULL) return;
    et_tensor_out *t = &out->tensors[out->count++];
    *t = (et_tensor_out){
        .name = name, .dtype = type, .rank = rank, .values = values, .source = source};
    memcpy(t->shape, shape, rank * sizeof *shape);
}

#define SHAPE(...)                                                                                 \
    (sizeof((size_t[]){__VA_ARGS__}) / sizeof(size_t)), (size_t[3])                                \
    {                                                                                              \
        __VA_ARGS__                                                                                \
    }

/* Doubles that hold numbers of a place. */
static void list_place(cd_candidate *out, const char *name, et_place place, const double *values,
                       size_t rank, const size_t shape[3])
{
    list(out, name, type_of(&out->profile, place), values, ET_FROM_F64, rank, shape);
}

static void list_integers(cd_candidate *out, const char *name, const int32_t *values, size_t count)
{
    list(out, name, ET_I32, values, ET_FROM_I32, SHAPE(count));
}

/* Values in the kernel's word; `kept` says that they stay as accumulated. */
static void list_words(cd_candidate *out, const cd_work *w, const char *name, et_place place,
                       bool kept, const void *values, size_t rank, const size_t shape[3])
{
    list(out, name, type_of(&out->profile, kept ? ET_ACCUMULATOR : place), values,
         w->is_double ? ET_FROM_F64 : ET_FROM_F32, rank, shape);
}

static void list_routing(cd_candidate *out, const cd_work *w)
{
    size_t N = w->N, n = w->n, pools = w->pool_cutoff ? N / w->c->pool_tokens : 0;
    list_place(out, "fwd.logits", ET_LOGITS, w->logits, SHAPE(N, n));
    list_place(out, "fwd.gates", ET_GATES, w->gates, SHAPE(N, n));
    list_place(out, "route.threshold", ET_ACCUMULATOR, w->threshold, SHAPE(n));
    list(out, "route.mask", ET_U8, w->mask, ET_FROM_U8, SHAPE(N, n));
    if (!w->c->eval) list_place(out, "route.cutoff", ET_ACCUMULATOR, w->cutoff, SHAPE(n));
    list_place(out, "route.pool_cutoff", ET_ACCUMULATOR, w->pool_cutoff, SHAPE(pools, n));
    list(out, "route.topk_expert", ET_I32, w->topk_expert, ET_FROM_I32, SHAPE(N, w->k));
    list(out, "route.topk_token", ET_I32, w->topk_token, ET_FROM_I32, SHAPE(pools, n, w->k));
    list_integers(out, "route.load", w->a.load, n);
    list_integers(out, "route.fanout", w->a.fanout, N);
    list_integers(out, "route.expert_offsets", w->a.expert_offsets, n + 1);
    list_integers(out, "route.token_offsets", w->a.token_offsets, N + 1);
    list_integers(out, "route.slot_token", w->a.slot_token, w->S);
    list_integers(out, "route.slot_expert", w->a.slot_expert, w->S);
    list_integers(out, "route.token_slots", w->a.token_slots, w->S);
    list_place(out, "route.slot_weight", ET_GATES, w->slot_weight, SHAPE(w->S));
}

static void list_forward(cd_candidate *out, const cd_work *w)
{
    const cd_kernel *k = w->kernel;
    size_t N = w->N, d = w->d, h = w->h, hs = w->hs, S = w->S;
    bool act = k->fused_act || cd_weights_act(w), no_out = cd_weights_act(w);
    const et_place at = ET_INTERMEDIATES;
    list_words(out, w, "fwd.slot_pre", at, k->fused_hidden, w->H, SHAPE(S, h));
    list_words(out, w, "fwd.slot_act", at, act, w->A, SHAPE(S, h));
    if (!no_out) list_words(out, w, "fwd.slot_out", at, k->fused_out, w->O, SHAPE(S, d));
    if (hs > 0) {
        list_words(out, w, "fwd.shared_pre", at, k->fused_hidden, w->shared_H, SHAPE(N, hs));
        list_words(out, w, "fwd.shared_act", at, act, w->shared_A, SHAPE(N, hs));
        if (!no_out)
            list_words(out, w, "fwd.shared_out", at, k->fused_out, w->shared_O, SHAPE(N, d));
        list_place(out, "fwd.shared_weight", ET_GATES, w->shared_weight, SHAPE(N));
    }
    list_words(out, w, "fwd.y", ET_OUTPUTS, k->wide_outputs, w->y, SHAPE(N, d));
    list_place(out, "loss.aux", ET_ACCUMULATOR, w->loss_aux, SHAPE(1));
    list_place(out, "loss.z", ET_ACCUMULATOR, w->loss_z, SHAPE(1));
}

static void list_backward(cd_candidate *out, const cd_work *w)
{
    const cd_kernel *k = w->kernel;
    size_t N = w->N, d = w->d, h = w->h, hs = w->hs, S = w->S, n = w->n;
    bool kept = k->fused_grads || cd_weights_act(w), no_dO = cd_weights_act(w);
    bool as_dy = n == 0; /* the dense layer's dO is dy, in whatever type that came */
    const et_place at = ET_INTERMEDIATES;
    if (n > 0) list_place(out, "bwd.slot_weight", ET_GATES, w->dw, SHAPE(S));
    if (!no_dO) list_words(out, w, "bwd.slot_out", at, kept || as_dy, w->dO, SHAPE(S, d));
    list_words(out, w, "bwd.slot_act", at, kept, w->dA, SHAPE(S, h));
    list_words(out, w, "bwd.slot_pre", at, false, w->dH, SHAPE(S, h));
    if (hs > 0) {
        list_place(out, "bwd.shared_weight", ET_GATES, w->ds, SHAPE(N));
        if (!no_dO) list_words(out, w, "bwd.shared_out", at, kept, w->shared_dO, SHAPE(N, d));
        list_words(out, w, "bwd.shared_act", at, kept, w->shared_dA, SHAPE(N, hs));
        list_words(out, w, "bwd.shared_pre", at, false, w->shared_dH, SHAPE(N, hs));
    }
    list_place(out, "bwd.logits", ET_LOGITS, w->dr, SHAPE(N, n));
}

static void list_gradients(cd_candidate *out, const cd_work *w)
{
    size_t N = w->N, d = w->d, h = w->h, hs = w->hs, n = w->n;
    bool wide = w->kernel->wide_outputs;
    const et_place at = ET_OUTPUTS;
    list_words(out, w, "bwd.x", at, wide, w->dx, SHAPE(N, d));
    list_words(out, w, "bwd.w_router", at, wide, w->drouter, SHAPE(n, d));
    if (n > 0) {
        list_words(out, w, "bwd.w_up", at, wide, w->dup, SHAPE(n, h, d));
        list_words(out, w, "bwd.w_down", at, wide, w->ddown, SHAPE(n, d, h));
    } else {
        list_words(out, w, "bwd.w_up", at, wide, w->dup, SHAPE(h, d));
        list_words(out, w, "bwd.w_down", at, wide, w->ddown, SHAPE(d, h));
    }
    list_words(out, w, "bwd.shared_up", at, wide, w->dshared_up, SHAPE(hs, d));
    list_words(out, w, "bwd.shared_down", at, wide, w->dshared_down, SHAPE(d, hs));
    list_place(out, "state.ema", ET_ACCUMULATOR, w->ema, SHAPE(n));
    list_integers(out, "state.updates", w->updates, 1);
    list_place(out, "state.bias", ET_ACCUMULATOR, w->bias, SHAPE(n));
}

static bool is_listed(const cd_candidate *c, const void *values)
{
    for (size_t i = 0; i < c->count; i++)
        if (c->tensors[i].values == values) return true;
    return false;
}

/* Lists the tensors, in the order of a bundle; takes over their arrays. */
static void hand_over(cd_candidate *out, cd_work *w)
{
    list_routing(out, w);
    list_forward(out, w);
    list_backward(out, w);
    list_gradients(out, w);
    void *arrays[] = {w->a.expert_offsets, w->a.token_offsets, w->a.slot_token, w->a.slot_expert,
                      w->a.token_slots,    w->a.load,          w->a.fanout};
    for (size_t i = 0; w->n > 0 && i < sizeof arrays / sizeof *arrays; i++)
        out->owned[out->owned_count++] = arrays[i];
    if (w->n > 0) w->a = (et_assignment){0};
    size_t left = 0;
    for (size_t i = 0; i < w->owned_count; i++) {
        if (is_listed(out, w->owned[i]))
            out->owned[out->owned_count++] = w->owned[i];
        else
            w->owned[left++] = w->owned[i];
    }
    w->owned_count = left;
}

/* ---- reading a candidate ---- */

size_t cd_count(const et_tensor_out *t)
{
    size_t count = 1;
    for (size_t i = 0; i < t->rank; i++) count *= t->shape[i];
    return count;
}

double cd_element(const et_tensor_out *t, size_t i)
{
    switch (t->source) {
    case ET_FROM_F64: return ((const double *)t->values)[i];
    case ET_FROM_F32: return (double)((const float *)t->values)[i];
    case ET_FROM_I32: return ((const int32_t *)t->values)[i];
    case ET_FROM_U8: break;
    }
    return ((const uint8_t *)t->values)[i];
}

const et_tensor_out *cd_tensor(const cd_candidate *c, const char *name)
{
    for (size_t i = 0; i < c->count; i++)
        if (strcmp(c->tensors[i].name, name) == 0) return &c->tensors[i];
    return NULL;
}

void cd_free(cd_candidate *c)
{
    for (size_t i = 0; i < c->owned_count; i++) free(c->owned[i]);
    *c = (cd_candidate){0};
}

/* ---- what a fault changed ---- */

static void note_change(cd_candidate *c, const char *name)
{
    c->planted = true;
    c->changed_tensors++;
    if (c->changed == NULL) c->changed = name;
}

/* Root mean square of what differs over that of the healthy values; infinite where one of the two is
 * no finite number, or where all healthy values are 0. */
static double change_of(const et_tensor_out *t, const et_tensor_out *healthy)
{
    double difference = 0, size = 0;
    for (size_t i = 0; i < cd_count(t); i++) {
        double a = cd_element(t, i), b = cd_element(healthy, i);
        if (isfinite(a) != isfinite(b)) return (double)INFINITY;
        if (!isfinite(b)) continue;
        difference += (a - b) * (a - b);
        size += b * b;
    }
    return size > 0 ? sqrt(difference / size) : (double)INFINITY;
}

static bool differs(const et_tensor_out *t, const et_tensor_out *healthy)
{
    if (cd_count(t) != cd_count(healthy)) return true;
    for (size_t i = 0; i < cd_count(t); i++) {
        double a = cd_element(t, i), b = cd_element(healthy, i);
        if (a != b && (a == a || b == b)) return true;
    }
    return false;
}

static void compare_tensors(cd_candidate *c, const et_tensor_out *t, const et_tensor_out *healthy)
{
    if (healthy != NULL && !differs(t, healthy)) return;
    note_change(c, t->name);
    if (healthy != NULL && cd_count(healthy) == cd_count(t))
        c->largest_change = fmax(c->largest_change, change_of(t, healthy));
}

static void compare(cd_candidate *c, const cd_candidate *healthy)
{
    for (size_t i = 0; i < c->count; i++)
        compare_tensors(c, &c->tensors[i], cd_tensor(healthy, c->tensors[i].name));
    for (size_t i = 0; i < healthy->count; i++)
        if (cd_tensor(c, healthy->tensors[i].name) == NULL)
            note_change(c, healthy->tensors[i].name);
}

/* ---- running ---- */

/* out->golden, profile, kernel, fault, amount and seed say what. */
static et_status run(cd_candidate *out, et_error *error)
{
    cd_work w;
    open_work(&w, out, error);
    et_status status = run_step(&w);
    if (status == ET_OK) {
        hand_over(out, &w);
        status = cd_spoil(out, &w);
    }
    close_work(&w);
    if (status != ET_OK) cd_free(out);
    return status;
}

et_status cd_plant(cd_candidate *out, const cd_candidate *healthy, const cd_fault *fault,
                   double amount, et_error *error)
{
    *out = (cd_candidate){.golden = healthy->golden,
                          .profile = healthy->profile,
                          .kernel = healthy->kernel,
                          .fault = fault,
                          .amount = amount != 0 ? amount : fault->usual,
                          .seed = healthy->seed};
    et_status status = run(out, error);
    if (status == ET_OK) compare(out, healthy);
    return status;
}

et_status cd_run(cd_candidate *out, const et_step *golden, const et_profile *profile,
                 const cd_kernel *kernel, const cd_fault *fault, double amount, uint64_t seed,
                 et_error *error)
{
    cd_candidate healthy = {.golden = golden, .profile = *profile, .kernel = kernel, .seed = seed};
    et_status status = run(&healthy, error);
    if (status == ET_OK && fault != NULL) {
        status = cd_plant(out, &healthy, fault, amount, error);
        cd_free(&healthy);
    } else if (status == ET_OK) {
        *out = healthy;
    }
    return status;
}
