"""Fit a variational autoencoder to rows by a bound on the likelihood; rows may be whole numbers."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from pushforward.common.errors import ConfigError, DataError
from pushforward.datasets import Dataset, Schema
from pushforward.datasets.tables.memory.fingerprint import rows_fingerprint
from pushforward.datasets.tables.splits import evenly_spaced
from pushforward.evaluate.density import FittedDensity
from pushforward.evaluate.likelihood import Nll, nll_from
from pushforward.evaluate.plots.autoencoder import latent_plane, reconstructions, sample_grid
from pushforward.evaluate.plots.corner import corner
from pushforward.flows import Autoencoder, Flow, build_autoencoder
from pushforward.flows.random_state import RandomState, seeded
from pushforward.flows.vae.autoencoder import SCORE_SAMPLES
from pushforward.train.callbacks import Callback
from pushforward.train.data import Prepared, load_data, prepare
from pushforward.train.defaults import LARGE, SMALL, Asked, data_options, objective_options, resolve
from pushforward.train.objectives.bound import MOST_VALIDATION_ROWS, BoundObjective, bound_estimator
from pushforward.train.objectives.registry import find_objective
from pushforward.train.options import Options, VaeOptions
from pushforward.train.problems.base import (
    Array,
    Evaluation,
    Figure,
    Fitted,
    Headline,
    Notify,
    Numbers,
    Problem,
    Scores,
)
from pushforward.train.problems.rows import with_absolute_source
from pushforward.train.scaling import in_one
from pushforward.train.state import State, start

_MOST_VALUES = 256  # columns of larger whole numbers are continuous
_SHOWN = 1_000

MOST_TEST_ROWS = 20_000
"""Most test rows whose bound is computed."""

ROWS_AT_A_TIME = 1_000
"""Rows scored between two checks for a signal."""


class AutoencoderProblem(Problem):
    """A variational autoencoder of rows; its log-densities are importance-weighted bounds.

    Args:
        options: The resolved options.
        prepared: The rows, split and standardised.
        values: Number of values of a decoder of whole numbers; None for other decoders.
    """

    kind = "autoencoder"
    words = "an autoencoder (train.objective=elbo or iwae)"
    keys = ("data", "vae", "flow.hidden", "flow.blocks", "flow.dropout", "train")
    sections = ("likelihood", "model", "training", "pictures", "calibration", "rows", "data")
    pictures = ("latent-plane", "corner", "reconstructions", "samples")
    _is_own = True

    def __init__(self, options: Options, prepared: Prepared, vae: VaeOptions, values: int | None) -> None:
        dataset = prepared.dataset
        self.options, self.prepared, self.vae, self.values = options, prepared, vae, values
        # Decoders of whole numbers are discrete, so repeated values overstate nothing.
        self.name, self.notes = dataset.name, (*dataset.notes, *filter(None, [prepared.heavy_tails]))
        self.size = f"{len(dataset.rows):,} rows x {dataset.rows.shape[1]} columns; {vae.decoder} decoder"
        self.facts = {"features": dataset.rows.shape[1], "rows": len(dataset.rows), "latent": vae.latent}
        self.scored = min(len(prepared.test.rows), MOST_TEST_ROWS)
        self._test = dataset.rows[prepared.splits.test]

    @classmethod
    def plan(cls, asked: Asked, data: Dataset | None = None, **more: Any) -> "AutoencoderProblem":
        objective = objective_options(asked["train"])
        kind = find_objective(cls.kind, objective.name)
        if issubclass(kind, BoundObjective):
            bound_estimator(kind.bound, objective.gradient)
        given = data_options(asked)
        dataset = load_data(given) if data is None else data
        if dataset.weights is not None:
            raise ConfigError("data.weight: an autoencoder does not know weights of rows; leave data.weight out")
        if dataset.context.shape[1]:
            raise ConfigError("data.given: an autoencoder is not conditioned on columns; leave data.given out")
        # No dequantization: decoders of whole numbers are discrete distributions.
        given = replace(with_absolute_source(given, dataset), dequantize=False)
        prepared = prepare(dataset, given)
        rows, features = prepared.recorded.shape
        options = resolve(asked, rows=rows, features=features, is_toy=False)
        if asked["train"]["weight_decay"] == "auto":  # measured for these networks
            options = options.replace(train={"weight_decay": 1e-2 if rows < SMALL else 1e-3 if rows < LARGE else 0.0})
        keys = asked["vae"]
        decoder, values = _choose_decoder(keys["decoder"], prepared)
        latent = max(1, min(32, features // 2)) if keys["latent"] == "auto" else keys["latent"]
        vae = VaeOptions(latent=latent, decoder=decoder, prior=keys["prior"], posterior=keys["posterior"])
        return cls(options.replace(data=given, vae=vae), prepared, vae, values)

    @property
    def features(self) -> int:
        return int(self.prepared.recorded.shape[1])

    @property
    def training_rows(self) -> int | None:
        return len(self.prepared.recorded)

    @property
    def flow_name(self) -> str:
        return "vae"

    @property
    def plan_facts(self) -> dict[str, Any]:
        return {"features": self.features, "latent": self.vae.latent}

    @property
    def can_evaluate(self) -> bool:
        return len(self._test) > 0

    def schema(self) -> dict[str, Any]:
        return self.prepared.schema()

    def build(self) -> nn.Module:
        flow, vae = self.options.flow, self.vae
        latent_flow = {"layers": 6 if vae.prior in ("realnvp", "maf", "iaf") else 2, "hidden": 64, "blocks": 1}
        with seeded(self.options.seed):
            try:
                return build_autoencoder(
                    vae.decoder,
                    self.features,
                    latent=vae.latent,
                    values=self.values,
                    prior=vae.prior,
                    posterior=vae.posterior,
                    hidden=flow.hidden,
                    blocks=flow.blocks,
                    dropout=flow.dropout,
                    standardize=in_one(self.prepared.standardize, self.prepared.tails),
                    prior_options=None if vae.prior == "gaussian" else latent_flow,
                    posterior_options=None if vae.posterior == "gaussian" else latent_flow | {"layers": 2},
                )
            except ValueError as error:
                raise ConfigError(f"vae: {error}") from None

    def start(self, device: torch.device, callbacks: Sequence[Callback] = ()) -> State:
        return start(self.build().to(device), self.options.train, random=RandomState(self.options.seed, device))

    def finish(self, state: State) -> Fitted:
        model = cast(Flow, state.flow.cpu().eval())
        dataset = self.prepared.dataset
        density = FittedDensity(model, dataset.schema, [0.0] * self.features, dataset.kind)
        return Fitted(density, self.flow_name, "", state)

    def score(self, density: FittedDensity, stop: Callable[[], str] = lambda: "") -> Scores:
        dataset, splits = self.prepared.dataset, self.prepared.splits
        numbers, log_probs = score_rows(density, self._test, MOST_TEST_ROWS, stop)
        _, validation_scores = score_rows(density, dataset.rows[splits.validation], MOST_VALIDATION_ROWS, stop)
        test = nll_from(log_probs) if len(numbers) else Nll(math.nan, math.nan, 0)
        validation_nll = nll_from(validation_scores).nll
        names = dataset.schema.names
        results = {
            "objective": self.options.objective.name,
            **vars(self.vae),
            "bound_samples": SCORE_SAMPLES,
            "train_nll": None,
            "val_nll": validation_nll,
            "test_nll": test.nll,
            "test_nll_se": test.se,
            "test_nll_standardized": None,  # undefined for whole numbers, which have probabilities
            "is_bound": True,
            "validation_rows_scored": len(validation_scores),
            "test_rows_scored": len(numbers),
            "test_rows_sha256": rows_fingerprint(names, self._test[numbers]) if len(numbers) else None,
        }
        note = f", by {SCORE_SAMPLES} latent samples a row"
        headline = [Headline("test NLL at most", test.nll, test.se, note=note)]
        if not len(numbers):
            headline = [Headline("validation NLL at most", validation_nll, note="; there are no test rows")]
        rows = dataset.in_file(splits.test[numbers]) if self._is_own else numbers
        return Scores(results, headline, rows, log_probs)

    def evaluate(self, density: FittedDensity, scores: Scores, notify: Notify = lambda text: None) -> Evaluation:
        model, schema, seed = cast(Autoencoder, density.model), density.schema, self.options.seed
        rows = torch.from_numpy(self._test[evenly_spaced(len(self._test), _SHOWN)])
        drawn = density.draw(_SHOWN, seed=seed)
        with seeded(seed):
            prior = model.prior.sample(_SHOWN)
        figures = [
            Figure(
                "latent-plane",
                "Latents of test rows among samples of the prior",
                lambda path: latent_plane(model.encode(rows), path, prior=prior),
            )
        ]
        pixels = _pixels(schema)
        if pixels is None:
            caption = "Samples against test rows, pairs of columns"
            figures.append(Figure("corner", caption, lambda path: corner(drawn, rows.numpy(), schema.names, path)))
        else:
            shape, positions = pixels

            def draw_reconstructions(path: Path) -> None:
                expected = model.reconstruct(rows[:40]).numpy()
                images = _images(rows[:40].numpy(), shape, positions)
                reconstructions(images, _images(expected, shape, positions), path, shape=shape)

            caption = "Test rows above their reconstructions"
            figures.append(Figure("reconstructions", caption, draw_reconstructions))
            figures.append(
                Figure(
                    "samples",
                    "Samples of the model",
                    lambda path: sample_grid(_images(drawn, shape, positions), path, shape=shape),
                )
            )
        return Evaluation({}, [], figures, (drawn, np.empty((len(drawn), 0))))

    def on_rows(
        self, rows: Array, context: Array, schema: Schema, name: str, weights: Array | None = None
    ) -> "AutoencoderProblem":
        other = AutoencoderProblem(self.options, self.prepared, self.vae, self.values)
        other._test, other._is_own = rows, False
        return other

    def lines(self, scores: Scores, evaluation: Evaluation | None) -> list[str]:
        vae = self.vae
        flows = f"prior {vae.prior}, posterior {vae.posterior}"
        model = f"{vae.decoder} decoder, {vae.latent} latent features, {flows}"
        return [model, *super().lines(scores, None)]


def score_rows(
    density: FittedDensity, rows: Array, most: int, stop: Callable[[], str] = lambda: ""
) -> tuple[Numbers, Array]:
    """Compute log-density bounds of some rows, evenly spaced, and return them with the row numbers.

    Args:
        density: The fitted autoencoder.
        rows: Rows to choose from ``(n, D)``.
        most: Most rows to score.
        stop: Returns a reason to stop after the pieces scored so far, or an empty string. A piece has
            ``ROWS_AT_A_TIME`` rows, evenly spaced over all rows.
    """
    numbers = evenly_spaced(len(rows), most)
    pieces = math.ceil(len(numbers) / ROWS_AT_A_TIME)
    scores = np.full(len(numbers), np.nan)
    scored = np.zeros(len(numbers), dtype=bool)
    for first in range(pieces):
        piece = slice(first, None, pieces)
        scores[piece], scored[piece] = density.log_prob(rows[numbers[piece]]), True
        if stop():
            break
    return numbers[scored], scores[scored]


def _choose_decoder(given: str, prepared: Prepared) -> tuple[str, int | None]:
    """Choose the decoder, and the number of values if it is one of whole numbers.

    Raises:
        DataError: If the rows do not fit the configured decoder.
    """
    rows = prepared.dataset.rows
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
