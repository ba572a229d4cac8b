/* candidate.h: what a kernel computed, read from a file or from memory for et_verify.
 *
 * A candidate is a safetensors file with any subset of a bundle's tensors, in any order: real ones
 * as F64, F32, BF16 or F16, integers and masks in any integer type (masks as BOOL, too). Slots may
 * be as many as its own routing makes. What it may also hold, and what is not judged:
 *
 *     in.*       must equal the golden's inputs: a kernel that was given others is no candidate
 *     noise.*    of a bundle with noise; ignored
 *     metadata   all of it optional; a `case` must be the golden's, but for name and hunts
 */
#ifndef ETREF_CANDIDATE_H
#define ETREF_CANDIDATE_H

#include "etref/array.h"
#include "etref/bundle.h"
#include "etref/safetensors.h"
#include "etref/step.h"

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

/* The file's tensor `mine` is to be judged as the bundle's tensor `name`. */
typedef struct et_alias {
    const char *mine, *name;
} et_alias;

typedef struct et_candidate {
    size_t count;
    et_tensor_out tensors[ET_MAX_STEP_TENSORS]; /* for et_verify, in the file's order */
    void *values[ET_MAX_STEP_TENSORS];          /* what they point at, owned; NULL: the caller's */
    size_t inputs, ignored;                     /* tensors of the file that are not judged */
    size_t bytes;                               /* taken by values */
} et_candidate;

/* Reads a candidate for `golden`, which et_step_run has filled. Names, types, shapes and the
 * limit `max_bytes` (0: none) are checked before memory is taken. ET_EINVAL: a tensor that no bundle
 * or not this case has, given twice, of a wrong shape or type; an integer beyond 32 bits; an alias
 * that names nothing; other inputs or another case than the golden's; nothing to judge. ET_EIO,
 * ET_ENOMEM. The message begins with the file's name. On failure there is nothing to free. */
et_status et_candidate_read(et_candidate *c, const et_tensor_file *file, const et_step *golden,
                            const et_alias *aliases, size_t alias_count, size_t max_bytes,
                            et_error *error);

/* The same from memory, under the bundle's names. Values of F64, F32, I32, U8 and BOOL are not
 * copied: they must live as long as the candidate. The message begins with "candidate: ". ET_EINVAL
 * also for an array without a name, type or values. */
et_status et_candidate_take(et_candidate *c, const et_array *arrays, size_t count,
                            const et_step *golden, size_t max_bytes, et_error *error);

void et_candidate_free(et_candidate *c); /* accepts zeros */

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
#endif
