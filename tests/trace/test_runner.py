"""One model is run with one call after another, and what it raises is kept."""

import torch
from torch import Tensor, nn

from torch_initpolicy.sites import borrowing, sites
from torch_initpolicy.trace.recorder import Budget
from torch_initpolicy.trace.runner import Recorded, Refused, Runner, is_small
from torch_initpolicy.trace.trees import Call

X = Call((torch.empty(2, 4, device="meta"),))


def runner(model: nn.Module, budget: float = 10_000) -> Runner:
    """Make a runner for all parameters of a model."""
    return Runner(model, sites(model), Budget(budget))


class Auxiliary(nn.Module):
    """Has a head that only training uses."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.other = nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x) + self.other(x) if self.training else self.head(x)


class Routed(nn.Module):
    """Sends each sample to one of four experts, by what numbers there are."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(4, 2) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        chosen = x[:, :2].gt(0).long() @ torch.tensor([2, 1])
        return torch.stack([self.experts[int(i)](row) for i, row in zip(chosen, x, strict=True)])


def test_what_evaluation_leaves_out_training_shows():
    """Both recordings are kept, and together they have seen every parameter."""
    model = Auxiliary()
    with borrowing(model):
        recorded = runner(model).on_meta(X)

    assert isinstance(recorded, Recorded)
    assert len(recorded.graphs) == 2
    assert recorded.seen == {name for name, _ in model.named_parameters()}
    assert model.training


def test_what_numbers_decide_is_run_for_real():
    """On meta there are none; real inputs are drawn again until every expert has been chosen."""
    model = Routed()
    with borrowing(model):
        refused, recorded = runner(model).on_meta(X), runner(model).for_real(X)

    assert isinstance(refused, Refused)
    assert isinstance(recorded, Recorded)
    assert (recorded.on_meta, len(recorded.seen)) == (False, 8)


def test_refusals_say_how_far_they_got():
    """A call that fails late has run more operators than one that fails at once."""
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(3, 3))
    with borrowing(model):
        late = runner(model).on_meta(X)
        early = runner(model).on_meta(Call((torch.empty(2, 5, device="meta"),)))

    assert isinstance(late, Refused)
    assert isinstance(early, Refused)
    assert late.ran > early.ran


def test_calls_cost():
    """Every call takes from the budget, however soon it ends; then no more are answered."""
    model = nn.Sequential(nn.Linear(4, 4))
    spent = runner(model, budget=30)
    with borrowing(model):
        first, second = spent.on_meta(X), spent.on_meta(X)

    assert isinstance(first, Recorded)
    assert isinstance(second, Refused)
    assert spent.budget.left < 0


def test_what_is_small_enough():
    """Images count as small, since they are cropped; other large inputs do not."""
    assert is_small(Call((torch.empty(64, 3, 512, 512, device="meta"),)))
    assert not is_small(Call((torch.empty(64, 3, 512, 512, 2, device="meta"),)))
    large = nn.Linear(2**14, 2**13, bias=False, device="meta")
    assert not runner(large).fits_in_memory
    assert runner(nn.Linear(2, 2)).fits_in_memory
