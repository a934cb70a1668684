"""Why weights that a forward pass read were not scaled, from what it did with them."""

from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet

from torch_initpolicy.sites import Site
from torch_initpolicy.trace.consumers import Use, Uses


def unscaled(
    flow: Uses | None, sites: Mapping[str, Site], done: AbstractSet[str]
) -> Iterator[tuple[str, str]]:
    """Say of every weight, by its type or in the data flow, why no operator was scaled by it."""
    found = [] if flow is None else flow.found
    uses = [use for use in found if not _shifts(use, sites)]
    weighers = set() if flow is None else flow.weighers
    partners = _partners(
        use for use in uses if use.node.index in weighers and len(sites[use.source.site].shape) > 1
    )
    for name, site in sites.items():
        if site.role in ("weight", "recurrent") or name in partners:
            ops = dict.fromkeys(use.node.op for use in uses if use.source.site == name)
            yield name, _why(ops, partners.get(name), done)


def _shifts(use: Use, sites: Mapping[str, Site]) -> bool:
    """Say whether a parameter is only added, by its place in an operator or by its type."""
    return use.slot.startswith("bias") or sites[use.source.site].role == "bias"


def _partners(uses: Iterable[Use]) -> dict[str, set[str]]:
    """Return, for each weight that a product applies, the weights that it applies with it."""
    products: dict[int, set[str]] = {}
    for use in uses:
        products.setdefault(use.node.index, set()).add(use.source.site)
    found: dict[str, set[str]] = {}
    for names in products.values():
        for name in names:
            found.setdefault(name, set()).update(names - {name})
    return found


def _why(ops: Iterable[str], partners: AbstractSet[str] | None, done: AbstractSet[str]) -> str:
    """Say why an operator was not scaled by a weight, from what reads it and what is beside it."""
    read = ", ".join(ops)
    if not read:
        return "no operator applied it in this forward pass"
    if partners is None:
        return f"no product applied it: it was read by {read}"
    if instead := done & partners:
        return f"its operator, {read}, is scaled by {', '.join(sorted(instead))}"
    beside = f" by {', '.join(sorted(partners))}" if partners else ""
    return f"its operator, {read}, was to be scaled{beside}, and is not"
