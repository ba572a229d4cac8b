/* audit_fresh.c: other tokens of the same kind. See audit_fresh.h.
 *
 * A case decides every number of its inputs, so the case itself is asked to go on: with twice as
 * many tokens, the second half is what would have come next. Only in.x is wanted, so the case is made
 * dense and one column wide inside, which costs nothing and draws the same x.
 */
#include "tools/leakage-study/audit_fresh.h"
#include "etref/matmul.h"
#include "tools/etref/memory_limit.h"
#include "tools/etref/options.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A case that draws `tokens` tokens as `c` does, and hardly anything else. */
static et_case tokens_only(const et_case *c, size_t tokens)
{
    et_case drawn = *c;
    drawn.layer = ET_DENSE;
    drawn.tokens = tokens;
    drawn.d_expert = 1;
    drawn.shared = false;
    drawn.global_load = false;
    drawn.balance = ET_BALANCE_NONE;
    drawn.ema_updates = 0;
    drawn.input.decisive = false;
    return drawn;
}

/* x [count,d]: the last `count` of the case's tokens. */
static et_status draw_last(const et_case *c, size_t count, et_real *x, et_error *error)
{
    et_step drawn;
    size_t d = c->d_model;
    et_status status = et_step_create(&drawn, c, memory_limit(), error);
    if (status != ET_OK) return status;
    status = et_step_draw_inputs(&drawn, error);
    if (status == ET_OK) memcpy(x, drawn.in.x + (c->tokens - count) * d, count * d * sizeof *x);
    et_step_free(&drawn);
    return status;
}

static double root_mean_square(const et_real *x, size_t count)
{
    double sum = 0;
    for (size_t i = 0; i < count; i++) sum += (double)x[i] * (double)x[i];
    return count ? sqrt(sum / (double)count) : 0;
}

/* Fresh tokens have a root mean square of about 1; in.x may not. */
static void scale_like(const et_step *s, et_real *x)
{
    size_t count = s->c.tokens * s->c.d_model;
    double scale = root_mean_square(s->in.x, count);
    for (size_t i = 0; i < count; i++)
        x[i] = (et_real)et_round_to_dtype(scale * (double)x[i], s->c.precision);
}

static void repeat(et_real *x, size_t d, size_t have, size_t want)
{
    for (size_t t = have; t < want; t++) memcpy(x + t * d, x + (t - have) * d, d * sizeof *x);
}

/* As many tokens of the text as it has from `offset` on, found by halving. */
static et_status draw_text(et_case c, uint64_t offset, et_real *x, et_error *error)
{
    size_t want = c.tokens;
    et_status status = ET_OK;
    c.input.source = ET_INPUT_TEXT;
    c.input.mean = 0;
    c.input.text_offset = offset;
    for (size_t count = want; count > 0; count /= 2) {
        et_case part = tokens_only(&c, count);
        status = draw_last(&part, count, x, error);
        if (status == ET_OK) repeat(x, c.d_model, count, want);
        if (status != ET_EINVAL) break; /* done, or it cannot be read at all */
    }
    return status;
}

static et_status fresh_text(et_real *x, const et_step *s, const char *text, et_error *error)
{
    et_case c = s->c;
    bool own = c.input.source == ET_INPUT_TEXT && text == NULL;
    if (!own) {
        const char *name = text ? text : "GPL-3";
        if (strlen(name) >= sizeof c.input.text)
            return et_fail(error, ET_EINVAL, "--text %s: the name has more than %zu bytes", name,
                           sizeof c.input.text - 1);
        strcpy(c.input.text, name);
        if (c.input.source == ET_INPUT_NONE) c.input.seed = 1;
    }
    et_status status = draw_text(c, own ? c.input.text_offset + c.tokens : 0, x, error);
    if (own && status == ET_EINVAL) status = draw_text(c, 0, x, error); /* nothing behind it */
    if (status == ET_OK && s->c.input.source != ET_INPUT_TEXT) scale_like(s, x);
    return status;
}

static et_status fresh_noise(et_real *x, const et_step *s, et_error *error)
{
    et_case c = s->c;
    bool other = c.input.source == ET_INPUT_TEXT || c.input.source == ET_INPUT_NONE ||
                 c.input.source == ET_INPUT_CHECKPOINT;
    if (other) c.input = (et_input){.source = ET_INPUT_NORMAL, .seed = 1};
    c = tokens_only(&c, other ? c.tokens : 2 * c.tokens);
    et_status status = draw_last(&c, s->c.tokens, x, error);
    if (status == ET_OK && other) scale_like(s, x);
    return status;
}

et_status fresh_tokens(et_real **x, const et_step *s, fresh_kind kind, const char *text,
                       et_error *error)
{
    *x = allocate(s->c.tokens * s->c.d_model, sizeof **x);
    return kind == FRESH_TEXT ? fresh_text(*x, s, text, error) : fresh_noise(*x, s, error);
}

et_status score_tokens(const et_step *s, const et_real *x, et_real *r, et_error *error)
{
    size_t N = s->c.tokens, n = s->c.experts, d = s->c.d_model;
    et_matmul(ET_PLAIN, N, n, d, et_rows(x, d), et_transposed(s->in.router, d), false, r, n);
    for (size_t i = 0; i < N * n; i++)
        if (!isfinite(r[i]))
            return et_fail(error, ET_EINVAL,
                           "case '%s': the score of token %zu for expert %zu is not finite",
                           s->c.name, i / n, i % n);
    return ET_OK;
}
