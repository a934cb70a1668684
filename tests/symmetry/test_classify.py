"""What belongs together is judged together, and every verdict says why in words."""

import copy

import pytest
import torch
from torch import Tensor, nn

from tests.symmetry.cases import CASES, constant, copy_unit, fill, mlp
from torch_initpolicy.symmetry.find import find_symmetry
from torch_initpolicy.symmetry.findings import Finding


def of(model: nn.Module) -> dict[str, Finding]:
    """Search a model of five inputs; findings by name."""
    report = find_symmetry(model, torch.randn(8, 5, generator=torch.Generator().manual_seed(0)))
    return {finding.name: finding for finding in report.findings}


def case(name: str) -> dict[str, Finding]:
    """Search a network of the table; findings by name."""
    (found,) = (c for c in CASES if c.name == name)
    torch.manual_seed(1)
    report = find_symmetry(
        found.build(), found.inputs(torch.Generator().manual_seed(5)), found.loss
    )
    return {finding.name: finding for finding in report.findings}


class TestTogether:
    def test_biases_follow_their_rows(self):
        """Of eight equal biases only those of the two tied rows are tied."""
        model = mlp(nn.Tanh(), hidden=8)
        copy_unit(model[0], model[2], 2, 5)

        assert of(model)["0.bias"].units == ((2, 5),)

    def test_norms_follow_each_other(self):
        """A norm's bias that is tied alone means nothing."""
        found = case("redundant_biases")

        assert found == {}

    def test_both_sides_of_a_middle_layer(self):
        """A layer between tied units is one finding, which mentions its inputs too."""
        layers = (nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3))
        middle = of(constant(*layers))["2.weight"]

        assert (middle.along, middle.units) == ("outputs", ((0, 1, 2, 3),))
        assert "so do 6 input units" in middle.reason

    def test_two_logits_are_no_pair(self):
        """Rows that always move oppositely are tied only if what they feed is negated."""
        found = case("two_class_zero_net_with_cross_entropy")

        assert {finding.verdict for finding in found.values()} == {"harmless"}

    def test_rows_of_the_identity_are_tied_up_to_their_order(self):
        """Units of a middle identity are tied where those below and above are."""
        found = case("mlp_identity_between_constants")

        assert found["2.weight"].units == ((0, 1, 2, 3),)


class TestWords:
    def test_who_waits_for_whom(self):
        """Dead parameters name what would have to start with other values."""
        found = case("gate_zero_at_both_ends")

        assert found["gate"].reason == (
            "1 entry never gets a gradient from this start, but would if it and last.weight "
            "started with other values"
        )
        assert found["first.weight"].reason == (
            "6 output units never get a gradient from this start, but would if gate and "
            "last.weight started with other values"
        )
        assert (found["first.weight"].remedy, found["gate"].remedy) == (
            "",
            "torch.nn.init.ones_(model.get_parameter('gate'))",
        )

    @pytest.mark.parametrize(
        ("name", "parameter", "words"),
        [
            ("mlp_zero_head", "2.weight", "apart after step 1"),
            ("rezero", "gate", "gets a gradient from step 1 on"),
            (
                "constant_inside_adaln_zero",
                "mod.weight",
                "waits for last.weight, and moves from step 2 on",
            ),
            ("unused_zero_layer", "unused.weight", "unused, or without effect"),
            ("copied_experts_zero_router", "router.weight", "none while the units above are tied"),
            ("copied_branches_random_head", "left", "their gradients differ"),
        ],
    )
    def test_why_it_is_harmless(self, name, parameter, words):
        """Harmless findings say what breaks the tie, and when."""
        finding = case(name)[parameter]

        assert finding.verdict == "harmless"
        assert words in finding.reason

    def test_remedies_run(self):
        """What the report says to write mends the model."""
        import torch_initpolicy

        model = constant(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))
        for finding in of(model).values():
            call = compile(finding.remedy, "remedy", "eval")
            eval(
                call,
                {"apply_policy": torch_initpolicy.apply_policy, "model": model, "torch": torch},
            )

        assert of(model) == {}

    def test_remedy_of_a_bias(self):
        """A tied bias is told apart by the weight of its layer: to set it to zero mends nothing."""
        found = of(constant(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)))

        assert found["0.bias"].verdict == "tied"
        assert found["0.bias"].remedy == "apply_policy(model, only=['0.weight'])"

    def test_remedies_of_copies_run(self):
        """All copies but the first are drawn anew."""

        class Mean(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                expert = mlp(nn.Tanh())
                self.experts = nn.ModuleList(copy.deepcopy(expert) for _ in range(3))

            def forward(self, x: Tensor) -> Tensor:
                return sum(expert(x) for expert in self.experts)

        import torch_initpolicy

        model = Mean()
        (finding,) = of(model).values()
        eval(finding.remedy, {"apply_policy": torch_initpolicy.apply_policy, "model": model})

        assert of(model) == {}

    def test_shares_of_a_tensor(self):
        """A finding's count is that of its units, in all groups."""
        finding = of(fill(mlp(nn.Tanh()), 0.3))["0.weight"]

        assert finding.count == 6
