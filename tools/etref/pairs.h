/* pairs.h: goldens and candidates that one `etref verify` judges. */
#ifndef ETREF_TOOL_PAIRS_H
#define ETREF_TOOL_PAIRS_H

#include "tools/etref/verify.h"

typedef struct pair_list {
    verify_pair *at;
    size_t count;
    bool given; /* by --pairs: many, even where it is one */
    char *text;      /* of the list's file, into which the pairs point; owned */
    word_list names; /* made of files'; owned */
} pair_list;

void pair_list_add(pair_list *list, verify_pair pair);

/* Words in turn: golden, candidate, golden, ...; or a golden alone. A candidate of several has its file's name. Always
 * true. */
bool pair_list_take(pair_list *list, const word_list *words, const char *name);

/* Bundles to check, in the same way. */
void pair_list_take_files(pair_list *list, const word_list *words, const char *name);

/* A file, "-" for standard input, of lines "GOLDEN CANDIDATE [NAME]", whose words stand between tabs, or between
 * blanks where a line has no tab. Empty lines, and those that begin with '#', count for nothing. False after an error
 * message. */
bool pair_list_read(pair_list *list, const char *path);

void pair_list_free(pair_list *list);

#endif
