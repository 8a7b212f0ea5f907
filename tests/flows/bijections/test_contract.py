"""The contract, for every bijection: CASES holds at least one of each."""

import contextlib
import copy
import inspect
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from nflows.distributions import StandardNormal
from nflows.flows import Flow as NflowsFlow
from torch import Tensor, nn
from torch.testing import assert_close

import pushforward.flows
from pushforward.flows import (
    ActNorm,
    Affine,
    Bijection,
    Chain,
    Flow,
    Gaussian,
    Inverse,
    LULinear,
    MaskedAutoregressive,
    MaskedResidualNet,
    Permutation,
    Standardize,
    Univariate,
    check_bijection,
)
from pushforward.flows.kernels import native
from tests.fixtures.bijections import BOUND, CASES, SPLINE, Bend, autoregressive, coupling

CONTEXTUAL = [name for name, make in CASES.items() if make().context]
CONTEXT_FREE = [name for name in CASES if name not in CONTEXTUAL]
# nflows branches on values in Python and indexes with boolean masks: no promise to keep for its transforms.
OURS = [name for name in CASES if "NflowsTransform" not in name]
# One of each kind, each way of being one once; a root search, which evaluates its map some 150 times a feature, not.
TRACED_QUICKLY = [
    "ActNorm",
    "Chain empty",
    "Chain mixed context",
    "Coupling affine 5 dropout",
    "Coupling spline 5 context",
    "Inverse coupling",
    "Log",
    "Logit",
    "LULinear 5",
    "Elementwise affine 1",
    "Elementwise spline 5 some",
    "MaskedAutoregressive affine 2 context",
    "MaskedAutoregressive spline 5",
    "MaskedAutoregressive transformer 5 context",
    "Permutation 5",
    "Probit",
    "Standardize",
]

Perturb = Callable[[nn.Module], nn.Module]


def made(name: str, perturb: Perturb, dtype: torch.dtype = torch.float64) -> Bijection:
    bijection = CASES[name]().to(dtype).eval()
    perturb(bijection)
    return bijection


@pytest.fixture(params=["kernels", "torch"])
def engine(request: pytest.FixtureRequest) -> Iterator[None]:
    """Layers as kernels in C, and as torch's operations."""
    with native.disabled() if request.param == "torch" else contextlib.nullcontext():
        yield


in_both_engines = pytest.mark.usefixtures("engine")


def draw(bijection: Bijection, *lead: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor | None]:
    points = torch.randn(*lead, bijection.features, dtype=dtype)
    return points, torch.randn(*lead, bijection.context, dtype=dtype) if bijection.context else None


def test_every_bijection_has_a_case() -> None:
    exported = (getattr(pushforward.flows, name) for name in dir(pushforward.flows))
    kinds = {kind for kind in exported if inspect.isclass(kind) and issubclass(kind, Bijection)} - {Bijection}
    assert kinds == {type(make()) for make in CASES.values()}


@in_both_engines
@pytest.mark.parametrize("name", CASES)
def test_contract(name: str, perturb: Perturb) -> None:
    # Data at 1e6 are known to 1e-10 only, so the round trip of the standardisation cannot be better.
    check_bijection(made(name, perturb), tolerance=1e-8 if name == "Standardize" else 1e-9)


@in_both_engines
@pytest.mark.parametrize("direction", ["forward", "inverse"])
@pytest.mark.parametrize("name", CASES)
def test_leading_dimensions(name: str, direction: str, perturb: Perturb) -> None:
    bijection = made(name, perturb)
    apply = getattr(bijection, direction)
    for lead in [(), (1,), (2, 3), (0,)]:
        points, context = draw(bijection, *lead)
        value, log_det = apply(points, context)
        assert value.shape == points.shape
        assert log_det.shape == lead
        flat_context = None if context is None else context.reshape(-1, bijection.context)
        flat_value, flat_log_det = apply(points.reshape(-1, bijection.features), flat_context)
        assert_close(value, flat_value.reshape(points.shape))
        assert_close(log_det, flat_log_det.reshape(lead))


LEADS: list[tuple[tuple[int, ...], tuple[int, ...]]] = [
    ((), (4,)),
    ((4,), ()),
    ((2, 3), (3,)),
    ((3,), (2, 3)),
    ((2, 1), (3,)),
    ((1,), (0,)),
]
"""Leading dimensions of points and of a context."""


@pytest.mark.parametrize("direction", ["forward", "inverse"])
@pytest.mark.parametrize("name", CONTEXTUAL)
def test_context_broadcasts(name: str, direction: str, perturb: Perturb) -> None:
    bijection = made(name, perturb)
    apply = getattr(bijection, direction)
    for points_lead, context_lead in LEADS:
        points, _ = draw(bijection, *points_lead)
        _, context = draw(bijection, *context_lead)
        assert context is not None
        lead = torch.broadcast_shapes(points_lead, context_lead)
        value, log_det = apply(points, context)
        expected = apply(
            points.expand(*lead, -1).reshape(-1, bijection.features),
            context.expand(*lead, -1).reshape(-1, bijection.context),
        )
        assert_close(value, expected[0].reshape(*lead, bijection.features))
        assert_close(log_det, expected[1].reshape(lead))


@pytest.mark.parametrize("direction", ["forward", "inverse"])
@pytest.mark.parametrize("name", CONTEXT_FREE)
def test_context_is_ignored_where_none_is_declared(name: str, direction: str, perturb: Perturb) -> None:
    bijection = made(name, perturb)
    apply = getattr(bijection, direction)
    points, _ = draw(bijection, 4)
    assert_close(apply(points, torch.randn(4, 7, dtype=torch.float64)), apply(points))


@pytest.mark.parametrize("name", CONTEXTUAL)
def test_context_matters(name: str, perturb: Perturb) -> None:
    bijection = made(name, perturb)
    points, context = draw(bijection, 4)
    assert context is not None
    assert not torch.allclose(bijection(points, context)[0], bijection(points, context + 1.0)[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_dtype_is_kept(name: str, dtype: torch.dtype, perturb: Perturb) -> None:
    bijection = made(name, perturb, dtype)
    points, context = draw(bijection, 4, dtype=dtype)
    outputs = [*bijection(points, context), *bijection.inverse(points, context)]
    assert [output.dtype for output in outputs] == [dtype] * 4


@pytest.mark.parametrize("direction", ["forward", "inverse"])
@pytest.mark.parametrize("name", CASES)
def test_wrong_shape_is_named(name: str, direction: str) -> None:
    bijection = CASES[name]()
    features = bijection.features
    context = torch.zeros(4, bijection.context) if bijection.context else None
    with pytest.raises(
        ValueError, match=rf"expected points of shape \(\.\.\., {features}\); got \(4, {features + 1}\)"
    ):
        getattr(bijection, direction)(torch.zeros(4, features + 1), context)
    with pytest.raises(ValueError, match=rf"expected points of shape \(\.\.\., {features}\); got \(\)"):
        getattr(bijection, direction)(torch.zeros(()), context)


@pytest.mark.parametrize("direction", ["forward", "inverse"])
@pytest.mark.parametrize("name", CONTEXTUAL)
def test_wrong_context_is_named(name: str, direction: str) -> None:
    bijection = CASES[name]()
    points, size = torch.zeros(4, bijection.features), bijection.context
    with pytest.raises(ValueError, match=rf"expected context of shape \(\.\.\., {size}\); got none"):
        getattr(bijection, direction)(points)
    with pytest.raises(ValueError, match=rf"expected context of shape \(\.\.\., {size}\); got \(4, {size + 1}\)"):
        getattr(bijection, direction)(points, torch.zeros(4, size + 1))


@in_both_engines
@pytest.mark.parametrize("direction", ["forward", "inverse"])
@pytest.mark.parametrize("name", OURS)
def test_every_parameter_gets_a_gradient(name: str, direction: str, perturb: Perturb) -> None:
    bijection = made(name, perturb)
    points, context = draw(bijection, 64)
    points.requires_grad_()
    value, log_det = getattr(bijection, direction)(points, context)
    (value.square().sum() + log_det.sum()).backward()
    assert points.grad is not None
    assert bool(points.grad.isfinite().all())
    for parameter_name, parameter in bijection.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert bool(parameter.grad.isfinite().all()), parameter_name
        # With one feature some matrices are masked, or triangular without entries.
        assert bijection.features == 1 or bool(parameter.grad.any()), parameter_name


@pytest.mark.parametrize("how", ["state_dict", "deepcopy", "pickle"])
@pytest.mark.parametrize("name", CASES)
def test_copies_compute_the_same(name: str, how: str, perturb: Perturb) -> None:
    bijection = made(name, perturb)
    if how == "state_dict":
        twin = CASES[name]().double().eval()
        twin.load_state_dict(bijection.state_dict())
    else:
        twin = copy.deepcopy(bijection) if how == "deepcopy" else pickle.loads(pickle.dumps(bijection))
    points, context = draw(bijection, 4)
    assert_close(twin(points, context), bijection(points, context), rtol=0, atol=0)


@in_both_engines
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("direction", ["forward", "inverse"])
@pytest.mark.parametrize("name", OURS)
def test_far_out_points_stay_finite(name: str, direction: str, dtype: torch.dtype, perturb: Perturb) -> None:
    bijection = made(name, perturb, dtype)
    values = torch.tensor([-1e4, -BOUND - 1e-6, -BOUND, -BOUND + 1e-6, 0.0, BOUND - 1e-6, BOUND, BOUND + 1e-6, 1e4])
    points = values.to(dtype)[:, None].repeat(1, bijection.features).requires_grad_()
    context = torch.randn(len(points), bijection.context, dtype=dtype) if bijection.context else None
    value, log_det = getattr(bijection, direction)(points, context)
    (value.sum() + log_det.sum()).backward()
    assert bool(value.isfinite().all())
    assert bool(log_det.isfinite().all())
    for tensor in [points, *bijection.parameters()]:
        assert tensor.grad is not None
        assert bool(tensor.grad.isfinite().all())


@pytest.mark.parametrize("name", OURS)
def test_vmap_of_grad_equals_the_loop(name: str, perturb: Perturb) -> None:
    flow = Flow(Gaussian(CASES[name]().features).double(), made(name, perturb))
    points, context = draw(flow.bijection, 3)
    rows = (points,) if context is None else (points, context)
    looped = [torch.func.grad(flow.log_prob)(*row) for row in zip(*rows, strict=True)]
    assert_close(torch.vmap(torch.func.grad(flow.log_prob))(*rows), torch.stack(looped))


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("direction", ["forward", "inverse"])
@pytest.mark.parametrize("name", OURS)
def test_vmap_equals_the_batch(name: str, direction: str, grad: bool, perturb: Perturb) -> None:
    bijection = made(name, perturb)
    points, context = draw(bijection, 3)
    rows = (points,) if context is None else (points, context)
    apply = getattr(bijection, direction)
    with torch.set_grad_enabled(grad):
        assert_close(torch.vmap(apply)(*rows), apply(*rows))


@pytest.mark.parametrize("name", OURS)
def test_autocast_keeps_the_dtype_of_the_points(name: str, perturb: Perturb) -> None:
    bijection = made(name, perturb, torch.float32)
    points, context = draw(bijection, 16, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = [*bijection(points, context), *bijection.inverse(points, context)]
    assert [output.dtype for output in outputs] == [torch.float32] * 4
    assert all(bool(output.isfinite().all()) for output in outputs)


@pytest.mark.parametrize("univariate", [Affine(), SPLINE], ids=["affine", "spline"])
def test_autocast_keeps_the_round_trip_of_a_coupling(univariate: Univariate, perturb: Perturb) -> None:
    layer = coupling(4, univariate)
    perturb(layer)
    points = torch.randn(64, 4)
    with torch.autocast("cpu", torch.bfloat16):
        z, log_det = layer(points)
        back, log_det_back = layer.inverse(z)
    # The conditioner works in bfloat16 but gives both directions the same parameters: float32's accuracy remains.
    assert_close(back, points, rtol=1e-4, atol=1e-4)
    assert_close(log_det, -log_det_back, rtol=1e-4, atol=1e-4)


def check_compiled(bijection: Bijection, direction: str, backend: str) -> None:
    torch.compiler.reset()
    points, context = draw(bijection, 4)
    apply = getattr(bijection, direction)
    with torch.no_grad():
        compiled: Any = torch.compile(apply, fullgraph=True, backend=backend, dynamic=False)
        assert_close(compiled(points, context), apply(points, context))


def test_every_kind_is_traced_without_waiting() -> None:
    assert {type(CASES[name]()) for name in TRACED_QUICKLY} == {type(CASES[name]()) for name in OURS}


@pytest.mark.parametrize("name", TRACED_QUICKLY)
def test_no_graph_break(name: str, perturb: Perturb) -> None:
    check_compiled(made(name, perturb), "forward", "eager")
    if name in ("MaskedAutoregressive spline 5", "Coupling spline 5 context", "LULinear 5", "ActNorm"):
        check_compiled(made(name, perturb), "inverse", "eager")


@pytest.mark.slow
@pytest.mark.parametrize("direction", ["forward", "inverse"])
@pytest.mark.parametrize("name", OURS)
def test_traces_to_one_graph(name: str, direction: str, perturb: Perturb) -> None:
    check_compiled(made(name, perturb), direction, "aot_eager")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # inductor's own use
@pytest.mark.parametrize("direction", ["forward", "inverse"])
@pytest.mark.parametrize(
    "name",
    [
        "Chain mixed context",
        "Coupling affine 2",
        "Coupling spline 5 context",
        "MaskedAutoregressive spline 2 no blocks",
    ],
)
def test_compiles(name: str, direction: str, perturb: Perturb) -> None:
    check_compiled(made(name, perturb), direction, "inductor")


@pytest.mark.slow
@pytest.mark.parametrize("name", OURS)
def test_compiled_gradients(name: str, perturb: Perturb) -> None:
    torch.compiler.reset()
    bijection = made(name, perturb)
    points, context = draw(bijection, 4)
    points.requires_grad_()
    value, log_det = torch.compile(bijection, fullgraph=True, backend="aot_eager")(points, context)
    compiled = torch.autograd.grad(value.square().sum() + log_det.sum(), [points, *bijection.parameters()])
    value, log_det = bijection(points, context)
    assert_close(compiled, torch.autograd.grad(value.square().sum() + log_det.sum(), [points, *bijection.parameters()]))


@pytest.mark.slow
@pytest.mark.parametrize("name", OURS)
def test_exports(name: str, perturb: Perturb) -> None:
    bijection = made(name, perturb)
    points, context = draw(bijection, 4)
    program = torch.export.export(bijection, (points, context))
    assert_close(program.module()(points, context), bijection(points, context))


@pytest.mark.filterwarnings("ignore::DeprecationWarning:nflows")
@pytest.mark.parametrize("name", CASES)
def test_in_an_nflows_flow(name: str, perturb: Perturb) -> None:
    bijection = made(name, perturb)
    points, context = draw(bijection, 6)
    theirs = NflowsFlow(bijection, StandardNormal([bijection.features]))
    ours = Flow(Gaussian(bijection.features).double(), bijection)
    assert_close(theirs.log_prob(points, context), ours.log_prob(points, context))


# ActNorm


def test_act_norm_standardises_its_first_training_batch_only() -> None:
    layer = ActNorm(3)
    first = torch.randn(64, 3) * torch.tensor([1.0, 10.0, 0.1]) + 5.0
    z, _ = layer(first)
    assert_close(z.mean(0), torch.zeros(3), rtol=0, atol=1e-5)
    assert_close(z.std(0), torch.ones(3))
    before = copy.deepcopy(layer.state_dict())
    layer(torch.randn(64, 3))
    assert_close(layer.state_dict(), before, rtol=0, atol=0)


def test_act_norm_is_the_identity_until_then() -> None:
    layer = ActNorm(3).eval()
    points = torch.randn(8, 3) * 7.0
    assert_close(layer(points)[0], points, rtol=0, atol=0)
    assert not bool(layer.initialized)
    layer.train()
    layer.inverse(points)
    layer(points[:1])  # a single point has no scale
    assert not bool(layer.initialized)


def test_act_norm_leaves_the_scale_of_a_constant_feature() -> None:
    layer = ActNorm(2)
    layer(torch.tensor([[4.0, 1.0], [4.0, 2.0], [4.0, 3.0]]))
    assert_close(layer.log_scale.detach(), torch.zeros(2))


@pytest.mark.parametrize("how", ["state_dict", "state_dict assign", "deepcopy", "pickle"])
@pytest.mark.parametrize("initialized", [True, False])
def test_act_norm_remembers_whether_it_was_set(how: str, initialized: bool) -> None:
    layer = ActNorm(2)
    if initialized:
        layer(torch.randn(32, 2) * 4.0 + 1.0)
    twin = ActNorm(2)
    if how == "deepcopy":
        twin = copy.deepcopy(layer)
    elif how == "pickle":
        twin = pickle.loads(pickle.dumps(layer))
    else:
        twin.load_state_dict(copy.deepcopy(layer.state_dict()), assign="assign" in how)
    before = copy.deepcopy(twin.state_dict())
    assert twin.training
    twin(torch.randn(32, 2) * 0.1)
    changed = not torch.equal(twin.state_dict()["log_scale"], before["log_scale"])
    assert changed is not initialized


# Autoregressive layers


def one_pass_a_feature(layer: MaskedAutoregressive, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
    """The textbook inverse: a whole pass of the conditioner for every feature."""
    x = torch.zeros_like(z)
    total = z.new_zeros(z.shape[:-1])
    for d, one in enumerate(torch.eye(layer.features, dtype=z.dtype)):
        parameters = layer.conditioner(x, context)[..., d, :]
        x_d, log_derivative = layer.univariate.inverse(z[..., d], parameters)
        x = x * (1.0 - one) + x_d[..., None] * one
        total = total + log_derivative
    return x, total


AUTOREGRESSIVE = [name for name in CASES if name.startswith("MaskedAutoregressive")]


@pytest.mark.parametrize("name", AUTOREGRESSIVE)
def test_jacobian_is_lower_triangular(name: str, perturb: Perturb) -> None:
    layer = made(name, perturb)
    point, context = draw(layer)
    jacobian = torch.autograd.functional.jacobian(lambda x: layer(x, context)[0], point)
    assert isinstance(jacobian, Tensor)
    assert_close(jacobian.triu(1), torch.zeros_like(jacobian), rtol=0, atol=0)
    assert bool((jacobian.diagonal() > 0).all())


@pytest.mark.parametrize("context", [0, 2])
@pytest.mark.parametrize("features", [1, 2, 5])
def test_masked_net_reads_earlier_features_only(features: int, context: int, perturb: Perturb) -> None:
    net = MaskedResidualNet(features, 2, context=context, hidden=16).double()
    perturb(net)
    # Relu units can be off at one point: any dependence shows at some of many.
    points = torch.randn(32, features, dtype=torch.float64)
    given = torch.randn(32, context, dtype=torch.float64) if context else None
    jacobian = torch.autograd.functional.jacobian(lambda x: net(x, given).sum(0), points)
    assert isinstance(jacobian, Tensor)  # (outputs' feature, outputs a feature, points, inputs' feature)
    depends = (jacobian != 0).any(2).any(1)
    assert torch.equal(depends, torch.ones(features, features).tril(-1).bool())


@pytest.mark.parametrize("context", [0, 2])
@pytest.mark.parametrize(("features", "hidden"), [(1, 4), (2, 8), (5, 8), (5, 3), (9, 4)])
def test_masked_net_wastes_no_hidden_unit(features: int, hidden: int, context: int) -> None:
    net = MaskedResidualNet(features, 1, context=context, hidden=hidden)
    reaches_an_output = net.last.mask.any(0)
    reads_something = net.first.mask.any(1) | bool(context) | (features == 1)
    assert bool(reaches_an_output.all())
    assert bool(reads_something.all())


@in_both_engines
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("name", AUTOREGRESSIVE)
def test_cached_inverse_equals_one_pass_a_feature(name: str, grad: bool, perturb: Perturb) -> None:
    layer = made(name, perturb)
    assert isinstance(layer, MaskedAutoregressive)
    z, context = draw(layer, 8)
    with torch.set_grad_enabled(grad):
        assert_close(layer.inverse(z, context), one_pass_a_feature(layer, z, context), rtol=1e-9, atol=1e-9)


@in_both_engines
@pytest.mark.parametrize("name", AUTOREGRESSIVE)
def test_gradients_of_the_cached_inverse_equal_those_of_one_pass_a_feature(name: str, perturb: Perturb) -> None:
    layer = made(name, perturb)
    assert isinstance(layer, MaskedAutoregressive)
    z, context = draw(layer, 8)
    sources = [z.requires_grad_(), *layer.parameters()]
    if context is not None:
        sources.append(context.requires_grad_())
    weights = torch.randn_like(z)

    def gradients(result: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        return torch.autograd.grad((result[0] * weights).sum() + result[1].square().sum(), sources)

    ours, naive = gradients(layer.inverse(z, context)), gradients(one_pass_a_feature(layer, z, context))
    assert_close(ours, naive, rtol=1e-8, atol=1e-9)


@in_both_engines
@pytest.mark.parametrize("univariate", [Affine(), SPLINE, Bend()], ids=["affine", "spline", "bend"])
def test_gradcheck_of_the_cached_inverse(univariate: Univariate, perturb: Perturb) -> None:
    layer = autoregressive(2, univariate, context=1, blocks=1).double()
    perturb(layer)
    z = torch.randn(2, 2, dtype=torch.float64, requires_grad=True)
    context = torch.randn(2, 1, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer.inverse, (z, context))


@in_both_engines
def test_inverse_undoes_one_map_in_training_too(perturb: Perturb) -> None:
    layer = autoregressive(3, Affine(), dropout=0.5)
    perturb(layer)
    z = torch.randn(8, 3)
    assert_close(layer.train().inverse(z), layer.eval().inverse(z), rtol=0, atol=0)


# Combinations


def test_chain_applies_its_members_in_order() -> None:
    chain = Chain([Standardize([1.0], [1.0]), Standardize([0.0], [2.0])])
    assert_close(chain(torch.tensor([[5.0]]))[0], torch.tensor([[2.0]]))
    assert_close(chain.inverse(torch.tensor([[2.0]]))[0], torch.tensor([[5.0]]))


def test_inverse_of_an_inverse(perturb: Perturb) -> None:
    layer = made("MaskedAutoregressive spline 5", perturb)
    points, _ = draw(layer, 4)
    assert_close(Inverse(Inverse(layer))(points), layer(points), rtol=0, atol=0)


def test_permutation_says_where_each_output_comes_from() -> None:
    assert Permutation([2, 0, 1])(torch.tensor([10.0, 11.0, 12.0]))[0].tolist() == [12.0, 10.0, 11.0]
    assert Permutation.reverse(3).order == [2, 1, 0]
    assert all(Permutation.random(2).order == [1, 0] for _ in range(8))


def test_lu_linear_is_a_matrix(perturb: Perturb) -> None:
    layer = made("LULinear 5", perturb)
    assert isinstance(layer, LULinear)
    zero = torch.zeros(5, dtype=torch.float64)
    matrix = layer(torch.eye(5, dtype=torch.float64))[0] - layer(zero)[0]
    points, _ = draw(layer, 7)
    z, log_det = layer(points)
    assert_close(z, points @ matrix + layer.bias)
    assert_close(log_det, torch.linalg.slogdet(matrix).logabsdet.expand(7))


def test_standardize_keeps_the_digits_of_a_large_offset() -> None:
    layer = Standardize([1e9 + 1.0], [1e-3]).float()  # float32 would round the offset to 1e9
    x = torch.tensor([[1e9 + 1.0 + 2e-3]], dtype=torch.float64)
    assert_close(layer(x)[0], torch.tensor([[2.0]], dtype=torch.float64), rtol=1e-3, atol=0)  # 1e9 has 1e-7 left
    assert layer.log_det == pytest.approx(6.907755278982137)


@in_both_engines
def test_bijections_start_as_the_identity() -> None:
    makers: list[Bijection] = [
        coupling(4, Affine()),
        coupling(4, SPLINE),
        autoregressive(4, Affine(), context=2),
        autoregressive(4, SPLINE),
        LULinear(4),
        ActNorm(4).eval(),
    ]
    points = torch.randn(16, 4) * 2.0
    z, log_det = Chain(makers)(points, torch.randn(16, 2))
    assert_close(z, points, rtol=1e-5, atol=1e-5)  # float32, six layers
    assert_close(log_det, torch.zeros(16), rtol=0, atol=1e-5)


class Wrong(Bijection):
    """Broken on purpose, in one way at a time."""

    def __init__(self, fault: str) -> None:
        super().__init__(2)
        self.fault = fault

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        scale = 4.0 if self.fault == "log_det" else 2.0
        log_det = x.new_full(x.shape[:-1], 2.0 * float(torch.tensor(scale).log()))
        if self.fault == "shape":
            log_det = log_det[:, None]
        if self.fault == "dtype":
            log_det = log_det.float()
        return 2.0 * x, log_det

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        log_det = -self.forward(z)[1]
        if self.fault == "sign":
            log_det = -log_det
        return (z / 3.0 if self.fault == "inverse" else z / 2.0), log_det


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("log_det", "log_det of forward against autograd"),
        ("shape", r"log_det of forward: expected shape \(16,\)"),
        ("dtype", "log_det of forward: expected torch.float64|log_det of forward: expected float64"),
        ("sign", "log_det of forward plus that of inverse"),
        ("inverse", "round trip"),
    ],
)
def test_check_bijection_finds_a_fault(fault: str, said: str) -> None:
    check_bijection(Wrong("none"), tolerance=1e-6)  # the constant above is a float32 logarithm
    with pytest.raises(AssertionError, match=said):
        check_bijection(Wrong(fault), tolerance=1e-6)
