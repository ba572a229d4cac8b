/* terminal.h: what the tool puts in front of people: tables, bars, progress; and JSON for programs.
 *
 * Everything is plain ASCII without colour, so that a terminal, a log and a pipe show the same.
 */
#ifndef ETREF_TOOL_TERMINAL_H
#define ETREF_TOOL_TERMINAL_H

#include "tools/etref/progress.h"
#include <jansson.h>
#include <stddef.h>
#include <stdio.h>

/* Prints words on lines of at most 96 places, each line behind a margin. */
void print_wrapped(size_t margin, const char *text);

/* ---- tables: cells are collected, then printed with every column as wide as it needs ---- */

typedef struct text_table {
    const char *align; /* one letter a column: 'l' or 'r' */
    size_t columns, count;
    char **cells;
} text_table;

void table_begin(text_table *t, const char *align);
void table_cell(text_table *t, const char *format, ...) __attribute__((format(printf, 2, 3)));
void table_print(text_table *t); /* prints and frees */
void table_free(text_table *t);

/* "1.5 MiB" */
void print_size(char *out, size_t room, double bytes);

/* ---- JSON ---- */

json_t *json_number(double value);    /* "NaN", "Infinity", "-Infinity": as strings */
json_t *json_clean(const char *text); /* any bytes: what is not UTF-8 becomes '?' */
void print_number(double value);      /* the same form as json_number's, straight to the output */
void json_print(json_t *value);       /* with a newline, and releases it */

/* Prints an object that is still open: "{...", so that a long array can be streamed behind it. */
void json_print_open(json_t *object);

#endif
