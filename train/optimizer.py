"""AdamW with gradient clipping and weight averaging, in two passes over the memory by a kernel in C."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import AdamW

from pushforward.flows.kernels import native


class ClippedAdamW(AdamW):
    """AdamW whose step clips the gradient norm first and averages the weights afterwards.

    The state is that of torch's AdamW, so that each can load the state of the other.

    Args:
        parameters: Parameters or parameter groups, as for any optimiser of torch. If groups differ in more than their
            weight decay, torch's operations are used.
        learning_rate: The learning rate.
    """

    _steps: int  # written to the step tensors of the state only when the state is read
    _checked: tuple[int, ...] = ()
    _kept: tuple[Any, "np.ndarray[Any, np.dtype[np.int64]]"] | None = None

    def __init__(self, parameters: Iterable[Any], learning_rate: float) -> None:
        super().__init__(parameters, lr=learning_rate, fused=True)
        self._steps = 0

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop all gradients, or set them to zero; torch's does the same, and records it for a profiler."""
        if not set_to_none:
            super().zero_grad(set_to_none)
            return
        for group in self.param_groups:
            for p in group["params"]:
                p.grad = None

    @torch.no_grad()
    def clipped_step(
        self, parameters: Sequence[Tensor], max_norm: float, average: Sequence[Tensor] = (), ema_decay: float = 0.0
    ) -> Tensor:
        """Take a step.

        Args:
            parameters: All parameters of all groups, in any order.
            max_norm: Largest norm of the gradient of all parameters together.
            average: Averaged weights, in the same order; empty for no averaging.
            ema_decay: Decay of the average in this step.

        Returns:
            The gradient norm before clipping, ``()``, on the parameters' device. On a CPU, weights, averages and state
            do not change if it is not finite; on a GPU this is not checked, because it would wait for the device.
        """
        if not self.state:
            self._steps = 0  # a new optimiser, or its state was cleared
        if native.library() is not None and self._is_plain(parameters, average):
            return self._native_step(parameters, max_norm, average, ema_decay)
        norm = torch.nn.utils.clip_grad_norm_(parameters, max_norm)
        on_cpu = parameters[0].device.type == "cpu"
        if on_cpu and not bool(torch.isfinite(norm)):
            return norm
        if on_cpu:
            self._write_steps()
        self.step()
        self._steps += 1
        if average:
            torch._foreach_lerp_(list(average), list(parameters), 1.0 - ema_decay)
        return norm

    def _native_step(
        self, parameters: Sequence[Tensor], max_norm: float, average: Sequence[Tensor], ema_decay: float
    ) -> Tensor:
        first = parameters[0]
        if not self.state:
            for p in parameters:
                self.state[p] = {
                    "step": torch.zeros((), device=p.device),
                    "exp_avg": torch.zeros_like(p, memory_format=torch.preserve_format),
                    "exp_avg_sq": torch.zeros_like(p, memory_format=torch.preserve_format),
                }
        group = self.param_groups[0]
        table = self._table(parameters, average)
        table[:, 1] = [p.grad.data_ptr() for p in parameters if p.grad is not None]
        beta1, beta2 = group["betas"]
        step = self._steps + 1
        numbers = group["lr"], beta1, beta2, group["eps"], step, max_norm, ema_decay
        norm = native.adamw(table, native.KINDS[first.dtype], *numbers)
        if math.isfinite(norm):
            self._steps = step
            # The kernel writes without autograd: the version counter makes a backward pass of an older graph fail.
            torch.autograd.graph.increment_version([*parameters, *average])
        return torch.tensor(norm, dtype=first.dtype, device=first.device)

    def _table(self, parameters: Sequence[Tensor], average: Sequence[Tensor]) -> "np.ndarray[Any, np.dtype[np.int64]]":
        """One row per tensor, the fields of ``parameter`` in optimizer.h; kept as long as all addresses stay."""
        states = [self.state[p] for p in parameters]
        columns = {
            0: [p.data_ptr() for p in parameters],
            2: [s["exp_avg"].data_ptr() for s in states],
            3: [s["exp_avg_sq"].data_ptr() for s in states],
            4: [a.data_ptr() for a in average],
        }
        key = columns, [g["weight_decay"] for g in self.param_groups]
        if self._kept is not None and self._kept[0] == key:
            return self._kept[1]
        decay_of = {id(p): g["weight_decay"] for g in self.param_groups for p in g["params"]}
        table = np.zeros((len(parameters), 7), dtype=np.int64)
        for column, addresses in columns.items():
            if addresses:
                table[:, column] = addresses
        table[:, 5] = [p.numel() for p in parameters]
        table[:, 6].view(np.float64)[:] = [decay_of[id(p)] for p in parameters]
        self._kept = key, table
        return table

    def _is_plain(self, parameters: Sequence[Tensor], average: Sequence[Tensor]) -> bool:
        """Whether the kernel supports these tensors and these groups."""
        dtype = parameters[0].dtype
        if dtype not in native.KINDS:
            return False
        for p in parameters:
            if p.grad is None or not _is_dense(p, dtype) or not _is_dense(p.grad, dtype):
                return False
        # Averages, state and groups stay the same from step to step: they are checked once.
        key = len(self.state), *map(id, average)
        if key == self._checked:
            return True
        moments = [t for s in self.state.values() for name, t in s.items() if name != "step"]
        first, *others = self.param_groups
        same = all(g[name] == first[name] for g in others for name in first if name not in ("params", "weight_decay"))
        if (
            len(self.state) not in (0, len(parameters))
            or not all(_is_dense(t, dtype) for t in (*average, *moments))
            or not same
            or first["amsgrad"]
            or first["maximize"]
        ):
            return False
        if self.state:
            self._checked = key
        return True

    def __getstate__(self) -> dict[str, Any]:
        self._write_steps()
        return super().__getstate__()

    def __setstate__(self, state: dict[str, Any]) -> None:
        # load_state_dict calls this too
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._checked = ()
        steps = [s["step"] for s in self.state.values() if "step" in s]
        self._steps = int(steps[0]) if steps else 0

    def state_dict(self) -> dict[str, Any]:
        """The state of torch's AdamW."""
        self._write_steps()
        return super().state_dict()

    def _write_steps(self) -> None:
        for state in self.state.values():
            if state and state["step"].is_cpu:
                state["step"].fill_(self._steps)


def _is_dense(tensor: Tensor, dtype: torch.dtype) -> bool:
    return tensor.is_cpu and tensor.dtype is dtype and tensor.layout is torch.strided and tensor.is_contiguous()
