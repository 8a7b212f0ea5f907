"""Fits of autoencoders by a bound of the likelihood."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from pushforward.flows.vae.autoencoder import Autoencoder, Estimator, build_autoencoder
from pushforward.flows.vae.decoders import (
    GaussianDecoder,
)
from pushforward.train.callbacks import Callback
from pushforward.train.divergence import DivergedError
from pushforward.train.objectives.bound import MOST_VALIDATION_ROWS, BoundObjective
from pushforward.train.options import TrainOptions
from pushforward.train.state import State, start
from pushforward.train.trainer import Trainer
from tests.fixtures.autoencoders import FEATURES, LATENT, probabilistic_pca, rows_for, small_autoencoder
from tests.fixtures.callbacks import Functions


def maximize_bound(
    model: Autoencoder,
    train: Tensor,
    validation: Tensor,
    options: TrainOptions,
    *,
    seed: int = 0,
    callbacks: Sequence[Callback] = (),
    **bound: Any,
) -> State:
    """Fit an autoencoder to rows in the units of its decoder."""
    objective = BoundObjective(train, validation, options.batch_size, seed=seed, **bound)
    return Trainer(options, callbacks=callbacks).run(start(model, options, seed=seed), objective)


def test_validation_rows_are_spread_evenly_over_the_table() -> None:
    rows = torch.arange(2 * MOST_VALIDATION_ROWS).double()[:, None].expand(-1, FEATURES)
    kept = BoundObjective(rows, rows, 10).validation
    assert len(kept) == MOST_VALIDATION_ROWS
    assert float(kept[0, 0]) == 0.0
    assert_close(kept, rows[torch.linspace(0, len(rows) - 1, len(kept)).round().long()])
    few = rows[:7]
    assert torch.equal(BoundObjective(few, few, 10).validation, few)


def test_a_single_validation_row_has_no_standard_error() -> None:
    model, distribution = probabilistic_pca()
    x = distribution.sample((1,))
    found = BoundObjective(x, x, 1).validate(model)
    assert found.loss == pytest.approx(-float(distribution.log_prob(x)))
    assert math.isnan(found.metrics["val/bound_se"])


def mixture(n: int, seed: int) -> Tensor:
    """Rows of two kinds: all features low, or all high."""
    generator = torch.Generator().manual_seed(seed)
    centre = torch.where(torch.rand(n, 1, generator=generator) < 0.5, 0.15, 0.85)
    return torch.binomial(torch.full((n, FEATURES), 4.0), centre.expand(n, FEATURES), generator=generator)


def true_nll(x: Tensor) -> float:
    binomial = [torch.distributions.Binomial(4, torch.tensor(p)).log_prob(x).sum(-1) for p in (0.15, 0.85)]
    return -float((torch.logaddexp(*binomial) - math.log(2)).mean())


@pytest.mark.parametrize(
    ("objective", "samples", "estimator"),
    [
        pytest.param("elbo", 1, "path-wise", marks=pytest.mark.slow),
        ("elbo", 1, "path"),
        pytest.param("iwae", 5, "path-wise", marks=pytest.mark.slow),
        ("iwae", 5, "dreg"),
    ],
)
def test_a_fit_comes_close_to_the_true_likelihood(objective: Any, samples: int, estimator: Estimator) -> None:
    train, validation, test = (mixture(2_000, seed) for seed in (1, 2, 11))
    model = build_autoencoder("categorical", FEATURES, latent=1, values=5, hidden=16, blocks=1)
    settings = TrainOptions(steps=160, batch_size=128, learning_rate=2e-2)
    rows: list[tuple[str, int, dict[str, float]]] = []
    fitted = maximize_bound(
        model,
        train,
        validation[:200],
        settings,
        bound=objective,
        samples=samples,
        estimator=estimator,
        validation_samples=8,
        callbacks=[Functions(log=lambda kind, step, seconds, metrics: rows.append((kind, step, metrics)))],
    ).progress
    reached = -float(model.log_prob(test).mean())
    assert true_nll(test) - 0.02 < reached < true_nll(test) + 0.25
    assert (fitted.step, fitted.stop_reason, model.training) == (160, "budget", False)
    losses = [metrics["val/loss"] for kind, _, metrics in rows if kind == "validation"]
    assert fitted.best_loss == min(losses)
    torch.manual_seed(0)
    assert (
        -float(model.log_prob_bound(validation[:200], 8).double().mean()) == fitted.best_loss
    )  # the best model is kept
    assert [step for kind, step, _ in rows if kind == "train"] == list(range(25, 161, 25))


def test_fits_are_repeatable_and_leave_the_generator_unchanged() -> None:
    x = mixture(200, 1)
    found = []
    for _ in range(2):
        torch.manual_seed(4)
        model = build_autoencoder("logistic", FEATURES, latent=1, values=5, hidden=8, blocks=1, dropout=0.1)
        before = torch.get_rng_state()
        maximize_bound(model, x, x[:50], TrainOptions(steps=20), seed=3)
        assert torch.equal(torch.get_rng_state(), before)
        found.append(model.log_prob(x))
    assert torch.equal(*found)


def test_fits_stop_on_request_by_time_and_by_patience() -> None:
    x = mixture(100, 1)
    model = small_autoencoder("categorical").float()
    answers = iter(["", "", "", "requested"])
    seen: list[tuple[str, int]] = []
    watch = Functions(stop=lambda: next(answers), log=lambda kind, step, *_: seen.append((kind, step)))
    stopped = maximize_bound(model, x, x, TrainOptions(steps=500), callbacks=[watch]).progress
    assert seen == [("validation", 0), ("validation", 3)]  # the last model is validated too
    assert (stopped.step, stopped.stop_reason) == (3, "requested")
    timed = maximize_bound(model, x, x, TrainOptions(seconds=0.3)).progress
    assert timed.stop_reason == "budget"
    assert 0.3 <= timed.seconds < 5.0
    stale = maximize_bound(model, x, x[:1], TrainOptions(steps=400, learning_rate=0.3, patience=0.1)).progress
    assert stale.stop_reason == "patience"


def test_a_fit_with_a_loss_that_is_not_finite_is_an_error() -> None:
    model = small_autoencoder("gaussian")
    assert isinstance(model.decoder, GaussianDecoder)
    with torch.no_grad():
        model.decoder.log_scale.fill_(math.nan)
    x = rows_for("gaussian", 50)
    with pytest.raises(DivergedError, match="loss is not finite"):
        maximize_bound(model, x, x, TrainOptions(steps=100))
    mistakes: list[dict[str, Any]] = [{"bound": "elob"}, {"kl_warmup": 2.0}]
    for options in mistakes:
        (wrong,) = options
        with pytest.raises(ValueError, match=wrong):
            maximize_bound(model, x, x, TrainOptions(steps=1), **options)
    with pytest.raises(ValueError, match="got 0 and 50"):
        maximize_bound(model, x[:0], x, TrainOptions(steps=1))


@pytest.mark.slow
def test_a_linear_gaussian_fit_reaches_the_exact_likelihood() -> None:
    _, distribution = probabilistic_pca()
    x = distribution.sample((1_000,))
    model = build_autoencoder("gaussian", FEATURES, latent=LATENT, hidden=16, blocks=1).double()
    settings = TrainOptions(steps=1_500, batch_size=100, learning_rate=1e-2)
    maximize_bound(model, x, x[:100], settings, estimator="path", validation_samples=8)
    fresh = distribution.sample((2_000,))
    assert -0.01 < float((distribution.log_prob(fresh) - model.log_prob(fresh)).mean()) < 0.06
