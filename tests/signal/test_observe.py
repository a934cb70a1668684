"""Gradients are those of autograd, wherever a parameter is kept."""

import pytest
from torch import nn

from tests.signal.nets import batch, fill, plain
from torch_initpolicy.signal.run import audit_signal

pytestmark = pytest.mark.usefixtures("one_thread")


def test_gradients_are_those_of_autograd():
    """With a loss, gradients of outputs and parameters are those of a backward pass by hand."""
    model, x = fill(plain(2, 16), 1.4), batch(8, 16)
    signal = audit_signal(model, x, loss_fn=lambda out: out.square().sum())
    first = model[0](x)
    first.retain_grad()
    loss = model[1:](first).square().sum()
    loss.backward()
    assert signal.loss == pytest.approx(loss.item(), rel=1e-5)
    assert signal.points[0].gradient == pytest.approx(first.grad.square().mean().item(), rel=1e-4)
    for update, parameter in zip(signal.updates, model.parameters(), strict=True):
        assert update.gradient == pytest.approx(parameter.grad.square().mean().item(), rel=1e-4)
    weight = model[0].weight
    ratio = (weight.grad.norm() / weight.norm()).item()
    assert signal.updates[0].ratio == pytest.approx(ratio, rel=1e-4)


def test_recurrent_weights_get_their_gradients():
    """A layer that keeps its parameters in a list of its own is no exception."""
    model, x = nn.LSTM(4, 6), batch(5, 3, 4)
    signal = audit_signal(model, x, loss_fn=lambda out: out[0].sum())
    model(x)[0].sum().backward()
    found = {update.site: update.gradient for update in signal.updates}
    assert found == pytest.approx(
        {name: p.grad.square().mean().item() for name, p in model.named_parameters()}, rel=1e-4
    )


def test_parametrised_weights_are_one_site():
    """What lies behind a parametrised weight is reported under the weight's name."""
    model = nn.utils.parametrizations.weight_norm(nn.Linear(6, 6))
    signal = audit_signal(model, batch(4, 6))
    assert {update.site for update in signal.updates} == {"weight", "bias"}
    assert all(update.ratio for update in signal.updates if update.site == "weight")
