"""Recordings of a forward pass, for the tests of what reads them."""

from torch import Tensor, nn

from torch_initpolicy.sites import sites
from torch_initpolicy.trace.consumers import Uses, uses
from torch_initpolicy.trace.graph import Graph
from torch_initpolicy.trace.record import capture
from torch_initpolicy.trace.trees import Call


def record(model: nn.Module, call: Call, **options: bool) -> Graph:
    """Record a forward pass."""
    names = {id(p): site.name for site in sites(model) for p in site.parameters}
    return capture(model, call, names=names, **options)


def used(model: nn.Module, *inputs: Tensor) -> Uses:
    """Record a forward pass, and find where its parameters meet the signal."""
    return uses(record(model, Call(inputs)))
