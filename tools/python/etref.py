"""etref: the reference for Mixture-of-Experts layers, as an oracle for tests of kernels.

    import etref
    golden = etref.golden("smoke-et", profile="bf16")        # a case's inputs, and what must come
    y, dx = my_kernel(golden["in.x"], golden["in.dy"], ...)
    etref.assert_kernel(golden, {"fwd.y": y, "bwd.x": dx})   # raises, and says what is wrong

Needs libetref and nothing else; with numpy or torch installed, tensors are theirs. Names, types and
shapes of tensors: `etref list tensors`. Letters of shapes: N tokens, d width, h and hs hidden
widths of a routed and of the shared expert, n routed experts, S slots (pairs of a token and an
expert that takes it, by expert, then token). A dense layer has no leading n.

Environment: ETREF_LIBRARY, the library's file; ETREF_CACHE, the folder of computed goldens
(default: etref in $XDG_CACHE_HOME or ~/.cache).
"""
from __future__ import annotations

import ctypes
import hashlib
import json
import math
import os
import shlex
import struct
import sys
import tempfile
import threading
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Dict, Iterator, Mapping, Optional, Sequence, Tuple, Union

__all__ = [
    "Golden",
    "Inconclusive",
    "Mismatch",
    "Verdict",
    "assert_kernel",
    "golden",
    "load",
    "save",
    "verify",
    "version",
]

Case = Union[str, Mapping[str, Any]]
Profile = Union[None, str, Mapping[str, Any]]

FACE = 1  # the version of include/etref/golden.h that is spoken here


class Error(ValueError):
    """The library refuses an argument, or cannot read a file; the message says which and why."""


# ---- the library ----

DTYPES = (
    "F64",
    "I64",
    "U64",
    "F32",
    "I32",
    "U32",
    "F16",
    "BF16",
    "I16",
    "U16",
    "I8",
    "U8",
    "BOOL",
    "F8_E4M3",
    "F8_E5M2",
)  # by their numbers in etref/dtype.h
SIZES = {
    "F64": 8,
    "I64": 8,
    "U64": 8,
    "F32": 4,
    "I32": 4,
    "U32": 4,
    "F16": 2,
    "BF16": 2,
    "I16": 2,
    "U16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}
MAX_RANK = 8


class _Array(ctypes.Structure):  # et_array
    _fields_ = [
        ("name", ctypes.c_char_p),
        ("dtype", ctypes.c_int),
        ("rank", ctypes.c_size_t),
        ("shape", ctypes.c_size_t * MAX_RANK),
        ("values", ctypes.c_void_p),
    ]


class _Error(ctypes.Structure):  # et_error
    _fields_ = [("text", ctypes.c_char * 640)]


def _places() -> Iterator[str]:
    """Where the library may lie: named by the user; installed beside this file; in the tree; known
    to the system."""
    here = os.path.dirname(os.path.abspath(__file__))
    if "ETREF_LIBRARY" in os.environ:
        yield os.environ["ETREF_LIBRARY"]
        return
    for steps in (("..", ".."), ("..", "..", "..", "lib")):  # PREFIX/lib/python3.x/site-packages
        yield os.path.join(here, *steps, "libetref.so.0")
    yield os.path.join(here, "..", "..", "build", "libetref.so.0")
    yield "libetref.so.0"


def _best_kernels() -> Optional[str]:
    """By the processor's features; None: OpenBLAS may choose."""
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
            flags = next((line for line in file if line.startswith("flags")), "").split()
    except OSError:
        return None
    if {"avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl"} <= set(flags):
        return "SkylakeX"
    return "Haswell" if {"avx2", "fma"} <= set(flags) else None


def _open(place: str) -> ctypes.CDLL:
    """OpenBLAS 0.3.21 takes SSE3 kernels on processors newer than itself. It reads this variable
    when it is loaded, once in a process; nobody else is to be told."""
    name, best = "OPENBLAS_CORETYPE", _best_kernels()
    if name in os.environ or best is None:
        return ctypes.CDLL(place)
    os.environ[name] = best
    try:
        return ctypes.CDLL(place)
    finally:
        del os.environ[name]


def _declare(library: ctypes.CDLL) -> ctypes.CDLL:
    golden, text = ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p)
    arrays, error = ctypes.POINTER(_Array), ctypes.POINTER(_Error)
    words, size = ctypes.c_char_p, ctypes.c_size_t
    to_golden = ctypes.POINTER(golden)
    library.et_version.restype = words
    library.et_producer.restype = words
    library.et_golden_of_case.argtypes = [to_golden, words, size, error]
    library.et_golden_open.argtypes = [to_golden, words, size, error]
    library.et_golden_give.argtypes = [golden, arrays, size, error]
    library.et_golden_case.argtypes = [golden, text, error]
    library.et_golden_tensor.argtypes = [golden, size, arrays, error]
    library.et_golden_write.argtypes = [golden, words, words, error]
    library.et_judge.argtypes = [golden, arrays, size, words, text, text, error]
    library.et_release.argtypes = [ctypes.c_void_p]
    library.et_release.restype = None
    library.et_golden_close.argtypes = [golden]
    library.et_golden_close.restype = None
    return library


def _load_library() -> ctypes.CDLL:
    tried = []
    for place in _places():
        if os.sep in place and not os.path.exists(place):
            tried.append(place)
            continue
        try:
            library = _open(place)
        except OSError as problem:
            tried.append("%s (%s)" % (place, problem))
            continue
        if library.et_face() != FACE:
            raise ImportError(
                "%s has face %d of etref/golden.h, and this etref.py wants %d"
                % (place, library.et_face(), FACE)
            )
        return _declare(library)
    raise ImportError(
        "libetref is not there: `make install` installs it, ETREF_LIBRARY names it. "
        "Looked for: " + ", ".join(tried)
    )


_library = _load_library()


def version() -> str:
    """Of the library: "0.1.0"."""
    return _library.et_version().decode()


def _check(status: int, error: _Error) -> None:
    text = error.text.decode(errors="replace")
    if status == 2:
        raise MemoryError(text)
    if status == 3:
        raise OSError(text)
    if status != 0:
        raise Error(text)


def _take_text(pointer: ctypes.c_void_p) -> str:
    """A text of the library, which is released."""
    try:
        return ctypes.string_at(pointer.value or 0).decode()
    finally:
        _library.et_release(pointer)


def _memory_limit() -> int:
    """Three quarters of the machine's memory; 0: not known."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4 * 3
    except (ValueError, OSError):
        return 0


# ---- arrays of others, where they lie ----


@dataclass
class _View:
    """A tensor in memory, row-major, and what keeps it there."""

    dtype: str
    shape: Tuple[int, ...]
    address: int
    owner: Any

    @property
    def bytes(self) -> int:
        return SIZES[self.dtype] * math.prod(self.shape)


FORMATS = {
    "d": "F64",
    "f": "F32",
    "e": "F16",
    "q": "I64",
    "l": "I64",
    "i": "I32",
    "h": "I16",
    "b": "I8",
    "Q": "U64",
    "L": "U64",
    "I": "U32",
    "H": "U16",
    "B": "U8",
    "?": "BOOL",
}
TORCH_NAMES = {
    "torch.float64": "F64",
    "torch.float32": "F32",
    "torch.float16": "F16",
    "torch.bfloat16": "BF16",
    "torch.int64": "I64",
    "torch.int32": "I32",
    "torch.int16": "I16",
    "torch.int8": "I8",
    "torch.uint8": "U8",
    "torch.bool": "BOOL",
}


def _view_of_torch(name: str, tensor: Any) -> _View:
    tensor = tensor.detach().cpu().contiguous()  # each does nothing where nothing is to be done
    dtype = TORCH_NAMES.get(str(tensor.dtype))
    if dtype is None:
        raise Error("%s: tensors of %s are not judged" % (name, tensor.dtype))
    return _View(dtype, tuple(tensor.shape), tensor.data_ptr(), tensor)


def _view_of_buffer(name: str, buffer: memoryview) -> _View:
    dtype, shape = _format(name, buffer.format), tuple(buffer.shape or ())
    if not buffer.c_contiguous:  # a slice, a transpose: copied
        buffer = memoryview(bytearray(buffer.tobytes()))
    return _View(dtype, shape, _address(buffer), buffer)


def _format(name: str, form: str) -> str:
    if form.lstrip("<=@") not in FORMATS:
        raise Error("%s: arrays of format %r are not judged" % (name, form))
    return FORMATS[form.lstrip("<=@")]


def _address(buffer: memoryview) -> int:
    """Of a contiguous buffer, which may be read-only."""
    if buffer.nbytes == 0:
        return 0
    holder = ctypes.py_object(buffer)
    view = _PyBuffer()
    if ctypes.pythonapi.PyObject_GetBuffer(holder, ctypes.byref(view), 0) != 0:
        raise Error("a buffer that cannot be read")
    address = view.buf
    ctypes.pythonapi.PyBuffer_Release(ctypes.byref(view))
    return address


class _PyBuffer(ctypes.Structure):  # Py_buffer of Python's C interface
    _fields_ = [
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.py_object),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    ]


class _DLTensor(ctypes.Structure):  # DLPack's dlpack.h
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device", ctypes.c_int * 2),
        ("rank", ctypes.c_int),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


CODES = {
    (0, 8): "I8",
    (0, 16): "I16",
    (0, 32): "I32",
    (0, 64): "I64",
    (1, 8): "U8",
    (1, 16): "U16",
    (1, 32): "U32",
    (1, 64): "U64",
    (2, 16): "F16",
    (2, 32): "F32",
    (2, 64): "F64",
    (4, 16): "BF16",
    (6, 8): "BOOL",
}


def _view_of_dlpack(name: str, array: Any) -> _View:
    capsule = array.__dlpack__()
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    tensor = _DLTensor.from_address(get(capsule, b"dltensor"))
    dtype = CODES.get((tensor.code, tensor.bits))
    shape = tuple(tensor.shape[i] for i in range(tensor.rank))
    if tensor.device[0] not in (1, 3) or dtype is None or tensor.lanes != 1:  # CPU, pinned by CUDA
        raise Error("%s: of a device or a type that cannot be read; copy it to the CPU" % name)
    if tensor.strides:
        packed = 1
        for extent, stride in zip(reversed(shape), reversed(tensor.strides[: tensor.rank])):
            if extent != 1 and stride != packed:
                raise Error("%s: not row-major; make a contiguous copy" % name)
            packed *= extent
    return _View(dtype, shape, (tensor.data or 0) + tensor.byte_offset, (capsule, array))


def _view(name: str, value: Any) -> _View:
    """Anything with values: torch's tensors, what has a buffer (numpy), what speaks DLPack."""
    if hasattr(value, "data_ptr"):
        return _view_of_torch(name, value)
    if getattr(getattr(value, "dtype", None), "name", "") == "bfloat16" and hasattr(value, "view"):
        view = _view_of_buffer(name, memoryview(value.view("uint16")))  # numpy, by ml_dtypes
        return _View("BF16", view.shape, view.address, view.owner)
    try:
        buffer = memoryview(value)
    except (TypeError, ValueError, BufferError):
        buffer = None
    if buffer is not None:
        return _view_of_buffer(name, buffer)
    if hasattr(value, "__dlpack__"):
        return _view_of_dlpack(name, value)
    raise Error(
        "%s: a %s is no tensor: torch's, numpy's, or what has a buffer or speaks DLPack "
        "belongs here" % (name, type(value).__name__)
    )


def _arrays(tensors: Mapping[str, Any]) -> Tuple[ctypes.Array, list]:
    """et_array [len(tensors)], and what must live as long as they are used."""
    views = [_view(name, value) for name, value in tensors.items()]
    arrays = (_Array * len(views))()
    for array, name, view in zip(arrays, tensors, views):
        if len(view.shape) > MAX_RANK:
            raise Error("%s: %d dimensions" % (name, len(view.shape)))
        array.name, array.dtype = name.encode(), DTYPES.index(view.dtype)
        array.rank, array.values = len(view.shape), view.address or None
        array.shape[: len(view.shape)] = view.shape
    return arrays, views


# ---- arrays of ours, as a framework has them ----


def _framework(name: Optional[str]) -> str:
    """None: torch where the program uses it, else numpy, else memoryview."""
    if name is None:
        if "torch" in sys.modules:
            return "torch"
        try:
            import numpy  # noqa: F401
        except ImportError:
            return "memoryview"
        return "numpy"
    if name not in ("torch", "numpy", "memoryview"):
        raise Error("framework %r; torch, numpy or memoryview" % name)
    return name


def _as_torch(data: Any, dtype: str, shape: Sequence[int]) -> Any:
    import torch

    types = {
        "F64": torch.float64,
        "F32": torch.float32,
        "F16": torch.float16,
        "BF16": torch.bfloat16,
        "I64": torch.int64,
        "I32": torch.int32,
        "I16": torch.int16,
        "I8": torch.int8,
        "U8": torch.uint8,
        "BOOL": torch.bool,
    }
    if dtype not in types:
        raise Error("torch has no type %s" % dtype)
    if math.prod(shape) == 0:
        return torch.empty(tuple(shape), dtype=types[dtype])
    return torch.frombuffer(data, dtype=types[dtype]).reshape(tuple(shape))


def _as_numpy(data: Any, dtype: str, shape: Sequence[int]) -> Any:
    """numpy has no bf16: those are widened to float32, which holds them exactly."""
    import numpy

    if dtype == "BF16":
        halves = numpy.frombuffer(data, dtype="<u2").astype("<u4") << 16
        return halves.view("<f4").reshape(tuple(shape))
    kinds = {"F": "f", "I": "i", "U": "u"}
    code = "?" if dtype == "BOOL" else "<%s%d" % (kinds[dtype[0]], SIZES[dtype])
    return numpy.frombuffer(data, dtype=code).reshape(tuple(shape))


def _as_memory(data: Any, dtype: str, shape: Sequence[int]) -> memoryview:
    """BF16 and F16: as integers of 16 bits, since a memoryview knows neither."""
    forms = {name: form for form, name in FORMATS.items() if form not in "elL"}
    view = memoryview(data).cast("B").cast(forms.get(dtype, "H"))
    return view.cast("B").cast(view.format, tuple(shape)) if shape and len(view) else view


def _present(framework: str, data: Any, dtype: str, shape: Sequence[int]) -> Any:
    make = {"torch": _as_torch, "numpy": _as_numpy, "memoryview": _as_memory}[framework]
    return make(data, dtype, shape)


# ---- goldens ----


class _Shared:
    """The library's golden, of one or more Goldens: freed with the last of them."""

    def __init__(self, handle: ctypes.c_void_p):
        self._as_parameter_ = handle
        self.wants_bars = False  # it lies in the cache without any

    def __del__(self) -> None:
        if _library is not None:
            _library.et_golden_close(self._as_parameter_)


def _profile_words(profile: Profile) -> Optional[str]:
    """As the library takes it: a name, or JSON."""
    if profile is None or isinstance(profile, str):
        return profile
    return json.dumps(dict(profile), sort_keys=True)


class Golden(Mapping[str, Any]):
    """A case's inputs and what must come out: {name: tensor}, computed when it is first asked for.

    in.x, in.dy [N,d] and the weights have the type of the case's precision (numpy, which has no
    bf16: float32 of the same values); in.ema, in.bias, in.load [n], fwd.*, bwd.*, loss.*, state.*,
    metric.* are float64, route.mask [N,n] is uint8, indices and counts are int32.

    Several threads may read and judge by one golden; they take turns. `case` is the case, with all
    of its fields; `path` the bundle in which it lies, or None; `profile` what a kernel is judged
    by where nothing else is said, or None: its own numbers choose.
    """

    def __init__(
        self,
        handle: Union[ctypes.c_void_p, _Shared],
        path: Optional[str] = None,
        profile: Profile = None,
        framework: Optional[str] = None,
    ):
        """Takes the handle. Programs call golden(), Golden.open or Golden.from_tensors."""
        self._handle: Optional[_Shared] = handle if isinstance(handle, _Shared) else _Shared(handle)
        self._lock = threading.Lock()
        self._index: Dict[str, _Array] = {}
        self._complete = False
        self.path, self.profile, self.framework = path, profile, _framework(framework)
        text, error = ctypes.c_void_p(), _Error()
        _check(_library.et_golden_case(self._handle, ctypes.byref(text), error), error)
        self.case: Dict[str, Any] = json.loads(_take_text(text))

    @classmethod
    def of_case(
        cls, case: Case, profile: Profile = None, framework: Optional[str] = None
    ) -> Golden:
        """Of a built-in case's name or a case, in memory alone: golden() without its cache."""
        handle, error = ctypes.c_void_p(), _Error()
        text = case if isinstance(case, str) else json.dumps(dict(case))
        _check(_library.et_golden_of_case(handle, text.encode(), _memory_limit(), error), error)
        return cls(handle, None, profile, framework)

    @classmethod
    def open(cls, path: str, profile: Profile = None, framework: Optional[str] = None) -> Golden:
        """Of a bundle that `etref generate` or save() wrote."""
        handle, error = ctypes.c_void_p(), _Error()
        _check(_library.et_golden_open(handle, os.fsencode(path), _memory_limit(), error), error)
        return cls(handle, os.fspath(path), profile, framework)

    @classmethod
    def from_tensors(
        cls,
        x: Any,
        dy: Any,
        w_router: Any = None,
        *,
        w_up: Any,
        w_down: Any,
        shared_up: Any = None,
        shared_down: Any = None,
        w_gate: Any = None,
        shared_gate: Any = None,
        b_up: Any = None,
        b_gate: Any = None,
        b_down: Any = None,
        shared_b_up: Any = None,
        shared_b_gate: Any = None,
        shared_b_down: Any = None,
        ema: Any = None,
        bias: Any = None,
        load: Any = None,
        mask: Any = None,
        name: str = "own",
        profile: Profile = None,
        framework: Optional[str] = None,
        **fields: Any,
    ) -> Golden:
        """One's own inputs: x, dy [N,d]; w_router [n,d], w_up [n,h,d], w_down [n,d,h] (w_router
        None: a dense layer, [h,d], [d,h]); shared_up [hs,d], shared_down [d,hs] if there is a
        shared expert; w_gate, shared_gate, shaped as w_up, shared_up, with activation="swiglu";
        biases b_up, b_gate [n,h], b_down [n,d], shared_b_up, shared_b_gate [hs], shared_b_down [d]:
        all that there are, or none; ema, bias, load [n] where the case has them; with padding=,
        mask [N]: 1 for real tokens, 0 for padding, of any integer type or bool. The other fields of
        the case (rule="et", gate="sigmoid", ema_updates=1, ...; `etref list fields`) are keywords.
        x has the type in which a kernel gets it, and all values must be numbers of that type."""
        given = {
            "in.x": x,
            "in.dy": dy,
            "in.w_router": w_router,
            "in.w_up": w_up,
            "in.w_down": w_down,
            "in.shared_up": shared_up,
            "in.shared_down": shared_down,
            "in.w_gate": w_gate,
            "in.shared_gate": shared_gate,
            "in.b_up": b_up,
            "in.b_gate": b_gate,
            "in.b_down": b_down,
            "in.shared_b_up": shared_b_up,
            "in.shared_b_gate": shared_b_gate,
            "in.shared_b_down": shared_b_down,
            "in.ema": ema,
            "in.bias": bias,
            "in.load": load,
            "in.mask": mask,
        }
        given = {key: value for key, value in given.items() if value is not None}
        shape = {key: _view(key, value).shape for key, value in given.items()}
        case: Dict[str, Any] = {
            "name": name,
            "tokens": shape["in.x"][0],
            "d_model": shape["in.x"][-1],
            "d_expert": shape["in.w_up"][-2],
            "precision": _view("x", x).dtype.lower(),
        }
        if w_router is None:
            case["layer"] = "dense"
        else:
            case.update(experts=shape["in.w_router"][0], shared=shared_up is not None)
        if b_up is not None:
            case["expert_bias"] = True
        if shared_up is not None:
            case["shared_d_expert"] = shape["in.shared_up"][0]
        golden = cls.of_case({**case, **fields}, profile, framework)
        arrays, views = _arrays(given)
        error = _Error()
        _check(_library.et_golden_give(golden._handle, arrays, len(arrays), error), error)
        del views
        return golden

    def save(self, path: str, profile: Profile = None) -> None:
        """Writes the bundle, whole or not at all; with the error bars of a profile, if one is
        given."""
        error = _Error()
        words = _profile_words(profile)
        _check(
            _library.et_golden_write(
                self._handle, os.fsencode(path), None if words is None else words.encode(), error
            ),
            error,
        )
        self.path = os.fspath(path)

    def close(self) -> None:
        """Gives the memory back, unless another Golden of golden() is of the same case. Tensors of
        numpy and memoryviews of this golden are gone with it."""
        handle, self._handle = self._handle, None
        with _kept_lock:
            for key in [key for key, (kept, _) in _kept.items() if kept is handle]:
                del _kept[key]

    # -- the tensors --

    def _read(self, name: Optional[str]) -> None:
        """Looks up one tensor after the other until it is this one, or past the last. Those of
        in.*, which come first, take no computing."""
        with self._lock:
            while not self._complete and name not in self._index:
                array, error = _Array(), _Error()
                _check(
                    _library.et_golden_tensor(self._handle, len(self._index), array, error), error
                )
                self._complete = array.name is None
                if not self._complete:
                    self._index[array.name.decode()] = array

    def __getitem__(self, name: str) -> Any:
        """numpy's arrays and memoryviews are the golden's own memory, and cannot be written to;
        tensors of torch, which cannot be protected, are copies."""
        self._read(name)
        array = self._index[name]
        shape = tuple(array.shape[: array.rank])
        dtype, size = DTYPES[array.dtype], SIZES[DTYPES[array.dtype]] * math.prod(shape)
        data = (ctypes.c_char * size).from_address(array.values) if size else bytearray()
        data._etref_owner = self if size else None  # type: ignore[union-attr]
        return self._convert(name, data, dtype, shape)

    def _convert(self, name: str, data: Any, dtype: str, shape: Sequence[int]) -> Any:
        stored = self.case["precision"].upper()
        narrow = name.startswith("in.") and name not in ("in.ema", "in.bias", "in.load")
        if self.framework == "torch":
            import torch

            tensor = _as_torch(data, dtype, shape)
            types = {
                "F64": torch.float64,
                "F32": torch.float32,
                "F16": torch.float16,
                "BF16": torch.bfloat16,
            }
            return tensor.to(types[stored]) if narrow and stored != dtype else tensor.clone()
        if self.framework == "numpy":
            tensor = _as_numpy(memoryview(data).toreadonly() if shape else data, dtype, shape)
            wanted = {"F32": "f4", "BF16": "f4", "F16": "f2"}.get(stored)
            return tensor.astype(wanted) if narrow and wanted else tensor
        return _as_memory(data, dtype, shape).toreadonly()

    def __iter__(self) -> Iterator[str]:
        self._read(None)
        return iter(self._index)

    def __len__(self) -> int:
        self._read(None)
        return len(self._index)

    def __contains__(self, name: object) -> bool:
        self._read(str(name))
        return name in self._index

    def __repr__(self) -> str:
        return "<etref.Golden %s>" % self.case["name"]


# ---- verdicts ----


@dataclass(frozen=True)
class Verdict:
    """What et_verify says of a kernel. `report` is `etref verify --format json` as a dict, `text`
    the report for people."""

    outcome: str  # "pass", "mismatch" or "inconclusive"
    line: str  # the verdict in one line
    profile: str  # by which it was judged
    explanations: Tuple[
        str, ...
    ]  # "router-term-in-dx: dx lacks the router's term, dr W_r (everywhere)"
    report: Dict[str, Any] = field(repr=False)
    text: str = field(repr=False)

    @property
    def passed(self) -> bool:
        return self.outcome == "pass"

    def __bool__(self) -> bool:
        """True for a pass alone: an inconclusive verdict is none."""
        return self.passed

    def summary(self, places: int = 3) -> str:
        """The explanation, the line, and the worst places of the first tensors that failed."""
        lines = ["explained by " + each for each in self.explanations]
        if self.report["passes_under"]:
            lines.append("passes under profile %s" % self.report["passes_under"])
        lines.append(self.line)
        failed = [each for each in self.report["tensors"] if each["outcome"] == "mismatch"]
        for tensor in failed[:places]:
            if tensor["reason"] not in self.line:
                lines.append("  %s: %s" % (tensor["name"], tensor["reason"]))
            lines.append(
                "  %s, worst at %s: got %s, want %s, bar %s"
                % (
                    tensor["name"],
                    tensor["worst_at"],
                    *(_short(tensor[key]) for key in ("got", "want", "bar")),
                )
            )
        if len(failed) > places:
            lines.append(
                "  and %d more: %s"
                % (len(failed) - places, ", ".join(each["name"] for each in failed[places:]))
            )
        if not self.explanations and self.report["residual"]:
            lines.append("  " + self.report["residual"])
        return "\n".join(lines)


def _short(value: Union[float, str]) -> str:
    return value if isinstance(value, str) else "%.9g" % value


class Mismatch(AssertionError):
    """A kernel that errs; `verdict` says how."""

    def __init__(self, message: str, verdict: Verdict):
        super().__init__(message)
        self.verdict = verdict


class Inconclusive(Mismatch):
    """What a kernel showed cannot decide."""


def verify(
    golden: Golden,
    tensors: Mapping[str, Any],
    profile: Profile = None,
    *,
    require: Sequence[str] = (),
    ties: str = "rule",
    explain: bool = True,
    explain_seconds: float = 10,
) -> Verdict:
    """Judges what a kernel computed from golden["in.*"]: {name: tensor} with any of the bundle's
    names, real ones in any float type: {"fwd.y": y, "bwd.x": dx} [N,d], "bwd.w_up" [n,h,d],
    "route.mask" [N,n], ... Tensors of torch, numpy's arrays, and all that has a buffer or speaks
    DLPack are read where they lie, if they are row-major and on the CPU; else a copy of them is.

    profile: where the kernel rounds, a name of `etref list profiles` or one's own as a dict
    (default: the golden's, else chosen from the numbers). require: names that must be there for a
    pass, ["fwd.y", "bwd.*"]. ties: "any" lets exact ties be broken in any way. explain: on a
    mismatch, look for an explanation, for explain_seconds of CPU. Raises Error for tensors that no
    bundle has, wrong shapes and the like."""
    profile = golden.profile if profile is None else profile
    options: Dict[str, Any] = {
        "require": list(require),
        "ties": ties,
        "explain": explain,
        "explain_seconds": explain_seconds,
    }
    if profile is not None:
        options["profile"] = profile if isinstance(profile, str) else dict(profile)
    arrays, views = _arrays(tensors)
    report, text, error = ctypes.c_void_p(), ctypes.c_void_p(), _Error()
    status = _library.et_judge(
        golden._handle,
        arrays,
        len(arrays),
        json.dumps(options).encode(),
        ctypes.byref(report),
        ctypes.byref(text),
        error,
    )
    del views
    _check(status, error)
    facts, words = json.loads(_take_text(report)), _take_text(text)
    routing = facts["routing"]
    if facts["verdict"] == "pass" and (routing is None or routing["differing"] == 0):
        _keep_bars(golden, facts["profile"]["name"] if profile is None else profile)
    return Verdict(
        outcome=facts["verdict"],
        line=facts["message"],
        profile=facts["profile"]["name"],
        explanations=tuple(
            "%(name)s: %(sentence)s (%(scope)s)" % each for each in facts["explanations"]
        ),
        report=facts,
        text=words,
    )


def assert_kernel(
    golden: Golden, tensors: Mapping[str, Any], profile: Profile = None, **options: Any
) -> Verdict:
    """verify(), and anything but a pass is raised: Mismatch, or Inconclusive. Its message names the
    mistake, if it is a known one, the worst places, and a command that says the same and shows
    more: for that the kernel's tensors are written beside the golden, which goes to the cache if it
    lies nowhere."""
    __tracebackhide__ = True  # pytest shows the caller
    verdict = verify(golden, tensors, profile, **options)
    if verdict.passed:
        return verdict
    kind = Mismatch if verdict.outcome == "mismatch" else Inconclusive
    more = _how_to_see_more(golden, tensors, profile, **options)
    raise kind(verdict.summary() + "\n" + more, verdict)


_failed: Dict[str, int] = {}  # kernels of this program that failed, golden by golden


def _how_to_see_more(
    golden: Golden,
    tensors: Mapping[str, Any],
    profile: Profile = None,
    require: Sequence[str] = (),
    ties: str = "rule",
    **_: Any,
) -> str:
    """The tool's command for verify() with these arguments; its files lie beside the golden, one
    for each kernel of a program that failed."""
    try:
        path = os.path.abspath(golden.path or _write_in_cache(golden))
        base = path.removesuffix(".safetensors")
        with _kept_lock:
            number = _failed[path] = _failed.get(path, 0) + 1
        kernel = base + (".failed.safetensors" if number == 1 else ".failed-%d.safetensors" % number)
        words = ["etref", "verify", path, kernel, "--engine", "plain"]
        save(kernel, tensors)
        text = _profile_words(golden.profile if profile is None else profile)
        if text is not None and text.lstrip().startswith("{"):
            with open(base + ".profile.json", "w", encoding="utf-8") as file:
                file.write(text + "\n")
            text = base + ".profile.json"
    except (OSError, Error) as problem:
        return "more: the exception's .verdict.text (%s)" % problem
    if text is not None:
        words += ["--profile", text]
    if require:
        words += ["--require", ",".join(require)]
    if ties != "rule":
        words += ["--ties", ties]
    return "more: " + shlex.join(words)


# ---- the cache ----


def _cache_folder() -> str:
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.environ.get("ETREF_CACHE") or os.path.join(base, "etref")


_KEPT = 4
_kept: Dict[str, Tuple[_Shared, Optional[str]]] = {}  # with their paths
_kept_lock = threading.Lock()


def golden(case: Case, profile: Profile = None, framework: Optional[str] = None) -> Golden:
    """The golden of a built-in case ("smoke-et"; `etref list`) or of one's own ({"rule": "et",
    "tokens": 512, ...}; `etref list fields`; the name may be left out), computed once: it then
    lies in the cache, named by case and version. With a profile, its error bars lie there, too,
    and no verdict has to make them; without one, those of the first pass. framework: "torch",
    "numpy" or "memoryview" (default: torch where the program has imported it). The last four cases
    stay in memory until their goldens are closed: who asks for one again gets it with the error
    bars that have been made."""
    if not isinstance(case, str):
        case = {"name": "own", "input": {"source": "normal"}, **case}
    words = _profile_words(profile)
    key = json.dumps([case, words, _cache_folder()], sort_keys=True)
    with _kept_lock:
        kept = _kept.get(key)
    if kept is not None:
        return Golden(*kept, profile, framework)
    made = _golden_in_cache(case, profile, words, framework)
    assert made._handle is not None
    with _kept_lock:
        _kept[key] = made._handle, made.path
        while len(_kept) > _KEPT:
            del _kept[next(iter(_kept))]
    return made


def _golden_in_cache(
    case: Case, profile: Profile, words: Optional[str], framework: Optional[str]
) -> Golden:
    fresh = Golden.of_case(case, profile, framework)
    key = json.dumps([_library.et_producer().decode(), fresh.case, words], sort_keys=True)
    name = "%s-%s.safetensors" % (fresh.case["name"], hashlib.sha256(key.encode()).hexdigest()[:16])
    path = os.path.join(_cache_folder(), name)
    if not os.path.exists(path):
        os.makedirs(_cache_folder(), exist_ok=True)
        fresh.save(path, profile)
        assert fresh._handle is not None
        fresh._handle.wants_bars = profile is None
        return fresh
    fresh.close()
    found = Golden.open(path, profile, framework)
    assert found._handle is not None
    found._handle.wants_bars = profile is None and "profile" not in _metadata(path)
    return found


def _write_in_cache(golden: Golden) -> str:
    """Of a golden that lies nowhere, by its inputs, which may be one's own."""
    about = [_library.et_producer().decode(), golden.case]
    key = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name in [name for name in golden if name.startswith("in.")]:
        array = golden._index[name]
        size = SIZES[DTYPES[array.dtype]] * math.prod(array.shape[: array.rank])
        key.update((ctypes.c_char * size).from_address(array.values) if size else b"")
    name = "%s-%s.safetensors" % (golden.case["name"], key.hexdigest()[:16])
    os.makedirs(_cache_folder(), exist_ok=True)
    golden.save(os.path.join(_cache_folder(), name))
    assert golden.path is not None
    return golden.path


def _keep_bars(golden: Golden, profile: Profile) -> None:
    """The bars that a verdict had to make go to the cache, for the next program: those of the
    profile that was the first. Where the cache cannot be written they are made again. Of more than
    256 MB the library itself keeps none."""
    shared = golden._handle
    if shared is None or golden.path is None or not shared.wants_bars:
        return
    shared.wants_bars = False
    try:
        if os.path.getsize(golden.path) < 1 << 28:
            golden.save(golden.path, profile)
    except (OSError, Error):
        pass


# ---- safetensors: 8 bytes of length, a header in JSON, the data ----


def _header(file: BinaryIO, path: str) -> Dict[str, Any]:
    head = file.read(8)
    length = struct.unpack("<Q", head)[0] if len(head) == 8 else 1 << 62
    if length > 100_000_000:
        raise Error("%s: not a safetensors file" % path)
    return json.loads(file.read(length))


def _metadata(path: str) -> Dict[str, str]:
    with open(path, "rb") as file:
        return _header(file, path).get("__metadata__", {})


def load(path: str, framework: Optional[str] = None) -> Dict[str, Any]:
    """The tensors of a safetensors file, {name: tensor}."""
    with open(path, "rb") as file:
        header = _header(file, path)
        data = memoryview(bytearray(file.read()))
    header.pop("__metadata__", None)
    framework = _framework(framework)
    tensors = {}
    for name, about in header.items():
        begin, end = about["data_offsets"]
        tensors[name] = _present(framework, data[begin:end], about["dtype"], about["shape"])
    return tensors


def save(
    path: str, tensors: Mapping[str, Any], metadata: Optional[Mapping[str, str]] = None
) -> None:
    """Writes tensors, whatever they are (see verify), whole or not at all."""
    views = {name: _view(name, value) for name, value in tensors.items()}
    header: Dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    at = 0
    # Large elements first: then every tensor begins at a multiple of its element's size.
    order = sorted(views, key=lambda name: (-SIZES[views[name].dtype], name))
    for name in order:
        view = views[name]
        header[name] = {
            "dtype": view.dtype,
            "shape": list(view.shape),
            "data_offsets": [at, at + view.bytes],
        }
        at += view.bytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    part, room = tempfile.mkstemp(dir=os.path.dirname(os.path.abspath(path)), prefix=".etref-")
    try:
        with os.fdopen(part, "wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for name in order:
                file.write(ctypes.string_at(views[name].address, views[name].bytes))
        os.replace(room, path)
    except BaseException:
        os.unlink(room)
        raise
