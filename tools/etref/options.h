/* options.h: a command line read from a table.
 *
 * Each option is one row: its name, what follows it, and where the value goes. `--name value` and
 * `--name=value` mean the same; `-q` is --quiet and `-o` --out; `--` ends the options; a lone `-` is a word. Options and words may
 * be mixed. Of an option given twice the last counts, except that lists collect.
 */
#ifndef ETREF_TOOL_OPTIONS_H
#define ETREF_TOOL_OPTIONS_H

#include "etref/status.h"
#include "tools/etref/failure.h"
#include <stdbool.h>
#include <stddef.h>

/* Words in the order given. They point into argv. */
typedef struct word_list {
    const char **at;
    size_t count;
} word_list;

void word_list_add(word_list *list, const char *word);
void word_list_free(word_list *list);

typedef enum option_kind {
    OPTION_FLAG,    /* bool *: nothing follows */
    OPTION_WORD,    /* const char ** */
    OPTION_LIST,    /* word_list *: may be given several times */
    OPTION_COUNT,   /* size_t *: a whole number from 1 to 2^31 - 1 */
    OPTION_THREADS, /* size_t *: a whole number from 1 to MAX_THREADS */
    OPTION_CHOICE   /* int *: the place of the word in `choices` */
} option_kind;

typedef struct option {
    const char *name; /* "--out" */
    option_kind kind;
    void *value;
    const char *choices; /* OPTION_CHOICE: "plain|blas" */
} option;

/* Reads argv[1..argc) by a table that ends with a NULL name; other words go to `words`. Returns
 * false after an error message. */
bool options_parse(const option *table, int argc, char **argv, word_list *words);

/* The place of `word` in "a|b|c", or -1. */
int choice_find(const char *choices, const char *word);

/* A whole number from 1 to 2^31 - 1, or 0 if `text` is not one. */
size_t parse_count(const char *text);

/* ---- unknown words ---- */

/* Prints that `word` is no known `what`, with the nearest of `known` (NULL-terminated) if one is
 * near, and returns STATUS_BAD. `command` says which command's help lists them ("": the tool's
 * own). */
int fail_unknown(const char *what, const char *word, const char *const *known, const char *owner);

/* The nearest of `known` by edit distance, or NULL if none is near enough to be a slip. */
const char *nearest_word(const char *word, const char *const *known);

/* ---- texts ---- */

/* The whole text of a file ("-": standard input), of at most `limit` bytes; what is longer is an
 * error that calls it `what`. Allocated, with a NUL behind it; the caller frees it in any case. */
et_status read_text(const char *path, size_t limit, const char *what, char **text, size_t *length,
                    et_error *error);

/* Says on standard error that the processor can run better kernels than OpenBLAS's, if so. */
void note_slow_kernels(void);

#endif
