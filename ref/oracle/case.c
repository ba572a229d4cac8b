/* case.c: reading, checking and printing cases. See etref/case.h.
 *
 * One table drives everything. A row of it is a field: its name, where in et_case it lives, what
 * values it takes, its default, the cases to which it applies, and what it means. Parsing,
 * printing, defaults, error messages and documentation all walk that table, so they cannot drift
 * apart. A second table lists the contradictions: pairs of fields, each legal alone, that exclude
 * each other.
 *
 *     JSON -> values (each within its range) -> fields that do not apply are refused or neutral
 *          -> derived defaults -> contradictions -> et_case
 *
 * The defaults are the setup of the paper (arXiv:2603.11535): expert threshold with one routed
 * expert a token on average, sigmoid gates, no normalisation, a shared expert, the strict test r >
 * c, an EMA of decay 0.999 without bias correction, and no capacity.
 *
 * Left out: reading the file (the caller has the text), and whether the case fits in memory
 * (et_step_create knows what a step takes; here only sizes that cannot be addressed are refused).
 */
#include "etref/case.h"
#include "ref/base/memory.h"

#include <float.h>
#include <jansson.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_TEXT = 1 << 20, MAX_CASES = 10000, MAX_LINE = 8192 };

/* ---- the cases to which a field applies ---- */

static bool always(const et_case *c)
{
    (void)c;
    return true;
}

static bool is_moe(const et_case *c)
{
    return c->layer == ET_MOE;
}

static bool is_tc(const et_case *c)
{
    return is_moe(c) && c->rule == ET_TC;
}

static bool is_et(const et_case *c)
{
    return is_moe(c) && c->rule == ET_ET;
}

/* The rules by which experts choose tokens: both keep an EMA of the k-th largest score. */
static bool is_ec_or_et(const et_case *c)
{
    return is_moe(c) && c->rule != ET_TC;
}

static bool has_shared(const et_case *c)
{
    return is_moe(c) && c->shared;
}

static bool has_aux_loss(const et_case *c)
{
    return is_tc(c) && (c->balance == ET_BALANCE_AUX || c->balance == ET_BALANCE_AUX_ERROR);
}

static bool has_bias(const et_case *c)
{
    return is_tc(c) && (c->balance == ET_BALANCE_LOSSFREE || c->balance == ET_BALANCE_PROPORTIONAL);
}

static bool has_input(const et_case *c)
{
    return c->input.source != ET_INPUT_NONE;
}

static bool from_text(const et_case *c)
{
    return c->input.source == ET_INPUT_TEXT;
}

static bool from_ties(const et_case *c)
{
    return c->input.source == ET_INPUT_TIES;
}

static bool from_skewed(const et_case *c)
{
    return c->input.source == ET_INPUT_SKEWED;
}

/* The sources that begin with normal deviates, to which a mean can be added. */
static bool from_deviates(const et_case *c)
{
    return has_input(c) && !from_text(c) && c->input.source != ET_INPUT_INTEGER;
}

/* Ties, repeated text and integers cannot be redrawn until nothing is close: they are the point. */
static bool can_be_decisive(const et_case *c)
{
    return is_moe(c) && from_deviates(c) && !from_ties(c);
}

/* ---- the table of fields ---- */

typedef enum kind {
    NAME,          /* char[]: what may name a file */
    TEXT,          /* char[], not empty */
    COUNT,         /* size_t */
    LONG,          /* uint64_t */
    SWITCH,        /* bool */
    WORD,          /* an enum, or a bool with two words */
    NUMBER,        /* double */
    NUMBER_OR_NULL /* capacity_factor and has_capacity */
} kind;

struct field {
    et_field_doc doc;
    kind kind;
    size_t offset, size; /* of the member of et_case */
    double low, high;    /* numbers: the closed range */
    const int *values;   /* words: their values, where these are not 0, 1, 2, ... */
    bool (*applies)(const et_case *c);
    bool exclusive;      /* refused where it does not apply, whatever its value */
    const char *neutral; /* JSON of a value, beside the default, that says nothing there */
};

static const int precisions[] = {ET_F64, ET_F32, ET_BF16, ET_F16};
static const int sources[] = {ET_INPUT_NORMAL, ET_INPUT_TEXT,    ET_INPUT_INTEGER, ET_INPUT_TIES,
                              ET_INPUT_SKEWED, ET_INPUT_OUTLIER, ET_INPUT_TINY,    ET_INPUT_HUGE};

#define DOC(name, type, initial, scope, meaning) .doc = {name, type, initial, scope, meaning}
#define AT(member)                                                                                 \
    .offset = offsetof(et_case, member), .size = sizeof(((const et_case *)NULL)->member)
#define COUNT_FROM(lo)      .kind = COUNT, .low = lo, .high = INT32_MAX
#define COUNT_TEXT(lo)      "integer from " #lo " to 2147483647"
#define LONG_ANY            .kind = LONG, .low = 0, .high = 9007199254740992.0
#define LONG_TEXT           "integer from 0 to 9007199254740992"
#define NUMBER_IN(lo, hi)   .kind = NUMBER, .low = lo, .high = hi
#define NUMBER_TEXT(lo, hi) "number from " #lo " to " #hi

/* In the order in which they are printed. */
static const struct field fields[] = {
    {DOC("name", "1 to 63 letters, digits, '-', '_', '.', the first a letter or digit", "required",
         "every case", "names the case and its bundle's file"),
     AT(name), .kind = NAME, .applies = always},
    {DOC("hunts", "text of 1 to 159 bytes", "none", "every case", "which bug this case catches"),
     AT(hunts), .kind = TEXT, .applies = always},
    {DOC("layer", "dense|moe", "\"moe\"", "every case", "one feed-forward network, or experts"),
     AT(layer), .kind = WORD, .applies = always},
    {DOC("rule", "tc|ec|et", "\"et\"", "layer moe",
         "token choice, expert choice or expert threshold"),
     AT(rule), .kind = WORD, .applies = is_moe},
    {DOC("mode", "train|eval", "\"train\"", "every case",
         "eval: ec and et route by threshold; no capacity, no losses, no change of state"),
     AT(eval), .kind = WORD, .applies = always},
    {DOC("tokens", COUNT_TEXT(1), "required", "every case", "N: tokens of the step"), AT(tokens),
     COUNT_FROM(1), .applies = always},
    {DOC("d_model", COUNT_TEXT(1), "required", "every case", "d: width of a token"), AT(d_model),
     COUNT_FROM(1), .applies = always},
    {DOC("d_expert", COUNT_TEXT(1), "required", "every case",
         "h: hidden width of an expert, or of the dense layer"),
     AT(d_expert), COUNT_FROM(1), .applies = always},
    {DOC("experts", COUNT_TEXT(1), "required", "layer moe", "n: routed experts"), AT(experts),
     COUNT_FROM(1), .applies = is_moe, .exclusive = true},
    {DOC("top_k", COUNT_TEXT(1), "1", "rule tc", "K: experts that a token takes"), AT(top_k),
     COUNT_FROM(1), .applies = is_tc, .exclusive = true},
    {DOC("granularity", COUNT_TEXT(1), "= 1, tc: top_k", "layer moe",
         "G: routed experts that a token gets on average"),
     AT(granularity), COUNT_FROM(1), .applies = is_moe, .exclusive = true},
    {DOC("target_load", COUNT_TEXT(1), "= floor(pool_tokens * granularity / experts)",
         "rules ec and et", "k: tokens of a pool that an expert is meant to take"),
     AT(target_load), COUNT_FROM(1), .applies = is_ec_or_et, .exclusive = true},
    {DOC("pool_tokens", COUNT_TEXT(1), "= tokens / micro_batches", "rules ec and et",
         "P: tokens among which expert choice chooses; divides tokens / micro_batches"),
     AT(pool_tokens), COUNT_FROM(1), .applies = is_ec_or_et, .exclusive = true},
    {DOC("gate", "sigmoid|relu|softmax|softmax_anchor|softmax_anchor_out|softmax_tokens",
         "\"sigmoid\"", "layer moe", "from a logit to the weight of an expert's output"),
     AT(gate), .kind = WORD, .applies = is_moe},
    {DOC("norm", "none|fanout|sum", "\"none\"", "layer moe", "what the weights are divided by"),
     AT(norm), .kind = WORD, .applies = is_moe},
    {DOC("shared", "true|false", "true", "layer moe", "an expert that every token takes"),
     AT(shared), .kind = SWITCH, .applies = is_moe, .neutral = "false"},
    {DOC("shared_d_expert", COUNT_TEXT(1), "= d_expert", "shared true",
         "hs: hidden width of the shared expert"),
     AT(shared_d_expert), COUNT_FROM(1), .applies = has_shared, .exclusive = true},
    {DOC("threshold", "strict|inclusive", "\"strict\"", "rules ec and et",
         "a token passes if r > c (the paper) or r >= c (the released code)"),
     AT(inclusive), .kind = WORD, .applies = is_ec_or_et},
    {DOC("capacity_factor", "number from 0 to 1e6, or null", "null", "rule et",
         "C: a load stays within floor(k(1-C)) and floor(k(1+C)) in training; null: off"),
     AT(capacity_factor), .kind = NUMBER_OR_NULL, .low = 0, .high = 1e6, .applies = is_et},
    {DOC("ema_decay", "number from 0, less than 1", "0.999", "rules ec and et",
         "beta: ema <- beta ema + (1-beta) cutoff, after each step"),
     AT(ema_decay), NUMBER_IN(0, 1 - DBL_EPSILON / 2), .applies = is_ec_or_et},
    {DOC("ema_bias_correction", "true|false", "false", "rules ec and et",
         "the threshold is ema / (1 - beta^u), not ema"),
     AT(ema_bias_correction), .kind = SWITCH, .applies = is_ec_or_et},
    {DOC("ema_updates", COUNT_TEXT(0), "0", "rules ec and et", "u: updates behind in.ema"),
     AT(ema_updates), COUNT_FROM(0), .applies = is_ec_or_et},
    {DOC("step", COUNT_TEXT(0), "0", "rule et", "number of the step, from 0"), AT(step),
     COUNT_FROM(0), .applies = is_et},
    {DOC("warmup_steps", COUNT_TEXT(0), "0", "rule et",
         "while step is less than this, training routes by expert choice"),
     AT(warmup_steps), COUNT_FROM(0), .applies = is_et},
    {DOC("micro_batches", COUNT_TEXT(1), "1", "layer moe",
         "M: consecutive equal parts of the step, each routed alone; divides tokens"),
     AT(micro_batches), COUNT_FROM(1), .applies = is_moe},
    {DOC("balance", "none|aux|aux_error|lossfree|proportional", "\"none\"", "rule tc",
         "how loads are evened out: by a loss or by a bias of the selection"),
     AT(balance), .kind = WORD, .applies = is_tc},
    {DOC("balance_coef", NUMBER_TEXT(0, 1e6), "0.001", "balance aux and aux_error",
         "alpha: the loss's coefficient"),
     AT(balance_coef), NUMBER_IN(0, 1e6), .applies = has_aux_loss, .neutral = "0.0"},
    {DOC("bias_rate", NUMBER_TEXT(0, 1e6), "0.005", "balance lossfree and proportional",
         "u: how far a step moves the bias"),
     AT(bias_rate), NUMBER_IN(0, 1e6), .applies = has_bias, .neutral = "0.0"},
    {DOC("global_load", "true|false", "false", "rule tc",
         "loads come from in.load, the mean over all micro-batches and ranks"),
     AT(global_load), .kind = SWITCH, .applies = is_tc},
    {DOC("z_loss_coef", NUMBER_TEXT(0, 1e6), "0.0", "layer moe", "zeta: coefficient of the z-loss"),
     AT(z_loss_coef), NUMBER_IN(0, 1e6), .applies = is_moe},
    {DOC("precision", "f64|f32|bf16|f16", "\"f64\"", "every case",
         "how the in.* tensors are stored; everything is computed exactly from these values"),
     AT(precision), .kind = WORD, .values = precisions, .applies = always},
    {DOC("input.source", "normal|text|integer|ties|skewed|outlier|tiny|huge", "required",
         "cases with input", "how the in.* tensors are drawn"),
     AT(input.source), .kind = WORD, .values = sources, .applies = has_input},
    {DOC("input.seed", LONG_TEXT, "1", "cases with input", "of every random stream"),
     AT(input.seed), LONG_ANY, .applies = has_input},
    {DOC("input.mean", NUMBER_TEXT(-1e6, 1e6), "0.0", "sources but text and integer",
         "added to every element of x"),
     AT(input.mean), NUMBER_IN(-1e6, 1e6), .applies = from_deviates},
    {DOC("input.router_mean", NUMBER_TEXT(-1e6, 1e6), "0.0", "sources but text and integer",
         "added, divided by d, to every router weight: with mean it shifts logits"),
     AT(input.router_mean), NUMBER_IN(-1e6, 1e6), .applies = from_deviates},
    {DOC("input.copies", COUNT_TEXT(1), "2", "source ties", "how often each token is repeated"),
     AT(input.copies), COUNT_FROM(1), .applies = from_ties},
    {DOC("input.jitter", NUMBER_TEXT(0, 1), "0.0", "source ties",
         "copy j of a token is scaled by 1 + j * jitter"),
     AT(input.jitter), NUMBER_IN(0, 1), .applies = from_ties},
    {DOC("input.hot", COUNT_TEXT(0), "0", "source skewed",
         "the expert that draws nearly everything"),
     AT(input.hot), COUNT_FROM(0), .applies = from_skewed},
    {DOC("input.text", "text of 1 to 255 bytes", "\"GPL-3\"", "source text",
         "a file; a name without '/' is looked for among Debian's common licences"),
     AT(input.text), .kind = TEXT, .applies = from_text},
    {DOC("input.text_offset", LONG_TEXT, "0", "source text", "first byte of the file that is used"),
     AT(input.text_offset), LONG_ANY, .applies = from_text},
    {DOC("input.decisive", "true|false", "false",
         "layer moe, sources normal, skewed, outlier, tiny and huge",
         "redraw tokens until no decision is within rounding of its boundary"),
     AT(input.decisive), .kind = SWITCH, .applies = can_be_decisive},
};

enum { FIELDS = sizeof fields / sizeof fields[0], INPUT_PREFIX = sizeof "input." - 1 };

const et_field_doc *et_case_field(size_t index)
{
    return index < FIELDS ? &fields[index].doc : NULL;
}

static const struct field *field_named(const char *name)
{
    for (size_t i = 0; i < FIELDS; i++)
        if (strcmp(fields[i].doc.name, name) == 0) return &fields[i];
    return NULL;
}

static bool is_required(const struct field *f)
{
    return strcmp(f->doc.initial, "required") == 0;
}

/* False for a field that is required, derived from others or empty until given. */
static bool has_default(const struct field *f)
{
    return !is_required(f) && f->doc.initial[0] != '=' && strcmp(f->doc.initial, "none") != 0;
}

/* ---- one value: from JSON and back ---- */

/* The position of `word` in "a|b|c", or -1. */
static int word_position(const char *list, const char *word)
{
    size_t length = strlen(word);
    for (int i = 0;; i++) {
        size_t here = strcspn(list, "|");
        if (here == length && memcmp(list, word, here) == 0) return i;
        if (list[here] == '\0') return -1;
        list += here + 1;
    }
}

static json_t *word_at(const char *list, int position)
{
    while (position-- > 0) list += strcspn(list, "|") + 1;
    return json_stringn(list, strcspn(list, "|"));
}

/* Words live in enums, which are ints here, or in bools: 0 is the first word, 1 the second. */
static void store_word(void *at, size_t size, int value)
{
    bool flag = value != 0;
    memcpy(at, size == sizeof(bool) ? (const void *)&flag : (const void *)&value, size);
}

static int load_word(const void *at, size_t size)
{
    bool flag = false;
    int value = 0;
    memcpy(size == sizeof(bool) ? (void *)&flag : (void *)&value, at, size);
    return size == sizeof(bool) ? flag : value;
}

_Static_assert(sizeof(et_gate) == sizeof(int) && sizeof(et_dtype) == sizeof(int) &&
                   sizeof(bool) != sizeof(int),
               "store_word tells an enum from a bool by its size");

static bool is_name(const char *text)
{
    static const char allowed[] =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.";
    return strspn(text, allowed) == strlen(text) && strchr("-_.", text[0]) == NULL;
}

static bool store_text(const struct field *f, char *at, const json_t *v)
{
    if (!json_is_string(v)) return false;
    size_t length = json_string_length(v);
    if (length == 0 || length >= f->size) return false;
    if (f->kind == NAME && !is_name(json_string_value(v))) return false;
    memset(at, 0, f->size);
    memcpy(at, json_string_value(v), length);
    return true;
}

static bool store_integer(const struct field *f, void *at, const json_t *v)
{
    if (!json_is_integer(v)) return false;
    json_int_t value = json_integer_value(v);
    if (value < (json_int_t)f->low || value > (json_int_t)f->high) return false;
    if (f->kind == COUNT)
        *(size_t *)at = (size_t)value;
    else
        *(uint64_t *)at = (uint64_t)value;
    return true;
}

static bool store_number(const struct field *f, et_case *c, double *at, const json_t *v)
{
    bool is_null = f->kind == NUMBER_OR_NULL && json_is_null(v);
    if (!is_null && !json_is_number(v)) return false;
    double value = is_null ? 0 : json_number_value(v);
    if (!(value >= f->low && value <= f->high)) return false;
    if (f->kind == NUMBER_OR_NULL) c->has_capacity = !is_null;
    *at = value;
    return true;
}

static bool store_named(const struct field *f, void *at, const json_t *v)
{
    int position = json_is_string(v) ? word_position(f->doc.type, json_string_value(v)) : -1;
    if (position < 0) return false;
    store_word(at, f->size, f->values != NULL ? f->values[position] : position);
    return true;
}

/* Puts a JSON value into its member; false, and nothing stored, if it is not of the kind or range
 * that f->doc.type describes. */
static bool store(const struct field *f, et_case *c, const json_t *v)
{
    void *at = (char *)c + f->offset;
    switch (f->kind) {
    case NAME:
    case TEXT:
        return store_text(f, at, v);
    case COUNT:
    case LONG:
        return store_integer(f, at, v);
    case WORD:
        return store_named(f, at, v);
    case NUMBER:
    case NUMBER_OR_NULL:
        return store_number(f, c, at, v);
    case SWITCH:
        break;
    }
    if (!json_is_boolean(v)) return false;
    *(bool *)at = json_is_true(v);
    return true;
}

/* The member as a new JSON value; NULL if there is no memory, or a text is not UTF-8. */
static json_t *load(const struct field *f, const et_case *c)
{
    const void *at = (const char *)c + f->offset;
    switch (f->kind) {
    case NAME:
    case TEXT:
        return json_string(at);
    case COUNT:
        return json_integer((json_int_t) * (const size_t *)at);
    case LONG:
        return json_integer((json_int_t) * (const uint64_t *)at);
    case SWITCH:
        return json_boolean(*(const bool *)at);
    case NUMBER:
        return json_real(*(const double *)at);
    case NUMBER_OR_NULL:
        return c->has_capacity ? json_real(*(const double *)at) : json_null();
    case WORD:
        break;
    }
    int value = load_word(at, f->size), position = value;
    if (f->values != NULL)
        for (position = 0; f->values[position] != value;) position++;
    return word_at(f->doc.type, position);
}

/* JSON of a value, allocated. A real number gets the fewest of 15, 16 or 17 digits that read back
 * as the same number; 17 always do. */
static char *dump(const json_t *v)
{
    for (size_t digits = 15;; digits++) {
        char *text = json_dumps(v, JSON_ENCODE_ANY | JSON_COMPACT | JSON_REAL_PRECISION(digits));
        if (text == NULL || !json_is_real(v) || digits == 17) return text;
        json_t *back = json_loads(text, JSON_DECODE_ANY, NULL);
        bool same = json_real_value(back) == json_real_value(v);
        json_decref(back);
        if (same) return text;
        free(text);
    }
}

/* ---- messages ---- */

/* What a parse has found so far. */
struct parse {
    const char *where;
    size_t number; /* of the case in an array, from 1; 0: not in one */
    et_case value, initial;
    bool given[FIELDS];
    et_error *error;
};

static bool given(const struct parse *p, const char *name)
{
    return p->given[field_named(name) - fields];
}

/* FILE: case 'NAME': message. Before the name is known: FILE: case number 3: message. */
__attribute__((format(printf, 2, 3))) static et_status refuse(const struct parse *p,
                                                              const char *format, ...)
{
    char which[96] = "", text[512];
    if (p->value.name[0] != '\0')
        snprintf(which, sizeof which, "case '%s': ", p->value.name);
    else if (p->number > 0)
        snprintf(which, sizeof which, "case number %zu: ", p->number);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    return et_fail(p->error, ET_EINVAL, "%s: %s%s", p->where, which, text);
}

static et_status no_memory(const char *where, et_error *error)
{
    return et_fail(error, ET_ENOMEM, "%s: no memory to read the case", where);
}

/* A value for a message: its JSON, in ASCII, cut to what fits. */
struct quote {
    char text[64];
};

static struct quote quote(json_t *v)
{
    struct quote q;
    char *text =
        json_dumps(v, JSON_ENCODE_ANY | JSON_ENSURE_ASCII | JSON_COMPACT | JSON_REAL_PRECISION(15));
    bool fits = text != NULL && strlen(text) < sizeof q.text;
    snprintf(q.text, sizeof q.text, fits ? "%s" : "%.56s ...", text != NULL ? text : "?");
    free(text);
    return q;
}

static struct quote quote_field(const et_case *c, const struct field *f)
{
    json_t *v = load(f, c);
    struct quote q = quote(v);
    json_decref(v);
    return q;
}

/* Levenshtein's distance: the fewest insertions, deletions and replacements from a to b. Row i of
 * the usual table, kept in one array. Both at most 31 bytes long. */
static size_t edit_distance(const char *a, const char *b)
{
    size_t row[32], columns = strlen(b);
    for (size_t j = 0; j <= columns; j++) row[j] = j;
    for (size_t i = 0; a[i] != '\0'; i++) {
        size_t diagonal = row[0];
        row[0] = i + 1;
        for (size_t j = 0; j < columns; j++) {
            size_t best = diagonal + (a[i] != b[j]);
            if (row[j] + 1 < best) best = row[j] + 1;
            if (row[j + 1] + 1 < best) best = row[j + 1] + 1;
            diagonal = row[j + 1];
            row[j + 1] = best;
        }
    }
    return row[columns];
}

/* The field that was probably meant: at most a third of its letters wrong. */
static const char *nearest_field(const char *name)
{
    const char *nearest = NULL;
    size_t least = 32;
    if (strlen(name) > 31) return NULL;
    for (size_t i = 0; i < FIELDS; i++) {
        size_t distance = edit_distance(name, fields[i].doc.name);
        if (distance < least && 3 * distance <= strlen(fields[i].doc.name)) {
            least = distance;
            nearest = fields[i].doc.name;
        }
    }
    return nearest;
}

static et_status refuse_unknown(const struct parse *p, const char *name)
{
    const char *nearest = nearest_field(name);
    if (nearest != NULL) return refuse(p, "unknown field %.64s; the nearest is %s", name, nearest);
    return refuse(p, "unknown field %.64s; 'etref list fields' names them all", name);
}

/* ---- contradictions: two fields, each legal alone ---- */

static size_t product_or_max(size_t a, size_t b)
{
    size_t product;
    return et_size_mul(a, b, &product) ? product : SIZE_MAX;
}

/* Whether a*b*c doubles can be addressed; SIZE_MAX stands for a product that did not fit. */
static bool too_large(size_t a, size_t b, size_t c)
{
    size_t bytes = product_or_max(product_or_max(product_or_max(a, b), c), sizeof(double));
    return bytes > PTRDIFF_MAX;
}

static bool micro_does_not_divide(const et_case *c)
{
    return c->tokens % c->micro_batches != 0;
}

static bool pool_does_not_divide(const et_case *c)
{
    return et_case_micro_tokens(c) % c->pool_tokens != 0;
}

static bool pool_is_not_the_batch(const et_case *c)
{
    return is_et(c) && !c->eval && !et_case_routes_by_choice(c) &&
           c->pool_tokens != et_case_micro_tokens(c);
}

static bool granularity_is_not_top_k(const et_case *c)
{
    return is_tc(c) && c->granularity != c->top_k;
}

static bool granularity_above_experts(const et_case *c)
{
    return is_moe(c) && c->granularity > c->experts;
}

static bool top_k_above_experts(const et_case *c)
{
    return is_tc(c) && c->top_k > c->experts;
}

static bool target_is_zero(const et_case *c)
{
    return is_ec_or_et(c) && c->target_load == 0;
}

static bool target_above_pool(const et_case *c)
{
    return is_ec_or_et(c) && c->target_load > c->pool_tokens;
}

static bool tc_with_softmax_tokens(const et_case *c)
{
    return is_tc(c) && c->gate == ET_GATE_SOFTMAX_TOKENS;
}

static bool global_load_unused(const et_case *c)
{
    return c->global_load && c->balance == ET_BALANCE_NONE;
}

static bool from_integers(const et_case *c)
{
    return c->input.source == ET_INPUT_INTEGER && is_moe(c);
}

static bool integer_gate(const et_case *c)
{
    return from_integers(c) && c->gate != ET_GATE_RELU;
}

static bool integer_norm(const et_case *c)
{
    return from_integers(c) && c->norm != ET_NORM_NONE;
}

static bool integer_balance(const et_case *c)
{
    return from_integers(c) && c->balance != ET_BALANCE_NONE;
}

static bool integer_z_loss(const et_case *c)
{
    return from_integers(c) && c->z_loss_coef != 0;
}

static bool hot_beyond_experts(const et_case *c)
{
    return from_skewed(c) && c->input.hot >= c->experts;
}

static bool skewed_dense(const et_case *c)
{
    return from_skewed(c) && !is_moe(c);
}

static bool tokens_too_wide(const et_case *c)
{
    size_t widest = c->d_expert > c->shared_d_expert ? c->d_expert : c->shared_d_expert;
    return too_large(c->tokens, c->d_model, 1) || too_large(c->tokens, widest, 1);
}

static bool too_many_logits(const et_case *c)
{
    return too_large(c->tokens, c->experts, 1);
}

static bool too_many_weights(const et_case *c)
{
    size_t widest = c->d_expert > c->shared_d_expert ? c->d_expert : c->shared_d_expert;
    return too_large(c->experts > 0 ? c->experts : 1, widest, c->d_model);
}

/* In the order of checking: a later line may rely on the earlier ones. */
static const struct contradiction {
    bool (*broken)(const et_case *c);
    const char *field, *with, *why;
} contradictions[] = {
    {tokens_too_wide, "tokens", "d_model", "[tokens, width] cannot be addressed"},
    {too_many_logits, "tokens", "experts", "[tokens, experts] cannot be addressed"},
    {too_many_weights, "d_expert", "d_model", "the experts' weights cannot be addressed"},
    {micro_does_not_divide, "micro_batches", "tokens", "allowed: a divisor of tokens"},
    {top_k_above_experts, "top_k", "experts", "allowed: 1 to experts"},
    {granularity_is_not_top_k, "granularity", "top_k",
     "under rule tc granularity is top_k; leave it out"},
    {granularity_above_experts, "granularity", "experts", "allowed: 1 to experts"},
    {pool_does_not_divide, "pool_tokens", "tokens", "allowed: a divisor of tokens / micro_batches"},
    {pool_is_not_the_batch, "pool_tokens", "tokens",
     "allowed: tokens / micro_batches, the pool of et in training after its warm-up"},
    {target_is_zero, "pool_tokens", "experts",
     "k = floor(pool_tokens * granularity / experts) is 0; allowed: at least 1 (more tokens, or "
     "target_load)"},
    {target_above_pool, "target_load", "pool_tokens", "allowed: 1 to pool_tokens"},
    {tc_with_softmax_tokens, "gate", "rule", "a softmax over tokens is for ec and et"},
    {global_load_unused, "global_load", "balance",
     "allowed: false, or a balance that uses loads: aux|aux_error|lossfree|proportional"},
    {integer_gate, "gate", "input.source", "integers stay integers only with gate relu"},
    {integer_norm, "norm", "input.source", "integers stay integers only with norm none"},
    {integer_balance, "balance", "input.source", "integers stay integers only with balance none"},
    {integer_z_loss, "z_loss_coef", "input.source", "integers stay integers only with 0"},
    {skewed_dense, "input.source", "layer", "a dense layer has no expert to prefer"},
    {hot_beyond_experts, "input.hot", "experts", "allowed: 0 to experts - 1"},
};

static et_status check_contradictions(const struct parse *p)
{
    const et_case *c = &p->value;
    for (size_t i = 0; i < sizeof contradictions / sizeof contradictions[0]; i++) {
        const struct contradiction *x = &contradictions[i];
        if (!x->broken(c)) continue;
        struct quote value = quote_field(c, field_named(x->field));
        struct quote with = quote_field(c, field_named(x->with));
        return refuse(p, "%s = %s with %s = %s: %s", x->field, value.text, x->with, with.text,
                      x->why);
    }
    return ET_OK;
}

/* ---- parsing ---- */

/* Stores the value of a text from the table above, which only lack of memory can spoil. */
static et_status store_literal(const struct field *f, et_case *c, const char *json,
                               const struct parse *p)
{
    json_t *v = json_loads(json, JSON_DECODE_ANY, NULL);
    bool stored = v != NULL && store(f, c, v);
    json_decref(v);
    return stored ? ET_OK : no_memory(p->where, p->error);
}

static et_status set_defaults(struct parse *p)
{
    memset(&p->initial, 0, sizeof p->initial);
    for (size_t i = 0; i < FIELDS; i++) {
        if (!has_default(&fields[i])) continue;
        et_status status = store_literal(&fields[i], &p->initial, fields[i].doc.initial, p);
        if (status != ET_OK) return status;
    }
    memcpy(&p->value, &p->initial, sizeof p->value);
    return ET_OK;
}

static et_status parse_field(struct parse *p, const char *name, json_t *v)
{
    const struct field *f = field_named(name);
    if (f == NULL) return refuse_unknown(p, name);
    if (!store(f, &p->value, v))
        return refuse(p, "%s = %s; allowed: %s", name, quote(v).text, f->doc.type);
    p->given[f - fields] = true;
    return ET_OK;
}

static et_status parse_input(struct parse *p, json_t *input)
{
    const char *key;
    json_t *v;
    if (!json_is_object(input))
        return refuse(p, "input = %s; allowed: an object with source, seed, ...",
                      quote(input).text);
    json_object_foreach(input, key, v)
    {
        char name[64];
        snprintf(name, sizeof name, "input.%s", key);
        et_status status = parse_field(p, name, v);
        if (status != ET_OK) return status;
    }
    if (!given(p, "input.source"))
        return refuse(p, "input.source is missing; allowed: %s",
                      field_named("input.source")->doc.type);
    return ET_OK;
}

/* The name goes first, so that every other message can begin with it. */
static et_status parse_object(struct parse *p, json_t *object)
{
    const char *key;
    json_t *v = json_object_get(object, "name");
    et_status status = ET_OK;
    if (v != NULL) status = parse_field(p, "name", v);
    if (status != ET_OK) return status;
    json_object_foreach(object, key, v)
    {
        if (strcmp(key, "input") == 0)
            status = parse_input(p, v);
        else if (strchr(key, '.') != NULL)
            status = refuse_unknown(p, key);
        else
            status = parse_field(p, key, v);
        if (status != ET_OK) return status;
    }
    return ET_OK;
}

/* True if a field that does not apply says nothing all the same. */
static et_status is_neutral(const struct parse *p, const struct field *f, bool *neutral)
{
    const char *at = (const char *)&p->value + f->offset;
    et_case other = p->initial;
    *neutral = !f->exclusive && memcmp(at, (char *)&other + f->offset, f->size) == 0 &&
               !(f->kind == NUMBER_OR_NULL && p->value.has_capacity);
    if (*neutral || f->neutral == NULL) return ET_OK;
    et_status status = store_literal(f, &other, f->neutral, p);
    *neutral = memcmp(at, (char *)&other + f->offset, f->size) == 0;
    return status;
}

/* Required fields must be there, and fields that do not apply must not say anything. */
static et_status check_scopes(struct parse *p)
{
    et_case *c = &p->value;
    for (size_t i = 0; i < FIELDS; i++) {
        const struct field *f = &fields[i];
        if (f->applies(c)) {
            if (is_required(f) && !p->given[i])
                return refuse(p, "%s is missing; allowed: %s", f->doc.name, f->doc.type);
            continue;
        }
        if (!p->given[i]) continue;
        bool neutral;
        et_status status = is_neutral(p, f, &neutral);
        if (status != ET_OK) return status;
        if (!neutral)
            return refuse(p, "%s = %s does not apply; allowed: only with %s", f->doc.name,
                          quote_field(c, f).text, f->doc.scope);
    }
    return ET_OK;
}

/* What does not apply holds its default. Predicates look at the case as it was written, so that the
 * order of the rows does not matter. */
static void reset_unused(struct parse *p)
{
    et_case before = p->value;
    for (size_t i = 0; i < FIELDS; i++) {
        const struct field *f = &fields[i];
        if (f->applies(&before)) continue;
        memcpy((char *)&p->value + f->offset, (const char *)&p->initial + f->offset, f->size);
        p->given[i] = false;
    }
}

/* Defaults that other fields decide. */
static void derive(struct parse *p)
{
    et_case *c = &p->value;
    if (!is_moe(c)) c->shared = false;
    if (!c->shared)
        c->shared_d_expert = 0;
    else if (!given(p, "shared_d_expert"))
        c->shared_d_expert = c->d_expert;
    if (!given(p, "granularity")) c->granularity = is_tc(c) ? c->top_k : 1;
    if (!given(p, "pool_tokens")) c->pool_tokens = et_case_micro_tokens(c);
    if (c->pool_tokens == 0) c->pool_tokens = 1; /* more micro-batches than tokens: refused below */
    if (!is_ec_or_et(c))
        c->target_load = 0;
    else if (!given(p, "target_load"))
        c->target_load = c->pool_tokens * c->granularity / c->experts;
}

static et_status parse_case(et_case *c, const char *where, size_t number, json_t *object,
                            et_error *error)
{
    struct parse p = {.where = where, .number = number, .error = error};
    if (!json_is_object(object))
        return refuse(&p, "%s; allowed: an object with fields name, tokens, ...",
                      quote(object).text);
    et_status status = set_defaults(&p);
    if (status == ET_OK) status = parse_object(&p, object);
    if (status == ET_OK) status = check_scopes(&p);
    if (status != ET_OK) return status;
    reset_unused(&p);
    derive(&p);
    status = check_contradictions(&p);
    if (status == ET_OK) memcpy(c, &p.value, sizeof *c);
    return status;
}

/* The text as JSON, a new reference. */
static et_status load_text(json_t **root, const char *json, size_t length, const char *where,
                           et_error *error)
{
    json_error_t problem;
    if (length > MAX_TEXT)
        return et_fail(error, ET_EINVAL, "%s: %zu bytes; allowed: at most %d", where, length,
                       MAX_TEXT);
    *root = json_loadb(json, length, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &problem);
    if (*root != NULL) return ET_OK;
    if (json_error_code(&problem) == json_error_out_of_memory) return no_memory(where, error);
    return et_fail(error, ET_EINVAL, "%s: line %d, column %d: cannot be read as JSON: %s", where,
                   problem.line, problem.column, problem.text);
}

et_status et_case_parse(et_case *c, const char *json, size_t length, const char *where,
                        et_error *error)
{
    json_t *root;
    et_status status = load_text(&root, json, length, where, error);
    if (status != ET_OK) return status;
    status = parse_case(c, where, 0, root, error);
    json_decref(root);
    return status;
}

static et_status check_names(json_t *array, const char *where, et_error *error)
{
    size_t i;
    json_t *element;
    et_status status = ET_OK;
    json_t *seen = json_object();
    if (seen == NULL) return no_memory(where, error);
    json_array_foreach(array, i, element)
    {
        const char *name = json_string_value(json_object_get(element, "name"));
        if (name == NULL) continue; /* parsing it will say so */
        json_t *first = json_object_get(seen, name);
        if (first != NULL)
            status = et_fail(error, ET_EINVAL, "%s: cases number %d and %zu are both named '%.64s'",
                             where, (int)json_integer_value(first), i + 1, name);
        else if (json_object_set_new(seen, name, json_integer((json_int_t)i + 1)) != 0)
            status = no_memory(where, error);
        if (status != ET_OK) break;
    }
    json_decref(seen);
    return status;
}

et_status et_case_count(size_t *count, const char *json, size_t length, const char *where,
                        et_error *error)
{
    json_t *root;
    et_status status = load_text(&root, json, length, where, error);
    if (status != ET_OK) return status;
    size_t cases = json_is_array(root) ? json_array_size(root) : 1;
    if (cases > MAX_CASES)
        status = et_fail(error, ET_EINVAL, "%s: %zu cases; allowed: at most %d", where, cases,
                         MAX_CASES);
    else if (json_is_array(root))
        status = check_names(root, where, error);
    json_decref(root);
    if (status == ET_OK) *count = cases;
    return status;
}

et_status et_case_parse_nth(et_case *c, size_t index, const char *json, size_t length,
                            const char *where, et_error *error)
{
    json_t *root;
    et_status status = load_text(&root, json, length, where, error);
    if (status != ET_OK) return status;
    size_t cases = json_is_array(root) ? json_array_size(root) : 1;
    if (index >= cases)
        status = et_fail(error, ET_EINVAL, "%s: no case number %zu; it holds %zu", where, index + 1,
                         cases);
    else if (json_is_array(root))
        status = parse_case(c, where, index + 1, json_array_get(root, index), error);
    else
        status = parse_case(c, where, 0, root, error);
    json_decref(root);
    return status;
}

/* ---- printing ---- */

struct line {
    char text[MAX_LINE]; /* names, 40 short values and 480 bytes of text, each escaped to 6 at most
                          */
    size_t used;
};

static void append(struct line *line, const char *text)
{
    size_t length = strlen(text), room = sizeof line->text - 1 - line->used;
    if (length > room) length = room; /* cannot happen, see the size above */
    memcpy(line->text + line->used, text, length);
    line->used += length;
    line->text[line->used] = '\0';
}

static bool is_printed(const struct field *f, const et_case *c)
{
    bool empty = f->kind == TEXT && ((const char *)c)[f->offset] == '\0';
    return f->applies(c) && !empty;
}

/* "name": value, with what separates it from the field before. */
static bool append_field(struct line *line, const struct field *f, const et_case *c, bool first)
{
    bool nested = strncmp(f->doc.name, "input.", INPUT_PREFIX) == 0;
    bool opens = strcmp(f->doc.name, "input.source") == 0;
    json_t *v = load(f, c);
    char *value = dump(v);
    json_decref(v);
    if (value == NULL) return false;
    append(line, first ? "{\"" : ", \"");
    if (opens) append(line, "input\": {\"");
    append(line, f->doc.name + (nested ? INPUT_PREFIX : 0));
    append(line, "\": ");
    append(line, value);
    free(value);
    return true;
}

et_status et_case_print(char **json, const et_case *c, et_error *error)
{
    struct line line = {.used = 0};
    for (size_t i = 0; i < FIELDS; i++)
        if (is_printed(&fields[i], c) && !append_field(&line, &fields[i], c, i == 0))
            return et_fail(error, ET_ENOMEM, "case '%s': no memory to print it, or not UTF-8",
                           c->name);
    append(&line, has_input(c) ? "}}" : "}");
    void *copy;
    et_status status = et_allocate(&copy, line.used + 1, 1, "a case's text", error);
    if (status != ET_OK) return status;
    memcpy(copy, line.text, line.used + 1);
    *json = copy;
    return ET_OK;
}

/* ---- what a case says about its step ---- */

size_t et_case_micro_tokens(const et_case *c)
{
    return c->tokens / c->micro_batches;
}

bool et_case_routes_by_choice(const et_case *c)
{
    if (!is_ec_or_et(c) || c->eval) return false;
    return c->rule == ET_EC || c->step < c->warmup_steps;
}

bool et_case_routes_by_threshold(const et_case *c)
{
    return is_ec_or_et(c) && !et_case_routes_by_choice(c);
}
