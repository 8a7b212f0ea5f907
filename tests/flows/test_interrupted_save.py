"""A process that replaces a model and is killed, at any step: the old or the new model can be loaded."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pushforward.flows import Flow, build, load, save

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

# Saves a model in a child process for each step, and kills it there; the steps are all operations on files in the
# folder, and the middle of each write. Prints what can be loaded after each, from the first step to the end.
_PROGRAM = """
import json, os, shutil, signal, sys
from pathlib import Path
import torch
from pushforward.flows import build, load, save

torch.set_num_threads(1)
before, work = Path(sys.argv[1]), Path(sys.argv[2])
left = 0

def step():
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

def audit(event, arguments):
    if event in ("open", "os.rename", "os.remove") and str(arguments[0]).startswith(str(work)):
        step()

sys.addaudithook(audit)
write_bytes = Path.write_bytes

def in_two_parts(path, content):
    half = len(content) // 2
    with open(path, "wb", buffering=0) as file:
        file.write(content[:half])
        step()
        file.write(content[half:])

Path.write_bytes = in_two_parts

def scale(model):
    return float(next(model.parameters()).detach().flatten()[0])

def made(value):
    model = build("realnvp", 2, layers=2, hidden=4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(value)
    return model

new, newer = made(2.0), made(3.0)
found, number, code = [], 0, None
while code != 0:
    number += 1
    shutil.rmtree(work, ignore_errors=True)
    if before.exists():
        shutil.copytree(before, work)
    child = os.fork()
    if child == 0:
        left = number
        save(new, work)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    names = sorted(path.name for path in work.iterdir()) if work.exists() else []
    try:
        loaded = scale(load(work))
    except RuntimeError as error:
        loaded = str(error)
    # Another process is killed in the same step, after which a third one ends as it should.
    child = os.fork()
    if child == 0:
        left = number
        save(newer, work)
        os._exit(0)
    os.waitpid(child, 0)
    try:
        second = scale(load(work))
    except RuntimeError as error:
        second = str(error)
    save(newer, work)
    found.append([code, names, loaded, second, scale(load(work)), sorted(path.name for path in work.iterdir())])
print(json.dumps(found))
"""


def interrupted(before: Path, work: Path) -> list[list[object]]:
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, str(before), str(work)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    found: list[list[object]] = json.loads(done.stdout)
    return found


@pytest.fixture
def old(tmp_path: Path) -> Path:
    model = build("realnvp", 2, layers=2, hidden=4)
    assert isinstance(model, Flow)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
    save(model, tmp_path / "old")
    return tmp_path / "old"


def test_a_kill_at_any_step_leaves_the_old_or_the_new_model(old: Path, tmp_path: Path) -> None:
    found = interrupted(old, tmp_path / "work")
    codes, names, loaded, second, last, left = zip(*found, strict=True)
    assert len(found) > 5, "the steps were not seen"
    assert codes == (-9,) * (len(found) - 1) + (0,)
    assert list(loaded) == sorted(loaded)  # first the old model, then the new one
    assert set(loaded) == {1.0, 2.0}
    assert 2.0 in loaded[:-1], "a kill after the new model counts"
    assert set(second) <= {1.0, 2.0, 3.0}
    assert set(last) == {3.0}
    # Nothing is left of the killed processes, and a save that ends has the two files.
    assert names[-1] == ["config.json", "model.safetensors"]
    visible = {tuple(name for name in files if not name.startswith(".")) for files in left}
    assert visible == {("config.json", "model.safetensors")}


def test_a_kill_during_the_first_save_leaves_no_model_or_the_whole_one(tmp_path: Path) -> None:
    found = interrupted(tmp_path / "none", tmp_path / "work")
    for _, _, loaded, second, last, _ in found:
        assert loaded == 2.0 or "config.json: cannot be read: No such file or directory" in str(loaded)
        assert second in (2.0, 3.0) or "config.json: cannot be read: No such file or directory" in str(second)
        assert last == 3.0


def test_the_folder_of_a_killed_save_keeps_its_model_where_it_is_copied(old: Path, tmp_path: Path) -> None:
    """The weights may have another name then, which is not a hidden one."""
    new = build("realnvp", 2, layers=2, hidden=4)
    assert isinstance(new, Flow)
    save(new, tmp_path / "new")
    digest = json.loads((tmp_path / "new" / "config.json").read_text())["weights_sha256"]
    # As it is after a kill between the last two steps: the new description, with the old weights in their place.
    (tmp_path / "new" / "model.safetensors").rename(tmp_path / "new" / f"model.safetensors.{digest[:16]}")
    (tmp_path / "new" / "model.safetensors").write_bytes((old / "model.safetensors").read_bytes())
    same = load(tmp_path / "new")
    for name, value in new.state_dict().items():
        assert torch.equal(same.state_dict()[name], value)
