"""Student-t, Laplace and logistic bases: densities against SciPy."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch.testing import assert_close

from pushforward.flows import (
    Laplace,
    Logistic,
    StudentT,
)

F64 = torch.float64


def test_student_t() -> None:
    base = StudentT(2, degrees=2.5).double()
    base.initialize(torch.tensor([1.0, -1.0], dtype=F64), torch.tensor([4.0, 9.0], dtype=F64).diag())
    z = torch.tensor([[0.3, -7.0], [1e6, 1e-6], [1.0, -1.0]], dtype=F64)
    deviation = math.sqrt(2.5 / 0.5)
    exact = stats.t.logpdf(z.numpy(), 2.5, loc=[1.0, -1.0], scale=[2 / deviation, 3 / deviation]).sum(-1)
    np.testing.assert_allclose(base.log_prob(z).detach().numpy(), exact, rtol=1e-7)  # the degrees must be float64 too


def test_student_t_with_many_degrees_is_accurate() -> None:
    z = torch.tensor([[-3.0], [0.0], [1e-3], [30.0]], dtype=F64)
    for degrees in (59.0, 61.0, 1e3, 1e6):
        base = StudentT(1, degrees=degrees).double()
        exact = stats.t.logpdf(z.numpy(), float(base.degrees.detach())).sum(-1)
        np.testing.assert_allclose(base.log_prob(z).detach().numpy(), exact, rtol=1e-9)


@pytest.mark.parametrize("degrees", [0.51, 2.0, 29.0, 59.9, 60.1, 1e4, 1e7])
def test_student_t_in_float32_agrees_with_float64(degrees: float) -> None:
    z = torch.tensor([-1e30, -1e4, -3.0, 0.0, 1e-3, 30.0])[:, None].requires_grad_()
    base = StudentT(1, degrees=degrees)
    found = base.log_prob(z)
    found.sum().backward()
    assert z.grad is not None
    assert bool(z.grad.isfinite().all())
    assert base.raw_degrees.grad is not None
    assert bool(base.raw_degrees.grad.isfinite().all())
    exact = stats.t.logpdf(z.detach().double().numpy(), base.double().degrees.item()).sum(-1)
    np.testing.assert_allclose(found.detach().numpy(), exact, rtol=2e-5, atol=2e-6)


def test_laplace_and_logistic() -> None:
    z = torch.tensor([[0.3, -7.0], [-80.0, 300.0], [1.0, 0.0]], dtype=F64)
    laplace, logistic = Laplace(2).double(), Logistic(2).double()
    np.testing.assert_allclose(laplace.log_prob(z).detach(), stats.laplace.logpdf(z.numpy()).sum(-1), rtol=1e-12)
    np.testing.assert_allclose(logistic.log_prob(z).detach(), stats.logistic.logpdf(z.numpy()).sum(-1), rtol=1e-12)
    for base in (Laplace(1), Logistic(1)):
        points = torch.tensor([[-1e4], [1e4]], requires_grad=True)
        base.log_prob(points).sum().backward()
        assert points.grad is not None
        assert_close(points.grad, torch.tensor([[1.0], [-1.0]]))
