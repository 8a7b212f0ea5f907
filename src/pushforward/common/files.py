"""Files that appear whole or not at all."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def whole_file(path: str | Path, *, sync: bool = False) -> Iterator[Path]:
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
