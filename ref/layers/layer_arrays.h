/* layer_arrays.h: is what a caller of a model's layer brings there? Internal.
 *
 * What is asked of an array is that it can be addressed, and is there where it has elements; its
 * length nobody can ask. Messages begin with the layer and name the array. */
#ifndef ET_LAYER_ARRAYS_H
#define ET_LAYER_ARRAYS_H

#include "etref/matmul.h"
#include "etref/rounding.h"

typedef struct et_array {
    const char *name;
    const void *at;
    size_t rows, columns;
} et_array;

/* The arrays of `layer`, and its rounding. */
et_status et_arrays_check(const char *layer, const et_rounding *rounding, const et_array *list,
                          size_t count, et_error *error);

#define ET_CHECK_ARRAYS(layer, rounding, list, error)                                              \
    et_arrays_check(layer, rounding, list, sizeof(list) / sizeof *(list), error)

/* ET_PLAIN or ET_BLAS. */
et_status et_model_engine_check(const char *layer, et_engine engine, et_error *error);

#endif
