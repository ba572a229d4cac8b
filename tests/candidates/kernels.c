/* kernels.c: the honest kernels. See candidate.h.
 *
 * Each differs from the first, which rounds and sums as the profile is defined, in ways that real
 * kernels differ: none rounds a value that the first does not round, but for the partial sums and the dy of
 * short-upstream.
 */
#include "tests/candidates/candidate.h"

#include <string.h>

static const cd_kernel table[] = {
    {.name = "sequential", .what = "every sum term after term; rounds wherever the profile says"},
    {.name = "reversed", .what = "every sum from its last term", .order = CD_REVERSED},
    {.name = "blocked", .what = "OpenBLAS's products", .order = CD_BLOCKED},
    {.name = "tree", .what = "pairwise sums", .order = CD_TREE},
    {.name = "split-4", .what = "each sum in 4 parts", .parts = 4},
    {.name = "split-8-tree",
     .what = "each sum in 8 parts, pairwise in each",
     .order = CD_TREE,
     .parts = 8},
    {.name = "compensated", .what = "Kahan's sums: next to no error", .order = CD_COMPENSATED},
    {.name = "wide", .what = "products summed in double, rounded once", .order = CD_WIDE},
    {.name = "fused-hidden",
     .what = "up-projection and relu^2 in one: H is never rounded",
     .order = CD_BLOCKED,
     .fused_hidden = true},
    {.name = "fused",
     .what = "H, A, f(x), dO and dA are rounded as operands only",
     .order = CD_BLOCKED,
     .fused_hidden = true,
     .fused_act = true,
     .fused_out = true,
     .fused_grads = true},
    {.name = "fused-combine",
     .what = "f(x) weighted and added to y without rounding",
     .order = CD_BLOCKED,
     .fused_out = true},
    {.name = "weight-on-act",
     .what = "y = (w A) W_down', dw = <A, dy W_down> (where the format's exponents allow it: not "
             "in f16)",
     .order = CD_BLOCKED,
     .weight_on_act = true},
    {.name = "shuffled",
     .what = "a token's slots added in random order",
     .order = CD_BLOCKED,
     .shuffled = true},
    {.name = "token-tiles",
     .what = "weight gradients in tiles of 16 tokens",
     .order = CD_BLOCKED,
     .token_tile = 16},
    {.name = "wide-outputs",
     .what = "y, dx and dW as accumulated",
     .order = CD_BLOCKED,
     .wide_outputs = true},
    {.name = "wide-router",
     .what = "router in full, gates in double; sigmoid's slope as p(1-p)",
     .order = CD_BLOCKED,
     .wide_gates = true,
     .wide_router = true,
     .slope_from_gate = true},
    {.name = "online",
     .what = "softmax with a running maximum, split sums, p(1-p)",
     .parts = 2,
     .online = true,
     .slope_from_gate = true},
    {.name = "short-upstream",
     .what = "dy is in the intermediates' format already, as autograd's is where y is",
     .order = CD_BLOCKED,
     .short_upstream = true},
    {.name = "atomic",
     .what = "split sums, tiles of 32 tokens, no f(x), shuffled",
     .parts = 4,
     .token_tile = 32,
     .fused_hidden = true,
     .fused_out = true,
     .shuffled = true},
    {.name = "all-in-one",
     .what = "pairwise sums, weight on A, nothing rounded that need not be, shuffled",
     .order = CD_TREE,
     .token_tile = 64,
     .fused_hidden = true,
     .fused_act = true,
     .fused_grads = true,
     .weight_on_act = true,
     .shuffled = true,
     .wide_outputs = true,
     .wide_gates = true,
     .online = true},
};

enum { KERNELS = sizeof table / sizeof *table };

const cd_kernel *cd_kernel_at(size_t index)
{
    return index < KERNELS ? &table[index] : NULL;
}

const cd_kernel *cd_kernel_find(const char *name)
{
    for (size_t i = 0; i < KERNELS; i++)
        if (strcmp(table[i].name, name) == 0) return &table[i];
    return NULL;
}
