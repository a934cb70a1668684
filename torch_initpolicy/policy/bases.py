"""Bases: what may stand for the base model of a parametrisation.

Knows how to read a model, its plan, a table of shapes, and files of these.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TypeAlias, cast

from torch import nn

from torch_initpolicy.deferred.skip import opened
from torch_initpolicy.errors import PolicyError, listing
from torch_initpolicy.locks import BORROWING
from torch_initpolicy.policy import codec
from torch_initpolicy.policy.family import MARKS, Family, Member, part_of
from torch_initpolicy.policy.recipes import Recipe
from torch_initpolicy.policy.rules import CLASSES, InitPolicy
from torch_initpolicy.sites import Site, sites
from torch_initpolicy.steps import Step
from torch_initpolicy.tensors.axes import Axes
from torch_initpolicy.tensors.initializers import Initializer
from torch_initpolicy.trace.facts import Facts, ForwardMultiplier
from torch_initpolicy.trace.read import read

Base: TypeAlias = nn.Module | Iterable[Step] | Mapping[str, Sequence[int]] | str | Path | Family
"""What may stand for a base model: the model, its plan, the shapes of its parameters by name, or a
JSON file of a plan, a receipt or such shapes."""


def family(base: Base, policy: InitPolicy) -> Family:
    """Return what a parametrisation needs to know of a base model.

    Args:
        base: The model, its plan, the shapes of its parameters by name, or a JSON file of a plan,
            a receipt, or such shapes.
        policy: What fills the base model.

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
    return Family(
        tuple(_member(step.name, step.shape, step.facts, step.initializer) for step in steps),
        steps[0].facts.residual_branches,
    )


def _member(
    name: str, shape: tuple[int, ...], facts: Facts, drawn: Initializer | None = None
) -> Member:
    return Member(
        name=name,
        shape=shape,
        axes=facts.axes,
        part=part_of(facts),
        multipliers=tuple(known.multiplier for known in (facts, *facts.blocks)),
        dot_product=facts.dot_product,
        tied_head=facts.tied_head,
        drawn=drawn,
    )


def _of_model(model: nn.Module, policy: InitPolicy) -> Family:
    with BORROWING, opened(model):
        found = sites(model)
        facts = read(model, found).facts
    members = (
        _member(site.name, site.shape, facts[site.name], _drawn(policy, site, facts[site.name]))
        for site in found
    )
    branches = next((known.residual_branches for known in facts.values()), None)
    return Family(tuple(members), branches)


def _drawn(policy: InitPolicy, site: Site, facts: Facts) -> Initializer | None:
    """Return what a rule that asks the site itself fills it with; None for other rules."""
    rule = policy.first(site, facts)
    if rule is None or not isinstance(rule.initializer, Recipe):
        return None
    return rule.initializer.for_site(site, facts)


def _of_shapes(shapes: Mapping[str, object], where: str) -> Family:
    cases = [f"{name!r}: {shape!r}" for name, shape in shapes.items() if not _is_shape(shape)]
    if cases or not shapes:
        raise PolicyError(f"{where}: shapes by name are wanted, got\n{listing(cases or ['none'])}")
    return Family(
        tuple(Member(name, tuple(cast("Sequence[int]", shape))) for name, shape in shapes.items())
    )


def _is_shape(shape: object) -> bool:
    is_list = isinstance(shape, Sequence) and not isinstance(shape, str)
    return is_list and all(
        isinstance(size, int) and size >= 0 for size in cast("Sequence[object]", shape)
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
    steps = held.get("steps")
    if not isinstance(steps, list):
        return _of_shapes(held, str(path))
    members = tuple(_of_step(step, f"{path}: steps[{i}]") for i, step in enumerate(steps))
    return Family(members, _branches(steps))


def _branches(steps: Sequence[codec.Data]) -> int:
    """Read how many residual branches the model of a plan has; a file leaves out zero."""
    counts = (step.get("residual_branches") for step in steps if isinstance(step, dict))
    return next((count for count in counts if isinstance(count, int)), 0)


def _of_step(step: codec.Data, where: str) -> Member:
    """Read from a step of a plan what matters here, and nothing else of it."""
    if not isinstance(step, dict) or not isinstance(step.get("name"), str):
        raise PolicyError(f"{where}: a step is an object with a name, got {step!r}")
    shape = step.get("shape")
    if not _is_shape(shape):
        raise PolicyError(f"{where}: a step has a shape, got {shape!r}")
    words = (step.get(key) for key in ("role", "op", "meets", "fed_by"))
    marks = (mark if step.get(key) else "" for key, mark in MARKS.items())
    return Member(
        name=str(step["name"]),
        shape=tuple(cast("Sequence[int]", shape)),
        axes=codec.decode(step.get("axes"), _AXES, where),
        part=(*map(_word, words), *marks),
        multipliers=tuple(_constants(step, where)),
        dot_product=_number(step.get("dot_product")),
        tied_head=_number(step.get("tied_head")),
        drawn=_initializer(step.get("initializer"), where),
    )


_AXES: codec.Classes = MappingProxyType({"Axes": Axes, "ForwardMultiplier": ForwardMultiplier})


def _constants(step: Mapping[str, codec.Data], where: str) -> Iterator[ForwardMultiplier]:
    """Read the constants of a parameter and of its packed blocks; a file leaves out ones."""
    blocks = step.get("blocks")
    for known in (step, *(blocks if isinstance(blocks, list) else ())):
        held = known.get("multiplier") if isinstance(known, dict) else None
        yield ForwardMultiplier() if held is None else codec.decode(held, _AXES, where)


def _number(value: codec.Data) -> float | None:
    return float(value) if isinstance(value, (int, float)) else None


def _word(value: codec.Data) -> str:
    """Read a word; of an activation with parameters, its name."""
    held = value.get("name") if isinstance(value, dict) else value
    return held if isinstance(held, str) else ""


def _initializer(data: codec.Data, where: str) -> Initializer | None:
    """Read an initializer; a function of the user's is in no file."""
    if isinstance(data, dict) and data.get("class") in CLASSES:
        return cast("Initializer", codec.decode(data, CLASSES, where))
    return None
