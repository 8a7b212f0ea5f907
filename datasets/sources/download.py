"""Download a file: interrupted transfers are resumed, the checksum is verified, the file appears only when complete.

pooch verifies checksums but cannot resume, so that a file of a gigabyte never completes on a weak connection. The
transfer is done here with HTTP range requests; pooch computes the checksum.
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

from pushforward.common.files import new_folder, replace_file
from pushforward.common.lock import file_lock
from pushforward.datasets.sources.archive import ProgressCallback

_BLOCK_BYTES = 1 << 18
_TIMEOUT_SECONDS = 60.0
MAX_BREAKS = 5
"""Consecutive failed attempts without any progress after which a server is given up."""

_SPARE_BYTES = 50_000_000  # free space that is left on the disk
_NETWORK_ERRORS = (OSError, http.client.HTTPException)


class DownloadError(RuntimeError):
    """A file could not be downloaded; the message is one line.

    Args:
        message: The message.
        failures: What went wrong, one entry per URL.
    """

    def __init__(self, message: str, failures: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.failures = tuple(failures)


class _DiskError(DownloadError):
    """The disk is too full, so that other URLs need not be tried."""


def download(
    urls: Sequence[str],
    target: Path,
    *,
    checksum: str | None,
    expected_bytes: int = 0,
    needed_bytes: int = 0,
    report: ProgressCallback | None = None,
    notify: Callable[[str], Any] | None = None,
    wait: Callable[[float], Any] = time.sleep,
) -> str:
    """Download a file from the first URL that has it.

    An interrupted transfer is resumed, several times within this call and also in the next call: the data received so
    far are kept beside the target as ``.part``. Without a checksum every call starts anew, since a change of the file
    in between would go unnoticed. If several processes want the same file, one of them downloads it; the others wait,
    and use that file if its checksum is right.

    Args:
        urls: URLs of the same file.
        target: Path of the file; its folder is created.
        checksum: ``md5:...`` or ``sha256:...``; None if unknown.
        expected_bytes: Approximate size, to check the free disk space before connecting.
        needed_bytes: Disk space that will be needed in addition.
        report: Called with the progress.
        notify: Called with one line for the user before waiting for another process that downloads the file.
        wait: Called with the seconds to wait before another attempt.

    Returns:
        The checksum of the file, ``sha256:...`` if none was given.

    Raises:
        DownloadError: If no URL has the file, the disk is too full, or the checksum differs.
    """

    def waiting() -> None:
        if notify is not None:
            notify(f"{target.name}: another process is downloading it; waiting for it to end")

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
    report: ProgressCallback | None,
    wait: Callable[[float], Any],
) -> str:
    part = target.with_name(f"{target.name}.part")
    if checksum is None:
        part.unlink(missing_ok=True)
    received = part.stat().st_size if part.exists() else 0
    _check_disk(target.parent, max(0, expected_bytes - received) + needed_bytes)
    failures: list[str] = []
    for url in urls:
        try:
            _transfer(url, part, needed_bytes, report, wait)
        except _DiskError:
            raise
        except (DownloadError, *_NETWORK_ERRORS) as error:
            failures.append(f"{url}: {_reason(error)}")
            continue
        found = _checksum(part, checksum)
        if checksum is not None and found != checksum:
            part.unlink()
            failures.append(f"{url}: gave a file with another checksum ({found}, not {checksum})")
            continue
        replace_file(part, target)
        return found
    kept = "; the partial download is kept, the same command resumes it" if part.exists() else ""
    raise DownloadError(f"{target.name}: could not be downloaded{kept} ({'; '.join(failures)})", failures)


def _checksum(path: Path, expected: str | None) -> str:
    """Return the checksum of a file, with the algorithm of the expected one, else SHA-256."""
    import pooch

    algorithm = "sha256" if expected is None else expected.split(":")[0]
    return f"{algorithm}:{pooch.file_hash(str(path), alg=algorithm)}"


def _transfer(
    url: str, part: Path, needed_bytes: int, report: ProgressCallback | None, wait: Callable[[float], Any]
) -> None:
    """Append to the partial file until it is complete."""
    breaks = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            if _attempt(url, part, before, needed_bytes, report):
                return
            reason: Exception = DownloadError("the connection was interrupted")
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 416 and before:  # nothing left to send: the partial file is complete, or of another file
                return
            if error.code < 500 and error.code != 429:
                raise DownloadError(f"the server answers {error.code} {error.reason}") from error
            reason = error
        except _NETWORK_ERRORS as error:
            if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
                kept = "make room: the partial download is kept, the same command resumes it"
                raise _DiskError(f"{part.parent}: {_reason(error)}; {kept}") from error
            if isinstance(getattr(error, "reason", None), socket.gaierror):  # no network, or unknown host
                raise DownloadError(_reason(error)) from error
            reason = error
        grown = part.exists() and part.stat().st_size > before
        breaks = 0 if grown else breaks + 1
        if breaks >= MAX_BREAKS:
            raise DownloadError(_reason(reason)) from reason
        wait(min(30.0, 2.0**breaks))


def _attempt(url: str, part: Path, before: int, needed_bytes: int, report: ProgressCallback | None) -> bool:
    """Request the rest of the file once; return whether it is complete now."""
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
            f"set PUSHFORWARD_DATA to another folder"
        )


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB"


def _reason(error: Exception) -> str:
    inner = error.reason if isinstance(error, urllib.error.URLError) else error
    text = " ".join(str(inner).split())
    return text or type(error).__name__
