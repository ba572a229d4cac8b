/* sizes.h: sizes drawn for a test. */
#ifndef ETREF_TESTS_SIZES_H
#define ETREF_TESTS_SIZES_H

#include "etref/random.h"

#include <math.h>

/* A whole number from lo to hi, about uniform in its logarithm. */
static inline uint64_t any_size(et_stream stream, uint64_t index, unsigned lane, double lo,
                                double hi)
{
    double x = lo * pow(hi / lo, et_uniform(stream, index, lane));
    return (uint64_t)fmin(hi, fmax(lo, floor(x)));
}

#endif
