"""What a fit is told: frozen models of the configuration, every field with its meaning and its bounds.

The text forms (YAML files and ``key=value`` arguments) are read in :mod:`pushforward.config.read`. It
hands every scalar over *as text*: the type of a value comes from its field, never from how it looks. So ``1e4``
is a whole number where steps are counted, ``off`` is a mode and not ``False``, ``1.50`` can name a column.
"""

import json
import math
import re
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

FLOWS = ("realnvp", "maf", "iaf", "nsf-c", "nsf-ar", "made-mog", "gaussian")
Base = Literal[
    "auto",
    "diagonal",
    "low-rank",
    "full",
    "student-t",
    "laplace",
    "logistic",
    "uniform",
    "gamma",
    "beta",
    "mixture",
    "made-mog",
]

Scalar = str | int | float | bool | None


@dataclass(frozen=True)
class Expected:
    """What a field accepts, in the words of its error message."""

    text: str


class UnknownName(ValueError):
    """A name outside a closed list; the message already says which is nearest."""


def _whole(value: Any) -> Any:
    """Read ``1e4`` and ``1_000`` as whole numbers; leave what is not one for the field to refuse."""
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
    """Refuse truth values, which Python and pydantic would count as 0 and 1."""
    if isinstance(value, bool):
        raise ValueError("a truth value is not a number")
    return value


def _names(value: Any) -> Any:
    """Read ``a,b`` and ``[a, "b, c"]`` as lists of names."""
    if not isinstance(value, str):
        return value
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


def _flow_name(value: Any) -> Any:
    from pushforward.common.text import did_you_mean

    name = str(value).strip().lower().replace("_", "-")
    if name not in (*FLOWS, "auto"):
        raise UnknownName(f"unknown flow '{value}'; {did_you_mean(name, FLOWS)}known: {', '.join(FLOWS)}")
    return name


def _optional_text(value: Any) -> Any:
    return None if value == "" else value


def _device(value: Any) -> Any:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", str(value)):
        raise ValueError("not a device")
    return value


Auto = Literal["auto"]
Count = Annotated[int, BeforeValidator(_whole), Field(gt=0), Expected("a whole number above 0")]
# An ensemble of more would be built for minutes, and take as many times the memory of one flow.
Members = Annotated[
    int, BeforeValidator(_whole), Field(gt=0, le=256), Expected("a whole number above 0, and at most 256")
]
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
Text = Annotated[str, Field(min_length=1), Expected("a text")]
OptionalText = Annotated[str | None, BeforeValidator(_optional_text), Expected("a text")]


VaeFlow = Literal["gaussian", "realnvp", "maf", "iaf", "nsf-c", "nsf-ar"]


class Section(BaseModel):
    """A group of keys; a bare text given for the group sets its most telling key."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    shorthand: ClassVar[str] = ""

    @model_validator(mode="before")
    @classmethod
    def _expand_shorthand(cls, value: Any) -> Any:
        return {cls.shorthand: value} if isinstance(value, str) and cls.shorthand else value


class DataConfig(Section):
    """Which rows and columns are learned."""

    shorthand: ClassVar[str] = "source"

    source: Annotated[str, Field(min_length=1), Expected("the name of a data set, or a file")] = Field(
        description="a toy's name, a data set's name, a CSV or Parquet file, or target:NAME"
    )
    rows: Count | Auto = Field(default="auto", description="rows to draw from a toy, or to keep of a file")
    columns: Literal["all"] | Names = Field(default="all", description="columns to learn")
    drop: Names = Field(default=(), description="columns to leave out")
    context: Names = Field(default=(), description="columns to condition on")
    protocol: Literal["none", "rnade", "half", "tenths"] = Field(
        default="none", description="choose columns and divide rows as the literature does; docs/datasets.md"
    )
    fold: CountOrZero = Field(default=0, description="which division of the protocol")
    dequantize: Literal["auto", "off"] = Field(default="auto", description="spread whole numbers over their unit cell")
    seed: CountOrZero | Auto = Field(
        default="auto", description="seed of the split, and of a toy's rows; auto is that of the fit"
    )
    validation_fraction: Share = Field(default=0.1, description="share of the rows that decides when to stop")
    test_fraction: ShareOrZero = Field(default=0.1, description="share of the rows that is scored once, at the end")

    @model_validator(mode="after")
    def _leave_rows_to_learn_from(self) -> "DataConfig":
        if self.protocol == "none" and self.fold:
            raise ValueError(f"data.fold: is a division of data.protocol, which is none; got {self.fold}")
        most = 9 if self.protocol == "rnade" else 1_000_000  # what datasets.protocols knows, which takes NumPy
        if self.protocol != "none" and self.fold > most:
            raise ValueError(f"data.fold: expected 0 to {most} for data.protocol={self.protocol}; got {self.fold}")
        if self.protocol != "none":
            for key in ("validation_fraction", "test_fraction"):
                if getattr(self, key) != type(self).model_fields[key].default:
                    raise ValueError(f"data.{key}: has no effect, as data.protocol={self.protocol} divides the rows")
        held_out = self.validation_fraction + self.test_fraction
        if held_out >= 1:
            raise ValueError(f"data.validation_fraction + data.test_fraction: expected a sum below 1; got {held_out:g}")
        return self


class FlowConfig(Section):
    """Which flow is built; ``auto`` leaves a choice to the fit, which knows rows and columns."""

    shorthand: ClassVar[str] = "name"

    name: Annotated[str, BeforeValidator(_flow_name)] = Field(default="auto", description=f"auto, {', '.join(FLOWS)}")
    layers: Count | Auto = Field(default="auto", description="bijections with parameters, one after the other")
    hidden: Count | Auto = Field(default="auto", description="width of the conditioners")
    blocks: CountOrZero | Auto = Field(
        default="auto", description="residual blocks in each conditioner; 0 is a plain network with one hidden layer"
    )
    bins: Several | Auto = Field(default="auto", description="bins of each spline")
    bound: Positive | Auto = Field(default="auto", description="half-width of the interval on which splines act")
    tails: Literal["linear", "learned"] | Auto = Field(
        default="auto", description="slopes of splines outside that interval: linear is one; auto is linear"
    )
    linear: Literal["between", "around"] | Auto = Field(
        default="auto",
        description="what mixes the columns: between the layers, or around them, random permutations and LU layers "
        "before each and at the end; auto is between",
    )
    unconditional: Literal["none", "spline"] | Auto = Field(
        default="auto",
        description="what couplings apply to their identity features: none, or for each a spline whose parameters "
        "depend on nothing; auto is none",
    )
    elementwise: Truth | Auto = Field(
        default="auto", description="a spline for each column, before all layers; auto is false"
    )
    dropout: ShareOrZero | Auto = Field(default="auto", description="dropout in the conditioners")
    conditioner: Literal["residual", "transformer"] | Auto = Field(
        default="auto", description="network of autoregressive layers: residual, or transformer; auto is residual"
    )
    components: Count | Auto = Field(
        default="auto", description="Gaussians for each column, of made-mog: masked networks with mixtures"
    )
    members: Members | Auto = Field(
        default="auto",
        description="flows averaged in probability, each with an order of the columns of its own",
    )
    stacking: Truth | Auto = Field(
        default="auto",
        description="average it with a Gaussian and a kernel density, weighted by validation likelihood; auto does so "
        "on small tables where the flow is auto too",
    )
    base: Base = Field(
        default="auto",
        description="base density: a Gaussian by its covariance, or another law; auto is full up to 256 columns",
    )


class TargetConfig(Section):
    """The unnormalised density that is fitted in place of rows, where DATA is ``target:NAME``."""

    features: Count | Auto = Field(default="auto", description="coordinates of a point; a function needs to be told")
    bounds: Bounds = Field(default=None, description="low,high: the box outside of which a function's density is zero")
    spread: Positive | Auto = Field(default="auto", description="about how far from the origin a function's mass lies")


class VaeConfig(Section):
    """The variational autoencoder that is fitted where the objective is a bound on the likelihood of rows."""

    latent: Count | Auto = Field(default="auto", description="latent features; auto is half the columns, at most 32")
    decoder: Literal["auto", "bernoulli", "gaussian", "categorical", "logistic"] = Field(
        default="auto",
        description="law of a row: bernoulli of 0 and 1, gaussian, categorical, or logistic of ordered whole numbers",
    )
    prior: VaeFlow = Field(default="realnvp", description="law of latent points: gaussian, or a flow that trains along")
    posterior: VaeFlow = Field(default="gaussian", description="law of latent points given a row: gaussian, or a flow")


class TrainConfig(Section):
    """How the flow is fitted."""

    objective: Literal["auto", "mle", "energy", "mle+energy", "elbo", "iwae", "reverse-kl", "alpha", "forward-kl"] = (
        Field(
            default="auto",
            description="what is minimised; of rows: mle, energy (sliced energy distance of samples), mle+energy, or "
            "minus a bound of a variational autoencoder, elbo or iwae; of a target: reverse-kl, alpha, forward-kl, or "
            "iwae; auto is mle or reverse-kl",
        )
    )
    gradient: Literal["auto", "path", "path-wise", "score-function"] = Field(
        default="auto", description="of an objective on a target: how it is differentiated; auto is path"
    )
    alpha: PositiveOrZero = Field(default=2.0, description="order of the objective alpha: 0 seeks modes, 2 covers them")
    annealing: ShareOrZero = Field(
        default=0.4, description="share of the budget over which a target is sharpened, so that modes are not lost"
    )
    importance_samples: Several = Field(default=16, description="points of each bound of the objective iwae")
    energy_weight: Positive = Field(default=1.0, description="weight of the energy distance in mle+energy")
    steps: Count | Auto = Field(default="auto", description="stop after this many optimiser steps")
    seconds: Positive | Auto = Field(
        default="auto", description="stop after this much time; the schedule fits itself in"
    )
    batch_size: Count | Auto = Field(default="auto", description="rows in one step")
    learning_rate: Positive | Auto = Field(default="auto", description="peak of the learning-rate schedule")
    warmup: CountOrZero | Auto = Field(
        default="auto", description="steps over which the learning rate rises to its peak; auto is 100"
    )
    weight_decay: PositiveOrZero | Auto = Field(default="auto", description="decoupled weight decay")
    gradient_clip: Positive = Field(default=5.0, description="largest norm of the gradient in one step")
    ema_decay: ShareOrZero | Auto = Field(default="auto", description="decay of the averaged weights; 0 turns it off")
    patience: ShareOrOne | Auto = Field(
        default="auto",
        description="share of the budget without a better validation NLL after which to stop; 1 never stops",
    )
    validate_every: Count | Auto = Field(
        default="auto", description="steps between validations; auto spreads forty of them over the budget"
    )
    compile: Literal["auto", "on", "off"] = Field(
        default="auto",
        description="auto: kernels in C on a CPU, torch.compile of the layers on CUDA for fits of a minute or more; "
        "off: torch's own operations; on: torch.compile also for short fits, and on a CPU where there is no kernel",
    )
    precision: Literal["auto", "float32", "tf32", "bf16"] = Field(
        default="auto",
        description="of matrix products while training; auto is tf32 on CUDA, else float32; bf16: of conditioners only",
    )
    checkpoint_seconds: Positive = Field(default=30.0, description="time between checkpoints")
    log_every: Count | Auto = Field(default="auto", description="steps between rows of metrics")
    evaluate: Truth = Field(default=True, description="baselines and pictures after the fit")


class WandbConfig(Section):
    """Where Weights & Biases records the run."""

    shorthand: ClassVar[str] = "mode"

    mode: Literal["auto", "online", "offline", "off"] = Field(
        default="auto", description="auto: WANDB_MODE if set, else online with an API key, else offline"
    )
    project: Text = Field(default="pushforward", description="project of the run")
    name: OptionalText = Field(default=None, description="name of the run; the run folder's name if not given")
    group: OptionalText = Field(default=None, description="group of runs that belong together")
    tags: Names = Field(default=(), description="tags besides the flow and the data set")


class Config(BaseModel):
    """Everything a fit is told.

    Example:
        >>> config = Config(data="moons", flow="nsf-ar", train={"seconds": 60})
        >>> config.flow.name, config.train.seconds, config.wandb.mode
        ('nsf-ar', 60.0, 'auto')
        >>> config.flat()["flow.layers"]
        'auto'
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: DataConfig = Field(description="which rows and columns are learned")
    target: TargetConfig = Field(default=TargetConfig(), description="which density is fitted in place of rows")
    flow: FlowConfig = Field(default=FlowConfig(), description="which flow is built")
    vae: VaeConfig = Field(
        default=VaeConfig(), description="which autoencoder is built, for the objectives elbo and iwae"
    )
    train: TrainConfig = Field(default=TrainConfig(), description="how it is fitted")
    seed: CountOrZero = Field(default=0, description="seed of everything random")
    device: Annotated[str, BeforeValidator(_device), Expected("auto, cpu, cuda, cuda:N or mps")] = Field(
        default="auto", description="auto, cpu, cuda, cuda:N or mps"
    )
    wandb: WandbConfig = Field(default=WandbConfig(), description="Weights & Biases")

    @property
    def data_seed(self) -> int:
        """The seed that decides which rows there are and which part each is in."""
        return self.seed if self.data.seed == "auto" else self.data.seed

    def flat(self) -> dict[str, Scalar]:
        """Return every key as it is typed on the command line, with its value; lists become ``a,b``."""
        values: dict[str, Scalar] = {}
        for key, value in self.model_dump().items():
            group = {f"{key}.{name}": item for name, item in value.items()} if isinstance(value, dict) else {key: value}
            values.update({name: _one_line(item) for name, item in group.items()})
        return values

    def to_yaml(self) -> str:
        """Return the configuration as YAML that :func:`load_config` reads back as an equal one."""
        text: str = yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        return text


def _one_line(value: Any) -> Scalar:
    """Write a list as ``a,b``, or as a quoted list where a name would not survive that."""
    if not isinstance(value, tuple):
        scalar: Scalar = value
        return scalar
    if all(isinstance(number, float) for number in value):
        return ",".join(f"{number:g}" for number in value)
    plain = all(name and name == name.strip() and "," not in name and not name.startswith("[") for name in value)
    if plain and value != ("all",):
        return ",".join(value)
    return json.dumps(list(value), ensure_ascii=False)
