/* describe.c: words for cases and elements. See describe.h. */
#include "tools/etref/describe.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

void append(char *out, size_t room, const char *format, ...)
{
    size_t used = strlen(out);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(out + used, room - used, format, arguments);
    va_end(arguments);
}

/* ---- cases ---- */

const char *rule_name(const et_case *c)
{
    static const char *const names[] = {[ET_TC] = "tc", [ET_EC] = "ec", [ET_ET] = "et"};
    return c->layer == ET_DENSE ? "dense" : names[c->rule];
}

const char *gate_name(et_gate gate)
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
    if (c->rule == ET_TC)
        snprintf(out, room, "each token takes its top %zu", c->top_k);
    else if (et_case_routes_by_threshold(c))
        snprintf(out, room, "each expert takes the tokens whose score %s its threshold%s",
                 c->inclusive ? "reaches" : "passes",
                 c->has_capacity && !c->eval ? ", within its capacity" : "");
    else
        snprintf(out, room, "each expert takes the top %zu of every %zu tokens%s", c->target_load,
                 c->pool_tokens, c->rule == ET_ET ? " (warm-up)" : "");
}

void describe_case(char *out, size_t room, const et_case *c)
{
    static const char *const rules[] = {
        [ET_TC] = "token choice", [ET_EC] = "expert choice", [ET_ET] = "expert threshold"};
    char rule[160], shared[64] = "";
    if (c->layer == ET_DENSE) {
        snprintf(out, room, "dense layer: %zu tokens of width %zu, hidden width %zu", c->tokens,
                 c->d_model, c->d_expert);
        return;
    }
    describe_rule(rule, sizeof rule, c);
    if (c->shared) snprintf(shared, sizeof shared, " and a shared one of %zu", c->shared_d_expert);
    snprintf(out, room, "%s, %s: %zu tokens of width %zu; %zu experts of width %zu%s; %s gate; %s",
             rules[c->rule], c->eval ? "evaluation" : "training", c->tokens, c->d_model, c->experts,
             c->d_expert, shared, gate_name(c->gate), rule);
}

double target_load(const et_case *c)
{
    if (c->layer == ET_DENSE) return 0;
    if (c->rule == ET_TC) return (double)c->tokens * (double)c->top_k / (double)c->experts;
    return (double)c->target_load * ((double)c->tokens / (double)c->pool_tokens);
}

bool is_bundle(const et_tensor_file *file)
{
    const char *format = et_tensor_file_metadata(file, "format");
    return format && strcmp(format, "etref-bundle") == 0;
}

/* ---- tensors ---- */

bool is_noise(const char *name)
{
    return strncmp(name, ET_NOISE_PREFIX, strlen(ET_NOISE_PREFIX)) == 0;
}

const et_tensor_doc *tensor_doc_find(const char *name)
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
    for (size_t i = 0; i < count; i++) append(out, room, "%s%zu", i ? "," : "", values[i]);
    append(out, room, "]");
}

void describe_shape(char *out, size_t room, const et_tensor_info *tensor)
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

void describe_place(char *out, size_t room, const et_tensor_info *tensor, size_t index)
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
                 {"R", "row"},         {"B", "block"},        {"1", NULL}};
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
    append(out, room, " (token %d, expert %d)", (int)a->slot_token[slot],
           (int)a->slot_expert[slot]);
}

void describe_element(char *out, size_t room, const et_tensor_info *tensor, size_t index,
                      const et_assignment *a)
{
    const et_tensor_doc *doc = tensor_doc_find(tensor->name);
    char letters[ET_MAX_RANK][12];
    size_t at[ET_MAX_RANK], rank = doc ? split_letters(doc->shape, letters) : 0;
    if (rank != tensor->rank) { /* a dense layer's weights, or a tensor of no bundle */
        describe_place(out, room, tensor, index);
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
        append(out, room, "%s%s %zu", out[0] ? ", " : "", word, at[i]);
        if (strcmp(word, "slot") == 0) append_slot(out, room, at[i], a);
    }
    if (out[0] == '\0') append(out, room, "the only element");
}
