#!/usr/bin/python3
"""verify_pytorch.py: a layer in PyTorch, judged by etref.

    verify_pytorch.py GOLDEN... [--profile NAME] [--break FAULT] [--out FILE] [-- OPTION...]

Reads the inputs of a golden bundle, computes the layer and its gradients on the CPU with
torch.autograd, writes what came out as a candidate (a safetensors file under the bundle's names),
has `etref verify` judge it, and ends with that verdict's exit status: 0 pass, 1 mismatch, 2 error,
3 inconclusive. Options after -- are etref's.

    build/etref generate --case smoke-et --out /tmp
    tools/examples/verify_pytorch.py /tmp/smoke-et.safetensors --profile bf16
    tools/examples/verify_pytorch.py /tmp/smoke-et.safetensors --profile bf16 --break factor-two

To judge a kernel of your own, put it where class Layer stands here; the rest can stay.

Letters: N tokens, d width, h hidden width, n routed experts, S slots (pairs of a token and an
expert that takes it; numbered expert by expert, tokens ascending). x, dy [N,d], r, p [N,n],
z [N,n] 0 or 1, w [S], s [N].

How it rounds. Every number is a float32 (profile f64: float64). What a bf16 kernel would store in
bf16 is rounded to a bf16 number and kept in a float32, so that products are exact and sums are
taken in float32, as tensor cores do it. f16 is done the same way; PyTorch's own half products do
not exist on the CPU. Gates, logits and the sums of gradients stay in float32.

Left out: operands rounded to TF32, which a CPU does not have. Needs torch 1.13 or later (on Debian:
python3-torch, `tools/install-deps torch`), nothing else.
"""
import argparse
import json
import math
import os
import struct
import subprocess
import sys
import tempfile

try:
    import torch
    from torch.nn import functional
except ImportError:
    print("verify_pytorch: %s has no torch; on Debian, tools/install-deps torch installs it for "
          "/usr/bin/python3" % sys.executable, file=sys.stderr)
    sys.exit(2)

f64, f32, bf16, f16 = torch.float64, torch.float32, torch.bfloat16, torch.float16


# ---- safetensors: 8 bytes of length, a header in JSON, the data ----

TYPES = {"F64": f64, "F32": f32, "F16": f16, "BF16": bf16, "I32": torch.int32, "U8": torch.uint8}


def read_tensors(path):
    """Returns {name: tensor} and the metadata, {key: text}."""
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > 100_000_000:
            raise ValueError("not a safetensors file")
        header = json.loads(file.read(length))
        data = bytearray(file.read())
    metadata = header.pop("__metadata__", {})
    tensors = {}
    for name, about in header.items():
        begin, end = about["data_offsets"]
        values = torch.empty(0, dtype=TYPES[about["dtype"]])
        if end > begin:
            values = torch.frombuffer(data[begin:end], dtype=values.dtype)
        tensors[name] = values.reshape(about["shape"])
    return tensors, metadata


def write_tensors(path, tensors, metadata):
    names = {dtype: name for name, dtype in TYPES.items()}
    header, data, at = {"__metadata__": metadata}, [], 0
    # Large elements first: then every tensor begins at a multiple of its element's size.
    for name in sorted(tensors, key=lambda name: (-tensors[name].element_size(), name)):
        tensor = tensors[name].detach().contiguous()
        raw = tensor.reshape(-1, 1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
        header[name] = {"dtype": names[tensor.dtype], "shape": list(tensor.shape),
                        "data_offsets": [at, at + len(raw)]}
        at += len(raw)
        data.append(raw)
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + b"".join(data))


# ---- precision ----

# Each profile: the type in which all is computed and summed; the type of operands, intermediates
# and outputs; of gates and weights; of logits.
PROFILES = {
    "f64": (f64, f64, f64, f64),
    "f32": (f32, f32, f32, f32),
    "bf16": (f32, bf16, f32, f32),
    "bf16-low": (f32, bf16, bf16, bf16),
    "f16": (f32, f16, f32, f32),
}


class Stored(torch.autograd.Function):
    """A value that passes through memory: rounded to `dtype` on its way forward, its gradient to
    `dtype_back` on the way back. None: the gradient is never stored, and stays as it is."""

    @staticmethod
    def forward(ctx, value, dtype, dtype_back):
        ctx.dtype_back = dtype_back
        return value.to(dtype).to(value.dtype)

    @staticmethod
    def backward(ctx, gradient):
        if ctx.dtype_back is not None:
            gradient = gradient.to(ctx.dtype_back).to(gradient.dtype)
        return gradient, None, None


# ---- the layer ----


class Layer:
    """A case and its inputs; after run(), `result` holds the candidate: {name: tensor}.

    run() goes through the steps in the order of the mathematics. Every step is a small method of
    its own, so that a planted fault (below) can replace exactly one."""

    def __init__(self, case, inputs, profile):
        self.case = case
        self.work, self.low, self.gate_type, self.logit_type = PROFILES[profile]
        self.train = case["mode"] == "train"
        self.moe = case["layer"] == "moe"
        self.rule = case.get("rule")
        self.shared = self.moe and case["shared"]
        self.M = case.get("micro_batches", 1)
        self.given = inputs.pop("route.mask", None)  # an assignment in place of the rule's
        self.result = {}  # the candidate
        self.asked = {}  # {name: tensor}: dL/d(tensor) is to be found
        self.types = {}  # {name: dtype} in which a kernel would store it
        self.chosen = None  # with a capacity: the choices, dropped ones among them
        self.inputs = {name: values.to(self.work) for name, values in inputs.items()}
        self.dy = self.inputs["in.dy"]
        # x and the weights, rounded as operands of products. Their gradients are summed in `work`
        # and rounded once, when they are written.
        self.x = self.parameter("in.x", "bwd.x")
        self.up = self.parameter("in.w_up", "bwd.w_up")
        self.down = self.parameter("in.w_down", "bwd.w_down")
        self.activation = case.get("activation", "relu2")
        gated = self.activation == "swiglu"
        self.gating = self.parameter("in.w_gate", "bwd.w_gate") if gated else None
        self.shared_gating = None
        self.biases = {}
        if case.get("expert_bias", False):
            kinds = ["b_up", "b_down"] + (["b_gate"] if gated else [])
            for name in kinds + (["shared_" + kind for kind in kinds] if self.shared else []):
                self.biases[name] = self.parameter("in." + name, "bwd." + name)
        if self.moe:
            self.router = self.parameter("in.w_router", "bwd.w_router")
        if self.shared:
            self.shared_up = self.parameter("in.shared_up", "bwd.shared_up")
            self.shared_down = self.parameter("in.shared_down", "bwd.shared_down")
            if gated:
                self.shared_gating = self.parameter("in.shared_gate", "bwd.shared_gate")

    def parameter(self, name, gradient):
        leaf = self.inputs[name].to(self.low).to(self.work).requires_grad_()
        return self.keep(None, leaf, self.low, gradient)

    def keep(self, name, value, dtype, gradient=None):
        """Puts `value` into the candidate as `name`, and asks for its gradient as `gradient`."""
        if name:
            self.result[name] = value.to(dtype)
        if gradient:
            self.asked[gradient] = value
            self.types[gradient] = dtype
        return value

    def stored(self, value):
        """An intermediate of the experts, and its gradient: both in the low type."""
        return Stored.apply(value, self.low, self.low)

    def run(self):
        if self.moe:
            y, losses = self.mixture()
        else:
            gating = None if self.gating is None else [self.gating]
            y = self.experts([self.x], [self.up], [self.down], "slot_", gating)[0]
            losses = 0
        self.keep("fwd.y", y, self.low)
        # L = <y, dy> + losses is the number that is differentiated.
        total = (y * self.dy).sum() + losses
        found = torch.autograd.grad(total, list(self.asked.values()), allow_unused=True)
        for (name, value), gradient in zip(self.asked.items(), found):
            gradient = torch.zeros_like(value) if gradient is None else gradient
            self.result[name] = gradient.to(self.types[name])
        return self

    # -- a feed-forward network: H = x W_up', A = relu(H)^2, f(x) = A W_down'; or A = gelu(H); or
    # V = x W_gate', A = silu(V) H --

    def product(self, rows, matrix):
        return rows @ matrix.t()

    def activate(self, H, V=None):
        if self.activation == "swiglu":
            return self.stored(functional.silu(V)) * H
        if self.activation == "relu2":
            return torch.relu(H) ** 2
        return functional.gelu(H, approximate="tanh" if self.activation == "gelu_tanh" else "none")

    def experts(self, rows, up, down, name, gating=None):
        """rows: for each expert the tokens that it takes [load,d]; up, down, gating: its matrices.
        Returns the list of their outputs. H, V, A and f(x) of all experts are one tensor each, by
        slots."""
        loads = [len(each) for each in rows]

        def products(rows, matrices, bias):
            parts = [self.product(x, W) for x, W in zip(rows, matrices)]
            return self.stored(torch.cat([self.add_bias(part, name, bias, i)
                                          for i, part in enumerate(parts)]))

        H = products(rows, up, "b_up")
        V = None if gating is None else products(rows, gating, "b_gate")
        A = self.stored(self.activate(H) if V is None else self.activate(H, V))
        out = products(A.split(loads), down, "b_down")
        self.keep("fwd.%spre" % name, H, self.low, "bwd.%spre" % name)
        if V is not None:
            self.keep("fwd.%sgate_pre" % name, V, self.low, "bwd.%sgate_pre" % name)
        self.keep("fwd.%sact" % name, A, self.low, "bwd.%sact" % name)
        self.keep("fwd.%sout" % name, out, self.low, "bwd.%sout" % name)
        return out.split(loads)

    def add_bias(self, part, name, bias, i):
        """part + the bias of expert i; of the shared one, where name says so."""
        b = self.biases.get("shared_" + bias if name == "shared_" else bias)
        if b is None:
            return part
        return part + (b if name == "shared_" or not self.moe else b[i])

    # -- the mixture: y_t = s_t f_shared(x_t) + sum_i z_ti w_ti f_i(x_t) --

    def mixture(self):
        r = Stored.apply(self.score(), self.logit_type, self.logit_type)
        self.keep("fwd.logits", r, self.logit_type, "bwd.logits")
        p, anchor = self.gate(r)
        p = Stored.apply(p, self.gate_type, None)
        self.keep("fwd.gates", p, self.gate_type)

        z = self.route(r.detach(), p.detach()) if self.given is None else self.given.bool()
        self.result["route.mask"] = z.to(torch.uint8)
        # The slots: pairs (expert, token) in the order of the experts, then of the tokens.
        self.slot_expert, self.slot_token = z.t().nonzero(as_tuple=True)
        loads = z.sum(0).tolist()

        w, s = self.weigh(p, anchor, z)
        w = Stored.apply(w, self.gate_type, self.gate_type)
        self.keep("route.slot_weight", w, self.gate_type, "bwd.slot_weight")
        rows = self.slot_input(w).split(loads)
        out = torch.cat(self.experts(rows, self.up, self.down, "slot_", self.gating))
        if not self.shared:
            return self.combine(w, out, None, None), self.losses(r, p, z)
        s = Stored.apply(s, self.gate_type, self.gate_type)
        self.keep("fwd.shared_weight", s, self.gate_type, "bwd.shared_weight")
        rows, up, down = self.shared_input(), self.shared_up, self.shared_down
        gating = None if self.shared_gating is None else [self.shared_gating]
        shared = self.experts([rows], [up], [down], "shared_", gating)[0]
        return self.combine(w, out, s, shared), self.losses(r, p, z)

    def score(self):
        return self.product(self.x, self.router)

    def gate(self, r):
        """p [N,n] for all experts, and the anchor's share [N] or None."""
        gate, N, n = self.case["gate"], *r.shape
        if gate == "sigmoid":
            return torch.sigmoid(r), None
        if gate == "relu":
            return torch.relu(r), None
        if gate == "softmax":
            return torch.softmax(r, dim=1), None
        if gate == "softmax_tokens":  # over the tokens of a micro-batch, for each expert
            return torch.softmax(r.view(self.M, N // self.M, n), dim=1).view(N, n), None
        # softmax_anchor, softmax_anchor_out: a logit of 0 in front stands for the shared expert
        p = torch.softmax(torch.cat([torch.zeros_like(r[:, :1]), r], dim=1), dim=1)
        return p[:, 1:], p[:, 0]

    def weigh(self, p, anchor, z):
        """w [S] and s [N], with which the experts' outputs enter y."""
        fanout = z.sum(1) + (1 if self.shared else 0)
        ones = torch.ones_like(fanout)
        by = {"none": ones, "fanout": fanout, "sum": (p * z).sum(1)}[self.case["norm"]]
        by = torch.where(by == 0, torch.ones_like(by), by).to(self.work)  # by 0: all its w are 0
        w = p[self.slot_token, self.slot_expert] / by[self.slot_token]
        w = w * self.routed_scale()
        s = torch.ones(len(p), dtype=self.work, requires_grad=True)
        if self.case["gate"] == "softmax_anchor" and self.rule != "tc":
            s = anchor
        if self.case["gate"] == "softmax_anchor_out" and self.rule != "tc":
            s = s / (self.case["granularity"] + 1)
        if self.case["norm"] == "fanout":
            s = s / fanout
        return w, s * self.real()

    def routed_scale(self):
        return self.case.get("routed_scale", 1.0)

    def weighs_input(self):
        return self.case.get("weigh", "output") == "input"

    def slot_input(self, w):
        """What the experts see: rows of x, or w x."""
        rows = self.x[self.slot_token]
        return self.stored(w[:, None] * rows) if self.weighs_input() else rows

    def shared_input(self):
        return self.x

    def combine(self, w, out, s, shared):
        y = torch.zeros_like(self.x) if shared is None else s[:, None] * shared
        return y.index_add(0, self.slot_token, out if self.weighs_input() else w[:, None] * out)

    # -- routing: which expert takes which token; nothing is differentiated --

    def real(self):
        """[N] True where a token is no padding."""
        if "in.mask" in self.inputs:
            return self.inputs["in.mask"] != 0
        return torch.ones(len(self.x), dtype=torch.bool)

    def route(self, r, p):
        """z [N,n], each micro-batch by itself; and the state after the step."""
        case, n = self.case, r.shape[1]
        warm_up = self.rule == "et" and case["step"] < case["warmup_steps"]
        self.choice = self.train and (self.rule == "ec" or warm_up)
        R = self.routed()
        parts = r.view(self.M, -1, n)[:, :R]
        if self.rule == "tc":
            parts = self.scores(r, p).view(self.M, -1, n)[:, :R]
            masks = [self.token_choice(part) for part in parts]
            if case.get("capacity_factor") is not None and self.train:
                self.chosen = self.with_padding(masks)
                gates = p.view(self.M, -1, n)[:, :R]
                masks = [self.drop(*each) for each in zip(masks, parts, gates)]
        elif self.choice:
            masks = [self.expert_choice(part) for part in parts]
        else:
            c = self.threshold(parts)
            self.keep("route.threshold", c, self.work)
            masks = [self.expert_threshold(part, c) for part in parts]
        z = self.with_padding(masks)
        if self.train:
            self.update_state(parts, z)
        return z

    def routed(self):
        """The first tokens of a micro-batch, which are no padding: how many."""
        return int(self.real().sum()) // self.M

    def with_padding(self, masks):
        """[N,n] of all micro-batches; padding takes no expert."""
        rows = len(self.x) // self.M - len(masks[0])
        return torch.cat([functional.pad(mask, (0, 0, 0, rows)) for mask in masks])

    def top(self, scores, count):
        """The `count` best of each column; of equal scores the one with the lower index."""
        best = torch.sort(scores, dim=0, descending=True, stable=True).indices[:count]
        return torch.zeros_like(scores, dtype=torch.bool).scatter_(0, best, True)

    def biased(self, r):
        return r + self.inputs["in.bias"] if "in.bias" in self.inputs else r

    def scores(self, r, p):
        """What tokens choose by, before the bias."""
        return p if self.case.get("select", "logit") == "gate" else r

    def token_choice(self, r):
        score = self.biased(r)
        if self.case.get("groups", 1) > 1:
            score = score.masked_fill(~self.kept_groups(score), self.refused_score())
        return self.top(score.t(), self.case["top_k"]).t()

    def group_score(self, members):
        if self.case.get("group_score", "max") == "max":
            return members.max(-1).values
        return members.topk(2).values.sum(-1)

    def kept_groups(self, score):
        """[N,n] 1 for the experts of a token's best groups."""
        groups = self.case["groups"]
        scores = self.group_score(score.view(len(score), groups, -1))
        kept = self.top(scores.t(), self.case["groups_kept"]).t()
        return kept.repeat_interleave(score.shape[1] // groups, dim=1)

    def refused_score(self):
        return -math.inf

    def slots(self, N):
        """Of an expert in a micro-batch of N tokens."""
        case = self.case
        return math.ceil(N * case["top_k"] / case["experts"] * case["capacity_factor"])

    def drop(self, chosen, r, p):
        """What of an expert's choices keeps its slot."""
        slots = self.slots(len(chosen))
        if self.case.get("drop", "arrival") == "score":
            return self.top(p.masked_fill(~chosen, -math.inf), slots) & chosen
        score = self.biased(r).masked_fill(~chosen, -math.inf)
        order = torch.sort(score, dim=1, descending=True, stable=True).indices
        z, taken = torch.zeros_like(chosen), torch.zeros_like(r[0])
        for j in range(self.case["top_k"]):  # all first choices, then all second ones
            choice = functional.one_hot(order[:, j], chosen.shape[1])
            z |= (choice > 0) & (taken + choice.cumsum(0) <= slots)
            taken = taken + choice.sum(0)
        return z

    def expert_choice(self, r):
        pools = r.split(self.case["pool_tokens"])
        return torch.cat([self.top(pool, self.case["target_load"]) for pool in pools])

    def threshold(self, parts):
        """c [n]: the moving average from before this step."""
        return self.corrected(self.inputs["in.ema"], self.case["ema_updates"])

    def corrected(self, ema, u):
        """An average that started at 0 and has had u updates."""
        if self.case["ema_bias_correction"] and u > 0:
            return ema / (1 - self.case["ema_decay"] ** u)
        return ema

    def passes(self, r, c):
        return r >= c if self.case["threshold"] == "inclusive" else r > c

    def expert_threshold(self, r, c):
        z = self.passes(r, c)
        C, k, N = self.case.get("capacity_factor"), self.case["target_load"], len(r)
        if C is None or not self.train:
            return z
        lower, upper = math.floor(k * (1.0 - C)), math.floor(k * (1.0 + C))
        for i, passed in enumerate(z.sum(0).tolist()):
            count = min(max(passed, lower), upper, N)
            if count != passed:
                z[:, i] = self.top(r[:, i : i + 1], count)[:, 0]
        return z

    def cutoff(self, parts):
        """The k-th largest score of each expert: the mean over pools and micro-batches."""
        k = self.case["target_load"]
        P = self.case["pool_tokens"] if self.choice else parts.shape[1]
        pools = parts.reshape(-1, P, parts.shape[2])
        return torch.sort(pools, dim=1, descending=True).values[:, k - 1].mean(0)

    def update_state(self, parts, z):
        case = self.case
        if self.rule != "tc":
            kth, beta = self.cutoff(parts), case["ema_decay"]
            self.keep("route.cutoff", kth, self.work)
            self.keep("state.ema", beta * self.inputs["in.ema"] + (1 - beta) * kth, self.work)
            self.keep("state.updates", torch.tensor([case["ema_updates"] + 1]), torch.int32)
        elif "in.bias" in self.inputs:
            bias, rate = self.inputs["in.bias"], case["bias_rate"]
            load = self.inputs.get("in.load", z.sum(0).to(self.work) / self.M)
            if case["balance"] == "lossfree":
                bias = bias + rate * torch.sign(load.mean() - load)
            else:
                bias = bias + rate * (1 - self.load_fractions(load))
            self.keep("state.bias", bias, self.work)

    # -- losses: means over the micro-batches --

    def load_fractions(self, load):
        """F: 1 for each expert under perfect balance."""
        n, K, N = self.case["experts"], self.case["top_k"], self.counted() // self.M
        return n * load / (K * N)

    def counted(self):
        """Of how many tokens means are taken."""
        return int(self.real().sum())

    def losses(self, r, p, z):
        case, total = self.case, 0
        real = self.real().view(self.M, -1)
        N = self.counted() // self.M
        if not self.train:
            return total
        if case.get("balance") in ("aux", "aux_error"):
            aux = 0
            counted = self.loads(z).chunk(self.M)
            for part_p, part_z, part in zip(p.chunk(self.M), counted, real):
                F = self.load_fractions(self.inputs.get("in.load", part_z.sum(0).to(self.work)))
                F = F - 1 if case["balance"] == "aux_error" else F
                aux = aux + (F * part_p[part].sum(0) / N).sum() / self.M
            self.keep("loss.aux", aux.reshape(1), self.work)
            total = total + self.aux_term(case["balance_coef"] * aux)
        if case["z_loss_coef"]:
            z_loss = (torch.logsumexp(r, dim=1) ** 2)[real.flatten()].sum() / (N * self.M)
            self.keep("loss.z", z_loss.reshape(1), self.work)
            total = total + case["z_loss_coef"] * z_loss
        return total

    def loads(self, z):
        """What the balancing loss takes for loads: choices, also those that were dropped."""
        return z if self.chosen is None else self.chosen

    def aux_term(self, term):
        return term


# ---- faults that --break plants: each replaces one step of the layer ----


def backward_of(value, other):
    """`value`, but with the gradient of `other`: other - other is 0 forward, and not backward."""
    return value.detach() + (other - other.detach())


class FactorTwo(Layer):
    """the factor 2 of relu(H)^2's derivative is missing"""

    def activate(self, H):
        return backward_of(torch.relu(H) ** 2, torch.relu(H) ** 2 / 2)


class ReluMask(Layer):
    """relu(H)^2 is differentiated as H^2: the mask H > 0 is missing"""

    def activate(self, H):
        return backward_of(torch.relu(H) ** 2, H**2)


class ReluNotSquared(Layer):
    """A = relu(H)"""

    def activate(self, H):
        return torch.relu(H)


class HalvesExchanged(Layer):
    """SwiGLU's A = silu(H) V, not silu(V) H"""

    def activate(self, H, V=None):
        return super().activate(V, H)


class GateMissing(Layer):
    """SwiGLU's A = H"""

    def activate(self, H, V=None):
        return H


class LogisticForSilu(Layer):
    """SwiGLU's A = s(V) H, s the logistic function"""

    def activate(self, H, V=None):
        return torch.sigmoid(V) * H


class OtherGelu(Layer):
    """GELU by its tanh for the exact one, and back"""

    def activate(self, H, V=None):
        return functional.gelu(H, approximate="tanh" if self.activation == "gelu" else "none")


class SiluConstant(Layer):
    """the derivative of silu(v) = v s(v) is taken as s(v)"""

    def activate(self, H, V=None):
        return self.stored(V * torch.sigmoid(V).detach()) * H


class ScaleForgotten(Layer):
    """routed_scale is taken as 1"""

    def routed_scale(self):
        return 1.0


class NormForgotten(Layer):
    """the weights are not divided by their sum over the top K"""

    def weigh(self, p, anchor, z):
        _, s = super().weigh(p, anchor, z)
        return p[self.slot_token, self.slot_expert] * self.routed_scale(), s


class WeightOnOutput(Layer):
    """y takes w f(x) where f(w x) is meant"""

    def weighs_input(self):
        return False


class WeightOnBoth(Layer):
    """y takes w f(w x) where f(w x) is meant"""

    def combine(self, w, out, s, shared):
        return super().combine(w, w[:, None] * out, s, shared)


class InputWeightDetached(Layer):
    """dw is <dX, w x>, X = w x"""

    def slot_input(self, w):
        rows = self.x[self.slot_token]
        return self.stored(backward_of(w[:, None] * rows, w[:, None] * (w[:, None] * rows).detach()
                                       + (w[:, None].detach() * rows)))


class BiasForgotten(Layer):
    """b_down is missing"""

    def add_bias(self, part, name, bias, i):
        return part if bias == "b_down" else super().add_bias(part, name, bias, i)


class BiasUnweighted(Layer):
    """y takes w A W_down' + b_down"""

    def combine(self, w, out, s, shared):
        b = self.biases["b_down"][self.slot_expert]
        y = super().combine(w, out - b, s, shared)
        return y.index_add(0, self.slot_token, b)


class BiasOfNeighbour(Layer):
    """expert i adds the biases of expert i + 1"""

    def add_bias(self, part, name, bias, i):
        return super().add_bias(part, name, bias, (i + 1) % self.case["experts"])


class PaddingRouted(Layer):
    """padding tokens take experts like others"""

    def routed(self):
        return len(self.x) // self.M


class PaddingInLosses(Layer):
    """the losses' means divide by all tokens"""

    def counted(self):
        return len(self.x)


class AccumulatorBf16(Layer):
    """sums are kept in bf16: rounded after every 16 terms"""

    def product(self, rows, matrix):
        total = 0
        for x, W in zip(rows.split(16, dim=1), matrix.split(16, dim=1)):
            total = Stored.apply(total + x @ W.t(), bf16, None)
        return total


class GateForgotten(Layer):
    """experts' outputs are added with weight 1"""

    def weigh(self, p, anchor, z):
        w, s = super().weigh(p, anchor, z)
        return backward_of(torch.ones_like(w), w), s


class GateDerivative(Layer):
    """the gate's derivative is taken as 1"""

    def gate(self, r):
        p, anchor = super().gate(r)
        return backward_of(p, r), anchor


class WeightMissing(Layer):
    """experts get dO = dy, without their weight"""

    def combine(self, w, out, s, shared):
        y = super().combine(w, out.detach(), s, shared)
        return y.index_add(0, self.slot_token, out - out.detach())


class RouterTerm(Layer):
    """dx lacks what came through the router"""

    def score(self):
        return self.product(self.x.detach(), self.router)


class SharedTerm(Layer):
    """dx lacks what came through the shared expert"""

    def shared_input(self):
        return self.x.detach()


class SharedForgotten(Layer):
    """the shared expert is not added"""

    def combine(self, w, out, s, shared):
        return super().combine(w, out, s, 0 * shared if shared is not None else None)


class LastRow(Layer):
    """the last token of each expert gets 0 from it"""

    def combine(self, w, out, s, shared):
        last = torch.ones(len(out), 1, dtype=self.work)
        last[torch.bincount(self.slot_expert).cumsum(0) - 1] = 0
        return super().combine(w, out * last, s, shared)


class ThresholdSide(Layer):
    """strict for inclusive, inclusive for strict"""

    def passes(self, r, c):
        return r > c if self.case["threshold"] == "inclusive" else r >= c


class TieHigher(Layer):
    """of equal scores the higher index wins"""

    def top(self, scores, count):
        return super().top(scores.flip(0), count).flip(0)


class EmaBeforeUse(Layer):
    """the moving average is updated before the threshold is taken from it"""

    def threshold(self, parts):
        beta, u = self.case["ema_decay"], self.case["ema_updates"]
        ema = beta * self.inputs["in.ema"] + (1 - beta) * self.cutoff(parts)
        return self.corrected(ema, u + 1)


class AuxGradient(Layer):
    """the balancing loss is reported and not differentiated"""

    def aux_term(self, term):
        return term.detach()


class DropByTokens(Layer):
    """over the capacity, second choices stand in line like first ones"""

    def drop(self, chosen, r, p):
        return chosen & (chosen.long().cumsum(0) <= self.slots(len(chosen)))


class CapacityFloor(Layer):
    """an expert has a slot less than its capacity"""

    def slots(self, N):
        return super().slots(N) - 1


class NormBeforeCapacity(Layer):
    """gates are normalised before choices are dropped"""

    def weigh(self, p, anchor, z):
        return super().weigh(p, anchor, self.chosen)


class AuxAfterDropping(Layer):
    """the balancing loss does not count what was dropped"""

    def loads(self, z):
        return z


class GroupWithoutBias(Layer):
    """groups are scored without the bias"""

    def group_score(self, members):
        bias = self.inputs["in.bias"].view(1, members.shape[1], -1)
        return super().group_score(members - bias)


class GroupOtherScore(Layer):
    """a group's score is its best member's where the two best are due"""

    def group_score(self, members):
        return members.max(-1).values


class OtherScores(Layer):
    """tokens choose by gate values where logits are due, or by logits where gate values are"""

    def scores(self, r, p):
        return r if self.case.get("select", "logit") == "gate" else p


class RefusedGroupZero(Layer):
    """experts of refused groups have score 0"""

    def refused_score(self):
        return 0.0


FAULTS = {
    "factor-two": FactorTwo,
    "relu-mask": ReluMask,
    "relu-not-squared": ReluNotSquared,
    "swiglu-halves-exchanged": HalvesExchanged,
    "swiglu-half-missing": GateMissing,
    "logistic-for-silu": LogisticForSilu,
    "other-gelu": OtherGelu,
    "silu-constant": SiluConstant,
    "routed-scale-forgotten": ScaleForgotten,
    "norm-forgotten": NormForgotten,
    "padding-routed": PaddingRouted,
    "padding-in-losses": PaddingInLosses,
    "bias-forgotten": BiasForgotten,
    "down-bias-unweighted": BiasUnweighted,
    "bias-of-neighbour": BiasOfNeighbour,
    "weight-on-output": WeightOnOutput,
    "weight-on-both": WeightOnBoth,
    "input-weight-gradient": InputWeightDetached,
    "drop-by-tokens": DropByTokens,
    "capacity-less-one": CapacityFloor,
    "norm-before-capacity": NormBeforeCapacity,
    "aux-after-dropping": AuxAfterDropping,
    "group-without-bias": GroupWithoutBias,
    "group-other-score": GroupOtherScore,
    "gates-in-selection": OtherScores,
    "refused-group-zero": RefusedGroupZero,
    "accumulator-bf16": AccumulatorBf16,
    "gate-forgotten": GateForgotten,
    "gate-derivative": GateDerivative,
    "weight-missing-in-dO": WeightMissing,
    "router-term-in-dx": RouterTerm,
    "shared-term-in-dx": SharedTerm,
    "shared-forgotten": SharedForgotten,
    "last-row-dropped": LastRow,
    "threshold-side": ThresholdSide,
    "tie-higher-index": TieHigher,
    "ema-before-use": EmaBeforeUse,
    "aux-gradient-missing": AuxGradient,
}


# ---- the command line ----


def beside_this(path):
    """A path in the project, whose tools/examples this file lies in, as seen from here."""
    here = os.path.dirname(os.path.abspath(__file__))
    return os.path.relpath(os.path.join(here, "..", "..", path))


def parse(arguments):
    more = []  # what follows "--" is for etref
    if "--" in arguments:
        at = arguments.index("--")
        arguments, more = arguments[:at], arguments[at + 1 :]
    head, usage, body = __doc__.split("\n\n", 2)
    faults = ["    %-22s%s" % (name, fault.__doc__) for name, fault in FAULTS.items()]
    parser = argparse.ArgumentParser(
        formatter_class=argparse.RawDescriptionHelpFormatter, usage=usage.strip(), description=head,
        epilog=body + "\nFaults:\n" + "\n".join(faults))
    add = parser.add_argument
    add("goldens", metavar="GOLDEN", nargs="+", help="a bundle made by etref generate")
    add("--profile", choices=PROFILES, default="f32", help="where to round, and to what")
    add("--break", dest="fault", choices=FAULTS, metavar="FAULT", help="plant a fault")
    add("--out", metavar="FILE", help="keep the candidate there")
    add("--etref", default=beside_this("build/etref"), metavar="TOOL", help="default: %(default)s")
    options = parser.parse_args(arguments)
    if options.out and len(options.goldens) > 1:
        parser.error("--out names one file; there are %d goldens" % len(options.goldens))
    return options, more


def read_golden(path):
    tensors, metadata = read_tensors(path)
    case = json.loads(metadata["case"])
    wanted = ("in.", "route.mask") if case.get("routing") == "given" else "in."
    inputs = {name: values for name, values in tensors.items() if name.startswith(wanted)}
    return case, inputs


def judge(golden, options, more):
    """Computes, writes, and returns what etref says of it."""
    try:
        case, inputs = read_golden(golden)
    except (OSError, KeyError, ValueError, struct.error) as error:
        print("verify_pytorch: %s is no bundle of etref's: %r" % (golden, error), file=sys.stderr)
        return 2
    candidate = FAULTS.get(options.fault, Layer)(case, dict(inputs), options.profile).run().result
    honest = Layer(case, dict(inputs), options.profile).run().result if options.fault else {}
    if options.fault and all(torch.equal(candidate[name], honest[name]) for name in honest):
        print("verify_pytorch: %s changes nothing in this case" % options.fault, file=sys.stderr)
    with tempfile.TemporaryDirectory() as room:
        path = options.out or os.path.join(room, "candidate.safetensors")
        producer = "torch %s, %s" % (torch.__version__, options.profile)
        write_tensors(path, candidate, {"producer": producer})
        command = [options.etref, "verify", golden, path, "--profile", options.profile]
        if len(options.goldens) > 1:
            print(os.path.basename(golden), end=": ", flush=True)
        try:
            return subprocess.call(command + more)
        except OSError as error:
            print("verify_pytorch: %s: %s; `make` builds it, --etref says where it is"
                  % (options.etref, error.strerror), file=sys.stderr)
            return 2


def main():
    options, more = parse(sys.argv[1:])
    answers = {judge(golden, options, more) for golden in options.goldens}
    # The gravest: an error, a mismatch, an inconclusive verdict; then pass.
    return next((status for status in (2, 1, 3) if status in answers), max(answers))


if __name__ == "__main__":
    sys.exit(main())
