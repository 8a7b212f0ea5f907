"""The transformer as a conditioner: what it reads, its incremental pass, and its use in place of a residual network."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from pushforward.flows import (
    Affine,
    AutoregressiveMixture,
    Flow,
    Gaussian,
    Inverse,
    MaskedAutoregressive,
    MaskedConditioner,
    MaskedResidualNet,
    MaskedTransformer,
    RationalQuadraticSpline,
    check_bijection,
    load,
    save,
)
from pushforward.flows.kernels.description import description_of
from pushforward.flows.networks import transformer
from pushforward.train.device import StepExecutor
from pushforward.train.options import TrainOptions

Perturb = Callable[[nn.Module], nn.Module]
SPLINE = RationalQuadraticSpline(bins=5, bound=3.0)
MORE_THAN_A_BLOCK = 2 * transformer.BLOCK + 3
in_both_embeddings = pytest.mark.parametrize("embedding", transformer.EMBEDDINGS)


def network(features: int, outputs: int = 2, context: int = 0, **options: Any) -> MaskedTransformer:
    size: dict[str, Any] = {"hidden": 8, "blocks": 2, "heads": 2} | options
    return MaskedTransformer(features, outputs, context=context, **size)


def made(perturb: Perturb, features: int, outputs: int = 2, context: int = 0, **options: Any) -> MaskedTransformer:
    net = network(features, outputs, context, **options).double().eval()
    perturb(net)
    return net


def draw(net: MaskedTransformer, *lead: int) -> tuple[Tensor, Tensor | None]:
    points = torch.randn(*lead, net.features, dtype=torch.float64)
    return points, torch.randn(*lead, net.context, dtype=torch.float64) if net.context else None


# --- inputs of each output -------------------------------------------------------------------------------------------


@in_both_embeddings
@pytest.mark.parametrize("context", [0, 2])
@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize("features", [1, 2, 5])
def test_reads_all_earlier_features_and_no_others(
    features: int, blocks: int, context: int, embedding: str, perturb: Perturb
) -> None:
    net = made(perturb, features, context=context, blocks=blocks, embedding=embedding)
    points, given = draw(net, 4)
    jacobian = torch.autograd.functional.jacobian(lambda x: net(x, given).sum(0), points)
    assert isinstance(jacobian, Tensor)  # (output feature, output, point, input feature)
    depends = (jacobian != 0).any(2).any(1)
    assert torch.equal(depends, torch.ones(features, features).tril(-1).bool())


def test_without_blocks_it_reads_only_the_feature_before(perturb: Perturb) -> None:
    net = made(perturb, 4, blocks=0)
    jacobian = torch.autograd.functional.jacobian(lambda x: net(x).sum(-1), draw(net)[0])
    assert isinstance(jacobian, Tensor)
    assert torch.equal(jacobian != 0, torch.ones(4, 4).tril(-1).triu(-1).bool())


@in_both_embeddings
def test_later_features_do_not_matter(embedding: str, perturb: Perturb) -> None:
    net = made(perturb, 6, context=1, embedding=embedding)
    points, given = draw(net, 3)
    outputs = net(points, given)
    for order in itertools.permutations(range(3, 6)):
        permuted = net(points[:, [0, 1, 2, *order]], given)
        assert_close(permuted[:, :4], outputs[:, :4], rtol=0, atol=0)
    far = points + torch.tensor([0.0, 0, 0, 1e9, -1e9, 1e9])
    assert_close(net(far, given)[:, :4], outputs[:, :4], rtol=0, atol=0)


def test_the_order_of_earlier_features_matters(perturb: Perturb) -> None:
    net = made(perturb, 4)
    points, _ = draw(net, 3)
    assert not torch.allclose(net(points[:, [1, 0, 2, 3]])[:, 3], net(points)[:, 3])


@pytest.mark.parametrize("d", range(3))
def test_every_feature_reads_the_context(d: int, perturb: Perturb) -> None:
    net = made(perturb, 3, context=2)
    points, given = draw(net, 4)
    assert given is not None
    for change in torch.eye(2, dtype=torch.float64):
        assert not torch.allclose(net(points, given + change)[:, d], net(points, given)[:, d])


@in_both_embeddings
def test_outputs_stay_bounded_far_outside(embedding: str, perturb: Perturb) -> None:
    net = made(perturb, 3, embedding=embedding)
    for sign in (-1.0, 1.0):
        far, farther = (net(torch.full((3,), sign * x, dtype=torch.float64)) for x in (1e8, 1e12))
        assert_close(far, farther, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("points_lead", "context_lead"),
    [((), ()), ((0,), (0,)), ((2, 3), (2, 3)), ((2, 1), (3,)), ((), (4,)), ((4,), ())],
    ids=str,
)
@pytest.mark.parametrize("features", [1, 3])
def test_leading_dimensions(
    points_lead: tuple[int, ...], context_lead: tuple[int, ...], features: int, perturb: Perturb
) -> None:
    net = made(perturb, features, outputs=5, context=2)
    points, given = draw(net, *points_lead)[0], draw(net, *context_lead)[1]
    assert given is not None
    lead = torch.broadcast_shapes(points_lead, context_lead)
    outputs = net(points, given)
    assert outputs.shape == (*lead, features, 5)
    flat = net(points.expand(*lead, features).reshape(-1, features), given.expand(*lead, 2).reshape(-1, 2))
    assert_close(outputs, flat.reshape(outputs.shape))


@pytest.mark.filterwarnings("ignore:enable_nested_tensor:UserWarning")
def test_blocks_equal_those_of_torch(perturb: Perturb) -> None:
    net = made(perturb, 5, hidden=12, heads=3, blocks=1)
    (block,) = net.body
    assert isinstance(block, transformer.TransformerBlock)
    encoder = nn.TransformerEncoderLayer(12, 3, 48, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
    pairs = {
        "self_attn.in_proj_": block.attention,
        "self_attn.out_proj.": block.merge,
        "norm1.": block.norm,
        "norm2.": block.second_norm,
        "linear1.": block.widen,
        "linear2.": block.narrow,
    }
    state = {to + name: value for to, part in pairs.items() for name, value in part.state_dict().items()}
    encoder.load_state_dict(state | {"self_attn.in_proj_bias": torch.zeros(36)})
    h = torch.randn(4, 5, 12, dtype=torch.float64)
    assert_close(block(h, net.mask), encoder.double()(h, src_mask=net.mask, is_causal=True))


# --- initial values and dropout --------------------------------------------------------------------------------------


@pytest.mark.parametrize("univariate", [Affine(), SPLINE], ids=["affine", "spline"])
def test_starts_as_the_identity(univariate: Any) -> None:
    layer = MaskedAutoregressive(network(4, univariate.size, 2), univariate)
    points = 2.0 * torch.randn(16, 4)
    z, log_det = layer(points, torch.randn(16, 2))
    assert_close(z, points, rtol=1e-5, atol=1e-5)  # the spline rounds in float32
    assert_close(log_det, torch.zeros(16), rtol=0, atol=1e-5)


def test_dropout_acts_in_training_only(perturb: Perturb) -> None:
    plain, net = made(perturb, 4), made(perturb, 4, dropout=0.5)
    net.load_state_dict(plain.state_dict())
    points, _ = draw(net, 8)
    assert_close(net(points), plain(points), rtol=0, atol=0)
    kept = net.incremental(points)
    net.train()
    assert not torch.equal(net(points), net(points))
    inverse = net.incremental(points)  # without dropout also in training mode
    for x in points.unbind(-1):
        assert_close(inverse.parameters(), kept.parameters(), rtol=0, atol=0)
        inverse.append(x)
        kept.append(x)
    net.dropout = 0.0
    for part in net.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    assert_close(net(points), plain(points), rtol=0, atol=0)


# --- the incremental pass --------------------------------------------------------------------------------------------


@in_both_embeddings
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("points", [0, 1, 7])
@pytest.mark.parametrize(("features", "context"), [(1, 2), (2, 0), (transformer.BLOCK, 0), (MORE_THAN_A_BLOCK, 2)])
def test_incremental_equals_the_full_pass(
    features: int, context: int, points: int, grad: bool, embedding: str, perturb: Perturb
) -> None:
    net = made(perturb, features, context=context, embedding=embedding)
    x, given = draw(net, points)
    with torch.set_grad_enabled(grad):
        found, steps = [], net.incremental(x, given)
        for value in x.unbind(-1):
            found.append(steps.parameters())
            steps.append(value)
        assert_close(torch.stack(found, dim=-2), net(x, given), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("features", "context"), [(1, 0), (3, 2), (MORE_THAN_A_BLOCK, 1)])
@pytest.mark.parametrize("univariate", [Affine(), SPLINE], ids=["affine", "spline"])
def test_contract(univariate: Any, features: int, context: int, perturb: Perturb) -> None:
    net = made(perturb, features, univariate.size, context)
    check_bijection(MaskedAutoregressive(net, univariate), draw(net, 3)[0])


def test_gradients_of_the_inverse(perturb: Perturb) -> None:
    """Compare with the inverse function theorem: the forward pass at the solution and its inverted Jacobian."""
    net = made(perturb, MORE_THAN_A_BLOCK, SPLINE.size, context=1)
    layer = MaskedAutoregressive(net, SPLINE)
    z, given = draw(net, 2)
    assert given is not None
    sources = [given.requires_grad_(), *net.parameters()]
    x, _ = layer.inverse(z.requires_grad_(), given)
    weights = torch.randn_like(x)
    found = torch.autograd.grad(x, [z, *sources], weights)

    solution = x.detach()
    jacobian = torch.func.vmap(torch.func.jacrev(lambda p, c: layer(p, c)[0]))(solution, given.detach())
    cotangents = torch.linalg.solve(jacobian.transpose(-1, -2), weights.unsqueeze(-1)).squeeze(-1)
    expected = torch.autograd.grad(layer(solution, given)[0], sources, -cotangents)
    assert_close(found, (cotangents, *expected), rtol=1e-8, atol=1e-9)


def test_gradcheck(perturb: Perturb) -> None:
    layer = MaskedAutoregressive(made(perturb, 2, Affine().size, 1, hidden=4), Affine())
    z, given = (t.requires_grad_() for t in (torch.randn(2, 2).double(), torch.randn(2, 1).double()))
    assert torch.autograd.gradcheck(layer.inverse, (z, given))
    assert torch.autograd.gradgradcheck(layer.forward, (z, given))
    assert torch.autograd.gradgradcheck(layer.inverse, (z, given))


def test_gradients_of_the_inverse_do_not_copy_every_key_for_every_token(
    perturb: Perturb, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = made(perturb, 32, hidden=16)
    points, _ = draw(net, 8)

    def kept() -> int:
        """Bytes that are saved for the backward pass."""
        storages: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            x, _ = MaskedAutoregressive(net, Affine()).inverse(points)
        assert x.requires_grad
        return sum(storages.values())

    in_blocks = kept()
    monkeypatch.setattr(transformer, "BLOCK", 1000)
    assert in_blocks < 0.75 * kept()


@pytest.mark.parametrize(("grad", "context"), [(True, 0), (False, 1)])
def test_inverse_is_one_graph(grad: bool, context: int, perturb: Perturb, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformer, "BLOCK", 2)
    layer = MaskedAutoregressive(made(perturb, 3, Affine().size, context, blocks=1), Affine())
    points, given = draw(layer.conditioner, 4)  # type: ignore[arg-type]
    torch.compiler.reset()
    with torch.set_grad_enabled(grad):
        compiled: Any = torch.compile(layer.inverse, fullgraph=True, backend="eager", dynamic=False)
        assert_close(compiled(points, given), layer.inverse(points, given))


def test_weights_may_be_batched(perturb: Perturb) -> None:
    """The inverse works under ``vmap`` over all weights or some of them."""
    layers = [MaskedAutoregressive(made(perturb, 3, Affine().size), Affine()) for _ in range(2)]
    shared = {"conditioner.first.weight", "conditioner.last.weight", "conditioner.body.0.attention.weight"}
    for name, parameter in layers[1].named_parameters():
        if name not in shared:
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    first, second = (dict(layer.named_parameters()) for layer in layers)
    points = torch.randn(5, 3, dtype=torch.float64)
    for apart in ({"conditioner.last.bias"}, {"conditioner.body.1.widen.weight"}, first.keys() - shared):
        weights = {k: torch.stack([first[k], second[k]]) if k in apart else first[k] for k in first}
        over = {k: 0 if k in apart else None for k in first}

        def inverse(weights: dict[str, Tensor]) -> Any:
            own = {f"bijection.{name}": weight for name, weight in weights.items()}
            return torch.func.functional_call(Inverse(layers[0]), own, points)

        with torch.no_grad():
            x, _ = torch.vmap(inverse, in_dims=(over,))(weights)
            assert_close(x[0], layers[0].inverse(points)[0])
            mixed = {k: v[1] if k in apart else v for k, v in weights.items()}
            assert_close(x[1], inverse(mixed)[0])


# --- in layers, mixtures and fits ------------------------------------------------------------------------------------


def test_there_is_no_kernel_for_it(perturb: Perturb) -> None:
    assert description_of(MaskedAutoregressive(made(perturb, 3, SPLINE.size), SPLINE)) is None
    assert description_of(MaskedAutoregressive(MaskedResidualNet(3, SPLINE.size, hidden=8), SPLINE)) is not None


def test_scores_of_a_flow(perturb: Perturb) -> None:
    flow = Flow(Gaussian(3).double(), MaskedAutoregressive(made(perturb, 3, SPLINE.size), SPLINE))
    x, log_prob = flow.rsample_and_log_prob(6, path=True)
    assert_close(log_prob, flow.log_prob(x))
    leaf = x.detach().requires_grad_()
    (expected,) = torch.autograd.grad(flow.log_prob(leaf).sum(), leaf)
    assert_close(flow.score_function(x.detach()), expected)


@pytest.mark.parametrize("context", [0, 2])
def test_conditions_a_mixture(context: int, perturb: Perturb) -> None:
    mixture = AutoregressiveMixture(network(3, 3 * 4, context), Gaussian(3)).double()
    points, given = draw(mixture.conditioner, 9)  # type: ignore[arg-type]
    same = AutoregressiveMixture(MaskedResidualNet(3, 3 * 4, context=context, hidden=8), Gaussian(3)).double()
    assert_close(mixture.log_prob(points, given), same.log_prob(points, given))  # both networks start at their bias
    perturb(mixture)
    sample = mixture.rsample(() if context else 9, given)
    assert sample.shape == points.shape
    sample.sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in mixture.parameters())


@in_both_embeddings
@pytest.mark.parametrize("context", [0, 2])
def test_a_saved_transformer_is_the_same(context: int, embedding: str, tmp_path: Path, perturb: Perturb) -> None:
    net = network(3, SPLINE.size, context, heads=4, blocks=1, dropout=0.25, embedding=embedding)
    flow = Flow(Gaussian(3), MaskedAutoregressive(net, SPLINE)).eval()
    perturb(flow)
    save(flow, tmp_path)
    twin = load(tmp_path)
    points, given = torch.randn(4, 3), torch.randn(4, 2) if context else None
    assert_close(twin(points, given), flow(points, given), rtol=0, atol=0)
    (found,) = (m for m in twin.modules() if isinstance(m, MaskedTransformer))
    size = {"features": 3, "outputs_per_feature": SPLINE.size, "context": context, "hidden": 8, "blocks": 1, "heads": 4}
    assert found.config() == net.config() == size | {"dropout": 0.25, "embedding": embedding}
    assert not any("mask" in name for name in twin.state_dict())


def test_a_step_in_half_precision(perturb: Perturb) -> None:
    flow = Flow(Gaussian(3), MaskedAutoregressive(network(3, SPLINE.size), SPLINE))
    perturb(flow)
    steps = StepExecutor(flow, TrainOptions(steps=1, precision="bf16"), pytest.fail)
    points = torch.randn(16, 3)
    base_term, log_det = steps.run(flow.log_prob_terms, points)
    assert base_term.dtype == log_det.dtype == torch.float32
    exact = flow.log_prob_terms(points)[1]
    assert not torch.equal(log_det, exact)
    assert_close(log_det, exact, rtol=0, atol=0.2)


def test_it_learns_a_nonlinear_dependence() -> None:
    """The last feature is the square of the first, with noise features between them."""
    x = torch.randn(512, 4)
    x[:, 3] = x[:, 0].square() - 1.0 + 0.1 * x[:, 3]
    flow = Flow(Gaussian(4), MaskedAutoregressive(network(4, SPLINE.size, hidden=16, blocks=1), SPLINE))
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-2)
    before = -flow.log_prob(x).mean()
    for _ in range(60):
        loss = -flow.log_prob(x).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert before + flow.log_prob(x).mean() > 0.7


# --- errors ----------------------------------------------------------------------------------------------------------

MISTAKES: dict[str, tuple[Callable[[], Any], str]] = {
    "features": (lambda: network(0), "MaskedTransformer: expected features of at least 1; got 0"),
    "outputs": (lambda: network(1, 0), "MaskedTransformer: expected outputs_per_feature of at least 1; got 0"),
    "heads": (lambda: network(1, heads=0), "MaskedTransformer: expected heads of at least 1; got 0"),
    "hidden": (
        lambda: network(1, hidden=10, heads=4),
        "MaskedTransformer: expected hidden to be a multiple of heads; got 10 and 4",
    ),
    "blocks": (lambda: network(1, blocks=-1), "MaskedTransformer: expected blocks of at least 0; got -1"),
    "dropout": (lambda: network(1, dropout=1.0), r"MaskedTransformer: expected dropout in \[0, 1\); got 1.0"),
    "embedding": (
        lambda: network(1, embedding="periodical"),
        "MaskedTransformer: unknown embedding 'periodical'; did you mean 'periodic'\\? known: linear, periodic",
    ),
    "points": (
        lambda: network(1)(torch.zeros(4, 3)),
        r"MaskedTransformer: expected points of shape \(\.\.\., 1\); got \(4, 3\)",
    ),
    "context": (
        lambda: network(2, context=3)(torch.zeros(4, 2)),
        r"MaskedTransformer: expected context of shape \(\.\.\., 3\); got none",
    ),
    "context of the inverse": (
        lambda: network(2, context=3).incremental(torch.zeros(4, 2)),
        r"MaskedTransformer: expected context of shape \(\.\.\., 3\); got none",
    ),
    "univariate": (
        lambda: MaskedAutoregressive(network(2, 5), Affine()),
        "MaskedAutoregressive: expected a conditioner with 2 outputs a feature; got 5",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_reported(mistake: str) -> None:
    call, message = MISTAKES[mistake]
    with pytest.raises(ValueError, match=f"^{message}$"):
        call()


def test_both_networks_follow_the_protocol() -> None:
    nets: list[MaskedConditioner] = [network(3, 4), MaskedResidualNet(3, 4, hidden=8)]
    for net in nets:
        assert net.last.bias.view(3, 4).shape == (3, 4)
        assert net(torch.zeros(2, 3)).shape == (2, 3, 4)
        assert type(net)(**net.config()).config() == net.config()
