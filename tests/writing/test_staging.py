"""What may fail is computed aside: all errors are collected, and nothing has been written."""

import pytest
import torch
from torch import nn

from tests.writing.helpers import pairs
from torch_initpolicy.errors import ApplyError
from torch_initpolicy.tensors.initializers import From, Normal, Orthogonal
from torch_initpolicy.writing.apply import apply_steps
from torch_initpolicy.writing.blocks import Job
from torch_initpolicy.writing.drawing import Drawing
from torch_initpolicy.writing.shards import pieces, whole
from torch_initpolicy.writing.staging import split, zero_padding


def raises(tensor):
    """Fail."""
    raise ZeroDivisionError("no luck")


def infinite(tensor):
    """Fill with what no weight should be."""
    tensor.fill_(float("inf"))


def test_all_failures_are_told_at_once():
    """Each site that could not be computed stands in one error, and the model is as it was."""
    model = nn.ModuleDict({name: nn.Linear(3, 3, bias=False) for name in ("a", "b", "c")})
    before = [parameter.detach().clone() for parameter in model.parameters()]
    choices = {"a.weight": From(raises), "b.weight": From(infinite), "c.weight": Orthogonal()}
    with pytest.raises(ApplyError) as raised:
        apply_steps(pairs(model, lambda site: choices[site.name]), Drawing(0))

    assert "'a.weight' (Linear, (3, 3))" in str(raised.value)
    assert "raised ZeroDivisionError('no luck')" in str(raised.value)
    assert "gives 9 of 9 elements that are not finite" in str(raised.value)
    assert all(map(torch.equal, before, model.parameters()))


def test_padding():
    """The row that stands for nothing becomes zero in whichever piece holds it."""
    table = nn.Embedding(6, 2, padding_idx=4)
    ((site, step),) = pairs(table, lambda site: Normal(1.0))
    job = Job(site, step, torch.device("cpu"), pieces(table.weight), (), torch.float32)
    values = torch.ones(6, 2)
    zero_padding(job, [whole(values)])

    assert values.any(1).tolist() == [True, True, True, True, False, True]


def test_split():
    """Those that pass come first, in their order."""
    assert split([3, 1, 4, 1, 5], lambda number: number > 2) == ([3, 4, 5], [1, 1])
