"""test_threads.py: threads of one Python judge and read at the same time.

    tests/test_threads.py [BUILD]      run by tools/check-python, and under ThreadSanitizer by
                                       tools/check-threads

What a thread is told must be what it would be told alone. Whether they touched the same memory at
the same time only ThreadSanitizer sees.
"""
import os
import sys
import threading
import unittest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BUILD = os.path.abspath(sys.argv.pop(1) if len(sys.argv) > 1 else os.path.join(ROOT, "build"))
os.environ.setdefault("ETREF_LIBRARY", os.path.join(BUILD, "libetref.so.0"))
sys.path.insert(0, os.path.join(ROOT, "tools", "python"))

import etref  # noqa: E402
from scratch import Scratch  # noqa: E402

try:
    import numpy
except ImportError:
    numpy = None

THREADS, TURNS = 4, 3
DENSE = {
    "layer": "dense",
    "name": "dense",
    "tokens": 24,
    "d_model": 16,
    "d_expert": 20,
    "precision": "f32",
    "input": {"source": "normal", "seed": 5},
}
ROUTED = {
    "rule": "tc",
    "name": "routed",
    "tokens": 16,
    "d_model": 8,
    "d_expert": 6,
    "experts": 4,
    "granularity": 1,
    "precision": "f32",
    "input": {"source": "normal", "seed": 6},
}


def kernels(golden):
    """Honest: the golden's own values as float32 holds them. The others err, each in its way."""
    honest = {
        name: golden[name].astype("f4") for name in golden if name.startswith(("fwd.", "bwd."))
    }
    return (
        honest,
        {**honest, "bwd.x": honest["bwd.x"] * 2},
        {"fwd.y": numpy.roll(honest["fwd.y"], 1, axis=0)},
        {"bwd.w_up": honest["bwd.w_up"]},
    )


def judged(golden, tensors):
    """Without a limit of time, which threads would use up together."""
    verdict = etref.verify(golden, tensors, explain_seconds=0)
    return verdict.line, verdict.explanations


def at_once(work):
    """work(0) to work(THREADS - 1), each in a thread; what they return or raise."""
    start, said, raised = threading.Barrier(THREADS), [None] * THREADS, []

    def run(i):
        try:
            start.wait()
            said[i] = work(i)
        except BaseException as problem:  # pylint: disable=broad-except
            raised.append(problem)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if raised:
        raise raised[0]
    return said


@unittest.skipUnless(numpy, "no numpy")
class Threads(Scratch):
    def alone(self, case):
        """The kernels, and what is said of each where nothing else runs."""
        golden = etref.Golden.of_case(case, "f32", "numpy")
        judge = kernels(golden)
        said = [judged(golden, tensors) for tensors in judge]
        self.assertTrue(said[0][0].startswith("PASS"), said[0])
        self.assertEqual(len({line for line, _ in said}), len(said), said)
        return judge, said

    def judge_by_one_golden(self, case):
        """Nothing of it is computed yet: the layer and the error bars are made by whoever comes
        first, to judge or to read."""
        judge, expected = self.alone(case)
        golden = etref.Golden.of_case(case, "f32", "numpy")
        y = judge[0]["fwd.y"]

        def reads():
            return (golden["fwd.y"].astype("f4") == y).all() and "in.x" in golden

        def work(i):
            said = [i % 2 or reads()]
            for turn in range(TURNS):
                said.append(judged(golden, judge[i]) == expected[i] and reads())
                if i == turn:
                    golden.save(self.path("saved.safetensors"), "f32")
            return all(said)

        self.assertEqual(at_once(work), [True] * THREADS)

    def test_a_dense_layer(self):
        self.judge_by_one_golden(DENSE)

    def test_a_routed_layer(self):
        self.judge_by_one_golden(ROUTED)

    def test_goldens_of_their_own(self):
        """No lock holds them apart, so nothing may be shared behind them. All open one file in the
        cache, or write it."""
        judge, expected = self.alone(ROUTED)

        def work(i):
            said = []
            for _ in range(TURNS):
                golden = etref.golden(ROUTED, "f32", "numpy")
                said.append(judged(golden, judge[i]) == expected[i])
                golden.close()
            return all(said)

        self.assertEqual(at_once(work), [True] * THREADS)


if __name__ == "__main__":
    unittest.main()
