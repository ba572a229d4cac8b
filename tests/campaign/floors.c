/* floors.c: how small a wrong factor is always caught. See campaign.h.
 *
 * At d12's size, the smallest epsilon of 1, 2, 5 per decade such that a factor 1 + epsilon on one quantity is
 * rejected, by a candidate that shows one tensor and the mask. The verdict is taken to be monotonic in
 * epsilon, and the grid halved.
 *
 * The factor sits where a kernel would have it, before the last rounding. One run of a kernel that hands over
 * its sums unrounded serves all: with `part` the share of the tensor that is scaled,
 *
 *     shown = round(sums + epsilon part)
 *     part  = the tensor; one expert's share of it; of y, sum w f(x) over all slots or one expert's
 *
 * A wrong gate, or a wrong f(x), is looked for in y alone, too, where it is diluted by the shared expert and by the
 * rounding of y. Where a factor's own deviation is too large for that, as of dW_r or of one
 * expert's gradient, the floor is printed and no bound is set.
 */
#include "ref/verdict/judge.h"
#include "tests/campaign/campaign.h"
#include "tests/candidates/rounding.h"

#include <stdlib.h>
#include <string.h>

static const double grid[] = {2e-7, 5e-7, 1e-6, 2e-6, 5e-6, 1e-5, 2e-5, 5e-5,
                              1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2};
enum { GRID = sizeof grid / sizeof *grid };

typedef struct quantity {
    const char *name, *tensor;
    bool slots, one_expert; /* w f(x) of the slots; of the fullest expert alone */
    double bf16, f32;       /* bounds of epsilon; 0: none */
} quantity;

static const quantity quantities[] = {
    {"every gate, from y", "fwd.y", true, false, 1e-3, 1e-6},
    {"f(x) of one expert", "fwd.slot_out", false, true, 1e-3, 1e-6},
    {"f(x) of one expert, from y", "fwd.y", true, true, 0, 1e-6},
    {"y", "fwd.y", false, false, 1e-3, 1e-6},
    {"dx", "bwd.x", false, false, 1e-3, 1e-6},
    {"dW_r", "bwd.w_router", false, false, 0, 0},
    {"dW_up", "bwd.w_up", false, false, 1e-3, 1e-6},
    {"dW_down", "bwd.w_down", false, false, 1e-3, 1e-6},
    {"dW_up of one expert", "bwd.w_up", false, true, 0, 0},
    {"dW_down of one expert", "bwd.w_down", false, true, 0, 0},
    {"shared dW_up", "bwd.shared_up", false, false, 1e-3, 1e-6},
    {"shared dW_down", "bwd.shared_down", false, false, 1e-3, 1e-6},
};
enum { QUANTITIES = sizeof quantities / sizeof *quantities };

/* ---- what is scaled ---- */

/* The fullest expert of the candidate's own routing. */
static size_t fullest(const cd_candidate *k)
{
    const et_tensor_out *load = cd_tensor(k, "route.load");
    size_t most = 0;
    for (size_t i = 1; i < cd_count(load); i++)
        if (cd_element(load, i) > cd_element(load, most)) most = i;
    return most;
}

/* part [N,d] += w f(x) of all slots, or of the fullest expert's. */
static void add_slots(const cd_candidate *k, bool one_expert, double *part)
{
    const et_tensor_out *token = cd_tensor(k, "route.slot_token"),
                        *f = cd_tensor(k, "fwd.slot_out");
    const et_tensor_out *expert = cd_tensor(k, "route.slot_expert");
    const et_tensor_out *w = cd_tensor(k, "route.slot_weight");
    size_t d = f->shape[1], chosen = fullest(k);
    for (size_t s = 0; s < f->shape[0]; s++) {
        double *row = part + (size_t)cd_element(token, s) * d, weight = cd_element(w, s);
        if (one_expert && (size_t)cd_element(expert, s) != chosen) continue;
        for (size_t c = 0; c < d; c++) row[c] += weight * cd_element(f, s * d + c);
    }
}

/* part = the tensor, or one expert's share of it: its slots, or its weights. */
static void copy_tensor(const cd_candidate *k, const et_tensor_out *t, bool one_expert,
                        double *part)
{
    const et_tensor_out *offsets = cd_tensor(k, "route.expert_offsets");
    bool slots = strncmp(t->name, "fwd.slot_", 9) == 0;
    size_t count = cd_count(t), first = 0, end = count, each = count / t->shape[0];
    if (one_expert) {
        size_t i = fullest(k);
        first = each * (slots ? (size_t)cd_element(offsets, i) : i);
        end = each * (slots ? (size_t)cd_element(offsets, i + 1) : i + 1);
    }
    for (size_t i = first; i < end; i++) part[i] = cd_element(t, i);
}

/* ---- one epsilon ---- */

typedef struct bench {
    const cp_subject *s;
    const cd_candidate *k; /* its sums unrounded */
    const et_tensor_out *sums;
    double *part, *shown; /* as many as `sums` has */
} bench;

static cd_format output_format(const et_profile *p)
{
    int bits = p->bits[ET_OUTPUTS], emin = bits <= 11 && p->exponent_bits == 5 ? -14 : -126;
    return (cd_format){.bits = bits,
                       .emin = emin,
                       .smallest = ldexp(1, emin),
                       .largest = ldexp(2 - ldexp(1, 1 - bits), 1 - emin)};
}

static bool is_rejected(const bench *b, double epsilon, bool *rejected, et_error *error)
{
    cd_format f = output_format(b->s->profile);
    et_tensor_out tensors[] = {*cd_tensor(b->k, "route.mask"), *b->sums};
    et_verdict v;
    for (size_t i = 0; i < cd_count(b->sums); i++)
        b->shown[i] = cd_round(&f, cd_element(b->sums, i) + epsilon * b->part[i]);
    tensors[1].values = b->shown;
    tensors[1].source = ET_FROM_F64;
    tensors[1].dtype = f.bits <= 8 ? ET_BF16 : ET_F32;
    if (cp_judge(&v, b->s, tensors, 2, false, NULL, error) != ET_OK) return false;
    *rejected = v.outcome == ET_MISMATCH;
    et_verdict_free(&v);
    return true;
}

/* The smallest of the grid that is rejected, or GRID. */
static bool search(const bench *b, size_t *floor, et_error *error)
{
    size_t low = 0, high = GRID; /* below low: accepted; from high on: rejected */
    while (low < high) {
        size_t middle = (low + high) / 2;
        bool rejected;
        if (!is_rejected(b, grid[middle], &rejected, error)) return false;
        if (rejected)
            high = middle;
        else
            low = middle + 1;
    }
    *floor = high;
    return true;
}

static bool find_floor(const cp_subject *s, const cd_candidate *k, const quantity *q, FILE *lines,
                       et_error *error)
{
    const et_tensor_out *sums = cd_tensor(k, q->tensor);
    size_t count = cd_count(sums), floor = GRID;
    double *room = calloc(2 * count + 1, sizeof *room);
    bool healthy_rejected = false;
    if (!room) return et_fail(error, ET_ENOMEM, "no memory") == ET_OK;
    bench b = {s, k, sums, room, room + count};
    if (q->slots)
        add_slots(k, q->one_expert, b.part);
    else
        copy_tensor(k, sums, q->one_expert, b.part);
    bool well = is_rejected(&b, 0, &healthy_rejected, error) && search(&b, &floor, error);
    double bound = strcmp(s->profile->name, "f32") == 0 ? q->f32 : q->bf16;
    fprintf(lines, "floor\t%s\t%s\t%g\t%d\t%g\n", s->profile->name, q->name,
            floor < GRID ? grid[floor] : 1.0, healthy_rejected, bound);
    free(room);
    return well;
}

/* ---- units ---- */

static bool work(const cp_unit *unit, FILE *lines, et_error *error)
{
    cp_subject s;
    cd_candidate k;
    cd_kernel wide = *cd_kernel_find("blocked");
    wide.wide_outputs = wide.fused_out = true;
    if (cp_subject_open(&s, &unit->c, error) != ET_OK) return false;
    bool well = cp_subject_profile(&s, et_profile_at(unit->index), error) == ET_OK &&
                cd_run(&k, &s.golden, s.profile, &wide, NULL, 0, 1, error) == ET_OK;
    if (well) {
        for (size_t i = 0; well && i < QUANTITIES; i++)
            well = find_floor(&s, &k, &quantities[i], lines, error);
        cd_free(&k);
    }
    cp_subject_close(&s);
    return well;
}

static bool plan_seed(cp_list *list, const et_case *c, size_t seed)
{
    static const char *const profiles[] = {"bf16", "f32"};
    for (size_t p = 0; p < sizeof profiles / sizeof *profiles; p++) {
        cp_unit *unit = cp_list_add(list, &cp_floors);
        if (!unit) return false;
        unit->c = cp_reseeded(c, seed);
        unit->index = cp_profile_row(profiles[p]);
        unit->cost = 30;
        snprintf(unit->key, sizeof unit->key, "floors %s %s %zu", c->name, profiles[p], seed);
    }
    return true;
}

static bool plan(cp_list *list, const cp_options *o, et_error *error)
{
    size_t cases, at = 0;
    et_case *suite = cp_suite(o->data, "paper.json", &cases, error);
    bool well = suite != NULL;
    while (well && at + 1 < cases && strcmp(suite[at].name, "d12-et") != 0) at++;
    for (size_t seed = 0; well && seed < (o->seeds ? o->seeds : cp_floors.seeds); seed++)
        well = plan_seed(list, &suite[at], seed);
    free(suite);
    return well;
}

const cp_part cp_floors = {"floors",        "the smallest factor that is caught", 20, plan, work,
                           cp_report_floors};
