/* tensors.c: the table of a bundle's tensors: name, type, shape, place in the step, meaning.
 *
 * Everything that walks a bundle (writing, reading, comparing, documentation) walks this table, in
 * the order of the mathematics. A tensor belongs to a bundle if its array exists in the step.
 *
 * Shapes are written in letters: N tokens, d width, h and hs hidden widths, n routed experts, S
 * slots, K choices of a token (tc), k choices of an expert in a pool (ec), pools, B blocks and R
 * padded rows of a block layout. A dense layer has one "expert" and no leading n.
 */
#include "ref/oracle/tensors.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

typedef struct row {
    et_tensor_doc doc;
    size_t offset; /* of the array's pointer in et_step */
} row;

#define AT(field) offsetof(et_step, field)

static const row table[] = {
    {{"in.x", "case", "[N,d]", "layer input x", true}, AT(in.x)},
    {{"in.dy", "case", "[N,d]", "upstream gradient dL/dy", true}, AT(in.dy)},
    {{"in.w_router", "case", "[n,d]", "router W_r", true}, AT(in.router)},
    {{"in.w_up", "case", "[n,h,d]", "experts' up-projections W_up", true}, AT(in.up)},
    {{"in.w_down", "case", "[n,d,h]", "experts' down-projections W_down", true}, AT(in.down)},
    {{"in.shared_up", "case", "[hs,d]", "shared expert's W_up", true}, AT(in.shared_up)},
    {{"in.shared_down", "case", "[d,hs]", "shared expert's W_down", true}, AT(in.shared_down)},
    {{"in.ema", "F64", "[n]", "raw moving average before the step", true}, AT(in.ema)},
    {{"in.bias", "F64", "[n]", "selection bias b before the step", true}, AT(in.bias)},
    {{"in.load", "F64", "[n]", "mean load per micro-batch over all ranks", true}, AT(in.load)},

    {{"fwd.logits", "F64", "[N,n]", "r = x W_r'", true}, AT(fwd.logits)},
    {{"fwd.gates", "F64", "[N,n]", "p = gate(r), over all experts", false}, AT(fwd.gates)},

    {{"route.threshold", "F64", "[n]", "threshold c used by this step", true}, AT(route.threshold)},
    {{"route.mask", "U8", "[N,n]", "assignment z", true}, AT(route.mask)},
    {{"route.margin", "F64", "[N,n]", "distance of each decision to its boundary", true},
     AT(route.margin)},
    {{"route.cutoff", "F64", "[n]", "this batch's cutoff: mean k-th largest score", true},
     AT(route.cutoff)},
    {{"route.pool_cutoff", "F64", "[pools,n]", "k-th largest score of each pool", true},
     AT(route.pool_cutoff)},
    {{"route.topk_expert", "I32", "[N,K]", "each token's experts by descending score", true},
     AT(route.topk_expert)},
    {{"route.topk_token", "I32", "[pools,n,k]", "each expert's tokens by descending score", true},
     AT(route.topk_token)},
    {{"route.load", "I32", "[n]", "slots of each expert", true}, AT(assignment.load)},
    {{"route.fanout", "I32", "[N]", "slots of each token", true}, AT(assignment.fanout)},
    {{"route.expert_offsets", "I32", "[n+1]", "first slot of each expert, then S", true},
     AT(assignment.expert_offsets)},
    {{"route.token_offsets", "I32", "[N+1]", "first entry of each token in token_slots, then S",
      true},
     AT(assignment.token_offsets)},
    {{"route.slot_token", "I32", "[S]", "token of each slot", true}, AT(assignment.slot_token)},
    {{"route.slot_expert", "I32", "[S]", "expert of each slot", true}, AT(assignment.slot_expert)},
    {{"route.token_slots", "I32", "[S]", "slots token by token, experts ascending", true},
     AT(assignment.token_slots)},
    {{"route.slot_weight", "F64", "[S]", "weight w with which f(x) enters y", true},
     AT(fwd.slot_weight)},

    {{"layout.padded_offsets", "I32", "[n+1]", "first padded row of each expert", true},
     AT(layout.padded_offsets)},
    {{"layout.padded_slot", "I32", "[R]", "slot in each padded row, or -1", true},
     AT(layout.padded_slot)},
    {{"layout.block_expert", "I32", "[B]", "expert of each block", true}, AT(layout.block_expert)},

    {{"fwd.slot_pre", "F64", "[S,h]", "H = x W_up'", false}, AT(fwd.slot_pre)},
    {{"fwd.slot_act", "F64", "[S,h]", "A = relu(H)^2", false}, AT(fwd.slot_act)},
    {{"fwd.slot_out", "F64", "[S,d]", "f(x) = A W_down', before weighting", false},
     AT(fwd.slot_out)},
    {{"fwd.shared_pre", "F64", "[N,hs]", "H of the shared expert", false}, AT(fwd.shared_pre)},
    {{"fwd.shared_act", "F64", "[N,hs]", "A of the shared expert", false}, AT(fwd.shared_act)},
    {{"fwd.shared_out", "F64", "[N,d]", "f_shared(x)", false}, AT(fwd.shared_out)},
    {{"fwd.shared_weight", "F64", "[N]", "s, the shared expert's weight", false},
     AT(fwd.shared_weight)},
    {{"fwd.y", "F64", "[N,d]", "y = s f_shared(x) + sum over slots of w f(x)", true}, AT(fwd.y)},
    {{"loss.aux", "F64", "[1]", "load-balancing loss, without its coefficient", true},
     AT(loss_aux)},
    {{"loss.z", "F64", "[1]", "z-loss, without its coefficient", true}, AT(loss_z)},

    {{"bwd.slot_weight", "F64", "[S]", "dw = <dy, f(x)>", false}, AT(bwd.slot_weight)},
    {{"bwd.slot_out", "F64", "[S,d]", "dO = w dy", false}, AT(bwd.slot_out)},
    {{"bwd.slot_act", "F64", "[S,h]", "dA = dO W_down", false}, AT(bwd.slot_act)},
    {{"bwd.slot_pre", "F64", "[S,h]", "dH = dA * 2 relu(H)", false}, AT(bwd.slot_pre)},
    {{"bwd.shared_weight", "F64", "[N]", "ds = <dy, f_shared(x)>", false}, AT(bwd.shared_weight)},
    {{"bwd.shared_out", "F64", "[N,d]", "dO of the shared expert: s dy", false},
     AT(bwd.shared_out)},
    {{"bwd.shared_act", "F64", "[N,hs]", "dA of the shared expert", false}, AT(bwd.shared_act)},
    {{"bwd.shared_pre", "F64", "[N,hs]", "dH of the shared expert", false}, AT(bwd.shared_pre)},
    {{"bwd.logits", "F64", "[N,n]", "dr, through gates and losses", true}, AT(bwd.logits)},
    {{"bwd.x", "F64", "[N,d]", "dL/dx", true}, AT(bwd.x)},
    {{"bwd.w_router", "F64", "[n,d]", "dW_r = dr' x", true}, AT(bwd.router)},
    {{"bwd.w_up", "F64", "[n,h,d]", "dW_up = sum of dH' x", true}, AT(bwd.up)},
    {{"bwd.w_down", "F64", "[n,d,h]", "dW_down = sum of dO' A", true}, AT(bwd.down)},
    {{"bwd.shared_up", "F64", "[hs,d]", "dW_up of the shared expert", true}, AT(bwd.shared_up)},
    {{"bwd.shared_down", "F64", "[d,hs]", "dW_down of the shared expert", true},
     AT(bwd.shared_down)},

    {{"state.ema", "F64", "[n]", "raw moving average after the step", true}, AT(state_ema)},
    {{"state.updates", "I32", "[1]", "updates behind it", true}, AT(state_updates)},
    {{"state.bias", "F64", "[n]", "selection bias after the step", true}, AT(state_bias)},

    {{"metric.usage", "F64", "[n]", "load / N", false}, AT(metric.usage)},
    {{"metric.fanout_histogram", "F64", "[n+1]", "tokens with 0, 1, .. n experts", false},
     AT(metric.fanout_histogram)},
    {{"metric.cutoff_gap", "F64", "[n]", "batch cutoff - threshold of the moving average", false},
     AT(metric.cutoff_gap)},
    {{"metric.cutoff_gap_abs", "F64", "[n]", "its absolute value", false},
     AT(metric.cutoff_gap_abs)},
    {{"metric.raw_usage", "F64", "[n]", "tokens above the threshold / N, before capacity", false},
     AT(metric.raw_usage)},
    {{"metric.saturation", "F64", "[1]", "tokens dropped by the upper bound / tokens passed",
      false},
     AT(metric.saturation)},
    {{"metric.starvation", "F64", "[1]", "places padded / places of the lower bound", false},
     AT(metric.starvation)},
    {{"metric.overflow_rate", "F64", "[1]", "share of experts above the upper bound", false},
     AT(metric.overflow_rate)},
    {{"metric.underflow_rate", "F64", "[1]", "share of experts below the lower bound", false},
     AT(metric.underflow_rate)},
    {{"metric.logit_mean", "F64", "[1]", "mean of the logits", false}, AT(metric.logit_mean)},
    {{"metric.logit_std", "F64", "[1]", "their standard deviation", false}, AT(metric.logit_std)},
    {{"metric.gate_mean", "F64", "[1]", "mean of the gate values on slots", false},
     AT(metric.gate_mean)},
    {{"metric.gate_std", "F64", "[1]", "their standard deviation", false}, AT(metric.gate_std)},
};

enum { ROWS = sizeof table / sizeof *table };

const et_tensor_doc *et_tensor_doc_at(size_t index)
{
    return index < ROWS ? &table[index].doc : NULL;
}

size_t et_tensor_row(const char *name)
{
    size_t i = 0;
    while (i < ROWS && strcmp(table[i].doc.name, name) != 0) i++;
    return i;
}

const et_tensor_doc *et_tensor_doc_find(const char *name)
{
    return et_tensor_doc_at(et_tensor_row(name));
}

const et_tensor_doc *et_noise_doc_find(const char *name)
{
    size_t prefix = strlen(ET_NOISE_PREFIX);
    if (strncmp(name, ET_NOISE_PREFIX, prefix) != 0) return NULL;
    const et_tensor_doc *doc = et_tensor_doc_find(name + prefix);
    bool real = doc != NULL && strcmp(doc->type, "F64") == 0;
    return real && strncmp(doc->name, "in.", 3) != 0 ? doc : NULL;
}

/* ---- from letters to sizes ---- */

bool et_rows_are(const char *shape, const char *letter)
{
    size_t length = strlen(letter);
    return strcspn(shape + 1, ",]") == length && memcmp(shape + 1, letter, length) == 0;
}

static size_t size_of_letter(const et_step *s, const char *letter, size_t length)
{
    const et_case *c = &s->c;
    const struct {
        const char *letter;
        size_t size;
    } sizes[] = {
        {"N", c->tokens},
        {"d", c->d_model},
        {"h", c->d_expert},
        {"hs", c->shared_d_expert},
        {"n", c->experts},
        {"S", c->layer == ET_MOE ? s->assignment.slots : c->tokens},
        {"K", c->top_k},
        {"k", c->target_load},
        {"pools", c->pool_tokens ? c->tokens / c->pool_tokens : 0},
        {"B", s->layout.blocks},
        {"R", s->layout.blocks * s->layout.block},
        {"n+1", c->experts + 1},
        {"N+1", c->tokens + 1},
        {"1", 1},
    };
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        if (strlen(sizes[i].letter) == length && memcmp(sizes[i].letter, letter, length) == 0)
            return sizes[i].size;
    return 0;
}

/* The size of a dimension, given its letters. */
typedef size_t sizer(const et_step *s, const char *letter, size_t length);

/* Fills in rank and shape from "[n,h,d]". */
static void measure(const et_step *s, const char *shape, sizer *size, et_tensor_out *out)
{
    bool dense = s->c.layer == ET_DENSE;
    for (const char *at = shape + 1; *at; at++) {
        size_t length = strcspn(at, ",]");
        bool experts = length == 1 && *at == 'n';
        if (!(dense && experts)) out->shape[out->rank++] = size(s, at, length);
        at += length;
    }
}

/* Slots, blocks and padded rows are as many as a routing makes them, and a candidate may have its
 * own: at least none, at most every token on every expert. Of the rest, what `s` has. */
static bool is_routed(const et_step *s, const char *letter, size_t length)
{
    return s->c.layer == ET_MOE && length == 1 && strchr("SBR", *letter) != NULL;
}

static size_t least(const et_step *s, const char *letter, size_t length)
{
    return is_routed(s, letter, length) ? 0 : size_of_letter(s, letter, length);
}

static size_t most(const et_step *s, const char *letter, size_t length)
{
    size_t tile = s->layout.block, slots = s->c.tokens * s->c.experts;
    size_t blocks = tile ? slots / tile + s->c.experts : 0;
    if (!is_routed(s, letter, length)) return size_of_letter(s, letter, length);
    return *letter == 'S' ? slots : *letter == 'B' ? blocks : blocks * tile;
}

bool et_tensor_fits(const et_step *s, const et_tensor_doc *doc, size_t rank, const size_t *shape)
{
    et_tensor_out low = {0}, high = {0};
    measure(s, doc->shape, least, &low);
    measure(s, doc->shape, most, &high);
    bool fits = rank == low.rank;
    for (size_t i = 0; fits && i < rank; i++)
        fits = shape[i] >= low.shape[i] && shape[i] <= high.shape[i];
    return fits;
}

void et_shape_print(size_t rank, const size_t *shape, char *to, size_t room)
{
    size_t used = (size_t)snprintf(to, room, "[");
    for (size_t i = 0; i < rank && used < room; i++)
        used += (size_t)snprintf(to + used, room - used, i ? ",%zu" : "%zu", shape[i]);
    if (used < room) snprintf(to + used, room - used, "]");
}

/* ---- types ---- */

static et_dtype file_type(const et_step *s, const char *type)
{
    if (strcmp(type, "U8") == 0) return ET_U8;
    if (strcmp(type, "I32") == 0) return ET_I32;
    if (strcmp(type, "case") == 0) return s->c.precision;
    return sizeof(et_real) == sizeof(double) ? ET_F64
                                             : ET_F32; /* a float build has no more to say */
}

static et_source memory_type(const char *type)
{
    if (strcmp(type, "U8") == 0) return ET_FROM_U8;
    if (strcmp(type, "I32") == 0) return ET_FROM_I32;
    return sizeof(et_real) == sizeof(double) ? ET_FROM_F64 : ET_FROM_F32;
}

size_t et_step_tensors(const et_step *s, bool lean, et_tensor_out out[ET_MAX_STEP_TENSORS])
{
    size_t count = 0;
    for (size_t i = 0; i < ROWS; i++) {
        const et_tensor_doc *doc = &table[i].doc;
        const void *values;
        memcpy(&values, (const char *)s + table[i].offset, sizeof values);
        if (values == NULL || (lean && !doc->lean)) continue;
        out[count] = (et_tensor_out){.name = doc->name,
                                     .dtype = file_type(s, doc->type),
                                     .values = values,
                                     .source = memory_type(doc->type)};
        measure(s, doc->shape, size_of_letter, &out[count++]);
    }
    return count;
}

static size_t count_of(const et_tensor_out *t)
{
    size_t count = 1;
    for (size_t i = 0; i < t->rank; i++) count *= t->shape[i];
    return count;
}

/* The first element that is no number, or `count`. */
static size_t find_no_number(const et_tensor_out *t, size_t count)
{
    bool margin = strcmp(t->name, "route.margin") == 0;
    const et_real *values = t->values;
    size_t i = 0;
    while (i < count && (isfinite(values[i]) || (margin && !isnan(values[i])))) i++;
    return i;
}

et_status et_step_check_values(const et_step *s, et_error *error)
{
    et_tensor_out tensors[ET_MAX_STEP_TENSORS];
    size_t have = et_step_tensors(s, false, tensors);
    if (s->rounding != NULL) return ET_OK; /* a kernel may overflow */
    for (size_t i = 0; i < have; i++) {
        const et_tensor_out *t = &tensors[i];
        size_t count = count_of(t), at;
        if (t->source != memory_type("F64")) continue; /* counts and masks */
        if ((at = find_no_number(t, count)) == count) continue;
        return et_fail(error, ET_EINVAL,
                       "case '%s': %s[%zu] is %s: what comes before it leaves the range of %s; "
                       "scale in.* down",
                       s->c.name, t->name, at,
                       isnan(((const et_real *)t->values)[at]) ? "NaN" : "infinite", ET_REAL_NAME);
    }
    return ET_OK;
}

double et_tensor_element(const et_tensor_out *t, size_t i)
{
    switch (t->source) {
    case ET_FROM_F64: return ((const double *)t->values)[i];
    case ET_FROM_F32: return (double)((const float *)t->values)[i];
    case ET_FROM_I32: return ((const int32_t *)t->values)[i];
    case ET_FROM_U8: return ((const uint8_t *)t->values)[i];
    }
    return 0;
}
