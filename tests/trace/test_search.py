"""What no call reaches is run on its own; a search in vain ends, and says what failed first."""

import torch
from torch import Tensor, nn

from torch_initpolicy.sites import sites
from torch_initpolicy.trace.read import read


class Encoder(nn.Module):
    """A part that runs on its own."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.relu(self.up(x)))


class Apart(nn.Module):
    """Two encoders, of which a call reaches one, and a layer that none reaches."""

    def __init__(self, *, runs: bool = True) -> None:
        super().__init__()
        self.near, self.far, self.spare = Encoder(), Encoder(), nn.Linear(6, 6)
        self.runs = runs

    def forward(self, x: Tensor) -> Tensor:
        if not self.runs:
            raise ValueError("not as a whole")
        return torch.tanh(self.near(x))


def test_parts_that_nothing_reaches_run_on_their_own():
    """They are traced; a layer alone says nothing about what it meets, and stays unused."""
    model = Apart()
    found = read(model, sites(model))

    assert (found.evidence, found.parts) == ("traced", ("far",))
    assert found.facts["far.up.weight"].meets.name == "relu"
    assert found.unused == {"spare.weight", "spare.bias"}


def test_the_output_of_a_part_is_not_that_of_the_model():
    """What ends a part is no head, for something may follow."""
    model = Apart()
    facts = read(model, sites(model)).facts["far.down.weight"]

    assert (facts.used, facts.meets, facts.feeds_output) == (True, None, False)


def test_parts_of_a_model_that_does_not_run_are_traced():
    """The order of registration remains for the rest alone, and the plan says why."""
    model = Apart(runs=False)
    found = read(model, sites(model))

    assert (found.parts, found.call) == (("near", "far"), None)
    assert found.facts["near.up.weight"].evidence == "traced"
    assert found.facts["spare.weight"].evidence == "order"
    assert "not as a whole" in found.untraced
    assert "near, far" in found.untraced


def test_a_given_call_is_not_added_to():
    """With the user's own inputs, what they do not reach is unused."""
    model = Apart()

    assert "far.up.weight" in read(model, sites(model), torch.zeros(2, 6)).unused


def test_long_texts_reach_what_short_ones_do_not():
    """A layer that reads one token of many is seen all the same."""

    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.pool = nn.Embedding(20, 4), nn.Linear(4, 4)

        def forward(self, ids: Tensor) -> Tensor:
            x = self.words(ids)
            return torch.tanh(self.pool(x[:, ::64])) if ids.shape[1] > 64 else x

    model = Pooled()

    assert read(model, sites(model)).unused == set()
