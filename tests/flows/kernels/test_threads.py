"""Several threads use the kernels at once."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from pushforward.flows import Flow, build
from tests.fixtures.kernels import DOUBLE, Perturb, autoregressive


def test_backward_pass_in_another_thread(perturb: Perturb) -> None:
    layer = perturb(autoregressive(3))
    points = torch.randn(70, 3, dtype=DOUBLE, requires_grad=True)
    expected = torch.autograd.grad(layer.inverse(points)[0].sum(), points)
    value = layer.inverse(points)[0].sum()
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(torch.autograd.grad, value, points).result()
    assert_close(found, expected, rtol=0, atol=0)


def test_threads_evaluate_one_flow_at_once(perturb: Perturb) -> None:
    flow: Flow = perturb(build("nsf-ar", features=3, context=2, layers=2, hidden=16, bins=4).double(), 0.2)
    batches = [(torch.randn(n, 3, dtype=DOUBLE), torch.randn(n, 2, dtype=DOUBLE)) for n in (300, 70, 129, 300)]

    def work(batch: tuple[Tensor, Tensor]) -> list[Tensor]:
        found: list[Tensor] = []
        for _ in range(10):
            x = batch[0].clone().requires_grad_()
            log_prob = flow.log_prob(x, batch[1])
            (gradient,) = torch.autograd.grad(log_prob.sum(), x)
            y, log_det = flow.bijection.inverse(x, batch[1])
            (gradient_back,) = torch.autograd.grad(y.sum() + log_det.sum(), x)
            found += [log_prob, gradient, y, gradient_back]
        return found

    expected = [work(batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(work, batches))
    assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
def test_ended_threads_free_their_memory(perturb: Perturb) -> None:
    layer = perturb(autoregressive(20, hidden=256)).float()
    points = torch.randn(64, 20)

    def work() -> None:
        with torch.no_grad():
            layer(points)

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    for count in (20, 100):
        before = resident()
        for _ in range(count):
            thread = threading.Thread(target=work)
            thread.start()
            thread.join()
    assert resident() - before < 50e6  # a leak of the arenas would be 1.9 MB per thread
