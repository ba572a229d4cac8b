/* fuzz_bundle.c: any bytes at all, taken for a golden bundle, as `etref verify FILE` takes them.
 * For libFuzzer.
 *
 * What opens is computed and compared: the case of a hostile file must not make the step crash,
 * read beyond its inputs or take more memory than the limit. A refusal says why.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* memfd_create */
#endif
#include "etref/etref.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t count);

enum { LIMIT = 1 << 20 }; /* bytes that a step may take: enough for the seeds, and quick */

static void require(int holds, const char *what)
{
    if (holds) return;
    fprintf(stderr, "fuzz_bundle: violated: %s\n", what);
    abort();
}

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
    int descriptor = memfd_create("fuzz", MFD_CLOEXEC);
    require(descriptor >= 0 && write(descriptor, bytes, count) == (ssize_t)count, "memfd");
    snprintf(path, sizeof path, "/proc/self/fd/%d", descriptor);
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
