"""State dicts define the density: loading one restores it, or fails."""

import copy
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from pushforward.flows import (
    NAMES,
    ActNorm,
    Affine,
    Autoencoder,
    Base,
    Bijection,
    Chain,
    Coupling,
    Decoder,
    Encoder,
    Flow,
    Gaussian,
    KernelDensity,
    Laplace,
    Logistic,
    Logit,
    LULinear,
    MaskedAutoregressive,
    MaskedResidualNet,
    Mixture,
    Permutation,
    RationalQuadraticSpline,
    ResidualNet,
    Standardize,
    Uniform,
    Univariate,
    build,
    build_autoencoder,
    build_mixture,
)
from pushforward.flows.parts import PARTS

Perturb = Callable[[nn.Module], nn.Module]
SMALL: dict[str, Any] = {"layers": 3, "hidden": 8, "blocks": 1, "bins": 4, "components": 2}

OPTIONS: dict[str, list[Any]] = {
    "layers": [3, 2],
    "hidden": [8, 4],
    "blocks": [1, 2],
    "bins": [4, 5],
    "bound": [5.0, 3.0],
    "tails": ["linear", "learned"],
    "linear": ["between", "around"],
    "unconditional": ["none", "spline"],
    "elementwise": [False, True],
    "dropout": [0.0, 0.5],
    "conditioner": ["residual", "transformer"],
    "components": [2, 3],
    "univariate": ["", "affine"],
    "base": [
        "diagonal",
        "full",
        "low-rank",
        "laplace",
        "logistic",
        "student-t",
        "beta",
        "gamma",
        "uniform",
        "made-mog",
    ],
    "context": [0, 2, 3],
    "features": [4, 3],
}
"""Values of each option of ``build``; the first is that of the flow whose state is loaded."""


def log_prob(model: Any) -> Tensor:
    """Log-densities of fixed rows, given a fixed context, in evaluation mode."""
    generator = torch.Generator().manual_seed(7)
    x = torch.rand(50, model.features, generator=generator)
    context = torch.randn(50, model.context, generator=generator) if model.context else None
    with torch.no_grad():
        found: Tensor = model.eval().log_prob(x, context)
    return found


def test_every_option_of_a_preset_is_listed() -> None:
    assert set(OPTIONS) == set(inspect.signature(build).parameters) - {"name"}


@pytest.mark.parametrize("context", [0, 2])
@pytest.mark.parametrize("linear", ["between", "around"])
@pytest.mark.parametrize("name", NAMES)
def test_flows_of_other_seeds_load_the_same_density(name: str, linear: Any, context: int, perturb: Perturb) -> None:
    torch.manual_seed(1)
    flow = perturb(build(name, 5, context, linear=linear, **SMALL))
    torch.manual_seed(2)
    other = build(name, 5, context, linear=linear, **SMALL)
    other.load_state_dict(flow.state_dict())
    assert torch.equal(log_prob(other), log_prob(flow))
    orders = [[m.order for m in one.modules() if isinstance(m, Permutation)] for one in (flow, other)]
    assert orders[0] == orders[1]


def test_mixtures_and_autoencoders_load_the_same_density(perturb: Perturb) -> None:
    torch.manual_seed(1)
    mixture = Mixture(build_mixture("maf", 3, members=3, **SMALL).members, [0.2, 0.3, 0.5])
    perturb(mixture)
    torch.manual_seed(2)
    other = build_mixture("maf", 3, members=3, **SMALL)
    other.load_state_dict(mixture.state_dict())
    assert torch.equal(log_prob(other), log_prob(mixture))
    options: dict[str, Any] = {"features": 4, "latent": 3, "hidden": 8, "posterior": "nsf-c", "prior": "nsf-ar"}
    autoencoder = perturb(build_autoencoder("gaussian", standardize=Standardize([1.0] * 4, [2.0] * 4), **options))
    twin = build_autoencoder("gaussian", standardize=Standardize([0.0] * 4, [1.0] * 4), **options)
    twin.load_state_dict(autoencoder.state_dict())
    assert torch.equal(log_prob(twin), log_prob(autoencoder))


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("name", NAMES)
def test_flows_of_other_options_load_the_same_density_or_fail(name: str, option: str, perturb: Perturb) -> None:
    first, *others = OPTIONS[option]
    options = {"features": 4, **SMALL}

    def built(value: Any) -> Flow | None:
        try:
            return build(name, **{**options, option: value})
        except ValueError:
            return None  # this preset does not take the value

    flow = built(first)
    assert flow is not None
    perturb(flow)
    for value in others:
        other = built(value)
        if other is None:
            continue
        try:
            other.load_state_dict(flow.state_dict())
        except RuntimeError:
            continue
        assert torch.equal(log_prob(other), log_prob(flow)), value


def net(outputs: int = 2, **options: Any) -> ResidualNet:
    return ResidualNet(2, outputs, hidden=4, **options)


def masked(outputs: int = 6, **options: Any) -> MaskedResidualNet:
    return MaskedResidualNet(3, outputs, hidden=4, **options)


def latent_flow(context: int = 0) -> Flow:
    return build("realnvp", 2, context, layers=1, hidden=4)


SPLINE, WIDE = RationalQuadraticSpline(bins=4), RationalQuadraticSpline(bins=4, bound=9.0)
BOX: dict[str, Any] = {"features": [3], "low": [[0.0, -1.0, -2.0], [0.0, -1.0, -3.0]], "high": [[2.0] * 3, [3.0] * 3]}
LOCATION_SCALE: dict[str, Any] = {"features": [3, 2], "context": [0, 1], "trainable": [True, False]}
NETWORK: dict[str, Any] = {"context": [0, 1], "hidden": [8, 4], "blocks": [1, 2], "dropout": [0.0, 0.5]}

ARGUMENTS: dict[str, dict[str, Any]] = {
    "act-norm": {"features": [3, 2]},
    "affine": {"log_scale_bound": [3.0, 2.0]},
    "autoencoder": {
        "encoder": [ResidualNet(3, 4, hidden=4)],
        "decoder": [PARTS["gaussian-decoder"](net(3), 3), PARTS["bernoulli-decoder"](net(3), 3)],
        "prior": [latent_flow(), build("gaussian", 2), build("gaussian", 2, base="laplace")],
        "posterior": [latent_flow(4), build("maf", 2, 4, layers=1, hidden=4)],
    },
    "bayesian-network": {
        "features": [1, 2],
        "context": [2, 3],
        "posterior": [build("gaussian", 13), build("gaussian", 13, base="laplace")],
        "hidden": [[3], [2]],
        "noise": ["learned", 0.5, "heteroscedastic"],
        "prior": ["layers", "fixed", "inputs"],
        "prior_scale": [2.0, 1.0],
        "samples": [4, 5],
    },
    "bernoulli-decoder": {"net": [net(3)], "features": [3], "stochastic": [False, True]},
    "beta": {"features": [3, 2], "a": [1.0, 2.0], "b": [1.0, 2.0], "trainable": [True, False]},
    "categorical-decoder": {"net": [net(6)], "features": [3, 2], "values": [2, 3]},
    "chain": {"bijections": [[LULinear(3)], [Logit(3)], []], "features": [3], "context": [0, 1]},
    "coupling": {
        "conditioner": [ResidualNet(2, 2, hidden=4), ResidualNet(2, 2, hidden=4, blocks=1)],
        "univariate": [Affine(), Affine(2.0)],
        "transformed": [[True, False, False], [False, False, True], [True, True, False]],
    },
    "elementwise": {
        "features": [3, 4],
        "univariate": [SPLINE, WIDE],
        "mapped": [[True, False, True], [True, True, False], [True, True, True]],
    },
    "encoder": {"net": [net()], "standardize": [None, Standardize([1.0] * 2, [2.0] * 2)]},
    "flow": {
        "base": [Gaussian(3, 2), Laplace(3, 2), Logistic(3, 2), Uniform(3, 2)],
        "bijection": [LULinear(3), Chain([LULinear(3)])],
        "embedding": [
            nn.Sequential(nn.Linear(2, 2), nn.Tanh()),
            nn.Sequential(nn.Linear(2, 2), nn.LeakyReLU(0.1)),
            nn.Sequential(nn.Linear(2, 2), nn.LeakyReLU(0.2)),
            None,
        ],
    },
    "gamma": {"features": [3, 2], "concentration": [1.0, 2.0], "rate": [1.0, 2.0], "trainable": [True, False]},
    "gaussian": LOCATION_SCALE | {"covariance": ["low-rank", "full"], "rank": [2, 1]},
    "gaussian-decoder": {
        "net": [net(3)],
        "features": [3],
        "standardize": [Standardize([0.0] * 3, [1.0] * 3), None, Standardize([1.0] * 3, [2.0] * 3)],
        "least_scale": [1e-3, 1e-2],
    },
    "gaussian-mixture": LOCATION_SCALE | {"components": [2, 3]},
    "inverse": {"bijection": [LULinear(3), ActNorm(3), PARTS["probit"](3), Logit(3)]},
    "kernel-density": {"points": [torch.randn(5, 3), [5, 3], [4, 3]], "bandwidth": [1.0, 2.0]},
    "laplace": LOCATION_SCALE,
    "log": {"features": [3], "low": [[0.0, -1.0, -2.0], -3.0]},
    "log-tails": {"features": [3], "bound": [0.2, 0.1], "mapped": [[True, False, True], [True, True, False], None]},
    "logistic": LOCATION_SCALE,
    "logistic-decoder": {"net": [net(6)], "features": [3], "values": [2, 3]},
    "logit": BOX,
    "low-rank-linear": {"features": [3, 4], "rank": [2, 1]},
    "lu-linear": {"features": [3, 2]},
    "made-mog": {
        "conditioner": [masked(), masked(blocks=1)],
        "frame": [Gaussian(3), Gaussian(3, covariance="full")],
        "least_scale": [1e-3, 0.5],
    },
    "masked-autoregressive": {
        "conditioner": [masked(11), masked(11, blocks=1), PARTS["masked-transformer"](3, 11, hidden=4)],
        "univariate": [SPLINE, WIDE],
    },
    "masked-residual-net": {"features": [3, 4], "outputs_per_feature": [2, 3], **NETWORK},
    "masked-transformer": {
        "features": [3, 4],
        "outputs_per_feature": [2, 3],
        **NETWORK,
        "heads": [4, 2],
        "embedding": ["periodic", "linear"],
    },
    "mixture": {
        "members": [[build("maf", 3, **SMALL), build("maf", 3, **SMALL)], [build("maf", 3, **SMALL)]],
        "weights": [[0.3, 0.7], [0.7, 0.3], None],
    },
    "permutation": {"order": [[2, 0, 1], [1, 2, 0], [1, 0]]},
    "probit": BOX,
    "rational-quadratic-spline": {"bins": [4, 5], "bound": [5.0, 3.0], "tails": ["linear", "learned"]},
    "residual-net": {"inputs": [2, 3], "outputs": [3, 2], **NETWORK},
    "scaled-embedding": {
        "scale": [Standardize([0.0] * 2, [1.0] * 2), Standardize([1.0] * 2, [2.0] * 2)],
        "module": [net()],
    },
    "standardize": {"mean": [[1.0, 2.0], [3.0, 4.0]], "scale": [[1.0, 2.0], [3.0, 4.0]]},
    "student-t": LOCATION_SCALE | {"degrees": [5.0, 3.0]},
    "transformed-distribution": {
        "distribution": [Uniform(3, trainable=False), PARTS["beta"](3)],
        "bijection": [Logit(3), PARTS["probit"](3)],
        "context": [0, 1],
        "trainable": [True, False],
    },
    "uniform": LOCATION_SCALE | {"low": [0.0, 0.3], "width": [2.0, 3.0]},
}
"""For each argument of each part, values; the first ones make the part whose state is loaded."""


def test_every_argument_of_every_part_is_listed() -> None:
    assert set(ARGUMENTS) == {name for name in PARTS.names() if PARTS[name].__module__.startswith("pushforward.")}
    for name, arguments in ARGUMENTS.items():
        assert set(arguments) == set(inspect.signature(PARTS[name]).parameters), name


def values(part: Any) -> Any:
    """What a part computes at fixed points."""
    generator = torch.Generator().manual_seed(3)
    size = getattr(part, "features", getattr(part, "inputs", 2))
    x = torch.rand(20, size, generator=generator)
    z = torch.randn(20, 2, generator=generator)
    context = z if isinstance(part, Flow) and part.context else z[:, : getattr(part, "context", 0)]
    torch.manual_seed(0)  # a stochastic decoder draws in every call
    with torch.no_grad():
        if isinstance(part, Bijection):
            return *part(x, context), *part.inverse(x, context)
        if isinstance(part, Base | Flow | Mixture | Autoencoder):
            return part.log_prob(x, context if part.context else None)
        if isinstance(part, Encoder):
            return part(x)
        if isinstance(part, Decoder):
            return part.log_prob(part.observe(x.round()), z)
        return part(x, context) if getattr(part, "context", 0) else part(x)


PAIRS = [
    (name, argument, other)
    for name, arguments in ARGUMENTS.items()
    for argument, listed in arguments.items()
    for other in range(len(listed))
]


@pytest.mark.parametrize(("name", "argument", "other"), PAIRS)
def test_parts_of_other_arguments_load_the_same_values_or_fail(
    name: str, argument: str, other: int, perturb: Perturb
) -> None:
    arguments = ARGUMENTS[name]

    def made(**changed: Any) -> Any:
        # Copies, because the listed modules are shared.
        chosen = {key: copy.deepcopy(listed[0]) for key, listed in arguments.items()} | copy.deepcopy(changed)
        part = PARTS[name](**chosen)
        return Chain([PARTS["elementwise"](2, part)]) if isinstance(part, Univariate) else part.eval()

    part = perturb(made())
    try:
        twin = made(**{argument: arguments[argument][other]})
    except ValueError:
        return  # these arguments do not go together
    perturb(perturb(twin))
    try:
        twin.load_state_dict(part.state_dict())
    except RuntimeError:
        assert other != 0, "the same arguments must load"
        return
    torch.testing.assert_close(values(twin), values(part), rtol=0, atol=0, equal_nan=True)


def test_the_error_names_part_and_argument_also_without_strict() -> None:
    spline = build("nsf-ar", 3, **SMALL)
    for strict in (True, False):
        with pytest.raises(RuntimeError, match=r"masked-autoregressive: .* with univariate .*9\.0.*; got .*5\.0"):
            build("nsf-ar", 3, bound=9.0, **SMALL).load_state_dict(spline.state_dict(), strict=strict)
    with pytest.raises(RuntimeError, match=r'flow: .* with base "laplace"; got "gaussian"'):
        Flow(Laplace(3), LULinear(3)).load_state_dict(Flow(Gaussian(3), LULinear(3)).state_dict())
    with pytest.raises(RuntimeError, match=r"permutation: the state dict does not fit: .*an order of 0 .. 1; got"):
        Permutation([0, 1]).load_state_dict(Permutation([0, 2, 1]).state_dict())
    with pytest.raises(RuntimeError, match="permutation: the state dict does not say what the weights belong to"):
        Permutation([0, 1]).load_state_dict({"_extra_state": torch.tensor([1, 2])})


def test_states_that_people_copy_cast_or_average_still_load(perturb: Perturb) -> None:
    flow, other = (perturb(build("nsf-ar", 3, **SMALL)) for _ in range(2))
    state = flow.state_dict()
    for changed in (
        {name: value.clone() for name, value in state.items()},
        {name: value.double() for name, value in state.items()},
        {name: (value + value) / 2.0 for name, value in state.items()},
    ):
        other.load_state_dict(changed)
        assert torch.equal(log_prob(other), log_prob(flow))
    assigned = build("nsf-ar", 3, **SMALL)
    assigned.load_state_dict(state, assign=True)
    assert torch.equal(log_prob(assigned), log_prob(flow))
    assert torch.equal(log_prob(copy.deepcopy(flow)), log_prob(flow))


def test_the_kernels_and_the_inverse_follow_a_loaded_order(perturb: Perturb) -> None:
    layer, other = (
        Chain([Permutation(order), Coupling(net(2), Affine(), transformed=mask)])
        for order, mask in (([2, 0, 1], [True, False, False]), ([1, 2, 0], [False, False, True]))
    )
    perturb(layer)
    points = torch.randn(6, 3)
    before = other(points)[0]  # with its own order
    other.load_state_dict(layer.state_dict())
    assert not torch.equal(other(points)[0], before)
    z, log_det = layer(points)
    torch.testing.assert_close(other(points), (z, log_det), rtol=0, atol=0)
    torch.testing.assert_close(other.inverse(z)[0], points)
    compiled: Any = torch.compile(other, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(points), (z, log_det))


class Own(Bijection):
    """A user's bijection without a ``config``."""

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return x, x.new_zeros(x.shape[:-1])


def test_parts_without_config_and_wrapped_parts_have_a_state() -> None:
    Own(2).load_state_dict(Own(2).state_dict())
    with pytest.raises(RuntimeError, match="act-norm: expected a state dict of the same density"):
        ActNorm(2).load_state_dict(ActNorm(2).state_dict() | Own(2).state_dict())
    plain = MaskedAutoregressive(masked(2), Affine())
    wrapped: Any = copy.deepcopy(plain)
    parametrizations.weight_norm(wrapped.conditioner.last)
    torch.nn.utils.parametrize.register_parametrization(wrapped.conditioner.first, "bias", nn.Identity())
    # A wrapper by torch changes the class of a part, but not what it is.
    assert torch.equal(wrapped.state_dict()["_extra_state"], plain.state_dict()["_extra_state"])


def test_points_of_a_kernel_density_are_in_the_state() -> None:
    base, other = KernelDensity(torch.randn(6, 2)), KernelDensity([6, 2])
    other.load_state_dict(base.state_dict())
    assert torch.equal(log_prob(other), log_prob(base))
