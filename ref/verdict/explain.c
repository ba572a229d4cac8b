/* explain.c: what would explain a mismatch.
 *
 * A hypothesis explains the candidate if under it everything passes: each tensor that failed agrees with
 * the mutant, and none that passed disagrees. Every row of the catalogue is tried, in each of its
 * forms, everywhere or only where the candidate fails, and dropped as soon as it cannot be:
 *
 *     by reach     a tensor that failed and that the hypothesis cannot change rules it out
 *     few tokens   the mutant of a handful of tokens, some failing and some not; it is computed stage by
 *                  stage, and compared after each
 *     some tokens  the same with all tokens of one expert, for the weight gradients
 *     all tokens   what is left, by the full judgement; only so many in a large problem
 *
 * A mismatch of routing or state is explained apart from one of the arithmetic, which has been judged
 * given the candidate's own routing; a hypothesis that accounts for both stands alone. Factors and
 * roundings come last, if nothing else explains the arithmetic: they fit too much.
 *
 * First of all it is asked whether the candidate passes under another built-in profile (choice.c): it may be an
 * honest kernel of another precision. A catalogue's mistake may explain it better, so that goes on.
 *
 * Everywhere comes before "for the experts that fail" and "for the tokens that fail": a scope taken from
 * the failures fits more than it explains, so it is tried only where nothing else does. What is
 * reported: all that fit, those that deviate at a later stage of the step, and so in less of it, first; factors and
 * roundings by how tightly they fit (fit.c), and not at all where another fits far more tightly.
 * Where nothing fits the residual says what is wrong (residual.c).
 *
 * A caller may limit the CPU time. Other profiles are tried first and may use all of it (choice.c).
 * Formulas go on to three quarters of the whole: to half of that the looks that choose survivors, then
 * their judging. Factors go on to nine tenths, roundings have the rest. What was left out is counted
 * and said.
 *
 * Left out: two faults at once, but for one in each part.
 */
#include "ref/base/memory.h"
#include "ref/verdict/calibration.h"
#include "ref/verdict/inquiry.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- exhibits ---- */

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

static bool is_silent(size_t count, const et_real *values, const et_real *V)
{
    size_t i = 0;
    while (i < count && values[i] == 0 && V[i] == 0) i++;
    return i == count;
}

static et_exhibit exhibit_of(const et_inquiry *q, size_t index)
{
    const et_judgement *j = q->j;
    et_tensor_out own[ET_MAX_STEP_TENSORS], noise[ET_MAX_STEP_TENSORS];
    const et_tensor_out *got = &j->candidate[index];
    const et_tensor_out *right =
        et_tensor_named(own, et_step_tensors(q->right, false, own), got->name);
    const et_tensor_out *V =
        et_tensor_named(noise, et_step_tensors(j->variance, false, noise), got->name);
    const et_tensor_doc *doc = et_tensor_doc_find(got->name);
    et_exhibit x = {.got = got, .verdict = verdict_on(q->verdict, got->name), .stage = ET_STAGES};
    x.shape = doc ? doc->shape : "[]";
    if (!x.verdict || !right || !et_same_shape(right, got)) return x;
    x.stage = et_stage_of(got->name);
    x.part = part_of(x.stage);
    x.failed = x.verdict->outcome == ET_MISMATCH;
    x.passed = x.verdict->outcome == ET_PASS;
    x.right = right->values;
    if (V && et_tensor_is_real(right)) {
        x.variance = V->values;
        x.noise = et_noise_to_signal(et_tensor_count(got), x.right, x.variance);
        /* A threshold comes from before the step, and is exact; a wrong one may come from cutoffs. */
        if (strcmp(got->name, "route.threshold") == 0 && q->right->state_ema)
            x.noise = fmax(x.noise, et_noise_to_signal(q->right->c.experts, q->right->state_ema,
                                                       q->j->variance->state_ema));
        /* In evaluation the state is exact; one that was moved by mistake hangs on cutoffs, scores all. */
        double step = 1 - j->golden->c.ema_decay;
        if (j->golden->c.eval && strcmp(got->name, "state.ema") == 0)
            x.noise = fmax(x.noise,
                           step * step *
                               et_noise_to_signal(j->golden->c.tokens * j->golden->c.experts,
                                                  q->right->fwd.logits, j->variance->fwd.logits));
        x.silent = is_silent(et_tensor_count(got), x.right, x.variance);
    }
    x.limit = x.verdict->limit_sigmas;
    if (x.limit == 0)
        x.limit =
            et_element_limit(j->alpha, j->tests, et_tail_is_coarse(j->options->profile, got->name));
    return x;
}

static et_status take_exhibits(et_inquiry *q, et_error *error)
{
    size_t longest = 1;
    et_status status =
        et_allocate((void **)&q->exhibits, q->j->count, sizeof *q->exhibits, "exhibits", error);
    for (size_t i = 0; status == ET_OK && i < q->j->count; i++) {
        et_exhibit *x = &q->exhibits[q->count++];
        *x = exhibit_of(q, i);
        if (x->failed && x->stage != ET_STAGES) q->failed[x->part] = true;
        if (x->stage >= ET_AT_DWEIGHT && x->stage < ET_AT_LAYOUT) {
            q->shows_backward = true;
            q->backward_failed |= x->failed;
        }
        size_t columns = x->got->rank > 0 ? x->got->shape[x->got->rank - 1] : 1;
        if (columns > longest) longest = columns;
    }
    if (status == ET_OK)
        status = et_allocate((void **)&q->room, longest, sizeof *q->room, "a row", error);
    return status;
}

/* ---- which tokens and experts fail ---- */

static size_t experts_of(const et_inquiry *q)
{
    return q->right->c.layer == ET_MOE ? q->right->c.experts : 1;
}

static bool is_shared(const et_exhibit *x)
{
    return strstr(x->got->name, "shared") != NULL;
}

/* The expert that element `column` of row `row` belongs to: n for the shared one, n+1 for none. */
static size_t expert_of(const et_inquiry *q, const et_exhibit *x, size_t row, size_t column)
{
    size_t n = experts_of(q);
    bool moe = q->right->c.layer == ET_MOE;
    if (is_shared(x)) return n;
    if (strcmp(x->shape, "[N,n]") == 0) return column;
    if (moe && et_rows_are(x->shape, "S")) return (size_t)q->right->assignment.slot_expert[row];
    if (moe && et_rows_are(x->shape, "n") && x->got->rank > 1)
        return x->got->rank == 3 ? row / x->got->shape[1] : row;
    return n + 1;
}

/* Marks what an element stands for: its token; and its expert, if it fails where the first one does.
 * Later stages inherit the error, and the normalisation and dW_r spread it over other experts. */
static void mark(et_inquiry *q, const et_exhibit *x, size_t row, size_t column)
{
    size_t expert = expert_of(q, x, row, column);
    bool by_slot = et_rows_are(x->shape, "S"), moe = q->right->c.layer == ET_MOE;
    if (by_slot && moe)
        q->bad_token[q->right->assignment.slot_token[row]] = 1;
    else if (by_slot || et_rows_are(x->shape, "N"))
        q->bad_token[row] = 1;
    if (expert <= experts_of(q) && x->stage == q->first_failure) q->bad_expert[expert] = 1;
}

/* The first stage of which something fails that belongs to experts. */
static et_stage first_failure(const et_inquiry *q)
{
    et_stage first = ET_STAGES;
    for (size_t i = 0; i < q->count; i++) {
        const et_exhibit *x = &q->exhibits[i];
        bool fails = x->failed && x->part == ET_PART_ARITHMETIC && x->variance &&
                     et_tensor_count(x->got) > 0;
        if (fails && x->stage < first && expert_of(q, x, 0, 0) <= experts_of(q)) first = x->stage;
    }
    return first;
}

/* Elements past their bars; returns whether there are any. */
static bool mark_elements(et_inquiry *q, const et_exhibit *x)
{
    size_t count = et_tensor_count(x->got);
    size_t columns = x->got->rank > 1 ? x->got->shape[x->got->rank - 1] : 1;
    const et_real *right = x->right, *V = x->variance;
    bool any = false;
    for (size_t i = 0; i < count; i++) {
        double e = et_tensor_element(x->got, i) - (double)right[i];
        if (e * e <= x->limit * x->limit * q->j->scale * (double)V[i]) continue;
        mark(q, x, i / columns, i % columns);
        any = true;
    }
    return any;
}

/* No element is past its bar, but a group is: the one that the verdict names. */
static void mark_group(et_inquiry *q, const et_exhibit *x)
{
    const et_group *g = &x->verdict->worst_group;
    size_t n = experts_of(q);
    if (g->kind && strcmp(g->kind, "row") == 0) mark(q, x, g->index, 0);
    if (x->stage != q->first_failure) return;
    if (is_shared(x)) q->bad_expert[n] = 1;
    if (g->kind && strcmp(g->kind, "expert") == 0 && g->index < n) q->bad_expert[g->index] = 1;
}

/* Where only rows of tokens fail: an expert is suspected if most of its tokens do. */
static void suspect_experts(et_inquiry *q)
{
    const et_assignment *a = &q->right->assignment;
    for (size_t i = 0; i < a->experts; i++) {
        int32_t bad = 0;
        for (int32_t j = a->expert_offsets[i]; j < a->expert_offsets[i + 1]; j++)
            bad += q->bad_token[a->slot_token[j]];
        q->bad_expert[i] = bad > 0 && 2 * bad >= a->load[i];
    }
}

static size_t count_marks(const uint8_t *marks, size_t count)
{
    size_t marked = 0;
    for (size_t i = 0; i < count; i++) marked += marks[i] != 0;
    return marked;
}

static et_status find_suspects(et_inquiry *q, et_error *error)
{
    size_t N = q->right->c.tokens, n = experts_of(q);
    q->first_failure = first_failure(q);
    et_status status = et_allocate((void **)&q->bad_token, N, 1, "failing tokens", error);
    if (status == ET_OK)
        status = et_allocate((void **)&q->bad_expert, n + 1, 1, "failing experts", error);
    for (size_t i = 0; status == ET_OK && i < q->count; i++) {
        const et_exhibit *x = &q->exhibits[i];
        if (!x->failed || x->part != ET_PART_ARITHMETIC || !x->variance) continue;
        if (!mark_elements(q, x)) mark_group(q, x);
    }
    if (status != ET_OK) return status;
    if (count_marks(q->bad_expert, n + 1) == 0 && q->right->c.layer == ET_MOE) suspect_experts(q);
    q->bad_tokens = count_marks(q->bad_token, N);
    q->bad_experts = count_marks(q->bad_expert, n + 1);
    return ET_OK;
}

/* Are the experts' products worth less than all the rest? */
static bool is_small(const et_step *s)
{
    const et_case *c = &s->c;
    double rows = (double)c->tokens + (c->layer == ET_MOE ? (double)s->assignment.slots : 0);
    return rows * (double)c->d_model * (double)c->d_expert < 2e7;
}

et_status et_inquiry_open(et_inquiry *q, et_verdict *verdict, const et_judgement *j,
                          et_error *error)
{
    *q = (et_inquiry){.verdict = verdict, .j = j, .right = j->reference};
    et_budget_open(&q->budget, j->options->explain_seconds);
    q->routing_failed = verdict->routing.outcome == ET_MISMATCH;
    q->small = is_small(q->right);
    et_status status = take_exhibits(q, error);
    if (status == ET_OK) status = find_suspects(q, error);
    q->failed[ET_PART_ROUTING] |= q->routing_failed;
    if (status != ET_OK) et_inquiry_close(q);
    return status;
}

void et_inquiry_close(et_inquiry *q)
{
    free(q->exhibits);
    free(q->bad_token);
    free(q->bad_expert);
    free(q->room);
    *q = (et_inquiry){0};
}

/* ---- scopes ---- */

enum { SCOPES = 5, NAMED = 8 };

typedef struct scope {
    et_scope at;
    char text[96];
    int tier; /* those of a higher one are tried where those of the lower ones explain nothing */
} scope;

enum { TIERS = 3 };

typedef struct scopes {
    size_t count;
    scope list[SCOPES];
    uint8_t *routed, *shared; /* [n+1] */
} scopes;

/* "experts 1, 4" */
static void list_marks(char *text, size_t room, const char *one, const uint8_t *marks, size_t count)
{
    size_t marked = count_marks(marks, count), used = 0;
    used += (size_t)snprintf(text, room, "%s%s", one, marked > 1 ? "s" : "");
    const char *before = " ";
    for (size_t i = 0; i < count && used < room; i++)
        if (marks[i]) {
            used += (size_t)snprintf(text + used, room - used, "%s%zu", before, i);
            before = ", ";
        }
}

static void add_scope(scopes *s, int tier, const uint8_t *experts, const uint8_t *tokens,
                      const char *text)
{
    scope *new = &s->list[s->count++];
    *new = (scope){.at = {experts, tokens}, .tier = tier};
    snprintf(new->text, sizeof new->text, "%s", text);
}

/* Everywhere; only the routed or the shared expert, which in many kernels are two pieces of code; the
 * experts, or the tokens, that fail, where they are few. */
static et_status make_scopes(scopes *s, const et_inquiry *q, et_error *error)
{
    size_t n = experts_of(q), N = q->right->c.tokens;
    char text[96];
    bool has_shared = q->right->c.layer == ET_MOE && q->right->c.shared;
    void *room;
    *s = (scopes){0};
    et_status status = et_allocate(&room, 2 * (n + 1), 1, "scopes", error);
    if (status != ET_OK) return status;
    s->routed = room;
    s->shared = s->routed + n + 1;
    memset(s->routed, 1, n);
    s->shared[n] = 1;
    add_scope(s, 0, NULL, NULL, "everywhere");
    if (has_shared) {
        add_scope(s, 0, s->routed, NULL, "routed experts");
        add_scope(s, 0, s->shared, NULL, "shared expert");
    }
    if (q->bad_experts > 0 && q->bad_experts <= NAMED && !q->bad_expert[n] && q->bad_experts < n) {
        list_marks(text, sizeof text, "expert", q->bad_expert, n);
        add_scope(s, 1, q->bad_expert, NULL, text);
    }
    if (q->bad_tokens > 0 && q->bad_tokens <= NAMED && q->bad_tokens < N) {
        list_marks(text, sizeof text, "token", q->bad_token, N);
        add_scope(s, 2, NULL, q->bad_token, text);
    }
    return ET_OK;
}

/* ---- looks: on how many tokens ---- */

enum { FEW_BAD = 4, FEW_GOOD = 2, SOME_BAD = 16, SOME_GOOD = 8, MOST_OF_ONE = 512 };

typedef struct looks {
    size_t count;
    et_subject on[2];
} looks;

/* Does every expert of token t stand in `experts`? NULL: yes. */
static bool goes_only_to(const et_inquiry *q, size_t t, const uint8_t *experts)
{
    const et_assignment *a = &q->right->assignment;
    if (experts == NULL || q->right->c.layer != ET_MOE) return true;
    for (int32_t j = a->token_offsets[t]; j < a->token_offsets[t + 1]; j++)
        if (!experts[a->slot_expert[a->token_slots[j]]]) return false;
    return true;
}

/* Adds up to `most` tokens that are bad, or are not, spread over all of them. */
static void pick_tokens(const et_inquiry *q, bool bad, size_t most, const uint8_t *experts,
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
static size_t smallest_expert(const et_inquiry *q)
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

static void add_expert(const et_inquiry *q, size_t i, uint8_t *tokens)
{
    const et_assignment *a = &q->right->assignment;
    if (i >= a->experts) return;
    for (int32_t j = a->expert_offsets[i]; j < a->expert_offsets[i + 1]; j++)
        tokens[a->slot_token[j]] = 1;
}

/* The experts of the first bad token (or of the first token), so that a look takes few weights. */
static void first_experts(const et_inquiry *q, uint8_t *experts)
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

static et_status make_looks(looks *l, const et_inquiry *q, et_error *error)
{
    const et_judgement *j = q->j;
    size_t N = q->right->c.tokens, n = experts_of(q);
    void *room;
    *l = (looks){0};
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

static void close_looks(looks *l)
{
    for (size_t i = 0; i < l->count; i++) et_subject_close(&l->on[i]);
}

/* ---- one trial ---- */

typedef struct attempt {
    const et_hypothesis *what;
    size_t variant;
    bool forward_only;
    const scope *scope;
    double factor, deviation; /* ET_BY_FACTOR: the factor, and its standard deviation */
    bool covers[ET_PARTS];
    size_t order; /* in which it was tried */
    double fit;   /* of one that passed the full judgement; factors alone are compared by it */
} attempt;

static void open_mutant(et_mutant *m, const et_subject *on, const et_inquiry *q, const attempt *t)
{
    et_mutant_open(m, on, t->what, t->variant, t->scope->at, q->j->mask == NULL);
    m->forward_only = t->forward_only;
    m->factor = t->factor;
}

/* Can the hypothesis change what is computed at a stage? */
static bool reaches_stage(const attempt *t, bool forward_only, et_stage stage)
{
    return stage < ET_STAGES && et_hypothesis_reach(t->what, t->variant, forward_only) >> stage & 1;
}

/* Can the hypothesis change this exhibit at all? */
static bool reaches(const et_inquiry *q, const attempt *t, const et_exhibit *x)
{
    bool layout = et_hypothesis_starts(t->what, t->variant) == ET_AT_LAYOUT;
    if (layout) return x->stage == ET_AT_LAYOUT || et_rows_are(x->shape, "S");
    if (q->j->mask == NULL && x->part == ET_PART_ARITHMETIC && x->stage > ET_AT_GATES &&
        reaches_stage(t, false, ET_AT_MASK))
        return true;
    return reaches_stage(t, t->forward_only, x->stage);
}

/* Does what the hypothesis changes first pass, everywhere? For hypotheses that change all of it. */
static bool is_refuted(const et_inquiry *q, const attempt *t)
{
    et_stage start = et_hypothesis_starts(t->what, t->variant);
    bool everywhere = !t->scope->at.experts && !t->scope->at.tokens, passed = false;
    if (t->what->nature != ET_BY_FACTOR || !everywhere) return false;
    for (size_t i = 0; i < q->count; i++) {
        const et_exhibit *x = &q->exhibits[i];
        if (x->stage != start) continue;
        if (x->failed) return false;
        passed |= x->passed;
    }
    return passed;
}

/* Is every failure of a part within reach, for each part of which one is? Fills in t->covers. */
static bool is_promising(const et_inquiry *q, attempt *t)
{
    bool missed[ET_PARTS] = {false}, routes = reaches_stage(t, false, ET_AT_MASK);
    bool layout = et_hypothesis_starts(t->what, t->variant) == ET_AT_LAYOUT;
    t->covers[0] = t->covers[1] = false;
    for (size_t i = 0; i < q->count; i++) {
        const et_exhibit *x = &q->exhibits[i];
        if (!x->failed || x->stage == ET_STAGES) continue;
        if (reaches(q, t, x))
            t->covers[x->part] = true;
        else
            missed[x->part] = true;
    }
    if (q->routing_failed && (routes || layout)) t->covers[ET_PART_ROUTING] = true;
    if (q->routing_failed && !routes && !(layout && q->j->mask == NULL))
        missed[ET_PART_ROUTING] = true;
    for (int p = 0; p < ET_PARTS; p++)
        if (t->covers[p] && missed[p]) return false;
    return t->covers[0] || t->covers[1];
}

/* Has everything that failed been looked at? Asked when all tokens were. */
static bool is_complete(const et_inquiry *q, const attempt *t, const bool *seen)
{
    for (size_t i = 0; i < q->count; i++) {
        const et_exhibit *x = &q->exhibits[i];
        bool implied = x->stage == ET_AT_MASK && q->j->mask != NULL;
        if (x->failed && x->stage != ET_STAGES && t->covers[x->part] && !seen[i] && !implied)
            return false;
    }
    return true;
}

/* Computes the mutant phase by phase until the candidate contradicts it. `judge`: by the full judgement
 * at the end, in a large problem only then. */
static et_status look(const et_subject *on, const et_inquiry *q, attempt *t, bool judge,
                      bool *agrees, et_error *error)
{
    et_mutant m;
    bool seen[ET_MAX_STEP_TENSORS] = {false};
    et_status status = ET_OK;
    *agrees = true;
    open_mutant(&m, on, q, t);
    for (int phase = 0; status == ET_OK && *agrees && phase < ET_PHASES; phase++) {
        if (phase == ET_COMBINE_BACKWARD && !q->shows_backward) phase = ET_LAYOUT;
        status = et_mutant_phase(&m, (et_phase)phase, error);
        if (status == ET_OK) *agrees = et_mutant_agrees(q, &m, !judge || q->small, seen);
    }
    if (status == ET_OK && *agrees && on->pick.whole) *agrees = is_complete(q, t, seen);
    if (status == ET_OK && *agrees && judge) status = et_mutant_passes(q, &m, agrees, error);
    if (status == ET_OK && *agrees && judge && t->what->nature == ET_BY_FACTOR)
        t->fit = et_mutant_fit(q, &m);
    et_mutant_close(&m);
    return status;
}

/* ---- a factor ---- */

/* The mutant with factor 1 + step changes everything in proportion, or nearly so: how much of that
 * change does the candidate show? Asked of the first phase at which it fails. */
static et_status fit_once(const et_subject *on, const et_inquiry *q, const attempt *t, double step,
                          et_fit *fit, et_error *error)
{
    et_mutant m;
    et_status status = ET_OK;
    attempt trial = *t;
    trial.factor = 1 + step;
    open_mutant(&m, on, q, &trial);
    bool enough = false;
    unsigned before = 0;
    for (int phase = 0; status == ET_OK && !enough && phase < ET_LAYOUT; phase++) {
        status = et_mutant_phase(&m, (et_phase)phase, error);
        if (status == ET_OK && m.done != before) *fit = et_fit_factor(q, &m, &enough);
        before = m.done;
    }
    et_mutant_close(&m);
    return status;
}

/* Does a sum over all tokens fail, of which a pick shows nothing? */
static bool fails_as_a_whole(const et_inquiry *q)
{
    static const char *const names[] = {"bwd.shared_up", "bwd.shared_down", "bwd.w_router"};
    for (size_t i = 0; i < q->count; i++)
        for (size_t k = 0; k < sizeof names / sizeof *names; k++)
            if (q->exhibits[i].failed && strcmp(q->exhibits[i].got->name, names[k]) == 0)
                return true;
    return false;
}

/* Fits the factor on what is looked at, a second time near the first answer. False if there is none for
 * certain. */
static et_status fit_factor(const et_subject *on, const et_inquiry *q, attempt *t, bool *found,
                            et_error *error)
{
    const double certain = 6;
    double step = 0x1p-10;
    et_status status = ET_OK;
    *found = true;
    for (int round = 0; status == ET_OK && *found && round < 2; round++) {
        et_fit fit = {0};
        status = fit_once(on, q, t, step, &fit, error);
        if (fit.uu == 0 && !on->pick.whole && fails_as_a_whole(q)) return status;
        double part = fit.uu > 0 ? fit.eu / fit.uu : 0;
        *found = fabs(part) * sqrt(fit.uu) > certain;
        t->factor = 1 + step * part;
        t->deviation = *found ? fabs(step) / sqrt(fit.uu) : 0;
        *found = *found && t->factor > 0.4 && t->factor < 2.5;
        step = t->factor - 1;
    }
    return status;
}

/* ---- all attempts ---- */

enum { SURVIVORS = 64 };

typedef struct search {
    et_inquiry *q;
    scopes scopes;
    looks looks;
    size_t count, tried;
    attempt survivors[SURVIVORS];
} search;

/* Can a hook be confined to some experts, or to some tokens? */
static bool is_confinable(const et_hook *h, bool to_experts)
{
    if (h->whole || h->settings) return false;
    return to_experts ? !(h->row && et_is_by_token(h->at)) : !h->rows;
}

static bool can_be_confined(const et_hypothesis *what, size_t variant, bool to_experts)
{
    for (size_t i = 0; i < ET_MAX_HOOKS; i++) {
        const et_hook *h = &what->hooks[i];
        bool applies = h->variants == 0 || (h->variants >> variant & 1);
        if (applies && !is_confinable(h, to_experts)) return false;
    }
    return true;
}

/* At the stages that a form reaches: does the routed experts' tensor fail and the shared expert's twin
 * pass, or the other way round? Then the scope is one of them. */
static bool is_one_sided(const et_inquiry *q, const et_hypothesis *what, size_t variant,
                         bool shared_fails)
{
    for (size_t i = 0; i < q->count; i++) {
        const et_exhibit *x = &q->exhibits[i];
        if (!x->failed || is_shared(x) != shared_fails || x->stage == ET_STAGES) continue;
        if (!(et_hypothesis_reach(what, variant, false) >> x->stage & 1)) continue;
        for (size_t k = 0; k < q->count; k++) {
            const et_exhibit *twin = &q->exhibits[k];
            if (twin->passed && twin->stage == x->stage && is_shared(twin) != shared_fails)
                return true;
        }
    }
    return false;
}

static bool is_fit(const search *s, const et_hypothesis *what, size_t variant, const scope *c)
{
    bool experts = c->at.experts != NULL, tokens = c->at.tokens != NULL;
    if ((experts || tokens) && !can_be_confined(what, variant, experts)) return false;
    if (tokens || !can_be_confined(what, variant, true)) return true;
    bool routed = !experts || c->at.experts == s->scopes.routed;
    bool shared = !experts || c->at.experts == s->scopes.shared;
    if (shared && is_one_sided(s->q, what, variant, false)) return false;
    return !(routed && is_one_sided(s->q, what, variant, true));
}

static et_status attempt_one(search *s, attempt t, bool *survives, et_error *error)
{
    et_status status = ET_OK;
    bool whole_alone = et_hypothesis_starts(t.what, t.variant) == ET_AT_LAYOUT;
    size_t last = s->looks.count - 1;
    *survives = is_promising(s->q, &t) && !is_refuted(s->q, &t) &&
                et_budget_allows(&s->q->budget, ET_ATTEMPT);
    if (*survives && t.what->nature == ET_BY_FACTOR)
        status = fit_factor(&s->looks.on[last], s->q, &t, survives, error);
    for (size_t i = 0; status == ET_OK && *survives && i <= last; i++)
        if (!whole_alone || s->looks.on[i].pick.whole)
            status = look(&s->looks.on[i], s->q, &t, s->q->small, survives, error);
    t.order = s->tried++;
    if (status == ET_OK && *survives && s->count < SURVIVORS) s->survivors[s->count++] = t;
    return status;
}

/* One form of a hypothesis in each scope of a tier, the first in which it survives; with its backward
 * pass by the mutant's values, and by the right ones. */
static et_status attempt_form(search *s, int tier, const et_hypothesis *what, size_t variant,
                              et_error *error)
{
    et_status status = ET_OK;
    et_stage start = et_hypothesis_starts(what, variant);
    bool forward = start >= ET_AT_GATES && start < ET_AT_Y && s->q->shows_backward;
    int from = forward && !s->q->backward_failed; /* what passes goes by right values */
    bool survives = false;
    for (size_t i = 0; status == ET_OK && !survives && i < s->scopes.count; i++) {
        const scope *where = &s->scopes.list[i];
        if (where->tier != tier || !is_fit(s, what, variant, where)) continue;
        for (int forward_only = from; status == ET_OK && forward_only <= forward; forward_only++) {
            bool one;
            attempt t = {.what = what,
                         .variant = variant,
                         .forward_only = forward_only,
                         .scope = where,
                         .factor = 1,
                         .fit = INFINITY};
            status = attempt_one(s, t, &one, error);
            survives |= one;
        }
    }
    return status;
}

static et_status attempt_all(search *s, et_nature nature, int tier, et_error *error)
{
    const et_hypothesis *what;
    et_status status = ET_OK;
    for (size_t i = 0; status == ET_OK && (what = et_hypothesis_row(i)) != NULL; i++) {
        if (what->nature != nature || (what->applies && !what->applies(s->q->right))) continue;
        for (size_t v = 0; status == ET_OK && et_hypothesis_has(what, v); v++)
            if (!what->allowed || !what->allowed(s->q->j->options->profile, v))
                status = attempt_form(s, tier, what, v, error);
    }
    return status;
}

/* ---- what is reported ---- */

/* A later stage first; then the order of the table. */
static int by_specificity(const void *left, const void *right)
{
    const attempt *a = left, *b = right;
    int start_a = (int)et_hypothesis_starts(a->what, a->variant);
    int start_b = (int)et_hypothesis_starts(b->what, b->variant);
    if (start_a != start_b) return start_b - start_a;
    return (a->order > b->order) - (a->order < b->order);
}

void et_inquiry_note(et_inquiry *q, const et_hypothesis *what, const char *where, const char *how,
                     double fit)
{
    et_verdict *v = q->verdict;
    for (size_t i = 0; i < v->explanation_count; i++) {
        et_explanation *e = &v->explanations[i];
        size_t used = strlen(e->scope);
        if (e->name != what->doc.name) continue;
        if (used + strlen(how) + 8 < sizeof e->scope && how[0])
            snprintf(e->scope + used, sizeof e->scope - used, "; or %s", how);
        q->fits[i] = fmax(q->fits[i], fit);
        return;
    }
    if (v->explanation_count == ET_MAX_EXPLANATIONS) return;
    q->fits[v->explanation_count] = fit;
    q->named[v->explanation_count] = what;
    et_explanation *e = &v->explanations[v->explanation_count++];
    *e = (et_explanation){.name = what->doc.name, .sentence = what->doc.sentence};
    snprintf(e->scope, sizeof e->scope, "%s%s%s", where, how[0] ? ": " : "", how);
}

static void note(search *s, const attempt *t)
{
    char how[96];
    const char *form = t->what->variants[t->variant];
    const char *only = t->forward_only ? "the backward pass goes by right values" : "";
    if (t->what->nature == ET_BY_FACTOR)
        snprintf(how, sizeof how, "%s times %.7g +- %.1g", form, t->factor, t->deviation);
    else
        snprintf(how, sizeof how, "%s%s%s", form, form[0] && only[0] ? ", " : "", only);
    et_inquiry_note(s->q, t->what, t->scope->text, how, t->fit);
}

/* How many full judgements may be made: 2 in a large problem, more in a smaller one. */
static size_t budget(const et_inquiry *q)
{
    const et_case *c = &q->right->c;
    double slots = c->layer == ET_MOE ? (double)q->right->assignment.slots : 0;
    double work = (slots + (double)c->tokens) * (double)c->d_model * (double)c->d_expert;
    return work > 4e9 ? 2 : work > 1e9 ? 6 : SURVIVORS;
}

/* The survivors on all tokens, by the full judgement, which those of a small problem have passed.
 * `confirmed` [SURVIVORS] out. */
static et_status confirm(search *s, bool *confirmed, et_error *error)
{
    const et_judgement *j = s->q->j;
    et_subject on;
    et_status status = ET_OK;
    size_t most = budget(s->q);
    qsort(s->survivors, s->count, sizeof *s->survivors, by_specificity);
    for (size_t i = 0; i < SURVIVORS; i++) confirmed[i] = s->q->small;
    if (s->count == 0 || s->q->small) return ET_OK;
    status = et_subject_open(&on, s->q->right, j->candidate, j->count, NULL, error);
    if (status != ET_OK) return status;
    for (size_t i = 0; status == ET_OK && i < s->count && i < most; i++) {
        attempt *t = &s->survivors[i];
        bool fits = true;
        if (!et_budget_allows(&s->q->budget, ET_JUDGEMENT)) continue;
        if (t->what->nature == ET_BY_FACTOR) status = fit_factor(&on, s->q, t, &fits, error);
        if (status == ET_OK && fits) status = look(&on, s->q, t, true, &confirmed[i], error);
    }
    et_subject_close(&on);
    return status;
}

static bool covers_all(const et_inquiry *q, const attempt *t)
{
    return (!q->failed[0] || t->covers[0]) && (!q->failed[1] || t->covers[1]);
}

/* Those that account for everything, if there are any; else those of each part. */
static void report(search *s, const bool *confirmed, bool explained[ET_PARTS])
{
    bool whole = false;
    for (size_t i = 0; i < s->count; i++)
        whole |= confirmed[i] && covers_all(s->q, &s->survivors[i]);
    for (size_t i = 0; i < s->count; i++) {
        const attempt *t = &s->survivors[i];
        if (!confirmed[i] || (whole && !covers_all(s->q, t))) continue;
        for (int p = 0; p < ET_PARTS; p++) explained[p] |= t->covers[p];
        note(s, t);
    }
}

static bool is_explained(const et_inquiry *q, const bool explained[ET_PARTS])
{
    return (!q->failed[0] || explained[0]) && (!q->failed[1] || explained[1]);
}

/* `part` of the limit may have been used up when this ends. */
static et_status attempt_nature(search *s, et_nature nature, double part, bool explained[ET_PARTS],
                                et_error *error)
{
    bool confirmed[SURVIVORS];
    et_status status = ET_OK;
    et_budget *b = &s->q->budget;
    for (int tier = 0; status == ET_OK && tier < TIERS && !is_explained(s->q, explained); tier++) {
        s->count = 0;
        et_budget_until(b, part, 0.5);
        status = attempt_all(s, nature, tier, error);
        et_budget_until(b, part, 1);
        if (status == ET_OK) status = confirm(s, confirmed, error);
        if (status == ET_OK) report(s, confirmed, explained);
    }
    return status;
}

/* ---- the search ---- */

static void say_left_out(const et_inquiry *q)
{
    const et_budget *b = &q->budget;
    if (b->left_out == 0) return;
    snprintf(q->verdict->search, sizeof q->verdict->search,
             "the search was cut at its limit of %g s of CPU: %zu attempts were left out", b->limit,
             b->left_out);
}

static et_status run_search(search *s, et_error *error)
{
    et_inquiry *q = s->q;
    bool explained[ET_PARTS] = {false};
    et_other_profile other;
    et_status status = et_find_other_profile(q, &other, error);
    if (status == ET_OK) status = attempt_nature(s, ET_BY_VALUE, 0.75, explained, error);
    size_t before = q->verdict->explanation_count;
    if (status == ET_OK && q->failed[1] && !explained[1]) {
        status = attempt_nature(s, ET_BY_FACTOR, 0.9, explained, error);
        et_budget_until(&q->budget, 1, 1);
        if (status == ET_OK) status = et_explain_precision(q, error);
        et_order_by_fit(q, before, &other);
        explained[1] = q->verdict->explanation_count > before;
    }
    say_left_out(q);
    bool named = is_explained(q, explained) || (other.profile && other.explains);
    return status == ET_OK && !named ? et_describe_residual(q, error) : status;
}

et_status et_explain(et_verdict *verdict, const et_judgement *j, et_error *error)
{
    et_inquiry q;
    search s = {.q = &q};
    et_status status = et_inquiry_open(&q, verdict, j, error);
    if (status != ET_OK) return status;
    if (!q.failed[0] && !q.failed[1]) {
        status = et_describe_residual(&q, error);
        et_inquiry_close(&q);
        return status;
    }
    status = make_scopes(&s.scopes, &q, error);
    if (status == ET_OK) status = make_looks(&s.looks, &q, error);
    if (status == ET_OK) status = run_search(&s, error);
    close_looks(&s.looks);
    free(s.scopes.routed);
    et_inquiry_close(&q);
    return status;
}
