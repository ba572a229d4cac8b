/* conclusive.c: can a kernel's results on this case be judged at all? See etref/verify.h.
 *
 * The best that a kernel can do is to compute exactly and to round its results once, as it stores them. If the
 * verdict on that is inconclusive, because a gradient cancels to less than its noise or leaves the format's range, it
 * is so for every kernel, and a CI job that requires the tensor can never pass.
 *
 * Left out: what hangs on open decisions; a candidate that shows its routing can be judged there.
 */
#include "ref/base/float_environment.h"
#include "ref/base/memory.h"
#include "ref/base/place_rounding.h"
#include "ref/step/tensors.h"
#include "ref/verdict/judge.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* y, the gradients; of a layer of the model all that it computes. */
static bool is_result(const et_tensor_out *t)
{
    et_stage stage = et_tensors[et_tensor_find(t->name)].stage;
    return stage == ET_AT_Y || (stage >= ET_AT_DWEIGHT && stage <= ET_AT_DX) ||
           stage == ET_AT_SCALARS || stage == ET_AT_PRODUCTS;
}

/* t with values of its own, rounded where the profile stores them. */
static et_status round_once(et_tensor_out *t, const et_profile *p, et_error *error)
{
    const rounding r = et_rounding_at(p, et_tensor_place(t->name));
    size_t count = et_tensor_count(t);
    void *room;
    et_status status = et_allocate(&room, count, sizeof(double), "rounded results", error);
    if (status != ET_OK) return status;
    double *values = room;
    for (size_t i = 0; i < count; i++) values[i] = rounding_result(&r, et_tensor_element(t, i));
    t->values = values;
    t->source = ET_FROM_F64;
    t->dtype = ET_F64;
    return ET_OK;
}

static et_status judge_best(et_verdict *v, const et_step *golden, const et_tensor_out *best,
                            size_t count, const et_profile *p, size_t max_bytes, et_error *error)
{
    const char *required[ET_MAX_STEP_TENSORS];
    for (size_t i = 0; i < count; i++) required[i] = best[i].name;
    const et_verify_options options = {
        .profile = p, .require = required, .require_count = count, .max_bytes = max_bytes};
    return et_verify(v, golden, best, count, &options, error);
}

static void read_verdict(et_conclusiveness *out, const et_verdict *v)
{
    out->conclusive = true;
    for (size_t i = 0; i < v->tensor_count && out->conclusive; i++) {
        const et_tensor_verdict *t = &v->tensors[i];
        if (t->outcome != ET_INCONCLUSIVE || et_tensor_find(t->name) == ET_ROUTE_MASK) continue;
        out->conclusive = false;
        snprintf(out->reason, sizeof out->reason, "%.63s: %s", t->name, t->reason);
    }
}

et_status et_find_conclusive(et_conclusiveness *out, const et_step *golden, const et_profile *p,
                             size_t max_bytes, et_error *error)
{
    ET_ARITHMETIC;
    et_tensor_out all[ET_MAX_STEP_TENSORS], best[ET_MAX_STEP_TENSORS];
    size_t have = et_step_tensors(golden, true, all), count = 0, rounded = 0;
    et_status status = ET_OK;
    et_verdict v = {0};
    *out = (et_conclusiveness){0};
    for (size_t i = 0; i < have; i++)
        if (is_result(&all[i])) best[count++] = all[i];
    for (; status == ET_OK && rounded < count; rounded += status == ET_OK)
        status = round_once(&best[rounded], p, error);
    const et_tensor_out *mask = et_tensor_named(all, have, "route.mask");
    if (mask) best[count++] = *mask;
    if (status == ET_OK) status = judge_best(&v, golden, best, count, p, max_bytes, error);
    if (status == ET_OK) read_verdict(out, &v);
    et_verdict_free(&v);
    for (size_t i = 0; i < rounded; i++) free((void *)(uintptr_t)best[i].values);
    return status;
}
