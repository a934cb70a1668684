"""Which elements are one place in memory, against what writing to one of them changes."""

import itertools

import torch
from hypothesis import given
from hypothesis import strategies as st

from torch_initpolicy.tensors.aliases import repeats, sharing, storage_of

SIZE = 48
"""Elements of the storage that views are made of."""


@st.composite
def views(draw):
    """Shape, strides and offset of a view of the storage, empty and overlapping ones too."""
    shape, steps, reach = [], [], 0
    for _ in range(draw(st.integers(0, 3))):
        size = draw(st.integers(0, 4))
        step = draw(st.integers(0, (SIZE - 1 - reach) // max(size - 1, 1)))
        shape.append(size)
        steps.append(step)
        reach += step * max(size - 1, 0)
    return tuple(shape), tuple(steps), draw(st.integers(0, SIZE - 1 - reach))


def _places(tensor):
    """The address of each element, by indexing one at a time."""
    indices = itertools.product(*map(range, tensor.shape))
    return [tensor[index].data_ptr() for index in indices]


class TestRepeats:
    """A tensor repeats itself if two of its elements are one place."""

    @given(views())
    def test_exact(self, view):
        """Just where addresses of elements are fewer than elements, for any strides."""
        tensor = torch.zeros(SIZE).as_strided(*view)
        places = _places(tensor)

        assert repeats(tensor) == (len(set(places)) < len(places))

    def test_crossing_strides(self):
        """Strides that cross but never meet, as 2 and 3 for six elements, repeat nothing."""
        crossing = torch.zeros(SIZE).as_strided((2, 3), (3, 2))

        assert len(set(_places(crossing))) == 6
        assert not repeats(crossing)


class TestSharing:
    """Views share what has one address."""

    @given(st.lists(views(), max_size=4))
    def test_exact(self, cuts):
        """Just the pairs that have an address in common are named, in order."""
        storage = torch.zeros(SIZE)
        tensors = [storage.as_strided(*cut) for cut in cuts]
        places = [set(_places(tensor)) for tensor in tensors]
        pairs = itertools.combinations(range(len(tensors)), 2)

        assert list(sharing(tensors)) == [(a, b) for a, b in pairs if places[a] & places[b]]

    def test_other_dtype(self):
        """Elements of other sizes meet by their bytes: a half with the number it is half of."""
        halves = torch.zeros(8, dtype=torch.bfloat16)

        assert list(sharing([halves.view(torch.float32), halves[::2], halves[1::2]])) == [
            (0, 1),
            (0, 2),
        ]

    def test_slices_of_one_buffer(self):
        """A flat buffer cut into parameters shares nothing, however many there are."""
        parts = torch.zeros(2000).split(1)

        assert not list(sharing(parts))

    def test_storages_apart(self):
        """Tensors of their own never meet."""
        tensor = torch.zeros(4)

        assert not list(sharing([tensor, tensor.clone()]))


def test_storage_of():
    """Views have the storage of what they are views of, copies another."""
    tensor = torch.zeros(2, 3)

    assert storage_of(tensor) == storage_of(tensor.t())
    assert storage_of(tensor) != storage_of(tensor.clone())
