"""Thirty well-known models as their libraries start them: plans, audits, pictures.

    python examples/experiments/known_models.py --out docs/gallery

Models of timm and torchvision are as they come, but for the size of some images; those of
transformers have the architecture of their name, two layers and a width of 64.
"""

import html
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import timm
import torch
import torchvision
import transformers
from common import options, report, table
from gallery import LEGEND, shown, verdict
from torch import Tensor, nn

from torch_initpolicy import Audit, Plan, audit_model, plan_policy

TIMM = {
    **dict.fromkeys(
        ("resnet18", "resnet50", "wide_resnet50_2", "densenet121", "efficientnet_b0", "nf_resnet26",
         "mobilenetv3_small_100", "regnety_002", "convnext_atto", "poolformer_s12",
         "xcit_nano_12_p16_224"), 64,
    ),
    **dict.fromkeys(
        ("vit_tiny_patch16_224", "deit_tiny_patch16_224", "mixer_s32_224", "levit_128s"), 224
    ),
}  # fmt: skip
"""Names, and how many pixels an image is wide."""

TORCHVISION = {
    "alexnet": 96, "vgg11": 64, "vgg11_bn": 64, "squeezenet1_1": 64, "shufflenet_v2_x0_5": 64,
}  # fmt: skip

SMALL = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 128, "vocab_size": 100, "bos_token_id": 0, "eos_token_id": 0,
    "pad_token_id": 0, "d_model": 64, "d_ff": 128, "num_layers": 2, "num_heads": 4,
    "decoder_start_token_id": 0,
}  # fmt: skip
"""Sizes by the names that configurations have for them."""

TRANSFORMERS = ("gpt2", "bert", "roberta", "llama", "mistral", "qwen2", "gpt_neox", "opt", "mamba",
                "albert")  # fmt: skip


Built = tuple[nn.Module, Tensor]
"""A model, and inputs for it."""


def models() -> dict[str, Callable[[], Built]]:
    """Return what builds each model."""
    return {
        **{f"{name} (timm)": partial(of_images, timm.create_model, name) for name in TIMM},
        **{
            f"{name} (torchvision)": partial(of_images, torchvision.models.get_model, name)
            for name in TORCHVISION
        },
        **{f"{kind} (transformers)": partial(of_language, kind) for kind in TRANSFORMERS},
    }


def of_images(build: Callable[[str], nn.Module], name: str) -> Built:
    """Build a model that reads images."""
    size = {**TIMM, **TORCHVISION}[name]
    return build(name), torch.randn(4, 3, size, size)


def of_language(kind: str) -> Built:
    """Build a small language model of a kind."""
    config = transformers.AutoConfig.for_model(kind)
    for name, size in SMALL.items():
        if hasattr(config, name):
            setattr(config, name, size)
    masked = kind in ("albert", "bert", "roberta")
    family = transformers.AutoModelForMaskedLM if masked else transformers.AutoModelForCausalLM
    return family.from_config(config), torch.randint(100, (4, 16))


def looked_at(names: Iterable[str]) -> Iterator[tuple[str, Plan, Audit]]:
    """Plan and audit models."""
    builds = models()
    for name in names:
        torch.manual_seed(0)
        model, inputs = builds[name]()
        yield name, plan_policy(model, example_inputs=inputs), audit_model(model, inputs)


def main(*, smoke: bool = False, out: Path | None = None) -> list[str]:
    """Look at all models; write one page, and a picture of each."""
    few = ("squeezenet1_1 (torchvision)", "gpt2 (transformers)")
    rows, pages = [], []
    for name, plan, audit in looked_at(few if smoke else models()):
        rows.append((name, len(plan), verdict(audit)))
        folded = f"<pre>{html.escape(str(plan))}</pre>".replace("\n\n", "\n&nbsp;\n")
        plan_of = f"<details><summary>Plan under auto</summary>{folded}</details>"
        pages.append(f"{shown(name, audit, out)}\n\n{plan_of}")
    summary = table(("model", "parameters", "what is said of it, as its library starts it"), rows)
    report("known_models", "\n\n".join((f"# Well-known models\n\n{_HEAD}", summary, *pages)), out)
    return pages


_HEAD = (
    "Made by `python examples/experiments/known_models.py --out docs/gallery`. Columns are\n"
    f"{LEGEND} Inputs are random, four at a time; models are in\n"
    "training mode. Models of transformers have two layers and a width of 64."
)


if __name__ == "__main__":
    main(**vars(options(__doc__)))
