"""Estimators of scikit-learn: :class:`FlowDensity` for p(x), :class:`ConditionalDensity` for p(y given x)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, DensityMixin, RegressorMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from pushforward.config.read import make_config
from pushforward.config.resolved import refuse_unused_keys
from pushforward.datasets.dataset import MEMORY
from pushforward.datasets.tables.memory.frame_kind import FrameKind
from pushforward.evaluate.conditional import mean, quantiles
from pushforward.evaluate.density import FittedDensity
from pushforward.evaluate.likelihood import Array
from pushforward.train import fitting
from pushforward.train.data import load_data
from pushforward.train.defaults import data_options
from pushforward.train.problems.registry import plan

DEFAULT_STEPS = 2_000
"""Budget without ``seconds``: with a budget in steps, fitting twice gives the same density."""

_DRAWS = 1_000


class _Fits(BaseEstimator):  # type: ignore[misc]  # scikit-learn carries no types
    """What both estimators share: the options, and the fit of an array."""

    def __init__(
        self,
        flow: str = "auto",
        *,
        steps: int | None = None,
        seconds: float | None = None,
        keys: Mapping[str, Any] | None = None,
        device: str = "cpu",
        random_state: Any = 0,
    ) -> None:
        self.flow = flow
        self.steps = steps
        self.seconds = seconds
        self.keys = keys
        self.device = device
        self.random_state = random_state

    def _fit(self, rows: Any, given: Any, weight: Any) -> FittedDensity:
        seed = self.random_state
        if not isinstance(seed, int | np.integer) or isinstance(seed, bool):
            seed = int(check_random_state(seed).randint(2**31 - 1))
        arguments = {
            "flow": None if self.flow == "auto" else self.flow,
            "steps": self.steps,
            "seconds": self.seconds,
            "device": None if self.device == "cpu" else self.device,
            "seed": int(seed),
        }
        defaults: dict[str, Any] = {"device": "cpu", "data.test_fraction": 0.0}
        if given is None and isinstance(rows, dict):
            # Columns by their names, so that one that numbers the rows is modelled too.
            defaults["data.columns"] = tuple(rows)
        config = make_config(MEMORY, arguments, self.keys or {}, defaults=defaults)
        if config.train.steps == "auto" and config.train.seconds == "auto":
            config = make_config(MEMORY, arguments, self.keys or {}, defaults=defaults | {"train.steps": DEFAULT_STEPS})
        asked = config.model_dump()
        data = load_data(data_options(asked), source=rows, given=given, weight=weight)
        problem = plan(asked, data)
        refuse_unused_keys(config, problem)
        return fitting.fit(problem).density


class FlowDensity(DensityMixin, _Fits):  # type: ignore[misc]
    """A density of rows, for pipelines and grid searches.

    Args:
        flow: As the key ``flow`` of ``pushforward fit``; ``auto`` follows from the numbers of rows and columns.
        steps: Budget in steps; equal seeds then give equal densities. Without any budget, 2,000 steps.
        seconds: Budget in seconds; with steps, the fit ends with the first of both.
        keys: Further keys, such as ``{"learning_rate": 1e-3, "flow.layers": 3}``.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        random_state: Seed of everything random; None for another one in each fit.

    Attributes:
        density_: The fitted density, see ``pushforward.fit``.
        n_features_in_: Number of columns.
        feature_names_in_: Their names, if the rows had names.

    Example:
        >>> x = np.random.default_rng(0).normal(size=(300, 2))
        >>> density = FlowDensity(steps=20).fit(x)
        >>> density.score_samples(x).shape, density.sample(4).shape
        ((300,), (4, 2))
    """

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> "FlowDensity":
        """Fit the density to rows ``(n, D)``, with weights ``(n,)``.

        Raises:
            ValueError: If the rows cannot be used; the message says what is wrong.
        """
        frame = X
        X = validate_data(self, X, ensure_min_samples=3, dtype=np.float64)
        kind = FrameKind.of(frame)
        self.density_ = self._fit(_named(X, self), None, _weights(sample_weight, X))
        self.density_.kind = kind
        return self

    def score_samples(self, X: Any) -> Array:
        """Log-densities ``(n,)`` of rows ``(n, D)``, in nats and the units of the data."""
        check_is_fitted(self)
        log_probs: Array = self.density_.log_prob(validate_data(self, X, reset=False, dtype=np.float64))
        return log_probs

    def score(self, X: Any, y: Any = None) -> Any:
        """Mean log-density of rows, in nats: the higher, the better."""
        return float(self.score_samples(X).mean())

    def sample(self, n_samples: int = 1, random_state: Any = None) -> Any:
        """Draw rows ``(n_samples, D)``, of the kind that the density was fitted to.

        Args:
            n_samples: Number of rows.
            random_state: Seed; by default another one in each call.
        """
        check_is_fitted(self)
        return self.density_.sample(n_samples, seed=int(check_random_state(random_state).randint(2**31 - 1)))


class ConditionalDensity(RegressorMixin, _Fits):  # type: ignore[misc]
    """A density of targets given inputs, p(y given x), for regression with intervals.

    Args:
        flow: As for :class:`FlowDensity`; ``bayesian-network`` for a network with a posterior over its weights.
        steps: As for :class:`FlowDensity`.
        seconds: As for :class:`FlowDensity`.
        keys: As for :class:`FlowDensity`.
        device: As for :class:`FlowDensity`.
        random_state: As for :class:`FlowDensity`.

    Attributes:
        density_: The fitted density, see ``pushforward.fit``.
        n_features_in_: Number of inputs.
        feature_names_in_: Their names, if they had names.

    Example:
        >>> x = np.random.default_rng(0).normal(size=(300, 2))
        >>> model = ConditionalDensity(steps=20).fit(x, x[:, 0] ** 2)
        >>> model.predict(x).shape, model.interval(x, 0.9).shape, model.sample(x, 5).shape
        ((300,), (300, 2), (5, 300))
    """

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> "ConditionalDensity":
        """Fit the density of targets ``(n,)`` or ``(n, K)`` given inputs ``(n, D)``, with weights ``(n,)``.

        Raises:
            ValueError: If inputs or targets cannot be used; the message says what is wrong.
        """
        X, y = validate_data(self, X, y, ensure_min_samples=3, dtype=np.float64, multi_output=True, y_numeric=True)
        self._is_flat = y.ndim == 1
        targets = np.asarray(y, dtype=np.float64).reshape(len(y), -1)
        names = [f"y{i}" for i in range(1, targets.shape[1] + 1)] if targets.shape[1] > 1 else ["y"]
        self._varies = np.ptp(X, axis=0) > 0  # constant inputs, such as those of rare categories, say nothing
        if not self._varies.any():
            raise ValueError("ConditionalDensity: expected an input that varies; all columns of X are constant")
        rows = dict(zip(names, targets.T, strict=True))
        self.density_ = self._fit(rows, X[:, self._varies], _weights(sample_weight, X))
        column = self.density_.schema.columns[0]
        self._range = (column.minimum, column.maximum)
        return self

    def predict(self, X: Any) -> Array:
        """Conditional means ``(n,)`` or ``(n, K)``: integrals for a single target, else means of 1,000 samples."""
        rows = self._rows(X)
        if len(self.density_.schema.columns) == 1:
            return mean(self.density_.model, rows, self._range).reshape((-1,) if self._is_flat else (-1, 1))
        # With the same noise for each row, so that its mean does not depend on the others.
        return np.stack([self.density_.draw(_DRAWS, row[None], seed=0).mean(0) for row in rows])

    def quantiles(self, X: Any, levels: Sequence[float]) -> Array:
        """Conditional quantiles ``(n, k)`` at ``k`` levels between 0 and 1, of a single target."""
        rows = self._rows(X)
        if len(self.density_.schema.columns) > 1:
            raise ValueError("ConditionalDensity: expected a single target for quantiles; it was fitted to several")
        return quantiles(self.density_.model, rows, levels, self._range)

    def interval(self, X: Any, coverage: float = 0.9) -> Array:
        """Central intervals ``(n, 2)`` with this probability, of a single target."""
        if not 0 < coverage < 1:
            raise ValueError(f"ConditionalDensity: expected a coverage above 0 and below 1; got {coverage}")
        return self.quantiles(X, [0.5 - coverage / 2, 0.5 + coverage / 2])

    def log_prob(self, X: Any, y: Any) -> Array:
        """Log-densities ``(n,)`` of targets given inputs, in nats and the units of the targets."""
        rows = self._rows(X)
        targets = np.asarray(y, dtype=np.float64)
        log_probs: Array = self.density_.log_prob(targets.reshape(len(targets), -1) if targets.ndim else targets, rows)
        return log_probs

    def sample(self, X: Any, n: int = 1, random_state: Any = None) -> Array:
        """Draw targets given inputs: ``(n, rows)``, or ``(n, rows, K)`` for several targets."""
        rows = self._rows(X)
        seed = int(check_random_state(random_state).randint(2**31 - 1))
        drawn = self.density_.draw(n * len(rows), np.tile(rows, (n, 1)), seed=seed)
        return drawn.reshape((n, len(rows)) if self._is_flat else (n, len(rows), -1))

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Mean log-density of targets given inputs, in nats: the higher, the better."""
        return float(np.average(self.log_prob(X, y), weights=sample_weight))

    def _rows(self, X: Any) -> Array:
        check_is_fitted(self)
        rows: Any = validate_data(self, X, reset=False, dtype=np.float64)
        varying: Array = rows[:, self._varies]
        return varying

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        tags.regressor_tags.poor_score = True  # its score is a mean log-density, and not R squared
        return tags


def _named(rows: Array, estimator: Any) -> Any:
    """Rows as columns by name, if the estimator knows names."""
    names = getattr(estimator, "feature_names_in_", None)
    return rows if names is None else dict(zip(names, rows.T, strict=True))


def _weights(sample_weight: Any, rows: Array) -> Array | None:
    if sample_weight is None:
        return None
    weights = np.asarray(sample_weight, dtype=np.float64)
    if not weights.any():
        raise ValueError("sample_weight: expected weights above zero; all of them are zero")
    return np.full(len(rows), float(weights)) if weights.ndim == 0 else weights
