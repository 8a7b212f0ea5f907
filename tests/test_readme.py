"""What README and docs/ show works: Python examples run; commands, keys, options, links and pictures exist."""

import ast
import inspect
import itertools
import pkgutil
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from pushforward.cli import main
from pushforward.config.read import describe_keys

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PLUGIN = ROOT / "docs" / "extending.md"
USER_PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]
PAGES = [*USER_PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "benchmarks" / "README.md"]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def commands(page: Path) -> list[list[str]]:
    """The words of each `pushforward` command in the shell blocks of a page, without plugins."""
    lines = [shlex.split(line, comments=True) for block in blocks(page, "sh") for line in block.splitlines()]
    found = [words[1:] for words in lines if words and words[0] == "pushforward"]
    return [words[2:] if words[0] == "--plugin" else words for words in found]


def help_of(words: list[str]) -> str:
    """The help of the command that the words call, of a subcommand where they name one."""
    command: click.Command = main
    path: list[str] = []
    for word in words:
        if not isinstance(command, click.Group):
            break
        found = command.get_command(click.Context(command), word)
        if found is None:
            break
        command, path = found, [*path, word]
    assert path, words
    result = CliRunner().invoke(main, [*path, "--help"])
    assert result.exit_code == 0, words
    return result.output


@pytest.mark.parametrize(
    "page", [page for page in USER_PAGES if blocks(page, "python") and page != PLUGIN], ids=name_of
)
def test_python_examples_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "example"}
    for example in blocks(page, "python"):
        exec(compile(example, page.name, "exec"), names)
    if page == README:
        assert (tmp_path / "model" / "model.safetensors").exists()
    if page.name == "flows.md":
        assert names["new"].shape == (1000, 5)


def test_the_page_about_parts_of_ones_own_is_a_plugin(tmp_path: Path) -> None:
    (tmp_path / "my_parts.py").write_text("\n".join(blocks(PLUGIN, "python")))
    keys = ["flow=realnvp", "flow.univariate=bend", "flow.base=gumbel", "flow.conditioner=sine"]
    command = ["--plugin", "my_parts.py", "fit", "moons", *keys, "--dry-run"]
    # In a process of its own, because what the page registers stays.
    subprocess.run(
        [sys.executable, "-W", "error", "-m", "pushforward", *command], cwd=tmp_path, check=True, timeout=120
    )


@pytest.mark.parametrize("page", [page for page in USER_PAGES if commands(page)], ids=name_of)
def test_every_command_and_key_exists(page: Path) -> None:
    keys = {description.key for description in describe_keys()} | {"flow", "wandb"}
    for words in commands(page):
        shown = help_of(words)
        for before, word in itertools.pairwise(words):
            if word.startswith("--"):
                assert word in shown, words
            elif "=" in word and before.startswith("--"):
                continue  # the value of an option
            else:
                for key in re.findall(r"([a-z_.]+)=", word):
                    assert key in keys, words


def test_the_readme_shows_the_commands() -> None:
    assert len(commands(README)) >= 8


def test_every_key_named_in_the_text_exists() -> None:
    keys = {description.key for description in describe_keys()}
    sections = {key.partition(".")[0] for key in keys if "." in key}
    for page in USER_PAGES:
        for code in re.findall(r"`([^`\n]+)`", page.read_text(encoding="utf-8")):
            for section, key in re.findall(r"(?<![\w./])(\w+)\.([a-z_]+)(?==|$)", code):
                if section in sections and not code.endswith((".py", ".npy", ".csv")):
                    assert f"{section}.{key}" in keys, (name_of(page), code)


def test_every_python_name_in_the_text_exists() -> None:
    for page in (*USER_PAGES, ROOT / "CONTRIBUTING.md"):
        for code in re.findall(r"`([^`\n]+)`", page.read_text(encoding="utf-8")):
            for name in re.findall(r"pushforward(?:\.[A-Za-z_]+)+", code):
                pkgutil.resolve_name(name)


def test_every_call_in_the_text_fits_its_signature() -> None:
    seen = 0
    for page in (*USER_PAGES, ROOT / "CONTRIBUTING.md"):
        for code in re.findall(r"`(pushforward(?:\.[A-Za-z_]+)+\([^`]*\))`", page.read_text(encoding="utf-8")):
            call = ast.parse(re.sub(r"\s+", " ", code), mode="eval").body
            assert isinstance(call, ast.Call), code
            if any(argument.value is ... for argument in call.args if isinstance(argument, ast.Constant)):
                continue  # `f(...)` names a function and leaves its arguments out
            keywords = {keyword.arg: None for keyword in call.keywords if keyword.arg}
            called = pkgutil.resolve_name(ast.unparse(call.func))
            try:
                inspect.signature(called).bind(*call.args, **keywords)
            except TypeError as error:
                pytest.fail(f"{name_of(page)}: {code}: {error}")
            seen += 1
    assert seen, "no call was found: the pattern is wrong"


def test_every_file_that_contributing_names_exists() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = [code for code in re.findall(r"`([\w./-]+)`", text) if "/" in code and not code.startswith("results/")]
    assert len(named) > 20
    for name in named:
        assert any((folder / name).exists() for folder in (ROOT, ROOT / "src" / "pushforward")), name


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_have_targets(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    targets = [target for target in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in target]
    for target in targets:
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
            anchors = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
            assert anchor in anchors, target
