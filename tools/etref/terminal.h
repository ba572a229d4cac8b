/* terminal.h: what the tool puts in front of people, and JSON for programs, on standard output.
 *
 * Where memory is missing for it the tool ends with a line that says so.
 */
#ifndef ETREF_TOOL_TERMINAL_H
#define ETREF_TOOL_TERMINAL_H

#include "ref/report/json_out.h"
#include "ref/report/page.h"
#include "tools/etref/progress.h"
#include <jansson.h>
#include <stddef.h>
#include <stdio.h>

/* Places on a line: COLUMNS (at least 40), else as many as the terminal has, else 80. */
size_t terminal_width(void);

void print_page(et_page *t); /* prints and frees; verdicts as print_verdicts does */

/* Words on such lines, each behind a margin. */
void print_wrapped(size_t margin, const char *text);
/* The same behind `used` places that are printed already, which are the margin of the lines that follow. */
void print_hung(size_t used, const char *text);

void table_print(et_table *t); /* prints and frees */

/* Whether standard output is a terminal that shows colours (TERM is not dumb), and NO_COLOR asks for none. The first
 * answer stays, for a process's children too, whose reports it prints. */
bool terminal_colors(void);

/* Prints a finished text. With colours, its verdicts are green, red or yellow: where they begin a line, or are a cell
 * of a table. */
void print_verdicts(const char *text);

/* "1.5 MiB" */
void print_size(char *out, size_t room, double bytes);

/* ---- JSON ---- */

void print_number(double value); /* the same form as et_json_number's, straight to the output */
void json_print(json_t *value);  /* with a newline, and releases it */

/* Prints an object that is still open: "{...", so that a long array can be streamed behind it. */
void json_print_open(json_t *object);

#endif
