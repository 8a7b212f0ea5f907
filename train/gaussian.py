"""The Gaussian that a fit starts from, and that it keeps if the flow is not significantly better."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pushforward.evaluate.likelihood import log_prob, paired_difference, with_error
from pushforward.flows import Chain, Flow, Gaussian, Model, members_of
from pushforward.train.data import Prepared
from pushforward.train.state import State

# Trained bases are not given the smallest: a step of the optimizer would leave so narrow a Gaussian.
SHRINKAGES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.03, 0.1, 0.3, 0.6)
FINAL_SHRINKAGES = (1e-10, 1e-8, *SHRINKAGES)
FOLDS = 5


def fit_gaussian(
    rows: Tensor, shrinkages: Sequence[float] = SHRINKAGES, weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Estimate mean and covariance, shrunk towards the diagonal by the amount that cross-validation selects.

    With a hundred rows the maximum-likelihood covariance overfits, while columns that nearly determine each other need
    it to full precision.

    Args:
        rows: ``(n, D)``.
        shrinkages: The amounts to choose from, in ascending order.
        weights: Weights of the rows ``(n,)``; None for equal ones.

    Returns:
        The mean ``(D,)`` and the covariance ``(D, D)``, in float64.

    Cost:
        ``FOLDS * len(shrinkages)`` Cholesky factorisations.
    """
    x = rows.double()
    n = len(x)
    w = None if weights is None else weights.double().to(x.device)
    fold = torch.arange(n, device=x.device) % FOLDS
    scores = torch.zeros(len(shrinkages), dtype=torch.float64)
    if n >= 2 * FOLDS:
        for k in range(FOLDS):
            kept, left = x[fold != k], x[fold == k]
            kept_weights, left_weights = (None, None) if w is None else (w[fold != k], w[fold == k])
            for i, shrinkage in enumerate(shrinkages):
                mean, covariance = _moments(kept, shrinkage, kept_weights)
                scores[i] += _log_likelihood(left, mean, covariance, left_weights)
        shrinkage = shrinkages[int(scores.argmax())]
    else:
        shrinkage = shrinkages[-1]
    return _moments(x, shrinkage, w)


@torch.no_grad()
def initialize_base(model: Model, x: Tensor, context: Tensor | None = None, weights: Tensor | None = None) -> None:
    """Make a new flow, or each member of a mixture, the Gaussian that fits the rows, by initialising its base.

    Layers that initialise themselves from data do so, too.

    Args:
        model: Flows that start as the identity up to the order of features.
        x: Training rows ``(n, D)`` in the units of the flow.
        context: Their context ``(n, C)``.
        weights: Their weights ``(n,)``; None for equal ones.
    """
    for flow in members_of(model):
        z = flow.train().transform_to_base(x, context)
        flow.base.initialize(*fit_gaussian(z, weights=weights))


def gaussian_flow(x: Tensor, context: int = 0, weights: Tensor | None = None) -> Flow:
    """A flow without layers: the Gaussian that fits the rows ``(n, D)``, of weights ``(n,)``."""
    flow = Flow(Gaussian(x.shape[1], context, covariance="full"), Chain([], features=x.shape[1]))
    flow.base.initialize(*fit_gaussian(x, FINAL_SHRINKAGES, weights))
    return flow.to(x.device)


def _moments(x: Tensor, shrinkage: float, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """Mean and covariance, shrunk towards the diagonal."""
    if weights is None:
        mean = x.mean(0)
        centred = x - mean
        covariance = centred.T @ centred / len(x)
    else:
        shares = (weights / weights.sum())[:, None]
        mean = (shares * x).sum(0)
        centred = x - mean
        covariance = (shares * centred).T @ centred
    variances = covariance.diagonal().clamp_min(1e-12)
    return mean, (1.0 - shrinkage) * covariance + shrinkage * torch.diag(variances)


def _log_likelihood(x: Tensor, mean: Tensor, covariance: Tensor, weights: Tensor | None) -> float:
    factor, info = torch.linalg.cholesky_ex(covariance)
    if int(info):
        return -torch.inf
    whitened = torch.linalg.solve_triangular(factor, (x - mean).T, upper=False)
    if weights is None:
        return float(-0.5 * whitened.square().sum() - len(x) * factor.diagonal().log().sum())
    return float(-0.5 * (weights * whitened.square().sum(0)).sum() - weights.sum() * factor.diagonal().log().sum())


def better_of_flow_and_gaussian(prepared: Prepared, state: State) -> tuple[Model, str]:
    """Keep the trained flow if it is better than a Gaussian by two standard errors on the validation rows.

    With a hundred rows a flow can look better on the few validation rows by chance; the Gaussian has fewer parameters.

    Args:
        prepared: The data.
        state: The state after training, its flow with the best weights.

    Returns:
        The flow or the Gaussian, on the CPU, and one line on why it is the Gaussian, empty for the flow.
    """
    flow = state.flow.cpu().eval()
    is_gaussian = isinstance(flow, Flow) and isinstance(flow.base, Gaussian) and not list(flow.bijection.parameters())
    if flow.context or (state.progress.best_step == 0 and is_gaussian):
        return flow, ""
    cpu = torch.device("cpu")
    train, validation = prepared.training_rows(cpu), prepared.validation_rows(cpu)
    gaussian = prepared.with_tails(gaussian_flow(prepared.map_tails(train.noised()), weights=train.weights))
    own, other = (log_prob(model, validation.x) for model in (flow, gaussian))
    gain, se = paired_difference(own, other, validation.weights)
    if gain > 2.0 * se or (math.isnan(se) and gain > 0):
        return flow, ""
    parameters = sum(p.numel() for p in gaussian.parameters())
    difference = f"{with_error(abs(gain), se, 3)} nats {'better' if gain > 0 else 'worse'}"
    return gaussian, (
        f"the Gaussian is kept ({parameters} parameters): on the validation rows ({len(validation)}) the flow is "
        f"not significantly better than a Gaussian with full covariance ({difference})"
    )
