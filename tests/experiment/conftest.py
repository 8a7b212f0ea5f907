"""Fixtures of the tests of fits in processes of their own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fixtures.processes import Command, Start


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start ``pushforward`` processes, which end with the test."""
    running: list[Command] = []

    def started(*arguments: str) -> Command:
        running.append(Command(tmp_path, *arguments))
        return running[-1]

    yield started
    for command in running:
        command.kill()
