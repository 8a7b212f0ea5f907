"""The names that the configuration accepts are those that the library builds."""

from typing import Any

import pytest

from pushforward.common.errors import ConfigError
from pushforward.config.read import load_config
from pushforward.flows import NAMED, build
from pushforward.flows.registries import BASES, FLOWS, UNIVARIATE_MAPS, network_names


@pytest.mark.parametrize("name", FLOWS.names())
def test_flows(name: str) -> None:
    assert load_config("iris", overrides=[f"flow={name}"]).flow.name == name
    assert build(name, 3, 1).features == 3


@pytest.mark.parametrize(
    ("key", "names"),
    [
        ("base", BASES.names()),
        ("conditioner", network_names()),
        ("univariate", UNIVARIATE_MAPS.names()),
    ],
)
def test_parts_of_flows(key: str, names: list[str]) -> None:
    for name in names:
        assert getattr(load_config("iris", overrides=[f"flow.{key}={name}"]).flow, key) == name
        option: dict[str, Any] = {key: name}
        assert build("nsf-ar", 3, **option).features == 3
    with pytest.raises(ConfigError, match=f"unknown .* '{names[0]}x'; did you mean '{names[0]}'"):
        load_config("iris", overrides=[f"flow.{key}={names[0]}x"])


def test_only_the_mixture_needs_a_network() -> None:
    assert BASES.names() == [*NAMED, "made-mog"]
