"""Axes of raw parameters come from the operator: compared with connections counted by autograd."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torch_initpolicy.sites import sites
from torch_initpolicy.tensors.axes import fans
from torch_initpolicy.trace.read import read

Use = Callable[[Tensor, Tensor], Tensor]


class Raw(nn.Module):
    """One raw parameter, used in some way."""

    def __init__(self, shape: tuple[int, ...], use: Use) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(shape, dtype=torch.float64) + 0.5)
        self.use = use

    def forward(self, x: Tensor) -> Tensor:
        return self.use(x, self.weight)


def outer_reshape(x: Tensor, w: Tensor) -> Tensor:
    """Use a matrix that is stored with its outputs split into heads."""
    return x @ w.reshape(5, 6)


CASES: dict[str, tuple[tuple[int, ...], tuple[int, ...], Use]] = {
    "matmul": ((3, 5), (5, 6), torch.matmul),
    "matmul_left": ((5, 3), (6, 5), lambda x, w: w @ x),
    "transposed": ((3, 5), (6, 5), lambda x, w: x @ w.t()),
    "mT": ((3, 5), (6, 5), lambda x, w: x @ w.mT),
    "permuted_twice": ((3, 5), (5, 6), lambda x, w: F.linear(x, w.permute(1, 0))),
    "addmm": ((3, 5), (5, 6), lambda x, w: torch.addmm(torch.zeros_like(x[:1, :1]), x, w)),
    "linear_functional": ((3, 5), (6, 5), F.linear),
    "heads": ((3, 5), (5, 2, 3), outer_reshape),
    "einsum": ((3, 5), (5, 6), lambda x, w: torch.einsum("bi,io->bo", x, w)),
    "einsum_heads": ((3, 5), (2, 3, 5), lambda x, w: torch.einsum("bi,hdi->bhd", x, w)),
    "einsum_implicit": ((3, 5), (5, 6), lambda x, w: torch.einsum("ai,ib", x, w)),
    "tensordot": ((3, 2, 5), (2, 5, 6), lambda x, w: torch.tensordot(x, w, 2)),
    "tensordot_axes": ((3, 5), (6, 5), lambda x, w: torch.tensordot(x, w, ([1], [1]))),
    "stacked": ((4, 3, 5), (4, 5, 6), torch.bmm),
    "stacked_einsum": ((4, 3, 5), (4, 5, 6), lambda x, w: torch.einsum("ebi,eio->ebo", x, w)),
    "scaled": ((3, 5), (6, 5), lambda x, w: F.linear(x, w * 0.5 / 3)),
    "standardised": (
        (3, 5), (6, 5), lambda x, w: F.linear(x, w / w.norm(dim=1, keepdim=True)),
    ),
    "squeezed": ((3, 5), (6, 5, 1, 1), lambda x, w: F.linear(x, w.squeeze(-1).squeeze(-1))),
    "convolved": ((1, 4, 9), (6, 4, 3), F.conv1d),
    "grouped": ((1, 4, 9), (6, 2, 3), lambda x, w: F.conv1d(x, w, groups=2)),
    "flipped": ((1, 4, 9), (4, 6, 3), lambda x, w: F.conv1d(x, w.transpose(0, 1))),
    "upsampled": ((1, 4, 9), (4, 6, 3), F.conv_transpose1d),
}  # fmt: skip
"""Shapes of the input and of the parameter, and how it is used. The outputs of stacked copies are
counted within one copy, as the axes have it."""


def middle(tensor: Tensor) -> tuple[int, ...]:
    """Return the index in the middle of every dimension, away from the rims of a convolution."""
    return tuple(size // 2 for size in tensor.shape)


def count_in(model: Raw, x: Tensor) -> int:
    """Count the elements of the weight that reach the output in the middle."""
    output = model(x)
    return int(torch.autograd.grad(output[middle(output)], model.weight)[0].count_nonzero())


def count_out(model: Raw, x: Tensor) -> int:
    """Count the outputs that the input in the middle reaches."""
    jacobian = torch.autograd.functional.jacobian(model, x)
    return int(jacobian[(..., *middle(x))].count_nonzero())


@pytest.mark.parametrize("name", CASES)
def test_fans_of_raw_parameters_are_counted_connections(name):
    """Whatever way a parameter takes to its operator, its fans are those that autograd counts."""
    x_shape, shape, use = CASES[name]
    model = Raw(shape, use)
    x = torch.rand(x_shape, dtype=torch.float64) + 0.5
    found = read(model, sites(model), x).facts["weight"]
    assert found.axes is not None
    counted = fans(shape, found.axes)

    assert (count_in(model, x), count_out(model, x)) == (counted.fan_in, counted.fan_out)


def test_rows_that_a_table_repeats_are_no_weight():
    """Positions that share a row of a table: what is looked up is contracted, and is a table."""
    rows = torch.tensor([0, 1, 1, 2, 0, 2])
    model = Raw((3, 5), lambda x, w: F.linear(x, w[rows]))
    found = read(model, sites(model), torch.zeros(3, 5, dtype=torch.float64)).facts["weight"]

    assert (found.role, found.axes) == ("table", None)


def test_distances_between_rows_are_no_rows():
    """Where nobody knows where the elements go, there are no axes; the role is still known."""
    model = Raw((6, 5), lambda x, w: F.linear(x, torch.cdist(w, w)[:, :5]))
    found = read(model, sites(model), torch.zeros(3, 5, dtype=torch.float64)).facts["weight"]

    assert found.axes is None or found.axes.counted is not None
