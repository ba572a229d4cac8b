/* model.h: what a model is made of. Internal; the arrays' shapes are in the table of array_table.c. */
#ifndef ET_MODEL_H
#define ET_MODEL_H

#include "etref/gpt.h"
#include "etref/safetensors.h"
#include "etref/step.h"

typedef enum et_gpt_optimizer {
    ET_NO_OPTIMIZER,
    ET_WTE,
    ET_HEAD,
    ET_ROUTER,
    ET_MUON
} et_gpt_optimizer;

typedef enum et_gpt_start { ET_ZERO, ET_UNIT, ET_BY_WIDTH, ET_BY_SHAPE } et_gpt_start;

/* A parameter or state, and what the table says of it. */
typedef struct et_gpt_entry {
    et_gpt_tensor *tensor;
    et_gpt_optimizer optimizer;
    et_gpt_start start; /* of et_gpt_initialise */
} et_gpt_entry;

typedef struct et_gpt_layer {
    size_t index;
    bool moe;
    et_gpt_tensor w_qkv, w_o;
    et_gpt_tensor w_router, w_up, w_down, shared_up, shared_down; /* dense: up and down alone */
    et_gpt_tensor ema, bias;
    /* kept from forward for backward */
    et_real *norm1, *scale1; /* the attention's input, and its norm's scale */
    et_real *qkv, *qk_scale; /* after RoPE and QK-norm */
    et_real *attended, *lse;
    et_real *norm2, *scale2; /* the feed-forward layer's input */
    et_real *pre, *act;      /* dense: H, A */
    et_moe_values values;    /* MoE */
    et_step pass;            /* its decisions; the arrays of in, fwd and bwd are the model's */
    /* sums over the micro-batches of a step */
    et_real *load, *passed, *cutoff, *threshold;
} et_gpt_layer;

struct et_gpt {
    et_gpt_config config;
    const et_rounding *rounding;
    et_gpt_progress progress;
    size_t N;          /* tokens of a micro-batch: B T */
    size_t from, rows; /* of a forward pass: the rows that it computes; all N but in a cache's */
    size_t cached;     /* tokens of the sequence that et_gpt_extend goes on with */
    size_t workers;    /* threads for which there is room */
    et_gpt_layer *layers;
    et_gpt_tensor wte, head;
    et_real *cosines, *sines;
    et_real *norm0, *scale0; /* x at the start */
    et_real *normed, *scale; /* the head's input */
    et_real *x, *y;          /* the residual stream; what a sublayer adds to it */
    et_real *loss, *lse;     /* per token */
    et_real *dx, *dnormed, *dqkv, *dattended, *dpre, *dact;
    et_moe_grads grads; /* of one layer at a time, but for the parameters' */
    et_real *room;      /* scratch of attention, loss and Muon */
    int32_t *inputs, *targets;
    bool eval; /* the last forward pass was */
    size_t routed_tokens;
    double *seconds, clock; /* of the phases; when the last of them ended */
    /* bookkeeping */
    et_real *arena;
    size_t reals;
    et_gpt_entry *tensors;
    size_t tensor_count;
};

/* Fills in the defaults; *N: tokens of a micro-batch. */
et_status et_gpt_settle(et_gpt_config *c, size_t *N, et_error *error);

/* The name of the first array of the model, in the table's order, that holds a number that is not
 * finite; false: none. */
bool et_gpt_unusual(const et_gpt *g, char *name, size_t room);

/* ---- gpt.c ---- */

/* ET_EINVAL: "step 7: `what` is not finite; ... the first that is not: layers.1.act". */
et_status et_gpt_not_finite(const et_gpt *g, const char *what, et_error *error);

/* Where times are asked for: what has been done since the last call, `status` its result, was this
 * phase (ET_GPT_PHASES: none of them). Returns the status. */
et_status et_gpt_timed(et_gpt *g, et_gpt_phase phase, et_status status);

/* After a forward pass: the gradient of scale times the loss, through the head and the layers from L-1
 * down to `until`, by the stream that enters the last of these: g->dx. Adds to the gradients of parameters. */
et_status et_gpt_backward_until(et_gpt *g, double scale, size_t until, et_error *error);

/* ---- checkpoint.c ---- */

/* The configuration and the progress that a checkpoint's metadata tell; batch as et_checkpoint_read. */
et_status et_checkpoint_facts(const et_tensor_file *file, size_t batch, et_gpt_config *config,
                              et_gpt_progress *done, et_error *error);

/* ---- transformer_layer.c: a layer ---- */

et_status et_gpt_layer_forward(et_gpt *g, et_gpt_layer *l, et_error *error);
/* g->dx in and out. */
et_status et_gpt_layer_backward(et_gpt *g, et_gpt_layer *l, double scale, et_error *error);

/* A norm of the model's rows. */
et_status et_gpt_norm(const et_gpt *g, et_real *x, et_real *y, et_real *scale, et_error *error);
et_status et_gpt_norm_backward(const et_gpt *g, const et_real *y, const et_real *scale,
                               const et_real *dy, bool accumulate, et_real *dx, et_error *error);

#endif
