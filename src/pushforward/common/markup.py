"""Elements of HTML and SVG in which text cannot become markup."""

import html
from collections.abc import Iterable

_VOID = {"meta", "img"}


_SHAPES = {"rect", "line", "circle", "polyline", "polygon"}


class Html(str):
    """Text that is markup already; every other text is escaped."""

    __slots__ = ()


Child = str | Html | None


def join(parts: Iterable[Child]) -> Html:
    """Parts one after the other; plain text is escaped, None is nothing."""
    return Html("".join(_escaped(part) for part in parts))


def tag(element: str, /, *children: Child, **attributes: str | int | float | bool | None) -> Html:
    """An element.

    Args:
        element: Its name.
        *children: Text and elements inside.
        **attributes: Attributes by name; ``class_`` is ``class``, underscores are hyphens, but for the names that
            SVG writes in camel case. None and False leave one out, True gives it no value.

    Example:
        >>> print(tag("a", "R & D", href="#<x>", aria_label="about"))
        <a href="#&lt;x&gt;" aria-label="about">R &amp; D</a>
    """
    out = [element]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        written = key.rstrip("_").replace("_", "-")
        out.append(written if value is True else f'{written}="{html.escape(str(value), quote=True)}"')
    inside = join(children)
    if element in _VOID:
        return Html(f"<{' '.join(out)}>")
    # SVG's elements are closed in short where nothing is in them.
    short = element in _SHAPES and not inside
    return Html(f"<{' '.join(out)}/>" if short else f"<{' '.join(out)}>{inside}</{element}>")


def _escaped(part: Child) -> str:
    if part is None:
        return ""
    return part if isinstance(part, Html) else html.escape(part, quote=True)
