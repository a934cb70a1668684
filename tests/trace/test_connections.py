"""Axes of raw parameters come from the operator: compared with connections counted by autograd."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torch_initpolicy.sites import sites
from torch_initpolicy.tensors.axes import fans
from torch_initpolicy.trace.operators import OPS, OpRole
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
    "images": ((1, 4, 9, 9), (6, 4, 3, 3), F.conv2d),
    "volumes": ((1, 2, 7, 7, 7), (3, 2, 3, 3, 3), F.conv3d),
    "upsampled_images": ((1, 4, 7, 7), (4, 6, 3, 3), F.conv_transpose2d),
    "upsampled_volumes": ((1, 2, 5, 5, 5), (2, 3, 3, 3, 3), F.conv_transpose3d),
    "one_matrix": ((3, 5), (5, 6), torch.mm),
    "chained": ((3, 5), (5, 6), torch.chain_matmul),
    "vector": ((5,), (6, 5), lambda x, w: torch.mv(w, x)),
    "inner": ((3, 5), (6, 5), torch.inner),
    "addmv": ((5,), (6, 5), lambda x, w: torch.addmv(x.new_zeros(6), w, x)),
    "baddbmm": ((4, 3, 5), (4, 5, 6), lambda x, w: torch.baddbmm(x[:, :1, :1] * 0, x, w)),
    "addbmm": ((4, 3, 5), (4, 5, 6), lambda x, w: torch.addbmm(x[0, :1, :1] * 0, x, w)),
    "one_number": ((5,), (5,), lambda x, w: torch.dot(x, w)[None]),
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


SPARSE = {
    "sparse_mm": torch.sparse.mm,
    "smm": lambda x, w: torch.smm(x, w.t()),
    "sparse_addmm": lambda x, w: torch.sparse.addmm(w.new_zeros(3, 6), x, w),
}

ELSEWHERE = {"bilinear", "deform_conv2d", "einsum", "grouped_mm", *SPARSE}
"""Operators that take two signals or more, numbers of another kind, or that are cases elsewhere."""


@pytest.mark.parametrize("op", SPARSE)
def test_sparse_signals(op):
    """A weight that is applied to a sparse signal has the fans of a dense one."""
    shape = (6, 5) if op == "smm" else (5, 6)
    model = Raw(shape, SPARSE[op])
    found = read(model, sites(model), torch.ones(3, 5, dtype=torch.float64).to_sparse())

    assert op in {node.op for node in found.flow.uses.graph.nodes}
    assert tuple(fans(shape, found.facts["weight"].axes)) == (5, 6)


def test_every_operator_that_applies_weights_is_tried():
    """The cases call each operator of the table that sums over products with a weight."""
    called = set()
    for x_shape, shape, use in CASES.values():
        model = Raw(shape, use)
        reading = read(model, sites(model), torch.ones(x_shape, dtype=torch.float64))
        called |= {node.op for node in reading.flow.uses.graph.nodes}
    applies = {op for op, it in OPS.items() if it.role in (OpRole.WEIGHS, OpRole.CONTRACTS)}

    assert applies - called <= ELSEWHERE


class Adapted(nn.Module):
    """A matrix and an adapter of two factors, in one expression."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.b, self.a = (nn.Parameter(torch.ones(s)) for s in ((4, 6), (4, 2), (2, 6)))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.w + self.b @ self.a).relu()


def test_a_matrix_and_its_adapter():
    """In `W + B @ A` the matrix has the fans of the weight in use, and the factors share them."""
    model = Adapted()
    found = read(model, sites(model), torch.zeros(3, 6)).facts
    counted = {name: fans(getattr(model, name).shape, fact.axes) for name, fact in found.items()}

    assert {fact.role for fact in found.values()} == {"weight"}
    assert {name: tuple(both) for name, both in counted.items()} == {
        "w": (6, 4), "b": (2, 4), "a": (6, 2),
    }  # fmt: skip
    assert found["w"].composition is None
    assert found["a"].composition == found["b"].composition
    assert (found["a"].composition.fan_in, found["a"].composition.fan_out) == (6, 4)


def test_rows_that_a_table_repeats_are_no_weight():
    """Positions that share a row of a table: what is looked up is contracted, and is a table."""
    rows = torch.tensor([0, 1, 1, 2, 0, 2])
    model = Raw((3, 5), lambda x, w: F.linear(x, w[rows]))
    found = read(model, sites(model), torch.zeros(3, 5, dtype=torch.float64)).facts["weight"]

    assert (found.role, found.axes) == ("table", None)


NOT_LINEAR = {
    "distances": ((6, 5), lambda x, w: F.linear(x, torch.cdist(w, w)[:, :5])),
    "exponential": ((5, 5), lambda x, w: x @ torch.linalg.matrix_exp(w)),
    "inverse": ((5, 5), lambda x, w: x @ torch.linalg.inv(w)),
    "reflections": (
        (5, 3), lambda x, w: x @ torch.linalg.householder_product(w, w.new_ones(3)),
    ),
    "rotation": (
        (5, 5), lambda x, w: x @ torch.linalg.solve(torch.eye(5) + w - w.T, torch.eye(5) - w + w.T),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("shape", "use"), NOT_LINEAR.values(), ids=NOT_LINEAR)
@pytest.mark.filterwarnings("ignore:.*operators of unknown role")
def test_functions_of_whole_matrices_say_nothing_of_fans(shape, use):
    """How large a function of a matrix is, its numbers do not say: no axes, and no role."""
    model = Raw(shape, use).float()
    found = read(model, sites(model), torch.zeros(3, 5)).facts["weight"]

    assert (found.role, found.axes) == ("unknown", None)
