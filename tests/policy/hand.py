"""Sites and facts made by hand, so that policies are tested without a trace."""

from dataclasses import replace

import torch
from torch import nn

from torch_initpolicy.sites import Site
from torch_initpolicy.tensors.layers import axes_of, padding_of, role_of
from torch_initpolicy.trace.facts import Facts


def site(owner: nn.Module, attribute: str = "weight", prefix: str = "", **changes: object) -> Site:
    """Describe one parameter of a layer, called `prefix.attribute`."""
    parameter = owner.get_parameter(attribute)
    name = f"{prefix}.{attribute}" if prefix else attribute
    described = Site(
        name=name,
        names=(name,),
        owner=owner,
        attribute=attribute,
        shape=tuple(parameter.shape),
        dtype=parameter.dtype,
        device=torch.device("cpu"),
        requires_grad=True,
        parameters=(parameter,),
        role=role_of(owner, attribute),
        axes=axes_of(owner, attribute),
        padding=padding_of(owner, attribute),
    )
    return replace(described, **changes)


def facts(of: Site, **changes: object) -> Facts:
    """Say about a site what its owner's type says, and something more."""
    return replace(Facts(of.role, of.axes), **changes)
