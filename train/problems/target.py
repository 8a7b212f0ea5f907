"""Fit a flow to a target: an unnormalised log-density and its gradient take the place of rows."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from pushforward.common.errors import ConfigError, DataError
from pushforward.datasets import Schema
from pushforward.datasets.tables.memory.fingerprint import rows_fingerprint
from pushforward.datasets.targets.base import Target
from pushforward.datasets.targets.check import check_target
from pushforward.datasets.targets.load import load_target
from pushforward.evaluate.density import FittedDensity
from pushforward.evaluate.likelihood import log_prob, with_error
from pushforward.evaluate.plots.corner import corner
from pushforward.evaluate.plots.density import density_2d
from pushforward.evaluate.plots.weights import log_weights
from pushforward.evaluate.target import (
    BATCH_SIZE,
    accept_float64,
    as_fitted_density,
    sample_and_log_prob,
    target_metrics,
    weighted_sample,
)
from pushforward.flows import Chain, Flow, Standardize
from pushforward.flows.bijections.probit import Probit
from pushforward.flows.random_state import RandomState, seeded
from pushforward.train.architecture import build_model
from pushforward.train.callbacks import Callback
from pushforward.train.defaults import Asked, resolve
from pushforward.train.device import choose_device
from pushforward.train.objectives.registry import find_objective, objective_names
from pushforward.train.objectives.target import VALIDATION_SAMPLES, Alpha, ForwardKl
from pushforward.train.options import ObjectiveOptions, Options
from pushforward.train.problems.base import Array, Chart, Evaluation, Figure, Fitted, Headline, Notify, Problem, Scores
from pushforward.train.state import State, start

_FIRST_BATCH = 512
_FINAL_SAMPLES = 50_000  # for the final numbers
_EXACT_SAMPLES, _EXACT_SEED = 10_000, 271_828
_SHOWN = 10_000  # samples in a figure and in samples.csv
_LARGEST_PARETO_K = 0.7


class TargetProblem(Problem):
    """A flow that approximates a target; its density is normalised.

    Args:
        options: The resolved options.
        target: The target.
    """

    kind = "target"
    words = "a target (DATA is target:NAME)"
    keys = ("data.source", "target", "flow", "train")
    compared_by = "val_loss"
    sections = ("target", "model", "training", "pictures")
    charts = (
        Chart("log Z", ("val/log_z", "known/log_z")),
        Chart("Lower bound of log Z", ("val/elbo", "known/log_z")),
        Chart("Effective sample sizes", ("val/reverse_ess", "val/forward_ess")),
        Chart("log Z", ("log_z",), is_final=True),
        Chart("Reverse ESS", ("reverse_ess",), is_final=True),
        Chart("KL(target || flow)", ("kl_to_truth",), is_final=True),
    )
    pictures = ("density", "corner", "weights")
    scored = _EXACT_SAMPLES

    def __init__(self, options: Options, target: Target) -> None:
        self.options, self.target, self.name = options, target, options.data.source
        known = "" if target.log_z is None else f", log Z {target.log_z:.4f}"
        objective = options.objective
        self.size = f"{target.features} features{known}; {objective.name}, {objective.gradient} gradient"
        self.facts = {"features": target.features, "objective": objective.name}
        self._exact: Tensor | None = None

    @classmethod
    def plan(cls, asked: Asked, data: Target | None = None, **more: Any) -> "TargetProblem":
        keys = asked["target"]
        target = data or load_target(
            asked["data"]["source"],
            None if keys["features"] == "auto" else keys["features"],
            bounds=keys["bounds"],
            spread=None if keys["spread"] == "auto" else keys["spread"],
        )
        options = _resolve(asked, target)
        _check_objective(options.objective, options.train.batch_size, has_samples=target.has_samples)
        if options.flow.members != 1:
            raise ConfigError(f"flow.members: a target is fitted by a single flow; got {options.flow.members}")
        if options.flow.stacking:
            raise ConfigError("flow.stacking: a target has no rows that could weight a kernel density; leave it out")
        return cls(options, target)

    @property
    def features(self) -> int:
        return self.target.features

    def schema(self) -> dict[str, Any]:
        target = self.target
        return {
            "dataset": self.name,
            "source": "target",
            "sha256": None,
            "rows": {},
            "notes": [],
            "log_z": target.log_z,
            "entropy": target.entropy,
            "description": target.description,
        }

    def build(self) -> Flow:
        target, d = self.target, self.target.features
        flow = cast(Flow, build_model(self.options.flow, d, seed=self.options.seed))  # it has one member
        first = Standardize([0.0] * d, [target.spread] * d) if target.bounds is None else Probit(d, *target.bounds)
        layers = flow.bijection.bijections if isinstance(flow.bijection, Chain) else [flow.bijection]
        return Flow(flow.base, Chain([first, *layers], features=d))

    def start(self, device: torch.device, callbacks: Sequence[Callback] = ()) -> State:
        flow, random = self.build().to(device), RandomState(self.options.seed, device)
        with random.active(), torch.no_grad():
            flow.train()(self.first_batch(flow))  # initialises layers that initialise themselves from data
        return start(flow, self.options.train, random=random)

    def check(self, model: nn.Module, *, gradients: bool = False) -> None:
        with seeded(self.options.seed, choose_device(self.options.device)):
            self.first_batch(cast(Flow, model), gradients=gradients)

    @property
    def plan_facts(self) -> dict[str, Any]:
        return {"features": self.features, "log_z": self.target.log_z}

    def first_batch(self, flow: Flow, *, gradients: bool = False) -> Tensor:
        """Check the target on the first samples ``(n, D)`` of a flow, and return them.

        Args:
            flow: The flow, on the device of the fit.
            gradients: Check the gradients of the target even if the fit does not need them.

        Raises:
            TargetError: If the target cannot be used; the message has the sample at fault.
        """
        with torch.no_grad():
            first_batch = flow.eval().sample(_FIRST_BATCH)
        check_target(
            self.target, first_batch, gradients=gradients or self.options.objective.gradient != "score-function"
        )
        return first_batch

    def progress_figure(self, model: nn.Module) -> Figure | None:
        def draw(path: Path) -> None:
            flow = cast(Flow, model).cpu().double().eval()
            self._draw_samples(flow, *weighted_sample(flow, self._accepted(flow), _SHOWN, 0), path)

        return Figure("progress", "", draw)

    def finish(self, state: State) -> Fitted:
        flow = cast(Flow, state.flow.cpu().double().eval())
        sample = sample_and_log_prob(flow, VALIDATION_SAMPLES, self.options.seed)[0]
        return Fitted(as_fitted_density(flow, sample), self.flow_name, "", state)

    def score(self, density: FittedDensity, stop: Callable[[], str] = lambda: "") -> Scores:
        flow = cast(Flow, density.model)
        target = self._accepted(flow)
        drawn, log_w = weighted_sample(flow, target, _FINAL_SAMPLES, self.options.seed)
        # The same samples for every fit to a target, so that fits can be compared sample by sample.
        exact = target.sample(_EXACT_SAMPLES, _EXACT_SEED) if self._exact is None else self._exact
        exact = None if exact is None else exact.double()
        log_q = None if exact is None else log_prob(flow, exact, batch_size=BATCH_SIZE)
        metrics = target_metrics(target, log_w, exact, log_q)
        numbers = {
            "objective": self.options.objective.name,
            "gradient": self.options.objective.gradient,
            "train_nll": None,
            "val_nll": None,
            "test_nll_standardized": None,
            **metrics,
            "test_rows_sha256": None if exact is None else rows_fingerprint(density.schema.names, exact.numpy()),
        }
        headline = [
            Headline("log Z", metrics["log_z"], metrics["log_z_se"]),
            Headline("lower bound of log Z", metrics["elbo"], metrics["elbo_se"]),
            Headline("reverse ESS", metrics["reverse_ess"], unit=""),
            Headline("forward ESS", metrics["forward_ess"], unit=""),
            Headline("KL(target || flow)", metrics["kl_to_truth"], metrics["kl_to_truth_se"]),
        ]
        log_probs = None if log_q is None else log_q.numpy()
        rows = np.arange(0 if log_probs is None else len(log_probs))
        references = {} if target.log_z is None else {"known/log_z": target.log_z}
        return Scores(numbers, headline, rows, log_probs, references, details=(drawn, log_w))

    def evaluate(self, density: FittedDensity, scores: Scores, notify: Notify = lambda text: None) -> Evaluation:
        flow = cast(Flow, density.model)
        drawn, log_w = scores.details
        kind = "density" if self.features == 2 else "corner"
        log_z = self.target.log_z
        return Evaluation(
            numbers={},
            lines=[],
            figures=[
                Figure(
                    kind,
                    "The fitted density against the target",
                    partial(self._draw_samples, flow, drawn, log_w),
                ),
                Figure(
                    "weights",
                    "Log-weights of samples of the flow",
                    lambda path: log_weights(log_w.numpy(), log_z, path),
                ),
            ],
            samples=(drawn[:_SHOWN].numpy(), np.empty((min(_SHOWN, len(drawn)), 0))),
        )

    def on_rows(
        self, rows: Array, context: Array, schema: Schema, name: str, weights: Array | None = None
    ) -> "TargetProblem":
        if rows.shape[1] != self.features:
            raise DataError(f"{name}: expected samples of {self.features} features; got {rows.shape[1]} columns")
        other = TargetProblem(self.options, self.target)
        other._exact = torch.from_numpy(rows)  # samples of the target from elsewhere, such as a long Markov chain
        return other

    def lines(self, scores: Scores, evaluation: Evaluation | None) -> list[str]:
        results = scores.numbers
        known = results["log_z_known"]
        off = "" if known is None else f", known {known:.4f}: off by {results['log_z'] - known:+.4f}"
        out = [f"log Z               {with_error(results['log_z'], results['log_z_se'], 4)} nats{off}"]
        out.append(f"lower bound         {with_error(results['elbo'], results['elbo_se'], 4)} nats")
        out.append(f"reverse ESS         {results['reverse_ess']:.4f}, from samples of the flow")
        if results["forward_ess"] is not None:
            k = results["forward_pareto_k"]
            is_few = k is not None and k > _LARGEST_PARETO_K
            few = f"; few samples of the tail dominate (Pareto k {k:.2f})" if is_few else ""
            out.append(f"forward ESS         {results['forward_ess']:.4f}, from exact samples of the target{few}")
        if results["kl_to_truth"] is not None:
            kl = with_error(results["kl_to_truth"], results["kl_to_truth_se"], 4)
            out.append(f"KL(target || flow)  {kl} nats")
        k = results["pareto_k"]
        if k is not None and k > _LARGEST_PARETO_K:
            out.append(
                f"warning: few samples dominate the weights (Pareto k {k:.2f}): log Z and its error are not reliable; "
                f"give the fit more time, or set target.spread to the distance of the mass from the origin"
            )
        return out

    def _accepted(self, flow: Flow) -> Target:
        return accept_float64(self.target, flow, choose_device(self.options.device))

    def _draw_samples(self, flow: Flow, drawn: Tensor, log_w: Tensor, path: Path) -> None:
        """Draw samples of the flow against samples of the target, or against its own ones resampled by weight."""
        target = self.target
        exact = target.sample(_SHOWN, 0)
        if exact is None:
            generator = torch.Generator().manual_seed(0)
            chosen = torch.multinomial(torch.softmax(log_w, 0), _SHOWN, replacement=True, generator=generator)
            exact = drawn[chosen]
        names = [f"x{i}" for i in range(1, target.features + 1)]
        samples, exact_samples = drawn[:_SHOWN].double().numpy(), exact.double().numpy()
        if target.features == 2:
            log_z, accepted = target.log_z, self._accepted(flow)
            true = None if log_z is None else lambda x: accepted.log_prob(torch.from_numpy(x)).numpy() - log_z
            density_2d(flow, samples, exact_samples, true, path, columns=names)
        else:
            corner(samples, exact_samples, names, path)


def _resolve(asked: Asked, target: Target) -> Options:
    """Replace every ``auto``: sizes as for a toy, and more time for more features."""
    train, features = asked["train"], target.features
    options = resolve(asked, rows=0, features=features, is_toy=True, objective="reverse-kl")
    updates: dict[str, Any] = {}
    if train["seconds"] == "auto" and train["steps"] == "auto":
        updates["seconds"] = min(120.0, 10.0 + 2.0 * features)
    if train["learning_rate"] == "auto":
        updates["learning_rate"] = 2e-3  # noisier than for rows: the samples are those of the flow itself
    return options.replace(train=updates, target={"features": features})


def _check_objective(options: ObjectiveOptions, batch_size: int, *, has_samples: bool) -> None:
    """Check that the objective and the gradient estimator exist for the target.

    Raises:
        ConfigError: If one does not; the message says which ones do.
    """
    name, gradient = options.name, options.gradient
    if name not in objective_names(TargetProblem.kind):
        names = ", ".join(objective_names(TargetProblem.kind))
        raise ConfigError(f"train.objective: {name} is for rows; a target is fitted by one of {names}")
    kind = find_objective(TargetProblem.kind, name)
    if issubclass(kind, ForwardKl) and has_samples:
        if gradient == "score-function":
            raise ConfigError(
                "train.gradient: the forward KL from samples of the target has no score-function gradient; take path "
                "(with the score function of the target) or path-wise (maximum likelihood)"
            )
        return
    is_forward = issubclass(kind, ForwardKl) or (issubclass(kind, Alpha) and options.alpha == 1)
    if gradient == "path-wise" and is_forward:
        raise ConfigError(
            "train.gradient: the forward KL by weights (train.alpha=1) has no path-wise gradient; "
            "take train.gradient=path"
        )
    if gradient == "score-function" and batch_size == 1:
        raise ConfigError("train.batch_size: expected at least 2 with train.gradient=score-function; got 1")
