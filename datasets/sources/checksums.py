"""Whether a file is the published one: its checksum is computed once, and remembered as long as the file stays."""

import contextlib
import json
from pathlib import Path
from typing import Any

from pushforward.common.files import atomic_write


def found_checksum(path: Path, algorithm: str) -> str:
    """Return a file's checksum, ``md5:...`` or ``sha256:...``.

    The one computed before will do while size and time of the last change are what they were then.
    """
    import pooch

    try:
        kept = json.loads(_record(path).read_text(encoding="utf-8"))
        if kept.items() >= _stamp(path).items() and kept["checksum"].startswith(f"{algorithm}:"):
            return str(kept["checksum"])
    except (OSError, ValueError, KeyError, AttributeError):
        pass
    before = _stamp(path)
    checksum = f"{algorithm}:{pooch.file_hash(str(path), alg=algorithm)}"
    if _stamp(path) == before:
        remember(path, checksum)
    return checksum


def remember(path: Path, checksum: str) -> None:
    """Keep a file's checksum in a hidden file beside it; where that cannot be, it is computed again next time."""
    record = _record(path)
    with contextlib.suppress(OSError), atomic_write(record) as temporary:
        temporary.write_text(json.dumps({**_stamp(path), "checksum": checksum}) + "\n", encoding="utf-8")


def forget(path: Path) -> None:
    """Remove what is remembered of a file."""
    with contextlib.suppress(OSError):
        _record(path).unlink()


def _record(path: Path) -> Path:
    return path.with_name(f".{path.name}.checksum.json")


def _stamp(path: Path) -> dict[str, Any]:
    status = path.stat()
    return {"bytes": status.st_size, "changed_ns": status.st_mtime_ns}
