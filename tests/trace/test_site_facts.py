"""Facts of one site from all that is known of the flow: several uses, blocks, compositions."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune

from torch_initpolicy.sites import sites
from torch_initpolicy.tensors.axes import block_fans
from torch_initpolicy.tensors.gains import Activation
from torch_initpolicy.trace.facts import Facts
from torch_initpolicy.trace.read import read


def facts_of(model: nn.Module, *inputs: Tensor) -> dict[str, Facts]:
    """Read a model."""
    return dict(read(model, sites(model), inputs).facts)


def test_a_weight_that_is_used_twice_meets_what_its_first_use_does():
    """Later uses of a shared weight add what they meet, and take nothing away."""

    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(self.layer(F.relu(self.layer(x))))

    fact = facts_of(Shared(), torch.zeros(2, 4))["layer.weight"]

    assert (fact.meets, fact.reads_input, fact.fed_by) == (Activation("relu"), True, None)


def test_blocks_differ_where_they_meet_different_things():
    """A block says what it meets; where all meet the same there are no blocks to speak of."""

    class Gated(nn.Module):
        def __init__(self, *, same: bool) -> None:
            super().__init__()
            self.same, self.packed = same, nn.Linear(4, 8)

        def forward(self, x: Tensor) -> Tensor:
            gate, value = self.packed(x).chunk(2, -1)
            return F.silu(gate) * (F.silu(value) if self.same else value)

    differing, equal = (
        facts_of(Gated(same=same), torch.zeros(2, 4))["packed.weight"] for same in (False, True)
    )

    assert [block.meets for block in differing.blocks] == [Activation("silu"), None]
    assert [block.feeds_output for block in differing.blocks] == [False, True]
    assert (equal.blocks, equal.axes.blocks) == ((), (4, 4))


def test_rows_for_nothing_come_from_the_operator():
    """The padding row is the one that the look-up names, from the front."""

    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rows = nn.Parameter(torch.zeros(10, 4))

        def forward(self, x: Tensor) -> Tensor:
            return F.embedding(x, self.rows, padding_idx=-1)

    fact = facts_of(Table(), torch.zeros(2, 3, dtype=torch.long))["rows"]

    assert (fact.role, fact.padding) == ("embedding", 9)


def test_a_product_of_parameters_is_one_weight():
    """Each factor knows how many there are, and the fans of the weight that they make."""

    class LowRank(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Parameter(torch.rand(6, 2)), nn.Parameter(torch.rand(2, 4))

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.up @ self.down)

    found = facts_of(LowRank(), torch.zeros(2, 4))
    made = {(c.factors, c.fan_in, c.fan_out) for c in (f.composition for f in found.values())}

    assert made == {(2, 4, 6)}


def test_what_the_forward_pass_leaves_out():
    """A parameter that nothing reads has the role of its layer, and is not used."""

    class Spare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.spare = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x)

    found = facts_of(Spare(), torch.zeros(2, 4))

    assert (found["spare.weight"].role, found["spare.weight"].used) == ("weight", False)
    assert found["layer.weight"].used


STATES = {
    "new zeros": lambda x: x.new_zeros(2, 6),
    "zeros": lambda x: torch.zeros(2, 6),
    "zeros like": lambda x: torch.zeros_like(x[:, 0])[:, :1].expand(-1, 6),
}


@pytest.mark.parametrize("start", STATES.values(), ids=STATES)
def test_recurrent_matrices_are_weights_though_they_first_meet_a_constant(start):
    """The state of a recurrence starts as a constant; from the second step on it is a signal."""

    class Recurrence(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w, self.u = nn.Parameter(torch.rand(4, 6)), nn.Parameter(torch.rand(6, 6))
            self.b = nn.Parameter(torch.zeros(6))

        def forward(self, x: Tensor) -> Tensor:
            state = start(x)
            for step in x.unbind(1):
                state = torch.tanh(step @ self.w + state @ self.u + self.b)
            return state

    found = facts_of(Recurrence(), torch.zeros(2, 3, 4))

    assert {name: fact.role for name, fact in found.items()} == {
        "w": "weight", "u": "weight", "b": "bias",
    }  # fmt: skip
    assert found["u"].meets == Activation("tanh")
    assert block_fans((6, 6), found["u"].axes) == ((6, 6),)


class MaskedProduct(nn.Linear):
    """Masks its weight in an expression."""

    def __init__(self) -> None:
        super().__init__(8, 8)
        self.register_buffer("mask", torch.tril(torch.ones(8, 8)))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.mask, self.bias)


class MaskedInPlace(MaskedProduct):
    """Masks its weight's own numbers, as PixelCNNs do."""

    def forward(self, x: Tensor) -> Tensor:
        self.weight.data *= self.mask
        return F.linear(x, self.weight, self.bias)


class MaskedThrough(MaskedProduct):
    """Masks its weight through views of it."""

    def forward(self, x: Tensor) -> Tensor:
        self.weight.detach()[:].mul_(self.mask)
        return F.linear(x, self.weight, self.bias)


def pruned() -> nn.Module:
    """Return a layer that torch has pruned to the same mask."""
    layer = nn.Linear(8, 8)
    return prune.custom_from_mask(layer, "weight", torch.tril(torch.ones(8, 8)))


@pytest.mark.parametrize("build", [MaskedProduct, MaskedInPlace, MaskedThrough, pruned])
def test_masked_layers_have_the_fans_that_the_mask_leaves(build):
    """Also where a layer's own type says what its axes are; the weight itself is as it was."""
    model = build()
    before = [p.clone() for p in model.parameters()]
    found = facts_of(model, torch.zeros(2, 8))
    (weight,) = (fact for fact in found.values() if fact.role == "weight")

    assert block_fans((8, 8), weight.axes) == ((4.5, 4.5),)
    assert all(torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True))


def test_learnt_initial_states_are_tokens():
    """What stands in the place of a recurrent layer's state is no weight, packed or not."""

    class Started(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.layer = nn.GRUCell(4, 6), nn.LSTM(4, 6)
            self.h, self.c = nn.Parameter(torch.zeros(1, 6)), nn.Parameter(torch.zeros(1, 1, 6))

        def forward(self, x: Tensor) -> Tensor:
            state = self.c.expand(-1, 2, -1)
            return self.layer(x, (state, state))[0] + self.cell(x[0], self.h.expand(2, -1))

    found = facts_of(Started(), torch.zeros(3, 2, 4))

    assert (found["h"].role, found["c"].role) == ("token", "token")
    assert found["cell.weight_hh"].role == "recurrent"
