"""Everything `find_symmetry` says is decided by training, or by trying all permutations."""

import copy
import itertools
import math
import random
from collections import UserDict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.symmetry.cases import CASES, Case, constant, copy_unit, fill, mlp
from tests.symmetry.oracle import fate, generic
from tests.symmetry.test_modules import bidirectional
from torch_initpolicy import apply_policy
from torch_initpolicy.errors import TraceError
from torch_initpolicy.symmetry.find import find_symmetry
from torch_initpolicy.symmetry.findings import Report
from torch_initpolicy.testing import assert_untouched

pytestmark = pytest.mark.usefixtures("one_thread")

by_name = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def _build(case: Case) -> tuple[nn.Module, tuple[Tensor, ...]]:
    torch.manual_seed(1)
    return case.build(), case.inputs(torch.Generator().manual_seed(5))


def _names(report: Report, *verdicts: str) -> set[str]:
    return {finding.name for finding in report.of(*verdicts)}


class TestTable:
    def test_there_are_enough_cases(self):
        """The table covers at least eighty starts, each once."""
        names = [case.name for case in CASES]

        assert len(names) >= 80
        assert len(names) == len(set(names))

    @by_name
    def test_training_agrees_with_the_table(self, case):
        """Forty steps of SGD, momentum and Adam tie and stop exactly what the table says."""
        found = fate(case)

        assert case.tied | case.benign == found.tied
        assert case.dead | case.exempt | case.follows == found.stuck

    @pytest.mark.parametrize(
        "case", [case for case in CASES if case.exempt], ids=lambda case: case.name
    )
    def test_what_is_exempt_moves_from_no_start(self, case):
        """No start, however generic, gives parts of the exempt parameters a gradient."""
        assert case.exempt <= fate(case, perturb=generic).idle

    @by_name
    def test_report_agrees_with_the_table(self, case):
        """Tied and dead are reported without exception, and nothing else is."""
        model, inputs = _build(case)

        report = find_symmetry(model, inputs, case.loss)

        assert case.tied == _names(report, "tied")
        assert case.dead == _names(report, "dead")
        assert set() == _names(report, "suspect", "diverged")
        assert case.harmless <= _names(report, "harmless")
        assert report.ok == (not case.tied | case.dead)

    @pytest.mark.parametrize("case", CASES[::4], ids=lambda case: case.name)
    def test_inputs_that_are_looked_for_serve_as_well(self, case):
        """Without inputs the report is the same, or says that none were found; never wrong."""
        model, _ = _build(case)

        report = find_symmetry(model, None, case.loss)

        unprobed = report.method == "scanned"
        assert unprobed or case.tied == _names(report, "tied")
        assert unprobed or case.dead == _names(report, "dead")


class TestFindings:
    def test_one_for_each_name_with_reason_and_units(self):
        """Every finding names one parameter or module, its groups of units, and a reason."""
        report = find_symmetry(constant(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)))

        assert [f.name for f in report.findings] == ["0.weight", "0.bias", "2.weight"]
        assert [f.units for f in report.findings] == [((0, 1, 2, 3, 4, 5),)] * 3
        assert [f.along for f in report.findings] == ["outputs", "entries", "inputs"]
        assert all(f.reason and f.remedy for f in report.findings)

    def test_units_of_several_groups(self):
        """Each group of tied units is listed on its own."""
        model = mlp(nn.Tanh(), hidden=8)
        copy_unit(model[0], model[2], 0, 3)
        copy_unit(model[0], model[2], 1, 2)
        copy_unit(model[0], model[2], 1, 7)

        report = find_symmetry(model, torch.randn(8, 5))

        assert {((0, 3), (1, 2, 7))} == {finding.units for finding in report.of("tied")}

    def test_dead_rows_are_numbered(self):
        """Rows that are dead inside a live tensor are told from the others."""
        model = nn.Sequential(nn.Linear(5, 8, bias=False), nn.ReLU(), nn.Linear(8, 3))
        with torch.no_grad():
            model[0].weight[[2, 5]] = 0

        (finding,) = find_symmetry(model, torch.randn(8, 5)).of("dead")

        assert (finding.name, finding.units, finding.along) == ("0.weight", ((2, 5),), "outputs")

    def test_copied_modules_go_by_name(self):
        """Copies of a module are one finding that lists them all."""
        branch = mlp(nn.Tanh())
        model = _Parallel([branch, copy.deepcopy(branch), copy.deepcopy(branch)])

        (finding,) = find_symmetry(model, torch.randn(8, 5)).findings

        assert (finding.name, finding.verdict, finding.along) == ("parts.0", "tied", "modules")
        assert finding.units == (("parts.0", "parts.1", "parts.2"),)

    def test_harmless_says_what_was_waited_for_and_when_it_broke(self):
        """Behind a zero head the zero gate opens at step 2, and the rows inside part at step 3."""
        case = next(case for case in CASES if case.name == "constant_inside_adaln_zero")
        model, inputs = _build(case)

        found = {f.name: f for f in find_symmetry(model, inputs).findings}

        assert tuple(found[n].step for n in ("last.weight", "mod.weight", "inner.weight")) == (
            1,
            2,
            3,
        )
        assert "waits for mod.weight" in found["inner.weight"].reason

    def test_what_is_not_suspected_is_not_mentioned(self):
        """Zero biases and neutral norms beside random weights are no news."""
        model = nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6), nn.ReLU(), nn.Linear(6, 3))
        nn.init.zeros_(model[0].bias)

        assert find_symmetry(model, torch.randn(8, 5)).findings == ()


class _Parallel(nn.Module):
    """The sum of what its parts say."""

    def __init__(self, parts: list[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Tensor:
        return sum(part(x) for part in self.parts)


class _Fails(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("not today")


class _Images(nn.Module):
    """Takes images whose edges are multiples of a number; its last layer starts at zero."""

    def __init__(self, edge: int) -> None:
        super().__init__()
        self.image_size = 128 if edge == 64 else edge
        self.edge = edge
        self.stem = nn.Conv2d(3, 6, 8, stride=8)
        self.fill = nn.Linear(6, 5)
        self.head = nn.Linear(5, 4)
        nn.init.zeros_(self.head.weight)
        with torch.no_grad():
            self.fill.bias[1:4] = -7.0

    def forward(self, x: Tensor) -> Tensor:
        assert all(size % self.edge == 0 for size in x.shape[2:])
        return self.head(self.fill(self.stem(x).mean((2, 3))).relu())


class TestInputs:
    """What can be given, and what happens where nothing runs."""

    @pytest.mark.parametrize(
        "inputs",
        [torch.randn(4, 5), (torch.randn(4, 5),), {"input": torch.randn(4, 5)}, torch.zeros(4, 5)],
        ids=["tensor", "tuple", "mapping", "zeros"],
    )
    def test_all_forms(self, inputs):
        """A tensor, a tuple and a mapping are the same; zeros stand for their shape."""
        model = fill(nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)), 0.3)

        report = find_symmetry(model, inputs)

        assert {"0.weight", "0.bias", "2.weight"} == _names(report, "tied")

    def test_zero_token_ids_stand_for_their_shape(self):
        """All-zero ids are a placeholder: other ids of the vocabulary are drawn."""
        model = nn.Sequential(nn.Embedding(12, 5), nn.Flatten(), nn.Linear(20, 3))
        nn.init.zeros_(model[0].weight)

        assert find_symmetry(model, torch.zeros(6, 4, dtype=torch.int64)).ok

    def test_positive_inputs_stay_positive(self):
        """What a logarithm needs is kept: numbers come from the range of those given."""
        hidden = fill(nn.Linear(5, 6), 0.3)

        class Log(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return x.log()

        model = nn.Sequential(Log(), hidden, nn.Tanh(), fill(nn.Linear(6, 3), 0.3))

        report = find_symmetry(model, torch.rand(8, 5) + 0.1)

        assert {"1.weight", "1.bias", "3.weight"} == _names(report, "tied")

    def test_inputs_that_do_not_fit_are_refused(self):
        """Given inputs with which the forward raises are the caller's error, and it is quoted."""
        model = fill(nn.Linear(5, 3), 0.0)

        with pytest.raises(TraceError, match=r"mat1 and mat2|shapes"):
            find_symmetry(model, torch.randn(4, 7))

    def test_a_model_that_runs_with_nothing_is_only_suspected(self):
        """Where the model cannot be run, what is equal is a suspect, and that is no failure."""
        report = find_symmetry(fill(_Fails(5, 6), 0.1))

        assert (report.method, report.ok) == ("scanned", True)
        assert [finding.verdict for finding in report.findings] == ["suspect"]
        assert "not today" in report.findings[0].reason

    def test_a_loss_can_be_the_reason(self):
        """A head's rows differ by their targets; a loss that has none ties them."""
        model = fill(nn.Linear(5, 3), 0.0)
        inputs = torch.randn(8, 5)

        assert find_symmetry(model, inputs).ok
        assert {"weight", "bias"} == _names(find_symmetry(model, inputs, lambda y: y.sum()), "tied")

    @pytest.mark.parametrize("edge", [64, 136], ids=["small-images-fit", "of-one-size-only"])
    def test_large_images(self, edge):
        """A model of large images is cleared on little; it is never convicted on so little.

        Most columns of the zero layer get no gradient, since a bias keeps the units before it
        silent, and would get none from another start of that layer.
        """
        model = _Images(edge)

        cleared = find_symmetry(model)
        fill(model.fill, 0.1)
        convicted = find_symmetry(model)

        assert [(f.name, f.verdict) for f in cleared.findings] == [("head.weight", "harmless")]
        assert ("float64" if edge == 64 else "float32") in cleared.note
        assert "fill.weight" in _names(convicted, "tied")
        assert "float64" in convicted.note

    def test_meta_parameters_are_refused(self):
        """Parameters without memory hold nothing to compare."""
        with torch.device("meta"):
            model = nn.Linear(5, 3)

        with pytest.raises(TraceError, match="materialize"):
            find_symmetry(model)

    @pytest.mark.parametrize("inputs", [None, torch.ones(4, 5)], ids=["found", "given"])
    @pytest.mark.parametrize(
        ("loss_fn", "made"),
        [(lambda _: 3, "got 3"), (lambda output: output, "of shape")],
        ids=["number", "matrix"],
    )
    def test_a_loss_that_is_no_scalar(self, loss_fn, made, inputs):
        """The loss function is blamed, with what it made, and not the inputs."""
        model = fill(mlp(nn.Tanh()), 0.25)
        with pytest.raises(TraceError, match=f"^loss_fn returns a real scalar tensor.*{made}"):
            find_symmetry(model, inputs, loss_fn)

    @pytest.mark.parametrize("inputs", [None, torch.ones(4, 3)], ids=["found", "given"])
    def test_lazy_parameters_are_refused(self, inputs):
        """Before their first batch nothing can be said of them; after it they are judged."""
        model = nn.Sequential(nn.LazyLinear(4), nn.Tanh(), nn.Linear(4, 2))
        with pytest.raises(TraceError, match=r"(?s)one batch first.*0\.weight"):
            find_symmetry(model, inputs)

        model(torch.ones(4, 3))
        assert {"0.weight", "0.bias", "2.weight"} == _names(
            find_symmetry(fill(model, 0.25), inputs), "tied"
        )

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
    def test_other_precisions(self, dtype):
        """A model in half or double precision is judged like one in single."""
        model = fill(mlp(nn.Tanh()), 0.25).to(dtype)

        assert {"0.weight", "0.bias", "2.weight"} == _names(find_symmetry(model), "tied")

    def test_a_forward_that_refuses_double_precision(self):
        """Where float64 does not run, float32 does, with the rounding it brings told apart."""

        class Single(nn.Linear):
            def forward(self, x: Tensor) -> Tensor:
                return super().forward(x.float() if x.dtype == torch.float64 else x)

        model = nn.Sequential(Single(5, 6), nn.Tanh(), Single(6, 3))
        fill(model, 0.3)

        report = find_symmetry(model, torch.randn(8, 5))

        assert "float32" in report.note
        assert {"0.weight", "0.bias", "2.weight"} == _names(report, "tied")

    def test_sparse_gradients(self):
        """An embedding with sparse gradients is read like any other."""
        table = nn.Embedding(6, 4, sparse=True)
        model = nn.Sequential(fill(table, 0.1), nn.Flatten(), fill(nn.Linear(12, 3), 0.1))

        assert "0.weight" in _names(find_symmetry(model, torch.randint(6, (8, 3))), "tied")

    def test_gradient_checkpointing(self):
        """Parts that run again in the backward pass see the copies, not the model's own weights."""
        from torch.utils.checkpoint import checkpoint

        class Checkpointed(nn.Sequential):
            def forward(self, x: Tensor) -> Tensor:
                return self[1](checkpoint(self[0], x, use_reentrant=False))

        first = nn.Sequential(nn.Linear(5, 6), nn.Tanh())
        model = fill(Checkpointed(first, nn.Linear(6, 3)), 0.3)

        report = find_symmetry(model, torch.randn(8, 5))

        assert {"0.0.weight", "0.0.bias", "1.weight"} == _names(report, "tied")


class _Unpacks(nn.Sequential):
    """Takes its input out of a mapping."""

    def forward(self, batch: UserDict[str, Tensor]) -> Tensor:
        return super().forward(batch["x"])


def test_inputs_in_a_mapping_are_drawn_anew_and_cast():
    """A model in half precision is probed in double precision, its mapped inputs too."""
    model = _Unpacks(*constant(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))).half()
    report = find_symmetry(model, (UserDict(x=torch.randn(8, 8).half()),))

    assert "random inputs in float64" in report.note
    assert _names(report, "tied") == {"0.weight", "0.bias", "2.weight"}


class TestWrapped:
    """Wrappers are looked through; names are those of the model inside."""

    @pytest.mark.parametrize(
        "wrap", [torch.compile, nn.DataParallel], ids=["compile", "data_parallel"]
    )
    def test_names_are_the_models_own(self, wrap):
        """A wrapped model gives the findings of the model, under its names."""
        model = fill(mlp(nn.Tanh()), 0.3)

        assert {"0.weight", "0.bias", "2.weight"} == _names(find_symmetry(wrap(model)), "tied")

    def test_inference_mode_and_no_grad(self):
        """The caller's grad mode does not matter, nor does autocast."""
        model = fill(mlp(nn.Tanh()), 0.3)

        with torch.inference_mode():
            inferring = find_symmetry(model)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            casting = find_symmetry(model)

        assert not inferring.ok
        assert inferring == casting


class _Counting(nn.Module):
    """Counts and remembers in its forward pass, and may fail in the middle of it."""

    def __init__(self, *, fails: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Dropout(0.5))
        self.head = fill(nn.Linear(6, 3), 0.0)
        self.calls = 0
        self.seen: list[Tensor] = []
        self.fails = fails

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.seen.append(x)
        h = self.body(x) + torch.rand(1) + random.random()
        if self.fails:
            raise RuntimeError("half-way")
        return self.head(h)


class TestUntouched:
    @pytest.mark.parametrize("fails", [False, True], ids=["runs", "fails"])
    def test_nothing_is_left_behind(self, fails):
        """Parameters, buffers, gradients, attributes, hooks, flags and random states stay."""
        model = _Counting(fails=fails)
        model.body[1].eval()
        model.register_forward_hook(lambda *_: None)
        model.head.weight.grad = torch.ones(3, 6)
        model.head.bias.requires_grad_(False)

        threads = torch.get_num_threads()
        torch.set_num_threads(2)
        with assert_untouched(model):
            find_symmetry(model)
        left = torch.get_num_threads()
        torch.set_num_threads(threads)

        assert left == 2

    def test_the_same_answer_twice(self):
        """Whatever the random state, a model gets the same report."""
        model = _Counting(fails=False)
        torch.manual_seed(3)
        first = find_symmetry(model)
        torch.manual_seed(4)

        assert first == find_symmetry(model)


class TestNearTies:
    """Hidden rows of next to nothing under constant outgoing weights, judged by training."""

    @pytest.mark.parametrize("act", [nn.Tanh, nn.Sigmoid, nn.GELU, nn.ReLU])
    @pytest.mark.parametrize("std", [1e-6, 1e-3])
    @pytest.mark.parametrize("constant_head", [True, False], ids=["constant", "random"])
    def test_as_training_has_it(self, act, std, constant_head):
        """A common gradient leaves them behind, unless a kink is as close as they are."""
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 16), act(), nn.Linear(16, 4))
        nn.init.normal_(model[0].weight, std=std)
        nn.init.zeros_(model[0].bias)
        if constant_head:
            nn.init.constant_(model[2].weight, 0.3)
        tied = _names(find_symmetry(model), "tied")

        assert ("0.weight" in tied) == (_spread(model) < 0.05)

    def test_behind_a_zero_head(self):
        """Where no gradient comes yet, nothing says that rows next to zero are equal."""
        model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
        nn.init.normal_(model[0].weight, std=1e-6)
        nn.init.zeros_(model[2].weight)

        assert find_symmetry(model).ok


def _spread(model: nn.Module) -> float:
    """Train a copy; return how far the rows of its first layer are apart then, relatively."""
    trained = copy.deepcopy(model).double()
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.05)
    target = torch.randn(8, 4, dtype=torch.float64)
    for _ in range(150):
        x = torch.randn(64, 8, dtype=torch.float64)
        optimizer.zero_grad()
        (trained(x) - torch.sin(x @ target)).pow(2).mean().backward()
        optimizer.step()
    rows = trained[0].weight.detach()
    return float((rows - rows.mean(0)).abs().max() / rows.abs().max())


class _Reads(nn.Module):
    """Reads the mean of a bidirectional layer with equal weights for both directions."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.core = bidirectional(kind)
        self.head = nn.Linear(12, 3)
        with torch.no_grad():
            self.head.weight[:, 6:] = self.head.weight[:, :6]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.core(x)[0].mean(1))


class TestDirections:
    @pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
    @pytest.mark.parametrize("length", [1, 7])
    def test_copies_stay_copies_where_there_is_no_order(self, kind, length):
        """Equal directions part as soon as a sequence has an order; the remedy parts them else."""
        model = _Reads(kind)
        x = torch.randn(4, length, 5)
        found = {f.name: f for f in find_symmetry(model, x).findings}

        assert found["core.*_l0"].verdict == ("tied" if length == 1 else "harmless")
        if length == 1:
            eval(found["core.*_l0"].remedy, {"apply_policy": apply_policy, "model": model})
            assert "core.*_l0" not in {f.name for f in find_symmetry(model, x).findings}


#
# Oracles of another kind
#


def _stabiliser(w: Tensor, v: Tensor) -> list[tuple[tuple[int, ...], tuple[float, ...]]]:
    """List all permutations of hidden units with signs that leave both matrices as they are."""
    units = len(w)
    return [
        (order, signs)
        for order in itertools.permutations(range(units))
        for signs in itertools.product((1.0, -1.0), repeat=units)
        if _fixes(w, v, order, torch.tensor(signs))
    ]


def _fixes(w: Tensor, v: Tensor, order: tuple[int, ...], signs: Tensor) -> bool:
    rows, columns = w[list(order)] * signs[:, None], v[:, list(order)] * signs
    return torch.equal(rows, w) and torch.equal(columns, v)


def _orbits(
    group: list[tuple[tuple[int, ...], tuple[float, ...]]], units: int
) -> set[frozenset[int]]:
    return {frozenset(order[unit] for order, _ in group) for unit in range(units)}


class TestPermutations:
    """tanh networks of three hidden units with small whole numbers for weights."""

    @pytest.mark.parametrize("seed", range(40))
    def test_tied_units_are_the_orbits_of_the_stabiliser(self, seed):
        """Units are tied if and only if an exchange, up to signs, leaves the network as it is.

        Units that neither read nor feed anything are dead instead.
        """
        generator = torch.Generator().manual_seed(seed)
        model = nn.Sequential(nn.Linear(2, 3, bias=False), nn.Tanh(), nn.Linear(3, 2, bias=False))
        with torch.no_grad():
            for layer in (model[0], model[2]):
                shape = layer.weight.shape
                layer.weight.copy_(torch.randint(-1, 2, shape, generator=generator))
        w, v = model[0].weight.detach(), model[2].weight.detach()
        isolated = {unit for unit in range(3) if not w[unit].any() and not v[:, unit].any()}
        orbits = _orbits(_stabiliser(w, v), 3)
        expected = {orbit for orbit in orbits if len(orbit) > 1 and not orbit <= isolated}

        report = find_symmetry(model, torch.randn(16, 2))

        found = {f.name: f for f in report.findings if f.verdict in ("tied", "dead")}
        tied = found.get("0.weight")
        groups = tied.units if tied is not None and tied.verdict == "tied" else ()
        assert expected == {frozenset(group) for group in groups}
        assert bool(isolated) <= (not report.ok)


ACTIVATIONS = {"tanh": nn.Tanh, "sigmoid": nn.Sigmoid, "gelu": nn.GELU, "silu": nn.SiLU}


@st.composite
def planted(draw: st.DrawFn) -> tuple[nn.Module, dict[str, set[frozenset[int]]]]:
    """Draw a network with copies of units in some layers, on both sides or on one only."""
    depth = draw(st.integers(1, 3))
    widths = [4, *(draw(st.integers(3, 6)) for _ in range(depth)), 2]
    torch.manual_seed(draw(st.integers(0, 2**16)))
    activation = ACTIVATIONS[draw(st.sampled_from(sorted(ACTIVATIONS)))]
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), activation()]
    model = nn.Sequential(*layers[:-1])
    expected: dict[str, set[frozenset[int]]] = {}
    for hidden in range(depth):
        layer, above = model[2 * hidden], model[2 * hidden + 2]
        target = draw(st.integers(1, widths[hidden + 1] - 1))
        kind = draw(st.sampled_from(["both", "rows", "columns", "none"]))
        with torch.no_grad():
            if kind in ("both", "rows"):
                layer.weight[target] = layer.weight[0]
                layer.bias[target] = layer.bias[0]
            if kind in ("both", "columns"):
                above.weight[:, target] = above.weight[:, 0]
        if kind == "both":
            expected[f"{2 * hidden}.weight"] = {frozenset((0, target))}
    return model, expected


class TestPlanted:
    @given(planted())
    @settings(max_examples=40)
    def test_copies_are_found_and_only_they(self, network):
        """Units copied on both sides are tied; copied on one side they are not."""
        model, expected = network

        report = find_symmetry(model, torch.randn(8, 4, generator=torch.Generator().manual_seed(0)))

        found = {
            f.name: {frozenset(g) for g in f.units}
            for f in report.of("tied")
            if f.along == "outputs"
        }
        assert expected == found
        assert report.of("dead", "suspect") == ()


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("rows", [slice(0, 1), slice(None)])
def test_what_is_not_finite_is_dead(value, rows):
    """A weight that holds nan or inf is named with its rows, and nothing is said of the others."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    with torch.no_grad():
        model[0].weight[rows] = value
    report = find_symmetry(model, torch.randn(4, 8))
    (finding,) = report.findings
    assert (finding.name, finding.verdict) == ("0.weight", "dead")
    assert finding.count == len(range(8)[rows])
    assert "not finite" in finding.reason
