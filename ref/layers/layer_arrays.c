/* layer_arrays.c: is what a caller of a model's layer brings there? See layer_arrays.h. */
#include "ref/layers/layer_arrays.h"
#include "ref/base/memory.h"

#include <stdint.h>

et_status et_arrays_check(const char *layer, const et_rounding *rounding, const et_array *list,
                          size_t count, et_error *error)
{
    for (size_t i = 0; i < count; i++) {
        const et_array *a = &list[i];
        size_t elements, bytes;
        if (!et_size_mul(a->rows, a->columns, &elements) ||
            !et_size_mul(elements, sizeof(double), &bytes) || bytes > PTRDIFF_MAX)
            return et_fail(error, ET_EINVAL, "%s: %s [%zu,%zu] cannot be addressed", layer, a->name,
                           a->rows, a->columns);
        if (a->at == NULL && elements > 0)
            return et_fail(error, ET_EINVAL, "%s: %s is NULL; %zu elements belong there", layer,
                           a->name, elements);
    }
    return et_rounding_check(rounding, error);
}

et_status et_model_engine_check(const char *layer, et_engine engine, et_error *error)
{
    if (engine == ET_PLAIN || engine == ET_BLAS) return ET_OK;
    return et_fail(error, ET_EINVAL, "%s: engine = %d; ET_PLAIN or ET_BLAS", layer, (int)engine);
}
