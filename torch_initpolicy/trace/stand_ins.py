"""Tensors that stand in for those of a model while it runs: without memory, copied, or drawn."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from torch_initpolicy.sites import Site


def plain_meta(tensor: Tensor) -> Tensor:
    """Return a contiguous meta tensor of the same (for a sharded tensor: global) shape."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")


def leaf_like(original: Tensor, tensor: Tensor) -> Tensor:
    """Return an alias of `tensor` that takes gradients where `original` does, and keeps them."""
    return tensor.detach().requires_grad_(original.requires_grad)


def copied(tensor: Tensor) -> Tensor:
    """Return a tensor of the same numbers that shares no storage; a leaf that takes gradients too.

    The copy is lazy where torch can do so: it takes memory once one of the two is written to.
    """
    with torch.no_grad():
        return leaf_like(tensor, _lazily(tensor.detach()))


def _lazily(tensor: Tensor) -> Tensor:
    # `_lazy_clone` has no public name; without it, copies would take memory at once. It refuses
    # memory that is not torch's own, and kinds of tensors that have no plain storage.
    try:
        lazy: Tensor = torch._lazy_clone(tensor)  # noqa: SLF001
    except (AttributeError, RuntimeError, TypeError):
        return tensor.clone()
    return lazy


def drawn_for(sites: Sequence[Site]) -> dict[int, Tensor]:
    """Draw what to run with in place of each parameter, by its `id`: always the same.

    What a forward pass does may depend on numbers, and a plan on nothing that a model happens to
    hold. So weights are drawn with variance 1 / fan-in, norms are ones and biases zeros; only what
    a constructor sets to one number all over stays, and so does a single number.
    """
    generator = torch.Generator().manual_seed(0)
    return dict(_drawn(sites, generator))


def _drawn(sites: Sequence[Site], generator: torch.Generator) -> Iterator[tuple[int, Tensor]]:
    for site in sites:
        for parameter in site.parameters:
            if not site.lazy and parameter.is_floating_point():
                yield id(parameter), _plausible(site, parameter, generator)


_CONSTANTS = {"norm_weight": 1.0, "norm_bias": 0.0, "bias": 0.0}
"""Roles whose parameters start at one number."""


def _plausible(site: Site, parameter: Tensor, generator: torch.Generator) -> Tensor:
    shape = tuple(parameter.shape)
    device = "cpu" if parameter.is_meta else parameter.device
    if site.role in _CONSTANTS:
        drawn = torch.full(shape, _CONSTANTS[site.role])
    elif len(shape) < 2 and _is_filled(site, parameter):
        drawn = torch.full(shape, float(parameter.detach().flatten()[0]))
    else:
        inputs = max(parameter.numel() // shape[0], 1) if len(shape) > 1 and shape[0] else 1
        drawn = torch.randn(shape, generator=generator) / inputs**0.5
    return drawn.to(device, parameter.dtype).requires_grad_(parameter.requires_grad)


def _is_filled(site: Site, parameter: Tensor) -> bool:
    """Say whether a parameter holds one finite number all over."""
    if not is_readable(site, parameter):
        return False
    with torch.no_grad():
        first = parameter.flatten()[:1]
        return bool((parameter == first).all() and first.isfinite().all())


def is_readable(site: Site, parameter: Tensor) -> bool:
    """Say whether a parameter is a plain tensor whose numbers are there to be read."""
    plain = type(parameter) is torch.nn.Parameter and parameter.numel() > 0
    return plain and not site.lazy and not parameter.is_meta
