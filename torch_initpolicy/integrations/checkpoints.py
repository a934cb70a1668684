"""Checkpoints of any kind that lack parameters, or rows: a new head on a body, new words."""

from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from torch_initpolicy.api import apply_policy
from torch_initpolicy.errors import ArgumentError, UnknownNameError, listing
from torch_initpolicy.planning.plan import Receipt
from torch_initpolicy.planning.selection import Options, require_known
from torch_initpolicy.policy import match
from torch_initpolicy.policy.presets import Policyish
from torch_initpolicy.policy.rules import InitPolicy, Rule
from torch_initpolicy.sites import Site, require_module, sites
from torch_initpolicy.tensors.initializers import From
from torch_initpolicy.writing.shards import full

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["initialize_missing", "initialize_rows"]


def initialize_missing(
    model: nn.Module,
    missing: Collection[str] | Mapping[str, Collection[Any]],
    policy: Policyish = "auto",
    **options: "Unpack[Options]",
) -> Receipt:
    """Initialise what a checkpoint did not hold, and leave what was loaded.

    Args:
        model: The model, into which the checkpoint was loaded.
        missing: Names of the tensors that the checkpoint lacked, as
            `model.load_state_dict(..., strict=False).missing_keys` holds them; or what
            `from_pretrained(..., output_loading_info=True)` of transformers returned second.
        policy: A policy, rules, one initializer, the name of a preset, or the path of a file.
        options: Keyword arguments of `apply_policy`, but `only`.

    Returns:
        The receipt; its plan keeps everything that was loaded. A parameter that is tied to one that
        was loaded is kept with it.

    Raises:
        UnknownNameError: The model has no tensors of these names; lists them.

    Examples:
        >>> body, whole = nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
        >>> state = {f"0.{name}": value for name, value in body.state_dict().items()}
        >>> keys = whole.load_state_dict(state, strict=False).missing_keys
        >>> receipt = initialize_missing(whole, keys, seed=0)
        >>> receipt.written, receipt.kept
        (2, 2)
    """
    require_known(options, Options.__optional_keys__ - {"only"})
    names = _names(missing)
    places = dict(require_module(model).named_parameters(remove_duplicate=False))
    if unknown := sorted(names - places.keys() - model.state_dict().keys()):
        raise UnknownNameError(f"{type(model).__name__} has no tensors named:\n{listing(unknown)}")
    lacks = any if isinstance(missing, Mapping) else all  # transformers leaves out ties
    absent = [
        site.name
        for site in sites(model)
        if lacks(name in names for name, held in places.items() if _is_part(held, site))
    ]
    options["only"] = absent
    return apply_policy(model, policy, **options)


def initialize_rows(
    model: nn.Module, state: Mapping[str, Tensor], *, seed: int | None = None
) -> Receipt:
    """Draw the rows that tensors have gained, such as those of new words, as the old rows lie.

    Every parameter with more rows than it had gets its old rows, and new ones from the normal
    distribution of their mean and covariance: embeddings, heads, tied ones once, biases of heads;
    sharded ones as a whole. New words then start as likely as old ones, and no likelier.

    Args:
        model: The model, grown.
        state: Its tensors before it grew, by name, as `state_dict()` holds them; those with as many
            rows as now are left alone.
        seed: Seed of the random streams; None takes one from torch's global generator.

    Returns:
        The receipt; its plan keeps everything else.

    Raises:
        ArgumentError: Tensors differ in more than their number of rows, or none has gained any.

    Reference:
        Hewitt, *Initializing New Word Embeddings for Pretrained Language Models*, 2021.

    Examples:
        >>> words = nn.Embedding(100, 8)
        >>> state, words = words.state_dict(), nn.Embedding(103, 8)
        >>> receipt = initialize_rows(words, state, seed=0)
        >>> torch.equal(words.weight[:100], state["weight"])
        True
    """
    shapes = {name: site.shape for site in sites(require_module(model)) for name in site.names}
    first = {name: site.name for site in sites(model) for name in site.names}
    changed = {n: old for n, old in state.items() if n in shapes and tuple(old.shape) != shapes[n]}
    odd = [name for name, old in changed.items() if not _has_grown(shapes[name], old.shape)]
    grown = {first[name]: old for name, old in changed.items()}
    if odd or not grown:
        what = f"differ in more than added rows:\n{listing(odd)}" if odd else "have no more rows"
        raise ArgumentError(f"the tensors of {type(model).__name__} {what}")
    rules = [Rule(match.name(name), From(_rows_like(full(old)))) for name, old in grown.items()]
    policy = InitPolicy(rules, name="rows")
    return apply_policy(model, policy, seed=seed, only=list(grown), keep="nothing", frozen=True)


def _has_grown(shape: Collection[int], before: Collection[int]) -> bool:
    new, old = list(shape), list(before)
    return len(new) == len(old) > 0 and new[1:] == old[1:] and new[0] > old[0] > 0


_AT_ONCE = 1 << 24
"""Numbers that are drawn at once, one for each pair of a new row and an old one."""


def _rows_like(old: Tensor) -> Callable[[Tensor, torch.Generator], None]:
    """Return what fills a tensor with old rows, and new ones of their mean and covariance."""
    old = old.detach().clone()

    def rows(tensor: Tensor, generator: torch.Generator) -> None:
        count = len(old)
        known = old.to(tensor.device, torch.float64).reshape(count, -1)
        mean = known.mean(0)
        tensor[:count] = old.to(tensor)
        # Weighted sums of centred rows have their covariance, and need no root of a matrix.
        for part in tensor[count:].split(max(_AT_ONCE // count, 1)):
            weights = torch.empty(len(part), count, dtype=torch.float64, device=tensor.device)
            weights.normal_(0, max(count - 1, 1) ** -0.5, generator=generator)
            part.copy_((mean + weights @ (known - mean)).view(part.shape))

    return rows


def _is_part(tensor: nn.Parameter, site: Site) -> bool:
    return any(tensor is part for part in site.parameters)


def _names(missing: Collection[str] | Mapping[str, Collection[Any]]) -> set[str]:
    """Collect names; mismatched keys of transformers stand alone or before their two shapes."""
    if not isinstance(missing, Mapping):
        return {missing} if isinstance(missing, str) else set(missing)
    keys = (*missing.get("missing_keys", ()), *missing.get("mismatched_keys", ()))
    return {key if isinstance(key, str) else key[0] for key in keys}
