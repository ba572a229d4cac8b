#!/usr/bin/python3
"""torch_random: layers beyond the paper's that nobody chose, computed by PyTorch: none is rejected.

    tests/torch_random.py ETREF [FROM [COUNT]]

Layer number FROM and so on has sizes, switches and inputs drawn by its number, as the campaign's part `random` has
(tests/campaign/random.c, whose own kernels know the paper's layers alone): activations, biases, padding, capacities, groups,
weights on inputs, scales. tools/examples/verify_pytorch.py computes it in f32, bf16 and f16. Prints each that is
rejected, and a line with the counts. Exit status 1 where one was.
"""
import json
import os
import random
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, os.pardir, "tools", "examples"))
sys.dont_write_bytecode = True
import torch
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
    variant = dice.randrange(4)
    if variant == 0:
        case["padding"] = dice.randrange(1 + case["tokens"] // case["micro_batches"])
    elif variant == 1:
        case.update(capacity_factor=dice.choice([0.5, 1, 1.25]), drop=dice.choice(["arrival", "score"]))
    elif variant == 2 and n % 2 == 0:
        case.update(groups=2, groups_kept=1, group_score=dice.choice(["max", "top2"]))
        case["top_k"] = min(case["top_k"], n // 2)


def thresholds(dice, case):
    pool = case["tokens"] // case["micro_batches"]
    case["target_load"] = 1 + dice.randrange(min(pool, 40))
    case["threshold"] = dice.choice(["strict", "inclusive"])
    case["ema_decay"] = dice.choice([0.9, 0.99, 0.999])
    case["ema_updates"] = 10 + dice.randrange(1000)
    case["ema_bias_correction"] = dice.random() < 0.5
    if case["rule"] == "et" and dice.random() < 0.3:
        case["capacity_factor"] = dice.choice([0.25, 0.5, 1])


def case_of_number(number):
    dice = random.Random(number)
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
    if case["rule"] == "tc":
        case["gate"] = case["gate"].replace("softmax_tokens", "softmax")
        token_choice(dice, case)
    else:
        thresholds(dice, case)
    return case


def judged(etref, golden, profile):
    """Status and words of a verdict on PyTorch's layer."""
    with tempfile.TemporaryDirectory() as room:
        candidate = os.path.join(room, "candidate.safetensors")
        case, inputs = verify_pytorch.read_golden(golden)
        verify_pytorch.write_tensors(candidate, verify_pytorch.Layer(case, dict(inputs), profile).run().result, {})
        done = subprocess.run([etref, "verify", golden, candidate, "--profile", profile, "--quiet", "--no-explain", "--ties", "any"],
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        return done.returncode, done.stdout.strip()


def main():
    etref = sys.argv[1]
    first, count = [int(word) for word in (sys.argv[2:] + ["0", "100"][len(sys.argv) - 2:])]
    torch.set_num_threads(1)
    refused, answers = 0, {0: 0, 1: 0, 2: 0, 3: 0}
    with tempfile.TemporaryDirectory() as room:
        for number in range(first, first + count):
            case = os.path.join(room, "case.json")
            with open(case, "w") as file:
                json.dump(case_of_number(number), file)
            made = subprocess.run([etref, "generate", "--case", case, "--out", room], capture_output=True, text=True)
            if made.returncode:
                refused += 1
                continue
            golden = os.path.join(room, "random-%d.safetensors" % number)
            for profile in PROFILES:
                status, words = judged(etref, golden, profile)
                answers[status] += 1
                if status in (1, 2):
                    print("random-%d under %s: %s" % (number, profile, words), flush=True)
            os.remove(golden)
    print("torch_random: %d layers, %d refused; of %d verdicts %d pass, %d are inconclusive, %d rejected"
          % (count, refused, sum(answers.values()), answers[0], answers[3], answers[1] + answers[2]))
    return 1 if answers[1] + answers[2] else 0


if __name__ == "__main__":
    sys.exit(main())
