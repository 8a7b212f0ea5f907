"""The architecture ``bayesian-network``: no layers, a Bayesian network as the base."""

from typing import Any

from pushforward.flows.architectures import Architecture, Build
from pushforward.flows.bases.base import Base
from pushforward.flows.bayesian.density import build_bayesian_network

_POSTERIORS: dict[str, dict[str, Any]] = {
    "full": {"posterior": "flow"},
    "diagonal": {"posterior": "mean-field", "prior": "inputs", "prior_scale": 1.0},
}
"""The posterior for each base: with dependent weights, or a factorised Gaussian."""


def _base(build: Build) -> Base:
    if not build.context:
        raise ValueError(
            "build: expected columns to condition on for bayesian-network; got none (data.response=y models y given "
            "all the others)"
        )
    if build.base not in _POSTERIORS:
        raise ValueError(
            "build: expected base full or diagonal for bayesian-network, for a posterior with dependent or independent "
            f"weights; got {build.base}"
        )
    hidden = (build.hidden,) * max(1, build.blocks)
    options = _POSTERIORS[build.base]
    return build_bayesian_network(build.features, build.context, hidden=hidden, noise="heteroscedastic", **options)


BAYESIAN_NETWORK = Architecture(
    None,
    frozenset({"hidden", "blocks"}),
    base=_base,
    objective="evidence",
    defaults={"hidden": 50, "blocks": 1, "batch_size": 512, "learning_rate": 1e-2, "weight_decay": 0.0},
)
