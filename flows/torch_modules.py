"""Modules of torch that saved files may hold, such as an embedding written as ``nn.Sequential``."""

from typing import Any

from torch import nn

TORCH_MODULES = {
    "torch-batch-norm": "torch.nn.modules.batchnorm:BatchNorm1d",
    "torch-dropout": "torch.nn.modules.dropout:Dropout",
    "torch-elu": "torch.nn.modules.activation:ELU",
    "torch-flatten": "torch.nn.modules.flatten:Flatten",
    "torch-gelu": "torch.nn.modules.activation:GELU",
    "torch-identity": "torch.nn.modules.linear:Identity",
    "torch-layer-norm": "torch.nn.modules.normalization:LayerNorm",
    "torch-leaky-relu": "torch.nn.modules.activation:LeakyReLU",
    "torch-linear": "torch.nn.modules.linear:Linear",
    "torch-relu": "torch.nn.modules.activation:ReLU",
    "torch-sequential": "torch.nn.modules.container:Sequential",
    "torch-sigmoid": "torch.nn.modules.activation:Sigmoid",
    "torch-silu": "torch.nn.modules.activation:SiLU",
    "torch-softplus": "torch.nn.modules.activation:Softplus",
    "torch-tanh": "torch.nn.modules.activation:Tanh",
}
"""Import path of each, by its name in saved files."""

POSITIONAL = "*"
"""Name of the positional arguments of a constructor among the others: the members of ``nn.Sequential``."""

_ARGUMENTS: dict[type[nn.Module], tuple[str, ...]] = {
    nn.BatchNorm1d: ("num_features", "eps", "momentum", "affine", "track_running_stats"),
    nn.Dropout: ("p",),
    nn.ELU: ("alpha",),
    nn.Flatten: ("start_dim", "end_dim"),
    nn.GELU: ("approximate",),
    nn.LayerNorm: ("normalized_shape", "eps", "elementwise_affine"),
    nn.LeakyReLU: ("negative_slope",),
    nn.Linear: ("in_features", "out_features"),
    nn.Softplus: ("beta", "threshold"),
}
_WITH_BIAS = (nn.Linear, nn.LayerNorm)


def torch_config(module: nn.Module) -> dict[str, Any]:
    """Return the arguments that rebuild one of these modules."""
    kind = type(module)
    if kind is nn.Sequential:
        return {POSITIONAL: list(module.children())}
    arguments = {name: getattr(module, name) for name in _ARGUMENTS.get(kind, ())}
    return arguments | ({"bias": module.bias is not None} if kind in _WITH_BIAS else {})
