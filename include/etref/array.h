/* array.h: a tensor in memory, whoever owns it. */
#ifndef ETREF_ARRAY_H
#define ETREF_ARRAY_H

#include "etref/dtype.h"
#include <stddef.h>

enum { ET_MAX_RANK = 8 };

typedef struct et_array {
    const char *name;
    et_dtype dtype;
    size_t rank;
    size_t shape[ET_MAX_RANK];
    const void *values; /* row-major, of that type, little-endian; NULL only for no elements */
} et_array;

#endif
