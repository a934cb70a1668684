"""Which sites may be written: one value, and arguments of a wrong kind are refused."""

import pytest
import torch
from torch import nn

from torch_initpolicy import plan_policy
from torch_initpolicy.errors import PolicyError
from torch_initpolicy.planning.selection import Selection
from torch_initpolicy.sites import sites

MODEL = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))


@pytest.mark.parametrize(
    ("arguments", "written"),
    [
        ({}, ["0.weight", "0.bias", "1.weight", "1.bias"]),
        ({"only": "0.*"}, ["0.weight", "0.bias"]),
        ({"only": []}, []),
        ({"skip": ["*.bias", "1.*"]}, ["0.weight"]),
        ({"only": ("0.*",), "skip": "*.bias"}, ["0.weight"]),
        ({"only": (glob for glob in ["1.bias"])}, ["1.bias"]),
    ],
    ids=["all", "one glob", "none", "several", "both", "a generator"],
)
def test_kept(arguments, written):
    """Globs are one or several, in anything that can be iterated."""
    selection = Selection.of(**arguments)

    assert [site.name for site in sites(MODEL) if selection.kept(site) is None] == written


def test_idle():
    """A glob that matches nothing is listed, with what may have been meant."""
    (found,) = Selection.of(only=["0.*", "1.wieght"]).idle(sites(MODEL))

    assert found.startswith("only='1.wieght' matches nothing; did you mean '1.weight'")


@pytest.mark.parametrize(
    "arguments",
    [
        *({"only": 5}, {"skip": 5.0}, {"only": True}, {"only": [5]}, {"skip": [None]}),
        *({"only": [""]}, {"only": "a["}, {"skip": object()}, {"only": torch.zeros(2)}),
        *({"frozen": "yes"}, {"frozen": None}, {"strict": 1}, {"keep": "all"}, {"keep": None}),
        {"keep": ["meant"]},
    ],
    ids=range(15),
)
def test_odd_arguments(arguments):
    """What is no glob and no truth value is refused, and the error names the argument."""
    with pytest.raises(PolicyError, match=f"{next(iter(arguments))}|glob"):
        Selection.of(**arguments)


def test_unknown_argument():
    """An argument that no verb has is refused with the nearest one, as Python refuses it."""
    with pytest.raises(TypeError, match="no argument 'onyl'; did you mean 'only'"):
        plan_policy(MODEL, onyl="0.*")
