#!/usr/bin/python3
"""autograd.py: small layers by torch.autograd, for switches on which no run of the released code bears.

    tests/witness/autograd.py DIR            writes the bundles below into DIR (data/witness)
    tests/witness/autograd.py --check DIR    computes them again and compares: 1e-13 of each tensor's largest

A witness outside of ref/: it shares no code with etref, nor does it import or call it. It is written from the paper's
equations (arXiv:2603.11535) and parametrised as the authors' released code is, so that what etref says in other words
is translated here, in `case_of`, and nowhere else:

    granularity G counts the shared expert, expansion E:  n = G E routed experts of width h = 4 d / G
    target load of an expert among P tokens:              k = P (G-1) // (G E) with a shared expert, P // E without
    choices of a token under token choice:                K = G - 1 with a shared expert, G without
    softmax_e_shared_out: the shared expert weighs        1/G
    threshold = ema / (1 - beta^u), test r >= threshold (where a case does not ask for the paper's)

It is not the released code. What that computed itself are the other bundles of data/witness. Everything is a dense
sum over all tokens and all experts in float64; gradients are autograd's. Inputs are sums of uniform numbers of Python's
`random`, the same on every machine. Needs torch 1.13 or later (Debian: python3-torch).
"""
import json
import math
import os
import random
import struct
import sys

import torch

torch.set_default_dtype(torch.float64)

GATES = {"sigmoid": "sigmoid", "relu": "relu", "softmax": "softmax", "softmax_k": "softmax_tokens",
         "softmax_e": "softmax_anchor", "softmax_e_shared_out": "softmax_anchor_out"}

DEFAULTS = dict(tokens=48, d=8, G=2, E=4, shared=True, activation="sigmoid", norm="none", pool=None, micro=1,
                paper_threshold=False, capacity=None, beta=0.9, corrected=True, updates=3, warmup=0, evaluate=False,
                balance="none", coef=0.0, rate=0.0, global_load=False, zeta=0.0, ties=False)

OUT = dict(activation="softmax_e_shared_out")

CASES = [
    # softmax_e_shared_out, granularity 2 and more, in every rule
    ("out-ec", "ec", dict(OUT, tokens=50)),  # k = 50 * 1 // 8
    ("out-ec-fine", "ec", dict(OUT, G=4)),
    ("out-ec-noshared", "ec", dict(OUT, shared=False)),
    ("out-ec-fanout", "ec", dict(OUT, G=4, norm="fanout")),
    ("out-et", "et", OUT),
    ("out-et-fine-capacity", "et", dict(OUT, G=4, capacity=0.125)),
    ("out-et-noshared", "et", dict(OUT, shared=False)),
    ("out-et-eval", "et", dict(OUT, G=4, evaluate=True, capacity=0.125)),
    ("out-et-warmup", "et", dict(OUT, warmup=4)),
    ("out-tc", "tc", dict(OUT, G=3, d=6)),
    # the norms, and what the anchor's share gets under them
    ("fanout-ec", "ec", dict(norm="fanout", G=4)),
    ("fanout-et-noshared", "et", dict(norm="fanout", shared=False)),
    ("fanout-et-anchor", "et", dict(norm="fanout", activation="softmax_e", G=4)),
    ("sum-tc", "tc", dict(norm="sum", activation="softmax", G=4)),
    ("sum-et", "et", dict(norm="sum", G=4)),
    # softmax over the experts without an anchor; over the tokens of a micro-batch
    ("softmax-et", "et", dict(activation="softmax")),
    ("softmax-tokens-et-micro", "et", dict(activation="softmax_k", micro=2)),
    # the paper's threshold: strict, ema as it is
    ("paper-et", "et", dict(tokens=50, paper_threshold=True, corrected=False, updates=40)),
    ("micro-et-capacity", "et", dict(micro=3, capacity=0.5)),
    ("warmup-over-et", "et", dict(warmup=3)),
    ("micro-ec-pools", "ec", dict(micro=2, pool=12)),
    # scores that equal each other and the threshold: whole numbers
    ("ties-tc", "tc", dict(ties=True, G=4)),
    ("ties-ec", "ec", dict(ties=True, G=4)),
    ("ties-et-strict", "et", dict(ties=True, corrected=False, paper_threshold=True)),
    ("ties-et-relu", "et", dict(ties=True, corrected=False, activation="relu")),
    ("ties-et-capacity", "et", dict(ties=True, corrected=False, G=4, capacity=0.125, updates=40)),
    # losses and balancing
    ("z-loss-et", "et", dict(zeta=0.1)),
    ("z-loss-tc-micro", "tc", dict(zeta=0.1, micro=2, G=4)),
    ("proportional-tc", "tc", dict(balance="proportional", rate=0.005, G=4)),
    ("lossfree-tc-global", "tc", dict(balance="lossfree", rate=0.005, micro=2, global_load=True)),
    ("aux-tc-micro", "tc", dict(balance="aux", coef=0.5, micro=2, G=4)),
    ("aux-tc-global", "tc", dict(balance="aux", coef=0.5, micro=2, global_load=True, G=4)),
]


# ---- the released parameters, and a case in etref's words ----

class Config:
    def __init__(self, name, rule, changes):
        self.__dict__.update(DEFAULTS, name=name, rule=rule, **changes)
        self.n = self.G * self.E
        self.h = 4 * self.d // self.G
        self.batch = self.tokens // self.micro
        self.P = self.pool or self.batch
        self.k = self.P * (self.G - 1) // (self.G * self.E) if self.shared else self.P // self.E
        self.K = self.G - 1 if self.shared else self.G
        self.train = not self.evaluate
        self.choice = self.train and (rule == "ec" or (rule == "et" and self.updates < self.warmup))


def case_of(c):
    case = dict(name="autograd-" + c.name, layer="moe", rule=c.rule, mode="eval" if c.evaluate else "train",
                tokens=c.tokens, d_model=c.d, d_expert=c.h, experts=c.n, gate=GATES[c.activation], norm=c.norm,
                shared=c.shared, micro_batches=c.micro, z_loss_coef=c.zeta, precision="f64")
    if c.rule == "tc":
        case.update(top_k=c.K, balance=c.balance, global_load=c.global_load)
        if c.balance == "aux":
            case.update(balance_coef=c.coef)
        if c.balance in ("lossfree", "proportional"):
            case.update(bias_rate=c.rate)
        return case
    case.update(granularity=c.G - 1 if c.shared else c.G, pool_tokens=c.P, ema_decay=c.beta,
                threshold="strict" if c.paper_threshold else "inclusive", ema_bias_correction=c.corrected,
                ema_updates=c.updates)
    if c.rule == "et":
        case.update(capacity_factor=c.capacity, step=c.updates, warmup_steps=c.warmup)
    return case


# ---- inputs ----

class Draw:
    def __init__(self, seed):
        self.random = random.Random(seed)

    def normal(self, *shape, scale=1.0):
        count = math.prod(shape)
        values = [scale * (sum(self.random.random() for _ in range(12)) - 6) for _ in range(count)]
        return torch.tensor(values).reshape(shape)


def inputs_of(c):
    draw = Draw(c.name)
    d, h, n = c.d, c.h, c.n
    t = {"in.x": draw.normal(c.tokens, d), "in.dy": draw.normal(c.tokens, d),
         "in.w_router": draw.normal(n, d, scale=d ** -0.5), "in.w_up": draw.normal(n, h, d, scale=d ** -0.5),
         "in.w_down": draw.normal(n, d, h, scale=h ** -0.5)}
    if c.shared:
        t["in.shared_up"] = draw.normal(h, d, scale=d ** -0.5)
        t["in.shared_down"] = draw.normal(d, h, scale=h ** -0.5)
    if c.ties:
        t["in.x"], t["in.w_router"] = torch.round(t["in.x"]), torch.round(2 * t["in.w_router"])
    if c.rule != "tc":  # the average over the batches of `updates` steps before
        ema = torch.zeros(n)
        for _ in range(c.updates):
            scores = draw.normal(c.tokens, d) @ t["in.w_router"].T
            ema = c.beta * ema + (1 - c.beta) * kth_scores(c, scores)
        t["in.ema"] = torch.round(ema) if c.ties else ema
    if c.balance in ("lossfree", "proportional"):
        t["in.bias"] = draw.normal(n, scale=0.1)
    if c.global_load:  # some distribution of the K choices of a micro-batch's tokens, in quarters
        share = torch.tensor([1.0 + draw.random.randrange(8) for _ in range(n)])
        t["in.load"] = torch.round(4 * c.K * c.batch * share / share.sum()) / 4
    return t


# ---- routing: which expert takes which token; nothing is differentiated ----

def largest_first(scores):
    """Each column sorted in descending order, and its order; among equals the earlier first."""
    return torch.sort(scores, dim=0, descending=True, stable=True)


def kth_scores(c, r):
    """[n]: the k-th largest score, of each pool where pools choose, averaged."""
    size = c.P if c.choice else c.batch
    return torch.stack([largest_first(part)[0][c.k - 1] for part in r.split(size)]).mean(0)


def take_top(scores, counts):
    """z for one group of tokens: expert i takes its counts[i] best."""
    order = largest_first(scores)[1]
    z = torch.zeros_like(scores)
    for i in range(scores.shape[1]):
        z[order[:int(counts[i]), i], i] = 1
    return z


def route(c, r, given, t):
    n = c.n
    if c.rule == "tc":
        best = largest_first((r + given.get("in.bias", 0)).T)[1][:c.K].T
        return torch.zeros_like(r).scatter(1, best, 1.0)
    weight = 1 - c.beta ** c.updates if c.corrected else 1
    threshold = given["in.ema"] / weight
    if c.train:
        t["route.cutoff"] = kth_scores(c, r)
        t["state.ema"] = c.beta * given["in.ema"] + (1 - c.beta) * t["route.cutoff"]
        t["metric.cutoff_gap"] = t["route.cutoff"] - threshold
        t["metric.cutoff_gap_abs"] = t["metric.cutoff_gap"].abs()
    if c.choice:
        return torch.cat([take_top(part, [c.k] * n) for part in r.split(c.P)])
    t["route.threshold"] = threshold
    passing = (r > threshold if c.paper_threshold else r >= threshold).to(r.dtype)
    t["metric.raw_usage"] = passing.mean(0)
    if c.capacity is None or c.evaluate:
        return passing
    lower, upper = math.floor(c.k * (1 - c.capacity)), math.floor(c.k * (1 + c.capacity))
    counts = torch.stack([part.sum(0) for part in passing.split(c.batch)])  # [M,n]
    t["metric.saturation"] = (counts - upper).clamp(min=0).sum().reshape(1) / counts.sum()
    t["metric.starvation"] = (lower - counts).clamp(min=0).sum().reshape(1) / (lower * counts.numel())
    t["metric.overflow_rate"] = (counts > upper).double().mean().reshape(1)
    t["metric.underflow_rate"] = (counts < lower).double().mean().reshape(1)
    assert (counts > upper).any() and (counts < lower).any(), "%s: both bounds must act" % c.name
    return torch.cat([take_top(part, m.clamp(lower, upper)) for part, m in zip(r.split(c.batch), counts)])


# ---- the layer ----

def feed_forward(x, up, down):
    return torch.relu(x @ up.T) ** 2 @ down.T


def gate_of(c, r):
    """p [N,n], and the shared expert's weight [N]."""
    one = torch.ones(len(r))
    if c.activation == "sigmoid":
        return torch.sigmoid(r), one
    if c.activation == "relu":
        return torch.relu(r), one
    if c.activation == "softmax":
        return torch.softmax(r, 1), one
    if c.activation == "softmax_k":
        return torch.cat([torch.softmax(part, 0) for part in r.split(c.batch)]), one
    share = torch.softmax(torch.cat([torch.zeros(len(r), 1), r], 1), 1)
    if c.rule == "tc":
        return share[:, 1:], one
    return share[:, 1:], share[:, 0] if c.activation == "softmax_e" else one / c.G


def losses_of(c, r, p, z, given, t):
    """What is differentiated beside <y,dy>: means over the micro-batches, with their coefficients."""
    total = torch.zeros(())
    if c.balance == "aux":
        values = []
        for p_m, z_m in zip(p.split(c.batch), z.split(c.batch)):
            load = given["in.load"] if c.global_load else z_m.sum(0)
            values.append((c.n * load / (c.K * c.batch) * p_m.mean(0)).sum())
        t["loss.aux"] = torch.stack(values).mean().reshape(1)
        total = total + c.coef * t["loss.aux"].sum()
    if c.zeta:
        t["loss.z"] = (torch.logsumexp(r, 1) ** 2).mean().reshape(1)
        total = total + c.zeta * t["loss.z"].sum()
    return total


def biases_of(c, z, given, t):
    load = given["in.load"] if c.global_load else z.sum(0) / c.micro
    if c.balance == "lossfree":
        t["state.bias"] = given["in.bias"] + c.rate * torch.sign(load.mean() - load)
    if c.balance == "proportional":
        t["state.bias"] = given["in.bias"] + c.rate * (1 - c.n * load / (c.K * c.batch))


def compute(c):
    given, t = inputs_of(c), {}
    leaf = {name: value.clone().requires_grad_() for name, value in given.items()
            if name not in ("in.dy", "in.ema", "in.bias", "in.load")}
    x = leaf["in.x"]
    r = x @ leaf["in.w_router"].T
    r.retain_grad()
    with torch.no_grad():
        z = route(c, r.detach(), given, t)
    p, s = gate_of(c, r)
    fanout = z.sum(1)
    w = p * z
    if c.norm == "sum":
        w = w / torch.where(fanout > 0, w.sum(1), torch.ones(c.tokens))[:, None]
    if c.norm == "fanout":
        count = fanout + c.shared
        w, s = w / count.clamp(min=1)[:, None], s / count.clamp(min=1)
    y = sum(w[:, i:i + 1] * feed_forward(x, leaf["in.w_up"][i], leaf["in.w_down"][i]) for i in range(c.n))
    if c.shared:
        y = y + s[:, None] * feed_forward(x, leaf["in.shared_up"], leaf["in.shared_down"])
        t["fwd.shared_weight"] = s
    ((y * given["in.dy"]).sum() + losses_of(c, r, p, z, given, t)).backward()
    biases_of(c, z, given, t)
    used = p[z > 0]
    t.update({"fwd.logits": r, "fwd.gates": p, "fwd.y": y, "bwd.logits": r.grad,
              "route.mask": z.to(torch.uint8), "route.load": z.sum(0).int(), "route.fanout": fanout.int(),
              "metric.usage": z.mean(0),
              "metric.logit_std": r.std(unbiased=False).reshape(1), "metric.gate_mean": used.mean().reshape(1),
              "metric.gate_std": used.std(unbiased=False).reshape(1)})
    t.update({"bwd" + name[2:]: value.grad for name, value in leaf.items()})
    t.update(given)
    return {name: value.detach() for name, value in t.items()}


# ---- files ----

TYPES = {torch.float64: ("F64", "d"), torch.int32: ("I32", "i"), torch.uint8: ("U8", "B")}


def write(path, c, tensors):
    metadata = {"format": "etref-bundle", "version": "1", "case": json.dumps(case_of(c)),
                "producer": "tests/witness/autograd.py: torch.autograd in float64 on a CPU, parametrised as the "
                            "released code of arXiv:2603.11535"}
    header, data, at = {"__metadata__": metadata}, [], 0
    for name in sorted(tensors, key=lambda name: (-tensors[name].element_size(), name)):
        tensor = tensors[name].contiguous()
        word, letter = TYPES[tensor.dtype]
        raw = struct.pack("<%d%s" % (tensor.numel(), letter), *tensor.flatten().tolist())
        header[name] = {"dtype": word, "shape": list(tensor.shape), "data_offsets": [at, at + len(raw)]}
        at += len(raw)
        data.append(raw)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + b"".join(data))


def read(path):
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header, data = json.loads(file.read(length)), file.read()
    letters = dict(TYPES.values())
    case = json.loads(header.pop("__metadata__")["case"])
    return case, {name: [v for (v,) in struct.iter_unpack("<" + letters[about["dtype"]],
                                                          data[slice(*about["data_offsets"])])]
                  for name, about in header.items()}


def differences(path, c, tensors):
    case, stored = read(path)
    if case != case_of(c) or stored.keys() != tensors.keys():
        return [path + ": another case, or other tensors"]
    found = []
    for name, values in stored.items():
        now = tensors[name].double().flatten()
        apart = (torch.tensor(values, dtype=torch.float64) - now).abs().max()
        # in.ema is a mean of sums, whose last bits hang on the processor
        drawn = name.startswith("in.") and name != "in.ema"
        exact = drawn or tensors[name].dtype != torch.float64
        if not apart <= (0 if exact else 1e-13 * now.abs().max()):
            found.append("%s: %s: apart by %g" % (path, name, apart))
    return found


def main():
    check = sys.argv[1:2] == ["--check"]
    if len(sys.argv) != 2 + check:
        sys.exit("usage: autograd.py [--check] DIR")
    found = []
    for name, rule, changes in CASES:
        c = Config(name, rule, changes)
        path, tensors = os.path.join(sys.argv[-1], case_of(c)["name"] + ".safetensors"), compute(c)
        if check:
            found += differences(path, c, tensors)
        else:
            write(path, c, tensors)
    print("autograd.py: %d bundles %s" % (len(CASES), "compared" if check else "written"))
    sys.exit("\n".join(found) or 0)


if __name__ == "__main__":
    main()
