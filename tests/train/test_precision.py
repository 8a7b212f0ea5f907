"""``train.precision``: half precision and TF32 affect conditioners only, and torch's settings are restored."""

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pushforward.evaluate.likelihood import nll
from pushforward.flows import Flow, MaskedAutoregressive, RationalQuadraticSpline, build
from pushforward.train import device
from pushforward.train.device import StepExecutor
from pushforward.train.options import TrainOptions
from tests.fixtures.matmul_settings import matmul_settings
from tests.fixtures.short_fits import fitted, rows, weights


class Watch(torch.overrides.TorchFunctionMode):
    """Record the dtypes of the results of linear layers, and of all other operations."""

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
    """Conditioners multiply in half precision; maps, base and sums keep float32."""
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
    spy(MaskedAutoregressive, "forward")
    steps = StepExecutor(flow, TrainOptions(steps=1, precision="bf16"), pytest.fail)
    with Watch() as watch:
        terms = steps.run(flow.log_prob_terms, rows(7))
    assert watch.linear == {torch.bfloat16}
    assert {t.dtype for t in terms} == {torch.float32}
    assert seen == {name: {torch.float32, False} for name in ("RationalQuadraticSpline", "MaskedAutoregressive")}
    with Watch() as watch:
        flow.log_prob_terms(rows(7))
    assert torch.bfloat16 not in watch.linear


@pytest.mark.parametrize("name", ["nsf-ar", "realnvp"])
def test_bf16_learns(name: str) -> None:
    options: dict[str, Any] = {"options": {"layers": 2}, "steps": 150, "learning_rate": 5e-3}
    full, _ = fitted(name, **options)
    half, warnings = fitted(name, **options, precision="bf16")
    assert not warnings
    gain = full.progress.start_loss - full.progress.best_loss
    assert gain > 0.3
    assert half.progress.start_loss == pytest.approx(full.progress.start_loss, abs=1e-5)
    assert half.progress.start_loss - half.progress.best_loss > 0.8 * gain
    assert {p.dtype for p in half.flow.parameters()} == {torch.float32}
    # Validation used the flow in full precision.
    validation = rows(130, seed=1)
    assert nll(half.flow, validation).nll == half.progress.best_loss
    assert not torch.equal(weights(full), weights(half))


@pytest.mark.parametrize("precision", [None, "float32", "tf32"])
def test_on_a_cpu_the_others_are_float32(precision: str | None) -> None:
    expected, _ = fitted(precision="float32")
    state, warnings = fitted(precision=precision)
    assert not warnings
    assert torch.equal(weights(state), weights(expected))


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
def test_settings_of_matrix_products_are_restored(before: Callable[[], None], tf32: bool) -> None:
    original = matmul_settings()
    try:
        before()
        expected = matmul_settings()
        with contextlib.suppress(ZeroDivisionError), device.matmul_precision(tf32=tf32):
            inside = matmul_settings()
            assert inside[0] in (("tf32",) if tf32 else ("ieee", "none")) or inside[0] is None
            assert inside[3] in (("high", "mixed") if tf32 else ("highest", "mixed"))
            _ = 1 / 0
        assert matmul_settings() == expected
    finally:
        torch.set_float32_matmul_precision("highest")
        parts: list[Any] = [torch.backends.cuda.matmul, getattr(torch.backends.mkldnn, "matmul", None)]
        for part, value in zip(parts, original[:2], strict=True):
            if value is not None:
                part.fp32_precision = value
    assert matmul_settings() == original


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
class TestOnCuda:
    """What only a GPU can show."""

    @pytest.mark.parametrize("precision", [None, "float32", "tf32", "bf16"])
    def test_precision(self, precision: str | None) -> None:
        before = matmul_settings()
        seen: list[tuple[Any, ...]] = []
        inner = Flow.log_prob_terms

        def watched(self: Flow, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
            base_term, log_det = inner(self, x, context)
            assert (base_term.dtype, log_det.dtype) == (torch.float32, torch.float32)
            if self.training:
                seen.append(matmul_settings())
            return base_term, log_det

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Flow, "log_prob_terms", watched)
            state, warnings = fitted(where="cuda", precision=precision, steps=150, learning_rate=5e-3)
        assert not warnings
        assert {found[3] for found in seen} == {"high" if precision in (None, "tf32") else "highest"}
        assert matmul_settings() == before
        assert state.progress.start_loss - state.progress.best_loss > 0.2
        assert nll(state.flow, rows(130, seed=1).cuda()).nll == pytest.approx(state.progress.best_loss, abs=1e-4)
