/* failing_rows.c: a candidate's tensors as a diagnosis sees them: which tokens and experts fail; in which a hypothesis may
 * hold, and on which it is tried. See diagnosis.h. */
#include "ref/base/memory.h"
#include "ref/diagnose/diagnosis.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- what the candidate shows ---- */

static const et_tensor_verdict *verdict_on(const et_verdict *verdict, const char *name)
{
    for (size_t i = 0; i < verdict->tensor_count; i++)
        if (strcmp(verdict->tensors[i].name, name) == 0) return &verdict->tensors[i];
    return NULL;
}

static et_part part_of(et_stage stage)
{
    return stage <= ET_AT_STATE || stage == ET_AT_LAYOUT ? ET_PART_ROUTING : ET_PART_ARITHMETIC;
}

/* sum V / sum right^2; at least that of what a mistake may make of a tensor which is itself exact: thresholds come
 * from before the step, wrong ones from cutoffs; in evaluation the state stays as it is, a wrong one hangs on scores. */
static double noise_of(const et_diagnosis *q, const et_observed *x)
{
    const et_step *right = q->right, *variance = &q->j->bars->variance;
    const et_case *c = &right->c;
    double noise = et_noise_to_signal(et_tensor_count(x->got), x->right, x->variance), step,
           more = 0;
    if (strcmp(x->got->name, "route.threshold") == 0 && right->state_ema)
        more = et_noise_to_signal(c->experts, right->state_ema, variance->state_ema);
    step = 1 - c->ema_decay;
    if (strcmp(x->got->name, "state.ema") == 0 && c->eval)
        more = step * step *
               et_noise_to_signal(c->tokens * c->experts, right->fwd.logits, variance->fwd.logits);
    return fmax(noise, more);
}

static et_observed observed_of(const et_diagnosis *q, size_t index)
{
    const et_judgement *j = q->j;
    et_tensor_out own[ET_MAX_STEP_TENSORS];
    const et_tensor_out *got = &j->candidate[index];
    const et_tensor_out *right =
        et_tensor_named(own, et_step_tensors(q->right, false, own), got->name);
    const et_tensor_doc *doc = et_tensor_doc_find(got->name);
    et_observed x = {.got = got, .verdict = verdict_on(q->verdict, got->name), .stage = ET_STAGES};
    x.shape = doc ? doc->shape : "[]";
    x.columns = got->rank > 1 ? got->shape[got->rank - 1] : 1;
    x.rows = x.columns > 0 ? et_tensor_count(got) / x.columns : 0;
    if (!x.verdict || !right || !et_same_shape(right, got)) return x;
    x.stage = et_stage_of(got->name);
    x.part = part_of(x.stage);
    x.failed = x.verdict->outcome == ET_MISMATCH;
    x.passed = x.verdict->outcome == ET_PASS;
    x.right = right->values;
    x.limit = j->bars->limits.element;
    x.variance = et_tensor_is_real(right) ? et_variance_named(j->bars, got->name) : NULL;
    if (x.variance) x.noise = noise_of(q, &x);
    return x;
}

static et_status take_observed(et_diagnosis *q, et_error *error)
{
    size_t longest = 1;
    et_status status =
        et_allocate((void **)&q->observed, q->j->count, sizeof *q->observed, "tensors", error);
    for (size_t i = 0; status == ET_OK && i < q->j->count; i++) {
        et_observed *x = &q->observed[q->count++];
        *x = observed_of(q, i);
        if (x->failed && x->stage != ET_STAGES) {
            q->failed[x->part] = true;
            if (x->variance && x->part == ET_PART_ARITHMETIC) q->wrong[q->wrong_count++] = x;
        }
        if (x->stage >= ET_AT_DWEIGHT && x->stage < ET_AT_LAYOUT) {
            q->shows_backward = true;
            q->backward_failed |= x->failed;
        }
        q->forward_failed |= x->failed && x->stage >= ET_AT_GATES && x->stage < ET_AT_DWEIGHT;
        if (x->columns > longest) longest = x->columns;
    }
    if (status == ET_OK)
        status = et_allocate((void **)&q->room, longest, sizeof *q->room, "a row", error);
    return status;
}

/* ---- which tokens and experts fail ---- */

size_t et_experts_of(const et_diagnosis *q)
{
    return q->right->c.layer == ET_MOE ? q->right->c.experts : 1;
}

/* Slots, which in a dense layer are its tokens. */
size_t et_slots_in(const et_diagnosis *q)
{
    return q->right->c.layer == ET_MOE ? q->right->assignment.slots : q->right->c.tokens;
}

bool et_takes_part_in_search(const et_diagnosis *q, const et_observed *x)
{
    bool backward = x->stage >= ET_AT_DWEIGHT && x->stage < ET_AT_LAYOUT;
    return x->failed && x->stage != ET_STAGES && !(q->forward_alone && backward);
}

bool et_is_shared(const et_observed *x)
{
    return strstr(x->got->name, "shared") != NULL;
}

et_owner et_owner_of(const et_diagnosis *q, const et_observed *x, size_t row, size_t column)
{
    const et_assignment *a = &q->right->assignment;
    size_t N = q->right->c.tokens, n = et_experts_of(q);
    bool moe = q->right->c.layer == ET_MOE, slots = et_rows_are(x->shape, "S");
    et_owner o = {N, et_is_shared(x) ? n : n + 1};
    if (et_rows_are(x->shape, "N") || (slots && !moe)) o.token = row;
    if (strcmp(x->shape, "[N,n]") == 0) o.expert = column;
    if (!moe) return o;
    if (slots) o = (et_owner){(size_t)a->slot_token[row], (size_t)a->slot_expert[row]};
    if (et_rows_are(x->shape, "n")) o.expert = x->got->rank == 3 ? row / x->got->shape[1] : row;
    return o;
}

bool et_element_fails(const et_observed *x, size_t i)
{
    double e = et_tensor_element(x->got, i) - (double)((const et_real *)x->right)[i];
    double V = (double)x->variance[i];
    return !(e * e <= x->limit * x->limit * V) && V < INFINITY;
}

/* Marks what an element stands for: its token; and its expert, if it fails where the first one does.
 * Later stages inherit the error, and the normalisation and dW_r spread it over other experts. */
static void mark(et_diagnosis *q, const et_observed *x, size_t row, size_t column)
{
    et_owner o = et_owner_of(q, x, row, column);
    if (o.token < q->right->c.tokens) q->bad_token[o.token] = 1;
    if (o.expert <= et_experts_of(q) && x->stage == q->first_failure) q->bad_expert[o.expert] = 1;
}

/* The first stage of which something fails that belongs to experts. */
static et_stage first_failure(const et_diagnosis *q)
{
    et_stage first = ET_STAGES;
    for (size_t i = 0; i < q->wrong_count; i++) {
        const et_observed *x = q->wrong[i];
        bool owned = x->rows * x->columns > 0 && et_owner_of(q, x, 0, 0).expert <= et_experts_of(q);
        if (owned && x->stage < first) first = x->stage;
    }
    return first;
}

/* Elements past their bars; returns whether there are any. */
static bool mark_elements(et_diagnosis *q, const et_observed *x)
{
    bool any = false;
    for (size_t i = 0; i < x->rows * x->columns; i++) {
        if (!et_element_fails(x, i)) continue;
        mark(q, x, i / x->columns, i % x->columns);
        any = true;
    }
    return any;
}

/* No element is past its bar, but a group is: the one that the verdict names. */
static void mark_group(et_diagnosis *q, const et_observed *x)
{
    const et_group *g = &x->verdict->worst_group;
    size_t n = et_experts_of(q);
    if (g->kind && strcmp(g->kind, "row") == 0) mark(q, x, g->index, 0);
    if (x->stage != q->first_failure) return;
    if (et_is_shared(x)) q->bad_expert[n] = 1;
    if (g->kind && strcmp(g->kind, "expert") == 0 && g->index < n) q->bad_expert[g->index] = 1;
}

/* Where only rows of tokens fail: an expert is suspected if most of its tokens do. */
static void suspect_experts(et_diagnosis *q)
{
    const et_assignment *a = &q->right->assignment;
    for (size_t i = 0; i < a->experts; i++) {
        int32_t bad = 0;
        for (int32_t j = a->expert_offsets[i]; j < a->expert_offsets[i + 1]; j++)
            bad += q->bad_token[a->slot_token[j]];
        q->bad_expert[i] = bad > 0 && 2 * bad >= a->load[i];
    }
}

size_t et_count_marks(const uint8_t *marks, size_t count)
{
    size_t marked = 0;
    for (size_t i = 0; i < count; i++) marked += marks[i] != 0;
    return marked;
}

/* Where a row of a tensor has its mark in bad_row; NULL: it is no row of a slot or a token. */
static uint8_t *mark_of_row(const et_diagnosis *q, const et_observed *x, size_t row)
{
    size_t N = q->right->c.tokens, S = et_slots_in(q);
    if (et_rows_are(x->shape, "S")) return q->bad_row + row;
    if (!et_rows_are(x->shape, "N")) return NULL;
    return q->bad_row + S + (et_is_shared(x) ? 0 : N) + row;
}

bool et_row_fails(const et_diagnosis *q, const et_observed *x, size_t row)
{
    const uint8_t *mark = x->stage == q->first_rows ? mark_of_row(q, x, row) : NULL;
    return mark && *mark;
}

/* The rows that fail at the first stage at which rows do. */
static void mark_rows(et_diagnosis *q)
{
    q->first_rows = ET_STAGES;
    for (size_t i = 0; i < q->wrong_count; i++) {
        const et_observed *x = q->wrong[i];
        if (mark_of_row(q, x, 0) && x->stage < q->first_rows) q->first_rows = x->stage;
    }
    for (size_t i = 0; i < q->wrong_count; i++) {
        const et_observed *x = q->wrong[i];
        if (x->stage != q->first_rows || !mark_of_row(q, x, 0)) continue;
        q->rows += x->rows;
        for (size_t e = 0; e < x->rows * x->columns; e++)
            if (et_element_fails(x, e)) *mark_of_row(q, x, e / x->columns) = 1;
    }
    q->bad_rows = et_count_marks(q->bad_row, et_slots_in(q) + 2 * q->right->c.tokens);
}

static et_status find_suspects(et_diagnosis *q, et_error *error)
{
    size_t N = q->right->c.tokens, n = et_experts_of(q), S = et_slots_in(q);
    q->first_failure = first_failure(q);
    et_status status =
        et_allocate((void **)&q->bad_token, N + n + 1 + S + 2 * N, 1, "what fails", error);
    if (status != ET_OK) return status;
    q->bad_expert = q->bad_token + N;
    q->bad_row = q->bad_expert + n + 1;
    for (size_t i = 0; i < q->count; i++) {
        const et_observed *x = &q->observed[i];
        if (!x->failed || x->part != ET_PART_ARITHMETIC || !x->variance) continue;
        if (!mark_elements(q, x)) mark_group(q, x);
    }
    if (et_count_marks(q->bad_expert, n + 1) == 0 && q->right->c.layer == ET_MOE)
        suspect_experts(q);
    mark_rows(q);
    q->bad_tokens = et_count_marks(q->bad_token, N);
    q->bad_experts = et_count_marks(q->bad_expert, n + 1);
    return ET_OK;
}

/* Multiplications of one of the experts' six products. */
static double work_of(const et_step *s)
{
    const et_case *c = &s->c;
    double rows = (double)c->tokens + (c->layer == ET_MOE ? (double)s->assignment.slots : 0);
    return rows * (double)c->d_model * (double)c->d_expert;
}

/* Are the experts' products worth less than all the rest? */
static bool is_small(const et_step *s)
{
    return work_of(s) < 2e7;
}

/* What error bars take: 49 runs of the layer, and those of its stages, at a speed that was measured for all of them. Their
 * first making would go past the limit unseen; where sums are rounded after each addition they take ten times as long. */
static void expect_bars(et_budget *b, const et_step *s)
{
    const double runs = ET_FIRST_REPLICAS + ET_SECOND_REPLICAS + 1, products = 6, speed = 4.5e9;
    double seconds = runs * products * work_of(s) / speed;
    et_budget_expect(b, ET_PROFILE_BARS, seconds);
    et_budget_expect(b, ET_BARS_OF_SUMS, 10 * seconds);
}

et_status et_diagnosis_open(et_diagnosis *q, et_verdict *verdict, const et_judgement *j,
                            et_error *error)
{
    *q = (et_diagnosis){.verdict = verdict, .j = j, .right = j->reference};
    et_budget_open(&q->budget, j->options->explain_seconds);
    q->routing_failed = verdict->routing.outcome == ET_MISMATCH;
    expect_bars(&q->budget, q->right);
    q->small = is_small(q->right);
    et_status status = take_observed(q, error);
    if (status == ET_OK) status = find_suspects(q, error);
    q->failed[ET_PART_ROUTING] |= q->routing_failed;
    if (status != ET_OK) et_diagnosis_close(q);
    return status;
}

void et_diagnosis_close(et_diagnosis *q)
{
    free(q->observed);
    free(q->bad_token);
    free(q->room);
    *q = (et_diagnosis){0};
}

/* ---- scopes ---- */

enum { NAMED = 8 };

int et_tier_of(et_where where)
{
    return where == ET_IN_ROWS ? 3 : where == ET_IN_TOKENS ? 2 : where == ET_IN_EXPERTS ? 1 : 0;
}

bool et_scope_in(et_scope *scope, const et_diagnosis *q, et_where where)
{
    size_t n = et_experts_of(q), experts = q->bad_experts, tokens = q->bad_tokens;
    *scope = (et_scope){where, where == ET_IN_EXPERTS  ? q->bad_expert
                               : where == ET_IN_TOKENS ? q->bad_token
                               : where == ET_IN_ROWS   ? q->bad_row
                                                       : NULL};
    if (where == ET_EVERYWHERE) return true;
    if (where == ET_IN_EXPERTS)
        return experts > 0 && experts <= NAMED && experts < n && !q->bad_expert[n];
    if (where == ET_IN_TOKENS) return tokens > 0 && tokens <= NAMED && tokens < q->right->c.tokens;
    if (where == ET_IN_ROWS) return q->bad_rows > 0 && q->bad_rows < q->rows;
    return q->right->c.layer == ET_MOE && q->right->c.shared;
}

/* " 3-5, 9, ... (17 in all)" */
static size_t print_ranges(const uint8_t *marks, size_t count, char *text, size_t room)
{
    size_t used = 0, ranges = 0;
    for (size_t i = 0, end; i < count && used < room; i = end + 1) {
        end = i;
        if (!marks[i]) continue;
        while (end + 1 < count && marks[end + 1]) end++;
        if (ranges++ == NAMED) {
            snprintf(text + used, room - used, ", ... (%zu in all)", et_count_marks(marks, count));
            return room;
        }
        used += (size_t)snprintf(text + used, room - used, end > i ? "%s%zu-%zu" : "%s%zu",
                                 ranges > 1 ? ", " : " ", i, end);
    }
    return used;
}

void et_scope_print(const et_scope *scope, const et_diagnosis *q, char *text, size_t room)
{
    static const char *const names[ET_WHERES] = {"everywhere", "routed experts", "shared expert",
                                                 "expert",     "token",          "slot"};
    size_t N = q->right->c.tokens, count = scope->where == ET_IN_TOKENS ? N : et_experts_of(q);
    const uint8_t *marks = scope->marks;
    const char *name = names[scope->where];
    if (scope->where == ET_IN_ROWS) {
        count = et_slots_in(q);
        if (et_count_marks(marks, count) == 0) {
            marks += count, count = N, name = "shared expert: token";
            if (et_count_marks(marks, N) == 0) marks += N, name = "token";
        }
    }
    bool several = marks && et_count_marks(marks, count) > 1;
    size_t used = (size_t)snprintf(text, room, "%s%s", name, several ? "s" : "");
    if (marks && used < room) print_ranges(marks, count, text + used, room - used);
}

/* ---- looks: on how many tokens ---- */

enum { FEW_BAD = 4, FEW_GOOD = 2, SOME_BAD = 16, SOME_GOOD = 8, MOST_OF_ONE = 512 };

/* Does every expert of token t stand in `experts`? NULL: yes. */
static bool goes_only_to(const et_diagnosis *q, size_t t, const uint8_t *experts)
{
    const et_assignment *a = &q->right->assignment;
    if (experts == NULL || q->right->c.layer != ET_MOE) return true;
    for (int32_t j = a->token_offsets[t]; j < a->token_offsets[t + 1]; j++)
        if (!experts[a->slot_expert[a->token_slots[j]]]) return false;
    return true;
}

/* Adds up to `most` tokens that are bad, or are not, spread over all of them. */
static void pick_tokens(const et_diagnosis *q, bool bad, size_t most, const uint8_t *experts,
                        uint8_t *tokens)
{
    size_t N = q->right->c.tokens, have = 0, taken = 0;
    for (size_t t = 0; t < N; t++)
        have += (q->bad_token[t] != 0) == bad && goes_only_to(q, t, experts);
    for (size_t t = 0, at = 0; t < N && have > 0; t++) {
        if ((q->bad_token[t] != 0) != bad || !goes_only_to(q, t, experts)) continue;
        if (at++ * most / have < taken) continue;
        tokens[t] = 1;
        taken++;
    }
}

/* The expert whose tokens are all looked at: with the fewest tokens among the bad ones, or of all. */
static size_t smallest_expert(const et_diagnosis *q)
{
    const et_assignment *a = &q->right->assignment;
    size_t best = a->experts;
    for (int only_bad = 1; only_bad >= 0 && best == a->experts; only_bad--)
        for (size_t i = 0; i < a->experts; i++)
            if (a->load[i] > 0 && a->load[i] <= MOST_OF_ONE && (q->bad_expert[i] || !only_bad) &&
                (best == a->experts || a->load[i] < a->load[best]))
                best = i;
    return best;
}

static void add_expert(const et_diagnosis *q, size_t i, uint8_t *tokens)
{
    const et_assignment *a = &q->right->assignment;
    if (i >= a->experts) return;
    for (int32_t j = a->expert_offsets[i]; j < a->expert_offsets[i + 1]; j++)
        tokens[a->slot_token[j]] = 1;
}

/* The experts of the first bad token (or of the first token), so that a look takes few weights. */
static void first_experts(const et_diagnosis *q, uint8_t *experts)
{
    const et_assignment *a = &q->right->assignment;
    size_t N = q->right->c.tokens, t = 0;
    if (q->right->c.layer != ET_MOE) return;
    while (t < N && !(q->bad_token[t] && a->fanout[t] > 0)) t++;
    for (size_t i = 0; t == N && i < a->experts; i++)
        if (q->bad_expert[i] && a->load[i] > 0) t = (size_t)a->slot_token[a->expert_offsets[i]];
    if (t == N) t = 0;
    for (int32_t j = a->token_offsets[t]; j < a->token_offsets[t + 1]; j++)
        experts[a->slot_expert[a->token_slots[j]]] = 1;
}

et_status et_looks_open(et_looks *l, const et_diagnosis *q, et_error *error)
{
    const et_judgement *j = q->j;
    size_t N = q->right->c.tokens, n = et_experts_of(q);
    void *room;
    *l = (et_looks){0};
    if (q->small) {
        l->count = 1;
        return et_subject_open(&l->on[0], q->right, j->candidate, j->count, NULL, error);
    }
    et_status status = et_allocate(&room, N + n, 1, "picked tokens", error);
    if (status != ET_OK) return status;
    uint8_t *tokens = room, *experts = tokens + N;
    first_experts(q, experts);
    pick_tokens(q, true, FEW_BAD, experts, tokens);
    pick_tokens(q, false, FEW_GOOD, experts, tokens);
    status = et_subject_open(&l->on[0], q->right, j->candidate, j->count, tokens, error);
    if (status == ET_OK) l->count = 1;
    pick_tokens(q, true, SOME_BAD, NULL, tokens);
    pick_tokens(q, false, SOME_GOOD, NULL, tokens);
    if (q->right->c.layer == ET_MOE) add_expert(q, smallest_expert(q), tokens);
    if (status == ET_OK)
        status = et_subject_open(&l->on[1], q->right, j->candidate, j->count, tokens, error);
    if (status == ET_OK) l->count = 2;
    free(room);
    return status;
}

void et_looks_close(et_looks *l)
{
    for (size_t i = 0; i < l->count; i++) et_subject_close(&l->on[i]);
}
