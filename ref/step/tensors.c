/* tensors.c: the table of a bundle's tensors: what is to be known of each (tensors.h).
 *
 * Everything that walks a bundle (writing, reading, comparing, documentation) walks this table, in
 * the order of the mathematics. A tensor belongs to a bundle if its array exists in the step.
 */
#include "ref/step/tensors.h"
#include "ref/step/case_kinds.h"

#include <math.h>
#include <string.h>

/* ---- the cases that have a tensor ---- */

static bool has_x(const et_case *c)
{
    return !is_attention(c) && !is_optimiser(c);
}

static bool has_y(const et_case *c)
{
    return !is_cross_entropy(c) && !is_optimiser(c);
}

static bool given_load(const et_case *c)
{
    return is_moe(c) && c->global_load;
}

static bool decides(const et_case *c)
{
    return is_moe(c) && !c->given;
}

static bool chooses_experts(const et_case *c)
{
    return is_tc(c) && decides(c);
}

static bool moves_ema(const et_case *c)
{
    return is_ec_or_et(c) && decides(c) && !c->eval;
}

static bool moves_bias(const et_case *c)
{
    return has_bias(c) && decides(c) && !c->eval;
}

static bool computes_aux(const et_case *c)
{
    return has_aux_loss(c) && !c->eval;
}

static bool computes_z(const et_case *c)
{
    return is_moe(c) && !c->eval && c->z_loss_coef != 0;
}

static bool clamps(const et_case *c)
{
    return et_case_routes_by_threshold(c) && c->has_capacity && !c->eval;
}

static bool moves_ranks(const et_case *c)
{
    return is_dp(c) && moves_ema(c);
}

static bool shares_gating_ranks(const et_case *c)
{
    return is_ep(c) && has_shared_gating(c);
}

static bool shares_ranks(const et_case *c)
{
    return is_ep(c) && c->shared;
}

enum { FULL = false, LEAN = true };

#define FROM(...)                                                                                  \
    {                                                                                              \
        __VA_ARGS__                                                                                \
    }
#define ON_INPUT(id) (ET_TENSORS + (id))
#define BY_ANCHOR(id) (2 * ET_TENSORS + (id))
#define T(id, name, type, shape, lean, field, meaning, has, place, stage, sees, starts)            \
    [ET_##id] = {{name, type, shape, meaning, lean},                                               \
                 offsetof(et_step, field),                                                         \
                 has,                                                                              \
                 ET_##place,                                                                       \
                 ET_AT_##stage,                                                                    \
                 ET_SEES_##sees,                                                                   \
                 starts},

const et_tensor_row et_tensors[ET_TENSORS] = {
    [ET_NO_TENSOR] = {.place = ET_ACCUMULATOR, .stage = ET_STAGES, .sees = ET_SEES_ALL},
#include "ref/step/tensors.def"
};

const et_tensor_doc *et_tensor_doc_at(size_t index)
{
    return index < ET_TENSORS - 1 ? &et_tensors[index + 1].doc : NULL;
}

et_tensor_id et_tensor_find(const char *name)
{
    size_t id = ET_TENSORS - 1;
    while (id > ET_NO_TENSOR && strcmp(et_tensors[id].doc.name, name) != 0) id--;
    return (et_tensor_id)id;
}

const et_tensor_doc *et_tensor_doc_find(const char *name)
{
    et_tensor_id id = et_tensor_find(name);
    return id == ET_NO_TENSOR ? NULL : &et_tensors[id].doc;
}

et_tensor_id et_start_in(const et_case *c, int start)
{
    bool in_case[] = {true, weighs_inputs(c), c->gate == ET_GATE_SOFTMAX_ANCHOR && c->shared};
    return in_case[start / ET_TENSORS] ? (et_tensor_id)(start % ET_TENSORS) : ET_NO_TENSOR;
}

bool et_is_input(et_tensor_id id)
{
    return et_tensors[id].stage == ET_AT_INPUTS;
}

bool et_is_noise(const char *name)
{
    bool alone = strncmp(name, ET_NOISE_ALONE, strlen(ET_NOISE_ALONE)) == 0;
    size_t prefix = strlen(alone ? ET_NOISE_ALONE : ET_NOISE_PREFIX);
    if (strcmp(name, ET_NOISE_BARS) == 0) return true;
    if (strncmp(name, ET_NOISE_PREFIX, strlen(ET_NOISE_PREFIX)) != 0) return false;
    et_tensor_id id = et_tensor_find(name + prefix);
    return id != ET_NO_TENSOR && !et_is_input(id) && strcmp(et_tensors[id].doc.type, "F64") == 0;
}

/* ---- from letters to sizes ---- */

bool et_rows_are(const char *shape, const char *letter)
{
    size_t length = strlen(letter);
    return strcspn(shape + 1, ",]") == length && memcmp(shape + 1, letter, length) == 0;
}

/* A word, by its first two letters: pools; of several ranks, local, listed, ranks, received, copies, top, padded, sent. */
static size_t size_of_word(const et_step *s, const char *word)
{
    const et_case *c = &s->c;
    const et_parallel_plan *p = &s->plan;
    bool ranks = c->ranks > 0;
    switch (*word) {
    case 'l': return word[1] == 'i' ? p->slots : ranks ? c->experts / c->ranks : 0;
    case 'r': return word[1] == 'e' ? p->slots : c->ranks;
    case 'p':
        return word[1] == 'a'   ? p->padded
               : c->pool_tokens ? c->micro_batches * pools_of_batch(c)
                                : 0;
    case 'c': return p->copies;
    case 't': return p->widest;
    default: return p->slots;
    }
}

/* One letter: N; two: hs; more: a word; with "+1": N+1. Views are made by the million, so no list is searched. */
static size_t size_of_letter(const et_step *s, const char *letter, size_t length)
{
    const et_case *c = &s->c;
    size_t more = length > 2 && letter[length - 2] == '+' ? 1 : 0;
    if (length > 3) return size_of_word(s, letter) + more;
    switch (*letter) {
    case 'N': return c->tokens + more;
    case 'n': return c->experts + more;
    case 'd': return c->d_model;
    case 'h': return length == 2 ? c->shared_d_expert : c->d_expert;
    case 'S': return is_moe(c) ? s->assignment.slots : c->tokens;
    case 'K': return c->top_k;
    case 'k': return c->target_load;
    case 'H': return c->heads;
    case 'q': return c->heads ? (c->heads + 2 * c->kv_heads) * (c->d_model / c->heads) : 0;
    case 'T': return c->sequence;
    case 'b': return c->sequence ? c->tokens / c->sequence : 0; /* sequences */
    case 'V': return c->vocab;
    case 'B': return s->layout.blocks;
    case 'R': return s->layout.blocks * s->layout.block;
    case '1': return 1;
    default: return 0;
    }
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

/* Slots, blocks, padded rows and copies are as many as a routing makes them, and a candidate may have its
 * own: at least none, at most every token on every expert. Of the rest, what `s` has. */
static bool is_routed(const et_step *s, const char *letter, size_t length)
{
    if (s->c.layer != ET_MOE) return false;
    return length == 1 ? strchr("SBR", *letter) != NULL
                       : length > 3 && strncmp(letter, "local", 5) != 0 &&
                             strncmp(letter, "ranks", 5) != 0 && strncmp(letter, "pools", 5) != 0;
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
    return *letter == 'B' ? blocks : *letter == 'R' ? blocks * tile : slots + (*letter == 'c');
}

bool et_tensor_fits(const et_step *s, const et_tensor_doc *doc, size_t rank, const size_t *shape)
{
    et_tensor_out low = {0}, high = {0};
    measure(s, doc->shape, least, &low);
    measure(s, doc->shape, most, &high);
    if (rank == 0 && low.rank == 1) return low.shape[0] == 1 && high.shape[0] == 1; /* a scalar */
    bool fits = rank == low.rank;
    for (size_t i = 0; fits && i < rank; i++)
        fits = shape[i] >= low.shape[i] && shape[i] <= high.shape[i];
    return fits;
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

const void *et_tensor_values(const et_step *s, et_tensor_id id)
{
    const void *values = NULL;
    if (id != ET_NO_TENSOR) memcpy(&values, (const char *)s + et_tensors[id].offset, sizeof values);
    return values;
}

et_tensor_out et_tensor_view(const et_step *s, et_tensor_id id)
{
    const et_tensor_row *row = &et_tensors[id];
    if (id == ET_NO_TENSOR) return (et_tensor_out){.name = ""};
    et_tensor_out view = {.name = row->doc.name,
                          .dtype = file_type(s, row->doc.type),
                          .source = memory_type(row->doc.type),
                          .values = et_tensor_values(s, id)};
    measure(s, row->doc.shape, size_of_letter, &view);
    return view;
}

size_t et_step_tensors(const et_step *s, bool lean, et_tensor_out out[ET_MAX_STEP_TENSORS])
{
    size_t count = 0;
    for (et_tensor_id id = ET_NO_TENSOR + 1; id < ET_TENSORS; id++) {
        if (lean && !et_tensors[id].doc.lean) continue;
        if (et_tensor_values(s, id)) out[count++] = et_tensor_view(s, id);
    }
    return count;
}

/* The first element that is no number, or `count`. */
static size_t find_no_number(const et_real *values, size_t count, et_tensor_id id)
{
    size_t i = 0;
    bool margin = id == ET_ROUTE_MARGIN;
    while (i < count && (isfinite(values[i]) || (margin && !isnan(values[i])))) i++;
    return i;
}

et_status et_step_check_values(const et_step *s, et_error *error)
{
    if (s->rounding != NULL) return ET_OK; /* a kernel may overflow */
    for (et_tensor_id id = ET_NO_TENSOR + 1; id < ET_TENSORS; id++) {
        et_tensor_out t = et_tensor_view(s, id);
        if (!t.values || !et_tensor_is_real(&t)) continue;
        size_t count = et_tensor_count(&t), at = find_no_number(t.values, count, id);
        if (at == count) continue;
        return et_fail(error, ET_EINVAL,
                       "case '%s': %s[%zu] is %s: what comes before it leaves the range of %s; "
                       "scale in.* down",
                       s->c.name, t.name, at,
                       isnan(((const et_real *)t.values)[at]) ? "NaN" : "infinite", ET_REAL_NAME);
    }
    return ET_OK;
}
