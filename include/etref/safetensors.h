/* safetensors.h: reading and writing the file format in which bundles travel.
 *
 * A file is: 8 bytes, the header's length L (little-endian, at most 100 MB); L bytes of JSON, an
 * object that maps each tensor's name to {"dtype", "shape", "data_offsets": [begin, end)}, and
 * "__metadata__" to an object of strings; then the data, row-major and little-endian. The header
 * starts with '{' and may be padded with spaces. The tensors' byte ranges must cover the data
 * exactly: no hole, no overlap, nothing after the last one. Names are unique, and neither they nor
 * the metadata contain NUL. Source: the format's documentation, huggingface.co/docs/safetensors.
 * Two limits are ours: ET_MAX_RANK dimensions, and ET_MAX_TENSOR_NAME bytes of a tensor's name.
 *
 * The reader keeps the header's facts and reads values on request, so that what a file claims never
 * decides how much memory is taken. The writer sorts tensors by falling element size, then by name
 * (so every tensor is aligned), and writes a file whole or not at all.
 *
 * Left out: the F8 types' values (their ranges are checked, their values cannot be read).
 */
#ifndef ETREF_SAFETENSORS_H
#define ETREF_SAFETENSORS_H

#include "etref/array.h"
#include "etref/dtype.h"
#include "etref/status.h"
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

enum { ET_MAX_TENSOR_NAME = 255 };

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
 * pipe or device, too, and at once); ET_EINVAL: breaks a rule, and the message names file, tensor
 * and rule; ET_ENOMEM. On success the caller closes it; on failure there is nothing to close. */
et_status et_tensor_file_open(et_tensor_file *file, const char *path, et_error *error);
void et_tensor_file_close(et_tensor_file *file); /* accepts one that failed to open, or zeros */

/* NULL if there is none. What they return lives as long as the file is open. */
const et_tensor_info *et_tensor_file_find(const et_tensor_file *file, const char *name);
const char *et_tensor_file_metadata(const et_tensor_file *file, const char *key);

/* out [count] = elements [first, first+count) of a tensor of this file, row-major, converted to
 * double as by et_dtype_decode. ET_EINVAL: an F8 type, or elements beyond the last, and `out` is
 * untouched; ET_EIO: cannot be read, and `out` holds a part. */
et_status et_tensor_file_read(const et_tensor_file *file, const et_tensor_info *tensor,
                              size_t first, size_t count, double *out, et_error *error);

/* ---- writing ---- */

/* What a tensor to be written holds in memory. F64 and F32 go to any of the float types F64, F32,
 * F16 and BF16; I32 to I32 or I64; U8 to U8 or, as 0 and not 0, to BOOL; nothing else. */
typedef enum et_source { ET_FROM_F64, ET_FROM_F32, ET_FROM_I32, ET_FROM_U8 } et_source;

typedef struct et_tensor_out {
    const char *name;
    et_dtype dtype; /* in the file. A float source is rounded to it, to nearest even */
    size_t rank;
    size_t shape[ET_MAX_RANK];
    const void *values; /* in; as many as the shape's product, row-major; NULL only for none */
    et_source source;
} et_tensor_out;

/* Writes `path`, whole or not at all, as et_file_write. `metadata` is key, value, ..., NULL, or NULL
 * for none; written with keys in the order given. Names and keys must be unique and UTF-8.
 * Deterministic: same tensors and metadata, same bytes, whatever the order of the array. ET_EINVAL:
 * a contradiction in the arguments; ET_EIO, ET_ENOMEM as et_file_write. */
et_status et_tensor_file_write(const char *path, const et_tensor_out *tensors, size_t count,
                               const char *const *metadata, et_error *error);

/* Writes a file's bytes to an open descriptor. On failure it returns another status than ET_OK. */
typedef et_status et_file_content(int descriptor, void *user, et_error *error);

/* Any file, whole or not at all: content, fsync, rename, fsync of the folder. On any failure an
 * existing `path` is as it was, and nothing else is left. A process that is killed meanwhile, by
 * whatever, leaves nothing either where the file system has files without a name (O_TMPFILE); where
 * it has none, et_partial_path(path), until the next file is written into that folder: files of such
 * names whose writers no longer live (nobody holds their lock) are then removed. A symbolic link at
 * `path` is replaced by the file; a folder, pipe or device there is refused. Several processes and
 * threads may write one path at a time, whichever their numbers and machines: one of their files
 * stays. ET_EIO: folder missing, disk full, ...; ET_ENOMEM. One exception to "as it was": if only the
 * folder's fsync fails, the new file stands complete under its name, and ET_EIO says that it may not
 * survive a power failure. */
et_status et_file_write(const char *path, et_file_content *content, void *user, et_error *error);

/* The name of the temporary file that et_file_write uses in this thread, for a signal handler that
 * removes it: PATH.PROCESS-RANDOM.part, with 64 random bits, so that it is nobody else's. Returns 0,
 * or -1 if `room` is too small. */
int et_partial_path(const char *path, char *buffer, size_t room);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
#endif
