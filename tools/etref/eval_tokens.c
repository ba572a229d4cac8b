/* eval_tokens.c: see eval_tokens.h. */
#include "tools/etref/eval_tokens.h"
#include "etref/safetensors.h"
#include "tools/etref/failure.h"
#include "tools/etref/partial.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void eval_tokens_begin(eval_tokens *e, const et_gpt *g, size_t tokens)
{
    const et_gpt_config *c = et_gpt_configuration(g);
    bool moe = c->ffn.layer == ET_MOE;
    *e = (eval_tokens){.tokens = tokens, .layers = c->layers, .experts = moe ? c->ffn.experts : 0};
    size_t choices = e->layers * tokens * e->experts;
    e->token = allocate(tokens, sizeof *e->token);
    e->loss = allocate(tokens, sizeof *e->loss);
    e->mask = allocate(choices, sizeof *e->mask);
    e->logits = allocate(choices, sizeof *e->logits);
    e->routed = allocate(e->layers, sizeof *e->routed);
}

void eval_tokens_free(eval_tokens *e)
{
    free(e->token);
    free(e->loss);
    free(e->mask);
    free(e->logits);
    free(e->routed);
}

void eval_tokens_add(eval_tokens *e, const et_gpt *g, const int32_t *tokens)
{
    const et_gpt_config *c = et_gpt_configuration(g);
    size_t T = c->sequence, rows = c->batch * T;
    for (size_t row = 0; row < rows; row++)
        e->token[e->done + row] = tokens[row / T * (T + 1) + row % T];
    memcpy(e->loss + e->done, et_gpt_token_losses(g), rows * sizeof *e->loss);
    for (size_t i = 0; i < e->layers; i++) {
        et_gpt_routing r;
        if (!(e->routed[i] = et_gpt_routing_of(g, i, &r))) continue;
        size_t at = (i * e->tokens + e->done) * e->experts, count = rows * e->experts;
        memcpy(e->mask + at, r.mask, count * sizeof *e->mask);
        memcpy(e->logits + at, r.logits, count * sizeof *e->logits);
    }
    e->done += rows;
}

et_status eval_tokens_write(const eval_tokens *e, const char *path, et_error *error)
{
    enum { NAME = 40 };
    const et_source real = sizeof(et_real) == sizeof(double) ? ET_FROM_F64 : ET_FROM_F32;
    et_tensor_out *out = allocate(2 + 2 * e->layers, sizeof *out);
    char(*names)[NAME] = allocate(2 + 2 * e->layers, sizeof *names);
    size_t count = 0;
    out[count++] = (et_tensor_out){"token", ET_I32, 1, {e->tokens}, e->token, ET_FROM_I32};
    out[count++] = (et_tensor_out){"loss", ET_F32, 1, {e->tokens}, e->loss, real};
    for (size_t i = 0; i < e->layers; i++) {
        if (!e->routed[i]) continue;
        size_t at = i * e->tokens * e->experts;
        snprintf(names[count], NAME, "mask.%zu", i);
        out[count] = (et_tensor_out){names[count], ET_U8,     2, {e->tokens, e->experts},
                                     e->mask + at, ET_FROM_U8};
        count++;
        snprintf(names[count], NAME, "logits.%zu", i);
        out[count] =
            (et_tensor_out){names[count], ET_F32, 2, {e->tokens, e->experts}, e->logits + at, real};
        count++;
    }
    et_status status = partial_guard(path, error);
    if (status == ET_OK) status = et_tensor_file_write(path, out, count, NULL, error);
    partial_release();
    free(names);
    free(out);
    return status;
}
