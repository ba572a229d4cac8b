/* json.h: what every reader of JSON text here needs: the right reason for a failure, and messages
 * that quote a value and name the field that was meant. Internal; used through Jansson.
 */
#ifndef ET_JSON_H
#define ET_JSON_H

#include "etref/status.h"
#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

/* The text as JSON, duplicate keys refused; `flags` as json_loadb takes them. A new reference, or NULL
 * with *trouble filled in, or with *no_memory set. */
json_t *et_json_load(const char *text, size_t length, size_t flags, json_error_t *trouble,
                     bool *no_memory);

/* The same for a text of at most `limit` bytes that a user wrote: *root is a new reference, of any
 * type. ET_EINVAL says where the syntax breaks; `what` ("the case") ends the message of ET_ENOMEM. */
et_status et_json_read(json_t **root, const char *text, size_t length, size_t limit,
                       const char *where, const char *what, et_error *error);
et_status et_json_no_memory(const char *where, const char *what, et_error *error);

/* Room for text, and what stands in it so far: always terminated, cut where the room ends. */
typedef struct et_line {
    char *text;
    size_t room, used;
    bool full;
} et_line;

/* `to` is an et_line. Made for json_dump_callback, so that nothing is allocated; returns 0. */
int et_line_append(const char *bytes, size_t count, void *to);

/* A value for a message: its JSON, in ASCII, cut to what fits. */
typedef struct et_quote {
    char text[64];
} et_quote;
et_quote et_json_quote(json_t *v);

/* Letters, digits, '-', '_', '.', at least one, the first a letter or digit: what may name a file. */
bool et_is_name(const char *text);

/* Levenshtein's distance: the fewest insertions, deletions and replacements from a to b; 64 or more
 * where either is longer than 63 bytes. */
size_t et_edit_distance(const char *a, const char *b);

/* Of `count` names the one that was probably meant: at most a third of its letters wrong. The part
 * behind a dot counts as a name, too: "seed" means "input.seed". NULL if none is near. */
const char *et_nearest_name(const char *word, const char *(*name_at)(size_t index), size_t count);

#endif
