"""Every historical defect of "implementation A does not start like B" is found, and nothing else.

Each defect is written into a copy of a model; the healthy pair beside it must pass.
"""

import copy
import json
import math

import pytest
import timm
import torch
from torch import nn

from torch_initpolicy import compare_inits, plan_policy, skip_init
from torch_initpolicy.errors import ArgumentError
from torch_initpolicy.testing import assert_same_init, assert_untouched


class Block(nn.Module):
    """A block with the parts that implementations get wrong."""

    def __init__(self, width=64, *, fused=True):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        if fused:
            self.qkv = nn.Linear(width, 3 * width)
        else:
            self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)
        self.modulation = nn.Linear(width, 6 * width)
        self.scale = nn.Parameter(torch.full((width,), 1e-5))
        self.dt_bias = nn.Parameter(torch.linspace(-6.9, -2.3, width))
        self.table = nn.Embedding(100, width, padding_idx=0)
        self.head = nn.Linear(width, 100, bias=False)
        self.register_buffer("angles", torch.linspace(0, 1, width))
        self.start()

    def start(self):
        """Draw as the reference does."""
        for name, parameter in self.named_parameters():
            if name.endswith("weight") and parameter.dim() == 2:
                nn.init.trunc_normal_(parameter, std=0.02, a=-0.04, b=0.04)
        nn.init.normal_(self.out.weight, std=0.02 / math.sqrt(24))
        nn.init.zeros_(self.modulation.weight)
        nn.init.normal_(self.head.weight, std=0.02)
        with torch.no_grad():
            self.table.weight[0] = 0


def dt_bias_zero(net):
    """Mamba's time-step bias at zero."""
    nn.init.zeros_(net.dt_bias)


def modulation_drawn(net):
    """adaLN-zero that is not zero."""
    nn.init.normal_(net.modulation.weight, std=0.02)


def fused_fans(net):
    """A fused projection drawn with Xavier over the packed matrix."""
    nn.init.xavier_normal_(net.qkv.weight)


def one_over_root_width(net):
    """Std `1 / sqrt(d)` in place of 0.02."""
    nn.init.normal_(net.head.weight, std=64**-0.5)


def no_residual_scale(net):
    """The output projection without `1 / sqrt(2 L)`."""
    nn.init.normal_(net.out.weight, std=0.02)


def layer_scale_reset(net):
    """LayerScale at 1."""
    nn.init.ones_(net.scale)


def uniform_for_normal(net):
    """A uniform of the same standard deviation."""
    nn.init.uniform_(net.head.weight, -0.02 * 3**0.5, 0.02 * 3**0.5)


def not_truncated(net):
    """A normal where the reference truncates."""
    nn.init.normal_(net.qkv.weight, std=0.0176)


def padding_drawn(net):
    """A padding row that is not zero."""
    nn.init.normal_(net.table.weight, std=0.0176)


def buffer_lost(net):
    """A buffer that was built on the meta device and never computed."""
    net.angles.zero_()


def tied(net):
    """A head tied to the table."""
    net.head.weight = net.table.weight


def not_finite(net):
    """Memory that nobody filled."""
    net.norm.bias.data.fill_(math.nan)


DEFECTS = {
    dt_bias_zero: "dt_bias",
    modulation_drawn: "modulation.weight",
    fused_fans: "qkv.weight",
    one_over_root_width: "head.weight",
    no_residual_scale: "out.weight",
    layer_scale_reset: "scale",
    uniform_for_normal: "head.weight",
    not_truncated: "qkv.weight",
    padding_drawn: "table.weight",
    buffer_lost: "angles",
    tied: "table.weight",
    not_finite: "norm.bias",
}


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda f: f.__name__)
def test_a_defect_is_found(defect):
    """The tensor with the defect is named, and no other one but its ties."""
    mine, reference = Block(), Block()
    defect(mine)
    names = {row.mine for row in compare_inits(mine, reference).different}

    assert DEFECTS[defect] in names
    assert len(names) == 1


def test_equal_starts_pass():
    """Of 60 pairs of equal starts none is said to differ."""
    alarms = [str(compare_inits(Block(16), Block(16))) for _ in range(60)]

    assert [alarm for alarm in alarms if ", 0 differ" not in alarm] == []


def test_other_names_and_packing():
    """A fused projection is compared with the three it packs; a defect in one of them is found."""
    mine, reference = Block(fused=True), Block(fused=False)
    before = compare_inits(mine, reference)
    nn.init.normal_(reference.k.weight, std=0.1)
    after = compare_inits(mine, reference)

    assert before.ok
    assert [row.reference for row in after.different] == ["q.weight + k.weight + v.weight"]


def test_against_a_plan():
    """A model is compared with what a plan would draw; what the plan keeps is not compared."""
    net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64))
    plan = plan_policy(net, "he")
    before = compare_inits(net, plan)
    plan.apply(seed=0)

    assert {row.mine for row in before.different} >= {"0.weight", "2.weight"}
    assert compare_inits(net, plan).ok


def test_skipped_weights_are_compared_by_what_would_be_drawn():
    """A model built under `skip_init` is compared without being drawn."""
    with skip_init():
        skipped = nn.Linear(64, 64)
    drawn = nn.Linear(64, 64)
    nn.init.normal_(drawn.weight)

    assert compare_inits(skipped, nn.Linear(64, 64)).ok
    assert not compare_inits(skipped, drawn).ok


def test_a_real_model_against_another_release():
    """Of timm's ResNet with and without zero-initialised last norms just those are named."""
    mine = timm.create_model("test_resnet")
    reference = timm.create_model("test_resnet", zero_init_last=False)
    names = {row.mine for row in compare_inits(mine, reference).different}

    last = {"layer1.0.bn2", "layer2.0.bn2", "layer3.0.bn3", "layer4.0.bn2"}
    assert names == {f"{name}.weight" for name in last}


def test_random_parametrisations_pass():
    """A spectral norm gives each draw a scale of its own; what was drawn is compared."""
    pairs = [
        [nn.utils.spectral_norm(nn.Linear(64, 64)) for _ in range(2)],
        [nn.utils.parametrizations.spectral_norm(nn.Linear(64, 64)) for _ in range(2)],
        [nn.utils.parametrizations.weight_norm(nn.Linear(64, 64)) for _ in range(2)],
    ]

    assert [compare_inits(*pair).ok for pair in pairs] == [True] * 3


def test_models_stay_as_they_are():
    """Neither model changes."""
    mine, reference = Block(), Block()
    with assert_untouched(mine), assert_untouched(reference):
        compare_inits(mine, reference)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (nn.Linear(2, 2, device="meta"), "'weight' first: materialize it"),
        (nn.LazyLinear(2), "run its lazy layers"),
        ("resnet50", "must be an nn.Module or a Plan"),
    ],
    ids=["meta", "lazy", "name"],
)
def test_what_has_no_values(given, message):
    """What has no values is refused, with what to do."""
    with pytest.raises(ArgumentError, match=message):
        compare_inits(given, nn.Linear(2, 2))


def test_assertion_and_json():
    """The assertion lists what differs, the JSON holds all rows."""
    mine, reference = Block(), Block()
    layer_scale_reset(mine)
    data = json.loads(compare_inits(mine, reference).to_json())

    assert not data["ok"]
    assert len(data["rows"]) == sum(1 for _ in mine.parameters()) + 1
    with pytest.raises(AssertionError, match="scale: constant: constant 1 against constant 1e-05"):
        assert_same_init(mine, reference)
    assert_same_init(reference, copy.deepcopy(reference))
