"""Inputs are new at every step and like those that were given."""

import pytest
import torch
from torch import Tensor

from torch_initpolicy.symmetry.batches import Batches, Style
from torch_initpolicy.trace.trees import Call


def batches(*inputs: Tensor, style: Style = "fresh") -> Batches:
    """Draw like the given inputs."""
    return Batches(Call(inputs), style=style, vocabulary=10)


class TestBatches:
    def test_new_at_every_step_and_the_same_again(self):
        """Steps differ; a step repeated is the same to the bit."""
        drawn = [batches(torch.zeros(4, 3)).draw(step).args[0] for step in (1, 2, 1)]

        assert torch.equal(drawn[0], drawn[2])
        assert not torch.equal(drawn[0], drawn[1])

    @pytest.mark.parametrize(
        ("like", "expected"),
        [
            (torch.zeros(900), (-8.0, 8.0)),
            (torch.full((900,), 3.0), (-3.0, 9.0)),
            (torch.rand(900) + 2, (2.0, 3.0)),
            (torch.randn(900) * 5 + 1, (-40.0, 40.0)),
        ],
        ids=["zeros", "constant", "positive", "normal"],
    )
    def test_range_of_numbers(self, like, expected):
        """Numbers are of the size of the given ones, and positive where those are."""
        (drawn,) = batches(like).draw(1).args

        assert drawn.dtype == torch.float64
        assert drawn.std() > 0.1
        assert expected[0] <= drawn.min()
        assert drawn.max() <= expected[1]

    @pytest.mark.parametrize(
        "like",
        [
            torch.tensor([[1.0, 1.0, 0.0]]),
            torch.tensor([[0.0, -torch.inf]]),
            torch.tensor([[True, False]]),
            torch.tensor([[1, 1, 0]]),
            torch.tensor([5]),
        ],
        ids=["mask", "additive mask", "flags", "whole mask", "length"],
    )
    def test_masks_and_lengths_are_kept(self, like):
        """What has a meaning of its own is handed on."""
        (drawn,) = batches(like).draw(1).args

        assert torch.equal(drawn, like.to(drawn.dtype))

    def test_indices_stay_in_range(self):
        """Indices are drawn between the smallest and the largest given."""
        (drawn,) = batches(torch.tensor([3, 9, 4] * 50)).draw(1).args

        assert set(drawn.tolist()) == {3, 4, 5, 6, 7, 8, 9}

    def test_shapes_alone_will_do(self):
        """On the meta device shape and kind are all that is known."""
        floats, indices = (
            batches(
                torch.empty(90, device="meta"), torch.empty(90, device="meta", dtype=torch.int64)
            )
            .draw(1)
            .args
        )

        assert floats.std() > 0.5
        assert indices.min() >= 0
        assert 5 < indices.max() < 10

    @pytest.mark.parametrize(("style", "most"), [("given", 0.0), ("near", 1.0)])
    def test_other_styles(self, style, most):
        """The given numbers as they are, or with a tenth of noise."""
        like = torch.randn(50)
        (drawn,) = batches(like, style=style).draw(1).args
        change = ((drawn - like) / like).abs()

        assert change.max() <= most
        assert (change.mean() > 0.01) == (style == "near")
