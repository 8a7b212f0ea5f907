"""Benchmarks: data sets x methods in one table, beside published numbers."""

from typing import TYPE_CHECKING

from pushforward.common.lazy import lazy

if TYPE_CHECKING:
    from pushforward.benchmark.methods import register_method as register_method

__getattr__, __dir__ = lazy("pushforward.benchmark", {"methods": "register_method"})
