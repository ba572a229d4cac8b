/* witness_routing.c: who goes where: 1 router and scores, 2 competition, 3 assignment.
 *
 * See witness.h for purpose and source, witness_parts.h for the letters.
 */
#include "witness_parts.h"

#include <math.h>
#include <quadmath.h>

/* 1 ---- Router and scores ---- */

/* r = x W_r^T                                                                  (paper, Eq. 1) */
static void compute_logits(const witness_case *c, witness *w)
{
    for (size_t t = 0; t < c->N; t++)
        for (size_t i = 0; i < c->n; i++) {
            quad r = 0;
            for (size_t j = 0; j < c->d; j++)
                r += (quad)c->x[t * c->d + j] * c->w_router[i * c->d + j];
            w->value[FWD_LOGITS][t * c->n + i] = r;
        }
}

/* The score is the logit, or where token choice selects by it the gate value, rounded to double; token choice adds its bias,
 * in double.
 * Rounded, because the layer under test holds its logits in double, and two of them that round
 * alike are a tie there. Ties that matter come from identical inputs, whose logits agree in any
 * precision. Everything else about a logit (gates, cutoffs) uses the unrounded r. */
static void compute_scores(const witness_case *c, witness *w)
{
    for (size_t t = 0; t < c->N; t++)
        for (size_t i = 0; i < c->n; i++) {
            size_t what = token_choice(c) && c->select_gates ? FWD_GATES : FWD_LOGITS;
            double s = (double)w->value[what][t * c->n + i];
            if (token_choice(c) && c->bias != NULL) s += c->bias[i];
            w->score[t * c->n + i] = s;
        }
}

/* 2 ---- Competition: who beats whom ----
 * A field is a set of scores that compete: the experts of one token (TC), or for one expert the
 * tokens of a pool (EC) or of a micro-batch (ET). Its members lie `stride` apart, in index order.
 */
typedef struct field {
    size_t size, stride;
    size_t first; /* place of member 0 in an [N,n] array */
} field;

static size_t place(const field *f, size_t member)
{
    return f->first + member * f->stride;
}

/* Tokens per field of one expert. */
static size_t field_tokens(const witness_case *c)
{
    return expert_choice(c) ? c->pool : real_tokens(c);
}

/* TC: field number t holds all experts of token t. */
static field experts_of_token(const witness_case *c, size_t t)
{
    return (field){.size = c->n, .stride = 1, .first = t * c->n};
}

/* EC, ET: expert i's competitors in the q-th pool or micro-batch. */
static field tokens_of_expert(const witness_case *c, size_t q, size_t i)
{
    size_t size = field_tokens(c), each = real_tokens(c) / size;
    size_t token = q / each * batch_tokens(c) + q % each * size;
    return (field){.size = size, .stride = c->n, .first = token * c->n + i};
}

/* rank_a = #{ b : s_b > s_a, or s_b = s_a and b < a }: higher score first, then lower index. */
static void rank_field(witness *w, const field *f)
{
    for (size_t a = 0; a < f->size; a++) {
        double mine = w->score[place(f, a)];
        size_t rank = 0;
        for (size_t b = 0; b < f->size; b++) {
            double other = w->score[place(f, b)];
            rank += other > mine || (other == mine && b < a);
        }
        w->rank[place(f, a)] = rank;
    }
}

/* The member with a given rank; f->size if there is none. */
static size_t member_of_rank(const witness *w, const field *f, size_t rank)
{
    size_t a = 0;
    while (a < f->size && w->rank[place(f, a)] != rank) a++;
    return a;
}

/* z = 1 for the `taken` best of a field. Margin of a chosen one: score - best refused (rank
 * `taken`), of a refused one: score - worst chosen (rank taken - 1), infinite if there is none. */
static void choose_best(witness *w, const field *f, size_t taken)
{
    size_t refused = member_of_rank(w, f, taken);
    size_t chosen = taken > 0 ? member_of_rank(w, f, taken - 1) : f->size;
    quad best_refused = refused < f->size ? (quad)w->score[place(f, refused)] : -(quad)INFINITY;
    quad worst_chosen = chosen < f->size ? (quad)w->score[place(f, chosen)] : (quad)INFINITY;
    for (size_t a = 0; a < f->size; a++) {
        size_t p = place(f, a);
        int z = w->rank[p] < taken;
        w->value[ROUTE_MASK][p] = z;
        w->value[ROUTE_MARGIN][p] = w->score[p] - (z ? best_refused : worst_chosen);
    }
}

/* 3 ---- Assignment z: the three rules ---- */

/* The best and the second best of a group's scores, added up, or the best alone. */
static double group_score(const witness_case *c, const witness *w, size_t t, size_t group)
{
    size_t size = c->n / c->groups;
    const double *s = w->score + t * c->n + group * size;
    size_t best = 0, second = 1;
    for (size_t a = 1; a < size; a++)
        if (s[a] > s[best]) best = a;
    if (!is(c->group_score, "top2")) return s[best];
    if (best == 1) second = 0;
    for (size_t a = 0; a < size; a++)
        if (a != best && s[a] > s[second]) second = a;
    return s[best] + s[second];
}

/* How many groups beat this one: by score, then by number. */
static size_t group_rank(const witness_case *c, const witness *w, size_t t, size_t group)
{
    double mine = group_score(c, w, t, group);
    size_t rank = 0;
    for (size_t b = 0; b < c->groups; b++) {
        double other = group_score(c, w, t, b);
        rank += other > mine || (other == mine && b < group);
    }
    return rank;
}

/* Experts of groups that are not kept rank behind all others, whatever their score. */
static void rank_in_kept_groups(const witness_case *c, witness *w, size_t t)
{
    size_t size = c->n / c->groups;
    for (size_t a = 0; a < c->n; a++) {
        double mine = w->score[t * c->n + a];
        size_t rank = 0;
        for (size_t b = 0; b < c->n; b++) {
            double other = w->score[t * c->n + b];
            int kept = group_rank(c, w, t, b / size) < c->groups_kept;
            rank += kept && (other > mine || (other == mine && b < a));
        }
        w->rank[t * c->n + a] = group_rank(c, w, t, a / size) < c->groups_kept ? rank : c->n;
    }
}

/* An expert outside is as far from being chosen as its group is from the worst one kept. */
static void margins_of_groups(const witness_case *c, witness *w, size_t t)
{
    double worst = INFINITY;
    for (size_t g = 0; g < c->groups; g++)
        if (group_rank(c, w, t, g) < c->groups_kept) worst = fmin(worst, group_score(c, w, t, g));
    for (size_t i = 0; i < c->n; i++)
        if (w->rank[t * c->n + i] == c->n)
            w->value[ROUTE_MARGIN][t * c->n + i] =
                (quad)group_score(c, w, t, i / (c->n / c->groups)) - worst;
}

/* TC with a capacity: does choice a of expert i stand in the line before choice b? Both are tokens of one batch. */
static int stands_before(const witness_case *c, const witness *w, size_t i, size_t a, size_t b)
{
    size_t pa = a * c->n + i, pb = b * c->n + i;
    if (is(c->drop, "arrival")) {
        if (w->rank[pa] != w->rank[pb]) return w->rank[pa] < w->rank[pb];
    } else {
        double first = (double)w->value[FWD_GATES][pa], other = (double)w->value[FWD_GATES][pb];
        if (first != other) return first > other;
    }
    return a < b;
}

/* ceil((R K / n) C) slots of an expert, of R real tokens, in binary64. */
static size_t slots_of_expert(const witness_case *c)
{
    return (size_t)ceil((double)(real_tokens(c) * c->top_k) / (double)c->n * c->capacity);
}

/* z = 0 for a choice that has as many before it as the expert has slots. By score its margin is the distance to the last
 * that has one. */
static void drop_choice(const witness_case *c, witness *w, size_t t, size_t i)
{
    size_t B = real_tokens(c), first = t / batch_tokens(c) * batch_tokens(c), before = 0,
           slots = slots_of_expert(c);
    double last = INFINITY, mine = (double)w->value[FWD_GATES][t * c->n + i];
    for (size_t u = first; u < first + B; u++) {
        size_t ahead = 0;
        if (w->rank[u * c->n + i] >= c->top_k) continue;
        before += (size_t)stands_before(c, w, i, u, t);
        for (size_t v = first; v < first + B; v++)
            ahead += w->rank[v * c->n + i] < c->top_k && stands_before(c, w, i, v, u);
        if (ahead < slots) last = fmin(last, (double)w->value[FWD_GATES][u * c->n + i]);
    }
    if (before < slots) return;
    w->value[ROUTE_MASK][t * c->n + i] = 0;
    if (is(c->drop, "score")) w->value[ROUTE_MARGIN][t * c->n + i] = (quad)mine - last;
}

/* TC: each token takes its K best experts; the list names them by falling score. */
static void route_token_choice(const witness_case *c, witness *w)
{
    for (size_t t = 0; t < c->N; t++) {
        field f = experts_of_token(c, t);
        if (c->groups > 1)
            rank_in_kept_groups(c, w, t);
        else
            rank_field(w, &f);
        choose_best(w, &f, is_real(c, t) ? c->top_k : 0);
        for (size_t k = 0; !is_real(c, t) && k < c->top_k; k++)
            w->value[ROUTE_TOPK_EXPERT][t * c->top_k + k] = -1;
        if (!is_real(c, t)) continue;
        if (c->groups > 1) margins_of_groups(c, w, t);
        for (size_t i = 0; i < c->n; i++) {
            size_t rank = w->rank[t * c->n + i];
            if (rank < c->top_k) w->value[ROUTE_TOPK_EXPERT][t * c->top_k + rank] = (quad)i;
        }
    }
}

/* With a capacity, every choice is known by now. */
static void drop_choices(const witness_case *c, witness *w)
{
    for (size_t t = 0; t < c->N; t++)
        for (size_t i = 0; i < c->n; i++)
            if (is_real(c, t) && w->rank[t * c->n + i] < c->top_k) drop_choice(c, w, t, i);
}

/* What was chosen: z, and of the rule's choices without a slot the best ones, until there are K. */
static void complete_choices(const witness_case *c, witness *w, size_t t)
{
    quad *chosen = w->value[CHOSEN] + t * c->n;
    size_t count = (size_t)w->value[ROUTE_FANOUT][t];
    for (size_t rank = 0; drops(c) && is_real(c, t) && rank < c->top_k; rank++)
        for (size_t i = 0; i < c->n; i++) {
            if (w->rank[t * c->n + i] != rank || chosen[i] != 0 || count >= c->top_k) continue;
            chosen[i] = 1;
            count++;
        }
}

/* EC: in each pool each expert takes its k best tokens. */
static void route_expert_choice(const witness_case *c, witness *w, size_t pool, size_t i)
{
    field f = tokens_of_expert(c, pool, i);
    choose_best(w, &f, c->k);
    for (size_t a = 0; a < f.size; a++) {
        size_t rank = w->rank[place(&f, a)];
        if (rank < c->k)
            w->value[ROUTE_TOPK_TOKEN][(pool * c->n + i) * c->k + rank] =
                (quad)(f.first / c->n + a);
    }
}

/* c_i = ema_i, or ema_i / (1 - beta^u) with bias correction (0 before the first update). */
static quad threshold_of(const witness_case *c, size_t i)
{
    quad ema = c->ema != NULL ? c->ema[i] : 0;
    if (!c->ema_bias_correction) return ema;
    if (c->ema_updates == 0) return 0;
    return ema / (1 - powq(c->ema_decay, (quad)c->ema_updates));
}

/* min(max(m, floor(k(1-C))), floor(k(1+C)), B), both bounds in binary64 as the paper's code has
 * them: 10 * (1.0 - 0.9) is below 1, so that k = 10, C = 0.9 gives 0. */
static size_t clamp_to_capacity(const witness_case *c, size_t m)
{
    double low = floor((double)c->k * (1.0 - c->capacity));
    double high = floor((double)c->k * (1.0 + c->capacity));
    double taken = (double)m;
    if (taken < low) taken = low;
    if (taken > high) taken = high;
    if (taken > (double)real_tokens(c)) taken = (double)real_tokens(c);
    return (size_t)taken;
}

/* ET: z_ti = 1 if r_ti > c_i, else 0                                           (paper, Eq. 6)
 * or >= as released. Scores are doubles, so the threshold is rounded to one before the test.
 * In training an expert whose count the capacity changes takes that many of its best instead. */
static void route_threshold(const witness_case *c, witness *w, size_t batch, size_t i)
{
    field f = tokens_of_expert(c, batch, i);
    double threshold = (double)w->value[ROUTE_THRESHOLD][i];
    size_t m = 0;
    for (size_t a = 0; a < f.size; a++) {
        size_t p = place(&f, a);
        int z = c->inclusive ? w->score[p] >= threshold : w->score[p] > threshold;
        w->value[ROUTE_MASK][p] = z;
        w->value[ROUTE_MARGIN][p] = (quad)w->score[p] - threshold;
        m += (size_t)z;
    }
    if (c->eval || !c->has_capacity) return;
    size_t taken = clamp_to_capacity(c, m);
    if (taken != m) choose_best(w, &f, taken);
}

/* The k-th largest logit of expert i in a pool (EC) or micro-batch (ET), whoever was routed. */
static quad field_cutoff(const witness_case *c, const witness *w, size_t q, size_t i)
{
    field f = tokens_of_expert(c, q, i);
    return w->value[FWD_LOGITS][place(&f, member_of_rank(w, &f, c->k - 1))];
}

/* EC and ET, with the batch cutoff: the mean of the pools' (EC) or micro-batches' (ET) cutoffs. */
static void route_experts(const witness_case *c, witness *w)
{
    size_t fields = c->micro_batches * (real_tokens(c) / field_tokens(c));
    for (size_t t = 0; t < c->N; t++)
        for (size_t i = 0; i < c->n && !is_real(c, t); i++)
            w->value[ROUTE_MARGIN][t * c->n + i] = -(quad)INFINITY;
    for (size_t i = 0; i < c->n; i++) {
        if (by_threshold(c)) w->value[ROUTE_THRESHOLD][i] = threshold_of(c, i);
        for (size_t q = 0; q < fields; q++) {
            field f = tokens_of_expert(c, q, i);
            rank_field(w, &f);
            if (by_threshold(c))
                route_threshold(c, w, q, i);
            else
                route_expert_choice(c, w, q, i);
            if (c->eval) continue;
            quad cutoff = field_cutoff(c, w, q, i);
            w->value[ROUTE_CUTOFF][i] += cutoff / (quad)fields;
            if (expert_choice(c)) w->value[ROUTE_POOL_CUTOFF][q * c->n + i] = cutoff;
        }
    }
}

/* The assignment, its column sums (loads) and row sums (fanouts). */
static void compute_assignment(const witness_case *c, witness *w)
{
    if (!c->given && token_choice(c)) route_token_choice(c, w);
    if (!c->given && !token_choice(c)) route_experts(c, w);
    if (drops(c)) drop_choices(c, w);
    quad *z = w->value[ROUTE_MASK];
    for (size_t t = 0; t < c->N; t++)
        for (size_t i = 0; i < c->n; i++) {
            if (c->mask != NULL) z[t * c->n + i] = c->mask[t * c->n + i] != 0;
            w->value[ROUTE_LOAD][i] += z[t * c->n + i];
            w->value[ROUTE_FANOUT][t] += z[t * c->n + i];
            w->value[CHOSEN][t * c->n + i] = z[t * c->n + i];
        }
    for (size_t t = 0; t < c->N; t++) complete_choices(c, w, t);
}

void witness_route(const witness_case *c, witness *w)
{
    compute_logits(c, w);
    witness_gates(c, w);
    compute_scores(c, w);
    compute_assignment(c, w);
}
