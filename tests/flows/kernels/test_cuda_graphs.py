"""Samples by CUDA graphs equal those without, follow changes of the flow, and free their memory."""

import contextlib
import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from pushforward.flows import Chain, Coupling, Flow, LULinear, Standardize, build
from pushforward.flows.kernels import cuda_graphs as graphs
from tests.fixtures.kernels import Perturb


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Imitate graphs on a CPU; replaying repeats the work and writes to the same tensors. Yields the graphs' sizes."""
    sizes: list[int] = []

    def record(
        work: Callable[[], graphs.ValueAndLogDet], device: torch.device
    ) -> tuple[Callable[[], object], graphs.ValueAndLogDet]:
        results = work()
        sizes.append(len(results[0]))

        def replay() -> None:
            with torch.no_grad():
                for old, new in zip(results, work(), strict=True):
                    old.copy_(new)

        return replay, results

    monkeypatch.setattr(graphs, "record_graph", record)
    monkeypatch.setattr(graphs, "is_possible", lambda z, context: not torch.is_grad_enabled() and z.numel() > 0)
    monkeypatch.setattr(graphs, "MIN_POINTS", 4)
    monkeypatch.setattr(graphs, "MAX_POINTS", 16)
    return sizes


def in_data_units(perturb: Perturb, name: str = "nsf-ar", context: int = 0) -> Flow:
    inner = build(name, 3, context, layers=2, hidden=8, bins=4).double()
    perturb(inner)
    inner.eval()
    return Flow(inner.base, Chain([Standardize([1.0, -2.0, 0.0], [0.5, 3.0, 1.0]), inner.bijection])).double().eval()


def draw(flow: Flow, n: int | tuple[int, ...], context: Tensor | None = None) -> tuple[Tensor, Tensor]:
    torch.manual_seed(5)
    return flow.sample_and_log_prob(n, context)


def draw_without_graphs(flow: Flow, n: int | tuple[int, ...], context: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Draw without graphs, which are not used if gradients are enabled."""
    torch.manual_seed(5)
    x, log_prob = flow.rsample_and_log_prob(n, context)
    return x.detach(), log_prob.detach()


@pytest.mark.parametrize(
    ("name", "n"),
    [
        *(("nsf-ar", n) for n in (1, 3, 16, 17, 50, (2, 9))),
        *((name, n) for name in ("nsf-c", "maf", "iaf", "realnvp", "gaussian") for n in (3, 17)),
    ],
)
@pytest.mark.parametrize("context", [0, 2])
def test_graphs_give_the_same_samples(
    name: str, context: int, n: int | tuple[int, ...], perturb: Perturb, recorded: list[int]
) -> None:
    flow = in_data_units(perturb, name, context)
    for given in [None] if not context else [torch.randn(2), torch.randn(5, 2)]:
        recorded.clear()
        given = None if given is None else given.double()
        expected = draw_without_graphs(flow, n, given)
        for _ in range(3):
            x, log_prob = draw(flow, n, given)
            assert_close((x, log_prob), expected, rtol=1e-10, atol=1e-10)
        assert len(recorded) == 1 or given is not None  # another context may have the same size
        assert all(size in (4, 8, 16) for size in recorded)


def test_the_first_call_is_not_recorded_and_later_ones_share_a_graph(perturb: Perturb, recorded: list[int]) -> None:
    flow = in_data_units(perturb)
    draw(flow, 7)
    assert recorded == []
    for n in (7, 8, 5, 7):
        draw(flow, n)
    assert recorded == [8]
    draw(flow, 9)
    draw(flow, 40)
    assert recorded == [8, 16]


def test_results_are_not_overwritten_by_the_next_call(perturb: Perturb, recorded: list[int]) -> None:
    flow = in_data_units(perturb)
    flow.sample(7)
    first = flow.sample(7)
    kept = first.clone()
    flow.sample(7)
    assert recorded
    assert torch.equal(first, kept)


def move(flow: Flow) -> None:
    for p in flow.bijection.parameters():
        p.data = p.data.clone() + 0.01


def replace(flow: Flow) -> None:
    for m in flow.modules():
        if isinstance(m, LULinear):
            m.log_diagonal = nn.Parameter(m.log_diagonal.detach() + 0.1)


CHANGES: dict[str, Callable[[Flow], object]] = {
    "moved": move,
    "replaced": replace,
    "training": lambda flow: flow.train(),
    "other constants": lambda flow: flow.bijection.bijections[0].load_state_dict(  # type: ignore[union-attr, index]
        Standardize([9.0] * 3, [2.0] * 3).state_dict()
    ),
    "another layer": lambda flow: flow.bijection.bijections.insert(0, LULinear(3).double()),  # type: ignore[union-attr, operator]
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_flow_is_recorded_anew(change: str, perturb: Perturb, recorded: list[int]) -> None:
    flow = in_data_units(perturb)
    for _ in range(3):
        draw(flow, 7)
    CHANGES[change](flow)
    assert recorded == [8]
    for _ in range(3):
        assert_close(draw(flow, 7), draw_without_graphs(flow, 7), rtol=1e-10, atol=1e-10)
    assert recorded == [8, 8]


def test_graphs_follow_an_optimizer_step(perturb: Perturb, recorded: list[int]) -> None:
    flow = in_data_units(perturb)
    before = draw(flow, 7)
    for _ in range(2):
        before = draw(flow, 7)
    with torch.no_grad():
        for p in flow.parameters():
            p.add_(0.05)
    after = draw(flow, 7)
    assert_close(after, draw_without_graphs(flow, 7), rtol=1e-10, atol=1e-10)
    assert not torch.equal(before[0], after[0])
    assert recorded == [8]


def test_dtypes_have_their_own_graphs(perturb: Perturb, recorded: list[int]) -> None:
    flow = in_data_units(perturb)
    for dtype in (torch.float64, torch.float32):
        flow.to(dtype)
        for _ in range(2):
            assert flow.sample(7).dtype == dtype
    assert recorded == [8, 8]


def test_hooks_are_called(perturb: Perturb, recorded: list[int]) -> None:
    flow = in_data_units(perturb, "realnvp")
    calls: list[int] = []
    layer = next(m for m in flow.modules() if isinstance(m, Coupling))
    layer.conditioner.register_forward_hook(lambda *_: calls.append(1))
    for _ in range(4):
        flow.sample(7)
    assert len(calls) == 4
    assert recorded == []


def test_a_failed_recording_is_not_repeated(perturb: Perturb, monkeypatch: pytest.MonkeyPatch) -> None:
    tries = 0

    def record(*_: Any) -> Any:
        nonlocal tries
        tries += 1
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(graphs, "record_graph", record)
    monkeypatch.setattr(graphs, "is_possible", lambda z, context: not torch.is_grad_enabled())
    flow = in_data_units(perturb)
    for _ in range(4):
        assert_close(draw(flow, 7), draw_without_graphs(flow, 7), rtol=0, atol=0)
    assert tries == 1


def test_graphs_are_freed_with_their_flow(perturb: Perturb, monkeypatch: pytest.MonkeyPatch) -> None:
    def record(work: Callable[[], graphs.ValueAndLogDet], device: torch.device) -> Any:
        return (lambda: None), work()

    monkeypatch.setattr(graphs, "record_graph", record)
    monkeypatch.setattr(graphs, "is_possible", lambda z, context: True)
    before = len(graphs.GRAPHS)
    flow = in_data_units(perturb)
    for _ in range(3):
        draw(flow, 7)
    assert len(graphs.GRAPHS) == before + 1
    pickle.loads(pickle.dumps(copy.deepcopy(flow)))
    assert len(graphs.GRAPHS) == before + 1
    own = weakref.ref(flow.bijection)
    del flow
    gc.collect()
    assert own() is None
    assert len(graphs.GRAPHS) <= before


def test_a_thread_does_not_use_buffers_that_are_in_use(perturb: Perturb, recorded: list[int]) -> None:
    flow = in_data_units(perturb)
    for _ in range(3):
        draw(flow, 7)
    replayed = graphs.GRAPHS[flow.bijection]
    replayed.lock.acquire()  # as another thread does while it uses the buffers
    replayed.find = pytest.fail  # type: ignore[assignment]
    assert_close(draw(flow, 7), draw_without_graphs(flow, 7), rtol=1e-10, atol=1e-10)
    replayed.lock.release()


def test_constants_are_moved_only_while_recording() -> None:
    layer = Standardize([1.0], [2.0])
    with contextlib.suppress(ZeroDivisionError), graphs.constants_on(layer, torch.device("meta")) as moved:
        constants = [value for value in vars(layer).values() if isinstance(value, Tensor)]
        assert len(constants) == len(moved) == 2
        assert {t.device.type for t in (*constants, *moved)} == {"meta"}
        _ = 1 / 0
    assert layer.config() == {"mean": [1.0], "scale": [2.0]}


@pytest.mark.parametrize("mode", ["inference", "plain"])
def test_graphs_recorded_in_inference_mode_serve_outside(mode: str, perturb: Perturb, recorded: list[int]) -> None:
    flow = in_data_units(perturb)
    with torch.inference_mode(mode == "inference"):
        for _ in range(3):
            flow.sample(7)
    assert_close(draw(flow, 7), draw_without_graphs(flow, 7), rtol=1e-10, atol=1e-10)
    with torch.inference_mode():
        flow.sample(7)
    assert recorded == [8]


def test_there_are_no_graphs_on_a_cpu(perturb: Perturb, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "record_graph", pytest.fail)
    flow = in_data_units(perturb)
    for _ in range(3):
        flow.sample(7)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
class TestOnCuda:
    """What only a GPU can show."""

    @pytest.mark.parametrize("name", ["nsf-ar", "nsf-c", "maf", "iaf", "realnvp", "gaussian"])
    @pytest.mark.parametrize("context", [0, 2])
    @pytest.mark.parametrize("n", [1, 300, 40_000])
    def test_samples(self, name: str, context: int, n: int, perturb: Perturb) -> None:
        flow = in_data_units(perturb, name, context).cuda()
        given = torch.randn(2).double().cuda() if context else None
        expected = draw_without_graphs(flow, n, given)
        for _ in range(3):
            assert_close(draw(flow, n, given), expected, rtol=1e-8, atol=1e-8)
        replayed = graphs.GRAPHS[flow.bijection].graphs
        assert len(replayed) == 1
        assert None not in replayed.values()  # it could be recorded
        flow.cpu()
        draw(flow, 3)

    def test_samples_follow_the_weights(self, perturb: Perturb) -> None:
        flow = in_data_units(perturb).cuda()
        before = draw(flow, 100)[0]
        for _ in range(2):
            before = draw(flow, 100)[0]
        with torch.no_grad():
            for p in flow.parameters():
                p.add_(0.05)
        after = draw(flow, 100)
        assert not torch.equal(before, after[0])
        assert_close(after, draw_without_graphs(flow, 100), rtol=1e-8, atol=1e-8)

    def test_a_layer_that_synchronizes_is_not_recorded(self, perturb: Perturb, monkeypatch: pytest.MonkeyPatch) -> None:
        flow = in_data_units(perturb).cuda()
        inner = Standardize.inverse

        def waiting(self: Standardize, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
            z.sum().item()
            return inner(self, z, context)

        monkeypatch.setattr(Standardize, "inverse", waiting)
        for _ in range(4):
            assert_close(draw(flow, 100), draw_without_graphs(flow, 100), rtol=1e-8, atol=1e-8)
        assert list(graphs.GRAPHS[flow.bijection].graphs.values()) == [None]

    def test_gradients_of_samples(self, perturb: Perturb) -> None:
        flow = in_data_units(perturb).cuda()
        for _ in range(3):
            flow.sample(10)
        flow.rsample(10).sum().backward()
        assert all(p.grad is not None for p in flow.base.parameters())
