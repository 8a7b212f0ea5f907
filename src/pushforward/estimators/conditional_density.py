"""The density of targets given inputs as an estimator of scikit-learn."""

import warnings
from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np
from sklearn.base import RegressorMixin
from sklearn.utils import check_random_state

from pushforward.common.errors import DataError
from pushforward.common.text import shorten
from pushforward.common.whole_number import whole_number
from pushforward.estimators.base import DensityEstimator
from pushforward.estimators.inputs import check_new, read_sample_weight, read_targets
from pushforward.evaluate.conditional import mean, quantiles
from pushforward.evaluate.likelihood import Array, UndefinedDensityError, why_undefined
from pushforward.evaluate.statistics import mean_and_se

_DRAWS = 1_000


class ConditionalDensity(RegressorMixin, DensityEstimator):  # type: ignore[misc]  # scikit-learn carries no types
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
        """Fit the density of targets given inputs.

        Args:
            X: Inputs ``(n, D)``.
            y: Targets ``(n,)`` or ``(n, K)``. The columns of a table keep their names: those of tables for ``log_prob``
                and ``score`` are then found by name.
            sample_weight: Weights ``(n,)`` of any scale; by default equal ones.

        Raises:
            ValueError: If inputs, targets or weights cannot be used; the message says what is wrong.
        """
        inputs = self._new_inputs(X, vary=False)
        if y is None:
            raise DataError("y: ConditionalDensity requires y to be passed, but the target y is None")
        targets = read_targets(y, len(inputs))
        count = targets.matrix.shape[1]
        names = targets.names or (tuple(f"y{k + 1}" for k in range(count)) if count > 1 else ("y",))
        check_new("y", names, targets.matrix, vary=True, named=bool(targets.names))
        self._varies = np.ptp(inputs, axis=0) > 0  # constant inputs, such as those of rare categories, say nothing
        if not self._varies.any():
            raise DataError("X: expected an input that varies; all columns are constant")
        self._is_flat, self._target_names = targets.is_flat, targets.names
        rows = dict(zip(names, targets.matrix.T, strict=True))
        self._fit(rows, inputs[:, self._varies], read_sample_weight(sample_weight, len(inputs)))
        column = self.density_.schema.columns[0]
        self._range = (column.minimum, column.maximum)
        return self

    def predict(self, X: Any) -> Array:
        """Conditional means ``(n,)`` or ``(n, K)``: integrals for a single target, else means of 1,000 samples.

        Raises:
            UndefinedDensityError: If the density given a row has no finite quantiles or samples, as far outside the
                data of the fit.
        """
        rows = self._context(X)
        if len(self.density_.schema.columns) == 1:
            return mean(self.density_.model, rows, self._range).reshape((-1,) if self._is_flat else (-1, 1))
        # With the same noise for each row, so that its mean does not depend on the others.
        return np.stack([self._mean_of_draws(row, k) for k, row in enumerate(rows, 1)])

    def quantiles(self, X: Any, levels: Sequence[float]) -> Array:
        """Conditional quantiles ``(n, k)`` at ``k`` levels between 0 and 1, of a single target.

        Raises:
            UndefinedDensityError: As for :meth:`predict`.
        """
        rows = self._context(X)
        if len(self.density_.schema.columns) > 1:
            raise ValueError("ConditionalDensity: expected a single target for quantiles; it was fitted to several")
        return quantiles(self.density_.model, rows, _numbers(levels), self._range)

    def interval(self, X: Any, coverage: float = 0.9) -> Array:
        """Central intervals ``(n, 2)`` with this probability, of a single target.

        Raises:
            UndefinedDensityError: As for :meth:`predict`.
        """
        if not isinstance(coverage, Real) or not 0 < coverage < 1:
            raise ValueError(f"coverage: expected a number above 0 and below 1; got {coverage!r}")
        return self.quantiles(X, [0.5 - coverage / 2, 0.5 + coverage / 2])

    def log_prob(self, X: Any, y: Any) -> Array:
        """Log-densities ``(n,)`` of targets given inputs, in nats and the units of the targets.

        Raises:
            ValueError: If inputs or targets cannot be used, or a table of targets has other names than in the fit.
        """
        return self._log_prob(self._context(X), y)

    def sample(self, X: Any, n: int = 1, random_state: Any = None) -> Array:
        """Draw targets given inputs: ``(n, rows)``, or ``(n, rows, K)`` for several targets."""
        rows, n = self._context(X), whole_number("n", n, 1)
        seed = int(check_random_state(random_state).randint(2**31 - 1))
        drawn = self.density_.draw(n * len(rows), np.tile(rows, (n, 1)), seed=seed)
        return drawn.reshape((n, len(rows)) if self._is_flat else (n, len(rows), -1))

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Mean log-density of targets given inputs, in nats: the higher, the better.

        Args:
            X: Inputs ``(n, D)``.
            y: Targets ``(n,)`` or ``(n, K)``.
            sample_weight: Weights ``(n,)`` of any scale; by default equal ones.
        """
        rows = self._context(X)
        weights = read_sample_weight(sample_weight, len(rows))
        return mean_and_se(self._log_prob(rows, y), weights, where="score")[0]

    def _context(self, X: Any) -> Array:
        """The inputs that the density is conditioned on."""
        rows = self._inputs(X)
        varying: Array = rows[:, self._varies]
        return varying

    def _log_prob(self, rows: Array, y: Any) -> Array:
        targets = read_targets(y, len(rows), self._target_names)
        expected, found = len(self.density_.schema.columns), targets.matrix.shape[1]
        if found != expected:
            raise DataError(f"y: expected {expected} column{'s' * (expected > 1)}, as in the fit; got {found}")
        if targets.names and not self._target_names and len(targets.names) > 1:
            warnings.warn("y has column names, but ConditionalDensity was fitted without", UserWarning, stacklevel=3)
        log_probs: Array = self.density_.log_prob(targets.matrix, rows)
        return log_probs

    def _mean_of_draws(self, row: Array, number: int) -> Array:
        """The mean of draws ``(K,)`` given one row, which has this number in messages."""
        try:
            means: Array = self.density_.draw(_DRAWS, row[None], seed=0).mean(0)
        except UndefinedDensityError:
            why = why_undefined(has_context=True)
            raise UndefinedDensityError(f"the density given row {number} has no finite mean: {why}") from None
        return means

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        tags.regressor_tags.poor_score = True  # its score is a mean log-density, and not R squared
        return tags


def _numbers(levels: Any) -> Array:
    """Return levels ``(k,)`` as an array."""
    try:
        found = np.atleast_1d(np.asanyarray(levels))
    except ValueError:  # lists of different lengths
        found = np.empty((0, 0))
    if found.ndim != 1 or found.dtype.kind not in "fiu" or np.ma.is_masked(found):
        raise ValueError(f"levels: expected numbers above 0 and below 1; got {shorten(repr(levels), 60)}")
    return found
