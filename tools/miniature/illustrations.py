"""The paper's two drawings that no trained model is needed for, as etref computes them.

rules.csv      twelve tokens and four experts under TC, EC and ET: who goes where
encoding.csv   Algorithm 2 on three tokens: of each of the eight selections scores and cutoff
"""

import json
import os
import subprocess
import tempfile

import looks
from out import Out

CASE = {"tokens": 12, "experts": 4, "d_model": 8, "d_expert": 8,
        "input": {"source": "normal", "seed": 3}}
RULES = {"tc": {}, "ec": {}, "et": {"ema_updates": 10000, "ema_bias_correction": True}}
# The number that decides: under TC none, each token compares its own scores.
BOUND = {"ec": "route.cutoff", "et": "route.threshold"}


def rules(etref, folder):
    with tempfile.TemporaryDirectory() as room, \
         Out(folder, "rules.csv", ["rule", "token", "expert", "logit", "taken", "bound"]) as out:
        for rule, more in RULES.items():
            case = dict(CASE, name=rule, rule=rule, **more)
            subprocess.run([etref, "generate", "--case", "-", "--out", room, "--quiet"], check=True,
                           input=json.dumps(case), text=True, stdout=subprocess.DEVNULL)
            golden = looks.tensors(os.path.join(room, rule + ".safetensors"))
            experts = case["experts"]
            for at, logit in enumerate(golden["fwd.logits"][1]):
                bound = golden[BOUND[rule]][1][at % experts] if rule in BOUND else None
                out.row(rule, at // experts, at % experts, logit,
                        golden["route.mask"][1][at], bound)


def fraction(digits):
    """0.101 in binary."""
    return int(digits, 2) / 2 ** len(digits)


def encoding(etref, folder):
    with Out(folder, "encoding.csv", ["selection", "token", "score", "taken", "cutoff"]) as out:
        for number in range(8):
            selection = f"{number:03b}"
            said = subprocess.run([etref, "leakage", "encode", selection, "--format", "json"],
                                  check=True, stdout=subprocess.PIPE, text=True).stdout
            code = json.loads(said)
            for token, score in enumerate(code["scores"]):
                out.row(selection, token, fraction(score), selection[token],
                        fraction(code["cutoff"]))
