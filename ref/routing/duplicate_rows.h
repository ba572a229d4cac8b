/* duplicate_rows.h: rows that are equal, for ties. Internal. */
#ifndef ET_DUPLICATE_ROWS_H
#define ET_DUPLICATE_ROWS_H

#include "etref/real.h"
#include "etref/status.h"

#include <stddef.h>
#include <stdint.h>

/* first [N] = the first row of x [N,d] that equals row t; -0 equals +0. ET_ENOMEM. */
et_status et_find_duplicate_rows(size_t N, size_t d, const et_real *x, int32_t *first,
                                 et_error *error);

#endif
