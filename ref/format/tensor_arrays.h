/* tensor_arrays.h: tensors in memory, as a writer describes them. Internal. */
#ifndef ET_TENSOR_ARRAYS_H
#define ET_TENSOR_ARRAYS_H

#include "etref/safetensors.h"
#include <stdbool.h>

/* A tensor of that name, or NULL. */
const et_tensor_out *et_tensor_named(const et_tensor_out *list, size_t count, const char *name);

bool et_tensor_is_real(const et_tensor_out *t);
size_t et_tensor_count(const et_tensor_out *t);

/* Element i as a double, whatever its source. */
double et_tensor_element(const et_tensor_out *t, size_t i);

/* Bytes of an element in memory. */
size_t et_source_size(et_source source);

bool et_same_shape(const et_tensor_out *a, const et_tensor_out *b);
bool et_is_of_shape(const et_tensor_info *info, const et_tensor_out *t);

/* "[2,3]" for a message. */
typedef struct et_shape_text {
    char text[200];
} et_shape_text;
et_shape_text et_shape_show(size_t rank, const size_t *shape);

#endif
