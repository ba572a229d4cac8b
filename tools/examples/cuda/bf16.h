/* bf16.h: the upper half of a float: 8 significand bits, float's range. For storage only; sums and
 * products are taken in float. In two dozen lines, so that the example compiles without CUDA's
 * headers, too. */
#ifndef ET_EXAMPLE_BF16_H
#define ET_EXAMPLE_BF16_H

#include "block.h"
#include <cstdint>

struct bf16 {
    uint16_t bits;

    bf16() = default;
    /* To nearest, ties to even: half of the last place, less one unit where the upper half is even,
     * carries into the upper half exactly where it must. NaN stays NaN. */
    ANYWHERE explicit bf16(float value)
    {
        uint32_t word;
        memcpy(&word, &value, sizeof word);
        if (value != value)
            bits = (uint16_t)(word >> 16 | 0x40);
        else
            bits = (uint16_t)((word + 0x7fff + (word >> 16 & 1)) >> 16);
    }
    ANYWHERE operator float() const
    {
        uint32_t word = (uint32_t)bits << 16;
        float value;
        memcpy(&value, &word, sizeof value);
        return value;
    }
};

#endif
