"""Registries: built-in items are imported on first use, others are added with a decorator."""

import importlib
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
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
        about: What each built-in is, in one line.

    Example:
        >>> shapes = Registry[type]("shape", {"fraction": "fractions:Fraction"}, {"fraction": "part of a whole"})
        >>> @shapes.register("square")
        ... class Square:
        ...     "Four equal sides."
        >>> shapes.names(), shapes.name_of(Square), shapes["fraction"].__name__
        (['fraction', 'square'], 'square', 'Fraction')
        >>> shapes.about("fraction"), shapes.about("square")
        ('part of a whole', 'Four equal sides')
    """

    def __init__(self, what: str, builtins: Mapping[str, str], about: Mapping[str, str] | None = None) -> None:
        self.builtins = MappingProxyType(dict(builtins))
        self._what = what
        self._about = dict(about or {})
        self._added: dict[str, Item] = {}
        self._definitions: dict[str, str] = {}

    def names(self) -> list[str]:
        """Return all names: the built-in ones in the order of their table, then those that were added."""
        return [*self.builtins, *self._added]

    def __getitem__(self, name: str) -> Item:
        """Return the item of a name; a built-in is imported now.

        Raises:
            UnknownNameError: If the name is not registered.
        """
        if name in self._added:
            return self._added[name]
        if name not in self.builtins:
            raise UnknownNameError(unknown_name(self._what, name, self.names()))
        module, _, attribute = self.builtins[name].partition(":")
        found: Item = getattr(importlib.import_module(module), attribute)
        return found

    def name_of(self, item: Item) -> str | None:
        """Return the name of a class or function; None if it is not registered."""
        item_path = _path(item)
        added = (name for name, other in self._added.items() if other is item)
        builtin = (name for name, import_path in self.builtins.items() if import_path == item_path)
        return next(added, None) or next(builtin, None)

    def about(self, name: str) -> str:
        """Return what an item is: its line of the table, or the first line of its docstring; nothing is imported."""
        return self._about.get(name, "")

    def register(self, name: str, *, definition: object = None) -> Callable[[Added], Added]:
        """Return a decorator that adds a class or function under a name; the same definition may be added again.

        Args:
            name: The name, in lower case, as it is written on the command line.
            definition: The class or function that defines the item, if it is not the item.

        Raises:
            ValueError: If the name is already used for another item, or cannot be one.
        """
        if name == "auto" or not re.fullmatch(r"[a-z0-9]+([-+./][a-z0-9]+)*", name):
            raise ValueError(f"register: expected a name such as my-{self._what.replace(' ', '-')}; got {name!r}")

        def add(item: Added) -> Added:
            described = item if definition is None else definition
            self.check_free(name, described)
            self._added[name], self._definitions[name] = cast(Item, item), _path(described)
            self._about[name] = (described.__doc__ or "").strip().partition("\n")[0].strip().removesuffix(".")
            return item

        return add

    def remove(self, name: str) -> None:
        """Remove an item that was added.

        Raises:
            UnknownNameError: If there is none of this name.
        """
        if name not in self._added:
            raise UnknownNameError(unknown_name(self._what, name, list(self._added)))
        for items in (self._added, self._definitions, self._about):
            items.pop(name, None)

    def check_free(self, name: str, definition: object) -> None:
        """Check that a name is free, or already that of the same class or function.

        Raises:
            ValueError: If the name is already used for another item.
        """
        path = _path(definition)
        if name in self.builtins or self._definitions.get(name, path) != path:
            raise ValueError(f"register: the {self._what} {name!r} exists already; take another name")


def _path(item: object) -> str:
    """The import path of a class or function: running a notebook's cell again gives another item of the same path."""
    return f"{getattr(item, '__module__', '')}:{getattr(item, '__qualname__', '')}"
