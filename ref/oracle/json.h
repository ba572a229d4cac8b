/* json.h: reading JSON text through Jansson, with the right reason for a failure. Internal. */
#ifndef ET_JSON_H
#define ET_JSON_H

#include <errno.h>
#include <jansson.h>
#include <stdbool.h>

/* The text as JSON, duplicate keys refused; a new reference, or NULL with *trouble filled in.
 * Jansson reports a failed allocation now and then as a syntax error, or with no words at all;
 * errno tells the truth, because malloc sets it, and *no_memory says so. */
static inline json_t *et_json_load(const char *text, size_t length, size_t flags,
                                   json_error_t *trouble, bool *no_memory)
{
    errno = 0;
    json_t *root = json_loadb(text, length, flags | JSON_REJECT_DUPLICATES, trouble);
    *no_memory = root == NULL && (errno == ENOMEM || trouble->text[0] == '\0' ||
                                  json_error_code(trouble) == json_error_out_of_memory);
    return root;
}

#endif
