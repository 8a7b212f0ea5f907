"""From the configuration that was asked for to the one that was resolved, as a run folder keeps it; unused keys."""

from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pushforward.common.errors import ConfigError
from pushforward.config.schema import Config, Section
from pushforward.train.objectives.registry import OBJECTIVE_KEYS
from pushforward.train.options import Options

if TYPE_CHECKING:
    from pushforward.train.problems.base import Problem


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
        | {key: getattr(options.objective, key) for key in OBJECTIVE_KEYS},
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


def unused_keys(config: Config, uses: Callable[[str], bool]) -> list[str]:
    """The keys that were given and have no effect.

    Args:
        config: The configuration as it was asked for.
        uses: Whether a fit uses a key.
    """
    return [key for key in given_keys(config) if not key.startswith("wandb.") and not uses(key)]


def refuse_unused_keys(config: Config, problem: "Problem") -> None:
    """Raise a ``ConfigError`` if a key was given that has no effect on a fit; the message says on what it has one."""
    for key in unused_keys(config, problem.uses):
        from pushforward.train.problems.effects import without_effect

        raise ConfigError(without_effect(problem, key))
