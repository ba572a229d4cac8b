/* faults_tokens.c: token choice by groups of experts and with a capacity, and a given assignment, wrongly. See faults.h.
 *
 * Where a setting does not say it, the choices are made once more, or kept in another line, in the mask that the rule has
 * made. Seen in: DeepSeek-V3's released code (experts of refused groups filled with 0, which a negative score is below),
 * vLLM and SGLang (groups scored without the bias), Megatron-LM, DeepSpeed, Tutel (orders and sizes of capacities).
 */
#include "ref/step/decide.h"
#include "ref/step/case_kinds.h"
#include "ref/routing/top_k.h"
#include "ref/diagnose/faults.h"

#include <math.h>

/* ---- where it can show ---- */

ET_SHOWS(et_drops, s->route.chosen != NULL);
static ET_SHOWS(drops_in_parts, et_drops(s) && s->c.micro_batches > 1);
static ET_SHOWS(counts_choices, et_drops(s) && et_has_aux(s) && s->in.load == NULL);
static ET_SHOWS(is_limited, has_groups(&s->c) && !s->c.given);
static ET_SHOWS(is_given, et_is_moe(s) && s->c.given);

/* ---- the line before an expert ---- */

/* Whose choice i is token t's: 0 the first. */
static size_t position(const et_mutant *m, size_t t, size_t i)
{
    size_t K = m->routed.c.top_k, j = 0;
    const int32_t *topk = m->routed.route.topk_expert + t * K;
    while (j < K && (size_t)topk[j] != i) j++;
    return j;
}

typedef enum order { ARRIVAL, GATES, TOKENS, LATEST, SCORES, SHARES, LOWEST } order;

/* A gate value over the sum of the token's chosen ones. */
static et_real share(const et_mutant *m, size_t t, size_t i)
{
    const et_real *p = m->on->right->fwd.gates + t * m->moe.n;
    et_real sum = 0;
    for (size_t k = 0; k < m->moe.n; k++)
        if (m->routed.route.chosen[t * m->moe.n + k]) sum += p[k];
    return sum != 0 ? p[i] / sum : 0;
}

/* By what token t stands in expert i's line: more comes first. */
static et_real lead(const et_mutant *m, order how, size_t t, size_t i)
{
    size_t place = t * m->moe.n + i;
    const et_real *p = m->on->right->fwd.gates;
    switch (how) {
    case ARRIVAL:
    case LATEST: return -(et_real)position(m, t, i);
    case GATES: return p[place];
    case LOWEST: return -p[place];
    case SCORES: return et_mutant_score(m, place);
    case SHARES: return share(m, t, i);
    case TOKENS: break;
    }
    return 0;
}

/* The choices of each micro-batch of `batch` tokens once more; of an expert's so many keep their slot. */
static void keep(et_mutant *m, order how, size_t batch, size_t slots)
{
    const uint8_t *chosen = m->routed.route.chosen;
    size_t n = m->moe.n;
    et_ranked *line = et_mutant_own(m, batch, sizeof *line);
    for (size_t at = 0; line && at < m->moe.N / batch * n; at++) {
        size_t first = at / n * batch, i = at % n, count = 0;
        for (size_t t = 0; t < batch; t++)
            if (chosen[(first + t) * n + i])
                line[count++] = (et_ranked){lead(m, how, first + t, i),
                                            (int32_t)(how == LATEST ? batch - 1 - t : t)};
        et_top(line, count, slots < count ? slots : count);
        for (size_t k = 0; k < count; k++) {
            size_t t = (size_t)line[k].index;
            m->all.route.mask[(first + (how == LATEST ? batch - 1 - t : t)) * n + i] = k < slots;
        }
    }
}

static order order_of(const et_case *c)
{
    return c->drop == ET_DROP_BY_SCORE ? GATES : ARRIVAL;
}

static void another_order(et_mutant *m)
{
    const et_case *c = &m->on->right->c;
    static const order orders[] = {ARRIVAL, TOKENS, LATEST, SCORES, SHARES, LOWEST};
    order own = order_of(c), how = orders[m->fault.variant];
    if (m->fault.variant == 0 && own == ARRIVAL) how = GATES;
    keep(m, how, et_case_micro_tokens(c), et_case_token_capacity(c));
}

static void another_capacity(et_mutant *m)
{
    const et_case *c = &m->on->right->c;
    size_t N = et_case_real_tokens(c), own = et_case_token_capacity(c), K = c->top_k,
           n = c->experts, micro = et_case_micro_tokens(c);
    double C = c->capacity_factor, exact = (double)(N * K) / (double)n * C;
    const size_t slots[] = {own + 1,
                            own - 1,
                            exact < (double)N ? (size_t)exact : N,
                            et_token_capacity(N, n, 1, C),
                            et_token_capacity(N, n, K, 1),
                            (size_t)ceil((double)((N + n - 1) / n * K) * C),
                            et_token_capacity(micro, n, K, C)};
    keep(m, order_of(c), micro, slots[m->fault.variant]);
}

/* Form 0: the slots that the whole step would have, in each micro-batch; 1: and one line for all of it; 2: one line for
 * the slots of one micro-batch. */
static void capacity_of_step(et_mutant *m)
{
    const et_case *c = &m->on->right->c;
    size_t N = et_case_micro_tokens(c), own = et_case_token_capacity(c);
    size_t real = c->micro_batches * et_case_real_tokens(c);
    size_t all = et_token_capacity(real, c->experts, c->top_k, c->capacity_factor);
    keep(m, order_of(c), m->fault.variant == 0 ? N : c->tokens, m->fault.variant == 2 ? own : all);
}

/* F by slots, as if what was dropped had not been chosen. */
static ET_SETTING(slots_alone, s->route.chosen = NULL);

/* ---- groups ---- */

static ET_SETTING(no_limit, s->c.groups = 1);

static void other_kept(et_mutant *m, et_step *s)
{
    et_case *c = &s->c;
    size_t least = (c->top_k + c->experts / c->groups - 1) / (c->experts / c->groups);
    if (m->fault.variant == 0 && c->groups_kept < c->groups) c->groups_kept++;
    if (m->fault.variant == 1 && c->groups_kept > least) c->groups_kept--;
}

enum { WITHOUT_BIAS, OTHER_SCORE, SUM, OF_OTHERS, OWN };

/* Of `size` experts from `first` on; scores [size] is room. */
static et_real group_score(const et_mutant *m, size_t how, size_t size, size_t first, et_real *scores)
{
    const et_step *right = m->on->right;
    const et_real *unbiased = et_step_scores(right);
    const et_real *others = right->c.select_gates ? right->fwd.logits : right->fwd.gates;
    et_group_score own = right->c.group_score, other = own == ET_GROUP_MAX ? ET_GROUP_TOP2 : ET_GROUP_MAX;
    et_real sum = 0;
    for (size_t i = 0; i < size; i++) {
        scores[i] = how == WITHOUT_BIAS ? unbiased[first + i]
                    : how == OF_OTHERS  ? others[first + i]
                                        : et_mutant_score(m, first + i);
        sum += scores[i];
    }
    if (how == SUM || size < 2) return sum;
    return et_group_score_of(how == OTHER_SCORE ? other : own, size, scores);
}

/* The candidate's mask [N,n], or NULL: it shows none. */
static const uint8_t *shown_mask(const et_mutant *m)
{
    const et_tensor_out *t = et_tensor_named(m->on->candidate, m->on->count,
                                             et_tensors[ET_ROUTE_MASK].doc.name);
    return t && t->source == ET_FROM_U8 ? t->values : NULL;
}

/* Token t's K best by these scores; of equal ones those that the candidate took, since kernels break ties as they like, then the
 * lower. */
static void choose(et_mutant *m, size_t t, const et_real *scores, const uint8_t *shown)
{
    size_t n = m->moe.n, K = m->on->right->c.top_k;
    for (size_t i = 0; i < n; i++) {
        size_t before = 0;
        bool own = shown && shown[t * n + i];
        for (size_t k = 0; k < n; k++) {
            bool theirs = shown && shown[t * n + k];
            before += scores[k] > scores[i] ||
                      (scores[k] == scores[i] && (theirs != own ? theirs : k < i));
        }
        m->all.route.mask[t * n + i] = before < K;
        if (m->routed.route.chosen) m->routed.route.chosen[t * n + i] = before < K;
        if (before < K) m->routed.route.topk_expert[t * K + before] = (int32_t)i;
    }
}

/* Groups are kept by such a score; experts of the others have the score `refused`. */
static void choose_anew(et_mutant *m, size_t how, et_real refused)
{
    const et_case *c = &m->on->right->c;
    size_t n = m->moe.n, size = n / c->groups;
    et_real *scores = et_mutant_reals(m, n);
    et_ranked *line = et_mutant_own(m, c->groups, sizeof *line);
    const uint8_t *shown = shown_mask(m);
    for (size_t t = 0; scores && line && t < m->moe.N; t++) {
        if (is_padding(c, t)) continue;
        for (size_t j = 0; j < c->groups; j++)
            line[j] = (et_ranked){group_score(m, how, size, t * n + j * size, scores), (int32_t)j};
        et_top(line, c->groups, c->groups_kept);
        for (size_t j = 0; j < c->groups; j++)
            for (size_t e = 0, i = (size_t)line[j].index * size; e < size; e++, i++)
                scores[i] = j < c->groups_kept ? et_mutant_score(m, t * n + i) : refused;
        choose(m, t, scores, shown);
    }
    if (m->status == ET_OK && drops(c))
        keep(m, order_of(c), et_case_micro_tokens(c), et_case_token_capacity(c));
}

static ET_WHOLE(another_group_score, choose_anew(m, m->fault.variant, -(et_real)INFINITY));
static ET_WHOLE(filled_with_zeros, choose_anew(m, OWN, 0));

/* ---- a given assignment ---- */

static void by_own_rule(et_mutant *m, et_step *s)
{
    (void)m;
    s->c.given = false;
    s->given_mask = NULL;
}

/* ---- the table ---- */

/* clang-format off */
static const et_hypothesis table[] = {
    {.doc = {"overflow-order", "other choices than the case's are dropped over the capacity", "selection"}, .applies = et_drops,
     .variants = {"by gate values where arrival is due, or by arrival", "in the order of tokens, second choices like first ones", "the first to come are dropped",
                  "by scores, not gate values", "by gate values over their sum", "the highest gate values are dropped"},
     .hooks = {{.at = ET_AT_MASK, .whole = another_order}}},
    {.doc = {"overflow-capacity", "the capacity of an expert is another number of slots", "selection"}, .applies = et_drops,
     .variants = {"one too many", "one too few", "rounded down", "without the factor K", "without the capacity factor", "tokens over experts rounded up first", "of padding tokens, too"},
     .hooks = {{.at = ET_AT_MASK, .whole = another_capacity}}},
    {.doc = {"overflow-of-step", "the capacity is the step's, not a micro-batch's", "selection"}, .applies = drops_in_parts,
     .variants = {"its slots, in each micro-batch", "its slots, and one line", "one line, for a micro-batch's slots"},
     .hooks = {{.at = ET_AT_MASK, .whole = capacity_of_step}}},
    {.doc = {"aux-after-dropping", "the balancing loss counts slots, not choices: what was dropped is missing", "backward"}, .applies = counts_choices,
     .hooks = {{.at = ET_AT_LOSSES, .settings = slots_alone}}},
    {.doc = {"groups-ignored", "experts are chosen from all groups", "selection"}, .applies = is_limited,
     .hooks = {{.at = ET_AT_PLAN, .settings = no_limit}}},
    {.doc = {"groups-kept-off-by-one", "one group too many is kept, or one too few", "selection"}, .applies = is_limited,
     .variants = {"one too many", "one too few"}, .hooks = {{.at = ET_AT_PLAN, .settings = other_kept}}},
    {.doc = {"group-score", "groups are kept by another score", "selection"}, .applies = is_limited,
     .variants = {"without the bias", "the best member where the two best are due, or back", "the sum of all members", "of gate values, or of logits where those are due"},
     .hooks = {{.at = ET_AT_MASK, .whole = another_group_score}}},
    {.doc = {"refused-group-zero", "experts of refused groups have score 0, and are chosen before negative ones", "selection"}, .applies = is_limited,
     .hooks = {{.at = ET_AT_MASK, .whole = filled_with_zeros}}},
    {.doc = {"given-routing-ignored", "tokens go where the rule sends them, not where the given assignment does", "selection"}, .applies = is_given,
     .hooks = {{.at = ET_AT_PLAN, .settings = by_own_rule}}},
};
/* clang-format on */

const et_faults et_token_faults = ET_FAULTS(table);
