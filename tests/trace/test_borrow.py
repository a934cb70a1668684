"""A model that is lent comes back as it was, and so does the process."""

import random

import numpy as np
import pytest
import torch
from torch import nn

from torch_initpolicy.sites import borrowing
from torch_initpolicy.trace.borrow import borrowed
from torch_initpolicy.trace.reach import Reach


class Holding(nn.Module):
    """Holds tensors in its parameters and beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.cache = {"table": torch.zeros(3), "list": [torch.ones(2)]}


def test_tensors_beside_the_parameters_are_copies_meanwhile():
    """What a forward pass writes to a cache is gone afterwards, to the last nested list."""
    model = Holding()
    table, items = model.cache["table"], model.cache["list"]
    with borrowed(model) as lent:
        assert model.cache["table"] is not table
        model.cache["table"].fill_(7)
        model.cache["list"].append(torch.zeros(1))
        model.extra = 3
        assert {id(p) for p in lent.parameters} == {id(p) for p in model.parameters()}

    assert model.cache["table"] is table
    assert table.tolist() == [0, 0, 0]
    assert (model.cache["list"], len(items), hasattr(model, "extra")) == (items, 1, False)


def test_stand_ins_are_wherever_a_tensor_is_held():
    """A parameter that a helper holds as well is swapped there, too, and put back."""
    model = Holding()
    weight, model.cache["weight"] = model.layer.weight, model.layer.weight
    with borrowed(model) as lent:
        other = nn.Parameter(torch.ones(3, 3))
        lent.swap({id(weight): other})
        assert model.cache["weight"] is other
        assert model.layer.weight is other

    assert model.cache["weight"] is model.layer.weight is weight


def test_the_process_is_as_it_was():
    """Random states, the default dtype and whether gradients are taken are put back."""
    model = Holding()
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002

    def meddle() -> None:
        with borrowed(model):
            torch.rand(3), random.random(), np.random.rand()  # noqa: NPY002
            torch.set_default_dtype(torch.float64)
            torch.set_grad_enabled(False)
            raise KeyError("half-way")

    with pytest.raises(KeyError):
        meddle()

    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()
    assert (before[2] == np.random.get_state()[1]).all()  # noqa: NPY002
    assert (torch.get_default_dtype(), torch.is_grad_enabled()) == (torch.float32, True)


def test_noise_is_seen_in_the_generator_of_the_loan():
    """What random operators draw comes from it, so that it tells whether any has run."""
    with borrowed(Holding()) as lent:
        before = lent.generator.get_state()
        assert torch.equal(before, lent.generator.get_state())
        first = torch.rand(4)
        assert not torch.equal(before, lent.generator.get_state())
        lent.generator.manual_seed(0)
        assert torch.equal(first, torch.rand(4))


def test_what_a_model_reaches_may_be_given():
    """Who borrows several times looks for it once; what is added meanwhile is gone each time."""
    model = Holding()
    with borrowing(model):
        reach = Reach(model)
        for _ in range(3):
            with borrowed(model, reach):
                model.cache["new"] = torch.zeros(1)
            assert sorted(model.cache) == ["list", "table"]


def test_hooks_that_look_on_are_off():
    """They do not run while the model is lent, and hang where they hung afterwards."""
    model, calls = nn.Linear(2, 2), []
    model.register_forward_hook(lambda *_: calls.append(1))
    model.register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    hooks = list(model._forward_hooks), list(model._forward_pre_hooks)
    with borrowed(model):
        doubled = model(torch.ones(1, 2))

    assert torch.equal(
        doubled, nn.functional.linear(torch.full((1, 2), 2.0), model.weight, model.bias)
    )
    assert (calls, (list(model._forward_hooks), list(model._forward_pre_hooks))) == ([], hooks)
