/* hold.h: a tensor held against its bars. Internal. */
#ifndef ET_HOLD_H
#define ET_HOLD_H

#include "ref/bars/bars.h"

/* How far one group of a tensor is from what replicas have there; an allowance of 0: not judged. */
typedef struct et_held {
    const char *kind; /* et_kind_name, or "part": a summand */
    size_t elements;
    double slope, slope_allowed;   /* beyond the mean of replicas and 0; */
    double spread, spread_allowed; /* Q, and the most that it may be */
} et_held;

typedef void et_held_visit(void *user, const et_held *group);

/* Calls `visit` for every group of at least LEAST elements of tensor `row` of the table, whose errors against the
 * reference of `b` are e; *farthest becomes the largest |e| / sqrt(V), infinite where V = 0 and e is not. ET_ENOMEM. */
et_status et_hold(const et_replica_bars *b, size_t row, const et_errors *e, double *farthest,
                  et_held_visit *visit, void *user, et_error *error);

#endif
