"""Building a model from its address on the command line."""

import sys

import pytest

from torch_initpolicy.errors import MissingExtraError, UnknownNameError
from torch_initpolicy.integrations.models import build

OWN = """
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 3)

class Factory:
    @staticmethod
    def small():
        return nn.Linear(1, 1)

def text():
    return "no model"

ready = nn.Linear(1, 1)
number = 3
"""


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    """A module of the user's own in the working directory."""
    (tmp_path / "own_networks.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    yield "own_networks"
    sys.modules.pop("own_networks", None)


class TestBuild:
    """Every form of address builds a model."""

    @pytest.mark.parametrize(
        ("source", "kind"),
        [
            ("timm:test_resnet", "ResNet"),
            ("torchvision:squeezenet1_1", "SqueezeNet"),
            ("torchvision:lraspp_mobilenet_v3_large", "LRASPP"),
            ("torch.nn:Identity", "Identity"),
        ],
        ids=lambda value: value,
    )
    def test_address(self, source, kind):
        """A zoo's name or a dotted path builds an untrained model of its kind."""
        assert type(build(source)).__name__ == kind

    @pytest.mark.parametrize(
        ("path", "kind"), [("Net", "Net"), ("Factory.small", "Linear")], ids=lambda value: value
    )
    def test_own_module(self, own_module, path, kind):
        """A module in the working directory is found, and names inside classes too."""
        before = sys.path.copy()

        assert type(build(f"{own_module}:{path}")).__name__ == kind
        assert sys.path == before


class TestErrors:
    """Each wrong address gets one line that says what to write."""

    @pytest.mark.parametrize(
        ("source", "message"),
        [
            ("resnet50", "names no model; write timm:resnet50"),
            ("timm:", "names no model"),
            (":resnet50", "names no model"),
            ("timm:resnet05", "did you mean 'resnet50"),
            ("torchvision:resnet05", "did you mean 'resnet50"),
            ("no_such_package.nets:Net", "no module 'no_such_package' can be imported"),
            ("torch.nn:Lineal", "torch.nn has no 'Lineal'; did you mean 'Linear'"),
        ],
        ids=lambda value: value,
    )
    def test_unknown(self, source, message):
        """What does not exist is refused with the nearest names."""
        with pytest.raises(UnknownNameError, match=message.replace(".", r"\.")):
            build(source)

    @pytest.mark.parametrize(
        ("path", "message"),
        [
            ("text", "builds a str, not a torch.nn.Module"),
            ("number", "is a int, no callable that builds a model"),
            ("ready", "is a Linear, no callable that builds a model"),
        ],
        ids=["wrong-result", "no-callable", "a-model"],
    )
    def test_not_a_builder(self, own_module, path, message):
        """What is found but builds no model is refused."""
        with pytest.raises(UnknownNameError, match=message):
            build(f"{own_module}:{path}")

    @pytest.mark.parametrize("library", ["timm", "torchvision"])
    def test_missing_library(self, library, monkeypatch):
        """Without the library the error names the extra that brings it."""
        monkeypatch.setitem(sys.modules, library, None)

        with pytest.raises(MissingExtraError, match="the extra 'zoo'"):
            build(f"{library}:resnet50")

    def test_a_failing_constructor_keeps_its_error(self):
        """What the model's own constructor raises is passed on."""
        with pytest.raises(TypeError, match="in_features"):
            build("torch.nn:Linear")
