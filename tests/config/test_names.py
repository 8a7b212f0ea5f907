"""The names that the configuration accepts are those that the library builds."""

from typing import get_args

from pushforward.config.schema import BaseName
from pushforward.flows import BASES


def test_names_of_bases() -> None:
    # Only ``build`` makes the last one, because it needs the sizes of a network.
    assert get_args(BaseName) == ("auto", *BASES, "made-mog")
