"""Finds modules that are copies of one another: experts, critics, layers that were cloned."""

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from torch_initpolicy.sites import canonical_modules
from torch_initpolicy.symmetry.shards import digest_of_shards
from torch_initpolicy.symmetry.units import NEAR, ByParameter, condensed
from torch_initpolicy.writing.shards import full, is_sharded


@dataclass(frozen=True, slots=True, eq=False)
class EqualModules:
    """Modules of one class that hold equal parameters: their names, and the parameters of each."""

    names: tuple[str, ...]
    held: tuple[tuple[nn.Parameter, ...], ...] = field(repr=False)

    is_vector = False

    @property
    def parameters(self) -> tuple[nn.Parameter, ...]:
        """The tensors whose gradients say what becomes of the modules."""
        return tuple(itertools.chain.from_iterable(self.held))

    @property
    def units(self) -> Tensor:
        """The positions of the modules."""
        return torch.arange(len(self.names))

    @property
    def labels(self) -> Tensor:
        """What each equals: the first."""
        return torch.zeros_like(self.units)

    @property
    def signs(self) -> Tensor:
        """Their signs: copies are never negated."""
        return torch.ones_like(self.units, dtype=torch.int8)

    def rows(self, tensors: ByParameter) -> Iterator[Tensor]:
        """Yield an image of what tensors hold, parameter by parameter, a row for each module."""
        for counterparts in zip(*self.held, strict=True):
            yield torch.stack([condensed(tensors[parameter]) for parameter in counterparts])

    def level(self, tensors: ByParameter, leaders: Tensor, _: Tensor) -> None:
        """Put what each module's leader holds in place of its own."""
        for own, leader in zip(self.held, leaders.tolist(), strict=True):
            tensors.update({p: tensors[q] for p, q in zip(own, self.held[leader], strict=True)})


def equal_modules(model: nn.Module) -> tuple[EqualModules, ...]:
    """Find modules with a matrix that are copies of one another: the largest there are.

    Modules that share a parameter are no copies, and modules that are not trained cannot be told
    apart by training.
    """
    if not _has_equal_matrices(model):
        return ()
    kinds: dict[object, dict[str, tuple[nn.Parameter, ...]]] = {}
    for name, kind, parameters in _comparable(model):
        kinds.setdefault(kind, {})[name] = parameters
    found: list[EqualModules] = []
    for modules in kinds.values():
        found.extend(group for group in _equal(modules) if not _inside(group, found))
    return tuple(found)


def _has_equal_matrices(model: nn.Module) -> bool:
    """Tell at little cost whether any two trained matrices start with the same elements."""
    matrices = (p for p in model.parameters() if p.ndim > 1 and p.requires_grad and not is_lazy(p))
    starts = [(matrix.shape, _start(matrix)) for matrix in matrices]
    return len(set(starts)) < len(starts)


def _comparable(model: nn.Module) -> Iterator[tuple[str, object, tuple[nn.Parameter, ...]]]:
    """Yield each module to compare: its name, what its copies have in common, its parameters.

    The directions of a recurrent layer are modules in all but name.
    """
    seen: set[nn.Module] = set()
    for name, module in canonical_modules(model):
        named = dict(module.named_parameters())
        if module not in seen and _is_comparable(named.values()):
            seen.add(module)
            kind = type(module), tuple((n, p.shape, p.dtype) for n, p in named.items())
            if name:
                yield name, kind, tuple(named.values())
            if isinstance(module, nn.RNNBase) and module.bidirectional:
                yield from _by_direction(name, module)


def _by_direction(
    name: str, module: nn.RNNBase
) -> Iterator[tuple[str, object, tuple[nn.Parameter, ...]]]:
    for layer, suffix in itertools.product(range(module.num_layers), ("", "_reverse")):
        end = f"_l{layer}{suffix}"
        own = (p for attribute, p in module.named_parameters() if attribute.endswith(end))
        yield f"{name}.*{end}".lstrip("."), (module, layer), tuple(own)


def _is_comparable(parameters: Collection[nn.Parameter]) -> bool:
    trained = all(p.requires_grad and not is_lazy(p) for p in parameters)
    return trained and any(p.ndim > 1 for p in parameters)


def _equal(modules: Mapping[str, Sequence[nn.Parameter]]) -> Iterator[EqualModules]:
    """Group modules of one kind by what they hold: by a few elements first."""
    by_start: dict[object, list[str]] = {}
    if len(modules) > 1:
        for name, parameters in modules.items():
            by_start.setdefault(tuple(map(_start, parameters)), []).append(name)
    waiting = list(by_start.values())
    while waiting:
        first, *others = waiting.pop(0)
        same = [first, *(n for n in others if _are_copies(modules[first], modules[n]))]
        if len(same) > 1:
            yield EqualModules(tuple(same), tuple(tuple(modules[name]) for name in same))
        rest = [name for name in others if name not in same]
        waiting += [rest] if len(rest) > 1 else []


def _start(parameter: Tensor) -> tuple[float, ...]:
    """Return the first few elements, rounded as far as noise could reach."""
    local = parameter.detach()
    if is_sharded(local):
        return digest_of_shards(local)
    start = local[(0,) * (local.ndim - 1)][:4] if local.ndim and local.numel() else local.flatten()
    return tuple(float(f"{abs(number):.4g}") for number in start.tolist())


def _are_copies(first: Sequence[Tensor], second: Sequence[Tensor]) -> bool:
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
