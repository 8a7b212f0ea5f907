"""Fit and load densities from Python: :func:`fit` and :func:`load`."""

import json
import signal
import warnings
from collections.abc import Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

from torch import nn

from pushforward.common.errors import ConfigError, DataError
from pushforward.common.plugins import load_plugins
from pushforward.config.read import make_config
from pushforward.datasets.dataset import MEMORY, Dataset
from pushforward.datasets.tables.memory.objects import is_a
from pushforward.evaluate.density import FittedDensity
from pushforward.experiment import run as experiment
from pushforward.experiment.callbacks import Guard, ShowProgress
from pushforward.flows.description import describe
from pushforward.flows.torch_defaults import usual_defaults
from pushforward.runs.folder import RunFolder, check_model
from pushforward.tracking.progress import Progress
from pushforward.train import fitting
from pushforward.train.callbacks import Callback, Callbacks
from pushforward.train.data import load_data
from pushforward.train.defaults import data_options
from pushforward.train.device import choose_device


@usual_defaults()
def fit(
    data: Any,
    *,
    given: Any = None,
    weight: Any = None,
    embedding: nn.Module | None = None,
    seconds: float | None = None,
    steps: int | None = None,
    seed: int = 0,
    device: str = "auto",
    out: str | Path | None = None,
    progress: bool = True,
    callbacks: Sequence[Callback] = (),
    **keys: Any,
) -> FittedDensity:
    """Fit a density to rows.

    No file is written without ``out``. Torch's random state, its defaults and its number of threads are as before
    afterwards.

    Args:
        data: Rows ``(n, D)`` as a NumPy array, a torch tensor, a pandas, polars or Arrow table; the path of a file; the
            name of a data set; or ``target:NAME``.
        given: What the density is conditioned on: context rows ``(n, C)`` of any of these kinds, or names of columns
            of ``data``.
        weight: Weights of the rows ``(n,)``, at least 0, or the name of a column of ``data``. A weight of 2 counts the
            log-likelihood of a row twice; splits and scales ignore weights.
        embedding: A module that maps standardised context rows ``(n, C)`` to the context of the flow ``(n, E)``, in
            float32. Copies of it are trained; yours stays as it is.
        seconds: Budget in seconds; by default it follows from the numbers of rows and columns.
        steps: Budget in steps, with which equal seeds give equal densities.
        seed: Seed of everything random.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        out: A new run folder, with the report and everything else that ``pushforward fit`` writes.
        progress: Whether to show the progress on stderr or in the notebook.
        callbacks: Called around the steps, see ``pushforward.train.Callback``.
        **keys: The other keys of ``pushforward fit``: ``flow="maf"``, ``flow={"name": "maf", "layers": 3}``,
            ``layers=3``, ``drop=["id"]``, ``response="y"``.

    Returns:
        The density, in the units of the data; ``results`` has its final numbers.

    Raises:
        ConfigError: If a key or a value is wrong (a ``ValueError``).
        DataError: If the rows cannot be used (a ``ValueError``).
        DivergedError: If the loss does not stay finite.

    Example:
        >>> import numpy as np
        >>> rows = np.random.default_rng(0).normal(size=(300, 2))
        >>> density = fit(rows, steps=20, progress=False)
        >>> density.log_prob(rows).shape, density.sample(5).shape
        ((300,), (5, 2))
    """
    if data is None:
        raise DataError("data: expected rows, the path of a file or the name of a data set; got None")
    callbacks = Callbacks(callbacks).each
    names = _column_names(given, data)
    of_weight = next(iter(_column_names(weight, data) or ()), None) if isinstance(weight, str | int) else None
    beside = {"given": given if names is None else None, "weight": weight if of_weight is None else None}
    # A run of which a part came from memory cannot be resumed.
    has_objects = embedding is not None or any(value is not None for value in beside.values())
    in_memory = has_objects or not isinstance(data, str | Path)
    arguments = {
        "seconds": seconds,
        "steps": steps,
        "seed": seed,
        "device": device,
        "given": names,
        "weight": of_weight,
    }
    config = make_config(MEMORY if in_memory else str(data), arguments, keys, defaults={"wandb.mode": "off"})
    folder = None if out is None else _path("out", out).absolute()  # a callback may change the current folder
    if config.track and folder is None:
        raise ConfigError("track: trackers record a run folder; give one with out=")
    dataset: Dataset | None = None
    if in_memory:
        dataset = replace(load_data(data_options(config.model_dump()), source=data, **beside), is_file=False)
    if folder is not None:
        _check_can_be_saved(embedding)
        done = experiment.fit(
            config, out=folder, data=dataset, silent=not progress, embedding=embedding, callbacks=callbacks
        )
        if done.signum is not None:
            signal.raise_signal(done.signum)  # what it would have done without the run folder: KeyboardInterrupt
        done.density.results = done.results
        return done.density
    problem = experiment.plan(config, dataset, embedding=embedding)
    train = problem.options.train
    with Progress(steps=train.steps, seconds=train.seconds, hidden=not progress) as shown:
        for note in problem.notes:
            shown.message(note)
        fitted = fitting.fit(problem, [ShowProgress(shown, Guard(Path(), shown.message)), *callbacks])
    if fitted.note:
        shown.message(fitted.note)
    fitted.density.results = {"flow": fitted.name, **problem.score(fitted.density).numbers}
    return fitted.density


def _column_names(given: Any, data: Any) -> tuple[str, ...] | None:
    """The names of columns of the data in ``given``; None if it holds rows."""
    if isinstance(given, str):
        return (given,)
    numbers: Any = given if isinstance(given, list | tuple) else [given]
    columns = data.columns if is_a(data, "pandas", "DataFrame") else ()  # columns without names have numbers there
    if numbers and all(isinstance(number, int) for number in numbers) and set(numbers) <= set(columns):
        return tuple(map(str, numbers)) if len(numbers) != len(data) else None
    listed = list(given) if isinstance(given, list | tuple) or len(getattr(given, "shape", ())) == 1 else []
    return tuple(map(str, listed)) if listed and all(isinstance(name, str) for name in listed) else None


def _path(name: str, value: Any) -> Path:
    if not isinstance(value, str | PathLike):
        raise ConfigError(f"{name}: expected the path of a folder; got {type(value).__name__}")
    return Path(value)


def _check_can_be_saved(embedding: nn.Module | None) -> None:
    """Check that the model with an embedding can be written, before it is trained."""
    try:
        describe(embedding)
    except ValueError as error:
        raise ConfigError(f"embedding: {str(error).removeprefix('save: ')}, or leave out= out") from None


def load(path: str | Path, *, device: str = "cpu") -> FittedDensity:
    """Load a density: of a run folder, of a run below ``runs/`` by its name, or of a folder that ``save`` wrote.

    Args:
        path: The folder.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        ConfigError: If this is not a path, or there is no such device.
        RunUsageError: If there is no such run or model.
        RunError: If the run has no model, because its fit failed or goes on.
        ModelFileError: If the model is missing, damaged, or of another format.
    """
    load_plugins(warnings.warn)  # the parts that they add may be in the model
    folder, where = _path("path", path), str(choose_device(device))
    if (folder / "config.json").is_file():
        return FittedDensity.load(folder, device=where)
    run = RunFolder.open(folder)
    check_model(run)
    density = FittedDensity.load(run.model, device=where)
    if run.results.exists():
        density.results = json.loads(run.results.read_text(encoding="utf-8"))
    return density
