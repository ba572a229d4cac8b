/* et.h: an Expert Threshold layer as CUDA kernels, one for each step. See et.cu.
 *
 * What is computed: rule et, sigmoid gates, no norm, with or without shared expert, strict or
 * inclusive, with or without capacity; forward, backward, and the moving average after the step.
 * Left out: other rules, gates and norms, losses, micro-batches; and everything that would make it
 * fast (tensor cores, several elements a thread, fused steps).
 */
#ifndef ET_EXAMPLE_ET_H
#define ET_EXAMPLE_ET_H

#include <cstddef>
#include <map>
#include <string>
#include <vector>

/* Faults that can be planted, to see them found. */
enum et_fault { FAULT_NONE, FAULT_FACTOR_TWO, FAULT_GATE_FORGOTTEN, FAULT_LAST_TILE_DROPPED };

/* A step of the layer. N tokens, d width, n experts of hidden width h, a shared one of hs (0: none).
 * Matrices are row-major: x, dy [N,d]; router [n,d]; up [n,h,d]; down [n,d,h]; shared_up [hs,d];
 * shared_down [d,hs]; threshold, ema [n]. */
struct et_problem {
    size_t N, d, h, n, hs;
    const double *x, *dy, *router, *up, *down, *shared_up, *shared_down;
    const double *ema;   /* before the step */
    double weight;       /* thresholds are ema / weight: 1, or 1 - beta^u with bias correction */
    bool inclusive;      /* r >= c, not r > c */
    bool training;       /* capacity and ema count */
    size_t lower, upper; /* bounds of an expert's load; 0 and N: no capacity */
    size_t k;            /* an expert's target load */
    double ema_decay;    /* beta */
    et_fault fault;
};

/* What came out, under etref's names: "fwd.y", "bwd.w_up", ... */
typedef std::map<std::string, std::vector<float>> et_result;

/* Everything in float. */
et_result et_layer_f32(const et_problem &problem, bool gpu);
/* x, weights, activations and their gradients stored in bf16; logits, gates and sums in float. */
et_result et_layer_bf16(const et_problem &problem, bool gpu);

#endif
