/* kept_references.c: references and error bars, kept for the next candidate, profile or hypothesis that asks. See judge.h. */
#include "ref/base/memory.h"
#include "ref/step/decide.h"
#include "ref/verdict/judge.h"

#include <stdlib.h>
#include <string.h>

static bool same_mask(const et_shelf *s, const uint8_t *a, const uint8_t *b)
{
    size_t places = s->golden->c.tokens * s->golden->c.experts, i = 0;
    if (!a || !b) return a == b;
    while (i < places && (a[i] != 0) == (b[i] != 0)) i++;
    return i == places;
}

static void discard(et_shelved *x)
{
    et_bars_free(&x->bars);
    et_step_free(&x->step);
    free(x->mask);
    free(x);
}

/* The layer once more, with an assignment that is not the rule's. */
static et_status run_with(et_shelved *x, const et_shelf *s, const uint8_t *mask, size_t max_bytes,
                          et_error *error)
{
    const et_step *golden = s->golden;
    size_t places = golden->c.tokens * golden->c.experts;
    void *room;
    et_status status = et_allocate(&room, places, 1, "assignment", error);
    if (status != ET_OK) return status;
    x->mask = memcpy(room, mask, places);
    x->step = et_step_like(golden);
    x->step.max_bytes = max_bytes;
    x->step.bytes = 0;
    x->step.block = golden->block;
    x->step.given_mask = x->mask;
    status = et_step_run(&x->step, ET_BLAS, NULL, NULL, error);
    et_show_state(&x->step, &x->updates);
    return status;
}

static et_status make(et_shelved **made, const et_shelf *s, const uint8_t *mask,
                      const et_profile *p, size_t max_bytes, et_bars_progress *progress, void *user,
                      et_error *error)
{
    void *room;
    et_status status = et_allocate(&room, 1, sizeof **made, "error bars", error);
    if (status != ET_OK) return status;
    et_shelved *x = room;
    bool found = false;
    x->profile = *p;
    if (mask) status = run_with(x, s, mask, max_bytes, error);
    if (!mask && s->stored)
        status = et_bars_read(&x->bars, &found, s->golden, &x->profile, s->stored, error);
    if (status == ET_OK && !found)
        status = et_bars_make(&x->bars, et_shelved_step(s, x), &x->profile, max_bytes, progress,
                              user, error);
    if (status == ET_OK)
        *made = x;
    else
        discard(x);
    return status;
}

const et_step *et_shelved_step(const et_shelf *s, const et_shelved *taken)
{
    return taken->mask ? &taken->step : s->golden;
}

et_status et_shelf_take(et_shelf *s, const uint8_t *mask, const et_profile *p, size_t max_bytes,
                        et_bars_progress *progress, void *user, et_shelved **taken, et_error *error)
{
    et_shelved *x = s->first;
    et_status status = ET_OK;
    if (mask && same_mask(s, mask, s->golden->route.mask)) mask = NULL;
    while (x && !(et_profile_equals(&x->profile, p) && same_mask(s, x->mask, mask))) x = x->next;
    *taken = NULL;
    if (!x) {
        status = make(&x, s, mask, p, max_bytes, progress, user, error);
        if (status != ET_OK) return status;
        x->next = s->first;
        s->first = x;
    }
    x->users++;
    x->last_use = ++s->takings;
    *taken = x;
    return ET_OK;
}

/* What an entry takes, roughly: V, and the step that it is of. */
static size_t size_of(const et_shelved *x)
{
    return x->bars.variance.bytes + x->step.bytes;
}

/* The link to what was used longest ago, and is not in use now; or NULL. */
static et_shelved **find_oldest(et_shelf *s)
{
    et_shelved **oldest = NULL;
    for (et_shelved **at = &s->first; *at; at = &(*at)->next)
        if ((*at)->users == 0 && (!oldest || (*at)->last_use < (*oldest)->last_use)) oldest = at;
    return oldest;
}

void et_shelf_give_back(et_shelf *s, et_shelved *taken)
{
    const size_t most = (size_t)256 << 20;
    size_t all = 0;
    et_shelved **oldest;
    if (!taken) return;
    taken->users--;
    for (const et_shelved *x = s->first; x; x = x->next) all += size_of(x);
    while (all > most && (oldest = find_oldest(s)) != NULL) {
        et_shelved *x = *oldest;
        *oldest = x->next;
        all -= size_of(x);
        discard(x);
    }
}

void et_shelf_free(et_shelf *s)
{
    while (s->first) {
        et_shelved *x = s->first;
        s->first = x->next;
        discard(x);
    }
}
