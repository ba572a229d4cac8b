/* rounded_inputs.c: x and dy as a kernel has them, whose numbers may be coarser. See rounded_inputs.h. */
#include "ref/layers/rounded_inputs.h"
#include "ref/base/grid.h"
#include "ref/base/memory.h"
#include "ref/layers/weigh_hidden.h"

#include <string.h>

/* *values [N,d] becomes a copy of itself, in *room, to be rounded. */
static et_status take_copy(const et_moe *moe, const et_real **values, et_real **room,
                           et_error *error)
{
    size_t count = moe->N * moe->d;
    void *copy;
    et_status status = et_allocate(&copy, count, sizeof(et_real), "rounded rows", error);
    if (status == ET_OK) *values = *room = memcpy(copy, *values, count * sizeof(et_real));
    return status;
}

et_status et_take_tokens(const et_moe *moe, const et_real **x, et_real **room, et_error *error)
{
    if (!moe->weighs_input || !et_goes_other_way(moe->rounding, "rounded", "x")) return ET_OK;
    et_status status = take_copy(moe, x, room, error);
    if (status == ET_OK) et_round_input(moe->rounding, ET_ACTIVATIONS, "x", moe->N * moe->d, *room);
    return status;
}

et_status et_take_upstream(const et_moe *moe, const et_real **dy, et_real **room, et_error *error)
{
    const et_rounding *r = moe->rounding;
    size_t count = moe->N * moe->d;
    bool weighs = et_weighs_hidden(moe), stored = et_goes_other_way(r, "dy", "stored");
    if (!weighs && !stored) return ET_OK;
    et_status status = take_copy(moe, dy, room, error);
    if (status == ET_OK && stored) et_round(r, ET_INTERMEDIATES, "dy", count, *room);
    if (status == ET_OK && weighs) et_round(r, ET_ACTIVATIONS, "dy", count, *room);
    return status;
}
