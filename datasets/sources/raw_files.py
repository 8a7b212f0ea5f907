"""Read the files that POWER, GAS, HEPMASS, MINIBOONE and BSDS300 are prepared from.

There are two kinds: the members of the published archive, and the source files of UCI, which are larger, and from which
the archive cannot be reproduced exactly.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pushforward.common.errors import DamagedError, DataError
from pushforward.common.text import one_line, shorten
from pushforward.datasets.sources.preprocessing import HEPMASS_INPUTS, MINIBOONE_INPUTS
from pushforward.datasets.tables.text.delimited import open_text

Array = NDArray[np.float64]

_BLOCK_BYTES = 1 << 24
_GAS_INPUTS = 19
_GAS_SHARE = 0.25


def read_array(path: Path) -> Array:
    """Read the matrix in a ``.npy`` member of the archive.

    Raises:
        DamagedError: If it is something else, such as an array that would have to be unpickled.
    """
    try:
        matrix: NDArray[Any] = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise DamagedError(f"{path}: not a readable .npy array of numbers") from error
    if matrix.ndim != 2 or matrix.dtype.kind != "f":
        raise DamagedError(f"{path}: expected a matrix of numbers; got shape {matrix.shape} of {matrix.dtype}")
    return matrix.astype(np.float64)


def read_hdf5(path: Path, names: Sequence[str]) -> list[NDArray[Any]]:
    """Read matrices of an HDF5 file by name.

    Raises:
        DataError: If h5py is not installed.
        DamagedError: If the file is damaged, or lacks a matrix.
    """
    try:
        import h5py
    except ImportError as error:
        raise DataError(f"{path.name}: is an HDF5 file; install h5py: pip install 'pushforward[hdf5]'") from error
    try:
        with h5py.File(path, "r") as file:
            return [np.asarray(file[name]) for name in names]
    except (OSError, KeyError) as error:
        raise DamagedError(f"{path}: not an HDF5 file with {', '.join(names)}") from error


def read_hepmass(path: Path) -> Array:
    """Read label and features ``(N, 28)`` of a HEPMASS file, gzipped or not.

    The rows of the test file have a 29th column, missing in its header, that is not used.

    Raises:
        DamagedError: If the file is damaged, or its rows have fewer columns.
    """
    import pyarrow as pa
    from pyarrow import csv as arrow_csv

    wanted = [f"c{k}" for k in range(1 + HEPMASS_INPUTS)]
    with open_text(path) as file:
        file.readline()
        width = len(file.readline().split(b","))
    if width < len(wanted):
        raise DamagedError(f"{path}: expected a label and {HEPMASS_INPUTS} features; got {width} columns")
    names = [f"c{k}" for k in range(width)]
    options = arrow_csv.ConvertOptions(column_types=dict.fromkeys(wanted, pa.float64()), include_columns=wanted)
    try:
        with open_text(path) as file:
            table = arrow_csv.read_csv(
                file,
                # One thread: with torch loaded, pyarrow's thread pool aborts a process that ends soon after reading.
                read_options=arrow_csv.ReadOptions(column_names=names, skip_rows=1, use_threads=False),
                convert_options=options,
            )
    except pa.ArrowInvalid as error:
        raise DamagedError(f"{path}: not the numbers of HEPMASS ({shorten(one_line(error), 80)})") from error
    return _without_missing(path, np.stack([column.to_numpy() for column in table.columns], axis=1))


def read_power_text(path: Path) -> Array:
    """Read UCI's ``household_power_consumption.txt`` in the layout of the published array, ``(N, 8)``.

    Rows with missing readings and the date are dropped. How the published array encodes the time of day is not
    documented; minutes since midnight are used here. As the set is standardised, any other unit gives the same.

    Raises:
        DamagedError: If the file is damaged.
    """
    import pyarrow as pa
    from pyarrow import csv as arrow_csv

    names = ("active", "reactive", "voltage", "intensity", "metering_1", "metering_2", "metering_3")
    types: dict[str, pa.DataType] = dict.fromkeys(names, pa.float64())
    options = arrow_csv.ConvertOptions(column_types={"date": pa.string(), "time": pa.string(), **types})
    options.null_values = ["?", ""]
    try:
        with open_text(path) as file:
            table = arrow_csv.read_csv(
                file,
                read_options=arrow_csv.ReadOptions(
                    column_names=["date", "time", *names], skip_rows=1, use_threads=False
                ),
                parse_options=arrow_csv.ParseOptions(delimiter=";"),
                convert_options=options,
            )
        table = table.drop_null()
        clock = table.column("time").to_pylist()
        minutes = {text: _minutes(text) for text in set(clock)}
    except (pa.ArrowInvalid, ValueError) as error:
        raise DamagedError(f"{path}: not the readings of UCI 235 ({shorten(one_line(error), 80)})") from error
    columns = [table.column(name).to_numpy() for name in names]
    return np.stack([*columns, np.array([minutes[text] for text in clock])], axis=1)


def read_gas_text(path: Path) -> tuple[tuple[str, ...], Array]:
    """Draw a quarter of the rows of UCI's ``ethylene_CO.txt``, in random order, like the published table.

    Which quarter was published is unknown.

    Returns:
        Names of the 19 columns, where ``Time``, ``Meth`` and ``Eth`` are as in the published table, and the rows.

    Raises:
        DamagedError: If the file is damaged.
    """
    blocks = list(_blocks_of_numbers(path, _GAS_INPUTS, header_lines=1))
    if not blocks:
        raise DamagedError(f"{path}: holds no rows")
    rows = np.concatenate(blocks)
    rng = np.random.RandomState(42)
    drawn = rng.choice(len(rows), size=round(_GAS_SHARE * len(rows)), replace=False)
    return ("Time", "Meth", "Eth", *(f"sensor_{k}" for k in range(1, 17))), rows[drawn]


def read_miniboone_text(path: Path) -> Array:
    """Read the signal rows ``(N, 50)`` of UCI's ``MiniBooNE_PID.txt``.

    Its first line holds the numbers of signal and background rows.

    Raises:
        DamagedError: If the file is damaged.
    """
    with open_text(path) as file:
        counts = file.readline().split()
    if not counts or not counts[0].isdigit():
        raise DamagedError(f"{path}: expected the numbers of events in the first line")
    if int(counts[0]) == 0:
        raise DamagedError(f"{path}: announces no signal events")
    signal, blocks, read = int(counts[0]), [], 0
    for block in _blocks_of_numbers(path, MINIBOONE_INPUTS, header_lines=1):
        blocks.append(block)
        read += len(block)
        if read >= signal:
            break
    if read < signal:
        raise DamagedError(f"{path}: announces {signal} signal events and holds {read} rows")
    return np.concatenate(blocks)[:signal]


def _blocks_of_numbers(path: Path, width: int, header_lines: int) -> Iterator[Array]:
    """Yield rows ``(n, width)`` of numbers separated by white space, in constant memory."""
    with open_text(path) as file:
        for _ in range(header_lines):
            file.readline()
        rest = b""
        while True:
            fresh = file.read(_BLOCK_BYTES)
            block = rest + fresh
            cut = block.rfind(b"\n") + 1 if fresh else len(block)
            lines, rest = block[:cut], block[cut:]
            try:
                numbers = np.array(lines.split(), dtype=np.float64)
            except ValueError as error:
                raise DamagedError(f"{path}: holds something that is not a number ({error})") from error
            if len(numbers) % width:
                raise DamagedError(f"{path}: expected rows of {width} numbers; found a row of another length")
            if len(numbers):
                yield numbers.reshape(-1, width)
            if not fresh:
                return


def _minutes(clock: str) -> float:
    hours, minutes, seconds = (int(part) for part in clock.split(":"))
    return 60 * hours + minutes + seconds / 60


def _without_missing(path: Path, matrix: Array) -> Array:
    if np.isnan(matrix).any():
        raise DamagedError(f"{path}: has empty cells")
    return matrix
