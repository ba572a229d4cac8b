/* sample.h: how the next byte is drawn, and how a text with its fanouts is printed. */
#ifndef ETREF_TOOL_SAMPLE_H
#define ETREF_TOOL_SAMPLE_H

#include "etref/real.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct sampler {
    double temperature, top_p;
    uint64_t seed;
} sampler;

/* One of V words, of which `logits` are given; draw number `index` of the seed. temperature 0: the
 * likeliest, of equal ones the first. Else of softmax(logits / temperature), cut to the likeliest
 * words that together have at least top_p, and at least one. V at most 256. */
size_t sample_next(const sampler *s, uint64_t index, size_t V, const et_real *logits);

/* Prints bytes as the characters that they are together. */
typedef struct printer {
    double usual; /* fanout that tokens have on average: the scale of colours */
    bool colors;
    int shown;              /* the colour in force; 0: none */
    unsigned char bytes[4]; /* a character's, as long as it is not whole */
    size_t count, wanted;
    double fanout; /* the largest of these bytes */
} printer;

void print_legend(printer *p); /* only where there are colours */
void print_byte(printer *p, unsigned char byte, double fanout);
void print_end(printer *p);

#endif
