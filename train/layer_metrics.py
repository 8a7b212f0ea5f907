"""What single layers do in a fit: their share of the log-determinant, the size of their gradients."""

import re

import torch
from torch import Tensor, nn

from pushforward.flows import Chain, Flow, Mixture, Model


def named_layers(flow: nn.Module) -> dict[str, nn.Module]:
    """The bijections of a flow, data end first, and its base; names such as ``2-masked-autoregressive``.

    The base counts where it has parameters. Of a model of another kind, its parts.
    """
    if isinstance(flow, Mixture):
        return {f"member-{place:02d}": member for place, member in enumerate(flow.members)}
    if not isinstance(flow, Flow):
        return dict(flow.named_children())
    bijection = flow.bijection
    members = list(bijection.bijections) if isinstance(bijection, Chain) else [bijection]
    layers: dict[str, nn.Module] = {f"{place:02d}-{_kebab(member)}": member for place, member in enumerate(members)}
    if any(True for _ in flow.base.parameters()):
        layers["base"] = flow.base
    return layers


@torch.no_grad()
def log_det_terms(flow: Model, x: Tensor, context: Tensor | None = None) -> dict[str, Tensor]:
    """Mean log-determinant of each layer over points ``(n, D)``, each ``()``, in nats; layers without one left out.

    Their sum is the mean log-determinant of the flow; an ensemble has none. Cost: one pass.
    """
    if isinstance(flow, Mixture):
        return {}
    if context is not None and flow.embedding is not None:
        context = flow.embedding(context)[0]
    terms = {}
    for name, layer in named_layers(flow).items():
        if layer is flow.base:
            continue
        x, log_det = layer(x, context)
        if any(True for _ in layer.parameters()) or bool(log_det.any()):
            terms[name] = log_det.mean()
    return terms


def gradient_norms(layers: dict[str, nn.Module]) -> dict[str, Tensor]:
    """Norm of the gradient of each layer that has one, each ``()``; on the device, nothing is waited for."""
    norms = {}
    for name, layer in layers.items():
        gradients = [p.grad for p in layer.parameters() if p.grad is not None]
        if gradients:
            norms[name] = torch.stack(torch._foreach_norm(gradients)).norm()
    return norms


def _kebab(module: nn.Module) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", type(module).__name__).lower()
