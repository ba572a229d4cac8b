/* audit_command.c: `etref leakage audit`: is this routing causal?
 *
 * Of each batch the first t tokens are kept, the rest is replaced, and the batch is routed again:
 * decisions on the kept tokens that come out differently were told by the future. Noise and text
 * show how often that happens by itself; the adversary finds every decision that any future could
 * change. Two files are compared in audit_pair.c.
 */
#include "etref/bundle.h"
#include "tools/etref/commands.h"
#include "ref/report/describe_case.h"
#include "tools/etref/ending.h"
#include "tools/etref/cmd_leakage.h"
#include "tools/leakage-study/audit_command.h"
#include "tools/leakage-study/audit_fresh.h"
#include "tools/etref/memory_limit.h"
#include "tools/etref/terminal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* A bundle and all that its audit needs. */
typedef struct subject {
    const char *path;
    et_step step;
    et_real *r;                           /* [N,n] */
    et_real *fresh[FUTURES];              /* [N,n] or NULL */
    et_real *own_thresholds, *thresholds; /* [n] */
    size_t count;
    et_audit_rule rules[MAX_RULES];
    audited *results; /* [count] */
} subject;

/* ---- taking the bundle in ---- */

/* The stored mask must be what the case's rule makes of the stored inputs: otherwise the audit would
 * speak of another routing than the bundle's. */
static et_status check_mask(const subject *s, const et_tensor_file *file, et_error *error)
{
    size_t N = s->step.c.tokens, n = s->step.c.experts, shape[2], wrong = 0;
    double *stored = NULL;
    if (et_tensor_file_find(file, "route.mask") == NULL) return ET_OK;
    uint8_t *mask = allocate(N * n, 1);
    et_status status = read_matrix(file, "route.mask", &stored, shape, error);
    if (status == ET_OK && (shape[0] != N || shape[1] != n))
        status = et_fail(error, ET_EINVAL, "%s: route.mask is [%zu,%zu]; [%zu,%zu] belongs there",
                         s->path, shape[0], shape[1], N, n);
    if (status == ET_OK) status = et_audit_route(&s->rules[0], N, s->r, mask, error);
    for (size_t j = 0; status == ET_OK && j < N * n; j++) wrong += (stored[j] != 0) != mask[j];
    if (wrong > 0)
        status =
            et_fail(error, ET_EINVAL,
                    "%s: route.mask is not what the case's rule gives at %zu decisions; 'etref "
                    "verify' says where",
                    s->path, wrong);
    free(stored);
    free(mask);
    return status;
}

static et_status draw_future(subject *s, fresh_kind kind, const char *text, et_error *error)
{
    et_real *x = NULL;
    int f = kind == FRESH_TEXT ? TEXT : NOISE;
    et_status status = fresh_tokens(&x, &s->step, kind, text, error);
    if (status == ET_OK) {
        s->fresh[f] = allocate(s->step.c.tokens * s->step.c.experts, sizeof(et_real));
        status = score_tokens(&s->step, x, s->fresh[f], error);
    }
    free(x);
    return status;
}

/* A machine without the text can do without, unless it is what was asked for. */
static et_status draw_futures(subject *s, const audit_options *o, et_error *error)
{
    bool noise = o->future < 0 || o->future == NOISE || o->all_rules;
    bool text = o->future < 0 || o->future == TEXT;
    et_status status = ET_OK;
    if (noise) status = draw_future(s, FRESH_NOISE, NULL, error);
    if (status != ET_OK || !text) return status;
    status = draw_future(s, FRESH_TEXT, o->text, error);
    if (status != ET_EIO || o->future == TEXT || o->text) return status;
    fprintf(stderr, "etref: note: no text future: %s\n", error->text);
    return ET_OK;
}

/* What own_rule does not know. */
static et_status check_rule(const char *where, const et_case *c, et_error *error)
{
    const char *what = c->given                              ? "a given assignment"
                       : c->padding > 0                      ? "padding tokens"
                       : c->groups > 1                       ? "groups of experts"
                       : c->rule == ET_TC && c->select_gates ? "a choice by gate values"
                       : c->rule == ET_TC && c->has_capacity ? "token choice with a capacity"
                                                             : NULL;
    if (c->layer != ET_MOE || what == NULL) return ET_OK;
    return et_fail(error, ET_EINVAL, "%s: case '%s' has %s, which the audit does not know", where, c->name, what);
}

static et_status subject_open(subject *s, const audit_options *o, et_error *error)
{
    et_tensor_file file;
    *s = (subject){.path = o->files.at[0]};
    et_status status = et_bundle_open(&file, &s->step, s->path, memory_limit(), error);
    if (status != ET_OK) return status;
    status = check_rule(s->path, &s->step.c, error);
    if (status == ET_OK && s->step.c.layer == ET_MOE) {
        size_t N = s->step.c.tokens, n = s->step.c.experts;
        s->r = allocate(N * n, sizeof *s->r);
        s->own_thresholds = allocate(n, sizeof *s->own_thresholds);
        s->thresholds = allocate(n, sizeof *s->thresholds);
        s->rules[0] = own_rule(&s->step, s->own_thresholds);
        status = score_tokens(&s->step, s->step.in.x, s->r, error);
        if (status == ET_OK) status = check_mask(s, &file, error);
    }
    et_tensor_file_close(&file);
    return status;
}

static void subject_free(subject *s)
{
    for (size_t i = 0; i < s->count && s->results; i++) audited_free(&s->results[i]);
    for (int f = 0; f < FUTURES; f++) free(s->fresh[f]);
    free(s->results);
    free(s->r);
    free(s->own_thresholds);
    free(s->thresholds);
    et_step_free(&s->step);
}

/* ---- the audit ---- */

static et_status run(subject *s, const audit_options *o, et_error *error)
{
    const et_real *futures[FUTURES] = {NULL};
    et_status status = draw_futures(s, o, error);
    if (status != ET_OK) return status;
    s->count = rules_to_audit(s->rules, &s->step, s->fresh[NOISE], s->own_thresholds, s->thresholds,
                              o->all_rules, error);
    if (s->count == 0) return ET_EINVAL;
    s->results = allocate(s->count, sizeof *s->results);
    for (int f = 0; f < ADVERSARY; f++)
        if (o->future < 0 || o->future == f) futures[f] = s->fresh[f];
    for (size_t i = 0; i < s->count && status == ET_OK; i++) {
        s->results[i].rule = s->rules[i];
        s->results[i].own = i == 0;
        status = audit_rule(&s->results[i], s->step.c.tokens, s->r, futures,
                            o->future < 0 || o->future == ADVERSARY, o->cuts, o->draws, error);
    }
    return status;
}

/* ---- the report ---- */

static json_t *result_json(const audited *a, size_t bands)
{
    json_t *row = json_object(), *cuts = json_array(), *futures = json_array();
    json_object_set_new(row, "rule", json_string(rule_word(&a->rule)));
    json_object_set_new(row, "own", json_boolean(a->own));
    json_object_set_new(row, "batch", json_integer((json_int_t)a->rule.batch));
    json_object_set_new(row, "select", json_integer((json_int_t)a->rule.select));
    if (a->rule.has_capacity)
        json_object_set_new(row, "capacity", et_json_number(a->rule.capacity));
    for (size_t i = 0; i < a->cuts; i++)
        json_array_append_new(cuts, json_integer((json_int_t)a->cut[i]));
    json_object_set_new(row, "kept", cuts);
    json_object_set_new(row, "causal", json_boolean(is_causal(a)));
    for (int f = 0; f < FUTURES; f++) {
        if (!a->has[f]) continue;
        audit_total total = total_of(&a->count[f], 0, a->rule.batch);
        json_t *future = json_object();
        json_object_set_new(future, "future", json_string(future_names[f]));
        json_object_set_new(future, "compared", json_integer((json_int_t)total.compared));
        json_object_set_new(future, "taken", json_integer((json_int_t)total.taken));
        json_object_set_new(future, "changed", json_integer((json_int_t)total.changed));
        json_object_set_new(future, "share", et_json_number(share_of(total)));
        json_object_set_new(future, "positions", bands_json(&a->count[f], a->rule.batch, bands));
        json_array_append_new(futures, future);
    }
    json_object_set_new(row, "futures", futures);
    return row;
}

static bool gates_see_the_batch(const subject *s)
{
    return s->step.c.gate == ET_GATE_SOFTMAX_TOKENS;
}

static void report_json(const subject *s, const audit_options *o)
{
    json_t *report = json_object(), *rows = json_array();
    json_object_set_new(report, "file", et_json_clean(s->path));
    json_object_set_new(report, "case", et_json_clean(s->step.c.name));
    json_object_set_new(report, "verdict",
                        json_string(is_causal(&s->results[0]) ? "causal" : "leaks"));
    json_object_set_new(report, "gates_causal", json_boolean(!gates_see_the_batch(s)));
    for (size_t i = 0; i < s->count; i++)
        json_array_append_new(rows, result_json(&s->results[i], o->bands));
    json_object_set_new(report, "rules", rows);
    json_print(report);
}

static void changed_cell(et_table *table, const audited *a, int f, size_t first, size_t last)
{
    audit_total total = a->has[f] ? total_of(&a->count[f], first, last) : (audit_total){0};
    share_cell(table, total.compared ? share_of(total) : NAN);
}

static void print_totals(const audited *a)
{
    et_table table;
    et_table_begin(&table, "lrrrr");
    static const char *const heads[] = {"future", "past decisions", "taken", "changed", "share"};
    for (size_t i = 0; i < sizeof heads / sizeof *heads; i++) et_table_cell(&table, "%s", heads[i]);
    for (int f = 0; f < FUTURES; f++) {
        if (!a->has[f]) continue;
        audit_total total = total_of(&a->count[f], 0, a->rule.batch);
        et_table_cell(&table, "%s", future_names[f]);
        et_table_cell(&table, "%llu", (unsigned long long)total.compared);
        et_table_cell(&table, "%llu", (unsigned long long)total.taken);
        et_table_cell(&table, "%llu", (unsigned long long)total.changed);
        changed_cell(&table, a, f, 0, a->rule.batch);
    }
    table_print(&table);
}

/* The last column draws the strongest future there is: the adversary's, or else the others'. */
static void print_positions(const audited *a, size_t bands)
{
    enum { WIDTH = 32 };
    size_t U = a->rule.batch, width = band_width(U, bands), last_cut = a->cut[a->cuts - 1];
    int drawn = FUTURES - 1;
    double full = 0;
    while (drawn > 0 && !a->has[drawn]) drawn--;
    for (size_t first = 0; first < U; first += width) {
        double share =
            share_of(total_of(&a->count[drawn], first, first + width < U ? first + width : U));
        if (share > full) full = share;
    }
    et_table table;
    et_table_begin(&table, "rrrrl");
    et_table_cell(&table, "positions");
    for (int f = 0; f < FUTURES; f++) et_table_cell(&table, "%s", future_names[f]);
    et_table_cell(&table, "%s", "");
    for (size_t first = 0; first < last_cut; first += width) {
        char bar[WIDTH + 1];
        size_t last = first + width < U ? first + width : U;
        et_table_cell(&table, "%zu-%zu", first, last - 1);
        for (int f = 0; f < FUTURES; f++) changed_cell(&table, a, f, first, last);
        print_bar(bar, WIDTH, share_of(total_of(&a->count[drawn], first, last)), -1, full);
        et_table_cell(&table, "%s", bar);
    }
    puts("\nchanged, by the token's place in its batch:\n");
    table_print(&table);
}

static void print_rules(const subject *s)
{
    et_table table;
    static const char *const heads[] = {"", "batch", "k", "noise", "text", "adversary", ""};
    et_table_begin(&table, "lrrrrrl");
    et_table_cell(&table, "rule");
    for (size_t i = 1; i < sizeof heads / sizeof *heads; i++) et_table_cell(&table, "%s", heads[i]);
    for (size_t i = 0; i < s->count; i++) {
        const audited *a = &s->results[i];
        et_table_cell(&table, "%s%s", rule_word(&a->rule), a->own ? " (its own)" : "");
        et_table_cell(&table, "%zu", a->rule.batch);
        et_table_cell(&table, "%zu", a->rule.select);
        for (int f = 0; f < FUTURES; f++) changed_cell(&table, a, f, 0, a->rule.batch);
        et_table_cell(&table, "%s", is_causal(a) ? "causal" : "leaks");
    }
    puts("\nevery rule on these scores, past decisions that change:\n");
    table_print(&table);
}

/* The last line: the verdict. */
static void print_verdict(const subject *s)
{
    const audited *a = &s->results[0];
    audit_total worst = {0};
    int by = 0;
    for (int f = 0; f < FUTURES; f++) {
        audit_total total = total_of(&a->count[f], 0, a->has[f] ? a->rule.batch : 0);
        if (a->has[f] && share_of(total) >= share_of(worst)) {
            worst = total;
            by = f;
        }
    }
    fputs(worst.changed ? "LEAKS " : "CAUSAL ", stdout);
    print_clean(stdout, s->path);
    if (worst.changed)
        printf(": %llu of %llu past decisions change with the future (%s)\n",
               (unsigned long long)worst.changed, (unsigned long long)worst.compared,
               future_names[by]);
    else
        printf(": none of %llu past decisions changes%s\n", (unsigned long long)worst.compared,
               a->has[ADVERSARY] ? ", whatever follows" : " under the futures tried");
}

static void report_text(const subject *s, const audit_options *o)
{
    const audited *a = &s->results[0];
    char sentence[512], rule[256], again[300];
    et_describe_case(sentence, sizeof sentence, &s->step.c);
    describe_rule_of(rule, sizeof rule, &a->rule);
    printf("%s\n", s->step.c.name);
    print_wrapped(2, sentence);
    snprintf(again, sizeof again, "routed again by %s;", rule);
    putchar('\n');
    print_wrapped(0, again);
    printf("kept: the first t of %zu tokens, t = %zu", a->rule.batch, a->cut[0]);
    if (a->cuts > 1) printf(" to %zu (%zu cuts)", a->cut[a->cuts - 1], a->cuts);
    puts("; replaced: the rest\n");
    print_totals(a);
    if (!is_causal(a)) print_positions(a, o->bands);
    if (o->all_rules) print_rules(s);
    if (gates_see_the_batch(s))
        puts("\nnote: softmax_tokens normalises over the batch: gate values see the future,\n"
             "whatever the decisions do");
    putchar('\n');
    print_verdict(s);
}

/* ---- one bundle ---- */

static int nothing_to_compare(const subject *s, const audit_options *o, const char *reason)
{
    if (o->format == FORM_JSON) {
        json_t *report = json_object();
        json_object_set_new(report, "file", et_json_clean(s->path));
        json_object_set_new(report, "verdict", json_string("inconclusive"));
        json_object_set_new(report, "reason", json_string(reason));
        json_print(report);
    } else {
        fputs("INCONCLUSIVE ", stdout);
        print_clean(stdout, s->path);
        printf(": %s\n", reason);
    }
    return STATUS_INCONCLUSIVE;
}

static int audit_bundle(const audit_options *o)
{
    subject s;
    et_error error = {0};
    int result;
    et_status status = subject_open(&s, o, &error);
    if (status == ET_OK && s.step.c.layer == ET_DENSE)
        result = nothing_to_compare(&s, o, "a dense layer decides nothing");
    else if (status == ET_OK && s.rules[0].batch < 2)
        result = nothing_to_compare(&s, o, "batches of one token have no past and no future");
    else {
        if (status == ET_OK) status = run(&s, o, &error);
        if (status == ET_OK && o->format == FORM_JSON) report_json(&s, o);
        if (status == ET_OK && o->format == FORM_TEXT) report_text(&s, o);
        result = status != ET_OK            ? fail_status(status, &error)
                 : is_causal(&s.results[0]) ? STATUS_PASS
                                            : STATUS_MISMATCH;
    }
    subject_free(&s);
    return result;
}

/* ---- the command ---- */

static bool bad(const char *message)
{
    return refuse("audit", message);
}

/* On a command line a bare name is a file here, and not a common licence. */
static bool find_text(audit_options *o, char path[256])
{
    if (o->text == NULL) return true;
    if (!is_text(o->text)) return false;
    snprintf(path, 256, strchr(o->text, '/') ? "%s" : "./%s", o->text);
    if (strlen(o->text) > 250) {
        fail("--text %s: the name has more than 250 bytes", o->text);
        return false;
    }
    o->text = path;
    return true;
}

static bool check_options(const audit_options *o)
{
    size_t files = o->files.count;
    if (files == 0)
        return bad("no bundle given: etref leakage audit BUNDLE, or A B [KERNEL_A KERNEL_B]");
    if (files == 3 || files > 4)
        return bad("one bundle, two, or two and what a kernel made of each belong here");
    if (files > 1 &&
        (o->all_rules || o->future >= 0 || o->text || o->twin || o->cut || o->cuts || o->draws))
        return bad("two files are compared as they are: only --bands and --format go with them");
    if (!o->twin != !o->cut)
        return bad("--twin FILE and --cut T belong together: where to write, how many tokens to "
                   "keep");
    if (o->twin && (o->all_rules || o->future == ADVERSARY))
        return bad("--twin writes tokens: --future noise or text goes with it, the adversary and "
                   "--all-rules are about scores");
    if (o->twin && (o->cuts || o->draws || o->bands || o->format >= 0))
        return bad("--twin writes a bundle and audits nothing: --cuts, --draws, --bands and "
                   "--format do not go with it");
    if (o->text && o->future >= 0 && o->future != TEXT)
        return bad("--text is about the future 'text': leave out --future, or say text");
    if (o->cuts > MAX_CUTS || o->draws > MAX_CUTS) return bad("--cuts and --draws: at most 4096");
    return true;
}

static void set_defaults(audit_options *o)
{
    if (o->cuts == 0) o->cuts = 15;
    if (o->draws == 0) o->draws = 4;
    if (o->bands == 0) o->bands = 16;
    if (o->format < 0) o->format = FORM_TEXT;
}

static bool read_options(audit_options *o, int argc, char **argv)
{
    const option table[] = {{"--future", OPTION_CHOICE, &o->future, "noise|text|adversary"},
                            {"--text", OPTION_WORD, &o->text, NULL},
                            {"--cuts", OPTION_COUNT, &o->cuts, NULL},
                            {"--draws", OPTION_COUNT, &o->draws, NULL},
                            {"--bands", OPTION_COUNT, &o->bands, NULL},
                            {"--all-rules", OPTION_FLAG, &o->all_rules, NULL},
                            {"--twin", OPTION_WORD, &o->twin, NULL},
                            {"--cut", OPTION_COUNT, &o->cut, NULL},
                            {"--format", OPTION_CHOICE, &o->format, "text|json"},
                            {"--threads", OPTION_THREADS, &o->threads, NULL},
                            {NULL, OPTION_FLAG, NULL, NULL}};
    return options_parse(table, argc, argv, &o->files) && check_options(o);
}

int leakage_audit(int argc, char **argv)
{
    audit_options o = {.future = -1, .format = -1};
    char path[256];
    int result = STATUS_BAD;
    if (read_options(&o, argc, argv) && find_text(&o, path)) {
        set_defaults(&o);
        use_threads(o.threads);
        result = o.files.count > 1 ? audit_pair(&o) : o.twin ? write_twin(&o) : audit_bundle(&o);
    }
    word_list_free(&o.files);
    return result;
}
