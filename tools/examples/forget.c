/* forget.c: a kernel with one mistake, made of one without: copies a candidate and leaves the router's
 * term out of dx.
 *
 *     cc forget.c $(pkg-config --cflags --libs etref) -o forget
 *     ./forget CANDIDATE BROKEN && etref verify GOLDEN BROKEN
 *
 * dx = (the experts' shares) + dr W_r, and the last term is easily forgotten: dx is nearly right
 * without it. The candidate must hold in.w_router, bwd.logits and bwd.x (any bundle of an MoE layer
 * does); its other tensors are copied as they are, reals as F32.
 */
#include <etref/etref.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A real or integer tensor as float or int32_t, for the writer. */
static et_status load(const et_tensor_file *file, const et_tensor_info *info, et_tensor_out *out,
                      et_error *error)
{
    int real = et_dtype_significand(info->dtype) > 0;
    double *wide = malloc((info->count + 1) * sizeof *wide);
    void *values = malloc((info->count + 1) * sizeof(float));
    et_status status = et_fail(error, ET_ENOMEM, "forget: no memory for '%s'", info->name);
    if (wide && values) status = et_tensor_file_read(file, info, 0, info->count, wide, error);
    for (size_t i = 0; status == ET_OK && i < info->count; i++) {
        /* status is ET_OK only if both could be had.
         * NOLINTBEGIN(clang-analyzer-core.NullDereference) */
        if (real) ((float *)values)[i] = (float)wide[i];
        if (!real) ((int32_t *)values)[i] = (int32_t)wide[i];
        /* NOLINTEND(clang-analyzer-core.NullDereference) */
    }
    free(wide);
    *out = (et_tensor_out){.name = info->name,
                           .dtype = real ? ET_F32 : ET_I32,
                           .rank = info->rank,
                           .values = values,
                           .source = real ? ET_FROM_F32 : ET_FROM_I32};
    memcpy(out->shape, info->shape, sizeof out->shape);
    return status;
}

static const et_tensor_out *find(const et_tensor_out *tensors, size_t count, const char *name)
{
    for (size_t i = 0; i < count; i++)
        if (strcmp(tensors[i].name, name) == 0) return &tensors[i];
    return NULL;
}

/* dx [N,d] -= dr [N,n] W_r [n,d] */
static et_status forget(et_tensor_out *tensors, size_t count, et_error *error)
{
    const et_tensor_out *router = find(tensors, count, "in.w_router");
    const et_tensor_out *dr = find(tensors, count, "bwd.logits");
    const et_tensor_out *dx = find(tensors, count, "bwd.x");
    if (!router || !dr || !dx)
        return et_fail(error, ET_EINVAL, "forget: needs in.w_router, bwd.logits and bwd.x");
    size_t N = dr->shape[0], n = dr->shape[1], d = router->shape[1];
    const float *W = router->values, *r = dr->values;
    float *x = (float *)(uintptr_t)dx->values;
    for (size_t t = 0; t < N; t++)
        for (size_t i = 0; i < n; i++)
            for (size_t c = 0; c < d; c++) x[t * d + c] -= r[t * n + i] * W[i * d + c];
    return ET_OK;
}

int main(int argc, char **argv)
{
    et_tensor_file file = {0};
    et_error error = {"usage: forget CANDIDATE BROKEN"};
    et_tensor_out tensors[ET_MAX_STEP_TENSORS] = {{0}};
    et_status status = ET_EINVAL;
    size_t count = 0;
    if (argc == 3) status = et_tensor_file_open(&file, argv[1], &error);
    if (status == ET_OK && file.tensor_count > ET_MAX_STEP_TENSORS)
        status = et_fail(&error, ET_EINVAL, "forget: %s holds more tensors than a bundle", argv[1]);
    for (; status == ET_OK && count < file.tensor_count; count++)
        status = load(&file, &file.tensors[count], &tensors[count], &error);
    if (status == ET_OK) status = forget(tensors, count, &error);
    if (status == ET_OK) status = et_tensor_file_write(argv[2], tensors, count, NULL, &error);
    if (status != ET_OK) fprintf(stderr, "%s\n", error.text);
    for (size_t i = 0; i < count; i++) free((void *)(uintptr_t)tensors[i].values);
    et_tensor_file_close(&file);
    return status == ET_OK ? 0 : 2;
}
