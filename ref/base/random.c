/* random.c: Philox4x32-10 and the deviates drawn from it. See etref/random.h.
 *
 * A counter-based generator has no state to carry: it is a keyed bijection of 128-bit words, used
 * as a table of random numbers that is computed where it is looked up. Distinct counters under one
 * key therefore never share a number by construction; what remains is to give every number that
 * anybody may ask for a counter of its own:
 *
 *     word 0, word 1   the element's index, low and high half
 *     word 2, word 3   62 bits of the name's hash; above them, in word 3's two top bits, the block
 *
 *     block 0          et_uniform: lane l is output word l
 *     blocks 1, 2, 3   et_normal: their 3 * 4 output words are the 12 uniforms
 *
 *     key              the seed, low and high half
 *
 * Two names of one seed share their numbers only if their 62 bits agree: for the few dozen tensors
 * of a case the odds are below 2^-50.
 *
 * Source: Salmon, Moraes, Dror, Shaw: Parallel random numbers: as easy as 1, 2, 3 (SC 2011),
 * section 3.3 (multipliers, key increments); Fowler, Noll, Vo: FNV-1a, 64 bits.
 *
 * Left out: jumping, seeding from time, any distribution that needs a transcendental function.
 */
#include "etref/random.h"

/* One round: two 32x32 -> 64 bit products; their high halves are mixed with key and neighbour,
 * their low halves change places. A few rounds spread each word over all the others. */
static void philox_round(uint32_t word[4], const uint32_t key[2])
{
    uint64_t even = UINT64_C(0xD2511F53) * word[0];
    uint64_t odd = UINT64_C(0xCD9E8D57) * word[2];
    uint32_t first = (uint32_t)(odd >> 32) ^ word[1] ^ key[0];
    uint32_t third = (uint32_t)(even >> 32) ^ word[3] ^ key[1];
    word[0] = first;
    word[1] = (uint32_t)odd;
    word[2] = third;
    word[3] = (uint32_t)even;
}

void et_philox(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4])
{
    /* Copied first, so that `out` may be `counter`. */
    uint32_t word[4] = {counter[0], counter[1], counter[2], counter[3]};
    uint32_t round_key[2] = {key[0], key[1]};
    for (int round = 0; round < 10; round++) {
        philox_round(word, round_key);
        round_key[0] += UINT32_C(0x9E3779B9); /* Weyl sequence: golden ratio - 1 */
        round_key[1] += UINT32_C(0xBB67AE85); /* sqrt(3) - 1 */
    }
    for (int i = 0; i < 4; i++) out[i] = word[i];
}

et_stream et_stream_open(uint64_t seed, const char *name)
{
    uint64_t hash = UINT64_C(0xcbf29ce484222325);
    for (const char *c = name; *c; c++) hash = (hash ^ (unsigned char)*c) * UINT64_C(0x100000001b3);
    return (et_stream){.seed = seed, .name_hash = hash};
}

/* Four random words: element `index`, block 0 to 3 (table above). */
static void draw(et_stream stream, uint64_t index, unsigned block, uint32_t out[4])
{
    /* 64 bits of hash are folded to 62: the two top bits are added in at the bottom. */
    uint64_t hash = (stream.name_hash & (UINT64_MAX >> 2)) ^ (stream.name_hash >> 62);
    uint32_t counter[4] = {(uint32_t)index, (uint32_t)(index >> 32), (uint32_t)hash,
                           (uint32_t)(hash >> 32) | (uint32_t)block << 30};
    uint32_t key[2] = {(uint32_t)stream.seed, (uint32_t)(stream.seed >> 32)};
    et_philox(counter, key, out);
}

double et_uniform(et_stream stream, uint64_t index, unsigned lane)
{
    uint32_t words[4];
    draw(stream, index, 0, words);
    return (words[lane & 3] + 0.5) * 0x1p-32; /* 33 bits and a power of two: exact */
}

double et_normal(et_stream stream, uint64_t index)
{
    /* sum of (j + 1/2) / 2^32, less 6  =  (sum of j + 6 - 6 * 2^32) / 2^32. The bracket is an
     * integer below 2^36, so the one floating-point operation is a division by a power of two. */
    int64_t sum = 6 - 6 * (INT64_C(1) << 32);
    for (unsigned block = 1; block <= 3; block++) {
        uint32_t words[4];
        draw(stream, index, block, words);
        for (int i = 0; i < 4; i++) sum += words[i];
    }
    return (double)sum * 0x1p-32;
}
