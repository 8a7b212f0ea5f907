"""A flow's embedding of its context: any module, row by row."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from nflows.transforms import PointwiseAffineTransform
from torch import Tensor, nn
from torch.testing import assert_close

from pushforward.flows import (
    Autoencoder,
    Chain,
    Flow,
    Gaussian,
    GaussianDecoder,
    LULinear,
    Mixture,
    ResidualNet,
    Standardize,
    build,
    load,
    register_part,
    save,
)

Perturb = Callable[[nn.Module], nn.Module]
F64 = torch.float64


def network(inputs: int = 10, outputs: int = 4) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, 16), nn.Tanh(), nn.Linear(16, outputs))


@register_part("test-embedding")
class Embedding(nn.Module):
    """A user's embedding that can be saved."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.inputs, self.outputs = inputs, outputs
        self.net = network(inputs, outputs)

    def forward(self, context: Tensor) -> Tensor:
        embedded: Tensor = self.net(context)
        return embedded

    def config(self) -> dict[str, Any]:
        return {"inputs": self.inputs, "outputs": self.outputs}


@pytest.fixture
def inner(perturb: Perturb) -> Flow:
    """A flow whose base and bijection take four context features."""
    flow = build("nsf-ar", 2, 4, layers=2, hidden=8, blocks=1, bins=4).to(F64).eval()
    perturb(flow)
    return flow


@pytest.fixture
def flow(inner: Flow) -> Flow:
    """The same with ten context features and a network that embeds them."""
    return Flow(inner.base, inner.bijection, network().to(F64)).eval()


def test_every_row_is_embedded_by_itself_in_every_method(flow: Flow, inner: Flow) -> None:
    x, context = torch.randn(6, 2, dtype=F64), 3.0 * torch.randn(6, 10, dtype=F64)
    embedding: Any = flow.embedding
    embedded = embedding(context).detach()
    assert flow.context == -1
    for method in ("log_prob", "forward", "transform_to_base", "latents", "score_function", "log_prob_terms"):
        expected = getattr(inner, method)(x, embedded)
        assert_close(getattr(flow, method)(x, context), expected)
        rows: Any = [getattr(flow, method)(x[i], context[i]) for i in range(6)]
        rows = tuple(map(torch.stack, zip(*rows, strict=True))) if isinstance(expected, tuple) else torch.stack(rows)
        assert_close(rows, expected)
    for method, options in (
        ("sample", {}),
        ("rsample", {}),
        ("rsample_and_log_prob", {}),
        ("rsample_and_log_prob", {"path": True}),
        ("sample_and_log_prob", {}),
    ):
        torch.manual_seed(0)
        found = getattr(flow, method)(3, context, **options)
        torch.manual_seed(0)
        assert_close(found, getattr(inner, method)(3, embedded, **options))


@pytest.mark.parametrize(
    ("points", "lead"), [((), (5,)), ((5,), ()), ((2, 3), (3,)), ((3,), (2, 3)), ((2, 1), (3,)), ((1,), (0,))]
)
def test_leading_dimensions_broadcast(points: tuple[int, ...], lead: tuple[int, ...], flow: Flow) -> None:
    x, context = torch.randn(*points, 2, dtype=F64), torch.randn(*lead, 10, dtype=F64)
    shape = torch.broadcast_shapes(points, lead)
    expected = flow.log_prob(x.expand(*shape, 2).reshape(-1, 2), context.expand(*shape, 10).reshape(-1, 10))
    assert_close(flow.log_prob(x, context), expected.reshape(shape))
    assert flow.sample(4, context).shape == (4, *lead, 2)


def test_modules_that_take_one_leading_dimension_work_with_any(inner: Flow) -> None:
    embedding = nn.Sequential(nn.Linear(10, 4), nn.BatchNorm1d(4)).to(F64)
    flow = Flow(inner.base, inner.bijection, embedding).eval()
    x, context = torch.randn(2, 3, 2, dtype=F64), torch.randn(2, 3, 10, dtype=F64)
    assert_close(flow.log_prob(x, context), inner.log_prob(x, embedding(context.reshape(6, 10)).reshape(2, 3, 4)))
    flow.log_prob(x[0, 0], context[0, 0])
    # In training mode the statistics of the batch are used.
    assert not torch.allclose(flow.train().log_prob(x, context), flow.eval().log_prob(x, context))


def test_gradients_reach_the_embedding_and_both_users_of_it(flow: Flow) -> None:
    x, context = torch.randn(6, 2, dtype=F64), torch.randn(6, 10, dtype=F64)
    losses: list[Callable[[], Tensor]] = [
        lambda: flow.log_prob(x, context).sum(),
        lambda: flow.rsample((), context).square().sum(),
        lambda: flow.rsample_and_log_prob((), context, path=True)[1].sum(),
    ]
    for loss in losses:
        flow.zero_grad()
        torch.autograd.backward(loss())
        for name, parameter in flow.named_parameters():
            if name.startswith("embedding"):
                assert parameter.grad is not None, name
                assert bool(parameter.grad.any()), name
    assert not flow.score_function(x, context).requires_grad


def test_transformed_by_torch(flow: Flow) -> None:
    x, context = torch.randn(3, 2, dtype=F64), torch.randn(3, 10, dtype=F64)
    expected = flow.log_prob(x, context)
    assert_close(torch.vmap(flow.log_prob)(x, context), expected)
    assert_close(torch.vmap(torch.func.grad(flow.log_prob))(x, context), flow.score_function(x, context))
    torch.compiler.reset()
    compiled: Any = torch.compile(flow, fullgraph=True, backend="eager")
    assert_close(compiled(x, context), expected)
    other = Flow(copy.deepcopy(flow.base), copy.deepcopy(flow.bijection), network().to(F64))
    other.load_state_dict(flow.state_dict())
    for twin in (copy.deepcopy(flow), other):
        assert_close(twin.log_prob(x, context), expected, rtol=0, atol=0)


def test_a_bijection_and_a_transform_of_nflows_give_their_value(inner: Flow) -> None:
    x, context = torch.randn(3, 2, dtype=F64), torch.randn(3, 4, dtype=F64)
    for embedding in (
        Standardize([1.0] * 4, [2.0] * 4),
        PointwiseAffineTransform(torch.tensor(-0.5), torch.tensor(0.5)),
    ):
        flow = Flow(inner.base, inner.bijection, embedding).to(F64)
        assert flow.context == 4
        assert_close(flow.log_prob(x, context), inner.log_prob(x, (context - 1.0) / 2.0))


def test_a_mixture_of_members_with_embeddings_of_their_own(flow: Flow, inner: Flow, perturb: Perturb) -> None:
    plain = build("maf", 2, layers=1, hidden=4).to(F64)
    raw: Any = perturb(build("maf", 2, 10, layers=1, hidden=4).to(F64))
    x, context = torch.randn(5, 2, dtype=F64), torch.randn(5, 10, dtype=F64)
    cases: list[tuple[list[Flow], int]] = [([flow, plain], -1), ([plain, flow, raw], 10), ([plain, plain], 0)]
    for members, size in cases:
        mixture = Mixture(members).eval()
        assert mixture.context == size
        given = context if size else None
        each = [m.log_prob(x, given if m.context else None) for m in members]
        assert_close(mixture.log_prob(x, given), torch.stack(each).logsumexp(0) - torch.tensor(len(each)).log())
        assert mixture.sample(3, given).shape == ((3, 5, 2) if size else (3, 2))
        assert mixture.latents(x, given).shape == (5, 2)
    with pytest.raises(ValueError, match="a context of 0 or 10 in member 1; got 2 and 4"):
        Mixture([raw, inner])


def test_the_posterior_of_an_autoencoder_may_embed_its_context() -> None:
    posterior = build("realnvp", 2, 4, layers=1, hidden=4)
    embedded = Flow(posterior.base, posterior.bijection, network(6, 4))
    model = Autoencoder(nn.Linear(3, 6), GaussianDecoder(nn.Linear(2, 3), 3), build("gaussian", 2), embedded).eval()
    x = torch.randn(5, 3)
    for method in ("elbo", "log_prob", "encode", "reconstruct"):
        found = getattr(model, method)(x)
        assert len(found) == 5
    assert_close(model.log_prob(x)[2:3], model.log_prob(x[2:3]))
    assert_close(model.encode(x)[2:3], model.encode(x[2:3]))


def test_registered_embeddings_are_saved_and_others_refused(flow: Flow, inner: Flow, tmp_path: Path) -> None:
    x, context = torch.randn(4, 2, dtype=F64), torch.randn(4, 10, dtype=F64)
    own = Flow(inner.base, inner.bijection, Embedding(10, 4).to(F64)).eval()
    save(own, tmp_path / "own")
    assert_close(load(tmp_path / "own").log_prob(x, context), own.log_prob(x, context), rtol=0, atol=0)
    net = Flow(inner.base, inner.bijection, ResidualNet(10, 4, hidden=8).to(F64)).eval()
    save(net, tmp_path / "net")
    assert_close(load(tmp_path / "net").log_prob(x, context), net.log_prob(x, context), rtol=0, atol=0)
    unknown = Flow(inner.base, inner.bijection, nn.Bilinear(10, 10, 4).to(F64))
    with pytest.raises(ValueError, match=r"save: cannot describe Bilinear; give it a config\(\) method and a name"):
        save(unknown, tmp_path / "unknown")
    assert not list(tmp_path.glob("unknown*"))


def test_embeddings_of_modules_of_torch_are_saved(inner: Flow, tmp_path: Path) -> None:
    layers: list[nn.Module] = [
        nn.Flatten(),
        nn.Linear(10, 6, bias=False),
        nn.BatchNorm1d(6, eps=1e-3),
        nn.LeakyReLU(0.3),
        nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5, eps=1e-2), nn.GELU("tanh"), nn.Dropout(0.4)),
        *(nn.ELU(0.5), nn.SiLU(), nn.Tanh(), nn.Softplus(2.0), nn.Sigmoid(), nn.ReLU(), nn.Identity()),
        nn.Linear(5, 4),
    ]
    embedding = nn.Sequential(*layers).to(F64)
    embedding(torch.randn(50, 10, dtype=F64))  # the running means of the batch norm
    own = Flow(inner.base, inner.bijection, embedding).eval()
    save(own, tmp_path / "own")
    found = load(tmp_path / "own")
    assert str(found.embedding) == str(embedding)
    x, context = torch.randn(4, 2, dtype=F64), torch.randn(4, 10, dtype=F64)
    assert_close(found.log_prob(x, context), own.log_prob(x, context), rtol=0, atol=0)


BAD: dict[str, tuple[Callable[[Flow], Any], type[Exception], str]] = {
    "wrong output": (
        lambda f: Flow(f.base, f.bijection, nn.Linear(10, 3)).double().log_prob(ones(2), ones(10)),
        ValueError,
        r"Flow: expected output of the embedding of shape \(..., 4\); got \(1, 3\)",
    ),
    "tuple": (
        lambda f: Flow(f.base, f.bijection, nn.LSTM(10, 4)).double().log_prob(ones(2), ones(10)),
        TypeError,
        "Flow: expected output of the embedding as a torch tensor; got tuple$",
    ),
    "no context": (
        lambda f: Flow(f.base, f.bijection, nn.Linear(10, 4)).log_prob(ones(2)),
        ValueError,
        r"Flow: expected context of shape \(..., any\); got none",
    ),
    "not a module": (
        lambda f: Flow(f.base, f.bijection, lambda c: c),  # type: ignore[arg-type]
        TypeError,
        "Flow: expected a module as embedding; got function",
    ),
    "without users": (
        lambda f: Flow(Gaussian(2), LULinear(2), nn.Linear(10, 4)),
        ValueError,
        "Flow: expected no embedding, as neither base nor bijection takes a context; got one",
    ),
    "size of a bijection": (
        lambda f: Flow(f.base, f.bijection, Standardize([0.0], [1.0])),
        ValueError,
        "Flow: expected an embedding of 4 features; got 1",
    ),
    "raw context": (
        lambda f: f.log_prob(ones(2), ones(3)),
        ValueError,
        r"Flow: expected context of shape \(..., 4\); got \(3,\)",
    ),
    "size of points": (
        lambda f: f.log_prob(ones(3), ones(4)),
        ValueError,
        r"Flow: expected points of shape \(..., 2\); got \(3,\)",
    ),
}


def ones(size: int) -> Tensor:
    return torch.ones(size, dtype=F64)


@pytest.mark.parametrize("case", BAD)
def test_message(case: str, inner: Flow) -> None:
    call, kind, message = BAD[case]
    with pytest.raises(kind, match=message):
        call(inner)


def test_integers_are_points_and_context_too(inner: Flow) -> None:
    x, context = torch.tensor([[1, 2], [0, -1]]), torch.tensor([[1, 0, 0, 2], [3, 0, 0, 1]])
    assert_close(inner.log_prob(x, context), inner.log_prob(x.double(), context.double()), rtol=0, atol=0)
    categories = Flow(inner.base, inner.bijection, nn.Sequential(nn.Embedding(9, 4), nn.Flatten(-2)).to(F64))
    assert categories.log_prob(x.double(), torch.tensor([[3], [8]])).shape == (2,)
    empty = Flow(Gaussian(2), Chain([], features=2))
    assert empty.log_prob(x).dtype == torch.float32
