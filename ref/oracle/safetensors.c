/* safetensors.c: reader and writer of the file format in which bundles travel.
 * See etref/safetensors.h for the format and its source.
 *
 * A bundle may come from anybody, so the reader trusts nothing: each number in the header is
 * checked before it is used, each rule of the format has one line and one message, and the sum of
 * the rules is that every byte of the file belongs to exactly one thing. Memory follows the file's
 * real size, never a number written in it: the header is held once, Jansson's tree of it takes at
 * most some forty bytes per byte while the file is being opened, and values are read in small
 * pieces on request.
 *
 * The writer streams: it holds the header and one small buffer, however large the tensors are. That
 * a file is there whole or not at all is the work of whole.c.
 *
 * Left out: F8 values; mapping the file into memory (a file cut short under a mapping kills the
 * process).
 */
#include "etref/safetensors.h"
#include "ref/base/arithmetic.h"
#include "ref/base/memory.h"
#include "ref/oracle/json.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    PREFIX = 8,             /* bytes of the header's length */
    MAX_HEADER = 100000000, /* the format's limit */
    MAX_DEPTH = 3,          /* header, tensor, shape */
    CHUNK = 1 << 15,        /* bytes converted at a time; a multiple of every element's size */
    SHOWN_PATH = 160        /* of a longer path a message shows the end */
};

static const char METADATA[] = "__metadata__";

/* ---- what reader and writer share ---- */

static const char *shown(const char *path)
{
    size_t length = strlen(path);
    return length > SHOWN_PATH ? path + length - SHOWN_PATH : path;
}

static et_status succeed(et_error *error)
{
    if (error != NULL) error->text[0] = '\0';
    return ET_OK;
}

static et_status copy_text(char **out, const char *text, size_t length, et_error *error)
{
    void *room;
    et_status status = et_allocate(&room, length + 1, 1, "a name", error);
    if (status != ET_OK) return status;
    memcpy(room, text, length);
    *out = room;
    return ET_OK;
}

/* count = product of the shape, bytes = count * element size; false if either overflows, or if an
 * entry exceeds JSON's integers, 2^63 - 1 (beside a zero, the product would not show it). */
static bool shape_size(const size_t *shape, size_t rank, et_dtype dtype, size_t *count,
                       size_t *bytes)
{
    *count = 1;
    for (size_t i = 0; i < rank; i++)
        if ((json_int_t)shape[i] < 0 || !et_size_mul(*count, shape[i], count)) return false;
    return et_size_mul(*count, et_dtype_size(dtype), bytes);
}

/* ---- reading: the file ---- */

/* Opens a regular file. O_NONBLOCK, because opening a FIFO that nobody writes to would wait for
 * ever; it means nothing to a regular file, and nothing else gets through. */
static et_status open_regular(et_tensor_file *file, const char *path, uint64_t *size,
                              et_error *error)
{
    et_status status = copy_text(&file->path, path, strlen(path), error);
    if (status != ET_OK) return status;
    file->descriptor = open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    if (file->descriptor < 0)
        return et_fail(error, ET_EIO, "%s: cannot open: %s", shown(path), strerror(errno));
    struct stat facts;
    if (fstat(file->descriptor, &facts) != 0)
        return et_fail(error, ET_EIO, "%s: cannot examine: %s", shown(path), strerror(errno));
    if (!S_ISREG(facts.st_mode))
        return et_fail(error, ET_EIO, "%s: is a %s; name a safetensors file", shown(path),
                       S_ISDIR(facts.st_mode) ? "folder" : "pipe, device or socket");
    *size = (uint64_t)facts.st_size;
    return ET_OK;
}

/* Bytes [at, at + count) of the file. */
static et_status read_bytes(const et_tensor_file *file, void *out, size_t count, uint64_t at,
                            et_error *error)
{
    unsigned char *to = out;
    while (count > 0) {
        ssize_t got = pread(file->descriptor, to, count, (off_t)at);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0)
            return et_fail(error, ET_EIO, "%s: cannot read: %s", shown(file->path),
                           strerror(errno));
        if (got == 0)
            return et_fail(error, ET_EIO, "%s: ends early: it became shorter while it was read",
                           shown(file->path));
        to += got;
        at += (uint64_t)got;
        count -= (size_t)got;
    }
    return ET_OK;
}

/* ---- reading: the header ---- */

/* Reads the length and the header's text; sets data_start. *text is released by the caller. */
static et_status read_header(et_tensor_file *file, uint64_t size, char **text, size_t *length,
                             et_error *error)
{
    const char *path = shown(file->path);
    if (size < PREFIX)
        return et_fail(error, ET_EINVAL,
                       "%s: %" PRIu64 " bytes are too few: a safetensors file starts with the "
                       "8-byte length of its header",
                       path, size);
    unsigned char prefix[PREFIX];
    et_status status = read_bytes(file, prefix, PREFIX, 0, error);
    if (status != ET_OK) return status;
    uint64_t claimed = 0;
    for (int i = 0; i < PREFIX; i++) claimed |= (uint64_t)prefix[i] << (8 * i);
    if (claimed > MAX_HEADER)
        return et_fail(error, ET_EINVAL,
                       "%s: a header of %" PRIu64 " bytes exceeds the format's %d: not a "
                       "safetensors file?",
                       path, claimed, MAX_HEADER);
    if (claimed > size - PREFIX)
        return et_fail(error, ET_EINVAL,
                       "%s: a header of %" PRIu64 " bytes is announced, %" PRIu64
                       " follow: the file is cut short or not safetensors",
                       path, claimed, size - PREFIX);
    *length = (size_t)claimed;
    file->data_start = PREFIX + claimed;
    void *room;
    status = et_allocate(&room, *length + 1, 1, "the header of a safetensors file", error);
    if (status != ET_OK) return status;
    *text = room;
    return read_bytes(file, *text, *length, PREFIX, error);
}

/* The rules that a JSON parser does not know: '{' first, nothing but spaces behind the last '}',
 * and (outside of strings) no more than three levels of brackets and none within an array. The last
 * two keep a hostile header from being large once it is parsed: [{},{},...] would take Jansson
 * seventy bytes per byte. */
static et_status check_layout(const char *path, const char *text, size_t length, et_error *error)
{
    if (length == 0 || text[0] != '{')
        return et_fail(error, ET_EINVAL, "%s: the header does not start with '{': not safetensors?",
                       shown(path));
    size_t end = length;
    while (text[end - 1] == ' ') end--;
    if (text[end - 1] != '}')
        return et_fail(error, ET_EINVAL,
                       "%s: the header does not end with '}' and spaces: only spaces may pad it",
                       shown(path));
    bool in_string = false, in_array = false;
    int depth = 0;
    for (size_t i = 0; i < end; i++) {
        char c = text[i];
        if (in_string && c == '\\') {
            i++; /* what follows is no closing quote */
        } else if (c == '"') {
            in_string = !in_string;
        } else if (!in_string && (c == '{' || c == '[')) {
            if (in_array || ++depth > MAX_DEPTH)
                return et_fail(error, ET_EINVAL, "%s: the header nests brackets %s, at byte %zu",
                               shown(path), in_array ? "within an array" : "too deep", i);
            in_array = c == '[';
        } else if (!in_string && (c == '}' || c == ']')) {
            depth--;
            in_array = false;
        }
    }
    return ET_OK;
}

static et_status parse_header(const char *path, const char *text, size_t length, json_t **header,
                              et_error *error)
{
    et_status status = check_layout(path, text, length, error);
    if (status != ET_OK) return status;
    json_error_t trouble;
    bool no_memory;
    *header = et_json_load(text, length, 0, &trouble, &no_memory);
    if (*header != NULL) return ET_OK;
    if (no_memory)
        return et_fail(error, ET_ENOMEM, "%s: no memory to parse the header of %zu bytes",
                       shown(path), length);
    return et_fail(error, ET_EINVAL, "%s: the header is not valid JSON: %s, at byte %d",
                   shown(path), trouble.text, trouble.position);
}

static et_status take_metadata(et_tensor_file *file, json_t *object, et_error *error)
{
    const char *path = shown(file->path);
    if (!json_is_object(object))
        return et_fail(error, ET_EINVAL, "%s: %s is not an object of strings", path, METADATA);
    void *room;
    size_t pairs = json_object_size(object);
    et_status status = et_allocate(&room, pairs, 2 * sizeof(char *), "metadata", error);
    if (status != ET_OK) return status;
    file->metadata = room;
    file->metadata_count = pairs;
    char **next = file->metadata;
    const char *key;
    json_t *value;
    json_object_foreach(object, key, value)
    {
        if (!json_is_string(value))
            return et_fail(error, ET_EINVAL, "%s: %s: '%.100s' is not a string", path, METADATA,
                           key);
        status = copy_text(next++, key, strlen(key), error);
        if (status != ET_OK) return status;
        status = copy_text(next++, json_string_value(value), json_string_length(value), error);
        if (status != ET_OK) return status;
    }
    return ET_OK;
}

/* A JSON integer that fits into a size_t; not a boolean, not 1.0, not negative. */
static bool take_size(const json_t *value, size_t *out)
{
    if (!json_is_integer(value)) return false;
    json_int_t n = json_integer_value(value);
    if (n < 0 || (json_int_t)(size_t)n != n) return false;
    *out = (size_t)n;
    return true;
}

static et_status take_dtype(const char *path, et_tensor_info *tensor, const json_t *value,
                            et_error *error)
{
    if (!json_is_string(value))
        return et_fail(error, ET_EINVAL, "%s: tensor '%s': dtype is missing or not a string", path,
                       tensor->name);
    for (int d = 0; d < ET_DTYPE_COUNT; d++)
        if (strcmp(json_string_value(value), et_dtype_name((et_dtype)d)) == 0) {
            tensor->dtype = (et_dtype)d;
            return ET_OK;
        }
    return et_fail(
        error, ET_EINVAL,
        "%s: tensor '%s': dtype '%.20s' is unknown; known: F64, F32, F16, BF16, I64, I32, "
        "I16, I8, U64, U32, U16, U8, BOOL, F8_E4M3, F8_E5M2",
        path, tensor->name, json_string_value(value));
}

static et_status take_shape(const char *path, et_tensor_info *tensor, const json_t *value,
                            size_t *bytes, et_error *error)
{
    if (!json_is_array(value))
        return et_fail(error, ET_EINVAL, "%s: tensor '%s': shape is missing or not an array", path,
                       tensor->name);
    tensor->rank = json_array_size(value);
    if (tensor->rank > ET_MAX_RANK)
        return et_fail(error, ET_EINVAL, "%s: tensor '%s': rank %zu; at most %d is supported", path,
                       tensor->name, tensor->rank, ET_MAX_RANK);
    for (size_t i = 0; i < tensor->rank; i++)
        if (!take_size(json_array_get(value, i), &tensor->shape[i]))
            return et_fail(error, ET_EINVAL,
                           "%s: tensor '%s': shape[%zu] is not a non-negative integer", path,
                           tensor->name, i);
    if (!shape_size(tensor->shape, tensor->rank, tensor->dtype, &tensor->count, bytes))
        return et_fail(error, ET_EINVAL,
                       "%s: tensor '%s': the product of the shape exceeds the address space", path,
                       tensor->name);
    return ET_OK;
}

static et_status take_range(const char *path, et_tensor_info *tensor, const json_t *value,
                            size_t bytes, et_error *error)
{
    size_t begin, end;
    if (!json_is_array(value) || json_array_size(value) != 2 ||
        !take_size(json_array_get(value, 0), &begin) || !take_size(json_array_get(value, 1), &end))
        return et_fail(error, ET_EINVAL,
                       "%s: tensor '%s': data_offsets is missing or not two non-negative integers",
                       path, tensor->name);
    if (begin > end)
        return et_fail(error, ET_EINVAL, "%s: tensor '%s': data_offsets [%zu, %zu) run backwards",
                       path, tensor->name, begin, end);
    if (end - begin != bytes)
        return et_fail(error, ET_EINVAL,
                       "%s: tensor '%s': data_offsets hold %zu bytes, dtype and shape need %zu",
                       path, tensor->name, end - begin, bytes);
    tensor->offset = begin;
    tensor->bytes = bytes;
    return ET_OK;
}

static et_status take_tensor(et_tensor_file *file, const char *name, json_t *object,
                             et_error *error)
{
    const char *path = shown(file->path);
    size_t length = strlen(name);
    if (length > ET_MAX_TENSOR_NAME)
        return et_fail(error, ET_EINVAL,
                       "%s: tensor '%.40s...': a name of %zu bytes; at most %d are supported", path,
                       name, length, ET_MAX_TENSOR_NAME);
    if (!json_is_object(object))
        return et_fail(error, ET_EINVAL,
                       "%s: tensor '%s': is not an object of dtype, shape and data_offsets", path,
                       name);
    const char *key;
    json_t *value;
    json_object_foreach(object, key, value)
    {
        if (strcmp(key, "dtype") != 0 && strcmp(key, "shape") != 0 &&
            strcmp(key, "data_offsets") != 0)
            return et_fail(
                error, ET_EINVAL,
                "%s: tensor '%s': unknown key '%.40s'; allowed: dtype, shape, data_offsets", path,
                name, key);
    }
    et_tensor_info *tensor = &file->tensors[file->tensor_count];
    et_status status = copy_text(&tensor->name, name, length, error);
    if (status != ET_OK) return status;
    file->tensor_count++; /* from here on the file owns the name */
    size_t bytes;
    status = take_dtype(path, tensor, json_object_get(object, "dtype"), error);
    if (status == ET_OK)
        status = take_shape(path, tensor, json_object_get(object, "shape"), &bytes, error);
    if (status == ET_OK)
        status = take_range(path, tensor, json_object_get(object, "data_offsets"), bytes, error);
    return status;
}

/* By offset. A tensor without bytes shares its offset with its successor and comes first. */
static int by_offset(const void *left, const void *right)
{
    const et_tensor_info *a = left, *b = right;
    if (a->offset != b->offset) return a->offset < b->offset ? -1 : 1;
    if (a->bytes != b->bytes) return a->bytes < b->bytes ? -1 : 1;
    return strcmp(a->name, b->name);
}

/* The ranges, in order, must join without a gap from 0 to the end of the file. */
static et_status check_coverage(const et_tensor_file *file, uint64_t data_bytes, et_error *error)
{
    const char *path = shown(file->path);
    uint64_t reached = 0;
    for (size_t i = 0; i < file->tensor_count; i++) {
        const et_tensor_info *tensor = &file->tensors[i];
        if (tensor->offset != reached)
            return et_fail(error, ET_EINVAL,
                           "%s: tensor '%s': begins at byte %" PRIu64
                           " of the data, its predecessor "
                           "ends at %" PRIu64 ": %s",
                           path, tensor->name, tensor->offset, reached,
                           tensor->offset > reached ? "a hole" : "an overlap");
        reached += tensor->bytes;
    }
    if (reached > data_bytes)
        return et_fail(error, ET_EINVAL,
                       "%s: the tensors need %" PRIu64 " bytes of data, the file has %" PRIu64
                       ": it is cut short",
                       path, reached, data_bytes);
    if (reached < data_bytes)
        return et_fail(error, ET_EINVAL,
                       "%s: the tensors need %" PRIu64 " bytes of data, the file has %" PRIu64
                       ": something follows the last tensor",
                       path, reached, data_bytes);
    return ET_OK;
}

static et_status take_header(et_tensor_file *file, json_t *header, et_error *error)
{
    void *room;
    et_status status = et_allocate(&room, json_object_size(header), sizeof *file->tensors,
                                   "the tensors of a safetensors file", error);
    if (status != ET_OK) return status;
    file->tensors = room;
    const char *name;
    json_t *object;
    json_object_foreach(header, name, object)
    {
        if (strcmp(name, METADATA) == 0)
            status = take_metadata(file, object, error);
        else
            status = take_tensor(file, name, object, error);
        if (status != ET_OK) return status;
    }
    qsort(file->tensors, file->tensor_count, sizeof *file->tensors, by_offset);
    return ET_OK;
}

et_status et_tensor_file_open(et_tensor_file *file, const char *path, et_error *error)
{
    *file = (et_tensor_file){.descriptor = -1};
    uint64_t size = 0;
    char *text = NULL;
    size_t length = 0;
    json_t *header = NULL;
    et_status status = open_regular(file, path, &size, error);
    if (status == ET_OK) status = read_header(file, size, &text, &length, error);
    if (status == ET_OK) status = parse_header(path, text, length, &header, error);
    free(text);
    if (status == ET_OK) status = take_header(file, header, error);
    json_decref(header);
    if (status == ET_OK) status = check_coverage(file, size - file->data_start, error);
    if (status == ET_OK) return succeed(error);
    et_tensor_file_close(file);
    return status;
}

void et_tensor_file_close(et_tensor_file *file)
{
    /* Zeros name descriptor 0, which is not ours: only a file with a path has a descriptor. */
    if (file->path != NULL && file->descriptor >= 0) close(file->descriptor);
    for (size_t i = 0; i < file->tensor_count; i++) free(file->tensors[i].name);
    for (size_t i = 0; i < 2 * file->metadata_count; i++) free(file->metadata[i]);
    free(file->tensors);
    free(file->metadata);
    free(file->path);
    *file = (et_tensor_file){.descriptor = -1};
}

const et_tensor_info *et_tensor_file_find(const et_tensor_file *file, const char *name)
{
    for (size_t i = 0; i < file->tensor_count; i++)
        if (strcmp(file->tensors[i].name, name) == 0) return &file->tensors[i];
    return NULL;
}

const char *et_tensor_file_metadata(const et_tensor_file *file, const char *key)
{
    for (size_t i = 0; i < file->metadata_count; i++)
        if (strcmp(file->metadata[2 * i], key) == 0) return file->metadata[2 * i + 1];
    return NULL;
}

et_status et_tensor_file_read(const et_tensor_file *file, const et_tensor_info *tensor,
                              size_t first, size_t count, double *out, et_error *error)
{
    ET_ARITHMETIC;
    const char *path = shown(file->path);
    if (tensor->dtype == ET_F8_E4M3 || tensor->dtype == ET_F8_E5M2)
        return et_fail(error, ET_EINVAL,
                       "%s: tensor '%s': values of type %s cannot be read; store F16, BF16 or F32",
                       path, tensor->name, et_dtype_name(tensor->dtype));
    if (first > tensor->count || count > tensor->count - first)
        return et_fail(error, ET_EINVAL,
                       "%s: tensor '%s': %zu elements from %zu on were asked for, it has %zu", path,
                       tensor->name, count, first, tensor->count);
    size_t size = et_dtype_size(tensor->dtype);
    uint64_t at = file->data_start + tensor->offset + (uint64_t)first * size;
    unsigned char chunk[CHUNK];
    while (count > 0) {
        size_t part = count < CHUNK / size ? count : CHUNK / size;
        et_status status = read_bytes(file, chunk, part * size, at, error);
        if (status != ET_OK) return status;
        for (size_t i = 0; i < part; i++) *out++ = et_dtype_decode(chunk + i * size, tensor->dtype);
        at += part * size;
        count -= part;
    }
    return succeed(error);
}

/* ---- writing: what is to be written ---- */

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
    if (tensor->name == NULL || strcmp(tensor->name, METADATA) == 0)
        return et_fail(error, ET_EINVAL, "%s: a tensor without a name, or named %s; name it", path,
                       METADATA);
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
    if (!shape_size(tensor->shape, tensor->rank, tensor->dtype, &count, bytes))
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

/* ---- writing: the header ---- */

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
    et_status status = put(path, header, METADATA, object, error);
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
    if (padded > MAX_HEADER)
        return et_fail(error, ET_EINVAL, "%s: a header of %zu bytes exceeds the format's %d", path,
                       padded, MAX_HEADER);
    void *room;
    et_status status = et_allocate(&room, PREFIX + padded, 1, "the header", error);
    if (status != ET_OK) return status;
    *out = room;
    *length = PREFIX + padded;
    for (int i = 0; i < PREFIX; i++) (*out)[i] = (char)(padded >> (8 * i) & 0xff);
    memset(*out + PREFIX, ' ', padded);
    if (json_dumpb(header, *out + PREFIX, printed, JSON_COMPACT) != printed)
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

/* ---- writing: the file ---- */

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

static double source_value(const et_tensor_out *tensor, size_t i)
{
    switch (tensor->source) {
    case ET_FROM_F64: return ((const double *)tensor->values)[i];
    case ET_FROM_F32: return ((const float *)tensor->values)[i];
    case ET_FROM_I32: return ((const int32_t *)tensor->values)[i];
    case ET_FROM_U8: return ((const uint8_t *)tensor->values)[i];
    }
    return 0;
}

static et_status write_tensor(int descriptor, const char *path, const et_tensor_out *tensor,
                              et_error *error)
{
    size_t count, bytes, size = et_dtype_size(tensor->dtype);
    shape_size(tensor->shape, tensor->rank, tensor->dtype, &count, &bytes); /* checked before */
    unsigned char chunk[CHUNK];
    for (size_t done = 0; done < count;) {
        size_t part = count - done < CHUNK / size ? count - done : CHUNK / size;
        for (size_t i = 0; i < part; i++)
            et_dtype_encode(source_value(tensor, done + i), tensor->dtype, chunk + i * size);
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
        status = et_fail(error, ET_ENOMEM, "%s: no memory for the header", shown(path));
    if (status == ET_OK)
        status = make_header(shown(path), tensors, count, metadata, order, header, error);
    if (status == ET_OK) status = print_header(shown(path), header, &text, &length, error);
    json_decref(header);
    content all = {shown(path), text, length, count, order};
    if (status == ET_OK) status = et_file_write(path, write_content, &all, error);
    free(text);
    free(order);
    return status == ET_OK ? succeed(error) : status;
}
