/* judge_token_choices.c: the candidate's decisions under token choice: within groups of experts, and with a capacity. Of part 1 of
 * the verdict; what "settled" means is said in judge_routing.c.
 *
 * Groups. A group's score errs like its member's, or like the sum of two of them. Kept are those with the highest scores, so
 * no refused group precedes a kept one; and of the kept ones' experts no refused one precedes a chosen one. Which groups the
 * candidate refused is seen where they have no expert of the token's: those that the golden refused, too, before others.
 *
 * Capacity. What was dropped is not in the mask. A candidate that lists its choices has said so; else the best of what it has
 * not are taken to be chosen, K in all, where their expert is full: nothing else can have been dropped. The choices are then
 * judged like any; and of an expert's choices none that is dropped stands before one that is kept for sure,
 *
 *     by arrival   latest(a) < earliest(b), or latest(a) <= earliest(b) and token a < token b: between which positions a
 *                  choice stands in its token's list
 *     by score     p_a precedes p_b
 */
#include "ref/base/memory.h"
#include "ref/step/case_kinds.h"
#include "ref/step/bundle_routing.h"
#include "ref/step/tensors.h"
#include "ref/routing/duplicate_rows.h"
#include "ref/verdict/decisions.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

/* ---- groups ---- */

typedef struct groups {
    et_decisions *q;
    size_t count, size, kept, t;
    et_item *scores;            /* [count] of token t; place: the group */
    size_t *line;               /* [count] groups by falling score */
    uint8_t *out, *right, *has; /* [n] of groups that do not compete; [count] kept by the golden; [count] has a choice */
} groups;

/* The two largest variances of a group's members; of one for its maximum. */
static et_item score_of_group(const groups *g, size_t group)
{
    const et_decisions *q = g->q;
    size_t first = g->t * q->n + group * g->size;
    double largest = 0, second = 0;
    bool top2 = q->j->golden->c.group_score == ET_GROUP_TOP2;
    double best = -INFINITY, next = -INFINITY;
    for (size_t i = 0; i < g->size; i++) {
        et_item at = et_item_at(q, first + i);
        double lower = fmin(at.score, best), less = fmin(at.variance, largest);
        best = fmax(at.score, best);
        next = fmax(next, lower);
        largest = fmax(at.variance, largest);
        second = fmax(second, less);
    }
    return top2 ? (et_item){best + next, largest + second, group} : (et_item){best, largest, group};
}

/* Equal scores that carry errors are not told apart, but where they are exact. */
static bool group_precedes(const groups *g, size_t a, size_t b)
{
    const et_item *x = &g->scores[a], *y = &g->scores[b];
    double variance = x->variance + y->variance, lead = x->score - y->score;
    if (lead == 0 && variance == 0) return g->q->ranked && a < b;
    return lead > g->q->T * sqrt(variance);
}

static bool stands_before(const groups *g, size_t a, size_t b)
{
    double lead = g->scores[a].score - g->scores[b].score;
    return lead > 0 || (lead == 0 && a < b);
}

static void score_groups(groups *g)
{
    for (size_t j = 0; j < g->count; j++) g->scores[j] = score_of_group(g, j);
    for (size_t j = 0; j < g->count; j++) {
        size_t at = 0;
        for (size_t k = 0; k < g->count; k++) at += k != j && stands_before(g, k, j);
        g->line[at] = j;
        g->right[j] = at < g->kept;
    }
}

static void set_out(const groups *g, size_t group, bool out)
{
    for (size_t i = 0; i < g->size; i++) g->out[group * g->size + i] = out;
}

/* Every decision that hangs on groups whose order is not settled; of the settled ones the experts compete as ever. */
static void open_groups(const groups *g)
{
    et_decisions *q = g->q;
    bool any = false;
    for (size_t j = 0; j < g->count; j++) {
        bool open = false;
        for (size_t k = 0; k < g->count; k++)
            open = open || (g->right[j] != g->right[k] &&
                            !(g->right[j] ? group_precedes(g, j, k) : group_precedes(g, k, j)));
        set_out(g, j, !g->right[j]);
        for (size_t i = 0; open && i < g->size; i++) q->open[g->t * q->n + j * g->size + i] = 1;
        any = any || open;
    }
    for (size_t i = 0; any && i < q->n; i++)
        if (q->right[g->t * q->n + i] || !g->out[i]) q->open[g->t * q->n + i] = 1;
}

/* The groups that the candidate must have refused, as many as there are to be. */
static void find_refused(const groups *g)
{
    const uint8_t *mask = g->q->mask + g->t * g->q->n;
    size_t refuse = g->count - g->kept;
    for (size_t j = 0; j < g->count; j++) {
        g->has[j] = 0;
        for (size_t i = 0; i < g->size; i++) g->has[j] |= mask[j * g->size + i] != 0;
        set_out(g, j, false);
    }
    for (size_t at = g->count; at-- > 0 && refuse > 0;) {
        size_t j = g->line[at];
        if (g->has[j]) continue;
        set_out(g, j, true);
        refuse--;
    }
}

static void declare_group(const groups *g, size_t taken, size_t refused, size_t expert)
{
    et_decisions *q = g->q;
    if (!et_declare_illegal(q, g->t * q->n + expert)) return;
    snprintf(q->out->reason, sizeof q->out->reason,
             "token %zu takes experts of group %zu (score %.9g) and not of group %zu (%.9g): expert %zu is %s", g->t,
             taken, g->scores[taken].score, refused, g->scores[refused].score, expert,
             q->mask[g->t * q->n + expert] ? "one too many" : "missing");
}

/* No refused group precedes one with a choice; and no more than are kept have one. */
static void judge_groups(const groups *g)
{
    size_t with = 0;
    find_refused(g);
    for (size_t j = 0; j < g->count; j++) with += g->has[j];
    for (size_t j = 0; j < g->count; j++)
        for (size_t k = 0; g->has[j] && k < g->count; k++) {
            bool beyond = with > g->kept && !g->right[j] && g->right[k];
            if (!beyond && !(g->out[k * g->size] && group_precedes(g, k, j))) continue;
            for (size_t i = 0; i < g->size; i++) {
                declare_group(g, j, k, j * g->size + i);
                declare_group(g, j, k, k * g->size + i);
            }
        }
}

static void judge_limited(groups *g)
{
    et_decisions *q = g->q;
    const et_choice all = {g->t * q->n, 1, q->n};
    score_groups(g);
    open_groups(g);
    q->out_of_choice = g->out;
    et_open_pairs(q, all); /* among the experts of the groups kept */
    if (q->mask) {
        judge_groups(g);
        et_judge_top(q, all, q->j->golden->c.top_k);
    }
    q->out_of_choice = NULL;
}

static et_status judge_in_groups(et_decisions *q, et_error *error)
{
    const et_case *c = &q->j->golden->c;
    groups g = {.q = q, .count = c->groups, .size = q->n / c->groups, .kept = c->groups_kept};
    void *scores = NULL, *line = NULL, *marks = NULL;
    et_status status = et_allocate(&scores, g.count, sizeof *g.scores, "routing", error);
    if (status == ET_OK) status = et_allocate(&line, g.count, sizeof *g.line, "routing", error);
    if (status == ET_OK) status = et_allocate(&marks, q->n + 2 * g.count, 1, "routing", error);
    g.scores = scores;
    g.line = line;
    g.out = marks;
    for (g.t = 0; status == ET_OK && g.t < q->N; g.t++) {
        if (is_padding(c, g.t)) continue;
        g.right = g.out + q->n;
        g.has = g.right + g.count;
        judge_limited(&g);
    }
    free(marks);
    free(line);
    free(scores);
    return status;
}

static et_status judge_choices(et_decisions *q, et_error *error)
{
    const et_case *c = &q->j->golden->c;
    if (has_groups(c)) return judge_in_groups(q, error);
    for (size_t t = 0; t < q->N; t++) {
        const et_choice experts = {t * q->n, 1, q->n};
        if (is_padding(c, t)) continue; /* judged by itself */
        et_open_pairs(q, experts);
        et_judge_top(q, experts, c->top_k);
    }
    return ET_OK;
}

/* ---- capacity ---- */

typedef struct line {
    et_decisions *q;
    size_t K, slots, batch;  /* of an expert; tokens of a micro-batch */
    const uint8_t *chosen;   /* [N,n] */
    uint8_t *full;           /* [N/batch,n] of the candidate's experts */
    int32_t *first, *last;   /* [N,n] by arrival: earliest and latest position of a choice in its token's list */
} line;

static size_t load_of(const et_decisions *q, const uint8_t *mask, size_t first, size_t batch)
{
    size_t load = 0;
    for (size_t t = 0; t < batch; t++) load += mask[first + t * q->n] != 0;
    return load;
}

static size_t columns(const line *l)
{
    return l->q->N / l->batch * l->q->n;
}

static bool is_full(const line *l, size_t place)
{
    size_t n = l->q->n;
    return l->full[place / (l->batch * n) * n + place % n];
}

/* The candidate's choices as it lists them, if it does and they can be read. */
static bool read_choices(const line *l, uint8_t *chosen)
{
    const et_judgement *j = l->q->j;
    const et_tensor_out *topk =
        et_tensor_named(j->candidate, j->count, et_tensors[ET_ROUTE_TOPK_EXPERT].doc.name);
    char reason[256];
    et_shown r = {&j->golden->c, topk, 1, chosen, reason, sizeof reason};
    size_t place;
    for (size_t i = 0; topk && i < et_tensor_count(topk); i++)
        if (!et_shown_nothing(&r, topk, i) &&
            (!et_shown_choice(&r, topk, i, &place) || !et_shown_slot(&r, topk, i, place)))
            return false;
    return topk != NULL;
}

/* A choice of the golden's that the candidate has not, whose expert has room, and which comes before any that may have been
 * dropped: `best`, or none. n: there is none such. */
static size_t choice_with_room(const line *l, const uint8_t *chosen, size_t t, size_t best)
{
    const et_decisions *q = l->q;
    const uint8_t *right = q->j->golden->route.chosen + t * q->n;
    /* a rule has experts. NOLINTNEXTLINE(clang-analyzer-core.DivideZero) */
    et_item other = et_item_at(q, t * q->n + best % q->n);
    for (size_t i = 0; i < q->n; i++) {
        et_item own = et_item_at(q, t * q->n + i);
        if (right[i] && !chosen[i] && (best == q->n || et_precedes(q, &own, &other))) return i;
    }
    return q->n;
}

/* The best of token t's experts that it has not chosen and that may have dropped it, the golden's choices first; one with
 * room where that is settled, which will be declared illegal; n: none. */
static size_t next_choice(const line *l, const uint8_t *chosen, size_t t)
{
    const et_decisions *q = l->q;
    const uint8_t *right = q->j->golden->route.chosen + t * q->n;
    size_t best = q->n;
    for (size_t i = 0; i < q->n; i++) {
        if (chosen[i] || !is_full(l, t * q->n + i)) continue;
        double lead = best == q->n ? 1
                                   : et_item_at(q, t * q->n + i).score -
                                         et_item_at(q, t * q->n + best).score;
        if (best == q->n || (right[i] == right[best] ? lead > 0 : right[i] > right[best])) best = i;
    }
    if (best < q->n && right[best]) return best;
    size_t roomy = choice_with_room(l, chosen, t, best);
    return roomy < q->n ? roomy : best;
}

static void complete(const line *l, uint8_t *chosen)
{
    const et_decisions *q = l->q;
    size_t N = q->N, n = q->n, i;
    for (size_t t = 0; t < N; t += l->batch) /* a column: an expert in a micro-batch */
        for (i = 0; i < n; i++)
            l->full[t / l->batch * n + i] = load_of(q, q->j->mask, t * n + i, l->batch) >= l->slots;
    bool listed = read_choices(l, chosen);
    for (size_t t = 0; t < N; t++) {
        if (is_padding(&q->j->golden->c, t)) continue;
        uint8_t *own = chosen + t * n;
        const uint8_t *mask = q->j->mask + t * n;
        size_t count = 0;
        for (i = 0; i < n; i++) count += own[i] = mask[i] || (listed && own[i]);
        while (count < l->K && (i = next_choice(l, own, t)) < n) own[i] = 1, count++;
    }
}

/* Where in its token's list each choice may stand. */
static void find_positions(const line *l)
{
    const et_decisions *q = l->q;
    size_t n = q->n;
    for (size_t a = 0; a < q->N * n; a++) {
        if (!l->chosen[a] && !q->open[a]) continue;
        et_item mine = et_item_at(q, a);
        size_t before = 0, behind = 0;
        const size_t first = a - a % n; /* of the token. NOLINT(clang-analyzer-core.DivideZero) */
        for (size_t b = first; b < first + n; b++) {
            if (b == a || !l->chosen[b]) continue;
            et_item other = et_item_at(q, b);
            before += et_precedes(q, &other, &mine);
            behind += et_precedes(q, &mine, &other);
        }
        l->first[a] = (int32_t)before;
        l->last[a] = (int32_t)(l->K - 1 - (behind < l->K - 1 ? behind : l->K - 1));
    }
}

/* Does choice a of an expert stand in the line before choice b, whatever rounding did? */
static bool comes_before(const line *l, size_t a, size_t b)
{
    const et_decisions *q = l->q;
    if (l->first) return l->last[a] < l->first[b] || (a < b && l->last[a] <= l->first[b]);
    et_item x = et_item_at(q, a), y = et_item_at(q, b);
    return et_precedes(q, &x, &y);
}

/* Of the golden's choices in one column those of which it is not settled whether they are kept. */
static void open_column(const line *l, size_t first)
{
    et_decisions *q = l->q;
    size_t end = first + l->batch * q->n, possible = 0;
    for (size_t a = first; a < end; a += q->n) possible += l->chosen[a] || q->open[a];
    if (possible <= l->slots) return;
    for (size_t a = first; a < end; a += q->n) {
        size_t may = 0, must = 0;
        if (!l->chosen[a] || q->open[a]) continue;
        for (size_t b = first; b < end; b += q->n) {
            if (b == a || (!l->chosen[b] && !(q->open[b] & 1))) continue;
            may += !comes_before(l, a, b);
            must += l->chosen[b] && !(q->open[b] & 1) && comes_before(l, b, a);
        }
        if (may >= l->slots && must < l->slots) q->open[a] = 2; /* as yet: others hang on what was open before */
    }
}

static void declare_drop(et_decisions *q, size_t dropped, size_t kept)
{
    for (int i = 0; i < 2; i++)
        if (et_declare_illegal(q, i ? kept : dropped))
            snprintf(q->out->reason, sizeof q->out->reason,
                     "expert %zu drops token %zu and keeps token %zu, which stands behind it", kept % q->n,
                     dropped / q->n, kept / q->n);
}

static void judge_column(const line *l, size_t first)
{
    et_decisions *q = l->q;
    size_t end = first + l->batch * q->n, load = load_of(q, q->mask, first, l->batch);
    et_judge_count(q, (et_choice){first, q->n, l->batch}, 0, l->slots);
    for (size_t a = first; a < end; a += q->n) {
        if (!l->chosen[a] || q->mask[a]) continue;
        if (load < l->slots && et_declare_illegal(q, a))
            snprintf(q->out->reason, sizeof q->out->reason,
                     "expert %zu drops token %zu and has %zu of %zu slots", a % q->n, a / q->n, load, l->slots);
        for (size_t b = first; load >= l->slots && b < end; b += q->n)
            if (q->mask[b] && comes_before(l, a, b)) declare_drop(q, a, b);
    }
}

/* By score gate values compete, and tokens with equal rows of x tie. */
static et_status compare_gates(et_decisions *q, et_error *error)
{
    const et_step *golden = q->j->golden;
    q->by_gate = true;
    return et_find_duplicate_rows(q->N, golden->c.d_model, golden->in.x, q->duplicate, error);
}

/* Of the golden's choices what is open, of the candidate's what is wrong. */
static et_status judge_drops(line *l, const uint8_t *own, et_error *error)
{
    et_decisions *q = l->q;
    const et_step *golden = q->j->golden;
    size_t places = q->N * q->n;
    void *room = NULL;
    et_status status = golden->c.drop == ET_DROP_BY_SCORE
                           ? compare_gates(q, error)
                           : et_allocate(&room, 2 * places, sizeof(int32_t), "routing", error);
    l->first = room;
    l->last = room ? l->first + places : NULL;
    int sides = q->mask ? 2 : 1; /* the golden's, the candidate's */
    for (int candidate = 0; status == ET_OK && candidate < sides; candidate++) {
        l->chosen = candidate ? own : golden->route.chosen;
        q->by_token = true; /* positions are among a token's experts */
        if (room) find_positions(l);
        q->by_token = false;
        for (size_t first = 0; first < places; first += l->batch * q->n)
            for (size_t i = 0; i < q->n; i++)
                (candidate ? judge_column : open_column)(l, first + i);
    }
    free(room);
    return status;
}

et_status et_judge_tokens(et_decisions *q, et_error *error)
{
    const et_step *golden = q->j->golden;
    const et_case *c = &golden->c;
    line l = {.q = q, .K = c->top_k, .slots = et_case_token_capacity(c), .batch = et_case_micro_tokens(c)};
    void *chosen;
    if (!drops(c)) return judge_choices(q, error);
    et_status status = et_allocate(&chosen, q->N * q->n + columns(&l), 1, "choices", error);
    if (status != ET_OK) return status;
    l.full = (uint8_t *)chosen + q->N * q->n;
    if (q->mask) complete(&l, chosen);
    q->right = golden->route.chosen;
    q->mask = q->mask ? chosen : NULL;
    status = judge_choices(q, error);
    q->right = golden->route.mask;
    q->mask = q->j->mask;
    if (status == ET_OK) status = judge_drops(&l, chosen, error);
    free(chosen);
    return status;
}
