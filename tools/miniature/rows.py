"""A row of figures for each run, from its log and its evaluation."""

import csv
import hashlib
import json
import os

FIELDS = ["run", "variant", "seed", "steps", "tokens", "loss", "loss_routed_as_in_training",
          "train_loss", "usage", "usage_least", "usage_most", "raw_usage", "seconds",
          "tokens_per_second", "text_sha256", "final_sha256", "machine"]


def mean(values):
    values = list(values)
    return sum(values) / len(values) if values else None


def lines(path):
    with open(path, encoding="utf-8") as log:
        return [json.loads(line) for line in log]


def sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def raw_usage(run, steps):
    """Tokens above the threshold, mean over steps after the warm-up, layers and experts."""
    after = run.config["ffn"].get("warmup_steps", 0)
    return mean(mean(layer["raw_usage"]) for step in steps if step["step"] >= after
                for layer in step["layers"] if "raw_usage" in layer)


def row(run, folder, text_sha256):
    log = lines(os.path.join(folder, "log.jsonl"))
    steps = [line for line in log if "loss" in line]
    with open(os.path.join(folder, "eval.json"), encoding="utf-8") as file:
        seen = json.load(file)
    usage = [value for layer in seen["layers"] for value in layer["usage"]]
    seconds = sum(step["seconds"] for step in steps)
    last = steps[-max(1, len(steps) // 20):]
    return {
        "run": run.name, "variant": run.variant, "seed": run.seed, "steps": len(steps),
        "tokens": len(steps) * run.tokens_per_step, "loss": seen["loss"],
        "loss_routed_as_in_training": seen["loss_routed_as_in_training"],
        "train_loss": mean(step["loss"] for step in last),
        "usage": mean(usage), "usage_least": min(usage, default=None),
        "usage_most": max(usage, default=None),
        "raw_usage": raw_usage(run, steps), "seconds": round(seconds, 1),
        "tokens_per_second": round(len(steps) * run.tokens_per_step / seconds),
        "text_sha256": text_sha256,
        "final_sha256": sha256(os.path.join(folder, "final.safetensors")),
    }


def read(path):
    """Rows by the run's name; none where there is no file."""
    if not os.path.exists(path):
        return {}
    with open(path, newline="", encoding="utf-8") as file:
        return {each["run"]: each for each in csv.DictReader(file)}


def shown(value):
    return "" if value is None else f"{value:.9g}" if isinstance(value, float) else str(value)


def write(path, rows):
    with open(path + ".part", "w", newline="", encoding="utf-8") as file:
        out = csv.DictWriter(file, FIELDS, lineterminator="\n")
        out.writeheader()
        for each in rows:
            out.writerow({field: shown(each.get(field)) for field in FIELDS})
    os.replace(path + ".part", path)
