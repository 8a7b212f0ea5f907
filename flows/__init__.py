"""Bijections, base laws and flows: build them, compose them, train them, save them."""

from pushforward.flows.autoencoder import Autoencoder, Encoder, build_autoencoder
from pushforward.flows.autoregressive import MaskedAutoregressive
from pushforward.flows.base import Base, LocationScale
from pushforward.flows.bijection import Bijection, Chain, Foreign, Inverse
from pushforward.flows.bounded import Beta, Gamma, Uniform
from pushforward.flows.conditioners import MaskedResidualNet, ResidualNet
from pushforward.flows.coupling import Coupling
from pushforward.flows.decoders import BernoulliDecoder, CategoricalDecoder, Decoder, GaussianDecoder, LogisticDecoder
from pushforward.flows.flow import Flow
from pushforward.flows.gaussian import Gaussian
from pushforward.flows.incremental import IncrementalPass
from pushforward.flows.laws import Laplace, Logistic, StudentT
from pushforward.flows.linear import LULinear, Permutation
from pushforward.flows.mixture import GaussianMixture
from pushforward.flows.normalization import ActNorm, Standardize
from pushforward.flows.presets import BASES, NAMES, build, make_base
from pushforward.flows.probit import Probit
from pushforward.flows.resampled import Acceptance, Resampled
from pushforward.flows.spline import RationalQuadraticSpline
from pushforward.flows.storage import ModelFileError, load, load_model, read_extra, save
from pushforward.flows.support import Log, Logit, Pushed
from pushforward.flows.testing import check_bijection
from pushforward.flows.univariate import Affine, Univariate

__all__ = [
    "BASES",
    "NAMES",
    "Acceptance",
    "ActNorm",
    "Affine",
    "Autoencoder",
    "Base",
    "BernoulliDecoder",
    "Beta",
    "Bijection",
    "CategoricalDecoder",
    "Chain",
    "Coupling",
    "Decoder",
    "Encoder",
    "Flow",
    "Foreign",
    "Gamma",
    "Gaussian",
    "GaussianDecoder",
    "GaussianMixture",
    "IncrementalPass",
    "Inverse",
    "LULinear",
    "Laplace",
    "LocationScale",
    "Log",
    "Logistic",
    "LogisticDecoder",
    "Logit",
    "MaskedAutoregressive",
    "MaskedResidualNet",
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
    "check_bijection",
    "load",
    "load_model",
    "make_base",
    "read_extra",
    "save",
]
