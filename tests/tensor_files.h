/* tensor_files.h: the file under test, as bytes and as tensors.
 *
 * It is `path` in the test's own folder (scratch.h). Whatever goes wrong fails the test.
 */
#ifndef ETREF_TESTS_TENSOR_FILES_H
#define ETREF_TESTS_TENSOR_FILES_H

#include "etref/safetensors.h"
#include "tests/scratch.h"

#define COUNT(array) (sizeof(array) / sizeof(array)[0])

/* ---- bytes ---- */

static inline void put_bytes(const void *bytes, size_t count)
{
    FILE *file = fopen(path, "wb");
    ck_assert_ptr_nonnull(file);
    ck_assert_uint_eq(fwrite(bytes, 1, count, file), count);
    ck_assert_int_eq(fclose(file), 0);
}

static inline size_t get_bytes(unsigned char *bytes, size_t room)
{
    FILE *file = fopen(path, "rb");
    ck_assert_ptr_nonnull(file);
    size_t count = fread(bytes, 1, room, file);
    ck_assert(count < room);
    fclose(file);
    return count;
}

/* ---- tensors ---- */

static inline void assert_opens(et_tensor_file *file)
{
    et_error error = {"not cleared"};
    et_status status = et_tensor_file_open(file, path, &error);
    ck_assert_msg(status == ET_OK, "%s", error.text);
    ck_assert_str_eq(error.text, "");
}

static inline void assert_writes(const et_tensor_out *tensors, size_t count,
                                 const char *const *metadata)
{
    et_error error = {"not cleared"};
    et_status status = et_tensor_file_write(path, tensors, count, metadata, &error);
    ck_assert_msg(status == ET_OK, "%s", error.text);
    ck_assert_str_eq(error.text, "");
}

#endif
