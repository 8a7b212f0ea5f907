"""Methods of `pushforward benchmark`: baselines, flows of other libraries, those of plugins, ``pushforward fit``.

A method is identified by its *spec*, a text: ``gaussian``, ``nflows:nsf-ar``, the name of one of a plugin, ``auto``, or
arguments of ``pushforward fit`` such as ``flow=nsf-ar flow.bins=16``.
"""

import functools
import hashlib
import importlib.util
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from pushforward.common.errors import ConfigError
from pushforward.common.plugins import load_plugins
from pushforward.common.registry import Registry
from pushforward.common.text import did_you_mean
from pushforward.config.read import load_config
from pushforward.config.schema import Config

Kind = Literal["baseline", "peer", "plugin", "fit"]
Function = TypeVar("Function", bound=Callable[..., Any])

AUTO = "auto"
"""``pushforward fit`` with its defaults."""

BASELINE_LABELS = {"gaussian": "Gaussian", "gaussian-mixture": "Gaussian mixture", "kde": "Kernel density"}
"""Baselines, and their names in a table."""

PEERS = {"nflows": ("nsf-ar", "nsf-c", "maf"), "zuko": ("nsf", "maf")}
"""Flows of other libraries, by library."""

METHODS: Registry[Callable[..., Any]] = Registry(
    "method",
    {
        **dict.fromkeys(BASELINE_LABELS, "pushforward.evaluate.baselines:fit_baselines"),
        **{
            f"{library}:{flow}": f"pushforward.benchmark.peers:build_{library}"
            for library in PEERS
            for flow in PEERS[library]
        },
    },
)
"""What fits a method, by its name: all baselines at once, the flow of a peer, or a function that was added."""

MATCHED = "matched"
"""Suffix of a peer with the sizes and the dropout that ``pushforward fit`` chooses for the data."""

_SYNONYMS = {"gmm": "gaussian-mixture", "mixture": "gaussian-mixture", "kernel-density": "kde"}
_SYNONYMS |= {"nflows:nsf": "nflows:nsf-ar", "zuko:nsf-ar": "zuko:nsf"}
_PEER_KEYS = (
    *("flow.layers", "flow.hidden", "flow.blocks", "flow.bins", "flow.bound", "flow.dropout"),
    *("train.learning_rate", "train.batch_size", "train.gradient_clip", "train.steps", "train.seconds"),
)
# Keys that the benchmark sets: a method that changed them would score other rows, or write elsewhere.
_RESERVED = ("data", "target", "seed", "device", "track", "wandb", "train.evaluate")
_FILE = ("recipe:", ".yaml", ".yml")


def register_method(name: str) -> Callable[[Function], Function]:
    """Return a decorator that adds a method under a name, for ``pushforward benchmark --methods name``.

    It decorates a function that is called with the training rows ``(n, D)`` and the validation rows ``(m, D)``, float64
    NumPy arrays in the units of the data, and with the keywords ``seed``, ``seconds`` and ``steps``, the budget of
    every fit, one of which is None. It returns an object whose ``log_prob(rows)`` gives the log-densities ``(k,)`` of
    rows ``(k, D)``, in nats and in the units of the data; attributes ``parameters`` and ``steps``, whole numbers, are
    shown in the table. Each fit is a process of its own. An error in it is one failed run.

    Args:
        name: The name.
    """
    return METHODS.register(name)


class UnknownMethodError(ConfigError):
    """A name that no method has; it may be one of a plugin that is not loaded."""


@dataclass(frozen=True)
class Method:
    """A method that fits a density.

    Attributes:
        spec: The text that identifies it.
        kind: ``baseline``, ``peer`` (a flow of another library), ``plugin`` or ``fit`` (``pushforward fit``).
        library: Library of a peer.
        flow: Flow of a peer.
        is_matched: Whether a peer has the sizes and the dropout that ``pushforward fit`` chooses for the data.
        files: YAML files and recipes of a fit; ``{set}`` in one is replaced by the name of the data set.
        overrides: ``key=value`` of a peer or a fit.
    """

    spec: str
    kind: Kind
    library: str = ""
    flow: str = ""
    is_matched: bool = False
    files: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """Its name in a table."""
        if self.kind == "baseline":
            return BASELINE_LABELS[self.spec]
        if self.kind == "fit":
            return "pushforward fit" if self.spec == AUTO else self.spec
        if self.kind == "plugin":
            return self.spec
        return " ".join([f"{self.library} {self.flow}", *([MATCHED] if self.is_matched else []), *self.overrides])

    @property
    def slug(self) -> str:
        """Its unique name as part of the name of a folder."""
        plain = re.sub(r"[^a-z0-9]+", "-", self.spec.lower()).strip("-")
        if not self.overrides and not self.files:
            return plain
        return f"{plain[:40].strip('-')}-{hashlib.sha256(self.spec.encode()).hexdigest()[:6]}"

    @property
    def has_own_budget(self) -> bool:
        """Whether its keys set the steps or the seconds of training."""
        return any(text.startswith(("train.steps=", "train.seconds=")) for text in self.overrides)

    @property
    def missing_package(self) -> str:
        """The package that it needs and that is not installed; empty if none."""
        return self.library if self.library and importlib.util.find_spec(self.library) is None else ""

    def files_for(self, name: str) -> tuple[str, ...]:
        """Return its files and recipes for a data set."""
        return tuple(file.replace("{set}", name) for file in self.files)

    def config(self, source: str, name: str = "", overrides: Sequence[str] = ()) -> Config:
        """Return the configuration of its fit.

        Args:
            source: The data set.
            name: Replacement of ``{set}`` in the names of files.
            overrides: Keys that the benchmark sets.

        Raises:
            ConfigError: If a file, a key or a value is wrong.
        """
        own = [f"flow={'nsf-ar' if self.flow == 'nsf' else self.flow}"] if self.kind == "peer" else []
        files = [Path(file) for file in self.files_for(name or source)]
        return load_config(source, files, [*own, *self.overrides, *overrides])


def method_names() -> list[str]:
    """Return the names of all methods, those of plugins too."""
    load_plugins(warnings.warn)
    return [*METHODS.names(), AUTO]


def known_methods() -> str:
    """Return the names of all methods, in a line."""
    return f'{", ".join(method_names())}, or arguments of pushforward fit such as "flow=maf flow.layers=8"'


def parse_methods(texts: Sequence[str]) -> tuple[Method, ...]:
    """Read methods from comma-separated lists.

    Raises:
        ConfigError: If a method is unknown, or a key of it is wrong.
    """
    methods = [parse_method(spec) for text in texts for spec in _split_list(text)]
    if not methods:
        raise ConfigError(f"--methods: expected {known_methods()}; got nothing")
    return tuple({method.spec: method for method in methods}.values())


@functools.lru_cache(maxsize=1024)
def parse_method(spec: str) -> Method:
    """Read a method.

    Raises:
        ConfigError: If a key of it is wrong.
        UnknownMethodError: If it is unknown.
    """
    words, known = spec.split(), method_names()
    name = words[0].lower().replace("_", "-")
    name = name if name in known else _SYNONYMS.get(name, name)
    library, _, rest = name.partition(":")
    if name == AUTO and len(words) > 1:  # "auto KEY=VALUE" is the same as "KEY=VALUE"
        return parse_method(" ".join(words[1:]))
    if library in PEERS:
        method = _peer(library, rest, words[1:])
    elif name in known:
        if len(words) > 1:
            raise ConfigError(f"--methods: {name} takes no keys; got '{' '.join(words[1:])}'")
        method = Method(name, "fit" if name == AUTO else "baseline" if name in BASELINE_LABELS else "plugin")
    elif all("=" in word or _is_file(word) for word in words):
        files = tuple(word for word in words if _is_file(word))
        method = Method(" ".join(words), "fit", files=files, overrides=tuple(w for w in words if w not in files))
    else:
        wrong = next(word for word in words if "=" not in word)
        hint = did_you_mean(wrong.lower(), known)
        raise UnknownMethodError(f"--methods: unknown method '{wrong}'; {hint}known: {known_methods()}")
    _check_keys(method)
    return method


def recorded_method(spec: str) -> Method:
    """Read a method that has results, also one of a plugin that is not loaded now."""
    try:
        return parse_method(spec)
    except UnknownMethodError:
        return Method(spec, "plugin")


def _peer(library: str, rest: str, overrides: Sequence[str]) -> Method:
    flow, _, ending = rest.partition(":")
    if flow not in PEERS[library]:
        hint = did_you_mean(flow, PEERS[library])
        raise ConfigError(f"--methods: unknown flow '{flow}' of {library}; {hint}known: {', '.join(PEERS[library])}")
    if ending not in ("", MATCHED):
        raise ConfigError(f"--methods: {library}:{flow}: expected nothing or ':{MATCHED}' after it; got ':{ending}'")
    spec = " ".join([f"{library}:{rest}", *overrides])
    return Method(spec, "peer", library, flow, ending == MATCHED, overrides=tuple(overrides))


def _check_keys(method: Method) -> None:
    for text in method.overrides:
        key = text.partition("=")[0]
        if any(key == reserved or key.startswith(f"{reserved}.") for reserved in _RESERVED):
            raise ConfigError(f"--methods: {key} is set by the benchmark; leave it out of '{method.spec}'")
        if method.kind == "peer" and key not in _PEER_KEYS:
            raise ConfigError(
                f"--methods: '{key}' is no key of {method.library}:{method.flow}; {did_you_mean(key, _PEER_KEYS)}"
                f"it takes {', '.join(_PEER_KEYS)}"
            )
    if not any("{set}" in file for file in method.files):
        method.config("iris")


def _is_file(word: str) -> bool:
    return word.startswith(_FILE[0]) or (word.endswith(_FILE[1:]) and "=" not in word)


def _split_list(text: str) -> list[str]:
    """Split a list at its commas, except those within brackets."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "[(") - (letter in ")]")
        if letter == "," and depth <= 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [" ".join(part.split()) for part in parts if part.strip()]
