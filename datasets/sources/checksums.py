"""Checksums of large files, computed once and cached beside the file."""

import contextlib
import json
from pathlib import Path
from typing import Any

from pushforward.common.files import atomic_write


def cached_checksum(path: Path, algorithm: str) -> str:
    """Return the checksum of a file, ``md5:...`` or ``sha256:...``.

    A cached value is used as long as the size and the modification time of the file have not changed.
    """
    import pooch

    try:
        cached = json.loads(_record(path).read_text(encoding="utf-8"))
        if cached.items() >= _stamp(path).items() and cached["checksum"].startswith(f"{algorithm}:"):
            return str(cached["checksum"])
    except (OSError, ValueError, KeyError, AttributeError):
        pass
    before = _stamp(path)
    checksum = f"{algorithm}:{pooch.file_hash(str(path), alg=algorithm)}"
    if _stamp(path) == before:
        remember_checksum(path, checksum)
    return checksum


def remember_checksum(path: Path, checksum: str) -> None:
    """Cache the checksum of a file in a hidden file beside it; does nothing if that cannot be written."""
    record = _record(path)
    with contextlib.suppress(OSError), atomic_write(record) as temporary:
        temporary.write_text(json.dumps({**_stamp(path), "checksum": checksum}) + "\n", encoding="utf-8")


def forget_checksum(path: Path) -> None:
    """Remove the cached checksum of a file."""
    with contextlib.suppress(OSError):
        _record(path).unlink()


def _record(path: Path) -> Path:
    return path.with_name(f".{path.name}.checksum.json")


def _stamp(path: Path) -> dict[str, Any]:
    status = path.stat()
    return {"bytes": status.st_size, "changed_ns": status.st_mtime_ns}
