"""transformers: what its models take; knows their configurations, imports none of their code."""

import inspect
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from torch_initpolicy.integrations.checkpoints import initialize_missing
from torch_initpolicy.trace.answers import spoken_numbers
from torch_initpolicy.trace.arguments import floats, integers, required_arguments, values
from torch_initpolicy.trace.documented import BATCH, SEQUENCE, number
from torch_initpolicy.trace.trees import Call

__all__ = ["declared_inputs", "initialize_missing", "known_arguments"]


def declared_inputs(model: nn.Module) -> Iterator[Call]:
    """Yield what a forward requires with the main input of its model, and without."""
    known = known_arguments(model, Call())
    main, taken = _main_input(model), inspect.signature(model.forward).parameters
    for others in [main] if main in taken else [], []:
        wanted = tuple(dict.fromkeys((*others, *required_arguments(model))))
        shapes = [list(values(model, name, Call())) for name in wanted if known]
        for tensors in itertools.islice(itertools.product(*shapes), _VARIANTS if shapes else 0):
            yield Call((), dict(zip(wanted, tensors, strict=True)))
    dummies = getattr(model, "dummy_inputs", None)
    if known and isinstance(dummies, Mapping) and dummies.keys() <= taken.keys():
        yield Call((), dict(dummies))


def _main_input(model: nn.Module) -> str:
    return str(getattr(model, "main_input_name", ""))


_VARIANTS = 6
"""How many combinations of shapes are tried where arguments may have several."""


def known_arguments(model: nn.Module, call: Call, said: str = "") -> Mapping[str, Sequence[Tensor]]:
    """Return tensors for the arguments that models of transformers know, by name.

    Each may have several shapes, the likeliest first, as the configuration says. Tensors on meta
    stand for any numbers of their shape.
    """
    config = getattr(model, "config", None)
    if config is None or not (
        type(model).__module__.startswith("transformers") or _main_input(model)
    ):
        return {}
    sound = _part(config, "audio_config", "encoder_config", "speech_config")
    text = _text(_part(config, "text_config"))
    known = {**text, **_kinds(config, call), **_images(config), **_sound(sound)}
    return {**known, "input_ids": (*_with_tokens(config, call, said), *known["input_ids"])}


def _with_tokens(config: Any, call: Call, said: str) -> Iterator[Tensor]:
    """Yield texts with as many tokens of an image, a video or a sound as an error counts.

    Tokens of another kind, which an earlier error asked for, stay.
    """
    if "token" not in said:
        return
    given = call.kwargs.get("input_ids")
    words = list(range(SEQUENCE))
    if isinstance(given, Tensor) and given.ndim == 2 and not given.is_meta:
        words = given[0].tolist()
    names = [name for name in vars(config) if re.search(r"token_(id|index)$", name)]
    width = number(_part(config, "text_config"), "hidden_size", "d_model", default=1)
    spoken = [n for n in spoken_numbers(said) or [BATCH] if n]
    counts = {n // k for n in spoken for k in (BATCH, 1, BATCH * width, width)}
    for name in sorted(names, key=lambda name: name.split("_")[0] not in said.lower()):
        for count in sorted(n for n in counts if 0 < n <= _MOST_TOKENS):
            token = getattr(config, name)
            if isinstance(token, int):
                others = [word for word in words if word != token]
                yield torch.tensor([[*[token] * count, *others]] * BATCH)


_MOST_TOKENS = 2**13
"""Tokens up to which a text is tried."""


_MASKS = ("input_features_mask", "feature_attention_mask", "audio_mel_mask")
"""What masks of the frames of a sound are called."""


def _kinds(config: Any, call: Call) -> dict[str, Sequence[Tensor]]:
    """Say of each token of a text whether it stands for a part of an image."""
    ids = call.kwargs.get("input_ids")
    if not isinstance(ids, Tensor) or ids.is_meta:
        return {}
    token = number(config, "image_token_id", "image_token_index", default=-1)
    return {"mm_token_type_ids": ((ids == token).long(),)}


def _part(config: Any, *names: str) -> Any:
    """Return the first part of a configuration that there is, else the whole."""
    parts = (getattr(config, name, None) for name in names)
    return next((part for part in parts if part is not None), config)


def _text(config: Any) -> dict[str, Sequence[Tensor]]:
    width = number(config, "hidden_size", "d_model", "n_embd", "dim", default=16)
    features = floats(BATCH, SEQUENCE, width)
    hidden = dict.fromkeys(
        ("inputs_embeds", "hidden_states", "query_embeds", "encoder_hidden_states"), (features,)
    )
    task = floats(BATCH, number(config, "task_seq_len", default=SEQUENCE))
    ways = (integers(BATCH, SEQUENCE), integers(1, SEQUENCE), integers(BATCH, 2, SEQUENCE))
    return {**hidden, "input_ids": ways, "task_inputs": (task,)}


def _images(config: Any) -> dict[str, Sequence[Tensor]]:
    config = _part(config, "vision_config", "vision_tower_config", "backbone_config")
    channels = number(config, "num_channels", "in_channels", "in_chans", default=3)
    edges = _edges(config)
    image = floats(BATCH, channels, *edges)
    frames = number(config, "num_frames", "frames_per_clip", "num_image_views", default=8)
    clip = floats(BATCH, frames, channels, *edges)
    patch = number(config, "patch_size", default=14)
    cells = 2 * number(config, "spatial_merge_size", default=2)
    depth = number(config, "temporal_patch_size", default=1)
    patches = floats(cells**2, channels * depth * patch**2)
    grid = torch.tensor([[1, cells, cells]])
    grids = dict.fromkeys(("grid_thw", "image_grid_thw", "video_grid_thw", "grid_thws"), (grid,))
    pictures = (patches, image) if "spatial_merge_size" in dir(config) else (image, clip, patches)
    return {
        **grids,
        "pixel_values": pictures,
        "pixel_values_videos": (clip, patches),
        "pixel_values_images": (image,),
        "flattened_patches": (floats(BATCH, 16, 2 + channels * patch**2),),
        "image_sizes": (torch.tensor([edges] * BATCH),),
        "merge_sizes": (torch.tensor([cells // 2]),),
        "bool_masked_pos": (torch.zeros(BATCH, (edges[0] // patch) ** 2, dtype=torch.bool),),
        **({"hidden_states": (patches,)} if "spatial_merge_size" in dir(config) else {}),
    }


def _edges(config: Any) -> tuple[int, int]:
    """Return height and width of the images that a configuration is for."""
    edge = getattr(config, "image_size", None) or getattr(config, "img_size", None) or 224
    if isinstance(edge, Mapping):
        edge = tuple(edge.values())[:2]
    sizes = tuple(edge) if isinstance(edge, (tuple, list)) else (edge, edge)
    return (int(sizes[0]), int(sizes[-1]))


def _sound(config: Any) -> dict[str, Sequence[Tensor]]:
    bins = number(config, "num_mel_bins", "input_dim", "feature_size", "mel_bins", default=80)
    frames = 2 * number(config, "max_source_positions", default=64)
    wave = floats(BATCH, 1, 16000)
    spectrum = floats(BATCH, number(config, "max_length", default=1024), bins)
    by_frame, by_bin = floats(BATCH, frames, bins), floats(BATCH, bins, frames)
    past = number(config, "context_length", "lags", default=64) + 8
    series = floats(BATCH, past, number(config, "num_input_channels", default=1))
    mask = torch.ones(BATCH, frames, dtype=torch.bool)
    return {
        "input_values": (wave[:, 0], wave, spectrum),
        "input_features": (by_bin, by_frame),
        **dict.fromkeys(("spectrogram", "audio_mel"), (by_frame,)),
        "audio_values": (wave,),
        **dict.fromkeys(_MASKS, (mask,)),
        "past_values": (series, series[..., 0]),
        "audio_codes": (integers(BATCH, number(config, "num_quantizers", default=8), SEQUENCE),),
    }
