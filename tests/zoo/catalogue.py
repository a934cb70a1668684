"""The models of the zoo tests: which, in which order, and what is known to be special about some.

No model is excluded.
"""

import hashlib
from fnmatch import fnmatchcase
from functools import cache

import timm
import torchvision

NOT_ON_META = {
    "torchvision:*rcnn*": "proposals are chosen by value: torch.nonzero has no meta kernel",
    "torchvision:fcos*": "likewise detections",
    "torchvision:retinanet*": "likewise",
    "torchvision:ssd*": "likewise",
}
"""Models whose forward pass cannot run on meta tensors, as globs, with the reason.

They are read from a run on small real inputs instead. Tested in both directions: what matches must
still fail on meta, and what does not match must not.
"""

REPRESENTATIVES = tuple(
    f"timm:{name}"
    for name in (
        "caformer_s18 cait_xxs24_224 coatnet_pico_rw_224 convit_tiny convmixer_768_32 "
        "convnext_atto convnextv2_atto crossvit_tiny_240 davit_tiny deit_tiny_patch16_224 "
        "densenet121 dla46x_c edgenext_xx_small efficientnet_b0 efficientvit_m0 "
        "eva02_tiny_patch14_224 fastvit_t8 gcvit_xxtiny ghostnet_050 gmlp_ti16_224 "
        "hgnetv2_b0 hiera_tiny_224 inception_next_atto levit_128s mambaout_femto "
        "maxvit_pico_rw_256 mixer_s32_224 mobilenetv3_small_050 mobilevitv2_050 nest_tiny "
        "nf_regnet_b0 pit_ti_224 poolformer_s12 pvt_v2_b0 regnety_002 repvgg_a0 resnet18 "
        "rexnet_100 sequencer2d_s starnet_s1 swin_tiny_patch4_window7_224 tnt_s_legacy_patch16_224 "
        "visformer_tiny xcit_nano_12_p16_224"
    ).split()
)
"""Small models, one of a family, that are also initialised, verified and run."""

SMALL = tuple(
    f"torchvision:{name}"
    for name in (
        "densenet121 efficientnet_b0 googlenet lraspp_mobilenet_v3_large mnasnet0_5 mobilenet_v2 "
        "mobilenet_v3_small regnet_y_400mf resnet18 shufflenet_v2_x0_5 squeezenet1_1 swin_t"
    ).split()
)
"""Small models of torchvision, one of a family, that are built for real."""


def order(source: str) -> int:
    """Number a model by a hash of its name, the same in every process and version."""
    return int.from_bytes(hashlib.blake2b(source.encode(), digest_size=8).digest(), "big")


@cache
def every_model() -> tuple[str, ...]:
    """List all models of both libraries in the stable random order of their hashes."""
    names = {
        "timm": timm.list_models(),
        "torchvision": torchvision.models.list_models(),
    }
    return tuple(sorted((f"{zoo}:{name}" for zoo in names for name in names[zoo]), key=order))


def one_of_each_family() -> tuple[str, ...]:
    """Pick one model of each of timm's modules, and a tenth of torchvision."""
    families = (timm.list_models(module=module) for module in timm.list_modules())
    picked = {min((f"timm:{name}" for name in names), key=order) for names in families if names}
    return tuple(s for s in every_model() if s in picked or _is_torchvision_tenth(s))


def _is_torchvision_tenth(source: str) -> bool:
    return source.startswith("torchvision:") and order(source) % 10 == 0


def runs_on_meta(source: str) -> bool:
    """Say whether a model's forward pass can run on meta tensors."""
    return not any(fnmatchcase(source, glob) for glob in NOT_ON_META)


def selected(option: str) -> tuple[str, ...]:
    """List the models that `--zoo` asks for: `sample`, `all`, or a share such as `2/4`."""
    if option == "sample":
        return one_of_each_family()
    share, _, shares = ("1/1" if option == "all" else option).partition("/")
    return tuple(s for s in every_model() if order(s) % int(shares) == int(share) - 1)


def representatives(option: str) -> tuple[str, ...]:
    """List the representatives that `--zoo` asks for: with `sample` every third."""
    if option == "sample":
        return tuple(source for source in REPRESENTATIVES if order(source) % 3 == 0)
    return tuple(source for source in REPRESENTATIVES if source in selected(option))


def constructed(option: str) -> tuple[str, ...]:
    """List small models of both libraries that are built for real: with `sample` four of them."""
    if option == "sample":
        return representatives(option)[::5] + SMALL[-2:-1]
    return representatives(option) + tuple(s for s in SMALL if s in selected(option))
