/* witness.c: 10 slots; which tensors a case has, and the whole layer, one part after the other.
 *
 * See witness.h for purpose and source, witness_parts.h for the parts and the letters.
 */
#include "witness_parts.h"

#include <stdlib.h>

static const char *const public_names[] = {
#define AS_NAME(id, name) name,
    PUBLIC_TENSORS(AS_NAME)
#undef AS_NAME
        NULL};

/* 10 ---- Slots: the pairs with z = 1, expert by expert, tokens ascending ---- */

/* Offsets are running sums of loads and fanouts: exclusive, from 0 to the number of slots. */
static void compute_offsets(const witness_case *c, witness *w)
{
    quad **v = w->value;
    for (size_t i = 0; i < c->n; i++)
        v[ROUTE_EXPERT_OFFSETS][i + 1] = v[ROUTE_EXPERT_OFFSETS][i] + v[ROUTE_LOAD][i];
    for (size_t t = 0; t < c->N; t++)
        v[ROUTE_TOKEN_OFFSETS][t + 1] = v[ROUTE_TOKEN_OFFSETS][t] + v[ROUTE_FANOUT][t];
}

/* What a bundle holds of a slot: `width` values of the pair's row in an [N,n,width] array. */
static void copy_slot(const witness_case *c, witness *w, size_t slot, size_t pair)
{
    const struct {
        enum tensor to, from;
        size_t width;
    } table[] = {
        {FWD_SLOT_PRE, PRE, c->h},      {FWD_SLOT_ACT, ACT, c->h},      {FWD_SLOT_OUT, OUT, c->d},
        {BWD_SLOT_PRE, D_PRE, c->h},    {BWD_SLOT_ACT, D_ACT, c->h},    {BWD_SLOT_OUT, D_OUT, c->d},
        {ROUTE_SLOT_WEIGHT, WEIGHT, 1}, {BWD_SLOT_WEIGHT, D_WEIGHT, 1},
        {FWD_SLOT_GATE_PRE, GATE_PRE, gated(c) ? c->h : 0},
        {BWD_SLOT_GATE_PRE, D_GATE_PRE, gated(c) ? c->h : 0},
    };
    for (size_t row = 0; row < sizeof table / sizeof table[0]; row++) {
        size_t width = table[row].width;
        for (size_t j = 0; j < width; j++)
            w->value[table[row].to][slot * width + j] = w->value[table[row].from][pair * width + j];
    }
}

/* Slot number = place in the walk over experts, then tokens. A token meets its experts in
 * ascending order on that walk, so its own list fills up in order: entry number `met` of it. */
static void compute_slots(const witness_case *c, witness *w)
{
    quad **v = w->value;
    size_t slot = 0;
    for (size_t i = 0; i < c->n; i++)
        for (size_t t = 0; t < c->N; t++) {
            if (v[ROUTE_MASK][t * c->n + i] == 0) continue;
            size_t met = (size_t)v[ROUTE_TOKEN_OFFSETS][t];
            for (size_t j = 0; j < i; j++) met += v[ROUTE_MASK][t * c->n + j] != 0;
            v[ROUTE_SLOT_TOKEN][slot] = (quad)t;
            v[ROUTE_SLOT_EXPERT][slot] = (quad)i;
            v[ROUTE_TOKEN_SLOTS][met] = (quad)slot;
            copy_slot(c, w, slot, t * c->n + i);
            slot++;
        }
}

/* ---- Which tensors a case has, and their sizes ---- */

/* Zeroed; at least one element, so that an empty tensor is not NULL. */
static void make(witness *w, enum tensor id, size_t count)
{
    w->count[id] = count;
    w->value[id] = calloc(count > 0 ? count : 1, sizeof(quad));
    if (w->value[id] == NULL) w->out_of_memory = 1;
}

/* Shared by the dense layer and the experts: y, dx, dW; `experts` is 1 for the dense layer. */
static void make_layer(const witness_case *c, witness *w, size_t experts)
{
    make(w, FWD_Y, c->N * c->d);
    make(w, BWD_X, c->N * c->d);
    make(w, BWD_W_UP, experts * c->h * c->d);
    make(w, BWD_W_DOWN, experts * c->d * c->h);
    if (gated(c)) make(w, BWD_W_GATE, experts * c->h * c->d);
    if (!biased(c)) return;
    make(w, BWD_B_UP, experts * c->h);
    make(w, BWD_B_DOWN, experts * c->d);
    if (gated(c)) make(w, BWD_B_GATE, experts * c->h);
}

/* Values of S slots, inside the experts. */
static void make_slot_values(const witness_case *c, witness *w, size_t S)
{
    make(w, FWD_SLOT_PRE, S * c->h);
    make(w, FWD_SLOT_ACT, S * c->h);
    make(w, FWD_SLOT_OUT, S * c->d);
    make(w, BWD_SLOT_PRE, S * c->h);
    make(w, BWD_SLOT_ACT, S * c->h);
    make(w, BWD_SLOT_OUT, S * c->d);
    if (!gated(c)) return;
    make(w, FWD_SLOT_GATE_PRE, S * c->h);
    make(w, BWD_SLOT_GATE_PRE, S * c->h);
}

static void make_slots(const witness_case *c, witness *w, size_t S)
{
    make_slot_values(c, w, S);
    make(w, ROUTE_SLOT_TOKEN, S);
    make(w, ROUTE_SLOT_EXPERT, S);
    make(w, ROUTE_SLOT_WEIGHT, S);
    make(w, ROUTE_TOKEN_SLOTS, S);
    make(w, BWD_SLOT_WEIGHT, S);
}

static void make_shared(const witness_case *c, witness *w)
{
    make(w, FWD_SHARED_PRE, c->N * c->hs);
    make(w, FWD_SHARED_ACT, c->N * c->hs);
    make(w, FWD_SHARED_OUT, c->N * c->d);
    make(w, FWD_SHARED_WEIGHT, c->N);
    make(w, BWD_SHARED_PRE, c->N * c->hs);
    make(w, BWD_SHARED_ACT, c->N * c->hs);
    make(w, BWD_SHARED_OUT, c->N * c->d);
    make(w, BWD_SHARED_WEIGHT, c->N);
    make(w, BWD_SHARED_UP, c->hs * c->d);
    make(w, BWD_SHARED_DOWN, c->d * c->hs);
    if (biased(c)) make(w, BWD_SHARED_B_UP, c->hs);
    if (biased(c)) make(w, BWD_SHARED_B_DOWN, c->d);
    if (biased(c) && gated(c)) make(w, BWD_SHARED_B_GATE, c->hs);
    if (!gated(c)) return;
    make(w, FWD_SHARED_GATE_PRE, c->N * c->hs);
    make(w, BWD_SHARED_GATE_PRE, c->N * c->hs);
    make(w, BWD_SHARED_GATE, c->hs * c->d);
}

static void make_routing(const witness_case *c, witness *w)
{
    make(w, FWD_LOGITS, c->N * c->n);
    make(w, FWD_GATES, c->N * c->n);
    make(w, BWD_LOGITS, c->N * c->n);
    make(w, BWD_W_ROUTER, c->n * c->d);
    make(w, ROUTE_MASK, c->N * c->n);
    if (!c->given) make(w, ROUTE_MARGIN, c->N * c->n);
    make(w, ROUTE_LOAD, c->n);
    make(w, ROUTE_FANOUT, c->N);
    make(w, ROUTE_EXPERT_OFFSETS, c->n + 1);
    make(w, ROUTE_TOKEN_OFFSETS, c->N + 1);
    if (token_choice(c) && !c->given) make(w, ROUTE_TOPK_EXPERT, c->N * c->top_k);
    if (by_threshold(c)) make(w, ROUTE_THRESHOLD, c->n);
    if (expert_choice(c)) {
        size_t pools = c->micro_batches * (real_tokens(c) / c->pool);
        make(w, ROUTE_POOL_CUTOFF, pools * c->n);
        make(w, ROUTE_TOPK_TOKEN, pools * c->n * c->k);
    }
    if (!c->eval && !token_choice(c) && !c->given) {
        make(w, ROUTE_CUTOFF, c->n);
        make(w, STATE_EMA, c->n);
        make(w, STATE_UPDATES, 1);
    }
    if (moves_bias(c)) make(w, STATE_BIAS, c->n);
    if (has_aux_loss(c)) make(w, LOSS_AUX, 1);
    if (has_z_loss(c)) make(w, LOSS_Z, 1);
}

/* The arrays over all pairs that no bundle holds. */
static void make_pairs(const witness_case *c, witness *w)
{
    size_t pairs = c->N * c->n;
    make(w, INPUT, pairs * c->d);
    make(w, D_INPUT, pairs * c->d);
    make(w, PRE, pairs * c->h);
    make(w, GATE_PRE, pairs * c->h);
    make(w, D_GATE_PRE, pairs * c->h);
    make(w, ACT, pairs * c->h);
    make(w, OUT, pairs * c->d);
    make(w, D_PRE, pairs * c->h);
    make(w, D_ACT, pairs * c->h);
    make(w, D_OUT, pairs * c->d);
    make(w, WEIGHT, pairs);
    make(w, D_WEIGHT, pairs);
    make(w, D_GATE, pairs);
    make(w, CHOSEN, pairs);
    make(w, ANCHOR, c->N);
    make(w, D_ANCHOR, c->N);
    w->score = calloc(pairs, sizeof *w->score);
    w->rank = calloc(pairs, sizeof *w->rank);
    if (w->score == NULL || w->rank == NULL) w->out_of_memory = 1;
}

static void make_tensors(const witness_case *c, witness *w)
{
    make_layer(c, w, c->dense ? 1 : c->n);
    make(w, X_ROW, c->N * c->d);
    if (c->dense) {
        make_slot_values(c, w, c->N);
        return;
    }
    make_routing(c, w);
    make_pairs(c, w);
    if (c->hs > 0) make_shared(c, w);
}

/* ---- The whole layer ---- */

static void compute_moe(const witness_case *c, witness *w)
{
    witness_route(c, w);
    witness_moe(c, w);
    compute_offsets(c, w);
    make_slots(c, w, (size_t)w->value[ROUTE_EXPERT_OFFSETS][c->n]);
    if (!w->out_of_memory) compute_slots(c, w);
}

/* 1 if `word` is in the NULL-ended list. */
static int known(const char *word, const char *const *list)
{
    while (*list != NULL && !is(word, *list)) list++;
    return *list != NULL;
}

static int known_words(const witness_case *c)
{
    static const char *const rules[] = {"tc", "ec", "et", NULL};
    static const char *const gates[] = {
        "sigmoid",        "relu", "softmax", "softmax_anchor", "softmax_anchor_out",
        "softmax_tokens", NULL};
    static const char *const norms[] = {"none", "fanout", "sum", NULL};
    static const char *const balances[] = {"none",     "aux",          "aux_error",
                                           "lossfree", "proportional", NULL};
    static const char *const activations[] = {"relu2", "swiglu", "gelu", "gelu_tanh", NULL};
    if (!known(c->activation, activations)) return 0;
    return c->dense || (known(c->rule, rules) && known(c->gate, gates) && known(c->norm, norms) &&
                        known(c->balance, balances));
}

witness *witness_compute(const witness_case *c)
{
    if (!known_words(c)) return NULL;
    witness *w = calloc(1, sizeof *w);
    if (w == NULL) return NULL;
    make_tensors(c, w);
    if (!w->out_of_memory) {
        if (c->dense)
            witness_dense(c, w);
        else
            compute_moe(c, w);
    }
    if (w->out_of_memory) {
        witness_free(w);
        return NULL;
    }
    return w;
}

const quad *witness_tensor(const witness *w, const char *name, size_t *count)
{
    for (size_t id = 0; id < PUBLIC_COUNT; id++) {
        if (!is(name, public_names[id]) || w->value[id] == NULL) continue;
        if (count != NULL) *count = w->count[id];
        return w->value[id];
    }
    return NULL;
}

const char *const *witness_names(void)
{
    return public_names;
}

void witness_free(witness *w)
{
    if (w == NULL) return;
    for (size_t id = 0; id < TENSOR_COUNT; id++) free(w->value[id]);
    free(w->score);
    free(w->rank);
    free(w);
}
