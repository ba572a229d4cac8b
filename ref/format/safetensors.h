/* safetensors.h: what reading and writing safetensors files have in common. Internal. */
#ifndef ET_SAFETENSORS_H
#define ET_SAFETENSORS_H

#include "etref/safetensors.h"
#include <stdbool.h>

enum {
    ET_FILE_PREFIX = 8,            /* bytes of the header's length */
    ET_FILE_MAX_HEADER = 100000000 /* the format's limit */
};

#define ET_FILE_METADATA "__metadata__"

/* count = product of the shape, bytes = count * element size; false if either overflows, or if an
 * entry exceeds JSON's integers, 2^63 - 1 (beside a zero, the product would not show it). */
bool et_shape_size(const size_t *shape, size_t rank, et_dtype dtype, size_t *count, size_t *bytes);

/* Calls `visit` with the elements of a tensor of this file, in order and piece by piece: `count`
 * of them from element `first` on, as doubles. Stops where it fails. */
typedef et_status et_visit_values(void *user, size_t first, size_t count, const double *values,
                                  et_error *error);
et_status et_tensor_file_each(const et_tensor_file *file, const et_tensor_info *tensor,
                              et_visit_values *visit, void *user, et_error *error);

#endif
