/* cmd_leakage_exact.c: `etref leakage exact`: the least number of labels, for scores of M levels.
 *
 * One case, a table over the number of levels, or the smallest case in which exact top-k leaks more
 * than the b bits of its cutoff; for that one the sequences are shown that need the labels.
 */
#include "tools/etref/commands.h"
#include "tools/etref/cmd_leakage.h"
#include "tools/etref/terminal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define RULES "topk|threshold|tc|et|et-capacity"

static const char *const rule_names[] = {"topk", "threshold", "tc", "et", "et-capacity"};

enum { FIRST_LEVELS = 2, LAST_LEVELS = 8, COLUMNS = LAST_LEVELS - FIRST_LEVELS + 1 };

typedef struct exact_options {
    et_leakage_case c;
    int rule; /* -1: not given */
    bool table, search, has_size, has_passing;
    int format;
} exact_options;

/* ---- one case ---- */

typedef struct exact_answer {
    uint64_t labels, suffice;
    double set; /* log2 C(N,k) */
} exact_answer;

static et_status answer(const et_leakage_case *c, exact_answer *a, et_error *error)
{
    et_status status;
    if ((status = et_leakage_labels(c, &a->labels, error)) ||
        (status = et_leakage_labels_suffice(c, &a->suffice, error)))
        return status;
    return et_log2_choose(c->tokens, c->select, &a->set, error);
}

static json_t *case_json(const et_leakage_case *c)
{
    json_t *row = json_object();
    json_object_set_new(row, "rule", json_string(rule_names[c->rule]));
    json_object_set_new(row, "tokens", json_integer((json_int_t)c->tokens));
    json_object_set_new(row, "select", json_integer((json_int_t)c->select));
    if (c->rule == ET_LEAKAGE_ET_CAPACITY)
        json_object_set_new(row, "capacity", et_json_number(c->capacity));
    return row;
}

static json_t *answer_json(const et_leakage_case *c, const exact_answer *a)
{
    json_t *row = case_json(c);
    json_object_set_new(row, "levels", json_integer((json_int_t)c->levels));
    if (c->rule == ET_LEAKAGE_ET_CAPACITY)
        json_object_set_new(row, "passing", json_integer((json_int_t)c->passing));
    json_object_set_new(row, "labels", json_integer((json_int_t)a->labels));
    json_object_set_new(row, "bits", et_json_number(et_leakage_bits(a->labels)));
    json_object_set_new(row, "bound_labels", json_integer((json_int_t)a->suffice));
    json_object_set_new(row, "bound_bits", et_json_number(et_leakage_bits(a->suffice)));
    json_object_set_new(row, "attained", json_boolean(a->labels == a->suffice));
    json_object_set_new(row, "set_bits", et_json_number(a->set));
    return row;
}

static void print_head_csv(void)
{
    puts("rule,tokens,select,levels,capacity,passing,labels,bits,bound_labels,bound_bits,attained,"
         "set_bits");
}

static void print_answer_csv(const et_leakage_case *c, const exact_answer *a)
{
    printf("%s,%zu,%zu,%llu,", rule_names[c->rule], c->tokens, c->select,
           (unsigned long long)c->levels);
    if (c->rule == ET_LEAKAGE_ET_CAPACITY)
        printf("%.17g,%llu,", c->capacity, (unsigned long long)c->passing);
    else
        printf(",,");
    printf("%llu,%.17g,%llu,%.17g,%s,%.17g\n", (unsigned long long)a->labels,
           et_leakage_bits(a->labels), (unsigned long long)a->suffice, et_leakage_bits(a->suffice),
           a->labels == a->suffice ? "true" : "false", a->set);
}

static const char *bound_formula(const et_leakage_case *c)
{
    switch (c->rule) {
    case ET_LEAKAGE_TOPK: return "(M-1) k + 1";
    case ET_LEAKAGE_THRESHOLD: return "M, the cutoff itself (Theorem A.2)";
    case ET_LEAKAGE_ET_CAPACITY:
        return c->passing ? "(a-1) floor(k(1+C)) + (M-a) floor(k(1-C)) + 1, a levels pass"
                          : "(M-1) floor(k(1-C)) + 1";
    default: return "causal: nothing to tell";
    }
}

static void print_answer(const et_leakage_case *c, const exact_answer *a)
{
    static const char *const words[] = {"exact top-k, ties to the lower index",
                                        "all scores from the k-th largest up", "token choice",
                                        "expert threshold, fixed before the batch",
                                        "expert threshold with capacity"};
    et_table table;
    printf("%s: N = %zu tokens, k = %zu, M = %llu levels", words[c->rule], c->tokens, c->select,
           (unsigned long long)c->levels);
    if (c->rule == ET_LEAKAGE_ET_CAPACITY)
        printf(",\nC = %.6g, %llu levels pass", c->capacity, (unsigned long long)c->passing);
    puts("\n");
    et_table_begin(&table, "lrrl");
    const struct {
        const char *name;
        uint64_t labels;
        const char *what;
    } rows[] = {{"leaks", a->labels, "exactly"}, {"bound", a->suffice, bound_formula(c)}};
    for (size_t i = 0; i < 2; i++) {
        et_table_cell(&table, "%s", rows[i].name);
        et_table_cell(&table, "%llu labels", (unsigned long long)rows[i].labels);
        et_table_cell(&table, "%.10g bits", et_leakage_bits(rows[i].labels));
        et_table_cell(&table, "%s", rows[i].what);
    }
    et_table_cell(&table, "%s", "set");
    et_table_cell(&table, "%s", "C(N,k) labels");
    et_table_cell(&table, "%.10g bits", a->set);
    et_table_cell(&table, "%s", "the selection itself; with unlimited levels top-k leaks this");
    table_print(&table);
    printf("\nthe bound is %sattained\n", a->labels == a->suffice ? "" : "not ");
}

static et_status show_one(const exact_options *o, et_error *error)
{
    exact_answer a;
    et_status status = answer(&o->c, &a, error);
    if (status != ET_OK) return status;
    if (o->format == FORM_JSON) json_print(answer_json(&o->c, &a));
    if (o->format == FORM_TEXT) print_answer(&o->c, &a);
    if (o->format == FORM_CSV) {
        print_head_csv();
        print_answer_csv(&o->c, &a);
    }
    return ET_OK;
}

/* ---- a table over the number of levels ---- */

typedef struct labels_table {
    et_table text;
    json_t *rows;
    int format;
} labels_table;

/* Half the levels pass where nobody says how many: 2 of 3. */
static uint64_t passing_of(const exact_options *o, uint64_t levels)
{
    if (o->has_passing) return o->c.passing < levels ? o->c.passing : levels;
    return (levels + 1) / 2;
}

/* C(N,k), exact where it is below 1e15; else some number beyond. */
static double choose(size_t N, size_t k)
{
    double sets = 1;
    if (k > N - k) k = N - k;
    for (size_t i = 1; i <= k && sets < 1e15; i++) sets = sets * (double)(N - i + 1) / (double)i;
    return sets;
}

static void table_row(labels_table *t, const et_leakage_case *c, const exact_answer *answers)
{
    double sets = choose(c->tokens, c->select);
    if (t->format == FORM_JSON) {
        json_t *row = case_json(c), *labels = json_object();
        for (uint64_t i = 0; i < COLUMNS; i++) {
            char levels[8];
            snprintf(levels, sizeof levels, "%d", (int)(FIRST_LEVELS + i));
            json_object_set_new(labels, levels, json_integer((json_int_t)answers[i].labels));
        }
        json_object_set_new(row, "labels", labels);
        json_object_set_new(row, "set_bits", et_json_number(answers[0].set));
        json_array_append_new(t->rows, row);
        return;
    }
    et_table_cell(&t->text, "%zu, %zu", c->tokens, c->select);
    et_table_cell(&t->text, "%s", rule_names[c->rule]);
    for (size_t i = 0; i < COLUMNS; i++)
        et_table_cell(&t->text, "%llu", (unsigned long long)answers[i].labels);
    sets < 1e15 ? et_table_cell(&t->text, "%.0f", sets)
                : et_table_cell(&t->text, "2^%.1f", answers[0].set);
}

static et_status add_row(labels_table *t, const exact_options *o, size_t N, size_t k,
                         et_leakage_rule rule, et_error *error)
{
    exact_answer answers[COLUMNS];
    et_leakage_case c = o->c;
    c.rule = rule;
    c.tokens = N;
    c.select = k;
    for (size_t i = 0; i < COLUMNS; i++) {
        c.levels = FIRST_LEVELS + i;
        c.passing = passing_of(o, c.levels);
        et_status status = answer(&c, &answers[i], error);
        if (status != ET_OK) return status;
        if (t->format == FORM_CSV) print_answer_csv(&c, &answers[i]);
    }
    if (t->format != FORM_CSV) table_row(t, &c, answers);
    return ET_OK;
}

static et_status show_table(const exact_options *o, et_error *error)
{
    static const size_t sizes[][2] = {{4, 2}, {5, 2}, {6, 3}}; /* the specification's */
    size_t count = o->has_size ? 1 : sizeof sizes / sizeof *sizes;
    et_leakage_rule first = o->rule < 0 ? ET_LEAKAGE_TOPK : (et_leakage_rule)o->rule;
    et_leakage_rule last = o->rule < 0 ? ET_LEAKAGE_THRESHOLD : (et_leakage_rule)o->rule;
    labels_table t = {.rows = json_array(), .format = o->format};
    et_status status = ET_OK;
    et_table_begin(&t.text, "llrrrrrrrr");
    et_table_cell(&t.text, "N, k");
    et_table_cell(&t.text, "rule");
    for (int levels = FIRST_LEVELS; levels <= LAST_LEVELS; levels++)
        et_table_cell(&t.text, "M=%d", levels);
    et_table_cell(&t.text, "C(N,k)");
    if (o->format == FORM_CSV) print_head_csv();
    for (size_t i = 0; i < count; i++)
        for (et_leakage_rule rule = first; rule <= last && status == ET_OK; rule++)
            status = add_row(&t, o, o->has_size ? o->c.tokens : sizes[i][0],
                             o->has_size ? o->c.select : sizes[i][1], rule, error);
    if (status == ET_OK && o->format == FORM_JSON) json_print(json_incref(t.rows));
    if (status == ET_OK && o->format == FORM_TEXT) {
        puts("the least number of labels that causalises a rule, scores of M levels:\n");
        table_print(&t.text);
    }
    et_table_free(&t.text);
    json_decref(t.rows);
    return status;
}

/* ---- the smallest counterexample ---- */

/* Score sequences of a small case and what expert choice takes; each a row of N. */
typedef struct sequences {
    size_t N, M, count;
    uint8_t *level, *mask;
} sequences;

/* All M^N sequences, in lexicographic order, routed by the library's own expert choice. */
static et_status enumerate(sequences *all, size_t N, size_t k, size_t M, et_error *error)
{
    size_t count = 1;
    for (size_t t = 0; t < N; t++) count *= M;
    *all = (sequences){N, M, count, allocate(count, N), allocate(count, N)};
    et_real *r = allocate(N, sizeof *r), *margin = allocate(N, sizeof *margin), cutoff;
    et_status status = ET_OK;
    for (size_t i = 0; i < count && status == ET_OK; i++) {
        for (size_t t = N, rest = i; t-- > 0; rest /= M) {
            all->level[i * N + t] = (uint8_t)(rest % M + 1);
            r[t] = all->level[i * N + t];
        }
        status =
            et_expert_choice(N, 1, N, k, r, all->mask + i * N, margin, &cutoff, NULL, 0, error);
    }
    free(r);
    free(margin);
    return status;
}

/* The recursion of the labels, with the sequences that make it up: of `list`, whose scores and
 * decisions agree before token t, the most that must have different labels. `out` gets them. */
static size_t conflicting(const sequences *all, const size_t *list, size_t count, size_t t,
                          size_t *out)
{
    if (count == 0 || t == all->N) {
        if (count > 0) *out = list[0];
        return count > 0;
    }
    size_t *part = allocate(count, sizeof *part), *found = allocate(count, sizeof *found), best = 0;
    for (size_t level = 1; level <= all->M; level++) {
        size_t sum = 0;
        for (uint8_t z = 0; z <= 1; z++) {
            size_t size = 0;
            for (size_t i = 0; i < count; i++)
                if (all->level[list[i] * all->N + t] == level &&
                    all->mask[list[i] * all->N + t] == z)
                    part[size++] = list[i];
            sum += conflicting(all, part, size, t + 1, found + sum);
        }
        if (sum > best) memcpy(out, found, sum * sizeof *out);
        if (sum > best) best = sum;
    }
    free(part);
    free(found);
    return best;
}

static json_t *row_of(const uint8_t *values, size_t N)
{
    json_t *row = json_array();
    for (size_t t = 0; t < N; t++) json_array_append_new(row, json_integer(values[t]));
    return row;
}

static void print_row_of(const uint8_t *values, size_t N)
{
    for (size_t t = 0; t < N; t++) printf(" %d", values[t]);
}

static void print_counterexample(const sequences *all, const size_t *found, size_t count,
                                 const et_leakage_case *c, size_t b)
{
    size_t N = all->N;
    printf("exact top-k, ties to the lower index, can leak more than the b bits of its\n"
           "cutoff: N = %zu tokens, k = %zu, scores of b = %zu bit%s: %zu labels, %.10g bits\n\n",
           c->tokens, c->select, b, b == 1 ? "" : "s", count, et_leakage_bits(count));
    puts("  scores -> taken");
    for (size_t i = 0; i < count; i++) {
        putchar(' ');
        print_row_of(all->level + found[i] * N, N);
        fputs("  ->", stdout);
        print_row_of(all->mask + found[i] * N, N);
        putchar('\n');
    }
    puts(
        "\nAny two of these agree in all scores up to a decision in which they differ, so\n"
        "that no two can share a label. No case with fewer tokens, or with as many and a\n"
        "smaller k or b, needs more than 2^b labels.");
}

static et_status show_counterexample(const et_leakage_case *c, size_t b, int format,
                                     et_error *error)
{
    sequences all;
    et_status status = enumerate(&all, c->tokens, c->select, (size_t)c->levels, error);
    size_t *list = allocate(all.count, sizeof *list), *found = allocate(all.count, sizeof *found);
    for (size_t i = 0; i < all.count; i++) list[i] = i;
    size_t count = status == ET_OK ? conflicting(&all, list, all.count, 0, found) : 0;
    if (status == ET_OK && format == FORM_TEXT) print_counterexample(&all, found, count, c, b);
    if (status == ET_OK && format == FORM_JSON) {
        json_t *report = case_json(c), *rows = json_array();
        json_object_set_new(report, "score_bits", json_integer((json_int_t)b));
        json_object_set_new(report, "labels", json_integer((json_int_t)count));
        json_object_set_new(report, "bits", et_json_number(et_leakage_bits(count)));
        for (size_t i = 0; i < count; i++) {
            json_t *row = json_object();
            json_object_set_new(row, "scores", row_of(all.level + found[i] * all.N, all.N));
            json_object_set_new(row, "taken", row_of(all.mask + found[i] * all.N, all.N));
            json_array_append_new(rows, row);
        }
        json_object_set_new(report, "sequences", rows);
        json_print(report);
    }
    free(list);
    free(found);
    free(all.level);
    free(all.mask);
    return status;
}

/* By tokens, then k, then bits. 2^b levels beyond C(N,k) add nothing. */
static et_status search(int format, et_error *error)
{
    et_leakage_case c = {.rule = ET_LEAKAGE_TOPK};
    for (c.tokens = 1; c.tokens <= 16; c.tokens++)
        for (c.select = 1; c.select <= c.tokens; c.select++)
            for (size_t b = 1; b <= 16; b++) {
                uint64_t labels;
                c.levels = UINT64_C(1) << b;
                et_status status = et_leakage_labels(&c, &labels, error);
                if (status != ET_OK) return status;
                if (labels > c.levels) return show_counterexample(&c, b, format, error);
            }
    return et_fail(error, ET_EINVAL, "leakage exact: no counterexample up to 16 tokens");
}

/* ---- the command ---- */

static bool bad(const char *message)
{
    return refuse("exact", message);
}

/* Which options go together. */
static bool check_options(const exact_options *o, bool has_levels, bool has_capacity)
{
    bool clamped = o->rule == ET_LEAKAGE_ET_CAPACITY;
    if (o->search && (o->table || o->has_size || has_levels || o->rule > 0))
        return bad("--search looks through the sizes of exact top-k itself; give it alone");
    if (o->search && o->format == FORM_CSV)
        return bad("--search prints text or json; a counterexample is no row of numbers");
    if (o->table && has_levels)
        return bad("--table goes through 2 to 8 levels; leave out --levels");
    if (!clamped && (has_capacity || o->has_passing))
        return bad("--capacity and --passing are about the rule et-capacity: add --rule "
                   "et-capacity");
    if (!o->search && !o->table && !(o->has_size && has_levels))
        return bad("--tokens, --select and --levels (or --bits) belong here, or --table, or "
                   "--search");
    return true;
}

static bool parse_capacity(const char *text, double *C)
{
    char *end;
    if (text == NULL) return true;
    *C = strtod(text, &end);
    if (end != text && *end == '\0' && *C >= 0 && *C <= 1e9) return true;
    fail("--capacity %s: a number from 0 to 1e9 belongs here, 0.5 for instance", text);
    return false;
}

static bool read_options(exact_options *o, int argc, char **argv)
{
    const char *tokens = NULL, *select = NULL, *levels = NULL, *bits = NULL, *capacity = NULL,
               *passing = NULL;
    word_list words = {0};
    const option table[] = {{"--tokens", OPTION_WORD, &tokens, NULL},
                            {"--select", OPTION_WORD, &select, NULL},
                            {"--levels", OPTION_WORD, &levels, NULL},
                            {"--bits", OPTION_WORD, &bits, NULL},
                            {"--rule", OPTION_CHOICE, &o->rule, RULES},
                            {"--capacity", OPTION_WORD, &capacity, NULL},
                            {"--passing", OPTION_WORD, &passing, NULL},
                            {"--table", OPTION_FLAG, &o->table, NULL},
                            {"--search", OPTION_FLAG, &o->search, NULL},
                            {"--format", OPTION_CHOICE, &o->format, "text|json|csv"},
                            {NULL, OPTION_FLAG, NULL, NULL}};
    const uint64_t most = UINT64_C(1) << 31; /* labels then fit the integers of JSON */
    uint64_t N = 0, k = 0, M = 2, b = 0, a = 0;
    bool fine = options_parse(table, argc, argv, &words) && no_words("exact", &words) &&
                whole_number("--tokens", tokens, 1, most, &N) &&
                whole_number("--select", select, 1, N ? N : most, &k) &&
                whole_number("--levels", levels, 1, most, &M) &&
                whole_number("--bits", bits, 0, 31, &b) && parse_capacity(capacity, &o->c.capacity);
    word_list_free(&words);
    if (fine && !tokens != !select) fine = bad("--tokens and --select belong together");
    if (fine && levels && bits) fine = bad("--levels and --bits say the same: M = 2^b; give one");
    if (bits) M = UINT64_C(1) << b;
    fine = fine && whole_number("--passing", passing, 0, o->table ? LAST_LEVELS : M, &a);
    o->has_size = tokens && select;
    o->has_passing = passing != NULL;
    o->c = (et_leakage_case){o->rule < 0 ? ET_LEAKAGE_TOPK : (et_leakage_rule)o->rule,
                             (size_t)N,
                             (size_t)k,
                             M,
                             a,
                             o->c.capacity};
    if (!o->table) o->c.passing = passing_of(o, M);
    return fine && check_options(o, levels || bits, capacity != NULL);
}

int leakage_exact(int argc, char **argv)
{
    exact_options o = {.rule = -1, .c = {.capacity = 0.5}};
    et_error error = {0};
    if (!read_options(&o, argc, argv)) return STATUS_BAD;
    et_status status = o.search  ? search(o.format, &error)
                       : o.table ? show_table(&o, &error)
                                 : show_one(&o, &error);
    return status == ET_OK ? STATUS_PASS : fail_status(status, &error);
}
