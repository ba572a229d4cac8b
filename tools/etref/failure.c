/* failure.c: see failure.h. */
#include "tools/etref/failure.h"
#include "tools/etref/commands.h"
#include "tools/etref/progress.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static bool own_end, begun;
static void (*last_words)(int, bool);
static char last[1024];

void leave(int status)
{
    own_end = true;
    if (last_words) last_words(status, true);
    exit(status);
}

bool leaves_by_itself(void)
{
    return own_end;
}

/* Without memory the libraries' own handlers cannot be trusted to come to an end. */
void leave_without_memory(void)
{
    if (last_words) last_words(STATUS_BAD, false);
    _exit(STATUS_BAD);
}

int fail(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(last, sizeof last, format, arguments);
    va_end(arguments);
    progress_clear();
    fflush(stdout); /* so that the last line of a log of both streams is the failure */
    fputs("etref: ", stderr);
    print_clean(stderr, last);
    fputc('\n', stderr);
    return STATUS_BAD;
}

void set_last_words(void (*print)(int status, bool memory))
{
    last_words = print;
}

void result_begins(void)
{
    begun = true;
}

bool result_has_begun(void)
{
    return begun;
}

const char *last_failure(void)
{
    return last;
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
