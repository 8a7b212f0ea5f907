"""The format of ``.wandb`` files: LevelDB's log, which a killed process leaves readable up to its last whole record.

A header of seven bytes, then blocks of 32 KiB that hold chunks of seven bytes (checksum, length, kind) and a body. A
record is one chunk, or a first, middle ones and a last where it crosses a block.
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
    """A record of Weights & Biases that can not be read; the message is one line."""


class LogReader:
    """Reads the records of a log, in order, as bytes.

    The end of a process in the middle of a write leaves a torn tail, which ends the reading as the end of the file
    does; :attr:`torn` tells it. Bytes that are there and wrong are an error: what comes after them is lost, and nothing
    that is lost must look as if it had never been.

    Args:
        path: The ``.wandb`` file.

    Raises:
        WandbRecordError: While reading, if the file can not be read, is no such log, or is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.torn = False
        """Whether the file ends within a record; known when all records have been read."""

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
        """Yield the chunks of one block, which begins at ``start`` in the file."""
        while len(block) - position >= _CHUNK.size:
            checksum, length, kind = _CHUNK.unpack_from(block, position)
            end = position + _CHUNK.size + length
            if not any(block[position:]):  # space that was set aside, or lost in a power cut
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
    """Write a log of these records."""
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
