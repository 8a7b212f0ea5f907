"""Kernels, compiler and precision of a step, graphs of a sample: the numbers stay, and nothing is left behind."""

import contextlib
import copy
import functools
import gc
import math
import os
import pickle
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.testing import assert_close

from pushforward.config.read import load_config
from pushforward.evaluate.likelihood import nll
from pushforward.flows import (
    Affine,
    Chain,
    Coupling,
    Flow,
    LULinear,
    MaskedAutoregressive,
    RationalQuadraticSpline,
    Standardize,
    build,
)
from pushforward.flows.kernels import cuda_graphs as graphs, native
from pushforward.train import device
from pushforward.train.defaults import TrainOptions, resolve, settings
from pushforward.train.device import Steps
from pushforward.train.gaussian import initialize_base
from pushforward.train.maximize import maximize_likelihood
from pushforward.train.objectives.likelihood import Rows
from pushforward.train.trainer import State, start

Perturb = Callable[[nn.Module], nn.Module]


def rows(n: int, features: int = 3, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, features, generator=generator)
    return torch.cat([x[:, :1], 0.3 * x[:, 1:] + x[:, :1] ** 2], dim=1)


def fitted(
    name: str = "nsf-ar",
    features: int = 3,
    context: int = 0,
    where: str = "cpu",
    change: Callable[[Flow], object] = lambda flow: None,
    options: dict[str, Any] | None = None,
    callbacks: dict[str, Any] | None = None,
    **settings: Any,
) -> tuple[State, list[str]]:
    """A short fit with a ragged last batch, and what it said."""
    torch.manual_seed(3)
    size: dict[str, Any] = {"layers": 5, "hidden": 8, "blocks": 1, "base": "full"} | (options or {})
    flow = build(name, features, context, **size)
    change(flow)
    flow.to(where)
    given = torch.randn(300, context, device=where) if context else None
    train = Rows(rows(300, features).to(where), given)
    validation = Rows(rows(130, features, seed=1).to(where), None if given is None else given[:130])
    initialize_base(flow, train.x, train.context)
    asked: dict[str, Any] = {"steps": 12, "batch_size": 64, "log_every": 5} | settings
    told = TrainOptions(**asked)
    said: list[str] = []
    torch.manual_seed(0)
    return maximize_likelihood(start(flow, told), train, validation, told, warn=said.append, **(callbacks or {})), said


def weights(state: State) -> Tensor:
    return torch.cat([p.detach().flatten().cpu() for p in state.flow.parameters()])


def compiled_graphs() -> int:
    return int(counters["stats"]["unique_graphs"])


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """torch.compile without its slow part: graphs are taken and differentiated, but not turned into C++."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    torch.compiler.reset()
    counters.clear()
    with native.disabled():
        yield
    torch.compiler.reset()


# --- train.compile ------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize(
    ("name", "context", "most"),
    [pytest.param("nsf-ar", 0, 1, marks=pytest.mark.slow), ("nsf-ar", 2, 1), ("maf", 0, 1), ("nsf-c", 0, 2)],
)
def test_layers_are_compiled_once(name: str, context: int, most: int) -> None:
    """Five layers, ragged rows, validation of another size in between: one graph (two where halves alternate)."""
    compiled, said = fitted(name, context=context, compile="on")
    assert not said
    assert 1 <= compiled_graphs() <= most
    assert not counters["graph_break"]
    eager, _ = fitted(name, context=context, compile="off")
    assert 1 <= compiled_graphs() <= most
    assert_close(weights(compiled), weights(eager), rtol=1e-4, atol=1e-5)
    assert compiled.progress.best_loss == pytest.approx(eager.progress.best_loss, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nsf-ar", "realnvp"])
def test_inductor(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch.compiler.reset()
    counters.clear()
    with native.disabled():
        compiled, said = fitted(name, compile="on")
    assert not said
    assert 1 <= compiled_graphs() <= 2
    eager, _ = fitted(name, compile="off")
    assert_close(weights(compiled), weights(eager), rtol=1e-3, atol=1e-4)


@pytest.mark.usefixtures("traced")
def test_every_fit_of_a_process_is_compiled() -> None:
    """Dynamo keeps eight versions of one function, and would compute the ninth fit without a word."""
    for i in range(9):
        fitted("maf", compile="on", steps=2, options={"hidden": 4 + i, "layers": 1, "blocks": 0})
    assert compiled_graphs() == 9


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize(
    ("precision", "rtol", "atol"), [pytest.param("auto", 1e-4, 1e-5, marks=pytest.mark.slow), ("bf16", 1e-2, 1e-3)]
)
def test_between_steps_the_flow_is_as_it_was(precision: str, rtol: float, atol: float) -> None:
    """Nothing compiled or patched is seen by checkpoints, logs, copies and pickles, or is there at the end."""
    torch.manual_seed(0)
    attributes = {name: set(vars(m)) for name, m in build("nsf-ar", 3, layers=5, hidden=8, blocks=1).named_modules()}
    calls = 0
    found: list[Flow] = []

    def check(*_: Any) -> str:
        nonlocal calls
        calls += 1
        assert {n: set(vars(m)) for n, m in found[0].named_modules() if n in attributes} == attributes
        copy.deepcopy(found[0])
        return ""

    callbacks = {"log": check, "checkpoint": check, "stop": check}
    state, said = fitted(change=found.append, callbacks=callbacks, compile="on", precision=precision)
    assert not said
    assert calls > 20
    assert compiled_graphs() == 1
    check()
    eager, _ = fitted(compile="off", precision=precision)
    assert_close(weights(state), weights(eager), rtol=rtol, atol=atol)
    x = rows(5)
    assert torch.equal(pickle.loads(pickle.dumps(state.flow)).log_prob(x), state.flow.log_prob(x))


def test_an_error_leaves_nothing_behind() -> None:
    flow = build("maf", 2, layers=1, hidden=4)
    before = {name: set(vars(m)) for name, m in flow.named_modules()}

    def fail() -> None:
        raise KeyboardInterrupt

    with native.disabled():
        steps = Steps(flow, TrainOptions(steps=1, compile="on", precision="bf16"), warn=pytest.fail)
        assert steps.is_compiling
        with pytest.raises(KeyboardInterrupt):
            steps.run(fail)
    assert {name: set(vars(m)) for name, m in flow.named_modules()} == before


class _FailsBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        raise RuntimeError("ld: cannot find -lgomp\nand more")


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("when", ["forward", "backward"])
def test_a_compiler_that_fails(when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One message, and the fit of a flow that was never compiled."""
    expected, _ = fitted(compile="off")
    if when == "forward":

        def backend(*_: Any, **__: Any) -> Any:
            raise RuntimeError("ld: cannot find -lgomp\nand more")

        monkeypatch.setattr(torch, "compile", functools.partial(torch.compile.func, backend=backend))  # type: ignore[attr-defined]
    else:

        def evaluate(layer: Any, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
            z, log_det = layer._call_impl(x, context)
            return _FailsBackward.apply(z), log_det  # type: ignore[no-untyped-call]

        monkeypatch.setattr(device, "_compiled_evaluation", lambda: evaluate)
    state, said = fitted(compile="on")
    assert said == ["torch.compile failed (RuntimeError: ld: cannot find -lgomp); the fit goes on without it"]
    assert torch.equal(weights(state), weights(expected))


@pytest.mark.usefixtures("traced")
def test_an_error_of_the_flow_is_not_the_compilers(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise ValueError("mine")

    monkeypatch.setattr(Flow, "log_prob_terms", broken)
    with pytest.raises(ValueError, match=r"^mine$"):
        Steps(build("maf", 2), TrainOptions(steps=1), pytest.fail).run(
            build("maf", 2).log_prob_terms, torch.zeros(3, 2)
        )
    said: list[str] = []
    steps = Steps(build("maf", 2), TrainOptions(steps=1, compile="on"), said.append)
    with pytest.raises(ValueError, match=r"^mine$"):
        steps.run(build("maf", 2).log_prob_terms, torch.zeros(3, 2))
    assert len(said) == 1


needs_kernels = pytest.mark.skipif(native.library() is None, reason="needs a C compiler")


@dataclass(frozen=True)
class Stretched(Affine):
    """A map that the kernels do not know."""

    def forward(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        z, log_derivative = super().forward(2.0 * x, parameters)
        return z, log_derivative + math.log(2.0)

    def kernel(self) -> None:
        return None


@needs_kernels
@pytest.mark.parametrize("mode", ["auto", "on"])
def test_kernels_go_before_the_compiler_on_a_cpu(mode: str) -> None:
    for name in ("nsf-ar", "nsf-c", "maf", "realnvp"):
        for context in (0, 2):
            flow = build(name, 3, context, layers=2, hidden=8, dropout=0.2)
            assert not Steps(flow, TrainOptions(steps=10**6, compile=mode), pytest.fail).is_compiling  # type: ignore[arg-type]
    flow = build("maf", 3, layers=2, hidden=8)
    known, unknown = (m for m in flow.modules() if isinstance(m, MaskedAutoregressive))
    unknown.univariate = Stretched()
    steps = Steps(flow, TrainOptions(steps=10**6, compile=mode), pytest.fail)  # type: ignore[arg-type]
    assert steps._compiled == ([unknown] if mode == "on" else [])
    assert known.univariate.kernel() is not None


@needs_kernels
def test_off_is_torch_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0
    run = native.run

    def spy(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        run(*arguments)

    monkeypatch.setattr(native, "run", spy)
    # Making the flow ready for its data comes before the loop.
    kernels, _ = fitted("maf", compile="auto", steps=2)
    assert calls > 0
    calls = 0
    monkeypatch.setattr(sys.modules[__name__], "initialize_base", lambda *_: None)
    fitted("nsf-ar", compile="off", steps=2)
    assert calls == 0
    assert kernels.flow.log_prob(rows(3)).isfinite().all()
    assert calls > 0  # and afterwards the kernels are back


def test_choosing_a_mode_does_not_disturb_the_random_numbers() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    Steps(build_seeded(), TrainOptions(steps=1, compile="on"), pytest.fail)
    assert torch.equal(torch.rand(3), expected)


def build_seeded() -> Flow:
    with torch.random.fork_rng():
        return build("nsf-c", 3, layers=2, hidden=8, dropout=0.5)


@pytest.mark.parametrize(
    ("budget", "long"),
    [
        ({"seconds": 60.0}, True),
        ({"seconds": 59.0}, False),
        ({"steps": 2000}, True),
        ({"steps": 1999}, False),
        ({"steps": 10**6, "seconds": 5.0}, False),
        ({"steps": 100, "seconds": 500.0}, False),
        ({"steps": 5000, "seconds": 500.0}, True),
    ],
)
def test_budgets_worth_compiling_for(budget: dict[str, Any], long: bool) -> None:
    assert device._is_long(TrainOptions(**budget)) is long


def environment(folder: Path, **changes: str) -> dict[str, str]:
    """An environment without any compiler."""
    empty = folder / "bin"
    empty.mkdir(exist_ok=True)
    kept = {key: value for key, value in os.environ.items() if key not in ("CC", "CXX")}
    caches = {"PUSHFORWARD_CACHE": str(folder / "cache"), "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor")}
    return kept | caches | {"PATH": str(empty), "WANDB_MODE": "disabled"} | changes


FIT = ["-m", "pushforward", "fit", "moons", "train.evaluate=false", "--wandb", "off", "data.rows=300"]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["auto", "on", "off"])
def test_without_a_compiler_a_fit_says_so_in_one_line(mode: str, tmp_path: Path) -> None:
    command = [sys.executable, *FIT, "train.steps=15", f"train.compile={mode}", "--out", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(tmp_path), check=False)
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stderr.splitlines() if "arning" in line]
    assert len(said) == 1, done.stderr
    assert said[0].startswith("warning: flows run without the kernels in C, several times slower: no C compiler found")
    assert said[0] in (tmp_path / "run" / "log.txt").read_text()
    assert ".py:" not in done.stderr


@pytest.mark.slow
def test_with_a_broken_compiler_a_fit_goes_on(tmp_path: Path) -> None:
    """inductor itself, with a C++ compiler that fails."""
    broken = tmp_path / "g++"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    changes = {"CXX": str(broken), "PUSHFORWARD_NATIVE": "0"}
    command = [sys.executable, *FIT, "train.steps=15", "train.compile=on", "flow=maf", "--out", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(tmp_path, **changes), check=False)
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stderr.splitlines() if "arning" in line]
    assert len(said) == 1, done.stderr
    assert said[0].startswith("warning: torch.compile failed (")
    assert said[0].endswith("); the fit goes on without it")


@pytest.mark.parametrize(("compile", "precision"), [("auto", "auto"), ("on", "bf16"), ("off", "tf32")])
def test_what_is_asked_reaches_the_loop(compile: str, precision: str) -> None:
    asked = load_config("moons", overrides=[f"train.compile={compile}", f"train.precision={precision}"])
    told = settings(resolve(asked, rows=100, features=2, is_toy=True).train)
    assert (told.compile, told.precision) == (compile, precision)


# --- train.precision ----------------------------------------------------------------------------------------------


class Watch(torch.overrides.TorchFunctionMode):
    """The dtypes of the linear layers' results, and of all others'."""

    def __init__(self) -> None:
        super().__init__()
        self.linear: set[torch.dtype] = set()
        self.other: set[torch.dtype] = set()

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.is_floating_point():
            (self.linear if function is torch.nn.functional.linear else self.other).add(result.dtype)
        return result


def test_bf16_is_for_conditioners_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products of the conditioners in half precision; maps, mixing layers, base and sums as precise as before."""
    seen: dict[str, set[Any]] = {}

    def spy(where: type, method: str) -> None:
        inner = getattr(where, method)

        def watched(self: Any, *tensors: Any) -> Any:
            result = inner(self, *tensors)
            kinds = {t.dtype for t in (*tensors, *result) if isinstance(t, Tensor)}
            seen.setdefault(where.__name__, set()).update(kinds | {torch.is_autocast_enabled("cpu")})
            return result

        monkeypatch.setattr(where, method, watched)

    flow = build("nsf-ar", 3, layers=3, hidden=16, base="full")
    spy(RationalQuadraticSpline, "forward")
    spy(LULinear, "forward")
    spy(MaskedAutoregressive, "forward")
    steps = Steps(flow, TrainOptions(steps=1, precision="bf16"), pytest.fail)
    with Watch() as watch:
        terms = steps.run(flow.log_prob_terms, rows(7))
    assert watch.linear == {torch.bfloat16}
    assert {t.dtype for t in terms} == {torch.float32}
    assert seen == {
        name: {torch.float32, False} for name in ("RationalQuadraticSpline", "LULinear", "MaskedAutoregressive")
    }
    with Watch() as watch:
        flow.log_prob_terms(rows(7))
    assert torch.bfloat16 not in watch.linear


@pytest.mark.parametrize("name", ["nsf-ar", "realnvp"])
def test_bf16_learns(name: str) -> None:
    told: dict[str, Any] = {"options": {"layers": 2}, "steps": 150, "learning_rate": 5e-3}
    full, _ = fitted(name, **told)
    half, said = fitted(name, **told, precision="bf16")
    assert not said
    gain = full.progress.start_loss - full.progress.best_loss
    assert gain > 0.3
    assert half.progress.start_loss == pytest.approx(full.progress.start_loss, abs=1e-5)
    assert half.progress.start_loss - half.progress.best_loss > 0.8 * gain
    assert {p.dtype for p in half.flow.parameters()} == {torch.float32}
    # What was validated is the flow as it is, and not one of half precision.
    validation = rows(130, seed=1)
    assert nll(half.flow, validation).nll == half.progress.best_loss
    assert not torch.equal(weights(full), weights(half))


@pytest.mark.parametrize("precision", ["auto", "float32", "tf32"])
def test_on_a_cpu_the_others_are_float32(precision: str) -> None:
    expected, _ = fitted(precision="float32")
    state, said = fitted(precision=precision)
    assert not said
    assert torch.equal(weights(state), weights(expected))


def products() -> tuple[Any, ...]:
    """torch's settings for products, old and new, as far as they can be read."""
    parts: list[Any] = [torch.backends.cuda.matmul, getattr(torch.backends.mkldnn, "matmul", None), torch.backends]
    found: list[Any] = [getattr(part, "fp32_precision", None) for part in parts]
    for read in (torch.get_float32_matmul_precision, lambda: torch.backends.cuda.matmul.allow_tf32):
        try:
            found.append(read())
        except RuntimeError:
            found.append("mixed")
    return tuple(found)


def _nothing() -> None:
    pass


def _old_high() -> None:
    torch.set_float32_matmul_precision("high")


def _old_allow() -> None:
    torch.backends.cuda.matmul.allow_tf32 = True


def _new() -> None:
    if hasattr(torch.backends.cuda.matmul, "fp32_precision"):
        torch.backends.cuda.matmul.fp32_precision = "tf32"


@pytest.mark.parametrize("before", [_nothing, _old_high, _old_allow, _new])
@pytest.mark.parametrize("tf32", [True, False])
def test_settings_for_products_are_put_back(before: Callable[[], None], tf32: bool) -> None:
    original = products()
    try:
        before()
        expected = products()
        with contextlib.suppress(ZeroDivisionError), device._products(tf32=tf32):
            inside = products()
            assert inside[0] in (("tf32",) if tf32 else ("ieee", "none")) or inside[0] is None
            assert inside[3] in (("high", "mixed") if tf32 else ("highest", "mixed"))
            _ = 1 / 0
        assert products() == expected
    finally:
        torch.set_float32_matmul_precision("highest")
        parts: list[Any] = [torch.backends.cuda.matmul, getattr(torch.backends.mkldnn, "matmul", None)]
        for part, value in zip(parts, original[:2], strict=True):
            if value is not None:
                part.fp32_precision = value
    assert products() == original


# --- the loop -----------------------------------------------------------------------------------------------------


def test_a_fit_changes_nothing_outside() -> None:
    before = products(), torch.is_autocast_enabled("cpu"), native.library() is None, gc.get_freeze_count()
    cases: list[dict[str, Any]] = [{"compile": "off"}, {"precision": "bf16"}, {"precision": "tf32"}]
    for case in cases:
        fitted(steps=2, **case)
    assert (products(), torch.is_autocast_enabled("cpu"), native.library() is None, gc.get_freeze_count()) == before


# --- samples by CUDA graphs ---------------------------------------------------------------------------------------


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Graphs on a CPU: recording keeps the work, and replaying does it once more into the same tensors."""
    sizes: list[int] = []

    def record(work: Callable[[], graphs.Points], device: torch.device) -> tuple[Callable[[], object], graphs.Points]:
        results = work()
        sizes.append(len(results[0]))

        def replay() -> None:
            with torch.no_grad():
                for old, new in zip(results, work(), strict=True):
                    old.copy_(new)

        return replay, results

    monkeypatch.setattr(graphs, "_record", record)
    monkeypatch.setattr(graphs, "_possible", lambda z, context: not torch.is_grad_enabled() and z.numel() > 0)
    monkeypatch.setattr(graphs, "_LEAST", 4)
    monkeypatch.setattr(graphs, "_MOST", 16)
    return sizes


def in_data_units(perturb: Perturb, name: str = "nsf-ar", context: int = 0) -> Flow:
    inner = build(name, 3, context, layers=2, hidden=8, bins=4).double()
    perturb(inner)
    inner.eval()
    return Flow(inner.base, Chain([Standardize([1.0, -2.0, 0.0], [0.5, 3.0, 1.0]), inner.bijection])).double().eval()


def draw(flow: Flow, n: int | tuple[int, ...], context: Tensor | None = None) -> tuple[Tensor, Tensor]:
    torch.manual_seed(5)
    return flow.sample_and_log_prob(n, context)


def straight(flow: Flow, n: int | tuple[int, ...], context: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The same without graphs: gradients are on."""
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
        expected = straight(flow, n, given)
        for _ in range(3):
            x, log_prob = draw(flow, n, given)
            assert_close((x, log_prob), expected, rtol=1e-10, atol=1e-10)
        assert len(recorded) == 1 or given is not None  # another context may be of a size that is known
        assert all(size in (4, 8, 16) for size in recorded)


def test_the_first_call_is_not_recorded_and_the_others_share_one(perturb: Perturb, recorded: list[int]) -> None:
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
        assert_close(draw(flow, 7), straight(flow, 7), rtol=1e-10, atol=1e-10)
    assert recorded == [8, 8]


def test_a_step_of_an_optimiser_is_seen_without_recording(perturb: Perturb, recorded: list[int]) -> None:
    flow = in_data_units(perturb)
    before = draw(flow, 7)
    for _ in range(2):
        before = draw(flow, 7)
    with torch.no_grad():
        for p in flow.parameters():
            p.add_(0.05)
    after = draw(flow, 7)
    assert_close(after, straight(flow, 7), rtol=1e-10, atol=1e-10)
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


def test_what_cannot_be_recorded_is_not_tried_again(perturb: Perturb, monkeypatch: pytest.MonkeyPatch) -> None:
    tries = 0

    def record(*_: Any) -> Any:
        nonlocal tries
        tries += 1
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(graphs, "_record", record)
    monkeypatch.setattr(graphs, "_possible", lambda z, context: not torch.is_grad_enabled())
    flow = in_data_units(perturb)
    for _ in range(4):
        assert_close(draw(flow, 7), straight(flow, 7), rtol=0, atol=0)
    assert tries == 1


def test_graphs_go_away_with_their_flow(perturb: Perturb, monkeypatch: pytest.MonkeyPatch) -> None:
    def record(work: Callable[[], graphs.Points], device: torch.device) -> Any:
        return (lambda: None), work()

    monkeypatch.setattr(graphs, "_record", record)
    monkeypatch.setattr(graphs, "_possible", lambda z, context: True)
    before = len(graphs._graphs)
    flow = in_data_units(perturb)
    for _ in range(3):
        draw(flow, 7)
    assert len(graphs._graphs) == before + 1
    pickle.loads(pickle.dumps(copy.deepcopy(flow)))
    assert len(graphs._graphs) == before + 1
    own = weakref.ref(flow.bijection)
    del flow
    gc.collect()
    assert own() is None
    assert len(graphs._graphs) <= before


def test_another_thread_does_not_get_the_same_buffers(perturb: Perturb, recorded: list[int]) -> None:
    flow = in_data_units(perturb)
    for _ in range(3):
        draw(flow, 7)
    replayed = graphs._graphs[flow.bijection]
    replayed.lock.acquire()  # as a thread that is at them
    replayed.find = pytest.fail  # type: ignore[assignment]
    assert_close(draw(flow, 7), straight(flow, 7), rtol=1e-10, atol=1e-10)
    replayed.lock.release()


def test_constants_are_moved_for_the_recording_only() -> None:
    layer = Standardize([1.0], [2.0])
    with contextlib.suppress(ZeroDivisionError), graphs._constants_on(layer, torch.device("meta")) as moved:
        assert {t.device.type for t in (layer._mean, layer._scale, *moved)} == {"meta"}
        _ = 1 / 0
    assert layer._mean.tolist() == [1.0]
    assert layer._scale.tolist() == [2.0]


@pytest.mark.parametrize("mode", ["inference", "plain"])
def test_graphs_recorded_in_inference_mode_serve_outside(mode: str, perturb: Perturb, recorded: list[int]) -> None:
    flow = in_data_units(perturb)
    with torch.inference_mode(mode == "inference"):
        for _ in range(3):
            flow.sample(7)
    assert_close(draw(flow, 7), straight(flow, 7), rtol=1e-10, atol=1e-10)
    with torch.inference_mode():
        flow.sample(7)
    assert recorded == [8]


def test_on_a_cpu_there_are_none(perturb: Perturb, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "_record", pytest.fail)
    flow = in_data_units(perturb)
    for _ in range(3):
        flow.sample(7)


# --- on a CUDA device ---------------------------------------------------------------------------------------------


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
        expected = straight(flow, n, given)
        for _ in range(3):
            assert_close(draw(flow, n, given), expected, rtol=1e-8, atol=1e-8)
        replayed = graphs._graphs[flow.bijection].graphs
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
        assert_close(after, straight(flow, 100), rtol=1e-8, atol=1e-8)

    def test_what_waits_for_the_device_is_not_recorded(self, perturb: Perturb, monkeypatch: pytest.MonkeyPatch) -> None:
        flow = in_data_units(perturb).cuda()
        inner = Standardize.inverse

        def waiting(self: Standardize, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
            z.sum().item()
            return inner(self, z, context)

        monkeypatch.setattr(Standardize, "inverse", waiting)
        for _ in range(4):
            assert_close(draw(flow, 100), straight(flow, 100), rtol=1e-8, atol=1e-8)
        assert list(graphs._graphs[flow.bijection].graphs.values()) == [None]

    def test_gradients_of_samples(self, perturb: Perturb) -> None:
        flow = in_data_units(perturb).cuda()
        for _ in range(3):
            flow.sample(10)
        flow.rsample(10).sum().backward()
        assert all(p.grad is not None for p in flow.base.parameters())

    @pytest.mark.parametrize("settings", [{}, {"precision": "bf16"}, {"precision": "float32", "compile": "off"}])
    @pytest.mark.parametrize("name", ["nsf-ar", "nsf-c", "maf", "realnvp"])
    def test_no_step_waits(self, name: str, settings: dict[str, Any]) -> None:
        """Between two validations, and without a row of metrics, nothing is read from the device."""
        calls = 0

        def stop() -> str:
            nonlocal calls
            calls += 1
            torch.cuda.set_sync_debug_mode("error" if 3 <= calls <= 9 else "default")
            return ""

        try:
            state, said = fitted(name, where="cuda", steps=400, log_every=1000, callbacks={"stop": stop}, **settings)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert not said
        assert state.progress.best_loss < state.progress.start_loss

    @pytest.mark.parametrize("name", ["nsf-ar", "realnvp"])
    def test_compiled(self, name: str) -> None:
        torch.compiler.reset()
        counters.clear()
        compiled, said = fitted(name, where="cuda", compile="on", precision="float32")
        assert not said
        assert 1 <= compiled_graphs() <= 2
        eager, _ = fitted(name, where="cuda", compile="off", precision="float32")
        assert_close(weights(compiled), weights(eager), rtol=1e-2, atol=1e-3)

    def test_auto_follows_the_budget(self) -> None:
        flow = build("nsf-ar", 3, layers=1, hidden=8).cuda()
        for seconds, mode, compiles in (
            (60.0, "auto", True),
            (59.0, "auto", False),
            (1.0, "on", True),
            (99.0, "off", False),
        ):
            settings = TrainOptions(seconds=seconds, compile=mode)  # type: ignore[arg-type]
            assert Steps(flow, settings, pytest.fail).is_compiling is compiles

    @pytest.mark.parametrize("precision", ["auto", "float32", "tf32", "bf16"])
    def test_precision(self, precision: str) -> None:
        before = products()
        seen: list[tuple[Any, ...]] = []
        inner = Flow.log_prob_terms

        def watched(self: Flow, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
            base_term, log_det = inner(self, x, context)
            assert (base_term.dtype, log_det.dtype) == (torch.float32, torch.float32)
            if self.training:
                seen.append(products())
            return base_term, log_det

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Flow, "log_prob_terms", watched)
            state, said = fitted(where="cuda", precision=precision, steps=150, learning_rate=5e-3)
        assert not said
        assert {found[3] for found in seen} == {"high" if precision in ("auto", "tf32") else "highest"}
        assert products() == before
        assert state.progress.start_loss - state.progress.best_loss > 0.2
        assert nll(state.flow, rows(130, seed=1).cuda()).nll == pytest.approx(state.progress.best_loss, abs=1e-4)

    def test_a_fit(self, tmp_path: Path) -> None:
        command = [sys.executable, *FIT, "train.steps=30", "train.compile=on", "--device", "cuda"]
        done = subprocess.run([*command, "--out", str(tmp_path / "run")], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "arning" not in done.stderr
