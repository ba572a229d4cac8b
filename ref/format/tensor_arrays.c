/* tensor_arrays.c: see tensor_arrays.h. */
#include "ref/format/tensor_arrays.h"

#include <stdio.h>
#include <string.h>

const et_tensor_out *et_tensor_named(const et_tensor_out *list, size_t count, const char *name)
{
    for (size_t i = 0; i < count; i++)
        if (strcmp(list[i].name, name) == 0) return &list[i];
    return NULL;
}

bool et_tensor_is_real(const et_tensor_out *t)
{
    return t->source == ET_FROM_F64 || t->source == ET_FROM_F32;
}

size_t et_tensor_count(const et_tensor_out *t)
{
    size_t count = 1;
    for (size_t i = 0; i < t->rank; i++) count *= t->shape[i];
    return count;
}

double et_tensor_element(const et_tensor_out *t, size_t i)
{
    switch (t->source) {
    case ET_FROM_F64: return ((const double *)t->values)[i];
    case ET_FROM_F32: return (double)((const float *)t->values)[i];
    case ET_FROM_I32: return ((const int32_t *)t->values)[i];
    case ET_FROM_U8: return ((const uint8_t *)t->values)[i];
    }
    return 0;
}

size_t et_source_size(et_source source)
{
    static const size_t sizes[] = {[ET_FROM_F64] = sizeof(double),
                                   [ET_FROM_F32] = sizeof(float),
                                   [ET_FROM_I32] = sizeof(int32_t),
                                   [ET_FROM_U8] = sizeof(uint8_t)};
    return sizes[source];
}

/* A scalar may have shape [], as frameworks have it, where the table says [1]. */
static bool same_shape(size_t rank, const size_t *shape, const et_tensor_out *t)
{
    if (rank == 0 && t->rank == 1) return t->shape[0] == 1;
    return rank == t->rank && memcmp(shape, t->shape, rank * sizeof *shape) == 0;
}

bool et_same_shape(const et_tensor_out *a, const et_tensor_out *b)
{
    return same_shape(a->rank, a->shape, b);
}

bool et_is_of_shape(const et_tensor_info *info, const et_tensor_out *t)
{
    return same_shape(info->rank, info->shape, t);
}

et_shape_text et_shape_show(size_t rank, const size_t *shape)
{
    et_shape_text s;
    size_t used = (size_t)snprintf(s.text, sizeof s.text, "[");
    for (size_t i = 0; i < rank; i++) /* ET_MAX_RANK of 20 digits fit */
        used += (size_t)snprintf(s.text + used, sizeof s.text - used, i ? ",%zu" : "%zu", shape[i]);
    snprintf(s.text + used, sizeof s.text - used, "]");
    return s;
}
