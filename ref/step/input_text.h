/* input_text.h: a file's bytes as vectors. Internal; what it is for stands in input_text.c. */
#ifndef ET_INPUT_TEXT_H
#define ET_INPUT_TEXT_H

#include "etref/status.h"
#include <stddef.h>
#include <stdint.h>

typedef struct et_text {
    size_t count, d;
    unsigned char *bytes; /* [count] */
    double *embedding;    /* [256,d] */
} et_text;

/* Reads `count` bytes of the file from `offset` on. `name` without a '/' is looked for in Debian's
 * folder of common licences. ET_EIO: no such regular file, or it cannot be read; ET_EINVAL: too short;
 * ET_ENOMEM. On failure there is nothing to free. */
et_status et_text_read(et_text *text, const char *name, uint64_t offset, size_t count,
                       et_error *error);

/* The same, and draws the embedding from `seed`. */
et_status et_text_open(et_text *text, const char *name, uint64_t offset, size_t count, size_t d,
                       uint64_t seed, et_error *error);
void et_text_free(et_text *text); /* accepts zeros */

/* The vector of byte t: out [d], with root mean square 1. */
void et_text_vector(const et_text *text, size_t t, double *out);

#endif
