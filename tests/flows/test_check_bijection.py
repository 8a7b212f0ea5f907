"""``check_bijection`` accepts a correct bijection and reports each kind of error."""

import pytest
import torch
from torch import Tensor

from pushforward.flows import Bijection, check_bijection


class Wrong(Bijection):
    """Multiplication by two, with one deliberate error."""

    def __init__(self, fault: str) -> None:
        super().__init__(2)
        self.fault = fault

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        scale = 4.0 if self.fault == "log_det" else 2.0
        log_det = x.new_full(x.shape[:-1], 2.0 * float(torch.tensor(scale).log()))
        if self.fault == "shape":
            log_det = log_det[:, None]
        if self.fault == "dtype":
            log_det = log_det.float()
        return 2.0 * x, log_det

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        log_det = -self.forward(z)[1]
        if self.fault == "sign":
            log_det = -log_det
        return (z / 3.0 if self.fault == "inverse" else z / 2.0), log_det


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("log_det", "log_det of forward against autograd"),
        ("shape", r"log_det of forward: expected shape \(16,\)"),
        ("dtype", "log_det of forward: expected torch.float64|log_det of forward: expected float64"),
        ("sign", "log_det of forward plus that of inverse"),
        ("inverse", "round trip"),
    ],
)
def test_each_error_is_found(fault: str, message: str) -> None:
    check_bijection(Wrong("none"), tolerance=1e-6)  # the log-determinant above is a float32 logarithm
    with pytest.raises(AssertionError, match=message):
        check_bijection(Wrong(fault), tolerance=1e-6)
