"""Multipliers: what a parametrisation multiplies at one parameter, and what optimizers make of it.

Knows ratios of widths and depths to those of a base model; has no model, no trace, no policy.

Every number here follows from three ratios and two laws. The ratios are those of a parameter to its
counterpart in the base model: `fan_in`, connections into one unit; `width`, units it writes;
`depth`, residual branches. The laws:

- *Table 8 of Tensor Programs V* (Yang et al., 2022, arXiv:2203.03466), written without forward
  multipliers as in its table 3, says how standard deviation and learning rate go with the ratios.
- *The abc-symmetry* (Yang and Hu, 2020, arXiv:2011.14522; appendix B of Tensor Programs V): to
  multiply a weight by `c` in the forward pass is to draw it `c` times as wide and to learn it
  `c^2` times as fast by SGD, `c` times as fast by an optimizer that normalises its gradient. So
  forward multipliers fold away.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from torch_initpolicy.errors import UnknownNameError, nearest

Like = Literal["hidden", "input", "output", "vector", "fixed"]
"""How a parameter grows with width: `hidden`, from width to width; `input`, from a fixed number of
inputs to width; `output`, from width to a fixed number of units; `vector`, one number for each
unit (biases, norms, depthwise kernels); `fixed`, not at all."""

UpdateKind = Literal["gradient", "sign", "orthogonal"]
"""What an optimizer adds to a weight: the gradient; the gradient over its own size, element by
element; or the gradient with all its singular values set to one."""


@dataclass(frozen=True, slots=True)
class Optimizer:
    """What matters about an optimizer: what it adds to a weight, and how it decays weights.

    Attributes:
        name: What it is called, in lower case.
        update: What it adds.
        decoupled: Whether weight decay is kept out of the gradient.
        eps: Its default `eps`, which is added to the size of a gradient; None where there is none,
            or where it does not matter.
    """

    name: str
    update: UpdateKind
    decoupled: bool = False
    eps: float | None = None


_OPTIMIZERS: Mapping[str, Optimizer] = MappingProxyType({
    optimizer.name: optimizer
    for optimizer in (
        Optimizer("sgd", "gradient"),
        Optimizer("adam", "sign", eps=1e-8),
        Optimizer("adamw", "sign", decoupled=True, eps=1e-8),
        Optimizer("nadam", "sign", eps=1e-8),
        Optimizer("radam", "sign", eps=1e-8),  # but for its first steps, which are the gradient's
        Optimizer("adamax", "sign", eps=1e-8),
        Optimizer("rmsprop", "sign", eps=1e-8),
        Optimizer("adagrad", "sign", eps=1e-10),
        Optimizer("lion", "sign", decoupled=True),
        Optimizer("muon", "orthogonal", decoupled=True),
        Optimizer("dion", "orthogonal", decoupled=True),
    )
})  # fmt: skip


def optimizer_named(name: str) -> Optimizer:
    """Return what matters about an optimizer.

    Raises:
        UnknownNameError: Nothing is known of an optimizer of that name.

    Examples:
        >>> optimizer_named("AdamW").decoupled
        True
    """
    found = _OPTIMIZERS.get(str(name).lower())
    if found is None:
        known = ", ".join(_OPTIMIZERS)
        meant = nearest(str(name).lower(), _OPTIMIZERS)
        raise UnknownNameError(f"no optimizer is called {name!r}{meant}; there are {known}")
    return found


@dataclass(frozen=True, slots=True)
class Multipliers:
    """What a parametrisation multiplies at one parameter, relative to the base model.

    At the base model's own size every multiplier is one.

    Attributes:
        like: How the parameter grows with width.
        std: Of the standard deviation that the base model draws with; one number, or one for each
            packed block where they differ.
        fan_in: Its fan-in over that of the base model; of packed blocks, the largest.
        width: Units that it writes over those in the base model; of packed blocks, the smallest.
        depth: How many times as small its gradient is for the number of residual branches.
        folded: Forward multiplier that `std` and the learning rate stand for: of a residual branch,
            at the parameter that closes it.
        forward: Forward multiplier that is left for a hook, since it cannot be folded; 1.0 for
            none.
        base: Shape of its counterpart in the base model; empty where there is no base.
        reason: Why, in words.

    Examples:
        A hidden matrix at four times the width of the base:

        >>> hidden = Multipliers("hidden", std=0.5, fan_in=4.0, width=4.0)
        >>> hidden.lr("adamw"), hidden.lr("sgd"), hidden.decay("adamw"), hidden.eps("adamw")
        (0.25, 1.0, 4.0, 0.25)
    """

    like: Like
    std: float | tuple[float, ...] = 1.0
    fan_in: float = 1.0
    width: float = 1.0
    depth: float = 1.0
    folded: float = 1.0
    forward: float = 1.0
    base: tuple[int, ...] = ()
    reason: str = ""

    def lr(self, optimizer: str, shape: Sequence[int] = ()) -> float:
        """Return the multiplier of the learning rate.

        A change of the weight must change what its units put out by as much at every width: the
        spectral norm of the change goes with `sqrt(width / fan_in)` (Yang, Simon and Bernstein,
        2023, arXiv:2310.17813, condition 1). SGD adds a gradient that is `width` times as small;
        a sign has a spectral norm of `sqrt(width * fan_in)`; an orthogonal matrix has one of 1.

        Args:
            optimizer: Its name.
            shape: Shape of the parameter, which `torch.optim.Muon` looks at by itself.

        Raises:
            UnknownNameError: Nothing is known of an optimizer of that name.
        """
        known = optimizer_named(optimizer)
        if known.update == "gradient":
            return self.width / self.fan_in * self.folded**2 * self.depth
        if known.update == "sign":
            return self.folded / self.fan_in
        if known.name == "dion":  # multiplies by sqrt(fan_out / fan_in) by itself
            return self.folded
        built_in = _adjustment(shape) / _adjustment(self.base)
        return math.sqrt(self.width / self.fan_in) * self.folded / built_in

    def eps(self, optimizer: str) -> float:
        """Return the multiplier of `eps`: it goes with the size of the gradient.

        The gradient of a unit is `width` times as small, that of a residual branch `depth` times;
        a folded multiplier `c` makes that of the weight `c` times as small.

        Reference:
            Dey et al., *Don't be lazy: CompleteP enables compute-efficient deep transformers*,
            2025, arXiv:2505.01618, table 1.
        """
        if optimizer_named(optimizer).eps is None:
            return 1.0
        return 1.0 / (self.width * self.depth * self.folded)

    def decay(self, optimizer: str, shape: Sequence[int] = ()) -> float:
        """Return the multiplier of `weight_decay`.

        A step must shrink the weight by the same share at every width. Decoupled decay shrinks it
        by learning rate times decay, which stays the same; decay that is added to the gradient
        must go with the ratio of gradient and step, `eps / lr` for a gradient that is normalised.
        """
        known = optimizer_named(optimizer)
        if known.update == "sign" and not known.decoupled:
            return self.eps(optimizer) / self.lr(optimizer)
        return 1.0 / self.lr(optimizer, shape)


def _adjustment(shape: Sequence[int]) -> float:
    """Return what `torch.optim.Muon` multiplies by itself, under `adjust_lr_fn="original"`."""
    return math.sqrt(max(1.0, shape[0] / shape[1])) if len(shape) == 2 and all(shape) else 1.0
