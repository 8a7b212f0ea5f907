"""One parameter of a sweep: the distributions of Weights & Biases, drawn with Optuna.

A distribution has three sides: what Optuna draws and keeps (``raw``), the value that follows from it, and the text that
is typed as ``key=value``. For most the first two are the same; a rounded or a normal distribution computes the value
exactly as Weights & Biases does, from a number that Optuna can draw.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

from pushforward.common.errors import ConfigError
from pushforward.common.text import did_you_mean

if TYPE_CHECKING:
    import optuna

Value = str | int | float | bool

# Needed keys, then those that have a default.
_KEYS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "constant": (("value",), ()),
    "categorical": (("values",), ()),
    "int_uniform": (("min", "max"), ()),
    "uniform": (("min", "max"), ()),
    "log_uniform": (("min", "max"), ()),
    "log_uniform_values": (("min", "max"), ()),
    "q_uniform": (("min", "max"), ("q",)),
    "q_log_uniform": (("min", "max"), ("q",)),
    "q_log_uniform_values": (("min", "max"), ("q",)),
    "normal": ((), ("mu", "sigma")),
    "log_normal": ((), ("mu", "sigma")),
    "q_normal": ((), ("mu", "sigma", "q")),
    "q_log_normal": ((), ("mu", "sigma", "q")),
}
_DEFAULTS = {"q": 1.0, "mu": 0.0, "sigma": 1.0}
# Known to Weights & Biases, and with what they can be replaced here.
_REFUSED = {
    "categorical_w_probabilities": "values without probabilities",
    "inv_log_uniform": "log_uniform",
    "inv_log_uniform_values": "log_uniform_values",
    "beta": "uniform",
    "q_beta": "q_uniform",
}
# A normal distribution has no ends; this much of either tail is never drawn.
_TAIL = 1e-3


@dataclass(frozen=True)
class Parameter:
    """A key of the configuration and the values it may take.

    Attributes:
        key: The key in full, as typed on the command line.
        distribution: One of the names that Weights & Biases has for it.
        spec: ``value``, ``values``, or the numbers of the distribution, with their defaults filled in.
        where: File and line for error messages, with what separates them from the message.
    """

    key: str
    distribution: str
    spec: Mapping[str, Any]
    where: str = field(default="", compare=False)

    @classmethod
    def constant(cls, key: str, value: Any, where: str = "") -> "Parameter":
        """A parameter with one value."""
        return cls(key, "constant", {"value": value}, where)

    @classmethod
    def read(cls, key: str, spec: Any, where: str = "") -> "Parameter":
        """Read what a sweep file says below the name of a parameter.

        Raises:
            ConfigError: With one line: a distribution or a key that is not known, missing, or of the wrong type.
        """
        at = f"{where}{key}: "
        if not isinstance(spec, Mapping):
            raise ConfigError(f"{at}expected value, values, or min and max; got {_shown(spec)}")
        if "parameters" in spec:
            raise ConfigError(
                f"{at}parameters inside parameters are not supported; write the whole key, as flow.layers"
            )
        name = spec.get("distribution") or _inferred(spec, at)
        if name in _REFUSED or "probabilities" in spec:
            instead = _REFUSED.get(name, _REFUSED["categorical_w_probabilities"])
            raise ConfigError(f"{at}{name} is not supported here; use {instead}")
        if name not in _KEYS:
            hint = did_you_mean(str(name), _KEYS)
            raise ConfigError(f"{at}unknown distribution {_shown(name)}; {hint}known: {', '.join(_KEYS)}")
        needed, optional = _KEYS[name]
        for given in spec:
            if given not in (*needed, *optional, "distribution"):
                raise ConfigError(f"{at}{name} takes {', '.join((*needed, *optional))}; got {given}")
        for asked in needed:
            if asked not in spec:
                raise ConfigError(f"{at}{name} needs {' and '.join(needed)}; there is no {asked}")
        full = {k: spec.get(k, _DEFAULTS.get(k)) for k in (*needed, *optional)}
        return cls(key, name, _checked(name, full, at), where)

    @property
    def is_constant(self) -> bool:
        """Whether there is but one value."""
        return self.distribution == "constant" or len(self.spec.get("values", (1, 2))) == 1

    @property
    def only(self) -> Any:
        """The value of a constant."""
        values = self.values
        assert values
        return values[0]

    @property
    def values(self) -> tuple[Any, ...] | None:
        """All values where they are listed, else None."""
        if self.distribution == "constant":
            return (self.spec["value"],)
        return tuple(self.spec["values"]) if self.distribution == "categorical" else None

    def grid(self) -> tuple[Value, ...] | None:
        """All values in order where there are finitely many, else None; the same as Weights & Biases counts them."""
        if self.values is not None:
            return self.values
        low, high = self.spec.get("min"), self.spec.get("max")
        if self.distribution == "int_uniform":
            return tuple(range(low, high + 1))  # type: ignore[arg-type,operator]
        if self.distribution == "q_uniform":
            q, count = self.spec["q"], math.floor((high - low) / self.spec["q"] * (1 + 1e-12)) + 1  # type: ignore[operator]
            return tuple(_tidy(low + i * q) for i in range(count))
        return None

    def extremes(self) -> tuple[Value, ...]:
        """Values that are acceptable only if all are: every one that is listed, else the ends and two in between."""
        if self.values is not None:
            return self.values
        if self.distribution == "int_uniform":
            return (self.spec["min"], self.spec["max"])
        low, high = self._raw_bounds
        # Not round numbers: a whole number that is drawn as a real one must be found out.
        inner = [low + share * (high - low) for share in (0.3819, 0.6181)]
        return tuple(self.value(raw) for raw in (low, *inner, high))

    def suggest(self, trial: "optuna.Trial") -> Any:
        """Let a trial of Optuna draw; returns what it keeps."""
        if self.values is not None:
            return trial.suggest_categorical(self.key, self.values)
        if self.distribution == "int_uniform":
            return trial.suggest_int(self.key, self.spec["min"], self.spec["max"])
        low, high = self._raw_bounds
        return trial.suggest_float(self.key, low, high, log=self._is_log)

    def value(self, raw: Any) -> Value:
        """The value that follows from what Optuna keeps."""
        name, spec = self.distribution, self.spec
        value: Any = raw
        if "normal" in name:
            value = spec["mu"] + spec["sigma"] * NormalDist().inv_cdf(raw)
        if name in ("log_uniform", "q_log_uniform", "log_normal", "q_log_normal"):
            value = math.exp(value)
        if name.startswith("q_"):
            value = round(value / spec["q"]) * spec["q"]
            value = int(value) if isinstance(spec["q"], int) else _tidy(value)
        return value  # type: ignore[no-any-return]

    def raw(self, value: Any) -> Any:
        """What Optuna would keep for a value; None if the value is not one that can be drawn."""
        if self.values is not None:
            return next((known for known in self.values if _same(known, value)), None)
        if isinstance(value, bool | str) or value is None:
            return None
        name, spec, raw = self.distribution, self.spec, float(value)
        if name == "int_uniform":
            return int(value) if raw.is_integer() and spec["min"] <= raw <= spec["max"] else None
        if name in ("log_uniform", "q_log_uniform", "log_normal", "q_log_normal"):
            if raw <= 0:
                return None
            raw = math.log(raw)
        if "normal" in name:
            raw = NormalDist(spec["mu"], spec["sigma"]).cdf(raw) if spec["sigma"] else 0.5
        low, high = self._raw_bounds
        # The ends of a rounded distribution may lie within half a step outside.
        raw = min(max(raw, low), high)
        return raw if math.isclose(float(self.value(raw)), float(value), rel_tol=1e-9, abs_tol=1e-12) else None

    def to_dict(self) -> dict[str, Any]:
        """As a sweep file has it."""
        if self.distribution in ("constant", "categorical"):
            return dict(self.spec)
        return {"distribution": self.distribution, **self.spec}

    @property
    def _is_log(self) -> bool:
        return self.distribution in ("log_uniform_values", "q_log_uniform_values")

    @property
    def _raw_bounds(self) -> tuple[float, float]:
        if "normal" in self.distribution:
            return _TAIL, 1.0 - _TAIL
        return float(self.spec["min"]), float(self.spec["max"])


def _inferred(spec: Mapping[str, Any], at: str) -> str:
    """The distribution that is meant where none is named, by the rules of Weights & Biases."""
    if "values" in spec:
        return "categorical_w_probabilities" if "probabilities" in spec else "categorical"
    if "value" in spec:
        return "constant"
    if "min" in spec and "max" in spec:
        both_whole = all(isinstance(spec[k], int) and not isinstance(spec[k], bool) for k in ("min", "max"))
        return "int_uniform" if both_whole else "uniform"
    got = ", ".join(map(str, spec)) or "nothing"
    raise ConfigError(f"{at}expected value, values, min and max, or a distribution; got {got}")


def _checked(name: str, spec: dict[str, Any], at: str) -> dict[str, Any]:
    if name == "constant":
        if spec["value"] is None:
            raise ConfigError(f"{at}expected a value; got nothing")
        return spec
    if name == "categorical":
        values = spec["values"]
        if not isinstance(values, list) or not values:
            raise ConfigError(f"{at}values: expected a list; got {_shown(values)}")
        for value in values:
            if not isinstance(value, str | int | float | bool):
                raise ConfigError(f"{at}values: expected numbers, texts or truth values; got {_shown(value)}")
        distinct: list[Any] = []
        for value in values:
            if not any(_same(value, known) for known in distinct):
                distinct.append(value)
        return {"values": distinct}
    for key, value in spec.items():
        spec[key] = _number(value, f"{at}{key}: ", whole=name == "int_uniform")
    conditions: list[tuple[str, Callable[[Any], bool], str]] = [
        ("q", lambda q: q > 0, "a number above 0"),
        ("sigma", lambda sigma: sigma >= 0, "0 or more"),
        ("max", lambda high: high >= spec["min"], f"at least min, {spec.get('min')}"),
    ]
    if name.endswith("log_uniform_values"):
        conditions.append(("min", lambda low: low > 0, "a number above 0 (log_uniform takes exponents instead)"))
    for key, holds, expected in conditions:
        if key in spec and not holds(spec[key]):
            raise ConfigError(f"{at}{key}: expected {expected}; got {spec[key]}")
    return spec


def _number(value: Any, at: str, *, whole: bool) -> int | float:
    if isinstance(value, str):
        try:
            number = float(value)
        except ValueError:
            pass
        else:
            # YAML 1.1 needs the point; so does everything else that reads the file.
            mantissa, e, exponent = value.partition("e")
            better = f"{mantissa}.0e{exponent}" if e and "." not in mantissa else repr(number)
            raise ConfigError(f"{at}YAML reads {value} as a text; write {better}")
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError(f"{at}expected a number; got {_shown(value)}")
    if whole and not isinstance(value, int):
        raise ConfigError(f"{at}expected a whole number; got {_shown(value)} (uniform draws real numbers)")
    return value


def _tidy(value: float) -> int | float:
    """Multiples of 0.05 without the digits of binary arithmetic."""
    return value if isinstance(value, int) else float(f"{value:.12g}")


def _same(a: Any, b: Any) -> bool:
    """Equal, where 1 and True are not, and neither are 1 and '1'."""
    numbers = all(isinstance(x, int | float) and not isinstance(x, bool) for x in (a, b))
    return a == b if numbers else type(a) is type(b) and a == b


def _shown(value: Any) -> str:
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
