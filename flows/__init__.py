"""Bijections, base laws and flows: build them, compose them, train them, save them."""

from pushforward.flows.autoregressive import MaskedAutoregressive
from pushforward.flows.base import Gaussian
from pushforward.flows.bijection import Bijection, Chain, Foreign, Inverse
from pushforward.flows.conditioners import MaskedResidualNet, ResidualNet
from pushforward.flows.coupling import Coupling
from pushforward.flows.flow import Flow
from pushforward.flows.incremental import IncrementalPass
from pushforward.flows.linear import LULinear, Permutation
from pushforward.flows.normalization import ActNorm, Standardize
from pushforward.flows.presets import NAMES, build
from pushforward.flows.spline import RationalQuadraticSpline
from pushforward.flows.storage import ModelFileError, load, read_extra, save
from pushforward.flows.testing import check_bijection
from pushforward.flows.univariate import Affine, Univariate

__all__ = [
    "NAMES",
    "ActNorm",
    "Affine",
    "Bijection",
    "Chain",
    "Coupling",
    "Flow",
    "Foreign",
    "Gaussian",
    "IncrementalPass",
    "Inverse",
    "LULinear",
    "MaskedAutoregressive",
    "MaskedResidualNet",
    "ModelFileError",
    "Permutation",
    "RationalQuadraticSpline",
    "ResidualNet",
    "Standardize",
    "Univariate",
    "build",
    "check_bijection",
    "load",
    "read_extra",
    "save",
]
