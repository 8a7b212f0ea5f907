"""Where a computation runs, and how the steps of a fit are computed there: by which kernels, in which precision."""

import contextlib
import functools
import os
import shutil
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from pushforward.common.errors import ConfigError
from pushforward.config.schema import Config
from pushforward.flows import AutoregressiveMixture, Coupling, Elementwise, MaskedAutoregressive, Model
from pushforward.flows.bijections import fused
from pushforward.flows.kernels import native
from pushforward.train.defaults import TrainOptions

T = TypeVar("T")
Evaluation = Callable[[nn.Module, Tensor, Tensor | None], tuple[Tensor, Tensor]]

# A layer takes the compiler of a GPU some ten seconds the first time on a machine (25 s were measured for that of two
# busy CPU cores), a few from its cache. A fit of a minute gets that back; a shorter one would mostly wait.
COMPILE_SECONDS = 60.0
COMPILE_STEPS = 2_000


def choose_device(name: str) -> torch.device:
    """The device that a name means; ``auto`` is a GPU where there is one.

    Raises:
        ConfigError: If that device is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device: expected auto, cpu, cuda, cuda:N or mps; got {name!r}") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device: expected one that is here; got {name!r}, and torch finds no CUDA device")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device: expected cuda:0 to cuda:{torch.cuda.device_count() - 1}; got {name!r}")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError(f"device: expected one that is here; got {name!r}, and torch finds no MPS device")
    return device


class Steps:
    """How the steps of one fit are computed.

    Whatever is compiled and less precise is so within ``run`` only. What is validated, logged, copied or saved in
    between is the flow as it is, which never carries anything compiled.

    - On a CPU a layer is one kernel in C; ``compile="off"`` is torch's own operations.
    - On CUDA layers are compiled by torch, all of them as one function: layers of equal sizes share the result. Only
      coupling, autoregressive and elementwise layers are; what lies between them is small, and compiling a flow as a
      whole takes as many times longer as it has layers. The inverse of an autoregressive layer (``iaf``) is unrolled
      over its features, and not compiled.
    - ``tf32`` is for CUDA's products of float32 matrices; with ``bf16`` the conditioners compute in half precision.
      Maps and log-determinants are in the flow's own dtype in either case.

    Args:
        flow: The flow, on its device.
        settings: Of these ``compile``, ``precision`` and the budget.
        warn: Told, in one line, when the compiler fails.
    """

    def __init__(self, flow: Model, settings: TrainOptions, warn: Callable[[str], object]) -> None:
        self.device = next(flow.parameters()).device
        on_cuda = self.device.type == "cuda"
        automatic = "tf32" if on_cuda else "float32"
        self.precision = automatic if settings.precision == "auto" else settings.precision
        layers = [m for m in flow.modules() if isinstance(m, Coupling | MaskedAutoregressive)]
        # A mixture is a base: its network computes in half precision like those of layers, and is not compiled.
        nets = [m.conditioner for m in (*layers, *(m for m in flow.modules() if isinstance(m, AutoregressiveMixture)))]
        conditioners: dict[int, nn.Module] = {id(net): net for net in nets if isinstance(net, nn.Module)}
        self._in_half = list(conditioners.values()) if self.precision == "bf16" else []
        self._with_kernels = settings.compile != "off"
        self._compiled: list[nn.Module] = []
        if settings.compile == "on" or (settings.compile == "auto" and on_cuda and _is_long(settings)):
            # On a CPU the kernels know the maps of an elementwise layer.
            marginals = [m for m in flow.modules() if isinstance(m, Elementwise)] if on_cuda else []
            # Layers that their owner has compiled stay as they are.
            self._compiled = [m for m in (*layers, *marginals) if m._compiled_call_impl is None]
        if self._compiled and self.device.type == "cpu":
            self._compiled = [m for m in self._compiled if self._in_half or not _is_kernel(m)]
            if self._compiled and not _cxx():
                self._compiled = []
                if native.library() is not None:  # otherwise the kernels have said that there is no compiler
                    warn(
                        "train.compile=on: no C++ compiler found; layers that the kernels do not know are not compiled"
                    )
        self._function: Evaluation | None = None
        self._warn = warn

    @property
    def is_compiling(self) -> bool:
        """Whether layers are compiled by torch."""
        return bool(self._compiled)

    def run(self, work: Callable[..., T], *arguments: Any) -> T:
        """Call ``work(*arguments)``, forward and backward pass of a step, and once more if the compiler fails in it."""
        try:
            with self._applied():
                return work(*arguments)
        except Exception as error:
            if not self._compiled:
                raise
            self._compiled = []
            self._warn(f"torch.compile failed ({_reason(error)}); the fit goes on without it")
        # If the fault was not the compiler's it comes again, and is now the caller's.
        return self.run(work, *arguments)

    def exact(self) -> contextlib.AbstractContextManager[None]:
        """Context of what is computed between steps, by the flow as it is; without the kernels if so told."""
        return contextlib.nullcontext() if self._with_kernels else native.disabled()

    @contextlib.contextmanager
    def _applied(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            if not self._with_kernels:
                stack.enter_context(native.disabled())
            if self.device.type == "cuda":
                stack.enter_context(_products(tf32=self.precision == "tf32"))
            if self._compiled and self._function is None:
                # The compiler's advice, such as to allow TF32 where float32 was asked for, is not for whoever fits.
                stack.enter_context(warnings.catch_warnings())
                warnings.simplefilter("ignore")
                self._function = _compiled_evaluation()
            if self._compiled and self.device.type == "cpu":
                # With several threads, inductor's code for the backward pass of a coupling crashes (torch 2.13).
                from torch._inductor import config

                stack.enter_context(config.patch({"cpp.threads": 1}))
            for layer in self._compiled:
                vars(layer)["_compiled_call_impl"] = functools.partial(self._evaluate, layer)
                stack.callback(vars(layer).pop, "_compiled_call_impl", None)
            for net in self._in_half:
                if "forward" not in vars(net):
                    vars(net)["forward"] = types.MethodType(_in_bfloat16, net)
                    stack.callback(vars(net).pop, "forward", None)
            yield

    def _evaluate(self, layer: nn.Module, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if not x.requires_grad:
            # Only the first layer's: to compile that case too would take as long again.
            x = x.detach().requires_grad_()
        assert self._function is not None
        return self._function(layer, x, context)


def kernel_trouble() -> str:
    """Build and load the kernels in C, if need be; what is wrong with them, or nothing.

    Once in a process: where the warning has been shown before, there is nothing more to say.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        native.library()
    said = [str(w.message) for w in caught if issubclass(w.category, native.NativeWarning)]
    return " ".join(said[0].split()) if said else ""


def _is_long(settings: TrainOptions) -> bool:
    """Whether the budget is worth compiling for, whichever limit ends first."""
    seconds = settings.seconds is None or settings.seconds >= COMPILE_SECONDS
    return seconds and (settings.steps is None or settings.steps >= COMPILE_STEPS)


def _is_kernel(layer: Any) -> bool:
    """Whether the kernels in C can be had and know the layer: asked of themselves, with one point."""
    weight = next(layer.parameters())
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        point = torch.zeros(1, layer.features, dtype=weight.dtype)
        context = torch.zeros(1, layer.context, dtype=weight.dtype) if layer.context else None
        identity, transformed = (getattr(layer, f"{part}_features", None) for part in ("identity", "transformed"))
        done = fused.layer(
            layer.conditioner,
            layer.univariate,
            point,
            context,
            identity_features=identity,
            transformed_features=transformed,
        )
    return done is not None


def _cxx() -> bool:
    """Whether there is a C++ compiler."""
    return any(shutil.which(name) for name in (os.environ.get("CXX"), "g++", "clang++", "c++", "cl") if name)


def _compiled_evaluation() -> Evaluation:
    """A compiled function that evaluates a layer, whichever it is given."""
    # Eight versions of one code object are all that Dynamo keeps: every fit of a process has a copy of its own, which
    # goes away with it.
    function = types.FunctionType(_evaluate_layer.__code__.replace(), globals())
    compiled: Evaluation = torch.compile(function, dynamic=False)
    return compiled


def _evaluate_layer(layer: nn.Module, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
    done: tuple[Tensor, Tensor] = layer._call_impl(x, context)  # its forward, with hooks
    return done


def _in_bfloat16(net: nn.Module, x: Tensor, *context: Tensor | None) -> Tensor:
    """A conditioner's forward with products in half precision."""
    with torch.autocast(x.device.type, torch.bfloat16):
        outputs: Tensor = type(net).forward(net, x, *context)
    return outputs


@contextlib.contextmanager
def _products(*, tf32: bool) -> Iterator[None]:
    """Allow or forbid TF32 within a block, and leave torch's settings exactly as they were."""
    matmul = torch.backends.cuda.matmul
    # Newer releases of torch have a setting for each backend besides the old one for all, which sets them.
    parts: list[Any] = [matmul, getattr(torch.backends.mkldnn, "matmul", None)]
    newer = [part for part in parts if hasattr(part, "fp32_precision")]
    before = [part.fp32_precision for part in newer]
    try:
        older = torch.get_float32_matmul_precision()
    except RuntimeError:  # somebody uses the newer settings, and torch refuses to mix them
        older = ""
    if older:
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
    else:
        matmul.fp32_precision = "tf32" if tf32 else "ieee"
    try:
        yield
    finally:
        if older:
            torch.set_float32_matmul_precision(older)
        for part, value in zip(newer, before, strict=True):
            part.fp32_precision = value


def _reason(error: BaseException) -> str:
    """The first line of what the compiler says, without its own frame."""
    cause = getattr(error, "inner_exception", None) or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    text = f"{type(cause).__name__}: {lines[0]}" if lines else type(cause).__name__
    return text if len(text) <= 200 else f"{text[:197]}..."


@contextlib.contextmanager
def threads_for(config: Config, features: int) -> Iterator[None]:
    """One thread for products so small that a second one only waits, and spins where other programs are busy."""
    flow, rows = config.flow, config.train.batch_size
    assert flow.hidden != "auto"  # resolve has decided all three
    assert flow.bins != "auto"
    assert rows != "auto"
    multiplications = rows * flow.hidden * (4 * flow.hidden + 3 * flow.bins * features)
    if flow.conditioner == "transformer":  # which does as much for every column
        multiplications *= features
    before = torch.get_num_threads()
    if multiplications < 15_000_000:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
