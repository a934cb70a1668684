"""Strides of a parameter in views and copies: compared with where numbered elements end up."""

import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from torch_initpolicy.sites import sites
from torch_initpolicy.trace.read import read
from torch_initpolicy.trace.strides import strides_in

STEPS: tuple[Callable[[Tensor], Tensor], ...] = (
    Tensor.float, Tensor.clone, lambda w: w.mT, lambda w: w.mT.contiguous(),
    lambda w: w[-max(1, len(w) - 1) :], lambda w: w[..., ::2],
    lambda w: w.unflatten(-1, (-1, 2)) if w.shape[-1] % 2 == 0 else w,
    lambda w: w.flatten(0, 1), lambda w: w.unsqueeze(0), lambda w: w.movedim(0, -1),
    lambda w: w.to(torch.bfloat16), lambda w: w.narrow(-1, 0, max(1, w.shape[-1] - 1)),
)  # fmt: skip


class Chain(nn.Module):
    """A parameter that is viewed and copied at random before it meets the signal."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.steps = random.Random(seed).choices(STEPS, k=6)
        self.w = nn.Parameter(torch.zeros(6, 4, 8))

    def used(self, w: Tensor) -> Tensor:
        for step in self.steps:
            w = step(w) if w.dim() > 1 else w
        return w

    def forward(self, x: Tensor) -> Tensor:
        return x * self.used(self.w)


def test_strides_are_where_numbered_elements_are():
    """Where strides are found, numbers in the parameter's place lie as they say; mostly they are.

    They are missing only behind a copy whose dimensions a view has joined that are not in order.
    """
    found = 0
    for seed in range(150):
        model = Chain(seed)
        flow = read(model, sites(model), torch.zeros(1)).flow
        (use,) = flow.uses.found
        strides = strides_in(flow.uses, flow.uses.graph.values[use.source.at], use.value)
        numbers = model.used(torch.arange(192.0).view(6, 4, 8)).long()
        if strides is None:
            continue
        found += 1
        steps = [s * torch.arange(n) for s, n in zip(strides, numbers.shape, strict=True)]
        grid = sum(torch.meshgrid(*steps, indexing="ij"))
        assert torch.equal(numbers - numbers.flatten()[0], grid), seed
    assert found > 100


COPIES = {
    "cast": lambda w: w.float(),
    "transposed and copied": lambda w: w.T.contiguous(),
    "cast and transposed": lambda w: w.float().T,
    "copied twice": lambda w: w.T.clone().T.contiguous(),
    "split and copied": lambda w: w.view(2, -1, w.shape[1]).clone().flatten(0, 1),
}


@pytest.mark.parametrize("change", COPIES.values(), ids=COPIES)
def test_copies_of_large_parameters_are_followed(change):
    """A parameter that is too large to number its elements is known through its copies."""

    class Large(nn.Module):
        def __init__(self, size: int) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.empty(size, 2 * size, device="meta", dtype=torch.bfloat16))

        def forward(self, x: Tensor) -> Tensor:
            used = change(self.w)
            weight = used if used.shape[0] == self.w.shape[0] else used.T
            return x.to(weight.dtype) @ weight

    small, large = (
        read(model, sites(model), torch.zeros(2, size)).facts["w"].axes
        for size in (10, 6000)
        for model in [Large(size)]
    )

    assert (small.inputs, small.outputs, small.counted) == ((0,), (1,), None)
    assert large == small
