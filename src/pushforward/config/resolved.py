"""From the configuration that was asked for to the one that was resolved, as a run folder keeps it; unused keys."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from pushforward.common.errors import ConfigError
from pushforward.common.text import nearest
from pushforward.config.schema import Config, Section
from pushforward.train.options import Options

_OBJECTIVE = ("gradient", "alpha", "annealing", "importance_samples", "energy_weight")


def resolved(config: Config, options: Options, uses: Callable[[str], bool]) -> Config:
    """Return a configuration with the options of a fit in place of ``auto``; keys that it does not use stay.

    ``train.compile`` and ``train.precision`` stay too: a resumed fit may run on another device.
    """
    groups: dict[str, dict[str, Any]] = {
        "data": {"source": options.data.source} | ({} if options.data.dequantize else {"dequantize": "off"}),
        "target": {"features": options.target.features},
        "flow": asdict(options.flow),
        "vae": {} if options.vae is None else asdict(options.vae),
        "train": asdict(options.train)
        | {"objective": options.objective.name}
        | {key: getattr(options.objective, key) for key in _OBJECTIVE},
    }
    updates = {}
    for name, values in groups.items():
        section: Section = getattr(config, name)
        kept = {
            key: value
            for key, value in values.items()
            if value not in (None, "") and uses(f"{name}.{key}") and key in type(section).model_fields
        }
        updates[name] = section.model_copy(update=kept)
    return config.model_copy(update=updates)


def given_keys(config: Config) -> dict[str, Any]:
    """The keys whose values are not the defaults, with these values."""
    found: dict[str, Any] = {}
    for name in type(config).model_fields:
        section = getattr(config, name)
        if isinstance(section, Section):
            for key, field in type(section).model_fields.items():
                if getattr(section, key) != field.default:
                    found[f"{name}.{key}"] = getattr(section, key)
    return found


def unused_keys(config: Config, uses: Callable[[str], bool], what: str) -> list[str]:
    """One line for each key that was given and has no effect, with the nearest key that has one.

    Args:
        config: The configuration as it was asked for.
        uses: Whether a fit uses a key.
        what: The fit in words, as in ``flow=maf``.
    """
    known = [f"{n}.{k}" for n, s in config.model_dump().items() if isinstance(s, dict) for k in s if uses(f"{n}.{k}")]
    lines = []
    for key in given_keys(config):
        if key.startswith("wandb.") or uses(key):
            continue
        group, _, name = key.partition(".")
        same = [other for other in known if other.partition(".")[2] == name]
        near = (
            same[0] if same else nearest(key, [other for other in known if other.startswith(f"{group}.")] or known, 0)
        )
        lines.append(f"{key}: has no effect on {what}; the nearest key that has one is {near}")
    return lines


def refuse_unused_keys(config: Config, uses: Callable[[str], bool], what: str) -> None:
    """Raise a ``ConfigError`` if a key was given that has no effect."""
    lines = unused_keys(config, uses, what)
    if lines:
        raise ConfigError(lines[0])
