/* gate.h: gates as a kernel computes them. Internal; the golden's are etref/gate.h. */
#ifndef ET_LAYERS_GATE_H
#define ET_LAYERS_GATE_H

#include "etref/gate.h"
#include "etref/rounding.h"

/* As et_gate_forward and et_gate_backward, which have kernel NULL; but what comes out is rounded by
 * the caller: p as a gate, dr as a logit. */
void et_gate_forward_rounded(const et_rounding *kernel, et_gate gate, size_t N, size_t n,
                             const et_real *r, et_real *p, et_real *anchor);
void et_gate_backward_rounded(const et_rounding *kernel, et_gate gate, size_t N, size_t n,
                              const et_real *r, const et_real *p, const et_real *anchor,
                              const et_real *dp, const et_real *danchor, et_real *dr);

#endif
