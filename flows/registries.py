"""Names of flows, base distributions, univariate maps and networks; importing them imports no torch.

A built-in is a line of a table and its file. Others are added by ``register_flow`` (in ``architectures.py``), and by
``register_base``, ``register_univariate`` and ``register_network`` (in ``parts.py``), in a module that ``--plugin`` or
an entry point names.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pushforward.common.registry import Registry

if TYPE_CHECKING:
    from pushforward.flows.univariate.base import Univariate

FLOWS: Registry[Any] = Registry(
    "flow",
    {
        "realnvp": "pushforward.flows.architectures:REALNVP",
        "maf": "pushforward.flows.architectures:MAF",
        "iaf": "pushforward.flows.architectures:IAF",
        "nsf-c": "pushforward.flows.architectures:NSF_C",
        "nsf-ar": "pushforward.flows.architectures:NSF_AR",
        "made-mog": "pushforward.flows.architectures:MADE_MOG",
        "gaussian": "pushforward.flows.architectures:GAUSSIAN",
        "bayesian-network": "pushforward.flows.bayesian.architecture:BAYESIAN_NETWORK",
    },
    about={
        "realnvp": "affine couplings with alternating halves and ActNorm",
        "maf": "masked affine autoregressive layers with ActNorm, the order reversed in between; fast densities",
        "iaf": "the inverse of maf's layers; fast samples, and densities by the sequential inverse",
        "nsf-c": "rational-quadratic spline couplings with permutations and LU layers in between",
        "nsf-ar": "rational-quadratic spline autoregressive layers with permutations and LU layers in between",
        "made-mog": "no layers: a masked network with a mixture of Gaussians for every feature",
        "gaussian": "no layers: the base alone",
        "bayesian-network": "no layers: a network from the context to a Gaussian, with a posterior over its weights",
    },
)

BASES: Registry[Callable[[Any], Any]] = Registry(
    "base",
    {
        "diagonal": "pushforward.flows.named_bases:diagonal",
        "low-rank": "pushforward.flows.named_bases:low_rank",
        "full": "pushforward.flows.named_bases:full",
        "student-t": "pushforward.flows.named_bases:student_t",
        "laplace": "pushforward.flows.named_bases:laplace",
        "logistic": "pushforward.flows.named_bases:logistic",
        "uniform": "pushforward.flows.named_bases:uniform",
        "gamma": "pushforward.flows.named_bases:gamma",
        "beta": "pushforward.flows.named_bases:beta",
        "mixture": "pushforward.flows.named_bases:mixture",
        "made-mog": "pushforward.flows.architectures:mixture_base",
    },
)

UNIVARIATE_MAPS: "Registry[type[Univariate]]" = Registry(
    "univariate map",
    {
        "affine": "pushforward.flows.univariate.affine:Affine",
        "rational-quadratic": "pushforward.flows.univariate.rational_quadratic:RationalQuadraticSpline",
    },
)

MASKED_NETWORKS: Registry[type[Any]] = Registry(
    "network",
    {
        "residual": "pushforward.flows.networks.masked:MaskedResidualNet",
        "transformer": "pushforward.flows.networks.transformer:MaskedTransformer",
    },
)
"""Networks of autoregressive layers and of mixtures."""

COUPLING_NETWORKS: Registry[type[Any]] = Registry(
    "network", {"residual": "pushforward.flows.networks.residual:ResidualNet"}
)
"""Networks of couplings."""


def network_names() -> list[str]:
    """Names of all networks."""
    return list(dict.fromkeys([*MASKED_NETWORKS.names(), *COUPLING_NETWORKS.names()]))
