/* cmd_list.c: `etref list`: what there is to ask for.
 *
 * Every list comes from the table that the program itself works by, so none can go stale.
 */
#include "etref/etref.h"
#include "tools/etref/commands.h"
#include "ref/report/describe_case.h"
#include "tools/etref/options.h"
#include "tools/etref/profiles.h"
#include "tools/etref/named_cases.h"
#include "tools/etref/terminal.h"

#include <stdio.h>
#include <string.h>

/* A list in both its forms: rows of words under column names. */
typedef struct listing {
    et_table text;
    json_t *rows; /* NULL: text */
    const char *const *columns;
    size_t width;
} listing;

static void listing_begin(listing *l, bool json, const char *align, const char *const *columns)
{
    *l = (listing){.rows = json ? json_array() : NULL, .columns = columns, .width = strlen(align)};
    et_table_begin(&l->text, align);
    for (size_t i = 0; i < l->width && !json; i++) et_table_cell(&l->text, "%s", columns[i]);
}

static void listing_row(listing *l, const char *const *words)
{
    json_t *row = l->rows ? json_object() : NULL;
    for (size_t i = 0; i < l->width; i++)
        if (row)
            json_object_set_new(row, l->columns[i], et_json_clean(words[i]));
        else
            et_table_cell(&l->text, "%s", words[i]);
    if (row) json_array_append_new(l->rows, row);
}

static void listing_end(listing *l)
{
    if (l->rows)
        json_print(l->rows);
    else
        table_print(&l->text);
}

/* ---- suites and cases ---- */

/* "sigmoid; thresholds from a moving average, ...; bwd.logits is below its noise: ..." */
static void describe_hunt(char *out, size_t room, const et_case *c)
{
    const char *const parts[] = {c->layer == ET_MOE ? et_gate_name(c->gate) : "", c->hunts, suite_remark(c->name)};
    out[0] = '\0';
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        if (parts[i][0]) et_append(out, room, "%s%s", out[0] ? "; " : "", parts[i]);
}

static void add_case(listing *l, const char *suite, const et_case *c)
{
    bool moe = c->layer == ET_MOE;
    char sizes[4][24] = {"", "", "", ""}, hunt[400];
    const size_t values[] = {c->tokens, c->d_model, c->d_expert, c->experts};
    for (size_t i = 0; i < 4; i++)
        if (values[i] > 0) snprintf(sizes[i], sizeof sizes[i], "%zu", values[i]);
    describe_hunt(hunt, sizeof hunt, c);
    const char *const all[] = {suite,    c->name,  moe ? "moe" : et_rule_name(c),        moe ? et_rule_name(c) : "",
                               sizes[0], sizes[1], sizes[2],
                               sizes[3], moe ? et_gate_name(c->gate) : "", c->hunts,
                               suite_remark(c->name)};
    const char *const told[] = {suite, c->name, et_rule_name(c), sizes[0], sizes[1], sizes[2], sizes[3], hunt};
    listing_row(l, l->rows ? all : told);
}

static int list_cases(bool json)
{
    static const char *const columns[] = {"suite", "case", "layer", "rule",  "N",     "d",
                                          "h",     "n",    "gate",  "hunts", "remark"};
    static const char *const told[] = {"suite", "case", "rule", "N", "d", "h", "n", "gate; what it hunts"};
    listing l;
    listing_begin(&l, json, json ? "llllrrrrlll" : "lllrrrrl", json ? columns : told);
    et_error error = {0};
    et_status status = ET_OK;
    for (size_t n = 0; et_suite_at(n) && status == ET_OK; n++) {
        const et_suite *s = et_suite_at(n);
        case_list cases = {0};
        status = case_list_add_suite(&cases, s->name, NULL, &error);
        for (size_t i = 0; i < cases.count && status == ET_OK; i++)
            add_case(&l, s->name, &cases.at[i]);
        case_list_free(&cases);
    }
    listing_end(&l);
    return status == ET_OK ? STATUS_PASS : fail_status(status, &error);
}

static int list_suites(bool json)
{
    static const char *const columns[] = {"suite", "cases", "what"};
    listing l;
    listing_begin(&l, json, "lrl", columns);
    et_error error = {0};
    et_status status = ET_OK;
    for (size_t n = 0; et_suite_at(n) && status == ET_OK; n++) {
        const et_suite *s = et_suite_at(n);
        char count[24];
        case_list cases = {0};
        status = case_list_add_suite(&cases, s->name, NULL, &error);
        snprintf(count, sizeof count, "%zu", cases.count);
        case_list_free(&cases);
        const char *const words[] = {s->name, count, s->what};
        listing_row(&l, words);
    }
    listing_end(&l);
    return status == ET_OK ? STATUS_PASS : fail_status(status, &error);
}

/* ---- fields, tensors, layers ---- */

static int list_fields(bool json)
{
    static const char *const columns[] = {"field", "applies_to", "default", "type", "meaning"};
    static const char *const told[] = {"field", "default", "meaning (type); where it applies"};
    const et_field_doc *doc;
    listing l;
    listing_begin(&l, json, json ? "lllll" : "lll", json ? columns : told);
    for (size_t i = 0; (doc = et_case_field(i)) != NULL; i++) {
        char meaning[400];
        snprintf(meaning, sizeof meaning, "%s (%s); %s", doc->meaning, doc->type, doc->scope);
        const char *const all[] = {doc->name, doc->scope, doc->initial, doc->type, doc->meaning};
        const char *const words[] = {doc->name, doc->initial, meaning};
        listing_row(&l, json ? all : words);
    }
    listing_end(&l);
    return STATUS_PASS;
}

static int list_tensors(bool json)
{
    static const char *const columns[] = {"tensor", "type", "shape", "lean", "meaning"};
    const et_tensor_doc *doc;
    listing l;
    listing_begin(&l, json, "lllll", columns);
    for (size_t i = 0; (doc = et_tensor_doc_at(i)) != NULL; i++) {
        const char *const words[] = {doc->name, doc->type, doc->shape, doc->lean ? "yes" : "no",
                                     doc->meaning};
        listing_row(&l, words);
    }
    static const char what[] = "of a real NAME that was computed: the standard deviation to expect "
                               "of its rounding error (generate --profile)";
    static const char *const noise[] = {"noise.NAME", "F32", "as NAME", "as NAME", what};
    listing_row(&l, noise);
    static const char *const alone[] = {"noise.alone.NAME", "F32", "as NAME", "no",
                                        "the same of its stage alone, from a kernel's own numbers"};
    listing_row(&l, alone);
    static const char *const bars[] = {ET_NOISE_BARS, "F64", "[groups,9]", "no",
                                       "what replicas showed of groups of elements"};
    listing_row(&l, bars);
    listing_end(&l);
    if (json) return STATUS_PASS;
    putchar('\n');
    print_wrapped(0, "N tokens, d width, h and hs hidden widths of a routed and the shared expert, n routed experts, S "
                     "slots (token-expert pairs), K choices of a token (tc), k of an expert in a pool (ec), pools, B "
                     "blocks and R padded rows of a layout. A dense layer has no n, and S = N.");
    return STATUS_PASS;
}

static int list_layers(bool json)
{
    static const char *const columns[] = {"layer", "rule", "name", "what"};
    static const char *const rows[][4] = {
        {"dense", "", "dense", "one feed-forward layer, relu(x W_up')^2 W_down'"},
        {"moe", "tc", "token choice", "each token takes its top K experts; loads are uneven"},
        {"moe", "ec", "expert choice",
         "each expert takes the top k tokens of a pool; even loads, not causal"},
        {"moe", "et", "expert threshold",
         "each expert takes the tokens above its threshold, a moving average of past cutoffs; "
         "causal"},
        {"rmsnorm", "", "RMSNorm", "y = x / sqrt(mean(x^2) + eps), head by head"},
        {"rope", "", "rotary embedding", "pairs of columns turned by angles of their position"},
        {"attention", "", "causal attention",
         "o = softmax(q k' / sqrt(e)) v; query heads may share a key head"},
        {"cross_entropy", "", "cross-entropy", "output head, softcap, mean loss over tokens"},
        {"adamw", "", "AdamW", "one update of a matrix"},
        {"muon", "", "Muon", "one update of a matrix, orthogonalised in five steps"}};
    listing l;
    listing_begin(&l, json, "llll", columns);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) listing_row(&l, rows[i]);
    listing_end(&l);
    return STATUS_PASS;
}

/* ---- formulas ---- */

/* The fields of a case whose values are formulas: include/etref/gate.h, moe.h; ref/step/inputs.c. */
typedef struct formula {
    const char *name, *what;
} formula;

static int list_formulas(bool json, const char *const columns[2], const formula *rows, size_t count)
{
    listing l;
    listing_begin(&l, json, "ll", columns);
    for (size_t i = 0; i < count; i++) {
        const char *const words[] = {rows[i].name, rows[i].what};
        listing_row(&l, words);
    }
    listing_end(&l);
    return STATUS_PASS;
}

static int list_gates(bool json)
{
    static const char *const columns[] = {"gate", "formula"};
    static const formula rows[] = {
        {"sigmoid", "p_ti = 1 / (1 + exp(-r_ti)); the shared expert weighs 1"},
        {"relu", "p_ti = max(r_ti, 0); slope 0 at 0; the shared expert weighs 1"},
        {"softmax", "p_ti = exp(r_ti) / sum_j exp(r_tj), over the n experts of token t"},
        {"softmax_anchor", "p_ti = exp(r_ti) / (1 + sum_j exp(r_tj)); under ec and et the shared expert weighs the "
                           "anchor's share 1 / (1 + sum_j exp(r_tj))"},
        {"softmax_anchor_out", "p as softmax_anchor; under ec and et the shared expert weighs 1 / (G + 1), "
                               "G the granularity"},
        {"softmax_tokens", "p_ti = exp(r_ti) / sum_s exp(r_si), over the tokens s of a micro-batch: not causal"}};
    return list_formulas(json, columns, rows, sizeof rows / sizeof *rows);
}

static int list_norms(bool json)
{
    static const char *const columns[] = {"norm", "formula"};
    static const formula rows[] = {
        {"none", "w_ti = p_ti"},
        {"fanout", "w_ti = p_ti / F_t, F_t the experts that token t goes to, the shared one too, whose weight is "
                   "divided as well"},
        {"sum", "w_ti = p_ti / sum of p_tj over the experts j that take token t; 0 where that sum is 0"}};
    return list_formulas(json, columns, rows, sizeof rows / sizeof *rows);
}

static int list_sources(bool json)
{
    static const char *const columns[] = {"source", "formula"};
    static const formula rows[] = {
        {"normal", "x ~ N(0,1) + mean, dy ~ N(0,1), W_r ~ N(0,1/d) + router_mean/d, W_up ~ N(0,1/d), W_down ~ N(0,1/h)"},
        {"text", "x from the bytes of a file: repeated words, equal tokens; the rest as normal"},
        {"integer", "-1, 0 and 1, sparse, everywhere: every sum is a small integer, and exact in any format"},
        {"ties", "x_(c t + j) = z_t (1 + j jitter), j < c = copies; each odd expert's row of W_r is the even one's "
                 "before it; the last group of tokens is 0"},
        {"skewed", "x = z + 2 v, v of signs, towards which the row of the expert `hot` points"},
        {"outlier", "x = z 2^e, e = 0 to 8 with probability 2^-(e+1); dy too"},
        {"tiny", "normal, x and dy times 1e-4"},
        {"huge", "normal, x and dy times 1e4"},
        {"checkpoint", "what a layer of a trained model met in a step on a text: x, dy, its weights and its state"}};
    return list_formulas(json, columns, rows, sizeof rows / sizeof *rows);
}

/* ---- profiles, hypotheses ---- */

/* As JSON: objects that can be edited into profiles of one's own. */
static int list_profiles_json(const et_profile *one)
{
    json_t *rows = one ? et_profile_json(one) : json_array();
    for (size_t i = 0; et_profile_at(i) && !one; i++)
        et_json_append(&rows, et_profile_json(et_profile_at(i)));
    json_print(rows);
    return STATUS_PASS;
}

static void add_profile(et_table *table, const et_profile *p)
{
    et_table_cell(table, "%s", p->name);
    for (int i = 0; i < ET_PLACES; i++) et_table_cell(table, "%d", p->bits[i]);
    char besides[256] = "";
    et_describe_rest(besides, sizeof besides, p);
    et_table_cell(table, "%s", besides);
}

/* All of them, or one. */
static int list_some_profiles(bool json, const et_profile *one)
{
    et_table table;
    if (json) return list_profiles_json(one);
    et_table_begin(&table, "lrrrrrrl");
    et_table_cell(&table, "profile");
    for (int i = 0; i < ET_PLACES; i++) { /* "operands", "interm.", "accum." */
        const char *name = et_place_name((et_place)i);
        bool cut = strlen(name) > 8;
        et_table_cell(&table, "%.*s%s", cut ? 6 - (name[0] == 'a') : 8, name, cut ? "." : "");
    }
    et_table_cell(&table, "besides");
    if (one) add_profile(&table, one);
    for (size_t i = 0; et_profile_at(i) && !one; i++) add_profile(&table, et_profile_at(i));
    table_print(&table);
    putchar('\n');
    print_wrapped(0, "The significand bits, the implicit one included, to which a kernel rounds: operands of products; "
                     "intermediates: H, A, f(x), dO, dA, dH; gates and slot weights; router logits; the accumulator, "
                     "partial sums; outputs: y and gradients (but the gradients of logits and slot weights as these). "
                     "Besides: parts of these places that a kernel treats in another way, and switches; 'man etref' "
                     "has them all.");
    print_wrapped(0, "A profile of your own is a JSON file: 'etref list profiles bf16 --format json' prints one to "
                     "begin with.");
    return STATUS_PASS;
}

static int list_profiles(bool json)
{
    return list_some_profiles(json, NULL);
}

static int list_profile(const char *name, bool json)
{
    et_profile p;
    et_error error;
    et_status status = profile_choose(&p, name, &error);
    return status == ET_OK ? list_some_profiles(json, &p) : fail_status(status, &error);
}

static int list_hypotheses(bool json)
{
    static const char *const columns[] = {"hypothesis", "stage", "sentence"};
    const et_hypothesis_doc *doc;
    listing l;
    listing_begin(&l, json, "lll", columns);
    for (size_t i = 0; (doc = et_hypothesis_at(i)) != NULL; i++) {
        const char *const words[] = {doc->name, doc->stage, doc->sentence};
        listing_row(&l, words);
    }
    listing_end(&l);
    return STATUS_PASS;
}

/* `etref list` for a reader: the suites, then their cases. */
static int list_all(bool json)
{
    if (json) return list_cases(json);
    int status = list_suites(json);
    if (status != STATUS_PASS) return status;
    putchar('\n');
    return list_cases(json);
}

/* ---- the command ---- */

static int list_topic(const word_list *words, bool json)
{
    static const char *const topics[] = {"suites", "cases",   "fields",   "tensors",    "layers", "gates",
                                         "norms",  "sources", "profiles", "hypotheses", NULL};
    static int (*const lists[])(bool) = {list_suites, list_cases, list_fields,  list_tensors,  list_layers,
                                         list_gates,  list_norms, list_sources, list_profiles, list_hypotheses};
    if (words->count == 0) return list_all(json);
    if (words->count == 2 && strcmp(words->at[0], "profiles") == 0)
        return list_profile(words->at[1], json);
    if (words->count > 1) return fail("list: one list at a time: see 'etref help list'");
    for (size_t i = 0; topics[i]; i++)
        if (strcmp(words->at[0], topics[i]) == 0) return lists[i](json);
    return fail_unknown("list", words->at[0], topics, "list");
}

int cmd_list(int argc, char **argv)
{
    int format = 0;
    word_list words = {0};
    const option table[] = {{"--format", OPTION_CHOICE, &format, "text|json"},
                            {NULL, OPTION_FLAG, NULL, NULL}};
    int status = STATUS_BAD;
    if (options_parse(table, argc, argv, &words)) status = list_topic(&words, format == 1);
    word_list_free(&words);
    return status;
}
