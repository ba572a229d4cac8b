/* fields.c: the table of a case's fields, one row each, and moving a value in and out.
 *
 * A row says what a field is called, where in et_case it lives, what values it takes, its default,
 * the cases to which it applies, and what it means. Adding a field to the language of cases is
 * adding a member to et_case and a row here.
 *
 * Words are kept in f->doc.type, "tc|ec|et": the text that a message shows and the list that a word
 * is looked up in are the same. Their position is the value, or the index of it in f->values.
 */
#include "ref/oracle/fields.h"
#include "ref/oracle/json.h"
#include "ref/oracle/kinds.h"

#include <float.h>
#include <string.h>

/* ---- the cases to which a field applies ---- */

static bool is_et(const et_case *c)
{
    return is_moe(c) && c->rule == ET_ET;
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

static const int precisions[] = {ET_F64, ET_F32, ET_BF16, ET_F16};
static const int sources[] = {ET_INPUT_NORMAL, ET_INPUT_TEXT,    ET_INPUT_INTEGER, ET_INPUT_TIES,
                              ET_INPUT_SKEWED, ET_INPUT_OUTLIER, ET_INPUT_TINY,    ET_INPUT_HUGE};

#define DOC(name, type, initial, scope, meaning) .doc = {name, type, initial, scope, meaning}
#define AT(member)                                                                                 \
    .offset = offsetof(et_case, member), .size = sizeof(((const et_case *)NULL)->member)
#define COUNT_FROM(lo)      .kind = ET_COUNT, .low = lo, .high = INT32_MAX
#define COUNT_TEXT(lo)      "integer from " #lo " to 2147483647"
#define LONG_ANY            .kind = ET_LONG, .low = 0, .high = 9007199254740992.0
#define LONG_TEXT           "integer from 0 to 9007199254740992"
#define NUMBER_IN(lo, hi)   .kind = ET_NUMBER, .low = lo, .high = hi
#define NUMBER_TEXT(lo, hi) "number from " #lo " to " #hi

const et_field et_fields[] = {
    {DOC("name", "1 to 63 letters, digits, '-', '_', '.', the first a letter or digit", "required",
         "every case", "names the case and its bundle's file"),
     AT(name), .kind = ET_NAME, .applies = is_any},
    {DOC("hunts", "text of 1 to 159 bytes", "none", "every case", "which bug this case catches"),
     AT(hunts), .kind = ET_TEXT, .applies = is_any},
    {DOC("layer", "dense|moe", "\"moe\"", "every case", "one feed-forward network, or experts"),
     AT(layer), .kind = ET_WORD, .applies = is_any},
    {DOC("rule", "tc|ec|et", "\"et\"", "layer moe",
         "token choice, expert choice or expert threshold"),
     AT(rule), .kind = ET_WORD, .applies = is_moe},
    {DOC("mode", "train|eval", "\"train\"", "every case",
         "eval: ec and et route by threshold; no capacity, no losses, no change of state"),
     AT(eval), .kind = ET_WORD, .applies = is_any},
    {DOC("tokens", COUNT_TEXT(1), "required", "every case", "N: tokens of the step"), AT(tokens),
     COUNT_FROM(1), .applies = is_any},
    {DOC("d_model", COUNT_TEXT(1), "required", "every case", "d: width of a token"), AT(d_model),
     COUNT_FROM(1), .applies = is_any},
    {DOC("d_expert", COUNT_TEXT(1), "required", "every case",
         "h: hidden width of an expert, or of the dense layer"),
     AT(d_expert), COUNT_FROM(1), .applies = is_any},
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
         "\"sigmoid\"", "layer moe", "from a logit to the weight of an expert's output; under ec and et the shared expert weighs 1, "
         "the anchor's share (softmax_anchor) or 1/(granularity+1) (softmax_anchor_out)"),
     AT(gate), .kind = ET_WORD, .applies = is_moe},
    {DOC("norm", "none|fanout|sum", "\"none\"", "layer moe", "what the weights are divided by"),
     AT(norm), .kind = ET_WORD, .applies = is_moe},
    {DOC("shared", "true|false", "true", "layer moe", "an expert that every token takes"),
     AT(shared), .kind = ET_SWITCH, .applies = is_moe, .neutral = "false"},
    {DOC("shared_d_expert", COUNT_TEXT(1), "= d_expert", "shared true",
         "hs: hidden width of the shared expert"),
     AT(shared_d_expert), COUNT_FROM(1), .applies = has_shared, .exclusive = true},
    {DOC("threshold", "strict|inclusive", "\"strict\"", "rules ec and et",
         "a token passes if r > c (the paper) or r >= c (the released code)"),
     AT(inclusive), .kind = ET_WORD, .applies = is_ec_or_et},
    {DOC("capacity_factor", "number from 0 to 1e6, or null", "null", "rule et",
         "C: a load stays within floor(k(1-C)) and floor(k(1+C)) in training; null: off"),
     AT(capacity_factor), .kind = ET_NUMBER_OR_NULL, .low = 0, .high = 1e6, .applies = is_et},
    {DOC("ema_decay", "number from 0, less than 1", "0.999", "rules ec and et",
         "beta: ema <- beta ema + (1-beta) cutoff, after each step"),
     AT(ema_decay), NUMBER_IN(0, 1 - DBL_EPSILON / 2), .applies = is_ec_or_et},
    {DOC("ema_bias_correction", "true|false", "false", "rules ec and et",
         "the threshold is ema / (1 - beta^u), not ema"),
     AT(ema_bias_correction), .kind = ET_SWITCH, .applies = is_ec_or_et},
    {DOC("ema_updates", COUNT_TEXT(0), "0", "rules ec and et", "u: updates behind in.ema"),
     AT(ema_updates), COUNT_FROM(0), .applies = is_ec_or_et},
    {DOC("step", COUNT_TEXT(0), "0", "layer moe", "number of the step, from 0"), AT(step),
     COUNT_FROM(0), .applies = is_moe},
    {DOC("warmup_steps", COUNT_TEXT(0), "0", "rule et",
         "while step is less than this, training routes by expert choice"),
     AT(warmup_steps), COUNT_FROM(0), .applies = is_et},
    {DOC("micro_batches", COUNT_TEXT(1), "1", "layer moe",
         "M: consecutive equal parts of the step, each routed alone; divides tokens"),
     AT(micro_batches), COUNT_FROM(1), .applies = is_moe},
    {DOC("balance", "none|aux|aux_error|lossfree|proportional", "\"none\"", "rule tc",
         "how loads are evened out: by a loss or by a bias of the selection"),
     AT(balance), .kind = ET_WORD, .applies = is_tc},
    {DOC("balance_coef", NUMBER_TEXT(0, 1e6), "0.001", "balance aux and aux_error",
         "alpha: the loss's coefficient"),
     AT(balance_coef), NUMBER_IN(0, 1e6), .applies = has_aux_loss, .neutral = "0.0"},
    {DOC("bias_rate", NUMBER_TEXT(0, 1e6), "0.005", "balance lossfree and proportional",
         "u: how far a step moves the bias"),
     AT(bias_rate), NUMBER_IN(0, 1e6), .applies = has_bias, .neutral = "0.0"},
    {DOC("global_load", "true|false", "false", "rule tc",
         "loads come from in.load, the mean over all micro-batches and ranks"),
     AT(global_load), .kind = ET_SWITCH, .applies = is_tc},
    {DOC("z_loss_coef", NUMBER_TEXT(0, 1e6), "0.0", "layer moe", "zeta: coefficient of the z-loss"),
     AT(z_loss_coef), NUMBER_IN(0, 1e6), .applies = is_moe},
    {DOC("precision", "f64|f32|bf16|f16", "\"f64\"", "every case",
         "how the in.* tensors are stored; everything is computed exactly from these values"),
     AT(precision), .kind = ET_WORD, .values = precisions, .applies = is_any},
    {DOC("input.source", "normal|text|integer|ties|skewed|outlier|tiny|huge", "required",
         "cases with input", "how the in.* tensors are drawn"),
     AT(input.source), .kind = ET_WORD, .values = sources, .applies = has_input},
    {DOC("input.seed", LONG_TEXT, "1", "cases with input", "of every random stream"),
     AT(input.seed), LONG_ANY, .applies = has_input},
    {DOC("input.mean", NUMBER_TEXT(-1e6, 1e6), "0.0", "sources other than text and integer",
         "added to every element of x"),
     AT(input.mean), NUMBER_IN(-1e6, 1e6), .applies = from_deviates},
    {DOC("input.router_mean", NUMBER_TEXT(-1e6, 1e6), "0.0", "sources other than text and integer",
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
     AT(input.text), .kind = ET_TEXT, .applies = from_text},
    {DOC("input.text_offset", LONG_TEXT, "0", "source text", "first byte of the file that is used"),
     AT(input.text_offset), LONG_ANY, .applies = from_text},
    {DOC("input.decisive", "true|false", "false",
         "layer moe, sources normal, skewed, outlier, tiny and huge",
         "redraw tokens until no decision is within rounding of its boundary"),
     AT(input.decisive), .kind = ET_SWITCH, .applies = can_be_decisive},
};

_Static_assert(sizeof et_fields / sizeof et_fields[0] == ET_FIELDS, "fields.h counts them");

const et_field_doc *et_case_field(size_t index)
{
    return index < ET_FIELDS ? &et_fields[index].doc : NULL;
}

const et_field *et_field_named(const char *name)
{
    for (size_t i = 0; i < ET_FIELDS; i++)
        if (strcmp(et_fields[i].doc.name, name) == 0) return &et_fields[i];
    return NULL;
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

static bool store_text(const et_field *f, char *at, const json_t *v)
{
    if (!json_is_string(v)) return false;
    size_t length = json_string_length(v);
    if (length == 0 || length >= f->size) return false;
    if (f->kind == ET_NAME && !et_is_name(json_string_value(v))) return false;
    memset(at, 0, f->size);
    memcpy(at, json_string_value(v), length);
    return true;
}

static bool store_integer(const et_field *f, void *at, const json_t *v)
{
    if (!json_is_integer(v)) return false;
    json_int_t value = json_integer_value(v);
    if (value < (json_int_t)f->low || value > (json_int_t)f->high) return false;
    if (f->kind == ET_COUNT)
        *(size_t *)at = (size_t)value;
    else
        *(uint64_t *)at = (uint64_t)value;
    return true;
}

static bool store_number(const et_field *f, et_case *c, double *at, const json_t *v)
{
    bool is_null = f->kind == ET_NUMBER_OR_NULL && json_is_null(v);
    if (!is_null && !json_is_number(v)) return false;
    double value = is_null ? 0 : json_number_value(v);
    if (!(value >= f->low && value <= f->high)) return false;
    if (f->kind == ET_NUMBER_OR_NULL) c->has_capacity = !is_null;
    *at = value;
    return true;
}

static bool store_named(const et_field *f, void *at, const json_t *v)
{
    int position = json_is_string(v) ? word_position(f->doc.type, json_string_value(v)) : -1;
    if (position < 0) return false;
    store_word(at, f->size, f->values != NULL ? f->values[position] : position);
    return true;
}

bool et_field_store(const et_field *f, et_case *c, const json_t *v)
{
    void *at = (char *)c + f->offset;
    switch (f->kind) {
    case ET_NAME:
    case ET_TEXT: return store_text(f, at, v);
    case ET_COUNT:
    case ET_LONG: return store_integer(f, at, v);
    case ET_WORD: return store_named(f, at, v);
    case ET_NUMBER:
    case ET_NUMBER_OR_NULL: return store_number(f, c, at, v);
    case ET_SWITCH: break;
    }
    if (!json_is_boolean(v)) return false;
    *(bool *)at = json_is_true(v);
    return true;
}

static size_t words_in(const char *list)
{
    size_t count = 1;
    for (; *list != '\0'; list++) count += *list == '|';
    return count;
}

static bool word_fits(const et_field *f, const et_case *c)
{
    unsigned char flag;
    int value;
    memcpy(&flag, (const char *)c + f->offset, sizeof flag);
    if (f->size == sizeof(bool)) return flag <= 1;
    memcpy(&value, (const char *)c + f->offset, sizeof value);
    for (size_t i = 0; i < words_in(f->doc.type); i++)
        if (value == (f->values != NULL ? f->values[i] : (int)i)) return true;
    return false;
}

static bool text_fits(const et_field *f, const char *text)
{
    if (memchr(text, '\0', f->size) == NULL) return false;
    if (f->kind == ET_NAME) return et_is_name(text) && text[0] != '\0';
    return text[0] != '\0' || strcmp(f->doc.initial, "none") == 0;
}

bool et_field_fits(const et_field *f, const et_case *c)
{
    const void *at = (const char *)c + f->offset;
    switch (f->kind) {
    case ET_NAME:
    case ET_TEXT: return text_fits(f, at);
    case ET_COUNT:
        return *(const size_t *)at >= (size_t)f->low && *(const size_t *)at <= (size_t)f->high;
    case ET_LONG: return *(const uint64_t *)at <= (uint64_t)f->high;
    case ET_NUMBER_OR_NULL:
        if (!c->has_capacity) return true; /* null */
        /* fall through */
    case ET_NUMBER: return *(const double *)at >= f->low && *(const double *)at <= f->high;
    case ET_SWITCH:
    case ET_WORD: break;
    }
    return word_fits(f, c);
}

json_t *et_field_load(const et_field *f, const et_case *c)
{
    const void *at = (const char *)c + f->offset;
    switch (f->kind) {
    case ET_NAME:
    case ET_TEXT: return json_string(at);
    case ET_COUNT: return json_integer((json_int_t) * (const size_t *)at);
    case ET_LONG: return json_integer((json_int_t) * (const uint64_t *)at);
    case ET_SWITCH: return json_boolean(*(const bool *)at);
    case ET_NUMBER: return json_real(*(const double *)at);
    case ET_NUMBER_OR_NULL: return c->has_capacity ? json_real(*(const double *)at) : json_null();
    case ET_WORD: break;
    }
    int value = load_word(at, f->size), position = value;
    if (f->values != NULL)
        for (position = 0; f->values[position] != value;) position++;
    return word_at(f->doc.type, position);
}
