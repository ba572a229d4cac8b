/* fuzz.h: what the libFuzzer targets share: a condition that must hold, Jansson's memory counted,
 * and a file made of the input's bytes.
 */
#ifndef ETREF_FUZZ_H
#define ETREF_FUZZ_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* memfd_create */
#endif
#include <jansson.h>
#include <malloc.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t count);

static inline void require(int holds, const char *what)
{
    if (holds) return;
    fprintf(stderr, "fuzz: violated: %s\n", what);
    abort();
}

static size_t json_now, json_peak; /* bytes that Jansson holds, and the most it held */

static inline void *counted_malloc(size_t size)
{
    void *room = malloc(size);
    if (room != NULL) json_now += malloc_usable_size(room);
    if (json_now > json_peak) json_peak = json_now;
    return room;
}

static inline void counted_free(void *room)
{
    if (room != NULL) json_now -= malloc_usable_size(room);
    free(room);
}

static inline void count_json(void)
{
    json_set_alloc_funcs(counted_malloc, counted_free);
    json_now = json_peak = 0;
}

/* The bytes as a file in memory, so that the reader's own code is what runs, pread included. `path`
 * gets its name; returns its descriptor, to be closed. */
static inline int file_of(const uint8_t *bytes, size_t count, char path[64])
{
    int descriptor = memfd_create("fuzz", MFD_CLOEXEC);
    require(descriptor >= 0, "memfd_create");
    for (size_t done = 0; done < count;) {
        ssize_t written = write(descriptor, bytes + done, count - done);
        require(written > 0, "write");
        done += (size_t)written;
    }
    snprintf(path, 64, "/proc/self/fd/%d", descriptor);
    return descriptor;
}

#endif
