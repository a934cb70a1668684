"""Starts that are tried: few parameters first, nothing that is meant, each as it is written."""

import pytest
import torch
from torch import nn

from tests.report.test_audit import batch, constant, mixing
from torch_initpolicy import apply_policy, audit_model, find_symmetry
from torch_initpolicy.report.trial import with_remedy

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_repair_is_narrowed_to_what_it_does_otherwise():
    """Of a policy that is needed only those parameters are written that `auto` starts otherwise."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, 4, 64, 0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, 12, enable_nested_tensor=False)
    apply_policy(model, seed=0)

    best = audit_model(model, torch.randn(4, 12, 32)).recommended

    assert best.call == (
        "apply_policy(model, \"depth_scaled\", only=['*.linear2.weight', '*.out_proj.weight'])"
    )


def test_what_is_meant_is_not_calibrated():
    """Where calibration is tried, a head that starts at zero is left out by name."""
    model = mixing()
    nn.init.zeros_(model[-1].weight)

    calls = [repair.call for repair in audit_model(model, batch()).repairs]

    assert "lsuv_(model, batch, skip=['4.weight'])" in calls


class Heads(nn.Module):
    """A policy that starts small, as PPO has it, beside something else."""

    def __init__(self, gain: float, *, sampled: bool = False) -> None:
        super().__init__()
        layers = [layer for _ in range(3) for layer in (nn.Linear(32, 32), nn.Tanh())]
        self.body = nn.Sequential(*layers)
        self.policy, self.other = nn.Linear(32, 4), nn.Linear(32, 8)
        self.read = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
        self.sampled = sampled
        with torch.no_grad():
            self.policy.weight.mul_(0.01)
            self.other.weight.mul_(gain)

    def forward(self, x):
        hidden = self.body(x)
        other = self.other(hidden)
        return self.policy(hidden), self.read(other.exp()) if self.sampled else other


@pytest.mark.parametrize("sampled", [False, True], ids=["returned", "exponentiated"])
def test_one_weight_at_fault_is_all_that_is_written(sampled):
    """A second head that is too large is started anew, by itself; the small one stays as meant."""
    torch.manual_seed(0)
    model, x = Heads(1000.0 if not sampled else 40.0, sampled=sampled), batch()[:, :32]

    best = audit_model(model, x, optimizer="adam", lr=2e-3).recommended

    assert best.call == "apply_policy(model, only=['other.weight'])"


class Sums(nn.Module):
    """A layer that reads the sum over however many elements an input has."""

    def __init__(self) -> None:
        super().__init__()
        self.each = nn.Sequential(nn.Linear(1, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())
        self.all = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, x):
        return self.all(self.each(x[..., None]).sum(1))


def test_inputs_are_named_where_the_start_depends_on_them():
    """A sum over 1,000 elements asks for other weights than one that planning finds by itself."""
    torch.manual_seed(0)
    model, x = Sums(), torch.randn(32, 1000) + torch.randn(32, 1)

    best = audit_model(model, x).recommended

    assert best.call == 'apply_policy(model, "signal", example_inputs=batch)'
    apply_policy(model, "signal", example_inputs=x, seed=0)
    assert audit_model(model, x).ok


def test_a_remedy_of_equal_units_is_tried_before_it_is_named():
    """What `check` prints for units that stay equal has been tried; harmless ones have none."""
    model = constant(0.1)
    report = with_remedy(model, None, find_symmetry(model), budget=60.0)
    lasting = {finding.name: finding.remedy for finding in report.of("tied")}
    assert lasting
    assert set(lasting.values()) == {"apply_policy(model, only=['0.weight', '2.weight'])"}
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    well = find_symmetry(model)
    assert with_remedy(model, None, well, budget=60.0) is well


def test_names_that_make_no_line_are_not_tried():
    """Parameters that neither a few names nor globs tell from the others are no recommendation."""
    model = nn.Sequential(*(nn.Linear(64, 64) for _ in range(24)))
    generator = torch.Generator().manual_seed(0)
    for place, layer in enumerate(model):
        nn.init.normal_(layer.weight, std=(3.0 if place % 3 else 1.0) / 8, generator=generator)

    calls = [r.call for r in audit_model(model, batch()[:, :64]).repairs]

    assert calls[0] == "apply_policy(model)"


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_a_layer_that_forgets_gets_time_scales(kind):
    """Where gates forget, be they meant, the published start for as many steps repairs it."""

    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = kind(8, 32, batch_first=True), nn.Linear(32, 4)
            with torch.no_grad():
                self.layer.bias_ih_l0[32:64] = -4

        def forward(self, x):
            return self.head(self.layer(x)[0][:, -1])

    torch.manual_seed(0)
    best = audit_model(Last(), torch.randn(16, 40, 8)).recommended
    assert best.call.startswith("apply_policy(model, presets.chrono(40)")
    assert not best.signal.verdicts


def test_starts_are_offered_for_their_structure_alone():
    """DeepNorm is for branches of attention, SIREN for sines, time scales for gates."""
    torch.manual_seed(0)
    layers = [layer for _ in range(12) for layer in (nn.Linear(64, 64), nn.Tanh())]
    model = nn.Sequential(*layers, nn.Linear(64, 4))
    for layer in layers[::2]:
        nn.init.normal_(layer.weight, std=0.5)
    inputs = torch.randn(32, 64)
    tried = {repair.name.split(",")[0] for repair in audit_model(model, inputs).repairs}
    assert tried
    assert tried <= {"auto", "signal", "critical", "auto, calibrated", "lsuv"}
