"""Read and write ``.wandb`` files, which have the LevelDB log format: readable up to the last complete record.

After a header of seven bytes come blocks of 32 KiB. A block holds chunks: seven bytes (checksum, length, kind) and a
body. A record is one chunk, or a first, middle and last chunks if it crosses blocks.
"""

import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from pushforward.common.errors import RunError, reason

_HEADER = struct.Struct("<4sHB")
_MAGIC = (b":W&B", 0xBEE1)
_CHUNK = struct.Struct("<IHB")
_BLOCK = 32_768
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


class WandbRecordError(RunError):
    """A W&B record that cannot be read; the message is one line."""


class LogReader:
    """Iterates over the records of a log, as bytes.

    A process killed during a write leaves an incomplete record at the end of the file. It ends the iteration without
    an error and sets :attr:`torn`. Wrong bytes elsewhere are an error, because the records after them would be lost
    silently.

    Args:
        path: The ``.wandb`` file.

    Raises:
        WandbRecordError: During iteration, if the file cannot be read, is not such a log, or is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.torn = False
        """Whether the file ends within a record; set when all records have been read."""

    def __iter__(self) -> Iterator[bytes]:
        self.torn = False
        try:
            with open(self.path, "rb") as file:
                yield from self._records(file)
        except OSError as error:
            raise WandbRecordError(f"{self.path}: cannot read: {reason(error)}") from None

    def _records(self, file: BinaryIO) -> Iterator[bytes]:
        header = file.read(_HEADER.size)
        if len(header) < _HEADER.size:
            if not _HEADER.pack(*_MAGIC, 0).startswith(header):
                raise WandbRecordError(f"{self.path}: expected a W&B transaction log; got another file")
            self.torn = True
            return
        *magic, version = _HEADER.unpack(header)
        if tuple(magic) != _MAGIC:
            raise WandbRecordError(f"{self.path}: expected a W&B transaction log; got another file")
        if version != 0:
            raise WandbRecordError(f"{self.path}: expected version 0 of the log format; got version {version}")
        start, parts = 0, list[bytes]()
        while block := header + file.read(_BLOCK - len(header)):
            if self.torn and any(block):
                raise self._damaged(start, "there are zeros before it")
            for kind, body in self._chunks(block, start, len(header)):
                if (kind in (_FULL, _FIRST)) == bool(parts):
                    raise self._damaged(start, "a part of a record is missing")
                parts.append(body)
                if kind in (_FULL, _LAST):
                    yield b"".join(parts)
                    parts = []
            start, header = start + len(block), b""
        self.torn = self.torn or bool(parts)

    def _chunks(self, block: bytes, start: int, position: int) -> Iterator[tuple[int, bytes]]:
        """Yield kind and body of the chunks of one block, which begins at byte ``start`` of the file."""
        while len(block) - position >= _CHUNK.size:
            checksum, length, kind = _CHUNK.unpack_from(block, position)
            end = position + _CHUNK.size + length
            if not any(block[position:]):  # preallocated, or lost in a power cut
                self.torn = True
                return
            if end > _BLOCK or not _FULL <= kind <= _LAST:
                raise self._damaged(start + position, "no chunk begins here")
            if end > len(block):
                self.torn = True
                return
            body = block[position + _CHUNK.size : end]
            if zlib.crc32(body, zlib.crc32(bytes([kind]))) != checksum:
                raise self._damaged(start + position, "the checksum is wrong")
            yield kind, body
            position = end
        if position < len(block) < _BLOCK:
            self.torn = True

    def _damaged(self, position: int, what: str) -> WandbRecordError:
        return WandbRecordError(f"{self.path}: damaged at byte {position:,}: {what}")


def write_log(path: Path, records: Iterable[bytes]) -> None:
    """Write records to a new log."""
    with open(path, "wb") as file:
        position = file.write(_HEADER.pack(*_MAGIC, 0))
        for record in records:
            rest, first = record, True
            while rest or first:
                room = _BLOCK - position % _BLOCK
                if room < _CHUNK.size:
                    position += file.write(bytes(room))
                    continue
                body, rest = rest[: room - _CHUNK.size], rest[room - _CHUNK.size :]
                kind = (_LAST if not first else _FULL) if not rest else (_FIRST if first else _MIDDLE)
                checksum = zlib.crc32(body, zlib.crc32(bytes([kind])))
                position += file.write(_CHUNK.pack(checksum, len(body), kind) + body)
                first = False
