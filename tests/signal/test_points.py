"""Points: what they are called, and which of them lead to a head."""

import dataclasses

from torch_initpolicy.signal.points import Point, arriving, body_of


def point(second: float, site: str | None = "w", **more: object) -> Point:
    """Make a point of which little matters; its output has six elements."""
    made = Point(0, "net", "linear", site, False, (2, 3), 0.0, 1.0, second, 0.0, source="w")
    return dataclasses.replace(made, **more)


def test_names():
    """A weight has its own name, another operator its module, its own and which call it is."""
    assert point(1.0).name == "w"
    assert point(1.0, None, op="relu", call=3).name == "net:relu#3"
    assert point(1.0, None, op="relu", module="").name == "relu"


def test_the_length_of_a_gradient_counts_elements():
    """A mean square of 2 over six elements has a squared length of 12."""
    assert point(1.0, gradient=2.0).length == 12.0
    assert point(1.0).length is None


def test_a_body_has_no_heads():
    """What comes before the first weight, or to no other one, is left out; two weights are few."""
    before, head = point(1.0, None, source=None), point(9.0, leads_on=False)
    body = [point(1.0), point(2.0), point(3.0, None)]
    assert body_of([before, *body, head]) == body
    assert body_of([before, body[0], head]) == ()


def test_what_arrives_is_the_sum_and_not_a_gate():
    """A branch or a gate behind the last weight may be smaller or larger than the signal."""
    branch, total = point(0.1), point(2.0, None, op="add")
    assert arriving([point(1.0), branch, total]) == 2.0
    gate, product = point(0.3, None, activates=True), point(0.01, None, op="mul")
    assert arriving([point(1.0), point(0.02), gate, product]) == 0.02
