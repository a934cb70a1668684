"""Arguments of a wrong kind raise errors of the package, and change nothing."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn

from torch_initpolicy import (
    InitPolicy,
    apply_policy,
    audit_signal,
    find_symmetry,
    init_policy,
    lsuv_,
    materialize,
    plan_policy,
)
from torch_initpolicy.errors import InitPolicyError

ODD = [
    *(None, True, 0, -1, 5, 2**70, -(2**70), 10**400, 1.5, float("nan"), float("inf"), 1j),
    *("", "x", "a\0b", "a\0.json", "nope.json", "\ud800", b"he", "cuda:99", "meta", "xla:9"),
    *([], {}, set(), (1,), [None], ["["], range(3), object(), int, ..., NotImplemented),
    *(torch.zeros(3), torch.zeros(()), np.array([1, 2]), np.float32(3), lambda: None),
]
"""What somebody may pass by mistake."""

BATCH = torch.zeros(4, 8)


def network():
    """Two layers and an activation."""
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))


def build(**arguments):
    """Make a decorated class, and an object of it."""
    policy = arguments.pop("policy", "auto")
    init_policy(policy, **arguments)(type("Net", (nn.Sequential,), {}))(nn.Linear(8, 8))


def scaled(model, **arguments):
    """Calibrate on a batch, or on what is given in its place."""
    lsuv_(model, **{"inputs": BATCH, **arguments})


def planned(model):
    """Plan for the inputs that are known."""
    return plan_policy(model, "he", example_inputs=BATCH)


SELECTING = ("only", "skip", "frozen", "strict", "keep")
DRAWING = ("seed", "threads", "draw_on")
VERBS = {
    "plan_policy": (plan_policy, ("policy", "example_inputs", *SELECTING)),
    "apply_policy": (apply_policy, ("policy", "example_inputs", "calibrate", *SELECTING, *DRAWING)),
    "lsuv_": (scaled, ("inputs", "std", "per_channel", "orthogonal", "seed", *SELECTING[:3])),
    "find_symmetry": (find_symmetry, ("example_inputs", "loss_fn")),
    "audit_signal": (audit_signal, ("inputs", "optimizer", "lr")),
    "param_groups": (
        lambda model, **asked: planned(model).param_groups(**{"lr": 0.1, **asked}),
        ("optimizer", "lr", "weight_decay"),
    ),
    "diff": (lambda model, other: planned(model).diff(other), ("other",)),
    "from_json": (lambda _, text: InitPolicy.from_json(text), ("text",)),
    "load": (lambda _, path: InitPolicy.load(path), ("path",)),
    "init_policy": (lambda _, **options: build(**options), (*SELECTING, *DRAWING)),
}
CASES = {f"{verb}, {name}": (VERBS[verb][0], name) for verb in VERBS for name in VERBS[verb][1]}


@pytest.mark.parametrize(("call", "name"), CASES.values(), ids=CASES)
def test_verbs(call, name):
    """Each odd value of each argument is taken or refused with an error of the package."""
    model, wrong = network(), {}
    before = {key: value.clone() for key, value in model.state_dict().items()}
    for odd in ODD:
        model.load_state_dict(before)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                call(model, **{name: odd})
            except InitPolicyError:
                assert all(torch.equal(model.state_dict()[key], before[key]) for key in before)
            except Exception as error:  # noqa: BLE001 - what is looked for
                wrong[repr(odd)[:40]] = repr(error)

    assert wrong == {}


@pytest.mark.parametrize("name", ["policy", "device", "frozen", "strict", *DRAWING])
def test_materialize(name):
    """The same of a model that is on the meta device."""
    wrong = {}
    for odd in ODD:
        with torch.device("meta"):
            model = network()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                materialize(model, **{name: odd})
            except InitPolicyError:
                assert all(parameter.is_meta for parameter in model.parameters())
            except Exception as error:  # noqa: BLE001 - what is looked for
                wrong[repr(odd)[:40]] = repr(error)

    assert wrong == {}


@pytest.mark.parametrize("odd", ODD, ids=lambda odd: repr(odd)[:20].encode("unicode_escape"))
def test_models(odd):
    """What is no module is refused as such."""
    with pytest.raises(InitPolicyError):
        plan_policy(odd)
