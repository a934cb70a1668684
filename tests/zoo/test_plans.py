"""Every model of timm and torchvision is read, understood and planned completely."""

import math
from fnmatch import fnmatchcase

import pytest

from tests.zoo.catalogue import NOT_ON_META, every_model, runs_on_meta
from tests.zoo.counting import connections
from tests.zoo.labels import decayed, labelled
from torch_initpolicy.tensors.axes import fans

pytestmark = pytest.mark.zoo

PACKED = {
    ("*", "qkv"): {3},
    ("*", "kv"): {2},
    ("*", "qk"): {2},
    ("timm:gcvit*", "qkv"): {2, 3},  # where its query is global, only k and v are packed
}
"""Blocks in a weight of such a name, as the libraries use these names; later lines speak last."""


def test_evidence(subject):
    """The data flow is read from the forward pass: on meta, or for real where that cannot be."""
    expected = "traced" if runs_on_meta(subject.source) else "ran"

    assert subject.reading.evidence == expected


@pytest.mark.parametrize("glob", NOT_ON_META)
def test_exceptions_are_needed(glob):
    """Each exception still means a model; that it still fails is held by `test_evidence`."""
    assert any(not runs_on_meta(source) for source in every_model())


def test_nothing_is_unknown(subject):
    """No operator and no parameter without a known role, and no parameter that is never read."""
    facts = subject.reading.facts

    assert dict(subject.reading.unknown_operators) == {}
    assert [name for name, found in facts.items() if found.role == "unknown"] == []
    assert [name for name, found in facts.items() if not found.used] == []


@pytest.mark.parametrize("policy", ["auto", "he", "xavier", "orthogonal"])
def test_complete(subject, policy):
    """Every parameter has exactly one step, of its own shape, with a reason."""
    plan = subject.plan(policy)

    named = dict(subject.model.named_parameters())
    assert {step.name: step.shape for step in plan} == {n: tuple(p.shape) for n, p in named.items()}
    assert len(plan) == len(named)
    assert all(step.reason and step.rule for step in plan)
    assert all(_is_finite(step.std) for step in plan)


def _is_finite(std):
    numbers = std if isinstance(std, tuple) else (std,)
    return all(number is None or (math.isfinite(number) and number >= 0) for number in numbers)


def test_connections(subject):
    """Axes agree with connections counted from the layers' own attributes.

    Of a packed weight the blocks together have the connections of the whole; where they are groups
    or gates, each block has those of the layer.
    """
    counted = [(site, connections(site.owner, site.attribute)) for site in subject.sites]
    facts = subject.reading.facts
    wrong = [
        (site.name, found, expected)
        for site, expected in counted
        if expected is not None
        and (found := _found(site, facts[site.name].axes)) != pytest.approx(expected)
    ]

    assert wrong == []
    assert any(expected is not None for _, expected in counted)


def _found(site, axes):
    blocks = [fans(site.shape, axes, block=block) for block in range(len(axes.blocks))] or [
        fans(site.shape, axes)
    ]
    inputs = {block.fan_in for block in blocks}
    is_alike = axes.groups > 1 or site.attribute.startswith("weight_")
    outputs = {b.fan_out for b in blocks} if is_alike else {sum(b.fan_out for b in blocks)}
    return (*inputs, *outputs)


def test_packs(subject):
    """A weight called `qkv` is packed of three, one called `kv` or `qk` of two."""
    expected = {
        name: blocks for (glob, name), blocks in PACKED.items() if fnmatchcase(subject.source, glob)
    }
    found = {
        step.name: (len(step.axes.blocks), expected[step.name.split(".")[-2]])
        for step in subject.plan("auto")
        if step.role == "weight" and step.name.split(".")[-2:-1] in [[name] for name in expected]
    }

    assert {name: blocks for name, (blocks, known) in found.items() if blocks not in known} == {}


def test_weight_decay(subject):
    """What the groups decay is what the sources' own layers call a weight, and nothing else."""
    plan = subject.plan("auto")
    expected = labelled(plan)

    assert decayed(plan, expected) == expected
