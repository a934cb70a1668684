"""Checkpoints that lack parameters: what is new is drawn, what was loaded stays."""

import copy

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.utils.parametrizations import weight_norm

from tests.processes import everywhere
from torch_initpolicy.errors import ArgumentError, UnknownNameError
from torch_initpolicy.integrations import checkpoints
from torch_initpolicy.integrations.checkpoints import initialize_missing, initialize_rows


class Tied(nn.Module):
    """A language model whose head is its embedding."""

    def __init__(self):
        super().__init__()
        self.embedding, self.body = nn.Embedding(20, 8), nn.Linear(8, 8)
        self.head = nn.Linear(8, 20, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens):
        return self.head(self.body(self.embedding(tokens)).relu())


def load(model, *prefixes):
    """Load a checkpoint of 7s that holds what begins with some prefixes; return what it lacked."""
    state = {
        name: torch.full_like(value, 7.0)
        for name, value in model.state_dict().items()
        if name.startswith(prefixes)
    }
    return model.load_state_dict(state, strict=False).missing_keys


def test_only_what_is_missing_is_written():
    """The parameters of the checkpoint keep its values, all others get the policy's."""
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    receipt = initialize_missing(model, load(model, "0."), seed=0)

    assert {step.name for step in receipt.plan if not step.keeps} == {"2.weight", "2.bias"}
    assert all(bool((p == 7).all()) for p in model[0].parameters())
    assert not model[2].weight.eq(7).any()


@pytest.mark.parametrize("held", ["embedding.", "head."])
def test_a_tie_is_loaded_with_its_other_name(held):
    """A tied tensor that the checkpoint holds under either name is not missing."""
    model = Tied()
    receipt = initialize_missing(model, load(model, held), seed=0)

    assert receipt.written == 2
    assert bool((model.head.weight == 7).all())


def test_a_tie_that_is_missing():
    """A tied tensor that the checkpoint holds under no name is drawn."""
    model = Tied()
    receipt = initialize_missing(model, load(model, "body."), seed=0)

    assert receipt.written == 1
    assert model.head.weight is model.embedding.weight


def test_parametrised_weights():
    """The keys of a parametrised weight are those of its originals."""
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), weight_norm(nn.Linear(8, 4)))
    receipt = initialize_missing(model, load(model, "0."), seed=0)

    assert {step.name for step in receipt.plan if not step.keeps} == {"2.weight", "2.bias"}


def test_names_that_are_no_tensors():
    """Keys of another model are an error that lists them, before anything is written."""
    model = nn.Linear(4, 4)
    before = model.weight.clone()

    with pytest.raises(UnknownNameError, match=r"head\.weight"):
        initialize_missing(model, ["weight", "head.weight"])

    assert torch.equal(model.weight, before)


def test_buffers_are_no_parameters():
    """A missing buffer is known and is left as it is."""
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))

    assert initialize_missing(model, ["1.running_mean"]).written == 0


def grown(words: int, state: dict[str, torch.Tensor]) -> Tied:
    """Build the language model with more words, and load what has not grown."""
    model = Tied()
    model.embedding = nn.Embedding(words, 8)
    model.head = nn.Linear(8, words, bias=False)
    model.head.weight = model.embedding.weight
    fits = {n: value for n, value in state.items() if value.shape == model.state_dict()[n].shape}
    model.load_state_dict(fits, strict=False)
    return model


class TestRows:
    """New rows lie as the old ones do."""

    @pytest.mark.parametrize("at_once", [1000, 1 << 24])
    def test_mean_and_covariance(self, monkeypatch, at_once):
        """Of many new rows they are those of the old ones, which stay, however many are drawn."""
        monkeypatch.setattr(checkpoints, "_AT_ONCE", at_once)
        old, new = nn.Embedding(50, 3), nn.Embedding(40_050, 3)
        with torch.no_grad():
            mixed = old.weight @ torch.tensor([[2.0, 1, 0], [0, 1, 0], [0, 0, 0]])
            old.weight.copy_(mixed + torch.tensor([1.0, -2, 5]))
        initialize_rows(new, old.state_dict(), seed=0)
        rows, known = new.weight.detach()[50:].double(), old.weight.detach().double()

        assert torch.equal(new.weight[:50], old.weight)
        assert torch.allclose(rows.mean(0), known.mean(0), atol=0.06)
        assert torch.allclose(rows.T.cov(), known.T.cov(), rtol=0.05, atol=0.02)

    def test_ties_are_drawn_once(self):
        """A head that is the table keeps being it; all else is left alone."""
        state = copy.deepcopy(Tied().state_dict())
        model = grown(23, state)
        receipt = initialize_rows(model, state, seed=0)

        assert {step.name for step in receipt.plan if not step.keeps} == {"embedding.weight"}
        assert model.head.weight is model.embedding.weight
        assert torch.equal(model.head.weight[:20], state["head.weight"])
        assert torch.equal(model.body.weight, state["body.weight"])
        assert model.head.weight[20:].unique().numel() == 24

    def test_biases_of_heads(self):
        """A vector has rows of one number."""
        old, new = nn.Linear(8, 20), nn.Linear(8, 22)
        with torch.no_grad():
            old.bias.fill_(-3.0)
        initialize_rows(new, old.state_dict(), seed=0)

        assert new.bias.tolist() == pytest.approx([-3.0] * 22)
        assert torch.equal(new.weight[:20], old.weight)

    def test_what_is_no_growth(self):
        """Other widths, fewer rows and nothing new are errors, before anything is written."""
        model = nn.ModuleDict({"a": nn.Embedding(20, 8), "b": nn.Embedding(9, 8)})
        before = copy.deepcopy(model.state_dict())
        odd = {"a.weight": torch.zeros(18, 7), "b.weight": torch.zeros(10, 8)}

        with pytest.raises(
            ArgumentError, match=r"(?s)more than added rows:.*'?a\.weight.*b\.weight"
        ):
            initialize_rows(model, odd)
        with pytest.raises(ArgumentError, match="no more rows"):
            initialize_rows(model, before)
        assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())

    def test_sharded(self):
        """On two processes that hold half a table each, its rows are those of one process."""
        state = _state()
        whole = grown(23, state)
        initialize_rows(whole, state, seed=4)

        assert everywhere(_sharded_rows, 2) == [whole.head.weight.tolist()] * 2


def _state() -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    return copy.deepcopy(Tied().state_dict())


def _sharded_rows() -> list[list[float]]:
    model = grown(23, _state())
    fully_shard(model)
    initialize_rows(model, _state(), seed=4)
    return model.head.weight.full_tensor().tolist()
