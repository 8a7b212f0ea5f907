"""Write files atomically and report errors, create folders that disappear on errors, convert values to strict JSON."""

import contextlib
import dataclasses
import glob
import math
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pushforward.common.errors import RunError, reason
from pushforward.common.lock import locked_file, remove_unlocked

_PARTIAL = ".partial"


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield the path of a temporary file, which replaces ``path`` when the block ends without an error.

    Until then, and after an error, an existing file stays as it is; if the process is killed, or the power fails, the
    file has the old or the new content. A device or a pipe is written to directly. If ``path`` is a symbolic link, the
    file it points to is replaced. Cost: half a millisecond for fsync, and the time to bring the content to the disk.

    Args:
        path: The file to write; its folder must exist.

    Raises:
        OSError: If the file cannot be written; its ``filename`` is ``path``.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        yield path
        return
    target = Path(os.path.realpath(path))
    remove_partial_files(target.parent, target.name)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}{_PARTIAL}")
    with locked_file(temporary):
        try:
            yield temporary
            replace_file(temporary, target)
        except OSError as error:
            # Neither a failed write nor fsync says which file; the name of the temporary file helps nobody.
            if error.errno is None or error.filename not in (None, str(temporary)):
                raise
            raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()


def remove_partial_files(folder: Path, name: str | None = None) -> None:
    """Remove the temporary files of :func:`atomic_write` whose processes were killed.

    Those of running processes stay: they hold a lock.

    Args:
        folder: The folder.
        name: Name of the file that was to be written; None for every file in the folder and below it.
    """
    found = folder.rglob(f".*{_PARTIAL}") if name is None else folder.glob(f".{glob.escape(name)}.*{_PARTIAL}")
    with contextlib.suppress(OSError):
        for partial in found:
            remove_unlocked(partial)


def replace_file(source: Path, target: Path) -> None:
    """Rename a file, in place of another one, so that a power cut leaves the old or the new file, and none is empty.

    Raises:
        OSError: If it cannot be renamed, or brought to the disk.
    """
    with open(source, "rb") as file:
        os.fsync(file.fileno())
    os.replace(source, target)
    with contextlib.suppress(OSError):  # not every system can do this for a folder
        descriptor = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


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
    """Write a text file atomically, and return its path.

    Raises:
        RunError: If it cannot be written.
    """
    with report_write_errors(path), atomic_write(path) as temporary:
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
