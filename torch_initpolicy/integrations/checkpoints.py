"""Checkpoints of any kind that lack parameters: a new head on a pretrained body."""

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

from torch_initpolicy.api import apply_policy
from torch_initpolicy.errors import UnknownNameError, listing
from torch_initpolicy.planning.plan import Receipt
from torch_initpolicy.planning.selection import Options, require_known
from torch_initpolicy.policy.presets import Policyish
from torch_initpolicy.sites import Site, require_module, sites

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["initialize_missing"]


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


def _is_part(tensor: nn.Parameter, site: Site) -> bool:
    return any(tensor is part for part in site.parameters)


def _names(missing: Collection[str] | Mapping[str, Collection[Any]]) -> set[str]:
    """Collect names; mismatched keys of transformers stand alone or before their two shapes."""
    if not isinstance(missing, Mapping):
        return {missing} if isinstance(missing, str) else set(missing)
    keys = (*missing.get("missing_keys", ()), *missing.get("mismatched_keys", ()))
    return {key if isinstance(key, str) else key[0] for key in keys}
