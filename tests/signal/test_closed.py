"""Gradients that are zero because a weight starts at zero are told from those that are lost."""

import pytest
import torch
from torch import Tensor, nn

from torch_initpolicy.signal.run import audit_signal
from torch_initpolicy.signal.signal import Signal

WIDTH = 16


def batch() -> Tensor:
    """Draw standard normal inputs."""
    return torch.randn(8, WIDTH, generator=torch.Generator().manual_seed(1))


class Branch(nn.Module):
    """A residual branch that is closed by its last weight, its last norm, or a scalar."""

    def __init__(self, closed_by: str) -> None:
        super().__init__()
        self.inner, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.norm, self.alpha = nn.BatchNorm1d(WIDTH), nn.Parameter(torch.ones(()))
        nn.init.zeros_(self.get_parameter(closed_by))

    def forward(self, x):
        return x + self.alpha * self.norm(self.last(torch.relu(self.inner(x))))


def net(closed_by: str) -> nn.Sequential:
    """Build a stem, three such branches and a head."""
    branches = (Branch(closed_by) for _ in range(3))
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), *branches, nn.Linear(WIDTH, 4))


def opened(model: nn.Module) -> nn.Module:
    """Move all zeros away from zero."""
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.fill_(0.5)
    return model


def lost(signal: Signal) -> set[str]:
    """Name the points to which no gradient comes."""
    return {point.name for point in signal.points if point.gradient == 0}


def noted(signal: Signal) -> dict[str, tuple[str, ...]]:
    """Name the points at which that is noted, with what closes them."""
    return {point.name: point.closed_by for point in signal.points if point.closed_by}


BEFORE = {
    "last.weight": ("inner.weight",),
    "norm.weight": ("inner.weight", "last.weight"),
    "alpha": ("inner.weight", "last.weight"),
}


@pytest.mark.parametrize("closed_by", BEFORE)
def test_what_lies_behind_zeros_is_noted(closed_by):
    """Just where the gradient is zero and is not once the zeros are opened, they are named."""
    signal = audit_signal(net(closed_by), batch())

    assert noted(signal).keys() == lost(signal)
    assert noted(signal).keys() >= {f"{i}.{name}" for i in (1, 2, 3) for name in BEFORE[closed_by]}
    assert noted(signal)["2.inner.weight"] == (f"2.{closed_by}",)
    assert not lost(audit_signal(opened(net(closed_by)), batch()))


def test_it_is_said_once():
    """The text has one note, its names folded, and 'closed' in place of each zero."""
    text = str(audit_signal(net("last.weight"), batch()))

    assert "zero at {1-3}.inner.weight, as is meant" in text.replace("\n    ", " ")
    assert text.count("closed") == 3


def test_a_head_of_zeros():
    """Everything before it waits for its first step."""
    model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(4)))
    nn.init.zeros_(model[3].weight)

    found = noted(audit_signal(model, batch()))

    assert found == {f"{i}.weight": ("3.weight",) for i in range(3)}


def test_zeros_that_get_no_gradient_excuse_nothing():
    """Two layers of zeros, one behind the other, stay zero for ever: that is not meant."""
    model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4)))
    for layer in model[1:3]:
        nn.init.zeros_(layer.weight)

    signal = audit_signal(model, batch())

    assert lost(signal) == {"0.weight", "1.weight"}
    assert not noted(signal)
    assert signal.note == ""


def test_dead_units_are_not_excused():
    """Where a bias silences the units, zero biases elsewhere are in nobody's way."""
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 4))
    nn.init.constant_(model[0].bias, -100.0)
    nn.init.zeros_(model[2].bias)

    signal = audit_signal(model, batch())

    assert lost(signal) == {"0.weight"}
    assert not noted(signal)


def test_a_gradient_on_another_way_is_not_closed():
    """Where one way leads around the zeros, there is a gradient and nothing to note."""
    assert "0.weight" not in noted(audit_signal(net("last.weight"), batch()))


class Tokens(nn.Module):
    """Attends, closed by its last weight, and reads the first token alone."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.first = nn.Linear(WIDTH, WIDTH), nn.Parameter(torch.ones(1, 1, WIDTH))
        self.value, self.proj = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, 4)
        nn.init.zeros_(self.proj.weight)

    def forward(self, x):
        x = torch.cat([self.first.expand(len(x), -1, -1), self.embed(x)], 1)
        x = x + self.proj(self.value(x).mean(1, keepdim=True).tanh())
        return self.head(x[:, 0])


def test_tokens_that_only_a_closed_branch_reads():
    """What goes around the zeros beside the token that is read is lost by them alone, too."""
    x = torch.randn(8, 5, WIDTH, generator=torch.Generator().manual_seed(1))

    signal = audit_signal(Tokens(), x)

    assert {"embed.weight", "value.weight"} <= lost(signal)
    assert noted(signal).keys() == lost(signal)
    assert set(noted(signal).values()) == {("proj.weight",)}
    assert signal.ok
    assert not lost(audit_signal(opened(Tokens()), x))


def test_dead_units_before_zeros_are_not_excused():
    """Units that a bias silences are not closed by zeros that come later and let others through."""

    class Beside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dead, self.live = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
            self.gate, self.head = nn.Parameter(torch.zeros(WIDTH)), nn.Linear(WIDTH, 4)
            nn.init.constant_(self.dead.bias, -100.0)

        def forward(self, x):
            x = torch.relu(self.dead(x)) + torch.relu(self.live(x))
            return self.head(x + self.gate * x)

    assert lost(audit_signal(Beside(), batch())) == {"dead.weight"}
    assert not noted(audit_signal(Beside(), batch()))
