"""Variational autoencoders whose prior and posterior are flows."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from pushforward.common.text import unknown_name
from pushforward.flows.bases.base import LocationScale
from pushforward.flows.bases.gaussian import Gaussian
from pushforward.flows.bijections.base import Bijection, Chain
from pushforward.flows.bijections.normalization import ActNorm
from pushforward.flows.checks import ANY_CONTEXT, as_input, check_context, check_shape
from pushforward.flows.flow import Flow
from pushforward.flows.networks.residual import ResidualNet
from pushforward.flows.presets import build
from pushforward.flows.random_state import seeded
from pushforward.flows.state import Part
from pushforward.flows.vae.decoders import (
    BernoulliDecoder,
    CategoricalDecoder,
    Decoder,
    GaussianDecoder,
    LogisticDecoder,
)
from pushforward.flows.vae.encoder import Encoder

CHUNK = 4_096
"""Number of pairs of a row and a latent vector that are evaluated at a time without gradients."""

SCORE_SAMPLES = 512
"""Number of latent vectors per row in ``Autoencoder.log_prob``."""

DECODERS = ("bernoulli", "gaussian", "categorical", "logistic")

Estimator = Literal["path-wise", "path", "dreg"]


class Autoencoder(Part):
    r"""Variational autoencoder :math:`p(x) = \int p(x \mid z)\, p(z)\, dz` with posterior :math:`q(z \mid x)`.

    The log-likelihood is bounded by :math:`E[\log w] \le \log p(x)` with :math:`w = p(x \mid z)\, p(z) / q(z \mid x)`
    and :math:`z \sim q(z \mid x)`, and more tightly by :math:`E[\log \frac1K \sum_k w_k]`. ActNorm layers of prior and
    posterior that are not initialized start as the identity, not from data.

    ``forward`` is ``elbo``, so ``torch.compile`` and ``DistributedDataParallel`` can wrap an autoencoder directly.

    Args:
        encoder: Module from rows ``(..., D)`` to the posterior's context ``(..., C)``.
        decoder: The distribution of rows given latent vectors.
        prior: Flow over latent vectors, without context; its trainable parameters are trained too.
        posterior: Flow over latent vectors given the encoder's output. It is only evaluated at its own samples, which
            takes one pass of its inverse.

    Shape:
        rows ``(..., D)``, latent vectors ``(..., L)``, bounds ``(...)`` in nats. Dtypes are converted, and wrong input
        is refused, as by a ``Flow``.

    References:
        - Kingma & Welling (2014), https://arxiv.org/abs/1312.6114; Rezende & Mohamed (2015),
          https://arxiv.org/abs/1505.05770 (flow posteriors); Chen et al. (2017), https://arxiv.org/abs/1611.02731
          (flow priors).

    Example:
        >>> model = build_autoencoder("categorical", features=6, latent=2, values=4, hidden=8)
        >>> x = torch.zeros(5, 6)
        >>> model.elbo(x).shape, model.log_prob_bound(x, samples=10).shape, model.sample(7).shape
        (torch.Size([5]), torch.Size([5]), torch.Size([7, 6]))
    """

    def __init__(self, encoder: nn.Module, decoder: Decoder, prior: Flow, posterior: Flow) -> None:
        super().__init__()
        if prior.context:
            raise ValueError(f"Autoencoder: expected a prior without context; got one with {prior.context} features")
        if not posterior.context:
            raise ValueError("Autoencoder: expected a posterior with the encoder's output as context; got none")
        if posterior.features != prior.features:
            raise ValueError(
                f"Autoencoder: expected a posterior over {prior.features} latent features, as the prior; "
                f"got {posterior.features}"
            )
        self.encoder = encoder
        self.decoder = decoder
        self.prior = prior
        self.posterior = posterior
        self.features, self.context = decoder.features, 0
        self.latent = prior.features
        for module in (*prior.modules(), *posterior.modules()):
            if isinstance(module, ActNorm):
                module.mark_initialized()

    def forward(self, x: Tensor, samples: int = 1) -> Tensor:
        """Return ``elbo``."""
        return self.elbo(x, samples)

    def elbo(self, x: Tensor, samples: int = 1, *, estimator: Estimator = "path-wise", beta: float = 1.0) -> Tensor:
        r"""Evidence lower bound (ELBO): the mean of :math:`\log w` over samples of the posterior.

        Args:
            x: Rows ``(..., D)``.
            samples: Number of latent vectors per row.
            estimator: Estimator of the posterior's gradient. ``path-wise`` differentiates all of :math:`\log w`;
                ``path`` leaves out :math:`\partial_\phi \log q_\phi(z \mid x)` at fixed :math:`z`, whose mean is
                zero. Without it, the variance vanishes where the posterior is exact.
            beta: Weight of :math:`\log q(z \mid x) - \log p(z)`; 1 gives the bound.

        Returns:
            Unbiased estimates ``(...)`` of the bounds, in nats.

        References:
            - Roeder et al. (2017), Sticking the Landing, https://arxiv.org/abs/1703.09194, eq. 8.
        """
        _check_estimator("elbo", estimator, ("path-wise", "path"))
        log_weights, _ = self._log_weights(x, samples, path=estimator == "path", beta=beta)
        return log_weights.mean(0)

    def iwae_bound(
        self, x: Tensor, samples: int = 64, *, estimator: Estimator = "path-wise", beta: float = 1.0
    ) -> Tensor:
        r"""Importance-weighted bound (IWAE) :math:`\log \frac1K \sum_k w_k`; more samples make it tighter.

        With gradients, all samples are in memory at once; without, ``CHUNK`` pairs of a row and a latent vector.

        Args:
            x: Rows ``(..., D)``.
            samples: Number of latent vectors per row, :math:`K`.
            estimator: Estimator of the posterior's gradient. ``path-wise`` differentiates the bound; its noise relative
                to its mean grows with the number of samples. ``dreg``, the doubly reparameterized estimator, goes
                through the samples only, weighted by the squares of the normalised weights, and is unbiased as well.
                Decoder and prior get the gradient of the bound either way.
            beta: Weight of :math:`\log q(z \mid x) - \log p(z)`; 1 gives the bound.

        Returns:
            Unbiased estimates ``(...)`` of the bounds, in nats.

        References:
            - Burda et al. (2016), https://arxiv.org/abs/1509.00519, eq. 8.
            - Tucker et al. (2019), https://arxiv.org/abs/1810.04152, eq. 8.
        """
        _check_estimator("iwae_bound", estimator, ("path-wise", "dreg"))
        _check_samples(samples)
        if not torch.is_grad_enabled():
            return self._streamed_bound(x, samples, beta)
        log_weights, z = self._log_weights(x, samples, path=estimator == "dreg", beta=beta)
        if estimator == "dreg" and z.requires_grad:
            # The bound's gradient at a sample has its normalised weight as a factor; the estimator has its square for
            # the part with log q. With beta 0 there is no such part, and the factor stays 1.
            factor = 1.0 - beta + beta * log_weights.detach().softmax(0)
            z.register_hook(lambda gradient: gradient * factor.unsqueeze(-1))
        return log_weights.logsumexp(0) - math.log(samples)

    @torch.no_grad()
    def log_prob_bound(self, x: Tensor, samples: int = SCORE_SAMPLES) -> Tensor:
        """``iwae_bound`` without gradients: a lower bound of the log-likelihood, in bounded memory.

        Cost: ``samples`` passes of posterior, prior and decoder.
        """
        return self.iwae_bound(x, samples)

    @torch.no_grad()
    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Lower bound of the log-likelihood by ``SCORE_SAMPLES`` latent vectors, under the name that densities share.

        The bound is the same in every call. If the posterior's base is a Gaussian, the default of
        ``build_autoencoder``, all rows share the same noise, so a row's bound does not depend on the other rows. With
        another base, the noise of a row depends on its position among the rows.

        Raises:
            ValueError: If there is a context.
        """
        check_context("Autoencoder", context, 0)
        x = self._cast(x)
        base = self.posterior.base
        if isinstance(base, Gaussian):
            # Drawn at once on the CPU: the same noise on every device and for every chunk size.
            size, generator = base.features + base.rank, torch.Generator("cpu").manual_seed(0)
            shape = SCORE_SAMPLES, 1, size
            noise = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")
            return self._streamed_bound(x, SCORE_SAMPLES, beta=1.0, noise=noise.to(base.device, base.dtype))
        with seeded(0, x.device):
            return self.log_prob_bound(x)

    @torch.no_grad()
    def sample(self, n: int | tuple[int, ...] = (), context: Tensor | None = None) -> Tensor:
        """Draw rows ``(n, D)``: latent vectors from the prior, and for each a row from the decoder."""
        check_context("Autoencoder", context, 0)
        return self.decoder.sample(self.prior.sample(n))

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """Centre ``(..., L)`` of each row's posterior: the image of its base's location, the mean if it is Gaussian."""
        posterior = self.posterior
        if not isinstance(posterior.base, LocationScale):
            raise TypeError(
                f"encode: expected a posterior whose base has a location; got a base {type(posterior.base).__name__}"
            )
        context = self._context(self.decoder.observe(self._cast(x)))
        embedded = posterior.embed(context)
        location, _ = posterior.base.location_and_log_scale(embedded)
        return posterior.bijection.inverse(location.expand(*context.shape[:-1], self.latent), embedded)[0]

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """Expected rows ``(..., D)`` given the centres of their posteriors."""
        return self.decoder.mean(self.encode(x))

    def config(self) -> dict[str, Any]:
        """Arguments that rebuild this autoencoder (without its weights)."""
        return {
            "encoder": self.encoder,
            "decoder": self.decoder,
            "prior": self.prior,
            "posterior": self.posterior,
        }

    def _log_weights(self, x: Tensor, samples: int, *, path: bool, beta: float) -> tuple[Tensor, Tensor]:
        """Log importance weights ``(samples, ...)``, and their latent vectors."""
        _check_samples(samples)
        x = self.decoder.observe(self._cast(x))
        z, log_q = self.posterior.rsample_and_log_prob(samples, self._context(x), path=path)
        return self._log_weight(x, z, log_q, beta), z

    def _log_weight(self, x: Tensor, z: Tensor, log_q: Tensor, beta: float) -> Tensor:
        return self.decoder.log_prob(x, z) + beta * (self.prior.log_prob(z) - log_q)

    def _sample_from_noise(self, noise: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """Latent vectors ``(samples, rows, L)`` and log-densities of a posterior with a Gaussian base.

        The noise is ``(samples, 1, ...)``: rows share it.
        """
        posterior = self.posterior
        base = cast(Gaussian, posterior.base)  # noise is drawn for Gaussians only
        embedded = posterior.embed(context)
        z = base.from_noise(noise, embedded).expand(len(noise), len(context), self.latent)
        x, log_det = posterior.bijection.inverse(z, embedded)
        return x, base.log_prob(z, embedded) - log_det

    def _streamed_bound(self, x: Tensor, samples: int, beta: float, noise: Tensor | None = None) -> Tensor:
        """The importance-weighted bound in chunks of rows and samples, by given noise or by fresh samples."""
        x = self._cast(x)
        lead = x.shape[:-1]
        rows = self.decoder.observe(x).reshape(math.prod(lead), self.features)
        bounds = []
        for chunk in rows.split(CHUNK):
            context = self._context(chunk)
            total = chunk.new_full((len(chunk),), -torch.inf)
            done = 0
            for count in _chunk_sizes(samples, max(1, CHUNK // max(1, len(chunk)))):
                if noise is None:
                    z, log_q = self.posterior.rsample_and_log_prob(count, context)
                else:
                    z, log_q = self._sample_from_noise(noise[done : done + count], context)
                total = torch.logaddexp(total, self._log_weight(chunk, z, log_q, beta).logsumexp(0))
                done += count
            bounds.append(total - math.log(samples))
        return torch.cat(bounds).reshape(lead)

    def _context(self, x: Tensor) -> Tensor:
        """The encoder's output for rows, which is the posterior's context."""
        context: Tensor = self.encoder(x)
        if self.posterior.context != ANY_CONTEXT:
            check_shape("Autoencoder", "output of the encoder", context, self.posterior.context)
        return context

    def _cast(self, x: Tensor) -> Tensor:
        """Check rows; return them in the dtype of the latent vectors."""
        x = as_input("Autoencoder", "rows", x, self.prior.base.like)
        check_shape("Autoencoder", "rows", x, self.features)
        return x


def build_autoencoder(
    decoder: str,
    features: int,
    *,
    latent: int = 8,
    values: int | None = None,
    posterior: str = "gaussian",
    prior: str = "gaussian",
    hidden: int = 128,
    blocks: int = 2,
    dropout: float = 0.0,
    standardize: Bijection | None = None,
    posterior_options: Mapping[str, Any] | None = None,
    prior_options: Mapping[str, Any] | None = None,
) -> Autoencoder:
    """Build an autoencoder with residual networks as encoder and decoder.

    Args:
        decoder: ``bernoulli`` for zeros and ones, ``gaussian`` for continuous columns, ``categorical`` for integers,
            ``logistic`` for ordered integers.
        features: Number of features of a row.
        latent: Number of latent features.
        values: Number of values of a feature; for ``categorical`` and ``logistic``.
        posterior: Name of a flow, as for ``build``. ``gaussian``, with independent features, is the usual one; ``iaf``,
            ``nsf-c`` and ``realnvp`` are fast to sample.
        prior: Name of a flow, as for ``build``; ``gaussian`` is the standard normal distribution, without parameters.
        hidden: Width of encoder and decoder, and number of context features of the posterior.
        blocks: Residual blocks of encoder and decoder.
        dropout: Dropout in encoder and decoder.
        standardize: Map from the units of the data to standardised ones, for the encoder and for a Gaussian decoder.
        posterior_options: Options of ``build`` for the posterior.
        prior_options: Options of ``build`` for the prior.

    Raises:
        ValueError: If a name is unknown (the nearest is named) or a size is out of range.
    """
    if decoder not in DECODERS:
        raise ValueError(unknown_name("decoder", decoder, DECODERS))
    integers = decoder in ("categorical", "logistic")
    if integers != (values is not None):
        expected = "the number of values" if integers else "values for a categorical or logistic decoder only"
        raise ValueError(f"build_autoencoder: expected {expected}; got decoder {decoder!r} with values {values}")

    def network(inputs: int, outputs: int) -> ResidualNet:
        net = ResidualNet(inputs, outputs, hidden=hidden, blocks=blocks, dropout=dropout)
        net.last.reset_parameters()  # with zero outputs no gradient would reach the other network
        return net

    likelihood: Decoder
    if values is not None:
        kind = CategoricalDecoder if decoder == "categorical" else LogisticDecoder
        parameters = values if decoder == "categorical" else 2
        likelihood = kind(network(latent, features * parameters), features, values=values)
    elif decoder == "gaussian":
        likelihood = GaussianDecoder(network(latent, features), features, standardize=standardize)
    else:
        likelihood = BernoulliDecoder(network(latent, features), features)
    if prior == "gaussian":
        prior_flow = Flow(Gaussian(latent, trainable=False), Chain([], features=latent))
    else:
        prior_flow = build(prior, latent, **(prior_options or {}))
    posterior_flow = build(posterior, latent, hidden, **(posterior_options or {}))
    return Autoencoder(Encoder(network(features, hidden), standardize), likelihood, prior_flow, posterior_flow)


def _chunk_sizes(total: int, largest: int) -> Iterator[int]:
    """Split a number into chunks of at most ``largest``."""
    for begin in range(0, total, largest):
        yield min(largest, total - begin)


def _check_samples(samples: int) -> None:
    if samples < 1:
        raise ValueError(f"Autoencoder: expected samples of at least 1; got {samples}")


def _check_estimator(where: str, estimator: str, known: tuple[str, ...]) -> None:
    if estimator not in known:
        expected = " or ".join(repr(name) for name in known)
        raise ValueError(f"{where}: expected estimator {expected}; got {estimator!r}")
