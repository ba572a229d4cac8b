/* study_flips.c: the audit on streams of scores: rules, pool sizes, positions.
 *
 * The bounds say what a rule can tell about the future; this says how many past decisions really
 * hang on it: on the average over futures of the same stream (noise), and at most (adversary).
 */
#include "tools/leakage-study/study.h"
#include "tools/etref/options.h"

#include <stdlib.h>

enum { CUTS = 15, DRAWS = 2, BANDS = 32 };

/* Every rule by falling batch; thresholds are the cutoffs of a batch that came before. */
static size_t list_rules(et_audit_rule *rules, size_t N, size_t n, const et_real *thresholds)
{
    size_t count = 0;
    et_audit_rule rule = {.experts = n, .batch = N, .select = 1, .threshold = thresholds};
    rule.rule = ET_TC;
    rules[count++] = rule;
    rule.rule = ET_ET;
    rule.select = N / n;
    rules[count++] = rule;
    for (int choice = 0; choice <= 1; choice++)
        for (size_t size = N; size >= n && count < FLIP_RULES; size /= 4) {
            rule.rule = choice ? ET_EC : ET_ET;
            rule.has_capacity = !choice;
            rule.capacity = 0.5;
            rule.batch = size;
            rule.select = size / n;
            rules[count++] = rule;
        }
    return count;
}

static void write_positions(FILE *out, stream_kind stream, const audited *a)
{
    size_t U = a->rule.batch, width = band_width(U, BANDS);
    for (size_t first = 0; first < U; first += width) {
        size_t last = first + width < U ? first + width : U;
        audit_total noise = total_of(&a->count[NOISE], first, last),
                    worst = total_of(&a->count[ADVERSARY], first, last);
        if (noise.compared == 0) continue;
        fprintf(out, "%s,%s,%zu,%zu,%.9g,%.9g,%.9g\n", stream_names[stream], rule_word(&a->rule), U,
                a->rule.select, (double)(first + last) / 2 / (double)U, share_of(noise),
                share_of(worst));
    }
}

static et_status audit_one(flip_study *f, stream_kind stream, const et_audit_rule *rule, size_t N,
                           const et_real *r, const et_real *const fresh[FUTURES], et_error *error)
{
    audited *a = allocate(1, sizeof *a);
    a->rule = *rule;
    et_status status = audit_rule(a, N, r, fresh, true, CUTS, DRAWS, error);
    if (status == ET_OK) {
        f->row[f->rows++] =
            (flip_row){stream, *rule, share_of(total_of(&a->count[NOISE], 0, rule->batch)),
                       share_of(total_of(&a->count[ADVERSARY], 0, rule->batch))};
        write_positions(f->positions.out, stream, a);
    }
    audited_free(a);
    free(a);
    return status;
}

et_status study_flips(flip_study *f, score_stream *s, const study_options *o, et_error *error)
{
    size_t n = o->experts, N = o->tokens < FLIP_TOKENS ? o->tokens : FLIP_TOKENS;
    et_audit_rule rules[FLIP_RULES];
    et_real *r = allocate(N * n, sizeof *r), *fresh = allocate(N * n, sizeof *fresh),
            *thresholds = allocate(n, sizeof *thresholds);
    const et_real *futures[FUTURES] = {[NOISE] = fresh};
    stream_begin(s, "flips", N);
    stream_next(s, N, r);
    et_status status = et_kth_largest(N, n, N / n, r, thresholds, error);
    stream_next(s, N, r);
    stream_next(s, N, fresh);
    size_t count = list_rules(rules, N, n, thresholds);
    for (size_t i = 0; i < count && status == ET_OK; i++)
        status = audit_one(f, s->kind, &rules[i], N, r, futures, error);
    free(r);
    free(fresh);
    free(thresholds);
    return status;
}
