"""Families: which parameter of a base model stands for which of a model of another size."""

import pytest
import torch
from torch import nn

from tests.policy.hand import Residual, multiplied, tower
from torch_initpolicy import plan_policy, presets
from torch_initpolicy.errors import PlanError


class TestCounterparts:
    """Models of other depths."""

    def test_names_of_other_depths(self):
        """Blocks that the base has not stand beside those that do the same."""
        plan = plan_policy(Residual(32, 6), presets.mup(base=Residual(8, 2)))

        for block in range(6):
            assert multiplied(plan, f"blocks.{block}.1.weight") == (0.5, 0.25, 1.0)

    def test_by_what_they_do(self):
        """Where the head of one has the name of a hidden layer of the other, the part tells."""
        plan = plan_policy(tower(32, 4), presets.mup(base=tower(8, 2)))

        assert [plan[f"{2 * i}.weight"].multipliers.like for i in range(5)] == [
            *("input", "hidden", "hidden", "hidden", "output"),
        ]

    def test_nothing_stands_for_it(self):
        """Every parameter without a counterpart is named."""
        with pytest.raises(PlanError, match=r"nothing that stands for.*\n.*stem.weight"):
            plan_policy(Residual(8, 2), presets.mup(base=tower(8, 2)))

    def test_numbers_within_words(self):
        """Layers of torch's LSTM are numbered `_l0`, and others `layer_0`."""
        plan = plan_policy(Recurrent(32, 4), presets.mup(base=Recurrent(8, 2)))

        assert {multiplied(plan, f"lstm.weight_hh_l{i}") for i in range(4)} == {(0.5, 0.25, 1.0)}
        assert {multiplied(plan, f"layer_{i}.weight") for i in range(4)} == {(0.5, 0.25, 1.0)}

    def test_stages_that_start_later(self):
        """A block of the first stage stands for one of it, whatever the base has at its number."""
        plan = plan_policy(Stages((16, 16, 16, 64)), presets.mup(base=Stages((4, 4, 16))))

        assert [plan[f"blocks.{i}.weight"].multipliers.base for i in range(4)] == [
            *((4, 4), (4, 4), (4, 4), (16, 4)),
        ]

    def test_a_kind_of_block_that_the_base_has_not(self):
        """The base ends with the block that widens; nothing stands for the one behind it."""
        with pytest.raises(PlanError, match=r"blocks.3.weight.*\(64, 64\); of its kind.*\(16, 4\)"):
            plan_policy(Stages((16, 16, 64, 64)), presets.mup(base=Stages((4, 4, 16))))


class Recurrent(nn.Module):
    """Recurrent layers, and others of numbered names."""

    def __init__(self, width, depth):
        super().__init__()
        self.table = nn.Embedding(9, width)
        self.lstm = nn.LSTM(width, width, depth, batch_first=True)
        self.layers = [f"layer_{i}" for i in range(depth)]
        for name in self.layers:
            self.add_module(name, nn.Linear(width, width))
        self.head = nn.Linear(width, 5)
        self.example_input_array = torch.zeros(2, 4, dtype=torch.int64)

    def forward(self, tokens):
        """Go through all of them."""
        x, _ = self.lstm(self.table(tokens))
        for name in self.layers:
            x = torch.relu(self.get_submodule(name)(x))
        return self.head(x)


class Stages(nn.Module):
    """Blocks numbered through all stages, each of its own width."""

    def __init__(self, widths):
        super().__init__()
        inputs = (widths[0], *widths)
        self.stem = nn.Linear(3, widths[0])
        self.blocks = nn.ModuleList(map(nn.Linear, inputs, widths))
        self.head = nn.Linear(widths[-1], 2)
        self.example_input_array = torch.zeros(2, 3)

    def forward(self, x):
        """Widen step by step."""
        x = self.stem(x)
        for block in self.blocks:
            x = torch.relu(block(x))
        return self.head(x)
