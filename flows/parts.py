"""The registry of model parts: their names in saved files.

Files hold these names, never a class or module path, so that code can move without breaking a saved model.
"""

from collections.abc import Callable
from typing import Any, TypeVar

from pushforward.common.registry import Registry

PARTS: Registry[type[Any]] = Registry(
    "part",
    {
        name: f"pushforward.flows.{place}"
        for name, place in {
            "act-norm": "bijections.normalization:ActNorm",
            "affine": "univariate.affine:Affine",
            "autoencoder": "vae.autoencoder:Autoencoder",
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
    },
)

Kind = TypeVar("Kind", bound=type[Any])


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
