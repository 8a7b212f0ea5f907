"""Write files atomically and report errors, create folders that disappear on errors, convert values to strict JSON."""

import contextlib
import dataclasses
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pushforward.common.errors import RunError, reason


@contextlib.contextmanager
def atomic_write(path: str | Path, *, sync: bool = False) -> Iterator[Path]:
    """Yield the path of a temporary file, which replaces ``path`` when the block ends without an error.

    Until then, and after an error, an existing file stays as it is. A device or a pipe is written to directly. If
    ``path`` is a symbolic link, the file it points to is replaced.

    Args:
        path: The file to write; its folder must exist.
        sync: Call fsync, so that the contents survive a power cut.

    Raises:
        OSError: If the file cannot be replaced.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        yield path
        return
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        yield temporary
        if sync:
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


@contextlib.contextmanager
def report_write_errors(path: str | Path) -> Iterator[None]:
    """Turn an OSError of the block, which writes to ``path``, into a RunError with the path and the reason.

    Raises:
        RunError: In place of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise RunError(f"{path}: cannot write: {reason(error)}") from None


def write_text(path: Path, text: str) -> Path:
    """Write a text file atomically, with fsync, and return its path.

    Raises:
        RunError: If it cannot be written.
    """
    with report_write_errors(path), atomic_write(path, sync=True) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[None]:
    """Create a folder and its parents; after an error in the block, remove those that were created and are empty."""
    created = []
    for folder in (path, *path.parents):
        if folder.exists():
            break
        created.append(folder)
    path.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for folder in created:
            try:
                folder.rmdir()
            except OSError:  # not empty
                break
        raise


def json_safe(value: Any) -> Any:
    """Convert dataclasses, mappings, arrays, tensors and paths to values that strict JSON can represent.

    NaN and infinities become ``None``: they are not part of JSON, and parsers other than Python's reject them.

    Args:
        value: Any nesting of dataclasses, mappings, sequences, sets, arrays, tensors, paths, numbers, strings,
            booleans, ``None``.

    Returns:
        The same nesting of dicts, lists and scalars.

    Raises:
        TypeError: If a value has another type.

    Example:
        >>> json_safe({"nll": float("inf"), "rows": (3, 4)})
        {'nll': None, 'rows': [3, 4]}
    """
    if type(value) is float:  # most values
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | bool):
        return value
    if hasattr(value, "tolist") and hasattr(value, "dtype"):  # arrays and tensors, recognised without their libraries
        return json_safe(value.tolist())
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: json_safe(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): json_safe(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [json_safe(item) for item in value]
    raise TypeError(f"json_safe: expected numbers, text and containers of them; got {type(value).__name__}")
