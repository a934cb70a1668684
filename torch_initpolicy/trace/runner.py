"""Runs one model's forward pass with one call after another, and records it or what it raised."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from torch_initpolicy.sites import Site
from torch_initpolicy.trace.graph import Graph
from torch_initpolicy.trace.reach import Reach
from torch_initpolicy.trace.record import capture, with_grad_if_asked
from torch_initpolicy.trace.recorder import Budget
from torch_initpolicy.trace.stand_ins import (
    batch_size,
    drawn_for,
    is_image,
    lazily_copied,
    random_call,
    vocabulary_size,
)
from torch_initpolicy.trace.trees import Call, tensors_in

_PER_CALL = 25
"""What a call costs, however soon it raises, in operators."""

_IMAGE_EDGES = (64, 128, 224)
"""Image sizes to run for real with, in pixels."""

_DRAWS, _TIMES = 8, 8
"""Draws of real inputs, and how many times larger the later are: a router sends each elsewhere."""

_LARGEST_MODEL = 2**26
"""Elements of all parameters up to which a model without memory may run for real."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """A call with which a forward pass ran.

    Attributes:
        graphs: What was recorded: with this call first, then in other modes and with other calls.
        on_meta: Whether it ran on meta tensors, or for real.
    """

    call: Call
    graphs: tuple[Graph, ...] = field(repr=False)
    on_meta: bool

    @property
    def seen(self) -> set[str]:
        """Names of the parameters that some operator has read."""
        return {
            value.parameter
            for graph in self.graphs
            for value in graph.values
            if value.parameter is not None and graph.consumers[value.index]
        }

    def and_then(self, later: "Recorded") -> "Recorded":
        """Return this with what another recording has seen."""
        return Recorded(self.call, (*self.graphs, *later.graphs), self.on_meta)


@dataclass(frozen=True, slots=True)
class Refused:
    """A call with which a forward pass raised.

    Attributes:
        ran: How much of its budget the forward pass took until then.
    """

    call: Call
    error: Exception
    ran: float


class Runner:
    """Runs one model, which nothing else changes meanwhile.

    Attributes:
        model: The model, without wrappers.
        sites: Its parameters, or those that are looked for.
        wanted: Their names.
        budget: How much the runs may still take.
    """

    def __init__(self, model: nn.Module, sites: Sequence[Site], budget: Budget) -> None:
        self.model = model
        self.sites = sites
        self.wanted = {site.name for site in sites}
        self.budget = budget
        self._names = {id(p): site.name for site in sites for p in site.parameters}
        self._reach = Reach(model)
        self._drawn: Mapping[int, Tensor] = {}

    @property
    def fits_in_memory(self) -> bool:
        """Whether the model may run for real: it is real already, or small."""
        on_meta = (math.prod(site.shape) for site in self.sites if site.device.type == "meta")
        return sum(on_meta) <= _LARGEST_MODEL

    def on_meta(self, call: Call) -> Recorded | Refused:
        """Record in evaluation mode; what it leaves out, look for in training mode."""
        recorded = self._run(call, on_meta=True)
        if isinstance(recorded, Refused) or self.wanted <= recorded.seen:
            return recorded
        training = self._run(call, on_meta=True, training=True)
        return recorded if isinstance(training, Refused) else recorded.and_then(training)

    def for_real(self, call: Call) -> Recorded | Refused:
        """Record on small real inputs, on others too where some parameters are seen by few."""
        rows, batch = vocabulary_size(self.model), _TIMES * batch_size(call)
        for edge in _IMAGE_EDGES:
            recorded = self.really(random_call(call, rows, edge=edge))
            if isinstance(recorded, Recorded):
                break
        for seed in range(1, _DRAWS):
            if isinstance(recorded, Refused) or self.wanted <= recorded.seen:
                break
            again = self.really(random_call(call, rows, edge=edge, seed=seed, batch=batch))
            recorded = recorded if isinstance(again, Refused) else recorded.and_then(again)
        return recorded

    def really(self, call: Call) -> Recorded | Refused:
        """Record with the numbers of a call, and with parameters that are drawn."""
        self._drawn = self._drawn or drawn_for(self.sites)
        drawn = {key: lazily_copied(tensor) for key, tensor in self._drawn.items()}
        return self._run(call, on_meta=False, drawn=drawn)

    def _run(
        self,
        call: Call,
        *,
        on_meta: bool,
        training: bool = False,
        drawn: Mapping[int, Tensor] | None = None,
    ) -> Recorded | Refused:
        self.budget.left -= _PER_CALL
        before = self.budget.left
        try:
            graph = with_grad_if_asked(
                lambda with_grad: capture(
                    self.model,
                    call,
                    names=self._names,
                    on_meta=on_meta,
                    drawn=drawn,
                    training=training,
                    with_grad=with_grad,
                    budget=self.budget,
                    reach=self._reach,
                )
            )
        except Exception as error:  # noqa: BLE001 - a forward may raise anything
            return Refused(call, error, before - self.budget.left)
        return Recorded(call, (graph,), on_meta)


def is_small(call: Call) -> bool:
    """Say whether a call is small enough to be run for real; images are cropped."""
    tensors = tensors_in((call.args, dict(call.kwargs)))
    return all(t.numel() <= _LARGEST_INPUT or is_image(t.shape) for t in tensors)


_LARGEST_INPUT = 2**22
"""Elements of an input up to which a forward pass runs for real."""
