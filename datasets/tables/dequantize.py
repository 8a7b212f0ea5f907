"""Continuous densities for recorded values: noise of one grid step, random or fixed by the row."""

from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
from numpy.typing import NDArray

from pushforward.datasets.tables.grid import find_step
from pushforward.datasets.tables.schema import Schema

__all__ = ["Dequantizer", "find_step"]

Array = NDArray[np.float64]
Bits = NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MASK = 2**64 - 1


@dataclass(frozen=True, eq=False)
class Dequantizer:
    r"""Spreads every recorded value evenly over its cell of the grid.

    Tables hold rounded numbers, so values repeat, and a continuous density can be made as large as one likes at a
    value that repeats: its likelihood says nothing. Adding :math:`s_d (U - 1/2)` to column d, U uniform on (0, 1)
    and :math:`s_d` its grid step, replaces each value by its cell, whose centre it is. The noisy rows have a
    proper density :math:`p`, in units of the data, and the probability of a recorded row is the mass of its cell,
    :math:`P(x) = \int_{cell} p \ge \exp E[\log p(x + s(U - 1/2))] \prod_d s_d`. So there is no further Jacobian: a
    log-density of the noisy rows compares with any other log-density of the data, and the log-mass is the
    log-density averaged over the cell plus :math:`\sum_d \log s_d` (at least).

    Args:
        steps: Grid step of each column, shape (D,), 0 for a column left alone.
        offsets: A grid point of each column, shape (D,); 0 where not told.
    """

    steps: Array
    offsets: Array | None = None

    def __post_init__(self) -> None:
        steps = np.asarray(self.steps, dtype=np.float64)
        if steps.ndim != 1 or not np.isfinite(steps).all() or (steps < 0).any():
            raise ValueError(f"Dequantizer: expected finite steps of at least 0 and shape (D,); got {steps}")
        offsets = np.zeros_like(steps) if self.offsets is None else np.asarray(self.offsets, dtype=np.float64)
        if offsets.shape != steps.shape or not np.isfinite(offsets).all():
            raise ValueError(f"Dequantizer: expected finite offsets of shape {steps.shape}; got {offsets}")
        object.__setattr__(self, "steps", steps)
        object.__setattr__(self, "offsets", offsets)

    @classmethod
    def of(cls, schema: Schema) -> Self:
        """Take the columns of a schema that are tied and lie on a grid; leave the others alone."""
        chosen = [(c.step, c.offset) if c.tied and c.step is not None else (0.0, 0.0) for c in schema.columns]
        return cls(np.array([step for step, _ in chosen]), np.array([offset or 0.0 for _, offset in chosen]))

    @property
    def active(self) -> bool:
        """Whether any column is touched."""
        return bool((self.steps > 0).any())

    def random(self, rows: Array, generator: np.random.Generator) -> Array:
        """Return ``rows`` (n, D) with fresh noise: what a model trains on, drawn anew each time."""
        rows = self._checked(rows)
        return self._spread(rows, generator.random((len(rows), len(self._touched))))

    def fixed(self, rows: Array, draw: int = 0) -> Array:
        """Return ``rows`` (n, D) with noise that depends on nothing but the row's own values and ``draw``.

        The same row gets the same noise in any order, file and session, so its score is a fact about the row.
        Several draws, averaged, come closer to the mass of its cell. Rows that are equal get equal noise.
        """
        rows = self._checked(rows)
        if not self.active:
            return rows.copy()
        state = np.full(len(rows), _mix(np.array([draw], dtype=np.int64).view(np.uint64) + _GOLDEN)[0])
        # Rounded to 32 bits, so that a column of floats is the same row from Parquet and from its digits in a CSV
        # file. 0.0 and -0.0 are one value with two bit patterns; adding 0.0 makes them one.
        with np.errstate(over="ignore"):
            rounded = np.ascontiguousarray(rows.T).astype(np.float32) + np.float32(0.0)
        for bits in rounded.view(np.uint32).astype(np.uint64):
            state = _mix(state ^ _mix(bits + _GOLDEN)) + _GOLDEN
        uniform = np.empty((len(rows), len(self._touched)))
        for k, column in enumerate(self._touched):
            own = _mix(state + np.uint64(int(_GOLDEN) * (int(column) + 1) & _MASK))
            uniform[:, k] = ((own >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
        return self._spread(rows, uniform)

    def round(self, rows: Array) -> Array:
        """Return ``rows`` (n, D) with every touched value moved to the centre of its cell."""
        rows = self._checked(rows).copy()
        for column in self._touched:
            rows[:, column] = snap(rows[:, column], self.steps[column], self._origin[column])
        return rows

    @cached_property
    def _touched(self) -> NDArray[np.intp]:
        return np.flatnonzero(self.steps)

    @property
    def _origin(self) -> Array:
        return np.zeros_like(self.steps) if self.offsets is None else self.offsets

    def _spread(self, rows: Array, uniform: Array) -> Array:
        out = rows.copy()
        out[:, self._touched] += self.steps[self._touched] * (uniform - 0.5)
        return out

    def _checked(self, rows: Array) -> Array:
        rows = np.asarray(rows, dtype=np.float64)
        if rows.ndim != 2 or rows.shape[1] != len(self.steps):
            raise ValueError(f"Dequantizer: expected rows of shape (n, {len(self.steps)}); got {rows.shape}")
        return rows


def snap(values: Array, step: float, offset: float) -> Array:
    """Move values to the nearest point of the grid ``offset + k step``; a tie goes up, as cells are half open."""
    out: Array = offset + step * np.floor((values - offset) / step + 0.5)
    return out


def _mix(state: Bits) -> Bits:
    """Finalizer of splitmix64: every bit of the input changes every bit of the output (wraps modulo 2**64)."""
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: Bits = state ^ (state >> np.uint64(31))
    return mixed
