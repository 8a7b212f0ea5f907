"""Tables on terminals: numbers right-aligned, words kept whole, complete lines in pipes."""

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from pushforward.commands.common import table_lines

ROWS = [
    ("name", "rows", "columns", "what it is"),
    ("a", "1,500", "2", "a table whose description is a sentence of quite a few words, and more than one line long"),
    ("another", "-", "12", "two words"),
]


def test_numbers_are_right_aligned_and_texts_left_aligned() -> None:
    rows = [("run", "steps", "test NLL", "started"), ("a", "1,500", "\u22120.5", "now"), ("bb", "20", "-", "then")]
    assert table_lines(rows) == [
        "run  steps  test NLL  started",
        "a    1,500      \u22120.5  now",
        "bb      20         -  then",
    ]
    assert table_lines([("name", "steps")]) == ["name  steps"]


def test_nothing_is_wrapped_without_a_width() -> None:
    lines = table_lines(ROWS)
    assert len(lines) == 3
    assert lines == table_lines(ROWS, 1000)


@pytest.mark.parametrize(("width", "indent"), [(100, 25), (70, 25), (50, 4)])
def test_a_long_last_column_is_wrapped_between_words(width: int, indent: int) -> None:
    lines = table_lines(ROWS, width)
    assert max(map(len, lines)) <= width
    assert " ".join(" ".join(lines).split()) == " ".join(" ".join(" ".join(row) for row in ROWS).split())
    continued = [line for line in lines if line.startswith("    ")]
    assert continued
    assert all(len(line) - len(line.lstrip()) == indent for line in continued)


def test_many_columns_are_split_into_blocks_with_the_first_column() -> None:
    rows = [["run", *(f"number {i}" for i in range(12))], ["one", *map(str, range(12))], ["two", *["1.25"] * 12]]
    lines = table_lines(rows, 60)
    assert max(map(len, lines)) <= 60
    blocks = "\n".join(lines).split("\n\n")
    assert len(blocks) > 1
    assert all([line.split()[0] for line in block.splitlines()] == ["run", "one", "two"] for block in blocks)
    assert sum(block.splitlines()[0].count("number") for block in blocks) == 12


def on_a_terminal(columns: int, *arguments: str) -> list[str]:
    """Return the output of a command on a terminal with so many columns."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    environment = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES")}
    command = [str(Path(sys.executable).parent / "pushforward"), *arguments]
    with subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=environment) as process:
        os.close(slave)
        output = b""
        while True:
            try:
                part = os.read(master, 65536)
            except OSError:  # Linux reports that the other end is closed
                break
            if not part:
                break
            output += part
    os.close(master)
    assert process.returncode == 0, output
    return output.decode().replace("\r\n", "\n").splitlines()


def test_commands_use_the_width_of_the_terminal() -> None:
    for arguments in (("recipes",), ("benchmark", "--list")):
        narrow, wide = on_a_terminal(72, *arguments), on_a_terminal(300, *arguments)
        assert max(map(len, narrow)) <= 72
        assert max(map(len, wide)) > 72
        assert " ".join(" ".join(narrow).split()) == " ".join(" ".join(wide).split())
