/* fuzz_safetensors.c: any bytes at all, taken for a safetensors file. For libFuzzer.
 *
 * The reader may refuse a file or read it; it must not crash, leave a number of the header
 * unchecked or take memory by what the file claims.
 *
 * Checked: Jansson's and the reader's memory stay below a multiple of the input; the tensors that
 * an accepted file has cover its data exactly, and each can be read; a refusal says why.
 */
#include "etref/safetensors.h"
#include "tests/fuzz/fuzz.h"

#include <string.h>

/* Bytes per byte of input, and bytes in any case, that opening a file may take. An empty object {}
 * is Jansson's dearest text: two characters, a key and a comma make some 40 bytes each. */
enum { PER_BYTE = 64, ALWAYS = 1 << 16 };

/* What an open file keeps: a few numbers and the name of each tensor, and the metadata. */
static size_t kept_bytes(const et_tensor_file *file)
{
    size_t sum = file->tensor_count * sizeof *file->tensors;
    for (size_t i = 0; i < file->tensor_count; i++) sum += strlen(file->tensors[i].name) + 1;
    for (size_t i = 0; i < 2 * file->metadata_count; i++)
        sum += sizeof *file->metadata + strlen(file->metadata[i]) + 1;
    return sum;
}

static void read_all(const et_tensor_file *file, const et_tensor_info *tensor)
{
    enum { WINDOW = 257 };
    double out[WINDOW];
    int readable = tensor->dtype != ET_F8_E4M3 && tensor->dtype != ET_F8_E5M2;
    for (size_t first = 0; first < tensor->count; first += WINDOW) {
        size_t part = tensor->count - first < WINDOW ? tensor->count - first : WINDOW;
        et_status status = et_tensor_file_read(file, tensor, first, part, out, NULL);
        require(status == (readable ? ET_OK : ET_EINVAL), "an accepted tensor can be read");
    }
    require(et_tensor_file_read(file, tensor, tensor->count, 1, out, NULL) == ET_EINVAL,
            "no element follows the last");
}

static void check_open_file(const et_tensor_file *file, size_t size)
{
    uint64_t reached = 0;
    for (size_t i = 0; i < file->tensor_count; i++) {
        const et_tensor_info *tensor = &file->tensors[i];
        require(tensor->rank <= ET_MAX_RANK, "rank <= ET_MAX_RANK");
        require(tensor->offset == reached, "the tensors are in order and adjoin");
        require(tensor->bytes == tensor->count * et_dtype_size(tensor->dtype), "bytes fit count");
        reached += tensor->bytes;
        require(et_tensor_file_find(file, tensor->name) == tensor, "names are unique");
        read_all(file, tensor);
    }
    require(file->data_start + reached == size, "the tensors cover the data");
    require(kept_bytes(file) <= PER_BYTE * size, "the open file is small");
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t count)
{
    char path[64];
    int descriptor = file_of(bytes, count, path);
    count_json();
    et_tensor_file file;
    et_error error;
    et_status status = et_tensor_file_open(&file, path, &error);
    require(json_peak <= PER_BYTE * count + ALWAYS, "Jansson's memory is bounded by the input");
    require(json_now == 0, "Jansson's memory is released");
    require((status == ET_OK) == (error.text[0] == '\0'), "a message if and only if refused");
    if (status == ET_OK) {
        check_open_file(&file, count);
        et_tensor_file_close(&file);
    } else {
        require(status == ET_EINVAL, "bytes can break rules, and do nothing worse");
    }
    close(descriptor);
    return 0;
}
