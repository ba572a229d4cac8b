/* floors.c: how small a wrong factor is always caught. See campaign.h.
 *
 * At d12's size, for a candidate that shows what a kernel returns (y, dx, weight gradients, the mask): the
 * smallest epsilon of 1, 2, 5 per decade such that a factor 1 + epsilon on one quantity is rejected. The
 * verdict is taken to be monotonic in epsilon, and the grid halved.
 *
 * A factor on a finished tensor sits where a kernel would have it, before the last rounding: one run of a
 * kernel that hands its sums over unrounded serves all of them. A factor on the gate, or on one expert's
 * f(x), goes through the kernel anew.
 */
#include "ref/verdict/judge.h"
#include "tests/campaign/campaign.h"
#include "tests/candidates/rounding.h"

#include <stdlib.h>
#include <string.h>

static const double grid[] = {1e-6, 2e-6, 5e-6, 1e-5, 2e-5, 5e-5, 1e-4,
                              2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2};
enum { GRID = sizeof grid / sizeof *grid };

/* What is scaled: a tensor, one expert's share of it, or, by a fault, something further inside. */
static const struct {
    const char *name, *tensor, *fault;
    bool one_expert;
} quantities[] = {
    {"every gate", NULL, "gate-scaled", false},
    {"f(x) of one expert", NULL, "expert-scaled", false},
    {"y", "fwd.y", NULL, false},
    {"dx", "bwd.x", NULL, false},
    {"dW_r", "bwd.w_router", NULL, false},
    {"dW_up", "bwd.w_up", NULL, false},
    {"dW_down", "bwd.w_down", NULL, false},
    {"dW_up of one expert", "bwd.w_up", NULL, true},
    {"dW_down of one expert", "bwd.w_down", NULL, true},
    {"shared dW_up", "bwd.shared_up", NULL, false},
    {"shared dW_down", "bwd.shared_down", NULL, false},
};
enum { QUANTITIES = sizeof quantities / sizeof *quantities };

/* ---- what a kernel returns ---- */

static const char *const shown[] = {"route.mask",  "fwd.y",        "bwd.x",
                                    "bwd.w_router", "bwd.w_up",     "bwd.w_down",
                                    "bwd.shared_up", "bwd.shared_down"};
enum { SHOWN = sizeof shown / sizeof *shown };

typedef struct result {
    size_t count;
    et_tensor_out tensors[SHOWN];
    void *owned[SHOWN];
} result;

static void free_result(result *r)
{
    for (size_t i = 0; i < r->count; i++) free(r->owned[i]);
    *r = (result){0};
}

static cd_format output_format(const et_profile *p)
{
    int bits = p->bits[ET_OUTPUTS], emin = bits <= 11 && p->exponent_bits == 5 ? -14 : -126;
    return (cd_format){.bits = bits,
                       .emin = emin,
                       .smallest = ldexp(1, emin),
                       .largest = ldexp(2 - ldexp(1, 1 - bits), 1 - emin)};
}

/* to = the sums times a factor, which elements [first, end) get, rounded to the profile's outputs. */
static bool round_scaled(const et_tensor_out *sums, const et_profile *p, size_t first, size_t end,
                         double factor, et_tensor_out *to, void **owned)
{
    cd_format f = output_format(p);
    size_t count = et_tensor_count(sums);
    double *values = malloc((count + 1) * sizeof *values);
    if (!values) return false;
    for (size_t i = 0; i < count; i++)
        values[i] = cd_round(&f, et_tensor_element(sums, i) * (first <= i && i < end ? factor : 1));
    *to = *sums;
    to->dtype = f.bits <= 8 ? ET_BF16 : f.bits <= 11 && f.emin == -14 ? ET_F16 : ET_F32;
    to->values = *owned = values;
    to->source = ET_FROM_F64;
    return true;
}

/* What the kernel with unrounded sums would have returned. */
static bool make_result(const cd_candidate *sums, const et_profile *p, result *r, et_error *error)
{
    *r = (result){0};
    for (size_t i = 0; i < SHOWN; i++) {
        const et_tensor_out *t = cd_tensor(sums, shown[i]);
        if (!t) continue;
        r->owned[r->count] = NULL;
        r->tensors[r->count] = *t;
        if (et_tensor_is_real(t) &&
            !round_scaled(t, p, 0, 0, 1, &r->tensors[r->count], &r->owned[r->count])) {
            et_fail(error, ET_ENOMEM, "no memory");
            return false;
        }
        r->count++;
    }
    return true;
}

/* ---- one epsilon ---- */

typedef struct bench {
    const cp_subject *s;
    cd_candidate sums; /* of a kernel that does not round them */
    result healthy;
} bench;

static bool is_rejected(const bench *b, const result *r, bool *rejected, et_error *error)
{
    et_verdict v;
    if (cp_judge(&v, b->s, r->tensors, r->count, false, NULL, error) != ET_OK) return false;
    *rejected = v.outcome == ET_MISMATCH;
    et_verdict_free(&v);
    return true;
}

/* The expert with most slots: every case has one. */
static size_t fullest(const et_step *s)
{
    size_t most = 0;
    for (size_t i = 1; i < s->c.experts; i++)
        if (s->assignment.load[i] > s->assignment.load[most]) most = i;
    return most;
}

static bool try_tensor(const bench *b, size_t q, double epsilon, bool *rejected, et_error *error)
{
    const et_tensor_out *sums = cd_tensor(&b->sums, quantities[q].tensor);
    size_t end = et_tensor_count(sums), first = 0, i = 0;
    result scaled = b->healthy;
    void *owned = NULL;
    if (quantities[q].one_expert) {
        size_t each = end / b->s->golden.c.experts;
        first = fullest(&b->s->golden) * each;
        end = first + each;
    }
    while (strcmp(scaled.tensors[i].name, quantities[q].tensor) != 0) i++;
    bool well = round_scaled(sums, b->s->profile, first, end, 1 + epsilon, &scaled.tensors[i], &owned);
    well = well && is_rejected(b, &scaled, rejected, error);
    free(owned);
    return well;
}

static bool try_fault(const bench *b, size_t q, double epsilon, bool *rejected, et_error *error)
{
    cd_candidate broken;
    result r;
    if (cd_plant(&broken, &b->sums, cd_fault_find(quantities[q].fault), epsilon, error) != ET_OK)
        return false;
    bool well = make_result(&broken, b->s->profile, &r, error) && is_rejected(b, &r, rejected, error);
    free_result(&r);
    cd_free(&broken);
    return well;
}

/* The smallest of the grid that is rejected, or GRID. */
static bool find_floor(const bench *b, size_t q, size_t *floor, et_error *error)
{
    size_t low = 0, high = GRID; /* below low: accepted; from high on: rejected */
    bool rejected = false;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (!(quantities[q].tensor ? try_tensor : try_fault)(b, q, grid[middle], &rejected, error))
            return false;
        if (rejected)
            high = middle;
        else
            low = middle + 1;
    }
    *floor = high;
    return true;
}

/* ---- units ---- */

static bool find_floors(const cp_subject *s, FILE *lines, et_error *error)
{
    cd_kernel wide = *cd_kernel_find("blocked");
    wide.wide_outputs = true;
    bench b = {.s = s};
    bool rejected = false;
    if (cd_run(&b.sums, &s->golden, s->profile, &wide, NULL, 0, 1, error) != ET_OK) return false;
    bool well = make_result(&b.sums, s->profile, &b.healthy, error) &&
                is_rejected(&b, &b.healthy, &rejected, error);
    for (size_t q = 0; well && q < QUANTITIES; q++) {
        size_t floor = GRID;
        well = find_floor(&b, q, &floor, error);
        fprintf(lines, "floor\t%s\t%s\t%g\t%d\n", s->profile->name, quantities[q].name,
                floor < GRID ? grid[floor] : 1.0, rejected);
    }
    free_result(&b.healthy);
    cd_free(&b.sums);
    return well;
}

static bool work(const cp_unit *unit, FILE *lines, et_error *error)
{
    cp_subject s;
    if (cp_subject_open(&s, &unit->c, error) != ET_OK) return false;
    bool well = cp_subject_profile(&s, et_profile_at(unit->index), error) == ET_OK &&
                find_floors(&s, lines, error);
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
        unit->cost = 60;
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

const cp_part cp_floors = {"floors", "the smallest factor that is caught", 20, plan, work,
                           cp_report_floors};
