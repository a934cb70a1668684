"""The seed, the threads and the device that draws: what is taken, and what is refused."""

import pytest
import torch

from torch_initpolicy.errors import ApplyError
from torch_initpolicy.writing.drawing import Drawing


@pytest.mark.parametrize("seed", [0, -1, 2**64 - 1, -(2**63)])
def test_given_seed(seed):
    """A seed that fits is taken as it is and the global generator stays."""
    before = torch.random.get_rng_state()
    drawing = Drawing(seed)
    drawing.check()

    assert seed == drawing.settled()
    assert torch.equal(before, torch.random.get_rng_state())


def test_no_seed():
    """`torch.manual_seed` governs `seed=None`, which draws one number from it."""
    torch.manual_seed(5)
    first, second = Drawing().settled(), Drawing().settled()
    torch.manual_seed(5)

    assert first == Drawing().settled()
    assert first != second


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"seed": 2**64}, "does not fit into 64 bits"),
        ({"seed": -(2**63) - 1}, "does not fit into 64 bits"),
        ({"seed": True}, "must be an int"),
        *(({"threads": threads}, "from 1 on") for threads in (0, -1, 2.0, "1", False)),
        *(({"draw_on": device}, "is no device that can draw") for device in ("meta", "toaster", 3)),
    ],
    ids=str,
)
def test_what_cannot_be(options, words):
    """Each argument that cannot be is refused in words."""
    Drawing().check()
    with pytest.raises(ApplyError, match=words):
        Drawing(**options).check()
