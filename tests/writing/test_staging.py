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


def of_modules(module):
    """Fill a linear layer, as functions for `model.apply` do."""
    if isinstance(module, nn.Linear):
        nn.init.ones_(module.weight)


def of_any_module(module):
    """Fill whatever has a weight."""
    nn.init.ones_(module.weight)


@pytest.mark.parametrize("function", [of_modules, of_any_module, lambda _: None])
def test_a_function_that_fills_no_tensor(function):
    """One that takes modules, or does nothing, is an error that says how to run it."""
    model = nn.Linear(3, 3)
    before = model.weight.detach().clone()
    with pytest.raises(ApplyError, match=r"model\.apply\(f\)"):
        apply_steps(pairs(model, lambda _: From(function)), Drawing(seed=0))
    assert torch.equal(model.weight, before)


def weights_alone(tensor):
    """Fill matrices."""
    if tensor.ndim > 1:
        nn.init.ones_(tensor)


def through_data(tensor):
    """Fill what autograd does not see."""
    tensor.data.fill_(1.0)


@pytest.mark.parametrize("function", [weights_alone, through_data, nn.init.zeros_])
def test_a_function_that_fills_some(function):
    """One that leaves some tensors as they are, or writes what is there already, is fine."""
    model = nn.Linear(3, 3)
    nn.init.zeros_(model.bias)
    for _ in range(2):
        apply_steps(pairs(model, lambda _: From(function)), Drawing(seed=0))
    assert bool((model.weight == (function is not nn.init.zeros_)).all())


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
