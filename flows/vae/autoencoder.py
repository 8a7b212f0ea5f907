"""The variational autoencoder made of flows: prior and posterior are any flow, the decoder any law of rows."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pushforward.common.text import unknown_name
from pushforward.flows.bases.base import LocationScale
from pushforward.flows.bases.gaussian import Gaussian
from pushforward.flows.bijections.base import Chain
from pushforward.flows.bijections.normalization import ActNorm, Standardize
from pushforward.flows.checks import check_shape
from pushforward.flows.flow import Flow
from pushforward.flows.networks.residual import ResidualNet
from pushforward.flows.presets import build
from pushforward.flows.vae.decoders import (
    BernoulliDecoder,
    CategoricalDecoder,
    Decoder,
    GaussianDecoder,
    LogisticDecoder,
)
from pushforward.flows.vae.encoder import Encoder

CHUNK = 4_096
"""Pairs of a row and a latent point that are evaluated at a time where no gradient is asked for."""

SCORE_SAMPLES = 512
"""Latent points a row by which rows are scored."""

Estimator = Literal["total", "path", "dreg"]


class Autoencoder(nn.Module):
    r"""Variational autoencoder :math:`p(x) = \int p(x \mid z)\, p(z)\, dz` with posterior :math:`q(z \mid x)`.

    The log-likelihood is bounded by :math:`E[\log w] \le \log p(x)` with :math:`w = p(x \mid z)\, p(z) / q(z \mid x)`
    and :math:`z \sim q(z \mid x)`, and more tightly by :math:`E[\log \frac1K \sum_k w_k]`. Trainable ActNorm layers of
    prior and posterior that were not set from data start as the identity.

    ``forward`` is ``elbo``, so that ``torch.compile`` and ``DistributedDataParallel`` wrap an autoencoder as it is.

    Args:
        encoder: Module from rows ``(..., D)`` to the posterior's context ``(..., C)``.
        decoder: The law of rows given latent points.
        prior: Flow over latent points, without context; what of it trains, trains along.
        posterior: Flow over latent points given the encoder's output. It is sampled, and scored at its own samples:
            one pass of its inverse.

    Shape:
        rows ``(..., D)``, latent points ``(..., L)``, bounds ``(...)`` in nats.

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
            if isinstance(module, ActNorm) and not module.initialized:
                # Two points of mean 0 and variance 1 in each feature.
                module.initialize(module.shift.new_tensor([[-math.sqrt(0.5)], [math.sqrt(0.5)]]).expand(2, self.latent))

    def forward(self, x: Tensor, samples: int = 1) -> Tensor:
        """The evidence lower bound: the same as ``elbo``."""
        return self.elbo(x, samples)

    def elbo(self, x: Tensor, samples: int = 1, *, estimator: Estimator = "total", beta: float = 1.0) -> Tensor:
        r"""Evidence lower bound, the mean of :math:`\log w` over samples of the posterior.

        Args:
            x: Rows ``(..., D)``.
            samples: Latent points a row.
            estimator: Of the gradient of the posterior. ``total`` differentiates all of :math:`\log w`; ``path`` leaves
                out the score :math:`\partial_\phi \log q_\phi(z \mid x)` at fixed :math:`z`, whose mean is zero, and so
                has no variance where the posterior is exact.
            beta: Weight of :math:`\log q(z \mid x) - \log p(z)`, 1 for the bound.

        Returns:
            The bounds ``(...)`` in nats, on average.

        References:
            - Roeder et al. (2017), Sticking the Landing, https://arxiv.org/abs/1703.09194, eq. 8.
        """
        _check_choice("elbo", estimator, ("total", "path"))
        log_weights, _ = self._log_weights(x, samples, path=estimator == "path", beta=beta)
        return log_weights.mean(0)

    def iwae_bound(self, x: Tensor, samples: int = 64, *, estimator: Estimator = "total", beta: float = 1.0) -> Tensor:
        r"""Importance-weighted bound :math:`\log \frac1K \sum_k w_k`; more samples make it tighter.

        With gradients all samples are in memory at once; without, ``CHUNK`` pairs of a row and a sample.

        Args:
            x: Rows ``(..., D)``.
            samples: Latent points a row, :math:`K`.
            estimator: Of the gradient of the posterior. ``total`` differentiates the bound, which is the noisier,
                relative to its mean, the more samples there are; ``dreg`` differentiates along the path of the samples
                only, with the squares of the normalised weights, and is unbiased as well. Decoder and prior have the
                gradient of the bound either way.
            beta: Weight of :math:`\log q(z \mid x) - \log p(z)`, 1 for the bound.

        Returns:
            The bounds ``(...)`` in nats, on average.

        References:
            - Burda et al. (2016), https://arxiv.org/abs/1509.00519, eq. 8.
            - Tucker et al. (2019), https://arxiv.org/abs/1810.04152, eq. 8.
        """
        _check_choice("iwae_bound", estimator, ("total", "dreg"))
        _check_samples(samples)
        if not torch.is_grad_enabled():
            return self._streamed_bound(x, samples, beta)
        log_weights, z = self._log_weights(x, samples, path=estimator == "dreg", beta=beta)
        if estimator == "dreg" and z.requires_grad:
            # The bound's gradient at a sample has its normalised weight as a factor; the estimator has its square, as
            # far as log q counts: with beta 0 there is no score that would have to be taken off.
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
        """The bound by ``SCORE_SAMPLES`` points under the name by which scores ask a density.

        A row's score depends on nothing else: where the posterior's base is a Gaussian, as ``build_autoencoder`` makes
        it unless told otherwise, all rows share the same noise. With another base the noise is the same in every call,
        but which part of it a row gets follows from its place among the rows.

        Raises:
            ValueError: If there is a context.
        """
        if context is not None:
            raise ValueError(f"Autoencoder: expected no context; got one of shape {tuple(context.shape)}")
        base = self.posterior.base
        if isinstance(base, Gaussian):
            # Drawn at once and on the CPU: the same noise on every device, however rows and samples are divided.
            size, generator = base.features + base.rank, torch.Generator().manual_seed(0)
            noise = torch.randn(SCORE_SAMPLES, 1, size, generator=generator, dtype=torch.float64)
            return self._streamed_bound(x, SCORE_SAMPLES, beta=1.0, noise=noise.to(base.device, base.dtype))
        with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
            torch.manual_seed(0)
            return self.log_prob_bound(x)

    @torch.no_grad()
    def sample(self, n: int | tuple[int, ...] = (), context: Tensor | None = None) -> Tensor:
        """Draw rows ``(n, D)``: latent points from the prior, and a row from the decoder for each."""
        if context is not None:
            raise ValueError(f"Autoencoder: expected no context; got one of shape {tuple(context.shape)}")
        return self.decoder.sample(self.prior.sample(n))

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """Centre ``(..., L)`` of each row's posterior: where its base's location goes; the mean of a Gaussian one."""
        posterior = self.posterior
        if not isinstance(posterior.base, LocationScale):
            raise TypeError(
                f"encode: expected a posterior whose base has a location; got a base {type(posterior.base).__name__}"
            )
        context = self._context(self.decoder.observe(self._cast(x)))
        if posterior.embedding is not None:
            context = posterior.embedding(context)[0]
        location, _ = posterior.base.location_and_log_scale(context)
        return posterior.bijection.inverse(location.expand(*context.shape[:-1], self.latent), context)[0]

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """Expected rows ``(..., D)`` at the centres of their posteriors."""
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
        """Logarithms of the importance weights ``(samples, ...)``, and the latent points they are of."""
        _check_samples(samples)
        x = self.decoder.observe(self._cast(x))
        z, log_q = self.posterior.rsample_and_log_prob(samples, self._context(x), path=path)
        return self._weigh(x, z, log_q, beta), z

    def _weigh(self, x: Tensor, z: Tensor, log_q: Tensor, beta: float) -> Tensor:
        return self.decoder.log_prob(x, z) + beta * (self.prior.log_prob(z) - log_q)

    def _push_and_log_prob(self, noise: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """Points ``(samples, rows, L)`` of a posterior with a Gaussian base, of noise ``(samples, 1, ...)``."""
        posterior = self.posterior
        assert isinstance(posterior.base, Gaussian)  # or there would be no noise
        if posterior.embedding is not None:
            context = posterior.embedding(context)[0]
        z = posterior.base.push(noise, context).expand(len(noise), len(context), self.latent)
        x, log_det = posterior.bijection.inverse(z, context)
        return x, posterior.base.log_prob(z, context) - log_det

    def _streamed_bound(self, x: Tensor, samples: int, beta: float, noise: Tensor | None = None) -> Tensor:
        check_shape("Autoencoder", "rows", x, self.features)
        lead = x.shape[:-1]
        rows = self.decoder.observe(self._cast(x)).reshape(math.prod(lead), self.features)
        bounds = []
        for part in rows.split(CHUNK):
            context = self._context(part)
            sums = part.new_full((len(part),), -torch.inf)
            done = 0
            for count in _counts(samples, max(1, CHUNK // max(1, len(part)))):
                if noise is None:
                    z, log_q = self.posterior.rsample_and_log_prob(count, context)
                else:
                    z, log_q = self._push_and_log_prob(noise[done : done + count], context)
                sums = torch.logaddexp(sums, self._weigh(part, z, log_q, beta).logsumexp(0))
                done += count
            bounds.append(sums - math.log(samples))
        return torch.cat(bounds).reshape(lead)

    def _context(self, x: Tensor) -> Tensor:
        context: Tensor = self.encoder(x)
        check_shape("Autoencoder", "output of the encoder", context, self.posterior.context)
        return context

    def _cast(self, x: Tensor) -> Tensor:
        """Rows in the dtype of the latent points: a table of integers may come as integers."""
        return x.to(self.prior.base.dtype)


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
    standardize: Standardize | None = None,
    posterior_options: Mapping[str, Any] | None = None,
    prior_options: Mapping[str, Any] | None = None,
) -> Autoencoder:
    """Build an autoencoder with residual networks on both sides.

    Args:
        decoder: ``bernoulli`` for zeros and ones, ``gaussian`` for continuous columns, ``categorical`` for integers,
            ``logistic`` for integers whose order means something.
        features: Number of features of a row.
        latent: Number of latent features.
        values: Number of values of a feature; for ``categorical`` and ``logistic``.
        posterior: Name of a flow as of ``build``; ``iaf``, ``nsf-c`` and ``realnvp`` are the fast ones to sample.
            ``gaussian`` is the usual one, with independent features.
        prior: Name of a flow as of ``build``; ``gaussian`` is the standard normal law and does not train.
        hidden: Width of encoder and decoder, and number of features that the posterior is given.
        blocks: Residual blocks of each.
        dropout: Dropout in encoder and decoder.
        standardize: Location and scale of the data, for the encoder and for a Gaussian decoder.
        posterior_options: Options of ``build`` for the posterior.
        prior_options: Options of ``build`` for the prior.

    Raises:
        ValueError: If a name is unknown (the nearest is named) or a size is out of range.
    """
    if decoder not in DECODERS:
        raise ValueError(unknown_name("decoder", decoder, DECODERS))
    counts = decoder in ("categorical", "logistic")
    if counts != (values is not None):
        expected = "the number of values" if counts else "values for a categorical or logistic decoder only"
        raise ValueError(f"build_autoencoder: expected {expected}; got decoder {decoder!r} with values {values}")

    def network(inputs: int, outputs: int) -> ResidualNet:
        net = ResidualNet(inputs, outputs, hidden=hidden, blocks=blocks, dropout=dropout)
        net.last.reset_parameters()  # from zero, nothing would flow through both networks but by chance
        return net

    law: Decoder
    if values is not None:
        kind = CategoricalDecoder if decoder == "categorical" else LogisticDecoder
        each = values if decoder == "categorical" else 2
        law = kind(network(latent, features * each), features, values=values)
    elif decoder == "gaussian":
        law = GaussianDecoder(network(latent, features), features, standardize=standardize)
    else:
        law = BernoulliDecoder(network(latent, features), features)
    if prior == "gaussian":
        before = Flow(Gaussian(latent, trainable=False), Chain([], features=latent))
    else:
        before = build(prior, latent, **(prior_options or {}))
    after = build(posterior, latent, hidden, **(posterior_options or {}))
    return Autoencoder(Encoder(network(features, hidden), standardize), law, before, after)


DECODERS = ("bernoulli", "gaussian", "categorical", "logistic")


def _counts(total: int, most: int) -> Iterator[int]:
    """Split a number into parts of at most so many."""
    for begin in range(0, total, most):
        yield min(most, total - begin)


def _check_samples(samples: int) -> None:
    if samples < 1:
        raise ValueError(f"Autoencoder: expected samples of at least 1; got {samples}")


def _check_choice(where: str, estimator: str, known: tuple[str, ...]) -> None:
    if estimator not in known:
        expected = " or ".join(repr(name) for name in known)
        raise ValueError(f"{where}: expected estimator {expected}; got {estimator!r}")
