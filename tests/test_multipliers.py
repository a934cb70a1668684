"""Multipliers: what width and depth ask of standard deviation, learning rate, `eps` and decay."""

import itertools
import math
from functools import partial

import pytest
import torch

from torch_initpolicy.errors import UnknownNameError
from torch_initpolicy.multipliers import Multipliers, optimizer_named

HIDDEN = Multipliers("hidden", std=0.5, fan_in=4.0, width=4.0)
INPUT = Multipliers("input", width=4.0)
OUTPUT = Multipliers("output", std=0.25, fan_in=4.0)

# Tensor Programs V (arXiv:2203.03466), table 3, whose output weights have no forward multiplier.
TABLE_3 = (
    ("hidden", HIDDEN, {"sgd": 1.0, "adam": 1 / 4}),
    ("input", INPUT, {"sgd": 4.0, "adam": 1.0}),
    ("output", OUTPUT, {"sgd": 1 / 4, "adam": 1 / 4}),
)


class TestWidth:
    """Learning rates at four times the width."""

    @pytest.mark.parametrize(("like", "multipliers", "expected"), TABLE_3, ids=lambda x: str(x)[:6])
    def test_table_3(self, like, multipliers, expected):
        """SGD and Adam get what table 3 of Tensor Programs V says."""
        del like

        assert {name: multipliers.lr(name) for name in expected} == expected

    @pytest.mark.parametrize("multipliers", [HIDDEN, INPUT, OUTPUT])
    @pytest.mark.parametrize("name", ["adam", "nadam", "radam", "adamax", "rmsprop", "lion"])
    def test_normalised_gradients(self, multipliers, name):
        """Whatever normalises its gradient gets what Adam gets."""
        assert multipliers.lr(name) == multipliers.lr("adamw")

    @pytest.mark.parametrize(("rows", "columns"), [*itertools.product((8, 16, 64), repeat=2)])
    def test_muon(self, rows, columns):
        """With what torch's Muon multiplies by itself, the change goes with sqrt(out / in)."""
        base, factor = (rows, columns), 4
        matrix = Multipliers("hidden", fan_in=factor, width=factor, base=base)
        shape = (rows * factor, columns * factor)
        changes = [_muon_change(base, 1.0), _muon_change(shape, matrix.lr("muon", shape))]

        assert changes[1] == pytest.approx(changes[0], rel=0.35)  # Newton-Schulz is rough


def _muon_change(shape, lr):
    """Return the root mean square of the singular values of what one step of Muon adds."""
    weight = torch.nn.Parameter(torch.zeros(shape))
    optimizer = torch.optim.Muon([weight], lr=lr, weight_decay=0.0)
    weight.grad = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    optimizer.step()
    return float(weight.detach().norm()) / math.sqrt(min(shape))


class Lion(torch.optim.Optimizer):
    """The signs of a moving mean (Chen et al., 2023, arXiv:2302.06675, algorithm 2)."""

    def step(self):
        """Decay, and go along the signs."""
        for group in self.param_groups:
            for weight in group["params"]:
                mean = self.state[weight].setdefault("mean", torch.zeros_like(weight))
                update = (0.9 * mean + 0.1 * weight.grad).sign()
                mean.mul_(0.99).add_(weight.grad, alpha=0.01)
                decayed = weight.detach() * (1 - group["lr"] * group["weight_decay"])
                weight.data = decayed - group["lr"] * update


KINDS = {
    "sgd": partial(torch.optim.SGD, momentum=0.9),
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "adamax": torch.optim.Adamax,
    "nadam": torch.optim.NAdam,
    "adagrad": torch.optim.Adagrad,
    "rmsprop": torch.optim.RMSprop,
    "lion": lambda weights, **options: Lion(weights, options),
    "muon": torch.optim.Muon,
}


class TestSymmetry:
    """A forward multiplier and what it folds into are one and the same training."""

    @pytest.mark.parametrize("name", KINDS)
    def test_folded(self, name):
        """A multiplier 0.25 in the forward pass, or none with its share in std, lr, eps, decay."""
        folded = Multipliers("hidden", std=0.25, folded=0.25)
        plain = _trained(name, forward=0.25)
        same = _trained(name, forward=1.0, multipliers=folded)

        assert same == pytest.approx(plain, rel=1e-6)
        assert plain[-1] != pytest.approx(plain[0], rel=1e-2)

    def test_without_eps_it_would_show(self):
        """The test above sees `eps`: with the multiplier left out the trainings part."""
        folded = Multipliers("hidden", std=0.25, folded=0.25)
        plain = _trained("adamw", forward=0.25)
        other = _trained("adamw", forward=1.0, multipliers=folded, eps=False)

        assert other != pytest.approx(plain, rel=1e-4)


def _trained(name, *, forward, multipliers=Multipliers("fixed"), eps=True):  # noqa: B008 - a value
    """Return the losses of ten steps on a linear map under a forward multiplier."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(4, 8, generator=generator, dtype=torch.float64) * multipliers.std
    weight = torch.nn.Parameter(weight)
    inputs = torch.randn(16, 8, generator=generator, dtype=torch.float64)
    options = {
        "lr": 0.05 * multipliers.lr(name),
        "weight_decay": 0.1 * multipliers.decay(name),
    }
    if name not in ("sgd", "lion", "muon"):
        options["eps"] = 0.1 * (multipliers.eps(name) if eps else 1.0)
    optimizer = KINDS[name]([weight], **options)
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        loss = (inputs @ weight.T * forward - 1.0).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_unknown_optimizer():
    """An optimizer nobody knows is refused, with the one that was meant."""
    with pytest.raises(UnknownNameError, match="adamw"):
        optimizer_named("adam_w")
