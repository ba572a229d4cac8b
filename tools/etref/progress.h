/* progress.h: a line that shows how far a command is, and text that is safe to show.
 */
#ifndef ETREF_TOOL_PROGRESS_H
#define ETREF_TOOL_PROGRESS_H

#include <stddef.h>
#include <stdio.h>

/* Prints text that may come from a hostile file: every control character becomes '?'. */
void print_clean(FILE *out, const char *text);

/* A bar of up to `width` places, which stand for 0 to `full`; '|' marks `mark` (negative: no mark).
 * `out` has room for width + 1. */
void print_bar(char *out, size_t width, double value, double mark, double full);

/* Progress is shown only where someone watches a terminal, and NO_COLOR is not set. */

/* An et_progress: `user` is the name of what is being computed. */
void progress_show(void *user, const char *phase, double done);
void progress_clear(void);
/* No more from here on. */
void progress_hide(void);

#endif
