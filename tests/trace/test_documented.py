"""What docstrings of forward passes say of their arguments."""

import pytest
import torch
from torch import nn

from torch_initpolicy.sites import sites
from torch_initpolicy.trace.documented import documented
from torch_initpolicy.trace.read import read


class Net(nn.Module):
    """Takes channels, and sums up what it is conditioned on."""

    channels, image_size = 5, 12

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.text = nn.Linear(5 * 12, 4), nn.Linear(7, 4)

    def forward(self, picture, text, mask=None):
        """Mix.

        Args:
            picture (`torch.Tensor` of shape `(batch size, channels, height, 12)`):
                As many numbers
                in each column.
            text (torch.FloatTensor): A text with the shape [n, 7].
            mask (torch.BoolTensor of shape (batch, length), *optional*): Whatever.

        Returns:
            result (`torch.Tensor` of shape `(1, 2)`): Nobody asks.
        """
        flat = picture.movedim(1, 2).flatten(2)
        return self.mix(flat) + self.text(text)[:, None]


@pytest.mark.parametrize(
    ("name", "shape", "dtype"),
    [
        ("picture", (2, 5, 12, 12), torch.float32),
        ("text", (2, 7), torch.float32),
        ("mask", (2, 8), torch.bool),
    ],
)
def test_shapes_are_read(name, shape, dtype):
    """Words for axes mean what the model calls so; numbers are themselves."""
    (tensor,) = documented(Net(), name)

    assert (tuple(tensor.shape), tensor.dtype, tensor.is_meta) == (shape, dtype, True)


@pytest.mark.parametrize("name", ["result", "Args", "forward"])
def test_nothing_is_made_up(name):
    """What is no argument, or has no shape, is not documented."""
    assert list(documented(Net(), name)) == []


def test_a_documented_model_is_read():
    """Two arguments that no layer alone tells are given as the docstring says."""
    model = Net()
    found = read(model, sites(model))

    assert found.evidence == "traced"
    assert found.unused == set()
    assert {name: tuple(t.shape) for name, t in found.call.kwargs.items()} == {
        "picture": (2, 5, 12, 12),
        "text": (2, 7),
    }
