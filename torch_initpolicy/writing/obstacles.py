"""What keeps the memory of a site from being written, and what helps."""

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from torch_initpolicy.errors import ApplyError
from torch_initpolicy.sites import Site
from torch_initpolicy.tensors.aliases import repeats, sharing
from torch_initpolicy.writing.shards import is_sharded, local_part, pieces, plain


def obstacles(site: Site) -> Iterator[str]:
    """Yield what keeps the memory of a site from being written, each with its remedy."""
    for parameter in site.parameters:
        reason = next((why for test, why in _OBSTACLES if test(parameter)), None)
        if reason is not None:
            yield reason
        elif is_sharded(parameter):
            yield from _misplaced(parameter)


def _misplaced(parameter: Tensor) -> Iterator[str]:
    try:
        pieces(parameter)
    except ApplyError as error:
        yield str(error)


def shared(sites: Iterable[Site]) -> Iterator[str]:
    """Yield which sites, as different parameters at one place in memory, overwrite each other."""
    held = [(site.name, part) for site in sites for part in _in_memory(site)]
    for first, second in sharing([part for _, part in held]):
        yield (
            f"{held[first][0]!r} and {held[second][0]!r} share memory, but are different "
            "parameters; make them one, clone() one of them, or leave one out with skip=[...]"
        )


def _in_memory(site: Site) -> Iterator[Tensor]:
    for parameter in site.parameters:
        if not is_lazy(parameter) and not parameter.is_meta and parameter.layout == torch.strided:
            yield local_part(parameter)


_OBSTACLES: tuple[tuple[Callable[[Tensor], bool], str], ...] = (
    (is_lazy, "has no shape yet; run one forward pass first"),
    (
        lambda tensor: tensor.is_meta,
        "is on the meta device and has no memory; call materialize(model, ...) instead",
    ),
    (
        lambda tensor: tensor.layout != torch.strided,
        "is sparse; initialise it before it is made sparse",
    ),
    (
        torch.is_inference,
        "was made under torch.inference_mode(), which forbids writing; make the model outside it",
    ),
    (
        lambda tensor: type(plain(local_part(tensor))) is not Tensor,
        "holds its numbers in a way of its class' own; initialise it before it is wrapped",
    ),
    (
        repeats,
        "has several elements in one place in memory, as expand() makes them; clone it first",
    ),
)
"""What to look for, in this order, and what to say."""
