/* failure.h: how a command says that it failed, and how it ends where memory is missing. */
#ifndef ETREF_TOOL_FAILURE_H
#define ETREF_TOOL_FAILURE_H

#include "etref/status.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdnoreturn.h>

/* Ends the process: the only way that counts as the tool's own. */
noreturn void leave(int status);
bool leaves_by_itself(void); /* is that under way? */

/* The same with STATUS_BAD, after a message, where memory is missing: without the handlers of
 * libraries, which may not come to an end then. */
noreturn void leave_without_memory(void);

/* What both do first, with the status, and whether memory is to be had; failure_report.h has use for it. */
void set_last_words(void (*print)(int status, bool memory));

/* A result is printed from here on: nothing can take its place. */
void result_begins(void);
bool result_has_begun(void);

/* The text of the last `fail`; "" before there was one. */
const char *last_failure(void);

/* Prints "etref: ..." as one line on standard error, without control characters (a hostile file's
 * names go through here), and returns STATUS_BAD. */
int fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* The same for an error of the library; ends the tool where memory was missing. */
int fail_status(et_status status, const et_error *error);

/* calloc, and malloc, that end the tool with a line instead of returning NULL: a command has
 * nothing better to do, and its files are written by the library, whole or not at all. */
void *allocate(size_t count, size_t size);
void *allocate_bytes(size_t size);

/* True for ET_OK; ends the tool where memory was missing. For what a report leaves out when it
 * cannot be read, and must not leave out for another reason. */
bool could_be_read(et_status status);

#endif
