"""AdamW with clipped gradients and averaged weights: two passes over the memory where there are kernels in C."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import AdamW

from pushforward.flows import native


class ClippedAdamW(AdamW):
    """AdamW whose step clips the norm of the gradient first, and averages the weights afterwards.

    The state is that of torch's AdamW, so either can go on from the other's checkpoint.

    Args:
        parameters: Parameters or groups of them, as of any optimiser of torch.
        learning_rate: Size of a step.
    """

    def __init__(self, parameters: Iterable[Any], learning_rate: float) -> None:
        super().__init__(parameters, lr=learning_rate, fused=True)
        self._steps = 0  # what the state's step tensors will say when somebody asks

    @torch.no_grad()
    def clipped_step(
        self, parameters: Sequence[Tensor], most: float, average: Sequence[Tensor] = (), averaging: float = 0.0
    ) -> Tensor:
        """Take a step.

        Args:
            parameters: All parameters of all groups, in any order, each with a gradient.
            most: Largest norm of their gradient, all together.
            average: Averaged weights, in the same order; empty for no averaging.
            averaging: Decay of the average in this step.

        Returns:
            The norm of the gradient before clipping, ``()``, on the parameters' device. On a CPU, a norm that is not
            finite leaves weights, averages and state as they are.
        """
        if native.library() is not None and all(_is_plain(p) for p in parameters):
            return self._native_step(parameters, most, average, averaging)
        norm = torch.nn.utils.clip_grad_norm_(parameters, most)
        self._write_steps()
        self.step()
        if self._steps or parameters[0].device.type == "cpu":
            self._steps += 1
        if average:
            torch._foreach_lerp_(list(average), list(parameters), 1.0 - averaging)
        return norm

    def _native_step(
        self, parameters: Sequence[Tensor], most: float, average: Sequence[Tensor], averaging: float
    ) -> Tensor:
        if not self.state:
            self._steps = 0
            for p in parameters:
                self.state[p] = {
                    "step": torch.zeros(()),
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
        kind = native.KINDS[parameters[0].dtype]
        step = self._steps + 1
        norm = native.adamw(table, kind, group["lr"], beta1, beta2, group["eps"], step, most, averaging)
        if np.isfinite(norm):
            self._steps += 1
        return torch.tensor(norm)

    def state_dict(self) -> dict[str, Any]:
        """The state of torch's AdamW."""
        self._write_steps()
        return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state of this optimiser or of torch's AdamW."""
        super().load_state_dict(state_dict)
        steps = [state["step"] for state in self.state.values()]
        self._steps = int(steps[0]) if steps else 0

    def _write_steps(self) -> None:
        for state in self.state.values():
            if state["step"].device.type == "cpu":
                state["step"].fill_(self._steps)


def _is_plain(parameter: Tensor) -> bool:
    gradient = parameter.grad
    return (
        gradient is not None
        and parameter.device.type == "cpu"
        and parameter.dtype in (torch.float32, torch.float64)
        and parameter.is_contiguous()
        and gradient.is_contiguous()
        and gradient.layout == torch.strided
    )
