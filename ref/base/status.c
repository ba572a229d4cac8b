/* status.c: messages of failure. See etref/status.h. */
#include "etref/status.h"

#include <stdarg.h>
#include <stdio.h>

const char *et_status_name(et_status status)
{
    switch (status) {
    case ET_OK: return "ok";
    case ET_EINVAL: return "invalid input";
    case ET_ENOMEM: return "out of memory";
    case ET_EIO: return "input/output error";
    }
    return "unknown status";
}

et_status et_fail(et_error *error, et_status status, const char *format, ...)
{
    if (error == NULL) return status;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(error->text, sizeof error->text, format, arguments);
    va_end(arguments);
    /* A name from a hostile file must not move the reader's cursor or start a second line. */
    for (char *c = error->text; *c; c++)
        if ((unsigned char)*c < 0x20 || *c == 0x7f) *c = '?';
    return status;
}
