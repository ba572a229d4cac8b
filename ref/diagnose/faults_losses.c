/* faults_losses.c: the balancing loss by another convention. See faults.h. Its coefficient, and what becomes of its
 * gradient, are in faults_backward.c. */
#include "ref/diagnose/faults.h"

static ET_SHOWS(has_own_loads, et_has_aux(s) && s->in.load == NULL);

/* ---- what counts as a load ---- */

typedef enum convention {
    NOT_OVER_K,
    FIRST_CHOICES,
    FIRST_OVER_K,
    RUNNING,
    WHOLE_STEP,
    TILES_16,
    TILES_32,
    TILES_64,
    TILES_128,
    SELECTED_GATES,
    LAST_EXPERT_LOST,
    CONVENTIONS
} convention;

static convention convention_of(const et_mutant *m)
{
    return (convention)(m->fault.variant % CONVENTIONS);
}

/* Is expert i the first of token t's? */
static bool is_first(const et_mutant *m, size_t t, size_t i)
{
    et_real own = et_mutant_score(m, t * m->moe.n + i);
    for (size_t k = 0; k < m->moe.n; k++) {
        et_real other = et_mutant_score(m, t * m->moe.n + k);
        if (other > own || (other == own && k < i)) return false;
    }
    return true;
}

/* load [n] of the micro-batches from `first` to before `end`. */
static void count_loads(const et_mutant *m, size_t first, size_t end, et_real *load)
{
    size_t N = et_case_micro_tokens(&m->all.c), n = m->moe.n;
    convention how = convention_of(m);
    const et_step_routing *r = &m->losses.route;
    const uint8_t *counted = r->chosen ? r->chosen : r->mask;
    bool firsts = how == FIRST_CHOICES || how == FIRST_OVER_K;
    for (size_t i = 0; i < n; i++) {
        load[i] = 0;
        for (size_t t = first * N; t < end * N; t++)
            load[i] += counted[t * n + i] && (!firsts || is_first(m, t, i));
    }
}

/* F [n] of micro-batch b. */
static void fractions(const et_mutant *m, size_t b, et_real *F)
{
    const et_case *c = &m->all.c;
    size_t n = m->moe.n;
    convention how = convention_of(m);
    size_t first = how == RUNNING || how == WHOLE_STEP ? 0 : b;
    size_t end = how == WHOLE_STEP ? c->micro_batches : b + 1, K = c->top_k;
    count_loads(m, first, end, F);
    for (size_t i = 0; how >= TILES_16 && how <= TILES_128 && i < n; i++) {
        size_t tile = (size_t)16 << (how - TILES_16), load = (size_t)F[i];
        F[i] = (et_real)((load + tile - 1) / tile * tile);
    }
    if (how == NOT_OVER_K || how == FIRST_CHOICES) K = 1;
    et_balance_fractions((end - first) * et_case_real_tokens(c), n, K, F, F);
}

/* The loss and its gradient by the gates once more; forms of the second half: the loss as it is shown alone. */
static void by_convention(et_mutant *m)
{
    const et_case *c = &m->all.c;
    size_t N = et_case_real_tokens(c), n = m->moe.n, M = c->micro_batches;
    bool selected = convention_of(m) == SELECTED_GATES, shown = m->fault.variant >= CONVENTIONS;
    et_real *F = et_mutant_reals(m, n), loss = 0;
    if (F == NULL) return;
    for (size_t b = 0; b < M; b++) {
        fractions(m, b, F);
        size_t at = b * et_case_micro_tokens(c) * n;
        for (size_t j = at; j < at + N * n; j++) {
            et_real weight = F[j % n] - (c->balance == ET_BALANCE_AUX_ERROR ? 1 : 0);
            if (selected && !m->losses.route.mask[j]) weight = 0;
            if (convention_of(m) == LAST_EXPERT_LOST && j % n == n - 1) weight = 0;
            loss += weight * m->losses.fwd.gates[j] / (et_real)(M * N);
            if (!shown)
                m->losses.bwd.gates[j] = (et_real)c->balance_coef * weight / (et_real)(M * N);
        }
    }
    *m->losses.loss_aux = loss;
}

/* ---- the table ---- */

/* clang-format off */
static const et_hypothesis table[] = {
    {.doc = {"aux-convention", "the balancing loss counts loads, or gates, by another convention", "backward"},
     .applies = has_own_loads,
     .variants = {"F is not divided by K", "F of the first choices alone, not divided by K", "F of the first choices alone", "F of all micro-batches so far", "F of the whole step",
                  "loads rounded up to tiles of 16", "loads rounded up to tiles of 32", "loads rounded up to tiles of 64", "loads rounded up to tiles of 128", "P of the selected gates alone",
                  "the last expert is lost", "in the value alone: F is not divided by K", "in the value alone: F of the first choices alone, not divided by K", "in the value alone: F of the first choices alone",
                  "in the value alone: F of all micro-batches so far", "in the value alone: F of the whole step", "in the value alone: loads rounded up to tiles of 16",
                  "in the value alone: loads rounded up to tiles of 32", "in the value alone: loads rounded up to tiles of 64", "in the value alone: loads rounded up to tiles of 128",
                  "in the value alone: P of the selected gates alone", "in the value alone: the last expert is lost"},
     .hooks = {{.at = ET_AT_LOSSES, .whole = by_convention}}},
};
/* clang-format on */

const et_faults et_loss_faults = ET_FAULTS(table);
