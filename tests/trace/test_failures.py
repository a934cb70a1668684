"""What could not be recorded is said to be so; inputs are blamed where they are at fault."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from torch_initpolicy import audit_signal, lsuv_, plan_policy
from torch_initpolicy.errors import TraceError
from torch_initpolicy.testing import assert_untouched


class Suspicious(nn.Module):
    """A forward that runs for everybody but a recorder."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if torch.overrides._get_current_function_mode() is not None:
            torch.linalg.cross(x, x[:, :1])  # needs three columns
        return self.second(x)


VERBS = {
    "plan": lambda model, x: plan_policy(model, example_inputs=x),
    "audit": audit_signal,
    "lsuv": lsuv_,
}


@pytest.mark.parametrize("verb", VERBS)
def test_a_forward_that_runs_is_not_blamed_on_its_inputs(verb):
    """The message names the operator and its module, and asks for no other inputs."""
    model = nn.Sequential(Suspicious())
    said = r"Sequential runs with .*, but not while it is recorded: operator '.*cross' of '0': "
    with assert_untouched(model), pytest.raises(TraceError, match=said) as raised:
        VERBS[verb](model, torch.ones(2, 4))

    assert "give what forward takes" not in str(raised.value)


@pytest.mark.parametrize("verb", VERBS)
def test_inputs_that_do_not_fit_are_blamed(verb):
    """What a plain call refuses as well is a matter of the inputs."""
    with pytest.raises(TraceError, match=r"Sequential raises with .*give what forward takes"):
        VERBS[verb](nn.Sequential(nn.Linear(4, 4)), torch.ones(2, 5))


class Batched(nn.Module):
    """Takes a batch with attributes, a number and an argument by keyword alone."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(7, 9)

    def forward(self, batch, steps: int, *, edges=None):
        return self.layer(batch.features) * steps


def test_what_was_tried_and_what_to_write_is_said():
    """Where no inputs are found, the plan names what each argument was, and how to give it."""
    untraced = plan_policy(Batched()).untraced or ""

    assert (
        "'Tensor' object has no attribute 'features' with batch float32 (2, 7), steps " in untraced
    )
    assert untraced.endswith("; give example_inputs=dict(batch=..., steps=...)")


def test_what_is_written_so_is_read():
    """A mapping of those names is what `example_inputs` takes."""
    batch = SimpleNamespace(features=torch.zeros(2, 7))

    assert plan_policy(Batched(), example_inputs={"batch": batch, "steps": 2}).untraced is None
