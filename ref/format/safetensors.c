/* safetensors.c: reader of the file format in which bundles travel.
 * See etref/safetensors.h for the format and its source.
 *
 * A bundle may come from anybody, so the reader trusts nothing: each number in the header is
 * checked before it is used, each rule of the format has one line and one message, and the sum of
 * the rules is that every byte of the file belongs to exactly one thing. Memory follows the file's
 * real size, never a number written in it: the header is held once, Jansson's tree of it takes at
 * most some forty bytes per byte while the file is being opened, and values are read in small
 * pieces on request.
 *
 * Left out: F8 values; mapping the file into memory (a file cut short under a mapping kills the
 * process).
 */
#include "ref/format/safetensors.h"
#include "ref/base/float_environment.h"
#include "ref/base/memory.h"
#include "ref/format/files.h"
#include "ref/format/json.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    MAX_DEPTH = 3, /* header, tensor, shape */
    PIECE = 4096   /* elements read at a time */
};

/* ---- the file ---- */

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

bool et_shape_size(const size_t *shape, size_t rank, et_dtype dtype, size_t *count, size_t *bytes)
{
    *count = 1;
    for (size_t i = 0; i < rank; i++)
        if ((json_int_t)shape[i] < 0 || !et_size_mul(*count, shape[i], count)) return false;
    return et_size_mul(*count, et_dtype_size(dtype), bytes);
}

static et_status read_bytes(const et_tensor_file *file, void *out, size_t count, uint64_t at,
                            et_error *error)
{
    return et_read_at(file->descriptor, out, count, at, et_shown_path(file->path), error);
}

/* ---- the header ---- */

/* Reads the length and the header's text; sets data_start. *text is released by the caller. */
static et_status read_header(et_tensor_file *file, uint64_t size, char **text, size_t *length,
                             et_error *error)
{
    const char *path = et_shown_path(file->path);
    if (size < ET_FILE_PREFIX)
        return et_fail(error, ET_EINVAL,
                       "%s: %" PRIu64 " bytes are too few: a safetensors file starts with the "
                       "8-byte length of its header",
                       path, size);
    unsigned char prefix[ET_FILE_PREFIX];
    et_status status = read_bytes(file, prefix, ET_FILE_PREFIX, 0, error);
    if (status != ET_OK) return status;
    uint64_t claimed = 0;
    for (int i = 0; i < ET_FILE_PREFIX; i++) claimed |= (uint64_t)prefix[i] << (8 * i);
    if (claimed > ET_FILE_MAX_HEADER)
        return et_fail(error, ET_EINVAL,
                       "%s: a header of %" PRIu64 " bytes exceeds the format's %d: not a "
                       "safetensors file?",
                       path, claimed, ET_FILE_MAX_HEADER);
    if (claimed > size - ET_FILE_PREFIX)
        return et_fail(error, ET_EINVAL,
                       "%s: a header of %" PRIu64 " bytes is announced, %" PRIu64
                       " follow: the file is cut short or not safetensors",
                       path, claimed, size - ET_FILE_PREFIX);
    *length = (size_t)claimed;
    file->data_start = ET_FILE_PREFIX + claimed;
    void *room;
    status = et_allocate(&room, *length + 1, 1, "the header of a safetensors file", error);
    if (status != ET_OK) return status;
    *text = room;
    return read_bytes(file, *text, *length, ET_FILE_PREFIX, error);
}

/* The rules that a JSON parser does not know: '{' first, nothing but spaces behind the last '}',
 * and (outside of strings) no more than three levels of brackets and none within an array. The last
 * two keep a hostile header from being large once it is parsed: [{},{},...] would take Jansson
 * seventy bytes per byte. */
static et_status check_layout(const char *path, const char *text, size_t length, et_error *error)
{
    if (length == 0 || text[0] != '{')
        return et_fail(error, ET_EINVAL, "%s: the header does not start with '{': not safetensors?",
                       et_shown_path(path));
    size_t end = length;
    while (text[end - 1] == ' ') end--;
    if (text[end - 1] != '}')
        return et_fail(error, ET_EINVAL,
                       "%s: the header does not end with '}' and spaces: only spaces may pad it",
                       et_shown_path(path));
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
                               et_shown_path(path), in_array ? "within an array" : "too deep", i);
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
                       et_shown_path(path), length);
    return et_fail(error, ET_EINVAL, "%s: the header is not valid JSON: %s, at byte %d",
                   et_shown_path(path), trouble.text, trouble.position);
}

static et_status take_metadata(et_tensor_file *file, json_t *object, et_error *error)
{
    const char *path = et_shown_path(file->path);
    if (!json_is_object(object))
        return et_fail(error, ET_EINVAL, "%s: %s is not an object of strings", path,
                       ET_FILE_METADATA);
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
            return et_fail(error, ET_EINVAL, "%s: %s: '%.100s' is not a string", path,
                           ET_FILE_METADATA, key);
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
    if (!et_shape_size(tensor->shape, tensor->rank, tensor->dtype, &tensor->count, bytes))
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
    const char *path = et_shown_path(file->path);
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
    const char *path = et_shown_path(file->path);
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
        if (strcmp(name, ET_FILE_METADATA) == 0)
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
    et_status status = copy_text(&file->path, path, strlen(path), error);
    if (status == ET_OK)
        status = et_open_regular(&file->descriptor, &size, path, et_shown_path(path),
                                 "a safetensors file", error);
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

/* ---- values ---- */

static et_status check_type(const et_tensor_file *file, const et_tensor_info *tensor,
                            et_error *error)
{
    if (tensor->dtype != ET_F8_E4M3 && tensor->dtype != ET_F8_E5M2) return ET_OK;
    return et_fail(error, ET_EINVAL,
                   "%s: tensor '%s': values of type %s cannot be read; store F16, BF16 or F32",
                   et_shown_path(file->path), tensor->name, et_dtype_name(tensor->dtype));
}

/* Elements [first, first + count), at most PIECE of them. */
static et_status read_piece(const et_tensor_file *file, const et_tensor_info *tensor, size_t first,
                            size_t count, double *out, et_error *error)
{
    unsigned char bytes[PIECE * sizeof(double)];
    size_t size = et_dtype_size(tensor->dtype);
    uint64_t at = file->data_start + tensor->offset + (uint64_t)first * size;
    et_status status = read_bytes(file, bytes, count * size, at, error);
    if (status == ET_OK) et_dtype_decode_all(bytes, tensor->dtype, count, out);
    return status;
}

et_status et_tensor_file_read(const et_tensor_file *file, const et_tensor_info *tensor,
                              size_t first, size_t count, double *out, et_error *error)
{
    ET_ARITHMETIC;
    et_status status = check_type(file, tensor, error);
    if (status != ET_OK) return status;
    if (first > tensor->count || count > tensor->count - first)
        return et_fail(error, ET_EINVAL,
                       "%s: tensor '%s': %zu elements from %zu on were asked for, it has %zu",
                       et_shown_path(file->path), tensor->name, count, first, tensor->count);
    for (size_t done = 0; done < count && status == ET_OK; done += PIECE) {
        size_t part = count - done < PIECE ? count - done : PIECE;
        status = read_piece(file, tensor, first + done, part, out + done, error);
    }
    return status == ET_OK ? succeed(error) : status;
}

et_status et_tensor_file_each(const et_tensor_file *file, const et_tensor_info *tensor,
                              et_visit_values *visit, void *user, et_error *error)
{
    double values[PIECE];
    et_status status = check_type(file, tensor, error);
    for (size_t first = 0; first < tensor->count && status == ET_OK; first += PIECE) {
        size_t part = tensor->count - first < PIECE ? tensor->count - first : PIECE;
        status = read_piece(file, tensor, first, part, values, error);
        if (status == ET_OK) status = visit(user, first, part, values, error);
    }
    return status;
}
