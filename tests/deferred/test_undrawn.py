"""Undrawn parameters refuse to be used, and are plain ones again once they are filled."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from torch_initpolicy.deferred.skip import opened, skip_init
from torch_initpolicy.deferred.undrawn import (
    SkippedParameter,
    SkippedTensor,
    mark_filled,
    pending_of,
)
from torch_initpolicy.errors import SkippedInitError
from torch_initpolicy.tensors.initializers import Uniform


class Net(nn.Module):
    """Four undrawn parameters and two drawn ones."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.last = nn.Sequential(nn.Linear(4, 2))

    def forward(self, x):
        return self.last(self.norm(self.first(x)))


def skipped():
    """A model whose weights are undrawn."""
    with skip_init():
        return Net()


def fill(model):
    """Fill a model by hand."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.5)
    return model


USES = {
    "forward": lambda m: m(torch.ones(1, 4)),
    "part": lambda m: m.last(torch.ones(1, 4)),
    "arithmetic": lambda m: m.first.weight + 1,
    "right hand": lambda m: torch.ones(4, 4) @ m.first.weight,
    "view": lambda m: m.first.weight.data[0].sum(),
    "moved": lambda m: m.first.weight.to(torch.float64).sum(),
    "in place": lambda m: m.first.weight.data.mul_(2.0),
    "part of it": lambda m: m.first.weight.data[0].fill_(1.0),
    "as a source": lambda m: torch.empty(4, 4).copy_(m.first.weight),
    "in a list": lambda m: torch.cat([torch.ones(4, 4), m.first.weight]),
    "numpy": lambda m: m.first.weight.detach().numpy(),
    "item": lambda m: m.first.weight[0, 0].item(),
    "comparison": lambda m: torch.equal(m.first.weight, torch.ones(4, 4)),
    "save": lambda m: torch.save(m, io.BytesIO()),
    "save state": lambda m: torch.save(m.state_dict(), io.BytesIO()),
    "pickle": pickle.dumps,
    "copy of state": lambda m: copy.deepcopy(m.state_dict()),
    "norm": lambda m: m.first.weight.norm(),
    "vector": lambda m: nn.utils.parameters_to_vector(m.parameters()),
}


class TestRefusal:
    """Using what was skipped is an error."""

    @pytest.mark.parametrize("use", USES.values(), ids=USES)
    def test_uses(self, use):
        """Each use raises and changes nothing."""
        model = skipped()

        with pytest.raises(SkippedInitError):
            use(model)
        assert type(model.first.weight) is SkippedParameter

    def test_lists_all(self):
        """The error names every undrawn parameter of the whole model and says what to do."""
        model = skipped()
        with pytest.raises(SkippedInitError) as raised:
            model.last[0](torch.ones(1, 4))

        assert str(raised.value) == (
            "the model has 4 parameters that skip_init has skipped, without values yet:\n"
            "  - first.weight: Uniform(low=-0.5, high=0.5), shape (4, 4)\n"
            "  - first.bias: Uniform(low=-0.5, high=0.5), shape (4,)\n"
            "  - last.0.weight: Uniform(low=-0.5, high=0.5), shape (2, 4)\n"
            "  - last.0.bias: Uniform(low=-0.5, high=0.5), shape (2,)\n"
            "fill them with apply_policy(model) or load_state_dict before the model is used or "
            "saved"
        )

    def test_compiled(self):
        """A compiled model says the same, in whatever error torch's compiler wraps it."""
        compiled = torch.compile(skipped(), backend="eager")

        with pytest.raises(Exception, match=r"has 4 parameters(?s:.)*  - first\.weight"):
            compiled(torch.ones(1, 4))

    def test_lists_what_is_left(self):
        """Parameters that were filled meanwhile are not listed."""
        model = skipped()
        fill(model.last)

        with pytest.raises(SkippedInitError, match=r"has 2 parameters (?s:.)*first.weight"):
            model(torch.ones(1, 4))

    def test_without_a_module(self):
        """A parameter that belongs to no module is described."""
        parameter = skipped().first.bias

        with pytest.raises(
            SkippedInitError, match=r"has 1 parameter .*:\n  - Uniform\(.*\), shape \(4,\)\n"
        ):
            parameter.sum()

    def test_repr(self):
        """A debugger can look at it."""
        weight = skipped().first.weight

        assert repr(weight) == "Parameter skipped: Uniform(low=-0.5, high=0.5), shape (4, 4)"
        assert repr(weight.data) == "Tensor skipped: Uniform(low=-0.5, high=0.5), shape (4, 4)"


HARMLESS = {
    "count": lambda m: sum(p.numel() for p in m.parameters()),
    "freeze": lambda m: m.requires_grad_(requires_grad=False),
    "modes": lambda m: m.eval().train(),
    "optimizer": lambda m: torch.optim.AdamW(m.parameters()).zero_grad(),
    "like": lambda m: [torch.zeros_like(p) for p in m.parameters()],
    "state": lambda m: {k: v.shape for k, v in m.state_dict().items()},
    "hook": lambda m: m.first.weight.register_hook(lambda grad: grad),
    "print": lambda m: f"{m} {m.first.weight}",
    "apply": lambda m: m.apply(lambda module: None),
    "dtype": lambda m: next(m.parameters()).dtype.is_floating_point,
}


class TestPermission:
    """What concerns no values is allowed."""

    @pytest.mark.parametrize("act", HARMLESS.values(), ids=HARMLESS)
    def test_harmless(self, act):
        """It works, and the parameters stay undrawn."""
        model = skipped()
        act(model)

        assert type(model.first.weight) is SkippedParameter

    def test_casts(self):
        """A model can be cast, and the parameters stay undrawn under the new dtype."""
        model = skipped().half().to(torch.float64).to(memory_format=torch.contiguous_format)

        assert type(model.first.weight) is SkippedParameter
        assert model.first.weight.dtype == torch.float64
        assert pending_of(model.first.weight).initializer == Uniform(-0.5, 0.5)
        assert fill(model)(torch.ones(1, 4, dtype=torch.float64)).isfinite().all()

    def test_deep_copy(self):
        """A copy is undrawn as well, and filled on its own."""
        model = skipped()
        other = fill(copy.deepcopy(model))

        assert type(model.first.weight) is SkippedParameter
        assert other(torch.ones(1, 4)).isfinite().all()

    def test_views(self):
        """A view of an undrawn parameter is undrawn, and so is a copy of its state."""
        model = skipped()

        assert type(model.first.weight.data) is SkippedTensor
        assert type(model.state_dict()["first.weight"]) is SkippedTensor
        assert type(model.first.weight.t()[0]) is SkippedTensor


FILLING = {
    "by hand": fill,
    "state": lambda m: m.load_state_dict(fill(Net()).state_dict()),
    "assigned state": lambda m: m.load_state_dict(fill(Net()).state_dict(), assign=True),
    "torch.nn.init": lambda m: [
        nn.init.normal_(p) if p.dim() == 1 else nn.init.orthogonal_(p) for p in m.parameters()
    ],
    "reset": lambda m: [m.first.reset_parameters(), m.last[0].reset_parameters()],
    "data": lambda m: [p.data.uniform_() for p in m.parameters()],
    "assigned data": lambda m: [setattr(p, "data", torch.ones(p.shape)) for p in m.parameters()],
    "its state": lambda m: [tensor.fill_(1.0) for tensor in m.state_dict().values()],
}


class TestFilling:
    """Every way of filling a parameter makes it a plain one."""

    @pytest.mark.parametrize("act", FILLING.values(), ids=FILLING)
    def test_no_trace(self, act):
        """A filled model works, and nothing tells it from one that was never skipped."""
        model = skipped()
        act(model)

        assert all(type(p) is nn.Parameter and not vars(p) for p in model.parameters())
        assert model(torch.ones(1, 4)).isfinite().all()
        loaded = pickle.loads(pickle.dumps(model))
        assert all(map(torch.equal, loaded.parameters(), model.parameters()))

    def test_shared_storage(self):
        """Two parameters on the same bytes are filled together."""
        with skip_init():
            model = Net()
            model.other = nn.Parameter(model.first.weight.data)
        fill(model.first)

        assert type(model.other) is nn.Parameter
        assert torch.equal(model.other, model.first.weight)

    def test_training(self):
        """A filled model trains."""
        model = fill(skipped())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model(torch.randn(8, 4)).square().sum().backward()
        optimizer.step()

        assert model.last[0].weight.grad.any()


class TestOpened:
    """The block in which the engine plans and writes."""

    def test_plain_within(self):
        """Within the block parameters are plain, and `pending_of` still tells."""
        model = skipped()
        with opened(model):
            assert type(model.first.weight) is nn.Parameter
            assert pending_of(model.first.weight).initializer == Uniform(-0.5, 0.5)
        assert type(model.first.weight) is SkippedParameter

    def test_marked(self):
        """What was marked as filled stays plain, all else is guarded again."""
        model = skipped()
        with opened(model):
            model.first.weight.data.fill_(1.0)
            mark_filled(model.first.weight)

        assert type(model.first.weight) is nn.Parameter
        assert pending_of(model.first.weight) is None
        assert type(model.first.bias) is SkippedParameter

    def test_error_within(self):
        """An error within leaves everything guarded."""
        model = skipped()
        with pytest.raises(ZeroDivisionError), opened(model), opened(model):
            _ = 1 / 0

        assert type(model.first.weight) is SkippedParameter

    def test_ordinary_model(self):
        """A model that was never skipped is not concerned."""
        model = Net()
        with opened(model):
            mark_filled(model.first.weight)

        assert not vars(model.first.weight)
