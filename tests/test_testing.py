"""Assertions for users' own suites: they pass what is right and name what is wrong."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from torch_initpolicy import apply_policy
from torch_initpolicy.errors import VerifyError
from torch_initpolicy.testing import assert_initialized, assert_untouched

ROOT = Path(__file__).parent.parent


def network():
    """Build a network with running statistics."""
    return nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 8))


class TestAssertInitialized:
    """Weights as a policy leaves them."""

    @pytest.mark.parametrize("policy", ["auto", "he", "xavier", "orthogonal"])
    @pytest.mark.parametrize("seed", [0, 1])
    def test_passes_after_the_policy(self, policy, seed):
        """Whatever the seed, a model passes for the policy it was initialised by."""
        model = network()
        apply_policy(model, policy, seed=seed)

        assert_initialized(model, policy)

    def test_fails_for_another(self):
        """A model that was not initialised by the policy is refused, tensor by tensor."""
        with pytest.raises(VerifyError, match=r"0\.weight"):
            assert_initialized(network(), "he")

    def test_only_looks_where_it_should(self):
        """Sites that are skipped may hold anything."""
        model = network()
        apply_policy(model, "he", seed=0)
        nn.init.ones_(model[3].weight)

        assert_initialized(model, "he", skip=["3.*"])
        with pytest.raises(VerifyError, match=r"3\.weight"):
            assert_initialized(model, "he")


def add_a_hook(model):
    """Leave a hook behind."""
    model[0].register_forward_hook(lambda *_: None)


def replace_a_parameter(model):
    """Put an equal parameter in the place of one."""
    model[0].weight = nn.Parameter(model[0].weight.detach().clone())


def backward(model):
    """Leave gradients behind."""
    model(torch.ones(4, 64)).sum().backward()


TOUCHES = {
    "write": (lambda model: nn.init.zeros_(model[0].weight), "values of 0.weight"),
    "tiny write": (lambda model: model[0].weight.data[3].mul_(1 + 1e-6), "values of 0.weight"),
    "replace": (replace_a_parameter, "_parameters of 0"),
    "freeze": (lambda model: model.requires_grad_(requires_grad=False), "requires_grad of 0"),
    "train flag": (lambda model: model[1].eval(), "training of 1"),
    "statistics": (lambda model: model(torch.ones(4, 64)), "values of 1.running_mean"),
    "hook": (add_a_hook, "_forward_hooks of 0"),
    "gradient": (backward, "gradient of 0.weight"),
    "attribute": (lambda model: setattr(model[2], "note", 1), "note of 2"),
    "module": (lambda model: model.append(nn.ReLU()), "_modules of the model"),
    "torch's generator": (lambda _: torch.rand(1), "torch's random state"),
    "Python's generator": (lambda _: random.random(), "Python's random state"),
}


class TestAssertUntouched:
    """Everything about a model stays."""

    @pytest.mark.parametrize(("touch", "message"), TOUCHES.values(), ids=TOUCHES)
    def test_notices(self, touch, message):
        """Each way to touch a model is noticed and named."""
        model = network()

        with pytest.raises(AssertionError, match=message), assert_untouched(model):
            touch(model)

    def test_passes_what_only_reads(self):
        """Reading, evaluating and copying change nothing."""
        model = network().eval()

        with assert_untouched(model):
            model(torch.ones(2, 64))
            model.state_dict()

    def test_values_that_are_no_numbers_are_equal_to_themselves(self):
        """A parameter full of NaN that nobody touches has not changed."""
        model = network()
        nn.init.constant_(model[0].weight, float("nan"))

        with assert_untouched(model):
            pass

    def test_looks_also_after_an_exception(self):
        """A block that raises is held to the same promise, and both errors are kept."""
        model = network()

        def touch_and_raise():
            model.eval()
            raise KeyError("the block's own error")

        with pytest.raises(AssertionError, match="training") as caught, assert_untouched(model):
            touch_and_raise()
        assert isinstance(caught.value.__context__, KeyError)

    def test_without_memory(self):
        """Lazy and meta tensors are compared as objects."""
        model = nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 3, device="meta"))

        with assert_untouched(model):
            pass
        with pytest.raises(AssertionError, match="_parameters of 1"), assert_untouched(model):
            model[1].weight = nn.Parameter(torch.ones(3, 3))


SUITE = """
import torch
from torch import nn

def test_fixtures(assert_initialized, assert_untouched):
    layer = nn.Linear(2, 2)
    with assert_untouched(layer):
        layer(torch.ones(1, 2))
    assert callable(assert_initialized)
"""


def test_pytest_plugin(tmp_path):
    """A suite that asks for the plugin gets the fixtures; one that does not imports nothing."""
    (tmp_path / "test_theirs.py").write_text(SUITE)

    def pytest_run(*options):
        return subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, "."],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        ).stdout

    assert "fixture 'assert_initialized' not found" in pytest_run()
    assert "1 passed" in pytest_run("-p", "torch_initpolicy.pytest_plugin")
