"""Constant tensors of a module that follow from its configuration, such as masks and orders of features."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Constants(nn.Module):
    """A module with buffers that are not saved, because its configuration determines them.

    ``to_empty`` and ``load_state_dict(assign=True)`` leave ordinary buffers of this kind without values. Here they keep
    them, also in a module that was built on the device ``meta``.
    """

    _constants: dict[str, Tensor | None]
    """For each of these buffers, its value while the buffer itself is on ``meta``."""

    def set_constant(self, name: str, value: Tensor) -> None:
        """Register a buffer on the default device, or replace the values of one in place.

        Args:
            name: Name of the buffer.
            value: Its values; make them with ``device="cpu"``, because the default device may be ``meta``.

        Raises:
            ValueError: If there are no values, because they are on ``meta``.
        """
        if value.is_meta:
            raise ValueError(f"{type(self).__name__}: expected values of {name}; got a tensor on the device meta")
        buffer = self._buffers.get(name)
        if buffer is None:
            buffer = value.to(torch.empty(0).device)
            self.register_buffer(name, buffer, persistent=False)
        else:
            buffer.copy_(value)  # in place, because CUDA graphs hold its address
        self._constants = {**self._known_constants(), name: value if buffer.is_meta else None}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Convert or move the module, as ``to``, ``float`` and ``to_empty`` do."""
        known, buffers = self._known_constants(), self._buffers
        before = {name: buffers[name] for name in known}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, old in before.items():
            new = buffers[name]
            if old is None or new is None or new is old:
                continue
            value = known[name] if old.is_meta else old
            if new.is_meta:
                known[name] = None if value is None else value.cpu()
            elif value is not None:
                new.copy_(value)
                known[name] = None
        return self

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *args: Any
    ) -> None:
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)
        if not local_metadata.get("assign_to_params_buffers"):
            return
        # The tensors of the state dict take the place of those on meta; what is not among them goes where they are.
        weights = (t for t in state_dict.values() if isinstance(t, Tensor) and t.is_floating_point())
        like = next(weights, torch.empty(0, device="cpu"))
        known = self._known_constants()
        for name, value in known.items():
            if value is not None:
                self._buffers[name] = value.to(like) if value.is_floating_point() else value.to(like.device)
                known[name] = None

    def _known_constants(self) -> dict[str, Tensor | None]:
        known: dict[str, Tensor | None] = self.__dict__.get("_constants", {})
        return known
