"""Gradients on copies: the right ones, without rounding, on inputs like those that were given."""

import contextlib
import copy
import dataclasses
import random
import threading
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from torch_initpolicy.symmetry.batches import Batches
from torch_initpolicy.symmetry.replica import Loss, Replica, prepared
from torch_initpolicy.trace.trees import Call


@contextlib.contextmanager
def replica(
    model: nn.Module,
    *inputs: Tensor,
    dtype: torch.dtype = torch.float64,
    loss: Loss | None = None,
    shared: bool = False,
) -> Iterator[Replica]:
    """Make a replica of a model that trains all its parameters, and lend it the model."""
    parameters = tuple(model.parameters())
    with prepared(model) as lent:
        made = Replica(lent, Batches(Call(inputs), dtype), loss)
        yield made.training(parameters, shared_targets=shared)


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
        with replica(model, torch.randn(4, 5), loss=lambda y: y.pow(2).sum()) as made:
            found = made.gradients(1)
        expected = copy.deepcopy(model).double()
        expected(made.batches.draw(1).args[0]).pow(2).sum().backward()

        for parameter, own in zip(model.parameters(), expected.parameters(), strict=True):
            assert torch.allclose(found[parameter], own.grad)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
    def test_rounding_is_zero(self, dtype):
        """A gradient that is zero but for rounding is exactly zero; others are not."""
        model = _Cancels()
        with replica(model, torch.zeros(4, 5), dtype=dtype) as made:
            found = [made.gradients(step) for step in range(1, 6)]

        assert not any(gradients[model.bias].any() for gradients in found)
        assert all(gradients[model.linear.weight].all() for gradients in found)

    def test_small_is_not_rounding(self):
        """A gradient behind a scale of 1e-20 is small, and real."""
        model = nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6, bias=False))
        nn.init.constant_(model[1].weight, 1e-20)
        with replica(model, torch.zeros(4, 5)) as made:
            found = made.gradients(1)

        assert found[model[0].weight].all()
        assert found[model[0].weight].abs().max() < 1e-18

    def test_noise_is_the_same_in_both_passes(self):
        """Dropout draws the same mask when the gradient is taken again, and that is noted."""
        model = nn.Sequential(nn.Linear(5, 6), nn.Dropout(0.5), nn.Linear(6, 3))
        with replica(model, torch.zeros(9, 5), loss=lambda y: y.sum()) as made:
            found = made.gradients(1)

        assert made.noisy
        assert found[model[2].weight].any(0).all()

    def test_without_noise_none_is_noted(self):
        """A forward pass that draws nothing is not noisy, whatever other threads draw meanwhile."""

        class Meanwhile(nn.Linear):
            def forward(self, x: Tensor) -> Tensor:
                other = threading.Thread(target=torch.rand, args=(3,))
                other.start()
                other.join()
                return super().forward(x)

        with replica(Meanwhile(5, 3), torch.zeros(4, 5)) as made:
            made.gradients(1)

        assert not made.noisy

    def test_nothing_depends_on_the_trained(self):
        """Where no gradient can arrive all are zero, and that is noted too."""
        model = nn.ModuleDict({"used": nn.Linear(5, 3), "unused": nn.Linear(5, 3)})
        model.forward = model["used"].forward
        with replica(model, torch.zeros(4, 5)) as made:
            unused = made.training((model["unused"].weight, model["unused"].bias))
            found = unused.gradients(1)

        assert not any(gradient.any() for gradient in found.values())
        assert not unused.connected

    def test_lists_of_parameters_can_be_sliced(self):
        """What a forward pass makes of its list of parameters is made of the copies still."""

        class Sliced(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.layers = nn.ParameterList(torch.randn(5, 5) for _ in range(3))

            def forward(self, x: Tensor) -> Tensor:
                return x @ self.layers[:2][1] @ self.layers[2]

        model = Sliced()
        with replica(model, torch.zeros(4, 5)) as made:
            found = made.gradients(1)

        assert [bool(found[p].any()) for p in model.parameters()] == [False, True, True]

    def test_descent_goes_downhill_and_back(self):
        """A step moves some parameter by a tenth of its size; to train anew undoes all steps."""
        with replica(nn.Linear(5, 3), torch.zeros(4, 5)) as made:
            gradients = made.gradients(1)
        made.descend(gradients)
        moves = {p: made.starts[p] - made.values[p] for p in gradients}

        assert max(
            float(m.norm() / made.starts[p].norm()) for p, m in moves.items()
        ) == pytest.approx(0.1)
        assert all((moves[p] * gradient).sum() > 0 for p, gradient in gradients.items())
        again = made.training(made.trained)
        assert all(again.values[p] is made.starts[p] for p in made.starts)

    def test_outputs_of_all_kinds(self):
        """Tuples, mappings, dataclasses and complex numbers all count; whole numbers do not."""

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

        with replica(model := Model(5, 4), torch.zeros(6, 5)) as made:
            found = made.gradients(1)

        assert found[model.weight].any(1).all()

    def test_copies_share_targets_where_asked(self):
        """Equal outputs get equal weights in the loss; constants, which are no copies, do not."""

        class Twice(nn.Linear):
            def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
                y = super().forward(x)
                return torch.stack([y, y.clone()]), y.clone(), torch.zeros_like(y) * y.sum()

        def gradient(*, shared: bool) -> Tensor:
            torch.manual_seed(0)
            with replica(Twice(5, 4), torch.zeros(6, 5), shared=shared) as made:
                return next(iter(made.gradients(1).values()))

        assert not torch.allclose(gradient(shared=True), gradient(shared=False))


class TestPrepared:
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
