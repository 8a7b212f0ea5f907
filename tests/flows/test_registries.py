"""Maps, bases, networks and architectures by name: those that are built in, and those of somebody else's module."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
from torch import nn

from pushforward.flows import (
    Affine,
    Elementwise,
    ModelFileError,
    Univariate,
    build,
    check_bijection,
    load,
    register_base,
    register_flow,
    register_network,
    register_univariate,
)
from pushforward.flows.architectures import Architecture
from pushforward.flows.parts import PARTS
from pushforward.flows.registries import BASES, COUPLING_NETWORKS, FLOWS, MASKED_NETWORKS, UNIVARIATE_MAPS

Module = TypeVar("Module", bound=nn.Module)
Perturb = Callable[[Module], Module]

ROOT = Path(__file__).parent.parent.parent

PROGRAM = """
import json, sys
from pathlib import Path
import torch
from pushforward.flows import build, check_bijection, load, save
import tests.fixtures.plugin as plugin

FLOWS = {
    "map in couplings": dict(name="nsf-c", features=3, univariate="test-bend"),
    "map in autoregressive layers": dict(name="maf", features=3, univariate="test-bend"),
    "network of couplings": dict(name="realnvp", features=3, context=2, conditioner="test-linear"),
    "masked network": dict(name="nsf-ar", features=3, conditioner="test-linear"),
    "masked network of a mixture": dict(name="made-mog", features=3, conditioner="test-linear"),
    "base of a function": dict(name="maf", features=3, base="test-wide"),
    "base of a class": dict(name="maf", features=3, context=2, base="test-gumbel"),
    "architecture": dict(name="test-flow", features=3),
}
report = {}
for what, options in FLOWS.items():
    torch.manual_seed(0)
    flow = build(**options, layers=2, hidden=8).double()
    rows = torch.randn(200, 3, dtype=torch.float64)
    rows[:, 2] += 2 * rows[:, 0]
    context = torch.randn(200, 2, dtype=torch.float64) if flow.context else None
    optimizer = torch.optim.Adam(flow.parameters(), 0.02)
    losses = []
    for _ in range(20):
        loss = -flow.log_prob(rows, context).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    flow.eval()
    check_bijection(flow.bijection, rows[:4], None if context is None else context[:4])
    save(flow, Path(sys.argv[1], what))
    twin = load(Path(sys.argv[1], what)).double()
    same = torch.equal(twin.log_prob(rows, context), flow.log_prob(rows, context))
    parts = [type(part).__name__ for part in flow.modules()]
    maps = [type(part.univariate).__name__ for part in flow.modules() if hasattr(part, "univariate")]
    report[what] = {"losses": losses, "same": same, "parts": parts + maps}
print(json.dumps(report))
"""

KINDS = {
    "map in couplings": "Bend",
    "map in autoregressive layers": "Bend",
    "network of couplings": "LinearNetwork",
    "masked network": "MaskedLinearNetwork",
    "masked network of a mixture": "MaskedLinearNetwork",
    "base of a function": "Gaussian",
    "base of a class": "Gumbel",
    "architecture": "Bend",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the flows of ``PROGRAM``, which registers parts in a process of its own; and its report."""
    path = tmp_path_factory.mktemp("registered")
    command = [sys.executable, "-c", PROGRAM, str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    (path / "report.json").write_text(done.stdout)
    return path


@pytest.mark.parametrize("what", KINDS)
def test_a_part_from_outside_is_built_by_its_name_fitted_and_saved(what: str, folder: Path) -> None:
    report = json.loads((folder / "report.json").read_text())[what]
    assert KINDS[what] in report["parts"]
    assert report["losses"][-1] < report["losses"][0] - 0.01
    assert report["same"]


@pytest.mark.parametrize(
    ("what", "part"),
    [
        ("map in couplings", "test-bend"),
        ("network of couplings", "test-linear"),
        ("masked network", "masked-test-linear"),
        ("base of a class", "test-gumbel"),
    ],
)
def test_a_model_of_a_plugin_that_is_not_loaded_says_so(what: str, part: str, folder: Path) -> None:
    with pytest.raises(ModelFileError, match=rf"unknown part '{part}';.*\(--plugin MODULE\)"):
        load(folder / what)


@pytest.mark.parametrize("univariate", UNIVARIATE_MAPS.names())
@pytest.mark.parametrize("name", ["realnvp", "nsf-c", "maf", "iaf", "nsf-ar"])
def test_every_map_works_in_the_layers_of_every_architecture(name: str, univariate: str, perturb: Perturb[Any]) -> None:
    flow = build(name, 3, univariate=univariate, layers=2, hidden=8, bins=3).double()
    maps: list[Any] = [getattr(part, "univariate", None) for part in flow.modules()]
    assert {type(one) for one in maps if isinstance(one, Univariate)} == {UNIVARIATE_MAPS[univariate]}
    check_bijection(perturb(flow.bijection))


def test_a_map_takes_the_options_that_its_constructor_has() -> None:
    layers = build("maf", 2, univariate="rational-quadratic", bins=3, bound=2.0, tails="learned", layers=1).modules()
    spline: Any
    (spline,) = (part.univariate for part in layers if hasattr(part, "univariate"))
    assert spline.config() == {**spline.config(), "bins": 3, "bound": 2.0, "tails": "learned"}


def test_elementwise_layers_keep_splines() -> None:
    flow = build("realnvp", 2, univariate="affine", elementwise=True, layers=1)
    (layer,) = (part for part in flow.modules() if isinstance(part, Elementwise))
    assert not isinstance(layer.univariate, Affine)


@pytest.mark.parametrize("name", FLOWS.names())
def test_every_architecture_is_what_its_name_stands_for(name: str) -> None:
    assert isinstance(FLOWS[name], Architecture)
    assert not FLOWS[name].univariate or FLOWS[name].univariate in UNIVARIATE_MAPS.names()


@pytest.mark.parametrize("name", FLOWS.builtins)
def test_every_architecture_says_what_it_is_in_one_line(name: str) -> None:
    line = FLOWS.about(name)
    assert 10 < len(line) <= 100
    assert f"- ``{name}``: {line}.\n" in (build.__doc__ or "")


@pytest.mark.parametrize(
    "registry", [UNIVARIATE_MAPS, MASKED_NETWORKS, COUPLING_NETWORKS], ids=["map", "masked", "plain"]
)
def test_every_map_and_network_has_a_name_in_saved_files(registry: Any) -> None:
    assert registry.names()
    assert all(PARTS.name_of(registry[name]) for name in registry.names())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"univariate": "afine"}, r"^unknown univariate map 'afine'; did you mean 'affine'\? known: , affine, "),
        ({"conditioner": "resnet"}, r"^unknown conditioner 'resnet'; .*known: residual, transformer$"),
        ({"base": "diagnal"}, r"^unknown base 'diagnal'; did you mean 'diagonal'\? known: diagonal, .*, made-mog$"),
    ],
)
def test_an_unknown_name_gets_the_known_ones(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build("maf", 2, **options)


@pytest.mark.parametrize(
    ("register", "registry", "name", "item"),
    [
        (register_univariate, UNIVARIATE_MAPS, "affine", Affine),
        (register_network, COUPLING_NETWORKS, "residual", nn.Linear),
        (lambda name: register_network(name, masked=True), MASKED_NETWORKS, "transformer", nn.Linear),
        (register_base, BASES, "full", nn.Linear),
        (register_base, BASES, "made-mog", lambda build: None),
        (register_flow, FLOWS, "maf", lambda build, index: []),
    ],
)
def test_the_name_of_a_builtin_is_refused(register: Any, registry: Any, name: str, item: Any) -> None:
    parts, names = PARTS.names(), registry.names()
    with pytest.raises(ValueError, match=rf"^register: the .* '{name}' exists already; take another name$"):
        register(name)(item)
    assert (PARTS.names(), registry.names()) == (parts, names)


@pytest.mark.parametrize(
    ("register", "registry"),
    [
        (register_univariate, UNIVARIATE_MAPS),
        (register_network, COUPLING_NETWORKS),
        (lambda name: register_network(name, masked=True), MASKED_NETWORKS),
        (register_base, BASES),
        (register_flow, FLOWS),
    ],
)
@pytest.mark.parametrize("name", ["auto", "Upper", "two words", ""])
def test_a_name_that_cannot_be_leaves_nothing_behind(register: Any, registry: Any, name: str) -> None:
    parts, names = PARTS.names(), registry.names()
    with pytest.raises(ValueError, match=r"^register: expected a name such as "):
        register(name)(nn.Linear)
    assert (PARTS.names(), registry.names()) == (parts, names)


@pytest.mark.parametrize(
    ("register", "registry", "name"),
    [
        (register_univariate, UNIVARIATE_MAPS, "chain"),
        (register_network, COUPLING_NETWORKS, "chain"),
        (lambda name: register_network(name, masked=True), MASKED_NETWORKS, "autoregressive"),
        (register_base, BASES, "chain"),
    ],
)
def test_the_name_of_another_part_is_refused(register: Any, registry: Any, name: str) -> None:
    parts, names = PARTS.names(), registry.names()
    with pytest.raises(ValueError, match=r"^register: the part '.*' exists already; take another name$"):
        register(name)(nn.Linear)
    assert (PARTS.names(), registry.names()) == (parts, names)


def test_the_names_need_no_torch() -> None:
    program = (
        "import sys; from pushforward.flows.registries import BASES, FLOWS, UNIVARIATE_MAPS, network_names\n"
        "assert BASES.names() and FLOWS.names() and UNIVARIATE_MAPS.names() and network_names()\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=60)


def test_parts_of_another_kind_are_named() -> None:
    register_base("test-no-base")(lambda build: "text")
    UNIVARIATE_MAPS.register("test-no-map")(nn.Identity)
    try:
        with pytest.raises(ValueError, match=r"^test-no-base: its function: expected a Base; got str$"):
            build("maf", 2, base="test-no-base")
        with pytest.raises(ValueError, match=r"^test-no-map: expected a class of univariate maps; got one of Ident"):
            build("maf", 2, univariate="test-no-map")
    finally:
        BASES.remove("test-no-base")
        UNIVARIATE_MAPS.remove("test-no-map")
