"""No model of timm or torchvision, as its own library makes it, starts with a lasting symmetry."""

from fnmatch import fnmatchcase

import pytest
import timm
from torch import nn

from tests.zoo.catalogue import REPRESENTATIVES, selected
from tests.zoo.reading import silenced
from torch_initpolicy import find_symmetry
from torch_initpolicy.integrations.models import build

pytestmark = [pytest.mark.zoo, pytest.mark.usefixtures("one_thread")]

SUSPECTED = (
    "timm:convit_tiny timm:convnextv2_atto timm:cs3darknet_focus_s timm:csatv2 "
    "timm:efficientvim_m1 timm:efficientvit_m0 timm:fastvit_t8 timm:gmlp_ti16_224 "
    "timm:hiera_tiny_224 timm:levit_128s timm:mobilevitv2_050 timm:nf_regnet_b0 timm:regnety_002 "
    "timm:repvit_m0_9 timm:resnet18 timm:sequencer2d_s timm:shvit_s1 timm:swiftformer_xs "
    "torchvision:vit_b_32"
).split()
"""Models that do start with zeros or equal units somewhere, and have to be run to be cleared."""

SHORTENED = {
    "timm:*nfnet_f?": {"depths": (1, 1, 2, 1)},
    "timm:aimv2_*": {"depth": 4},
    "timm:beit*_large_*": {"depth": 4},
    "timm:beit3_giant_*": {"depth": 4},
    "timm:deit3_[hl]*": {"depth": 4},
    "timm:eva*_large_*": {"depth": 4},
    "timm:eva02_enormous_*": {"depth": 4},
    "timm:eva_giant_*": {"depth": 4},
    "timm:flexivit_large": {"depth": 4},
    "timm:levit_*512*": {"depth": (1, 1, 1)},
    "timm:resnetrs???": {"layers": (1, 1, 2, 1)},
    "timm:resnext101_*": {"layers": (1, 1, 2, 1)},
    "timm:samvit_*": {"depth": 4, "img_size": 256},
    "timm:seresnextaa*": {"layers": (1, 1, 2, 1)},
    "timm:swinv2_*": {"depths": (1, 1, 2, 1)},
    "timm:tiny_vit_21m_???": {"depths": (1, 1, 2, 1)},
    "timm:vit_5b_*": {"depth": 4, "num_kv_heads": 16},
    "timm:vit_giant_patch16_sapiens2": {"depth": 4, "num_kv_heads": 12},
    "timm:vit_*giant*_*": {"depth": 4},
    "timm:vit_*gigantic_*": {"depth": 4},
    "timm:vit_7b_*": {"depth": 4},
    "timm:vit_huge_patch1[46]_[!s]*": {"depth": 4},
    "timm:vit_huge_plus_*": {"depth": 4},
    "timm:vit_large_patch*_[!s]*": {"depth": 4},
    "timm:vit_pe_*_large_*": {"depth": 4},
    "timm:vit_so400m_*": {"depth": 4},
}
"""Models that are too large, or too long to run, here with fewer of their equal blocks,
and of the largest images smaller ones."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Search a sample of families, or all that `--zoo` asks for."""
    option = metafunc.config.getoption("zoo")
    few = (*SUSPECTED, *(source for source in REPRESENTATIVES[::4] if source not in SUSPECTED))
    metafunc.parametrize("source", few if option == "sample" else selected(option))


def made_by_its_library(source: str) -> nn.Module:
    """Build a model with its own initial values, of the largest a few blocks of each kind."""
    fewer = next((less for glob, less in SHORTENED.items() if fnmatchcase(source, glob)), None)
    with silenced():
        if fewer is None:
            return build(source)
        return timm.create_model(source.partition(":")[2], **fewer)


def test_nothing_but_harmless(source):
    """Every finding is harmless: whatever is zero or equal at the start breaks by itself."""
    report = find_symmetry(made_by_its_library(source))

    assert [str(f) for f in report.findings if f.verdict != "harmless"] == []
