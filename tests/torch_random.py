#!/usr/bin/python3
"""torch_random: layers that nobody chose, computed by PyTorch: none is rejected.

    ETREF_LIBRARY=build/libetref.so tests/torch_random.py [FROM [COUNT]]

Layer number FROM and so on has sizes, switches and inputs drawn by its number, as the campaign's part `random` has, whose
own kernels (tests/campaign/random.c) know the paper's layers alone. Of three numbers two make an expert layer with
activations, biases, padding, capacities, groups, weights on inputs, scales, computed by
tools/examples/verify_pytorch.py; the third a layer of the model around it, or an optimiser's step, by
tools/examples/model_layers_pytorch.py. Each in f32, bf16 and f16. Prints those that are rejected, and a line with the
counts. Exit status 1 where one was.
"""
import os
import random
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(HERE, os.pardir, "tools", each) for each in ("examples", "python")]
sys.dont_write_bytecode = True
import torch
import etref
import model_layers_pytorch
import verify_pytorch

PROFILES = ("f32", "bf16", "f16")


def size(dice, low, high):
    """low to high, each power of two as likely as the next."""
    return int(low * ((high + 1) / low) ** dice.random())


def token_choice(dice, case):
    n = case["experts"]
    case["top_k"] = 1 + dice.randrange(min(n, 6))
    case["balance"] = dice.choice(["none", "aux", "aux_error", "lossfree", "proportional"])
    if case["balance"].startswith("aux"):
        case["balance_coef"] = dice.choice([0.01, 0.3])
    elif case["balance"] != "none":
        case["bias_rate"] = dice.choice([0.01, 0.1])
    if dice.random() < 0.3:
        case["select"] = "gate"
    variant = dice.randrange(4)
    if variant == 1:
        case.update(capacity_factor=dice.choice([0.5, 1, 1.25]), drop=dice.choice(["arrival", "score"]))
    elif variant == 2 and n % 2 == 0:
        case.update(groups=2, groups_kept=1, group_score=dice.choice(["max", "top2"]))
        case["top_k"] = min(case["top_k"], n // 2)


def thresholds(dice, case):
    pool = case["tokens"] // case["micro_batches"] - case.get("padding", 0)
    if case["rule"] == "ec" and case["mode"] == "train":
        pool = dice.choice([P for P in range(1, pool + 1) if pool % P == 0])
        case["pool_tokens"] = pool
    case["target_load"] = 1 + dice.randrange(min(pool, 40))
    case["threshold"] = dice.choice(["strict", "inclusive"])
    case["ema_decay"] = dice.choice([0.9, 0.99, 0.999])
    case["ema_updates"] = 10 + dice.randrange(1000)
    case["ema_bias_correction"] = dice.random() < 0.5
    if case["rule"] == "et" and dice.random() < 0.3:
        case["capacity_factor"] = dice.choice([0.25, 0.5, 1])


def experts(dice, number):
    batches = dice.choice([1, 1, 1, 2, 3])
    case = {"name": "random-%d" % number, "rule": dice.choice(["tc", "tc", "ec", "et"]),
            "micro_batches": batches, "tokens": batches * size(dice, 1, 200 // batches),
            "d_model": size(dice, 2, 96), "d_expert": size(dice, 1, 96), "experts": size(dice, 1, 24),
            "activation": dice.choice(["relu2", "swiglu", "swiglu", "gelu", "gelu_tanh"]),
            "expert_bias": dice.random() < 0.5, "weigh": dice.choice(["output", "output", "input"]),
            "routed_scale": dice.choice([1, 1, 2.5, 0.3]),
            "gate": dice.choice(["sigmoid", "sigmoid", "relu", "softmax", "softmax_anchor",
                                 "softmax_anchor_out", "softmax_tokens"]),
            "norm": dice.choice(["none", "none", "fanout", "sum"]), "shared": dice.random() < 0.6,
            "mode": dice.choice(["train", "train", "train", "eval"]),
            "precision": dice.choice(["f32", "bf16", "bf16", "f16"]),
            "input": {"seed": number, "source": dice.choice(
                ["normal", "normal", "normal", "text", "ties", "skewed", "outlier"])}}
    if dice.random() < 0.3:
        case["z_loss_coef"] = dice.choice([0.001, 0.1])
    if dice.random() < 0.3 and (case["rule"] == "tc" or case["gate"] != "softmax_tokens"):
        case["padding"] = dice.randrange(case["tokens"] // batches)
    if case["gate"] == "softmax_tokens" and case["input"]["source"] == "outlier":
        case["norm"] = "none"  # a sum of gates may be so small that its inverse overflows
    if case["rule"] == "tc":
        case["gate"] = case["gate"].replace("softmax_tokens", "softmax")
        token_choice(dice, case)
    else:
        thresholds(dice, case)
    return case


def model_layer(dice, number):
    layer = dice.choice(list(model_layers_pytorch.CASES))
    case = {"name": "random-%d" % number, "layer": layer,
            "tokens": size(dice, 1, 90), "d_model": size(dice, 1, 72),
            "precision": dice.choice(["f64", "f32", "bf16", "f16"]),
            "input": {"seed": number,
                      "source": dice.choice(["normal", "normal", "outlier", "tiny", "huge"])}}
    if case["input"]["source"] in ("normal", "outlier") and dice.random() < 0.3:
        case["input"]["mean"] = dice.choice([0.5, 2, -5])
    if layer in ("rmsnorm", "rope", "attention"):
        heads = dice.choice([1, 2, 3, 4])
        case.update(heads=heads, d_model=2 * heads * size(dice, 1, 24))
    if layer in ("rope", "attention"):
        case["sequence"] = case["tokens"]
        case["tokens"] *= dice.choice([1, 1, 2])
    if layer == "rmsnorm":
        case["rms_eps"] = dice.choice([2.0 ** -52, 1e-6, 1e-5])
    elif layer == "attention":
        case["kv_heads"] = dice.choice([k for k in range(1, heads + 1) if heads % k == 0])
    elif layer == "cross_entropy":
        case.update(vocab=size(dice, 1, 300), softcap=dice.choice([15, 15, 0, 30]))
    elif layer == "adamw":
        case.update(step=dice.choice([0, 1, 10, 1000]), decay=dice.choice([0, 0.1]),
                    beta2=dice.choice([0.95, 0.999]), eps=dice.choice([1e-10, 1e-8]))
    elif layer == "muon":
        case["momentum"] = dice.choice([0, 0.9, 0.95])
    return case


def case_of_number(number):
    dice = random.Random(number)
    return model_layer(dice, number) if number % 3 == 2 else experts(dice, number)


def profiles_for(case):
    """Of f16 not where autograd's dP, which passes through it, overflows."""
    large = case["layer"] == "attention" and case["input"]["source"] in ("outlier", "huge")
    return PROFILES[:2] if large else PROFILES


def computed(golden, profile):
    """What PyTorch makes of the golden's inputs."""
    case = golden.case
    if case["layer"] in model_layers_pytorch.CASES:
        kernel = model_layers_pytorch.Kernel(profile)
        made = getattr(model_layers_pytorch, case["layer"])(kernel, golden, case)
        return {name: values.detach() for name, values in made.items()}
    inputs = {name: golden[name] for name in golden if name.startswith("in.")}
    return verify_pytorch.Layer(case, inputs, profile).run().result


def main():
    first, count = [int(word) for word in (sys.argv[1:] + ["0", "100"][len(sys.argv) - 1:])]
    torch.set_num_threads(1)
    counts = {"refused": 0, "pass": 0, "inconclusive": 0, "mismatch": 0}
    for number in range(first, first + count):
        try:
            golden = etref.golden(case_of_number(number), framework="torch")
        except etref.Error:
            counts["refused"] += 1
            continue
        for profile in profiles_for(golden.case):
            verdict = etref.verify(golden, computed(golden, profile), profile=profile, ties="any", explain=False)
            counts[verdict.outcome] += 1
            if verdict.outcome == "mismatch":
                print("random-%d under %s: %s" % (number, profile, verdict.line), flush=True)
    print("torch_random: %d layers: %s" % (count, ", ".join("%d %s" % (n, what) for what, n in counts.items())))
    return 1 if counts["mismatch"] else 0


if __name__ == "__main__":
    sys.exit(main())
