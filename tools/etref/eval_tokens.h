/* eval_tokens.h: what each token of an evaluation met, kept and written as tensors. */
#ifndef ETREF_TOOL_EVAL_TOKENS_H
#define ETREF_TOOL_EVAL_TOKENS_H

#include "etref/gpt.h"

typedef struct eval_tokens {
    size_t tokens, done, layers, experts;
    int32_t *token;  /* [tokens] the byte that the model read */
    et_real *loss;   /* [tokens] of the byte after it */
    uint8_t *mask;   /* [layers,tokens,experts] */
    et_real *logits; /* [layers,tokens,experts] */
    bool *routed;    /* [layers] an MoE layer */
} eval_tokens;

void eval_tokens_begin(eval_tokens *e, const et_gpt *g, size_t tokens);
void eval_tokens_free(eval_tokens *e); /* accepts one that has not begun */

/* The last forward pass, which read tokens [B,T+1]. */
void eval_tokens_add(eval_tokens *e, const et_gpt *g, const int32_t *tokens);

/* token I32, loss F32 [tokens], and of each MoE layer L mask.L U8 and logits.L F32
 * [tokens,experts]. */
et_status eval_tokens_write(const eval_tokens *e, const char *path, et_error *error);

#endif
