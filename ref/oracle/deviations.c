/* deviations.c: standard deviations for a bundle. See deviations.h.
 *
 * et_step_noise gives variances, since variances add; a reader of a bundle wants error bars.
 */
#include "ref/oracle/deviations.h"

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

enum { PREFIX = sizeof ET_NOISE_PREFIX - 1 };

static bool is_input(const char *name)
{
    return strncmp(name, "in.", 3) == 0;
}

const et_tensor_doc *et_noise_doc_find(const char *name)
{
    if (strncmp(name, ET_NOISE_PREFIX, PREFIX) != 0) return NULL;
    const et_tensor_doc *doc = et_tensor_doc_find(name + PREFIX);
    bool real = doc != NULL && strcmp(doc->type, "F64") == 0;
    return real && !is_input(doc->name) ? doc : NULL;
}

static size_t elements(const et_tensor_out *t)
{
    size_t count = 1;
    for (size_t i = 0; i < t->rank; i++) count *= t->shape[i];
    return count;
}

static void take_roots(et_real *values, size_t count)
{
    const et_real least = (et_real)FLT_TRUE_MIN;
    for (size_t i = 0; i < count; i++) {
        et_real root = (et_real)sqrt((double)values[i]);
        values[i] = root > 0 && root < least ? least : root;
    }
}

/* The table's pointers are const for its many readers; these arrays are ours to change. */
static void add_tensor(et_deviations *d, const et_tensor_out *variance)
{
    char *name = d->names[d->count];
    et_tensor_out *t = &d->tensors[d->count++];
    take_roots((et_real *)(uintptr_t)variance->values, elements(variance));
    *t = *variance;
    snprintf(name, sizeof d->names[0], ET_NOISE_PREFIX "%s", variance->name);
    t->name = name;
    t->dtype = ET_F32;
}

et_status et_deviations_compute(et_deviations *d, const et_step *s, bool lean, const et_profile *p,
                                et_error *error)
{
    et_tensor_out variances[ET_MAX_STEP_TENSORS];
    d->count = 0;
    et_status status = et_step_noise(&d->step, s, p, error);
    if (status != ET_OK) return status;
    size_t count = et_step_tensors(&d->step, lean, variances);
    for (size_t i = 0; i < count; i++) {
        bool real = variances[i].source == ET_FROM_F64 || variances[i].source == ET_FROM_F32;
        if (real && !is_input(variances[i].name)) add_tensor(d, &variances[i]);
    }
    return ET_OK;
}

void et_deviations_free(et_deviations *d)
{
    et_step_free(&d->step);
    d->count = 0;
}
