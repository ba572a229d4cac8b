/* standard_input.h: a file that comes through a pipe.
 *
 * Bundles are read in any order, and more than once; a pipe can be neither. So it is copied into memory that has a
 * descriptor, and is opened as the file that this is.
 */
#ifndef ETREF_TOOL_STANDARD_INPUT_H
#define ETREF_TOOL_STANDARD_INPUT_H

#include "etref/status.h"
#include <stddef.h>

/* Where *path is "-", standard input is copied and *path becomes the name of the copy, a static string. ET_EINVAL: a
 * second time; ET_EIO. */
et_status take_standard_input(const char **path, et_error *error);

/* In a message, "standard input" for the name of the copy. */
void name_standard_input(char *text, size_t room);

/* How a file is called in a report, and on a command line. */
const char *shown_name(const char *path);
const char *open_name(const char *path);

#endif
