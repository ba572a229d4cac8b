/* tensors.h: what only the library asks the table of tensors. Internal. */
#ifndef ET_TENSORS_H
#define ET_TENSORS_H

#include "etref/bundle.h"

/* True if a kernel's output for the case of `s` may have this shape: that of the row, where the
 * number of slots, and of padded rows and blocks, is what the kernel's own routing makes it, at most
 * every token on every expert. */
bool et_tensor_fits(const et_step *s, const et_tensor_doc *doc, size_t rank, const size_t *shape);

/* Element i of a tensor as a double, whatever its source. */
double et_tensor_element(const et_tensor_out *t, size_t i);

/* "[2,3]" into a buffer, for messages. */
void et_shape_print(size_t rank, const size_t *shape, char *to, size_t room);

#endif
