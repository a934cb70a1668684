"""Modules that are copies of one another are found: the largest there are."""

import copy

import pytest
import torch
from torch import nn

from torch_initpolicy.symmetry.modules import equal_modules


class TestEqualModules:
    def test_largest_only(self):
        """Copies are one group; their parts are no groups of their own."""
        branch = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 4))
        model = nn.ModuleDict({"a": branch, "b": copy.deepcopy(branch), "c": nn.Linear(4, 6)})

        assert [copies.names for copies in equal_modules(model)] == [("a", "b")]

    def test_parts_of_different_wholes(self):
        """Equal layers in unequal modules are found as layers."""
        layer = nn.Linear(4, 6)
        model = nn.ModuleDict(
            {
                "a": nn.Sequential(layer, nn.Linear(6, 4)),
                "b": nn.Sequential(copy.deepcopy(layer), nn.Linear(6, 4)),
            }
        )

        assert [copies.names for copies in equal_modules(model)] == [("a.0", "b.0")]

    def test_two_groups(self):
        """Three copies of one module and two of another are two groups."""
        first, second = nn.Linear(4, 6), nn.Linear(4, 6)
        model = nn.ModuleList(copy.deepcopy(m) for m in (first, second, first, second, first))

        assert [copies.names for copies in equal_modules(model)] == [("0", "2", "4"), ("1", "3")]

    def test_shared_frozen_and_normalising_modules_are_none(self):
        """One module under two names, a frozen copy, and neutral norms are no equal_modules."""
        layer = nn.Linear(4, 6)
        model = nn.ModuleDict(
            {
                "layer": layer,
                "again": layer,
                "target": copy.deepcopy(layer).requires_grad_(False),
                "norm1": nn.LayerNorm(6),
                "norm2": nn.LayerNorm(6),
            }
        )

        assert equal_modules(model) == ()

    def test_nearly_equal(self):
        """Noise far below the weights does not make two of one."""
        layer = nn.Linear(4, 6).double()
        other = copy.deepcopy(layer)
        with torch.no_grad():
            other.weight += 1e-9 * torch.randn_like(other.weight)
            other.bias += 1e-9 * torch.randn_like(other.bias)
        model = nn.ModuleList([layer, other])

        assert [copies.names for copies in equal_modules(model)] == [("0", "1")]

    def test_modules_that_hold_a_number(self):
        """A parameter without axes (a residual gain) is compared like any other."""

        class Gained(nn.Linear):
            def __init__(self) -> None:
                super().__init__(4, 6)
                self.gain = nn.Parameter(torch.tensor(0.5))

        first = Gained()
        other = copy.deepcopy(first)
        with torch.no_grad():
            other.gain += 1
        model = nn.ModuleList([first, copy.deepcopy(first), other])

        assert [copies.names for copies in equal_modules(model)] == [("0", "1")]

    def test_random_modules_of_one_shape(self):
        """Modules that only look equal_rows are told apart."""
        assert equal_modules(nn.ModuleList(nn.Linear(4, 6) for _ in range(5))) == ()

    @pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
    def test_directions(self, kind):
        """The two directions of a recurrent layer are found, layer by layer, by their pattern."""
        layer = bidirectional(kind, layers=2)

        assert [found.names for found in equal_modules(nn.ModuleDict({"r": layer}))] == [
            ("r.*_l1", "r.*_l1_reverse")
        ]


def bidirectional(kind: type[nn.RNNBase], *, layers: int = 1) -> nn.RNNBase:
    """Make a recurrent layer the directions of which are copies in its last layer."""
    layer = kind(5, 6, layers, bidirectional=True, batch_first=True)
    weights = dict(layer.named_parameters())
    with torch.no_grad():
        for name, weight in weights.items():
            if name.endswith(f"_l{layers - 1}"):
                weights[f"{name}_reverse"].copy_(weight)
    return layer
