"""Bijections, base laws and flows: build them, compose them, train them, save them."""

from pushforward.flows.autoencoder import Autoencoder, Encoder, build_autoencoder
from pushforward.flows.autoregressive import MaskedAutoregressive
from pushforward.flows.autoregressive_mixture import AutoregressiveMixture
from pushforward.flows.base import Base, LocationScale
from pushforward.flows.bijection import Bijection, Chain, Foreign, Inverse
from pushforward.flows.bounded import Beta, Gamma, Uniform
from pushforward.flows.conditioners import MaskedConditioner, MaskedResidualNet, ResidualNet
from pushforward.flows.coupling import Coupling
from pushforward.flows.decoders import BernoulliDecoder, CategoricalDecoder, Decoder, GaussianDecoder, LogisticDecoder
from pushforward.flows.ensemble import Ensemble, Model, members_of
from pushforward.flows.flow import Flow
from pushforward.flows.gaussian import Gaussian
from pushforward.flows.incremental import Incremental, IncrementalPass
from pushforward.flows.kernel_density import KernelDensity
from pushforward.flows.laws import Laplace, Logistic, StudentT
from pushforward.flows.linear import LULinear, Permutation
from pushforward.flows.marginal import Marginal
from pushforward.flows.mixture import GaussianMixture
from pushforward.flows.normalization import ActNorm, Standardize
from pushforward.flows.presets import BASES, NAMES, build, build_ensemble, make_base
from pushforward.flows.probit import Probit
from pushforward.flows.resampled import Acceptance, Resampled
from pushforward.flows.spline import RationalQuadraticSpline
from pushforward.flows.storage import ModelFileError, load, load_model, read_extra, save
from pushforward.flows.support import Log, Logit, Pushed
from pushforward.flows.testing import check_bijection
from pushforward.flows.transformer import MaskedTransformer
from pushforward.flows.univariate import Affine, Univariate

__all__ = [
    "BASES",
    "NAMES",
    "Acceptance",
    "ActNorm",
    "Affine",
    "Autoencoder",
    "AutoregressiveMixture",
    "Base",
    "BernoulliDecoder",
    "Beta",
    "Bijection",
    "CategoricalDecoder",
    "Chain",
    "Coupling",
    "Decoder",
    "Encoder",
    "Ensemble",
    "Flow",
    "Foreign",
    "Gamma",
    "Gaussian",
    "GaussianDecoder",
    "GaussianMixture",
    "Incremental",
    "IncrementalPass",
    "Inverse",
    "KernelDensity",
    "LULinear",
    "Laplace",
    "LocationScale",
    "Log",
    "Logistic",
    "LogisticDecoder",
    "Logit",
    "Marginal",
    "MaskedAutoregressive",
    "MaskedConditioner",
    "MaskedResidualNet",
    "MaskedTransformer",
    "Model",
    "ModelFileError",
    "Permutation",
    "Probit",
    "Pushed",
    "RationalQuadraticSpline",
    "Resampled",
    "ResidualNet",
    "Standardize",
    "StudentT",
    "Uniform",
    "Univariate",
    "build",
    "build_autoencoder",
    "build_ensemble",
    "check_bijection",
    "load",
    "load_model",
    "make_base",
    "members_of",
    "read_extra",
    "save",
]
