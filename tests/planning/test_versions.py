"""Versions: what other bits are refused for, and what is warned of."""

import warnings
from dataclasses import replace

import pytest
import torch

from torch_initpolicy.errors import ApplyError, InitPolicyWarning
from torch_initpolicy.planning.versions import Versions, installed

HERE = Versions.here()


def test_here():
    """The versions of this process are those of its torch, and good for it."""
    assert torch.__version__ == HERE.torch
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        HERE.check()


def test_another_python():
    """Python has no influence on the bits, so another one is not spoken of."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        replace(HERE, python="3.99").check()


def test_other_streams():
    """Another contract of random streams is refused, with the version that knows it."""
    with pytest.raises(
        ApplyError, match=r"random streams v0.*\n?.*install torch-initpolicy 0\.0\.1"
    ):
        replace(HERE, streams=0, torch_initpolicy="0.0.1").check()


@pytest.mark.parametrize("change", [{"torch": "2.0.0"}, {"capability": "NO AVX"}])
def test_other_kernels(change):
    """Another torch, or other instructions, may give other bits: both are named."""
    with pytest.warns(InitPolicyWarning, match="the bits may differ") as caught:
        replace(HERE, **change).check()

    assert HERE.kernels in str(caught[0].message)
    assert next(iter(change.values())) in str(caught[0].message)


def test_what_is_not_installed():
    """A package that is imported from its source has no version."""
    assert installed("pytest") == pytest.__version__
    assert installed("no-such-package-anywhere") == "not installed"
