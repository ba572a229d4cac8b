"""test_python.py: tools/python/etref.py, with kernels written in numpy and in torch, those that
are there.

    tests/test_python.py [BUILD]           run by tools/check-python

The kernels are those of a dense layer, in float32: an honest one, and with a mistake. What etref
says of them must not hang on how a tensor lies in memory or whose it is, and must be what the
command line says.
"""
import ctypes
import json
import os
import resource
import shlex
import subprocess
import sys
import textwrap
import unittest
from unittest import mock

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BUILD = os.path.abspath(sys.argv.pop(1) if len(sys.argv) > 1 else os.path.join(ROOT, "build"))
TOOL = os.path.join(BUILD, "etref")
os.environ.setdefault("ETREF_LIBRARY", os.path.join(BUILD, "libetref.so.0"))
sys.path.insert(0, os.path.join(ROOT, "tools", "python"))

import etref  # noqa: E402
from scratch import Scratch  # noqa: E402

try:
    import numpy
except ImportError:
    numpy = None
try:
    import torch
except ImportError:
    torch = None

DENSE = {
    "layer": "dense",
    "name": "dense",
    "tokens": 24,
    "d_model": 16,
    "d_expert": 20,
    "precision": "f32",
    "input": {"source": "normal", "seed": 5},
}
NAMES = ("fwd.y", "bwd.x", "bwd.w_up", "bwd.w_down")


def numpy_layer(x, dy, up, down, slope=2):
    """slope 1: the factor 2 of relu(H)^2's derivative is missing."""
    H = numpy.maximum(x @ up.T, 0)
    A = H * H
    dH = (dy @ down) * slope * H
    return dict(zip(NAMES, (A @ down.T, dH @ up, dH.T @ x, dy.T @ A)))


def numpy_kernel(golden, slope=2):
    return numpy_layer(*(golden["in." + name] for name in ("x", "dy", "w_up", "w_down")), slope)


def torch_kernel(golden, slope=2):
    arrays = (golden["in." + name].float().numpy() for name in ("x", "dy", "w_up", "w_down"))
    return {name: torch.from_numpy(values) for name, values in numpy_layer(*arrays, slope).items()}


class Goldens(Scratch):
    def test_a_case_is_computed_once(self):
        first = etref.golden("smoke-et", profile="bf16")
        made = os.stat(first.path)
        again = etref.golden("smoke-et", profile="bf16")
        self.assertEqual(again.path, first.path)
        self.assertEqual(os.stat(again.path).st_mtime_ns, made.st_mtime_ns)
        self.assertNotEqual(etref.golden("smoke-et").path, first.path)
        self.assertNotEqual(etref.golden("smoke-tc").path, first.path)
        self.assertEqual(len(os.listdir(self.path("cache"))), 3)

    @unittest.skipUnless(numpy, "no numpy")
    def test_asked_for_again_it_has_its_bars(self):
        golden = etref.golden(DENSE, framework="numpy")
        kernel = numpy_kernel(golden)
        self.assertEqual(etref.verify(golden, kernel).outcome, "pass")
        self.assertIs(etref.golden(DENSE, framework="numpy")._handle, golden._handle)
        self.assertIn("noise.bars", etref.load(golden.path, "memoryview"))
        etref._kept.clear()  # as in another program
        again = etref.golden(DENSE, framework="numpy")
        self.assertFalse(again._handle.wants_bars)
        self.assertEqual(etref.verify(again, kernel).outcome, "pass")
        another = etref.golden(DENSE, framework="numpy")
        again.close()
        self.assertEqual(etref.verify(another, kernel).outcome, "pass")
        other = etref.golden({**DENSE, "name": "other"}, framework="numpy")
        other.path = self.path("none/golden.safetensors")  # no place to write to
        self.assertEqual(etref.verify(other, kernel).outcome, "pass")
        for tokens in range(1, 9):  # more than are kept
            etref.golden({**DENSE, "tokens": tokens})
        self.assertLessEqual(len(etref._kept), 4)

    def test_what_it_holds_is_what_its_file_holds(self):
        golden = etref.golden("smoke-et", framework="memoryview")
        stored = etref.load(golden.path, "memoryview")
        self.assertEqual(set(golden), set(stored))
        for name, values in stored.items():
            self.assertEqual(golden[name].shape, values.shape, name)
            if not name.startswith("in."):
                self.assertEqual(golden[name].tobytes(), values.tobytes(), name)
        said = subprocess.run(
            [TOOL, "verify", "--quiet", golden.path], stdout=subprocess.PIPE, check=True
        )
        self.assertIn(b"all identical", said.stdout)

    def test_inputs_are_there_before_anything_is_computed(self):
        golden = etref.Golden.of_case("d12-et", framework="memoryview")
        self.assertEqual(golden["in.x"].shape, (2048, 768))
        self.assertIn("in.w_router", golden)
        self.assertEqual(golden.case["experts"], 16)

    def test_a_name_that_is_not_there(self):
        golden = etref.Golden.of_case(DENSE)
        self.assertNotIn("fwd.logits", golden)
        with self.assertRaises(KeyError):
            golden["fwd.logits"]
        with self.assertRaisesRegex(etref.Error, "no built-in case 'nosuch'"):
            etref.golden("nosuch")
        with self.assertRaisesRegex(etref.Error, "tokens"):
            etref.golden({"rule": "et", "tokens": -1})
        with self.assertRaisesRegex(OSError, "none.safetensors"):
            etref.Golden.open(self.path("none.safetensors"))

    @unittest.skipUnless(numpy, "no numpy")
    def test_ones_own_inputs(self):
        drawn = etref.Golden.of_case(DENSE, framework="numpy")
        own = etref.Golden.from_tensors(
            drawn["in.x"],
            drawn["in.dy"],
            w_up=drawn["in.w_up"],
            w_down=drawn["in.w_down"],
            framework="numpy",
        )
        for name in NAMES:
            self.assertEqual(own[name].tobytes(), drawn[name].tobytes())
        self.assertTrue(etref.verify(own, numpy_kernel(own)))
        own.save(self.path("own.safetensors"))
        again = etref.Golden.open(self.path("own.safetensors"), framework="numpy")
        self.assertEqual(again["fwd.y"].tobytes(), own["fwd.y"].tobytes())
        with self.assertRaisesRegex(etref.Error, "in.w_down"):
            etref.Golden.from_tensors(
                drawn["in.x"], drawn["in.dy"], w_up=drawn["in.w_up"], w_down=drawn["in.w_up"]
            )

    @unittest.skipUnless(numpy, "no numpy")
    def test_a_mask_of_any_type_that_frameworks_have(self):
        case = {"rule": "tc", "tokens": 4, "padding": 1, "d_model": 4, "d_expert": 4, "experts": 2}
        drawn = etref.Golden.of_case(
            {**case, "name": "drawn", "precision": "f32", "input": {"source": "normal"}},
            framework="numpy",
        )
        inputs = {name[3:]: drawn[name] for name in drawn if name.startswith("in.")}
        mask = inputs.pop("mask")
        types = ("?", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8")
        masks = [mask.astype(each) for each in types]
        if torch:
            masks += [torch.tensor(mask) == 1, torch.tensor(mask).long()]
        for each in masks:
            with self.subTest(each.dtype):
                own = etref.Golden.from_tensors(
                    **inputs, mask=each, rule="tc", padding=1, framework="numpy"
                )
                self.assertEqual(own["fwd.y"].tobytes(), drawn["fwd.y"].tobytes())
        with self.assertRaisesRegex(etref.Error, "has type F32; convert it to BOOL, I32"):
            etref.Golden.from_tensors(
                **inputs, mask=mask.astype("f4"), rule="tc", padding=1, framework="numpy"
            )

    @unittest.skipUnless(torch, "no torch")
    def test_torch_has_the_types_of_the_case(self):
        golden = etref.Golden.of_case("smoke-et", framework="torch")
        self.assertEqual(golden["in.x"].dtype, torch.bfloat16)
        self.assertEqual(golden["in.ema"].dtype, torch.float64)
        self.assertEqual(golden["fwd.y"].dtype, torch.float64)
        self.assertEqual(golden["route.mask"].dtype, torch.uint8)
        before = golden["fwd.y"]
        golden["fwd.y"].zero_()  # a copy, which may be written to
        self.assertTrue(torch.equal(golden["fwd.y"], before))
        self.assertTrue(before.any())

    @unittest.skipUnless(numpy, "no numpy")
    def test_numpy_sees_the_goldens_own_memory(self):
        golden = etref.Golden.of_case(DENSE, framework="numpy")
        self.assertFalse(golden["fwd.y"].flags.writeable)
        y = golden["fwd.y"]
        expected = y.copy()
        del golden
        self.assertTrue((y == expected).all())  # it lives as long as it is seen


@unittest.skipUnless(numpy, "no numpy")
class Verdicts(Scratch):
    def setUp(self):
        super().setUp()
        self.golden = etref.golden(DENSE, profile="f32", framework="numpy")

    def test_an_honest_kernel_passes(self):
        verdict = etref.assert_kernel(
            self.golden, numpy_kernel(self.golden), require=["fwd.y", "bwd.*"]
        )
        self.assertTrue(verdict.passed)
        self.assertEqual(verdict.profile, "f32")

    def test_a_mistake_is_named(self):
        with self.assertRaises(etref.Mismatch) as caught:
            etref.assert_kernel(self.golden, numpy_kernel(self.golden, slope=1))
        lines = str(caught.exception).splitlines()
        self.assertIn("explained by factor-two: ", lines[0])
        self.assertTrue(lines[1].startswith("FAIL: "), lines)
        self.assertIn("worst at [", lines[2])
        verdict = caught.exception.verdict
        self.assertIn("explained by factor-two", verdict.text)

    def expect_the_same(self, golden, tensors, profile=None, **options):
        """Of the command that shows more, run as it is printed."""
        with self.assertRaises(etref.Mismatch) as caught:
            etref.assert_kernel(golden, tensors, profile, **options)
        verdict = caught.exception.verdict
        more, command = str(caught.exception).splitlines()[-1].split(" ", 1)
        self.assertEqual(more, "more:")
        said = subprocess.run(
            ["sh", "-c", command],
            stdout=subprocess.PIPE,
            universal_newlines=True,
            cwd="/",
            env={**os.environ, "PATH": BUILD + os.pathsep + os.environ["PATH"]},
        )
        self.assertEqual(said.returncode, {"mismatch": 1, "inconclusive": 3}[verdict.outcome])
        self.assertEqual(said.stdout.splitlines()[-1], verdict.line)
        return command

    def test_the_command_that_shows_more_says_the_same(self):
        honest, broken = numpy_kernel(self.golden), numpy_kernel(self.golden, slope=1)
        first = self.expect_the_same(self.golden, broken)
        honest.pop("bwd.x")
        second = self.expect_the_same(self.golden, honest, require=["fwd.y", "bwd.*"])
        kernels = {shlex.split(each)[3] for each in (first, second)}  # each has its own file
        self.assertEqual(sum(os.path.exists(each) for each in kernels), 2)
        own = {**self.profile("f64"), "name": "mine", "gates": 50}
        self.expect_the_same(self.golden, numpy_kernel(self.golden), own)
        self.expect_the_same(self.golden, numpy_kernel(self.golden), json.dumps(own))
        os.mkdir(self.path("a folder"))
        for profile in (None, "f32"):
            golden = etref.Golden.of_case(DENSE, profile, "numpy")
            golden.save(self.path("a folder/it's.safetensors"))
            self.expect_the_same(golden, broken)
        self.expect_the_same(etref.Golden.open(golden.path), broken, own, require=["bwd.x"])

    def test_so_it_does_of_a_golden_that_lies_nowhere(self):
        self.expect_the_same(
            etref.Golden.of_case(DENSE), numpy_kernel(self.golden, slope=1), require=NAMES
        )
        inputs = {name: self.golden["in." + name] for name in ("x", "dy", "w_up", "w_down")}
        commands = []
        for scale in (1, 2):  # two layers by one name
            inputs["x"] = inputs["x"] * numpy.float32(scale)
            golden = etref.Golden.from_tensors(**inputs, framework="numpy")
            commands.append(self.expect_the_same(golden, numpy_kernel(golden, slope=1)))
        self.assertNotEqual(*(each.split()[2] for each in commands))
        with mock.patch.dict(os.environ, ETREF_CACHE="/dev/null/none"):
            with self.assertRaisesRegex(etref.Mismatch, r"\.verdict\.text \(.*/dev/null"):
                golden = etref.Golden.from_tensors(**inputs, framework="numpy")
                etref.assert_kernel(golden, numpy_kernel(golden, slope=1))

    def test_so_it_does_where_ties_may_be_broken_in_any_way(self):
        """All experts are alike, so that every token's choice is a tie."""
        case = {"rule": "tc", "tokens": 8, "d_model": 4, "d_expert": 4, "experts": 4, "top_k": 1}
        drawn = etref.Golden.of_case(
            {**case, "name": "drawn", "precision": "f32", "input": {"source": "normal"}},
            framework="numpy",
        )
        inputs = {name[3:]: drawn[name] for name in drawn if name.startswith("in.")}
        inputs["w_router"] = numpy.repeat(inputs["w_router"][:1], 4, axis=0)
        golden = etref.Golden.from_tensors(**inputs, rule="tc", top_k=1, framework="numpy")
        last = {"route.mask": golden["route.mask"][:, ::-1].copy()}
        for ties in ("rule", "any"):
            self.expect_the_same(golden, last, "f32", ties=ties, require=["route.mask", "fwd.y"])

    def test_the_report_is_the_tools(self):
        broken = numpy_kernel(self.golden, slope=1)
        etref.save(self.path("broken.safetensors"), broken)
        said = subprocess.run(
            [
                TOOL,
                "verify",
                self.golden.path,
                self.path("broken.safetensors"),
                "--profile",
                "f32",
                "--engine",
                "plain",
                "--format",
                "json",
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        theirs, ours = json.loads(said.stdout), etref.verify(self.golden, broken).report
        for name in ("candidate", "command"):
            theirs.pop(name), ours.pop(name)
        self.assertEqual(ours, theirs)

    def test_nothing_decides(self):
        itself = {name: self.golden[name] for name in NAMES}
        with self.assertRaises(etref.Inconclusive):
            etref.assert_kernel(self.golden, itself, profile="f64")
        with self.assertRaisesRegex(etref.Inconclusive, "required and not there"):
            etref.assert_kernel(
                self.golden, {"fwd.y": numpy_kernel(self.golden)["fwd.y"]}, require=["bwd.*"]
            )

    def test_how_it_lies_in_memory_is_no_matter(self):
        honest = numpy_kernel(self.golden)
        expected = etref.verify(self.golden, honest).line
        shapes = {
            "transposed twice": {k: numpy.asfortranarray(v) for k, v in honest.items()},
            "every second": {k: numpy.repeat(v, 2, axis=0)[::2] for k, v in honest.items()},
            "read-only": {k: memoryview(v).toreadonly() for k, v in honest.items()},
        }
        if torch:
            shapes["torch"] = {k: torch.from_numpy(v) for k, v in honest.items()}
            shapes["leaves"] = {k: torch.from_numpy(v).requires_grad_() for k, v in honest.items()}
            shapes["torch, transposed"] = {
                k: torch.from_numpy(v.T.copy()).t() for k, v in honest.items()
            }
            shapes["DLPack"] = {k: Capsule(torch.from_numpy(v)) for k, v in honest.items()}
        for name, tensors in shapes.items():
            with self.subTest(name):
                self.assertEqual(etref.verify(self.golden, tensors).line, expected)

    def test_contiguous_tensors_are_not_copied(self):
        y = numpy_kernel(self.golden)["fwd.y"]
        self.assertEqual(etref._view("y", y).address, y.ctypes.data)
        self.assertEqual(etref._view("y", memoryview(y).toreadonly()).address, y.ctypes.data)
        if torch:
            low = torch.from_numpy(y).to(torch.bfloat16)
            for tensor in (low, Capsule(low)):
                view = etref._view("y", tensor)
                self.assertEqual(
                    (view.address, view.dtype, view.shape), (low.data_ptr(), "BF16", tuple(y.shape))
                )

    @unittest.skipUnless(torch, "no torch")
    def test_what_dlpack_does_not_have_row_by_row_is_refused(self):
        y = torch.from_numpy(numpy_kernel(self.golden)["fwd.y"])
        with self.assertRaisesRegex(etref.Error, "not row-major"):
            etref.verify(self.golden, {"fwd.y": Capsule(y.t())})

    def test_mistakes_of_the_caller(self):
        y = numpy_kernel(self.golden)["fwd.y"]
        for tensors, options, part in (
            ({"fwd.yy": y}, {}, "if it is fwd.y, call it so"),
            ({"fwd.y": y[1:]}, {}, "shape"),
            ({"fwd.y": "y"}, {}, "is no tensor"),
            ({"fwd.y": y.astype(complex)}, {}, "format"),
            ({}, {}, "holds nothing"),
            ({"fwd.y": y}, {"profile": "bf17"}, "profile bf17: .*; bf16 is near"),
            ({"fwd.y": y}, {"profile": "torch.bfloat16"}, "16: .*; bf16 is its name here"),
            ({"fwd.y": y}, {"profile": "fp32"}, "profile fp32: .*; f32 is its name here"),
            ({"fwd.y": y}, {"require": ["fwd.z"]}, "fwd.z"),
            ({"fwd.y": y}, {"ties": 1}, "ties"),
            ({"in.x": y, "fwd.y": y}, {}, "in.x"),
        ):
            with self.subTest(part), self.assertRaisesRegex(etref.Error, part):
                etref.verify(self.golden, tensors, **options)

    def profile(self, name):
        said = subprocess.run(
            [TOOL, "list", "profiles", name, "--format", "json"],
            stdout=subprocess.PIPE,
            check=True,
        )
        return json.loads(said.stdout)

    def test_ones_own_profile(self):
        own = {**self.profile("f32"), "name": "mine"}
        verdict = etref.verify(self.golden, numpy_kernel(self.golden), own)
        self.assertEqual((verdict.outcome, verdict.profile), ("pass", "mine"))

    def test_a_small_layer_does_not_take_all_threads(self):
        """Of eight two, and eight again when it is through."""
        script = """
            import ctypes, os, etref
            openmp = ctypes.CDLL("libgomp.so.1")
            openmp.omp_set_num_threads(8)
            case = {"layer": "dense", "tokens": 64, "d_model": 64, "d_expert": 128}
            golden = etref.golden(case, framework="memoryview")
            etref.verify(golden, {"fwd.y": golden["fwd.y"]}, "f32")
            print(len(os.listdir("/proc/self/task")), openmp.omp_get_max_threads())
            """
        environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
        environment["PYTHONPATH"] = os.path.dirname(etref.__file__)
        said = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script)],
            env=environment,
            stdout=subprocess.PIPE,
            check=True,
        )
        self.assertEqual(said.stdout.split(), [b"2", b"8"])

    def test_many_verdicts_take_no_more_memory(self):
        """Every fourth is explained."""
        kernels = [numpy_kernel(self.golden, slope) for slope in (1, 2, 2, 2)]
        pages, allocated = 0, 0
        for i in range(1000):
            verdict = etref.verify(self.golden, kernels[i % 4])
            self.assertEqual(bool(verdict.explanations), i % 4 == 0)
            if i == 500:
                pages, allocated = resident(), in_use()
        self.assertLess(resident() - pages, 1 << 20)
        self.assertLess(in_use() - allocated, 8 << 10)  # malloc's least, once a verdict: 16 KiB


def resident():
    """Bytes of memory that this process has now."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


class Mallinfo(ctypes.Structure):  # mallinfo2 of glibc's malloc.h
    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        )
    ]


def in_use():
    """Bytes that malloc gave out and has not got back; 0 where the C library does not say."""
    mallinfo = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if mallinfo is None:
        return 0
    mallinfo.restype = Mallinfo
    facts = mallinfo()
    return facts.uordblks + facts.hblkhd


class Capsule:
    """Speaks DLPack, and nothing else."""

    def __init__(self, tensor):
        self.tensor = tensor

    def __dlpack__(self):
        return self.tensor.__dlpack__()


@unittest.skipUnless(torch and numpy, "no torch")
class Torch(Scratch):
    def test_kernels_of_torch(self):
        golden = etref.golden({**DENSE, "precision": "bf16"}, profile="f32", framework="torch")
        self.assertTrue(etref.verify(golden, torch_kernel(golden)))
        self.assertIn(
            "factor-two", etref.verify(golden, torch_kernel(golden, slope=1)).explanations[0]
        )

    def test_bf16(self):
        subprocess.run(
            [TOOL, "generate", "--case", "smoke-et", "--emulate", "bf16", "--out", self.folder],
            stdout=subprocess.DEVNULL,
            check=True,
        )
        golden = etref.golden("smoke-et", framework="torch")
        kernel = etref.load(self.path("smoke-et.bf16.safetensors"), "torch")
        low = {name: kernel[name].to(torch.bfloat16) for name in ("fwd.y", "bwd.x")}
        verdict = etref.verify(golden, low)
        self.assertEqual((verdict.outcome, verdict.profile), ("pass", "bf16"))
        self.assertIn("fwd.y is stored as BF16", verdict.line)


class Files(Scratch):
    def test_every_type_comes_back(self):
        tensors = {
            name: memoryview(bytes(range(16))).cast(form)
            for form, name in etref.FORMATS.items()
            if form not in "elL"
        }
        etref.save(self.path("all.safetensors"), tensors, {"key": "value"})
        again = etref.load(self.path("all.safetensors"), "memoryview")
        self.assertEqual(
            {k: v.tobytes() for k, v in again.items()}, {k: v.tobytes() for k, v in tensors.items()}
        )
        shown = subprocess.run([TOOL, "show", self.path("all.safetensors")], stdout=subprocess.PIPE)
        self.assertEqual(shown.returncode, 0)

    def test_a_file_stays_whole(self):
        etref.save(self.path("a.safetensors"), {"a": memoryview(b"123")})
        with self.assertRaises(etref.Error):
            etref.save(self.path("a.safetensors"), {"a": object()})
        self.assertEqual(bytes(etref.load(self.path("a.safetensors"), "memoryview")["a"]), b"123")
        self.assertEqual(os.listdir(self.folder), ["a.safetensors"])

    def test_no_tensors_at_all(self):
        with open(self.path("text"), "w") as file:
            file.write("no tensors")
        with self.assertRaisesRegex(etref.Error, "not a safetensors file"):
            etref.load(self.path("text"))

    @unittest.skipUnless(torch, "no torch")
    def test_bf16_as_numpy_and_torch(self):
        values = torch.tensor([[1.5, -2.0, 0.1]], dtype=torch.bfloat16)
        etref.save(self.path("a.safetensors"), {"a": values, "none": torch.empty(0, 3)})
        again = etref.load(self.path("a.safetensors"), "torch")
        self.assertTrue(torch.equal(again["a"], values))
        self.assertEqual(again["none"].shape, (0, 3))
        if numpy:
            wide = etref.load(self.path("a.safetensors"), "numpy")["a"]
            self.assertEqual(wide.tolist(), values.float().tolist())


@unittest.skipUnless(torch, "no torch")
class Examples(Scratch):
    """Those of the help, the manual page, tools/README.md and the module, with an emulated
    kernel."""

    def run_example(self, text):
        subprocess.run(
            [TOOL, "generate", "--case", "smoke-et", "--emulate", "bf16", "--out", self.folder],
            stdout=subprocess.DEVNULL,
            check=True,
        )
        kernel = etref.load(self.path("smoke-et.bf16.safetensors"), "torch")
        lines = text.splitlines()
        self.assertTrue(any("assert_kernel" in line for line in lines), text)
        names = {
            "kernel": lambda x, router, up, down: kernel["fwd.y"],
            "my_kernel": lambda *inputs: (kernel["fwd.y"], kernel["bwd.x"]),
            "print": lambda *words: None,
        }
        exec(text, names)  # pylint: disable=exec-used

    def test_of_the_help(self):
        said = subprocess.run([TOOL, "help", "verify"], stdout=subprocess.PIPE, check=True)
        self.run_example(textwrap.dedent(said.stdout.decode().split("in Python, in memory:\n")[1]))

    def test_of_the_manual_page(self):
        with open(os.path.join(ROOT, "tools", "etref", "etref.1")) as file:
            after = file.read().split("A kernel in Python, judged in memory")[1]
        self.run_example(after.split(".Bd -literal -offset indent\n")[1].split(".Ed")[0])

    def test_of_the_module(self):
        self.run_example(textwrap.dedent(etref.__doc__.split("\n\n")[1]))

    def test_of_the_tools_readme(self):
        with open(os.path.join(ROOT, "tools", "README.md")) as file:
            blocks = file.read().split("```python\n")[1:]
        self.run_example("".join(block.split("```")[0] for block in blocks))


if __name__ == "__main__":
    unittest.main()
