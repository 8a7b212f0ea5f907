"""A fit from end to end: data in, a run folder with a scored density out."""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pushforward.evaluate.fitted import FittedDensity
from pushforward.evaluate.report import EvaluationReport
from pushforward.flows import Flow, build
from pushforward.flows import load as load_flow
from pushforward.flows import save as save_flow
from pushforward.train.checkpoint import load_checkpoint
from pushforward.train.config import Config
from pushforward.train.device import choose_device, kernel_trouble
from pushforward.train.evaluation import evaluate_fit, forget_evaluation, score_prepared, write_evaluation
from pushforward.train.gaussian import better_of_flow_and_gaussian, initialize_base
from pushforward.train.loop import DivergedError, State, maximize_likelihood, start
from pushforward.train.overrides import ConfigError, load_config
from pushforward.train.prepare import Prepared, check_same_data, load_data, prepare
from pushforward.train.progress import Progress
from pushforward.train.recording import Recording, Watch
from pushforward.train.reserve import Reserve
from pushforward.train.results import results_of, schema_of, status_facts, summary_of
from pushforward.train.row_scores import write_row_scores
from pushforward.train.run_page import write_report
from pushforward.train.runs import RunError, RunFolder
from pushforward.train.settings import resolve, settings
from pushforward.train.signals import StopOnSignal
from pushforward.train.tracking import Tracking
from pushforward.train.wandb_process import WandbProcess
from pushforward.train.wandb_tracker import wandb_mode

_INITIAL_ROWS = 20_000

# Room for the report, the samples and the pictures, where the disk fills up during the fit.
_REPORT_BYTES = 4_000_000


@dataclass(frozen=True)
class Fit:
    """What a fit leaves: the density, where everything is, and its numbers.

    Attributes:
        run: The run folder.
        density: The fitted density, in data units.
        results: The numbers of ``results.json``.
        report: Baselines, samples, latents and inversion; None when not asked for or not reached.
        signum: The signal that stopped it, None if none did.
        note: Why the Gaussian was kept, empty where the flow was.
    """

    run: RunFolder
    density: FittedDensity
    results: dict[str, Any]
    report: EvaluationReport | None
    signum: int | None = None
    note: str = ""

    def lines(self) -> list[str]:
        """The outcome as plain text: the numbers beside their baselines, and where everything is."""
        results = self.results
        out = []
        if self.report is not None:
            out += [*self.report.lines(), ""]
        elif math.isnan(results["test_nll"]):
            out.append(f"validation NLL {results['val_nll']:.4f} nats; there are no test rows")
        else:
            out.append(f"test NLL {results['test_nll']:.4f} ± {results['test_nll_se']:.4f} nats")
        if self.note:
            out.append(self.note)
        out.append(f"{results['steps']:,} steps in {results['seconds']:.0f} s, stopped by {results['stop_reason']}")
        out.append(f"run       {self.run.path}")
        if self.run.report.exists():
            out.append(f"report    {self.run.report}")
        for label, folder in (("pictures", self.run.pictures), ("samples", self.run.samples)):
            files = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
            if files:
                out.append(f"{label:<8}  {folder} ({', '.join(files)})")
        return out


@dataclass(frozen=True)
class Plan:
    """A fit that could begin: the data, the configuration with every choice made, and a flow of the right size."""

    config: Config
    prepared: Prepared
    flow: Flow

    @property
    def parameters(self) -> int:
        """Trainable numbers of the flow."""
        return sum(p.numel() for p in self.flow.parameters())


def plan(config: Config) -> Plan:
    """Load the data and build the flow, without fitting: what ``--dry-run`` shows.

    Raises:
        ConfigError: If the device is not there.
        DataError: If the data cannot be used.
    """
    choose_device(config.device)
    prepared = prepare(load_data(config), config.data, config.data_seed)
    dataset = prepared.dataset
    rows, features = prepared.recorded.shape
    config = resolve(config, rows=rows, features=features, is_toy=dataset.toy is not None)
    if dataset.sha256 is not None:  # a file: its run must be found again from any folder
        source = str(Path(config.data.source).resolve())
        config = config.model_copy(update={"data": config.data.model_copy(update={"source": source})})
    flow = config.flow
    # Architecture and initial weights follow from the seed alone, wherever the process has been before.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        options = flow.model_dump(exclude={"name"})
        try:
            core = build(flow.name, features, dataset.context.shape[1], **options)
        except ValueError as error:
            raise ConfigError(f"flow: {error}") from None
    return Plan(config, prepared, core)


def fit(
    config: Config,
    *,
    out: Path | None = None,
    quiet: bool = False,
    watch: Watch = lambda fraction, nll: "",
    job_type: str = "fit",
) -> Fit:
    """Fit a density and leave a run folder.

    Args:
        config: What to fit and how, for instance from ``load_config``.
        out: Exactly this folder becomes the run; None makes one below ``runs/``.
        quiet: Show warnings and messages only.
        watch: Told how validation goes; what it answers ends the fit early and becomes its ``stop_reason``.
        job_type: What Weights & Biases calls this process.

    Returns:
        The fit; after a signal, what there was, with ``signum`` set.

    Raises:
        DataError: If the data cannot be used.
        ConfigError: If the device is not there.
        RunError: If the run folder cannot be made or written.
        DivergedError: If training does not stay finite.
    """
    with _client(config) as process:
        planned = plan(config)
        config, prepared, core = planned.config, planned.prepared, planned.flow
        label = f"{prepared.dataset.name}-{config.flow.name}"
        run = RunFolder.create(out, label=label)
        try:
            run.write_config(config)
            run.write_environment(config.seed, config.device)
            run.write_json("schema.json", schema_of(prepared))
            run.set_status("running", dataset=prepared.dataset.name, flow=config.flow.name)
            device = choose_device(config.device)
            trouble = kernel_trouble()  # before anything needs the kernels, which would warn by itself
            torch.manual_seed(config.seed)
            points = prepared.training_points(device)
            core = core.to(device)
            rows = torch.randperm(len(points), device=device)[:_INITIAL_ROWS]
            initialize_base(core, points.noised()[rows], None if points.context is None else points.context[rows])
            # The flow as it starts: what a resumed fit is built from, and what the result is compared with.
            save_flow(core, run.checkpoints / "start")
            state = start(core, settings(config.train))
            return _run(
                run, config, prepared, state, process, quiet=quiet, trouble=trouble, watch=watch, job_type=job_type
            )
        except BaseException:
            _mark_failed(run, prepared.dataset.name, config.flow.name)
            raise
        finally:
            run.release()


def resume(path: Path, overrides: tuple[str, ...] = (), *, quiet: bool = False, **options: Any) -> Fit:
    """Go on with a fit where its last checkpoint stands.

    Args:
        path: The run folder.
        overrides: ``key=value`` of ``train`` and ``wandb``, such as a larger budget; what shapes data or flow is fixed.
        quiet: Show warnings and messages only.
        **options: ``device`` and ``wandb``, None if not given.

    Raises:
        RunError: If it is not a run folder, or another process uses it.
        ConfigError: If an override would change the data or the flow.
        CheckpointError: If there is no checkpoint, or it is damaged.
        DataError: If the data cannot be used or are not those of the run.
    """
    run = RunFolder.open(path)
    before = load_config(files=[run.config])
    config = load_config(files=[run.config], overrides=overrides, **options)
    for group in ("data", "flow", "seed"):
        if getattr(config, group) != getattr(before, group):
            raise ConfigError(f"{group}: a resumed fit keeps its {group}; start a new fit to change it")
    run.claim()
    try:
        with _client(config) as process:
            prepared = prepare(load_data(config), config.data, config.data_seed)
            check_same_data(run.schema, run.path, prepared.dataset)
            rows, features = prepared.recorded.shape
            config = resolve(config, rows=rows, features=features, is_toy=prepared.dataset.toy is not None)
            device = choose_device(config.device)
            core = load_flow(run.checkpoints / "start", device=device)
            state = load_checkpoint(start(core.train(), settings(config.train)), run.checkpoints / "last.pt")
            run.write_config(config)
            run.set_status("running")
            try:
                return _run(run, config, prepared, state, process, quiet=quiet, resumed=True, trouble=kernel_trouble())
            except BaseException:
                _mark_failed(run, prepared.dataset.name, config.flow.name)
                raise
    finally:
        run.release()


def _run(
    run: RunFolder,
    config: Config,
    prepared: Prepared,
    state: State,
    process: WandbProcess,
    *,
    quiet: bool,
    resumed: bool = False,
    trouble: str = "",
    watch: Watch = lambda fraction, nll: "",
    job_type: str = "fit",
) -> Fit:
    """Train, keep the better of flow and Gaussian, score it, and write everything down."""
    dataset, told = prepared.dataset, settings(config.train)
    parameters = sum(p.numel() for p in state.flow.parameters())
    reserve = Reserve(run.path / ".reserve", 4 * parameters + 16 * len(prepared.test.rows) + _REPORT_BYTES)
    title = (
        f"{dataset.name}: {len(dataset.rows):,} rows x {dataset.rows.shape[1]} columns; "
        f"{config.flow.name}, {parameters:,} parameters; {_budget(config)}; run {run.path}"
    )
    progress = Progress(steps=told.steps, seconds=told.seconds, title=title, log=run.log, quiet=quiet)
    facts = {"features": dataset.rows.shape[1], "rows": len(dataset.rows), "parameters": parameters}
    tracking = Tracking.open(
        run,
        config,
        dataset=dataset.name,
        flow=config.flow.name,
        facts=facts,
        warn=progress.message,
        resume_step=state.progress.step if resumed else None,
        job_type=job_type,
        process=process,
    )
    recording = Recording(run, prepared, tracking, progress, state, watch)
    exit_code = 1
    try:
        for note in (*dataset.notes, prepared.ties, trouble and f"warning: {trouble}"):
            if note:
                progress.message(note)
        if resumed:
            progress.update(state.progress.step, state.progress.seconds)
        if resumed and progress.fraction == 1.0:
            progress.message(f"nothing is left of the budget ({_budget(config)}); give a larger one to train on")
        with StopOnSignal() as signals:

            def stop() -> str:
                return {2: "sigint", 15: "sigterm"}.get(signals.signum or 0, recording.unwanted)

            device = state.average[0].device
            try:
                with _threads_for(config, dataset.rows.shape[1]):
                    state = maximize_likelihood(
                        state,
                        prepared.training_points(device),
                        prepared.validation_points(device),
                        told,
                        log=recording.log,
                        checkpoint=recording.checkpoint,
                        stop=stop,
                        warn=recording.warn,
                    )
            except DivergedError as error:
                exit_code = 4
                reserve.release()
                status, text = {"dataset": dataset.name, "flow": config.flow.name}, f"{run.name}: {error}"
                recording.keep(lambda: run.set_status("diverged", **status))
                recording.keep(lambda: tracking.alert("fit diverged", text))
                raise
            progress.close()
            reserve.release()
            core, message = better_of_flow_and_gaussian(prepared, state)
            if message:
                progress.message(message)
            density = FittedDensity(prepared.in_data_units(core), dataset.schema, prepared.cells.tolist())
            density.save(run.model, extra={"dataset": dataset.name})
            recording.keep(lambda: forget_evaluation(run))  # of the model before, where the fit was resumed
            scores = score_prepared(prepared, density, seed=config.seed)
            results = results_of(run, config, prepared, state, density, scores, fell_back=bool(message))
            run.write_json("results.json", results)
            recording.keep(lambda: tracking.summary(summary_of(results)))
            run.set_status("stopped" if signals.signum else "finished", **status_facts(results))
            # From here on the run is whole; a signal or a full disk cuts short only what is said about it.
            recording.keep(lambda: write_row_scores(run, prepared.splits.test, scores.test))
            tracking.model(run.model, results)
            report: EvaluationReport | None = None
            if signals.signum is None and config.train.evaluate and len(prepared.test.rows):
                progress.message("evaluating: baselines, samples, pictures")

                def evaluate() -> None:
                    nonlocal report
                    evaluation = evaluate_fit(prepared, density, config, scores, state.progress.step)
                    report = evaluation.report
                    write_evaluation(
                        run, prepared, density, evaluation, tracking, recording.keep, stop, progress.message
                    )

                recording.attempt("no evaluation", evaluate)
            exit_code = 128 + signals.signum if signals.signum else 0
            return Fit(run, density, results, report, signals.signum, note=message)
    except KeyboardInterrupt:
        exit_code = 130
        recording.keep(lambda: run.set_status("stopped", dataset=dataset.name, flow=config.flow.name))
        raise
    except BaseException:
        _mark_failed(run, dataset.name, config.flow.name)  # before the page says how it is
        raise
    finally:
        reserve.release()
        recording.keep(tracking.flush)
        recording.attempt("no report", lambda: write_report(run))
        tracking.finish(exit_code)
        if tracking.location is not None:
            progress.message(f"W&B       {tracking.location}")
        progress.close()


def _client(config: Config) -> WandbProcess:
    """The process for Weights & Biases, which gets ready while the data are loaded."""
    return WandbProcess(start=wandb_mode(config.wandb.mode) != "off")


@contextlib.contextmanager
def _threads_for(config: Config, features: int) -> Iterator[None]:
    """One thread for products so small that a second one only waits, and spins where other programs are busy."""
    flow, rows = config.flow, config.train.batch_size
    assert flow.hidden != "auto"  # resolve has decided all three
    assert flow.bins != "auto"
    assert rows != "auto"
    multiplications = rows * flow.hidden * (4 * flow.hidden + 3 * flow.bins * features)
    before = torch.get_num_threads()
    if multiplications < 15_000_000:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _mark_failed(run: RunFolder, dataset: str, flow: str) -> None:
    """Say so in the run folder, unless it has said something more telling."""
    try:
        if run.status != "running":
            return
        run.set_status("failed", dataset=dataset, flow=flow)
    except RunError:
        return  # the folder cannot be written: that is what the first error says


def _budget(config: Config) -> str:
    parts = []
    if config.train.steps != "auto":
        parts.append(f"{config.train.steps:,} steps")
    if config.train.seconds != "auto":
        parts.append(f"{config.train.seconds:g} s")
    return " or ".join(parts)
