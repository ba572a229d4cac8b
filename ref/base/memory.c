/* memory.c: allocation with overflow checks. See memory.h. */
#include "ref/base/memory.h"

#include <stdint.h>
#include <stdlib.h>

bool et_size_mul(size_t a, size_t b, size_t *out)
{
    if (b != 0 && a > SIZE_MAX / b) return false;
    *out = a * b;
    return true;
}

et_status et_allocate(void **out, size_t count, size_t size, const char *what, et_error *error)
{
    size_t bytes;
    if (!et_size_mul(count, size, &bytes))
        return et_fail(error, ET_ENOMEM, "%s: %zu elements of %zu bytes exceed the address space",
                       what, count, size);
    void *room = calloc(bytes ? bytes : 1, 1);
    if (room == NULL) return et_fail(error, ET_ENOMEM, "%s: no memory for %zu bytes", what, bytes);
    *out = room;
    return ET_OK;
}
