"""Compile the kernels in C, cache the result for this machine, and load it."""

import contextlib
import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

_SOURCES = Path(__file__).parent
# The rest of -O3 makes nothing faster here, and takes twice as long to compile.
_FLAGS = ["-std=gnu11", "-O2", "-ftree-vectorize", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"]
_FLAGS += ["-fPIC", "-shared"]
# gcc's default cost model at -O2 vectorizes too little.
_COST_MODEL = "-fvect-cost-model=dynamic"
# The first set that the compiler accepts is used: clang knows -mcpu on some processors only, and may lack OpenMP.
_TUNING = [
    ["-march=native", "-fopenmp", _COST_MODEL],
    ["-march=native", "-fopenmp"],
    ["-mcpu=native", "-fopenmp"],
    ["-march=native"],
    ["-mcpu=native"],
    [],
]
_TIMEOUT_SECONDS = 120.0


def cache_folder() -> Path | None:
    """Folder of compiled kernels: PUSHFORWARD_CACHE, else the user's cache; None if the user has no home folder."""
    chosen = os.environ.get("PUSHFORWARD_CACHE")
    if chosen:
        return Path(chosen) / "kernels"
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pushforward" / "kernels"
    except RuntimeError:
        return None


def build(folder: Path | None) -> ctypes.CDLL:
    """Load the kernels for these sources, this compiler and this processor; compile them if the cache lacks them.

    Args:
        folder: The cache. If it is None or cannot be written, the kernels are compiled for this process only.

    Raises:
        RuntimeError: If there is no compiler, or it fails.
        subprocess.SubprocessError: If the compiler takes longer than two minutes.
        OSError: If the compiled file cannot be written or loaded.
    """
    compiler = _compiler()
    name = f"kernels-{_key(compiler)}"
    for path in () if folder is None else sorted(folder.glob(f"{name}-*.so")):
        with contextlib.suppress(OSError):  # a file that cannot be read or loaded is built again
            if path.name == file_name(name, path):  # loading a truncated file may crash the process
                return ctypes.CDLL(str(path))
    place = tempfile.gettempdir()
    if folder is not None:
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()  # raises if the cache cannot be written
            place = str(folder)
    with tempfile.TemporaryDirectory(dir=place, prefix="pushforward-", ignore_cleanup_errors=True) as temporary:
        path = Path(temporary) / "kernels.so"
        _compile(compiler, path)
        if place == str(folder):  # two processes may build at once: each one moves a complete file here
            path = path.replace(Path(place) / file_name(name, path))
        return ctypes.CDLL(str(path))


def file_name(name: str, path: Path) -> str:
    """Name of a file in the cache: ``name`` and a hash of its content, which shows whether it is complete."""
    return f"{name}-{hashlib.sha256(path.read_bytes()).hexdigest()[:24]}.so"


def _key(compiler: str) -> str:
    """Hash of everything that the compiled code depends on."""
    sources = sorted(p for p in _SOURCES.iterdir() if p.suffix in (".c", ".h"))
    settings = _processor(), compiler, repr((_FLAGS, _TUNING))
    key = hashlib.sha256()
    for part in (*(p.read_bytes() for p in sources), *(setting.encode() for setting in settings)):
        key.update(hashlib.sha256(part).digest())
    return key.hexdigest()[:24]


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
    """Model and instruction sets of this processor: different machines may share a cache."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    return "\n".join(sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))}))
