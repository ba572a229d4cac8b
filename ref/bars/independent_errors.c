/* independent_errors.c: how many independent errors a group has. See independent_errors.h.
 *
 * Two replicas that make the same choices differ by chance alone. Let d be by how much, in units of sqrt(V), and d' the same
 * of two others. Of n elements with correlations r_ij
 *
 *     E (sum d d')^2 = sum_ij E(d_i d_j) E(d'_i d'_j) = s^4 sum_ij r_ij^2,        E sum d^2 = n s^2
 *
 * and m = n^2 / sum r_ij^2 is the number of independent errors of which as much is to be expected: n if all are independent,
 * n/k if k at a time are one and the same. Errors themselves do not serve: most of a replica's are the same in all of them,
 * since a number far from half way between two has but one way to go.
 */
#include "ref/bars/independent_errors.h"
#include "ref/base/lanes.h"
#include "ref/base/memory.h"

#include <math.h>
#include <stdlib.h>

et_status et_changes_make(et_changes *c, size_t count, size_t most, et_error *error)
{
    void *floats, *reals;
    *c = (et_changes){0};
    et_status status = et_allocate(&floats, count, 2 * sizeof(float), "changes", error);
    if (status != ET_OK) return status;
    c->first = floats;
    c->before = c->first + count;
    if ((status = et_allocate(&reals, most, 2 * sizeof(et_real), "changes", error))) return status;
    c->a = reals;
    c->b = c->a + most;
    return ET_OK;
}

void et_changes_free(et_changes *c)
{
    free(c->first);
    free(c->a);
    *c = (et_changes){0};
}

static void keep(size_t count, const et_real *got, const et_real *want, float *first)
{
    for (size_t i = 0; i < count; i++) first[i] = (float)((double)got[i] - (double)want[i]);
}

/* Out come two changes, as a = d + d' and b = d'. */
ET_LANES static void step_on(size_t count, const et_real *got, const et_real *want,
                             const float *first, float *before, et_real *a, et_real *b)
{
    for (size_t i = 0; i < count; i++) {
        float d = (float)((double)got[i] - (double)want[i]) - first[i];
        b[i] = (et_real)before[i];
        a[i] = (et_real)d + b[i];
        before[i] = d;
    }
}

bool et_changes_note(et_changes *c, size_t from, size_t count, const et_errors *run,
                     et_errors *pair)
{
    if (c->runs % 2 == 0) {
        keep(count, run->got, run->want, c->first + from);
        return false;
    }
    step_on(count, run->got, run->want, c->first + from, c->before + from, c->a, c->b);
    *pair = (et_errors){.got = c->a, .want = c->b, .variance = run->variance};
    return c->runs > 1;
}

void et_coherence_note(et_coherence *c, const et_group_sums *pair)
{
    c->products += pair->eu * pair->eu;
    c->squares += pair->ee * pair->uu;
    c->elements = pair->n;
    c->count++;
}

double et_coherence_of(const et_coherence *c)
{
    return c->squares > 0 ? c->products / c->squares * c->elements : 0;
}
