/* gpt.h: a small language model around the feed-forward layers, every gradient by hand.
 *
 *     x = norm(wte[token])
 *     for each layer:   x += attention(norm(x)) w_o'      x += ffn(norm(x))
 *     logits = cap tanh(norm(x) head' / cap)              loss = mean over tokens of -log softmax
 *
 * attention: [q;k;v] = norm(x) w_qkv', RoPE on q and k, then a norm of each head (QK-norm), then
 * causal softmax(q k'/sqrt(e)) v. ffn: dense in the first layer, elsewhere the layer under study,
 * which is dense or one of TC, EC, ET (case.h). No biases; wte and head are two matrices.
 *
 * A step takes M micro-batches of B sequences of T tokens, with gradients averaged; then gradients
 * are clipped, AdamW moves wte, head and routers, Muon every other matrix, and the routers' state
 * moves at the end. What is computed depends on configuration, parameters and tokens alone; for a
 * given number of threads always the same bits, in the plain engine for any.
 *
 * Memory: all arrays stand in one block, taken by et_gpt_create, and are linear in tokens. For
 * slots it holds what the rule can need at most: pages that no step has touched cost nothing. A
 * dense step takes no memory; routing and MoE layers take working rows of their own, and give them
 * back.
 *
 * Source: arXiv:2603.11535, appendices B and C, and the released code (nanochat's model).
 */
#ifndef ETREF_GPT_H
#define ETREF_GPT_H

#include "etref/case.h"
#include "etref/optimizer.h"
#include "etref/rounding.h"

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

enum { ET_MAX_LAYERS = 1000 };

typedef enum et_muon_grouping {
    ET_MUON_EACH,   /* every expert's matrix is orthogonalised by itself */
    ET_MUON_STACKED /* all experts' as one, rows on top of each other (released, for TC) */
} et_muon_grouping;

typedef struct et_gpt_config {
    et_engine engine;
    size_t vocab, d_model, layers;         /* V, d, L */
    size_t heads, kv_heads, head_dim;      /* Hq, Hkv, e; e even */
    size_t sequence, batch, micro_batches; /* T, B, M */
    size_t d_dense;                        /* hidden width of dense layers */
    bool first_dense;                      /* layer 0 is dense, whatever the others are */
    double rms_eps, rope_base, softcap;    /* softcap 0: none */
    /* The layer under study, of one micro-batch. layer, rule, and what these need; its name,
     * tokens, d_model, micro_batches, step, mode, ema_updates, precision and input are the model's
     * to say. 0 in granularity, pool_tokens, target_load, shared_d_expert: the default of case.h. */
    et_case ffn;
    double beta1, beta2, eps;                /* AdamW */
    double rate_wte, rate_head, rate_router; /* AdamW's learning rates */
    double rate_muon;
    double momentum_first, momentum_last; /* Muon's, over momentum_ramp steps */
    size_t momentum_ramp;
    et_muon_grouping grouping;
    double clip;          /* of the gradients' norm; 0: none */
    et_schedule schedule; /* of all learning rates */
} et_gpt_config;

/* The setup of the paper's miniature, for a width d: heads of 64 (or one), T 256, B 8, M 1, V 256,
 * 4 layers, the first dense with 4d; 16 experts and a shared one of 2d under ET with beta 0.999;
 * the paper's optimisers, clip 1, rates to 0 over the last fifth of `steps`. */
et_gpt_config et_gpt_default(size_t d_model, size_t steps);

/* One matrix or vector of the model: a parameter, or the state of a router. */
typedef struct et_gpt_tensor {
    char name[40]; /* "wte", "layers.1.w_up" */
    size_t rank, shape[3], count;
    et_real *value;
    et_real *gradient;       /* NULL of a state */
    et_real *first, *second; /* moments: AdamW's m and v; Muon's m and NULL; of a state NULL */
} et_gpt_tensor;

typedef struct et_gpt et_gpt;

/* A configuration from a JSON object of any of these fields, by name: the members above, with
 * engine plain|blas, grouping each|stacked, the schedule's as steps, warmup, cooldown and last, and
 * ffn an object of a case's fields. What is not there is et_gpt_default's for the d_model and steps
 * that are, and head_dim = d_model / heads, kv_heads = heads. `where` begins the message. ET_EINVAL
 * names an unknown field, or the field, its value and what is allowed; ET_ENOMEM. On failure *c is
 * as it was. */
et_status et_gpt_config_parse(et_gpt_config *c, const char *json, size_t length, const char *where,
                              et_error *error);

/* One line of JSON with every field, such that parsing it gives the same configuration. Allocated;
 * the caller frees it. ET_EINVAL as et_gpt_create; ET_ENOMEM. */
et_status et_gpt_config_print(char **json, const et_gpt_config *c, et_error *error);

/* *g: a model with parameters of 0. ET_EINVAL names what is wrong with the configuration.
 * ET_ENOMEM: no memory, or more than max_bytes (0: no limit) for its arrays. On success the caller
 * frees it. */
et_status et_gpt_create(et_gpt **g, const et_gpt_config *config, size_t max_bytes, et_error *error);
void et_gpt_free(et_gpt *g); /* accepts NULL */

/* The configuration, with its defaults filled in; and the block's size. */
const et_gpt_config *et_gpt_configuration(const et_gpt *g);
size_t et_gpt_bytes(const et_gpt *g);

/* The tensors in order: parameters and states; NULL past the end. What they point to may be
 * changed. */
et_gpt_tensor *et_gpt_tensor_at(et_gpt *g, size_t index);

/* wte N(0,1); head, w_o and every w_down 0; routers N(0, 1/d); other matrices N(0, s^2), s =
 * min(1, sqrt(rows/columns)) / sqrt(columns); states 0. Of (seed, tensor's name): random.h. */
void et_gpt_initialise(et_gpt *g, uint64_t seed);

/* Steps that have been taken, and updates behind the EMA: what a checkpoint holds beside the
 * tensors. */
typedef struct et_gpt_progress {
    size_t steps, ema_updates;
} et_gpt_progress;
et_gpt_progress *et_gpt_progress_of(et_gpt *g);

/* A kernel's roundings from now on, of forward and backward passes; NULL: none. */
void et_gpt_set_rounding(et_gpt *g, const et_rounding *rounding);

/* The parameter whose gradient is largest beside its own size, and by how much: where a step that
 * went wrong is looked at first. */
const et_gpt_tensor *et_gpt_loudest(const et_gpt *g, double *ratio);

/* ---- passes ---- */

/* tokens [B,T+1]: inputs are the first T of a row, targets the last T. *loss out: the mean in nats.
 * logits [B T,V] out, or NULL. eval: routers as in evaluation: causal, no capacity, no losses. ET_EINVAL: a token out of range; a logit of a router, or the loss, that is not finite:
 * the message names the first tensor that is not. */
et_status et_gpt_forward(et_gpt *g, bool eval, const int32_t *tokens, double *loss, et_real *logits,
                         et_error *error);

/* One sequence, a part at a time: goes on with the tokens [count] after those of earlier calls, of
 * which keys and values have been kept; in evaluation. logits [count,V] out. In the plain engine
 * the bits are those of a forward pass over the whole sequence. et_gpt_restart, or any other pass,
 * forgets the sequence. ET_EINVAL: a batch of more than 1, more than T tokens in all, a token out
 * of range. */
et_status et_gpt_extend(et_gpt *g, size_t count, const int32_t *tokens, et_real *logits,
                        et_error *error);
void et_gpt_restart(et_gpt *g);

/* The loss of each token of the last et_gpt_forward or et_gpt_step's last micro-batch, [B T]. */
const et_real *et_gpt_token_losses(const et_gpt *g);

/* Routed experts that row `row` of the last pass went to, the mean over MoE layers; -1 without any.
 * */
double et_gpt_fanout(const et_gpt *g, size_t row);

/* Adds the gradient of scale * (loss + balancing losses) of the last forward pass, which was not of
 * evaluation, to every parameter's `gradient`. */
et_status et_gpt_backward(et_gpt *g, double scale, et_error *error);

/* ---- a step ---- */

typedef struct et_gpt_report {
    double loss;   /* mean over micro-batches */
    double norm;   /* of all gradients, before clipping */
    double factor; /* of the learning rates */
} et_gpt_report;

/* tokens [M,B,T+1]. Forward and backward of each micro-batch, clipping, optimisers, states.
 * ET_EINVAL as above, or a gradient that is not finite. After a failure parameters may have moved;
 * go on from a checkpoint. */
et_status et_gpt_step(et_gpt *g, const int32_t *tokens, et_gpt_report *report, et_error *error);

/* Where the time of passes and steps goes. */
typedef enum et_gpt_phase {
    ET_GPT_ROWS,                 /* embedding, norms, RoPE, the stream's sums; forward and back */
    ET_GPT_PROJECTIONS,          /* w_qkv, w_o, forward and back */
    ET_GPT_ATTENTION,            /* forward */
    ET_GPT_ATTENTION_BACKWARD,
    ET_GPT_ROUTING,              /* logits, gates, the rule */
    ET_GPT_FEED_FORWARD,         /* dense layers, and experts with their combination */
    ET_GPT_FEED_FORWARD_BACKWARD, /* the same, and the router */
    ET_GPT_HEAD,                 /* head and loss, forward and back */
    ET_GPT_ADAMW,                /* the gradients' zeroing and clipping, AdamW, the routers' states */
    ET_GPT_MUON,
    ET_GPT_PHASES
} et_gpt_phase;

/* From now on the seconds of each phase are added to seconds [ET_GPT_PHASES]; NULL: no longer.
 * A hundred and some readings of the clock in a step of 4 layers: nothing beside its time. */
void et_gpt_time(et_gpt *g, double *seconds);

/* How the last step (or the last forward pass in evaluation) routed, of an MoE layer; arrays of n.
 * */
typedef struct et_gpt_routing {
    size_t experts;
    size_t tokens;            /* of all micro-batches */
    const et_real *load;      /* slots of each expert, after capacity */
    const et_real *passed;    /* before it: tokens above the threshold; NULL where none was used
    */
    const et_real *cutoff;    /* mean k-th largest score; NULL for TC and in evaluation */
    const et_real *threshold; /* that the EMA gave before the step; NULL for TC */
    const et_real *bias; /* of the selection, as the step left it; NULL where the rule has none */
    /* [tokens,n] of the last micro-batch, or pass; until the next */
    const uint8_t *mask;
    const et_real *logits, *gates;
} et_gpt_routing;

/* False for a dense layer. */
bool et_gpt_routing_of(const et_gpt *g, size_t layer, et_gpt_routing *routing);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
#endif
