/* files.c: see files.h. */
#include "ref/format/files.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { SHOWN_PATH = 160 }; /* of a longer path a message shows the end */

const char *et_shown_path(const char *path)
{
    size_t length = strlen(path);
    return length > SHOWN_PATH ? path + length - SHOWN_PATH : path;
}

/* O_NONBLOCK, because opening a FIFO that nobody writes to would wait for ever; it means nothing
 * to a regular file, and nothing else gets through. */
et_status et_open_regular(int *descriptor, uint64_t *size, const char *path, const char *where,
                          const char *wanted, et_error *error)
{
    struct stat facts;
    *descriptor = open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    if (*descriptor < 0)
        return et_fail(error, ET_EIO, "%s: cannot open: %s", where, strerror(errno));
    if (fstat(*descriptor, &facts) != 0)
        return et_fail(error, ET_EIO, "%s: cannot examine: %s", where, strerror(errno));
    if (!S_ISREG(facts.st_mode))
        return et_fail(error, ET_EIO, "%s: is a %s; name %s", where,
                       S_ISDIR(facts.st_mode) ? "folder" : "pipe, device or socket", wanted);
    *size = (uint64_t)facts.st_size;
    return ET_OK;
}

et_status et_read_at(int descriptor, void *out, size_t count, uint64_t at, const char *where,
                     et_error *error)
{
    unsigned char *to = out;
    while (count > 0) {
        ssize_t got = pread(descriptor, to, count, (off_t)at);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return et_fail(error, ET_EIO, "%s: cannot read: %s", where, strerror(errno));
        if (got == 0)
            return et_fail(error, ET_EIO, "%s: ends early: it became shorter while it was read",
                           where);
        to += got;
        at += (uint64_t)got;
        count -= (size_t)got;
    }
    return ET_OK;
}
