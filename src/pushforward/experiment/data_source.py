"""The data of a run, to be read again: wherever the file is now, its content must be what the run was fitted to."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pushforward.common.errors import DataError
from pushforward.config.read import load_config
from pushforward.config.schema import Config, DataConfig
from pushforward.datasets.dataset import MEMORY
from pushforward.datasets.tables.files.local_file import STDIN, LocalFile, file_status, is_stream
from pushforward.runs.folder import RunFolder
from pushforward.train.problems.base import Problem

_DIGITS = 12  # of a checksum in messages


def check_source(run: RunFolder, data: DataConfig, command: str, otherwise: str = "") -> None:
    """Check that the rows of a run can be read again.

    Args:
        run: The run folder.
        data: Where the rows are.
        command: The command that takes the rows from ``FILE`` instead, for the message.
        otherwise: What cannot be done without the rows of a run, and what can, for the message about rows in memory.

    Raises:
        DataError: If they came through a pipe, or the file is not there any more.
    """
    if data.source == STDIN:
        raise DataError(
            f"{run.path}: was fitted to rows from stdin, which were not kept; save the same rows in a file and give "
            f"it: {command}"
        )
    if data.source == MEMORY:  # no file has their checksum
        raise DataError(f"{run.path}: was fitted to rows in memory, which were not kept: {otherwise}")
    if Path(data.source).is_absolute() and file_status(data.source) is None:
        raise DataError(f"{data.source}: no such file; {run.path} was fitted to it; if it is elsewhere now: {command}")


def check_content(run: RunFolder, schema: Mapping[str, Any], recorded: str | None, command: str) -> None:
    """Check that a data set has the content that was recorded.

    Args:
        run: The run folder, or the folder of a sweep.
        schema: Description of the data that were loaded now: ``dataset``, ``source`` and ``sha256``.
        recorded: The SHA-256 of the file at that time; None without a file.
        command: The command that takes the rows from ``FILE`` instead, for the message.

    Raises:
        DataError: If the checksums differ.
    """
    if recorded != schema["sha256"]:
        is_file = file_status(schema["source"]) is not None
        again = f"give the file with that content: {command}; or start" if is_file else "start"
        where = schema["source"] if is_file else schema["dataset"]
        raise DataError(
            f"{where}: not the data that {run.path} was fitted to: its SHA-256 is {_short(schema['sha256'])}, "
            f"that of the run is {_short(recorded)}; {again} a new fit"
        )


def accept_data(run: RunFolder, config: Config, problem: Problem, command: str) -> tuple[Config, str]:
    """Check that data are those that a run was fitted to, and record the place of their file if that is new.

    Args:
        run: The run folder.
        config: The configuration of the run, with the source of the data.
        problem: The problem with the data that were loaded now; it takes their recorded name.
        command: The command that takes the rows from ``FILE`` instead, for the message.

    Returns:
        The configuration with an absolute path, and one line about the new place, empty if it is the old one.

    Raises:
        DataError: If the checksums differ.
    """
    recorded, now = _schema(run), problem.schema()
    check_content(run, now, recorded.get("sha256"), command)
    source = problem.options.data.source
    config = config.model_copy(update={"data": config.data.model_copy(update={"source": source})})
    problem.name = recorded.get("dataset", problem.name)
    before = load_config(files=[run.config])
    if source == before.data.source:
        return config, ""
    run.write_config(before.model_copy(update={"data": before.data.model_copy(update={"source": source})}))
    run.write_json("schema.json", recorded | {"source": source})
    note = f"{source}: has the content that {run.path} was fitted to, SHA-256 {_short(now['sha256'])}"
    return config, f"{note}; it is recorded as the source"


def has_file(run: RunFolder) -> bool:
    """Return whether a run was fitted to rows with a checksum, which a file may have now."""
    return _schema(run).get("sha256") is not None


def has_test_rows(run: RunFolder) -> bool:
    """Return whether rows were held out to test a run."""
    return bool(_schema(run).get("rows", {}).get("test"))


def find_copy(run: RunFolder, data: str) -> str | None:
    """Return the path of a table if it is the file that a run was fitted to, wherever it is; else None."""
    recorded = _schema(run).get("sha256")
    if recorded is None or is_stream(data) or file_status(data) is None:
        return None
    file = LocalFile(data)
    return file.source if file.checksum() == recorded else None


def _schema(run: RunFolder) -> dict[str, Any]:
    schema: dict[str, Any] = json.loads(run.schema.read_text(encoding="utf-8"))
    return schema


def _short(sha256: str | None) -> str:
    return "unknown" if sha256 is None else f"{sha256[:_DIGITS]}..."
