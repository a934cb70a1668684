"""A model of the zoo with its sites and what its data flow says."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

from torch import nn

from torch_initpolicy import Plan, presets, skip_init
from torch_initpolicy.deferred.skip import opened
from torch_initpolicy.integrations.models import build
from torch_initpolicy.planning.decide import make_plan
from torch_initpolicy.sites import Site, sites
from torch_initpolicy.trace.read import Reading, read


@contextmanager
def silenced() -> Iterator[None]:
    """Leave out what the libraries themselves say about their defaults."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@dataclass(frozen=True)
class Subject:
    """A model that was read once; plans follow from it without reading it again."""

    source: str
    model: nn.Module
    reading: Reading

    @classmethod
    def of(cls, source: str) -> "Subject":
        """Build a model, without drawing weights that nobody looks at, and read it."""
        with silenced(), skip_init():
            model = build(source)
        with opened(model):
            return cls(source, model, read(model, sites(model)))

    @cached_property
    def sites(self) -> tuple[Site, ...]:
        """The sites of the model."""
        return sites(self.model)

    def plan(self, policy: str) -> Plan:
        """Plan by a preset."""
        with opened(self.model):
            return make_plan(self.model, self.reading.facts, presets.policy(policy))
