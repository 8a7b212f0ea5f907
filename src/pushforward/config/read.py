"""Read a :class:`Config` from YAML files and ``key=value`` arguments, with one-line errors.

YAML is read node by node, so that every scalar stays text (PyYAML reads ``1e-4`` as text, ``off`` as ``False`` and
``010`` as 8) and every key keeps its line number for the error message.
"""

import itertools
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin

import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from pushforward.common.errors import ConfigError
from pushforward.common.plugins import load_plugins
from pushforward.common.text import nearest, shorten
from pushforward.config.recipe import RECIPE_PREFIX, recipe_file
from pushforward.config.schema import Config, Expected, Section, UnknownName
from pushforward.config.text_files import read_text, yaml_error

# Names of keys in other tools.
_SYNONYMS = {
    "lr": "train.learning_rate",
    "bs": "train.batch_size",
    "batch": "train.batch_size",
    "epochs": "train.steps",
    "iterations": "train.steps",
    "max_steps": "train.steps",
    "dtype": "train.precision",
    "num_layers": "flow.layers",
    "hidden_features": "flow.hidden",
    "num_bins": "flow.bins",
    "tail_bound": "flow.bound",
    "warmup_steps": "train.warmup",
    "context": "data.given",
    "condition": "data.given",
}


class KeyDescription(NamedTuple):
    """A key with its default and its description."""

    key: str
    default: str
    description: str


class _Assignment(NamedTuple):
    key: str
    value: Any
    where: str


def load_config(
    source: str | None = None,
    files: Sequence[Path | str] = (),
    overrides: Sequence[str] = (),
    **options: Any,
) -> Config:
    """Read a configuration: defaults, then files in order, then ``key=value`` arguments, then options.

    Args:
        source: The DATA argument, the same as ``data.source``.
        files: YAML files, nested or with dotted keys, and recipes, as in ``recipe:nsf-ar/power``; later ones win.
        overrides: ``key=value`` arguments; later ones win.
        **options: Values of command-line options under their top-level key (``seed``, ``device``, ``wandb``);
            ``None`` means not given.

    Raises:
        ConfigError: If a key or a file is wrong; the message is one line with the key or file and what was expected.

    Example:
        >>> config = load_config("moons", overrides=["flow=maf", "train.learning_rate=1e-3", "seed=1e4"])
        >>> config.flow.name, config.train.learning_rate, config.seed
        ('maf', 0.001, 10000)
    """
    assignments = [assignment for path in files for assignment in _read_file(_file(path))]
    assignments += [_read_override(text) for text in overrides]
    if source is not None:
        assignments.append(_Assignment("data.source", source, ""))
    assignments += [_Assignment(key, value, "") for key, value in options.items() if value is not None]

    return _validated(assignments)


def make_config(source: str, *keys: Mapping[str, Any], defaults: Mapping[str, Any] | None = None) -> Config:
    """Make a configuration from Python values.

    Args:
        source: The data.
        *keys: Values by key: a whole group as a mapping (``flow={"name": "maf", "layers": 3}``) or by its main key
            (``flow="maf"``), a key with its group (``flow__layers=3``, ``{"flow.layers": 3}``), or alone where no two
            groups have it (``layers=3``). None means not given.
        defaults: Values by full key, where ``keys`` have none.

    Raises:
        ConfigError: If a key or a value is wrong, or a key is set twice; the message is one line.

    Example:
        >>> make_config("moons", {"flow": "maf", "layers": 3, "seconds": 5}).flow.layers
        3
    """
    assignments = [_Assignment(key, value, "") for key, value in (defaults or {}).items()]
    names = {"data.source": "the data"}
    for name, given in itertools.chain.from_iterable(each.items() for each in keys):
        is_group = isinstance(given, Mapping)
        for inner, value in given.items() if is_group else [("", given)]:
            if value is None:
                continue
            spelled = f"{name}.{inner}" if is_group else name
            key = _full_key(_with_group(spelled.replace("__", ".")), "")
            if key in names:
                raise ConfigError(f"{key}: set twice, by {names[key]} and {spelled}; leave one out")
            names[key] = spelled
            assignments.append(_Assignment(key, value, ""))
    return _validated([_Assignment("data.source", source, ""), *assignments])


def _with_group(key: str) -> str:
    """Return a key with its group, if only one group has it."""
    if "." in key or key in _FIELDS or key in _SECTIONS:
        return key
    found = [known for known in _FIELDS if known.partition(".")[2] == key]
    return found[0] if len(found) == 1 else key


def _validated(assignments: Sequence[_Assignment]) -> Config:
    load_plugins(warnings.warn)  # the names that they add are values of keys
    values: dict[str, Any] = {"data": {}}
    origin: dict[str, str] = {}
    for key, value, where in assignments:
        full = _full_key(key, where)
        origin[full] = where
        group, _, name = full.rpartition(".")
        (values.setdefault(group, {}) if group else values)[name] = value
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_describe_first_error(error, origin)) from None


def _file(given: Path | str) -> Path:
    """The path of a file, or of a recipe in the package."""
    name = given.as_posix() if isinstance(given, Path) else given
    return recipe_file(name) if name.startswith(RECIPE_PREFIX) else Path(given)


def describe_keys() -> list[KeyDescription]:
    """List every key with its default and its description, in the order of the configuration."""
    return [
        KeyDescription(key, "" if field.is_required() else _text(field.default), field.description or "")
        for key, field in _FIELDS.items()
    ]


def _leaves() -> Iterator[tuple[str, FieldInfo]]:
    for key, field in Config.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from ((f"{key}.{name}", leaf) for name, leaf in field.annotation.model_fields.items())
        else:
            yield key, field


_FIELDS = dict(_leaves())
_SECTIONS: dict[str, type[Section]] = {
    key: field.annotation
    for key, field in Config.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
}


def _full_key(key: str, where: str) -> str:
    """Return the full key; ``flow`` is short for ``flow.name``."""
    if key in _FIELDS:
        return key
    if key in _SECTIONS:
        if short := _SECTIONS[key].shorthand:
            return f"{key}.{short}"
        raise ConfigError(f"{where}{key}: expected one of its keys, as in {key}.{_first_name(key)}=...")
    raise ConfigError(f"{where}unknown key '{key}'{_suggest(key)}")


def _first_name(section: str) -> str:
    return next(key for key in _FIELDS if key.startswith(f"{section}.")).partition(".")[2]


def _suggest(key: str) -> str:
    name = key.rpartition(".")[2]
    if name in _SYNONYMS:
        return f"; did you mean '{_SYNONYMS[name]}'?"
    same_name = [known for known in _FIELDS if known.rpartition(".")[2] == name]
    by_name = nearest(name, [known.rpartition(".")[2] for known in _FIELDS], 0.7)
    candidates = same_name or [near for near in [nearest(key, _FIELDS)] if near]
    candidates = candidates or [known for known in _FIELDS if known.rpartition(".")[2] == by_name]
    if candidates:
        return f"; did you mean '{candidates[0]}'?"
    section = key.partition(".")[0]
    names = [known for known in _FIELDS if known.startswith(f"{section}.")] or list(Config.model_fields)
    return f"; known: {', '.join(names)}"


def _read_override(text: str) -> _Assignment:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"expected key=value; got '{text}'")
    return _Assignment(key.strip(), value.strip(), "")


def _read_file(path: Path) -> list[_Assignment]:
    text = read_text(path, "the configuration")
    try:
        node = yaml.compose(text, Loader=yaml.BaseLoader)
    except yaml.YAMLError as error:
        raise yaml_error(str(path), error) from None
    if node is None or _is_null(node):
        return []
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError(f"{path} line {node.start_mark.line + 1}: expected keys with values, as in 'seed: 1'")
    return list(_walk(node, "", path, set()))


def _walk(node: yaml.MappingNode, prefix: str, path: Path, seen: set[str]) -> Iterator[_Assignment]:
    for key_node, value_node in node.value:
        where = f"{path} line {key_node.start_mark.line + 1}: "
        key = f"{prefix}{key_node.value}"
        if isinstance(value_node, yaml.MappingNode):
            if key not in _SECTIONS:
                _full_key(key, where)
                raise ConfigError(f"{where}{key}: expected a single value; got keys below it")
            yield from _walk(value_node, f"{key}.", path, seen)
            continue
        if key in _SECTIONS and _is_null(value_node):
            continue
        full = _full_key(key, where)
        if full in seen:
            raise ConfigError(f"{where}'{full}' is set twice")
        seen.add(full)
        yield _Assignment(full, _plain(value_node, full, where), where)


def _plain(node: yaml.Node, key: str, where: str) -> Any:
    if isinstance(node, yaml.SequenceNode):
        if not all(isinstance(item, yaml.ScalarNode) for item in node.value):
            raise ConfigError(f"{where}{key}: expected a flat list of names")
        return [item.value for item in node.value]
    return None if _is_null(node) else node.value


def _is_null(node: yaml.Node) -> bool:
    """Whether it is ``null``; in quotes it is a text."""
    return isinstance(node, yaml.ScalarNode) and node.style is None and node.value in ("", "~", "null", "Null", "NULL")


def _describe_first_error(error: ValidationError, origin: dict[str, str]) -> str:
    """Describe the first error by the ``Expected`` text of its field."""
    first = error.errors(include_url=False)[0]
    loc = [str(part) for part in first["loc"]]
    key = ".".join(loc[:2]) if loc and loc[0] in _SECTIONS else ".".join(loc[:1])
    where = origin.get(key, "")
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, UnknownName):
        return f"{where}{key}: {cause}"
    field = _FIELDS.get(key)
    if field is None:
        return f"{where}{cause or first['msg']}"
    got = "nothing" if first["type"] == "missing" or first["input"] is None else shorten(repr(first["input"]), 60)
    return f"{where}{key}: expected {_expectation(field)}; got {got}"


def _expectation(field: FieldInfo) -> str:
    for item in field.metadata:
        if isinstance(item, Expected):
            return item.text
    expected, choices = _parts(field.annotation)
    return expected or " or ".join(part for part in (", ".join(choices[:-1]), *choices[-1:]) if part)


def _parts(annotation: Any) -> tuple[str, list[str]]:
    """Return the ``Expected`` text and the literal choices of an annotation."""
    if get_origin(annotation) is Literal:
        return "", [str(choice) for choice in get_args(annotation)]
    for item in getattr(annotation, "__metadata__", ()):
        if isinstance(item, Expected):
            return item.text, []
    parts = [_parts(argument) for argument in get_args(annotation)]
    return next((expected for expected, _ in parts if expected), ""), [choice for _, group in parts for choice in group]


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(value) if isinstance(value, tuple) else str(value)
