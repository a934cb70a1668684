"""Decides by training what becomes of a symmetric start. Shares nothing with the package.

A network is trained in float64 for 40 steps with each of three optimizers, on fresh inputs and
fresh random targets at every step. Slices of a parameter that were equal before (up to a sign or
to noise far below their size) and are equal after are *tied*, if they moved; slices or whole
parameters that never moved are *stuck*.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tests.symmetry.cases import Case

STEPS = 40
EQUAL = 1e-6  # of the movement, or of the size at the start

MakeOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]

OPTIMIZERS: dict[str, tuple[MakeOptimizer, float]] = {
    "sgd": (lambda parameters: torch.optim.SGD(parameters, lr=0.05), 1e-10),
    "momentum": (lambda parameters: torch.optim.SGD(parameters, lr=0.02, momentum=0.9), 1e-10),
    "adam": (lambda parameters: torch.optim.Adam(parameters, lr=0.003, eps=1e-6), 1e-5),
}
"""Each with the movement below which it is rounding; Adam magnifies gradients that are nothing
else."""


@dataclass(frozen=True)
class Fate:
    """What became of the parameters and modules of a network.

    Attributes:
        tied: Those with units that were equal before, are equal after, and have moved.
        stuck: Those that have not moved, or with units that were zero or a copy and have not.
        idle: Those with any unit that has not moved.
    """

    tied: frozenset[str]
    stuck: frozenset[str]
    idle: frozenset[str]


def fate(case: Case, *, perturb: Callable[[nn.Module], None] | None = None) -> Fate:
    """Train a case with every optimizer; tied or stuck is what is so with all of them."""
    fates = [_fate(case, perturb, *optimizer) for optimizer in OPTIMIZERS.values()]
    return Fate(
        tied=frozenset.intersection(*(one.tied for one in fates)),
        stuck=frozenset.intersection(*(one.stuck for one in fates)),
        idle=frozenset.intersection(*(one.idle for one in fates)),
    )


@torch.no_grad()
def generic(model: nn.Module) -> None:
    """Move every parameter of a network away from whatever was special about it."""
    for parameter in model.parameters():
        parameter.add_(0.3 * torch.randn_like(parameter))


def _fate(
    case: Case,
    perturb: Callable[[nn.Module], None] | None,
    make_optimizer: MakeOptimizer,
    rounding: float,
) -> Fate:
    torch.manual_seed(1)
    model = case.build().double()
    if perturb is not None:
        perturb(model)
    before = _weights(model)
    twins = list(_twins(model))
    _train(model, case, make_optimizer(p for p in model.parameters() if p.requires_grad))
    after = _weights(model)
    judge = _Judge(rounding)
    tied = (n for n in before if judge.tied(before[n], after[n]))
    stuck = (n for n in before if judge.stuck(before[n], after[n]))
    pairs = [(a, b) for a, b in twins if judge.twins_tied(a, b, before, after)]
    firsts = {a for a, _ in pairs} - {b for _, b in pairs}
    return Fate(
        tied=frozenset([*tied, *firsts]),
        stuck=frozenset(stuck),
        idle=frozenset(n for n in before if judge.idle(before[n], after[n])),
    )


@dataclass(frozen=True)
class _Weight:
    """A trained weight as the forward pass sees it, and in how many groups it works."""

    value: Tensor
    groups: int
    stacked: bool


def _weights(model: nn.Module) -> dict[str, _Weight]:
    """Copy all trained weights; a parametrised one is the weight, not what it is made from."""
    weights = {}
    for prefix, module in model.named_modules():
        if isinstance(module, parametrize.ParametrizationList):
            continue
        made = module.parametrizations if parametrize.is_parametrized(module) else ()
        names = [n for n, p in module.named_parameters(recurse=False) if p.requires_grad]
        for name in (*names, *made):
            value = getattr(module, name).detach().clone()
            stacked = type(module).__module__.endswith("cases") and value.ndim == 3
            groups = getattr(module, "groups", 1) if value.ndim > 1 else 1
            weights[f"{prefix}.{name}" if prefix else name] = _Weight(value, groups, stacked)
    return weights


def _train(model: nn.Module, case: Case, optimizer: torch.optim.Optimizer) -> None:
    generator = torch.Generator().manual_seed(2)
    for _ in range(STEPS):
        batch = tuple(x.double() if x.is_floating_point() else x for x in case.inputs(generator))
        output = model(*batch)
        loss = case.loss(output) if case.loss else _random_targets(output, generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def _random_targets(output: object, generator: torch.Generator) -> Tensor:
    values = output.values() if isinstance(output, dict) else output
    outputs = (values,) if isinstance(values, Tensor) else tuple(values)
    losses = [
        (y - torch.randn(y.shape, dtype=y.dtype, generator=generator)).pow(2).mean()
        for y in outputs
    ]
    return sum(losses[1:], losses[0])


#
# Slices
#


def _slicings(weight: _Weight, *values: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield all ways to lay a weight out as rows."""
    for axis in range(values[0].ndim):
        yield tuple(v.movedim(axis, 0).reshape(v.shape[axis], -1) for v in values)
    if weight.groups > 1:
        by_group = [v.unflatten(0, (weight.groups, -1)).movedim(2, 1) for v in values]
        yield tuple(v.flatten(0, 1).flatten(1) for v in by_group)
    if weight.stacked:
        for index in range(len(values[0])):
            for axis in (0, 1):
                yield tuple(v[index].movedim(axis, 0) for v in values)


def _equal_pairs(rows: Tensor) -> Iterator[tuple[int, int, float]]:
    """Yield the pairs of rows that are equal, with the sign that makes them so."""
    size = float(rows.abs().max())
    for i, j in itertools.combinations(range(len(rows)), 2):
        for sign in (1.0, -1.0):
            if float((rows[i] - sign * rows[j]).abs().max()) <= EQUAL * size:
                yield i, j, sign


@dataclass(frozen=True)
class _Judge:
    """Compares before with after; movements below `rounding` are none."""

    rounding: float

    def tied(self, old: _Weight, new: _Weight) -> bool:
        """Tell whether slices that were equal still are, and have moved."""
        return any(
            self._pair_tied(rows_old[i], rows_new[i], rows_new[j], sign)
            for pair in _slicings(old, old.value, new.value)
            for rows_old, rows_new in (pair, tuple(map(_sorted, pair)))
            for i, j, sign in _equal_pairs(rows_old)
        )

    def _pair_tied(self, start: Tensor, a: Tensor, b: Tensor, sign: float) -> bool:
        movement = float((a - start).abs().max())
        return movement > self.rounding and float((a - sign * b).abs().max()) <= EQUAL * movement

    def stuck(self, old: _Weight, new: _Weight) -> bool:
        """Tell whether nothing has moved, or a slice that is zero or a copy has not."""
        if self._unmoved(new.value - old.value):
            return True
        return any(
            self._unmoved(rows_new[index] - rows_old[index])
            for rows_old, rows_new in _slicings(old, old.value, new.value)
            for index in _special(rows_old)
        )

    def idle(self, old: _Weight, new: _Weight) -> bool:
        """Tell whether any slice has not moved."""
        return any(
            self._unmoved(rows_new[index] - rows_old[index])
            for rows_old, rows_new in _slicings(old, old.value, new.value)
            for index in range(len(rows_old))
        )

    def _unmoved(self, movement: Tensor) -> bool:
        return float(movement.abs().max()) <= self.rounding

    def twins_tied(
        self, a: str, b: str, before: dict[str, _Weight], after: dict[str, _Weight]
    ) -> bool:
        """Tell whether two modules that were equal still are, and have moved."""
        names = [name for name in before if name.startswith(f"{a}.")]
        pairs = [(after[name].value, after[b + name[len(a) :]].value) for name in names]
        movement = max(float((after[n].value - before[n].value).abs().max()) for n in names)
        apart = max(float((first - second).abs().max()) for first, second in pairs)
        return movement > self.rounding and apart <= EQUAL * movement


def _sorted(rows: Tensor) -> Tensor:
    return rows if rows.is_complex() else rows.sort(1).values


def _special(rows: Tensor) -> list[int]:
    """List the rows that are zero or a copy of another."""
    copies = {k for i, j, _ in _equal_pairs(rows) for k in (i, j)}
    return sorted(copies | {i for i, row in enumerate(rows) if not row.any()})


#
# Modules
#


def _twins(model: nn.Module) -> Iterator[tuple[str, str]]:
    """Yield pairs of modules with a matrix and equal, trained parameters.

    Only the largest.
    """
    named = [(n, m) for n, m in model.named_modules() if n and _has_matrix(m)]
    found: list[tuple[str, str]] = []
    for (a, first), (b, second) in itertools.combinations(named, 2):
        if not any(b.startswith(f"{d}.") for _, d in found) and _same(first, second):
            found.append((a, b))
            yield a, b


def _has_matrix(module: nn.Module) -> bool:
    parameters = list(module.parameters())
    return any(p.ndim > 1 for p in parameters) and all(p.requires_grad for p in parameters)


def _same(first: nn.Module, second: nn.Module) -> bool:
    a, b = dict(first.named_parameters()), dict(second.named_parameters())
    return (
        type(first) is type(second)
        and a.keys() == b.keys()
        and all(a[n] is not b[n] and a[n].shape == b[n].shape for n in a)
        and all(torch.equal(a[n], b[n]) for n in a)
    )
