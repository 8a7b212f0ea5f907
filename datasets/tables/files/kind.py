"""Which kind of table a file holds: its first bytes say so, whatever its name."""

from pathlib import Path
from typing import Literal

from pushforward.datasets.tables.files.compression import COMPRESSION_SUFFIXES

Kind = Literal["text", "json", "json array", "parquet", "feather", "npy", "workbook"]

KINDS: dict[Kind, str] = {
    "text": "delimited text",
    "json": "JSON lines",
    "json array": "a JSON array",
    "parquet": "Parquet",
    "feather": "Feather",
    "npy": "a .npy matrix",
    "workbook": "a workbook",
}
"""Every kind, and its description."""

_SUFFIXES: dict[str, Kind] = {
    ".csv": "text",
    ".data": "text",
    ".txt": "text",
    ".tsv": "text",
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".parquet": "parquet",
    ".feather": "feather",
    ".arrow": "feather",
    ".ipc": "feather",
    ".npy": "npy",
    ".xlsx": "workbook",
    ".xls": "workbook",
    ".ods": "workbook",
}
_MAGIC: dict[bytes, Kind] = {
    b"PAR1": "parquet",
    b"ARROW1": "feather",
    b"\xff\xff\xff\xff": "feather",  # the streaming format
    b"\x93NUMPY": "npy",
    b"PK\x03\x04": "workbook",
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": "workbook",  # .xls
}
_BOM = b"\xef\xbb\xbf"

READABLE = "CSV and other delimited text, JSON lines, Parquet, Feather, .npy and Excel, compressed or not"
"""The kinds in words, for messages."""


def kind_of(name: str, head: bytes) -> Kind:
    """Return the kind of a file.

    Args:
        name: Its name, which decides only where the content cannot be text and is of no known kind.
        head: Its first bytes, decompressed.
    """
    for magic, kind in _MAGIC.items():
        if head.startswith(magic):
            return kind
    start = head.removeprefix(_BOM).lstrip()
    if start.startswith(b"{"):
        return "json"
    claimed = kind_by_name(name)
    if start.startswith(b"[") and (claimed == "json" or start[1:].lstrip().startswith(b"{")):
        return "json array"
    is_text = b"\x00" not in head
    return "text" if is_text or claimed is None else claimed


def kind_by_name(name: str) -> Kind | None:
    """Return the kind that the ending of a file's name stands for; None if it stands for none."""
    return _SUFFIXES.get(_endings(name)[0].lower())


def compression_by_name(name: str) -> str | None:
    """Return the compression that the ending of a file's name stands for; None if it stands for none."""
    return COMPRESSION_SUFFIXES.get(_endings(name)[1].lower())


def table_stem(name: str) -> str:
    """Return the name of a file without the endings that say how it is stored.

    Example:
        >>> table_stem("wine.csv.gz"), table_stem("wine.2024"), table_stem(".csv")
        ('wine', 'wine.2024', '.csv')
    """
    return name.removesuffix("".join(_endings(name))) or name


def understood(name: str, kind: Kind, compression: str | None) -> str:
    """Return a note on what a file holds, if its name says otherwise; else an empty string."""
    claimed, parts = kind_by_name(name), []
    if claimed is not None and claimed != kind.removesuffix(" array"):
        parts.append(f"it holds {KINDS[kind]}")
    if any(_endings(name)) and compression != compression_by_name(name):
        parts.append("it is not compressed" if compression is None else f"it is compressed with {compression}")
    return f"{name}: in spite of its name, {' and '.join(parts)}" if parts else ""


def _endings(name: str) -> tuple[str, str]:
    """Return the endings of a name that stand for a kind and for a compression, as written; empty if there are none."""
    last = Path(name).suffix
    if last.lower() not in COMPRESSION_SUFFIXES:
        return (last, "") if last.lower() in _SUFFIXES else ("", "")
    before = Path(name.removesuffix(last)).suffix
    return (before if before.lower() in _SUFFIXES else "", last)
