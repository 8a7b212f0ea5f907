"""SVG charts for HTML pages: curves, dot plots with standard errors, histograms.

Charts scale with the width of the screen while their text keeps the font size of the page: horizontal positions are
percentages, and only the curves are stretched. Colours come from the style sheet of the page.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from pushforward.common.markup import Html, join, tag
from pushforward.common.numbers import decimals_of, fixed, significant
from pushforward.common.text import shorten_middle
from pushforward.evaluate.plots.axes import Axis, axis_around, axis_without_first_steps, thinned_indices
from pushforward.evaluate.statistics import Array

COLOURS = 8
"""Number of colours in the style sheet; later curves repeat them with another dash pattern."""

# Leaves room for a value beside the label on a phone.
_NAME_LENGTH = 24


@dataclass(frozen=True, eq=False)
class Series:
    """A curve.

    Attributes:
        name: Name in the legend.
        x: Horizontal values ``(n,)``, not decreasing.
        y: Vertical values ``(n,)``; values that are not finite are left out.
        error: Half the height of the band around the curve ``(n,)``, if any.
        colour: Index of the colour.
        dash: Index of the dash pattern.
        faint: Whether the curve is drawn faintly and without an entry in the legend, such as unsmoothed values.
    """

    name: str
    x: Array
    y: Array
    error: Array | None = None
    colour: int = 0
    dash: int = 0
    faint: bool = False

    def finite(self) -> "Series":
        """Return the curve without points that are not finite."""
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
    """A value with its standard error in a dot plot.

    Attributes:
        name: Label above the dot.
        value: The value.
        se: Standard error; None if unknown.
        colour: Index of the colour.
        detail: Text after the value.
        text: Replaces the formatted value and error, for example by the digits of a publication.
    """

    name: str
    value: float
    se: float | None = None
    colour: int = 0
    detail: str = ""
    text: str = ""


@dataclass(frozen=True)
class Mark:
    """A highlighted point of a curve."""

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
    skip_start: bool = False,
    ceiling: float | None = None,
    height: int = 260,
    legend: bool = True,
) -> Html:
    """Draw curves with bands, reference lines and a highlighted point.

    Args:
        series: The curves; each is thinned to at most ``POINTS`` points that keep its extremes.
        label: Description for screen readers.
        x_name: Name of the horizontal axis.
        y_name: Name and unit of the vertical axis.
        references: Horizontal lines; those outside the range only appear in the legend.
        mark: A point to highlight.
        log: Whether the vertical axis is logarithmic, if all values are positive.
        skip_start: Whether the vertical range ignores the first steps.
        ceiling: Limit of the vertical range, apart from a margin.
        height: Height in pixels.
        legend: Whether there is a legend above the chart.

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
    all_y = np.concatenate([one.y for one in drawn] + [np.array(values)])
    y_axis = axis_without_first_steps([one.y for one in drawn], values) if skip_start else axis_around(all_y, log=log)
    if ceiling is not None and y_axis.low < ceiling < y_axis.high:
        y_axis = Axis(y_axis.low, ceiling + 0.1 * (ceiling - y_axis.low))
    all_x = np.concatenate([one.x for one in drawn])
    x_axis = axis_around(all_x, margin=0.0) if np.ptp(all_x) else axis_around(all_x)
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
    mark_circle = None
    if mark is not None and 0 <= y_axis.at(mark.y) <= 1:
        x, y = f"{100 * x_axis.at(mark.x):.2f}%", f"{height * (1 - y_axis.at(mark.y)):.1f}"
        mark_circle = tag("circle", tag("title", mark.name), cx=x, cy=y, r=5, class_="marker f1")
    labels = y_axis.labels(max(2, height // 48))
    drawing = tag(
        "svg",
        tag("title", label),
        _grid(x_axis, labels, y_axis, height, x_name),
        plot,
        mark_circle,
        role="img", aria_label=label, width="100%", height=height + 42,
    )  # fmt: skip
    chart = tag(
        "div",
        drawing,
        class_="chart",
        style=f"padding-left:{_label_width(labels)}px;padding-right:8px",
        data_x=f"{x_axis.low:.6g} {x_axis.high:.6g}",
        data_y=f"{y_axis.low:.9g} {y_axis.high:.9g}",
        data_xname=x_name,
        data_log=y_axis.log or None,
    )
    # Readers expect a linear axis unless the chart says otherwise.
    scale = ", logarithmic scale" if y_axis.log else ""
    return join([entries, tag("p", f"{y_name}{scale}", class_="y-name"), chart])


def dot_plot(dots: Sequence[Dot], *, label: str, x_name: str, zero: bool = False, signed: bool = False) -> Html:
    """Draw values with bars of two standard errors, one below the other, each with a label above.

    All values have the same number of decimals, so that they are easy to compare.

    Args:
        dots: The values; those that are not finite get a label but no dot.
        label: Description for screen readers.
        x_name: Name and unit of the axis.
        zero: Whether the axis includes zero, with a line.
        signed: Whether values are written with their sign.
    """
    finite = [dot for dot in dots if np.isfinite(dot.value)]
    ends = [dot.value + k * 2 * _se(dot) for dot in finite for k in (-1, 1)]
    axis = axis_around(np.array([*ends, *([0.0] if zero else [])]))
    row, height, decimals = 44, 44 * len(dots), decimals_of(dot.se for dot in dots)
    parts: list[Html | None] = []
    for tick, text in axis.labels(4):  # as many as fit on a phone
        x = f"{100 * axis.at(tick):.2f}%"
        # Lines are interrupted at the labels.
        style = "axis" if zero and tick == 0 else "grid"
        parts += [tag("line", x1=x, x2=x, y1=top + 23, y2=top + 39, class_=style)
                  for top in range(0, height, row)]  # fmt: skip
        parts.append(tag("text", text, x=x, y=height + 18, text_anchor=_anchor(axis.at(tick))))
    for number, dot in enumerate(dots):
        top = number * row
        text = dot.text or fixed(dot.value, decimals, dot.se, signed=signed)
        text += f"  {dot.detail}" if dot.detail else ""
        parts.append(
            tag("text", shorten_middle(dot.name, _NAME_LENGTH), tag("title", dot.name), x=0, y=top + 17, class_="name")
        )
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
    """Draw a histogram; bins below zero have the second colour.

    Args:
        edges: Bin edges ``(n + 1,)``, increasing.
        counts: Heights ``(n,)``, not negative.
        label: Description for screen readers.
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
        style = "bar out" if (left + right) / 2 < 0 else "bar"
        bars.append(tag("rect", x=f"{x + 0.5:.1f}", y=f"{height - h:.1f}", width=f"{max(w - 1, 0.5):.1f}",
                        height=f"{h:.1f}", class_=style))  # fmt: skip
    plot = tag("svg", *bars, viewBox=f"0 0 1000 {height}", preserveAspectRatio="none", width="100%", height=height,
               aria_hidden="true")  # fmt: skip
    zero = None
    if x_axis.low < 0 < x_axis.high:
        x_zero = f"{100 * x_axis.at(0.0):.2f}%"
        zero = tag("line", x1=x_zero, x2=x_zero, y1=0, y2=height, class_="axis")
    labels = y_axis.labels(4)
    drawing = tag("svg", tag("title", label), _grid(x_axis, labels, y_axis, height, x_name), plot, zero, role="img",
                  aria_label=label, width="100%", height=height + 42)  # fmt: skip
    chart = tag("div", drawing, class_="chart", style=f"padding-left:{_label_width(labels)}px;padding-right:8px")
    return join([tag("p", y_name, class_="y-name"), chart])


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
        position = axis.at(line.value)
        side = "" if 0 <= position <= 1 else " (above)" if position > 1 else " (below)"
        entries.append(tag("li", _key(line.colour, line.dash), f"{line.name} {significant(line.value)}{side}"))
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
        position = x_axis.at(tick)
        parts.append(tag("text", text, x=f"{100 * position:.2f}%", y=height + 18, text_anchor=_anchor(position)))
    parts.append(tag("text", x_name, x="50%", y=height + 37, text_anchor="middle"))
    return join(parts)


def _band(one: Series, x_axis: Axis, y_axis: Axis, height: int) -> Html:
    assert one.error is not None  # checked by the caller
    kept = thinned_indices(one.y)
    x = 1000 * x_axis.share(one.x[kept])
    low = one.y[kept] - one.error[kept]
    bottom = np.maximum(low, y_axis.low) if y_axis.log else low
    upper, lower = (_from_top(y_axis, values, height) for values in (one.y[kept] + one.error[kept], bottom))
    points = _points(np.concatenate([x, x[::-1]]), np.concatenate([upper, lower[::-1]]))
    return tag("polygon", points=points, class_=f"band f{one.colour % COLOURS}")


def _line(one: Series, x_axis: Axis, y_axis: Axis, height: int) -> Html:
    kept = thinned_indices(one.y)
    points = _points(1000 * x_axis.share(one.x[kept]), _from_top(y_axis, one.y[kept], height))
    style = f"line s{one.colour % COLOURS} d{one.dash % 5}" + (" faint" if one.faint else "")
    return tag("polyline", points=points, class_=style, data_name=None if one.faint else one.name)


def _reference(line: Reference, axis: Axis, height: int) -> Html:
    y = f"{height * (1 - axis.at(line.value)):.1f}"
    return tag("line", x1=0, x2=1000, y1=y, y2=y, class_=f"reference s{line.colour % COLOURS} d{line.dash % 5}")


def _from_top(axis: Axis, values: Array, height: int) -> Array:
    """Distances from the top in pixels; far outside values are clipped, which keeps the numbers short."""
    return np.asarray(height * np.clip(1 - axis.share(values), -3.0, 4.0))


def _points(x: Array, y: Array) -> str:
    return " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))


def _label_width(labels: Sequence[tuple[float, str]]) -> int:
    return 14 + 7 * max((len(text) for _, text in labels), default=1)


def _anchor(position: float) -> str:
    return "start" if position < 0.03 else "end" if position > 0.97 else "middle"


def _se(dot: Dot) -> float:
    return dot.se if dot.se is not None and np.isfinite(dot.se) else 0.0
