"""The kernels in C: built once for a machine, kept in the user's cache, and loaded when first needed.

A layer of a flow is a few hundred small operations to torch, and a minute of its compiler; here it is one call. Where
there is no C compiler everything still works, several times slower, with the same results.
"""

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

_SOURCES = Path(__file__).parent
# What -O3 does beyond these makes nothing faster here, and takes twice as long.
_FLAGS = ["-std=gnu11", "-O2", "-ftree-vectorize", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"]
_FLAGS += ["-fPIC", "-shared"]
# gcc's own measure of whether vector instructions pay is too careful at -O2.
_COST_MODEL = "-fvect-cost-model=dynamic"
# The first set that the compiler takes: clang knows -mcpu on some processors only, and may come without OpenMP.
_TUNING = [
    ["-march=native", "-fopenmp", _COST_MODEL],
    ["-march=native", "-fopenmp"],
    ["-mcpu=native", "-fopenmp"],
    ["-march=native"],
    ["-mcpu=native"],
    [],
]
_TIMEOUT_SECONDS = 120.0


KINDS = {torch.float32: "f32", torch.float64: "f64"}
"""What the kernels are compiled for, and how their names end."""


class NativeWarning(UserWarning):
    """The kernels in C cannot be had; torch's own operations are used."""


AFFINE, SPLINE, MIXTURE = range(3)
"""Kinds of maps, as kernels.c numbers them."""


class Map(ctypes.Structure):
    """A univariate map, as the kernels read it (``map`` in kernels.c)."""

    _fields_ = (
        ("kind", ctypes.c_int64),
        ("bins", ctypes.c_int64),
        ("bound", ctypes.c_double),
        ("learned", ctypes.c_int64),
    )


class Call(ctypes.Structure):
    """Sizes and addresses of one call (``call`` in kernels.c)."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("points", "features", "threads", "inputs", "hidden", "blocks")),
        *((name, ctypes.c_int64) for name in ("values", "size", "inverse", "sequential")),
        ("map", Map),
        ("identity_features", ctypes.POINTER(ctypes.c_int64)),
        ("transformed_features", ctypes.POINTER(ctypes.c_int64)),
        ("known", ctypes.POINTER(ctypes.c_int64)),
        ("tensors", ctypes.POINTER(ctypes.c_void_p)),
        ("g_tensors", ctypes.POINTER(ctypes.c_void_p)),
        ("g_terms", ctypes.POINTER(ctypes.c_void_p)),
    )


class _Switch(threading.local):
    """Whether this thread wants the kernels."""

    on = os.environ.get("PUSHFORWARD_NATIVE", "1") != "0"


_switch = _Switch()


@contextlib.contextmanager
def disabled() -> Iterator[None]:
    """Use torch's own operations within this block, in this thread.

    The environment variable ``PUSHFORWARD_NATIVE=0`` does the same for a whole process.
    """
    before, _switch.on = _switch.on, False
    try:
        yield
    finally:
        _switch.on = before


def library() -> ctypes.CDLL | None:
    """The loaded kernels; None if they are switched off or cannot be had.

    The first call on a machine takes some seconds, the first one in a process a few milliseconds. If there is no
    compiler, or it fails, that is said once, by a ``NativeWarning``.
    """
    return _loaded() if _switch.on else None


_loading = threading.Lock()  # threads that come at once build, and warn, once


def _loaded() -> ctypes.CDLL | None:
    with _loading:
        return _built_or_warned()


@functools.cache
def _built_or_warned() -> ctypes.CDLL | None:
    try:
        return _built(_cache())
    except (OSError, subprocess.SubprocessError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        warnings.warn(
            f"flows run without the kernels in C, several times slower: {reason} "
            "(install a C compiler such as gcc, or set PUSHFORWARD_NATIVE=0 to silence this)",
            NativeWarning,
            stacklevel=2,
        )
        return None


def _cache() -> Path | None:
    """Folder of built kernels: PUSHFORWARD_CACHE, else the user's cache; None for a user without a home."""
    chosen = os.environ.get("PUSHFORWARD_CACHE")
    if chosen:
        return Path(chosen) / "kernels"
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pushforward" / "kernels"
    except RuntimeError:
        return None


def _built(folder: Path | None) -> ctypes.CDLL:
    """The kernels for these sources, this compiler and this processor, compiled unless they are there and whole."""
    compiler = _compiler()
    sources = sorted(p for p in _SOURCES.iterdir() if p.is_file())
    key = hashlib.sha256()
    settings = _processor(), compiler, repr((_FLAGS, _TUNING))
    for part in (*(p.read_bytes() for p in sources), *(setting.encode() for setting in settings)):
        key.update(hashlib.sha256(part).digest())
    name = f"kernels-{key.hexdigest()[:24]}"
    for path in () if folder is None else sorted(folder.glob(f"{name}-*.so")):
        with contextlib.suppress(OSError):  # one that cannot be read or loaded is built again
            if path.name == _named(name, path):  # to load half a file may end the process
                return _load(path)
    place = tempfile.gettempdir()  # where the cache cannot be written, for this process only
    if folder is not None:
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
            place = str(folder)
    with tempfile.TemporaryDirectory(dir=place, prefix="pushforward-", ignore_cleanup_errors=True) as workshop:
        path = Path(workshop) / "kernels.so"
        _compile(compiler, path)
        if place == str(folder):  # two processes may build at once: either result is whole
            path = path.replace(Path(place) / _named(name, path))
        return _load(path)


def _named(name: str, path: Path) -> str:
    """The name that says what the file must hold."""
    return f"{name}-{hashlib.sha256(path.read_bytes()).hexdigest()[:24]}.so"


def _compile(compiler: str, path: Path) -> None:
    for i, tuning in enumerate(_TUNING):
        command = [compiler, *_FLAGS, *tuning, "-o", str(path), str(_SOURCES / "kernels.c"), "-lm"]
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT_SECONDS, check=False
        )
        if done.returncode == 0 and path.is_file():
            return
        if i == len(_TUNING) - 1:
            raise RuntimeError(f"{compiler} failed: {done.stderr.strip()}")


def _compiler() -> str:
    for name in (os.environ.get("CC"), "gcc", "clang", "cc"):
        found = shutil.which(name) if name else None
        if found:
            return found
    raise RuntimeError("no C compiler found")


def _processor() -> str:
    """What code made for this processor depends on: a cache may be shared by different machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    return "\n".join(sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))}))


def _load(path: Path) -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(path))
    pointers = {"layer_forward": 4, "layer_backward": 5, "map_forward": 4, "map_backward": 6}
    for name, count in pointers.items():
        for kind in KINDS.values():
            function = getattr(loaded, f"{name}_{kind}")
            function.argtypes = [ctypes.POINTER(Call), *[ctypes.c_void_p] * count]  # ctypes takes a Call by reference
            function.restype = ctypes.c_int
    for kind in KINDS.values():
        function = getattr(loaded, f"adamw_{kind}")
        function.argtypes = [ctypes.c_void_p, ctypes.c_int64, *[ctypes.c_double] * 7, ctypes.c_int64]
        function.restype = ctypes.c_double
    loaded.points_of_tile.argtypes = [ctypes.c_int]
    loaded.points_of_tile.restype = ctypes.c_int64
    return loaded


def points_of_tile(kind: str) -> int:
    """How many points the kernels of a kind handle at a time."""
    loaded = _loaded()
    assert loaded is not None
    return int(loaded.points_of_tile(kind == "f64"))


def run(name: str, kind: str, call: Call, *tensors: Tensor | None) -> None:
    """Call a kernel; its tensors are contiguous and of the kind's dtype.

    Raises:
        MemoryError: If the kernel's working memory cannot be had.
    """
    loaded = _loaded()
    assert loaded is not None  # whoever calls has asked library() before
    call.threads = torch.get_num_threads()
    if getattr(loaded, f"{name}_{kind}")(call, *[None if t is None else t.data_ptr() for t in tensors]):
        raise MemoryError(f"{name}: not enough memory for {call.points} points")


def adamw(table: np.ndarray[Any, np.dtype[np.int64]], kind: str, *numbers: float) -> float:
    """Call the optimiser's kernel: rows as ``parameter`` in optimizer.h, and the numbers of its arguments in order."""
    loaded = _loaded()
    assert loaded is not None
    threads = torch.get_num_threads()
    return float(getattr(loaded, f"adamw_{kind}")(table.ctypes.data, len(table), *numbers, threads))
