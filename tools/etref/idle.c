/* idle.c: see idle.h. */
#include "tools/etref/idle.h"
#include "etref/routing.h"
#include "ref/report/describe_case.h"
#include "ref/step/case_kinds.h"

#include <stdio.h>

/* Token choice: nothing was over the capacity. */
static bool drops_nothing(char *out, size_t room, const et_step *s)
{
    const et_case *c = &s->c;
    size_t chosen = 0;
    for (size_t i = 0; i < c->tokens * c->experts; i++) chosen += s->route.chosen[i];
    if (s->assignment.slots < chosen) return false;
    snprintf(out, room, "capacity_factor %g drops nothing: no expert is chosen more than %zu times; a smaller one drops",
             c->capacity_factor, et_case_token_capacity(c));
    return true;
}

/* Expert threshold: no expert was clamped. */
static bool clamps_nobody(char *out, size_t room, const et_step *s)
{
    const et_case *c = &s->c;
    size_t N = et_case_real_tokens(c), count = c->micro_batches * c->experts;
    if (!c->has_capacity || (c->given && !c->eval)) return false;
    if (s->route.chosen) return drops_nothing(out, room, s);
    if (!et_case_routes_by_threshold(c) || c->eval) {
        snprintf(out, room, "capacity_factor %g clamps no expert: %s", c->capacity_factor,
                 c->eval ? "evaluation has no capacity" : "a step of the warm-up routes by choice");
        return true;
    }
    et_capacity bounds = et_capacity_bounds(c->target_load, c->capacity_factor, N);
    size_t least = N, most = 0;
    for (size_t i = 0; i < count; i++) {
        size_t passed = (size_t)s->route.passed[i];
        least = passed < least ? passed : least;
        most = passed > most ? passed : most;
    }
    if (least < bounds.lower || most > bounds.upper) return false;
    snprintf(out, room,
             "capacity_factor %g clamps no expert: %zu to %zu tokens pass a threshold, and %zu to %zu may; a smaller "
             "one clamps sooner",
             c->capacity_factor, least, most, bounds.lower, bounds.upper);
    return true;
}

/* What says nothing whatever the tensors hold. */
static void describe_words(char *out, size_t room, const et_case *c)
{
    if (has_groups(c) && c->groups_kept == c->groups)
        et_append(out, room, "%sgroups_kept %zu excludes no expert: all groups are kept", out[0] ? "; " : "", c->groups_kept);
    if (has_aux_loss(c) && c->balance_coef == 0)
        et_append(out, room, "%sbalance_coef 0 balances nothing: the loss counts for nothing", out[0] ? "; " : "");
    if (is_moe(c) && c->rule == ET_ET && c->sync_after_warmup && c->warmup_steps == 0)
        et_append(out, room, "%ssync_after_warmup changes nothing: there is no warm-up", out[0] ? "; " : "");
}

bool describe_idle(char *out, size_t room, const et_step *s)
{
    out[0] = '\0';
    clamps_nobody(out, room, s);
    describe_words(out, room, &s->c);
    return out[0] != '\0';
}
