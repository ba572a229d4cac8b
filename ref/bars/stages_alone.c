/* stages_alone.c: the reference run once more, every array replaced by a given one as soon as it is made. See stages_alone.h. */
#include "ref/bars/stages_alone.h"
#include "ref/base/grid.h"
#include "ref/base/lanes.h"
#include "ref/base/place_rounding.h"
#include "ref/step/decide.h"

#include <string.h>

et_given et_given_by(const et_step *s)
{
    et_given g = {0};
    for (et_tensor_id id = ET_NO_TENSOR + 1; id < ET_TENSORS; id++) {
        et_tensor_out t = et_tensor_view(s, id);
        if (t.values && et_tensor_is_real(&t) && !et_is_input(id)) g.tensor[id] = t;
    }
    return g;
}

bool et_stands_alone(const et_step *reference, const et_given *given, et_tensor_id id)
{
    const et_tensor_row *row = &et_tensors[id];
    bool computed = row->stage >= ET_AT_CUTOFF && row->stage <= ET_AT_DX, hangs = false;
    for (size_t i = 0; computed && row->starts[i]; i++) {
        et_tensor_id start = et_start_in(&reference->c, row->starts[i]);
        if (!et_tensor_values(reference, start) || et_is_input(start)) continue;
        et_tensor_out t = et_tensor_view(reference, start);
        if (!et_tensor_is_real(&t)) continue;
        hangs = true;
        bool follows = given && given->gates_follow && start == ET_FWD_GATES && id == ET_BWD_LOGITS;
        if (given && !given->tensor[start].values && !follows) return false;
    }
    return hangs;
}

/* What the hook needs: the run whose arrays pass by, where they are kept, and what takes their place. */
typedef struct relay {
    const et_step *reference, *run, *made;
    const et_given *given;
    et_rounding nearest;
    bool by_chance;
} relay;

/* The tensor of which the array is a part, from *at on; ET_NO_TENSOR: a kernel's own affair. Arrays do not overlap: it is
 * the last that begins before it. */
static et_tensor_id find_array(const et_step *s, const et_real *values, size_t *at)
{
    uintptr_t here = (uintptr_t)values, nearest = 0;
    et_tensor_id found = ET_NO_TENSOR;
    for (et_tensor_id id = ET_NO_TENSOR + 1; id < ET_TENSORS; id++) {
        uintptr_t first = (uintptr_t)et_tensor_values(s, id);
        if (first <= here && first > nearest) nearest = first, found = id;
    }
    et_tensor_out t = et_tensor_view(s, found);
    *at = (here - nearest) / sizeof *values;
    return et_tensor_is_real(&t) && *at < et_tensor_count(&t) ? found : ET_NO_TENSOR;
}

/* Numbers of a format, v, to what a kernel may have had before it stored them; u: the reference's. */
ET_LANES static void move_all(const rounding *format, uint64_t key, size_t count, const et_real *u,
                              et_real *v)
{
    const rounding f = *format;
    for (size_t i = 0; i < count; i++) {
        uint64_t bits = to_bits((double)v[i]), exact = to_bits((double)u[i]) & f.tail;
        double chance = (double)(int64_t)(et_mix(bits ^ key) >> 11) * 0x1p-53 - 0.5;
        double moved = (double)v[i] + chance * rounding_ulp(&f, (double)v[i]);
        v[i] = exact == 0 ? v[i] : (et_real)moved;
    }
}

static void move(const relay *r, et_tensor_id id, const char *site, size_t at, size_t count,
                 et_real *values)
{
    const rounding format = et_rounding_at(r->nearest.profile, et_tensors[id].place);
    const et_real *u = et_tensor_values(r->reference, id);
    move_all(&format, et_chances_key(&r->nearest, site), count, u + at, values);
}

/* Elements from `at` on. */
static void take(const et_tensor_out *from, size_t at, size_t count, et_real *to)
{
    if (et_source_size(from->source) == sizeof *to)
        memcpy(to, (const et_real *)from->values + at, count * sizeof *to);
    else
        for (size_t i = 0; i < count; i++) to[i] = (et_real)et_tensor_element(from, at + i);
}

static void pass_on(void *user, const char *site, size_t count, et_real *values)
{
    const relay *r = user;
    size_t at = 0;
    et_tensor_id id = count > 0 ? find_array(r->run, values, &at) : ET_NO_TENSOR;
    if (id == ET_NO_TENSOR || et_is_input(id)) return;
    et_real *kept = (et_real *)(uintptr_t)et_tensor_values(r->made, id);
    const et_tensor_out *given = &r->given->tensor[id];
    memcpy(kept + at, values, count * sizeof *values);
    if (!given->values) return;
    take(given, at, count, values);
    et_round(&r->nearest, et_tensors[id].place, site, count, values);
    if (r->by_chance) move(r, id, site, at, count, values);
}

et_status et_stages_run(et_step *made, const et_step *reference, const et_given *given,
                        const et_rounding *kernel, bool by_chance, size_t max_bytes,
                        et_error *error)
{
    et_step run = et_step_like(reference);
    relay r = {reference, &run, made, given, *kernel, by_chance};
    const et_rounding hook = {.mutate = pass_on, .user = &r};
    et_status status = et_step_take_like(made, reference, error);
    r.nearest.mode = ET_ROUND_NEAREST;
    run.max_bytes = max_bytes;
    run.bytes = 0;
    run.rounding = &hook;
    run.given_mask = reference->route.mask;
    if (status == ET_OK) status = et_step_run(&run, ET_BLAS, NULL, NULL, error);
    et_step_free(&run);
    return status;
}
