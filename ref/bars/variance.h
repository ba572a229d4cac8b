/* variance.h: variances from mean squares. Internal to this room. */
#ifndef ET_VARIANCE_H
#define ET_VARIANCE_H

#include "ref/bars/group_sums.h"

/* So many runs stand behind the shape. */
enum { ET_PRIOR = 16 };

/* m [rows, columns], the mean square error of so many replicas, becomes V (variance.c). slots [rows, columns]: marks two
 * kinds of elements; NULL: all are of one. ET_ENOMEM. */
et_status et_smooth_variance(const et_cut *g, const et_real *u, const uint8_t *slots, et_real *m,
                             double replicas, et_error *error);

#endif
