"""One parameter of a sweep: the distributions of Weights & Biases, sampled with Optuna.

Optuna samples and stores a ``raw`` number, from which the value of the parameter is computed. For most distributions
the two are the same. For rounded and normal distributions the value is computed exactly as Weights & Biases does.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

from pushforward.common.errors import ConfigError
from pushforward.common.text import shorten, unknown_name

if TYPE_CHECKING:
    import optuna

Value = str | int | float | bool

# For each distribution: required keys, then those with a default.
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
# Distributions of Weights & Biases that are not supported, and what to use instead.
_REFUSED = {
    "categorical_w_probabilities": "values without probabilities",
    "inv_log_uniform": "log_uniform",
    "inv_log_uniform_values": "log_uniform_values",
    "beta": "uniform",
    "q_beta": "q_uniform",
}
# e^20 is 5e8: no hyperparameter is larger.
_LARGEST_EXPONENT = 20
# Probability of either tail of a normal distribution that is never sampled, because Optuna needs finite bounds.
_TAIL = 1e-3


@dataclass(frozen=True)
class Parameter:
    """A key of the configuration and the values it may take.

    Attributes:
        key: The full key, as typed on the command line.
        distribution: Name of the distribution, as Weights & Biases calls it.
        spec: ``value``, ``values``, or the parameters of the distribution, defaults included.
        where: Prefix of error messages: file and line, with a separator.
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
        """Read the entry of a parameter in a sweep file.

        Raises:
            ConfigError: If the distribution or a key is unknown, missing, or of the wrong type.
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
            raise ConfigError(f"{at}{unknown_name('distribution', str(name), _KEYS)}")
        required, optional = _KEYS[name]
        for given in spec:
            if given not in (*required, *optional, "distribution"):
                raise ConfigError(f"{at}{name} takes {', '.join((*required, *optional))}; got {given}")
        for option in required:
            if option not in spec:
                raise ConfigError(f"{at}{name} needs {' and '.join(required)}; there is no {option}")
        full = {k: spec.get(k, _DEFAULTS.get(k)) for k in (*required, *optional)}
        return cls(key, name, _checked(name, full, at), where)

    @property
    def is_constant(self) -> bool:
        """Whether there is only one value."""
        return self.distribution == "constant" or len(self.spec.get("values", (1, 2))) == 1

    @property
    def only(self) -> Any:
        """The value of a constant."""
        values = self.values
        assert values
        return values[0]

    @property
    def values(self) -> tuple[Any, ...] | None:
        """All values if the file lists them, else None."""
        if self.distribution == "constant":
            return (self.spec["value"],)
        return tuple(self.spec["values"]) if self.distribution == "categorical" else None

    def grid(self) -> tuple[Value, ...] | None:
        """Return all values in order, as Weights & Biases enumerates them; None if there are infinitely many."""
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
        """Return values that stand for all in a check: every listed one, else the two bounds and two in between."""
        if self.values is not None:
            return self.values
        if self.distribution == "int_uniform":
            return (self.spec["min"], self.spec["max"])
        low, high = self._raw_bounds
        # Not round numbers, so that a key for whole numbers refuses a distribution of real ones.
        inner = [low + share * (high - low) for share in (0.3819, 0.6181)]
        return tuple(self.value(raw) for raw in (low, *inner, high))

    def suggest(self, trial: "optuna.Trial") -> Any:
        """Sample with an Optuna trial; return the raw number that Optuna stores."""
        if self.values is not None:
            return trial.suggest_categorical(self.key, self.values)
        if self.distribution == "int_uniform":
            return trial.suggest_int(self.key, self.spec["min"], self.spec["max"])
        low, high = self._raw_bounds
        return trial.suggest_float(self.key, low, high, log=self._is_log)

    def value(self, raw: Any) -> Value:
        """Compute the value of the parameter from the raw number that Optuna stores."""
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
        """Return the raw number that Optuna would store for a value; None if the value cannot be sampled."""
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
        # Rounded values may lie up to half a step outside the bounds.
        raw = min(max(raw, low), high)
        return raw if math.isclose(float(self.value(raw)), float(value), rel_tol=1e-9, abs_tol=1e-12) else None

    def to_dict(self) -> dict[str, Any]:
        """Return the entry of a sweep file."""
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
    """Infer the distribution if none is named, by the rules of Weights & Biases."""
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
    if name in ("log_uniform", "q_log_uniform"):
        _check_exponents(name, spec["min"], spec["max"], at)
    return spec


def _check_exponents(name: str, low: float, high: float, at: str) -> None:
    """Check that the bounds of ``log_uniform`` can be meant as exponents, which they are for Weights & Biases.

    Bounds such as 1e-5 and 0.1, or 16 and 256, are values: as exponents they would mean 1.00001 to 1.1, or 9e6 to
    1e111.
    """
    if low > 0 and (high <= 1 or high > _LARGEST_EXPONENT):
        try:
            ends = f"{math.exp(low):g} to {math.exp(high):g}"
        except OverflowError:
            ends = f"{math.exp(min(low, 700)):g} and more"
        raise ConfigError(
            f"{at}min and max of {name} are exponents, so that {low:g} to {high:g} means values of {ends}; "
            f"for values of {low:g} to {high:g} write distribution: {name}_values"
        )


def _number(value: Any, at: str, *, whole: bool) -> int | float:
    if isinstance(value, str):
        try:
            number = float(value)
        except ValueError:
            pass
        else:
            # YAML 1.1, which W&B reads too, takes 1e-4 for text and 1.0e-4 for a number.
            mantissa, e, exponent = value.partition("e")
            better = f"{mantissa}.0e{exponent}" if e and "." not in mantissa else repr(number)
            raise ConfigError(f"{at}YAML reads {value} as a text; write {better}")
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError(f"{at}expected a number; got {_shown(value)}")
    if whole and not isinstance(value, int):
        raise ConfigError(f"{at}expected a whole number; got {_shown(value)} (uniform draws real numbers)")
    return value


def _tidy(value: float) -> int | float:
    """Round away errors of binary arithmetic: 0.15000000000000002 becomes 0.15."""
    return value if isinstance(value, int) else float(f"{value:.12g}")


def _same(a: Any, b: Any) -> bool:
    """Whether two values are equal, where 1, True and '1' are three different values."""
    numbers = all(isinstance(x, int | float) and not isinstance(x, bool) for x in (a, b))
    return a == b if numbers else type(a) is type(b) and a == b


def _shown(value: Any) -> str:
    return "nothing" if value is None else shorten(repr(value), 60)
