"""What is taken from the tokens of an evaluation (`etref eval --per-token`): sums for figures."""

import array
import json
import random
import statistics
import struct
import sys

import rows

SLICES = 10  # of the held-out text
BANDS = 16  # of positions in a sequence
PASSAGE = 160  # tokens that are kept one by one
LOSS_STEP = 0.25  # width of a band of losses, in nats, up to LOSS_TOP
LOSS_TOP = 6.0
LOGIT_STEP = 0.1
LEAST_POOL = 64  # tokens of the smallest pool whose cutoffs are taken,
LEAST_POOLS = 8  # and how many there are of the largest

CODES = {"F64": "d", "F32": "f", "I64": "q", "I32": "i", "U8": "B"}


def tensors(path):
    """Every tensor of a safetensors file: its shape and its values."""
    found = {}
    with open(path, "rb") as file:
        size, = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(size))
        for name, about in header.items():
            if name == "__metadata__":
                continue
            begin, end = about["data_offsets"]
            file.seek(8 + size + begin)
            values = array.array(CODES[about["dtype"]])
            values.frombytes(file.read(end - begin))
            if sys.byteorder == "big":
                values.byteswap()
            found[name] = about["shape"], values
    return found


def fanouts(mask, experts):
    """Experts of each token: the 1s of its row."""
    return [sum(mask[at:at + experts]) for at in range(0, len(mask), experts)]


def means(groups):
    """{key: [count, sum, ..]} as rows [key, count, mean, ..] in order."""
    return [[key, sums[0]] + [value / sums[0] for value in sums[1:]]
            for key, sums in sorted(groups.items())]


def grouped(keys, *columns):
    groups = {}
    for key, *values in zip(keys, *columns):
        sums = groups.setdefault(key, [0] + [0.0] * len(values))
        sums[0] += 1
        for i, value in enumerate(values):
            sums[1 + i] += value
    return means(groups)


def histogram(values):
    """How many values lie in each step of the axis; the middle of the step first."""
    counts = {}
    for value in values:
        place = int(value // LOGIT_STEP)
        counts[place] = counts.get(place, 0) + 1
    return [[round((place + 0.5) * LOGIT_STEP, 6), count]
            for place, count in sorted(counts.items())]


def loss_band(loss):
    """The middle of the band that a loss falls into; the last has all above it."""
    return (min(int(loss / LOSS_STEP), int(LOSS_TOP / LOSS_STEP)) + 0.5) * LOSS_STEP


def scatter(logits, experts, order):
    """Standard deviation of an expert's cutoff from pool to pool, mean over the experts, by the
    pool's size: the k-th largest logit of size tokens, k = size / experts. Tokens go into pools as
    `order` has them."""
    found, size = [], LEAST_POOL
    while LEAST_POOLS * size <= len(order):
        pools = range(0, len(order) - size + 1, size)
        deviations = []
        for expert in range(experts):
            values = [logits[t * experts + expert] for t in order]
            deviations.append(statistics.stdev(
                sorted(values[at:at + size])[-max(1, size // experts)] for at in pools))
        found.append([size, rows.mean(deviations)])
        size *= 2
    return found


def look(path, sequence):
    """Loss along the text; fan-out by position, by loss and by layer, loss by fan-out, two
    histograms, the scatter of cutoffs, a passage."""
    all_of = tensors(path)
    token, loss = all_of["token"][1], all_of["loss"][1]
    slices = [[at, rows.mean(loss[at:at + len(loss) // SLICES])]
              for at in range(0, len(loss) - SLICES, len(loss) // SLICES)]
    layers = sorted(int(name[5:]) for name in all_of if name.startswith("mask."))
    if not layers:
        return {"tokens": len(token), "slices": slices}
    experts = all_of[f"mask.{layers[0]}"][0][1]
    each = {layer: fanouts(all_of[f"mask.{layer}"][1], experts) for layer in layers}
    total = [sum(of) for of in zip(*each.values())]
    mean = [value / len(layers) for value in total]
    width = max(1, sequence // BANDS)
    position = [at % sequence // width * width for at in range(len(token))]
    out = {
        "tokens": len(token), "slices": slices, "layers": layers, "experts": experts,
        "by_position": grouped(position, mean, loss, *each.values()),
        "by_loss": grouped([loss_band(value) for value in loss], mean, *each.values()),
        "by_fanout": grouped(total, loss),
        "fanouts": {layer: grouped(each[layer], loss) for layer in layers},
        "logits": {}, "scatter": {},
        "passage": [[token[at]] + [list(all_of[f"mask.{layer}"][1]
                                        [at * experts:(at + 1) * experts]) for layer in layers]
                    for at in range(min(PASSAGE, len(token)))],
    }
    for layer, expert in ((layers[0], 0), (layers[-1], experts - 1)):
        values = all_of[f"logits.{layer}"][1][expert::experts]
        out["logits"][f"{layer}.{expert}"] = histogram(values)
    text, mixed = list(range(len(token))), list(range(len(token)))
    random.Random(0).shuffle(mixed)
    for layer in (layers[0], layers[-1]):
        for name, order in (("text", text), ("mixed", mixed)):
            out["scatter"][f"{name}.{layer}"] = scatter(all_of[f"logits.{layer}"][1], experts, order)
    return out
