"""``pushforward.fit`` and ``pushforward.load``: what comes in goes out, nothing of the caller's changes, bad input."""

import contextlib
import gc
import math
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
from torch import nn

import pushforward
from pushforward.common.errors import ConfigError, DataError, RunError
from pushforward.experiment.run import resume
from pushforward.flows import build
from pushforward.train import Callback, DivergedError, State, Trainer

QUICK: dict[str, Any] = {"flow": "maf", "layers": 1, "hidden": 8, "steps": 15, "progress": False}


def table(n: int = 300, seed: int = 0) -> dict[str, Any]:
    """Columns of several types; c is about a + n."""
    rng = np.random.default_rng(seed)
    a, count = rng.normal(size=n), rng.poisson(4, n)
    return {"a": a, "n": count, "c": (a + count + rng.normal(size=n)).astype(np.float32)}


def matrix(n: int = 300) -> Any:
    return np.random.default_rng(1).normal(size=(n, 3)).cumsum(1)


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (pd.DataFrame, pd.DataFrame),
        (pl.DataFrame, pl.DataFrame),
        (pa.table, pa.Table),
    ],
)
def test_a_frame_gives_frames_of_the_same_types(make: Callable[[Any], Any], kind: type, tmp_path: Path) -> None:
    frame = make(table())
    density = pushforward.fit(frame, **QUICK)
    drawn = density.sample(7, seed=1)
    assert isinstance(drawn, kind)
    types = (lambda f: f.schema) if kind is pa.Table else (lambda f: dict(zip(f.columns, f.dtypes, strict=True)))
    assert types(drawn) == types(frame)
    density.save(tmp_path / "model")
    loaded = pushforward.load(tmp_path / "model")
    again = loaded.sample(7, seed=1)
    assert again.equals(drawn)
    assert np.array_equal(loaded.log_prob(frame), density.log_prob(frame))
    assert loaded.results == density.results
    assert repr(loaded) == repr(density)


def test_arrays_and_tensors_give_their_own_kind() -> None:
    x = matrix()
    density = pushforward.fit(x.astype(np.float32), **QUICK)
    assert isinstance(density.sample(4), np.ndarray)
    assert density.sample(4).dtype == np.float32
    assert density.log_prob(x).shape == (300,)
    tensor = torch.tensor(x)
    density = pushforward.fit(tensor, **QUICK)
    assert density.sample(4).dtype == torch.float64
    assert torch.equal(density.log_prob(tensor), torch.from_numpy(density.log_prob(x)))


def test_a_column_order_of_its_own_is_found_by_name() -> None:
    frame = pd.DataFrame(table())
    density = pushforward.fit(frame, **QUICK)
    assert np.array_equal(density.log_prob(frame[["c", "a", "n"]]), density.log_prob(frame))
    with pytest.raises(DataError, match=r"lacks|no column|has no"):
        density.log_prob(frame.rename(columns={"a": "b"}))


def test_a_path_and_a_name(tmp_path: Path) -> None:
    pd.DataFrame(table()).to_csv(tmp_path / "t.csv", index=False)
    from_path = pushforward.fit(tmp_path / "t.csv", **QUICK)
    assert from_path.sample(3).column_names == ["a", "n", "c"]
    assert pushforward.fit("iris", **QUICK).results["test_nll"] < 100


def test_conditional_on_columns_and_on_rows_of_their_own() -> None:
    frame = pd.DataFrame(table())
    by_name = pushforward.fit(frame, given="n", **QUICK)
    drawn = by_name.sample(5, given={"n": 3}, seed=0)
    assert list(drawn.columns) == ["a", "n", "c"]
    assert (drawn["n"] == 3).all()
    x, theta = matrix()[:, :2], matrix()[:, 2:]
    apart = pushforward.fit(x, given=theta, **QUICK)
    assert apart.sample(5, given=[[0.5]]).shape == (5, 2)
    assert apart.sample(3, given=theta[:3]).shape == (3, 2)
    assert apart.log_prob(x, theta).shape == (300,)
    response = pushforward.fit(frame, response="c", **QUICK)
    assert response.schema.names == ("c",)
    assert response.schema.context_names == ("a", "n")
    assert np.isfinite(response.log_prob(frame)).all()


def test_what_is_given_must_fit() -> None:
    x, theta = matrix()[:, :2], matrix()[:, 2:]
    density = pushforward.fit(x, given=theta, **QUICK)
    calls: list[tuple[Callable[[], Any], str]] = [
        (lambda: density.sample(3), "given: expected"),
        (lambda: density.sample(3, given=theta[:2]), "given: expected 1 row or 3; got 2"),
        (lambda: density.log_prob(x), "given: expected"),
        (lambda: density.log_prob(x, theta[:5]), "given: expected 300 rows; got 5"),
        (lambda: density.log_prob(matrix(), theta), "expected 2 columns"),
    ]
    for call, words in calls:
        with pytest.raises(DataError, match=words):
            call()
    with pytest.raises(DataError, match="given: expected nothing"):
        pushforward.fit(x, **QUICK).sample(3, given=theta[:3])


def test_equal_seeds_give_equal_densities_and_leave_the_callers_state_alone(tmp_path: Path) -> None:
    before = Path.cwd()
    os.chdir(tmp_path)
    try:
        torch.manual_seed(5)
        np.random.seed(5)  # noqa: NPY002 - the state that must not change
        expected, expected_numpy = torch.rand(3), np.random.rand(3)  # noqa: NPY002
        torch.manual_seed(5)
        np.random.seed(5)  # noqa: NPY002
        threads = torch.get_num_threads()
        first = pushforward.fit(matrix(), seed=3, dropout=0.2, **QUICK)
        first.sample(3)
        second = pushforward.fit(matrix(), seed=3, dropout=0.2, **QUICK)
        other = pushforward.fit(matrix(), seed=4, dropout=0.2, **QUICK)
        assert torch.equal(torch.rand(3), expected)
        assert np.array_equal(np.random.rand(3), expected_numpy)  # noqa: NPY002
        assert torch.get_num_threads() == threads
        assert not list(tmp_path.iterdir())
    finally:
        os.chdir(before)
    assert np.array_equal(first.log_prob(matrix()), second.log_prob(matrix()))
    assert not np.array_equal(first.log_prob(matrix()), other.log_prob(matrix()))
    assert not np.array_equal(first.sample(5), first.sample(5))
    assert np.array_equal(first.sample(5, seed=1), second.sample(5, seed=1))


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    "context",
    [
        torch.no_grad,
        torch.inference_mode,
        lambda: torch.autocast("cpu", torch.bfloat16),
        lambda: torch.device("meta"),
        lambda: default_dtype(torch.float64),
        lambda: default_dtype(torch.float16),
        lambda: np.errstate(all="raise"),
    ],
    ids=["no_grad", "inference_mode", "autocast", "default device", "float64", "float16", "errstate"],
)
def test_torchs_defaults_change_nothing(context: Callable[[], Any], tmp_path: Path) -> None:
    """Some people set a default dtype or a default device once for all of their code."""
    x = matrix()
    quick: dict[str, Any] = QUICK | {"flow": "realnvp"}
    alone = pushforward.fit(x, **quick)
    with context():
        before = torch.get_default_dtype(), torch.get_default_device(), torch.is_grad_enabled()
        density = pushforward.fit(x, **quick)
        log_probs, samples = density.log_prob(x), density.sample(20, seed=1)
        density.save(tmp_path / "model")
        loaded = pushforward.load(tmp_path / "model").log_prob(x)
        assert (torch.get_default_dtype(), torch.get_default_device(), torch.is_grad_enabled()) == before
    for found in (log_probs, loaded):
        assert np.array_equal(found, alone.log_prob(x))
    assert np.array_equal(samples, alone.sample(20, seed=1))


def test_a_trainer_trains_where_gradients_are_off() -> None:
    x = torch.from_numpy(matrix()).float()
    flows = [build("maf", 3, hidden=8, layers=1) for _ in range(2)]
    flows[1].load_state_dict(flows[0].state_dict())
    Trainer(steps=5).fit(flows[0], x)
    with torch.no_grad():
        Trainer(steps=5).fit(flows[1], x)
    assert torch.equal(flows[0].log_prob(x), flows[1].log_prob(x))


def test_fits_in_two_threads_are_those_of_one() -> None:
    """Dropout and energy distances draw from torch's own generator, which threads share."""
    options: list[dict[str, Any]] = [
        {"seed": 1, "dropout": 0.3},
        {"seed": 2, "objective": "energy"},
        {"seed": 3, "dropout": 0.1},
    ]
    alone = [pushforward.fit(matrix(), **(QUICK | each)).log_prob(matrix()) for each in options]
    with ThreadPoolExecutor(3) as pool:
        together = pool.map(lambda each: pushforward.fit(matrix(), **(QUICK | each)).log_prob(matrix()), options)
    for a, b in zip(alone, together, strict=True):
        assert np.array_equal(a, b)


def test_weights_count_rows() -> None:
    """Half of the rows have weight 0: they must not matter, however far away."""
    x = np.concatenate([matrix(400), matrix(400) + 30.0])
    weights = np.repeat([2.0, 0.0], 400)
    options: dict[str, Any] = QUICK | {"steps": 200}
    density = pushforward.fit(x, weight=weights, **options)
    assert abs(density.sample(2_000, seed=0)[:, 0].mean() - x[:400, 0].mean()) < 0.5
    frame = pd.DataFrame({"a": x[:, 0], "b": x[:, 1], "w": weights})
    named = pushforward.fit(frame, weight="w", **options)
    assert list(named.sample(2).columns) == ["a", "b"]
    assert named.results["test_nll"] < 6
    with pytest.raises(DataError, match="weight"):
        pushforward.fit(x, weight=-weights, **QUICK)


def test_an_embedding_network_is_trained_and_stored(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    theta = rng.normal(size=(600, 5))
    x = np.abs(theta[:, :1]) + 0.05 * rng.normal(size=(600, 1))
    first = nn.Linear(5, 16)
    network = nn.Sequential(first, nn.ReLU(), nn.Linear(16, 3))
    before = first.weight.detach().clone()
    options: dict[str, Any] = QUICK | {"steps": 300, "learning_rate": 1e-2}
    density = pushforward.fit(x, given=theta, embedding=network, out=tmp_path / "run", **options)
    assert torch.equal(first.weight, before)  # the density has a copy
    trained = dict(density.model.named_parameters())["embedding.module.0.weight"]
    assert (trained - before).abs().max() > 0.05
    assert density.results["test_nll"] < -1.0  # log(0.05 sqrt(2 pi e)) is -1.58; without context it is 0.8
    assert (tmp_path / "run" / "evaluation.json").is_file()
    density.save(tmp_path / "model")
    for folder in ("run", "model"):
        assert np.array_equal(pushforward.load(tmp_path / folder).log_prob(x, theta), density.log_prob(x, theta))
    with pytest.raises(DataError, match="fit"):  # the module is not in the run
        resume(tmp_path / "run", ("train.steps=400",), quiet=True)


class Sum(nn.Module):
    """A module without a name in saved files."""

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return rows.sum(-1, keepdim=True)


@pytest.mark.parametrize(
    ("embedding", "words"),
    [
        (lambda rows: rows, "got a function"),
        (nn.Linear(5, 4), "it fails: mat1 and mat2"),
        (nn.LSTM(2, 4), "it returns a tuple"),
        (nn.Flatten(0), r"of \(3, 2\) it makes \(6,\)"),
        (nn.Threshold(1.0, math.nan), "of zeros it makes numbers that are not finite"),
    ],
)
def test_embeddings_that_cannot_be_are_refused_before_the_fit(embedding: Any, words: str) -> None:
    expected = r"^embedding: expected a torch\.nn\.Module from rows \(n, 2\) to rows \(n, E\); "
    with pytest.raises(ConfigError, match=expected + words):
        pushforward.fit(matrix(), given=matrix()[:, :2], embedding=embedding, **QUICK)


def test_an_embedding_without_a_name_is_fitted_but_not_written(tmp_path: Path) -> None:
    x, theta = matrix()[:, :1], matrix()[:, 1:]
    density = pushforward.fit(x, given=theta, embedding=Sum().double(), **QUICK)
    assert np.isfinite(density.log_prob(x, theta)).all()
    with pytest.raises(ConfigError, match=r"^embedding: cannot describe Sum; .* or leave out= out"):
        pushforward.fit(x, given=theta, embedding=Sum(), out=tmp_path / "run", **QUICK)
    assert not (tmp_path / "run").exists()


def test_names_of_given_columns_in_any_list() -> None:
    frame = pd.DataFrame(table())
    expected = pushforward.fit(frame, given=["a", "n"], **QUICK).log_prob(frame)
    for given in (("a", "n"), frame.columns[:2], np.array(["a", "n"]), pl.Series(["a", "n"])):
        assert np.array_equal(pushforward.fit(frame, given=given, **QUICK).log_prob(frame), expected)


def test_roles_of_columns_by_their_keys() -> None:
    """``data.given`` and ``data.weight`` say the same as the arguments ``given`` and ``weight``."""
    frame = pd.DataFrame(table()).assign(w=np.arange(300) % 3 + 1.0)
    expected = pushforward.fit(frame, given="a", weight="w", **QUICK)
    keys: dict[str, Any] = QUICK | {"data.given": "a", "data.weight": "w"}
    density = pushforward.fit(frame, **keys)
    assert density.schema.context_names == ("a",)
    assert "w" not in density.schema.order
    assert np.array_equal(density.log_prob(frame), expected.log_prob(frame))
    with pytest.raises(DataError, match=r"data.given: names column 'a' twice; name it once"):
        pushforward.fit(frame, given=["a", "a"], **QUICK)


def test_columns_without_names_are_named_by_their_numbers() -> None:
    frame = pd.DataFrame(np.abs(matrix()))
    expected = pushforward.fit(frame, given=["2"], **QUICK).log_prob(frame)
    for given in (2, [2], (2,)):
        assert np.array_equal(pushforward.fit(frame, given=given, **QUICK).log_prob(frame), expected)
    assert pushforward.fit(frame, response=[1], **QUICK).schema.context_names == ("0", "2")
    assert list(pushforward.fit(frame, drop=0, **QUICK).sample(1).columns) == [1, 2]
    assert pushforward.fit(frame, weight=1, **QUICK).schema.names == ("0", "2")
    arrow = pa.table(table())  # its columns have no numbers: a list of numbers is one context value a row
    assert pushforward.fit(arrow, given=list(range(300)), **QUICK).schema.context_names == ("c1",)
    with pytest.raises(DataError, match=r"^given: expected an array, .*; got int$"):
        pushforward.fit(arrow, given=0, **QUICK)


def test_an_index_in_another_order_is_refused() -> None:
    frame = pd.DataFrame(table())
    mixed = frame.sample(frac=1, random_state=0)
    for name, column in (("given", "c"), ("weight", "n")):
        keys: dict[str, Any] = QUICK | {name: mixed[column]}
        with pytest.raises(DataError, match=f"^{name}: has the index of the rows in another order; align it"):
            pushforward.fit(frame[["a"]], **keys)
    given = mixed["c"].loc[frame.index]
    aligned = pushforward.fit(frame[["a"]], given=given, **QUICK)
    assert np.array_equal(
        aligned.log_prob(frame), pushforward.fit(frame[["a"]], given=frame["c"], **QUICK).log_prob(frame)
    )


def test_a_relative_folder_stays_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    other = tmp_path / "other"
    other.mkdir()

    class Move(Callback):
        def on_validation(self, state: State, metrics: Any) -> None:
            os.chdir(other)

    pushforward.fit(matrix(), out="run", callbacks=[Move()], evaluate=False, **QUICK)
    assert list(other.iterdir()) == []
    assert pushforward.load(tmp_path / "run").sample(2).shape == (2, 3)


def test_a_run_without_a_model_says_why(tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match=r"best validation NLL [\d.]+, at step 0\); try a learning rate of 1e\+08"):
        pushforward.fit(matrix(), out=tmp_path / "run", **(QUICK | {"learning_rate": 1e9, "steps": 300}))
    with pytest.raises(RunError, match=r"run: has no model, its status is diverged; .*log.txt says why"):
        pushforward.load(tmp_path / "run")


def test_true_and_false_of_an_arrow_table_come_back() -> None:
    rows = pa.table(table() | {"c": np.arange(300) % 3 == 0})
    assert pushforward.fit(rows, **QUICK).sample(3).schema.field("c").type == pa.bool_()
    drawn = pushforward.fit(rows, given="c", **QUICK).sample(3, given={"c": True})
    assert drawn["c"].to_pylist() == [True] * 3


def test_arguments_that_cannot_be_are_one_line(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    density: Any = pushforward.fit(matrix(), **QUICK)
    calls: list[tuple[Callable[[], Any], type[Exception], str]] = [
        (lambda: pushforward.fit(None), DataError, "data: expected rows, the path of a file or the name of a data set"),
        (lambda: pushforward.fit(matrix(), seed=2**70), ConfigError, "seed: expected a whole number from 0 to 42949"),
        (lambda: density.sample(2.5), ValueError, r"n: expected a whole number of at least 1; got 2\.5"),
        (lambda: density.sample("3"), ValueError, "n: expected a whole number of at least 1; got '3'"),
        (lambda: density.sample(3, seed=-1), ValueError, "seed: expected a whole number from 0 to 92.*; got -1"),
        (lambda: density.sample(3, seed=2**70), ValueError, "seed: expected a whole number from 0 to 92"),
        (lambda: density.log_prob(matrix(), draws=1.5), ValueError, "draws: expected a whole number of at least 1"),
        (lambda: density.log_prob(matrix(), batch_size=1.5), ValueError, "batch_size: expected a whole number of at"),
        (lambda: density.log_prob(matrix(), first_row="a"), ValueError, "first_row: expected a whole number of at"),
        (lambda: density.sample(10**14), DataError, "n: 100,000,000,000,000 rows do not fit in memory; draw them in"),
        (lambda: pushforward.load(None), ConfigError, "path: expected the path of a folder; got NoneType"),  # type: ignore[arg-type]
        (lambda: density.save(file), OSError, f"{file}: expected a folder to write the model into; got a file"),
    ]
    for call, kind, words in calls:
        with pytest.raises(kind, match=f"^{words}"):
            call()
    assert density.sample(np.int64(3), seed=np.int64(1)).shape == (3, 3)


def test_saving_leaves_the_model_alone(tmp_path: Path) -> None:
    """Others may use it at that moment: it stays in float64, and its parameters are the same objects."""
    density = pushforward.fit(matrix(), **QUICK)
    before, seen = list(density.model.parameters()), []
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            seen.append({parameter.dtype for parameter in density.model.parameters()})

    thread = threading.Thread(target=watch)
    thread.start()
    for i in range(5):
        density.save(tmp_path / str(i))
    done.set()
    thread.join()
    assert all(types == {torch.float64} for types in seen)
    assert all(a is b for a, b in zip(before, density.model.parameters(), strict=True))


@pytest.mark.parametrize("what", ["weight", "given"])
def test_a_run_with_weights_or_context_in_memory_cannot_be_resumed_without_them(what: str, tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    pd.DataFrame(table()).to_csv(file, index=False)
    extra = np.random.default_rng(0).uniform(1, 2, 300)
    keys: dict[str, Any] = QUICK | {what: extra, "evaluate": False}
    density = pushforward.fit(file, out=tmp_path / "run", **keys)
    assert np.isfinite(density.results["test_nll"])
    with pytest.raises(DataError, match="memory"):
        resume(tmp_path / "run", ("train.steps=30",), quiet=True)


def test_out_writes_a_run_that_can_be_loaded(tmp_path: Path) -> None:
    frame = pd.DataFrame(table())
    density = pushforward.fit(frame, out=tmp_path / "run", evaluate=False, **QUICK)
    assert (tmp_path / "run" / "report.html").is_file()
    loaded = pushforward.load(tmp_path / "run")
    assert np.array_equal(loaded.log_prob(frame), density.log_prob(frame))
    assert loaded.results["test_nll"] == density.results["test_nll"]
    assert loaded.sample(2).dtypes.equals(frame.dtypes)


def test_progress(capsys: pytest.CaptureFixture[str]) -> None:
    pushforward.fit(matrix(), **QUICK)
    assert capsys.readouterr() == ("", "")
    shown: dict[str, Any] = QUICK | {"progress": True}
    pushforward.fit(matrix(), **shown)
    out, err = capsys.readouterr()
    assert out == ""
    assert "step 1" in err


def test_callbacks_see_the_fit_and_end_it() -> None:
    seen: list[tuple[int, float]] = []

    class Stop(Callback):
        def on_validation(self, state: State, metrics: dict[str, float]) -> None:
            seen.append((state.progress.step, metrics["val/nll"]))

        def should_stop(self, state: State) -> str:
            return "enough" if state.progress.step == 10 else ""

    density = pushforward.fit(matrix(), callbacks=[Stop()], **QUICK)
    assert [step for step, _ in seen][-1] == 10
    # In the units of the data: the last validation is near the final number.
    assert seen[-1][1] == pytest.approx(density.results["val_nll"], abs=0.5)


def test_a_loop_of_fits_leaves_nothing_behind() -> None:
    frame = pd.DataFrame(np.random.default_rng(0).normal(size=(5_000, 8)), columns=list("abcdefgh"))

    def fit() -> None:
        pushforward.fit(frame, flow="maf", layers=1, hidden=16, steps=3, progress=False).sample(10)

    def resident() -> int:
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    for _ in range(2):
        fit()
    files, threads, memory = len(os.listdir("/proc/self/fd")), threading.active_count(), resident()
    for _ in range(5):
        fit()
    assert len(os.listdir("/proc/self/fd")) <= files
    assert threading.active_count() <= threads
    assert resident() - memory < 10_000_000


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"flow": "nsf"}, "unknown flow 'nsf'"),
        ({"layerz": 3}, "unknown key 'layerz'"),
        ({"learning_rate": -1}, "train.learning_rate: expected a number above 0"),
        ({"components": 3, "flow": "maf"}, "flow.components: has no effect with flow=maf"),
        ({"target.features": 3}, "target.features: has no effect"),
        ({"out": 3}, "out: expected the path of a folder; got int"),
        ({"callbacks": [3]}, "callbacks: expected a list of Callback objects, see pushforward.train.Callback; got int"),
        ({"callbacks": [Callback]}, "callbacks: expected .*; got the class Callback"),
        ({"callbacks": Callback()}, "callbacks: expected .*; got Callback"),
        ({"callbacks": None}, "callbacks: expected .*; got NoneType"),
        ({"train.steps": 3}, "train.steps: set twice, by steps and train.steps; leave one out"),
        ({"flow.name": "maf"}, "flow.name: set twice, by flow and flow.name; leave one out"),
        ({"given": "x1", "data.given": "x2"}, "data.given: set twice, by given and data.given; leave one out"),
        ({"given": matrix(), "data.given": "x2"}, "data.given: set twice, by names of columns and in memory"),
        ({"weight": "x1", "data.weight": "x1"}, "data.weight: set twice, by weight and data.weight; leave one out"),
        ({"weight": np.ones(300), "data.weight": "x1"}, "data.weight: set twice, by names of columns and in memory"),
    ],
)
def test_wrong_keys_are_one_line(keys: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        pushforward.fit(matrix(), **(QUICK | keys))
    assert "\n" not in str(caught.value)


def test_a_trainer_trains_any_module_with_a_log_prob() -> None:
    class Normal(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mean, self.log_scale = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))

        def log_prob(self, x: torch.Tensor) -> torch.Tensor:
            z = (x - self.mean) * (-self.log_scale).exp()
            return -0.5 * (z.square() + math.log(2 * math.pi)).sum(-1) - self.log_scale.sum()

    x = torch.randn(2_000, 2, generator=torch.Generator().manual_seed(0)) * 0.5 + 2.0
    module = Trainer(steps=600, learning_rate=5e-2).fit(Normal(), x[:1_500], x[1_500:])
    assert isinstance(module, Normal)
    assert torch.allclose(module.mean, x[:1_500].mean(0), atol=0.05)
    assert torch.allclose(module.log_scale.exp(), x[:1_500].std(0), atol=0.05)
    bad = x.clone()
    bad[3, 1] = torch.nan
    with pytest.raises(ValueError, match=r"finite numbers; got nan in x\[3, 1\]"):
        Trainer(steps=1).fit(module, bad)
