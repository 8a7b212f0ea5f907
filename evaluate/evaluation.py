"""Everything that is said of a fitted flow, gathered once: scores, baselines, samples, latents, inversion."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor

from pushforward.common.files import json_safe
from pushforward.evaluate.baselines import Baseline, fit_baselines
from pushforward.evaluate.calibration import Calibration, calibrate
from pushforward.evaluate.inversion import Invertible, LogDetError, RoundTrip, log_det_error, round_trip, worst
from pushforward.evaluate.latent import LatentReport, latent_normality
from pushforward.evaluate.likelihood import (
    BATCH_SIZE,
    Array,
    Density,
    Nll,
    as_points,
    device_of,
    evaluating,
    kl_to_truth,
    log_prob,
    nll_from,
    paired_difference,
    with_error,
)
from pushforward.evaluate.samples import SampleReport, compare_samples
from pushforward.flows import Mixture

SAMPLES = 10_000
"""Samples compared with held-out rows, unless asked otherwise."""

INVERSION_ROWS = 1_000
"""Rows sent to the base and back."""

TRAIN_ROWS_SCORED = 20_000
"""Training rows scored at most: their mean is then known as well as that of most test sets."""


class FittedFlow(Density, Protocol):
    """What a whole evaluation needs: flows and ensembles have it."""

    def latents(self, x: Tensor, context: Tensor | None = None, /) -> Tensor:
        """Standard-normal noise behind points, ``(..., D) -> (..., D)``."""
        ...


Contexts = tuple[Array, Array, Array]


@dataclass(frozen=True, eq=False)
class SplitScores:
    """Log-densities of the three parts, in nats.

    Attributes:
        train: Of training rows, ``TRAIN_ROWS_SCORED`` at most ``(n,)``.
        validation: Of the validation rows ``(m,)``, in their order.
        test: Of the test rows ``(k,)``, in their order.
    """

    train: Array
    validation: Array
    test: Array


def score_split(
    flow: Density, train: Array, validation: Array, test: Array, contexts: Contexts | None = None, *, seed: int
) -> SplitScores:
    """Score the three parts once, for all who ask.

    Args:
        flow: The density.
        train: Training rows ``(n, D)``; ``seed`` draws those that are scored where there are many.
        validation: Validation rows ``(m, D)``.
        test: Test rows ``(k, D)``.
        contexts: Their contexts.
        seed: Decides the subsample.
    """
    seen = np.sort(np.random.default_rng(seed).permutation(len(train))[:TRAIN_ROWS_SCORED])
    given = (None, None, None) if contexts is None else (contexts[0][seen], *contexts[1:])
    parts = zip((train[seen], validation, test), given, strict=True)
    return SplitScores(*(log_prob(flow, rows, context).numpy() for rows, context in parts))


@dataclass(frozen=True)
class EvaluationReport:
    """The verdict on one flow; likelihoods in nats.

    Attributes:
        columns: Names of the columns.
        rows: Rows of each part.
        train: Score on the training rows (a subsample, if its ``rows`` are fewer).
        validation: Score on the validation rows.
        test: Score on the test rows, in the units of the data.
        test_nll_standardized: Test NLL in the units of standardised columns; its standard error is that of ``test``.
        baselines: Fitted on the same split; empty when not asked for or when there is context.
        gains: For each baseline, by how much the flow's test NLL is lower, with its paired standard error.
        kl_to_truth: KL(truth || flow) and its standard error, when the truth is known.
        samples: Samples against the test rows; ``None`` when too few were finite.
        latent: Noise behind the test rows; ``None`` when too few were finite.
        calibration: PIT histograms and quantiles of the columns; ``None`` when too few were finite.
        round_trip: Error of going to the base and back.
        log_det: Error of the log-determinant; the flow's densities are wrong by as much.
        seconds: Wall-clock time of the evaluation.
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

    def to_dict(self) -> dict[str, Any]:
        """Nested dicts, safe for JSON: what is NaN or infinite is null; baselines without their log-densities."""
        parts = ("baselines", "calibration")  # which know themselves how they are written
        out = {name: json_safe(value) for name, value in vars(self).items() if name not in parts}
        out["baselines"] = [baseline.to_dict() for baseline in self.baselines]
        out["calibration"] = None if self.calibration is None else self.calibration.to_dict()
        for name in ("gains", "kl_to_truth"):
            out.pop(name)
        out["gains"] = {name: json_safe({"nats": gain, "se": se}) for name, (gain, se) in self.gains.items()}
        kl, se = self.kl_to_truth or (None, None)
        return out | {"kl_to_truth": json_safe(kl), "kl_to_truth_se": json_safe(se)}

    def lines(self) -> list[str]:
        """The report as plain text, a table of scores first."""
        shift = self.test.nll - self.test_nll_standardized
        width = max([len("density"), *(len(baseline.label) for baseline in self.baselines)])
        head = f"{'density':<{width}}  {'test NLL (nats)':>20}  {'standardised':>12}  {'flow is better by':>20}"
        out = [head, "-" * len(head), self._score("flow", self.test, shift, "", width)]
        for baseline in self.baselines:
            gain, se = self.gains[baseline.name]
            out.append(self._score(baseline.label, baseline.nll, shift, with_error(gain, se, 4), width))
        out += [f"  {baseline.label}: {baseline.detail}" for baseline in self.baselines]
        out += ["", f"train       {self.train}", f"validation  {self.validation}", f"test        {self.test}"]
        if self.kl_to_truth is not None:
            kl, se = self.kl_to_truth
            out.append(f"KL(truth || flow)  {with_error(kl, se, 4)} nats")
        if self.samples is not None:
            out += ["", f"samples ({self.samples.rows:,} against {self.samples.held_out_rows:,} test rows)"]
            out += [f"  {line}" for line in self.samples.lines()]
        if self.latent is not None:
            out += ["", f"latents of {self.latent.rows:,} test rows"]
            out += [f"  {line}" for line in self.latent.lines()]
        out += ["", "inversion", *(f"  {line}" for line in self._inversion())]
        return out

    def _score(self, label: str, score: Nll, shift: float, gain: str, width: int) -> str:
        standardized = score.nll - shift
        return f"{label:<{width}}  {with_error(score.nll, score.se, 4):>20}  {standardized:>12.4f}  {gain:>20}".rstrip()

    def _inversion(self) -> list[str]:
        there, det = self.round_trip, self.log_det
        lines = [
            f"round trip      {there.points:.1e} std, log-determinants {there.log_det:.1e} nats ({there.rows:,} rows)",
            f"log-determinant {det.error:.1e} nats from automatic differentiation ({det.rows} rows)",
        ]
        if there.points_float32 is not None and det.error_float32 is not None:
            lines.append(
                f"in float32      {there.points_float32:.1e} std, {there.log_det_float32:.1e} nats;"
                f" log-determinant {det.error_float32:.1e} nats"
            )
        return lines


def evaluate_flow(
    flow: FittedFlow,
    train: Array,
    validation: Array,
    test: Array,
    *,
    columns: Sequence[str],
    standardize_log_det: float,
    contexts: Contexts | None = None,
    truth_log_prob: Callable[[Array], Array] | None = None,
    seed: int = 0,
    baselines: bool = True,
    baseline_seconds: float = 60.0,
    samples: int | Array = SAMPLES,
    scores: SplitScores | None = None,
    float32: bool = False,
) -> EvaluationReport:
    """Say all there is to say of a fitted flow on its split.

    The test rows choose nothing. Random states of torch and numpy are left as they were. Cost: one pass over all
    rows, D backward passes for eight rows, and seconds of baselines on tens of thousands of rows.

    Args:
        flow: A flow in double precision whose points are in the units of the data.
        train: Training rows ``(n, D)``; at most ``TRAIN_ROWS_SCORED`` of them are scored.
        validation: Validation rows ``(m, D)``.
        test: Test rows ``(k, D)``.
        columns: Names of the columns.
        standardize_log_det: Sum of the logarithms of the training standard deviations of the columns:
            NLL of standardised columns = NLL of the data - this sum.
        contexts: Contexts ``(n, C)``, ``(m, C)``, ``(k, C)`` of the three parts. Samples are then drawn for the test
            rows' contexts and compared without them, and there are no baselines.
        truth_log_prob: The true log-density of float64 arrays, ``(k, D) -> (k,)``, if known.
        seed: Decides samples and subsamples.
        baselines: Whether to fit baselines.
        baseline_seconds: Time that the mixture baseline may take.
        samples: Points to draw, or points that were drawn already, of which at most as many as training rows are
            compared; with context, one for each test row.
        scores: What ``score_split`` gave, if the rows were scored already.
        float32: Whether inversion is tried in single precision too.

    Raises:
        ValueError: For tables that do not agree with the columns.
    """
    began = time.perf_counter()
    names = list(columns)
    train, validation, test = (np.asarray(part, dtype=np.float64) for part in (train, validation, test))
    for name, part in (("train", train), ("validation", validation), ("test", test)):
        if part.ndim != 2 or part.shape[1] != len(names) or len(part) == 0:
            raise ValueError(f"evaluate_flow: expected {name} rows of shape (rows, {len(names)}); got {part.shape}")
    context_test = None if contexts is None else contexts[2]
    if scores is None:
        scores = score_split(flow, train, validation, test, contexts, seed=seed)
    log_probs = scores.test
    test_nll = nll_from(log_probs)
    fitted = (
        fit_baselines(train, validation, test, seed=seed, seconds=baseline_seconds)
        if baselines and contexts is None
        else []
    )
    if isinstance(samples, int):
        drawn = draw_samples(flow, samples if contexts is None else len(test), context_test, seed=seed)
    else:
        drawn = samples
    tried = np.sort(np.random.default_rng(seed).permutation(len(test))[:INVERSION_ROWS])
    context_tried = None if context_test is None else context_test[tried]
    std = train.std(axis=0)
    parts = _bijections(flow, context_tried)
    noise = latents(flow, test, context_test)
    latent_rows = int(np.isfinite(noise).all(axis=1).sum())
    sampled_rows = int(np.isfinite(drawn).all(axis=1).sum())
    return EvaluationReport(
        columns=names,
        rows={"train": len(train), "validation": len(validation), "test": len(test)},
        train=nll_from(scores.train),
        validation=nll_from(scores.validation),
        test=test_nll,
        test_nll_standardized=test_nll.nll - standardize_log_det,
        baselines=fitted,
        gains={baseline.name: paired_difference(log_probs, baseline.log_probs) for baseline in fitted},
        kl_to_truth=None if truth_log_prob is None else kl_to_truth(truth_log_prob(test), log_probs),
        samples=(
            compare_samples(drawn, test, train, names, seed) if min(sampled_rows, len(test), len(train)) >= 2 else None
        ),
        latent=latent_normality(noise) if latent_rows >= 2 else None,
        calibration=calibrate(noise, test, drawn, names) if latent_rows and sampled_rows else None,
        round_trip=worst([round_trip(one, test[tried], given, std=std, float32=float32) for one, given in parts]),
        log_det=worst([log_det_error(one, test[tried], given, float32=float32) for one, given in parts]),
        seconds=time.perf_counter() - began,
    )


def _bijections(flow: FittedFlow, context: Array | None) -> list[tuple[Invertible, Array | None]]:
    """The flows of which there is something to invert, with the context of each."""
    if not isinstance(flow, Mixture):
        return [(cast(Invertible, flow), context)]
    return [(member, context if member.context else None) for member in flow.members]


def draw_samples(
    flow: Density, n: int, context: Tensor | Array | None = None, *, seed: int, batch_size: int = BATCH_SIZE
) -> Array:
    """Draw points in batches, without touching torch's random state.

    Args:
        flow: The density.
        n: Number of points; with context, that of its rows.
        context: ``(n, C)``: one point is drawn for each row.
        seed: Decides the points, together with the batch size and the device.
        batch_size: Points a pass.

    Returns:
        Points ``(n, D)`` in float64.
    """
    device = device_of(flow) or torch.device("cpu")
    out = []
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), evaluating(flow):
        torch.manual_seed(seed)
        for start in range(0, n, batch_size):
            if context is None:
                points = flow.sample(min(batch_size, n - start))
            else:
                points = flow.sample((), as_points(context[start : start + batch_size]).to(device))
            out.append(points.double().cpu().numpy())
    return np.concatenate(out)


def latents(flow: FittedFlow, x: Tensor | Array, context: Tensor | Array | None = None) -> Array:
    """The noise behind rows ``(n, D) -> (n, D)``: standard normal under a perfect fit; streamed like the scores."""
    device = device_of(flow) or torch.device("cpu")
    out = []
    # An ensemble draws the member that stands behind a row.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), evaluating(flow):
        torch.manual_seed(0)
        for start in range(0, len(x), BATCH_SIZE):
            part = slice(start, start + BATCH_SIZE)
            given = None if context is None else as_points(context[part]).to(device)
            out.append(flow.latents(as_points(x[part]).to(device), given).double().cpu().numpy())
    return np.concatenate(out)
