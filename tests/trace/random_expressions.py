"""Writes models at random: parameters that are moved about, joined and summed, then applied.

Every model is linear in its input and in each of its parameters, so that a connection is a pair of
an element and an input whose product reaches an output, and autograd can list all of them.
"""

import math
import random
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Shape = tuple[int, ...]
Build = Callable[[], Tensor]


class Use(NamedTuple):
    """A way to apply a weight.

    Attributes:
        x: Shape of the input.
        weight: Shape of the weight.
        apply: Applies it.
    """

    x: Shape
    weight: Shape
    apply: Callable[[Tensor, Tensor], Tensor]


USES: dict[str, Use] = {
    "linear": Use((4,), (6, 4), F.linear),
    "square": Use((4,), (4, 4), F.linear),
    "linear of tokens": Use((2, 4), (6, 4), F.linear),
    "x @ w": Use((4,), (4, 6), torch.matmul),
    "w @ x": Use((4, 2), (6, 4), lambda x, w: w @ x),
    "mv": Use((4,), (6, 4), lambda x, w: w.mv(x)),
    "addmm": Use((2, 4), (4, 6), lambda x, w: torch.addmm(torch.zeros(2, 6).double(), x, w)),
    "bmm": Use((3, 2, 4), (3, 4, 2), torch.bmm),
    "baddbmm": Use((3, 1, 4), (3, 4, 2), lambda x, w: torch.zeros(3, 1, 2).double().baddbmm(x, w)),
    "inner": Use((4,), (6, 4), torch.inner),
    "dot": Use((6,), (6,), torch.dot),
    "einsum": Use((2, 4), (6, 4), lambda x, w: torch.einsum("ti,oi->to", x, w)),
    "einsum of heads": Use((2, 4), (4, 2, 3), lambda x, w: torch.einsum("ti,ihd->thd", x, w)),
    "einsum to heads": Use((2, 2, 3), (2, 3, 4), lambda x, w: torch.einsum("thd,hdo->to", x, w)),
    "einsum of experts": Use((3, 4), (3, 4, 2), lambda x, w: torch.einsum("ei,eio->eo", x, w)),
    "einsum with dots": Use((2, 4), (6, 4), lambda x, w: torch.einsum("...i,oi->...o", x, w)),
    "einsum of lists": Use((4,), (6, 4), lambda x, w: torch.einsum(x, [0], w, [1, 0], [1])),
    "einsum of three": Use(
        (4,), (6, 4), lambda x, w: torch.einsum("i,oi,po->p", x, w, torch.eye(6).double())
    ),
    "tensordot": Use((2, 2, 3), (2, 3, 4), lambda x, w: torch.tensordot(x, w, 2)),
    "multiply and sum": Use((1, 4), (6, 4), lambda x, w: (x * w).sum(-1)),
    "conv1d": Use((1, 4, 9), (3, 4, 3), F.conv1d),
    "conv1d, grouped": Use((1, 4, 9), (6, 2, 3), lambda x, w: F.conv1d(x, w, groups=2)),
    "conv2d": Use((1, 2, 7, 7), (3, 2, 2, 3), F.conv2d),
    "conv_transpose1d": Use((1, 4, 9), (4, 3, 3), F.conv_transpose1d),
    "conv_transpose1d, grouped": Use(
        (1, 4, 9), (4, 3, 2), lambda x, w: F.conv_transpose1d(x, w, groups=2)
    ),
}
"""Ways to apply a weight, by name."""


class Expression(nn.Module):
    """A model whose weight is made of several parameters.

    Args:
        seed: What is written is drawn by this alone.
        depth: How many steps lie between a parameter and its use, at most.
    """

    def __init__(self, seed: int, depth: int = 4) -> None:
        super().__init__()
        self.draw = random.Random(seed)
        self.name = self.draw.choice(sorted(USES))
        self.use = USES[self.name]
        self.steps: list[str] = []
        self.build = self.made(self.use.weight, self.draw.randint(0, depth))

    def forward(self, x: Tensor) -> Tensor:
        return self.use.apply(x, self.build())

    def __repr__(self) -> str:
        return f"{self.name}({', '.join(self.steps)})"

    def made(self, shape: Shape, depth: int) -> Build:
        """Return what builds a tensor of some shape."""
        steps = self.draw.sample(STEPS, len(STEPS)) if depth else []
        for step in steps:
            build = step(self, shape, depth - 1)
            if build is not None:
                self.steps.append(step.__name__)
                return build
        return self.parameter(shape)

    def parameter(self, shape: Shape) -> Build:
        """Add a parameter."""
        name = f"p{len(self._parameters)}"
        self.register_parameter(name, nn.Parameter(torch.rand(shape, dtype=torch.float64) + 0.5))
        return lambda: getattr(self, name)

    def buffer(self, tensor: Tensor) -> Build:
        """Add a constant: a buffer, or an attribute that is none."""
        name = f"c{len(vars(self))}{len(self._buffers)}"
        if self.draw.random() < 0.5:
            self.register_buffer(name, tensor)
        else:
            setattr(self, name, tensor)
        return lambda: getattr(self, name)

    def axis(self, shape: Shape, least: int = 1) -> int | None:
        """Choose an axis of some length, or nothing where there is none."""
        long = [axis for axis, size in enumerate(shape) if size >= least]
        return self.draw.choice(long) if long else None


def resized(shape: Shape, axis: int, size: int) -> Shape:
    """Return a shape with another length along one axis."""
    return (*shape[:axis], size, *shape[axis + 1 :])


def permuted(model: Expression, shape: Shape, depth: int) -> Build | None:
    """The axes in another order."""
    order = model.draw.sample(range(len(shape)), len(shape))
    inner = model.made(tuple(shape[axis] for axis in order), depth)
    back = sorted(range(len(shape)), key=order.__getitem__)
    return lambda: inner().permute(back)


def reshaped(model: Expression, shape: Shape, depth: int) -> Build | None:
    """Another shape, or one flat vector."""
    size = math.prod(shape)
    factors = [n for n in range(2, size) if size % n == 0]
    first = model.draw.choice(factors) if factors else size
    flat = model.draw.random() < 0.3
    inner = model.made((size,) if flat else (first, size // first), depth)
    return lambda: inner().reshape(shape)


def merged(model: Expression, shape: Shape, depth: int) -> Build | None:
    """Several matrices side by side in one."""
    if len(shape) < 3:
        return None
    inner = model.made((shape[0] * shape[1], *shape[2:]), depth)
    return lambda: inner().view(shape)


def sliced(model: Expression, shape: Shape, depth: int) -> Build | None:
    """A part of a longer axis."""
    axis, more = model.draw.randrange(len(shape)), model.draw.randint(1, 3)
    start = model.draw.randint(0, more)
    inner = model.made(resized(shape, axis, shape[axis] + more), depth)
    return lambda: inner().narrow(axis, start, shape[axis])


def strided(model: Expression, shape: Shape, depth: int) -> Build | None:
    """Every second of twice as many."""
    inner = model.made((*shape[:-1], shape[-1] * 2), depth)
    return lambda: inner()[..., ::2]


def selected(model: Expression, shape: Shape, depth: int) -> Build | None:
    """One of three."""
    axis, at = model.draw.randint(0, len(shape)), model.draw.randrange(3)
    inner = model.made((*shape[:axis], 3, *shape[axis:]), depth)
    return lambda: inner().select(axis, at)


def one_of_split(model: Expression, shape: Shape, depth: int) -> Build | None:
    """One of two pieces."""
    axis, at = model.draw.randrange(len(shape)), model.draw.randrange(2)
    sizes = [shape[axis]] * 2
    sizes[1 - at] = 2
    inner = model.made(resized(shape, axis, sum(sizes)), depth)
    return lambda: inner().split(sizes, axis)[at]


def joined(model: Expression, shape: Shape, depth: int) -> Build | None:
    """Two of unequal sizes, end to end."""
    axis = model.axis(shape, 2)
    if axis is None:
        return None
    first = model.draw.randint(1, shape[axis] - 1)
    sizes = (first, shape[axis] - first)
    parts = [model.made(resized(shape, axis, size), depth) for size in sizes]
    return lambda: torch.cat([part() for part in parts], axis)


def stacked(model: Expression, shape: Shape, depth: int) -> Build | None:
    """Several side by side on a new axis."""
    axis = model.draw.randrange(len(shape))
    if not 2 <= shape[axis] <= 3 or len(shape) < 2:
        return None
    rest = (*shape[:axis], *shape[axis + 1 :])
    parts = [model.made(rest, depth) for _ in range(shape[axis])]
    return lambda: torch.stack([part() for part in parts], axis)


def padded(model: Expression, shape: Shape, depth: int) -> Build | None:
    """A zero at one end of the last axis."""
    if shape[-1] < 2:
        return None
    inner = model.made((*shape[:-1], shape[-1] - 1), depth)
    sides = (1, 0) if model.draw.random() < 0.5 else (0, 1)
    return lambda: F.pad(inner(), sides)


def written(model: Expression, shape: Shape, depth: int) -> Build | None:
    """Written into zeros."""
    if shape[0] < 2:
        return None
    inner = model.made(resized(shape, 0, shape[0] - 1), depth)

    def build() -> Tensor:
        part = inner()
        whole = part.new_zeros(shape)
        whole[1:] = part
        return whole

    return build


def rolled(model: Expression, shape: Shape, depth: int) -> Build | None:
    """Moved on by one, around the end."""
    axis, inner = model.draw.randrange(len(shape)), model.made(shape, depth)
    return lambda: inner().roll(1, axis)


def flipped(model: Expression, shape: Shape, depth: int) -> Build | None:
    """From the back."""
    axis, inner = model.draw.randrange(len(shape)), model.made(shape, depth)
    return lambda: inner().flip(axis)


def reordered(model: Expression, shape: Shape, depth: int) -> Build | None:
    """Rows in another order, by a table of indices."""
    axis = model.draw.randrange(len(shape))
    order = model.draw.sample(range(shape[axis]), shape[axis])
    index, inner = model.buffer(torch.tensor(order)), model.made(shape, depth)
    return lambda: inner().index_select(axis, index())


def scattered(model: Expression, shape: Shape, depth: int) -> Build | None:
    """All elements in another order."""
    size = math.prod(shape)
    order = model.draw.sample(range(size), size)
    index, inner = model.buffer(torch.tensor(order)), model.made((size,), depth)
    return lambda: inner()[index()].view(shape)


def summed(model: Expression, shape: Shape, depth: int) -> Build | None:
    """The sum of two."""
    axis = model.draw.randint(0, len(shape))
    inner = model.made((*shape[:axis], 2, *shape[axis:]), depth)
    return lambda: inner().sum(axis)


def averaged(model: Expression, shape: Shape, depth: int) -> Build | None:
    """The mean of three."""
    inner = model.made((3, *shape), depth)
    return lambda: inner().mean(0)


def expanded(model: Expression, shape: Shape, depth: int) -> Build | None:
    """One for a whole axis."""
    axis = model.draw.randrange(len(shape))
    inner = model.made(resized(shape, axis, 1), depth)
    return lambda: inner().expand(shape)


def repeated(model: Expression, shape: Shape, depth: int) -> Build | None:
    """Each twice in a row."""
    axis = next((axis for axis, size in enumerate(shape) if size % 2 == 0), None)
    if axis is None:
        return None
    inner = model.made(resized(shape, axis, shape[axis] // 2), depth)
    return lambda: inner().repeat_interleave(2, axis)


def added(model: Expression, shape: Shape, depth: int) -> Build | None:
    """The sum of two parameters."""
    one, other = model.made(shape, depth), model.made(shape, depth)
    return lambda: one() + other()


def symmetric(model: Expression, shape: Shape, depth: int) -> Build | None:
    """The same parameter twice: a matrix and its transpose, or anything and its mirror image."""
    inner = model.made(shape, depth)
    if len(shape) > 1 and shape[-1] == shape[-2]:
        return lambda: inner() + inner().mT
    return lambda: inner() + inner().flip(-1)


def doubled(model: Expression, shape: Shape, depth: int) -> Build | None:
    """The same parameter twice, side by side."""
    if shape[0] % 2:
        return None
    inner = model.made(resized(shape, 0, shape[0] // 2), depth)

    def build() -> Tensor:
        half = inner()
        return torch.cat([half, half.flip(0)])

    return build


def scaled(model: Expression, shape: Shape, depth: int) -> Build | None:
    """Times a number."""
    inner = model.made(shape, depth)
    return lambda: -0.5 * inner() / 3


def masked(model: Expression, shape: Shape, depth: int) -> Build | None:
    """Times zeros and ones."""
    bits = torch.tensor([model.draw.random() < 0.7 for _ in range(math.prod(shape))])
    mask, inner = model.buffer(bits.view(shape).double()), model.made(shape, depth)
    return lambda: inner() * mask()


def filled(model: Expression, shape: Shape, depth: int) -> Build | None:
    """Zeros where a mask says so."""
    bits = torch.tensor([model.draw.random() < 0.3 for _ in range(math.prod(shape))])
    mask, inner = model.buffer(bits.view(shape)), model.made(shape, depth)
    return lambda: inner().masked_fill(mask(), 0.0)


def lower(model: Expression, shape: Shape, depth: int) -> Build | None:
    """The lower triangle."""
    if len(shape) < 2:
        return None
    inner = model.made(shape, depth)
    return lambda: inner().tril(1)


def on_diagonal(model: Expression, shape: Shape, depth: int) -> Build | None:
    """A block-diagonal matrix of two."""
    if len(shape) != 2 or min(shape) < 2:
        return None
    one = model.made((1, shape[1] // 2), depth)
    other = model.made((shape[0] - 1, shape[1] - shape[1] // 2), depth)
    return lambda: torch.block_diag(one(), other())


def kronecker(model: Expression, shape: Shape, depth: int) -> Build | None:
    """A Kronecker product with a constant."""
    if len(shape) != 2 or shape[0] % 2 or shape[1] % 2:
        return None
    inner = model.made((shape[0] // 2, shape[1] // 2), depth)
    constant = model.buffer(model.draw.choice([torch.eye(2), torch.ones(2, 2)]).double())
    return lambda: torch.kron(inner(), constant())


def convolved(model: Expression, shape: Shape, depth: int) -> Build | None:
    """Blurred along the last axis."""
    inner = model.made((*shape[:-1], shape[-1] + 1), depth)
    return lambda: inner().unfold(-1, 2, 1).sum(-1)


def through_complex(model: Expression, shape: Shape, depth: int) -> Build | None:
    """Through complex numbers and back."""
    inner = model.made(shape, depth)
    return lambda: torch.view_as_real(torch.complex(inner(), torch.zeros(shape).double()))[..., 0]


STEPS: list[Callable[[Expression, Shape, int], Build | None]] = [
    permuted, reshaped, merged, sliced, strided, selected, one_of_split, joined, stacked, padded,
    written, rolled, flipped, reordered, scattered, summed, averaged, expanded, repeated, added,
    symmetric, doubled, scaled, masked, filled, lower, on_diagonal, kronecker, convolved,
    through_complex,
]  # fmt: skip
"""Ways to make a tensor of some shape out of others; nothing where the shape does not allow it."""


def connections(model: Expression, x: Tensor) -> dict[str, Tensor]:
    """List the pairs of an element and an input that reach each output.

    Returns:
        By parameter, a table of how many elements join each input to each output, `(outputs,
        inputs)`.
    """
    basis = torch.eye(x.numel(), dtype=torch.float64).view(-1, *x.shape)
    found = {name: [] for name, _ in model.named_parameters()}
    for each in basis:
        output = model(each).flatten()
        for name, parameter in model.named_parameters():
            rows = torch.autograd.grad(
                output, parameter, torch.eye(len(output)).double(), retain_graph=True,
                is_grads_batched=True, allow_unused=True, materialize_grads=True,
            )[0]  # fmt: skip
            found[name].append((rows.flatten(1) != 0).sum(1))
    return {name: torch.stack(columns, 1).double() for name, columns in found.items()}


def counted(model: Expression, x: Tensor) -> dict[str, tuple[float, float] | None]:
    """Count the connections into one output and out of one input, as means over the reached ones.

    A convolution is looked at in the middle. Of what other parameters add, that counts which goes
    into outputs that the parameter reaches. None for a parameter that reaches nothing.
    """
    tables = connections(model, x)
    middle_in = _middle(x.shape, model)
    middle_out = _middle(model(x).shape, model)
    return {name: _fans(table, tables, middle_in, middle_out) for name, table in tables.items()}


def _middle(shape: Shape, model: Expression) -> Tensor:
    """Mark the positions in the middle of a convolution; all positions of anything else."""
    where = torch.ones(shape, dtype=torch.bool)
    if "conv" in model.name:
        where = torch.zeros(shape, dtype=torch.bool)
        where[(..., *(size // 2 for size in shape[2:]))] = True
    return where.flatten()


def _fans(
    mine: Tensor, tables: dict[str, Tensor], middle_in: Tensor, middle_out: Tensor
) -> tuple[float, float] | None:
    if not mine.any():
        return None
    total = torch.stack(list(tables.values())).sum(0)
    outputs, inputs = mine.any(1), mine.any(0)
    into = total.sum(1)[outputs & middle_out].mean()
    out_of = total[outputs].sum(0)[inputs & middle_in].mean()
    return into.item(), out_of.item()
