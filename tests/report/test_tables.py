"""Tables fit their terminal, cut nothing off, and say what the plan says."""

import dataclasses
import io
import re

import pytest
import torch
from rich.console import Console
from torch import nn

from torch_initpolicy import apply_policy, plan_policy
from torch_initpolicy.planning.describe import HEADINGS, rows
from torch_initpolicy.report.tables import plan_table, receipt_table


class Network(nn.Module):
    """A network of numbered blocks under a long name."""

    def __init__(self):
        super().__init__()
        self.a_block_with_quite_a_long_name = nn.Sequential(
            *(nn.Sequential(nn.Linear(16, 16), nn.GELU()) for _ in range(12)), nn.Linear(16, 3)
        )

    def forward(self, x):
        return self.a_block_with_quite_a_long_name(x)


@pytest.fixture(scope="module")
def uniform():
    """A plan all of whose facts come from the trace."""
    with torch.random.fork_rng(devices=[]):
        return plan_policy(Network(), example_inputs=torch.zeros(2, 16))


@pytest.fixture(scope="module")
def plan(uniform):
    """The same, with one step known from elsewhere."""
    *steps, last = uniform
    facts = dataclasses.replace(last.facts, evidence="order")
    return dataclasses.replace(uniform, steps=(*steps, dataclasses.replace(last, facts=facts)))


def printed(table, width):
    """Print into a terminal of a width, and return the lines without colours."""
    file = io.StringIO()
    Console(file=file, width=width, force_terminal=True).print(table)
    return re.sub(r"\x1b\[[0-9;]*m", "", file.getvalue()).splitlines()


class TestPlanTable:
    """A plan in a terminal."""

    @pytest.mark.parametrize("width", [60, 80, 100, 160])
    def test_fits(self, plan, width):
        """No line is wider than the terminal."""
        assert max(map(len, printed(plan_table(plan), width))) <= width

    def test_says_why_nothing_was_traced(self, uniform):
        """What the forward pass raised stands in the heading."""
        made = dataclasses.replace(uniform, untraced="ValueError: two of them")
        assert "(ValueError: two of them)" in "\n".join(printed(plan_table(made), 160))

    @pytest.mark.parametrize("width", [60, 80, 160])
    def test_nothing_is_cut_off(self, plan, width):
        """Every word of every row can be read, wrapped or not."""
        text = "".join(printed(plan_table(plan), width))
        letters = re.sub(r"\s", "", text)

        assert "\N{HORIZONTAL ELLIPSIS}" not in text
        for row in rows(plan):
            words = [word for cell in row for word in cell.split()]
            assert [word for word in words if word[:8] not in letters] == []

    def test_evidence_has_a_column_where_it_differs(self, plan, uniform):
        """Where the facts come from is a column only if it is not the same everywhere."""
        assert heading(plan) == list(HEADINGS)
        assert heading(uniform) == [name for name in HEADINGS if name != "from"]

    def test_heading(self, plan):
        """First comes what the plan is about."""
        first, *_ = printed(plan_table(plan), 100)

        assert first.startswith(f"policy auto: {len(plan)} parameters")


def heading(plan):
    """The headings that are shown."""
    lines = printed(plan_table(plan), 100)
    return next(line.split() for line in lines if line.startswith("parameter"))


class TestReceiptTable:
    """A receipt in a terminal."""

    def test_ends_with_what_was_written(self):
        """The plan is followed by the receipt in one sentence."""
        receipt = apply_policy(nn.Linear(4, 4), seed=7)

        *plan_lines, last = printed(receipt_table(receipt), 160)
        assert last == str(receipt)
        assert "policy auto" in plan_lines[0]
