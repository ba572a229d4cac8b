#!/usr/bin/env python3
"""regenerate.py: the leakage values of data/leakage, from their definitions, in exact arithmetic.

    python3 data/leakage/regenerate.py [FOLDER]        (this folder by default; half a minute)

Shares no code with ref/: binomials are big integers and their logarithms 60-digit decimals; numbers
of labels come from the recursion over all score sequences, or over states where these are too many;
the codec's numbers are fractions, and rounding to a float type is done on fractions, too. Needs
nothing but Python's standard library. tests/test_leakage_data.c holds the library to the values.
"""
import json
import os
import sys
from decimal import Decimal, getcontext
from fractions import Fraction
from itertools import product
from math import comb, floor

getcontext().prec = 60
LN2 = Decimal(2).ln()


def log2(x):
    return Decimal(x).ln() / LN2


# ---- bounds ----


def setup(tokens, experts, granularity, layers, score_bits):
    k = tokens * granularity // experts
    N, n, G, L, b = map(Decimal, (tokens, experts, granularity, layers, score_bits))
    each = L * n / N
    choose = log2(comb(tokens, k))
    tied = log2((2**score_bits - 1) * k + 1)
    refused = n - G
    entropy = G * log2(n / G) + (refused * log2(n / refused) if refused else 0)
    return {
        "tokens": tokens, "experts": experts, "granularity": granularity, "layers": layers,
        "score_bits": score_bits, "select": k, "set": float(choose), "cutoff": float(b),
        "tied_cutoff": float(tied), "set_per_token": float(each * choose),
        "entropy": float(L * entropy), "log_expansion": float(L * G * log2(n / G)),
        "log_refused": float(L * G * log2(refused / G)) if refused else None,
        "cutoff_per_token": float(each * b), "tied_cutoff_per_token": float(each * tied),
    }


def bounds():
    pairs = [(1, 0), (1, 1), (2, 1), (4, 2), (5, 2), (6, 3), (24, 12), (31, 15), (32, 8), (33, 16),
             (64, 16), (100, 1), (256, 16), (1000, 999), (1024, 128), (4096, 256), (10007, 37),
             (65536, 4096), (100000, 50000), (524288, 32768), (524288, 65536), (1048576, 3)]
    return [
        {"what": "log2 C(N,k)",
         "provenance": "regenerate.py: the binomial as an integer, its logarithm to 60 digits",
         "values": [{"tokens": N, "select": k, "bits": float(log2(comb(N, k)))} for N, k in pairs]},
        {"what": "log2((2^b - 1) k + 1), for exact top-k with scores of b bits",
         "provenance": "regenerate.py: the integer, its logarithm to 60 digits",
         "values": [{"score_bits": b, "select": k, "bits": float(log2((2**b - 1) * k + 1))}
                    for b in (0, 1, 2, 8, 11, 16, 24, 32, 53, 64) for k in (1, 2, 3, 16, 4096, 65536)]},
        {"what": "all bounds of a batch; the first is the paper's example",
         "provenance": "regenerate.py: paper, Appendix A, Eq. 7 and Theorems A.2, A.3, to 60 digits",
         "values": [setup(*s) for s in ((524288, 16, 2, 9, 16), (524288, 16, 1, 11, 16),
                                        (2048, 16, 1, 1, 8), (4096, 8, 2, 9, 16), (64, 4, 1, 1, 1),
                                        (1000, 7, 3, 2, 11), (17, 64, 1, 1, 24), (100, 4, 4, 3, 8),
                                        (1 << 20, 256, 8, 61, 32))]},
    ]


# ---- labels ----


def topk(r, k):
    best = sorted(range(len(r)), key=lambda t: (-r[t], t))[:k]
    return tuple(int(t in best) for t in range(len(r)))


def threshold(r, k):
    cutoff = sorted(r, reverse=True)[k - 1]
    return tuple(int(x >= cutoff) for x in r)


def clamped(r, k, levels, passing, capacity):
    lower = floor(k * (1.0 - capacity))
    upper = min(floor(k * (1.0 + capacity)), len(r))
    m = sum(x > levels - passing for x in r)
    return topk(r, min(max(m, lower), upper))


def labels_by_definition(N, levels, rule):
    """chi(S) = max over the next score of chi(S, z=0) + chi(S, z=1), over all sequences."""
    def chi(S, t):
        if not S or t == N:
            return len(S) > 0
        parts = {}
        for r, z in S:
            parts.setdefault(r[t], ([], []))[z[t]].append((r, z))
        return max(chi(zero, t + 1) + chi(one, t + 1) for zero, one in parts.values())
    return int(chi([(r, rule(r)) for r in product(range(1, levels + 1), repeat=N)], 0))


def labels_by_states(N, k, levels):
    """The same over states of top-k: tokens left, places left, levels open (ref/leakage/exact.c, 1)."""
    before = {}
    for m in range(N + 1):
        now = {}
        for j in range(max(0, k - (N - m)), min(k, m) + 1):
            if j in (0, m):
                now[j] = [1] * levels
                continue
            taken, refused = before[j - 1], before[j]
            row = [1]
            for D in range(1, levels):
                row.append(max(taken[D], refused[D],
                               max(refused[D - i] + taken[i] for i in range(1, D + 1))))
            now[j] = row
        before = now
    return before[k][levels - 1]


def label(rule, N, k, levels, chi, **more):
    return {"rule": rule, "tokens": N, "select": k, "levels": levels, **more, "labels": chi}


def labels():
    table = []
    for N, k in ((4, 2), (5, 2), (6, 3)):
        for name, rule in (("topk", topk), ("threshold", threshold)):
            for M in range(2, 9):
                chi = labels_by_definition(N, M, lambda r: rule(r, k))
                table.append(label(name, N, k, M, chi))
    capacity = []
    for N, k, C, most in ((4, 2, 0.5, 4), (5, 2, 0.5, 4), (6, 2, 0.5, 4), (6, 4, 0.25, 3), (5, 3, 1.0, 4)):
        for M in range(2, most + 1):
            for passing in range(M + 1):
                chi = labels_by_definition(N, M, lambda r: clamped(r, k, M, passing, C))
                capacity.append(label("et-capacity", N, k, M, chi, passing=passing, capacity=C))
    points = [(24, 12, 64), (32, 8, 256), (64, 16, 64), (48, 47, 12), (40, 1, 200), (256, 16, 256)]
    causal = [label("tc", N, k, M, 1) for N, k, M in ((4, 2, 2), (6, 3, 8))]
    causal += [label("et", N, k, M, 1) for N, k, M in ((4, 2, 2), (6, 3, 8))]
    return [
        {"what": "exact top-k and the threshold rule, scores of M levels",
         "provenance": "regenerate.py: the recursion over all M^N score sequences",
         "values": table},
        {"what": "expert threshold with capacity; of the M levels the uppermost `passing` pass",
         "provenance": "regenerate.py: the recursion over all M^N score sequences",
         "values": capacity},
        {"what": "exact top-k where sequences are too many to list",
         "provenance": "regenerate.py: the recursion over (tokens left, places left, levels open)",
         "values": [label("topk", N, k, M, labels_by_states(N, k, M)) for N, k, M in points]},
        {"what": "token choice, and expert threshold without capacity",
         "provenance": "by definition: no decision depends on a later token, so one label is enough",
         "values": causal},
        {"what": "the smallest case of exact top-k with more labels than its b bits can tell apart",
         "provenance": "regenerate.py: the recursion over all sequences, N, k and b from 1 on",
         "values": [label("topk", *smallest_counterexample())]},
    ]


def smallest_counterexample():
    for N in range(1, 5):
        for k in range(1, N + 1):
            for b in (1, 2):
                chi = labels_by_definition(N, 2**b, lambda r: topk(r, k))
                if chi > 2**b:
                    return N, k, 2**b, chi
    raise AssertionError


# ---- codec ----

FORMATS = {"f64": (53, 1074), "f32": (24, 149), "f16": (11, 24), "bf16": (8, 133)}


def rounded(x, name):
    """To the nearest number of the type, ties to even, 0 <= x <= 1."""
    p, e = FORMATS[name]
    if x == 0:
        return x
    place = 0
    while Fraction(1, 2**place) > x:
        place += 1                                   # 2^-place <= x
    unit = Fraction(1, 2**min(place + p - 1, e))
    whole = x / unit
    down = whole.numerator // whole.denominator
    rest = whole - down
    up = rest > Fraction(1, 2) or (rest == Fraction(1, 2) and down % 2 == 1)
    return (down + up) * unit


def encode(z, round_to=lambda x: x):
    l, u, scores, carried = Fraction(0), Fraction(1), [], 0
    for taken in z:
        score = round_to((l + u) / 2)
        carried += l < score < u
        scores.append(score)
        if taken:
            u = score
        else:
            l = score
    return scores, l, carried


def decode(N, cutoff, round_to):
    l, u, z = Fraction(0), Fraction(1), []
    for _ in range(N):
        score = round_to((l + u) / 2)
        z.append(int(score > cutoff))
        if z[-1]:
            u = score
        else:
            l = score
    return z


def binary(x, digits):
    whole = x * 2**digits
    assert whole.denominator == 1
    return format(whole.numerator, "0%db" % digits) if digits else ""


def text(z):
    return "".join(map(str, z))


def exact_vector(z):
    scores, cutoff, _ = encode(z)
    assert topk(scores, sum(z)) == tuple(z)
    return {"selection": text(z), "cutoff": binary(cutoff, len(z)),
            "scores": [binary(s, t + 1) for t, s in enumerate(scores)]}


def float_vector(name, z):
    to = lambda x: rounded(x, name)
    scores, cutoff, carried = encode(z, to)
    return {"precision": name, "selection": text(z), "scores": [float(s) for s in scores],
            "cutoff": float(cutoff), "carried": carried, "chosen": text(topk(scores, sum(z))),
            "decoded": text(decode(len(z), cutoff, to))}


def mixed(N, k, step):
    """k ones spread over N places."""
    z, place = [0] * N, 0
    for _ in range(k):
        while z[place % N]:
            place += 1
        z[place % N] = 1
        place += step
    return z


def codec():
    short = [z for N in (1, 2, 3, 4) for z in product((0, 1), repeat=N)]
    some = [list(map(int, s)) for s in ("0110100", "11110000", "00001111", "1010101010101010")]
    some.append(mixed(64, 8, 27))
    floats = []
    for name, (p, _) in FORMATS.items():
        for N in (p - 1, p, p + 1):
            floats += [float_vector(name, [0] + [1] * (N - 1)), float_vector(name, mixed(N, N // 4 or 1, 7))]
        floats.append(float_vector(name, [1] * (p + 4)))
    return [
        {"what": "Algorithm 2, exactly: binary digits after the point",
         "provenance": "regenerate.py: midpoints as fractions; the top k checked by sorting them",
         "values": [exact_vector(z) for z in short + some]},
        {"what": "the same in a float type, around the number of tokens that it carries",
         "provenance": "regenerate.py: midpoints rounded as fractions, to nearest even",
         "values": floats},
        {"what": "tokens that a type carries of every selection, and of some selection at most",
         "provenance": "significand bits, and the exponent of the smallest number (IEEE 754; bfloat16)",
         "values": [{"precision": name, "every": p, "some": e} for name, (p, e) in FORMATS.items()]},
    ]


# ---- files ----


def write(folder, name, groups):
    lines = ['{"format": "etref-leakage-%s", "version": 1, "groups": [' % name]
    for i, group in enumerate(groups):
        lines.append(' {"what": %s,\n  "provenance": %s,\n  "values": [' %
                     (json.dumps(group["what"]), json.dumps(group["provenance"])))
        lines.append(",\n".join("   " + json.dumps(v) for v in group["values"]))
        lines.append("  ]}" + ("," if i + 1 < len(groups) else ""))
    lines.append("]}")
    with open(os.path.join(folder, name + ".json"), "w", encoding="ascii") as out:
        out.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    folder = sys.argv[1] if len(sys.argv) > 1 else os.path.dirname(os.path.abspath(__file__))
    write(folder, "bounds", bounds())
    write(folder, "labels", labels())
    write(folder, "codec", codec())
