/* replica.h: running replicas. Internal to this room. */
#ifndef ET_REPLICA_H
#define ET_REPLICA_H

#include "ref/bars/bars.h"

/* The reference once more, with its own assignment and these roundings. The caller frees it, also on
 * failure. ET_ENOMEM. */
et_status et_replica_run(et_step *replica, const et_step *reference, const et_rounding *rounding,
                         size_t max_bytes, et_error *error);

/* m [rows, columns], the mean square error of so many replicas, becomes V (variance.c). slots [rows, columns]: marks two
 * kinds of elements; NULL: all are of one. ET_ENOMEM. */
et_status et_smooth_variance(const et_cut *g, const et_real *u, const uint8_t *slots, et_real *m,
                             double replicas, et_error *error);

#endif
