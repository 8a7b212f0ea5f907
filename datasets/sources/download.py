"""Downloading a file: resumed where it broke off, checked against its checksum, whole or not there at all.

pooch can verify a file but starts again from nothing, which a file of a gigabyte on a weak line never survives. So the
transfer is done here, by HTTP ranges, and pooch computes the checksum.
"""

import contextlib
import errno
import http.client
import shutil
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pushforward.common.files import new_folder
from pushforward.common.lock import file_lock
from pushforward.datasets.sources.archive import Report

_BLOCK_BYTES = 1 << 18
_TIMEOUT_SECONDS = 60.0
# Breaks without a byte in between after which a server is given up.
_MOST_BREAKS = 5
_SPARE_BYTES = 50_000_000
_BROKEN = (OSError, http.client.HTTPException)


class DownloadError(RuntimeError):
    """A file could not be downloaded; the message is one line that says what to do.

    Args:
        message: The line.
        failures: What went wrong, one entry for each address.
    """

    def __init__(self, message: str, failures: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.failures = tuple(failures)


class _DiskError(DownloadError):
    """The disk is too full, whatever the server."""


def download(
    urls: Sequence[str],
    target: Path,
    *,
    checksum: str | None,
    expected_bytes: int = 0,
    needed_bytes: int = 0,
    report: Report | None = None,
    tell: Callable[[str], Any] | None = None,
    wait: Callable[[float], Any] = time.sleep,
) -> str:
    """Download a file from the first address that has it.

    A transfer that breaks off goes on where it stopped, in this call several times, and in the next call too: what has
    arrived is kept beside the target as ``.part``. Without a checksum it starts anew in every call, since nothing
    would tell if the file had changed in between. Of several processes that want one file, one downloads it and the
    others wait for that and take the file, if it has the checksum.

    Args:
        urls: The addresses of one and the same file.
        target: Where it goes; its folder is made.
        checksum: ``md5:...`` or ``sha256:...``; None if it is not known.
        expected_bytes: About its size, for a look at the disk before a server is asked.
        needed_bytes: What will be needed on the disk beside it.
        report: Told of progress.
        tell: Called with one line if somebody else downloads the file, before waiting for that.
        wait: Called with the seconds to wait before another attempt.

    Returns:
        The file's checksum, ``sha256:...`` where none was given.

    Raises:
        DownloadError: No address has it, the disk is too full, or the checksum differs.
    """

    def waiting() -> None:
        if tell is not None:
            tell(f"{target.name}: another process is downloading it; waiting for it to end")

    with new_folder(target.parent), file_lock(target, waiting) as waited:
        if waited and checksum is not None and target.is_file() and _checksum(target, checksum) == checksum:
            return checksum
        return _download(urls, target, checksum, expected_bytes, needed_bytes, report, wait)


def _download(
    urls: Sequence[str],
    target: Path,
    checksum: str | None,
    expected_bytes: int,
    needed_bytes: int,
    report: Report | None,
    wait: Callable[[float], Any],
) -> str:
    part = target.with_name(f"{target.name}.part")
    if checksum is None:
        part.unlink(missing_ok=True)
    there = part.stat().st_size if part.exists() else 0
    _check_disk(target.parent, max(0, expected_bytes - there) + needed_bytes)
    failures: list[str] = []
    for url in urls:
        try:
            _transfer(url, part, needed_bytes, report, wait)
        except _DiskError:
            raise
        except (DownloadError, *_BROKEN) as error:
            failures.append(f"{url}: {_reason(error)}")
            continue
        found = _checksum(part, checksum)
        if checksum is not None and found != checksum:
            part.unlink()
            failures.append(f"{url}: gave a file with another checksum ({found}, not {checksum})")
            continue
        part.replace(target)
        return found
    kept = "; what has arrived is kept, the same command goes on from there" if part.exists() else ""
    raise DownloadError(f"{target.name}: could not be downloaded{kept} ({'; '.join(failures)})", failures)


def _checksum(path: Path, expected: str | None) -> str:
    """The checksum of a file, by the algorithm of the one expected, else SHA-256."""
    import pooch

    algorithm = "sha256" if expected is None else expected.split(":")[0]
    return f"{algorithm}:{pooch.file_hash(str(path), alg=algorithm)}"


def _transfer(url: str, part: Path, needed_bytes: int, report: Report | None, wait: Callable[[float], Any]) -> None:
    """Append to what has arrived until the file is whole."""
    breaks = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            if _attempt(url, part, before, needed_bytes, report):
                return
            reason: Exception = DownloadError("the connection broke off")
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 416 and before:  # nothing is left to send: it was whole, or another file's beginning
                return
            if error.code < 500 and error.code != 429:
                raise DownloadError(f"the server answers {error.code} {error.reason}") from error
            reason = error
        except _BROKEN as error:
            if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
                raise _DiskError(f"{part.parent}: {_reason(error)}; what has arrived is kept") from error
            if isinstance(getattr(error, "reason", None), socket.gaierror):  # no network, or no such server
                raise DownloadError(_reason(error)) from error
            reason = error
        grown = part.exists() and part.stat().st_size > before
        breaks = 0 if grown else breaks + 1
        if breaks >= _MOST_BREAKS:
            raise DownloadError(_reason(reason)) from reason
        wait(min(30.0, 2.0**breaks))


def _attempt(url: str, part: Path, before: int, needed_bytes: int, report: Report | None) -> bool:
    """Ask once, from where the file ends so far; whether it is whole then."""
    request = urllib.request.Request(url, headers={"User-Agent": "pushforward", "Accept-Encoding": "identity"})
    if before:
        request.add_header("Range", f"bytes={before}-")
    with contextlib.closing(urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS)) as answer:
        resumed = answer.status == 206 and str(answer.headers.get("Content-Range", "")).startswith(f"bytes {before}-")
        if not resumed:
            before = 0
        length = answer.headers.get("Content-Length")
        total = before + int(length) if length is not None else None
        if total is not None:
            _check_disk(part.parent, total - before + needed_bytes)
        done = before
        with part.open("ab" if resumed else "wb") as file:
            while True:
                try:
                    block = answer.read(_BLOCK_BYTES)
                except http.client.IncompleteRead as error:
                    block = error.partial
                    file.write(block)
                    return False
                if not block:
                    break
                file.write(block)
                done += len(block)
                if report is not None:
                    report(done, total)
    return total is None or done >= total


def _check_disk(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed and free < needed + _SPARE_BYTES:
        raise _DiskError(
            f"{folder}: {_gigabytes(needed + _SPARE_BYTES)} are needed and {_gigabytes(free)} are free; make room, or "
            f"name another folder in PUSHFORWARD_DATA"
        )


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB"


def _reason(error: Exception) -> str:
    inner = error.reason if isinstance(error, urllib.error.URLError) else error
    text = " ".join(str(inner).split())
    return text or type(error).__name__
