"""Estimators of scikit-learn: :class:`FlowDensity` for p(x), :class:`ConditionalDensity` for p(y given x)."""

from typing import TYPE_CHECKING

from pushforward.common.lazy import lazy

if TYPE_CHECKING:
    from pushforward.estimators.conditional_density import ConditionalDensity as ConditionalDensity
    from pushforward.estimators.flow_density import FlowDensity as FlowDensity

__getattr__, __dir__ = lazy(
    "pushforward.estimators",
    {"conditional_density": "ConditionalDensity", "flow_density": "FlowDensity"},
)
