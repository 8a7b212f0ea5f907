"""The registry of model parts: their names in saved files.

Files hold these names, never a class or module path, so that code can move without breaking a saved model. Univariate
maps and networks of ``registries.py`` are parts under their names there, unless they have another here.
"""

from collections.abc import Callable
from typing import Any, TypeVar

from pushforward.common.registry import Registry
from pushforward.flows.registries import BASES, COUPLING_NETWORKS, MASKED_NETWORKS, UNIVARIATE_MAPS
from pushforward.flows.torch_modules import TORCH_MODULES

_STORED = {
    name: f"pushforward.flows.{place}"
    for name, place in {
        "act-norm": "bijections.normalization:ActNorm",
        "autoencoder": "vae.autoencoder:Autoencoder",
        "bayesian-network": "bayesian.density:BayesianNetwork",
        "bernoulli-decoder": "vae.decoders:BernoulliDecoder",
        "beta": "bases.bounded:Beta",
        "categorical-decoder": "vae.decoders:CategoricalDecoder",
        "chain": "bijections.base:Chain",
        "coupling": "bijections.coupling:Coupling",
        "elementwise": "bijections.elementwise:Elementwise",
        "encoder": "vae.encoder:Encoder",
        "flow": "flow:Flow",
        "gamma": "bases.bounded:Gamma",
        "gaussian": "bases.gaussian:Gaussian",
        "gaussian-decoder": "vae.decoders:GaussianDecoder",
        "gaussian-mixture": "bases.gaussian_mixture:GaussianMixture",
        "inverse": "bijections.base:Inverse",
        "kernel-density": "bases.kernel_density:KernelDensity",
        "laplace": "bases.heavy_tailed:Laplace",
        "log": "bijections.support:Log",
        "log-tails": "bijections.tails:LogTails",
        "logistic": "bases.heavy_tailed:Logistic",
        "logistic-decoder": "vae.decoders:LogisticDecoder",
        "logit": "bijections.support:Logit",
        "low-rank-linear": "bijections.linear:LowRankLinear",
        "lu-linear": "bijections.linear:LULinear",
        "made-mog": "bases.made_mog:AutoregressiveMixture",
        "masked-autoregressive": "bijections.autoregressive:MaskedAutoregressive",
        "masked-residual-net": "networks.masked:MaskedResidualNet",
        "masked-transformer": "networks.transformer:MaskedTransformer",
        "mixture": "mixture:Mixture",
        "permutation": "bijections.linear:Permutation",
        "probit": "bijections.probit:Probit",
        "scaled-embedding": "embedding:ScaledEmbedding",
        "rational-quadratic-spline": "univariate.rational_quadratic:RationalQuadraticSpline",
        "residual-net": "networks.residual:ResidualNet",
        "standardize": "bijections.normalization:Standardize",
        "student-t": "bases.student_t:StudentT",
        "transformed-distribution": "bases.transformed:TransformedDistribution",
        "uniform": "bases.bounded:Uniform",
    }.items()
}

_BUILT_BY_NAME = {
    **UNIVARIATE_MAPS.builtins,
    **COUPLING_NETWORKS.builtins,
    **{f"masked-{name}": path for name, path in MASKED_NETWORKS.builtins.items()},
}

PARTS: Registry[type[Any]] = Registry(
    "part",
    _STORED | {name: path for name, path in _BUILT_BY_NAME.items() if path not in _STORED.values()} | TORCH_MODULES,
)

Kind = TypeVar("Kind", bound=type[Any])
Maker = TypeVar("Maker", bound=Callable[..., Any])


def register_part(name: str) -> Callable[[Kind], Kind]:
    """Register your own class, by decorating it, so that models that contain it can be saved and loaded.

    The class is a bijection, univariate map, network or base with a ``config()`` that returns the arguments to rebuild
    it. Import its module before you load such a model.

    Args:
        name: Name in saved files, such as ``"my-map"``.

    Raises:
        ValueError: If another class has this name.
    """
    return PARTS.register(name)


def register_base(name: str) -> Callable[[Maker], Maker]:
    """Return a decorator for a base distribution, the value of ``flow.base``.

    It takes a ``Base`` whose constructor takes ``(features, context)``; models that hold it can be saved. Or it takes a
    function from a ``Build``, with the sizes, to a ``Base``.
    """

    def add(item: Maker) -> Maker:
        if not isinstance(item, type):
            return BASES.register(name)(item)
        register = BASES.register(name, definition=item)  # so that what is refused leaves nothing behind
        BASES.check_free(name, item)
        PARTS.register(name)(item)
        register(lambda build: item(build.features, build.context))
        return item

    return add


def register_univariate(name: str) -> Callable[[Kind], Kind]:
    """Return a decorator for a ``Univariate``, the value of ``flow.univariate``, for layers of every kind.

    Its constructor may take any of ``bins``, ``bound`` and ``tails``. Models that hold it can be saved.
    """

    def add(kind: Kind) -> Kind:
        register = UNIVARIATE_MAPS.register(name)
        UNIVARIATE_MAPS.check_free(name, kind)
        PARTS.register(name)(kind)
        return register(kind)

    return add


def register_network(name: str, *, masked: bool = False) -> Callable[[Kind], Kind]:
    """Return a decorator for a network, the value of ``flow.conditioner``. Models that hold it can be saved.

    Args:
        name: The name. A network of each kind can have it; layers of a kind without one keep residual networks.
        masked: Whether it is a ``MaskedConditioner`` of autoregressive layers, with the constructor of
            ``MaskedResidualNet``; else a network of couplings, with the constructor of ``ResidualNet``.
    """

    def add(kind: Kind) -> Kind:
        networks = MASKED_NETWORKS if masked else COUPLING_NETWORKS
        register = networks.register(name)
        networks.check_free(name, kind)
        PARTS.register(f"masked-{name}" if masked else name)(kind)
        return register(kind)

    return add
