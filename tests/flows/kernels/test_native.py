"""Switching the kernels on and off, by block and by process, and processes without a compiler."""

import json
import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from pushforward.flows.kernels import native
from tests.fixtures.kernels import DOUBLE, Perturb, autoregressive


def test_disabled_affects_one_thread_and_ends_with_the_block() -> None:
    on = []
    assert native.library() is not None

    def fail() -> None:
        with native.disabled():
            assert native.library() is None
            with native.disabled():
                assert native.library() is None
            assert native.library() is None
            thread = threading.Thread(target=lambda: on.append(native.library() is not None))
            thread.start()
            thread.join()
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert on == [True]
    assert native.library() is not None


def test_disabled_around_the_backward_pass_only(perturb: Perturb) -> None:
    layer = perturb(autoregressive(3))
    x = torch.randn(5, 3, dtype=DOUBLE, requires_grad=True)
    expected = torch.autograd.grad(layer(x)[0].sum(), x)
    z = layer(x)[0]
    with native.disabled():
        assert_close(torch.autograd.grad(z.sum(), x), expected)


SCRIPT = textwrap.dedent("""
    import json, sys, threading, warnings
    import torch
    torch.set_num_threads(1)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        from pushforward.flows import build
        from pushforward.flows.kernels import native
        torch.manual_seed(0)
        flow = build("nsf-ar", features=5, context=2, layers=2, hidden=20, bins=4).double()
        with torch.no_grad():
            for parameter in flow.parameters():
                parameter.add_(0.2 * torch.randn(parameter.shape, dtype=torch.float64))
        x, context = torch.randn(150, 5, dtype=torch.float64), torch.randn(150, 2, dtype=torch.float64)
        threads = [threading.Thread(target=lambda: flow.log_prob(x, context)) for _ in range(3)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        log_prob = flow.log_prob(x, context)
        log_prob.sum().backward()
        back, log_det = flow.bijection.inverse(x, context)
    print(json.dumps({
        "warnings": [str(w.message) for w in seen if w.category is native.NativeWarning],
        "native": native.library() is not None,
        "numbers": [log_prob.sum().item(), back.sum().item(), log_det.sum().item()]
        + [p.grad.square().sum().item() for p in flow.parameters()],
    }))
""")


def started(script: str = SCRIPT, **environment: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", script],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(process: "subprocess.Popen[str]") -> str:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert err == ""
    return out.strip()


def output(**environment: str) -> Any:
    return json.loads(finished(started(**environment)))


@pytest.fixture
def numbers(capsys: pytest.CaptureFixture[str]) -> list[float]:
    """The script's numbers with the kernels, in this process."""
    exec(SCRIPT, {})
    found = json.loads(capsys.readouterr().out)
    assert found["native"]
    assert found["warnings"] == []
    return list(found["numbers"])


@pytest.mark.slow
def test_threads_that_start_at_once_load_the_kernels(numbers: list[float]) -> None:
    found = output()
    assert found["native"]
    assert found["warnings"] == []
    assert found["numbers"] == pytest.approx(numbers, rel=1e-12)


def test_the_environment_switches_kernels_off(numbers: list[float], tmp_path: Path) -> None:
    found = output(PUSHFORWARD_NATIVE="0", PUSHFORWARD_CACHE=str(tmp_path))
    assert not found["native"]
    assert found["warnings"] == []
    assert found["numbers"] == pytest.approx(numbers, rel=1e-9)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        pytest.param({"PATH": "", "CC": ""}, "no C compiler found", marks=pytest.mark.slow),
        ({"CC": "/bin/false"}, "/bin/false"),
    ],
)
def test_a_missing_compiler_is_one_warning(
    environment: dict[str, str], reason: str, numbers: list[float], tmp_path: Path
) -> None:
    found = output(PUSHFORWARD_CACHE=str(tmp_path), **environment)
    assert not found["native"]
    assert len(found["warnings"]) == 1
    assert reason in found["warnings"][0]
    assert found["numbers"] == pytest.approx(numbers, rel=1e-9)


@pytest.mark.slow
def test_two_processes_build_at_once(tmp_path: Path) -> None:
    script = "from pushforward.flows.kernels import native; print(native.library() is not None)"
    processes = [started(script, PUSHFORWARD_CACHE=str(tmp_path)) for _ in range(2)]
    assert [finished(process) for process in processes] == ["True", "True"]
    (folder,) = tmp_path.iterdir()
    assert {p.suffix for p in folder.iterdir()} == {".so"}  # no temporary files are left


@pytest.mark.slow
def test_a_compiler_without_the_tuning_flags(numbers: list[float], tmp_path: Path) -> None:
    """The last attempt builds with shorter vectors, other tiles and no OpenMP."""
    compiler = tmp_path / "plain"
    compiler.write_text(
        '#!/bin/sh\nfor a; do case $a in -m*|-fopenmp|-fvect*) echo unknown >&2; exit 1;; esac; done\nexec gcc "$@"\n'
    )
    compiler.chmod(0o755)
    found = output(PUSHFORWARD_CACHE=str(tmp_path), CC=str(compiler))
    assert found["native"]
    assert found["warnings"] == []
    assert found["numbers"] == pytest.approx(numbers, rel=1e-9)
