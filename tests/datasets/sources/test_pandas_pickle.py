"""Pickled tables of old and new pandas are read without pandas; anything else in a pickle is refused."""

import builtins
import os
import pickle
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pushforward.common.errors import DataError
from pushforward.datasets.sources.pandas_pickle import ALLOWED_NAMES, read_frame
from tests.fixtures.paths import ROOT

NAMES = ("Time", "Meth", "Eth", "R1", "R2")
VALUES = np.random.default_rng(0).normal(size=(30, 5))


class Pickle:
    """Builds a pickle of protocol 2 as Python 2 wrote it, opcode by opcode."""

    def __init__(self) -> None:
        self.code = b"\x80\x02"

    def glob(self, module: str, name: str) -> "Pickle":
        self.code += f"c{module}\n{name}\n".encode()
        return self

    def text(self, value: bytes) -> "Pickle":
        """A ``str`` of Python 2: bytes."""
        self.code += b"T" + struct.pack("<i", len(value)) + value
        return self

    def number(self, value: int) -> "Pickle":
        self.code += b"J" + struct.pack("<i", value)
        return self

    def op(self, code: bytes) -> "Pickle":
        self.code += code
        return self

    def dtype(self, code: bytes, order: bytes) -> "Pickle":
        self.glob("numpy", "dtype").op(b"(").text(code).number(0).number(1).op(b"tR(").number(3).text(order)
        return self.op(b"NNN").number(-1).number(-1).number(63 if code == b"O8" else 0).op(b"tb")

    def array(self, shape: tuple[int, ...], dtype: tuple[bytes, bytes], content: bytes | list[bytes]) -> "Pickle":
        self.glob("numpy.core.multiarray", "_reconstruct").glob("numpy", "ndarray")
        self.number(0).op(b"\x85").text(b"b").op(b"\x87R(").number(1).op(b"(")
        for n in shape:
            self.number(n)
        self.op(b"t").dtype(*dtype).op(b"\x89")
        if isinstance(content, bytes):
            self.text(content)
        else:
            self.op(b"](")
            for word in content:
                self.text(word)
            self.op(b"e")
        return self.op(b"tb")

    def index(self, module: str, name: str, state: dict[str, Any]) -> "Pickle":
        base = "pandas.core.index" if module == "pandas.core.index" else module.rsplit(".", 1)[0] + ".base"
        self.glob(base, "_new_Index").glob(module, name).op(b"}(")
        for key, value in state.items():
            self.text(key.encode())
            if isinstance(value, int):
                self.number(value)
            elif value is None:
                self.op(b"N")
            else:
                value()
        return self.op(b"u\x86R")

    def labels(self, module: str, names: tuple[str, ...]) -> "Pickle":
        def data() -> None:
            self.array((len(names),), (b"O8", b"|"), [name.encode() for name in names])

        return self.index(module, "Index", {"data": data, "name": None})


def old_frame(modules: tuple[str, str, str], *, blocks_by_name: bool = False, two_blocks: bool = False) -> bytes:
    """Return a pickle as written by ``DataFrame.to_pickle`` of pandas 0.1x and 0.2x.

    Args:
        modules: Modules of the frame, the block manager and the indexes, which moved between versions.
        blocks_by_name: Use the format before 0.14, in which blocks name their columns.
        two_blocks: Put the last column in a separate block, in float32.
    """
    frame, internals, indexes = modules
    parts = [(list(range(4)), "<f8"), ([4], "<f4")] if two_blocks else [(list(range(5)), "<f8")]
    p = Pickle()
    axes_of_range = {"name": None, "start": 0, "stop": 30, "step": 1}
    home = indexes if indexes == "pandas.core.index" else f"{indexes}.base"

    def axes() -> None:
        p.op(b"](").labels(home, NAMES)
        if indexes == "pandas.core.index":
            p.index(home, "Int64Index", {"data": lambda: p.array((30,), (b"i8", b"<"), bytes(240)), "name": None})
        else:
            p.index(f"{indexes}.range", "RangeIndex", axes_of_range)
        p.op(b"e")

    def values(columns: list[int], kind: str) -> None:
        block = np.ascontiguousarray(VALUES[:, columns].T, dtype=kind)
        p.array(block.shape, (kind[1:].encode(), b"<"), block.tobytes())

    p.glob(frame, "DataFrame").op(b")\x81}(").text(b"_metadata").op(b"]").text(b"_typ").text(b"dataframe")
    p.text(b"_data").glob(internals, "BlockManager").op(b")\x81(")
    axes()
    p.op(b"](")
    for columns, kind in parts:
        values(columns, kind)
    p.op(b"e](")
    for columns, _ in parts:
        p.labels(home, tuple(NAMES[k] for k in columns))
    p.op(b"e")
    if not blocks_by_name:
        p.op(b"}").text(b"0.14.1").op(b"}(").text(b"axes")
        axes()
        p.text(b"blocks").op(b"](")
        for columns, kind in parts:
            p.op(b"}(").text(b"mgr_locs").glob("__builtin__", "slice")
            p.number(columns[0]).number(columns[-1] + 1).number(1).op(b"\x87R").text(b"values")
            values(columns, kind)
            p.op(b"u")
        p.op(b"eus")
    return p.op(b"tbub.").code


VERSIONS = {
    "0.14": ("pandas.core.frame", "pandas.core.internals", "pandas.core.index"),
    "0.19": ("pandas.core.frame", "pandas.core.internals", "pandas.indexes"),
    "0.24": ("pandas.core.frame", "pandas.core.internals.managers", "pandas.core.indexes"),
}


def check(path: Path, values: np.ndarray[Any, Any]) -> None:
    found = read_frame(path)
    assert found.names == NAMES
    assert found.matrix.dtype == np.float64
    assert np.array_equal(found.matrix, values)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("two_blocks", [False, True])
def test_pickles_of_old_pandas(version: str, two_blocks: bool, tmp_path: Path) -> None:
    path = tmp_path / "old.pickle"
    path.write_bytes(old_frame(VERSIONS[version], two_blocks=two_blocks))
    expected = VALUES.copy()
    if two_blocks:
        expected[:, 4] = VALUES[:, 4].astype("f4")
    check(path, expected)


def test_two_columns_of_the_same_name(tmp_path: Path) -> None:
    """Blocks refer to columns by index: by name, two columns of the same name would be mixed up."""
    path = tmp_path / "old.pickle"
    path.write_bytes(old_frame(VERSIONS["0.19"]).replace(b"R2", b"R1"))
    found = read_frame(path)
    assert found.names == (*NAMES[:4], "R1")
    assert np.array_equal(found.matrix, VALUES)


def test_pickles_before_pandas_0_14(tmp_path: Path) -> None:
    path = tmp_path / "old.pickle"
    path.write_bytes(old_frame(VERSIONS["0.14"], blocks_by_name=True, two_blocks=True))
    assert np.array_equal(read_frame(path).matrix[:, :4], VALUES[:, :4])


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("labels", ["text", "object"])
def test_pickles_of_current_pandas(protocol: int, labels: str, tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas", reason="pandas writes the tables that are read without it")
    frame = pandas.DataFrame(VALUES, columns=list(NAMES)).sample(frac=0.5, random_state=0)
    frame["Eth"] = np.arange(15)
    frame["R1"] = frame["R1"].astype("float32")
    if labels == "object":
        frame.columns = frame.columns.astype(object)
    path = tmp_path / "new.pickle"
    frame.to_pickle(path, protocol=protocol)
    check(path, frame.to_numpy(dtype=float))


def test_pandas_is_not_needed(tmp_path: Path) -> None:
    path = tmp_path / "old.pickle"
    path.write_bytes(old_frame(VERSIONS["0.19"]))
    program = (
        "import sys; sys.modules['pandas'] = None\n"
        "from pathlib import Path; from pushforward.datasets.sources.pandas_pickle import read_frame\n"
        f"print(read_frame(Path({str(path)!r})).matrix.shape)"
    )
    source = ROOT / "src"
    done = subprocess.run(
        [sys.executable, "-P", "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(source)},
    )
    assert done.stdout == "(30, 5)\n"


class Call:
    """An object whose pickle calls a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.fixture
def nothing_runs(tmp_path: Path) -> Iterator[Path]:
    """Path of a file that the malicious pickles would create; checks that it does not exist."""
    made = tmp_path / "made"
    yield made
    assert not made.exists()


MALICIOUS: dict[str, Callable[[Path], bytes]] = {
    "os.system": lambda made: pickle.dumps(Call(os.system, f"touch {made}")),
    "builtins.eval": lambda made: pickle.dumps(Call(eval, f"open({str(made)!r}, 'w')")),
    "builtins.open": lambda made: pickle.dumps(Call(builtins.open, str(made), "w")),
    "subprocess.Popen": lambda made: pickle.dumps(Call(subprocess.Popen, ["touch", str(made)])),
    "builtins.getattr": lambda made: pickle.dumps(Call(getattr, Call(eval, "1"), "x")),
    # Expressions evaluated by pandas are code, too.
    "pandas.eval": lambda made: b"\x80\x02cpandas\neval\n(X\x01\x00\x00\x001tR.",
    "numpy.load": lambda made: b"\x80\x02cnumpy\nload\n(X\x01\x00\x00\x00atR.",
    # Protocol 4 can name an attribute of an attribute of an allowed module.
    "numpy.ndarray.tofile": lambda made: b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93.",
    # In the old text format, INST calls a class.
    "os.popen": lambda made: f"(S'touch {made}'\nios\npopen\n.".encode(),
    # The names of Python 2.
    "__builtin__.eval": lambda made: b"\x80\x02c__builtin__\neval\n(X\x01\x00\x00\x001tR.",
    "builtins.type": lambda made: pickle.dumps(Call(type, "X", (), {})),
}


@pytest.mark.parametrize("name", MALICIOUS)
def test_code_is_refused(name: str, nothing_runs: Path, tmp_path: Path) -> None:
    path = tmp_path / "bad.pickle"
    path.write_bytes(MALICIOUS[name](nothing_runs))
    asked = {"os.system": "posix.system", "builtins.open": "_?io.open"}.get(name, name)
    with pytest.raises(
        DataError, match=f"^bad.pickle: asks for {asked}, which no table of numbers needs; it is not read"
    ):
        read_frame(path)


def test_code_within_a_table_is_refused(nothing_runs: Path, tmp_path: Path) -> None:
    """The call is never made, although the pickle begins with a valid table."""
    call = pickle.dumps(Call(os.system, f"touch {nothing_runs}"), protocol=2)[2:-1]
    good = old_frame(VERSIONS["0.19"])
    for place in (b"_metadata]", b"_typ"):
        head, tail = good.split(place.rstrip(b"]"), 1)
        path = tmp_path / "bad.pickle"
        path.write_bytes(head + place.rstrip(b"]") + call + b"0" + tail)
        with pytest.raises(DataError, match=r"asks for posix\.system"):
            read_frame(path)


@pytest.mark.parametrize(
    "name",
    [
        *("builtins slice", "pandas Index", "pandas.core.frame DataFrame", "pandas.core.internals BlockManager"),
        *("numpy dtype", "numpy ndarray", "pandas StringDtype", "pyarrow.lib _restore_array", "_codecs encode"),
        *("numpy.core.multiarray _reconstruct", "pandas._libs.internals _unpickle_block"),
    ],
)
@pytest.mark.parametrize(
    "state", [b"N}X\x04\x00\x00\x00stepK\x07s\x86", b"}X\x04\x00\x00\x00stepK\x07s"], ids=["slots", "dict"]
)
def test_replacement_classes_cannot_be_changed(name: str, state: bytes, tmp_path: Path) -> None:
    """BUILD on a class or function would otherwise change its attributes for the rest of the process."""
    module, attribute = name.split()
    replacement = ALLOWED_NAMES[module, attribute]
    before = dict(vars(replacement))
    path = tmp_path / "bad.pickle"
    path.write_bytes(b"\x80\x02c" + module.encode() + b"\n" + attribute.encode() + b"\n" + state + b"b.")
    with pytest.raises(DataError, match=r"^bad\.pickle: "):
        read_frame(path)
    assert dict(vars(replacement)) == before


def test_pickles_without_a_table_of_numbers_are_refused(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas", reason="pandas writes the tables that are read without it")
    path = tmp_path / "x.pickle"
    cases: dict[str, Any] = {
        "holds no DataFrame": pickle.dumps([1, 2]),
        "columns that are not numbers": pandas.DataFrame({"a": ["x", "y"]}, dtype=object),
        "asks for pandas": pandas.DataFrame({"a": pandas.to_datetime(["2020-01-01"])}),
        "columns have no names": pandas.DataFrame(VALUES),
    }
    for message, content in cases.items():
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            content.to_pickle(path)
        with pytest.raises(DataError, match=message):
            read_frame(path)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_truncated_pickles_are_refused(share: float, tmp_path: Path) -> None:
    good = old_frame(VERSIONS["0.19"])
    path = tmp_path / "cut.pickle"
    path.write_bytes(good[: int(share * len(good))])
    with pytest.raises(DataError, match=r"^cut\.pickle: not a readable pickle of a table \(\w+\)$"):
        read_frame(path)


def test_inconsistent_arrays_are_refused(tmp_path: Path) -> None:
    """An array with fewer bytes than its shape requires, and one whose type is not numeric."""
    good = old_frame(VERSIONS["0.19"])
    path = tmp_path / "x.pickle"
    path.write_bytes(good.replace(b"J" + struct.pack("<i", 30), b"J" + struct.pack("<i", 31)))
    with pytest.raises(DataError, match="more or less than its cells"):
        read_frame(path)
    path.write_bytes(good.replace(b"T\x02\x00\x00\x00f8", b"T\x02\x00\x00\x00V8"))
    with pytest.raises(DataError, match="values of type 'V8'"):
        read_frame(path)
