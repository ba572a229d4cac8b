/* bits.h: a binary64 number as its bit pattern, and back. Internal. */
#ifndef ET_BITS_H
#define ET_BITS_H

#include <stdint.h>
#include <string.h>

static inline uint64_t to_bits(double value)
{
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static inline double from_bits(uint64_t bits)
{
    double value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

#endif
