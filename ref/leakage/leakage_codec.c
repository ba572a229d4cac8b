/* leakage_codec.c: any selection, written into scores that look back only. See etref/leakage.h.
 *
 * Algorithm 2 halves a bracket [l,u] once per token. After t tokens u - l = 2^-t and
 *     l = sum over s <= t of (1 - z_s) 2^-s,
 * because l moves, by 2^-s, exactly at the refused ones. So l's binary digits are the decisions,
 * negated, and the next score l + 2^-(t+1) is the same digits followed by a 1.
 *
 * Why the k = sum z taken tokens are the top k: u never rises and l never falls, so a taken score,
 * where u once was, is at least the last u, and a refused score at most the last l < u. For the
 * decoder x = l: z_t = [r_t > x]. Each of the C(N,k) sets has a cutoff of its own, so expert choice
 * can tell a batch's first token log2 C(N,k) bits about its last ones (paper, Theorem A.3).
 *
 * Finite precision. Once a token f is refused, l has its leading digit at place f, f <= t, and u is
 * at most 2^-(f-1): the type's numbers around the bracket lie 2^-(f+p-1) apart (or 2^-e, where that
 * is coarser). While u - l is at least twice that, the midpoint is exact; when u and l are
 * neighbours it rounds to one of them, and the bracket has stopped to tell decisions apart. To the
 * nearest even, that is after f+p-1 tokens; before a refusal the midpoints are powers of two, down
 * to 2^-e. An example of what breaks, p = 8 and N = 9: z = 011111111 ends with a score
 * 1/2 + 2^-9, which rounds to 1/2, the score of the refused first token, which wins the tie.
 *
 * Source: paper, Appendix A, Algorithm 2. Left out: coding the set in its log2 C(N,k) bits; the
 * cutoff has N digits, but takes no more than C(N,k) values.
 */
#include "etref/leakage.h"
#include "ref/base/float_environment.h"
#include "ref/base/memory.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

/* ---- exact ---- */

static bool any_one(size_t digits, const char *a)
{
    return memchr(a, '1', digits) != NULL;
}

int et_codec_compare(size_t digits_a, const char *a, size_t digits_b, const char *b)
{
    size_t both = digits_a < digits_b ? digits_a : digits_b;
    int order = both > 0 ? memcmp(a, b, both) : 0;
    if (order != 0) return order > 0 ? 1 : -1;
    if (digits_a > both) return any_one(digits_a - both, a + both);
    if (digits_b > both) return -any_one(digits_b - both, b + both);
    return 0;
}

void et_codec_cutoff(size_t N, const uint8_t *z, char *cutoff)
{
    for (size_t t = 0; t < N; t++) cutoff[t] = z[t] ? '0' : '1';
}

void et_codec_score(size_t t, const uint8_t *z, char *score)
{
    et_codec_cutoff(t, z, score);
    score[t] = '1';
}

et_status et_codec_decode(size_t N, const char *cutoff, uint8_t *z, et_error *error)
{
    for (size_t t = 0; t < N; t++)
        if (cutoff[t] != '0' && cutoff[t] != '1')
            return et_fail(error, ET_EINVAL, "codec: character %zu of the cutoff is '%c'; 0 or 1",
                           t, cutoff[t]);
    /* The score of token t is the decisions before it, negated, and a 1. Each decision was made equal to its
     * digit of the cutoff, so score and cutoff agree up to place t. There the score has its 1: it is above a
     * cutoff that has a 0, and not above one that has a 1, whatever follows. */
    for (size_t t = 0; t < N; t++) z[t] = et_codec_compare(1, "1", 1, cutoff + t) > 0;
    return ET_OK;
}

/* ---- in a float type ---- */

typedef struct bracket {
    double l, u;
} bracket;

/* One rounding, to the nearest even, straight to the type. For the narrow types l + u is exact in
 * double, and halving too; in double the sum rounds, and halving is exact but for the smallest
 * subnormal, whose half rounds to 0. */
static double midpoint(bracket b, et_dtype type)
{
    return et_round_to_dtype((b.l + b.u) / 2, type);
}

static void move(bracket *b, double score, bool taken)
{
    *(taken ? &b->u : &b->l) = score;
}

static et_status check_type(et_dtype type, et_error *error)
{
    if (et_dtype_significand(type) > 0) return ET_OK;
    return et_fail(error, ET_EINVAL, "codec: no scores in %s; F64, F32, F16 or BF16",
                   et_dtype_name(type));
}

et_status et_codec_encode_in(et_dtype type, size_t N, const uint8_t *z, double *scores,
                             double *cutoff, size_t *carried, et_error *error)
{
    ET_ARITHMETIC;
    et_status status = check_type(type, error);
    if (status != ET_OK) return status;
    bracket b = {0, 1};
    *carried = 0;
    for (size_t t = 0; t < N; t++) {
        scores[t] = midpoint(b, type);
        *carried += scores[t] > b.l && scores[t] < b.u; /* once at an end, always at an end */
        move(&b, scores[t], z[t] != 0);
    }
    *cutoff = b.l;
    return ET_OK;
}

et_status et_codec_decode_in(et_dtype type, size_t N, double cutoff, uint8_t *z, et_error *error)
{
    ET_ARITHMETIC;
    et_status status = check_type(type, error);
    if (status != ET_OK) return status;
    bracket b = {0, 1};
    for (size_t t = 0; t < N; t++) {
        double score = midpoint(b, type);
        z[t] = score > cutoff;
        move(&b, score, z[t]);
    }
    return ET_OK;
}

/* How often a bracket can be halved if every token goes the same way. */
static size_t halvings(et_dtype type, bool taken)
{
    bracket b = {0, 1};
    size_t count = 0;
    for (;;) {
        double score = midpoint(b, type);
        if (!(score > b.l && score < b.u)) return count;
        move(&b, score, taken);
        count++;
    }
}

et_status et_codec_reach(et_dtype type, size_t *every, size_t *some, et_error *error)
{
    ET_ARITHMETIC;
    et_status status = check_type(type, error);
    if (status != ET_OK) return status;
    *every = halvings(type, false);
    *some = halvings(type, true);
    return ET_OK;
}
