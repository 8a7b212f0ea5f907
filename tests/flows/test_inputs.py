"""What people pass to models: tensors of any dtype are converted, everything else is refused in one clear sentence."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from pushforward.flows import (
    ActNorm,
    Autoencoder,
    Base,
    Bijection,
    Flow,
    Gaussian,
    Inverse,
    KernelDensity,
    LULinear,
    Mixture,
    Permutation,
    Standardize,
    StudentT,
    build,
)
from tests.fixtures.models import MODELS, Model, given, inputs_of

NAMES = ["realnvp", "nsf-ar", "maf, transformer", "base full", "embedding", "mixture", "categorical decoder"]
DTYPES = [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8, torch.bool]
METHODS = ("log_prob", "transform_to_base", "latents", "score_function", "frozen_log_prob", "elbo", "encode")


def methods_of(model: Model) -> dict[str, Callable[..., Tensor]]:
    return {name: getattr(model, name) for name in METHODS if hasattr(model, name)}


def result(method: Callable[..., Tensor], *inputs: Tensor | None) -> Tensor:
    torch.manual_seed(0)  # the bound of an autoencoder and the latents of a mixture are random
    return method(*given(*inputs)).detach()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_tensors_of_every_real_dtype_are_converted(name: str, dtype: torch.dtype) -> None:
    model = MODELS[name]().eval()
    points, context = inputs_of(model)  # zeros and ones, which every dtype holds exactly
    for method, call in methods_of(model).items():
        expected = result(call, points, context)
        found = result(call, points.to(dtype), context)
        assert found.dtype == torch.float32, method
        assert torch.equal(found, expected), method
        if context is not None:
            assert torch.equal(
                result(call, points, context.to(dtype)), result(call, points, context.to(dtype).float())
            ), method
    if context is not None:
        assert model.sample((), context.to(dtype)).dtype == torch.float32


def test_a_model_in_float64_takes_float32_points() -> None:
    flow = build("nsf-ar", 3, 2, layers=1, hidden=8).double()
    points, context = torch.randn(5, 3), torch.randn(5, 2)
    assert torch.equal(flow.log_prob(points, context), flow.log_prob(points.double(), context.double()))


@pytest.mark.parametrize("name", ["realnvp", "nsf-ar", "mixture"])
def test_gradients_flow_through_the_conversion(name: str, perturb: Callable[[nn.Module], nn.Module]) -> None:
    model = MODELS[name]()
    perturb(model)
    points, context = inputs_of(model)
    assert context is not None
    points = points + 0.1 * torch.randn_like(points)
    gradients = []
    for kind in (torch.float32, torch.float64):
        leaves = [t.to(kind).requires_grad_() for t in (points, context)]
        gradients.append(torch.autograd.grad(model(*leaves).sum(), leaves))
        assert all(g.dtype == kind for g in gradients[-1])
    for single, double in zip(*gradients, strict=True):
        assert_close(single.double(), double, rtol=1e-5, atol=1e-6)


def test_the_frozen_density_has_a_gradient_by_points_of_another_dtype() -> None:
    flow = build("maf", 3, layers=1, hidden=8)
    points = torch.randn(5, 3).double().requires_grad_()
    (gradient,) = torch.autograd.grad(flow.frozen_log_prob(points).sum(), points)
    assert_close(gradient, flow.score_function(points).double(), rtol=0, atol=0)


def test_conversion_compiles_and_maps() -> None:
    flow = build("nsf-c", 3, 2, layers=2, hidden=8)
    points, context = torch.randn(5, 3).double(), torch.randn(5, 2).double()
    expected = flow.log_prob(points, context)
    torch.compiler.reset()
    compiled: Any = torch.compile(flow, fullgraph=True, backend="eager")
    assert_close(compiled(points, context), expected)
    assert_close(torch.vmap(flow)(points, context), expected)
    score = torch.vmap(torch.func.grad(lambda x, c: flow(x, c)))(points, context)
    assert_close(score, flow.score_function(points, context).double())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int64], ids=str)
def test_conversion_under_autocast(dtype: torch.dtype) -> None:
    flow = build("nsf-c", 3, 2, layers=2, hidden=8)
    points, context = torch.ones(5, 3), torch.ones(5, 2)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(flow(points.to(dtype), context.to(dtype)), flow(points, context))


def plain(model: Model) -> Tensor:
    return inputs_of(model)[0]


ARRAY = r"\(torch.as_tensor\(x\) makes one; pushforward.fit takes arrays and frames\)$"
REFUSED: dict[str, tuple[Callable[[Model], Any], type[Exception], str]] = {
    "array": (lambda m: plain(m).numpy(), TypeError, rf"as a torch tensor; got numpy.ndarray {ARRAY}"),
    "list": (lambda m: plain(m).tolist(), TypeError, rf"as a torch tensor; got list {ARRAY}"),
    "tuple": (lambda m: (1.0, 2.0, 3.0), TypeError, "as a torch tensor; got tuple$"),
    "none": (lambda m: None, TypeError, "as a torch tensor; got none$"),
    "complex": (lambda m: plain(m) + 0j, TypeError, "real (points|rows); got torch.complex64$"),
    "sparse": (lambda m: plain(m).to_sparse(), TypeError, r"as a dense tensor; got torch.sparse_coo \(.to_dense"),
    "column too many": (
        lambda m: torch.zeros(5, m.features + 1),
        ValueError,
        r"of shape \(\.\.\., \d\); got \(5, \d\)$",
    ),
    "number": (lambda m: torch.tensor(1.0), ValueError, r"of shape \(\.\.\., \d\); got \(\)$"),
    "other device": (
        lambda m: plain(m).to("meta"),
        ValueError,
        r"on cpu, the device of the parameters; got meta: move the (points|rows) with .to\('cpu'\), or the model$",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("name", NAMES)
def test_other_points_are_refused(name: str, case: str) -> None:
    model = MODELS[name]()
    wrong, error, message = REFUSED[case]
    context = inputs_of(model)[1]
    for call in methods_of(model).values():
        with pytest.raises(error, match=rf"^(Flow|Mixture|Autoencoder): expected .*{message}"):
            call(wrong(model), *given(context))


def test_a_frame_is_named_by_its_library() -> None:
    frames = pytest.importorskip("pandas")
    with pytest.raises(TypeError, match=rf"^Flow: expected points as a torch tensor; got pandas.DataFrame {ARRAY}"):
        build("maf", 3).log_prob(frames.DataFrame(np.zeros((5, 3))))


WRONG_CONTEXT: dict[str, tuple[Any, type[Exception], str]] = {
    "missing": (None, ValueError, r"of shape \(\.\.\., 2\); got none$"),
    "array": (np.zeros((5, 2)), TypeError, "context as a torch tensor; got numpy.ndarray"),
    "complex": (torch.zeros(5, 2) + 0j, TypeError, "real context; got torch.complex64$"),
    "too wide": (torch.zeros(5, 3), ValueError, r"context of shape \(\.\.\., 2\); got \(5, 3\)$"),
    "number": (torch.tensor(1.0), ValueError, r"context of shape \(\.\.\., 2\); got \(\)$"),
}


@pytest.mark.parametrize("case", WRONG_CONTEXT)
@pytest.mark.parametrize("name", ["realnvp", "embedding", "mixture"])
def test_other_contexts_are_refused(name: str, case: str) -> None:
    model = MODELS[name]()
    context, error, message = WRONG_CONTEXT[case]
    calls: list[tuple[Any, Any]] = [(call, plain(model)) for call in methods_of(model).values()]
    for call, first in (*calls, (model.sample, ()), (model.sample, 3)):
        with pytest.raises(error, match=f"^(Flow|Mixture): expected .*{message}"):
            call(first, context)


@pytest.mark.parametrize("name", ["realnvp", "nsf-ar", "embedding", "mixture"])
def test_context_rows_that_do_not_match_are_refused(name: str) -> None:
    model = MODELS[name]()
    message = (
        r"^(Flow|Mixture): expected one row of context for all points, or one for each; "
        r"got points of shape \(5, 3\) and context of shape \(4, 2\)$"
    )
    for call in methods_of(model).values():
        with pytest.raises(ValueError, match=message):
            call(torch.zeros(5, 3), torch.zeros(4, 2))
    for rows, shape in (((), (5,)), ((1,), (5,)), ((5,), (5,)), ((7, 5), (7, 5)), ((7, 1), (7, 5))):
        assert model.log_prob(torch.zeros(5, 3), torch.zeros(*rows, 2)).shape == shape


def test_an_autoencoder_takes_no_context() -> None:
    model = MODELS["gaussian decoder"]()
    assert isinstance(model, Autoencoder)
    calls: list[tuple[Any, Any]] = [(model.log_prob, plain(model)), (model.sample, 3)]
    for call, first in calls:
        with pytest.raises(ValueError, match=r"^Autoencoder: expected no context; got one of shape \(5, 2\)$"):
            call(first, torch.zeros(5, 2))
        with pytest.raises(TypeError, match=r"^Autoencoder: expected context as a torch tensor; got numpy"):
            call(first, np.zeros((5, 2)))


FLOW = build("gaussian", 3)
SAMPLERS: dict[str, Flow | Mixture | Base] = {"Flow": FLOW, "Mixture": Mixture([FLOW]), "Gaussian": FLOW.base}


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_number_of_samples(name: str) -> None:
    sampler = SAMPLERS[name]
    shapes: list[tuple[Any, tuple[int, ...]]] = [
        (np.int64(4), (4,)),
        (torch.tensor(4), (4,)),
        ([2, 3], (2, 3)),
        (torch.Size([2, 3]), (2, 3)),
        ((np.int32(2), 3), (2, 3)),
        (0, (0,)),
        ((), ()),
    ]
    for n, lead in shapes:
        assert sampler.sample(n).shape == (*lead, 3)
    for n in (3.0, None, "3", (2, 0.5)):
        with pytest.raises(TypeError, match=f"^{name}: expected the number of samples as an integer or a shape; got "):
            sampler.sample(n)  # type: ignore[arg-type]
    for m in (-1, (2, -1)):
        with pytest.raises(ValueError, match=f"^{name}: expected a number of samples of at least 0; got "):
            sampler.sample(m)


STRICT: dict[str, Bijection] = {
    "LULinear": LULinear(3),
    "ActNorm": ActNorm(3).eval(),
    "Coupling": build("realnvp", 3, layers=1, hidden=8).bijection.bijections[1],  # type: ignore[index, dict-item]
    "MaskedAutoregressive": build("maf", 3, layers=1, hidden=8).bijection.bijections[1],  # type: ignore[index, dict-item]
    "Elementwise": build("maf", 3, layers=1, hidden=8, elementwise=True).bijection.bijections[0],  # type: ignore[index, dict-item]
}


@pytest.mark.parametrize("name", STRICT)
def test_a_bijection_takes_points_in_the_dtype_of_its_parameters_only(name: str) -> None:
    bijection = STRICT[name]
    for call in (bijection, bijection.inverse, Inverse(bijection)):
        for dtype in (torch.float64, torch.float16):
            message = rf"^{name}: expected points of torch.float32, as the parameters; got {dtype}$"
            with pytest.raises(TypeError, match=message):
                call(torch.zeros(5, 3, dtype=dtype))


@pytest.mark.parametrize("bijection", [*STRICT.values(), Standardize([0.5] * 3, [1.0] * 3), Permutation([2, 0, 1])])
def test_a_bijection_takes_no_integers(bijection: Bijection) -> None:
    """Standardize would round its result to integers."""
    for call in (bijection, bijection.inverse):
        with pytest.raises(TypeError, match=r"expected points of a floating dtype; got torch.int64$"):
            call(torch.zeros(5, 3, dtype=torch.int64))


def test_a_bijection_names_context_that_does_not_fit() -> None:
    layer = build("maf", 3, 2, layers=1, hidden=8).bijection
    with pytest.raises(ValueError, match=r"^Chain: expected one row of context for all points, or one for each; got "):
        layer(torch.zeros(5, 3), torch.zeros(4, 2))
    with pytest.raises(TypeError, match=r"expected context of torch.float32, as the parameters; got torch.float64$"):
        layer(torch.zeros(5, 3), torch.zeros(5, 2).double())


@pytest.mark.parametrize("base", [Gaussian(3), StudentT(3), KernelDensity(torch.zeros(2, 3))])
def test_a_base_takes_points_in_its_dtype_only(base: Base) -> None:
    name = type(base).__name__
    for call in (base.log_prob, base.latents):
        for dtype in (torch.float64, torch.int64):
            with pytest.raises(TypeError, match=rf"^{name}: expected points of torch.float32, as the parameters; got "):
                call(torch.zeros(5, 3, dtype=dtype))
        with pytest.raises(TypeError, match=f"^{name}: expected points as a torch tensor; got numpy.ndarray"):
            call(np.zeros((5, 3)))  # type: ignore[arg-type]
    if isinstance(base, Gaussian):
        with pytest.raises(TypeError, match=r"^Gaussian: expected covariance as a torch tensor; got numpy.ndarray"):
            base.initialize(torch.zeros(3), np.eye(3))  # type: ignore[arg-type]


def test_flows_refuse_nothing_that_they_took(perturb: Callable[[nn.Module], nn.Module]) -> None:
    """Points and context in the dtype of the model are passed on as they are, without a copy."""
    flow = build("gaussian", 3)
    seen: list[Tensor] = []
    assert isinstance(flow, Flow)
    flow.bijection.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    points = torch.randn(5, 3)
    flow.log_prob(points)
    assert seen[0] is points
