"""The audit of a model: what repairs it is tried, measured, said in words, in order."""

import copy
import json
import math
import re

import pytest
import torch
from torch import Tensor, nn

from torch_initpolicy import apply_policy, audit_model, lsuv_
from torch_initpolicy.report.audit import Audit
from torch_initpolicy.testing import assert_untouched

pytestmark = pytest.mark.usefixtures("one_thread")


def plain(depth: int, activation: type[nn.Module], width: int = 128) -> nn.Sequential:
    """Build a plain net with a head."""
    layers = [layer for _ in range(depth) for layer in (nn.Linear(width, width), activation())]
    return nn.Sequential(*layers, nn.Linear(width, 4))


def filled(model: nn.Module, gain: float, bias: float = 0.0) -> nn.Module:
    """Draw weights of variance `gain ** 2 / fan_in`; always the same ones."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        nn.init.constant_(parameter, bias)
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=gain / parameter.shape[-1] ** 0.5, generator=generator)
    return model


def build() -> nn.Module:
    """Build a net that vanishes; also by the command line."""
    return filled(plain(16, nn.ReLU), 0.9)


class Block(nn.Module):
    """A residual branch without normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(64, 64), nn.Linear(64, 64)

    def forward(self, x):
        return x + self.fc2(torch.relu(self.fc1(x)))


def residual() -> nn.Module:
    """Build a deep residual net whose sum explodes under He's start."""
    blocks = (Block() for _ in range(12))
    return filled(nn.Sequential(nn.Linear(128, 64), *blocks, nn.Linear(64, 4)), 2**0.5)


class Mixing(nn.Module):
    """Forgets which input was which: no start can tell them apart behind it."""

    def forward(self, x):
        return x.mean(0, keepdim=True).expand_as(x)


def mixing() -> nn.Module:
    """Build a net that no start repairs."""
    layers = [nn.Linear(128, 64), Mixing(), nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 4)]
    return filled(nn.Sequential(*layers), 1.0)


def batch() -> Tensor:
    """Draw standard normal inputs."""
    return torch.randn(64, 128, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def repaired() -> Audit:
    """The audit of a plain net."""
    return audit_model(build(), batch())


@pytest.fixture(scope="module")
def exploding() -> Audit:
    """The audit of a residual net, of which some starts repair it and some do not."""
    names = ["he", "depth_scaled", "zero_residual", "signal"]
    return audit_model(residual(), batch(), suggest=names, title="Audit of a net")


SICK = {
    "relu under Xavier": (build, "vanishes", ["apply_policy(model)"]),
    "residual sums": (residual, "explodes", ["apply_policy(model, only=['*.fc2.weight'])"]),
    "silent units": (
        lambda: filled(plain(6, nn.ReLU), 2**0.5, -6.0),
        "dies",
        ["apply_policy(model, only=['*.bias'], keep=\"nothing\")"],
    ),
    "deep tanh": (
        lambda: filled(plain(50, nn.Tanh), 0.1),
        "vanishes",
        ['apply_policy(model, "critical")'],
    ),
    "silu": (
        lambda: filled(plain(40, nn.SiLU), 1.0),
        "vanishes",
        ["apply_policy(model, calibrate=batch)", "lsuv_(model, batch)"],
    ),
    "sigmoid": (
        lambda: filled(plain(16, nn.Sigmoid), 1.0),
        "collapses",
        ["lsuv_(model, batch, per_channel=True)"],
    ),
}  # fmt: skip


def seconds(model: nn.Module, x: Tensor) -> list[float]:
    """Measure the second moment behind every linear layer with plain hooks, in float64."""
    found: list[float] = []
    hooks = [
        layer.register_forward_hook(
            lambda _, __, out: found.append(out.double().square().mean().item())
        )
        for layer in model.modules()
        if isinstance(layer, nn.Linear)
    ]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize(("make", "kind", "calls"), SICK.values(), ids=SICK)
def test_what_is_recommended_repairs(make, kind, calls):
    """The call that is recommended, run as it is written, does to a model what was said of it.

    The second moments behind its layers, measured with plain hooks, stay within the factor that was
    told (where no branch is smaller than the sum); before they did not, or units were silent.
    """
    model, x = make(), batch()

    audit = audit_model(model, x)
    best = audit.recommended

    assert audit.signal.verdicts[0].kind == kind
    assert best.call in calls
    call = best.call.replace("apply_policy(model", "apply_policy(model, seed=0")
    call = re.sub(r'seed=0, ("\w+")', r"\1, seed=0", call)
    eval(call, {"apply_policy": apply_policy, "lsuv_": lsuv_}, {"model": model, "batch": x})
    told = float(re.search(r"within a factor ([\d.e+]+),", best.reason).group(1))
    first, *others, _ = seconds(model, x)
    largest = max(first, *others)
    assert largest / first <= told * 1.05
    assert audit_model(model, x, budget=0.0).ok


@pytest.mark.parametrize("make", [build, residual], ids=["plain", "residual"])
def test_the_model_is_untouched(make):
    """Trying leaves weights, gradients, flags and hooks as they are."""
    model = make()
    before = copy.deepcopy(model.state_dict())
    versions = [parameter._version for parameter in model.parameters()]

    audit_model(model, batch())

    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert [parameter._version for parameter in model.parameters()] == versions
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("when", ["forward", "between starts"])
def test_an_interrupted_audit_leaves_the_model_as_it_was(when):
    """Ctrl-C ends it, within a forward pass or between two starts, and undoes everything."""
    model = residual()

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    if when == "forward":
        model[6].forward = interrupt
    with assert_untouched(model), pytest.raises(KeyboardInterrupt):
        audit_model(model, batch(), tell=interrupt)


def test_a_temperature_has_its_remedy_in_the_headline():
    """No policy lowers it, so nothing is tried, and the sentence says what to write."""

    class Contrasted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Linear(128, 8), nn.Linear(128, 8)
            self.scale = nn.Parameter(torch.tensor(1e3))

        def forward(self, x):
            left, right = (nn.functional.normalize(f(x), dim=-1) for f in (self.left, self.right))
            return self.scale * left @ right.mT

    audit = audit_model(Contrasted(), batch())

    assert audit.repairs == ()
    assert audit.headline == (
        "The output starts too large at 'scale'. Start 'scale' at a factor of about 14, as CLIP "
        "does."
    )


def test_what_repairs_comes_first(exploding):
    """Those that repair, then those that do not; the plan is that of the first."""
    works = [repair.works for repair in exploding.repairs]
    assert works == sorted(works, reverse=True)
    assert {repair.name for repair in exploding.repairs if not repair.works} >= {"he"}
    assert exploding.plan.policy == exploding.repairs[0].name
    assert "explodes at" in next(r.reason for r in exploding.repairs if r.name == "he")


def test_what_would_be_the_same_is_tried_once():
    """Policies for residual branches are not tried where there are none; named ones always are."""
    model = filled(plain(12, nn.ReLU), 0.9)

    names = [repair.name for repair in audit_model(model, batch()).repairs]
    named = audit_model(model, batch(), suggest=["auto", "zero_residual"]).repairs

    assert sorted(names) == ["auto", "critical", "signal"]
    assert [repair.name for repair in named] == ["auto", "zero_residual"]


def test_healthy_models_cost_nothing():
    """Where there is nothing to repair, nothing is tried, and the audit says so."""
    audit = audit_model(filled(plain(6, nn.ReLU), 2**0.5), batch())

    assert audit.ok
    assert audit.repairs == ()
    assert audit.recommended is None
    assert audit.cost == ""
    assert str(audit).endswith("\n\nThe signal keeps its size.")
    assert audit.plan.policy == "auto"
    assert "What repairs it" not in str(audit.page)


def test_where_nothing_repairs():
    """Calibrations are tried last; where they fail too, it is said, without an opinion."""
    audit = audit_model(mixing(), batch())

    assert [repair.outcome for repair in audit.repairs] == ["fails"] * len(audit.repairs)
    assert {repair.call for repair in audit.repairs} >= {
        "apply_policy(model, calibrate=batch)",
        "lsuv_(model, batch)",
        "lsuv_(model, batch, per_channel=True)",
    }
    assert audit.recommended is None
    assert audit.headline.endswith(f"No start that was tried helps ({len(audit.repairs)} were).")


def test_calibrations_are_left_out_where_a_policy_repairs(repaired, exploding):
    """They need a batch; a policy does not."""
    assert not [r.call for r in (*repaired.repairs, *exploding.repairs) if "batch" in r.call]


def test_the_budget_bounds_what_is_tried():
    """Without any time one start is tried, and those that were not are named."""
    told: list[str] = []

    audit = audit_model(mixing(), batch(), budget=0.0, tell=told.append)

    assert [repair.call for repair in audit.repairs] == told == ["apply_policy(model)"]
    assert "lsuv_(model, batch)" in audit.untried
    assert "not tried within the budget: " in audit.cost
    assert "larger budget" in audit.headline


def test_the_cost_is_told(repaired):
    """How many starts were tried, on how many inputs, and for how long."""
    took = sum(repair.seconds for repair in repaired.repairs)
    assert all(repair.seconds > 0 for repair in repaired.repairs)
    assert repaired.cost == (
        f"{len(repaired.repairs)} starts tried on a copy of the model, 64 inputs forward and back, "
        f"{took:.1f} s"
    )


def test_a_policy_that_cannot_be_applied():
    """An error of a policy is told as its verdict and does not end the audit."""
    model = nn.Sequential(nn.Conv2d(8, 4, 3), nn.ReLU(), nn.Conv2d(4, 8, 3))

    audit = audit_model(model, torch.randn(4, 8, 9, 9), suggest=["delta_orthogonal", "he"])

    assert [repair.name for repair in audit.repairs] == ["he", "delta_orthogonal"]
    assert audit.repairs[1].reason.startswith("cannot be applied: ")
    assert audit.repairs[1].signal is None


def test_a_policy_that_leaves_units_alike_repairs_nothing():
    """Ones keep a signal but no two units apart."""
    repairs = audit_model(build(), batch(), suggest=["ones", "auto"]).repairs

    ones = next(repair for repair in repairs if repair.name == "ones")
    assert not ones.works
    assert "identical" in ones.reason


def test_what_is_mild_is_called_so():
    """A signal that merely wanders is told, with what keeps it, and is no failure."""
    model = filled(plain(8, nn.ReLU), 1.2)

    audit = audit_model(model, batch())

    assert [verdict.kind for verdict in audit.signal.verdicts] == ["wanders"]
    assert audit.ok
    assert re.fullmatch(
        r"The signal wanders at '[\w.]+', which may slow training\. "
        r"apply_policy\(model\) repairs it\.",
        audit.headline,
    )


def constant(value: float) -> nn.Module:
    """Build a small net of equal units."""
    model = nn.Sequential(nn.Linear(128, 8), nn.Tanh(), nn.Linear(8, 4))
    for parameter in model.parameters():
        nn.init.constant_(parameter, value)
    return model


def test_symmetric_starts_are_told():
    """Units that are tied for ever are no healthy start, though the signal be large enough."""
    audit = audit_model(constant(0.1), batch())

    assert audit.signal.ok
    assert not audit.ok
    assert "units that are tied or dead for ever: see find_symmetry(model)" in audit.headline
    assert audit.headline.endswith("apply_policy(model, only=['0.weight', '2.weight']) repairs it.")


def test_what_leaves_them_alike_does_not_repair_them():
    """Whether units stay alike is probed on the copy, too: zeros do not repair a constant."""
    audit = audit_model(constant(0.1), batch(), suggest=["zeros", "he"])

    assert [(repair.name, repair.works) for repair in audit.repairs] == [
        ("he", True),
        ("zeros", False),
    ]
    assert "does not repair it" in audit.repairs[1].reason


def test_the_text(exploding):
    """The table comes first, the outcome last; no sentence is wider than a terminal."""
    table, *others = str(exploding).split("\n\n")

    assert table == exploding.signal.table
    assert " ".join(others[-1].split()) == exploding.headline
    assert others[-1].splitlines()[-1] == 'apply_policy(model, "depth_scaled") repairs it.'
    assert max(len(line) for part in others for line in part.splitlines()) <= 98
    assert 'apply_policy(model, "depth_scaled") repairs it: second moments' in others[1]


def test_json():
    """All that is measured is there, finite, with the verdict on each start."""
    audit = audit_model(filled(plain(12, nn.ReLU), 1e5), batch())
    data = json.loads(audit.to_json())

    assert data["ok"] is False
    assert data["recommended"] == audit.recommended.call
    assert len(data["points"]) == len(audit.signal.points)
    assert [repair["outcome"] for repair in data["repairs"]] == [r.outcome for r in audit.repairs]
    assert data["verdicts"][0]["kind"] == "overflows"
    assert math.isfinite(data["repairs"][0]["seconds"])
    assert Audit("empty", audit.signal).to_json()


def test_the_page_has_the_best_three(exploding, tmp_path):
    """The profile of the model and of the first repairs, the verdict on all that were tried."""
    path = tmp_path / "report.html"
    exploding.write(path)

    text, page = path.read_text(encoding="utf-8"), exploding.page
    assert text == str(page)
    assert list(page.signals) == ["as it is", *(r.name for r in exploding.repairs[:3])]
    assert "<h1>Audit of a net</h1>" in text
    assert text.count("<li class=") == len(exploding.repairs) > 3


class TestCommand:
    """The command `audit`."""

    @pytest.fixture
    def run(self, capsys):
        """Run the command, and return its exit code and what it printed."""
        pytest.importorskip("typer")
        from torch_initpolicy.cli import main

        def run(*arguments: str) -> tuple[int, str]:
            with pytest.raises(SystemExit) as exit_:
                main(["audit", *arguments])
            return exit_.value.code, capsys.readouterr().out

        return run

    def test_the_page_and_the_json(self, run, tmp_path):
        """It writes the page, prints what repairs it, and exits with 1."""
        path = tmp_path / "report.html"
        code, out = run("tests.report.test_audit:build", "--html", str(path), "--json")

        assert code == 1
        assert json.loads(out)["recommended"] == "apply_policy(model)"
        assert len(json.loads(out)["points"]) == 33
        assert "Audit of tests.report.test_audit:build" in path.read_text(encoding="utf-8")

    def test_the_terminal(self, run):
        """The last line says what to write."""
        code, out = run("tests.report.test_audit:build", "--budget", "0")

        assert code == 1
        assert out.strip().endswith("apply_policy(model) repairs it.")
        assert "not tried within the budget" in " ".join(out.split())

    def test_a_folder_that_is_not_there(self, run, tmp_path):
        """It is refused before any work is done."""
        assert (
            run("tests.report.test_audit:build", "--html", str(tmp_path / "no" / "report.html"))[0]
            == 2
        )


def test_the_loss_decides_what_stays_alike():
    """Units that only another loss would tell apart are found under the one that was given."""
    model = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 4, bias=False))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(generator=generator)
        model[2].weight[:2] = 0.5
    x = torch.randn(32, 8, generator=generator)
    apart = audit_model(model, x, budget=0)
    alike = audit_model(
        model, x, loss_fn=lambda y: (y[:, 2:] ** 2).sum() + y[:, :2].sum(), budget=0
    )
    assert apart.symmetry.ok
    assert [finding.name for finding in alike.symmetry.of("tied")] == ["2.weight"]


def test_a_receipt_is_on_the_page():
    """What started the model can be read there, and reproduces it."""
    model = nn.Linear(64, 8)
    receipt = apply_policy(model, seed=7)
    audit = audit_model(model, receipt=receipt)
    assert audit.receipt is receipt
    assert audit.page.receipt == receipt.to_json()
    assert "64 inputs (64x64); policy 'auto', seed 7" in audit.page.made
    assert audit_model(model).page.receipt is None
