/* against_witness.h: a computed step against the witness, tensor by tensor.
 *
 * The witness (tests/witness/) computes the layer a second time, in 113-bit numbers and without a
 * line in common with the library. Both must have the same tensors. Then
 *
 *     integers   are equal
 *     reals      |got - want| <= 1e-13 * the largest |want| of the tensor; infinities are equal; a
 *                tensor that is 0 everywhere is exactly 0
 *
 * Why 1e-13. An element is a chain of at most a handful of sums of up to a few hundred products,
 * each sum off by at most gamma_K = K 2^-53 of what it adds up in absolute value. With random signs
 * the error grows like sqrt(K): some 1e-15 of the largest. 1e-13 is what `etref verify` promises to
 * hold a golden to, so the goldens must be good to it.
 *
 * "0 everywhere" means as far as a double reaches: where the witness says 1e-400, 0 is right. A
 * tensor of nothing but subnormal numbers, which have lost their digits, is only asked to be one.
 *
 * A float build has the same bound times 2^29, the ratio of the unit roundoffs, and is told the
 * routing: its rounded logits decide close calls in their own way, so margins and orders, which
 * describe the decisions, are not compared.
 *
 * Left out: metric.* and layout.*, which the witness does not give, and in.*, which both are given.
 */
#ifndef ETREF_TESTS_AGAINST_WITNESS_H
#define ETREF_TESTS_AGAINST_WITNESS_H

#include "etref/bundle.h"
#include "tests/witness/witness.h"

#include "tests/check.h"

#include <float.h>
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const double witness_tolerance = 1e-13 * (ET_UNIT_ROUNDOFF / 0x1p-53);
static const double smallest_normal = sizeof(et_real) == sizeof(double) ? DBL_MIN : FLT_MIN;
static const bool witness_routes = sizeof(et_real) == sizeof(double);

/* What a series of comparisons has found. */
typedef struct agreement {
    size_t steps, tensors, elements, failures;
    double largest;  /* relative error among those of finite tensors */
    char where[160]; /* of it: case and tensor */
} agreement;

/* ---- the elements of a tensor ---- */

static inline double tensor_value(const et_tensor_out *t, size_t i)
{
    switch (t->source) {
    case ET_FROM_F64: return ((const double *)t->values)[i];
    case ET_FROM_F32: return (double)((const float *)t->values)[i];
    case ET_FROM_I32: return ((const int32_t *)t->values)[i];
    case ET_FROM_U8: break;
    }
    return ((const uint8_t *)t->values)[i];
}

static inline size_t tensor_count(const et_tensor_out *t)
{
    size_t count = 1;
    for (size_t i = 0; i < t->rank; i++) count *= t->shape[i];
    return count;
}

/* ---- from a step to the witness's case ---- */

static inline const char *rule_word(et_rule rule)
{
    static const char *const words[] = {"tc", "ec", "et"};
    return words[rule];
}

static inline const char *gate_word(et_gate gate)
{
    static const char *const words[] = {
        "sigmoid", "relu", "softmax", "softmax_anchor", "softmax_anchor_out", "softmax_tokens"};
    return words[gate];
}

static inline const char *norm_word(et_norm norm)
{
    static const char *const words[] = {"none", "fanout", "sum"};
    return words[norm];
}

static inline const char *activation_word(et_activation activation)
{
    static const char *const words[] = {"relu2", "swiglu", "gelu", "gelu_tanh"};
    return words[activation];
}

static inline const char *balance_word(et_balance balance)
{
    static const char *const words[] = {"none", "aux", "aux_error", "lossfree", "proportional"};
    return words[balance];
}

/* The values of an input as doubles, allocated; NULL if the step has no such input. */
static inline double *input_values(const et_step *s, const char *name)
{
    et_tensor_out tensors[ET_MAX_STEP_TENSORS];
    const et_tensor_out *t = tensors, *end = tensors + et_step_tensors(s, false, tensors);
    while (t < end && strcmp(t->name, name) != 0) t++;
    if (t == end) return NULL;
    double *values = malloc(tensor_count(t) * sizeof *values);
    ck_assert_ptr_nonnull(values);
    for (size_t i = 0; i < tensor_count(t); i++) values[i] = tensor_value(t, i);
    return values;
}

/* The case's switches and sizes. Its arrays are freed by free_witness_case. */
static inline witness_case witness_case_of(const et_step *s)
{
    const et_case *c = &s->c;
    return (witness_case){
        .dense = c->layer == ET_DENSE,
        .rule = rule_word(c->rule),
        .eval = c->eval,
        .N = c->tokens,
        .d = c->d_model,
        .h = c->d_expert,
        .n = c->experts,
        .hs = c->shared ? c->shared_d_expert : 0,
        .top_k = c->top_k,
        .padding = c->padding,
        .groups = c->groups,
        .groups_kept = c->groups_kept,
        .group_score = c->group_score == ET_GROUP_TOP2 ? "top2" : "max",
        .k = c->target_load,
        .pool = c->pool_tokens,
        .granularity = c->granularity,
        .gate = gate_word(c->gate),
        .norm = norm_word(c->norm),
        .routed_scale = c->routed_scale,
        .select_gates = c->select_gates,
        .weighs_input = c->weighs_input,
        .activation = activation_word(c->activation),
        .inclusive = c->inclusive,
        .has_capacity = c->has_capacity,
        .capacity = c->capacity_factor,
        .drop = c->drop == ET_DROP_BY_SCORE ? "score" : "arrival",
        .ema_decay = c->ema_decay,
        .ema_bias_correction = c->ema_bias_correction,
        .ema_updates = c->ema_updates,
        .step = c->step,
        .warmup_steps = c->warmup_steps,
        .micro_batches = c->micro_batches,
        .balance = balance_word(c->balance),
        .balance_coef = c->balance_coef,
        .bias_rate = c->bias_rate,
        .global_load = c->global_load,
        .z_loss_coef = c->z_loss_coef,
        .x = input_values(s, "in.x"),
        .dy = input_values(s, "in.dy"),
        .w_router = input_values(s, "in.w_router"),
        .w_up = input_values(s, "in.w_up"),
        .w_down = input_values(s, "in.w_down"),
        .shared_up = input_values(s, "in.shared_up"),
        .shared_down = input_values(s, "in.shared_down"),
        .w_gate = input_values(s, "in.w_gate"),
        .shared_gate = input_values(s, "in.shared_gate"),
        .b_up = input_values(s, "in.b_up"),
        .b_gate = input_values(s, "in.b_gate"),
        .b_down = input_values(s, "in.b_down"),
        .shared_b_up = input_values(s, "in.shared_b_up"),
        .shared_b_gate = input_values(s, "in.shared_b_gate"),
        .shared_b_down = input_values(s, "in.shared_b_down"),
        .ema = input_values(s, "in.ema"),
        .bias = input_values(s, "in.bias"),
        .load = input_values(s, "in.load"),
        .mask = witness_routes && !c->given ? NULL : s->route.mask,
        .given = c->given,
    };
}

static inline void free_witness_case(const witness_case *c)
{
    const double *const arrays[] = {c->x,         c->dy,          c->w_router, c->w_up, c->w_down,
                                    c->shared_up, c->shared_down, c->w_gate, c->shared_gate,
                                    c->ema,       c->bias,        c->load, c->b_up, c->b_gate,
                                    c->b_down, c->shared_b_up, c->shared_b_gate, c->shared_b_down};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) free((void *)(uintptr_t)arrays[i]);
}

/* ---- comparing one tensor ---- */

/* |got - want|. Infinite for a NaN, and where one of the two is infinite and the other is not it.
 */
static inline double distance(double got, quad want)
{
    et_real rounded = (et_real)want;
    if (got == (double)rounded && (isinf(got) || got == 0)) return 0;
    double error = (double)((quad)got - want);
    return isfinite(error) ? fabs(error) : INFINITY;
}

static inline double largest_finite(const quad *want, size_t count)
{
    double largest = 0;
    for (size_t i = 0; i < count; i++) {
        double size = fabs((double)(et_real)want[i]);
        if (isfinite(size) && size > largest) largest = size;
    }
    return largest;
}

static inline void compare_tensor(agreement *all, const char *name, const et_tensor_out *t,
                                  const quad *want)
{
    size_t count = tensor_count(t), worst = 0;
    bool exact = t->source == ET_FROM_I32 || t->source == ET_FROM_U8;
    double largest = largest_finite(want, count), error = 0;
    for (size_t i = 0; i < count; i++) {
        double here = distance(tensor_value(t, i), want[i]);
        if (!(here <= error)) {
            error = here;
            worst = i;
        }
    }
    bool subnormal = largest > 0 && largest < smallest_normal && error < smallest_normal;
    double relative = error == 0 || subnormal ? 0 : error / largest; /* infinite for error / 0 */
    all->tensors++;
    all->elements += count;
    if (relative > all->largest) {
        all->largest = relative;
        snprintf(all->where, sizeof all->where, "%s, %s[%zu]", name, t->name, worst);
    }
    if (exact ? error == 0 : relative <= witness_tolerance) return;
    all->failures++;
    printf("%s: %s[%zu] = %.17g, the witness has %.17g: %.3g of the tensor's largest, %.3g\n", name,
           t->name, worst, tensor_value(t, worst), (double)want[worst], relative, largest);
}

/* ---- a whole step ---- */

/* True for the tensors on which the witness and the step should agree. */
static inline bool is_witnessed(const char *name)
{
    static const char *const groups[] = {"fwd.", "route.", "bwd.", "state.", "loss."};
    for (size_t i = 0; i < sizeof groups / sizeof *groups; i++)
        if (strncmp(name, groups[i], strlen(groups[i])) == 0) return true;
    return false;
}

static inline bool describes_decision(const char *name)
{
    return strcmp(name, "route.margin") == 0 || strncmp(name, "route.topk_", 11) == 0;
}

static inline bool is_among(const char *name, const et_tensor_out *tensors, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (strcmp(tensors[i].name, name) == 0) return true;
    return false;
}

/* A tensor that only one of the two has is a failure. */
static inline void compare_presence(agreement *all, const et_step *s, const witness *w,
                                    const et_tensor_out *tensors, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        size_t elements;
        const char *name = tensors[i].name;
        if (!is_witnessed(name)) continue;
        bool has = witness_tensor(w, name, &elements) != NULL;
        if (has && elements == tensor_count(&tensors[i])) continue;
        all->failures++;
        printf("%s: %s: %s\n", s->c.name, name, has ? "of another size" : "not in the witness");
    }
    for (const char *const *name = witness_names(); *name != NULL; name++) {
        if (witness_tensor(w, *name, NULL) == NULL || is_among(*name, tensors, count)) continue;
        all->failures++;
        printf("%s: %s: only in the witness\n", s->c.name, *name);
    }
}

/* Adds a step that has run to what `all` knows. Failures are printed and counted. */
static inline void compare_with_witness(agreement *all, const et_step *s)
{
    et_tensor_out tensors[ET_MAX_STEP_TENSORS];
    size_t count = et_step_tensors(s, false, tensors), before = all->failures;
    witness_case c = witness_case_of(s);
    witness *w = witness_compute(&c);
    ck_assert_ptr_nonnull(w);
    all->steps++;
    compare_presence(all, s, w, tensors, count);
    bool same_tensors = all->failures == before;
    for (size_t i = 0; same_tensors && i < count; i++) {
        const quad *want = witness_tensor(w, tensors[i].name, NULL);
        if (want != NULL && (witness_routes || !describes_decision(tensors[i].name)))
            compare_tensor(all, s->c.name, &tensors[i], want);
    }
    free_witness_case(&c);
    witness_free(w);
}

static inline void print_agreement(const agreement *all, const char *what)
{
    printf("%s: %zu steps, %zu tensors, %zu elements; largest error %.3g of its tensor's largest "
           "(%s)\n",
           what, all->steps, all->tensors, all->elements, all->largest, all->where);
}

#endif
