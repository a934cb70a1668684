"""One model is followed through its own training, by its gradients alone."""

import copy
import gc
import weakref

import torch
from torch import Tensor, nn

from tests.symmetry.cases import constant
from torch_initpolicy.symmetry.followed import Followed


def tied() -> nn.Sequential:
    """Build a net whose hidden units are one, for ever."""
    return constant(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2), value=0.1)


def trained(model: nn.Module, steps: int) -> tuple[Followed, list[bool]]:
    """Train a model while it is followed; return what each look was enough for."""
    followed = Followed(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = torch.randn(16, 4), torch.randn(16, 2)
    enough = []
    for _ in range(steps):
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        enough.append(followed.look(optimizer))
        if enough[-1]:
            break
        optimizer.step()
    return followed, enough


def test_ties_are_found_within_a_few_steps():
    """What stays equal while everything moves is named, and looking ends."""
    followed, enough = trained(tied(), 8)

    assert (enough[-1], followed.is_done) == (True, True)
    assert {f.name for f in followed.found if f.verdict == "tied"} >= {"0.weight"}


def test_a_random_start_ends_at_the_first_look():
    """Where nothing is equal there is nothing to follow."""
    followed, enough = trained(nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)), 3)

    assert (enough, followed.found) == ([True], ())


def test_another_models_optimizer_says_nothing():
    """A step that moves none of its parameters is no look."""
    followed, other = Followed(tied()), nn.Linear(2, 2)
    other(torch.ones(1, 2)).sum().backward()

    assert followed.look(torch.optim.SGD(other.parameters(), lr=0.1)) is False
    assert not followed.is_done


def test_copies_are_not_followed():
    """A copy's hooks follow nothing, and the original is followed on."""
    model = tied()
    followed = Followed(model)
    copied = copy.deepcopy(model)
    copied(torch.zeros(1, 4))

    assert copy.deepcopy(followed).is_done
    assert not followed.is_done


def test_hooks_go_with_it():
    """Removed, it leaves no hook; forgotten, it dies with its model."""
    model = tied()
    followed = Followed(model)
    followed.remove()
    assert not model._forward_hooks
    assert not model._forward_pre_hooks

    alive = weakref.ref(Followed(model))
    assert alive() is not None
    del model, followed
    gc.collect()
    assert alive() is None


def test_noise_is_waited_for():
    """Where random numbers are drawn, two units may agree by accident: more steps are needed."""

    class Noisy(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x + 0 * torch.rand_like(x))

    still = len(trained(tied(), 40)[1])
    noisy = len(trained(Noisy(*tied()), 40)[1])

    assert still < noisy
