"""Stacking for small tables: the flow averaged with a Gaussian and a kernel density, by validation likelihood."""

import numpy as np
import torch

from pushforward.evaluate.kernel_density import kernel_log_densities
from pushforward.evaluate.likelihood import log_prob
from pushforward.evaluate.statistics import Array
from pushforward.flows import Chain, Flow, KernelDensity, Mixture, Model, members_of
from pushforward.train.data import Prepared
from pushforward.train.gaussian import gaussian_flow

FLOW, GAUSSIAN, KERNEL = "flow", "Gaussian", "kernel density"

MOST_ROWS = 5_000
"""Most training rows in a kernel density: all of them are stored, and read for every log-density."""

LEAST_WEIGHT = 0.01
"""Parts with a smaller weight are dropped."""

_FOLDS = 5
_PRIOR_ROWS = 1.0


def stack(prepared: Prepared, flow: Model) -> tuple[Model, dict[str, float]]:
    """Average a trained flow with a Gaussian and a kernel density, in probability.

    With a hundred rows a flow may be worse than either, and a selection by the few validation rows is unreliable. An
    average loses at most minus the logarithm of a weight against each of its parts, and is often better than all.

    Args:
        prepared: The data; the parts are fitted to training rows, the weights to validation rows.
        flow: The trained flow or mixture of flows.

    Returns:
        The model, on the CPU, and the weight of each part in it. A flow with context is returned as it is.

    References:
        - Smyth & Wolpert (1999), Linearly combining density estimators via stacking,
          https://doi.org/10.1023/A:1007511322260.
    """
    flow = flow.cpu().eval()
    if flow.context:
        return flow, {FLOW: 1.0}
    cpu = torch.device("cpu")
    train, validation = prepared.training_rows(cpu), prepared.validation_rows(cpu)
    rows = prepared.map_tails(train.noised())
    simple = {GAUSSIAN: gaussian_flow(rows, weights=train.weights)}
    if train.weights is None:  # the kernels of a kernel density weigh the same
        simple[KERNEL] = kernel_flow(rows)
    parts: dict[str, Model] = {FLOW: flow} | {name: prepared.with_tails(part) for name, part in simple.items()}
    log_probs = np.stack([log_prob(part, validation.x).double().numpy() for part in parts.values()], axis=1)
    row_weights = None if validation.weights is None else validation.weights.double().numpy()
    weights = dict(zip(parts, stacking_weights(log_probs, row_weights).tolist(), strict=True))
    kept = {name: weight for name, weight in weights.items() if weight >= LEAST_WEIGHT}
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


def stacking_weights(log_probs: Array, row_weights: Array | None = None) -> Array:
    """Weights ``(k,)`` that maximise the likelihood of an average, by expectation maximisation.

    A prior of one row, shared equally by the parts, keeps all weights above zero.

    Args:
        log_probs: Log-densities ``(n, k)`` of held-out rows under each part. A row that is impossible under all parts,
            such as one with a missing value coded as 1e20, has no information about the weights and is left out.
        row_weights: Weights of the rows ``(n,)``; None for equal ones.
    """
    is_possible = np.isfinite(log_probs.max(axis=1, initial=-np.inf))
    log_probs = log_probs[is_possible]
    n, k = log_probs.shape
    each = None
    if row_weights is not None and row_weights[is_possible].sum() > 0:
        each = row_weights[is_possible, None] / row_weights[is_possible].mean()
    weights = np.full(k, 1.0 / k)
    for _ in range(500):
        joint = log_probs + np.log(weights)
        shares = np.exp(joint - np.logaddexp.reduce(joint, axis=1, keepdims=True))
        shares = shares if each is None else each * shares
        weights = (shares.sum(axis=0) + _PRIOR_ROWS / k) / (n + _PRIOR_ROWS)
    return weights


def kernel_flow(rows: torch.Tensor) -> Flow:
    """A Gaussian kernel density on standardised rows ``(n, D)``, with a bandwidth from cross-validation.

    Repeated rows count once: with them, cross-validation would select a bandwidth of zero.
    """
    centres = np.unique(rows.double().numpy(), axis=0)
    order = np.random.default_rng(0).permutation(len(centres))
    centres = centres[order[:MOST_ROWS]]
    coarse = np.geomspace(0.01, 3.0, 16)
    bandwidth = _best_bandwidth(centres, coarse)
    ratio = coarse[1] / coarse[0]
    bandwidth = _best_bandwidth(centres, bandwidth * np.geomspace(1 / ratio, ratio, 9))
    base = KernelDensity(torch.from_numpy(centres).float(), bandwidth)
    return Flow(base, Chain([], features=base.features))


def _best_bandwidth(rows: Array, bandwidths: Array) -> float:
    fold = np.arange(len(rows)) % min(_FOLDS, len(rows))
    log_likelihoods = np.zeros(len(bandwidths))
    for k in range(int(fold.max()) + 1):
        kept, left = rows[fold != k], rows[fold == k]
        if len(kept) and len(left):
            log_likelihoods += kernel_log_densities(kept, left, bandwidths).sum(axis=1)
    return float(bandwidths[int(np.argmax(log_likelihoods))])
