"""What the README shows works: its Python runs, its commands and keys exist, its pictures are there."""

import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from pushforward.cli import main
from pushforward.config.read import describe_keys

README = Path(__file__).parent.parent / "README.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)


def test_the_python_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (example,) = blocks("python")
    exec(compile(example, "README.md", "exec"), {})
    assert (tmp_path / "model" / "model.safetensors").exists()


def test_the_python_example_of_the_flows_runs() -> None:
    (example,) = re.findall(r"```python\n(.*?)```", (README.parent / "docs" / "flows.md").read_text(), flags=re.DOTALL)
    found: dict[str, Any] = {}
    exec(compile(example, "flows.md", "exec"), found)
    assert found["new"].shape == (1000, 5)


def test_every_command_and_key_exists() -> None:
    lines = [line.split("#")[0].split() for block in blocks("sh") for line in block.splitlines()]
    shown = [words for words in lines if words and words[0] == "pushforward"]
    assert len(shown) >= 8
    keys = {description.key for description in describe_keys()} | {"flow"}
    for words in shown:
        result = CliRunner().invoke(main, [words[1], "--help"])
        assert result.exit_code == 0, words
        for word in words[2:]:
            if word.startswith("--"):
                assert word in result.output, words
            elif "=" in word and words[words.index(word) - 1] != "--given":
                assert word.partition("=")[0] in keys, words


def test_pictures_and_links_are_there() -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", README.read_text(encoding="utf-8"))
    assert targets
    for target in targets:
        assert (README.parent / target).exists(), target
