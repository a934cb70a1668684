"""Copies that stand in for a model's parameters, are scaled in their place, and written back."""

from collections.abc import Iterable, Mapping
from functools import partial

from torch import Tensor

from torch_initpolicy.errors import ApplyError
from torch_initpolicy.sites import Site
from torch_initpolicy.trace.stand_ins import copied
from torch_initpolicy.writing.commit import commit
from torch_initpolicy.writing.journal import Journal
from torch_initpolicy.writing.parametrized import Behind, parameters_behind, reading, store
from torch_initpolicy.writing.ranks import Groups
from torch_initpolicy.writing.shards import full, multiply_, pieces


class Copies:
    """A copy of each parameter, and what has become of it.

    Sites that were `changed` are scaled or set; a parametrised one has what its parametrisation
    then holds.
    """

    def __init__(self, found: Iterable[Site]) -> None:
        self.sites = {site.name: site for site in found}
        self.changed: dict[str, Behind | None] = {}
        self._copies: dict[int, Tensor] = {}

    def of(self, parameter: Tensor) -> Tensor:
        """Return the copy of a parameter."""
        if id(parameter) not in self._copies:
            # What is replicated is its own whole: to scale it would scale the model.
            self._copies[id(parameter)] = copied(full(parameter)).detach()
        return self._copies[id(parameter)]

    def plain(self, site: Site) -> tuple[Tensor, ...]:
        """Return the copies that are multiplied when a site grows: none if it is parametrised."""
        return tuple(map(self.of, site.parameters)) if site.storage == "plain" else ()

    def multiply(self, names: Iterable[str], parts: Iterable[Tensor], scale: float) -> str | None:
        """Multiply sites, those that are plain by `parts` of their copies, or say why not."""
        sites = [self.sites[name] for name in names]
        for site in (site for site in sites if site.storage != "plain"):
            found = self._grown(site, scale)
            if found is None:
                return f"its parametrisation ({site.storage}) does not let it grow"
            self.changed[site.name] = found
        for part in parts:
            part.data.mul_(scale)  # a forward that takes gradients itself may have saved it
        self.changed.update({site.name: None for site in sites if site.storage == "plain"})
        return None

    def _grown(self, site: Site, scale: float) -> Behind | None:
        """Set the copies behind a parametrised site so that it reads as a multiple of now."""
        before = self.changed.get(site.name)
        now = reading(site) if before is None else before.reading
        try:
            found = parameters_behind(site, now * scale)
        except ApplyError:
            return None
        for parameter, value in zip(site.parameters, found.values, strict=True):
            self.of(parameter).copy_(value)
        return found

    def restore(self, names: Iterable[str], parts: Iterable[Tensor], factor: float) -> None:
        """Undo what multiplied sites by a factor in all."""
        for part in parts:
            part.data.mul_(1 / factor)
        for name in names:
            self.changed.pop(name, None)
            site = self.sites[name]
            for parameter in site.parameters if site.storage != "plain" else ():
                self.of(parameter).copy_(full(parameter))

    def write(self, factors: Mapping[str, tuple[float, ...]], groups: Groups) -> None:
        """Multiply the weights of the model, each once, and set its biases; all or nothing."""
        writes = [
            partial(_write, self.of(site.parameters[0]), site, factors.get(site.name))
            if changed is None
            else partial(
                store, site, parameters_behind(site, reading(site) * factors[site.name][0])
            )
            for site, changed in ((self.sites[name], found) for name, found in self.changed.items())
        ]

        def write_all(journal: Journal) -> None:
            for write in writes:
                write(journal)

        commit([write_all], groups)


def _write(copy: Tensor, site: Site, factors: tuple[float, ...] | None, journal: Journal) -> None:
    """Multiply the pieces of a weight, or copy what stands in for a bias."""
    held = pieces(site.parameters[0])
    for piece in held:
        journal.save(piece.tensor)
        if factors is None:
            piece.tensor.copy_(piece.part_of(copy))
    if factors is not None:
        multiply_(held, factors)
