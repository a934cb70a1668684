"""LSUV against the package `lsuv`, and what an audit costs: ratios within one run."""

import contextlib
import io
import time

import pytest
import torch
from torch import nn

from torch_initpolicy import audit_signal, lsuv_

torchvision = pytest.importorskip("torchvision")
pytestmark = pytest.mark.bench


def batch(edge: int) -> torch.Tensor:
    """Draw eight images."""
    return torch.randn(8, 3, edge, edge, generator=torch.Generator().manual_seed(0))


def worst(model: nn.Module, x: torch.Tensor) -> float:
    """Return the largest deviation from unit std at any convolution or linear layer."""
    found = []
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(
                lambda _, __, out: found.append(abs(out.double().std(correction=0).item() - 1))
            )
    with torch.no_grad():
        model(x)
    return max(found)


def theirs(model: nn.Module, x: torch.Tensor, *, orthogonal: bool) -> None:
    """Run the package `lsuv` with its own settings, its prints apart."""
    lsuv = pytest.importorskip("lsuv")
    with contextlib.redirect_stdout(io.StringIO()):
        lsuv.lsuv_with_singlebatch(
            model,
            x,
            do_orthonorm=orthogonal,
            device=torch.device("cpu"),
            verbose=False,
        )


CASES = {"orthogonal start": True, "scaling alone": False}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_lsuv(name, case, capsys):
    """One forward pass against two and more for each layer: how much less work, how much closer."""
    orthogonal = CASES[case]
    runs = {
        "ours": lambda model: lsuv_(model, x, orthogonal=orthogonal),
        "lsuv": lambda model: theirs(model, x, orthogonal=orthogonal),
    }
    x, figures = batch(96), {}
    for label, run in runs.items():
        torch.manual_seed(0)
        model = torchvision.models.get_model(name, weights=None)
        begun = time.process_time()
        run(model)
        figures[label] = time.process_time() - begun, worst(model, x)
    (ours, close), (other, far) = figures["ours"], figures["lsuv"]
    with capsys.disabled():
        print(  # noqa: T201 - a figure for people
            f"\n{name}, {case}: {other:.1f} s / {ours:.2f} s of the processor = "
            f"{other / ours:.0f} times faster; worst deviation {close:.1e} against {far:.1e}"
        )
    assert close < 1e-3


def test_audit(capsys):
    """An audit against a plain forward and backward pass of a ResNet-50, medians of five."""
    model, x = torchvision.models.resnet50(), batch(160)
    parameters = list(model.parameters())

    def plainly():
        torch.autograd.grad(model(x).sum(), parameters)

    plainly()
    ratios = []
    for _ in range(5):
        times = []
        for run in (plainly, lambda: audit_signal(model, x)):
            begun = time.process_time()
            run()
            times.append(time.process_time() - begun)
        ratios.append(times[1] / times[0])
    with capsys.disabled():
        figure = f"{sorted(ratios)[2]:.2f} times a forward and backward pass"
        print(f"\naudit of a ResNet-50: {figure}")  # noqa: T201 - a figure for people
    assert sorted(ratios)[2] < 1.5
