/* explain_model.c: why a layer of the model around the experts, or an optimiser, failed; and experts on several ranks. See
 * judge.h.
 *
 * Each mistake of the catalogue that the layer can have (faults_model.c, faults_ranks.c) makes a step of its own, and the
 * candidate is judged against that, under the error bars of the right one. A mistake under which every tensor passes explains
 * the verdict; where none does, and no other profile would pass, what is wrong is described (unexplained.c).
 */
#include "ref/base/memory.h"
#include "ref/step/decide.h"
#include "ref/step/case_kinds.h"
#include "ref/verdict/judge.h"
#include "ref/diagnose/diagnosis.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

/* Variances for a tensor's numbers w in place of u: errors are as large for their size as those of the right ones are (two
 * last places, if these are exact), and where a number has become another one, by more than its deviation, as its tensor's are. *exact: all of the
 * tensor's right numbers are. */
static et_status take_variances(et_real **V, bool *exact, const et_judgement *j,
                                const et_tensor_out *right, const et_tensor_out *wrong,
                                et_error *error)
{
    void *room;
    size_t count = et_tensor_count(right);
    const et_real *own = et_variance_named(j->bars, right->name);
    double noise = 0, signal = 0, size = 0;
    int bits = et_place_bits(j->options->profile, et_tensors[et_tensor_find(right->name)].place);
    et_status status = et_allocate(&room, count, sizeof **V, "explanation", error);
    *V = status == ET_OK ? room : NULL;
    for (size_t i = 0; i < count && status == ET_OK; i++) {
        double u = et_tensor_element(right, i), w = et_tensor_element(wrong, i);
        if (!isfinite((double)own[i]) || !isfinite(u) || !isfinite(w)) continue;
        noise += (double)own[i];
        signal += u * u;
        size += w * w / (double)count;
    }
    *exact = noise == 0;
    for (size_t i = 0; i < count && status == ET_OK; i++) {
        double u = et_tensor_element(right, i), w = et_tensor_element(wrong, i), D = w - u;
        double rho = fmax(signal > 0 ? noise / signal : 0, ldexp(1, 2 - 2 * bits));
        (*V)[i] = (et_real)((double)own[i] +
                            (D * D > (double)own[i] ? rho * (w * w + 4 * D * D + size) : 0));
    }
    return status;
}

static et_status passes(const et_judgement *j, size_t index, const et_step *wrong, bool *does,
                        et_error *error)
{
    et_tensor_id id = et_tensor_find(j->candidate[index].name);
    et_tensor_out right = et_tensor_view(j->reference, id), other = et_tensor_view(wrong, id);
    if (!other.values) wrong = j->reference, other = right; /* the state in evaluation */
    et_tensor_verdict out = {0};
    et_real *V = NULL;
    bool exact = false;
    bool noisy = et_tensor_is_real(&right) && et_variance_named(j->bars, right.name);
    et_status status = noisy ? take_variances(&V, &exact, j, &right, &other, error) : ET_OK;
    if (status == ET_OK) status = et_judge_tensor(j, index, wrong, V, &out, error);
    free(V);
    /* of smaller groups nothing is known where exact numbers have become others */
    *does = out.outcome != ET_MISMATCH || (out.failed == 0 && (exact || out.whole.pass));
    return status;
}

/* Does every tensor of the candidate pass as one of `wrong`? */
static et_status passes_as(const et_judgement *j, const et_step *wrong, bool *all, et_error *error)
{
    et_status status = ET_OK;
    *all = true;
    for (size_t i = 0; i < j->count && *all && status == ET_OK; i++)
        if (!et_is_input(et_tensor_find(j->candidate[i].name)))
            status = passes(j, i, wrong, all, error);
    return status;
}

/* Room of a layer of the model, whose arrays the mistake fills; of experts, a step that it runs. */
static et_status begin(et_step *wrong, const et_step *right, et_error *error)
{
    if (!is_ffn(&right->c)) {
        et_status status = et_step_take_like(wrong, right, error);
        wrong->engine = ET_BLAS;
        return status;
    }
    *wrong = et_step_like(right);
    wrong->max_bytes = 0;
    wrong->given_mask = right->route.mask;
    return ET_OK;
}

static et_status try_mistake(const et_judgement *j, const et_hypothesis *what, size_t variant,
                             bool *explains, et_error *error)
{
    et_step wrong;
    et_status status = begin(&wrong, j->reference, error);
    if (status == ET_OK) status = what->layer(&wrong, j->reference, variant, error);
    wrong.in = j->reference->in;
    if (status == ET_OK) status = passes_as(j, &wrong, explains, error);
    et_step_free(&wrong);
    return status;
}

/* Of work: one other profile's bars, or one mistake. */
static bool goes_on(void *user)
{
    return et_budget_allows(user, ET_PROFILE_BARS);
}

et_status et_explain_by_layers(et_verdict *v, const et_judgement *j, et_budget *budget,
                               et_error *error)
{
    const et_hypothesis *what;
    et_status status = ET_OK;
    for (size_t i = 0; status == ET_OK && (what = et_hypothesis_row(i)) != NULL; i++) {
        const char *form;
        if (what->nature != ET_BY_LAYER || !what->applies(j->reference)) continue;
        for (size_t k = 0; status == ET_OK && (form = et_hypothesis_form(what, k)) != NULL; k++) {
            bool explains = false;
            if (!et_budget_allows(budget, ET_JUDGEMENT)) continue;
            status = try_mistake(j, what, k, &explains, error);
            if (!explains || v->explanation_count == ET_MAX_EXPLANATIONS) continue;
            et_explanation *e = &v->explanations[v->explanation_count++];
            *e = (et_explanation){.name = what->doc.name, .sentence = what->doc.sentence};
            snprintf(e->scope, sizeof e->scope, "%s", *form ? form : "everywhere");
            snprintf(e->explains, sizeof e->explains, "everything");
        }
    }
    return status;
}

/* What is wrong, where nothing explains it. */
static et_status describe(et_verdict *v, const et_judgement *j, et_error *error)
{
    et_diagnosis q;
    et_status status = et_diagnosis_open(&q, v, j, error);
    if (status != ET_OK) return status;
    status = et_describe_residual(&q, error);
    et_diagnosis_close(&q);
    return status;
}

et_status et_explain_model(et_verdict *v, const et_judgement *j, et_error *error)
{
    const et_profile *other;
    et_budget budget;
    et_budget_open(&budget, j->options->explain_seconds);
    et_status status = et_find_passing_profile(&other, j, goes_on, &budget, error);
    if (status == ET_OK && other) v->passes_under = other->name;
    if (status == ET_OK) status = et_explain_by_layers(v, j, &budget, error);
    et_budget_report(&budget, v);
    bool named = v->explanation_count > 0 || v->passes_under;
    return status == ET_OK && !named ? describe(v, j, error) : status;
}
