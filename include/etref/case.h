/* case.h: what is to be computed. A case and nothing else decides every bit of a golden bundle.
 *
 * A case is a small JSON object. Each of its fields is one row of the table in ref/step/case_fields.c:
 * name, default, allowed values; `etref list fields` prints that table. Unknown fields and
 * contradictions are errors that name the field, its value and what is allowed.
 */
#ifndef ETREF_CASE_H
#define ETREF_CASE_H

#include "etref/moe.h"
#include "etref/routing.h"
#include "etref/safetensors.h"
#include "etref/status.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

/* The feed-forward layers; then those of the model around them, and its optimisers. */
typedef enum et_layer {
    ET_DENSE,
    ET_MOE,
    ET_LAYER_RMSNORM,
    ET_LAYER_ROPE,
    ET_LAYER_ATTENTION,
    ET_LAYER_CROSS_ENTROPY,
    ET_LAYER_ADAMW,
    ET_LAYER_MUON
} et_layer;

/* Several ranks (parallel.h): experts are cut up among them, or each has all experts and a part of the step. */
typedef enum et_parallel { ET_ONE_RANK, ET_EXPERT_PARALLEL, ET_DATA_PARALLEL } et_parallel;

typedef enum et_input_source {
    ET_INPUT_NONE, /* the bundle brings its in.* tensors */
    ET_INPUT_NORMAL,
    ET_INPUT_TEXT,
    ET_INPUT_INTEGER,
    ET_INPUT_TIES,
    ET_INPUT_SKEWED,
    ET_INPUT_OUTLIER,
    ET_INPUT_TINY,
    ET_INPUT_HUGE,
    ET_INPUT_CHECKPOINT /* a layer in a step of a trained model (capture.h) */
} et_input_source;

/* How in.x, in.dy, the weights, the EMA and the bias are drawn; ref/step/inputs.c says what each
 * source is and which bugs it hunts. */
typedef struct et_input {
    et_input_source source;
    uint64_t seed;
    double mean;        /* added to every element of x, before the source's own scaling */
    double router_mean; /* added, divided by d, to every router weight; with `mean` shifts logits */
    size_t copies;      /* ties: how often each token is repeated */
    double jitter;      /* ties: copy j of a token is scaled by 1 + j*jitter (0: exact ties) */
    size_t hot;         /* skewed: the expert that draws nearly everything */
    char text[256];     /* text, checkpoint: a file; a bare name is looked for in Debian's common-licenses */
    uint64_t text_offset; /* first byte used */
    char checkpoint[256]; /* checkpoint: a file of etref train */
    size_t checkpoint_layer;  /* which layer of the model, from 0 */
    char checkpoint_fnv1a[20]; /* 16 hexadecimal digits: FNV-1a of the file's bytes; may be empty */
    bool decisive;        /* redraw tokens until no decision is within rounding of its boundary */
} et_input;

typedef struct et_case {
    char name[64];   /* letters, digits, '-', '_', '.'; it names the bundle's file */
    char hunts[160]; /* which bug the case is there to catch; may be empty */
    et_layer layer;
    et_rule rule;
    bool eval;          /* "mode": "train" or "eval" */
    bool given;         /* "routing": "rule", or "given": the assignment is brought, and nothing is decided */
    size_t tokens;      /* N, of the whole step */
    size_t d_model;     /* d */
    size_t d_expert;    /* h; of the dense layer, too; of no other */
    et_activation activation; /* of every expert, and of the dense layer */
    bool expert_bias;   /* every expert, and the dense layer, has b_up, b_down; with swiglu b_gate, too */
    size_t experts;     /* n; dense: 0 */
    size_t top_k;       /* tc: K = G */
    size_t
        padding; /* the last tokens of each micro-batch, so many, are padding: see et_case_real_tokens */
    size_t groups, groups_kept; /* tc: a token's K come from so many groups of experts; groups 0 in memory: 1 */
    et_group_score group_score;
    bool
        select_gates; /* tc, "select": "logit": a token's choice compares r + bias; "gate": p + bias (DeepSeek-V3) */
    size_t granularity; /* ec, et: G; for tc equal to top_k */
    size_t target_load; /* k, in a pool; default: floor(pool_tokens * granularity / experts) */
    size_t
        pool_tokens; /* P; default: a micro-batch's real tokens, and always that where nothing is routed by pools */
    et_gate gate;
    et_norm norm;
    double routed_scale;    /* factor of every w; 0 in a case put together in memory: 1 */
    bool weighs_input;      /* "weigh": "output": y takes w f(x); "input": y takes f(w x) */
    bool shared;            /* never for a dense layer */
    size_t shared_d_expert; /* hs; default d_expert; 0 without a shared expert */
    bool inclusive;         /* "threshold": "strict" or "inclusive" */
    bool has_capacity;
    double capacity_factor; /* C; JSON null: off */
    et_drop drop;           /* tc with a capacity: which choices of an expert's are dropped */
    double ema_decay;
    bool ema_bias_correction;
    size_t ema_updates; /* u: updates behind in.ema */
    size_t step, warmup_steps;
    size_t micro_batches; /* M; under dp of all ranks together, by default one of each */
    et_parallel parallel;
    size_t ranks;           /* R; 0 without parallel */
    bool sync_after_warmup; /* dp: averages are kept apart while step is below warmup_steps */
    et_balance balance;
    double balance_coef, bias_rate;
    bool global_load;
    double z_loss_coef;
    /* of the model's layers (rmsnorm.h, rope.h, attention.h, cross_entropy.h, optimizer.h) */
    size_t heads, kv_heads, sequence, vocab; /* Hq, Hkv, T, V; a head is d_model / heads wide */
    double rms_eps, rope_base, softcap;
    double rate, beta1, beta2, eps, decay, momentum; /* of an update; step: updates before it */
    et_dtype precision; /* ET_F64, ET_F32, ET_BF16 or ET_F16: how the in.* tensors are stored */
    et_input input;
} et_case;

/* Parses one JSON object, fills in the defaults and validates. `where` begins the message (a file's
 * name). ET_EINVAL: syntax, unknown field, wrong type, out of range, contradiction; ET_ENOMEM.
 *
 * A field that does not apply to the case (top_k under et) is refused, unless its value is the
 * default or otherwise says nothing (bias_rate 0 without a bias); the struct then holds the
 * default. Every byte of *c is defined afterwards, so equal cases compare equal with memcmp. On
 * failure *c is as it was. */
et_status et_case_parse(et_case *c, const char *json, size_t length, const char *where,
                        et_error *error);

/* What et_case_parse asks of a case, asked of one that was put together in memory: each field that
 * applies is in its range, and no two contradict each other; those that do not apply may hold
 * anything. et_step_create and et_step_run ask it. ET_EINVAL names the field; ET_ENOMEM. */
et_status et_case_check(const et_case *c, et_error *error);

/* All cases of a text that holds one case or an array of them, to be released with free(). A text is at
 * most 1 MiB and an array at most 10000 cases. Two cases of one name, which would write one file, are
 * refused. On failure *cases and *count are as they were. */
et_status et_case_parse_all(et_case **cases, size_t *count, const char *json, size_t length,
                            const char *where, et_error *error);

/* The case as one line of JSON with every field that applies to it, in the table's order, such
 * that parsing it gives the same case; fields that came later (`activation`) only where they
 * differ from their default. Allocated; the caller frees it. ET_EINVAL as et_case_check. */
et_status et_case_print(char **json, const et_case *c, et_error *error);

/* Tokens of one micro-batch that are no padding: N / M - padding, its first ones. A padding token takes no slot, its y and dx
 * are 0, and it is not counted: pools and capacities are of real tokens, and N / M in F, in the means of the losses and in the
 * update of the bias is this number. */
size_t et_case_real_tokens(const et_case *c);

/* Tokens of one micro-batch: N / M. */
size_t et_case_micro_tokens(const et_case *c);
/* True if this step routes by expert choice: rule ec in training, or et in its warm-up; not by a given assignment. */
bool et_case_routes_by_choice(const et_case *c);
/* True if this step routes by threshold: et after the warm-up, and ec and et in evaluation. */
bool et_case_routes_by_threshold(const et_case *c);
/* Slots that token choice leaves an expert in a micro-batch (et_token_capacity); its tokens where nothing is dropped. */
size_t et_case_token_capacity(const et_case *c);

/* One row of the table of fields, for --help and documentation; NULL past the end. */
typedef struct et_field_doc {
    const char *name;    /* "input.seed" is the field seed of the object input */
    const char *type;    /* what is allowed: "integer from 1 to 2147483647", "tc|ec|et", ... */
    const char *initial; /* its default as JSON, "required", or how it is derived: "= d_expert" */
    const char *scope;   /* where it applies: "rule et" */
    const char *meaning;
} et_field_doc;
const et_field_doc *et_case_field(size_t index);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
#endif
