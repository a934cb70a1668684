"""The directions from which LSUV starts: orthogonal weights, as in the paper."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from torch_initpolicy.planning.decide import make_plan
from torch_initpolicy.planning.selection import Selection
from torch_initpolicy.policy.match import anything, predicate, role
from torch_initpolicy.policy.rules import InitPolicy, Rule
from torch_initpolicy.sites import Site
from torch_initpolicy.tensors.initializers import Keep, Orthogonal
from torch_initpolicy.trace.read import read
from torch_initpolicy.writing.apply import apply_steps
from torch_initpolicy.writing.drawing import Drawing

_START = InitPolicy([
    Rule(
        role("weight", "recurrent") & predicate(lambda site, _: site.storage == "plain"),
        Orthogonal(),
        optional=True,
    ),
    Rule(anything(), Keep(), optional=True),
])  # fmt: skip


def orthogonalise(
    model: nn.Module, found: Sequence[Site], inputs: Any, selection: Selection, seed: int | None
) -> None:
    """Write orthogonal weights; parametrised ones keep their direction."""
    facts = read(model, found, inputs).facts
    plan = make_plan(model, facts, _START, selection)
    apply_steps(plan.pairs(), Drawing(seed))
