"""Read text files of the user, with one-line errors, also for YAML."""

from pathlib import Path

import yaml

from pushforward.common.errors import ConfigError, reason


def read_text(path: Path, what: str) -> str:
    """Read a UTF-8 text file.

    Args:
        path: The file.
        what: Kind of file, for the error message.

    Raises:
        ConfigError: If it cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot read {what}: {reason(error)}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: expected UTF-8 text; byte {error.start} is not") from None


def yaml_error(name: str, error: yaml.YAMLError) -> ConfigError:
    """Make a one-line error from a YAML error, with the line number if known."""
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        line = f" line {mark.line + 1}" if mark else ""
        return ConfigError(f"{name}{line}: not valid YAML: {error.problem or error.context}")
    return ConfigError(f"{name}: not valid YAML: {' '.join(str(error).split())}")
