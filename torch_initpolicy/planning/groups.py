"""Optimizer groups: which parameters share a learning rate and a weight decay, and why.

Knows the steps of a plan and the parameters they are about; builds no optimizer.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from torch_initpolicy.errors import PolicyError
from torch_initpolicy.multipliers import Multipliers, Optimizer, optimizer_named
from torch_initpolicy.sites import Site
from torch_initpolicy.steps import Step
from torch_initpolicy.tensors.base import plain_number
from torch_initpolicy.tensors.layers import Role

Group = dict[str, Any]
"""A parameter group as `torch.optim` takes it."""

DECAYED: frozenset[Role] = frozenset({"weight", "recurrent"})
"""Roles of what is decayed: matrices and kernels that a signal goes through. A norm, a bias, a
gain, a position or an embedding has no scale that decay could hold down without changing what the
model says."""

_AUXILIARY = optimizer_named("adamw")
"""Who takes what Muon and Dion do not: vectors, embeddings, heads, kernels."""


@dataclass(frozen=True, slots=True)
class Rates:
    """What the user asks of the groups; see `Grouped.param_groups`."""

    optimizer: Optimizer = field(init=False)
    name: str
    lr: float
    weight_decay: float
    eps: float | None = None
    adamw_lr: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "optimizer", optimizer_named(self.name))
        for name in ("lr", "weight_decay", "eps", "adamw_lr"):
            value = getattr(self, name)
            number = plain_number(value)
            left_out = value is None and name in ("eps", "adamw_lr")
            if not left_out and (number is None or not number >= 0):
                raise PolicyError(f"param_groups: {name} must be a number from 0 on, got {value!r}")


class Grouped(ABC):
    """Base of what holds a step for each site of a model: plans and receipts."""

    __slots__ = ()

    @abstractmethod
    def pairs(self, model: nn.Module | None = None) -> tuple[tuple[Site, Step], ...]:
        """Return each site of the model with its step."""

    def param_groups(
        self,
        optimizer: str = "adamw",
        *,
        lr: float,
        weight_decay: float = 0.0,
        eps: float | None = None,
        adamw_lr: float | None = None,
        model: nn.Module | None = None,
    ) -> list[Group]:
        """Put the trained parameters into groups, as `torch.optim` takes them.

        Matrices and kernels of layers are decayed; norms, biases, gains, positions, tokens and
        embeddings are not, whatever they are called and whatever their shape. A parametrisation
        (`presets.mup`) multiplies learning rate, decay and `eps` of each parameter.

        For `"muon"` and `"dion"` each group says under `"algorithm"` whose it is: hidden matrices
        are orthogonalised, all else is left to `"adamw"`. `torch.optim.Muon` takes tensors of two
        axes; `"dion"` stacked experts too, each a matrix of its own. Where a tensor holds several
        matrices, as of q, k and v, `"packed"` says along which axis and how large they are:
        `integrations.muon.Muon` orthogonalises each by itself.

        Args:
            optimizer: `"adamw"`, `"adam"`, `"nadam"`, `"radam"`, `"adamax"`, `"rmsprop"`,
                `"adagrad"`, `"lion"`, `"sgd"`, `"muon"` or `"dion"`.
            lr: Learning rate, under a parametrisation that of the base model.
            weight_decay: Weight decay of what is decayed, likewise.
            eps: What Adam and its like add to the size of a gradient, likewise; None for torch's
                default.
            adamw_lr: Learning rate of what Muon and Dion leave to AdamW; None for `lr`.
            model: A model with the same sites; None for the plan's own.

        Returns:
            Groups with `params`, `lr` and `weight_decay`, with `eps` where it is not the default,
            and, for people, the canonical `names` of the parameters and the `reason`. A frozen
            parameter is in none of them, a tied one in one.

        Raises:
            UnknownNameError: Nothing is known of an optimizer of that name.
            PolicyError: A number is negative.
            PlanError: The plan is for no model, or the model has other sites.

        Examples:
            >>> import torch
            >>> from torch_initpolicy import plan_policy
            >>> model = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.Linear(16, 4))
            >>> groups = plan_policy(model).param_groups("adamw", lr=1e-3, weight_decay=0.1)
            >>> [(group["names"], group["weight_decay"]) for group in groups]
            [(['0.weight', '2.weight'], 0.1), (['0.bias', '1.weight', '1.bias', '2.bias'], 0.0)]
            >>> groups[1]["reason"]
            'bias: not decayed; norm weight: not decayed; norm bias: not decayed'
            >>> optimizer = torch.optim.AdamW(groups)
        """
        rates = Rates(optimizer, lr, weight_decay, eps, adamw_lr)
        together: dict[tuple[tuple[str, Any], ...], list[tuple[Site, str]]] = {}
        for site, step in self.pairs(model):
            if any(parameter.requires_grad for parameter in site.parameters):
                settings, reason = _assigned(site, step, rates)
                together.setdefault(tuple(settings.items()), []).append((site, reason))
        return [
            {
                "params": [p for site, _ in held for p in site.parameters if p.requires_grad],
                **dict(settings),
                "names": [site.name for site, _ in held],
                "reason": "; ".join(dict.fromkeys(reason for _, reason in held)),
            }
            for settings, held in together.items()
        ]


def _assigned(site: Site, step: Step, rates: Rates) -> tuple[Group, str]:
    """Decide what the optimizer does with one parameter, and say why."""
    by = step.multipliers or Multipliers("fixed", base=step.shape)
    algorithm, why = _algorithm(site, step, rates.optimizer)
    name, decays = algorithm.name, step.role in DECAYED
    is_own = algorithm is rates.optimizer
    lr = rates.lr if is_own or rates.adamw_lr is None else rates.adamw_lr
    settings: Group = {
        "lr": lr * by.lr(name, step.shape),
        "weight_decay": rates.weight_decay * by.decay(name, step.shape) if decays else 0.0,
    }
    eps = algorithm.eps if rates.eps is None else rates.eps
    if eps is not None and (by.eps(name) != 1.0 or rates.eps is not None):
        settings["eps"] = eps * by.eps(name)
    if rates.optimizer.update == "orthogonal":
        settings["algorithm"] = name
        settings |= _packing(step) if is_own else {}
    role = f"{step.role.replace('_', ' ')}: {'decayed' if decays else 'not decayed'}"
    return settings, ", ".join(filter(None, (role, why, by.reason)))


def _algorithm(site: Site, step: Step, optimizer: Optimizer) -> tuple[Optimizer, str]:
    """Say whether a matrix is orthogonalised, and why it is not.

    Reference:
        Jordan et al., *Muon: an optimizer for hidden layers in neural networks*, 2024: inputs,
        outputs, embeddings and vectors are left to AdamW.
    """
    if optimizer.update != "orthogonal":
        return optimizer, ""
    why = _unfit(site, step, stacks=optimizer.name == "dion")
    return (optimizer, _matrices(step)) if why is None else (_AUXILIARY, why)


def _unfit(site: Site, step: Step, *, stacks: bool) -> str | None:
    """Say why a parameter is no hidden matrix; None for one that is."""
    if step.role not in DECAYED:
        return f"AdamW, as it is no matrix between hidden layers ({step.role.replace('_', ' ')})"
    if step.facts.feeds_output:
        return "AdamW, as it makes the model's output"
    if step.facts.reads_input:
        return "AdamW, as it reads the model's input"
    if site.storage != "plain":
        return f"AdamW, as it is held in parts ({site.storage})"
    copies = () if step.facts.axes is None else step.facts.axes.copies
    if len(step.shape) - len(copies) != 2 or (copies and not stacks):
        return f"AdamW, as torch.optim.Muon takes matrices and this has {len(step.shape)} axes"
    return None


def _matrices(step: Step) -> str:
    """Say which matrices a parameter holds: packed blocks, stacked experts, or itself."""
    axes = step.facts.axes
    if axes is not None and axes.copies:
        return f"hidden matrices, {step.shape[axes.copies[0]]} stacked"
    if axes is not None and axes.blocks:
        how = "packed" if _packing(step) else "interleaved and taken as one"
        return f"hidden matrices, {len(axes.blocks)} {how}"
    return "hidden matrix"


def _packing(step: Step) -> Group:
    """Say along which axis which sizes are packed, for an optimizer that splits tensors."""
    axes = step.facts.axes
    if axes is None or not axes.blocks or axes.repeats > 1 or axes.view:
        return {}
    return {"packed": (axes.packed, axes.blocks)}
