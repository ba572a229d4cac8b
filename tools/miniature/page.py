"""The page: data/miniature/README.md, from the CSV files beside it. No number stands here."""

import csv
import os

import paired
import rows
import table

# file of the figure, figures of the paper, what is drawn, what is alike and what is not
FIGURES = (
    ("loss", "1", "held-out loss on the way",
     "The same quantity, on bytes; beside the paper's TC stands one with Muon for each expert."),
    ("rules", "2", "twelve tokens and four experts under the three rules",
     "The same, of a layer drawn at random."),
    ("cutoff", "3", "batch cutoff − threshold, and the share of tokens that an expert takes",
     "The same quantities, an expert in a step for each point. EC takes its share wherever its "
     "cutoff is."),
    ("kinds", "4b, 22", "usage of the last layer's experts by kind of text",
     "Prose, code and generated sums for the paper's code and mathematics; pools of 256 to a step."),
    ("passages", "4a, 19, 21", "experts of each character, by layer",
     "Characters for tokens, passages of our own for GSM8K and HumanEval."),
    ("grid", "20", "which experts a character goes to", "Characters for tokens; the last layer."),
    ("position", "5", "experts of a token by its position", "The same quantity; sequences of 256."),
    ("pools", "6", "EC's loss by size of its pool",
     "The losses; CORE needs larger models. A pool of 256 has k = 16, noisier than the paper's "
     "2k, where k = 128."),
    ("train", "7", "loss in training and on held-out text",
     "Mean since the last evaluation for the paper's moving average."),
    ("overlap", "8, 14", "how alike checkpoints route",
     "The same measures, layers together; quarters of the run for the paper's checkpoints."),
    ("encoding", "9", "Algorithm 2 on three tokens: every selection has its cutoff",
     "The same (`build/etref leakage encode 010`). Open: not taken; full: taken."),
    ("warmup", "10", "ET with a capacity of 0.5, with and without warm-up, and EC; layer 1",
     "The same quantities, at steps of a shorter run."),
    ("bias", "11", "thresholds of EC and ET, and the bias of loss-free TC, layer 1", "The same."),
    ("norm", "12", "loss with the weights divided by the fan-out", "The same quantity."),
    ("capacity", "13", "raw usage, and experts outside of a capacity's bounds; layer 1",
     "The rates that the released code logs; for runs without a capacity what 0.5 would do."),
    ("by-loss", "15", "experts of a token by its loss", "The same quantity."),
    ("by-layer", "16", "how many experts tokens have, by layer", "The same quantity."),
    ("by-fanout", "17", "mean loss by the experts of a token", "The same; layers summed."),
    ("logits", "18", "logits of two routers", "The same: first MoE layer, expert 0; last, 15."),
    ("scatter", "", "how far the cutoffs of a trained layer scatter, by the size of the pool",
     "Tokens of one text resemble each other; mixed, they are as if independent: 1/√N."),
)
# figures of the paper that are not among them, and why
LEFT_OUT = (
    ("table 1", "CORE wants models that answer questions; its cross-entropies, and tokens to equal "
                "loss, stand above"),
    ("table 2", "the second size, d 256 and 6 layers, takes 6 to 8 times a run: not run"),
)


def read(folder, name):
    path = os.path.join(folder, name)
    if not os.path.exists(path):
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def facts(folder):
    """The machine, the command, the texts."""
    return {row["what"]: row["value"] for row in read(folder, "about.csv")}


def losses_of(found):
    losses = {}
    for row in found:
        losses.setdefault(row["variant"], {})[int(row["seed"])] = float(row["loss"])
    return losses


def spread(values):
    return (sum((v - rows.mean(values)) ** 2 for v in values) / (len(values) - 1)) ** 0.5


def column(found, variant, name):
    return [float(row[name]) for row in found if row["variant"] == variant and row[name] != ""]


def number(value, form=".4f"):
    return "" if value is None else format(value, form)


# ---- parts of the page ----

def variants(found):
    yield "| variant | seeds | loss, nats per byte | deviation | usage: mean (least to most) " \
          "| raw usage in training |"
    yield "|---|---|---|---|---|---|"
    for variant, by_seed in losses_of(found).items():
        values = list(by_seed.values())
        usage = [column(found, variant, name) for name in ("usage", "usage_least", "usage_most")]
        shown = f"{rows.mean(usage[0]):.3f} ({min(usage[1]):.3f} to {max(usage[2]):.3f})" \
            if usage[0] else ""
        raw = rows.mean(column(found, variant, "raw_usage"))
        yield f"| {variant} | {len(values)} | {rows.mean(values):.4f} " \
              f"| {number(spread(values)) if len(values) > 1 else ''} | {shown} " \
              f"| {number(raw, '.3f')} |"


def verdict(made, paper):
    """What these seeds say of a difference, beside the paper's where it has one."""
    if made.n < 2:
        return "one seed: no error"
    clear = abs(made.mean) > made.half
    if paper == "":
        return "clear" if clear else "not to be told from 0"
    same = made.mean * float(paper) > 0
    if clear:
        return "holds" if same else "the other way"
    return "same sign, within the noise" if same else "within the noise"


def differences(found, comparisons):
    losses = losses_of(found)
    yield "| a − b | a | b | n | mean ± standard error | 95 % interval | signs' p " \
          "| smallest to be seen | paper | |"
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for each in comparisons:
        made = paired.compare(losses, each["a"], each["b"])
        if made is None:
            continue
        error, interval = "", ""
        if made.error is not None:
            error = f" ± {made.error:.4f}"
            interval = f"{made.mean - made.half:+.4f} to {made.mean + made.half:+.4f}"
        yield f"| {each['question']} | {each['a']} | {each['b']} | {made.n} " \
              f"| {made.mean:+.4f}{error} | {interval} | {number(made.p, '.3g')} " \
              f"| {number(made.smallest)} | {each['paper']} | {verdict(made, each['paper'])} |"


def parting(found):
    """The gap of ET and TC as the sum of the optimiser's part and the routing's."""
    losses = losses_of(found)
    whole, optimiser, routing = (paired.compare(losses, *pair) for pair in (
        ("et", "tc-stacked"), ("tc-each", "tc-stacked"), ("et", "tc-each")))
    if not (whole and optimiser and routing):
        return
    if whole.error is None:
        yield f"One seed: ET − TC stacked {whole.mean:+.4f} = TC each − TC stacked " \
              f"{optimiser.mean:+.4f} + ET − TC each {routing.mean:+.4f}, without errors."
        return
    yield "ET − TC as released is the sum of two differences: what Muon for each expert gives to " \
          "TC, and what routing by thresholds then adds."
    yield ""
    yield "    ET − TC stacked     TC each − TC stacked     ET − TC each"
    yield f"    {whole.mean:+.4f} ± {whole.error:.4f}  =  {optimiser.mean:+.4f} ± " \
          f"{optimiser.error:.4f}   +    {routing.mean:+.4f} ± {routing.error:.4f}"
    yield ""
    yield "The first is the optimiser's part, the second the routing's. The signs' test of " \
          f"the whole gives p = {whole.p:.3g}, that of the routing's part p = {routing.p:.3g}; " \
          f"{whole.n} seeds cannot give less than {2 / 2 ** whole.n:.3g}."
    for name, part in (("optimiser", optimiser), ("routing", routing)):
        clear = "can" if abs(part.mean) > part.half else "cannot"
        yield f"The {name}'s part {clear} be told from 0 by these seeds; the smallest that they " \
              f"show in four of five times is {part.smallest:.4f}."


def mean_curve(curves, variant):
    """Held-out loss by tokens, mean over the seeds."""
    by_tokens = {}
    for row in curves:
        if row["variant"] == variant:
            by_tokens.setdefault(int(row["tokens"]), []).append(float(row["held_out_loss"]))
    return [(tokens, rows.mean(losses)) for tokens, losses in sorted(by_tokens.items())]


def tokens_to(curve, loss):
    """After how many tokens the curve is down at `loss`, on straight lines; None: never."""
    for (t0, l0), (t1, l1) in zip(curve, curve[1:]):
        if l0 > loss >= l1:
            return t0 + (t1 - t0) * (l0 - loss) / (l0 - l1)
    return None


def equal_loss(curves):
    yield "| | reaches the last loss of | after millions of tokens | of | times fewer | paper |"
    yield "|---|---|---|---|---|---|"
    for a, b, paper in (("et", "tc-stacked", "1.6"), ("et", "tc-each", ""), ("et", "dense", ""),
                        ("tc-each", "dense", ""), ("tc-stacked", "dense", ""), ("ec", "dense", "")):
        mine, theirs = mean_curve(curves, a), mean_curve(curves, b)
        if not mine or not theirs:
            continue
        last, loss = theirs[-1]
        tokens = tokens_to(mine, loss)
        at = "not in this run | |" if tokens is None else \
            f"{tokens / 1e6:.2f} | {last / 1e6:.2f} | {last / tokens:.2f}"
        yield f"| {a} | {b} | {at} | {paper} |"


def figures(folder):
    for name, numbers, what, alike in FIGURES:
        yield ""
        title = f"Figure {numbers}" if numbers else "Not in the paper"
        yield f"**{title}**: {what}. {alike}"
        yield ""
        if os.path.exists(os.path.join(folder, name + ".svg")):
            yield f"![{what}]({name}.svg)"
        else:
            yield f"*Not drawn: the runs for `{name}.gp` are not among these.*"
    yield ""
    yield "| figure of the paper | why it is not here |"
    yield "|---|---|"
    for numbers, why in LEFT_OUT:
        yield f"| {numbers} | {why} |"


def sizes(about, found):
    kinds = len({row["variant"] for row in found})
    hours = float(about["processor hours of training"])
    planned = int(about["runs of the set"])
    if len(found) < planned:
        yield f"**{len(found)} of the set's {planned} runs are made**, seed 0 of each variant " \
              "first; `make reproduce UPDATE=1` makes the rest. A difference of one seed has no error, " \
              "and is no finding yet; of two its interval is wide."
        yield ""
    machines = " and on ".join(sorted({row["machine"] for row in found}))
    yield f"{len(found)} runs of {kinds} variants, set `{about['set']}`: {about['steps']} steps of " \
          f"{about['tokens of a step']} bytes each, 4 layers (the first dense), d 128, 2 heads, " \
          "sequences of 256, 16 experts and a shared one of 256. Bytes of the King James Bible; " \
          "the mixed runs read prose, code and generated sums. " \
          f"Trained in {hours:.1f} processor hours, at " \
          f"{min(float(row['tokens_per_second']) for row in found):.0f} to " \
          f"{max(float(row['tokens_per_second']) for row in found):.0f} bytes a second, one " \
          f"thread a run, on {machines} of OpenBLAS."


def pilot(found, slices, longer):
    """Beside what another implementation, in PyTorch, gave for the same runs."""
    losses = losses_of(found)
    yield "Beside what the same variants gave in PyTorch, with other random numbers and on other " \
          "held-out passages of the same text: differences are to be compared, and not losses."
    if slices:
        losses_here = [float(row["loss"]) for row in slices]
        yield f"Of a dense model's loss here, the tenths of the held-out text have " \
              f"{min(losses_here):.3f} to {max(losses_here):.3f}."
    yield ""
    yield "| a − b | n | mean ± standard error | in PyTorch (n) | apart, in standard errors |"
    yield "|---|---|---|---|---|"
    for each in read(table.HERE, "pilot.csv"):
        a, b, expected = each["a"], each["b"], float(each["expected"])
        if b == "":
            made = paired.paired(list(losses[a].values())) if a in losses else None
        else:
            made = paired.compare(losses, a, b)
        if made is None:
            continue
        form, apart, error = ("+.4f" if b else ".4f"), "", ""
        if made.error is not None:
            error = f" ± {made.error:.4f}"
        if made.error is not None and each["error"]:
            both = (made.error ** 2 + float(each["error"]) ** 2) ** 0.5
            apart = f"{abs(made.mean - expected) / both:.1f}"
        theirs = f"{expected:{form[:-2]}3f}" + (f" ± {each['error']}" if each["error"] else "")
        yield f"| {a}{' − ' + b if b else ''} | {made.n} | {made.mean:{form}}{error} " \
              f"| {theirs} ({each['seeds']}) | {apart} |"
    raw = rows.mean(column(found, "et", "raw_usage"))
    if raw is not None:
        yield ""
        yield "ET whose moving average is a twentieth of the run, behind a warm-up of a fifth: raw " \
              f"usage in training {raw:.4f}, {raw * 16:.3f} of the target of 1/16. " \
              "Logits still move then, and thresholds lag behind them."
    if longer:
        longer = [float(each["raw_usage"]) * 16 for each in longer]
        yield ""
        yield "The same in three runs of 1000 steps of 4096 bytes (usage.csv; `make reproduce " \
              "ONLY=et-0,et-1,et-2`, 25 minutes of a core each): " \
              + ", ".join(f"{each:.3f}" for each in longer) \
              + f"; {rows.mean(longer):.3f} of the target on the average."


def main_part(folder, found):
    about = facts(folder)
    comparisons = read(table.HERE, "comparisons.csv")
    lines = list(sizes(about, found))
    lines += ["", f"    {about['command']}", "",
              "makes all of this again and goes on where it was stopped; `make redraw` "
              "redraws figures and page from the CSV files. Every number below is read from them. "
              "What each variant is stands in [the table of runs](../../tools/miniature/runs).", "",
              "Losses are on held-out text, causal: EC and ET by their thresholds. A difference "
              "is of two variants under the same seeds, which have the same first weights and the "
              "same batches. How it is judged: [paired.py](../../tools/miniature/paired.py). The "
              "paper's losses are those of its d12 models, per token of a vocabulary of 50,000: "
              "their signs can be compared, their sizes cannot.", "", "## Losses", ""]
    lines += variants(found)
    lines += ["", "## Differences", ""] + list(differences(found, comparisons))
    lines += ["", "## Routing or optimiser", ""] + list(parting(found))
    lines += ["", "## Tokens to equal loss", "",
              "Mean curves over the seeds, on the held-out batches of figure 1. The learning rate falls "
              "in the last fifth, and losses with it: a run that is still at its full rate reaches "
              "late what one at its end has, so these factors are small.", ""]
    lines += list(equal_loss(read(folder, "curves.csv")))
    lines += ["", "## Figures"] + list(figures(folder))
    lines += ["", "## What would be needed for the rest", "",
              "CORE and the absolute losses want the paper's size. The smallest gaps above fall "
              "like 1/√n: half of one wants four times the seeds. What pools of half a million "
              "tokens do, no step of a few thousand can show."]
    return lines


def page(folder):
    found, first = read(folder, "runs.csv"), read(folder, "pilot.csv")
    lines = ["# The paper in miniature", ""]
    lines += main_part(folder, found) if found else [
        "The runs behind this page have not been made yet: `make reproduce`."]
    if first:
        lines += ["", "## The pilot", ""] + list(pilot(
            first, read(folder, "slices.csv"), read(folder, "usage.csv")))
    path = os.path.join(folder, "README.md")
    with open(path + ".part", "w", encoding="utf-8") as out:
        out.write("\n".join(lines) + "\n")
    os.replace(path + ".part", path)
