"""Which keys ``fit --resume`` takes: what is fitted stays, and each refused key is one line with both values."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from pushforward.common.errors import ConfigError
from pushforward.config.read import load_config
from pushforward.config.schema import Config
from pushforward.experiment.resumed_keys import MAY_CHANGE
from pushforward.experiment.run import fit, resume
from pushforward.runs.folder import RunFolder

SMALL = ("train.steps=3", "train.evaluate=false", "train.batch_size=32", "wandb=off", "flow.hidden=8", "flow.blocks=0")
FITS = {
    "rows": ("moons", "data.rows=200", "flow=maf", "flow.layers=1"),
    "open": ("iris",),
    "regression": ("iris", "data.response=petal width (cm)"),
    "energy": ("moons", "data.rows=200", "flow=maf", "flow.layers=1", "train.objective=mle+energy"),
    "target": ("target:u1", "flow=nsf-c", "flow.layers=1", "train.objective=alpha"),
    "autoencoder": ("iris", "train.objective=iwae", "train.importance_samples=2"),
}
# Another value of each key, in any kind of fit.
OTHER = {
    "data.source": "circles",
    "data.rows": "150",
    "data.columns": "a",
    "data.drop": "a",
    "data.given": "a",
    "data.response": "a",
    "data.weight": "a",
    "data.missing": "drop",
    "data.missing_values": "-1",
    "data.protocol": "rnade",
    "data.fold": "1",
    "data.dequantize": "off",
    "data.seed": "7",
    "data.validation_fraction": "0.2",
    "data.test_fraction": "0.2",
    "target.features": "5",
    "target.bounds": "-9,9",
    "target.spread": "3",
    "flow.name": "realnvp",
    "flow.layers": "4",
    "flow.hidden": "9",
    "flow.blocks": "3",
    "flow.bins": "5",
    "flow.bound": "2",
    "flow.tails": "learned",
    "flow.linear": "around",
    "flow.unconditional": "spline",
    "flow.elementwise": "true",
    "flow.dropout": "0.4",
    "flow.conditioner": "transformer",
    "flow.univariate": "affine",
    "flow.components": "7",
    "flow.members": "3",
    "flow.stacking": "true",
    "flow.base": "student-t",
    "vae.latent": "3",
    "vae.decoder": "bernoulli",
    "vae.prior": "maf",
    "vae.posterior": "iaf",
    "train.objective": "elbo",
    "train.gradient": "path-wise",
    "train.alpha": "1.5",
    "train.annealing": "0.1",
    "train.importance_samples": "5",
    "train.energy_weight": "3",
    "train.weight_decay": "0.3",
    "train.ema_decay": "0.5",
    "seed": "5",
}

Made = Callable[..., Path]


@pytest.fixture(params=FITS)
def run(request: pytest.FixtureRequest, made_once: Made) -> RunFolder:
    source, *keys = FITS[request.param]

    def fill(folder: Path) -> None:
        fit(load_config(source, overrides=(*SMALL, *keys)), out=folder / "run", quiet=True)

    return RunFolder(made_once(f"resumed-{request.param}", fill) / "run")


def test_every_key_either_may_change_or_is_refused_with_both_values(run: RunFolder) -> None:
    before = load_config(files=[run.config]).flat()
    content = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    free = {key for key in before if key in MAY_CHANGE or key.partition(".")[0] in MAY_CHANGE}
    assert set(before) - free == set(OTHER), "a new key: decide whether a resumed fit may change it"
    for key, value in OTHER.items():
        if key == "data.fold" or str(before[key]).lower() == value:
            continue  # the configuration itself refuses a fold without a protocol
        with pytest.raises(ConfigError) as caught:
            resume(run.path, (f"{key}={value}",), quiet=True)
        line = str(caught.value)
        assert "\n" not in line
        assert re.fullmatch(rf"{re.escape(key)}: a resumed fit keeps .+; got .+; start a new fit to change it", line)
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == content


def test_the_refused_values_are_named(run: RunFolder) -> None:
    before = load_config(files=[run.config]).flat()
    for key, value in (("train.annealing", "0.1"), ("seed", "5"), ("vae.prior", "maf")):
        with pytest.raises(ConfigError) as caught:
            resume(run.path, (f"{key}={value}",), quiet=True)
        assert str(caught.value) == (
            f"{key}: a resumed fit keeps {before[key]}; got {value}; start a new fit to change it"
        )


def test_the_keys_that_may_change_do(run: RunFolder) -> None:
    steps = 4 + load_config(files=[run.config]).train.steps  # type: ignore[operator]
    changed = (
        f"train.steps={steps}",
        "train.learning_rate=1e-4",
        "train.batch_size=16",
        "train.warmup=2",
        "train.gradient_clip=1",
        "train.patience=0.9",
        "train.validate_every=2",
        "train.compile=off",
        "train.precision=float32",
        "train.checkpoint_seconds=9",
        "train.log_every=2",
        "wandb.name=again",
    )
    done = resume(run.path, changed, quiet=True, device="cpu")
    assert done.results["steps"] == steps
    written: Config = load_config(files=[run.config])
    assert (written.train.learning_rate, written.train.validate_every, written.wandb.name) == (1e-4, 2, "again")


def test_a_budget_below_what_is_done_is_refused(run: RunFolder) -> None:
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    done = load_config(files=[run.config]).train.steps
    words = f"train.steps: expected at least the {done} steps that are done; got 1"
    with pytest.raises(ConfigError, match=f"^{words}$"):
        resume(run.path, ("train.steps=1",), quiet=True)
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before
