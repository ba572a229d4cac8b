/* audit_rules.c: the rules that an audit looks at, and their counts. See audit_command.h. */
#include "tools/leakage-study/audit_command.h"
#include "ref/report/describe_case.h"
#include "tools/etref/terminal.h"

#include <stdlib.h>
#include <string.h>

const char *const future_names[FUTURES] = {"noise", "text", "adversary"};

/* ---- which rules ---- */

et_audit_rule own_rule(const et_step *s, et_real *thresholds)
{
    const et_case *c = &s->c;
    et_audit_rule rule = {.experts = c->experts, .batch = et_case_micro_tokens(c)};
    if (c->rule == ET_TC) {
        rule.rule = ET_TC;
        rule.select = c->top_k;
        rule.bias = s->in.bias;
        return rule;
    }
    rule.select = c->target_load;
    if (et_case_routes_by_choice(c)) {
        rule.rule = ET_EC;
        rule.batch = c->pool_tokens;
        return rule;
    }
    et_ema_threshold(NULL, c->experts, s->in.ema, c->ema_decay, c->ema_bias_correction,
                     c->ema_updates, thresholds);
    rule.rule = ET_ET;
    rule.threshold = thresholds;
    rule.inclusive = c->inclusive;
    rule.has_capacity = c->has_capacity && !c->eval;
    rule.capacity = c->capacity_factor;
    return rule;
}

/* k in a batch of U tokens, in proportion to the case's own. */
static size_t load_of(const et_case *c, size_t U)
{
    if (c->rule == ET_TC) return U * c->top_k / c->experts;
    return (size_t)((double)U * (double)c->target_load / (double)c->pool_tokens);
}

static bool same_rule(const et_audit_rule *a, const et_audit_rule *b)
{
    return a->rule == b->rule && a->batch == b->batch &&
           (a->rule != ET_ET || a->has_capacity == b->has_capacity);
}

static size_t add_rule(et_audit_rule *rules, size_t count, et_audit_rule rule)
{
    if (count == MAX_RULES || same_rule(&rules[0], &rule)) return count;
    rules[count] = rule;
    return count + 1;
}

/* The moving average where there is one; before the first update, and under TC, the cutoffs of a
 * batch of fresh tokens: of the past, too. */
static et_status choose_thresholds(const et_step *s, const et_real *fresh, et_real *thresholds,
                                   et_error *error)
{
    const et_case *c = &s->c;
    size_t U = et_case_micro_tokens(c), k = load_of(c, U);
    if (s->in.ema && c->ema_updates > 0) {
        et_ema_threshold(NULL, c->experts, s->in.ema, c->ema_decay, c->ema_bias_correction,
                         c->ema_updates, thresholds);
        return ET_OK;
    }
    return et_kth_largest(U, c->experts, k > 0 ? k : 1, fresh, thresholds, error);
}

size_t rules_to_audit(et_audit_rule *rules, const et_step *s, const et_real *fresh,
                      et_real *own_thresholds, et_real *thresholds, bool all, et_error *error)
{
    const et_case *c = &s->c;
    size_t U = et_case_micro_tokens(c), n = c->experts, count = 1;
    rules[0] = own_rule(s, own_thresholds);
    if (!all) return count;
    if (choose_thresholds(s, fresh, thresholds, error) != ET_OK) return 0;
    et_audit_rule rule = {.rule = ET_TC,
                          .experts = n,
                          .batch = U,
                          .select = c->rule == ET_TC ? c->top_k : c->granularity};
    if (rule.select >= 1 && rule.select <= n) count = add_rule(rules, count, rule);
    rule = (et_audit_rule){.rule = ET_ET,
                           .experts = n,
                           .batch = U,
                           .select = load_of(c, U),
                           .threshold = thresholds,
                           .inclusive = c->inclusive,
                           .capacity = c->has_capacity ? c->capacity_factor : 0.5};
    if (rule.select < 1) return count;
    count = add_rule(rules, count, rule);
    for (int choice = 0; choice <= 1; choice++)
        for (size_t size = U; size > 1 && load_of(c, size) >= 1; size /= 4) {
            rule.rule = choice ? ET_EC : ET_ET;
            rule.has_capacity = !choice;
            rule.batch = size;
            rule.select = load_of(c, size);
            count = add_rule(rules, count, rule);
            if (size % 4 != 0) break;
        }
    return count;
}

const char *rule_word(const et_audit_rule *rule)
{
    if (rule->rule == ET_ET) return rule->has_capacity ? "et-capacity" : "et";
    return rule->rule == ET_TC ? "tc" : "ec";
}

void describe_rule_of(char *out, size_t room, const et_audit_rule *rule)
{
    *out = '\0';
    if (rule->rule == ET_TC) et_append(out, room, "token choice, K = %zu", rule->select);
    if (rule->rule == ET_EC)
        et_append(out, room, "expert choice, pools of %zu tokens, k = %zu", rule->batch,
                  rule->select);
    if (rule->rule != ET_ET) return;
    et_append(out, room, "expert threshold");
    if (!rule->has_capacity) return;
    et_capacity bounds = et_capacity_bounds(rule->select, rule->capacity, rule->batch);
    et_append(out, room, " with capacity: %zu to %zu of %zu tokens, k = %zu, C = %g", bounds.lower,
              bounds.upper, rule->batch, rule->select, rule->capacity);
}

/* ---- counting ---- */

static void take_counts(et_audit_count *count, size_t positions)
{
    count->compared = allocate(3 * positions, sizeof *count->compared);
    count->taken = count->compared + positions;
    count->changed = count->taken + positions;
}

void audited_free(audited *a)
{
    for (int f = 0; f < FUTURES; f++) free(a->count[f].compared);
    *a = (audited){0};
}

/* Cuts divide the batch evenly; the first and the last leave at least one token on either side. */
static void place_cuts(audited *a, size_t cuts)
{
    size_t U = a->rule.batch, before = 0;
    a->cuts = 0;
    for (size_t i = 1; i <= cuts && i <= MAX_CUTS; i++) {
        size_t cut = (size_t)((double)U * (double)i / (double)(cuts + 1));
        if (cut <= before || cut >= U) continue;
        before = a->cut[a->cuts++] = cut;
    }
}

/* out [N,n] = the fresh scores, begun somewhere else: one fresh batch serves for several draws. */
static void turn(const et_real *fresh, size_t N, size_t n, size_t by, et_real *out)
{
    memcpy(out, fresh + by * n, (N - by) * n * sizeof *out);
    memcpy(out + (N - by) * n, fresh, by * n * sizeof *out);
}

/* One future of one rule: every cut, for the given scores `draws` times. */
static et_status audit_future(audited *a, int f, const et_audit_routed *tokens,
                              const et_real *fresh, size_t draws, et_error *error)
{
    size_t N = tokens->N, n = a->rule.experts;
    et_real *turned = allocate(N * n, sizeof *turned);
    et_status status = ET_OK;
    take_counts(&a->count[f], a->rule.batch);
    a->has[f] = true;
    for (size_t draw = 0; draw < draws && status == ET_OK; draw++) {
        if (fresh) turn(fresh, N, n, draw * N / draws, turned);
        for (size_t i = 0; i < a->cuts && status == ET_OK; i++) {
            progress_show((void *)"audit", future_names[f],
                          (double)(draw * a->cuts + i) / (double)(draws * a->cuts));
            status =
                fresh ? et_audit_replace(&a->rule, tokens, turned, a->cut[i], &a->count[f], error)
                      : et_audit_adversary(&a->rule, tokens, a->cut[i], &a->count[f], error);
        }
    }
    progress_clear();
    free(turned);
    return status;
}

et_status audit_rule(audited *a, size_t N, const et_real *r, const et_real *const fresh[FUTURES],
                     bool adversary, size_t cuts, size_t draws, et_error *error)
{
    uint8_t *mask = allocate(N * a->rule.experts, 1);
    place_cuts(a, cuts);
    et_status status = et_audit_route(&a->rule, N, r, mask, error);
    const et_audit_routed tokens = {N, r, mask};
    for (int f = 0; f < FUTURES && status == ET_OK; f++) {
        if (f == ADVERSARY ? !adversary : fresh[f] == NULL) continue;
        status = audit_future(a, f, &tokens, fresh[f], f == ADVERSARY ? 1 : draws, error);
    }
    free(mask);
    return status;
}

/* ---- what came of it ---- */

audit_total total_of(const et_audit_count *count, size_t first, size_t last)
{
    audit_total total = {0};
    for (size_t s = first; s < last; s++) {
        total.compared += count->compared[s];
        total.taken += count->taken[s];
        total.changed += count->changed[s];
    }
    return total;
}

double share_of(audit_total total)
{
    return total.compared ? (double)total.changed / (double)total.compared : 0;
}

bool is_causal(const audited *a)
{
    uint64_t changed = 0;
    for (int f = 0; f < FUTURES; f++)
        if (a->has[f]) changed += total_of(&a->count[f], 0, a->rule.batch).changed;
    return changed == 0;
}

size_t band_width(size_t positions, size_t bands)
{
    return positions > bands ? (positions + bands - 1) / bands : 1;
}

json_t *bands_json(const et_audit_count *count, size_t positions, size_t bands)
{
    json_t *rows = json_array();
    size_t width = band_width(positions, bands);
    for (size_t first = 0; first < positions; first += width) {
        size_t last = first + width < positions ? first + width : positions;
        audit_total total = total_of(count, first, last);
        json_t *row = json_object();
        json_object_set_new(row, "first", json_integer((json_int_t)first));
        json_object_set_new(row, "last", json_integer((json_int_t)last - 1));
        json_object_set_new(row, "compared", json_integer((json_int_t)total.compared));
        json_object_set_new(row, "taken", json_integer((json_int_t)total.taken));
        json_object_set_new(row, "changed", json_integer((json_int_t)total.changed));
        json_array_append_new(rows, row);
    }
    return rows;
}
