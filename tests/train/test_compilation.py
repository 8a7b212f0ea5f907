"""``train.compile``: kernels, torch's compiler and plain torch fit the same flow, and leave nothing behind."""

import copy
import functools
import gc
import math
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters
from torch.testing import assert_close

from pushforward.config.read import load_config
from pushforward.flows import Affine, Flow, MaskedAutoregressive, build
from pushforward.flows.kernels import native
from pushforward.train import device
from pushforward.train.defaults import resolve
from pushforward.train.device import StepExecutor
from pushforward.train.options import TrainOptions
from tests.fixtures import short_fits
from tests.fixtures.matmul_settings import matmul_settings
from tests.fixtures.short_fits import FIT, fitted, rows, weights


def compiled_graphs() -> int:
    return int(counters["stats"]["unique_graphs"])


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Use torch.compile without its slow part: it traces and differentiates graphs, but generates no C++."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    torch.compiler.reset()
    counters.clear()
    with native.disabled():
        yield
    torch.compiler.reset()


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize(
    ("name", "context", "most"),
    [pytest.param("nsf-ar", 0, 1, marks=pytest.mark.slow), ("nsf-ar", 2, 1), ("maf", 0, 1), ("nsf-c", 0, 2)],
)
def test_layers_are_compiled_once(name: str, context: int, most: int) -> None:
    """Five layers, incomplete batches and validation of another size need one graph (two for alternating couplings)."""
    compiled, warnings = fitted(name, context=context, compile="on")
    assert not warnings
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
        compiled, warnings = fitted(name, compile="on")
    assert not warnings
    assert 1 <= compiled_graphs() <= 2
    eager, _ = fitted(name, compile="off")
    assert_close(weights(compiled), weights(eager), rtol=1e-3, atol=1e-4)


@pytest.mark.usefixtures("traced")
def test_every_fit_of_a_process_is_compiled() -> None:
    """Dynamo keeps eight versions of one function, and would silently run a ninth one without compilation."""
    for i in range(9):
        fitted("maf", compile="on", steps=2, options={"hidden": 4 + i, "layers": 1, "blocks": 0})
    assert compiled_graphs() == 9


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize(
    ("precision", "rtol", "atol"), [pytest.param(None, 1e-4, 1e-5, marks=pytest.mark.slow), ("bf16", 1e-2, 1e-3)]
)
def test_between_steps_the_flow_is_unchanged(precision: str | None, rtol: float, atol: float) -> None:
    """Checkpoints, logs, copies, pickles and the result contain nothing compiled or patched."""
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
    state, warnings = fitted(change=found.append, callbacks=callbacks, compile="on", precision=precision)
    assert not warnings
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
        steps = StepExecutor(flow, TrainOptions(steps=1, compile="on", precision="bf16"), warn=pytest.fail)
        assert steps.compiled
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
    """There is one warning, and the fit equals one without compilation."""
    expected, _ = fitted(compile="off")
    if when == "forward":

        def backend(*_: Any, **__: Any) -> Any:
            raise RuntimeError("ld: cannot find -lgomp\nand more")

        monkeypatch.setattr(torch, "compile", functools.partial(torch.compile.func, backend=backend))  # type: ignore[attr-defined]
    else:

        def evaluate(layer: Any, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
            z, log_det = type(layer).forward(layer, x, context)
            return _FailsBackward.apply(z), log_det  # type: ignore[no-untyped-call]

        monkeypatch.setattr(torch, "compile", lambda *_, **__: evaluate)
    state, warnings = fitted(compile="on")
    assert warnings == ["torch.compile failed (RuntimeError: ld: cannot find -lgomp); the fit goes on without it"]
    assert torch.equal(weights(state), weights(expected))


@pytest.mark.usefixtures("traced")
def test_an_error_of_the_flow_is_not_the_compilers(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise ValueError("mine")

    monkeypatch.setattr(Flow, "log_prob_terms", broken)
    with pytest.raises(ValueError, match=r"^mine$"):
        StepExecutor(build("maf", 2), TrainOptions(steps=1), pytest.fail).run(
            build("maf", 2).log_prob_terms, torch.zeros(3, 2)
        )
    warnings: list[str] = []
    steps = StepExecutor(build("maf", 2), TrainOptions(steps=1, compile="on"), warnings.append)
    with pytest.raises(ValueError, match=r"^mine$"):
        steps.run(build("maf", 2).log_prob_terms, torch.zeros(3, 2))
    assert len(warnings) == 1


needs_kernels = pytest.mark.skipif(native.library() is None, reason="needs a C compiler")


@dataclass(frozen=True)
class Stretched(Affine):
    """A map without a kernel."""

    def forward(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        z, log_derivative = super().forward(2.0 * x, parameters)
        return z, log_derivative + math.log(2.0)

    def kernel(self) -> None:
        return None


@needs_kernels
@pytest.mark.parametrize("mode", [None, "on"])
def test_kernels_are_preferred_to_the_compiler_on_a_cpu(mode: str | None) -> None:
    for name in ("nsf-ar", "nsf-c", "maf", "realnvp"):
        for context in (0, 2):
            flow = build(name, 3, context, layers=2, hidden=8, dropout=0.2)
            assert not StepExecutor(flow, TrainOptions(steps=10**6, compile=mode), pytest.fail).compiled  # type: ignore[arg-type]
    flow = build("maf", 3, layers=2, hidden=8)
    known, unknown = (m for m in flow.modules() if isinstance(m, MaskedAutoregressive))
    unknown.univariate = Stretched()
    steps = StepExecutor(flow, TrainOptions(steps=10**6, compile=mode), pytest.fail)  # type: ignore[arg-type]
    assert steps.compiled == ([unknown] if mode == "on" else [])
    assert known.univariate.kernel() is not None


@needs_kernels
def test_off_uses_torch_only(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0
    run = native.run

    def spy(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        run(*arguments)

    monkeypatch.setattr(native, "run", spy)
    kernels, _ = fitted("maf", compile=None, steps=2)
    assert calls > 0
    calls = 0
    monkeypatch.setattr(short_fits, "initialize_base", lambda *_: None)  # it runs before the loop, with kernels
    fitted("nsf-ar", compile="off", steps=2)
    assert calls == 0
    assert kernels.flow.log_prob(rows(3)).isfinite().all()
    assert calls > 0  # afterwards the kernels are used again


def test_choosing_a_mode_does_not_disturb_the_random_numbers() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    StepExecutor(build_seeded(), TrainOptions(steps=1, compile="on"), pytest.fail)
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
def test_only_long_budgets_are_compiled(budget: dict[str, Any], long: bool) -> None:
    assert device.is_long_budget(TrainOptions(**budget)) is long


def environment(folder: Path, **changes: str) -> dict[str, str]:
    """Environment variables for a process without any compiler."""
    empty = folder / "bin"
    empty.mkdir(exist_ok=True)
    kept = {key: value for key, value in os.environ.items() if key not in ("CC", "CXX")}
    caches = {"PUSHFORWARD_CACHE": str(folder / "cache"), "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor")}
    return kept | caches | {"PATH": str(empty), "WANDB_MODE": "disabled"} | changes


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["auto", "on", "off"])
def test_without_a_compiler_a_fit_warns_in_one_line(mode: str, tmp_path: Path) -> None:
    command = [sys.executable, *FIT, "train.steps=15", f"train.compile={mode}", "--out", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(tmp_path), check=False)
    assert done.returncode == 0, done.stderr
    warnings = [line for line in done.stderr.splitlines() if "arning" in line]
    assert len(warnings) == 1, done.stderr
    assert warnings[0].startswith(
        "warning: flows run without the kernels in C, several times slower: no C compiler found"
    )
    assert warnings[0] in (tmp_path / "run" / "log.txt").read_text()
    assert ".py:" not in done.stderr


@pytest.mark.slow
def test_with_a_broken_compiler_a_fit_goes_on(tmp_path: Path) -> None:
    """Inductor with a C++ compiler that fails."""
    broken = tmp_path / "g++"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    changes = {"CXX": str(broken), "PUSHFORWARD_NATIVE": "0"}
    command = [sys.executable, *FIT, "train.steps=15", "train.compile=on", "flow=maf", "--out", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(tmp_path, **changes), check=False)
    assert done.returncode == 0, done.stderr
    warnings = [line for line in done.stderr.splitlines() if "arning" in line]
    assert len(warnings) == 1, done.stderr
    assert warnings[0].startswith("warning: torch.compile failed (")
    assert warnings[0].endswith("); the fit goes on without it")


@pytest.mark.parametrize(("compile", "precision"), [(None, None), ("on", "bf16"), ("off", "tf32")])
def test_the_configuration_reaches_the_loop(compile: str | None, precision: str | None) -> None:
    config = load_config(
        "moons", overrides=[f"train.compile={compile or 'auto'}", f"train.precision={precision or 'auto'}"]
    )
    options = resolve(config.model_dump(), rows=100, features=2, is_toy=True).train
    assert (options.compile, options.precision) == (compile, precision)


def test_a_fit_changes_nothing_outside() -> None:
    def state_of_process() -> tuple[Any, ...]:
        return matmul_settings(), torch.is_autocast_enabled("cpu"), native.library() is None, gc.get_freeze_count()

    before = state_of_process()
    cases: list[dict[str, Any]] = [{"compile": "off"}, {"precision": "bf16"}, {"precision": "tf32"}]
    for case in cases:
        fitted(steps=2, **case)
    assert state_of_process() == before


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
class TestOnCuda:
    """What only a GPU can show."""

    @pytest.mark.parametrize("settings", [{}, {"precision": "bf16"}, {"precision": "float32", "compile": "off"}])
    @pytest.mark.parametrize("name", ["nsf-ar", "nsf-c", "maf", "realnvp"])
    def test_no_step_waits(self, name: str, settings: dict[str, Any]) -> None:
        """Between validations and logged rows nothing is read from the device."""
        calls = 0

        def stop() -> str:
            nonlocal calls
            calls += 1
            torch.cuda.set_sync_debug_mode("error" if 3 <= calls <= 9 else "default")
            return ""

        try:
            state, warnings = fitted(
                name, where="cuda", steps=400, log_every=1000, callbacks={"stop": stop}, **settings
            )
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert not warnings
        assert state.progress.best_loss < state.progress.start_loss

    @pytest.mark.parametrize("name", ["nsf-ar", "realnvp"])
    def test_compiled(self, name: str) -> None:
        torch.compiler.reset()
        counters.clear()
        compiled, warnings = fitted(name, where="cuda", compile="on", precision="float32")
        assert not warnings
        assert 1 <= compiled_graphs() <= 2
        eager, _ = fitted(name, where="cuda", compile="off", precision="float32")
        assert_close(weights(compiled), weights(eager), rtol=1e-2, atol=1e-3)

    def test_auto_follows_the_budget(self) -> None:
        flow = build("nsf-ar", 3, layers=1, hidden=8).cuda()
        for seconds, mode, compiles in (
            (60.0, None, True),
            (59.0, None, False),
            (1.0, "on", True),
            (99.0, "off", False),
        ):
            settings = TrainOptions(seconds=seconds, compile=mode)  # type: ignore[arg-type]
            assert bool(StepExecutor(flow, settings, pytest.fail).compiled) is compiles

    def test_a_fit(self, tmp_path: Path) -> None:
        command = [sys.executable, *FIT, "train.steps=30", "train.compile=on", "--device", "cuda"]
        done = subprocess.run([*command, "--out", str(tmp_path / "run")], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "arning" not in done.stderr
