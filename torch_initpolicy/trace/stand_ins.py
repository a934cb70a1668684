"""What a model runs with in place of its tensors and inputs: without memory, copied, or drawn."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from torch_initpolicy.sites import Site
from torch_initpolicy.tensors.memory import lazy_copy
from torch_initpolicy.trace.trees import Call, tensors_in


def plain_meta(tensor: Tensor) -> Tensor:
    """Return a contiguous meta tensor of the same (for a sharded tensor: global) shape."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")


def leaf_like(original: Tensor, tensor: Tensor) -> Tensor:
    """Return an alias of `tensor` that takes gradients where `original` does, and keeps them."""
    return tensor.detach().requires_grad_(original.requires_grad)


def copied(tensor: Tensor) -> Tensor:
    """Return a tensor of the same numbers in other memory; a leaf that takes gradients too."""
    with torch.no_grad():
        return leaf_like(tensor, tensor.detach().clone())


def lazily_copied(tensor: Tensor) -> Tensor:
    """Return what `copied` does, without memory until it is written to: see `lazy_copy`."""
    with torch.no_grad():
        return leaf_like(tensor, lazy_copy(tensor.detach()))


def drawn_for(sites: Sequence[Site]) -> dict[int, Tensor]:
    """Draw what to run with in place of each parameter, by its `id`: always the same.

    What a forward pass does may depend on numbers, and a plan on nothing that a model happens to
    hold. So weights are drawn with variance 1 / fan-in, norms are ones and biases zeros; only what
    a constructor sets to one number all over stays, and so does a single number.
    """
    generator = torch.Generator().manual_seed(0)
    return dict(_plausible_numbers(sites, generator))


def _plausible_numbers(
    sites: Sequence[Site], generator: torch.Generator
) -> Iterator[tuple[int, Tensor]]:
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
    plain = type(parameter) is nn.Parameter and parameter.numel() > 0
    return plain and not site.lazy and not parameter.is_meta


def random_call(
    call: Call, rows: int, *, batch: int | None = None, edge: int | None = None, seed: int = 0
) -> Call:
    """Return real inputs like those of a call: standard normals, indices, masks of ones.

    The shapes of its tensors count alone, but that small indices keep their numbers; `rows` indices
    are valid, samples and pixels as many as there are or as `batch` and `edge` allow.
    """
    generator, before = torch.Generator().manual_seed(seed), batch_size(call)

    def draw(like: Tensor) -> Tensor:
        if is_index(like):
            return like.clone()
        shape = list(like.shape)
        if batch is not None and shape and shape[0] == before:
            shape[0] = batch
        if edge is not None and is_image(shape):
            shape[2:] = (min(edge, n) for n in shape[2:])
        if like.is_floating_point() or like.is_complex():
            return torch.randn(shape, generator=generator).to(like.dtype)
        if like.dtype == torch.bool:
            return torch.ones(shape, dtype=torch.bool)
        return torch.randint(rows, shape, generator=generator).to(like.dtype)

    return call.mapped(draw)


def is_image(shape: Sequence[int]) -> bool:
    """Say whether a shape is that of images: grids of few channels."""
    return len(shape) == 4 and shape[1] <= _CHANNELS


_CHANNELS = 4
"""Channels up to which a grid is an image."""


def is_index(tensor: Tensor) -> bool:
    """Say whether a tensor is one of indices, or a mask, that is small and holds numbers.

    Forward passes look at such numbers, and decide by them, where they only compute with others.
    """
    discrete = not (tensor.is_floating_point() or tensor.is_complex())
    return discrete and not tensor.is_meta and tensor.numel() <= INDICES


INDICES = 2**20
"""Elements of a tensor up to which it may hold numbers while others are on meta."""


def batch_size(call: Call) -> int:
    """Return how many samples a call holds: the length of its first tensor's first axis."""
    first = next((t for t in tensors_in((call.args, dict(call.kwargs))) if t.ndim), None)
    return max(first.shape[0], 1) if first is not None else 1


def vocabulary_size(model: nn.Module) -> int:
    """Return how many indices every table of the model holds; tables of types are too small."""
    rows = [m.num_embeddings for m in model.modules() if isinstance(m, nn.Embedding)]
    return min((n for n in rows if n >= _TYPES), default=min(rows, default=2))


_TYPES = 16
"""Rows of a table up to which it is one of types: of sentences, of tokens."""
