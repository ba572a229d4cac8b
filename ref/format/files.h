/* files.h: reading regular files, whatever a path turns out to be. Internal. */
#ifndef ET_FILES_H
#define ET_FILES_H

#include "etref/status.h"
#include <stddef.h>
#include <stdint.h>

/* The end of a path, as much of it as a message shows. */
const char *et_shown_path(const char *path);

/* Opens a regular file; messages begin with `where` and say to name `wanted`. The caller closes
 * *descriptor where it is not -1. ET_EIO. */
et_status et_open_regular(int *descriptor, uint64_t *size, const char *path, const char *where,
                          const char *wanted, et_error *error);

/* Bytes [at, at + count) of the file. ET_EIO. */
et_status et_read_at(int descriptor, void *out, size_t count, uint64_t at, const char *where,
                     et_error *error);

#endif
