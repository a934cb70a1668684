"""Tracks follow equal units through gradients; journeys end when nothing changes any more."""

import pytest
import torch
from torch import Tensor, nn

from tests.symmetry.cases import constant, fill
from torch_initpolicy.sites import sites
from torch_initpolicy.symmetry.probe import (
    NOISY_PATIENCE,
    PATIENCE,
    ModuleTrack,
    UnitTrack,
    follow,
    reachable,
    tracks_of,
)
from torch_initpolicy.symmetry.replica import Batches, Replica, prepared
from torch_initpolicy.symmetry.scan import equal_modules, scan
from torch_initpolicy.trace.trees import Call

SAME = 1e-7


def rows(*numbers: float) -> Tensor:
    """Make a matrix of rows that differ by these factors."""
    return torch.tensor(numbers, dtype=torch.float64)[:, None] * torch.tensor([[1.0, 2.0, 3.0]])


def track(start: Tensor, *, negated_too: bool = False) -> UnitTrack:
    """UnitTrack the rows of a matrix."""
    module = nn.Module()
    module.w = nn.Parameter(start.clone())
    like = next(like for like in scan(sites(module)) if like.view.along == "axis 0")
    return UnitTrack(like, "w", negated_too=negated_too)


class TestTrack:
    def test_equal_gradients_keep_units_together(self):
        """Units with equal gradients stay a group, and move together."""
        followed = track(rows(1, 1, 1))

        assert followed.see({"w": rows(5, 5, 5)}, 1, SAME)
        assert not followed.see({"w": rows(2, 2, 2)}, 2, SAME)
        assert followed.groups() == ((0, 1, 2),)
        assert followed.moves_together
        assert (followed.first_moved, followed.separated) == (1, None)

    def test_different_gradients_part_them_for_good(self):
        """Units that have once differed are never equal again."""
        followed = track(rows(1, 1, 1))
        followed.see({"w": rows(5, 6, 5)}, 3, SAME)
        followed.see({"w": rows(4, 4, 4)}, 4, SAME)

        assert followed.groups() == ((0, 2),)
        assert followed.separated == 3

    def test_differences_count_relative_to_the_gradient(self):
        """A tiny gradient tells units apart as well as a large one; rounding never does."""
        followed = track(rows(1, 1))
        followed.see({"w": rows(1e-30, 1e-30 * (1 + 1e-10))}, 1, SAME)
        assert followed.has_groups

        followed.see({"w": rows(1e-30, 2e-30)}, 2, SAME)
        assert not followed.has_groups

    def test_zero_tells_nothing(self):
        """No gradient is no news."""
        followed = track(rows(0, 0))

        assert not followed.see({"w": rows(0, 0)}, 1, SAME)
        assert followed.groups() == ((0, 1),)
        assert not followed.is_resolved
        assert not followed.moves_together

    def test_resolved_is_apart_and_moved(self):
        """All units of a matrix must have moved."""
        followed = track(rows(0, 0, 0))
        followed.see({"w": rows(1, 2, 0)}, 1, SAME)
        assert not followed.is_resolved

        followed.see({"w": rows(1, 2, 3)}, 2, SAME)
        assert followed.is_resolved

    def test_negatives_only_where_asked(self):
        """A unit and its negative are followed as one where what they feed may be negated too."""
        start, gradient = rows(1, -1), {"w": rows(3, -3)}
        straight, turning = track(start), track(start, negated_too=True)
        straight.see(gradient, 1, SAME)
        turning.see(gradient, 1, SAME)

        assert straight.groups() == ()
        assert turning.groups() == ((0, 1),)

    def test_zeros_take_the_sign_of_their_first_gradient(self):
        """Two rows of zeros that are pulled oppositely are each other's negative from then on."""
        followed = track(rows(0, 0), negated_too=True)
        followed.see({"w": rows(3, -3)}, 1, SAME)
        followed.see({"w": rows(-2, 2)}, 2, SAME)
        assert followed.groups() == ((0, 1),)

        followed.see({"w": rows(1, 1)}, 3, SAME)
        assert followed.groups() == ()

    def test_level_makes_gradients_exactly_equal(self):
        """Rounding between equal units is taken out, with their signs."""
        followed = track(rows(1, -1, 1), negated_too=True)
        gradients = {"w": rows(1, -1 - 1e-14, 1 + 1e-14)}
        followed.see(gradients, 1, SAME)
        followed.level(gradients)

        assert torch.equal(gradients["w"], rows(1, -1, 1))

    def test_twins(self):
        """Modules part when any of their parameters does."""
        first = nn.Linear(3, 2)
        model = nn.ModuleList([first, nn.Linear(3, 2), nn.Linear(3, 2)])
        for other in (model[1], model[2]):
            other.load_state_dict(first.state_dict())
        names = {id(p): name for name, p in model.named_parameters()}
        followed = ModuleTrack(equal_modules(model)[0], names)
        gradients = {name: torch.ones_like(p) for name, p in model.named_parameters()}
        followed.see(gradients, 1, SAME)
        assert followed.groups() == ((0, 1, 2),)

        gradients["1.bias"] = gradients["1.bias"] * 2
        followed.see(gradients, 2, SAME)
        assert followed.groups() == ((0, 2),)


def journey_of(model: nn.Module, *, patience: int = PATIENCE):
    """Follow all that is equal in a model of five inputs; return progress, tracks and replica."""
    batches = Batches(Call((torch.zeros(8, 5),)), "fresh", torch.float64, torch.device("cpu"), 2)
    replica = Replica(model, batches, None)
    replica = replica.training(tuple(name for name, _ in model.named_parameters()))
    names = {id(p): name for name, p in model.named_parameters()}
    tracks = tracks_of(scan(sites(model), thorough=True), names)
    with prepared(model):
        progress = follow(replica, tracks, patience=patience)
        reach = reachable(replica, tracks, progress)
    return progress, tracks, reach


class TestFollow:
    def test_ends_with_the_first_step_that_resolves_all(self):
        """A zero head is apart after one step."""
        model = nn.Sequential(nn.Linear(5, 6, bias=False), nn.Tanh(), nn.Linear(6, 3, bias=False))
        nn.init.zeros_(model[2].weight)
        progress, tracks, _ = journey_of(model)

        assert progress.steps == 1
        assert all(followed.is_resolved for followed in tracks)

    @pytest.mark.parametrize("depth", [2, 3, 5])
    def test_goes_on_as_long_as_something_wakes(self, depth):
        """Of a chain of zero layers one more moves at each step, however long the chain."""
        layers = [
            layer for _ in range(depth) for layer in (nn.Linear(5, 5, bias=False), nn.Sigmoid())
        ]
        model = fill(nn.Sequential(*layers), 0.0)
        progress, _, _ = journey_of(model)

        names = [f"{2 * number}.weight" for number in reversed(range(depth))]
        assert [progress.first_moved[name] for name in names] == list(range(1, depth + 1))

    def test_patience(self):
        """What is tied ends the progress after three steps without news."""
        progress, tracks, _ = journey_of(constant(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)))

        assert progress.steps == 1 + PATIENCE
        assert any(followed.moves_together for followed in tracks)

    def test_patience_with_noise(self):
        """Where random numbers are drawn a tie has to hold longer."""
        model = constant(nn.Dropout(0.5), nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))
        progress, _, _ = journey_of(model)

        assert progress.steps >= NOISY_PATIENCE

    def test_near_ties_are_made_exact_first(self):
        """Noise of 1e-8 is taken out, so that it cannot be what tells units apart."""
        model = constant(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()
        with torch.no_grad():
            model[0].weight += 1e-9 * torch.randn(6, 5)
        _, tracks, _ = journey_of(model)

        assert any(t.key == "0.weight" and t.groups() == ((0, 1, 2, 3, 4, 5),) for t in tracks)


class TestAwakened:
    def test_what_waits_for_a_zero_is_reached(self):
        """Behind a zero gate before a zero layer, all would move from another start."""

        class Gated(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner = nn.Linear(5, 5)
                self.outer = fill(nn.Linear(5, 5), 0.0)
                self.gate = nn.Parameter(torch.zeros(()))

            def forward(self, x: Tensor) -> Tensor:
                return x + self.gate * self.outer(self.inner(x))

        _, _, reach = journey_of(Gated())

        assert all(reach[name].any() for name in reach)

    def test_what_has_no_effect_is_not(self):
        """A bias before a batch norm gets no gradient from any start, nor do unused rows."""
        model = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))
        fill(model[0], 0.0)
        nn.init.zeros_(model[2].weight)
        _, _, reach = journey_of(model)

        assert not reach["0.bias"].any()

    def test_nothing_idle_costs_nothing(self):
        """Where all has moved, nothing more is run."""
        model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))
        progress, _, reach = journey_of(model)

        assert progress.steps == 1
        assert not any(gradient.any() for gradient in reach.values())
