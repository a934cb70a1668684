"""Sites and facts made by hand, so that policies are tested without a trace."""

from dataclasses import replace

import torch
from torch import nn

from torch_initpolicy.sites import Site
from torch_initpolicy.tensors.layers import axes_of, padding_of, role_of
from torch_initpolicy.trace.facts import Facts


def site(owner: nn.Module, attribute: str = "weight", prefix: str = "", **changes: object) -> Site:
    """Describe one parameter of a layer, called `prefix.attribute`."""
    parameter = owner.get_parameter(attribute)
    name = f"{prefix}.{attribute}" if prefix else attribute
    described = Site(
        name=name,
        names=(name,),
        owner=owner,
        attribute=attribute,
        shape=tuple(parameter.shape),
        dtype=parameter.dtype,
        device=torch.device("cpu"),
        requires_grad=True,
        parameters=(parameter,),
        role=role_of(owner, attribute),
        axes=axes_of(owner, attribute),
        padding=padding_of(owner, attribute),
    )
    return replace(described, **changes)


def facts(of: Site, **changes: object) -> Facts:
    """Say about a site what its owner's type says, and something more."""
    return replace(Facts(of.role, of.axes), **changes)


class Layouts(nn.Module):
    """Each way to store a matrix from width to width, between an input and a head."""

    def __init__(self, width):
        super().__init__()
        self.stem = nn.Conv1d(3, width, 3, padding=1)
        self.plain = nn.Conv1d(width, width, 3, padding=1)
        self.grouped = nn.Conv1d(width, width, 1, groups=4)
        self.depthwise = nn.Conv1d(width, width, 3, padding=1, groups=width)
        self.transposed = nn.ConvTranspose1d(width, 2 * width, 1)
        self.norm = nn.LayerNorm(2 * width)
        self.packed = nn.Linear(2 * width, 3 * width)
        self.by_right = nn.Parameter(torch.randn(width, width))
        self.experts = nn.Parameter(torch.randn(4, width, width))
        self.squeeze = nn.Linear(width, 5)
        self.widen = nn.Linear(5, width)
        self.gamma = nn.Parameter(torch.ones(width))
        self.head = nn.Linear(width, 7)
        self.example_input_array = torch.randn(4, 3, 8)

    def forward(self, x):
        """Go through all of them."""
        x = self.plain(torch.relu(self.stem(x)))
        x = self.depthwise(self.grouped(torch.relu(x)))
        q, k, v = self.packed(self.norm(self.transposed(x).mT)).chunk(3, dim=-1)
        x = nn.functional.scaled_dot_product_attention(q, k, v, scale=1 / q.shape[-1])
        x = torch.bmm(torch.relu(x @ self.by_right), self.experts)
        return self.head(self.gamma * self.widen(torch.relu(self.squeeze(x))).mean(1))


class Residual(nn.Module):
    """A tower of residual branches."""

    def __init__(self, width, depth):
        super().__init__()
        self.stem = nn.Linear(6, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(),
                          nn.Linear(2 * width, width))
            for _ in range(depth)
        )  # fmt: skip
        self.head = nn.Linear(width, 3)
        self.example_input_array = torch.randn(2, 6)

    def forward(self, x):
        """Add the branches."""
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


def tower(width, depth):
    """Layers in a row, numbered in names."""
    layers = [nn.Linear(6, width)]
    for _ in range(depth - 1):
        layers += [nn.ReLU(), nn.Linear(width, width)]
    return nn.Sequential(*layers, nn.ReLU(), nn.Linear(width, 3))


def multiplied(plan, name):
    """Return the multipliers of a parameter: of the std, of Adam's learning rate, of SGD's."""
    found = plan[name].multipliers
    return found.std, found.lr("adam"), found.lr("sgd")
