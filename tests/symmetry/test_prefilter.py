"""The sieve lets no row pass that is zero or like another, and keeps few of those that are not."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from torch_initpolicy.symmetry import prefilter
from torch_initpolicy.symmetry.prefilter import WIDTH, sift
from torch_initpolicy.symmetry.units import NEAR


def in_company(rows: Tensor) -> set[int]:
    """Number the rows that are zero or, up to sign and noise, another: by comparing all pairs."""
    wide = rows.double()
    near = NEAR * wide.abs().amax(1)
    reach = torch.maximum(near[:, None], near)
    apart = [(wide[:, None] - sign * wide).abs().amax(2) for sign in (1, -1)]
    equal_rows = (torch.minimum(*apart) <= reach).fill_diagonal_(fill_value=False)
    return set((equal_rows.any(1) | ~wide.any(1)).nonzero().flatten().tolist())


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Draw standard normal numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class TestWhatIsLeft:
    @given(
        st.lists(st.tuples(st.integers(1, 30), st.integers(1, 6)), min_size=1, max_size=4),
        st.integers(0, 2**16),
        st.integers(1, 3),
        st.sampled_from([0.0, 1e-8, 1e-6]),
    )
    @settings(max_examples=100, deadline=None)
    def test_all_that_is_alike(self, shapes, seed, high, noise):
        """Of rows of few different numbers, with a little noise, all equal and zero ones are left.

        That of each set alone: whether another set holds the same row does not matter.
        """
        generator = torch.Generator().manual_seed(seed)
        sets = [
            torch.randint(-high, high + 1, shape, generator=generator).double() for shape in shapes
        ]
        for rows in sets:
            rows.mul_(1 + noise * (torch.rand(rows.shape, generator=generator) - 0.5))

        for rows, left in zip(sets, sift(sets), strict=True):
            assert in_company(rows[:, :WIDTH]) == set(left.tolist())

    def test_twins_with_others_between_them(self):
        """A pair is left though the sums of many other rows lie between its own."""
        base = normal(1, WIDTH).double()
        (_, *across) = torch.linalg.svd(prefilter._weights(WIDTH)[:1])[2]
        others = base + normal(50, WIDTH - 1, seed=1).double() @ torch.stack(across)
        rows = torch.cat((base, others, base * (1 + 5e-7)))

        assert sift([rows])[0].tolist() == [0, 51]

    @pytest.mark.parametrize("number", [torch.nan, torch.inf])
    def test_sets_with_what_is_no_number(self, number):
        """Nothing is said of a set that holds what is no number; of the others all is."""
        rows = normal(6, 5)
        broken = rows.clone()
        broken[2, 1] = number

        found = sift([rows, broken, rows])

        assert [left.tolist() for left in found] == [[], [0, 1, 2, 3, 4, 5], []]

    def test_sets_of_more_rows_than_are_looked_at_together(self, monkeypatch):
        """However sets fall into batches, each keeps its own equal rows under their numbers."""
        monkeypatch.setattr(prefilter, "_BATCH", 64)
        sets = [normal(size, 5, seed=size) for size in (40, 30, 100, 1, 60)]
        for rows in sets:
            rows[-1] = -rows[0]

        found = sift(sets)

        assert [left.tolist() for left in found] == [[0, 39], [0, 29], [0, 99], [], [0, 59]]


class TestWhatIsNot:
    @pytest.mark.parametrize(
        "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn]
    )
    def test_random_rows(self, dtype):
        """A thousand random rows are told apart in any dtype, many as its ties may be."""
        rows = (0.02 * normal(1000, 8)).to(dtype)

        assert len(sift([rows])[0]) == len(in_company(rows[:, :WIDTH].float()))
        assert len(sift([rows])[0]) < 100

    def test_a_very_large_set(self):
        """Of half a million random rows none is left; among so many, some are near by any sum."""
        assert len(sift([normal(500_000, WIDTH)])[0]) == 0

    def test_a_hundred_thousandth_apart(self):
        """Rows that differ by more than noise in one number are told apart."""
        rows = normal(50, WIDTH).double()
        rows[30] = rows[4]
        rows[30, 2] += 1e-4

        assert sift([rows])[0].tolist() == []


def test_more_numbers():
    """Where a few numbers do not tell rows apart, more do."""
    rows = normal(300, 64).sign()

    assert len(sift([rows])[0]) == 300
    assert sift([rows], 64)[0].tolist() == []


def test_nothing_to_sift():
    """No sets, no answers."""
    assert sift([]) == []


def test_cores():
    """As many cores as before are at work afterwards, also where a set could not be had."""
    cores = torch.get_num_threads()
    sets = (normal(3, 4) if number < 2 else 1 / 0 for number in range(3))

    with pytest.raises(ZeroDivisionError):
        sift(sets)

    assert torch.get_num_threads() == cores
