"""A process that has computed with several threads forks, and its child uses a flow."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

_PROGRAM = """
import os, signal, sys, threading, time
import torch
from pushforward.flows import build
from pushforward.flows.kernels import native

torch.set_num_threads(2)
flow = build("nsf-ar", 6, layers=2, hidden=16)
x = torch.randn(4096, 6)

def value():
    flow.zero_grad()
    loss = flow(x).sum()
    loss.backward()
    flow.sample(100)
    return float(loss)

def in_torch():
    with native.disabled():
        return value()

run = in_torch if sys.argv[1] == "torch" else value
expected = value() if sys.argv[1] == "kernels" else in_torch()
if sys.argv[1] == "building":  # at the moment of the fork another thread builds the kernels, and holds a lock
    threading.Thread(target=native.library, daemon=True).start()
    time.sleep(0.3)
child = os.fork()
if child == 0:
    same = abs(run() / expected - 1.0) < 1e-5
    os._exit(0 if same and torch.get_num_threads() == 1 else 2)
begin, done = time.monotonic(), 0
while not done and time.monotonic() - begin < 20.0:
    done, status = os.waitpid(child, os.WNOHANG)
    time.sleep(0.01)
if not done:
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
print("hangs" if not done else os.waitstatus_to_exitcode(status), torch.get_num_threads())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="OpenMP of gcc")
@pytest.mark.parametrize("engine", ["kernels", "torch", "building"])
def test_a_forked_child_computes_with_one_thread(engine: str, tmp_path: Path) -> None:
    """OpenMP's threads do not survive a fork; a child that calls on them waits for ever."""
    environment = dict(os.environ)
    if engine == "building":  # a compiler that takes a while, and fails
        compiler = tmp_path / "compiler"
        compiler.write_text("#!/bin/sh\nsleep 0.2\nexit 1\n")
        compiler.chmod(0o755)
        environment |= {"CC": str(compiler), "PUSHFORWARD_CACHE": str(tmp_path)}
    command = [sys.executable, "-W", "ignore", "-c", _PROGRAM, engine]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, env=environment)
    assert done.stdout.split() == ["0", "2"], done.stderr
