"""What the estimators share: their options, the check of inputs, and the fit."""

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from pushforward.common.errors import ConfigError
from pushforward.config.read import make_config
from pushforward.config.resolved import refuse_unused_keys
from pushforward.datasets.dataset import MEMORY
from pushforward.estimators.inputs import check_new, check_size, plain_inputs
from pushforward.evaluate.density import FittedDensity
from pushforward.evaluate.likelihood import Array
from pushforward.flows.torch_defaults import usual_defaults
from pushforward.train import fitting
from pushforward.train.data import load_data
from pushforward.train.defaults import data_options
from pushforward.train.problems.registry import plan

DEFAULT_STEPS = 2_000
"""Budget without ``seconds``: with a budget in steps, fitting twice gives the same density."""


class DensityEstimator(BaseEstimator):  # type: ignore[misc]  # scikit-learn carries no types
    """An estimator that fits a density; the arguments are those of :class:`FlowDensity`."""

    density_: FittedDensity

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

    def _new_inputs(self, X: Any, *, vary: bool) -> Array:
        """Return the inputs of a fit ``(n, D)``, and remember their number and names."""
        rows: Any = validate_data(self, plain_inputs(X), ensure_min_samples=3, dtype=np.float64)
        check_new("X", self._input_names(), rows, vary=vary)
        return np.asarray(rows)

    def _inputs(self, X: Any) -> Array:
        """Return inputs ``(n, D)`` with the columns of those of the fit."""
        check_is_fitted(self)
        rows: Any = validate_data(self, plain_inputs(X), reset=False, dtype=np.float64)
        check_size("X", self._input_names(), rows)
        return np.asarray(rows)

    def _input_names(self) -> list[str]:
        return list(getattr(self, "feature_names_in_", [f"x{k + 1}" for k in range(self.n_features_in_)]))

    @usual_defaults()
    def _fit(self, rows: Any, given: Any, weight: Array | None) -> Self:
        seed, keys = self.random_state, {} if self.keys is None else self.keys
        if not isinstance(seed, int | np.integer) or isinstance(seed, bool):
            seed = int(check_random_state(seed).randint(2**31 - 1))
        if not isinstance(keys, Mapping) or not all(isinstance(key, str) for key in keys):
            raise ConfigError(f"keys: expected a mapping from names to values, or None; got {keys!r}")
        arguments = {
            "flow": None if self.flow == "auto" else self.flow,
            "steps": self.steps,
            "seconds": self.seconds,
            "device": None if self.device == "cpu" else self.device,
            "seed": int(seed),
        }
        defaults: dict[str, Any] = {"device": "cpu", "data.test_fraction": 0.0}
        if isinstance(rows, dict):
            # Columns by their names, so that one that numbers the rows is modelled too.
            defaults["data.columns"] = tuple(rows)
        config = make_config(MEMORY, arguments, keys, defaults=defaults)
        if config.train.steps == "auto" and config.train.seconds == "auto":
            config = make_config(MEMORY, arguments, keys, defaults=defaults | {"train.steps": DEFAULT_STEPS})
        asked = config.model_dump()
        data = load_data(data_options(asked), source=rows, given=given, weight=weight)
        problem = plan(asked, data)
        refuse_unused_keys(config, problem)
        self.density_ = fitting.fit(problem).density
        return self
