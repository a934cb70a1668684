"""Forward multipliers: hooks for what a parametrisation cannot fold into a parameter.

A hook is a frozen value without state: it adds nothing to a `state_dict`, is copied and pickled
with its module, and is traced by `torch.compile`.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from torch_initpolicy.sites import Site, canonical_modules
from torch_initpolicy.steps import Step
from torch_initpolicy.tensors.axes import block_ranges
from torch_initpolicy.tensors.layers import axes_of


@dataclass(frozen=True, slots=True)
class InputMultiplier:
    """Multiplies what a module reads: a head that is tied to an embedding."""

    factor: float

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Multiply the first argument."""
        return (args[0] * self.factor, *args[1:])


@dataclass(frozen=True, slots=True)
class OutputMultiplier:
    """Multiplies some of the units that a layer puts out: the queries among packed projections.

    The units lie along an axis of the output, counted from the end; each range holds the first unit
    of a run and the one after its last, and there is none where all units are multiplied.
    """

    factor: float
    axis: int = -1
    ranges: tuple[tuple[int, int], ...] = ()

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """Multiply the units."""
        if not self.ranges:
            return output * self.factor
        factors = output.new_ones((output.shape[self.axis], *(1,) * (-1 - self.axis)))
        for start, stop in self.ranges:
            factors[start:stop] = self.factor
        return output * factors


def takes_hook(site: Site) -> bool:
    """Tell whether a hook can multiply what a parameter makes: its owner is a layer, or ties it.

    What hangs in a module that computes more than its own product (`nn.MultiheadAttention`, a raw
    parameter) has no place for a hook.
    """
    is_layer = axes_of(site.owner, site.attribute) is not None or site.role == "norm_weight"
    is_whole = site.attribute == "weight"
    is_table = isinstance(site.owner, (nn.Embedding, nn.EmbeddingBag))
    return is_layer and is_whole and (not is_table or len(site.names) > 1)


def hook_multipliers(model: nn.Module, pairs: Iterable[tuple[Site, Step]]) -> None:
    """Register the forward multipliers of a plan; those of an earlier plan are replaced."""
    modules = dict(canonical_modules(model))
    for site, step in pairs:
        if step.multipliers is not None and step.multipliers.forward != 1.0:
            owners = [modules[name.rpartition(".")[0]] for name in site.names]
            _attach(step, step.multipliers.forward, owners)


def _attach(step: Step, factor: float, owners: Sequence[nn.Module]) -> None:
    if step.facts.tied_head is not None:
        for owner in _heads(owners):
            _detach(owner)
            owner.register_forward_pre_hook(InputMultiplier(factor))
        return
    _detach(owners[0])
    axis = 1 - max(len(step.shape), 2)  # a convolution's units lie before its positions
    owners[0].register_forward_hook(OutputMultiplier(factor, axis, tuple(_queries(step))))


def _heads(owners: Iterable[nn.Module]) -> Iterator[nn.Module]:
    return (owner for owner in owners if not isinstance(owner, (nn.Embedding, nn.EmbeddingBag)))


def _queries(step: Step) -> Iterator[tuple[int, int]]:
    """Yield the runs of units of the first packed block that meets the softmax, as queries do."""
    axes = step.facts.axes
    if axes is None or not axes.blocks:
        return
    met = [block.meets.name if block.meets else None for block in step.facts.blocks]
    first = met.index("softmax") if "softmax" in met else 0
    for run in block_ranges(step.shape, axes)[first]:
        yield run.start, run.stop


def _detach(module: nn.Module) -> None:
    for hooks in (module._forward_hooks, module._forward_pre_hooks):  # noqa: SLF001 - no other list
        for key, hook in list(hooks.items()):
            if isinstance(hook, (InputMultiplier, OutputMultiplier)):
                del hooks[key]
