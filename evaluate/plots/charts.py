"""Charts as SVG inside a page: curves over training, and numbers with their standard errors.

A chart is as wide as its place, and its letters are as large as those of the page, on a telephone and on a wide screen:
horizontal places are percentages, and only the curves themselves are stretched. Colours are those of the style sheet.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from pushforward.common.markup import Html, join, tag
from pushforward.common.numbers import decimals_of, fixed, significant
from pushforward.evaluate.plots.axes import Array, Axis, around, settled, worth_drawing

COLOURS = 8
"""Colours there are; the ninth line begins again, with another dash."""


@dataclass(frozen=True, eq=False)
class Series:
    """A curve.

    Attributes:
        name: What it is called in the legend.
        x: Horizontal values ``(n,)``, not decreasing.
        y: Vertical values ``(n,)``; what is not finite is left out.
        error: Half the height of the band around it ``(n,)``, if any.
        colour: Number of its colour.
        dash: Number of its dash pattern.
        faint: Whether it is the noise behind another curve; it then has no entry in the legend.
    """

    name: str
    x: Array
    y: Array
    error: Array | None = None
    colour: int = 0
    dash: int = 0
    faint: bool = False

    def finite(self) -> "Series":
        """The curve without the points that cannot be drawn."""
        kept = np.isfinite(self.x) & np.isfinite(self.y)
        error = None if self.error is None else np.nan_to_num(self.error[kept], posinf=0.0)
        return replace(self, x=self.x[kept], y=self.y[kept], error=error)


@dataclass(frozen=True)
class Reference:
    """A horizontal line, such as the NLL of a baseline."""

    name: str
    value: float
    colour: int = 7
    dash: int = 1


@dataclass(frozen=True)
class Dot:
    """A number with its standard error in a dot plot; ``se`` is None where it is not known.

    ``text`` is written in place of the two, such as a number with the digits it was published with.
    """

    name: str
    value: float
    se: float | None = None
    colour: int = 0
    detail: str = ""
    text: str = ""


@dataclass(frozen=True)
class Mark:
    """A point to bring out on a curve."""

    name: str
    x: float
    y: float


def line_chart(
    series: Sequence[Series],
    *,
    label: str,
    x_name: str,
    y_name: str,
    references: Sequence[Reference] = (),
    mark: Mark | None = None,
    log: bool = False,
    settle: bool = False,
    ceiling: float | None = None,
    height: int = 260,
    legend: bool = True,
) -> Html:
    """Curves with bands, reference lines and a mark.

    Args:
        series: The curves; each is drawn with at most ``POINTS`` points, which keep its extremes.
        label: What the chart shows, for those who hear the page.
        x_name: Name of the horizontal axis.
        y_name: Name and unit of the vertical axis.
        references: Horizontal lines; those out of the range are only named.
        mark: A point to bring out.
        log: Whether the vertical axis is logarithmic.
        settle: Whether the range leaves out the first steps.
        ceiling: Value above which a settled range does not reach.
        height: Height in pixels.
        legend: Whether the curves are named above the chart.

    Raises:
        ValueError: Without any finite point.
    """
    drawn = [one for one in (item.finite() for item in series) if len(one.y)]
    if log:
        positive = [one for one in drawn if (one.y > 0).all()]
        log = len(positive) == len(drawn)
    if not drawn:
        raise ValueError("line_chart: expected at least one finite point; got none")
    values = [reference.value for reference in references if np.isfinite(reference.value)]
    everything = np.concatenate([one.y for one in drawn] + [np.array(values)])
    y_axis = settled([one.y for one in drawn], values) if settle else around(everything, log=log)
    if ceiling is not None and y_axis.low < ceiling < y_axis.high:
        y_axis = Axis(y_axis.low, ceiling + 0.1 * (ceiling - y_axis.low))
    x_all = np.concatenate([one.x for one in drawn])
    x_axis = around(x_all, margin=0.0) if np.ptp(x_all) else around(x_all)
    inside = [reference for reference in references if 0 <= y_axis.at(reference.value) <= 1]
    curves = [
        *(_band(one, x_axis, y_axis, height) for one in drawn if one.error is not None),
        *(_reference(reference, y_axis, height) for reference in inside),
        *(_line(one, x_axis, y_axis, height) for one in drawn),
    ]
    plot = tag(
        "svg", *curves, viewBox=f"0 0 1000 {height}", preserveAspectRatio="none", width="100%", height=height,
        aria_hidden="true",
    )  # fmt: skip
    entries = _legend(drawn, references, y_axis, mark) if legend else None
    point = None
    if mark is not None and 0 <= y_axis.at(mark.y) <= 1:
        x, y = f"{100 * x_axis.at(mark.x):.2f}%", f"{height * (1 - y_axis.at(mark.y)):.1f}"
        point = tag("circle", tag("title", mark.name), cx=x, cy=y, r=5, class_="marker f1")
    labels = y_axis.labels(max(2, height // 48))
    drawing = tag(
        "svg",
        tag("title", label),
        _grid(x_axis, labels, y_axis, height, x_name),
        plot,
        point,
        role="img", aria_label=label, width="100%", height=height + 42,
    )  # fmt: skip
    chart = tag(
        "div",
        drawing,
        class_="chart",
        style=f"padding-left:{_room(labels)}px;padding-right:8px",
        data_x=f"{x_axis.low:.6g} {x_axis.high:.6g}",
        data_y=f"{y_axis.low:.9g} {y_axis.high:.9g}",
        data_xname=x_name,
        data_log=y_axis.log or None,
    )
    # Equal distances are equal ratios, which nobody expects who is not told.
    scale = ", logarithmic scale" if y_axis.log else ""
    return join([entries, tag("p", f"{y_name}{scale}", class_="y-name"), chart])


def dot_plot(dots: Sequence[Dot], *, label: str, x_name: str, zero: bool = False, signed: bool = False) -> Html:
    """Numbers with bars of two standard errors, one below the other, each named above its line.

    All are written with as many decimals, so that they can be compared by eye.

    Args:
        dots: The numbers; those that are not finite are named without a dot.
        label: What the chart shows, for those who hear the page.
        x_name: Name and unit of the axis.
        zero: Whether zero is on the axis, with a line.
        signed: Whether the numbers are written with their sign.
    """
    finite = [dot for dot in dots if np.isfinite(dot.value)]
    ends = [dot.value + k * 2 * _se(dot) for dot in finite for k in (-1, 1)]
    axis = around(np.array([*ends, *([0.0] if zero else [])]))
    row, height, decimals = 44, 44 * len(dots), decimals_of(dot.se for dot in dots)
    parts: list[Html | None] = []
    for tick, text in axis.labels(4):  # as many as there is room for on a telephone
        place = f"{100 * axis.at(tick):.2f}%"
        # Between the names, not through them.
        look = "axis" if zero and tick == 0 else "grid"
        parts += [tag("line", x1=place, x2=place, y1=top + 23, y2=top + 39, class_=look)
                  for top in range(0, height, row)]  # fmt: skip
        parts.append(tag("text", text, x=place, y=height + 18, text_anchor=_anchor(axis.at(tick))))
    for number, dot in enumerate(dots):
        top = number * row
        text = dot.text or fixed(dot.value, decimals, dot.se, signed=signed)
        text += f"  {dot.detail}" if dot.detail else ""
        parts.append(tag("text", _short(dot.name), tag("title", dot.name), x=0, y=top + 17, class_="name"))
        parts.append(tag("text", text, x="100%", y=top + 17, text_anchor="end", class_="figure"))
        if not np.isfinite(dot.value):
            continue
        colour, middle = dot.colour % COLOURS, top + 31
        left, right = (f"{100 * axis.at(dot.value + k * 2 * _se(dot)):.2f}%" for k in (-1, 1))
        parts.append(tag("line", x1=left, x2=right, y1=middle, y2=middle, class_=f"error s{colour}"))
        parts.append(tag("circle", cx=f"{100 * axis.at(dot.value):.2f}%", cy=middle, r=5, class_=f"marker f{colour}"))
    parts.append(tag("text", x_name, x="50%", y=height + 38, text_anchor="middle"))
    drawing = tag(
        "svg", tag("title", label), *parts, role="img", aria_label=label, width="100%", height=height + 44
    )  # fmt: skip
    return tag("div", drawing, class_="chart")


def histogram(edges: Array, counts: Array, *, label: str, x_name: str, y_name: str, height: int = 200) -> Html:
    """Bars over bins; those below zero in the second colour, so that the two sides of a difference show.

    Args:
        edges: Edges of the bins ``(n + 1,)``, increasing.
        counts: Heights ``(n,)``, not negative.
        label: What the chart shows, for those who hear the page.
        x_name: Name and unit of the horizontal axis.
        y_name: Name of the vertical axis.
        height: Height in pixels.
    """
    x_axis = Axis(float(edges[0]), float(edges[-1]))
    y_axis = Axis(0.0, float(max(counts.max(), 1)) * 1.05)
    bars = []
    for left, right, amount in zip(edges[:-1], edges[1:], counts, strict=True):
        x, w = 1000 * x_axis.at(float(left)), 1000 * (x_axis.at(float(right)) - x_axis.at(float(left)))
        h = height * y_axis.at(float(amount))
        side = "bar out" if (left + right) / 2 < 0 else "bar"
        bars.append(tag("rect", x=f"{x + 0.5:.1f}", y=f"{height - h:.1f}", width=f"{max(w - 1, 0.5):.1f}",
                        height=f"{h:.1f}", class_=side))  # fmt: skip
    plot = tag("svg", *bars, viewBox=f"0 0 1000 {height}", preserveAspectRatio="none", width="100%", height=height,
               aria_hidden="true")  # fmt: skip
    zero = None
    if x_axis.low < 0 < x_axis.high:
        place = f"{100 * x_axis.at(0.0):.2f}%"
        zero = tag("line", x1=place, x2=place, y1=0, y2=height, class_="axis")
    labels = y_axis.labels(4)
    drawing = tag("svg", tag("title", label), _grid(x_axis, labels, y_axis, height, x_name), plot, zero, role="img",
                  aria_label=label, width="100%", height=height + 42)  # fmt: skip
    chart = tag("div", drawing, class_="chart", style=f"padding-left:{_room(labels)}px;padding-right:8px")
    return join([tag("p", y_name, class_="y-name"), chart])


def rolling_mean(values: Array) -> Array:
    """Centred rolling mean ``(n,) -> (n,)`` over a fortieth of the values, shorter at both ends."""
    width = max(1, len(values) // 40)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    places = np.arange(len(values))
    first, last = np.maximum(places - width // 2, 0), np.minimum(places + (width + 1) // 2, len(values))
    return np.asarray((sums[last] - sums[first]) / (last - first))


def _legend(series: Sequence[Series], references: Sequence[Reference], axis: Axis, mark: Mark | None) -> Html | None:
    entries = [
        tag("li", _key(one.colour, one.dash), one.name)
        for one in series
        if not one.faint and (len(series) > 1 or references)
    ]
    if mark is not None:
        dot = tag("svg", tag("circle", cx=12, cy=6, r=5, class_="f1"), class_="key", aria_hidden="true")
        entries.append(tag("li", dot, mark.name))
    for line in references:
        place = axis.at(line.value)
        beyond = "" if 0 <= place <= 1 else " (above)" if place > 1 else " (below)"
        entries.append(tag("li", _key(line.colour, line.dash), f"{line.name} {significant(line.value)}{beyond}"))
    return tag("ul", *entries, class_="legend") if entries else None


def _key(colour: int, dash: int) -> Html:
    stroke = tag("line", x1=0, x2=24, y1=6, y2=6, class_=f"line s{colour % COLOURS} d{dash % 5}")
    return tag("svg", stroke, class_="key", aria_hidden="true")


def _grid(x_axis: Axis, labels: Sequence[tuple[float, str]], y_axis: Axis, height: int, x_name: str) -> Html:
    parts = []
    for tick, text in labels:
        y = height * (1 - y_axis.at(tick))
        parts.append(tag("line", x1=0, x2="100%", y1=f"{y:.1f}", y2=f"{y:.1f}", class_="grid"))
        parts.append(tag("text", text, x=-8, y=f"{y + 4:.1f}", text_anchor="end"))
    parts.append(tag("line", x1=0, x2="100%", y1=height, y2=height, class_="axis"))
    for tick, text in x_axis.labels(5):
        place = x_axis.at(tick)
        parts.append(tag("text", text, x=f"{100 * place:.2f}%", y=height + 18, text_anchor=_anchor(place)))
    parts.append(tag("text", x_name, x="50%", y=height + 37, text_anchor="middle"))
    return join(parts)


def _band(one: Series, x_axis: Axis, y_axis: Axis, height: int) -> Html:
    assert one.error is not None  # the caller asked
    kept = worth_drawing(one.y)
    x = 1000 * x_axis.share(one.x[kept])
    low = one.y[kept] - one.error[kept]
    bottom = np.maximum(low, y_axis.low) if y_axis.log else low
    upper, lower = (_down(y_axis, values, height) for values in (one.y[kept] + one.error[kept], bottom))
    points = _points(np.concatenate([x, x[::-1]]), np.concatenate([upper, lower[::-1]]))
    return tag("polygon", points=points, class_=f"band f{one.colour % COLOURS}")


def _line(one: Series, x_axis: Axis, y_axis: Axis, height: int) -> Html:
    kept = worth_drawing(one.y)
    points = _points(1000 * x_axis.share(one.x[kept]), _down(y_axis, one.y[kept], height))
    look = f"line s{one.colour % COLOURS} d{one.dash % 5}" + (" faint" if one.faint else "")
    return tag("polyline", points=points, class_=look, data_name=None if one.faint else one.name)


def _reference(line: Reference, axis: Axis, height: int) -> Html:
    y = f"{height * (1 - axis.at(line.value)):.1f}"
    return tag("line", x1=0, x2=1000, y1=y, y2=y, class_=f"reference s{line.colour % COLOURS} d{line.dash % 5}")


def _down(axis: Axis, values: Array, height: int) -> Array:
    """Places from the top, in pixels; far outside they stand near, where numbers stay short."""
    return np.asarray(height * np.clip(1 - axis.share(values), -3.0, 4.0))


def _points(x: Array, y: Array) -> str:
    return " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))


def _room(labels: Sequence[tuple[float, str]]) -> int:
    return 14 + 7 * max((len(text) for _, text in labels), default=1)


def _anchor(place: float) -> str:
    return "start" if place < 0.03 else "end" if place > 0.97 else "middle"


def _short(name: str, most: int = 24) -> str:
    """A name with room for a number beside it on a telephone; runs are often told apart by its end."""
    return name if len(name) <= most else f"{name[: most - 11]}…{name[-10:]}"


def _se(dot: Dot) -> float:
    return dot.se if dot.se is not None and np.isfinite(dot.se) else 0.0
