"""Finds equal units in the weights of a model: static, one pass, no inputs.

What it finds are suspects. Whether they stay equal is for the probe, or for the training, to say.
"""

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from torch_initpolicy.sites import Site, canonical_modules
from torch_initpolicy.symmetry.prefilter import WIDTH, sift
from torch_initpolicy.symmetry.shards import digest, signatures
from torch_initpolicy.symmetry.units import NEAR, Pieces, View, equal_rows, views
from torch_initpolicy.tensors.layers import Role
from torch_initpolicy.writing.shards import full, is_sharded

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

#
# Units of one parameter
#


@dataclass(frozen=True, slots=True, eq=False)
class EqualUnits:
    """Units of one parameter that are zero or equal another.

    Attributes:
        site: The parameter.
        part: Which of the tensors behind it.
        view: How its units lie.
        units: The units in question, in order.
        labels: For each of them the number of the first unit that it equals.
        signs: For each of them its sign relative to the others of its label; 0 if it is zero.
        shuffled: Whether units are equal only when their elements are sorted.
    """

    site: Site
    part: int
    view: View
    units: Tensor
    labels: Tensor
    signs: Tensor
    shuffled: bool = False

    @property
    def is_vector(self) -> bool:
        """Whether each unit is a single number."""
        return self.view.features == 1

    @property
    def is_zero(self) -> bool:
        """Whether all units there are, are zero."""
        return len(self.units) == self.view.count and not bool(self.signs.any())

    @property
    def is_suspect(self) -> bool:
        """Whether it is out of the ordinary: not a plain bias or a neutral norm.

        Entries of a vector are told apart by the matrices around them, so equal ones mean nothing.
        A vector of zeros may be a closed gate, and a bias far from zero may switch its units off.
        """
        if not self.is_vector:
            return True
        site = self.site
        is_token = len(site.shape) > 2 and site.shape[:2] == (1, 1)
        if len(self.units) < self.view.count or is_token:
            return False
        if site.role in _BIASES:
            return not 0 <= self.value <= FAR
        return self.is_zero or (len(site.shape) > 1 and site.role in _MATRICES)

    @property
    def value(self) -> float:
        """The first element of the parameter; all of it where that is constant."""
        tensor = full(self.site.parameters[self.part])
        return float(tensor[(0,) * tensor.ndim].real)


FAR = 8.0
"""A bias beyond this saturates whatever it meets."""

_BIASES: tuple[Role, ...] = ("bias", "norm_bias")

_MATRICES: tuple[Role, ...] = ("weight", "recurrent", "embedding")


@dataclass(frozen=True, slots=True, eq=False)
class _Layout:
    """A way in which units lie in one of the tensors behind a parameter.

    Attributes:
        site: The parameter.
        part: Which of the tensors behind it.
        tensor: That tensor.
        view: How its units lie.
        thorough: Whether single equal entries of vectors count, and units equal once sorted.
    """

    site: Site
    part: int
    tensor: Tensor
    view: View
    thorough: bool

    @property
    def is_compared(self) -> bool:
        """Whether any two units are compared, or it is only asked whether all are one number."""
        return self.view.features > 1 or self.thorough or self.site.role in _MATRICES


def scan(sites: Sequence[Site], *, thorough: bool = False) -> tuple[EqualUnits, ...]:
    """Find the units of each trained parameter that are zero or equal another.

    Args:
        sites: The parameters.
        thorough: Look also for single equal entries of vectors, and for units that are equal only
            up to a permutation of their elements.

    Returns:
        One start for each parameter and each way to lay it out in which something was found.
    """
    layouts = [layout for site in sites for layout in _layouts(site, thorough)]
    compared = [a for a in layouts if a.is_compared and not is_sharded(a.tensor)]
    left = dict(zip(compared, sift(_sample(a.tensor, a.view) for a in compared), strict=True))
    equal_units = (_equal_units(layout, left.get(layout)) for layout in layouts)
    return tuple(itertools.chain.from_iterable(equal_units))


def _layouts(site: Site, thorough: bool) -> Iterator[_Layout]:  # noqa: FBT001 - as `scan` has it
    if site.lazy or not (site.dtype.is_floating_point or site.dtype.is_complex):
        return
    for part, parameter in enumerate(site.parameters):
        if parameter.numel() == 0 or not parameter.requires_grad:
            continue
        tensor, shape = parameter.detach(), tuple(parameter.shape)
        for view in views(shape, site.axes if shape == site.shape else None):
            yield _Layout(site, part, tensor, view, thorough)


def _sample(tensor: Tensor, view: View) -> Tensor:
    """Return the first few elements of each unit."""
    return next(view.blocks(tensor, None, WIDTH))


def _equal_units(layout: _Layout, left: Tensor | None) -> Iterator[EqualUnits]:
    """Yield what is equal in one layout, of the units that the sieve has left."""
    site, part, tensor, view = layout.site, layout.part, layout.tensor, layout.view
    found = _found(layout, left)
    if found is not None:
        yield EqualUnits(site, part, view, *found)
    if layout.thorough and view.features > 1:
        shuffled = _shuffled(full(tensor), view)
        if shuffled is not None:
            yield EqualUnits(site, part, view, *shuffled, shuffled=True)


Found = tuple[Tensor, Tensor, Tensor]
"""Units, labels and signs of a start."""


def _found(layout: _Layout, left: Tensor | None) -> Found | None:
    """Find what is equal: the units left by the sieve, those of all shards, or all there is."""
    tensor, view = layout.tensor, layout.view
    if left is not None:
        return _equal(tensor, view, left)
    if is_sharded(tensor):
        found = _equal_across(tensor, view)
        is_constant = found is not None and not bool(found[1].any())
        return found if layout.is_compared or is_constant else None
    return _constant(tensor, view)


def _constant(tensor: Tensor, view: View) -> Found | None:
    """Look whether a tensor holds one number only."""
    first = tensor[(0,) * tensor.ndim]
    if not bool((tensor == first).all()):
        return None
    sign = int(bool(first))
    if view.count == 1 and sign:
        return None
    units = torch.arange(view.count, device=tensor.device)
    return units, torch.zeros_like(units), torch.full_like(units, sign, dtype=torch.int8)


def _equal(tensor: Tensor, view: View, units: Tensor) -> Found | None:
    """Find those that are equal in all their elements among units that are in a few."""
    constant = _constant(tensor, view) if len(units) == view.count else None
    if constant is not None or not len(units):
        return constant
    more = next(view.blocks(tensor, _chosen(units, view), _MORE))
    units = units[sift([more], _MORE)[0]]  # few numbers differ where weights are coarse or sparse
    piece = max(1, _PIECE // max(1, len(units)))
    return _company(units, lambda: view.blocks(tensor, _chosen(units, view), piece))


def _chosen(units: Tensor, view: View) -> Tensor | None:
    """Return the units to select; None where that would be all of them."""
    return units if len(units) < view.count else None


def _company(units: Tensor, blocks: Pieces) -> Found | None:
    """Keep the units the rows of which are zero or equal another."""
    if not len(units):
        return None
    labels, signs = equal_rows(blocks, signed=True)
    kept = _in_company(labels, signs)
    return (units[kept], units[labels[kept]], signs[kept]) if len(kept) else None


def _equal_across(tensor: "DTensor", view: View) -> Found | None:
    """Find equal units of a sharded tensor, by signatures of them."""
    if tuple(tensor.shape) != view.shape:  # a grouped convolution
        whole = full(tensor)
        (units,) = sift([_sample(whole, view)])
        return _equal(whole, view, units)
    rows = signatures(tensor, view)
    return _company(torch.arange(len(rows), device=rows.device), lambda: [rows])


_MORE = 64
"""Elements of each unit that are looked at where the first few leave some in doubt."""

_PIECE = 1 << 20
"""Elements that are copied at once."""


def _in_company(labels: Tensor, signs: Tensor) -> Tensor:
    """Return the rows that are zero or share their label."""
    return ((labels.bincount(minlength=1)[labels] > 1) | (signs == 0)).nonzero().flatten()


def _shuffled(tensor: Tensor, view: View) -> Found | None:
    """Find units that are equal once sorted, and not without: their sums are equal first."""
    totals = torch.stack(list(_sums(tensor, view))).sum(0)[:, None]
    candidates = _in_company(*equal_rows(lambda: [totals], near=1e-5))
    if not len(candidates):
        return None
    rows = view.select(tensor, candidates).sort(1).values
    labels, signs = equal_rows(lambda: [rows])
    kept = _in_company(labels, torch.ones_like(signs))
    if not len(kept):
        return None
    ordered = view.select(tensor, candidates[kept])
    plain = equal_rows(lambda: [ordered])[0]
    if torch.equal(plain, torch.unique(labels[kept], return_inverse=True)[1]):
        return None
    return candidates[kept], candidates[labels[kept]], torch.ones_like(signs[kept])


def _sums(tensor: Tensor, view: View) -> Iterator[Tensor]:
    for block in view.blocks(tensor, None, max(1, _PIECE // view.count)):
        yield block.sum(1, dtype=torch.float64)


#
# Whole modules
#


@dataclass(frozen=True, slots=True)
class EqualModules:
    """Modules of one class that hold equal parameters.

    Attributes:
        names: Their canonical names, in order.
        parameters: For each module its parameters, in one order.
    """

    names: tuple[str, ...]
    parameters: tuple[tuple[nn.Parameter, ...], ...] = field(repr=False)


def equal_modules(model: nn.Module) -> tuple[EqualModules, ...]:
    """Find modules with a matrix that are copies of one another: the largest there are.

    Modules that share a parameter are no copies, and modules that are not trained cannot be told
    apart by training.
    """
    if not _has_equal_matrices(model):
        return ()
    kinds: dict[object, dict[str, nn.Module]] = {}
    for name, module in canonical_modules(model):
        if name and module not in kinds.setdefault(_kind(module), {}).values():
            kinds[_kind(module)][name] = module
    found: list[EqualModules] = []
    for kind, modules in kinds.items():
        if kind is not None and len(modules) > 1:
            found.extend(g for g in _equal_modules(modules) if not _inside(g, found))
    return tuple(found)


def _has_equal_matrices(model: nn.Module) -> bool:
    """Tell at little cost whether any two trained matrices start with the same elements."""
    matrices = (p for p in model.parameters() if p.ndim > 1 and p.requires_grad and not is_lazy(p))
    starts = [(matrix.shape, _start(matrix)) for matrix in matrices]
    return len(set(starts)) < len(starts)


def _kind(module: nn.Module) -> object:
    """Return what modules must have in common to be compared; None where they are not."""
    parameters = list(module.named_parameters())
    if not any(p.ndim > 1 for _, p in parameters):
        return None
    if not all(p.requires_grad and not is_lazy(p) for _, p in parameters):
        return None
    return type(module), tuple((name, p.shape, p.dtype) for name, p in parameters)


def _equal_modules(modules: Mapping[str, nn.Module]) -> Iterator[EqualModules]:
    """Group modules of one kind by what they hold: by a few elements first."""
    by_start: dict[object, list[str]] = {}
    held = {name: tuple(module.parameters()) for name, module in modules.items()}
    for name, parameters in held.items():
        by_start.setdefault(tuple(map(_start, parameters)), []).append(name)
    for names in by_start.values():
        rest = names
        while len(rest) > 1:
            first, *others = rest
            same = [first, *(n for n in others if _copies(held[first], held[n]))]
            if len(same) > 1:
                yield EqualModules(tuple(same), tuple(held[name] for name in same))
            rest = [name for name in others if name not in same]


def _start(parameter: Tensor) -> tuple[float, ...]:
    """Return the first few elements, rounded as far as noise could reach."""
    local = parameter.detach()
    if is_sharded(local):
        return digest(local)
    start = local[(0,) * (local.ndim - 1)][:4] if local.ndim and local.numel() else local.flatten()
    return tuple(float(f"{abs(number):.4g}") for number in start.tolist())


def _copies(first: Sequence[Tensor], second: Sequence[Tensor]) -> bool:
    pairs = list(zip(first, second, strict=True))
    return all(a is not b for a, b in pairs) and all(_near(a, b) for a, b in pairs)


def _near(first: Tensor, second: Tensor) -> bool:
    a, b = full(first), full(second)
    return torch.equal(a, b) or bool((a - b).abs().amax() <= NEAR * a.abs().amax())


def _inside(group: EqualModules, found: Sequence[EqualModules]) -> bool:
    """Tell whether modules are equal only as parts of larger ones."""
    return any(
        len({o for n in group.names for o in larger.names if n.startswith(f"{o}.")})
        == len(group.names)
        for larger in found
    )


#
# What is out of the ordinary
#


class Suspects(NamedTuple):
    """What is equal or zero at the start, and out of the ordinary."""

    equal_units: tuple[EqualUnits, ...]
    equal_modules: tuple[EqualModules, ...]

    def __bool__(self) -> bool:
        return bool(self.equal_units or self.equal_modules)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the sites, each once."""
        return tuple(dict.fromkeys(like.site.name for like in self.equal_units))


def suspects(
    model: nn.Module,
    sites: Sequence[Site],
    *,
    excused: Collection[str] = (),
    asked: bool = False,
) -> Suspects:
    """Scan a model for what is out of the ordinary.

    Args:
        model: The model.
        sites: Its parameters.
        excused: Names of those that are known to be in order.
        asked: Suspect constant vectors of unknown use too. As a rule the matrices around them tell
            their entries apart; where there are no matrices they are suspects in any case.
    """
    raw_too = asked or not any(sum(size > 1 for size in site.shape) > 1 for site in sites)
    kept = (
        like
        for like in scan([site for site in sites if site.name not in excused])
        if like.is_suspect or (raw_too and _is_raw_vector(like))
    )
    return Suspects(tuple(kept), equal_modules(model))


def _is_raw_vector(like: EqualUnits) -> bool:
    constant = len(like.units) == like.view.count > 1
    return like.is_vector and constant and like.site.role in ("unknown", "scale", "gate")
