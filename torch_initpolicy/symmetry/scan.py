"""Finds equal units in the weights of a model: static, one pass, no inputs.

What it finds are suspects. Whether they stay equal is for the probe, or for the training, to say.
"""

import itertools
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from torch_initpolicy.sites import Site
from torch_initpolicy.symmetry.modules import EqualModules, equal_modules
from torch_initpolicy.symmetry.shards import signatures
from torch_initpolicy.symmetry.units import (
    ByParameter,
    View,
    by_label,
    equal_rows,
    in_company,
    sift,
    views,
)
from torch_initpolicy.tensors.layers import Role
from torch_initpolicy.writing.shards import full, is_sharded


@dataclass(frozen=True, slots=True, eq=False)
class EqualUnits:
    """Units of one parameter that are zero or equal another.

    Attributes:
        parameter: Which of the tensors behind it.
        view: How its units lie.
        units: The units in question, in order.
        labels: For each of them the number of the first unit that it equals.
        signs: For each of them its sign relative to the others of its label; 0 if it is zero.
        shuffled: Whether units are equal only when their elements are sorted.
    """

    site: Site
    parameter: nn.Parameter
    view: View
    units: Tensor
    labels: Tensor
    signs: Tensor
    shuffled: bool = False

    @property
    def parameters(self) -> tuple[nn.Parameter, ...]:
        """The tensors whose gradients say what becomes of the units."""
        return (self.parameter,)

    @property
    def is_vector(self) -> bool:
        """Whether each unit is a single number."""
        return self.view.features == 1

    @property
    def is_whole(self) -> bool:
        """Whether these are all units there are."""
        return len(self.units) == self.view.count

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
        if not self.is_whole or is_token:
            return False
        if site.role in _BIASES:
            return not 0 <= self.value <= FAR
        is_zero = not bool(self.signs.any())
        return is_zero or (len(site.shape) > 1 and site.role in _MATRICES)

    @property
    def is_raw(self) -> bool:
        """Whether it is a constant vector of unknown use."""
        is_constant = self.is_whole and self.view.count > 1
        return self.is_vector and is_constant and self.site.role in ("unknown", "scale", "gate")

    @property
    def value(self) -> float:
        """The first element of the parameter; all of it where that is constant."""
        tensor = full(self.parameter)
        return float(tensor[(0,) * tensor.ndim].real)

    def groups(self) -> tuple[tuple[int, ...], ...]:
        """List the units by group; a row of zeros may stand alone."""
        return by_label(self.units.tolist(), self.labels.tolist())

    def rows(self, tensors: ByParameter) -> Iterator[Tensor]:
        """Yield what tensors hold for these units, one row for each."""
        rows = self.view.rows(tensors[self.parameter], None if self.is_whole else self.units)
        yield rows.sort(1).values if self.shuffled else rows

    def level(self, tensors: ByParameter, leaders: Tensor, turn: Tensor) -> None:
        """Put the row of each unit's leader, times a sign, in place of its own."""
        if not self.shuffled:
            tensor = tensors[self.parameter]
            leading = self.view.rows(tensor, self.units[leaders])
            rows = leading * turn.to(leading)[:, None]
            tensors[self.parameter] = self.view.put(tensor, self.units, rows)


FAR = 8.0
"""A bias beyond this saturates whatever it meets."""

_BIASES: tuple[Role, ...] = ("bias", "norm_bias")

_MATRICES: tuple[Role, ...] = ("weight", "recurrent", "embedding")


class _Layout(NamedTuple):
    """A way in which the units of a parameter lie; `thorough`: single equal entries count too."""

    site: Site
    parameter: nn.Parameter
    view: View
    thorough: bool

    @property
    def is_compared(self) -> bool:
        """Whether any two units are compared, or it is only asked whether all are one number."""
        return self.view.features > 1 or self.thorough or self.site.role in _MATRICES

    @property
    def tiny(self) -> float:
        """Size up to which a unit counts as zero."""
        has_inputs = self.view.features > 1 and self.site.role in ("weight", "recurrent")
        return TINY * self.view.features**-0.5 if has_inputs else 0.0


def scan(sites: Sequence[Site], *, thorough: bool = False) -> Iterator[EqualUnits]:
    """Yield the units of each trained parameter, in each layout, that are zero or equal another.

    With `thorough`, single equal entries of vectors count as well, and units that are equal up to
    a permutation of their elements.
    """
    layouts = [
        _Layout(site, parameter, view, thorough)
        for site in sites
        for parameter in _readable(site)
        for shape in (tuple(parameter.shape),)
        for view in views(shape, site.axes if shape == site.shape else None)
    ]
    for layout, left in zip(layouts, _sifted(layouts), strict=True):
        site, parameter, view, _ = layout
        found = _found(layout, left)
        if found is not None:
            yield EqualUnits(site, parameter, view, *found)
        if thorough and view.features > 1 and not (found and not bool(found.labels.any())):
            shuffled = _shuffled(full(parameter), view)
            if shuffled is not None:
                yield EqualUnits(site, parameter, view, *shuffled, shuffled=True)


def _readable(site: Site) -> Iterator[nn.Parameter]:
    if not site.lazy and (site.dtype.is_floating_point or site.dtype.is_complex):
        yield from (p for p in site.parameters if p.numel() and p.requires_grad)


class _Found(NamedTuple):
    """Units that are zero or equal another, with labels and signs."""

    units: Tensor
    labels: Tensor
    signs: Tensor


def _sifted(layouts: Sequence[_Layout]) -> Iterator[Tensor | None]:
    """Yield the units of each layout that may be equal by a few elements; None: all may be."""
    looked = [each.is_compared and not is_sharded(each.parameter) for each in layouts]
    left = _left(list(itertools.compress(layouts, looked)))
    return (next(left) if sees else None for sees in looked)


def _left(layouts: Sequence[_Layout]) -> Iterator[Tensor]:
    """Yield what the sieve leaves of each layout: of many small ones at once."""
    ends = itertools.accumulate(each.view.count for each in layouts)
    batches = itertools.groupby(zip(layouts, ends, strict=True), lambda pair: pair[1] // _ROWS)
    for _, pairs in batches:
        batch = [layout for layout, _ in pairs]
        few = [each.view.first(each.parameter.detach(), _FEW) for each in batch]
        yield from sift(few, [each.tiny for each in batch])


_ROWS = 1 << 15
"""Units that are sifted at once, about."""


def _found(layout: _Layout, left: Tensor | None) -> _Found | None:
    """Find what is equal; where units are not compared, only whether all are one number."""
    tensor, view = layout.parameter.detach(), layout.view
    if left is not None:
        return _equal(tensor, view, left, layout.tiny)
    if not is_sharded(tensor):
        return _constant(tensor, view)
    if tuple(tensor.shape) != view.shape:  # a grouped convolution
        return _equal(full(tensor), view, torch.arange(view.count), 0.0)
    found = _company(torch.arange(view.count), signatures(tensor, view))
    is_constant = found is not None and not bool(found.labels.any())
    return found if layout.is_compared or is_constant else None


_FEW, _MORE = 4, 64
"""Elements of each unit that are looked at first: random units differ in these already, so nearly
all weights are never read. Few numbers differ where weights are coarse or sparse."""

TINY = 1e-4
"""Units of a weight count as zero up to this size, relative to what is usual for their number of
inputs: a common gradient makes them equal up to as little, for thousands of steps. Tokens and
tables are often drawn as small, and have no inputs."""


def _equal(tensor: Tensor, view: View, units: Tensor, tiny: float) -> _Found | None:
    """Find units that are equal in all their elements, among those that may be."""
    constant = _constant(tensor, view) if len(units) == view.count else None
    if constant is not None or not len(units):
        return constant
    (kept,) = sift([view.first(tensor, _MORE, _chosen(units, view))], [tiny])
    units = units[kept]
    return _company(units, view.rows(tensor, _chosen(units, view)), tiny) if len(units) else None


def _chosen(units: Tensor, view: View) -> Tensor | None:
    """Return the units to select; None where that would be all of them."""
    return units if len(units) < view.count else None


def _constant(tensor: Tensor, view: View) -> _Found | None:
    """Look whether a tensor holds one number only."""
    first = tensor[(0,) * tensor.ndim]
    if not bool((tensor == first).all()) or (view.count == 1 and bool(first)):
        return None
    units = torch.arange(view.count)
    signs = torch.full_like(units, int(bool(first)), dtype=torch.int8)
    return _Found(units, torch.zeros_like(units), signs)


def _company(units: Tensor, rows: Tensor, tiny: float = 0.0) -> _Found | None:
    """Keep the units the rows of which are zero or equal another."""
    labels, signs = equal_rows(rows, signed=True, tiny=tiny)
    kept = in_company(labels, signs)
    return _Found(units[kept], units[labels[kept]], signs[kept]) if len(kept) else None


def _shuffled(tensor: Tensor, view: View) -> _Found | None:
    """Find units that are equal once sorted, and not without: their sums are equal first."""
    totals = view.rows(tensor).sum(1, keepdim=True, dtype=torch.float64)
    candidates = in_company(*equal_rows(totals, near=1e-5))
    if not len(candidates):
        return None
    rows = view.rows(tensor, candidates)
    labels, signs = equal_rows(rows.sort(1).values)
    if torch.equal(labels, equal_rows(rows)[0]):
        return None
    kept = in_company(labels, torch.ones_like(signs))
    return _Found(candidates[kept], candidates[labels[kept]], torch.ones_like(signs[kept]))


# What is out of the ordinary


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

    @property
    def parameters(self) -> tuple[nn.Parameter, ...]:
        """The parameters that hold a suspect."""
        units = (like.parameter for like in self.equal_units)
        modules = (copies.parameters for copies in self.equal_modules)
        return tuple(dict.fromkeys(itertools.chain(units, *modules)))


def suspects(
    model: nn.Module,
    sites: Sequence[Site],
    *,
    among: Collection[str] | None = None,
    asked: bool = False,
) -> Suspects:
    """Scan a model for what is out of the ordinary.

    `asked` suspects constant vectors of unknown use too, as where there are no matrices: as a rule
    the matrices around them tell their entries apart.
    """
    raw_too = asked or not any(sum(size > 1 for size in site.shape) > 1 for site in sites)
    scanned = scan([site for site in sites if among is None or site.name in among])
    kept = (like for like in scanned if like.is_suspect or (raw_too and like.is_raw))
    return Suspects(tuple(kept), equal_modules(model) if among is None else ())
