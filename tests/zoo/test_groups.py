"""Roles decide about weight decay as the sources of models do, where names and shapes do not."""

import warnings

import pytest

from tests.zoo import labels, tiny
from torch_initpolicy import plan_policy

pytestmark = pytest.mark.zoo


def pytest_generate_tests(metafunc):
    """Ask for the tiny models that `--zoo` selects, if their libraries are there."""
    if "name" in metafunc.fixturenames:
        metafunc.parametrize("name", [*tiny.names(metafunc.config.getoption("zoo"))])


def test_tiny_models(name):
    """Each parameter of transformers' and diffusers' models whose class tells is where it says."""
    pytest.importorskip("diffusers" if name in tiny.DIFFUSERS else "transformers")
    model = tiny.build(name)
    if model is None:
        pytest.skip("cannot be made tiny")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plan = plan_policy(model)
    expected = labels.labelled(plan)

    assert expected
    assert labels.decayed(plan, expected) == expected


def test_names_and_axes_err():
    """On one model alone the usual tests disagree with its source where roles do not."""
    pytest.importorskip("transformers")
    model = tiny.build("t5")
    plan = plan_policy(model)
    expected = labels.labelled(plan)

    assert any(labels.by_axes(plan[name].shape) != label for name, label in expected.items())
    assert any(labels.by_name(name) != label for name, label in expected.items())
