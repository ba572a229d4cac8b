/* ffn.h: the feed-forward layer for those who have checked it. Internal; see etref/ffn.h.
 *
 * The public functions check the struct and call these; a layer of many experts checks once.
 */
#ifndef ET_FFN_H
#define ET_FFN_H

#include "etref/ffn.h"

void et_ffn_values(const et_ffn *f, size_t m, const et_real *x, et_real *H, et_real *A,
                   et_real *out);
void et_ffn_gradients(const et_ffn *f, size_t m, const et_real *x, const et_real *H,
                      const et_real *A, const et_real *dO, et_real *dA, et_real *dH, et_real *dup,
                      et_real *ddown, bool accumulate_dx, et_real *dx);

#endif
