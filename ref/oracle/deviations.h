/* deviations.h: the noise.* tensors of a bundle, computed. Internal. */
#ifndef ET_DEVIATIONS_H
#define ET_DEVIATIONS_H

#include "etref/bundle.h"

/* The standard deviations of a step's tensors, under the names and types that a bundle gives them.
 * The tensors point into the struct: do not copy it. */
typedef struct et_deviations {
    et_step step; /* every computed real array holds standard deviations */
    size_t count;
    et_tensor_out tensors[ET_MAX_STEP_TENSORS]; /* in the table's order */
    char names[ET_MAX_STEP_TENSORS][48];
} et_deviations;

/* Of the real tensors that `s` computed (those of a lean bundle, if asked). ET_EINVAL, ET_ENOMEM: as
 * et_step_noise; there is nothing to free then. */
et_status et_deviations_compute(et_deviations *d, const et_step *s, bool lean, const et_profile *p,
                                et_error *error);
void et_deviations_free(et_deviations *d); /* accepts zeros */

/* The row of the tensor whose noise this is: "noise.fwd.y" gives that of fwd.y; NULL if a bundle has
 * no such noise. */
const et_tensor_doc *et_noise_doc_find(const char *name);

#endif
