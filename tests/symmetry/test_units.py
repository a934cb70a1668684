"""Units lie where the layer's own forward pass says, and equal ones are found among many."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from torch_initpolicy.symmetry.units import View, equal_groups, equal_rows, row_fingerprints, views
from torch_initpolicy.tensors.axes import Axes
from torch_initpolicy.tensors.layers import axes_of

LAYERS = {
    "linear": (nn.Linear(5, 8), (5,)),
    "conv": (nn.Conv2d(6, 8, 3), (6, 5, 5)),
    "grouped": (nn.Conv2d(6, 8, 3, groups=2), (6, 5, 5)),
    "depthwise": (nn.Conv2d(6, 6, 3, groups=6), (6, 5, 5)),
    "transposed": (nn.ConvTranspose2d(6, 8, 3, stride=2), (6, 5, 5)),
    "transposed, grouped": (nn.ConvTranspose2d(6, 8, 3, groups=2), (6, 5, 5)),
}


def _view(layer: nn.Module, along: str) -> View:
    return next(v for v in views(layer.weight.shape, axes_of(layer, "weight")) if v.along == along)


def _reached(gradient: Tensor, view: View) -> set[int]:
    """Number the units of which some element has a gradient."""
    return set(view.rows(gradient).any(1).nonzero().flatten().tolist())


class TestViews:
    @pytest.mark.parametrize("name", LAYERS)
    def test_outputs_are_what_an_output_depends_on(self, name):
        """The gradient of output channel c touches the elements of unit c, and no others."""
        layer, shape = LAYERS[name]
        view = _view(layer, "outputs")
        outputs = layer(torch.randn(1, *shape))
        for channel in range(outputs.shape[1]):
            (gradient,) = torch.autograd.grad(
                outputs[:, channel].sum(), layer.weight, retain_graph=True
            )
            assert _reached(gradient, view) == {channel}

    @pytest.mark.parametrize("name", LAYERS)
    def test_inputs_are_what_an_input_reaches(self, name):
        """With input channel c alone not zero, the elements of unit c get a gradient, no others."""
        layer, shape = LAYERS[name]
        view = _view(layer, "inputs")
        for channel in range(shape[0]):
            x = torch.zeros(1, *shape)
            x[:, channel] = torch.randn(1, *shape[1:])
            (gradient,) = torch.autograd.grad(layer(x).sum(), layer.weight)
            assert _reached(gradient, view) == {channel}

    def test_vectors_have_entries(self):
        """However many axes of size one a vector has, its units are its numbers."""
        for shape in ((5,), (1, 5, 1), ()):
            (view,) = views(shape, None)
            assert (view.along, view.features) == ("entries", 1)

    def test_a_matrix_of_one_row_holds_inputs(self):
        """A head with one output is a vector, and its entries are input units."""
        assert [view.along for view in views((1, 6), Axes((1,), (0,)))] == ["inputs"]
        assert [view.along for view in views((6, 1), Axes((1,), (0,)))] == ["outputs"]

    def test_lookup_tables_have_rows_and_columns(self):
        """Each row of a table is a copy; its columns are what an embedding is made of."""
        found = [(v.along, v.count) for v in views((9, 4), axes_of(nn.Embedding(9, 4), "weight"))]

        assert found == [("copies", 9), ("outputs", 4)]

    def test_stacked_experts_have_units_of_their_own(self):
        """Unit u of expert e is counted apart from unit u of another."""
        found = {v.along: v.count for v in views((3, 5, 6), Axes((1,), (2,), copies=(0,)))}

        assert found == {"copies": 3, "outputs": 18, "inputs": 15}

    def test_unknown_axes_may_all_number_units(self):
        """Without facts each axis is looked along, and a stack of matrices also one by one."""
        found = [view.along for view in views((3, 1, 5, 6), None)]

        assert found == ["axis 0", "axis 2", "axis 3", "axes 0, 2", "axes 0, 3"]

    @pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
    @pytest.mark.parametrize("axes", [(0,), (2,), (0, 2)])
    def test_put_undoes_rows(self, axes, dtype):
        """Rows that are written back give the same tensor, and only the chosen ones change."""
        view = View("outputs", (4, 3, 2, 5), axes)
        tensor = torch.randn(12, 2, 5, dtype=dtype)
        units = torch.tensor([0, view.count - 1])

        same = view.put(tensor, units, view.rows(tensor, units))
        changed = view.put(tensor, units, torch.zeros_like(view.rows(tensor, units)))

        assert torch.equal(tensor, same)
        assert torch.equal(view.rows(tensor, units), view.rows(tensor)[units])
        others = [unit for unit in range(view.count) if unit not in units]
        assert not view.rows(changed)[units].any()
        assert torch.equal(view.rows(changed)[others], view.rows(tensor)[others])

    @pytest.mark.parametrize("most", [1, 2, 7, 1000])
    @pytest.mark.parametrize("axes", [(0,), (2,), (0, 2), (0, 1, 2)])
    def test_first_elements(self, axes, most):
        """Some elements of every unit, the same for each, no more than asked and one at least."""
        view = View("outputs", (4, 3, 5), axes)
        tensor = torch.arange(60).reshape(4, 3, 5)
        rows = view.rows(tensor).tolist()

        first = view.first(tensor, most)
        some = view.first(tensor, most, torch.tensor([1, 3]))

        assert 1 <= first.shape[1] <= max(most, 1)
        assert all({*found} <= {*row} for found, row in zip(first.tolist(), rows, strict=True))
        assert torch.equal(some, first[[1, 3]])
        assert most < 60 or torch.equal(first, view.rows(tensor))


def _by_brute_force(rows: Tensor, *, signed: bool) -> list[int]:
    labels: list[int] = []
    for number, row in enumerate(rows):
        equal_modules = (
            other
            for other in range(number)
            if torch.equal(rows[other], row) or (signed and torch.equal(rows[other], -row))
        )
        labels.append(
            labels[copies] if (copies := next(equal_modules, None)) is not None else number
        )
    return labels


class TestEqualRows:
    @given(
        st.integers(1, 12),
        st.integers(1, 4),
        st.booleans(),
        st.integers(0, 2**16),
        st.integers(1, 3),
    )
    @settings(max_examples=100)
    def test_as_by_comparing_all_pairs(self, units, features, signed, seed, high):
        """On rows of few different numbers it finds what comparing all pairs finds."""
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randint(-high, high + 1, (units, features), generator=generator).float()

        labels, signs = equal_rows(rows, signed=signed)

        assert labels.tolist() == _by_brute_force(rows, signed=signed)
        turned = rows * signs[:, None] if signed else rows
        leaders = turned[labels]
        assert torch.equal(turned, leaders)

    @pytest.mark.parametrize("noise", [1e-9, 1e-7])
    def test_noise_far_below_the_rows_does_not_hide_equality(self, noise):
        """Rows that differ by 1e-7 of their size are equal."""
        rows = torch.randn(50, 9, dtype=torch.float64)
        rows[30] = rows[4] * (1 + noise)

        assert equal_groups(equal_rows(rows)[0]) == ((4, 30),)

    @pytest.mark.parametrize("noise", [1e-5, 1e-3])
    def test_larger_differences_do(self, noise):
        """Rows that differ by a hundred-thousandth of their size are two."""
        rows = torch.randn(50, 9, dtype=torch.float64)
        rows[30] = rows[4] * (1 + noise)

        assert equal_groups(equal_rows(rows)[0]) == ()

    def test_equal_rows_among_a_hundred_thousand(self):
        """Among many random rows only those that were copied are found."""
        rows = torch.randn(100_000, 16, generator=torch.Generator().manual_seed(0))
        rows[99_000] = rows[7]
        rows[50_000] = -rows[7]

        assert equal_groups(equal_rows(rows)[0]) == ((7, 99_000),)
        assert equal_groups(equal_rows(rows, signed=True)[0]) == ((7, 50_000, 99_000),)

    @pytest.mark.parametrize(
        "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn]
    )
    def test_dtypes(self, dtype):
        """Copies are found in any dtype; random rows of sixteen numbers are told apart in any."""
        rows = (0.02 * torch.randn(1000, 16, generator=torch.Generator().manual_seed(1))).to(dtype)
        twice = torch.cat((rows.float(), rows[:2].float())).to(dtype)

        assert equal_groups(equal_rows(twice)[0]) == ((0, 1000), (1, 1001))

    def test_pairs_with_others_between_them(self):
        """A pair is found though the first projections of many rows lie between its own."""
        base = torch.randn(1, 8, dtype=torch.float64)
        direction = row_fingerprints(torch.eye(8)).keys[:1]
        (_, *across) = torch.linalg.svd(direction)[2]
        others = base + torch.randn(50, 7, dtype=torch.float64) @ torch.stack(across)
        rows = torch.cat((base, others, base * (1 + 1e-7)))

        assert equal_groups(equal_rows(rows)[0]) == ((0, 51),)

    def test_tiny_rows_are_zero(self):
        """Rows below the size that is asked for count as zeros, whatever they hold."""
        rows = torch.randn(4, 9)
        rows[[1, 3]] *= 1e-7
        labels, signs = equal_rows(rows, tiny=1e-5)

        assert labels.tolist() == [0, 1, 2, 1]
        assert signs.tolist() == [1, 0, 1, 0]

    def test_what_is_no_number_equals_nothing(self):
        """NaNs are not equal, and do not disturb the others."""
        rows = torch.ones(4, 3)
        rows[1, 0] = rows[2, 0] = torch.nan

        assert equal_groups(equal_rows(rows)[0]) == ((0, 3),)

    def test_nothing_to_compare(self):
        """No rows, or rows without features."""
        assert equal_rows(torch.zeros(0, 3))[0].tolist() == []
        assert equal_groups(equal_rows(torch.zeros(2, 0))[0]) == ((0, 1),)
