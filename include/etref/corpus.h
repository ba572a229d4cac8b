/* corpus.h: a text as tokens: the bytes of any file.
 *
 * The last twentieth, at least one sequence and its target, is held out; training draws sequences
 * from what comes before. A batch is a function of seed and step alone: there is no state to save.
 * The file stays on disk: it may be larger than memory.
 */
#ifndef ETREF_CORPUS_H
#define ETREF_CORPUS_H

#include "etref/status.h"
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

typedef struct et_corpus {
    int descriptor;
    char path[4096];
    size_t sequence;         /* T */
    uint64_t bytes, trained; /* of the file; of its first part, that is trained on */
    uint64_t hash;           /* FNV-1a of all bytes: says whether two runs had the same text */
} et_corpus;

/* ET_EIO: cannot be opened or read, or is no regular file; ET_EINVAL: has less than 2 (T + 1)
 * bytes. On success the caller closes it. */
et_status et_corpus_open(et_corpus *c, const char *path, size_t sequence, et_error *error);
void et_corpus_close(et_corpus *c);

/* tokens [rows,T+1] out: sequences drawn for rows first_row, first_row + 1, .. of stream `seed`;
 * step s of R rows takes the rows from s R on. ET_EIO: the file cannot be read, or has become
 * shorter. */
et_status et_corpus_draw(const et_corpus *c, uint64_t seed, uint64_t first_row, size_t rows,
                         int32_t *tokens, et_error *error);

/* The held-out sequences: T tokens after T tokens, each with its target. */
size_t et_corpus_held(const et_corpus *c);

/* Where the `batch`-th of `batches` batches, of `rows` sequences each, begins if they are spread evenly over the held-out
 * sequences: chapters of a text differ by more than models do. */
size_t et_corpus_spread(const et_corpus *c, size_t rows, size_t batch, size_t batches);

/* tokens [rows,T+1] out: held-out sequences first, first + 1, .., counted on from the beginning
 * after the last. Errors as above. */
et_status et_corpus_read_held(const et_corpus *c, size_t first, size_t rows, int32_t *tokens,
                              et_error *error);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
#endif
