"""The configuration as frozen pydantic models: every key with its type, default, bounds and description.

:mod:`pushforward.config.read` reads YAML files and ``key=value`` arguments, and passes every scalar *as text*: the
field decides the type, not the form of the text. So ``1e4`` is a whole number for ``train.steps``, ``off`` is a mode
and not ``False``, and ``1.50`` can be the name of a column.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from pushforward.common.mappings import flatten
from pushforward.common.text import as_argument, did_you_mean, number_text
from pushforward.flows.registries import BASES, FLOWS, UNIVARIATE_MAPS, network_names
from pushforward.train.objectives.registry import all_objective_names

Scalar = str | int | float | bool | None


@dataclass(frozen=True)
class Expected:
    """What a field accepts, for its error message."""

    text: str


class UnknownName(ValueError):
    """A name that is not in a list; the message already suggests the nearest one."""


def _whole(value: Any) -> Any:
    """Read ``1e4`` and ``1_000`` as whole numbers; the field refuses anything else."""
    if isinstance(value, bool):
        raise ValueError("a truth value is not a number")
    if isinstance(value, str):
        try:
            return int(value)
        except ValueError:
            number = float(value)
            return int(number) if number.is_integer() else value
    return value


def _number(value: Any) -> Any:
    """Refuse booleans, which Python and pydantic accept as 0 and 1."""
    if isinstance(value, bool):
        raise ValueError("a truth value is not a number")
    return value


def _names(value: Any) -> Any:
    """Read ``a,b`` and ``[a, "b, c"]`` as lists of names."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = [value]
    if not isinstance(value, str):
        # pandas numbers columns without names; their names are these numbers as text.
        is_list = isinstance(value, Sequence)
        return [str(one) if type(one) is int else one for one in value] if is_list else value
    if value.lstrip().startswith("["):
        try:
            names = yaml.load(value, Loader=yaml.BaseLoader)
        except yaml.YAMLError as error:
            raise ValueError("not a list") from error
        return names
    return [name.strip() for name in value.split(",") if name.strip()]


def _bounds(value: Any) -> Any:
    """Read ``-4,4`` as the ends of an interval."""
    if value is None or value in ("", "none"):
        return None
    ends = [float(part) for part in (value.strip("[]()").split(",") if isinstance(value, str) else value)]
    if len(ends) != 2 or not -math.inf < ends[0] < ends[1] < math.inf:
        raise ValueError("not an interval")
    return tuple(ends)


def _numbers(value: Any) -> Any:
    """Read ``-9999,-1`` and ``[-9999, -1]`` as lists of numbers; a single number is a list of one."""
    if isinstance(value, str):
        value = [part for part in value.strip("[]() ").split(",") if part.strip()]
    return value if isinstance(value, list | tuple) else [value]


def _flow_name(value: Any) -> Any:
    return _known("flow", value, FLOWS.names())


def _base_name(value: Any) -> Any:
    return _known("base", value, BASES.names())


def _network_name(value: Any) -> Any:
    return _known("network", value, network_names())


def _univariate_name(value: Any) -> Any:
    return _known("univariate map", value, UNIVARIATE_MAPS.names())


def _known(what: str, value: Any, known: Sequence[str]) -> str:
    """Return a registered name, or ``auto``; the nearest one is suggested for another."""
    name = str(value).strip().lower().replace("_", "-")
    if name not in (*known, "auto"):
        raise UnknownName(f"unknown {what} '{value}'; {did_you_mean(name, known)}known: {', '.join(known)}")
    return name


def _objective_name(value: Any) -> Any:
    return _known("objective", value, all_objective_names())


def _tracker_names(value: Any) -> Any:
    """Read a list of names as they are registered; whether there are such trackers is known to ``tracking`` only."""
    names = _names(value)
    is_list = isinstance(names, list | tuple)
    return [name.strip().lower().replace("_", "-") for name in names] if is_list else names


def _optional_text(value: Any) -> Any:
    return None if value == "" else value


def _device(value: Any) -> Any:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", str(value)):
        raise ValueError("not a device")
    return value


Auto = Literal["auto"]
Count = Annotated[int, BeforeValidator(_whole), Field(gt=0), Expected("a whole number above 0")]
# A larger mixture of flows would take minutes to build, and as many times the memory of one flow.
Members = Annotated[
    int, BeforeValidator(_whole), Field(gt=0, le=256), Expected("a whole number above 0, and at most 256")
]
# The seeds of NumPy and scikit-learn end there.
Seed = Annotated[int, BeforeValidator(_whole), Field(ge=0, lt=2**32), Expected("a whole number from 0 to 4294967295")]
Several = Annotated[int, BeforeValidator(_whole), Field(gt=1), Expected("a whole number above 1")]
CountOrZero = Annotated[int, BeforeValidator(_whole), Field(ge=0), Expected("a whole number, 0 or above")]
Positive = Annotated[float, BeforeValidator(_number), Field(gt=0, allow_inf_nan=False), Expected("a number above 0")]
PositiveOrZero = Annotated[
    float, BeforeValidator(_number), Field(ge=0, allow_inf_nan=False), Expected("a number, 0 or above")
]
Share = Annotated[float, BeforeValidator(_number), Field(gt=0, lt=1), Expected("a number between 0 and 1")]
ShareOrZero = Annotated[float, BeforeValidator(_number), Field(ge=0, lt=1), Expected("a number from 0 to below 1")]
ShareOrOne = Annotated[float, BeforeValidator(_number), Field(gt=0, le=1), Expected("a number above 0, at most 1")]
Truth = Annotated[bool, Expected("true or false")]
Bounds = Annotated[
    tuple[float, float] | None, BeforeValidator(_bounds), Expected("low,high: two numbers, low below high")
]
Names = Annotated[tuple[str, ...], BeforeValidator(_names), Expected("a list of names, as in a,b or [a, b]")]
TrackerNames = Annotated[
    tuple[str, ...], BeforeValidator(_tracker_names), Expected("a list of trackers, as in a,b or [a, b]")
]
Numbers = Annotated[
    tuple[Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False)], ...],
    BeforeValidator(_numbers),
    Expected("a list of numbers, as in -9999 or [-9999, -1]"),
]
Text = Annotated[str, Field(min_length=1), Expected("a text")]
OptionalText = Annotated[str | None, BeforeValidator(_optional_text), Expected("a text")]


VaeFlow = Literal["gaussian", "realnvp", "maf", "iaf", "nsf-c", "nsf-ar"]


class Section(BaseModel):
    """A group of keys; a plain text for the group sets its main key, ``shorthand``."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    shorthand: ClassVar[str] = ""

    @model_validator(mode="before")
    @classmethod
    def _expand_shorthand(cls, value: Any) -> Any:
        return {cls.shorthand: value} if isinstance(value, str) and cls.shorthand else value


class DataConfig(Section):
    """The data: rows, columns, split."""

    shorthand: ClassVar[str] = "source"

    source: Annotated[str, Field(min_length=1), Expected("the name of a data set, or a file")] = Field(
        description="name of a toy or a data set, a CSV or Parquet file, or target:NAME"
    )
    rows: Count | Auto = Field(default="auto", description="rows to draw from a toy, or to keep from a file")
    columns: Literal["all"] | Names = Field(default="all", description="columns to model")
    drop: Names = Field(default=(), description="columns to leave out")
    given: Names = Field(default=(), description="columns to condition on")
    response: Names = Field(default=(), description="columns to model given all the others, as in regression")
    weight: OptionalText = Field(default=None, description="column with the weights of the rows")
    missing: Literal["refuse", "drop"] = Field(
        default="refuse",
        description="rows with missing or infinite values: refuse the table, or drop these rows",
    )
    missing_values: Numbers = Field(default=(), description="numbers that stand for a missing value, such as -9999")
    protocol: Literal["none", "rnade", "half", "tenths"] = Field(
        default="none",
        description="evaluation protocol of the literature: columns and splits; docs/datasets.md",
    )
    fold: CountOrZero = Field(default=0, description="fold of the protocol")
    dequantize: Literal["auto", "off"] = Field(
        default="auto",
        description="auto: uniform noise of one bin width on columns whose values repeat on a grid; off: values as "
        "they are",
    )
    seed: Seed | Auto = Field(
        default="auto", description="seed of the split, and of the rows of a toy; auto is the seed of the fit"
    )
    validation_fraction: Share = Field(default=0.1, description="share of the rows for validation")
    test_fraction: ShareOrZero = Field(default=0.1, description="share of the rows for testing")

    @model_validator(mode="after")
    def _leave_rows_to_learn_from(self) -> "DataConfig":
        if self.protocol == "none" and self.fold:
            raise ValueError(f"data.fold: expected 0 without data.protocol; got {self.fold}")
        most = 9 if self.protocol == "rnade" else 1_000_000  # as in datasets.tables.protocols, which imports NumPy
        if self.protocol != "none" and self.fold > most:
            raise ValueError(f"data.fold: expected 0 to {most} for data.protocol={self.protocol}; got {self.fold}")
        if self.protocol != "none":
            for key in ("validation_fraction", "test_fraction"):
                if getattr(self, key) != type(self).model_fields[key].default:
                    raise ValueError(f"data.{key}: has no effect, as data.protocol={self.protocol} splits the rows")
        held_out = self.validation_fraction + self.test_fraction
        if held_out >= 1:
            raise ValueError(f"data.validation_fraction + data.test_fraction: expected a sum below 1; got {held_out:g}")
        return self


class FlowConfig(Section):
    """The flow; ``auto`` is decided by the fit from rows and columns."""

    shorthand: ClassVar[str] = "name"

    name: Annotated[str, BeforeValidator(_flow_name)] = Field(
        default="auto", description=f"auto, {', '.join(FLOWS.names())}"
    )
    layers: Count | Auto = Field(default="auto", description="number of layers")
    hidden: Count | Auto = Field(default="auto", description="hidden features of the conditioner networks")
    blocks: CountOrZero | Auto = Field(
        default="auto", description="residual blocks in each conditioner; 0 is a network with one hidden layer"
    )
    bins: Several | Auto = Field(default="auto", description="bins of each spline")
    bound: Positive | Auto = Field(default="auto", description="splines act on the interval from -bound to bound")
    tails: Literal["linear", "learned"] | Auto = Field(
        default="auto",
        description="slope of splines outside that interval: linear is 1, learned is trained; auto is linear",
    )
    linear: Literal["between", "around"] | Auto = Field(
        default="auto",
        description="linear layers that mix the columns: between the layers; or around, a random permutation and an LU "
        "layer before each layer and at the end; auto is between",
    )
    unconditional: Literal["none", "spline"] | Auto = Field(
        default="auto",
        description="map that couplings apply to their identity features: none, or spline, with parameters that "
        "depend on no other feature; auto is none",
    )
    elementwise: Truth | Auto = Field(
        default="auto", description="a spline for each column, before all layers; auto is false"
    )
    dropout: ShareOrZero | Auto = Field(default="auto", description="dropout in the conditioners")
    conditioner: Annotated[str, BeforeValidator(_network_name)] = Field(
        default="auto", description="network of autoregressive layers: residual, or transformer; auto is residual"
    )
    univariate: Annotated[str, BeforeValidator(_univariate_name)] = Field(
        default="auto",
        description="map of the layers: affine, or rational-quadratic (a spline); auto is that of the flow",
    )
    components: Count | Auto = Field(
        default="auto", description="Gaussians for each column in made-mog, a masked network with mixtures"
    )
    members: Members | Auto = Field(
        default="auto",
        description="number of flows averaged in probability, each with another order of the columns",
    )
    stacking: Truth | Auto = Field(
        default="auto",
        description="average the flow with a Gaussian and a kernel density, weighted by validation likelihood; auto is "
        "true for small tables if the flow is auto, too",
    )
    base: Annotated[str, BeforeValidator(_base_name)] = Field(
        default="auto",
        description="base distribution: a Gaussian, by its covariance, or another one; auto is full up to 256 columns",
    )


class TargetConfig(Section):
    """The target that is fitted instead of rows, if DATA is ``target:NAME``."""

    features: Count | Auto = Field(default="auto", description="number of features; required for your own function")
    bounds: Bounds = Field(default=None, description="low,high: the density is zero outside this box")
    spread: Positive | Auto = Field(default="auto", description="typical distance of the mass from the origin")


class VaeConfig(Section):
    """The variational autoencoder of the objectives elbo and iwae."""

    latent: Count | Auto = Field(default="auto", description="latent features; auto is half the columns, at most 32")
    decoder: Literal["auto", "bernoulli", "gaussian", "categorical", "logistic"] = Field(
        default="auto",
        description="distribution of a row: bernoulli for 0 and 1, gaussian; categorical or logistic for whole numbers",
    )
    prior: VaeFlow = Field(
        default="realnvp",
        description="prior distribution of the latent features: gaussian, or a flow that is trained too",
    )
    posterior: VaeFlow = Field(
        default="gaussian", description="distribution of the latent features given a row: gaussian, or a flow"
    )


class TrainConfig(Section):
    """Training: objective, budget, optimiser."""

    objective: Annotated[str, BeforeValidator(_objective_name)] = Field(
        default="auto",
        description="for rows: mle, energy (sliced energy distance of samples), mle+energy, or a bound of a "
        "variational autoencoder, elbo or iwae; for a target: reverse-kl, alpha, forward-kl or iwae; auto is mle "
        "or reverse-kl",
    )
    gradient: Literal["auto", "path", "path-wise", "score-function"] = Field(
        default="auto",
        description="gradient estimator of a target's objective (path, path-wise, score-function) or of an "
        "autoencoder's bound (path, path-wise); auto is path",
    )
    alpha: PositiveOrZero = Field(
        default=2.0, description="order of the alpha divergence: 0 seeks modes, 2 covers modes"
    )
    annealing: ShareOrZero = Field(
        default=0.4, description="share of the budget over which the target is annealed, so that modes are not lost"
    )
    importance_samples: Several = Field(default=16, description="samples in each bound of the objective iwae")
    energy_weight: Positive = Field(default=1.0, description="weight of the energy distance in mle+energy")
    steps: Count | Auto = Field(default="auto", description="stop after this many optimiser steps")
    seconds: Positive | Auto = Field(
        default="auto", description="stop after this much training time; the learning-rate schedule adapts to it"
    )
    batch_size: Count | Auto = Field(default="auto", description="rows in a step")
    learning_rate: Positive | Auto = Field(default="auto", description="peak of the learning-rate schedule")
    warmup: CountOrZero | Auto = Field(
        default="auto", description="steps over which the learning rate rises to its peak; auto is 100"
    )
    weight_decay: PositiveOrZero | Auto = Field(default="auto", description="decoupled weight decay")
    gradient_clip: Positive = Field(default=5.0, description="largest gradient norm in a step")
    ema_decay: ShareOrZero | Auto = Field(
        default="auto", description="decay of the exponential moving average of the weights; 0 turns averaging off"
    )
    patience: ShareOrOne | Auto = Field(
        default="auto",
        description="early stopping: share of the budget without a better validation loss; 1 never stops early",
    )
    validate_every: Count | Auto = Field(
        default="auto", description="steps between validations; auto is forty validations over the budget"
    )
    compile: Literal["auto", "on", "off"] = Field(
        default="auto",
        description="auto: kernels in C on a CPU, torch.compile of the layers on CUDA for fits of a minute or more; "
        "off: torch's operations; on: torch.compile also for short fits, and on a CPU for layers without a kernel",
    )
    precision: Literal["auto", "float32", "tf32", "bf16"] = Field(
        default="auto",
        description="precision of matrix products; auto is tf32 on CUDA, else float32; bf16 is for conditioners only",
    )
    checkpoint_seconds: Positive = Field(default=30.0, description="time between checkpoints")
    log_every: Count | Auto = Field(default="auto", description="steps between rows of metrics")
    evaluate: Truth = Field(default=True, description="evaluate after the fit: baselines, samples, pictures")


class WandbConfig(Section):
    """Weights & Biases: mode and names."""

    shorthand: ClassVar[str] = "mode"

    mode: Literal["auto", "online", "offline", "off"] = Field(
        default="auto", description="auto: WANDB_MODE if set, else online with an API key, else offline"
    )
    project: Text = Field(default="pushforward", description="project of the run")
    name: OptionalText = Field(default=None, description="name of the run; by default that of the run folder")
    group: OptionalText = Field(default=None, description="group of the run")
    tags: Names = Field(default=(), description="tags, in addition to the flow and the data set")


class Config(BaseModel):
    """The configuration of a fit, as the user gave it; ``auto`` is still allowed.

    Example:
        >>> config = Config(data="moons", flow="nsf-ar", train={"seconds": 60})
        >>> config.flow.name, config.train.seconds, config.wandb.mode
        ('nsf-ar', 60.0, 'auto')
        >>> config.flat()["flow.layers"]
        'auto'
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: DataConfig = Field(description="data")
    target: TargetConfig = Field(default=TargetConfig(), description="target that is fitted instead of rows")
    flow: FlowConfig = Field(default=FlowConfig(), description="flow")
    vae: VaeConfig = Field(default=VaeConfig(), description="autoencoder of the objectives elbo and iwae")
    train: TrainConfig = Field(default=TrainConfig(), description="training")
    seed: Seed = Field(default=0, description="seed of everything random")
    device: Annotated[str, BeforeValidator(_device), Expected("auto, cpu, cuda, cuda:N or mps")] = Field(
        default="auto", description="auto, cpu, cuda, cuda:N or mps"
    )
    track: TrackerNames = Field(default=(), description="trackers besides metrics.jsonl and Weights & Biases")
    wandb: WandbConfig = Field(default=WandbConfig(), description="Weights & Biases")

    def flat(self) -> dict[str, Scalar]:
        """Return every key with its value as on the command line; lists become ``a,b``."""
        return {key: _as_scalar(value) for key, value in flatten(self.model_dump()).items()}

    def to_yaml(self) -> str:
        """Return the configuration as YAML, which :func:`load_config` reads back."""
        text: str = yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        return text


def _as_scalar(value: Any) -> Scalar:
    """Write a list as on the command line."""
    if not isinstance(value, tuple):
        scalar: Scalar = value
        return scalar
    if value and all(isinstance(number, float) for number in value):
        return ",".join(map(number_text, value))
    return as_argument(value)
