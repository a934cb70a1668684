"""What is still looked for is counted, in each module and in all around it."""

import torch
from torch import nn

from torch_initpolicy.materialize.search import Lost, Search


def test_what_is_left():
    """A tensor counts in every module around it until it is found."""
    model = nn.Sequential(nn.Sequential(nn.Linear(2, 2)), nn.Linear(2, 2))
    inner = Lost("0.0", model[0][0], "weight", torch.Size((2, 2)))
    search = Search(model, 0, [inner, Lost("1", model[1], "bias", torch.Size((2,)))])

    assert [search.within[name] for name in ("", "0", "0.0", "1")] == [2, 1, 1, 1]
    search.remove(inner)
    assert [search.within[name] for name in ("", "0", "0.0", "1")] == [1, 0, 0, 1]
    assert search.owners() == [("1", model[1])]


def test_aside_draws_from_streams_of_its_own():
    """Code that is run again draws what its seed and its module's name decide, and nothing else."""
    state = torch.get_rng_state()
    drawn = []
    for seed, name in ((0, "a"), (0, "a"), (0, "b"), (1, "a")):
        with Search(nn.Module(), seed, []).aside(name):
            drawn.append(torch.randn(2))

    assert torch.equal(drawn[0], drawn[1])
    assert len({tuple(each.tolist()) for each in drawn}) == 3
    assert torch.equal(state, torch.get_rng_state())
