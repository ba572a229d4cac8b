/* layer_arguments.c: are the structs that a caller fills what their headers say? See layer_arguments.h. */
#include "ref/layers/layer_arguments.h"
#include "ref/base/memory.h"

#include <math.h>
#include <stdint.h>

/* ---- arrays ---- */

/* An array of a struct: its field's name, where it is, and its shape. */
typedef struct array {
    const char *name;
    const void *at;
    size_t rows, columns, depth;
} array;

static et_status check_arrays(const char *owner, const array *list, size_t count, et_error *error)
{
    for (size_t i = 0; i < count; i++) {
        const array *a = &list[i];
        size_t elements, bytes;
        if (!et_size_mul(a->rows, a->columns, &elements) ||
            !et_size_mul(elements, a->depth, &elements) ||
            !et_size_mul(elements, sizeof(double), &bytes) || bytes > PTRDIFF_MAX)
            return et_fail(error, ET_EINVAL, "%s: %s [%zu,%zu,%zu] cannot be addressed", owner,
                           a->name, a->rows, a->columns, a->depth);
        if (a->at == NULL && elements > 0)
            return et_fail(error, ET_EINVAL, "%s: %s is NULL; %zu elements belong there", owner,
                           a->name, elements);
    }
    return ET_OK;
}

#define CHECK_ARRAYS(owner, list, error)                                                           \
    check_arrays(owner, list, sizeof(list) / sizeof *(list), error)

static et_status check_engine(const char *owner, et_engine engine, et_error *error)
{
    if (engine == ET_PLAIN || engine == ET_BLAS) return ET_OK;
    return et_fail(error, ET_EINVAL, "%s: engine = %d; ET_PLAIN or ET_BLAS", owner, (int)engine);
}

static et_status check_activation(const char *owner, et_activation a, et_error *error)
{
    if (a >= ET_RELU2 && a <= ET_GELU_TANH) return ET_OK;
    return et_fail(error, ET_EINVAL, "%s: activation = %d is none of et_activation", owner, (int)a);
}

/* ---- the feed-forward layer ---- */

et_status et_ffn_check(const et_ffn *f, size_t m, et_error *error)
{
    if (f == NULL) return et_fail(error, ET_EINVAL, "et_ffn: NULL; a layer belongs here");
    const array arrays[] = {{"up", f->up, f->h, f->d, 1},
                            {"down", f->down, f->d, f->h, 1},
                            {"gating", f->gating, f->activation == ET_SWIGLU ? f->h : 0, f->d, 1}};
    const array widths[] = {{"x", f, m, f->d, 1}, {"H", f, m, f->h, 1}};
    et_status status = check_engine("et_ffn", f->engine, error);
    if (status == ET_OK) status = check_activation("et_ffn", f->activation, error);
    if (status == ET_OK) status = et_rounding_check(f->rounding, error);
    if (status == ET_OK) status = CHECK_ARRAYS("et_ffn", arrays, error);
    return status == ET_OK ? CHECK_ARRAYS("et_ffn", widths, error) : status;
}

et_status et_ffn_check_forward(const et_ffn *f, const et_ffn_rows *r, et_error *error)
{
    et_status status = et_ffn_check(f, r->m, error);
    if (status != ET_OK) return status;
    const array arrays[] = {{"x", r->x, r->m, f->d, 1},
                            {"H", r->H, r->m, f->h, 1},
                            {"V", r->V, f->activation == ET_SWIGLU ? r->m : 0, f->h, 1},
                            {"A", r->A, r->m, f->h, 1},
                            {"out", r->out, r->m, f->d, 1}};
    return CHECK_ARRAYS("et_ffn_rows", arrays, error);
}

et_status et_ffn_check_backward(const et_ffn *f, const et_ffn_rows *r, bool up, bool down,
                                et_error *error)
{
    et_status status = et_ffn_check(f, r->m, error);
    if (status != ET_OK) return status;
    const size_t gated = f->activation == ET_SWIGLU ? r->m : 0;
    const array arrays[] = {
        {"x", r->x, up ? r->m : 0, f->d, 1}, {"H", r->H, r->m, f->h, 1},
        {"V", r->V, gated, f->h, 1},         {"A", r->A, down ? r->m : 0, f->h, 1},
        {"dO", r->dO, r->m, f->d, 1},        {"dA", r->dA, r->m, f->h, 1},
        {"dH", r->dH, r->m, f->h, 1},        {"dV", r->dV, gated, f->h, 1},
        {"dx", r->dx, r->m, f->d, 1}};
    return CHECK_ARRAYS("et_ffn_rows", arrays, error);
}

/* ---- the assignment ---- */

/* offsets [count+1] from 0 to S, with counts[i] between its ends. */
static et_status check_offsets(const char *name, size_t count, size_t slots, const int32_t *offsets,
                               const int32_t *counts, et_error *error)
{
    if (offsets[0] != 0 || (size_t)offsets[count] != slots)
        return et_fail(error, ET_EINVAL, "et_assignment: %s run from %d to %d; 0 to %zu slots",
                       name, (int)offsets[0], (int)offsets[count], slots);
    for (size_t i = 0; i < count; i++)
        if (counts[i] < 0 || (int64_t)offsets[i] + counts[i] != offsets[i + 1])
            return et_fail(error, ET_EINVAL,
                           "et_assignment: %s %d and %d at %zu, where %d slots are counted", name,
                           (int)offsets[i], (int)offsets[i + 1], i, (int)counts[i]);
    return ET_OK;
}

/* Expert by expert: its own number, and tokens ascending. */
static bool experts_are_in_order(const et_assignment *a)
{
    for (size_t i = 0; i < a->experts; i++)
        for (int32_t j = a->expert_offsets[i]; j < a->expert_offsets[i + 1]; j++) {
            int32_t before = j > a->expert_offsets[i] ? a->slot_token[j - 1] : -1;
            if (a->slot_expert[j] != (int32_t)i || a->slot_token[j] <= before ||
                (size_t)a->slot_token[j] >= a->tokens)
                return false;
        }
    return true;
}

/* Token by token: slots of its own, experts ascending, and so none twice. */
static bool tokens_are_in_order(const et_assignment *a)
{
    for (size_t t = 0; t < a->tokens; t++)
        for (int32_t j = a->token_offsets[t]; j < a->token_offsets[t + 1]; j++) {
            int32_t slot = a->token_slots[j];
            int32_t before = j > a->token_offsets[t] ? a->token_slots[j - 1] : -1;
            if (slot <= before || (size_t)slot >= a->slots || a->slot_token[slot] != (int32_t)t)
                return false;
        }
    return true;
}

et_status et_assignment_check(const et_assignment *a, et_error *error)
{
    if (a == NULL) return et_fail(error, ET_EINVAL, "et_assignment: NULL");
    if (a->tokens >= INT32_MAX || a->experts >= INT32_MAX || a->slots > INT32_MAX)
        return et_fail(error, ET_EINVAL,
                       "et_assignment: %zu tokens, %zu experts, %zu slots; below 2^31 each",
                       a->tokens, a->experts, a->slots);
    const array arrays[] = {{"expert_offsets", a->expert_offsets, a->experts + 1, 1, 1},
                            {"token_offsets", a->token_offsets, a->tokens + 1, 1, 1},
                            {"load", a->load, a->experts, 1, 1},
                            {"fanout", a->fanout, a->tokens, 1, 1},
                            {"slot_token", a->slot_token, a->slots, 1, 1},
                            {"slot_expert", a->slot_expert, a->slots, 1, 1},
                            {"token_slots", a->token_slots, a->slots, 1, 1}};
    et_status status;
    if ((status = CHECK_ARRAYS("et_assignment", arrays, error)) ||
        (status = check_offsets("expert_offsets", a->experts, a->slots, a->expert_offsets, a->load,
                                error)) ||
        (status = check_offsets("token_offsets", a->tokens, a->slots, a->token_offsets, a->fanout,
                                error)))
        return status;
    if (!experts_are_in_order(a))
        return et_fail(error, ET_EINVAL,
                       "et_assignment: slot_expert and slot_token are not expert by expert with "
                       "ascending tokens below %zu",
                       a->tokens);
    if (!tokens_are_in_order(a))
        return et_fail(error, ET_EINVAL,
                       "et_assignment: token_slots do not list each token's slots, ascending");
    return ET_OK;
}

/* ---- the MoE layer ---- */

static et_status check_switches(const et_moe *moe, et_error *error)
{
    if (moe->gate < ET_GATE_SIGMOID || moe->gate > ET_GATE_SOFTMAX_TOKENS)
        return et_fail(error, ET_EINVAL, "et_moe: gate = %d is none of et_gate", (int)moe->gate);
    if (moe->norm < ET_NORM_NONE || moe->norm > ET_NORM_SUM)
        return et_fail(error, ET_EINVAL, "et_moe: norm = %d is none of et_norm", (int)moe->norm);
    if (moe->gate == ET_GATE_SOFTMAX_TOKENS && moe->N > 0 &&
        (moe->gate_tokens == 0 || moe->N % moe->gate_tokens != 0))
        return et_fail(error, ET_EINVAL,
                       "et_moe: gate_tokens = %zu does not divide N = %zu; a softmax over tokens "
                       "takes so many at a time",
                       moe->gate_tokens, moe->N);
    if (moe->anchor_weighs_shared && !(moe->hs > 0 && et_gate_has_anchor(moe->gate)))
        return et_fail(error, ET_EINVAL,
                       "et_moe: anchor_weighs_shared without %s; an anchored gate and a shared "
                       "expert belong to it",
                       moe->hs > 0 ? "an anchor" : "a shared expert");
    if (!(moe->routed_scale >= 0 && isfinite(moe->routed_scale)))
        return et_fail(error, ET_EINVAL, "et_moe: routed_scale = %g; above 0, or 0 for none",
                       (double)moe->routed_scale);
    if (moe->hs > 0 && !isfinite(moe->shared_constant))
        return et_fail(error, ET_EINVAL, "et_moe: shared_constant is not finite");
    return ET_OK;
}

static bool gates(const et_moe *moe)
{
    return moe->activation == ET_SWIGLU;
}

et_status et_moe_check(const et_moe *moe, et_error *error)
{
    if (moe == NULL) return et_fail(error, ET_EINVAL, "et_moe: NULL; a layer belongs here");
    size_t d = moe->d, h = moe->h, n = moe->n, hs = moe->hs;
    const array arrays[] = {{"router", moe->router, n, d, 1},
                            {"up", moe->up, n, h, d},
                            {"down", moe->down, n, d, h},
                            {"shared_up", moe->shared_up, hs, d, 1},
                            {"shared_down", moe->shared_down, d, hs, 1},
                            {"gating", moe->gating, gates(moe) ? n : 0, h, d},
                            {"shared_gating", moe->shared_gating, gates(moe) ? hs : 0, d, 1}};
    et_status status = check_engine("et_moe", moe->engine, error);
    if (status == ET_OK) status = check_activation("et_moe", moe->activation, error);
    if (status == ET_OK) status = et_rounding_check(moe->rounding, error);
    if (status == ET_OK) status = check_switches(moe, error);
    return status == ET_OK ? CHECK_ARRAYS("et_moe", arrays, error) : status;
}

et_status et_moe_check_tokens(const et_moe *moe, const char *name, const et_real *rows,
                              et_error *error)
{
    const array arrays[] = {{name, rows, moe->N, moe->d, 1}};
    return CHECK_ARRAYS("et_moe", arrays, error);
}

et_status et_moe_check_scores(const et_moe *moe, const et_moe_values *v, et_error *error)
{
    size_t N = moe->N, n = moe->n;
    if (v == NULL) return et_fail(error, ET_EINVAL, "et_moe_values: NULL");
    const array arrays[] = {{"logits", v->logits, N, n, 1},
                            {"gates", v->gates, N, n, 1},
                            {"anchor", v->anchor, et_gate_has_anchor(moe->gate) ? N : 0, 1, 1}};
    return CHECK_ARRAYS("et_moe_values", arrays, error);
}

static et_status check_assignment(const et_moe *moe, const et_assignment *a, et_error *error)
{
    et_status status = et_assignment_check(a, error);
    if (status == ET_OK && (a->tokens != moe->N || a->experts != moe->n))
        status = et_fail(error, ET_EINVAL,
                         "et_assignment: %zu tokens and %zu experts, where the layer has %zu and "
                         "%zu",
                         a->tokens, a->experts, moe->N, moe->n);
    return status;
}

et_status et_moe_check_values(const et_moe *moe, const et_assignment *a, const et_moe_values *v,
                              et_error *error)
{
    et_status status = et_moe_check_scores(moe, v, error);
    if (status == ET_OK) status = check_assignment(moe, a, error);
    if (status != ET_OK) return status;
    size_t N = moe->N, d = moe->d, h = moe->h, hs = moe->hs, S = a->slots, M = hs > 0 ? N : 0;
    const array arrays[] = {{"slot_weight", v->slot_weight, S, 1, 1},
                            {"slot_pre", v->slot_pre, S, h, 1},
                            {"slot_act", v->slot_act, S, h, 1},
                            {"slot_out", v->slot_out, S, d, 1},
                            {"shared_pre", v->shared_pre, M, hs, 1},
                            {"shared_act", v->shared_act, M, hs, 1},
                            {"shared_out", v->shared_out, M, d, 1},
                            {"shared_weight", v->shared_weight, M, 1, 1},
                            {"y", v->y, N, d, 1},
                            {"slot_gate_pre", v->slot_gate_pre, gates(moe) ? S : 0, h, 1},
                            {"shared_gate_pre", v->shared_gate_pre, gates(moe) ? M : 0, hs, 1}};
    return CHECK_ARRAYS("et_moe_values", arrays, error);
}

et_status et_moe_check_grads(const et_moe *moe, const et_assignment *a, const et_moe_grads *g,
                             et_error *error)
{
    if (g == NULL) return et_fail(error, ET_EINVAL, "et_moe_grads: NULL");
    size_t N = moe->N, d = moe->d, h = moe->h, n = moe->n, hs = moe->hs, S = a->slots;
    size_t M = hs > 0 ? N : 0;
    const array arrays[] = {{"x", g->x, N, d, 1},
                            {"router", g->router, n, d, 1},
                            {"up", g->up, n, h, d},
                            {"down", g->down, n, d, h},
                            {"shared_up", g->shared_up, hs, d, 1},
                            {"shared_down", g->shared_down, d, hs, 1},
                            {"logits", g->logits, N, n, 1},
                            {"gates", g->gates, N, n, 1},
                            {"slot_weight", g->slot_weight, S, 1, 1},
                            {"slot_out", g->slot_out, S, d, 1},
                            {"slot_act", g->slot_act, S, h, 1},
                            {"slot_pre", g->slot_pre, S, h, 1},
                            {"shared_weight", g->shared_weight, M, 1, 1},
                            {"shared_out", g->shared_out, M, d, 1},
                            {"shared_act", g->shared_act, M, hs, 1},
                            {"shared_pre", g->shared_pre, M, hs, 1},
                            {"gating", g->gating, gates(moe) ? n : 0, h, d},
                            {"shared_gating", g->shared_gating, gates(moe) ? hs : 0, d, 1},
                            {"slot_gate_pre", g->slot_gate_pre, gates(moe) ? S : 0, h, 1},
                            {"shared_gate_pre", g->shared_gate_pre, gates(moe) ? M : 0, hs, 1},
                            {"b_up", g->b_up, moe->b_up ? n : 0, h, 1},
                            {"b_gate", g->b_gate, moe->b_gate ? n : 0, h, 1},
                            {"b_down", g->b_down, moe->b_down ? n : 0, d, 1},
                            {"shared_b_up", g->shared_b_up, moe->shared_b_up ? hs : 0, 1, 1},
                            {"shared_b_gate", g->shared_b_gate, moe->shared_b_gate ? hs : 0, 1, 1},
                            {"shared_b_down", g->shared_b_down, moe->shared_b_down ? d : 0, 1, 1}};
    return CHECK_ARRAYS("et_moe_grads", arrays, error);
}
