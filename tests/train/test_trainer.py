"""The training loop on its own: what it reaches, what it keeps, when it stops, what it says."""

import copy
import functools
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pushforward.evaluate.likelihood import nll
from pushforward.flows import Flow, build
from pushforward.train.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from pushforward.train.defaults import TrainOptions
from pushforward.train.gaussian import gaussian_flow, initialize_base
from pushforward.train.maximize import maximize_likelihood
from pushforward.train.objectives.likelihood import Likelihood, Rows, _Batches
from pushforward.train.trainer import DivergedError, State, _roll_back, start

COVARIANCE = torch.tensor([[1.0, 0.8], [0.8, 1.5]])
Row = tuple[str, int, float, dict[str, float]]


def gaussian_rows(n: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x: Tensor = torch.randn(n, 2, generator=generator) @ torch.linalg.cholesky(COVARIANCE).T
    return x


def bent_rows(n: int, seed: int = 0) -> Tensor:
    x = gaussian_rows(n, seed)
    return torch.stack([x[:, 0], 0.3 * x[:, 1] + x[:, 0] ** 2], dim=1)


TRAIN, VALIDATION = Rows(bent_rows(500)), Rows(bent_rows(200, seed=1))


def fresh(train: Rows = TRAIN, settings: TrainOptions | None = None, name: str = "maf", **options: Any) -> State:
    """A state before its first step, from the same weights each time."""
    torch.manual_seed(3)
    context = 0 if train.context is None else train.context.shape[1]
    flow = build(name, train.x.shape[1], context, layers=1, hidden=8, base="full", **options)
    initialize_base(flow, train.x, train.context)
    return start(flow, settings or TrainOptions(steps=10))


def run(
    settings: TrainOptions,
    train: Rows = TRAIN,
    validation: Rows = VALIDATION,
    state: State | None = None,
    seed: int = 0,
    **callbacks: Any,
) -> tuple[State, list[Row]]:
    state = fresh(train, settings) if state is None else state
    rows: list[Row] = []
    torch.manual_seed(seed)
    state = maximize_likelihood(
        state,
        train,
        validation,
        settings,
        log=lambda kind, step, seconds, metrics: rows.append((kind, step, seconds, metrics)),
        **callbacks,
    )
    return state, rows


def validations(rows: list[Row]) -> dict[int, float]:
    return {step: metrics["val/nll"] for kind, step, _, metrics in rows if kind == "validation"}


def weights(state: State) -> Tensor:
    return torch.cat([p.detach().flatten() for p in state.flow.parameters()])


def test_a_gaussian_reaches_the_closed_form() -> None:
    x = gaussian_rows(4000)
    flow = build("gaussian", 2, base="full")  # not initialised: it has to learn mean and covariance
    settings = TrainOptions(steps=300, batch_size=500, learning_rate=0.03)
    state, _ = run(settings, Rows(x), Rows(x), start(flow, settings))
    covariance = torch.cov(x.T, correction=0).double()
    best = 0.5 * float(torch.logdet(covariance)) + 1 + math.log(2 * math.pi)
    # The maximum of the likelihood on these rows: no Gaussian is better, and the fit is close to it.
    assert 0 <= nll(state.flow, x).nll - best + 1e-6 < 2e-3


def test_it_starts_as_the_full_covariance_gaussian() -> None:
    for name in ("maf", "nsf-ar", "nsf-c", "realnvp"):
        flow = build(name, 2, layers=2, hidden=8, base="full")
        x = gaussian_rows(1000)
        initialize_base(flow, x)
        assert nll(flow, x).nll == pytest.approx(nll(gaussian_flow(x), x).nll, abs=1e-4)
        exact = torch.distributions.MultivariateNormal(x.mean(0), torch.cov(x.T, correction=0)).log_prob(x).mean()
        assert nll(flow, x).nll == pytest.approx(-float(exact), abs=1e-4)


def test_first_validation_is_the_start() -> None:
    expected = nll(fresh().flow.eval(), VALIDATION.x).nll
    state, rows = run(TrainOptions(steps=5))
    assert validations(rows)[0] == expected == state.progress.start_loss


def test_logged_nll_is_base_and_log_det() -> None:
    _, rows = run(TrainOptions(steps=20, log_every=5))
    logged = [metrics for kind, _, _, metrics in rows if kind == "train"]
    assert len(logged) == 4
    for metrics in logged:
        assert metrics["train/nll"] == pytest.approx(metrics["train/base"] + metrics["train/log_det"], rel=1e-12)
        assert metrics["train/log_det"] != 0
        assert metrics["train/grad_norm"] > 0
        assert metrics["perf/points_per_s"] > 0


def test_first_step_logs_the_nll_of_its_batch() -> None:
    """With one batch of all rows, and no dropout, the first number logged is the flow's NLL on the training rows."""
    expected = nll(fresh().flow.eval(), TRAIN.x).nll
    _, rows = run(TrainOptions(steps=1, log_every=1, batch_size=500))
    assert rows[1][0] == "train"
    assert rows[1][3]["train/nll"] == pytest.approx(expected, abs=1e-5)


def test_best_is_what_evaluation_sees() -> None:
    state, rows = run(TrainOptions(steps=60))
    progress = state.progress
    assert progress.best_loss == min(validations(rows).values())
    assert validations(rows)[progress.best_step] == progress.best_loss
    assert nll(state.flow, VALIDATION.x).nll == progress.best_loss
    assert not state.flow.training


def test_a_later_and_worse_state_is_not_kept() -> None:
    """Forty training rows and a large rate overfit; what is kept is the best validation."""
    train = Rows(bent_rows(40))
    settings = TrainOptions(steps=400, learning_rate=0.05, ema_decay=0.0, batch_size=40)
    state, rows = run(settings, train, state=fresh(train, settings))
    by_step = validations(rows)
    assert by_step[max(by_step)] > state.progress.best_loss + 0.05
    assert state.progress.best_step < 400
    assert nll(state.flow, VALIDATION.x).nll == state.progress.best_loss


@pytest.mark.parametrize("steps", [1, 2, 7, 41, 100])
def test_step_budget_is_exact(steps: int) -> None:
    state, rows = run(TrainOptions(steps=steps, log_every=1))
    assert state.progress.step == steps
    assert state.progress.stop_reason == "budget"
    assert [step for kind, step, _, _ in rows if kind == "train"] == list(range(1, steps + 1))
    assert max(validations(rows)) == steps  # the last weights have been looked at


@pytest.mark.parametrize(("warmup", "rates"), [(0, [1.0, 0.75, 0.25]), (3, [1 / 3, 0.5, 0.25])])
def test_learning_rate_without_and_with_warmup(warmup: int, rates: list[float]) -> None:
    _, rows = run(TrainOptions(steps=3, log_every=1, learning_rate=0.5, warmup=warmup))
    seen = [metrics["train/learning_rate"] for kind, _, _, metrics in rows if kind == "train"]
    # The first step has the whole rate, the cosine's zero would come after the last one.
    assert seen == pytest.approx([0.5 * rate for rate in rates])


@pytest.mark.parametrize("budget", [{"steps": 23}, {"steps": 23, "seconds": 1e4}])
def test_validation_every_so_many_steps(budget: dict[str, Any]) -> None:
    _, rows = run(TrainOptions(**budget, validate_every=5))
    assert [step for kind, step, _, _ in rows if kind == "validation"] == [0, 5, 10, 15, 20, 23]


@pytest.mark.parametrize("learning_rate", [1e-3, 0.3])
def test_no_step_is_validated_twice(learning_rate: float) -> None:
    _, rows = run(TrainOptions(steps=80, learning_rate=learning_rate, ema_decay=0.0))
    seen = [step for kind, step, _, _ in rows if kind == "validation"]
    assert seen == sorted(set(seen))
    assert [row[1] for row in rows] == sorted(row[1] for row in rows)


def test_time_budget_stops_in_time() -> None:
    began = time.perf_counter()
    state, rows = run(TrainOptions(seconds=0.5))
    took = time.perf_counter() - began
    assert state.progress.stop_reason == "budget"
    assert 0.5 <= state.progress.seconds <= took
    # A step takes a few milliseconds; the bound is for a machine that is busy with something else.
    assert took < 3
    assert state.progress.step > 5
    assert 3 <= len(validations(rows)) <= 45


def test_the_budget_that_ends_first() -> None:
    state, _ = run(TrainOptions(steps=5, seconds=60))
    assert state.progress.step == 5
    state, _ = run(TrainOptions(steps=10**9, seconds=0.2))
    assert state.progress.step < 10**9


def test_patience() -> None:
    """Forty training rows overfit early; the fit stops after the share of the budget given to wait."""
    train = Rows(bent_rows(40))
    settings = TrainOptions(steps=400, learning_rate=0.05, ema_decay=0.0, batch_size=40, patience=0.2)
    state, rows = run(settings, train)
    progress = state.progress
    assert progress.stop_reason == "patience"
    assert progress.best_step / 400 + 0.2 < progress.step / 400 <= progress.best_step / 400 + 0.2 + 2 / 40
    assert max(validations(rows)) == progress.step


def test_patience_of_one_never_stops() -> None:
    state, _ = run(TrainOptions(steps=100, learning_rate=0.5, ema_decay=0.0, patience=1.0))
    assert state.progress.stop_reason == "budget"


def test_stop() -> None:
    calls = iter(["", "", "sigterm"])
    state, rows = run(TrainOptions(steps=100), stop=lambda: next(calls))
    assert state.progress.stop_reason == "sigterm"
    assert state.progress.step == 2
    assert max(validations(rows)) == 2


def test_averaging() -> None:
    """What is validated and kept is the moving average, not the last weights."""
    trail: list[Tensor] = []
    settings = TrainOptions(steps=20, ema_decay=0.9, learning_rate=0.01)
    state = fresh(settings=settings)
    average = weights(state).double()

    def follow() -> str:
        nonlocal average
        if step := state.progress.step:
            decay = min(0.9, (1 + step) / (10 + step))
            average = decay * average + (1 - decay) * weights(state)
            trail.append(weights(state))
        return ""

    state, _ = run(settings, state=state, stop=follow)
    assert state.progress.best_step == 20
    torch.testing.assert_close(weights(state), average.float())
    assert not torch.equal(weights(state), trail[-1])


def test_no_averaging() -> None:
    seen: dict[int, Tensor] = {}
    settings = TrainOptions(steps=20, ema_decay=0.0)
    state = fresh(settings=settings)

    def follow() -> str:
        seen[state.progress.step] = weights(state)
        return ""

    state, _ = run(settings, state=state, stop=follow)
    torch.testing.assert_close(weights(state), seen[state.progress.best_step])


def test_same_seed_same_numbers() -> None:
    settings = TrainOptions(steps=30, log_every=5)
    first, rows = run(settings, state=fresh(dropout=0.2))
    again, rows_again = run(settings, state=fresh(dropout=0.2))
    other, _ = run(settings, state=fresh(dropout=0.2), seed=1)
    assert torch.equal(weights(first), weights(again))
    assert validations(rows) == validations(rows_again)
    assert not torch.equal(weights(first), weights(other))


@pytest.mark.parametrize(("rows", "size"), [(10, 3), (12, 4), (5, 8), (1, 1), (7, 7)])
def test_batches_take_every_row_at_most_once_an_epoch(rows: int, size: int) -> None:
    batches = _Batches(Rows(torch.arange(float(rows))[:, None]), size, 0)
    for _ in range(3):
        epoch = [batches.next()[0] for _ in range(batches.per_epoch)]
        assert {len(batch) for batch in epoch} == {min(rows, size)}  # no ragged last batch
        values = torch.cat(epoch).flatten().tolist()
        assert len(values) == len(set(values)) == rows - rows % min(rows, size)


def test_rows_left_out_of_an_epoch_come_in_others() -> None:
    batches = _Batches(Rows(torch.arange(10.0)[:, None]), 3, 0)
    seen = torch.cat([batches.next()[0] for _ in range(60)]).flatten()
    assert sorted(set(seen.tolist())) == list(range(10))


def test_context_follows_its_row() -> None:
    x = torch.arange(20.0)[:, None]
    batches = _Batches(Rows(x, x + 100), 7, 0)
    for _ in range(6):
        batch, context = batches.next()
        assert context is not None
        assert torch.equal(batch + 100, context)


def test_noise_is_fresh_and_stays_in_its_cell() -> None:
    x = torch.zeros(50, 3)
    cell = torch.tensor([1.0, 0.0, 0.25])
    batches = _Batches(Rows(x, None, cell), 50, 0)
    drawn = torch.stack([batches.next()[0] for _ in range(100)])
    assert (drawn.abs() <= cell / 2).all()
    assert not drawn[..., 1].any()
    assert len(drawn[..., 0].unique()) > 4900
    assert drawn[..., 0].mean().abs() < 0.02
    assert drawn[..., 2].var() == pytest.approx(0.25**2 / 12, rel=0.1)
    assert not x.any()  # the recorded values stay as they are


def test_conditional_fit_uses_its_context() -> None:
    generator = torch.Generator().manual_seed(0)
    context = torch.randn(1000, 1, generator=generator)
    x = 2 * context + 0.1 * torch.randn(1000, 1, generator=generator)
    train, validation = Rows(x[:800], context[:800]), Rows(x[800:], context[800:])
    settings = TrainOptions(steps=300, learning_rate=0.02, batch_size=256)
    state, _ = run(settings, train, validation, fresh(train, settings))
    truth = 0.5 * math.log(2 * math.pi * math.e * 0.01)
    assert state.progress.start_loss > truth + 2
    assert state.progress.best_loss < truth + 0.3


def test_one_column() -> None:
    x = gaussian_rows(400)[:, :1]
    train, validation = Rows(x[:300]), Rows(x[300:])
    for name in ("maf", "nsf-ar", "nsf-c", "realnvp", "iaf", "gaussian"):
        settings = TrainOptions(steps=3)
        state, _ = run(settings, train, validation, fresh(train, settings, name))
        assert math.isfinite(state.progress.best_loss)


class Poisoned(Flow):
    """A flow whose density is NaN from a step on, as after a bad step."""

    calls = 0
    bad: Callable[[int], bool] = staticmethod(lambda call: False)

    def log_prob_terms(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        base, log_det = super().log_prob_terms(x, context)
        if self.training:
            self.calls += 1
            if self.bad(self.calls):
                base = base * math.nan
        return base, log_det


def poisoned(settings: TrainOptions, bad: Callable[[int], bool]) -> State:
    state = fresh(settings=settings)
    assert isinstance(state.flow, Flow)
    flow = Poisoned(state.flow.base, state.flow.bijection)
    flow.bad = bad
    return start(flow, settings)


def test_a_rare_nan_rolls_back_and_halves_the_rate() -> None:
    settings = TrainOptions(steps=120, log_every=5)
    state, rows = run(settings, state=poisoned(settings, lambda call: call == 82))
    assert state.progress.rollbacks == 1
    assert state.progress.step == 120
    assert math.isfinite(state.progress.best_loss)
    _, undisturbed = run(settings)
    rates, full = (
        {step: metrics["train/learning_rate"] for kind, step, _, metrics in each if kind == "train"}
        for each in (rows, undisturbed)
    )
    assert rates[85] == full[85]
    assert rates[90] == full[90] / 2
    assert all(p.isfinite().all() for p in state.flow.parameters())
    late = [value for step, value in validations(rows).items() if step > 90]
    assert all(math.isfinite(value) for value in late)


def test_a_return_is_to_the_best_weights_and_forgets_moments() -> None:
    state, _ = run(TrainOptions(steps=40))
    with torch.no_grad():
        for parameter, average in zip(state.flow.parameters(), state.average, strict=True):
            parameter.add_(1.0)
            average.sub_(1.0)
    assert state.optimizer.state
    _roll_back(state, Likelihood(TRAIN, VALIDATION, 100), TrainOptions(steps=40))
    for name, value in state.flow.state_dict().items():
        torch.testing.assert_close(value, state.best[name])
    for parameter, average in zip(state.flow.parameters(), state.average, strict=True):
        torch.testing.assert_close(average, parameter.detach())
    assert not state.optimizer.state
    assert state.progress.rollbacks == 1


def test_nan_for_good_is_divergence() -> None:
    settings = TrainOptions(steps=2000, log_every=5)
    with pytest.raises(
        DivergedError, match=r"not finite at step \d+, after 5 returns .* try train.learning_rate="
    ) as e:
        run(settings, state=poisoned(settings, lambda call: call > 20))
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("bad_from", [1, 33, 39])
def test_nan_between_rows_of_metrics_is_seen(bad_from: int) -> None:
    """A fit shorter than an interval of the metrics, or NaN after the last row: the weights kept are finite."""
    settings = TrainOptions(steps=40, log_every=1000)
    state = poisoned(settings, lambda call: call >= bad_from)
    try:
        state, _ = run(settings, state=state)
    except DivergedError:
        return
    assert all(p.isfinite().all() for p in state.flow.parameters())
    assert math.isfinite(nll(state.flow, VALIDATION.x).nll)


def test_huge_learning_rate_does_not_return_nan() -> None:
    settings = TrainOptions(steps=200, learning_rate=1e4, log_every=5, ema_decay=0.0)
    try:
        state, _ = run(settings, state=fresh(settings=settings))
    except DivergedError:
        return
    assert math.isfinite(nll(state.flow, VALIDATION.x).nll)
    assert state.progress.best_loss <= state.progress.start_loss


def interrupted(settings: TrainOptions, path: Path, at: int, **options: Any) -> tuple[State, list[Row], list[Row]]:
    """Train to a step, write a checkpoint, go on from it in a fresh state."""

    def checkpoint(state: State) -> None:
        save_checkpoint(state, path)

    state = fresh(settings=settings, **options)
    _, before = run(settings, state=state, checkpoint=checkpoint, stop=lambda: "now" * (state.progress.step == at))
    torch.manual_seed(99)  # whatever the process did before
    resumed = load_checkpoint(fresh(settings=settings, **options), path)
    rows: list[Row] = []
    resumed = maximize_likelihood(
        resumed,
        TRAIN,
        VALIDATION,
        settings,
        log=lambda kind, step, seconds, metrics: rows.append((kind, step, seconds, metrics)),
    )
    return resumed, before, rows


@functools.cache
def uninterrupted(settings: TrainOptions, dropout: float) -> tuple[State, list[Row]]:
    return run(settings, state=fresh(settings=settings, dropout=dropout))


@pytest.mark.parametrize(("at", "dropout"), [(1, 0.2), (20, 0.2), (33, 0.2), (60, 0.2), (20, 0.0)])
def test_resumed_fit_is_the_uninterrupted_one(at: int, dropout: float, tmp_path: Path) -> None:
    settings = TrainOptions(steps=80, batch_size=64, log_every=10)
    whole, rows = uninterrupted(settings, dropout)
    resumed, before, after = interrupted(settings, tmp_path / "last.pt", at, dropout=dropout)
    assert resumed.progress.step == 80
    expected = validations(rows)
    got = validations(before) | validations(after)
    assert {step: got[step] for step in expected} == pytest.approx(expected, rel=1e-6)
    torch.testing.assert_close(weights(resumed), weights(whole))
    repeated = set(validations(before)) & set(validations(after))
    assert not repeated, f"steps validated before and after: {repeated}"


def test_checkpoint_holds_the_state(tmp_path: Path) -> None:
    settings = TrainOptions(steps=25)
    state, _ = run(settings, state=fresh(settings=settings))
    save_checkpoint(state, tmp_path / "last.pt")
    torch.manual_seed(5)
    save_checkpoint(state, tmp_path / "seeded.pt")
    expected = torch.randn(3)
    loaded = load_checkpoint(fresh(settings=settings), tmp_path / "seeded.pt")
    assert loaded.progress == state.progress
    assert torch.equal(weights(loaded), weights(state))
    torch.testing.assert_close(loaded.average, state.average)
    torch.testing.assert_close(loaded.best, state.best)
    torch.testing.assert_close(loaded.optimizer.state_dict(), state.optimizer.state_dict())
    assert torch.equal(torch.randn(3), expected)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last.pt", "seeded.pt"]


def test_a_flipped_byte_is_found_anywhere(tmp_path: Path) -> None:
    save_checkpoint(fresh(), tmp_path / "last.pt")
    good = (tmp_path / "last.pt").read_bytes()
    for position in range(0, len(good), len(good) // 60):
        damaged = bytearray(good)
        damaged[position] ^= 0x10
        (tmp_path / "last.pt").write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"last\.pt: damaged: its checksum is not that of its contents"):
            load_checkpoint(fresh(), tmp_path / "last.pt")


@pytest.mark.parametrize("size", [0, 1, 100, 5000, -1])
def test_cut_off_checkpoint(size: int, tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(fresh(), path)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CheckpointError, match=r"last\.pt: damaged: its checksum"):
        load_checkpoint(fresh(), path)


def test_checkpoint_of_another_flow(tmp_path: Path) -> None:
    save_checkpoint(fresh(), tmp_path / "last.pt")
    with pytest.raises(CheckpointError, match=r"last\.pt: of another flow or format: "):
        load_checkpoint(fresh(name="realnvp"), tmp_path / "last.pt")
    with pytest.raises(CheckpointError, match="no checkpoint to resume from"):
        load_checkpoint(fresh(), tmp_path / "none.pt")


def test_checkpoint_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError):
        save_checkpoint(fresh(), tmp_path / "file" / "last.pt")


def test_checkpoints_come_in_time() -> None:
    seen: list[int] = []
    run(TrainOptions(steps=30, checkpoint_seconds=1e-9), checkpoint=lambda state: seen.append(state.progress.step))
    assert seen == [*range(0, 31), 30]
    seen.clear()
    run(TrainOptions(steps=30, checkpoint_seconds=1e9), checkpoint=lambda state: seen.append(state.progress.step))
    assert seen == [0, 30]


def test_rows_are_not_changed() -> None:
    before = copy.deepcopy(TRAIN.x)
    run(TrainOptions(steps=5))
    assert torch.equal(before, TRAIN.x)


def test_settings_without_a_budget() -> None:
    with pytest.raises(ValueError, match="TrainOptions: expected steps or seconds; got neither"):
        TrainOptions()
