/* standard_input.c: see standard_input.h. */
#include "tools/etref/standard_input.h"
#include "tools/etref/failure.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static const char words[] = "standard input";
static char copy_path[32]; /* "": not read yet */

/* All of standard input; false: errno says why. */
static bool copy_to(int descriptor)
{
    static char bytes[1 << 16];
    for (;;) {
        ssize_t got = read(STDIN_FILENO, bytes, sizeof bytes);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) return got == 0;
        for (ssize_t put = 0, part; put < got; put += part) {
            part = write(descriptor, bytes + put, (size_t)(got - put));
            if (part < 0 && errno == EINTR) part = 0;
            if (part < 0) return false;
        }
    }
}

et_status take_standard_input(const char **path, et_error *error)
{
    if (strcmp(*path, "-") != 0) return ET_OK;
    if (copy_path[0] != '\0')
        return et_fail(error, ET_EINVAL, "-: standard input can be read once; name a file for the other");
    int descriptor = memfd_create("etref", 0);
    if (descriptor < 0 || !copy_to(descriptor))
        return et_fail(error, ET_EIO, "%s: %s", words, strerror(errno));
    snprintf(copy_path, sizeof copy_path, "/proc/self/fd/%d", descriptor);
    *path = copy_path;
    return ET_OK;
}

void name_standard_input(char *text, size_t room)
{
    char *at = copy_path[0] ? strstr(text, copy_path) : NULL;
    if (at == NULL) return;
    size_t before = (size_t)(at - text), rest = strlen(at + strlen(copy_path));
    size_t width = sizeof words - 1;
    if (before + width + rest + 1 > room) return;
    memmove(at + width, at + strlen(copy_path), rest + 1);
    memcpy(at, words, width);
}

static bool is_copy(const char *path)
{
    return copy_path[0] && strcmp(path, copy_path) == 0;
}

const char *shown_name(const char *path)
{
    return is_copy(path) ? words : path;
}

const char *open_name(const char *path)
{
    return is_copy(path) ? "-" : path;
}
