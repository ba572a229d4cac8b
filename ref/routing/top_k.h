/* top_k.h: the k best of a list, the one decision that TC, EC, the cutoffs and the capacity share.
 * Internal.
 *
 * Order: higher score first; among equal scores (as real numbers: -0 equals +0) the lower index.
 */
#ifndef ET_TOP_K_H
#define ET_TOP_K_H

#include "etref/real.h"
#include <stddef.h>
#include <stdint.h>

typedef struct et_ranked {
    et_real score;
    int32_t index;
} et_ranked;

/* Rearranges items[0..count) so that the `k` best come first, in order, and the best of the others
 * (if any) stands at items[k]. Scores must not be NaN. Expected time O(count + k log k). */
void et_top(et_ranked *items, size_t count, size_t k);

/* items[j] = (scores[j*step], j) */
void et_rank(et_ranked *items, size_t count, const et_real *scores, size_t step);

/* The margins of a top-k choice, to be written by the caller to each item's place: of a chosen one
 * its distance to the best refused, of a refused one to the worst chosen; +-inf where there is
 * none. Call on items that et_top has arranged. */
et_real et_top_margin(const et_ranked *items, size_t count, size_t k, size_t position);

#endif
