/* model_config.c: a model's configuration: defaults, and what is refused. See etref/gpt.h. */
#include "ref/model/model.h"
#include "ref/step/case_fields.h"

#include <math.h> /* sqrt: correctly rounded */
#include <string.h>

et_gpt_config et_gpt_default(size_t d_model, size_t steps)
{
    size_t e = d_model % 64 == 0 ? 64 : d_model;
    double lambda = 1 / sqrt((double)d_model / 768);
    return (et_gpt_config){
        .engine = ET_BLAS,
        .vocab = 256,
        .d_model = d_model,
        .layers = 4,
        .heads = d_model / e,
        .kv_heads = d_model / e,
        .head_dim = e,
        .sequence = 256,
        .batch = 8,
        .micro_batches = 1,
        .d_dense = 4 * d_model,
        .first_dense = true,
        .rms_eps = sizeof(et_real) == sizeof(double) ? 0x1p-52 : 0x1p-23,
        .rope_base = 10000,
        .softcap = 15,
        .ffn = {.layer = ET_MOE,
                .rule = ET_ET,
                .d_expert = 2 * d_model,
                .experts = 16,
                .top_k = 1,
                .granularity = 1,
                .shared = true,
                .ema_decay = 0.999},
        .beta1 = 0.9,
        .beta2 = 0.95,
        .eps = 1e-10,
        .rate_wte = 0.2 * lambda,
        .rate_head = 0.004 * lambda,
        .rate_router = 0.004 * lambda,
        .rate_muon = 0.02,
        .momentum_first = 0.85,
        .momentum_last = 0.95,
        .momentum_ramp = 300,
        .clip = 1,
        .schedule = {.steps = steps, .cooldown = 0.2},
    };
}

/* The layer under study as a case of one micro-batch, with its defaults. */
/* Of the fields that came later than the model, it has the defaults alone. */
static et_status refuse_later(et_case *f, et_error *error)
{
    et_case usual;
    et_status status = et_case_settle(f, f, error);
    if (status == ET_OK) status = et_case_defaults(&usual, error);
    for (size_t i = 0; status == ET_OK && i < ET_FIELDS; i++)
        if (et_fields[i].later && !et_member_equal(&et_fields[i].member, f, &usual))
            return et_fail(error, ET_EINVAL, "et_gpt: ffn.%s: a model has its default alone, %s",
                           et_fields[i].doc.name, et_fields[i].doc.initial);
    return status;
}

static et_status settle_layer(et_gpt_config *c, size_t N, et_error *error)
{
    et_case *f = &c->ffn;
    bool moe = f->layer == ET_MOE;
    memset(f->name, 0, sizeof f->name);
    memcpy(f->name, "ffn", 4);
    f->tokens = N;
    f->d_model = c->d_model;
    f->micro_batches = 1;
    f->precision = ET_F64;
    f->input.source = ET_INPUT_NONE;
    f->eval = false;
    f->step = f->ema_updates = 0;
    if (!moe) f->d_expert = c->d_dense;
    if (f->granularity == 0) f->granularity = f->rule == ET_TC && f->top_k > 0 ? f->top_k : 1;
    if (f->top_k == 0) f->top_k = f->granularity;
    if (f->pool_tokens == 0) f->pool_tokens = N;
    if (moe && f->target_load == 0 && f->experts > 0)
        f->target_load = f->pool_tokens * f->granularity / f->experts;
    if (f->shared && f->shared_d_expert == 0) f->shared_d_expert = f->d_expert;
    if (f->global_load)
        return et_fail(error, ET_EINVAL,
                       "et_gpt: ffn.global_load = true; a model has its own loads alone");
    if (moe && f->rule == ET_TC && f->has_capacity)
        return et_fail(error, ET_EINVAL,
                       "et_gpt: ffn.capacity_factor = %g; a model's token choice has none, null",
                       f->capacity_factor);
    return refuse_later(f, error);
}

et_status et_gpt_settle(et_gpt_config *c, size_t *N, et_error *error)
{
    const struct {
        const char *name;
        size_t value;
    } sizes[] = {
        {"vocab", c->vocab},       {"d_model", c->d_model},   {"layers", c->layers},
        {"heads", c->heads},       {"kv_heads", c->kv_heads}, {"head_dim", c->head_dim},
        {"sequence", c->sequence}, {"batch", c->batch},       {"micro_batches", c->micro_batches},
        {"d_dense", c->d_dense}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        if (sizes[i].value < 1 || sizes[i].value > INT32_MAX)
            return et_fail(error, ET_EINVAL, "et_gpt: %s = %zu; from 1 to 2147483647",
                           sizes[i].name, sizes[i].value);
    if (c->layers > ET_MAX_LAYERS)
        return et_fail(error, ET_EINVAL, "et_gpt: layers = %zu; at most %d", c->layers,
                       ET_MAX_LAYERS);
    if (c->engine != ET_PLAIN && c->engine != ET_BLAS)
        return et_fail(error, ET_EINVAL, "et_gpt: engine = %d; ET_PLAIN or ET_BLAS",
                       (int)c->engine);
    if (c->heads % c->kv_heads != 0)
        return et_fail(error, ET_EINVAL, "et_gpt: kv_heads = %zu; what divides heads = %zu",
                       c->kv_heads, c->heads);
    if (c->head_dim % 2 != 0)
        return et_fail(error, ET_EINVAL, "et_gpt: head_dim = %zu; RoPE wants an even width",
                       c->head_dim);
    if (!(c->rms_eps > 0) || !(c->rope_base > 0) || !(c->softcap >= 0))
        return et_fail(error, ET_EINVAL,
                       "et_gpt: rms_eps %g, rope_base %g, softcap %g; above 0, above 0, at least 0",
                       c->rms_eps, c->rope_base, c->softcap);
    *N = c->batch * c->sequence;
    return *N < INT32_MAX ? settle_layer(c, *N, error)
                          : et_fail(error, ET_EINVAL, "et_gpt: %zu tokens; below 2^31", *N);
}
