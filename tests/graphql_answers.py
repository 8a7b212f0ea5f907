"""Answers GraphQL documents from plain Python values: what is selected is what is returned, unknown fields are told.

A value is a dictionary of fields; a field is a value, a list of values, or a function of the field's arguments.
That is all the executor needs: it has no schema, so a document is checked against the fields that are there.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

_TOKEN = re.compile(
    r"""(?P<skip>[\s,\ufeff]+|\#[^\n]*)|(?P<spread>\.\.\.)|(?P<block>\"\"\".*?\"\"\")|(?P<text>"(?:\\.|[^"\\])*")"""
    r"""|(?P<number>-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)|(?P<name>[_A-Za-z]\w*)|(?P<mark>[!$():=@\[\]{}|&])""",
    re.DOTALL,
)
# A fragment on one of these is for every value that it is spread on.
_INTERFACES = {"ArtifactCollection", "Node"}


@dataclass
class _Selection:
    name: str
    alias: str = ""
    arguments: dict[str, Any] = field(default_factory=dict)
    directives: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    selections: list["_Selection"] = field(default_factory=list)
    spread: bool = False
    on: str = ""  # the type of an inline fragment


@dataclass(frozen=True)
class _Variable:
    name: str


@dataclass
class Operation:
    """The operation of a document: its kind (``query``, ``mutation``), name and defaults of variables."""

    kind: str
    name: str
    defaults: dict[str, Any]
    selections: list[_Selection]


class _Parser:
    def __init__(self, text: str) -> None:
        self._tokens: list[tuple[str, str]] = []
        position = 0
        while position < len(text):
            found = _TOKEN.match(text, position)
            if found is None:
                raise ValueError(f"not GraphQL: {text[position : position + 30]!r}")
            position = found.end()
            if found.lastgroup != "skip":
                self._tokens.append((str(found.lastgroup), found.group()))
        self._tokens.append(("end", ""))
        self._at = 0

    @property
    def _text(self) -> str:
        return self._tokens[self._at][1]

    def _take(self, expected: str | None = None) -> str:
        kind, text = self._tokens[self._at]
        if kind == "end":
            raise ValueError("not GraphQL: it ends too early")
        if expected is not None and text != expected:
            raise ValueError(f"not GraphQL: expected {expected!r}; got {text!r}")
        self._at += 1
        return text

    def document(self) -> tuple[list[Operation], dict[str, tuple[str, list[_Selection]]]]:
        operations, fragments = [], {}
        while self._tokens[self._at][0] != "end":
            if self._text == "fragment":
                self._take()
                name = self._take()
                self._take("on")
                kind = self._take()
                fragments[name] = (kind, self._selections())
                continue
            kind = "query" if self._text == "{" else self._take()
            name = "" if self._text in "({@" else self._take()
            operations.append(Operation(kind, name, self._variables(), self._selections()))
        return operations, fragments

    def _variables(self) -> dict[str, Any]:
        defaults: dict[str, Any] = {}
        if self._text != "(":
            return defaults
        self._take("(")
        while self._text != ")":
            self._take("$")
            name = self._take()
            self._take(":")
            while self._text in ("[", "]", "!") or self._tokens[self._at][0] == "name":
                self._take()
            if self._text == "=":
                self._take()
                defaults[name] = self._value()
        self._take(")")
        return defaults

    def _selections(self) -> list[_Selection]:
        self._take("{")
        found = []
        while self._text != "}":
            found.append(self._selection())
        self._take("}")
        return found

    def _selection(self) -> _Selection:
        if self._text == "...":
            self._take()
            if self._text in ("on", "{", "@"):
                on = ""
                if self._text == "on":
                    self._take()
                    on = self._take()
                return _Selection("", directives=self._directives(), selections=self._selections(), spread=True, on=on)
            return _Selection(self._take(), directives=self._directives(), spread=True)
        alias = name = self._take()
        if self._text == ":":
            self._take()
            name = self._take()
        arguments = self._arguments()
        directives = self._directives()
        return _Selection(name, alias, arguments, directives, self._selections() if self._text == "{" else [])

    def _arguments(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if self._text == "(":
            self._take()
            while self._text != ")":
                name = self._take()
                self._take(":")
                found[name] = self._value()
            self._take(")")
        return found

    def _directives(self) -> list[tuple[str, dict[str, Any]]]:
        found = []
        while self._text == "@":
            self._take()
            found.append((self._take(), self._arguments()))
        return found

    def _value(self) -> Any:
        kind, text = self._tokens[self._at]
        self._at += 1
        if text == "$":
            return _Variable(self._take())
        if text == "[":
            items = []
            while self._text != "]":
                items.append(self._value())
            self._take()
            return items
        if text == "{":
            fields = {}
            while self._text != "}":
                name = self._take()
                self._take(":")
                fields[name] = self._value()
            self._take()
            return fields
        if kind == "text":
            return text[1:-1].encode().decode("unicode_escape")
        if kind == "number":
            return float(text) if re.search(r"[.eE]", text) else int(text)
        return {"true": True, "false": False, "null": None}.get(text, text)


def answer(
    text: str, variables: Mapping[str, Any], root: Mapping[str, Any], tell_unknown: Callable[[str], None]
) -> dict[str, Any]:
    """Answer the first operation of a document.

    Args:
        text: The document.
        variables: Values of its variables.
        root: The fields there are, of queries and of mutations.
        tell_unknown: Called with ``Operation: path.to.field`` for a field that is selected and not there.
    """
    operations, fragments = _Parser(text).document()
    operation = operations[0]
    values = operation.defaults | dict(variables)

    def filled(value: Any) -> Any:
        if isinstance(value, _Variable):
            return values.get(value.name)
        if isinstance(value, list):
            return [filled(item) for item in value]
        if isinstance(value, dict):
            return {name: filled(item) for name, item in value.items()}
        return value

    def selected(value: Any, selections: list[_Selection], path: str) -> Any:
        if value is None or not selections:
            return value
        if isinstance(value, list):
            return [selected(item, selections, path) for item in value]
        found: dict[str, Any] = {}
        for selection in selections:
            wanted = {name: filled(arguments).get("if") for name, arguments in selection.directives}
            if wanted.get("include", True) is False or wanted.get("skip", False) is True:
                continue
            if selection.spread:
                on, inner = fragments[selection.name] if selection.name else (selection.on, selection.selections)
                kind = value.get("__typename")
                if not on or kind is None or on == kind or on in _INTERFACES:
                    for name, item in selected(value, inner, path).items():
                        found[name] = _merged(found.get(name), item)
                continue
            if selection.name not in value:
                if selection.name != "__typename":
                    tell_unknown(f"{operation.name}: {path}{selection.name}")
                found[selection.alias] = None
                continue
            item = value[selection.name]
            if callable(item):
                item = item(**filled(selection.arguments))
            item = selected(item, selection.selections, f"{path}{selection.name}.")
            found[selection.alias] = _merged(found.get(selection.alias), item)
        return found

    answered: dict[str, Any] = selected(root, operation.selections, "")
    return answered


def _merged(one: Any, other: Any) -> Any:
    """Join what two selections of one field have selected."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one | {name: _merged(one.get(name), item) for name, item in other.items()}
    if isinstance(one, list) and isinstance(other, list):
        return [_merged(a, b) for a, b in zip(one, other, strict=True)]
    return other
