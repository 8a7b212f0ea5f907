"""Fit a density to rows: of a table, of a toy, or in memory."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from pushforward.common.errors import ConfigError
from pushforward.common.text import listed, shorten
from pushforward.datasets import Dataset, Dequantizer, Schema
from pushforward.datasets.tables.files.local_file import STDIN
from pushforward.datasets.tables.memory.fingerprint import rows_fingerprint
from pushforward.evaluate.calibration import Calibration
from pushforward.evaluate.density import FittedDensity
from pushforward.evaluate.evaluation import SplitRows, SplitScores, evaluate_flow, score_split
from pushforward.evaluate.extremes import ScoredRow, extreme_rows
from pushforward.evaluate.likelihood import kl_to_truth, log_prob, nll_from
from pushforward.evaluate.regression import regression_report
from pushforward.evaluate.sampling import draw_samples, latents
from pushforward.flows import Model
from pushforward.flows.random_state import seeded
from pushforward.flows.registries import FLOWS
from pushforward.train.architecture import build_model, describe, embedded_width, sizes_of
from pushforward.train.callbacks import Callback
from pushforward.train.data import Prepared, SplitPart, load_data, prepare
from pushforward.train.defaults import Asked, data_options, is_open, resolve
from pushforward.train.gaussian import better_of_flow_and_gaussian
from pushforward.train.objectives.registry import find_objective, objective_names
from pushforward.train.options import DataOptions, Options
from pushforward.train.problems.base import Array, Chart, Evaluation, Figure, Fitted, Headline, Notify, Problem, Scores
from pushforward.train.selection import select_model, start_rows
from pushforward.train.stacking import FLOW, stack
from pushforward.train.state import State

_SAMPLES = 10_000
_PROGRESS_SAMPLES, _PROGRESS_COLUMNS = 2_000, 4
_BASELINE_SECONDS = 20.0
_OWN = "test rows"
_DRAWS = 200
_MOST_RESPONSES = 10


class RowsProblem(Problem):
    """A density of rows, or of some of their columns given others.

    Args:
        options: The resolved options.
        prepared: The rows, split and standardised.
        asked: The keys as they were asked for, if the fit selects the model itself; else None.
        embedding: A module that the context goes through first, standardised; each flow has a copy.
    """

    kind = "rows"
    words = "rows"
    keys = ("data", "flow", "train")
    sections = ("likelihood", "regression", "model", "training", "pictures", "samples", "calibration", "rows", "data")
    charts = (
        Chart("KL from the truth (toys)", ("kl_to_truth",), is_final=True),
        Chart("CRPS (regression)", ("regression/crps",), is_final=True),
        Chart("CDE loss (regression)", ("regression/cde_loss",), is_final=True),
        Chart("Share of values in 90 % intervals (regression)", ("regression/within_0.9",), is_final=True),
    )
    pictures = ("density", "corner", "latent", "quantiles", "pit")
    evaluated = _OWN

    def __init__(
        self,
        options: Options,
        prepared: Prepared,
        asked: Asked | None = None,
        embedding: nn.Module | None = None,
    ) -> None:
        dataset = prepared.dataset
        self.options, self.prepared, self.asked, self.embedding = options, prepared, asked, embedding
        self.name, self.notes = dataset.name, prepared.notes
        self.size = f"{len(dataset.rows):,} rows x {dataset.rows.shape[1]} columns"
        self.facts = {"features": dataset.rows.shape[1], "rows": len(dataset.rows)}
        self.scored = len(prepared.test.rows)

    @classmethod
    def plan(
        cls, asked: Asked, data: Dataset | None = None, *, embedding: nn.Module | None = None, **more: Any
    ) -> "RowsProblem":
        objective = asked["train"]["objective"]
        if objective not in ("auto", *objective_names(cls.kind)):
            raise ConfigError(
                f"train.objective: {objective} needs a target, as in pushforward fit target:many-well; "
                f"rows are fitted by one of {', '.join(objective_names(cls.kind))}"
            )
        given = data_options(asked)
        dataset = load_data(given) if data is None else data
        prepared = prepare(dataset, given)
        rows, features = prepared.recorded.shape
        is_toy = dataset.toy is not None
        if dataset.context.shape[1]:
            if asked["flow"]["stacking"] is True:
                raise ConfigError("flow.stacking: averages densities of rows; with data.given they are conditional")
            asked = dict(asked) | {"flow": dict(asked["flow"]) | {"stacking": False}}
        flow = asked["flow"]["name"]
        default = "mle" if flow == "auto" else FLOWS[flow].objective or "mle"
        options = resolve(asked, rows=rows, features=features, is_toy=is_toy, objective=default)
        options = options.replace(data=with_absolute_source(options.data, dataset))
        _check_objective(cls.kind, options, weighted=dataset.weights is not None)
        if embedding is not None:
            if not dataset.context.shape[1]:
                raise ConfigError("embedding: expected columns or rows in given, which it embeds; got none")
            embedded_width(embedding, dataset.context.shape[1])
        return cls(options, prepared, asked if is_open(asked, is_toy=is_toy) else None, embedding)

    @property
    def features(self) -> int:
        return int(self.prepared.recorded.shape[1])

    @property
    def training_rows(self) -> int | None:
        return None if self.prepared.dataset.toy is not None else len(self.prepared.recorded)

    def validation_log_probs(self, density: FittedDensity) -> Array | None:
        rows = self.prepared.validation
        return log_prob(density.model, rows.rows, rows.context).numpy()

    @property
    def is_open(self) -> bool:
        return self.asked is not None

    @property
    def can_evaluate(self) -> bool:
        return len(self.prepared.test.rows) > 0

    @property
    def flow_name(self) -> str:
        return "auto" if self.is_open else self.options.flow.name

    @property
    def plan_facts(self) -> dict[str, Any]:
        parts = {name: len(getattr(self.prepared.splits, name)) for name in ("train", "validation", "test")}
        return {"features": self.features, "context": self.prepared.dataset.context.shape[1], **parts}

    @property
    def description(self) -> str:
        return describe(self.options.flow)

    def schema(self) -> dict[str, Any]:
        return self.prepared.schema()

    def build(self) -> nn.Module:
        sizes, seed = sizes_of(self.prepared), self.options.seed
        model = build_model(self.options.flow, *sizes, seed=seed, embedding=self.embedding)
        return self.prepared.with_tails(model)

    def start(self, device: torch.device, callbacks: Sequence[Callback] = ()) -> State:
        if self.asked is None:
            return start_rows(self.prepared, self.options, device, self.embedding)
        self.selection = select_model(
            self.prepared,
            self.asked,
            device,
            callbacks=callbacks,
            embedding=self.embedding,
            folder=self.selection_folder,
        )
        self.options, self.asked = self.selection.options.replace(data=self.options.data), None
        return self.selection.state

    def progress_figure(self, model: nn.Module) -> Figure | None:
        if self.prepared.train.context is not None:
            return None
        return Figure("progress", "", partial(_draw_progress, self.prepared, cast(Model, model)))

    def finish(self, state: State) -> Fitted:
        prepared = self.prepared
        # The noise of dequantized rows must not depend on the steps: a resumed fit that finds nothing better would
        # change the model.
        with seeded(self.options.seed):
            model, name, note = self._final_model(state)
        dataset, widths = prepared.dataset, prepared.bin_widths.tolist()
        density = FittedDensity(
            prepared.in_data_units(model), dataset.schema, widths, dataset.kind, given_apart=dataset.given_apart
        )
        return Fitted(density, name, note, state)

    def score(self, density: FittedDensity, stop: Callable[[], str] = lambda: "") -> Scores:
        prepared, dataset = self.prepared, self.prepared.dataset
        test = prepared.test
        rows, seed = _split_rows(prepared), self.options.seed
        scores = score_split(density.model, rows, seed=seed)
        train_nll, validation_nll, test_nll = rows.nlls(scores, seed)
        numbers: dict[str, Any] = {
            "train_nll": train_nll.nll,
            "val_nll": validation_nll.nll,
            "test_nll": test_nll.nll,
            "test_nll_se": test_nll.se,
            "test_nll_standardized": test_nll.nll + prepared.standardize.log_det,
            "test_rows_sha256": rows_fingerprint(dataset.schema.names, test.rows) if len(test.rows) else None,
        }
        headline = [Headline("test NLL", test_nll.nll, test_nll.se)]
        if not len(test.rows):
            headline = [Headline("validation NLL", validation_nll.nll, note="; there are no test rows")]
        if prepared.repeats is not None and 0 < prepared.repeats.test.sum() < len(test.rows):
            is_new = ~prepared.repeats.test
            new = nll_from(scores.test[is_new], None if test.weights is None else test.weights[is_new])
            numbers |= {"test_rows_new": new.rows, "test_nll_new": new.nll, "test_nll_new_se": new.se}
            note = f" on the {new.rows:,} test rows that are not copies"
            headline.append(Headline("new rows  NLL", new.nll, new.se, note=note))
        if dataset.toy is not None and len(test.rows):
            kl, se = kl_to_truth(dataset.toy.log_prob(test.rows), scores.test)
            numbers |= {"kl_to_truth": kl, "kl_to_truth_se": se}
        own = self.evaluated == _OWN
        places = dataset.in_file(prepared.splits.test) if own else np.arange(len(test.rows))
        return Scores(numbers, headline, places, scores.test, weights=test.weights, details=scores)

    def evaluate(self, density: FittedDensity, scores: Scores, notify: Notify = lambda text: None) -> Evaluation:
        prepared, dataset, seed = self.prepared, self.prepared.dataset, self.options.seed
        toy, test, split_scores = dataset.toy, prepared.test, cast(SplitScores, scores.details)
        split_rows = _split_rows(prepared)
        compared = split_rows.by_weight(seed)
        context = None if compared.contexts is None else compared.contexts[2]
        # Drawn once: numbers, figures and samples.csv use the same samples.
        drawn = density.draw(_SAMPLES if context is None else len(context), context, seed=seed)
        own = self.evaluated == _OWN
        report = evaluate_flow(
            density.model,
            split_rows,
            columns=dataset.schema.names,
            standardize_log_det=-prepared.standardize.log_det,
            true_log_prob=None if toy is None else toy.log_prob,
            seed=seed,
            baseline_seconds=_BASELINE_SECONDS,
            samples=drawn,
            scores=split_scores,
            evaluated=self.evaluated,
            notify=notify,
        )
        summary = {f"gain/{name}": gain for name, (gain, _) in report.gains.items()}
        extremes = None
        if own:
            places = prepared.splits.test
            rows = np.concatenate([dataset.rows[places], dataset.context[places]], axis=1)
            names = (*dataset.schema.names, *dataset.schema.context_names)
            extremes = extreme_rows(split_scores.test, rows, scores.rows, names)
        numbers, lines = report.to_dict(), report.lines()
        if extremes is not None:
            numbers["extreme_rows"] = extremes.to_dict()
        if test.context is not None and self.features <= _MOST_RESPONSES:
            notify("evaluating: intervals")
            names = dataset.schema.names
            regression = regression_report(
                density.model, test.rows, test.context, names, weights=test.weights, draws=_DRAWS, seed=seed
            )
            numbers["regression"] = regression.to_dict()
            summary |= {f"regression/{name}": value for name, value in regression.summary().items()}
            given = ", ".join(dataset.schema.context_names)
            lines += [
                "",
                f"{', '.join(names)} given {shorten(given, 60)}",
                *(f"  {line}" for line in regression.lines()),
            ]
        return Evaluation(
            numbers=numbers,
            lines=lines,
            figures=self._figures(density, drawn, compared.test, context, report.calibration),
            samples=self._shown_samples(density, drawn, context),
            table=None if extremes is None else _as_table(extremes.worst),
            references={f"baseline/{b.name}": b.validation_nll for b in report.baselines},
            summary=summary,
            baselines={baseline.label: baseline.validation_nll for baseline in report.baselines},
        )

    def on_rows(
        self, rows: Array, context: Array, schema: Schema, name: str, weights: Array | None = None
    ) -> "RowsProblem":
        dequantized = Dequantizer(self.prepared.bin_widths).fixed(rows)
        if self.prepared.train.weights is None:
            weights = None
        elif weights is None:
            weights = np.ones(len(rows))
        test = SplitPart(dequantized, context if self.prepared.train.context is not None else None, weights)
        # The rows of a table do not come from the toy's distribution, even if the run was fitted to a toy.
        dataset = replace(self.prepared.dataset, toy=None)
        other = RowsProblem(self.options, replace(self.prepared, test=test, dataset=dataset, repeats=None), self.asked)
        other.evaluated = name
        return other

    def _final_model(self, state: State) -> tuple[Model, str, str]:
        """The final model, its name, and one line on why it is not the flow alone, empty if it is."""
        prepared, name = self.prepared, describe(self.options.flow)
        if not find_objective(self.kind, self.options.objective.name).is_likelihood:
            return state.flow.cpu().eval(), name, ""
        if self.options.flow.stacking:
            model, weights = stack(prepared, state.flow)
            if list(weights) == [FLOW]:
                return model, name, ""
            shares = ", ".join(f"{part} {weight:.2f}" for part, weight in weights.items())
            stacked = f"{name}, stacked" if FLOW in weights else " and ".join(weights).lower()
            return model, stacked, f"stacked   by validation likelihood: {shares}"
        model, message = better_of_flow_and_gaussian(prepared, state)
        return model, "gaussian" if message else name, message

    def _figures(
        self, density: FittedDensity, drawn: Array, rows: Array, context: Array | None, calibration: Calibration | None
    ) -> list[Figure]:
        # matplotlib takes half a second to import.
        from pushforward.evaluate.plots.calibration import pit, quantiles
        from pushforward.evaluate.plots.corner import corner
        from pushforward.evaluate.plots.density import density_2d, latent

        dataset = self.prepared.dataset
        flow, names = density.model, dataset.schema.names
        if context is None:
            drawn = drawn[: max(1_000, len(rows))]
        if len(names) == 2 and context is None:
            truth = None if dataset.toy is None else dataset.toy.log_prob
            figures = [
                Figure(
                    "density",
                    "Fitted density and samples of the flow",
                    lambda path: density_2d(flow, drawn, rows, truth, path, columns=names),
                )
            ]
        else:
            caption = "Samples of the flow against test rows, every pair of columns"
            figures = [Figure("corner", caption, lambda path: corner(drawn, rows, names, path))]
        if len(rows) > 1:
            seen = None if context is None else context[:_SAMPLES]
            caption = "Test rows in latent space, against N(0, 1)"
            figures.append(Figure("latent", caption, lambda path: latent(latents(flow, rows[:_SAMPLES], seen), path)))
        if calibration is not None:
            caption = "Quantiles of samples against those of test rows, column by column"
            figures.append(Figure("quantiles", caption, partial(quantiles, calibration)))
            caption = "Probability integral transform of test rows: uniform for a perfect fit"
            figures.append(Figure("pit", caption, partial(pit, calibration)))
        return figures

    def _shown_samples(self, density: FittedDensity, drawn: Array, context: Array | None) -> tuple[Array, Array]:
        """The samples of the evaluation, or as many with the contexts of the test rows in turn, and their context."""
        n = min(_SAMPLES, len(self.prepared.dataset.rows))
        if context is None:
            return drawn[:n], np.empty((n, 0))
        shown: Array = context[np.arange(n) % len(context)]
        return density.draw(n, shown, seed=self.options.seed), shown


def with_absolute_source(data: DataOptions, dataset: Dataset) -> DataOptions:
    """Replace the path of a file by its absolute path, so that a run can be resumed from any folder.

    The source of rows that came through a pipe is ``-``, whatever the pipe was called.
    """
    if not dataset.is_file:
        return data
    source = STDIN if dataset.source == STDIN else str(Path(dataset.source).resolve())
    return replace(data, source=source)


def _check_objective(kind: str, options: Options, *, weighted: bool) -> None:
    """Raise a ``ConfigError`` if the objective does not go with the other options."""
    name, flow = options.objective.name, options.flow
    objective, needed = find_objective(kind, name), FLOWS[flow.name].objective
    if needed and needed != name:
        raise ConfigError(f"train.objective: flow={flow.name} is fitted by {needed}, and by nothing else; got {name}")
    if objective.only_own_flows and needed != name:
        own = listed([other for other in FLOWS.names() if FLOWS[other].objective == name])
        raise ConfigError(f"train.objective: {name} fits flow={own}, and nothing else; got flow={flow.name}")
    if weighted and not objective.takes_weights:
        raise ConfigError(f"train.objective: {name} does not know weights of rows; take mle, or leave data.weight out")
    if flow.members != 1 and not objective.takes_mixtures:
        raise ConfigError(f"flow.members: {name} fits a single flow; got {flow.members}")
    if flow.stacking and not objective.is_likelihood:
        raise ConfigError(f"flow.stacking: weights by likelihood, which train.objective={name} leaves aside")
    least = objective.least_batch
    if options.train.batch_size < least:
        got = options.train.batch_size
        raise ConfigError(f"train.batch_size: expected at least {least} for train.objective={name}; got {got}")


def _split_rows(prepared: Prepared) -> SplitRows:
    train, validation, test = prepared.train, prepared.validation, prepared.test
    contexts = None
    if train.context is not None and validation.context is not None and test.context is not None:
        contexts = train.context, validation.context, test.context
    weights = None
    if train.weights is not None and validation.weights is not None and test.weights is not None:
        weights = train.weights, validation.weights, test.weights
    return SplitRows(train.rows, validation.rows, test.rows, contexts, weights)


def _as_table(rows: list[ScoredRow]) -> tuple[list[str], list[list[float]]]:
    columns = ["row", "log_prob", *(rows[0].values if rows else ())]
    return columns, [[row.row, row.log_prob, *row.values.values()] for row in rows]


def _draw_progress(prepared: Prepared, flow: Model, path: Path) -> None:
    """Draw samples of a flow in standardised units against validation rows. Cost: half a second to a second."""
    from pushforward.evaluate.plots.corner import corner
    from pushforward.evaluate.plots.density import density_2d

    density, names = prepared.in_data_units(flow.double().eval()), prepared.dataset.schema.names
    held_out = prepared.validation.rows[: 2 * _PROGRESS_SAMPLES]
    drawn = draw_samples(density, _PROGRESS_SAMPLES, seed=0)
    if len(names) == 2:
        toy = prepared.dataset.toy
        density_2d(density, drawn, held_out, None if toy is None else toy.log_prob, path, columns=names)
    else:
        corner(drawn, held_out, names, path, max_columns=_PROGRESS_COLUMNS)
