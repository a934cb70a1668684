"""Gradients on copies: the right ones, without rounding, on inputs like those that were given."""

import contextlib
import random

import pytest
import torch
from torch import Tensor, nn

from torch_initpolicy.symmetry.replica import Batches, Replica, prepared, vocabulary
from torch_initpolicy.trace.trees import Call


def batches(*inputs: Tensor, style: str = "fresh", dtype: torch.dtype = torch.float64) -> Batches:
    """Draw like the given inputs."""
    return Batches(Call(inputs), style, dtype, torch.device("cpu"), vocabulary=10)


def replica(model: nn.Module, *inputs: Tensor, dtype: torch.dtype = torch.float64) -> Replica:
    """Make a replica of a model that trains all its parameters."""
    made = Replica(model, batches(*inputs, dtype=dtype), None)
    return made.training(tuple(name for name, _ in model.named_parameters()))


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

    def test_vocabulary(self):
        """Indices must fit every table, but for those of two or three types."""
        model = nn.ModuleList([nn.Embedding(50, 4), nn.Embedding(90, 4), nn.Embedding(2, 4)])

        assert vocabulary(model) == 50


class _Cancels(nn.Module):
    """A bias that a mean takes away again: its gradient is rounding and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 7)
        self.bias = nn.Parameter(torch.full((), 0.3))

    def forward(self, x: Tensor) -> Tensor:
        h = self.linear(x) + self.bias
        return (h - h.mean(-1, keepdim=True)).tanh()


class TestGradients:
    def test_are_those_of_autograd(self):
        """On the same inputs and the same weights they are what autograd says."""
        model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))
        made = Replica(model, batches(torch.randn(4, 5), style="given"), lambda y: y.pow(2).sum())
        made = made.training(("0.weight", "2.bias"))
        with prepared(model):
            found = made.gradients(1)
        double = model.double()
        loss = double(made.batches.draw(1).args[0]).pow(2).sum()
        expected = torch.autograd.grad(loss, [double[0].weight, double[2].bias])

        assert torch.allclose(found["0.weight"], expected[0])
        assert torch.allclose(found["2.bias"], expected[1])

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
    def test_rounding_is_zero(self, dtype):
        """A gradient that is zero but for rounding is exactly zero; others are not."""
        model = _Cancels()
        made = replica(model, torch.zeros(4, 5), dtype=dtype)
        with prepared(model):
            found = [made.gradients(step) for step in range(1, 6)]

        assert not any(gradients["bias"].any() for gradients in found)
        assert all(gradients["linear.weight"].all() for gradients in found)

    def test_small_is_not_rounding(self):
        """A gradient behind a scale of 1e-20 is small, and real."""
        model = nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6, bias=False))
        nn.init.constant_(model[1].weight, 1e-20)
        made = replica(model, torch.zeros(4, 5))
        with prepared(model):
            found = made.gradients(1)

        assert found["0.weight"].all()
        assert found["0.weight"].abs().max() < 1e-18

    def test_noise_is_the_same_in_both_passes(self):
        """Dropout draws the same mask when the gradient is taken again, and that is noted."""
        model = nn.Sequential(nn.Linear(5, 6), nn.Dropout(0.5), nn.Linear(6, 3))
        made = Replica(model, batches(torch.zeros(9, 5)), lambda y: y.sum())
        made = made.training(("2.weight",))
        with prepared(model):
            found = made.gradients(1)["2.weight"]

        assert made.noisy
        assert found.any(0).all()

    def test_without_noise_none_is_noted(self):
        """A forward pass that draws nothing is not noisy."""
        made = replica(model := nn.Linear(5, 3), torch.zeros(4, 5))
        with prepared(model):
            made.gradients(1)

        assert not made.noisy

    def test_nothing_depends_on_the_trained(self):
        """Where no gradient can arrive all are zero, and that is noted too."""
        model = nn.ModuleDict({"used": nn.Linear(5, 3), "unused": nn.Linear(5, 3)})
        model.forward = model["used"].forward
        made = replica(model, torch.zeros(4, 5))
        made = made.training(("unused.weight",))
        with prepared(model):
            found = made.gradients(1)

        assert not found["unused.weight"].any()
        assert not made.connected

    def test_descent_goes_downhill_and_back(self):
        """A step moves some parameter by a tenth of its size; `reset` undoes all steps."""
        model = nn.Linear(5, 3)
        made = replica(model, torch.zeros(4, 5))
        with prepared(model):
            gradients = made.gradients(1)
        made.descend(gradients)
        moved = [
            float((made.values[n] - made.starts[n]).norm() / made.starts[n].norm())
            for n in gradients
        ]

        assert max(moved) == pytest.approx(0.1)
        assert all(((made.starts[n] - made.values[n]) * gradients[n]).sum() > 0 for n in gradients)
        made = made.training(made.trained)
        assert all(made.values[name] is made.starts[name] for name in made.starts)

    def test_outputs_of_all_kinds(self):
        """Tuples, mappings, dataclasses and complex numbers all count; whole numbers do not."""
        import dataclasses

        @dataclasses.dataclass
        class Output:
            first: Tensor
            rest: dict[str, object]

        class Model(nn.Linear):
            def forward(self, x: Tensor) -> Output:
                y = super().forward(x)
                return Output(
                    y[:, :1], {"a": (y[:, 1:2], y.argmax(-1)), "b": torch.complex(y[:, 2], y[:, 3])}
                )

        made = replica(model := Model(5, 4), torch.zeros(6, 5))
        with prepared(model):
            found = made.gradients(1)

        assert found["weight"].any(1).all()

    def test_copies_share_targets_where_asked(self):
        """Equal outputs get equal weights in the loss; constants, which are no copies, do not."""

        class Twice(nn.Linear):
            def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
                y = super().forward(x)
                return torch.stack([y, y.clone()]), y.clone(), torch.zeros_like(y) * y.sum()

        def gradient(*, shared: bool) -> Tensor:
            made = replica(model := Twice(5, 4), torch.zeros(6, 5))
            made.shared_targets = shared
            with prepared(model):
                return made.gradients(1)["weight"]

        assert not torch.allclose(gradient(shared=True), gradient(shared=False))


class TestLaboratory:
    def test_modes_and_states_are_put_back(self):
        """Grad mode, autocast and random states are as before, also after an error."""
        model = nn.Dropout(0.5)
        torch.manual_seed(5)
        random.seed(5)
        before = torch.random.get_rng_state(), random.getstate()
        with torch.inference_mode(), contextlib.suppress(KeyError), prepared(model):
            assert torch.is_grad_enabled()
            assert not torch.is_inference_mode_enabled()
            torch.rand(3)
            random.random()
            raise KeyError

        assert torch.equal(before[0], torch.random.get_rng_state())
        assert before[1] == random.getstate()
