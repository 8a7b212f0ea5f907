"""Parts of a model whose state dict records, besides the weights, what else defines the density."""

import json
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pushforward.common.text import shorten
from pushforward.flows.constants import Constants
from pushforward.flows.parts import PARTS
from pushforward.flows.univariate.base import Univariate

_RECORD = "_extra_state"  # torch's name for what get_extra_state returns


class Part(Constants):
    """A module whose state dict also holds its kind and the arguments of its ``config``.

    Weights of the same shapes can be those of different densities: with another order of the features, another bound of
    a spline, a Laplace base in place of a Gaussian one. So a part that loads a state dict takes over the arguments that
    ``adopted`` lists, and refuses any other difference by a ``RuntimeError``, also with ``strict=False``.

    The record is a tensor of bytes, because people copy and average the values of a state dict as tensors. ``save``
    leaves it out: ``config.json`` says the same.
    """

    adopted: ClassVar[tuple[str, ...]] = ()
    """Arguments that are taken over from a state dict, by ``adopt``."""

    free: ClassVar[tuple[str, ...]] = ()
    """Arguments that do not change the density of given weights, such as dropout: they are not recorded."""

    def adopt(self, **arguments: Any) -> None:
        """Take over the arguments named in ``adopted``.

        Raises:
            ValueError: If they do not fit the other arguments.
        """
        raise NotImplementedError

    def get_extra_state(self) -> Tensor:
        """Return kind and arguments as JSON, in a tensor of bytes."""
        return torch.frombuffer(bytearray(_text(self._record()).encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Compare kind and arguments with those of a state dict, and take over what can be.

        Raises:
            RuntimeError: If the state dict is that of another density.
        """
        own, name = self._record(), kind_of(self)
        try:
            saved = dict(json.loads(bytes(state.to(torch.uint8).tolist())))
        except (AttributeError, TypeError, ValueError) as error:
            raise RuntimeError(f"{name}: the state dict does not say what the weights belong to") from error
        for key in sorted({*own, *saved} - {*self.adopted}):
            expected, got = _text(own.get(key)), _text(saved.get(key))
            if expected != got:
                raise RuntimeError(
                    f"{name}: expected a state dict of the same density, with {key} {shorten(expected, 60)}; "
                    f"got {shorten(got, 60)}"
                )
        taken = {key: saved.get(key) for key in self.adopted}
        if _text(taken) != _text({key: own.get(key) for key in self.adopted}):
            try:
                self.adopt(**taken)
            except (TypeError, ValueError) as error:
                raise RuntimeError(f"{name}: the state dict does not fit: {error}") from error

    def _record(self) -> dict[str, Any]:
        try:
            arguments: dict[str, Any] = self.config()  # type: ignore[operator]  # mypy: may be a Module
        except (AttributeError, NotImplementedError):  # a user's part that is not meant to be saved
            arguments = {}
        known = {key: _described(value) for key, value in arguments.items() if key not in self.free}
        return {"part": kind_of(self)} | known


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """The state dict of a model without the records of its parts."""
    records = records_of(model)
    return {name: value for name, value in model.state_dict().items() if name not in records}


def records_of(model: nn.Module) -> dict[str, Tensor]:
    """The records of the parts of a model, under their names in its state dict."""
    parts = {prefix: part for prefix, part in model.named_modules(remove_duplicate=False) if isinstance(part, Part)}
    return {
        f"{prefix}.{_RECORD}" if prefix else _RECORD: part.get_extra_state()
        for prefix, part in parts.items()
        if type(part).get_extra_state is Part.get_extra_state  # otherwise it keeps something else there
    }


def kind_of(value: object) -> str:
    """The name of an object's class in saved files, or else the name of the class."""
    # torch's wrappers, such as fully_shard and parametrizations, subclass the class of a module on the fly.
    own = next((kind for kind in type(value).__mro__ if not kind.__module__.startswith("torch.")), object)
    kind = type(value) if own is object else own
    return PARTS.name_of(kind) or kind.__name__


def _described(value: Any) -> Any:
    """Describe an argument by JSON values. A part has its own record, and weights have shapes."""
    if isinstance(value, Part):
        return kind_of(value)
    if isinstance(value, nn.Module):
        # What its weights do not show: modules without any, such as activations.
        plain = [m for m in value.modules() if not (m._parameters or m._buffers or m._modules or _is_dropout(m))]
        return [kind_of(value), *(f"{kind_of(m)}({m.extra_repr()})" for m in plain if m is not value)]
    if isinstance(value, Univariate):
        return {"part": kind_of(value)} | {key: _described(item) for key, item in value.config().items()}
    if isinstance(value, dict):
        return {str(key): _described(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_described(item) for item in value]
    return value if isinstance(value, str | int | float | None) else type(value).__name__


def _is_dropout(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.dropout._DropoutNd)


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
