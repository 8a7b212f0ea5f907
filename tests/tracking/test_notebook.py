"""A fit in a real notebook kernel: a bar that disappears, wrapped messages, and no output that looks like an error."""

import re
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pytest

CELL = """
import numpy as np, pushforward
x = np.random.default_rng(0).normal(size=(300, 12)).round(1)
names = [f"a column with a long name, number {i}" for i in range(12)]
density = pushforward.fit(dict(zip(names, x.T)), flow="maf", layers=1, hidden=8, steps=60)
density
"""


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_fit_in_a_notebook_shows_its_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(tmp_path))
    make: Any = nbformat.v4
    notebook = make.new_notebook(cells=[make.new_code_cell(CELL)])
    nbclient.NotebookClient(notebook, timeout=120).execute()
    outputs: list[Any] = notebook.cells[0].outputs
    assert any("application/vnd.jupyter.widget-view+json" in one.get("data", {}) for one in outputs)
    streams = [one for one in outputs if one["output_type"] == "stream"]
    assert {one["name"] for one in streams} == {"stdout"}
    assert re.match(r" *\d+%  step \d+", streams[0]["text"])
    messages = [one["data"]["text/plain"] for one in outputs if "text/html" in one.get("data", {})]
    (note,) = [text for text in messages if "number 3" in text]
    assert max(map(len, note.splitlines())) <= 120
    shown = next(one["data"]["text/plain"] for one in outputs if one["output_type"] == "execute_result")
    assert re.match(r"<FittedDensity: \w+ of a column with a long name, number 0, .*; test NLL [\d.]+ ± ", shown)
