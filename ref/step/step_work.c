/* step_work.c: see step_work.h. Each product of the forward pass has two of the same size in the backward pass. */
#include "ref/step/step_work.h"

/* Multiplications, a millisecond of them: a team of threads is woken some hundred times for a layer, some microseconds
 * each, and those that wait for the next loop keep a processor busy. */
static const double GRAIN = 1 << 21;

size_t et_threads_worth(double work, size_t cores)
{
    size_t threads = work < GRAIN * (double)cores ? 1 + (size_t)(work / GRAIN) : cores;
    return threads > 0 ? threads : 1;
}

/* Tokens times experts that take them. */
static double slots(const et_case *c)
{
    if (c->rule == ET_TC) return (double)c->tokens * (double)c->top_k;
    return (double)c->tokens / (double)c->pool_tokens * (double)c->target_load * (double)c->experts;
}

double et_case_work(const et_case *c)
{
    double N = (double)c->tokens, d = (double)c->d_model;
    switch (c->layer) {
    case ET_DENSE: return 3 * N * 2 * d * (double)c->d_expert;
    case ET_MOE:
        return 3 * d *
               (slots(c) * 2 * (double)c->d_expert + N * 2 * (double)c->shared_d_expert + N * (double)c->experts);
    case ET_LAYER_RMSNORM:
    case ET_LAYER_ROPE:
    case ET_LAYER_ADAMW: return 8 * N * d;
    case ET_LAYER_ATTENTION: return 3 * N * 2 * d * (double)c->sequence;
    case ET_LAYER_CROSS_ENTROPY: return 3 * N * d * (double)c->vocab;
    case ET_LAYER_MUON: return 5 * 3 * N * d * (N < d ? N : d); /* five steps of three products */
    }
    return 0;
}
