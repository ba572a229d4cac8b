/* json_members.h: the members of a struct as JSON values, by a table. Internal.
 *
 * A row says what a member is called, where in the struct it lives and what values it takes. Cases
 * (case_fields.c) and profiles (profile.c) are such tables; reading, checking and printing walk them.
 *
 * Words are kept in `type`, "tc|ec|et": the text that a message shows and the list that a word is
 * looked up in are the same. Their position is the value, or the index of it in `values`.
 */
#ifndef ET_JSON_MEMBERS_H
#define ET_JSON_MEMBERS_H

#include "ref/format/json.h"

#include <stdint.h>

typedef enum et_kind {
    ET_NAME,          /* char[]: what may name a file */
    ET_TEXT,          /* char[], not empty */
    ET_COUNT,         /* size_t */
    ET_LONG,          /* uint64_t */
    ET_SMALL,         /* int */
    ET_SWITCH,        /* bool */
    ET_WORD,          /* an enum, or a bool with two words */
    ET_NUMBER,        /* double */
    ET_NUMBER_OR_NULL /* double, and a bool elsewhere that says whether there is one */
} et_kind;

typedef struct et_member {
    const char *name, *type; /* type: what is allowed */
    et_kind kind;
    size_t offset, size;
    double low, high; /* numbers: the closed range */
    const int
        *values;   /* words: their values, where these are not 0, 1, 2, ...; small numbers: those
                        * that are allowed, then 0; or NULL */
    bool optional; /* a text may be empty, a small number 0: what has not been said */
    size_t flag;   /* number or null: offset of its bool */
} et_member;

/* Puts a JSON value into its member of the struct; false, and nothing stored, if it is not of the
 * kind or range that m->type describes. */
bool et_member_store(const et_member *m, void *object, const json_t *v);

/* Whether the member, which may hold anything, is a value that m->type describes, or has not been
 * said. */
bool et_member_fits(const et_member *m, const void *object);

bool et_member_equal(const et_member *m, const void *a, const void *b);

/* The member as a new JSON value; its value fits. NULL if there is no memory, or a text is not
 * UTF-8. */
json_t *et_member_load(const et_member *m, const void *object);

/* Appends `"name": value`; a real number in the fewest digits that read back as the same. Releases
 * v; false if it is NULL, or there is no memory. */
bool et_member_print(et_line *line, const char *name, json_t *v);

/* The position of `word` in "a|b|c", or -1. */
int et_word_position(const char *list, const char *word);

#endif
