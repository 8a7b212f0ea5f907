"""The search space of a sweep, and its file, which `pushforward sweep -c` and `wandb sweep` both read.

A file has the same meaning for both: one that `wandb sweep` would read differently is refused, with the line.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from pushforward.common.errors import ConfigError
from pushforward.common.text import unknown_name
from pushforward.config.read import load_config
from pushforward.config.schema import Config
from pushforward.config.text_files import read_text, yaml_error
from pushforward.sweeps.parameter import Parameter
from pushforward.sweeps.pruning import Hyperband
from pushforward.train.options import VALIDATIONS
from pushforward.train.problems.effects import has_effect, without_effect

if TYPE_CHECKING:
    from pushforward.train.problems.base import Problem

METRICS = {"best/val_nll": "val_nll", "best/val_loss": "val_loss"}
"""Metrics that a file may name, each with the final number of a fit that it becomes."""

METHODS = ("bayes", "random", "grid")

_COMMAND = ["${env}", "pushforward", "fit", "${args_no_hyphens}"]
_ARGUMENTS = "${args_no_hyphens}"
_OF_THE_LOSS = ("train.objective", "train.alpha", "train.importance_samples")
_SPACES = Path(__file__).parent.parent / "config" / "spaces"
# Keys that are copied into the resolved file and not used here.
_PASSED_ON = ("name", "description", "project", "entity", "kind", "apiVersion")
_KNOWN = ("program", "method", "metric", "parameters", "early_terminate", "command", "run_cap", *_PASSED_ON)
_REFUSED = {
    "scheduler": "the search is decided by method: bayes, random or grid",
    "controller": "pushforward sweep is the local controller",
    "job": "a launch job runs at Weights & Biases only",
    "image_uri": "a launch job runs at Weights & Biases only",
    "metrics": "a sweep has one metric",
}


@dataclass(frozen=True)
class SweepSpace:
    """The search space of a sweep.

    Attributes:
        parameters: Constants and searched parameters, in the order of the file.
        method: bayes, random or grid.
        hyperband: The rule that prunes trials; None for no pruning.
        run_cap: Largest number of trials; None if the file does not say.
        target: A value of the metric that ends the sweep; None if there is none.
        metric: What trials are compared by, one of ``METRICS``; empty for what the problem is compared by.
        head: Keys of the file that are not used here.
    """

    parameters: tuple[Parameter, ...]
    method: str = "bayes"
    hyperband: Hyperband | None = None
    run_cap: int | None = None
    target: float | None = None
    metric: str = field(default="", compare=False)
    head: Mapping[str, Any] = field(default_factory=dict)

    @property
    def constants(self) -> dict[str, Any]:
        """Values of the parameters with one value, by key."""
        return {p.key: p.only for p in self.parameters if p.is_constant}

    @property
    def searched(self) -> tuple[Parameter, ...]:
        """Parameters with more than one value."""
        return tuple(p for p in self.parameters if not p.is_constant)

    @property
    def overrides(self) -> list[str]:
        """The constants as ``key=value``."""
        return [f"{key}={value}" for key, value in self.constants.items()]

    def fixed(self, constants: Iterable[Parameter]) -> "SweepSpace":
        """Return a space in which these keys are constants, whatever they were before; they come first."""
        new = {p.key: p for p in constants}
        return replace(self, parameters=(*new.values(), *(p for p in self.parameters if p.key not in new)))

    def check(self) -> Config:
        """Check keys and values by reading configurations with the most extreme values.

        Returns:
            The configuration of the constants alone.

        Raises:
            ConfigError: With file and line, the key, and what was expected.
        """
        constants = self.constants
        for parameter in self.parameters:
            _check_comparable(parameter, constants)
            others = [] if parameter.key == "data.source" else ["data.source=moons"]
            for value in parameter.extremes():
                _load([*others, f"{parameter.key}={value}"], parameter.where)
        if not self.searched:
            raise ConfigError("parameters: expected at least one with more than one value; there is nothing to search")
        if self.method == "grid":
            for parameter in self.searched:
                if parameter.grid() is None:
                    raise ConfigError(
                        f"{parameter.where}{parameter.key}: method: grid needs values, int_uniform or q_uniform; "
                        f"got {parameter.distribution}"
                    )
        return _load(self.overrides, "")

    def for_problem(self, problem: "Problem") -> "SweepSpace":
        """Return the space with the metric of a problem.

        Raises:
            ConfigError: If the file names another metric, or searches keys that have no effect on such a fit, or that
                change the loss by which the trials are compared.
        """
        metric = next(name for name, number in METRICS.items() if number == problem.compared_by)
        if self.metric not in ("", metric):
            what = f"the {problem.kind} problem is compared by it"
            raise ConfigError(f"metric: name: expected {metric} ({what}); got '{self.metric}'")
        for parameter in self.searched:
            key, where = parameter.key, parameter.where
            if "." in key and not has_effect(problem.kind, key):
                raise ConfigError(f"{where}{without_effect(problem, key)}")
            if problem.compared_by == "val_loss" and key in _OF_THE_LOSS:
                raise ConfigError(f"{where}{key}: expected one value; it changes the loss that trials are compared by")
        return replace(self, metric=metric)

    def to_dict(self) -> dict[str, Any]:
        """Return the content of a complete sweep file, for either program."""
        values: dict[str, Any] = {"program": "pushforward", **self.head, "method": self.method}
        target = {} if self.target is None else {"target": self.target}
        values["metric"] = {"name": self.metric or next(iter(METRICS)), "goal": "minimize", **target}
        values["parameters"] = {p.key: p.to_dict() for p in self.parameters}
        if self.hyperband is not None:
            values["early_terminate"] = dict(self.hyperband.spec)
        if self.run_cap is not None:
            values["run_cap"] = self.run_cap
        values["command"] = _COMMAND
        return values

    def to_yaml(self) -> str:
        """Return the text of a sweep file; :func:`read_space` reads back an equal space."""
        text: str = yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)
        return text


def default_space(rows: int, *, is_toy: bool) -> str:
    """Return the text of the default sweep file for this number of training rows; its head says what it is for."""
    size = "large" if is_toy or rows >= 6_000 else "medium" if rows >= 600 else "small"
    return (_SPACES / f"{size}.yaml").read_text(encoding="utf-8")


def space_for(problem: "Problem") -> str:
    """Return the text of the default sweep file for a problem: its metric, and the keys that have an effect on it."""
    rows = problem.training_rows
    text = default_space(rows or 0, is_toy=rows is None)
    metric = next(name for name, number in METRICS.items() if number == problem.compared_by)
    lines = text.replace(f"name: {next(iter(METRICS))}", f"name: {metric}").splitlines()
    keys = [line.strip().partition(":")[0] if line.startswith("  ") else "" for line in lines]
    kept = [line for line, key in zip(lines, keys, strict=True) if not key or has_effect(problem.kind, key)]
    return "\n".join(kept) + "\n"


def with_constants(text: str, constants: Sequence[Parameter]) -> str:
    """Add constants to the text of a sweep file, first below ``parameters``; its comments are kept."""
    replaced = {f"{p.key}:" for p in constants}
    lines = [line for line in text.splitlines() if line.strip().partition(" ")[0] not in replaced]
    at = lines.index("parameters:") + 1
    added = [
        "  " + yaml.safe_dump({p.key: p.to_dict()}, default_flow_style=None, width=10_000, allow_unicode=True).strip()
        for p in constants
    ]
    return "\n".join((*lines[:at], *added, *lines[at:])) + "\n"


def typed_constants(overrides: Sequence[str], **options: Any) -> tuple[Parameter, ...]:
    """Return constants from ``key=value`` arguments and options, with values of the right type.

    Raises:
        ConfigError: If a key is unknown or a value is out of its bounds.
    """
    source = None if any(text.partition("=")[0].strip() in ("data", "data.source") for text in overrides) else "moons"
    flat = load_config(source, overrides=overrides, **options).flat()
    keys = [_full_key(text.partition("=")[0].strip()) for text in overrides]
    keys += [_full_key(key) for key, value in options.items() if value is not None]
    return tuple(Parameter.constant(key, flat[key]) for key in dict.fromkeys(keys) if flat[key] is not None)


def read_space(path: Path) -> SweepSpace:
    """Read a sweep file; see :func:`parse_space`.

    Raises:
        ConfigError: Also if the file cannot be read.
    """
    return parse_space(read_text(path, "the sweep"), str(path))


def parse_space(text: str, name: str) -> SweepSpace:
    """Read the text of a sweep file.

    Args:
        text: YAML.
        name: Name of the file in error messages.

    Raises:
        ConfigError: If something is unknown, unsupported, or has another meaning for ``wandb sweep``.
    """
    file = _File(text, name)
    top = file.values
    for key in top:
        where = file.at(key)
        if key in _REFUSED:
            raise ConfigError(f"{where}{key} is not supported: {_REFUSED[key]}")
        if key not in _KNOWN:
            raise ConfigError(f"{where}{unknown_name('key', str(key), _KNOWN)}")
    if top.get("program", "pushforward") != "pushforward":
        raise ConfigError(f"{file.at('program')}program: expected pushforward; got '{top['program']}'")
    method = top.get("method")
    if method not in METHODS:
        got = "nothing" if method is None else f"'{method}'"
        raise ConfigError(f"{file.at('method')}method: expected {', '.join(METHODS)}; got {got}")
    entries = top.get("parameters")
    if not isinstance(entries, dict) or not entries:
        raise ConfigError(f"{file.at('parameters')}parameters: expected keys such as flow.layers with their values")
    parameters = [
        Parameter.read(_full_key(str(key)), spec, file.at("parameters", key)) for key, spec in entries.items()
    ]
    parameters = [*_command_constants(top.get("command"), file.at("command")), *parameters]
    seen: set[str] = set()
    for parameter in parameters:
        if parameter.key in seen:
            raise ConfigError(f"{parameter.where}'{parameter.key}' is set twice")
        seen.add(parameter.key)
    project = top.get("project")
    if project and "wandb.project" not in seen:
        parameters.append(Parameter.constant("wandb.project", project, file.at("project")))
    cap = top.get("run_cap")
    if cap is not None and (not isinstance(cap, int) or isinstance(cap, bool) or cap < 1):
        raise ConfigError(f"{file.at('run_cap')}run_cap: expected a whole number above 0; got {cap!r}")
    pruning = top.get("early_terminate")
    return SweepSpace(
        parameters=tuple(parameters),
        method=method,
        hyperband=None if pruning is None else Hyperband.read(pruning, file.at, most=VALIDATIONS),
        run_cap=cap,
        target=_target(top.get("metric"), file),
        metric=str((top.get("metric") or {}).get("name", "")),
        head={key: top[key] for key in _PASSED_ON if key in top},
    )


class _File:
    """The values of a YAML file, and the line of each key of the first three levels."""

    def __init__(self, text: str, name: str) -> None:
        self.name = name
        self._lines: dict[tuple[Any, ...], int] = {}
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            if node is not None:
                self._find_lines(node, ())
            # The same loader as in wandb, for the same values: it reads 1e-4 as text and off as false.
            values = loader.construct_document(node) if node is not None else None
        except yaml.YAMLError as error:
            raise yaml_error(name, error) from None
        finally:
            loader.dispose()
        if not isinstance(values, dict):
            raise ConfigError(f"{name}: expected a sweep: method, metric and parameters")
        self.values: dict[Any, Any] = values

    def at(self, *keys: Any) -> str:
        """Return file and line of a key, or of the nearest key above it, as a prefix of a message."""
        known = next((keys[:n] for n in range(len(keys), 0, -1) if keys[:n] in self._lines), None)
        return f"{self.name} line {self._lines[known]}: " if known else f"{self.name}: "

    def _find_lines(self, node: yaml.Node, path: tuple[Any, ...]) -> None:
        if not isinstance(node, yaml.MappingNode) or len(path) > 2:
            return
        for key, value in node.value:
            inner = (*path, key.value)
            if inner in self._lines and key.value != "<<":
                raise ConfigError(f"{self.name} line {key.start_mark.line + 1}: '{key.value}' is set twice")
            self._lines[inner] = key.start_mark.line + 1
            self._find_lines(value, inner)


def _command_constants(command: Any, where: str) -> list[Parameter]:
    """Return the constants that the command of the file has between ``fit`` and the parameters."""
    if command is None:
        return []
    usual = f"as in command: [{', '.join(repr(part) for part in _COMMAND)}]"
    parts = [str(part) for part in command] if isinstance(command, list) else []
    if "fit" not in parts or not any(part in ("pushforward", "${program}") for part in parts[: parts.index("fit")]):
        raise ConfigError(f"{where}command: expected pushforward fit, {usual}")
    if _ARGUMENTS not in parts:
        raise ConfigError(f"{where}command: expected {_ARGUMENTS}, which becomes key=value, {usual}")
    constants = []
    for part in parts[parts.index("fit") + 1 :]:
        if part == _ARGUMENTS:
            continue
        if part.startswith(("-", "${")):
            raise ConfigError(f"{where}command: '{part}' is not supported; write key=value, such as wandb=offline")
        key, equals, value = part.partition("=")
        constants.append(Parameter.constant(*(_full_key(key), value) if equals else ("data.source", part), where))
    return constants


def _target(metric: Any, file: _File) -> float | None:
    """Check that the metric is one of validation; return the value that ends the sweep, None if there is none."""
    if metric is None:
        return None
    at, names = f"{file.at('metric')}metric: ", list(METRICS)
    if not isinstance(metric, dict):
        raise ConfigError(f"{at}expected name: {names[0]}, goal: minimize")
    for key in metric:
        if key not in ("name", "goal", "target"):
            where = f"{file.at('metric', key)}metric: "
            raise ConfigError(f"{where}{key} is not supported; known: name, goal, target")
    name, goal, target = metric.get("name"), metric.get("goal", "minimize"), metric.get("target")
    if name not in METRICS:
        why = "test rows never choose" if "test" in str(name) else "the best validation so far"
        raise ConfigError(
            f"{file.at('metric', 'name')}metric: name: expected {' or '.join(names)} ({why}); got '{name}'"
        )
    if goal != "minimize":
        raise ConfigError(f"{file.at('metric', 'goal')}metric: goal: expected minimize; got '{goal}'")
    if target is not None and (isinstance(target, bool) or not isinstance(target, int | float)):
        raise ConfigError(f"{file.at('metric', 'target')}metric: target: expected a number; got {target!r}")
    return None if target is None else float(target)


def _check_comparable(parameter: Parameter, constants: Mapping[str, Any]) -> None:
    """Refuse to search a parameter that would make the validation NLLs of the trials incomparable."""
    if parameter.is_constant:
        return
    key, why = parameter.key, ""
    if key.startswith("data."):
        why = "it changes the rows that trials are compared on"
    elif key == "seed" and constants.get("data.seed", "auto") == "auto":
        why = "it changes the split; set data.seed to keep the split while seed varies"
    elif key == "device":
        why = "the same time means another budget on another device"
    elif key.startswith("wandb."):
        why = "it changes where trials are recorded, not what they are"
    if why:
        raise ConfigError(f"{parameter.where}{key}: expected one value; {why}")


def _load(overrides: Sequence[str], where: str) -> Config:
    try:
        return load_config(overrides=overrides)
    except ConfigError as error:
        raise ConfigError(f"{where}{error}") from None


def _full_key(key: str) -> str:
    """Return the full key: the name of a section alone, such as ``flow``, is short for one of its keys."""
    section = Config.model_fields.get(key)
    short = getattr(section.annotation, "shorthand", "") if section is not None else ""
    return f"{key}.{short}" if short else key
