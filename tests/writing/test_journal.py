"""The undo journal: everything comes back, the latest first, and it says what it could not keep."""

import torch

from torch_initpolicy.writing import journal as module
from torch_initpolicy.writing.journal import Journal


def test_undo():
    """Tensors written twice, attributes that were there or not: all as before."""
    journal, tensor, attributes = Journal(), torch.arange(4.0), {"old": 1}
    journal.write(tensor, torch.ones(4))
    journal.write(tensor, 7.0)
    journal.assign(attributes, "old", 2)
    journal.assign(attributes, "new", 3)

    assert tensor.tolist() == [7.0] * 4
    assert attributes == {"old": 2, "new": 3}
    journal.undo()
    assert tensor.tolist() == [0.0, 1.0, 2.0, 3.0]
    assert attributes == {"old": 1}


def test_room(monkeypatch):
    """What is drawn in place is kept as a whole, or not at all."""
    monkeypatch.setattr(module, "ROOM", 64)
    drawn = torch.zeros(17)

    assert module.fits([drawn[:16]])
    assert not module.fits([drawn[:16], drawn[16:]])
