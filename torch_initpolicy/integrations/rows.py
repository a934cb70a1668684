"""New words in a vocabulary: rows that tensors have gained since their model was trained."""

from collections.abc import Callable, Collection, Mapping

import torch
from torch import Tensor, nn

from torch_initpolicy.api import apply_policy
from torch_initpolicy.errors import ArgumentError, listing
from torch_initpolicy.planning.plan import Receipt
from torch_initpolicy.policy import match
from torch_initpolicy.policy.rules import InitPolicy, Rule
from torch_initpolicy.sites import require_module, sites
from torch_initpolicy.tensors.initializers import From
from torch_initpolicy.writing.shards import full

__all__ = ["initialize_rows"]


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
    held = {name: site for site in sites(require_module(model)) for name in site.names}
    changed = {n: old for n, old in state.items() if n in held and old.shape != held[n].shape}
    odd = [name for name, old in changed.items() if not _has_grown(held[name].shape, old.shape)]
    grown = {held[name].name: old for name, old in changed.items()}
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
        for part in torch.split(tensor[count:], max(_AT_ONCE // count, 1)):
            weights = torch.empty(len(part), count, dtype=torch.float64, device=tensor.device)
            weights.normal_(0, max(count - 1, 1) ** -0.5, generator=generator)
            part.copy_((mean + weights @ (known - mean)).view(part.shape))

    return rows
