"""tools/miniature: its table, its statistics, and runs that are stopped and go on.

    tests/test_miniature.py BUILD
"""
import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest

sys.dont_write_bytecode = True
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.join(ROOT, "tools", "miniature"))
import paired
import table
import texts

BUILD = "build"

TABLE = """# as the real one
base {"beta1": 0.8, "d_model": 16, "heads": 1, "layers": 2, "engine": "plain"}
set small {"steps": 12, "batch": 2} {"batches": 2, "evaluations": 2, "look": 1}
kind dense {"ffn": {"layer": "dense"}}
kind et {"ffn": {"rule": "et", "experts": 4, "ema_window": "50%", "warmup_steps": "25%"}}
run dense small=1 sums dense {}
run et small=2 other=3 sums et keep {"ffn": {"norm": "fanout"}}
"""


class Statistics(unittest.TestCase):
    def test_a_difference_by_hand(self):
        made = paired.paired([1.0, 2.0, 6.0])
        self.assertEqual((made.n, made.mean), (3, 3.0))
        self.assertAlmostEqual(made.deviation, 7 ** 0.5)
        self.assertAlmostEqual(made.error, (7 / 3) ** 0.5)
        self.assertAlmostEqual(made.half, 4.303 * (7 / 3) ** 0.5)
        self.assertEqual(made.p, 2 / 8)  # all plus, all minus

    def test_signs_that_cancel_are_no_evidence(self):
        self.assertEqual(paired.paired([1.0, -1.0]).p, 1)
        self.assertEqual(paired.sign_test([3.0, -1.0, 1.0]), 6 / 8)

    def test_only_common_seeds_are_paired(self):
        made = paired.compare({"a": {0: 1.0, 1: 2.0, 2: 9.0}, "b": {0: 0.5, 1: 1.0}}, "a", "b")
        self.assertEqual((made.n, made.mean), (2, 0.75))
        self.assertIsNone(paired.compare({"a": {0: 1.0}}, "a", "b"))


class Texts(unittest.TestCase):
    def test_mixed_ends_with_what_its_kinds_hold_out(self):
        parts = [bytes([kind]) * 10000 for kind in b"pcs"]
        self.assertEqual(sorted(texts.in_turns(parts)), sorted(b"".join(parts)))
        self.assertEqual(texts.in_turns(parts)[4095:4097], b"pc")
        self.assertEqual(len(texts.sums()), texts.KIND_BYTES)


class Runs(unittest.TestCase):
    def setUp(self):
        self.room = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.room)
        self.table = self.path("runs")
        with open(self.table, "w", encoding="utf-8") as file:
            file.write(TABLE)

    def path(self, *names):
        return os.path.join(self.room, *names)

    def build(self, name):
        """A build folder with nothing but the tool."""
        os.mkdir(self.path(name))
        os.symlink(os.path.abspath(os.path.join(BUILD, "etref")), self.path(name, "etref"))
        return self.path(name)

    def start(self, build, *more):
        return subprocess.Popen(
            [os.path.join(ROOT, "tools", "miniature", "reproduce"), "--table", self.table, "--set",
             "small", "--build", build, "--committed", self.path("committed"), *more],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def finish(self, build, *more):
        process = self.start(build, *more)
        said = process.communicate()[0]
        return process.returncode, said

    def test_the_table_is_read(self):
        runs = table.read("small", self.table)
        self.assertEqual([run.name for run in runs], ["dense-0", "et-0", "et-1"])
        self.assertEqual(runs[1].config["ffn"], {
            "rule": "et", "experts": 4, "ema_decay": 1 - 1 / 6, "warmup_steps": 3,
            "norm": "fanout"})
        self.assertEqual([run.keeps for run in runs], [False, True, False])

    def test_runs_go_on_and_come_again(self):
        build = self.build("a")
        process = self.start(build)
        log = self.path("a", "miniature", "small", "et-0", "log.jsonl")
        for _ in range(2000):
            if os.path.exists(log) and os.path.getsize(log) > 0:
                break
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        said = process.communicate()[0]
        self.assertEqual(process.returncode, 2, said)
        self.assertIn("the same command goes on", said)
        status, said = self.finish(build, "--out", self.path("committed"))
        self.assertEqual(status, 0, said)
        with open(self.path("committed", "runs.csv"), newline="", encoding="utf-8") as file:
            made = {row["run"]: row for row in csv.DictReader(file)}
        self.assertEqual(list(made), ["dense-0", "et-0", "et-1"])
        self.assertGreater(float(made["et-0"]["usage"]), 0)
        with open(self.path("a", "miniature", "small", "et-0", "overlap.json"),
                  encoding="utf-8") as file:
            self.assertEqual([each["late"] for each in json.load(file)], [50, 75, 100])
        with open(self.path("committed", "README.md"), encoding="utf-8") as file:
            self.assertIn(f"{float(made['dense-0']['loss']):.4f}", file.read())
        self.check_that_a_lost_run_alone_is_made()
        # Once more from nothing: the same bits; and other bits are told.
        status, said = self.finish(self.build("b"), "--only", "et-0")
        self.assertEqual(status, 0, said)
        self.assertIn("et-0: the bits of", said)
        with open(self.path("committed", "runs.csv"), encoding="utf-8") as file:
            rows = file.read().replace(made["et-0"]["final_sha256"], "0" * 64)
        with open(self.path("committed", "runs.csv"), "w", encoding="utf-8") as file:
            file.write(rows)
        self.assertEqual(self.finish(self.path("b"), "--only", "et-0")[0], 1)
        self.assertEqual(self.finish(self.path("b"), "--only", "etc")[0], 2)

    def check_that_a_lost_run_alone_is_made(self):
        """Another machine, with nothing but the folder, fills in what that lacks."""
        def lines(name):
            with open(self.path("committed", name), encoding="utf-8") as file:
                return file.read().splitlines()
        names = ("curves.csv", "dynamics.csv", "positions.csv", "overlap.csv")
        before = {name: sorted(lines(name)) for name in names}
        with open(self.path("committed", "runs.csv"), encoding="utf-8") as file:
            kept = [line for line in file if not line.startswith("et-1,")]
        with open(self.path("committed", "runs.csv"), "w", encoding="utf-8") as file:
            file.writelines(kept)
        status, said = self.finish(self.build("c"), "--out", self.path("committed"))
        self.assertEqual(status, 0, said)
        self.assertEqual(set(os.listdir(self.path("c", "miniature", "small"))), {"runs.csv", "et-1"})
        self.assertEqual([line.split(",")[0] for line in lines("runs.csv")],
                         ["run", "dense-0", "et-0", "et-1"])
        self.assertEqual({name: sorted(lines(name)) for name in names}, before)
        self.assertEqual(self.finish(self.build("d"), "--out", self.path("committed"))[0], 0)
        self.assertEqual(os.listdir(self.path("d", "miniature", "small")), [])


if __name__ == "__main__":
    BUILD = sys.argv.pop(1) if len(sys.argv) > 1 else BUILD
    unittest.main()
