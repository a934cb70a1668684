"""Weights and receipt in one file."""

import pytest
import torch
from safetensors.torch import load_model, save_file, save_model
from torch import nn

from torch_initpolicy import apply_policy
from torch_initpolicy.errors import InitPolicyError
from torch_initpolicy.integrations.safetensors import load, receipt_in, save


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


def differences(model, path):
    """Return what is said about a file that does not fit a model."""
    with pytest.raises(InitPolicyError) as refused:
        load(model, path)
    return str(refused.value).splitlines()


class TestLoad:
    """A file that fits is loaded; of another it is said in what it differs."""

    def test_ties(self, tmp_path):
        """Tied tensors are in the file once, which is enough."""
        model, loaded = Tied(), Tied()
        save_model(model, str(tmp_path / "tied.safetensors"))

        load(loaded, tmp_path / "tied.safetensors")

        assert torch.equal(loaded.head.weight, model.head.weight)

    def test_names(self, tmp_path):
        """Each name is told once, with the side that lacks it."""
        save_file({"0.weight": torch.zeros(2, 2), "1.bias": torch.zeros(2)}, tmp_path / "a")

        title, *lines = differences(nn.Sequential(nn.Linear(2, 2)), tmp_path / "a")

        assert title.endswith("a holds no weights for this Sequential:")
        assert lines == [
            "1 tensor missing from it:",
            "  - 0.bias",
            "1 tensor unknown to the model:",
            "  - 1.bias",
        ]

    def test_shapes(self, tmp_path):
        """Where a shape differs both are told, and the model is left as it was."""
        held = {"weight": torch.zeros(2, 3), "bias": torch.zeros(2)}
        save_file(held, tmp_path / "a")
        model = nn.Linear(2, 2)
        before = model.bias.clone()

        _, *lines = differences(model, tmp_path / "a")

        assert lines == [
            "1 tensor of another shape than the model's:",
            "  - weight: [2, 3], not [2, 2]",
        ]
        assert torch.equal(model.bias, before)

    def test_many(self, tmp_path):
        """Of many names the first are shown, and how many there are."""
        save_file({"a": torch.zeros(1)}, tmp_path / "a")

        model = nn.Sequential(*(nn.Linear(1, 1) for _ in range(21)))
        _, first, *lines = differences(model, tmp_path / "a")

        assert first == "42 tensors missing from it:"
        assert lines[10] == "  ... and 32 more"
        assert len(lines) == 13

    def test_another_format(self, tmp_path):
        """A file of another format says so."""
        (tmp_path / "text").write_text("hello, this is no such file at all")

        assert "text cannot be read" in differences(nn.Linear(1, 1), tmp_path / "text")[0]


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
