/* optimizer.h: from gradients to new weights: clipping, AdamW, Muon, and their schedules.
 *
 * Every function works on one tensor; which optimiser a tensor has is the model's business (gpt.h).
 * All arrays belong to the caller. Nothing is allocated (with a rounding: a product's operands).
 */
#ifndef ETREF_OPTIMIZER_H
#define ETREF_OPTIMIZER_H

#include "etref/matmul.h"
#include "etref/rounding.h"
#include "etref/status.h"

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

/* ---- clipping ---- */

/* sum of g^2 in index order: over tensors, the norm's square. */
double et_squares(size_t count, const et_real *g);

/* min(1, clip / (norm + 1e-6)): by what all gradients are multiplied. clip 0: 1, no clipping. A
 * norm that is NaN or infinite gives NaN or 0. */
double et_clip_factor(double norm, double clip);

/* ---- AdamW (Loshchilov and Hutter 2019) ----
 *
 *     m <- b1 m + (1 - b1) g                     m^ = m / (1 - b1^t)
 *     v <- b2 v + (1 - b2) g^2                   v^ = v / (1 - b2^t)       t = updates + 1
 *     w <- w - rate decay w - rate m^ / (sqrt(v^) + eps)
 *
 * The paper: betas 0.9 and 0.95 (released: 0.8 and 0.95), eps 1e-10, decay 0. */
typedef struct et_adamw {
    double rate, beta1, beta2, eps, decay;
    const et_rounding *rounding; /* NULL: none */
} et_adamw;

/* g in; m, v, w in and out, `count` numbers each. updates: how many there have been before. g = 0
 * with m = v = 0 leaves w alone (eps above 0). ET_EINVAL, and nothing is touched: an array that is
 * NULL and has elements, a beta not in [0, 1), eps not above 0. */
et_status et_adamw_update(const et_adamw *a, size_t updates, size_t count, const et_real *g,
                          et_real *m, et_real *v, et_real *w, et_error *error);

/* ---- Muon (Jordan et al. 2024) ----
 *
 *     m <- mu m + (1 - mu) g             u = (1 - mu) g + mu m                 (Nesterov)
 *     X = u / (|u|_F + 1e-7)
 *     five times   A = X X',   X <- 3.4445 X + (-4.7750 A + 2.0315 A^2) X
 *     w <- w - rate sqrt(max(1, rows / columns)) X
 *
 * for a matrix of rows <= columns; a taller one is transposed first and X back afterwards. X has
 * the singular vectors of u; its singular values go to the neighbourhood of 1, roughly 0.7 to 1.2,
 * and u = 0 stays 0. */
typedef struct et_muon {
    et_engine engine;
    double rate, momentum;
    const et_rounding *rounding; /* NULL: none */
} et_muon;

/* How many numbers of scratch a matrix wants: 2 rows columns + 2 min(rows, columns)^2. */
size_t et_muon_room(size_t rows, size_t columns);

/* g in; m, w in and out, [rows,columns] each; room [et_muon_room] scratch. ET_EINVAL as above,
 * momentum not in [0, 1), an unknown engine; ET_ENOMEM: with a rounding alone. */
et_status et_muon_update(const et_muon *f, size_t rows, size_t columns, const et_real *g,
                         et_real *m, et_real *w, et_real *room, et_error *error);

/* ---- schedules ---- */

/* Linear from 1/warmup, then 1, then over the last `cooldown` of the steps linear to `last`. */
typedef struct et_schedule {
    size_t steps, warmup; /* warmup 0: none */
    double cooldown;      /* share of the steps, 0 to 1 */
    double last;          /* of the rate, at the end: 0, or 0.1 in the paper */
} et_schedule;

/* By what the learning rates of step 0, 1, .. are multiplied. With C = round(cooldown steps), p =
 * min(1, (steps - step) / C): p + (1 - p) last, times min(1, (step + 1) / warmup); past the end:
 * `last`. */
double et_schedule_factor(const et_schedule *s, size_t step);

/* Linear from `first` to `last` over `ramp` steps, then constant. Muon's momentum: 0.85, 0.95, 300.
 * */
double et_ramp(double first, double last, size_t ramp, size_t step);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
#endif
