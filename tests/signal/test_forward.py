"""Verdicts on the way forward: nets that cannot train are told why, others are not."""

import pytest
import torch
from torch import nn

from tests.signal.nets import HE, batch, fill, fill_images, kinds, kinds_and_places, plain
from torch_initpolicy.signal.run import audit_signal

pytestmark = pytest.mark.usefixtures("one_thread")


SICK = {
    "vanishes": (fill(plain(30), 1.0), {"vanishes", "gradient vanishes"}),
    "explodes": (fill(plain(30), 2.2), {"explodes", "gradient explodes"}),
    "overflows": (fill(plain(30), 1e3), {"overflows"}),
    "collapses": (
        fill(plain(20, activation=nn.Sigmoid), 1.0),
        {"collapses", "gradient vanishes"},
    ),
    "chaos": (fill(plain(100, activation=nn.Tanh), 5 / 3), {"gradient explodes"}),
}


@pytest.mark.parametrize("name", SICK)
def test_known_pathologies_are_named(name):
    """Nets that cannot train are told why."""
    model, expected = SICK[name]
    assert set(kinds(model, batch(32, 128))) == expected


HEALTHY = {
    "he": fill(plain(20), HE),
    "shallow": fill(plain(1), 0.1),
    "tanh": fill(plain(20, activation=nn.Tanh), 1.03),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_healthy_nets_are_left_in_peace(name):
    """Nothing is said of nets that train."""
    assert audit_signal(HEALTHY[name], batch(32, 128)).ok


def test_dead_units_are_found():
    """A bias that silences most of a layer is reported at its activation, with the fraction."""
    model = fill(plain(3, 64), HE)
    nn.init.constant_(model[2].bias[:48], -100.0)
    verdict = next(v for v in audit_signal(model, batch(64, 64)).verdicts if v.kind == "dies")
    assert verdict.where == "3:relu"
    assert "75%" in verdict.reason


def test_a_branch_may_start_at_zero():
    """A residual branch whose last weight is zero says nothing wrong: the skip carries on."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.last = nn.Linear(32, 32), nn.Linear(32, 32)
            nn.init.zeros_(self.last.weight)
            nn.init.zeros_(self.last.bias)

        def forward(self, x):
            return x + self.last(torch.relu(self.inner(x)))

    model = nn.Sequential(nn.Linear(32, 32), *(Block() for _ in range(6)), nn.Linear(32, 4))
    assert audit_signal(model, batch(16, 32)).ok


def test_vanishing_names_the_first_place_and_the_rate():
    """The verdict has the layer from where less than a tenth is left, and the factor a layer."""
    verdict = audit_signal(fill(plain(30), 1.0), batch(32, 128)).verdicts[0]
    layer = int(verdict.where.split(":")[0].split(".")[0])
    assert 4 <= layer <= 10  # a half at each layer: below a tenth after the fourth
    assert "times 0.49 from one weight to the next" in verdict.reason
    assert "signal" in verdict.advice


def test_layers_of_zeros_vanish():
    """A net that starts at zero altogether is not taken for one whose size does not change."""
    model = plain(4)
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    assert kinds(model, batch(32, 128)) == ["vanishes"]


def test_a_vanished_signal_does_not_die_as_well():
    """Numbers that are too small for their dtype are zeros, but no dead units."""
    found = kinds(fill(plain(50, activation=nn.Tanh), 0.1), batch(32, 128))
    assert found == ["vanishes", "gradient vanishes"]


def test_small_branches_do_not_wander():
    """Behind small branches, as a ViT starts with, the sum is the signal; a plain net has none."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.fc = nn.LayerNorm(64), nn.Linear(64, 64)

        def forward(self, x):
            return x + self.fc(self.norm(x))

    blocks = [Block() for _ in range(6)]
    model = fill(nn.Sequential(nn.Linear(64, 64), *blocks, nn.Linear(64, 4)), 1.0)
    for block in blocks:
        nn.init.ones_(block.norm.weight)
        nn.init.normal_(block.fc.weight, std=0.005)
    assert kinds(model, batch(32, 64)) == []
    assert kinds(nn.Sequential(model[0], *(b.fc for b in blocks[:1]), model[-1]), batch(32, 64))


def test_pools_may_make_noise_alike():
    """The mean of noise over an image is always the same: that is no collapse of the model."""
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    convolutions = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU()]
    model = nn.Sequential(*convolutions, pool, nn.Linear(8, 4))
    signal = audit_signal(fill_images(model), batch(4, 3, 256, 256))
    pooled = next(point for point in signal.points if "pool" in point.op)
    assert pooled.likeness > 0.999
    assert signal.ok


def test_a_complex_signal_that_vanishes_is_said():
    """Complex layers of nearly nothing are judged like real ones."""
    model = nn.Sequential(*(nn.Linear(8, 8, bias=False, dtype=torch.complex64) for _ in range(4)))
    for parameter in model.parameters():
        nn.init.constant_(parameter, 1e-5)
    signal = audit_signal(model, torch.complex(batch(32, 8), batch(32, 8)))
    assert "vanishes" in {verdict.kind for verdict in signal.verdicts}
    assert len(signal.weighted) == 4


@pytest.mark.parametrize(("activation", "factor"), [(nn.Tanh, 25.0), (nn.Sigmoid, 60.0)])
def test_saturated_activations(activation, factor):
    """Weights that push a bounded activation to its ends are told at that activation."""
    net = fill(plain(2, 64, activation), 1.0)
    assert "saturates" not in kinds(net, batch(64, 64))
    with torch.no_grad():
        net[2].weight.mul_(factor)
    assert kinds_and_places(net, batch(64, 64))["saturates"].startswith("3:")


def test_a_plain_net_as_torch_starts_it():
    """Eleven layers that torch starts shrink the signal to its biases; two layers do not.

    After 200 steps of Adam on digits nets of nine and more reach 50 to 87 % of what they do after
    `apply_policy`, nets of two all of it.
    """
    torch.manual_seed(0)
    deep, shallow = (plain(depth, 48, nn.Tanh) for depth in (11, 2))

    assert "collapses" in {verdict.kind for verdict in audit_signal(deep, batch(64, 48)).verdicts}
    assert audit_signal(shallow, batch(64, 48)).ok


class Sine(nn.Module):
    """A layer of a SIREN."""

    def __init__(self, fan_in: int, fan_out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(fan_in, fan_out)

    def forward(self, x):
        return torch.sin(30 * self.linear(x))


@pytest.mark.parametrize(("factor", "ok"), [(1.0, True), (2.0, True), (16.0, False)])
def test_a_sine_that_hashes_its_inputs(factor, ok):
    """Phases that neighbours do not share are told at their sine; a published start is fine."""
    generator = torch.Generator().manual_seed(0)
    net = nn.Sequential(Sine(2, 64), Sine(64, 64), nn.Linear(64, 1))
    with torch.no_grad():
        net[0].linear.weight.uniform_(-factor / 2, factor / 2, generator=generator)
        net[1].linear.weight.uniform_(-0.0102, 0.0102, generator=generator)
    x = torch.rand(256, 2, generator=generator) * 2 - 1

    assert kinds_and_places(net, x) == ({} if ok else {"saturates": "0:sin"})


def test_sines_of_the_inputs_alone_are_nobodys_fault():
    """Features of high frequency that no weight makes are meant."""

    class Features(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = fill(plain(1, 64), HE)

        def forward(self, x):
            return self.net(torch.sin(1e3 * x))

    assert kinds_and_places(Features(), batch(64, 64)) == {}


@pytest.mark.parametrize(("std", "found"), [(0.2, False), (0.0, True)])
def test_a_faint_head_over_a_signal_behind_biases(std, found):
    """Seven layers grow back under a head that lets the gradient through, and not under zeros.

    After 200 steps of Adam on digits: 93 % of what nets do that `apply_policy` has started, and 69.
    """
    torch.manual_seed(0)
    net = plain(7, 48, nn.Tanh)
    nn.init.normal_(net[-1].weight, std=std)
    assert ("collapses" in kinds(net, batch(64, 48))) is found


class Averaged(nn.Module):
    """Layers whose outputs are averaged over the neighbours on a ring of nodes, and a shortcut."""

    def __init__(self, depth: int, nodes: int = 64) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(32, 32) for _ in range(depth))
        self.head = nn.Linear(32, 4)
        ring = torch.eye(nodes) + torch.eye(nodes).roll(1, 0) + torch.eye(nodes).roll(7, 0)
        ring[0] = 1
        degrees = ring.sum(1).rsqrt()
        self.register_buffer("averages", degrees[:, None] * ring * degrees)

    def forward(self, x):
        for layer in self.layers:
            x = torch.relu(self.averages @ layer(x))
        return self.head(x)


@pytest.mark.parametrize(("depth", "found"), [(4, False), (40, True)])
def test_nodes_of_a_graph_that_become_the_same(depth, found):
    """Many averages over neighbours leave of each node how many it has; a few do not."""
    net = fill(Averaged(depth), 2.5)
    assert ("collapses" in kinds(net, batch(64, 32))) is found


@pytest.mark.parametrize(("width", "found"), [(16, True), (256, False)])
def test_a_plain_net_that_leaves_one_direction(width, found):
    """Of thirty narrow layers the multiples of one vector are left, of wide ones more.

    After 200 steps of Adam on digits nets of 16 units reach half of what nets of two layers do.
    """
    net = fill(plain(30, width), HE)
    assert ("collapses" in kinds(net, batch(64, width))) is found


def test_widths_that_no_start_helps():
    """Where a plain ReLU net is born dead in most draws, that is all that is said of it."""
    verdicts = [audit_signal(fill(plain(depth, 4), HE), batch(32, 4)).verdicts for depth in (24, 4)]
    (only,), wide = verdicts
    assert (only.kind, only.structural) == ("dies", True)
    assert "70.3%" in only.reason
    assert not any(verdict.structural for verdict in wide)


def test_a_mild_softmax_is_no_collapse():
    """Mixing shares that hardly depend on the input, as at the start, leave inputs different."""

    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.router = nn.Linear(64, 4)
            self.experts = nn.ModuleList(nn.Linear(64, 64) for _ in range(4))

        def forward(self, x):
            made = torch.stack([torch.relu(expert(x)) for expert in self.experts], -1)
            return (made * self.router(x).softmax(-1)[:, None]).sum(-1)

    net = fill(nn.Sequential(*(Experts() for _ in range(3)), nn.Linear(64, 4)), HE)
    for experts in net[:-1]:
        nn.init.normal_(experts.router.weight, std=1e-3)
    assert "collapses" not in kinds(net, batch(64, 64))
