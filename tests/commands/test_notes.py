"""Notes on the data reach the terminal."""

from pathlib import Path

from click.testing import CliRunner

from pushforward.cli import main
from tests.fixtures.tables import table_with_copies


def test_the_note_reaches_the_terminal(tmp_path: Path) -> None:
    arguments = ["fit", str(table_with_copies(tmp_path, 300)), "--dry-run"]
    done = CliRunner().invoke(main, arguments, prog_name="pushforward")
    assert done.exit_code == 0, done.output
    assert "also appear among the training rows: their likelihood measures memorization too" in done.stderr
