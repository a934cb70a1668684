"""diffusers: what its models take; knows their configurations, imports none of their code."""

from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor, nn

from torch_initpolicy.trace.arguments import floats, integers
from torch_initpolicy.trace.documented import BATCH, SEQUENCE, number
from torch_initpolicy.trace.trees import Call

__all__ = ["declared_inputs", "known_arguments"]

_TEXT_WIDTHS = (
    *("caption_channels", "joint_attention_dim", "cross_attention_dim", "text_embed_dim"),
    *("text_dim", "encoder_hidden_size", "embedding_dim"),
)
"""What configurations call the width of the text that a model is conditioned on."""


def declared_inputs(model: nn.Module) -> Iterator[Call]:
    """Yield nothing: a forward pass says itself what it requires."""
    del model
    yield from ()


def known_arguments(model: nn.Module, call: Call, said: str = "") -> Mapping[str, Sequence[Tensor]]:
    """Return tensors for the arguments that models of diffusers condition on, by name."""
    del call, said
    if not type(model).__module__.startswith("diffusers."):
        return {}
    text = floats(BATCH, SEQUENCE, number(model, *_TEXT_WIDTHS, default=SEQUENCE))
    pooled = floats(
        BATCH, number(model, "pooled_projection_dim", "embedding_dim", default=SEQUENCE)
    )
    channels = number(model, "conditioning_channels", default=3)
    return {
        "timestep": (integers(BATCH),),
        "class_labels": (integers(BATCH),),
        "guidance": (floats(BATCH),),
        "encoder_hidden_states": (text,),
        "pooled_projections": (pooled,),
        "proj_embedding": (pooled,),
        "controlnet_cond": tuple(floats(BATCH, channels, edge, edge) for edge in _EDGES),
        "img_ids": (floats(SEQUENCE, 3),),
        "txt_ids": (floats(SEQUENCE, 3),),
    }


_EDGES = (64, 256, 1024)
"""Edges of images that condition a model, in pixels."""
