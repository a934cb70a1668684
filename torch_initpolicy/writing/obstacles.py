"""What keeps the memory of a site from being written, and what helps."""

import sys
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from torch_initpolicy.errors import ApplyError, PlanError, listing
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


def require_shapes(model: nn.Module) -> None:
    """Refuse a model whose parameters are flat pieces without a shape of their own.

    Raises:
        PlanError: Names the engine, and what to call.
    """
    fsdp = sys.modules.get("torch.distributed.fsdp")
    flat = () if fsdp is None else (fsdp.FullyShardedDataParallel,)
    for name, module in model.named_modules():
        if isinstance(module, flat) and module.training_state.name != "SUMMON_FULL_PARAMS":
            raise PlanError(
                f"{name or 'the model'!r} is wrapped by FullyShardedDataParallel, which keeps flat "
                "pieces without shapes; call this within FullyShardedDataParallel."
                "summon_full_params(model), before wrapping, or shard with fully_shard(model)"
            )
    cases = [name for name, parameter in model.named_parameters() if _is_partitioned(parameter)]
    if cases:
        raise PlanError(
            f"partitioned by DeepSpeed ZeRO-3, without shapes here:\n{listing(cases)}\n"
            "call this on every rank within deepspeed.zero.GatheredParameters("
            "list(model.parameters()), modifier_rank=0)"
        )


def _is_partitioned(tensor: Tensor) -> bool:
    """Tell whether DeepSpeed has taken a parameter's values away, and left an empty tensor."""
    status = vars(tensor).get("ds_status")
    return status is not None and status.name != "AVAILABLE"


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
