"""A small model of each family is initialised for real: verified, then run forward and backward."""

import pytest
import torch

from tests.zoo.catalogue import REPRESENTATIVES, every_model
from tests.zoo.reading import Subject
from torch_initpolicy import apply_policy

pytestmark = pytest.mark.zoo


def test_representatives_exist():
    """The list names models of this version of the library, each once."""
    assert set(REPRESENTATIVES) <= set(every_model())
    assert len(set(REPRESENTATIVES)) == len(REPRESENTATIVES)


def test_apply_verify_run(representative):
    """Every tensor is what its step says; signals and gradients are numbers and reach the input."""
    subject = Subject.of(representative)

    # Heads that some models start at zero, and that are kept as meant, would hide all signals.
    receipt = apply_policy(subject.model, seed=0, keep="nothing")

    receipt.plan.verify(subject.model)
    (like,) = subject.reading.call.args
    image = torch.rand(like.shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
    output = subject.model.train()(image)
    output.square().mean().backward()
    assert output.isfinite().all()
    assert output.std() > 0
    gradients = [p.grad for p in subject.model.parameters() if p.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert image.grad.abs().max() > 0
