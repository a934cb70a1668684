"""Rows that a vocabulary has gained lie as the old ones do; all else stays."""

import copy

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import fully_shard

from tests.integrations.test_checkpoints import Tied
from tests.processes import everywhere
from torch_initpolicy.errors import ArgumentError
from torch_initpolicy.integrations import rows as rows_module
from torch_initpolicy.integrations.rows import initialize_rows


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
        monkeypatch.setattr(rows_module, "_AT_ONCE", at_once)
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
