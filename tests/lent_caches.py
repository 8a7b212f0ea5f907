"""Caches of this user for a home folder of a test: a process that finds them is seconds faster, and no other."""

import contextlib
import os
from pathlib import Path

# The kernels in C, built for this machine, and matplotlib's list of the fonts that are installed.
_LENT = ("pushforward/kernels", "matplotlib")


def lend_caches(cache: Path) -> None:
    """Link the folders of this user's cache into another.

    Args:
        cache: The cache of a home folder of a test. What is there already stays, and where no links can be made the
            process does its work again.
    """
    own = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    for name in _LENT:
        with contextlib.suppress(OSError):
            (own / name).mkdir(parents=True, exist_ok=True)
            (cache / name).parent.mkdir(parents=True, exist_ok=True)
            (cache / name).symlink_to(own / name, target_is_directory=True)
