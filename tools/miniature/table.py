"""The table of runs: reading it, and the configuration that each run has."""

import copy
import json
import os

HERE = os.path.dirname(os.path.abspath(__file__))
SEQUENCE = 256


class Run:
    """One variant under one seed, in a set."""

    def __init__(self, variant, seed, words, config, plan):
        self.variant, self.seed = variant, seed
        self.text, self.rule = words[0], words[1]
        self.config, self.plan = config, plan
        self.name = f"{variant}-{seed}"
        self.steps = config["steps"]
        self.tokens_per_step = config["batch"] * SEQUENCE
        self.keeps = "keep" in words[2:] and seed == 0 and plan.get("keep", True)
        self.looked_at = seed == 0


def objects(line):
    """The JSON objects that stand in a line one after the other."""
    found, decoder, at = [], json.JSONDecoder(), line.index("{")
    while at < len(line):
        value, at = decoder.raw_decode(line, at)
        found.append(value)
        at += len(line[at:]) - len(line[at:].lstrip())
    return found


def merged(*parts):
    """Objects as one: what comes later counts."""
    out = {}
    for part in parts:
        for key, value in part.items():
            both = isinstance(value, dict) and isinstance(out.get(key), dict)
            out[key] = merged(out[key], value) if both else copy.deepcopy(value)
    return out


def settled(part, steps):
    """Shares of the steps as numbers, and a window as the decay that it stands for."""
    out = {}
    for key, value in part.items():
        if isinstance(value, dict):
            value = settled(value, steps)
        elif isinstance(value, str) and value.endswith("%"):
            value = round(float(value[:-1]) / 100 * steps)
        out[key] = value
    window = out.pop("ema_window", None)
    if window is not None:
        out.setdefault("ema_decay", 1 - 1 / max(2, window))
    return out


def read(chosen, path):
    """The runs of a set: seed by seed, so that a table that is cut short has every variant."""
    base, sets, kinds, runs = {}, {}, {}, []
    with open(path, encoding="utf-8") as table:
        for line in table:
            if not line.strip() or line.startswith("#"):
                continue
            what, *words = line[:line.index("{")].split()
            given = objects(line)
            if what == "base":
                base = given[0]
            elif what == "set":
                sets[words[0]] = given
            elif what == "kind":
                kinds[words[0]] = given[0]
            else:
                counts = dict(word.split("=") for word in words if "=" in word)
                plain = [word for word in words[1:] if "=" not in word]
                config = merged(base, sets[chosen][0], kinds[plain[1]], given[0])
                config = settled(config, config["steps"])
                runs += [Run(words[0], seed, plain, config, sets[chosen][1])
                         for seed in range(int(counts.get(chosen, 0)))]
    return sorted(runs, key=lambda run: run.seed)
