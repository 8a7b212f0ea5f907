"""Densities as torch modules: base distributions, bijections and flows, and how to save and load them."""

from typing import TYPE_CHECKING

from pushforward.common.lazy import lazy

if TYPE_CHECKING:
    from pushforward.flows.architectures import Build as Build, register_flow as register_flow
    from pushforward.flows.bases.base import Base as Base, LocationScale as LocationScale
    from pushforward.flows.bases.bounded import Beta as Beta, Gamma as Gamma, Uniform as Uniform
    from pushforward.flows.bases.gaussian import Gaussian as Gaussian
    from pushforward.flows.bases.gaussian_mixture import GaussianMixture as GaussianMixture
    from pushforward.flows.bases.heavy_tailed import Laplace as Laplace, Logistic as Logistic
    from pushforward.flows.bases.kernel_density import KernelDensity as KernelDensity
    from pushforward.flows.bases.made_mog import AutoregressiveMixture as AutoregressiveMixture
    from pushforward.flows.bases.student_t import StudentT as StudentT
    from pushforward.flows.bases.transformed import TransformedDistribution as TransformedDistribution
    from pushforward.flows.bijections.autoregressive import MaskedAutoregressive as MaskedAutoregressive
    from pushforward.flows.bijections.base import (
        Bijection as Bijection,
        Chain as Chain,
        Inverse as Inverse,
        NflowsTransform as NflowsTransform,
    )
    from pushforward.flows.bijections.coupling import Coupling as Coupling
    from pushforward.flows.bijections.elementwise import Elementwise as Elementwise
    from pushforward.flows.bijections.linear import (
        LowRankLinear as LowRankLinear,
        LULinear as LULinear,
        Permutation as Permutation,
    )
    from pushforward.flows.bijections.normalization import ActNorm as ActNorm, Standardize as Standardize
    from pushforward.flows.bijections.probit import Probit as Probit
    from pushforward.flows.bijections.support import Log as Log, Logit as Logit
    from pushforward.flows.bijections.tails import LogTails as LogTails
    from pushforward.flows.flow import Flow as Flow
    from pushforward.flows.mixture import Mixture as Mixture, Model as Model, members_of as members_of
    from pushforward.flows.named_bases import NAMED as NAMED, make_base as make_base
    from pushforward.flows.networks.incremental import Incremental as Incremental, IncrementalPass as IncrementalPass
    from pushforward.flows.networks.masked import (
        MaskedConditioner as MaskedConditioner,
        MaskedResidualNet as MaskedResidualNet,
    )
    from pushforward.flows.networks.residual import ResidualNet as ResidualNet
    from pushforward.flows.networks.transformer import MaskedTransformer as MaskedTransformer
    from pushforward.flows.parts import (
        register_base as register_base,
        register_network as register_network,
        register_part as register_part,
        register_univariate as register_univariate,
    )
    from pushforward.flows.presets import NAMES as NAMES, build as build, build_mixture as build_mixture
    from pushforward.flows.storage import (
        ModelFileError as ModelFileError,
        load as load,
        load_model as load_model,
        read_extra as read_extra,
        save as save,
    )
    from pushforward.flows.testing import check_bijection as check_bijection
    from pushforward.flows.univariate.affine import Affine as Affine
    from pushforward.flows.univariate.base import Univariate as Univariate
    from pushforward.flows.univariate.rational_quadratic import RationalQuadraticSpline as RationalQuadraticSpline
    from pushforward.flows.vae.autoencoder import Autoencoder as Autoencoder, build_autoencoder as build_autoencoder
    from pushforward.flows.vae.decoders import (
        BernoulliDecoder as BernoulliDecoder,
        CategoricalDecoder as CategoricalDecoder,
        Decoder as Decoder,
        GaussianDecoder as GaussianDecoder,
        LogisticDecoder as LogisticDecoder,
    )
    from pushforward.flows.vae.encoder import Encoder as Encoder

__getattr__, __dir__ = lazy(
    "pushforward.flows",
    {
        "bases.base": "Base LocationScale",
        "bases.bounded": "Beta Gamma Uniform",
        "bases.gaussian": "Gaussian",
        "bases.gaussian_mixture": "GaussianMixture",
        "bases.heavy_tailed": "Laplace Logistic",
        "bases.kernel_density": "KernelDensity",
        "bases.made_mog": "AutoregressiveMixture",
        "architectures": "Build register_flow",
        "named_bases": "NAMED make_base",
        "bases.student_t": "StudentT",
        "bases.transformed": "TransformedDistribution",
        "bijections.autoregressive": "MaskedAutoregressive",
        "bijections.base": "Bijection Chain NflowsTransform Inverse",
        "bijections.coupling": "Coupling",
        "bijections.elementwise": "Elementwise",
        "bijections.linear": "LULinear LowRankLinear Permutation",
        "bijections.normalization": "ActNorm Standardize",
        "bijections.probit": "Probit",
        "bijections.support": "Log Logit",
        "bijections.tails": "LogTails",
        "flow": "Flow",
        "mixture": "Mixture Model members_of",
        "networks.incremental": "Incremental IncrementalPass",
        "networks.masked": "MaskedConditioner MaskedResidualNet",
        "networks.residual": "ResidualNet",
        "networks.transformer": "MaskedTransformer",
        "parts": "register_base register_network register_part register_univariate",
        "presets": "NAMES build build_mixture",
        "storage": "ModelFileError load load_model read_extra save",
        "testing": "check_bijection",
        "univariate.affine": "Affine",
        "univariate.base": "Univariate",
        "univariate.rational_quadratic": "RationalQuadraticSpline",
        "vae.autoencoder": "Autoencoder build_autoencoder",
        "vae.decoders": "BernoulliDecoder CategoricalDecoder Decoder GaussianDecoder LogisticDecoder",
        "vae.encoder": "Encoder",
    },
)
