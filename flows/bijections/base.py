"""The contract of an invertible layer, and three layers made of others: ``Chain``, ``Inverse``, ``NflowsTransform``.

``forward`` maps **data to base**, because that is what maximum likelihood evaluates; ``inverse`` maps base to data.
Both return ``(value, log_det)``, where ``log_det`` is the logarithm of the absolute determinant of the Jacobian of the
map *just applied*.
"""

import contextlib
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeGuard, cast

import torch
from torch import Tensor, nn

from pushforward.flows.checks import check_dtype, check_floating, check_rows, check_shape
from pushforward.flows.kernels.description import (
    Description,
    Facts,
    description_of,
    evaluate,
    facts_of,
    is_described,
    is_usable,
    traced,
)
from pushforward.flows.state import Part

if TYPE_CHECKING:
    # nflows has no type annotations: for a type checker its Transform is the Module it derives from.
    from torch.nn import Module as Transform
else:
    from nflows.transforms import Transform


class Bijection(Part, Transform):
    r"""An invertible, differentiable map :math:`z = f(x)`, optionally depending on a context :math:`c`.

    It subclasses ``nflows.transforms.Transform``, so nflows accepts it as a transform.

    A subclass implements ``forward`` and ``inverse``, calls ``self.check_points`` first in both (and ``check_dtypes``
    if it has parameters), and returns from ``config`` the arguments that rebuild it. The code has no data-dependent
    Python branching, no boolean-mask indexing and no ``.item()``, so it compiles without a graph break and works under
    ``torch.func.vmap``.

    Args:
        features: Number of features :math:`D` of a point.
        context: Number of context features :math:`C`; with 0 the map ignores the context.

    Shape:
        points ``(..., D)``, context ``(..., C)`` broadcasting against them, log-determinant ``(...)``; any number of
        leading dimensions, including none and empty ones. The output has the dtype and device of the input.
    """

    def __init__(self, features: int, context: int = 0) -> None:
        super().__init__()
        name = type(self).__name__
        if features < 1:
            raise ValueError(f"{name}: expected features of at least 1; got {features}")
        if context < 0:
            raise ValueError(f"{name}: expected context of at least 0; got {context}")
        self.features = features
        self.context = context

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map data to base.

        Args:
            x: Points ``(..., features)``.
            context: Context ``(..., context)`` broadcasting against the points, or None.

        Returns:
            The points in base space ``(..., features)`` and the log-determinant ``(...)``.

        Raises:
            ValueError: If a shape does not fit, or a needed context is missing.
            TypeError: If points or context do not have the dtype of the parameters. A ``Flow`` converts them.
        """
        raise NotImplementedError

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map base to data; the log-determinant returned is that of this inverse map."""
        raise NotImplementedError

    def forward_and_score(
        self, x: Tensor, score: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Map data to base, and the score of a density too; see :meth:`inverse_and_score`."""
        with without_dropout(self):
            z, log_det = self.forward(x, context)
            return z, log_det, differentiate_points(self.inverse, z, score, context)

    def inverse_and_score(
        self, z: Tensor, score: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        r"""Map base to data, and the score of a density too.

        The score is the gradient of the log-density with respect to the point. If a density has the score :math:`s` at
        :math:`z`, the density of :math:`x = g(z)` has the score
        :math:`(\partial g / \partial z)^{-T} (s - \nabla_z \log |\det g'(z)|)` at :math:`x`. It is computed as the
        gradient with respect to :math:`x` of :math:`\langle s, f(x) \rangle + \log |\det f'(x)|`, where :math:`f` is
        the inverse of :math:`g` and :math:`s` is held fixed. Layer by layer this gives the score of a flow at its own
        samples without a second pass through all layers.

        Dropout is not applied, not even in training mode: points and score must belong to the same density.

        This default evaluates the other direction too. A subclass overrides it if both directions can share work.

        Args:
            z: Points ``(..., features)``.
            score: Score ``(..., features)`` at these points.
            context: Context ``(..., context)``.

        Returns:
            The points and the log-determinant as ``inverse``, with gradients, and the score ``(..., features)``
            without gradients.

        References:
            - Vaitl et al. (2024), Fast and unified path gradient estimators for normalizing flows,
              https://arxiv.org/abs/2403.15881, section 4.
        """
        with without_dropout(self):
            x, log_det = self.inverse(z, context)
            return x, log_det, differentiate_points(self.forward, x, score, context)

    def describe(self) -> Description | None:
        """Describe this layer for the kernels; None if they do not implement it, as it is now."""
        return None

    def by_kernels(self, points: Tensor, context: Tensor | None, *, inverse: bool, score: Tensor | None = None) -> Any:
        """Evaluate this layer by a kernel; see ``description.evaluate``. None if it cannot be used here."""
        if not is_usable(points):
            return None
        return evaluate(description_of(self), points, context, inverse=inverse, score=score)

    def config(self) -> dict[str, Any]:
        """Arguments that rebuild this bijection, without its weights: JSON values and modules only."""
        raise NotImplementedError(f"{type(self).__name__} does not say how to rebuild it: override config()")

    def check_points(self, points: Tensor, context: Tensor | None) -> None:
        """Raise an error with what is expected and what was given if points or context do not fit."""
        name = type(self).__name__
        check_shape(name, "points", points, self.features)
        check_floating(name, "points", points)
        if self.context:
            if context is None:
                raise ValueError(f"{name}: expected context of shape (..., {self.context}); got none")
            check_shape(name, "context", context, self.context)
            check_rows(name, points, context)

    def check_dtypes(self, like: Tensor | None, points: Tensor, context: Tensor | None = None) -> None:
        """Raise a ``TypeError`` unless points and context have the dtype of a parameter ``like``, if there is one."""
        if like is not None:
            check_dtype(type(self).__name__, "points", points, like.dtype)
            if self.context and context is not None:
                check_dtype(type(self).__name__, "context", context, like.dtype)


def saturate(points: Tensor) -> Tensor:
    """Clamp points, without gradients, at sizes whose squares and products with weights do not overflow.

    These are 5e17 in float32 and 6e141 in float64. Infinity would become NaN where a network or a matrix has weights of
    both signs. So a row far outside the data has a low density, or one of zero, and not an undefined one. With
    gradients points stay as they are: a loss that is not finite shall be seen, and the operation would take a tenth of
    a training step.
    """
    if torch.is_grad_enabled():
        return points
    most = torch.finfo(points.dtype).max ** 0.46
    return points.clamp(-most, most)


def differentiate_points(
    apply: Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]],
    points: Tensor,
    score: Tensor,
    context: Tensor | None,
) -> Tensor:
    """Gradient ``(..., D)`` of ``<score, value> + log_det`` of a map with respect to its points only."""
    with torch.enable_grad():
        leaf = points.detach().requires_grad_()
        value, log_det = apply(leaf, None if context is None else context.detach())
        cotangents = (score.detach().expand_as(value), torch.ones_like(log_det))
        return pull_back((value, log_det), (leaf,), cotangents)[0]


def pull_back(
    outputs: Sequence[Tensor], inputs: Sequence[Tensor], cotangents: Sequence[Tensor], *, retain_graph: bool = False
) -> tuple[Tensor, ...]:
    """Vector-Jacobian products: gradients of ``<outputs, cotangents>`` with respect to the inputs.

    Unlike ``torch.autograd.grad`` it accepts outputs that are constants, such as the log-determinant of a permutation,
    and returns zeros for inputs that no output depends on.
    """
    tracked = [
        (output, cotangent) for output, cotangent in zip(outputs, cotangents, strict=True) if output.requires_grad
    ]
    if not tracked:
        return tuple(torch.zeros_like(given) for given in inputs)
    kept_outputs, kept_cotangents = zip(*tracked, strict=True)
    return torch.autograd.grad(kept_outputs, inputs, kept_cotangents, retain_graph=retain_graph, materialize_grads=True)


@contextlib.contextmanager
def without_dropout(module: nn.Module) -> Iterator[None]:
    """Switch off all dropout inside a module within the block; everything else keeps its mode."""
    active = [m for m in module.modules() if isinstance(m, _DROPOUTS) and m.training]
    for dropout in active:
        dropout.eval()
    try:
        yield
    finally:
        for dropout in active:
            dropout.train()


_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


class NflowsTransform(Bijection):
    """An nflows transform wrapped as a bijection.

    nflows takes exactly one batch dimension; this wrapper folds any leading dimensions into one and back. ``Chain``
    and ``Flow`` wrap transforms automatically.

    Args:
        transform: Any ``nflows.transforms.Transform``.
        features: Number of features.
        context: Number of context features that the transform needs, 0 if none.
    """

    def __init__(self, transform: nn.Module, features: int, context: int = 0) -> None:
        super().__init__(features, context)
        self.transform = transform

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._apply_folded(self.transform.forward, x, context)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        inverse: Any = self.transform.inverse
        return self._apply_folded(inverse, z, context)

    def _apply_folded(self, apply: Any, points: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        self.check_points(points, context)
        lead = points.shape[:-1]
        if not self.context:
            context = None  # an nflows transform built without context raises if it gets one
        if context is not None:
            lead = torch.broadcast_shapes(lead, context.shape[:-1])
            points = points.expand(*lead, self.features)
            context = context.expand(*lead, context.shape[-1]).reshape(-1, context.shape[-1])
        if 0 in lead:  # nflows raises on an empty batch
            return points, points.new_zeros(lead)
        value, log_det = apply(points.reshape(-1, self.features), context)
        return value.reshape(*lead, self.features), log_det.reshape(lead)


def as_bijection(transform: nn.Module, features: int, context: int = 0) -> Bijection:
    """Return a bijection unchanged, or wrap an nflows transform in ``NflowsTransform``."""
    if isinstance(transform, Bijection):
        return transform
    if is_transform(transform):
        return NflowsTransform(transform, features, context)
    raise TypeError(f"expected a Bijection or an nflows Transform; got {type(transform).__name__}")


def is_transform(module: object) -> TypeGuard[nn.Module]:
    """Whether a module is a bijection or an nflows transform, which return a value and its log-determinant."""
    return isinstance(module, Transform) and hasattr(module, "inverse")


Run = tuple[Description | None, list[Bijection]]
"""Members of a chain side by side, with their description if the kernels compute them."""


class Chain(Bijection):
    """A sequence of bijections; the first one is applied to the data.

    Args:
        bijections: Bijections or nflows transforms, starting at the data; an empty list is the identity.
        features: Number of features; needed only if no member is a ``Bijection``.
        context: Number of context features; by default the largest of the members.

    Example:
        >>> from pushforward.flows import Permutation
        >>> z, log_det = Chain([Permutation([1, 0]), Permutation([1, 0])])(torch.zeros(5, 2))
        >>> z.shape, log_det.shape
        (torch.Size([5, 2]), torch.Size([5]))
    """

    def __init__(
        self, bijections: Sequence[nn.Module], *, features: int | None = None, context: int | None = None
    ) -> None:
        members = [b for b in bijections if isinstance(b, Bijection)]
        if features is None:
            if not members:
                raise ValueError("Chain: expected features, because no member states them; got none")
            features = members[0].features
        if context is None:
            context = max((b.context for b in members), default=0)
        super().__init__(features, context)
        self.bijections = nn.ModuleList(as_bijection(b, features, context) for b in bijections)
        for i, member in enumerate(self.bijections):
            if member.features != features:
                raise ValueError(f"Chain: expected {features} features in member {i}; got {member.features}")
            if member.context not in (0, context):
                raise ValueError(f"Chain: expected a context of 0 or {context} in member {i}; got {member.context}")

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x, log_det, _ = self._through(x, context, None, inverse=False)
        return x, log_det

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        z, log_det, _ = self._through(z, context, None, inverse=True)
        return z, log_det

    def forward_and_score(
        self, x: Tensor, score: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        return self._through(x, context, score, inverse=False)

    def inverse_and_score(
        self, z: Tensor, score: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        return self._through(z, context, score, inverse=True)

    def _through(
        self, points: Tensor, context: Tensor | None, score: Tensor | None, *, inverse: bool
    ) -> tuple[Tensor, Tensor, Any]:
        """Apply all members; runs of members that the kernels know are one call."""
        self.check_points(points, context)
        total = points.new_zeros(points.shape[:-1])
        runs = self._runs() if is_usable(points) else [(None, self._members)]
        for run, members in reversed(runs) if inverse else runs:
            if done := evaluate(run, points, context, inverse=inverse, score=score):
                points, log_det, *rest = done
                total, score = total + log_det, rest[0] if rest else None
                continue
            for member in reversed(members) if inverse else members:
                if score is None:
                    points, log_det = member.inverse(points, context) if inverse else member(points, context)
                else:
                    apply = member.inverse_and_score if inverse else member.forward_and_score
                    points, log_det, score = apply(points, score, context)
                total = total + log_det
        return points, total, score

    def _runs(self) -> list[Run]:
        """Members side by side that one call of a kernel computes, with their description; others alone."""
        members = self._members
        if torch.compiler.is_compiling():
            return [(traced(self, facts), members[i:j]) for facts, i, j in _constant_runs(self)]
        if (kept := _RUNS.get(self)) is not None:
            seen, runs = kept
            if seen == members and all([run is None or run.guard.holds() for run, _ in runs]):
                return runs
        runs, is_final = _found_runs(members)
        if is_final:
            _RUNS[self] = members, runs
        return runs

    @property
    def _members(self) -> list[Bijection]:
        return cast(list[Bijection], list(self.bijections))

    def config(self) -> dict[str, Any]:
        return {"bijections": list(self.bijections), "features": self.features, "context": self.context}


_DIRECTIONS = ("forward", "inverse", "forward_and_score", "inverse_and_score")
_RUNS: weakref.WeakKeyDictionary[Chain, tuple[list[Bijection], list[Run]]] = weakref.WeakKeyDictionary()


def _found_runs(members: Sequence[Bijection]) -> tuple[list[Run], bool]:
    """Find the runs of members, and whether they stay so: a layer that is not described now may be another time."""
    runs: list[Run] = []
    is_final = True
    for member in members:
        found = member.describe() if is_described(type(member), _DIRECTIONS) else None
        if found is not None:
            found.guard.module(member)
        if found is None or not found.guard.holds():
            runs.append((None, [member]))
            is_final = is_final and type(member).describe is Bijection.describe
        elif runs and (last := runs[-1][0]) is not None:
            last.extend(found)
            runs[-1][1].append(member)
        else:
            runs.append((found, [member]))
    # Without a network or a matrix, torch's operations take less time than one call.
    runs = [
        run if run[0] is None or any(layer.kind in ("network", "linear") for layer in run[0].layers) else (None, run[1])
        for run in runs
    ]
    for run, _ in runs:
        if run is not None:
            run.finish()
    return runs, is_final


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _constant_runs(chain: Chain) -> list[tuple[Facts | None, int, int]]:
    """The runs of a chain that is being compiled, as positions of their members."""
    found, start = [], 0
    for run, members in _found_runs(list(chain.bijections))[0]:  # type: ignore[arg-type]
        found.append((None if run is None else facts_of(chain, run), start, start + len(members)))
        start += len(members)
    return found


class Inverse(Bijection):
    """A bijection with its two directions exchanged.

    Args:
        bijection: The bijection to invert.
    """

    def __init__(self, bijection: Bijection) -> None:
        super().__init__(bijection.features, bijection.context)
        self.bijection = bijection

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.bijection.inverse(x, context)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        value, log_det = self.bijection(z, context)
        return value, log_det

    def forward_and_score(
        self, x: Tensor, score: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        return self.bijection.inverse_and_score(x, score, context)

    def inverse_and_score(
        self, z: Tensor, score: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        return self.bijection.forward_and_score(z, score, context)

    def describe(self) -> Description | None:
        found = self.bijection.describe() if is_described(type(self.bijection), _DIRECTIONS) else None
        if found is None:
            return None
        found.guard.module(self.bijection)
        found.guard.child(self, "bijection")
        return found.inverted()

    def config(self) -> dict[str, Any]:
        return {"bijection": self.bijection}
