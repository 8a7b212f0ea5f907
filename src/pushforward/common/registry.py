"""Registries: built-in items are imported on first use, others are added with a decorator."""

import importlib
from collections.abc import Callable, Mapping
from typing import Generic, TypeVar, cast

from pushforward.common.text import unknown_name

Item = TypeVar("Item")
Added = TypeVar("Added")


class UnknownNameError(LookupError):
    """A name that is not registered; the message lists the known names."""

    def __str__(self) -> str:
        return str(self.args[0])


class Registry(Generic[Item]):
    """Items by name.

    Args:
        what: What an item is, for messages.
        builtins: Import path of each built-in by name, such as ``"pushforward.flows.flow:Flow"``.

    Example:
        >>> shapes = Registry[type]("shape", {"fraction": "fractions:Fraction"})
        >>> @shapes.register("square")
        ... class Square:
        ...     pass
        >>> shapes.names(), shapes.name_of(Square), shapes["fraction"].__name__
        (['fraction', 'square'], 'square', 'Fraction')
    """

    def __init__(self, what: str, builtins: Mapping[str, str]) -> None:
        self._what = what
        self._builtins = dict(builtins)
        self._added: dict[str, Item] = {}

    def names(self) -> list[str]:
        """Return all names: the built-in ones in the order of their table, then those that were added."""
        return [*self._builtins, *self._added]

    def __getitem__(self, name: str) -> Item:
        """Return the item of a name; a built-in is imported now.

        Raises:
            UnknownNameError: If the name is not registered.
        """
        if name in self._added:
            return self._added[name]
        if name not in self._builtins:
            raise UnknownNameError(unknown_name(self._what, name, self.names()))
        module, _, attribute = self._builtins[name].partition(":")
        found: Item = getattr(importlib.import_module(module), attribute)
        return found

    def name_of(self, item: Item) -> str | None:
        """Return the name of a class or function; None if it is not registered."""
        item_path = f"{getattr(item, '__module__', '')}:{getattr(item, '__qualname__', '')}"
        added = (name for name, other in self._added.items() if other is item)
        builtin = (name for name, import_path in self._builtins.items() if import_path == item_path)
        return next(added, None) or next(builtin, None)

    def register(self, name: str) -> Callable[[Added], Added]:
        """Return a decorator that adds a class or function under a name; the same definition may be added again.

        Raises:
            ValueError: If the name is already used for another item.
        """

        def add(item: Added) -> Added:
            other = self._added.get(name)
            is_same = other is not None and getattr(other, "__qualname__", "") == getattr(item, "__qualname__", "")
            if name in self._builtins or (other is not None and not is_same):
                raise ValueError(f"register: the {self._what} {name!r} exists already; take another name")
            self._added[name] = cast(Item, item)
            return item

        return add
