"""Tracks follow equal units through gradients; probes end when nothing changes any more."""

import pytest
import torch
from torch import Tensor, nn

from tests.symmetry.cases import constant, fill
from torch_initpolicy.sites import sites
from torch_initpolicy.symmetry.batches import Batches
from torch_initpolicy.symmetry.modules import equal_modules
from torch_initpolicy.symmetry.probe import NOISE, PATIENCE, Probe, Track, find_reach, follow
from torch_initpolicy.symmetry.replica import Replica, prepared
from torch_initpolicy.symmetry.scan import scan
from torch_initpolicy.trace.trees import Call

SAME = 1e-7


def rows(*numbers: float) -> Tensor:
    """Make a matrix of rows that differ by these factors."""
    return torch.tensor(numbers, dtype=torch.float64)[:, None] * torch.tensor([[1.0, 2.0, 3.0]])


def track(start: Tensor, *, negated_too: bool = False) -> Track:
    """Follow the rows of a matrix."""
    module = nn.Module()
    module.w = nn.Parameter(start.clone())
    like = next(like for like in scan(sites(module)) if like.view.along == "axis 0")
    return Track(like, negated_too=negated_too)


def see(followed: Track, gradient: Tensor, step: int = 1) -> bool:
    """Show a track the gradient of its only parameter."""
    return followed.see({followed.start.parameter: gradient}, step, SAME)


class TestTrack:
    def test_equal_gradients_keep_units_together(self):
        """Units with equal gradients stay a group, and move together."""
        followed = track(rows(1, 1, 1))

        assert see(followed, rows(5, 5, 5), 1)
        assert not see(followed, rows(2, 2, 2), 2)
        assert followed.groups() == ((0, 1, 2),)
        assert followed.moves_together
        assert (followed.first_moved, followed.separated) == (1, None)

    def test_different_gradients_part_them_for_good(self):
        """Units that have once differed are never equal again."""
        followed = track(rows(1, 1, 1))
        see(followed, rows(5, 6, 5), 3)
        see(followed, rows(4, 4, 4), 4)

        assert followed.groups() == ((0, 2),)
        assert followed.separated == 3

    def test_differences_count_relative_to_the_gradient(self):
        """A tiny gradient tells units apart as well as a large one; rounding never does."""
        followed = track(rows(1, 1))
        see(followed, rows(1e-30, 1e-30 * (1 + 1e-10)), 1)
        assert followed.groups()

        see(followed, rows(1e-30, 2e-30), 2)
        assert not followed.groups()

    def test_zero_tells_nothing(self):
        """No gradient is no news."""
        followed = track(rows(0, 0))

        assert not see(followed, rows(0, 0), 1)
        assert followed.groups() == ((0, 1),)
        assert not followed.is_resolved
        assert not followed.moves_together

    def test_resolved_is_apart_and_moved(self):
        """All units of a matrix must have moved."""
        followed = track(rows(0, 0, 0))
        see(followed, rows(1, 2, 0), 1)
        assert not followed.is_resolved

        see(followed, rows(1, 2, 3), 2)
        assert followed.is_resolved

    def test_negatives_only_where_asked(self):
        """A unit and its negative are followed as one where what they feed may be negated too."""
        straight, turning = track(rows(1, -1)), track(rows(1, -1), negated_too=True)
        see(straight, rows(3, -3))
        see(turning, rows(3, -3))

        assert straight.groups() == ()
        assert turning.groups() == ((0, 1),)

    def test_zeros_take_the_sign_of_their_first_gradient(self):
        """Two rows of zeros that are pulled oppositely are each other's negative from then on."""
        followed = track(rows(0, 0), negated_too=True)
        see(followed, rows(3, -3), 1)
        see(followed, rows(-2, 2), 2)
        assert followed.groups() == ((0, 1),)

        see(followed, rows(1, 1), 3)
        assert followed.groups() == ()

    @pytest.mark.parametrize("limit", [0.0, 1e-10])
    def test_level_makes_gradients_exactly_equal(self, limit):
        """Rounding between equal units is taken out, with their signs, where it has grown."""
        followed = track(rows(1, -1, 1), negated_too=True)
        gradient = rows(1, -1 - 1e-14, 1 + 1e-14)
        gradients = {followed.start.parameter: gradient}
        see(followed, gradient)
        followed.level(gradients, limit)

        leveled = rows(1, -1, 1) if limit == 0 else gradient
        assert torch.equal(gradients[followed.start.parameter], leveled)

    def test_modules(self):
        """Modules part when any of their parameters does."""
        first = nn.Linear(3, 2)
        model = nn.ModuleList([first, nn.Linear(3, 2), nn.Linear(3, 2)])
        for other in (model[1], model[2]):
            other.load_state_dict(first.state_dict())
        followed = Track(equal_modules(model)[0])
        gradients = {p: torch.ones_like(p) for p in model.parameters()}
        followed.see(gradients, 1, SAME)
        assert followed.groups() == ((0, 1, 2),)

        gradients[model[1].bias] = gradients[model[1].bias] * 2
        followed.see(gradients, 2, SAME)
        assert followed.groups() == ((0, 2),)


def probe(model: nn.Module) -> Probe:
    """Follow all that is equal in a model of five inputs."""
    equal_units, parameters = list(scan(sites(model), thorough=True)), tuple(model.parameters())
    with prepared(model) as lent:
        replica = Replica(lent, Batches(Call((torch.zeros(8, 5),)))).training(parameters)
        found = follow(Probe.of(equal_units), replica)
        find_reach(found, replica)
    return found


class TestFollow:
    def test_ends_with_the_first_step_that_resolves_all(self):
        """A zero head is apart after one step."""
        model = nn.Sequential(nn.Linear(5, 6, bias=False), nn.Tanh(), nn.Linear(6, 3, bias=False))
        nn.init.zeros_(model[2].weight)
        found = probe(model)

        assert found.steps == 1
        assert all(followed.is_resolved for followed in found.tracks)

    @pytest.mark.parametrize("depth", [2, 3, 5])
    def test_goes_on_as_long_as_something_wakes(self, depth):
        """Of a chain of zero layers one more moves at each step, however long the chain."""
        layers = [
            layer for _ in range(depth) for layer in (nn.Linear(5, 5, bias=False), nn.Sigmoid())
        ]
        model = fill(nn.Sequential(*layers), 0.0)
        found = probe(model)

        weights = [model[2 * number].weight for number in reversed(range(depth))]
        assert [found.first_moved[weight] for weight in weights] == list(range(1, depth + 1))

    def test_patience(self):
        """What is tied ends the probe after three steps without news."""
        found = probe(constant(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)))

        assert found.steps == 1 + PATIENCE
        assert any(followed.moves_together for followed in found.tracks)

    def test_patience_with_noise(self):
        """Where random numbers are drawn a tie has to hold longer."""
        model = constant(nn.Dropout(0.5), nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))
        found = probe(model)

        assert found.steps >= NOISE * PATIENCE

    def test_near_ties_are_made_exact_first(self):
        """Noise of 1e-8 is taken out, so that it cannot be what tells units apart."""
        model = constant(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()
        with torch.no_grad():
            model[0].weight += 1e-9 * torch.randn(6, 5)
        found = probe(model)

        assert any(
            t.start.parameter is model[0].weight and t.groups() == ((0, 1, 2, 3, 4, 5),)
            for t in found.units
        )


class TestReach:
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

        found = probe(Gated())

        assert all(gradient.any() for gradient in found.reach.values())

    def test_what_has_no_effect_is_not(self):
        """A bias before a batch norm gets no gradient from any start, nor do unused rows."""
        model = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))
        fill(model[0], 0.0)
        nn.init.zeros_(model[2].weight)
        found = probe(model)

        assert not found.reach[model[0].bias].any()

    def test_nothing_idle_costs_nothing(self):
        """Where all has moved, nothing more is run."""
        model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))
        found = probe(model)

        assert found.steps == 1
        assert not any(gradient.any() for gradient in found.reach.values())
