"""Fit a variational autoencoder to rows by a bound on the likelihood; rows may be whole numbers."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch

from pushforward.common.errors import ConfigError, DataError
from pushforward.config.schema import Config
from pushforward.datasets import Schema, write_table
from pushforward.datasets.tables.splits import evenly_spaced
from pushforward.datasets.targets.names import PREFIX
from pushforward.evaluate.density import FittedDensity
from pushforward.evaluate.likelihood import Nll, nll_from, with_error
from pushforward.evaluate.plots.autoencoder import latent_plane, reconstructions, sample_grid
from pushforward.evaluate.plots.corner import corner
from pushforward.evaluate.statistics import Array
from pushforward.experiment.data_source import accept_data, with_absolute_source
from pushforward.experiment.evaluation import forget_evaluation
from pushforward.experiment.recording import Watch
from pushforward.experiment.result import Fit
from pushforward.experiment.run_files import (
    dashboard_summary,
    schema_content,
    status_content,
)
from pushforward.experiment.session import Session, new_run, resumed_run, start_client
from pushforward.flows import Autoencoder, Flow, build_autoencoder, load_model, save as save_flow
from pushforward.flows.vae.autoencoder import SCORE_SAMPLES, Estimator
from pushforward.runs.folder import RunFolder
from pushforward.runs.row_scores import rows_fingerprint, write_row_scores
from pushforward.tracking.wandb.process import WandbProcess
from pushforward.train.checkpoint import load_checkpoint
from pushforward.train.data import Prepared, load_data, prepare
from pushforward.train.defaults import resolve, train_options
from pushforward.train.device import choose_device
from pushforward.train.maximize import start_autoencoder
from pushforward.train.objectives.bound import BOUNDS, MOST_VALIDATION_ROWS, BoundObjective
from pushforward.train.scaling import in_one
from pushforward.train.trainer import State

Numbers = npt.NDArray[np.intp]

_MOST_VALUES = 256  # columns of larger whole numbers are continuous
_SHOWN = 1_000

MOST_TEST_ROWS = 20_000
"""Most test rows whose bound is computed."""

ROWS_AT_A_TIME = 1_000
"""Rows scored between two checks for a signal."""


def is_autoencoder(config: Config) -> bool:
    """Whether rows are fitted by a bound on their likelihood; bounds for a target need no autoencoder."""
    return config.train.objective in BOUNDS and not config.data.source.startswith(PREFIX)


class AutoencoderFit(Fit):
    """The result of a fit of an autoencoder; its log-densities are importance-weighted bounds."""

    def lines(self) -> list[str]:
        """The result as lines of text."""
        results = self.results
        flows = f"prior {results['prior']}, posterior {results['posterior']}"
        out = [f"{results['decoder']} decoder, {results['latent']} latent features, {flows}"]
        if math.isnan(results["test_nll"]):
            out.append(f"validation NLL at most {results['val_nll']:.4f} nats; there are no test rows")
        else:
            bound = with_error(results["test_nll"], results["test_nll_se"], 4)
            out.append(f"test NLL at most {bound} nats, by {results['bound_samples']} latent samples a row")
        return out + self.closing_lines()


@dataclass(frozen=True)
class AutoencoderPlan:
    """A planned fit of an autoencoder: the resolved configuration, the data and the model."""

    config: Config
    prepared: Prepared
    model: Autoencoder

    @property
    def parameters(self) -> int:
        """Number of trainable parameters."""
        return sum(p.numel() for p in self.model.parameters())


def plan_autoencoder(config: Config) -> AutoencoderPlan:
    """Load the data and build the model, without fitting.

    Raises:
        ConfigError: If the device does not exist, the model cannot be built, or the bound has no such gradient.
        DataError: If the data cannot be used, or do not fit the decoder.
    """
    choose_device(config.device)
    _estimator(config)
    dataset = load_data(config)
    if dataset.context.shape[1]:
        raise ConfigError("data.given: an autoencoder is not conditioned on columns; leave data.given out")
    # No dequantization: decoders of whole numbers are discrete distributions.
    data = with_absolute_source(config.data, dataset).model_copy(update={"dequantize": "off"})
    prepared = prepare(dataset, data, config.data_seed)
    rows, features = prepared.recorded.shape
    config = resolve(config.model_copy(update={"data": data}), rows=rows, features=features, is_toy=False)
    decoder, values = _choose_decoder(config, prepared)
    latent = max(1, min(32, features // 2)) if config.vae.latent == "auto" else config.vae.latent
    updates: dict[str, Any] = {"vae": config.vae.model_copy(update={"latent": latent, "decoder": decoder})}
    config = config.model_copy(update=updates)
    flow = config.flow
    latent_flow = {"layers": 6 if config.vae.prior in ("realnvp", "maf", "iaf") else 2, "hidden": 64, "blocks": 1}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        try:
            model = build_autoencoder(
                decoder,
                features,
                latent=latent,
                values=values,
                prior=config.vae.prior,
                posterior=config.vae.posterior,
                hidden=cast(int, flow.hidden),
                blocks=cast(int, flow.blocks),
                dropout=cast(float, flow.dropout),
                standardize=in_one(prepared.standardize, prepared.tails),
                prior_options=None if config.vae.prior == "gaussian" else latent_flow,
                posterior_options=None if config.vae.posterior == "gaussian" else latent_flow | {"layers": 2},
            )
        except ValueError as error:
            raise ConfigError(f"vae: {error}") from None
    return AutoencoderPlan(config, prepared, model)


def fit_autoencoder_run(
    config: Config,
    *,
    out: Path | None = None,
    quiet: bool = False,
    watch: Watch = lambda fraction, nll: "",
    job_type: str = "fit",
) -> AutoencoderFit:
    """Fit an autoencoder and write a run folder; arguments and errors as those of ``fit``."""
    with start_client(config) as process:
        planned = plan_autoencoder(config)
        config, prepared = planned.config, planned.prepared
        name = prepared.dataset.name
        with new_run(config, out, name=name, flow="vae", schema=schema_content(prepared)) as run:
            torch.manual_seed(config.seed)
            model = planned.model.to(choose_device(config.device))
            save_flow(model, run.checkpoints / "start")
            state = start_autoencoder(model, train_options(config.train))
            return _run(run, config, prepared, state, process, quiet=quiet, watch=watch, job_type=job_type)


def resume_autoencoder(run: RunFolder, config: Config, command: str, *, quiet: bool = False) -> AutoencoderFit:
    """Resume a fit of an autoencoder; the caller has claimed the run, ``command`` is that of ``accept_data``."""
    with start_client(config) as process:
        planned = plan_autoencoder(config)
        config, prepared, moved = accept_data(run, planned.config, planned.prepared, command)
        model = load_model(run.checkpoints / "start", Autoencoder, device=choose_device(config.device))
        state = load_checkpoint(
            start_autoencoder(model.train(), train_options(config.train)), run.checkpoints / "last.pt"
        )
        with resumed_run(run, config, name=prepared.dataset.name, flow="vae"):
            return _run(run, config, prepared, state, process, moved=moved, quiet=quiet, resumed=True)


def _run(
    run: RunFolder,
    config: Config,
    prepared: Prepared,
    state: State,
    process: WandbProcess,
    *,
    moved: str = "",
    **options: Any,
) -> AutoencoderFit:
    dataset, device = prepared.dataset, state.average[0].device
    train_rows, validation_rows = (
        torch.as_tensor(part, dtype=torch.float32, device=device)
        for part in (prepared.recorded, prepared.dataset.rows[prepared.splits.validation])
    )
    train = config.train
    assert train.batch_size != "auto"  # resolve has decided it
    objective = BoundObjective(
        train_rows,
        validation_rows,
        train.batch_size,
        state.progress.step,
        bound="elbo" if train.objective == "elbo" else "iwae",
        samples=1 if train.objective == "elbo" else train.importance_samples,
        estimator=_estimator(config),
        seed=config.seed,
    )
    session = Session(
        run,
        config,
        state,
        process,
        name=dataset.name,
        flow="vae",
        size=f"{len(dataset.rows):,} rows x {dataset.rows.shape[1]} columns; {config.vae.decoder} decoder",
        facts={"features": dataset.rows.shape[1], "rows": len(dataset.rows)},
        rows_scored=min(len(prepared.test.rows), MOST_TEST_ROWS),
        **options,
    )
    with session:
        for note in (*prepared.notes, *filter(None, [moved])):
            session.progress.message(note)
        state = session.train(objective)
        model = cast(Autoencoder, state.flow).cpu().eval()
        density = FittedDensity(cast(Flow, model), dataset.schema, [0.0] * dataset.rows.shape[1])
        density.save(run.model, extra={"dataset": dataset.name})
        session.write_safely(lambda: forget_evaluation(run))  # of the previous model, if the fit was resumed
        splits, stop = prepared.splits, session.stop_reason
        numbers, test_scores = score_rows(density, prepared, splits.test, MOST_TEST_ROWS, stop)
        _, validation_scores = score_rows(
            density, prepared, prepared.splits.validation, MOST_VALIDATION_ROWS, session.stop_reason
        )
        validation = nll_from(validation_scores)
        test = nll_from(test_scores) if len(numbers) else Nll(math.nan, math.nan, 0)
        results: dict[str, Any] = {
            "run": str(run.path),
            "dataset": dataset.name,
            "flow": "vae",
            "objective": train.objective,
            **{key: getattr(config.vae, key) for key in ("latent", "decoder", "prior", "posterior")},
            "features": dataset.rows.shape[1],
            "rows": len(dataset.rows),
            "parameters": session.parameters,
            "steps": state.progress.step,
            "seconds": round(state.progress.seconds, 3),
            "stop_reason": state.progress.stop_reason,
            "bound_samples": SCORE_SAMPLES,
            "train_nll": None,
            "val_nll": validation.nll,
            "test_nll": test.nll,
            "test_nll_se": test.se,
            "test_nll_standardized": None,  # undefined for whole numbers, which have probabilities
            "validation_rows_scored": len(validation_scores),
            "test_rows_scored": len(numbers),
            "test_rows_sha256": rows_fingerprint(dataset.schema.names, dataset.rows[numbers]) if len(numbers) else None,
        }
        run.write_json("results.json", results)
        session.write_safely(lambda: session.tracking.summary(dashboard_summary(results)))
        session.mark_finished(status_content(results))
        session.write_safely(lambda: write_row_scores(run, dataset.in_file(numbers), test_scores))
        session.tracking.model(run.model, results)
        if session.signum is None and train.evaluate and len(prepared.test.rows):
            session.progress.message("evaluating: pictures, samples")
            session.recorder.run_safely(
                "no evaluation", partial(_write_pictures, session, model, density, prepared, state.progress.step)
            )
        return AutoencoderFit(run, density, results, None, session.signum)


def _estimator(config: Config) -> Estimator:
    """The gradient estimator of the bound that ``train.gradient`` means.

    Raises:
        ConfigError: If the bound has none of that name.
    """
    gradient = config.train.gradient
    if gradient == "path-wise":
        return gradient
    if gradient not in ("auto", "path"):
        raise ConfigError(f"train.gradient: expected auto, path or path-wise for an autoencoder; got {gradient}")
    return "path" if config.train.objective == "elbo" else "dreg"


def score_rows(
    density: FittedDensity, prepared: Prepared, numbers: Numbers, most: int, stop: Callable[[], str]
) -> tuple[Numbers, Array]:
    """Compute log-density bounds of some rows of the data set, evenly spaced, and return them with the row numbers.

    Args:
        density: The fitted autoencoder.
        prepared: The data.
        numbers: Row numbers to choose from.
        most: Most rows to score.
        stop: Returns a reason to stop after the pieces scored so far, or an empty string. A piece has
            ``ROWS_AT_A_TIME`` rows, evenly spaced over all rows.
    """
    numbers = numbers[evenly_spaced(len(numbers), most)]
    pieces = math.ceil(len(numbers) / ROWS_AT_A_TIME)
    scores = np.full(len(numbers), np.nan)
    scored = np.zeros(len(numbers), dtype=bool)
    for first in range(pieces):
        piece = slice(first, None, pieces)
        scores[piece], scored[piece] = density.log_prob(prepared.dataset.rows[numbers[piece]]), True
        if stop():
            break
    return numbers[scored], scores[scored]


def _write_pictures(
    session: Session, model: Autoencoder, density: FittedDensity, prepared: Prepared, step: int
) -> None:
    run, schema = session.run, density.schema
    numbers = prepared.splits.test
    rows = torch.from_numpy(prepared.dataset.rows[numbers[evenly_spaced(len(numbers), _SHOWN)]])
    drawn = density.sample(_SHOWN, seed=session.config.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(session.config.seed)
        prior = model.prior.sample(_SHOWN)
    captions = {"latent-plane": "Latents of test rows among samples of the prior"}
    latent_plane(model.encode(rows), run.pictures / "latent-plane.png", prior=prior)
    pixels = _pixels(schema)
    if pixels is None:
        captions["corner"] = "Samples against test rows, pairs of columns"
        corner(drawn, rows.numpy(), schema.names, run.pictures / "corner.png")
    else:
        shape, positions = pixels
        captions |= {"reconstructions": "Test rows above their reconstructions", "samples": "Samples of the model"}
        expected = model.reconstruct(rows[:40]).numpy()
        reconstructions(
            _images(rows[:40].numpy(), shape, positions),
            _images(expected, shape, positions),
            run.pictures / "reconstructions.png",
            shape=shape,
        )
        sample_grid(_images(drawn, shape, positions), run.pictures / "samples.png", shape=shape)
    for key, caption in captions.items():
        image = session.tracking.image
        session.write_safely(partial(image, f"pictures/{key}", run.pictures / f"{key}.png", caption, step))
    session.write_safely(lambda: write_table(run.samples / "samples.csv", drawn, np.empty((len(drawn), 0)), schema))


def _choose_decoder(config: Config, prepared: Prepared) -> tuple[str, int | None]:
    """Choose the decoder, and the number of values if it is one of whole numbers.

    Raises:
        DataError: If the rows do not fit the configured decoder.
    """
    rows, given = prepared.dataset.rows, config.vae.decoder
    whole = bool((rows == np.round(rows)).all()) and float(rows.min()) >= 0 and float(rows.max()) < _MOST_VALUES
    binary = whole and float(rows.max()) <= 1
    values = int(rows.max()) + 1 if whole else 0
    decoder = given if given != "auto" else "bernoulli" if binary else "logistic" if whole else "gaussian"
    if decoder in ("categorical", "logistic") and not whole:
        raise DataError(
            f"{prepared.dataset.name}: vae.decoder={decoder} is for whole numbers from 0 to {_MOST_VALUES - 1}, and "
            f"the table has others ({rows.min():g} to {rows.max():g}); take vae.decoder=gaussian"
        )
    if decoder == "bernoulli" and not binary:
        raise DataError(
            f"{prepared.dataset.name}: vae.decoder=bernoulli is for 0 and 1, and the table has others "
            f"({rows.min():g} to {rows.max():g}); take vae.decoder={'logistic' if whole else 'gaussian'}"
        )
    return decoder, values if decoder in ("categorical", "logistic") else None


def _pixels(schema: Schema) -> tuple[tuple[int, int], Array] | None:
    """Height and width of images with pixels in columns ``pixel_ROW_COLUMN``, and the position of each column."""
    found = [re.fullmatch(r"pixel_(\d+)_(\d+)", name) for name in schema.names]
    if not all(found):
        return None
    positions = np.array([[int(match[1]), int(match[2])] for match in found if match])
    shape = int(positions[:, 0].max()) + 1, int(positions[:, 1].max()) + 1
    return shape, positions[:, 0] * shape[1] + positions[:, 1]


def _images(rows: Array, shape: tuple[int, int], positions: Array) -> Array:
    """Rows as flattened images; pixels that are not columns, because they were constant, are 0."""
    images = np.zeros((len(rows), shape[0] * shape[1]))
    images[:, positions] = rows
    return images
