"""AdamW with clipped gradients and averaged weights: two passes over the memory where there are kernels in C."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import AdamW

from pushforward.flows.kernels import native


class ClippedAdamW(AdamW):
    """AdamW whose step clips the norm of the gradient first, and averages the weights afterwards.

    The state is that of torch's AdamW, so either can go on from the other's.

    Args:
        parameters: Parameters or groups of them, as of any optimiser of torch. Where groups differ in more than their
            weight decay, torch's own operations are used.
        learning_rate: Size of a step.
    """

    _steps: int  # what the state's step tensors will say when somebody asks
    _checked: tuple[int, ...] = ()

    def __init__(self, parameters: Iterable[Any], learning_rate: float) -> None:
        super().__init__(parameters, lr=learning_rate, fused=True)
        self._steps = 0

    @torch.no_grad()
    def clipped_step(
        self, parameters: Sequence[Tensor], most: float, average: Sequence[Tensor] = (), ema_decay: float = 0.0
    ) -> Tensor:
        """Take a step.

        Args:
            parameters: All parameters of all groups, in any order.
            most: Largest norm of their gradient, all together.
            average: Averaged weights, in the same order; empty for no averaging.
            ema_decay: Decay of the average in this step.

        Returns:
            The norm of the gradient before clipping, ``()``, on the parameters' device. On a CPU, a norm that is not
            finite leaves weights, averages and state as they are; on a GPU, to ask for it would mean to wait.
        """
        if not self.state:
            self._steps = 0  # nothing was done yet, or somebody has cleared what was
        if native.library() is not None and self._is_plain(parameters, average):
            return self._native_step(parameters, most, average, ema_decay)
        norm = torch.nn.utils.clip_grad_norm_(parameters, most)
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
        self, parameters: Sequence[Tensor], most: float, average: Sequence[Tensor], ema_decay: float
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
        decays = {id(p): g["weight_decay"] for g in self.param_groups for p in g["params"]}
        states = [self.state[p] for p in parameters]
        table = np.zeros((len(parameters), 7), dtype=np.int64)  # ``parameter`` in optimizer.h
        table[:, 0] = [p.data_ptr() for p in parameters]
        table[:, 1] = [p.grad.data_ptr() for p in parameters if p.grad is not None]
        table[:, 2] = [s["exp_avg"].data_ptr() for s in states]
        table[:, 3] = [s["exp_avg_sq"].data_ptr() for s in states]
        if average:
            table[:, 4] = [a.data_ptr() for a in average]
        table[:, 5] = [p.numel() for p in parameters]
        table[:, 6].view(np.float64)[:] = [decays[id(p)] for p in parameters]
        beta1, beta2 = group["betas"]
        step = self._steps + 1
        numbers = group["lr"], beta1, beta2, group["eps"], step, most, ema_decay
        norm = native.adamw(table, native.KINDS[first.dtype], *numbers)
        if math.isfinite(norm):
            self._steps = step
            # The kernel writes behind autograd's back: whoever still holds a graph must hear of it.
            torch.autograd.graph.increment_version([*parameters, *average])
        return torch.tensor(norm, dtype=first.dtype, device=first.device)

    def _is_plain(self, parameters: Sequence[Tensor], average: Sequence[Tensor]) -> bool:
        """Whether the kernel reads all of this as torch does."""
        dtype = parameters[0].dtype
        if dtype not in native.KINDS:
            return False
        for p in parameters:
            if p.grad is None or not _reads_as(p, dtype) or not _reads_as(p.grad, dtype):
                return False
        # What stays from step to step is looked at when it is new.
        key = len(self.state), *map(id, average)
        if key == self._checked:
            return True
        kept = [t for s in self.state.values() for name, t in s.items() if name != "step"]
        first, *others = self.param_groups
        same = all(g[name] == first[name] for g in others for name in first if name not in ("params", "weight_decay"))
        if (
            len(self.state) not in (0, len(parameters))
            or not all(_reads_as(t, dtype) for t in (*average, *kept))
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
        # load_state_dict comes here too
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


def _reads_as(tensor: Tensor, dtype: torch.dtype) -> bool:
    return tensor.is_cpu and tensor.dtype is dtype and tensor.layout is torch.strided and tensor.is_contiguous()
