/* failure.c: see failure.h. */
#include "tools/etref/failure.h"
#include "tools/etref/commands.h"
#include "tools/etref/progress.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static bool own_end;

void leave(int status)
{
    own_end = true;
    exit(status);
}

bool leaves_by_itself(void)
{
    return own_end;
}

/* Without memory the libraries' own handlers cannot be trusted to come to an end. */
void leave_without_memory(void)
{
    _exit(STATUS_BAD);
}

int fail(const char *format, ...)
{
    char line[1024];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    progress_clear();
    fflush(stdout); /* so that the last line of a log of both streams is the failure */
    fputs("etref: ", stderr);
    print_clean(stderr, line);
    fputc('\n', stderr);
    return STATUS_BAD;
}

int fail_status(et_status status, const et_error *error)
{
    fail("%s", error->text[0] ? error->text : et_status_name(status));
    if (status == ET_ENOMEM) leave_without_memory();
    return STATUS_BAD;
}

static void *memory_or_end(void *room, size_t count, size_t size)
{
    if (room == NULL) {
        fail("no memory for %zu elements of %zu bytes", count, size);
        leave_without_memory();
    }
    return room;
}

void *allocate(size_t count, size_t size)
{
    return memory_or_end(calloc(count ? count : 1, size), count, size);
}

void *allocate_bytes(size_t size)
{
    return memory_or_end(malloc(size), size, 1);
}

bool could_be_read(et_status status)
{
    if (status == ET_ENOMEM) fail_status(status, &(et_error){"no memory to read a description"});
    return status == ET_OK;
}
