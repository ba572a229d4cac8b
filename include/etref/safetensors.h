/* safetensors.h: reading and writing the file format in which bundles travel.
 *
 * A file is: 8 bytes, the header's length L (little-endian, at most 100 MB); L bytes of JSON, an
 * object that maps each tensor's name to {"dtype", "shape", "data_offsets": [begin, end)} and, under
 * "__metadata__", strings to strings; then the data, row-major and little-endian. The header starts
 * with '{' and may be padded with spaces. The tensors' byte ranges must cover the data exactly: no
 * hole, no overlap, nothing after the last one. Source: the format's documentation,
 * huggingface.co/docs/safetensors.
 *
 * The reader keeps the header's facts and reads values on request, so that what a file claims never
 * decides how much memory is taken. The writer sorts tensors by falling element size, then by name
 * (so every tensor is aligned), and writes a file whole or not at all.
 *
 * Left out: the F8 types' values (their ranges are checked, their values cannot be read).
 */
#ifndef ETREF_SAFETENSORS_H
#define ETREF_SAFETENSORS_H

#include "etref/status.h"
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum et_dtype {
    ET_F64, ET_I64, ET_U64, ET_F32, ET_I32, ET_U32, ET_F16, ET_BF16, ET_I16, ET_U16,
    ET_I8, ET_U8, ET_BOOL, ET_F8_E4M3, ET_F8_E5M2
} et_dtype;

enum { ET_MAX_RANK = 8, ET_MAX_TENSOR_NAME = 255 };

size_t et_dtype_size(et_dtype dtype);      /* bytes of one element */
const char *et_dtype_name(et_dtype dtype); /* "F64", ... as the format spells it */

/* Significand bits, the implicit one included, of a float type: 53, 24, 11 or 8; 0 for others. */
int et_dtype_significand(et_dtype dtype);

/* ---- conversions, shared by reader, writer and case inputs ---- */

/* Rounds to the nearest value of the type, ties to even, overflow to infinity; NaN stays NaN. The
 * result is the value itself, exactly representable in the type. Only float types. */
double et_round_to_dtype(double value, et_dtype dtype);

/* ---- reading ---- */

typedef struct et_tensor_info {
    char *name;
    et_dtype dtype;
    size_t rank;
    size_t shape[ET_MAX_RANK];
    size_t count;    /* product of the shape, 1 for rank 0 */
    uint64_t offset; /* of the first byte, from the start of the data */
    uint64_t bytes;  /* count * et_dtype_size(dtype) */
} et_tensor_info;

typedef struct et_tensor_file {
    int descriptor;
    char *path;
    uint64_t data_start; /* where the data begins in the file */
    size_t tensor_count;
    et_tensor_info *tensors; /* in order of offset */
    size_t metadata_count;
    char **metadata; /* key, value, key, value, ... */
} et_tensor_file;

/* Opens a file and checks every rule of the format. ET_EIO: cannot be opened or read (a folder,
 * too); ET_EINVAL: breaks a rule, and the message names file, tensor and rule; ET_ENOMEM.
 * On success the caller closes it; on failure there is nothing to close. */
et_status et_tensor_file_open(et_tensor_file *file, const char *path, et_error *error);
void et_tensor_file_close(et_tensor_file *file); /* accepts one that failed to open, or zeros */

const et_tensor_info *et_tensor_file_find(const et_tensor_file *file, const char *name); /* or NULL */
const char *et_tensor_file_metadata(const et_tensor_file *file, const char *key);        /* or NULL */

/* Elements [first, first+count) of a tensor, converted to double (64-bit integers round to
 * nearest; F8: ET_EINVAL). */
et_status et_tensor_file_read(const et_tensor_file *file, const et_tensor_info *tensor, size_t first,
                              size_t count, double *out, et_error *error);

/* ---- writing ---- */

/* What a tensor to be written holds in memory. */
typedef enum et_source { ET_FROM_F64, ET_FROM_F32, ET_FROM_I32, ET_FROM_U8 } et_source;

typedef struct et_tensor_out {
    const char *name;
    et_dtype dtype; /* in the file. A float source is rounded to it, to nearest even */
    size_t rank;
    size_t shape[ET_MAX_RANK];
    const void *values;
    et_source source;
} et_tensor_out;

/* Writes `path` atomically: into et_partial_path(path), fsync, rename, fsync of the folder. On any
 * failure the partial file is removed and an existing `path` is as it was. `metadata` is key,
 * value, ..., NULL; written with keys in the order given. Names must be unique. Deterministic: same
 * tensors and metadata, same bytes, whatever the order of the array. */
et_status et_tensor_file_write(const char *path, const et_tensor_out *tensors, size_t count,
                               const char *const *metadata, et_error *error);

/* The name of the temporary file that et_tensor_file_write uses in this process, for a signal
 * handler that must remove it. Returns 0, or -1 if `room` is too small. */
int et_partial_path(const char *path, char *buffer, size_t room);

#ifdef __cplusplus
}
#endif
#endif
