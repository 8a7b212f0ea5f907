"""Bayesian neural-network regression: a posterior over all weights, fitted by maximising the evidence lower bound."""

import copy
import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from sklearn.base import BaseEstimator
from sklearn.exceptions import NotFittedError
from torch import Tensor, nn

from pushforward.common.text import unknown_name
from pushforward.flows import Flow
from pushforward.flows.bayesian.network import WeightedNetwork
from pushforward.flows.bayesian.posterior import POSTERIORS, Gradient
from pushforward.train.optimizer import ClippedAdamW
from pushforward.train.options import WARMUP_STEPS
from pushforward.train.trainer import DivergedError

Array = npt.NDArray[np.float64]
Noise = Literal["learned", "heteroscedastic"]
Prior = Literal["fixed", "layers", "inputs"]

_LOG_2PI = math.log(2.0 * math.pi)
_NUMBERS_A_PASS = 4_000_000  # most activations of the widest layer in memory during prediction
_START_SCALE = 0.05  # initial standard deviations of the posterior, in units of the prior's
_START_NOISE = 0.3  # initial standard deviation of the noise, for standardised targets


class EvidenceBound(NamedTuple):
    """An estimate of the evidence lower bound, in nats for all rows together, and its standard error."""

    value: float
    se: float


class BayesianRegression(BaseEstimator):  # type: ignore[misc]  # scikit-learn carries no types
    r"""Regression by a fully connected network with a posterior over all of its weights.

    Targets are :math:`y = f_w(x) + \sigma \epsilon`, weights have the prior :math:`N(0, s^2 / \text{inputs})` layer by
    layer and biases :math:`N(0, s^2)`. Fitting maximises the evidence lower bound
    :math:`E_q[\log p(y | x, w) + \log p(w) - \log q(w)]` over the posterior :math:`q`, the noise :math:`\sigma` and
    the prior scales :math:`s`, by path-wise gradients. Inputs and targets are standardised internally; all arguments
    and results are in the units of the data. A step uses the same few weight samples for all rows of its batch.

    Args:
        posterior: ``"mean-field"`` for a factorised Gaussian, ``"flow"`` for ``flows.bayesian.posterior.coupled``, or
            any flow over the weights: a ``Flow`` (copied), or a function from the number of weights to a flow. It
            should start narrower than the prior, because scales shrink slowly.
        hidden: Widths of the hidden layers of rectified linear units; empty for a linear model.
        noise: ``"learned"`` for one standard deviation; ``"heteroscedastic"`` to multiply it by a second output of the
            network; or a known standard deviation in the units of the targets.
        prior: Which prior scales are learned: ``"layers"`` for one for the weights and one for the biases of each
            layer, ``"inputs"`` for one for each input in addition, ``"fixed"`` for none.
        prior_scale: The scale :math:`s`, or its initial value.
        gradient: Gradient estimator of the divergence from the prior. ``"path-wise"`` differentiates
            :math:`\log q_\theta(w(\theta))` by every :math:`\theta`. ``"path"`` holds the parameters of the density
            constant and differentiates through the sample only. It drops the gradient of :math:`\log q_\theta` at a
            fixed sample, which is zero on average; without it, the gradient has no variance where the posterior is
            exact. Both are unbiased and give the same values of the bound.
        steps: Steps of the optimiser.
        batch_size: Rows in a step.
        samples: Weight samples in a step.
        learning_rate: Peak of the learning rate, which follows a cosine to zero.
        kl_warmup: Share of the steps over which the weight of the KL divergence from the prior grows to 1. Without it,
            units are pruned before they have learned anything.
        predictive_samples: Weight samples drawn once after fitting; the predictive density is the mixture over them.
        seed: Seed of everything random; the global random state does not change.

    Attributes:
        posterior_: The fitted posterior of the weights, in units of the fan-in (see ``WeightedNetwork``).
        weights_: Samples of it ``(predictive_samples, size)``.
        noise_: Standard deviation of the noise, in the units of the targets.
        prior_scales_: The scales :math:`s`, one per group of weights.
        loss_: Estimate of the negative bound in each step, nats per row in standardised units.

    Cost:
        A step is ``samples * batch_size`` passes of the network, forward and backward, and ``samples`` of the flow.

    References:
        - Blundell et al. (2015), Weight Uncertainty in Neural Networks, https://arxiv.org/abs/1505.05424, eq. 1.
        - Louizos & Welling (2017), https://arxiv.org/abs/1703.01961: flows over weights.
        - Neal (1996), Bayesian Learning for Neural Networks, section 4.3: a prior scale for each input.
        - Roeder et al. (2017), Sticking the Landing, https://arxiv.org/abs/1703.09194, eq. 8: the path gradient.

    Example:
        >>> x = np.linspace(-1, 1, 30)[:, None]
        >>> model = BayesianRegression(hidden=(5,), steps=20).fit(x, x[:, 0] ** 2)
        >>> mean, sd = model.predict(x)
        >>> mean.shape, sd.shape, model.predictive_log_prob(x, x[:, 0]).shape, model.sample(x, 7).shape
        ((30,), (30,), (30,), (7, 30))
    """

    def __init__(
        self,
        posterior: str | Flow | Callable[[int], Flow] = "flow",
        *,
        hidden: Sequence[int] = (50,),
        noise: Noise | float = "learned",
        prior: Prior = "fixed",
        prior_scale: float = 2.0,
        gradient: Gradient = "path-wise",
        steps: int = 3_000,
        batch_size: int = 512,
        samples: int = 8,
        learning_rate: float = 1e-2,
        kl_warmup: float = 0.2,
        predictive_samples: int = 1_000,
        seed: int = 0,
    ) -> None:
        self.posterior = posterior
        self.hidden = hidden
        self.noise = noise
        self.prior = prior
        self.prior_scale = prior_scale
        self.gradient: Gradient = gradient
        self.steps = steps
        self.batch_size = batch_size
        self.samples = samples
        self.learning_rate = learning_rate
        self.kl_warmup = kl_warmup
        self.predictive_samples = predictive_samples
        self.seed = seed

    def fit(self, x: npt.ArrayLike, y: npt.ArrayLike) -> "BayesianRegression":
        """Fit the posterior to inputs ``(n, D)`` and targets ``(n,)``.

        Raises:
            ValueError: If an argument, a shape or a value does not fit, or the targets are all equal.
            DivergedError: If the bound is not finite at the end.
        """
        self._check_arguments()
        rows = _matrix(x)
        targets = _vector(y, len(rows))
        if len(rows) < 2 or np.ptp(targets) == 0:
            raise ValueError(f"BayesianRegression: expected targets that differ; got {len(rows)} of one value")
        self.n_features_in_ = rows.shape[1]
        self._x_mean, self._x_scale = rows.mean(0), np.where(np.ptp(rows, axis=0) > 0, rows.std(0), 1.0)
        self._y_mean, self._y_scale = float(targets.mean()), float(targets.std())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self._prepare()
            self._maximize_bound(self._inputs(rows), self._targets(targets).float())
            self.posterior_.eval()
            self.weights_ = self.posterior_.sample(self.predictive_samples)
        self.noise_ = float(self._log_noise.detach().exp()) * self._y_scale
        self.prior_scales_ = self._log_prior.detach().exp().double().numpy()
        return self

    def predictive_log_prob(self, x: npt.ArrayLike, y: npt.ArrayLike) -> Array:
        """Log-density ``(n,)`` of targets ``(n,)`` given inputs ``(n, D)``, in nats and the units of the targets.

        The density is the mixture over ``weights_``. Cost: ``predictive_samples`` passes of the network.
        """
        rows = self._rows(x)
        targets = self._targets(_vector(y, len(rows)))
        mean, log_sd = self._predictions(rows, self.weights_)
        terms = _log_normal(targets, mean, log_sd)
        mixture = torch.logsumexp(terms, 0) - math.log(len(terms)) - math.log(self._y_scale)
        return np.asarray(mixture.numpy(), dtype=np.float64)

    def predict(self, x: npt.ArrayLike) -> tuple[Array, Array]:
        """Mean and standard deviation ``(n,)`` of the predictive distribution, with noise, in target units."""
        mean, log_sd = self._predictions(self._rows(x), self.weights_)
        variance = mean.var(0, correction=0) + (2.0 * log_sd).exp().mean(0)
        return (
            np.asarray(mean.mean(0).numpy() * self._y_scale + self._y_mean, dtype=np.float64),
            np.asarray(variance.sqrt().numpy() * self._y_scale, dtype=np.float64),
        )

    def sample(self, x: npt.ArrayLike, n: int, seed: int | None = None) -> Array:
        """Draw targets ``(n, rows)``, each draw with its own weights for all rows, and noise.

        Args:
            x: Inputs ``(rows, D)``.
            n: Number of draws.
            seed: Seed of the draws; that of the estimator by default.
        """
        rows = self._rows(x)
        if n < 1:
            raise ValueError(f"BayesianRegression: expected n of at least 1; got {n}")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed if seed is None else seed)
            mean, log_sd = self._predictions(rows, self.posterior_.sample(n))
            draws = mean + log_sd.exp() * torch.randn_like(mean)
        return np.asarray(draws.numpy() * self._y_scale + self._y_mean, dtype=np.float64)

    @torch.no_grad()
    def evidence_bound(self, x: npt.ArrayLike, y: npt.ArrayLike, samples: int = 1_000) -> EvidenceBound:
        """A lower bound on the log-density of all targets ``(n,)`` given inputs ``(n, D)`` under the prior, in nats.

        It bounds the log-evidence if ``x`` and ``y`` are the data that the model was fitted to.
        """
        rows = self._rows(x)
        targets = self._targets(_vector(y, len(rows)))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            weights, log_q = self.posterior_.sample_and_log_prob(samples)
        mean, log_sd = self._predictions(rows, weights)
        data_term = _log_normal(targets, mean, log_sd).sum(1) - len(rows) * math.log(self._y_scale)
        terms = data_term + self._log_prior_density(weights).double() - log_q.double()
        return EvidenceBound(float(terms.mean()), float(terms.std()) / math.sqrt(samples))

    def _prepare(self) -> None:
        outputs = 2 if self.noise == "heteroscedastic" else 1
        self._network = WeightedNetwork(self.n_features_in_, self.hidden, outputs)
        self._groups = self._network.groups(each_input=self.prior == "inputs")
        self.posterior_ = self._make_posterior(self._network.size)
        scales = torch.full((int(self._groups.max()) + 1,), math.log(self.prior_scale))
        self._log_prior = nn.Parameter(scales, requires_grad=self.prior != "fixed")
        known = not isinstance(self.noise, str)
        noise = float(self.noise) / self._y_scale if known else _START_NOISE
        self._log_noise = nn.Parameter(torch.tensor(math.log(noise)), requires_grad=not known)

    def _make_posterior(self, size: int) -> Flow:
        if isinstance(self.posterior, str):
            location = self.prior_scale * torch.randn(size) * self._network.initial_scales()
            return POSTERIORS[self.posterior](location, torch.full((size,), _START_SCALE * self.prior_scale))
        made = copy.deepcopy(self.posterior) if isinstance(self.posterior, Flow) else self.posterior(size)
        if made.features != size or made.context:
            raise ValueError(
                f"BayesianRegression: expected a posterior of {size} features without context; "
                f"got {made.features} and a context of {made.context}"
            )
        return made.float()

    def _maximize_bound(self, x: Tensor, y: Tensor) -> None:
        candidates = [*self.posterior_.parameters(), self._log_noise, self._log_prior]
        parameters = [p for p in candidates if p.requires_grad]
        # No weight decay: the prior regularises the weights. The second moments decay ten times faster than usual,
        # because gradients shrink by orders of magnitude as the posterior narrows.
        group = {"params": parameters, "weight_decay": 0.0, "betas": (0.9, 0.99)}
        optimizer = ClippedAdamW([group], self.learning_rate)
        self.posterior_.train()
        rows, batch = len(x), min(self.batch_size, len(x))
        losses = torch.empty(self.steps)
        order, position = torch.randperm(rows), 0
        for step in range(self.steps):
            if position + batch > rows:
                order, position = torch.randperm(rows), 0
            chosen = order[position : position + batch]
            position += batch
            spent = step / self.steps
            for group in optimizer.param_groups:
                cosine = 0.5 * (1.0 + math.cos(math.pi * spent))
                group["lr"] = self.learning_rate * min(1.0, (step + 1) / WARMUP_STEPS) * cosine
            optimizer.zero_grad(set_to_none=True)
            weights, log_q = self.posterior_.rsample_and_log_prob(self.samples, path=self.gradient == "path")
            data_term = _log_normal(y[chosen], *self._mean_and_log_sd(x[chosen], weights)).mean(1)
            divergence = (log_q - self._log_prior_density(weights)) / rows
            share = min(1.0, spent / self.kl_warmup) if self.kl_warmup else 1.0
            loss = (share * divergence - data_term).mean()
            loss.backward()
            optimizer.clipped_step(parameters, 5.0)
            losses[step] = loss.detach()
        self.loss_ = losses.double().numpy()
        if not math.isfinite(self.loss_[-1]):
            raise DivergedError(
                f"BayesianRegression: the bound is not finite after {self.steps} steps; try learning_rate="
                f"{self.learning_rate / 10:g}"
            )

    def _mean_and_log_sd(self, x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Means and log standard deviations ``(s, n)`` of the targets, in standardised units."""
        outputs = self._network(x, weights)
        mean = outputs[..., 0]
        if self.noise == "heteroscedastic":
            return mean, self._log_noise + outputs[..., 1]
        return mean, self._log_noise.expand_as(mean)

    def _log_prior_density(self, weights: Tensor) -> Tensor:
        log_scale = self._log_prior[self._groups]
        return _log_normal(weights, weights.new_zeros(()), log_scale).sum(-1)

    @torch.no_grad()
    def _predictions(self, rows: Array, weights: Tensor) -> tuple[Tensor, Tensor]:
        x = self._inputs(rows)
        widest = max(self._network.widths)
        samples_a_pass = max(1, _NUMBERS_A_PASS // (widest * max(1, len(x))))
        parts = [self._mean_and_log_sd(x, part) for part in weights.split(samples_a_pass)]
        return torch.cat([mean for mean, _ in parts]).double(), torch.cat([log_sd for _, log_sd in parts]).double()

    def _inputs(self, rows: Array) -> Tensor:
        return torch.from_numpy((rows - self._x_mean) / self._x_scale).float()

    def _targets(self, targets: Array) -> Tensor:
        return torch.from_numpy((targets - self._y_mean) / self._y_scale)

    def _rows(self, x: npt.ArrayLike) -> Array:
        if not hasattr(self, "weights_"):
            raise NotFittedError("BayesianRegression: expected a fitted model; call fit first")
        rows = _matrix(x)
        if rows.shape[1] != self.n_features_in_:
            raise ValueError(f"BayesianRegression: expected {self.n_features_in_} columns; got {rows.shape[1]}")
        return rows

    def _check_arguments(self) -> None:
        if isinstance(self.posterior, str):
            _check_name("posterior", self.posterior, tuple(POSTERIORS))
        _check_name("gradient", self.gradient, ("path", "path-wise"))
        _check_name("prior", self.prior, ("fixed", "layers", "inputs"))
        if isinstance(self.noise, str):
            _check_name("noise", self.noise, ("learned", "heteroscedastic"))
        sizes = {"steps": self.steps, "batch_size": self.batch_size, "samples": self.samples}
        sizes |= {"predictive_samples": self.predictive_samples}
        sizes |= {f"hidden[{i}]": width for i, width in enumerate(self.hidden)}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"BayesianRegression: expected {name} of at least 1; got {size}")
        positive = {"prior_scale": self.prior_scale, "learning_rate": self.learning_rate}
        if not isinstance(self.noise, str):
            positive["noise"] = self.noise
        for name, value in positive.items():
            if not 0 < value < math.inf:
                raise ValueError(f"BayesianRegression: expected {name} above 0 and finite; got {value}")
        if not 0 <= self.kl_warmup < 1:
            raise ValueError(f"BayesianRegression: expected kl_warmup of at least 0 and below 1; got {self.kl_warmup}")


def _log_normal(value: Tensor, mean: Tensor, log_sd: Tensor) -> Tensor:
    return -0.5 * ((value - mean) * torch.exp(-log_sd)).square() - log_sd - 0.5 * _LOG_2PI


def _check_name(what: str, name: str, known: Sequence[str]) -> None:
    if name not in known:
        raise ValueError(f"BayesianRegression: {unknown_name(what, name, known)}")


def _matrix(x: npt.ArrayLike) -> Array:
    rows = _numbers("inputs", x)
    if rows.ndim != 2 or rows.shape[1] < 1:
        raise ValueError(f"BayesianRegression: expected inputs of shape (n, features); got {rows.shape}")
    return rows


def _vector(y: npt.ArrayLike, rows: int) -> Array:
    targets = _numbers("targets", y)
    if targets.shape != (rows,):
        raise ValueError(f"BayesianRegression: expected targets of shape ({rows},), one a row; got {targets.shape}")
    return targets


def _numbers(what: str, values: npt.ArrayLike) -> Array:
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"BayesianRegression: expected {what} that are numbers; got {error}") from None
    if not np.isfinite(array).all():
        bad = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
        raise ValueError(f"BayesianRegression: expected finite {what}; got {array[bad]} at {bad}")
    return array
