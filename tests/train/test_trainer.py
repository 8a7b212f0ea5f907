"""The training loop: convergence, best weights, budget and early stopping, metrics, divergence, checkpoints."""

import copy
import dataclasses
import functools
import gc
import math
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pushforward.evaluate.likelihood import nll
from pushforward.flows import Flow, build
from pushforward.train.callbacks import Watch
from pushforward.train.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from pushforward.train.divergence import DivergedError
from pushforward.train.gaussian import gaussian_flow, initialize_base
from pushforward.train.objectives.base import Validation
from pushforward.train.objectives.likelihood import Batches, Likelihood, RowTensors
from pushforward.train.options import TrainOptions
from pushforward.train.state import State, start
from pushforward.train.trainer import Trainer
from tests.fixtures.callbacks import Functions

COVARIANCE = torch.tensor([[1.0, 0.8], [0.8, 1.5]])
Row = tuple[str, int, float, dict[str, float]]


def gaussian_rows(n: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x: Tensor = torch.randn(n, 2, generator=generator) @ torch.linalg.cholesky(COVARIANCE).T
    return x


def bent_rows(n: int, seed: int = 0) -> Tensor:
    x = gaussian_rows(n, seed)
    return torch.stack([x[:, 0], 0.3 * x[:, 1] + x[:, 0] ** 2], dim=1)


TRAIN, VALIDATION = RowTensors(bent_rows(500)), RowTensors(bent_rows(200, seed=1))


def fresh(
    train: RowTensors = TRAIN, options: TrainOptions | None = None, name: str = "maf", seed: int = 0, **sizes: Any
) -> State:
    """A new state with the same initial weights each time."""
    torch.manual_seed(3)
    context = 0 if train.context is None else train.context.shape[1]
    flow = build(name, train.x.shape[1], context, layers=1, hidden=8, base="full", **sizes)
    initialize_base(flow, train.x, train.context)
    return start(flow, options or TrainOptions(steps=10), seed=seed)


def run(
    options: TrainOptions,
    train: RowTensors = TRAIN,
    validation: RowTensors = VALIDATION,
    state: State | None = None,
    seed: int = 0,
    **callbacks: Any,
) -> tuple[State, list[Row]]:
    state = fresh(train, options) if state is None else state
    rows: list[Row] = []
    likelihood = Likelihood(train, validation, options.batch_size, state.progress.step, seed=seed)
    watch = Functions(log=lambda *row: rows.append(row), **callbacks)
    state = Trainer(options, callbacks=[watch]).run(state, likelihood)
    return state, rows


def validations(rows: list[Row]) -> dict[int, float]:
    return {step: metrics["val/nll"] for kind, step, _, metrics in rows if kind == "validation"}


def weights(state: State) -> Tensor:
    return torch.cat([p.detach().flatten() for p in state.flow.parameters()])


def test_a_gaussian_reaches_the_closed_form() -> None:
    x = gaussian_rows(4000)
    flow = build("gaussian", 2, base="full")  # not initialised: it has to learn mean and covariance
    options = TrainOptions(steps=300, batch_size=500, learning_rate=0.03)
    state, _ = run(options, RowTensors(x), RowTensors(x), start(flow, options))
    covariance = torch.cov(x.T, correction=0).double()
    best = 0.5 * float(torch.logdet(covariance)) + 1 + math.log(2 * math.pi)
    # No Gaussian has a lower NLL on these rows, and the fit comes close.
    assert 0 <= nll(state.flow, x).nll - best + 1e-6 < 2e-3


def test_initialize_base_makes_every_flow_the_gaussian_of_the_rows() -> None:
    for name in ("maf", "nsf-ar", "nsf-c", "realnvp"):
        flow = build(name, 2, layers=2, hidden=8, base="full")
        x = gaussian_rows(1000)
        initialize_base(flow, x)
        assert nll(flow, x).nll == pytest.approx(nll(gaussian_flow(x), x).nll, abs=1e-4)
        exact = torch.distributions.MultivariateNormal(x.mean(0), torch.cov(x.T, correction=0)).log_prob(x).mean()
        assert nll(flow, x).nll == pytest.approx(-float(exact), abs=1e-4)


def test_the_first_validation_is_that_of_the_initial_weights() -> None:
    expected = nll(fresh().flow.eval(), VALIDATION.x).nll
    state, rows = run(TrainOptions(steps=5))
    assert validations(rows)[0] == expected == state.progress.start_loss


def test_the_logged_nll_is_the_sum_of_base_and_log_det() -> None:
    _, rows = run(TrainOptions(steps=20, log_every=5))
    logged = [metrics for kind, _, _, metrics in rows if kind == "train"]
    assert len(logged) == 4
    for metrics in logged:
        assert metrics["train/nll"] == pytest.approx(metrics["train/base"] + metrics["train/log_det"], rel=1e-12)
        assert metrics["train/log_det"] != 0
        assert metrics["train/grad_norm"] > 0
        assert metrics["perf/rows_per_s"] > 0


def test_the_first_step_logs_the_nll_of_its_batch() -> None:
    """With one batch of all rows, and no dropout, the first logged NLL is that of the training rows."""
    expected = nll(fresh().flow.eval(), TRAIN.x).nll
    _, rows = run(TrainOptions(steps=1, log_every=1, batch_size=500))
    assert rows[1][0] == "train"
    assert rows[1][3]["train/nll"] == pytest.approx(expected, abs=1e-5)


def test_the_final_flow_has_the_best_weights_in_evaluation_mode() -> None:
    state, rows = run(TrainOptions(steps=60))
    progress = state.progress
    assert progress.best_loss == min(validations(rows).values())
    assert validations(rows)[progress.best_step] == progress.best_loss
    assert nll(state.flow, VALIDATION.x).nll == progress.best_loss
    assert not state.flow.training


def test_later_and_worse_weights_are_not_kept() -> None:
    """Forty training rows and a large learning rate overfit; the weights with the best validation are kept."""
    train = RowTensors(bent_rows(40))
    options = TrainOptions(steps=400, learning_rate=0.05, ema_decay=0.0, batch_size=40)
    state, rows = run(options, train, state=fresh(train, options))
    by_step = validations(rows)
    assert by_step[max(by_step)] > state.progress.best_loss + 0.05
    assert state.progress.best_step < 400
    assert nll(state.flow, VALIDATION.x).nll == state.progress.best_loss


@pytest.mark.parametrize("steps", [1, 2, 7, 41, 100])
def test_the_step_budget_is_exact(steps: int) -> None:
    state, rows = run(TrainOptions(steps=steps, log_every=1))
    assert state.progress.step == steps
    assert state.progress.stop_reason == "budget"
    assert [step for kind, step, _, _ in rows if kind == "train"] == list(range(1, steps + 1))
    assert max(validations(rows)) == steps  # the last weights are validated


@pytest.mark.parametrize(("warmup", "rates"), [(0, [1.0, 0.75, 0.25]), (3, [1 / 3, 0.5, 0.25])])
def test_learning_rate_without_and_with_warmup(warmup: int, rates: list[float]) -> None:
    _, rows = run(TrainOptions(steps=3, log_every=1, learning_rate=0.5, warmup=warmup))
    seen = [metrics["train/learning_rate"] for kind, _, _, metrics in rows if kind == "train"]
    # The first step has the full rate, and the cosine is zero after the last step.
    assert seen == pytest.approx([0.5 * rate for rate in rates])


@pytest.mark.parametrize("budget", [{"steps": 23}, {"steps": 23, "seconds": 1e4}])
def test_validate_every_counts_steps(budget: dict[str, Any]) -> None:
    _, rows = run(TrainOptions(**budget, validate_every=5))
    assert [step for kind, step, _, _ in rows if kind == "validation"] == [0, 5, 10, 15, 20, 23]


@pytest.mark.parametrize("learning_rate", [1e-3, 0.3])
def test_no_step_is_validated_twice(learning_rate: float) -> None:
    _, rows = run(TrainOptions(steps=80, learning_rate=learning_rate, ema_decay=0.0))
    seen = [step for kind, step, _, _ in rows if kind == "validation"]
    assert seen == sorted(set(seen))
    assert [row[1] for row in rows] == sorted(row[1] for row in rows)


def test_a_time_budget_is_kept() -> None:
    began = time.perf_counter()
    state, rows = run(TrainOptions(seconds=0.5))
    took = time.perf_counter() - began
    assert state.progress.stop_reason == "budget"
    assert 0.5 <= state.progress.seconds <= took
    # A step takes a few milliseconds; the bound is loose for busy machines.
    assert took < 3
    assert state.progress.step > 5
    assert 3 <= len(validations(rows)) <= 45


def test_the_first_budget_to_end_stops_training() -> None:
    state, _ = run(TrainOptions(steps=5, seconds=60))
    assert state.progress.step == 5
    state, _ = run(TrainOptions(steps=10**9, seconds=0.2))
    assert state.progress.step < 10**9


def test_early_stopping() -> None:
    """Forty training rows overfit early; training stops after the patience, a share of the budget."""
    train = RowTensors(bent_rows(40))
    options = TrainOptions(steps=400, learning_rate=0.05, ema_decay=0.0, batch_size=40, patience=0.2)
    state, rows = run(options, train)
    progress = state.progress
    assert progress.stop_reason == "patience"
    assert progress.best_step / 400 + 0.2 < progress.step / 400 <= progress.best_step / 400 + 0.2 + 2 / 40
    assert max(validations(rows)) == progress.step


def test_patience_after_a_resume_is_a_share_of_the_new_budget() -> None:
    """As in one fit of that budget; the share of the old budget at which the best loss came is a larger one."""
    train = RowTensors(bent_rows(40))
    options = TrainOptions(steps=100, learning_rate=0.05, ema_decay=0.0, batch_size=40)
    state, _ = run(options, train)
    best = state.progress.best_step
    assert 0 < best < 100, "it overfits before the first budget ends"
    longer = dataclasses.replace(options, steps=400, patience=0.2)
    state, _ = run(longer, train, state=state)
    assert (state.progress.stop_reason, state.progress.best_step) == ("patience", best)
    assert best + 80 < state.progress.step <= max(100, best + 80) + 2 * 10

    by_time = dataclasses.replace(options, steps=None, seconds=0.2)
    state, _ = run(by_time, train)
    after = state.progress.best_seconds
    assert after > 0
    state, _ = run(dataclasses.replace(by_time, seconds=1e-9, patience=0.0), train, state=state)
    assert state.progress.best_seconds == after


def test_patience_of_one_never_stops() -> None:
    state, _ = run(TrainOptions(steps=100, learning_rate=0.5, ema_decay=0.0, patience=1.0))
    assert state.progress.stop_reason == "budget"


def test_the_stop_callback_ends_training() -> None:
    calls = iter(["", "", "sigterm"])
    state, rows = run(TrainOptions(steps=100), stop=lambda: next(calls))
    assert state.progress.stop_reason == "sigterm"
    assert state.progress.step == 2
    assert max(validations(rows)) == 2


def test_the_weight_average_is_kept() -> None:
    """The exponential moving average is validated and kept, not the last weights."""
    raw: list[Tensor] = []
    options = TrainOptions(steps=20, ema_decay=0.9, learning_rate=0.01)
    state = fresh(options=options)
    average = weights(state).double()

    def follow() -> str:
        nonlocal average
        if step := state.progress.step:
            decay = min(0.9, (1 + step) / (10 + step))
            average = decay * average + (1 - decay) * weights(state)
            raw.append(weights(state))
        return ""

    state, _ = run(options, state=state, stop=follow)
    assert state.progress.best_step == 20
    torch.testing.assert_close(weights(state), average.float())
    assert not torch.equal(weights(state), raw[-1])


def test_without_averaging_the_weights_are_kept() -> None:
    seen: dict[int, Tensor] = {}
    options = TrainOptions(steps=20, ema_decay=0.0)
    state = fresh(options=options)

    def follow() -> str:
        seen[state.progress.step] = weights(state)
        return ""

    state, _ = run(options, state=state, stop=follow)
    torch.testing.assert_close(weights(state), seen[state.progress.best_step])


def test_the_seed_decides_all_numbers() -> None:
    options = TrainOptions(steps=30, log_every=5)
    first, rows = run(options, state=fresh(dropout=0.2))
    again, rows_again = run(options, state=fresh(dropout=0.2))
    other_order, _ = run(options, state=fresh(dropout=0.2), seed=1)
    other_dropout, _ = run(options, state=fresh(dropout=0.2, seed=1))
    assert torch.equal(weights(first), weights(again))
    assert validations(rows) == validations(rows_again)
    assert not torch.equal(weights(first), weights(other_order))
    assert not torch.equal(weights(first), weights(other_dropout))


def test_the_random_state_of_the_process_does_not_change() -> None:
    before = torch.get_rng_state()
    state = start(build("maf", 2, hidden=8, dropout=0.2), TrainOptions(steps=5))
    torch.set_rng_state(before)
    run(TrainOptions(steps=5), state=state)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("rows", "size"), [(10, 3), (12, 4), (5, 8), (1, 1), (7, 7)])
def test_batches_take_every_row_at_most_once_an_epoch(rows: int, size: int) -> None:
    batches = Batches(RowTensors(torch.arange(float(rows))[:, None]), size, 0)
    for _ in range(3):
        epoch = [batches.next()[0] for _ in range(batches.per_epoch)]
        assert {len(batch) for batch in epoch} == {min(rows, size)}  # no ragged last batch
        values = torch.cat(epoch).flatten().tolist()
        assert len(values) == len(set(values)) == rows - rows % min(rows, size)


def test_rows_left_out_of_an_epoch_come_in_others() -> None:
    batches = Batches(RowTensors(torch.arange(10.0)[:, None]), 3, 0)
    seen = torch.cat([batches.next()[0] for _ in range(60)]).flatten()
    assert sorted(set(seen.tolist())) == list(range(10))


def test_context_follows_its_row() -> None:
    x = torch.arange(20.0)[:, None]
    batches = Batches(RowTensors(x, x + 100), 7, 0)
    for _ in range(6):
        batch, context, _ = batches.next()
        assert context is not None
        assert torch.equal(batch + 100, context)


def test_dequantization_noise_is_new_and_within_one_bin_width() -> None:
    x = torch.zeros(50, 3)
    bin_widths = torch.tensor([1.0, 0.0, 0.25])
    batches = Batches(RowTensors(x, None, bin_widths), 50, 0)
    drawn = torch.stack([batches.next()[0] for _ in range(100)])
    assert (drawn.abs() <= bin_widths / 2).all()
    assert not drawn[..., 1].any()
    assert len(drawn[..., 0].unique()) > 4900
    assert drawn[..., 0].mean().abs() < 0.02
    assert drawn[..., 2].var() == pytest.approx(0.25**2 / 12, rel=0.1)
    assert not x.any()  # the recorded values do not change


def test_a_conditional_fit_uses_its_context() -> None:
    generator = torch.Generator().manual_seed(0)
    context = torch.randn(1000, 1, generator=generator)
    x = 2 * context + 0.1 * torch.randn(1000, 1, generator=generator)
    train, validation = RowTensors(x[:800], context[:800]), RowTensors(x[800:], context[800:])
    options = TrainOptions(steps=300, learning_rate=0.02, batch_size=256)
    state, _ = run(options, train, validation, fresh(train, options))
    truth = 0.5 * math.log(2 * math.pi * math.e * 0.01)
    assert state.progress.start_loss > truth + 2
    assert state.progress.best_loss < truth + 0.3


def test_one_column() -> None:
    x = gaussian_rows(400)[:, :1]
    train, validation = RowTensors(x[:300]), RowTensors(x[300:])
    for name in ("maf", "nsf-ar", "nsf-c", "realnvp", "iaf", "gaussian"):
        options = TrainOptions(steps=3)
        state, _ = run(options, train, validation, fresh(train, options, name))
        assert math.isfinite(state.progress.best_loss)


class Poisoned(Flow):
    """A flow whose density is NaN in chosen calls, as after a bad step."""

    calls = 0
    bad: Callable[[int], bool] = staticmethod(lambda call: False)

    def log_prob_terms(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        base, log_det = super().log_prob_terms(x, context)
        if self.training:
            self.calls += 1
            if self.bad(self.calls):
                base = base * math.nan
        return base, log_det


def poisoned(options: TrainOptions, bad: Callable[[int], bool]) -> State:
    state = fresh(options=options)
    assert isinstance(state.flow, Flow)
    flow = Poisoned(state.flow.base, state.flow.bijection)
    flow.bad = bad
    return start(flow, options)


def test_a_rare_nan_rolls_back_and_halves_the_rate() -> None:
    options = TrainOptions(steps=120, log_every=5)
    state, rows = run(options, state=poisoned(options, lambda call: call == 82))
    assert state.progress.rollbacks == 1
    assert state.progress.step == 120
    assert math.isfinite(state.progress.best_loss)
    _, undisturbed = run(options)
    rates, full = (
        {step: metrics["train/learning_rate"] for kind, step, _, metrics in each if kind == "train"}
        for each in (rows, undisturbed)
    )
    assert rates[85] == full[85]
    assert rates[90] == full[90] / 2
    assert all(p.isfinite().all() for p in state.flow.parameters())
    late = [value for step, value in validations(rows).items() if step > 90]
    assert all(math.isfinite(value) for value in late)


def test_a_rollback_restores_the_best_weights_and_resets_the_optimizer() -> None:
    """The gradient is NaN in step 12, which the row of metrics of step 15 shows; step 10 was the best until then."""
    options = TrainOptions(steps=40, validate_every=10, log_every=15)
    state = poisoned(options, lambda call: call == 12)
    before: list[Tensor] = []
    seen: list[int] = []

    def follow() -> str:
        progress = state.progress
        if progress.step == 14:
            before.append(weights(state))
            assert state.optimizer.state
        if progress.rollbacks and not seen:
            seen.append(progress.step)
            assert progress.best_step == 10
            for name, value in state.flow.state_dict().items():
                torch.testing.assert_close(value, state.best[name])
            for parameter, average in zip(state.flow.parameters(), state.average, strict=True):
                torch.testing.assert_close(average, parameter.detach())
            assert not torch.equal(weights(state), before[0])
            assert not state.optimizer.state
        return ""

    run(options, state=state, stop=follow)
    assert seen == [15]
    assert state.progress.rollbacks == 1


def test_permanent_nan_is_a_divergence() -> None:
    options = TrainOptions(steps=2000, log_every=5)
    with pytest.raises(
        DivergedError, match=r"not finite at step \d+, after 5 rollbacks .* try a learning rate of "
    ) as e:
        run(options, state=poisoned(options, lambda call: call > 20))
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("bad_from", [1, 33, 39])
def test_nan_between_rows_of_metrics_is_noticed(bad_from: int) -> None:
    """In a fit without a row of metrics, or after the last row: the kept weights are finite."""
    options = TrainOptions(steps=40, log_every=1000)
    state = poisoned(options, lambda call: call >= bad_from)
    try:
        state, _ = run(options, state=state)
    except DivergedError:
        return
    assert all(p.isfinite().all() for p in state.flow.parameters())
    assert math.isfinite(nll(state.flow, VALIDATION.x).nll)


def test_a_huge_learning_rate_does_not_return_nan() -> None:
    options = TrainOptions(steps=200, learning_rate=1e4, log_every=5, ema_decay=0.0)
    try:
        state, _ = run(options, state=fresh(options=options))
    except DivergedError:
        return
    assert math.isfinite(nll(state.flow, VALIDATION.x).nll)
    assert state.progress.best_loss <= state.progress.start_loss


def interrupted(options: TrainOptions, path: Path, at: int, **sizes: Any) -> tuple[State, list[Row], list[Row]]:
    """Train to a step, write a checkpoint, resume from it in a new state."""

    def checkpoint(state: State) -> None:
        save_checkpoint(state, path)

    state = fresh(options=options, **sizes)
    _, before = run(options, state=state, checkpoint=checkpoint, stop=lambda: "now" * (state.progress.step == at))
    torch.manual_seed(99)  # resuming must not depend on the random state of the process
    resumed = load_checkpoint(fresh(options=options, **sizes), path)
    resumed, rows = run(options, state=resumed)
    return resumed, before, rows


@functools.cache
def uninterrupted(options: TrainOptions, dropout: float) -> tuple[State, list[Row]]:
    return run(options, state=fresh(options=options, dropout=dropout))


@pytest.mark.parametrize(("at", "dropout"), [(1, 0.2), (20, 0.2), (33, 0.2), (60, 0.2), (20, 0.0)])
def test_a_resumed_fit_equals_the_uninterrupted_one(at: int, dropout: float, tmp_path: Path) -> None:
    options = TrainOptions(steps=80, batch_size=64, log_every=10)
    whole, rows = uninterrupted(options, dropout)
    resumed, before, after = interrupted(options, tmp_path / "last.pt", at, dropout=dropout)
    assert resumed.progress.step == 80
    expected = validations(rows)
    got = validations(before) | validations(after)
    assert {step: got[step] for step in expected} == pytest.approx(expected, rel=1e-6)
    torch.testing.assert_close(weights(resumed), weights(whole))
    repeated = set(validations(before)) & set(validations(after))
    assert not repeated, f"steps validated before and after: {repeated}"


def test_a_checkpoint_restores_the_state(tmp_path: Path) -> None:
    options = TrainOptions(steps=25)
    state, _ = run(options, state=fresh(options=options, dropout=0.2))
    save_checkpoint(state, tmp_path / "last.pt")
    loaded = load_checkpoint(fresh(options=options, dropout=0.2), tmp_path / "last.pt")
    assert loaded.progress == state.progress
    assert torch.equal(weights(loaded), weights(state))
    torch.testing.assert_close(loaded.average, state.average)
    torch.testing.assert_close(loaded.best, state.best)
    torch.testing.assert_close(loaded.optimizer.state_dict(), state.optimizer.state_dict())
    with state.random.active():
        expected = torch.randn(3)
    with loaded.random.active():
        assert torch.equal(torch.randn(3), expected)
    with fresh(options=options).random.active():
        assert not torch.equal(torch.randn(3), expected), "the steps drew from it"
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


def test_a_flipped_bit_anywhere_is_noticed(tmp_path: Path) -> None:
    save_checkpoint(fresh(), tmp_path / "last.pt")
    good = (tmp_path / "last.pt").read_bytes()
    for position in range(0, len(good), len(good) // 60):
        damaged = bytearray(good)
        damaged[position] ^= 0x10
        (tmp_path / "last.pt").write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"last\.pt: damaged: its checksum is not that of its contents"):
            load_checkpoint(fresh(), tmp_path / "last.pt")


@pytest.mark.parametrize("size", [0, 1, 100, 5000, -1])
def test_a_truncated_checkpoint_is_refused(size: int, tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(fresh(), path)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CheckpointError, match=r"last\.pt: damaged: its checksum"):
        load_checkpoint(fresh(), path)


def test_a_checkpoint_of_another_flow_is_refused(tmp_path: Path) -> None:
    save_checkpoint(fresh(), tmp_path / "last.pt")
    with pytest.raises(CheckpointError, match=r"last\.pt: of another flow or format: "):
        load_checkpoint(fresh(name="realnvp"), tmp_path / "last.pt")
    with pytest.raises(CheckpointError, match="no checkpoint to resume from"):
        load_checkpoint(fresh(), tmp_path / "none.pt")


def test_a_checkpoint_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError):
        save_checkpoint(fresh(), tmp_path / "file" / "last.pt")


def test_checkpoints_are_written_on_time() -> None:
    seen: list[int] = []
    run(TrainOptions(steps=30, checkpoint_seconds=1e-9), checkpoint=lambda state: seen.append(state.progress.step))
    assert seen == [*range(0, 31), 30]
    seen.clear()
    run(TrainOptions(steps=30, checkpoint_seconds=1e9), checkpoint=lambda state: seen.append(state.progress.step))
    assert seen == [0, 30]


def test_training_does_not_change_the_rows() -> None:
    before = copy.deepcopy(TRAIN.x)
    run(TrainOptions(steps=5))
    assert torch.equal(before, TRAIN.x)


class OutOfReach(Flow):
    """A flow without density at the rows with a first column above 2, as a base on an interval has none outside it."""

    value = -math.inf

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        log_probs: Tensor = super().log_prob(x, context)
        return log_probs.masked_fill(x[:, 0] > 2, self.value)


def out_of_reach(value: float) -> Flow:
    flow = fresh().flow
    assert isinstance(flow, Flow)
    made = OutOfReach(flow.base, flow.bijection)
    made.value = value
    return made


@pytest.mark.parametrize("value", [-math.inf, math.inf, math.nan])
def test_a_fit_without_a_finite_validation_is_refused(value: float) -> None:
    """The initial weights would be returned as the best, as no later ones are better."""
    x = gaussian_rows(200)
    x[:, 0] = x[:, 0].clamp(max=1.9)
    held_out = x[:50].clone()
    held_out[[7, 30], 0] = 2.5
    where = rf"the log-density is {value:g} at validation rows 7, 30, counted from 0"
    expected = f"^the validation NLL was not finite in any validation: {where}$"
    with pytest.raises(DivergedError, match=expected):
        Trainer(steps=5).fit(out_of_reach(value), x, held_out)
    weight, held_out_weight = torch.ones(200), torch.ones(50)
    weights: dict[str, Any] = {"weight": weight, "weight_validation": held_out_weight}
    held_out_weight[7] = 0
    with pytest.raises(DivergedError, match=r"at validation row 30, counted from 0$"):
        Trainer(steps=5).fit(out_of_reach(value), x, held_out, **weights)
    held_out_weight[30] = 0
    Trainer(steps=5).fit(out_of_reach(value), x, held_out, **weights)


def test_a_held_out_row_without_density_has_its_number_among_all_rows() -> None:
    x = gaussian_rows(200)
    x[:, 0] = x[:, 0].clamp(max=1.9)
    x[::2, 0] = 2.5
    with pytest.raises(DivergedError) as refused:
        Trainer(steps=5).fit(out_of_reach(-math.inf), x)
    words = str(refused.value).partition("rows ")[2].partition(" and ")[0].split(", ")
    assert len(words) > 3
    assert all(int(number) % 2 == 0 for number in words)
    assert max(map(int, words)) > 20  # more than there are validation rows


def test_a_loss_of_minus_infinity_is_not_the_best() -> None:
    class Once(Likelihood):
        def validate(self, flow: Any) -> Validation:
            self.count = getattr(self, "count", 0) + 1
            return Validation(-math.inf) if self.count == 2 else super().validate(flow)

    options = TrainOptions(steps=20, validate_every=5)
    state = Trainer(options).run(fresh(options=options), Once(TRAIN, VALIDATION, 100, seed=0))
    assert math.isfinite(state.progress.best_loss)
    assert state.progress.best_step > 5


def test_a_trainer_is_used_again_and_keeps_nothing_of_a_fit() -> None:
    trainer = Trainer(
        steps=15, learning_rate=0.05, callbacks=[Watch(lambda share, loss: "enough" if share > 0.5 else "")]
    )
    before = set(vars(trainer))
    first, second = (trainer.fit(fresh().flow, TRAIN.x, VALIDATION.x) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(next(first.parameters()), next(fresh().flow.parameters()))
    assert set(vars(trainer)) == before
    assert all(p.grad is None for p in first.parameters())
    model = weakref.ref(first)
    del first
    gc.collect()
    assert model() is None, "nothing else holds the model, nor its optimiser and averages"
