"""The data folder, which holds downloaded data sets and local copies."""

import os
from pathlib import Path

from pushforward.common.errors import DataError


def data_folder(chosen: str | Path | None = None) -> Path:
    """Return the data folder, which need not exist.

    Args:
        chosen: The folder to use. By default that of the environment variable ``PUSHFORWARD_DATA``, else ``data`` in
            the folder ``PUSHFORWARD_CACHE``, else ``pushforward/data`` in the user's cache folder.

    Raises:
        DataError: If no folder is set and the user has no home folder.
    """
    chosen = chosen or os.environ.get("PUSHFORWARD_DATA")
    if chosen:
        return Path(chosen).expanduser()
    cache = os.environ.get("PUSHFORWARD_CACHE")
    if cache:
        return Path(cache).expanduser() / "data"
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pushforward" / "data"
    except RuntimeError as error:
        raise DataError("data folder: this user has no home folder; set PUSHFORWARD_DATA") from error


def find_copy(folder: Path, name: str, file: str) -> Path | None:
    """Find a file of a data set, gzipped or not, in the data folder or its usual subfolders; None if there is none.

    Args:
        folder: The data folder.
        name: Name of the data set, which may have a subfolder of its own.
        file: Name of the file as published.
    """
    for parent in (folder / name, folder / "raw", folder / "uci", folder):
        for path in (parent / file, parent / f"{file}.gz"):
            if path.is_file():
                return path
    return None
