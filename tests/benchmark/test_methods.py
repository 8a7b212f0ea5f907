"""The names of methods: built in, of other libraries, and of plugins."""

import pytest

from pushforward.benchmark.methods import AUTO, METHODS, parse_method, recorded_method, register_method
from pushforward.benchmark.peers import build_nflows
from pushforward.common.errors import ConfigError
from pushforward.evaluate.baselines import fit_baselines


@pytest.mark.parametrize(
    ("spec", "kind"),
    [
        *((name, "baseline") for name in ("gaussian", "GMM", "kernel_density")),
        *((name, "peer") for name in ("nflows:maf", "zuko:nsf:matched")),
        *((name, "fit") for name in (AUTO, "flow=maf")),
    ],
)
def test_every_kind_of_method_is_read(spec: str, kind: str) -> None:
    assert parse_method(spec).kind == kind


def test_the_table_says_what_fits_a_method() -> None:
    assert METHODS["kde"] is fit_baselines
    assert METHODS["nflows:nsf-c"] is build_nflows


@pytest.mark.parametrize("name", ["gaussian", "nflows:maf", AUTO])
def test_the_name_of_a_builtin_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"^register: "):
        register_method(name)(lambda train, validation, **budget: None)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("gaussian flow.layers=2", "gaussian takes no keys; got 'flow.layers=2'"),
        ("flow=maf track=a", "track is set by the benchmark; leave it out of 'flow=maf track=a'"),
        (
            "gausian",
            "unknown method 'gausian'; did you mean 'gaussian'? known: gaussian, gaussian-mixture, kde, nflows:",
        ),
    ],
)
def test_a_wrong_method_is_one_line(spec: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_method(spec)
    assert str(error.value).startswith(f"--methods: {message}")


def test_results_of_a_plugin_that_is_not_loaded_have_a_method() -> None:
    method = recorded_method("their-method")
    assert (method.kind, method.label, method.slug) == ("plugin", "their-method", "their-method")
    with pytest.raises(ConfigError, match="unknown flow 'mad' of nflows"):
        recorded_method("nflows:mad")
