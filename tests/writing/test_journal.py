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
    """Of what is drawn in place it keeps all or nothing, and says which; what it wrote, always."""
    monkeypatch.setattr(module, "ROOM", 64)
    journal, written, drawn = Journal(), torch.zeros(1000), torch.zeros(17)
    journal.write(written, 1.0)
    journal.keep([drawn[:16]])

    assert journal.is_complete
    journal.keep([drawn[:16], drawn[16:]])
    assert not journal.is_complete
    journal.undo()
    assert written.count_nonzero() == 0
