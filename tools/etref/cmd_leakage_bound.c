/* cmd_leakage_bound.c: `etref leakage bound`: what expert choice may leak, at real sizes.
 *
 * The default is the paper's example: granularity 2, expansion 8, nine MoE layers; and a batch of
 * 512k tokens, and bf16 scores, where the paper names none.
 */
#include "tools/etref/commands.h"
#include "tools/etref/cmd_leakage.h"
#include "tools/etref/terminal.h"

#include <stddef.h>

typedef struct bound_options {
    et_leakage_setup setup;
    int format; /* FORM_... */
    bool sweep;
} bound_options;

/* ---- the values, in one table for all three forms ---- */

static const struct {
    const char *name;
    size_t place; /* in et_leakage_bounds */
    bool whole;
    const char *what;
} values[] = {
    {"select", offsetof(et_leakage_bounds, select), true, "k, an expert's tokens in the batch"},
    {"set", offsetof(et_leakage_bounds, set), false,
     "log2 C(N,k): one expert, one batch, unlimited precision (Theorem A.3)"},
    {"cutoff", offsetof(et_leakage_bounds, cutoff), false,
     "b: the same, scores of b bits, decided by r >= cutoff (Theorem A.2)"},
    {"tied_cutoff", offsetof(et_leakage_bounds, tied_cutoff), false,
     "log2((2^b - 1) k + 1): the same, exactly k, ties to the lower index"},
    {"set_per_token", offsetof(et_leakage_bounds, set_per_token), false,
     "L (n/N) log2 C(N,k): per token, all experts and layers (Eq. 7)"},
    {"entropy", offsetof(et_leakage_bounds, entropy), false, "L n H2(1/E), its limit for large N"},
    {"log_expansion", offsetof(et_leakage_bounds, log_expansion), false,
     "L G log2 E, which the limit exceeds"},
    {"log_refused", offsetof(et_leakage_bounds, log_refused), false,
     "L G log2(E-1), the paper's figure"},
    {"cutoff_per_token", offsetof(et_leakage_bounds, cutoff_per_token), false,
     "L (n/N) b: goes to 0 as N grows"},
    {"tied_cutoff_per_token", offsetof(et_leakage_bounds, tied_cutoff_per_token), false,
     "L (n/N) log2((2^b - 1) k + 1): goes to 0, too"},
};

enum { VALUES = sizeof values / sizeof *values };

static size_t whole_value(const et_leakage_bounds *b, size_t i)
{
    return *(const size_t *)((const char *)b + values[i].place);
}

static double real_value(const et_leakage_bounds *b, size_t i)
{
    /* cppcheck-suppress invalidPointerCast ; the place is that of a double (offsetof) */
    return *(const double *)((const char *)b + values[i].place);
}

/* ---- the forms ---- */

static json_t *row_json(const et_leakage_setup *s, const et_leakage_bounds *b)
{
    json_t *row = json_object();
    json_object_set_new(row, "tokens", json_integer((json_int_t)s->tokens));
    json_object_set_new(row, "experts", json_integer((json_int_t)s->experts));
    json_object_set_new(row, "granularity", json_integer((json_int_t)s->granularity));
    json_object_set_new(row, "layers", json_integer((json_int_t)s->layers));
    json_object_set_new(row, "score_bits", json_integer((json_int_t)s->score_bits));
    for (size_t i = 0; i < VALUES; i++)
        json_object_set_new(row, values[i].name,
                            values[i].whole ? json_integer((json_int_t)whole_value(b, i))
                                            : et_json_number(real_value(b, i)));
    return row;
}

static void print_head_csv(void)
{
    printf("tokens,experts,granularity,layers,score_bits");
    for (size_t i = 0; i < VALUES; i++) printf(",%s", values[i].name);
    putchar('\n');
}

static void print_row_csv(const et_leakage_setup *s, const et_leakage_bounds *b)
{
    printf("%zu,%zu,%zu,%zu,%zu", s->tokens, s->experts, s->granularity, s->layers, s->score_bits);
    for (size_t i = 0; i < VALUES; i++)
        values[i].whole ? printf(",%zu", whole_value(b, i)) : printf(",%.17g", real_value(b, i));
    putchar('\n');
}

static void print_one(const et_leakage_setup *s, const et_leakage_bounds *b)
{
    et_table table;
    printf("what expert choice may tell its decisions about later tokens, in bits:\n"
           "N = %zu tokens, n = %zu experts, G = %zu, E = n/G = %.6g, L = %zu layers,\nscores of "
           "b = %zu bits\n\n",
           s->tokens, s->experts, s->granularity, (double)s->experts / (double)s->granularity,
           s->layers, s->score_bits);
    et_table_begin(&table, "lrl");
    for (size_t i = 0; i < VALUES; i++) {
        et_table_cell(&table, "%s", values[i].name);
        values[i].whole ? et_table_cell(&table, "%zu", whole_value(b, i))
                        : et_table_cell(&table, "%.10g", real_value(b, i));
        et_table_cell(&table, "%s", values[i].what);
    }
    table_print(&table);
    puts("\ntoken choice, and expert threshold without capacity: 0");
}

static void sweep_head(et_table *table)
{
    static const char *const heads[] = {
        "tokens",         "k", "set", "set/token", "entropy", "G log2(E-1)", "b-bit cut/token",
        "with ties/token"};
    et_table_begin(table, "rrrrrrrr");
    for (size_t i = 0; i < sizeof heads / sizeof *heads; i++) et_table_cell(table, "%s", heads[i]);
}

static void sweep_row(et_table *table, const et_leakage_setup *s, const et_leakage_bounds *b)
{
    et_table_cell(table, "%zu", s->tokens);
    et_table_cell(table, "%zu", b->select);
    const double cells[] = {b->set,         b->set_per_token,    b->entropy,
                            b->log_refused, b->cutoff_per_token, b->tied_cutoff_per_token};
    for (size_t i = 0; i < sizeof cells / sizeof *cells; i++)
        et_table_cell(table, "%.6g", cells[i]);
}

/* ---- one configuration, or a sweep over tokens ---- */

static et_status show_one(const bound_options *o, et_error *error)
{
    et_leakage_bounds b;
    et_status status = et_leakage_bound(&o->setup, &b, error);
    if (status != ET_OK) return status;
    if (o->format == FORM_JSON) json_print(row_json(&o->setup, &b));
    if (o->format == FORM_TEXT) print_one(&o->setup, &b);
    if (o->format == FORM_CSV) {
        print_head_csv();
        print_row_csv(&o->setup, &b);
    }
    return ET_OK;
}

/* The first power of two with k = floor(NG/n) >= 1. */
static size_t first_tokens(size_t n, size_t G)
{
    size_t N = 1;
    while (N * G < n) N *= 2;
    return N;
}

/* Tokens double from the first power of two with k >= 1 up to --tokens. */
static et_status show_sweep(const bound_options *o, et_error *error)
{
    et_leakage_setup s = o->setup;
    et_leakage_bounds b;
    et_table table;
    json_t *rows = json_array();
    et_status status = ET_OK;
    sweep_head(&table);
    if (o->format == FORM_CSV) print_head_csv();
    s.tokens = first_tokens(s.experts, s.granularity);
    for (; s.tokens <= o->setup.tokens && status == ET_OK; s.tokens *= 2) {
        status = et_leakage_bound(&s, &b, error);
        if (status != ET_OK) break;
        if (o->format == FORM_JSON) json_array_append_new(rows, row_json(&s, &b));
        if (o->format == FORM_TEXT) sweep_row(&table, &s, &b);
        if (o->format == FORM_CSV) print_row_csv(&s, &b);
    }
    if (status == ET_OK && o->format == FORM_JSON) json_print(json_incref(rows));
    if (status == ET_OK && o->format == FORM_TEXT) table_print(&table);
    et_table_free(&table);
    json_decref(rows);
    return status;
}

/* ---- the command ---- */

static bool read_options(bound_options *o, int argc, char **argv)
{
    const char *tokens = NULL, *experts = NULL, *granularity = NULL, *layers = NULL, *bits = NULL;
    word_list words = {0};
    const option table[] = {{"--tokens", OPTION_WORD, &tokens, NULL},
                            {"--experts", OPTION_WORD, &experts, NULL},
                            {"--granularity", OPTION_WORD, &granularity, NULL},
                            {"--layers", OPTION_WORD, &layers, NULL},
                            {"--bits", OPTION_WORD, &bits, NULL},
                            {"--sweep", OPTION_FLAG, &o->sweep, NULL},
                            {"--format", OPTION_CHOICE, &o->format, "text|json|csv"},
                            {NULL, OPTION_FLAG, NULL, NULL}};
    uint64_t N = 1 << 19, n = 16, G = 2, L = 9, b = 16;
    bool fine = options_parse(table, argc, argv, &words) && no_words("bound", &words) &&
                whole_number("--tokens", tokens, 1, UINT64_C(1) << 40, &N) &&
                whole_number("--experts", experts, 1, 1 << 20, &n) &&
                whole_number("--granularity", granularity, 1, 1 << 20, &G) &&
                whole_number("--layers", layers, 1, 1 << 20, &L) &&
                whole_number("--bits", bits, 0, 64, &b);
    word_list_free(&words);
    if (fine && G > n) {
        fail("--granularity %llu: a token cannot get more than the %llu experts there are; raise "
             "--experts",
             (unsigned long long)G, (unsigned long long)n);
        fine = false;
    }
    if (fine && o->sweep && first_tokens((size_t)n, (size_t)G) > N) {
        fail("--tokens %llu: the sweep begins at %zu, the first power of two with k >= 1",
             (unsigned long long)N, first_tokens((size_t)n, (size_t)G));
        fine = false;
    }
    if (o->format < 0) o->format = o->sweep ? FORM_CSV : FORM_TEXT;
    o->setup = (et_leakage_setup){(size_t)N, (size_t)n, (size_t)G, (size_t)L, (size_t)b};
    return fine;
}

int leakage_bound(int argc, char **argv)
{
    bound_options o = {.format = -1};
    et_error error = {0};
    if (!read_options(&o, argc, argv)) return STATUS_BAD;
    et_status status = o.sweep ? show_sweep(&o, &error) : show_one(&o, &error);
    return status == ET_OK ? STATUS_PASS : fail_status(status, &error);
}
