"""Targets are loaded by name or from a module of the user; errors are one line."""

import math
import sys
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from pushforward.common.errors import DataError
from pushforward.datasets import TARGETS, TargetError, load, load_target, names
from pushforward.datasets.targets.names import targets


def test_targets_are_listed() -> None:
    assert [entry.name for entry in targets()] == list(TARGETS)
    listed = {entry.name: entry for entry in names() if entry.kind == "target"}
    assert list(listed) == [f"target:{name}" for name in TARGETS]
    for source, entry in listed.items():
        target = load_target(source)
        assert (f"target:{target.name}", target.features, target.description) == (source, entry.columns, entry[-1])
        assert target.log_z is not None
        assert target.entropy is not None
        assert entry.rows is None


def test_case_underscores_and_prefix_do_not_matter() -> None:
    assert load_target("target:Many_Well", 4).name == "many-well"
    assert load_target("u1", 2).name == "u1"


@pytest.mark.parametrize(
    ("source", "features", "message"),
    [
        (
            "target:funel",
            None,
            r"unknown target 'funel'; did you mean 'funnel'\? known: u1, .*banana; or target:MODULE:",
        ),
        ("target:", None, r"unknown target ''; known: u1"),
        ("target:u1", 3, r"target:u1: has 2 features; got 3"),
        ("target:many-well", 7, r"many-well: expected an even number of features; got 7"),
        ("target:funnel", 1, r"funnel: expected features of at least 2; got 1"),
        ("target:gaussian", 0, r"target:gaussian: expected features of at least 1; got 0"),
        ("target:nowhere:f", 2, r"target:nowhere:f: no module 'nowhere' in /.* nor among the installed ones"),
        ("target:math:", 2, r"target:math:: expected target:MODULE:FUNCTION"),
        ("target:math.nowhere:f", 2, r"'math' is not a package|no module 'math.nowhere'"),
        ("target:math:sqr", 2, r"target:math:sqr: .*math.* has no 'sqr'; did you mean 'sqrt'\?"),
        ("target:math:pi", 2, r"target:math:pi: expected a function or a Target; got float"),
        ("target:fractions:Fraction", 2, r"expected a function or a Target; got the class Fraction"),
        ("target:math:cos", None, r"target:math:cos: the number of coordinates is unknown; set target\.features=D"),
    ],
)
def test_messages_about_targets_that_cannot_be_loaded(source: str, features: int | None, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        load_target(source, features)
    assert "\n" not in str(caught.value)


def test_bounds_belong_to_functions() -> None:
    with pytest.raises(DataError, match=r"target:u2: its bounds and spread are known"):
        load_target("target:u2", bounds=(-1.0, 1.0))


def test_a_target_has_no_rows() -> None:
    with pytest.raises(DataError, match="target:u1: is a log-density and has no rows; `pushforward fit target:u1`"):
        load("target:u1")
    with pytest.raises(DataError, match=r"unknown dataset 'funnel'; did you mean 'target:funnel'\?"):
        load("funnel")


MODULE = """
import torch
from own_constants import WIDTH
from pushforward.datasets import Target

def log_density(x):
    return -0.5 * (x / WIDTH).square().sum(-1)

def broken(x):
    raise ValueError(f"no good at\\n{len(x)} points")

class Fixed(Target):
    features = 3
    def log_prob(self, x):
        return -x.square().sum(-1)

class AnyFeatures(Target):
    def __init__(self, features):
        self.features = features
    def log_prob(self, x):
        return -x.square().sum(-1)

ready = AnyFeatures(4)
posterior = torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current directory with modules of the user."""
    (tmp_path / "own_target.py").write_text(MODULE)
    (tmp_path / "own_constants.py").write_text("WIDTH = 2.0\n")
    (tmp_path / "own_bad.py").write_text("import own_missing\n")
    (tmp_path / "own_worse.py").write_text("def f(x)\n")
    (tmp_path / "own_exit.py").write_text("raise SystemExit(3)\n")
    monkeypatch.chdir(tmp_path)
    for name in ("own_target", "own_constants", "own_bad", "own_worse", "own_exit"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


def test_a_function_of_the_user(here: Path) -> None:
    path = list(sys.path)
    target = load_target("target:own_target:log_density", 3)
    assert sys.path == path
    assert (target.name, target.features, target.log_z, target.bounds) == ("own_target:log_density", 3, None, None)
    assert not target.has_samples
    assert target.sample(3, seed=0) is None
    x = torch.randn(4, 5, 3, dtype=torch.float64)
    assert_close(target.log_prob(x), -x.square().sum(-1) / 8)
    assert_close(target.score_function(x), -x / 4)
    assert_close(torch.func.vmap(torch.func.vmap(target.log_prob))(x), -x.square().sum(-1) / 8)
    assert_close(torch.compile(target.log_prob, fullgraph=True, backend="eager")(x), -x.square().sum(-1) / 8)
    method = load_target("target:own_target:posterior.log_prob", 2)
    assert_close(method.log_prob(x[..., :2].float()), -x[..., :2].float().square().sum(-1) / 2 - math.log(2 * math.pi))
    boxed = load_target("target:own_target:log_density", 3, bounds=(-1.0, 1.0), spread=0.5)
    assert boxed.spread == 0.5
    assert (boxed.log_prob(x) == -math.inf).equal((x.abs() > 1).any(-1))


def test_targets_of_the_user(here: Path) -> None:
    assert load_target("target:own_target:Fixed").features == 3
    assert load_target("target:own_target:Fixed", 3).name == "Fixed"
    assert load_target("target:own_target:AnyFeatures", 5).features == 5
    ready = load_target("target:own_target:ready")
    assert ready is sys.modules["own_target"].ready
    for source, features, message in (
        ("ready", 3, "target:own_target:ready: has 4 features; got 3"),
        ("Fixed", 2, "target:own_target:Fixed: has 3 features; got 2"),
        ("AnyFeatures", None, "target:own_target:AnyFeatures: building it raised TypeError: .*features"),
        ("Target", None, "target:own_target:Target: building it raised TypeError: .*abstract"),
        (
            "posterior.logprob",
            2,
            r"target:own_target:posterior\.logprob: posterior has no 'logprob'; did you mean 'log_prob'\?",
        ),
        ("log_densty", 2, r"own_target\.py has no 'log_densty'; did you mean 'log_density'\?"),
    ):
        with pytest.raises(DataError, match=message):
            load_target(f"target:own_target:{source}", features)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ("own_bad", "importing own_bad raised ModuleNotFoundError: No module named 'own_missing'"),
        ("own_worse", r"importing own_worse raised SyntaxError: expected ':' \(own_worse\.py, line 1\)"),
        ("own_exit", "importing own_exit raised SystemExit: 3"),
    ],
)
def test_modules_that_cannot_be_imported(here: Path, module: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_target(f"target:{module}:f", 2)
    assert str(here) not in sys.path


def test_errors_of_a_function_become_one_line(here: Path) -> None:
    target = load_target("target:own_target:broken", 2)
    with pytest.raises(
        TargetError,
        match=r"^own_target:broken: computing its log-density raised ValueError: no good at 3 points$",
    ):
        target.log_prob(torch.zeros(3, 2))
