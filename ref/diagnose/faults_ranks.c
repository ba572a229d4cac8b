/* faults_ranks.c: mistakes of several ranks.
 *
 * As in faults_model.c, each is a function that fills a step as a kernel with that mistake would: here `wrong` comes with the
 * inputs and the assignment of the right one, and has not been run.
 */
#include "ref/base/memory.h"
#include "ref/step/decide.h"
#include "ref/step/case_kinds.h"
#include "ref/diagnose/faults.h"

#include <stdlib.h>
#include <string.h>

static ET_SHOWS(of_ep, is_ep(&s->c));
static ET_SHOWS(of_many_ep, is_ep(&s->c) && s->c.ranks > 1);
static ET_SHOWS(of_local_numbers, of_many_ep(s) && s->c.experts > s->c.ranks);
static ET_SHOWS(of_many, has_ranks(&s->c) && s->c.ranks > 1);

static et_status run(et_step *wrong, et_error *error)
{
    return et_step_run(wrong, ET_BLAS, NULL, NULL, error);
}

/* Numbers [n,size] of experts, expert i's at (i + by) mod n, in room that the caller frees; NULL of NULL. */
static et_status rotated(et_real **to, const et_step *s, size_t size, size_t by, const et_real *from,
                         et_error *error)
{
    size_t n = s->c.experts;
    void *room = NULL;
    *to = NULL;
    if (from == NULL) return ET_OK;
    et_status status = et_allocate(&room, n * size, sizeof(et_real), "explanation", error);
    for (size_t i = 0; i < n && status == ET_OK; i++)
        memcpy((et_real *)room + (i + by) % n * size, from + i * size, size * sizeof(et_real));
    *to = room;
    return status;
}

/* ---- tables ---- */

static et_status splits_transposed(et_step *wrong, const et_step *right, size_t variant,
                                   et_error *error)
{
    size_t R = right->c.ranks, local = right->c.experts / R;
    et_status status = run(wrong, error);
    (void)variant;
    for (size_t g = 0; g < R * local * R && status == ET_OK; g++) {
        size_t s = g / (local * R), j = g / R % local, q = g % R;
        wrong->plan.send_counts[g] = right->plan.send_counts[(q * local + j) * R + s];
    }
    return status;
}

static et_status global_number(et_step *wrong, const et_step *right, et_error *error)
{
    et_status status = run(wrong, error);
    for (size_t i = 0; i < right->plan.slots && status == ET_OK; i++)
        wrong->plan.local_expert[i] = right->assignment.slot_expert[right->plan.send_slot[i]];
    return status;
}

/* ---- another rank ---- */

/* The layer with expert e as number e + n/R: what a plan makes of it goes to the next rank. */
typedef struct renumbered {
    et_step s;
    et_real *rooms[6];
    uint8_t *mask;
} renumbered;

static void end_renumbered(renumbered *r)
{
    et_step_free(&r->s);
    for (size_t i = 0; i < sizeof r->rooms / sizeof *r->rooms; i++) free(r->rooms[i]);
    free(r->mask);
}

static et_status renumber(renumbered *r, const et_step *right, et_error *error)
{
    size_t n = right->c.experts, d = right->c.d_model, by = n / right->c.ranks, at = 0;
    size_t size = right->c.d_expert * d;
    *r = (renumbered){.s = et_step_like(right)};
    r->s.max_bytes = 0;
    struct {
        et_real **array;
        size_t size;
    } of_experts[] = {{&r->s.in.router, d}, {&r->s.in.up, size},  {&r->s.in.down, size},
                      {&r->s.in.ema, 1},    {&r->s.in.bias, 1}, {&r->s.in.load, 1}};
    et_status status =
        et_allocate((void **)&r->mask, right->c.tokens * n, 1, "explanation", error);
    for (; at < sizeof of_experts / sizeof *of_experts && status == ET_OK; at++) {
        status = rotated(&r->rooms[at], right, of_experts[at].size, by, *of_experts[at].array,
                         error);
        *of_experts[at].array = r->rooms[at];
    }
    for (size_t i = 0; i < right->c.tokens * n && status == ET_OK; i++)
        r->mask[i / n * n + (i % n + by) % n] = right->route.mask[i];
    r->s.given_mask = r->mask;
    return status == ET_OK ? run(&r->s, error) : status;
}

/* Slots by the right numbers. */
static void rename_slots(const et_step *right, const et_step *other, size_t count, int32_t *slots)
{
    const et_assignment *a = &right->assignment, *b = &other->assignment;
    size_t n = a->experts, by = n / right->c.ranks;
    for (size_t i = 0; i < count; i++) {
        if (slots[i] < 0) continue;
        size_t e = ((size_t)b->slot_expert[slots[i]] + n - by) % n;
        int32_t slot = a->expert_offsets[e];
        while (a->slot_token[slot] != b->slot_token[slots[i]]) slot++;
        slots[i] = slot;
    }
}

static void take_send_side(et_parallel_plan *to, const et_parallel_plan *from)
{
    memcpy(to->send_counts, from->send_counts, to->ranks * to->experts * sizeof(int32_t));
    memcpy(to->send_slot, from->send_slot, to->slots * sizeof(int32_t));
    memcpy(to->local_token, from->local_token, to->slots * sizeof(int32_t));
    memcpy(to->local_expert, from->local_expert, to->slots * sizeof(int32_t));
}

static void take_both_sides(et_step *to, renumbered *r, const et_step *right)
{
    size_t rows = right->assignment.slots * right->c.d_model;
    size_t copies = right->plan.copies * right->c.d_model;
    et_parallel_plan before = to->plan, *p = &to->plan;
    *p = r->s.plan;
    r->s.plan = before; /* freed with it */
    rename_slots(right, &r->s, p->slots, p->recv_slot);
    rename_slots(right, &r->s, p->ranks * p->padded, p->recv_padded);
    memcpy(to->rank.x_recv, r->s.rank.x_recv, rows * sizeof(et_real));
    memcpy(to->rank.dout_recv, r->s.rank.dout_recv, rows * sizeof(et_real));
    memcpy(to->rank.partial, r->s.rank.partial, copies * sizeof(et_real));
    memcpy(to->rank.dx_partial, r->s.rank.dx_partial, copies * sizeof(et_real));
}

/* Rows come to the next rank, whose experts take them for their own. */
static et_status next_ranks_weights(et_step *wrong, const et_step *right, et_error *error)
{
    size_t n = right->c.experts, by = n / right->c.ranks;
    size_t size = right->c.d_expert * right->c.d_model;
    et_real *up = NULL, *down = NULL, *dup = NULL, *ddown = NULL;
    et_status status = rotated(&up, right, size, n - by, right->in.up, error);
    if (status == ET_OK) status = rotated(&down, right, size, n - by, right->in.down, error);
    if (status == ET_OK) {
        wrong->in.up = up;
        wrong->in.down = down;
        status = run(wrong, error);
    }
    if (status == ET_OK) status = rotated(&dup, right, size, by, wrong->bwd.up, error);
    if (status == ET_OK) status = rotated(&ddown, right, size, by, wrong->bwd.down, error);
    if (status == ET_OK) {
        memcpy(wrong->bwd.up, dup, n * size * sizeof(et_real));
        memcpy(wrong->bwd.down, ddown, n * size * sizeof(et_real));
    }
    et_real *rooms[] = {up, down, dup, ddown};
    for (size_t i = 0; i < sizeof rooms / sizeof *rooms; i++) free(rooms[i]);
    return status;
}

static et_status next_rank(et_step *wrong, const et_step *right, size_t variant, et_error *error)
{
    renumbered r;
    if (variant == 1) return next_ranks_weights(wrong, right, error);
    et_status status = run(wrong, error);
    if (status != ET_OK) return status;
    status = renumber(&r, right, error);
    if (status == ET_OK) {
        rename_slots(right, &r.s, r.s.plan.slots, r.s.plan.send_slot);
        if (variant == 0) take_both_sides(wrong, &r, right);
        if (variant == 2) take_send_side(&wrong->plan, &r.s.plan);
    }
    end_renumbered(&r);
    return status;
}

/* ---- weights by local numbers ---- */

/* Expert i's numbers are those of its local number's on rank 0; or, back, that one's get the sum over ranks. */
static void by_local_number(const et_step *s, size_t size, bool back, et_real *values)
{
    size_t n = s->c.experts, local = n / s->c.ranks;
    for (size_t k = local * size; values && k < n * size; k++) {
        size_t first = k / size % local * size + k % size;
        if (back) values[first] += values[k];
        values[k] = back ? 0 : values[first];
    }
}

static et_status local_number(et_step *wrong, const et_step *right, size_t variant, et_error *error)
{
    size_t size = right->c.d_expert * right->c.d_model;
    et_real *up = NULL, *down = NULL;
    if (variant == 1) return global_number(wrong, right, error);
    et_status status = rotated(&up, right, size, 0, right->in.up, error);
    if (status == ET_OK) status = rotated(&down, right, size, 0, right->in.down, error);
    if (status == ET_OK) {
        by_local_number(right, size, false, up);
        by_local_number(right, size, false, down);
        wrong->in.up = up;
        wrong->in.down = down;
        status = run(wrong, error);
    }
    if (status == ET_OK) {
        by_local_number(right, size, true, wrong->bwd.up);
        by_local_number(right, size, true, wrong->bwd.down);
    }
    free(up);
    free(down);
    return status;
}

/* ---- weighed here and there ---- */

static void square_weights(void *user, const char *site, size_t count, et_real *values)
{
    const et_step *s = user;
    (void)site;
    for (size_t i = 0; i < count && values == s->fwd.slot_weight; i++) values[i] *= values[i];
}

static et_status both_sides(et_step *wrong, const et_step *right, size_t variant, et_error *error)
{
    et_step twice = et_step_like(right), *hooked = variant == 0 ? &twice : wrong;
    const et_rounding hook = {.mutate = square_weights, .user = hooked};
    size_t d = right->c.d_model;
    twice.max_bytes = 0;
    hooked->given_mask = right->route.mask;
    hooked->rounding = &hook;
    et_status status = run(hooked, error);
    if (status == ET_OK && variant == 0) status = run(wrong, error);
    if (status == ET_OK && variant == 0) {
        memcpy(wrong->fwd.y, twice.fwd.y, right->c.tokens * d * sizeof(et_real));
        memcpy(wrong->rank.partial, twice.rank.partial, right->plan.copies * d * sizeof(et_real));
    } else if (status == ET_OK) {
        memcpy(wrong->fwd.slot_weight, right->fwd.slot_weight,
               right->assignment.slots * sizeof(et_real));
    }
    wrong->rounding = NULL;
    et_step_free(&twice);
    return status;
}

/* ---- sums and means over ranks ---- */

static void scale(size_t count, double factor, et_real *values)
{
    for (size_t i = 0; values && i < count; i++) values[i] *= (et_real)factor;
}

/* 1: those of router and shared expert alone; 2: the routed experts' alone. */
static et_status averaged_twice(et_step *wrong, const et_step *right, size_t variant,
                                et_error *error)
{
    const et_case *c = &right->c;
    size_t n = c->experts, size = c->d_expert * c->d_model, hs = c->shared_d_expert * c->d_model;
    double factor = 1 / (double)c->ranks;
    et_status status = run(wrong, error);
    if (status == ET_OK && variant != 2) {
        scale(n * c->d_model, factor, wrong->bwd.router);
        scale(hs, factor, wrong->bwd.shared_up);
        scale(hs, factor, wrong->bwd.shared_down);
        scale(hs, factor, wrong->bwd.shared_gating);
    }
    if (status == ET_OK && variant != 1) {
        scale(n * size, factor, wrong->bwd.up);
        scale(n * size, factor, wrong->bwd.down);
        scale(n * size, factor, wrong->bwd.gating);
    }
    return status;
}

/* dp: the mean of an expert's gradients is over the ranks that have tokens for it. */
static void mean_over_some(et_step *wrong, const et_step *right)
{
    size_t n = right->c.experts, R = right->c.ranks, size = right->c.d_expert * right->c.d_model;
    for (size_t i = 0; i < n; i++) {
        size_t some = 0;
        for (size_t q = 0; q < R; q++) some += right->rank.load[q * n + i] > 0;
        double factor = some > 0 ? (double)R / (double)some : 1;
        scale(size, factor, wrong->bwd.up + i * size);
        scale(size, factor, wrong->bwd.down + i * size);
        if (wrong->bwd.gating) scale(size, factor, wrong->bwd.gating + i * size);
    }
}

/* Part `index` of parts [R,count], which may be NULL. */
static void take_away(size_t count, const et_real *parts, size_t index, et_real *from)
{
    for (size_t i = 0; parts && i < count; i++) from[i] -= parts[index * count + i];
}

/* ep: a rank that has received no row has left; its tokens' gradients are missing. */
static void without_parts(et_step *wrong, const et_step *right)
{
    const et_step_ranks *r = &right->rank;
    const et_case *c = &right->c;
    size_t router = c->experts * c->d_model, hs = c->shared_d_expert * c->d_model;
    for (size_t q = 0; q < c->ranks; q++) {
        if (right->plan.recv_begin[q + 1] > right->plan.recv_begin[q]) continue;
        take_away(router, r->router, q, wrong->bwd.router);
        take_away(hs, r->shared_up, q, wrong->bwd.shared_up);
        take_away(hs, r->shared_down, q, wrong->bwd.shared_down);
        take_away(hs, r->shared_gating, q, wrong->bwd.shared_gating);
    }
}

static et_status skipped(et_step *wrong, const et_step *right, size_t variant, et_error *error)
{
    et_status status = run(wrong, error);
    if (status == ET_OK && variant == 0 && is_dp(&right->c)) mean_over_some(wrong, right);
    if (status == ET_OK && variant == 1 && is_ep(&right->c)) without_parts(wrong, right);
    return status;
}

/* ---- the table ---- */

/* clang-format off */
static const et_hypothesis table[] = {
    {.doc = {"splits-transposed", "input splits are shown, or used, as output splits", "ranks"},
     .nature = ET_BY_LAYER, .applies = of_many_ep, .layer = splits_transposed},
    {.doc = {"rank-off-by-one", "experts are looked for on the rank after their own", "ranks"},
     .nature = ET_BY_LAYER, .applies = of_many_ep, .variants = {"sent and looked for", "whose own compute their rows", "by the send lists alone"}, .layer = next_rank},
    {.doc = {"local-for-global-expert", "experts are taken by their local numbers, or shown by their global ones", "ranks"},
     .nature = ET_BY_LAYER, .applies = of_local_numbers, .variants = {"their weights", "ep.local_expert alone"}, .layer = local_number},
    {.doc = {"gate-on-both-sides", "f(x) is weighed where it is computed and where it comes back", "ranks"},
     .nature = ET_BY_LAYER, .applies = of_ep, .variants = {"in the forward pass", "in both passes"}, .layer = both_sides},
    {.doc = {"gradient-averaged-twice", "gradients are divided by the number of ranks once more", "ranks"},
     .nature = ET_BY_LAYER, .applies = of_many, .variants = {"", "router and shared expert alone", "routed experts alone"}, .layer = averaged_twice},
    {.doc = {"empty-rank-skips-collective", "a rank without tokens leaves out the collective that sums gradients", "ranks"},
     .nature = ET_BY_LAYER, .applies = of_many, .variants = {"an expert's, which become means over the others", "router's and shared expert's, which lack its part"}, .layer = skipped},
};
/* clang-format on */

const et_faults et_rank_faults = ET_FAULTS(table);
