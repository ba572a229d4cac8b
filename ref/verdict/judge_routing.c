/* judge_routing.c: the candidate's decisions, each by itself. Part 1 of the verdict (etref/verify.h).
 *
 * A kernel decides by scores s~ = s + e. What is known of e is its variance V, so two scores settle
 * their order only if
 *
 *     a precedes b:   s_a - s_b > T sqrt(V_a + V_b),
 *
 * or if they are equal by construction and a has the lower index: both exact, or computed from equal
 * rows by the same instructions (duplicates: equal rows of x where tokens compete, equal rows of W_r and
 * equal biases where experts do). T is T_e, `element` in ref/bars/limits.c: what an element may err by.
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
 * A pair of which the lower score was chosen and the higher refused has at least one member on which candidate and golden
 * differ; where they agree one pass over the mask is enough. Left out: that duplicates on an open threshold fall alike.
 */
#include "ref/base/memory.h"
#include "ref/step/decide.h"
#include "ref/step/case_kinds.h"
#include "ref/step/bundle_routing.h"
#include "ref/routing/duplicate_rows.h"
#include "ref/verdict/decisions.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- reading: the candidate's mask, from whatever it shows ---- */

et_status et_routing_read(const et_judgement *j, uint8_t **mask, et_routing_verdict *out,
                          et_error *error)
{
    const et_case *c = &j->golden->c;
    void *room;
    *mask = NULL;
    et_status status = et_allocate(&room, c->tokens * c->experts, sizeof(uint8_t), "assignment", error);
    if (status != ET_OK) return status;
    et_shown r = {c, j->candidate, j->count, room, out->reason, sizeof out->reason};
    bool readable = et_shown_assignment(&r, &out->shown);
    if (!readable) out->outcome = ET_MISMATCH;
    if (readable && out->shown)
        *mask = room;
    else
        free(room);
    return ET_OK;
}

/* ---- the scores, and their order ---- */

double et_score_variance(const et_judgement *j, size_t place)
{
    const et_moe_values *of = &j->bars->variance.fwd;
    bool gates = et_step_scores(j->golden) == j->golden->fwd.gates;
    return (double)(gates ? of->gates : of->logits)[place];
}

et_item et_item_at(const et_decisions *q, size_t place)
{
    const et_step *golden = q->j->golden;
    double score = (double)et_step_scores(golden)[place];
    if (q->by_gate)
        return (et_item){(double)golden->fwd.gates[place],
                         (double)q->j->bars->variance.fwd.gates[place], place};
    if (q->by_token && golden->in.bias) score += (double)golden->in.bias[place % q->n];
    return (et_item){score, et_score_variance(q->j, place), place};
}

static bool are_duplicates(const et_decisions *q, const et_item *a, const et_item *b)
{
    const et_real *bias = q->j->golden->in.bias;
    const int32_t *duplicate = q->duplicate;
    if (!q->by_token) return duplicate[a->place / q->n] == duplicate[b->place / q->n];
    size_t i = a->place % q->n, k = b->place % q->n;
    return duplicate[i] == duplicate[k] && (bias == NULL || bias[i] == bias[k]);
}

/* Must a be chosen before b, whatever rounding did? */
bool et_precedes(const et_decisions *q, const et_item *a, const et_item *b)
{
    double variance = a->variance + b->variance, lead = a->score - b->score;
    if (lead > q->T * sqrt(variance)) return true;
    return lead == 0 && q->ranked && a->place < b->place &&
           (variance == 0 || are_duplicates(q, a, b));
}

static void close_court(et_decisions *q)
{
    free(q->duplicate);
    free(q->low);
    free(q->high);
    free(q->illegal);
}

static et_status open_court(et_decisions *q, const et_judgement *j, et_error *error)
{
    const et_step *golden = j->golden;
    size_t N = golden->c.tokens, n = golden->c.experts, most = N > n ? N : n;
    const et_real *rows = golden->c.rule == ET_TC ? golden->in.router : golden->in.x;
    bool by_token = golden->c.rule == ET_TC;
    *q = (et_decisions){.j = j, .N = N, .n = n, .by_token = by_token, .first = N * n};
    q->T = j->bars->limits.element;
    q->ranked = !j->options->ties_any;
    q->mask = j->mask;
    q->right = golden->route.mask;
    et_status status = et_allocate((void **)&q->low, most, sizeof *q->low, "routing", error);
    if (status == ET_OK)
        status = et_allocate((void **)&q->high, most, sizeof *q->high, "routing", error);
    if (status == ET_OK)
        status = et_allocate((void **)&q->illegal, N * n, sizeof *q->illegal, "routing", error);
    if (status == ET_OK)
        status = et_allocate((void **)&q->duplicate, most, sizeof *q->duplicate, "routing", error);
    if (status == ET_OK)
        status =
            et_find_duplicate_rows(by_token ? n : N, golden->c.d_model, rows, q->duplicate, error);
    if (status != ET_OK) close_court(q);
    return status;
}

/* ---- illegal decisions ---- */

/* The decision at `place` is illegal, unless it is the golden's own: then what it was compared with
 * differs and is itself illegal. True if it is the first one so far: the caller gives the reason. */
bool et_declare_illegal(et_decisions *q, size_t place)
{
    if ((q->right[place] != 0) == (q->mask[place] != 0)) return false;
    if (!q->illegal[place]) q->out->illegal++;
    q->illegal[place] = 1;
    if (place >= q->first) return false;
    q->first = place;
    q->out->token = place / q->n;
    q->out->expert = place % q->n;
    return true;
}

static void declare_pair(et_decisions *q, const et_item *taken, const et_item *refused, size_t place)
{
    if (!et_declare_illegal(q, place)) return;
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

static void declare_threshold(et_decisions *q, const et_item *at, double c, double sigma)
{
    if (!et_declare_illegal(q, at->place)) return;
    snprintf(q->out->reason, sizeof q->out->reason,
             "expert %zu %s token %zu: score %.9g, threshold %.9g, deviation %.3g, %.3g of them "
             "allowed",
             at->place % q->n, q->mask[at->place] ? "takes" : "refuses", at->place / q->n,
             at->score, c, sigma, q->T);
}

/* ---- one choice ---- */

static size_t place_of(et_choice c, size_t j)
{
    return c.first + j * c.step;
}

static size_t count_chosen(et_choice c, const uint8_t *mask)
{
    size_t chosen = 0;
    for (size_t j = 0; j < c.count; j++) chosen += mask[place_of(c, j)] != 0;
    return chosen;
}

static bool agrees(const et_decisions *q, et_choice c)
{
    for (size_t j = 0; j < c.count; j++)
        if ((q->mask[place_of(c, j)] != 0) != (q->right[place_of(c, j)] != 0)) return false;
    return true;
}

static int ascending(const void *left, const void *right)
{
    const et_item *a = left, *b = right;
    if (a->score != b->score) return a->score < b->score ? -1 : 1;
    return (a->place > b->place) - (a->place < b->place);
}

static int descending(const void *left, const void *right)
{
    return ascending(right, left);
}

/* Does it compete at all? Not with its group refused. */
static bool is_out(const et_decisions *q, const et_item *at)
{
    return q->out_of_choice && q->out_of_choice[at->place % q->n];
}

/* The chosen and the refused ones that come near enough to each other to be compared: those whose
 * scores overlap, give or take T deviations if `noisy`. Sorted, nearest to the other side first. */
static void gather_near(et_decisions *q, et_choice c, const uint8_t *mask, bool noisy, size_t *lows,
                        size_t *highs)
{
    double worst = INFINITY, best = -INFINITY, most[2] = {0, 0};
    for (size_t j = 0; j < c.count; j++) {
        et_item at = et_item_at(q, place_of(c, j));
        bool chosen = mask[at.place] != 0;
        if (is_out(q, &at)) continue;
        if (chosen && at.score < worst) worst = at.score;
        if (!chosen && at.score > best) best = at.score;
        if (noisy && at.variance > most[chosen]) most[chosen] = at.variance;
    }
    *lows = *highs = 0;
    for (size_t j = 0; j < c.count; j++) {
        et_item at = et_item_at(q, place_of(c, j));
        bool chosen = mask[at.place] != 0;
        if (is_out(q, &at)) continue;
        double reach = noisy ? q->T * sqrt(at.variance + most[!chosen]) : 0;
        if (chosen && at.score - best <= reach) q->low[(*lows)++] = at;
        if (!chosen && worst - at.score <= reach) q->high[(*highs)++] = at;
    }
    qsort(q->low, *lows, sizeof *q->low, ascending);
    qsort(q->high, *highs, sizeof *q->high, descending);
}

/* No refused one precedes a chosen one. */
static void judge_pairs(et_decisions *q, et_choice c)
{
    size_t lows, highs, i, k;
    gather_near(q, c, q->mask, false, &lows, &highs);
    for (k = 0; k < highs; k++) {
        const et_item *high = &q->high[k];
        for (i = 0; i < lows && q->low[i].score <= high->score; i++)
            if (et_precedes(q, high, &q->low[i])) {
                declare_pair(q, &q->low[i], high, high->place);
                break;
            }
    }
    for (i = 0; i < lows; i++) {
        const et_item *low = &q->low[i];
        for (k = 0; k < highs && q->high[k].score >= low->score; k++)
            if (et_precedes(q, &q->high[k], low)) {
                declare_pair(q, low, &q->high[k], low->place);
                break;
            }
    }
}

/* The load must lie between `least` and `most`: of the surplus, or of what lacks, the first are
 * convicted. */
void et_judge_count(et_decisions *q, et_choice c, size_t least, size_t most)
{
    const uint8_t *mask = q->mask, *golden = q->right;
    size_t taken = count_chosen(c, mask);
    if (taken >= least && taken <= most) return;
    bool surplus = taken > most;
    size_t wrong = surplus ? taken - most : least - taken;
    for (size_t j = 0; j < c.count && wrong > 0; j++) {
        size_t place = place_of(c, j), token = place / q->n, expert = place % q->n;
        bool suspect = surplus ? mask[place] && !golden[place] : !mask[place] && golden[place];
        if (!suspect) continue;
        wrong--;
        if (!et_declare_illegal(q, place)) continue;
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
void et_open_pairs(et_decisions *q, et_choice c)
{
    size_t lows, highs, i, k;
    gather_near(q, c, q->right, true, &lows, &highs);
    for (i = 0; i < lows; i++)
        for (k = 0; k < highs && !q->open[q->low[i].place]; k++)
            if (!et_precedes(q, &q->low[i], &q->high[k])) q->open[q->low[i].place] = 1;
    for (k = 0; k < highs; k++)
        for (i = 0; i < lows && !q->open[q->high[k].place]; i++)
            if (!et_precedes(q, &q->low[i], &q->high[k])) q->open[q->high[k].place] = 1;
}

void et_judge_top(et_decisions *q, et_choice c, size_t k)
{
    if (!q->mask || agrees(q, c)) return;
    et_judge_count(q, c, k, k);
    judge_pairs(q, c);
}

/* ---- thresholds ---- */

/* What an expert of one micro-batch tests its tokens by. bounds: 0 and their number without capacity. */
typedef struct threshold {
    double c, variance; /* the threshold, and its own error's */
    bool inclusive, clamped;
    et_capacity bounds;
} threshold;

typedef enum side { BELOW, OPEN, ABOVE } side; /* as far as it is settled */

static side side_of(const et_decisions *q, const threshold *b, const et_item *at)
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
static void judge_sides(et_decisions *q, et_choice c, const threshold *b, bool padded, bool cut)
{
    for (size_t j = 0; j < c.count; j++) {
        et_item at = et_item_at(q, place_of(c, j));
        side here = side_of(q, b, &at);
        bool taken = q->mask[at.place] != 0;
        if ((taken && here == BELOW && !padded) || (!taken && here == ABOVE && !cut))
            declare_threshold(q, &at, b->c, sqrt(at.variance + b->variance));
    }
}

/* The candidate's load, then single decisions, then pairs. Ties matter where the best are taken. */
static void judge_load(et_decisions *q, et_choice c, const threshold *b, size_t least, size_t most)
{
    size_t taken = count_chosen(c, q->mask);
    bool padded = b->clamped && taken == b->bounds.lower, ranked = q->ranked;
    bool cut = b->clamped && taken == b->bounds.upper;
    judge_sides(q, c, b, padded, cut);
    if (b->clamped) et_judge_count(q, c, least, most);
    q->ranked = ranked && (padded || cut);
    judge_pairs(q, c);
    q->ranked = ranked;
}

static void judge_threshold(et_decisions *q, et_choice c, const threshold *b)
{
    size_t sure = 0, possible = 0;
    for (size_t j = 0; j < c.count; j++) {
        et_item at = et_item_at(q, place_of(c, j));
        side here = side_of(q, b, &at);
        sure += here == ABOVE;
        possible += here != BELOW;
    }
    size_t least = clamp(sure, b->bounds), most = clamp(possible, b->bounds);
    bool ranks = b->clamped && (sure < b->bounds.lower || possible > b->bounds.upper);
    if (ranks) et_open_pairs(q, c);
    if (possible > sure) q->counts_open = true;
    for (size_t j = 0; least < most && j < c.count;
         j++) { /* else the load is what a bound makes it */
        et_item at = et_item_at(q, place_of(c, j));
        if (side_of(q, b, &at) == OPEN) q->open[at.place] = 1;
    }
    if (q->mask && !agrees(q, c)) judge_load(q, c, b, least, most);
}

/* ---- the whole step ---- */

/* Nobody decides. */
static void judge_given(et_decisions *q)
{
    for (size_t place = 0; q->mask && place < q->N * q->n; place++)
        if (et_declare_illegal(q, place))
            snprintf(q->out->reason, sizeof q->out->reason,
                     "token %zu is %s expert %zu, against the given assignment", place / q->n,
                     q->mask[place] ? "with" : "not with", place % q->n);
}

/* Padding takes no expert, whatever the rule. */
static void judge_padding(et_decisions *q)
{
    const et_case *c = &q->j->golden->c;
    for (size_t place = 0; q->mask && has_padding(c) && place < q->N * q->n; place++)
        if (is_padding(c, place / q->n) && et_declare_illegal(q, place))
            snprintf(q->out->reason, sizeof q->out->reason,
                     "token %zu is padding and is with expert %zu", place / q->n, place % q->n);
}

static void judge_pools(et_decisions *q)
{
    const et_case *c = &q->j->golden->c;
    for (size_t pool = 0; pool < c->micro_batches * pools_of_batch(c); pool++)
        for (size_t i = 0; i < q->n; i++) {
            et_span P = pool_of(c, pool);
            const et_choice tokens = {P.first * q->n + i, q->n, P.count};
            et_open_pairs(q, tokens);
            et_judge_top(q, tokens, c->target_load);
        }
}

static void judge_thresholds(et_decisions *q)
{
    const et_judgement *j = q->j;
    const et_case *c = &j->golden->c;
    size_t real = et_case_real_tokens(c);
    bool clamped = c->has_capacity && !c->eval;
    et_capacity bounds = {0, real};
    if (clamped) bounds = et_capacity_bounds(c->target_load, c->capacity_factor, real);
    for (size_t batch = 0; batch < c->micro_batches; batch++)
        for (size_t i = 0; i < q->n; i++) {
            et_span tokens = batch_of(c, batch);
            threshold b = {(double)j->golden->route.threshold[i],
                           (double)j->bars->variance.route.threshold[i], c->inclusive, clamped,
                           bounds};
            judge_threshold(q, (et_choice){tokens.first * q->n + i, q->n, tokens.count}, &b);
        }
}

static void conclude(const et_decisions *q)
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
    et_decisions q;
    et_status status = open_court(&q, j, error);
    if (status != ET_OK) return status;
    q.out = out;
    q.open = open;
    judge_padding(&q);
    if (j->golden->c.given)
        judge_given(&q);
    else if (j->golden->c.rule == ET_TC)
        status = et_judge_tokens(&q, error);
    else if (et_case_routes_by_choice(&j->golden->c))
        judge_pools(&q);
    else
        judge_thresholds(&q);
    if (status == ET_OK) conclude(&q);
    j->counts_open = q.counts_open;
    close_court(&q);
    return status;
}

/* ---- the order in which top-k lists name what they chose ---- */

/* Entry i may stand behind `low`, the lowest score of those before it in its row, and behind `last`,
 * the one just before it. */
static bool is_in_order(const et_decisions *q, const et_item *at, const et_item *low, const et_item *last,
                        const et_tensor_out *topk, size_t i, et_tensor_verdict *out)
{
    const et_item *before = et_precedes(q, at, low) ? low : et_precedes(q, at, last) ? last : NULL;
    if (before == NULL) return true;
    double sigma = sqrt(at->variance + before->variance);
    snprintf(out->reason, sizeof out->reason,
             "%s[%zu]: score %.9g stands behind %.9g, which is lower%s; %.3g of its deviation %.3g "
             "allowed",
             topk->name, i, at->score, before->score,
             at->score == before->score ? " in the order of ties" : "", q->T, sigma);
    return false;
}

static void judge_order(const et_decisions *q, et_shown *r, const et_tensor_out *topk, const uint8_t *mask,
                        et_tensor_verdict *out)
{
    size_t count = et_tensor_count(topk), width = topk->shape[topk->rank - 1], place;
    et_item low = {0}, last = {0};
    for (size_t i = 0; i < count; i++) {
        if (et_shown_nothing(r, topk, i)) continue;
        bool legal =
            et_shown_choice(r, topk, i, &place) && et_shown_slot(r, topk, i, place);
        if (legal && !mask[place] && !drops(&q->j->golden->c)) /* a dropped one is in the list alone */
            legal = et_not_shown(r, "%s[%zu]: token %zu is not with expert %zu in its assignment",
                                 topk->name, i, place / q->n, place % q->n);
        et_item at = legal ? et_item_at(q, place) : last;
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
    et_decisions q;
    et_status status = open_court(&q, j, error);
    if (status != ET_OK) return status;
    et_shown r = {&j->golden->c, topk, 1, q.illegal, out->reason, sizeof out->reason};
    judge_order(&q, &r, topk, j->mask ? j->mask : j->golden->route.mask, out);
    close_court(&q);
    return ET_OK;
}
