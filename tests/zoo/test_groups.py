"""Roles decide about weight decay as the sources of models do, where names and shapes do not."""

import warnings

import pytest
import timm

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


@pytest.mark.parametrize(
    ("of", "source"), [("t5", "transformers"), ("vit_tiny_patch16_224", "timm")]
)
def test_names_and_axes_err(of, source):
    """On one model alone each of the usual tests disagrees with its source where roles do not."""
    pytest.importorskip(source)
    plan = plan_policy(tiny.build(of) if source == "transformers" else timm.create_model(of))
    expected = labels.labelled(plan)

    assert labels.decayed(plan, expected) == expected
    assert any(labels.by_axes(plan[name].shape) != label for name, label in expected.items())
    assert any(labels.by_name(name) != label for name, label in expected.items())
