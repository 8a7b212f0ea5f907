"""Dequantization: add uniform noise of one bin width to recorded values."""

from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
from numpy.typing import NDArray

from pushforward.datasets.tables.schema import Schema

Array = NDArray[np.float64]
Bits = NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MASK = 2**64 - 1


@dataclass(frozen=True, eq=False)
class Dequantizer:
    r"""Adds uniform noise of one bin width to every recorded value.

    Tables hold rounded numbers, so values repeat, and a continuous density can be arbitrarily large at a repeated
    value: its likelihood means nothing. Adding :math:`s_d (U - 1/2)` to column d, with U uniform on (0, 1) and
    :math:`s_d` the bin width, spreads each value over the bin that it is the centre of. The noisy rows have a proper
    density :math:`p` in data units, and the probability of a recorded row is the mass of its bin,
    :math:`P(x) = \int_{bin} p \ge \exp E[\log p(x + s(U - 1/2))] \prod_d s_d` (Jensen). No further Jacobian is needed:
    log-densities of noisy rows compare with any other log-densities of the data, and the log-probability of a row is
    at least its log-density averaged over the bin plus :math:`\sum_d \log s_d`.

    Args:
        bin_widths: Bin width of each column, shape (D,); 0 for a column without noise.
        offsets: A grid point of each column, shape (D,); 0 by default.
    """

    bin_widths: Array
    offsets: Array | None = None

    def __post_init__(self) -> None:
        bin_widths = np.asarray(self.bin_widths, dtype=np.float64)
        if bin_widths.ndim != 1 or not np.isfinite(bin_widths).all() or (bin_widths < 0).any():
            raise ValueError(f"Dequantizer: expected finite bin_widths of at least 0 and shape (D,); got {bin_widths}")
        offsets = np.zeros_like(bin_widths) if self.offsets is None else np.asarray(self.offsets, dtype=np.float64)
        if offsets.shape != bin_widths.shape or not np.isfinite(offsets).all():
            raise ValueError(f"Dequantizer: expected finite offsets of shape {bin_widths.shape}; got {offsets}")
        object.__setattr__(self, "bin_widths", bin_widths)
        object.__setattr__(self, "offsets", offsets)

    @classmethod
    def of(cls, schema: Schema) -> Self:
        """Dequantize the columns of a schema that have ties and lie on a grid; leave the others as they are."""
        grids = [(c.step, c.offset) if c.tied and c.step is not None else (0.0, 0.0) for c in schema.columns]
        return cls(np.array([width for width, _ in grids]), np.array([offset or 0.0 for _, offset in grids]))

    @property
    def active(self) -> bool:
        """Whether any column gets noise."""
        return bool((self.bin_widths > 0).any())

    def random(self, rows: Array, generator: np.random.Generator) -> Array:
        """Return ``rows`` (n, D) with fresh noise, as used in training."""
        rows = self._checked(rows)
        return self._add_noise(rows, generator.random((len(rows), len(self._active_columns))))

    def fixed(self, rows: Array, draw: int = 0) -> Array:
        """Return ``rows`` (n, D) with noise that depends only on the values of the row and on ``draw``.

        The same row gets the same noise in any order, file and session, so its ``log_prob`` is reproducible. Averaging
        several draws comes closer to the mass of its bin. Equal rows get equal noise.
        """
        rows = self._checked(rows)
        if not self.active:
            return rows.copy()
        state = np.full(len(rows), _mix(np.array([draw], dtype=np.int64).view(np.uint64) + _GOLDEN)[0])
        # Rounded to 32 bits, so that a row of 32-bit floats is the same from Parquet and from the digits of a CSV file.
        # Adding 0.0 turns -0.0 into 0.0: one value, one bit pattern.
        with np.errstate(over="ignore"):
            rounded = np.ascontiguousarray(rows.T).astype(np.float32) + np.float32(0.0)
        for pattern in rounded.view(np.uint32).astype(np.uint64):
            state = _mix(state ^ _mix(pattern + _GOLDEN)) + _GOLDEN
        uniform = np.empty((len(rows), len(self._active_columns)))
        for k, column in enumerate(self._active_columns):
            bits = _mix(state + np.uint64(int(_GOLDEN) * (int(column) + 1) & _MASK))
            uniform[:, k] = ((bits >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
        return self._add_noise(rows, uniform)

    def round(self, rows: Array) -> Array:
        """Return ``rows`` (n, D) with every dequantized value moved to the centre of its bin."""
        rows = self._checked(rows).copy()
        for column in self._active_columns:
            rows[:, column] = snap(rows[:, column], self.bin_widths[column], self._origin[column])
        return rows

    @cached_property
    def _active_columns(self) -> NDArray[np.intp]:
        return np.flatnonzero(self.bin_widths)

    @property
    def _origin(self) -> Array:
        return np.zeros_like(self.bin_widths) if self.offsets is None else self.offsets

    def _add_noise(self, rows: Array, uniform: Array) -> Array:
        out = rows.copy()
        out[:, self._active_columns] += self.bin_widths[self._active_columns] * (uniform - 0.5)
        return out

    def _checked(self, rows: Array) -> Array:
        rows = np.asarray(rows, dtype=np.float64)
        if rows.ndim != 2 or rows.shape[1] != len(self.bin_widths):
            raise ValueError(f"Dequantizer: expected rows of shape (n, {len(self.bin_widths)}); got {rows.shape}")
        return rows


def snap(values: Array, step: float, offset: float) -> Array:
    """Move values to the nearest point of the grid ``offset + k step``; a tie goes up, as bins are half open."""
    out: Array = offset + step * np.floor((values - offset) / step + 0.5)
    return out


def _mix(state: Bits) -> Bits:
    """Finalizer of splitmix64: every bit of the input affects every bit of the output (modulo 2**64)."""
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: Bits = state ^ (state >> np.uint64(31))
    return mixed
