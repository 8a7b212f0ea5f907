"""The layout of the packages: one namespace from several root folders, light imports, no private names in tests."""

import ast
import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

import pushforward

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "pushforward"
FOLDERS = ("datasets", "evaluate", "flows", "train")
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
SETUPTOOLS: dict[str, Any] = PROJECT["tool"]["setuptools"]


def python(code: str, cwd: Path, *flags: str) -> str:
    """Run code in a new interpreter with only src/ on the path; return what it prints."""
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, *flags, "-c", code]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def application_modules() -> list[Path]:
    """Return the Python files of src/pushforward, without those in the linked folders."""
    return [path for path in PACKAGE.rglob("*.py") if path.relative_to(PACKAGE).parts[0] not in FOLDERS]


def library_modules() -> list[Path]:
    """Return the Python files of the four root folders."""
    return [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]


def test_every_package_is_listed() -> None:
    found = {"pushforward"}
    for folder in FOLDERS:
        for init in (ROOT / folder).rglob("__init__.py"):
            found.add(".".join(["pushforward", *init.parent.relative_to(ROOT).parts]))
    for module in application_modules():
        if module.name == "__init__.py" and module.parent != PACKAGE:
            found.add(".".join(["pushforward", *module.parent.relative_to(PACKAGE).parts]))
    assert set(SETUPTOOLS["packages"]) == found
    assert set(SETUPTOOLS["package-dir"]) == found


def test_every_mapped_folder_is_a_package() -> None:
    for package, folder in SETUPTOOLS["package-dir"].items():
        assert (ROOT / folder / "__init__.py").is_file(), package


@pytest.mark.parametrize("folder", FOLDERS)
def test_links_point_to_the_root_folders(folder: str) -> None:
    link = PACKAGE / folder
    assert link.is_symlink(), f"{link} is not a link: this copy of the project has lost its symbolic links"
    assert os.readlink(link) == f"../../{folder}"
    assert link.resolve() == ROOT / SETUPTOOLS["package-dir"][f"pushforward.{folder}"]


def test_every_linked_folder_is_mapped() -> None:
    assert {p.name for p in PACKAGE.iterdir() if p.is_symlink()} == set(FOLDERS)


def test_type_information_is_packaged() -> None:
    assert (PACKAGE / "py.typed").is_file()
    assert SETUPTOOLS["package-data"]["pushforward"] == ["py.typed"]


def test_the_version_is_a_string_of_numbers() -> None:
    assert SETUPTOOLS["dynamic"]["version"]["attr"] == "pushforward.common.version.__version__"
    assert all(part.isdigit() for part in pushforward.__version__.split("."))


def test_importing_the_package_imports_nothing_else(tmp_path: Path) -> None:
    code = (
        "import sys; old = set(sys.modules); import pushforward; new = set(sys.modules) - old\n"
        "print(sorted(name for name in new if name.partition('.')[0] not in sys.stdlib_module_names))"
    )
    assert python(code, tmp_path) == str(
        [f"pushforward{part}" for part in ("", ".common", ".common.lazy", ".common.version")]
    )


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["fit", "--help"]], ids=" ".join)
def test_help_does_not_import_heavy_libraries(arguments: list[str], tmp_path: Path) -> None:
    code = (
        "import sys\n"
        f"sys.argv = ['pushforward', *{arguments!r}]\n"
        "from pushforward.cli import main\n"
        "try:\n"
        "    main()\n"
        "except SystemExit as stop:\n"
        "    assert not stop.code, stop.code\n"
        "heavy = {'torch', 'matplotlib', 'wandb', 'sklearn', 'pyarrow'} & set(sys.modules)\n"
        "print('\\nheavy:', sorted(heavy))\n"
    )
    printed = python(code, tmp_path)
    assert printed.endswith("heavy: []")
    assert "Traceback" not in printed


def test_importing_flows_changes_no_global_state(tmp_path: Path) -> None:
    code = (
        "import random, sys, warnings, numpy, torch\n"
        "def state():\n"
        "    return (torch.get_default_dtype(), torch.get_num_threads(), torch.random.get_rng_state().tolist(),\n"
        "            random.getstate(), list(warnings.filters), numpy.random.get_state()[1].tolist(),\n"
        "            torch.is_grad_enabled(), torch.is_deterministic_algorithms_enabled() if\n"
        "            hasattr(torch, 'is_deterministic_algorithms_enabled') else None)\n"
        "import nflows.transforms\n"  # nflows may change global state
        "before = state()\n"
        "import pushforward.flows\n"
        "print(state() == before)\n"
    )
    assert python(code, tmp_path) == "True"


def test_root_folders_are_not_top_level_modules() -> None:
    # In the root of the repository, `import datasets` would find our folder.
    code = (
        "import sys\n"
        "import pushforward.cli, pushforward.datasets, pushforward.evaluate, pushforward.flows, pushforward.train\n"
        "import wandb\n"
        "print(sorted({'datasets', 'evaluate', 'flows', 'train'} & set(sys.modules)))\n"
        # A mistaken import from the root gives the same class, not a second copy of it.
        "from flows import Flow\n"
        "print(Flow is pushforward.flows.Flow)\n"
    )
    assert python(code, ROOT).split("\n") == ["[]", "True"]


def test_a_safe_path_hides_the_root_folders() -> None:
    code = (
        "import importlib.util, json\n"
        "found = [importlib.util.find_spec(name) for name in ('datasets', 'evaluate', 'flows', 'train')]\n"
        "print(json.dumps([spec.origin for spec in found if spec]))\n"
    )
    origins = json.loads(python(code, ROOT, "-P"))
    assert [origin for origin in origins if Path(origin).resolve().is_relative_to(ROOT / "datasets")] == []
    assert [o for o in origins if Path(o).parent.parent == ROOT] == []


def test_every_folder_with_modules_is_a_package() -> None:
    folders = {path.parent for path in [*application_modules(), *library_modules()]}
    assert [folder for folder in folders if not (folder / "__init__.py").exists()] == []


def test_every_package_has_a_docstring() -> None:
    packages = [path for path in [*application_modules(), *library_modules()] if path.name == "__init__.py"]
    assert [str(path) for path in packages if not ast.get_docstring(ast.parse(path.read_text()))] == []


def is_private(name: object) -> bool:
    return isinstance(name, str) and name.startswith("_") and not name.endswith("__")


def private_uses(source: str) -> list[str]:
    """Return the private names of pushforward, and the names of other test files, that a test file uses."""
    tree = ast.parse(source)
    ours = set[str]()  # names that are bound to modules and objects of pushforward
    found = list[str]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                if name.name.partition(".")[0] == "pushforward":
                    ours.add(name.asname or "pushforward")
                elif name.name.startswith("tests.") and not name.name.startswith("tests.fixtures"):
                    found.append(f"import {name.name}")
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level or (module.partition(".")[0] == "tests" and not module.startswith("tests.fixtures")):
                found += [f"from {module} import {name.name}" for name in node.names]
            elif module.partition(".")[0] == "pushforward":
                ours |= {name.asname or name.name for name in node.names}
                found += [f"from {module} import {name.name}" for name in node.names if is_private(name.name)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            if ast.unparse(node.value).partition(".")[0] in ours:
                found.append(ast.unparse(node))
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("setattr") and len(node.args) > 1:
            owner, attribute = node.args[:2]
            if (
                ast.unparse(owner).partition(".")[0] in ours
                and isinstance(attribute, ast.Constant)
                and is_private(attribute.value)
            ):
                found.append(ast.unparse(node))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found += re.findall(r"^pushforward(?:\.\w+)*\._[a-z]\w*$", node.value)
    return found


def test_private_uses_are_found() -> None:
    used = """
import tests.runs.test_folder
import pushforward.runs.folder as folder
from pushforward.runs import listing, _hidden
from tests.runs.test_folder import make
from tests.fixtures.paths import ROOT
from .other import thing
folder._lock, listing.RunSummary._x, listing.__name__, ROOT._private
monkeypatch.setattr(listing, "_paths", 1)
monkeypatch.setattr("PACKAGE.runs.listing._paths", 1)
"""
    assert sorted(private_uses(used.replace("PACKAGE", "pushforward"))) == [
        "folder._lock",
        "from other import thing",
        "from pushforward.runs import _hidden",
        "from tests.runs.test_folder import make",
        "import tests.runs.test_folder",
        "listing.RunSummary._x",
        "monkeypatch.setattr(listing, '_paths', 1)",
        "pushforward.runs.listing." + "_paths",
    ]


@pytest.mark.parametrize("file", sorted((ROOT / "tests").rglob("*.py")), ids=lambda file: str(file.relative_to(ROOT)))
def test_tests_use_no_private_names_and_no_other_test_file(file: Path) -> None:
    assert private_uses(file.read_text()) == []


APPLICATION = {
    "benchmark",
    "cli",
    "commands",
    "config",
    "experiment",
    "gradients",
    "reports",
    "runs",
    "sweeps",
    "tracking",
}
LIBRARY_TESTS = [file for folder in FOLDERS for file in sorted((ROOT / "tests" / folder).rglob("*.py"))]


def application_imports(source: str) -> set[str]:
    """Return the parts of the application that a test file imports."""
    found = set[str]()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{name.name}" for name in node.names)]
        else:
            continue
        parts = [name.split(".") for name in names]
        found |= {part[1] for part in parts if part[0] == "pushforward" and len(part) > 1 and part[1] in APPLICATION}
    return found


def test_application_imports_are_found() -> None:
    source = (
        "import pushforward.cli\nfrom pushforward import runs, flows\ndef f():\n    from pushforward.train import x"
    )
    assert application_imports(source) == {"cli", "runs"}
    assert application_imports("from pushforward.config.schema import FlowConfig") == {"config"}


@pytest.mark.parametrize("file", LIBRARY_TESTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_tests_of_the_library_do_not_use_the_application(file: Path) -> None:
    # train still takes its options from the schema.
    allowed = {"config"} if file.is_relative_to(ROOT / "tests" / "train") else set[str]()
    assert application_imports(file.read_text()) <= allowed


def test_lazy_exports_agree_with_those_for_type_checkers() -> None:
    for path in [*application_modules(), *library_modules()]:
        tree = ast.parse(path.read_text())
        blocks = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
        if path.name != "__init__.py" or not blocks:
            continue
        folder = path.parent.relative_to(PACKAGE if path.is_relative_to(PACKAGE) else ROOT)
        package = importlib.import_module(".".join(["pushforward", *folder.parts]))
        seen = {name.name for node in blocks[0].body if isinstance(node, ast.ImportFrom) for name in node.names}
        assert set(dir(package)) - {"__version__"} == seen, package
        for name in seen:
            assert getattr(package, name) is not None


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("setuptools") is None, reason="needs setuptools to build")
def test_the_wheel_holds_every_module(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "src", *FOLDERS):
        # Copies, as on a system without symbolic links.
        subprocess.run(["cp", "-r", str(ROOT / name), str(copy)], check=True)
    code = f"from setuptools import build_meta; print(build_meta.build_wheel({str(tmp_path)!r}))"
    wheel = tmp_path / python(code, copy).splitlines()[-1]
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    expected = {f"pushforward/{path.relative_to(PACKAGE)}" for path in application_modules()} | {"pushforward/py.typed"}
    expected |= {f"pushforward/{path.relative_to(ROOT)}" for path in library_modules()}
    expected |= {f"pushforward/{path.relative_to(ROOT)}" for path in (ROOT / "flows" / "kernels").glob("*.[ch]")}
    for data in ("recipes", "spaces"):
        files = [path for path in (PACKAGE / "config" / data).rglob("*") if path.is_file()]
        expected |= {f"pushforward/{path.relative_to(PACKAGE)}" for path in files}
    assert {name for name in names if ".dist-info/" not in name} == expected
