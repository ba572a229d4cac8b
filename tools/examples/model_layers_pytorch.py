#!/usr/bin/python3
"""model_layers_pytorch.py: the layers around the experts in PyTorch, judged by etref.

    model_layers_pytorch.py [LAYER...]

For each layer (rmsnorm, rope, attention, cross_entropy, adamw, muon), in f32, bf16 and f16, computes a golden's
layer and its gradients with torch, as a model would, and has etref judge what came out: it must pass. Then the same with each
of its planted faults, of which the verdict must be a mismatch that names it. Prints a line for each; exit status 0 if all
came out so, else 1.

To judge a kernel of your own, put it where `rmsnorm`, `rope`, ... stand here. Needs torch 1.13 or later, and
etref.py beside it (installed, or tools/python in PYTHONPATH).

Sums are taken in float32, as tensor cores do it: a number is rounded to the format where it is stored, and kept in a
float32. (torch 1.13 sums its own bf16 products on the CPU in 8 bits.)
"""
import math
import sys

import torch

import etref

# Of each layer the cases of the suite `model`; faults are planted in the first.
CASES = {
    "rmsnorm": ["rmsnorm-heads", "rmsnorm", "rmsnorm-tiny"],
    "rope": ["rope", "rope-long"],
    "attention": ["attention-shared", "attention", "attention-sharp", "attention-one-token"],
    "cross_entropy": ["cross-entropy", "cross-entropy-uncapped", "cross-entropy-one-word"],
    "adamw": ["adamw", "adamw-old"],
    "muon": ["muon-tall", "muon-wide"],
}
FAULTS = {
    "rmsnorm": ["norm-sums-squares", "norm-subtracts-mean", "norm-gradient-direct"],
    "rope": ["rope-other-way", "rope-pairs-neighbours", "rope-positions-from-one"],
    "attention": ["attention-not-scaled", "attention-sees-all", "attention-heads-modulo"],
    "cross_entropy": ["loss-not-capped", "loss-cap-not-in-gradient", "loss-gradient-summed"],
    "adamw": ["adam-not-corrected", "adam-decays-gradient", "adam-eps-inside"],
    "muon": ["muon-not-nesterov", "muon-gradient-whole", "muon-not-scaled"],
}


class Kernel:
    """What a kernel of a format stores, and its gradient, is rounded to it."""

    def __init__(self, profile, fault=None):
        self.profile, self.fault = profile, fault

    def stored(self, v):
        types = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}
        return v.to(types[self.profile]).float()

    def given(self, golden, *names):
        return [golden[n] if n == "in.targets" else self.stored(golden[n].float()) for n in names]

    def has(self, fault):
        return self.fault == fault


def rmsnorm(k, golden, case):
    x, dy = k.given(golden, "in.x", "in.dy")
    heads, w = case["heads"], x.shape[1] // case["heads"]
    v = x.detach().clone().requires_grad_()
    u = v.float().view(-1, heads, w)
    if k.has("norm-subtracts-mean"):
        u = u - u.mean(-1, keepdim=True)
    squares = u.pow(2).sum(-1) if k.has("norm-sums-squares") else u.pow(2).mean(-1)
    scale = torch.rsqrt(squares + case["rms_eps"])
    if k.has("norm-gradient-direct"):
        scale = scale.detach()
    y = k.stored((u * scale.unsqueeze(-1)).reshape(x.shape))
    y.backward(dy)
    return {"fwd.y": y, "fwd.scale": scale, "bwd.x": k.stored(v.grad)}


def rope(k, golden, case):
    x, dy = k.given(golden, "in.x", "in.dy")
    N, heads, T = len(x), case["heads"], case["sequence"]
    w = x.shape[1] // heads
    t = torch.arange(N, dtype=torch.float32) % T
    if k.has("rope-positions-from-one"):
        t = t + 1
    theta = t[:, None] * case["rope_base"] ** (-torch.arange(0, w, 2, dtype=torch.float32) / w)
    cosine, sine = theta.cos()[:, None], theta.sin()[:, None]
    if k.has("rope-other-way"):
        sine = -sine
    v = x.detach().clone().requires_grad_()
    u = v.float().view(N, heads, w)
    a, b = (u[..., 0::2], u[..., 1::2]) if k.has("rope-pairs-neighbours") else u.split(w // 2, -1)
    pair = [a * cosine + b * sine, b * cosine - a * sine]
    y = torch.stack(pair, -1).flatten(-2) if k.has("rope-pairs-neighbours") else torch.cat(pair, -1)
    y = k.stored(y.reshape(x.shape))
    y.backward(dy)
    return {"fwd.y": y, "bwd.x": k.stored(v.grad)}


def attention(k, golden, case):
    qkv, dy = k.given(golden, "in.qkv", "in.dy")
    T, Hq, Hkv = case["sequence"], case["heads"], case["kv_heads"]
    w, B = dy.shape[1] // Hq, len(qkv) // T
    v = qkv.detach().clone().requires_grad_()
    heads = v.view(B, T, Hq + 2 * Hkv, w).transpose(1, 2)
    query, key, value = heads.split([Hq, Hkv, Hkv], 1)
    spread = (lambda u: u.repeat(1, Hq // Hkv, 1, 1)) if k.has("attention-heads-modulo") else (
        lambda u: u.repeat_interleave(Hq // Hkv, 1))
    key, value = spread(key), spread(value)
    S = query.float() @ key.float().transpose(-1, -2)
    if not k.has("attention-not-scaled"):
        S = S / math.sqrt(w)
    if not k.has("attention-sees-all"):
        S = S.masked_fill(torch.ones(T, T, dtype=torch.bool).triu(1), -math.inf)
    P = k.stored(S.softmax(-1))
    y = k.stored((P @ value).transpose(1, 2).reshape(dy.shape))
    y.backward(dy)
    return {"fwd.y": y, "fwd.lse": S.logsumexp(-1), "bwd.qkv": k.stored(v.grad)}


def cross_entropy(k, golden, case):
    x, head, targets = k.given(golden, "in.x", "in.head", "in.targets")
    x, head = x.clone().requires_grad_(), head.clone().requires_grad_()
    z = (x.float() @ head.float().T)
    cap = case["softcap"]
    logits = z if cap == 0 or k.has("loss-not-capped") else cap * torch.tanh(z / cap)
    if k.has("loss-cap-not-in-gradient"):
        logits = z + (logits - z).detach()
    loss = torch.nn.functional.cross_entropy(logits, targets.long(), reduction="none")
    (loss.sum() if k.has("loss-gradient-summed") else loss.mean()).backward()
    return {"fwd.vocab_logits": logits, "fwd.loss": loss, "loss.mean": loss.mean().reshape(1),
            "bwd.x": k.stored(x.grad), "bwd.head": k.stored(head.grad)}


def adamw(k, golden, case):
    """The state stays in float32, as in mixed precision."""
    g, = k.given(golden, "in.gradient")
    w, m, v = [golden[n].float() for n in ("in.w", "in.first", "in.second")]
    b1, b2, t = case["beta1"], case["beta2"], case["step"] + 1
    if k.has("adam-decays-gradient"):
        g = g + case["decay"] * w
    m = b1 * m + (1 - b1) * g
    v = b2 * v + (1 - b2) * g * g
    first, second = (1, 1) if k.has("adam-not-corrected") else (1 - b1 ** t, 1 - b2 ** t)
    root = (v / second + case["eps"]).sqrt() if k.has("adam-eps-inside") else (
        (v / second).sqrt() + case["eps"])
    if not k.has("adam-decays-gradient"):
        w = w - case["rate"] * case["decay"] * w
    w = w - case["rate"] * (m / first) / root
    return {"state.w": w, "state.first": m, "state.second": v}


def muon(k, golden, case):
    g, = k.given(golden, "in.gradient")
    w, m, mu = golden["in.w"].float(), golden["in.first"].float(), case["momentum"]
    m = mu * m + (1 if k.has("muon-gradient-whole") else 1 - mu) * g
    u = m if k.has("muon-not-nesterov") else (
        (1 if k.has("muon-gradient-whole") else 1 - mu) * g + mu * m)
    X = k.stored(u / (u.norm() + 1e-7))
    tall = X.shape[0] > X.shape[1]
    X = X.T if tall else X
    for _ in range(5):
        A = k.stored(X @ X.T)
        B = k.stored(-4.7750 * A.float() + 2.0315 * k.stored(A @ A).float())
        X = k.stored(3.4445 * X.float() + k.stored(B @ X).float())
    X = (X.T if tall else X).float()
    scale = 1 if k.has("muon-not-scaled") else math.sqrt(max(1, w.shape[0] / w.shape[1]))
    return {"state.w": w - case["rate"] * scale * X, "state.first": m}


def judge(layer, name, profile, fault=None):
    case = dict(etref.golden(name).case, precision=profile)
    if fault == "adam-eps-inside":
        case["eps"] = 1e-3
    golden = etref.golden(case, framework="torch")
    made = globals()[layer](Kernel(profile, fault), golden, golden.case)
    return etref.verify(golden, {n: v.detach() for n, v in made.items()}, profile=profile)


def main():
    wrong = 0
    for layer in sys.argv[1:] or CASES:
        runs = [(name, None) for name in CASES[layer]]
        runs += [(CASES[layer][0], fault) for fault in FAULTS[layer]]
        for profile in ("f32", "bf16", "f16"):
            for name, fault in runs:
                verdict = judge(layer, name, profile, fault)
                named = [each.split(":")[0] for each in verdict.explanations]
                right = fault in named if fault else verdict.outcome != "mismatch"
                wrong += not right
                print("%-24s %-5s %s%s" % (name, profile, "" if right else "WRONG: ",
                                           fault + ": named" if fault and right else verdict.line))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
