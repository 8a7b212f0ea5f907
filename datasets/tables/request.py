"""What was asked of a table: its columns, what each is for, and its rows."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pushforward.common.errors import DataError
from pushforward.common.text import as_argument, leave_out, number_text

Missing = Literal["refuse", "drop"]


@dataclass(frozen=True, kw_only=True)
class Request:
    """What was asked of a table: its source and the options of ``data``.

    Args:
        source: As the user named it.
        columns: Columns to use, or None for all.
        drop: Columns to leave out.
        context: Columns to condition on.
        response: Columns to model given all others; empty to model all but the context.
        weight: The column with the weights of the rows, or None.
        missing: What becomes of rows with missing or infinite cells.
        missing_values: Numbers that stand for a missing cell.
        rows: Size of a random subset, or None.
        seed: Its seed.
        protocol: Name of a protocol, or None.
        fold: Its fold.
        given: Columns to condition on that came as an object of their own, so that no option names them.
        in_python: Whether rows came as objects, so that advice is in keywords of Python.
    """

    source: str
    columns: Sequence[str] | None = None
    drop: Sequence[str] = ()
    context: Sequence[str] = ()
    response: Sequence[str] = ()
    weight: str | None = None
    missing: Missing = "refuse"
    missing_values: Sequence[float] = ()
    rows: int | None = None
    seed: int = 0
    protocol: str | None = None
    fold: int = 0
    given: Sequence[str] = ()
    in_python: bool = False

    @property
    def roles(self) -> dict[str, Sequence[str]]:
        """The columns that are something else than a feature among others, by the option that names them."""
        weight = () if self.weight is None else (self.weight,)
        return {"data.given": self.context, "data.response": self.response, "data.weight": weight}

    @property
    def named(self) -> dict[str, str]:
        """The columns that the user asked for by name, without that of the weights, each with the option."""
        named = dict.fromkeys(self.columns or (), "data.columns")
        named |= {name: option for option, names in self.roles.items() for name in names}
        return {name: option for name, option in named.items() if name != self.weight}

    def context_of(self, names: Sequence[str]) -> list[str]:
        """Return those of some columns, without that of the weights, that are conditioned on."""
        if self.response:
            return [name for name in names if name not in self.response]
        return [name for name in (*self.context, *self.given) if name in names]

    def features_of(self, names: Sequence[str]) -> list[str]:
        """Return those of some columns, without that of the weights, that are modelled."""
        context = self.context_of(names)
        return [name for name in names if name not in context]

    def is_enough(self, names: Sequence[str]) -> bool:
        """Whether some columns are left to model and, where context was asked for, some to condition on."""
        needs_context = bool(self.response or self.given)
        return bool(self.features_of(names)) and (not needs_context or bool(self.context_of(names)))

    def check_sides(self, where: str, names: Sequence[str]) -> None:
        """Raise a ``DataError`` if no column is left to model or, where it was asked for, none to condition on."""
        if not self.features_of(names):
            raise DataError(f"{where}: every column is context; leave at least one to model")
        if not self.is_enough(names):
            what = "data.response names every column" if self.response else "data.drop names every column of given"
            raise DataError(f"{where}: {what}; leave at least one to condition on")

    def check(self) -> None:
        """Raise a ``DataError`` if options do not go together."""
        if self.rows is not None and self.rows < 1:
            raise DataError(f"data.rows: expected at least 1; got {self.rows}")
        if self.response and (self.context or self.given):
            raise DataError("data.response: conditions on all other columns; leave data.given out, or data.response")
        seen = dict.fromkeys(self.drop, "data.drop")
        for option, names in self.roles.items():
            for name in names:
                if seen.get(name) == option:
                    raise DataError(f"{option}: names column {name!r} twice; name it once")
                if name in seen:
                    raise DataError(f"{option}: column {name!r} is also in {seen[name]}; take it out of one of them")
                seen[name] = option

    def leave_out(self, *names: str) -> str:
        """Return the option that leaves columns out, quoted for a shell unless rows came as objects of Python."""
        return f"drop={_python(names)}" if self.in_python else leave_out(*names)

    def command(self) -> str:
        """Return the command line of a fit, for a shell; its keywords if rows came as objects of Python."""
        if self.in_python:
            return ", ".join(f"{key}={_python(value)}" for key, value in self._options().items())
        source = f"./{self.source}" if self.source.startswith("-") and self.source != "-" else self.source
        options = [f"data.{key}={_argument(value)}" for key, value in self._options().items()]
        return shlex.join(["pushforward", "fit", source, *options])

    def _options(self) -> dict[str, object]:
        """The options that are not the defaults."""
        options = {
            "columns": self.columns,
            "given": self.context or None,
            "response": self.response or None,
            "weight": self.weight,
            "drop": self.drop or None,
            "missing": None if self.missing == "refuse" else self.missing,
            "missing_values": self.missing_values or None,
            "rows": self.rows,
            "seed": self.seed if self.rows is not None and self.seed else None,
            "protocol": self.protocol,
            "fold": self.fold or None,
        }
        return {key: value for key, value in options.items() if value is not None}


def _argument(value: object) -> str:
    if not isinstance(value, Sequence) or isinstance(value, str):
        return str(value)
    if all(isinstance(item, str) for item in value):
        return as_argument(value)
    return ",".join(map(number_text, value))


def _python(value: object) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"[{', '.join(map(_python, value))}]"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else number_text(float(str(value)))
