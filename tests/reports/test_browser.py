"""Reports in a real browser: nothing is loaded, the console stays empty, nothing is wider than the screen."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from pushforward.config.read import load_config
from pushforward.experiment.run import fit
from pushforward.reports.comparison import write_comparison
from pushforward.reports.run import write_report
from pushforward.runs.comparison import compare_runs
from pushforward.runs.folder import RunFolder
from tests.fixtures.browser import GLUED, LOOKS, PROBE, visit

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@pytest.fixture(scope="module")
def pages(made_once: Callable[..., Path]) -> dict[str, Path]:
    """Reports of a toy, of a wide table with long names, of an unfinished fit, and of a comparison."""
    folder = made_once("pages", write_pages)
    runs = {name: RunFolder.open(folder / name).report for name in ("toy", "wide", "lost")}
    return runs | {"comparison": folder / "comparison.html"}


def write_pages(folder: Path) -> None:
    """Fit small models and write their reports and a comparison."""
    small = ["flow=maf", "flow.hidden=8", "flow.layers=1", "train.log_every=2"]

    def run(name: str, data: str, *overrides: str) -> RunFolder:
        return fit(load_config(data, overrides=[*small, *overrides], wandb="off"), out=folder / name, quiet=True).run

    toy = run("toy", "moons", "train.steps=60", "data.rows=2000")
    long_name = "a-run-with-a-name-that-is-longer-than-a-telephone-is-wide"
    other = run(long_name, "moons", "train.steps=40", "data.rows=2000", "train.evaluate=false")
    lost = RunFolder.create(folder / "lost")
    lost.write_config(load_config("moons"))
    lost.metrics.write_bytes(toy.metrics.read_bytes()[:1500])
    lost.release()
    for made in (toy, wide_run(folder / "wide"), lost):
        write_report(made)
    write_comparison(compare_runs([toy, other]), folder / "comparison.html")


def wide_run(path: Path) -> RunFolder:
    """Make a run of twenty columns whose names are wider than the screen of a phone."""
    run, rng = RunFolder.create(path), np.random.default_rng(0)
    run.write_config(load_config("/a/folder/that/is/deeper/than/anybody/would/ever/make/one/and/deeper/still/data.csv"))
    names = [f"<b onclick=alert({i})>{'x' * 70}" for i in range(20)]
    columns = [{"name": name, "type": "double", "minimum": -1e-9, "maximum": 1e9, "distinct": 10**6} for name in names]
    run.write_json("schema.json", {"dataset": names[0] * 2, "columns": columns, "rows": {"test": 100, "train": 900}})
    run.write_json("results.json", {"flow": "maf", "test_nll": 123456.789, "test_nll_se": 1234.5, "steps": 10**6})
    values = np.sort(rng.standard_normal((20, 9)))
    row = dict(zip(names, rng.standard_normal(20), strict=True))
    scored = [{"row": 10**6 + i, "log_prob": -1e5, "values": row} for i in range(10)]
    baseline = {"name": "gaussian", "label": names[1], "nll": {"nll": 1e5, "se": 10.0}, "detail": names[2]}
    run.write_json(
        "evaluation.json",
        {
            "baselines": [baseline],
            "gains": {"gaussian": {"nats": -1e4, "se": 100.0}},
            "calibration": {
                "rows": 100,
                "columns": names,
                "pit": {"counts": rng.integers(0, 20, (20, 20))},
                "quantiles": {"levels": np.linspace(0.01, 0.99, 9), "held_out": values, "samples": values + 0.1},
            },
            "extreme_rows": {"worst": scored, "best": scored},
            "samples": {"rows": 100, "ks": dict.fromkeys(names, 0.1), "c2st": {"accuracy": 0.7, "se": 0.01}},
        },
    )
    rows = [{"step": i * 1000, "seconds": 1.0 * i, "kind": "validation", "val/nll": 1e5 - i} for i in range(9)]
    run.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run.release()
    return run


@pytest.mark.parametrize("name", ["toy", "wide", "lost", "comparison"])
def test_pages_look_right(browser: "Browser", pages: dict[str, Path], name: str) -> None:
    looks: dict[str, set[tuple[str, str]]] = {"light": set(), "dark": set()}
    for width, scheme in LOOKS:
        page, messages, requests = visit(browser, pages[name], width, scheme)
        found = page.evaluate(PROBE)
        where = f"{name} at {width} px, {scheme}"
        assert found["width"] <= width, where
        assert found["beyond"] == [], where
        assert all(image["alt"].strip() and image["loaded"] for image in found["images"]), where
        assert bool(found["images"]) == (name == "toy"), where
        assert found["drawings"], where
        assert all(role == "img" and label.strip() for role, label in found["drawings"]), where
        assert found["levels"][0] == 1
        assert all(after <= before + 1 for before, after in zip(found["levels"], found["levels"][1:], strict=False))
        assert found["small"] >= 11, where
        looks[scheme].add((found["ground"], found["text"]))
        # Unfolded content may be too wide, too.
        page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
        assert page.evaluate("document.documentElement.scrollWidth") <= width, where
        assert page.evaluate(PROBE)["beyond"] == [], where
        assert page.evaluate(GLUED) == [], where
        assert messages == [], where
        assert [url for url in requests if not url.startswith("data:")] == [pages[name].as_uri()], where
        page.context.close()
    assert [len(look) for look in looks.values()] == [1, 1]
    assert looks["light"] != looks["dark"]


def test_values_of_curves_are_shown_under_the_pointer(browser: "Browser", pages: dict[str, Path]) -> None:
    page, messages, _ = visit(browser, pages["toy"], 1280, "light")
    curve = page.locator("#training .chart").first
    curve.scroll_into_view_if_needed()
    curve.hover()
    readout = page.locator(".readout")
    assert readout.count() == 1
    text = readout.inner_text()
    assert text.startswith("step ")
    assert "validation ± standard error " in text
    value = float(text.split("validation ± standard error")[1].split()[0])
    low, high = (float(end) for end in (curve.get_attribute("data-y") or "").split())
    assert low - 0.2 * (high - low) <= value
    page.mouse.move(1, 1)
    assert readout.count() == 0
    assert messages == []
    page.context.close()


def test_the_first_column_stays_visible_on_a_phone(browser: "Browser", pages: dict[str, Path]) -> None:
    for scheme in ("light", "dark"):
        page, _, _ = visit(browser, pages["wide"], 390, scheme)
        box = page.locator("#rows .scroll").first
        names = box.locator("tr > :first-child")
        before = names.nth(1).bounding_box()
        assert box.evaluate("box => { box.scrollLeft = 300; return box.scrollLeft; }") == 300
        assert names.nth(1).bounding_box() == before
        # Cells that scroll below it are hidden.
        assert names.nth(1).evaluate("cell => getComputedStyle(cell).backgroundColor") != "rgba(0, 0, 0, 0)"
        page.context.close()


def test_commands_are_never_cut(browser: "Browser", pages: dict[str, Path]) -> None:
    page, _, _ = visit(browser, pages["toy"], 390, "light")
    assert page.locator("pre").count() >= 3
    assert page.evaluate("[...document.querySelectorAll('pre')].filter(p => p.scrollWidth > p.clientWidth).length") == 0
    page.context.close()


def test_wide_pictures_say_that_they_scroll(browser: "Browser", pages: dict[str, Path]) -> None:
    for width, is_hinted in ((390, True), (1280, False)):
        page, _, _ = visit(browser, pages["toy"], width, "light")
        boxes = page.evaluate("[...document.querySelectorAll('.raster')].map(b => b.scrollWidth > b.clientWidth + 1)")
        hints = page.evaluate("[...document.querySelectorAll('.sideways')].map(hint => hint.checkVisibility())")
        assert any(boxes) == is_hinted
        assert hints.count(True) == boxes.count(True)
        page.context.close()


def test_pages_are_complete_without_scripts(browser: "Browser", pages: dict[str, Path]) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(pages["toy"].as_uri())
    text = page.locator("main").inner_text()
    for phrase in ("KL divergence", "Gain over the best baseline", "PIT histograms", "Lowest log-density", "Reproduce"):
        assert phrase in text
    context.close()


def test_the_security_policy_blocks_injected_content(
    browser: "Browser", pages: dict[str, Path], tmp_path: Path
) -> None:
    intruder = '<img src="https://example.org/a.png" alt="a"><script>document.title = "changed"</script></main>'
    changed = tmp_path / "changed.html"
    changed.write_text(pages["lost"].read_text().replace("</main>", intruder))
    page = browser.new_page()
    messages, failed = list[str](), list[str]()
    page.on("console", lambda message: messages.append(message.text))
    page.on("requestfailed", lambda request: failed.append(f"{request.url}: {request.failure}"))
    page.goto(changed.as_uri())
    assert page.title() != "changed"
    assert failed == ["https://example.org/a.png: csp"]
    assert len(messages) == 2
    assert all("Content Security Policy" in line for line in messages)
    page.close()
