"""The density model: a base distribution pushed forward through the inverse of a bijection."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from pushforward.flows.bases.base import Base
from pushforward.flows.bijections.base import Bijection, as_bijection, is_transform, pull_back, without_dropout
from pushforward.flows.checks import ANY_CONTEXT, as_input, check_context, check_rows, check_shape, sample_shape
from pushforward.flows.kernels import cuda_graphs as graphs
from pushforward.flows.state import Part


class Flow(Part):
    r"""Normalizing flow: :math:`x = f^{-1}(z)` with :math:`z` from the base distribution, so that
    :math:`\log p(x) = \log p_0(f(x)) + \log |\det f'(x)|`.

    ``forward`` is ``log_prob``, so ``torch.compile`` and ``DistributedDataParallel`` can wrap a flow directly.

    Args:
        base: The base distribution.
        bijection: A bijection from data to base, or an nflows transform.
        embedding: A module applied to the context first, row by row: a bijection such as ``Standardize``, or any module
            from ``(n, C)`` to ``(n, E)``, where ``E`` is the size of the context that base and bijection take. Its
            parameters are trained too.

    Shape:
        points ``(..., D)``, context ``(..., C)`` broadcasting against them, log-densities ``(...)`` in nats. The
        attribute ``context`` is ``C``; it is -1 where only an embedding that is not a bijection knows it. Results have
        the dtype of the parameters. Points and context of another dtype are converted to it, integers too; so float64
        points are rounded if the flow is in float32: ``flow.double()`` keeps all their digits.

    Raises:
        TypeError: From every method, if points or context are not tensors, or complex.
        ValueError: From every method, if points or context have a shape that does not fit, or are on another device.

    Example:
        >>> from pushforward.flows import build
        >>> flow = build("nsf-ar", features=3, layers=2, hidden=16)
        >>> flow.log_prob(torch.zeros(5, 3)).shape, flow.sample(7).shape
        (torch.Size([5]), torch.Size([7, 3]))
    """  # noqa: D205

    bijection: Bijection

    def __init__(self, base: Base, bijection: nn.Module, embedding: nn.Module | None = None) -> None:
        super().__init__()
        self.base = base
        self.bijection = as_bijection(bijection, base.features, base.context)
        if self.bijection.features != base.features:
            raise ValueError(f"Flow: expected a bijection of {base.features} features; got {self.bijection.features}")
        if base.context and self.bijection.context and base.context != self.bijection.context:
            raise ValueError(
                f"Flow: expected a bijection with {base.context} context features; got {self.bijection.context}"
            )
        size = max(base.context, self.bijection.context)
        if embedding is not None and not size:
            raise ValueError("Flow: expected no embedding, as neither base nor bijection takes a context; got one")
        if not isinstance(embedding, nn.Module | None):
            raise TypeError(f"Flow: expected a module as embedding; got {type(embedding).__name__}")
        if is_transform(embedding):  # it returns a log-determinant too
            embedding = as_bijection(embedding, size)
            if embedding.features != size:
                raise ValueError(f"Flow: expected an embedding of {size} features; got {embedding.features}")
        self.embedding, self.features, self._embedded = embedding, base.features, size
        self.context = size if embedding is None or isinstance(embedding, Bijection) else ANY_CONTEXT

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return ``log_prob``."""
        return self.log_prob(x, context)

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Log-density ``(...)`` of points ``(..., D)``, in nats. Cost: one pass of the bijection."""
        base_term, log_det = self.log_prob_terms(x, context)
        return base_term + log_det

    def log_prob_terms(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The two terms of the log-density: the base's log-density at ``f(x)``, and the log-determinant."""
        x, context = self._inputs(x, context)
        z, log_det = self.bijection(x, context)
        return self.base.log_prob(z, context), log_det

    def transform_to_base(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Map points ``(..., D)`` to the space of the base."""
        z: Tensor = self.bijection(*self._inputs(x, context))[0]
        return z

    def latents(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Map points ``(..., D)`` to standard-normal latents ``(..., D)`` by the probability integral transform.

        The latents are standard normal if the points are samples of this flow. They equal ``transform_to_base`` only
        where the base is a standard Gaussian.
        """
        x, context = self._inputs(x, context)
        z: Tensor = self.bijection(x, context)[0]
        return self.base.latents(z, context)

    @torch.no_grad()
    def sample(self, n: int | tuple[int, ...] = (), context: Tensor | None = None) -> Tensor:
        """Draw samples ``(n, ..., D)`` without gradients; arguments as for ``rsample``.

        On a GPU, from the second call with the same number of samples on, the inverse runs as a CUDA graph.
        """
        return self.rsample(n, context)

    @torch.no_grad()
    def sample_and_log_prob(
        self, n: int | tuple[int, ...] = (), context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draw samples and their log-densities in one pass, without gradients."""
        return self.rsample_and_log_prob(n, context)

    def rsample(self, n: int | tuple[int, ...] = (), context: Tensor | None = None) -> Tensor:
        """Draw samples with gradients to the parameters of the base and of the bijection.

        Cost: one pass of the inverse and one backward pass. For an autoregressive layer, the kernels in C compute the
        gradient by implicit differentiation; without them autograd follows the inverse feature by feature, which takes
        as many operations but launches them one by one.

        Args:
            n: Number of samples, or a shape of leading dimensions.
            context: Context ``(..., C)``; its leading dimensions come after those of ``n``.

        Returns:
            Samples ``(n, ..., D)``.
        """
        z, context = self._base_samples(n, context)
        return graphs.inverse(self.bijection, z, context)[0]

    def rsample_and_log_prob(
        self, n: int | tuple[int, ...] = (), context: Tensor | None = None, *, path: bool = False
    ) -> tuple[Tensor, Tensor]:
        r"""Draw samples ``(n, ..., D)`` and their log-densities ``(n, ...)`` in one pass of the inverse.

        Args:
            n: Number of samples, or a shape of leading dimensions.
            context: Context ``(..., C)``; its leading dimensions come after those of ``n``.
            path: Let the gradient of the log-densities flow through the samples only, with all parameters (and the
                context) held constant in the density. This drops a term of mean zero, :math:`\nabla_\theta \log
                q_\theta(x)` at fixed samples, from the gradient of :math:`E_q[\log q]`: the path gradient, or "sticking
                the landing". Its variance vanishes where the flow equals its target. Second derivatives raise an
                error, and no dropout is applied.

        Cost:
            With ``path`` a third more than without, backward pass included, where the kernels in C run: the score
            function is carried along layer by layer (see ``Bijection.inverse_and_score``), without a second pass of
            the flow. Elsewhere up to 1.7 times for couplings; inverse autoregressive layers have to be solved feature
            by feature, which is slow.

        References:
            - Roeder, Wu & Duvenaud (2017), Sticking the landing, https://arxiv.org/abs/1703.09194.
            - Vaitl et al. (2024), https://arxiv.org/abs/2403.15881.
        """
        z, context = self._base_samples(n, context)
        if not path:
            x, log_det = graphs.inverse(self.bijection, z, context)
            with without_dropout(self.base):  # the samples were drawn without it
                return x, self.base.log_prob(z, context) - log_det
        with without_dropout(self.base):
            base_term, score = _log_prob_and_gradient(self.base.log_prob, z, context)
        x, log_det, score = self.bijection.inverse_and_score(z, score, context)
        return x, _LogProbWithGradient.apply(x, (base_term - log_det).detach(), score)  # type: ignore[no-untyped-call]

    def _base_samples(self, n: int | tuple[int, ...], context: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Samples of the base, and the embedded context."""
        context = self.embed(context)
        lead = sample_shape("Flow", n)
        if self.context and not self.base.context and context is not None:
            lead = (*lead, *context.shape[:-1])  # the base ignores the context, so it does not expand by it
        return self.base.rsample(lead, context), context

    def frozen_log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Log-density ``(...)`` with a gradient through the points only; parameters and context are held constant.

        For samples of this flow, ``rsample_and_log_prob(..., path=True)`` gives the same without a second pass.
        Second derivatives raise an error, and no dropout is applied.
        """
        x = as_input("Flow", "points", x, self.base.like)
        frozen: Tensor = _LogProbWithGradient.apply(x, *self._log_prob_and_score(x, context))  # type: ignore[no-untyped-call]
        return frozen

    def score_function(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        r"""The score function :math:`\nabla_x \log p(x)`, ``(..., D)``, detached.

        Cost: one forward and one backward pass.
        """
        return self._log_prob_and_score(x, context)[1]

    def _log_prob_and_score(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        x = as_input("Flow", "points", x, self.base.like)
        check_context("Flow", context, self.context)
        # With detached parameters, no layer computes gradients by them.
        constants = {name: parameter.detach() for name, parameter in self.named_parameters()}
        with without_dropout(self):
            return _log_prob_and_gradient(lambda z, c: functional_call(self, constants, (z, c)), x, context)

    def config(self) -> dict[str, Any]:
        """Arguments that rebuild this flow (without its weights)."""
        return {"base": self.base, "bijection": self.bijection, "embedding": self.embedding}

    def embed(self, context: Tensor | None) -> Tensor | None:
        """Check the context ``(..., C)``; return the one that base and bijection take, ``(..., E)``, None without."""
        check_context("Flow", context, self.context)
        if context is None:
            return None
        like = self.base.like
        if self.embedding is None or isinstance(self.embedding, Bijection):
            context = as_input("Flow", "context", context, like)
            return context if self.embedding is None else self.embedding(context)[0]
        # One leading dimension, which modules such as BatchNorm1d need.
        rows = self.embedding(context.reshape(-1, context.shape[-1]))
        rows = as_input("Flow", "output of the embedding", rows, like)
        check_shape("Flow", "output of the embedding", rows, self._embedded)
        return rows.reshape(*context.shape[:-1], self._embedded)

    def _inputs(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Check points and context; return them in the dtype of the parameters, the context embedded."""
        x = as_input("Flow", "points", x, self.base.like)
        check_shape("Flow", "points", x, self.features)
        context = self.embed(context)
        if context is not None:
            check_rows("Flow", x, context)
        return x, context


def _log_prob_and_gradient(
    log_prob: Callable[[Tensor, Tensor | None], Tensor], x: Tensor, context: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Log-density and its gradient by the points, both detached."""
    with torch.enable_grad():
        points = x.detach().requires_grad_()
        value = log_prob(points, None if context is None else context.detach())
        (score,) = pull_back((value,), (points,), (torch.ones_like(value),))
    return value.detach(), score


class _LogProbWithGradient(torch.autograd.Function):
    """Attach a known gradient by the points to a log-density."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, log_prob: Tensor, score: Tensor) -> Tensor:
        ctx.save_for_backward(x, score)
        return log_prob.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return _FirstDerivativeOnly.apply(gradients[0], *ctx.saved_tensors), None, None  # type: ignore[no-untyped-call]


class _FirstDerivativeOnly(torch.autograd.Function):
    """The gradient of ``_LogProbWithGradient``; differentiating it again raises an error.

    The derivative of the score function is unknown. ``once_differentiable`` would not do: it refuses the derivative by
    the incoming gradient only, and takes the one by the points as zero.
    """

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, x: Tensor, score: Tensor) -> Tensor:
        return gradient[..., None] * score

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise RuntimeError("Flow: frozen_log_prob and path=True have no second derivatives; use log_prob")
