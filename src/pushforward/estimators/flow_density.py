"""The density of rows as an estimator of scikit-learn."""

from typing import Any

from sklearn.base import DensityMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from pushforward.common.whole_number import whole_number
from pushforward.datasets.tables.memory.frame_kind import FrameKind
from pushforward.estimators.base import DensityEstimator
from pushforward.estimators.inputs import read_sample_weight
from pushforward.evaluate.likelihood import Array


class FlowDensity(DensityMixin, DensityEstimator):  # type: ignore[misc]  # scikit-learn carries no types
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
        >>> import numpy as np
        >>> x = np.random.default_rng(0).normal(size=(300, 2))
        >>> density = FlowDensity(steps=20).fit(x)
        >>> density.score_samples(x).shape, density.sample(4).shape
        ((300,), (4, 2))
    """

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> "FlowDensity":
        """Fit the density to rows ``(n, D)``, with weights ``(n,)`` of any scale.

        Raises:
            ValueError: If the rows or the weights cannot be used; the message says what is wrong.
        """
        rows = self._new_inputs(X, vary=True)
        names = getattr(self, "feature_names_in_", None)
        columns = rows if names is None else dict(zip(names, rows.T, strict=True))
        self._fit(columns, None, read_sample_weight(sample_weight, len(rows)))
        self.density_.kind = FrameKind.of(X)
        return self

    def score_samples(self, X: Any) -> Array:
        """Log-densities ``(n,)`` of rows ``(n, D)``, in nats and the units of the data."""
        rows = self._inputs(X)
        log_probs: Array = self.density_.log_prob(rows)
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
        n = whole_number("n_samples", n_samples, 1)
        return self.density_.sample(n, seed=int(check_random_state(random_state).randint(2**31 - 1)))
