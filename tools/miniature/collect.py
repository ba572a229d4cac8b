"""The runs' logs and evaluations as CSV files: all that figures and the page are made of."""

import json
import os

import illustrations
import rows
import table
import texts
from out import Folder, Out
from rows import mean

POINTS = 50  # of a curve over the steps
# Whose routing is followed step by step, under seed 0.
FOLLOWED = ("ec", "et", "et-cold", "et-capacity", "et-capacity-cold", "tc-lossfree")


def read(work, run, name):
    path = os.path.join(work.run_folder(run), name)
    if not os.path.exists(path):
        return None
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def log_of(work, run):
    return rows.lines(os.path.join(work.run_folder(run), "log.jsonl"))


# ---- over the steps ----

def curves(work, runs, folder):
    """At each evaluation: the held-out loss, and the mean of training's since the last one."""
    with Out(folder, "curves.csv", ["variant", "seed", "step", "tokens", "held_out_loss",
                                    "train_loss"]) as out:
        for run in runs:
            since = []
            for line in log_of(work, run):
                if "loss" in line:
                    since.append(line["loss"])
                    continue
                step = line["step"] + 1
                out.row(run.variant, run.seed, step, step * run.tokens_per_step,
                        line["held_out_loss"], mean(since))
                since = []


def capacity_use(run, raw_usage):
    """What a capacity of 0.5 does to these loads: saturation, starvation, and the shares of
    experts above its upper and below its lower bound."""
    ffn = run.config["ffn"]
    tokens = run.tokens_per_step
    target = tokens * ffn.get("granularity", 1) // ffn.get("experts", 16)
    lower, upper = int(target * 0.5), int(target * 1.5)
    passed = [value * tokens for value in raw_usage]
    return (sum(max(0, m - upper) for m in passed) / max(1, sum(passed)),
            sum(max(0, lower - m) for m in passed) / (lower * len(passed)),
            mean(m > upper for m in passed), mean(m < lower for m in passed))


def dynamics(work, runs, folder):
    with Out(folder, "dynamics.csv",
             ["variant", "step", "layer", "usage", "usage_most", "raw_usage", "cutoff", "threshold",
              "gap_abs", "logit_std", "gate_std", "saturation", "starvation", "overflow_rate",
              "underflow_rate"]) as out:
        for run in runs:
            for line in log_of(work, run):
                if line["step"] % max(1, run.steps // POINTS) or "loss" not in line:
                    continue
                for layer in line["layers"]:
                    raw, gap = layer.get("raw_usage"), layer.get("cutoff_gap")
                    threshold = layer.get("threshold")
                    out.row(run.variant, line["step"], layer["layer"], mean(layer["usage"]),
                            max(layer["usage"]), raw and mean(raw),
                            gap and mean(gap) + mean(threshold), threshold and mean(threshold),
                            gap and mean(map(abs, gap)), layer["logit_std"], layer["gate_std"],
                            *(capacity_use(run, raw) if raw else [None] * 4))


def experts(work, runs, folder):
    """Each expert of the first and the last MoE layer."""
    with Out(folder, "experts.csv", ["variant", "step", "layer", "expert", "usage", "raw_usage",
                                     "threshold", "cutoff_gap", "bias"]) as out:
        for run in runs:
            if run.variant not in ("ec", "et", "tc-lossfree"):
                continue
            for line in log_of(work, run):
                if line["step"] % max(1, run.steps // POINTS) or "loss" not in line:
                    continue
                for layer in (line["layers"][0], line["layers"][-1]):
                    columns = [layer.get(name) for name in
                               ("usage", "raw_usage", "threshold", "cutoff_gap", "bias")]
                    for expert in range(len(layer["usage"])):
                        out.row(run.variant, line["step"], layer["layer"], expert,
                                *(column and column[expert] for column in columns))


# ---- over the tokens of the last evaluation ----

def slices(work, runs, folder):
    """How hard the held-out text is, slice by slice, for the dense model."""
    seen = [look for look in (read(work, run, "look.json") for run in runs
                              if run.variant == "dense") if look]
    if not seen:
        return
    with Out(folder, "slices.csv", ["from", "loss"]) as out:
        for each in seen[0]["slices"]:
            out.row(*each)


def tokens(work, runs, folder):
    """Fan-out by position and by loss, loss by fan-out, and two experts' logits."""
    with Out(folder, "positions.csv", ["variant", "position", "tokens", "fanout",
                                       "loss"]) as place, \
         Out(folder, "losses.csv", ["variant", "loss", "layer", "tokens", "fanout"]) as loss, \
         Out(folder, "fanouts.csv", ["variant", "layer", "fanout", "tokens", "loss"]) as fanout, \
         Out(folder, "logits.csv", ["variant", "layer", "expert", "logit", "tokens"]) as logits:
        for run in runs:
            seen = read(work, run, "look.json")
            for position, count, of_all, lost, *_ in seen["by_position"]:
                place.row(run.variant, position, count, of_all, lost)
            for band, count, of_all, *each in seen["by_loss"]:
                for layer, value in zip(["all"] + seen["layers"], [of_all] + each):
                    loss.row(run.variant, band, layer, count, value)
            for layer, groups in [("all", seen["by_fanout"])] + list(seen["fanouts"].items()):
                for value, count, lost in groups:
                    fanout.row(run.variant, layer, value, count, lost)
            for which, steps in seen["logits"].items():
                for value, count in steps:
                    logits.row(run.variant, *which.split("."), value, count)


def scatter(work, runs, folder):
    """How far cutoffs scatter from pool to pool: tokens as the text has them, and mixed."""
    with Out(folder, "scatter.csv", ["variant", "order", "layer", "pool", "deviation"]) as out:
        for run in runs:
            if run.variant not in ("ec", "et"):
                continue
            for which, sizes in read(work, run, "look.json")["scatter"].items():
                for size, deviation in sizes:
                    out.row(run.variant, *which.split("."), size, deviation)


def overlap(work, runs, folder):
    with Out(folder, "overlap.csv", ["variant", "early", "late", "layer", "choices_early",
                                     "choices_late", "agreement", "by_chance",
                                     "divergence"]) as out:
        for run in runs:
            for layer in read(work, run, "overlap.json") or []:
                out.row(run.variant, layer["early"], layer["late"], layer["layer"],
                        layer["choices_a"], layer["choices_b"], layer["agreement"],
                        layer["by_chance"], layer["divergence"])


def pools(work, runs, folder):
    """EC by size of the pool: the loss by thresholds, and routed as in training."""
    with Out(folder, "pools.csv", ["routed", "pool", "seed", "loss"]) as out:
        for run in sorted((run for run in runs if run.variant in ("ec-seq", "ec-1024", "ec")),
                          key=lambda run: run.config["ffn"].get("pool_tokens", 1 << 30)):
            pool = run.config["ffn"].get("pool_tokens", run.tokens_per_step)
            out.row("causal", pool, run.seed, float(work.rows[run.name]["loss"]))
            out.row("trained", pool, run.seed,
                    float(work.rows[run.name]["loss_routed_as_in_training"]))


def consistency(work, runs, folder):
    """Overlap with the layers' choices together: of either checkpoint's, how many both make."""
    with Out(folder, "consistency.csv", ["variant", "early", "late", "agreement", "by_chance",
                                         "divergence"]) as out:
        for run in runs:
            pairs = {}
            for layer in read(work, run, "overlap.json") or []:
                pairs.setdefault((layer["early"], layer["late"]), []).append(layer)
            for (early, late), layers in sorted(pairs.items()):
                out.row(run.variant, early, late, pooled(layers, "agreement"),
                        pooled(layers, "by_chance"), mean(each["divergence"] for each in layers))


def pooled(layers, key):
    """Sum of intersections / sum of unions, where key is |A and B| / |A or B| of each layer."""
    both = sum((each["choices_a"] + each["choices_b"]) * each[key] / (1 + each[key])
               for each in layers)
    either = sum((each["choices_a"] + each["choices_b"]) / (1 + each[key]) for each in layers)
    return both / either if either else 1


def about(work, runs, folder, planned):
    with Out(folder, "about.csv", ["what", "value"]) as out:
        for what, value in work.facts.items():
            out.row(what, value)
        out.row("runs of the set", planned)
        out.row("steps", runs[0].steps)
        out.row("tokens of a step", runs[0].tokens_per_step)
        out.row("tokens of all runs", sum(run.steps * run.tokens_per_step for run in runs))
        out.row("processor hours of training",
                sum(float(work.rows[run.name]["seconds"]) for run in runs) / 3600)
        for name in sorted(work.texts):
            out.row(f"sha256 of {name}", work.texts[name][1])


def kinds(work, runs, folder):
    """Of models of the mixed text: loss and each expert's usage for each kind of text."""
    with Out(folder, "kinds.csv", ["variant", "kind", "loss", "layer", "expert", "usage"]) as out, \
         Out(folder, "passages.csv", ["variant", "kind", "at", "byte", "layer", "fanout",
                                      "experts"]) as passage:
        for run in runs:
            if run.text != "mixed":
                continue
            for kind in texts.KINDS:
                seen = read(work, run, f"eval-{kind}.json")
                for layer in seen["layers"]:
                    for expert, usage in enumerate(layer["usage"]):
                        out.row(run.variant, kind, seen["loss"], layer["layer"], expert, usage)
                if run.rule != "et":
                    continue
                look = read(work, run, f"look-{kind}.json")
                for at, (byte, *masks) in enumerate(look["passage"]):
                    for layer, mask in zip(look["layers"], masks):
                        passage.row(run.variant, kind, at, byte, layer, sum(mask),
                                    "".join(map(str, mask)))


def collect(work, runs, path):
    """`runs` that are done; the logs of those that were trained elsewhere are not here, their lines
    are in the folder."""
    os.makedirs(path, exist_ok=True)
    planned = len(runs)
    runs = [run for run in runs if work.is_done(run)]
    here = [run for run in runs if run.name in work.rows]
    folder = Folder(path, {run.name for run in runs} - {run.name for run in here})
    work.rows = {**work.kept, **work.rows}
    slices(work, here, folder)
    first = [run for run in here if run.looked_at and run.rule != "dense"]
    rows.write(os.path.join(path, "runs.csv"), [work.rows[run.name] for run in runs])
    curves(work, here, folder)
    dynamics(work, [run for run in first if run.variant in FOLLOWED], folder)
    experts(work, first, folder)
    tokens(work, first, folder)
    scatter(work, first, folder)
    overlap(work, first, folder)
    pools(work, runs, folder)
    consistency(work, first, folder)
    kinds(work, first, folder)
    etref = os.path.join(work.build, "etref")
    illustrations.rules(etref, folder)
    illustrations.encoding(etref, folder)
    about(work, runs, folder, planned)
