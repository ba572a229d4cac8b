"""et.py: an ET layer in Triton, forward and backward, judged by etref.

    et.py [--break FAULT]

Runs on the GPU where there are one and triton; else the same kernels run block by block on the
CPU, by numpy (loops.py). Exit status: 0 pass, 1 mismatch, 2 no torch, 3 inconclusive.

    y_t = f_shared(x_t) + sum over slots s of token t: w_s f_e(x_t)   f(x) = relu(x W_up')^2 W_down'

Letters: N tokens, d width, n experts, h hidden width, S slots: pairs of a token and an expert that
takes it, numbered expert by expert, tokens ascending. Every matrix product is one of two kernels:

    rows      out[s,:] = a[row(s),:] B_e             for the slots s of each expert e
    weights   out_e    = sum over its slots s of a[row(s),:]' b[row'(s),:]

The router and the shared expert are a single expert that takes all tokens. Numbers are float32,
products not in tf32. Gates, thresholds and lists of slots are torch's: they are no place for a
kernel's mistake that this example would show.
"""
import argparse
import os
import sys
from typing import Any, Dict, Optional, Tuple

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "python"))
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import etref  # noqa: E402

try:
    import torch
    from torch import Tensor
except ImportError:
    print("et.py: no torch here (tools/install-deps torch)", file=sys.stderr)
    sys.exit(2)

try:
    if not torch.cuda.is_available():
        raise ImportError
    import triton
    import triton.language as tl

    DEVICE = "cuda"
except ImportError:
    import loops as triton
    import loops as tl

    DEVICE = "cpu"

BLOCK = 32  # rows, columns and terms of a tile; a dot on tensor cores wants 16 at least

CASE: Dict[str, Any] = {
    "name": "triton-et",
    "rule": "et",
    "tokens": 96,
    "d_model": 48,
    "d_expert": 40,
    "experts": 5,
    "ema_updates": 5000,
    "capacity_factor": None,
    "precision": "f32",
    "input": {"source": "normal", "seed": 11},
}


# ---- kernels ----


@triton.jit
def rows_kernel(
    a,
    row,
    B,
    begin,
    out,
    H,
    K,
    C,
    a_row,
    b_expert,
    b_k,
    b_c,
    GATHER: tl.constexpr,
    ACTIVATE: tl.constexpr,
    SLOPE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out [S,C] = a[row] B_e; row [S] if GATHER, else the slot's own. ACTIVATE: H [S,C] gets that,
    and out relu of it, squared. SLOPE: times 2 relu(H)."""
    e = tl.program_id(0)
    first, end = tl.load(begin + e), tl.load(begin + e + 1)
    s = first + tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    c = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    source = tl.load(row + s, mask=s < end, other=0) if GATHER else s
    sums = tl.zeros((BLOCK, BLOCK), dtype=tl.float32)
    for start in range(0, K, BLOCK):
        k = start + tl.arange(0, BLOCK)
        left = tl.load(
            a + source[:, None] * a_row + k[None, :],
            mask=(s < end)[:, None] & (k < K)[None, :],
            other=0.0,
        )
        right = tl.load(
            B + e * b_expert + k[:, None] * b_k + c[None, :] * b_c,
            mask=(k < K)[:, None] & (c < C)[None, :],
            other=0.0,
        )
        sums += tl.dot(left, right, allow_tf32=False)
    place = s[:, None] * C + c[None, :]
    inside = (s < end)[:, None] & (c < C)[None, :]
    if ACTIVATE:
        tl.store(H + place, sums, mask=inside)
        sums = tl.maximum(sums, 0.0) * tl.maximum(sums, 0.0)
    if SLOPE:
        sums = sums * 2 * tl.maximum(tl.load(H + place, mask=inside, other=0.0), 0.0)
    tl.store(out + place, sums, mask=inside)


@triton.jit
def weights_kernel(
    a,
    a_at,
    b,
    b_at,
    begin,
    out,
    I,
    J,
    A_GATHER: tl.constexpr,
    B_GATHER: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out [n,I,J]: a [.,I] and b [.,J], rows a_at[s], b_at[s] if gathered, else the slot's own."""
    e = tl.program_id(0)
    first, end = tl.load(begin + e), tl.load(begin + e + 1)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    j = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    sums = tl.zeros((BLOCK, BLOCK), dtype=tl.float32)
    for start in range(first, end, BLOCK):
        s = start + tl.arange(0, BLOCK)
        a_row = tl.load(a_at + s, mask=s < end, other=0) if A_GATHER else s
        b_row = tl.load(b_at + s, mask=s < end, other=0) if B_GATHER else s
        left = tl.load(
            a + a_row[None, :] * I + i[:, None],
            mask=(i < I)[:, None] & (s < end)[None, :],
            other=0.0,
        )
        right = tl.load(
            b + b_row[:, None] * J + j[None, :],
            mask=(s < end)[:, None] & (j < J)[None, :],
            other=0.0,
        )
        sums += tl.dot(left, right, allow_tf32=False)
    tl.store(
        out + e * I * J + i[:, None] * J + j[None, :],
        sums,
        mask=(i < I)[:, None] & (j < J)[None, :],
    )


@triton.jit
def combine_kernel(
    base, part, w, begin, slots, out, d, WEIGHTED: tl.constexpr, BLOCK: tl.constexpr
):
    """out[t] = base[t] + the sum of part[s], times w[s] if WEIGHTED, over the token's slots."""
    t = tl.program_id(0)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    sums = tl.load(base + t * d + c, mask=c < d, other=0.0)
    for at in range(tl.load(begin + t), tl.load(begin + t + 1)):
        s = tl.load(slots + at)
        values = tl.load(part + s * d + c, mask=c < d, other=0.0)
        sums += values * tl.load(w + s) if WEIGHTED else values
    tl.store(out + t * d + c, sums, mask=c < d)


@triton.jit
def slot_kernel(dy, token, out, w, dout, dw, d, BLOCK: tl.constexpr):
    """dout[s] = w[s] dy[t], dw[s] = <dy[t], out[s]> for the slot's token t."""
    s = tl.program_id(0)
    t = tl.load(token + s)
    weight = tl.load(w + s)
    sums = tl.zeros((BLOCK,), dtype=tl.float32)
    for start in range(0, d, BLOCK):
        c = start + tl.arange(0, BLOCK)
        gradient = tl.load(dy + t * d + c, mask=c < d, other=0.0)
        tl.store(dout + s * d + c, weight * gradient, mask=c < d)
        sums += gradient * tl.load(out + s * d + c, mask=c < d, other=0.0)
    tl.store(dw + s, tl.sum(sums, axis=0))


# ---- their launches ----


def blocks(count: int) -> int:
    return (count + BLOCK - 1) // BLOCK


def new(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device=DEVICE)


class Segments:
    """Slots by experts: expert e's are begin[e] to begin[e+1]; `row` [S] is a slot's token, or
    None: its own number."""

    def __init__(self, begin: Tensor, row: Optional[Tensor], slots: int):
        self.begin, self.row, self.slots = begin.to(torch.int32), row, slots
        self.experts = len(begin) - 1
        self.longest = int((begin[1:] - begin[:-1]).max())

    def rows(
        self,
        a: Tensor,
        B: Tensor,
        transposed: bool,
        gather: bool = False,
        H: Optional[Tensor] = None,
        mode: str = "",
    ) -> Tensor:
        """B [n,C,K] if transposed, else [n,K,C]. mode "activate" fills H, "slope" reads it."""
        C, K = (B.shape[1], B.shape[2]) if transposed else (B.shape[2], B.shape[1])
        out = new(self.slots, C)
        by_k, by_c = (1, K) if transposed else (C, 1)
        rows_kernel[(self.experts, max(blocks(self.longest), 1), blocks(C))](
            a,
            self.row if gather else a,
            B,
            self.begin,
            out,
            out if H is None else H,
            K,
            C,
            a.shape[1],
            C * K,
            by_k,
            by_c,
            GATHER=gather,
            ACTIVATE=mode == "activate",
            SLOPE=mode == "slope",
            BLOCK=BLOCK,
        )
        return out

    def weights(self, a: Tensor, b: Tensor, gather_b: bool = False) -> Tensor:
        I, J = a.shape[1], b.shape[1]
        out = new(self.experts, I, J)
        weights_kernel[(self.experts, blocks(I), blocks(J))](
            a,
            self.begin,
            b,
            self.row if gather_b else self.begin,
            self.begin,
            out,
            I,
            J,
            A_GATHER=False,
            B_GATHER=gather_b,
            BLOCK=BLOCK,
        )
        return out


# ---- the layer ----


def experts_forward(
    x: Tensor, up: Tensor, down: Tensor, at: Segments
) -> Tuple[Tensor, Tensor, Tensor]:
    """H, A [S,h] and f(x) [S,d]."""
    H = new(at.slots, up.shape[1])
    A = at.rows(x, up, True, gather=at.row is not None, H=H, mode="activate")
    return H, A, at.rows(A, down, True)


def experts_backward(
    x: Tensor, up: Tensor, down: Tensor, at: Segments, H: Tensor, A: Tensor, dout: Tensor
) -> Tuple[Tensor, Tensor, Tensor]:
    """dW_up, dW_down, and what each slot adds to dx [S,d]."""
    dH = at.rows(dout, down, False, H=H, mode="slope")
    return (
        at.weights(dH, x, gather_b=at.row is not None),
        at.weights(dout, A),
        at.rows(dH, up, False),
    )


def layer(
    x: Tensor,
    dy: Tensor,
    router: Tensor,
    up: Tensor,
    down: Tensor,
    shared_up: Tensor,
    shared_down: Tensor,
    *,
    threshold: Tensor,
    fault: str = ""
) -> Dict[str, Tensor]:
    """x, dy [N,d]; router [n,d], up [n,h,d], down [n,d,h], shared_up [hs,d], shared_down [d,hs];
    threshold [n]. Returns the bundle's names."""
    N, d = x.shape
    everything = Segments(torch.tensor([0, N], device=DEVICE), None, N)
    r = everything.rows(x, router[None], True)
    mask = r > threshold
    p = torch.sigmoid(r)

    # Slots, expert by expert; and each token's, experts ascending.
    expert, token = mask.t().nonzero(as_tuple=True)
    S, zero = len(token), torch.zeros(1, dtype=torch.int64, device=DEVICE)
    at = Segments(torch.cat([zero, mask.sum(0).cumsum(0)]), token.to(torch.int32), S)
    of_token = torch.argsort(token, stable=True).to(torch.int32)
    first = torch.cat([zero, mask.sum(1).cumsum(0)]).to(torch.int32)
    w = p[token, expert].contiguous()

    H, A, out = experts_forward(x, up, down, at)
    shared_H, shared_A, shared = experts_forward(x, shared_up[None], shared_down[None], everything)
    y = new(N, d)
    combine_kernel[(N, blocks(d))](
        shared, out, w, first, of_token, y, d, WEIGHTED=True, BLOCK=BLOCK
    )

    dout, dw = new(S, d), new(S)
    slot_kernel[(S,)](dy, at.row, out, w, dout, dw, d, BLOCK=BLOCK)
    if fault == "weight-missing-in-dO":
        dout = dy[token].contiguous()
    dup, ddown, share = experts_backward(x, up, down, at, H, A, dout)
    dshared_up, dshared_down, dx = experts_backward(
        x, shared_up[None], shared_down[None], everything, shared_H, shared_A, dy
    )
    dr = torch.zeros_like(r)
    dr[token, expert] = dw * w * (1 - w)  # the sigmoid's slope
    if fault != "router-term-in-dx":
        dx = dx + everything.rows(dr, router[None], False)
    total = new(N, d)
    combine_kernel[(N, blocks(d))](
        dx, share, w, first, of_token, total, d, WEIGHTED=False, BLOCK=BLOCK
    )
    return {
        "fwd.logits": r,
        "route.mask": mask,
        "fwd.y": y,
        "bwd.x": total,
        "bwd.logits": dr,
        "bwd.w_router": everything.weights(dr, x)[0],
        "bwd.w_up": dup,
        "bwd.w_down": ddown,
        "bwd.shared_up": dshared_up[0],
        "bwd.shared_down": dshared_down[0],
    }


FAULTS = ("weight-missing-in-dO", "router-term-in-dx")


def main() -> int:
    parser = argparse.ArgumentParser(description="An ET layer in Triton, judged by etref.")
    parser.add_argument("--break", dest="fault", choices=FAULTS, default="", help="plant a mistake")
    options = parser.parse_args()
    golden = etref.golden(CASE, profile="f32", framework="torch")
    names = ("x", "dy", "w_router", "w_up", "w_down", "shared_up", "shared_down")
    inputs = [golden["in." + name].to(DEVICE) for name in names]
    threshold = golden["route.threshold"].float().to(DEVICE)
    computed = layer(*inputs, threshold=threshold, fault=options.fault)
    verdict = etref.verify(golden, computed, require=["fwd.y", "bwd.*"])
    print("%s: %s" % (DEVICE, verdict.summary()))
    return {"pass": 0, "mismatch": 1, "inconclusive": 3}[verdict.outcome]


if __name__ == "__main__":
    sys.exit(main())
