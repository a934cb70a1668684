"""Terms of each sum in a product, against products of ones."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torch_initpolicy.sites import sites
from torch_initpolicy.trace.contractions import terms
from torch_initpolicy.trace.read import read

PRODUCTS = {
    "matmul": ((2, 3, 5), (2, 5, 4), torch.matmul),
    "vectors": ((5,), (5,), torch.dot),
    "inner": ((3, 5), (4, 5), torch.inner),
    "tensordot": ((3, 4, 5), (4, 5, 2), lambda a, b: torch.tensordot(a, b, dims=2)),
    "addmm": ((3, 5), (5, 4), lambda a, b: torch.addmm(torch.zeros(4), a, b)),
    "addbmm": ((2, 3, 5), (2, 5, 4), lambda a, b: torch.addbmm(torch.zeros(3, 4), a, b)),
    "einsum": ((2, 3, 5), (2, 4, 5), lambda a, b: torch.einsum("bqd,bkd->bqk", a, b)),
    "einsum, two sums": ((2, 3, 5), (3, 5, 4), lambda a, b: torch.einsum("bhd,hdo->bo", a, b)),
    "einsum, dots": ((2, 3, 5), (2, 5, 4), lambda a, b: torch.einsum("...qd,...dk->...qk", a, b)),
    "einsum, implicit": ((3, 5), (5, 4), lambda a, b: torch.einsum("ij,jk", a, b)),
    "linear": ((3, 5), (4, 5), F.linear),
    "convolution": ((2, 6, 9), (4, 3, 5), lambda a, b: F.conv1d(a, b, groups=2)),
}


class Product(nn.Module):
    """A product of two inputs."""

    def __init__(self, apply) -> None:
        super().__init__()
        self.apply_to = apply

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Multiply."""
        return self.apply_to(a, b)


@pytest.mark.parametrize("name", PRODUCTS)
def test_terms(name):
    """A product of ones counts them."""
    left, right, apply = PRODUCTS[name]
    model = Product(apply)
    uses = read(model, sites(model), (torch.ones(left), torch.ones(right))).flow.uses

    counted = apply(torch.ones(left), torch.ones(right)).max().item()
    assert terms(uses, uses.graph.nodes[-1]) == counted
