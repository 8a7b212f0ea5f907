"""The device of a computation, and how the steps of a fit run on it: kernels, compilation, precision."""

import contextlib
import functools
import os
import shutil
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from pushforward.common.errors import ConfigError
from pushforward.common.text import shorten
from pushforward.flows import AutoregressiveMixture, Coupling, Elementwise, MaskedAutoregressive, Model
from pushforward.flows.kernels import native
from pushforward.flows.kernels.description import description_of
from pushforward.train.options import FlowOptions, TrainOptions

T = TypeVar("T")
LayerFunction = Callable[[nn.Module, Tensor, Tensor | None], tuple[Tensor, Tensor]]

# To compile a layer for a GPU takes about ten seconds the first time on a machine (25 s on two busy CPU cores), and a
# few seconds from the cache. A fit of a minute gains that back; a shorter one would mostly wait.
COMPILE_SECONDS = 60.0
COMPILE_STEPS = 2_000


def choose_device(name: str) -> torch.device:
    """Return the device of this name; ``auto`` is the GPU if there is one.

    Raises:
        ConfigError: If the name is invalid or the device does not exist.
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


class StepExecutor:
    """Runs the steps of a fit with the chosen kernels, compilation and precision.

    Compiled layers and lower precision are used within ``run`` only; the flow itself is not changed, so that
    validation, copies and saved models never contain anything compiled.

    - On a CPU, a layer is one kernel in C; ``compile="off"`` uses torch's operations.
    - On CUDA, torch compiles coupling, autoregressive and elementwise layers, all as one function, so that layers of
      equal sizes share the result. The layers between them are small, and to compile a flow as a whole takes as many
      times longer as it has layers. The inverse of an autoregressive layer (``iaf``) is a loop over its features and is
      not compiled.
    - ``tf32`` applies to products of float32 matrices on CUDA; with ``bf16`` the conditioners run in half precision.
      Univariate maps and log-determinants keep the dtype of the flow.

    Args:
        flow: The flow, on its device.
        options: ``compile``, ``precision`` and the budget are used.
        warn: Called with one line if the compiler fails.

    Attributes:
        compiled: The layers that torch compiles.
    """

    def __init__(self, flow: Model, options: TrainOptions, warn: Callable[[str], object]) -> None:
        self.device = next(flow.parameters()).device
        on_cuda = self.device.type == "cuda"
        automatic = "tf32" if on_cuda else "float32"
        self.precision = options.precision or automatic
        layers = [m for m in flow.modules() if isinstance(m, Coupling | MaskedAutoregressive)]
        # A mixture is a base: its network runs in half precision like those of layers, and is not compiled.
        nets = [m.conditioner for m in (*layers, *(m for m in flow.modules() if isinstance(m, AutoregressiveMixture)))]
        conditioners: dict[int, nn.Module] = {id(net): net for net in nets if isinstance(net, nn.Module)}
        self._half_precision = list(conditioners.values()) if self.precision == "bf16" else []
        self._with_kernels = options.compile != "off"
        self.compiled: list[nn.Module] = []
        if options.compile == "on" or (options.compile is None and on_cuda and is_long_budget(options)):
            # On a CPU the kernels support the maps of an elementwise layer.
            elementwise = [m for m in flow.modules() if isinstance(m, Elementwise)] if on_cuda else []
            self.compiled = [*layers, *elementwise]
        if self.compiled and self.device.type == "cpu":
            self.compiled = [m for m in self.compiled if self._half_precision or not _has_kernel(m)]
            if self.compiled and not _has_cxx():
                self.compiled = []
                if native.library() is not None:  # otherwise the kernels have already warned about the compiler
                    warn("train.compile=on: no C++ compiler found; layers that have no kernel are not compiled")
        self._function: LayerFunction | None = None
        self._warn = warn

    def run(self, work: Callable[..., T], *arguments: Any) -> T:
        """Call ``work(*arguments)``, the forward and backward pass of a step; retry without compilation if it fails."""
        try:
            with self._applied():
                return work(*arguments)
        except Exception as error:
            if not self.compiled:
                raise
            self.compiled = []
            self._warn(f"torch.compile failed ({_reason(error)}); the fit goes on without it")
        # An error that is not the compiler's is raised again here.
        return self.run(work, *arguments)

    def exact(self) -> contextlib.AbstractContextManager[None]:
        """Context for computations between steps: without compilation and lower precision."""
        return contextlib.nullcontext() if self._with_kernels else native.disabled()

    @contextlib.contextmanager
    def _applied(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            if not self._with_kernels:
                stack.enter_context(native.disabled())
            if self.device.type == "cuda":
                stack.enter_context(matmul_precision(tf32=self.precision == "tf32"))
            if self.compiled and self._function is None:
                # The compiler's advice, such as to allow TF32, contradicts the options.
                stack.enter_context(warnings.catch_warnings())
                warnings.simplefilter("ignore")
                self._function = _compile_layer_function()
            if self.compiled and self.device.type == "cpu":
                # With several threads, inductor's code for the backward pass of a coupling crashes (torch 2.13).
                from torch._inductor import config

                stack.enter_context(config.patch({"cpp.threads": 1}))
            for layer in self.compiled:
                vars(layer)["forward"] = functools.partial(self._call_layer, layer)
                stack.callback(vars(layer).pop, "forward", None)
            for net in self._half_precision:
                if "forward" not in vars(net):
                    vars(net)["forward"] = types.MethodType(_bfloat16_forward, net)
                    stack.callback(vars(net).pop, "forward", None)
            yield

    def _call_layer(self, layer: nn.Module, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if not x.requires_grad:
            # True for the first layer only: to compile this case separately would double the time.
            x = x.detach().requires_grad_()
        with native.disabled():  # a compiler that sees a kernel takes each layer for another function
            return cast(LayerFunction, self._function)(layer, x, context)


def kernel_warning() -> str:
    """Build and load the kernels in C if needed, and return the warning about a failure, empty if there is none.

    A process warns once: later calls return an empty string.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        native.library()
    messages = [str(w.message) for w in caught if issubclass(w.category, native.NativeWarning)]
    return " ".join(messages[0].split()) if messages else ""


def is_long_budget(options: TrainOptions) -> bool:
    """Whether the fit is long enough to gain from compilation; the limit that ends first counts."""
    seconds = options.seconds is None or options.seconds >= COMPILE_SECONDS
    return seconds and (options.steps is None or options.steps >= COMPILE_STEPS)


def _has_kernel(layer: Any) -> bool:
    """Whether a kernel in C computes the layer."""
    return native.is_on() and description_of(layer) is not None and next(layer.parameters()).dtype in native.KINDS


def _has_cxx() -> bool:
    """Whether there is a C++ compiler."""
    return any(shutil.which(name) for name in (os.environ.get("CXX"), "g++", "clang++", "c++", "cl") if name)


def _compile_layer_function() -> LayerFunction:
    """A compiled function that evaluates any layer."""
    # Dynamo keeps at most eight versions of a code object: every fit has its own copy, freed at its end.
    function = types.FunctionType(_evaluate_layer.__code__.replace(), globals())
    compiled: LayerFunction = torch.compile(function, dynamic=False)
    return compiled


def _evaluate_layer(layer: nn.Module, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
    result: tuple[Tensor, Tensor] = type(layer).forward(layer, x, context)
    return result


def _bfloat16_forward(net: nn.Module, x: Tensor, *context: Tensor | None) -> Tensor:
    """The forward pass of a conditioner with matrix products in half precision."""
    with torch.autocast(x.device.type, torch.bfloat16):
        outputs: Tensor = type(net).forward(net, x, *context)
    return outputs


@contextlib.contextmanager
def matmul_precision(*, tf32: bool) -> Iterator[None]:
    """Allow or forbid TF32 within a block, and restore torch's settings exactly."""
    matmul = torch.backends.cuda.matmul
    # Newer releases of torch have a setting for each backend besides the old one, which sets all of them.
    parts: list[Any] = [matmul, getattr(torch.backends.mkldnn, "matmul", None)]
    newer = [part for part in parts if hasattr(part, "fp32_precision")]
    before = [part.fp32_precision for part in newer]
    try:
        older = torch.get_float32_matmul_precision()
    except RuntimeError:  # the process uses the newer settings, and torch refuses to mix them
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
    """Shorten a compiler's error to one line."""
    cause = getattr(error, "inner_exception", None) or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    text = f"{type(cause).__name__}: {lines[0]}" if lines else type(cause).__name__
    return shorten(text, 200)


@contextlib.contextmanager
def threads_for(flow: FlowOptions, rows: int, features: int) -> Iterator[None]:
    """Use a single thread within a block if the matrix products are so small that more threads only wait.

    Args:
        flow: The sizes of the networks.
        rows: Rows in a step.
        features: Columns that are modelled.
    """
    multiplications = rows * flow.hidden * (4 * flow.hidden + 3 * flow.bins * features)
    if flow.conditioner == "transformer":  # a pass through the network for every column
        multiplications *= features
    before = torch.get_num_threads()
    if multiplications < 15_000_000:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
