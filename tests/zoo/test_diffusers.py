"""Tiny models of diffusers are read whole: built without numbers, and no inputs are given."""

import pytest
import torch

from tests.zoo.tiny import DIFFUSERS
from torch_initpolicy.sites import sites
from torch_initpolicy.trace.read import read

diffusers = pytest.importorskip("diffusers")

pytestmark = pytest.mark.zoo

_UNET = {
    "sample_size": 16,
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "attention_head_dim": 8,
}
_HEADS = {"num_attention_heads": 2, "attention_head_dim": 16}

READ = DIFFUSERS | {
    "UNet2DConditionModel": _UNET
    | {
        "cross_attention_dim": 24,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    },
    "UNet3DConditionModel": _UNET
    | {
        "cross_attention_dim": 32,
        "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
        "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
    },
    "ControlNetModel": {
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "cross_attention_dim": 24,
        "attention_head_dim": 8,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "conditioning_embedding_out_channels": (16, 32),
    },
    "AutoencoderTiny": {},
    "AutoencoderKLTemporalDecoder": {
        "block_out_channels": (32, 64),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "layers_per_block": 2,
    },
    "T2IAdapter": {"channels": (32, 64), "num_res_blocks": 1},
    "Transformer2DModel": _HEADS
    | {"in_channels": 32, "norm_num_groups": 8, "cross_attention_dim": 24, "num_layers": 1},
    "PixArtTransformer2DModel": _HEADS
    | {"num_layers": 1, "sample_size": 8, "cross_attention_dim": 32, "caption_channels": 24},
    "SD3Transformer2DModel": {
        "sample_size": 16,
        "num_layers": 2,
        "attention_head_dim": 8,
        "num_attention_heads": 4,
        "joint_attention_dim": 32,
        "caption_projection_dim": 32,
        "pooled_projection_dim": 64,
        "pos_embed_max_size": 32,
    },
    "FluxTransformer2DModel": _HEADS
    | {
        "num_layers": 1,
        "num_single_layers": 1,
        "joint_attention_dim": 32,
        "pooled_projection_dim": 32,
        "axes_dims_rope": (4, 4, 8),
        "in_channels": 4,
        "guidance_embeds": True,
    },
    "AuraFlowTransformer2DModel": {
        "sample_size": 16,
        "num_mmdit_layers": 1,
        "num_single_dit_layers": 1,
        "attention_head_dim": 8,
        "num_attention_heads": 4,
        "joint_attention_dim": 32,
        "caption_projection_dim": 32,
        "pos_embed_max_size": 256,
    },
    "WanTransformer3DModel": {
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "text_dim": 16,
        "freq_dim": 32,
        "ffn_dim": 32,
        "num_layers": 1,
        "rope_max_seq_len": 32,
        "in_channels": 4,
        "out_channels": 4,
    },
    "CogVideoXTransformer3DModel": _HEADS
    | {
        "in_channels": 4,
        "out_channels": 4,
        "time_embed_dim": 8,
        "text_embed_dim": 16,
        "num_layers": 1,
        "sample_width": 8,
        "sample_height": 8,
        "sample_frames": 9,
        "max_text_seq_length": 8,
    },
}
"""Models of each kind: networks of diffusion, autoencoders, adapters; pictures and videos."""

UNUSED = {"UNet1DModel": None, "PriorTransformer": {"clip_mean", "clip_std"}}
"""What a forward pass leaves to other methods; None where the tiny model itself refuses to run."""


@pytest.mark.parametrize("name", [name for name in READ if UNUSED.get(name, ()) is not None])
@pytest.mark.filterwarnings("ignore")  # what diffusers says of itself
def test_every_parameter_is_seen(name):
    """The forward pass is traced with inputs that are found, and uses every parameter."""
    architecture = getattr(diffusers, name, None)
    if architecture is None:
        pytest.skip(f"this version of diffusers has no {name}")
    with torch.device("meta"):
        model = architecture(**READ[name])
    found = read(model, sites(model))

    assert (found.evidence, found.parts) == ("traced", ())
    assert found.unused == UNUSED.get(name, set())
