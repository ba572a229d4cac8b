/* memory.h: the one place where the library allocates. Internal.
 *
 * Every allocation goes through calloc, so that a test can make each of them fail in turn by
 * wrapping one symbol, and so that a buffer never holds what another run left behind.
 */
#ifndef ET_MEMORY_H
#define ET_MEMORY_H

#include "etref/status.h"
#include <stdbool.h>
#include <stddef.h>

/* out = a*b; false, and out untouched, if the product does not fit in a size_t. */
bool et_size_mul(size_t a, size_t b, size_t *out);

/* Zeroed room for count elements of `size` bytes; never NULL on ET_OK, even for count = 0.
 * `what` names the thing in the message. Released with free. */
et_status et_allocate(void **out, size_t count, size_t size, const char *what, et_error *error);

#endif
