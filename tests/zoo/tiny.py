"""Tiny models of transformers and diffusers, built from their own configurations without memory.

The sizes of a configuration are made small, whatever they are called; what cannot be built so, or
stays large, is left out.
"""

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import torch
from torch import nn

from tests.zoo.catalogue import order

_TWO, _WIDTH = 2, 32
SMALL: Mapping[str, int] = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "embed_dim", "dim"), _WIDTH),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 1),
    **dict.fromkeys(("encoder_layers", "decoder_layers"), 1),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), _TWO),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), _TWO),
    **dict.fromkeys(("num_key_value_heads", "num_experts", "num_local_experts"), _TWO),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "encoder_ffn_dim", "d_ff"), 64),
    **dict.fromkeys(("decoder_ffn_dim", "vocab_size"), 64),
    **dict.fromkeys(("max_position_embeddings", "n_positions"), 64),
    **dict.fromkeys(("d_kv", "head_dim"), 16),
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "image_size": 32,
    "patch_size": 8,
}

MOST = 3_000_000
"""Elements beyond which a model is not tiny."""

SAMPLE = (
    *("albert", "bart", "clip_vision_model", "gemma2", "gpt2", "llama", "mixtral", "t5"),
    *("DiTTransformer2DModel", "UNet2DModel"),
)
"""Models that are tried in every run of the suite."""

DIFFUSERS: Mapping[str, Mapping[str, Any]] = {
    "UNet2DModel": {"sample_size": 16, "block_out_channels": (32, 32), "layers_per_block": 1,
                    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
                    "up_block_types": ("AttnUpBlock2D", "UpBlock2D")},
    "AutoencoderKL": {"block_out_channels": (32,), "sample_size": 16, "norm_num_groups": 8},
    "VQModel": {"block_out_channels": (32,), "norm_num_groups": 8, "num_vq_embeddings": 16},
    "DiTTransformer2DModel": {"num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 1,
                              "sample_size": 8, "num_embeds_ada_norm": 10},
    "UNet1DModel": {"sample_size": 32, "block_out_channels": (32, 32, 64)},
    "PriorTransformer": {"num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 1,
                         "embedding_dim": 16},
}  # fmt: skip
"""Models of diffusers, with what makes them tiny."""


@cache
def configurations() -> Mapping[str, type]:
    """Return the configurations of transformers that have a base model of one part, by name."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_MAPPING

    known = {name: CONFIG_MAPPING[name] for name in sorted(CONFIG_MAPPING)}
    return {name: kind for name, kind in known.items() if kind in MODEL_MAPPING}


def build(name: str) -> nn.Module | None:
    """Build a tiny model on the meta device; None where it cannot be made tiny.

    Args:
        name: Name of a model type of transformers, or a class of diffusers.
    """
    try:
        with torch.device("meta"):
            model = _of_diffusers(name) if name in DIFFUSERS else _of_transformers(name)
    except Exception:  # noqa: BLE001 - configurations refuse sizes in many ways
        return None
    return model if sum(p.numel() for p in model.parameters()) <= MOST else None


def _of_transformers(name: str) -> nn.Module:
    from transformers import AutoModel

    kind = configurations()[name]
    usual = kind()
    return AutoModel.from_config(kind(**{k: v for k, v in SMALL.items() if k in dir(usual)}))


def _of_diffusers(name: str) -> nn.Module:
    import diffusers

    model: nn.Module = getattr(diffusers, name)(**DIFFUSERS[name])
    return model


def names(option: str) -> Iterator[str]:
    """Yield the models that `--zoo` asks for: the sample, a share, or with `all` every third.

    A third of some 600 keeps the time of the whole zoo within bounds.
    """
    if option == "sample":
        yield from SAMPLE
        return
    share, _, shares = ("3/3" if option == "all" else option).partition("/")
    every = (*DIFFUSERS, *configurations())
    yield from (name for name in every if order(name) % int(shares) == int(share) - 1)
