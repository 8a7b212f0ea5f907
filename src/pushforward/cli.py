"""The ``pushforward`` command: thin, and fast to start.

Every command imports what it needs when it runs, so that ``--help`` costs no torch. Errors that a user can cause end
in one line and the exit code of their kind: 1 failed, 2 usage or configuration, 3 bad data, 4 diverged, 130 and 143
for signals.
"""

import atexit
import contextlib
import difflib
import gc
import json
import math
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from pushforward import __version__

if TYPE_CHECKING:
    from pushforward.evaluate.fitted import FittedDensity
    from pushforward.evaluate.likelihood import Array
    from pushforward.train import Fit

# By class name: the classes live in modules that take seconds to import.
_EXIT_CODES = {
    "ConfigError": 2,
    "RunUsageError": 2,
    "DataError": 3,
    "DivergedError": 4,
    "RunError": 1,
    "CheckpointError": 1,
    "ModelFileError": 1,
}


class _Commands(click.Group):
    """A group that suggests the nearest command and turns errors into one line and an exit code."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], self.list_commands(ctx), n=1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            ctx.fail(f"no command '{args[0]}'{hint}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except BrokenPipeError:
            # The reader has gone, as in `| head`. Python would complain once more while flushing at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(0)
        except KeyboardInterrupt:
            _say("interrupted")
            ctx.exit(130)
        except Exception as error:
            if ctx.params.get("debug"):
                raise
            _say(f"{ctx.info_name} {ctx.invoked_subcommand}: {_one_line(error)}")
            ctx.exit(next((_EXIT_CODES[c.__name__] for c in type(error).__mro__ if c.__name__ in _EXIT_CODES), 1))


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="pushforward")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def main(debug: bool) -> None:
    """Fit, score, sample and evaluate densities with normalizing flows."""
    # Imports make a million objects that stay: to look through them for those that nobody uses any more, again and
    # again while they come and once more at the end, takes over a second.
    if gc.get_threshold()[0] < 100_000:
        gc.set_threshold(100_000, 20, 20)
        atexit.register(gc.freeze)


def _common(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    options: dict[str, Callable[..., Any]] = {
        "seed": click.option("--seed", type=click.IntRange(min=0), help="Seed of everything random."),
        "device": click.option("--device", help="auto, cpu, cuda, cuda:N or mps."),
        "json": click.option(
            "--json", "as_json", is_flag=True, help="Print one JSON object on stdout, all else on stderr."
        ),
    }

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        for name in reversed(names):
            command = options[name](command)
        return command

    return decorate


class _Fit(click.Command):
    """The fit command; its help ends with the keys."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        from pushforward.train.overrides import describe_keys

        with formatter.section("Keys"):
            rows = [
                (f"{key.key}={key.default}", key.description) for key in describe_keys() if key.key != "data.source"
            ]
            formatter.write_dl(rows)


@main.command(cls=_Fit, short_help="Fit a density to data.")
@click.argument("arguments", nargs=-1, metavar="DATA [KEY=VALUE ...]")
@click.option("-c", "--config", "files", multiple=True, type=click.Path(path_type=Path), help="YAML file of keys.")
@click.option("--out", type=click.Path(path_type=Path), help="Make exactly this folder the run.")
@click.option("--resume", "resumed", type=click.Path(path_type=Path), metavar="RUN", help="Go on with a run.")
@click.option("--wandb", type=click.Choice(["auto", "online", "offline", "off"]), help="Where W&B records the run.")
@click.option("--dry-run", is_flag=True, help="Check the configuration and the data, build the flow, and stop.")
@click.option("--print-config", is_flag=True, help="Print the configuration as YAML, and stop.")
@_common("seed", "device", "json")
def fit(
    arguments: tuple[str, ...],
    files: tuple[Path, ...],
    out: Path | None,
    resumed: Path | None,
    wandb: str | None,
    dry_run: bool,
    print_config: bool,
    seed: int | None,
    device: str | None,
    as_json: bool,
) -> None:
    """Fit a density to DATA and leave a run folder.

    DATA is a toy's name, an embedded data set's name (see `pushforward datasets`), or a CSV, Parquet or .npy file.
    KEY=VALUE sets a key of the configuration, such as flow=nsf-ar, train.seconds=60 or data.drop=id;
    --print-config shows them all.
    """
    from pushforward.train.overrides import ConfigError, load_config

    # DATA is optional: --resume knows it, and a YAML file may name it.
    has_data = bool(arguments) and ("=" not in arguments[0] or Path(arguments[0]).exists())
    data, overrides = (arguments[0], arguments[1:]) if has_data else (None, arguments)
    if resumed is not None:
        if data is not None or files or seed is not None or out is not None:
            raise ConfigError("--resume: takes the data, -c, --seed and --out from the run; leave them out")
        if dry_run or print_config:
            raise ConfigError("--resume: cannot be combined with --dry-run or --print-config")
        from pushforward.train import resume

        _finish_fit(resume(resumed, overrides, quiet=False, device=device, wandb=wandb), as_json)
        return
    config = load_config(data, files, overrides, seed=seed, device=device, wandb=wandb)
    if print_config:
        click.echo(config.to_yaml(), nl=False)
        return
    if dry_run:
        from pushforward.train import plan

        planned = plan(config)
        rows = {name: len(getattr(planned.prepared.splits, name)) for name in ("train", "validation", "test")}
        facts = {
            "dataset": planned.prepared.dataset.name,
            "features": planned.flow.features,
            "context": planned.flow.context,
            **rows,
            "flow": planned.config.flow.name,
            "parameters": planned.parameters,
        }
        if as_json:
            click.echo(json.dumps(facts | {"config": planned.config.model_dump(mode="json")}))
        else:
            for note in planned.prepared.dataset.notes:
                _say(note)
            click.echo(planned.config.to_yaml() + "# " + ", ".join(f"{k}: {v}" for k, v in facts.items()))
        return
    from pushforward.train import fit as run_fit

    _finish_fit(run_fit(config, out=out), as_json)


def _finish_fit(result: "Fit", as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(_finite(result.results)))
    else:
        for line in result.lines():
            click.echo(line)
    if result.signum is not None:
        _say(f"stopped by a signal; the best weights are saved; go on with: pushforward fit --resume {result.run.path}")
        sys.exit(128 + result.signum)


@main.command(short_help="Log-densities of the rows of a table.")
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("data")
@click.option("--out", type=click.Path(path_type=Path), help="CSV or Parquet file to write; stdout if not given.")
@click.option("--draws", type=click.IntRange(min=1), default=1, show_default=True, help="Points averaged in each cell.")
@_common("device", "json")
def score(run: Path, data: str, out: Path | None, draws: int, device: str | None, as_json: bool) -> None:
    """Write the log-density of each row of DATA, in nats and in the units of the data, one line a row, in order.

    DATA needs the columns RUN was fitted to, in any order. A value of a column with a grid stands for its cell;
    --draws averages the density over more points of the cell. The file is read and scored a part at a time, in memory
    that does not grow with it; --out appears when all of it is there. (--json without --out keeps all scores.)
    """
    from pushforward.datasets import RowStream
    from pushforward.evaluate.row_progress import RowProgress
    from pushforward.evaluate.scores import ScoreFile, score_parts

    density = _load_density(run, device)
    rows = RowStream(data, density.schema)
    for note in rows.notes:
        _say(note)
    # Without a file the scores go where the numbers go: nothing that was computed is thrown away.
    kept: list[float | None] | None = [] if as_json and out is None else None
    with contextlib.ExitStack() as stack:
        stack.enter_context(_ended_by_sigterm())
        file = ScoreFile(out) if kept is None else None
        if file is not None:
            stack.enter_context(file)
        shown = out is not None or not sys.stdout.isatty()
        progress = stack.enter_context(RowProgress(shown=shown))

        def write(scores: "Array") -> None:
            if file is not None:
                file.write(scores)
            if kept is not None:
                kept.extend(value if math.isfinite(value) else None for value in scores.tolist())
            progress.add(len(scores), rows.rows)

        summary = score_parts(density, rows, write, draws=draws)
    if as_json:
        facts = {"run": str(run), "data": data, "rows": summary.rows, "nll": summary.nll, "nll_se": summary.se}
        scored = {} if kept is None else {"log_prob": kept}
        click.echo(json.dumps(_finite(facts | {"out": None if out is None else str(out)}) | scored))
    else:
        _say(f"NLL {summary}" + (f"; written to {out}" if out is not None else ""))


@contextlib.contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end the block like an error, so that what it has begun is taken away; exit code 143."""

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


@main.command(short_help="Draw synthetic rows.")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("-n", "rows", type=click.IntRange(min=1), required=True, help="Number of rows.")
@click.option("--out", type=click.Path(path_type=Path), help="CSV or Parquet file to write.")
@click.option("--given", multiple=True, metavar="COL=VALUE", help="Value of a context column, once for each.")
@_common("seed", "device", "json")
def sample(
    run: Path,
    rows: int,
    out: Path | None,
    given: tuple[str, ...],
    seed: int | None,
    device: str | None,
    as_json: bool,
) -> None:
    """Draw rows from RUN with the columns, order and number types it was fitted to.

    Without --out the rows go to RUN/samples. --given fixes the columns of a run fitted with data.context.
    """
    import numpy as np

    from pushforward.datasets import write_table
    from pushforward.datasets.write import WRITTEN_ENDINGS

    if out is not None and not out.name.lower().endswith(WRITTEN_ENDINGS):
        raise click.BadParameter(
            f"expected a file ending in {', '.join(WRITTEN_ENDINGS)}; got {out}", param_hint="--out"
        )
    density = _load_density(run, device)
    seed = 0 if seed is None else seed
    context = _given(density, given)
    repeated = np.empty((rows, 0)) if context is None else np.repeat(context, rows, axis=0)
    # What was drawn for other values stays beside it.
    values = "".join(f"-{re.sub(r'[^A-Za-z0-9._=-]+', '-', text)}" for text in sorted(given))
    target: Path = out or _run_folder(run).samples / f"sample-{rows}-seed{seed}{values}.csv"
    drawn = density.sample(rows, None if context is None else repeated, seed=seed)
    try:
        write_table(target, drawn, repeated, density.schema)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise OSError(error.errno, f"cannot write: {reason}", str(target)) from error
    if as_json:
        click.echo(json.dumps({"run": str(run), "rows": rows, "seed": seed, "out": str(target)}))
    else:
        click.echo(f"{rows:,} rows written to {target}")


@main.command(short_help="Say what a fitted density is worth.")
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("data", required=False)
@_common("device", "json")
def evaluate(run: Path, data: str | None, device: str | None, as_json: bool) -> None:
    """Compare RUN with baselines, its samples with held-out data, its latents with a Gaussian; check its Jacobian.

    DATA takes the place of the run's own test rows; baselines are fitted to the run's training rows either way.
    """
    from pushforward.train import evaluate_run

    report = evaluate_run(_run_folder(run), data, device=device or "cpu", tell=_say)
    if as_json:
        click.echo(json.dumps({"run": str(run)} | report.to_dict()))
    else:
        for line in report.lines():
            click.echo(line)


@main.command(short_help="List the data sets there are.")
@_common("json")
def datasets(as_json: bool) -> None:
    """List the toys and the embedded data sets; any CSV, Parquet or .npy file is a data set too."""
    from pushforward.datasets import names

    entries = names()
    if as_json:
        click.echo(json.dumps({"datasets": [entry._asdict() for entry in entries]}))
        return
    _table([("name", "kind", "rows", "columns", "what it is")] + [tuple(_cell(v) for v in e) for e in entries])


@main.command(short_help="List the runs there are.")
@click.option("--root", type=click.Path(path_type=Path), default=Path("runs"), show_default=True, help="Where to look.")
@_common("json")
def runs(root: Path, as_json: bool) -> None:
    """List the runs below a folder, oldest first."""
    from pushforward.train.runs import list_runs

    found = list_runs(root)
    fields = ("name", "status", "dataset", "flow", "steps", "val_nll", "test_nll", "started")
    rows = [tuple(getattr(run, field) for field in fields) for run in found]
    if as_json:
        click.echo(json.dumps({"runs": [_finite(dict(zip(fields, row, strict=True))) for row in rows]}))
        return
    if not rows:
        _say(f"no runs below {root}")
        return
    _table([fields] + [tuple(_cell(value) for value in row) for row in rows])


def _run_folder(path: Path) -> Any:
    from pushforward.train.runs import RunFolder

    return RunFolder.open(path)


def _load_density(run: Path, device: str | None) -> "FittedDensity":
    folder = _run_folder(run)
    from pushforward.evaluate.fitted import FittedDensity
    from pushforward.train import choose_device

    chosen = choose_device(device or "cpu")
    if chosen.type == "mps":
        from pushforward.train.overrides import ConfigError

        raise ConfigError("--device: scores and samples are computed in float64, which mps does not have; use cpu")
    return FittedDensity.load(folder.model, device=str(chosen))


def _given(density: "FittedDensity", given: tuple[str, ...]) -> Any:
    """Context row ``(1, C)`` from ``COL=VALUE`` options, None for a run without context."""
    import numpy as np

    from pushforward.train.overrides import ConfigError

    names = density.schema.context_names
    values: dict[str, float] = {}
    for text in given:
        # A column name may hold '=' itself: the value is what stands after the last one.
        name, equals, value = text.rpartition("=")
        if not equals:
            raise ConfigError(f"--given: expected COL=VALUE; got '{text}'")
        if name not in names:
            known = f"its context columns are {', '.join(names)}" if names else "it has no context columns"
            raise ConfigError(f"--given: '{name}' is not a context column of this run; {known} (data.context)")
        if name in values:
            raise ConfigError(f"--given: '{name}' is given twice")
        try:
            values[name] = float(value)
        except ValueError:
            values[name] = math.nan
        if not math.isfinite(values[name]):
            raise ConfigError(f"--given: expected a number for '{name}'; got '{value}'")
    missing = [name for name in names if name not in values]
    if missing:
        raise ConfigError(f"--given: this run needs {', '.join(f'--given {name}=...' for name in missing)}")
    return np.array([[values[name] for name in names]]) if names else None


def _table(rows: list[tuple[str, ...]]) -> None:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN and no infinity: null says that there is no number."""
    return {k: None if isinstance(v, float) and not abs(v) < float("inf") else v for k, v in values.items()}


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}"
    text = " ".join(str(error).split())
    known = any(c.__name__ in _EXIT_CODES for c in type(error).__mro__)
    return text if known else f"{type(error).__name__}: {text} (pushforward --debug shows where)"


def _say(text: str) -> None:
    click.echo(text, err=True)
