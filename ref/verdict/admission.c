/* admission.c: is the candidate what it says it is? Part 6 of the verdict (etref/verify.h), first half.
 *
 * Before anything is judged: every tensor has a name of this case, once, its type is float where the
 * table says so and integer elsewhere, and its shape is the golden's. Rows of slots are the
 * candidate's own business: their number follows from its own routing and is checked when that is
 * known; without a routing it is judged like a value. A candidate may repeat in.*, as a copy of the
 * golden with its own values would; then these must be the golden's, or it computed something else.
 *
 * candidate.c checks the same of a file, and says so with the file's name; here callers of the
 * library are checked, who bring arrays.
 *
 * Left out: values of outputs, which are judged and not checked (NaN is a mismatch, not an error); but a mask
 * holds 0 and 1.
 */
#include "ref/step/tensors.h"
#include "ref/verdict/judge.h"

#include <stdio.h>
#include <string.h>

static et_status wrong_shape(const et_tensor_out *got, const et_tensor_out *must, const char *why,
                             et_error *error)
{
    if (got->rank > ET_MAX_RANK)
        return et_fail(error, ET_EINVAL, "candidate: %s has %zu dimensions, must have %zu",
                       got->name, got->rank, must->rank);
    return et_fail(error, ET_EINVAL, "candidate: %s has the shape %s, must be %s%s", got->name,
                   et_shape_show(got->rank, got->shape).text,
                   et_shape_show(must->rank, must->shape).text, why);
}

/* ---- one tensor ---- */

static et_status check_type(const et_tensor_out *t, const et_tensor_doc *doc, et_error *error)
{
    bool real = strcmp(doc->type, "case") == 0 || doc->type[0] == 'F';
    bool floats = et_dtype_significand(t->dtype) > 0;
    if (t->source > ET_FROM_U8 || floats != et_tensor_is_real(t))
        return et_fail(error, ET_EINVAL, "candidate: %s is %s, but its values in memory are not",
                       t->name, et_dtype_name(t->dtype));
    if (real != floats)
        return et_fail(error, ET_EINVAL, "candidate: %s is %s, must be of %s type", t->name,
                       et_dtype_name(t->dtype), real ? "a float" : "an integer");
    return ET_OK;
}

static et_status check_shape(const et_step *golden, const et_tensor_out *t,
                             const et_tensor_doc *doc, const et_tensor_out *own, et_error *error)
{
    if (t->rank > ET_MAX_RANK || !et_tensor_fits(golden, doc, t->rank, t->shape))
        return wrong_shape(t, own, "", error);
    if (t->values == NULL && et_tensor_count(t) > 0)
        return et_fail(error, ET_EINVAL, "candidate: %s has no values", t->name);
    return ET_OK;
}

static et_status check_input(const et_tensor_out *t, const et_tensor_out *own, et_error *error)
{
    for (size_t i = 0; i < et_tensor_count(t); i++) {
        double got = et_tensor_element(t, i), want = et_tensor_element(own, i);
        /* as the candidate's type holds it: in.ema is stored in 64 bits, and read in 32 by most */
        if (!(got == want || got == et_round_to_dtype(want, t->dtype)))
            return et_fail(error, ET_EINVAL,
                           "candidate: %s[%zu] = %.9g is not the golden's %.9g; its values were "
                           "computed from other inputs",
                           t->name, i, got, want);
    }
    return ET_OK;
}

static et_status check_mask(const et_tensor_out *t, et_error *error)
{
    size_t n = t->shape[1];
    for (size_t i = 0; i < et_tensor_count(t); i++) {
        double got = et_tensor_element(t, i);
        if (got != 0 && got != 1)
            return et_fail(error, ET_EINVAL,
                           "candidate: route.mask is %.9g at token %zu, expert %zu; 0 or 1 belongs "
                           "there",
                           got, i / n, i % n);
    }
    return ET_OK;
}

et_status et_admit(const et_judgement *j, et_error *error)
{
    for (size_t i = 0; i < j->count; i++) {
        const et_tensor_out *t = &j->candidate[i];
        if (t->name == NULL)
            return et_fail(error, ET_EINVAL, "candidate: tensor %zu has no name", i);
        et_tensor_id id = et_tensor_find(t->name);
        if (id == ET_NO_TENSOR)
            return et_fail(error, ET_EINVAL,
                           "candidate: tensor '%s' is not one of a bundle; 'etref list tensors' "
                           "shows them",
                           t->name);
        et_tensor_out golden = et_tensor_view(j->golden, id);
        if (golden.values == NULL)
            return et_fail(error, ET_EINVAL, "candidate: case '%s' has no %s", j->golden->c.name,
                           t->name);
        if (et_tensor_named(j->candidate, i, t->name) != NULL)
            return et_fail(error, ET_EINVAL, "candidate: %s is given twice", t->name);
        et_status status = check_type(t, &et_tensors[id].doc, error);
        if (status == ET_OK)
            status = check_shape(j->golden, t, &et_tensors[id].doc, &golden, error);
        if (status == ET_OK && et_is_input(id)) status = check_input(t, &golden, error);
        if (status == ET_OK && id == ET_ROUTE_MASK) status = check_mask(t, error);
        if (status != ET_OK) return status;
    }
    return ET_OK;
}

et_status et_admit_slots(const et_judgement *j, const et_assignment *assignment, et_error *error)
{
    et_step view = *j->golden; /* for its shapes */
    view.assignment = *assignment;
    for (size_t i = 0; i < j->count; i++) {
        const et_tensor_out *t = &j->candidate[i];
        et_tensor_id id = et_tensor_find(t->name);
        et_tensor_out must = et_tensor_view(&view, id);
        if (et_rows_are(et_tensors[id].doc.shape, "S") && !et_same_shape(t, &must))
            return wrong_shape(t, &must, ": a row for each slot of its own routing", error);
    }
    return ET_OK;
}

/* ---- what was required ---- */

static bool fits(const char *pattern, const char *name)
{
    size_t length = strlen(pattern);
    bool prefix = length > 0 && pattern[length - 1] == '*';
    return prefix ? strncmp(name, pattern, length - 1) == 0 : strcmp(name, pattern) == 0;
}

/* The golden's tensors that `pattern` names: with a '*' of the outputs that a lean bundle has, if it names any there. */
static size_t named_by(const et_judgement *j, const char *pattern,
                       et_tensor_out named[ET_MAX_STEP_TENSORS])
{
    size_t count = 0;
    bool family = strchr(pattern, '*') != NULL;
    for (int lean = family; count == 0 && lean >= 0; lean--) {
        et_tensor_out all[ET_MAX_STEP_TENSORS];
        size_t have = et_step_tensors(j->golden, lean, all);
        for (size_t i = 0; i < have; i++)
            if (fits(pattern, all[i].name) && !(family && et_is_input(et_tensor_find(all[i].name))))
                named[count++] = all[i];
    }
    return count;
}

bool et_is_required(const et_judgement *j, const char *name)
{
    for (size_t i = 0; i < j->options->require_count; i++) {
        et_tensor_out named[ET_MAX_STEP_TENSORS];
        size_t count = named_by(j, j->options->require[i], named);
        if (et_tensor_named(named, count, name)) return true;
    }
    return false;
}

et_status et_find_missing(et_verdict *v, const et_judgement *j, et_error *error)
{
    et_tensor_out all[ET_MAX_STEP_TENSORS];
    for (size_t i = 0; i < j->options->require_count; i++)
        if (named_by(j, j->options->require[i], all) == 0)
            return et_fail(error, ET_EINVAL, "required: case '%s' has no %s", j->golden->c.name,
                           j->options->require[i]);
    v->missing_count = 0;
    size_t have = et_step_tensors(j->golden, false, all);
    for (size_t i = 0; i < have; i++) {
        if (!et_is_required(j, all[i].name)) continue;
        if (et_tensor_named(j->candidate, j->count, all[i].name)) continue;
        v->missing[v->missing_count++] = et_tensor_doc_find(all[i].name)->name;
    }
    return ET_OK;
}
