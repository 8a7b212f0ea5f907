"""Metrics of single layers during training: log-determinants and gradient norms."""

import re

import torch
from torch import Tensor, nn

from pushforward.flows import Chain, Flow, Mixture, Model


def named_layers(flow: nn.Module) -> dict[str, nn.Module]:
    """The bijections of a flow from data to base, and the base; names such as ``02-masked-autoregressive``.

    The base is left out if it has no parameters. A mixture of flows has its members, any other model its child modules.
    """
    if isinstance(flow, Mixture):
        return {f"member-{index:02d}": member for index, member in enumerate(flow.members)}
    if not isinstance(flow, Flow):
        return dict(flow.named_children())
    bijection = flow.bijection
    members = list(bijection.bijections) if isinstance(bijection, Chain) else [bijection]
    layers: dict[str, nn.Module] = {f"{index:02d}-{_kebab(member)}": member for index, member in enumerate(members)}
    if any(True for _ in flow.base.parameters()):
        layers["base"] = flow.base
    return layers


@torch.no_grad()
def log_det_terms(flow: Model, x: Tensor, context: Tensor | None = None) -> dict[str, Tensor]:
    """Mean log-determinant ``()`` of each layer over rows ``(n, D)``, in nats.

    Layers without parameters whose log-determinant is zero are left out; the sum is the mean log-determinant of the
    flow. Empty for a mixture of flows. Cost: one pass.
    """
    if isinstance(flow, Mixture):
        return {}
    context = flow.embed(context)
    terms = {}
    for name, layer in named_layers(flow).items():
        if layer is flow.base:
            continue
        x, log_det = layer(x, context)
        if any(True for _ in layer.parameters()) or bool(log_det.any()):
            terms[name] = log_det.mean()
    return terms


def gradient_norms(layers: dict[str, nn.Module]) -> dict[str, Tensor]:
    """Gradient norm ``()`` of each layer that has a gradient; does not wait for the device."""
    norms = {}
    for name, layer in layers.items():
        gradients = [p.grad for p in layer.parameters() if p.grad is not None]
        if gradients:
            norms[name] = torch.stack(torch._foreach_norm(gradients)).norm()
    return norms


def _kebab(module: nn.Module) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", type(module).__name__).lower()
