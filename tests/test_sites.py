"""Sites: every parameter tensor once, under its canonical name, with its ties."""

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.utils import parametrizations, spectral_norm, weight_norm

from torch_initpolicy.sites import sites


def names(model: nn.Module) -> list[str]:
    """Return the canonical names of a model."""
    return [site.name for site in sites(model)]


class TestNames:
    def test_are_those_of_named_parameters(self):
        """A plain model's sites have the names of `named_parameters()`, in order."""
        model = nn.Transformer(8, 2, 1, 1, 16, batch_first=True)

        assert names(model) == [name for name, _ in model.named_parameters()]

    @pytest.mark.parametrize(
        "wrap",
        [
            nn.DataParallel,
            torch.compile,
            checkpoint_wrapper,
            lambda m: nn.DataParallel(torch.compile(m)),
        ],
        ids=["parallel", "compiled", "checkpointed", "both"],
    )
    def test_wrappers_are_looked_through(self, wrap):
        """The prefixes of wrappers are no part of a name."""
        model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2)))

        assert names(wrap(model)) == names(model)

    def test_inner_wrappers_are_looked_through(self):
        """A compiled block inside a model does not change the names below it."""
        model = nn.Sequential(nn.Linear(2, 2), torch.compile(nn.Sequential(nn.Linear(2, 2))))

        assert names(model) == ["0.weight", "0.bias", "1.0.weight", "1.0.bias"]

    def test_a_child_called_module_is_no_wrapper(self):
        """Only a wrapper's own prefix is dropped, not a child of the same name."""

        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.module = nn.Linear(2, 2)

        assert names(Net()) == ["module.weight", "module.bias"]

    @pytest.mark.parametrize(
        "name", ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"]
    )
    def test_a_child_beside_others_is_no_wrapped_one(self, name):
        """A wrapper holds one module and nothing else: no child and no parameter gets lost."""
        for other in nn.Linear(2, 2), nn.Parameter(torch.ones(2)):
            model = nn.Module()
            model.add_module(name, nn.Linear(2, 2, bias=False))
            model.other = other

            assert set(names(model)) == {name for name, _ in model.named_parameters()}


class TestTies:
    def test_are_one_site_with_all_names(self):
        """A tensor under several names is one site; the first name is canonical."""
        model = nn.ModuleDict({"embed": nn.Embedding(5, 3), "head": nn.Linear(3, 5, bias=False)})
        model["head"].weight = model["embed"].weight
        (site,) = sites(model)

        assert site.names == ("embed.weight", "head.weight")
        assert (site.kind, site.role) == ("Embedding", "embedding")

    def test_of_whole_modules(self):
        """A module registered twice gives each of its tensors two names."""
        shared = nn.Linear(2, 2)
        found = sites(nn.Sequential(shared, nn.ReLU(), shared))

        assert [site.names for site in found] == [("0.weight", "2.weight"), ("0.bias", "2.bias")]


class TestParametrised:
    @pytest.mark.parametrize(
        ("build", "storage", "count"),
        [
            (lambda: parametrizations.weight_norm(nn.Linear(3, 4)), "parametrized", 2),
            (lambda: parametrizations.spectral_norm(nn.Linear(3, 4)), "parametrized", 1),
            (lambda: parametrizations.orthogonal(nn.Linear(3, 4)), "parametrized", 1),
            (lambda: weight_norm(nn.Linear(3, 4)), "weight_norm", 2),
            (lambda: spectral_norm(nn.Linear(3, 4)), "spectral_norm", 1),
        ],
        ids=["weight_norm", "spectral_norm", "orthogonal", "old_weight_norm", "old_spectral_norm"],
    )
    @pytest.mark.filterwarnings("ignore:.*is deprecated in favor of:FutureWarning")
    def test_are_folded_under_the_weight(self, build, storage, count):
        """A parametrised weight is one site of its own name and shape."""
        found = {site.name: site for site in sites(build())}
        weight = found["weight"]

        assert set(found) == {"weight", "bias"}
        assert (weight.shape, weight.role, weight.storage) == ((4, 3), "weight", storage)
        assert len(weight.parameters) == count

    def test_looking_updates_nothing(self):
        """Spectral norm's power iteration does not run because somebody looks at a site."""
        layer = parametrizations.spectral_norm(nn.Linear(3, 4))
        before = {name: buffer.clone() for name, buffer in layer.named_buffers()}
        sites(layer)

        assert all(torch.equal(buffer, before[name]) for name, buffer in layer.named_buffers())


class TestSpecialCases:
    def test_lazy_parameters_have_no_shape(self):
        """What has not seen a forward pass says so."""
        found = {site.name: site for site in sites(nn.LazyLinear(3))}

        assert found["weight"].lazy
        assert found["weight"].shape == ()

    def test_frozen_and_integer_parameters_are_sites(self):
        """Nothing is left out: the plan decides what becomes of them."""
        model = nn.Linear(2, 2)
        model.weight.requires_grad_(requires_grad=False)
        model.index = nn.Parameter(torch.zeros(3, dtype=torch.int64), requires_grad=False)
        found = {site.name: site for site in sites(model)}

        assert not found["weight"].requires_grad
        assert found["index"].dtype is torch.int64

    def test_padding_row_is_known(self):
        """An embedding's padding row comes with its site, counted from the front."""
        (site,) = sites(nn.Embedding(5, 3, padding_idx=-1))

        assert site.padding == 4

    def test_no_parameters(self):
        """A module without parameters has no sites."""
        assert sites(nn.ReLU()) == ()
