"""Residual branches of stacks of blocks; what the blocks are is tested with the flow."""

import pytest
import torch
from torch import Tensor, nn

from torch_initpolicy.sites import sites
from torch_initpolicy.trace.read import read


class Stack(nn.Module):
    """Residual blocks of several kinds, and a second input that is read at the very end."""

    def __init__(self, kinds: str, *, keeps: bool) -> None:
        super().__init__()
        self.kinds, self.keeps = kinds, keeps
        self.inner = nn.ModuleList(
            nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4) if kind == "n" else nn.GELU(),
                          nn.Linear(4, 4))
            for kind in kinds
        )  # fmt: skip
        self.skips = nn.ModuleList(nn.Linear(4, 4) for _ in kinds)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        first = x = self.skips[0](x)
        for kind, inner, skip in zip(self.kinds, self.inner, self.skips, strict=True):
            if kind == "p":
                x = skip(x) + inner(x)
            elif kind == "s":
                x = inner(x)
            elif kind == "f":
                x = first + inner(x)
            else:
                x = x + inner(x) * 0.5
        return x, y * 2 if self.keeps else y


def known(kinds, *, keeps):
    """Return what is known of the branches around each weight."""
    model = Stack(kinds, keeps=keeps)
    found = read(model, sites(model), (torch.zeros(3, 4), torch.zeros(3))).facts
    return {
        name: (fact.ends_residual, fact.closes_residual, fact.residual_branches,
               fact.branch_depth, fact.in_batch_norm, fact.is_summand)
        for name, fact in found.items()
    }  # fmt: skip


@pytest.mark.parametrize("kinds", ["aanpsa", "paa", "nnsap", "afan", "spsps"])
def test_what_is_forgotten_is_not_missed(kinds):
    """Nothing changes where an input is read in the end, and all that came before is kept."""
    assert known(kinds, keeps=False) == known(kinds, keeps=True)


def test_blocks():
    """Each block is a branch of two weights; one with a batch normalisation is known for it."""
    found = known("anas", keeps=False)

    assert found["inner.0.2.weight"] == (True, True, 3, 2, False, True)
    assert found["inner.1.0.weight"] == (False, False, 3, 2, True, False)
    assert found["inner.3.2.weight"] == (False, False, 3, 0, False, False)


def test_sets_of_nodes_stay_small(monkeypatch):
    """In a deep network no set of nodes grows with the depth."""
    from torch_initpolicy.trace import residuals

    sizes, forget = [], residuals._Ancestry._forget

    def spying(self, value):
        sizes.append(max(bits.bit_length() for bits in self.ancestors.values()))
        forget(self, value)

    monkeypatch.setattr(residuals._Ancestry, "_forget", spying)
    known("a" * 40, keeps=False)

    assert max(sizes) < 20


class Conditioned(nn.Module):
    """Layers that read a stream, and a time that is embedded."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.time, self.head = (nn.Linear(4, 4) for _ in range(3))
        self.inner = nn.ModuleList(nn.Linear(4, 4) for _ in range(4))
        self.outer = nn.ModuleList(nn.Linear(4, 4) for _ in range(4))
        self.beside = nn.ModuleList(nn.Linear(4, 4) for _ in range(4))

    @property
    def layers(self):
        """Return the layers of each block."""
        return zip(self.inner, self.outer, self.beside, strict=True)


class Summed(Conditioned):
    """WaveNet: what is read of each residual block is summed up."""

    def forward(self, x: Tensor, _: Tensor) -> Tensor:
        x, total = self.stem(x), 0
        for inner, outer, beside in self.layers:
            h = torch.tanh(inner(x)) * torch.sigmoid(self.time(x))
            x, total = x + outer(h), total + beside(h)
        return self.head(torch.relu(total))


class Added(Conditioned):
    """Plain layers to each of which the time is added."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        t = torch.relu(self.time(t))
        for inner, outer, beside in self.layers:
            x = torch.relu(outer(torch.relu(inner(x) + beside(t))))
        return self.head(x)


class Blocks(Conditioned):
    """Residual blocks to each of which the time is added inside."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        t, x = torch.relu(self.time(t)), self.stem(x)
        for inner, outer, beside in self.layers:
            x = x + outer(torch.relu(inner(x) + beside(t)))
        return self.head(x)


class Projected(Conditioned):
    """Blocks with a projection for a skip, and a residual block of their own inside."""

    def forward(self, x: Tensor, _: Tensor) -> Tensor:
        x = self.stem(x)
        for inner, outer, beside in self.layers:
            h = inner(torch.relu(x))
            h = h + self.time(torch.relu(h))
            x = beside(x) + outer(torch.relu(h))
        return self.head(torch.relu(x))


class Attention(Conditioned):
    """Attention to whose scores a mask, and something that is read of the stream, are added."""

    mask_shape = (3, 5, 5)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.stem(x)
        for inner, outer, beside in self.layers:
            scores = inner(x) @ beside(x).transpose(-1, -2) + mask
            scores = scores + self.time(x).sum(-1, keepdim=True).expand(scores.shape)
            x = x + outer(scores.softmax(-1) @ x)
        return self.head(x)


class Spread(Attention):
    """The same with one mask for all samples, and weights of another kind."""

    mask_shape = (1, 1, 5)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.stem(x)
        for inner, outer, beside in self.layers:
            scores = inner(x) @ beside(x).transpose(-1, -2) + mask
            x = x + outer(torch.relu(scores) @ self.time(x))
        return self.head(x)


OUTER = {f"outer.{number}.weight" for number in range(4)}


@pytest.mark.parametrize(
    ("kind", "ending", "branches"),
    [
        (Summed, OUTER, 4),
        (Added, set(), 0),
        (Blocks, OUTER, 4),
        (Projected, OUTER | {"time.weight"}, 8),
        (Attention, OUTER, 4),
        (Spread, OUTER, 4),
    ],
)
def test_where_branches_end(kind, ending, branches):
    """Sums of skip connections, of times and with masks are none; its last weight ends a branch."""
    model = kind()
    inputs = torch.zeros(3, 5, 4), torch.zeros(getattr(model, "mask_shape", (3, 5, 4)))
    found = read(model, sites(model), inputs).facts

    weights = {name for name in found if name.endswith("weight")}
    assert {name for name in weights if found[name].ends_residual} == ending
    assert found["stem.weight"].residual_branches == branches
