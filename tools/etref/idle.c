/* idle.c: see idle.h. */
#include "tools/etref/idle.h"
#include "etref/routing.h"

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

bool describe_idle(char *out, size_t room, const et_step *s)
{
    const et_case *c = &s->c;
    size_t N = et_case_real_tokens(c), count = c->micro_batches * c->experts;
    out[0] = '\0';
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
