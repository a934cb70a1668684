"""Weights and receipt in one file."""

import pytest
import torch
from safetensors.torch import load_model, save_file
from torch import nn

from torch_initpolicy import apply_policy
from torch_initpolicy.errors import InitPolicyError
from torch_initpolicy.integrations.safetensors import receipt_in, save


class Tied(nn.Module):
    """An embedding that is also the head, and a buffer."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(12, 8)
        self.norm = nn.BatchNorm1d(8)
        self.head = nn.Linear(8, 12, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids):
        return self.head(self.norm(self.embedding(ids)))


class TestSave:
    """What is saved can be loaded, and done again."""

    def test_round_trip(self, tmp_path):
        """Weights, buffers and ties come back, and so does the receipt."""
        model, loaded = Tied(), Tied()
        receipt = apply_policy(model, seed=1)

        save(model, receipt, tmp_path / "tied.safetensors")
        load_model(loaded, str(tmp_path / "tied.safetensors"))

        assert receipt_in(tmp_path / "tied.safetensors") == receipt
        assert loaded.head.weight is loaded.embedding.weight
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, loaded.state_dict()[name])

    def test_the_receipt_of_a_file_reproduces_it(self, tmp_path):
        """From the metadata alone another model gets the same bits."""
        model, again = Tied(), Tied()
        save(model, apply_policy(model, "orthogonal", seed=2), tmp_path / "a.safetensors")

        receipt_in(tmp_path / "a.safetensors").reproduce(again)

        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, again.state_dict()[name])


class TestReceiptIn:
    """What is no such file is refused."""

    def test_without_a_receipt(self, tmp_path):
        """A file that was written by other means says so."""
        save_file({"a": torch.zeros(1)}, tmp_path / "plain.safetensors")

        with pytest.raises(InitPolicyError, match=r"plain\.safetensors holds no receipt"):
            receipt_in(tmp_path / "plain.safetensors")

    def test_another_format(self, tmp_path):
        """A file of another format says so."""
        (tmp_path / "text.safetensors").write_text("hello, this is no such file at all")

        with pytest.raises(InitPolicyError, match="is no safetensors file"):
            receipt_in(tmp_path / "text.safetensors")
