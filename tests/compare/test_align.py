"""Tensors of two models are paired by name, order, shape, transposition and packing."""

from torch_initpolicy.compare.align import Entry, Pair, pairs


def entry(name, *shape, role="weight"):
    """Make an entry of one name."""
    return Entry((name,), role, shape)


def test_equal_names_win():
    """A name that both models have pairs, wherever it stands."""
    mine = [entry("a", 4, 4), entry("b", 4, 4)]

    assert pairs(mine, mine[::-1]) == [Pair((0,), (1,)), Pair((1,), (0,))]


def test_a_name_of_another_shape_does_not_pair():
    """The same name with another shape is another tensor."""
    assert pairs([entry("a", 4, 4)], [entry("a", 4, 5)]) == []


def test_order_and_shape_where_names_differ():
    """Roles and shapes in order of registration pair what no name does; extras stay alone."""
    mine = [entry("x", 8, 4), entry("y", 8, role="bias"), entry("z", 2, 8)]
    reference = [
        entry("u", 8, 4),
        entry("extra", 3, 3),
        entry("v", 8, role="bias"),
        entry("w", 2, 8),
    ]

    assert pairs(mine, reference) == [Pair((0,), (0,)), Pair((1,), (2,)), Pair((2,), (3,))]


def test_another_order():
    """What is registered in another order pairs by role and shape."""
    mine = [entry("x", 8, 4), entry("y", 3, 4)]
    reference = [entry("v", 3, 4), entry("u", 8, 4)]

    assert pairs(mine, reference) == [Pair((0,), (1,)), Pair((1,), (0,))]


def test_transposed():
    """A weight stored `(in, out)` pairs with one stored `(out, in)`."""
    assert pairs([entry("a", 4, 8)], [entry("b", 8, 4)]) == [Pair((0,), (0,), transposed=True)]


def test_packed_on_either_side():
    """Neighbours pair with the one tensor that packs them, and the other way round."""
    parts = [entry(name, 8, 8) for name in "qkv"]
    whole = [entry("qkv", 24, 8)]

    assert pairs(whole, parts) == [Pair((0,), (0, 1, 2))]
    assert pairs(parts, whole) == [Pair((0, 1, 2), (0,))]


def test_tied_in_one_model():
    """A tensor of two names pairs with both tensors of the other model."""
    tied = [Entry(("emb", "head"), "embedding", (9, 4))]
    apart = [entry("emb", 9, 4), entry("head", 9, 4)]

    assert pairs(tied, apart) == [Pair((0,), (0,)), Pair((0,), (1,))]
