"""SVG charts: positions of values, thinning of long curves, escaped text."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest
from scipy import stats

from pushforward.evaluate.plots.axes import (
    POINTS,
    Axis,
    axis_around,
    axis_without_first_steps,
    nice_ticks,
    thinned_indices,
    tick_labels,
)
from pushforward.evaluate.plots.calibration_charts import binomial_band, pit_histograms, pit_multiples, quantile_pairs
from pushforward.evaluate.plots.charts import (
    Dot,
    Mark,
    Reference,
    Series,
    dot_plot,
    histogram,
    line_chart,
)


class Elements(HTMLParser):
    """Every element with its attributes, in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def of(self, tag: str, class_: str = "") -> list[dict[str, str]]:
        return [
            {key: value or "" for key, value in attributes.items()}
            for name, attributes in self.found
            if name == tag and class_ in ["", *(attributes.get("class") or "").split()]
        ]


def points(line: dict[str, str]) -> np.ndarray:
    return np.array([[float(n) for n in pair.split(",")] for pair in line["points"].split()])


def test_curves_are_drawn_at_their_values() -> None:
    x, y = np.array([0.0, 1.0, 4.0]), np.array([1.0, 3.0, 2.0])
    chart = Elements(line_chart([Series("one", x, y)], label="a", x_name="x", y_name="y", height=100))
    drawn = points(chart.of("polyline", "line")[0])
    assert drawn[:, 0] == pytest.approx([0, 250, 1000])
    # The range is 1 to 3 with 6 % to either side, and SVG counts downwards.
    assert drawn[:, 1] == pytest.approx([100 * (1 - 0.06 / 1.12), 100 * 0.06 / 1.12, 50.0], abs=0.06)
    data = chart.of("div", "chart")[0]
    assert [float(v) for v in data["data-y"].split()] == pytest.approx([0.88, 3.12])


def test_long_curves_are_thinned_and_keep_their_extremes() -> None:
    y = np.random.default_rng(0).standard_normal(100_000)
    y[54_321], y[12_345] = 40.0, -30.0
    kept = thinned_indices(y)
    assert len(kept) <= POINTS
    assert {0, 12_345, 54_321, 99_999} <= set(kept.tolist())
    assert (np.diff(kept) > 0).all()
    text = line_chart(
        [Series("long", np.arange(100_000.0), y, error=np.ones(100_000))], label="a", x_name="x", y_name="y"
    )
    assert len(text) < 20_000
    lows, highs = points(Elements(text).of("polyline", "line")[0])[:, 1].max(), points(Elements(text).of("polyline")[0])
    assert lows > 0.9 * 260
    assert highs[:, 1].min() < 0.1 * 260


def test_bands_are_one_standard_error_to_either_side() -> None:
    x, y = np.array([0.0, 1.0]), np.array([10.0, 20.0])
    text = line_chart([Series("one", x, y, error=np.array([1.0, 2.0]))], label="a", x_name="x", y_name="y", height=112)
    band, line = points(Elements(text).of("polygon")[0]), points(Elements(text).of("polyline")[0])
    per_unit = 112 / (10 * 1.12)
    assert line[:, 1] - band[:2, 1] == pytest.approx([1 * per_unit, 2 * per_unit], abs=0.11)
    assert band[::-1][:2, 1] - line[:, 1] == pytest.approx([1 * per_unit, 2 * per_unit], abs=0.11)


def test_points_that_are_not_finite_are_left_out() -> None:
    x, y = np.arange(5.0), np.array([1.0, np.nan, np.inf, 2.0, 1.5])
    text = line_chart([Series("one", x, y, error=np.array([np.nan] * 5))], label="a", x_name="x", y_name="y")
    assert len(points(Elements(text).of("polyline")[0])) == 3
    assert not re.search(r"\b(nan|inf)\b", text)
    with pytest.raises(ValueError, match="expected at least one finite point"):
        line_chart([Series("one", x, x * np.nan)], label="a", x_name="x", y_name="y")


@pytest.mark.parametrize("values", [[3.0], [3.0, 3.0], [0.0, 0.0], [1e-300, 2e-300], [-1e308, 1e308], [1e15, 1e15 + 1]])
@pytest.mark.parametrize("log", [False, True])
def test_odd_ranges(values: list[float], log: bool) -> None:
    y = np.array(values)
    with np.errstate(all="raise", under="ignore"):
        text = line_chart([Series("one", np.arange(len(y)) * 1.0, y)], label="a", x_name="x", y_name="y", log=log)
    assert not re.search(r"\b(nan|inf)\b", text)
    assert Elements(text).of("line", "grid")


def test_references_beyond_the_range_are_only_in_the_legend() -> None:
    y = np.concatenate([[50.0] * 5, np.linspace(3.0, 2.0, 95)])
    lines = [Reference("near", 2.1), Reference("far", 30.0)]
    text = line_chart(
        [Series("one", np.arange(100.0), y)], label="a", x_name="x", y_name="y", references=lines, skip_start=True
    )
    chart = Elements(text)
    assert len(chart.of("line", "reference")) == 1
    assert "far 30.00 (above)" in text
    assert "near 2.100<" in text
    assert float(chart.of("div", "chart")[0]["data-y"].split()[1]) < 3.5


def test_a_logarithmic_axis_needs_positive_values() -> None:
    x = np.arange(3.0)
    decades = Elements(line_chart([Series("one", x, 10.0**x)], label="a", x_name="x", y_name="y", log=True))
    drawn = points(decades.of("polyline")[0])[:, 1]
    assert np.diff(drawn, 2) == pytest.approx([0.0], abs=0.11)
    assert Axis(1.0, 100.0, log=True).share(np.array([1.0, 10.0, 100.0])) == pytest.approx([0.0, 0.5, 1.0])
    linear = line_chart([Series("one", x, x - 1.0)], label="a", x_name="x", y_name="y", log=True)
    assert "data-log" not in linear


def test_names_are_escaped_everywhere() -> None:
    name = "<script>alert('1')</script> & \"x\""
    mark = Mark(name, 0.0, 1.0)
    parts = [
        line_chart([Series(name, np.arange(2.0), np.arange(2.0)), Series("b", np.arange(2.0), np.ones(2))],
                   label=name, x_name=name, y_name=name, references=[Reference(name, 0.5)], mark=mark),
        dot_plot([Dot(name, 1.0, 0.1, detail=name)], label=name, x_name=name),
        histogram(np.linspace(-1, 1, 5), np.arange(4.0), label=name, x_name=name, y_name=name),
        pit_multiples(pit_histograms([name], [[10] * 20])),
    ]  # fmt: skip
    for text in parts:
        assert "<script" not in text
        assert "&lt;script&gt;" in text
        tags = {tag for tag, _ in Elements(text).found}
        assert tags <= {
            "svg",
            "title",
            "text",
            "line",
            "circle",
            "polyline",
            "polygon",
            "rect",
            "div",
            "ul",
            "li",
            "p",
            "span",
        }


def test_the_title_of_a_logarithmic_axis_says_so() -> None:
    x = np.arange(3.0)
    for log in (True, False):
        text = line_chart([Series("one", x, x + 1.0)], label="a", x_name="x", y_name="norm", log=log)
        assert (">norm, logarithmic scale<" in text) == log
        assert (">norm<" in text) == (not log)
    # With values that are not positive the axis is linear.
    assert ">norm<" in line_chart([Series("one", x, x - 1.0)], label="a", x_name="x", y_name="norm", log=True)


def test_values_of_a_dot_plot_have_equal_decimals() -> None:
    dots = [Dot("a", 17.652, 0.815), Dot("b", 20.43, 1.276), Dot("c", 3.0, None), Dot("d", 1.0, 0.5, text="as it is")]
    text = dot_plot(dots, label="x", x_name="nats")
    for shown in (">17.65 ± 0.81<", ">20.43 ± 1.28<", ">3.00<", ">as it is<"):
        assert shown in text


def test_dots_have_bars_of_two_standard_errors() -> None:
    dots = [Dot("a", 1.0, 0.5), Dot("b", 3.0, None), Dot("c", float("inf"))]
    chart = Elements(dot_plot(dots, label="x", x_name="nats", zero=True))
    bars, circles = chart.of("line", "error"), chart.of("circle", "marker")
    assert len(bars) == len(circles) == 2
    position = [float(circle["cx"].rstrip("%")) for circle in circles]
    left, right = (float(bars[0][end].rstrip("%")) for end in ("x1", "x2"))
    per_unit = (position[1] - position[0]) / 2
    assert (position[0] - left, right - position[0]) == pytest.approx((per_unit, per_unit), abs=0.02)


def test_a_histogram_has_the_heights_of_its_counts() -> None:
    chart = Elements(histogram(np.linspace(-2, 2, 5), np.array([1.0, 4.0, 2.0, 0.0]), label="x", x_name="", y_name=""))
    heights = [float(bar["height"]) for bar in chart.of("rect")]
    assert heights == pytest.approx([heights[1] / 4, heights[1], heights[1] / 2, 0.0], abs=0.11)
    assert len(chart.of("rect", "out")) == 2  # those below zero


@pytest.mark.parametrize(("trials", "chance"), [(18, 0.5), (40, 0.125), (25_000, 0.05), (1_000_000, 0.05), (3, 0.5)])
def test_binomial_band(trials: int, chance: float) -> None:
    assert binomial_band(trials, chance) == tuple(stats.binom.interval(0.95, trials, chance))


def test_pit_histograms_of_few_rows_have_fewer_bins() -> None:
    few, many = pit_histograms(["few", "many"], [[1] * 18 + [0, 0], [500] * 20])
    assert len(few.counts) == 2
    assert few.counts.sum() == 18
    assert len(many.counts) == 20
    assert many.outside == 0
    assert many.misfit == 0.0
    (skewed,) = pit_histograms(["skewed"], [[1000] + [500] * 18 + [0]])
    assert skewed.outside == 2
    assert skewed.misfit > 10
    with pytest.raises(ValueError, match="expected counts"):
        pit_histograms(["one"], [[1], [2]])


def test_quantile_gaps_are_shares_of_the_range() -> None:
    (pair,) = quantile_pairs(["x"], [[0.0, 5.0, 10.0]], [[0.0, 6.0, 10.5]])
    assert pair.gap == pytest.approx(0.1)


def test_ticks_are_round_and_distinct() -> None:
    for low, high in [(0.0, 1.0), (-17.3, 402.0), (2.4001, 2.4019), (1e-9, 3e-9), (-5e6, 4e7)]:
        ticks = nice_ticks(low, high)
        labels = tick_labels(ticks)
        assert 3 <= len(ticks) <= 8
        assert all(low - 1e-12 <= tick <= high + 1e-12 for tick in ticks)
        assert len(set(labels)) == len(labels)
        assert all(len(label) <= 8 for label in labels)
    assert tick_labels([99_992.0, 99_994.0]) == ["99,992", "99,994"]
    for low, high in [(2.0, 8.0), (0.01, 1e6), (3.0, 3.4), (1e-8, 1e-7)]:
        axis = Axis(low, high, log=True)
        assert 2 <= len(axis.labels()) <= 7
        assert all(low <= tick <= high for tick in axis.ticks())


def test_ranges_of_axes() -> None:
    assert axis_around(np.array([])) == Axis(0.0, 1.0)
    assert axis_around(np.array([np.nan, 5.0])).low < 5.0 < axis_around(np.array([5.0])).high
    curve = np.concatenate([[1e6] * 3, np.full(97, 2.0), [1.0]])
    assert axis_without_first_steps([curve]).high < 10.0
