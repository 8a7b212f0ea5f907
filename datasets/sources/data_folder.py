"""Where downloaded data sets are kept, and local copies of them are looked for."""

import os
from pathlib import Path

from pushforward.common.errors import DataError


def data_folder(chosen: str | Path | None = None) -> Path:
    """Return the data folder, which need not exist.

    Args:
        chosen: What the caller wants; else the environment variable ``PUSHFORWARD_DATA``, else ``data`` in the folder
            that ``PUSHFORWARD_CACHE`` names, else ``pushforward/data`` in the user's cache.

    Raises:
        DataError: Nothing was chosen, and the user has no home.
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
        raise DataError("data folder: this user has no home; name a folder in PUSHFORWARD_DATA") from error


def find_copy(folder: Path, name: str, file: str) -> Path | None:
    """Find a file of a data set, as it is or gzipped, in the data folder or one of the folders where it may lie.

    Args:
        folder: The data folder.
        name: Name of the data set; files may lie in a folder of that name.
        file: The file, as its publisher calls it.
    """
    for place in (folder / name, folder / "raw", folder / "uci", folder):
        for path in (place / file, place / f"{file}.gz"):
            if path.is_file():
                return path
    return None
