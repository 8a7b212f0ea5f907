"""The report of a run: complete, self-contained, escaped, small, for a run in any state."""

import itertools
import json
import re
import shlex
import subprocess
import sys
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from pushforward.cli import main
from pushforward.common.errors import RunUsageError
from pushforward.common.markup import Html, tag
from pushforward.common.numbers import decimals_of, fixed, measured, significant
from pushforward.config.read import load_config
from pushforward.experiment.run import fit
from pushforward.reports.page import document
from pushforward.reports.run import run_page, write_report
from pushforward.reports.sections.model import FLOW, parts_of
from pushforward.reports.sections.samples import DRAWN_ELSEWHERE
from pushforward.reports.sections.training import training
from pushforward.reports.style import STYLE
from pushforward.runs.folder import RunFolder
from pushforward.runs.record import TRAINING_ROWS, read_run
from pushforward.train.selection import CandidateResult

HOSTILE = '<img src=x onerror=alert(1)> & "größe" \'\u2028'


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A fitted and evaluated run of a table with a hostile column name."""
    folder = tmp_path_factory.mktemp("page")
    x = np.random.default_rng(0).standard_normal((200, 3)) @ np.triu(np.ones((3, 3)))
    header = ",".join(['"' + HOSTILE.replace('"', '""') + '"', "b", "c"])
    np.savetxt(folder / "data.csv", x, delimiter=",", header=header, comments="", encoding="utf-8")
    config = load_config(
        str(folder / "data.csv"),
        overrides=["train.steps=30", "flow=maf", "flow.hidden=8", "flow.layers=1", "train.log_every=2"],
        wandb="off",
    )
    return fit(config, out=folder / "my run", quiet=True).run


def copied(run: RunFolder, to: Path) -> RunFolder:
    """Copy the files that a report reads, so that a test may change them."""
    for path in run.path.rglob("*"):
        if path.is_file() and path.suffix in (".json", ".jsonl", ".yaml", ".png", ".txt"):
            target = to / path.relative_to(run.path)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    return RunFolder(to)


class Page(HTMLParser):
    """Elements and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {key: value or "" for key, value in attrs}))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {key: value or "" for key, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not set(self.open) & {"style", "script"}:
            self.text += data + " "

    def of(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


def check(text: str) -> Page:
    """Check the properties of every page: valid structure, nothing loaded, accessible."""
    page = Page(text)
    assert page.open == []
    assert {name for name, _ in page.elements} <= {
        "html", "head", "meta", "title", "style", "body", "main", "header", "nav", "section", "footer", "script",
        "h1", "h2", "h3", "p", "a", "ul", "li", "dl", "dt", "dd", "div", "span", "b", "small", "code", "pre", "figure",
        "figcaption", "details", "summary", "table", "caption", "thead", "tbody", "tr", "th", "td", "img",
        "svg", "text", "line", "rect", "circle", "polyline", "polygon",
    }  # fmt: skip
    for _, attributes in page.elements:
        assert not [key for key in attributes if key.startswith("on")]
        for key in ("src", "href", "xlink:href", "srcset", "action"):
            assert re.match(r"#|data:image/png;base64,", attributes.get(key, "#"))
    assert all(image["alt"].strip() for image in page.of("img"))
    for drawing in page.of("svg"):
        assert (drawing.get("role") == "img" and drawing["aria-label"].strip()) or drawing.get("aria-hidden") == "true"
    levels = [int(name[1]) for name, _ in page.elements if re.fullmatch("h[1-6]", name)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert all(link["href"][1:] in ids for link in page.of("a"))
    assert len(page.of("caption")) == len(page.of("table"))
    assert all(head.get("scope") in ("col", "row") for head in page.of("th"))
    assert "nan" not in re.findall(r"\w+", page.text)
    (policy,) = [meta["content"] for meta in page.of("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; img-src data:;")
    return page


def test_a_finished_run(fitted: RunFolder) -> None:
    path = write_report(fitted)
    assert path == fitted.path / "report.html"
    page = check(path.read_text(encoding="utf-8"))
    results = json.loads(fitted.results.read_text())
    assert measured(results["test_nll"], results["test_nll_se"]) in page.text
    evaluation = json.loads((fitted.path / "evaluation.json").read_text())
    gains = evaluation["gains"]
    decimals = decimals_of(gain["se"] for gain in gains.values())
    for baseline in evaluation["baselines"]:
        assert baseline["label"] in page.text
        gain = gains[baseline["name"]]
        # Twice: beside its dot, and in the table.
        assert page.text.count(fixed(gain["nats"], decimals, gain["se"], signed=True)) >= 2
    best = min(evaluation["baselines"], key=lambda baseline: baseline["nll"]["nll"])
    assert f"{best['label']}: {significant(best['nll']['nll'])}; paired on the test rows" in page.text
    for phrase in ("PIT histograms", "Lowest log-density", "Calibration", "pushforward fit -c 'my run/config.yaml'"):
        assert phrase in page.text
    assert str(evaluation["extreme_rows"]["worst"][0]["row"]) in page.text
    steps, values = read_run(fitted).curve("val/nll")
    assert f" at step {steps[values.argmin()]:.0f}" in page.text
    assert len(page.of("img")) >= 2
    assert "Left out" not in page.text
    assert HOSTILE.split(" & ")[0] in page.text
    # After 30 steps on 160 rows the flow is no better than a Gaussian, which replaces it.
    assert "A Gaussian with full covariance." in page.text
    assert "Both are of the trained flow, which was replaced by another density in the end." in page.text


def small_fit(folder: Path, *overrides: str) -> RunFolder:
    """Fit a table with a column of halves and one of integers in a few steps."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((300, 4)).cumsum(axis=1)
    x[:, 1], x[:, 3] = np.round(2 * x[:, 1]) / 2, rng.integers(2, 5, 300)
    np.savetxt(folder / "data.csv", x, delimiter=",", header="a,b,c,kind of row", comments="")
    options = ["train.steps=20", "flow.hidden=8", "flow.blocks=1", "train.log_every=5", *overrides]
    return fit(
        load_config(str(folder / "data.csv"), overrides=options, wandb="off"), out=folder / "run", quiet=True
    ).run


def test_averaged_densities_are_listed_with_their_weights(tmp_path: Path) -> None:
    run = small_fit(tmp_path, "flow=made-mog", "flow.members=2", "flow.stacking=true", "train.evaluate=false")
    record = read_run(run)
    parts = parts_of(record)
    assert sum(part.weight for part in parts) == pytest.approx(1.0)
    logged = re.findall(r"(flow|Gaussian|kernel density) (\d\.\d\d)", run.log.read_text())
    assert [(part.kind, f"{part.weight:.2f}") for part in parts] == logged
    assert len(parts) > 1
    assert parts[0].members == 2
    page = check(run_page(record))
    others = [part for part in parts if part.kind != FLOW]
    assert "The average of 2 masked networks with a mixture of Gaussians for every column" in page.text
    for part in others:
        assert re.search(rf"{part.kind}\s+{part.weight:.3f}\b", page.text)
    assert re.search(rf"2 flows\s+{parts[0].weight:.3f}\b", page.text)
    assert "before it is averaged" in page.text
    assert "Gradient norm of each flow (2)" in page.text
    assert "Model selection" not in page.text  # the configuration names the flow
    candidates = [CandidateResult("made-mog x 2", 3.25, 40), CandidateResult("nsf-ar", 3.5, 50)]
    run.write_json("selection.json", {"flow": "made-mog x 2", "step_seconds": 0.0125, "seconds": 2.5,
                                 "candidates": [asdict(one) for one in candidates]})  # fmt: skip
    chosen = check(run_page(read_run(run))).text
    for text in ("A step of one flow took 12.5 ms", "Model selection took 2.5 s"):
        assert text in chosen
    assert re.search(r"made-mog \u00d7 2\s+3\.250\s+40\s+nsf-ar\s+3\.500\s+50\s", chosen)
    assert "Candidates were not compared" not in chosen
    run.write_json("selection.json", {"flow": "made-mog", "step_seconds": 0.0125, "seconds": 2.5, "candidates": []})
    assert "Candidates were not compared" in check(run_page(read_run(run))).text
    run.write_json("selection.json", {"flow": "made-mog", "step_seconds": None, "seconds": 2.5,
                                 "candidates": [asdict(one) for one in candidates]})  # fmt: skip
    by_steps = check(run_page(read_run(run))).text
    assert "Each candidate was trained for a share of the steps" in by_steps
    assert "A step of one flow took" not in by_steps
    assert "Model selection took" not in by_steps


def test_a_single_flow_is_described_in_a_sentence(tmp_path: Path) -> None:
    run = small_fit(tmp_path, "flow=maf", "flow.layers=2", "flow.base=student-t", "flow.stacking=false",
                    "train.evaluate=false", "data.given=kind of row")  # fmt: skip
    page = check(run_page(read_run(run)))
    assert "A masked affine autoregressive flow (base: independent Student t distributions)." in page.text
    assert "Averaged densities" not in page.text
    assert "before it is averaged" not in page.text
    # The command for sampling on the page works, also for a conditional density.
    (line,) = re.findall(r"pushforward (sample .*)", page.text)
    assert "--given 'kind of row=2'" in line
    words = shlex.split(line.replace("new.csv", str(tmp_path / "new.csv")))
    done = CliRunner().invoke(main, [str(run.path) if word == "run" else word for word in words])
    assert done.exit_code == 0, done.output
    assert "Values repeat in b. Uniform noise of one bin width was added" in page.text


def test_no_dequantization_is_mentioned_without_it(tmp_path: Path) -> None:
    run = small_fit(tmp_path, "flow=maf", "flow.layers=1", "train.evaluate=false", "data.dequantize=off")
    assert "Uniform noise" not in check(run_page(read_run(run))).text


def test_only_many_more_charts_and_columns_are_folded(fitted: RunFolder) -> None:
    record = read_run(fitted)

    def drawn(columns: int, levels: list[float]) -> str:
        names = [f"c{i}" for i in range(columns)]
        values = np.sort(np.random.default_rng(0).standard_normal((columns, len(levels)))).tolist()
        rows = [{"row": 1, "log_prob": -1.0, "values": dict.fromkeys(names, 2.5)}]
        evaluation = {
            "calibration": {"rows": 50, "columns": names, "pit": {"counts": [[10] * 5] * columns},
                            "quantiles": {"levels": levels, "held_out": values, "samples": values}},
            "extreme_rows": {"worst": rows, "best": rows},
        }  # fmt: skip
        return check(run_page(type(record)(**{**vars(record), "evaluation": evaluation}))).text

    few = drawn(13, [0.1, 0.5, 0.9])
    assert "The other" not in few
    assert "c12" in few
    assert "Shown are" not in few
    many = drawn(40, [0.1, 0.5, 0.9])
    assert many.count("The other 28") == 2
    assert "Shown are 12 of 40 columns." in many  # without the 1 % and 99 % quantiles no value is rare
    assert "Bold values" not in many
    usual = drawn(40, [0.01, 0.5, 0.99])
    assert "Bold values are among the lowest or highest 1 %" in usual
    assert "Shown are 12 of 40 columns, those with the most bold values." in usual


def test_a_column_has_the_same_decimals(fitted: RunFolder) -> None:
    record = read_run(fitted)
    values = [{"b": 3.0, "c": 12.3456789}, {"b": 0.25, "c": 1.0}, {"b": -10.5, "c": 0.001}]
    rows = [{"row": i, "log_prob": -20.0 - i, "values": value} for i, value in enumerate(values)]
    evaluation = {**record.evaluation, "extreme_rows": {"worst": rows, "best": []}}
    text = check(run_page(type(record)(**{**vars(record), "evaluation": evaluation}))).text
    for phrase in ("3.00", "0.25", "\u221210.50", "12.346", "1.000", "0.001", "\u221222.00"):
        assert re.search(rf"\s{re.escape(phrase)}\s", text), phrase


def test_short_curves_are_not_smoothed(tmp_path: Path) -> None:
    run = make(tmp_path / "run", STATES["stopped"])
    for count, name in ((20, "training"), (200, "training, rolling mean")):
        rows = [{"step": i, "seconds": i / 10, "kind": "train", "train/nll": 5.0 / (i + 1)} for i in range(count)]
        rows += [{"step": i, "seconds": i / 10, "kind": "validation", "val/nll": 3.0} for i in (0, count)]
        run.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
        text = str(training(read_run(run)))
        assert f">{name}</li>" in text
        assert ("Faint: single training batches" in text) == (count == 200)


def test_no_partial_file_is_left_and_other_files_are_kept(fitted: RunFolder, tmp_path: Path) -> None:
    ours, mine = tmp_path / "ours.html", tmp_path / "mine.html"
    write_report(fitted, ours)
    write_report(fitted, ours)
    mine.write_text("<html>my own notes</html>")
    with pytest.raises(RunUsageError, match="not a page of pushforward report"):
        write_report(fitted, mine)
    assert mine.read_text() == "<html>my own notes</html>"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.html", "ours.html"]


def test_the_command(fitted: RunFolder, tmp_path: Path) -> None:
    out = tmp_path / "a.html"
    done = CliRunner().invoke(main, ["report", str(fitted.path), "--out", str(out), "--json"])
    assert done.exit_code == 0
    assert json.loads(done.stdout) == {"run": str(fitted.path), "out": str(out), "bytes": out.stat().st_size}
    assert CliRunner().invoke(main, ["report", str(tmp_path / "none")]).exit_code == 2
    lost = CliRunner().invoke(main, ["report", str(fitted.path), "--out", str(tmp_path / "no" / "a.html")])
    assert lost.exit_code == 1
    assert "no such file" in lost.output


def test_pages_do_not_wait_for_torch() -> None:
    code = (
        "import sys, pushforward.reports.run, pushforward.reports.comparison\n"
        "print([name for name in ('torch', 'matplotlib', 'wandb', 'scipy', 'sklearn') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


STATES: dict[str, dict[str, Any]] = {
    "running": {"status": "running", "phrase": "The fit is running", "claimed": True, "rows": 3},
    "starting": {"status": "running", "phrase": "has no likelihoods", "claimed": True, "rows": 0},
    "killed": {"status": "running", "phrase": "ended before the fit was finished", "rows": 3},
    "stopped": {"status": "stopped", "phrase": "was stopped by a signal", "rows": 3},
    "failed": {"status": "failed", "phrase": "The fit failed", "rows": 1},
    "diverged": {"status": "diverged", "phrase": "The fit diverged", "rows": 2},
}


def make(path: Path, state: dict[str, Any]) -> RunFolder:
    run = RunFolder.create(path)
    run.write_config(load_config("moons"))
    run.set_status(state["status"], dataset="moons", flow="maf")
    rows = [
        {"step": 10 * i, "seconds": 0.1 * i, "kind": "validation", "val/nll": 3.0 - i} for i in range(state["rows"])
    ]
    rows += [{"step": 99, "seconds": 9.0, "kind": "train", "train/nll": None, "train/grad_norm": None}]
    rows += [{"step": 99, "seconds": 9.0, "kind": "alert", "title": "t", "text": "the loss is <not> finite"}]
    run.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"torn')
    if not state.get("claimed"):
        run.release()
    return run


@pytest.mark.parametrize("name", STATES)
def test_every_state_has_a_page(name: str, tmp_path: Path) -> None:
    run = make(tmp_path / "run", STATES[name])
    page = check(write_report(run).read_text(encoding="utf-8"))
    assert STATES[name]["phrase"] in page.text
    assert "The loss is <not> finite" in page.text
    assert "Left out" not in page.text
    assert ("polyline" in {tag for tag, _ in page.elements}) == (STATES[name]["rows"] >= 2)
    run.release()


@pytest.mark.parametrize("name", ["metrics.jsonl", "results.json", "evaluation.json", "schema.json", "environment.json",
                                  "config.yaml", "state.json", "pictures/corner.png", "log.txt",
                                  "model/config.json"])  # fmt: skip
@pytest.mark.parametrize("damage", [None, b"", b"[1, 2]", b'{"a": \xff', b'{"columns": 3, "rows": [], "samples": 1}'])
def test_missing_and_damaged_files(fitted: RunFolder, tmp_path: Path, name: str, damage: bytes | None) -> None:
    run = copied(fitted, tmp_path / "run")
    (run.path / name).unlink()
    if damage is not None:
        (run.path / name).write_bytes(damage)
    check(write_report(run).read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("state.json", {"status": ["x"], "dataset": {"a": [1]}, "started": {}}),
        ("results.json", {"flow": "\ud800", "parameters": 10**400, "steps": 10**400, "test_nll": 10**400}),
        ("schema.json", {"dataset": "\ud800", "rows": {"train": 10**400, "test": "x"}, "columns": [{"name": []}]}),
        ("evaluation.json", {"steps": 10**400, "baselines": [{"nll": {"nll": 10**400}, "label": []}], "gains": []}),
        ("environment.json", {"versions": {"pushforward": {}}, "argv": [None, {}]}),
        ("metrics.jsonl", {"step": 10**400, "seconds": 10**400, "kind": [], "val/nll": 10**400}),
        (
            "selection.json",
            {"candidates": [{"flow": [], "val_nll": 10**400}, 3], "step_seconds": {}, "seconds": 10**400},
        ),
        (
            "model/config.json",
            {"flow": {"members": [{"base": []}, {"bijection": {"bijections": [1, {}]}}], "weights": ["x", None]}},
        ),
    ],
)
def test_absurd_numbers_and_text(fitted: RunFolder, tmp_path: Path, name: str, content: dict[str, Any]) -> None:
    run = copied(fitted, tmp_path / "run")
    (run.path / name).write_text(json.dumps(content) + "\n")
    check(write_report(run).read_text(encoding="utf-8"))
    for damage in ("[" * 100_000, '{"a": ' * 100_000):
        (run.path / name).write_text(damage + "\n")
        check(write_report(run).read_text(encoding="utf-8"))
    (run.path / name).unlink()
    (run.path / name).mkdir()
    check(write_report(run).read_text(encoding="utf-8"))


def test_baselines_beside_the_curves_are_those_of_the_validation_rows(fitted: RunFolder, tmp_path: Path) -> None:
    run = copied(fitted, tmp_path / "run")
    evaluation = json.loads((run.path / "evaluation.json").read_text())
    for i, baseline in enumerate(evaluation["baselines"]):
        baseline["validation_nll"], baseline["nll"]["nll"] = 4.25 + i / 100, 5.75 + i / 100
    rows = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    rows = [row for row in rows if row["kind"] != "reference"]

    def drawn() -> str:
        run.write_json("evaluation.json", evaluation)
        run.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(training(read_run(run)))

    text = drawn()
    assert "Baselines are NLLs on the validation rows." in text
    assert "4.250" in text
    assert "5.750" not in text
    rows.append({"step": 30, "seconds": 1.0, "kind": "reference", "baseline/gaussian": 3.125, "baseline/kde": None})
    text = drawn()
    assert "3.125" in text
    assert "4.250" not in text
    del rows[-1]
    for baseline in evaluation["baselines"]:
        del baseline["validation_nll"]
    text = drawn()
    assert "Baselines are NLLs on the test rows. Those on the validation rows" in text
    assert "5.750" in text


def test_an_evaluation_of_an_earlier_model(fitted: RunFolder, tmp_path: Path) -> None:
    run = copied(fitted, tmp_path / "run")
    evaluation, results = (json.loads((run.path / f"{name}.json").read_text()) for name in ("evaluation", "results"))
    decimals = decimals_of(gain["se"] for gain in evaluation["gains"].values())
    gains = [fixed(gain["nats"], decimals, gain["se"], signed=True) for gain in evaluation["gains"].values()]
    run.write_json("evaluation.json", evaluation | {"steps": results["steps"]})
    now = check(write_report(run).read_text(encoding="utf-8")).text
    assert "before the fit continued" not in now
    assert gains[0] in now
    new = {"train_nll": 1.2345, "val_nll": 1.3456, "test_nll": 1.4567, "test_nll_se": 0.0123}
    run.write_json("results.json", results | new | {"steps": 5000})
    page = check(write_report(run).read_text(encoding="utf-8"))
    phrase = f"of the model at step {results['steps']}, before the fit continued to step 5,000"
    assert page.text.count(phrase) == 3  # pictures, calibration and rows
    for value in ("1.234", "1.346", "1.457 ± 0.012", "Gaussian", "PIT histograms"):
        assert value in page.text
    old = [measured(evaluation[part]["nll"], evaluation[part]["se"]) for part in ("train", "test")]
    for text in (*gains, *old, "Gain over", "of a classifier that", "Inversion"):
        assert text not in page.text
    run.results.unlink()
    with open(run.metrics, "a") as file:
        file.write(json.dumps({"step": 4000, "seconds": 9.0, "kind": "train", "train/nll": 2.0}) + "\n")
    assert "continued to step 4,000" in check(write_report(run).read_text(encoding="utf-8")).text


def test_pictures_with_a_chart_on_the_page_exist(fitted: RunFolder) -> None:
    assert {f"{name}.png" for name in DRAWN_ELSEWHERE} <= {path.name for path in fitted.pictures.iterdir()}


def test_damaged_sections_are_left_out_with_a_sentence(fitted: RunFolder) -> None:
    record = read_run(fitted)
    evaluation = {**record.evaluation, "calibration": {"pit": {"counts": [[1, 2], [3]]}}}
    page = check(run_page(type(record)(**{**vars(record), "evaluation": evaluation})))
    assert page.text.count("Left out") == 1
    assert "Test NLL, best first" in page.text


def test_runs_without_evaluation(tmp_path: Path) -> None:
    run = make(tmp_path / "run", STATES["stopped"])
    run.write_json("results.json", {"flow": "maf", "test_nll": 1.5, "test_nll_se": 0.1, "steps": 20, "seconds": 2.0})
    page = check(write_report(run).read_text(encoding="utf-8"))
    assert "1.50 ± 0.10" in re.sub(r"\s+", " ", page.text)
    assert "has not been evaluated" in page.text
    run.write_json("results.json", {"flow": "maf", "test_nll": None, "val_nll": 1.0, "steps": 20, "seconds": 2.0})
    page = check(write_report(run).read_text(encoding="utf-8"))
    assert "There are no test rows" in page.text


def test_fifty_columns_and_a_long_fit_stay_small(tmp_path: Path) -> None:
    run, rng = make(tmp_path / "wide", STATES["stopped"]), np.random.default_rng(0)
    names = [f"a rather long name of a column, number {i}" for i in range(50)]
    layers = [f"{i:02d}-masked-autoregressive" for i in range(12)]
    with open(run.metrics, "w") as file:
        for step in range(20_000):
            noise = rng.standard_normal(30)
            row = {"step": step, "seconds": step / 10, "kind": "train", "train/nll": noise[0], "train/grad_norm": 2.0}
            row |= {f"grad_norm/{layer}": abs(noise[i]) + 0.1 for i, layer in enumerate(layers)}
            row |= {f"log_det/{layer}": noise[i] for i, layer in enumerate(layers)}
            file.write(json.dumps(row | {"val/nll": noise[1], "val/nll_se": 0.1}) + "\n")
    for name in ("density", "corner", "latent", "another"):
        (run.pictures / f"{name}.png").write_bytes(rng.bytes(900_000))
    levels = np.linspace(0.01, 0.99, 27)
    values = np.sort(rng.standard_normal((50, 27))).tolist()
    row = {name: float(value) for name, value in zip(names, rng.standard_normal(50), strict=True)}
    scored = [{"row": i, "log_prob": -1.5, "values": row} for i in range(10)]
    pit = {"edges": np.linspace(0, 1, 21).tolist(), "counts": rng.integers(50, 100, (50, 20)).tolist()}
    run.write_json("evaluation.json", {
        "calibration": {"rows": 1500, "columns": names, "pit": pit,
                        "quantiles": {"levels": levels.tolist(), "held_out": values, "samples": values}},
        "extreme_rows": {"worst": scored, "best": scored},
        "samples": {"rows": 10, "held_out_rows": 10, "ks": dict.fromkeys(names, 0.1), "c2st": {}},
    })  # fmt: skip
    columns = [{"name": name, "type": "double", "minimum": 0.0, "maximum": 1.0, "distinct": 9} for name in names]
    run.write_json("schema.json", {"dataset": "wide", "columns": columns, "rows": {"train": 1, "test": 1}})
    run.write_json("results.json", {"test_nll": 1.0, "test_nll_se": 0.1})
    path = write_report(run)
    page = check(path.read_text(encoding="utf-8"))
    assert path.stat().st_size < 3_000_000
    assert len(page.of("img")) == 2
    assert "latent.png, another.png" in page.text
    assert "The other 38" in page.text
    assert "12 of 50 columns" in page.text


def test_long_records_are_thinned_and_keep_their_validation_and_their_end(tmp_path: Path) -> None:
    run = make(tmp_path / "run", STATES["stopped"])
    rows = [{"step": i, "seconds": i / 10, "kind": "train", "train/nll": 1.0} for i in range(2 * TRAINING_ROWS + 8)]
    rows[100::100] = [{**row, "kind": "validation", "val/nll": 2.0} for row in rows[100::100]]
    run.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows) + "[]\n")
    record = read_run(run)
    assert len(record.curve("val/nll")[0]) == len(rows[100::100])
    assert TRAINING_ROWS / 2 < len(record.curve("train/nll")[0]) <= 1.1 * TRAINING_ROWS
    assert record.stride == 2
    assert record.step == rows[-1]["step"]
    assert record.problems == [f"metrics.jsonl: 1 of {len(rows) + 1} lines hold no JSON object"]
    assert "One in 2 of the recorded batches" in check(run_page(record)).text


def test_a_fit_that_is_running_shows_its_last_picture(fitted: RunFolder, tmp_path: Path) -> None:
    run = make(tmp_path / "run", STATES["running"])
    image = (fitted.pictures / "corner.png").read_bytes()
    for step in range(0, 90, 10):
        (run.pictures / "progress").mkdir(exist_ok=True)
        (run.pictures / "progress" / f"step-{step:07d}.png").write_bytes(image)
    page = check(write_report(run).read_text(encoding="utf-8"))
    assert [re.sub(r".*at (step \d+).*", r"\1", image["alt"]) for image in page.of("img")] == [
        "step 80", "step 0", "step 20", "step 40", "step 60"
    ]  # fmt: skip
    run.release()


def test_plain_text_is_escaped() -> None:
    assert tag("p", "<b>", Html("<b></b>"), title='"<&') == '<p title="&quot;&lt;&amp;">&lt;b&gt;<b></b></p>'
    text = document("</title><script>x</script>", tag("h1", "</script>"), generator="g")
    assert Page(text).of("script") == [{}]


def _luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", [0, 1])
def test_contrast(theme: int) -> None:
    blocks = re.findall(r":root \{(.*?)\}", STYLE, flags=re.DOTALL)
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", blocks[theme]))

    def contrast(a: str, b: str) -> float:
        high, low = sorted((_luminance(colours[a]), _luminance(colours[b])), reverse=True)
        return (high + 0.05) / (low + 0.05)

    for text in ("text", "muted", "link", "good", "fair", "bad"):
        for ground in ("ground", "card", "soft"):
            assert contrast(text, ground) >= 4.5, (text, ground)
    for kind in ("good", "fair", "bad"):
        assert contrast(kind, f"{kind}-soft") >= 4.5
        assert contrast("text", f"{kind}-soft") >= 4.5
    for number in range(8):
        assert contrast(f"s{number}", "card") >= 3.0
