/* faults_choice.c: how kernels search for the best scores, and cut loads. See faults.h. The rules' own mistakes are in
 * faults_routing.c. Each changes the mask that the rule has made. */
#include "ref/diagnose/faults.h"
#include "ref/verdict/judge.h"

static ET_SHOWS(has_many_experts, et_is_moe(s) && s->c.rule == ET_TC && s->c.experts > 8);
static ET_SHOWS(shows_loads, et_decides(s) && !et_by_choice(s));

/* ---- a search that begins with 0 ---- */

/* The token's best expert, of equal ones the first. */
static size_t best_of(const et_mutant *m, size_t t)
{
    size_t n = m->moe.n, best = 0;
    for (size_t i = 1; i < n; i++)
        if (et_mutant_score(m, t * n + i) > et_mutant_score(m, t * n + best)) best = i;
    return best;
}

/* What is not above 0 is not found. Form 0: nothing is taken in its place; 1: expert 0, where the index began; 2: the
 * best is found, and then masked by a 0 that beats all that is below it. */
static void positive_alone(et_mutant *m)
{
    size_t n = m->moe.n;
    for (size_t t = 0; t < m->moe.N; t++) {
        uint8_t *mask = m->all.route.mask + t * n;
        bool lost = false;
        for (size_t i = 0; i < n; i++) {
            if (!mask[i] || et_mutant_score(m, t * n + i) > 0) continue;
            mask[i] = 0;
            lost = true;
        }
        if (lost && m->fault.variant == 1) mask[0] = 1;
        if (lost && m->fault.variant == 2) mask[best_of(m, t)] = 1;
    }
}

/* An index, or a table, for so many experts; by threes: the next best one is taken, or expert i modulo so many, or none. */
static size_t experts_known(const et_mutant *m)
{
    static const size_t known[] = {256, 128, 64, 32, 16, 8};
    return known[m->fault.variant / 3];
}

static void forget_those_beyond(et_mutant *m, et_step *s)
{
    size_t n = m->moe.n, count = m->moe.N * n;
    et_real *scores = m->fault.variant % 3 == 0 ? et_mutant_copy(m, s->fwd.logits, count) : NULL;
    for (size_t j = 0; scores && j < count; j++)
        if (j % n >= experts_known(m)) scores[j] = (et_real)-1e30;
    if (scores) s->fwd.logits = scores;
}

static void wrap_those_beyond(et_mutant *m)
{
    size_t n = m->moe.n, known = experts_known(m), form = m->fault.variant % 3;
    for (size_t j = 0; form > 0 && j < m->moe.N * n; j++) {
        if (j % n < known || !m->all.route.mask[j]) continue;
        m->all.route.mask[j] = 0;
        if (form == 1) m->all.route.mask[j / n * n + j % n % known] = 1;
    }
}

/* ---- loads that are cut ---- */

/* Who is dropped first of those that an expert took: the last to come; the lowest score; the first to come; of second and
 * later choices the last to come. */
typedef enum order { LAST, LOWEST, FIRST, LATER_CHOICES } order;

/* How many experts have a higher score for token t than i. */
static size_t choice_of(const et_mutant *m, size_t t, size_t i)
{
    size_t n = m->moe.n, higher = 0;
    for (size_t k = 0; k < n; k++)
        higher += et_mutant_score(m, t * n + k) > et_mutant_score(m, t * n + i);
    return higher;
}

/* Is token s of expert i dropped before token t? */
static bool goes_before(const et_mutant *m, order how, size_t i, size_t s, size_t t)
{
    size_t n = m->moe.n, of_s = 0, of_t = 0;
    if (how == LATER_CHOICES) of_s = choice_of(m, s, i), of_t = choice_of(m, t, i);
    if (of_s != of_t) return of_s > of_t;
    if (how == LOWEST && et_mutant_score(m, s * n + i) != et_mutant_score(m, t * n + i))
        return et_mutant_score(m, s * n + i) < et_mutant_score(m, t * n + i);
    return how == FIRST ? s < t : s > t;
}

/* Expert i keeps `most` of a micro-batch's tokens. */
static void cut(et_mutant *m, order how, size_t first, size_t i, size_t load, size_t most)
{
    size_t n = m->moe.n, end = first + et_case_micro_tokens(&m->all.c);
    uint8_t *mask = m->all.route.mask;
    for (; load > most; load--) {
        size_t drop = end;
        for (size_t t = first; t < end; t++)
            if (mask[t * n + i] && (drop == end || goes_before(m, how, i, t, drop))) drop = t;
        mask[drop * n + i] = 0;
    }
}

static size_t load_in(const et_mutant *m, const uint8_t *mask, size_t first, size_t i)
{
    size_t load = 0, n = m->moe.n;
    for (size_t t = first; t < first + et_case_micro_tokens(&m->all.c); t++)
        load += mask[t * n + i] != 0;
    return load;
}

/* By sixes: the last to come are dropped, or the lowest scores. */
static void cut_to_tiles(et_mutant *m)
{
    static const size_t tiles[] = {4, 8, 16, 32, 64, 128};
    size_t tile = tiles[m->fault.variant % 6], N = et_case_micro_tokens(&m->all.c);
    order how = m->fault.variant < 6 ? LAST : LOWEST;
    for (size_t first = 0; first < m->moe.N; first += N)
        for (size_t i = 0; i < m->moe.n; i++) {
            size_t load = load_in(m, m->all.route.mask, first, i);
            cut(m, how, first, i, load, load - load % tile);
        }
}

/* The bound is the largest load that the candidate shows, if it shows fewer slots than there should be. */
static void cut_overflow(et_mutant *m)
{
    const et_tensor_out *shown = et_tensor_named(m->on->candidate, m->on->count, "route.mask");
    size_t most = 0, fewer = 0, N = et_case_micro_tokens(&m->all.c), n = m->moe.n;
    if (shown == NULL || shown->source != ET_FROM_U8) return;
    for (size_t first = 0; first < m->moe.N; first += N)
        for (size_t i = 0; i < n; i++) {
            size_t load = load_in(m, shown->values, first, i);
            most = load > most ? load : most;
            fewer += load_in(m, m->all.route.mask, first, i) - load;
        }
    if (fewer == 0 || fewer > m->moe.N * n) return; /* as many, or more */
    for (size_t first = 0; first < m->moe.N; first += N)
        for (size_t i = 0; i < n; i++)
            cut(m, (order)m->fault.variant, first, i, load_in(m, m->all.route.mask, first, i),
                most);
}

/* ---- the table ---- */

/* clang-format off */
static const et_hypothesis table[] = {
    {.doc = {"positive-scores-alone", "scores of 0 and below are never taken: the search for the best begins with 0", "selection"},
     .applies = et_decides, .variants = {"nothing is taken in their place", "expert 0 is taken in their place", "but a token's best one"},
     .hooks = {{.at = ET_AT_MASK, .whole = positive_alone}}},
    {.doc = {"experts-beyond-table", "experts beyond the end of an index, or a table, are not taken", "selection"},
     .everywhere = true, .applies = has_many_experts,
     .variants = {"from 256 on, the next best one is", "from 256 on, expert i - 256 is", "from 256 on, nothing is in their place",
                  "from 128 on, the next best one is", "from 128 on, expert i modulo 128 is", "from 128 on, nothing is in their place",
                  "from 64 on, the next best one is", "from 64 on, expert i modulo 64 is", "from 64 on, nothing is in their place",
                  "from 32 on, the next best one is", "from 32 on, expert i modulo 32 is", "from 32 on, nothing is in their place",
                  "from 16 on, the next best one is", "from 16 on, expert i modulo 16 is", "from 16 on, nothing is in their place",
                  "from 8 on, the next best one is", "from 8 on, expert i modulo 8 is", "from 8 on, nothing is in their place"},
     .hooks = {{.at = ET_AT_PLAN, .settings = forget_those_beyond}, {.at = ET_AT_MASK, .whole = wrap_those_beyond}}},
    {.doc = {"loads-cut-to-tiles", "loads are cut to whole tiles", "selection"},
     .applies = et_decides,
     .variants = {"of 4, the last to come are dropped", "of 8, the last to come are dropped", "of 16, the last to come are dropped", "of 32, the last to come are dropped",
                  "of 64, the last to come are dropped", "of 128, the last to come are dropped", "of 4, the lowest scores are dropped", "of 8, the lowest scores are dropped",
                  "of 16, the lowest scores are dropped", "of 32, the lowest scores are dropped", "of 64, the lowest scores are dropped", "of 128, the lowest scores are dropped"},
     .hooks = {{.at = ET_AT_MASK, .whole = cut_to_tiles}}},
    {.doc = {"overflow-dropped", "loads are cut to a capacity that the case does not have", "selection"},
     .applies = shows_loads, .variants = {"the last to come are dropped", "the lowest scores are dropped", "the first to come are dropped", "of second choices the last to come are dropped"},
     .hooks = {{.at = ET_AT_MASK, .whole = cut_overflow}}},
};
/* clang-format on */

const et_faults et_choice_faults = ET_FAULTS(table);
