/* group_bars.h: what is noted of a group over the runs, and made of it. Internal. */
#ifndef ET_GROUP_BARS_H
#define ET_GROUP_BARS_H

#include "ref/bars/independent_errors.h"
#include "ref/bars/group_sums.h"

/* What replicas say of a group. */
typedef struct et_group_bar {
    double n, uu;                                /* elements, sum u^2/V */
    double slope, slope_sd, slope_systematic;    /* of S: mean, deviation, what is systematic */
    double spread, spread_sd, spread_systematic; /* of Q */
} et_group_bar;

/* Of one group's S or Q over the runs. */
typedef struct et_moments {
    double sum, squares, count;
} et_moments;

typedef struct et_tally {
    et_moments slope, spread;
    et_coherence coherence;
    double some;                          /* the largest spread of those that leave out roundings */
    double nearest_slope, nearest_spread; /* rounded to nearest: what is no matter of chance */
} et_tally;

/* What is done with a group's sums of one run: of a replica that leaves nothing out, of one that leaves out roundings, of the
 * run that rounds to nearest, which comes last. */
typedef void et_note(et_tally *all, const et_group_sums *s);
et_note et_note_all, et_note_some, et_note_nearest;

/* The bars of groups first .. end, which are of one kind and have n and uu; tallies [groups]. */
void et_settle_kind(et_group_bar *bars, const et_tally *tallies, size_t first, size_t end);

/* S and Q scatter at least as independent errors do: of which there are as many as the tallies say, n/alike, and as there
 * are different numbers, by the tensor's marks (group_sums.h). */
void et_widen_kind(const et_cut *grid, et_group_kind kind, et_group_bar *bars,
                   const et_tally *tallies, const uint16_t *marks);
void et_widen(et_group_bar *bar, double alike, double different);

#endif
