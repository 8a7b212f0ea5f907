"""A causal transformer as the network of an autoregressive layer; the features are its tokens."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pushforward.common.text import unknown_name
from pushforward.flows.checks import check_at_least, check_dropout, check_shape
from pushforward.flows.networks.incremental import Incremental
from pushforward.flows.state import Part

EMBEDDINGS = ("linear", "periodic")
_WAVES = 16
_FREQUENCY = 0.3  # initial standard deviation of the frequencies, in cycles per unit of the values
_SPREAD = 0.1  # initial standard deviation of the embeddings
_WIDENING = 4  # width of the perceptrons, as a multiple of the residual stream's
BLOCK = 8
"""Number of tokens whose keys and values are copied together if gradients are enabled; see ``_Cache``."""


class MaskedTransformer(Part):
    r"""Causal transformer: outputs for feature :math:`d` depend on the features before :math:`d` and the context.

    Token :math:`d` embeds the value of feature :math:`d - 1` (the first token embeds zero), plus a learned position and
    a linear map of the context. Pre-norm blocks of causal attention and a perceptron four times as wide follow, and one
    linear map per feature gives the outputs. These start at zero, so the layer starts as the identity.

    It can replace ``MaskedResidualNet``. There the features share the hidden units; here each feature has all of them,
    and every weight of a block is used once per feature. So an evaluation costs about :math:`D` times as much as that
    of a residual network with as many weights, and an optimizer step learns more. A layer norm precedes the outputs, so
    they stay bounded for points far outside the data.

    Attention is written out, because torch's fused kernels have no second derivatives, and no batching rule for their
    first ones. In training mode dropout acts on the outputs of attention and perceptrons, but not in ``incremental``.

    Args:
        features: Number of features :math:`D`.
        outputs_per_feature: Number of outputs :math:`P` of each feature.
        context: Number of context features.
        hidden: Width :math:`H` of the residual stream, a multiple of ``heads``.
        blocks: Number of blocks; with 0 a feature depends only on the one before it.
        heads: Number of attention heads.
        dropout: Probability of zeroing an activation while training.
        embedding: How a value becomes a token: ``linear`` is the value times a vector for each feature; ``periodic``
            adds sines and cosines of learned frequencies, which resolve values near zero more finely.

    Shape:
        points ``(..., D)``, context ``(..., context)`` broadcasting against them, outputs ``(..., D, P)``.

    Cost:
        About :math:`24 H^2 + 4 D H` operations per feature and block; with gradients, memory for :math:`D^2` attention
        weights per head and block. All steps of ``incremental`` take as long as about two evaluations (measured: 1.2 to
        2.3, at 43 features and 512 points).

    References:
        - Vaswani et al. (2017), Attention is all you need, https://arxiv.org/abs/1706.03762; norms before each branch
          after Xiong et al. (2020), https://arxiv.org/abs/2002.04745.
        - Fakoor et al. (2020), TraDE, https://arxiv.org/abs/2004.02441, and Patacchiola et al. (2024), Transformer
          neural autoregressive flows, https://arxiv.org/abs/2401.01855: features as tokens under a causal mask.
        - Gorishniy et al. (2021), https://arxiv.org/abs/2106.11959 (linear), and (2022),
          https://arxiv.org/abs/2203.05556 (periodic embeddings of numbers).

    Example:
        >>> net = MaskedTransformer(3, 5, hidden=16, blocks=2)
        >>> net(torch.zeros(7, 3)).shape
        torch.Size([7, 3, 5])
    """

    mask: Tensor
    free = ("dropout",)

    def __init__(
        self,
        features: int,
        outputs_per_feature: int,
        *,
        context: int = 0,
        hidden: int = 128,
        blocks: int = 4,
        heads: int = 4,
        dropout: float = 0.0,
        embedding: str = "periodic",
    ) -> None:
        super().__init__()
        name = type(self).__name__
        check_at_least(name, 1, features=features, outputs_per_feature=outputs_per_feature, hidden=hidden, heads=heads)
        check_at_least(name, 0, context=context, blocks=blocks)
        check_dropout(name, dropout)
        if hidden % heads:
            raise ValueError(f"{name}: expected hidden to be a multiple of heads; got {hidden} and {heads}")
        if embedding not in EMBEDDINGS:
            raise ValueError(f"{name}: {unknown_name('embedding', embedding, EMBEDDINGS)}")
        self.features, self.outputs_per_feature, self.context = features, outputs_per_feature, context
        self.hidden, self.blocks, self.heads, self.dropout = hidden, blocks, heads, dropout
        self.embedding = embedding
        self.first = _Embedding(features, hidden, waves=_WAVES if embedding == "periodic" else 0)
        self.first_context = nn.Linear(context, hidden, bias=False) if context else None
        self.body = nn.ModuleList(TransformerBlock(hidden, heads, dropout, branches=2 * blocks) for _ in range(blocks))
        self.norm = nn.LayerNorm(hidden)
        self.last = _Heads(features, hidden, outputs_per_feature)
        self.set_constant("mask", torch.full((features, features), -math.inf, device="cpu").triu(1))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        check_shape(type(self).__name__, "points", x, self.features)
        if not torch.is_grad_enabled() and x.dim() == 2 and len(x) > self._most_rows:
            parts = x.split(self._most_rows)
            if context is None:
                return torch.cat([self._evaluate(part, None) for part in parts])
            contexts = context.expand(len(x), context.shape[-1]).split(self._most_rows)
            return torch.cat([self._evaluate(part, given) for part, given in zip(parts, contexts, strict=True)])
        return self._evaluate(x, context)

    @property
    def _most_rows(self) -> int:
        """Number of rows evaluated at once without gradients, so that attention weights take at most 64 Mi numbers."""
        return max(1, 2**26 // (self.heads * self.features**2))

    def _evaluate(self, x: Tensor, context: Tensor | None) -> Tensor:
        h: Tensor = self.first(F.pad(x[..., :-1], (1, 0)))
        if self.first_context is not None:
            h = h + self.first_context(self._required(context)).unsqueeze(-2)
        for block in self.body:
            h = block(h, self.mask)
        outputs: Tensor = self.last(self.norm(h))
        return outputs

    def incremental(self, like: Tensor, context: Tensor | None = None) -> "CachedPass":
        """Start an evaluation one feature at a time.

        Args:
            like: Any tensor ``(points, ...)`` that gives the number, dtype and device of the points; under
                ``torch.vmap`` it must be batched if they are.
            context: Context ``(points, context)``.
        """
        if self.first_context is None:
            return CachedPass(self, like, None)
        return CachedPass(self, like, self.first_context(self._required(context)).unsqueeze(-2))

    def config(self) -> dict[str, Any]:
        """Arguments that rebuild this network, without its weights."""
        return {
            "features": self.features,
            "outputs_per_feature": self.outputs_per_feature,
            "context": self.context,
            "hidden": self.hidden,
            "blocks": self.blocks,
            "heads": self.heads,
            "dropout": self.dropout,
            "embedding": self.embedding,
        }

    def _required(self, context: Tensor | None) -> Tensor:
        if context is None:
            raise ValueError(f"{type(self).__name__}: expected context of shape (..., {self.context}); got none")
        return context


class CachedPass(Incremental):
    """Evaluate a transformer feature by feature, keeping the keys and values of all tokens.

    Call ``parameters()`` and ``append(x_d)`` in turns. A token passes through all blocks once, when the feature that it
    embeds becomes known, and attends to the kept keys and values of the earlier tokens; so all features together cost
    about one forward pass. Dropout is not applied, because an inverse must undo one fixed map.

    Args:
        net: The transformer.
        like: Any tensor ``(points, ...)`` that gives the number, dtype and device of the points.
        context_term: What the context adds to each token, ``(points, 1, hidden)``; or None.
    """

    def __init__(self, net: MaskedTransformer, like: Tensor, context_term: Tensor | None) -> None:
        self.features = net.features
        self.feature = 0
        self._net, self._context_term = net, context_term
        self._caches = [_Cache(net.features) for _ in range(net.blocks)]
        self._advance(like.new_zeros(len(like)))

    def parameters(self) -> Tensor:
        """Parameters ``(points, outputs)`` of the next feature."""
        return self._net.last.of_feature(self.feature, self._h.squeeze(-2))

    def append(self, x: Tensor) -> None:
        """Make the next feature known: values ``(points,)``."""
        self.feature += 1
        if self.feature < self.features:
            self._advance(x)

    def _advance(self, before: Tensor) -> None:
        """Compute the token of the next feature, which embeds the value ``(points,)`` of the one before."""
        net = self._net
        h: Tensor = net.first(before.unsqueeze(-1), self.feature, self.feature + 1)
        if self._context_term is not None:
            h = h + self._context_term
        blocks: list[Any] = list(net.body)  # for mypy: a ModuleList holds any Module
        for block, cache in zip(blocks, self._caches, strict=True):
            query, key, value = block.project(h)
            h = block.finish(h, cache.attend(query, key, value), dropout=False)
        self._h = net.norm(h)


class _Cache:
    """Keys and values of the tokens so far, ``(points, heads, tokens, width)``.

    Without gradients they are written to a buffer. With gradients nothing may be written in place, and copying all of
    them for each token would take memory quadratic in the number of tokens. So only an unfinished block of the last few
    tokens is copied for each new one; a finished block is kept as it is.
    """

    def __init__(self, features: int) -> None:
        self._tracked = torch.is_grad_enabled()
        self._features = features
        self._finished: list[tuple[Tensor, Tensor]] = []
        self._open: tuple[Tensor, Tensor] | None = None
        self._known = 0

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Append a token ``(points, heads, 1, width)``; return the output of attention for its query, same shape."""
        self._known += 1
        parts = self._concatenated(key, value) if self._tracked else [self._written(key, value)]
        scores = torch.cat([query @ keys.transpose(-1, -2) for keys, _ in parts], dim=-1)
        weights = scores.softmax(-1).split([keys.shape[-2] for keys, _ in parts], dim=-1)
        outputs = [part @ values for part, (_, values) in zip(weights, parts, strict=True)]
        total: Tensor = sum(outputs[1:], start=outputs[0])
        return total

    def _concatenated(self, *new: Tensor) -> list[tuple[Tensor, Tensor]]:
        if self._open is not None:
            new = tuple(torch.cat([old, row], dim=-2) for old, row in zip(self._open, new, strict=True))
        key, value = new
        parts = [*self._finished, (key, value)]
        if self._known % BLOCK:
            self._open = key, value
        else:
            self._finished, self._open = parts, None
        return parts

    def _written(self, *new: Tensor) -> tuple[Tensor, Tensor]:
        last = self._known - 1
        if self._known == 2:
            # The buffer is made like the second token, because the first one depends on no point: under torch.vmap it
            # may lack a batch dimension that the others have.
            buffers = [row.new_empty(*row.shape[:-2], self._features, row.shape[-1]) for row in new]
            for buffer, old in zip(buffers, self._open or (), strict=True):
                buffer[..., :1, :] = old
            self._open = buffers[0], buffers[1]
        if self._open is None:
            self._open = new[0], new[1]
        else:
            for buffer, row in zip(self._open, new, strict=True):
                buffer[..., last : self._known, :] = row
        keys, values = self._open
        return keys[..., : self._known, :], values[..., : self._known, :]


class _Embedding(nn.Module):
    """Embed the preceding values ``(..., D)``, the first of them zero, as tokens ``(..., D, hidden)``."""

    def __init__(self, features: int, hidden: int, waves: int) -> None:
        super().__init__()
        # Small compared to what the blocks add, so that an optimizer's first steps can change the tokens' direction.
        self.position = nn.Parameter(_SPREAD * torch.randn(features, hidden))
        self.weight = nn.Parameter(_SPREAD * torch.randn(features, hidden))
        self.frequency = self.wave = None
        if waves:
            self.frequency = nn.Parameter(_FREQUENCY * torch.randn(features, waves))
            self.wave = nn.Parameter(_SPREAD * waves**-0.5 * torch.randn(features, 2 * waves, hidden))

    def forward(self, before: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        """Embed the values ``(..., stop - start)`` of the tokens ``start`` to ``stop``."""
        value = before.unsqueeze(-1)
        h = self.position[start:stop] + value * self.weight[start:stop]
        if self.frequency is None or self.wave is None:
            return h
        angle = 2.0 * math.pi * self.frequency[start:stop] * value
        waves = torch.cat([angle.sin(), angle.cos()], dim=-1)
        return h + torch.einsum("...dw,dwh->...dh", waves, self.wave[start:stop])


class TransformerBlock(nn.Module):
    """Causal attention and a perceptron, each after a layer norm and added to the residual stream.

    It computes what a pre-norm ``torch.nn.TransformerEncoderLayer`` does whose attention has no input bias.

    Args:
        hidden: Width of the residual stream, a multiple of ``heads``.
        heads: Number of attention heads.
        dropout: Probability of zeroing what a branch adds, in training mode.
        branches: Number of residual branches in the whole network, two per block.
    """

    def __init__(self, hidden: int, heads: int, dropout: float, branches: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(hidden)
        # No bias: that of the keys would cancel in the softmax, and the layer norm has one for queries and values.
        self.attention = nn.Linear(hidden, 3 * hidden, bias=False)
        self.merge = nn.Linear(hidden, hidden)
        self.second_norm = nn.LayerNorm(hidden)
        self.widen = nn.Linear(hidden, _WIDENING * hidden)
        self.narrow = nn.Linear(_WIDENING * hidden, hidden)
        self.dropout = nn.Dropout(dropout)
        # As in GPT-2: the variances that all branches add sum to that of one branch.
        with torch.no_grad():
            for linear in (self.merge, self.narrow):
                linear.weight.mul_(branches**-0.5)

    def forward(self, h: Tensor, mask: Tensor) -> Tensor:
        query, key, value = self.project(h)
        weights = (query @ key.transpose(-1, -2) + mask).softmax(-1)
        return self.finish(h, weights @ value)

    def project(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (scaled), keys and values ``(..., heads, D, hidden / heads)`` of tokens ``(..., D, hidden)``."""
        projected = self.attention(self.norm(h)).unflatten(-1, (3, self.heads, -1)).transpose(-2, -4)
        query, key, value = projected.unbind(-3)
        return query * query.shape[-1] ** -0.5, key, value

    def finish(self, h: Tensor, attended: Tensor, *, dropout: bool = True) -> Tensor:
        """Add the output of attention, ``(..., heads, D, hidden / heads)``, then that of the perceptron."""
        drop = self.dropout if dropout else nn.Identity()
        h = h + drop(self.merge(attended.transpose(-2, -3).flatten(-2)))
        return h + drop(self.narrow(F.gelu(self.widen(self.second_norm(h)))))  # type: ignore[no-any-return]


class _Heads(nn.Module):
    """Linear map ``(..., D, hidden)`` to ``(..., D, outputs)`` with own weights for each feature, initially zero."""

    def __init__(self, features: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(features, hidden, outputs))
        self.bias = nn.Parameter(torch.zeros(features, outputs))

    def forward(self, h: Tensor) -> Tensor:
        return torch.einsum("...dh,dho->...do", h, self.weight) + self.bias

    def of_feature(self, d: int, h: Tensor) -> Tensor:
        """Outputs ``(..., outputs)`` of one feature."""
        return F.linear(h, self.weight[d].t(), self.bias[d])
