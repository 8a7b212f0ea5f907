"""The configuration as the user gives it, in YAML files and ``key=value`` arguments."""

from typing import TYPE_CHECKING

from pushforward.common.lazy import lazy

if TYPE_CHECKING:
    from pushforward.config.read import load_config as load_config
    from pushforward.config.schema import Config as Config

__getattr__, __dir__ = lazy(
    "pushforward.config",
    {
        "read": "load_config",
        "schema": "Config",
    },
)
