"""Bases: what may stand for the base model of a parametrisation.

Knows how to read a model, its plan, a table of shapes, and files of these.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias, cast

from torch import nn

from torch_initpolicy.deferred.skip import opened
from torch_initpolicy.deferred.undrawn import pending_of
from torch_initpolicy.errors import PolicyError, listing
from torch_initpolicy.locks import BORROWING
from torch_initpolicy.policy import codec
from torch_initpolicy.policy.family import Family, Member, member_of
from torch_initpolicy.policy.recipes import Recipe
from torch_initpolicy.policy.rules import InitPolicy
from torch_initpolicy.policy.serialize import Opaque, current, steps_of
from torch_initpolicy.sites import Site, sites
from torch_initpolicy.steps import Step
from torch_initpolicy.tensors.initializers import AsConstructed, Initializer
from torch_initpolicy.trace.facts import Facts
from torch_initpolicy.trace.read import read

Base: TypeAlias = nn.Module | Iterable[Step] | Mapping[str, Sequence[int]] | str | Path | Family
"""What may stand for a base model: the model, its plan, the shapes of its parameters by name, or a
JSON file of a plan, a receipt or such shapes."""


def base_family(base: Base, policy: InitPolicy) -> Family:
    """Return what a parametrisation needs to know of a base model that a policy fills.

    Raises:
        PolicyError: This is no base model.
    """
    if isinstance(base, Family):
        return base
    if isinstance(base, nn.Module):
        return _of_model(base, policy)
    if isinstance(base, (str, Path)):
        return _of_file(Path(base))
    if isinstance(base, Mapping):
        return _of_shapes(base, "base")
    steps = tuple(base) if isinstance(base, Iterable) else ()
    if not steps or not all(isinstance(step, Step) for step in steps):
        raise PolicyError(
            f"base is a model, its plan, shapes by name, or the path of a JSON file of these, "
            f"got {base!r}"
        )
    return _of_steps(steps)


def _of_steps(steps: Sequence[Step]) -> Family:
    """Take what steps say; of a function of the user's own a file has the name alone."""
    members = (
        member_of(step.name, step.shape, step.facts, drawn)
        for step in steps
        for drawn in (None if isinstance(step.initializer, Opaque) else step.initializer,)
    )
    return Family(tuple(members), steps[0].facts.residual_branches if steps else 0)


def _of_model(model: nn.Module, policy: InitPolicy) -> Family:
    with BORROWING, opened(model):
        found = sites(model)
        facts = read(model, found).facts
    members = (
        member_of(site.name, site.shape, known, _drawn(policy, site, known))
        for site in found
        for known in (facts[site.name],)
    )
    branches = next((known.residual_branches for known in facts.values()), None)
    return Family(tuple(members), branches)


def _drawn(policy: InitPolicy, site: Site, facts: Facts) -> Initializer | None:
    """Return what a rule that asks the site itself fills it with; None for other rules."""
    rule = policy.first(site, facts)
    if rule is not None and isinstance(rule.initializer, Recipe):
        return rule.initializer.for_site(site, facts)
    pending = pending_of(site.parameters[0])
    drawn = rule is not None and rule.initializer == AsConstructed() and pending is not None
    return pending.initializer if drawn and pending is not None else None


def _of_shapes(shapes: Mapping[str, object], where: str) -> Family:
    cases = [f"{name!r}: {shape!r}" for name, shape in shapes.items() if not _is_shape(shape)]
    if cases or not shapes:
        raise PolicyError(f"{where}: shapes by name are wanted, got\n{listing(cases or ['none'])}")
    given = cast("Mapping[str, Sequence[int]]", shapes)
    return Family(tuple(Member(name, tuple(shape)) for name, shape in given.items()))


def _is_shape(shape: object) -> bool:
    return (
        isinstance(shape, Sequence)
        and not isinstance(shape, str)
        and all(isinstance(size, int) and size >= 0 for size in shape)
    )


def _of_file(path: Path) -> Family:
    """Read a JSON file: a receipt holds a plan, a plan holds steps, else there are shapes."""
    try:
        data = codec.read_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PolicyError(f"base {path} cannot be read: {error}") from error
    held = data.get("plan", data) if isinstance(data, dict) else data
    if not isinstance(held, dict):
        raise PolicyError(f"base {path} holds neither a plan nor shapes by name")
    if "steps" not in held:
        return _of_shapes(held, str(path))
    return _of_steps(steps_of(current(held, "plan"), str(path)))
