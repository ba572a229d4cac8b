/* independent_errors.h: how many independent errors a group has. Internal; see independent_errors.c. */
#ifndef ET_INDEPENDENT_ERRORS_H
#define ET_INDEPENDENT_ERRORS_H

#include "ref/bars/group_sums.h"

/* Of pairs of replicas, each of two that make the same choices by other chances; some tensors, one behind the other. */
typedef struct et_changes {
    size_t runs;    /* that have been noted */
    float *first;   /* errors of a pair's first replica */
    float *before;  /* the change from there to the second, of the last pair; zeros */
    et_real *a, *b; /* of one tensor: what et_changes_note leaves, see there */
} et_changes;

/* Room for `count` elements, of which one tensor has `most`. To be freed also after ET_ENOMEM. */
et_status et_changes_make(et_changes *c, size_t count, size_t most, et_error *error);
void et_changes_free(et_changes *c); /* accepts zeros */

/* One tensor of a run: its `count` elements, from `from` on of all. After each pair but the first one `pair` says what
 * et_sum_groups is to be asked: of its sums eu is d d', ee d^2, uu d'^2, d and d' being the changes of the last two pairs.
 * false: not yet. The caller counts c->runs. */
bool et_changes_note(et_changes *c, size_t from, size_t count, const et_errors *run,
                     et_errors *pair);

/* Of one group, over the runs. */
typedef struct et_coherence {
    double products, squares; /* sum of (sum d d')^2, and of (sum d^2)(sum d'^2) */
    double elements, count;   /* of the group; of such products */
} et_coherence;

void et_coherence_note(et_coherence *c, const et_group_sums *pair);

/* n/m: how many elements err as one. 0 where chance had no say. */
double et_coherence_of(const et_coherence *c);

#endif
