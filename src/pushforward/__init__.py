"""Density estimation with normalizing flows: fit, score, sample and evaluate.

Importing this package imports nothing else. :func:`fit` and :func:`load` give densities, :class:`FlowDensity` and
:class:`ConditionalDensity` are estimators of scikit-learn, :func:`build` gives flows as torch modules; the parts are
``pushforward.flows``, ``pushforward.datasets``, ``pushforward.train`` and ``pushforward.evaluate``.
"""

from typing import TYPE_CHECKING, Any

from pushforward.common.lazy import lazy
from pushforward.common.version import __version__ as __version__

if TYPE_CHECKING:
    from pushforward import datasets as datasets, evaluate as evaluate, flows as flows, train as train
    from pushforward.api import fit as fit, load as load
    from pushforward.estimators import ConditionalDensity as ConditionalDensity, FlowDensity as FlowDensity
    from pushforward.flows.presets import build as build
    from pushforward.flows.testing import check_bijection as check_bijection

_ROOMS = ("datasets", "evaluate", "flows", "train")

_get, _names = lazy(
    "pushforward",
    {
        "api": "fit load",
        "estimators": "ConditionalDensity FlowDensity",
        "flows.presets": "build",
        "flows.testing": "check_bijection",
    },
)


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        import importlib

        return importlib.import_module(f"pushforward.{name}")
    return _get(name)


def __dir__() -> list[str]:
    return sorted([*_names(), *_ROOMS, "__version__"])
