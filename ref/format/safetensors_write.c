/* safetensors_write.c: writer of the file format in which bundles travel. See etref/safetensors.h.
 *
 * It streams: it holds the header and one small buffer, however large the tensors are. That a file is
 * there whole or not at all is the work of write_atomic.c.
 */
#include "ref/base/float_environment.h"
#include "ref/base/memory.h"
#include "ref/format/tensor_arrays.h"
#include "ref/format/files.h"
#include "ref/format/safetensors.h"

#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { CHUNK = 1 << 15 }; /* bytes converted at a time; a multiple of every element's size */

/* ---- what is to be written ---- */

/* Float sources are rounded to any float type; integers are stored as what they are, or wider. */
static bool fits(et_source source, et_dtype dtype)
{
    switch (source) {
    case ET_FROM_F64:
    case ET_FROM_F32: return et_dtype_significand(dtype) > 0;
    case ET_FROM_I32: return dtype == ET_I32 || dtype == ET_I64;
    case ET_FROM_U8: return dtype == ET_U8 || dtype == ET_BOOL;
    }
    return false;
}

static const char *source_name(et_source source)
{
    switch (source) {
    case ET_FROM_F64: return "F64";
    case ET_FROM_F32: return "F32";
    case ET_FROM_I32: return "I32";
    case ET_FROM_U8: return "U8";
    }
    return "?";
}

static et_status check_tensor(const char *path, const et_tensor_out *tensor, size_t *bytes,
                              et_error *error)
{
    if (tensor->name == NULL || strcmp(tensor->name, ET_FILE_METADATA) == 0)
        return et_fail(error, ET_EINVAL, "%s: a tensor without a name, or named %s; name it", path,
                       ET_FILE_METADATA);
    if (strlen(tensor->name) > ET_MAX_TENSOR_NAME)
        return et_fail(error, ET_EINVAL,
                       "%s: tensor '%.40s...': a name of %zu bytes; at most %d are supported", path,
                       tensor->name, strlen(tensor->name), ET_MAX_TENSOR_NAME);
    if (!fits(tensor->source, tensor->dtype))
        return et_fail(
            error, ET_EINVAL,
            "%s: tensor '%s': %s values cannot be stored as %s; floats go to F64, F32, F16 "
            "or BF16, I32 to I32 or I64, U8 to U8 or BOOL",
            path, tensor->name, source_name(tensor->source), et_dtype_name(tensor->dtype));
    if (tensor->rank > ET_MAX_RANK)
        return et_fail(error, ET_EINVAL, "%s: tensor '%s': rank %zu; at most %d is supported", path,
                       tensor->name, tensor->rank, ET_MAX_RANK);
    size_t count;
    if (!et_shape_size(tensor->shape, tensor->rank, tensor->dtype, &count, bytes))
        return et_fail(error, ET_EINVAL,
                       "%s: tensor '%s': the product of the shape exceeds the address space", path,
                       tensor->name);
    if (count > 0 && tensor->values == NULL)
        return et_fail(error, ET_EINVAL, "%s: tensor '%s': has a shape but no values", path,
                       tensor->name);
    return ET_OK;
}

static int by_size_then_name(const void *left, const void *right)
{
    const et_tensor_out *a = *(const et_tensor_out *const *)left;
    const et_tensor_out *b = *(const et_tensor_out *const *)right;
    size_t size_a = et_dtype_size(a->dtype), size_b = et_dtype_size(b->dtype);
    if (size_a != size_b) return size_a > size_b ? -1 : 1;
    return strcmp(a->name, b->name);
}

/* ---- the header ---- */

/* Stores `value` (taken over, may be NULL) under a key that must be new. A Jansson call that fails
 * means bad UTF-8 or no memory, and errno says which: the caller set it to 0. */
static et_status put(const char *path, json_t *object, const char *key, json_t *value,
                     et_error *error)
{
    if (value != NULL && json_object_get(object, key) != NULL) {
        json_decref(value);
        return et_fail(error, ET_EINVAL, "%s: '%.255s' is given twice; names must be unique", path,
                       key);
    }
    if (value != NULL && json_object_set_new(object, key, value) == 0) return ET_OK;
    if (errno == ENOMEM) return et_fail(error, ET_ENOMEM, "%s: no memory for the header", path);
    return et_fail(error, ET_EINVAL, "%s: '%.255s' or its value is not valid UTF-8", path, key);
}

static et_status describe_metadata(const char *path, json_t *header, const char *const *metadata,
                                   et_error *error)
{
    if (metadata == NULL || metadata[0] == NULL) return ET_OK;
    json_t *object = json_object();
    et_status status = put(path, header, ET_FILE_METADATA, object, error);
    for (; status == ET_OK && metadata[0] != NULL; metadata += 2) {
        if (metadata[1] == NULL)
            return et_fail(error, ET_EINVAL, "%s: metadata '%.100s' has no value", path,
                           metadata[0]);
        status = put(path, object, metadata[0], json_string(metadata[1]), error);
    }
    return status;
}

static et_status describe_tensor(const char *path, json_t *header, const et_tensor_out *tensor,
                                 size_t begin, size_t bytes, et_error *error)
{
    json_t *object = json_object();
    et_status status = put(path, header, tensor->name, object, error);
    if (status == ET_OK)
        status = put(path, object, "dtype", json_string(et_dtype_name(tensor->dtype)), error);
    json_t *shape = NULL, *range = NULL;
    if (status == ET_OK) status = put(path, object, "shape", shape = json_array(), error);
    if (status == ET_OK) status = put(path, object, "data_offsets", range = json_array(), error);
    if (status != ET_OK) return status;
    int failed = 0;
    for (size_t i = 0; i < tensor->rank; i++)
        failed |= json_array_append_new(shape, json_integer((json_int_t)tensor->shape[i]));
    failed |= json_array_append_new(range, json_integer((json_int_t)begin));
    failed |= json_array_append_new(range, json_integer((json_int_t)(begin + bytes)));
    if (failed) return et_fail(error, ET_ENOMEM, "%s: no memory for the header", path);
    return ET_OK;
}

/* The first bytes of the file, length and padding included: released by the caller with free. The
 * header is padded to a multiple of 8, so that the data that follow it are aligned. */
static et_status print_header(const char *path, const json_t *header, char **out, size_t *length,
                              et_error *error)
{
    size_t printed = json_dumpb(header, NULL, 0, JSON_COMPACT);
    if (printed == 0) return et_fail(error, ET_ENOMEM, "%s: no memory for the header", path);
    size_t padded = (printed + 7) / 8 * 8;
    if (padded > ET_FILE_MAX_HEADER)
        return et_fail(error, ET_EINVAL, "%s: a header of %zu bytes exceeds the format's %d", path,
                       padded, ET_FILE_MAX_HEADER);
    void *room;
    et_status status = et_allocate(&room, ET_FILE_PREFIX + padded, 1, "the header", error);
    if (status != ET_OK) return status;
    *out = room;
    *length = ET_FILE_PREFIX + padded;
    for (int i = 0; i < ET_FILE_PREFIX; i++) (*out)[i] = (char)(padded >> (8 * i) & 0xff);
    memset(*out + ET_FILE_PREFIX, ' ', padded);
    if (json_dumpb(header, *out + ET_FILE_PREFIX, printed, JSON_COMPACT) != printed)
        return et_fail(error, ET_ENOMEM, "%s: no memory for the header", path);
    return ET_OK;
}

/* Checks and sorts the tensors into `order` and makes the header. */
static et_status make_header(const char *path, const et_tensor_out *tensors, size_t count,
                             const char *const *metadata, const et_tensor_out **order,
                             json_t *header, et_error *error)
{
    size_t bytes;
    for (size_t i = 0; i < count; i++) {
        et_status status = check_tensor(path, &tensors[i], &bytes, error);
        if (status != ET_OK) return status;
        order[i] = &tensors[i];
    }
    qsort(order, count, sizeof *order, by_size_then_name);
    errno = 0; /* put reads it */
    et_status status = describe_metadata(path, header, metadata, error);
    size_t begin = 0;
    for (size_t i = 0; status == ET_OK && i < count; i++) {
        status = check_tensor(path, order[i], &bytes, error);
        if (status == ET_OK && bytes > INT64_MAX - begin)
            status = et_fail(error, ET_EINVAL, "%s: the tensors together exceed 2^63 bytes", path);
        if (status == ET_OK) status = describe_tensor(path, header, order[i], begin, bytes, error);
        begin += bytes;
    }
    return status;
}

/* ---- the file ---- */

static et_status write_bytes(int descriptor, const char *path, const void *bytes, size_t count,
                             et_error *error)
{
    const unsigned char *from = bytes;
    while (count > 0) {
        ssize_t written = write(descriptor, from, count);
        if (written < 0 && errno == EINTR) continue;
        if (written < 0)
            return et_fail(error, ET_EIO, "%s: cannot write: %s; nothing was kept", path,
                           strerror(errno));
        from += written;
        count -= (size_t)written;
    }
    return ET_OK;
}

static et_status write_tensor(int descriptor, const char *path, const et_tensor_out *tensor,
                              et_error *error)
{
    size_t count, bytes, size = et_dtype_size(tensor->dtype);
    et_shape_size(tensor->shape, tensor->rank, tensor->dtype, &count, &bytes); /* checked before */
    unsigned char chunk[CHUNK];
    for (size_t done = 0; done < count;) {
        size_t part = count - done < CHUNK / size ? count - done : CHUNK / size;
        for (size_t i = 0; i < part; i++)
            et_dtype_encode(et_tensor_element(tensor, done + i), tensor->dtype, chunk + i * size);
        et_status status = write_bytes(descriptor, path, chunk, part * size, error);
        if (status != ET_OK) return status;
        done += part;
    }
    return ET_OK;
}

/* What a file is made of. */
typedef struct content {
    const char *path, *header;
    size_t length, count;
    const et_tensor_out *const *order;
} content;

static et_status write_content(int descriptor, void *user, et_error *error)
{
    const content *c = user;
    et_status status = write_bytes(descriptor, c->path, c->header, c->length, error);
    for (size_t i = 0; status == ET_OK && i < c->count; i++)
        status = write_tensor(descriptor, c->path, c->order[i], error);
    return status;
}

et_status et_tensor_file_write(const char *path, const et_tensor_out *tensors, size_t count,
                               const char *const *metadata, et_error *error)
{
    ET_ARITHMETIC;
    void *order = NULL;
    char *text = NULL;
    size_t length = 0;
    et_status status =
        et_allocate(&order, count, sizeof(const et_tensor_out *), "the order of tensors", error);
    if (status != ET_OK) return status;
    json_t *header = json_object();
    if (header == NULL)
        status = et_fail(error, ET_ENOMEM, "%s: no memory for the header", et_shown_path(path));
    if (status == ET_OK)
        status = make_header(et_shown_path(path), tensors, count, metadata, order, header, error);
    if (status == ET_OK) status = print_header(et_shown_path(path), header, &text, &length, error);
    json_decref(header);
    content all = {et_shown_path(path), text, length, count, order};
    if (status == ET_OK) status = et_file_write(path, write_content, &all, error);
    free(text);
    free(order);
    if (status == ET_OK && error != NULL) error->text[0] = '\0';
    return status;
}
