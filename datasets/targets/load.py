"""Load targets by name, or from a Python module of the user."""

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from pushforward.common.errors import DataError
from pushforward.common.text import did_you_mean
from pushforward.datasets.targets.base import FunctionTarget, Target, check_features, describe_error
from pushforward.datasets.targets.energies import U1, U2, U3, U4, double_well
from pushforward.datasets.targets.gaussian import Banana, Funnel, GaussianChain, GaussianMixtureTarget
from pushforward.datasets.targets.names import PREFIX, TARGETS

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
    "gaussian-mixture": GaussianMixtureTarget,
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
        source: ``target:NAME``, one of ``targets()``; or ``target:MODULE:FUNCTION``. The module is imported with the
            current directory first on the path. The function, or method as in ``posterior.log_prob``, takes points
            ``(n, D)`` and returns log-densities ``(n,)`` in nats, up to a constant; it may also be a ``Target``, or a
            subclass. The prefix ``target:`` is optional.
        features: Number of coordinates. Required for a function; named targets have a default.
        bounds: The box (low, high)^D that the density is restricted to; only for functions.
        spread: Typical distance of a coordinate from the origin, 1 by default; only for functions.

    Raises:
        DataError: If there is no such target, or not with this number of features; the message is one line.

    Example:
        >>> load_target("target:funnel", features=20).features
        20
    """
    rest = source.removeprefix(PREFIX)
    if features is not None:
        check_features(source, features)
    module, colon, attribute = rest.partition(":")
    if colon:
        return _from_module(source, module.strip(), attribute.strip(), features, bounds, spread)
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


def _from_module(
    source: str,
    module: str,
    attribute: str,
    features: int | None,
    bounds: tuple[float, float] | None,
    spread: float | None,
) -> Target:
    if not module or not all(part.isidentifier() for part in attribute.split(".")):
        raise DataError(f"{source}: expected {PREFIX}MODULE:FUNCTION, as in {PREFIX}posterior:log_density")
    found: Any = _get_attribute(source, _import(source, module), attribute)
    if isinstance(found, type):
        found = _instantiate(source, found, features)
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
        raise DataError(f"{source}: the number of coordinates is unknown; set target.features=D")
    return FunctionTarget(
        cast(Callable[[Tensor], Tensor], found),
        features,
        name=f"{module}:{attribute}",
        bounds=bounds,
        spread=1.0 if spread is None else spread,
    )


def _instantiate(source: str, found: type[Any], features: int | None) -> Target:
    if not issubclass(found, Target):
        raise DataError(f"{source}: expected a function or a Target; got the class {found.__name__}")
    # A class either has a fixed number of features or takes it as its argument.
    arguments = () if features is None or isinstance(getattr(found, "features", None), int) else (features,)
    try:
        return found(*arguments)
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{source}: building it raised {describe_error(error)}") from error


def _import(source: str, module: str) -> Any:
    with _current_directory_importable():
        try:
            return importlib.import_module(module)
        except ModuleNotFoundError as error:
            # Only if this module itself is missing, not one that it imports.
            if error.name is not None and (module == error.name or module.startswith(f"{error.name}.")):
                raise DataError(
                    f"{source}: no module {error.name!r} in {Path.cwd()} nor among the installed ones; "
                    f"run the command in the folder of the module"
                ) from error
            raise DataError(f"{source}: importing {module} raised {describe_error(error)}") from error
        except (Exception, SystemExit) as error:
            raise DataError(f"{source}: importing {module} raised {describe_error(error)}") from error


def _get_attribute(source: str, module: Any, attribute: str) -> Any:
    found, where = module, getattr(module, "__file__", None) or module.__name__
    # The attribute may be a method of an object, as in MODULE:posterior.log_prob.
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
    # The import system may not have noticed a module written a moment ago.
    importlib.invalidate_caches()
    try:
        yield
    finally:
        # By value: the imported module may have inserted paths before it.
        if here in sys.path:
            sys.path.remove(here)
