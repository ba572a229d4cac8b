/* habits.c: honest kernels on layers whose numbers were made the way people make them for a test. See campaign.h.
 *
 * Bars hold for errors that are independent of each other. Numbers drawn about 0 make such errors; ones, masks,
 * copies, positive numbers and powers of ten make others, and a loss that is a sum hands the same dy to all
 * tokens. A case with a habit is named habit-WHICH-LAYER; whoever draws its inputs changes them accordingly.
 */
#include "etref/random.h"
#include "tests/campaign/campaign.h"

#include <math.h>
#include <string.h>

/* ---- numbers ---- */

/* What a habit works on. */
typedef struct made {
    const et_case *c;
    et_step_inputs *in;
    et_stream stream;
    uint64_t drawn;
} made;

static double uniform(made *m)
{
    return et_uniform(m->stream, m->drawn++, 0);
}

static size_t experts_of(const et_case *c)
{
    return c->layer == ET_MOE ? c->experts : 1;
}

static size_t tokens_of(const made *m)
{
    return m->c->tokens * m->c->d_model;
}

static size_t weights_of(const made *m)
{
    return experts_of(m->c) * m->c->d_expert * m->c->d_model;
}

static void scale(size_t count, double by, et_real *values)
{
    for (size_t i = 0; i < count; i++) values[i] = (et_real)(by * (double)values[i]);
}

static void shift(size_t count, double by, et_real *values)
{
    for (size_t i = 0; i < count; i++) values[i] = (et_real)(by + (double)values[i]);
}

static void fill(size_t count, double with, et_real *values)
{
    for (size_t i = 0; i < count; i++) values[i] = (et_real)with;
}

static void fill_uniform(made *m, size_t count, et_real *values)
{
    for (size_t i = 0; i < count; i++) values[i] = (et_real)uniform(m);
}

static void thin_out(made *m, size_t count, et_real *values)
{
    for (size_t i = 0; i < count; i++)
        if (uniform(m) < 0.9) values[i] = 0;
}

/* ---- habits ---- */

/* dy of y.sum(). */
static void sum(made *m)
{
    fill(tokens_of(m), 1, m->in->dy);
}

/* dy of y.mean(), if that is a power of two; or not. */
static void mean(made *m)
{
    fill(tokens_of(m), ldexp(1, -13), m->in->dy);
}

static void odd_mean(made *m)
{
    fill(tokens_of(m), 1 / (double)tokens_of(m), m->in->dy);
}

/* Inputs of mean 2 on top. */
static void sum_of_positive(made *m)
{
    sum(m);
    shift(tokens_of(m), 2, m->in->x);
}

/* dy has one number for a token. */
static void token_losses(made *m)
{
    size_t d = m->c->d_model;
    for (size_t i = 0; i < tokens_of(m); i++) m->in->dy[i] = m->in->dy[i / d * d];
}

/* Some tokens have a loss, as in a padded batch. */
static void masked(made *m)
{
    fill(tokens_of(m) / 4 * 3, 0, m->in->dy);
}

static void padded(made *m)
{
    fill(tokens_of(m) / 2, 0, m->in->x);
}

static void uniform_x(made *m)
{
    fill_uniform(m, tokens_of(m), m->in->x);
}

static void uniform_weights(made *m)
{
    fill_uniform(m, weights_of(m), m->in->up);
    fill_uniform(m, weights_of(m), m->in->down);
}

static void ones_and_zeros(made *m)
{
    for (size_t i = 0; i < tokens_of(m); i++) m->in->x[i] = uniform(m) < 0.5;
    for (size_t i = 0; i < tokens_of(m); i++) m->in->dy[i] = uniform(m) < 0.5;
}

static void small_integers(made *m)
{
    for (size_t i = 0; i < tokens_of(m); i++) m->in->x[i] = (et_real)floor(10 * uniform(m));
    for (size_t i = 0; i < tokens_of(m); i++) m->in->dy[i] = (et_real)(floor(3 * uniform(m)) - 1);
}

static void one_hot(made *m)
{
    size_t d = m->c->d_model;
    for (size_t i = 0; i < tokens_of(m); i++) m->in->x[i] = i % d == i / d % d;
}

static void sparse_x(made *m)
{
    thin_out(m, tokens_of(m), m->in->x);
}

static void sparse_weights(made *m)
{
    thin_out(m, weights_of(m), m->in->up);
    thin_out(m, weights_of(m), m->in->down);
}

static void offset(made *m)
{
    shift(tokens_of(m), 10, m->in->x);
}

static void large_x(made *m)
{
    scale(tokens_of(m), 100, m->in->x);
}

static void small_x(made *m)
{
    scale(tokens_of(m), 0.01, m->in->x);
}

static void large_weights(made *m)
{
    scale(weights_of(m), 8, m->in->up);
    scale(weights_of(m), 8, m->in->down);
}

/* As W_down begins in many models. */
static void nearly_no_down(made *m)
{
    scale(weights_of(m), 1e-4, m->in->down);
}

static void one_large_column(made *m)
{
    for (size_t i = 7; i < tokens_of(m); i += m->c->d_model) m->in->x[i] *= 50;
}

static void router_of_zeros(made *m)
{
    if (m->in->router) fill(m->c->experts * m->c->d_model, 0, m->in->router);
}

static void sharp_router(made *m)
{
    if (m->in->router)
        scale(m->c->experts * m->c->d_model, 16,
              m->in->router); /* a power of two: still of the case's format */
}

static void constant_weights(made *m)
{
    fill(weights_of(m), 0.02130126953125, m->in->up); /* both of bf16 */
    fill(weights_of(m), 0.01171875, m->in->down);
}

/* All experts are copies of the first one. */
static void copied_experts(made *m)
{
    size_t size = m->c->d_expert * m->c->d_model;
    for (size_t i = size; i < weights_of(m); i++) {
        m->in->up[i] = m->in->up[i % size];
        m->in->down[i] = m->in->down[i % size];
    }
}

/* Each hidden unit stands there 16 times. */
static void widened_experts(made *m)
{
    size_t d = m->c->d_model, h = m->c->d_expert;
    for (size_t row = 0; row < experts_of(m->c) * h; row++)
        for (size_t c = 0; c < d; c++)
            m->in->up[row * d + c] = m->in->up[(row - row % h % 16) * d + c];
    for (size_t i = 0; i < weights_of(m); i++) m->in->down[i] = m->in->down[i - i % h % 16];
}

/* All columns of f are the same, and so are their errors in dw = sum_c dy_c f_c. Sums without cancellation make
 * these errors larger than those that A brings. */
static void repeated_output(made *m)
{
    size_t d = m->c->d_model, h = m->c->d_expert;
    for (size_t i = 0; i < weights_of(m); i++)
        m->in->down[i] = (et_real)fabs((double)m->in->down[i / (d * h) * (d * h) + i % h]);
    fill(tokens_of(m), 0.7421875, m->in->dy);
}

static const struct {
    const char *name;
    void (*make)(made *m);
} habits[] = {
    {"sum", sum},
    {"mean", mean},
    {"odd-mean", odd_mean},
    {"sum-of-positive", sum_of_positive},
    {"token-losses", token_losses},
    {"masked", masked},
    {"padded", padded},
    {"uniform-x", uniform_x},
    {"uniform-weights", uniform_weights},
    {"ones-and-zeros", ones_and_zeros},
    {"small-integers", small_integers},
    {"one-hot", one_hot},
    {"sparse-x", sparse_x},
    {"sparse-weights", sparse_weights},
    {"offset", offset},
    {"large-x", large_x},
    {"small-x", small_x},
    {"large-weights", large_weights},
    {"nearly-no-down", nearly_no_down},
    {"one-large-column", one_large_column},
    {"router-of-zeros", router_of_zeros},
    {"sharp-router", sharp_router},
    {"constant-weights", constant_weights},
    {"copied-experts", copied_experts},
    {"widened-experts", widened_experts},
    {"repeated-output", repeated_output},
};
enum { HABITS = sizeof habits / sizeof *habits };

/* ---- cases ---- */

/* The last two are of few hidden units: where tokens lie in one direction, rows of dW_up err as wholes,
 * and there are no other rows in which that would average out. */
static const struct {
    const char *fields;
    int tokens, d_model;
} layers[] = {
    {"'rule':'tc','top_k':2,'gate':'softmax','experts':8,'d_expert':96,'precision':'bf16'", 384,
     64},
    {"'rule':'tc','top_k':1,'norm':'sum','gate':'sigmoid','experts':4,'d_expert':64,"
     "'precision':'f32'",
     384, 64},
    {"'rule':'et','gate':'sigmoid','norm':'fanout','experts':8,'d_expert':64,'precision':'bf16'",
     384, 64},
    {"'rule':'ec','gate':'softmax','experts':6,'d_expert':96,'shared':false,'precision':'f32'", 384,
     64},
    {"'layer':'dense','d_expert':192,'precision':'bf16'", 384, 64},
    {"'layer':'dense','d_expert':192,'precision':'f32'", 384, 64},
    {"'rule':'tc','top_k':2,'gate':'softmax','experts':4,'d_expert':16,'shared_d_expert':24,"
     "'precision':'bf16'",
     640, 256},
    {"'layer':'dense','d_expert':16,'precision':'f32'", 640, 256},
};
enum { LAYERS = sizeof layers / sizeof *layers };

bool cp_habit_case(et_case *c, size_t index, et_error *error)
{
    char json[512];
    size_t layer = index % LAYERS;
    if (index >= HABITS * LAYERS) return false;
    snprintf(json, sizeof json,
             "{'name':'habit-%s-%zu',%s,'tokens':%d,'d_model':%d,'input':{'source':'normal','seed'"
             ":%zu}}",
             habits[index / LAYERS].name, layer, layers[layer].fields, layers[layer].tokens,
             layers[layer].d_model, index);
    return cp_case(c, json, error) == ET_OK;
}

static void round_all(et_dtype dtype, size_t count, et_real *values)
{
    for (size_t i = 0; i < count; i++)
        values[i] = (et_real)et_round_to_dtype((double)values[i], dtype);
}

void cp_take_habit(const et_case *c, et_step_inputs *in)
{
    made m = {.c = c, .in = in, .stream = et_stream_open(c->input.seed, "habit")};
    if (strncmp(c->name, "habit-", 6) != 0) return;
    for (size_t i = 0; i < HABITS; i++) {
        size_t length = strlen(habits[i].name);
        if (strncmp(c->name + 6, habits[i].name, length) == 0 && c->name[6 + length] == '-' &&
            strlen(c->name) == length + 8)
            habits[i].make(&m);
    }
    round_all(c->precision, tokens_of(&m), in->x);
    round_all(c->precision, tokens_of(&m), in->dy);
    round_all(c->precision, weights_of(&m), in->up);
    round_all(c->precision, weights_of(&m), in->down);
}

/* ---- units ---- */

static bool plan(cp_list *list, const cp_options *o, et_error *error)
{
    (void)o;
    et_case c;
    for (size_t i = 0; cp_habit_case(&c, i, error); i++)
        if (!cp_list_add_case(list, &cp_habits, &c, i, error)) return false;
    return true;
}

const cp_part cp_habits = {
    "habits",    "honest kernels on layers of ones, copies, positive numbers, and the like",
    1,           plan,
    cp_try_some, cp_report_honest};
