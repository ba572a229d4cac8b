/* fuzz_bundle.c: any bytes at all, taken for a golden bundle, as `etref verify FILE` takes them.
 * For libFuzzer.
 *
 * What opens is computed and compared: the case of a hostile file must not make the step crash,
 * read beyond its inputs or take more memory than the limit. A refusal says why.
 */
#include "etref/etref.h"
#include "tests/fuzz/fuzz.h"

enum { LIMIT = 1 << 20 }; /* bytes that a step may take: enough for the seeds, and quick */

static void verify(et_tensor_file *file, et_step *step)
{
    et_comparison *list;
    size_t compared;
    et_error error = {""};
    et_status status = et_step_run(step, ET_PLAIN, NULL, NULL, &error);
    require(step->bytes <= LIMIT, "the step keeps to its limit");
    require((status == ET_OK) == (error.text[0] == '\0'), "a message if and only if refused");
    if (status != ET_OK) return;
    if (et_bundle_compare(&list, &compared, file, step, &error) == ET_OK) free(list);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t count)
{
    char path[64];
    et_tensor_file file;
    et_step step;
    et_error error = {""};
    int descriptor = file_of(bytes, count, path);
    et_status status = et_bundle_open(&file, &step, path, LIMIT, &error);
    require((status == ET_OK) == (error.text[0] == '\0'), "a message if and only if refused");
    if (status == ET_OK) {
        verify(&file, &step);
        et_step_free(&step);
        et_tensor_file_close(&file);
    }
    close(descriptor);
    return 0;
}
