"""Plugins: modules by name, files, and entry points of installed packages, each imported once."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pushforward.common.errors import ConfigError
from pushforward.common.plugins import VARIABLE, load_plugins, name_plugins

SOURCE = Path(__file__).parent.parent.parent / "src"
COUNT = "import pathlib\nwith pathlib.Path({log!r}).open('a') as log:\n    log.write(__name__ + '\\n')\n"

_numbers = itertools.count()


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module of its own name in the current folder, which writes a line when it is imported."""
    path = tmp_path / f"counted_{next(_numbers)}.py"
    path.write_text(COUNT.format(log=str(tmp_path / "log")))
    monkeypatch.setenv(VARIABLE, "")
    monkeypatch.chdir(tmp_path)
    return path


def imports(module: Path) -> list[str]:
    log = module.with_name("log")
    return log.read_text().split() if log.exists() else []


def test_a_module_of_the_current_folder_is_imported_once(module: Path) -> None:
    path = list(sys.path)
    name_plugins([module.stem, module.stem])
    assert imports(module) == []  # naming is not loading
    load_plugins()
    load_plugins()
    assert imports(module) == [module.stem]
    assert sys.path == path


def test_a_file_is_imported_once_and_found_from_another_folder(module: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name_plugins([f"./{module.name}"])
    assert os.environ[VARIABLE] == str(module)
    (module.parent / "elsewhere").mkdir()
    monkeypatch.chdir(module.parent / "elsewhere")
    load_plugins()
    name_plugins([str(module)])
    load_plugins()
    (name,) = imports(module)
    assert name.startswith(module.stem)
    assert name in sys.modules  # dataclasses and pickle look there


def test_two_files_of_one_name_are_two_plugins(module: Path) -> None:
    other = module.parent / "other" / module.name
    other.parent.mkdir()
    other.write_text(module.read_text())
    name_plugins([str(module), str(other)])
    load_plugins()
    assert len(set(imports(module))) == 2


def test_plugins_of_the_environment_stay(module: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "json")
    name_plugins([])
    assert os.environ[VARIABLE] == "json"
    name_plugins([module.stem])
    assert os.environ[VARIABLE].split(os.pathsep) == ["json", module.stem]


@pytest.mark.parametrize(
    ("plugin", "message"),
    [
        ("no_such_module", "--plugin: no module named 'no_such_module'; give its file, as in ./no_such_module.py"),
        ("json.nothing", "--plugin: no module named 'json.nothing'; give its file, as in ./json.nothing.py"),
        ("./folder", "--plugin: expected the name of a module, or a file that ends in .py; got ./folder"),
        ("missing.py", "--plugin: {folder}/missing.py: no such file"),
        ("fails.py", "--plugin: {folder}/fails.py: ZeroDivisionError: division by zero"),
        ("needs.py", "--plugin: {folder}/needs.py: No module named 'no_such_module'"),
        ("wrong.py", "--plugin: {folder}/wrong.py: SyntaxError: invalid syntax (wrong.py, line 1)"),
    ],
)
def test_a_plugin_that_cannot_be_imported_is_one_line(plugin: str, message: str, module: Path) -> None:
    folder = module.parent
    (folder / "fails.py").write_text("1 / 0\n")
    (folder / "needs.py").write_text("import no_such_module\n")
    (folder / "wrong.py").write_text("1 +* 2\n")
    name_plugins([plugin])
    for _ in range(2):  # also when it is asked for again
        with pytest.raises(ConfigError) as error:
            load_plugins()
        assert str(error.value) == message.format(folder=folder)


def test_entry_points_are_loaded_once_and_a_broken_one_is_a_warning(module: Path) -> None:
    information = module.parent / "their-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: their\nVersion: 1.0\n")
    points = f"[pushforward.plugins]\nbroken = no_such_module\nmine = {module.stem}\n"
    (information / "entry_points.txt").write_text(points)
    program = "from pushforward.common.plugins import load_plugins\nload_plugins(print)\nload_plugins(print)\n"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": str(module.parent)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    warning = "warning: the plugin broken (no_such_module) cannot be loaded: No module named 'no_such_module'"
    assert done.stdout.splitlines() == [warning]
    assert imports(module) == [module.stem]


def test_naming_plugins_searches_no_packages() -> None:
    program = (
        "import sys; from pushforward.common.plugins import name_plugins; name_plugins(['x'])\n"
        "assert not {'importlib.metadata', 'hashlib', 'torch'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-S", "-c", program], cwd=SOURCE, check=True, timeout=60)
