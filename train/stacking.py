"""What small tables need: the flow averaged with a Gaussian and a kernel density, weighted by held-out likelihood."""

import numpy as np
import torch

from pushforward.evaluate.kernel_density import kernel_log_densities
from pushforward.evaluate.likelihood import Array, log_prob
from pushforward.flows import Chain, Flow, KernelDensity, Mixture, Model, members_of
from pushforward.train.data import Prepared
from pushforward.train.gaussian import gaussian_flow

FLOW, GAUSSIAN, KERNEL = "flow", "Gaussian", "kernel density"

MOST_ROWS = 5_000
"""Training rows behind a kernel density, at most: all of them are stored, and read for every score."""

_LEAST_WEIGHT = 0.01
_FOLDS = 5
_PRIOR_ROWS = 1.0


def stack(prepared: Prepared, flow: Model) -> tuple[Model, dict[str, float]]:
    """Average a trained flow with a Gaussian and a kernel density, in probability.

    On a hundred rows a flow may be worse than either, and no choice by a handful of validation rows is safe. An average
    loses at most minus the logarithm of a weight against each of its parts, and is often better than all of them.

    Args:
        prepared: The data; validation rows decide the weights, training rows everything else.
        flow: The flow or the ensemble, trained, without context.

    Returns:
        The density, on the CPU, and the weight of each part that is left in it.

    References:
        - Smyth & Wolpert (1999), Linearly combining density estimators via stacking,
          https://doi.org/10.1023/A:1007511322260.
    """
    flow = flow.cpu().eval()
    if flow.context:
        return flow, {FLOW: 1.0}
    cpu = torch.device("cpu")
    rows, validation = prepared.training_points(cpu).noised(), prepared.validation_points(cpu).x
    parts: dict[str, Model] = {FLOW: flow, GAUSSIAN: gaussian_flow(rows), KERNEL: kernel_flow(rows)}
    scores = np.stack([log_prob(part, validation).double().numpy() for part in parts.values()], axis=1)
    weights = dict(zip(parts, stacking_weights(scores).tolist(), strict=True))
    kept = {name: weight for name, weight in weights.items() if weight >= _LEAST_WEIGHT}
    if len(kept) == 1:
        (name,) = kept
        return parts[name].eval(), {name: 1.0}
    members, shares = [], []
    for name, weight in kept.items():
        part = parts[name]
        inner = part.weights if isinstance(part, Mixture) else [1.0]
        members += members_of(part)
        shares += [weight * share for share in inner]
    total = sum(kept.values())
    return Mixture(members, shares).eval(), {name: weight / total for name, weight in kept.items()}


def stacking_weights(log_probs: Array) -> Array:
    """Weights ``(k,)`` that maximise the likelihood of an average, by expectation maximisation.

    A prior of one row, the same share of it for each part, keeps a part in that a few rows speak against.

    Args:
        log_probs: Log-densities ``(n, k)`` of held-out rows under each part. A row that is impossible under all of
            them, such as one with a missing value written as 1e20, says nothing of their weights and is left out.
    """
    log_probs = log_probs[np.isfinite(log_probs.max(axis=1, initial=-np.inf))]
    n, k = log_probs.shape
    weights = np.full(k, 1.0 / k)
    for _ in range(500):
        joint = log_probs + np.log(weights)
        shares = np.exp(joint - np.logaddexp.reduce(joint, axis=1, keepdims=True))
        weights = (shares.sum(axis=0) + _PRIOR_ROWS / k) / (n + _PRIOR_ROWS)
    return weights


def kernel_flow(rows: torch.Tensor) -> Flow:
    """A Gaussian kernel density on standardised rows ``(n, D)``, its bandwidth chosen by cross-validation.

    Repeated rows count once: they would let a bandwidth of nothing look best.
    """
    points = np.unique(rows.double().numpy(), axis=0)
    order = np.random.default_rng(0).permutation(len(points))
    points = points[order[:MOST_ROWS]]
    coarse = np.geomspace(0.01, 3.0, 16)
    bandwidth = _best_bandwidth(points, coarse)
    ratio = coarse[1] / coarse[0]
    bandwidth = _best_bandwidth(points, bandwidth * np.geomspace(1 / ratio, ratio, 9))
    law = KernelDensity(torch.from_numpy(points).float(), bandwidth)
    return Flow(law, Chain([], features=law.features))


def _best_bandwidth(points: Array, bandwidths: Array) -> float:
    fold = np.arange(len(points)) % min(_FOLDS, len(points))
    scores = np.zeros(len(bandwidths))
    for k in range(int(fold.max()) + 1):
        kept, left = points[fold != k], points[fold == k]
        if len(kept) and len(left):
            scores += kernel_log_densities(kept, left, bandwidths).sum(axis=1)
    return float(bandwidths[int(np.argmax(scores))])
