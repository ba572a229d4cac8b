/* shelf.c: references and error bars, kept for the next candidate, profile or hypothesis that asks. See judge.h. */
#include "ref/base/memory.h"
#include "ref/oracle/decide.h"
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

static bool same_profile(const et_profile *a, const et_profile *b)
{
    return strcmp(a->name, b->name) == 0 && memcmp(a->bits, b->bits, sizeof a->bits) == 0 &&
           a->exponent_bits == b->exponent_bits && a->ftz == b->ftz &&
           a->truncate_operands == b->truncate_operands &&
           a->truncate_accumulator == b->truncate_accumulator &&
           a->accumulator_chunk == b->accumulator_chunk && a->flush_operands == b->flush_operands &&
           a->flush_products == b->flush_products && a->stochastic == b->stochastic;
}

static void clear(et_shelved *x)
{
    if (!x->filled) return;
    et_bars_free(&x->bars);
    et_step_free(&x->step);
    free(x->mask);
    *x = (et_shelved){.filled = false};
}

void et_show_state(et_step *s, int32_t *updates)
{
    if (!s->c.eval) return;
    s->state_ema = s->in.ema;
    s->state_bias = s->in.bias;
    *updates = (int32_t)s->c.ema_updates;
    s->state_updates = s->in.ema ? updates : NULL;
}

/* What was used longest ago, and is not in use now; or NULL. */
static et_shelved *find_oldest(et_shelf *s)
{
    et_shelved *oldest = NULL;
    for (size_t i = 0; i < ET_SHELVES; i++) {
        et_shelved *x = &s->places[i];
        if (x->filled && x->users == 0 && (!oldest || x->last_use < oldest->last_use)) oldest = x;
    }
    return oldest;
}

/* An empty place; NULL: all are in use. */
static et_shelved *make_room(et_shelf *s)
{
    for (size_t i = 0; i < ET_SHELVES; i++)
        if (!s->places[i].filled) return &s->places[i];
    et_shelved *oldest = find_oldest(s);
    if (oldest) clear(oldest);
    return oldest;
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

static et_status fill(et_shelved *x, const et_shelf *s, const uint8_t *mask, const et_profile *p,
                      size_t max_bytes, et_bars_progress *progress, void *user, et_error *error)
{
    et_status status = ET_OK;
    *x = (et_shelved){.profile = *p, .filled = true};
    if (mask) status = run_with(x, s, mask, max_bytes, error);
    if (status == ET_OK)
        status = et_bars_make(&x->bars, et_shelved_step(s, x), &x->profile, max_bytes, progress,
                              user, error);
    if (status != ET_OK) clear(x);
    return status;
}

const et_step *et_shelved_step(const et_shelf *s, const et_shelved *taken)
{
    return taken->mask ? &taken->step : s->golden;
}

et_status et_shelf_take(et_shelf *s, const uint8_t *mask, const et_profile *p, size_t max_bytes,
                        et_bars_progress *progress, void *user, et_shelved **taken, et_error *error)
{
    et_shelved *x = NULL;
    if (mask && same_mask(s, mask, s->golden->route.mask)) mask = NULL;
    for (size_t i = 0; i < ET_SHELVES && !x; i++) {
        et_shelved *y = &s->places[i];
        if (y->filled && same_profile(&y->profile, p) && same_mask(s, y->mask, mask)) x = y;
    }
    *taken = NULL;
    if (!x) {
        x = make_room(s);
        if (!x) return et_fail(error, ET_ENOMEM, "error bars: %d kinds in use at once", ET_SHELVES);
        et_status status = fill(x, s, mask, p, max_bytes, progress, user, error);
        if (status != ET_OK) return status;
    }
    x->users++;
    x->last_use = ++s->takings;
    *taken = x;
    return ET_OK;
}

/* What an entry takes, roughly: V, and the step that it is of. */
static size_t size_of(const et_shelved *x)
{
    return x->filled ? x->bars.variance.bytes + x->step.bytes : 0;
}

void et_shelf_give_back(et_shelf *s, et_shelved *taken)
{
    const size_t most = (size_t)256 << 20;
    size_t all = 0;
    if (!taken) return;
    taken->users--;
    for (size_t i = 0; i < ET_SHELVES; i++) all += size_of(&s->places[i]);
    while (all > most) {
        et_shelved *oldest = find_oldest(s);
        if (!oldest) return;
        all -= size_of(oldest);
        clear(oldest);
    }
}

void et_shelf_free(et_shelf *s)
{
    for (size_t i = 0; i < ET_SHELVES; i++) clear(&s->places[i]);
}
