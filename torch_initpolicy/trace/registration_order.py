"""The fallback where no forward pass can be recorded: the order of registration.

What follows a layer in `model.modules()` is taken for what it meets. Every fact from here says so.
"""

from collections.abc import Mapping, Sequence

from torch import nn

from torch_initpolicy.sites import Site
from torch_initpolicy.tensors.gains import Activation
from torch_initpolicy.trace.facts import Facts

_ACTIVATIONS: Mapping[type[nn.Module], str] = {
    nn.ReLU: "relu", nn.ReLU6: "relu6", nn.LeakyReLU: "leaky_relu", nn.PReLU: "prelu",
    nn.RReLU: "rrelu", nn.ELU: "elu", nn.CELU: "celu", nn.SELU: "selu", nn.GELU: "gelu",
    nn.SiLU: "silu", nn.Mish: "mish", nn.Hardswish: "hardswish", nn.Hardsigmoid: "hardsigmoid",
    nn.Hardtanh: "hardtanh", nn.Tanh: "tanh", nn.Sigmoid: "sigmoid", nn.Softplus: "softplus",
    nn.Softsign: "softsign", nn.Softmax: "softmax", nn.LogSoftmax: "log_softmax",
    nn.LogSigmoid: "logsigmoid", nn.Tanhshrink: "tanhshrink", nn.Softshrink: "softshrink",
    nn.Hardshrink: "hardshrink", nn.Threshold: "threshold", nn.GLU: "sigmoid",
    nn.MultiheadAttention: "softmax",
}  # fmt: skip
"""Activation modules, by their class."""


def ordered_facts(model: nn.Module, sites: Sequence[Site]) -> dict[str, Facts]:
    """Say what the order of registration suggests about each site."""
    following: dict[int, Activation | None] = {}
    ahead: Activation | None = None
    weighers = {id(site.owner) for site in sites if site.role in ("weight", "recurrent")}
    for module in reversed(list(model.modules())):
        activation = _activation(module)
        following[id(module)] = activation if id(module) in weighers and activation else ahead
        if activation is not None:
            ahead = activation
        elif id(module) in weighers:
            ahead = None
    return {
        site.name: Facts(
            role=site.role, axes=site.axes, meets=following.get(id(site.owner)), evidence="order"
        )
        for site in sites
    }


def _activation(module: nn.Module) -> Activation | None:
    name = next((_ACTIVATIONS[kind] for kind in type(module).__mro__ if kind in _ACTIVATIONS), None)
    if name == "leaky_relu":
        return Activation(name, float(module.negative_slope))  # type: ignore[arg-type]
    return None if name is None else Activation(name)
