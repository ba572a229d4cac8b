/* describe_case.c: words for cases, elements and profiles. See describe_case.h. */
#include "ref/report/describe_case.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

void et_append(char *out, size_t room, const char *format, ...)
{
    size_t used = strlen(out);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(out + used, room - used, format, arguments);
    va_end(arguments);
}

/* ---- cases ---- */

const char *et_rule_name(const et_case *c)
{
    static const char *const names[] = {[ET_TC] = "tc", [ET_EC] = "ec", [ET_ET] = "et"};
    static const char *const layers[] = {[ET_DENSE] = "dense",
                                         [ET_LAYER_RMSNORM] = "rmsnorm",
                                         [ET_LAYER_ROPE] = "rope",
                                         [ET_LAYER_ATTENTION] = "attention",
                                         [ET_LAYER_CROSS_ENTROPY] = "cross_entropy",
                                         [ET_LAYER_ADAMW] = "adamw",
                                         [ET_LAYER_MUON] = "muon"};
    return c->layer == ET_MOE ? names[c->rule] : layers[c->layer];
}

const char *et_gate_name(et_gate gate)
{
    static const char *const names[] = {
        [ET_GATE_SIGMOID] = "sigmoid",
        [ET_GATE_RELU] = "relu",
        [ET_GATE_SOFTMAX] = "softmax",
        [ET_GATE_SOFTMAX_ANCHOR] = "softmax_anchor",
        [ET_GATE_SOFTMAX_ANCHOR_OUT] = "softmax_anchor_out",
        [ET_GATE_SOFTMAX_TOKENS] = "softmax_tokens",
    };
    return names[gate];
}

static void describe_rule(char *out, size_t room, const et_case *c)
{
    char groups[64] = "";
    if (c->rule == ET_TC && c->groups > 1)
        snprintf(groups, sizeof groups, " in %zu of %zu groups", c->groups_kept, c->groups);
    const char *by = c->rule == ET_TC && c->select_gates ? " by gate value" : "";
    if (c->given)
        snprintf(out, room, "tokens go where the given assignment sends them");
    else if (c->rule == ET_TC)
        snprintf(out, room, "each token takes its top %zu%s%s%s", c->top_k, by, groups,
                 c->has_capacity && !c->eval ? ", within the experts' capacity" : "");
    else if (et_case_routes_by_threshold(c))
        snprintf(out, room, "each expert takes the tokens whose score %s its threshold%s",
                 c->inclusive ? "reaches" : "passes",
                 c->has_capacity && !c->eval ? ", within its capacity" : "");
    else
        snprintf(out, room, "each expert takes the top %zu of every %zu tokens%s", c->target_load,
                 c->pool_tokens, c->rule == ET_ET ? " (warm-up)" : "");
}

/* A layer of the model around, or an optimiser; false: the case is another. */
static bool describe_model(char *out, size_t room, const et_case *c)
{
    size_t N = c->tokens, d = c->d_model, T = c->sequence, width = c->heads ? d / c->heads : 0;
    switch (c->layer) {
    case ET_DENSE:
    case ET_MOE: return false;
    case ET_LAYER_RMSNORM:
        snprintf(out, room, "RMSNorm: %zu tokens of %zu heads of width %zu", N, c->heads, width);
        break;
    case ET_LAYER_ROPE:
        snprintf(out, room, "rotary embedding: %zu sequences of %zu tokens, %zu heads of width %zu",
                 N / T, T, c->heads, width);
        break;
    case ET_LAYER_ATTENTION:
        snprintf(out, room,
                 "causal attention: %zu sequences of %zu tokens, %zu query heads and %zu key heads "
                 "of width %zu",
                 N / T, T, c->heads, c->kv_heads, width);
        break;
    case ET_LAYER_CROSS_ENTROPY:
        snprintf(out, room,
                 "output head, softcap %g and cross-entropy: %zu tokens of width %zu, %zu words",
                 c->softcap, N, d, c->vocab);
        break;
    case ET_LAYER_ADAMW:
    case ET_LAYER_MUON:
        snprintf(out, room, "%s: update %zu of a matrix [%zu,%zu]",
                 c->layer == ET_LAYER_MUON ? "Muon" : "AdamW", c->step + 1, N, d);
    }
    return true;
}

void et_describe_case(char *out, size_t room, const et_case *c)
{
    static const char *const rules[] = {
        [ET_TC] = "token choice", [ET_EC] = "expert choice", [ET_ET] = "expert threshold"};
    char rule[160], shared[64] = "", ranks[64] = "";
    if (describe_model(out, room, c)) return;
    if (c->layer == ET_DENSE) {
        snprintf(out, room, "dense layer: %zu tokens of width %zu, hidden width %zu", c->tokens,
                 c->d_model, c->d_expert);
        return;
    }
    describe_rule(rule, sizeof rule, c);
    if (c->shared) snprintf(shared, sizeof shared, " and a shared one of %zu", c->shared_d_expert);
    if (c->parallel != ET_ONE_RANK)
        snprintf(ranks, sizeof ranks, "; %s-parallel on %zu rank%s",
                 c->parallel == ET_EXPERT_PARALLEL ? "expert" : "data", c->ranks,
                 c->ranks > 1 ? "s" : "");
    snprintf(out, room, "%s, %s: %zu tokens of width %zu; %zu experts of width %zu%s; %s gate; %s%s",
             rules[c->rule], c->eval ? "evaluation" : "training", c->tokens, c->d_model, c->experts,
             c->d_expert, shared, et_gate_name(c->gate), rule, ranks);
}

/* ---- tensors ---- */

const et_tensor_doc *et_doc_of(const char *name)
{
    static const char *const prefixes[] = {ET_NOISE_ALONE, ET_NOISE_PREFIX};
    for (size_t i = 0; i < 2; i++) {
        size_t length = strlen(prefixes[i]);
        if (strncmp(name, prefixes[i], length) == 0) return et_tensor_doc_find(name + length);
    }
    return et_tensor_doc_find(name);
}

static void append_sizes(char *out, size_t room, const size_t *values, size_t count)
{
    snprintf(out, room, "[");
    for (size_t i = 0; i < count; i++) et_append(out, room, "%s%zu", i ? "," : "", values[i]);
    et_append(out, room, "]");
}

void et_describe_shape(char *out, size_t room, const et_tensor_info *tensor)
{
    append_sizes(out, room, tensor->shape, tensor->rank);
}

/* The row-major index, taken apart into one number a dimension. */
static void split_index(const et_tensor_info *tensor, size_t index, size_t at[ET_MAX_RANK])
{
    for (size_t i = tensor->rank; i-- > 0;) {
        size_t extent = tensor->shape[i] ? tensor->shape[i] : 1;
        at[i] = index % extent;
        index /= extent;
    }
}

void et_describe_place(char *out, size_t room, const et_tensor_info *tensor, size_t index)
{
    size_t at[ET_MAX_RANK];
    split_index(tensor, index, at);
    append_sizes(out, room, at, tensor->rank);
}

static const char *dimension_word(const char *letters)
{
    static const struct {
        const char *letters, *word;
    } words[] = {{"N", "token"},       {"n", "expert"},       {"S", "slot"},    {"d", "column"},
                 {"h", "hidden unit"}, {"hs", "hidden unit"}, {"K", "rank"},    {"k", "rank"},
                 {"N/P", "pool"},      {"pools", "pool"},     {"n+1", "place"}, {"N+1", "place"},
                 {"R", "row"},         {"B", "block"},        {"1", NULL},      {"H", "head"},
                 {"q", "column"},      {"V", "word"},         {"T", "token"},   {"b", "sequence"},
                 {"ranks", "rank"},    {"local", "local expert"}, {"sent", "row"}, {"received", "row"},
                 {"copies", "copy"},   {"listed", "place"},   {"padded", "row"}};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (strcmp(letters, words[i].letters) == 0) return words[i].word;
    return "place";
}

/* Cuts "[N,d]" into its letters; returns how many. */
static size_t split_letters(const char *shape, char letters[ET_MAX_RANK][12])
{
    size_t count = 0;
    for (const char *c = shape; *c && count < ET_MAX_RANK;) {
        size_t width = strcspn(c, "[],");
        if (width > 0) snprintf(letters[count++], 12, "%.*s", (int)width, c);
        c += width + (c[width] != '\0');
    }
    return count;
}

static void append_slot(char *out, size_t room, size_t slot, const et_assignment *a)
{
    if (a == NULL || slot >= a->slots) return;
    et_append(out, room, " (token %d, expert %d)", (int)a->slot_token[slot],
              (int)a->slot_expert[slot]);
}

void et_describe_element(char *out, size_t room, const et_tensor_info *tensor, size_t index,
                         const et_assignment *a)
{
    const et_tensor_doc *doc = et_doc_of(tensor->name);
    char letters[ET_MAX_RANK][12];
    size_t at[ET_MAX_RANK], rank = doc ? split_letters(doc->shape, letters) : 0;
    if (rank != tensor->rank) { /* a dense layer's weights, or a tensor of no bundle */
        et_describe_place(out, room, tensor, index);
        return;
    }
    split_index(tensor, index, at);
    out[0] = '\0';
    bool weight =
        rank >= 2 && strchr("hd", letters[rank - 2][0]); /* [h,d], [d,h]: as verify says it */
    for (size_t i = 0; i < rank; i++) {
        const char *word = dimension_word(letters[i]);
        if (weight && i + 2 >= rank) word = i + 2 == rank ? "row" : "column";
        if (word == NULL) continue;
        et_append(out, room, "%s%s %zu", out[0] ? ", " : "", word, at[i]);
        if (strcmp(word, "slot") == 0) append_slot(out, room, at[i], a);
    }
    if (out[0] == '\0') et_append(out, room, "the only element");
}

/* ---- profiles ---- */

/* `what` with a comma before it, unless it is the first. */
static void also(char *out, size_t room, bool is, const char *what)
{
    if (is) et_append(out, room, "%s%s", out[0] ? ", " : "", what);
}

void et_describe_rest(char *out, size_t room, const et_profile *p)
{
    also(out, room, p->exponent_bits == 5, "f16's range");
    also(out, room, p->ftz, "subnormals flushed");
    also(out, room, p->truncate_operands, "operands truncated");
    also(out, room, p->truncate_accumulator, "sums truncated");
    for (int i = ET_PLACES; i < ET_ALL_PLACES; i++) {
        also(out, room, p->bits[i] > 0, et_place_name((et_place)i));
        if (p->bits[i] > 0) et_append(out, room, " %d", p->bits[i]);
    }
    also(out, room, p->accumulator_chunk > 0, "sums of");
    if (p->accumulator_chunk > 0) et_append(out, room, " %d terms", p->accumulator_chunk);
    also(out, room, p->flush_operands, "subnormal operands flushed");
    also(out, room, p->flush_products, "subnormal products flushed");
    also(out, room, p->stochastic, "stochastic");
}

void et_describe_profile(char *out, size_t room, const et_profile *p)
{
    et_append(out, room, "%s:", p->name);
    for (int i = 0; i < ET_PLACES; i++)
        et_append(out, room, "%s %s %d", i ? "," : "", et_place_name((et_place)i), p->bits[i]);
    char rest[256] = "";
    et_describe_rest(rest, sizeof rest, p);
    et_append(out, room, " bits%s%s", rest[0] ? ", " : "", rest);
}
