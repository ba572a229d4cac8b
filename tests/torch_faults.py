#!/usr/bin/python3
"""torch_faults: every fault of tools/examples/verify_pytorch.py is a mismatch, explained by its name.

    tests/torch_faults.py ETREF GOLDENS [--all]

Each in one of f32 and bf16, by turns (--all: in both), in a case where it shows. One process loads PyTorch,
a child of it judges. Exit status 0, or 1 after a line for each that is not so.
"""
import os
import re
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, os.pardir, "tools", "examples"))
sys.dont_write_bytecode = True
import verify_pytorch

# Fault, case; its name in bf16 (a dash: bf16 does not show it) and in f32, where that is not the fault's own.
# Of short sums in 8 bits, bf16 shows the logits' alone, which are otherwise exact.
FAULTS = """
factor-two smoke-dense
relu-mask smoke-dense
relu-not-squared smoke-et
accumulator-bf16 shared-wide-et logits-bf16
gate-forgotten smoke-tc
gate-derivative smoke-et
weight-missing-in-dO smoke-ec
router-term-in-dx smoke-et
shared-term-in-dx smoke-et
shared-forgotten smoke-et
last-row-dropped load-17-ec
threshold-side integer-bf16-et
tie-higher-index ties-ec
ema-before-use warm-et
aux-gradient-missing aux-tc
swiglu-halves-exchanged swiglu-tc
swiglu-half-missing swiglu-dense
logistic-for-silu swiglu-tc activation-exchanged activation-exchanged
silu-constant swiglu-tc activation-slope activation-slope
other-gelu gelu-et - activation-exchanged
routed-scale-forgotten scaled-tc
norm-forgotten scaled-tc
weight-on-output weigh-input-tc
weight-on-both weigh-input-swiglu-ec
input-weight-gradient weigh-input-tc
bias-forgotten biased-tc
down-bias-unweighted biased-swiglu-et
bias-of-neighbour biased-tc
padding-routed padded-tc
padding-in-losses padded-tc
padding-routed padded-et
drop-by-tokens dropped-tc overflow-order overflow-order
capacity-less-one dropped-tc overflow-capacity overflow-capacity
norm-before-capacity dropped-tc
aux-after-dropping dropped-tc
group-without-bias groups-tc group-score group-score
group-other-score groups-tc group-score group-score
refused-group-zero groups-tc
gates-in-selection deepseek-tc
"""


def judged(etref, golden, fault, profile):
    """Status and words of verify_pytorch.py, by a child."""
    with tempfile.TemporaryFile("w+") as said:
        child = os.fork()
        if child == 0:
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
            sys.argv = ["verify_pytorch", "--etref", etref, "--profile", profile, "--break", fault, golden]
            status = verify_pytorch.main()
            sys.stdout.flush()
            os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        said.seek(0)
        return status, said.read()


def is_named(etref, goldens, fault, case, name, profile):
    status, words = judged(etref, os.path.join(goldens, case + ".safetensors"), fault, profile)
    if status == 1 and re.search("explained by .*%s: " % re.escape(name), " ".join(words.split())):
        return True
    print("torch_faults: %s under %s: exit status %d, and not explained by %s:\n%s"
          % (fault, profile, status, name, words), file=sys.stderr)
    return False


def main():
    etref, goldens = sys.argv[1:3]
    rows = [line.split() for line in FAULTS.split("\n") if line]
    missing = set(verify_pytorch.FAULTS) - {row[0] for row in rows}
    answers = []
    for number, (fault, case, *names) in enumerate(rows):
        in_bf16, in_f32 = (names + [fault, fault])[:2]
        for profile, name in (("f32", in_f32), ("bf16", in_bf16)):
            if name != "-" and ("--all" in sys.argv or (number % 2 == 0) == (profile == "bf16")):
                answers.append(is_named(etref, goldens, fault, case, name, profile))
    print("%d faults, %d of %d named" % (len(rows), sum(answers), len(answers)))
    return 0 if all(answers) and not missing else 1


if __name__ == "__main__":
    sys.exit(main())
