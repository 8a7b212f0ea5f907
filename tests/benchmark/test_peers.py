"""Flows of other libraries."""

import math
from typing import Any

import pytest
import torch

from pushforward.benchmark.methods import parse_methods
from pushforward.benchmark.peers import FEW_ROWS, PEER_VALIDATIONS, Peer, build_peer, peer_options, train_peer
from pushforward.common.errors import ConfigError
from pushforward.config.read import load_config
from pushforward.train.defaults import resolve
from pushforward.train.objectives.likelihood import RowTensors
from pushforward.train.options import Options


def peer_of(spec: str, rows: int, features: int, *more: str) -> tuple[Peer, Options]:
    (method,) = parse_methods([spec])
    options = peer_options(method.config("iris", "", more), method, rows=rows, features=features)
    return build_peer(method, features, options.flow), options


PEER_SPECS = ["nflows:nsf-ar", "nflows:nsf-c", "nflows:maf", "zuko:nsf", "zuko:maf"]


def needs(spec: str) -> None:
    library = spec.partition(":")[0]
    pytest.importorskip(library, reason=f"{library} is not installed (pip install 'pushforward[bench]')")


@pytest.mark.parametrize("spec", PEER_SPECS)
def test_peers_integrate_to_one(spec: str) -> None:
    """Away from their initial weights."""
    needs(spec)
    torch.manual_seed(0)
    peer, _ = peer_of(f"{spec} flow.layers=2 flow.hidden=16", 200, 2, "train.steps=1")
    with torch.no_grad():
        for parameter in peer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    reach = 20.0 if spec.endswith("maf") else 9.0
    side = torch.linspace(-reach, reach, 400)
    grid = torch.cartesian_prod(side, side)
    with torch.no_grad():
        mass = peer.eval().log_prob(grid).double().exp().sum() * (2 * reach / 399) ** 2
    assert float(mass) == pytest.approx(1, abs=0.01)


def test_peers_keep_the_best_weights() -> None:
    torch.manual_seed(0)
    rng = torch.Generator().manual_seed(0)
    train, validation = (torch.randn(n, 3, generator=rng) for n in (40, 40))
    peer, options = peer_of(
        "nflows:maf flow.layers=3 flow.hidden=32 flow.dropout=0 train.learning_rate=1e-2", 40, 3, "train.steps=150"
    )
    training = train_peer(peer, RowTensors(train), RowTensors(validation), options.train)
    scores = [score for _, _, score in training.curve]
    assert (training.steps, training.stop_reason, len(scores)) == (150, "steps", PEER_VALIDATIONS + 1)
    assert training.validation_nll == min(scores) < scores[-1]  # it overfits, and the best weights are restored
    with torch.no_grad():
        kept = -float(peer.eval().log_prob(validation).double().mean())
    assert kept == pytest.approx(training.validation_nll, abs=1e-4)
    steps = [step for _, step, _ in training.curve]
    assert steps == [
        min(n for n in range(151) if n / 150 >= (k / PEER_VALIDATIONS) ** 2) for k in range(PEER_VALIDATIONS + 1)
    ]


def test_peers_stop_by_the_clock_and_when_they_diverge() -> None:
    from pushforward.train.divergence import DivergedError

    rows = torch.randn(64, 2)
    peer, options = peer_of("nflows:maf flow.layers=1 flow.hidden=8", 64, 2, "train.seconds=0.2")
    training = train_peer(peer, RowTensors(rows), RowTensors(rows), options.train)
    assert training.stop_reason == "seconds"
    assert 0.2 <= training.seconds < 2
    broken = rows.clone()
    broken[0] = math.nan
    peer, options = peer_of("nflows:maf flow.layers=1 flow.hidden=8", 64, 2, "train.steps=5")
    training = train_peer(peer, RowTensors(broken), RowTensors(rows), options.train)
    assert (training.stop_reason, training.steps) == ("diverged", 1)
    assert math.isfinite(training.validation_nll)
    peer, options = peer_of("nflows:maf flow.layers=1 flow.hidden=8", 64, 2, "train.steps=5")
    with pytest.raises(DivergedError, match="was not finite at step 1"):
        train_peer(peer, RowTensors(broken), RowTensors(broken), options.train)


def test_peers_have_the_sizes_of_the_literature_unless_matched() -> None:
    """With dropout for few rows; keys of the user come first."""

    def sizes(spec: str, rows: int) -> tuple[Any, ...]:
        (method,) = parse_methods([spec])
        options = peer_options(method.config("iris", "", ["train.seconds=9"]), method, rows=rows, features=5)
        flow, train = options.flow, options.train
        return flow.layers, flow.hidden, flow.blocks, flow.bound, flow.dropout, train.learning_rate, train.batch_size

    assert sizes("nflows:nsf-ar", FEW_ROWS) == (5, 128, 2, 5.0, 0.0, 1e-3, 512)
    assert sizes("nflows:nsf-ar", FEW_ROWS - 1) == (5, 128, 2, 5.0, 0.2, 1e-3, 512)
    assert sizes("nflows:nsf-ar", 100)[-1] == 100
    keys = "flow.hidden=32 flow.dropout=0.1 train.learning_rate=5e-4 train.batch_size=64"
    assert sizes(f"nflows:nsf-ar {keys}", 100) == (5, 32, 2, 5.0, 0.1, 5e-4, 64)
    for rows in (100, 1000, 10_000):
        ours = resolve(
            load_config("iris", overrides=["flow=nsf-ar"]).model_dump(), rows=rows, features=5, is_toy=False
        ).flow
        wanted = (ours.layers, ours.hidden, ours.blocks, ours.bound, ours.dropout)
        assert sizes("nflows:nsf-ar:matched", rows)[:5] == wanted


def test_zuko_refuses_another_bound() -> None:
    needs("zuko:nsf")
    with pytest.raises(ConfigError, match="its splines end at 5"):
        peer_of("zuko:nsf flow.bound=3", 100, 2, "train.steps=1")
