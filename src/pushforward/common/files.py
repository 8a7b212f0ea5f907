"""Files and folders: written whole or not at all, removed again if nothing comes in; values as JSON."""

import contextlib
import dataclasses
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def atomic_write(path: str | Path, *, sync: bool = False) -> Iterator[Path]:
    """Yield the name of a temporary file that takes the place of ``path`` when the block ends without an error.

    Until then, and after any error, what was there stays. A device or a pipe is written to, never replaced by a file;
    behind a link, it is the link's file that is replaced.

    Args:
        path: What the file is to be called; its folder exists.
        sync: Whether the contents must survive a power cut.

    Raises:
        OSError: If the file cannot be put in its place.
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
def new_folder(path: Path) -> Iterator[None]:
    """Make a folder, with those above it; after an error, those that were made and are empty are removed again."""
    made = []
    for folder in (path, *path.parents):
        if folder.exists():
            break
        made.append(folder)
    path.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for folder in made:
            try:
                folder.rmdir()
            except OSError:  # something came in
                break
        raise


def json_safe(value: Any) -> Any:
    """Turn dataclasses, mappings, arrays, tensors and paths into what :mod:`json` writes strictly.

    NaN and infinities become ``None``: JSON has no word for them, and readers other than Python's refuse them.

    Args:
        value: Any nesting of dataclasses, mappings, sequences, sets, arrays, tensors, paths, numbers, strings,
            booleans, ``None``.

    Returns:
        The same nesting of dicts, lists and scalars.

    Raises:
        TypeError: When something in it has no plain form.

    Example:
        >>> json_safe({"nll": float("inf"), "rows": (3, 4)})
        {'nll': None, 'rows': [3, 4]}
    """
    if value is None or isinstance(value, str | bool):
        return value
    if hasattr(value, "tolist") and hasattr(value, "dtype"):  # arrays and tensors, without importing their libraries
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
