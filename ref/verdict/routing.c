/* routing.c: the candidate's decisions, each by itself. Part 1 of the verdict (etref/verify.h).
 *
 * A kernel decides by scores s~ = s + e. What is known of e is its variance V, so two scores settle
 * their order only if
 *
 *     a precedes b:   s_a - s_b > T sqrt(V_a + V_b),
 *
 * or if they are equal by construction and a has the lower index: both exact, or computed from equal
 * rows by the same instructions (twins: equal rows of x where tokens compete, equal rows of W_r and
 * equal biases where experts do). T is T_e of ref/bars/limits.c: what an element may err by.
 *
 * Whatever the rule, what was chosen is an upper set of the perturbed scores. So a choice is legal if
 * no refused one precedes a chosen one, and if the counts are right:
 *
 *     TC   K of each token's experts          EC   k of each pool's tokens, for every expert
 *     ET   m in all, the number of scores above the threshold c. A decision is settled if
 *          |r - c| > T sqrt(V_r + V_c), or by the test itself if nothing there carries an error; with
 *          `open` others m lies between settled passes and settled passes + open, and the load must be
 *          clamp(m) for one of these. A settled one may be refused only where the load is cut at the
 *          upper bound, taken only where it is padded to the lower.
 *
 * A pair that is in inverse order has at least one member on which candidate and golden differ, so
 * agreement costs one pass over the mask. Left out: that twins on an open threshold fall alike.
 */
#include "ref/base/memory.h"
#include "ref/routing/equal_rows.h"
#include "ref/verdict/judge.h"

#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- reading: the candidate's mask, from whatever it shows ---- */

typedef struct reader {
    const et_judgement *j;
    size_t N, n;
    uint8_t *mask;
    et_routing_verdict *out;
} reader;

#if defined(__GNUC__)
__attribute__((format(printf, 2, 3)))
#endif
static bool
unreadable(reader *r, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    r->out->outcome = ET_MISMATCH;
    vsnprintf(r->out->reason, sizeof r->out->reason, format, arguments);
    va_end(arguments);
    return false;
}

static const et_tensor_out *shown(const reader *r, et_tensor_id id)
{
    return et_tensor_named(r->j->candidate, r->j->count, et_tensors[id].doc.name);
}

/* Element i as an index below `limit`; false and a reason if it is none. */
static bool read_index(reader *r, const et_tensor_out *t, size_t i, size_t limit, size_t *index)
{
    double value = et_tensor_element(t, i);
    *index = 0;
    if (!(value >= 0 && value < (double)limit))
        return unreadable(r, "%s[%zu] = %.0f, must be 0 to %zu", t->name, i, value, limit - 1);
    *index = (size_t)value;
    return true;
}

static bool take_slot(reader *r, const et_tensor_out *t, size_t i, size_t token, size_t expert)
{
    uint8_t *z = &r->mask[token * r->n + expert];
    if (*z)
        return unreadable(r, "%s[%zu]: token %zu is with expert %zu twice", t->name, i, token,
                          expert);
    *z = 1;
    return true;
}

static void read_mask(reader *r, const et_tensor_out *mask)
{
    for (size_t i = 0; i < r->N * r->n; i++) r->mask[i] = et_tensor_element(mask, i) != 0;
}

static bool read_slots(reader *r, const et_tensor_out *tokens, const et_tensor_out *experts)
{
    size_t token, expert;
    if (tokens->shape[0] != experts->shape[0])
        return unreadable(r, "route.slot_token has %zu slots, route.slot_expert %zu",
                          tokens->shape[0], experts->shape[0]);
    for (size_t s = 0; s < tokens->shape[0]; s++)
        if (!read_index(r, tokens, s, r->N, &token) || !read_index(r, experts, s, r->n, &expert) ||
            !take_slot(r, tokens, s, token, expert))
            return false;
    return true;
}

static bool read_offsets(reader *r, const et_tensor_out *offsets, const et_tensor_out *tokens)
{
    size_t S = tokens->shape[0], first, end, token;
    if (et_tensor_element(offsets, 0) != 0)
        return unreadable(r, "route.expert_offsets[0] = %.0f, must be 0",
                          et_tensor_element(offsets, 0));
    if (et_tensor_element(offsets, r->n) != (double)S)
        return unreadable(r,
                          "route.expert_offsets[%zu] = %.0f, must be the %zu slots of "
                          "route.slot_token",
                          r->n, et_tensor_element(offsets, r->n), S);
    for (size_t i = 0; i < r->n; i++) {
        if (!read_index(r, offsets, i, S + 1, &first) ||
            !read_index(r, offsets, i + 1, S + 1, &end))
            return false;
        if (end < first)
            return unreadable(r, "route.expert_offsets[%zu] = %zu after %zu: they never fall",
                              i + 1, end, first);
        for (size_t s = first; s < end; s++)
            if (!read_index(r, tokens, s, r->N, &token) || !take_slot(r, tokens, s, token, i))
                return false;
    }
    return true;
}

/* An entry of route.topk_*: its place in the mask. */
static bool read_choice(reader *r, const et_tensor_out *topk, size_t i, size_t *place)
{
    const et_case *c = &r->j->golden->c;
    size_t index, width = topk->shape[topk->rank - 1], row = i / width;
    if (topk->rank == 2) { /* [N,K] experts of a token; -1: none, of padding */
        if (!read_index(r, topk, i, r->n, &index)) return false;
        *place = row * r->n + index;
        return true;
    }
    if (!read_index(r, topk, i, r->N, &index)) return false; /* [pools,n,k] tokens of an expert */
    size_t pool = row / r->n, first = pool * c->pool_tokens;
    if (index < first || index >= first + c->pool_tokens)
        return unreadable(r, "%s[%zu] = %zu, must be %zu to %zu in pool %zu", topk->name, i, index,
                          first, first + c->pool_tokens - 1, pool);
    *place = index * r->n + row % r->n;
    return true;
}

static bool read_choices(reader *r, const et_tensor_out *topk)
{
    size_t place;
    const int32_t *mask = r->j->golden->in.mask;
    for (size_t i = 0; i < et_tensor_count(topk); i++) {
        bool none = mask && topk->rank == 2 && !mask[i / topk->shape[1]] && et_tensor_element(topk, i) == -1;
        if (none) continue;
        if (!read_choice(r, topk, i, &place) || !take_slot(r, topk, i, place / r->n, place % r->n))
            return false;
    }
    return true;
}

et_status et_routing_read(const et_judgement *j, uint8_t **mask, et_routing_verdict *out,
                          et_error *error)
{
    const et_step *golden = j->golden;
    void *room;
    reader r = {.j = j, .N = golden->c.tokens, .n = golden->c.experts, .out = out};
    *mask = NULL;
    et_status status = et_allocate(&room, r.N * r.n, sizeof(uint8_t), "assignment", error);
    if (status != ET_OK) return status;
    r.mask = room;
    const et_tensor_out *whole = shown(&r, ET_ROUTE_MASK), *token = shown(&r, ET_ROUTE_SLOT_TOKEN),
                        *expert = shown(&r, ET_ROUTE_SLOT_EXPERT),
                        *offsets = shown(&r, ET_ROUTE_EXPERT_OFFSETS),
                        *topk = shown(&r, golden->c.rule == ET_TC ? ET_ROUTE_TOPK_EXPERT
                                                                  : ET_ROUTE_TOPK_TOKEN);
    bool readable = true;
    out->shown = true;
    if (whole)
        read_mask(&r, whole);
    else if (token && expert)
        readable = read_slots(&r, token, expert);
    else if (token && offsets)
        readable = read_offsets(&r, offsets, token);
    else if (topk)
        readable = read_choices(&r, topk);
    else
        out->shown = false;
    if (readable && out->shown)
        *mask = r.mask;
    else
        free(room);
    return ET_OK;
}

/* ---- the scores, and their order ---- */

typedef struct item {
    double score, variance;
    size_t place; /* in the mask; within one choice its order is that of the indices */
} item;

typedef struct court {
    const et_judgement *j;
    size_t N, n;
    double T;
    bool by_token;    /* TC: the experts of a token compete; else the tokens of an expert */
    bool ranked;      /* ties go to the lower index */
    bool counts_open; /* some expert's m is not settled */
    int32_t *twin;    /* of each competitor's row the first that is equal */
    item *low, *high; /* room for one choice */
    uint8_t *illegal; /* [N,n] */
    uint8_t *open;    /* [N,n] */
    size_t first;     /* the first illegal decision */
    et_routing_verdict *out;
} court;

double et_score_variance(const et_bars *bars, size_t place)
{
    return (double)bars->variance.fwd.logits[place];
}

static item item_at(const court *q, size_t place)
{
    const et_step *golden = q->j->golden;
    double score = (double)golden->fwd.logits[place];
    if (q->by_token && golden->in.bias) score += (double)golden->in.bias[place % q->n];
    return (item){score, et_score_variance(q->j->bars, place), place};
}

static bool twins(const court *q, const item *a, const item *b)
{
    const et_real *bias = q->j->golden->in.bias;
    const int32_t *twin = q->twin;
    if (!q->by_token) return twin[a->place / q->n] == twin[b->place / q->n];
    size_t i = a->place % q->n, k = b->place % q->n;
    return twin[i] == twin[k] && (bias == NULL || bias[i] == bias[k]);
}

/* Must a be chosen before b, whatever rounding did? */
static bool precedes(const court *q, const item *a, const item *b)
{
    double variance = a->variance + b->variance, lead = a->score - b->score;
    if (lead > q->T * sqrt(variance)) return true;
    return lead == 0 && q->ranked && a->place < b->place && (variance == 0 || twins(q, a, b));
}

static void close_court(court *q)
{
    free(q->twin);
    free(q->low);
    free(q->high);
    free(q->illegal);
}

static et_status open_court(court *q, const et_judgement *j, et_error *error)
{
    const et_step *golden = j->golden;
    size_t N = golden->c.tokens, n = golden->c.experts, most = N > n ? N : n;
    const et_real *rows = golden->c.rule == ET_TC ? golden->in.router : golden->in.x;
    bool by_token = golden->c.rule == ET_TC;
    *q = (court){.j = j, .N = N, .n = n, .by_token = by_token, .first = N * n};
    q->T = j->bars->limits.element;
    q->ranked = !j->options->ties_any;
    et_status status = et_allocate((void **)&q->low, most, sizeof *q->low, "routing", error);
    if (status == ET_OK)
        status = et_allocate((void **)&q->high, most, sizeof *q->high, "routing", error);
    if (status == ET_OK)
        status = et_allocate((void **)&q->illegal, N * n, sizeof *q->illegal, "routing", error);
    if (status == ET_OK)
        status = et_allocate((void **)&q->twin, most, sizeof *q->twin, "routing", error);
    if (status == ET_OK)
        status = et_find_equal_rows(by_token ? n : N, golden->c.d_model, rows, q->twin, error);
    if (status != ET_OK) close_court(q);
    return status;
}

/* ---- convictions ---- */

/* The decision at `place` is illegal, unless it is the golden's own: then what it was compared with
 * differs and is convicted itself. True if it is the first one so far: the caller gives the reason. */
static bool convict(court *q, size_t place)
{
    const uint8_t *golden = q->j->golden->route.mask, *mask = q->j->mask;
    if ((golden[place] != 0) == (mask[place] != 0)) return false;
    if (!q->illegal[place]) q->out->illegal++;
    q->illegal[place] = 1;
    if (place >= q->first) return false;
    q->first = place;
    q->out->token = place / q->n;
    q->out->expert = place % q->n;
    return true;
}

static void convict_pair(court *q, const item *taken, const item *refused, size_t place)
{
    if (!convict(q, place)) return;
    double apart = refused->score - taken->score, sigma = sqrt(taken->variance + refused->variance);
    char *reason = q->out->reason;
    size_t room = sizeof q->out->reason;
    int used = q->by_token ? snprintf(reason, room,
                                      "token %zu takes expert %zu (score %.9g) and not expert "
                                      "%zu (%.9g)",
                                      taken->place / q->n, taken->place % q->n, taken->score,
                                      refused->place % q->n, refused->score)
                           : snprintf(reason, room,
                                      "expert %zu takes token %zu (score %.9g) and not token "
                                      "%zu (%.9g)",
                                      taken->place % q->n, taken->place / q->n, taken->score,
                                      refused->place / q->n, refused->score);
    if (apart > 0 && sigma > 0)
        snprintf(reason + used, room - (size_t)used, ": %.3g apart, %.3g deviations, %.3g allowed",
                 apart, apart / sigma, q->T);
    else
        snprintf(reason + used, room - (size_t)used, ": %s",
                 apart > 0 ? "both are exact" : "ties go to the lower index");
}

static void convict_threshold(court *q, const item *at, double c, double sigma)
{
    if (!convict(q, at->place)) return;
    snprintf(q->out->reason, sizeof q->out->reason,
             "expert %zu %s token %zu: score %.9g, threshold %.9g, deviation %.3g, %.3g of them "
             "allowed",
             at->place % q->n, q->j->mask[at->place] ? "takes" : "refuses", at->place / q->n,
             at->score, c, sigma, q->T);
}

/* ---- one choice: `count` places from `first` on, `step` apart, in a mask ---- */

typedef struct choice {
    size_t first, step, count;
} choice;

static size_t place_of(choice c, size_t j)
{
    return c.first + j * c.step;
}

static size_t count_chosen(choice c, const uint8_t *mask)
{
    size_t chosen = 0;
    for (size_t j = 0; j < c.count; j++) chosen += mask[place_of(c, j)] != 0;
    return chosen;
}

static bool agrees(const court *q, choice c)
{
    for (size_t j = 0; j < c.count; j++)
        if ((q->j->mask[place_of(c, j)] != 0) != (q->j->golden->route.mask[place_of(c, j)] != 0))
            return false;
    return true;
}

static int ascending(const void *left, const void *right)
{
    const item *a = left, *b = right;
    if (a->score != b->score) return a->score < b->score ? -1 : 1;
    return (a->place > b->place) - (a->place < b->place);
}

static int descending(const void *left, const void *right)
{
    return ascending(right, left);
}

/* The chosen and the refused ones that come near enough to each other to be compared: those whose
 * scores overlap, give or take T deviations if `noisy`. Sorted, nearest to the other side first. */
static void gather_near(court *q, choice c, const uint8_t *mask, bool noisy, size_t *lows,
                        size_t *highs)
{
    double worst = INFINITY, best = -INFINITY, most[2] = {0, 0};
    for (size_t j = 0; j < c.count; j++) {
        item at = item_at(q, place_of(c, j));
        bool chosen = mask[at.place] != 0;
        if (chosen && at.score < worst) worst = at.score;
        if (!chosen && at.score > best) best = at.score;
        if (noisy && at.variance > most[chosen]) most[chosen] = at.variance;
    }
    *lows = *highs = 0;
    for (size_t j = 0; j < c.count; j++) {
        item at = item_at(q, place_of(c, j));
        bool chosen = mask[at.place] != 0;
        double reach = noisy ? q->T * sqrt(at.variance + most[!chosen]) : 0;
        if (chosen && at.score - best <= reach) q->low[(*lows)++] = at;
        if (!chosen && worst - at.score <= reach) q->high[(*highs)++] = at;
    }
    qsort(q->low, *lows, sizeof *q->low, ascending);
    qsort(q->high, *highs, sizeof *q->high, descending);
}

/* No refused one precedes a chosen one. */
static void judge_pairs(court *q, choice c)
{
    size_t lows, highs, i, k;
    gather_near(q, c, q->j->mask, false, &lows, &highs);
    for (k = 0; k < highs; k++) {
        const item *high = &q->high[k];
        for (i = 0; i < lows && q->low[i].score <= high->score; i++)
            if (precedes(q, high, &q->low[i])) {
                convict_pair(q, &q->low[i], high, high->place);
                break;
            }
    }
    for (i = 0; i < lows; i++) {
        const item *low = &q->low[i];
        for (k = 0; k < highs && q->high[k].score >= low->score; k++)
            if (precedes(q, &q->high[k], low)) {
                convict_pair(q, low, &q->high[k], low->place);
                break;
            }
    }
}

/* The load must lie between `least` and `most`: of the surplus, or of what lacks, the first are
 * convicted. */
static void judge_count(court *q, choice c, size_t least, size_t most)
{
    const uint8_t *mask = q->j->mask, *golden = q->j->golden->route.mask;
    size_t taken = count_chosen(c, mask);
    if (taken >= least && taken <= most) return;
    bool surplus = taken > most;
    size_t wrong = surplus ? taken - most : least - taken;
    for (size_t j = 0; j < c.count && wrong > 0; j++) {
        size_t place = place_of(c, j), token = place / q->n, expert = place % q->n;
        bool suspect = surplus ? mask[place] && !golden[place] : !mask[place] && golden[place];
        if (!suspect) continue;
        wrong--;
        if (!convict(q, place)) continue;
        char must[64];
        if (least == most)
            snprintf(must, sizeof must, "%zu", least);
        else
            snprintf(must, sizeof must, "%zu to %zu", least, most);
        if (q->by_token)
            snprintf(q->out->reason, sizeof q->out->reason,
                     "token %zu takes %zu experts, must take %s: expert %zu is %s", token, taken,
                     must, expert, surplus ? "one too many" : "missing");
        else
            snprintf(q->out->reason, sizeof q->out->reason,
                     "expert %zu takes %zu of tokens %zu to %zu, must take %s: token %zu is %s",
                     expert, taken, c.first / q->n, place_of(c, c.count - 1) / q->n, must, token,
                     surplus ? "one too many" : "missing");
    }
}

/* Golden decisions that could be exchanged with one of the other side. */
static void open_pairs(court *q, choice c)
{
    size_t lows, highs, i, k;
    gather_near(q, c, q->j->golden->route.mask, true, &lows, &highs);
    for (i = 0; i < lows; i++)
        for (k = 0; k < highs && !q->open[q->low[i].place]; k++)
            if (!precedes(q, &q->low[i], &q->high[k])) q->open[q->low[i].place] = 1;
    for (k = 0; k < highs; k++)
        for (i = 0; i < lows && !q->open[q->high[k].place]; i++)
            if (!precedes(q, &q->low[i], &q->high[k])) q->open[q->high[k].place] = 1;
}

static void judge_top(court *q, choice c, size_t k)
{
    open_pairs(q, c);
    if (!q->j->mask || agrees(q, c)) return;
    judge_count(q, c, k, k);
    judge_pairs(q, c);
}

/* ---- thresholds ---- */

/* What an expert of one micro-batch tests its tokens by. bounds: 0 and their number without capacity. */
typedef struct bar {
    double c, variance; /* the threshold, and its own error's */
    bool inclusive, clamped;
    et_capacity bounds;
} bar;

typedef enum side { BELOW, OPEN, ABOVE } side; /* as far as it is settled */

static side side_of(const court *q, const bar *b, const item *at)
{
    double variance = at->variance + b->variance, margin = at->score - b->c;
    if (variance == 0) return margin > 0 || (margin == 0 && b->inclusive) ? ABOVE : BELOW;
    double reach = q->T * sqrt(variance);
    return margin > reach ? ABOVE : margin < -reach ? BELOW : OPEN;
}

static size_t clamp(size_t m, et_capacity bounds)
{
    size_t least = m > bounds.lower ? m : bounds.lower;
    return least < bounds.upper ? least : bounds.upper;
}

/* Settled decisions that the candidate took against the threshold, and that no clamp excuses. */
static void judge_sides(court *q, choice c, const bar *b, bool padded, bool cut)
{
    for (size_t j = 0; j < c.count; j++) {
        item at = item_at(q, place_of(c, j));
        side here = side_of(q, b, &at);
        bool taken = q->j->mask[at.place] != 0;
        if ((taken && here == BELOW && !padded) || (!taken && here == ABOVE && !cut))
            convict_threshold(q, &at, b->c, sqrt(at.variance + b->variance));
    }
}

/* The candidate's load, then single decisions, then pairs. Ties matter where the best are taken. */
static void judge_load(court *q, choice c, const bar *b, size_t least, size_t most)
{
    size_t taken = count_chosen(c, q->j->mask);
    bool padded = b->clamped && taken == b->bounds.lower, ranked = q->ranked;
    bool cut = b->clamped && taken == b->bounds.upper;
    judge_sides(q, c, b, padded, cut);
    if (b->clamped) judge_count(q, c, least, most);
    q->ranked = ranked && (padded || cut);
    judge_pairs(q, c);
    q->ranked = ranked;
}

static void judge_threshold(court *q, choice c, const bar *b)
{
    size_t sure = 0, possible = 0;
    for (size_t j = 0; j < c.count; j++) {
        item at = item_at(q, place_of(c, j));
        side here = side_of(q, b, &at);
        sure += here == ABOVE;
        possible += here != BELOW;
    }
    size_t least = clamp(sure, b->bounds), most = clamp(possible, b->bounds);
    bool ranks = b->clamped && (sure < b->bounds.lower || possible > b->bounds.upper);
    if (ranks) open_pairs(q, c);
    if (possible > sure) q->counts_open = true;
    for (size_t j = 0; least < most && j < c.count;
         j++) { /* else the load is what a bound makes it */
        item at = item_at(q, place_of(c, j));
        if (side_of(q, b, &at) == OPEN) q->open[at.place] = 1;
    }
    if (q->j->mask && !agrees(q, c)) judge_load(q, c, b, least, most);
}

/* ---- the whole step ---- */

static void judge_tokens(court *q)
{
    size_t K = q->j->golden->c.top_k;
    const int32_t *mask = q->j->golden->in.mask; /* padding takes none */
    for (size_t t = 0; t < q->N; t++)
        judge_top(q, (choice){t * q->n, 1, q->n}, mask && !mask[t] ? 0 : K);
}

static void judge_pools(court *q)
{
    const et_case *c = &q->j->golden->c;
    size_t P = c->pool_tokens;
    for (size_t first = 0; first < q->N; first += P)
        for (size_t i = 0; i < q->n; i++)
            judge_top(q, (choice){first * q->n + i, q->n, P}, c->target_load);
}

static void judge_thresholds(court *q)
{
    const et_judgement *j = q->j;
    const et_case *c = &j->golden->c;
    size_t micro = et_case_micro_tokens(c);
    bool clamped = c->has_capacity && !c->eval;
    et_capacity bounds = {0, micro};
    if (clamped) bounds = et_capacity_bounds(c->target_load, c->capacity_factor, micro);
    for (size_t first = 0; first < q->N; first += micro)
        for (size_t i = 0; i < q->n; i++) {
            bar b = {(double)j->golden->route.threshold[i],
                     (double)j->bars->variance.route.threshold[i], c->inclusive, clamped, bounds};
            judge_threshold(q, (choice){first * q->n + i, q->n, micro}, &b);
        }
}

static void conclude(const court *q)
{
    et_routing_verdict *out = q->out;
    const uint8_t *golden = q->j->golden->route.mask, *mask = q->j->mask;
    out->decisions = q->N * q->n;
    for (size_t i = 0; i < out->decisions; i++) {
        out->open += q->open[i] != 0;
        out->differing += mask && (mask[i] != 0) != (golden[i] != 0);
    }
    if (out->illegal > 0) out->outcome = ET_MISMATCH;
    if (out->shown || out->open == 0) return;
    out->outcome = ET_INCONCLUSIVE;
    snprintf(out->reason, sizeof out->reason,
             "%zu of %zu decisions are open and the candidate does not show how it decided them; "
             "give route.mask",
             out->open, out->decisions);
}

et_status et_routing_judge(et_judgement *j, et_routing_verdict *out, uint8_t *open, et_error *error)
{
    court q;
    et_status status = open_court(&q, j, error);
    if (status != ET_OK) return status;
    q.out = out;
    q.open = open;
    if (j->golden->c.rule == ET_TC)
        judge_tokens(&q);
    else if (et_case_routes_by_choice(&j->golden->c))
        judge_pools(&q);
    else
        judge_thresholds(&q);
    conclude(&q);
    j->counts_open = q.counts_open;
    close_court(&q);
    return ET_OK;
}

/* ---- the order in which top-k lists name what they chose ---- */

/* Entry i may stand behind `low`, the lowest score of those before it in its row, and behind `last`,
 * the one just before it. */
static bool is_in_order(const court *q, const item *at, const item *low, const item *last,
                        const et_tensor_out *topk, size_t i, et_tensor_verdict *out)
{
    const item *before = precedes(q, at, low) ? low : precedes(q, at, last) ? last : NULL;
    if (before == NULL) return true;
    double sigma = sqrt(at->variance + before->variance);
    snprintf(out->reason, sizeof out->reason,
             "%s[%zu]: score %.9g stands behind %.9g, which is lower%s; %.3g of its deviation %.3g "
             "allowed",
             topk->name, i, at->score, before->score,
             at->score == before->score ? " in the order of ties" : "", q->T, sigma);
    return false;
}

static void judge_order(const court *q, reader *r, const et_tensor_out *topk, const uint8_t *mask,
                        et_tensor_verdict *out)
{
    size_t count = et_tensor_count(topk), width = topk->shape[topk->rank - 1], place;
    item low = {0}, last = {0};
    for (size_t i = 0; i < count; i++) {
        bool legal =
            read_choice(r, topk, i, &place) && take_slot(r, topk, i, place / q->n, place % q->n);
        if (legal && !mask[place])
            legal = unreadable(r, "%s[%zu]: token %zu is not with expert %zu in its assignment",
                               topk->name, i, place / q->n, place % q->n);
        if (!legal) snprintf(out->reason, sizeof out->reason, "%s", r->out->reason);
        item at = legal ? item_at(q, place) : last;
        if (legal && i % width > 0) legal = is_in_order(q, &at, &low, &last, topk, i, out);
        if (!legal) {
            out->outcome = ET_MISMATCH;
            out->worst = i;
            out->failed = 1;
            return;
        }
        if (i % width == 0 || at.score < low.score) low = at;
        last = at;
    }
}

et_status et_judge_order(const et_judgement *j, const et_tensor_out *topk, et_tensor_verdict *out,
                         et_error *error)
{
    court q;
    et_routing_verdict trouble = {0};
    et_status status = open_court(&q, j, error);
    if (status != ET_OK) return status;
    reader r = {.j = j, .N = q.N, .n = q.n, .mask = q.illegal, .out = &trouble};
    judge_order(&q, &r, topk, j->mask ? j->mask : j->golden->route.mask, out);
    close_court(&q);
    return ET_OK;
}
