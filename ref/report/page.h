/* page.h: a text that grows, and what a report is set in: words, paragraphs, tables. Internal.
 *
 * Everything is plain ASCII without colour, so that a terminal, a log and a pipe show the same. What is too wide for a
 * line goes on in the next.
 */
#ifndef ET_PAGE_H
#define ET_PAGE_H

#include <stdbool.h>
#include <stddef.h>

typedef struct et_page {
    char *at; /* terminated; NULL: nothing yet */
    size_t length, room;
    size_t width; /* of a line; 0: 80 */
    bool failed; /* memory was missing for a part of it, and what came after is not there either */
} et_page;

void et_page_add(et_page *t, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Words from a file, which may be hostile: control characters become '?'. */
void et_page_clean(et_page *t, const char *words);
/* Words on lines of the page's width, each line behind a margin. */
void et_page_wrap(et_page *t, size_t margin, const char *words);
/* The same behind a head of `used` places, which stands there already. */
void et_page_hang(et_page *t, size_t used, size_t margin, const char *words);
/* The text, which the caller frees; NULL where memory was missing. */
char *et_page_take(et_page *t);

/* Takes one character, of 1 byte or 2; *shown stands for it: "?" for a control character. */
size_t et_clean_character(const unsigned char *c, char *shown);

/* ---- tables: cells are collected, then printed with every column as wide as it needs ----
 *
 * Where a row is too wide for the page its last column is wrapped; where that leaves too little for it, or the columns
 * before it are too wide by themselves, the row goes on behind a margin, its head too. */

typedef struct et_table {
    const char *align; /* one letter a column: 'l' or 'r' */
    size_t columns, count;
    char **cells;
    bool failed;
} et_table;

void et_table_begin(et_table *t, const char *align);
void et_table_cell(et_table *t, const char *format, ...) __attribute__((format(printf, 2, 3)));
void et_table_print(et_table *t, et_page *out); /* and frees it */
void et_table_free(et_table *t);

#endif
