"""Targets by name, or from the user's Python module."""

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from pushforward.common.errors import DataError
from pushforward.common.text import did_you_mean
from pushforward.datasets.targets.base import FunctionTarget, Target, check_features, one_line
from pushforward.datasets.targets.energies import U1, U2, U3, U4, double_well
from pushforward.datasets.targets.gaussian import Banana, Funnel, GaussianChain, GaussianMixture
from pushforward.datasets.targets.names import PREFIX, TARGETS, targets

_PLANAR: dict[str, Callable[[], Target]] = {
    "u1": U1,
    "u2": U2,
    "u3": U3,
    "u4": U4,
    "double-well": lambda: double_well("double-well", 2),
    "double-well-2": lambda: double_well("double-well-2", 2),
}
_ANY_FEATURES: dict[str, Callable[[int], Target]] = {
    "many-well": lambda features: double_well("many-well", features),
    "gaussian": GaussianChain,
    "gaussian-mixture": GaussianMixture,
    "funnel": Funnel,
    "banana": Banana,
}


def load_target(
    source: str,
    features: int | None = None,
    *,
    bounds: tuple[float, float] | None = None,
    spread: float | None = None,
) -> Target:
    """Load a target density.

    Args:
        source: ``target:NAME``, one of ``targets()``; or ``target:MODULE:FUNCTION``, where the module is found as
            Python finds it, in the current directory first, and the function, or method as in ``law.log_prob``, takes
            points ``(n, D)`` and returns log-densities ``(n,)`` in nats, up to a constant. A ``Target`` found there,
            or a class of them, is taken as it is. ``target:`` may be left out.
        features: Number of coordinates; a function does not tell its own, a name has a default.
        bounds: The box (low, high)^D a function's density is cut to; only for functions.
        spread: About how far from the origin a coordinate's values lie, 1 unless told; only for functions.

    Raises:
        DataError: There is no such target, or not with so many features; the message is one line.

    Example:
        >>> load_target("target:funnel", features=20).features
        20
    """
    rest = source.removeprefix(PREFIX)
    if features is not None:
        check_features(source, features)
    module, colon, attribute = rest.partition(":")
    if colon:
        return _users(source, module.strip(), attribute.strip(), features, bounds, spread)
    if bounds is not None or spread is not None:
        raise DataError(f"{source}: its bounds and spread are known; leave target.bounds and target.spread out")
    return _named(rest, features)


def _named(text: str, features: int | None) -> Target:
    name = text.strip().lower().replace("_", "-")
    if name in _PLANAR:
        if features not in (None, 2):
            raise DataError(f"{PREFIX}{name}: has 2 features; got {features}")
        return _PLANAR[name]()
    if name in _ANY_FEATURES:
        return _ANY_FEATURES[name](TARGETS[name].features if features is None else features)
    raise DataError(
        f"unknown target {text!r}; {did_you_mean(text, TARGETS)}known: {', '.join(TARGETS)}; "
        f"or {PREFIX}MODULE:FUNCTION of your own"
    )


def _users(
    source: str,
    module: str,
    attribute: str,
    features: int | None,
    bounds: tuple[float, float] | None,
    spread: float | None,
) -> Target:
    if not module or not all(part.isidentifier() for part in attribute.split(".")):
        raise DataError(f"{source}: expected {PREFIX}MODULE:FUNCTION, as in {PREFIX}posterior:log_density")
    found: Any = _found(source, _imported(source, module), attribute)
    if isinstance(found, type):
        found = _built(source, found, features)
    if isinstance(found, Target):
        given = getattr(found, "features", None)
        check_features(source, given)
        if features not in (None, given):
            raise DataError(f"{source}: has {given} features; got {features}")
        if bounds is not None or spread is not None:
            raise DataError(f"{source}: is a Target; set its bounds and spread in {module}")
        found.name = found.name or attribute
        return found
    if not callable(found):
        raise DataError(f"{source}: expected a function or a Target; got {type(found).__name__}")
    if features is None:
        raise DataError(f"{source}: how many coordinates does a point have? say target.features=D")
    return FunctionTarget(
        cast(Callable[[Tensor], Tensor], found),
        features,
        name=f"{module}:{attribute}",
        bounds=bounds,
        spread=1.0 if spread is None else spread,
    )


def _built(source: str, found: type[Any], features: int | None) -> Target:
    if not issubclass(found, Target):
        raise DataError(f"{source}: expected a function or a Target; got the class {found.__name__}")
    # A class either fixes its features or is told them.
    arguments = () if features is None or isinstance(getattr(found, "features", None), int) else (features,)
    try:
        return found(*arguments)
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{source}: building it raised {one_line(error)}") from error


def _imported(source: str, module: str) -> Any:
    with _current_directory_importable():
        try:
            return importlib.import_module(module)
        except ModuleNotFoundError as error:
            # Only where it is this module, not one that it imports in turn, is the place to look at fault.
            if error.name is not None and (module == error.name or module.startswith(f"{error.name}.")):
                raise DataError(
                    f"{source}: no module {error.name!r} in {Path.cwd()} nor among the installed ones; "
                    f"run the command in the folder of the module"
                ) from error
            raise DataError(f"{source}: importing {module} raised {one_line(error)}") from error
        except (Exception, SystemExit) as error:
            raise DataError(f"{source}: importing {module} raised {one_line(error)}") from error


def _found(source: str, module: Any, attribute: str) -> Any:
    found, where = module, getattr(module, "__file__", None) or module.__name__
    # A method of an object, as in posterior:law.log_prob, is a function as well.
    for part in attribute.split("."):
        if not hasattr(found, part):
            public = [name for name in dir(found) if not name.startswith("_")]
            raise DataError(f"{source}: {where} has no {part!r}; {did_you_mean(part, public)}".rstrip("; "))
        found, where = getattr(found, part), part
    return found


@contextmanager
def _current_directory_importable() -> Iterator[None]:
    here = str(Path.cwd())
    sys.path.insert(0, here)
    # A module that was written a moment ago may not be in the finders' lists yet.
    importlib.invalidate_caches()
    try:
        yield
    finally:
        # By value: the module's own code may have put something in front.
        if here in sys.path:
            sys.path.remove(here)


__all__ = ["load_target", "targets"]
