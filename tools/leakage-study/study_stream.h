/* study_stream.h: endless batches of router scores, for studies of pools and thresholds.
 *
 *     normal    independent deviates N(0,1): what theory is about
 *     text      bytes of a text as contextual vectors, scored by a random router; a batch is made of
 *               sequences of 128 bytes from random places, so its tokens repeat and resemble each
 *               other, as a language model's do
 *     drifting  the same deviates, while each expert's mean walks at random, 0.005 a batch: a router
 *               that is being trained; what differs from normal differs by the walk alone
 */
#ifndef ETREF_TOOL_STUDY_STREAM_H
#define ETREF_TOOL_STUDY_STREAM_H

#include "etref/real.h"
#include "etref/status.h"
#include <stddef.h>
#include <stdint.h>

typedef enum stream_kind { STREAM_NORMAL, STREAM_TEXT, STREAM_DRIFTING, STREAM_KINDS } stream_kind;
extern const char *const stream_names[STREAM_KINDS];

typedef struct score_stream {
    stream_kind kind;
    size_t experts, bytes;
    uint64_t seed, drawn; /* how many batches since the beginning */
    et_real *table;       /* text: [bytes,n], the scores of every byte of the text */
    double *center;       /* drifting: [n] */
    char name[64];        /* of the random numbers */
} score_stream;

/* `text`: a file, for the stream of that kind. ET_EIO: it cannot be read; ET_EINVAL: too short. On
 * failure there is nothing to free. */
et_status stream_open(score_stream *s, stream_kind kind, size_t experts, uint64_t seed,
                      const char *text, et_error *error);
void stream_close(score_stream *s); /* accepts zeros */

/* Begins anew, with random numbers of this label's own. */
void stream_begin(score_stream *s, const char *label, size_t number);

/* r [N,n]: the next batch. The same for any number of threads. */
void stream_next(score_stream *s, size_t N, et_real *r);

#endif
