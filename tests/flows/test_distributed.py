"""``DistributedDataParallel`` wraps a flow: two processes have the mean gradient of one, by the same kernels."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from pushforward.flows import Flow, build

SCRIPT = textwrap.dedent("""
    import sys
    import torch
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel
    rank, folder = int(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    flow = torch.load(f"{folder}/flow.pt", weights_only=False)
    rows = torch.load(f"{folder}/rows.pt")[rank::2]
    wrapped = DistributedDataParallel(flow)
    loss = -wrapped(rows).mean()
    todo, kernels = [loss.grad_fn], set()
    while todo:
        node = todo.pop()
        if node is not None:
            kernels.add(type(node).__name__)
            todo += [n for n, _ in node.next_functions]
    assert "_OperationBackward" in kernels
    loss.backward()
    if rank == 0:
        torch.save([p.grad for p in flow.parameters()], f"{folder}/gradients.pt")
    dist.destroy_process_group()
""")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["realnvp", "nsf-ar"])
def test_two_processes_have_the_gradient_of_one(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    flow: Flow = build(name, features=4, layers=2, hidden=16).double()
    rows = torch.randn(100, 4, dtype=torch.float64)
    flow(rows)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    torch.save(flow, tmp_path / "flow.pt")
    torch.save(rows, tmp_path / "rows.pt")
    processes = [subprocess.Popen([sys.executable, "-c", SCRIPT, str(rank), str(tmp_path)]) for rank in range(2)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    gradients = torch.load(tmp_path / "gradients.pt")
    assert_close(gradients, list(torch.autograd.grad(-flow(rows).mean(), list(flow.parameters()))))
