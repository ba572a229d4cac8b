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

/* Is the first dimension of a row's shape in letters this one? "[n,h,d]" has "n"; "[n+1]" has "n+1" and not "n". */
bool et_rows_are(const char *shape, const char *letter);

/* The row of the table with this name, or the number of rows. */
size_t et_tensor_row(const char *name);

/* The row of the tensor whose noise this is: "noise.fwd.y" gives that of fwd.y; NULL if a bundle has
 * no such noise. */
const et_tensor_doc *et_noise_doc_find(const char *name);

/* "[2,3]" into a buffer, for messages. */
void et_shape_print(size_t rank, const size_t *shape, char *to, size_t room);

#endif
