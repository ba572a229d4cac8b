/* stages_alone.h: each stage of a step by itself, from given numbers. Internal.
 *
 * End to end, a tensor has the errors of all that it is computed from, and a mistake in its own stage may hide
 * in them. Where a kernel shows what the stage starts from, the stage can be judged from the kernel's own
 * numbers: what it makes of them is known to the last bit, and only its own roundings are left.
 */
#ifndef ET_STAGES_ALONE_H
#define ET_STAGES_ALONE_H

#include "etref/rounding.h"
#include "etref/step.h"
#include "ref/step/tensors.h"

/* Numbers that a kernel shows, by id; values NULL: it does not. Those of one shape with the reference's. */
typedef struct et_given {
    et_tensor_out tensor[ET_TENSORS];
    bool gates_follow; /* gates that it does not show are made from its logits, on the way to dr */
} et_given;

/* All real tensors of a step but its inputs. */
et_given et_given_by(const et_step *s);

/* Can the tensor be judged by itself? Numbers stand at its stage's start, not the step's inputs alone; and
 * where `given` is not NULL, all of them are there. */
bool et_stands_alone(const et_step *reference, const et_given *given, et_tensor_id id);

/* *made: the reference's arrays once more, each as its stage makes it from what is given, and else from what is made.
 * What a kernel shows is not always what it used:
 *
 *     it shows more bits than it uses    given numbers are taken in the format of their place
 *     it used more bits than it shows    `by_chance`, for replicas: what is given is moved, by up to half an ulp of that
 *                                        format, equal numbers alike. What is of the format in the reference already
 *                                        would have been stored as it is, and stays.
 *
 * kernel: its roundings, of whose mode nothing is used. max_bytes: of the run; 0: no limit. The caller frees *made, also on
 * failure. ET_ENOMEM. */
et_status et_stages_run(et_step *made, const et_step *reference, const et_given *given,
                        const et_rounding *kernel, bool by_chance, size_t max_bytes,
                        et_error *error);

#endif
