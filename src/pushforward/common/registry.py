"""Names for things that people can add: built-ins are imported when they are asked for, others register themselves."""

import importlib
from collections.abc import Callable, Mapping
from typing import Generic, TypeVar, cast

from pushforward.common.text import unknown_name

Item = TypeVar("Item")
Added = TypeVar("Added")


class UnknownNameError(LookupError):
    """A name that is not registered; the message lists those that are."""

    def __str__(self) -> str:
        return str(self.args[0])


class Registry(Generic[Item]):
    """Items by name.

    Args:
        what: What an item is, for messages.
        builtins: For each built-in its name and where it stands, as in ``"pushforward.flows.flow:Flow"``.

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
        """All names, in alphabetical order."""
        return sorted({*self._builtins, *self._added})

    def __getitem__(self, name: str) -> Item:
        """The item of a name; a built-in is imported now.

        Raises:
            UnknownNameError: If there is none.
        """
        if name in self._added:
            return self._added[name]
        if name not in self._builtins:
            raise UnknownNameError(unknown_name(self._what, name, self.names()))
        module, _, attribute = self._builtins[name].partition(":")
        found: Item = getattr(importlib.import_module(module), attribute)
        return found

    def name_of(self, item: Item) -> str | None:
        """The name of a class or function; None if it is not registered."""
        home = f"{getattr(item, '__module__', '')}:{getattr(item, '__qualname__', '')}"
        added = (name for name, other in self._added.items() if other is item)
        builtin = (name for name, place in self._builtins.items() if place == home)
        return next(added, None) or next(builtin, None)

    def register(self, name: str) -> Callable[[Added], Added]:
        """Decorate a class or function to add it under a name; running the same definition again replaces it.

        Raises:
            ValueError: If the name belongs to something else.
        """

        def add(item: Added) -> Added:
            other = self._added.get(name)
            is_again = other is not None and getattr(other, "__qualname__", "") == getattr(item, "__qualname__", "")
            if name in self._builtins or (other is not None and not is_again):
                raise ValueError(f"register: the {self._what} {name!r} exists already; take another name")
            self._added[name] = cast(Item, item)
            return item

        return add
