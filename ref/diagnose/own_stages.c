/* own_stages.c: what fails, from the candidate's own numbers, under another profile.
 *
 * A profile says how every stage errs by itself, and not only end to end. So a candidate that is honest under it passes
 * stage by stage, too: few bits of sums, which widen every bar that comes behind them, do not explain a stage that sums
 * nothing. Of sums in few bits themselves the bars know too little (rounding_hypotheses.c): of them are asked those stages that they
 * leave as they are.
 */
#include "ref/diagnose/diagnosis.h"

#include <math.h>

/* Do both profiles round a tensor's stage alike? To a tenth: one bit less makes a rounding's part of V four times what it
 * was. */
static bool is_untouched(const et_bars *a, const et_bars *b, const char *name)
{
    et_tensor_id id = et_tensor_find(name);
    const et_real *V = et_tensor_values(&a->alone->variance, id);
    const et_real *W = et_tensor_values(&b->alone->variance, id);
    et_tensor_out t = et_tensor_view(&a->alone->variance, id);
    double sum = 0, other = 0;
    for (size_t i = 0; V && W && i < et_tensor_count(&t); i++) {
        if (!isfinite((double)V[i] + (double)W[i])) continue;
        sum += (double)V[i];
        other += (double)W[i];
    }
    return fabs(sum - other) <= 0.1 * other;
}

et_status et_stages_pass_under(const et_profile *p, const et_diagnosis *q, const et_bars *bars,
                               bool *pass, et_error *error)
{
    const et_judgement *own = q->j;
    *pass = true;
    if (!own->made || own->alone || !bars->alone) return ET_OK;
    bool of_sums = p->bits[ET_ACCUMULATOR] < own->options->profile->bits[ET_ACCUMULATOR];
    const et_given given = et_given_by_candidate(own);
    const et_rounding kernel = {.profile = p};
    et_step made = {0};
    et_verify_options options = *own->options;
    et_judgement j = *own;
    options.profile = p;
    j.options = &options;
    j.bars = bars;
    j.given = &given;
    j.made = &made;
    j.visit = NULL;
    et_status status =
        et_stages_run(&made, own->reference, &given, &kernel, false, options.max_bytes, error);
    for (size_t i = 0; status == ET_OK && *pass && i < q->wrong_count; i++) {
        const et_tensor_out *got = q->wrong[i]->got;
        if (of_sums && !is_untouched(bars, own->bars, got->name)) continue;
        status = et_stage_passes(&j, (size_t)(got - own->candidate), pass, error);
    }
    et_step_free(&made);
    return status;
}
