/* given_routing.c: an assignment that a bundle brings, for a step that decides nothing itself. See etref/bundle.h.
 *
 * Whatever of route.* says who goes where is read (bundle_routing.h); what counts the same slots once more must agree.
 */
#include "etref/bundle.h"
#include "ref/base/memory.h"
#include "ref/format/tensor_arrays.h"
#include "ref/step/decide.h"
#include "ref/step/case_kinds.h"
#include "ref/step/bundle_routing.h"
#include "ref/step/tensors.h"

#include <stdlib.h>

/* What says who goes where; then what counts it. */
static const et_tensor_id telling[] = {ET_ROUTE_MASK,       ET_ROUTE_SLOT_TOKEN,
                                       ET_ROUTE_SLOT_EXPERT, ET_ROUTE_EXPERT_OFFSETS,
                                       ET_ROUTE_TOPK_EXPERT, ET_ROUTE_TOPK_TOKEN};
static const et_tensor_id counting[] = {ET_ROUTE_LOAD, ET_ROUTE_FANOUT, ET_ROUTE_EXPERT_OFFSETS,
                                        ET_ROUTE_TOKEN_OFFSETS};
enum { TELLING = sizeof telling / sizeof *telling, COUNTING = sizeof counting / sizeof *counting };

/* The file's tensor of whole numbers, its values allocated; *out has no values where it is not there. */
static et_status read_whole(const et_tensor_file *file, const et_step *s, et_tensor_id id,
                            et_tensor_out *out, et_error *error)
{
    const et_tensor_doc *doc = &et_tensors[id].doc;
    const et_tensor_info *info = et_tensor_file_find(file, doc->name);
    void *room;
    *out = (et_tensor_out){.name = doc->name, .dtype = ET_F64, .source = ET_FROM_F64};
    if (info == NULL) return ET_OK;
    if (et_dtype_significand(info->dtype) > 0 || !et_tensor_fits(s, doc, info->rank, info->shape))
        return et_fail(error, ET_EINVAL, "%s: tensor '%s' is %s %s, must be whole numbers, %s",
                       file->path, info->name, et_dtype_name(info->dtype),
                       et_shape_show(info->rank, info->shape).text, doc->shape);
    et_status status = et_allocate(&room, info->count, sizeof(double), doc->name, error);
    if (status != ET_OK) return status;
    out->values = room;
    out->rank = info->rank;
    for (size_t i = 0; i < info->rank; i++) out->shape[i] = info->shape[i];
    return et_tensor_file_read(file, info, 0, info->count, room, error);
}

/* What counts slots, against those of the mask. */
static et_status check_counts(const et_tensor_file *file, const et_step *s, const uint8_t *mask,
                              et_error *error)
{
    et_step counted = {.c = s->c};
    et_status status = et_assignment_build(&counted.assignment, s->c.tokens, s->c.experts, mask, error);
    for (size_t i = 0; i < COUNTING && status == ET_OK; i++) {
        et_tensor_out got, want = et_tensor_view(&counted, counting[i]);
        status = read_whole(file, s, counting[i], &got, error);
        for (size_t k = 0; status == ET_OK && got.values && k < et_tensor_count(&want); k++)
            if (et_tensor_element(&got, k) != et_tensor_element(&want, k))
                status = et_fail(error, ET_EINVAL,
                                 "%s: %s[%zu] = %.0f, but the assignment beside it makes it %.0f",
                                 file->path, want.name, k, et_tensor_element(&got, k),
                                 et_tensor_element(&want, k));
        free((void *)(uintptr_t)got.values);
    }
    et_assignment_free(&counted.assignment);
    return status;
}

static et_status check_padding(const et_tensor_file *file, const et_step *s, const uint8_t *mask,
                               et_error *error)
{
    size_t n = s->c.experts;
    for (size_t i = 0; i < s->c.tokens * n; i++)
        if (mask[i] && is_padding(&s->c, i / n))
            return et_fail(
                error, ET_EINVAL,
                "%s: token %zu is padding and has expert %zu; by padding = %zu it has none",
                file->path, i / n, i % n, s->c.padding);
    return ET_OK;
}

static et_status read_given(const et_tensor_file *file, const et_step *s, uint8_t *mask,
                            et_error *error)
{
    et_tensor_out list[TELLING];
    char reason[256];
    et_shown r = {&s->c, list, 0, mask, reason, sizeof reason};
    bool any = false;
    et_status status = ET_OK;
    for (size_t i = 0; i < TELLING && status == ET_OK; i++) {
        et_tensor_id other = is_tc(&s->c) ? ET_ROUTE_TOPK_TOKEN : ET_ROUTE_TOPK_EXPERT;
        if (telling[i] == other) continue;
        status = read_whole(file, s, telling[i], &list[r.count], error);
        if (list[r.count].values) r.count++;
    }
    if (status == ET_OK && !et_shown_assignment(&r, &any))
        status = et_fail(error, ET_EINVAL, "%s: %s", file->path, reason);
    else if (status == ET_OK && !any)
        status = et_fail(error, ET_EINVAL,
                         "%s: no assignment, which routing = \"given\" needs: route.mask, or route.slot_token "
                         "with route.slot_expert or route.expert_offsets",
                         file->path);
    for (size_t i = 0; i < r.count; i++) free((void *)(uintptr_t)list[i].values);
    if (status == ET_OK) status = check_padding(file, s, mask, error);
    return status == ET_OK ? check_counts(file, s, mask, error) : status;
}

et_status et_bundle_give_routing(et_step *s, const et_tensor_file *file, et_error *error)
{
    uint8_t *mask;
    if (!is_moe(&s->c))
        return et_fail(error, ET_EINVAL, "%s: routing = \"given\": only a layer moe is routed",
                       file->path);
    et_status status = et_step_take_given(s, &mask, error);
    return status == ET_OK ? read_given(file, s, mask, error) : status;
}
