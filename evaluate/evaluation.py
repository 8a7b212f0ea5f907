"""Full evaluation of a fitted flow: likelihoods, baselines, samples, latents, calibration, inversion."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from pushforward.common.files import json_safe
from pushforward.evaluate.baselines import Baseline, fit_baselines
from pushforward.evaluate.calibration import Calibration, calibrate
from pushforward.evaluate.inversion import (
    HasBijection,
    LogDetError,
    RoundTrip,
    largest_errors,
    log_det_error,
    round_trip,
)
from pushforward.evaluate.latent import LatentReport, latent_normality
from pushforward.evaluate.likelihood import (
    Array,
    Density,
    Nll,
    check_defined,
    kl_to_truth,
    log_prob,
    nll_from,
    paired_difference,
    with_error,
)
from pushforward.evaluate.samples import SampleReport, compare_samples
from pushforward.evaluate.sampling import LatentDensity, draw_samples, latents
from pushforward.flows import Mixture

SAMPLES = 10_000
"""Default number of samples that are compared with held-out rows."""

INVERSION_ROWS = 1_000
"""Maximum number of test rows for the errors of inversion."""

TRAIN_ROWS_SCORED = 20_000
"""Maximum number of training rows that are scored: their standard error is then that of a usual test set."""

# At least so many rows of a part are drawn by weight, if it has them.
_FEW_ROWS = 100


Contexts = tuple[Array, Array, Array]


@dataclass(frozen=True, eq=False)
class SplitRows:
    """Rows of the three parts of a data set.

    Attributes:
        train: Training rows ``(n, D)``.
        validation: Validation rows ``(m, D)``.
        test: Test rows ``(k, D)``.
        contexts: Contexts ``(n, C)``, ``(m, C)``, ``(k, C)`` of the three parts, for a conditional density.
        weights: Weights ``(n,)``, ``(m,)``, ``(k,)`` of the rows of the three parts; None for equal ones.
    """

    train: Array
    validation: Array
    test: Array
    contexts: Contexts | None = None
    weights: Contexts | None = None

    def scored(self, seed: int) -> NDArray[np.intp]:
        """Which training rows are scored, at most ``TRAIN_ROWS_SCORED``."""
        return np.sort(np.random.default_rng(seed).permutation(len(self.train))[:TRAIN_ROWS_SCORED])

    def nlls(self, scores: "SplitScores", seed: int) -> tuple[Nll, Nll, Nll]:
        """The NLL of each part, by the weights of its rows."""
        parts = scores.train, scores.validation, scores.test
        if self.weights is None:
            train, validation, test = (nll_from(part) if len(part) else Nll(math.nan, math.nan, 0) for part in parts)
            return train, validation, test
        weights = self.weights[0][self.scored(seed)], *self.weights[1:]
        train, validation, test = (
            nll_from(part, w) if w.any() else Nll(math.nan, math.nan, 0) for part, w in zip(parts, weights, strict=True)
        )
        return train, validation, test

    def by_weight(self, seed: int) -> "SplitRows":
        """Rows of each part drawn by their weights: what samples, whose rows weigh the same, are compared with.

        Rows without weights, and a part whose weights are all 0, stay as they are.
        """
        if self.weights is None:
            return self
        generator = np.random.default_rng(seed)
        chosen = [_drawn_by_weight(weights, generator) for weights in self.weights]
        train, validation, test = (
            part[places] for part, places in zip((self.train, self.validation, self.test), chosen, strict=True)
        )
        contexts = None
        if self.contexts is not None:
            first, second, third = (part[places] for part, places in zip(self.contexts, chosen, strict=True))
            contexts = first, second, third
        return SplitRows(train, validation, test, contexts)


def _drawn_by_weight(weights: Array, generator: np.random.Generator) -> NDArray[np.intp]:
    """Indices of rows, each at most once unless that leaves few: a classifier would know copies by heart."""
    n = len(weights)
    if not weights.any():
        return np.arange(n)
    unit = min(weights.max(), weights.sum() / min(n, _FEW_ROWS))
    counts = np.floor(weights / unit + generator.random(n)).astype(np.intp)
    return np.repeat(np.arange(n), counts)


@dataclass(frozen=True, eq=False)
class SplitScores:
    """Log-densities of the three parts of a data set, in nats.

    Attributes:
        train: Log-densities ``(n,)`` of at most ``TRAIN_ROWS_SCORED`` training rows.
        validation: Log-densities of the validation rows ``(m,)``, in their order.
        test: Log-densities of the test rows ``(k,)``, in their order.
    """

    train: Array
    validation: Array
    test: Array


def score_split(flow: Density, rows: SplitRows, *, seed: int) -> SplitScores:
    """Score the three parts of a data set.

    Args:
        flow: The density.
        rows: The rows; at most ``TRAIN_ROWS_SCORED`` training rows are scored.
        seed: Seed of the subsample of the training rows.

    Raises:
        UndefinedDensityError: If a row has no log-density.
    """
    scored = rows.scored(seed)
    contexts = (None, None, None) if rows.contexts is None else (rows.contexts[0][scored], *rows.contexts[1:])

    def scores(name: str, part: Array, context: Array | None, numbers: Array | None = None) -> Array:
        log_probs = log_prob(flow, part, context).numpy()
        check_defined(log_probs, part, context, numbers, what=f"{name} row")
        return log_probs

    return SplitScores(
        scores("training", rows.train[scored], contexts[0], scored),
        scores("validation", rows.validation, contexts[1]),
        scores("test", rows.test, contexts[2]),
    )


@dataclass(frozen=True)
class EvaluationReport:
    """Results of the evaluation of one flow; likelihoods in nats.

    Attributes:
        columns: Names of the columns.
        rows: Number of rows of each part.
        train: NLL of the training rows (of a subsample, if its ``rows`` are fewer).
        validation: NLL of the validation rows.
        test: NLL of the test rows, in the units of the data.
        test_nll_standardized: Test NLL in the units of standardised columns; its standard error is that of ``test``.
        baselines: Baselines fitted on the same split; empty if not requested or with context.
        gains: For each baseline, its test NLL minus that of the flow, with the paired standard error.
        kl_to_truth: KL(true distribution || flow) and its standard error, if the true distribution is known.
        samples: Comparison of samples with the test rows; None if too few were finite.
        latent: Tests of the latents of the test rows; None if too few were finite.
        calibration: PIT histograms and quantiles of the columns; None if too few were finite.
        round_trip: Error of mapping rows to the base and back.
        log_det: Error of the log-determinant, which is also the error of the log-densities.
        seconds: Wall-clock time of the evaluation.
        evaluated: What the test rows are: ``test rows`` of the split, or the name of another table.
        conditional: Whether the density has a context; there are no baselines for such densities.
        weighted: Whether the rows have weights; there are no baselines for such rows, and samples, latents and
            calibration are compared with rows drawn by their weights.
    """

    columns: list[str]
    rows: dict[str, int]
    train: Nll
    validation: Nll
    test: Nll
    test_nll_standardized: float
    baselines: list[Baseline]
    gains: dict[str, tuple[float, float]]
    kl_to_truth: tuple[float, float] | None
    samples: SampleReport | None
    latent: LatentReport | None
    calibration: Calibration | None
    round_trip: RoundTrip
    log_det: LogDetError
    seconds: float
    evaluated: str = "test rows"
    conditional: bool = False
    weighted: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Nested dicts, safe for JSON: NaN and infinity become null; baselines without their log-densities."""
        parts = ("baselines", "calibration")  # have their own to_dict
        out = {name: json_safe(value) for name, value in vars(self).items() if name not in parts}
        out["baselines"] = [baseline.to_dict() for baseline in self.baselines]
        out["calibration"] = None if self.calibration is None else self.calibration.to_dict()
        for name in ("gains", "kl_to_truth"):
            out.pop(name)
        out["gains"] = {name: json_safe({"nats": gain, "se": se}) for name, (gain, se) in self.gains.items()}
        kl, se = self.kl_to_truth or (None, None)
        return out | {"kl_to_truth": json_safe(kl), "kl_to_truth_se": json_safe(se)}

    def lines(self) -> list[str]:
        """The report as lines of plain text: a table of NLLs first."""
        shift = self.test.nll - self.test_nll_standardized
        width = max([len("density"), *(len(baseline.label) for baseline in self.baselines)])
        is_own = self.evaluated == "test rows"
        rows = self.evaluated if is_own else f"rows of {self.evaluated}"
        nll = "test NLL (nats)" if is_own else "NLL (nats)"
        head = f"{'density':<{width}}  {nll:>20}  {'standardised':>12}"
        if self.baselines:
            head += f"  {'flow is better by':>20}"
        out = [] if is_own else [f"on the {self.test.rows:,} {rows}"]
        out += self.warnings()
        out += [head, "-" * len(head), self._score("flow", self.test, shift, "", width)]
        if self.conditional:
            out.append("there are no baselines for a density that is conditioned on other columns")
        elif self.weighted:
            out.append("there are no baselines for weighted rows; comparisons use rows drawn by their weights")
        for baseline in self.baselines:
            gain, se = self.gains[baseline.name]
            out.append(self._score(baseline.label, baseline.nll, shift, with_error(gain, se, 4), width))
        out += [f"  {baseline.label}: {baseline.detail}" for baseline in self.baselines]
        parts = {"train": self.train, "validation": self.validation, "test" if is_own else self.evaluated: self.test}
        longest = max(map(len, parts))
        out += ["", *(f"{name:<{longest}}  {nll}" for name, nll in parts.items())]
        if self.kl_to_truth is not None:
            kl, se = self.kl_to_truth
            out.append(f"KL(true distribution || flow)  {with_error(kl, se, 4)} nats")
        if self.samples is not None:
            out += ["", f"samples ({self.samples.rows:,} against {self.samples.held_out_rows:,} {rows})"]
            out += [f"  {line}" for line in self.samples.lines()]
        if self.latent is not None:
            out += ["", f"latents of {self.latent.rows:,} {rows}"]
            out += [f"  {line}" for line in self.latent.lines()]
        out += ["", "inversion", *(f"  {line}" for line in self._inversion())]
        return out

    def warnings(self) -> list[str]:
        """One line for each baseline that is better than the flow by more than two standard errors."""
        labels = {baseline.name: baseline.label for baseline in self.baselines}
        return [
            f"warning: the baseline {labels[name]!r} is better than the flow, by {with_error(-gain, se, 4)} nats"
            for name, (gain, se) in self.gains.items()
            if gain < (0.0 if math.isnan(se) else -2.0 * se)
        ]

    def _score(self, label: str, nll: Nll, shift: float, gain: str, width: int) -> str:
        standardized = nll.nll - shift
        return f"{label:<{width}}  {with_error(nll.nll, nll.se, 4):>20}  {standardized:>12.4f}  {gain:>20}".rstrip()

    def _inversion(self) -> list[str]:
        trip, det = self.round_trip, self.log_det
        lines = [
            f"round trip      {trip.points:.1e} std, log-determinants {trip.log_det:.1e} nats ({trip.rows:,} rows)",
            f"log-determinant {det.error:.1e} nats from automatic differentiation ({det.rows} rows)",
        ]
        if trip.points_float32 is not None and det.error_float32 is not None:
            lines.append(
                f"in float32      {trip.points_float32:.1e} std, {trip.log_det_float32:.1e} nats;"
                f" log-determinant {det.error_float32:.1e} nats"
            )
        return lines


def evaluate_flow(
    flow: LatentDensity,
    rows: SplitRows,
    *,
    columns: Sequence[str],
    standardize_log_det: float,
    true_log_prob: Callable[[Array], Array] | None = None,
    seed: int = 0,
    baselines: bool = True,
    baseline_seconds: float = 60.0,
    samples: int | Array = SAMPLES,
    scores: SplitScores | None = None,
    float32: bool = False,
    evaluated: str = "test rows",
    notify: Callable[[str], object] = lambda text: None,
) -> EvaluationReport:
    """Evaluate a fitted flow on the three parts of its data.

    The test rows choose nothing. Random states of torch and numpy stay unchanged. Cost: one pass over all rows, D
    backward passes for eight rows, and seconds for the baselines on tens of thousands of rows.

    Args:
        flow: A flow in double precision, in the units of the data.
        rows: Training, validation and test rows; at most ``TRAIN_ROWS_SCORED`` training rows are scored. With contexts,
            samples are drawn for the contexts of the test rows and compared without them, and there are no baselines.
        columns: Names of the columns.
        standardize_log_det: Sum of the logarithms of the training standard deviations of the columns:
            NLL of standardised columns = NLL of the data - this sum.
        true_log_prob: The true log-density of float64 arrays, ``(k, D) -> (k,)``, if known.
        seed: Seed of samples and subsamples.
        baselines: Whether to fit baselines.
        baseline_seconds: Time limit of the mixture baseline.
        samples: Number of samples to draw, or samples drawn before, of which at most as many as training rows are
            compared; with context, one for each test row of ``rows.by_weight(seed)``.
        scores: Result of ``score_split``, if the rows were scored before.
        float32: Whether to measure errors of inversion in single precision too.
        evaluated: Name of the test rows, as in :class:`EvaluationReport`.
        notify: Called with a few words before each part of the evaluation.

    Raises:
        ValueError: If the shape of a table does not match the columns.
    """
    start_time = time.perf_counter()
    names = list(columns)
    train, validation, test = (np.asarray(part, dtype=np.float64) for part in (rows.train, rows.validation, rows.test))
    for name, part in (("train", train), ("validation", validation), ("test", test)):
        if part.ndim != 2 or part.shape[1] != len(names) or len(part) == 0:
            raise ValueError(f"evaluate_flow: expected {name} rows of shape (rows, {len(names)}); got {part.shape}")
    rows = SplitRows(train, validation, test, rows.contexts, rows.weights)
    if scores is None:
        scores = score_split(flow, rows, seed=seed)
    train_nll, validation_nll, test_nll = rows.nlls(scores, seed)
    kl = None if true_log_prob is None else kl_to_truth(true_log_prob(test), scores.test)
    fitted_baselines = []
    if baselines and rows.contexts is None and rows.weights is None:
        notify("evaluating: baselines")
        fitted_baselines = fit_baselines(train, validation, test, seed=seed, seconds=baseline_seconds)
    compared = rows.by_weight(seed)
    train, test = compared.train, compared.test
    test_context = None if compared.contexts is None else compared.contexts[2]
    notify("evaluating: samples and latents")
    if isinstance(samples, int):
        drawn = draw_samples(flow, samples if test_context is None else len(test), test_context, seed=seed)
    else:
        drawn = samples
    inverted = np.sort(np.random.default_rng(seed).permutation(len(test))[:INVERSION_ROWS])
    inverted_context = None if test_context is None else test_context[inverted]
    std = train.std(axis=0)
    members = _invertible_members(flow, inverted_context)
    z = latents(flow, test, test_context)
    latent_rows = int(np.isfinite(z).all(axis=1).sum())
    sampled_rows = int(np.isfinite(drawn).all(axis=1).sum())
    return EvaluationReport(
        columns=names,
        rows={"train": len(train), "validation": len(validation), "test": len(test)},
        train=train_nll,
        validation=validation_nll,
        test=test_nll,
        test_nll_standardized=test_nll.nll - standardize_log_det,
        baselines=fitted_baselines,
        gains={baseline.name: paired_difference(scores.test, baseline.log_probs) for baseline in fitted_baselines},
        kl_to_truth=kl,
        samples=(
            compare_samples(drawn, test, train, names, seed) if min(sampled_rows, len(test), len(train)) >= 2 else None
        ),
        latent=latent_normality(z) if latent_rows >= 2 else None,
        calibration=calibrate(z, test, drawn, names) if latent_rows and sampled_rows else None,
        round_trip=largest_errors(
            [round_trip(member, test[inverted], given, std=std, float32=float32) for member, given in members]
        ),
        log_det=largest_errors(
            [log_det_error(member, test[inverted], given, float32=float32) for member, given in members]
        ),
        seconds=time.perf_counter() - start_time,
        evaluated=evaluated,
        conditional=rows.contexts is not None,
        weighted=rows.weights is not None,
    )


def _invertible_members(flow: LatentDensity, context: Array | None) -> list[tuple[HasBijection, Array | None]]:
    """Return the flow, or the members of a mixture, each with its context."""
    if not isinstance(flow, Mixture):
        return [(cast(HasBijection, flow), context)]
    return [(member, context if member.context else None) for member in flow.members]
