"""The contract of a bijection, for all cases in ``CASES``: at least one of each class."""

import copy
import inspect
import pickle
from typing import Any

import pytest
import torch
from nflows.distributions import StandardNormal
from nflows.flows import Flow as NflowsFlow
from torch.testing import assert_close

import pushforward.flows
from pushforward.flows import (
    ActNorm,
    Affine,
    Bijection,
    Chain,
    Flow,
    Gaussian,
    LULinear,
    Univariate,
    check_bijection,
)
from tests.fixtures.bijections import (
    BOUND,
    CASES,
    SPLINE,
    Perturb,
    autoregressive,
    coupling,
    draw,
    engine as engine,
    in_both_engines,
    made,
)

CONTEXTUAL = [name for name, make in CASES.items() if make().context]
CONTEXT_FREE = [name for name in CASES if name not in CONTEXTUAL]
# The transforms of nflows branch on values and index with boolean masks, so parts of the contract cannot hold for them.
OWN = [name for name in CASES if "NflowsTransform" not in name]
# At least one case of each class, without root searches: those evaluate their map about 150 times per feature.
TRACED_QUICKLY = [
    "ActNorm",
    "Chain empty",
    "Chain mixed context",
    "Coupling affine 5 dropout",
    "Coupling spline 5 context",
    "Inverse coupling",
    "Log",
    "Logit",
    "LogTails some",
    "LowRankLinear 5",
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


def test_every_bijection_has_a_case() -> None:
    exported = (getattr(pushforward.flows, name) for name in dir(pushforward.flows))
    kinds = {kind for kind in exported if inspect.isclass(kind) and issubclass(kind, Bijection)} - {Bijection}
    assert kinds == {type(make()) for make in CASES.values()}


@in_both_engines
@pytest.mark.parametrize("name", CASES)
def test_contract(name: str, perturb: Perturb) -> None:
    # Values around 1e6 have an accuracy of 1e-10, so the round trip of Standardize cannot be better.
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
"""Leading dimensions of points and context."""


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
@pytest.mark.parametrize("name", OWN)
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
@pytest.mark.parametrize("name", OWN)
def test_points_far_out_stay_finite(name: str, direction: str, dtype: torch.dtype, perturb: Perturb) -> None:
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


@pytest.mark.parametrize("name", OWN)
def test_vmap_of_grad_equals_the_loop(name: str, perturb: Perturb) -> None:
    flow = Flow(Gaussian(CASES[name]().features).double(), made(name, perturb))
    points, context = draw(flow.bijection, 3)
    rows = (points,) if context is None else (points, context)
    looped = [torch.func.grad(flow.log_prob)(*row) for row in zip(*rows, strict=True)]
    assert_close(torch.vmap(torch.func.grad(flow.log_prob))(*rows), torch.stack(looped))


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("direction", ["forward", "inverse"])
@pytest.mark.parametrize("name", OWN)
def test_vmap_equals_the_batch(name: str, direction: str, grad: bool, perturb: Perturb) -> None:
    bijection = made(name, perturb)
    points, context = draw(bijection, 3)
    rows = (points,) if context is None else (points, context)
    apply = getattr(bijection, direction)
    with torch.set_grad_enabled(grad):
        assert_close(torch.vmap(apply)(*rows), apply(*rows))


@pytest.mark.parametrize("name", OWN)
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
    # The conditioner computes in bfloat16, but both directions get the same parameters: the accuracy is float32's.
    assert_close(back, points, rtol=1e-4, atol=1e-4)
    assert_close(log_det, -log_det_back, rtol=1e-4, atol=1e-4)


def check_compiled(bijection: Bijection, direction: str, backend: str) -> None:
    torch.compiler.reset()
    points, context = draw(bijection, 4)
    apply = getattr(bijection, direction)
    with torch.no_grad():
        compiled: Any = torch.compile(apply, fullgraph=True, backend=backend, dynamic=False)
        assert_close(compiled(points, context), apply(points, context))


def test_every_class_is_traced_in_the_quick_tests() -> None:
    assert {type(CASES[name]()) for name in TRACED_QUICKLY} == {type(CASES[name]()) for name in OWN}


@pytest.mark.parametrize("name", TRACED_QUICKLY)
def test_no_graph_break(name: str, perturb: Perturb) -> None:
    check_compiled(made(name, perturb), "forward", "eager")
    if name in ("MaskedAutoregressive spline 5", "Coupling spline 5 context", "LULinear 5", "ActNorm"):
        check_compiled(made(name, perturb), "inverse", "eager")


@pytest.mark.slow
@pytest.mark.parametrize("direction", ["forward", "inverse"])
@pytest.mark.parametrize("name", OWN)
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
@pytest.mark.parametrize("name", OWN)
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
@pytest.mark.parametrize("name", OWN)
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
    nflows_flow = NflowsFlow(bijection, StandardNormal([bijection.features]))
    flow = Flow(Gaussian(bijection.features).double(), bijection)
    assert_close(nflows_flow.log_prob(points, context), flow.log_prob(points, context))


@in_both_engines
def test_bijections_start_as_the_identity() -> None:
    layers: list[Bijection] = [
        coupling(4, Affine()),
        coupling(4, SPLINE),
        autoregressive(4, Affine(), context=2),
        autoregressive(4, SPLINE),
        LULinear(4),
        ActNorm(4).eval(),
    ]
    points = torch.randn(16, 4) * 2.0
    z, log_det = Chain(layers)(points, torch.randn(16, 2))
    assert_close(z, points, rtol=1e-5, atol=1e-5)  # float32, six layers
    assert_close(log_det, torch.zeros(16), rtol=0, atol=1e-5)
