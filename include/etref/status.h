/* status.h: how a function of etref says that something went wrong.
 *
 * Every function that can fail returns an et_status and takes, as its last argument, an optional
 * et_error that receives ONE line naming the culprit and the remedy. The library never prints,
 * exits or aborts; when a function fails its outputs are as they were or released.
 */
#ifndef ETREF_STATUS_H
#define ETREF_STATUS_H

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

typedef enum et_status {
    ET_OK = 0,    /* done */
    ET_EINVAL,    /* a value that the function's contract, a case or a file's content rules out */
    ET_ENOMEM,    /* memory could not be had, or more than the caller's limit was asked for */
    ET_EIO        /* the operating system refused to open, read, write or rename */
} et_status;

/* The text is always terminated, has no newline and is empty after success. */
typedef struct et_error {
    char text[640];
} et_error;

/* A word or two for a status, for messages: "invalid input", "mismatch", ... Never NULL. */
const char *et_status_name(et_status status);

/* Writes the printf-style message into `error` (NULL: nowhere) and returns `status`. A message too
 * long for the field is cut; control characters, which may come from a hostile file, become '?'. */
#if defined(__GNUC__)
__attribute__((format(printf, 3, 4)))
#endif
et_status
et_fail(et_error *error, et_status status, const char *format, ...);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
#endif
