"""The list of targets known by name, without importing torch."""

from typing import NamedTuple

PREFIX = "target:"
"""Distinguishes names of targets from names of data sets: ``target:funnel``."""


class TargetEntry(NamedTuple):
    """One line of the list of known targets; ``features`` is the default if the number can be chosen."""

    name: str
    features: int
    description: str


TARGETS: dict[str, TargetEntry] = {
    entry.name: entry
    for entry in (
        TargetEntry("u1", 2, "a ring that weighs its left and right sides (Rezende and Mohamed)"),
        TargetEntry("u2", 2, "a band along a sine, in a box"),
        TargetEntry("u3", 2, "a sine band that splits and joins again, in a box"),
        TargetEntry("u4", 2, "a sine band that splits in two, in a box"),
        TargetEntry("double-well", 2, "two wells of unequal weight, 1 to 5.4"),
        TargetEntry("double-well-2", 2, "two wells of unequal weight, 119 to 1"),
        TargetEntry("many-well", 32, "independent double wells: 2^(features/2) modes"),
        TargetEntry("gaussian", 10, "a chain of correlated Gaussians, correlation 0.9 between neighbours"),
        TargetEntry("gaussian-mixture", 6, "overlapping Gaussians at all corners of a cube: 2^features modes"),
        TargetEntry("funnel", 10, "Neal's funnel: one coordinate is the log-variance of the others"),
        TargetEntry("banana", 2, "a Gaussian twisted to a parabola"),
    )
}


def targets() -> list[TargetEntry]:
    """List the targets known by name, without building any.

    Example:
        >>> targets()[0].name
        'u1'
    """
    return list(TARGETS.values())
