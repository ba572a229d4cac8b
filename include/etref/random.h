/* random.h: the random numbers of generated inputs.
 *
 * Philox4x32-10 (Salmon, Moraes, Dror, Shaw: Parallel random numbers: as easy as 1, 2, 3, SC 2011):
 * a counter goes in, 128 random bits come out, so element i of a tensor can be drawn without
 * drawing those before it. Key: the seed. Counter: the element's index and a hash of the tensor's
 * name, so that a new tensor or a longer one never shifts another. Uniforms and normals of one
 * stream come from different counters and are independent of each other (table in random.c).
 */
#ifndef ETREF_RANDOM_H
#define ETREF_RANDOM_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

/* One application of Philox4x32-10: out = bijection of `counter` under `key`. out may be counter.
 */
void et_philox(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]);

/* A stream: the numbers of one (seed, name). */
typedef struct et_stream {
    uint64_t seed;
    uint64_t name_hash; /* FNV-1a, 64 bits */
} et_stream;

et_stream et_stream_open(uint64_t seed, const char *name);

/* Uniform on the 2^32 values (j + 1/2) / 2^32, j = 0 .. 2^32 - 1; exact. Element `index`, and one
 * of four independent `lane`s (0 to 3) for those who need several numbers for one element. Only the
 * two low bits of `lane` count. */
double et_uniform(et_stream stream, uint64_t index, unsigned lane);

/* A nearly normal deviate: the sum of 12 such uniforms minus 6. Mean 0, variance 1 - 2^-64,
 * |value| < 6, fourth moment 2.9 (the normal's: 3). Exact in binary64, no transcendental function,
 * hence the same on every machine. */
double et_normal(et_stream stream, uint64_t index);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
#endif
