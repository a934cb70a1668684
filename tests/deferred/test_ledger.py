"""Distributions that have been put off, and the book that is kept of them."""

import math

import pytest
import torch
from torch import nn

from torch_initpolicy.deferred.ledger import (
    Ledger,
    MatrixDraw,
    NormalDraw,
    UniformDraw,
    covers_storage,
    same_storage,
)
from torch_initpolicy.tensors.initializers import Normal, Orthogonal, Sparse, TruncatedNormal

INFINITE = math.inf


class TestAlgebra:
    """What becomes of a distribution when its numbers are changed."""

    @pytest.mark.parametrize(
        ("found", "expected"),
        [
            (UniformDraw(-1.0, 3.0).scaled(-0.5), UniformDraw(-1.5, 0.5)),
            (UniformDraw(-1.0, 3.0).shifted(1.0), UniformDraw(0.0, 4.0)),
            (NormalDraw(1.0, 2.0, -1.0, 3.0).scaled(-1.0), NormalDraw(-1.0, 2.0, -3.0, 1.0)),
            (NormalDraw(1.0, 2.0, -1.0, 3.0).shifted(-1.0), NormalDraw(0.0, 2.0, -2.0, 2.0)),
            (NormalDraw(0.0, 1.0).rejected(-2.0, 3.0), NormalDraw(0.0, 1.0, -2.0, 3.0)),
            (NormalDraw(0.0, 1.0, -2.0, 2.0).clamped(-2.0, 2.0), NormalDraw(0.0, 1.0, -2.0, 2.0)),
            (NormalDraw(0.0, 0.02).clamped(-2.0, 2.0), NormalDraw(0.0, 0.02, -2.0, 2.0)),
            (UniformDraw(-1.0, 1.0).erfinv(), NormalDraw(0.0, math.sqrt(0.5))),
            (MatrixDraw(Orthogonal(2.0)).scaled(-0.5), MatrixDraw(Orthogonal(1.0))),
            (MatrixDraw(Sparse(0.1, 2.0)).scaled(-0.5), MatrixDraw(Sparse(0.1, 1.0))),
        ],
    )
    def test_expressible(self, found, expected):
        """Scaling, shifting, cutting: computed by hand."""
        assert found == expected

    @pytest.mark.parametrize(
        "found",
        [
            NormalDraw(0.0, 1.0).clamped(-2.0, 2.0),  # heaps up what lies beyond
            NormalDraw(0.0, 1.0, -2.0, 2.0).clamped(-INFINITE, 1.0),
            NormalDraw(0.0, 1.0).scaled(0.0),
            NormalDraw(0.0, 1.0).erfinv(),
            UniformDraw(-2.0, 1.0).erfinv(),
            UniformDraw(0.0, 1.0).clamped(0.0, 0.5),
            MatrixDraw(Orthogonal()).shifted(1.0),
            MatrixDraw(Sparse(0.1, 1.0)).clamped(0.0, 1.0),
        ],
    )
    def test_not_expressible(self, found):
        """What is no distribution that we know has no name."""
        assert found is None

    def test_erfinv_of_a_part(self):
        """The image of the quartiles of a uniform draw: 0.4769 is erfinv(1/2)."""
        draw = UniformDraw(-0.5, 0.5).erfinv()

        assert (draw.low, draw.high) == pytest.approx((-0.4769362762, 0.4769362762))

    @pytest.mark.parametrize(
        ("draw", "expected"),
        [
            (NormalDraw(0.1 + 0.2, 0.1 * 0.2), Normal(0.02, 0.3)),
            (NormalDraw(0.0, 1.0, -8.5, 9.0), Normal(1.0)),
            (NormalDraw(0.0, 0.5, -1.0, 1.0), TruncatedNormal(0.439812830517, cut=2.0)),
            (NormalDraw(0.0, 1.0, -1.0, 2.0), None),
            (NormalDraw(0.0, 1.0, -INFINITE, 2.0), None),
        ],
        ids=["digits", "wide", "truncated", "lopsided", "one-sided"],
    )
    def test_initializer(self, draw, expected):
        """The initializer draws the same, written without the dust of arithmetic."""
        assert draw.initializer == expected

    def test_lopsided_draw(self):
        """What no initializer expresses is drawn by torch, within its bounds."""
        tensor = torch.empty(10_000)
        NormalDraw(0.0, 1.0, -1.0, INFINITE).draw_(tensor, None)

        assert tensor.min() >= -1.0
        assert tensor.max() > 2.5
        assert tensor.mean().item() == pytest.approx(0.2876, abs=0.04)  # a table's value


class TestLedger:
    """One entry per storage."""

    def test_aliases_share(self):
        """Views find the entry of what they are a view of; copies find none."""
        ledger, tensor = Ledger(), torch.empty(4, 3)
        ledger.put_off(tensor, NormalDraw())

        assert ledger.find(tensor.t()[1:]) is ledger.find(tensor)
        assert ledger.find(tensor.clone()) is None

    def test_settle(self):
        """Settling draws once, with the generator that was passed."""
        ledger, tensor = Ledger(), torch.zeros(4, 3)
        ledger.put_off(tensor, UniformDraw(), torch.Generator().manual_seed(1))
        ledger.settle(tensor[2])

        assert torch.equal(
            tensor, torch.empty(4, 3).uniform_(generator=torch.Generator().manual_seed(1))
        )
        assert ledger.find(tensor) is None

    def test_freed_storage(self):
        """Nothing is drawn for bytes that nobody holds, and the book keeps none alive."""
        ledger = Ledger()
        tensor = torch.empty(4)
        ledger.put_off(tensor, NormalDraw())
        del tensor
        before = torch.get_rng_state()
        (entry,) = ledger.close()
        entry.settle()

        assert torch.equal(before, torch.get_rng_state())

    def test_parameters(self):
        """An entry knows the parameters that live there, as long as they do."""
        ledger, tensor = Ledger(), torch.empty(4)
        first, second = nn.Parameter(tensor), nn.Parameter(tensor)
        for parameter in (first, second):
            ledger.see(parameter)
        ledger.put_off(tensor, NormalDraw())
        second.data = torch.ones(4)

        (entry,) = ledger.close()
        assert [id(parameter) for parameter in entry.living] == [id(first)]

    @pytest.mark.parametrize(
        ("index", "row"), [(2, 2), (slice(2, 3), 2), (slice(0, 2), None), ((slice(None), 0), None)]
    )
    def test_row(self, index, row):
        """A view that is a row says which."""
        ledger, tensor = Ledger(), torch.empty(4, 3)
        ledger.put_off(tensor, NormalDraw())

        assert ledger.find(tensor).row(tensor[index]) == row


def test_storages():
    """All of a storage in order, or not."""
    tensor = torch.empty(4, 3)

    assert covers_storage(tensor)
    assert covers_storage(tensor.view(-1))
    assert not covers_storage(tensor[1:])
    assert not covers_storage(tensor.t())
    assert same_storage(tensor, tensor.t())
    assert not same_storage(tensor, tensor.clone())
